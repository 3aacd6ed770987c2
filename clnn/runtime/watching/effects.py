"""What a step's Python changes on the host, which a replay would not: found, and put back after an audit."""

from __future__ import annotations

import contextlib
import dis
import sys
from collections import deque
from collections.abc import Callable
from typing import Any

from .values import PLAIN, bytes_of, comparable, fill, refill, same, set_state, state_of
from .watch import KNOWN, SMALL, Restored, Watch, Watched, codes, entries_of, package

# Methods that change a container and say nothing of what is in it
CHANGING = frozenset(("append", "appendleft", "extend", "extendleft", "insert", "add", "update", "clear"))


class Effects:
    """What the Python that runs from now on changes of what is watched. A replay changes nothing."""

    def __init__(self, watch: Watch) -> None:
        self.watch = watch
        self._random, self._before = self._random_state(), self._values()
        self._sizes = list(map(len, watch.containers))
        self.unread: list[str] = []  # what has changed, and is read only by who is not in the step

    def found(self) -> str | None:
        """In words, what the Python has changed since this was made, where that matters; None where nothing has."""
        if self._random_state() != self._random:
            return (
                "Python's or NumPy's random numbers were drawn inside the step, and a replay draws none: draw them outside and "
                "pass them as arguments, or draw on the device (clnn.Dropout)"
            )
        if self.watch.iterators:
            return (
                f"what is next in a {type(self.watch.iterators[0]).__name__} may be taken inside the step, and a replay takes "
                "none: take it outside and pass it as an argument"
            )
        if name := self._counted():
            return (
                f"{name} changes inside the step and is read there, and a replay changes nothing: change it outside, such as in "
                "a callback, or keep it on the device"
            )
        for one, size in zip(self.watch.containers, self._sizes):
            entries = one.values() if isinstance(one, dict) else one
            if len(one) != size and not all(isinstance(x, PLAIN) for x in entries):  # those that count, as above
                return (
                    f"a {type(one).__name__} of {size} entries has {len(one)} when the step ends, and a replay adds and removes "
                    "none: return what is to be kept"
                )
        return None

    def _random_state(self) -> Any:
        """Where the generators on the host are: Python's, NumPy's, and those that the step holds."""
        python, legacy = sys.modules.get("random"), sys.modules.get("numpy.random")
        found = [state_of(one) for one in self.watch.generators]
        return comparable([found, python and python.getstate(), legacy and legacy.get_state()])

    def _values(self) -> dict[Any, tuple[str, Any, Any]]:
        """What a user's code may count in, as it is now, by place: what it is called, its value, and the container or layer
        (or the like) that it is in."""
        found: dict[Any, tuple[str, Any, Any]] = {}
        for one in self.watch.objects:
            if isinstance(one, Watched) or package(type(one)) not in KNOWN:
                found |= {(id(one), n): (f"{type(one).__name__}.{n}", v, one) for n, v in entries_of(one).items()}
        for index, note in enumerate(self.watch.notes):
            with contextlib.suppress(KeyError, ValueError, RuntimeError):  # a name or a cell is gone
                values = list(note.read())
                if note.inside is not None:
                    found[index, ""] = note.what, values, note.inside
                found |= {(index, n): (f"{note.what}.{n}".lstrip("."), v, None) for n, v in zip(note.names, values)}
        return found | {(id(one), ""): ("an array", bytes_of(one), one) for one, _ in self.watch.arrays}

    def _counted(self) -> str | None:
        """One of the `_values` that has changed since, and that is read for more than to change it: by the code, by clnn (a
        rate), or by whose code is not looked at. A replay does not change it: without a reader the step does the same."""
        code = [list(dis.get_instructions(one)) for f in self.watch.functions for one in codes(f.__code__)]
        for key, (label, value, inside) in self._values().items():
            if key not in self._before or same(self._before[key][1], value):
                continue
            names = {key[1]} if key[1] else self._called(inside)
            loads = changes = 0
            for used in code:
                for at, one in enumerate(used):
                    if isinstance(one.argval, str) and one.argval in names:
                        loads += one.opname.startswith("LOAD")
                        changes += one.opname.startswith("STORE") if key[1] else _changes(*used[at + 1 : at + 3])
            if isinstance(inside, Restored):
                read = loads > changes if package(type(inside)) not in KNOWN else changes > 0
            else:
                read = loads > changes or not loads + changes
            called = label if key[1] else f"{' or '.join(sorted(names)) or 'something'} ({label})"
            if read:
                return called
            if changes and (isinstance(value, PLAIN) or not key[1]):
                self.unread.append(called)
        return None

    def _called(self, container: Any) -> set[str]:
        """The names under which a container is found, on its own or in others."""

        def holds(value: Any, depth: int = 4) -> bool:
            if value is container or not depth:
                return value is container
            inside = (
                value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple, deque)) else ()
            )
            return len(inside) <= SMALL and any(holds(one, depth - 1) for one in inside)

        spaces = [(note.names, note.kept) for note in self.watch.notes if note.names]
        spaces += [(list(entries), list(entries.values())) for entries in map(entries_of, self.watch.objects)]
        return {name for names, values in spaces for name, value in zip(names, values) if holds(value)}


def saved(watch: Watch) -> Callable[[], None]:
    """A function that puts back what is here now: attributes, entries of containers, the positions of generators."""
    attributes = [(one, entries_of(one)) for one in watch.objects]
    inside = [
        (value, value.copy())
        for _, entries in attributes
        for value in entries.values()
        if type(value) in (list, dict, set)
    ]
    arrays = [(one, bytes_of(one)) for one, _ in watch.arrays]
    states = [(one, state_of(one)) for one in watch.generators]
    python, legacy = sys.modules.get("random"), sys.modules.get("numpy.random")
    drawn = python and python.getstate(), legacy and legacy.get_state()

    def restore() -> None:
        for one, entries in attributes:
            for name in entries_of(one).keys() - entries.keys():
                object.__delattr__(one, name)
            for name, value in entries.items():
                if name in getattr(one, "__dict__", ()):
                    one.__dict__[name] = value
                else:
                    object.__setattr__(one, name, value)
        for value, copy in inside:
            refill(value, copy)
        for note in watch.notes:
            note.restore()
        for one, before in arrays:
            fill(one, before)
        for one, state in states:
            set_state(one, state)
        if python:
            python.setstate(drawn[0])
        if legacy:
            legacy.set_state(drawn[1])

    return restore


def _changes(*following: dis.Instruction) -> bool:
    """Whether what follows upon loading a container changes it without a look at it: c.append(..), c[i] = .."""
    if any(one.opname == "STORE_SUBSCR" for one in following[1:]):
        return True
    return any(isinstance(one.argval, str) and one.argval in CHANGING for one in following[:1])
