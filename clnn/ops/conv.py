"""Convolution and its transpose over 1 to 3 spatial axes: kernels/conv.cl, planned for each shape and device.

Arrays are (batch, channels, *space), weights (channels out, channels in / groups, *size). Which registers, blocks and parts
a kernel works with follows from layer sizes by a small model of what its loops cost, or from what `clnn tune` measured; the
batch's size is never compiled in.
"""

from __future__ import annotations

import contextlib
import math
import warnings
from collections import Counter
from collections.abc import Iterator
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from ..errors import ShapeError
from ..gemm import Scale, engine_name, forced_engine, gemm, tuning
from ..gemm.tile import vector_width
from ..gemm.tuning import registers
from ..runtime.device import Device
from ..runtime.memory import Block
from .activation import fused
from .array import Array, Backward, Sink, block_of, check_float, check_together, empty, fill
from .elementwise import scale_add
from .reduce import sum_to
from .window import Window

LOCAL = 256 << 10  # bytes of local memory that these sizes are made for; with less they shrink
SLAB_BYTES = 96 << 10  # of inputs that a CPU's work-item keeps beside it: they stay in a second-level cache
OUT = 1024  # outputs of a channel that it computes at once, and (times 64 bytes) what it keeps of dy
NARROW = 256  # the same where vectors run over channels
FEW_CHANNELS = 4  # of outputs in a group, from which on vectors run over them in gradients by weights
SIDE, TILE = 16, 64  # of a GPU's groups and of their tiles, as in kernels/conv.cl
PARTS = 2  # parts of the batch for each core, in gradients by weights
PLANS = 16  # of a convolution, that are worth measuring
PLAIN = {"groups": 1, "stride": (1, 1, 1), "before": (0, 0, 0), "dilation": (1, 1, 1), "up": (1, 1, 1)}  # not in names


class Geometry(NamedTuple):
    """A convolution as the kernels see it: `groups` of `c` inputs and `k` outputs, over three axes; `up` - 1 zeros lie
    between inputs. Padding `before` may be negative: then the input is cut."""

    groups: int
    c: int
    k: int
    space: tuple[int, ...]
    out: tuple[int, ...]
    size: tuple[int, ...]
    stride: tuple[int, ...]
    before: tuple[int, ...]
    dilation: tuple[int, ...]
    up: tuple[int, ...] = (1, 1, 1)

    @property
    def taps(self) -> int:
        return math.prod(self.size)

    def vectors(self, first: int, *last: int) -> tuple[np.ndarray, np.ndarray]:
        """The two arguments of sizes that every kernel takes."""
        p = [self.groups, self.c, self.k, *self.space, *self.out, *self.size, *self.stride, first]
        q = [*self.before, *self.dilation, *self.up, *last]
        return np.array(p, np.int32), np.array(q + [0] * (16 - len(q)), np.int32)


def geometry(window: Window, groups: int, c: int, k: int) -> Geometry:
    """That of the forward pass: c inputs and k outputs in each group."""
    w = window.in_3d()
    space, out = w.space, w.out
    if w.size == w.stride == w.dilation == (1, 1, 1) and not any(w.before + w.after):  # 1x1: space is one long row
        space = out = (1, 1, math.prod(space))
    return Geometry(groups, c, k, space, out, w.size, w.stride, w.before, w.dilation)


def turned(g: Geometry) -> Geometry:
    """That of the gradient by inputs: dy with stride - 1 zeros between, over which the kernel slides turned over."""
    before = tuple(d * (s - 1) - b for d, s, b in zip(g.dilation, g.size, g.before))
    return Geometry(g.groups, g.k, g.c, g.out, g.space, g.size, (1, 1, 1), before, g.dilation, g.stride)


# -- what a CPU's work-item does --------------------------------------------------------------------------------------
class Plan(NamedTuple):
    """A kernel's registers KR x PV (or MR x NV), blocks of rb x cb outputs, channels copied at once."""

    kernel: str
    r: int
    v: int
    rb: int
    cb: int
    chunk: int


