"""Elements by their numbers: gathering, choosing, and what is found at run time."""

from __future__ import annotations

from typing import Any

import numpy as np

from ... import arrays
from ...errors import OutOfRangeError, ShapeError
from ...tensor import elementwise
from ..graph import FLOATS
from ..registry import Context, of_dtype, operator
from ..run import check_host
from .elementwise import CASTS
from .shape import axes_of


def from_start(index: np.ndarray, x: Any, axis: int) -> np.ndarray:
    """Numbers of elements along an axis, counted from its start. OutOfRangeError for those that it does not have."""
    n = x.shape[axis]
    if index.size and not -n <= index.min() <= index.max() < n:
        raise OutOfRangeError(
            f"there is no element {index.min()} or {index.max()} along axis {axis} of shape {x.shape}"
        )
    return np.where(index < 0, index + n, index)


@operator("Gather", 1)
def gather(c: Context, x: Any, index: Any, *, axis: int = 0) -> Any:
    (axis,) = axes_of(x.ndim, [axis])
    if isinstance(index, np.ndarray):
        index = from_start(index, x, axis)
        if isinstance(x, np.ndarray):
            return np.take(x, index, axis)
        if index.ndim == 0:
            return x[(*(slice(None),) * axis, int(index))]
    else:
        check_index(c, index, x, axis)
    return arrays.take(c.tensor(x), c.tensor(index), axis)


def check_index(c: Context, index: Any, x: Any, axis: int) -> None:
    """Have the caller check that whole numbers i on the device name elements along an axis: |2 i + 1| is less than 2 n."""
    n = x.shape[axis]
    wrong = f"an index is outside {-n} to {n - 1}, for axis {axis} of shape {tuple(x.shape)}"
    # float32 is exact up to 2^24; of larger axes the edge is not, and rows beyond it are NaN
    c.pass_.below(2 * n + (n >> 20 if n >= 2**22 else 0), of_dtype(index, np.float32) * 2.0 + 1.0, wrong)


@operator("NonZero", 9, host=(0,), gives="int64")
def non_zero(x: Any) -> Any:
    return np.array(np.nonzero(x), np.int64).reshape(x.ndim, -1)


@operator("OneHot", 9, host=(1,))
def one_hot(c: Context, index: Any, depth: Any, values: Any, *, axis: int = -1) -> Any:
    """`values` = (off, on): on where the last, or another, axis has the number that the index says."""
    c.gives(c.types[2])
    n = int(np.ravel(depth)[0])
    (axis,) = axes_of(len(index.shape) + 1, [axis])
    places = np.arange(n).reshape([n if a == axis else 1 for a in range(len(index.shape) + 1)])
    wide = (*index.shape[:axis], 1, *index.shape[axis:])
    if isinstance(index, np.ndarray):
        check_host([n, index.size], "a OneHot")
        hot = np.where(index < 0, index + n, index).reshape(wide) == places
        if isinstance(values, np.ndarray):
            return np.where(hot, values[1], values[0]).astype(values.dtype)
    else:
        at = index.reshape(wide)
        at = arrays.where(at < 0, at + n, at)
        hot = at == c.tensor(places if at.dtype == np.int32 else places.astype(at.dtype))
    values = c.tensor(values)
    return arrays.where(c.tensor(hot), values[1], values[0])


@operator("EyeLike", 9)
def eye_like(c: Context, x: Any, *, dtype: int = 0, k: int = 0) -> Any:
    kind = CASTS[dtype] if dtype else c.types[0]
    check_host(x.shape, "an EyeLike")
    rows, columns = x.shape
    return np.eye(rows, columns, k=k).astype(kind)


@operator("GatherElements", 11)
def gather_elements(c: Context, x: Any, index: Any, *, axis: int = 0) -> Any:
    """y[i, j] = x[index[i, j], j] along `axis`; the index may be smaller along the others."""
    (axis,) = axes_of(x.ndim, [axis])
    if isinstance(index, np.ndarray):
        index = from_start(index, x, axis)
    else:
        check_index(c, index, x, axis)
    x = x[tuple(slice(None) if a == axis else slice(0, s) for a, s in enumerate(index.shape))]
    if isinstance(x, np.ndarray) and isinstance(index, np.ndarray):
        return np.take_along_axis(x, index, axis)
    return arrays.gather(c.tensor(x), c.tensor(index), axis)


def flat_places(index: np.ndarray, shape: Any) -> np.ndarray:
    """The places that rows of an index, (..., k), name among the first k axes of a shape, as one number each."""
    index, sizes = np.asarray(index), np.array(shape[: index.shape[-1]])
    if index.size and not ((index >= -sizes) & (index < sizes)).all():
        raise OutOfRangeError(f"an index goes beyond the shape {tuple(shape)}")
    at = np.zeros(index.shape[:-1], np.int64)
    for a, size in enumerate(sizes):
        at = at * size + np.where(index[..., a] < 0, index[..., a] + size, index[..., a])
    return at


