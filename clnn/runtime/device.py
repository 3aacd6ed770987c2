"""A device: what it is and can do, its queue and memory, and launching kernels on it.

A `Device` opens its context at first use, so `import clnn` needs no driver. Which one is used, devices/choice.py says.
"""

from __future__ import annotations

import atexit
import contextlib
import math
import os
import re
import threading
import weakref
from collections.abc import Callable, Hashable, Iterator, Sequence
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import pyopencl as cl

from .. import notebook
from ..errors import ClnnError, DeviceError
from .ahead import Ahead, Helpers, job_of, notes, raw
from .devices import form, pocl, selftest
from .lock import FairLock, exclusive
from .memory import SLACK, Arena, Block, Memory
from .pacer import Pacer
from .program import Programs, Source
from .recorder import Argument, AuditEnded, Call, Launch, Recorder, Size, StepContext
from .timing import PROFILED, active, join, note

T = TypeVar("T")
DType = np.dtype[Any] | type[np.generic]  # the type of an array's elements, as NumPy writes it
MOST = 2**31 - 2**16  # elements of an array, and items along an axis: kernels count in 32 bits, in steps of up to 2**16
SOON = 1 << 14  # bytes up to which an upload is a copy that nobody waits for
_every: weakref.WeakSet[Device] = weakref.WeakSet()  # whoever made one has loaded a driver
_forked = False  # since then


def _after_fork() -> None:
    global _forked
    _forked = bool(_every)
    for one in _every:  # a thread that is not in this process may have had it
        one.lock = FairLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


@atexit.register
def _finish_at_exit() -> None:
    """Let work that is still enqueued end before the driver is torn down: a process of PoCL 3.1 was seen to crash there. The lock
    stays taken: Python ends daemon threads where they ask for its own, which within a call of the driver aborts the process."""
    for one in () if _forked else list(_every):
        if "_queue" in vars(one):
            if one.lock.door.acquire(timeout=5.0):
                one.lock.acquire(timeout=5.0)
            with contextlib.suppress(cl.Error):
                one.queue.finish()


class ValuesWanted(Exception):
    """Raised where a dry run, which infers shapes and launches nothing, would read a value."""


class _opened(cached_property[T]):  # noqa: N801 - used as a decorator
    """A cached property that one thread makes while others wait (Python's own has no lock since 3.12)."""

    if not TYPE_CHECKING:  # its type is that of any cached property

        def __get__(self, instance, owner=None):
            if instance is None:
                return self
            with instance.lock:
                return super().__get__(instance, owner)


NO_VALUES = (
    "a tensor without values: it was made while clnn looked whether a recorded step still does the same, which computes nothing, "
    "and was kept since, in a cache (functools.cache) perhaps. Have the cache make it by clnn.constant(array)"
)


class _Now(threading.local):
    """What a thread is doing on a device: recording a step, running one, working out shapes without launching."""

    recorder: Recorder | None = None
    step: StepContext | None = None
    dry = False
    late: list[Callable[[], Any]] = []  # noqa: RUF012 - the launches that a dry pass skipped
    ahead: Ahead | None = None  # those that are put off, while others compile what they need
    unchanging: dict[Block, dict[Any, Block]] = {}  # noqa: RUF012 - whoever runs says so; and what was packed of each


class _Recording(threading.local):
    """The device on which a thread records, or has recorded last."""

    device: Device | None = None


_recording = _Recording()


