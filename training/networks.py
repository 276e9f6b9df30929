"""The architectures, by name. Each maps (256, 256, 1) arrays to a probability."""

from collections.abc import Callable, Mapping
from types import MappingProxyType

import keras

from training.efficientnet import efficientnet_lite0
from triage.errors import DataError
from triage.pixels import SIDE

PENALTY = 0.005
"""L2 of the notebook's regularized dense layers."""

DROPOUT = 0.3
"""The share of a dense layer's outputs that the notebook's ``dropout`` leaves out in training."""


def base_model() -> keras.Model:
    """The notebook's ``base_model``, dense layers alone: 6,562,669 parameters."""
    return _stack("base_model", (), (100, 68, 30))


def base_cnn() -> keras.Model:
    """The notebook's ``base_cnn``: 1,811,403 parameters."""
    return _stack("base_cnn", (100, 80, 70, 64), (100, 68, 30))


def reg_cnn() -> keras.Model:
    """The notebook's ``reg_cnn``, ``base_cnn`` with L2: 1,811,403 parameters."""
    return _stack("reg_cnn", (100, 80, 70, 64), (100, 68, 30), PENALTY)


def reduced_nodes() -> keras.Model:
    """The notebook's ``reduced_nodes``, every layer of ``reg_cnn`` halved: 453,212 parameters."""
    return _stack("reduced_nodes", (50, 40, 35, 32), (50, 34, 15), PENALTY)


def dropout() -> keras.Model:
    """The notebook's ``dropout``, ``reduced_nodes`` with dropout: 453,212 parameters."""
    return _stack("dropout", (50, 40, 35, 32), (50, 34, 15), PENALTY, DROPOUT)


def final_model() -> keras.Model:
    """The notebook's ``final_model``: 304,082 parameters.

    Four blocks of 3 x 3 convolution (50, 40, 35, 32 kernels), ReLU and 2 x 2 max pooling;
    dense layers of 32, 16 and 5 with L2 0.005; a sigmoid.
    """
    return _stack("final_model", (50, 40, 35, 32), (32, 16, 5), PENALTY)


def larger_l2() -> keras.Model:
    """A next step that the notebook proposes, larger L2 and fewer kernels: 76,375 parameters."""
    return _stack("larger_l2", (25, 20, 18, 16), (16, 8, 5), 2 * PENALTY)


def _stack(
    name: str,
    kernels: tuple[int, ...],
    units: tuple[int, ...],
    penalty: float = 0.0,
    left_out: float = 0.0,
) -> keras.Model:
    """Blocks of 3 x 3 convolution, ReLU and 2 x 2 max pooling, dense layers, a sigmoid.

    Parameters
    ----------
    name : str
    kernels : tuple of int
        Of each block.
    units : tuple of int
        Of each hidden dense layer.
    penalty : float
        L2 of the hidden dense layers' weights.
    left_out : float
        Dropout after each hidden dense layer, 0 to 1.
    """
    layers = keras.layers
    stack: list[keras.Layer] = [keras.Input((SIDE, SIDE, 1))]
    for count in kernels:
        stack.append(layers.Conv2D(count, 3, padding="same", activation="relu"))
        stack.append(layers.MaxPooling2D(2))
    stack.append(layers.Flatten())
    for count in units:
        l2 = keras.regularizers.L2(penalty) if penalty else None
        stack.append(layers.Dense(count, activation="relu", kernel_regularizer=l2))
        if left_out:
            stack.append(layers.Dropout(left_out))
    # A probability in half precision would be too coarse near 0 and 1.
    stack.append(layers.Dense(1, activation="sigmoid", dtype="float32"))
    return keras.Sequential(stack, name=name)


ARCHITECTURES: Mapping[str, Callable[[], keras.Model]] = MappingProxyType(
    {
        "base_model": base_model,
        "base_cnn": base_cnn,
        "reg_cnn": reg_cnn,
        "reduced_nodes": reduced_nodes,
        "dropout": dropout,
        "final_model": final_model,
        "larger_l2": larger_l2,
        "efficientnet_lite0": efficientnet_lite0,
    }
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
