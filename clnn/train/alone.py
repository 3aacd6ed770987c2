"""What `fit` asks of the ranks that train together, and the answers of one that trains alone; `clnn.distributed.World` has
those of several."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, TypeVar

import numpy as np

from ..errors import ConfigurationError
from .record import steps_of

T = TypeVar("T")


class Alone:
    """One rank, to which every sample belongs."""

    rank, size = 0, 1

    def __enter__(self) -> Alone:
        return self

    def __exit__(self, *_: Any) -> None:
        pass

    def begin(self, model: Any, optimizer: Any, arrays: Any, settings: dict[str, Any]) -> None:
        """All ranks are to fit the same: an error where they do not; rank 0's weights and seeds go to the others."""

    def reseed(self, device: Any) -> None:
        """What is drawn on the device from here on differs from rank to rank."""

    def stretches(self, n: int, batch: int) -> list[tuple[int, int, float | None]]:
        """The steps of an epoch over n samples: (rows, how many steps, this rank's share of the loss or None for all)."""
        return [(rows, count, None) for rows, count in steps_of(n, batch)]

    def order(self, order: np.ndarray, batch: int) -> np.ndarray:
        """Of all samples in the order of an epoch those of this rank."""
        return order

    def part(self, n: int) -> slice:
        """Which of n rows this rank measures."""
        return slice(n)

    def sums(self, values: np.ndarray) -> np.ndarray:
        """The sums of float64 values over ranks."""
        return values

    def first(self, value: T) -> T:
        """What rank 0 has."""
        return value

    def gather(self, value: T) -> list[T]:
        """What each rank has."""
        return [value]

    def settle(self, model: Any) -> None:
        """An epoch is over: statistics become the mean of all ranks', and weights have to be the same on all."""

    def at_once(self, steps: int) -> int:
        """Of so many steps those that may run without a look at the other ranks."""
        return steps

    def check(self) -> None:
        """Between two steps: KeyboardInterrupt where some rank was interrupted."""


@contextlib.contextmanager
def together(world: Any, optimizer: Any) -> Iterator[Any]:
    """The ranks of a fit: those of `world`, else of the optimizer's, else one alone; meanwhile the optimizer works for them."""
    before, world = optimizer.world, world or optimizer.world
    if world is not None and not hasattr(world, "stretches"):
        raise ConfigurationError(f"world is what clnn.distributed.init() gives, and {world!r} was given")
    with world or Alone() as ranks:
        try:
            if world is not before:
                optimizer.world = world
            yield ranks
        finally:
            if world is not before:
                optimizer.world = before


def within(stretches: Any, start: int, stop: int) -> Iterator[tuple[int, int, float | None]]:
    """The part of stretches whose rows are `start` to `stop`, which lie between steps."""
    at = 0
    for rows, count, share in stretches:
        first, last = max(0, start - at) // rows, min(stop - at, rows * count) // rows
        if last > first:
            yield rows, last - first, share
        at += rows * count
