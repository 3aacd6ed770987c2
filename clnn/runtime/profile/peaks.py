"""A device's own limits, measured: multiply-adds in registers, copying in its memory; and whether its clock tells the time."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import cached_property
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import pyopencl as cl

from ...errors import DeviceError
from ..device import Device
from ..memory import Block
from ..program import Source
from ..timing import PROFILED

COPY_BYTES = 128 << 20
FMA_ROUNDS, FMA_SUMS = 1 << 16, 16
CLOCK = 0.01  # seconds of the launch by which a clock is judged
_known: WeakKeyDictionary[Any, dict[str, float]] = WeakKeyDictionary()


class Peaks:
    """What one device can do at most, in float32 or, with real="double", in float64."""

    def __init__(self, device: Device, real: str = "float") -> None:
        self.device, self.real, d = device, real, device
        self.bytes = 8 if real == "double" else 4
        self.items = 16 * d.compute_units * (1 if d.long_loops else 256)
        self.local = 1 if d.long_loops else min(64, d.group_width)
        # a driver that ends long loops, with those over sums inside, would be taken for a fast one
        self.rounds = min(FMA_ROUNDS, d.most_turns // (4 * FMA_SUMS)) if d.most_turns else FMA_ROUNDS
        self.width = d.vector_width(np.float64 if real == "double" else np.float32)

    @cached_property
    def out(self) -> Block:
        return self.device.memory.allocate(self.bytes * self.items)

    @cached_property
    def copies(self) -> tuple[Block, Block]:
        """A block and one to copy it to."""
        memory = self.device.memory
        size = min(COPY_BYTES, memory.limit // 8, memory.piece // 2) // 4096 * 4096
        source, target = memory.allocate(size), memory.allocate(size)
        self.device.fill_zero(source)
        return source, target

    def measure(self) -> dict[str, float]:
        """GFLOP/s and GB/s (read and written bytes together), each over a few hundredths of a second."""
        return {"gflops": self.gflops(), "gbytes": self.gbytes()}

    def gflops(self) -> float:
        """GFLOP/s of multiply-adds that never leave registers."""
        return 2e-9 * self.items * self.width * FMA_SUMS * self._rate(self._fma)

    def gbytes(self) -> float:
        """GB/s of a copy, read and written bytes together."""
        return 2e-9 * self.copies[0].nbytes * self._rate(self._copy)

    def _rate(self, run: Callable[[int], None]) -> float:
        """Calls a second, the best of three turns of 0.02 s or more; where four times the calls double it, it was waiting."""
        run(1)
        self.device.finish()
        best, count, turns = 0.0, 1, 0
        while turns < 3:
            began = time.perf_counter()
            run(count)
            self.device.finish()
            rate = count / (time.perf_counter() - began)
            best, rose = max(best, rate), rate > 2 * best
            turns += not rose and count >= 0.02 * best
            count = 4 * count if rose else max(1, min(4 * count, int(0.04 * best)))
        return best

    def _fma(self, count: int) -> None:
        """`count` multiply-adds of each sum of each work-item."""
        while count > 0:
            now = min(count, self.rounds)
            self.device.launch(
                "bench", "multiply_add", (self.items,), now, self.out, 0.999,
                local=(self.local,), real=self.real, VW=self.width, SUMS=FMA_SUMS,
            )  # fmt: skip
            count -= now

    def _copy(self, count: int) -> None:
        each = 1 << 12 if self.device.long_loops else 1  # vectors that a work-item copies
        source, target = self.copies
        items = source.nbytes // (self.bytes * self.width * each)
        for _ in range(count):
            self.device.launch(
                "bench", "copy", (items // self.local * self.local,), each, source, target,
                local=(self.local,), real=self.real, VW=self.width,
            )  # fmt: skip


def peak_gflops(device: Device, real: str = "float") -> float:
    """The device's peak in that type, measured once in a process."""
    known = _known.setdefault(device, {})
    if real not in known:
        known[real] = Peaks(device, real).gflops()
    return known[real]


def check_clock(device: Device) -> None:
    """`DeviceError` where the driver does not say what launches take: asked once, of one that the host's clock times too.
    Mesa's llvmpipe (rusticl 22.3) says a nanosecond, whatever it runs."""
    known = _known.setdefault(device, {})
    if "clock" not in known:
        known["clock"] = _told(device)
    if known["clock"] < 0.1:
        raise DeviceError(
            f"the driver of {device!r} does not tell what launches take ({known['clock']:.2%} of what one took by the host's "
            "clock), so there is no profile of it; clnn.profile and CLNN_DEBUG=1 need another driver or device"
        )


def _told(device: Device) -> float:
    """The time that the device's clock gives a launch, as a part of the time by the host's. Nothing notes that launch."""
    queue = cl.CommandQueue(device.context, properties=PROFILED)
    defines = (("SUMS", FMA_SUMS), ("VW", device.vector_width(np.float32)))
    kernel = device.programs.new_kernel(Source("bench", "multiply_add", "float", defines), (np.int32, None, np.float32))
    out = cl.Buffer(device.context, cl.mem_flags.READ_WRITE, 4)

    def run(rounds: int) -> tuple[float, cl.Event]:
        kernel.set_args(rounds, out, 0.999)
        began = time.perf_counter()
        event = cl.enqueue_nd_range_kernel(queue, kernel, (1,), (1,))
        queue.finish()
        return time.perf_counter() - began, event

    rounds = 1
    while True:
        took, event = min(
            (run(rounds) for _ in range(3)), key=lambda one: one[0]
        )  # the others may have waited for a core
        if took >= CLOCK or rounds >= FMA_ROUNDS << 8:
            break
        rounds *= 4
    try:
        return (event.profile.end - event.profile.start) * 1e-9 / took
    except cl.Error:  # it has no times at all
        return 0.0
