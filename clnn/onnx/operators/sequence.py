"""Sequences: lists of values, of which each has its own shape."""

from __future__ import annotations

from typing import Any

import numpy as np

from ...errors import OutOfRangeError, ShapeError
from ...tensor import concat
from ..registry import Context, operator
from .elementwise import CASTS
from .shape import axes_of, numbers


def place(sequence: list[Any], at: Any, more: int = 0) -> int:
    """A position in a sequence, counted from its end where it is negative; `more` behind the last one."""
    n, i = len(sequence), int(np.ravel(at)[0])
    if not -n <= i < n + more:
        raise OutOfRangeError(f"a sequence of {n} has no place {i}")
    return i + n if i < 0 else i


@operator("SequenceEmpty", 11, gives="sequence")
def sequence_empty(c: Context, *, dtype: int = 1) -> Any:
    if dtype not in CASTS:
        raise ShapeError(f"type {dtype} is not known here")
    return []


@operator("SequenceConstruct", 11, gives="sequence")
def sequence_construct(c: Context, *xs: Any) -> Any:
    return [*c.values]


@operator("SequenceAt", 11, host=(1,))
def sequence_at(c: Context, sequence: Any, at: Any) -> Any:
    return sequence[place(sequence, at)]


@operator("SequenceLength", 11, gives="int64")
def sequence_length(c: Context, sequence: Any) -> Any:
    return np.array(len(sequence), np.int64)


@operator("SequenceInsert", 11, host=(2,), gives="sequence")
def sequence_insert(c: Context, sequence: Any, x: Any, at: Any = None) -> Any:
    i = len(sequence) if at is None else place(sequence, at, 1)
    return [*sequence[:i], c.values[1], *sequence[i:]]


@operator("SequenceErase", 11, host=(1,), gives="sequence")
def sequence_erase(c: Context, sequence: Any, at: Any = None) -> Any:
    i = len(sequence) - 1 if at is None else place(sequence, at)
    return [*sequence[:i], *sequence[i + 1 :]]


@operator("ConcatFromSequence", 11)
def concat_from_sequence(c: Context, sequence: Any, *, axis: int, new_axis: int = 0) -> Any:
    if not sequence:
        raise ShapeError("nothing to join: the sequence is empty")
    xs = [made.data for made in sequence]
    c.gives(sequence[0].type)
    if new_axis:
        (at,) = axes_of(xs[0].ndim + 1, [axis])
        xs = [x.reshape((*x.shape[:at], 1, *x.shape[at:])) for x in xs]
    if all(isinstance(x, np.ndarray) for x in xs):
        return np.concatenate(xs, axis)
    return concat([c.tensor(x) for x in xs], axis)


@operator("SplitToSequence", 11, host=(1,), gives="sequence")
def split_to_sequence(c: Context, x: Any, sizes: Any = None, *, axis: int = 0, keepdims: int = 1) -> Any:
    (a,) = axes_of(x.ndim, [axis])
    n = x.shape[a]
    each = [1] * n if sizes is None else numbers(sizes)
    if sizes is not None and not sizes.ndim:
        each = [min(each[0], n - i) for i in range(0, n, each[0])] if each[0] > 0 else [-1]
    if sum(each) != n or min(each, default=0) < 0:
        raise ShapeError(f"sizes {each} do not divide axis {axis} of an array of shape {x.shape}")
    found, start = [], 0
    for size in each:
        part = x[(*(slice(None),) * a, slice(start, start + size))]
        if sizes is None and not keepdims:
            part = part.reshape((*x.shape[:a], *x.shape[a + 1 :]))
        found.append(c.values[0]._replace(data=part))
        start += size
    return found
