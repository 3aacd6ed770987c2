"""Elements by their numbers: taking and scattering them with gradients, sorting, and running sums along an axis."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from ..checks import numbers, whole
from ..errors import OutOfRangeError, ShapeError
from ..gemm import Scale, constant_block
from ..runtime.device import Device, DType, int_vector
from ..runtime.lock import exclusive
from ..runtime.memory import Block
from .array import MASK, Array, Backward, Flow, Sink, check_float, check_together, empty, empty_like
from .elementwise import TYPES, binary, choose
from .reduce import lines
from .rows import divided
from .shape import one_for_each_axis, reshape, take_slice, transpose
from .trace import op

BLOCK = 16  # elements that one work-item sorts by insertion
NONE_MISSING = np.array([2**31 - 1, 0], np.int32)  # no number of a row named none


def _nowhere(x: Array) -> dict[str, Any]:
    """Defines: the type of x's elements, and what stands for one that x does not have."""
    return {"ELEMENT": TYPES[x.dtype], "NOWHERE": "INT_MIN" if x.dtype == np.int32 else "NAN"}


def _missing(device: Device) -> Block:
    """Two int32 that outlive every step: the first place of a number that names no row, and how many rows there are."""
    if "missing" not in device.constants:
        device.constants["missing"] = constant_block(device, NONE_MISSING)
    return device.constants["missing"]


@exclusive("lock")
def missing_rows(device: Device) -> tuple[int, int] | None:
    """The first place among numbers of rows where one named none, and how many rows there were, of all steps since this was last
    asked; None if there was no such number. Waits for the device if rows were taken there."""
    if not device.reads or "missing" not in device.constants:
        return None
    block = _missing(device)
    place, rows = map(int, device.read(block, np.empty(2, np.int32)))
    if place == NONE_MISSING[0]:
        return None
    device.upload(NONE_MISSING, block)
    return place, rows


def check_rows(device: Device) -> None:
    """OutOfRangeError where a recorded step was given a number of a row that is not there: it cannot say so itself."""
    if "missing" in device.constants and (found := missing_rows(device)) is not None:
        place, rows = found
        raise OutOfRangeError(
            f"a recorded step was given a number of a row, a token or a class that names none of {rows:,} rows, or a sequence's "
            f"length none of 0 to {rows - 1:,}: the first stands at place {place} of them, counted from 0 along all axes. "
            "What was computed from it is NaN (of whole numbers, the least), perhaps in weights too: go on from saved ones, and "
            "give the step numbers that are there"
        )


def _counted(from_end: bool) -> dict[str, Any]:
    """Defines: whether negative numbers of rows count from the end."""
    return {} if from_end else {"FROM_START": 1}


