"""`clnn run`: a model in a file answers arrays in files, and how long it takes, and whether onnxruntime agrees, is printed."""

from __future__ import annotations

import importlib
import io
import json
import math
import os
import re
import statistics
import tempfile
import time
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .. import model, onnx
from ..errors import ConfigurationError, DataError, ShapeError
from ..files import as_path, why_no_file, write_atomically
from ..onnx.graph import FLOATS, Value
from ..onnx.model import as_type
from ..runtime.devices.selftest import cores
from ..runtime.profile import profile

ROUNDS = 7
TURN = 0.25  # seconds that a side has in each round, or one call
PAUSE = 0.05  # seconds after each turn, in which spinning threads go to sleep
FREE = 64  # a free size other than the first, where no --shape says another
AGREES = 1e-4  # of the largest number of an output


class Loaded:
    """A model from a file, its inputs, and how it answers a dict of arrays by one."""

    def __init__(self, path: Path) -> None:
        if why := why_no_file(path):
            raise ConfigurationError(why)
        self.path = path
        if path.suffix == ".onnx":
            self.net: Any = onnx.load(path)
        elif path.suffix in (".safetensors", ".clnn"):
            self.net = model.load(path)
        else:
            raise ConfigurationError(
                f"{path.name} should be an ONNX file, *.onnx, or one that net.save() wrote, *.safetensors or *.clnn"
            )
        self.foreign = hasattr(self.net, "session")
        if self.foreign:
            self.inputs: list[Value] = self.net.inputs
            return
        shapes = self.net._input_shapes
        names = [*(self.net.input_names() or ())] or ["input", *(f"input_{i}" for i in range(1, len(shapes)))]
        types = self.net._input_types or [self.net.dtype.name] * len(shapes)
        self.inputs = [Value(n, t, ("batch", *s)) for n, t, s in zip(names, types, shapes)]

    def answer(self, given: Mapping[str, np.ndarray]) -> dict[str, Any]:
        """The outputs by their names."""
        if self.foreign:
            found = self.net(dict(given))
            names = [value.name for value in self.net.outputs]
        else:
            arrays = [given[value.name] for value in self.inputs]
            found = self.net.predict(arrays[0] if len(arrays) == 1 else tuple(arrays))
            names = ["output", *(f"output_{i}" for i in range(1, 64))]
        if isinstance(found, dict):
            return found
        return dict(zip(names, found if isinstance(found, tuple) else [found]))


