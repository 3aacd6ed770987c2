"""Functions of tensors: all of one and of two variables by their names (`clnn.relu(x)`, `clnn.less(a, b)`), and a few more."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from . import arrays, attention, images, named
from .arrays import *  # noqa: F403
from .arrays import _axis
from .attention import *  # noqa: F403
from .checks import whole, whole_numbers
from .errors import ShapeError
from .foreign import OF_TENSORS, tell
from .images import *  # noqa: F403
from .named import *  # noqa: F403
from .tensor import Tensor, concat, function, tensor


def softmax(x: Any, axis: int = -1) -> Tensor:
    """exp(x) / sum(exp(x)) over an axis."""
    return _over(x, axis, "softmax")


def log_softmax(x: Any, axis: int = -1) -> Tensor:
    """log(softmax(x)) over an axis."""
    return _over(x, axis, "log_softmax")


def _over(x: Any, axis: int, name: str) -> Tensor:
    """The function of x with the axis moved to the end and back."""
    x = tensor(x)
    at = _axis(name, axis, max(1, x.ndim))
    if at >= x.ndim - 1:
        return function(x, name)
    order = [*(a for a in range(x.ndim) if a != at), at]
    return function(x.transpose(order), name).transpose([order.index(a) for a in range(x.ndim)])


def split(x: Any, parts: int | Sequence[int], axis: int = 0) -> list[Tensor]:
    """x cut along `axis`, into `parts` equal parts or into parts of the sizes in `parts`; what `concatenate` joins again.

    ShapeError where a number of parts does not divide the axis, or sizes do not add up to it.
    """
    x = tensor(x)
    axis = _axis("split", axis, x.ndim)
    n = x.shape[axis]
    if (count := whole(parts)) is not None:
        if count < 1 or n % count:
            raise ShapeError(
                f"split: axis {axis} of an array of shape {x.shape} has {n} elements, not {parts} equal parts"
            )
        parts = [n // count] * count
    parts = whole_numbers("split", parts)
    if any(size < 0 for size in parts) or sum(parts) != n:
        raise ShapeError(
            f"split: sizes {list(parts)} add up to {sum(parts)}, and axis {axis} of an array of shape {x.shape} has {n}"
        )
    found, start = [], 0
    for size in parts:
        found.append(x[(*(slice(None),) * axis, slice(start, start + size))])
        start += size
    return found


concatenate = concat

__all__ = ["concatenate", "log_softmax", "softmax", "split"]
__all__ += named.__all__
__all__ += arrays.__all__
__all__ += attention.__all__
__all__ += images.__all__
tell(sys.modules[__name__])
tell(Tensor, [name for name in vars(Tensor) if name[0] != "_"])
OF_TENSORS.update({name: f"clnn.{name}(t)" for name in __all__ if name not in OF_TENSORS})  # they are methods elsewhere
