"""Convolution and its transpose over 1 to 3 spatial axes: kernels/conv.cl, planned for each shape and device.

Arrays are (batch, channels, *space), weights (channels out, channels in / groups, *size). Which registers, blocks and parts
a kernel works with follows from layer sizes by a small model of what its loops cost; the batch's size is never compiled in.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from ..errors import ShapeError
from ..gemm import Scale
from ..gemm.tile import vector_width
from ..gemm.tuning import registers
from ..runtime.device import Device
from ..runtime.memory import Block
from .activation import ACTIVATIONS
from .array import Array, Backward, Sink, block_of, check_float, check_together, empty
from .reduce import sum_to
from .window import Window

SLAB_BYTES = 96 << 10  # of inputs that a CPU's work-item keeps beside it: they stay in a second-level cache
OUT = 1024  # outputs of a channel that it computes at once, and (times 64 bytes) what it keeps of dy
NARROW = 256  # the same where vectors run over channels
FEW_CHANNELS = 4  # of outputs in a group, from which on vectors run over them in gradients by weights
PARTS = 2  # parts of the batch for each core, in gradients by weights


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


@lru_cache(maxsize=4096)
def plan_forward(g: Geometry, vw: int, most_registers: int, slab: int, narrow: int) -> Plan:
    """The cheapest of conv_rows and conv_columns, in cycles of a processor that does two vector multiply-adds a cycle."""
    found = [*_rows(g, vw, most_registers, slab), *_columns(g, vw, most_registers, slab, narrow)]
    if not found:
        raise ShapeError(
            f"a convolution with kernels of {g.size} and dilation {g.dilation} reaches over more than fits a processor's cache"
        )
    return min(found)[1]


def _rows(g: Geometry, vw: int, most_registers: int, slab: int) -> Iterator[tuple[float, Plan]]:
    """Plans for conv_rows: what they cost an image, and what they are."""
    tiles = [
        (r, v) for v in range(1, 9) for r in (1, 2, 3, 4, 5, 6, 8, 10, 12, 14)
        if r * v + v + 1 < most_registers and r * v >= min(8, most_registers // 2)
    ]  # fmt: skip
    (phases_h, over_h), (phases_w, over_w) = _spread(g, 1, g.stride[1]), _spread(g, 2, g.stride[2])
    for cb in _even(g.out[2]):
        for rb in _even(g.out[1]):
            pitch = cb + over_w
            positions = (rb - 1) * pitch + cb
            plane = g.size[0] * phases_h * phases_w * (rb + over_h) * pitch
            if positions > OUT - 8 * vw or plane > slab:
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
    for rb in {_up(rows, g.up[1]) * g.up[1] for rows in _even(g.out[1])}:
        high = (rb - 1) // g.up[1] * g.stride[1] + reach[1] // g.up[1] - low + 1
        plane, positions = g.size[0] * high * pitch, rb * cb
        if positions > narrow - 4 or plane > slab:
            continue
        chunk, blocks = min(g.c, slab // plane), _up(g.out[1], rb)
        copy = g.c * (plane / vw + 3 * g.size[0] * high)
        for v in (1, 2, 3, 4):
            for r in range(1, min(wide, 16) + 1):
                if r * v + v + 1 >= most_registers or r * v < min(8, wide):
                    continue
                strips = _up(g.k, v * vw)
                step = max(r * v / 2, (r + v) / 2, 4) + 1
                tiles = rb * sum(_up(_up(cb - b, g.up[2]), r) for b in range(g.up[2]))
                taps = g.taps / (g.up[1] * g.up[2])
                work = strips * tiles * (g.c * taps * step + 3 * r * v)
                finish = g.k * positions * (1 + 6 / vw)
                again = 1 if chunk == g.c else strips
                yield g.out[0] * blocks * (work + again * copy + finish + 300), Plan("columns", r, v, rb, cb, chunk)


@lru_cache(maxsize=4096)
def plan_weights(g: Geometry, vw: int, most_registers: int, slab: int, room: int, lanes: bool) -> Plan:
    """The cheapest plan for conv_weights or conv_lanes; `room`: elements of dy that fit."""
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
    if not found:
        raise ShapeError(
            f"a convolution with kernels of {g.size}, dilation {g.dilation} and {g.k} outputs reaches over more than fits a "
            "processor's cache"
        )
    return min(found)[1]


# -- launches ---------------------------------------------------------------------------------------------------------
def _defines(activation: str, scale: Scale | None, bias: Any, saved: Any, times: bool) -> dict[str, Any]:
    found: dict[str, Any] = {"ACT": activation}
    if scale is not None:
        found["SCALED"] = 1
    if times:
        found["TIMES"] = 1
    elif saved is not None:
        found["KEEP"] = 1
    if bias is not None:
        found["BIAS"] = 1
    return found


def _most_taps(g: Geometry) -> int:
    return max(64, 1 << (g.taps - 1).bit_length())


def apply(
    device: Device,
    n: int,
    g: Geometry,
    x: Block,
    w: Block,
    y: Block,
    *,
    dtype: Any,
    flip: bool = False,
    bias: Block | None = None,
    factor: Block | None = None,
    activation: str = "linear",
    saved: Block | None = None,
    times: bool = False,
    scale: Scale | None = None,
) -> None:
    """y = epilogue(x * w) for n images, as kernels/conv.cl says; `flip`: w is that of the convolution whose gradient by
    inputs, or transpose, this is. `factor` (channels out) multiplies the weights."""
    if n == 0:
        return
    real, vw = device.real(dtype), vector_width(device, dtype)
    slab = SLAB_BYTES // np.dtype(dtype).itemsize
    plan = plan_forward(g, vw, registers(device), slab, NARROW)
    columns = plan.kernel == "columns"
    width = plan.v * vw if columns else plan.r  # output channels whose weights lie together
    blocks = _up(g.k, width)
    packed = device.allocate(g.groups * blocks * width * g.c * g.taps * np.dtype(dtype).itemsize)
    extra: dict[str, Any] = {"FLIP": 1} if flip else {}
    device.launch(
        "conv", "conv_pack", (g.groups * blocks * g.c,), g.groups, g.c, g.k, g.taps, w, factor, packed,
        real=real, PACK=1, KR=width, **extra,
    )  # fmt: skip
    items = n * g.groups * g.out[0] * _up(g.out[1], plan.rb) * _up(g.out[2], plan.cb)
    parts = min(blocks, _up(2 * device.compute_units, items)) if items < 2 * device.compute_units else 1
    p, q = g.vectors(0, plan.rb, plan.cb, parts, plan.chunk, scale.column if scale else 0)
    table, at = (scale.table, scale.at) if scale else (None, None)
    kernel: dict[str, Any] = (
        {"COLUMNS": 1, "MR": plan.r, "NV": plan.v, "STEP": g.stride[2], "OUT": NARROW}
        if columns
        else {"ROWS": 1, "KR": plan.r, "PV": plan.v, "OUT": OUT}
    )
    device.launch(
        "conv", f"conv_{plan.kernel}", (items * parts,), p, q, n, x, packed, bias, y, saved, table, at,
        local=(1,), real=real, VW=vw, SLAB=slab + 9 * vw, MOST_TAPS=_most_taps(g), **kernel,
        **_defines(activation, scale, bias, saved, times),
    )  # fmt: skip


def weight_gradients(
    device: Device, n: int, g: Geometry, x: Block, dy: Block, for_w: Sink | None, for_b: Sink | None, *, dtype: Any
) -> None:
    """The gradients by weights and bias, into their sinks."""
    real, vw, size = device.real(dtype), vector_width(device, dtype), np.dtype(dtype).itemsize
    slab, room = SLAB_BYTES // size, 16 * OUT * 4 // size
    lanes = g.k < FEW_CHANNELS
    plan = plan_weights(g, vw, registers(device), slab, room, lanes)
    entries = g.c * g.taps
    kp = 1 if lanes else _up(g.k, plan.v * vw) * plan.v * vw
    wanted = PARTS * device.compute_units
    splits = min(g.c, _up(wanted, g.groups)) if entries * g.k > 1 << 18 or n == 1 else 1
    parts = max(1, min(n, _up(wanted, g.groups * splits)))
    partial = device.allocate(parts * g.groups * (entries + 1) * (g.k if lanes else kp) * size)
    p, q = g.vectors(0, plan.rb, plan.cb, parts, plan.chunk, splits)
    extra: dict[str, Any] = {"LANES": 1} if lanes else {}
    defines = {**extra, "VW": vw, "MR": plan.r}
    if not lanes:
        defines["NV"] = plan.v
    device.launch(
        "conv", "conv_lanes" if lanes else "conv_weights", (parts * g.groups * splits,), p, q, n, x, dy, partial,
        local=(1,), real=real, WEIGHTS=1, SLAB=slab + 9 * vw, OUT=room + vw, MOST_TAPS=_most_taps(g), **defines,
    )  # fmt: skip
    scales = [sink.scale for sink in (for_w, for_b) if sink is not None]
    assert all(scales), "gradients of parameters have a scale"
    arguments: list[Any] = []
    for sink in (for_w, for_b):
        arguments += [sink.scale.table, sink.scale.at] if sink is not None and sink.scale else [None, None]
    columns = [sink.scale.column if sink is not None and sink.scale else -1 for sink in (for_w, for_b)]
    device.launch(
        "conv", "conv_sum", (g.groups * g.k * (entries + 1),), g.groups, g.k, entries, kp, parts, *columns, partial,
        for_w and for_w.out, for_b and for_b.out, *arguments, real=real, SUM=1, **extra,
    )  # fmt: skip


# -- the ops ----------------------------------------------------------------------------------------------------------
def conv(
    x: Array,
    w: Array,
    b: Array | None,
    window: Window,
    groups: int = 1,
    activation: str = "linear",
    keep: bool = True,
) -> tuple[Array, Backward]:
    """y[n, k, o] = f(b[k] + sum over c and i of w[k, c, i] x[n, c, o stride + i dilation - before]).

    x (batch, groups C, *space), w (groups K, C, *size), b (groups K,) -> y (batch, groups K, *out); the cross-correlation
    that the field calls convolution (LeCun et al. 1998). With `keep` the input of an activation whose derivative needs it
    is kept.
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
    saved = _activated(y, activation, keep)
    apply(
        device, n, g, x.block, w.block, y.block, dtype=dtype, bias=block_of(b), activation=activation,
        saved=block_of(saved),
    )  # fmt: skip

    def backward(dz):
        def write_dx(sink: Sink):
            name, before = sink.times or ("linear", None)
            apply(
                device, n, turned(g), dz.block, w.block, sink.out, dtype=dtype, flip=True, activation=name,
                saved=block_of(before), times=before is not None, scale=sink.scale,
            )  # fmt: skip

        def write_dw_db(for_w: Sink | None, for_b: Sink | None = None):
            weight_gradients(device, n, g, x.block, dz.block, for_w, for_b, dtype=dtype)

        yield x, write_dx  # before dw: a sink may be the weights themselves
        yield (w, write_dw_db) if b is None else (w, b, write_dw_db)

    return y, backward


