"""Functions of tensors: all of one and of two variables by their names (`clnn.relu(x)`, `clnn.less(a, b)`), and a few more."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from . import arrays, attention, named
from .arrays import *  # noqa: F403
from .attention import *  # noqa: F403
from .checks import whole, whole_numbers
from .errors import ShapeError
from .layers.base import Layer
from .layers.image.pool import AvgPool1D, AvgPool2D, AvgPool3D, MaxPool1D, MaxPool2D, MaxPool3D
from .layers.image.resize import Padding, UpSampling
from .named import *  # noqa: F403
from .tensor import Tensor, concat, softmax_of, tensor


def softmax(x: Any) -> Tensor:
    """exp(x) / sum(exp(x)) over the last axis."""
    return softmax_of(x)


def log_softmax(x: Any) -> Tensor:
    """log(softmax(x)) over the last axis."""
    return softmax_of(x, log=True)


def _layer(name: str, layer: Layer, x: Any) -> Tensor:
    layer.name = name  # in errors
    return layer.forward(tensor(x))


def _by_axes(name: str, kinds: Sequence[type[Layer]], x: Any) -> type[Layer]:
    shape = x.shape if isinstance(x, Tensor) else np.shape(x)
    axes = len(shape) - 2
    if not 1 <= axes <= 3:
        raise ShapeError(f"{name}: an input has a batch, channels and 1 to 3 spatial axes, and this one has {shape}")
    return kinds[axes - 1]


def max_pool(x: Any, size: Any = 2, stride: Any = None, padding: Any = 0, *, ceil_mode: bool = False) -> Tensor:
    """The largest of each window over the 1 to 3 spatial axes of x (batch, channels, *space); see `MaxPool2D`."""
    kind: Any = _by_axes("max_pool", (MaxPool1D, MaxPool2D, MaxPool3D), x)
    return _layer("max_pool", kind(size, stride, padding, ceil_mode=ceil_mode), x)


def avg_pool(
    x: Any,
    size: Any = 2,
    stride: Any = None,
    padding: Any = 0,
    *,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
) -> Tensor:
    """The mean of each window over the 1 to 3 spatial axes of x (batch, channels, *space); see `AvgPool2D`."""
    kind: Any = _by_axes("avg_pool", (AvgPool1D, AvgPool2D, AvgPool3D), x)
    return _layer("avg_pool", kind(size, stride, padding, ceil_mode=ceil_mode, count_include_pad=count_include_pad), x)


def upsample(x: Any, factor: Any = 2, mode: str = "nearest") -> Tensor:
    """x (batch, channels, *space) with space times `factor`, repeated or interpolated; see `UpSampling`."""
    return _layer("upsample", UpSampling(factor, mode), x)


def pad(x: Any, amount: Any, mode: str = "constant", value: float = 0.0) -> Tensor:
    """x (batch, channels, *space) with `amount` more on either side of each spatial axis; see `Padding`."""
    return _layer("pad", Padding(amount, mode, value), x)


def split(x: Any, parts: int | Sequence[int], axis: int = 0) -> list[Tensor]:
    """x cut along `axis`, into `parts` equal parts or into parts of the sizes in `parts`; what `concatenate` joins again.

    ShapeError where a number of parts does not divide the axis, or sizes do not add up to it.
    """
    x = tensor(x)
    (axis,) = whole_numbers("split's axis", axis)
    if not -x.ndim <= axis < x.ndim:
        raise ShapeError(f"split: axis {axis} is out of range for an array of shape {x.shape}")
    axis %= x.ndim
    n = x.shape[axis]
    if (count := whole(parts)) is not None:
        if count < 1 or n % count:
            raise ShapeError(
                f"split: axis {axis} of an array of shape {x.shape} has {n} elements, not {parts} equal parts"
            )
        parts = [n // count] * count
    parts = whole_numbers("split", parts)
    if any(size < 0 for size in parts) or sum(parts) != n:
        raise ShapeError(
            f"split: sizes {list(parts)} add up to {sum(parts)}, and axis {axis} of an array of shape {x.shape} has {n}"
        )
    found, start = [], 0
    for size in parts:
        found.append(x[(*(slice(None),) * axis, slice(start, start + size))])
        start += size
    return found


concatenate = concat

__all__ = [
    "avg_pool",
    "concatenate",
    "log_softmax",
    "max_pool",
    "pad",
    "softmax",
    "split",
    "upsample",
]
__all__ += named.__all__
__all__ += arrays.__all__
__all__ += attention.__all__
