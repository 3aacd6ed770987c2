"""Recorders: the launches of one call of a step, noted with their arguments, and what that call has to settle at its end."""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pyopencl as cl

from .memory import Block
from .program import Source

Argument = Block | np.ndarray | np.generic | float | None  # of a kernel: None is a null pointer
Defines = dict[str, Any]  # what a kernel is compiled with: numbers and words, by name
NO_KERNEL = Source("", "", "", ())
Call = Callable[..., cl.Event | None]  # takes a queue, buffers and numbers, and only enqueues work
Size = tuple[int, ...]


class AuditEnded(BaseException):
    """Ends an audit early: the step did something that can never be replayed."""


class Temporary:
    """A block made inside a step, as recordings know it: its size, and whether it outlived the step."""

    __slots__ = ("call", "nbytes", "alive", "first", "last", "piece", "offset")

    def __init__(self, call: object, block: Block) -> None:
        self.call, self.nbytes, self.alive = call, block.nbytes, weakref.ref(block)
        self.first = self.last = -1
        self.piece = self.offset = 0  # where it is in the arena


@dataclass(eq=False, slots=True)
class Launch:
    """One noted launch: a kernel or a call, and its arguments."""

    label: str
    args: list[Any]  # blocks, temporaries and scalars
    flops: int
    function: Call | None = None
    source: Source = NO_KERNEL
    make: Callable[[], cl.Kernel] | None = None  # a kernel whose arguments stay bound; an audit's launches have none
    size: Size = ()
    local: Size = ()
    kernel: cl.Kernel | None = None  # its own, made when it is bound: most recordings never are

    def bind(self, queue: cl.CommandQueue, resolve: Callable[[Any], Any]) -> Callable[[], Any]:
        """Set the arguments; what comes back runs the launch and takes nothing."""
        values = [resolve(arg) for arg in self.args]
        if self.function is not None:
            return partial(self.function, queue, *values)
        if self.kernel is None:
            assert self.make is not None, "what an audit notes is not run"
            self.kernel = self.make()
        self.kernel.set_args(*values)
        return partial(cl.enqueue_nd_range_kernel, queue, self.kernel, self.size, self.local)


class Recorder:
    """Notes the launches of one call of a step. An `audit` only notes: nothing runs, and no memory is taken."""

    def __init__(self, audit: bool = False) -> None:
        self.audit = audit
        self.launches: list[Launch] = []
        self.result: Any = None
        self.call = object()  # known to its temporaries, which would be in a cycle with the recorder itself
        self.given: dict[Block, str] = {}  # the step's arguments, whose memory is another one in each call
        self.reason: str | None = None  # why this call cannot be replayed

    def abort(self, reason: str) -> None:
        self.reason = self.reason or reason

    def add_temporary(self, block: Block) -> None:
        block.ticket = Temporary(self.call, block)

    def add(self, launch: Launch) -> None:
        """Note a launch, with arguments as blocks and scalars."""
        launch.args = [self._noted(value) for value in launch.args]
        self.launches.append(launch)

    def _noted(self, value: Argument) -> Argument | Temporary:
        """A block as a temporary of this step, or itself (a strong reference: a replay may not outlive it)."""
        ticket = value.ticket if isinstance(value, Block) else None
        return ticket if ticket is not None and ticket.call is self.call else value

    def role(self, value: Any, seen: dict[Any, int]) -> Any:
        """What an argument is in this recording: equal for arguments that are the same in another one."""
        if isinstance(value, Block):
            value = self._noted(value)
        if isinstance(value, Temporary):
            return ("temporary", seen.setdefault(value, len(seen)), value.nbytes)
        if isinstance(value, np.ndarray):
            return value.tobytes()
        if isinstance(value, float):
            return value.hex()
        return (self.given.get(value) or value.role) if isinstance(value, Block) else value

    def first_difference(self, other: Recorder) -> str | None:
        """In words, where two recordings of the same step differ; None where they are the same."""
        roles: tuple[dict[Any, int], dict[Any, int]] = ({}, {})
        for index, (mine, theirs) in enumerate(itertools.zip_longest(self.launches, other.launches)):
            if mine is None or theirs is None:
                longer, extra = ("later", theirs) if mine is None else ("earlier", mine)
                return f"the {longer} call has a launch more, number {index}: {extra.label}"
            if (mine.label, mine.size, mine.local) != (theirs.label, theirs.size, theirs.local):
                return f"launch {index} is {mine.label} over {mine.size}, then {theirs.label} over {theirs.size}"
            if mine.source != theirs.source:
                return f"launch {index}, {mine.label}, is by {mine.source}, then by {theirs.source}"
            for at, (a, b) in enumerate(zip(mine.args, theirs.args, strict=True)):
                if self.role(a, roles[0]) != other.role(b, roles[1]):
                    then = (
                        _shown(b) if _shown(a) != _shown(b) else "another one (clnn.constant() is called once, before)"
                    )
                    return f"argument {at} of launch {index}, {mine.label}, is {_shown(a)}, then {then}"
        for a, b in itertools.zip_longest(_leaves(self.result), _leaves(other.result)):
            same = self.role(a, roles[0]) == other.role(b, roles[1])
            if not (same if isinstance(same, bool) else a is b):
                return f"it returned {_shown(a)}, then {_shown(b)}"
        return None


