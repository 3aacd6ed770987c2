"""Checks that find the first bad feature or label before it reaches a device, in one pass and little memory."""

import math
import zlib
from collections.abc import Callable, Iterable
from typing import Any, cast

import numpy as np

from clnn.errors import DataError

CHUNK = 1 << 16  # numbers looked at together: they and the answer stay in the processor's cache

STRETCH = 1 << 22  # elements of a checksum that are looked at together


def check_features(x: np.ndarray, name: str = "x") -> None:
    """Raises DataError if `x` holds a NaN or an infinity, naming the first. Cast `x` to the model's dtype before."""
    x = np.asarray(x)
    if x.dtype.kind in "biu":
        return
    if x.dtype.kind != "f":
        raise DataError(
            f"{name} has dtype {x.dtype}, which holds no real numbers; convert it, e.g. x.astype('float32')"
        )
    if x.size <= CHUNK and np.isfinite(x).all():  # at once, as for one sample that is predicted
        return
    if bad := _first(x, lambda chunk: ~np.isfinite(chunk)):
        where, value = bad
        why = f", as what exceeds {np.finfo(x.dtype).max:.2g} is in {x.dtype}" if np.isinf(value) else ""
        raise DataError(
            f"{name}{where} is {value}{why}, and makes NaN of whatever depends on it, in training of every weight; "
            "remove such samples or fill the gaps in, e.g. with numpy.nan_to_num"
        )


def check_labels(y: np.ndarray, classes: int, name: str = "y", ignore: int | None = None) -> None:
    """Raises DataError unless `y` holds integers in [0, classes), or `ignore`, naming the first that is not one."""
    y = np.asarray(y)
    if y.dtype.kind not in "iu":
        raise DataError(
            f"{name} has dtype {y.dtype}, but class labels are integers; convert it, e.g. y.astype('int32')"
        )
    if bad := _first(
        y, lambda chunk: ((chunk < 0) | (chunk >= classes)) & (True if ignore is None else chunk != ignore)
    ):
        where, value = bad
        padding = f", or leave padding out by CrossEntropy(ignore_index={value})" if value < 0 else ""
        raise DataError(
            f"{name}{where} is {value}, outside 0 to {classes - 1}, the labels of {classes} classes; "
            f"renumber the labels, e.g. with numpy.unique(y, return_inverse=True)[1], or give the model more outputs{padding}"
        )


def _first(array: np.ndarray, bad: Callable[[np.ndarray], np.ndarray]) -> tuple[str, Any] | None:
    """Returns the index, as it is written in Python, and the value of the first bad element in row-major order."""
    position = 0
    chunks = np.nditer(array, ["external_loop", "buffered", "zerosize_ok"], order="C", buffersize=CHUNK)
    for chunk in cast(Iterable[np.ndarray], chunks):
        mask = bad(chunk)
        if mask.any():
            first = int(mask.argmax())
            index = np.unravel_index(position + first, array.shape)
            return str([int(i) for i in index]), chunk[first]
        position += chunk.size
    return None


def checksum(arrays: Iterable[Any]) -> int:
    """A number that other values change: of all elements or, where they are over 2^30, of stretches of them. Rows may lie in
    a file or be sparse; None is passed over."""
    found = 0
    for each in (one for one in arrays if one is not None):
        matrix = getattr(each, "matrix", None)
        for one in (each,) if matrix is None else (matrix.data, matrix.indices, matrix.indptr):
            rows = max(1, STRETCH // max(1, math.prod(np.shape(one)[1:])))
            for start in range(0, len(one), rows * max(1, len(one) // rows >> 8)):
                found = zlib.crc32(np.ascontiguousarray(one[start : start + rows]).data, found)
    return found
