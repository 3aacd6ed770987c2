"""The engine `clblast`: pyclblast behind a lock, without its event leak, trusted only after a self-test."""

from __future__ import annotations

import contextlib
import hashlib
import json
import threading
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from typing import Any

import numpy as np
import pyopencl as cl

from ..errors import DeviceError, warn
from ..files import cache_folder, write_atomically
from ..runtime.device import Device, DType
from .product import Product

LONGEST = 4096  # of K in one call: CLBlast adds all of it in a row (long sums: kernels/common.cl)
PRECISIONS = {"float32": 32, "float64": 64}  # as CLBlast calls them
CLBLAST: dict[str, dict[str, Sequence[int]]] = {  # every parameter of each kernel, and what it may be
    "Xgemm": {
        "GEMMK": (0,), "KREG": (1,), "KWG": (8, 16, 32, 64), "KWI": (1, 2, 4, 8, 16),
        "MDIMA": (1, 2, 4, 8, 16, 32), "MDIMC": (1, 2, 4, 8, 16, 32), "MWG": (8, 16, 32, 64, 128, 256),
        "NDIMB": (1, 2, 4, 8, 16, 32), "NDIMC": (1, 2, 4, 8, 16, 32), "NWG": (8, 16, 32, 64, 128, 256),
        "SA": (0, 1), "SB": (0, 1), "STRM": (0, 1), "STRN": (0, 1), "VWM": (1, 2, 4, 8, 16), "VWN": (1, 2, 4, 8, 16),
    },
    "GemmRoutine": {"XGEMM_MIN_INDIRECT_SIZE": range(1, 1 << 16)},
}  # fmt: skip
_lock = threading.Lock()  # CLBlast before 1.6.1 is not safe across threads
_problems: dict[str, str] = {}

Pair = Callable[[], tuple[float, float]]  # gives alpha and beta
# m, n, k, whether A and B are transposed, the three strides, how many products there are, and the steps between them
Sizes = tuple[int, int, int, bool, bool, int, int, int, int, int, int, int]
Parameters = dict[str, dict[str, dict[str, int]]]  # dtype: kernel: parameter: value


class TuningWarning(UserWarning):
    """A file of measurements that cannot be used, or a part of one; clnn does without it."""


@lru_cache(maxsize=1)
def _library() -> tuple[Any, str]:
    try:
        import pyclblast
    except ImportError as error:
        return None, f"pyclblast cannot be imported ({error}): pip install pyclblast needs CLBlast's headers"
    return pyclblast, ""


@lru_cache(maxsize=1)
def _operand() -> Any:
    """The class of operands; made at first use, since importing pyopencl.array takes its time."""
    import pyopencl.array

    class Operand(pyopencl.array.Array):
        """The few attributes that pyclblast reads of a PyOpenCL array, over a buffer of ours."""

        def __init__(self, buffer: Any, dtype: DType) -> None:
            self.base_data, self.dtype, self.shape, self.offset = buffer, np.dtype(dtype), (1, 1), 0

    return Operand


def available() -> bool:
    """Whether pyclblast can be imported."""
    return _library()[0] is not None


def _multiply(
    queue: cl.CommandQueue, a: cl.Buffer, b: cl.Buffer, c: cl.Buffer, dtype: DType, p: Sizes, value: Pair | None
) -> None:
    m, n, k, transpose_a, transpose_b, lda, ldb, ldc, count, *steps = p
    alpha, beta = value() if value else (1.0, 0.0)
    operands = [_operand()(buffer, dtype) for buffer in (a, b, c)]
    for k0 in range(0, k, LONGEST):
        depth, how = min(LONGEST, k - k0), {"alpha": alpha, "beta": 1.0 if k0 else beta}
        how |= {"a_transp": transpose_a, "b_transp": transpose_b}
        how |= {"a_offset": k0 * (lda if transpose_a else 1), "b_offset": k0 * (1 if transpose_b else ldb)}
        with _lock:
            if count == 1:
                event = _library()[0].gemm(queue, m, n, depth, *operands, lda, ldb, ldc, **how)
            else:
                event = _library()[0].gemmStridedBatched(
                    queue, m, n, depth, count, *operands, lda, ldb, ldc, *steps, **how
                )
        # pyclblast's event is one reference too many: taking it over once more and dropping it frees it
        cl.Event.from_int_ptr(event.int_ptr, retain=False)


def run(device: Device, p: Product) -> None:
    """C = alpha * op(A) op(B) + beta * C, without the rest of the epilogue."""
    m, n, k, dtype, transpose_a, transpose_b = p.shape
    sizes = (
        m, n, k, transpose_a, transpose_b, *p.strides, p.batch, *p.steps,
    )  # fmt: skip
    # asked for its alpha and beta at each run, so that a replay sees them move
    product = partial(_multiply, dtype=np.dtype(dtype), p=sizes, value=p.scale.value if p.scale else None)
    label = f"clblast.gemm{sizes[:5]}" + (f" x {p.batch}" if p.batch > 1 else "")
    device.check_blocks(label, (p.a, p.b, p.c), device.real(dtype))
    try:
        device.call(label, product, (p.a, p.b, p.c), (), flops=2 * p.batch * m * n * k)
    except (RuntimeError, ValueError) as error:
        raise DeviceError(
            f"CLBlast failed for {sizes} on {device!r}: {error}; CLNN_GEMM=tile does without it"
        ) from error