class Device:
    """One OpenCL device: its properties, and, opened at first use, its context, in-order queue, programs and memory.

    Threads may share it: whoever uses the queue, a shared kernel, the arena or the pool holds `lock`, and a step holds it
    from its first launch to its last. What a thread records, runs or leaves out, no other sees.
    """

    def __init__(self, cl_device: cl.Device, platform_index: int, device_index: int) -> None:
        self.cl_device = cl_device
        self.platform_index, self.device_index = platform_index, device_index
        self.name = cl_device.name.strip()
        self.platform = cl_device.platform.name.strip()
        self.version = cl_device.platform.version.strip()
        self.driver = cl_device.driver_version.strip()
        self.kind = next((kind for kind, flag in form.KINDS.items() if cl_device.type & flag), "other")
        self.compute_units: int = cl_device.max_compute_units
        self.clock_mhz: int = cl_device.max_clock_frequency
        self.global_memory: int = cl_device.global_mem_size
        self.local_memory: int = cl_device.local_mem_size
        extensions = cl_device.extensions.split()
        self.has_fp64 = "cl_khr_fp64" in extensions or "cl_amd_fp64" in extensions
        self.has_fp16 = "cl_khr_fp16" in extensions
        self.lanes: int = cl_device.native_vector_width_float  # of a vector of floats
        self.max_group: int = min(cl_device.max_work_group_size, cl_device.max_work_item_sizes[0])  # along one axis
        self.max_piece: int = cl_device.max_mem_alloc_size  # bytes of one allocation
        self.alignment = max(1, cl_device.mem_base_addr_align // 8)  # bytes, of a sub-buffer's start
        self.unified = bool(cl_device.host_unified_memory)  # whether its memory is the host's
        self.said_turns = 0  # the most_turns that CLNN_DEVICE_AS says, 0 for none
        self.twin: Device | None = None  # the same device on an earlier platform
        self.form = form.take(self, os.environ.get("CLNN_DEVICE_AS", ""))
        self.launches = 0  # kernels, copies and fills enqueued so far; steps fused into one kernel count once
        self.lock, self._now = FairLock(), _Now()
        self.timers = 0  # profiles for which its queue times what it runs
        self.arena: weakref.ref[Arena] | None = None  # the one that the recordings share
        self.constants: dict[Hashable, Block] = {}  # small read-only blocks, by what they hold
        self.tuned: object = None  # what measurements say about its matrix products (clnn/gemm/tuning.py)
        _every.add(self)

    def __repr__(self) -> str:
        return f"<Device {self.platform_index}:{self.device_index} {self.kind} {self.name} ({self.platform})>"

    _repr_html_ = notebook.of_device

    def __deepcopy__(self, memo: Any) -> Device:
        return self

    @property
    def identity(self) -> str:
        """Platform, its version, driver, device and any other form: what stored tuning and self-tests are remembered by."""
        return " | ".join(filter(None, (self.platform, self.version, self.driver, self.name, self.form)))

    @property
    def recorder(self) -> Recorder | None:
        """What notes this thread's launches."""
        one, other = self._now.recorder, _recording.device
        if one is None and other is not None and other._now.recorder is not None:
            self._used_beside(other)
        return one

    @recorder.setter
    def recorder(self, one: Recorder | None) -> None:
        other = _recording.device
        if other is None or other._now.recorder is None:
            _recording.device = self
        elif other is not self:
            self._used_beside(other)
        self._now.recorder = one

    def _used_beside(self, other: Device) -> None:
        """A step that is recorded, or looked at, on another device uses this one, too."""
        other.not_replayed(
            f"the step is one on {other!r} and uses {self!r}, whose work is not recorded: give each device a step of its own, "
            "and pass what it needs of the other as an argument, by .to(device)"
        )

    @property
    def step(self) -> StepContext | None:
        """The step that this thread runs."""
        return self._now.step

    # -- opened at first use ------------------------------------------------------------------------------------------
    @_opened
    def context(self) -> cl.Context:
        check_not_forked()
        pocl.find_linker(self)
        self.helpers.start_early()
        early: list[cl.Context] = []
        self._turns = selftest.check(self, lambda: early.extend(pocl.early(self)))
        with pocl.pinned_threads():
            try:
                return early[0] if early else cl.Context([self.cl_device])
            except cl.Error as error:
                raise DeviceError(f"{self!r} does not open: {error}; see `clnn doctor`") from error

    @cached_property
    def most_turns(self) -> int:
        """How many turns the loops of a work-item can take in all; 0 for any number. A fact that the self-test found out."""
        self.context  # noqa: B018 - opens the device
        found = selftest.count_turns(self) if self._turns is None else self._turns
        return min(found or self.said_turns, self.said_turns or found)

    @property
    def long_loops(self) -> bool:
        """Whether kernels for CPUs suit it, whose work-items do much each, in long loops. Others do one element or tile."""
        return self.kind == "cpu" and not self.most_turns

    def check_turns(self, turns: int, what: str) -> int:
        """How often loops may take so many turns (0: any number); a `DeviceError` where the driver silently ends them earlier."""
        if self.most_turns and turns > self.most_turns:
            raise DeviceError(
                f"{what} takes {turns:,} turns of a loop, and {self!r} ends loops after {self.most_turns:,}: use a smaller one, "
                "or another driver or device"
            )
        return self.most_turns // max(1, turns)

    def vector_width(self, dtype: DType) -> int:
        """Lanes of a vector in kernels: as many as the registers of a CPU have, 4 on GPUs. PoCL before 3.1 (its LLVM 14)
        aborts in the compiler on vectors of 16 floats, so it gets 8."""
        if not self.long_loops:
            return 4
        width = max(4, min(16, self.lanes))
        if (0, 0) < self.pocl_version < (3, 1):
            width = min(width, 8)
        return width if dtype != np.float64 else width // 2

    @property
    def registers(self) -> int:
        """Vector registers of a CPU: 32 with 512-bit vectors, else 16."""
        return 32 if self.lanes >= 16 else 16

    @cached_property
    def pocl_version(self) -> tuple[int, int]:
        """PoCL's version, (0, 0) for other platforms."""
        match = re.search(r"PoCL (\d+)\.(\d+)", self.version)
        return (int(match.group(1)), int(match.group(2))) if match else (0, 0)

    @cached_property
    def local_on_stack(self) -> bool:
        """Whether the local memory of a work-item that is a group of its own may be its stack (STACK in kernels/common.cl):
        where PoCL's threads have enough of it."""
        return self.kind == "cpu" and self.pocl_version > (0, 0) and pocl.deep_stacks()

    @property
    def queue(self) -> cl.CommandQueue:
        """The one queue of commands, in order. ClnnError in a process forked after the device was opened."""
        check_not_forked()
        if self._now.ahead is not None:
            self._now.ahead.run()
        if active.profiles:
            join(self)
        return self._queue

    @_opened
    def usual_queue(self) -> cl.CommandQueue:
        """The queue in use but where a profile is open."""
        return cl.CommandQueue(self.context)

    @_opened
    def _queue(self) -> cl.CommandQueue:
        return self.usual_queue

    @exclusive("lock")
    def time_launches(self, on: bool) -> None:
        """A profile begins, or ends, to need the times of what runs: while there is one, another queue is in use."""
        self.finish()
        self.timers += 1 if on else -1
        if on and self.timers == 1:
            self._queue = self.pacer.queue = cl.CommandQueue(self.context, properties=PROFILED)
        elif not self.timers:
            self._queue = self.pacer.queue = self.usual_queue

    @property
    def memory(self) -> Memory:
        """The pool that its memory comes from. ClnnError in a process forked after the device was opened."""
        check_not_forked()
        return self._memory

    @_opened
    def _memory(self) -> Memory:
        return Memory(self)

    @_opened
    def programs(self) -> Programs:
        return Programs(self.context, self.pocl_version, notes(self))

    @_opened
    def helpers(self) -> Helpers:
        """The processes that compile along."""
        return Helpers(self)

    @_opened
    def pacer(self) -> Pacer:
        return Pacer(self.queue, partial(self.waited, "work enqueued before"))

    @property
    def memory_in_use(self) -> int:
        """Bytes of device memory that live tensors, parameters and recordings take."""
        return self.memory.in_use

    @property
    def memory_peak(self) -> int:
        """The largest `memory_in_use` since the start or the last `reset_memory_peak()`."""
        return self.memory.peak

    def reset_memory_peak(self) -> None:
        """Have `memory_peak` start again from what is in use now."""
        self.memory.peak = self.memory.in_use

    def real(self, dtype: DType) -> str:
        """The OpenCL type for a NumPy float type; a `DeviceError` for float64 where the device has none."""
        if dtype == np.float64:
            if not self.has_fp64:
                raise DeviceError(f"{self!r} has no float64 (cl_khr_fp64); use float32, or another device")
            return "double"
        return "float"

    # -- memory -------------------------------------------------------------------------------------------------------
    @property
    def auditing(self) -> bool:
        """Whether launches are only noted, to be compared with a recording's."""
        return self.recorder is not None and self.recorder.audit

    @property
    def dry_now(self) -> bool:
        """Whether a pass for shapes alone is under way."""
        return self._now.dry

    @property
    def within(self) -> bool:
        """Whether a step, or a pass for shapes alone, is under way: what Python changes now is its own doing."""
        return self.step is not None or self._now.dry

    def check_outside(self, what: str, instead: str) -> None:
        """ClnnError within a step, whose memory each replay writes again, and within a pass for shapes alone."""
        if self.within:
            raise ClnnError(f"{what} is for outside of steps and of layers' forward(): {instead}")

    def ends_audit(self, what: str) -> None:
        """Python is about to do what a recorded step never does: an audit that is under way is at its end."""
        if self.auditing:
            self.not_replayed(what)

    def not_replayed(self, what: str) -> None:
        """Python is about to do what no replay does: a recording of it is given up, and an audit is at its end."""
        if self.recorder is not None:
            self.recorder.abort(what)
            if self.recorder.audit:
                raise AuditEnded

    def allocate(self, nbytes: int) -> Block:
        """A temporary from the pool. Under a recording it is noted as such and planned into the arena."""
        block = Block(self, nbytes, None, self.memory, 0, False) if self.auditing else self.memory.allocate(nbytes)
        block.written_once = True
        if self.recorder is not None:
            self.recorder.add_temporary(block)
        return block

    def allocator(self, nbytes: int) -> cl.Buffer:
        """Memory for an array of PyOpenCL that `clnn.from_pyopencl` can share: its `allocator`. It has the room behind it that
        clnn's kernels may read, and does not count as clnn's."""
        return cl.Buffer(self.context, cl.mem_flags.READ_WRITE, nbytes + SLACK)

    def packed(self, nbytes: int, file: str, name: str, size: Sequence[int], *args: Any, **how: Any) -> Block:
        """A temporary that a kernel fills, as its last argument, from the block before; of one that is `unchanging` it is filled
        once and kept, outside of recordings, while an eighth of memory is free."""
        kept, key = self._now.unchanging.get(args[-1]), (nbytes, name, *size, *args[:-1], *sorted(how.items()))
        if kept is not None and key in kept:
            return kept[key]
        keeps = kept is not None and not self.auditing and not self._now.dry
        keeps, noted = keeps and 8 * (self.memory.in_use + nbytes) < 7 * self.memory.limit, self._now.recorder
        self._now.recorder = None if keeps else noted
        try:
            block = self.allocate(nbytes)
            self.launch(file, name, size, *args, block, **how)
            if keeps:
                self.settle()
        finally:
            self._now.recorder = noted
        return kept.setdefault(key, block) if keeps else block  # type: ignore[union-attr]

    @exclusive("lock")
    def upload(self, array: np.ndarray, block: Block, constant: bool = False) -> None:
        """Copy a contiguous host array to the start of `block`. Inside a recording only constants may be uploaded."""
        if not constant or self.auditing:
            self.not_replayed(
                "an array was uploaded inside the step: pass it as an argument, or make it once with clnn.constant()"
            )
        if self._now.dry and not constant:  # constants are kept, and so needed later
            self._now.late.append(partial(self.upload, array.copy(), block))
        elif array.nbytes > SOON:
            self._copy_at_once("an upload", "upload", block.buffer, array, array.nbytes)
        else:
            self.upload_soon(array, block)

    @exclusive("lock")
    def upload_soon(self, array: np.ndarray, block: Block) -> None:
        """Like `upload`, without waiting for work enqueued before; the array is copied first, and may change at once."""
        if array.nbytes:
            write = partial(self._write_soon, raw(block), array.copy())
            write() if (ahead := self.ahead) is None else ahead.put_off(write)

    def _write_soon(self, buffer: cl.Buffer, array: np.ndarray) -> None:
        event = self.enqueued("an upload", cl.enqueue_copy, self.queue, buffer, array, is_blocking=False)
        self.pacer.hold(event)  # dropping the event would wait for it
        if active.profiles:
            note(self, "upload", None, (), event, step=self.step, held=array.nbytes)

    @exclusive("lock")
    def read(self, block: Block, array: np.ndarray) -> np.ndarray:
        """Copy the start of `block` into a contiguous host array, after all work enqueued so far."""
        self.not_replayed(
            "a result was read back to the host inside the step (numpy(), float(), {t:.3f}, x[mask]): return it instead"
        )
        if self._now.dry:
            raise ValuesWanted
        if array.nbytes:
            self.check_blocks("reading back", (block,))
            self._copy_at_once("reading back", "read", array, block.buffer, array.nbytes)
        return array

    @property
    def reads(self) -> bool:
        """Whether values may be read back now: not where a step is recorded, nor where only shapes are computed."""
        return self.recorder is None and not self._now.dry

    def _copy_at_once(self, what: str, label: str, target: Any, source: Any, nbytes: int) -> None:
        """Copy between host and device, waiting for everything before. Intel's runtime leaves one core to the host's thread,
        which computes along while it waits in clFinish, and idles while it waits for a copy of a queue that is under way."""
        if self.platform.startswith("Intel") and self.kind == "cpu":
            self.finish()
        event = self.waited(what, cl.enqueue_copy, self.queue, target, source, is_blocking=True)
        if active.profiles:
            note(self, label, None, (), event, step=self.step, held=nbytes)

    @contextlib.contextmanager
    def dry(self, dry: bool = True) -> Iterator[list[Callable[[], Any]] | None]:
        """Nothing is launched inside, so nothing is compiled either: for shapes alone. Reading raises `ValuesWanted`.

        It comes with a list of what is left out, to be called in order afterwards by whoever needs the values after all; with
        None within another one, whose list has that, too."""
        now = self._now
        before = now.dry, now.late
        now.dry, now.late = dry, before[1] if before[0] else []
        try:
            yield None if before[0] else now.late
        finally:
            now.dry, now.late = before

    @property
    def ahead(self) -> Ahead | None:
        """Where this thread puts launches off, but for those that a profile is to see."""
        return None if active.profiles else self._now.ahead

    def settle(self) -> None:
        """Enqueue what is put off."""
        if self._now.ahead is not None:
            self._now.ahead.run()

    def copy(self, source: Block, target: Block, nbytes: int) -> None:
        """Copy `nbytes` from block to block on the device."""
        if nbytes:
            self.call("copy", _copy, (source, target), (nbytes,))

    def fill_zero(self, block: Block) -> None:
        """Set every byte of `block` to zero; where a step is recorded by a kernel, which becomes part of a fused one."""
        numbers, items = block.nbytes // 4, self.compute_units
        if self.recorder is not None and self.long_loops and numbers <= MOST:
            self.launch("state", "zero", (items,), numbers, ceil_div(numbers, items), block, local=(1,))
        else:
            self.call("fill", _fill_zero, (block,), (numbers * 4,))

    def advance(self, cells: Sequence[tuple[Block, int]]) -> None:
        """Add to int32 counters, each given with its amount, four in a launch that reads nothing else."""
        for start in range(0, len(cells), 4):
            blocks, amounts = zip(*[*cells[start : start + 4], *[(None, 0)] * 4][:4])
            self.launch("state", "advance", (1,), *blocks, np.array(amounts, np.int32), local=(1,))

    # -- work ---------------------------------------------------------------------------------------------------------
    @exclusive("lock")
    def launch(
        self,
        file: str,
        name: str,
        size: Sequence[int],
        *args: Argument,
        local: Sequence[int] | None = None,
        real: str = "float",
        flops: int = 0,
        **defines: Any,
    ) -> None:
        """Run kernel `name` of `kernels/<file>.cl` over `size` work-items.

        Arguments in the kernel's order: `Block` (or None for a null pointer), whole numbers (int32) and floats (`real`),
        Python's or NumPy's, and short int32 arrays for vector arguments. Without `local`, `size` is padded to whole work-groups,
        and the kernel must guard its edges. A profile is told its `flops`.
        """
        if 0 in size:
            return
        if self._now.dry:
            whole = partial(self.launch, file, name, size, *args, local=local, real=real, flops=flops, **defines)
            self._now.late.append(whole)
            return
        check_not_forked()
        free = local is None
        if local is None:
            size, local = self.grid(size)
        elif self.local_on_stack and set(local) == {1}:
            defines["STACK"] = 1
        if math.prod(local) > self.max_group:
            told = f"asks for groups of {tuple(local)}, and {self!r} has at most {self.max_group} work-items in one"
            raise DeviceError(f"{file}.{name} {told}")
        source = Source(file, name, real, tuple(sorted(defines.items())))
        types, values = _argument_types(args, real)
        if max(size) > MOST:
            raise too_large(f"{file}.{name} was given {max(size):,} work-items along an axis")
        self.check_blocks(f"{file}.{name}", values, real)
        recorder = self.recorder
        if recorder is not None and recorder.audit:
            local = self._group(source, local) if free else tuple(local)
            recorder.add(Launch(source.label, values, flops, source=source, size=tuple(size), local=local))
            return
        if (ahead := self.ahead) is not None and recorder is None:
            how = source, types, tuple(size), tuple(local), [raw(value) for value in values], free
            ahead.put_off(partial(self._enqueue, *how), job_of(source, size, local, values))
            return
        event, size, local = self._enqueue(source, types, tuple(size), tuple(local), values, free)
        if recorder is not None:
            make = partial(self.programs.new_kernel, source, types)
            recorder.add(Launch(source.label, values, flops, source=source, make=make, size=size, local=local))
        if active.profiles:
            note(self, source.label, size, values, event, flops=flops, real=real, step=self.step)

    def _enqueue(
        self, source: Source, types: Any, size: Size, local: Size, values: Sequence[Any], free: bool
    ) -> tuple[cl.Event, Size, Size]:
        """Launch what `launch` was told to: the event, and the sizes, of which a `free` group's may become smaller."""
        name = f"{source.file}.{source.name}"
        queue = self.queue  # first: what is put off, and enqueued by this, may give the kernel other arguments
        try:
            kernel = self.programs.kernel(source, types)
            local = self._group(source, local) if free else local
            kernel.set_args(*[value.buffer if isinstance(value, Block) else value for value in values])
            event = self.enqueued(name, cl.enqueue_nd_range_kernel, queue, kernel, size, local)
        except cl.Error as error:
            most, small = self.programs.group_limits.get(source, self.max_group), ""
            if math.prod(local) > most:  # Mesa's rusticl runs more than it says, so it is asked to
                small = (
                    f"; as compiled, it runs in groups of at most {most}: use another device (CLNN_DEVICE), or groups that small "
                    f"everywhere (CLNN_DEVICE_AS=group={most})"
                )
            told = f"launching {name} over {size} (groups of {local}) on {self!r} failed: {error}{small}"
            raise DeviceError(told) from error
        self.launches += 1
        return event, size, local

    def _group(self, source: Source, local: Sequence[int]) -> tuple[int, ...]:
        """A work-group that may be smaller, as the kernel needs it when compiled: of one that takes many registers some
        devices allow less than they say."""
        limits = self.programs.group_limits
        if not limits or math.prod(local) <= limits.get(source, self.max_group):
            return tuple(local)
        return (1 << (limits[source].bit_length() - 1), *local[1:])  # it divides the size too

    def check_blocks(self, what: str, values: Sequence[Argument], real: str = "float") -> None:
        """`DeviceError` where a block has more elements than kernels can count, is on another device, which some drivers do
        not notice, or has no values."""
        size = 8 if real == "double" else 4
        for value in values:
            if not isinstance(value, Block):
                continue
            if value.nbytes > MOST * size:
                raise too_large(f"{what} was given an array of {value.nbytes // size:,} elements")
            if value.device is not self:
                told = f"{what}: arrays on two devices, {self!r} and {value.device!r}; move one with .to(device)"
                raise DeviceError(told)
            if value.buffer is None and not self.auditing:
                raise DeviceError(f"{what} was given {NO_VALUES}")

    @exclusive("lock")
    def call(
        self, label: str, function: Call, blocks: tuple[Block, ...], scalars: tuple[int, ...], flops: int = 0
    ) -> None:
        """Run `function(queue, *buffers, *scalars)`, which must only enqueue work; noted like a launch. It returns the event
        of that work, if there is one of all of it."""
        if self._now.dry:
            self._now.late.append(partial(self.call, label, function, blocks, scalars, flops))
            return
        if not self.auditing:
            self.check_blocks(label, blocks)
            # any other may wait for somebody, as exchanges between ranks do
            if (ahead := self.ahead) is not None and self.recorder is None and label in ("copy", "fill"):
                ahead.put_off(partial(self._enqueue_call, label, function, (*map(raw, blocks), *scalars)))
                return
            before = cl.enqueue_marker(self.queue) if active.profiles else None
            event = self._enqueue_call(label, function, (*[block.buffer for block in blocks], *scalars))
            if active.profiles:
                self.note_call(label, blocks, before, event, flops, self.step)
        if self.recorder is not None:
            self.recorder.add(Launch(label, [*blocks, *scalars], flops, function))

    def _enqueue_call(self, label: str, function: Call, arguments: tuple[Any, ...]) -> cl.Event | None:
        event: cl.Event | None = self.enqueued(label, function, self.queue, *arguments)
        self.launches += 1
        return event

    def note_call(self, label: str, args: Sequence[Any], before: Any, event: Any, flops: int, step: Any) -> None:
        """Note in profiles what a call enqueued after the marker `before`; without an event of its own, up to now."""
        if event is None:
            note(self, label, None, args, cl.enqueue_marker(self.queue), before=before, flops=flops, step=step)
        else:
            note(self, label, None, args, event, flops=flops, step=step)

    def grid(self, size: Sequence[int]) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The global size padded to whole work-groups, and the work-group."""
        width = self.group_width if len(size) == 1 else min(self.group_width, 64)
        return (ceil_div(size[0], width) * width, *size[1:]), (width,) + (1,) * (len(size) - 1)

    @cached_property
    def group_width(self) -> int:
        """Work-items in a group along the first axis: one number a device, so that nothing is compiled twice."""
        return 1 << (min(128, self.max_group).bit_length() - 1)  # a power of 2: groups add up in halves

    @exclusive("lock")
    def group_limit(self, file: str, name: str, real: str = "float", **defines: Any) -> int:
        """The most work-items of a group that a kernel takes as it is compiled, which may be fewer than the device says."""
        if self._now.dry:
            return self.max_group
        return min(self.max_group, self.programs.group_limit(Source(file, name, real, tuple(sorted(defines.items())))))

    def fitting(self, width: int, file: str, name: str, real: str = "float", **defines: Any) -> int:
        """The largest group, a power of 2 up to `width`, that a kernel takes with so many compiled in as WIDTH."""
        while width > 1 and (most := self.group_limit(file, name, real, WIDTH=width, **defines)) < width:
            width = 1 << (most.bit_length() - 1)
        return width

    def finish(self) -> None:
        """Wait for all work enqueued so far."""
        self.waited("work enqueued before", self.queue.finish)

    # -- a driver without memory: those that allocate at first use say so late -----------------------------------------
    def enqueued(self, what: str, enqueue: Callable[..., Any], *args: Any, **how: Any) -> Any:
        """What `enqueue` returns, which enqueues work; see `once_more`."""
        try:
            return enqueue(*args, **how)
        except cl.MemoryError as error:
            return self.once_more(what, partial(enqueue, *args, **how), error)

    def once_more(self, what: str, enqueue: Callable[[], Any], error: cl.MemoryError) -> Any:
        """Enqueue what the driver had no memory for again, after it got back what the pool keeps; `OutOfDeviceMemory` if it
        still has none. Nothing that failed was run, so nothing is run twice."""
        try:
            self.queue.finish()
            self.memory.free_held()
            return enqueue()
        except cl.Error:
            raise self.memory.out_of_memory(what, f"the driver says: {error}") from error

    def waited(self, what: str, wait: Callable[..., Any], *args: Any, **how: Any) -> Any:
        """What `wait` returns, which waits for the driver; `OutOfDeviceMemory` where that has none. It may have had none for
        anything before, so nothing is tried again."""
        try:
            return wait(*args, **how)
        except cl.MemoryError as error:
            raise self.memory.out_of_memory(what, f"the driver says: {error}") from error


def _copy(queue: cl.CommandQueue, source: cl.Buffer, target: cl.Buffer, nbytes: int) -> cl.Event:
    return cl.enqueue_copy(queue, target, source, byte_count=nbytes)


def _fill_zero(queue: cl.CommandQueue, buffer: cl.Buffer, nbytes: int) -> cl.Event | None:
    return cl.enqueue_fill_buffer(queue, buffer, np.zeros(1, np.int32), 0, nbytes) if nbytes else None


def too_large(what: str) -> DeviceError:
    return DeviceError(
        f"{what}, and the most is {MOST:,}, because kernels count in 32 bits; use smaller arrays, such as a smaller batch"
    )


def ceil_div(a: int, b: int) -> int:
    """a / b, rounded up."""
    return -(-a // b)


def int_vector(values: Sequence[int]) -> np.ndarray:
    """Sizes as one argument of a kernel; a `DeviceError` for one that 32 bits do not hold (NumPy 1 would cut it down)."""
    if max(values) >= 2**31 or min(values) < -(2**31):
        raise too_large(f"a kernel was given the sizes {', '.join(f'{value:,}' for value in values)}")
    return np.array(values, np.int32)


def _argument_types(args: Sequence[Argument], real: str) -> tuple[tuple[type[np.generic] | None, ...], list[Argument]]:
    scalar = np.float64 if real == "double" else np.float32
    types: list[type[np.generic] | None] = []
    values: list[Argument] = []
    for value in args:
        if value is None or isinstance(value, Block):
            types.append(None)
        elif isinstance(value, (bool, int, np.bool_, np.integer)):
            if not -(2**31) <= value < 2**31:
                raise too_large(f"a kernel was given the size {value:,}")
            types.append(np.int32)
            value = int(value)
        elif isinstance(value, (float, np.floating)):
            types.append(scalar)
            value = float(value)
        elif isinstance(value, np.ndarray) and value.dtype in (np.int32, scalar):
            types.append(None)  # a short vector is passed as its bytes
        else:
            told = f"a kernel of {real} takes buffers, numbers and short vectors of int32 or {real}, and was given {value!r}"
            raise DeviceError(told)
        values.append(value)
    return tuple(types), values


def check_not_forked() -> None:
    """OpenCL hangs in a child that was forked after the driver was loaded: raise instead."""
    if _forked:
        raise DeviceError(
            "OpenCL does not survive a fork: this process was forked after clnn had loaded the driver. "
            'Start workers with multiprocessing.get_context("spawn").'
        )
