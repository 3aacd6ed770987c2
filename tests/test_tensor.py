"""Tensors: in and out, operators, and the tape."""

import gc
from functools import partial

import numpy as np
import pytest
from helpers import assert_close, check_op, eps, normal, parameter

import clnn
from clnn.ops.image.conv import conv, conv_transpose
from clnn.ops.image.window import slide
from clnn.ops.linear import linear, matmul
from clnn.ops.norm import batch_norm, layer_norm, rms_norm
from clnn.ops.sequence.recurrent import Cell, recurrent
from clnn.tensor import apply, linear_layer


def sigmoid(z):
    return 1 / (1 + np.exp(-z))


# -- graphs -----------------------------------------------------------------------------------------------------------
GRAPHS = {
    "x * x": (lambda x: x * x, lambda x: x * x),
    "x + x": (lambda x: x + x, lambda x: x + x),
    "x - x * x": (lambda x: x - x * x, lambda x: x - x * x),
    "residual": (lambda x, w: x + clnn.tanh(x @ w), lambda x, w: x + np.tanh(x @ w)),
    "residual of an activation": (
        lambda x, w: (lambda h: h + clnn.tanh(h @ w))(clnn.sigmoid(x)),
        lambda x, w: (lambda h: h + np.tanh(h @ w))(sigmoid(x)),
    ),
    "a parameter used twice": (lambda x, w: clnn.tanh(x @ w) @ w, lambda x, w: np.tanh(x @ w) @ w),
    "a parameter used three ways": (lambda x, w: (x @ w) * w.sum() + x @ w.T, lambda x, w: (x @ w) * w.sum() + x @ w.T),
    "fused, consumed by a product and a sum": (
        lambda x, w: (lambda h: h @ w + h * h)(linear_layer(x, w, None, "sigmoid")),
        lambda x, w: (lambda h: h @ w + h * h)(sigmoid(x @ w)),
    ),
    "fused, consumed by two products": (
        lambda x, w: (lambda h: h @ w + h @ (w * 2.0))(linear_layer(x, w, None, "gelu_tanh")),
        lambda x, w: (lambda h: h @ w + h @ (w * 2.0))(_gelu_tanh(x @ w)),
    ),
    "fused, consumed by a sum first": (
        lambda x, w: (lambda h: h + h @ w)(linear_layer(x, w, None, "tanh")),
        lambda x, w: (lambda h: h + h @ w)(np.tanh(x @ w)),
    ),
    "fused, consumed through a view": (
        lambda x, w: (lambda h: h.reshape(-1)[::2] * h.T.reshape(-1)[1::2])(linear_layer(x, w, None, "sigmoid")),
        lambda x, w: (lambda h: h.reshape(-1)[::2] * h.T.reshape(-1)[1::2])(sigmoid(x @ w)),
    ),
    "activation of an activation": (
        lambda x, w: clnn.sigmoid(linear_layer(x, w, None, "tanh")),
        lambda x, w: sigmoid(np.tanh(x @ w)),
    ),
    "an activation times itself": (
        lambda x: (lambda a: a @ a.reshape(4, 6))(clnn.tanh(x)) + (lambda a: (a @ a).sum())(clnn.exp(x[:4])),
        lambda x: (lambda a: a @ a.reshape(4, 6))(np.tanh(x)) + (lambda a: (a @ a).sum())(np.exp(x[:4])),
    ),
    "diamond": (
        lambda x, w: (lambda a: (a * 2.0) * clnn.exp(a) - a)(x + w.sum(0)),
        lambda x, w: (lambda a: (a * 2.0) * np.exp(a) - a)(x + w.sum(0)),
    ),
    "the parameter through a softmax twice": (
        lambda x, w: clnn.softmax(x @ w) * clnn.log_softmax(x @ w),
        lambda x, w: (lambda e: e / e.sum(1, keepdims=True) * np.log(e / e.sum(1, keepdims=True)))(np.exp(x @ w)),
    ),
}


def _gelu_tanh(x):
    return x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))) / 2


@pytest.mark.parametrize("name", GRAPHS)
def test_gradients_of_graphs(rng, device, name):
    graph, reference = GRAPHS[name]
    arrays = [normal(rng, (6, 4)), normal(rng, (4, 4)) / 2][: reference.__code__.co_argcount]
    check_op(rng, graph, reference, *arrays, rounding=64)


def test_gradients_of_a_graph_in_float64(rng, device):
    if not device.has_fp64:
        pytest.skip("no float64")
    x, w = normal(rng, (6, 4), np.float64), normal(rng, (4, 4), np.float64)
    check_op(rng, *GRAPHS["fused, consumed by a sum first"], x, w, dtype=np.float64, rounding=64)


