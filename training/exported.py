"""A network as OpenVINO IR, and back.

The IR is what scores, and for a fine-tuned network it is also where training goes on from:
the weights are in the package once, in half precision. A version of another architecture
has its Keras weights beside it.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np
import numpy.typing as npt

from training.efficientnet import EVIDENCE
from training.networks import build
from triage.errors import DataError
from triage.network import openvino
from triage.pixels import SIDE
from triage.registry import EXPORTED

WEIGHTS = "model.weights.h5"

_HALF = "_compressed"
"""What OpenVINO puts after the name of a weight in half precision."""

_ORDERS = ((0, 1, 2, 3), (3, 2, 0, 1), (2, 3, 0, 1))
"""Of a kernel's axes in OpenVINO: as in Keras; convolution; depthwise convolution."""


def export(network: keras.Model, path: Path, *, half: bool = False) -> None:
    """Write a network as OpenVINO IR for any batch size.

    Its outputs are the probability, float32 (batch, 1), and, if the network has one, the
    class-activation map, float32 (batch, rows, columns, 1), whose mean is the logit.

    Parameters
    ----------
    network : keras.Model
        float32 (batch, 256, 256, 1) to float32 (batch, 1).
    path : Path
        Ends in ``.xml``; the weights go beside it in ``.bin``.
    half : bool
        Whether weights are written in half precision. They are computed with in float32.
    """
    ov = openvino()
    explained = any(layer.name == EVIDENCE for layer in network.layers)
    if explained:
        outputs = [network.output, network.get_layer(EVIDENCE).output]
        network = keras.Model(network.inputs, outputs)
    converted = ov.convert_model(network, input=ov.PartialShape([-1, SIDE, SIDE, 1]))
    if explained:
        _name_weights(converted, network)
    ov.save_model(converted, path, compress_to_fp16=half)


def _name_weights(converted: Any, network: keras.Model) -> None:
    """Name each constant after the Keras weight that it holds, so that it is found again."""
    constants: dict[int, list[tuple[Any, npt.NDArray[np.float32]]]] = {}
    for node in converted.get_ops():
        if node.get_type_name() == "Constant" and node.get_element_type().is_real():
            data = np.asarray(node.data).ravel()
            constants.setdefault(data.size, []).append((node, data))
    for name, variable in _weights(network):
        values = np.asarray(variable)
        orders = _ORDERS if values.ndim == 4 else (tuple(range(values.ndim)),)
        ways = [values.transpose(order).ravel() for order in orders]
        node = next(
            node
            for node, data in constants[values.size]
            if any(np.array_equal(data, way) for way in ways)
        )
        node.set_friendly_name(name)


def _weights(network: keras.Model) -> Iterator[tuple[str, keras.Variable]]:
    for layer in network.layers:
        if isinstance(layer, keras.layers.Conv2D | keras.layers.DepthwiseConv2D):
            yield f"{layer.name}/kernel", layer.kernel
            yield f"{layer.name}/bias", layer.bias


def restore(architecture: str, folder: Path) -> keras.Model:
    """The Keras network of a model version.

    Parameters
    ----------
    architecture : str
    folder : Path
        Of the version.

    Raises
    ------
    DataError
        The architecture is unknown, or the weights are damaged or of another one.
    """
    network = build(architecture)
    try:
        if (folder / WEIGHTS).exists():
            network.load_weights(folder / WEIGHTS)
        else:
            _from_exported(network, folder / EXPORTED)
    # A boundary: Keras, HDF5 and OpenVINO raise what they like on a damaged file.
    except Exception as error:
        raise DataError(
            f"the weights in {folder} are damaged or not of {architecture} "
            f"({type(error).__name__}): name the architecture in its model.json"
        ) from error
    return network


def _from_exported(network: keras.Model, path: Path) -> None:
    nodes = {
        node.get_friendly_name().removesuffix(_HALF): node
        for node in openvino().Core().read_model(path).get_ops()
        if node.get_type_name() == "Constant"
    }
    for layer in network.layers:
        if isinstance(layer, keras.layers.DepthwiseConv2D):
            rows, columns, channels, _ = layer.kernel.shape
            shape, order = (channels, 1, rows, columns), (2, 3, 0, 1)
        elif isinstance(layer, keras.layers.Conv2D):
            rows, columns, inward, outward = layer.kernel.shape
            shape, order = (outward, inward, rows, columns), (2, 3, 1, 0)
        else:
            continue
        kernel = np.asarray(nodes[f"{layer.name}/kernel"].data, np.float32)
        bias = np.asarray(nodes[f"{layer.name}/bias"].data, np.float32)
        layer.set_weights([kernel.reshape(shape).transpose(order), bias.ravel()])
