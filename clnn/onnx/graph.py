"""What an ONNX file says, as plain Python: `Graph` of `Node`s, and the same as JSON for clnn's own files."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from ..errors import CheckpointError

FLOATS = (
    "float32",
    "float64",
    "float16",
    "bfloat16",
)  # types by their names; float16 and bfloat16 are computed as float32


class Value(NamedTuple):
    """An input or output of a graph: its name, its type, its shape: a name or None for a free size, None for any shape."""

    name: str
    type: str
    shape: tuple[int | str | None, ...] | None

    def __str__(self) -> str:
        shape = (
            "any shape" if self.shape is None else f"({', '.join('?' if s is None else str(s) for s in self.shape)})"
        )
        return f"{self.name}: {self.type} {shape}"


@dataclass
class Node:
    """One operation: what it is called, what it takes and gives by name ("" for what is left out), and its attributes."""

    op: str
    domain: str
    name: str
    inputs: list[str]
    outputs: list[str]
    attributes: dict[str, Any]

    def __str__(self) -> str:
        called = self.name or next(filter(None, self.outputs), "")
        return f"node {called!r} ({f'{self.domain}.' if self.domain else ''}{self.op})"

    def graphs(self) -> Iterator[Graph]:
        """The graphs among its attributes, such as the branches of an If."""
        for value in self.attributes.values():
            yield from (one for one in (value if isinstance(value, list) else [value]) if isinstance(one, Graph))

    def reads(self) -> set[str]:
        """The names that it reads, those included that graphs inside it take from around them."""
        found = {name for name in self.inputs if name}
        for graph in self.graphs():
            found |= graph.outer()
        return found


@dataclass
class Graph:
    """Nodes in an order in which they can run, the inputs, the outputs, and the constants by name; whether `save` wrote it, and
    which constants it says are statistics; which were nodes."""

    name: str
    nodes: list[Node]
    inputs: list[Value]
    outputs: list[Value]
    constants: dict[str, np.ndarray] = field(default_factory=dict)
    opsets: dict[str, int] = field(default_factory=dict)
    written: bool = False
    statistics: set[str] = field(default_factory=set)
    literals: set[str] = field(default_factory=set)

    def outer(self) -> set[str]:
        """The names that it takes from around it."""
        own = {*self.constants, *(value.name for value in self.inputs)}
        found: set[str] = set()
        for node in self.nodes:
            found |= node.reads() - own
            own |= set(node.outputs)
        return found | ({value.name for value in self.outputs} - own)

    def every_node(self) -> Iterator[Node]:
        """The nodes of this graph and of those inside it."""
        for node in self.nodes:
            yield node
            for graph in node.graphs():
                yield from graph.every_node()


def to_json(value: Any) -> Any:
    """A graph, or a part of one, as JSON holds it."""
    if isinstance(value, Graph):
        parts = {
            "name": value.name,
            "nodes": [
                [n.op, n.domain, n.name, n.inputs, n.outputs, {k: to_json(v) for k, v in n.attributes.items()}]
                for n in value.nodes
            ],
            "inputs": [[v.name, v.type, v.shape and list(v.shape)] for v in value.inputs],
            "outputs": [[v.name, v.type, v.shape and list(v.shape)] for v in value.outputs],
            "constants": {name: to_json(array) for name, array in value.constants.items()},
            "opsets": value.opsets,
        }
        return {"graph": parts}
    if isinstance(value, np.ndarray):
        if value.dtype == object:
            return {"strings": [str(one) for one in value.ravel()], "shape": list(value.shape)}
        data = base64.b64encode(np.ascontiguousarray(value).tobytes()).decode()
        return {"array": data, "type": value.dtype.name, "shape": list(value.shape)}
    return [to_json(one) for one in value] if isinstance(value, (list, tuple)) else value


def from_json(value: Any) -> Any:
    """What `to_json` made JSON of."""
    if isinstance(value, list):
        return [from_json(one) for one in value]
    if not isinstance(value, dict):
        return value
    try:
        if "graph" in value:
            parts = value["graph"]
            shaped = lambda vs: [Value(n, t, None if s is None else tuple(s)) for n, t, s in vs]  # noqa: E731
            return Graph(
                parts["name"],
                [
                    Node(*rest, {k: from_json(v) for k, v in attributes.items()})  # type: ignore[call-arg]
                    for *rest, attributes in parts["nodes"]
                ],
                shaped(parts["inputs"]),
                shaped(parts["outputs"]),
                {name: from_json(array) for name, array in parts["constants"].items()},
                parts["opsets"],
            )
        if "strings" in value:
            return np.array(value["strings"], object).reshape(value["shape"])
        data = base64.b64decode(value["array"])
        return np.frombuffer(data, value["type"]).reshape(value["shape"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(f"the graph in the file is damaged ({error!r}); restore the file from a copy") from error
