"""Locks for threads that share a device: one at a time, in the order in which they ask."""

from __future__ import annotations

import functools
import operator
import threading
from collections.abc import Callable
from typing import Any, TypeVar

F = TypeVar("F", bound=Callable[..., Any])


class FairLock:
    """A lock that its thread may take again, and that goes to whoever has waited longest.

    Without the door a thread that lets go and asks again at once, as fit does between steps, would always get it first:
    others would wait for minutes. Whoever waits stands in the door, so the one that comes back queues behind. Nothing that
    the garbage collector runs may take it: it runs at any place, with the door in its own thread's hands.
    """

    __slots__ = ("_door", "_lock", "mine")

    def __init__(self) -> None:
        self._door, self._lock = threading.Lock(), threading.RLock()
        self.mine = self._lock._is_owned  # type: ignore[attr-defined]

    def __enter__(self) -> None:
        if self.mine():
            self._lock.acquire()
        else:
            with self._door:
                self._lock.acquire()

    def __exit__(self, *_: Any) -> None:
        self._lock.release()


def exclusive(lock: str) -> Callable[[F], F]:
    """A function or method that holds a lock of its first argument while it runs: `exclusive("device.lock")`."""
    find = operator.attrgetter(lock)

    def decorate(function: F) -> F:
        @functools.wraps(function)
        def alone(owner: Any, *args: Any, **options: Any) -> Any:
            held = find(owner)
            if held.mine():
                return function(owner, *args, **options)
            with held:
                return function(owner, *args, **options)

        return alone  # type: ignore[return-value]

    return decorate
