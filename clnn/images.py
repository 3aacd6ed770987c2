"""Functions of images and the like: pooling, upsampling and padding of arrays (batch, channels, *space), 1 to 3 axes of space.

Each comes in two: one for those who write a model by hand, which checks what it is given, and below it the one that layers
call too, who checked that when they were made. `label` is what errors call it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from .checks import in_range
from .errors import ClnnError, ConfigurationError, ShapeError
from .ops.image import pool as ops
from .ops.image import resize
from .ops.image.window import Paddings, paddings, per_axis, slide
from .tape import grad_enabled
from .tensor import Tensor, apply, on_tape, tensor, truths

__all__ = ["avg_pool", "max_pool", "pad", "upsample"]

Sizes = tuple[int, ...]


# -- pooling ----------------------------------------------------------------------------------------------------------
def max_pool(x: Any, size: Any = 2, stride: Any = None, padding: Any = 0, *, ceil_mode: bool = False) -> Tensor:
    """The largest of each window over the 1 to 3 spatial axes of x (batch, channels, *space); see `MaxPool2D`."""
    x = tensor(x)
    windows = pool_windows("max_pool", size, stride, padding, _axes("max_pool", x))
    return pooled("max_pool", x, *windows, "max", ceil_mode)


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
    x = tensor(x)
    windows = pool_windows("avg_pool", size, stride, padding, _axes("avg_pool", x))
    return pooled("avg_pool", x, *windows, "mean", ceil_mode, include_pad=count_include_pad)


def _axes(label: str, x: Tensor) -> int:
    if not 1 <= x.ndim - 2 <= 3:
        raise ShapeError(f"{label}: an input has a batch, channels and 1 to 3 spatial axes, and this one has {x.shape}")
    return x.ndim - 2


def pool_windows(label: str, size: Any, stride: Any, padding: Any, axes: int) -> tuple[Sizes, Sizes, Paddings]:
    """Size, stride (the size without one) and padding of pooling's windows, checked, for each spatial axis."""
    sizes = per_axis(f"{label}'s size", size, axes)
    strides = sizes if stride is None else per_axis(f"{label}'s stride", stride, axes)
    pads = paddings(f"{label}'s padding", padding, axes)
    if not isinstance(pads, str) and any(max(pair) >= k for pair, k in zip(pads, sizes)):
        raise ConfigurationError(
            f"{label}'s padding should be less than its windows' size {size!r}, or some would hold nothing else; "
            f"{padding!r} was provided instead"
        )
    return sizes, strides, pads


def pooled(
    label: str, x: Tensor, size: Sizes, stride: Sizes, padding: Paddings, kind: str, ceil: bool, **options: Any
) -> Tensor:
    """What a function of `kind` makes of each window."""
    window = slide(label, x.shape, size, stride, padding, ceil=ceil)
    try:
        y, backward = ops.pool(x, window, kind, keep=grad_enabled(), **options)
    except ClnnError as error:
        raise type(error)(f"{label}: {error}") from None
    return truths(on_tape(y, (x,), backward), x, means=True)


# -- larger spaces ----------------------------------------------------------------------------------------------------
def upsample(x: Any, factor: Any = 2, mode: str = "nearest") -> Tensor:
    """x (batch, channels, *space) with space times `factor`, repeated or interpolated; see `UpSampling`."""
    return upsampled("upsample", tensor(x), *upsampling("upsample", factor, mode))


def upsampling(label: str, factor: Any, mode: str) -> tuple[Any, str]:
    """Factor and mode, checked."""
    return _amounts(f"{label}'s factor", factor, 1), resize.check_mode(label, mode, resize.UPSAMPLINGS)


def upsampled(label: str, x: Tensor, factor: Any, mode: str) -> Tensor:
    """x with space times `factor`."""
    factors = _spread(label, factor, x)
    try:
        return truths(apply(resize.upsample, x, factor=factors, mode=mode), x, means=True)
    except ShapeError as error:
        raise ShapeError(f"{label}: {error}") from None


def pad(x: Any, amount: Any, mode: str = "constant", value: float = 0.0) -> Tensor:
    """x (batch, channels, *space) with `amount` more on either side of each spatial axis; see `Padding`."""
    return padded("pad", tensor(x), *padding_of("pad", amount, mode, value))


def padding_of(label: str, amount: Any, mode: str, value: float) -> tuple[Any, str, float]:
    """Amount, mode and value, checked."""
    amount, mode = _amounts(f"{label}'s amount", amount, 0, pairs=True), resize.check_mode(label, mode, resize.PADDINGS)
    return amount, mode, math.nan if value != value else in_range(f"{label}'s value", value, -math.inf, math.inf, "[]")


def padded(label: str, x: Tensor, amount: Any, mode: str, value: float) -> Tensor:
    """x with `amount` more on either side."""
    amounts = [a if isinstance(a, tuple) else (a, a) for a in _spread(label, amount, x)]
    try:
        return truths(apply(resize.pad, x, amounts=amounts, mode=mode, value=value), x, value)
    except ShapeError as error:
        raise ShapeError(f"{label}: {error}") from None


def _amounts(name: str, value: Any, least: int, pairs: bool = False) -> Any:
    """A whole number of `least` or more, or a list of 1 to 3 of them, each of which, with `pairs`, may be (before, after)."""
    if not isinstance(value, (tuple, list)):
        return per_axis(name, value, 1, least)[0]
    if not 1 <= len(value) <= 3:
        raise ConfigurationError(f"{name} should be for 1 to 3 spatial axes, {value!r} was provided instead")
    return [
        per_axis(name, v, 2, least) if pairs and isinstance(v, (tuple, list)) else per_axis(name, v, 1, least)[0]
        for v in value
    ]


def _spread(label: str, value: Any, x: Tensor) -> Sequence[Any]:
    """One value for each spatial axis of x, where `value` may be one for all."""
    axes, given = x.ndim - 2, len(value) if isinstance(value, list) else 0
    if not 1 <= axes <= 3 or given not in (0, axes):
        raise ShapeError(
            f"{label}: an input has a batch, channels and {given or '1 to 3'} spatial axes, and this one has {x.shape}"
        )
    return value if given else [value] * axes
