"""Functions of tensors as NumPy and PyTorch know them: choosing, joining, indexing, sorting, statistics.

Arguments may be tensors, arrays, numbers or nested lists. All have gradients unless they say otherwise, work under
`@clnn.step`, and raise ShapeError for shapes and axes that do not fit.
"""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from .checks import check_count, in_range, numbers, several, shape_of, sizes, whole, whole_numbers
from .errors import ConfigurationError, OutOfRangeError, ShapeError
from .ops import index as ops
from .ops.aggregate import reduce
from .ops.array import FLOATS, check_float, empty
from .ops.elementwise import choose
from .ops.reduce import normal_axes
from .runtime.devices.choice import resolve
from .tape import no_grad
from .tensor import Tensor, _wrap, apply, concat, function, on_tape, tensor, tensor_like, truths


# -- choosing ---------------------------------------------------------------------------------------------------------
def where(condition: Any, a: Any, b: Any) -> Tensor:
    """a where the condition is not 0, else b, with broadcasting. A gradient goes to what was chosen: what was not may be NaN.

    >>> clnn.where(clnn.tensor([1.0, -2.0]) > 0, 5.0, 7.0).numpy()
    array([5., 7.], dtype=float32)
    """
    like = next((t for t in (a, b) if isinstance(t, Tensor)), None)
    device = like.device if like is not None else condition.device if isinstance(condition, Tensor) else None
    dtype = None if like is None else like.dtype
    if not shape_of(a) and not shape_of(b) and any(isinstance(value, float) for value in (a, b)):
        dtype = dtype or np.dtype(np.float32)  # numbers are no arrays to upload, which would end a recording
    condition = tensor(condition, device=device)

    def operand(value: Any) -> Any:
        if isinstance(value, Tensor) or (not shape_of(value) and dtype is not None):
            return value if isinstance(value, Tensor) else numbers(value, "where's argument").item()
        return tensor(value, dtype, device) if like is None else tensor_like(value, like)

    p, q = operand(a), operand(b)
    y, backward = choose(condition, p, q)
    return truths(on_tape(y, (p, q), lambda dy: backward(dy)), a, b)


def masked_fill(x: Any, mask: Any, value: float) -> Tensor:
    """x with `value` where the mask is not 0, as PyTorch has it."""
    return where(mask, value, tensor(x))


def clip(x: Any, low: float | None = None, high: float | None = None) -> Tensor:
    """x, but at least `low` and at most `high`, numbers or arrays; NaN stays. The gradient is 0 where x was cut off."""
    x = y = tensor(x)
    if low is None and high is None:
        raise ConfigurationError("clip needs a low or a high bound")
    if low is not None:
        y = where(y < low, low, y)
    return truths(y if high is None else where(y > high, high, y), x, means=True)


def leaky_relu(x: Any, slope: Any = 0.01) -> Tensor:
    """x where x > 0, else slope x (Maas et al. 2013). A `slope` that is a tensor learns, as PReLU's does (He et al. 2015)."""
    if not isinstance(slope, Tensor) and not shape_of(slope) and slope == 0.01:
        return function(x, "leaky_relu")
    check_float("leaky_relu", x := tensor(x))
    return where(x > 0, x, x * slope)


def elu(x: Any, alpha: float = 1.0) -> Tensor:
    """x where x > 0, else alpha (exp(x) - 1) (Clevert et al. 2016)."""
    if alpha == 1:
        return function(x, "elu")
    check_float("elu", x := tensor(x))
    return where(x > 0, x, alpha * function(where(x > 0, 0.0, x), "expm1"))


# -- shapes -----------------------------------------------------------------------------------------------------------
def _axis(what: str, axis: Any, ndim: int) -> int:
    one = whole(axis)
    if one is None or not -ndim <= one < ndim:
        raise ShapeError(f"{what} is along one of {ndim} axes: axis {axis!r} is out of range")
    return one % ndim


