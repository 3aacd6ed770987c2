"""The linear layer's op and matmul against NumPy, with gradients by every argument."""

import numpy as np
import pytest
from helpers import assert_close, check_op, eps, normal, parameter

import clnn
from clnn.gemm import clblast_problem
from clnn.tensor import linear_layer


def linear(x, w, b=None):
    return linear_layer(x, w, b, "linear")


@pytest.mark.parametrize("shape", [(1, 1, 1), (5, 7, 3), (33, 20, 18)], ids=str)
def test_linear(rng, dtype, shape):
    m, k, n = shape
    x, w, b = (normal(rng, s, dtype) for s in ((m, k), (k, n), n))
    check_op(rng, linear, lambda x, w, b: x @ w + b, x, w, b, dtype=dtype, rounding=k + m + 8)
    check_op(rng, linear, lambda x, w: x @ w, x, w, dtype=dtype, rounding=k + m + 8)


@pytest.mark.oclgrind
def test_linear_on_the_last_axis(rng, device):
    x, w, b = normal(rng, (2, 3, 5)), normal(rng, (5, 4)), normal(rng, 4)
    check_op(rng, linear, lambda x, w, b: x @ w + b, x, w, b, rounding=16)
    check_op(rng, linear, lambda x, w, b: x @ w + b, x[0, 0], w, b, rounding=16)


@pytest.mark.parametrize("shape", [(0, 5), (2, 0, 5)], ids=str)
def test_no_samples(rng, device, shape):
    """An empty batch gives an empty output, and gradients of zero."""
    w, b = parameter(normal(rng, (5, 3))), parameter(normal(rng, 3))
    y = linear(clnn.zeros(shape), w, b)
    assert y.shape == (*shape[:-1], 3) and y.numpy().size == 0
    y.backward(np.zeros(y.shape))
    assert not w.grad.numpy().any() and not b.grad.numpy().any()


def test_no_inputs(rng, device):
    """Zero features: the output is the bias."""
    w, b = parameter(np.zeros((0, 3))), parameter(normal(rng, 3))
    y = linear(clnn.zeros((4, 0)), w, b)
    assert_close(y.numpy(), np.tile(b.numpy(), (4, 1)), 0)
    y.backward(np.ones((4, 3)))
    assert_close(b.grad.numpy(), np.full(3, 4.0), 0)


@pytest.mark.parametrize("wanted", ["x", "w", "b", "xw", "xb", "wb"])
def test_only_the_gradients_that_are_wanted(rng, device, wanted):
    """Frozen and constant arguments get nothing, and the others what they would get anyway."""
    x, w, b = normal(rng, (6, 5)), normal(rng, (5, 4)), normal(rng, 4)
    seed = normal(rng, (6, 4))
    tensors = {"x": parameter(x), "w": parameter(w), "b": parameter(b)}
    for name, t in tensors.items():
        t.trainable = name in wanted
    linear(*tensors.values()).backward(seed)
    for name, expected in (("x", seed @ w.T), ("w", x.T @ seed), ("b", seed.sum(axis=0))):
        if name in wanted:
            assert_close(tensors[name].grad.numpy(), expected, 32 * eps(np.float32) * 10, name)
        else:
            assert tensors[name].grad is None


@pytest.mark.parametrize(
    ("a", "b"),
    [((5, 7), (7, 3)), ((2, 3, 5), (5, 4)), ((2, 3, 5), (2, 5, 4)), ((2, 2, 3, 5), (2, 2, 5, 4)), ((5,), (5, 4)),
     ((3, 5), (5,)), ((5,), (5,)), ((1, 1), (1, 1)), ((2, 3, 5), (5,))],
    ids=str,
)  # fmt: skip
def test_matmul(rng, device, a, b):
    check_op(rng, lambda a, b: a @ b, np.matmul, normal(rng, a), normal(rng, b), rounding=16)


def test_matmul_in_float64(rng, device):
    if not device.has_fp64:
        pytest.skip("no float64")
    a, b = normal(rng, (2, 3, 5), np.float64), normal(rng, (2, 5, 4), np.float64)
    check_op(rng, lambda a, b: a @ b, np.matmul, a, b, dtype=np.float64)


def test_matmul_with_numpy_arrays(rng, device):
    a, b = normal(rng, (3, 4)), normal(rng, (4, 5))
    assert_close((clnn.tensor(a, np.float32) @ b).numpy(), a @ b, 1e-5)
    assert_close((a @ clnn.tensor(b, np.float32)).numpy(), a @ b, 1e-5)


def test_empty_matmul(device):
    for a, b in (((0, 3), (3, 2)), ((2, 0), (0, 3)), ((2, 0, 3), (2, 3, 4)), ((0, 2, 3), (0, 3, 4))):
        expected = np.zeros(a) @ np.zeros(b)
        assert_close((clnn.zeros(a) @ clnn.zeros(b)).numpy(), expected, 0)


