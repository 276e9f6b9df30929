"""The architectures, by name. Each maps (256, 256, 1) arrays to a probability."""

from collections.abc import Callable, Mapping
from types import MappingProxyType

import keras

from training.efficientnet import efficientnet_lite0
from triage.errors import DataError
from triage.pixels import SIDE


def final_model() -> keras.Model:
    """The notebook's ``final_model``: 304,082 parameters.

    Four blocks of 3 x 3 convolution (50, 40, 35, 32 kernels), ReLU and 2 x 2 max pooling;
    dense layers of 32, 16 and 5 with L2 0.005; a sigmoid.
    """
    layers = keras.layers
    stack: list[keras.Layer] = [keras.Input((SIDE, SIDE, 1))]
    for kernels in (50, 40, 35, 32):
        stack.append(layers.Conv2D(kernels, 3, padding="same", activation="relu"))
        stack.append(layers.MaxPooling2D(2))
    stack.append(layers.Flatten())
    for units in (32, 16, 5):
        penalty = keras.regularizers.L2(0.005)
        stack.append(layers.Dense(units, activation="relu", kernel_regularizer=penalty))
    # A probability in half precision would be too coarse near 0 and 1.
    stack.append(layers.Dense(1, activation="sigmoid", dtype="float32"))
    return keras.Sequential(stack, name="final_model")


ARCHITECTURES: Mapping[str, Callable[[], keras.Model]] = MappingProxyType(
    {"final_model": final_model, "efficientnet_lite0": efficientnet_lite0}
)

FINE_TUNED = frozenset({"efficientnet_lite0"})
"""Those that start from pretrained weights, see :mod:`training.finetune`."""


def build(name: str) -> keras.Model:
    """A new network with fresh weights.

    Raises
    ------
    DataError
        There is no architecture of that name.
    """
    try:
        return ARCHITECTURES[name]()
    except KeyError:
        known = ", ".join(sorted(ARCHITECTURES))
        raise DataError(f"there is no architecture {name!r}; known: {known}") from None
