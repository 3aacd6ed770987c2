"""Nodes for convolution, pooling, upsampling and padding."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from .elementwise import activated, reduced
from .graph import READS, Graph, NoNodes, refs, writes
from .norms import folded, normalised
from .trace import Dim, Op, Ref


def _each(sizes: Sequence[Any]) -> list[tuple[int, ...]]:
    """Sizes trace by trace."""
    traces = next((len(s.sizes) for s in sizes if isinstance(s, Dim)), 1)
    return [*zip(*(s.sizes if isinstance(s, Dim) else (s,) * traces for s in sizes))]


def _pads(op: Op) -> dict[str, Any]:
    """The attributes that say how a window's input is padded."""
    w = op.given["window"]
    if not any(isinstance(n, Dim) and s > 1 for n, s in zip(w.space, w.stride)) or w.rule != "same":
        return {"pads": [*map(int, w.before), *map(int, w.after)]}
    if any(d > 1 for d in w.dilation):
        raise NoNodes(f"{op.title}: how much it pads depends on sizes that are free")
    return {"auto_pad": "SAME_UPPER"}


def _factors(graph: Graph, op: Op) -> tuple[Op | None, Any]:
    """The running statistics by which a convolution is normalised, and its own bias."""
    b, fold = op.given["b"], folded(graph, op.given["factor"])
    if fold is None or b is None or b == Ref(fold.made[1]):
        return fold, None if fold is not None else b
    total = graph.maker(b)  # b factor + shift
    scaled = graph.maker(total.given["a"]) if total is not None and total.name == "binary" else None
    if scaled is None or scaled.name != "binary":
        raise graph.refuse(op, "its bias is none of a layer")
    return fold, scaled.given["a"]


def _reads(graph: Graph, op: Op) -> list[int]:
    fold, b = _factors(graph, op)
    given = tuple(fold.given.values()) if fold is not None else (op.given["factor"],)
    return [*refs((op.given["x"], op.given["w"], b, *given))]


READS["conv"] = READS["conv_transpose"] = _reads


@writes("conv", "conv_transpose")
def _conv(graph: Graph, op: Op) -> str:
    x, w, window = op.given["x"], op.given["w"], op.given["window"]
    dtype = graph.dtype(x)
    fold, b = _factors(graph, op)
    if fold is None and op.given["factor"] is not None:
        raise graph.refuse(op, "its factors are no running statistics of a layer")
    how: dict[str, Any] = {
        "kernel_shape": [*map(int, window.size)],
        "strides": [*map(int, window.stride)],
        "dilations": [*map(int, window.dilation)],
        "group": int(op.given["groups"]),
    }
    if op.name == "conv":
        y = graph.node("Conv", graph.name(x), graph.name(w), graph.name(b), **how, **_pads(op))
    else:
        extras = {
            tuple(
                each[axis]
                - ((each[axes + axis] - 1) * window.stride[axis] + window.dilation[axis] * (window.size[axis] - 1) + 1)
                + each[2 * axes + axis]
                + each[3 * axes + axis]
                for axis in range(axes)
            )
            for axes in (len(window.size),)
            for each in _each([*window.space, *window.out, *window.before, *window.after])
        }
        if len(extras) > 1 or any(isinstance(p, Dim) for p in (*window.before, *window.after)):
            raise NoNodes(f"{op.title}: how much it pads depends on sizes that are free")
        pads = [*map(int, window.before), *map(int, window.after)]
        extra = [*map(int, extras.pop())]
        y = graph.node(
            "ConvTranspose", graph.name(x), graph.name(w), graph.name(b), **how, pads=pads, output_padding=extra
        )
    if fold is not None:
        y = normalised(graph, y, fold, graph.program.values[op.made[0]].shape[1], dtype)
    return activated(graph, y, op.given["activation"], dtype)


