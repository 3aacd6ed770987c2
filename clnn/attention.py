"""Functions for attention: the scaled dot product, positions, and rotary embeddings."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from .arrays import arange, stack, where
from .cache import cache_in_use
from .checks import check_count, in_range, numbers, whole_array
from .errors import ConfigurationError, OutOfRangeError, ShapeError
from .ops.array import MASK
from .ops.sequence.attention import attention, extend
from .tape import grad_enabled
from .tensor import Tensor, concat, function, on_tape, tensor, zeros

TRUTHS = (MASK, "isnan", "isfinite", "logical_not")  # what makes 0 and 1


def scaled_dot_product_attention(
    q: Any,
    k: Any,
    v: Any,
    mask: Any = None,
    *,
    causal: bool = False,
    scale: float | None = None,
    past: Any = None,
    time_first: bool = False,
) -> Tensor:
    """softmax(scale q k^T + mask) v, in one launch forward and one or two backward, and without a matrix of scores in memory.

    q (batch, heads, queries, depth), k (batch, key heads, keys, depth), v (batch, key heads, keys, value depth) -> (batch, heads,
    queries, value depth); with `time_first` (batch, queries, heads, depth) and so on. Heads of queries are a multiple of those of
    keys, which they share in order (grouped queries, Ainslie et al. 2023).

    mask: what broadcasts to (batch, heads, queries, keys). Integers, bools and comparisons: 1 or **True = attend**, as in Keras
        and PyTorch's function of this name. Floats are added to the scores; ConfigurationError where they are 0 and 1,
        which would hide nothing. No gradient goes to it.
    causal: query i sees the keys up to i.
    scale: 1 / sqrt(depth) unless given.
    past: an int32 tensor of one number, how many keys come before the first query: query i then sees the keys up to past + i
        if `causal`, and none at past + queries or beyond. For caches.
    In a pass over the next steps alone (`generate`), those before come from the cache if `causal`.
    A query that sees no key gives zeros. NaN in a key or a value that a mask hides reaches the output, as in PyTorch. ShapeError
    for shapes that do not fit, and for depths above 256; OutOfRangeError for a `past` with which there are more queries than
    keys, where it can be seen: in a recorded step the output is NaN then.

    Source: Vaswani et al. 2017; without the matrix, Milakov and Gimelshein 2018, Dao et al. 2022.
    """
    q = tensor(q)
    k, v = tensor(k, q.dtype, q.device), tensor(v, q.dtype, q.device)
    scale = None if scale is None else in_range("attention's scale", scale, -math.inf, math.inf, "()")
    mask = None if mask is None else added_mask(mask, q)
    cache = cache_in_use() if causal and past is None else None
    if cache is not None:
        if mask is not None:
            raise ConfigurationError("attention: a mask says nothing of the steps before, which come from a cache")
        k, v = extend(k, v, cache.past, cache.steps, cache.kept, time_first)
        past = cache.past
    elif past is not None:
        past = one_past(past, q.device)
        if q.device.reads and q.ndim == k.ndim == 4:
            queries, keys = (t.shape[1 if time_first else 2] for t in (q, k))
            if not 0 <= (before := past.item()) <= keys - queries:
                told = f"attention: {before} past keys and {queries} queries do not fit a cache of {keys} keys"
                raise OutOfRangeError(told)
    keep = grad_enabled() and any(t.requires_grad for t in (q, k, v))
    y, backward = attention(q, k, v, mask, causal, scale, past, time_first, keep)
    return on_tape(y, (q, k, v), backward, (q, k, v))


def added_mask(mask: Any, q: Tensor) -> Tensor:
    """What a mask adds to the scores of queries `q`: 0 and -inf where it says what is attended, else itself."""
    host = mask if isinstance(mask, Tensor) else numbers(mask, "a mask")
    chosen = host.dtype.kind in "iub" or (isinstance(host, Tensor) and host.made_by in TRUTHS)
    mask = tensor(host, None if chosen else q.dtype, q.device)
    mask.refuse_history("a mask")
    if chosen:
        return where(mask, zeros((1,), q.dtype, q.device), -math.inf)
    if isinstance(host, np.ndarray) or q.device.reads:
        _check_added(host)
    if q.device.step is not None:
        q.device.step.check(mask.block, _check_added)
    return mask


def _check_added(mask: Any, name: str = "a mask of floats") -> None:
    """ConfigurationError for what was meant to choose, and would be added."""
    seen = np.asarray(mask)
    if seen.any() and ((seen == 0) | (seen == 1)).all():  # ones alone, too: where it is no argument, nobody looks again
        raise ConfigurationError(
            f"attention: {name} is added to the scores, and this one, of 0 and 1, would hide nothing: give bools, such as "
            "mask > 0, for what is attended, or 0 and -inf"
        )


def one_past(past: Any, device: Any) -> Tensor:
    """How many steps came before, as an int32 tensor of one number."""
    is_whole = isinstance(past, Tensor) and past.dtype == np.int32
    past = tensor(past if is_whole else whole_array(past, "past, how many steps came before,"), np.int32, device)
    if past.size != 1:
        raise ShapeError(f"past, how many steps came before, is one number, and its shape is {past.shape}")
    return past


def _places(time: int, past: Any, dtype: Any, device: Any) -> Tensor:
    """(time, 1): the numbers of `time` steps after `past` others."""
    if past is None and (cache := cache_in_use()) is not None:
        past = cache.past
    if past is None:
        return arange(0.0, float(time), dtype=dtype, device=device).reshape(time, 1)
    return (arange(time, device=device) + one_past(past, device).reshape(1)).astype(dtype).reshape(time, 1)


def _angles(time: int, size: int, past: Any, dtype: Any, device: Any, base: float) -> Tensor:
    """(time, size / 2): places times base^(-2 i / size)."""
    by = -2 * math.log(in_range("the base of positions", base, 0.0, math.inf, "()")) / size
    rates = function(arange(0.0, float(size // 2), dtype=dtype, device=device) * by, "exp")
    return _places(time, past, dtype, device) * rates


def sinusoidal_positions(
    time: int, size: int, past: Any = None, dtype: Any = np.float32, device: Any = None, base: float = 10000.0
) -> Tensor:
    """(time, size): sin(t base^(-2 i / size)) in the even columns 2 i, the cosine in the odd ones (Vaswani et al. 2017).

    `past`, an int32 tensor of one number, is added to every t. ShapeError for an odd size.
    """
    time, size = check_count("the number of steps", time, 0), check_count("the size of positions", size)
    if size % 2:
        raise ShapeError(f"positions come in pairs, a sine and a cosine: the size is even, not {size}")
    angles = _angles(time, size, past, dtype, device, base)
    return stack([function(angles, "sin"), function(angles, "cos")], -1).reshape(time, size)


def rotary(x: Any, past: Any = None, base: float = 10000.0, pairs: str = "halves") -> Tensor:
    """Rotary positions: x (batch, time, heads, depth) with each pair of its columns turned by the angle t base^(-2 i / depth).

    `pairs`: "halves" for columns i and i + depth / 2, as GPT-NeoX and LLaMA's converted weights have it, or "neighbours" for 2 i
    and 2 i + 1, as the paper does. `past` is as for `sinusoidal_positions`. ShapeError for an odd depth.
    Source: Su et al. 2021.
    """
    x = tensor(x)
    if x.ndim != 4 or x.shape[-1] % 2 or not x.shape[-1]:
        raise ShapeError(f"rotary takes (batch, time, heads, depth) with an even depth, not the shape {x.shape}")
    if pairs not in ("halves", "neighbours"):
        raise ConfigurationError(f'rotary\'s pairs are "halves" or "neighbours", not {pairs!r}')
    time, depth = x.shape[1], x.shape[3]
    angles = _angles(time, depth, past, x.dtype, x.device, base).reshape(time, 1, depth // 2)
    cosine, sine = function(angles, "cos"), function(angles, "sin")
    if pairs == "halves":
        a, b = x[..., : depth // 2], x[..., depth // 2 :]
        return concat([a * cosine - b * sine, b * cosine + a * sine], -1)
    a, b = x[..., ::2], x[..., 1::2]
    return stack([a * cosine - b * sine, b * cosine + a * sine], -1).reshape(x.shape)


__all__ = ["rotary", "scaled_dot_product_attention", "sinusoidal_positions"]
