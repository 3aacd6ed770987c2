"""Record and replay: the launches of a step, noted once with their arguments bound, and run again at once.

The first call of a step is eager, the second and third are recorded and compared, every later one is replayed
(`Replays`). A recording's temporaries share one arena per device, planned by lifetime; what a replay must not
overwrite (parameters, results, whatever outlives the step) stays where it is and is held.
"""

from __future__ import annotations

import itertools
import time
import warnings
import weakref
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pyopencl as cl

from ..errors import BuildError
from .fusion import WORTH, Fused, fuse
from .memory import SLACK, Block

if TYPE_CHECKING:
    from .device import Device

MOST_RECORDINGS = 8  # a step keeps that many, least recently used goes
TIMED = 10  # replays, of which the fastest says whether a step is worth fusing
MOST_HELD = 1024  # uploads under way
IN_FLIGHT = 0.050  # seconds of enqueued work, at most about that
MOST_BETWEEN = 256  # steps between markers: a driver keeps some hundred bytes for every launch that waits


class RecordingWarning(UserWarning):
    """A step could not be recorded; it runs eagerly, with the same results, more slowly."""


class _Structure:
    version = 0


def structure_changed() -> None:
    """Something that recordings froze has changed (what is trainable, a rate of dropout): each is checked before its
    next replay."""
    _Structure.version += 1


def structure_version() -> int:
    """How often `structure_changed` was called."""
    return _Structure.version


class AuditEnded(BaseException):
    """The Python of a step does what no recording does, so that its launches need no comparison."""


class Temporary:
    """A block made inside a step, as recordings know it: its size, and whether it outlived the step."""

    __slots__ = ("call", "nbytes", "alive", "first", "last", "piece", "offset")

    def __init__(self, call: object, block: Block) -> None:
        self.call, self.nbytes, self.alive = call, block.nbytes, weakref.ref(block)
        self.first = self.last = -1
        self.piece = self.offset = 0  # where it lies in the arena


class Launch:
    """One noted launch: a kernel or a call, and its arguments as blocks, temporaries and scalars."""

    __slots__ = ("label", "source", "kernel", "function", "size", "local", "args")

    def __init__(
        self, label: str, source: Any, kernel: Any, function: Any, size: Any, local: Any, args: list[Any]
    ) -> None:
        self.label, self.source, self.kernel, self.function = label, source, kernel, function
        self.size, self.local, self.args = size, local, args

    def bind(self, queue: cl.CommandQueue, resolve: Callable[[Any], Any]) -> Callable[[], Any]:
        """Set the arguments; what comes back runs the launch and takes nothing."""
        values = [resolve(arg) for arg in self.args]
        if self.kernel is None:
            return partial(self.function, queue, *values)
        self.kernel.set_args(*values)
        return partial(cl.enqueue_nd_range_kernel, queue, self.kernel, self.size, self.local)


class Recorder:
    """Notes the launches of one call of a step. An `audit` only notes: nothing runs, and no memory is taken."""

    def __init__(self, audit: bool = False) -> None:
        self.audit = audit
        self.launches: list[Launch] = []
        self.result: Any = None
        self.call = object()  # known to its temporaries, which would be in a cycle with the recorder itself
        self.reason: str | None = None  # why this call cannot be replayed

    def abort(self, reason: str) -> None:
        self.reason = self.reason or reason

    def add_temporary(self, block: Block) -> None:
        block.ticket = Temporary(self.call, block)

    def add_kernel(self, source: tuple[Any, ...], kernel: Any, size: Any, local: Any, values: list[Any]) -> None:
        """Note a launch of kernel `source[1]` of file `source[0]`, for a type and with defines."""
        file, name, _, defines = source
        args = [self._noted(value) for value in values]
        self.launches.append(Launch(f"{file}.{name}{dict(defines) or ''}", source, kernel, None, size, local, args))

    def add_call(self, label: str, function: Any, blocks: tuple[Block, ...], scalars: tuple[Any, ...]) -> None:
        args = [self._noted(block) for block in blocks] + list(scalars)
        self.launches.append(Launch(label, None, None, function, None, None, args))

    def _noted(self, value: Any) -> Any:
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
        return value.role if isinstance(value, Block) else value

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
                    return f"argument {at} of launch {index}, {mine.label}, is {_shown(a)}, then {_shown(b)}"
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