def _leaves(result: Any) -> Iterator[Any]:
    """What a step returned, one by one: blocks and shapes for tensors, other values as they are."""
    if isinstance(result, dict):
        yield from result
        result = list(result.values())
    if isinstance(result, (list, tuple)):
        yield len(result)
        for item in result:
            yield from _leaves(item)
    elif hasattr(result, "block"):
        yield from (result.block, result.shape, result.dtype)
    else:
        yield result


def _shown(value: Any) -> str:
    return f"a buffer of {value.nbytes} bytes" if isinstance(value, (Temporary, Block)) else repr(value)


class StepContext:
    """What one call of a step has touched and must be settled at its end: counters on the device to advance."""

    def __init__(self) -> None:
        self.cells: dict[Block, int] = {}
        self.draws: dict[Block, int] = {}  # by generator's counter: the number of the last draw since it was advanced
        self.checks: dict[Block, Callable[[Any, str], None]] = {}
        self.prepared: list[Any] = []  # fit's optimizers, one step each, whose counters have moved on already
        self.moved = False  # whether fit's counters have moved on to the next mini-batch
        self.stepped: list[tuple[Any, Any]] = []  # other steps that were taken: (optimizer, its parameters)
        self.received: dict[Any, int] = {}  # by parameter, where this changes it: the gradients received before
        self.whole = False  # whether all of it is enqueued: Ctrl-C that comes then takes nothing back

    def advance(self, cell: Block, by: int = 1) -> None:
        """Add `by` to the int32 in `cell` when the step ends, once however often this is said."""
        self.cells[cell] = by

    def check(self, block: Block, how: Callable[[Any, str], None]) -> None:
        """Have how(array, name) look at each array that the step's argument in this memory is given; others are not kept."""
        if not block.written_once:
            self.checks[block] = how

    def draw(self, cell: Block, by_step: bool) -> int:
        """How many draws the generator whose position is in `cell` has to move on by; if `by_step`, by one for all of them."""
        number = self.draws[cell] = self.draws.get(cell, -1) + 1
        self.advance(cell, 1 if by_step else number + 1)
        return number

    def forget(self, cell: Block) -> list[tuple[Block, int]]:
        """`take_cells` of one alone, if it is to be advanced."""
        self.draws.pop(cell, None)
        return [(cell, self.cells.pop(cell))] if cell in self.cells else []

    def take_cells(self) -> list[tuple[Block, int]]:
        """The counters still to be advanced, and by how much: whoever takes them advances them."""
        return [one for cell in [*self.cells] for one in self.forget(cell)]
