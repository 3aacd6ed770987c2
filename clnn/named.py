"""The functions that tables of formulas name: of one variable (`clnn.relu(x)`) and of two (`clnn.less(a, b)`).

Type checkers and editors read them in named.pyi, which `.ci/stubs` writes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from . import arrays
from .ops.activation import FUNCTIONS
from .ops.elementwise import BINARY
from .tensor import Tensor, elementwise, function


def _of_one(name: str) -> Callable[[Any], Tensor]:
    def call(x: Any) -> Tensor:
        return function(x, name)

    call.__doc__ = f"{FUNCTIONS[name].source}, elementwise."
    return call


def _of_two(name: str) -> Callable[[Any, Any], Tensor]:
    def call(a: Any, b: Any) -> Tensor:
        return elementwise(name, a, b)

    call.__doc__ = f"{BINARY[name].formula}; elementwise, with broadcasting."
    return call


_found: dict[str, Callable[..., Tensor]] = {
    **{name: _of_one(name) for name in FUNCTIONS if name not in ("linear", "step", "negative", *arrays.__all__)},
    **{name: _of_two(name) for name in BINARY},
}
for _name, _one in _found.items():
    _one.__name__ = _one.__qualname__ = _name
globals().update(_found)
__all__ = [*_found]
