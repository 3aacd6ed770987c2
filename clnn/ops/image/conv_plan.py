"""Plans for convolutions: which kernel, registers and blocks, by a model of what loops cost or by measurement.

They follow from layer sizes alone, so that the batch's size is never compiled in. A measured plan (`clnn tune`) counts only
where it is one that would be made here for that geometry: any other might spill, or not fit.
"""

from __future__ import annotations

import contextlib
import math
import os
from collections import Counter
from collections.abc import Iterator
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from ...errors import ConfigurationError, warn
from ...gemm import tuning
from ...gemm.tile import Tile, local_tiles
from ...runtime.device import Device, DType, ceil_div
from .geometry import Geometry

LOCAL = 256 << 10  # bytes of local memory that these sizes are made for; with less they shrink
SLAB_BYTES = 96 << 10  # of inputs that a CPU's work-item keeps beside it: they stay in a second-level cache
OUT = 1024  # outputs of a channel that it computes at once, and (times 64 bytes) what it keeps of dy
SCATTERED = 1 << 14  # outputs that it keeps where they are added up in local memory
NARROW = 256  # the same where vectors run over channels
FEW_CHANNELS = 4  # of outputs in a group, from which on vectors run over them in gradients by weights
WINOGRAD = 512 << 10  # bytes that kernels/winograd.cl keeps of a block of tiles
MOST_RUN = 8  # taps of a row that share a pointer in conv_weights
TRANSPOSED = 4  # results leave transposed, in blocks of 4 x 4: so channels of a tile are multiples of it
WINOGRAD_CHANNELS = 8  # in a group, from which on it pays
WINOGRAD_SUMS = 1 << 20  # elements that each part of a gradient by weights may sum up: more leave the caches
SIDE = 16  # of conv_local's groups, where the device takes them
PLANS = 16  # of a convolution, that are worth measuring
# What the model of a plan's cost counts, in cycles of a processor that starts two vector multiply-adds in each: instructions of
# the loops in kernels/, one a cycle, except for the two that were set so that the model ranks the convolutions of
# `clnn bench conv` as timings on PoCL 3.1 did (NARROWER, LOADS).
BLOCK = 300  # a block: its work-item starts, and fills tables of taps
ROW = 3  # a row that is copied
STRIDED, ZEROS = 2, 1.5  # an element that is copied with strides; a row of zeros between inputs, for each element
FINISH, FINISH_ROW = 6, 4  # a vector of results through the epilogue, and a row of them
STEP = 1  # a turn of the innermost loop, besides its multiply-adds and loads
SUMS = {
    "rows": 2,
    "columns": 3,
    "scatter": 4,
    "weights": 3,
    "lanes": 12,
    "winograd": 2,
    "winograd_gradients": 4,
}  # a vector
# of sums that leaves the registers
NARROWER = 1.1  # of conv_columns, whose weights come from further away
LOADS = 0.6  # of a multiply-add, a load in conv_weights
POINTER = 4  # a row in conv_weights, whose pointers move on
TRANSPOSE, ADD = 14, 5  # a row, and an element, of a tile that winograd transforms
BACK, BACK_ADD = 20, 4  # an output, and an element of a tile, that it transforms back
# What the model of a GPU counts, in multiply-adds at its peak: one in the loop of conv_local, and one in that of gemm_local by
# its tile, with the instructions beside them (kernels/README.md), and those that it does while it moves a byte: 6 to 40 by the
# makers' figures. None was measured on a GPU, so Winograd's algorithm has to win by MARGIN.
LOCAL_WORK, PRODUCT_WORK = 1.8, {(4, 1): 1.5, (8, 1): 1.4, (8, 2): 1.35}
BYTE = 20
MARGIN = 1.25
ROOM = 64 << 20  # bytes of transformed weights, and as many of inputs and outputs, that winograd_gpu takes at most
PLAIN = {"groups": 1, "stride": (1, 1, 1), "before": (0, 0, 0), "dilation": (1, 1, 1), "up": (1, 1, 1)}  # not in names


