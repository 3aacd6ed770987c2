"""Layers that make space larger: upsampling and padding; arrays are (batch, channels, *space), space of 1 to 3 axes."""

from __future__ import annotations

from collections.abc import Sequence

from ...images import padded, padding_of, upsampled, upsampling
from ...tensor import Tensor
from ..base import Layer, called, register

__all__ = ["Padding", "UpSampling"]


@register
class UpSampling(Layer):
    """y[n, c, o] = x[n, c, floor(o / factor)], or linear interpolation: (batch, channels, *space) -> space times `factor`.

    `factor` is a whole number for all of 1 to 3 spatial axes, or one for each. `mode` "bilinear" (or "linear": it is over all
    spatial axes) interpolates between the centres of elements, at (o + 1/2) / factor - 1/2, and repeats the edge, as PyTorch
    does with align_corners=False and TensorFlow 2. ShapeError for an input of other axes.
    """

    def __init__(self, factor: int | Sequence[int] = 2, mode: str = "nearest") -> None:
        self.factor, self.mode = upsampling("UpSampling", factor, mode)

    def forward(self, x: Tensor) -> Tensor:
        return upsampled(called(self), x, self.factor, self.mode)


@register
class Padding(Layer):
    """x with `amount` more elements on either side of each spatial axis: (batch, channels, *space) -> larger.

    `amount` is a whole number for all of 1 to 3 spatial axes, or a list with a number or (before, after) for each. They are
    `value` ("constant"), the edge's element ("replicate"), or what is on its other side, without it ("reflect", as NumPy's).
    ShapeError for an input of other axes, or where "reflect" has an amount that is not less than the axis is long.
    """

    def __init__(
        self, amount: int | Sequence[int] | Sequence[Sequence[int]], mode: str = "constant", value: float = 0.0
    ) -> None:
        self.amount, self.mode, self.value = padding_of("Padding", amount, mode, value)

    def forward(self, x: Tensor) -> Tensor:
        return padded(called(self), x, self.amount, self.mode, self.value)
