"""Convolution and its transpose over 1 to 3 spatial axes: kernels/conv.cl and winograd.cl, launched as conv_plan.py says.

Arrays are (batch, channels, *space), weights (channels out, channels in / groups, *size).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from ...errors import ShapeError
from ...gemm import Scale
from ...runtime.device import Device, DType
from ...runtime.memory import Block
from ..activation import fused
from ..array import Array, Backward, Flow, Sink, block_of, check_float, check_together, empty
from ..reduce import sum_to
from .conv_plan import (
    SIDE,
    Geometry,
    Plan,
    by_lanes,
    geometry,
    limits,
    plan_for,
    run_of,
    tiles_of,
    turned,
    up,
    winograd_sizes,
)
from .window import Window

EACH = 4  # results of a work-item of conv_local along each side of its tile, as in kernels/conv.cl
LONGEST = 1024  # sums of blocks of positions that are added in a row (long sums: kernels/common.cl)
PARTS = 2  # parts of the batch for each core, in gradients by weights


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


def _one(device: Device) -> tuple[int] | None:
    """Work-items of a group where few items do much each: one on a CPU, so that all cores get some."""
    return (1,) if device.long_loops else None


def _side(device: Device, real: str, **defines: Any) -> int:
    """Work-items along a side of conv_local's groups, a power of 2: what the device takes, and the kernel as compiled."""
    side = SIDE
    while side * side > device.max_group:
        side //= 2
    while side > 1 and side * side > device.group_limit("conv_local", "conv_local", real, SIDE=side, **defines):
        side //= 2
    return side


def _turns(side: int) -> int:
    """Turns of conv_local's loops, at most, for each of the elements that a sum has: it copies the more, the smaller groups
    are."""
    return 2 if side > 2 else 5


def apply(
    device: Device,
    n: int,
    g: Geometry,
    x: Block,
    w: Block,
    y: Block,
    dtype: DType,
    epilogue: Epilogue,
    flip: bool = False,
) -> None:
    """y = epilogue(x * w) for n images; with `flip` the gradient by inputs of that convolution, whose dy is x."""
    if n == 0:
        return
    g, flops = turned(g) if flip else g, g.flops(n)
    real, size = device.real(dtype), np.dtype(dtype).itemsize
    extra: dict[str, Any] = {"FLIP": 1} if flip else {}
    plan = plan_for(device, g, dtype)
    if plan is None:
        extra |= epilogue.defines()
        side = _side(device, real, **extra)
        device.check_turns(_turns(side) * g.c * g.taps, f"a convolution of {g.c:,} channels by {g.taps:,} taps")
        tiles = up(n * math.prod(g.out), EACH * side) * up(g.k, EACH * side) * g.groups
        p, q = g.vectors(0, 0, 0, 0, 0, epilogue.column, g.c * g.taps)
        device.launch(
            "conv_local", "conv_local", (tiles * side * side,), p, q, n, x, w, *epilogue.arguments(y),
            local=(side * side,), real=real, flops=flops, SIDE=side, **extra,
        )  # fmt: skip
        return
    if plan.kernel == "winograd":
        _by_winograd(device, n, g, plan, x, w, y, dtype, epilogue, extra, flops)
        return
    limit = limits(device, dtype)
    vw, columns, scatter = limit.vw, plan.kernel == "columns", plan.kernel == "scatter"
    width = plan.v * vw if columns else plan.r  # output channels whose weights lie together
    blocks = up(g.k, width)
    packed = device.allocate(g.groups * blocks * width * g.c * g.taps * size)
    device.launch(
        "conv", "conv_pack", (g.groups * blocks * g.c,), g.groups, g.c, g.k, g.taps, w, packed,
        local=_one(device), real=real, PACK=1, KR=width, **extra, **({"TAPS_FIRST": 1} if scatter else {}),
    )  # fmt: skip
    items = n * g.groups * g.out[0] * (1 if scatter else up(g.out[1], plan.rb) * up(g.out[2], plan.cb))
    parts = min(blocks, up(2 * device.compute_units, items)) if items < 2 * device.compute_units else 1
    p, q = g.vectors(0, plan.rb, plan.cb, parts, plan.chunk, epilogue.column)
    kernel: dict[str, Any] = (
        {"MR": plan.r, "NV": plan.v, "STEP": g.stride[2], "OUT": limit.narrow}
        if columns
        else {"KR": plan.r, "PV": plan.v, "OUT": limit.scattered if scatter else limit.out}
    )
    device.launch(
        f"conv_{plan.kernel}", f"conv_{plan.kernel}", (items * parts,), p, q, n, x, packed, *epilogue.arguments(y),
        local=(1,), real=real, flops=flops, VW=vw, SLAB=limit.slab + 9 * vw, MOST_TAPS=_most_taps(g), **kernel,
        **epilogue.defines(),
    )  # fmt: skip


