"""Convolution, pooling, resizing and sampling of arrays (batch, channels, *space)."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from ... import arrays, functions
from ...errors import CheckpointError, ShapeError
from ...ops.image import pool as pooling
from ...ops.image.conv import conv as conv_op
from ...ops.image.conv import conv_transpose as conv_transpose_op
from ...ops.image.window import Window
from ...tape import grad_enabled
from ...tensor import Tensor, apply, elementwise, function, on_tape
from ..registry import Context, of_dtype, operator
from .elementwise import whole
from .shape import padded


def windows(
    x: Tensor, size: Sequence[int], strides: Any, pads: Any, dilations: Any, auto_pad: str, ceil: int = 0
) -> Window:
    """The windows over x (batch, channels, *space), as the attributes say."""
    n = x.ndim - 2
    size = tuple(size)
    strides, dilations = tuple(strides or (1,) * n), tuple(dilations or (1,) * n)
    pads = [*(pads or [0] * 2 * n)]
    if (
        n < 1
        or not len(size) == len(strides) == len(dilations) == n
        or len(pads) != 2 * n
        or min((*size, *strides, *dilations)) < 1
    ):
        raise ShapeError(
            f"windows of {size}, strides {strides}, dilations {dilations} and pads {pads} do not fit an input of shape {x.shape}"
        )
    before: list[int] = []
    after: list[int] = []
    out: list[int] = []
    for axis, (length, k, s, d) in enumerate(zip(x.shape[2:], size, strides, dilations)):
        reach = d * (k - 1) + 1
        if auto_pad in ("SAME_UPPER", "SAME_LOWER"):
            total = max(0, (-(-length // s) - 1) * s + reach - length)
            pair = (total // 2, total - total // 2)
            pair = pair if auto_pad == "SAME_UPPER" else pair[::-1]
        else:
            pair = (0, 0) if auto_pad == "VALID" else (pads[axis], pads[n + axis])
        free = length + sum(pair) - reach
        count = (-(-free // s) if ceil else free // s) + 1
        if ceil and (count - 1) * s >= length + pair[0]:
            count -= 1
        if count < 1:
            raise ShapeError(
                f"a window of {k} with dilation {d} does not fit along axis {axis + 2} of an input of shape {x.shape}"
            )
        for into, number in zip((before, after, out), (*pair, count)):
            into.append(number)
    return Window(x.shape[2:], size, strides, tuple(before), tuple(after), dilations, tuple(out))


# -- convolution ------------------------------------------------------------------------------------------------------
@operator("Conv", 1)
def conv(
    x: Tensor, w: Tensor, b: Tensor | None = None, *, auto_pad: str = "NOTSET", dilations: Any = None, group: int = 1,
    kernel_shape: Any = None, pads: Any = None, strides: Any = None,
) -> Tensor:  # fmt: skip
    return convolved(x, w, b, windows(x, w.shape[2:], strides, pads, dilations, auto_pad), group)


def convolved(
    x: Tensor,
    w: Tensor,
    b: Tensor | None,
    window: Window,
    groups: int,
    activation: str = "linear",
    transposed: bool = False,
    factor: Tensor | None = None,
) -> Tensor:
    """A convolution, or a transposed one, as clnn's layers do it."""
    if len(window.size) > 3:
        raise ShapeError(f"convolutions are over 1 to 3 axes of space here, and the input's shape is {x.shape}")
    op = conv_transpose_op if transposed else conv_op
    if min((*window.before, *window.after)) < 0 and not transposed:
        raise ShapeError(
            f"a convolution's padding is 0 or more here, and {window.before} and {window.after} were given"
        )
    y, backward = op(x, w, b, window, groups, activation, grad_enabled(), factor)
    return on_tape(y, (x, w) if b is None else (x, w, b), backward, (w,) if x.requires_grad else ())


