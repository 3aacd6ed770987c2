"""Device memory: blocks from pyopencl's pool or of their own, counted in bytes really allocated, within a budget, none of
them larger than what the device gives in one piece."""

from __future__ import annotations

import gc
import itertools
import math
import os
import re
import weakref
from collections import deque
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import pyopencl as cl
import pyopencl.tools as cl_tools

from ..errors import ClnnError, ConfigurationError, OutOfDeviceMemory
from .lock import FairLock, exclusive
from .pages import LARGE, LargePages

MOST_BYTES = 4 * (2**31 - 2**16)  # of what is cut into pieces: kernels count an array's elements in 31 bits
numbers = itertools.count()  # of blocks: those made later have larger ones
SLACK = 256  # bytes after every block that kernels may read (never write): whole vectors at an array's end
ALIGNMENT = 512  # bytes; where views and arena regions start, unless the device wants more: then at multiples of both


class Owner(Protocol):
    """What memory, and whoever has a block of it, asks of the device that it is on."""

    name: str
    cl_device: cl.Device
    max_piece: int
    alignment: int
    lock: FairLock
    timers: int

    @property
    def queue(self) -> cl.CommandQueue: ...

    @property
    def usual_queue(self) -> cl.CommandQueue: ...

    def ends_audit(self, what: str) -> None: ...

    def copy(self, source: Block, target: Block, nbytes: int) -> None: ...

    def read(self, block: Block, array: np.ndarray) -> np.ndarray: ...


class Block:
    """A range of device memory that tensors share and recordings track; freed when the last reference goes."""

    __slots__ = ("device", "nbytes", "buffer", "memory", "counted", "plain", "ticket", "written_once", "half", "number",
                 "__weakref__")  # fmt: skip

    def __init__(self, device: Owner, nbytes: int, buffer: Any, memory: Memory, counted: int, plain: bool) -> None:
        self.device, self.nbytes, self.buffer = device, nbytes, buffer
        self.memory, self.counted, self.plain = memory, counted, plain
        self.ticket: Any = None  # set by a recorder that it was made under: then it is a temporary of that step
        self.written_once = False  # as results of ops are, unlike parameters and what replays write
        self.half: Any = None  # what has its values from now on, see clnn/ops/half.py
        self.number = next(numbers)

    def release(self) -> None:
        """Give the memory back now, though others still refer to the block."""
        self.memory.freed.append((self.counted, self.plain))
        self.buffer, self.counted = None, 0

    def view(self, start: int, nbytes: int) -> Block:
        """A sub-range as a block of its own; `start` must be aligned (`Memory.align`), the parent not pooled."""
        return View(self, start, nbytes)

    @property
    def role(self) -> object:
        """What tells this range of memory from another, and is equal for two views of the same range."""
        return id(self)

    def __reduce__(self) -> Any:
        raise ClnnError(
            "memory of a device is neither copied nor pickled as it is: take what is in it with .numpy(), and models and "
            "their optimizers to a file with net.save(path) and clnn.load(path)"
        )

    def __del__(self) -> None:  # in whatever thread, at whatever place: nothing here may wait
        self.memory.freed.append((self.counted, self.plain))


class View(Block):
    __slots__ = ("parent", "start")

    def __init__(self, parent: Block, start: int, nbytes: int) -> None:
        region = parent.buffer.get_sub_region(start, nbytes + SLACK)
        super().__init__(parent.device, nbytes, region, parent.memory, 0, False)
        self.parent, self.start = parent, start  # the parent's bytes stay counted as long as a view lives

    @property
    def role(self) -> object:
        return id(self.parent), self.start, self.nbytes


