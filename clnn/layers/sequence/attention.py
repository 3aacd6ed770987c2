"""Layers of attention: MultiHeadAttention, and the two blocks that transformers are made of."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ...arrays import repeat, tril, where
from ...attention import added_mask, rotary, scaled_dot_product_attention
from ...cache import cache_in_use
from ...checks import check_count, in_range, numbers
from ...errors import ConfigurationError
from ...ops.activation import activation_name
from ...ops.random import dropout as drop
from ...ops.sequence.attention import check_mask
from ...random import generator
from ...tensor import Tensor, apply, function, linear_layer, ones, tensor, zeros
from ..base import Layer, called, register
from ..core import Dense, Dropout
from ..norm import LayerNorm, RMSNorm

__all__ = ["MultiHeadAttention", "TransformerDecoderLayer", "TransformerEncoderLayer"]
NORMS = {"layer": LayerNorm, "rms": RMSNorm}


class _Masked(Layer):
    """A layer one of whose inputs is a mask: integers and bools that say what is attended, or floats that are added."""

    mask_at = 2
    keeps_mask = True  # that of the steps of x; keys that it leaves out are not attended

    def __call__(self, *inputs: Any, **named: Any) -> Any:
        """The output; a mask that is None is none."""
        without = len(inputs) == self.mask_at + 1 and inputs[-1] is None
        return super().__call__(*(inputs[:-1] if without else inputs), **named)

    def _as_input(self, x: Any, i: int) -> Tensor:
        if i != self.mask_at or isinstance(x, Tensor):
            return super()._as_input(x, i)
        mask = numbers(x, "a mask")
        return tensor(mask, np.int32 if mask.dtype.kind in "iub" else self.dtype, self.device)


@register
class MultiHeadAttention(_Masked):
    """Attention with several heads (Vaswani et al. 2017): x (batch, time, size) -> (batch, time, size).

    With one input it is self-attention. With a second one, `layer(x, context)` of (batch, keys, any size), keys and values come
    from there. A third is a mask: see `scaled_dot_product_attention`; **True = attend**.

    heads: a divisor of the size; a head's depth is size / heads.
    key_heads: heads of keys and values, a divisor of `heads`; each serves as many heads of queries in a row (grouped queries,
        Ainslie et al. 2023). None for as many as heads.
    causal: step i sees the steps up to i.
    rotary: queries and keys are turned by their places (`clnn.rotary`).
    dropout: of the probabilities, in training; for that they are kept in memory, all (batch, heads, time, keys) of them.
    bias: of the four products.
    """

    shaping = frozenset(("heads", "key_heads", "bias"))

    def __init__(
        self,
        heads: int,
        *,
        key_heads: int | None = None,
        causal: bool = False,
        rotary: bool = False,
        dropout: float = 0.0,
        bias: bool = True,
    ) -> None:
        self.heads = check_count("MultiHeadAttention's heads", heads)
        self.key_heads = None if key_heads is None else check_count("MultiHeadAttention's key_heads", key_heads)
        if self.heads % (self.key_heads or 1):
            raise ConfigurationError(f"MultiHeadAttention: {heads} heads are no multiple of {key_heads} key_heads")
        self.causal, self.rotary, self.bias = bool(causal), bool(rotary), bool(bias)
        self.dropout = in_range("MultiHeadAttention's dropout", dropout, 0.0, 1.0)

    def build(self, shape: tuple[int, ...], context: tuple[int, ...] | None = None, *_: tuple[int, ...]) -> None:
        if len(shape) != 2 or shape[-1] % self.heads:
            told = (
                f"an input is (batch, time, size), the size a multiple of {self.heads} heads, and not (batch, *{shape})"
            )
            raise self.wrong_shape(told)
        size, source = shape[-1], (shape if context is None else context)[-1]
        narrow = size // self.heads * (self.key_heads or self.heads)
        self.wq, self.wk = self.parameter((size, size)), self.parameter((source, narrow))
        self.wv, self.wo = self.parameter((source, narrow)), self.parameter((size, size))
        self.bq = self.bk = self.bv = self.bo = None
        if self.bias:
            self.bq, self.bk = self.parameter(size, "zeros"), self.parameter(narrow, "zeros")
            self.bv, self.bo = self.parameter(narrow, "zeros"), self.parameter(size, "zeros")

    def attend(self, x: Tensor, context: Tensor | None = None, mask: Any = None) -> Tensor:
        """What the layer does, with a mask that may be an array, and with no context for self-attention."""
        return self(x, x if context is None else context, mask)

    def forward(self, x: Tensor, context: Tensor | None = None, mask: Any = None) -> Tensor:
        source = x if context is None else context
        if x.ndim != 3 or source.ndim != 3 or len(source) != len(x):
            raise self.wrong_shape(f"inputs are (batch, time, size), and the shapes are {x.shape} and {source.shape}")
        if mask is not None and mask.shape == source.shape and mask.dtype == x.dtype:  # layer(q, k, v)
            told = f"the third input is a mask, and has the shape of the second, {mask.shape}, from which keys and values come"
            raise self.wrong_shape(f"{told}: layer(x, context); a mask of that shape is mask[None]")
        if source is x and not self.causal and cache_in_use() is not None:
            raise ConfigurationError(
                f"{called(self)}: without causal=True what a step becomes depends on those after it, so that "
                "a cache of those before does not do"
            )
        if source.mask is not None:
            if mask is not None or (source is x and cache_in_use() is not None):
                raise ConfigurationError(
                    f"{called(self)}: the keys come with a mask of steps (Masking, Embedding's mask_zero), "
                    "beside which no other mask is taken, nor a cache of earlier keys: give one mask that says all"
                )
            none = zeros((1,), x.dtype, x.device)  # of a mask of steps any number but 0 counts
            mask = where(source.mask, none, -math.inf).reshape(len(source), 1, 1, source.shape[1])
        depth = x.shape[-1] // self.heads
        q = linear_layer(x, self.wq, self.bq, "linear").reshape(*x.shape[:2], self.heads, depth)
        of_keys = (*source.shape[:2], self.key_heads or self.heads, depth)
        k = linear_layer(source, self.wk, self.bk, "linear").reshape(of_keys)
        v = linear_layer(source, self.wv, self.bv, "linear").reshape(of_keys)
        if self.rotary:
            q, k = rotary(q), rotary(k)
        if self.dropout and self.trains():
            y = self._with_dropout(q, k, v, mask)
        else:
            y = scaled_dot_product_attention(q, k, v, mask, causal=self.causal, time_first=True)
        return linear_layer(y.reshape(*x.shape[:2], self.heads * depth), self.wo, self.bo, "linear")

    def _with_dropout(self, q: Tensor, k: Tensor, v: Tensor, mask: Any) -> Tensor:
        """The same by a matrix of probabilities, some of which are dropped."""
        group = self.heads // (self.key_heads or self.heads)
        q, k, v = (t.transpose(0, 2, 1, 3) for t in (q, k, v))
        if group > 1:
            k, v = repeat(k, group, 1), repeat(v, group, 1)
        scores = q @ k.transpose(0, 1, 3, 2) * (1 / math.sqrt(q.shape[-1]))
        if mask is not None:
            mask = added_mask(mask, q)
            check_mask(mask.shape, scores.shape)
            scores = scores + mask
        if self.causal:
            scores = where(tril(ones(scores.shape[-2:], scores.dtype, scores.device)), scores, -math.inf)
        # a query that sees no key gives zeros, as without dropout
        none = scores.detach().max(-1, keepdims=True) == -math.inf
        p = where(none, 0.0, function(where(none, 0.0, scores), "softmax"))
        p = apply(drop, p, rate=self.dropout, generator=generator(self.device))
        return (p @ v).transpose(0, 2, 1, 3)


class _Block(_Masked):
    """What both blocks share: a layer beside which its input passes, normalised before it, or after the sum."""

    # arguments that are those of a layer inside, also when they are set later
    handed_on = {
        "dropout": ("drop", "rate"), "activation": ("widen", "activation"),
        "causal": ("attention", "causal"), "rotary": ("attention", "rotary"),
    }  # fmt: skip

    def __setattr__(self, key: str, value: Any) -> None:
        super().__setattr__(key, value)
        inside, argument = self.handed_on.get(key, ("", ""))
        if inside in self.__dict__:
            setattr(self.__dict__[inside], argument, getattr(self, key))

    def __init__(
        self, heads: int, hidden: int, activation: str, dropout: float, norm_first: bool, norm: str, how: dict[str, Any]
    ) -> None:
        name = type(self).__name__
        if norm not in NORMS:
            raise ConfigurationError(f'{name}\'s norm is "layer" or "rms", and {norm!r} was given')
        self.heads, self.hidden = heads, check_count(f"{name}'s hidden", hidden)
        self.activation, self.dropout = activation_name(activation), in_range(f"{name}'s dropout", dropout, 0.0, 1.0)
        self.norm_first, self.norm = bool(norm_first), norm
        self.attention = MultiHeadAttention(heads, **how)
        self.widen, self.drop = Dense(self.hidden, activation), Dropout(self.dropout)
        self.narrow: Dense | None = None

    def build(self, shape: tuple[int, ...], *_: tuple[int, ...]) -> None:
        if self.hidden < self.heads == shape[-1]:  # PyTorch's (d_model, nhead)
            told = f"({self.heads}, {self.hidden}) are (heads, hidden), so that each head would see one of {self.heads} numbers"
            raise ConfigurationError(f"{called(self)}: {told}; d_model is found, as in {type(self).__name__}(8, 2048)")
        self.narrow = Dense(shape[-1])

    def beside(self, norm: Layer, x: Tensor, inner: Any) -> Tensor:
        """norm(x + inner(x)), or with `norm_first` x + inner(norm(x))."""
        y = self.drop(inner(norm(x) if self.norm_first else x))
        return x + y if self.norm_first else norm(x + y)

    def feed_forward(self, x: Tensor) -> Tensor:
        """Dense(hidden, activation), then back to x's size."""
        assert self.narrow is not None
        return self.narrow(self.widen(x))


