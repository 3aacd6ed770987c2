"""What a model remembers of the steps before: keys, values and states, so that the next step costs one step (a KV cache)."""

from __future__ import annotations

import contextlib
import math
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from .errors import ShapeError
from .runtime.device import Device
from .tensor import Tensor, constant

_mode = threading.local()


class Cache:
    """Room for `steps` steps of a batch of sequences. `past`, an int32 on the device, is how many are in it.

    Within `with cache.open():` a model that is given the steps from `past` on computes what it would for them in the whole
    sequence: causal attention adds its keys and values to those before and attends to all, recurrent layers go on from
    their states, positions count from `past`. Each finds what it left by its turn: every pass asks in the same order.
    Whoever ran the pass then adds its steps to `past`.
    """

    def __init__(self, device: Device, steps: int) -> None:
        self.device, self.steps = device, steps
        self.most, self.why = steps, ""  # how many steps the model takes, and which layer says so
        self.past = constant(np.zeros(1, np.int32), device=device)
        self._kept: list[Tensor] = []
        self._states: dict[int, Tensor] = {}  # those of `_kept` that start as zeros
        self._turn = 0

    def rewind(self) -> None:
        """Forget all steps."""
        for one in (self.past, *self._states.values()):
            self.device.fill_zero(one.block)

    @contextlib.contextmanager
    def open(self) -> Iterator[None]:
        """Have what runs inside, in this thread, use this cache."""
        before = cache_in_use()
        self._turn, self.most = 0, self.steps
        _mode.cache = self
        try:
            yield
        finally:
            _mode.cache = before

    def kept(self, shape: Sequence[int], dtype: Any, state: bool = False) -> Tensor:
        """The memory of this turn, which later passes find as they were left; a `state` is zeros at first."""
        turn, shape = self._turn, tuple(shape)
        self._turn += 1
        if turn >= len(self._kept) or (self._kept[turn].shape, self._kept[turn].dtype) != (shape, dtype):
            nbytes = math.prod(shape) * np.dtype(dtype).itemsize
            made = Tensor(self.device.memory.allocate(nbytes), shape, dtype, self.device)
            if state:
                self.device.upload(np.zeros(shape, dtype), made.block, constant=True)
                self._states[turn] = made
            self._kept[turn:] = [made]
        return self._kept[turn]

    def limit(self, steps: int, who: str) -> None:
        """`who` takes no more than `steps` steps."""
        if steps < self.most:
            self.most, self.why = steps, who

    def check(self, steps: int) -> None:
        """ShapeError unless the model takes so many steps."""
        if steps > self.most:
            raise ShapeError(
                f"{steps} steps are wanted, and {self.why} takes {self.most}: give generate window={self.most}, so that it sees "
                "the last ones, or fewer tokens"
            )


def cache_in_use() -> Cache | None:
    """The cache that is open in this thread."""
    return getattr(_mode, "cache", None)
