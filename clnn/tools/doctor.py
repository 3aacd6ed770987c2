"""`clnn doctor`: checks everything that clnn stands on, and says in words what is wrong and what to do about it.

Drivers are loaded in processes of their own, because a broken one can end or hang the process that loads it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from ctypes.util import find_library
from importlib import metadata
from pathlib import Path
from shutil import which
from typing import Any, NamedTuple

from ..errors import BuildError, ClnnError
from .drivers import NEEDS, VENDORS, loader, registered, vendor_files
from .drivers import VARIABLES as OF_LOADERS
from .drivers import cards as cards_here

OK, NOTE, PROBLEM = "OK", "note", "PROBLEM"  # a problem stops clnn; a note stops a part of it at most
BROKEN_PYOPENCL = ("2026.1", "2026.1.1", "2026.1.2")  # they break their own program cache (pyopencl issue 892)
VARIABLES = (
    "CLNN_DEVICE", "CLNN_DEVICE_EXCLUDE", "CLNN_DEVICE_AS", "CLNN_SELF_TEST", "CLNN_COMPILERS", "CLNN_GEMM", "CLNN_WINOGRAD",
    "CLNN_DEBUG", "CLNN_FUSE", "CLNN_MEMORY_LIMIT", "CLNN_CACHE_DIR", "CLNN_DATA_DIR",
)  # fmt: skip
OTHERS = (
    "PYOPENCL_CTX",
    "PYOPENCL_NO_CACHE",
    "OCL_ICD_",
    "POCL_",
    "OPENCL_VENDOR_PATH",
    "RUSTICL_",
    "CUDA_VISIBLE_DEVICES",
    "LD_LIBRARY_PATH",
)
SECONDS = 180  # that a device may take; a GPU's compiler takes some 20, a hung driver for ever
# What failed where a device's test went no further than the stage on the left, and what to do about it.
AFTER = {
    "": ("it does not open", ""),
    "opened": ("a small kernel does not run", ""),
    "ran": ("clnn's matrix product fails", ""),
    "tile": ("CLBlast fails", "set CLNN_GEMM=tile, which does without CLBlast"),
}


# By what the devices of a maker's cards can be told.
ALSO_CALLED = {
    "AMD": ("amd", "radeon", "gfx"), "Intel": ("intel",), "Nvidia": ("nvidia", "geforce", "quadro", "rtx", "tesla"),
}  # fmt: skip


class Finding(NamedTuple):
    """What one check found, and what to do where that is not well."""

    verdict: str
    text: str
    remedy: str = ""


def doctor() -> int:
    """Print every check's findings; 1 if clnn cannot work like this, else 0."""
    problems = 0
    for title, check in (
        ("Python and packages", packages),
        ("Environment", environment),
        ("OpenCL drivers", drivers),
        ("Devices", devices),
        *([("Cards", cards)] if sys.platform == "linux" else []),
        ("Folders", folders),
    ):
        print(title, flush=True)
        for verdict, text, remedy in check():
            problems += verdict == PROBLEM
            print(f"  {verdict:7}  " + text.replace("\n", "\n" + 11 * " "))
            if remedy:
                print(f"{11 * ' '}-> {remedy}", flush=True)
    print(f"\n{f'{problems} problem(s) to solve, marked PROBLEM' if problems else 'clnn works here'}.")
    return 1 if problems else 0


