"""Every function of one variable that is registered: values, derivatives, and both fused into GEMM."""

import numpy as np
import pytest
from helpers import KINKS, REFERENCES, assert_close, derivative, differences, eps, host, normal, parameter

import clnn
from clnn.ops.activation import ACTIVATIONS, ALIASES, FUNCTIONS, activation_name, through, unary
from clnn.tensor import function, linear_layer

POSITIVE = ("log", "sqrt")


def inputs(rng, name, shape, dtype=np.float32):
    """Random inputs where `name` is defined and differentiable."""
    x = 3 * normal(rng, shape, dtype)
    if name in POSITIVE:
        x = np.abs(x) + 0.1
    for kink in KINKS.get(name, ()):
        x += np.where(np.abs(x - kink) < 0.01, 0.03, 0)
    return x.astype(dtype).astype(np.float64)


def test_every_function_has_a_reference():
    assert set(FUNCTIONS) == set(REFERENCES), "a registered function needs its formula in tests/helpers.py"
    assert set(ALIASES.values()) <= set(ACTIVATIONS)


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("size", [0, 1, 1023])
def test_value_and_derivative(rng, device, dtype, name, size):
    x = inputs(rng, name, (size,), dtype)
    t = clnn.tensor(x, dtype=dtype)
    y, backward = unary(t, name)
    with np.errstate(all="ignore"):
        expected = REFERENCES[name](x)
    bound = 16 * eps(dtype) * np.maximum(1, np.maximum(np.abs(x), np.abs(expected)))
    assert_close(host(y), expected, bound, "f(x)")
    dy = normal(rng, (size,), dtype)
    slope = derivative(name, x)
    bound = np.abs(dy) * (16 * eps(dtype) * np.maximum(1, np.abs(slope)) * np.maximum(1, np.abs(x)) + 1e-8)
    ((source, dz),) = backward(through(y.activation, clnn.tensor(dy, dtype=dtype)))
    assert source is t
    assert_close(host(dz), dy * slope, bound, "dy f'(x)")
    into = clnn.tensor(np.ones(size), dtype=dtype)
    through(y.activation, clnn.tensor(dy, dtype=dtype), into=into)
    assert_close(host(into), 1 + dy * slope, bound + 2 * eps(dtype) * (1 + np.abs(dy * slope)), "1 + dy f'(x)")


@pytest.mark.parametrize("name", FUNCTIONS)
def test_nan_and_infinity(device, name):
    """NaN stays NaN; infinities become what NumPy makes of them."""
    x = np.array([np.nan, np.inf, -np.inf, 0.0, -0.0])
    with np.errstate(all="ignore"):
        expected = REFERENCES[name](x)
    assert_close(function(clnn.tensor(x), name).numpy(), expected, 4 * eps(np.float32), name)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_large_inputs(device, name):
    """Far out an activation and its derivative are finite and right: nothing overflows on the way."""
    x = np.array([-1e4, -300.0, -90.0, -30.0, 30.0, 90.0, 300.0, 1e4])
    p = parameter(x)
    y = function(p, name)
    with np.errstate(all="ignore"):
        expected, slope = REFERENCES[name](x), derivative(name, x)
    assert_close(y.numpy(), expected, 8 * eps(np.float32) * np.maximum(1, np.abs(expected)), "f(x)")
    if name != "linear":  # which is the parameter itself
        y.backward(np.ones(8))
        assert_close(p.grad.numpy(), slope, 16 * eps(np.float32) + 1e-6, "f'(x)")  # differences at 1e4 are good to 1e-7


@pytest.mark.parametrize("name", [name for name in KINKS if name in FUNCTIONS])
def test_derivative_at_a_kink_is_between_its_sides(device, name):
    x = np.array(KINKS[name], np.float64)
    p = parameter(x)
    function(p, name).backward(np.ones(x.size))
    sides = [derivative(name, x - 0.01), derivative(name, x + 0.01)] if name != "step" else [np.zeros(1)] * 2
    slack = 0.01 if name == "hard_swish" else 1e-6
    assert (p.grad.numpy() >= np.minimum(*sides) - slack).all()
    assert (p.grad.numpy() <= np.maximum(*sides) + slack).all()


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_fused(rng, device, name, monkeypatch):
    """f(x w + b) v, with f in the first product's epilogue and f' in that of the second's gradient."""
    monkeypatch.setenv("CLNN_GEMM", "tile")
    launched = []
    launch = type(device).launch

    def note(self, file, kernel, *args, **options):
        launched.append((file, options.get("ACT")))
        launch(self, file, kernel, *args, **options)

    monkeypatch.setattr(type(device), "launch", note)
    x, v, seed = normal(rng, (7, 6)), normal(rng, (5, 9)), normal(rng, (7, 9))
    w, b = inputs(rng, "", (6, 5)) / 4, normal(rng, 5)
    f = REFERENCES[name]
    while name in KINKS and min(np.abs(x @ w + b - kink).min() for kink in KINKS[name]) < 1e-3:
        b = normal(rng, 5)
    pw, pb = parameter(w), parameter(b)
    h = linear_layer(clnn.tensor(x, dtype=np.float32), pw, pb, name)
    y = h @ clnn.tensor(v, dtype=np.float32)
    y.backward(seed)
    assert {file for file, _ in launched} <= {"gemm", "elementwise"} and ("gemm", name) in launched
    assert not [act for file, act in launched if file == "elementwise" and act], "an activation of its own launch"
    z = x @ w + b
    bound = 32 * eps(np.float32) * (1 + np.abs(x) @ np.abs(w) + np.abs(b))
    assert_close(h.numpy(), f(z), bound * 1.2 + 0 * z, "f(x w + b)")
    wanted = differences(lambda w, b: f(x @ w + b) @ v, [w, b], seed)
    magnitude = np.abs(seed).sum() * np.abs(v).max() * max(1, np.abs(x).max()) * (1 + np.abs(z).max())
    for p, gradient in zip((pw, pb), wanted):
        assert_close(p.grad.numpy(), gradient, 4 * eps(np.float32) * magnitude, "gradient")


def test_keeps_the_input_only_where_the_derivative_reads_it(device):
    """An activation whose derivative is a function of y keeps nothing; without a tape none does."""
    x, w = clnn.ones((8, 8)), parameter(np.eye(8))
    for name, kept in (("sigmoid", False), ("gelu", True)):
        y = linear_layer(x, w, None, name)
        assert (y.activation[1].block is not y.block) is kept
    with clnn.no_grad():
        assert linear_layer(x, w, None, "gelu").activation is None


@pytest.mark.oclgrind
def test_small_under_a_simulator(rng, device):
    x = inputs(rng, "tanh", (5,))
    p = parameter(x)
    y = clnn.tanh(p)
    y.backward(np.ones(5))
    assert_close(y.numpy(), np.tanh(x), 8 * eps(np.float32))
    assert_close(p.grad.numpy(), 1 - np.tanh(x) ** 2, 16 * eps(np.float32))


def test_names():
    assert activation_name(None) == "linear" and activation_name("silu") == "swish"
    with pytest.raises(clnn.ConfigurationError, match="no activation 'rleu'; the known ones are .*relu.*silu.*softmax"):
        activation_name("rleu")
    with pytest.raises(clnn.ConfigurationError):
        activation_name("exp")  # a function, but no layer's activation


def test_floats_only(device):
    with pytest.raises(clnn.ShapeError, match="sigmoid takes floats, not int32"):
        clnn.sigmoid(np.arange(3))
