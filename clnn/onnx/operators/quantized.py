"""Numbers of 8 bits with a scale and a zero point, computed as floats; products of whole numbers as float64, which is exact."""

from __future__ import annotations

from typing import Any

import numpy as np

from ... import arrays
from ...errors import ShapeError
from ...tensor import Tensor, apply, elementwise, function
from ..registry import Context, of_dtype, operator
from .elementwise import whole
from .image import convolved, windows

LIMITS = {"uint8": (0, 255), "int8": (-128, 127), "uint16": (0, 65535), "int16": (-32768, 32767)}


def along(t: Any, x: Any, axis: int, block: int = 0) -> Any:
    """A scale or zero point as x is broadcast with it: one number, or one for each place along an axis, or for each block."""
    if t.ndim == 0 or t.shape == (1,):
        return t.reshape(())
    axis = axis + x.ndim if axis < 0 else axis
    if block and t.ndim == x.ndim:
        wide = arrays.repeat(t, block, axis)
        return wide[(*(slice(None),) * axis, slice(0, x.shape[axis]))]
    if t.ndim != 1 or t.shape[0] != x.shape[axis]:
        raise ShapeError(f"a scale of shape {t.shape} does not fit axis {axis} of an array of shape {x.shape}")
    return t.reshape([-1 if a == axis else 1 for a in range(x.ndim)])


def as_float(c: Context, x: Any) -> Tensor:
    return of_dtype(c.tensor(x), np.float32)


@operator("QuantizeLinear", 10)
def quantize(
    c: Context, x: Any, scale: Any, zero: Any = None, *, axis: int = 1, block_size: int = 0, output_dtype: int = 0,
    precision: int = 0, saturate: int = 1,
) -> Any:  # fmt: skip
    """round(x / scale) + zero, cut to what the type holds."""
    kind = (
        c.types[2]
        if zero is not None
        else {0: "uint8", 2: "uint8", 3: "int8", 4: "uint16", 5: "int16"}.get(output_dtype, "")
    )
    if kind not in LIMITS:
        raise ShapeError(f"numbers of type {kind or output_dtype} are not made here")
    x = as_float(c, x)
    y = function(x / along(as_float(c, scale), x, axis, block_size), "round")
    y = y if zero is None else y + along(as_float(c, zero), x, axis, block_size)
    low, high = LIMITS[kind]
    c.gives(kind)
    return apply(whole, elementwise("minimum", elementwise("maximum", y, float(low)), float(high)))


@operator("DequantizeLinear", 10)
def dequantize(
    c: Context, x: Any, scale: Any, zero: Any = None, *, axis: int = 1, block_size: int = 0, output_dtype: int = 0
) -> Any:
    """(x - zero) scale."""
    c.gives(c.types[1])
    x = as_float(c, x)
    x = x if zero is None else x - along(as_float(c, zero), x, axis, block_size)
    return x * along(as_float(c, scale), x, axis, block_size)


@operator("DynamicQuantizeLinear", 11)
def dynamic_quantize(c: Context, x: Any) -> Any:
    """x as uint8, with the scale and zero point that its least and largest number ask for."""
    x = c.tensor(x)
    low, high = elementwise("minimum", x.min(), 0.0), elementwise("maximum", x.max(), 0.0)
    scale = (high - low) / 255.0
    scale = arrays.where(scale == 0, 1.0, scale)
    zero = function(arrays.clip(-low / scale, 0.0, 255.0), "round")
    y = arrays.clip(function(x / scale, "round") + zero, 0.0, 255.0)
    c.gives("uint8", "float32", "uint8")
    return apply(whole, y), scale, apply(whole, zero)


def as_double(c: Context, x: Any) -> Tensor:
    """x as float64, in which sums of products of 8 bits are exact; a DeviceError where there is none."""
    return of_dtype(as_float(c, x), np.float64)


@operator("MatMulInteger", 10, gives="int32")
def matmul_integer(c: Context, a: Any, b: Any, a_zero: Any = None, b_zero: Any = None) -> Any:
    """(a - zero) (b - zero) of numbers of 8 bits."""
    a, b = as_double(c, a), as_double(c, b)
    if a_zero is not None:
        zero = as_double(c, a_zero)
        a = a - (
            zero.reshape(-1, 1) if zero.ndim == 1 and zero.size > 1 else zero.reshape(()) if zero.size == 1 else zero
        )
    b = b if b_zero is None else b - along(as_double(c, b_zero), b, -1)
    return apply(whole, a @ b)


@operator("ConvInteger", 10, gives="int32")
def conv_integer(
    c: Context, x: Any, w: Any, x_zero: Any = None, w_zero: Any = None, *, auto_pad: str = "NOTSET", dilations: Any = None,
    group: int = 1, kernel_shape: Any = None, pads: Any = None, strides: Any = None,
) -> Any:  # fmt: skip
    x, w = as_double(c, x), as_double(c, w)
    x = x if x_zero is None else x - as_double(c, x_zero).reshape(())
    w = w if w_zero is None else w - along(as_double(c, w_zero), w, 0)
    y = convolved(x, w, None, windows(x, w.shape[2:], strides, pads, dilations, auto_pad), group)
    return apply(whole, function(y, "round"))