def expand_dims(x: Any, axis: int) -> Tensor:
    """x with an axis of length 1 at place `axis` of the result."""
    x = tensor(x)
    axis = _axis("expand_dims", axis, x.ndim + 1)
    return x.reshape((*x.shape[:axis], 1, *x.shape[axis:]))


def squeeze(x: Any, axis: int | Sequence[int] | None = None) -> Tensor:
    """x without its axes of length 1, or without those that `axis` names."""
    x = tensor(x)
    axes = normal_axes(x.ndim, axis)
    if axis is not None and any(x.shape[a] != 1 for a in axes):
        raise ShapeError(f"squeeze: not all of the axes {axis!r} of an array of shape {x.shape} have length 1")
    return x.reshape([s for a, s in enumerate(x.shape) if not (a in axes and s == 1)])


def stack(tensors: Iterable[Any], axis: int = 0) -> Tensor:
    """Arrays of one shape joined along a new axis.

    >>> clnn.stack([[1.0, 2.0], [3.0, 4.0]], axis=1).numpy()
    array([[1., 3.],
           [2., 4.]], dtype=float32)
    """
    tensors = several("stack", tensors)
    shapes = [*map(shape_of, tensors)]
    if any(shape != shapes[0] for shape in shapes):
        raise ShapeError(f"stack joins arrays of one shape, not of {shapes}; concatenate joins along an axis of theirs")
    if not tensors:
        raise ShapeError("stack needs at least one array")
    axis = _axis("stack", axis, len(shapes[0]) + 1)
    like = next((t for t in tensors if isinstance(t, Tensor)), None)
    return concat([expand_dims(t if like is None else tensor_like(t, like), axis) for t in tensors], axis)


def flip(x: Any, axis: int | Sequence[int] | None = None) -> Tensor:
    """x with its elements in reverse along an axis, several, or all of them."""
    x = tensor(x)
    axes = normal_axes(x.ndim, axis)
    return x[tuple(slice(None, None, -1) if a in axes else slice(None) for a in range(x.ndim))]


def roll(x: Any, shift: int, axis: int) -> Tensor:
    """x with its elements moved `shift` places on along an axis, those at the end to its start."""
    x = tensor(x)
    axis = _axis("roll", axis, x.ndim)
    n = x.shape[axis]
    (shift,) = whole_numbers("roll's shift", shift, many=False)
    at, first = (slice(None),) * axis, -shift % max(1, n)
    return concat([x[(*at, slice(first, None))], x[(*at, slice(None, first))]], axis)


def tile(x: Any, times: int | Sequence[int]) -> Tensor:
    """x repeated as a whole, `times` along each axis, the last ones if there are fewer numbers; more add axes in front."""
    x = tensor(x)
    times = sizes("tile", times)
    x = x.reshape((1,) * (len(times) - x.ndim) + x.shape)
    for axis, n in enumerate(times, x.ndim - len(times)):
        if n != 1:  # one after the other: together they would take twice as many axes
            x = _repeated(x, n, x.shape[:axis], x.shape[axis:])
    return x


def _repeated(x: Tensor, times: int, before: tuple[int, ...], after: tuple[int, ...]) -> Tensor:
    """x (*before, *after) with its last axes repeated as a whole."""
    outer, inner = math.prod(before), math.prod(after)
    wide = x.reshape(outer, 1, inner).broadcast_to((outer, times, inner))
    return wide.reshape(*before, times * after[0], *after[1:])


def repeat(x: Any, times: int, axis: int) -> Tensor:
    """x with each element along an axis repeated `times`, one beside the other."""
    x = tensor(x)
    axis = _axis("repeat", axis, x.ndim)
    times = check_count("repeat's times", times, 0)
    before, n, after = x.shape[:axis], x.shape[axis], x.shape[axis + 1 :]
    return _repeated(x, times, (*before, n), (1, *after)).reshape(*before, n * times, *after)


