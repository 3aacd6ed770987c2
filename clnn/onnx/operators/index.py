"""Elements by their numbers: gathering, choosing, and what is found at run time."""

from __future__ import annotations

from typing import Any

import numpy as np

from ... import arrays
from ...errors import OutOfRangeError
from ..registry import Context, operator
from ..run import check_host
from .elementwise import CASTS
from .shape import axes_of


@operator("Gather", 1)
def gather(c: Context, x: Any, index: Any, *, axis: int = 0) -> Any:
    (axis,) = axes_of(x.ndim, [axis])
    if isinstance(index, np.ndarray):
        n = x.shape[axis]
        if index.size and not -n <= index.min() <= index.max() < n:
            raise OutOfRangeError(
                f"there is no element {index.min()} or {index.max()} along axis {axis} of shape {x.shape}"
            )
        index = np.where(index < 0, index + n, index)
        if isinstance(x, np.ndarray):
            return np.take(x, index, axis)
        if index.ndim == 0:
            return x[(*(slice(None),) * axis, int(index))]
    return arrays.take(c.tensor(x), c.tensor(index), axis)


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
    return np.eye(*x.shape, k=k).astype(kind)
