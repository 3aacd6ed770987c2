"""Nodes for attention and recurrence. A recurrent op is ONNX's LSTM, GRU or RNN, or where those lack something, a Scan."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from ...ops.sequence.recurrent import GATES, STATES
from .elementwise import activated, reduced, truth
from .graph import LAST, READS, Graph, refs, writes
from .trace import Dim, Op, Ref


# -- attention --------------------------------------------------------------------------------------------------------
@writes("attention")
def _attention(graph: Graph, op: Op) -> str:
    q, k, v, mask, past = (op.given[key] for key in ("q", "k", "v", "mask", "past"))
    first, causal, node, dtype = op.given["time_first"], op.given["causal"], graph.node, graph.dtype(q)

    def sizes(x: Ref) -> tuple[Any, ...]:
        b, one, two, d = graph.shape(x)
        return (b, two, one, d) if first else (b, one, two, d)

    (_, heads, queries, depth), (_, key_heads, keys, _) = sizes(q), sizes(k)
    names = [graph.name(x) for x in (q, k, v)]
    q_name, v_name = (node("Transpose", x, perm=[0, 2, 1, 3]) if first else x for x in (names[0], names[2]))
    k_name = node("Transpose", names[1], perm=[0, 2, 3, 1] if first else [0, 1, 3, 2])
    if heads != key_heads:
        group = heads // key_heads
        shared = [
            node("Expand", node("Unsqueeze", x, graph.ints(2)), graph.ints(1, 1, group, 1, 1)) for x in (k_name, v_name)
        ]
        k_name = node("Reshape", shared[0], graph.ints(0, heads, graph.shape(k)[-1], -1))
        v_name = node("Reshape", shared[1], graph.ints(0, heads, -1, graph.shape(v)[-1]))
    scale = op.given["scale"]
    factor = graph.constant(1 / math.sqrt(depth) if scale is None else scale, dtype)
    scores = node("MatMul", node("Mul", q_name, factor), k_name)
    if mask is not None:
        scores = node("Add", scores, graph.name(mask))
    if causal and past is None:
        lower = graph.filled((queries, keys), -math.inf, dtype)
        scores = node("Add", scores, node("Trilu", lower, graph.constant(1, np.int64), upper=1))
    elif past is not None:
        number = graph.cast(node("Reshape", graph.name(past), graph.ints(1)), np.int64)
        places = [_count(graph, n) for n in (queries, keys)]
        last = node("Add", node("Unsqueeze", places[0], graph.ints(1)), number) if causal else node(
            "Sub", node("Add", number, graph.size(queries)), graph.ints(1)
        )  # fmt: skip
        hidden = node("Greater", places[1], last)
        scores = node("Where", hidden, graph.constant(-math.inf, dtype), scores)
    if mask is None and past is None:
        p = node("Softmax", scores, axis=-1)
    else:  # a query that sees no key gives zeros
        none = node("Equal", reduced(graph, "ReduceMax", scores, (-1,)), graph.constant(-math.inf, dtype))
        zero = graph.constant(0, dtype)
        p = node("Where", none, zero, node("Softmax", node("Where", none, zero, scores), axis=-1))
    y = node("MatMul", p, v_name)
    return node("Transpose", y, perm=[0, 2, 1, 3]) if first else y


def _count(graph: Graph, n: Any) -> str:
    """0, 1, ... below n, int64."""
    if not isinstance(n, Dim):
        return graph.constant(np.arange(n), np.int64)
    zero, one = graph.constant(0, np.int64), graph.constant(1, np.int64)
    return graph.node("Range", zero, graph.node("Squeeze", graph.size(n)), one)


# -- recurrence -------------------------------------------------------------------------------------------------------
ORDER = {"RNN": (0,), "LSTM": (0, 3, 1, 2), "GRU": (0, 1, 2)}  # ONNX's gates among clnn's: i, o, f, c and z, r, h
KNOWN = {"tanh": "Tanh", "sigmoid": "Sigmoid", "relu": "Relu"}  # as ONNX's recurrent nodes call them


def _recurrent_weights(graph: Graph, op: Op) -> Ref | None:
    """U as a whole; None where a GRU that resets before the product took its parts from elsewhere."""
    u, u_h = op.given["u"], op.given["u_h"]
    if u_h is None:
        return u
    parts, units = [graph.maker(u), graph.maker(u_h)], graph.shape(u_h)[0]
    if any(part is None or part.name != "take_slice" for part in parts):
        return None
    whole = {part.given["x"] for part in parts}  # type: ignore[union-attr]
    keys = [part.given["key"][-1] for part in parts]  # type: ignore[union-attr]
    fits = len(whole) == 1 and keys == [slice(None, 2 * units, None), slice(2 * units, None, None)]
    return whole.pop() if fits and graph.shape(parts[0].given["x"]) == (units, 3 * units) else None  # type: ignore[union-attr]


def _product(graph: Graph, op: Op) -> Op | None:
    """The product of inputs that an op of ONNX's own takes over, where one can."""
    cell, made = op.given["cell"], graph.maker(op.given["z"])
    if op.given["mask"] is not None or made is None or made.name != "linear" or made.given["activation"] != "linear":
        return None
    if made.given["transposed"] or cell.activation not in KNOWN or cell.recurrent_activation not in KNOWN:
        return None
    u = _recurrent_weights(graph, op)
    fixed = [made.given["w"], u, made.given["b"], op.given["bias"]]
    if u is None or any(one is not None and graph.array(one) is None for one in fixed):
        return None
    if graph.dtype(u) != np.float32:  # few runtimes have these nodes in float64
        return None
    return made


