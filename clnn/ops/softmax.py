"""Softmax and log-softmax over the last axis."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ..errors import ShapeError
from .array import Array, Backward, Flow, check_float, empty_like
from .trace import op


@op
def softmax(x: Array, log: bool = False) -> tuple[Array, Backward]:
    """exp(x) / sum(exp(x)) along the last axis, or its logarithm (Bridle 1990); the largest x is subtracted first."""
    name = "log_softmax" if log else "softmax"
    check_float(name, x)
    if x.ndim < 1 or x.shape[-1] == 0:
        raise ShapeError(f"{name} needs a last axis with elements, and the shape is {x.shape}")
    n = x.shape[-1]
    rows = x.size // n
    x.device.check_turns(4 * n, f"{name} over rows of {n:,}")
    extra: dict[str, Any] = {"LOG": 1} if log else {}
    y = empty_like(x)
    x.device.launch("softmax", "softmax_forward", (rows,), rows, n, x.block, y.block, real=x.real, **extra)
    saved = y.alias()

    def backward(dy: Array) -> Iterator[Flow]:
        dx = empty_like(x)
        x.device.launch(
            "softmax", "softmax_backward", (rows,), rows, n, saved.block, dy.block, dx.block, real=x.real, **extra
        )
        yield x, dx

    y.made_by, y.logits = name, x
    return y, backward
