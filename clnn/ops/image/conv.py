"""Convolution and its transpose over 1 to 3 spatial axes: kernels/conv*.cl and winograd*.cl, launched as conv_plan.py says.

Arrays are (batch, channels, *space), weights (channels out, channels in / groups, *size).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from ...errors import DeviceError, ShapeError
from ...gemm import Product, Scale, Shape, epilogue_defines, tile
from ...runtime.device import Device, DType, ceil_div
from ...runtime.memory import Block
from ..activation import end_with
from ..array import Array, Backward, Flow, Sink, block_of, check_float, empty
from ..elementwise import scale_add
from ..reduce import sum_to
from ..trace import op
from .conv_plan import SIDE, Plan, by_lanes, limits, plan_for, run_of, tiles_of, winograd_sizes
from .geometry import Geometry, flipped, geometry
from .window import Window, channels_last

EACH = 4  # results of a work-item of conv_local along each side of its tile, as in kernels/conv.cl
LONGEST = 1024  # sums of blocks of positions that are added in a row (long sums: kernels/common.cl)
PARTS = 2  # parts of the batch for each core, in gradients by weights


SQUARE = 16  # elements of a tile that winograd_gpu has transformed, 4 x 4
MANY = 1 << 18  # weights, from which on their gradients' channels are divided among work-items, too


# -- launches ---------------------------------------------------------------------------------------------------------
class Call(NamedTuple):
    """A convolution's operands: n images x, of the geometry g, and weights w. In its gradients dy stands for one of the two: for
    x in that by inputs, for w in that by weights."""

    device: Device
    dtype: DType
    n: int
    g: Geometry
    x: Block
    w: Block

    @property
    def real(self) -> str:
        return self.device.real(self.dtype)

    def bytes(self, elements: int) -> int:
        return elements * np.dtype(self.dtype).itemsize


class Epilogue(NamedTuple):
    """What becomes of sums, as kernels/conv.cl says. With `derivative` they are multiplied by f' at `saved`; else the value
    before f is written there."""

    bias: Block | None = None
    activation: str = "linear"
    saved: Block | None = None
    derivative: bool = False
    scale: Scale | None = None
    factor: Block | None = None

    def defines(self) -> dict[str, Any]:
        found = epilogue_defines(self.activation, self.scale, self.saved, self.derivative, self.bias)
        return found if self.factor is None else found | {"FACTOR": 1}

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
    if side < 4 and device.platform == "rusticl":  # values lose stores to local memory there, with Mesa 25's llvmpipe
        raise DeviceError(
            f"{device!r} computes convolutions wrongly in groups of fewer than 16 work-items, and has groups of "
            f"{device.max_group}: use another driver or device"
        )
    return side


def _turns(side: int) -> int:
    """Turns of conv_local's loops, at most, for each of the elements that a sum has: it copies the more, the smaller groups
    are."""
    return 2 if side > 2 else 5


def convolve(call: Call, y: Block, epilogue: Epilogue, flip: bool = False) -> None:
    """y = epilogue(x * w); with `flip` the gradient by inputs of that convolution, whose dy is x."""
    device, dtype, n, g, x, w = call
    if n == 0:
        return
    g, flops, real = flipped(g) if flip else g, g.flops(n), call.real
    extra: dict[str, Any] = {"FLIP": 1} if flip else {}
    plan = plan_for(device, g, dtype, n)
    if plan.kernel == "local":
        extra |= epilogue.defines() | ({"UP": 1} if g.up != (1, 1, 1) else {})
        side = _side(device, real, **extra)
        device.check_turns(_turns(side) * g.c * g.taps, f"a convolution of {g.c:,} channels by {g.taps:,} taps")
        tiles = ceil_div(n * math.prod(g.out), EACH * side) * ceil_div(g.k, EACH * side) * g.groups
        p, q = g.vectors(0, 0, 0, 0, 0, epilogue.column, g.c * g.taps)
        device.launch(
            "conv_local", "conv_local", (tiles * side * side,), p, q, n, x, w, *epilogue.arguments(y),
            local=(side * side,), real=real, flops=flops, SIDE=side, **extra,
        )  # fmt: skip
        return
    if plan.kernel == "winograd":
        _by_winograd(call._replace(g=g), plan, y, epilogue, extra, flops)
        return
    if plan.kernel == "winograd_gpu":
        _by_winograd_gpu(call._replace(g=g), plan, y, epilogue, extra)
        return
    limit = limits(device, dtype)
    vw, columns, scatter = limit.vw, plan.kernel == "columns", plan.kernel == "scatter"
    width = plan.v * vw if columns else plan.r  # output channels whose weights are stored together
    blocks = ceil_div(g.k, width)
    packed = device.packed(
        call.bytes(g.groups * blocks * width * g.c * g.taps), "conv", "conv_pack", (g.groups * blocks * g.c,),
        g.groups, g.c, g.k, g.taps, w,
        local=_one(device), real=real, PACK=1, KR=width, **extra, **({"TAPS_FIRST": 1} if scatter else {}),
    )  # fmt: skip
    items = n * g.groups * g.out[0] * (1 if scatter else ceil_div(g.out[1], plan.rb) * ceil_div(g.out[2], plan.cb))
    parts = min(blocks, ceil_div(2 * device.compute_units, items)) if items < 2 * device.compute_units else 1
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


def _by_winograd(call: Call, plan: Plan, y: Block, epilogue: Epilogue, flip: dict[str, Any], flops: int) -> None:
    device, dtype, n, g, x, w = call
    real, vw, a = call.real, device.vector_width(dtype), plan.rb + 2
    strips = ceil_div(g.k, plan.v * vw)
    u = device.packed(
        call.bytes(g.groups * strips * plan.v * vw * g.c * a * a), "winograd", "winograd_weights",
        (g.groups * strips * g.c,), g.groups, g.c, g.k, w,
        local=_one(device), real=real, VW=vw, NV=plan.v, M=plan.rb, PACK=1, **flip,
    )  # fmt: skip
    items = ceil_div(n * tiles_of(g, plan.rb), plan.cb) * g.groups
    parts = min(strips, ceil_div(2 * device.compute_units, items))
    kept, slab = winograd_sizes(g, vw, plan.rb, plan.v, plan.cb)
    p, q = g.vectors(0, 0, 0, parts, 0, epilogue.column)
    device.launch(
        "winograd", "winograd", (items * parts,), p, q, n, x, u, *epilogue.arguments(y), local=(1,), real=real, flops=flops,
        VW=vw, NV=plan.v, M=plan.rb, MR=plan.r, TILES=plan.cb, V_SIZE=kept, SLAB=slab, FORWARD=1, **epilogue.defines(),
    )  # fmt: skip


def weight_gradients(call: Call, for_w: Sink | None, for_b: Sink | None) -> None:
    """The gradients by weights and bias, into their sinks."""
    device, dtype, n, g, x, dy = call
    real, entries = call.real, g.c * g.taps
    extra: dict[str, Any] = {}
    plan = plan_for(device, g, dtype, n, weights=True)
    if plan.kernel in ("winograd", "winograd_gpu"):
        by = _gradients_by_winograd if plan.kernel == "winograd" else _gradients_by_winograd_gpu
        by(call, plan, for_w, for_b)
        return
    if plan.kernel == "local":
        side = _side(device, real, WEIGHTS=1)
        kp, positions, wide = g.k, n * math.prod(g.out), EACH * side
        tiles = ceil_div(entries + 1, wide) * ceil_div(g.k, wide) * g.groups
        parts = max(1, min(ceil_div(8 * device.compute_units, tiles), positions // 256), positions // LONGEST**2)
        if device.most_turns:  # a part is a loop of conv_local, and a loop of conv_sum goes over parts
            parts = max(ceil_div(_turns(side) * positions, device.most_turns), min(parts, device.most_turns // 2), 1)
            device.check_turns(2 * parts, f"the gradient of {g.k:,} filters by {positions:,} positions")
        depth = max(1, ceil_div(ceil_div(positions, parts), 16) * 16)
        parts = max(1, ceil_div(positions, depth))
        partial = device.allocate(call.bytes(parts * g.groups * (entries + 1) * kp))
        p, q = g.vectors(0, 0, 0, 0, 0, 0, depth)
        device.launch(
            "conv_local", "conv_local", (parts * tiles * side * side,), p, q, n, x, dy, None, None, partial, None, None, None,
            local=(side * side,), real=real, flops=g.flops(n), SIDE=side, WEIGHTS=1,
        )  # fmt: skip
    else:
        lanes, limit = by_lanes(g), limits(device, dtype)
        vw = limit.vw
        kp = 1 if lanes else ceil_div(g.k, plan.v * vw) * plan.v * vw
        wanted = PARTS * device.compute_units
        splits = min(g.c, ceil_div(wanted, g.groups)) if entries * g.k > MANY or n == 1 else 1
        blocks = g.out[0] * ceil_div(g.out[1], plan.rb) * ceil_div(g.out[2], plan.cb)  # of an image
        parts = max(_batch_parts(device, n, g.groups * splits), min(n, ceil_div(n * blocks, LONGEST)))
        partial = device.allocate(call.bytes(parts * g.groups * (entries + 1) * (g.k if lanes else kp)))
        p, q = g.vectors(0, plan.rb, plan.cb, parts, plan.chunk, splits)
        extra, run = {"VW": vw}, run_of(g)
        tile = {} if lanes else {"NV": plan.v, "RUN": run, "DX": g.dilation[2] if run > 1 else 1}
        device.launch(
            f"conv_{plan.kernel}", f"conv_{plan.kernel}", (parts * g.groups * splits,), p, q, n, x, dy, partial,
            local=(1,), real=real, flops=g.flops(n), SLAB=limit.slab + 9 * vw, OUT=limit.kept + vw,
            MOST_TAPS=_most_taps(g), VW=vw, MR=plan.r, **tile,
        )  # fmt: skip
        if lanes:
            extra["LANES"] = 1
    columns, sinks = _sinks(for_w, for_b)
    items = (entries + 1) * g.k if plan.kernel == "local" else ceil_div(entries + 1, 16)
    device.launch(
        "conv", "conv_sum", (g.groups * items,), g.groups, g.k, entries, kp, parts, *columns, partial,
        *sinks, local=_one(device), real=real, SUM=1, **extra,
    )  # fmt: skip


def _batch_parts(device: Device, n: int, items: int) -> int:
    """In how many parts the batch goes, each `items` work-items: enough that no core waits long for the last one."""
    units = device.compute_units
    choices = {max(1, min(n, ceil_div(times * units, items))) for times in (1, PARTS)}
    return min(choices, key=lambda parts: (ceil_div(parts * items, units) * ceil_div(n, parts), -parts))


def _sinks(for_w: Sink | None, for_b: Sink | None) -> tuple[list[int], list[Any]]:
    """What the kernels that end a gradient by weights take for their sinks: columns, -1 without one, then where results go
    and where the scales are."""
    both = (for_w, for_b)
    columns = [sink.scale.column if sink is not None and sink.scale else -1 for sink in both]
    places: list[Any] = [sink and sink.out for sink in both]
    for sink in both:
        places += [sink.scale.table, sink.scale.at] if sink is not None and sink.scale else [None, None]
    return columns, places


def _gradients_by_winograd(call: Call, plan: Plan, for_w: Sink | None, for_b: Sink | None) -> None:
    device, dtype, n, g, x, dy = call
    real, vw, a = call.real, device.vector_width(dtype), plan.rb + 2
    width = plan.v * vw
    kp, cr = ceil_div(g.k, width) * width, ceil_div(g.c, plan.r) * plan.r
    blocks = ceil_div(n * tiles_of(g, plan.rb), plan.cb)
    parts = max(1, min(blocks, ceil_div(PARTS * device.compute_units, g.groups)), ceil_div(blocks, LONGEST))
    partial = device.allocate(call.bytes(parts * g.groups * (a * a * cr + 1) * kp))
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


# -- Winograd's algorithm on GPUs -------------------------------------------------------------------------------------
def _launch(call: Call, name: str, size: tuple[int, int], *args: Any, **defines: Any) -> None:
    """A kernel of winograd_gpu.cl, which is built for it alone."""
    defines[name.removeprefix("winograd_").upper()] = 1
    call.device.launch("winograd_gpu", name, size, *args, real=call.real, **defines)


def _pieces(call: Call, plan: Plan) -> list[tuple[int, int]]:
    """The tiles that are done at once: the first of them, and how many. Pieces are of about the same size, the largest first."""
    every = call.n * tiles_of(call.g, plan.rb)
    each = ceil_div(every, ceil_div(every, plan.chunk))
    return [(first, min(each, every - first)) for first in range(0, every, each)]


def _transformed(call: Call, channels: int, elements: int) -> Block:
    """Room for so many elements of each channel, of tiles or of weights, in all groups."""
    return call.device.allocate(call.bytes(SQUARE * call.g.groups * channels * elements))


def _multiply(call: Call, plan: Plan, shape: Shape, a: Block, b: Block, c: Block, scale: Scale | None = None) -> None:
    """The products of transformed arrays, one for each group and element of a tile."""
    m, n, k, *_ = shape
    by = next(one for one in tile.local_tiles(call.device, call.dtype) if one[:2] == plan[1:3])
    batch, steps = SQUARE * call.g.groups, (m * k, k * n, m * n)
    tile.run(call.device, Product(shape, a, b, c, batch=batch, steps=steps, scale=scale), by)


def _by_winograd_gpu(call: Call, plan: Plan, y: Block, epilogue: Epilogue, flip: dict[str, Any]) -> None:
    device, dtype, _, g, x, w = call
    u = device.packed(
        call.bytes(SQUARE * g.groups * g.c * g.k), "winograd_gpu", "winograd_weights", (g.k, g.groups * g.c),
        g.groups, g.c, g.k, w, real=call.real, WEIGHTS=1, **flip,
    )  # fmt: skip
    pieces = _pieces(call, plan)
    v, m = (_transformed(call, channels, pieces[0][1]) for channels in (g.c, g.k))
    for first, count in pieces:
        p, q = g.vectors(first, count, 0, 0, 0, epilogue.column)
        _launch(call, "winograd_inputs", (count, g.groups * g.c), p, q, x, v)
        _multiply(call, plan, Shape(g.k, count, g.c, dtype, transpose_a=True), u, v, m)
        _launch(
            call, "winograd_outputs", (count, g.groups * g.k), p, q, m, *epilogue.arguments(y), **epilogue.defines()
        )


def _gradients_by_winograd_gpu(call: Call, plan: Plan, for_w: Sink | None, for_b: Sink | None) -> None:
    device, dtype, n, g, x, dy = call
    if for_w is not None and for_w.scale is not None:
        pieces = _pieces(call, plan)
        v, d = (_transformed(call, channels, pieces[0][1]) for channels in (g.c, g.k))
        e = _transformed(call, g.c, g.k)
        for first, count in pieces:
            p, q = g.vectors(first, count)
            _launch(call, "winograd_inputs", (count, g.groups * g.c), p, q, x, v)
            _launch(call, "winograd_from_dy", (count, g.groups * g.k), p, q, dy, d)
            scale = Scale.constant(device, dtype, 1, first > 0)
            _multiply(call, plan, Shape(g.k, g.c, count, dtype, transpose_b=True), d, v, e, scale=scale)
        table, at, column, _ = for_w.scale
        _launch(call, "winograd_to_dw", (g.c, g.groups * g.k), g.groups, g.c, g.k, column, e, for_w.out, table, at)
    if for_b is not None and for_b.scale is not None:
        every = Array(dy, (n, g.groups * g.k, math.prod(g.out)), dtype, device)
        scale_add(sum_to(every, (1, g.groups * g.k, 1)), for_b.out, for_b.scale)


# -- the ops ----------------------------------------------------------------------------------------------------------
@op
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
    that the field calls convolution (LeCun et al. 1998). With `keep` the derivative of an activation is kept, where y
    does not tell it. At inference the sum may be multiplied by `factor` (groups K,): a batch normalisation that is folded in.
    """
    return _convolution("convolution", x, w, b, window, groups, activation, keep, factor, transposed=False)


