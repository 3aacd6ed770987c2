"""What recorded steps read on the host, watched: when something of it has changed, a recording is checked before its replay.

A replay runs no Python, so whatever the step's Python read is frozen in it: layers and their attributes, lists, numbers in
a closure, globals. `Watch` finds these from the step's function, model, loss and optimizer, and says in a few microseconds
whether they are what they were. It says nothing of the step: that takes an audit (clnn/step.py), which runs the Python
again without launching anything, and afterwards has `Watch` put everything back.
"""

from __future__ import annotations

import contextlib
import contextvars
import dis
import functools
import io
import operator
import re
import sys
import types
import weakref
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from operator import itemgetter
from typing import Any

import numpy as np

SMALL = 1000  # entries of a container: larger ones are left to audits
MOST_BYTES = 1 << 16  # of an array, likewise
MOST = 20_000  # objects that are looked at
OURS = frozenset(("clnn", "numpy", "pyopencl"))
# Their code is nobody's to change; everything else is a user's
KNOWN = OURS | (sys.stdlib_module_names - {"test"})
UNCALLED = frozenset(
    ("__init__", "__new__", "__repr__", "__str__", "__del__", "__init_subclass__", "__class_getitem__")
)
WRITTEN = operator.attrgetter("__code__", "__defaults__", "__kwdefaults__")  # what a function is, besides what it reads
MISSING = object()
REFLECTING = frozenset(  # code that names one of these may reach an attribute by a string
    ("getattr", "hasattr", "vars", "globals", "locals", "eval", "exec", "__dict__", "__getattr__", "__getattribute__")
)
# Methods that change a container and say nothing of what is in it
CHANGING = frozenset(("append", "appendleft", "extend", "extendleft", "insert", "add", "update", "clear"))
PLAIN = (type(None), bool, int, float, complex, str, bytes, range, slice)
BUILT_IN = (*PLAIN, tuple, frozenset, list, deque, set, dict, types.MappingProxyType)


class _Structure:
    version = 0


def structure_changed() -> None:
    """Something that recordings froze has changed (what is trainable, a rate of dropout): each is checked before its
    next replay."""
    _Structure.version += 1


def structure_version() -> int:
    """How often `structure_changed` was called."""
    return _Structure.version


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
    return {**_slots(one), **getattr(one, "__dict__", {})}


def _slots(one: Any) -> dict[str, Any]:
    """Those in slots."""
    slots = {name for kind in type(one).__mro__ for name in _listed(vars(kind).get("__slots__", ()))}
    kept = [
        n for n in slots if isinstance(getattr(type(one), n, None), types.MemberDescriptorType)
    ]  # no property's by now
    return {name: getattr(one, name) for name in kept if hasattr(one, name)}


def _listed(slots: Any) -> Iterable[str]:
    return (slots,) if isinstance(slots, str) else slots


def _codes(code: types.CodeType) -> Iterator[types.CodeType]:
    """That of a function, and of the functions inside it."""
    yield code
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _codes(constant)


def _names(code: types.CodeType) -> Iterator[str]:
    """The globals and attributes that a function names, also in its strings where it may look by these."""
    for one in _codes(code):
        yield from one.co_names
        for text in one.co_consts if REFLECTING.intersection(one.co_names) else ():
            yield from re.findall(r"[^\W\d]\w*", text) if isinstance(text, str) else ()


