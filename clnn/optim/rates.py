"""The table of rates: what moves from step to step, computed ahead on the host in float64; a counter selects a step's row."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ..errors import ClnnError, ConfigurationError
from ..gemm import SCALE_PAIRS, Scale
from ..parameters import Store
from ..runtime.memory import Block
from ..runtime.watching.watch import Restored, Watch
from ..tensor import Parameter

ROWS = 1024  # steps in a table

Rate = float | Callable[[int], float] | Sequence[Sequence[float]]


class Rates(Restored):
    """The next ROWS steps' numbers: on the host, and on each device beside a counter that says which row is this step's.

    `steps` have been prepared so far, the last with row `row`, and `left` rows are still to come; with none left the table is
    filled anew before the next step. What goes by the number of the step (Adam's corrections) goes by how many each parameter
    has taken: those that were thawed later have a table of their own, a slot for each number of steps `since` that they missed.
    """

    def __init__(self) -> None:
        self.steps = self.row = self.left = 0
        self._rows = np.zeros((0, 2 * SCALE_PAIRS))
        self.since = [0]  # by slot
        self._tables: dict[Any, Block] = {}  # by device, type and slot: the numbers
        self._counters: dict[Any, Block] = {}  # by device and type
        self.read: Watch | None = None  # of what the rates' function reads

    def on(self, p: Parameter | Store, slot: int = 0) -> tuple[Block, Block]:
        """The table and the counter on a parameter's device, in its type."""
        key, counter = (p.device, p.dtype, slot), (p.device, p.dtype)
        if key not in self._tables:
            self._counters[counter] = self._counters.get(counter) or p.device.memory.allocate(4)
            self._tables[key] = p.device.memory.allocate(ROWS * 2 * SCALE_PAIRS * p.dtype.itemsize)
            self.left = 0
        return self._tables[key], self._counters[counter]

    def scale(self, p: Parameter, pair: int) -> Scale:
        """The pair number `pair` of this step's row, on the device and on the host."""
        return Scale(*self.on(p), pair, lambda: tuple(self._rows[self.row, 2 * pair : 2 * pair + 2]))

    def rows_left(self) -> int:
        """Steps until the table runs out."""
        return self.left or ROWS

    def reserve(self, times: int, moving: list[Any], columns: Callable[[np.ndarray, int], Sequence[Any]]) -> None:
        """Have rows for so many steps. `columns` gives the numbers of steps 0, 1, ..., which come from what is `moving`, of
        parameters that have missed so many."""
        if self.read is not None and self.read.changed():
            self.left = 0
        if self.left >= times:
            return
        if times > ROWS:
            raise ConfigurationError(f"{times} steps of one optimizer in one recorded step; there may be {ROWS}")
        rows, steps = np.zeros((len(self.since), ROWS, 2 * SCALE_PAIRS)), np.arange(self.steps, self.steps + ROWS)
        for slot, since in enumerate(self.since):
            for column, values in enumerate(columns(steps, since)):
                rows[slot, :, column] = values
        self._rows = rows[0]
        self.read = Watch(moving) if moving else None
        for (device, dtype, slot), table in self._tables.items():
            if slot < len(rows):
                device.upload(np.ascontiguousarray(rows[slot], dtype), table)
        for (device, _), counter in self._counters.items():
            device.upload(np.full(1, -1, np.int32), counter)  # it moves on before it is read
        self.row, self.left = -1, ROWS

    def take_back(self, times: int, counter: Block | None) -> None:
        """`times` prepared steps broke off, and do not count, but for those by which the counter on the device has moved on."""
        taken = 0
        if counter is not None:
            with contextlib.suppress(ClnnError):  # the device may be what failed
                at = counter.device.read(counter, np.empty(1, np.int32))
                taken = min(max(0, int(at[0]) - (self.row - times)), times)
        self.left = 0
        self.steps -= times - taken
