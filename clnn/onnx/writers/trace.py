"""Traces: the ops of a pass at given sizes, and the one program that traces at several sizes have in common.

A pass launches nothing here. Every array that an op is given is an input, a parameter, another op's result, or an array of the
host's; one that is none of these was made by what cannot be written, and is an error.
"""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from ...errors import ConfigurationError
from ...layers.base import Layer, first_pass
from ...ops.array import Array
from ...ops.trace import following
from ...runtime.device import ValuesWanted
from ...runtime.memory import Block
from ...tensor import Tensor, tensor

REFUSED = {
    "dropout": "draws random numbers",
    "spatial_dropout": "draws random numbers",
    "gaussian_dropout": "draws random numbers",
    "batch_norm": "takes its statistics from the batch",
    "extend": "goes on from a cache of earlier steps",
}


class Differs(Exception):
    """Traces at different sizes have no program in common; the message says where."""


class Fails(Differs):
    """A pass at another size is an error."""


class Dim(NamedTuple):
    """A whole number that depends on the sizes of inputs: what it is in each trace."""

    sizes: tuple[int, ...]


class Ref(NamedTuple):
    """The value of this number in a trace, where an op is given an array."""

    number: int


class Value(NamedTuple):
    """An array of a trace: of kind "input", "parameter", "constant" or "op". `of` is the input's number, the parameter's name, an
    array, or the op's number."""

    kind: str
    of: Any
    shape: tuple[Any, ...]
    dtype: np.dtype[Any]


class Op(NamedTuple):
    """A call of an op: its arguments by name, with a Ref for each array, the values that it makes, and the layer that called it:
    its path in the model, and what errors call it."""

    name: str
    given: dict[str, Any]
    made: tuple[int, ...]
    layer: str
    title: str


class Program(NamedTuple):
    """What a pass computes: values, ops in order, and the outputs as (name, value)."""

    values: list[Value]
    ops: list[Op]
    outputs: list[tuple[str, int]]