def _reads(graph: Graph, op: Op) -> list[int]:
    made = _product(graph, op)
    if made is None:
        return [*refs(tuple(op.given.values()))]
    return [made.given["x"].number, *refs(op.given["states"])]


READS["recurrent"] = _reads


@writes("recurrent")
def _recurrent(graph: Graph, op: Op) -> str:
    if op.given["drop"] is not None:
        raise graph.refuse(op, "recurrent dropout is on")
    made, cell = _product(graph, op), op.given["cell"]
    sequence, states = _by_node(graph, op, made) if made is not None else _by_scan(graph, op)
    kept = states if cell.state else [] if cell.sequence else states[:1]
    parts = [sequence, *kept] if cell.sequence else kept
    if len(parts) > 1:
        graph.parts[op.made[0]] = sequence if cell.sequence else "", kept
        return graph.node("Concat", *parts, axis=1)
    return parts[0]


def _packed(graph: Graph, ref: Ref, kind: str) -> str:
    """Weights or biases of gates as ONNX orders them: (1, G units, in) or (1, G units)."""
    key = ref, kind
    if key not in graph.packed:
        given, value = np.asarray(graph.array(ref)), graph.program.values[ref.number]
        units = given.shape[-1] // GATES[kind]
        array = np.concatenate([given[..., g * units : (g + 1) * units] for g in ORDER[kind]], -1).T[None]
        name = value.of if value.kind == "parameter" else f"{graph.layer}/{kind}:weights"
        graph.packed[key] = graph.stored(name, array)
    return graph.packed[key]


def _both_biases(graph: Graph, kind: str, given: Sequence[Any], gates: int, dtype: Any) -> str:
    """Those of inputs and of states as (1, 2 G units), "" where there are none. Zeros stand for one that is not there: the layer
    learns one sum, not two."""
    if given == [None, None]:
        return ""
    zeros = np.zeros((1, gates), dtype)
    parts = [graph.constant(zeros) if one is None else _packed(graph, one, kind) for one in given]
    return graph.node("Concat", *parts, axis=1)


def _by_node(graph: Graph, op: Op, made: Op) -> tuple[str, list[str]]:
    """The sequence (batch, steps, units) and the last states (batch, 1, units) by LSTM, GRU or RNN."""
    cell, node = op.given["cell"], graph.node
    kind = cell.kind
    u = _recurrent_weights(graph, op)
    assert u is not None  # `_product` has looked
    w, x = made.given["w"], made.given["x"]
    biases = _both_biases(graph, kind, [made.given["b"], op.given["bias"]], int(graph.shape(u)[1]), graph.dtype(u))
    names = {"RNN": (cell.activation,), "GRU": (cell.recurrent_activation, cell.activation)}
    functions = names.get(kind, (cell.recurrent_activation, cell.activation, cell.activation))
    how: dict[str, Any] = {"hidden_size": int(graph.shape(u)[0])}
    if cell.backwards:
        how["direction"] = "reverse"
    if functions != {"RNN": ("tanh",), "GRU": ("sigmoid", "tanh")}.get(kind, ("sigmoid", "tanh", "tanh")):
        how["activations"] = [KNOWN[f] for f in functions]
    if kind == "GRU":
        how["linear_before_reset"] = int(op.given["u_h"] is None)
    states = [node("Unsqueeze", graph.name(one), graph.ints(0)) for one in op.given["states"]]
    y, *last = graph.several(
        kind,
        node("Transpose", graph.name(x), perm=[1, 0, 2]),
        _packed(graph, w, kind),
        _packed(graph, u, kind),
        biases,
        "",
        *states,
        outputs=1 + STATES[kind],
        **how,
    )
    sequence = ""
    if cell.sequence:
        sequence = node("Transpose", node("Squeeze", y, graph.ints(1)), perm=[1, 0, 2])
        if cell.backwards and not cell.aligned:
            sequence = _reversed(graph, sequence)
    return sequence, [node("Transpose", one, perm=[1, 0, 2]) for one in last]