def test_wrong_shapes(device):
    with pytest.raises(clnn.ShapeError, match=r"\(4, 5\).*\(6, 3\).*last axis must be 6"):
        linear(clnn.zeros((4, 5)), clnn.zeros((6, 3)))
    with pytest.raises(clnn.ShapeError, match=r"matmul: shapes \(2, 3, 4\) and \(3, 4, 5\)"):
        clnn.zeros((2, 3, 4)) @ clnn.zeros((3, 4, 5))
    with pytest.raises(clnn.ShapeError):
        clnn.zeros((2, 3)) @ 2.0
    with pytest.raises(clnn.ShapeError, match="int32"):
        clnn.zeros((2, 3)) @ clnn.tensor(np.ones((3, 2), int))


@pytest.mark.parametrize("engine", ["tile", "clblast"])
def test_both_engines_in_a_network(rng, device, engine, monkeypatch):
    """Two layers: the first one's gradient goes through an activation whose input was kept."""
    if engine == "clblast":
        from clnn.gemm import clblast_problem

        if problem := clblast_problem(device):
            pytest.skip(problem)
    monkeypatch.setenv("CLNN_GEMM", engine)

    def network(x, w1, b1, w2, b2):
        return linear_layer(linear_layer(x, w1, b1, "swish"), w2, b2, "sigmoid")

    def reference(x, w1, b1, w2, b2):
        z = x @ w1 + b1
        return 1 / (1 + np.exp(-(z / (1 + np.exp(-z)) @ w2 + b2)))

    arrays = [normal(rng, s) / 2 for s in ((6, 5), (5, 7), 7, (7, 3), 3)]
    check_op(rng, network, reference, *arrays, rounding=64)


# -- batches of products ----------------------------------------------------------------------------------------------
BATCHES = {  # shapes of a and b
    "equal": ((3, 5, 7), (3, 7, 4)),
    "one for all": ((5, 7), (3, 7, 4)),
    "one for all, second": ((2, 3, 5, 7), (1, 1, 7, 4)),
    "broadcast": ((2, 1, 5, 7), (1, 3, 7, 4)),
    "broadcast, fewer axes": ((2, 3, 5, 7), (3, 7, 4)),
    "one row": ((4, 1, 9), (4, 9, 40)),
    "one column": ((4, 9, 9), (4, 9, 1)),
    "whole tiles and not": ((5, 33, 70), (5, 70, 67)),
    "deep": ((2, 3, 1500), (2, 1500, 5)),
    "deep and narrow": ((2, 40, 3000), (2, 3000, 33)),
    "no products": ((0, 3, 4), (0, 4, 5)),
    "no depth": ((2, 3, 0), (2, 0, 5)),
    "no rows": ((2, 0, 4), (2, 4, 5)),
    "wide": ((2, 4, 40), (2, 40, 300)),
}


@pytest.mark.parametrize("engine", ["", "clblast"])
@pytest.mark.parametrize("name", BATCHES)
def test_batches_of_products(rng, device, monkeypatch, name, engine):
    """One launch, or two where the depth is split; leading axes as NumPy broadcasts them; gradients by both."""
    if engine and clblast_problem(device):
        pytest.skip(clblast_problem(device))
    if engine:
        monkeypatch.setenv("CLNN_GEMM", engine)
    a, b = (normal(rng, shape) for shape in BATCHES[name])
    depth = a.shape[-1]
    p, q = parameter(a), parameter(b)
    before = device.launches
    y = p @ q
    assert device.launches - before <= (2 if not engine else 2 + depth // 1000) + ("broadcast" in name)
    assert_close(y.numpy(), a @ b, (depth / 2 + 16) * eps(np.float32) * (1 + np.abs(a) @ np.abs(b)))
    dy = normal(rng, y.shape)
    y.backward(dy)
    for got, grad, most in (
        (p.grad, dy @ b.swapaxes(-1, -2), np.abs(dy) @ np.abs(b.swapaxes(-1, -2))),
        (q.grad, a.swapaxes(-1, -2) @ dy, np.abs(a.swapaxes(-1, -2)) @ np.abs(dy)),
    ):
        lead = tuple(range(grad.ndim - got.ndim))
        axes = lead + tuple(i + len(lead) for i, s in enumerate(got.shape) if s == 1 and grad.shape[i + len(lead)] != 1)
        wanted, most = grad.sum(axes).reshape(got.shape), most.sum(axes).reshape(got.shape)
        assert_close(got.numpy(), wanted, (max(a.shape[-2], b.shape[-1]) + 32) * eps(np.float32) * (1 + most))


def test_a_batch_in_a_recorded_step(rng, device):
    a, b = parameter(normal(rng, (6, 8, 16))), parameter(normal(rng, (6, 16, 8)))

    def run(record):
        @clnn.step(record=record)
        def step(s):
            y = clnn.tanh(a * s) @ b
            (y * y).sum().backward()
            return y, a.grad * 1.0, b.grad * 1.0

        found = []
        for i in range(5):
            a.zero_grad(), b.zero_grad()
            found += [t.numpy() for t in step(clnn.tensor(1.0 + i))]
        return found

    for x, y in zip(run(True), run(False)):
        np.testing.assert_array_equal(x, y)
