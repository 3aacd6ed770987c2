"""What measurements say about a device: the tile and the engine for each class of shape, CLBlast's parameters, and plans of
convolutions.

`clnn tune` (clnn/tools/tune/) measures, and keeps what it finds in the user's cache folder, per platform, driver and device.
That lies over `tuned.json`, the table that ships, which goes by platform, version and vector width. Where neither says
anything, `tile.choose` and `engine_name` have their rules.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..errors import warn
from ..files import cache_folder, write_atomically
from ..runtime.device import Device
from . import clblast, tile
from .clblast import PRECISIONS
from .clblast import TuningWarning as TuningWarning
from .product import Shape

FORMAT = 1
SHIPPED = Path(__file__).with_name("tuned.json")
# Classes by elements of a layer's weights
SIZES = (("tiny", 1 << 11), ("small", 1 << 15), ("medium", 1 << 19))


class Choice(NamedTuple):
    """What to use for a product; "" and None leave it to the rules."""

    engine: str = ""
    tile: tile.Measured = None


class Known:
    """The measurements for one device."""

    def __init__(self) -> None:
        self.classes: dict[str, Choice] = {}
        self.clblast: dict[str, dict[str, dict[str, int]]] = {}  # dtype: kernel: parameter: value
        self.convolutions: dict[
            str, Any
        ] = {}  # as they are stored: clnn/ops/image/conv_plan.py reads those that it meets
        self.plans: dict[Any, Any] = {}  # what it found for each, None for the model's choice
        self.forced: Choice | None = None  # for every class, whatever was measured
        self.found: dict[Any, Choice] = {}


# -- looking up -------------------------------------------------------------------------------------------------------
def known(device: Device) -> Known:
    """What is known of a device, read at the first time."""
    found = device.tuned
    return found if isinstance(found, Known) else load(device)


def find(device: Device, shape: Shape) -> Choice:
    """What is known for one product. Layer sizes count, never the batch's, so that a remainder compiles nothing."""
    there = known(device)
    if there.forced is not None:
        return there.forced
    _, n, _, dtype, transpose_a, transpose_b = shape
    key = (transpose_a, transpose_b, dtype, n, shape.weights)
    choice = there.found.get(key)
    if choice is None:
        if len(there.found) >= 4096:
            there.found.clear()
        choice = there.found[key] = there.classes.get(shape_class(device, shape), Choice())
    return choice


def shape_class(device: Device, shape: Shape) -> str:
    """The class of a product, such as "float32 nn wide medium": type, form, columns of C, elements of the weights."""
    _, n, _, dtype, transpose_a, transpose_b = shape
    lanes = device.vector_width(dtype)
    width = "narrow" if n <= lanes else "middle" if n <= 2 * lanes else "wide"
    size = next((name for name, bound in SIZES if shape.weights < bound), "large")
    return f"{np.dtype(dtype).name} {'nt'[transpose_a]}{'nt'[transpose_b]} {width} {size}"


@contextlib.contextmanager
def forced(device: Device, choice: Choice) -> Iterator[None]:
    """Every product on `device` goes by `choice`."""
    there = known(device)
    before, there.forced = there.forced, choice
    try:
        yield
    finally:
        there.forced = before


# -- files ------------------------------------------------------------------------------------------------------------
def families(device: Device) -> tuple[str, str]:
    """What the table that ships goes by, since it is for machines other than those it was measured on: what a device is, and
    the same with its maker."""
    version = ".".join(map(str, device.pocl_version)) if device.pocl_version > (0, 0) else device.driver.split(".")[0]
    loops = f", loops of {device.most_turns} turns" if device.most_turns else ""
    any_maker = f"{device.platform} {version}, {device.kind}, {device.lanes} lanes{loops}"
    return any_maker, f"{any_maker}, {device.cl_device.vendor.strip()}"


def shipped_for(device: Device) -> dict[str, Any]:
    """What the table that ships says of a device: what was measured on one of its maker's, else on another's."""
    any_maker, own = families(device)
    return read(SHIPPED, any_maker) | {part: found for part, found in read(SHIPPED, own).items() if found}


def user_file() -> Path:
    return cache_folder() / "gemm-tuning.json"


def read(path: Path, key: str) -> dict[str, Any]:
    """What a file holds under `key`: {} without one, and with a warning where it is damaged or not clnn's."""
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
        if table["format"] != FORMAT:
            raise ValueError(f"its format is {table['format']!r}, and this clnn reads {FORMAT}")
        found: dict[str, Any] = table["devices"].get(key, {})
        if not all(
            isinstance(found.get(part, {}), dict) for part in ("classes", "clblast", "done", "tried", "convolutions")
        ):
            raise ValueError("a table is missing in it")
        return found
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        warn(
            f"{path} cannot be used ({type(error).__name__}: {error}); `clnn tune` writes it anew",
            TuningWarning,
        )
        return {}


def write(path: Path, key: str, found: dict[str, Any] | None, **about: Any) -> None:
    """Put `found` under `key`, or remove what is there; what the file says of other devices stays."""
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
        devices = table["devices"] if table["format"] == FORMAT else {}
        devices = dict(devices)
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        devices = {}
    devices.pop(key, None)
    if found is not None:
        devices[key] = found
    table = {**about, "format": FORMAT, "devices": dict(sorted(devices.items()))}
    write_atomically(path, (_written(table) + "\n").encode())


def _written(value: Any, indent: str = "") -> str:
    """JSON in which a dictionary of plain values, a class or a kernel's parameters, takes one line."""
    if not isinstance(value, dict) or not any(isinstance(one, dict) for one in value.values()):
        return json.dumps(value)
    lines = [f"{indent} {json.dumps(name)}: {_written(one, indent + ' ')}" for name, one in value.items()]
    return "{\n" + ",\n".join(lines) + f"\n{indent}}}"


def load(device: Device, shipped: bool = True) -> Known:
    """The user's measurements over the table that ships; kept on the device."""
    there = Known()
    tables = [(SHIPPED, shipped_for(device))] if shipped else []
    for path, found in [*tables, (user_file(), read(user_file(), device.identity))]:
        for name, entry in found.get("classes", {}).items():
            choice, wrong = _choice(device, name, entry)
            if wrong:
                warn(f"{path} says {wrong} for {name!r}, which is left out", TuningWarning)
            else:
                there.classes[name] = choice
        for dtype, kernels in found.get("clblast", {}).items():
            wrong = clblast.parameters_problem(device, dtype, kernels)
            if wrong:
                warn(f"{path} says for CLBlast: {wrong}; that is left out", TuningWarning)
            else:
                there.clblast[dtype] = kernels
        there.convolutions |= found.get("convolutions", {})
    device.tuned = there
    return there


def _choice(device: Device, name: str, entry: Any) -> tuple[Choice, str]:
    dtype = name.split()[0] if name.split() else ""
    if dtype not in PRECISIONS or not isinstance(entry, dict):
        return Choice(), "nothing that clnn understands"
    engine, measured = entry.get("engine", ""), entry.get("tile")
    if engine not in ("", "tile", "clblast"):
        return Choice(), f"engine {engine!r}"
    if measured is not None and (wrong := tile.problem(device, np.dtype(dtype), measured)):
        return Choice(), f"tile {measured!r}, but {wrong},"
    return Choice(engine, measured and tuple(measured)), ""