def arange(start: float, stop: float | None = None, step: float = 1, dtype: Any = None, device: Any = None) -> Tensor:
    """start, start + step, ... below stop; from 0 with one argument. int32 where all three are integers, else float32."""
    if stop is None:
        start, stop = 0, start
    ends = [numbers(v, "arange's argument") for v in (start, stop, step)]
    if any(v.size != 1 for v in ends):
        raise ShapeError(f"arange takes numbers, and arrays of shapes {[v.shape for v in ends]} were given")
    given: list[Any] = [v.item() if whole(v) is None else whole(v) for v in ends]
    if given[2] == 0 or not all(map(math.isfinite, given)):
        raise ConfigurationError(f"arange takes finite numbers, and a step that is not 0; {given} were given")
    kind = np.dtype(dtype or (np.int32 if all(isinstance(v, int) for v in given) else np.float32))
    if kind not in FLOATS and (kind != np.int32 or not all(float(v).is_integer() for v in given)):
        raise ShapeError(f"arange makes float32, float64, or int32 of whole numbers, and not {dtype!r} of {given}")
    where_, n = resolve(device), max(0, math.ceil((given[1] - given[0]) / given[2]))
    where_.real(kind)
    if kind == np.int32 and n and not all(-(2**31) <= end < 2**31 for end in (given[0], given[0] + (n - 1) * given[2])):
        raise ShapeError(f"arange makes int32, up to 2147483647, and {given} goes beyond; give dtype='float64'")
    return _wrap(ops.arange(where_, n, given[0], given[2], kind))


def _triangle(x: Any, k: int, upper: bool) -> Tensor:
    x = tensor(x)
    if x.ndim < 2:
        raise ShapeError(f"a triangle is one of the last two axes, and the shape is {x.shape}")
    rows, columns = x.shape[-2:]
    (k,) = whole_numbers("the diagonal", k, many=False)
    ahead = arange(columns, device=x.device) - arange(rows, device=x.device).reshape(rows, 1)
    return truths(where(ahead >= k if upper else ahead <= k, x, 0.0), x)  # 0 is False


def tril(x: Any, k: int = 0) -> Tensor:
    """x with zeros above its kth diagonal, over the last two axes: element [i, j] stays where j - i <= k."""
    return _triangle(x, k, False)


def triu(x: Any, k: int = 0) -> Tensor:
    """x with zeros below its kth diagonal, over the last two axes: element [i, j] stays where j - i >= k."""
    return _triangle(x, k, True)


def one_hot(labels: Any, classes: int) -> Tensor:
    """float32 of shape (*labels.shape, classes): 1 at each label, else 0. OutOfRangeError for a label outside 0 to classes - 1;
    in a recorded step, where it cannot be seen, its row is NaN, and the error comes later, as for `take`. It has no gradient.

    >>> clnn.one_hot([2, 0], 3).numpy()
    array([[0., 0., 1.],
           [1., 0., 0.]], dtype=float32)
    """
    classes, labels = check_count("one_hot's classes", classes), tensor(labels)
    if labels.dtype != np.int32 and labels.size:
        raise ShapeError(f"one_hot: labels are int32, not {labels.dtype}; convert with .astype('int32')")
    if labels.device.reads and labels.size:
        given = labels.numpy()
        if not 0 <= given.min() <= given.max() < classes:
            bad = given[(given < 0) | (given >= classes)].flat[0]
            raise OutOfRangeError(f"one_hot: label {bad} is none of {classes} classes, 0 to {classes - 1}")
    every = arange(classes, device=labels.device)
    # One of no class is noted, and becomes the least number
    found = expand_dims(apply(ops.take, every, index=labels, from_end=False), -1)
    return where(found >= 0, found == every, math.nan)


