"""Recurrent layers' op: all steps of a simple RNN, an LSTM or a GRU in one launch, and one back (kernels/recurrent.cl)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from ...errors import ShapeError
from ...gemm import Product, Shape, column_sums, gemm
from ...runtime.device import Device, DType, int_vector
from ...runtime.memory import Block
from ..activation import ACTIVATIONS
from ..array import Array, Backward, Flow, Sink, check_float, empty
from ..elementwise import TYPES
from ..trace import op

GATES = {"RNN": 1, "LSTM": 4, "GRU": 3}
STATES = {"RNN": 1, "LSTM": 2, "GRU": 1}


class Cell(NamedTuple):
    """What a step does, and what of all steps is the result.

    `kind` is a key of GATES. `backwards` reads the last step first; then `aligned` says that a sequence comes out in the order of
    time, and not in that of reading. `sequence`: h of each step is in the result; `state`: h, and an LSTM's c, after all steps.
    """

    kind: str
    activation: str = "tanh"
    recurrent_activation: str = "sigmoid"
    backwards: bool = False
    aligned: bool = False
    sequence: bool = False
    state: bool = False

    @property
    def rows(self) -> int:
        """How many rows of the result are no sequence's."""
        return STATES[self.kind] if self.state else 0 if self.sequence else 1


