"""Shapes: reshape, transpose, slices, broadcasting, rows by index."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

from ..checks import indices_of, whole, whole_numbers
from ..errors import OutOfRangeError, ShapeError
from ..gemm import Scale
from ..runtime.device import int_vector
from .array import Array, Backward, Flow, Sink, block_of, check_together, empty, vector8
from .elementwise import TYPES, broadcast_shape, broadcast_strides, scale_add
from .reduce import sum_to
from .trace import op

RUN = 1 << 12  # elements that a CPU's work-item moves, about


@op
def reshape(x: Array, shape: Sequence[int]) -> tuple[Array, Backward]:
    """The same elements in another shape; one axis may be -1. Nothing is copied."""
    shape = list(shape)
    if shape.count(-1) > 1 or any(s < -1 for s in shape):
        raise ShapeError(f"reshape to {tuple(shape)}: sizes are 0 or more, and one may be -1")
    if -1 in shape:
        known = -math.prod(shape)
        shape[shape.index(-1)] = x.size // known if known else 0
    if math.prod(shape) != x.size:
        raise ShapeError(f"an array of shape {x.shape} has {x.size} elements and cannot become {tuple(shape)}")
    y = x.reshaped(shape)

    def backward(dy: Array) -> Iterator[Flow]:
        yield x, dy.reshaped(x.shape)

    return y, backward


def _runs(shape: Sequence[int], strides: Sequence[int]) -> tuple[int, int, int] | None:
    """(outer, run, pitch) where a view is `outer` runs of neighbours, one every `pitch` elements; None where it is not."""
    axes: list[tuple[int, int]] = []  # (size, stride), neighbouring axes joined where they are one
    for size, stride in zip(shape, strides):
        if size != 1:
            if axes and axes[-1][1] == size * stride:
                axes[-1] = (axes[-1][0] * size, stride)
            else:
                axes.append((size, stride))
    if not axes or axes[-1][1] != 1:
        axes.append((1, 1))
    if len(axes) > 2 or axes[0][1] < 0:
        return None
    (outer, pitch), (run, _) = axes if len(axes) == 2 else ((1, 0), axes[0])
    return outer, run, pitch


def _move(
    kernel: str, like: Array, shape: Sequence[int], strides: Sequence[int], offset: int, *blocks: Any, **defines: Any
) -> None:
    """Launch `kernel` of kernels/shape.cl ("copy", "scatter", "backward") over a view of `shape` into a larger array."""
    device, n = like.device, math.prod(shape)
    runs = _runs(shape, strides)
    if runs is None or (not device.long_loops and runs[1] < device.grid((1, 1))[1][0]):
        device.launch(
            "shape", f"strided_{kernel}", (n,), n, vector8(shape, 1), vector8(strides, 0), offset, *blocks, **defines
        )
    elif n:
        outer, run, pitch = runs
        each, size, local = (1, 1), (run, outer), None
        if device.long_loops:
            each = min(run, RUN), max(1, RUN // run)
            size, local = (-(-run // each[0]), -(-outer // each[1])), (1, 1)
        device.launch(
            "shape", f"runs_{kernel}", size, outer, run, pitch, offset, int_vector(each), *blocks,
            local=local, **defines,
        )  # fmt: skip


def _strided(x: Array, shape: Sequence[int], strides: Sequence[int], offset: int) -> Array:
    y = empty(x.device, shape, x.dtype)
    y.made_by = x.made_by
    _move("copy", x, shape, strides, offset, x.block, y.block, ELEMENT=TYPES[x.dtype])
    return y


def contiguous_strides(shape: Sequence[int]) -> list[int]:
    return [math.prod(shape[i + 1 :]) for i in range(len(shape))]


@op
def transpose(x: Array, axes: Sequence[int] | None = None) -> tuple[Array, Backward]:
    """Axes in another order, reversed if none is given."""
    order = [a + x.ndim if a < 0 else a for a in (range(x.ndim)[::-1] if axes is None else axes)]
    if sorted(order) != list(range(x.ndim)):
        raise ShapeError(f"transpose: {axes} is no order of the {x.ndim} axes of an array of shape {x.shape}")
    y = _strided(x, [x.shape[a] for a in order], [contiguous_strides(x.shape)[a] for a in order], 0)

    def backward(dy: Array) -> Iterator[Flow]:
        yield x, transpose(dy, [order.index(a) for a in range(len(order))])[0]

    return y, backward


def one_for_each_axis(x: Array, keys: list[Any], key: Any) -> list[Any]:
    """The parts of `key` with a whole slice for each axis that `...` stands for, or that is not mentioned."""
    used = sum(k is not None and k is not Ellipsis for k in keys)
    if used > x.ndim or sum(k is Ellipsis for k in keys) > 1:
        raise ShapeError(f"index {key!r} has too many parts for an array of shape {x.shape}")
    at = next((i for i, k in enumerate(keys) if k is Ellipsis), len(keys))
    return [*keys[:at], *[slice(None)] * (x.ndim - used), *keys[at + 1 :]]


@op
def take_slice(x: Array, key: Any) -> tuple[Array, Backward]:
    """x[key] for integers, slices, None and `...`."""
    keys = one_for_each_axis(x, list(key) if isinstance(key, tuple) else [key], key)
    shape: list[int] = []
    kept: list[int] = []  # the shape without the axes that None adds, and its strides
    strides: list[int] = []
    offset, axis = 0, 0
    full = contiguous_strides(x.shape)
    for k in keys:
        if k is None:
            shape.append(1)
            continue
        size, stride = x.shape[axis], full[axis]
        if isinstance(k, slice):
            start, stop, step = indices_of(k, size)
            count = len(range(start, stop, step))
            offset += start * stride if count else 0
            shape.append(count)
            kept.append(count)
            strides.append(step * stride)
        elif (number := whole(k)) is not None:
            if not -size <= number < size:
                raise OutOfRangeError(f"index {k} is out of range for axis {axis} of an array of shape {x.shape}")
            offset += number % size * stride
        else:
            raise ShapeError(f"an array is indexed by integers, slices, None and ..., not by {k!r}")
        axis += 1
    y = _strided(x, kept, strides, offset)

    def backward(dy: Array) -> Iterator[Flow]:
        def write(sink: Sink) -> None:
            ours = Scale.constant(x.device, x.dtype, 1, 1)  # gradients of activations are assigned or added
            if sink.scale is not None and sink.scale.table is not ours.table:
                dx = empty(x.device, x.shape, x.dtype)
                write(Sink(dx.block))
                scale_add(dx, sink.out, sink.scale)
                return
            name, saved = sink.derivative or ("linear", None)
            extra: dict[str, Any] = {"ACT": name, **({} if saved is None else {"TIMES_DERIVATIVE": 1})}
            if sink.scale is not None and sink.scale.column == ours.column:
                extra["ACCUMULATE"] = 1
            else:
                x.device.fill_zero(sink.out)
            _move("backward", x, kept, strides, offset, dy.block, block_of(saved), sink.out, real=x.real, **extra)

        yield x, write

    return y.reshaped(shape), backward


@op
def broadcast_to(x: Array, shape: Sequence[int]) -> tuple[Array, Backward]:
    """x repeated along axes of size 1, and along new axes in front."""
    shape = tuple(shape)
    if broadcast_shape("broadcast_to", x.shape, shape) != shape:
        raise ShapeError(f"an array of shape {x.shape} cannot be broadcast to {shape}")
    y = x.reshaped(shape) if x.size == math.prod(shape) else _strided(x, shape, broadcast_strides(x.shape, shape), 0)

    def backward(dy: Array) -> Iterator[Flow]:
        yield x, sum_to(dy, x.shape)

    return y, backward


@op
def concatenate(arrays: Sequence[Array], axis: int = 0) -> tuple[Array, Backward]:
    """Arrays joined along an axis; their other axes are equal."""
    if not arrays:
        raise ShapeError("concatenate needs at least one array")
    check_together("concatenate", *arrays)
    first, (axis,) = arrays[0], whole_numbers("concatenate's axis", axis, many=False)
    if not -first.ndim <= axis < first.ndim:
        raise ShapeError(f"concatenate: axis {axis} is out of range for shapes {[x.shape for x in arrays]}")
    axis %= first.ndim
    if any(x.shape[:axis] + x.shape[axis + 1 :] != first.shape[:axis] + first.shape[axis + 1 :] for x in arrays):
        raise ShapeError(f"concatenate along axis {axis}: shapes {[x.shape for x in arrays]} differ along other axes")
    shape = list(first.shape)
    shape[axis] = sum(x.shape[axis] for x in arrays)
    y = empty(first.device, shape, first.dtype)
    strides, start, starts = contiguous_strides(shape), 0, []
    for x in arrays:
        _move("scatter", x, x.shape, strides, start * strides[axis], x.block, y.block, ELEMENT=TYPES[x.dtype])
        starts.append(start)
        start += x.shape[axis]

    def backward(dy: Array) -> Iterator[Flow]:
        for x, begin in zip(arrays, starts):
            yield x, _strided(dy, x.shape, strides, begin * strides[axis])

    return y, backward