# -- pooling ----------------------------------------------------------------------------------------------------------
@writes("pool")
def _pool(graph: Graph, op: Op) -> str:
    x, w, largest = op.given["x"], op.given["window"], op.given["kind"] == "max"
    kind = "MaxPool" if largest else "AveragePool"
    name = graph.name(x)
    how: dict[str, Any] = {"kernel_shape": [*map(int, w.size)], "strides": [*map(int, w.stride)]}
    include = not largest and bool(op.given["include_pad"])
    axes = len(w.size)
    # how far the last window reaches beyond the padding: of the last window's part there nothing counts
    beyond = [
        tuple(
            (each[axes + a] - 1) * w.stride[a] + w.size[a] - each[a] - each[2 * axes + a] - each[3 * axes + a]
            for a in range(axes)
        )
        for each in _each([*w.space, *w.out, *w.before, *w.after])
    ]
    rounded = w.rule == "ceil" and any(isinstance(n, Dim) and s > 1 for n, s in zip(w.space, w.stride))
    if rounded:
        simple = all(a + s <= k for a, s, k in zip(w.after, w.stride, w.size)) and not (
            include and any(w.before + w.after)
        )
        if not simple:
            raise NoNodes(f"{op.title}: what its last window holds depends on sizes that are free")
        how["ceil_mode"] = 1
    if rounded or all(b <= 0 for each in beyond for b in each):
        pads = _pads(op)
        if include and pads.get("pads") != [0] * (2 * axes):
            how["count_include_pad"] = 1
        return graph.node(kind, name, **how, **pads)
    before, after = [*map(int, w.before)], [*map(int, w.after)]
    if include and any(before + after):  # zeros that count, and behind them nothing
        name = graph.node("Pad", name, graph.ints(0, 0, *before, 0, 0, *after))
        before = after = [0] * axes
    pads_after = [a + max(0, b) for a, b in zip(after, beyond[0])]
    return graph.node(kind, name, **how, pads=[*before, *pads_after])


@writes("adaptive_pool")
def _adaptive_pool(graph: Graph, op: Op) -> str:
    x, out, largest = op.given["x"], op.given["out"], op.given["kind"] == "max"
    name, space = graph.name(x), graph.shape(x)[2:]
    if all(n == 1 for n in out):
        return graph.node("GlobalMaxPool" if largest else "GlobalAveragePool", name)
    if any(isinstance(n, Dim) for n in (*space, *out)):
        raise NoNodes(f"{op.title}: its bins depend on sizes that are free")
    if all(n % m == 0 for n, m in zip(space, out)):
        sizes = [n // m for n, m in zip(space, out)]
        return graph.node("MaxPool" if largest else "AveragePool", name, kernel_shape=sizes, strides=sizes)
    for axis, (n, m) in enumerate(zip(space, out), 2):  # the bins of each axis by themselves
        bins = []
        for o in range(m):
            some = graph.node("Slice", name, graph.ints(o * n // m), graph.ints(-((o + 1) * -n // m)), graph.ints(axis))
            bins.append(reduced(graph, "ReduceMax" if largest else "ReduceMean", some, (axis,)))
        name = graph.node("Concat", *bins, axis=axis)
    return name


# -- larger spaces ----------------------------------------------------------------------------------------------------
@writes("upsample")
def _upsample(graph: Graph, op: Op) -> str:
    scales = graph.constant(np.array([1, 1, *op.given["factor"]], np.float32))
    if op.given["mode"] == "nearest":
        how = {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
    else:
        how = {"mode": "linear", "coordinate_transformation_mode": "half_pixel"}
    return graph.node("Resize", graph.name(op.given["x"]), "", scales, **how)


@writes("pad")
def _pad(graph: Graph, op: Op) -> str:
    x, amounts, mode = op.given["x"], op.given["amounts"], op.given["mode"]
    pads = graph.ints(0, 0, *(a for a, _ in amounts), 0, 0, *(b for _, b in amounts))
    if mode == "constant":
        return graph.node("Pad", graph.name(x), pads, graph.constant(op.given["value"], graph.dtype(x)))
    return graph.node("Pad", graph.name(x), pads, mode={"reflect": "reflect", "replicate": "edge"}[mode])