# -- inputs -----------------------------------------------------------------------------------------------------------
def arrays_in(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a .npz file by their names, or the one of a .npy file by "". DataError for others, pickles among them."""
    try:
        with open(path, "rb") as file:
            found = np.load(file, allow_pickle=False)
            return {"": found} if isinstance(found, np.ndarray) else {name: found[name] for name in found.files}
    except FileNotFoundError:
        raise DataError(f"there is no file {path}") from None
    except (OSError, ValueError, EOFError, MemoryError, KeyError, SyntaxError, zipfile.BadZipFile, TypeError) as error:
        why = (
            "it is none, or holds Python's objects"
            if "pickle" in str(error).lower()
            else str(error) or type(error).__name__
        )
        raise DataError(
            f"{path} cannot be read as a file of arrays, .npy or .npz ({why}): numpy.save writes one"
        ) from error


def as_number(text: str) -> np.ndarray | None:
    """A number that stands where a file could, as an array without axes."""
    for kind in (int, float):
        try:
            return np.array(kind(text))
        except (ValueError, OverflowError):
            pass
    return None


def given_inputs(texts: Sequence[str], inputs: Sequence[Value]) -> dict[str, tuple[np.ndarray, str]]:
    """The arrays that `--input` names by their inputs, each with the file that it came from."""
    names = [value.name for value in inputs]
    found: dict[str, tuple[np.ndarray, str]] = {}
    for text in texts:
        known = max((name for name in names if text.startswith(f"{name}=")), key=len, default=None)
        name, file = (known, text[len(known) + 1 :]) if known is not None else (None, text)
        if name is None and "=" in text and not os.path.isfile(text):
            raise _unknown(text.partition("=")[0], inputs)
        arrays = (
            {"": number} if name is not None and (number := as_number(file)) is not None else arrays_in(as_path(file))
        )
        if name is not None or len(names) == 1 == len(arrays):
            name = names[0] if name is None else name
            if name not in arrays and len(arrays) != 1:
                raise DataError(f"{file} holds {', '.join(map(repr, arrays)) or 'nothing'}, and none of it is {name!r}")
            arrays = {name: arrays.get(name, next(iter(arrays.values())))}
        for name, array in arrays.items():
            if name not in names:
                raise _unknown(name or text, inputs)
            if name in found:
                raise ConfigurationError(f"the input {name!r} is given twice, in {found[name][1]} and {file}")
            found[name] = array, file
    return found


def _unknown(name: str, inputs: Sequence[Value]) -> ConfigurationError:
    return ConfigurationError(
        f"{name!r} is no input: the model takes {'; '.join(map(str, inputs)) or 'none'}. --input NAME=FILE.npy gives one (or "
        "NAME=1 a number), and --input FILE.npz those that the file names"
    )


def given_shapes(texts: Sequence[str], inputs: Sequence[Value]) -> dict[str, tuple[int, ...]]:
    """The shapes that `--shape` says, by their inputs."""
    found = {}
    for text in texts:
        name, _, sizes = text.rpartition("=")
        name = name or (inputs[0].name if len(inputs) == 1 else "")
        value = next((one for one in inputs if one.name == name), None)
        if value is None:
            raise _unknown(name or text, inputs)
        try:
            shape = tuple(int(size) for size in sizes.split(",") if size.strip())
        except ValueError:
            shape = (-1,)
        if any(size < 0 for size in shape):
            raise ConfigurationError(f"--shape {text!r} should be NAME=N,N,..., such as {name}=1,3,224,224")
        if value.shape is not None and (
            len(shape) != len(value.shape) or any(isinstance(w, int) and w != s for s, w in zip(shape, value.shape))
        ):
            raise ShapeError(f"--shape {text!r} does not fit the input {value}")
        found[name] = shape
    return found


def sizes_of(inputs: Sequence[Value], shapes: Mapping[str, Sequence[int]]) -> dict[str, int]:
    """The free sizes that have names, as the shapes known say, else 1 where one comes first, else FREE."""
    found: dict[str, int] = {}
    for value in inputs:
        for wanted, size in zip(value.shape or (), shapes.get(value.name, ())):
            if isinstance(wanted, str):
                found.setdefault(wanted, size)
    for value in inputs:
        if value.shape and isinstance(value.shape[0], str):
            found.setdefault(value.shape[0], 1)
    return found


def filled(
    value: Value, shape: tuple[int, ...] | None, sizes: Mapping[str, int], rng: np.random.Generator
) -> np.ndarray:
    """A random array for an input: floats of a standard normal, 0 and 1 elsewhere."""
    if value.type == "string" or not value.type:
        raise ConfigurationError(f"the input {value} is not made up here: give it, --input {value.name}=FILE.npy")
    if shape is None:
        if value.shape is None:
            raise ConfigurationError(
                f"the input {value.name!r} has any shape: say one, --shape {value.name}=N,N,..., or give it"
            )
        shape = tuple(
            s if isinstance(s, int) else sizes.get(s or "", FREE if i else 1) for i, s in enumerate(value.shape)
        )
    if math.prod(shape) > 1 << 30:
        raise ShapeError(f"the input {value.name!r} of shape {shape} has more than 2^30 elements")
    if value.type not in FLOATS:
        return rng.integers(0, 2, shape).astype(value.type)
    return rng.standard_normal(shape).astype("float32" if value.type == "bfloat16" else value.type)


# -- outputs ----------------------------------------------------------------------------------------------------------
def described(found: Any) -> str:
    """An output in a few words."""
    if not isinstance(found, np.ndarray):
        return f"{type(found).__name__} of {len(found)}" if isinstance(found, (list, dict)) else repr(found)
    text = f"{'text' if found.dtype == object else found.dtype} {found.shape}"
    if found.dtype.kind in "fiub" and found.size:
        wide = found.astype(np.float64)
        text += f", {wide.min():.6g} to {wide.max():.6g}, mean {wide.mean():.6g}"
        if bad := int((~np.isfinite(wide)).sum()):
            text += f", {bad} not finite"
    return text


def write(folder: Path, found: Mapping[str, Any]) -> dict[str, Path]:
    """One file for each output, .npy, or .json for what is no array; names in a file never lead out of the folder."""
    written: dict[str, Path] = {}
    for name, value in found.items():
        plain = re.sub(r"[^\w.-]", "_", name, flags=re.ASCII).lstrip(".")[:100] or "output"
        stem, number = plain, 1
        while any(path.stem == stem for path in written.values()):
            number += 1
            stem = f"{plain}_{number}"
        if isinstance(value, np.ndarray):
            data = io.BytesIO()
            np.save(data, value.astype(str) if value.dtype == object else value, allow_pickle=False)
            path, content = folder / f"{stem}.npy", data.getvalue()
        else:
            plain_value = lambda one: one.tolist() if hasattr(one, "tolist") else str(one)  # noqa: E731
            path, content = folder / f"{stem}.json", json.dumps(value, default=plain_value).encode()
        try:
            write_atomically(path, content)
        except OSError as error:
            raise ConfigurationError(f"{path} cannot be written: {error}") from None
        written[name] = path
    return written


# -- onnxruntime ------------------------------------------------------------------------------------------------------
def onnxruntime_of(one: Loaded, given: Mapping[str, np.ndarray]) -> tuple[str, Callable[[], list[Any]]]:
    """onnxruntime's name, and the same model there, with as many threads; a model of clnn's is written as ONNX for it."""
    try:
        library = importlib.import_module("onnxruntime")
    except ImportError:
        raise ConfigurationError("--against onnxruntime takes that library: pip install onnxruntime") from None
    how = library.SessionOptions()
    how.intra_op_num_threads, how.log_severity_level = cores(), 3
    with tempfile.TemporaryDirectory() as folder:
        path = one.path
        if not one.foreign:
            path = Path(folder) / "model.onnx"
            arrays = tuple(given.values())
            onnx.save(one.net, path, example=arrays[0] if len(arrays) == 1 else arrays)
        try:
            session = library.InferenceSession(str(path), how, providers=["CPUExecutionProvider"])
            feed = {i.name: a for i, a in zip(session.get_inputs(), given.values())}
            session.run(None, feed)
        except Exception as error:  # whatever it raises: its classes have no common one
            raise ConfigurationError(f"onnxruntime {library.__version__} does not run this model: {error}") from error
    return f"onnxruntime {library.__version__}", lambda: session.run(None, feed)


def difference(ours: Any, theirs: Any) -> tuple[float, str]:
    """The largest difference of an output as a share of the largest number, inf where shape, type or what is not finite
    differs; and that in words."""
    if not isinstance(ours, np.ndarray) or not isinstance(theirs, np.ndarray):
        same = str(ours) == str(theirs)
        return (0.0, "the same") if same else (math.inf, "another value")
    if ours.shape != theirs.shape or ours.dtype.kind != theirs.dtype.kind:
        return math.inf, f"{ours.dtype} {ours.shape}, and there {theirs.dtype} {theirs.shape}"
    if ours.dtype.kind not in "fiub":
        n = int((ours != theirs).sum())
        return (math.inf if n else 0.0), f"{n} of {ours.size} differ"
    a, b = ours.astype(np.float64), theirs.astype(np.float64)
    finite = np.isfinite(b)
    if not np.array_equal(a[~finite], b[~finite], equal_nan=True) or not np.isfinite(a[finite]).all():
        return math.inf, "not finite at other places"
    most, size = (float(np.abs(v).max(initial=0)) for v in (a[finite] - b[finite], b[finite]))
    share = most / size if size else math.inf if most else 0.0
    if ours.dtype.kind != "f":
        n = int((ours != theirs).sum())
        return (share if n else 0.0), f"{n} of {ours.size} whole numbers differ" if n else "the same"
    return share, f"largest difference {most:.3g}, {share:.2g} of the largest number"


# -- the command ------------------------------------------------------------------------------------------------------
def measure(sides: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """Seconds of the calls of each side, in turns."""
    found: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, call in sides.items():
            time.sleep(PAUSE)
            call()  # threads wake up, caches are the other's
            end = time.perf_counter() + TURN
            while True:
                began = time.perf_counter()
                call()
                now = time.perf_counter()
                found[name].append(now - began)
                if now > end:
                    break
    return found


def run(options: Any) -> int:
    """Run a model once, and print what it takes and gives; 1 where it does not agree with the library that it is compared to."""
    if options.against not in ("", "onnxruntime"):
        raise ConfigurationError(f"--against knows onnxruntime alone, {options.against!r} was provided instead")
    if options.rounds < 1:
        raise ConfigurationError(f"--rounds should be 1 or more, {options.rounds} was provided instead")
    if options.seed < 0:
        raise ConfigurationError(f"--seed should be 0 or more, {options.seed} was provided instead")
    began = time.perf_counter()
    one = Loaded(as_path(options.model))
    loaded = time.perf_counter() - began
    files, shapes = given_inputs(options.input, one.inputs), given_shapes(options.shape, one.inputs)
    if twice := [*files.keys() & shapes.keys()]:
        raise ConfigurationError(f"the input {twice[0]!r} has a file, and a shape besides: give one of them")
    known = {**shapes, **{name: array.shape for name, (array, _) in files.items()}}
    sizes, rng, given = sizes_of(one.inputs, known), np.random.default_rng(options.seed), {}
    device = one.net.device
    print(f"{one.path.name} on {device.name} ({device.platform})")
    for value in one.inputs:
        if value.name in files:
            given[value.name], source = files[value.name]
        else:
            given[value.name] = filled(value, shapes.get(value.name), sizes, rng)
            source = "random: no --input gives it"
        print(f"input   {value}: {given[value.name].shape}, {source}", flush=True)
    began = time.perf_counter()
    found = one.answer(given)
    first = time.perf_counter() - began
    written = write(as_path(options.output), found) if options.output is not None else {}
    for name, array in found.items():
        print(f"output  {name}: {described(array)}{f' -> {written[name]}' if name in written else ''}")
    print(f"loaded in {loaded:.2f} s, the first answer took {first:.2f} s", flush=True)
    wrong = 0
    sides: dict[str, Callable[[], Any]] = {"clnn": lambda: one.answer(given)}
    if options.against:
        typed = {v.name: as_type(given[v.name], "object" if v.type == "string" else v.type) for v in one.inputs}
        label, other = onnxruntime_of(one, typed)
        for name, theirs in zip(found, other()):
            share, text = difference(found[name], theirs)
            wrong += not share <= AGREES
            print(f"{label}, {name}: {text}{'' if share <= AGREES else ': NOT THE SAME'}")
        sides[label] = other
    if options.bench:
        sides["clnn"](), sides["clnn"]()  # the call after the first one records, and one more is compared with it
        times = measure(sides, options.rounds)
        for name, seconds in times.items():
            print(
                f"{name}: {min(seconds) * 1e3:.3f} ms at best, median {statistics.median(seconds) * 1e3:.3f} ms of "
                f"{len(seconds)} calls in {options.rounds} round{'s' * (options.rounds > 1)}"
            )
        if len(times) > 1:
            best = [min(seconds) for seconds in times.values()]
            print(f"clnn takes {best[0] / best[1]:.2f} of the time of {label}, on {cores()} cores each, in turns")
    if options.profile:
        with profile() as p:
            for _ in range(5):
                one.answer(given)
        print(p)
    return 1 if wrong else 0
