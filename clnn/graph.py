"""Graphs: `Input` makes symbols, which layers take for tensors, and `Graph` is what their calls amount to.

a, b = clnn.Input((8,)), clnn.Input((3,))
y = clnn.Dense(1)(clnn.Concatenate()(clnn.Dense(16, "relu")(a), b))
net = clnn.Model((a, b), y)
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from .checks import whole_numbers
from .errors import ConfigurationError, ShapeError
from .layers.base import Layer, Symbolic, first_pass, register
from .layers.merge import Add, Multiply, Subtract
from .parameters import count
from .runtime.devices.choice import device
from .storage import Keeper
from .tape import grad_enabled
from .tensor import Tensor

_order = itertools.count()


class Call:
    """A layer that was given symbols, or with no layer an `Input`."""

    def __init__(self, layer: Layer | None, given: Sequence[Symbol], name: str = "") -> None:
        self.layer, self.given, self.name, self.order = layer, given, name, next(_order)


class Symbol(Symbolic):
    """What an `Input` stands for, or what a layer makes of it: a tensor with a shape, (None, *sample), and no values."""

    def __init__(self, call: Call, at: int, shape: Sequence[int], dtype: Any) -> None:
        self.call, self.at, self.shape, self.dtype = call, at, (None, *shape), np.dtype(dtype)

    def __repr__(self) -> str:
        of = "Input" if self.call.layer is None else repr(self.call.layer)
        return f"<{self.dtype} of shape {self.shape} from {of}>"

    def through(self, layer: Layer, inputs: Sequence[Any]) -> Any:
        wrong = [type(x).__name__ for x in inputs if not isinstance(x, Symbol)]
        if wrong:
            raise ConfigurationError(
                f"{layer!r} is given an Input and a {wrong[0]} together; what is the same in each batch belongs into "
                "a layer of your own"
            )
        floats = {x.dtype for x in inputs} - {np.dtype(np.int32)}
        if floats and floats != {layer.dtype} and not any(one.built for one in layer.layers_inside()):
            layer.place(layer.device, floats.pop())
        elif floats and floats != {layer.dtype}:
            raise ConfigurationError(f"{layer!r} is of {layer.dtype}, and its inputs of {', '.join(map(str, floats))}")
        call, count = Call(layer, inputs), itertools.count()

        def symbols(y: Any) -> Any:
            if isinstance(y, Tensor) and y.shape:
                return Symbol(call, next(count), y.shape[1:], y.dtype)
            if isinstance(y, dict):
                return {key: symbols(value) for key, value in y.items()}
            if isinstance(y, (tuple, list)):
                return tuple(map(symbols, y))
            told = f"{layer!r} returns {y!r}, and in a graph layers return tensors with an axis of samples"
            raise ConfigurationError(told)

        return first_pass(layer, [(x.shape[1:], x.dtype) for x in inputs], symbols)

    def __array__(self, *_: Any, **__: Any) -> Any:
        raise ConfigurationError(
            "an Input has no values: give it to layers, such as clnn.Activation or clnn.Concatenate, or write a layer of your "
            "own whose forward() computes with tensors"
        )

    def __add__(self, other: Any) -> Any:
        return Add()(self, other)

    def __sub__(self, other: Any) -> Any:
        return Subtract()(self, other)

    def __mul__(self, other: Any) -> Any:
        return Multiply()(self, other)

    __radd__, __rmul__, __rsub__ = __add__, __mul__, __sub__  # of a number or an array, which `through` refuses
    __neg__ = __truediv__ = __rtruediv__ = __pow__ = __matmul__ = __getitem__ = __array__


def Input(shape: int | Sequence[int], dtype: Any = "float32", name: str = "") -> Symbol:  # noqa: N802 - the field's name
    """A symbol for an input of `Model(inputs, outputs)`, of this shape without the batch; layers called with it return symbols.

    `dtype` is float32, float64 or, for class numbers and tokens, int32; layers that are not built yet take it over. `name` is
    its key where `x` is a dict. As with `Sequential`'s input_shape, a model takes inputs of other sizes where its layers do.
    """
    sizes, kind = whole_numbers("Input's shape", shape), np.dtype(dtype)
    if any(size < 1 for size in sizes) or kind not in (np.float32, np.float64, np.int32):
        raise ConfigurationError(
            f"Input takes sizes of 1 or more and float32, float64 or int32; {shape!r} and {dtype!r} were given"
        )
    if kind != np.int32:
        device().real(kind)
    return Symbol(Call(None, (), name), 0, sizes, kind)


def told_of_parameters(layer: Layer) -> str:
    """How many parameters a layer has, and whether they learn, in words."""
    own = [p for _, p in layer.named_parameters()]
    number, kept = count(own), count([p for p in own if not p.learns])
    frozen = f" ({kept:,} not trainable)" if kept else ""
    return f"{number:,}{frozen if layer.trainable else ' (frozen)'}"


def _leaves(y: Any) -> Iterator[Any]:
    """The tensors in what a layer returned, in order."""
    if isinstance(y, (tuple, list, dict)):
        for one in y.values() if isinstance(y, dict) else y:
            yield from _leaves(one)
    else:
        yield y


@register
class Graph(Layer):
    """Layers, and what each is called with. Inputs and calls are numbered on; a value is [number, which of its tensors].

    `inputs` {name: [shape, type]}, `layers`, `calls` [[which layer, [value, ...]], ...], `outputs` a value, a list of values, or
    {name: value}: all as JSON, so that a file that names layers and numbers is the whole architecture.
    """

    def __init__(self, inputs: dict[str, Any], layers: list[Layer], calls: list[Any], outputs: Any) -> None:
        self.inputs, self.layers, self.calls, self.outputs = inputs, layers, calls, outputs
        self._results = [*outputs.values()] if isinstance(outputs, dict) else outputs
        self._results = [outputs] if isinstance(self._results[0], int) else self._results
        last: dict[tuple[int, int], int] = {}
        uses: Counter[tuple[int, int]] = Counter()
        for number, (which, given) in enumerate([*calls, (0, self._results)], len(inputs)):
            wrong = [v for v in given if not 0 <= v[0] < number or v[1] < 0] or not 0 <= which < len(layers)
            if wrong:
                told = f"a graph's call {number} does not follow what it is given: {given} to layer {which}"
                raise ConfigurationError(told)
            last |= dict.fromkeys(map(tuple, given), number)
            uses.update(map(tuple, given))
        # Calls whose output goes to another one alone, which takes nothing else: two that fit become one, see `Layer.with_next`
        alone = {tuple(given[0]): number for number, (_, given) in enumerate(calls, len(inputs)) if len(given) == 1}
        self._next = {
            node: number
            for (node, at), number in alone.items()
            if uses[node, at] == 1 and not at and node >= len(inputs)
        }
        # What is given to each call, what comes of it that is used, and what is used for the last time
        self._plan = [
            (
                which,
                [(n, at) for n, at in given],
                {v for v in last if v[0] == number},
                {v for v in last if last[v] == number},
            )
            for number, (which, given) in enumerate(calls, len(inputs))
        ]

    def forward(self, *inputs: Tensor) -> Any:
        return self.run(inputs)

    def run(self, inputs: Sequence[Tensor], noting: Any = None) -> Any:
        """The outputs; `noting` is told what comes of each call."""
        if len(inputs) != len(self.inputs):
            told = f"the model takes {len(self.inputs)} inputs ({', '.join(self.inputs)}), and {len(inputs)} were given"
            raise ShapeError(told)
        values = {(i, 0): x for i, x in enumerate(inputs)}
        del inputs
        joins = noting is None and not grad_enabled()
        keeper = Keeper()
        joined: dict[int, Tensor] = {}  # outputs that were computed with the call before
        for number, (which, given, wanted, done) in enumerate(self._plan, len(self.inputs)):
            layer, args = self.layers[which], [values.get(v) for v in given]
            ahead = self._with_next(number, args) if joins and number not in joined else None
            if ahead is not None:
                joined[self._next[number]] = ahead
            else:
                y = joined.pop(number) if number in joined else keeper.call(layer, *args, needed=[*values.values()])
                if noting is not None:
                    noting(number, y)
                each = [*_leaves(y)]
                if any(at >= len(each) for _, at in wanted):
                    raise ConfigurationError(f"{layer.name} returns {len(each)} tensors here, and the graph uses more")
                values |= {(number, at): t for at, t in enumerate(each) if (number, at) in wanted}
                del y, each
            for v in done:
                values.pop(v, None)  # its memory is free from here on
            del args
        keeper.end()
        found = [values[n, at] for n, at in self._results]
        if isinstance(self.outputs, dict):
            return dict(zip(self.outputs, found))
        return found[0] if self._results[0] is self.outputs else tuple(found)

    def _with_next(self, number: int, args: Sequence[Any]) -> Tensor | None:
        """At inference: what the next call makes of this one's output, if one launch can compute both."""
        if number not in self._next or len(args) != 1 or args[0].mask is not None:
            return None
        layer, following = (self.layers[self._plan[n - len(self.inputs)][0]] for n in (number, self._next[number]))
        return layer.with_next(following, args[0]) if layer.built and following.built else None

    def takes_whole(self, i: int) -> bool:
        return [*self.inputs.values()][i][1] == "int32" if i < len(self.inputs) else False

    def check_whole(self, i: int, array: np.ndarray, name: str) -> None:
        for which, given in self.calls:
            for at, value in enumerate(given):
                if value == [i, 0] and self.layers[which].takes_whole(at):
                    self.layers[which].check_whole(at, array, name)

    def rows(self) -> list[tuple[str, str, str, str]]:
        """Of each input and call, in words: the layer, its output's shape, its parameters, and what it is called with."""
        shapes: dict[int, str] = {}

        def note(number: int, y: Any) -> None:
            shapes[number] = ", ".join(str((None, *t.shape[1:])) for t in _leaves(y))

        first_pass(self, self.inputs.values(), lambda _: None, lambda *inputs: self.run(inputs, note))
        names, seen = [*self.inputs], set()
        found = [(name, str((None, *shape)), "", "") for name, (shape, _) in self.inputs.items()]
        for number, (which, given) in enumerate(self.calls, len(names)):
            layer, again = self.layers[which], which in seen
            names.append(f"{layer.name}{' (again)' if again else ''}")
            told = "the same" if again else told_of_parameters(layer)
            found.append((f"{names[-1]} {layer!r}", shapes[number], told, ", ".join(names[n] for n, _ in given)))
            seen.add(which)
        return found

    def __repr__(self) -> str:
        return f"<Graph of {len(self.layers)} layers from {', '.join(self.inputs)}>"


