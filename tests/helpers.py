"""Comparisons against NumPy in float64, and gradients against central differences."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

import clnn
from clnn.ops.array import Array
from clnn.runtime.profile.peaks import check_clock
from clnn.tensor import Parameter
from clnn.tools.verify.references import FUNCTIONS as REFERENCES  # noqa: F401 - what the tests take from here
from clnn.tools.verify.references import KINKS, STEP, derivative  # noqa: F401

DIFFERENCES = 1e-8  # what central differences may be off by, relative to the largest value around


def eps(dtype):
    return float(np.finfo(dtype).eps)


def as_a_cpu(device, monkeypatch):
    """The device takes kernels for CPUs, if its driver can run them."""
    monkeypatch.setattr(device, "kind", "cpu")
    if not device.long_loops:
        pytest.skip(f"{device!r} ends loops too early for kernels of CPUs")


def needs_local_memory(device, nbytes=1 << 16):
    """Skips the test where kernels of CPUs run with less: llvmpipe has 32 KiB, and Mesa 25's runs them."""
    if device.long_loops and device.local_memory < nbytes:
        pytest.skip(f"the blocks of this test do not fit {device.local_memory:,} bytes of local memory")


def tells_time(device):
    """Whether the driver says what launches take."""
    try:
        check_clock(device)
    except clnn.DeviceError:
        return False
    return True


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


def along(f, arrays, seed, i, at):
    """sum(f(*arrays) * seed) as a function of the distance that entry `at` of array i is moved by."""
    arrays = [np.array(a, np.float64) for a in arrays]
    kept = arrays[i][at]

    def value(distance):
        arrays[i][at] = kept + distance
        return (np.asarray(f(*arrays), np.float64) * seed).sum()

    return value, STEP * max(1.0, abs(kept))


def differences(f, arrays, seed):
    """d sum(f(*arrays) * seed) by each array, by central differences in float64."""
    found = []
    for i, a in enumerate(arrays):
        gradient = np.empty(np.shape(a))
        for at in itertools.product(*map(range, gradient.shape)):
            value, h = along(f, arrays, seed, i, at)
            gradient[at] = (value(h) - value(-h)) / (2 * h)
        found.append(gradient)
    return found


def beside_a_kink(value, h):
    """Random inputs come near a kink now and then. Where there is one within h of 0, but not at 0 itself, the derivative of
    `value` at 0: that of the side without it, whose three values are nearly on a line. Elsewhere None."""
    here, sides = value(0.0), []
    for step in (h, -h):
        middle, end = value(step / 2), value(step)
        sides.append((abs(end - 2 * middle + here), (4 * middle - end - 3 * here) / step))
    (straight, side), (bent, _) = sorted(sides)
    return side if straight < 0.05 * bent and bent > 1e-11 * max(1.0, abs(here)) else None  # by more than rounding


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
            got = x.grad.numpy()
            for at in map(tuple, np.argwhere(~(np.abs(got - wanted) <= bound))):
                side = beside_a_kink(*along(reference, arrays, seed, i, at))
                wanted[at] = wanted[at] if side is None else side
            assert_close(got, wanted, bound, f"gradient by argument {i}")
    return y
