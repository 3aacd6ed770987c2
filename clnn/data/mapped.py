"""`MappedRows`: an `np.memmap` of another type or order than a model's, of which only the rows in use are converted."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..errors import DataError
from .validate import check_features

MAPPED_BYTES = 1 << 28  # of a smaller one a converted copy is made
CHECKED = 1 << 24  # bytes that are looked at together


class MappedRows:
    """Rows of a file as contiguous arrays of one type, by a slice or by numbers."""

    def __init__(self, array: np.ndarray, dtype: Any, name: str, checked: bool = False) -> None:
        self.array, self.dtype, self.name = array, np.dtype(dtype), name
        self.shape, self.ndim = array.shape, array.ndim
        if array.dtype.kind not in "fiub":
            raise DataError(f"{name} should be an array of numbers, not of {array.dtype}")
        step = max(1, CHECKED * len(array) // max(1, array.nbytes))
        for start in range(0, 0 if checked else len(array), step):
            check_features(self[start : start + step], f"{name}[{start}:{start + step}]")

    @staticmethod
    def wanted(value: Any, dtype: Any) -> bool:
        """Whether `value` is so large a file that a converted copy is not to be made."""
        mapped = isinstance(value, np.memmap) and value.ndim and value.nbytes >= MAPPED_BYTES
        return bool(mapped and (value.dtype != dtype or not value.flags.c_contiguous))

    def part(self, rows: Any) -> MappedRows:
        """Some rows, still in the file."""
        return MappedRows(self.array[rows], self.dtype, self.name, checked=True)

    def __len__(self) -> int:
        return len(self.array)

    def __getitem__(self, rows: Any) -> np.ndarray:
        return np.ascontiguousarray(self.array[rows], self.dtype)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self.array, dtype or self.dtype)
