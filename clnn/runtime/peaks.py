"""A device's own limits, measured: multiply-adds in registers, and copying in its memory."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import cached_property
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np

from .device import Device
from .memory import Block

COPY_BYTES = 128 << 20
FMA_ROUNDS, FMA_SUMS = 1 << 16, 16
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
        """Calls a second, the best of three turns of a few hundredths of a second: a turn that waited for a core says nothing."""
        run(1)
        self.device.finish()
        best, count, turns = 0.0, 1, 0
        while turns < 3:
            began = time.perf_counter()
            run(count)
            self.device.finish()
            seconds = time.perf_counter() - began
            best = max(best, count / seconds)
            turns += seconds > 0.02 and count >= 0.02 * best
            count = max(1, min(4 * count, int(0.04 * best)))
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
