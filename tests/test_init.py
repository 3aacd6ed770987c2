"""Initialisers: their moments, their names, and what they refuse."""

import math

import numpy as np
import pytest
from helpers import assert_close, eps, host

import clnn
from clnn.init import INITIALISERS, constant, fans, find_initialiser, normal, orthogonal, uniform
from clnn.ops.random import Generator

IN, OUT = 300, 500
# name: (distribution, variance for IN inputs and OUT outputs), from the papers
EXPECTED = {
    "zeros": ("constant", 0.0),
    "ones": ("constant", 1.0),
    "uniform": ("uniform", 0.1**2 / 12),
    "normal": ("normal", 1.0),
    "nielsen_old": ("normal", 1.0),
    "nielsen_new": ("normal", 1 / IN),
    "series": ("normal", 2 / (IN + OUT)),
    "series_by_inputs": ("normal", 1 / IN**2),
    "glorot_uniform": ("uniform", 2 / (IN + OUT)),
    "glorot_normal": ("normal", 2 / (IN + OUT)),
    "he_uniform": ("uniform", 2 / IN),
    "he_normal": ("normal", 2 / IN),
    "lecun_uniform": ("uniform", 1 / IN),
    "lecun_normal": ("normal", 1 / IN),
    "orthogonal": ("orthogonal", 1 / OUT),
}


def test_every_initialiser_is_expected():
    assert set(EXPECTED) == set(INITIALISERS)


@pytest.mark.parametrize("name", INITIALISERS)
def test_moments(device, name):
    """Mean and variance within five standard errors, and the form of the distribution."""
    x = host(INITIALISERS[name]((IN, OUT), Generator(device), np.float32)).astype(np.float64)
    kind, variance = EXPECTED[name]
    assert x.shape == (IN, OUT)
    if kind == "constant":
        assert (x == variance).all()
        return
    deviation, n = math.sqrt(variance), x.size
    assert abs(x.mean()) < 5 * deviation / math.sqrt(n)
    assert abs(x.var() / variance - 1) < 5 * math.sqrt(2 / n)
    largest = np.abs(x).max() / deviation
    assert largest <= math.sqrt(3) * (1 + 1e-6) if kind == "uniform" else largest > 3.5


@pytest.mark.parametrize("shape", [(30, 20), (20, 30), (7, 7), (4, 3, 5), (1, 1)], ids=str)
def test_orthogonal(device, dtype, shape):
    x = host(orthogonal(2.0)(shape, Generator(device), dtype)).astype(np.float64)
    assert x.shape == shape
    x = x.reshape(shape[0], -1)
    gram = x @ x.T if x.shape[0] <= x.shape[1] else x.T @ x
    assert_close(gram, 4 * np.eye(len(gram)), 32 * eps(dtype))
    with pytest.raises(clnn.ConfigurationError, match=r"two axes.*\(5,\)"):
        orthogonal()((5,), Generator(device), dtype)


def test_float64(device):
    if not device.has_fp64:
        pytest.skip("no float64")
    for name in INITIALISERS:
        assert host(INITIALISERS[name]((5, 4), Generator(device), np.float64)).dtype == np.float64


def test_options(device):
    generator = Generator(device)
    assert (host(constant(0.25)((3, 2), generator, np.float32)) == 0.25).all()
    x = host(uniform(2.0, 3.0)((1000,), generator, np.float32))
    assert x.min() >= 2 and x.max() < 3
    assert abs(host(normal(5.0, 0.1)((10000,), generator, np.float32)).mean() - 5) < 0.005
    assert host(find_initialiser("he_normal")((0, 3), generator, np.float32)).shape == (0, 3)


def test_fans():
    assert fans((3, 5)) == (3, 5)
    assert fans((4,)) == (4, 4) and fans(()) == (1, 1)


def test_names(device):
    assert find_initialiser("zeros") is INITIALISERS["zeros"] and find_initialiser(max) is max
    assert (host(find_initialiser(3)((2, 2), Generator(device), np.float32)) == 3).all()
    with pytest.raises(
        clnn.ConfigurationError, match="no initialiser 'xavier'; the known ones are .*glorot_uniform.*zeros"
    ):
        find_initialiser("xavier")


def test_seeded_layers_are_the_same(device):
    """The same seed gives the same weights, another one others."""
    made = [
        clnn.Sequential([clnn.Dense(7), clnn.Dense(3)], input_shape=5, seed=seed).state_dict() for seed in (1, 1, 2)
    ]
    for name in made[0]:
        np.testing.assert_array_equal(made[0][name], made[1][name])
    assert any((made[0][name] != made[2][name]).any() for name in made[0])


@pytest.mark.parametrize(
    ("make", "given", "named"),
    [(uniform, (0.1, -0.1), "low"), (uniform, (math.nan, 1), "low"), (uniform, (0, math.nan), "low"),
     (normal, (0, -1), "deviation"), (normal, (0, math.nan), "deviation")],
)  # fmt: skip
def test_distributions_that_are_none_are_refused(make, given, named):
    with pytest.raises(clnn.ConfigurationError, match=named):
        make(*given)


def test_a_function_of_other_arguments_is_no_initialiser():
    for wrong in (lambda shape: np.zeros(shape), lambda shape, rng: np.zeros(shape), lambda: 0.0):
        with pytest.raises(
            clnn.ArgumentError, match=r"an initialiser is called with \(shape, generator, dtype\): too many"
        ):
            clnn.Dense(3, weight_init=wrong)
    w = np.arange(6.0).reshape(2, 3)
    for right in (lambda *_: w, lambda shape, generator, dtype, scale=1: w.tolist(), find_initialiser("ones")):
        assert clnn.Sequential([clnn.Dense(3, weight_init=right)], input_shape=2).layers[0].w.shape == (2, 3)
    net = clnn.Sequential([clnn.Dense(3, weight_init=lambda *_: w)], input_shape=2)
    assert np.array_equal(net.layers[0].w, w)
