"""Saving and loading: one safetensors file with the arrays, and the architecture as JSON in its header.

Nothing in a file is executed: layers come from a closed registry of class names. Files are written whole or not at all.
"""

from __future__ import annotations

import dis
import json
import math
import re
import types
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save as serialise

from . import registry
from .errors import CheckpointError, warn
from .files import as_path, why_no_file, write_atomically
from .layers.base import Layer, snake
from .tensor import Parameter, Tensor

FORMAT = 1
OTHERS = {".onnx": "clnn.onnx.load reads ONNX files"}  # by suffix, how files of other libraries are brought in
OTHERS |= dict.fromkeys((".h5", ".keras", ".pt", ".pth"), "clnn.interop copies weights of models of Keras and PyTorch")


class CheckpointWarning(UserWarning):
    """A file goes without something that belongs to the model, since nothing would find it again."""


def describe(layer: Layer, numbers: dict[Layer, int] | None = None) -> dict[str, Any]:
    """A layer as JSON: its class's name and its config, whose layers are described likewise.

    `numbers` those that are described already: one that is there again, shared, is referred to by its number.
    """
    numbers = {} if numbers is None else numbers
    if layer in numbers:
        return {"class": "", "shared": numbers[layer]}
    if not registry.is_registered(layer):
        raise CheckpointError(
            f"a layer of class {type(layer).__name__} cannot be saved with its architecture: decorate the class with "
            "@clnn.register and give it a config(), or save net.state_dict()"
        )
    found = registry.describe(layer, _described(layer.config(), numbers))
    if not layer.trainable:
        found["trainable"] = False
    if layer.name and not re.fullmatch(rf"{snake(type(layer).__name__)}_\d+", layer.name):  # else it gets it anyway
        found["name"] = layer.name
    numbers[layer] = len(numbers)
    return found


def _described(value: Any, numbers: dict[Layer, int]) -> Any:
    if isinstance(value, Layer):
        return describe(value, numbers)
    if isinstance(value, (list, tuple)):
        return [_described(item, numbers) for item in value]
    if isinstance(value, dict):
        return {key: _described(item, numbers) for key, item in value.items()}
    value = value.item() if isinstance(value, np.generic) else value
    if value is None or isinstance(value, (bool, int, str)) or (isinstance(value, float) and math.isfinite(value)):
        return value
    raise CheckpointError(f"a config holds {value!r}, which JSON cannot; use finite numbers, strings, lists and layers")


def construct(description: Any, made: list[Layer] | None = None) -> Layer:
    """The layer that `describe` described; `made` are those before it, by their numbers."""
    made = [] if made is None else made
    description = description if isinstance(description, dict) else {}
    if description.get("class") == "":
        return made[description["shared"]]
    config = {key: _constructed(value, made) for key, value in description.get("config", {}).items()}
    layer = registry.construct({**description, "config": config}, "layer", Layer)
    if description.get("trainable") is False:
        layer.__dict__["_frozen_in_file"] = True
    layer.name = description.get("name", layer.name)
    made.append(layer)
    return layer


def _constructed(value: Any, made: list[Layer]) -> Any:
    keys = {"class", "config", "trainable", "version", "shared", "name"}
    if isinstance(value, dict) and "class" in value and set(value) <= keys:
        return construct(value, made)
    if isinstance(value, list):
        return [_constructed(item, made) for item in value]
    if isinstance(value, dict):
        return {key: _constructed(item, made) for key, item in value.items()}
    return value


def difference(model: Layer, twin: Layer) -> str | None:
    """In words, in what a model that was made of another's description is not like it; None where it is."""
    shapes, others = ({name: p.shape for name, p in one.named_parameters()} for one in (model, twin))
    if shapes != others:
        names = sorted(name for name in shapes.keys() | others.keys() if shapes.get(name) != others.get(name))
        of = ", ".join(f"{name} {shapes.get(name, 'is none')}, then {others.get(name, 'none')}" for name in names[:9])
        return f"its parameters differ: {of}"
    pairs = ((("", one), *(pair for pair in one._walk("") if isinstance(pair[1], Layer))) for one in (model, twin))
    first, second = map(dict, pairs)
    for path, layer in first.items():
        other, where = second.get(path), path or type(layer).__name__
        if other is None or type(other) is not type(layer):
            return f"{where} is {layer!r}, then {other!r}"
        if different := registry.difference(layer, other, Layer):
            return f"{different[0]} of {where} is {different[1]}"
    return None


