"""Values on the host as steps have them, arrays, containers and generators of random numbers: read, compared and put back."""

from __future__ import annotations

import contextlib
import sys
from collections import deque
from typing import Any

import numpy as np

MISSING = object()
PLAIN = (type(None), bool, int, float, complex, str, bytes, range, slice)


def has_bytes(value: Any) -> bool:
    with contextlib.suppress(TypeError, ValueError):  # ValueError: NumPy's dates
        return not isinstance(value, np.generic) and (isinstance(value, np.ndarray) or memoryview(value) is not None)
    return False


def bytes_of(array: Any) -> bytes:
    """What an array of numbers holds, NumPy's or another's."""
    try:
        return array.tobytes() if isinstance(array, np.ndarray) else bytes(array)
    except ValueError:  # a view of memory that was let go of
        return b""


def fill(array: Any, content: bytes) -> None:
    """Have an array hold that again."""
    if content and bytes_of(array) != content:
        given = array if isinstance(array, np.ndarray) else np.frombuffer(array, np.uint8)
        given[...] = np.frombuffer(content, given.dtype).reshape(given.shape)


def same(a: Any, b: Any) -> bool:
    """Whether two values have the same numbers and the like in them; of other objects the launches tell."""
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return a is b or not isinstance(a, PLAIN) or not isinstance(b, PLAIN) or (type(a) is type(b) and a == b)


def refill(container: Any, entries: Any) -> None:
    """Have the container hold these entries again."""
    if isinstance(container, list):
        container[:] = entries
        return
    container.clear()
    getattr(container, "extend" if isinstance(container, deque) else "update")(entries)


def state_of(one: Any) -> Any:
    """The position of a generator of random numbers on the host; None for everything else."""
    random, numpy = sys.modules.get("random"), sys.modules.get("numpy.random")
    if random is not None and isinstance(one, random.SystemRandom):
        return MISSING  # it has none, and is at another one whenever it is asked
    if random is not None and isinstance(one, random.Random):
        return one.getstate()
    if numpy is not None and isinstance(one, numpy.Generator):
        return one.bit_generator.state
    if numpy is not None and isinstance(one, numpy.RandomState):
        return one.get_state(legacy=False)
    return None


def comparable(state: Any) -> Any:
    """A position as something that can be compared."""
    if state is MISSING:
        return object()
    if isinstance(state, np.ndarray):
        return state.tobytes()
    if isinstance(state, dict):
        return {name: comparable(value) for name, value in state.items()}
    return [comparable(one) for one in state] if isinstance(state, (list, tuple)) and len(state) < 100 else state


def set_state(one: Any, state: Any) -> None:
    if state is MISSING:
        return
    if hasattr(one, "bit_generator"):
        one.bit_generator.state = state
    else:
        (one.setstate if hasattr(one, "setstate") else one.set_state)(state)
