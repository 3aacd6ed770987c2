"""The registry: layers, losses, optimizers, schedules and functions of one's own that a file may name. It names nothing else."""

from __future__ import annotations

import functools
import importlib
import inspect
import types
from typing import Any

from .errors import CheckpointError, ClnnError, ConfigurationError

REGISTRY: dict[str, Any] = {}
VERSIONS: dict[Any, int] = {}  # of their configs
# What registers itself once its module is imported
LATER = {"OnnxModel": "clnn.onnx.model", "SyncBatchNorm": "clnn.distributed"}
PLAIN = (bool, int, float, str, tuple)  # values of arguments that can be compared


def register(cls: Any = None, *, version: int = 1) -> Any:
    """Let `clnn.load` make objects of this class again, by its name and `config()`: a layer, a model, a loss, an optimizer or
    a schedule. A function that serves as a loss or as a learning rate is found again by its name. ConfigurationError for a
    name that a class of clnn's has in files.

    Where the arguments of a class change, give it the next `version`, and a static method `upgrade(config, version)` that
    makes of a config of an earlier version, which older files hold, one of this:

        @clnn.register(version=2)
        class Scale(clnn.Layer):
            @staticmethod
            def upgrade(config, version):
                return {"by": config["factor"]}
    """
    if cls is None:
        return functools.partial(register, version=version)
    if not isinstance(cls, (type, types.FunctionType)) or not cls.__name__.isidentifier():
        raise ConfigurationError(f"register takes classes, and functions with a name; {cls!r} was provided instead")
    if version > 1 and not callable(getattr(cls, "upgrade", None)):
        raise ConfigurationError(
            f"{cls.__name__} of version {version} needs a static method upgrade(config, version) for files of version "
            f"{version - 1}"
        )
    owner = getattr(REGISTRY.get(cls.__name__), "__module__", LATER.get(cls.__name__, ""))
    if owner.startswith("clnn.") and owner != cls.__module__:
        raise ConfigurationError(
            f"files call a class of clnn's {cls.__name__}, and would be read with yours in its place: give yours another name"
        )
    REGISTRY[cls.__name__], VERSIONS[cls] = cls, version
    return cls


def _kind(one: Any) -> Any:
    return one if isinstance(one, types.FunctionType) else type(one)


def is_registered(one: Any) -> bool:
    """Whether it is a registered function, or an object of a registered class."""
    return REGISTRY.get(_kind(one).__name__) is _kind(one)


def describe(one: Any, config: dict[str, Any]) -> dict[str, Any]:
    """Of something registered, as JSON: its name, its version if that is not the first, and the arguments that make it."""
    found = {"class": _kind(one).__name__, "config": config}
    version = VERSIONS.get(_kind(one), 1)
    return found | ({"version": version} if version > 1 else {})


def construct(description: dict[str, Any], what: str, base: Any) -> Any:
    """What `describe` described, a `base`; `what` that is, in words. CheckpointError where it is none or not known here."""
    name, version, config = description.get("class"), description.get("version", 1), description.get("config", {})
    if isinstance(name, str) and name in LATER and name not in REGISTRY:
        importlib.import_module(LATER[name])
    kind = REGISTRY.get(name) if isinstance(name, str) else None
    if kind is None or (isinstance(kind, type) and not issubclass(kind, base)):
        known = sorted(n for n, one in REGISTRY.items() if isinstance(one, type) and issubclass(one, base))
        raise CheckpointError(
            f"the file names a {what} class {name!r} that is not known here; known are {', '.join(known)}. "
            "Import the module that defines it (with @clnn.register) first"
        )
    if version > VERSIONS[kind]:
        raise CheckpointError(
            f"the file holds {name} of version {version}, and here is {VERSIONS[kind]}: update what defines the class"
        )
    if not isinstance(kind, type):
        return kind
    try:
        return kind(**(kind.upgrade(config, version) if version < VERSIONS[kind] else config))  # type: ignore[attr-defined]
    except (TypeError, KeyError, ClnnError) as error:
        says = f"the file's config of {name} does not fit this"
        if kind.__module__.startswith("clnn."):
            raise CheckpointError(f"{says} version of clnn: {error}") from error
        raise CheckpointError(
            f"{says} class: {error}. Where its arguments have changed since, give it its next version, "
            f"@clnn.register(version={VERSIONS[kind] + 1}), and an upgrade(config, version)"
        ) from error


def difference(one: Any, other: Any, beside: Any = ()) -> tuple[str, str] | None:
    """The name of an argument in which two objects of a class differ and how; of such that the other has a `beside` for, none."""
    ours = type(one).__module__.startswith("clnn.")
    arguments = set() if ours else {*inspect.signature(type(one)).parameters} - {"seed"}
    first, second = ({**getattr(each, "__dict__", {}), **config_of(each)} for each in (one, other))
    for name in sorted(config_of(one).keys() | arguments):
        a, b = first.get(name), second.get(name)
        if isinstance(a, PLAIN) and not isinstance(b, beside) and a != (tuple(b) if isinstance(b, list) else b):
            return name, f"{a!r}, then {b!r}"
    return None


def config_from(one: Any, **instead: Any) -> dict[str, Any]:
    """The arguments of an object's constructor, and of those that it hands `**options` on to, as its attributes of these names
    hold them. `instead`: values for some of them, such as a shorter form."""
    return {name: instead[name] if name in instead else getattr(one, name) for name in _arguments(one.__class__)}


@functools.cache
def _arguments(kind: Any) -> tuple[str, ...]:
    """Those of the constructor of a class of clnn's, or of what one of a user's is made of, and of those above it as long as
    each hands `**options` on."""
    found = []
    for base in kind.__mro__[:-1]:
        if "__init__" in vars(base) and base.__module__.startswith("clnn."):
            taken = list(inspect.signature(vars(base)["__init__"]).parameters.values())[1:]
            found += [p.name for p in taken if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
            if not any(p.kind is p.VAR_KEYWORD for p in taken):
                break
    return tuple(dict.fromkeys(found))


def config_of(one: Any) -> dict[str, Any]:
    """The arguments that make an object like this one, as far as it says so."""
    found = one.config() if hasattr(one, "config") else {}
    return found if isinstance(found, dict) else {}
