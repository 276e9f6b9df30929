"""Ours beside what cannot be undercut on this machine."""

import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from math import prod
from pathlib import Path

import numpy as np
from PIL import Image
from pydicom import dcmread

from tests.benchmarks.cases import Amounts, Case
from tests.benchmarks.objects import LARGE, files
from triage.app import BUNDLED
from triage.network import Network, openvino
from triage.pixels import SIDE, normalize
from triage.registry import EXPORTED, ModelVersion

CALLS = 21
"""A round's value is the median of so many calls."""

PEAK_SIDE = 1024
"""Rows and columns of the matrices whose product is taken for the machine's peak."""


def floors(_: Amounts) -> Iterator[Case]:
    """From file to array beside its bytes and a resize; inference beside the machine's peak."""
    model = ModelVersion.load(max(BUNDLED.glob("*/model.json")).parent)
    with tempfile.TemporaryDirectory() as name:
        (path,) = files(Path(name) / "large", 1, LARGE)
        floating = Image.fromarray(np.asarray(dcmread(path).pixel_array, np.float32))

        def floor() -> object:
            path.read_bytes()
            return floating.resize((SIDE, SIDE), Image.Resampling.BILINEAR)

        yield Case(
            "10 MB from file to array",
            "ms",
            {
                "ours": lambda: milliseconds(lambda: normalize(dcmread(path))),
                "its bytes read once, one resize": lambda: milliseconds(floor),
            },
        )
    network, product = Network(model), _product()
    array = np.random.default_rng(1).random((SIDE, SIDE), np.float32)
    share = operations(model) / (2 * PEAK_SIDE**3)
    yield Case(
        "inference",
        "ms",
        {
            "ours": lambda: milliseconds(lambda: network.score(array)),
            "its operations at the peak of a product of matrices": lambda: (
                milliseconds(product) * share
            ),
        },
    )


def milliseconds(what: Callable[[], object]) -> float:
    """The median of some calls."""
    took = []
    for _ in range(CALLS):
        began = time.perf_counter()
        what()
        took.append((time.perf_counter() - began) * 1000)
    return statistics.median(took)


def operations(model: ModelVersion) -> int:
    """Multiplications and additions of a version's convolutions and matrix products."""
    network = openvino().Core().read_model(model.folder / EXPORTED)
    network.reshape([1, SIDE, SIDE, 1])
    total = 0
    for node in network.get_ops():
        kind = node.get_type_name()
        if kind in {"Convolution", "GroupConvolution", "MatMul"}:
            weights, out = list(node.input(1).get_shape()), list(node.output(0).get_shape())
            # Each value given is a sum over the inputs of its channel and the kernel.
            summed = prod(weights[2:] if kind == "GroupConvolution" else weights[1:])
            total += 2 * summed * prod(out)
    return total


def _product() -> Callable[[], object]:
    """A product of matrices in float32, as OpenVINO computes it with the worker's settings."""
    ov = openvino()
    from openvino import opset13 as op

    left, right = np.random.default_rng(1).random((2, PEAK_SIDE, PEAK_SIDE), np.float32)
    given = op.parameter(left.shape, np.float32)
    compiled = ov.Core().compile_model(
        # The right one is constant, as a network's weights are.
        ov.Model([op.matmul(given, op.constant(right), False, False)], [given]),
        "CPU",
        {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"},
    )
    request = compiled.create_infer_request()
    return lambda: request.infer([left])
