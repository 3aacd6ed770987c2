"""Functions for attention: the scaled dot product, positions, and rotary embeddings."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from .arrays import where
from .ops.sequence.attention import attention
from .tape import grad_enabled
from .tensor import Tensor, on_tape, tensor


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
    """softmax(scale q k^T + mask) v, in one launch forward and two backward, and without a matrix of scores in memory.

    q (batch, heads, queries, depth), k (batch, key heads, keys, depth), v (batch, key heads, keys, value depth) -> (batch, heads,
    queries, value depth); with `time_first` (batch, queries, heads, depth) and so on. Heads of queries are a multiple of those of
    keys, which they share in order (grouped queries, Ainslie et al. 2023).

    mask: what broadcasts to (batch, heads, queries, keys). Integers and bools: 1 or **True = attend**, as in Keras and
        PyTorch's function of this name. Floats are added to the scores. No gradient goes to it.
    causal: query i sees the keys up to i.
    scale: 1 / sqrt(depth) unless given.
    past: an int32 tensor of one number, how many keys come before the first query: query i then sees the keys up to past + i
        if `causal`, and none at past + queries or beyond. For caches.
    A query that sees no key gives zeros. ShapeError for shapes that do not fit, and for depths above 256.

    Source: Vaswani et al. 2017; without the matrix, Milakov and Gimelshein 2018, Dao et al. 2022.
    """
    q = tensor(q)
    k, v = tensor(k, q.dtype, q.device), tensor(v, q.dtype, q.device)
    if mask is not None:
        host = mask if isinstance(mask, Tensor) else np.asarray(mask)
        chosen = host.dtype == np.int32 if isinstance(host, Tensor) else host.dtype.kind in "iub"
        mask = tensor(host, None if chosen else q.dtype, q.device)
        mask.refuse_history("a mask")
        if chosen:
            mask = where(mask, 0.0, -math.inf)
    if past is not None:
        past = tensor(past, np.int32, q.device)
    keep = grad_enabled() and any(t.requires_grad for t in (q, k, v))
    y, backward = attention(q, k, v, mask, causal, scale, past, time_first, keep)
    return on_tape(y, (q, k, v), backward, (q, k, v))


__all__ = ["scaled_dot_product_attention"]