# -- what is installed and set ----------------------------------------------------------------------------------------
def packages() -> Iterator[Finding]:
    """Versions of Python and of what clnn needs."""
    python = ".".join(map(str, sys.version_info[:3]))
    old = sys.version_info < (3, 10)
    yield Finding(PROBLEM if old else OK, f"Python {python}", "clnn needs Python 3.10 or newer" if old else "")
    from .. import __version__

    yield Finding(OK, f"clnn {__version__} in {Path(__file__).parent.parent}")
    for name in ("numpy", "pyopencl", "tqdm", "safetensors", "platformdirs"):
        version = _version(name)
        if not version:
            yield Finding(PROBLEM, f"{name} is not installed", f"pip install {name}")
        elif name == "pyopencl" and version in BROKEN_PYOPENCL:
            yield Finding(PROBLEM, f"pyopencl {version} breaks its own program cache", "pip install --upgrade pyopencl")
        else:
            yield Finding(OK, f"{name} {version}")
    lost = _run("-c", "import pyclblast", seconds=60)
    if not lost:
        yield Finding(OK, f"pyclblast {_version('pyclblast')}")
    else:
        yield Finding(
            NOTE,
            f"pyclblast cannot be imported, so clnn's own kernels multiply matrices ({lost.splitlines()[-1]})",
            "on a GPU CLBlast can be faster: install it (Debian, Ubuntu: libclblast-dev), then pip install pyclblast",
        )


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""


def environment() -> Iterator[Finding]:
    """The variables that are set and matter; a misspelt one of clnn's would be ignored silently."""
    any_set = False
    for name, value in sorted(os.environ.items()):
        if name in VARIABLES or name.startswith(OTHERS):
            any_set = True
            yield Finding(OK, f"{name}={value}")
        elif name.startswith("CLNN_") and not name.startswith("CLNN_TEST_"):
            any_set = True
            yield Finding(NOTE, f"{name} is no variable of clnn's", f"there are {', '.join(VARIABLES)}")
    if not any_set:
        yield Finding(OK, "no variable is set that has to do with clnn or OpenCL")


# -- drivers ----------------------------------------------------------------------------------------------------------
def drivers() -> Iterator[Finding]:
    """The loader, and every driver that it is told of: a file .icd holds the name of one library."""
    used = loader()
    reads = f"; it reads {', '.join(used.reads)}" if sys.platform == "linux" else ""
    yield Finding(OK, f"the OpenCL loader is {used}{reads}")
    for name in OF_LOADERS:
        if os.environ.get(name) and name not in used.reads:
            yield Finding(
                NOTE,
                f"{name} is set, and this loader does not read it",
                "write the path of the driver's library into a file NAME.icd in a folder, and set OCL_ICD_VENDORS to it",
            )
    if sys.platform == "win32":
        for library in registered():
            yield Finding(OK, f"the registry names {library}")
    if sys.platform != "linux":
        return
    files = vendor_files(used)
    for file in files:
        try:
            library = file.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            yield Finding(NOTE, f"{file} cannot be read: {error}", "make it readable, or remove it")
            continue
        here = file.parent / library  # a name alone can mean a file beside: pyopencl's wheels do that
        yield _driver(f"{file} names {library}", str(here) if here.is_file() else library)
    named = os.environ.get("OCL_ICD_FILENAMES", "") if "OCL_ICD_FILENAMES" in used.reads else ""
    libraries = [name for name in named.split(":") if name]
    for library in libraries:
        yield _driver(f"OCL_ICD_FILENAMES names {library}", library)
    if not files and not libraries:
        folder = os.environ.get("OCL_ICD_VENDORS") or VENDORS
        yield Finding(NOTE, f"there is no .icd file in {folder}, so no driver is known to the loader")
    if used.bundled and (missed := _only_by_system(used.path)):
        yield Finding(
            NOTE,
            f"the system's own libOpenCL also finds {', '.join(missed)}, and pyopencl's copy of the loader does not",
            "write the path of that driver's library into a file in "
            f"{VENDORS}, or build pyopencl with the system's loader: pip install --no-binary pyopencl pyopencl",
        )


# Prints the names of the platforms that a libOpenCL finds: a loader by itself, without pyopencl.
PLATFORMS = """import ctypes, sys
cl = ctypes.CDLL(sys.argv[1]); n = ctypes.c_uint(); size = ctypes.c_size_t()
if cl.clGetPlatformIDs(0, None, ctypes.byref(n)) == 0:
    ids = (ctypes.c_void_p * n.value)(); cl.clGetPlatformIDs(n, ids, None)
    for one in ids:
        text = ctypes.create_string_buffer(1024)
        cl.clGetPlatformInfo(ctypes.c_void_p(one), 0x0902, ctypes.c_size_t(1024), text, None)
        print("platform", text.value.decode("utf-8", "replace").strip())"""