class Trace:
    """One pass of a model over inputs of these shapes. What goes wrong in a `trial` is a Fails."""

    def __init__(self, model: Layer, forms: Sequence[tuple[Sequence[int], Any]], trial: bool = False) -> None:
        self.model, self.forms, self.trial = model, forms, trial
        self._wrong = ""
        self.values: list[Value] = []
        self.ops: list[Op] = []
        self._known: dict[tuple[int, tuple[int, ...]], int] = {}  # by memory and shape
        self._last: dict[int, int] = {}  # by memory
        self._held: list[Block] = []  # so that no other memory takes its place
        self._constants: dict[int, np.ndarray] = {}
        self._paths = {id(layer): name for name, layer in model._walk("") if isinstance(layer, Layer)}
        self._wanted: str = ""  # the layer that read a value

    def program(self) -> Program:
        """What the pass computes."""
        outputs = first_pass(self.model, (), lambda y: y, self._run)
        if self._wrong:
            raise Fails(self._wrong)
        return Program(self.values, self.ops, outputs)

    # -- the pass -----------------------------------------------------------------------------------------------------
    def _run(self) -> list[tuple[str, int]]:
        where = self.model.device
        if not where.dry_now:  # first_pass runs it again, with values, where one is read
            raise ConfigurationError(
                f"{self._wanted} reads a tensor's values on the host (numpy(), float(), `if`, a mask as an index, "
                "astype('int32')), and an ONNX file has no Python: compute with clnn's functions of tensors instead, such as "
                "clnn.where"
            )
        for name, p in self.model.named_parameters():
            self._add(p, Value("parameter", name, p.shape, p.dtype))
        inputs = []
        for i, (shape, dtype) in enumerate(self.forms):
            inputs.append(tensor(np.zeros(shape, dtype), dtype, where))
            self._add(inputs[-1], Value("input", i, tuple(shape), np.dtype(dtype)))
        try:
            with following(self._follow):
                return self._named(self.model(*inputs))
        except ValuesWanted as error:
            at: Any = error.__traceback__
            frame = sys._getframe()
            while at is not None:
                at, frame = at.tb_next, at.tb_frame
            self._wanted = self._layer(frame)[1]
            raise
        except Exception as error:
            if not self.trial:
                raise
            self._wrong = str(error)  # and no traceback, whose tensors would be computed since they are kept
            return []

    def _named(self, y: Any, name: str = "output") -> list[tuple[str, int]]:
        """The tensors of an output, each with its name."""
        if isinstance(y, dict):
            return [one for key, value in y.items() for one in self._named(value, str(key))]
        if isinstance(y, (tuple, list)):
            return [one for i, value in enumerate(y, 1) for one in self._named(value, f"{name}_{i}")]
        if not isinstance(y, Tensor):
            raise ConfigurationError(f"the model returns {y!r}, and an ONNX file's outputs are tensors")
        return [(name, self._number(y, "the model's output"))]

    def _follow(self, function: Callable[..., Any], inputs: tuple[Any, ...], options: dict[str, Any]) -> Any:
        path, layer = self._layer(sys._getframe(2))
        if function.__name__ in REFUSED:
            raise ConfigurationError(
                f"{layer}: the op {function.__name__} {REFUSED[function.__name__]}, which an ONNX file of a model at inference "
                "cannot: have forward() do that only where clnn.grad_enabled() says that it trains"
            )
        bound = _signature(function).bind(*inputs, **options)
        bound.apply_defaults()
        given = dict(bound.arguments)
        if function.__name__ == "fill":  # memory that holds nothing yet
            given["x"] = (given["x"].shape, given["x"].dtype)
        given = {name: self._told(value, f"{layer}: {function.__name__}") for name, value in given.items()}
        result = function(*inputs, **options)
        made = [y for y in (result if isinstance(result, tuple) else (result,)) if isinstance(y, Array)]
        number = len(self.ops)
        self.ops.append(
            Op(
                function.__name__,
                given,
                tuple(self._add(y, Value("op", number, y.shape, y.dtype)) for y in made),
                path,
                layer,
            )
        )
        return result

    def _told(self, value: Any, what: str) -> Any:
        """An argument with a Ref for each array."""
        if isinstance(value, Array):
            return Ref(self._number(value, what))
        if isinstance(value, (tuple, list)):
            parts = [self._told(one, what) for one in value]
            return type(value)(*parts) if hasattr(value, "_fields") else tuple(parts)
        return value

    # -- arrays -------------------------------------------------------------------------------------------------------
    def _add(self, x: Array, value: Value) -> int:
        self.values.append(value)
        number = self._last[id(x.block)] = self._known[id(x.block), x.shape] = len(self.values) - 1
        self._held.append(x.block)
        return number

    def _number(self, x: Array, what: str) -> int:
        """Which value an array is."""
        if (number := self._known.get((id(x.block), x.shape))) is not None:
            return number
        if (last := self._last.get(id(x.block))) is not None:  # its memory in another shape
            layer = self._layer(sys._getframe(1))
            self.ops.append(Op("reshape", {"x": Ref(last), "shape": x.shape}, (len(self.values),), *layer))
            return self._add(x, Value("op", len(self.ops) - 1, x.shape, x.dtype))
        return self._add(x, Value("constant", self._array(x, what), x.shape, x.dtype))

    def _array(self, x: Array, what: str) -> np.ndarray:
        """The values of an array that is there before the pass, or that the pass uploads."""
        for late in x.device._now.late:
            assert isinstance(late, partial)
            if late.func == x.device.upload and late.args[1] is x.block:
                return np.asarray(late.args[0]).reshape(x.shape)
            if any(one is x.block for one in late.args):
                raise ConfigurationError(
                    f"{what} is given what {'.'.join(map(str, late.args[:2]))} has computed, for which there are no nodes here: "
                    "use clnn's functions of tensors (README, Everything there is)"
                )
        with x.device.dry(False):
            return x.device.read(x.block, np.empty(x.shape, x.dtype))

    def _layer(self, frame: Any) -> tuple[str, str]:
        """The path of the innermost layer of the model whose code runs, and what errors call it."""
        while frame is not None:
            one = frame.f_locals.get("self")
            if isinstance(one, Layer) and (id(one) in self._paths or one is self.model):
                path = self._paths.get(id(one), "").removeprefix("layers.")
                kind = type(one).__name__
                return path, " ".join(filter(None, (one.name or path, f"({kind})" if path else kind)))
            frame = frame.f_back
        return "", type(self.model).__name__


