"""Layers that make space larger: upsampling and padding; arrays are (batch, channels, *space), space of 1 to 3 axes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from ...checks import in_range
from ...errors import ConfigurationError, ShapeError
from ...ops.image.resize import PADDINGS, UPSAMPLINGS, check_mode, pad, upsample
from ...ops.image.window import per_axis
from ...tensor import Tensor, apply
from ..base import Layer, register

__all__ = ["Padding", "UpSampling"]


def _checked(name: str, value: Any, least: int, pairs: bool = False) -> Any:
    """A whole number of `least` or more, or a list of 1 to 3 of them, each of which, with `pairs`, may be (before, after)."""
    if not isinstance(value, (tuple, list)):
        return per_axis(name, value, 1, least)[0]
    if not 1 <= len(value) <= 3:
        raise ConfigurationError(f"{name} should be for 1 to 3 spatial axes, {value!r} was provided instead")
    return [
        per_axis(name, v, 2, least) if pairs and isinstance(v, (tuple, list)) else per_axis(name, v, 1, least)[0]
        for v in value
    ]


class _Resize(Layer):
    """What both share."""

    def spread(self, value: Any, x: Tensor) -> list[Any]:
        """One value for each spatial axis of x, where `value` may be one for all."""
        axes, given = x.ndim - 2, len(value) if isinstance(value, list) else 0
        if not 1 <= axes <= 3 or given not in (0, axes):
            raise self.wrong_shape(
                ShapeError(
                    f"an input has a batch, channels and {given or '1 to 3'} spatial axes, and this one has {x.shape}"
                )
            )
        return value if given else [value] * axes


@register
class UpSampling(_Resize):
    """y[n, c, o] = x[n, c, floor(o / factor)], or linear interpolation: (batch, channels, *space) -> space times `factor`.

    `factor` is a whole number for all of 1 to 3 spatial axes, or one for each. `mode` "bilinear" (or "linear": it is over all
    spatial axes) interpolates between the centres of elements, at (o + 1/2) / factor - 1/2, and repeats the edge, as PyTorch
    does with align_corners=False and TensorFlow 2. ShapeError for an input of other axes.
    """

    def __init__(self, factor: int | Sequence[int] = 2, mode: str = "nearest") -> None:
        self.factor = _checked("UpSampling's factor", factor, 1)
        self.mode = check_mode("UpSampling", mode, UPSAMPLINGS)

    def forward(self, x: Tensor) -> Tensor:
        factor = self.spread(self.factor, x)
        try:
            return apply(upsample, x, factor=factor, mode=self.mode)
        except ShapeError as error:
            raise self.wrong_shape(error) from None


@register
class Padding(_Resize):
    """x with `amount` more elements on either side of each spatial axis: (batch, channels, *space) -> larger.

    `amount` is a whole number for all of 1 to 3 spatial axes, or a list with a number or (before, after) for each. They are
    `value` ("constant"), the edge's element ("replicate"), or what lies on its other side, without it ("reflect", as NumPy's).
    ShapeError for an input of other axes, or where "reflect" has an amount that is not less than the axis is long.
    """

    def __init__(
        self, amount: int | Sequence[int] | Sequence[Sequence[int]], mode: str = "constant", value: float = 0.0
    ) -> None:
        self.amount = _checked("Padding's amount", amount, 0, pairs=True)
        self.mode = check_mode("Padding", mode, PADDINGS)
        self.value = math.nan if value != value else in_range("Padding's value", value, -math.inf, math.inf, "[]")

    def forward(self, x: Tensor) -> Tensor:
        amounts = [a if isinstance(a, tuple) else (a, a) for a in self.spread(self.amount, x)]
        try:
            return apply(pad, x, amounts=amounts, mode=self.mode, value=self.value)
        except ShapeError as error:
            raise self.wrong_shape(error) from None