def warn_of_attributes(model: Layer, twin: Layer) -> None:
    """A warning of what was changed in layers of a user's class since they were made, where their methods read it and do not
    set it themselves: neither `config()` nor a parameter has it. What every layer has (`unwatched`), files keep."""
    others = dict(twin._walk("")) | {"": twin}
    for path, layer in (("", model), *model._walk("")):
        if not isinstance(layer, Layer) or type(layer).__module__.startswith("clnn."):
            continue
        methods = [
            f for one in type(layer).__mro__ for name, f in vars(one).items() if name not in ("__init__", "build")
        ]
        code = [i for f in methods if isinstance(f, types.FunctionType) for i in dis.get_instructions(f)]
        stored = {i.argval for i in code if i.opname == "STORE_ATTR"}
        read = {i.argval for i in code if i.opname in ("LOAD_ATTR", "LOAD_METHOD")}
        for name in sorted(read - stored - layer.config().keys() - Layer.unwatched):
            a, b = (vars(one).get(name) for one in (layer, others[path]))
            if a is not b and (parts := _parts(a)) and not _alike(parts, _parts(b)):
                warn(
                    f"the file goes without {name} of {path or type(layer).__name__}, which is {a!r}, and {b!r} where the layer "
                    "is made anew: let __init__ take it and config() give it, or make it a parameter with learns=False",
                    CheckpointWarning,
                )


def _parts(value: Any) -> dict[str, Any] | None:
    """The numbers, texts, arrays and tensors of which a value is made, by their places in it; None where it is of others, too.
    A parameter is in the file, and so is a layer."""
    if isinstance(value, (list, tuple, dict)):
        entries = value.items() if isinstance(value, dict) else enumerate(value)
        inside = {key: _parts(item) for key, item in entries}
        if None in inside.values():
            return None
        parts = {f"{key}.{name}": part for key, found in inside.items() for name, part in (found or {}).items()}
        return parts | {"": len(inside)}
    if isinstance(value, Tensor) and not isinstance(value, Parameter):
        value = value.detach().numpy()
    numbers = isinstance(value, np.ndarray) and value.dtype.kind in "fiub"
    return {"": value} if numbers or isinstance(value, (bool, int, float, str)) else None


def _alike(a: dict[str, Any], b: dict[str, Any] | None) -> bool:
    return b is not None and a.keys() == b.keys() and all(np.array_equal(part, b[name]) for name, part in a.items())


def settings(p: Parameter) -> list[Any]:
    """What a step does with a parameter besides its rule."""
    return [p.rate_factor, p.decays, p.max_norm]


def told(what: str, one: Any, described: Any, find: Callable[[Any], Any]) -> Any:
    """`described`, after `find` was seen to make one like it of that; where it is None, a warning that the file goes without."""
    kind = getattr(one, "__name__", type(one).__name__)
    if described is None:
        without = f"the file goes without the {what} {kind}: decorate it (a function with a name, or a class) with @clnn.register"
        warn(f"{without} to have it there, or give the {what} again after loading", CheckpointWarning)
        return None
    try:
        different = registry.difference(one, find(json.loads(json.dumps(described, allow_nan=False))))
        wrong = different and f"would have the {different[0]} {different[1]}"
    except Exception as error:  # whatever its own code raises
        wrong = f"cannot be made: {error.__cause__ or error}"
    if wrong:
        raise CheckpointError(
            f"a {what} {kind} made of its config() {wrong}. Have config() give all arguments of __init__, as JSON can hold "
            "them"
        )
    return described


def model_path(path: str | bytes | Path) -> Path:
    """Where a model is to be written."""
    if (path := as_path(path)).suffix.lower() == ".onnx":
        raise CheckpointError(f"{path} would be no ONNX file: clnn.onnx.save(net, path) writes one")
    return path


def write(path: str | bytes | Path, arrays: dict[str, np.ndarray], header: dict[str, Any]) -> None:
    """Write arrays and a JSON header, atomically."""
    path = model_path(path)
    text = json.dumps({"format": FORMAT, **header}, allow_nan=False)
    whole = {name: np.asarray(a, order="C") for name, a in arrays.items()}
    try:
        write_atomically(path, serialise(whole, {"clnn": text, "sum": _sum(text)}))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be written: {error}") from error


def read(path: str | bytes | Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The arrays and the header of a file that `write` wrote; anything else is an error."""
    path = as_path(path)
    if why := why_no_file(path):
        raise CheckpointError(why)
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        header = json.loads(text := metadata["clnn"], object_pairs_hook=_unique)
        if metadata.get("sum", _sum(text)) != _sum(text):  # which older files go without
            raise ValueError("its header was changed since; without 'sum' beside it, it is read as it is")
    except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
        remedy = OTHERS.get(path.suffix.lower(), "restore it from a copy")
        if isinstance(error, KeyError):
            remedy = "clnn.interop.from_safetensors brings other libraries' weights into a model"
        raise CheckpointError(f"{path} is no model file of clnn, or is damaged ({error!r}); {remedy}") from error
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        raise CheckpointError(
            f"{path} has the format {header.get('format')!r}; this version of clnn reads {FORMAT}; update clnn"
        )
    return arrays, header


def _sum(text: str) -> str:
    return f"{zlib.crc32(text.encode()):08x}"


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key stands twice in the header")
    return found