def _by_winograd(
    device: Device,
    n: int,
    g: Geometry,
    plan: Plan,
    x: Block,
    w: Block,
    y: Block,
    dtype: DType,
    epilogue: Epilogue,
    flip: Any,
    flops: int,
) -> None:
    real, vw, a = device.real(dtype), device.vector_width(dtype), plan.rb + 2
    strips = up(g.k, plan.v * vw)
    u = device.allocate(g.groups * strips * plan.v * vw * g.c * a * a * np.dtype(dtype).itemsize)
    device.launch(
        "winograd", "winograd_weights", (g.groups * strips * g.c,), g.groups, g.c, g.k, w, u,
        local=_one(device), real=real, VW=vw, NV=plan.v, M=plan.rb, PACK=1, **flip,
    )  # fmt: skip
    items = up(n * tiles_of(g, plan.rb), plan.cb) * g.groups
    parts = min(strips, up(2 * device.compute_units, items))
    kept, slab = winograd_sizes(g, vw, plan.rb, plan.v, plan.cb)
    p, q = g.vectors(0, 0, 0, parts, 0, epilogue.column)
    device.launch(
        "winograd", "winograd", (items * parts,), p, q, n, x, u, *epilogue.arguments(y), local=(1,), real=real, flops=flops,
        VW=vw, NV=plan.v, M=plan.rb, MR=plan.r, TILES=plan.cb, V_SIZE=kept, SLAB=slab, FORWARD=1, **epilogue.defines(),
    )  # fmt: skip