def _reversed(graph: Graph, x: str) -> str:
    return graph.node("Slice", x, graph.ints(-1), graph.ints(-LAST), graph.ints(1), graph.ints(-1))


def _by_scan(graph: Graph, op: Op) -> tuple[str, list[str]]:
    """The same by a Scan over the steps, whose body is what a step does; where a mask is 0 states stay as they are."""
    cell, u, mask = op.given["cell"], op.given["u"], op.given["mask"]
    batch, units, dtype = graph.shape(op.given["z"])[0], graph.shape(u)[0], graph.dtype(u)
    helper = graph.onnx.helper
    kind = helper.np_dtype_to_tensor_dtype(dtype)
    count = STATES[cell.kind]
    states = [graph.name(one) for one in op.given["states"]] or [graph.filled((batch, units), 0, dtype)] * count
    rows = [graph.node("Transpose", graph.name(op.given["z"]), perm=[1, 0, 2])]
    rows += [] if mask is None else [graph.node("Transpose", truth(graph, mask), perm=[1, 0])]
    weights, bias, u_h = graph.name(u), graph.name(op.given["bias"]), graph.name(op.given["u_h"])
    name = graph.fresh("step")
    before, given = [f"{name}/{s}" for s in ("h", "c")[:count]], [f"{name}/z", f"{name}/m"][: len(rows)]
    with graph.body() as nodes:
        after = _step(graph, cell, before, given[0], weights, bias, u_h, dtype, int(units))
        if mask is not None:
            counts = graph.node("Unsqueeze", given[1], graph.ints(1))
            after = [graph.node("Where", counts, new, old) for new, old in zip(after, before)]
        shown = graph.node("Identity", after[0])
        info = helper.make_tensor_value_info
        inputs = [info(s, kind, [None, int(units)]) for s in before]
        inputs += [info(given[0], kind, [None, int(units) * GATES[cell.kind]])]
        inputs += [info(one, graph.onnx.TensorProto.BOOL, [None]) for one in given[1:]]
        outputs = [info(one, kind, [None, int(units)]) for one in (*after, shown)]
        body = helper.make_graph(list(nodes), name, inputs, outputs)
    how: dict[str, Any] = {"scan_input_directions": [1] * len(rows)} if cell.backwards else {}
    if cell.backwards and cell.aligned:
        how["scan_output_directions"] = [1]
    *last, y = graph.several("Scan", *states, *rows, outputs=count + 1, body=body, num_scan_inputs=len(rows), **how)
    y = graph.node("Transpose", y, perm=[1, 0, 2])
    return y, [graph.node("Unsqueeze", one, graph.ints(1)) for one in last]


def _step(
    graph: Graph, cell: Any, states: Sequence[str], z: str, u: str, bias: str, u_h: str, dtype: Any, units: int
) -> list[str]:
    """The states after a step, as clnn/ops/sequence/recurrent.py has them."""
    node = graph.node

    def gates(x: str, count: int = GATES[cell.kind]) -> list[str]:
        return [x] if count == 1 else graph.several("Split", x, graph.ints(*[units] * count), outputs=count, axis=-1)

    def f(x: str) -> str:
        return activated(graph, x, cell.activation, dtype)

    def s(x: str) -> str:
        return activated(graph, x, cell.recurrent_activation, dtype)

    product = node("MatMul", states[0], u)
    product = node("Add", product, bias) if bias else product
    if cell.kind == "GRU":
        z_in, r_in, h_in = gates(z)
        z_of, r_of, *h_of = gates(product, 2 if u_h else 3)
        update, reset = s(node("Add", z_in, z_of)), s(node("Add", r_in, r_of))
        by_h = node("MatMul", node("Mul", reset, states[0]), u_h) if u_h else node("Mul", reset, *h_of)
        new = f(node("Add", h_in, by_h))
        rest = node("Sub", graph.constant(1, dtype), update)
        return [node("Add", node("Mul", update, states[0]), node("Mul", rest, new))]
    total = node("Add", z, product)
    if cell.kind == "RNN":
        return [f(total)]
    i, forget, c, o = gates(total)
    memory = node("Add", node("Mul", s(i), f(c)), node("Mul", s(forget), states[1]))
    return [node("Mul", s(o), f(memory)), memory]
