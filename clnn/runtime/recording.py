"""Record and replay: the launches of a step, noted once with their arguments bound, and run again at once.

The first call of a step is eager, the second and third are recorded and compared, every later one is replayed
(`Replays`). A recording's temporaries share one arena per device, planned by lifetime; what a replay must not
overwrite (parameters, results, whatever outlives the step) stays where it is and is held.
"""

from __future__ import annotations

import contextlib
import itertools
import sys
import time
import weakref
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from functools import partial
from typing import Any

import pyopencl as cl

from ..errors import BuildError, warn
from . import timing
from .ahead import putting_off, uninterrupted
from .device import Device
from .fusing import TIMED, Fusing
from .fusion import Fused
from .memory import SLACK, Arena, Block
from .profile import profile_of_debug
from .recorder import Recorder, StepContext, Temporary
from .timing import active, join, note

MOST_RECORDINGS = 8  # a step keeps that many, least recently used goes


class RecordingWarning(UserWarning):
    """A step could not be recorded; it runs eagerly, with the same results, more slowly."""


class Recording:
    """A step that can be replayed: bound launches, and their temporaries planned into the arena."""

    def __init__(self, device: Device, recorder: Recorder) -> None:
        self.device, self.launches = device, recorder.launches
        self.outlived: list[Block] = []  # what was made in it, and is still in use
        self.temporaries = self._plan()
        self.sizes: list[int] = []  # of the arena's pieces
        for t in self.temporaries:
            self.sizes += [0] * (t.piece + 1 - len(self.sizes))
            self.sizes[t.piece] = max(self.sizes[t.piece], t.offset + t.nbytes)
        self.arena: Arena | None = None
        self.calls: list[Callable[..., Any]] = []
        self.views: dict[Temporary, Any] = {}
        self.queue: cl.CommandQueue | None = None
        self.last: cl.Event | None = None  # of the last launch; a copy may have none
        self.fused: Fused | None = None
        self.steps_to_come = 0  # steps that the caller still expects to run
        self.fusing = Fusing(device, self.launches)

    def _plan(self) -> list[Temporary]:
        """Pin what outlived the step; give every other temporary a place that no overlapping lifetime shares."""
        memory = self.device.memory
        found: dict[Temporary, None] = {}
        for index, launch in enumerate(self.launches):
            for at, arg in enumerate(launch.args):
                if not isinstance(arg, Temporary):
                    continue
                block = arg.alive()
                if block is not None and block.half is None:
                    launch.args[at], block.written_once = block, False
                    self.outlived.append(block)
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

    def made(self, block: Any) -> bool:
        """Whether kernels of this step alone write a block, which was made in it and outlives it."""
        # Copies are between the buffers that there were when they were noted
        copied = [arg for launch in self.launches if launch.function is not None for arg in launch.args]
        return any(one is block for one in self.outlived) and not any(one is block for one in copied)

    def most(self) -> int:
        """How many steps one replay can do."""
        return self.fused.most if self.fused is not None else 1

    def replay(self, times: int = 1) -> None:
        """Enqueue every launch again; several times only up to `most()`."""
        current = self.device.arena() if self.device.arena is not None else None
        noted = timing.opened and active.profiles
        if noted:
            join(self.device)
        timed = self.fused is None and not noted and self.fusing.due(self.steps_to_come)
        if self.fusing.ready:
            self._fuse()
        if not self.calls or self.arena is not current or self.queue is not self.device._queue:
            self._bind()
        if noted:
            self._replay_noted(times)
            return
        contest = self.fusing.contest
        fused = self.fused if contest is None or contest.form == 0 else None
        timed = timed or contest is not None and contest.timed
        if timed:
            self.device.finish()
        began = time.perf_counter()
        for call in times * self.calls if fused is None else [partial(fused.run, times)]:
            try:
                self.last = call()
            except cl.MemoryError as error:
                self.last = self.device.once_more("a replayed step", call, error)
        self.device.launches += times * len(self.calls) if fused is None else 1
        if timed:
            self.device.finish()
        if timed or contest is not None:
            (contest or self.fusing).took((time.perf_counter() - began) / times)

    def _replay_noted(self, times: int) -> None:
        """Replay launch by launch, and tell the profiles of each when it ran."""
        device = self.device
        calls = self.calls if self.fused is None else [one.bind(device.queue, self._resolve) for one in self.launches]
        for step in [object() for _ in range(times)]:
            for launch, call in zip(self.launches, calls, strict=True):
                before = cl.enqueue_marker(device.queue) if launch.function is not None else None
                event = device.enqueued("a replayed step", call)
                if launch.function is not None:
                    device.note_call(launch.label, launch.args, before, event, launch.flops, step)
                else:
                    real = launch.source.real
                    note(
                        device, launch.label, launch.size, launch.args, event, flops=launch.flops, real=real, step=step
                    )
        device.launches += times * len(calls)

    def fuse_now(self) -> None:
        """Make one kernel of the launches at once, whatever it costs, if that can be."""
        self.fusing.worth = 0
        for _ in range(TIMED + 1):  # replays that are timed, and one that it is made before
            if self.fused is None and self.fusing.wanted:
                self.replay()

    def _fuse(self) -> None:
        self.arena, self.calls = None, []  # bound anew
        try:
            self.fused = self.fusing.fuse()
        except BuildError as error:
            warn(
                f"a step's {len(self.launches)} launches do not become one kernel, and are replayed one by one, with the "
                f"same results: {error}. CLNN_FUSE=0 says that this is meant.",
                RecordingWarning,
            )

    def _bind(self) -> None:
        device, self.calls = self.device, []
        arena = device.arena() if device.arena is not None else None
        there = arena.sizes if arena is not None else []
        sizes = [max(pair) for pair in itertools.zip_longest(there, self.sizes, fillvalue=0)]
        if arena is None or sizes != there:
            for one in list(arena.users) if arena is not None else ():  # let go of the old one first
                one.arena, one.calls, one.views = None, [], {}
            self.arena = arena = None
            arena = Arena(device.memory, sizes)
            device.arena = weakref.ref(arena)
        self.arena = arena
        arena.users.add(self)
        self.queue = device.queue  # that of a profile is another one
        blocks = arena.blocks  # a kernel's argument keeps no buffer alive: without the views, replays run on freed ones
        self.views = {t: blocks[t.piece].buffer.get_sub_region(t.offset, t.nbytes + SLACK) for t in self.temporaries}
        if self.fused is not None:
            self.fused.bind(self._resolve)
            self.calls = [self.fused.run]
        if self.fused is None or self.fusing.contest is not None:
            self.calls = [launch.bind(self.queue, self._resolve) for launch in self.launches]

    def _resolve(self, arg: Any) -> Any:
        """An argument as kernels take it."""
        if isinstance(arg, Temporary):
            return self.views[arg]
        return arg.buffer if isinstance(arg, Block) else arg


