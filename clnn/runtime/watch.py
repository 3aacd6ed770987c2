"""What recorded steps read on the host, watched: when something of it has changed, a recording is checked before its replay.

A replay runs no Python, so whatever the step's Python read is frozen in it: layers and their attributes, lists, numbers in
a closure, globals. `Watch` finds these from the step's function, model, loss and optimizer, and says in a few microseconds
whether they are what they were. It says nothing of the step: that takes an audit (clnn/step.py), which runs the Python
again without launching anything, and afterwards has `Watch` put everything back.
"""

from __future__ import annotations

import contextlib
import dis
import functools
import io
import sys
import types
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from operator import attrgetter, itemgetter
from typing import Any

import numpy as np

SMALL = 1000  # entries of a container, and bytes of an array: larger ones are left to audits
MOST = 20_000  # objects that are looked at
OURS = frozenset(("clnn", "numpy", "pyopencl"))
# Their code is nobody's to change; everything else is a user's
KNOWN = OURS | (sys.stdlib_module_names - {"test"})
UNCALLED = frozenset(
    ("__init__", "__new__", "__repr__", "__str__", "__del__", "__init_subclass__", "__class_getitem__")
)
WRITTEN = attrgetter("__code__", "__defaults__", "__kwdefaults__")  # what a function is, besides what it reads
MISSING = object()
PLAIN = (type(None), bool, int, float, complex, str, bytes, range, slice)


class Restored:
    """Its attributes are put back after an audit."""

    __slots__ = ()


class Watched(Restored):
    """What steps read on the host: layers, losses, optimizers, schedules. Everything that they hold is watched.

    One that `tells` calls `structure_changed()` when an attribute is rebound; of others the attributes are compared.
    """

    tells = False
    unwatched: frozenset[str] = frozenset()  # attributes that no step reads


def rebinds(one: Any, name: str, value: Any) -> bool:
    """Whether setting the attribute changes anything."""
    before = vars(one).get(name, MISSING)
    same = type(before) is type(value) and isinstance(value, (bool, int, float, str)) and before == value
    return not same and before is not value


def _package(thing: Any) -> str:
    return (getattr(thing, "__module__", None) or "").partition(".")[0]


def _entries(one: Any) -> dict[str, Any]:
    """The attributes of an object, those in slots as well."""
    slots = {name for kind in type(one).__mro__ for name in _listed(vars(kind).get("__slots__", ()))}
    kept = [
        n for n in slots if isinstance(getattr(type(one), n, None), types.MemberDescriptorType)
    ]  # no property's by now
    found = {name: getattr(one, name) for name in kept if hasattr(one, name)}
    return {**found, **getattr(one, "__dict__", {})}


def _listed(slots: Any) -> Iterable[str]:
    return (slots,) if isinstance(slots, str) else slots


def _codes(code: types.CodeType) -> Iterator[types.CodeType]:
    """That of a function, and of the functions inside it."""
    yield code
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _codes(constant)


def _names(code: types.CodeType) -> Iterator[str]:
    """The globals and attributes that a function names."""
    for one in _codes(code):
        yield from one.co_names


class _Note:
    """A container, or some attributes, as they were: `read()` gives what is in it now, `write` puts entries back."""

    __slots__ = ("read", "write", "kept", "ids", "what")

    def __init__(self, what: str, read: Callable[[], Iterable[Any]], write: Callable[[list[Any]], Any]) -> None:
        self.what, self.read, self.write = what, read, write
        self.kept = list(read())  # held, so that no other object gets their identity
        self.ids = list(map(id, self.kept))

    def moved(self) -> bool:
        try:
            return list(map(id, self.read())) != self.ids
        except (KeyError, ValueError, RuntimeError):  # a name or a cell is gone, or another thread changes it now
            return True

    def restore(self) -> None:
        if self.moved():
            self.write(self.kept)