# -- indexing ---------------------------------------------------------------------------------------------------------
def _index(what: str, index: Any, size: int, of: Tensor) -> Tensor:
    """An index as int32 on the device of `of`, in range where that can be seen: in a recorded step it cannot."""
    on_host = not isinstance(index, Tensor)
    given = numbers(index, f"{what}'s index") if on_host else index.numpy() if of.device.reads else None
    if (index.dtype if given is None else given.dtype).kind not in "iu" and (given is None or given.size):
        raise ShapeError(f"{what}: rows are named by whole numbers, not by {index!r}")
    if given is not None and given.size and not -size <= given.min() <= given.max() < size:
        bad = given[(given < -size) | (given >= size)].flat[0]
        raise OutOfRangeError(f"{what}: there is no row {bad} in an array of shape {of.shape}")
    return tensor(given, np.int32, of.device) if on_host else index


def take(x: Any, index: Any, axis: int = 0) -> Tensor:
    """The rows of x along `axis` that an index of any shape names: x.shape[:axis] + index.shape + x.shape[axis + 1:].

    Negative numbers count from the end. The gradient of a row is the sum over all that named it, in their order, so to the
    same bits each time. OutOfRangeError for a row that x does not have; where the index lies on the device and a step is
    recorded, that row is NaN (of int32 the least number), and the error comes where a NaN is read by `item()` or `float()`, when
    the step is looked at again, and after each epoch of fit, evaluate and predict.
    """
    x = tensor(x)
    axis = _axis("take", axis, x.ndim)
    return apply(ops.take, x, index=_index("take", index, x.shape[axis], x), axis=axis)


def take_rows(x: Any, index: Any) -> Tensor:
    """x[index] for whole numbers of any shape that name rows of x: `take` along the first axis."""
    return take(x, index)


def gather(x: Any, index: Any, axis: int = -1) -> Tensor:
    """y[..., j, ...] = x[..., index[..., j, ...], ...] along `axis`: NumPy's take_along_axis, PyTorch's gather. The index has
    x's shape but for that axis. Errors and gradient as for `take`.

    >>> clnn.gather([[1.0, 2.0], [3.0, 4.0]], [[1], [0]]).numpy()
    array([[2.],
           [3.]], dtype=float32)
    """
    x = tensor(x)
    axis = _axis("gather", axis, x.ndim)
    return apply(ops.gather, x, index=_index("gather", index, x.shape[axis], x), axis=axis)


def scatter_add(x: Any, index: Any, values: Any, axis: int = 0) -> Tensor:
    """x, to whose rows along `axis` that `index` names `values` are added, in their order: the same bits each time.

    >>> clnn.scatter_add(clnn.zeros(3), [1, 1, 2], [1.0, 2.0, 3.0]).numpy()
    array([0., 3., 3.], dtype=float32)
    """
    x = tensor(x)
    axis = _axis("scatter_add", axis, x.ndim)
    at, values = _index("scatter_add", index, x.shape[axis], x), tensor(values, x.dtype, x.device)
    y, backward = ops.scatter_add(x, at, values, axis)
    return on_tape(y, (x, values), backward)