class Memory:
    """What one device has given out: `in_use`, `peak` and `held` bytes, and the budget that they stay within.

    With `poisoned` every block starts as NaN (-1 as integers), with whatever it was rounded up by: an element that nobody
    writes is seen, and so is one that is read from past the end. The tests and `clnn verify` set it.
    """

    poisoned = False

    def __init__(self, device: Owner) -> None:
        self._device = device
        # drivers that allocate at first use do so at once
        self._allocator = cl_tools.ImmediateAllocator(device.usual_queue)
        self._pool = cl_tools.MemoryPool(self._allocator)
        self._pages = LargePages(device.usual_queue.context, device.cl_device)
        self._in_use = self._plain_in_use = self.peak = 0
        # (bytes, whether of its own) of blocks that went since the last look
        self.freed: deque[tuple[int, bool]] = deque()
        self.limit = memory_limit(device.cl_device)
        self.largest = device.max_piece
        self.piece = min(self.largest, MOST_BYTES)  # what is cut into pieces is cut into those
        self.alignment = math.lcm(ALIGNMENT, device.alignment)

    @property
    def in_use(self) -> int:
        """Bytes of blocks that are alive."""
        return self._settled()[0]

    def _settled(self) -> tuple[int, int]:
        """Bytes in use, and those of them in blocks of their own, without what has gone by now."""
        with self._device.lock:
            while self.freed:
                counted, plain = self.freed.popleft()
                self._in_use -= counted
                self._plain_in_use -= counted if plain else 0
            return self._in_use, self._plain_in_use

    @property
    def held(self) -> int:
        """Bytes taken from the driver: those in use and those that the pool keeps for reuse."""
        return self._pool.managed_bytes + self._settled()[1]

    @exclusive("_device.lock")
    def allocate(self, nbytes: int, pooled: bool = True) -> Block:
        """A block of at least `nbytes`. Pooled blocks are cheap; plain ones can have views."""
        self._device.ends_audit("memory that outlives the step was taken inside it")
        size = self._pool.alloc_size(self._pool.bin_number(nbytes + SLACK))  # what the pool really takes
        pooled = pooled and size <= self.largest
        size = size if pooled else self.align(nbytes + SLACK)
        self._make_room(nbytes, size)
        large = nbytes >= LARGE
        before = self.held if large else 0
        try:
            buffer: Any = self._pool.allocate(nbytes + SLACK) if pooled else self._plain(size)
        except (cl.MemoryError, cl.RuntimeError) as error:
            raise self.out_of_memory(nbytes, f"the driver says: {error}") from error
        if large and (self.held > before or not pooled):  # from the driver
            self._pages.ask(buffer, nbytes)
        if self._device.timers:  # what the allocator has enqueued is in the usual queue, and a profile's is in use
            self._device.usual_queue.finish()
        if self.poisoned:
            cl.enqueue_fill_buffer(self._device.queue, buffer, np.full(1, -1, np.int32), 0, size // 4 * 4)
        self._in_use += size
        self._plain_in_use += 0 if pooled else size
        self.peak = max(self.peak, self.in_use)
        return Block(self._device, nbytes, buffer, self, size, not pooled)

    def _plain(self, size: int) -> cl.Buffer:
        try:
            return self._allocator(size)
        except cl.MemoryError:  # for its own blocks the pool does the same
            self.free_held()
            return self._allocator(size)

    def align(self, nbytes: int) -> int:
        """`nbytes` rounded up to where the next view may start."""
        return -(-nbytes // self.alignment) * self.alignment

    def fits(self, nbytes: int) -> bool:
        """Whether so many bytes can be one block: what is larger has to be cut into several."""
        return self.align(nbytes + SLACK) <= self.piece

    def _make_room(self, nbytes: int, size: int) -> None:
        if size > self.largest:
            raise self.out_of_memory(
                nbytes, f"the device gives at most {human(self.largest)} in one piece, and an array is one piece"
            )
        if self.held + size <= self.limit:
            return
        self._pool.free_held()
        if self.held + size > self.limit:
            self.free_held()
        if self.held + size > self.limit:
            raise self.out_of_memory(nbytes, "the budget is CLNN_MEMORY_LIMIT, by default 90% of what there is")

    def out_of_memory(self, asked: int | str, why: str) -> OutOfDeviceMemory:
        """The error: how many bytes were asked for, or what was done when the driver had none left."""
        free = max(0, self.limit - self.held)
        asked = f"{human(asked)} asked for" if isinstance(asked, int) else f"{asked} found no memory"
        return OutOfDeviceMemory(
            f"{asked} on {self._device.name}, where {human(self.in_use)} are in use, "
            f"{human(self.held)} held and {human(free)} free of a budget of {human(self.limit)} ({why}); "
            "use a smaller batch or model, or drop tensors that are no longer needed"
        )

    def free_held(self) -> None:
        """Give back to the driver what the pool keeps for reuse."""
        gc.collect()
        self._pool.free_held()


class Arena:
    """The bytes in which the temporaries of all recordings of a device are (replays follow each other in one queue): as
    many pieces as it takes, none larger than the device allows."""

    def __init__(self, memory: Memory, sizes: Sequence[int]) -> None:
        self.sizes = list(sizes)
        self.blocks = [memory.allocate(size, pooled=False) for size in sizes]
        self.users: weakref.WeakSet[Any] = weakref.WeakSet()  # recordings that are bound to it


def memory_limit(device: cl.Device) -> int:
    """The budget in bytes: `CLNN_MEMORY_LIMIT` (as 2G, 512M, 80% or bytes), or 90% of what there is.

    What there is: the device's memory, and for devices that share the host's memory no more than the host has free. A budget
    above the device's memory (or the host's: what such a device says of it changes with what is free) is a `ConfigurationError`.
    """
    most = total = device.global_mem_size
    if device.type & cl.device_type.CPU or device.host_unified_memory:
        most, total = max(most, _host_bytes("SC_PHYS_PAGES")), min(total, host_available(total))
    if not (text := os.environ.get("CLNN_MEMORY_LIMIT", "").strip()):
        return int(total * 0.9)
    limit = parse_size(text, total)
    if limit is None:
        raise ConfigurationError(f"CLNN_MEMORY_LIMIT={text!r} is not a size; write 2G, 512M, 80% or a number of bytes")
    if limit > (total if "%" in text else most):
        raise ConfigurationError(
            f"CLNN_MEMORY_LIMIT={text!r} is more than the {human(most)} of memory that {device.name.strip()} has; write at most "
            "100%, or a smaller size, or unset it for 90%"
        )
    return limit


def parse_size(text: str, whole: int = 0) -> int | None:
    """The bytes that 2G, 1.5m, 512 KiB, 4096 or 80% (of `whole`) mean; None for anything else."""
    if not (match := re.fullmatch(r"(\d+(?:\.\d+)?)\s*(%|[kKmMgGtT]?)(?:i?[bB])?", text)):
        return None
    number, unit = float(match.group(1)), match.group(2).lower()
    return int(whole * number / 100) if unit == "%" else int(number * 1024 ** " kmgt".index(unit or " "))


def _host_bytes(pages: str) -> int:
    """Bytes of the pages that the host counts by this name; 0 where it does not say."""
    try:
        return os.sysconf(pages) * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):
        return 0


def host_available(default: int) -> int:
    """Bytes that the host has free, with what it gives back on demand; `default` where it does not say."""
    free = _host_bytes("SC_AVPHYS_PAGES")
    return free + _page_cache() if free else default


def _page_cache() -> int:
    """Bytes of file cache that Linux gives back on demand (0 elsewhere)."""
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            fields = dict(line.split(":", 1) for line in file)
        return max(0, int(fields["MemAvailable"].split()[0]) - int(fields["MemFree"].split()[0])) * 1024
    except (OSError, KeyError, ValueError):
        return 0


def human(nbytes: int) -> str:
    """Bytes as people read them: 1.5 MiB."""
    for unit, one in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if nbytes >= one:
            return f"{nbytes / one:.1f} {unit}"
    return f"{nbytes:.0f} bytes"
