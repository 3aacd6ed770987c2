"""What measurements say about a device: the tile and the engine for each class of shape, CLBlast's parameters, and plans of
convolutions.

`clnn tune` (clnn/tools/tune/) measures, and keeps what it finds in the user's cache folder, per platform, driver and device.
That lies over `tuned.json`, the table that ships, which goes by platform, version and vector width. Where neither says
anything, `tile.choose` and `engine_name` have their rules.
"""

from __future__ import annotations

import contextlib
import json
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ..files import cache_folder, write_atomically
from ..runtime.device import Device

if TYPE_CHECKING:
    from . import Product

FORMAT = 1
SHIPPED = Path(__file__).with_name("tuned.json")
PRECISIONS = {"float32": 32, "float64": 64}  # as CLBlast calls them
# Classes by elements of a layer's weights
SIZES = (("tiny", 1 << 11), ("small", 1 << 15), ("medium", 1 << 19))
ROWS, VECTORS, WIDTHS, DEPTHS = range(1, 17), range(1, 9), (2, 4, 8, 16), (0, 16, 32, 64, 96, 128, 160, 192, 256)


class TuningWarning(UserWarning):
    """A file of measurements that cannot be used, or a part of one; clnn does without it."""


class Choice(NamedTuple):
    """What to use for a product; "" and None leave it to the rules."""

    engine: str = ""
    tile: tuple[int, int, int, int] | None = None  # as tile.Tile


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
def find(device: Device, p: Product) -> Choice:
    """What is known for one product. Layer sizes count, never the batch's, so that a remainder compiles nothing."""
    known = device.tuned or load(device)
    if known.forced is not None:
        return known.forced
    fixed = p.n * (p.m if p.transpose_a else p.k)  # the layer's weights
    key = (p.transpose_a, p.transpose_b, p.dtype, p.n, fixed)
    choice = known.found.get(key)
    if choice is None:
        if len(known.found) >= 4096:
            known.found.clear()
        name = shape_class(device, p.dtype, p.transpose_a, p.transpose_b, p.n, fixed)
        choice = known.found[key] = known.classes.get(name, Choice())
    return choice


def shape_class(device: Device, dtype: Any, transpose_a: bool, transpose_b: bool, n: int, fixed: int) -> str:
    """The class of a product, such as "float32 nn wide medium": type, form, columns of C, elements of the weights."""
    from .tile import vector_width  # tile.py asks this file

    lanes = vector_width(device, dtype)
    width = "narrow" if n <= lanes else "middle" if n <= 2 * lanes else "wide"
    size = next((name for name, bound in SIZES if fixed < bound), "large")
    return f"{np.dtype(dtype).name} {'nt'[transpose_a]}{'nt'[transpose_b]} {width} {size}"


@contextlib.contextmanager
def forced(device: Device, choice: Choice) -> Iterator[None]:
    """Every product on `device` goes by `choice`."""
    known = device.tuned or load(device)
    before, known.forced = known.forced, choice
    try:
        yield
    finally:
        known.forced = before


# -- what is valid ----------------------------------------------------------------------------------------------------
def registers(device: Device) -> int:
    """Vector registers of a CPU: 32 with 512-bit vectors, else 16."""
    return 32 if device.lanes >= 16 else 16


def tile_problem(device: Device, dtype: Any, tile: Any) -> str:
    """What is wrong with a tile (mr, nv, vw, kc) on this device, or "". A wrong one would spill, or end the compiler."""
    from .tile import copied_columns, vector_width

    if not (isinstance(tile, (list, tuple)) and len(tile) == 4 and all(type(x) is int for x in tile)):
        return f"{tile!r} is no tile: it takes four whole numbers, mr, nv, vw and kc"
    (mr, nv, vw, kc), most = tile, vector_width(device, dtype)
    ranges: dict[str, tuple[int, Sequence[int]]] = {
        "mr": (mr, ROWS), "nv": (nv, VECTORS), "vw": (vw, WIDTHS), "kc": (kc, DEPTHS),
    }  # fmt: skip
    for name, (value, allowed) in ranges.items():
        if value not in allowed:
            return f"{name} = {value} should be one of {', '.join(map(str, allowed))}"
    if vw > most:
        return f"vectors of {vw} are wider than the device's {most}"
    if mr * nv + nv + 1 > registers(device):
        return f"{mr} x {nv} vectors need {mr * nv + nv + 1} registers, of {registers(device)}"
    if kc and not copied_columns(device, dtype, nv * vw, kc):
        return f"copies {kc} deep do not fit the device's {device.local_memory} bytes of local memory"
    return ""


CLBLAST: dict[str, dict[str, Sequence[int]]] = {  # every parameter of each kernel, and what it may be
    "Xgemm": {
        "GEMMK": (0,), "KREG": (1,), "KWG": (8, 16, 32, 64), "KWI": (1, 2, 4, 8, 16),
        "MDIMA": (1, 2, 4, 8, 16, 32), "MDIMC": (1, 2, 4, 8, 16, 32), "MWG": (8, 16, 32, 64, 128, 256),
        "NDIMB": (1, 2, 4, 8, 16, 32), "NDIMC": (1, 2, 4, 8, 16, 32), "NWG": (8, 16, 32, 64, 128, 256),
        "SA": (0, 1), "SB": (0, 1), "STRM": (0, 1), "STRN": (0, 1), "VWM": (1, 2, 4, 8, 16), "VWN": (1, 2, 4, 8, 16),
    },
    "GemmRoutine": {"XGEMM_MIN_INDIRECT_SIZE": range(1, 1 << 16)},
}  # fmt: skip