class Arena:
    """The bytes in which the temporaries of all recordings of a device lie (replays follow each other in one queue): as
    many pieces as it takes, none larger than the device allows."""

    def __init__(self, device: Device, sizes: Sequence[int]) -> None:
        self.sizes = list(sizes)
        self.blocks = [device.memory.allocate(size, pooled=False) for size in sizes]


class Recording:
    """A step that can be replayed: bound launches, and their temporaries planned into the arena."""

    def __init__(self, device: Device, recorder: Recorder) -> None:
        self.device, self.launches = device, recorder.launches
        self.temporaries = self._plan()
        self.sizes: list[int] = []  # of the arena's pieces
        for t in self.temporaries:
            self.sizes += [0] * (t.piece + 1 - len(self.sizes))
            self.sizes[t.piece] = max(self.sizes[t.piece], t.offset + t.nbytes)
        self.nbytes = sum(self.sizes)
        self.arena: Arena | None = None
        self.calls: list[Callable[[], Any]] = []
        self.fused: Fused | None = None
        self.replays = 0
        self.steps_to_come = 0  # as far as whoever runs this knows
        self.timed, self.seconds = 0, float("inf")  # replays timed so far, and the fastest of them

    def _plan(self) -> list[Temporary]:
        """Pin what outlived the step; give every other temporary a place that no overlapping lifetime shares."""
        memory = self.device.memory
        found: dict[Temporary, None] = {}
        for index, launch in enumerate(self.launches):
            for at, arg in enumerate(launch.args):
                if not isinstance(arg, Temporary):
                    continue
                block = arg.alive()
                if block is not None:
                    launch.args[at] = block
                    continue
                arg.first = index if arg.first < 0 else arg.first
                arg.last = index
                found[arg] = None
        placed: list[Temporary] = []
        for one in sorted(found, key=lambda t: -t.nbytes):
            rivals = [t for t in placed if t.first <= one.last and one.first <= t.last]
            for piece in itertools.count():
                offset = 0
                for rival in sorted((t for t in rivals if t.piece == piece), key=lambda t: t.offset):
                    if memory.align(offset + one.nbytes) <= rival.offset:
                        break
                    offset = max(offset, memory.align(rival.offset + rival.nbytes))
                if not offset or memory.fits(offset + one.nbytes):
                    break
            one.piece, one.offset = piece, offset
            placed.append(one)
        return placed

    def most(self) -> int:
        """How many steps one replay can do."""
        return self.fused.most if self.fused is not None else 1

    def replay(self, times: int = 1) -> None:
        """Enqueue every launch again; several times only up to `most()`."""
        current = self.device.arena and self.device.arena()
        if not self.calls or self.arena is not current:
            self._bind()
        if self.fused is not None:
            try:
                self.fused.run(times)
            except cl.MemoryError as error:
                self.device.once_more("a replayed step", partial(self.fused.run, times), error)
            self.device.launches += 1
            return
        self.replays += 1
        timed = self.timed < TIMED and max(self.replays, self.steps_to_come) >= WORTH
        if timed:
            self.device.finish()
        began = time.perf_counter()
        for call in self.calls:
            try:
                call()
            except cl.MemoryError as error:
                self.device.once_more("a replayed step", call, error)
        self.device.launches += len(self.calls)
        if timed:
            self.device.finish()
            self.seconds = min(self.seconds, time.perf_counter() - began)
            self.timed += 1
            if self.timed == TIMED:
                self._fuse()
                self.arena = None  # bound anew at the next replay
                self.calls = []

    def _fuse(self) -> None:
        try:
            self.fused = fuse(self.device, self.launches, self.seconds)
        except BuildError as error:
            warnings.warn(
                f"a step's {len(self.launches)} launches do not become one kernel, and are replayed one by one, with the "
                f"same results: {error}. CLNN_FUSE=0 says that this is meant.",
                RecordingWarning,
                stacklevel=6,
            )

    def _bind(self) -> None:
        device = self.device
        arena = device.arena and device.arena()
        there = arena.sizes if arena is not None else []
        sizes = [max(pair) for pair in itertools.zip_longest(there, self.sizes, fillvalue=0)]
        if arena is None or sizes != there:
            self.arena = arena = None  # let go of the old one first
            arena = Arena(device, sizes)
            device.arena = weakref.ref(arena)
        self.arena = arena
        views = {t: arena.blocks[t.piece].buffer.get_sub_region(t.offset, t.nbytes + SLACK) for t in self.temporaries}

        def resolve(arg: Any) -> Any:
            if isinstance(arg, Temporary):
                return views[arg]
            return arg.buffer if isinstance(arg, Block) else arg

        self.views = views  # a kernel's argument keeps no buffer alive: without this, replays run on freed ones
        self.calls = [launch.bind(device.queue, resolve) for launch in self.launches]
        if self.fused is not None:
            self.fused.bind(resolve)


