"""The table of operators: a function each, by name and the operator set since which it is so; and what such functions are given.

A value is a NumPy array on the host, which is a constant or follows from shapes, or a `Tensor` on the device. A function gets its
inputs in order, None for those left out, and attributes by name:

    @operator("Softmax", 13)
    def softmax(x, *, axis=-1):
        return functions.softmax(x, axis)

`host`: the inputs whose values it needs on the host, as arrays. The others come as tensors; a function whose first argument is
called `c` gets a `Context` there and its inputs as they are. `gives`: the type of the outputs where it is not that of the first
input: a name, or one for each output.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from ..tensor import Tensor
from .graph import FLOATS

ALL = tuple(range(64))  # inputs
WIDEST = {
    "int32": 32,
    "bool": 32,
}  # whole numbers whose arithmetic is exact on the device; that of others is done on the host


class Operator(NamedTuple):
    """What runs a node: see the top."""

    function: Callable[..., Any]
    since: int
    until: int | None
    host: Sequence[int]
    gives: str | Sequence[str] | None
    contextual: bool
    attributes: frozenset[str] | None  # None for any


TABLE: dict[tuple[str, str], list[Operator]] = {}  # by domain and name, the newest last


def operator(
    name: str,
    since: int = 1,
    *,
    until: int | None = None,
    domain: str = "",
    host: Sequence[int] = (),
    gives: str | Sequence[str] | None = None,
) -> Callable[[Any], Any]:
    """Put a function into the table for an operator, from operator set `since` on, up to the next entry or `until`."""

    def put(function: Any) -> Any:
        parameters = [*inspect.signature(function).parameters.values()]
        named = frozenset(p.name for p in parameters if p.kind is p.KEYWORD_ONLY)
        loose = any(p.kind is p.VAR_KEYWORD for p in parameters)
        contextual = bool(parameters) and parameters[0].name == "c"
        entry = Operator(function, since, until, host, gives, contextual, None if loose else named)
        entries = TABLE.setdefault((domain, name), [])
        entries.append(entry)
        entries.sort(key=lambda one: one.since)
        return function

    return put


def find(domain: str, name: str, opset: int) -> Operator | None:
    """The entry for an operator in an operator set, or None."""
    fitting = [one for one in TABLE.get((domain, name), ()) if one.since <= opset]
    if not fitting or (fitting[-1].until is not None and opset > fitting[-1].until):
        return None
    return fitting[-1]


def of_dtype(x: Tensor, dtype: Any) -> Tensor:
    """x, converted on the device where it is of another type of floats, or of whole numbers."""
    return x if x.dtype == np.dtype(dtype) else x.astype(dtype)


class Context:
    """What a function may need besides its inputs.

    `types` of the inputs by their names in ONNX, `outputs` the names that are wanted ("" for none), `opset`, `device`;
    `host(i)` input i as an array on the host, `tensor(x)` a value on the device, `run(graph, inputs)` a graph inside this one.
    `gives(type, ...)` says what type each output is, where that depends on more than inputs.
    """

    def __init__(self, pass_: Any, node: Any, values: Sequence[Any], env: Any) -> None:
        self.pass_, self.node, self.values, self.env = pass_, node, values, env
        self.types: list[str] = ["" if v is None else v.type for v in values]
        self.outputs: list[str] = node.outputs
        self.device, self.opset = pass_.device, pass_.opsets.get(node.domain, 1)
        self.given: Sequence[str] | None = None

    def host(self, i: int) -> Any:
        """Input i as an array on the host."""
        return self.pass_.on_host(self.values[i])

    def tensor(self, x: Any) -> Tensor:
        """A value on the device."""
        return self.pass_.on_device(x)

    def prepared(self, values: Sequence[Any], make: Callable[..., Sequence[Any]]) -> Sequence[Any] | None:
        """What `make` makes of the arrays that some inputs are, once; None where these are no constants."""
        return self.pass_.plan.prepared(self.node, values, make)

    def run(self, graph: Any, inputs: Sequence[Any]) -> list[Any]:
        """The outputs of a graph inside this one, as `Value`s, of inputs that are such."""
        return self.pass_.inside(graph, inputs, self.env)

    def gives(self, *types: str) -> None:
        """Say what types the outputs have."""
        self.given = types

    @property
    def exact(self) -> bool:
        """Whether arithmetic with the inputs is the same on the device: floats, bools, and whole numbers of 32 bits."""
        return all(not kind or kind in FLOATS or kind in WIDEST for kind in self.types)

    def all_host(self) -> bool:
        """Whether every input is on the host."""
        return all(v is None or isinstance(v.data, np.ndarray) for v in self.values)
