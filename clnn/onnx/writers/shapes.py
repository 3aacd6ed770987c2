"""Nodes for products of matrices, for shapes, and for elements by their numbers."""

from __future__ import annotations

from typing import Any

import numpy as np

from ...checks import whole
from ...ops.shape import one_for_each_axis
from .elementwise import activated
from .graph import LAST, Graph, writes
from .trace import Dim, Op, Ref


@writes("linear")
def _linear(graph: Graph, op: Op) -> str:
    x, w, b = (op.given[key] for key in ("x", "w", "b"))
    name, weights = graph.name(x), graph.name(w)
    flat = len(graph.shape(x)) == 2
    if flat and (b is not None or op.given["transposed"]):
        how = {"transB": 1} if op.given["transposed"] else {}
        y = graph.node("Gemm", name, weights, graph.name(b), **how)
    else:
        y = graph.node(
            "MatMul", name, graph.node("Transpose", weights, perm=[1, 0]) if op.given["transposed"] else weights
        )
        y = y if b is None else graph.node("Add", y, graph.name(b))
    return activated(graph, y, op.given["activation"], graph.dtype(x))


@writes("matmul")
def _matmul(graph: Graph, op: Op) -> str:
    return graph.node("MatMul", graph.name(op.given["a"]), graph.name(op.given["b"]))


@writes("reshape")
def _reshape(graph: Graph, op: Op) -> str:
    x = op.given["x"]
    return graph.reshape(graph.name(x), graph.shape(x), graph.program.values[op.made[0]].shape)


@writes("transpose")
def _transpose(graph: Graph, op: Op) -> str:
    x, axes = op.given["x"], op.given["axes"]
    n = len(graph.shape(x))
    order = [a % n for a in axes] if axes is not None else [*range(n)][::-1]
    return graph.node("Transpose", graph.name(x), perm=order)


@writes("broadcast_to")
def _broadcast_to(graph: Graph, op: Op) -> str:
    x, shape = op.given["x"], graph.program.values[op.made[0]].shape
    before = graph.shape(x)
    lead = len(shape) - len(before)
    target = [1 if i >= lead and s == before[i - lead] else s for i, s in enumerate(shape)]
    return graph.node("Expand", graph.name(x), graph.shape_of(target))


@writes("concatenate")
def _concatenate(graph: Graph, op: Op) -> str:
    return graph.node("Concat", *map(graph.name, op.given["arrays"]), axis=int(op.given["axis"]))


@writes("take_slice")
def _take_slice(graph: Graph, op: Op) -> str:
    x, key = op.given["x"], op.given["key"]
    shape = graph.shape(x)
    # sizes do not matter here, numbers of axes do
    like = np.broadcast_to(np.zeros(()), [1] * len(shape))
    keys = one_for_each_axis(like, list(key) if isinstance(key, tuple) else [key], key)  # type: ignore[arg-type]
    if x.number in graph.parts and (part := _part(graph, x, keys, op)) is not None:
        return part
    name, axis = graph.name(x), 0
    starts: list[Any] = []
    stops: list[Any] = []
    axes: list[int] = []
    steps: list[int] = []
    single: list[int] = []
    for k in keys:
        if k is None:
            continue
        if isinstance(k, slice):
            step = 1 if k.step is None else k.step
            if isinstance(step, Dim):
                raise graph.refuse(op, "the step of a slice depends on the size of an input")
            if k != slice(None) and (k.start is not None or k.stop is not None or step != 1):
                starts.append((0 if step > 0 else LAST) if k.start is None else k.start)
                stops.append((LAST if step > 0 else -LAST) if k.stop is None else k.stop)
                axes.append(axis)
                steps.append(int(step))
        else:
            at: Any = k if isinstance(k, Dim) else whole(k)
            starts.append(at)
            stops.append(LAST if at == -1 else Dim(tuple(i + 1 for i in at.sizes)) if isinstance(at, Dim) else at + 1)
            axes.append(axis)
            steps.append(1)
            single.append(axis)
        axis += 1
    if len(single) == len(axes) == 1 and not isinstance(starts[0], Dim):
        name = graph.node("Gather", name, graph.constant(starts[0], np.int64), axis=single[0])
        single = []
    else:
        if axes:
            name = graph.node(
                "Slice", name, graph.shape_of(starts), graph.shape_of(stops), graph.ints(*axes), graph.ints(*steps)
            )
        if single:
            name = graph.node("Squeeze", name, graph.ints(*single))
    # the axes that None adds, as the result counts them
    left = [k is None for k in keys if k is None or isinstance(k, slice)]
    new = [i for i, none in enumerate(left) if none]
    if new:
        name = graph.node("Unsqueeze", name, graph.ints(*new))
    return name if axes or new else graph.node("Identity", name)


def _part(graph: Graph, x: Ref, keys: list[Any], op: Op) -> str | None:
    """The sequence or the state that a slice takes of a recurrent op's result; None where it takes something else."""
    (sequence, states), (first, at, *rest) = graph.parts[x.number], keys
    if any(k != slice(None) for k in (first, *rest)):
        return None
    if isinstance(at, slice):
        whole_one = _less(graph.shape(x)[1], len(states)) == graph.program.values[op.made[0]].shape[1]
        return sequence if at.start is None and at.step is None and whole_one and sequence else None
    if at is not None and not isinstance(at, Dim) and -len(states) <= at < 0:
        return graph.node("Squeeze", states[at], graph.ints(1))
    return None


def _less(size: Any, by: int) -> Any:
    return Dim(tuple(n - by for n in size.sizes)) if isinstance(size, Dim) else size - by


# -- by number --------------------------------------------------------------------------------------------------------
@writes("take")
def _take(graph: Graph, op: Op) -> str:
    axis = int(op.given["axis"])
    return graph.node("Gather", graph.name(op.given["x"]), graph.name(op.given["index"]), axis=axis)


@writes("gather")
def _gather(graph: Graph, op: Op) -> str:
    axis = int(op.given["axis"])
    return graph.node("GatherElements", graph.name(op.given["x"]), graph.name(op.given["index"]), axis=axis)


@writes("scatter_add")
def _scatter_add(graph: Graph, op: Op) -> str:
    x, index, values, axis = (op.given[key] for key in ("x", "index", "values", "axis"))
    n, m = len(graph.shape(x)), len(graph.shape(index))
    a = axis % n
    if graph.opset < 16:
        raise graph.refuse(op, "ScatterND adds from opset 16 on: give opset=16 or more")
    to_front, back = [a, *(i for i in range(n) if i != a)], [*range(1, a + 1), 0, *range(a + 1, n)]
    flat = graph.node("Transpose", graph.name(x), perm=to_front)
    added = graph.node("Transpose", graph.name(values), perm=[*range(a, a + m), *range(a), *range(a + m, n + m - 1)])
    at = graph.node("Unsqueeze", graph.cast(graph.name(index), np.int64), graph.ints(m))
    return graph.node("Transpose", graph.node("ScatterND", flat, at, added, reduction="add"), perm=back)


@writes("cumulative_sum")
def _cumulative_sum(graph: Graph, op: Op) -> str:
    axis = graph.constant(int(op.given["axis"]), np.int64)
    return graph.node("CumSum", graph.name(op.given["x"]), axis, reverse=int(op.given["reverse"]))


@writes("sort")
def _sort(graph: Graph, op: Op) -> tuple[str, ...]:
    x = op.given["x"]
    n = graph.size(graph.shape(x)[-1])
    values, at = graph.several("TopK", graph.name(x), n, outputs=2, axis=-1, largest=int(op.given["descending"]))
    return values, graph.cast(at, np.int32)
