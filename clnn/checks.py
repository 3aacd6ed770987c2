"""What users give, checked: whole numbers, sizes and shapes, and arrays of numbers."""

from __future__ import annotations

import functools
import inspect
import operator
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from .errors import ConfigurationError, DataError, ShapeError

RAGGED = (
    "sequences of different lengths are padded to one, with zeros that Masking or Embedding(mask_zero=True) passes over, or "
    "come as batches, the rows of each of one length"
)


def whole(value: Any) -> int | None:
    """`value` as an int where it is a whole number, Python's or NumPy's; None where it is not. A bool is none."""
    if type(value) is int:
        return value
    if isinstance(value, (bool, np.bool_)):
        return None
    try:
        return operator.index(value)
    except TypeError:
        return None


def check_count(name: str, value: Any, least: int = 1) -> int:
    """`value` as an int, if it is a whole number of `least` or more."""
    number = whole(value)
    if number is None or number < least:
        raise ConfigurationError(f"{name} should be an integer of {least} or more, {value!r} was provided instead")
    return number


def check_flag(name: str, value: Any) -> bool:
    """`value` as a bool, where it is one, or None, 0 or 1: "no" is no truth."""
    if value is not None and not isinstance(value, np.bool_) and value not in (False, True):
        raise ConfigurationError(f"{name} is True or False, and {value!r} was given")
    return bool(value)


def in_range(name: str, value: Any, low: float, high: float, closed: str = "[)") -> float:
    """`value` as a float, if it lies in the range; also of an array without axes, as `np.where` gives it."""
    number = value.item() if getattr(value, "ndim", None) == 0 else value
    fits = isinstance(number, (int, float, np.number)) and not isinstance(number, bool)
    fits = fits and (low <= number if closed[0] == "[" else low < number)
    fits = fits and (number <= high if closed[1] == "]" else number < high)
    if not fits:
        raise ConfigurationError(
            f"{name} should be in {closed[0]}{low:g}, {high:g}{closed[1]}, {value!r} was provided instead"
        )
    return float(number)


def sizes(what: str, value: Any) -> tuple[int, ...]:
    """A shape, or the one size of it, as a tuple of ints of 0 or more."""
    shape = whole_numbers(what, value)
    if any(size < 0 for size in shape):
        raise ShapeError(f"{what} takes sizes of 0 or more, and {value!r} was given")
    return shape


def whole_numbers(what: str, value: Any, many: bool = True) -> tuple[int, ...]:
    """One whole number, or, unless `many` says no, several, as a tuple of ints."""
    if (one := whole(value)) is not None:
        return (one,)
    given = tuple(value) if np.iterable(value) else (value,)
    found = tuple(number for number in map(whole, given) if number is not None)
    if len(found) != len(given) or not (many or len(found) == 1):
        told = f"{what} takes {'whole numbers' if many else 'one whole number'}, and {value!r} was given"
        raise ShapeError(
            told + "; for None give one that occurs, others go too" * (many and any(n is None for n in given))
        )
    return found


def indices_of(key: slice, size: int) -> tuple[int, int, int]:
    """Start, stop and step of a slice of an axis. ShapeError where they are no whole numbers, or the step is 0."""
    try:
        return key.indices(size)
    except (TypeError, ValueError):
        raise ShapeError(f"slices go by whole numbers, and by a step that is not 0; {key!r} was given") from None


def spread(what: str, values: Sequence[Any]) -> tuple[int, ...]:
    """The arguments of a call such as `reshape(2, 3)` or `reshape((2, 3))` as a tuple of ints."""
    return whole_numbers(what, values[0] if len(values) == 1 else values)


def numbers(value: Any, name: str = "the array") -> np.ndarray:
    """`value` as a NumPy array of real numbers or bools. DataError for masked values, complex numbers, objects, text."""
    given = None
    if type(value) is not np.ndarray:
        refuse_masked(value, name)
        given = value
        try:
            value = np.asarray(value)
        except (ValueError, TypeError, RuntimeError) as error:  # rows of different lengths, tensors of other libraries
            told = f"its rows differ in length; {RAGGED}" if "inhomogeneous" in str(error) else error
            raise DataError(f"{name} is no array of numbers: {told}") from error
        if is_sparse(given):
            raise DataError(f"{name} is a sparse matrix, which only the inputs of a model may be: give .toarray()")
    if value.dtype.kind in "fiub":
        return value
    columns = columns_of(given)
    if wrong := [(column, one, _no_number(one)) for column, one in columns if one.dtype.kind not in "fiub"]:
        known = [one for one in wrong if one[2]]
        listed = ", ".join(f"{column!r} ({one.dtype}{bad})" for column, one, bad in (known or wrong)[:9])
        if not known:
            raise DataError(f"{name} has numbers as objects in its columns {listed}: give them with .astype('float32')")
        raise DataError(
            f"{name} should hold numbers, and its columns {listed} hold others: leave them out, or make numbers of them, for "
            "instance with pandas.get_dummies or scikit-learn's OneHotEncoder, and fill in what is missing"
        )
    if columns:  # numbers of different kinds
        return np.column_stack([one for _, one in columns])
    if type(given).__module__ == "pyopencl.array":
        raise DataError(
            f"{name} is an array of PyOpenCL: give array.get(), a copy on the host, or clnn.from_pyopencl(array), a tensor over "
            "the same memory"
        )
    kind = type(value.flat[0]).__name__ if value.size and value.dtype.kind == "O" else str(value.dtype)
    remedy = "convert it, for instance with .astype('float32') or, in pandas, .to_numpy('float32')"
    if kind in ("list", "tuple", "ndarray"):
        remedy = f"numpy.stack makes one array of rows of one length; {RAGGED}"
    if kind.startswith(("str", "<U", "|S", "bytes")):
        remedy = "names of classes become numbers with names, y = numpy.unique(y, return_inverse=True); else " + remedy
    if value.dtype.names or value.dtype.kind == "c":
        remedy = "make columns, of fields with numpy.lib.recfunctions.structured_to_unstructured, of parts as [z.real, z.imag]"
    raise DataError(f"{name} should be an array of numbers, not of {kind}: {remedy}")