@operator("ConvTranspose", 1)
def conv_transpose(
    x: Tensor, w: Tensor, b: Tensor | None = None, *, auto_pad: str = "NOTSET", dilations: Any = None, group: int = 1,
    kernel_shape: Any = None, output_padding: Any = None, output_shape: Any = None, pads: Any = None, strides: Any = None,
) -> Tensor:  # fmt: skip
    n = x.ndim - 2
    size = w.shape[2:]
    strides, dilations = strides or [1] * n, dilations or [1] * n
    extra, pads = output_padding or [0] * n, pads or [0] * 2 * n
    before: list[int] = []
    after: list[int] = []
    space: list[int] = []
    for a in range(n):
        full = strides[a] * (x.shape[2 + a] - 1) + extra[a] + (size[a] - 1) * dilations[a] + 1
        if output_shape or auto_pad.startswith("SAME"):
            wanted = output_shape[-n:][a] if output_shape else x.shape[2 + a] * strides[a]
            total = max(0, full - wanted)
            first = total // 2 if auto_pad == "SAME_UPPER" else total - total // 2
            found = first, total - first, wanted
        else:
            pair = (0, 0) if auto_pad == "VALID" else (pads[a], pads[n + a])
            found = *pair, full - sum(pair)
        for into, number in zip((before, after, space), found):
            into.append(number)
    if min(space) < 1:
        raise ShapeError(
            f"an input of shape {x.shape} gives no output by windows of {size}, strides {strides} and pads {pads}"
        )
    if min((*before, *after)) < 0:
        raise ShapeError(f"a transposed convolution's padding is 0 or more here, and {before} and {after} were given")
    window = Window(
        tuple(space), tuple(size), tuple(strides), tuple(before), tuple(after), tuple(dilations), x.shape[2:]
    )
    return convolved(x, w, b, window, group, transposed=True)


# -- pooling ----------------------------------------------------------------------------------------------------------
def taps(c: Context, x: Tensor, window: Window, value: float) -> list[Tensor]:
    """For each place in a window the elements of x, or of the padding, that stand there: (batch, channels, *out) each."""
    ends = [
        max(0, (o - 1) * s + d * (k - 1) + 1 - before - n)
        for n, k, s, d, before, o in zip(
            window.space, window.size, window.stride, window.dilation, window.before, window.out
        )
    ]
    wide = padded(c, x, [0, 0, *window.before, 0, 0, *ends], "constant", value)
    return [
        wide[
            (
                slice(None),
                slice(None),
                *(
                    slice(i * d, i * d + (o - 1) * s + 1, s)
                    for i, d, s, o in zip(place, window.dilation, window.stride, window.out)
                ),
            )
        ]
        for place in itertools.product(*map(range, window.size))
    ]


def simple(window: Window) -> bool:
    """Whether clnn's pooling takes these windows: no dilation, and no window that holds padding alone."""
    pairs = zip(window.size, window.before, window.after)
    return len(window.size) <= 3 and set(window.dilation) == {1} and all(0 <= max(b, a) < k for k, b, a in pairs)


def pooled(x: Tensor, window: Window, kind: str, include_pad: bool = True) -> Tensor:
    y, backward = pooling.pool(x, window, kind, include_pad, keep=grad_enabled())
    return on_tape(y, (x,), backward)


