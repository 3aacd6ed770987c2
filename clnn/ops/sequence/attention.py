"""Scaled dot-product attention in one launch, without a matrix of scores: kernels/attention.cl."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

from ...errors import ShapeError
from ...runtime.device import int_vector
from ...runtime.memory import Block
from ..array import Array, Backward, Flow, block_of, check_float, check_together, empty, empty_like
from ..elementwise import broadcast_strides
from ..trace import op

FEW = 4  # queries that are better done one by one on CPUs
ENOUGH = 4  # heads for each core of a CPU, with which a work-item can have one whole
LONGEST = 256  # of a head: what a work-item keeps of it has to fit registers or the cache


def _sizes(x: Array, time_first: bool) -> tuple[int, int, int, int]:
    """x as (batch, heads, time, depth), however its axes are ordered."""
    b, first, second, d = x.shape
    return (b, second, first, d) if time_first else (b, first, second, d)


def _steps(x: Array, time_first: bool) -> list[int]:
    """Elements from batch to batch, from head to head, and from row to row."""
    _, heads, time, d = _sizes(x, time_first)
    return [heads * time * d, d, heads * d] if time_first else [heads * time * d, time * d, d]


@op
def extend(
    k: Array, v: Array, past: Array, steps: int, kept: Callable[..., Any], time_first: bool
) -> tuple[Array, Array]:
    """All keys and values: k and v (batch, key heads, new, depth), or with `time_first` (batch, new, key heads, depth), are
    written after the `past`, an int32 on the device, that a cache of `steps` holds. `kept(shape, dtype)` gives its memory.
    """
    check_together("attention", k, v)
    device, at = k.device, 1 if time_first else 2
    outer, inner = math.prod(k.shape[:at]), [math.prod(x.shape[at + 1 :]) for x in (k, v)]
    whole = [kept((*x.shape[:at], steps, *x.shape[at + 1 :]), x.dtype) for x in (k, v)]
    sizes = [outer, k.shape[at], steps, *inner, *[0] * 3]
    device.launch(
        "index", "extend_rows", (sum(inner), outer * k.shape[at]), int_vector(sizes), past.block, k.block, v.block,
        *(x.block for x in whole), real=k.real, EXTEND=1,
    )  # fmt: skip
    return whole[0], whole[1]


def check_mask(shape: tuple[int, ...], whole: tuple[int, ...]) -> None:
    """ShapeError where a mask does not broadcast to all scores: (batch, heads, queries, keys)."""
    if len(shape) > 4 or any(size not in (1, wanted) for size, wanted in zip(shape[::-1], whole[::-1])):
        heads = "; one of (batch, queries, keys), as Keras has it, is mask[:, None] here"
        raise ShapeError(
            f"attention: a mask of shape {shape} does not broadcast to (batch, heads, queries, keys), {whole}"
            f"{heads if len(shape) == 3 and shape[0] == whole[0] else ''}"
        )


@op
def attention(
    q: Array,
    k: Array,
    v: Array,
    mask: Array | None = None,
    causal: bool = False,
    scale: float | None = None,
    past: Array | None = None,
    time_first: bool = False,
    keep: bool = True,
) -> tuple[Array, Backward]:
    """o = softmax(scale q k^T + mask) v: q (batch, heads, queries, depth), k (batch, key heads, keys, depth), v likewise
    -> o as q, of v's depth; with `time_first` (batch, queries, heads, depth) and so on.

    `mask` (batch, heads, queries, keys), or what broadcasts to it, is added; without a gradient. `causal`: query i sees the
    keys up to i. `past`, an int32 on the device, is the number of keys before the first query, and keys beyond past + queries
    do not count: for caches. A query that sees no key gives zeros. `keep`: a gradient will be asked for.
    """
    check_together("attention", q, k, v, mask)
    check_float("scaled_dot_product_attention", q)
    if not q.ndim == k.ndim == v.ndim == 4:
        told = f"attention takes q, k and v of 4 axes, and their shapes are {q.shape}, {k.shape} and {v.shape}"
        raise ShapeError(told)
    b, heads, queries, d = _sizes(q, time_first)
    _, key_heads, keys, _ = _sizes(k, time_first)
    dv = v.shape[-1]
    if k.shape[0] != b or k.shape[-1] != d or v.shape[:-1] != k.shape[:-1] or not key_heads or heads % key_heads:
        raise ShapeError(
            f"attention: q {q.shape}, k {k.shape} and v {v.shape} do not fit: they share a batch, q and k a depth, k and v a "
            "length, and q's heads are a multiple of k's"
        )
    if not (0 < d <= LONGEST and 0 < dv <= LONGEST):
        raise ShapeError(f"attention: heads have a depth of 1 to {LONGEST}, and here it is {d}, of values {dv}")
    whole = (b, heads, queries, keys)
    if mask is not None:
        check_mask(mask.shape, whole)
    if causal and past is None and queries != keys:
        told = f"attention: causal with {queries} queries of {keys} keys: `past` says how many keys are before them"
        raise ShapeError(told)
    device, real = q.device, q.real
    o = empty(device, (*q.shape[:-1], dv), q.dtype)
    lse = empty(device, (2, b, heads, queries), q.dtype) if keep or device.most_turns else None
    lanes = device.vector_width(q.dtype)
    built: dict[str, Any] = {
        "D": d,
        "DV": dv,
        **({"CAUSAL": 1} if causal else {}),
        **({} if mask is None else {"MASK": 1}),
    }
    block_q, block_k, local = 1, 1, None
    if device.long_loops:
        block_q, block_k, local = 64, max(64, 4 * lanes), (1,)
        built |= {"VW": lanes, "BQ": block_q, "BK": block_k, "MR": 8 if device.registers >= 32 else 4}
    of_mask = [0] * 4 if mask is None else broadcast_strides(mask.shape, whole)
    sizes = [heads, key_heads, queries, keys, *_steps(q, time_first), *_steps(k, time_first)]
    rest = [*_steps(v, time_first), *_steps(o, time_first), 0, 0]
    factor = 1 / math.sqrt(d) if scale is None else float(scale)

    def launch(name: str, items: int, *blocks: Block | None, over: int = keys, sharing: int = 1, **kind: int) -> None:
        """For `items` of each batch over so many keys, or queries of `sharing` heads, if need be in pieces."""
        # no less than one of them takes; what a launch begins and ends with takes two's
        turns = sharing * (2 * (d + dv) + 9)
        fit = 0 if device.long_loops else device.check_turns(3 * turns, f"attention of heads of depths {d} and {dv}")
        most = 3 * fit - 2 if fit else max(1, over)
        for begin in range(0, max(1, over), most):
            device.launch(
                "attention", name, (b * items,), b, int_vector([*sizes, begin, begin + most, *[0] * 4]), int_vector(rest),
                int_vector(of_mask), q.block, k.block, v.block, block_of(mask), block_of(past), factor, *blocks,
                local=local, real=real, **built, **kind,
            )  # fmt: skip

    by_queries = heads * -(-queries // block_q)
    if device.long_loops and queries <= FEW:
        launch("attention_forward", heads * queries, o.block, block_of(lse), FORWARD=1, FEW=1)
    else:
        launch("attention_forward", by_queries, o.block, block_of(lse), FORWARD=1)

    def backward(dy: Array) -> Iterator[Flow]:
        assert lse is not None
        saved = (o.block, lse.block, dy.block)
        dq, dk, dv = empty_like(q), empty_like(k), empty_like(v)
        # a work-item for each head of keys
        if device.long_loops and keys and b * key_heads >= ENOUGH * device.compute_units:
            deltas = empty(device, lse.shape[1:], q.dtype)
            launch(
                "attention_backward", key_heads, *saved, dk.block, dv.block, dq.block, deltas.block, FOR_Q=1, FOR_K=1
            )
        else:
            launch("attention_backward_q", by_queries, *saved, dq.block, FOR_Q=1)
            by_keys, sharing = key_heads * -(-keys // block_k), heads // key_heads
            launch("attention_backward_k", by_keys, *saved, dk.block, dv.block, over=queries, sharing=sharing, FOR_K=1)
        yield q, dq
        yield k, dk
        yield v, dv

    return o, backward