def weight_gradients(
    device: Device, n: int, g: Geometry, x: Block, dy: Block, for_w: Sink | None, for_b: Sink | None, dtype: DType
) -> None:
    """The gradients by weights and bias, into their sinks."""
    real, size, entries = device.real(dtype), np.dtype(dtype).itemsize, g.c * g.taps
    extra: dict[str, Any] = {}
    plan = plan_for(device, g, dtype, weights=True)
    if plan is not None and plan.kernel == "winograd":
        _gradients_by_winograd(device, n, g, plan, x, dy, for_w, for_b, dtype)
        return
    if plan is None:
        side = _side(device, real, WEIGHTS=1)
        kp, positions, wide = g.k, n * math.prod(g.out), EACH * side
        tiles = up(entries + 1, wide) * up(g.k, wide) * g.groups
        parts = max(1, min(up(8 * device.compute_units, tiles), positions // 256), positions // LONGEST**2)
        if device.most_turns:  # a part is a loop of conv_local, and a loop of conv_sum goes over parts
            parts = max(up(_turns(side) * positions, device.most_turns), min(parts, device.most_turns // (20 * g.k)), 1)
            device.check_turns(20 * g.k * parts, f"the gradient of {g.k:,} filters by {positions:,} positions")
        depth = max(1, up(up(positions, parts), 16) * 16)
        parts = max(1, up(positions, depth))
        partial = device.allocate(parts * g.groups * (entries + 1) * kp * size)
        p, q = g.vectors(0, 0, 0, 0, 0, 0, depth)
        device.launch(
            "conv_local", "conv_local", (parts * tiles * side * side,), p, q, n, x, dy, None, None, partial, None, None, None,
            local=(side * side,), real=real, flops=g.flops(n), SIDE=side, WEIGHTS=1,
        )  # fmt: skip
    else:
        lanes, limit = by_lanes(g), limits(device, dtype)
        vw = limit.vw
        kp = 1 if lanes else up(g.k, plan.v * vw) * plan.v * vw
        wanted = PARTS * device.compute_units
        splits = min(g.c, up(wanted, g.groups)) if entries * g.k > 1 << 18 or n == 1 else 1
        blocks = g.out[0] * up(g.out[1], plan.rb) * up(g.out[2], plan.cb)  # of an image
        parts = max(_batch_parts(device, n, g.groups * splits), min(n, up(n * blocks, LONGEST)))
        partial = device.allocate(parts * g.groups * (entries + 1) * (g.k if lanes else kp) * size)
        p, q = g.vectors(0, plan.rb, plan.cb, parts, plan.chunk, splits)
        extra = {"VW": vw, "LANES": 1} if lanes else {"VW": vw}
        run = run_of(g)
        tile = (
            {"MR": plan.r} if lanes else {"MR": plan.r, "NV": plan.v, "RUN": run, "DX": g.dilation[2] if run > 1 else 1}
        )
        device.launch(
            f"conv_{plan.kernel}", f"conv_{plan.kernel}", (parts * g.groups * splits,), p, q, n, x, dy, partial,
            local=(1,), real=real, flops=g.flops(n), SLAB=limit.slab + 9 * vw, OUT=limit.kept + vw,
            MOST_TAPS=_most_taps(g), **tile, **extra,
        )  # fmt: skip
    columns, sinks = _sinks(for_w, for_b)
    device.launch(
        "conv", "conv_sum", (g.groups * up(entries + 1, 16),), g.groups, g.k, entries, kp, parts, *columns, partial,
        *sinks, local=_one(device), real=real, SUM=1, **extra,
    )  # fmt: skip


def _batch_parts(device: Device, n: int, items: int) -> int:
    """In how many parts the batch goes, each `items` work-items: enough that no core waits long for the last one."""
    units = device.compute_units
    choices = {max(1, min(n, up(times * units, items))) for times in (1, PARTS)}
    return min(choices, key=lambda parts: (up(parts * items, units) * up(n, parts), -parts))


def _sinks(for_w: Sink | None, for_b: Sink | None) -> tuple[list[int], list[Any]]:
    """What the kernels that end a gradient by weights take for their sinks: columns, -1 without one, then where results go
    and where the scales are."""
    both = (for_w, for_b)
    columns = [sink.scale.column if sink is not None and sink.scale else -1 for sink in both]
    places: list[Any] = [sink and sink.out for sink in both]
    for sink in both:
        places += [sink.scale.table, sink.scale.at] if sink is not None and sink.scale else [None, None]
    return columns, places


def _gradients_by_winograd(
    device: Device,
    n: int,
    g: Geometry,
    plan: Plan,
    x: Block,
    dy: Block,
    for_w: Sink | None,
    for_b: Sink | None,
    dtype: DType,
) -> None:
    real, vw, a, size = device.real(dtype), device.vector_width(dtype), plan.rb + 2, np.dtype(dtype).itemsize
    width = plan.v * vw
    kp, cr = up(g.k, width) * width, up(g.c, plan.r) * plan.r
    blocks = up(n * tiles_of(g, plan.rb), plan.cb)
    parts = max(1, min(blocks, up(PARTS * device.compute_units, g.groups)), up(blocks, LONGEST))
    partial = device.allocate(parts * g.groups * (a * a * cr + 1) * kp * size)
    kept, slab = winograd_sizes(g, vw, plan.rb, plan.v, plan.cb)
    p, q = g.vectors(0, 0, 0, parts)
    common: dict[str, Any] = {"real": real, "VW": vw, "NV": plan.v, "M": plan.rb, "MR": plan.r}
    device.launch(
        "winograd", "winograd_gradients", (parts * g.groups,), p, q, n, x, dy, partial, local=(1,), TILES=plan.cb,
        flops=g.flops(n), V_SIZE=kept, D_SIZE=a * a * (plan.cb * kp + vw), SLAB=slab, K_SIZE=kp, GRADIENTS=1, **common,
    )  # fmt: skip
    columns, sinks = _sinks(for_w, for_b)
    device.launch(
        "winograd", "winograd_sum", (g.groups * (g.c + 1),), g.groups, g.c, g.k, parts, *columns, partial, *sinks,
        local=_one(device), SUM=1, **common,
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

    def backward(dz: Array) -> Iterator[Flow]:
        def write_dx(sink: Sink) -> None:
            apply(device, n, g, dz.block, w.block, sink.out, dtype, _into(sink), flip=True)

        def write_dw_db(for_w: Sink | None, for_b: Sink | None = None) -> None:
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

    def backward(dz: Array) -> Iterator[Flow]:
        def write_dx(sink: Sink) -> None:
            apply(device, n, g, dz.block, w.block, sink.out, dtype, _into(sink))

        def write_dw(for_w: Sink) -> None:
            weight_gradients(device, n, g, dz.block, x.block, for_w, None, dtype)

        yield x, write_dx  # before dw: a sink may be the weights themselves
        yield w, write_dw
        if b is not None:
            yield b, sum_to(dz, (groups * c, *(1 for _ in window.space))).reshaped(b.shape)

    return y, backward