class Watch:
    """Everything that can be reached from `roots` and that their Python may read, as it is now."""

    def __init__(self, roots: Iterable[Any]) -> None:
        self.objects: list[Any] = []  # whose attributes an audit may change
        self.generators: list[Any] = []  # NumPy's and Python's, which the step may draw from
        self.iterators = False  # whether it may take something from an iterator, which no audit could put back
        self.foreign = False  # whether there is code that is not clnn's
        self._functions: list[types.FunctionType] = []  # a user's
        self._notes: list[_Note] = []
        self._containers: list[Any] = []
        self._arrays: list[tuple[np.ndarray, bytes]] = []
        self._names: set[str] = set()  # attributes that the code reads
        self._owners: list[tuple[Any, dict[str, Any], set[str]]] = []  # an object's attributes, and which were followed
        self._seen: dict[int, Any] = {}
        self._classes: set[type] = set()
        self._waiting: deque[Any] = deque(roots)
        while self._waiting:
            while self._waiting:
                with contextlib.suppress(
                    Exception
                ):  # a user's object that does not let itself be looked at, or changes now
                    self._visit(self._waiting.popleft())
            for _, entries, followed in self._owners:  # more names are known now
                for name in (self._names & entries.keys()) - followed:
                    followed.add(name)
                    self._waiting.append(entries[name])
        for owner, entries, followed in self._owners:
            self._note_names(type(owner).__name__, entries, followed, owner)
        self.iterators = self.iterators and not self._names.isdisjoint(("next", "__next__", "send"))
        self._quick = [(note.read, note.ids) for note in self._notes]
        del self._seen, self._classes, self._owners, self._waiting

    # -- afterwards ---------------------------------------------------------------------------------------------------
    def changed(self) -> bool:
        """Whether anything is no longer what it was."""
        try:
            for read, ids in self._quick:
                if list(map(id, read())) != ids:
                    return True
        except (KeyError, ValueError, RuntimeError):  # a name or a cell is gone, or another thread changes it now
            return True
        return any(array.tobytes() != before for array, before in self._arrays) if self._arrays else False

    def outset(self) -> tuple[Any, ...]:
        """What `side_effect` compares with, before the step's Python runs."""
        return self._random_state(), self._values(), list(map(len, self._containers))

    def side_effect(self, outset: tuple[Any, ...]) -> str | None:
        """In words, what the Python has changed on the host since the outset, where that matters: a replay changes nothing."""
        if self._random_state() != outset[0]:
            return (
                "Python's or NumPy's random numbers were drawn inside the step, or an iterator's next item, and a replay draws "
                "none: draw them outside and pass them as arguments, or draw on the device (clnn.Dropout)"
            )
        if name := self._counted(outset[1]):
            return (
                f"{name} changes inside the step and is read there, and a replay changes nothing: change it outside, such as in "
                "a callback, or keep it on the device"
            )
        for one, size in zip(self._containers, outset[2]):
            entries = one.values() if isinstance(one, dict) else one
            if len(one) != size and not all(
                isinstance(entry, PLAIN) for entry in entries
            ):  # those that count, as above
                return (
                    f"a {type(one).__name__} of {size} entries has {len(one)} when the step ends, and a replay adds and removes "
                    "none: return what is to be kept"
                )
        return None

    def _random_state(self) -> Any:
        """Where the generators on the host are: Python's, NumPy's, and those that the step holds. Of an iterator nobody knows."""
        python, legacy = sys.modules.get("random"), sys.modules.get("numpy.random")
        found = [_state(one) for one in self.generators]
        unknown = MISSING if self.iterators else None
        return _plain([found, python and python.getstate(), legacy and legacy.get_state(), unknown])

    def _values(self) -> dict[tuple[int, str], tuple[str, Any]]:
        """The numbers and the like that a user's code may count in: attributes of layers, variables of functions."""
        found: dict[tuple[int, str], tuple[str, Any]] = {}
        for one in self.objects:
            if _package(type(one)) not in KNOWN:
                found |= {(id(one), n): (f"{type(one).__name__}.{n}", v) for n, v in _entries(one).items()}
        for f in self._functions:
            cells = zip(f.__code__.co_freevars, f.__closure__ or ())
            found |= {(id(c), n): (n, c.cell_contents) for n, c in cells if _filled(c)}
            found |= {(id(f.__globals__), n): (n, f.__globals__.get(n)) for n in _names(f.__code__)}
        return {key: (label, v) for key, (label, v) in found.items() if isinstance(v, PLAIN)}

    def _counted(self, before: dict[tuple[int, str], tuple[str, Any]]) -> str | None:
        """One of the `_values` that has changed since, and that the code reads for more than to change it. A replay does not
        change it: without a reader nobody notices."""
        for key, (label, value) in self._values().items():
            if key not in before or before[key][1] is value or before[key][1] == value:
                continue
            used = [i for f in self._functions for code in _codes(f.__code__) for i in dis.get_instructions(code)]
            uses = [i.opname.partition("_")[0] for i in used if i.argval == key[1]]
            if uses.count("LOAD") > uses.count("STORE"):
                return label
        return None

    def saved(self) -> Callable[[], None]:
        """A function that puts back what is here now: attributes, entries of containers, the positions of generators."""
        attributes = [(one, _entries(one)) for one in self.objects]
        inside = [
            (value, value.copy())
            for _, entries in attributes
            for value in entries.values()
            if type(value) in (list, dict, set)
        ]
        states = [(one, _state(one)) for one in self.generators]
        python, legacy = sys.modules.get("random"), sys.modules.get("numpy.random")
        drawn = python and python.getstate(), legacy and legacy.get_state()

        def restore() -> None:
            for one, entries in attributes:
                for name in _entries(one).keys() - entries.keys():
                    object.__delattr__(one, name)
                for name, value in entries.items():
                    if name in getattr(one, "__dict__", ()):
                        one.__dict__[name] = value
                    else:
                        object.__setattr__(one, name, value)
            for value, copy in inside:
                _refill(value, copy)
            for note in self._notes:
                note.restore()
            for one, state in states:
                _set_state(one, state)
            if python:
                python.setstate(drawn[0])
            if legacy:
                legacy.set_state(drawn[1])

        return restore

    # -- the walk -----------------------------------------------------------------------------------------------------
    def _visit(self, value: Any) -> None:
        if isinstance(value, PLAIN) or id(value) in self._seen or len(self._seen) >= MOST:
            return
        self._seen[id(value)] = value
        if isinstance(value, (tuple, frozenset)):
            self._waiting += value if len(value) <= SMALL else ()
        elif isinstance(value, (list, deque, set, dict)):
            self._container(value)
        elif isinstance(value, np.ndarray):
            if value.nbytes <= SMALL:
                self._arrays.append((value, value.tobytes()))
        elif isinstance(value, types.FunctionType):
            self._function(value)
        elif isinstance(value, type):
            self._methods(value)
        elif isinstance(value, types.MethodType):
            self._waiting += (value.__func__, value.__self__)
        elif isinstance(value, types.BuiltinMethodType):
            if not isinstance(value.__self__, types.ModuleType):
                self._waiting.append(value.__self__)
        elif isinstance(value, functools.partial):
            self._waiting += (value.func, value.args, value.keywords)
        elif isinstance(value, property):
            self._waiting.append(value.fget)
        elif isinstance(value, (staticmethod, classmethod)) or hasattr(value, "__wrapped__"):
            self._waiting.append(value.__wrapped__)
        elif isinstance(value, types.ModuleType):
            self._owners.append((value, vars(value), set()))
        elif _state(value) is not None:
            self.generators.append(value)
        elif isinstance(value, Iterator) and not isinstance(value, io.IOBase):
            self.iterators = True
        elif isinstance(value, Restored):
            self._restored(value)
        elif _package(type(value)) not in OURS:
            entries = vars(value) if hasattr(value, "__dict__") else _entries(value)
            known = any(_package(base) in KNOWN for base in type(value).__mro__[:-1])  # whose code is not looked at
            self._owners.append((value, entries, set(entries) if known and len(entries) <= SMALL else set()))
            self._waiting += entries.values() if known and len(entries) <= SMALL else ()
            self._methods(type(value))

    def _container(self, value: Any) -> None:
        if (
            len(value) > SMALL or value is sys.modules
        ):  # which leads to everything, and most of it to nothing that a step reads
            return
        self._containers.append(value)
        entries = functools.partial(_refill, value)
        self._notes.append(
            _Note("a container", value.__iter__, (lambda _: None) if isinstance(value, dict) else entries)
        )
        if isinstance(value, dict):
            keys = list(value)
            self._notes.append(_Note("a dict", value.values, lambda kept: entries(dict(zip(keys, kept)))))
        self._waiting += value.values() if isinstance(value, dict) else value

    def _function(self, f: types.FunctionType) -> None:
        if _package(f) in KNOWN:
            return
        self.foreign = True
        self._functions.append(f)
        names = set(_names(f.__code__))
        self._names |= names
        self._note_names(f.__name__, f.__globals__, names & f.__globals__.keys())
        self._waiting += (f.__globals__[name] for name in names & f.__globals__.keys())
        self._notes.append(_Note(f.__name__, functools.partial(WRITTEN, f), functools.partial(_rewrite, f)))
        self._waiting += (f.__defaults__, f.__kwdefaults__)
        if vars(f):
            self._owners.append((f, vars(f), set()))
        if f.__closure__:
            cells = [cell for cell in f.__closure__ if _filled(cell)]

            def write(kept: list[Any]) -> None:
                for cell, content in zip(cells, kept):
                    cell.cell_contents = content

            self._notes.append(_Note(f.__name__, lambda: [cell.cell_contents for cell in cells], write))
            self._waiting += (cell.cell_contents for cell in cells)

    def _restored(self, value: Any) -> None:
        self.objects.append(value)
        entries = _entries(value)
        if not isinstance(value, Watched):  # a parameter and the like
            self._waiting += (one for one in entries.values() if isinstance(one, Restored))
            return
        read = {name: one for name, one in entries.items() if name not in value.unwatched}
        public = {name for name in read if not name.startswith("_")}
        if not value.tells:
            self._notes.append(_Note(type(value).__name__, vars(value).values, lambda kept: None))
        self._waiting += (entries[name] for name in public)
        self._waiting += (one for one in read.values() if isinstance(one, Restored))
        for name in entries.keys() - read.keys():
            self._put_back(entries[name])
        self._owners.append((value, {n: v for n, v in entries.items() if n not in public}, set()))
        self._methods(type(value))

    def _put_back(self, value: Any) -> None:
        """What no step reads may still be changed by an audit: schedules that are asked for rates."""
        if isinstance(value, Restored) and all(value is not one for one in self.objects):
            self.objects.append(value)
            for one in _entries(value).values():
                self._put_back(one)

    def _methods(self, kind: type) -> None:
        """What a user's class says: methods that the code names, or that clnn calls, and values of the class."""
        ours = [base for base in kind.__mro__ if _package(base) in OURS]
        for base in kind.__mro__:
            if _package(base) in KNOWN or base in self._classes:
                continue
            self._classes.add(base)
            self._owners.append((base, dict(vars(base)), set()))
            for name, value in vars(base).items():
                hidden = name.startswith("__") and isinstance(value, types.FunctionType)
                if (hidden and name not in UNCALLED) or (any(hasattr(one, name) for one in ours) and name[:2] != "__"):
                    self._waiting.append(value)

    def _note_names(self, what: str, space: Any, names: Iterable[str], owner: Any = None) -> None:
        """Note some names of a namespace, and for an object which it has: one may come to hide the class's."""
        if owner is not None and _silent(owner):
            return
        if isinstance(owner, type):
            space = vars(owner)  # as it is now, not as it was
        wanted = sorted(names)
        if owner is not None and not hasattr(owner, "__dict__"):  # slots

            def put_back(kept: list[Any]) -> None:
                for name, value in zip(wanted, kept):
                    if getattr(owner, name, MISSING) is not value:
                        with contextlib.suppress(AttributeError, TypeError):  # it does not let itself be written
                            object.__setattr__(owner, name, value) if value is not MISSING else delattr(owner, name)

            self._notes.append(_Note(what, lambda: [getattr(owner, name, MISSING) for name in wanted], put_back))
            return
        if owner is not None and not isinstance(owner, types.ModuleType) and len(space) <= SMALL:
            self._notes.append(_Note(what, space.__iter__, lambda kept: _drop(space, kept)))
        if not wanted:
            return
        fetch = itemgetter(*wanted) if len(wanted) > 1 else lambda d, name=wanted[0]: (d[name],)

        def write(kept: list[Any]) -> None:
            if isinstance(space, dict):
                space.update(zip(wanted, kept))

        self._notes.append(_Note(what, functools.partial(fetch, space), write))