@operator("GatherND", 11, host=(1,))
def gather_nd(c: Context, x: Any, index: Any, *, batch_dims: int = 0) -> Any:
    """The parts of x that rows of the index, (..., k), name: after `batch_dims` axes that go side by side."""
    b, k = batch_dims, index.shape[-1]
    if b:
        lead = np.indices(index.shape[:-1])[:b]
        index = np.concatenate([np.moveaxis(lead, 0, -1), index], -1)
        k += b
    at = flat_places(index, x.shape)
    rows = x.reshape((int(np.prod(x.shape[:k], dtype=np.int64)), *x.shape[k:]))
    return rows[at] if isinstance(x, np.ndarray) else arrays.take(rows, c.tensor(at), 0)


JOINS = {"none": None, "add": np.add, "mul": np.multiply, "max": np.maximum, "min": np.minimum}


def scattered(c: Context, x: Any, at: np.ndarray, updates: Any, reduction: str) -> Any:
    """x (n, inner), whose rows `at` become, or are joined with, those of updates (m, inner)."""
    if reduction not in JOINS:
        raise ShapeError(f"reduction {reduction!r} is none of {', '.join(JOINS)}")
    if reduction in ("add", "mul") and c.types[0] not in (
        *FLOATS,
        "int32",
    ):  # which may be more than 32 bits, or wrap around
        x, updates = c.host(0).reshape(x.shape), c.host(2).reshape(updates.shape)
    if isinstance(x, np.ndarray) and isinstance(updates, np.ndarray):
        y = x.copy()
        if reduction == "none":
            y[at] = updates
        else:
            JOINS[reduction].at(y, at, updates)  # type: ignore[union-attr]
        return y
    x, updates = c.tensor(x), c.tensor(updates)
    if not at.size:
        return x
    if reduction == "none":
        source = np.full(x.shape[0], -1, np.int64)
        source[at] = np.arange(at.size)  # the last one counts
        there = c.tensor((source >= 0).reshape(-1, 1))
        return arrays.where(there, arrays.take(updates, c.tensor(np.maximum(source, 0)), 0), x)
    if reduction == "add" and x.dtype != np.int32:
        return arrays.scatter_add(x, c.tensor(at), updates, 0)
    turn = np.zeros(at.size, np.int64)  # of equal places one after the other
    seen: dict[int, int] = {}
    for i, place in enumerate(at.tolist()):
        turn[i] = seen.get(place, 0)
        seen[place] = int(turn[i]) + 1
    name = {"add": "add", "mul": "multiply", "max": "maximum", "min": "minimum"}[reduction]
    for t in range(int(turn.max()) + 1):
        source = np.full(x.shape[0], -1, np.int64)
        source[at[turn == t]] = np.nonzero(turn == t)[0]
        joined = elementwise(name, x, arrays.take(updates, c.tensor(np.maximum(source, 0)), 0))
        x = arrays.where(c.tensor((source >= 0).reshape(-1, 1)), joined, x)
    return x


@operator("ScatterND", 11, host=(1,))
def scatter_nd(c: Context, x: Any, index: Any, updates: Any, *, reduction: str = "none") -> Any:
    k = index.shape[-1]
    inner = int(np.prod(x.shape[k:], dtype=np.int64))
    at = flat_places(index, x.shape).reshape(-1)
    if updates.shape != (*index.shape[:-1], *x.shape[k:]):
        raise ShapeError(f"updates of shape {updates.shape} do not fit an index of {index.shape} into {x.shape}")
    y = scattered(
        c,
        x.reshape((int(np.prod(x.shape[:k], dtype=np.int64)), inner)),
        at,
        updates.reshape((at.size, inner)),
        reduction,
    )
    return y.reshape(x.shape)


@operator("ScatterElements", 11, host=(1,))
def scatter_elements(c: Context, x: Any, index: Any, updates: Any, *, axis: int = 0, reduction: str = "none") -> Any:
    (axis,) = axes_of(x.ndim, [axis])
    if updates.shape != index.shape:
        raise ShapeError(f"updates of shape {updates.shape} do not fit an index of shape {index.shape}")
    places = [index if a == axis else p for a, p in enumerate(np.indices(index.shape))]
    at = flat_places(np.stack(places, -1), x.shape).reshape(-1)
    rows = x.reshape((int(np.prod(x.shape, dtype=np.int64)), 1))
    return scattered(c, rows, at, updates.reshape((at.size, 1)), reduction).reshape(x.shape)


operator("Scatter", 9)(lambda c, x, index, updates, *, axis=0: scatter_elements(c, x, c.host(1), updates, axis=axis))


