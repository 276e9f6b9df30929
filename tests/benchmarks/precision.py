"""What less precise arithmetic would cost and save, on patients that the model never saw.

    python -m tests.benchmarks.precision

int8 needs NNCF (``pip install nncf``), which no other part of this project does: without it,
its rows are left out. Needs the Kermany data set, as the acceptance tests do.
"""

import sys
import time
from collections.abc import Callable
from importlib.util import find_spec

import click
import numpy as np

from tests.acceptance.test_real_radiographs import BUNDLED, DATA
from triage.pixels import SIDE, normalize_file
from triage.registry import ModelVersion

CALIBRATED_ON = 300


def arithmetic() -> None:
    """AUC, flags and time of the bundled network in float32, bfloat16 and int8, one thread."""
    from training.dataset import read_folder
    from training.evaluate import auc
    from triage.network import openvino

    model = ModelVersion.load(max(BUNDLED.glob("*/model.json")).parent)
    snapshot = read_folder(DATA)
    rows = snapshot.never_seen(model.description)
    pictures = [_batch(snapshot.cases[row].path) for row in rows]
    labels = snapshot.labels[rows]
    core = openvino().Core()

    def network() -> object:
        read = core.read_model(model.folder / "model.xml")
        read.reshape([1, SIDE, SIDE, 1])
        return read

    ways: dict[str, tuple[object, str]] = {
        "float32": (network(), "f32"),
        "bfloat16": (network(), "bf16"),
    }
    if find_spec("nncf") is not None:
        sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
        import nncf

        rest = np.setdiff1d(np.arange(len(snapshot.cases)), rows)
        shown = np.random.default_rng(1).choice(rest, CALIBRATED_ON, replace=False)
        examples = nncf.Dataset([_batch(snapshot.cases[row].path) for row in shown])
        # The logit is a mean over the map: in int8 too coarse to be compared with a threshold.
        mean = nncf.IgnoredScope(types=["ReduceMean"])
        for name, preset, spared in (
            ("all it can", "PERFORMANCE", None),
            ("all but the last mean", "PERFORMANCE", mean),
            ("mixed, but the last mean", "MIXED", mean),
        ):
            quantized = nncf.quantize(
                network(), examples, preset=nncf.QuantizationPreset[preset],
                subset_size=CALIBRATED_ON, ignored_scope=spared,
            )  # fmt: skip
            ways[f"int8, {name}"] = (quantized, "f32")
    found: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    for name, (network_, precision) in ways.items():
        hints = {"INFERENCE_PRECISION_HINT": precision, "INFERENCE_NUM_THREADS": 1}
        request = core.compile_model(network_, "CPU", hints).create_infer_request()
        found[name] = _judged(request.infer, pictures)
    plain = found["float32"][0]
    click.echo("| arithmetic | median | range | pictures | |\n|---|---|---|---|---|")
    for name, (said, times) in found.items():
        changed = np.mean((said >= model.threshold) != (plain >= model.threshold))
        click.echo(
            f"| {name} | {np.median(times):.1f} ms | {times.min():.1f} to {times.max():.1f} | "
            f"{len(times)} | AUC {auc(labels, said):.4f}, flags changed {changed:.2%}, largest "
            f"change of a probability {np.abs(said - plain).max():.3f} |"
        )


def _batch(path: object) -> np.ndarray:
    return normalize_file(path)[np.newaxis, :, :, np.newaxis]  # type: ignore[arg-type]


def _judged(
    infer: Callable[[list[np.ndarray]], object], pictures: list[np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    said, times = np.empty(len(pictures)), np.empty(len(pictures))
    for number, picture in enumerate(pictures):
        began = time.perf_counter()
        outputs = infer([picture])
        times[number] = (time.perf_counter() - began) * 1000
        said[number] = next(v for k, v in outputs.items() if v.ndim == 2)[0, 0]  # type: ignore[attr-defined]
    return said, times


if __name__ == "__main__":
    arithmetic()
