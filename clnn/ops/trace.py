"""What follows the ops of a pass: `op` marks those that it sees, and `following` has it see them."""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Callable, Iterator
from typing import Any, TypeVar, cast

Op = TypeVar("Op", bound=Callable[..., Any])
Follower = Callable[[Callable[..., Any], tuple[Any, ...], dict[str, Any]], Any]


class _Now(threading.local):
    """Who follows the ops of a thread."""

    follower: Follower | None = None


_now = _Now()


def op(function: Op) -> Op:
    """A function whose calls can be followed. Of ops within an op nobody is told."""

    @functools.wraps(function)
    def run(*inputs: Any, **options: Any) -> Any:
        follower = _now.follower
        if follower is None:
            return function(*inputs, **options)
        _now.follower = None
        try:
            return follower(function, inputs, options)
        finally:
            _now.follower = follower

    return cast(Op, run)


@contextlib.contextmanager
def following(follower: Follower) -> Iterator[None]:
    """Within it this thread calls `follower(op, inputs, options)` instead of each op; it runs the op, and returns its result."""
    before, _now.follower = _now.follower, follower
    try:
        yield
    finally:
        _now.follower = before
