"""Locks for threads that share a device: one at a time, in the order in which they ask."""

from __future__ import annotations

import functools
import operator
import threading
from collections.abc import Callable
from typing import Any, TypeVar

from ..errors import ConfigurationError, DeviceError

F = TypeVar("F", bound=Callable[..., Any])


_waiting: dict[int, FairLock] = {}  # by thread: the lock that it waits for
_graph = threading.Lock()  # held while a thread looks whether it may wait


class FairLock:
    """A lock that its thread may take again, and that goes to whoever has waited longest.

    Without the door a thread that lets go and asks again at once, as fit does between steps, would always get it first:
    others would wait for minutes. Whoever waits stands in the door, so the one that comes back queues behind. Nothing that
    the garbage collector runs may take it: it runs at any place, with the door in its own thread's hands.

    Threads that hold a lock each and wait for each other's would do so for ever: the one that would close the circle gets a
    DeviceError.
    """

    __slots__ = ("_door", "_lock", "_owner", "_depth", "mine")

    def __init__(self) -> None:
        self._door, self._lock = threading.Lock(), threading.RLock()
        self.mine = self._lock._is_owned  # type: ignore[attr-defined]
        self._owner, self._depth = 0, 0  # the thread that has it, and how many times

    def __enter__(self) -> None:
        if self.mine():
            self._lock.acquire()
        elif self._door.acquire(False):
            try:
                if not self._lock.acquire(False):
                    self._wait(self._lock.acquire)
            finally:
                self._door.release()
        else:
            self._wait(self._queue_up)
        self._owner = threading.get_ident()
        self._depth += 1

    def __exit__(self, *_: Any) -> None:
        try:
            self._depth -= 1
            if not self._depth:
                self._owner = 0
        finally:  # also where Ctrl-C comes here
            self._lock.release()

    def _queue_up(self) -> None:
        with self._door:
            self._lock.acquire()

    def _wait(self, acquire: Callable[[], Any]) -> None:
        me = threading.get_ident()
        with _graph:
            seen, owner = set(), self._owner
            while owner in _waiting and owner not in seen:
                seen.add(owner)
                owner = _waiting[owner]._owner
            if owner == me:
                raise DeviceError(
                    "this thread works on one device and needs another, whose thread waits for the first: both would wait for "
                    "ever. Bring what a step, a fit or a prediction needs of another device to its own before it begins, with "
                    ".to(device)"
                )
            _waiting[me] = self
        try:
            acquire()
        finally:
            del _waiting[me]


attribute = functools.cache(operator.attrgetter)


def lock_of(owner: Any, lock: str, what: str) -> FairLock:
    """The lock at `lock` of an owner, such as "device.lock"; a ConfigurationError by `what` where there is none."""
    try:
        found: FairLock = attribute(lock)(owner)
    except AttributeError as error:
        if isinstance(owner, type) or not hasattr(owner, lock.partition(".")[0]):
            raise ConfigurationError(f"{what} takes a model, and {owner!r} was given") from error
        raise
    return found


def exclusive(lock: str) -> Callable[[F], F]:
    """A function or method that holds a lock of its first argument while it runs: `exclusive("device.lock")`."""

    def decorate(function: F) -> F:
        @functools.wraps(function)
        def alone(owner: Any, *args: Any, **options: Any) -> Any:
            held = lock_of(owner, lock, function.__name__)
            if held.mine():
                return function(owner, *args, **options)
            with held:
                return function(owner, *args, **options)

        return alone  # type: ignore[return-value]

    return decorate