def _activated(y: Array, activation: str, keep: bool) -> Array | None:
    """Note the activation on y; the array that keeps what comes before it, where its derivative needs that."""
    y.made_by = activation
    if activation == "linear":
        return None
    on_input = ACTIVATIONS[activation].saves == "x"
    saved = empty(y.device, y.shape, y.dtype) if on_input and keep else None
    y.activation = (activation, y.alias() if saved is None else saved) if keep or not on_input else None
    return saved


def conv_transpose(
    x: Array,
    w: Array,
    b: Array | None,
    window: Window,
    groups: int = 1,
    activation: str = "linear",
    keep: bool = True,
) -> tuple[Array, Backward]:
    """The transpose of a convolution as a linear map (Zeiler et al. 2010): what takes its gradient by inputs.

    y[n, c, o stride + i dilation - before] += w[k, c, i] x[n, k, o], then + b[c] and f. `window` is the convolution's:
    x (batch, groups K, *window.out), w (groups K, C, *size), b (groups C,) -> y (batch, groups C, *window.space).
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
    saved = _activated(y, activation, keep)
    apply(
        device, n, turned(g), x.block, w.block, y.block, dtype=dtype, flip=True, bias=block_of(b), activation=activation,
        saved=block_of(saved),
    )  # fmt: skip

    def backward(dz):
        def write_dx(sink: Sink):
            name, before = sink.times or ("linear", None)
            apply(
                device, n, g, dz.block, w.block, sink.out, dtype=dtype, activation=name,
                saved=block_of(before), times=before is not None, scale=sink.scale,
            )  # fmt: skip

        def write_dw(for_w: Sink):
            weight_gradients(device, n, g, dz.block, x.block, for_w, None, dtype=dtype)

        yield x, write_dx  # before dw: a sink may be the weights themselves
        yield w, write_dw
        if b is not None:
            yield b, sum_to(dz, (groups * c, *(1 for _ in window.space))).reshaped(b.shape)

    return y, backward
