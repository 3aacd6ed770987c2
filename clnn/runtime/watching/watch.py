"""What recorded steps read on the host, watched: when something of it has changed, a recording is checked before its replay.

A replay runs no Python, so whatever the step's Python read is frozen in it: layers and their attributes, lists, numbers in
a closure, globals. `Watch` finds these from the step's function, model, loss and optimizer, and says in a few microseconds
whether they are what they were. It says nothing of the step: that takes an audit (clnn/step.py), which runs the Python
again without launching anything, and afterwards puts everything back (effects.py).
"""

from __future__ import annotations

import contextlib
import contextvars
import dis
import functools
import io
import itertools
import operator
import os
import re
import sys
import types
import weakref
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from operator import itemgetter
from typing import Any

import numpy as np

from ...foreign import Called
from .values import MISSING, PLAIN, bytes_of, has_bytes, refill, state_of

SMALL = 1000  # entries of a container: larger ones are left to audits
MOST_BYTES = 1 << 16  # of an array, likewise
MOST = 20_000  # objects that are looked at
OURS = frozenset(("clnn", "numpy", "pyopencl"))
# Large libraries that models name, as in isinstance(x, torch.Tensor): a walk through all that they name would take seconds
LIBRARIES = frozenset((
    "cv2", "IPython", "jax", "jaxlib", "joblib", "keras", "matplotlib", "mpi4py", "onnx", "onnxruntime", "pandas", "PIL",
    "polars", "safetensors", "scipy", "sklearn", "tensorboardX", "tensorflow", "tinygrad", "torch", "torchvision", "tqdm",
    "transformers",
))  # fmt: skip
# Their code is nobody's to change; everything else is a user's
KNOWN = OURS | LIBRARIES | (sys.stdlib_module_names - {"test"})
UNCALLED = frozenset(
    ("__init__", "__new__", "__repr__", "__str__", "__del__", "__init_subclass__", "__class_getitem__")
)
WRITTEN = operator.attrgetter("__code__", "__defaults__", "__kwdefaults__")  # what a function is, besides what it reads
ATTRIBUTE = frozenset(("getattr", "hasattr"))  # of an object, by a string
COMPUTED = frozenset(("vars", "eval", "exec", "__dict__", "__getattribute__"))  # by which code may reach any attribute
MODULES = frozenset(("modules", "import_module", "__import__"))
# code that names one of these may reach an attribute by a string
REFLECTING = ATTRIBUTE | COMPUTED | MODULES | {"globals", "locals", "__getattr__"}
BUILT_IN = (*PLAIN, tuple, frozenset, list, deque, set, dict, types.MappingProxyType)


class _Structure:
    version = 0


def structure_changed() -> None:
    """Something that recordings froze has changed (what is trainable, a rate of dropout): each is checked before its
    next replay."""
    _Structure.version += 1


def chosen() -> tuple[str, ...]:
    """What the environment says of how things are computed."""
    return os.environ.get("CLNN_GEMM", ""), os.environ.get("CLNN_WINOGRAD", "")


def structure_version() -> int:
    """How often `structure_changed` was called."""
    return _Structure.version


class Restored:
    """Its attributes are put back after an audit."""

    __slots__ = ()


class Watched(Called, Restored):
    """What steps read on the host: layers, losses, optimizers, schedules. Everything that they hold is watched.

    One that `tells` calls `structure_changed()` when an attribute is rebound; of others the attributes are compared.
    """

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        made = vars(cls).get("__init__")
        if made is not None and made.__qualname__.startswith("_"):  # by which Python's errors call all that inherit it
            made.__qualname__ = made.__qualname__.lstrip("_")

    tells = False
    unwatched: frozenset[str] = frozenset()  # attributes that no step reads


def rebinds(one: Any, name: str, value: Any) -> bool:
    """Whether setting the attribute changes anything."""
    before = vars(one).get(name, MISSING)
    same = type(before) is type(value) and isinstance(value, (bool, int, float, str)) and before == value
    return not same and before is not value


def package(thing: Any) -> str:
    return (getattr(thing, "__module__", None) or "").partition(".")[0]


def entries_of(one: Any) -> dict[str, Any]:
    """The attributes of an object, those in slots as well."""
    return {**_slots(one), **getattr(one, "__dict__", {})}


def _slots(one: Any) -> dict[str, Any]:
    """Those in slots."""
    slots = {name for kind in type(one).__mro__ for name in _listed(vars(kind).get("__slots__", ()))}
    # No property's by now
    kept = [n for n in slots if isinstance(getattr(type(one), n, None), types.MemberDescriptorType)]
    return {name: getattr(one, name) for name in kept if hasattr(one, name)}


def _listed(slots: Any) -> Iterable[str]:
    return (slots,) if isinstance(slots, str) else slots


def codes(code: types.CodeType) -> Iterator[types.CodeType]:
    """That of a function, and of the functions inside it."""
    yield code
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from codes(constant)


