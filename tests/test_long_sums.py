"""Sums over a million numbers and more: what rounding loses must not grow with their number (kernels/common.cl)."""

import numpy as np
import pytest
from helpers import host, parameter

import clnn
from clnn.gemm import clblast_problem
from clnn.ops import norm
from clnn.tensor import apply, linear_layer

pytestmark = pytest.mark.long
VALUE = np.float32(0.1)  # rounded up at each addition to a sum of like size: one by one, a million of them are 1% off
V = float(VALUE)
BOUND = 5e-5  # a run of at most 1,024 equal numbers: 1024 eps / 4 and as much again; one by one 1e6 are off by 1e-2
N = [10**6, pytest.param(10**7, id="1e7")]


def full(*shape):
    return clnn.tensor(np.full(shape, VALUE))


def check(got, expected, bound=BOUND):
    got, expected = np.asarray(got, np.float64), np.asarray(expected, np.float64)
    worst = np.abs(got - expected).max() / np.abs(expected).max()
    assert worst <= bound, f"off by {worst:.2g}"


@pytest.fixture(params=["own", "gpu"])
def form(request, device, monkeypatch):
    """The device as it is, and the forms of kernels that GPUs run."""
    if request.param == "gpu":
        if device.kind == "gpu":
            pytest.skip("it is one already")
        monkeypatch.setattr(device, "kind", "gpu")
    monkeypatch.setenv("CLNN_GEMM", "tile")
    return device