def _only_by_system(bundled: str) -> list[str]:
    """Platforms that the system's loader finds and pyopencl's does not, as with drivers that are the system's libOpenCL."""
    system = find_library("OpenCL")
    by_loader: list[set[str]] = []
    for library in (system, bundled) if system else ():
        output: list[str] = []
        if _run("-c", PLATFORMS, str(library), seconds=60, output=output):
            return []
        by_loader.append({line.removeprefix("platform ") for line in output if line.startswith("platform ")})
    return sorted(by_loader[0] - by_loader[1]) if by_loader else []


def _driver(text: str, library: str) -> Finding:
    wrong = _run("-c", "import ctypes, sys; ctypes.CDLL(sys.argv[1])", library, seconds=60)
    if not wrong:
        return Finding(OK, text)
    return Finding(
        NOTE,
        f"{text}, which does not load: {wrong.splitlines()[-1]}",
        "reinstall that driver, correct the name, or remove the file; a library in a folder of its own also needs "
        "LD_LIBRARY_PATH",
    )


# -- devices ----------------------------------------------------------------------------------------------------------
def devices() -> Iterator[Finding]:
    """Every device, tried out; the one that clnn would choose has to work."""
    answers, wrong = _ask("list")
    if wrong:
        yield Finding(PROBLEM, f"looking for devices failed: {wrong}", "remove or update the driver that is at fault")
        yield from _culprits()
        return
    there, error = answers[-1]["devices"], answers[-1]["error"].replace(" `clnn doctor` says more.", "")
    if error:
        message, _, remedy = error.partition(". ") if not there else (error, "", "")
        yield Finding(PROBLEM, message, remedy)
    for one in there:
        verdict = PROBLEM if one["used"] else NOTE
        text = one["text"] + (", the one in use" if one["used"] else "")
        answers, wrong = _ask("try", one["index"])
        stage = answers[-1]["stage"] if answers else ""
        if stage != "done":
            failed, remedy = AFTER[stage]
            yield Finding(verdict, f"{text}\n{failed}: {wrong}", remedy or BuildError.remedy(wrong) or _remedy(one))
        elif problem := answers[-1]["problem"]:
            yield Finding(verdict, f"{text}\n{problem}", _remedy(one) if answers[-1].get("untrusted") else "")
        else:
            yield Finding(OK, f"{text}\n{', '.join(answer['text'] for answer in answers if answer['text'])}")


def cards() -> Iterator[Finding]:
    """The cards in this machine (on Linux), what each still needs, and whether this user may open it."""
    there = cards_here()
    if not there:
        yield Finding(OK, "no graphics card by AMD, Intel or Nvidia is seen")
        return
    answers, _ = _ask("list")
    gpus = " ".join(one["text"].lower() for one in answers[-1]["devices"] if one["kind"] == "gpu") if answers else ""
    for card in there:
        if card.closed:
            yield Finding(
                NOTE,
                f"{card.maker}'s card (driver {card.driver}): this user may not open {', '.join(card.closed)}",
                "sudo usermod -aG render,video $USER, then log in again; in a container, pass the files on (--device)",
            )
        elif card.maker == "WSL":
            yield Finding(
                OK if gpus else NOTE,
                "Windows' card is behind /dev/dxg",
                ""
                if gpus
                else "Intel's is reached by intel-opencl-icd, AMD's by ROCm for WSL; Nvidia's driver has no OpenCL in WSL",
            )
        elif any(name in gpus for name in ALSO_CALLED[card.maker]):
            yield Finding(OK, f"{card.maker}'s card (driver {card.driver}) has an OpenCL device")
        else:
            yield Finding(
                NOTE,
                f"{card.maker}'s card (driver {card.driver}) has no OpenCL device",
                f"install {NEEDS[card.maker]}",
            )