# -- products ---------------------------------------------------------------------------------------------------------
def einsum(how: str, a: Any, b: Any = None) -> Tensor:
    """Einstein's sums over one array or two: `einsum("bij,bjk->bik", a, b)`, by one product of matrices for two.

    A letter names an axis: one that both have and the result too runs along; one that the result lacks is summed over. Without
    "->" the letters that stand once are the result's, in order. ShapeError for a letter twice in one array, for "...", and for
    sizes that differ.

    >>> clnn.einsum("ij,j->i", [[1.0, 2.0], [3.0, 4.0]], [1.0, 10.0]).numpy()
    array([21., 43.], dtype=float32)
    """
    given = [tensor(a)] if b is None else [t := tensor(a), tensor(b, t.dtype, t.device)]
    inputs, arrow, result = (how if isinstance(how, str) else "").replace(" ", "").partition("->")
    names = inputs.split(",")
    every = "".join(names)
    if not arrow:
        result = "".join(sorted(c for c in set(every) if every.count(c) == 1))
    sizes_of: dict[str, int] = {}
    twice = not isinstance(how, str) or any(len(set(name)) != len(name) for name in [*names, result])
    if len(names) != len(given) or twice or (every + result and not (every + result).isalpha()):
        told = f"einsum({how!r}) names each axis of {len(given)} arrays by a letter, none twice in one, and no '...'"
        raise ShapeError(told)
    for name, t in zip(names, given):
        if len(name) != t.ndim:
            raise ShapeError(f"einsum({how!r}): {name!r} names {len(name)} axes, and the array has the shape {t.shape}")
        for letter, size in zip(name, t.shape):
            if sizes_of.setdefault(letter, size) != size:
                told = f"einsum({how!r}): axis {letter!r} is {sizes_of[letter]} in one array and {size} in the other"
                raise ShapeError(told)
    if not set(result) <= set(every):
        raise ShapeError(f"einsum({how!r}): the result has axes that no array has")
    for i, name in enumerate(names):  # what one array alone has, and the result has not
        lone = [c for c in name if c not in result and not any(c in other for j, other in enumerate(names) if j != i)]
        if lone:
            given[i] = given[i].sum(tuple(name.index(c) for c in lone))
            names[i] = "".join(c for c in name if c not in lone)
    if len(given) == 1:
        return given[0].transpose([names[0].index(c) for c in result])
    (p, q), (x, y) = names, given
    along = [c for c in p if c in q and c in result]
    joined = [c for c in p if c in q and c not in result]
    mine, others = [c for c in p if c not in q], [c for c in q if c not in p]
    lengths = lambda letters: [sizes_of[c] for c in letters]  # noqa: E731
    depth = math.prod(lengths(joined))
    left = _ordered(x, p, "".join(along + mine + joined)).reshape(*lengths(along), math.prod(lengths(mine)), depth)
    right = _ordered(y, q, "".join(along + joined + others)).reshape(*lengths(along), depth, math.prod(lengths(others)))
    found = (left @ right).reshape(lengths(along + mine + others))
    return _ordered(found, "".join(along + mine + others), result)


def _ordered(x: Tensor, names: str, wanted: str) -> Tensor:
    """x, whose axes have these names, with them in another order."""
    return x if names == wanted else x.transpose([names.index(c) for c in wanted])


# -- sorting ----------------------------------------------------------------------------------------------------------
def _sorted(what: str, x: Tensor, axis: int, descending: bool) -> tuple[Tensor, int]:
    """Where the elements of x lie in order along an axis, as int32 of x's shape, and that axis."""
    axis = _axis(what, axis, x.ndim)
    x = x.detach()
    order = [*(a for a in range(x.ndim) if a != axis), axis]
    with no_grad():
        last = x if axis == x.ndim - 1 else x.transpose(order)
        rows = last.reshape(-1, last.shape[-1]) if last.size else last.reshape(0, last.shape[-1])
        at = ops.sort(rows, descending)[1] if last.size else empty(x.device, last.shape, np.int32)
        at = _wrap(at).reshape(last.shape)
        return (at if axis == x.ndim - 1 else at.transpose([order.index(a) for a in range(x.ndim)])), axis


def argsort(x: Any, axis: int = -1, descending: bool = False) -> Tensor:
    """Where along an axis the elements in order are, as int32. Equals keep their order; NaN counts as largest. No gradient."""
    return _sorted("argsort", tensor(x), axis, descending)[0]


def sort(x: Any, axis: int = -1, descending: bool = False) -> Tensor:
    """x in order along an axis; NaN counts as largest.

    >>> clnn.sort([3.0, 1.0, 2.0]).numpy()
    array([1., 2., 3.], dtype=float32)
    """
    x = tensor(x)
    at, axis = _sorted("sort", x, axis, descending)
    return apply(ops.gather, x, index=at, axis=axis)


def topk(x: Any, k: int, axis: int = -1, largest: bool = True) -> tuple[Tensor, Tensor]:
    """The k largest (or least) along an axis, in order, and where they are, int32."""
    x = tensor(x)
    at, axis = _sorted("topk", x, axis, largest)
    k = check_count("topk's k", k, 0)
    if k > x.shape[axis]:
        raise ShapeError(f"topk: there are no {k} elements along axis {axis} of an array of shape {x.shape}")
    at = at[(*(slice(None),) * axis, slice(k))]
    return apply(ops.gather, x, index=at, axis=axis), at


