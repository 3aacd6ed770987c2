"""Sums, extremes and the like over axes, and where the largest elements are."""

from __future__ import annotations

from typing import Any

import numpy as np

from ... import arrays
from ...tensor import Tensor, concat, function
from ..graph import FLOATS as ONNX_FLOATS
from ..registry import Context, of_dtype, operator
from .elementwise import truncated
from .shape import axes_of, numbers


def _sum(x: Any, axes: Any) -> Any:
    return x.sum(axes, keepdims=True)


def _log_sum_exp(x: Tensor, axes: Any) -> Tensor:
    return arrays.logsumexp(x, axes, keepdims=True) if x.size else function(_sum(x, axes), "log")


def extreme(name: str) -> Any:
    """max or min; over no elements the least or largest number."""

    def reduce(x: Tensor, axes: Any) -> Tensor:
        if all(x.shape[a] for a in axes):
            return getattr(x, name)(axes, keepdims=True)
        return _sum(x, axes) + (-np.inf if name == "max" else np.inf)

    return reduce


def _limits(x: np.ndarray) -> tuple[Any, Any]:
    """The least and the largest value of an array's type."""
    if x.dtype.kind in "iu":
        return np.iinfo(x.dtype).min, np.iinfo(x.dtype).max
    return (False, True) if x.dtype == bool else (-np.inf, np.inf)