def clblast_problem(device: Device, dtype: Any, kernel: str, values: Any) -> str:
    """What is wrong with parameters for one of CLBlast's kernels, or "".

    CLBlast itself only looks whether each is there: with an invalid NWG it gives wrong numbers, fast.
    """
    names = CLBLAST.get(kernel)
    if names is None or not isinstance(values, dict):
        return f"{kernel!r} is no kernel that clnn tunes; there are {', '.join(CLBLAST)}"
    if set(values) != set(names):
        return f"{kernel} takes {', '.join(names)}, all of them, and nothing else"
    for name, allowed in names.items():
        if type(values[name]) is not int or values[name] not in allowed:
            return f"{name} = {values[name]!r} is none of its values"
    if kernel != "Xgemm":
        return ""
    v = values
    threads = v["MDIMC"] * v["NDIMC"]
    for what, whole, part in (
        ("KWG / KWI", v["KWG"], v["KWI"]),
        ("MWG / (MDIMC VWM)", v["MWG"], v["MDIMC"] * v["VWM"]),
        ("MWG / (MDIMA VWM)", v["MWG"], v["MDIMA"] * v["VWM"]),
        ("NWG / (NDIMC VWN)", v["NWG"], v["NDIMC"] * v["VWN"]),
        ("NWG / (NDIMB VWN)", v["NWG"], v["NDIMB"] * v["VWN"]),
        ("MDIMC NDIMC / MDIMA", threads, v["MDIMA"]),
        ("MDIMC NDIMC / NDIMB", threads, v["NDIMB"]),
        ("KWG MDIMA / (MDIMC NDIMC)", v["KWG"] * v["MDIMA"], threads),
        ("KWG NDIMB / (MDIMC NDIMC)", v["KWG"] * v["NDIMB"], threads),
    ):
        if whole % part:
            return f"{what} is not whole"
    if threads > device.max_group:
        return f"groups of {threads} work-items do not fit the device"
    copies = v["KWG"] * (v["MWG"] * v["SA"] + v["NWG"] * v["SB"]) * np.dtype(dtype).itemsize
    return f"copies of {copies} bytes do not fit local memory" if copies > device.local_memory else ""


# -- files ------------------------------------------------------------------------------------------------------------
def families(device: Device) -> tuple[str, str]:
    """What the table that ships goes by, since it is for machines other than those it was measured on: what a device is, and
    the same with its maker."""
    version = ".".join(map(str, device.pocl_version)) if device.pocl_version > (0, 0) else device.driver.split(".")[0]
    any_maker = f"{device.platform} {version}, {device.kind}, {device.lanes} lanes"
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
        found = table["devices"].get(key, {})
        if not all(
            isinstance(found.get(part, {}), dict) for part in ("classes", "clblast", "done", "tried", "convolutions")
        ):
            raise ValueError("a table is missing in it")
        return found
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        warnings.warn(
            f"{path} cannot be used ({type(error).__name__}: {error}); `clnn tune` writes it anew",
            TuningWarning,
            stacklevel=2,
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
    known = Known()
    tables = [(SHIPPED, shipped_for(device))] if shipped else []
    for path, found in [*tables, (user_file(), read(user_file(), device.identity))]:
        for name, entry in found.get("classes", {}).items():
            choice, wrong = _choice(device, name, entry)
            if wrong:
                warnings.warn(f"{path} says {wrong} for {name!r}, which is left out", TuningWarning, stacklevel=2)
            else:
                known.classes[name] = choice
        for dtype, kernels in found.get("clblast", {}).items():
            wrong = parameters_problem(device, dtype, kernels)
            if wrong:
                warnings.warn(f"{path} says for CLBlast: {wrong}; that is left out", TuningWarning, stacklevel=2)
            else:
                known.clblast[dtype] = kernels
        known.convolutions |= found.get("convolutions", {})
    device.tuned = known
    return known


def parameters_problem(device: Device, dtype: str, kernels: Any) -> str:
    """What is wrong with all of CLBlast's parameters for one type, or ""."""
    if dtype not in PRECISIONS or not isinstance(kernels, dict):
        return f"{dtype!r} is no type of float"
    problems = (clblast_problem(device, dtype, kernel, values) for kernel, values in kernels.items())
    return next(filter(None, problems), "")


def _choice(device: Device, name: str, entry: Any) -> tuple[Choice, str]:
    dtype = name.split()[0] if name.split() else ""
    if dtype not in PRECISIONS or not isinstance(entry, dict):
        return Choice(), "nothing that clnn understands"
    engine, tile = entry.get("engine", ""), entry.get("tile")
    if engine not in ("", "tile", "clblast"):
        return Choice(), f"engine {engine!r}"
    if tile is not None and (wrong := tile_problem(device, np.dtype(dtype), tile)):
        return Choice(), f"tile {tile!r}, but {wrong},"
    return Choice(engine, tile and tuple(tile)), ""
