"""Comparisons against NumPy in float64, and gradients against central differences."""

from __future__ import annotations

import itertools
import math

import numpy as np

import clnn
from clnn.ops.array import Array
from clnn.tensor import Parameter

STEP = 1e-5  # of central differences; their error is about STEP^2 + eps / STEP
DIFFERENCES = 1e-8  # what central differences may be off by, relative to the largest value around


def eps(dtype):
    return float(np.finfo(dtype).eps)


def normal(rng, shape, dtype=np.float32):
    """Normal values of that type, as float64, so that device and reference start from the same numbers."""
    return np.asarray(rng.standard_normal(shape)).astype(dtype).astype(np.float64)


def host(x):
    """An op's array, a tensor, or anything else as NumPy."""
    if isinstance(x, Array):
        return x.device.read(x.block, np.empty(x.shape, x.dtype))
    return np.asarray(x)


def assert_close(got, expected, bound, what=""):
    """|got - expected| <= bound (a number or an array) everywhere; NaN and infinities only where they are expected."""
    got, expected = np.asarray(got, np.float64), np.asarray(expected, np.float64)
    assert got.shape == expected.shape, f"{what}: shape {got.shape}, expected {expected.shape}"
    special = ~np.isfinite(expected)
    np.testing.assert_array_equal(got[special], expected[special], err_msg=what)
    with np.errstate(invalid="ignore"):
        off = np.where(special, 0.0, np.abs(got - expected))
    wrong = ~(off <= bound)  # NaN is wrong
    assert not wrong.any(), (
        f"{what}: wrong at {tuple(map(int, np.argwhere(wrong)[0]))} and {wrong.sum() - 1} more of {wrong.size}; "
        f"off by {off[wrong].max():.3g} where {np.broadcast_to(bound, off.shape)[wrong].min():.3g} is allowed:\n{got}\n{expected}"
    )


def scale_of(*arrays):
    """The largest finite magnitude around, at least 1."""
    values = np.concatenate([np.ravel(a).astype(np.float64) for a in arrays] + [np.ones(1)])
    return np.abs(values[np.isfinite(values)]).max()


def parameter(array, dtype=np.float32, device=None):
    """A trainable tensor that is no layer's."""
    t = clnn.tensor(np.asarray(array, dtype), dtype=dtype, device=device)
    return Parameter(t.block, t.shape, t.dtype, t.device)


def differences(f, arrays, seed):
    """d sum(f(*arrays) * seed) by each array, by central differences in float64."""
    arrays = [np.array(a, np.float64) for a in arrays]
    found = []
    for a in arrays:
        gradient = np.empty(a.shape)
        for at in itertools.product(*map(range, a.shape)):
            kept, h = a[at], STEP * max(1.0, abs(a[at]))
            a[at] = kept + h
            above = np.array(f(*arrays), np.float64)  # a copy: f may give a view
            a[at] = kept - h
            below = np.array(f(*arrays), np.float64)
            a[at] = kept
            gradient[at] = ((above - below) * seed).sum() / (2 * h)
        found.append(gradient)
    return found


def check_op(rng, op, reference, *arrays, dtype=np.float32, rounding=16, gradients=True):
    """`op` of tensors against `reference` of float64 arrays: its values, and its gradients by every array.

    `rounding` is the error allowed in eps of the largest value around; sums of n terms ask for their own.
    """
    arrays = [np.asarray(a, dtype).astype(np.float64) for a in arrays]
    inputs = [parameter(a, dtype) for a in arrays]
    with np.errstate(all="ignore"):
        expected = np.asarray(reference(*arrays), np.float64)
    y = op(*inputs)
    assert y.dtype == np.dtype(dtype)
    assert_close(y.numpy(), expected, rounding * eps(dtype) * scale_of(expected, *arrays), "value")
    if gradients:
        seed = normal(rng, expected.shape, dtype)
        y.backward(seed.astype(dtype))
        for i, (x, wanted) in enumerate(zip(inputs, differences(reference, arrays, seed))):
            assert x.grad is not None, f"no gradient by argument {i}"
            assert x.grad.dtype == np.dtype(dtype)
            bound = (rounding * eps(dtype) + DIFFERENCES) * scale_of(wanted, seed, *arrays) ** 2
            assert_close(x.grad.numpy(), wanted, bound, f"gradient by argument {i}")
    return y


# -- functions of one variable, as their papers write them -------------------------------------------------------------
def _sigmoid(x):
    return 1 / (1 + np.exp(-x))


def _elu(x, alpha=1.0):
    return np.where(x > 0, x, alpha * np.expm1(np.minimum(x, 0)))


def _erf(x):
    return np.vectorize(math.erf, otypes=[float])(x)


REFERENCES = {
    "linear": lambda x: x,
    "step": lambda x: np.where(np.isnan(x), x, np.heaviside(x, 0.0)),
    "sigmoid": _sigmoid,
    "tanh": np.tanh,
    "relu": lambda x: np.maximum(x, 0),
    "leaky_relu": lambda x: np.where(x > 0, x, 0.01 * x),
    "elu": _elu,
    "selu": lambda x: 1.0507009873554805 * _elu(x, 1.6732632423543772),
    "softplus": lambda x: np.logaddexp(0, x),
    "softsign": lambda x: x / (1 + np.abs(x)),
    "hard_sigmoid": lambda x: np.clip(x / 6 + 0.5, 0, 1),
    "hard_tanh": lambda x: np.clip(x, -1, 1),
    "hard_swish": lambda x: x * np.clip(x / 6 + 0.5, 0, 1),
    "swish": lambda x: x * _sigmoid(x),
    "mish": lambda x: x * np.tanh(np.logaddexp(0, x)),
    "gelu": lambda x: x * (1 + _erf(x / math.sqrt(2))) / 2,
    "gelu_tanh": lambda x: x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))) / 2,
    "exp": np.exp,
    "log": np.log,
    "sqrt": np.sqrt,
    "square": np.square,
    "abs": np.abs,
    "negative": np.negative,
    "sin": np.sin,
    "cos": np.cos,
}
KINKS = {  # where there is no derivative: random inputs keep away
    "step": (0,), "relu": (0,), "leaky_relu": (0,), "elu": (0,), "selu": (0,), "abs": (0,),
    "hard_sigmoid": (-3, 3), "hard_tanh": (-1, 1), "hard_swish": (-3, 3),
}  # fmt: skip


def derivative(name, x, h=STEP):
    """f'(x) by a central difference."""
    with np.errstate(all="ignore"):
        return (REFERENCES[name](x + h) - REFERENCES[name](x - h)) / (2 * h)