class StepContext:
    """What one call of a step has touched and must be settled at its end: counters on the device to advance."""

    def __init__(self, device: Device) -> None:
        self.device = device
        self.cells: dict[Block, int] = {}
        self.draws: dict[Block, int] = {}
        self.classes: dict[Block, int] = {}  # of arrays that losses took for class numbers: how many classes there are
        self.prepared: list[Any] = []  # optimizers that take one step in it, and whose counters have moved on for that
        self.moved = False  # whether fit's counters have moved on to the next mini-batch
        self.stepped: list[tuple[Any, Any]] = []  # other steps that were taken: (optimizer, its parameters)
        # the gradients that a parameter had received before, for those that this changes
        self.received: dict[Any, int] = {}

    def advance(self, cell: Block, by: int = 1) -> None:
        """Add `by` to the int32 in `cell` when the step ends, once however often this is said."""
        self.cells[cell] = by

    def draw(self, cell: Block) -> int:
        """The number of this draw from the generator whose position is in `cell`: 0, 1, ... within the step."""
        number = self.draws.get(cell, 0)
        self.draws[cell] = number + 1
        self.advance(cell)
        return number

    def take_cells(self) -> list[tuple[Block, int]]:
        """The counters still to be advanced, handed to a kernel that does it along with its own work."""
        taken = list(self.cells.items())
        self.cells.clear()
        return taken

    def finish(self) -> None:
        """Advance what nobody took, in one launch that is the step's last and reads nothing else."""
        cells = self.take_cells()
        for start in range(0, len(cells), 4):
            advance_cells(self.device, cells[start : start + 4])


def advance_cells(device: Device, cells: list[tuple[Block, int]]) -> None:
    """Add to up to four int32 counters on the device."""
    blocks: list[Any] = [block for block, _ in cells] + [None] * (4 - len(cells))
    amounts = np.array([by for _, by in cells] + [0] * (4 - len(cells)), np.int32)
    device.launch("state", "advance", (1,), *blocks, amounts, local=(1,))