@pytest.mark.parametrize("n", N)
def test_sum_and_mean(form, n):
    check(full(n).sum().numpy(), n * V)
    check(full(n).mean().numpy(), V)
    rows = n // 64
    check(full(rows, 64).sum(0).numpy(), rows * V)  # enough columns to fill a device with one work-item each
    check(full(2, rows, 32).mean(1).numpy(), V)
    check(full(32, 2, n // 64).sum(axis=(1, 2)).numpy(), n // 64 * 2 * V)


def test_sum_of_the_issue(form):
    check(full(300_000, 64).sum(0).numpy(), 30_000)


@pytest.mark.parametrize("n", N)
@pytest.mark.parametrize("k, columns", [(1, 2), (3, 40)])
def test_gradients_by_weights_and_bias(form, n, k, columns):
    if n * columns > 10**8:
        pytest.skip("a gigabyte")
    w, b = parameter(np.ones((k, columns))), parameter(np.zeros(columns))
    x = full(n, k)
    linear_layer(x, w, b, "linear").backward(np.full((n, columns), VALUE))
    check(w.grad.numpy(), n * V * V)
    check(b.grad.numpy(), n * V)


@pytest.mark.parametrize("rows", [1, 500, 501, 1001, 4999])
def test_sums_in_parts_where_a_driver_ends_loops(device, rng, monkeypatch, rows):
    """Gradients by a bias, with and without one by weights and added to what is there; and running sums, either way."""
    monkeypatch.setattr(device, "most_turns", 1000)
    monkeypatch.setenv("CLNN_GEMM", "tile")
    x, w, b = (parameter(rng.standard_normal(shape)) for shape in ((rows, 2), (2, 3), (3,)))
    dy = rng.standard_normal((rows, 3)).astype(np.float32)
    for times, trainable in ((1, True), (2, True), (3, False)):
        w.trainable = trainable
        linear_layer(x, w, b, "linear").backward(dy)
        assert np.abs(b.grad.numpy() - times * dy.sum(0, dtype=np.float64)).max() < 1e-5 * times * rows**0.5
    for axis, values in ((0, dy), (1, dy.T.copy())):
        p = parameter(values)
        y = clnn.cumsum(p, axis)
        assert np.abs(y.numpy() - values.astype(np.float64).cumsum(axis)).max() < 1e-5 * rows**0.5
        y.backward(values)
        wanted = np.flip(np.flip(values.astype(np.float64), axis).cumsum(axis), axis)
        assert np.abs(p.grad.numpy() - wanted).max() < 1e-5 * rows**0.5


def test_bias_gradient_alone(form):
    """Where the weights are frozen, or another engine multiplies."""
    w, b = parameter(np.ones((1, 3))), parameter(np.zeros(3))
    w.trainable = False
    linear_layer(full(10**6, 1), w, b, "linear").backward(np.full((10**6, b.shape[0]), VALUE))
    check(b.grad.numpy(), 10**6 * V)


@pytest.mark.parametrize("n", N)
@pytest.mark.parametrize("m, columns", [(1, 2), (2, 40), (5, 40)])
def test_products_of_long_rows(form, n, m, columns):
    k = n // (1 if columns < 40 else 20)
    check((full(m, k) @ full(k, columns)).numpy(), k * V * V)


def test_products_by_clblast(device, monkeypatch):
    """CLBlast adds a product's terms in a row: long ones come in several calls."""
    if clblast_problem(device):
        pytest.skip(clblast_problem(device))
    monkeypatch.setenv("CLNN_GEMM", "clblast")
    k = 10**6
    check((full(2, k) @ full(k, 3)).numpy(), k * V * V, 4 * BOUND)
    w, b = parameter(np.ones((2, 3))), parameter(np.zeros(3))
    linear_layer(full(k, 2), w, b, "linear").backward(np.full((k, 3), VALUE))
    check(w.grad.numpy(), k * V * V, 4 * BOUND)
    check(b.grad.numpy(), k * V)


def test_products_in_place(form):
    """Beta, bias and activation come once, however many parts a long product has."""
    k = 5000
    x = np.random.default_rng(0).standard_normal((3, k)).astype(np.float32)
    for columns in (2, 70):
        w, b = parameter(np.full((k, columns), 1e-2)), parameter(np.arange(columns))
        y = linear_layer(clnn.tensor(x), w, b, "relu")
        check(
            y.numpy(),
            np.maximum(
                x.astype(np.float64) @ np.full((k, columns), np.float32(1e-2), np.float64) + np.arange(columns), 0
            ),
        )
        long = parameter(np.full((columns, 2), 0.1))
        rows = clnn.tensor(np.full((k, columns), VALUE))
        for _ in range(2):  # the second gradient is added to the first
            linear_layer(rows, long, None, "linear").backward(np.full((k, 2), VALUE))
        check(long.grad.numpy(), 2 * k * V * V)


@pytest.mark.parametrize("n", [50_257, 1 << 20, 10**7])
def test_softmax_and_cross_entropy(device, n):
    logits = clnn.tensor(np.zeros((1, n), np.float32))
    check(clnn.softmax(logits).numpy(), 1 / n)
    check(clnn.log_softmax(logits).numpy(), -np.log(n))
    learning = parameter(np.zeros((1, n)))
    loss = clnn.losses.cross_entropy(learning, np.zeros(1, np.int32))
    check(loss.numpy(), np.log(n))
    loss.backward()
    check(learning.grad.numpy()[0, 1:], 1 / n)
    for f in (clnn.softmax, clnn.log_softmax):
        learning.zero_grad()
        f(learning).backward(np.full((1, n), VALUE))
        assert np.abs(learning.grad.numpy()).max() <= BOUND * V


@pytest.mark.parametrize("n", N)
@pytest.mark.parametrize("loss, value", [("mse", V * V), ("mae", V), ("huber", V * V / 2)])
def test_losses_of_many_outputs(device, n, loss, value):
    check(clnn.losses.find_loss(loss)(full(2, n), np.zeros((2, n), np.float32)).numpy(), value)


def test_losses_summed_over_outputs(device):
    n = 10**6
    zeros = np.zeros((1, n), np.float32)
    check(clnn.losses.quadratic(full(1, n), zeros).numpy(), n * V * V / 2)
    check(clnn.losses.binary_cross_entropy(clnn.tensor(zeros), zeros).numpy(), n * np.log(2))


def test_loss_and_metrics_of_a_large_batch(device):
    """fit's and evaluate's mean over the rows of a step."""
    n = 60_000
    net = clnn.Sequential([clnn.Dense(1)], input_shape=1)  # its outputs for zeros are its bias, 0
    x, y = np.zeros((n, 1), np.float32), np.full((n, 1), VALUE)

    def off(output, target):
        return ((output - target) * (output - target)).reshape(-1)

    found = net.fit(x, y, loss="mse", optimizer=clnn.SGD(0.0), epochs=1, batch_size=n, metrics=[off], progress=False)
    check(found["loss"][0], V * V)
    check(found["off"][0], V * V)
    got = net.evaluate(x, y, metrics=[off], batch_size=n)
    check(got["loss"], V * V)
    check(got["off"], V * V)


def test_infinities_stay_infinities(device):
    """What rounding takes from an addition is not a number once the sum is infinite; the sum has to stay so."""
    x = np.zeros((2, 3000), np.float32)
    x[0, 5], x[1, 2999] = np.inf, -np.inf
    np.testing.assert_array_equal(clnn.tensor(x).sum(1).numpy(), [np.inf, -np.inf])
    np.testing.assert_array_equal(clnn.losses.mse(clnn.tensor(x), np.zeros_like(x)).numpy(), np.inf)
    b = parameter(np.zeros(2))
    linear_layer(clnn.tensor(np.ones((3000, 1), np.float32)), parameter(np.ones((1, 2))), b, "linear").backward(
        x.T.copy()
    )
    np.testing.assert_array_equal(b.grad.numpy(), [np.inf, -np.inf])
    x[0, 6] = np.nan
    assert np.isnan(clnn.tensor(x).sum(1).numpy()).tolist() == [True, False]


def test_log_softmax_of_large_logits(device):
    """(x - max) - log(sum): x - (max + log(sum)) loses what the largest logit rounds away."""
    x = np.array([[1e4, 1e4 - 1, 1e4 - 2], [-3e7, -3e7, -3e7]], np.float32)
    e = x.astype(np.float64) - x.max(1, keepdims=True)
    check(clnn.log_softmax(clnn.tensor(x)).numpy(), e - np.log(np.exp(e).sum(1, keepdims=True)), 1e-6)


def test_derivative_of_a_quotient_does_not_overflow(device):
    """-a / b / b, where b * b would be 0 or infinite."""
    a, b = np.float32([1e-30, 1e30, 3.0]), np.float32([1e-25, 1e25, 2.0])
    p = parameter(b)
    (clnn.tensor(a) / p).backward(np.ones(3, np.float32))
    expected = -a.astype(np.float64) / b / b
    np.testing.assert_allclose(p.grad.numpy(), expected, rtol=1e-6)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_derivative_of_a_remainder_counts_whole_times(device, dtype):
    """Where a / b is rounded up to a whole number, b still fits in a one time less."""
    if dtype == "float64" and not device.has_fp64:
        pytest.skip("no float64")
    a, b = (np.array(v, dtype) for v in ([0.7, 0.6, -0.7, 1.1, 5.0, -5.0], [0.1, 0.1, 0.1, -0.1, 2.5, 2.0]))
    p = parameter(b, dtype)
    clnn.remainder(clnn.tensor(a, dtype=dtype), p).backward(np.ones(6))
    np.testing.assert_array_equal(p.grad.numpy(), -np.floor_divide(a, b))


def test_derivative_of_gelu_of_large_values(device):
    x = np.float32([-3e38, -1e20, -1e13, -21.0, 21.0, 1e13, 1e20, 3e38])
    for name in ("gelu", "gelu_tanh"):
        p = parameter(x)
        getattr(clnn, name)(p).backward(np.ones(8, np.float32))
        np.testing.assert_array_equal(p.grad.numpy(), x > 0)


def test_derivatives_of_an_angle_at_the_origin(device):
    a, b = np.float32([0.0, -0.0, 0.0, 3.0, 0.0]), np.float32([0.0, 0.0, -0.0, 0.0, 2.0])
    p, q = parameter(a), parameter(b)
    clnn.arctan2(p, q).backward(np.ones(5, np.float32))
    np.testing.assert_allclose(p.grad.numpy(), [0, 0, 0, 0, 0.5])
    np.testing.assert_allclose(q.grad.numpy(), [0, 0, 0, -1 / 3, 0], rtol=1e-6)


@pytest.mark.parametrize(
    "name, given, at_zero",
    [
        ("leaky_relu", (), 0.01), ("leaky_relu", (0.3,), 0.3), ("leaky_relu", (np.float32([0.2, 0.2, 0.2]),), 0.2),
        ("selu", (), 1.7580993408473766), ("elu", (), 1.0), ("elu", (0.3,), 0.3), ("relu", (), 0.0),
    ],
)  # fmt: skip
def test_derivatives_at_zero(device, name, given, at_zero):
    """PyTorch's convention: zero belongs to the left branch. A slope or an alpha of one's own had it at the right."""
    x = parameter(np.zeros(3))
    getattr(clnn, name)(x, *given).backward(np.ones(3, np.float32))
    np.testing.assert_allclose(x.grad.numpy(), at_zero, rtol=1e-6)


@pytest.mark.parametrize("n", [3000, 10**6])
@pytest.mark.parametrize("layer", ["layer_norm", "rms_norm", "group_norm", "instance_norm"])
def test_norms_of_long_rows(form, rng, layer, n):
    """Statistics over a row of n, and the sums that its gradients need; far from zero, as pictures are."""
    x = (rng.standard_normal((2, 1, n)) + 3).astype(np.float32)
    flat = x.reshape(2, n).astype(np.float64)
    mean = 0 if layer == "rms_norm" else flat.mean(1, keepdims=True)
    scale = 1 / np.sqrt(((flat - mean) ** 2).mean(1, keepdims=True) + 1e-5)
    h, dy = (flat - mean) * scale, np.abs(rng.standard_normal((2, n))).astype(np.float32)
    p, ones, zeros = parameter(x), parameter(np.ones(1)), parameter(np.zeros(1))
    if layer in ("layer_norm", "rms_norm"):
        wide = (parameter(np.ones(n)), *(() if layer == "rms_norm" else (parameter(np.zeros(n)),)))
        p = parameter(x.reshape(2, n))
        y = apply(getattr(norm, layer), p, *wide)
    elif layer == "group_norm":
        y = apply(norm.group_norm, p, ones, zeros, 1)
    else:
        y = apply(norm.instance_norm, p, ones, zeros)
    check(y.numpy().reshape(2, n), h)
    y.backward(dy.reshape(y.shape))
    g = dy.astype(np.float64)
    of_mean = 0 if layer == "rms_norm" else g.mean(1, keepdims=True)
    check(p.grad.numpy().reshape(2, n), (g - of_mean - h * (g * h).mean(1, keepdims=True)) * scale)
    if layer in ("group_norm", "instance_norm"):
        check(zeros.grad.numpy(), g.sum(keepdims=True)[0])
        assert abs(float(ones.grad) - (g * h).sum()) <= BOUND * g.sum()


@pytest.mark.parametrize("shape", [(10**6, 1), (10**6, 3), (2, 2, 10**6)], ids=str)
def test_batch_norm_of_many_values(form, rng, shape):
    x = (rng.standard_normal(shape) + 3).astype(np.float32)
    axes, dy = (0, *range(2, x.ndim)), np.full(shape, VALUE)
    beta, gamma = parameter(np.zeros(shape[1])), parameter(np.ones(shape[1]))
    y = apply(norm.batch_norm, parameter(x), gamma, beta)
    wide = x.astype(np.float64)
    check(y.numpy(), (wide - wide.mean(axes, keepdims=True)) / np.sqrt(wide.var(axes, keepdims=True) + 1e-5))
    y.backward(dy)
    check(beta.grad.numpy(), x.size // shape[1] * V)


@pytest.mark.parametrize("layer", ["batch_norm", "layer_norm", "rms_norm", "instance_norm"])
def test_normalisation_of_large_values(device, rng, layer):
    """Squares of 1e19 are what a float can hold; their sum is not."""
    x = (1e19 * rng.standard_normal((300, 2, 40))).astype(np.float32)
    axes = {"batch_norm": (0, 2)}.get(layer, 2)
    wide, sides = x.astype(np.float64), [parameter(np.ones(40 if layer in ("layer_norm", "rms_norm") else 2)), None]
    mean = 0 if layer == "rms_norm" else wide.mean(axes, keepdims=True)
    y, _ = getattr(norm, layer)(parameter(x), *sides[: 1 if layer == "rms_norm" else 2])
    check(host(y), (wide - mean) / np.sqrt(((wide - mean) ** 2).mean(axes, keepdims=True)))


@pytest.mark.parametrize("size", [1e18, 1e19, 3e19, 1e24, 1e30])
@pytest.mark.parametrize("layer", ["BatchNorm", "LayerNorm", "RMSNorm", "InstanceNorm"])
def test_gradients_of_normalisation_of_large_values(form, rng, layer, size):
    """Right, though their squares are more than a float can hold; and never zeros, where they are too much for units, too."""
    x, g = (
        (size * rng.standard_normal((5, 2, 40))).astype(np.float32),
        rng.standard_normal((5, 2, 40)).astype(np.float32),
    )
    axes, wide = {"BatchNorm": (0, 2)}.get(layer, 2), x.astype(np.float64)
    of = lambda a: 0 if layer == "RMSNorm" else a.mean(axes, keepdims=True)  # noqa: E731
    scale = 1 / np.sqrt(((wide - of(wide)) ** 2).mean(axes, keepdims=True))
    h = (wide - of(wide)) * scale
    net, p = getattr(clnn, layer)(), parameter(x)
    y = net(p)
    y.backward(g)
    if size > 1e25:
        assert np.isnan(y.numpy()).all() and np.isnan(p.grad.numpy()).all()
    else:
        check(y.numpy(), h)
        check(p.grad.numpy(), (g - of(g) - h * (g * h).mean(axes, keepdims=True)) * scale)
    if layer == "BatchNorm" and size > 1e19:  # nor can the running variance be held
        with clnn.no_grad():
            assert np.isnan(net(x).numpy()).all()


def gradient(layer, shape, at=None):
    """By an input of ones (or of zeros but for one element) where every output's gradient is VALUE."""
    x = np.full(shape, VALUE)
    if at is not None:
        x[...], x[at] = 0, 1
    p = parameter(x)
    y = layer(p)
    y.backward(np.full(y.shape, VALUE))
    return p.grad.numpy()


def test_gradients_of_overlapping_windows(form):
    n = 100
    check(gradient(clnn.MaxPool2D(n, 1), (1, 1, 2 * n + 1, 2 * n + 1), (0, 0, n, n))[0, 0, n, n], n * n * V)
    check(gradient(clnn.AvgPool1D(5000, 1), (1, 1, 10_001))[0, 0, 5000], V)
    for layer in (clnn.AdaptiveAvgPool((10**5,)), clnn.AdaptiveMaxPool((10**5,))):
        check(gradient(layer, (1, 1, 2)), 5e4 * V)


@pytest.mark.parametrize("kind", ["MaxPool1D", "AvgPool1D"])
@pytest.mark.parametrize("step", [1, 3])
def test_gradients_of_windows_that_cancel(form, kind, step):
    """The first and the last gradient are so large that what lies between would be lost beside them."""
    n, edge = 2000, 256
    at, share = n * step, 1 if kind == "MaxPool1D" else 1 / (n * step)
    x = np.zeros((1, 1, 2 * at), np.float32)
    x[..., at] = 1
    p = parameter(x)
    y = getattr(clnn, kind)(n * step, step)(p)
    dy = np.zeros(y.shape, np.float32)
    dy[..., 1 + edge : n + 1 - edge], dy[..., 1], dy[..., n] = VALUE, -(2.0**26), 2.0**26
    y.backward(dy)
    check(p.grad.numpy()[0, 0, at], (n - 2 * edge) * V * share)


@pytest.mark.parametrize("kind", ["MaxPool1D", "AvgPool1D"])
def test_pooling_by_large_steps(form, kind):
    """So many vectors of a step would not fit a work-item's stack: the process ended."""
    got = gradient(getattr(clnn, kind)(100_000), (1, 1, 10**6))
    check(got.sum(dtype=np.float64), 10 * V)


@pytest.mark.parametrize(
    "factor, shape", [(10**5, (1, 1, 2)), ((10_000, 1), (1, 1, 2, 3)), (100, (1, 1, 2, 2)), (3, (1, 1, 2, 2))], ids=str
)
@pytest.mark.parametrize("mode", ["nearest", "linear"])
def test_upsampling_by_large_factors(form, factor, shape, mode):
    layer = clnn.UpSampling(factor, mode)
    check(gradient(layer, shape), np.prod(np.broadcast_to(factor, len(shape) - 2)) * V)
    check(layer(full(*shape)).numpy(), V)


def test_gradient_of_a_padded_edge(form):
    check(gradient(clnn.Padding(10**5, "replicate"), (1, 1, 4))[0, 0, ::3], (10**5 + 1) * V)
    check(gradient(clnn.Padding(300, "replicate"), (1, 1, 2, 2)), 301**2 * V)


@pytest.mark.parametrize(
    "layer, shape, terms",
    [
        ("Conv2D", (1, 3000, 3, 3), 27_000), ("Conv2D", (1, 2000, 12, 12), 18_000), ("Conv1D", (2, 3, 3100), 9000),
        ("Conv1D", (1, 1, 20_010), 20_000), ("Conv3D", (1, 1000, 3, 3, 3), 27_000), ("Conv2DTranspose", (1, 3000, 3, 3), 27_000),
    ],
    ids=str,
)  # fmt: skip
def test_convolutions_of_many_channels_and_taps(form, layer, shape, terms):
    axes = len(shape) - 2
    taps = terms // shape[1]
    size = round(taps ** (1 / axes))
    net = getattr(clnn, layer)(2, size, weight_init=V)
    y = net(full(*shape)).numpy()
    check(y[(slice(None), slice(None), *(side // 2 for side in y.shape[2:]))], terms * V * V)


def test_gradients_of_convolutions_by_many_outputs(form):
    if form.kind == "gpu":
        pytest.skip("slow, where it is none; the kernel is the forward one's")
    for channels, size in ((10_000, 1), (2000, 3)):
        net = clnn.Conv2D(channels, size, padding="same", weight_init=V)
        check(gradient(net, (1, 2, 4, 4))[0, 0, 2, 2], channels * size**2 * V * V)


def test_pooling_of_large_windows(form):
    n = 10**6
    check(clnn.AdaptiveAvgPool((1,))(full(2, 1, n)).numpy(), V)
    check(clnn.GlobalAvgPool()(full(1, 2, 1000, 1000)).numpy(), V)
    check(clnn.AvgPool1D(100_000)(full(1, 1, n)).numpy(), V)
    check(clnn.AvgPool2D(300)(full(1, 1, 600, 300)).numpy(), V)


@pytest.mark.parametrize("shape", [(100_000, 1, 4, 4), (1, 1, 1000, 1000)], ids=str)
@pytest.mark.parametrize("channels", [1, 9])
def test_gradients_of_convolutions(form, shape, channels):
    """By weights and bias, over positions of all samples."""
    layer = clnn.Conv2D(channels, 3, padding="same")
    if form.kind == "gpu":  # slow, where it is none
        shape = (shape[0] // 5 or 1, 1, *(max(4, side // 2) for side in shape[2:]))
    x = full(*shape)
    y = layer(x)
    y.backward(np.full(y.shape, VALUE))
    positions = np.prod(shape)
    check(layer.b.grad.numpy(), positions * V)
    check(layer.w.grad.numpy()[:, :, 1, 1], positions * V * V)


def test_norms_of_gradients_and_weights(form):
    """clip_norm, LAMB's ratio and max-norm, over 10^7, 10^6 and 10^6 weights."""
    for n in (10**6, 10**7):
        p = parameter(np.full(n, VALUE))
        (p * VALUE).sum().backward()
        clnn.SGD(1.0, clip_norm=1.0).step([p])
        check(p.numpy(), V - 1 / np.sqrt(n))
    p = parameter(np.full((1000, 1000), VALUE))
    (p * VALUE).sum().backward()
    clnn.LAMB(1.0).step([p])  # Adam's first step is 1 everywhere, and the ratio makes it as long as the weights
    assert np.abs(p.numpy()).max() <= BOUND
    p = parameter(np.full((10**6, 2), VALUE))
    p.max_norm = 1.0
    (p * 0.0).sum().backward()
    clnn.SGD(1.0).step([p])
    check(p.numpy(), 1e-3)


@pytest.mark.parametrize("queries", [1, 5])
def test_attention_to_many_keys(form, queries):
    """The first key counts most, and the others in two groups, whose sums go off where they are added one by one."""
    n = 10**5
    score = np.where(np.arange(n) % 2, -0.5, 0.5)
    score[0] = 3
    value = np.where(np.arange(n) % 2, V, float(np.float32(0.7)))
    q, k, v = (parameter(x.reshape(1, 1, -1, 1)) for x in (np.ones(queries), score, value))
    y = clnn.scaled_dot_product_attention(q, k, v, scale=1.0)
    y.backward(np.ones(y.shape, np.float32))
    p = np.exp(score) / np.exp(score).sum()
    check(y.numpy(), np.full(y.shape, p @ value), BOUND / 4)
    check(q.grad.numpy(), np.full(q.shape, p * (value - p @ value) @ score), BOUND / 4)


def test_attention_from_many_queries(form):
    n, x = 10**5, float(np.float32(0.3))
    score, value = x * np.array([0.125, 0.75]), np.array([0.25, 1.0])
    q, k, v = (parameter(a.reshape(1, 1, -1, 1)) for a in (np.full(n, x), score / x, value))
    clnn.scaled_dot_product_attention(q, k, v, scale=1.0).backward(np.full((1, 1, n, 1), VALUE))
    p = np.exp(score) / np.exp(score).sum()
    check(v.grad.numpy().ravel(), n * V * p)
    check(k.grad.numpy().ravel(), n * V * x * p * (value - p @ value))
