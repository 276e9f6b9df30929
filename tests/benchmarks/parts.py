"""Parts by themselves: the start, the scorer, the page and training."""

import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from tests.benchmarks import peers
from tests.benchmarks.cases import Amounts, Case
from tests.benchmarks.floors import milliseconds
from tests.conftest import Service, free_port
from triage.app import BUNDLED
from triage.network import Network
from triage.pixels import SIDE
from triage.registry import ModelVersion


def startup(_: Amounts) -> Iterator[Case]:
    """From starting ``triage serve`` on a new home to an answered C-ECHO; receiver's memory."""
    yield Case("start to answered C-ECHO", "s", {"ours": lambda: _started()[0]})
    yield Case("receiver's peak memory", "MB", {"ours": lambda: _started()[1]})


def _started() -> tuple[float, float]:
    with tempfile.TemporaryDirectory() as folder:
        service = Service(Path(folder) / "home", free_port())
        began = time.perf_counter()
        service.start()
        seconds = time.perf_counter() - began
        try:
            return seconds, peers.peak_memory(service.part("receive"))
        finally:
            service.stop()


def scoring(_: Amounts) -> Iterator[Case]:
    """One array scored by the bundled model and by the notebook's, batch of 1, in one process."""
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    import tensorflow as tf

    from training.exported import export, restore
    from training.networks import build
    from triage.network import openvino

    folder = max(BUNDLED.glob("*/model.json")).parent
    model = ModelVersion.load(folder)
    keras_network = restore(model.description["architecture"], folder)
    network = Network(model)
    compiled = tf.function(keras_network)
    array = np.random.default_rng(1).random((SIDE, SIDE), np.float32)
    batch = array[np.newaxis, :, :, np.newaxis]
    core = openvino().Core()

    def exported(path: Path, precision: str) -> Callable[[], object]:
        read = core.read_model(path)
        read.reshape([1, SIDE, SIDE, 1])
        hints = {"INFERENCE_PRECISION_HINT": precision, "PERFORMANCE_HINT": "LATENCY"}
        request = core.compile_model(read, "CPU", hints).create_infer_request()
        return lambda: request.infer([batch])

    with tempfile.TemporaryDirectory() as temporary:
        notebook = Path(temporary) / "final_model.xml"
        theirs = build("final_model")
        export(theirs, notebook)
        ways: dict[str, Callable[[], object]] = {
            "ours (OpenVINO, float32)": lambda: network.score(array),
            "ours (OpenVINO, bfloat16)": exported(folder / "model.xml", "bf16"),
            "the notebook's `final_model` (OpenVINO, float32)": exported(notebook, "f32"),
            "the notebook's `final_model` (OpenVINO, bfloat16)": exported(notebook, "bf16"),
            "ours (`tf.function`)": lambda: compiled(batch).numpy(),
            "ours (`keras.predict`)": lambda: keras_network.predict(batch, verbose=0),
            "the notebook's `final_model` (`keras.predict`)": lambda: theirs.predict(
                batch, verbose=0
            ),
        }
        for way in ways.values():
            way()
        timed = {who: lambda way=way: milliseconds(way) for who, way in ways.items()}
        yield Case("one array", "ms", timed)


def page(amounts: Amounts) -> Iterator[Case]:
    """A radiograph of 10 MB in Chromium: from asking for its page, and after `n`, to the screen."""
    import gzip

    from tests.browser import Hall, chromium, served, uid
    from triage.spool import Spool
    from triage.web.pictures import Pictures

    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        service = stack.enter_context(served(Path(folder) / "home", free_port, exams=22))
        hall = Hall(stack.enter_context(chromium()), service)

        def looked_at() -> dict[str, float]:
            desk = hall.desk("anna")
            desk.list()
            began = time.perf_counter()
            desk.exam(20)
            first = time.perf_counter() - began
            desk.go(f"/exams/{uid(19)}")
            # All but the one of 10 MB were passed over: it comes next, and is fetched ahead.
            others = str([uid(number) for number in range(22) if number != 20]).replace("'", '"')
            desk.page.evaluate(f"sessionStorage.setItem('exam.passed', '{others}')")
            with desk.page.expect_response(f"**/{uid(20)}/picture"):
                desk.exam(19)
            desk.page.wait_for_timeout(1_500)
            began = time.perf_counter()
            desk.press("n")
            desk.shown(uid(20))
            ahead = time.perf_counter() - began
            hall.leave()
            return {"asked for": first, "next exam by `n`, fetched ahead": ahead}

        yield Case("on the screen", "s", {"ours": looked_at})
        digest = service.worklist().item(uid(20)).digest
        pictures = Pictures(Spool(service.home / "spool"), None, None)  # type: ignore[arg-type]
        content = pictures.picture(digest).content
        yield Case(
            f"made at the server, {len(content) / 1e6:.1f} MB",
            "ms",
            {
                "ours": lambda: milliseconds(lambda: pictures.picture(digest)),
                "gzip -1, not done": lambda: milliseconds(lambda: gzip.compress(content, 1)),
            },
        )


def training(_: Amounts) -> Iterator[Case]:
    """The same network fine-tuned our way and the notebook's, on random pictures."""
    # The notebook's: ImageDataGenerator (rotation, shift, zoom) and fit, in float32, every
    # weight trained by TensorFlow's own depthwise gradient.
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    import keras
    from keras.src.legacy.preprocessing.image import ImageDataGenerator

    from training import efficientnet
    from training.finetune import BATCH, Varied, balanced

    batches = 8
    random = np.random.default_rng(1)
    pictures = random.integers(0, 256, (BATCH * batches, SIDE, SIDE)).astype(np.uint8)
    labels = np.arange(len(pictures)) % 2
    side = efficientnet.WORKS_AT

    def network(precision: str) -> keras.Model:
        keras.config.set_dtype_policy(precision)
        made = efficientnet.trainee()
        keras.config.set_dtype_policy("float32")
        return made

    def notebook() -> tuple[keras.Model, object]:
        # Keras' own layer, whose weights train, in the place of ours.
        ours = efficientnet.FrozenDepthwise
        efficientnet.FrozenDepthwise = keras.layers.DepthwiseConv2D  # type: ignore[misc]
        try:
            made = network("float32")
        finally:
            efficientnet.FrozenDepthwise = ours  # type: ignore[misc]
        generator = ImageDataGenerator(
            rescale=1 / 255, rotation_range=10, width_shift_range=0.1, zoom_range=0.1
        )
        smaller = pictures[:, :side, :side, np.newaxis].astype(np.float32)
        return made, generator.flow(smaller, labels, batch_size=BATCH)

    def ours() -> tuple[keras.Model, object]:
        made = network("mixed_bfloat16")
        efficientnet.freeze(made)
        return made, Varied(pictures, labels.astype(np.float32), balanced(labels), 1, 0)

    def epoch(way: Callable[[], tuple[keras.Model, object]]) -> Callable[[], float]:
        made, batches_of = way()
        made.compile("sgd", "binary_crossentropy")
        made.fit(batches_of, epochs=1, verbose=0)

        def measured() -> float:
            began = time.perf_counter()
            made.fit(batches_of, epochs=1, verbose=0)
            return len(pictures) / (time.perf_counter() - began)

        return measured

    ways = {"ours": epoch(ours), "the notebook's way": epoch(notebook)}
    yield Case("fine-tuning", "images/s", ways, more_is_better=True, rounds=3)