def _up(a: int, b: int) -> int:
    return -(-a // b)


def _even(n: int) -> list[int]:
    """The sizes of blocks that divide n as evenly as blocks can, each once."""
    return sorted({_up(n, parts) for parts in range(1, min(n, 64) + 1)} | {1})


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


def _ranked(found: list[tuple[float, Plan]], measured: Plan | None) -> tuple[Plan, ...]:
    """`measured`, if it is one of those found; then the cheapest, each other kernel's cheapest, and more, PLANS in all: few
    with the same registers or the same blocks, since the model is wrong about those together."""
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
def plan_forward(
    g: Geometry, vw: int, most_registers: int, slab: int, out: int, narrow: int, measured: Plan | None = None
) -> tuple[Plan, ...]:
    """The best of conv_rows and conv_columns, in cycles of a processor that does two vector multiply-adds a cycle; () where
    the kernel reaches over more than `slab` holds."""
    found = [*_rows(g, vw, most_registers, slab, out), *_columns(g, vw, most_registers, slab, narrow)]
    return _ranked(found, measured)


def _rows(g: Geometry, vw: int, most_registers: int, slab: int, out: int) -> Iterator[tuple[float, Plan]]:
    """Plans for conv_rows: what they cost an image, and what they are."""
    tiles = row_tiles(most_registers)
    (phases_h, over_h), (phases_w, over_w) = _spread(g, 1, g.stride[1]), _spread(g, 2, g.stride[2])
    for cb in _even(g.out[2]):
        for rb in _even(g.out[1]):
            pitch = cb + over_w
            positions = (rb - 1) * pitch + cb
            plane = g.size[0] * phases_h * phases_w * (rb + over_h) * pitch
            if positions > out - 8 * vw or plane > slab:
                continue
            chunk = min(g.c, slab // plane)
            blocks = _up(g.out[1], rb) * _up(g.out[2], cb)
            each = 1 / vw if g.stride[2] == 1 else 2  # cycles for an element that is copied
            copy = g.c * (plane * each + 3 * g.size[0] * phases_h * phases_w * (rb + over_h))
            finish = g.k * rb * (6 * _up(cb, vw) + 4)
            for r, v in tiles:
                k_blocks, strips = _up(g.k, r), _up(positions, v * vw)
                step = max(r * v / 2, (2 * v + r) / 2 if vw >= 16 else (v + r) / 2) + 1
                work = k_blocks * strips * (g.c * g.taps * step + 2 * r * v)
                again = 1 if chunk == g.c else k_blocks
                yield g.out[0] * blocks * (work + again * copy + finish + 300), Plan("rows", r, v, rb, cb, chunk)


def _columns(g: Geometry, vw: int, most_registers: int, slab: int, narrow: int) -> Iterator[tuple[float, Plan]]:
    """Plans for conv_columns, likewise."""
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
    tiles = column_tiles(wide, most_registers)
    for rb in {_up(rows, g.up[1]) * g.up[1] for rows in _even(g.out[1])}:
        high = (rb - 1) // g.up[1] * g.stride[1] + reach[1] // g.up[1] - low + 1
        plane, positions = g.size[0] * high * pitch, rb * cb
        if positions > narrow - 4 or plane > slab:
            continue
        chunk, blocks = min(g.c, slab // plane), _up(g.out[1], rb)
        copy = g.c * (plane / vw + 3 * g.size[0] * high)
        for r, v in tiles:
            strips = _up(g.k, v * vw)
            step = max(r * v / 2, (r + v) / 2, 4) + 1
            count = rb * sum(_up(_up(cb - b, g.up[2]), r) for b in range(g.up[2]))
            taps = g.taps / (g.up[1] * g.up[2]) * seen
            work = 1.1 * strips * count * (g.c * taps * step + 3 * r * v)  # its weights come from further away
            finish = g.k * positions * (1 + 6 / vw)
            again = 1 if chunk == g.c else strips
            yield g.out[0] * blocks * (work + again * copy + finish + 300), Plan("columns", r, v, rb, cb, chunk)


@lru_cache(maxsize=4096)
def plan_weights(
    g: Geometry, vw: int, most_registers: int, slab: int, room: int, lanes: bool, measured: Plan | None = None
) -> tuple[Plan, ...]:
    """The best plans for conv_weights or conv_lanes; `room`: elements of dy that fit."""
    (phases_h, over_h), (phases_w, over_w) = _spread(g, 1, g.stride[1]), _spread(g, 2, g.stride[2])
    found = []
    work: float
    for v in (1,) if lanes else (1, 2, 3, 4):
        r = min(g.taps, 12) if lanes else min((most_registers - v - 1) // v, {1: 14, 2: 12, 3: 9, 4: 6}[v])
        strips = _up(g.k, v * vw)
        if r < 2 and not lanes:
            continue
        for cb in _even(g.out[2]):
            for rb in _even(g.out[1]):
                if lanes:
                    pitch = cb + over_w
                    plane, kept = g.size[0] * phases_h * phases_w * (rb + over_h) * pitch, (rb - 1) * pitch + cb + vw
                    plane_rows, chunk = rb + over_h, 1
                else:
                    plane_rows = (rb - 1) * g.stride[1] + (g.size[1] - 1) * g.dilation[1] + 1
                    plane = g.size[0] * plane_rows * ((cb - 1) * g.stride[2] + (g.size[2] - 1) * g.dilation[2] + 1)
                    kept = rb * cb * strips * v * vw
                    chunk = min(g.c, slab // plane)
                if plane > slab or kept > room:
                    continue
                blocks = _up(g.out[1], rb) * _up(g.out[2], cb)
                copy = g.c * (plane / vw + 3 * g.size[0] * plane_rows) + (g.k * rb * cb / 2)
                if lanes:
                    work = g.c * g.k * _up(g.taps, r) * (_up(kept, vw) * (r + 2) + 12 * r)
                else:
                    step = max(r * v / 2, (r + v) / 2) + 1
                    work = _up(g.c, chunk) * _up(chunk * g.taps, r) * strips * (rb * cb * step + 3 * r * v + 4 * rb)
                found.append((blocks * (work + copy + 300), Plan("lanes" if lanes else "weights", r, v, rb, cb, chunk)))
    return _ranked(found, measured)


# -- launches ---------------------------------------------------------------------------------------------------------
class Epilogue(NamedTuple):
    """What becomes of sums, as kernels/conv.cl says; `saved` is read where `times`, else written."""

    bias: Block | None = None
    activation: str = "linear"
    saved: Block | None = None
    times: bool = False
    scale: Scale | None = None
    factor: Block | None = None

    def defines(self) -> dict[str, Any]:
        found: dict[str, Any] = {"ACT": self.activation}
        if self.scale is not None:
            found["SCALED"] = 1
        if self.times:
            found["TIMES"] = 1
        elif self.saved is not None:
            found["KEEP"] = 1
        if self.bias is not None:
            found["BIAS"] = 1
        if self.factor is not None:
            found["FACTOR"] = 1
        return found

    @property
    def column(self) -> int:
        return self.scale.column if self.scale else 0

    def arguments(self, y: Block) -> tuple[Any, ...]:
        """What kernels take for it, with where results go: factor, bias, y, saved, the table of scales and its row."""
        return self.factor, self.bias, y, self.saved, self.scale and self.scale.table, self.scale and self.scale.at


def _most_taps(g: Geometry) -> int:
    return max(64, 1 << (g.taps - 1).bit_length())


def _rooms(device: Device, dtype: Any) -> tuple[int, int, int, int]:
    """What fits local memory: elements of inputs, outputs of a channel in conv_rows and in conv_columns, elements of dy."""
    size, share = np.dtype(dtype).itemsize, min(1.0, device.local_memory / LOCAL)
    slab, kept = int(SLAB_BYTES * share) // size, int(64 * OUT * share) // size
    return slab, int(OUT * share) * 4 // size, int(NARROW * share) * 4 // size // 4 * 4, kept


def _alone(device: Device) -> bool:
    """Whether work-items work by themselves: on CPUs, and where groups are too small for conv_local."""
    return device.kind == "cpu" or device.cl_device.max_work_group_size < SIDE * SIDE


def _one(device: Device) -> tuple[int] | None:
    """Work-items of a group where few items do much each: one on a CPU, so that all cores get some."""
    return (1,) if _alone(device) else None


def plans(device: Device, g: Geometry, dtype: Any, weights: bool, measured: Plan | None = None) -> tuple[Plan, ...]:
    """The plans of a convolution, or of a gradient by `weights`: `measured` if it is one, then what the model finds best."""
    return _plans(device, g, vector_width(device, dtype), _rooms(device, dtype), weights, measured)


def _plans(
    device: Device, g: Geometry, vw: int, rooms: tuple[int, int, int, int], weights: bool, measured: Plan | None
) -> tuple[Plan, ...]:
    slab, out, narrow, room = rooms
    if not _alone(device):
        return ()
    if weights:
        return plan_weights(g, vw, registers(device), slab, room, g.k < FEW_CHANNELS, measured)
    return plan_forward(g, vw, registers(device), slab, out, narrow, measured)


def name(g: Geometry, dtype: Any, weights: bool) -> str:
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


def measured_plan(device: Device, g: Geometry, dtype: Any, weights: bool, entry: Any) -> tuple[Plan | None, str]:
    """The plan that an entry holds, if it is one of this convolution's: others might spill, or not fit; or what is wrong."""
    plan = stored_plan(entry)
    if plan is None:
        return None, f"{entry!r}, which holds no plan: a kernel and five whole numbers, {', '.join(Plan._fields[1:])}"
    if plan not in plans(device, g, dtype, weights, plan)[:1]:
        return None, f"{shown(plan)}, which is none of this convolution's plans on this device"
    return plan, ""


def shown(plan: Plan) -> str:
    """A plan in words."""
    return f"{plan.kernel} {plan.r}x{plan.v} by {plan.rb}x{plan.cb}x{plan.chunk}"


def _plan(
    device: Device, g: Geometry, dtype: Any, vw: int, rooms: tuple[int, int, int, int], weights: bool = False
) -> Plan | None:
    """The plan that was measured, or else the model's; None where conv_local does it."""
    known, key = device.tuned or tuning.load(device), (g, dtype, weights)
    measured = known.plans.get(key)
    if measured is None and known.convolutions and key not in known.plans:
        if len(known.plans) >= 4096:
            known.plans.clear()
        entry = known.convolutions.get(name(g, dtype, weights))
        measured, wrong = (None, "") if entry is None else measured_plan(device, g, dtype, weights, entry)
        known.plans[key] = measured
        if wrong:
            text = f"{tuning.user_file()} says for {name(g, dtype, weights)!r}: {wrong}; it is left out"
            warnings.warn(text, tuning.TuningWarning, stacklevel=2)
    return next(iter(_plans(device, g, vw, rooms, weights, measured)), None)


@contextlib.contextmanager
def forced(device: Device, g: Geometry, dtype: Any, weights: bool, plan: Plan) -> Iterator[None]:
    """That convolution goes by `plan`."""
    known, key = device.tuned or tuning.load(device), (g, dtype, weights)
    known.plans[key] = plan
    try:
        yield
    finally:
        del known.plans[key]


def _by_clblast(device: Device) -> bool:
    return forced_engine() == "clblast" and engine_name(device) == "clblast"


def apply(
    device: Device,
    n: int,
    g: Geometry,
    x: Block,
    w: Block,
    y: Block,
    dtype: Any,
    epilogue: Epilogue,
    flip: bool = False,
) -> None:
    """y = epilogue(x * w) for n images; with `flip` the gradient by inputs of that convolution, whose dy is x."""
    if n == 0:
        return
    if _by_clblast(device):
        (_fold if flip else _unfold)(device, n, g, x, w, y, dtype, epilogue)
        return
    g = turned(g) if flip else g
    real, size = device.real(dtype), np.dtype(dtype).itemsize
    extra: dict[str, Any] = {"FLIP": 1} if flip else {}
    vw, rooms = vector_width(device, dtype), _rooms(device, dtype)
    slab, out, narrow, _ = rooms
    plan = _plan(device, g, dtype, vw, rooms)
    if plan is None:
        tiles = _up(n * math.prod(g.out), TILE) * _up(g.k, TILE) * g.groups
        p, q = g.vectors(0, 0, 0, 0, 0, epilogue.column, g.c * g.taps)
        device.launch(
            "conv", "conv_local", (tiles * SIDE * SIDE,), p, q, n, x, w, *epilogue.arguments(y),
            local=(SIDE * SIDE,), real=real, LOCAL=1, **extra, **epilogue.defines(),
        )  # fmt: skip
        return
    columns = plan.kernel == "columns"
    width = plan.v * vw if columns else plan.r  # output channels whose weights lie together
    blocks = _up(g.k, width)
    packed = device.allocate(g.groups * blocks * width * g.c * g.taps * size)
    device.launch(
        "conv", "conv_pack", (g.groups * blocks * g.c,), g.groups, g.c, g.k, g.taps, w, packed,
        local=_one(device), real=real, PACK=1, KR=width, **extra,
    )  # fmt: skip
    items = n * g.groups * g.out[0] * _up(g.out[1], plan.rb) * _up(g.out[2], plan.cb)
    parts = min(blocks, _up(2 * device.compute_units, items)) if items < 2 * device.compute_units else 1
    p, q = g.vectors(0, plan.rb, plan.cb, parts, plan.chunk, epilogue.column)
    kernel: dict[str, Any] = (
        {"COLUMNS": 1, "MR": plan.r, "NV": plan.v, "STEP": g.stride[2], "OUT": narrow}
        if columns
        else {"ROWS": 1, "KR": plan.r, "PV": plan.v, "OUT": out}
    )
    device.launch(
        "conv", f"conv_{plan.kernel}", (items * parts,), p, q, n, x, packed, *epilogue.arguments(y),
        local=(1,), real=real, VW=vw, SLAB=slab + 9 * vw, MOST_TAPS=_most_taps(g), **kernel, **epilogue.defines(),
    )  # fmt: skip


def weight_gradients(
    device: Device, n: int, g: Geometry, x: Block, dy: Block, for_w: Sink | None, for_b: Sink | None, dtype: Any
) -> None:
    """The gradients by weights and bias, into their sinks."""
    if _by_clblast(device):
        _unfolded_gradients(device, n, g, x, dy, for_w, for_b, dtype)
        return
    real, size, entries = device.real(dtype), np.dtype(dtype).itemsize, g.c * g.taps
    extra: dict[str, Any] = {}
    lanes, vw = g.k < FEW_CHANNELS, vector_width(device, dtype)
    slab, _, _, room = rooms = _rooms(device, dtype)
    plan = _plan(device, g, dtype, vw, rooms, weights=True)
    if plan is None:
        kp, tiles, positions = g.k, _up(entries + 1, TILE) * _up(g.k, TILE) * g.groups, n * math.prod(g.out)
        parts = max(1, min(_up(8 * device.compute_units, tiles), positions // 256))
        depth = max(1, _up(_up(positions, parts), 16) * 16)
        parts = max(1, _up(positions, depth))
        partial = device.allocate(parts * g.groups * (entries + 1) * kp * size)
        p, q = g.vectors(0, 0, 0, 0, 0, 0, depth)
        device.launch(
            "conv", "conv_local", (parts * tiles * SIDE * SIDE,), p, q, n, x, dy, None, None, partial, None, None, None,
            local=(SIDE * SIDE,), real=real, LOCAL=1, WEIGHTS=1,
        )  # fmt: skip
    else:
        kp = 1 if lanes else _up(g.k, plan.v * vw) * plan.v * vw
        wanted = PARTS * device.compute_units
        splits = min(g.c, _up(wanted, g.groups)) if entries * g.k > 1 << 18 or n == 1 else 1
        parts = max(1, min(n, _up(wanted, g.groups * splits)))
        partial = device.allocate(parts * g.groups * (entries + 1) * (g.k if lanes else kp) * size)
        p, q = g.vectors(0, plan.rb, plan.cb, parts, plan.chunk, splits)
        extra = {"VW": vw, "LANES": 1} if lanes else {"VW": vw}
        registers_used = {"MR": plan.r} if lanes else {"MR": plan.r, "NV": plan.v}
        device.launch(
            "conv", f"conv_{plan.kernel}", (parts * g.groups * splits,), p, q, n, x, dy, partial,
            local=(1,), real=real, WEIGHTS=1, SLAB=slab + 9 * vw, OUT=room + vw, MOST_TAPS=_most_taps(g),
            **registers_used, **extra,
        )  # fmt: skip
    arguments: list[Any] = []
    for sink in (for_w, for_b):
        arguments += [sink.scale.table, sink.scale.at] if sink is not None and sink.scale else [None, None]
    columns = [sink.scale.column if sink is not None and sink.scale else -1 for sink in (for_w, for_b)]
    device.launch(
        "conv", "conv_sum", (g.groups * _up(entries + 1, 16),), g.groups, g.k, entries, kp, parts, *columns, partial,
        for_w and for_w.out, for_b and for_b.out, *arguments, local=_one(device), real=real, SUM=1, **extra,
    )  # fmt: skip


# -- by CLBlast: im2col for one image at a time -----------------------------------------------------------------------
def _unfold_image(device: Device, g: Geometry, image: int, x: Block, columns: Block, dtype: Any) -> None:
    p, q = g.vectors(0)
    size = (math.prod(g.out), g.groups * g.c * g.taps)
    device.launch("conv", "unfold", size, p, q, image, x, columns, real=device.real(dtype), UNFOLD=1)


def _unfold(device: Device, n: int, g: Geometry, x: Block, w: Block, y: Block, dtype: Any, epilogue: Epilogue) -> None:
    positions, depth, size = math.prod(g.out), g.c * g.taps, np.dtype(dtype).itemsize
    columns = device.allocate(g.groups * depth * positions * size)
    sums = device.allocate(n * g.groups * g.k * positions * size)
    for image in range(n):
        _unfold_image(device, g, image, x, columns, dtype)
        for group in range(g.groups):
            gemm(
                device, g.k, positions, depth, w, columns, sums, dtype=dtype, a_offset=group * g.k * depth,
                b_offset=group * depth * positions, c_offset=(image * g.groups + group) * g.k * positions,
            )  # fmt: skip
    device.launch(
        "conv", "finish", (positions, n * g.groups * g.k), g.groups * g.k, positions, n, epilogue.column, sums,
        *epilogue.arguments(y), real=device.real(dtype), UNFOLD=1, **epilogue.defines(),
    )  # fmt: skip


def _fold(device: Device, n: int, g: Geometry, dy: Block, w: Block, dx: Block, dtype: Any, epilogue: Epilogue) -> None:
    positions, depth = math.prod(g.out), g.c * g.taps
    columns = device.allocate(g.groups * depth * positions * np.dtype(dtype).itemsize)
    p, q = g.vectors(0, 0, 0, 0, 0, epilogue.column)
    for image in range(n):
        for group in range(g.groups):
            gemm(
                device, depth, positions, g.k, w, dy, columns, dtype=dtype, transpose_a=True, a_offset=group * g.k * depth,
                b_offset=(image * g.groups + group) * g.k * positions, c_offset=group * depth * positions,
            )  # fmt: skip
        device.launch(
            "conv", "fold", (math.prod(g.space), g.groups * g.c), p, q, image, columns,
            *epilogue.arguments(dx), real=device.real(dtype), UNFOLD=1, **epilogue.defines(),
        )  # fmt: skip


def _unfolded_gradients(
    device: Device, n: int, g: Geometry, x: Block, dy: Block, for_w: Sink | None, for_b: Sink | None, dtype: Any
) -> None:
    positions, depth = math.prod(g.out), g.c * g.taps
    if for_w is not None:
        total = fill(empty(device, (g.groups * g.k, depth), dtype), 0.0)
        columns = device.allocate(g.groups * depth * positions * total.dtype.itemsize)
        added = Scale.constant(device, dtype, 1, 1)
        for image in range(n):
            _unfold_image(device, g, image, x, columns, dtype)
            for group in range(g.groups):
                gemm(
                    device, g.k, depth, positions, dy, columns, total.block, dtype=dtype, transpose_b=True, scale=added,
                    a_offset=(image * g.groups + group) * g.k * positions, b_offset=group * depth * positions,
                    c_offset=group * g.k * depth,
                )  # fmt: skip
        assert for_w.scale is not None
        scale_add(total, for_w.out, for_w.scale)
    if for_b is not None:
        assert for_b.scale is not None
        dz = Array(dy, (n, g.groups * g.k, positions), dtype, device)
        scale_add(sum_to(dz, (g.groups * g.k, 1)), for_b.out, for_b.scale)


# -- the ops ----------------------------------------------------------------------------------------------------------
def conv(
    x: Array,
    w: Array,
    b: Array | None,
    window: Window,
    groups: int = 1,
    activation: str = "linear",
    keep: bool = True,
    factor: Array | None = None,
) -> tuple[Array, Backward]:
    """y[n, k, o] = f(b[k] + sum over c and i of w[k, c, i] x[n, c, o stride + i dilation - before]).

    x (batch, groups C, *space), w (groups K, C, *size), b (groups K,) -> y (batch, groups K, *out); the cross-correlation
    that the field calls convolution (LeCun et al. 1998). With `keep` the input of an activation whose derivative needs it
    is kept. At inference the sum may be multiplied by `factor` (groups K,): a batch normalisation that is folded in.
    """
    check_together("convolution", x, w, b)
    check_float("convolution", x)
    n, k, c = x.shape[0], w.shape[0] // groups, w.shape[1]
    if x.shape[1] != groups * c or w.shape[0] % groups or w.shape[2:] != window.size:
        raise ShapeError(
            f"an input of shape {x.shape} does not fit weights of shape {w.shape} in {groups} groups: it needs "
            f"{groups} * {c} = {groups * c} channels, and the weights' channels must be divisible by the groups"
        )
    g, device, dtype = geometry(window, groups, c, k), x.device, x.dtype
    y = empty(device, (n, w.shape[0], *window.out), dtype)
    saved = fused(y, activation, keep)
    apply(
        device,
        n,
        g,
        x.block,
        w.block,
        y.block,
        dtype,
        Epilogue(block_of(b), activation, block_of(saved), factor=block_of(factor)),
    )

    def backward(dz):
        def write_dx(sink: Sink):
            apply(device, n, g, dz.block, w.block, sink.out, dtype, _into(sink), flip=True)

        def write_dw_db(for_w: Sink | None, for_b: Sink | None = None):
            weight_gradients(device, n, g, x.block, dz.block, for_w, for_b, dtype)

        yield x, write_dx  # before dw: a sink may be the weights themselves
        yield (w, write_dw_db) if b is None else (w, b, write_dw_db)

    return y, backward


def _into(sink: Sink) -> Epilogue:
    """The epilogue of a gradient by inputs."""
    name, before = sink.times or ("linear", None)
    return Epilogue(None, name, block_of(before), before is not None, sink.scale)


def conv_transpose(
    x: Array,
    w: Array,
    b: Array | None,
    window: Window,
    groups: int = 1,
    activation: str = "linear",
    keep: bool = True,
    factor: Array | None = None,
) -> tuple[Array, Backward]:
    """The transpose of a convolution as a linear map (Zeiler et al. 2010): what takes its gradient by inputs.

    y[n, c, o stride + i dilation - before] += w[k, c, i] x[n, k, o], then + b[c] and f. `window` is the convolution's:
    x (batch, groups K, *window.out), w (groups K, C, *size), b and factor (groups C,) -> y (batch, groups C, *window.space).
    """
    check_together("transposed convolution", x, w, b)
    check_float("transposed convolution", x)
    n, k, c = x.shape[0], w.shape[0] // groups, w.shape[1]
    if x.shape[1] != w.shape[0] or w.shape[0] % groups or w.shape[2:] != window.size:
        raise ShapeError(
            f"an input of shape {x.shape} does not fit weights of shape {w.shape} in {groups} groups: it needs "
            f"{w.shape[0]} channels, divisible by the groups"
        )
    g, device, dtype = geometry(window, groups, c, k), x.device, x.dtype
    y = empty(device, (n, groups * c, *window.space), dtype)
    saved = fused(y, activation, keep)
    apply(
        device,
        n,
        g,
        x.block,
        w.block,
        y.block,
        dtype,
        Epilogue(block_of(b), activation, block_of(saved), factor=block_of(factor)),
        flip=True,
    )

    def backward(dz):
        def write_dx(sink: Sink):
            apply(device, n, g, dz.block, w.block, sink.out, dtype, _into(sink))

        def write_dw(for_w: Sink):
            weight_gradients(device, n, g, dz.block, x.block, for_w, None, dtype)

        yield x, write_dx  # before dw: a sink may be the weights themselves
        yield w, write_dw
        if b is not None:
            yield b, sum_to(dz, (groups * c, *(1 for _ in window.space))).reshaped(b.shape)

    return y, backward