@op
def sort(x: Array, descending: bool = False, limit: int | None = None, from_end: bool = True) -> tuple[Array, Array]:
    """x (rows, n) sorted within rows, and where each element was, int32. Equals keep their order, and NaN is the largest.
    With a `limit`, x are numbers of rows, negative ones `from_end` if so; those of no row go last, as the largest int32."""
    device, (rows, n) = x.device, x.shape
    built: dict[str, Any] = {"KEY": TYPES[x.dtype], "real": x.real, **({"DESCENDING": 1} if descending else {})}
    numbers: dict[str, Any] = {} if limit is None else {"INDEX": 1, **_counted(from_end)}
    keys, at = empty_like(x), empty(device, x.shape, np.int32)
    blocks = rows * -(-n // BLOCK)
    device.launch(
        "index", "sort_blocks", (blocks,), rows, n, limit or 0, x.block, _missing(device), keys.block, at.block,
        BLOCK=BLOCK, **built, **numbers,
    )  # fmt: skip
    width = BLOCK
    while width < n:
        to_keys, to_at = empty_like(keys), empty_like(at)
        device.launch(
            "index", "merge_runs", (x.size,), rows, n, width, keys.block, at.block, to_keys.block, to_at.block, **built
        )
        keys, at, width = to_keys, to_at, 2 * width
    return keys, at


def _pieces(device: Device, m: int) -> list[tuple[int, int]]:
    """Where launches begin and end that add m numbers: one, but where a driver ends their loops."""
    most = device.most_turns // 2 or max(1, m)
    return [(begin, min(m, begin + most)) for begin in range(0, max(1, m), most)]


def _scatter(
    device: Device, dy: Array, index: Array, outer: int, n: int, inner: int, sink: Sink, from_end: bool = True
) -> None:
    """Into the sink, for each row r of n, the sum of those rows of dy (outer, m, inner) whose number is r."""
    m = index.size
    keys, at = sort(Array(index.block, (1, m), np.int32, device), limit=n, from_end=from_end)
    each, size, local, vectors = divided(device, dy.dtype, outer * n, inner)
    for piece in _pieces(device, m):
        device.launch(
            "index", "take_backward", size, outer, n, inner, m, *piece, each, keys.block, at.block, dy.block, *sink.arguments(),
            local=local, real=dy.real, TAKE_BACKWARD=1, **vectors, **sink.defines(),
        )  # fmt: skip


@op
def take(x: Array, index: Array, axis: int = 0, from_end: bool = True) -> tuple[Array, Backward]:
    """y = the rows of x along `axis` that `index`, int32 of any shape, names; negative ones count from the end, if `from_end`
    says so. A row that x does not have is NaN, or the least int32."""
    outer, n, inner, a = lines("take", x, axis)
    m, device = index.size, x.device
    y = empty(device, (*x.shape[:a], *index.shape, *x.shape[a + 1 :]), x.dtype)
    each, size, local, _ = divided(device, np.float32, outer * m, inner)
    part, size, local = ((inner, each), (1, *size), (1, 1)) if device.long_loops else ((1, 1), (inner, outer * m), None)
    device.launch(
        "shape", "take_rows", size, inner, outer * m, m, n, int_vector(part), x.block, index.block, _missing(device), y.block,
        local=local, real="float", **_nowhere(x), **_counted(from_end),
    )  # fmt: skip
    kept = index.alias()

    def backward(dy: Array) -> Iterator[Flow]:
        def write(sink: Sink) -> None:
            _scatter(device, dy, kept, outer, n, inner, sink, from_end)

        yield x, write

    return y, backward


@op
def scatter_add(x: Array, index: Array, values: Array, axis: int = 0) -> tuple[Array, Backward]:
    """y = x, to whose row index[j] along `axis` row j of `values` is added, each in the order of j."""
    check_float("scatter_add", x)
    check_together("scatter_add", x, values)
    outer, n, inner, a = lines("scatter_add", x, axis)
    wanted = (*x.shape[:a], *index.shape, *x.shape[a + 1 :])
    if values.shape != wanted:
        raise ShapeError(
            f"scatter_add: {index.shape} numbers of rows along axis {a} of {x.shape} want values of shape {wanted}, not "
            f"{values.shape}"
        )
    y = empty_like(x)
    x.device.copy(x.block, y.block, x.nbytes)
    _scatter(x.device, values, index, outer, n, inner, Sink(y.block, Scale.constant(x.device, x.dtype, 1, 1)))
    kept = index.alias()

    def backward(dy: Array) -> Iterator[Flow]:
        yield x, dy
        yield values, take(dy, kept, a)[0]

    return y, backward


@op
def gather(x: Array, index: Array, axis: int = -1) -> tuple[Array, Backward]:
    """y[o, j, i] = x[o, index[o, j, i], i] along `axis`, as NumPy's take_along_axis; otherwise as `take`."""
    outer, n, inner, a = lines("gather", x, axis)
    if index.ndim != x.ndim or index.shape[:a] + index.shape[a + 1 :] != x.shape[:a] + x.shape[a + 1 :]:
        raise ShapeError(f"gather along axis {a}: an index of shape {index.shape} differs from {x.shape} elsewhere")
    m, device = index.shape[a], x.device
    y = empty(device, index.shape, x.dtype)
    device.launch(
        "index", "gather", (y.size,), outer, n, inner, m, x.block, index.block, _missing(device), y.block,
        real=x.real, GATHER=1, **_nowhere(x),
    )  # fmt: skip
    kept = index.alias()

    def backward(dy: Array) -> Iterator[Flow]:
        def write(sink: Sink) -> None:
            for piece in _pieces(device, m):
                device.launch(
                    "index", "gather_backward", (x.size,), outer, n, inner, m, *piece, kept.block, dy.block, *sink.arguments(),
                    real=dy.real, GATHER_BACKWARD=1, **sink.defines(),
                )  # fmt: skip

        yield x, write

    return y, backward


@op
def cumulative_sum(x: Array, axis: int = -1, reverse: bool = False) -> tuple[Array, Backward]:
    """y[k] = the sum of x[j] over j <= k along `axis`, or with `reverse` over j >= k."""
    check_float("cumsum", x)
    outer, n, inner, a = lines("cumsum", x, axis)
    y, most = empty_like(x), 256 * x.device.check_turns(260, "a span of cumsum") or max(1, n)
    for begin in range(0, n, most):
        x.device.launch(
            "index", "cumulate", (outer * inner,), outer, n, inner, int(reverse), begin, min(n, begin + most), x.block, y.block,
            real=x.real, CUMULATE=1,
        )  # fmt: skip

    def backward(dy: Array) -> Iterator[Flow]:
        yield x, cumulative_sum(dy, a, not reverse)[0]

    return y, backward


@op
def arange(device: Device, n: int, start: float, step: float, dtype: DType) -> Array:
    """start + i step for i from 0 to n - 1."""
    y = empty(device, (n,), dtype)
    kind = int if y.dtype == np.int32 else float
    device.launch(
        "index", "arange", (n,), n, kind(start), kind(step), y.block, real=y.real, ELEMENT=TYPES[y.dtype], COUNT=1
    )
    return y


# -- x[key] with arrays among the keys --------------------------------------------------------------------------------
def is_basic(key: Any) -> bool:
    """Whether a key has integers, slices, None and `...` alone."""
    keys = key if isinstance(key, tuple) else (key,)
    return all(k is None or k is Ellipsis or isinstance(k, slice) or whole(k) is not None for k in keys)


def _on_host(x: Array) -> np.ndarray:
    return x.device.read(x.block, np.empty(x.shape, x.dtype))


def _places(keys: list[Array], sides: list[int]) -> Array:
    """Where the elements are that arrays of int32, which broadcast, name along axes of these sizes; of none, behind the last."""
    found: Any = None
    wrong: Any = None
    for k, size in zip(keys, sides):
        turns, place = (binary(name, k, max(size, 1))[0] for name in ("floor_divide", "remainder"))
        outside = binary("multiply", turns, binary("add", turns, 1)[0])[0]  # of -1 and 0 turns it is 0
        wrong = choose(wrong, wrong, outside)[0] if found else outside
        found = binary("add", binary("multiply", found, size)[0], place)[0] if found else place
    return choose(wrong, math.prod(sides), found)[0]


def _numbers_of(k: Any, size: int, axis: int, shape: tuple[int, ...]) -> np.ndarray:
    """One key of an axis as whole numbers from 0, checked."""
    index = _on_host(k) if isinstance(k, Array) else np.asarray(k)
    if index.size == 0:
        index = index.astype(np.int64)
    if index.dtype.kind not in "iu":
        raise ShapeError(f"an axis is indexed by integers, bools, slices, None, ..., and arrays of these, not by {k!r}")
    if index.size and not -size <= index.min() <= index.max() < size:
        bad = index[(index < -size) | (index >= size)].flat[0]
        raise OutOfRangeError(f"index {bad} is out of range for axis {axis} of an array of shape {shape}")
    return np.where(index < 0, index + size, index)


def take_items(x: Array, key: Any) -> tuple[Array, Backward]:
    """x[key] where arrays of integers or bools are among the keys, as NumPy has it; in a step all on the device."""
    keys: list[Any] = []
    masks: list[tuple[int, np.ndarray]] = []  # and the place of the first of their keys
    for k in key if isinstance(key, tuple) else (key,):
        if isinstance(k, (bool, np.bool_)):
            raise ShapeError(f"an axis is not indexed by {k!r}: a mask has the shape of the axes that it chooses from")
        of_host = isinstance(k, list) or (hasattr(k, "__array__") and not isinstance(k, Array))
        part = numbers(k, "an index") if of_host else k
        if isinstance(k, Array) and (k.dtype != np.int32 or k.made_by == MASK):
            part = _on_host(k)
            if not np.isin(part, (0, 1)).all():
                raise ShapeError("an index of floats is a mask of 0 and 1, such as t > 0; name elements by int32")
            part = part != 0
        if isinstance(part, np.ndarray) and part.dtype == bool:
            masks.append((len(keys), part))
            keys += list(np.nonzero(part))
        else:
            keys.append(part)
    expanded = one_for_each_axis(x, keys, key)
    for place, mask in masks:
        behind = sum(k is not None for k in keys[place:])
        dots = any(k is Ellipsis for k in keys[:place])
        at = x.ndim - behind if dots else sum(k is not None for k in keys[:place])
        if x.shape[at : at + mask.ndim] != mask.shape:
            raise ShapeError(f"a mask of shape {mask.shape} does not fit axes {at} on of an array of shape {x.shape}")
    arrays = [i for i, k in enumerate(keys) if not (k is None or k is Ellipsis or isinstance(k, slice))]
    beside = arrays[-1] - arrays[0] < len(arrays)  # with nothing between them, not even a `...` for no axes
    plain = [k if k is None or isinstance(k, slice) else slice(None) for k in expanded]
    # axes of what the slices leave
    named = [i for i, k in enumerate(expanded) if k is not None and not isinstance(k, slice)]
    backs: list[Backward] = []

    def then(op: Callable[..., tuple[Array, Backward]], z: Array, how: Any) -> Array:
        y, back = op(z, how)
        backs.append(back)
        return y

    z = x if all(k == slice(None) for k in plain) else then(take_slice, x, tuple(plain))
    rest = [i for i in range(len(expanded)) if i not in named]
    sides, left = [z.shape[i] for i in named], [z.shape[i] for i in rest]
    if named != list(range(len(named))):
        z = then(transpose, z, [*named, *rest])
    z = then(reshape, z, [math.prod(sides), *left])
    chosen = [expanded[i] for i in named]
    there = [k for k in chosen if isinstance(k, Array)]
    if there and not x.device.reads and all(isinstance(k, Array) or np.ndim(k) == 0 for k in chosen):
        of = [k if isinstance(k, Array) else binary("add", binary("multiply", there[0], 0)[0], k)[0] for k in chosen]
        index = of[0] if len(of) == 1 else _places(of, sides)
    else:
        found = [_numbers_of(k, size, i, x.shape) for i, k, size in zip(named, chosen, sides)]
        try:
            parts = np.broadcast_arrays(*found)
            flat = np.ravel_multi_index(parts, sides) if math.prod(sides) else parts[0]
        except ValueError:
            raise ShapeError(f"index arrays of shapes {[k.shape for k in found]} do not broadcast") from None
        index = empty(x.device, flat.shape, np.int32)
        x.device.upload(np.ascontiguousarray(flat, np.int32), index.block)
    z = then(take, z, index)
    if named[0] and beside:  # the new axes stand where those were, else in front
        n, before = index.ndim, named[0]
        z = then(transpose, z, [*range(n, n + before), *range(n), *range(n + before, n + len(rest))])

    def backward(dy: Array) -> Iterator[Flow]:
        flowing = dy
        for back in backs[:0:-1]:
            ((of, given),) = back(flowing)
            assert isinstance(of, Array)
            if not isinstance(given, Array):
                made = empty_like(of)
                given(Sink(made.block))
                given = made
            flowing = given
        yield from backs[0](flowing)

    return z, backward
