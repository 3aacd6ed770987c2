"""Half storage: what a forward pass keeps for the backward pass is kept as halves, where a network asks for it.

Layer after layer computes in float32. What the closures on the tape hold of a layer is packed as soon as the layer has run, and
unpacked for the closure that reads it. So no value of the forward pass changes, no gradient is stored in half precision, and no
loss needs scaling; gradients are those of activations rounded to 11 bits.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from types import FunctionType
from typing import Any

import numpy as np

from .errors import ConfigurationError
from .ops.array import Array
from .ops.half import note, noting, pack
from .runtime.memory import Block, numbers
from .tape import Node, grad_enabled
from .tensor import Tensor

STORAGES = ("float32", "float16")
LARGE = 8  # the share of a layer's largest input or output from which on an array is packed


class _Now(threading.local):
    """Since which block this thread calls layers of a network that stores halves, or None."""

    since: int | None = None


_now = _Now()


def storage_named(name: Any, dtype: Any, what: str = "storage") -> str:
    """One of STORAGES; ConfigurationError for another, or where the network computes in another type. `what`: the argument."""
    if name not in STORAGES:
        raise ConfigurationError(f"{what} is {' or '.join(map(repr, STORAGES))}, {name!r} was provided instead")
    if name == "float16" and dtype != np.float32:
        raise ConfigurationError(f"{what}='float16' is for networks of float32, and this one is of {np.dtype(dtype)}")
    return str(name)


@contextlib.contextmanager
def storing(name: str) -> Iterator[None]:
    """Within it layers are those of a network with this storage, or of one inside such a network."""
    before = _now.since
    if before is None and name == "float16":
        _now.since = next(numbers)
    try:
        yield
    finally:
        _now.since = before


class Keeper:
    """Packs what the tape keeps, call by call: what is still read, it leaves for a later one, and what is not the network's own,
    such as its inputs and constants, as it is."""

    def __init__(self, *needed: Any) -> None:
        """`needed`: tensors that are read after all calls."""
        self.since = _now.since if grad_enabled() else None
        self.needed = () if self.since is None else needed
        self.waiting: list[Array] = []
        self.blocks: list[Block] = []  # that closures hold as they are, not by an array

    def call(self, layer: Callable[..., Any], *inputs: Any, needed: Iterable[Any] = ()) -> Any:
        """layer(*inputs). Then all is packed but the memory of what it returned, and of `needed`, tensors that are still read."""
        given = _arrays(inputs)
        if self.since is None or not given or given[0].device.dry_now:
            return layer(*inputs)
        with noting() as made:
            y = layer(*inputs)
        # what has far fewer elements is a statistic, such as a mean, and stays as it is
        least = max(x.size for x in (*_arrays(y), *given)) // LARGE
        for one in made:
            held = [*_held((one.backward, one.activation))] if isinstance(one, Node) else [one]
            self.blocks += [x for x in held if isinstance(x, Block)]
            self.waiting += [x for x in held if isinstance(x, Array) and (x.size >= least or x is one)]
        read = {id(x.memory) for x in (*_arrays(y), *self.needed, *needed) if x.rows is None} | {*map(id, self.blocks)}
        waiting, self.waiting = self.waiting, []
        for x in waiting:
            if self._may_be_packed(x):
                self.waiting.append(x) if id(x.memory) in read else pack(x)
        return y

    def _may_be_packed(self, x: Array) -> bool:
        """Whether it is of float32, and was made by this network as it was called, not by a layer's code for each call."""
        if x.rows is not None or x.dtype != np.float32 or (isinstance(x, Tensor) and x.node is None):
            return False
        return x.memory.written_once and x.memory.half is None and x.memory.number > (self.since or 0)

    def end(self) -> None:
        """There are no more calls. What is left, whoever called this network packs, if it stores halves, too."""
        note(*self.waiting, *self.blocks)


def _arrays(value: Any) -> list[Array]:
    return [x for x in _held(value) if isinstance(x, Array)]


def _held(value: Any, depth: int = 8) -> Iterator[Array | Block]:
    """The arrays and blocks in what a closure, or a function in a closure, refers to."""
    if isinstance(value, (Array, Block)):
        yield value
    elif isinstance(value, partial):
        yield from _held([value.func, *value.args, *value.keywords.values()], depth)
    elif isinstance(value, (tuple, list, dict)) and depth:
        for one in value.values() if isinstance(value, dict) else value:
            yield from _held(one, depth - 1)
    elif isinstance(value, FunctionType) and depth:
        for cell in value.__closure__ or ():
            with contextlib.suppress(ValueError):  # a name that has no value yet
                yield from _held(cell.cell_contents, depth - 1)