@operator("TopK", 10, host=(1,))
def top_k(c: Context, x: Any, k: Any, *, axis: int = -1, largest: int = 1, sorted: int = 1) -> Any:  # noqa: A002
    """The k largest or least along an axis, in order, and where they are; of equals the first."""
    (axis,) = axes_of(x.ndim, [axis])
    k = int(np.ravel(k)[0])
    c.gives(c.types[0], "int64")
    if isinstance(x, np.ndarray) or c.types[0] not in ("float32", "float64", "float16", "bfloat16", "int32"):
        x = c.host(0)
        keys = (
            x.astype(np.float64) if x.dtype.kind == "f" else x.astype(object) if x.itemsize == 8 else x.astype(np.int64)
        )
        at = np.argsort(-keys if largest else keys, axis, kind="stable")[(*(slice(None),) * axis, slice(k))]
        return np.take_along_axis(x, at, axis), at.astype(np.int64)
    return arrays.topk(x, k, axis, bool(largest))


@operator("ReverseSequence", 10, host=(1,))
def reverse_sequence(c: Context, x: Any, lengths: Any, *, batch_axis: int = 1, time_axis: int = 0) -> Any:
    """The first elements along time in reverse, as many as each sequence's length says."""
    if {batch_axis, time_axis} != {0, 1}:
        raise ShapeError(f"batch_axis {batch_axis} and time_axis {time_axis} are 0 and 1")
    steps, batch = x.shape[time_axis], x.shape[batch_axis]
    t, n = np.arange(steps).reshape(-1, 1), np.reshape(lengths, (1, -1))
    if n.shape[1] != batch or n.min(initial=0) < 0 or n.max(initial=0) > steps:
        raise ShapeError(f"lengths {n.reshape(-1).tolist()} do not fit {batch} sequences of {steps} steps")
    source = np.where(t < n, n - 1 - t, t)  # (time, batch)
    at = source * batch + np.arange(batch) if time_axis == 0 else (np.arange(batch) * steps + source).T
    rows = x.reshape((x.shape[0] * x.shape[1], *x.shape[2:]))
    y = rows[at.reshape(-1)] if isinstance(x, np.ndarray) else arrays.take(rows, c.tensor(at.reshape(-1)), 0)
    return y.reshape(x.shape)


@operator("Compress", 9, host=(1,))
def compress(c: Context, x: Any, chosen: Any, *, axis: int | None = None) -> Any:
    at = np.nonzero(np.ravel(chosen))[0]
    x = x.reshape((int(np.prod(x.shape, dtype=np.int64)),)) if axis is None else x
    return gather(c, x, at, axis=0 if axis is None else axis)


@operator("Unique", 11, host=(0,))
def unique(c: Context, x: Any, *, axis: int | None = None, sorted: int = 1) -> Any:  # noqa: A002
    y, first, back, counts = np.unique(x, True, True, True, axis=axis)
    back = np.reshape(back, -1)
    if not sorted:  # in the order in which they come first
        order = np.argsort(first)
        y = np.take(y, order, 0 if axis is None else axis)
        first, counts = first[order], counts[order]
        back = np.argsort(order)[back]
    c.gives(c.types[0], "int64", "int64", "int64")
    return y, *(np.asarray(v, np.int64) for v in (first, back, counts))


@operator("NonMaxSuppression", 10, host=(0, 1, 2, 3, 4), gives="int64")
def non_max_suppression(
    boxes: Any, scores: Any, most: Any = None, overlap: Any = None, least: Any = None, *, center_point_box: int = 0
) -> Any:
    """(batch, class, box) of the boxes with the best scores that overlap no better one of their class; on the host."""
    most = int(np.ravel(most)[0]) if most is not None and most.size else 0
    overlap = float(np.ravel(overlap)[0]) if overlap is not None and overlap.size else 0.0
    least = float(np.ravel(least)[0]) if least is not None and least.size else -np.inf
    found: list[tuple[int, int, int]] = []
    for b in range(scores.shape[0]):
        one = boxes[b].astype(np.float64)
        if center_point_box:
            low, high = one[:, :2] - one[:, 2:] / 2, one[:, :2] + one[:, 2:] / 2
        else:
            low, high = np.minimum(one[:, :2], one[:, 2:]), np.maximum(one[:, :2], one[:, 2:])
        area = np.prod(high - low, 1)
        for k in range(scores.shape[1]):
            waiting = np.argsort(-scores[b, k], kind="stable")
            waiting, taken = waiting[scores[b, k][waiting] > least], 0
            while waiting.size and taken < most:
                best, waiting = waiting[0], waiting[1:]
                found.append((b, k, int(best)))
                taken += 1
                sides = np.maximum(0, np.minimum(high[best], high[waiting]) - np.maximum(low[best], low[waiting]))
                both = np.prod(sides, 1)
                union = area[best] + area[waiting] - both
                waiting = waiting[both <= overlap * union]
    return np.array(found, np.int64).reshape(-1, 3)