def _into(sink: Sink) -> Epilogue:
    """The epilogue of a gradient by inputs."""
    name, before = sink.derivative or ("linear", None)
    return Epilogue(None, name, block_of(before), before is not None, sink.scale)


@op
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
    return _convolution("transposed convolution", x, w, b, window, groups, activation, keep, factor, transposed=True)


def _convolution(
    what: str,
    x: Array,
    w: Array,
    b: Array | None,
    window: Window,
    groups: int,
    activation: str,
    keep: bool,
    factor: Array | None,
    transposed: bool,
) -> tuple[Array, Backward]:
    """Both: of a transposed one the forward pass is the other's gradient by inputs, and the reverse."""
    check_float(what, x, w, b)
    if 0 in x.shape[2:]:
        raise ShapeError(f"{what} over no elements: the input's shape is {x.shape}")
    n, k, c = x.shape[0], w.shape[0] // groups, w.shape[1]
    channels, made = (w.shape[0], groups * c) if transposed else (groups * c, w.shape[0])
    if x.shape[1] != channels or w.shape[0] % groups or w.shape[2:] != window.size:
        raise ShapeError(
            f"an input of shape {x.shape} does not fit weights of shape {w.shape} in {groups} groups: it needs "
            + (
                f"{channels} channels, divisible by the groups"
                if transposed
                else f"{groups} * {c} = {channels} channels, and the weights' channels must be divisible by the groups"
            )
            + channels_last(x.shape[1:])
        )
    y = empty(x.device, (n, made, *(window.space if transposed else window.out)), x.dtype)
    saved = end_with(y, activation, keep)
    of = partial(Call, x.device, x.dtype, n, geometry(window, groups, c, k))
    end = Epilogue(block_of(b), activation, block_of(saved), factor=block_of(factor))
    convolve(of(x.block, w.block), y.block, end, flip=transposed)

    def backward(dz: Array) -> Iterator[Flow]:
        def write_dx(sink: Sink) -> None:
            convolve(of(dz.block, w.block), sink.out, _into(sink), flip=not transposed)

        def write_dw_db(for_w: Sink | None, for_b: Sink | None = None) -> None:
            images, dy = (dz, x) if transposed else (x, dz)
            weight_gradients(of(images.block, dy.block), for_w, for_b)

        yield x, write_dx  # before dw: a sink may be the weights themselves
        yield w, None if transposed else b, write_dw_db
        if b is not None and transposed:
            yield b, sum_to(dz, (made, *(1 for _ in window.space))).reshaped(b.shape)

    return y, backward