def _mean(x: np.ndarray, **how: Any) -> Any:
    """The mean; of whole numbers rounded to 0."""
    total = np.asarray(np.sum(x, **how))
    return truncated(total, np.asarray(x.size // max(1, total.size), total.dtype))


# name: of tensors with axes that stay as 1, of arrays
REDUCTIONS: dict[str, tuple[Any, Any]] = {
    "ReduceSum": (_sum, np.sum),
    "ReduceMean": (lambda x, axes: x.mean(axes, keepdims=True), _mean),
    "ReduceProd": (lambda x, axes: arrays.prod(x, axes, keepdims=True), np.prod),
    "ReduceMax": (extreme("max"), lambda x, **how: np.max(x, initial=_limits(x)[0], **how)),
    "ReduceMin": (extreme("min"), lambda x, **how: np.min(x, initial=_limits(x)[1], **how)),
    "ReduceL1": (lambda x, axes: _sum(function(x, "abs"), axes), lambda x, **how: np.sum(np.abs(x), **how)),
    "ReduceL2": (
        lambda x, axes: function(_sum(function(x, "square"), axes), "sqrt"),
        lambda x, **how: np.sqrt(np.sum(np.square(x, dtype=np.float64), **how)),
    ),
    "ReduceSumSquare": (lambda x, axes: _sum(function(x, "square"), axes), lambda x, **how: np.sum(x * x, **how)),
    "ReduceLogSum": (
        lambda x, axes: function(_sum(x, axes), "log"),
        lambda x, **how: np.log(np.sum(x, dtype=np.float64, **how)),
    ),
    "ReduceLogSumExp": (_log_sum_exp, lambda x, **how: np.logaddexp.reduce(x.astype(np.float64), **how)),
}


def reduced(c: Context, name: str, x: Any, axes: Any, keepdims: int, nothing: int) -> Any:
    """x joined over axes; over none means all of them, or with `nothing` x itself."""
    of_tensor, of_array = REDUCTIONS[name]
    axes = None if axes is None else numbers(axes)
    if not axes and nothing:
        axes = []
    axes = [*range(x.ndim)] if axes is None or (not axes and not nothing) else axes_of(x.ndim, axes)
    if c.types[0] not in ONNX_FLOATS or isinstance(x, np.ndarray):
        x = c.host(0)
        if not axes:
            return np.asarray(of_array(x[None], axis=0)).astype(x.dtype)
        return np.asarray(of_array(x, axis=tuple(axes), keepdims=bool(keepdims))).astype(x.dtype)
    x = c.tensor(x)
    y = of_tensor(x, tuple(axes)) if axes else of_tensor(x.reshape((1, *x.shape)), (0,)).reshape(x.shape)
    return y if keepdims or not axes else y.reshape([s for a, s in enumerate(x.shape) if a not in axes])


def add(name: str, by_input: int) -> None:
    """The entries of a reduction: axes are an attribute first, and an input from operator set `by_input` on."""

    def from_attribute(c: Context, x: Any, *, axes: Any = None, keepdims: int = 1) -> Any:
        return reduced(c, name, x, axes, keepdims, 0)

    def from_input(c: Context, x: Any, axes: Any = None, *, keepdims: int = 1, noop_with_empty_axes: int = 0) -> Any:
        return reduced(c, name, x, axes, keepdims, noop_with_empty_axes)

    operator(name, 1)(from_attribute)
    operator(name, by_input, host=(1,))(from_input)


for _name in REDUCTIONS:
    add(_name, 13 if _name == "ReduceSum" else 18)


def add_arg(name: str, largest: bool) -> None:
    """The entry of ArgMax or ArgMin."""

    def arg(c: Context, x: Any, *, axis: int = 0, keepdims: int = 1, select_last_index: int = 0) -> Any:
        c.gives("int64")
        (axis,) = axes_of(x.ndim, [axis])
        host = isinstance(x, np.ndarray) or c.types[0] not in ("float32", "float64", "float16", "bfloat16")
        x = c.host(0) if host else x
        if select_last_index:
            x = np.flip(x, axis) if host else arrays.flip(x, axis)
        if host:
            at: Any = np.asarray((np.argmax if largest else np.argmin)(x, axis), np.int64)
        else:
            at = x.argmax(axis) if largest else arrays.argmin(x, axis)
        if select_last_index:
            at = (x.shape[axis] - 1) - at
        return at.reshape([*x.shape[:axis], *[1] * bool(keepdims), *x.shape[axis + 1 :]])

    operator(name, 1)(arg)


add_arg("ArgMax", True)
add_arg("ArgMin", False)


@operator("CumSum", 11, host=(1,))
def cumsum(c: Context, x: Any, axis: Any, *, exclusive: int = 0, reverse: int = 0) -> Any:
    (a,) = axes_of(x.ndim, numbers(axis))
    back = (*(slice(None),) * a, slice(None, None, -1))
    if isinstance(x, np.ndarray) or x.dtype == np.int32:
        x = c.host(0)
        x = x[back] if reverse else x
        y: Any = np.cumsum(x, a, dtype=x.dtype)
        y = y - x if exclusive else y
        return y[back] if reverse else y
    x = x[back] if reverse else x
    y = arrays.cumsum(x, a)
    if exclusive:  # not y - x, which would lose digits, and infinities
        n = x.shape[a]
        first = c.tensor(np.broadcast_to(np.zeros((), x.dtype), (*x.shape[:a], min(n, 1), *x.shape[a + 1 :])))
        y = concat([first, y[(*(slice(None),) * a, slice(0, max(0, n - 1)))]], a)
    return y[back] if reverse else y


@operator("Hardmax", 13)
def hardmax(x: Tensor, *, axis: int = -1) -> Tensor:
    (axis,) = axes_of(x.ndim, [axis])
    order = [*(a for a in range(x.ndim) if a != axis), axis]
    last = x.transpose(order)
    y = arrays.one_hot(last.argmax(-1), x.shape[axis])
    return of_dtype(y, x.dtype).transpose([order.index(a) for a in range(x.ndim)])


@operator("Hardmax", 1)
def hardmax_of_rest(x: Tensor, *, axis: int = 1) -> Tensor:
    axis = axis + x.ndim if axis < 0 else axis
    rows = int(np.prod(x.shape[:axis], dtype=np.int64))
    return hardmax(x.reshape(rows, -1)).reshape(x.shape)