WINDOW = slide("test", (2, 3, 5, 5), (3, 3), (1, 1), ((1, 1), (1, 1)))
IMAGES = (2, 3, 5, 5)
MADE = {  # name: shapes of x and of the weights, and an op of them
    "product": ((3, 4), [(4, 2)], partial(linear, b=None)),
    "product, transposed": ((3, 4), [(2, 4)], partial(linear, b=None, transposed=True)),
    "product and bias": ((3, 4), [(4, 2), (2,)], linear),
    "product of stacked rows": ((2, 3, 4), [(4, 2)], matmul),
    "convolution": (IMAGES, [(2, 3, 3, 3)], lambda x, w, b=None: conv(x, w, b, WINDOW)),
    "convolution and bias": (IMAGES, [(2, 3, 3, 3), (2,)], lambda x, w, b=None: conv(x, w, b, WINDOW)),
    "transposed convolution": (IMAGES, [(3, 2, 3, 3), (2,)], lambda x, w, b: conv_transpose(x, w, b, WINDOW)),
    "recurrence": ((2, 3, 4), [(4, 4)], lambda x, u: recurrent(x * 1.0, u, cell=Cell("RNN"))),
    "layer norm": ((3, 4), [(4,)], lambda x, gamma: layer_norm(x, gamma, None)),
    "layer norm of a shift": ((3, 4), [(4,)], lambda x, beta: layer_norm(x, None, beta)),
    "batch norm": (IMAGES, [(3,)], lambda x, gamma: batch_norm(x, gamma, None)),
    "rms norm": ((3, 4), [(4,)], rms_norm),
}


@pytest.mark.parametrize("name", MADE)
def test_weights_that_a_function_makes(rng, device, name):
    """Their gradient goes on through the function, also where weights come without a bias."""
    shape, weights, op = MADE[name]
    x, given = clnn.tensor(normal(rng, shape)), [normal(rng, one) for one in weights]
    found = []
    for f in (clnn.sigmoid, lambda w: w):
        ps = [parameter(w if f is clnn.sigmoid else clnn.sigmoid(w).numpy()) for w in given]
        y = apply(op, x, *map(f, ps))
        y.backward(np.cos(np.arange(y.size).reshape(y.shape)).astype(np.float32))
        found.append([p.grad.numpy() for p in ps])
    for w, got, plain in zip(given, *found, strict=True):
        assert_close(got, plain * sigmoid(w) * (1 - sigmoid(w)), 64 * eps(np.float32), name)


@pytest.mark.parametrize("order", [0, 1])
def test_two_consumers_in_either_order(rng, device, order):
    """The first gradient of an activation's output is assigned, the second added, whoever comes first."""

    def graph(x, w):
        h = linear_layer(x, w, None, "sigmoid")
        parts = [h @ w, h * 3.0]
        return parts[order] + parts[1 - order]

    check_op(rng, graph, lambda x, w: sigmoid(x @ w) @ w + 3 * sigmoid(x @ w), normal(rng, (3, 4)), normal(rng, (4, 4)))


def test_long_chain(device):
    """A tape of thousands of operations needs no recursion."""
    x = parameter([1.0])
    y = x
    for _ in range(3000):
        y = y + 1.0
    y.backward()
    assert float(x.grad) == 1.0


def test_backward_from_a_number_is_that_of_ones(rng, device):
    x = parameter(normal(rng, (3, 4)))
    (x * x).sum().backward()
    assert_close(x.grad.numpy(), 2 * x.numpy().astype(np.float64), 2 * eps(np.float32) * 8)


def test_backward_from_an_activation(rng, device):
    """The root itself may be a fused activation."""
    x, w = normal(rng, (2, 3)), normal(rng, (3, 1))
    p = parameter(w)
    linear_layer(clnn.tensor(x, np.float32), p, None, "tanh").sum().backward()
    assert_close(p.grad.numpy(), x.T @ (1 - np.tanh(x @ w) ** 2), 32 * eps(np.float32) * 4)


def test_second_backward_raises(device):
    x = parameter([2.0])
    y = (x * x).sum()
    y.backward()
    with pytest.raises(clnn.ClnnError, match="used up"):
        y.backward()
    assert float(x.grad) == 4.0