def _symbols(what: str, value: Any) -> dict[Any, Symbol]:
    found = (
        value if isinstance(value, dict) else dict(enumerate(value if isinstance(value, (tuple, list)) else [value]))
    )
    wrong = [one for one in found.values() if not isinstance(one, Symbol)]
    if wrong or not found or (isinstance(value, dict) and not all(isinstance(key, str) for key in found)):
        raise ConfigurationError(
            f"Model's {what} should be what clnn.Input and layers called with it return, one or a tuple or a dict (by names) of "
            f"them; {(wrong or [value])[0]!r} was given"
        )
    return found


def traced(inputs: Any, outputs: Any) -> Graph:
    """The graph from inputs to outputs. ConfigurationError where an input is missing, unused or none."""
    given, wanted = _symbols("inputs", inputs), _symbols("outputs", outputs)
    names = [key if isinstance(key, str) else x.call.name or f"input_{key + 1}" for key, x in given.items()]
    numbers = {x.call: i for i, x in enumerate(given.values())}
    if len(set(names)) < len(names) or len(numbers) < len(given) or any(call.layer is not None for call in numbers):
        told = f"Model's inputs are what clnn.Input returned, each once and by another name, not {inputs!r}"
        raise ConfigurationError(told)
    found: set[Call] = set()
    waiting = [x.call for x in wanted.values()]
    while waiting:
        if (call := waiting.pop()) not in found:
            found.add(call)
            waiting += [x.call for x in call.given]
    calls = sorted((call for call in found if call.layer is not None), key=lambda call: call.order)
    if missing := [one for call in found for one in call.given if one.call.layer is None and one.call not in numbers]:
        raise ConfigurationError(
            f"the outputs depend on an Input of shape {missing[0].shape} that is not among Model's inputs, {', '.join(names)}"
        )
    if unused := [name for name, call in zip(names, numbers) if call not in found]:
        told = f"no output depends on the input {unused[0]}: leave it out of Model's inputs, or use it"
        raise ConfigurationError(told)
    if not calls:
        raise ConfigurationError("Model's outputs are its inputs, with no layer in between")
    layers = [*dict.fromkeys(call.layer for call in calls if call.layer is not None)]
    if len(kinds := {(one.device, one.dtype) for layer in layers for one in layer.layers_inside()}) > 1:
        raise ConfigurationError(
            "the layers of a model lie on one device and are of one type, and these are "
            + ", ".join(sorted(f"{dtype} on {where!r}" for where, dtype in kinds))
        )
    numbers |= {call: i for i, call in enumerate(calls, len(given))}
    value = lambda x: [numbers[x.call], x.at]  # noqa: E731
    results: Any = {key: value(x) for key, x in wanted.items()}
    return Graph(
        {name: [list(x.shape[1:]), x.dtype.name] for name, x in zip(names, given.values())},
        layers,
        [[layers.index(call.layer), [*map(value, call.given)]] for call in calls if call.layer is not None],
        results
        if isinstance(outputs, dict)
        else [*results.values()]
        if isinstance(outputs, (tuple, list))
        else results[0],
    )
