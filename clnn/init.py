"""Initialisers: functions that make the first values of a parameter, by name or as objects.

Each takes (shape, generator, dtype) and returns an `Array`. For weights of shape (in, out), or (out, in, *size) of
convolutions, `fans` gives the numbers of inputs and outputs of one unit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from .checks import in_range
from .errors import ConfigurationError
from .foreign import NAMES, VALUES, bind, unknown
from .ops.array import Array, empty, fill
from .ops.random import Generator

Initialiser = Callable[[Sequence[int], Generator, Any], Array]


def fans(shape: Sequence[int]) -> tuple[int, int]:
    """(inputs, outputs) of one unit: weights are (in, out), or (out, in, *size) for convolutions, where each counts as often
    as the kernel has taps; a vector counts as its own length."""
    if len(shape) < 2:
        return (max(1, math.prod(shape)),) * 2
    if len(shape) == 2:
        return max(1, shape[0]), max(1, shape[1])
    taps = math.prod(shape[2:])
    return max(1, shape[1] * taps), max(1, shape[0] * taps)


# The functions behind the names: of a module, so that models that hold them can be pickled.
def _constant(value: float, shape: Sequence[int], generator: Generator, dtype: Any) -> Array:
    made = empty(generator.device, shape, dtype)
    if value == 0 < math.copysign(1, value):  # as biases are: no kernel has to be compiled for it
        generator.device.fill_zero(made.block)
        return made
    return fill(made, value)


def _uniform(low: float, high: float, shape: Sequence[int], generator: Generator, dtype: Any) -> Array:
    return generator.uniform(shape, low, high, dtype)


def _normal(mean: float, deviation: float, shape: Sequence[int], generator: Generator, dtype: Any) -> Array:
    return generator.normal(shape, mean, deviation, dtype)


def _scaled(variance: Any, distribution: str, shape: Sequence[int], generator: Generator, dtype: Any) -> Array:
    deviation = math.sqrt(variance(*fans(shape)))
    if distribution == "normal":
        return generator.normal(shape, 0.0, deviation, dtype)
    return generator.uniform(shape, -math.sqrt(3) * deviation, math.sqrt(3) * deviation, dtype)


def _orthogonal(gain: float, shape: Sequence[int], generator: Generator, dtype: Any) -> Array:
    if len(shape) < 2:
        raise ConfigurationError(f"orthogonal weights need two axes, and the shape is {tuple(shape)}")
    rows, columns = shape[0], math.prod(shape[1:])
    flat = generator.normal((max(rows, columns), min(rows, columns)), dtype=dtype)
    q, r = np.linalg.qr(generator.device.read(flat.block, np.empty(flat.shape, flat.dtype)).astype(np.float64))
    q *= np.sign(np.diag(r))  # makes the distribution uniform (Mezzadri 2007)
    q = gain * (q if rows >= columns else q.T)
    y = empty(generator.device, shape, dtype)
    generator.device.upload(np.ascontiguousarray(q.reshape(shape), dtype), y.block)
    return y


def constant(value: float) -> Initialiser:
    """Every element is `value`."""
    return partial(_constant, value)


def uniform(low: float = -0.05, high: float = 0.05) -> Initialiser:
    """Uniform in [low, high)."""
    return partial(_uniform, in_range("low", low, -math.inf, high, "(]"), high)


def normal(mean: float = 0.0, deviation: float = 1.0) -> Initialiser:
    """Normal with mean and standard deviation; the defaults are Nielsen's old weights and biases (chapter 1)."""
    return partial(_normal, mean, in_range("deviation", deviation, 0.0, math.inf))


def scaled(variance: Callable[[int, int], float], distribution: str) -> Initialiser:
    """Normal or uniform with mean 0 and a variance that is a function of (inputs, outputs)."""

    return partial(_scaled, variance, distribution)


def orthogonal(gain: float = 1.0) -> Initialiser:
    """Rows or columns (the fewer) orthonormal, times gain (Saxe et al. 2014)."""

    return partial(_orthogonal, gain)


def _glorot(n_in: int, n_out: int) -> float:
    return 2.0 / (n_in + n_out)


INITIALISERS: dict[str, Initialiser] = {
    "zeros": constant(0.0),
    "ones": constant(1.0),
    "uniform": uniform(),
    "normal": normal(),
    "nielsen_old": normal(),  # N(0, 1), Nielsen chapter 1
    "nielsen_new": scaled(lambda n_in, n_out: 1.0 / n_in, "normal"),  # N(0, 1/in), Nielsen chapter 3
    "series": scaled(_glorot, "normal"),  # the series, part 13
    "series_by_inputs": scaled(lambda n_in, n_out: 1.0 / n_in**2, "normal"),  # times 1/in: the series, part 14
    "glorot_uniform": scaled(_glorot, "uniform"),  # Glorot and Bengio 2010, eq. 16
    "glorot_normal": scaled(_glorot, "normal"),
    "he_uniform": scaled(lambda n_in, n_out: 2.0 / n_in, "uniform"),  # He et al. 2015, eq. 10
    "he_normal": scaled(lambda n_in, n_out: 2.0 / n_in, "normal"),
    "lecun_uniform": scaled(lambda n_in, n_out: 1.0 / n_in, "uniform"),  # LeCun et al. 1998, eq. 16
    "lecun_normal": scaled(lambda n_in, n_out: 1.0 / n_in, "normal"),
    "orthogonal": orthogonal(),
}
for _name in (*INITIALISERS, *VALUES):  # which elsewhere are functions or classes
    if "_" in _name and (_known := VALUES.get(_name, _name)) in INITIALISERS:
        NAMES |= dict.fromkeys((_name, _name.title().replace("_", "")), f'an argument, weight_init="{_known}"')


def find_initialiser(which: str | float | Initialiser) -> Initialiser:
    """An initialiser by name, a number for a constant, or a function of (shape, generator, dtype) that returns an array: one of
    NumPy's, or what generator.normal(shape, mean, deviation, dtype) or .uniform(shape, low, high, dtype) draws."""
    if callable(which):
        bind("an initialiser is called with (shape, generator, dtype)", which, ((), None, None), {})
        return which
    if isinstance(which, (int, float, np.number)) and not isinstance(which, bool) and math.isfinite(which):
        return constant(float(which))
    if not isinstance(which, str) or which not in INITIALISERS:
        rest = ", a finite number, and a function of (shape, generator, dtype) that returns an array: lambda *_: array"
        raise ConfigurationError(unknown("initialiser", which, sorted(INITIALISERS), rest))
    return INITIALISERS[which]