@operator("MaxPool", 1)
def max_pool(
    c: Context, x: Any, *, kernel_shape: Any, auto_pad: str = "NOTSET", ceil_mode: int = 0, dilations: Any = None,
    pads: Any = None, storage_order: int = 0, strides: Any = None,
) -> Any:  # fmt: skip
    c.gives(c.types[0], "int64")
    x = c.tensor(x)
    if x.dtype == np.int32:
        x = of_dtype(x, np.float32)  # of 8 bits, which it holds exactly
    window = windows(x, kernel_shape, strides, pads, dilations, auto_pad, ceil_mode)
    indices = len(c.outputs) > 1 and c.outputs[1]
    if simple(window) and not indices:
        y = pooled(x, window, "max")
    else:
        found = arrays.stack(taps(c, x, window, -math.inf), 0)
        y = found.max(0)
    if c.types[0] in ("int8", "uint8"):
        return apply(whole, y)
    if not indices:
        return y
    places = np.meshgrid(
        *(np.arange(o) * s - b for o, s, b in zip(window.out, window.stride, window.before)), indexing="ij"
    )
    flat = []
    for place in itertools.product(*map(range, window.size)):
        each = [p + i * d for p, i, d in zip(places, place, window.dilation)]
        order = range(len(each))[::-1] if storage_order else range(len(each))
        at = np.zeros(window.out, np.int64)
        for a in order:
            at = at * window.space[a] + each[a]
        flat.append(at)
    planes = np.arange(math.prod(x.shape[:2])).reshape(*x.shape[:2], *[1] * len(window.out)) * math.prod(window.space)
    table = np.stack(flat)[:, None, None] + planes  # (place, batch, channels, *out)
    chosen = arrays.gather(c.tensor(table), found.argmax(0).reshape((1, *y.shape)), 0)
    return y, chosen.reshape(y.shape)


@operator("AveragePool", 1)
def average_pool(
    c: Context, x: Any, *, kernel_shape: Any, auto_pad: str = "NOTSET", ceil_mode: int = 0, count_include_pad: int = 0,
    dilations: Any = None, pads: Any = None, strides: Any = None,
) -> Any:  # fmt: skip
    x = c.tensor(x)
    window = windows(x, kernel_shape, strides, pads, dilations, auto_pad, ceil_mode)
    if simple(window):
        return pooled(x, window, "mean", bool(count_include_pad))
    there = np.ones((1, 1, *window.space), np.float32)
    if count_include_pad:
        there = np.pad(there, [(0, 0), (0, 0), *zip(window.before, window.after)])
        there[:] = 1
        outer = window._replace(space=there.shape[2:], before=(0,) * len(window.size))
        counts = sum_of(taps(c, c.tensor(there), outer, 0.0))
    else:
        counts = sum_of(taps(c, c.tensor(there), window, 0.0))
    return sum_of(taps(c, x, window, 0.0)) / of_dtype(counts, x.dtype)


def sum_of(xs: Sequence[Tensor]) -> Tensor:
    """The sum of tensors of one shape."""
    return arrays.stack(xs, 0).sum(0)


@operator("LpPool", 1)
def lp_pool(
    c: Context, x: Any, *, kernel_shape: Any, auto_pad: str = "NOTSET", ceil_mode: int = 0, dilations: Any = None, p: int = 2,
    pads: Any = None, strides: Any = None,
) -> Any:  # fmt: skip
    x = c.tensor(x)
    window = windows(x, kernel_shape, strides, pads, dilations, auto_pad, ceil_mode)
    return root(sum_of(taps(c, powered(x, p), window, 0.0)), p)


def powered(x: Tensor, p: float) -> Tensor:
    """|x| to the power of p."""
    return function(x, "square") if p == 2 else function(x, "abs") if p == 1 else function(x, "abs") ** p


def root(x: Tensor, p: float) -> Tensor:
    return function(x, "sqrt") if p == 2 else x if p == 1 else x ** (1.0 / p)


def over_space(x: Tensor) -> tuple[int, ...]:
    return tuple(range(2, x.ndim))


operator("GlobalAveragePool", 1)(lambda x: x.mean(over_space(x), keepdims=True))
operator("GlobalMaxPool", 1)(lambda x: x.max(over_space(x), keepdims=True))
operator("GlobalLpPool", 2)(lambda x, *, p=2: root(powered(x, p).sum(over_space(x), keepdims=True), p))


