"""Arrays kept as halves: packed when a forward pass is through with them, unpacked when a gradient reads them. And copies of
weights, which products of few rows read."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from ..errors import ConfigurationError
from ..runtime.memory import Block
from .array import Array
from .rows import elements
from .shape import transpose

# Weights are read as halves where they are so many, more than caches hold for long, and by products of so few rows: with more
# the arithmetic takes longer than reading
LEAST, MOST_ROWS = 1 << 16, 8


class _Now(threading.local):
    """What a thread has unpacked for the closure that it runs, what it noted for whoever packs, and the weights that it reads."""

    found: dict[Half, Block] | None = None
    noted: list[Any] | None = None
    weights: HalfWeights | None = None


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


class HalfWeights:
    """Copies of weights as halves, for products of few rows: these wait for the memory that weights are read from."""

    def __init__(self, parameters: Iterable[Any]) -> None:
        self.parameters = {p.block: p for p in parameters if p.dtype == np.float32}
        # by a parameter's memory, its shape in the product, and whether the copy is transposed
        self.copies: dict[tuple[Block, tuple[int, ...], bool], Block] = {}
        self.versions: dict[Any, int] = {}  # of the values that are in them

    def of(self, w: Array, rows: int, transposed: bool) -> Block | None:
        """The copy that a product of so many rows reads, of w or its transposed; None where it reads w itself."""
        if w.memory not in self.parameters or w.size < LEAST or not 0 < rows <= MOST_ROWS:
            return None
        key = w.memory, w.shape, transposed
        if key not in self.copies and w.device.recorder is None:
            self.copies[key] = w.device.memory.allocate(2 * w.size)
            self._fill(*key)
        return self.copies.get(key)

    def renew(self) -> None:
        """Have in the copies what the parameters hold now. ConfigurationError for what halves cannot hold, and without a copy."""
        if not self.copies:
            raise ConfigurationError(
                f"weights='float16' is for matrices of {LEAST:,} weights or more by which up to {MOST_ROWS} rows are multiplied, "
                "and for this batch size the model has none: leave it out"
            )
        for key in self.copies:
            p = self.parameters[key[0]]
            if self.versions.get(key) != p.version:
                beyond = self._fill(*key)
                if p.device.read(beyond, np.empty(1, np.int32))[0]:
                    raise ConfigurationError(
                        f"weights='float16' takes what is between -65,504 and 65,504, and {p.name} has other weights, or NaN: "
                        "leave it out"
                    )
                self.versions[key] = p.version

    def _fill(self, memory: Block, shape: tuple[int, ...], transposed: bool) -> Block:
        """Fill a copy; 1 stands in the memory returned where a value is none of a half's."""
        w = Array(memory, shape, np.float32, self.parameters[memory].device)
        each, size, local, vectors = elements(w.device, np.float32, w.size)
        beyond, source = w.device.allocate(4), transpose(w)[0].block if transposed else memory
        w.device.fill_zero(beyond)
        copy = self.copies[memory, shape, transposed]
        w.device.launch("half", "pack_weights", size, w.size, each, source, copy, beyond, local=local, **vectors)
        return beyond


@contextlib.contextmanager
def reading(weights: HalfWeights | None) -> Iterator[None]:
    """Within it this thread's products read these copies."""
    before, _now.weights = _now.weights, weights
    try:
        yield
    finally:
        _now.weights = before


def halves_of(w: Array, rows: int, transposed: bool) -> Block | None:
    """The copy of w as halves that a product of so many rows reads, or None."""
    return None if _now.weights is None else _now.weights.of(w, rows, transposed)
