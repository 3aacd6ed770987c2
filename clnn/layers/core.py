"""The basic layers: Dense, Activation, PReLU, Flatten, Reshape, and dropout of three kinds."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ..arrays import elu, leaky_relu
from ..checks import check_count, in_range, whole_numbers
from ..errors import ConfigurationError, ShapeError
from ..init import Initialiser, find_initialiser
from ..ops.activation import SOFTMAX, activation_name
from ..ops.random import dropout, gaussian_dropout, spatial_dropout
from ..random import generator
from ..tensor import Tensor, apply, function, linear_layer, truths
from .base import Layer, register

__all__ = ["Activation", "Dense", "Dropout", "Flatten", "GaussianDropout", "PReLU", "Reshape", "SpatialDropout"]


@register
class Dense(Layer):
    """y = f(x w + b): x (..., in), w (in, size), b (size,) -> y (..., size), acting on the last axis.

    `activation` is a name of clnn/ops/activation.py, "softmax" or "log_softmax"; initialisers are names of clnn/init.py, numbers,
    or functions of (shape, generator, dtype) that return arrays: `lambda *_: array`. `max_norm` c ends each step of an optimizer
    by scaling the weights into each unit to length c where they are longer: w[:, j] *= min(1, c / |w[:, j]|); the bias stays
    (Srebro and Shraibman 2005; Hinton et al. 2012, with c = 3 or 4 beside dropout). ConfigurationError unless it is above 0.
    """

    shaping = frozenset(("size", "bias", "weight_init", "bias_init"))
    keeps_mask = True

    def __init__(
        self, size: int, activation: str | None = None, *, bias: bool = True,
        weight_init: str | float | Initialiser = "glorot_uniform", bias_init: str | float | Initialiser = "zeros",
        max_norm: float | None = None,
    ) -> None:  # fmt: skip
        self.size = check_count("Dense's size", size)
        self.max_norm = max_norm
        self.activation = activation if activation in SOFTMAX else activation_name(activation)
        if self.size == 1 and self.activation in SOFTMAX:
            raise ConfigurationError(
                f"Dense(1, {activation!r}): the probability of the only class is always 1, so that nothing is learned; take "
                '"sigmoid" for yes or no, or an output for each class'
            )
        self.bias = bool(bias)
        self.weight_init, self.bias_init = weight_init, bias_init
        find_initialiser(weight_init), find_initialiser(bias_init)

    def build(self, shape: tuple[int, ...]) -> None:
        if not shape:
            raise self.wrong_shape("an input needs an axis of features besides the batch's")
        self.w = self.parameter((shape[-1], self.size), self.weight_init)
        self.w.max_norm = self.max_norm
        self.b = self.parameter((self.size,), self.bias_init) if self.bias else None

    def forward(self, x: Tensor) -> Tensor:
        softmax = self.activation in SOFTMAX
        try:
            y = linear_layer(x, self.w, self.b, "linear" if softmax else self.activation)
        except ShapeError as error:
            raise self.wrong_shape(error) from None
        return function(y, self.activation) if softmax else y

    @property
    def max_norm(self) -> float | None:
        """The most that a column of w may be long, or None."""
        return self._max_norm

    @max_norm.setter
    def max_norm(self, value: float | None) -> None:
        self._max_norm = None if value is None else in_range("Dense's max_norm", value, 0.0, math.inf, "()")
        if self.built:
            self.w.max_norm = self._max_norm


@register
class Activation(Layer):
    """y = f(x), elementwise, or softmax over the last axis. `slope` is leaky_relu's, 0.01 unless given, and `alpha` is elu's, 1
    unless given; of other activations they are a ConfigurationError."""

    keeps_mask = True

    def __init__(self, activation: str, *, slope: float | None = None, alpha: float | None = None) -> None:
        self.activation = activation if activation in SOFTMAX else activation_name(activation)
        for name, value, of in (("slope", slope, "leaky_relu"), ("alpha", alpha, "elu")):
            if value is not None and self.activation != of:
                raise ConfigurationError(f"{name} belongs to {of}, and {activation!r} has none")
        self.slope = None if slope is None else in_range("slope", slope, -math.inf, math.inf, "()")
        self.alpha = None if alpha is None else in_range("alpha", alpha, -math.inf, math.inf, "()")

    def forward(self, x: Tensor) -> Tensor:
        if self.slope is not None:
            return leaky_relu(x, self.slope)
        return function(x, self.activation) if self.alpha is None else elu(x, self.alpha)


@register
class PReLU(Layer):
    """y = x where x > 0, else a x, with a slope a that learns: one for each channel, along `axis`, or one for all with
    axis=None (He et al. 2015).

    x (batch, ...): channels are axis 1, as those of images and of Dense are; of (batch, time, features) give axis=-1. Slopes
    start as `slope_init` and do not decay. ShapeError for an axis that an input lacks or that is the batch's.
    """

    shaping = frozenset(("axis", "slope_init"))
    keeps_mask = True

    def __init__(self, axis: int | None = 1, slope_init: str | float | Initialiser = 0.25) -> None:
        self.axis = None if axis is None else whole_numbers("PReLU's axis", axis)[0]
        self.slope_init = slope_init
        find_initialiser(slope_init)

    def build(self, shape: tuple[int, ...]) -> None:
        axes = len(shape) + 1
        if self.axis is not None and not (-axes < self.axis < axes and self.axis % axes):
            raise self.wrong_shape(f"axis {self.axis} is none of channels in an input of shape {(None, *shape)}")
        channels = () if self.axis is None else shape[self.axis % axes - 1]
        self.slope = self.parameter(channels, self.slope_init, decays=False)

    def forward(self, x: Tensor) -> Tensor:
        if self.axis is None:
            return leaky_relu(x, self.slope)
        at = self.axis % x.ndim
        if x.shape[at : at + 1] != self.slope.shape:
            raise self.wrong_shape(f"{self.slope.shape[0]} slopes for axis {self.axis} of an input of shape {x.shape}")
        return leaky_relu(x, self.slope.reshape(-1, *(1,) * (x.ndim - 1 - at)))


@register
class Flatten(Layer):
    """(batch, a, b, ...) -> (batch, a b ...)"""

    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(x.shape[0], math.prod(x.shape[1:]))


@register
class Reshape(Layer):
    """(batch, ...) -> (batch, *shape); one axis of `shape` may be -1."""

    def __init__(self, shape: int | Sequence[int]) -> None:
        self.shape = whole_numbers("Reshape", shape)

    def forward(self, x: Tensor) -> Tensor:
        known = math.prod(s for s in self.shape if s != -1)
        size = math.prod(x.shape[1:])
        if (-1 in self.shape and (known < 1 or size % known)) or (-1 not in self.shape and known != size):
            raise self.wrong_shape(f"a sample of shape {x.shape[1:]} cannot become {self.shape}")
        return x.reshape(x.shape[0], *[size // known if s == -1 else s for s in self.shape])


@register
class Dropout(Layer):
    """In training each value is 0 with probability `rate`, else divided by 1 - rate (Srivastava et al. 2014).

    Without a tape (`no_grad`, evaluate, predict) and after `eval()` nothing is dropped.
    """

    op = staticmethod(dropout)
    keeps_mask = True

    def __init__(self, rate: float) -> None:
        self.rate = in_range(f"{type(self).__name__}'s rate", rate, 0.0, 1.0)

    def forward(self, x: Tensor) -> Tensor:
        if self.rate == 0 or not self.trains():
            return x
        try:
            return truths(apply(self.op, x, rate=self.rate, generator=generator(x.device)), x, means=True)
        except ShapeError as error:
            raise self.wrong_shape(error) from None


@register
class SpatialDropout(Dropout):
    """In training each channel of each sample is 0 with probability `rate`, else divided by 1 - rate (Tompson et al. 2015).

    x (batch, channels, *space): neighbours in space say nearly the same, so that dropping them one by one drops little.
    Without a tape nothing is dropped. ShapeError for an input without channels.
    """

    op = staticmethod(spatial_dropout)
    keeps_mask = False  # channels are not the last axis


@register
class GaussianDropout(Dropout):
    """In training y = x n, n normal with mean 1 and standard deviation sqrt(rate / (1 - rate)).

    The same mean and variance as `Dropout`'s (Srivastava et al. 2014, section 10). Without a tape y = x.
    """

    op = staticmethod(gaussian_dropout)
