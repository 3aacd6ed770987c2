"""Nodes for functions of one and of two variables, for choosing, and for joining elements over axes."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ...ops.reduce import normal_axes
from .graph import Graph, writes
from .trace import Dim, Op, Ref

# Functions of one variable that are a node with these attributes
NODES: dict[str, tuple[str, dict[str, Any]]] = {
    "sigmoid": ("Sigmoid", {}),
    "tanh": ("Tanh", {}),
    "relu": ("Relu", {}),
    "leaky_relu": ("LeakyRelu", {"alpha": 0.01}),
    "elu": ("Elu", {"alpha": 1.0}),
    "selu": ("Selu", {"alpha": 1.6732632423543772, "gamma": 1.0507009873554805}),
    "softplus": ("Softplus", {}),
    "softsign": ("Softsign", {}),
    "hard_sigmoid": ("HardSigmoid", {"alpha": 1 / 6, "beta": 0.5}),
    "hard_swish": ("HardSwish", {}),
    "exp": ("Exp", {}),
    "log": ("Log", {}),
    "sqrt": ("Sqrt", {}),
    "abs": ("Abs", {}),
    "negative": ("Neg", {}),
    "sin": ("Sin", {}),
    "cos": ("Cos", {}),
    "erf": ("Erf", {}),
    "reciprocal": ("Reciprocal", {}),
    "sign": ("Sign", {}),
    "floor": ("Floor", {}),
    "ceil": ("Ceil", {}),
    "round": ("Round", {}),
}
# Functions of two variables that are a node; of comparisons the result is cast to floats
PAIRS = {
    "add": "Add",
    "subtract": "Sub",
    "multiply": "Mul",
    "divide": "Div",
    "power": "Pow",
    "maximum": "Max",
    "minimum": "Min",
    "equal": "Equal",
    "less": "Less",
    "less_equal": "LessOrEqual",
    "greater": "Greater",
    "greater_equal": "GreaterOrEqual",
    "logical_and": "And",
    "logical_or": "Or",
    "logical_xor": "Xor",
}


def activated(graph: Graph, x: str, name: str, dtype: Any) -> str:
    """f(x) for a function of one variable by its name in clnn/ops/activation.py."""
    node = graph.node
    if name == "linear":
        return x
    if name in NODES:
        kind, attributes = NODES[name]
        return node(kind, x, **attributes)

    def number(value: float) -> str:
        return graph.constant(value, dtype)

    if name == "step":  # NaN stays
        above = graph.cast(node("Greater", x, number(0)), dtype)
        return node("Where", node("IsNaN", x), x, above)
    if name == "hard_tanh":
        return node("Clip", x, number(-1), number(1))
    if name == "swish":
        return node("Mul", x, node("Sigmoid", x))
    if name == "mish":
        return node("Mish", x) if graph.opset >= 18 else node("Mul", x, node("Tanh", node("Softplus", x)))
    if name in ("gelu", "gelu_tanh") and graph.opset >= 20:
        return node("Gelu", x, approximate="tanh" if name == "gelu_tanh" else "none")
    if name == "gelu":
        bell = node("Erf", node("Div", x, number(math.sqrt(2))))
        return node("Mul", node("Mul", x, node("Add", bell, number(1))), number(0.5))
    if name == "gelu_tanh":
        cubed = node("Mul", node("Mul", x, node("Mul", x, x)), number(0.044715))
        gate = node("Tanh", node("Mul", node("Add", x, cubed), number(math.sqrt(2 / math.pi))))
        return node("Mul", node("Mul", x, node("Add", gate, number(1))), number(0.5))
    if name == "square":
        return node("Mul", x, x)
    if name == "log1p":  # log(u) x / (u - 1) with u = 1 + x as it is rounded: exact for small x (Kahan; Goldberg 1991)
        u = node("Add", x, number(1))
        log, rest = node("Log", u), node("Sub", u, number(1))
        small = node("Where", node("Equal", rest, number(0)), x, node("Mul", log, node("Div", x, rest)))
        return node("Where", node("Equal", rest, x), log, small)
    if name == "expm1":  # exact for small x, too
        return node("Mul", node("Tanh", node("Mul", x, number(0.5))), node("Add", node("Exp", x), number(1)))
    if name == "isnan":
        return graph.cast(node("IsNaN", x), dtype)
    if name == "isfinite":
        return graph.cast(node("Not", node("Or", node("IsNaN", x), node("IsInf", x))), dtype)
    assert name == "logical_not", name
    return graph.cast(node("Equal", x, number(0)), dtype)


@writes("unary")
def _unary(graph: Graph, op: Op) -> str:
    x = op.given["x"]
    return activated(graph, graph.name(x), op.given["name"], graph.dtype(x))


def truth(graph: Graph, x: Ref) -> str:
    """x as bools, 1 where it is not 0; what a comparison made, as it was before it became floats."""
    name = graph.name(x)
    return graph.truths.get(name) or graph.cast(name, bool)


@writes("binary")
def _binary(graph: Graph, op: Op) -> str:
    name, a, b = op.given["name"], op.given["a"], op.given["b"]
    node = graph.node
    dtype = graph.dtype(a if isinstance(a, Ref) else b)
    result = graph.program.values[op.made[0]].dtype
    whole = dtype == np.int32
    if name.startswith("logical_"):
        p, q = (truth(graph, v) if isinstance(v, Ref) else graph.constant(bool(v)) for v in (a, b))
        return graph.as_floats(node(PAIRS[name], p, q), result)
    x, y = (graph.name(v) if isinstance(v, Ref) else graph.number(v, dtype) for v in (a, b))
    if name == "not_equal":
        return graph.as_floats(node("Not", node("Equal", x, y)), result)
    if name in ("equal", "less", "less_equal", "greater", "greater_equal"):
        return graph.as_floats(node(PAIRS[name], x, y), result)
    if name in PAIRS:
        return activated(graph, node(PAIRS[name], x, y), op.given["activation"] or "linear", dtype)
    if name == "logaddexp":
        apart = node("Softplus", node("Neg", node("Abs", node("Sub", x, y))))
        equal = node("Add", x, graph.constant(math.log(2), dtype))
        return node("Where", node("Equal", x, y), equal, node("Add", node("Max", x, y), apart))
    if name in ("remainder", "floor_divide") and whole and not isinstance(b, Ref):
        rest = node("Mod", x, y)  # b is a number, and not 0
        return rest if name == "remainder" else node("Div", node("Sub", x, rest), y)
    if name in ("remainder", "floor_divide") and not whole:
        rest = node("Mod", x, y, fmod=1)
        zero = graph.constant(0, dtype)
        other = node("Xor", node("Less", rest, zero), node("Less", y, zero))
        lower = node("And", node("Not", node("Equal", rest, zero)), other)
        if name == "remainder":
            return node("Where", lower, node("Add", rest, y), rest)
        down = node("Sub", node("Round", node("Div", node("Sub", x, rest), y)), graph.cast(lower, dtype))
        return node("Where", node("Equal", y, zero), node("Div", x, y), down)
    why = "by 0 it is 0 here, and anything there" if whole and name != "arctan2" else "ONNX has no node for it"
    raise graph.refuse(op._replace(name=name), why)


@writes("choose")
def _choose(graph: Graph, op: Op) -> str:
    dtype = graph.program.values[op.made[0]].dtype
    a, b = (graph.name(v) if isinstance(v, Ref) else graph.number(v, dtype) for v in (op.given["a"], op.given["b"]))
    return graph.node("Where", truth(graph, op.given["condition"]), a, b)


@writes("convert")
def _convert(graph: Graph, op: Op) -> str:
    return graph.cast(graph.name(op.given["x"]), op.given["dtype"])


def reduced(graph: Graph, kind: str, x: str, axes: tuple[int, ...], keepdims: bool = True) -> str:
    """x joined over axes by ReduceSum, ReduceMean, ...: axes are an input of the first from opset 13, of others from 18."""
    if graph.opset >= 18 or kind == "ReduceSum":
        return graph.node(kind, x, graph.ints(*axes), keepdims=int(keepdims))
    return graph.node(kind, x, axes=list(axes), keepdims=int(keepdims))


@writes("reduce")
def _reduce(graph: Graph, op: Op) -> str:
    x, kind = op.given["x"], op.given["kind"]
    axes = normal_axes(len(graph.shape(x)), op.given["axis"])
    shape = graph.program.values[op.made[0]].shape
    if any(graph.shape(x)[a] == 0 for a in axes):
        return graph.filled(shape, float(kind == "prod"), graph.dtype(x))
    if not axes:
        return graph.node("Identity", graph.name(x))
    return reduced(graph, f"Reduce{kind.title()}", graph.name(x), axes, bool(op.given["keepdims"]))


@writes("argmax")
def _argmax(graph: Graph, op: Op) -> str:
    x, axis = graph.name(op.given["x"]), op.given["axis"]
    if axis is None:
        x, axis = graph.node("Reshape", x, graph.ints(-1)), 0
    return graph.cast(graph.node("ArgMax", x, axis=int(axis), keepdims=0), np.int32)


@writes("softmax")
def _softmax(graph: Graph, op: Op) -> str:
    return graph.node("LogSoftmax" if op.given["log"] else "Softmax", graph.name(op.given["x"]), axis=-1)


@writes("fill")
def _fill(graph: Graph, op: Op) -> str:
    shape, dtype = op.given["x"]
    return graph.filled(shape, op.given["value"], dtype)


@writes("arange")
def _arange(graph: Graph, op: Op) -> str:
    n, start, step, dtype = (op.given[key] for key in ("n", "start", "step", "dtype"))
    dtype = np.dtype(dtype)
    if isinstance(start, Dim) or isinstance(step, Dim):
        raise graph.refuse(op, "its start or its step depends on the size of an input")
    if not isinstance(n, Dim):
        return graph.constant((dtype.type(start) + np.arange(n).astype(dtype) * dtype.type(step)).astype(dtype))
    zero, one = graph.constant(0, np.int64), graph.constant(1, np.int64)
    y = graph.cast(graph.node("Range", zero, graph.node("Squeeze", graph.size(n)), one), dtype)
    y = y if step == 1 else graph.node("Mul", y, graph.constant(step, dtype))
    return y if start == 0 else graph.node("Add", y, graph.constant(start, dtype))
