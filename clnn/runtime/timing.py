"""Which profiles a thread has open (profile/): a launch, a copy or a replay looks here, and tells them when it ran."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import pyopencl as cl

PROFILED = cl.command_queue_properties.PROFILING_ENABLE  # a property of a queue


class _Active(threading.local):
    profiles: tuple[Any, ...] = ()


active = _Active()
opened = 0  # profiles of all threads: a replay asks this first, which takes a few nanoseconds
_lock = threading.Lock()


def enter(profile: Any) -> None:
    """A profile of this thread begins."""
    global opened
    with _lock:
        opened += 1
    active.profiles += (profile,)


def leave(profile: Any) -> None:
    """A profile of this thread ends."""
    global opened
    active.profiles = tuple(one for one in active.profiles if one is not profile)
    with _lock:
        opened -= 1


@contextlib.contextmanager
def unseen() -> Iterator[None]:
    """What this thread runs inside is in no profile."""
    profiles, active.profiles = active.profiles, ()
    try:
        yield
    finally:
        active.profiles = profiles


def join(device: Any) -> None:
    """Before this thread enqueues work: have the device's queue time it, if a profile is open."""
    for one in active.profiles:
        one.join(device)


def note(
    device: Any, label: str, size: Any, args: Sequence[Any], event: Any, *, before: Any = None, flops: int = 0,
    real: str = "float", step: Any = None, held: int = 0,
) -> None:  # fmt: skip
    """Note what was enqueued: it ran from the start of `event`, or the end of `before`, to the end of `event`. `step` tells
    one run of a step from the next; `held` are the bytes of the host's array that it copies."""
    for one in active.profiles:
        one.note(device, label, size, args, before, event, flops, real, step, held)