# -- resizing ---------------------------------------------------------------------------------------------------------
def coordinates(n: int, out: int, scale: float, mode: str, roi: tuple[float, float]) -> np.ndarray:
    """Where each of `out` elements lies in an axis of n, as `coordinate_transformation_mode` says."""
    o = np.arange(out, dtype=np.float64)
    if mode == "asymmetric":
        return o / scale
    if mode == "align_corners":
        return o * (n - 1) / (n * scale - 1) if out > 1 else np.zeros(out)
    if mode == "pytorch_half_pixel":
        return (o + 0.5) / scale - 0.5 if out > 1 else np.zeros(out)
    if mode == "half_pixel":
        return (o + 0.5) / scale - 0.5
    if mode == "tf_half_pixel_for_nn":
        return (o + 0.5) / scale
    if mode == "half_pixel_symmetric":
        adjust = out / (n * scale)
        return n / 2 * (1 - adjust) + (o + 0.5) / scale - 0.5
    if mode == "tf_crop_and_resize":
        start, end = roi
        if out == 1:
            return np.full(out, 0.5 * (start + end) * (n - 1))
        return start * (n - 1) + o * (end - start) * (n - 1) / (out - 1)
    raise ShapeError(f"coordinate_transformation_mode {mode!r} is not known here")


def nearest(x: np.ndarray, mode: str) -> np.ndarray:
    """Whole numbers near x, as `nearest_mode` says."""
    if mode == "floor":
        return np.floor(x)
    if mode == "ceil":
        return np.ceil(x)
    return np.ceil(x - 0.5) if mode == "round_prefer_floor" else np.floor(x + 0.5)


def weights_of(
    n: int, out: int, scale: float, mode: str, at: np.ndarray, cubic: float, outside: int, antialias: int
) -> np.ndarray:
    """(out, n): how much of each element of an axis is in each of the results, by linear or cubic interpolation."""
    wide = max(1.0, 1.0 / scale) if antialias else 1.0  # the filter's reach grows where the axis gets shorter
    reach = int(math.ceil((1 if mode == "linear" else 2) * wide))
    first = np.floor(at).astype(np.int64)
    w = np.zeros((out, n))
    for i in range(-reach + 1, reach + 1):
        place = first + i
        t = np.abs(at - place) / wide
        if mode == "linear":
            part = np.maximum(0.0, 1.0 - t)
        else:
            near = ((cubic + 2) * t - (cubic + 3)) * t * t + 1
            far = ((cubic * t - 5 * cubic) * t + 8 * cubic) * t - 4 * cubic
            part = np.where(t <= 1, near, np.where(t < 2, far, 0.0))
        if outside:
            part = np.where((place >= 0) & (place < n), part, 0.0)
        np.add.at(w, (np.arange(out), np.clip(place, 0, n - 1)), part)
    if outside or antialias:
        total = w.sum(1, keepdims=True)
        w = w / np.where(total == 0, 1.0, total)
    return w


def along(c: Context, x: Tensor, a: int, w: np.ndarray) -> Tensor:
    """x with axis `a` of n elements mapped to (out, n) weighted sums: a few rows each, or where these are many a product."""
    out, n = w.shape
    used = max(1, (w != 0).sum(1).max(initial=0))
    if used > 4:
        order = [*(i for i in range(x.ndim) if i != a), a]
        return (x.transpose(order) @ c.tensor(w.T.astype(x.dtype))).transpose([order.index(i) for i in range(x.ndim)])
    places = np.argsort(w == 0, axis=1, kind="stable")[:, :used]
    found = None
    for i in range(used):
        part = np.take_along_axis(w, places[:, i : i + 1], 1)[:, 0]
        rows = arrays.take(x, c.tensor(places[:, i].astype(np.int32)), a)
        shape = [out if j == a else 1 for j in range(x.ndim)]
        rows = rows if (part == 1).all() else rows * c.tensor(part.reshape(shape).astype(x.dtype))
        found = rows if found is None else found + rows
    assert found is not None
    return found


