"""The ONNX graph that is being written: its nodes, constants and names, and sizes that are known when it runs."""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from ...errors import ConfigurationError
from ..read import library
from .trace import Dim, Op, Program, Ref

Writer = Callable[["Graph", Op], Any]  # from an op to the name, or names, of what it makes
WRITERS: dict[str, Writer] = {}
# What an op's nodes read beside or instead of all arrays that it is given: as numbers of values
READS: dict[str, Callable[[Graph, Op], list[int]]] = {}
LAST = np.iinfo(np.int64).max
MOST_PARTS = 64  # by which a size is divided at most


class NoNodes(Exception):
    """An op for which there are no nodes at these sizes; the message says why."""


def writes(*names: str) -> Callable[[Writer], Writer]:
    """Register a function as the writer of the ops of these names."""

    def known(function: Writer) -> Writer:
        WRITERS.update(dict.fromkeys(names, function))
        return function

    return known


def refs(value: Any) -> Iterator[int]:
    """The numbers of all values in an argument."""
    if isinstance(value, Ref):
        yield value.number
    elif isinstance(value, tuple):
        for one in value:
            yield from refs(one)


class Graph:
    """Nodes for the live ops of a program. `arrays` gives parameters' values by their names, `sizes` the Dim of each
    (input, axis) that is free."""

    def __init__(
        self,
        program: Program,
        inputs: Sequence[str],
        arrays: Callable[[str], np.ndarray],
        sizes: dict[tuple[int, int], Dim],
        opset: int,
    ) -> None:
        self.program, self.inputs, self.arrays, self.free, self.opset = program, inputs, arrays, sizes, opset
        self.onnx = library()
        self.nodes: list[Any] = []
        self.initializers: dict[str, np.ndarray] = {}
        self.parts: dict[int, tuple[str, list[str]]] = {}  # of recurrent ops' results: the sequence, and states
        self.packed: dict[Any, str] = {}  # weights of gates that have been put into ONNX's order
        self.truths: dict[str, str] = {}  # of floats 0 and 1: the bools that they were
        self._there: set[str] = set()  # the nodes that this opset has
        self._constants: dict[Any, str] = {}
        self._names: dict[int, str] = {}
        self._taken: set[str] = {*inputs, *(name for name, _ in program.outputs)}
        self._sizes: dict[Dim, str] = {}
        self._shapes: list[int] = []  # values that have been written, whose sizes can be asked for
        self.layer = self.title = ""

    # -- the program --------------------------------------------------------------------------------------------------
    def write(self) -> None:
        """Nodes for all that the outputs depend on."""
        wanted = {number: name for name, number in reversed(self.program.outputs)}
        for op in self._live():
            self.layer, self.title = op.layer, op.title
            if op.name not in WRITERS:
                raise self.refuse(op, "ONNX has no node for it")
            before = len(self.nodes)
            made = WRITERS[op.name](self, op)
            for value, name in zip(op.made, made if isinstance(made, tuple) else (made,)):
                if value in wanted and len(self.nodes) > before and name in self.nodes[-1].output:
                    self.nodes[-1].output[list(self.nodes[-1].output).index(name)] = wanted[value]
                    name = wanted[value]
                if name is not None:
                    self._names[value] = name
                    self._shapes.append(value)
        self.layer = ""
        for name, number in self.program.outputs:
            if self._names.get(number) != name:
                self.nodes.append(
                    self.onnx.helper.make_node("Identity", [self.name(Ref(number))], [name], name=self.fresh(name))
                )

        self._prune()

    def _prune(self) -> None:
        """Take out the nodes and initializers that no output needs."""
        needed = {name for name, _ in self.program.outputs}

        def reads(node: Any) -> Iterator[str]:
            yield from node.input
            for attribute in node.attribute:
                for inside in attribute.g.node:
                    yield from reads(inside)

        kept = []
        for node in reversed(self.nodes):
            if needed.intersection(node.output):
                needed.update(reads(node))
                kept.append(node)
        self.nodes = kept[::-1]
        self.initializers = {name: array for name, array in self.initializers.items() if name in needed}

    def _live(self) -> list[Op]:
        """The ops that outputs depend on, in order, as writers read them."""
        values, live = self.program.values, set()
        waiting = [number for _, number in self.program.outputs]
        while waiting:
            value = values[waiting.pop()]
            if value.kind == "op" and value.of not in live:
                live.add(value.of)
                op = self.program.ops[value.of]
                waiting += READS[op.name](self, op) if op.name in READS else refs(tuple(op.given.values()))
        return [self.program.ops[i] for i in sorted(live)]

    def refuse(self, op: Op, why: str) -> ConfigurationError:
        """The error that an op cannot be written."""
        return ConfigurationError(
            f"{op.title}: the op {op.name} cannot be written as ONNX: {why}. Compute it with other functions of "
            "clnn's, or leave it out of the model that is saved"
        )

    def maker(self, ref: Any) -> Op | None:
        """The op that made a value."""
        value = self.program.values[ref.number] if isinstance(ref, Ref) else None
        return self.program.ops[value.of] if value is not None and value.kind == "op" else None

    def shape(self, ref: Ref) -> tuple[Any, ...]:
        """The shape of a value, of whole numbers and Dims."""
        return self.program.values[ref.number].shape

    def dtype(self, ref: Ref) -> np.dtype[Any]:
        """The type of a value's elements."""
        return self.program.values[ref.number].dtype

    def array(self, ref: Ref) -> np.ndarray | None:
        """What a parameter or a constant holds; None of what is computed."""
        value = self.program.values[ref.number]
        if value.kind == "parameter":
            return self.arrays(value.of)
        return value.of if value.kind == "constant" and not any(isinstance(s, Dim) for s in value.shape) else None

    def name(self, ref: Any) -> str:
        """The name of a value, "" for none."""
        if ref is None:
            return ""
        if (found := self._names.get(ref.number)) is None:
            value = self.program.values[ref.number]
            assert value.kind != "op", (value, self.program.ops[value.of])
            if value.kind == "input":
                found = self.inputs[value.of]
                self._shapes.append(ref.number)
            elif value.kind == "parameter":
                found = self.stored(value.of, self.arrays(value.of))
            elif any(isinstance(size, Dim) for size in value.shape):
                found = self.filled(value.shape, value.of[0], value.dtype)
            else:
                found = self.constant(value.of)
            self._names[ref.number] = found
        return found

    # -- nodes --------------------------------------------------------------------------------------------------------
    def node(self, kind: str, *inputs: str, **attributes: Any) -> str:
        """A node of one output, whose name comes back."""
        return self.several(kind, *inputs, outputs=1, **attributes)[0]

    def several(self, kind: str, *inputs: str, outputs: int, **attributes: Any) -> list[str]:
        """A node of several outputs."""
        self.check(kind)
        name = self.fresh(f"{self.layer}/{kind}" if self.layer else kind)
        made = [f"{name}:{i}" for i in range(outputs)] if outputs > 1 else [f"{name}:0"]
        given = list(inputs)
        while given and not given[-1]:
            given.pop()
        self.nodes.append(self.onnx.helper.make_node(kind, given, made, name=name, **attributes))
        return made

    def check(self, kind: str) -> None:
        """ConfigurationError where this opset has no such node yet."""
        if kind in self._there or self.onnx.defs.has(kind, self.opset, ""):
            return self._there.add(kind)
        every = self.onnx.defs.get_all_schemas_with_history()
        since = min(s.since_version for s in every if s.name == kind and not s.domain)
        raise ConfigurationError(
            f"{self.title} takes ONNX's {kind}, which opset {self.opset} does not have: give opset={since} or more"
        )

    def fresh(self, name: str) -> str:
        for found in itertools.chain([name], (f"{name}_{i}" for i in itertools.count(2))):
            if found not in self._taken:
                self._taken.add(found)
                return found
        raise AssertionError

    def stored(self, name: str, array: np.ndarray) -> str:
        """An initializer of this name, or with a number behind it where that is taken."""
        name = self.fresh(name)
        self.initializers[name] = np.ascontiguousarray(array).reshape(array.shape)
        return name

    def constant(self, value: Any, dtype: Any = None) -> str:
        """An initializer; one for all that hold the same."""
        array = np.asarray(value, dtype)
        key = array.dtype.str, array.shape, array.tobytes()
        if key not in self._constants:
            shown = f"{array.item():g}" if not array.shape else f"{array.dtype.name}_{'x'.join(map(str, array.shape))}"
            self._constants[key] = self.stored(f"constant_{shown}", array)
        return self._constants[key]

    def ints(self, *values: int) -> str:
        """int64 numbers, as nodes take axes and the like."""
        return self.constant(np.array(values, np.int64))

    def cast(self, x: str, dtype: Any) -> str:
        """x as another type."""
        return self.node("Cast", x, to=self.onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))

    def as_floats(self, x: str, dtype: Any) -> str:
        """Bools as 0 and 1."""
        y = self.cast(x, dtype)
        self.truths[y] = x
        return y

    @contextlib.contextmanager
    def body(self) -> Iterator[list[Any]]:
        """Within it nodes go to a graph of their own."""
        before, self.nodes, sizes = self.nodes, [], dict(self._sizes)
        try:
            yield self.nodes
        finally:
            self.nodes, self._sizes = before, sizes

    # -- sizes --------------------------------------------------------------------------------------------------------
    def size(self, size: Any) -> str:
        """A whole number or a Dim as an int64 tensor of shape (1,)."""
        if not isinstance(size, Dim):
            return self.ints(int(size))
        if size not in self._sizes:
            self._sizes[size] = self._computed(size)
        return self._sizes[size]

    def _at(self, name: str, axis: int) -> str:
        return self.node("Shape", name, start=axis, end=axis + 1)

    def _computed(self, size: Dim) -> str:
        """A Dim from sizes of inputs, or of values that are there: one of them, times a number, plus one, or divided by one; a
        product of two; or one plus a multiple of another."""
        known: dict[tuple[int, ...], tuple[str, int]] = {
            dim.sizes: (self.inputs[i], axis) for (i, axis), dim in self.free.items()
        }
        for number in self._shapes:
            for axis, dim in enumerate(self.program.values[number].shape):
                if isinstance(dim, Dim):
                    known.setdefault(dim.sizes, (self._names[number], axis))
        wanted = size.sizes
        if wanted in known:
            return self._at(*known[wanted])
        for found, at in known.items():
            pairs = list(zip(wanted, found))
            if all(b and a % b == 0 for a, b in pairs) and len({a // b for a, b in pairs}) == 1:
                return self.node("Mul", self._at(*at), self.ints(wanted[0] // found[0]))
            if len({a - b for a, b in pairs}) == 1:
                return self.node("Add", self._at(*at), self.ints(wanted[0] - found[0]))
            parts = ((by, up) for by in range(2, MOST_PARTS + 1) for up in (0, by - 1))  # rounded down, or up
            fitting = [(by, up) for by, up in parts if all(a == (b + up) // by for a, b in pairs)]
            if len(fitting) == 1:
                ((by, up),) = fitting
                total = self.node("Add", self._at(*at), self.ints(up)) if up else self._at(*at)
                return self.node("Div", total, self.ints(by))
        for (a, at), (b, beside) in itertools.combinations_with_replacement(known.items(), 2):
            if all(p * q and w % (p * q) == 0 for w, p, q in zip(wanted, a, b)):
                factors = {w // (p * q) for w, p, q in zip(wanted, a, b)}
                if len(factors) == 1:
                    both = self.node("Mul", self._at(*at), self._at(*beside))
                    return both if factors == {1} else self.node("Mul", both, self.ints(factors.pop()))
        for (a, at), (b, beside) in itertools.permutations(known.items(), 2):
            ratios = {(w - p) / q if q else math.nan for w, p, q in zip(wanted, a, b)}
            if len(ratios) == 1 and (factor := ratios.pop()).is_integer():
                return self.node("Add", self._at(*at), self.node("Mul", self._at(*beside), self.ints(int(factor))))
        raise NoNodes(f"{self.title}: how {wanted} follows from the sizes of inputs is not seen")

    def shape_of(self, shape: Sequence[Any]) -> str:
        """A shape as an int64 tensor."""
        if not any(isinstance(size, Dim) for size in shape):
            return self.ints(*shape)
        parts: list[str] = []
        for dynamic, group in itertools.groupby(shape, lambda size: isinstance(size, Dim)):
            run = list(group)
            parts += map(self.size, run) if dynamic else [self.ints(*run)]
        return parts[0] if len(parts) == 1 else self.node("Concat", *parts, axis=0)

    def number(self, value: Any, dtype: Any) -> str:
        """A number, or a Dim, as a tensor without axes."""
        if isinstance(value, Dim):
            return self.node("Squeeze", self.cast(self.size(value), dtype))
        return self.constant(value, dtype)

    def filled(self, shape: Sequence[Any], value: Any, dtype: Any) -> str:
        """A tensor that holds one number."""
        if not any(isinstance(size, Dim) for size in shape) and math.prod(shape) <= 256:
            return self.constant(np.full(shape, value, dtype))
        one = self.onnx.numpy_helper.from_array(np.array([value], dtype))
        return self.node("ConstantOfShape", self.shape_of(shape), value=one)

    def reshape(self, x: str, before: Sequence[Any], shape: Sequence[Any]) -> str:
        """x, of the shape `before`, in another one. Sizes that stay are 0 there, and one that is free is -1."""
        if tuple(shape) == tuple(before):
            return x
        target: list[Any] = [
            0 if isinstance(s, Dim) and i < len(before) and s == before[i] else s for i, s in enumerate(shape)
        ]
        free = [i for i, s in enumerate(target) if isinstance(s, Dim)]
        if 0 in shape:
            return self.node("Reshape", x, self.shape_of(shape), allowzero=1)
        wrong = None
        for left in sorted(free, key=lambda i: target[i] in self.free.values()):
            try:
                return self.node("Reshape", x, self.shape_of([*target[:left], -1, *target[left + 1 :]]))
            except NoNodes as error:  # of another one
                wrong = error
        if wrong is not None:
            raise wrong
        return self.node("Reshape", x, self.shape_of(target))
