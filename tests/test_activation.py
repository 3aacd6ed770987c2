"""Every function of one variable that is registered: values, derivatives, and both fused into GEMM."""

import numpy as np
import pytest
from helpers import KINKS, REFERENCES, assert_close, derivative, differences, eps, host, normal, parameter

import clnn
from clnn.ops.activation import ACTIVATIONS, ALIASES, FUNCTIONS, activation_name, back_through, unary
from clnn.runtime import program
from clnn.tensor import function, linear_layer
from clnn.tools.verify.references import POSITIVE


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


EVERY = """
#include "activation.cl"
#ifdef VW
#define LOAD CAT(vload, VW)(i, x)
#define STORE(v, p) CAT(vstore, VW)(v, i, p)
#else
#define LOAD x[i]
#define STORE(v, p) p[i] = v
#endif
#define KERNEL(name) kernel void name##_everywhere(global const real *x, global real *f, global real *df) { \\
  const int i = get_global_id(0);                                                                            \\
  const T v = LOAD, y = CAT(name, _f)(v);                                                                    \\
  STORE(y, f);                                                                                               \\
  STORE(CAT(name, _df)(v, y), df);                                                                           \\
}
"""


@pytest.fixture(scope="module")
def kernels_and_every(tmp_path_factory):
    """The kernel folder, and in it a file that has a kernel for each function: all formulas in one program."""
    folder = tmp_path_factory.mktemp("kernels")
    for path in program.kernel_folder().glob("*.cl"):
        (folder / path.name).write_text(path.read_text())
    (folder / "every.cl").write_text(EVERY + "".join(f"KERNEL({name})\n" for name in FUNCTIONS))
    return folder


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("vectors", [False, True], ids=["scalars", "vectors"])
def test_formulas(rng, device, dtype, name, vectors, kernels_and_every, monkeypatch):
    """f and f' as elementwise kernels compute them, and in vectors, as the epilogue of GEMM does."""
    monkeypatch.setattr(program, "kernel_folder", lambda: kernels_and_every)
    width = device.vector_width(dtype) if vectors else 1
    x = inputs(rng, name, (64 * width,), dtype)
    t, f, df = clnn.tensor(x, dtype=dtype), clnn.zeros(x.shape, dtype), clnn.zeros(x.shape, dtype)
    device.launch(
        "every",
        f"{name}_everywhere",
        (64,),
        t.block,
        f.block,
        df.block,
        local=(1,),
        real=t.real,
        **({"VW": width} if vectors else {}),
    )
    expected, slope = REFERENCES[name](x), derivative(name, x)
    assert_close(f.numpy(), expected, 16 * eps(dtype) * np.maximum(1, np.maximum(np.abs(x), np.abs(expected))), "f(x)")
    # f' is a sum of terms as large as x at most; the difference that it is compared with is good to 1e-8
    assert_close(
        df.numpy(), slope, (16 * eps(dtype) * np.maximum(1, np.abs(x)) + 1e-8) * np.maximum(1, np.abs(slope)), "f'(x)"
    )


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.platform("elementwise")) if n in ACTIVATIONS else n for n in FUNCTIONS]
)
def test_op(rng, device, name, dtype=np.float32):
    """Forward, backward, and backward added to what is there already; sizes that fill no work-group."""
    for size in (0, 1, 1023):
        x = inputs(rng, name, (size,), dtype)
        t = clnn.tensor(x, dtype=dtype)
        y, backward = unary(t, name)
        expected, slope = REFERENCES[name](x), derivative(name, x)
        assert_close(
            host(y), expected, 16 * eps(dtype) * np.maximum(1, np.maximum(np.abs(x), np.abs(expected))), "f(x)"
        )
        dy = normal(rng, (size,), dtype)
        bound = np.abs(dy) * (16 * eps(dtype) * np.maximum(1, np.abs(x)) + 1e-8) * np.maximum(1, np.abs(slope))
        ((source, dz),) = backward(back_through(y.activation, clnn.tensor(dy, dtype=dtype)))
        assert source is t
        assert_close(host(dz), dy * slope, bound, "dy f'(x)")
        if name in ("tanh", "gelu"):
            into = clnn.tensor(np.ones(size), dtype=dtype)
            back_through(y.activation, clnn.tensor(dy, dtype=dtype), into=into)
            assert_close(host(into), 1 + dy * slope, bound + 2 * eps(dtype) * (1 + np.abs(dy * slope)), "1 + dy f'(x)")


