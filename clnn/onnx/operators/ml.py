"""The domain ai.onnx.ml, as scikit-learn's converters use it: columns, scaling, labels."""

from __future__ import annotations

from typing import Any

import numpy as np

from ... import arrays
from ...errors import OutOfRangeError, ShapeError
from ...tensor import Tensor, function
from ..registry import Context, of_dtype, operator

ML = "ai.onnx.ml"


@operator("ArrayFeatureExtractor", 1, domain=ML, host=(1,))
def array_feature_extractor(c: Context, x: Any, at: Any) -> Any:
    at = np.ravel(at)
    if at.size and not 0 <= at.min() <= at.max() < x.shape[-1]:
        raise OutOfRangeError(f"there is no column {at.max()} in an array of shape {x.shape}")
    y = x[..., at] if isinstance(x, np.ndarray) else arrays.take(x, c.tensor(at), x.ndim - 1)
    return y.reshape(1, -1) if x.ndim == 1 else y


@operator("Binarizer", 1, domain=ML)
def binarizer(x: Tensor, *, threshold: float = 0.0) -> Tensor:
    return x > threshold


@operator("Scaler", 1, domain=ML, gives="float32")
def scaler(c: Context, x: Any, *, offset: Any, scale: Any) -> Any:
    x = of_dtype(c.tensor(x), np.float32)
    return (x - c.tensor(np.array(offset, np.float32))) * c.tensor(np.array(scale, np.float32))


@operator("Normalizer", 1, domain=ML, gives="float32")
def normalizer(c: Context, x: Any, *, norm: str = "MAX") -> Any:
    """Rows over their largest element, the sum of their absolute values, or their length; rows of zeros stay."""
    x = of_dtype(c.tensor(x), np.float32)
    if norm not in ("MAX", "L1", "L2"):
        raise ShapeError(f"norm {norm!r} is none of MAX, L1, L2")
    size = (
        x.max(-1, keepdims=True)
        if norm == "MAX"
        else function(x, "abs").sum(-1, keepdims=True)
        if norm == "L1"
        else function(function(x, "square").sum(-1, keepdims=True), "sqrt")
    )
    return x / arrays.where(size == 0, 1.0, size)


@operator("LabelEncoder", 2, domain=ML, host=(0,))
def label_encoder(
    c: Context, x: Any, *, default_float: float = -0.0, default_int64: int = -1, default_string: str = "_Unused",
    default_tensor: Any = None, keys_floats: Any = None, keys_int64s: Any = None, keys_strings: Any = None,
    keys_tensor: Any = None,
    values_floats: Any = None, values_int64s: Any = None, values_strings: Any = None, values_tensor: Any = None,
) -> Any:  # fmt: skip
    """The value that belongs to each key."""
    keys: Any = next((k for k in (keys_tensor, keys_strings, keys_int64s, keys_floats) if k is not None), [])
    if values_tensor is not None:
        values, kind = values_tensor, values_tensor.dtype
        default = default_tensor.reshape(-1)[0] if default_tensor is not None else np.zeros((), kind)[()]
    else:
        values, kind, default = next(
            (v, k, d)
            for v, k, d in (
                (values_strings, object, default_string),
                (values_int64s, np.int64, default_int64),
                (values_floats, np.float32, default_float),
            )
            if v is not None
        )
    if len(keys) != len(values):
        raise ShapeError(f"there are {len(keys)} keys and {len(values)} values")
    known = {_key(k): v for k, v in zip(np.ravel(keys).tolist(), np.ravel(values).tolist())}
    found = [known.get(_key(v), default) for v in x.ravel().tolist()]
    return np.array(found, kind).reshape(x.shape)


def _key(value: Any) -> Any:
    """NaN equals NaN here."""
    return (
        "nan"
        if isinstance(value, float) and value != value
        else np.float32(value)
        if isinstance(value, float)
        else value
    )


@operator("ZipMap", 1, domain=ML, host=(0,))
def zip_map(c: Context, x: Any, *, classlabels_int64s: Any = None, classlabels_strings: Any = None) -> Any:
    """A list of dicts, one for each row: the value of each class."""
    names = classlabels_strings or classlabels_int64s or []
    rows = np.atleast_2d(x)
    if rows.shape[1] != len(names):
        raise ShapeError(f"{len(names)} classes do not fit an array of shape {x.shape}")
    c.gives("sequence")
    return [dict(zip(names, row.tolist())) for row in rows]