def _names(code: types.CodeType) -> Iterator[str]:
    """The globals and attributes that a function names, also in its strings where it may look by these."""
    for one in codes(code):
        yield from one.co_names
        for text in one.co_consts if REFLECTING.intersection(one.co_names) else ():
            yield from re.findall(r"[^\W\d]\w*", text) if isinstance(text, str) else ()


def _computes_names(code: types.CodeType) -> bool:
    """Whether a function may reach attributes whose names stand nowhere in its code."""
    for one in codes(code):
        if COMPUTED.intersection(one.co_names):
            return True
        if ATTRIBUTE.intersection(one.co_names):
            used = [i for i in dis.get_instructions(one) if i.opname not in ("CACHE", "PRECALL", "PUSH_NULL", "NOP")]
            for at, instruction in enumerate(used):
                if instruction.argval in ATTRIBUTE and not _written_out(used[at + 1 :]):
                    return True
    return False


def _written_out(after: list[dis.Instruction]) -> bool:
    """Whether what is loaded and called upon `getattr` has a text for a name, as in getattr(a.b, "name", 0)."""
    loads = list(itertools.takewhile(lambda one: one.opname.startswith("LOAD"), after))
    call = next(iter(after[len(loads) :]), None)
    if call is None or not call.opname.startswith("CALL") or call.argval not in (2, 3) or len(loads) < call.argval:
        return False
    name = loads[1 - call.argval]
    return name.opname == "LOAD_CONST" and isinstance(name.argval, str)