def _remedy(one: dict[str, Any]) -> str:
    linker = "PoCL needs a linker, so install binutils; else " if "Portable" in one["text"] and not which("ld") else ""
    return (
        f"{linker}update the driver, use another device (CLNN_DEVICE), or leave this one out "
        f"(CLNN_DEVICE_EXCLUDE={one['name']!r})"
    )


def _culprits() -> Iterator[Finding]:
    """Where loading all drivers together fails: each alone."""
    for file in vendor_files(loader()):
        with tempfile.TemporaryDirectory() as folder:
            Path(folder, file.name).write_text(file.read_text(encoding="utf-8"), encoding="utf-8")
            _, wrong = _ask("list", vendors=folder)
        yield Finding(NOTE if wrong else OK, f"{file} alone: {wrong or 'loads'}")


def _run(*arguments: str, seconds: float = SECONDS, output: list[str] | None = None, vendors: str = "") -> str:
    """Run Python in a process of its own: "" if all went well, else what went wrong, in words."""
    home = str(Path(__file__).resolve().parents[2])  # so that the child imports this clnn
    path = os.pathsep.join(filter(None, (home, os.environ.get("PYTHONPATH", ""))))
    command = [sys.executable, *arguments]
    environ = {**os.environ, "PYTHONPATH": path, "PYTHONIOENCODING": "utf-8"}
    if vendors:
        environ["OCL_ICD_VENDORS"] = vendors
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, encoding="utf-8", errors="replace", timeout=seconds, env=environ
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return f"no answer after {seconds} s"
    if output is not None:
        output += done.stdout.splitlines()
    if done.returncode == 0:
        return ""
    said = [line for line in done.stderr.splitlines() if line.strip()]
    ended = (
        f"the process was ended by signal {-done.returncode}" if done.returncode < 0 else f"exit code {done.returncode}"
    )
    return "\n".join([*([] if said and done.returncode == 1 else [ended]), *said[-3:]])


def _ask(*arguments: str, vendors: str = "") -> tuple[list[dict[str, Any]], str]:
    """What the probe below answers, a line for each stage that it came to, and what went wrong."""
    output: list[str] = []
    wrong = _run("-m", "clnn.tools.doctor", *arguments, output=output, vendors=vendors)
    answers = [json.loads(line) for line in output if line.startswith("{")]  # drivers print things of their own
    return answers, wrong


# -- the probe: what runs in a process of its own ---------------------------------------------------------------------
def _answer(**what: Any) -> None:
    print(json.dumps(what), flush=True)


def _list() -> None:
    from ..runtime.devices import choice

    used, error = None, ""
    try:
        used = choice.device()
    except ClnnError as problem:
        error = str(problem)
    there = [
        {
            "index": f"{d.platform_index}:{d.device_index}",
            "used": d is used,
            "name": d.name,
            "kind": d.kind,
            "text": repr(d)[len("<Device ") : -1],
        }
        for d in choice.devices()
    ]
    _answer(devices=there, error=error)


