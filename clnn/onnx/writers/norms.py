"""Nodes for normalisation: those that ONNX has, and what others are made of."""

from __future__ import annotations

from typing import Any

import numpy as np

from .elementwise import activated, reduced
from .graph import READS, Graph, refs, writes
from .trace import Dim, Op, Ref


# -- by channel -------------------------------------------------------------------------------------------------------
def folded(graph: Graph, a: Any) -> Op | None:
    """The `fold` of running statistics that a factor of each channel comes from."""
    maker = graph.maker(a)
    return maker if maker is not None and maker.name == "fold" and maker.made[0] == a.number else None


def normalised(graph: Graph, x: str, of: Op, channels: int, dtype: Any) -> str:
    """x by the running statistics that `of` folds."""
    gamma, beta = of.given["gamma"], of.given["beta"]
    scale = graph.constant(np.ones(channels), dtype) if gamma is None else graph.name(gamma)
    shift = graph.constant(np.zeros(channels), dtype) if beta is None else graph.name(beta)
    mean, variance = graph.name(of.given["mean"]), graph.name(of.given["variance"])
    return graph.node("BatchNormalization", x, scale, shift, mean, variance, epsilon=float(of.given["epsilon"]))


def _reads_affine(graph: Graph, op: Op) -> list[int]:
    fold = folded(graph, op.given["a"])
    if fold is None or op.given["b"] != Ref(fold.made[1]):
        return [*refs(tuple(op.given.values()))]
    return [op.given["x"].number, *refs(tuple(fold.given.values()))]


READS["channel_affine"] = _reads_affine


@writes("channel_affine")
def _channel_affine(graph: Graph, op: Op) -> str:
    x, a, b = (op.given[key] for key in ("x", "a", "b"))
    fold, shape, dtype = folded(graph, a), graph.shape(x), graph.dtype(x)
    if fold is None or b != Ref(fold.made[1]):
        raise graph.refuse(op, "its factors are no running statistics of a layer")
    y = normalised(graph, graph.name(x), fold, shape[1], dtype)
    return activated(graph, y, op.given["activation"], dtype)


# -- by sample --------------------------------------------------------------------------------------------------------
def _fixed(graph: Graph, op: Op, shape: Any) -> list[int]:
    if any(isinstance(size, Dim) for size in shape):
        raise graph.refuse(op, "the size of an axis that it normalises over is free")
    return [int(size) for size in shape]


@writes("layer_norm")
def _layer_norm(graph: Graph, op: Op) -> str:
    x, gamma, beta, axes = (op.given[key] for key in ("x", "gamma", "beta", "axes"))
    dtype = graph.dtype(x)
    last = graph.shape(x)[-axes:]
    scale = graph.name(gamma) or graph.constant(np.ones(_fixed(graph, op, last)), dtype)
    how = {"axis": -int(axes), "epsilon": float(op.given["epsilon"])}
    y = graph.node("LayerNormalization", graph.name(x), scale, graph.name(beta), **how)
    return activated(graph, y, op.given["activation"], dtype)


@writes("rms_norm")
def _rms_norm(graph: Graph, op: Op) -> str:
    x, gamma, axes, epsilon = (op.given[key] for key in ("x", "gamma", "axes", "epsilon"))
    name, dtype = graph.name(x), graph.dtype(x)
    if graph.opset >= 23:
        scale = graph.name(gamma) or graph.constant(np.ones(_fixed(graph, op, graph.shape(x)[-axes:])), dtype)
        y = graph.node("RMSNormalization", name, scale, axis=-int(axes), epsilon=float(epsilon))
    else:
        mean = reduced(graph, "ReduceMean", graph.node("Mul", name, name), tuple(range(-int(axes), 0)))
        root = graph.node("Sqrt", graph.node("Add", mean, graph.constant(epsilon, dtype)))
        y = graph.node("Div", name, root)
        y = y if gamma is None else graph.node("Mul", y, graph.name(gamma))
    return activated(graph, y, op.given["activation"], dtype)


@writes("group_norm", "instance_norm")
def _group_norm(graph: Graph, op: Op) -> str:
    x, gamma, beta = (op.given[key] for key in ("x", "gamma", "beta"))
    shape, dtype = graph.shape(x), graph.dtype(x)
    groups = int(op.given.get("groups", 0)) or shape[1]
    if isinstance(groups, Dim):
        raise graph.refuse(op, "the number of channels is free")
    epsilon, name = float(op.given["epsilon"]), graph.name(x)
    ones, zeros = graph.constant(np.ones(groups), dtype), graph.constant(np.zeros(groups), dtype)
    if groups == shape[1] and len(shape) > 2:
        scale, shift = graph.name(gamma) or ones, graph.name(beta) or zeros
        y = graph.node("InstanceNormalization", name, scale, shift, epsilon=epsilon)
    else:
        rows = graph.node("Reshape", name, graph.ints(0, groups, -1))
        rows = graph.node("InstanceNormalization", rows, ones, zeros, epsilon=epsilon)
        y = graph.node("Reshape", rows, graph.node("Shape", name))
        for kind, vector in (("Mul", gamma), ("Add", beta)):
            if vector is not None:
                lined = graph.node("Unsqueeze", graph.name(vector), graph.ints(*range(1, len(shape) - 1)))
                y = graph.node(kind, y, lined if len(shape) > 2 else graph.name(vector))
    return activated(graph, y, op.given["activation"], dtype)


@writes("local_response_norm")
def _local_response_norm(graph: Graph, op: Op) -> str:
    x, size, alpha, beta, k = (op.given[key] for key in ("x", "size", "alpha", "beta", "k"))
    name, shape, dtype = graph.name(x), graph.shape(x), graph.dtype(x)
    if size % 2 and len(shape) == 4:
        y = graph.node("LRN", name, size=int(size), alpha=float(alpha), beta=float(beta), bias=float(k))
    else:  # ONNX has the odd channel on the other side
        (channels,) = _fixed(graph, op, shape[1:2])
        squares = graph.node("Mul", name, name)
        before, after = size // 2, (size - 1) // 2
        space = [0] * (len(shape) - 2)
        wide = graph.node("Pad", squares, graph.ints(0, before, *space, 0, after, *space))
        total = ""
        for i in range(size):
            some = graph.node("Slice", wide, graph.ints(i), graph.ints(i + channels), graph.ints(1))
            total = graph.node("Add", total, some) if total else some
        scaled = graph.node("Mul", total, graph.constant(alpha / size, dtype))
        root = graph.node("Pow", graph.node("Add", scaled, graph.constant(k, dtype)), graph.constant(beta, dtype))
        y = graph.node("Div", name, root)
    return activated(graph, y, op.given["activation"], dtype)
