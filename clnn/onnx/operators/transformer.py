"""What transformers add: attention, rotary positions, triangles."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ... import arrays, functions
from ...errors import CheckpointError, ShapeError
from ...tensor import Tensor, concat, function
from ..registry import Context, of_dtype, operator


@operator("Trilu", 14, host=(1,))
def trilu(c: Context, x: Any, k: Any = None, *, upper: int = 1) -> Any:
    k = 0 if k is None else int(np.ravel(k)[0])
    if isinstance(x, np.ndarray) or c.types[0] not in ("float32", "float64", "float16", "bfloat16", "int32", "bool"):
        return (np.triu if upper else np.tril)(c.host(0), k)
    rows, columns = x.shape[-2:]
    ahead = np.arange(columns) - np.arange(rows)[:, None]
    kept = c.tensor(((ahead >= k) if upper else (ahead <= k)).astype(np.float32))
    return arrays.where(kept, x, c.tensor(np.zeros((), x.dtype)))


@operator("RotaryEmbedding", 23)
def rotary_embedding(
    c: Context, x: Any, cosines: Any, sines: Any, positions: Any = None, *, interleaved: int = 0, num_heads: int = 0,
    rotary_embedding_dim: int = 0,
) -> Any:  # fmt: skip
    """Pairs of columns turned by the angles of a step's position: x (batch, heads, steps, depth), or (batch, steps, ...)."""
    x, cosines, sines = map(c.tensor, (x, cosines, sines))
    wide = x.ndim == 3
    batch, steps = x.shape[0], x.shape[1 if wide else 2]
    heads = num_heads if wide else x.shape[1]
    if wide and (not heads or x.shape[2] % heads):
        raise ShapeError(f"num_heads {heads} does not divide an input of shape {x.shape}")
    apart = x.reshape(batch, steps, heads, -1) if wide else x.transpose(0, 2, 1, 3)
    depth = rotary_embedding_dim or apart.shape[3]
    if positions is not None:
        at = c.tensor(positions)
        cosines, sines = arrays.take(cosines, at), arrays.take(sines, at)
    wanted = (cosines.shape[0], steps, 1, depth // 2)
    cosines, sines = cosines.reshape(wanted), sines.reshape(wanted)
    turned, rest = apart[..., :depth], apart[..., depth:]
    a, b = (
        (turned[..., ::2], turned[..., 1::2]) if interleaved else (turned[..., : depth // 2], turned[..., depth // 2 :])
    )
    real, imaginary = a * cosines - b * sines, a * sines + b * cosines
    y = arrays.stack([real, imaginary], -1).reshape(turned.shape) if interleaved else concat([real, imaginary], -1)
    y = concat([y, rest], -1) if rest.shape[-1] else y
    return y.reshape(x.shape) if wide else y.transpose(0, 2, 1, 3)


@operator("Attention", 23)
def attention(
    c: Context, q: Any, k: Any, v: Any, mask: Any = None, past_key: Any = None, past_value: Any = None, lengths: Any = None, *,
    is_causal: int = 0, kv_num_heads: int = 0, q_num_heads: int = 0, qk_matmul_output_mode: int = 0, scale: float = 0.0,
    softcap: float = 0.0, softmax_precision: int = 1, left_window_size: int = -1, right_window_size: int = -1,
) -> Any:  # fmt: skip
    """softmax(scale q k^T + mask) v by heads, with the keys and values before these; by products, since any form is asked for."""
    q, k, v = map(c.tensor, (q, k, v))
    flat = q.ndim == 3
    if flat:
        if not q_num_heads or not kv_num_heads:
            raise ShapeError("inputs of three axes need q_num_heads and kv_num_heads")
        q = q.reshape(*q.shape[:2], q_num_heads, -1).transpose(0, 2, 1, 3)
        k, v = (t.reshape(*t.shape[:2], kv_num_heads, -1).transpose(0, 2, 1, 3) for t in (k, v))
    if past_key is not None:
        k, v = concat([c.tensor(past_key), k], 2), concat([c.tensor(past_value), v], 2)
    before = 0 if past_key is None else past_key.shape[2]
    if q.shape[1] % max(1, k.shape[1]):
        raise ShapeError(f"{q.shape[1]} heads of queries are no multiple of {k.shape[1]} of keys")
    times = q.shape[1] // k.shape[1]
    keys, values = (arrays.repeat(t, times, 1) if times > 1 else t for t in (k, v))
    root = math.sqrt(scale or 1 / math.sqrt(q.shape[3]))
    scores = (q * root) @ (keys * root).transpose(0, 1, 3, 2)
    queries, total = scores.shape[2:]
    seen: list[Tensor] = [scores]
    if softcap:
        scores = function(scores / softcap, "tanh") * softcap
    seen.append(scores)
    ahead: Any = np.arange(total) - np.arange(queries)[:, None] - before  # how far a key lies ahead of a query
    hidden: list[Any] = []
    if lengths is not None:
        at = c.tensor(lengths).reshape(-1, 1, 1, 1)
        hidden.append(c.tensor(np.arange(total).reshape(1, 1, 1, -1)) >= at)
        if past_key is None and (is_causal or max(left_window_size, right_window_size) >= 0):
            ahead = c.tensor(ahead.reshape(1, 1, queries, total)) - (at - queries)
    hidden += [
        ahead > most for most in ([0] if is_causal else []) + ([right_window_size] if right_window_size >= 0 else [])
    ]
    hidden += [ahead < -left_window_size] if left_window_size >= 0 else []
    if mask is not None:
        bools = c.types[3] == "bool"
        mask = c.tensor(mask)
        if mask.shape[-1] < total:  # keys without a place in it are hidden
            missing = np.broadcast_to(np.float32(0 if bools else -np.inf), (*mask.shape[:-1], total - mask.shape[-1]))
            mask = concat([mask, c.tensor(missing)], -1)
        scores = arrays.where(mask, scores, -math.inf) if bools else scores + of_dtype(mask, scores.dtype)
    for one in hidden:
        scores = arrays.where(c.tensor(one), -math.inf, scores)
    top = scores.max(-1, keepdims=True)
    none = top == -math.inf  # a query that sees no key gives zeros
    weights = arrays.where(none, 0.0, functions.softmax(arrays.where(none, 0.0, scores), -1))
    y = weights @ values
    seen += [scores, weights]
    c.gives(c.types[0], c.types[1], c.types[2], c.types[0])
    y = y.transpose(0, 2, 1, 3).reshape(y.shape[0], queries, -1) if flat else y
    if not 0 <= qk_matmul_output_mode < 4:
        raise CheckpointError(f"qk_matmul_output_mode {qk_matmul_output_mode} is not supported")
    return (y, k, v, seen[qk_matmul_output_mode])[: max(1, len(c.outputs))]
