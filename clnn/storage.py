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
from .runtime.memory import Block
from .tape import Node, grad_enabled

STORAGES = ("float32", "float16")
LARGE = 8  # the share of a layer's largest input or output from which on an array is packed


class _Now(threading.local):
    """Whether layers that this thread calls are those of a network that stores halves."""

    on = False


_now = _Now()


def storage_named(name: Any, dtype: Any) -> str:
    """One of STORAGES; ConfigurationError for another, or where the network computes in another type."""
    if name not in STORAGES:
        raise ConfigurationError(f"storage is {' or '.join(map(repr, STORAGES))}, {name!r} was provided instead")
    if name == "float16" and dtype != np.float32:
        raise ConfigurationError(f"storage='float16' is for networks of float32, and this one is of {np.dtype(dtype)}")
    return str(name)


@contextlib.contextmanager
def storing(name: str) -> Iterator[None]:
    """Within it layers are those of a network with this storage, or of one inside such a network."""
    before, _now.on = _now.on, _now.on or name == "float16"
    try:
        yield
    finally:
        _now.on = before


class Keeper:
    """Packs what the tape keeps, call by call: what is still read, it leaves for a later one."""

    def __init__(self) -> None:
        self.on = _now.on and grad_enabled()
        self.waiting: list[Array] = []
        self.blocks: list[Block] = []  # that closures hold as they are, not by an array

    def call(self, layer: Callable[..., Any], *inputs: Any, needed: Iterable[Any] = ()) -> Any:
        """layer(*inputs). Then all is packed but the memory of what it returned, and of `needed`, tensors that are still read."""
        if not self.on or inputs[0].device.dry_now:
            return layer(*inputs)
        with noting() as made:
            y = layer(*inputs)
        # what has far fewer elements is a statistic, such as a mean, and stays as it is
        least = max(x.size for x in (*_arrays(y), *inputs)) // LARGE
        for one in made:
            held = [*_held((one.backward, one.activation))] if isinstance(one, Node) else [one]
            self.blocks += [x for x in held if isinstance(x, Block)]
            self.waiting += [x for x in held if isinstance(x, Array) and (x.size >= least or x is one)]
        read = {id(x.memory) for x in (*_arrays(y), *needed) if x.rows is None} | {*map(id, self.blocks)}
        waiting, self.waiting = self.waiting, []
        for x in waiting:
            if x.rows is None and x.dtype == np.float32 and x.memory.written_once and x.memory.half is None:
                self.waiting.append(x) if id(x.memory) in read else pack(x)
        return y

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