@dataclass(eq=False)
class Entry:
    """What is known of a step under one key."""

    called: bool = False
    eager: bool = False
    recorder: Recorder | None = None  # of the call before, or of the recording
    recording: Recording | None = None
    result: Any = None
    known: Any = None  # what the host has to do for a replay, as whoever owns the step knows it
    version: Any = None  # of what the step's Python reads, when it last ran
    replays: int = 0
    checked: int = 0
    restarts: int = 0  # since an audit last found no change: recordings dropped because something read had changed
    moving: bool = False  # whether it is recorded although that changes from call to call


class Replays:
    """The recordings of one step, by key, and the rule by which a call is eager, recorded or replayed."""

    def __init__(self, name: str, record: bool = True) -> None:
        self.name, self.record = name, record
        self.told = False  # whether it was said that changes keep it from being recorded
        self._entries: OrderedDict[Hashable, Entry] = OrderedDict()

    def entry(self, key: Hashable) -> Entry | None:
        """What is known of the step under `key`, if it was called; of all, it goes last."""
        if key in self._entries:
            self._entries.move_to_end(key)
        return self._entries.get(key)

    def restart(self, key: Hashable, eager: bool = False) -> None:
        """Forget the recording under `key`: the next calls make a new one, or `eager` ones none."""
        self._entries[key] = Entry(eager=eager, restarts=self._entries[key].restarts)

    def launches(self) -> list[list[str]]:
        """The labels of the launches of every finished recording."""
        return [[one.label for one in e.recording.launches] for e in self._entries.values() if e.recording]

    def run(self, device: Device, key: Hashable, function: Callable[[StepContext], Any]) -> tuple[Any, bool]:
        """Call or replay `function`; its result, and whether that is in memory that the next replay overwrites.

        `function` gets the context of this call, and its launches must be complete when it returns.
        """
        if device.step is not None:  # a step within a step is part of it
            return function(device.step), False
        entry = self.entry(key)
        if entry is None:
            entry = self._entries[key] = Entry()
            if len(self._entries) > MOST_RECORDINGS:
                self._entries.popitem(last=False)
        if entry.recording is not None:
            entry.recording.replay()
            device.pacer.step()
            return entry.result, True
        recorder = Recorder() if entry.called and self.record and not entry.eager else None
        shown = profile_of_debug() if recorder is not None and entry.recorder is not None else contextlib.nullcontext()
        try:
            device._now.step, device.recorder = (context := StepContext()), recorder
            with shown as seen, contextlib.nullcontext() if entry.called else putting_off(device):
                result = function(context)
                device.advance(context.take_cells())
                with uninterrupted():
                    device.settle()
                    context.whole = True
        except BaseException:
            self._entries.pop(key, None)
            raise
        finally:  # without a call, with which Ctrl-C comes
            device._now.step = device._now.recorder = device._now.ahead = None
        entry.called = True
        device.pacer.step()
        recorded = recorder is not None and self._note(device, entry, recorder, result)
        if recorded and seen is not None:
            print(f"the step {self.name!r} is recorded:\n{seen}", file=sys.stderr)
        return result, recorded

    def _note(self, device: Device, entry: Entry, recorder: Recorder, result: Any) -> bool:
        reason, recorder.result = recorder.reason, result
        before, entry.recorder = entry.recorder, recorder
        if reason is None:
            if before is None:
                return False
            reason = before.first_difference(recorder)
        if reason is not None:
            entry.recorder, moving = None, entry.moving
            entry.eager, entry.called, entry.moving = not moving, not moving, False
            what = "cannot be replayed and runs eagerly, with the same results"
            if moving:  # the next call counts as the first
                what = "runs eagerly, with the same results, while what it reads changes before every call"
            if not (moving and self.told):
                self.told = self.told or moving
                warn(
                    f"the step {self.name!r} {what}: {reason}. record=False says that this is meant.", RecordingWarning
                )
            return False
        entry.result = result
        entry.recording = Recording(device, recorder)
        return True

    def clear(self) -> None:
        self._entries.clear()