@register
class TransformerEncoderLayer(_Block):
    """Self-attention, then two dense layers, each with its input added: x (batch, time, size) -> the same shape.

    Normalised before each (`norm_first`, the default: Xiong et al. 2020) or after each sum (Vaswani et al. 2017), by LayerNorm or
    `norm="rms"`. With `causal=True` it is the block of a language model (GPT). `layer(x, mask)`: **True = attend**. Dropout is
    of what is added. `key_heads`, `rotary`, `causal` are MultiHeadAttention's.
    """

    shaping = frozenset(("heads", "hidden", "key_heads", "norm"))
    mask_at = 1

    def __init__(
        self,
        heads: int,
        hidden: int,
        activation: str = "gelu",
        *,
        dropout: float = 0.0,
        causal: bool = False,
        rotary: bool = False,
        key_heads: int | None = None,
        norm_first: bool = True,
        norm: str = "layer",
    ) -> None:
        how = {"causal": causal, "rotary": rotary, "key_heads": key_heads}
        super().__init__(heads, hidden, activation, dropout, norm_first, norm, how)
        self.causal, self.rotary, self.key_heads = bool(causal), bool(rotary), key_heads
        self.norm_1, self.norm_2 = NORMS[norm](), NORMS[norm]()

    def forward(self, x: Tensor, mask: Any = None) -> Tensor:
        x = self.beside(self.norm_1, x, lambda y: self.attention.attend(y, None, mask))
        return self.beside(self.norm_2, x, self.feed_forward)


@register
class TransformerDecoderLayer(_Block):
    """Causal self-attention, attention to `context`, then two dense layers, each with its input added: `layer(x, context)`,
    x (batch, time, size), context (batch, keys, any size) -> x's shape. Otherwise as TransformerEncoderLayer; a mask, the third
    input, is of the attention to the context.
    """

    shaping = frozenset(("heads", "hidden", "norm"))

    def __init__(
        self,
        heads: int,
        hidden: int,
        activation: str = "gelu",
        *,
        dropout: float = 0.0,
        norm_first: bool = True,
        norm: str = "layer",
    ) -> None:
        super().__init__(heads, hidden, activation, dropout, norm_first, norm, {"causal": True})
        self.to_context = MultiHeadAttention(heads)
        self.norm_1, self.norm_2, self.norm_3 = NORMS[norm](), NORMS[norm](), NORMS[norm]()

    def forward(self, x: Tensor, context: Tensor, mask: Any = None) -> Tensor:
        x = self.beside(self.norm_1, x, self.attention)
        x = self.beside(self.norm_2, x, lambda y: self.to_context.attend(y, context, mask))
        return self.beside(self.norm_3, x, self.feed_forward)