@pytest.mark.parametrize("name", ["gelu", "exp"])
def test_op_in_float64(rng, device, name):
    if not device.has_fp64:
        pytest.skip("no float64")
    test_op(rng, device, name, np.float64)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_nan_and_infinity(device, name):
    """NaN stays NaN; infinities become what NumPy makes of them."""
    x = np.array([np.nan, np.inf, -np.inf, 0.0, -0.0])
    with np.errstate(all="ignore"):
        expected = REFERENCES[name](x)
    assert_close(function(clnn.tensor(x), name).numpy(), expected, 4 * eps(np.float32), name)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_neighbours_do_not_count(device, dtype, name):
    """An element's value and slope are the same bits whatever stands beside it, in its vector: PoCL's sin and cos were
    wrong by more than sin(x) where another lane was above some millions, as what lies past an array's end may be."""
    x = np.concatenate([np.logspace(-30, 6, 200), -np.logspace(-30, 6, 200)]).astype(dtype)

    def found(beside):
        t = clnn.tensor(
            np.stack([x if beside is None else np.full_like(x, beside), x] * 16, 1), dtype, requires_grad=True
        )
        y = function(t, name)
        (y * 1.0).backward(np.ones(y.shape, dtype))
        return np.stack([y.numpy()[:, 1], t.grad.numpy()[:, 1]])

    wanted = found(None)
    for beside in (1e7, 1e30, np.inf, np.nan, -1e9):
        np.testing.assert_array_equal(found(beside), wanted, f"{name} beside {beside}")


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
        assert_close(
            p.grad.numpy(), slope, 16 * eps(np.float32) + 2e-6, "f'(x)"
        )  # at 1e4 eps / h leaves differences 1e-7


@pytest.mark.parametrize("name", [name for name in KINKS if name in FUNCTIONS])
def test_derivative_at_a_kink_is_between_its_sides(device, name):
    x = np.array(KINKS[name], np.float64)
    p = parameter(x)
    function(p, name).backward(np.ones(x.size))
    sides = [derivative(name, x - 1e-4), derivative(name, x + 1e-4)] if name != "step" else [np.zeros(1)] * 2
    slack = 1e-3  # of curves, so near the kink
    assert (p.grad.numpy() >= np.minimum(*sides) - slack).all()
    assert (p.grad.numpy() <= np.maximum(*sides) + slack).all()


def test_sigmoid_and_tanh_everywhere(device):
    """To a few units in the last place of the result, however small that is, and at both ends exactly."""
    tiny = np.geomspace(1e-30, 1, 5_001)
    x = np.concatenate([np.linspace(-87, 87, 50_001), np.linspace(-3, 3, 50_001), tiny, -tiny]).astype(np.float32)
    wide, p = x.astype(np.float64), parameter(x)
    for name in ("sigmoid", "tanh"):
        y, expected = function(p, name).numpy(), REFERENCES[name](wide)
        assert_close(y, expected, 2 * eps(np.float32) * np.abs(expected), name)
    np.testing.assert_array_equal(y[-tiny.size :], -y[-2 * tiny.size : -tiny.size])
    ends = parameter(np.array([-np.inf, -1e30, -200, 200, 1e30, np.inf, np.nan], np.float32))
    np.testing.assert_array_equal(function(ends, "sigmoid").numpy(), [0, 0, 0, 1, 1, 1, np.nan])
    assert_close(function(ends, "tanh").numpy(), [-1, -1, -1, 1, 1, 1, np.nan], eps(np.float32), "tanh")


def test_erf_and_gelu_everywhere(device):
    """On a grid to two units in the last place of 1, or of a larger result; where GELU is next to nothing, its sign is right."""
    x = np.linspace(-14, 14, 50_001).astype(np.float32)
    wide, p = x.astype(np.float64), parameter(x)
    for name in ("erf", "gelu"):
        y = function(p, name)
        y.backward(np.ones(x.size))
        expected, slope = REFERENCES[name](wide), derivative(name, wide)
        assert_close(y.numpy(), expected, 2 * eps(np.float32) * np.maximum(1, np.abs(expected)), name)
        assert_close(p.grad.numpy(), slope, 2 * eps(np.float32) * np.maximum(1, np.abs(slope)) + 1e-8, f"{name}'")
        p.zero_grad()
    assert (y.numpy()[x < 0] <= 0).all() and (y.numpy()[x > 0] >= 0).all()


FUSED = (
    "linear",
    "tanh",
    "relu",
    "gelu",
)  # by y, by x, a name that drivers take for a macro; the formulas are tested above


@pytest.mark.platform
@pytest.mark.parametrize("name", [n if n in FUSED else pytest.param(n, marks=pytest.mark.slow) for n in ACTIVATIONS])
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


@pytest.mark.parametrize("width", [1, 3, 10, 70])
@pytest.mark.parametrize("name", ["softmax", "log_softmax", "logsumexp", "cross_entropy"])
def test_rows_of_different_sizes_side_by_side(rng, device, name, width):
    """A row's shift is by its own largest value: a neighbour's would leave 0 / 0 of it."""
    width += name == "cross_entropy"  # of one class it is nobody's loss
    z = rng.standard_normal((9, width)) + np.tile([[-400.0], [400.0], [0.0]], (3, 1))
    log_p = z - z.max(1, keepdims=True)
    total = np.log(np.exp(log_p).sum(1, keepdims=True))
    if name == "cross_entropy":
        y = rng.integers(0, width, 9)
        found = clnn.losses.cross_entropy(clnn.tensor(z), y, reduction="none")
        expected = -(log_p - total)[np.arange(9), y]
    elif name == "logsumexp":
        found, expected = clnn.logsumexp(clnn.tensor(z), axis=1), (total + z.max(1, keepdims=True))[:, 0]
    else:
        found, expected = getattr(clnn, name)(clnn.tensor(z)), log_p - total
        expected = np.exp(expected) if name == "softmax" else expected
    np.testing.assert_allclose(found.numpy(), expected, rtol=2e-5, atol=1e-4)
