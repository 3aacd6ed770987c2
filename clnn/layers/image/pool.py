"""Pooling over 1, 2 and 3 spatial axes; arrays are (batch, channels, *space)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ...checks import whole
from ...errors import ConfigurationError, ShapeError
from ...images import pool_windows, pooled
from ...ops.image.pool import adaptive_pool
from ...ops.image.window import per_axis, short, short_paddings
from ...tape import grad_enabled
from ...tensor import Tensor, on_tape, truths
from ..base import Layer, called, register

__all__ = [
    "AdaptiveAvgPool",
    "AdaptiveMaxPool",
    "AvgPool1D",
    "AvgPool2D",
    "AvgPool3D",
    "GlobalAvgPool",
    "GlobalMaxPool",
    "MaxPool1D",
    "MaxPool2D",
    "MaxPool3D",
]

Size = int | Sequence[int]


class _Pool(Layer):
    """What all of them share; `axes` is the number of spatial axes."""

    axes = 0
    kind = "max"

    def __init__(
        self, size: Size = 2, stride: Size | None = None, padding: Any = 0, *, ceil_mode: bool = False
    ) -> None:
        windows = pool_windows(type(self).__name__, size, stride, padding, self.axes)
        self.size, self.stride, self.padding = windows
        self.ceil_mode = bool(ceil_mode)

    options: dict[str, Any] = {}

    def config(self) -> dict[str, Any]:
        stride = None if self.stride == self.size else short(self.stride)
        return {**super().config(), "size": short(self.size), "stride": stride, "padding": short_paddings(self.padding)}

    def forward(self, x: Tensor) -> Tensor:
        label = called(self)
        return pooled(label, x, self.size, self.stride, self.padding, self.kind, self.ceil_mode, **self.options)


class _AvgPool(_Pool):
    kind = "mean"

    def __init__(
        self,
        size: Size = 2,
        stride: Size | None = None,
        padding: Any = 0,
        *,
        ceil_mode: bool = False,
        count_include_pad: bool = True,
    ) -> None:
        super().__init__(size, stride, padding, ceil_mode=ceil_mode)
        self.count_include_pad = bool(count_include_pad)

    @property
    def options(self) -> dict[str, Any]:  # type: ignore[override]
        return {"include_pad": self.count_include_pad}


@register
class MaxPool1D(_Pool):
    """The largest of each window over one axis: (batch, channels, length); see MaxPool2D."""

    axes = 1


@register
class MaxPool2D(_Pool):
    """The largest value of each window: (batch, channels, height, width) (Ranzato et al. 2007).

    `size`, `stride` (the size without one) and `padding` as in Conv2D; padding is never the largest. With `ceil_mode` the
    number of windows is rounded up, as long as the last one starts within the input. A gradient goes to the first of equals.
    ShapeError where no window fits; ConfigurationError for padding of a window's size or more.
    """

    axes = 2


@register
class MaxPool3D(_Pool):
    """The largest of each window over three axes: (batch, channels, depth, height, width); see MaxPool2D."""

    axes = 3


@register
class AvgPool1D(_AvgPool):
    """The mean of each window over one axis: (batch, channels, length); see AvgPool2D."""

    axes = 1


@register
class AvgPool2D(_AvgPool):
    """The mean of each window: (batch, channels, height, width) (LeCun et al. 1998); arguments as MaxPool2D's.

    With `count_include_pad` padding counts as zeros, without it not at all.
    """

    axes = 2


@register
class AvgPool3D(_AvgPool):
    """The mean of each window over three axes: (batch, channels, depth, height, width); see AvgPool2D."""

    axes = 3


class _Adaptive(Layer):
    kind = "max"

    def __init__(self, size: Size) -> None:
        self.every = whole(size) is not None  # the same for every spatial axis
        axes = 1 if self.every or not isinstance(size, (tuple, list)) else len(size)
        if not 1 <= axes <= 3:
            raise ConfigurationError(f"{type(self).__name__}'s size has 1 to 3 axes, {size!r} was provided instead")
        self.size = per_axis(f"{type(self).__name__}'s size", size, axes)

    def forward(self, x: Tensor) -> Tensor:
        axes = x.ndim - 2 if self.every else len(self.size)
        try:
            y, backward = adaptive_pool(x, self.size * axes if self.every else self.size, self.kind, grad_enabled())
        except ShapeError as error:
            raise self.wrong_shape(error) from None
        return truths(on_tape(y, (x,), backward), x, means=True)

    def config(self) -> dict[str, Any]:
        return {"size": self.size[0] if self.every else list(self.size)}


@register
class AdaptiveMaxPool(_Adaptive):
    """The largest of each of `size` bins along each spatial axis: bin i of n holds floor(i in / n) to ceil((i + 1) in / n)."""


@register
class AdaptiveAvgPool(_Adaptive):
    """The mean of each of `size` bins along each spatial axis, as in AdaptiveMaxPool."""

    kind = "mean"


class _Global(Layer):
    kind = "max"

    def forward(self, x: Tensor) -> Tensor:
        try:
            y, backward = adaptive_pool(x, (1,) * (x.ndim - 2), self.kind, grad_enabled())
        except ShapeError as error:
            raise self.wrong_shape(error) from None
        return truths(on_tape(y, (x,), backward), x, means=True).reshape(x.shape[0], x.shape[1])


@register
class GlobalMaxPool(_Global):
    """The largest value of each channel: (batch, channels, *space) -> (batch, channels)."""


@register
class GlobalAvgPool(_Global):
    """The mean of each channel: (batch, channels, *space) -> (batch, channels) (Lin et al. 2014)."""

    kind = "mean"
