"""Saving and loading: one safetensors file with the arrays, and the architecture as JSON in its header.

Nothing in a file is executed: layers come from a closed registry of class names. Files are written whole or not at all.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save as serialise

from .errors import CheckpointError, ClnnError
from .files import write_atomically
from .layers.base import REGISTRY, Layer

FORMAT = 1


def describe(layer: Layer) -> dict[str, Any]:
    """A layer as JSON: its class's name and its config, whose layers are described likewise."""
    kind = type(layer).__name__
    if REGISTRY.get(kind) is not type(layer):
        raise CheckpointError(
            f"a layer of class {kind} cannot be saved with its architecture: decorate the class with @clnn.register and give "
            "it a config(), or save net.state_dict()"
        )
    found: dict[str, Any] = {"class": kind, "config": _described(layer.config())}
    if not layer.trainable:
        found["trainable"] = False
    return found


def _described(value: Any) -> Any:
    if isinstance(value, Layer):
        return describe(value)
    if isinstance(value, (list, tuple)):
        return [_described(item) for item in value]
    if isinstance(value, dict):
        return {key: _described(item) for key, item in value.items()}
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise CheckpointError(f"a config holds {value!r}, which JSON cannot; use numbers, strings, lists and layers")


def construct(description: Any) -> Layer:
    """The layer that `describe` described."""
    kind = description.get("class") if isinstance(description, dict) else None
    if kind not in REGISTRY:
        raise CheckpointError(
            f"the file names a layer class {kind!r} that is not known here; known are {', '.join(sorted(REGISTRY))}. "
            "Import the module that defines it (with @clnn.register) first"
        )
    config = {key: _constructed(value) for key, value in description.get("config", {}).items()}
    try:
        return REGISTRY[kind](**config)
    except (TypeError, ClnnError) as error:
        raise CheckpointError(f"the file's config of {kind} does not fit this version of clnn: {error}") from error


def _constructed(value: Any) -> Any:
    if isinstance(value, dict) and set(value) <= {"class", "config", "trainable"} and "class" in value:
        layer = construct(value)
        if value.get("trainable") is False:
            layer.__dict__["_frozen_in_file"] = True
        return layer
    if isinstance(value, list):
        return [_constructed(item) for item in value]
    return value


def write(path: str | Path, arrays: dict[str, np.ndarray], header: dict[str, Any]) -> None:
    """Write arrays and a JSON header, atomically."""
    path = Path(path)
    text = json.dumps({"format": FORMAT, **header}, allow_nan=False)
    try:
        write_atomically(path, serialise({name: np.ascontiguousarray(a) for name, a in arrays.items()}, {"clnn": text}))
    except OSError as error:
        raise CheckpointError(f"{path} cannot be written: {error}") from error


def read(path: str | Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The arrays and the header of a file that `write` wrote; anything else is an error."""
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"there is no file {path}")
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        header = json.loads(metadata["clnn"], object_pairs_hook=_unique)
    except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{path} is no model file of clnn, or is damaged ({error!r}); restore it from a copy"
        ) from error
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        raise CheckpointError(
            f"{path} has the format {header.get('format')!r}; this version of clnn reads {FORMAT}; update clnn"
        )
    return arrays, header


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key stands twice in the header")
    return found
