"""Convolutions over 1, 2 and 3 spatial axes and their transposes; arrays are (batch, channels, *space)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ...checks import check_count
from ...errors import ConfigurationError, ShapeError, warn
from ...init import Initialiser, find_initialiser
from ...ops.activation import activation_name
from ...ops.array import Array
from ...ops.elementwise import binary
from ...ops.image.conv import conv, conv_transpose
from ...ops.image.window import (
    Paddings,
    Window,
    channels_last,
    check_axes,
    paddings,
    per_axis,
    short,
    short_paddings,
    slide,
)  # fmt: skip
from ...tape import grad_enabled
from ...tensor import Tensor, on_tape
from ..base import Layer, called, register
from ..norm import BatchNorm

__all__ = ["Conv1D", "Conv1DTranspose", "Conv2D", "Conv2DTranspose", "Conv3D", "Conv3DTranspose", "DepthwiseConv2D"]

Size = int | Sequence[int]
Padding = str | int | Sequence[Any]


class _Convolution(Layer):
    """What all of them share; `axes` is the number of spatial axes."""

    axes = 0
    causal = False  # whether padding may be "causal"
    shaping = frozenset(("channels", "kernel", "groups", "bias", "weight_init", "bias_init", "multiplier"))

    def __init__(
        self,
        channels: int,
        kernel: Size,
        activation: str | None = None,
        *,
        stride: Size = 1,
        padding: Padding = 0,
        dilation: Size = 1,
        groups: int = 1,
        bias: bool = True,
        weight_init: str | float | Initialiser = "glorot_uniform",
        bias_init: str | float | Initialiser = "zeros",
    ) -> None:
        kind = type(self).__name__
        self.channels = check_count(f"{kind}'s channels", channels)
        self.kernel = per_axis(f"{kind}'s kernel", kernel, self.axes)
        self.activation = activation_name(activation)
        self.stride = per_axis(f"{kind}'s stride", stride, self.axes)
        self.padding: Paddings = paddings(f"{kind}'s padding", padding, self.axes, self.causal)
        self.dilation = per_axis(f"{kind}'s dilation", dilation, self.axes)
        self.groups = check_count(f"{kind}'s groups", groups)
        self.bias = bool(bias)
        self.weight_init, self.bias_init = weight_init, bias_init
        find_initialiser(weight_init), find_initialiser(bias_init)

    def grouped(self, inputs: int, shape: Sequence[int]) -> None:
        """Inputs and outputs are divisible by the groups."""
        for what, count in ((f"{inputs} input", inputs), (f"{self.channels} output", self.channels)):
            if count % self.groups:
                raise ShapeError(
                    f"{called(self)}: {what} channels are not divisible by {self.groups} groups: {count} / {self.groups} = "
                    f"{count / self.groups:g} (an input has the shape {tuple(shape)} without the batch)"
                )

    def build(self, shape: tuple[int, ...]) -> None:
        check_axes(called(self), ("batch", *shape), self.axes)  # type: ignore[arg-type]
        if said := channels_last(shape):
            warn(f"{called(self)}: inputs of shape {shape} have {shape[0]} channels{said}")
        self.grouped(shape[0], shape)
        self.w = self.parameter(self.weight_shape(shape[0]), self.weight_init)
        self.b = self.parameter((self.channels,), self.bias_init) if self.bias else None

    def weight_shape(self, inputs: int) -> tuple[int, ...]:
        """The weights' for so many input channels."""
        return (self.channels, inputs // self.groups, *self.kernel)

    def window(self, shape: Sequence[int]) -> Window:
        """The windows over an input of `shape`."""
        return slide(called(self), shape, self.kernel, self.stride, self.padding, self.dilation)

    op: Any = staticmethod(conv)

    def forward(self, x: Tensor) -> Tensor:
        y, backward = self.convolve(x, self.b, self.activation)
        inputs = (x, self.w) if self.b is None else (x, self.w, self.b)
        return on_tape(y, inputs, backward, (self.w,) if x.requires_grad else ())

    def convolve(self, x: Tensor, b: Array | None, activation: str, factor: Array | None = None) -> tuple[Array, Any]:
        """The op on x with this layer's weights."""
        window = self.window(x.shape)
        try:
            return self.op(x, self.w, b, window, self.groups, activation, grad_enabled(), factor)
        except ShapeError as error:
            raise self.wrong_shape(error) from None

    def with_next(self, following: Layer, x: Tensor) -> Tensor | None:
        """A batch normalisation after a linear convolution becomes a factor and a bias for each channel."""
        if self.activation != "linear" or not isinstance(following, BatchNorm):
            return None
        for kind, ours in ((type(self), _Convolution), (type(following), BatchNorm)):
            if kind.forward is not ours.forward or kind.__call__ is not Layer.__call__:
                return None  # a class of the user's own that does something else
        factor, b = following.folded()
        if self.b is not None:
            b = binary("add", binary("multiply", self.b, factor)[0], b)[0]
        y, backward = self.convolve(x, b, following.activation, factor)
        return on_tape(y, (), backward)

    def config(self) -> dict[str, Any]:
        found = super().config() | {"padding": short_paddings(self.padding)}
        names = ("kernel", "stride", "dilation", "output_padding")
        return found | {name: short(found[name]) for name in names if name in found}


class _Transpose(_Convolution):
    """A transposed convolution: `output_padding` makes the output larger at its end, where several sizes give one input."""

    def __init__(
        self, channels: int, kernel: Size, activation: str | None = None, *, output_padding: Size = 0, **options: Any
    ) -> None:
        super().__init__(channels, kernel, activation, **options)
        self.output_padding = per_axis(f"{type(self).__name__}'s output_padding", output_padding, self.axes, 0)
        if self.padding == "same" and any(self.output_padding):
            raise ConfigurationError(
                f'{type(self).__name__}\'s padding "same" says how large outputs are: leave output_padding '
                f"{output_padding!r} out, or give padding in numbers"
            )
        for extra, stride, dilation in zip(self.output_padding, self.stride, self.dilation):
            if extra >= max(stride, dilation):
                raise ConfigurationError(
                    f"{type(self).__name__}'s output_padding {extra} should be smaller than the stride {stride} or the "
                    f"dilation {dilation}: larger outputs come from another input"
                )

    def weight_shape(self, inputs: int) -> tuple[int, ...]:
        return (inputs, self.channels // self.groups, *self.kernel)

    def window(self, shape: Sequence[int]) -> Window:
        check_axes(called(self), shape, self.axes)
        inputs = tuple(shape[2:])
        if self.padding == "same":
            return slide(
                called(self),
                (*shape[:2], *(n * s for n, s in zip(inputs, self.stride))),
                self.kernel,
                self.stride,
                "same",
                self.dilation,
            )
        space = []
        for n, k, s, d, (before, after), extra in zip(
            inputs,
            self.kernel,
            self.stride,
            self.dilation,
            self.padding,
            self.output_padding,  # type: ignore[arg-type]
        ):
            size = (n - 1) * s + d * (k - 1) + 1 - before - after + extra  # type: ignore[operator]
            if size < 1:
                raise ShapeError(
                    f"{called(self)}: an input of shape {tuple(shape)} gives no output: ({n} - 1) * {s} + {d} * ({k} - 1) + 1 - "
                    f"{before} - {after} + {extra} = {size}; use less padding or larger inputs"
                )
            space.append(size)
        before, after = zip(*self.padding)  # type: ignore[arg-type]
        return Window(tuple(space), self.kernel, self.stride, before, after, self.dilation, inputs)

    op = staticmethod(conv_transpose)


@register
class Conv1D(_Convolution):
    """Convolution over one axis: (batch, channels, length); see Conv2D.

    `padding="causal"` puts dilation (kernel - 1) zeros before the axis and none after it: output t depends on the inputs up to
    t stride, and there are ceil(length / stride) outputs (van den Oord et al. 2016). Recurrent layers and attention have time
    before the features: `x.transpose(0, 2, 1)` goes from one to the other.
    """

    axes = 1
    causal = True


@register
class Conv2D(_Convolution):
    """y = f(x * w + b): x (batch, in, height, width), w (channels, in / groups, *kernel), b (channels,).

    `kernel`, `stride` and `dilation` are a number or one for each spatial axis. `padding` with zeros is a number, one for
    each axis, (before, after) for each axis, "valid" (none) or "same" (as many outputs as inputs, divided by the stride).
    An axis of n gives floor((n + before + after - dilation (kernel - 1) - 1) / stride) + 1 outputs. Output channels of a
    group see the inputs of that group only. `activation` is a name of clnn/ops/activation.py, fused. (LeCun et al. 1998.)
    ShapeError where the kernel does not fit the padded input, or channels are not divisible by the groups.
    """

    axes = 2


@register
class Conv3D(_Convolution):
    """Convolution over three axes: (batch, channels, depth, height, width); see Conv2D."""

    axes = 3


@register
class Conv1DTranspose(_Transpose):
    """Transposed convolution over one axis: (batch, channels, length); see Conv2DTranspose."""

    axes = 1


@register
class Conv2DTranspose(_Transpose):
    """The transpose of Conv2D as a linear map, for growing images: each input adds w times itself to a window of outputs.

    x (batch, in, height, width), w (in, channels / groups, *kernel), b (channels,). An axis of n gives
    (n - 1) stride + dilation (kernel - 1) + 1 - before - after + output_padding outputs, and n stride of them with padding
    "same". (Zeiler et al. 2010.)
    """

    axes = 2


@register
class Conv3DTranspose(_Transpose):
    """Transposed convolution over three axes: (batch, channels, depth, height, width); see Conv2DTranspose."""

    axes = 3


@register
class DepthwiseConv2D(_Convolution):
    """Conv2D with a group for each input channel: `multiplier` outputs each, w (in multiplier, 1, *kernel).

    (Howard et al. 2017.)
    """

    axes = 2

    def __init__(self, kernel: Size, activation: str | None = None, *, multiplier: int = 1, **options: Any) -> None:
        if "groups" in options or "channels" in options:
            raise ConfigurationError(
                "DepthwiseConv2D has as many groups as its input has channels; leave groups and channels out"
            )
        super().__init__(1, kernel, activation, **options)
        self.multiplier = check_count("DepthwiseConv2D's multiplier", multiplier)

    def build(self, shape: tuple[int, ...]) -> None:
        check_axes(called(self), ("batch", *shape), self.axes)  # type: ignore[arg-type]
        self.groups, self.channels = shape[0], shape[0] * self.multiplier
        super().build(shape)

    def config(self) -> dict[str, Any]:
        found = super().config()
        del found["channels"], found["groups"]
        return found
