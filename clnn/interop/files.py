"""Files of weights with PyTorch's names: safetensors is read and written, and what is pickled is refused."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, deserialize
from safetensors.numpy import save as serialise

from ..errors import CheckpointError
from ..files import as_path, why_no_file, write_atomically
from .pairs import Stored, Unit

TYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "i1", "U8": "u1",
         "BOOL": "?"}  # fmt: skip
PICKLED = (".pt", ".pth", ".bin", ".ckpt", ".pkl", ".pickle")
KERAS = (".keras", ".h5", ".hdf5")


def refused(path: str | bytes | os.PathLike[Any]) -> CheckpointError:
    """The error for a path of a file that is not read here, with the way round."""
    path = as_path(path)
    if path.suffix in KERAS:
        return CheckpointError(
            f"{path} is a file of Keras: load it there, and copy the model, "
            "clnn.interop.from_keras(keras.saving.load_model(path), model)"
        )
    return CheckpointError(
        f"{path} is no safetensors file. Files that torch.save wrote are pickles, which can run code, and clnn reads none. "
        'Where PyTorch is, load it there, and safetensors.torch.save_file(module.state_dict(), "model.safetensors") writes '
        "a file that clnn.interop.from_safetensors reads"
    )


def read(path: str | bytes | os.PathLike[Any]) -> dict[str, np.ndarray]:
    """The arrays of a safetensors file by name; bfloat16 becomes float32. CheckpointError for any other file."""
    path = as_path(path)
    if path.name.endswith(".index.json"):
        raise CheckpointError(
            f"{path} lists parts of a model: load them in PyTorch and write one file, "
            "safetensors.torch.save_file(module.state_dict(), path)"
        )
    if path.suffix in PICKLED + KERAS:
        raise refused(path)
    if why := why_no_file(path):
        raise CheckpointError(why)
    try:
        data = path.read_bytes()
        if data[:2] in (b"PK", b"\x80\x02", b"\x80\x04"):
            raise refused(path)
        found = {name: _array(path, name, **entry) for name, entry in deserialize(data)}
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{path} is no safetensors file, or is damaged ({error}); restore it from a copy"
        ) from error
    if found and all(name.startswith(("parameter.", "optimizer.")) for name in found):
        raise CheckpointError(f"{path} is a whole model that clnn saved: clnn.load(path) makes it again")
    return found


def _array(path: Path, name: str, dtype: str, shape: Sequence[int], data: Any) -> np.ndarray:
    if dtype == "BF16":
        return (np.frombuffer(data, "<u2").astype("<u4") << 16).view("<f4").reshape(shape)
    if dtype not in TYPES:
        raise CheckpointError(f"{name} in {path} is of {dtype}, and weights are floats of 16, 32 or 64 bits")
    return np.frombuffer(data, TYPES[dtype]).reshape(shape)


def unpacked(like: Any, dtype: Any) -> dict[str, np.ndarray]:
    """The arrays of a file or a state dict, floats of the type given, to be written to."""
    state = like if isinstance(like, Mapping) else read(like)
    stored = {name: Stored(name, value) for name, value in state.items()}
    return {
        name: np.array(one.read(), dtype) if "float" in one.kind else np.array(one.value)
        for name, one in stored.items()
    }


def write(path: str | bytes | os.PathLike[Any], arrays: Mapping[str, np.ndarray]) -> None:
    """Write arrays by name to a safetensors file as PyTorch's users expect it."""
    path = as_path(path)
    if path.suffix in PICKLED + KERAS:
        raise CheckpointError(
            f"what is written is a safetensors file, and {path.name} does not say so: name it *.safetensors"
        )
    try:
        write_atomically(
            path, serialise({name: np.ascontiguousarray(a) for name, a in arrays.items()}, {"format": "pt"})
        )
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be written: {error}") from error


def in_order(units: Sequence[Unit], order: Sequence[str]) -> list[Unit]:
    """The layers of a file in the order of these names. CheckpointError for names that are not there, or not given."""
    by_name = {unit.name: unit for unit in units}
    names = [order] if isinstance(order, str) else list(order)
    unknown, missing = [n for n in names if n not in by_name], [n for n in by_name if n not in names]
    if unknown or missing or len(names) != len(by_name):
        raise CheckpointError(
            f"order should name each of the file's layers once: unknown are {', '.join(map(repr, unknown)) or 'none'}, "
            f"missing are {', '.join(missing) or 'none'}"
        )
    return [by_name[name] for name in names]
