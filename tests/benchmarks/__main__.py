"""``python -m tests.benchmarks [NAME ...]``: run the measurements and print their tables."""

import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import click
import numpy as np

from tests.benchmarks.precision import arithmetic
from tests.conftest import ROOT, Service, free_port
from triage.network import Network
from triage.pixels import SIDE
from triage.registry import ModelVersion

RUNS = 5


def startup() -> None:
    """From starting ``triage serve`` on a new home to an answered C-ECHO; receiver's memory."""
    seconds, resident = [], []
    for _ in range(RUNS):
        with tempfile.TemporaryDirectory() as folder:
            service = Service(Path(folder) / "home", free_port())
            began = time.perf_counter()
            service.start()
            seconds.append(time.perf_counter() - began)
            status = Path(f"/proc/{service.part('receive')}/status").read_text()
            peak = next(line for line in status.splitlines() if line.startswith("VmHWM"))
            resident.append(int(peak.split()[1]) / 1000)
            service.stop()
    _row("start to answered C-ECHO", "s", seconds)
    _row("receiver's peak memory", "MB", resident)


def scoring() -> None:
    """One array scored by the bundled model and by the notebook's, in turn."""
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    import tensorflow as tf

    from training.exported import export, restore
    from training.networks import build
    from triage.network import openvino

    folder = max((ROOT / "triage" / "bundled").glob("*/model.json")).parent
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
            "the notebook's final_model (OpenVINO, float32)": exported(notebook, "f32"),
            "the notebook's final_model (OpenVINO, bfloat16)": exported(notebook, "bf16"),
            "ours (tf.function)": lambda: compiled(batch).numpy(),
            "ours (keras.predict)": lambda: keras_network.predict(batch, verbose=0),
            "the notebook's final_model (keras.predict)": lambda: theirs.predict(batch, verbose=0),
        }
        times: dict[str, list[float]] = {name: [] for name in ways}
        for way in ways.values():
            way()
        for _ in range(20 * RUNS):
            for name, way in ways.items():
                began = time.perf_counter()
                way()
                times[name].append((time.perf_counter() - began) * 1000)
    ours = times["ours (OpenVINO, float32)"]
    for name, values in times.items():
        # Of each round, because both then met the same other work.
        ratio = statistics.median(one / other for one, other in zip(values, ours, strict=True))
        _row(name, "ms", values, f"{ratio:.2f} x ours; least {min(values):.2f} ms")


def page() -> None:
    """A radiograph of 10 MB in Chromium: from asking for its page, and after `n`, to the screen."""
    import gzip

    from tests.browser import Hall, chromium, served, uid
    from triage.spool import Spool
    from triage.web.pictures import Pictures

    first, ahead = [], []
    with (
        tempfile.TemporaryDirectory() as folder,
        served(Path(folder) / "home", free_port, exams=22) as service,
        chromium() as browser,
    ):
        hall = Hall(browser, service)
        for _ in range(RUNS):
            desk = hall.desk("anna")
            desk.list()
            began = time.perf_counter()
            desk.exam(20)
            first.append(time.perf_counter() - began)
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
            ahead.append(time.perf_counter() - began)
            hall.leave()
        digest = service.worklist().item(uid(20)).digest
        pictures = Pictures(Spool(service.home / "spool"), None, None)  # type: ignore[arg-type]
        made, pressed = [], []
        for _ in range(RUNS):
            began = time.perf_counter()
            content = pictures.picture(digest).content
            made.append((time.perf_counter() - began) * 1000)
            began = time.perf_counter()
            small = gzip.compress(content, 1)
            pressed.append((time.perf_counter() - began) * 1000)
    _row("asked for, on the screen", "s", first)
    _row("next exam by `n`, fetched ahead", "s", ahead)
    _row("made at the server", "ms", made, f"{len(content) / 1e6:.1f} MB")
    _row("gzip -1, not done", "ms", pressed, f"{len(small) / 1e6:.1f} MB")


def training() -> None:
    """The same network fine-tuned our way and the notebook's, on random pictures, in turn."""
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

    for name, way in (("ours", ours), ("the notebook's way", notebook)):
        made, batches_of = way()
        made.compile("sgd", "binary_crossentropy")
        made.fit(batches_of, epochs=1, verbose=0)
        speeds = []
        for _ in range(3):
            began = time.perf_counter()
            made.fit(batches_of, epochs=1, verbose=0)
            speeds.append(len(pictures) / (time.perf_counter() - began))
        _row(name, "images/s", speeds)


MEASUREMENTS = {
    "startup": startup,
    "scoring": scoring,
    "arithmetic": arithmetic,
    "page": page,
    "training": training,
}


def _row(name: str, unit: str, values: list[float], note: str = "") -> None:
    click.echo(
        f"| {name} | {statistics.median(values):.2f} {unit} | {min(values):.2f} to "
        f"{max(values):.2f} | {len(values)} | {note} |"
    )


@click.command()
@click.argument("names", nargs=-1, type=click.Choice(list(MEASUREMENTS)))
def main(names: tuple[str, ...]) -> None:
    """Print a Markdown table for each measurement."""
    for name in names or MEASUREMENTS:
        measure = MEASUREMENTS[name]
        click.echo(f"\n{name}: {measure.__doc__}\n")
        click.echo("| what | median | range | runs | |\n|---|---|---|---|---|")
        measure()


if __name__ == "__main__":
    main.main(sys.argv[1:])