class Pacer:
    """Keeps the host from running more than about 50 ms ahead: a marker every few steps, waited for one later."""

    def __init__(self, device: Device) -> None:
        self.device, self.queue, self.every, self.count = device, device.queue, 1, 0
        self.marker: Any = None
        self.held: list[Any] = []  # uploads since the last marker, and those before it
        self.held_before: list[Any] = []
        self.last = time.perf_counter()

    def hold(self, event: Any) -> None:
        """Keep an upload alive until a later marker has been waited for."""
        self.held.append(event)
        if len(self.held) >= MOST_HELD:
            self._wait(event)
            self.held.clear()

    def _wait(self, event: Any) -> None:
        try:
            event.wait()
        except cl.MemoryError as error:
            raise self.device.no_memory("work enqueued before", error) from error

    def step(self) -> None:
        """A step was enqueued."""
        self.count += 1
        if self.count < self.every:
            return
        self.count = 0
        previous, self.marker = self.marker, cl.enqueue_marker(self.queue)
        self.queue.flush()
        if previous is not None:
            self._wait(previous)
        self.held_before, self.held = self.held, []  # what goes here lies before the marker that was waited for
        now = time.perf_counter()
        if now - self.last < IN_FLIGHT / 4:
            self.every = min(2 * self.every, MOST_BETWEEN)
        elif now - self.last > IN_FLIGHT / 2:
            self.every = max(1, self.every // 2)
        self.last = now


class Entry:
    """What is known of a step under one key."""

    __slots__ = (
        "called",
        "recorder",
        "recording",
        "result",
        "eager",
        "known",
        "version",
        "replays",
        "checked",
        "restarts",
        "moving",
    )

    def __init__(self) -> None:
        self.called = False
        self.recorder: Recorder | None = None  # of the call before, or of the recording
        self.recording: Recording | None = None
        self.result: Any = None
        self.eager = False
        self.known: Any = None  # what the host has to do for a replay, as whoever owns the step knows it
        self.version: Any = None  # of what the step's Python reads, when it last ran
        self.replays = self.checked = 0
        self.restarts = 0  # because what the step's Python reads had changed, since it last did the same as before
        self.moving = False  # whether it is recorded although that changes from call to call


class Replays:
    """The recordings of one step, by key, and the rule by which a call is eager, recorded or replayed."""

    def __init__(self, name: str, record: bool = True) -> None:
        self.name, self.record = name, record
        self.told = False  # whether it was said that changes keep it from being recorded
        self._entries: OrderedDict[Hashable, Entry] = OrderedDict()

    def entry(self, key: Hashable) -> Entry | None:
        """What is known of the step under `key`, if it was called; of all, it goes last."""
        entry = self._entries.get(key)
        if entry is not None:
            self._entries.move_to_end(key)
        return entry

    def restart(self, key: Hashable, eager: bool = False) -> None:
        """Forget the recording under `key`: the next calls make a new one, or `eager` ones none."""
        restarts = self._entries[key].restarts
        self._entries[key] = entry = Entry()
        entry.restarts, entry.eager = restarts, eager

    def launches(self) -> list[list[str]]:
        """The labels of the launches of every finished recording."""
        return [[one.label for one in e.recording.launches] for e in self._entries.values() if e.recording]

    def run(self, device: Device, key: Hashable, function: Callable[[StepContext], Any]) -> tuple[Any, bool]:
        """Call or replay `function`; its result, and whether that lies in memory the next replay overwrites.

        `function` gets the context of this call, and its launches must be complete when it returns.
        """
        if device.step is not None:  # a step within a step is part of it
            return function(device.step), False
        entry = self.entry(key)
        if entry is None:
            entry = self._entries[key] = Entry()
            if len(self._entries) > MOST_RECORDINGS:
                self._entries.popitem(last=False)
        pacer = device.pacer
        if entry.recording is not None:
            entry.recording.replay()
            pacer.step()
            return entry.result, True
        recorder = Recorder() if entry.called and self.record and not entry.eager else None
        device.step = context = StepContext(device)
        device.recorder = recorder
        try:
            result = function(context)
            context.finish()
        except BaseException:
            self._entries.pop(key, None)
            raise
        finally:
            device.step = device.recorder = None
        entry.called = True
        pacer.step()
        return result, recorder is not None and self._note(device, entry, recorder, result)

    def _note(self, device: Device, entry: Entry, recorder: Recorder, result: Any) -> bool:
        reason, recorder.result = recorder.reason, result
        if reason is None and entry.recorder is None:
            entry.recorder = recorder
            return False
        if reason is None and entry.recorder is not None:
            reason = entry.recorder.first_difference(recorder)
        entry.recorder = recorder
        if reason is not None:
            entry.recorder, moving = None, entry.moving
            entry.eager, entry.called, entry.moving = not moving, not moving, False
            what = "cannot be replayed and runs eagerly, with the same results"
            if moving:  # the next call counts as the first
                what = "runs eagerly, with the same results, while what it reads changes before every call"
            if not (moving and self.told):
                self.told = self.told or moving
                warnings.warn(
                    f"the step {self.name!r} {what}: {reason}. record=False says that this is meant.",
                    RecordingWarning,
                    stacklevel=5,
                )
            return False
        entry.result = result
        entry.recording = Recording(device, recorder)
        return True

    def clear(self) -> None:
        self._entries.clear()
