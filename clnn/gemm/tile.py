"""The engine `tile`: kernels/gemm.cl, with a tile for each class of shape and each kind of device."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ..runtime.device import Device

if TYPE_CHECKING:
    from . import Product

GROUP = 64  # work-items of a GPU's work-group
SMALL = 1 << 18  # multiply-adds that are worth a CPU thread (about 5 us)
BLOCK = (64, 128, 256)  # MC, NC, KC of gemm_block: fits 256 KiB of local memory in float32


class Tile(NamedTuple):
    """A register tile MR x (NV * VW), and whether operands are copied to local memory in blocks first."""

    mr: int
    nv: int
    vw: int
    block: bool = False


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
    wide = 1 if p.n <= vw else 2 if p.n <= 2 * vw else 4
    if p.transpose_b:
        fits = device.local_memory >= 4 * (BLOCK[0] * (BLOCK[2] + 16) + BLOCK[1] * BLOCK[2]) * (
            2 if p.dtype == np.float64 else 1
        )
        if p.k >= 16 and fits:
            return Tile(8, 2, vw, block=True)
        return Tile(5, min(2, wide), vw)
    if p.n * p.k > 1 << 20 and device.local_memory >= 1 << 18 and p.dtype != np.float64 and p.k:
        return Tile(8, 2, vw, block=True)
    if p.transpose_a and wide < 4:
        return Tile(8 if wide == 2 else 16, wide, vw)
    return Tile(4, 4, vw) if wide == 4 else Tile(5, wide, vw)


def run(device: Device, p: Product) -> None:
    """One launch for the product and its whole epilogue."""
    real = device.real(p.dtype)
    tile = choose(device, p)
    defines: dict[str, Any] = {
        "MR": tile.mr, "NV": tile.nv, "VW": tile.vw, "TA": int(p.transpose_a), "TB": int(p.transpose_b), "ACT": p.activation,
    }  # fmt: skip
    if p.scale is not None:
        defines["SCALED"] = 1
    if p.times:
        defines["TIMES"] = 1
    elif p.saved is not None:
        defines["KEEP"] = 1
    if p.bias is not None:
        defines["BIAS"] = 1
    if p.sums is not None:
        assert not p.transpose_b, "column sums are those of B as it lies"
        defines["SUMS"] = 1
    if p.rows is not None:
        defines["FROM_SET"] = 1
    rows, columns = tile.mr, tile.nv * tile.vw
    if tile.block:
        rows, columns, depth = BLOCK
        defines.update(MC=rows, NC=columns, KC=depth)
    table, at = (p.scale.table, p.scale.at) if p.scale else (None, None)
    total, total_scale = p.sums if p.sums else (None, None)
    if total_scale is not None:
        table, at = (total_scale.table, total_scale.at) if p.scale is None else (table, at)
    down, along = -(-p.m // rows), -(-p.n // columns)  # tiles along m and n
    j_first = along <= down  # the shorter axis runs first: neighbouring tiles share what is longer
    across, rest = (along, down) if j_first else (down, along)
    chunk = 1 if tile.block else _chunk(device, p, down * along)
    sizes = np.array(
        [p.m, p.n, p.k, p.lda, p.ldb, p.ldc, p.a_offset, p.b_offset, p.c_offset, across,
         p.scale.column if p.scale else 0, total_scale.column if total_scale else 0, chunk, rest, j_first, 0], np.int32,
    )  # fmt: skip
    items, local = -(-down * along // chunk), 1
    if device.kind != "cpu":
        defines["GROUP"] = local = GROUP
        items = -(-items // GROUP) * GROUP
    device.launch(
        "gemm", "gemm_block" if tile.block else "gemm_direct", (items,),
        sizes, p.a, p.b, p.c, p.bias, p.saved, total, table, at, *(p.rows[1:] if p.rows else ()),
        local=(local,), real=real, **defines,
    )  # fmt: skip


def _chunk(device: Device, p: Product, tiles: int) -> int:
    """Tiles a work-item computes: one on a GPU; on a CPU so many that a thread has something to do, and small products
    stay on one core (waking another costs more, and the weights would move between caches at each step)."""
    if device.kind != "cpu":
        return 1
    work = p.m * p.n * max(1, p.k)
    items = min(work // SMALL, 8 * device.compute_units)
    return -(-tiles // max(1, items))
