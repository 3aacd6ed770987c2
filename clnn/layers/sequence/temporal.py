"""The block that temporal convolutional networks are stacks of: sequences without recurrence and without attention."""

from __future__ import annotations

from typing import Any

from ...checks import check_count, in_range
from ...init import Initialiser, find_initialiser
from ...ops.elementwise import binary
from ...ops.image.window import check_axes
from ...ops.random import spatial_dropout
from ...random import generator
from ...tensor import Tensor, apply
from ..base import Layer, called, register
from ..image.conv import Conv1D

__all__ = ["TemporalBlock"]


@register
class TemporalBlock(Layer):
    """y = relu(x + f(x)), f twice a causal convolution, a ReLU and dropout (Bai, Kolter and Koltun 2018, without weight norm).

    x (batch, in, time) -> (batch, channels, time). Where channels differ, a convolution of width 1 takes x to the sum. Output t
    depends on the inputs t - 2 dilation (kernel - 1) to t; n blocks with dilations 1, 2, 4, ... see 1 + 2 (kernel - 1) (2^n - 1)
    steps. `dropout` drops whole channels (`SpatialDropout`). ShapeError for an input of other axes.

        blocks = [clnn.TemporalBlock(32, 3, dilation=2**i, dropout=0.1) for i in range(6)]
    """

    shaping = frozenset(("channels", "kernel", "dilation", "weight_init"))

    def __init__(
        self, channels: int, kernel: int, *, dilation: int = 1, dropout: float = 0.0,
        weight_init: str | float | Initialiser = "he_normal",
    ) -> None:  # fmt: skip
        self.channels = check_count("TemporalBlock's channels", channels)
        self.kernel = check_count("TemporalBlock's kernel", kernel)
        self.dilation = check_count("TemporalBlock's dilation", dilation)
        self.dropout = in_range("TemporalBlock's dropout", dropout, 0.0, 1.0)
        self.weight_init = weight_init
        find_initialiser(weight_init)

    def build(self, shape: tuple[int, ...]) -> None:
        check_axes(called(self), ("batch", *shape), 1)  # type: ignore[arg-type]
        how: dict[str, Any] = {"padding": "causal", "dilation": self.dilation, "weight_init": self.weight_init}
        self.body = [Conv1D(self.channels, self.kernel, "relu", **how) for _ in range(2)]
        self.shortcut = None if shape[0] == self.channels else Conv1D(self.channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = x
        for convolution in self.body:
            y = convolution(y)
            if self.dropout and self.trains():
                y = apply(spatial_dropout, y, rate=self.dropout, generator=generator(x.device))
        return apply(binary, "add", y, self.shortcut(x) if self.shortcut else x, activation="relu")
