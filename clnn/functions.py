"""Functions of tensors: every function of one variable by its name (`clnn.relu(x)`, `clnn.exp(x)`), and a few more."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .ops.activation import FUNCTIONS
from .tensor import Tensor, concat, function, maximum, minimum, rows_of, softmax_of


def _named(name: str) -> Callable[[Any], Tensor]:
    def call(x: Any) -> Tensor:
        return function(x, name)

    call.__name__ = call.__qualname__ = name
    call.__doc__ = f"{FUNCTIONS[name].source}, elementwise."
    return call


_unary = {name: _named(name) for name in FUNCTIONS if name not in ("linear", "step", "negative")}
globals().update(_unary)


def softmax(x: Any) -> Tensor:
    """exp(x) / sum(exp(x)) over the last axis."""
    return softmax_of(x)


def log_softmax(x: Any) -> Tensor:
    """log(softmax(x)) over the last axis."""
    return softmax_of(x, log=True)


concatenate, take_rows = concat, rows_of

__all__ = [*_unary, "concatenate", "log_softmax", "maximum", "minimum", "softmax", "take_rows"]