def test_gradients_accumulate_until_they_are_forgotten(device):
    x = parameter([2.0])
    (x * x).backward()
    (x * 3.0).backward()
    assert float(x.grad) == 7.0
    x.zero_grad()
    assert x.grad is None
    (x * 5.0).backward()
    assert float(x.grad) == 5.0


def test_no_grad(device):
    x = parameter([2.0])
    with clnn.no_grad():
        y = x * x
        with clnn.no_grad():
            pass
        z = x * 2.0
    assert not y.requires_grad and not z.requires_grad and (x * x).requires_grad
    with pytest.raises(clnn.ClnnError, match="no history"):
        y.backward()
    with pytest.raises(RuntimeError), clnn.no_grad():
        raise RuntimeError
    assert (x * x).requires_grad, "an exception leaves no_grad() behind it"


def test_what_does_not_learn_gets_no_gradient(device):
    x, frozen, w = clnn.ones((2, 2)), parameter(np.ones((2, 2))), parameter(np.ones((2, 2)))
    frozen.trainable = False
    assert not (x @ frozen).requires_grad
    ((x @ frozen) @ w).sum().backward()
    assert frozen.grad is None and w.grad is not None
    w.zero_grad()
    (w.detach() * w).sum().backward()
    assert_close(w.grad.numpy(), np.ones((2, 2)), 0)
    with pytest.raises(clnn.ClnnError, match="no trainable parameter"):
        x.sum().backward()


def test_backward_checks_its_start(device):
    x = parameter(np.ones((2, 3)))
    with pytest.raises(clnn.ShapeError, match=r"starts from one number, not from shape \(2, 3\)"):
        (x * x).backward()
    with pytest.raises(clnn.ShapeError, match=r"\(3,\) is not the tensor's, \(2, 3\)"):
        (x * x).backward(np.ones(3))


def test_closures_are_freed_as_they_run(device):
    """After backward nothing but the gradients is held, though the result is."""
    x = parameter(np.ones(1 << 16))
    (x * x).sum().backward()  # the gradient's own memory
    x.zero_grad()
    gc.collect()
    before = device.memory_in_use
    y = x
    for _ in range(8):
        y = clnn.sin(y)
    y = y.sum()
    assert device.memory_in_use - before >= 8 * (1 << 18)
    y.backward()
    assert device.memory_in_use - before < 4096
    assert np.isfinite(float(y))


def test_without_a_tape_memory_is_reused(device):
    x = parameter(np.ones(1 << 16))
    before = device.memory_in_use
    device.reset_memory_peak()
    with clnn.no_grad():
        y = x
        for _ in range(8):
            y = clnn.sin(y)
    assert device.memory_peak - before < 2.5 * (1 << 18), "two buffers in turn"


# -- in and out -------------------------------------------------------------------------------------------------------
def test_types(rng, device):
    assert clnn.tensor([1.0, 2.0]).dtype == np.float32
    assert clnn.tensor([1, 2]).dtype == clnn.tensor(np.array([True])).dtype == np.int32
    assert clnn.tensor(np.ones(2, np.float16)).dtype == np.float32
    assert clnn.tensor(np.ones(2, np.int64)).dtype == np.int32
    assert clnn.tensor(1).shape == clnn.tensor(1.5).shape == ()
    for array in (rng.standard_normal((3, 4)).T, rng.standard_normal(10)[::-2], np.ones((3, 0)), np.float32(3)):
        got = clnn.tensor(array, dtype=np.float32)
        np.testing.assert_array_equal(got.numpy(), np.asarray(array, np.float32))
    for wrong in (["a"], [1j], [None], np.array(["2020"], "M8[Y]")):
        with pytest.raises((clnn.ShapeError, ValueError, TypeError)):
            clnn.tensor(wrong)
    with pytest.raises(clnn.ShapeError, match=f"{2**31} does not fit"):
        clnn.tensor([2**31])
    t = clnn.ones((2,))
    assert clnn.tensor(t) is t


FLOATS = {  # what a program may hold floats in
    "float": 0.1,
    "list": [0.1, 0.2],
    "nested": [[0.1, 0.2], [0.3, 4]],
    "float16": np.full(2, 0.1, np.float16),
    "float32": np.full(2, 0.1, np.float32),
    "float64": np.linspace(0.1, 1, 3),
    "longdouble": np.full(2, 0.1, np.longdouble),
    "a number of NumPy's": np.float64(0.1),
    "an array of none": np.zeros((0, 3)),
    "a view": np.linspace(0.1, 1, 12).reshape(3, 4).T[::2],
    "an array of one number": np.array(0.1),
}


