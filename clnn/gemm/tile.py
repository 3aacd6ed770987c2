"""The engine `tile`: kernels/gemm.cl, with a tile for each class of shape and each kind of device."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from ..runtime.device import Device, DType, ceil_div, int_vector
from .product import Product, Shape, epilogue_defines

GROUP = 64  # work-items of a GPU's work-group, where each has a tile of its own
SIDE = 16  # of the groups of gemm_local, as in kernels/gemm.cl
SMALL = 1 << 18  # multiply-adds that are worth a CPU thread (about 5 us)
ALONE = 1 << 20  # multiply-adds of a product up to which one core is as fast as all
COPYING = 24  # what copying an element of A or B costs, in multiply-adds of vector lanes
MOST_ROWS = 256  # of A that are copied together: with KC columns they fit a core's second-level cache
MOST_IN_PLACE = 512  # of A that a work-item reads where they are
MOST_COLUMNS = 256  # of B that are copied together: runs of a kilobyte
MOST_RUN = 1 << 14  # bytes of sums that gemm_row keeps: half a first-level cache
FEW = 4  # fewer rows than this are done by gemm_row, where B is large: a column of memory is slow to read
UNBROKEN = 1024  # K is gone through at once up to here, else in steps of DEEP, so that what is read again is near
# Elements of B up to which gemm_row gives each core columns of its own, at least SHORT_RUN of them: caches need no long runs,
# and no second launch adds up
IN_CACHE, SHORT_RUN = 1 << 20, 64
DEEP = 256  # where K is split, each work-item gets at least this much of it
# What a measured tile may be
ROWS, VECTORS, WIDTHS, DEPTHS = range(1, 17), range(1, 9), (2, 4, 8, 16), (0, 16, 32, 64, 96, 128, 160, 192, 256)
LONGEST = 1024  # products, or sums of steps, that are added in a row; beyond, K is split (long sums: kernels/common.cl)


class Tile(NamedTuple):
    """A register tile MR x (NV * VW), and how much of K is copied to local memory at a time (0: operands are read where
    they are), of B and of a transposed A."""

    mr: int
    nv: int
    vw: int
    kc: int = 0
    local: bool = False  # gemm_local, by groups of SIDE x SIDE work-items
    row: bool = False  # gemm_row, which has no tile


Measured = tuple[int, int, int, int] | None  # mr, nv, vw and kc of a tile, where one was measured


class Share(NamedTuple):
    """What one work-item does: rows and columns of C, the depth of K (0: all of it), and how many items that makes."""

    rows: int
    columns: int
    depth: int
    items: int
    parts: int
    j_first: bool


def choose(device: Device, shape: Shape, measured: Measured = None, sums: bool = False, halves: bool = False) -> Tile:
    """The tile for a product, which may add `sums`: the `measured` one, where there is a choice and one was measured. It
    depends on layer sizes, not on the batch's, so that a remainder compiles nothing new (but for up to 3 samples and a large
    layer, and for `halves`, in which B is)."""
    m, n, _, dtype, transpose_a, transpose_b = shape
    vw, weights = device.vector_width(dtype), shape.weights
    if halves:
        return Tile(m, 1, vw, row=device.long_loops)
    if not device.long_loops:
        # a CPU's local memory is no nearer than its other, and a tile of 16 work-items costs as much for one row as for all
        if weights < 1 << 14 or n < 32 or device.max_group < SIDE * SIDE or device.kind == "cpu":
            return Tile(4, 1, vw)
        return local_tiles(device, dtype)[weights >= 1 << 20]
    if m < FEW and weights >= 1 << 13 and not (transpose_a or transpose_b or sums):
        return Tile(m, 1, vw, row=True)
    if measured:
        return Tile(*measured)
    nv = 1 if n <= vw else 2
    mr = 10 if vw * np.dtype(dtype).itemsize == 64 else 5  # of 32 registers, or of 16
    copies = weights >= 2048 if transpose_b else weights >= 1 << 15
    return Tile(mr, nv, vw, _depth(device, dtype, nv * vw) if copies else 0)


def local_tiles(device: Device, dtype: DType) -> tuple[Tile, Tile]:
    """Those of gemm_local, for products of middle size and for large ones."""
    # doubles take two registers each; a work-item of Intel's has 128 of 32 bytes, those of eight neighbours: 8 x 2 would spill
    small, intel = Tile(4, 1, 4, 16, local=True), device.cl_device.vendor.startswith("Intel")
    large = Tile(8, 1, 4, 16, local=True) if intel else Tile(8, 2, 4, 8, local=True)
    return small, small if np.dtype(dtype).itemsize > 4 else large


def problem(device: Device, dtype: DType, tile: Any) -> str:
    """What is wrong with a measured tile (mr, nv, vw, kc) on this device, or "". A wrong one would spill, or end the
    compiler."""
    if not (isinstance(tile, (list, tuple)) and len(tile) == 4 and all(type(x) is int for x in tile)):
        return f"{tile!r} is no tile: it takes four whole numbers, mr, nv, vw and kc"
    (mr, nv, vw, kc), most = tile, device.vector_width(dtype)
    for name, value, allowed in zip(("mr", "nv", "vw", "kc"), tile, (ROWS, VECTORS, WIDTHS, DEPTHS)):
        if value not in allowed:
            return f"{name} = {value} should be one of {', '.join(map(str, allowed))}"
    if vw > most:
        return f"vectors of {vw} are wider than the device's {most}"
    if mr * nv + nv + 1 > device.registers:
        return f"{mr} x {nv} vectors need {mr * nv + nv + 1} registers, of {device.registers}"
    if kc and not copied_columns(device, dtype, nv * vw, kc):
        return f"copies {kc} deep do not fit the device's {device.local_memory} bytes of local memory"
    return ""


def _depth(device: Device, dtype: DType, width: int) -> int:
    """How deep copies are: MOST_ROWS of A and a few strips of B have to fit local memory."""
    return next((kc for kc in (256, 128, 64) if copied_columns(device, dtype, width, kc) >= 2 * width), 0)


def copied_columns(device: Device, dtype: DType, width: int, kc: int) -> int:
    """How many columns of B, whole strips, are copied together: what fits local memory beside the rows of A."""
    room = device.local_memory // np.dtype(dtype).itemsize - (MOST_ROWS + 16) * (kc + 16)
    return max(0, min(MOST_COLUMNS, room // kc)) // width * width


def share(device: Device, shape: Shape, tile: Tile, count: int = 1) -> Share:
    """How C is divided among work-items: one tile each on a GPU (or each group, with gemm_local), blocks on a CPU. `count`:
    the products of a batch, which are items enough by themselves if they are many."""
    m, n, k, dtype, _, _ = shape
    if device.long_loops:
        width = tile.nv * tile.vw
        most = max(1, (MOST_IN_PLACE if tile.kc and not shape.transpose_a else MOST_ROWS) // tile.mr) * tile.mr
        rows, columns = _blocks(m, n, k, tile.mr, width, most, device.compute_units, SMALL, ALONE)
        work = m * n * k
        enough, wanted = device.compute_units, work // SMALL if work >= ALONE else 1
        if tile.row:
            # Whole rows of B, as far as they fit, and several parts of K for each core: it waits for memory only
            runs, wanted = ceil_div(n, run_columns(device, dtype, tile.mr)), n * k // (SMALL // 4)
            if wanted >= enough and n * k <= IN_CACHE and n >= SHORT_RUN * enough:
                runs = max(runs, enough)
            else:
                enough *= 4
            rows, columns = m, ceil_div(ceil_div(n, runs), tile.vw) * tile.vw
    else:
        side, each = (SIDE, 1) if tile.local else (1, min(GROUP, device.group_width))
        rows, columns = side * tile.mr, side * tile.nv * tile.vw
        enough = wanted = 2 * each * device.compute_units
    along, down = ceil_div(n, columns), ceil_div(m, rows)
    items, depth = along * down, 0
    if items * count < enough:
        parts = min(
            wanted // items, k // (DEEP if device.long_loops else DEEP // 4), ceil_div(4 * enough, items * count)
        )
        depth = ceil_div(ceil_div(k, parts), 16) * 16 if parts > 1 else 0
    longest = LONGEST * (8 if tile.row else LONGEST if tile.local else tile.kc or DEEP)  # gemm_row adds eight at a time
    if device.most_turns:
        longest = min(longest, device.most_turns // 64 * 16)
    if (depth or k) > longest:
        depth = longest
    parts = ceil_div(k, depth) if depth else 1
    return Share(rows, columns, depth, items * parts, parts, along <= down)


def run_columns(device: Device, dtype: DType, rows: int) -> int:
    """How many columns gemm_row adds up at once for so many rows: what fits a first-level cache, and local memory."""
    return min(MOST_RUN, device.local_memory) // np.dtype(dtype).itemsize // rows // 16 * 16


@lru_cache(maxsize=4096)
def _blocks(
    m: int, n: int, k: int, mr: int, width: int, most_rows: int, units: int, small: int, alone: int
) -> tuple[int, int]:
    """Rows and columns of C for one work-item of a CPU.

    Small products stay on one core: waking another costs more, and the weights would move between caches at each step.
    Else what is least of: the rounds in which the units do all items, and a quarter of one for waiting, times an item's work,
    with what it copies.
    """
    if m * n * k < alone:
        return ceil_div(m, mr) * mr, ceil_div(n, width) * width
    found = []
    for down in range(ceil_div(m, most_rows), ceil_div(m, most_rows) + 32):
        rows = ceil_div(ceil_div(m, down), mr) * mr
        for along in range(1, min(ceil_div(n, width), 256) + 1):
            columns = ceil_div(ceil_div(n, along), width) * width
            items = ceil_div(m, rows) * ceil_div(n, columns)
            cost = k * (rows * columns + COPYING * (rows + columns)) + small // 2
            found.append(((ceil_div(items, units) + 0.25) * cost, rows, columns))
    return min(found)[1:]


def run(device: Device, p: Product, measured: Measured | Tile = None) -> None:
    """One launch for the product and its whole epilogue, by a Tile if one is given; where K is split, a second one for that."""
    m, n, k, dtype, transpose_a, transpose_b = p.shape
    real = device.real(dtype)
    tile = measured if isinstance(measured, Tile) else choose(device, p.shape, measured, p.sums is not None, p.halves)
    if tile.kc and not tile.local and not copied_columns(device, dtype, tile.nv * tile.vw, tile.kc):
        tile = tile._replace(kc=0)  # an array of no elements ends the process where drivers go through SPIR-V
    epilogue = epilogue_defines(p.activation, p.scale, p.saved, p.derivative, p.bias)
    defines: dict[str, Any] = {"TA": int(transpose_a), "TB": int(transpose_b), **epilogue}
    if p.sums is not None:
        assert not transpose_b, "column sums are those of B as it is stored"
        defines["SUMS"] = 1
    defines |= {name: 1 for name, there in (("HALVES", p.halves), ("FROM_SET", p.rows)) if there}
    if tile.local:
        copied = {"MR": tile.mr, "NV": tile.nv, "VW": tile.vw, "KC": tile.kc, "LOCAL": 1}
        if device.group_limit("gemm", "gemm_local", real, **defines, **copied) < SIDE * SIDE:  # registers are too few
            tile = Tile(4, 1, tile.vw)
    part = share(device, p.shape, tile, p.batch)
    defines |= {"MR": tile.mr, "NV": tile.nv, "VW": tile.vw}
    if tile.row:
        defines.update(ROW=1, NC=run_columns(device, dtype, tile.mr))
    elif tile.local:
        defines.update(KC=tile.kc, LOCAL=1)
    elif tile.kc:
        defines.update(MC=MOST_ROWS, NC=copied_columns(device, dtype, tile.nv * tile.vw, tile.kc), KC=tile.kc, COPY=1)
    total, total_scale = p.sums if p.sums else (None, None)
    table, at = (p.scale or total_scale or (None, None))[:2]
    sizes = [
        m, n, k, *p.strides, *p.steps, part.j_first,
        p.scale.column if p.scale else 0, total_scale.column if total_scale else 0, part.rows, part.columns, part.depth,
        max(1, k) if k <= UNBROKEN else DEEP,
    ]  # fmt: skip
    local = SIDE * SIDE if tile.local else 1
    items = part.items * local
    if not tile.local and not device.long_loops:
        defines["WIDTH"] = local = device.fitting(min(GROUP, device.group_width), "gemm", "gemm_tile", real, **defines)
        items = ceil_div(items, local) * local
    c, to = p.c, sizes
    if part.parts > 1:
        c = device.allocate(p.batch * part.parts * m * n * np.dtype(dtype).itemsize)
        to = [*sizes[:5], n, *sizes[6:8], part.parts * m * n, *sizes[9:]]
    device.launch(
        "gemm", "gemm_row" if tile.row else "gemm_local" if tile.local else "gemm_tile", (items, p.batch),
        int_vector(to), p.a, p.b, c, p.bias, p.saved, total, table, at, *(p.rows[1:] if p.rows else ()),
        local=(local, 1), real=real, flops=2 * p.batch * m * n * k, **defines,
    )  # fmt: skip
    if part.parts > 1:
        device.launch(
            "gemm", "gemm_sum", (ceil_div(n, tile.vw), m, p.batch),
            int_vector(sizes), part.parts, c, p.c, p.bias, p.saved, table, at, real=real, VW=tile.vw, SUM=1, **epilogue,
        )  # fmt: skip