class _Note:
    """A container, or some attributes or variables, as they were: `read()` gives what is in it now, `write` puts entries back.

    `names` are those of the entries, in what `what` says, or `inside` is the container.
    """

    __slots__ = ("read", "write", "kept", "ids", "what", "names", "inside")

    def __init__(
        self,
        what: str,
        read: Callable[[], Iterable[Any]],
        write: Callable[[list[Any]], Any] = lambda kept: None,
        names: Collection[str] = (),
        inside: Any = None,
    ) -> None:
        self.what, self.read, self.write, self.names, self.inside = what, read, write, names, inside
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
        self.foreign = False  # whether there is code that is not clnn's
        self._functions: list[types.FunctionType] = []  # a user's
        self._notes: list[_Note] = []
        self._containers: list[Any] = []
        self._arrays: list[tuple[Any, bytes]] = []
        self._iterators: list[Any] = []  # that it may take something from, which no audit could put back
        self._names: set[str] = set()  # attributes that the code reads
        self._owners: list[
            tuple[Any, Mapping[str, Any], set[str]]
        ] = []  # an object's attributes, and which were followed
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
            named = isinstance(owner, (type, types.FunctionType, types.ModuleType))
            self._note_names(owner.__name__ if named else type(owner).__name__, entries, followed, owner)
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
        return any(_bytes(array) != before for array, before in self._arrays) if self._arrays else False

    def outset(self) -> tuple[Any, ...]:
        """What `side_effect` compares with, before the step's Python runs."""
        return self._random_state(), self._values(), list(map(len, self._containers))

    def side_effect(self, outset: tuple[Any, ...]) -> str | None:
        """In words, what the Python has changed on the host since the outset, where that matters: a replay changes nothing."""
        if self._random_state() != outset[0]:
            return (
                "Python's or NumPy's random numbers were drawn inside the step, and a replay draws none: draw them outside and "
                "pass them as arguments, or draw on the device (clnn.Dropout)"
            )
        if self._iterators:
            return (
                f"what is next in a {type(self._iterators[0]).__name__} may be taken inside the step, and a replay takes none: "
                "take it outside and pass it as an argument"
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
        """Where the generators on the host are: Python's, NumPy's, and those that the step holds."""
        python, legacy = sys.modules.get("random"), sys.modules.get("numpy.random")
        found = [_state(one) for one in self.generators]
        return _plain([found, python and python.getstate(), legacy and legacy.get_state()])

    def _values(self) -> dict[Any, tuple[str, Any, Any]]:
        """What a user's code may count in, as it is now, by place: what it is called, its value, and the container or layer
        (or the like) that it is in."""
        found: dict[Any, tuple[str, Any, Any]] = {}
        for one in self.objects:
            if isinstance(one, Watched) or _package(type(one)) not in KNOWN:
                found |= {(id(one), n): (f"{type(one).__name__}.{n}", v, one) for n, v in _entries(one).items()}
        for index, note in enumerate(self._notes):
            with contextlib.suppress(KeyError, ValueError, RuntimeError):  # a name or a cell is gone
                values = list(note.read())
                if note.inside is not None:
                    found[index, ""] = note.what, values, note.inside
                found |= {(index, n): (f"{note.what}.{n}".lstrip("."), v, None) for n, v in zip(note.names, values)}
        return found | {(id(one), ""): ("an array", _bytes(one), one) for one, _ in self._arrays}

    def _counted(self, before: dict[Any, tuple[str, Any, Any]]) -> str | None:
        """One of the `_values` that has changed since, and that is read for more than to change it: by the code, by clnn (a
        rate), or by whose code is not looked at. A replay does not change it: without a reader nobody notices."""
        code = [list(dis.get_instructions(one)) for f in self._functions for one in _codes(f.__code__)]
        for key, (label, value, inside) in self._values().items():
            if key not in before or _same(before[key][1], value):
                continue
            names = {key[1]} if key[1] else self._called(inside)
            loads = changes = 0
            for used in code:
                for at, one in enumerate(used):
                    if isinstance(one.argval, str) and one.argval in names:
                        loads += one.opname.startswith("LOAD")
                        changes += one.opname.startswith("STORE") if key[1] else _changes(*used[at + 1 : at + 3])
            if isinstance(inside, Restored):
                read = loads > changes if _package(type(inside)) not in KNOWN else changes > 0
            else:
                read = loads > changes or not loads + changes
            if read:
                return label if key[1] else f"{' or '.join(sorted(names)) or 'something'} ({label})"
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

        spaces = [(note.names, note.kept) for note in self._notes if note.names]
        spaces += [(list(entries), list(entries.values())) for entries in map(_entries, self.objects)]
        return {name for names, values in spaces for name, value in zip(names, values) if holds(value)}

    def saved(self) -> Callable[[], None]:
        """A function that puts back what is here now: attributes, entries of containers, the positions of generators."""
        attributes = [(one, _entries(one)) for one in self.objects]
        inside = [
            (value, value.copy())
            for _, entries in attributes
            for value in entries.values()
            if type(value) in (list, dict, set)
        ]
        arrays = [(one, _bytes(one)) for one, _ in self._arrays]
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
            for one, before in arrays:
                _fill(one, before)
            for one, state in states:
                _set_state(one, state)
            if python:
                python.setstate(drawn[0])
            if legacy:
                legacy.set_state(drawn[1])

        return restore

    # -- the walk -----------------------------------------------------------------------------------------------------
    def _visit(self, value: Any) -> None:
        if type(value) in PLAIN or id(value) in self._seen or len(self._seen) >= MOST:
            return
        self._seen[id(value)] = value
        if isinstance(value, BUILT_IN):
            self._built_in(value)
            if _package(type(value)) not in KNOWN:  # of a class of its own, which may have more
                self._object(value)
        elif isinstance(value, types.FunctionType):
            self._function(value)
        elif isinstance(value, type):
            self._methods(value)
            self._waiting.append(type(value))
        elif isinstance(value, types.MethodType):
            self._waiting += (value.__func__, value.__self__)
        elif isinstance(value, types.BuiltinMethodType):
            if not isinstance(value.__self__, types.ModuleType):
                self._waiting.append(value.__self__)
        elif isinstance(value, functools.partial):
            self._waiting += (value.func, value.args, value.keywords)
        elif isinstance(value, property):
            self._waiting.append(value.fget)
        elif isinstance(value, (staticmethod, classmethod)) or "__wrapped__" in getattr(value, "__dict__", ()):
            self._waiting.append(value.__wrapped__)
        elif isinstance(value, contextvars.ContextVar):
            self._notes.append(_Note(value.name, lambda: [value.get(MISSING)]))
            self._waiting.append(value.get(None))
        elif isinstance(value, weakref.ReferenceType):
            self._waiting.append(value())
        elif isinstance(value, (operator.attrgetter, operator.methodcaller)):
            self._names |= {name for text in value.__reduce__()[1] if isinstance(text, str) for name in text.split(".")}
        elif isinstance(value, types.ModuleType):
            self._owners.append((value, vars(value), set()))
        elif _state(value) is not None:
            self.generators.append(value)
        elif isinstance(value, Restored):
            self._restored(value)
        elif _has_bytes(value):
            self._array(value)
            if _package(type(value)) not in KNOWN:
                self._object(value)
        elif _package(type(value)) not in OURS:
            if isinstance(value, Iterator) and not isinstance(value, io.IOBase):
                self._iterators.append(value)
            self._object(value)

    def _object(self, value: Any) -> None:
        """One that has attributes, of which those count that the code names; of a class whose code is not looked at, all."""
        known = any(_package(base) in KNOWN for base in type(value).__mro__[:-1]) and not isinstance(value, BUILT_IN)
        for entries in (getattr(value, "__dict__", None), _slots(value) or None):
            if entries is None:
                continue
            every = len(entries) <= SMALL and (known or hasattr(type(value), "__getattr__"))
            self._owners.append((value, entries, set(entries) if every else set()))
            self._waiting += entries.values() if every else ()
        self._methods(type(value))

    def _built_in(self, value: Any) -> None:
        """What Python and NumPy have for many values in one."""
        if isinstance(value, (tuple, frozenset)):
            self._waiting += value if len(value) <= SMALL else ()
        elif isinstance(value, types.MappingProxyType):
            self._notes += (
                (_Note("a dict", value.values), _Note("a dict", value.__iter__)) if len(value) <= SMALL else ()
            )
            self._waiting += value.values() if len(value) <= SMALL else ()
        elif isinstance(value, (list, deque, set, dict)):
            self._container(value)

    def _array(self, value: Any) -> None:
        """One of NumPy's, or of whoever lets its bytes be seen."""
        if isinstance(value, np.ndarray) and value.dtype.hasobject:
            if value.size <= SMALL:
                self._notes.append(_Note("an array", lambda: value.ravel().tolist()))
                self._waiting += value.ravel().tolist()
        elif (value if isinstance(value, np.ndarray) else memoryview(value)).nbytes <= MOST_BYTES:
            self._arrays.append((value, _bytes(value)))

    def _container(self, value: Any) -> None:
        if (
            len(value) > SMALL or value is sys.modules
        ):  # which leads to everything, and most of it to nothing that a step reads
            return
        self._containers.append(value)
        entries = functools.partial(_refill, value)
        self._waiting.append(getattr(value, "default_factory", None))
        if isinstance(value, dict):
            keys = list(value)
            self._notes.append(_Note("a dict", value.__iter__, inside=value))
            self._notes.append(_Note("a dict", value.values, lambda kept: entries(dict(zip(keys, kept))), inside=value))
        else:
            self._notes.append(_Note(f"a {type(value).__name__}", value.__iter__, entries, inside=value))
        self._waiting += value.values() if isinstance(value, dict) else value

    def _function(self, f: types.FunctionType) -> None:
        if _package(f) in KNOWN:
            return
        self.foreign = True
        self._functions.append(f)
        names = set(_names(f.__code__))
        self._names |= names
        self._note_names("", f.__globals__, names & f.__globals__.keys())
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

            free = [name for name, cell in zip(f.__code__.co_freevars, f.__closure__) if _filled(cell)]
            self._notes.append(_Note("", lambda: [cell.cell_contents for cell in cells], write, free))
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
            self._owners.append((base, base.__dict__, set()))
            for name, value in vars(base).items():
                hidden = name.startswith("__") and isinstance(value, types.FunctionType)
                if (hidden and name not in UNCALLED) or (any(hasattr(one, name) for one in ours) and name[:2] != "__"):
                    self._waiting.append(value)

    def _note_names(self, what: str, space: Any, names: Iterable[str], owner: Any = None) -> None:
        """Note some names of a namespace, and for an object which it has: one may come to hide the class's."""
        if isinstance(owner, Watched):  # of what it does not tell, what the code names all the same
            wanted = sorted(name for name in self._names & owner.unwatched if hasattr(owner, name))
            if wanted:
                self._notes.append(_Note(what, functools.partial(map, vars(owner).get, wanted), names=wanted))
            return
        if isinstance(owner, types.ModuleType) and owner.__name__.partition(".")[0] in KNOWN:  # nobody's business
            return
        wanted = sorted(names)

        def put_back(kept: list[Any]) -> None:
            for name, value in zip(wanted, kept):
                if getattr(owner, name, MISSING) is not value:
                    with contextlib.suppress(AttributeError, TypeError):  # it does not let itself be written
                        write = type.__setattr__ if isinstance(owner, type) else object.__setattr__
                        write(owner, name, value) if value is not MISSING else delattr(owner, name)

        if owner is not None and not isinstance(owner, type) and space is not getattr(owner, "__dict__", None):  # slots
            read = lambda: [getattr(owner, name, MISSING) for name in wanted]  # noqa: E731
            self._notes.append(_Note(what, read, put_back, wanted))
            return
        if owner is not None and not isinstance(owner, types.ModuleType) and len(space) <= SMALL:
            self._notes.append(_Note(what, space.__iter__, lambda kept: _drop(space, kept)))
        if not wanted:
            return
        fetch = itemgetter(*wanted) if len(wanted) > 1 else lambda d, name=wanted[0]: (d[name],)
        write = (lambda kept: space.update(zip(wanted, kept))) if isinstance(space, dict) else put_back
        self._notes.append(_Note(what, functools.partial(fetch, space), write, wanted))


def _drop(space: Any, names: Iterable[str]) -> None:
    """Only these names stay."""
    for name in set(space) - set(names) if isinstance(space, dict) else ():
        del space[name]


def _rewrite(f: types.FunctionType, kept: list[Any]) -> None:
    f.__code__, f.__defaults__, f.__kwdefaults__ = kept


def _filled(cell: Any) -> bool:
    try:
        cell.cell_contents  # noqa: B018
        return True
    except ValueError:
        return False


def _has_bytes(value: Any) -> bool:
    with contextlib.suppress(TypeError, ValueError):  # ValueError: NumPy's dates
        return not isinstance(value, np.generic) and (isinstance(value, np.ndarray) or memoryview(value) is not None)
    return False


def _bytes(array: Any) -> bytes:
    """What an array of numbers holds, NumPy's or another's."""
    try:
        return array.tobytes() if isinstance(array, np.ndarray) else bytes(array)
    except ValueError:  # a view of memory that was let go of
        return b""


def _fill(array: Any, content: bytes) -> None:
    """Have an array hold that again."""
    if content and _bytes(array) != content:
        given = array if isinstance(array, np.ndarray) else np.frombuffer(array, np.uint8)
        given[...] = np.frombuffer(content, given.dtype).reshape(given.shape)


def _same(a: Any, b: Any) -> bool:
    """Whether two values have the same numbers and the like in them; of other objects the launches tell."""
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)):
        return len(a) == len(b) and all(map(_same, a, b))
    return a is b or not isinstance(a, PLAIN) or not isinstance(b, PLAIN) or (type(a) is type(b) and a == b)


def _changes(*following: dis.Instruction) -> bool:
    """Whether what follows upon loading a container changes it without a look at it: c.append(..), c[i] = .."""
    if any(one.opname == "STORE_SUBSCR" for one in following[1:]):
        return True
    return any(isinstance(one.argval, str) and one.argval in CHANGING for one in following[:1])


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