def _no_number(column: np.ndarray) -> str:
    """Of a column of objects the first that is no number, in words; of others their type says enough."""
    others = (f", such as {one!r:.30}" for one in column.flat if not isinstance(one, (bool, int, float, np.number)))
    return next(others, "") if column.dtype.kind == "O" else ", no numbers"


def shape_of(value: Any, name: str = "an operand") -> tuple[int, ...]:
    """The shape of a tensor, an array, a list or a number. DataError for what is no array of numbers."""
    return tuple(value.shape) if hasattr(value, "shape") else numbers(value, name).shape


def several(what: str, arrays: Any) -> list[Any]:
    """A list of the arrays that are given as one. ShapeError for what is none."""
    try:
        return list(arrays)
    except TypeError:
        raise ShapeError(f"{what} takes a list of arrays, and {arrays!r} was given") from None


def columns_of(frame: Any) -> list[tuple[Any, np.ndarray]]:
    """The names of a data frame's columns, and each as an array; of anything else none."""
    columns = getattr(frame, "columns", None)
    if columns is None or not hasattr(frame, "dtypes"):
        return []
    return [(column, np.asarray(frame[column])) for column in columns]


def refuse_masked(value: Any, name: str = "the array") -> None:
    """DataError where the array, or one in the list, hides values."""
    if any(isinstance(leaf, np.ma.MaskedArray) and np.ma.is_masked(leaf) for leaf in leaves(value)):
        raise DataError(
            f"{name} is a masked array, and there is no mask here: what lies under it would be used; "
            "give .filled(value), or leave the samples out that it hides"
        )


def is_sparse(value: Any) -> bool:
    """Whether it is one of SciPy's sparse matrices or arrays, found out without SciPy."""
    return type(value).__module__.startswith("scipy.sparse") and hasattr(value, "tocsr")


def whole_array(value: Any, name: str = "the array") -> np.ndarray:
    """`value` as an array of integers, floats too if they are whole. DataError for others."""
    array = numbers(value, name)
    if array.dtype.kind == "f" and array.size and not (np.isfinite(array) & (array == np.floor(array))).all():
        bad = array[~(np.isfinite(array) & (array == np.floor(array)))].flat[0]
        raise DataError(f"{name} takes whole numbers, such as tokens, and {bad} is none")
    return array.astype(np.int64) if array.dtype.kind in "fb" else array


def leaves(value: Any) -> Iterator[Any]:
    """`value`, or where it is a list or a list of lists, what they hold besides Python's numbers."""
    if isinstance(value, (list, tuple)):
        for item in value:
            if not isinstance(item, (int, float)):
                yield from leaves(item)
    else:
        yield value


class OfConstructor:
    """`__signature__` of classes whose `__new__` takes anything: that of `__init__`. Python before 3.11.4 asks `__new__`."""

    def __get__(self, one: Any, kind: Any) -> inspect.Signature:
        if one is not None:  # one that is called has another
            raise AttributeError("__signature__")
        if kind.__init__ is object.__init__:
            return inspect.Signature()
        told = inspect.signature(kind.__init__)
        return told.replace(parameters=[*told.parameters.values()][1:])


@functools.cache
def arguments(kind: Any) -> dict[str, Any]:
    """What the constructor of one of clnn's classes takes, and those that it hands `**options` on to, with their annotations; of
    others nothing."""
    if not kind.__module__.startswith("clnn."):
        return {}
    found: list[inspect.Parameter] = [
        p for base in kind.__mro__[:-1] for p in list(inspect.signature(base.__init__).parameters.values())[1:]
    ]
    return {p.name: p.annotation for p in found if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)}


def defaults(one: Any) -> dict[str, Any]:
    """By name the default of each argument of an object's constructor and of those that it hands `**options` on to."""
    bases: Any = type(one).__mro__[::-1]
    found = [inspect.signature(base.__init__).parameters for base in bases]
    return {name: p.default for each in found for name, p in each.items()}


def as_argument(one: Any, name: str, value: Any) -> Any:
    """What an object of clnn's keeps of `value` for the argument `name` of its constructor, whose errors it raises; what is no
    such argument comes back as it is."""
    kind: Any = type(one)
    if name not in arguments(kind):
        return value
    return vars(kind(**{**one.config(), name: value})).get(name, value)