# -- what is valid ----------------------------------------------------------------------------------------------------
def kernel_problem(device: Device, dtype: DType, kernel: str, values: Any) -> str:
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


def parameters_problem(device: Device, dtype: str, kernels: Any) -> str:
    """What is wrong with all of CLBlast's parameters for one type, or ""."""
    if dtype not in PRECISIONS or not isinstance(kernels, dict):
        return f"{dtype!r} is no type of float"
    problems = (kernel_problem(device, np.dtype(dtype), kernel, values) for kernel, values in kernels.items())
    return next(filter(None, problems), "")


# -- the self-test ----------------------------------------------------------------------------------------------------
def problem(device: Device, parameters: Parameters) -> str:
    """Why CLBlast cannot be used on `device`, or "".

    At its first use it gets the `parameters` that were measured for it. The self-test runs with them, once per driver and
    set of parameters, and is remembered.
    """
    library, missing = _library()
    if library is None:
        return missing
    if device.identity not in _problems:
        path = cache_folder() / "clblast-self-test.json"
        for dtype, kernels in parameters.items():
            override(device, dtype, kernels)
        key = f"{device.identity} | pyclblast {_version()}"
        if parameters:
            key += f" | parameters {hashlib.sha256(json.dumps(parameters, sort_keys=True).encode()).hexdigest()[:12]}"
        try:
            remembered = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            remembered = {}
        if not isinstance(remembered, dict):  # damaged
            remembered = {}
        if not isinstance(remembered.get(key), str):
            remembered[key] = _self_test(device)
            with contextlib.suppress(OSError):  # a read-only cache folder costs a self-test per process, nothing else
                write_atomically(path, json.dumps(remembered, indent=1).encode())
        _problems[device.identity] = remembered[key]
    return _problems[device.identity]


def override(device: Device, dtype: str, kernels: dict[str, dict[str, int]]) -> None:
    """Give CLBlast parameters of ours for this process; what is not valid must not get here (`kernel_problem`)."""
    for kernel, values in kernels.items():
        try:
            with _lock:
                _library()[0].override_parameters(device.cl_device, kernel, PRECISIONS[dtype], values)
        except (RuntimeError, AttributeError) as error:  # another version of CLBlast, with other parameters
            warn(
                f"this CLBlast does not take the parameters measured for {kernel} ({error}); `clnn tune` finds new ones",
                TuningWarning,
            )


def _version() -> str:
    from importlib import metadata

    try:
        library = getattr(_library()[0], "__file__", "") or ""
        with open(library, "rb") as file:
            digest = hashlib.sha256(file.read()).hexdigest()[:12]
        return f"{metadata.version('pyclblast')} {digest}"
    except (OSError, metadata.PackageNotFoundError):
        return "unknown"


def _self_test(device: Device) -> str:
    """Small products of every form against NumPy's in float64: "" if all are right, else what was wrong."""
    generator = np.random.default_rng(0)
    for m, n, k, count in ((1, 1, 1, 1), (10, 30, 33, 3), (129, 65, 70, 1), (260, 270, 130, 1)):
        for transpose_a in (False, True):
            for transpose_b in (False, True):
                a, b, c = (
                    generator.standard_normal((count, *shape)).astype(np.float32) for shape in ((m, k), (k, n), (m, n))
                )
                expected = 0.5 * (a.astype(np.float64) @ b) + 2.0 * c
                stored = a.swapaxes(1, 2) if transpose_a else a, b.swapaxes(1, 2) if transpose_b else b, c
                blocks = []
                for array in stored:
                    block = device.memory.allocate(array.nbytes)
                    device.upload(np.ascontiguousarray(array), block, constant=True)
                    blocks.append(block)
                steps = (m * k, k * n, m * n)
                sizes = (m, n, k, transpose_a, transpose_b, stored[0].shape[2], stored[1].shape[2], n, count, *steps)
                try:
                    first, second, third = (block.buffer for block in blocks)
                    _multiply(device.queue, first, second, third, np.float32, sizes, lambda: (0.5, 2.0))
                except Exception as error:  # whatever it is, CLBlast is not usable here
                    return f"CLBlast does not run on {device.name}: {error}"
                got = np.empty_like(c)
                cl.enqueue_copy(device.queue, got, blocks[2].buffer)
                worst = np.abs(got - expected).max() / np.abs(expected).max()
                if not worst < 1e-4:
                    form = f"{count} x {m} x {n} x {k}, transposed {transpose_a}, {transpose_b}"
                    return f"CLBlast's product {form} is wrong on {device.name} by {worst:.2g}"
    return ""