def _try(index: str) -> None:
    import numpy as np
    import pyopencl as cl

    from ..gemm import clblast, clblast_problem, engine_name
    from ..ops.image.conv_plan import largest_tile
    from ..runtime import fusion
    from ..runtime.devices import selftest
    from ..runtime.devices.choice import find_device
    from ..runtime.profile import profile_of_debug

    device = find_device(index)
    wrong, turns, untested = selftest.run(device)
    os.environ["CLNN_SELF_TEST"] = "0"  # not once more
    if wrong:
        _answer(stage="done", text="", problem=f"it fails clnn's self-test: {wrong}", untrusted=True)
        return
    limit = f", whose loops end after {turns:,} turns: clnn gives it short ones" if turns else ""
    passed = f"the self-test could not run ({untested})" if untested else f"the self-test passes{limit}"
    device.queue  # noqa: B018 - opens the device
    _answer(stage="opened", text=passed)

    source = (
        "__kernel void f(__global const float *x, __global float *y) { int i = get_global_id(0); y[i] = 2*x[i] + 1; }"
    )
    x = np.arange(1000, dtype=np.float32)
    y = np.empty_like(x)
    flags = cl.mem_flags
    from_host = cl.Buffer(device.context, flags.READ_ONLY | flags.COPY_HOST_PTR, hostbuf=x)
    to_host = cl.Buffer(device.context, flags.WRITE_ONLY, y.nbytes)
    cl.Program(device.context, source).build().f(device.queue, x.shape, None, from_host, to_host)
    cl.enqueue_copy(device.queue, y, to_host)
    if not np.array_equal(y, 2 * x + 1):
        sys.exit("it ran, but its results are wrong")
    _answer(stage="ran", text="a kernel runs")

    if wrong := _product(device, "tile"):
        sys.exit(f"clnn's own kernel: {wrong}")
    _answer(stage="tile", text="clnn multiplies matrices right")
    if os.environ.get("CLNN_GEMM") != "tile" and clblast.available():
        problem = clblast_problem(device) or _product(device, "clblast")
        _answer(stage="tile", text=f"CLBlast does not ({problem})" if problem else "so does CLBlast")
    try:
        fusion.allowed(device), largest_tile(), profile_of_debug()  # errors where their variables hold no such value
        _answer(stage="done", text=f"the engine in use is {engine_name(device)}", problem="")
    except ClnnError as error:
        _answer(stage="done", text="", problem=str(error))


def _product(device: Any, engine: str) -> str:
    """A small product, with an odd edge everywhere, against NumPy's: what is wrong with it, or ""."""
    from unittest.mock import patch

    import numpy as np

    from ..gemm import Product, Shape, gemm

    with patch.dict(os.environ, CLNN_GEMM=engine):
        generator = np.random.default_rng(0)
        m, n, k = 67, 45, 33
        a, b = (generator.standard_normal(shape).astype(np.float32) for shape in ((m, k), (k, n)))
        on_a, on_b, on_c = (device.allocate(4 * size) for size in (m * k, k * n, m * n))
        device.upload(a, on_a)
        device.upload(b, on_b)
        gemm(device, Product(Shape(m, n, k), on_a, on_b, on_c))
        worst = np.abs(device.read(on_c, np.empty((m, n), np.float32)) - a @ b).max()
        return "" if worst < 1e-3 else f"a product is wrong by {worst:.2g}"


# -- folders ----------------------------------------------------------------------------------------------------------
def folders() -> Iterator[Finding]:
    """Where clnn keeps what it downloads and measures, and where data sets are looked for."""
    from ..data.datasets import FASHION_MNIST, MNIST, _find
    from ..files import cache_folder, write_atomically

    try:
        cache = cache_folder()
    except ClnnError as error:
        yield Finding(PROBLEM, str(error), "correct CLNN_CACHE_DIR, or unset it")
        return
    try:
        write_atomically(cache / "doctor", bytes(1 << 14))  # a full disk takes an empty file
        (cache / "doctor").unlink()
        yield Finding(OK, f"the cache folder {cache} can be written")
    except OSError as error:
        yield Finding(
            NOTE,
            f"the cache folder {cache} cannot be written ({error}): data sets and self-tests are not kept",
            "set CLNN_CACHE_DIR to a folder that can be written",
        )
    named = os.environ.get("CLNN_DATA_DIR", "")
    if named and not Path(named).is_dir():
        yield Finding(NOTE, f"CLNN_DATA_DIR is {named!r}, which is no folder", "correct it or unset it")
        return
    for source in (MNIST, FASHION_MNIST):
        places = [Path(folder) / source.folder for folder in (named, cache) if folder]
        there = [place for place in places if all(_find(place, file) for file in source.files)]
        yield Finding(OK, f"{source.title} is {f'in {there[0]}' if there else 'downloaded when first asked for'}")


if __name__ == "__main__":
    _try(sys.argv[2]) if sys.argv[1] == "try" else _list()
