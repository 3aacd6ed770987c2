"""Layers for tokens and their places in a sequence: Embedding, and positions that are learned or sines."""

from __future__ import annotations

import numpy as np

from ...arrays import arange, where
from ...attention import one_past, sinusoidal_positions
from ...cache import cache_in_use
from ...checks import check_count, whole
from ...errors import ConfigurationError, DataError, OutOfRangeError
from ...init import Initialiser, find_initialiser, normal
from ...ops.index import take
from ...tensor import Tensor, apply, linear_layer, tensor
from ..base import Layer, called, register, with_mask

__all__ = ["Embedding", "PositionalEmbedding", "SinusoidalPositions"]


@register
class Embedding(Layer):
    """y = w[x]: x (batch, ...) of whole numbers, w (tokens, size) -> y (batch, ..., size).

    The gradient of a row is the sum over all places where its token stands, in their order, so the same bits each time; rows
    of other tokens get 0, and an optimizer with moments or weight decay still moves them. `padding` is a token whose row
    is read as 0 and learns nothing there. With `mask_zero` token 0 is padding, and later layers pass over its steps (see
    `Masking`). `tied(y)` gives the scores of all tokens, y w^T, for an output layer of the same weights (Press and Wolf 2017),
    the padding's row as it is. Weights start as N(0, 0.02), as GPT-2's do, unless `weight_init` says otherwise.

    DataError for a token that is none of 0 to tokens - 1. In a recorded step of your own arrays are looked at before each replay.
    Of a tensor there the token's row is NaN, and with it the loss; OutOfRangeError says so where that loss is read, at the end
    of an epoch of `fit`, and at the step's replays 1, 2, 4, 8 and so on.
    """

    shaping = frozenset(("tokens", "size"))
    whole_inputs = True

    def __init__(
        self, tokens: int, size: int, *, padding: int | None = None, mask_zero: bool = False,
        weight_init: str | float | Initialiser | None = None,
    ) -> None:  # fmt: skip
        self.tokens, self.size = check_count("Embedding's tokens", tokens), check_count("Embedding's size", size)
        if padding is not None and (whole(padding) is None or not 0 <= padding < self.tokens):
            told = f"Embedding's padding is a token from 0 to {self.tokens - 1}, or None, not {padding!r}"
            raise ConfigurationError(told)
        if mask_zero and padding:
            told = f"Embedding: with mask_zero token 0 is the padding, and padding={padding} was given"
            raise ConfigurationError(told)
        self.padding, self.mask_zero, self.weight_init = padding, bool(mask_zero), weight_init
        if weight_init is not None:
            find_initialiser(weight_init)

    def build(self, shape: tuple[int, ...]) -> None:
        self.w = self.parameter(
            (self.tokens, self.size), normal(0.0, 0.02) if self.weight_init is None else self.weight_init
        )

    def forward(self, x: Tensor) -> Tensor:
        if x.dtype.kind != "i":
            raise self.wrong_shape(
                f"tokens are whole numbers, and the input is {x.dtype}: a model of your own that takes tokens says so "
                "by whole_inputs = True in its class (or a tuple, one for each input); a tensor of them is int32"
            )
        if x.device.reads:
            self.check_whole(0, x.numpy(), "the input")
        if x.device.step is not None and x.rows is None:
            x.device.step.check(x.block, lambda array, name: self.check_whole(0, array, name))
        y = apply(take, self.w, index=x, from_end=False)
        if self.padding is not None:
            y = where((x != self.padding).reshape(*x.shape, 1), y, 0.0)
        return with_mask(y, x != 0) if self.mask_zero else y

    def check_whole(self, i: int, array: np.ndarray, name: str) -> None:
        if array.size and not 0 <= array.min() <= array.max() < self.tokens:
            at = np.argwhere((array < 0) | (array >= self.tokens))[0]
            raise DataError(
                f"{name}{[*map(int, at)]} is {array[tuple(at)]}, and {called(self)} has {self.tokens} tokens, 0 to "
                f"{self.tokens - 1}"
            )

    def tied(self, y: Tensor) -> Tensor:
        """y w^T: (..., size) -> (..., tokens), the score of each token."""
        self.ensure_built(())
        return linear_layer(tensor(y, self.dtype, self.device), self.w, None, "linear", transposed=True)


class _Positions(Layer):
    """What positions of both kinds share: x (batch, time, size), and at most `length` steps."""

    shaping = frozenset(("length",))
    whole_inputs = (False, True)
    keeps_mask = True

    def __init__(self, length: int) -> None:
        self.length = check_count(f"{type(self).__name__}'s length", length)

    def check(self, x: Tensor) -> None:
        if (cache := cache_in_use()) is not None:
            cache.limit(self.length, f"{called(self)}(length={self.length})")
        if x.ndim != 3 or x.shape[1] > self.length:
            told = f"an input has the axes (batch, time, size) and at most {self.length} steps, not the shape {x.shape}"
            raise self.wrong_shape(told)


@register
class PositionalEmbedding(_Positions):
    """y = x + w[0], w[1], ...: a learned vector for each place: x (batch, time, size), w (length, size).

    In a model that is called as `layer(x, past)`, `past`, an int32 tensor of one number, is how many steps came before.
    """

    def build(self, shape: tuple[int, ...], *_: tuple[int, ...]) -> None:
        self.w = self.parameter((self.length, shape[-1]), normal(0.0, 0.02))

    def forward(self, x: Tensor, past: Tensor | None = None) -> Tensor:
        self.check(x)
        if past is None and (cache := cache_in_use()) is not None:
            past = cache.past
        time = x.shape[1]
        if past is None:
            return x + self.w[:time]
        past = one_past(past, x.device).reshape(1)
        if x.device.reads and not 0 <= past.item() <= self.length - time:
            told = f"{time} steps after {past.item()} others are not among {self.length} places"
            raise OutOfRangeError(f"{called(self)}: {told}")
        return x + apply(
            take, self.w, index=past if time == 1 else arange(time, device=x.device) + past, from_end=False
        )


@register
class SinusoidalPositions(_Positions):
    """y = x + sines and cosines of each place (Vaswani et al. 2017): x (batch, time, size); see `clnn.sinusoidal_positions`."""

    def __init__(self, length: int = 1 << 20) -> None:
        super().__init__(length)

    def forward(self, x: Tensor, past: Tensor | None = None) -> Tensor:
        self.check(x)
        return x + sinusoidal_positions(x.shape[1], x.shape[2], past, x.dtype, x.device)