@functools.cache
def _signature(function: Callable[..., Any]) -> inspect.Signature:
    return inspect.signature(function)


# -- what traces have in common ---------------------------------------------------------------------------------------
def joined(programs: Sequence[Program]) -> Program:
    """One program with a Dim for each number in which these differ. Differs where they differ in more."""
    first = programs[0]
    for other in programs[1:]:
        for a, b in zip(first.ops, other.ops):
            if a.name != b.name:
                raise Differs(f"{a.title} runs {a.name} at one size and {b.name} at another")
        if len(first.ops) != len(other.ops) or len(first.values) != len(other.values):
            raise Differs(f"it runs {len(first.ops)} ops at one size and {len(other.ops)} at another")
    ops = [
        Op(
            one[0].name,
            {
                name: _joined([op.given[name] for op in one], f"{one[0].title}: {name} of {one[0].name}")
                for name in one[0].given
            },
            one[0].made,
            one[0].layer,
            one[0].title,
        )
        for one in zip(*(program.ops for program in programs))
    ]
    values = [_value(one) for one in zip(*(program.values for program in programs))]
    if any(program.outputs != first.outputs for program in programs):
        raise Differs("its outputs are others at another size")
    return Program(values, ops, first.outputs)


def _value(values: Sequence[Value]) -> Value:
    first = values[0]
    if any((v.kind, v.dtype, len(v.shape)) != (first.kind, first.dtype, len(first.shape)) for v in values):
        raise Differs("its arrays have other axes at another size")
    shape = tuple(_joined(list(along), "a shape") for along in zip(*(v.shape for v in values)))
    of = first.of
    if first.kind != "constant":
        if any(v.of != of for v in values):
            raise Differs("its ops are given other arrays at another size")
    elif any(isinstance(size, Dim) for size in shape):
        if not all(v.of.size and (v.of == of.flat[0]).all() for v in values):
            raise Differs(
                "an array of the host depends on the size of an input: compute it with clnn's functions of tensors, such as "
                "clnn.arange"
            )
        of = of.flat[:1]
    elif any(not np.array_equal(v.of, of, equal_nan=of.dtype.kind == "f") for v in values):
        raise Differs("an array of the host depends on the size of an input, or on chance")
    return Value(first.kind, of, shape, first.dtype)


def _joined(values: Sequence[Any], what: str) -> Any:
    """Arguments of one op in several traces as one."""
    first = values[0]
    if isinstance(first, slice):
        start, stop, step = (_joined([getattr(v, key) for v in values], what) for key in ("start", "stop", "step"))
        return slice(start, stop, step)
    if isinstance(first, Ref):
        if any(v != first for v in values):
            raise Differs(f"{what} is another array at another size")
        return first
    if isinstance(first, tuple):
        if any(not isinstance(v, tuple) or len(v) != len(first) for v in values):
            raise Differs(f"{what} has another length at another size")
        parts = [_joined(list(one), what) for one in zip(*values)]
        return type(first)(*parts) if hasattr(first, "_fields") else tuple(parts)
    same = all(type(v) is type(first) and (v == first or v != v and first != first) for v in values)
    if same:
        return first
    if all(isinstance(v, (int, float)) and not isinstance(v, bool) and float(v).is_integer() for v in values):
        return Dim(tuple(map(int, values)))
    raise Differs(f"{what} is {first!r} at one size and {next(v for v in values if v != first)!r} at another")
