"""`SparseRows`: a sparse matrix of SciPy's as `fit` and `predict` take it, of which only the rows in use are ever dense."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..checks import whole
from ..errors import DataError
from .validate import check_features


class SparseRows:
    """A CSR matrix that gives rows as dense arrays of one type, by a slice or by numbers, as a 2-D array does."""

    def __init__(self, matrix: Any, dtype: Any, name: str) -> None:
        self.matrix, self.dtype = matrix.tocsr(), np.dtype(dtype)
        if self.matrix.ndim != 2:
            raise DataError(f"{name} is a sparse array of {self.matrix.ndim} axes, and rows need 2")
        if self.matrix.dtype.kind not in "fiub":
            raise DataError(f"{name} should be a sparse matrix of real numbers, not of {self.matrix.dtype}")
        if self.matrix.dtype != self.dtype:
            self.matrix = self.matrix.astype(self.dtype)
        check_features(self.matrix.data, f"{name}'s stored values")
        self.shape, self.ndim = self.matrix.shape, 2

    def part(self, rows: Any) -> SparseRows:
        """Some rows, still sparse."""
        return SparseRows(self.matrix[rows], self.dtype, "x")

    def __len__(self) -> int:
        return int(self.shape[0])

    def __getitem__(self, rows: Any) -> np.ndarray:
        one = whole(rows)
        found: np.ndarray = self.matrix[[one] if one is not None else rows].toarray()
        return found if one is None else found[0]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return self.matrix.toarray().astype(dtype or self.dtype, copy=False)