def _drop(space: Any, names: Iterable[str]) -> None:
    """Only these names stay."""
    for name in set(space) - set(names) if isinstance(space, dict) else ():
        del space[name]


def _silent(owner: Any) -> bool:
    """Whether a change of its attributes is told, or nobody's business."""
    if isinstance(owner, Watched):
        return True
    return isinstance(owner, types.ModuleType) and owner.__name__.partition(".")[0] in KNOWN


def _rewrite(f: types.FunctionType, kept: list[Any]) -> None:
    f.__code__, f.__defaults__, f.__kwdefaults__ = kept


def _filled(cell: Any) -> bool:
    try:
        cell.cell_contents  # noqa: B018
        return True
    except ValueError:
        return False


def _refill(container: Any, entries: Any) -> None:
    """Have the container hold these entries again."""
    if isinstance(container, list):
        container[:] = entries
        return
    container.clear()
    getattr(container, "extend" if isinstance(container, deque) else "update")(entries)


def _state(one: Any) -> Any:
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


def _plain(state: Any) -> Any:
    """A position as something that can be compared."""
    if state is MISSING:
        return object()
    if isinstance(state, np.ndarray):
        return state.tobytes()
    if isinstance(state, dict):
        return {name: _plain(value) for name, value in state.items()}
    return [_plain(one) for one in state] if isinstance(state, (list, tuple)) and len(state) < 100 else state


def _set_state(one: Any, state: Any) -> None:
    if state is MISSING:
        return
    if hasattr(one, "bit_generator"):
        one.bit_generator.state = state
    else:
        (one.setstate if hasattr(one, "setstate") else one.set_state)(state)
