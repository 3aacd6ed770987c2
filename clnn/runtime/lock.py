"""Locks for threads that share a device: one at a time, in the order in which they ask."""

from __future__ import annotations

import _thread
import functools
import operator
import re
import threading
from collections.abc import Callable
from typing import Any, TypeVar

from ..errors import ConfigurationError, DeviceError

F = TypeVar("F", bound=Callable[..., Any])
_waiting: dict[int, FairLock] = {}  # by thread: the lock that it waits for
_graph = threading.Lock()  # held while a thread looks whether it may wait


class FairLock(_thread.RLock):  # type: ignore[misc]  # final only in typeshed
    """A lock that its thread may take again, and that goes to whoever has waited longest.

    Without the door a thread that lets go and asks again at once, as fit does between steps, would always get it first:
    others would wait for minutes. Whoever waits stands in the door, so the one that comes back queues behind. Nothing that
    the garbage collector runs may take it: it runs at any place, with the door in its own thread's hands.

    Threads that hold a lock each and wait for each other's would do so for ever: the one that would close the circle gets a
    DeviceError. Ctrl-C, which comes after calls and where functions begin, leaves none taken: each `release` is one call of C.
    """

    __slots__ = ("door",)
    mine = _thread.RLock._is_owned  # type: ignore[attr-defined]

    def __init__(self) -> None:
        self.door = _thread.RLock()

    def __enter__(self) -> bool:  # type: ignore[override]
        mine = self.mine()
        try:
            try:
                if mine:
                    self.acquire()
                elif not (self.door.acquire(False) and self.acquire(False)):
                    self._wait()
            finally:
                try:  # noqa: SIM105 - no call before it
                    self.door.release()
                except RuntimeError:  # it was not taken
                    pass
        except BaseException:
            if mine or self.mine():
                self.release()
            raise
        return True

    def _wait(self) -> None:
        me = threading.get_ident()
        try:
            with _graph:
                seen, owner = set(), _owner(self)
                while owner in _waiting and owner not in seen:
                    seen.add(owner)
                    owner = _owner(_waiting[owner])
                if owner == me:
                    raise DeviceError(
                        "this thread works on one device and needs another, whose thread waits for the first: both would wait "
                        "for ever. Bring what a step, a fit or a prediction needs of another device to its own before it "
                        "begins, with .to(device)"
                    )
                _waiting[me] = self
            with self.door:
                self.acquire()
        finally:
            _waiting.pop(me, None)


def _owner(lock: FairLock) -> int:
    """The thread that has it, 0 for none: nothing but its text says that."""
    return int(re.findall(r"owner=(\d+)", repr(lock))[0])


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