@operator("Resize", 11, host=(1, 2, 3))
def resize(
    c: Context, x: Any, roi: Any = None, scales: Any = None, sizes: Any = None, *, antialias: int = 0, axes: Any = None,
    coordinate_transformation_mode: str = "half_pixel", cubic_coeff_a: float = -0.75, exclude_outside: int = 0,
    extrapolation_value: float = 0.0, keep_aspect_ratio_policy: str = "stretch", mode: str = "nearest",
    nearest_mode: str = "round_prefer_floor",
) -> Any:  # fmt: skip
    of_whole = c.types[0] not in ("float32", "float64", "float16", "bfloat16")
    if of_whole and mode == "cubic":
        raise ShapeError(f"Resize with mode cubic goes over floats here, and the input is of {c.types[0]}")
    x = c.tensor(x)
    places = [*range(x.ndim)] if axes is None else [a % x.ndim for a in axes]
    how = coordinate_transformation_mode
    if sizes is not None and sizes.size:
        wanted = [int(s) for s in sizes]
        factors = [s / x.shape[a] for s, a in zip(wanted, places)]
        if keep_aspect_ratio_policy != "stretch":
            one = min(factors) if keep_aspect_ratio_policy == "not_larger" else max(factors)
            factors = [one] * len(places)
            wanted = [int(math.floor(one * x.shape[a] + 0.5)) for a in places]
    else:
        factors = [float(s) for s in scales]  # the product is rounded as float32: 5 times the 2.6 of a file is 13
        wanted = [int(np.floor(np.float32(x.shape[a]) * np.float32(f))) for a, f in zip(places, factors)]
    if len(wanted) != len(places) or min(wanted, default=1) < 0:
        raise ShapeError(f"sizes {wanted} do not fit an input of shape {x.shape}")
    edges = [(0.0, 1.0)] * len(places)
    if roi is not None and roi.size == 2 * len(places):
        edges = [(float(roi[i]), float(roi[len(places) + i])) for i in range(len(places))]
    spatial = places == [*range(x.ndim)] and 3 <= x.ndim <= 5 and wanted[:2] == [*x.shape[:2]] and not of_whole
    times = [w // s for w, s in zip(wanted, x.shape)] if spatial and 0 not in x.shape else []
    if times and [t * s for t, s in zip(times, x.shape)] == wanted and factors == times:
        as_ours = how in ("half_pixel", "pytorch_half_pixel") and min(x.shape[2:]) > 1
        if mode == "nearest" and ((how == "asymmetric" and nearest_mode == "floor") or (
            how == "half_pixel" and nearest_mode.startswith("round")
        )):  # fmt: skip
            return functions.upsample(x, times[2:], "nearest")
        if mode == "linear" and as_ours and not antialias and x.ndim == 4:
            return functions.upsample(x, times[2:], "bilinear")
    for a, out, scale, edge in zip(places, wanted, factors, edges):
        n = x.shape[a]
        if n == out and scale == 1 and how != "tf_crop_and_resize":
            continue
        at = coordinates(n, out, scale, how, edge)
        beyond = (at < 0) | (at > n - 1) if how == "tf_crop_and_resize" else np.zeros(out, bool)
        if mode == "nearest":
            rows = np.clip(nearest(at, nearest_mode), 0, n - 1).astype(np.int32)
            x = arrays.take(x, c.tensor(rows), a)
        else:
            x = of_dtype(x, np.float32) if x.dtype == np.int32 else x
            x = along(c, x, a, weights_of(n, out, scale, mode, at, cubic_coeff_a, exclude_outside, antialias))
        if beyond.any():
            shape = [out if j == a else 1 for j in range(x.ndim)]
            x = arrays.where(c.tensor(beyond.reshape(shape)), float(extrapolation_value), x)
    return apply(whole, x) if of_whole and x.dtype != np.int32 else x


@operator("Resize", 10, host=(1,))
def resize_by_scales(c: Context, x: Any, scales: Any, *, mode: str = "nearest") -> Any:
    return resize(c, x, None, scales, mode=mode, coordinate_transformation_mode="asymmetric", nearest_mode="floor")


@operator("Upsample", 9, host=(1,), until=10)
def upsample(c: Context, x: Any, scales: Any, *, mode: str = "nearest") -> Any:
    return resize_by_scales(c, x, scales, mode=mode)


@operator("Upsample", 7)
def upsample_by_attribute(c: Context, x: Any, *, scales: Any, mode: str = "nearest") -> Any:
    return resize_by_scales(c, x, np.array(scales), mode=mode)


@operator("GridSample", 16)
def grid_sample(
    c: Context, x: Any, grid: Any, *, align_corners: int = 0, mode: str = "linear", padding_mode: str = "zeros"
) -> Any:
    """x (batch, channels, height, width) at the places of a grid (batch, *out, 2), x before y, from -1 to 1 across x."""
    x, grid = c.tensor(x), c.tensor(grid)
    mode = {"bilinear": "linear", "bicubic": "cubic"}.get(mode, mode)
    space = x.shape[2:]
    if len(space) != 2 or grid.shape[-1] != 2 or mode not in ("linear", "nearest", "cubic"):
        raise CheckpointError(f"GridSample over {len(space)} axes of space, mode {mode!r}, is not supported")
    n, channels, places = x.shape[0], x.shape[1], grid.shape[1:-1]
    flat = x.reshape(n, channels, -1).transpose(0, 2, 1).reshape(-1, channels)
    count = math.prod(places)
    at = grid.reshape(n, count, 2)
    coords = []
    for axis in range(2):  # y, then x
        size = space[axis]
        g = at[:, :, 1 - axis]
        place = (g + 1.0) * ((size - 1) / 2) if align_corners else (g + 1.0) * (size / 2) - 0.5
        coords.append(_inside(place, size, padding_mode, align_corners) if mode != "cubic" else place)
    first = [function(p, "round" if mode == "nearest" else "floor") for p in coords]
    reach = {"nearest": (0,), "linear": (0, 1), "cubic": (-1, 0, 1, 2)}[mode]
    total = None
    start = c.tensor((np.arange(n) * math.prod(space)).astype(np.float32).reshape(n, 1))
    for steps in itertools.product(reach, repeat=2):
        weight, number, there = None, start, None
        for axis, step in enumerate(steps):
            size, place = space[axis], first[axis] + float(step)
            if mode != "nearest":
                part = _near(coords[axis] - place, mode)
                weight = part if weight is None else weight * part
            if padding_mode == "zeros":
                inside = (place >= 0) & (place <= size - 1)
                there = inside if there is None else there & inside
            elif mode == "cubic":
                place = _inside(place, size, padding_mode, align_corners)
            place = arrays.clip(place, 0.0, float(size - 1))
            number = number + place * float(math.prod(space[axis + 1 :]))
        value = arrays.take(flat, apply(whole, number), 0)  # (batch, places, channels)
        value = value if weight is None else value * weight.reshape(n, count, 1)
        value = value if there is None else arrays.where(there.reshape(n, count, 1), value, 0.0)
        total = value if total is None else total + value
    assert total is not None
    return total.transpose(0, 2, 1).reshape(n, channels, *places)


def _inside(place: Tensor, size: int, padding_mode: str, align_corners: int) -> Tensor:
    """Places brought into an axis, as the padding says."""
    if padding_mode == "border":
        return arrays.clip(place, 0.0, float(size - 1))
    if padding_mode != "reflection":
        return place
    low, high = (0.0, float(size - 1)) if align_corners else (-0.5, size - 0.5)
    span = high - low
    if span == 0:
        return place * 0.0
    left = elementwise("remainder", place - low, 2 * span)
    return arrays.where(left > span, 2 * span - left, left) + low


def _near(t: Tensor, mode: str) -> Tensor:
    """The weight of an element at the distance t."""
    t = function(t, "abs")
    if mode == "linear":
        return elementwise("maximum", 1.0 - t, 0.0)
    near = ((t * 1.25 - 2.25) * t) * t + 1.0
    far = ((t * -0.75 + 3.75) * t - 6.0) * t + 3.0
    return arrays.where(t <= 1, near, arrays.where(t < 2, far, 0.0))
