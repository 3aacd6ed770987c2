"""The data on the device, and the mini-batches that steps gather from it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import chain
from typing import Any

import numpy as np

from ..gemm import RowsOf
from ..runtime.device import Device, DType
from ..runtime.memory import Block
from ..tensor import Tensor

SOON_BYTES = 1 << 22  # of a batch that is copied on the host, so that the device is not waited for
COPY_BYTES = 1 << 16  # of a batch that one CPU thread gathers


def form(array: np.ndarray | None) -> tuple[tuple[int, ...], DType] | None:
    """The shape of a row, and the type."""
    return None if array is None else (array.shape[1:], array.dtype)


class Feed:
    """Samples, targets and weights on the device, `capacity` rows of them, and the batch that a step gathers."""

    def __init__(
        self, device: Device, capacity: int, xs: Sequence[np.ndarray], ys: Sequence[np.ndarray],
        weights: Sequence[np.ndarray | None], ordered: bool,
    ) -> None:  # fmt: skip
        self.device, self.capacity = device, capacity
        self.forms = [*map(form, (*xs, *ys, *weights))]
        self.blocks = [known and self.hold((capacity, *known[0]), known[1]) for known in self.forms]
        self.cuts = len(xs), len(xs) + len(ys)
        self.order = self.hold((capacity,), np.int32) if ordered else None
        self.state = self.hold((3,), np.int32)

    def hold(self, shape: Sequence[int], dtype: Any) -> Block:
        """Memory of its own: the pool would round it up by up to 6%."""
        return self.device.memory.allocate(math.prod(shape) * np.dtype(dtype).itemsize, pooled=False)

    @staticmethod
    def row_bytes(*arrays: Sequence[np.ndarray | None]) -> list[int]:
        """The bytes of one row in each array of inputs, targets and weights, the order included."""
        return [*(math.prod(a.shape[1:]) * a.dtype.itemsize for each in arrays for a in each if a is not None), 4]

    def fits(self, rows: int, *arrays: Sequence[np.ndarray | None]) -> bool:
        """Whether this feed can carry `rows` rows of such inputs, targets and weights."""
        return rows <= self.capacity and self.forms == [*map(form, chain(*arrays))]

    def load(self, *arrays: Sequence[np.ndarray | None]) -> None:
        """Bring rows of inputs, targets and weights to the device."""
        for array, block in zip(chain(*arrays), self.blocks):
            if block is not None:
                self.device.upload(np.ascontiguousarray(array), block)

    def load_soon(self, *arrays: Sequence[np.ndarray | None]) -> bool:
        """Bring a batch to the device, without waiting for steps before it, and start at its first row; whether that took more
        room than there was, so that recordings hold memory that is no longer the feed's."""
        rows = len(arrays[0][0])  # type: ignore[arg-type]
        grows = rows > self.capacity
        if grows:
            self.capacity = rows
            self.blocks = [known and self.hold((rows, *known[0]), known[1]) for known in self.forms]
        for array, block in zip(chain(*arrays), self.blocks):
            if block is not None:
                array = np.ascontiguousarray(array)
                (self.device.upload_soon if array.nbytes <= SOON_BYTES else self.device.upload)(array, block)
        return grows

    def inputs(self, rows: int) -> list[Tensor]:
        """The memory of the first rows of each input."""
        pairs = zip(self.blocks[: self.cuts[0]], self.forms)
        return [Tensor(block, (rows, *known[0]), known[1], self.device) for block, known in pairs if block and known]

    def rewind(self, order: np.ndarray | None = None, step: int = 0) -> None:
        """Start again at the first row, in a new order; `step` is where results go on."""
        if order is not None and self.order is not None:
            self.device.upload(np.ascontiguousarray(order, np.int32), self.order)
        self.device.upload(np.array([0, step, 0], np.int32), self.state)

    def batch(self, rows: int) -> list[list[Any]]:
        """The next `rows` rows as tensors: inputs, targets, weights; gathered when something asks for their memory."""

        def part(block: Any, shape: Sequence[int], dtype: Any) -> Tensor:
            return Batch(RowsOf(block, self.order, self.state), (rows, *shape), dtype, self.device)

        (i, j), found = self.cuts, [known and part(block, *known) for block, known in zip(self.blocks, self.forms)]
        return [found[:i], found[i:j], found[j:]]


class Batch(Tensor):
    """A mini-batch that stays in the data set until something asks for its `block`: then its rows are gathered."""

    __slots__ = ()

    def __init__(self, rows: RowsOf, shape: Sequence[int], dtype: Any, device: Device) -> None:
        super().__init__(None, shape, dtype, device)  # type: ignore[arg-type]
        self.rows = rows

    def gathered(self) -> Block:
        """Launch the copy of its rows into memory of its own, unless that has been done."""
        if self.memory is None:
            device, rows, columns = self.device, self.shape[0], math.prod(self.shape[1:])
            assert self.rows is not None
            self.memory = device.allocate(self.nbytes)
            each = max(1, COPY_BYTES // max(1, columns * self.dtype.itemsize))
            size, extra = ((columns, rows), {}) if not device.long_loops else ((-(-rows // each),), {"ROWS": 1})
            device.launch(
                "data", "gather", size, columns, rows, *self.rows, self.memory, each,
                local=(1,) if extra else None, real=device.real(self.dtype),
                E="int" if self.dtype == np.int32 else "real", **extra,
            )  # fmt: skip
        return self.memory

    @property
    def block(self) -> Any:
        return self.gathered()
