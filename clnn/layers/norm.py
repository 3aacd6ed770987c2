"""The layers that normalise: BatchNorm, LayerNorm, GroupNorm, InstanceNorm, RMSNorm, LocalResponseNorm."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from ..checks import check_count, in_range, whole
from ..errors import ConfigurationError, ShapeError
from ..ops.activation import SOFTMAX, activation_name
from ..ops.array import Array
from ..ops.norm import (
    batch_norm,
    channel_affine,
    fold,
    group_norm,
    instance_norm,
    layer_norm,
    local_response_norm,
    rms_norm,
)
from ..registry import config_from
from ..tape import grad_enabled
from ..tensor import Parameter, Tensor, function, on_tape
from .base import Layer, register

__all__ = ["BatchNorm", "GroupNorm", "InstanceNorm", "LayerNorm", "LocalResponseNorm", "RMSNorm"]


def _activation(kind: str, name: str | None) -> str:
    if name in SOFTMAX:
        raise ConfigurationError(f'{kind} fuses functions of one variable; put clnn.Activation("{name}") after it')
    return activation_name(name)


class _Norm(Layer):
    """What these layers share: epsilon, gamma and beta, and the layer's name in front of errors."""

    shaping = frozenset(("affine",))
    gamma: Parameter | None = None
    beta: Parameter | None = None

    def __init__(self, epsilon: float, affine: bool) -> None:
        self.epsilon = in_range(f"{type(self).__name__}'s epsilon", epsilon, 0.0, math.inf, "()")
        self.affine = bool(affine)

    def make_affine(self, shape: tuple[int, ...], shift: bool = True) -> None:
        """gamma of ones and beta of zeros, which do not decay."""
        self.gamma = self.parameter(shape, "ones", decays=False) if self.affine else None
        self.beta = self.parameter(shape, "zeros", decays=False) if self.affine and shift else None

    def channels(self, shape: tuple[int, ...], least: int = 0) -> int:
        """The size of axis 1 of inputs with `shape` (without the batch), which have `least` spatial axes or more."""
        if len(shape) < 1 + least:
            space = "*space" if not least else "height, ..."
            raise self.wrong_shape(
                f"an input has the axes (batch, channels, {space}), and this one has {len(shape) + 1}: {(None, *shape)}"
            )
        return shape[0]

    def taped(self, op: Any, x: Tensor, *parameters: Array | None, **options: Any) -> Tensor:
        """`op` of x and parameters, on tape, with this layer's name in front of errors."""
        try:
            y, backward = op(x, *parameters, keep=grad_enabled(), **options)
        except ShapeError as error:
            raise self.wrong_shape(error) from None
        return on_tape(y, (x, *parameters), backward, parameters[:1] if x.requires_grad else ())  # gamma alone


@register
class BatchNorm(_Norm):
    """y = f((x - mean) / sqrt(variance + epsilon) gamma + beta), by channel: x (batch, channels, *space), gamma and beta
    (channels,) (Ioffe and Szegedy 2015).

    In training (on tape) mean and variance are those of the batch and its space, and the running ones follow:
    running = momentum running + (1 - momentum) batch, the variance with n - 1; a momentum of 0.9 is PyTorch's 0.1.
    Without a tape (`no_grad`, evaluate, predict), after `eval()`, and where `trainable` is False, the running ones take their
    place: then the layer is x a + b by channel. `activation` is a name of clnn/ops/activation.py;
    `affine=False` goes without gamma and beta. ShapeError where a channel has a single value to train on.
    """

    def __init__(
        self, activation: str | None = None, *, momentum: float = 0.9, epsilon: float = 1e-5, affine: bool = True
    ) -> None:
        super().__init__(epsilon, affine)
        self.activation = _activation("BatchNorm", activation)
        self.momentum = in_range("BatchNorm's momentum", momentum, 0.0, 1.0, "[]")

    def build(self, shape: tuple[int, ...]) -> None:
        channels = self.channels(shape)
        self.make_affine((channels,))
        self.running_mean = self.parameter(channels, "zeros", decays=False, learns=False)
        self.running_variance = self.parameter(channels, "ones", decays=False, learns=False)

    def forward(self, x: Tensor) -> Tensor:
        if self.trains() and self.trainable:
            return self.taped(
                batch_norm, x, self.gamma, self.beta, running=(self.running_mean, self.running_variance),
                activation=self.activation, momentum=self.momentum, epsilon=self.epsilon,
            )  # fmt: skip
        return self.taped(channel_affine, x, *self.folded(), activation=self.activation)

    def folded(self) -> tuple[Array, Array]:
        """(a, b), each (channels,), with which the layer is f(x a + b) by its running statistics."""
        if (
            self.gamma is not None and self.beta is not None and self.trainable and grad_enabled()
        ):  # gradients go to both
            a = self.gamma / function(self.running_variance.detach() + self.epsilon, "sqrt")
            return a, self.beta - self.running_mean.detach() * a
        return fold(self.gamma, self.beta, self.running_mean, self.running_variance, self.epsilon)