@pytest.mark.parametrize("value", FLOATS.values(), ids=FLOATS)
def test_floats_of_any_width_are_float32_unless_asked(device, value):
    """On every device alike, so that what runs on a developer's CPU runs on a GPU without float64."""
    single = np.asarray(value).astype(np.float32)
    for made in (
        clnn.tensor(value),
        clnn.constant(value),
        clnn.tensor(value, requires_grad=True),
        clnn.tanh(value) * 1,
    ):
        assert made.dtype == np.float32 and made.shape == single.shape
    np.testing.assert_array_equal(clnn.tensor(value).numpy(), single)
    seen = []
    clnn.step(lambda x: seen.append(x.dtype) or x + 1, record=False)(np.asarray(value))
    assert seen == [np.float32]
    for make in (clnn.tensor, clnn.constant):
        if device.has_fp64:
            made = make(value, "float64")
            assert made.dtype == np.float64
            np.testing.assert_array_equal(made.numpy(), np.asarray(value).astype(np.float64))
            assert clnn.tensor(made) is made and clnn.constant(made).dtype == np.float64
        else:
            with pytest.raises(clnn.DeviceError, match="no float64"):
                make(value, dtype=np.float64)


def test_a_host_array_takes_the_type_of_the_tensor_it_meets(device, dtype):
    t, array = clnn.tensor([[1.0, 2.0]], dtype), np.full((1, 2), 0.1)
    for y in (t + array, array * t, t - 0.1, clnn.maximum(array, t), clnn.minimum(t, [[0.1, 0.1]]), t @ array.T, 2 / t):
        assert y.dtype == dtype
    assert (t + array).numpy()[0, 0] == np.dtype(dtype).type(1) + np.dtype(dtype).type(0.1)
    p = clnn.tensor([1.0, 2.0], dtype, requires_grad=True)
    (p * p).backward(np.full(2, 0.1))
    assert p.grad.dtype == dtype


def test_without_float64_it_is_refused_everywhere(device, monkeypatch):
    monkeypatch.setenv("CLNN_DEVICE_AS", "fp64=0")
    other = clnn.Device(device.cl_device, device.platform_index, device.device_index)
    with clnn.use(other):
        assert (clnn.relu(np.linspace(-1, 1, 5)) + np.ones(5)).numpy().tolist() == [1, 1, 1, 1.5, 2]
        for make in (
            lambda: clnn.tensor([1.0], "float64"),
            lambda: clnn.tensor([1.0], "float64", requires_grad=True),
            lambda: clnn.constant(np.ones(2), np.float64),
            lambda: clnn.zeros(3, "float64"),
            lambda: clnn.ones((0, 2), "float64"),
            lambda: clnn.tensor([1.0]).astype("float64"),
            lambda: clnn.Sequential([clnn.Dense(1)], input_shape=1, dtype="float64"),
        ):
            with pytest.raises(clnn.DeviceError, match="no float64"):
                make()


def test_numpy_copies(device):
    x = clnn.ones((2, 3))
    array = x.numpy()
    array[:] = 5
    assert_close(x.numpy(), np.ones((2, 3)), 0)
    assert np.asarray(x).shape == (2, 3) and np.asarray(x, np.float64).dtype == np.float64
    np.testing.assert_array_equal(np.from_dlpack(x), np.ones((2, 3)))


def test_as_a_number(device):
    x = clnn.tensor([[2.5]])
    assert float(x) == x.item() == 2.5 and int(x) == 2 and bool(x) and not bool(x * 0.0)
    assert len(clnn.zeros((3, 2))) == 3
    with pytest.raises(TypeError):
        len(clnn.tensor(1.0))
    with pytest.raises(clnn.ShapeError, match=r"\(2,\)"):
        float(clnn.ones((2,)))


def test_shown(device):
    assert repr(clnn.tensor([1.0, 2.5])).startswith("Tensor([1. , 2.5], float32, ")
    assert len(repr(clnn.zeros((1000, 1000)))) < 500