def _imported(f: types.FunctionType, names: set[str]) -> Iterator[types.ModuleType]:
    """A user's modules that the function may import as it runs."""
    package_of = str(f.__globals__.get("__package__") or "")
    parents = ["", *(package_of.rsplit(".", n)[0] + "." for n in range(package_of.count(".") + 1) if package_of)]
    for name in (parent + name for name in names for parent in parents):
        if name in sys.modules and name.partition(".")[0] not in KNOWN:
            yield sys.modules[name]


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
        self.functions: list[types.FunctionType] = []  # a user's
        self.notes: list[_Note] = []
        self.containers: list[Any] = []
        self.arrays: list[tuple[Any, bytes]] = []
        self.iterators: list[Any] = []  # that it may take something from, which no audit could put back
        self._names: set[str] = set()  # attributes that the code reads
        self._all_names = False  # whether it computes their names, too
        self.cut = False  # whether there is more than can be looked at
        # An object's attributes, and which were followed
        self._owners: list[tuple[Any, Mapping[str, Any], set[str]]] = []
        self._seen: dict[int, Any] = {}
        self._classes: set[type] = set()
        self._waiting: deque[Any] = deque(roots)
        while self._waiting:
            while self._waiting:
                with contextlib.suppress(Exception):  # an object that does not let itself be looked at, or changes now
                    self._visit(self._waiting.popleft())
            for owner, entries, followed in self._owners:  # more names are known now
                every = self._all_names and len(entries) <= SMALL and not isinstance(owner, types.ModuleType)
                for name in (entries.keys() if every else self._names & entries.keys()) - followed:
                    followed.add(name)
                    self._waiting.append(entries[name])
        for owner, entries, followed in self._owners:
            named = isinstance(owner, (type, types.FunctionType, types.ModuleType))
            self._note_names(owner.__name__ if named else type(owner).__name__, entries, followed, owner)
        self._quick = [(note.read, note.ids) for note in self.notes]
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
        return any(bytes_of(array) != before for array, before in self.arrays) if self.arrays else False

    # -- the walk -----------------------------------------------------------------------------------------------------
    def _visit(self, value: Any) -> None:
        if type(value) in PLAIN or id(value) in self._seen:
            return
        if len(self._seen) >= MOST:
            self.cut = True
            return
        self._seen[id(value)] = value
        if isinstance(value, BUILT_IN):
            self._built_in(value)
            if package(type(value)) not in KNOWN:  # of a class of its own, which may have more
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
            self.notes.append(_Note(value.name, lambda: [value.get(MISSING)]))
            self._waiting.append(value.get(None))
        elif isinstance(value, weakref.ReferenceType):
            self._waiting.append(value())
        elif isinstance(value, (operator.attrgetter, operator.methodcaller)):
            self._names |= {name for text in value.__reduce__()[1] if isinstance(text, str) for name in text.split(".")}
        elif isinstance(value, types.ModuleType):
            self._owners.append((value, vars(value), set()))
        elif state_of(value) is not None:
            self.generators.append(value)
        elif isinstance(value, Restored):
            self._restored(value)
        elif has_bytes(value):
            self._array(value)
            if package(type(value)) not in KNOWN:
                self._object(value)
        elif package(type(value)) not in OURS:
            if isinstance(value, Iterator) and not isinstance(value, io.IOBase):
                self.iterators.append(value)
            self._object(value)

    def _object(self, value: Any) -> None:
        """One that has attributes, of which those count that the code names; of a class whose code is not looked at, all."""
        known = any(package(base) in KNOWN for base in type(value).__mro__[:-1]) and not isinstance(value, BUILT_IN)
        for entries in (getattr(value, "__dict__", None), _slots(value) or None):
            if entries is None:
                continue
            reads = getattr(type(value), "__getattr__", None)
            every = len(entries) <= SMALL and (known or (reads is not None and package(reads) not in OURS))
            self._owners.append((value, entries, set(entries) if every else set()))
            self._waiting += entries.values() if every else ()
        self._methods(type(value))

    def _built_in(self, value: Any) -> None:
        """What Python and NumPy have for many values in one."""
        if isinstance(value, (tuple, frozenset)):
            self._waiting += value if len(value) <= SMALL else ()
        elif isinstance(value, types.MappingProxyType):
            self.notes += (
                (_Note("a dict", value.values), _Note("a dict", value.__iter__)) if len(value) <= SMALL else ()
            )
            self._waiting += value.values() if len(value) <= SMALL else ()
        elif isinstance(value, (list, deque, set, dict)):
            self._container(value)

    def _array(self, value: Any) -> None:
        """One of NumPy's, or of whoever lets its bytes be seen."""
        if isinstance(value, np.ndarray) and value.dtype.hasobject:
            if value.size <= SMALL:
                self.notes.append(_Note("an array", lambda: value.ravel().tolist()))
                self._waiting += value.ravel().tolist()
        elif (value if isinstance(value, np.ndarray) else memoryview(value)).nbytes <= MOST_BYTES:
            self.arrays.append((value, bytes_of(value)))

    def _container(self, value: Any) -> None:
        if len(value) > SMALL or value is sys.modules:  # which leads to everything, and most of it is read by no step
            return
        self.containers.append(value)
        entries = functools.partial(refill, value)
        self._waiting.append(getattr(value, "default_factory", None))
        if isinstance(value, dict):
            keys = list(value)
            self.notes.append(_Note("a dict", value.__iter__, inside=value))
            self.notes.append(_Note("a dict", value.values, lambda kept: entries(dict(zip(keys, kept))), inside=value))
        else:
            self.notes.append(_Note(f"a {type(value).__name__}", value.__iter__, entries, inside=value))
        self._waiting += value.values() if isinstance(value, dict) else value

    def _function(self, f: types.FunctionType) -> None:
        if package(f) in KNOWN:
            return
        self.foreign = True
        self.functions.append(f)
        names = set(_names(f.__code__))
        self._names |= names
        self._all_names = self._all_names or _computes_names(f.__code__)
        self._waiting += _imported(f, names)
        if names & {"environ", "getenv"}:
            self.notes.append(_Note("os.environ", getattr(os.environ, "_data", {}).values))
        self._note_names("", f.__globals__, names & f.__globals__.keys())
        self._waiting += (f.__globals__[name] for name in names & f.__globals__.keys())
        self.notes.append(_Note(f.__name__, functools.partial(WRITTEN, f), functools.partial(_rewrite, f)))
        self._waiting += (f.__defaults__, f.__kwdefaults__)
        if vars(f):
            self._owners.append((f, vars(f), set()))
        if f.__closure__:
            cells = [cell for cell in f.__closure__ if _filled(cell)]

            def write(kept: list[Any]) -> None:
                for cell, content in zip(cells, kept):
                    cell.cell_contents = content

            free = [name for name, cell in zip(f.__code__.co_freevars, f.__closure__) if _filled(cell)]
            self.notes.append(_Note("", lambda: [cell.cell_contents for cell in cells], write, free))
            self._waiting += (cell.cell_contents for cell in cells)

    def _restored(self, value: Any) -> None:
        self.objects.append(value)
        entries = entries_of(value)
        if not isinstance(value, Watched):  # a parameter and the like
            self._waiting += (one for one in entries.values() if isinstance(one, Restored))
            return
        read = {name: one for name, one in entries.items() if name not in value.unwatched}
        public = {name for name in read if not name.startswith("_")}
        if not value.tells or not getattr(value, "built", True):
            self.notes.append(_Note(type(value).__name__, vars(value).values, lambda kept: None))
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
            for one in entries_of(value).values():
                self._put_back(one)

    def _methods(self, kind: type) -> None:
        """What a user's class says: methods that the code names, or that clnn calls, and values of the class."""
        ours = [base for base in kind.__mro__ if package(base) in OURS]
        for base in kind.__mro__:
            if package(base) in KNOWN or base in self._classes:
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
                self.notes.append(_Note(what, functools.partial(map, vars(owner).get, wanted), names=wanted))
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
            self.notes.append(_Note(what, read, put_back, wanted))
            return
        if owner is not None and not isinstance(owner, types.ModuleType) and len(space) <= SMALL:
            self.notes.append(_Note(what, space.__iter__, lambda kept: _drop(space, kept)))
        if not wanted:
            return
        fetch = itemgetter(*wanted) if len(wanted) > 1 else lambda d, name=wanted[0]: (d[name],)
        write = (lambda kept: space.update(zip(wanted, kept))) if isinstance(space, dict) else put_back
        self.notes.append(_Note(what, functools.partial(fetch, space), write, wanted))


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
