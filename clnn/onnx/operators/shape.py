"""Shapes: they are values of the host, so that what is made of them vanishes; and moving elements without arithmetic."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from ... import arrays, functions
from ...errors import ShapeError
from ...tensor import Tensor, concat
from ..registry import ALL, Context, operator
from ..run import check_host


def axes_of(ndim: int, axes: Sequence[int]) -> list[int]:
    """Axes counted from 0. ShapeError for one that there is not, or that stands twice."""
    found = [int(a) + ndim if a < 0 else int(a) for a in axes]
    if any(not 0 <= a < ndim for a in found) or len(set(found)) < len(found):
        raise ShapeError(f"axes {list(map(int, axes))} of an array with {ndim} axes")
    return found


def numbers(x: Any) -> list[int]:
    """The whole numbers in an array."""
    return [int(v) for v in np.ravel(x)]


@operator("Identity", 1)
def identity(c: Context, x: Any) -> Any:
    return c.values[0]


@operator("Shape", 1, gives="int64")
def shape(c: Context, x: Any, *, start: int = 0, end: int | None = None) -> Any:
    n = len(x.shape)
    start, end = (min(max(v + n if v < 0 else v, 0), n) for v in (start, n if end is None else end))
    return np.array(x.shape[start:end], np.int64)


@operator("Size", 1, gives="int64")
def size(c: Context, x: Any) -> Any:
    return np.array(math.prod(x.shape), np.int64)


@operator("Reshape", 5, host=(1,))
def reshape(c: Context, x: Any, shape: Any, *, allowzero: int = 0) -> Any:
    wanted = [x.shape[i] if s == 0 and not allowzero else s for i, s in enumerate(numbers(shape))]
    return x.reshape(wanted)


@operator("Flatten", 1)
def flatten(c: Context, x: Any, *, axis: int = 1) -> Any:
    axis = axis + x.ndim if axis < 0 else axis
    return x.reshape((math.prod(x.shape[:axis]), math.prod(x.shape[axis:])))


@operator("Squeeze", 13, host=(1,))
def squeeze(c: Context, x: Any, axes: Any = None) -> Any:
    given = [a for a, s in enumerate(x.shape) if s == 1] if axes is None else axes_of(x.ndim, numbers(axes))
    if any(x.shape[a] != 1 for a in given):
        raise ShapeError(f"not all of the axes {given} of an array of shape {x.shape} have length 1")
    return x.reshape([s for a, s in enumerate(x.shape) if a not in given])


@operator("Squeeze", 1)
def squeeze_by_attribute(c: Context, x: Any, *, axes: Any = None) -> Any:
    return squeeze(c, x, axes)


@operator("Unsqueeze", 13, host=(1,))
def unsqueeze(c: Context, x: Any, axes: Any) -> Any:
    given = axes_of(x.ndim + np.size(axes), numbers(axes))
    rest = iter(x.shape)
    return x.reshape([1 if a in given else next(rest) for a in range(x.ndim + len(given))])


@operator("Unsqueeze", 1)
def unsqueeze_by_attribute(c: Context, x: Any, *, axes: Any) -> Any:
    return unsqueeze(c, x, axes)


@operator("Transpose", 1)
def transpose(c: Context, x: Any, *, perm: Any = None) -> Any:
    perm = [*range(x.ndim)][::-1] if perm is None else perm
    if sorted(perm) != [*range(x.ndim)]:
        raise ShapeError(f"perm {perm} is no order of the {x.ndim} axes of an array of shape {x.shape}")
    return x if perm == [*range(x.ndim)] else x.transpose(perm)


@operator("Concat", 4)
def concatenate(c: Context, *xs: Any, axis: int) -> Any:
    if c.all_host():
        return np.concatenate(xs, axis)
    return concat([c.tensor(x) for x in xs], axis)


def split_into(c: Context, x: Any, sizes: Any, axis: int) -> tuple[Any, ...]:
    (axis,) = axes_of(x.ndim, [axis])
    n, parts = x.shape[axis], len(c.outputs)
    if sizes is None:
        each = -(-n // parts)
        sizes = [min(each, n - each * i) for i in range(parts)]
    if sum(sizes) != n or min(sizes) < 0 or len(sizes) != parts:
        raise ShapeError(
            f"sizes {[*sizes]} do not divide axis {axis} of an array of shape {x.shape} into {parts} parts"
        )
    found, start = [], 0
    c.gives(*[c.types[0]] * parts)
    for one in sizes:
        found.append(x[(*(slice(None),) * axis, slice(start, start + one))])
        start += one
    return tuple(found)


@operator("Split", 13, host=(1,))
def split(c: Context, x: Any, sizes: Any = None, *, axis: int = 0, num_outputs: int = 0) -> Any:
    if sizes is None and num_outputs and num_outputs != len(c.outputs):
        raise ShapeError(f"num_outputs is {num_outputs}, and there are {len(c.outputs)} outputs")
    return split_into(c, x, None if sizes is None else numbers(sizes), axis)


@operator("Split", 2)
def split_by_attribute(c: Context, x: Any, *, axis: int = 0, split: Any = None) -> Any:
    return split_into(c, x, split, axis)


@operator("Slice", 10, host=(1, 2, 3, 4))
def slice_(c: Context, x: Any, starts: Any, ends: Any, axes: Any = None, steps: Any = None) -> Any:
    starts, ends = numbers(starts), numbers(ends)
    places = axes_of(x.ndim, range(len(starts)) if axes is None else numbers(axes))
    steps = [1] * len(starts) if steps is None else numbers(steps)
    if not len(starts) == len(ends) == len(places) == len(steps) or 0 in steps:
        raise ShapeError(f"starts {starts}, ends {ends}, axes {places} and steps {steps} do not go together")
    key = [slice(None)] * x.ndim
    for start, end, a, step in zip(starts, ends, places, steps):
        n = x.shape[a]
        start, end = (v + n if v < 0 else v for v in (start, end))
        if step > 0:
            key[a] = slice(min(max(start, 0), n), min(max(end, 0), n), step)
        else:
            # Unlike Python's, what starts in front of all elements starts at the first
            start, end = min(max(start, 0), n - 1), min(max(end, -1), n - 1)
            key[a] = slice(start, None if end < 0 else end, step) if n else slice(0, 0)
    return x if all(k in (slice(None), slice(0, s, 1)) for k, s in zip(key, x.shape)) else x[tuple(key)]


@operator("Slice", 1)
def slice_by_attributes(c: Context, x: Any, *, starts: Any, ends: Any, axes: Any = None) -> Any:
    return slice_(c, x, np.array(starts), np.array(ends), None if axes is None else np.array(axes))


@operator("Expand", 8, host=(1,))
def expand(c: Context, x: Any, shape: Any) -> Any:
    target = np.broadcast_shapes(tuple(x.shape), tuple(numbers(shape)))
    return np.broadcast_to(x, target) if isinstance(x, np.ndarray) else x.broadcast_to(target)


@operator("Tile", 6, host=(1,))
def tile(c: Context, x: Any, repeats: Any) -> Any:
    times = numbers(repeats)
    if len(times) != x.ndim or min(times, default=0) < 0:
        raise ShapeError(f"repeats {times} do not fit an array of shape {x.shape}")
    if isinstance(x, np.ndarray):
        check_host([s * t for s, t in zip(x.shape, times)], "an array")
        return np.tile(x, times)
    return x if all(t == 1 for t in times) else arrays.tile(x, times)


@operator("ConstantOfShape", 9, host=(0,))
def constant_of_shape(c: Context, shape: Any, *, value: Any = None) -> Any:
    value = np.zeros(1, np.float32) if value is None else value
    c.gives(value.dtype.name)
    sizes = numbers(shape)
    if min(sizes, default=0) < 0 or value.size != 1:
        raise ShapeError(f"a constant of shape {sizes} from {value.size} values")
    return np.broadcast_to(value.reshape(()), sizes)


@operator("Range", 11, host=ALL)
def range_(start: Any, limit: Any, delta: Any) -> Any:
    a, b, step = (x.reshape(()).item() for x in (start, limit, delta))
    if step == 0:
        raise ShapeError("the step of a Range is 0")
    n = max(0, math.ceil((b - a) / step))
    check_host([n], "a Range")
    return (np.arange(n) * delta + start).astype(start.dtype).reshape(n)


@operator("DepthToSpace", 1)
def depth_to_space(x: Tensor, *, blocksize: int, mode: str = "DCR") -> Tensor:
    n, channels, h, w = x.shape
    b, depth = blocksize, channels // (blocksize * blocksize)
    if mode == "DCR":
        y = x.reshape(n, b, b, depth, h, w).transpose(0, 3, 4, 1, 5, 2)
    else:
        y = x.reshape(n, depth, b, b, h, w).transpose(0, 1, 4, 2, 5, 3)
    return y.reshape(n, depth, h * b, w * b)


@operator("SpaceToDepth", 1)
def space_to_depth(x: Tensor, *, blocksize: int) -> Tensor:
    n, channels, h, w = x.shape
    b = blocksize
    y = x.reshape(n, channels, h // b, b, w // b, b).transpose(0, 3, 5, 1, 2, 4)
    return y.reshape(n, channels * b * b, h // b, w // b)


def padded(c: Context, x: Any, pads: Sequence[int], mode: str, value: Any, axes: Sequence[int] | None = None) -> Any:
    """x with more elements, or with negative numbers fewer, before and after each axis."""
    places = range(x.ndim) if axes is None else axes_of(x.ndim, axes)
    if len(pads) != 2 * len(places) or mode not in ("constant", "edge", "reflect", "wrap"):
        raise ShapeError(f"pads {[*pads]} in mode {mode!r} do not fit an array of shape {x.shape}")
    key = [slice(None)] * x.ndim
    amounts = [(0, 0)] * x.ndim
    for a, before, after in zip(places, pads[: len(places)], pads[len(places) :]):
        key[a] = slice(max(0, -before), x.shape[a] - max(0, -after))
        amounts[a] = max(0, before), max(0, after)
    if any(k != slice(0, s) for k, s in zip(key, x.shape)):
        x = x[tuple(key)]
    if not any(sum(pair) for pair in amounts):
        return x
    if isinstance(x, np.ndarray):
        check_host([s + sum(pair) for s, pair in zip(x.shape, amounts)], "an array")
        how: Any = {"mode": mode} | ({"constant_values": value} if mode == "constant" else {})
        return np.pad(x, amounts, **how)
    for a, (before, after) in enumerate(
        amounts
    ):  # one axis after the other, as rows by their numbers or between constants
        n = x.shape[a]
        if not before + after:
            continue
        if mode != "constant":
            if n == 0:
                raise ShapeError(f"mode {mode!r} needs elements, and the shape is {x.shape}")
            at = np.pad(np.arange(n), (before, after), mode)  # type: ignore[call-overload]
            x = arrays.take(x, c.tensor(at), a)
        else:
            parts = [
                c.tensor(np.broadcast_to(np.asarray(value, x.dtype), (*x.shape[:a], m, *x.shape[a + 1 :])))
                for m in (before, after)
            ]
            x = concat([*parts[: before > 0], x, *parts[1 : 1 + (after > 0)]], a)
    return x


@operator("Pad", 11, host=(1, 2, 3))
def pad(c: Context, x: Any, pads: Any, value: Any = None, axes: Any = None, *, mode: str = "constant") -> Any:
    value = 0 if value is None else value.reshape(()).item()
    x = c.tensor(x) if c.types[0] == "float32" and isinstance(x, np.ndarray) and x.size > 4096 else x
    if isinstance(x, Tensor) and mode == "constant" and axes is None and 3 <= x.ndim <= 5 and x.dtype != np.int32:
        n, amounts = x.ndim, numbers(pads)
        outside = [amounts[i] for i in (0, 1, n, n + 1)] if len(amounts) == 2 * n else [1]
        if not any(outside) and min(amounts) >= 0:
            return functions.pad(x, [(b, e) for b, e in zip(amounts[2:n], amounts[n + 2 :])], "constant", float(value))
    return padded(c, x, numbers(pads), mode, value, None if axes is None else numbers(axes))


@operator("Pad", 2)
def pad_by_attributes(c: Context, x: Any, *, pads: Any, value: float = 0.0, mode: str = "constant") -> Any:
    return pad(c, x, np.array(pads), np.array(value, np.float32), mode=mode)
