"""Softmax and log-softmax over the last axis."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ..errors import ShapeError
from .array import Array, Backward, Flow, check_float, empty_like
from .rows import by_groups, group_of
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
    x.device.check_turns(4 * n // group_of(x.device, n), f"{name} over rows of {n:,}")
    extra: dict[str, Any] = {"LOG": 1} if log else {}
    y = empty_like(x)

    def launch(kernel: str, *blocks: Any) -> None:
        size, local, group = by_groups(x.device, n, rows, "softmax", kernel, x.real, **extra)
        x.device.launch("softmax", kernel, size, rows, n, *blocks, local=local, real=x.real, **extra, **group)

    launch("softmax_forward", x.block, y.block)
    saved = y.alias()

    def backward(dy: Array) -> Iterator[Flow]:
        dx = empty_like(x)
        launch("softmax_backward", saved.block, dy.block, dx.block)
        yield x, dx

    y.made_by, y.logits = name, x
    return y, backward
