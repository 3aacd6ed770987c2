"""Sum, mean, product, max and min over axes, with their gradients."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from ..errors import ShapeError
from .array import Array, Backward, Flow, check_float, empty_like
from .elementwise import binary
from .reduce import Axis, normal_axes, reduced
from .shape import broadcast_to, transpose
from .trace import op


@op
def reduce(x: Array, kind: str, axis: Axis = None, keepdims: bool = False) -> tuple[Array, Backward]:
    """sum, mean, prod, max or min over `axis` (all axes if None). A gradient of max and min is shared by equals."""
    check_float(kind, x)
    axes = normal_axes(x.ndim, axis)
    count = math.prod(x.shape[a] for a in axes)
    kept = tuple(1 if i in axes else s for i, s in enumerate(x.shape))
    shape = kept if keepdims else tuple(s for i, s in enumerate(x.shape) if i not in axes)
    if count == 0 and kind not in ("sum", "prod"):
        raise ShapeError(f"{kind} over no elements: an array of shape {x.shape} over axes {axes}")
    mean = kind == "mean"
    y = reduced(x, "sum" if mean else kind, axes, 1.0 / count if mean else 1.0).reshaped(shape)

    def backward(dy: Array) -> Iterator[Flow]:
        dy = dy.reshaped(kept)
        if mean:
            dy = binary("multiply", dy, 1.0 / count)[0]
        if kind == "prod":
            yield x, _of_product(x, axes, dy)
        elif kind in ("max", "min"):
            chosen = binary("equal", x, y.reshaped(kept))[0]
            dy = binary("divide", dy, reduced(chosen, "sum", axes))[0]
            yield x, binary("multiply", chosen, dy)[0]
        else:
            yield x, broadcast_to(dy, x.shape)[0]

    return y, backward


def _of_product(x: Array, axes: Sequence[int], dy: Array) -> Array:
    """The gradient of a product over axes: dy times the product of all other elements."""
    order = [*(a for a in range(x.ndim) if a not in axes), *axes]
    last = transpose(x, order)[0]
    n = math.prod(x.shape[a] for a in axes)
    x.device.check_turns(2 * n + 2, f"the gradient of a product of {n:,} elements")
    dx = empty_like(last)
    x.device.launch(
        "index", "product_backward", (dy.size,), dy.size, n, 1, last.block, dy.block, dx.block,
        x.device.allocate(4 * last.size), real=x.real, PRODUCT_BACKWARD=1,
    )  # fmt: skip
    return transpose(dx, [order.index(a) for a in range(x.ndim)])[0]
