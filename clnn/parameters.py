"""The flat store: all parameters of a model in one buffer, their gradients in another, each a view.

So an optimizer is one launch, a checkpoint one copy. Views start where the device allows it (on 512 bytes, on most) with
zeros between; parameters that decay come first, those that do not learn last. What the device does not give in one piece
becomes several stores. A parameter without a store, or models with stores of their own, work as well: `runs` finds what is
contiguous.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from .gemm import Scale
from .runtime.memory import Block
from .runtime.watching.watch import Restored, structure_changed
from .tensor import Parameter


class Store(Restored):
    """One buffer of parameters and, made at first need, one of their gradients. The parameters: in the order in which they
    shall be, as many as fit."""

    def __init__(self, parameters: Sequence[Parameter]) -> None:
        first = parameters[0]
        self.device, self.dtype = first.device, first.dtype
        starts, self.nbytes = [], 0
        for p in parameters:
            starts.append(self.nbytes)
            self.nbytes += room(p)
        self.block = self._zeros()
        self._gradients: Block | None = None
        self.velocity_of: Any = None  # the optimizer's `Kept` whose velocities are in the gradients' buffer
        for p, start in zip(parameters, starts):
            view, gradient = self.block.view(start, p.nbytes), p._grad
            self.device.copy(p.block, view, p.nbytes)
            p.memory, p.store, p.position, p._grad = view, self, start, None
            if gradient is not None:
                self.device.copy(gradient, p.gradient_block(), p.nbytes)

    def _zeros(self) -> Block:
        block = self.device.memory.allocate(self.nbytes, pooled=False)
        with self.device.dry(False):  # the space between parameters is zero also where these get no values yet
            self.device.fill_zero(block)
        return block

    def gradients(self) -> Block:
        """The gradients' buffer, zero at first."""
        if self._gradients is None:
            self._gradients = self._zeros()
        return self._gradients

    def reclaim(self) -> None:
        """Gradients are to be written plainly: an optimizer whose velocities are there takes them away first."""
        if self.velocity_of is not None:
            self.velocity_of.separate(self)


def room(p: Parameter) -> int:
    """The bytes that a parameter takes in its store, with the zeros after it."""
    return p.device.memory.align(max(p.nbytes, 1))


class Run(NamedTuple):
    """A contiguous stretch of a store, in bytes, that one launch updates. Its first `decays` bytes are those that decay."""

    store: Store
    start: int
    stop: int
    decays: int
    rate_factor: float
    slot: int  # of the tables of rates, by when these parameters began

    @property
    def elements(self) -> int:
        """How many there are, the zeros between parameters included."""
        return (self.stop - self.start) // self.store.dtype.itemsize

    def part(self, block: Block) -> Block:
        """The run's range of a block that is laid out like its store."""
        size = self.stop - self.start
        return block if size == self.store.nbytes else block.view(self.start, size)


def consolidate(parameters: Sequence[Parameter]) -> None:
    """Give every parameter that has none a place in a flat store: one store per device and type, or as many as it takes."""
    groups: dict[Any, list[Parameter]] = {}
    for p in parameters:
        if p.store is None:
            groups.setdefault((p.device, p.dtype), []).append(p)
    for group in groups.values():
        part: list[Parameter] = []
        size = 0
        for p in sorted(group, key=lambda p: (not p.learns, not p.decays)):  # stable: else as given
            size += room(p)
            if part and not p.device.memory.fits(size):
                Store(part)
                part, size = [], room(p)
            part.append(p)
        Store(part)
        structure_changed()


def runs(parameters: Sequence[Parameter], slots: Mapping[Parameter, int] = {}) -> list[Run]:  # noqa: B006
    """The stretches that `parameters` cover, neighbours merged. `slots`: of those whose rates are not in the first table."""
    found: list[Run] = []
    stores = [*dict.fromkeys(p.store for p in parameters)]  # the same order in every run
    for p in sorted(parameters, key=lambda p: (stores.index(p.store), p.position)):
        size = room(p)
        last = found[-1] if found else None
        decays, slot = size if p.decays else 0, slots.get(p, 0)
        if (
            last
            and (last.store, last.stop, last.rate_factor, last.slot) == (p.store, p.position, p.rate_factor, slot)
            and (not decays or last.decays == last.stop - last.start)  # what decays stays in front
        ):
            found[-1] = last._replace(stop=last.stop + size, decays=last.decays + decays)
        else:
            found.append(Run(p.store, p.position, p.position + size, decays, p.rate_factor, slot))
    return found


@contextlib.contextmanager
def gradients_aside(parameters: Sequence[Parameter]) -> Iterator[None]:
    """Within it gradients gather in memory of their own, from zero; what was received before, and velocities, stay."""
    before = [(p, p.sink, p._grad, p._last, p.uses, p.forward_uses) for p in parameters]
    for p in parameters:
        p.sink = Scale.constant(p.device, p.dtype, 1, 0), "plain"
        p._grad = p.device.memory.allocate(p.nbytes)
        p.zero_grad()
    try:
        yield
    finally:
        for p, sink, grad, last, uses, forward_uses in before:
            p.sink, p._grad, p._last, p.uses, p.forward_uses = sink, grad, last, uses, forward_uses


@contextlib.contextmanager
def statistics_kept(parameters: Sequence[Parameter]) -> Iterator[None]:
    """Within it forward passes may change statistics (what does not learn); afterwards they are what they were."""
    copies = [(p, p.device.memory.allocate(p.nbytes)) for p in parameters if not p.learns]
    for p, copy in copies:
        p.device.copy(p.block, copy, p.nbytes)
    try:
        yield
    finally:
        for p, copy in copies:
            p.device.copy(copy, p.block, p.nbytes)


def count(parameters: Sequence[Parameter]) -> int:
    """The number of values in all parameters."""
    return sum(math.prod(p.shape) for p in parameters)
