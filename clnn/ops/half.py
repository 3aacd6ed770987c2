"""Arrays kept as halves: packed when a forward pass is through with them, unpacked when a gradient reads them."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np

from ..runtime.memory import Block
from .array import Array
from .rows import elements


class _Now(threading.local):
    """What a thread has unpacked for the closure that it runs, and what it noted for whoever packs."""

    found: dict[Half, Block] | None = None
    noted: list[Any] | None = None


_now = _Now()


class Half:
    """The values of a block of float32 as halves, in half of its memory: 11 bits each, infinite beyond 65,504."""

    def __init__(self, x: Array) -> None:
        self.size, self.device = x.memory.nbytes // 4, x.device
        self.block = x.device.allocate(2 * self.size)
        self._convert("pack", x.memory, self.block)

    def _convert(self, kernel: str, source: Block, target: Block) -> None:
        each, size, local, vectors = elements(self.device, np.float32, self.size)
        self.device.launch("half", kernel, size, self.size, each, source, target, local=local, **vectors)

    def unpacked(self) -> Block:
        """A block of float32 with these values, the same one as long as one closure runs."""
        block = None if _now.found is None else _now.found.get(self)
        if block is None:
            block = self.device.allocate(4 * self.size)
            self._convert("unpack", self.block, block)
            if _now.found is not None:
                _now.found[self] = block
        return block


def pack(x: Array) -> None:
    """Keep x, and all arrays that share its memory, as halves from now on."""
    x.memory.half = Half(x)
    x.memory.release()


@contextlib.contextmanager
def unpacking() -> Iterator[None]:
    """Within it what is unpacked stays so, and is unpacked once."""
    before, _now.found = _now.found, {}
    try:
        yield
    finally:
        _now.found = before


@contextlib.contextmanager
def noting() -> Iterator[list[Any]]:
    """What this thread notes within it: nodes of the tape, and arrays."""
    before, _now.noted = _now.noted, []
    try:
        yield _now.noted
    finally:
        _now.noted = before


def note(*found: Any) -> None:
    """Note it for whoever listens."""
    if _now.noted is not None:
        _now.noted += found