def argmin(x: Any, axis: int | None = -1) -> Tensor:
    """Where along an axis, or with None among all elements, the least is; otherwise as `Tensor.argmax`."""
    check_float("argmin", x := tensor(x).detach())
    return (-x).argmax(axis)


# -- sums and statistics ----------------------------------------------------------------------------------------------
def cumsum(x: Any, axis: int = -1) -> Tensor:
    """y[k] = the sum of x[j] over j <= k along an axis."""
    x = tensor(x)
    return truths(apply(ops.cumulative_sum, x, axis=_axis("cumsum", axis, x.ndim)), x, means=True)


def prod(x: Any, axis: Any = None, keepdims: bool = False) -> Tensor:
    """The product over an axis, several, or all of them. The gradient is right where elements are 0, too."""
    return apply(reduce, tensor(x), kind="prod", axis=axis, keepdims=keepdims)


def var(x: Any, axis: Any = None, keepdims: bool = False, ddof: int = 0) -> Tensor:
    """The variance over an axis, several, or all of them: the sum of (x - mean)^2 over n - ddof (PyTorch's `ddof` is 1)."""
    return _variance("var", tensor(x), axis, keepdims, ddof)


def _variance(what: str, x: Tensor, axis: Any, keepdims: bool, ddof: float) -> Tensor:
    """The variance, as `what` wants it."""
    check_float(what, x)
    n = math.prod(x.shape[a] for a in normal_axes(x.ndim, axis))
    ddof = in_range(f"{what}'s ddof", ddof, -math.inf, math.inf, "()")
    if n - ddof <= 0:
        raise ShapeError(f"{what} over {n} elements with ddof={ddof:g}: an array of shape {x.shape} over axis {axis!r}")
    return function(x - x.mean(axis, keepdims=True), "square").sum(axis, keepdims) / (n - ddof)


def std(x: Any, axis: Any = None, keepdims: bool = False, ddof: int = 0) -> Tensor:
    """The standard deviation, the square root of `var`; where it is 0, so is the gradient."""
    squared = _variance("std", tensor(x), axis, keepdims, ddof)
    flat = squared == 0  # where the root's derivative is infinite
    return where(flat, 0.0, function(where(flat, 1.0, squared), "sqrt"))


def logsumexp(x: Any, axis: Any = None, keepdims: bool = False) -> Tensor:
    """log(sum(exp(x))) over an axis, several, or all of them, without overflow; -inf over no elements."""
    check_float("logsumexp", x := tensor(x))
    axes = normal_axes(x.ndim, axis)
    if not all(x.shape[a] for a in axes):
        return function(x.sum(axis, keepdims), "log")
    top = x.detach().max(axis, keepdims=True)
    top = where(function(top, "isfinite"), top, 0.0)
    y = function(function(x - top, "exp").sum(axis, keepdims=True), "log") + top
    return y if keepdims else y.reshape([s for a, s in enumerate(x.shape) if a not in axes])


__all__ = [
    "arange", "argmin", "argsort", "clip", "cumsum", "einsum", "elu", "expand_dims", "flip", "gather", "leaky_relu", "logsumexp",
    "masked_fill", "one_hot", "prod", "repeat", "roll", "scatter_add", "sort", "squeeze", "stack", "std", "take", "take_rows",
    "tile", "topk", "tril", "triu", "var", "where",
]  # fmt: skip


@contextlib.contextmanager
def _called(name: str) -> Iterator[None]:
    """Errors of what is computed within it begin with that name, not with that of a part."""
    try:
        yield
    except ShapeError as error:
        if not re.search(rf"\b{name}\b", str(error)):
            error.args = (re.sub(r"^(\w+: )?", f"{name}: ", str(error)),)
        raise


globals().update({name: _called(name)(globals()[name]) for name in __all__})