class _OverLast(_Norm):
    """Normalisation of each sample over its last axes."""

    def __init__(self, axis: int | Sequence[int], epsilon: float, affine: bool) -> None:
        super().__init__(epsilon, affine)
        one = whole(axis)
        axes = [whole(a) for a in axis] if isinstance(axis, (tuple, list)) else [one]
        if not axes or None in axes:
            raise ConfigurationError(
                f"{type(self).__name__}'s axis should be a whole number, or several, {axis!r} was provided instead"
            )
        self.axis: int | tuple[int, ...] = tuple(axes) if one is None else one  # type: ignore[arg-type]

    @property
    def keeps_mask(self) -> bool:  # type: ignore[override]
        """Whether it looks at each step by itself."""
        return isinstance(self.axis, int) or len(self.axis) == 1

    def trailing(self, shape: tuple[int, ...]) -> int:
        """How many axes, the last ones, `axis` means for inputs of `shape` (without the batch)."""
        ndim = len(shape) + 1
        axes = (self.axis,) if isinstance(self.axis, int) else self.axis
        named = [*range(ndim - len(axes), ndim)]
        if any(not -ndim <= a < ndim for a in axes) or sorted(a % ndim for a in axes) != named:
            raise self.wrong_shape(
                f"axis {self.axis} does not name the last axes of an input of shape {(None, *shape)}: -1, or (-2, -1), ..."
            )
        if len(axes) == ndim:
            raise self.wrong_shape(f"axis {self.axis} of an input of shape {(None, *shape)} takes in the batch")
        return len(axes)


@register
class LayerNorm(_OverLast):
    """y = (x - mean) / sqrt(variance + epsilon) gamma + beta, over `axis` of each sample (Ba et al. 2016).

    `axis` is the last one, or a tuple of the last ones, whose shape gamma and beta have; `affine=False` goes without them.
    """

    def __init__(self, axis: int | Sequence[int] = -1, *, epsilon: float = 1e-5, affine: bool = True) -> None:
        super().__init__(axis, epsilon, affine)

    def build(self, shape: tuple[int, ...]) -> None:
        self.make_affine(shape[len(shape) - self.trailing(shape) :])

    def forward(self, x: Tensor) -> Tensor:
        return self.taped(layer_norm, x, self.gamma, self.beta, axes=self.trailing(x.shape[1:]), epsilon=self.epsilon)


@register
class RMSNorm(_OverLast):
    """y = x / sqrt(mean(x^2) + epsilon) gamma, over `axis` of each sample (Zhang and Sennrich 2019).

    `axis` is the last one, or a tuple of the last ones, whose shape gamma has; `affine=False` goes without it.
    """

    def __init__(self, axis: int | Sequence[int] = -1, *, epsilon: float = 1e-5, affine: bool = True) -> None:
        super().__init__(axis, epsilon, affine)

    def build(self, shape: tuple[int, ...]) -> None:
        self.make_affine(shape[len(shape) - self.trailing(shape) :], shift=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.taped(rms_norm, x, self.gamma, axes=self.trailing(x.shape[1:]), epsilon=self.epsilon)


@register
class GroupNorm(_Norm):
    """y = f((x - mean) / sqrt(variance + epsilon) gamma + beta) over each of `groups` groups of channels of each sample:
    x (batch, channels, *space), gamma and beta (channels,) (Wu and He 2018).

    `activation` is a name of clnn/ops/activation.py; `affine=False` goes without gamma and beta. ShapeError where channels
    are not divisible by groups, and where a group has a single value.
    """

    def __init__(
        self, groups: int, activation: str | None = None, *, epsilon: float = 1e-5, affine: bool = True
    ) -> None:
        super().__init__(epsilon, affine)
        self.groups = check_count("GroupNorm's groups", groups)
        self.activation = _activation("GroupNorm", activation)

    def build(self, shape: tuple[int, ...]) -> None:
        self.make_affine((self.channels(shape),))

    def forward(self, x: Tensor) -> Tensor:
        return self.taped(
            group_norm, x, self.gamma, self.beta, groups=self.groups, activation=self.activation, epsilon=self.epsilon
        )


@register
class InstanceNorm(_Norm):
    """y = f((x - mean) / sqrt(variance + epsilon) gamma + beta) over each channel of each sample: x (batch, channels,
    *space) with at least one spatial axis, gamma and beta (channels,) (Ulyanov et al. 2016).

    `activation` is a name of clnn/ops/activation.py; `affine=False` goes without gamma and beta. ShapeError where a channel
    has a single value.
    """

    def __init__(self, activation: str | None = None, *, epsilon: float = 1e-5, affine: bool = True) -> None:
        super().__init__(epsilon, affine)
        self.activation = _activation("InstanceNorm", activation)

    def build(self, shape: tuple[int, ...]) -> None:
        self.make_affine((self.channels(shape, 1),))

    def forward(self, x: Tensor) -> Tensor:
        return self.taped(instance_norm, x, self.gamma, self.beta, activation=self.activation, epsilon=self.epsilon)


@register
class LocalResponseNorm(_Norm):
    """y = x / (k + alpha / size * sum of x^2)^beta, the sum over `size` neighbouring channels, from c - size // 2 to
    c + (size - 1) // 2: x (batch, channels, *space) (Krizhevsky et al. 2012, with alpha divided by size as in PyTorch)."""

    def __init__(self, size: int = 5, alpha: float = 1e-4, beta: float = 0.75, k: float = 1.0) -> None:
        self.size = check_count("LocalResponseNorm's size", size)
        self.alpha = in_range("LocalResponseNorm's alpha", alpha, 0.0, math.inf)
        self.power = in_range("LocalResponseNorm's beta", beta, 0.0, math.inf)
        self.k = in_range("LocalResponseNorm's k", k, 0.0, math.inf)

    def build(self, shape: tuple[int, ...]) -> None:
        self.channels(shape)

    def forward(self, x: Tensor) -> Tensor:
        return self.taped(local_response_norm, x, size=self.size, alpha=self.alpha, beta=self.power, k=self.k)

    def config(self) -> dict[str, Any]:
        return config_from(self, beta=self.power)
