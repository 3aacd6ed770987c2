"""Joining elements over axes: what sums, means, largest and smallest elements, and gradients of broadcasts are made of."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..checks import whole_numbers
from ..errors import ShapeError
from .array import Array, check_float, empty, fill
from .rows import by_groups, group_of
from .trace import op

Axis = int | Sequence[int] | None  # one axis, several, or all
CHUNK = 1024  # elements that a work-item joins at most; another launch joins the chunks (long sums: kernels/common.cl)


def normal_axes(ndim: int, axis: Axis) -> tuple[int, ...]:
    """Axes as sorted numbers from 0; None means all."""
    if axis is None:
        return tuple(range(ndim))
    axes = whole_numbers("axis", axis)
    if outside := [a for a in axes if not -ndim <= a < ndim]:
        raise ShapeError(f"axis {outside[0]} is out of range for an array of {ndim} axes")
    found = sorted({a % ndim for a in axes})
    if len(found) != len(axes):
        raise ShapeError(f"axes {axes} name one axis twice")
    return tuple(found)


def lines(what: str, x: Array, axis: int, others: str = "") -> tuple[int, int, int, int]:
    """x as (outer, n, inner) around the one axis that `what` is along, and that axis counted from 0. `others`: what else it
    takes, for the error."""
    axes = normal_axes(x.ndim, axis)
    if len(axes) != 1:
        raise ShapeError(f"{what} is along one axis{others} of an array of shape {x.shape}, and {axis!r} was given")
    (a,) = axes
    return math.prod(x.shape[:a]), x.shape[a], math.prod(x.shape[a + 1 :]), a


def _one(x: Array, kind: str, outer: int, n: int, inner: int, scale: float) -> Array:
    """x as (outer, n, inner), joined over n, times scale; no elements make 0, and 1 as a product."""
    if n == 0:
        return fill(empty(x.device, (outer * inner,), x.dtype), float(kind == "prod"))
    extra: dict[str, Any] = {} if kind == "sum" else {kind.upper(): 1}
    while True:
        chunks = -(-n // CHUNK)
        y = empty(x.device, (outer * chunks * inner,), x.dtype)
        factor = scale if chunks == 1 else 1.0
        along = min(n, CHUNK) if inner == 1 else 1
        size, local, group = by_groups(x.device, along, y.size, "reduce", "reduce", x.real, **extra)
        x.device.launch(
            "reduce", "reduce", size, outer, n, inner, CHUNK, chunks, x.block, y.block, factor,
            local=local, real=x.real, **extra, **group,
        )  # fmt: skip
        if chunks == 1:
            return y
        x, n = y, chunks


def reduced(x: Array, kind: str, axes: tuple[int, ...], scale: float = 1.0) -> Array:
    """x joined over neighbouring groups of axes, last group first; the shape keeps ones."""
    shape = list(x.shape)
    result = x
    while axes:
        first = last = axes[-1]
        while first - 1 in axes:
            first -= 1
        axes = tuple(a for a in axes if a < first)
        outer, n, inner = math.prod(shape[:first]), math.prod(shape[first : last + 1]), math.prod(shape[last + 1 :])
        result = _one(result, kind, outer, n, inner, 1.0 if axes else scale)
        shape[first : last + 1] = [1] * (last + 1 - first)
    return result.reshaped(shape) if result is not x else result


def sum_to(x: Array, shape: tuple[int, ...]) -> Array:
    """x summed over the axes along which `shape` was broadcast to it."""
    if x.shape == shape:
        return x
    lead = x.ndim - len(shape)
    axes = tuple(range(lead)) + tuple(lead + i for i, s in enumerate(shape) if s == 1 and x.shape[lead + i] != 1)
    return reduced(x, "sum", axes).reshaped(shape)


@op
def argmax(x: Array, axis: int | None = -1) -> Array:
    """The position of the first largest element along `axis`, or with None among all, as int32; NaN counts as largest."""
    check_float("argmax", x)
    if axis is None:
        x, axis = x.reshaped((x.size,)), 0
    outer, n, inner, a = lines("argmax", x, axis, ", or with None over all elements,")
    if n == 0:
        raise ShapeError(f"argmax over no elements: an array of shape {x.shape} along axis {axis}")
    along = n if inner == 1 else 1
    x.device.check_turns(n // group_of(x.device, along), f"argmax over {n:,} elements")
    y = empty(x.device, x.shape[:a] + x.shape[a + 1 :], np.int32)
    size, local, group = by_groups(x.device, along, y.size, "reduce", "argmax", x.real)
    x.device.launch("reduce", "argmax", size, outer, n, inner, x.block, y.block, local=local, real=x.real, **group)
    return y
