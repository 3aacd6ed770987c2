"""The engine `tile`: kernels/gemm.cl, with a tile for each class of shape and each kind of device."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ..runtime.device import Device

if TYPE_CHECKING:
    from . import Product

GROUP = 64  # work-items of a GPU's work-group
SMALL = 1 << 18  # multiply-adds that are worth a CPU thread (about 5 us)
PER_UNIT = 8  # work-items a compute unit gets of a large product, so that one that falls behind has less to do
MOST_ROWS = 512  # of A that a work-item of a CPU goes over: with KC columns they fit its second-level cache
ROW_VECTORS = 8  # vectors of C in a strip where there are fewer than 4 rows, as in kernels/gemm.cl
DEEP = 256  # at least so much of K has a work-item where K is split


class Tile(NamedTuple):
    """A register tile MR x (NV * VW); and how much of K is copied to local memory at a time, of B and perhaps of A."""

    mr: int
    nv: int
    vw: int
    kc: int = 0  # 0: B is read where it lies
    copy_a: bool = False


class Share(NamedTuple):
    """What one work-item does: rows and columns of C, the depth of K (0: all of it), and how many items that makes."""

    rows: int
    columns: int
    depth: int
    items: int
    parts: int
    j_first: bool


def _up(a: int, b: int) -> int:
    """a / b, rounded up."""
    return -(-a // b)


def vector_width(device: Device, dtype: Any) -> int:
    """Lanes of a vector: the device's own width for CPUs, 4 for GPUs.

    PoCL before 3.1 (its LLVM 14) aborts in the compiler on vectors of 16 floats, so it gets 8.
    """
    if device.kind != "cpu":
        return 4
    width = max(4, min(16, device.cl_device.native_vector_width_float))
    if (0, 0) < device.pocl_version < (3, 1):
        width = min(width, 8)
    return width if dtype != np.float64 else max(2, width // 2)


def choose(device: Device, p: Product) -> Tile:
    """The tile for one product. It depends on layer sizes, never on the batch's, so that a remainder compiles nothing."""
    vw = vector_width(device, p.dtype)
    if device.kind != "cpu":
        return Tile(4, 1, vw)
    registers = 32 if vw * np.dtype(p.dtype).itemsize == 64 else 16
    nv = 1 if p.n <= vw else 2
    mr = 10 if registers == 32 else 5
    fixed = p.n * (p.m if p.transpose_a else p.k)  # of a layer's weights
    kc = min(512, device.local_memory // 2 // (nv * vw * np.dtype(p.dtype).itemsize))
    copies = kc >= 64 and (fixed >= 2048 if p.transpose_b else fixed >= 1 << 15)
    return Tile(mr, nv, vw, kc if copies else 0)


def share(device: Device, p: Product, tile: Tile) -> Share:
    """How C is divided among work-items.

    On a GPU one tile each. On a CPU so much that a thread has something to do: small products stay on one core (waking
    another costs more, and the weights would move between caches at each step). As many rows as possible together,
    because they share what is copied of B.
    """
    width = tile.nv * tile.vw
    if device.kind != "cpu":
        rows, columns, wanted = tile.mr, width, 16 * GROUP * device.compute_units
    else:
        if p.m < 4 and not p.transpose_b:
            width = ROW_VECTORS * tile.vw
        wanted = max(1, min(p.m * p.n * max(1, p.k) // SMALL, PER_UNIT * device.compute_units))
        strips = _up(p.n, width)
        columns = width * min(max(1, strips // wanted), 8)
        along = _up(p.n, columns)
        down = max(_up(p.m, MOST_ROWS), min(_up(wanted, along), p.m // (2 * tile.mr)), 1)
        rows = _up(_up(p.m, down), tile.mr) * tile.mr
    along, down = _up(p.n, columns), _up(p.m, rows)
    items, depth = along * down, 0
    if items < device.compute_units * (GROUP if device.kind != "cpu" else 1):
        parts = min(wanted // items, p.k // DEEP)
        if parts > 1:
            depth = _up(_up(p.k, parts), 16) * 16
    parts = _up(p.k, depth) if depth else 1
    return Share(rows, columns, depth, items * parts, parts, along <= down)


def run(device: Device, p: Product) -> None:
    """One launch for the product and its whole epilogue; where K is split, a second one for the epilogue."""
    real = device.real(p.dtype)
    tile = choose(device, p)
    part = share(device, p, tile)
    epilogue: dict[str, Any] = {"ACT": p.activation}
    if p.scale is not None:
        epilogue["SCALED"] = 1
    if p.times:
        epilogue["TIMES"] = 1
    elif p.saved is not None:
        epilogue["KEEP"] = 1
    if p.bias is not None:
        epilogue["BIAS"] = 1
    defines: dict[str, Any] = {
        "MR": tile.mr, "NV": tile.nv, "VW": tile.vw, "TA": int(p.transpose_a), "TB": int(p.transpose_b), **epilogue,
    }  # fmt: skip
    if p.sums is not None:
        assert not p.transpose_b, "column sums are those of B as it lies"
        defines["SUMS"] = 1
    if p.rows is not None:
        defines["FROM_SET"] = 1
    if tile.kc:
        defines.update(KC=tile.kc, COPY_B=1)
    if tile.copy_a:
        defines.update(MC=MOST_ROWS, COPY_A=1)
    table, at = (p.scale.table, p.scale.at) if p.scale else (None, None)
    total, total_scale = p.sums if p.sums else (None, None)
    if total_scale is not None:
        table, at = (total_scale.table, total_scale.at) if p.scale is None else (table, at)
    sizes = [
        p.m, p.n, p.k, p.lda, p.ldb, p.ldc, p.a_offset, p.b_offset, p.c_offset, part.j_first,
        p.scale.column if p.scale else 0, total_scale.column if total_scale else 0, part.rows, part.columns, part.depth, 0,
    ]  # fmt: skip
    items, local = part.items, 1
    if device.kind != "cpu":
        defines["GROUP"] = local = GROUP
        items = _up(items, GROUP) * GROUP
    c, to = p.c, sizes
    if part.parts > 1:
        c = device.allocate(part.parts * p.m * p.n * np.dtype(p.dtype).itemsize)
        to = [*sizes[:5], p.n, *sizes[6:8], 0, *sizes[9:]]
    device.launch(
        "gemm", "gemm_tile", (items,),
        np.array(to, np.int32), p.a, p.b, c, p.bias, p.saved, total, table, at, *(p.rows[1:] if p.rows else ()),
        local=(local,), real=real, **defines,
    )  # fmt: skip
    if part.parts > 1:
        device.launch(
            "gemm", "gemm_sum", (_up(p.n, tile.vw), p.m),
            np.array(sizes, np.int32), part.parts, c, p.c, p.bias, p.saved, table, at, real=real, VW=tile.vw, **epilogue,
        )  # fmt: skip