class _Tiles(NamedTuple):
    """How a launch goes over the batch: rows of a group, groups, work-items of one, and the defines."""

    each: int
    groups: int
    width: int
    defines: dict[str, Any]

    @property
    def size(self) -> tuple[int, ...]:
        return (self.groups * self.width,)

    def strips(self, units: int, gates: int) -> int:
        """How many strips a packed matrix has, of `gates` columns for a unit."""
        columns: int = self.defines.get("VW", 1) * self.defines["NV"]
        return -(-units * gates // columns)


def _vectors(blocks: int, most: int) -> int:
    """Vectors of a strip: as many as registers hold, where that leaves the last strip full enough."""
    return min(range(1, most + 1), key=lambda nv: (-(-blocks // nv) * nv * (1 + 0.5 / nv), -nv))


def _tiles(device: Device, dtype: DType, gates: int, batch: int, units: int) -> _Tiles:
    """The tiles of a product that makes `gates` numbers of a unit. The defines do not depend on the batch."""
    if device.long_loops:
        lanes = device.vector_width(dtype)
        blocks = -(-units // lanes)
        nb = _vectors(blocks, 4) if gates == 1 else 1
        mr = {1: 8, 2: 8, 3: 5, 4: 4}[nb * gates] if device.registers == 32 else {1: 6, 2: 4, 3: 3, 4: 2}[nb * gates]
        each = -(-max(1, -(-batch // device.compute_units)) // mr) * mr
        return _Tiles(each, -(-batch // each), 1, {"VW": lanes, "MR": mr, "NV": nb * gates})
    mr, width = 2, min(device.group_width, 1 << (units - 1).bit_length())
    return _Tiles(mr, -(-batch // mr), width, {"MR": mr, "NV": gates})


def _turns(strips: int, depth: int, width: int) -> int:
    """No less than the turns that loops of a product take in a work-item of a group of `width`: for each strip over `depth`, to
    copy to local memory, and some 20 in short ones, of which a driver may count the ends, too."""
    return -(-strips // width) * (depth + depth // 32 + 2 * -(-depth // width) + 24)


def _pack(device: Device, u: Array, tiles: _Tiles, back: bool) -> Block:
    """U as the product of a launch reads it."""
    units, columns = u.shape
    depth, gates = (columns, 1) if back else (units, columns // units)
    strips = tiles.strips(units, gates)
    nbytes = strips * depth * tiles.defines["NV"] * tiles.defines.get("VW", 1) * u.dtype.itemsize
    how: dict[str, Any] = {"PACK": 1, **({"BACK": 1} if back else {"PG": gates})}
    return device.packed(
        nbytes, "recurrent", "recurrent_pack", (strips * depth,), units, depth, strips, u.block,
        real=u.real, **tiles.defines, **how,
    )  # fmt: skip


@op
def recurrent(
    z: Array,
    u: Array,
    bias: Array | None = None,
    states: tuple[Array, ...] = (),
    mask: Array | None = None,
    drop: Array | None = None,
    u_h: Array | None = None,
    *,
    cell: Cell,
    keep: bool = True,
) -> tuple[Array, Backward]:
    """h of every step, or after all of them, as y (batch, rows, units): the sequence's rows if it is asked for, then h and c.

    z (batch, steps, G units) is what inputs add to the G gates, and its memory is used up; u is (units, G units), `bias`
    (G units,) the recurrent product's, and `states`, each (batch, units), what enters the first step (without them, zeros).
    RNN: h' = f(z + h u + b). LSTM, gates i, f, c, o: c' = s(i) f(c) + s(f) c, h' = s(o) f(c') (Hochreiter and Schmidhuber 1997;
    Gers et al. 2000). GRU, gates z, r, h, the reset gate after the product: h' = s(z) h + (1 - s(z)) f(x + s(r) (h u + b)) (Cho
    et al. 2014); with `u_h` (units, units) before it: u is (units, 2 units), of z and r, and h' = s(z) h + (1 - s(z)) f(x +
    (s(r) h) u_h). Where `mask` (batch, steps) is 0 states stay as they are. `drop` (batch, units) multiplies h in all products.
    ShapeError for no steps, and for states or a mask of another shape.
    """
    what = {"RNN": "SimpleRNN"}.get(cell.kind, cell.kind)
    check_float(what, z, u, bias, *states, drop, u_h)
    batch, steps, columns = z.shape
    units, device, dtype = u.shape[0], z.device, z.dtype
    if steps == 0:
        raise ShapeError("sequences of no steps; an input is (batch, steps, features), with a step or more")
    for name, state in zip(("h", "c"), states):
        if state.shape != (batch, units):
            told = f"a state {name} of shape {state.shape} does not fit; it is (batch, units), {(batch, units)} here"
            raise ShapeError(told)
    if mask is not None and mask.shape != (batch, steps):
        raise ShapeError(f"a mask of shape {mask.shape} does not fit; it is (batch, steps), {(batch, steps)} here")
    rows, depth = (steps if cell.sequence else 0) + cell.rows, steps if keep else min(steps, 2)
    y = empty(device, (batch, rows, units), dtype)
    lstm = cell.kind == "LSTM"
    hs = empty(device, (batch, depth, units), dtype)
    ha = hs if drop is None else empty(device, (batch, depth, units), dtype)
    cs = empty(device, (batch, depth, units), dtype) if lstm else None
    ends = empty(device, (batch, steps, units), dtype) if keep and lstm else None
    before = u_h is not None  # a GRU resets h before the product
    rec = empty(device, (batch, steps, units) if before else z.shape, dtype) if keep and cell.kind == "GRU" else z
    reset = empty(device, hs.shape, dtype) if before else hs
    common: dict[str, Any] = {} if cell.kind == "RNN" else {cell.kind: 1}
    if before:
        common["BEFORE"] = 1
    for key, name in (("ACT", cell.activation), ("RACT", cell.recurrent_activation)):
        common[key] = name
        if ACTIVATIONS[name].saves == "x":
            common[f"{key}_X"] = 1
    if mask is not None and mask.dtype != dtype:
        common["MASK"] = TYPES[mask.dtype]
    with_each = (bias is not None, bool(states), mask is not None, drop is not None, keep)
    flags = sum(there << bit for bit, there in enumerate(with_each))

    def launch(kernel: str, back: bool, *arguments: Any, **how: Any) -> None:
        tiles = _tiles(device, dtype, 1 if back else u.shape[1] // units, batch, units)
        how |= common | tiles.defines
        matrices = [u] if u_h is None else [u_h, u]
        most = steps  # that a launch may take
        strips = [tiles.strips(units, 1 if back else one.shape[1] // units) for one in matrices]
        if not device.long_loops:
            width = device.fitting(tiles.width, "recurrent", kernel, device.real(dtype), **how)
            tiles = tiles._replace(width=width)
            how["WIDTH"] = width
            depths = [one.shape[1] if back else units for one in matrices]
            turns = 2 * -(-units // width) + 16 + sum(_turns(n, k, width) for n, k in zip(strips, depths))
            most = device.check_turns(turns, f"a step of {what} of {units:,} units") or steps
        packed = [_pack(device, one, tiles, back) for one in matrices]
        h_at = -1 if cell.rows == 0 else rows - cell.rows
        sizes = [
            batch, steps, units, tiles.each, rows, 0 if cell.sequence else -1, h_at, cell.state and lstm, depth,
            cell.backwards, cell.aligned, strips[0], flags, strips[-1],
        ]  # fmt: skip
        begins = range(0, steps, most)
        for begin in reversed(begins) if back else begins:
            until = min(steps, begin + most)
            device.launch(
                "recurrent", kernel, tiles.size, int_vector([*sizes, begin, until]), z.block, packed[0], *arguments, packed[-1],
                local=(tiles.width,), real=z.real, flops=2 * batch * (until - begin) * units * columns, **how,
            )  # fmt: skip

    def block(x: Array | None) -> Block:
        return z.block if x is None else x.block

    h0, c0 = (*states, None, None)[:2]
    launch(
        "recurrent_forward", False, block(bias), block(h0), block(c0), block(mask), block(drop), y.block, hs.block, ha.block,
        block(cs), block(ends), rec.block, reset.block, FORWARD=1,
    )  # fmt: skip

    def backward(dy: Array) -> Iterator[Flow]:
        dh = empty(device, (batch, units), dtype)
        dc = empty(device, (batch, units), dtype) if lstm else None
        launch(
            "recurrent_backward", True, block(mask), block(drop), dy.block, hs.block, block(cs), block(ends), rec.block, dh.block,
            block(dc),
            BACKWARD=1,
        )  # fmt: skip

        def write(for_u: Sink | None, for_bias: Sink | None = None) -> None:
            sums = None
            if for_bias:
                assert for_bias.scale is not None
                sums = for_bias.out, for_bias.scale
            if for_u:
                shape = Shape(units, u.shape[1], batch * steps, dtype, transpose_a=True)
                a, b = ha.block, z.block if before else rec.block
                gemm(device, Product(shape, a, b, for_u.out, ldb=columns, scale=for_u.scale, sums=sums))
            elif sums:
                column_sums(device, columns, batch * steps, rec.block, sums, dtype)

        def write_h(for_h: Sink | None) -> None:
            if for_h:
                shape = Shape(units, units, batch * steps, dtype, transpose_a=True)
                gemm(device, Product(shape, reset.block, rec.block, for_h.out, scale=for_h.scale))

        if u_h is not None:
            yield u_h, write_h
        yield z, z.alias()
        yield u, bias, write
        for state, gradient in zip(states, (dh, dc)):
            assert gradient is not None
            yield state, gradient

    return y, backward