def test_operators(rng, device):
    x = np.abs(normal(rng, (3, 4))) + 1
    y = np.abs(normal(rng, (3, 4))) + 1
    a, b = clnn.tensor(x, np.float32), clnn.tensor(y, np.float32)
    pairs = [
        (a + b, x + y), (a - b, x - y), (a * b, x * y), (a / b, x / y), (a**b, x**y), (-a, -x), (abs(-a), x),
        (a**2, x**2),
        (a + 1, x + 1), (1 + a, 1 + x), (a - 1, x - 1), (1 - a, 1 - x), (2 * a, 2 * x), (1 / a, 1 / x), (2**a, 2**x),
        (a + y, x + y), (y + a, x + y), (y - a, y - x), (y / a, y / x), (a**0.5, x**0.5), (np.float32(2) * a, 2 * x),
        (a < b, x < y), (a <= b, x <= y), (a > b, x > y), (a >= b, x >= y), (a > 1, x > 1), (a > 1.5, x > 1.5),
        (clnn.maximum(a, b), np.maximum(x, y)), (clnn.minimum(1.5, a), np.minimum(1.5, x)),
        (a @ b.T, x @ y.T),
    ]  # fmt: skip
    for i, (got, expected) in enumerate(pairs):
        assert_close(got.numpy(), expected, 32 * eps(np.float32) * max(1, np.abs(expected).max()), f"pair {i}")


@pytest.mark.two_devices
def test_two_devices(device, other_device):
    x = clnn.ones((2,))
    there = x.to(other_device)
    assert there.device is other_device
    assert_close(there.numpy(), np.ones(2), 0)
    with pytest.raises(clnn.DeviceError, match="two devices.*\\.to\\(device\\)"):
        x + there
    with clnn.use(other_device):
        assert clnn.ones((1,)).device is other_device
    assert clnn.ones((1,)).device is device


def test_a_conversion_to_the_same_type_is_recorded(rng, device, recwarn):
    """A layer of one's own may convert to the type of its weights, whichever that is."""
    w = parameter(rng.standard_normal(4))

    @clnn.step
    def step(x):
        w.zero_grad()
        y = (x * w).astype(w.dtype).sum()
        y.backward()
        return y, w.grad * 1

    for _ in range(6):
        x = rng.standard_normal(4).astype(np.float32)
        y, gradient = step(x)
        assert_close(y.numpy(), (x * w.numpy()).sum(dtype=np.float64), 16 * eps(np.float32))
        np.testing.assert_array_equal(gradient, x)
    assert not recwarn.list


def test_backward_from_a_parameter_itself_adds_the_gradient(device, rng):
    """As PyTorch has it; it was an error, which said that it depends on no parameter."""
    p, given = parameter(rng.standard_normal((2, 3))), rng.standard_normal((2, 3)).astype(np.float32)
    p.backward(given)
    p.backward(clnn.tensor(given))
    (3.0 * p).sum().backward()
    np.testing.assert_allclose(p.grad.numpy(), 2 * given + 3, rtol=1e-6)
    with pytest.raises(clnn.ShapeError, match=r"starts from one number, not from shape \(2, 3\)"):
        p.backward()
    with pytest.raises(clnn.ShapeError, match="the gradient's shape"):
        p.backward(given[0])
    p.trainable = False
    with pytest.raises(clnn.ClnnError, match="depends on no trainable parameter"):
        p.backward(given)
    one = parameter(np.ones(1))
    one.backward()
    assert one.grad.numpy().tolist() == [1.0]


def test_a_loss_of_derivatives_by_inputs_takes_differences(device, rng):
    """As the manual has it, in a model of one's own of float64: the loss, and its gradient by the weights."""
    if not device.has_fp64:
        pytest.skip("without float64")

    class Net(clnn.Model):
        def build(self, shape):
            self.a, self.b = self.parameter((1, 3), "normal"), self.parameter((3, 1), "normal")

        def forward(self, x):
            return clnn.tanh(x @ self.a) @ self.b

    def wanted(a, b):
        t = np.tanh(x @ a)
        return np.mean(((-2 * t * (1 - t * t) * a * a) @ b) ** 2)

    with clnn.use(device):
        net, x, h = Net(), np.linspace(-1, 1, 9)[:, None], 1e-4
        net.place(device, "float64")

        @clnn.step
        def loss(x):
            u_xx = (net(x + h) - 2 * net(x) + net(x - h)) / h**2
            value = (u_xx**2).mean()
            value.backward()
            return value

        net(x)
        for _ in range(4):
            net.zero_grad()
            value = loss(x)
        a, b = net.a.numpy(), net.b.numpy()
        assert value.dtype == np.float64
        np.testing.assert_allclose(float(value), wanted(a, b), rtol=1e-6)
        for i in range(3):
            e = 1e-5 * np.eye(3)[i][None]
            slopes = wanted(a + e, b) - wanted(a - e, b), wanted(a, b + e.T) - wanted(a, b - e.T)
            np.testing.assert_allclose(
                [net.a.grad.numpy()[0, i], net.b.grad.numpy()[i, 0]], np.array(slopes) / 2e-5, rtol=1e-4, atol=1e-6
            )