# -- what a CPU's work-item does --------------------------------------------------------------------------------------
class Plan(NamedTuple):
    """A kernel's registers KR x PV (or MR x NV), blocks of rb x cb outputs (for conv_scatter rb blocks of KR channels), and
    channels copied at once. Of winograd_gpu gemm_local's tile, the side of its own, the images from which on it pays, and tiles
    that are transformed at once."""

    kernel: str
    r: int
    v: int
    rb: int
    cb: int
    chunk: int


def _even(n: int) -> list[int]:
    """The sizes of blocks that divide n as evenly as blocks can, each once."""
    return sorted({ceil_div(n, parts) for parts in range(1, min(n, 64) + 1)} | {1})


def _spread(g: Geometry, axis: int, stride: int) -> tuple[int, int]:
    """(phases, outputs that the window reaches over) along an axis of a copy."""
    reach = (g.size[axis] - 1) * g.dilation[axis]
    return min(stride, reach + 1), reach // stride


def row_tiles(most_registers: int) -> list[tuple[int, int]]:
    """KR x PV of conv_rows: sums, a vector of inputs each and one weight fit the registers, and hide what an addition takes."""
    return [
        (r, v) for v in range(1, 9) for r in (1, 2, 3, 4, 5, 6, 8, 10, 12, 14)
        if r * v + v + 1 < most_registers and r * v >= min(8, most_registers // 2)
    ]  # fmt: skip


def column_tiles(wide: int, most_registers: int) -> list[tuple[int, int]]:
    """MR x NV of conv_columns, MR no more than a row (of a phase) has outputs."""
    return [
        (r, v) for v in (1, 2, 3, 4) for r in range(1, min(wide, 16) + 1)
        if r * v + v + 1 < most_registers and r * v >= min(8, wide)
    ]  # fmt: skip


def largest_tile() -> int:
    """What CLNN_WINOGRAD says: 4, 2, or 0 for none. F(4 x 4, 3 x 3) rounds about twenty times as much as a plain sum."""
    asked = os.environ.get("CLNN_WINOGRAD", "").strip() or "4"
    if asked not in ("0", "2", "4"):
        raise ConfigurationError(
            f"CLNN_WINOGRAD={asked!r} should be 0, 2 or 4: the side of the output tiles that Winograd's algorithm may use, "
            "0 for none"
        )
    return int(asked)


class Limits(NamedTuple):
    """What a plan may use: lanes of a vector, registers, and elements of local memory."""

    vw: int
    registers: int
    slab: int  # inputs
    out: int  # outputs of a channel in conv_rows
    narrow: int  # and in conv_columns
    scattered: int  # outputs of all channels in conv_scatter
    kept: int  # dy, in gradients by weights
    tiles: int  # all that winograd keeps of a block of tiles
    largest: int  # the side of its tiles, or 0


def limits(device: Device, dtype: DType) -> Limits:
    """Those of a CPU."""
    size, share = np.dtype(dtype).itemsize, min(1.0, device.local_memory / LOCAL)
    return Limits(
        device.vector_width(dtype),
        device.registers,
        int(SLAB_BYTES * share) // size,
        int(OUT * share) * 4 // size,
        int(NARROW * share) * 4 // size // 4 * 4,
        int(SCATTERED * share) * 4 // size,
        int(64 * OUT * share) // size,
        (min(WINOGRAD, device.local_memory) - 1024) // size,  # arrays are aligned
        largest_tile(),
    )


def _ranked(found: list[tuple[float, Plan]], measured: Plan | None) -> tuple[Plan, ...]:
    """`measured`, if it is one of those found; then the cheapest, each other kernel's cheapest, and more, PLANS in all: few
    with the same registers or the same blocks, because the model is off by the same amount for all of those."""
    order = [plan for _, plan in sorted(found)]
    of_kernel = {plan.kernel: plan for plan in reversed(order)}
    ranked = [measured] if measured in order else []
    few = sorted(of_kernel.values(), key=order.index)
    used = Counter(part for plan in few for part in (plan[:3], plan[3:]))
    for plan in order:
        if len(few) < PLANS and plan not in few and used[plan[:3]] < 3 and used[plan[3:]] < 4:
            few.append(plan)
            used.update((plan[:3], plan[3:]))
    return (*ranked, *few)


@lru_cache(maxsize=4096)
def plan_forward(g: Geometry, limits: Limits, measured: Plan | None = None) -> tuple[Plan, ...]:
    """The best of the forward kernels, in cycles of a processor that does two vector multiply-adds a cycle;
    () where the kernel reaches over more than `limits.slab` holds."""
    found = [*_rows(g, limits), *_columns(g, limits), *_scatter(g, limits), *_winograd(g, limits)]
    return _ranked(found, measured)


def _rows(g: Geometry, limits: Limits) -> Iterator[tuple[float, Plan]]:
    """Plans for conv_rows: what they cost an image, and what they are."""
    vw, slab, tiles = limits.vw, limits.slab, row_tiles(limits.registers)
    (phases_h, over_h), (phases_w, over_w) = _spread(g, 1, g.stride[1]), _spread(g, 2, g.stride[2])
    for cb in _even(g.out[2]):
        for rb in _even(g.out[1]):
            pitch = cb + over_w
            positions = (rb - 1) * pitch + cb
            plane = g.size[0] * phases_h * phases_w * (rb + over_h) * pitch
            if positions > limits.out - 8 * vw or plane > slab:
                continue
            chunk = min(g.c, slab // plane)
            blocks = ceil_div(g.out[1], rb) * ceil_div(g.out[2], cb)
            each = STRIDED if g.stride[2] > 1 else 1 / vw + (ZEROS / g.up[1] if g.up[2] > 1 else 0)
            copy = g.c * (plane * each + ROW * g.size[0] * phases_h * phases_w * (rb + over_h))
            finish = g.k * rb * (FINISH * ceil_div(cb, vw) + FINISH_ROW)
            for r, v in tiles:
                k_blocks, strips = ceil_div(g.k, r), ceil_div(positions, v * vw)
                step = max(r * v / 2, (2 * v + r) / 2 if vw >= 16 else (v + r) / 2) + STEP
                work = k_blocks * strips * (g.c * g.taps * step + SUMS["rows"] * r * v)
                again = 1 if chunk == g.c else k_blocks
                yield g.out[0] * blocks * (work + again * copy + finish + BLOCK), Plan("rows", r, v, rb, cb, chunk)


def _columns(g: Geometry, limits: Limits) -> Iterator[tuple[float, Plan]]:
    """Plans for conv_columns, likewise."""
    vw, slab = limits.vw, limits.slab
    wide, cb = g.out[2] // g.up[2], g.out[2]
    if wide < 1:
        return
    low, left = (-g.before[1]) // g.up[1], (-g.before[2]) // g.up[2]
    reach = [u - 1 + (k - 1) * d - b for u, k, d, b in zip(g.up, g.size, g.dilation, g.before)]
    pitch = (cb - 1) // g.up[2] * g.stride[2] + reach[2] // g.up[2] - left + 1
    seen = 1.0  # the share of taps whose row is none of the padding's
    if g.size[0] == 1:
        at = [r * g.stride[1] + i * g.dilation[1] - g.before[1] for r in range(g.out[1]) for i in range(g.size[1])]
        seen = sum(0 <= a < (g.space[1] - 1) * g.up[1] + 1 for a in at) / len(at)
    tiles = column_tiles(wide, limits.registers)
    for rb in {ceil_div(rows, g.up[1]) * g.up[1] for rows in _even(g.out[1])}:
        high = (rb - 1) // g.up[1] * g.stride[1] + reach[1] // g.up[1] - low + 1
        plane, positions = g.size[0] * high * pitch, rb * cb
        if positions > limits.narrow - 4 or plane > slab:
            continue
        chunk, blocks = min(g.c, slab // plane), ceil_div(g.out[1], rb)
        copy = g.c * (plane / vw + ROW * g.size[0] * high)
        for r, v in tiles:
            if v * vw % TRANSPOSED:
                continue
            strips = ceil_div(g.k, v * vw)
            step = max(r * v / 2, (r + v) / 2, 4) + STEP
            count = rb * sum(ceil_div(ceil_div(cb - b, g.up[2]), r) for b in range(g.up[2]))
            taps = g.taps / (g.up[1] * g.up[2]) * seen
            work = NARROWER * strips * count * (g.c * taps * step + SUMS["columns"] * r * v)
            finish = g.k * positions * (1 + FINISH / vw)
            again = 1 if chunk == g.c else strips
            yield g.out[0] * blocks * (work + again * copy + finish + BLOCK), Plan("columns", r, v, rb, cb, chunk)


def scattered(g: Geometry, width: int) -> tuple[int, int]:
    """Elements of a channel that conv_scatter keeps: of inputs, whole vectors of `width`, and of outputs."""
    reach = [(s - 1) * d for s, d in zip(g.size[1:], g.dilation[1:])]
    pitch = g.space[2] + reach[1]
    stride = ceil_div((g.space[1] - 1) * pitch + g.space[2], width) * width
    return stride, reach[0] * pitch + reach[1] + stride


def _scatter(g: Geometry, limits: Limits) -> Iterator[tuple[float, Plan]]:
    """Plans for conv_scatter, likewise; windows slide by one, and there is no more padding around its inputs than they reach."""
    reach = [(s - 1) * d for s, d in zip(g.size, g.dilation)]
    around = [out + r - before - space for out, r, before, space in zip(g.out, reach, g.before, g.space)]
    inside = all(b <= r and a <= r for a, b, r in zip(around, g.before, reach))
    if not inside or g.size[0] > 1 or not g.stride == g.up == (1, 1, 1):
        return
    vw = limits.vw
    for r, v in row_tiles(limits.registers):
        stride, plane = scattered(g, v * vw)
        blocks = ceil_div(g.k, r)
        kept = min(blocks, (limits.scattered - vw) // (plane * r))
        if kept < 1 or stride > limits.slab:
            continue
        chunk = min(g.c, limits.slab // stride)
        strips, step = stride // (v * vw), max(r * v / 2, (r + v) / 2) + STEP
        work = blocks * g.taps * strips * (g.c * step + ceil_div(g.c, chunk) * SUMS["scatter"] * r * v)
        copy = g.c * (stride / vw + ROW * g.space[1])
        finish = g.k * (plane / vw + g.out[1] * (FINISH * ceil_div(g.out[2], vw) + FINISH_ROW))
        again = 1 if chunk == g.c else ceil_div(blocks, kept)
        yield g.out[0] * (work + again * copy + finish + BLOCK), Plan("scatter", r, v, kept, 1, chunk)


def _suits_winograd(g: Geometry) -> bool:
    """3 x 3 over an image, one step at a time, with channels enough for vectors to run over them."""
    slides = g.size == (1, 3, 3) and g.stride == g.dilation == g.up == (1, 1, 1) and g.space[0] == 1
    return slides and min(g.c, g.k) >= WINOGRAD_CHANNELS


def tiles_of(g: Geometry, m: int) -> int:
    """Of m x m outputs, an image."""
    return ceil_div(g.out[1], m) * ceil_div(g.out[2], m)


def winograd_sizes(g: Geometry, vw: int, m: int, v: int, tiles: int) -> tuple[int, int]:
    """Elements of the block's transformed inputs, and of what is transposed: inputs, and later outputs."""
    a, across = m + 2, min(tiles, ceil_div(g.out[2], m))
    return a * a * (tiles * ceil_div(g.c, vw) * vw + vw), max(a * (m * across + 2), v * m * (m * across + 3)) * vw + vw


def _winograd(g: Geometry, limits: Limits) -> Iterator[tuple[float, Plan]]:
    """Plans for winograd: r tiles x v vectors of channels at once, rb = 2 or 4 for F(rb x rb, 3 x 3), cb tiles a block."""
    if not _suits_winograd(g):
        return
    vw = limits.vw
    for m in range(limits.largest, 0, -2):
        a, tiles = m + 2, tiles_of(g, m)
        for v in (1, 2, 3, 4):
            strips = ceil_div(g.k, v * vw)
            for r in range(4, 17):
                if r * v + v + 1 >= limits.registers or r * v < 8 or v * vw % TRANSPOSED:
                    continue
                for block in range(r, 65, r):
                    if sum(winograd_sizes(g, vw, m, v, block)) + a * a * (block * v + 1) * vw > limits.tiles:
                        break
                    step = max(r * v / 2, (r + v) / 2) + STEP
                    again = 1 + 4 / block  # weights are read anew for each block
                    multiply = a * a * strips * (g.c * step + SUMS["winograd"] * r * v) * again / r
                    back = strips * v * (BACK_ADD * a * a + BACK * m * m)
                    yield (
                        tiles * (multiply + _transformed(g, vw, m, block) + back),
                        Plan("winograd", r, v, m, block, g.c),
                    )


def _transformed(g: Geometry, vw: int, m: int, tiles: int) -> float:
    """What it costs to turn and transform a tile's inputs."""
    a = m + 2
    return ceil_div(g.c, vw) * (TRANSPOSE * a * (m + 2 / min(tiles, ceil_div(g.out[2], m))) + ADD * a * a)


def _winograd_weights(g: Geometry, limits: Limits) -> Iterator[tuple[float, Plan]]:
    """Plans for winograd_gradients: r input channels x v vectors of output channels at once."""
    if not _suits_winograd(g):
        return
    vw = limits.vw
    for m in range(limits.largest, 0, -2):
        a = m + 2
        for v in (1, 2, 3, 4):
            strips = ceil_div(g.k, v * vw)
            for r in range(4, 17):
                if r * v + v + 1 >= limits.registers or r * v < 8 or ceil_div(g.c, r) * r > ceil_div(g.c, vw) * vw:
                    continue
                if a * a * ceil_div(g.c, r) * r * strips * v * vw > WINOGRAD_SUMS:
                    continue
                for block in (8, 16, 24, 32, 48, 64):
                    gradients = (a * a * (block * strips * v + 1) + strips * v) * vw  # transformed, and their sums
                    if sum(winograd_sizes(g, vw, m, v, block)) + gradients > limits.tiles:
                        break
                    step = max(r * v / 2, (r + v) / 2) + STEP
                    multiply = a * a * ceil_div(g.c, r) * strips * (step + SUMS["winograd_gradients"] * r * v / block)
                    cost = multiply + _transformed(g, vw, m, block) + strips * v * (TRANSPOSE * m * m + ADD * a * a)
                    yield tiles_of(g, m) * cost, Plan("winograd", r, v, m, block, g.c)


@lru_cache(maxsize=4096)
def plan_weights(g: Geometry, limits: Limits, measured: Plan | None = None) -> tuple[Plan, ...]:
    """The best plans for conv_weights and winograd_gradients, or conv_lanes."""
    found = _lanes(g, limits) if by_lanes(g) else [*_weights(g, limits), *_winograd_weights(g, limits)]
    return _ranked(list(found), measured)


def run_of(g: Geometry) -> int:
    """How many taps of a row share a pointer in conv_weights."""
    return g.size[2] if 1 < g.size[2] <= MOST_RUN else 1


def weight_tiles(g: Geometry, most_registers: int) -> list[tuple[int, int]]:
    """MR x NV of conv_weights, MR whole runs: sums, vectors of dy and one input fit the registers, and pointers theirs."""
    run, found = run_of(g), []
    for v in (1, 2, 3, 4):
        most = min((most_registers - v - 1) // v // run, {1: 14, 2: 12, 3: 9, 4: 6}[v])
        found += [(runs * run, v) for runs in range(1, most + 1) if runs * run * v >= min(12, most_registers // 2)]
    return found


def _weights(g: Geometry, limits: Limits) -> Iterator[tuple[float, Plan]]:
    """Plans for conv_weights."""
    for r, v in weight_tiles(g, limits.registers):
        strips, step = ceil_div(g.k, v * limits.vw), max(r * v / 2, LOADS * (r + v)) + STEP
        for cb in _even(g.out[2]):
            for rb in _even(g.out[1]):
                high = (rb - 1) * g.stride[1] + (g.size[1] - 1) * g.dilation[1] + 1
                plane = g.size[0] * high * ((cb - 1) * g.stride[2] + (g.size[2] - 1) * g.dilation[2] + 1)
                if plane > limits.slab or rb * cb * strips * v * limits.vw > limits.kept:
                    continue
                chunk = min(g.c, limits.slab // plane)
                tiles = ceil_div(g.c, chunk) * ceil_div(chunk * g.taps, r) * strips
                work = tiles * (rb * cb * step + SUMS["weights"] * r * v + POINTER * rb)
                yield _of_blocks(g, limits, rb, cb, work, plane, high), Plan("weights", r, v, rb, cb, chunk)


def _lanes(g: Geometry, limits: Limits) -> Iterator[tuple[float, Plan]]:
    """Plans for conv_lanes."""
    vw, r = limits.vw, min(g.taps, 12)
    (phases_h, over_h), (phases_w, over_w) = _spread(g, 1, g.stride[1]), _spread(g, 2, g.stride[2])
    for cb in _even(g.out[2]):
        for rb in _even(g.out[1]):
            pitch, high = cb + over_w, rb + over_h
            plane, kept = g.size[0] * phases_h * phases_w * high * pitch, (rb - 1) * pitch + cb + vw
            if plane > limits.slab or kept > limits.kept:
                continue
            work = g.c * g.k * ceil_div(g.taps, r) * (ceil_div(kept, vw) * (r + 2) + SUMS["lanes"] * r)
            yield _of_blocks(g, limits, rb, cb, work, plane, high), Plan("lanes", r, 1, rb, cb, 1)


def _of_blocks(g: Geometry, limits: Limits, rb: int, cb: int, work: float, plane: int, high: int) -> float:
    """What an image costs: for each block `work`, and the copies of its inputs, planes of `high` rows, and of dy."""
    copies = g.c * (plane / limits.vw + ROW * g.size[0] * high) + g.k * rb * cb / 2
    return ceil_div(g.out[1], rb) * ceil_div(g.out[2], cb) * (work + copies + BLOCK)


def by_lanes(g: Geometry) -> bool:
    """Whether vectors run over positions in gradients by weights: where a group has few outputs."""
    return g.k < FEW_CHANNELS


# -- what a GPU does ---------------------------------------------------------------------------------------------------
CONV_LOCAL = Plan("local", 4, 4, SIDE, SIDE, 1)  # conv_local, which does every convolution


def _whole(n: int, side: int) -> int:
    """n rounded up to whole tiles."""
    return ceil_div(n, side) * side


@lru_cache(maxsize=4096)
def plan_gpu(
    g: Geometry, weights: bool, size: int, room: int, tiles: tuple[Tile, ...], measured: Plan | None = None
) -> tuple[Plan, ...]:
    """conv_local, and winograd_gpu by each of some tiles where it can do it; the cheapest first. From how many images on a
    `measured` plan pays is for its measurer to say."""
    entries = _whole(g.c * g.taps + 1, 4 * SIDE) if weights else g.c * g.taps
    local = LOCAL_WORK * entries * _whole(g.k, 4 * SIDE) * math.prod(g.out)
    found = [(local, CONV_LOCAL)]
    most = room // (16 * size * g.groups * (g.c + g.k)) // 128 * 128
    fits = most > 0 and 16 * size * g.groups * g.c * g.k <= room
    for r, v, vw, *_ in dict.fromkeys(tiles) if _suits_winograd(g) and fits else ():
        high, wide = SIDE * r, SIDE * v * vw  # a tile of gemm_local
        work = PRODUCT_WORK[r, v] * 16 * _whole(g.k, high) * (_whole(g.c, wide) if weights else g.c)
        moved = BYTE * size * 32  # 16 elements for what is transformed, written and read
        cost = tiles_of(g, 2) * (work + moved * (g.c + g.k))
        least = math.ceil(moved * g.c * g.k / max(local / MARGIN - cost, local / 10))
        least = max(least, ceil_div(4 * wide, tiles_of(g, 2)))  # what is multiplied past the last one is little
        plan = Plan("winograd_gpu", r, v, 2, least, most)
        if measured and measured == plan._replace(cb=max(1, measured.cb)):
            plan = measured
        found.append((MARGIN * cost, plan))
    return _ranked(found, measured)


def plans(device: Device, g: Geometry, dtype: DType, weights: bool, measured: Plan | None = None) -> tuple[Plan, ...]:
    """The plans of a convolution, or of a gradient by `weights`: `measured` if it is one, then what the model finds best; none
    where no kernel of a CPU has room for it, and conv_local does it there, too."""
    if device.long_loops:
        return (plan_weights if weights else plan_forward)(g, limits(device, dtype), measured)
    usable = device.kind == "gpu" and device.max_group >= SIDE * SIDE and largest_tile() >= 2
    tiles = local_tiles(device, dtype) if usable else ()
    return plan_gpu(g, weights, np.dtype(dtype).itemsize, min(ROOM, device.max_piece // 2), tiles, measured)


# -- what was measured -------------------------------------------------------------------------------------------------
def name(g: Geometry, dtype: DType, weights: bool) -> str:
    """What a measured plan is stored under: "float32 forward c 32 k 64 space 1x26x26 out 1x24x24 size 1x3x3"."""
    parts = ((field, value) for field, value in g._asdict().items() if value != PLAIN.get(field))
    sizes = (f"{field} {'x'.join(map(str, value)) if isinstance(value, tuple) else value}" for field, value in parts)
    return " ".join([np.dtype(dtype).name, "weights" if weights else "forward", *sizes])


def stored_plan(entry: Any) -> Plan | None:
    """What an entry of a file of measurements holds, if that looks like a plan."""
    values = entry.get("plan") if isinstance(entry, dict) else None
    if not isinstance(values, list) or [type(value) for value in values] != [str, int, int, int, int, int]:
        return None
    return Plan(*values)


def measured_plan(device: Device, g: Geometry, dtype: DType, weights: bool, entry: Any) -> tuple[Plan | None, str]:
    """The plan that an entry holds, if it is one of this convolution's: others might spill, or not fit; or what is wrong."""
    plan = stored_plan(entry)
    if plan is None:
        return None, f"{entry!r}, which holds no plan: a kernel and five whole numbers, {', '.join(Plan._fields[1:])}"
    if plan not in plans(device, g, dtype, weights, plan)[:1]:
        return None, f"{shown(plan)}, which is none of this convolution's plans on this device"
    return plan, ""


def shown(plan: Plan) -> str:
    """A plan in words."""
    if plan == CONV_LOCAL:
        return "conv_local"
    return f"{plan.kernel} {plan.r}x{plan.v} by {plan.rb}x{plan.cb}x{plan.chunk}"


def _refused(entry: Any) -> bool:
    """Whether an entry holds a plan that CLNN_WINOGRAD rules out for now."""
    plan = stored_plan(entry)
    return plan is not None and plan.kernel in ("winograd", "winograd_gpu") and plan.rb > largest_tile()


def plan_for(device: Device, g: Geometry, dtype: DType, n: int, weights: bool = False) -> Plan:
    """The plan for n images: the one that was measured, or else the model's."""
    known, key = tuning.known(device), (g, dtype, weights)
    measured = known.plans.get(key)
    if measured is None and known.convolutions and key not in known.plans:
        entry = known.convolutions.get(name(g, dtype, weights))
        if not _refused(entry):
            if len(known.plans) >= 4096:
                known.plans.clear()
            measured, wrong = (None, "") if entry is None else measured_plan(device, g, dtype, weights, entry)
            known.plans[key] = measured
            if wrong:
                text = f"{tuning.user_file()} says for {name(g, dtype, weights)!r}: {wrong}; it is left out"
                warn(text, tuning.TuningWarning)
    plan = next(iter(plans(device, g, dtype, weights, measured)), CONV_LOCAL)
    return CONV_LOCAL if plan.kernel == "winograd_gpu" and n < plan.cb else plan


@contextlib.contextmanager
def forced(device: Device, g: Geometry, dtype: DType, weights: bool, plan: Plan) -> Iterator[None]:
    """That convolution goes by `plan`, of however few images."""
    known, key = tuning.known(device), (g, dtype, weights)
    plan = plan._replace(cb=1) if plan.kernel == "winograd_gpu" else plan
    known.plans[key] = plan
    try:
        yield
    finally:
        del known.plans[key]
