"""Normalisation against NumPy in float64: values, statistics, gradients, and the layers in training and evaluation."""

import numpy as np
import pytest
from helpers import KINKS, REFERENCES, assert_close, check_op, eps, host, normal, parameter
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import clnn
from clnn.layers.base import Layer
from clnn.ops import norm as ops
from clnn.ops.activation import ACTIVATIONS
from clnn.tensor import apply, function, on_tape

EPSILON = 1e-5
drawn = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
SIZES = st.integers(1, 7)
SPACES = st.one_of(
    st.just(()), st.tuples(st.integers(1, 40)), st.tuples(SIZES, SIZES), st.tuples(st.integers(1, 3), SIZES, SIZES)
)


# -- the formulas, plainly ---------------------------------------------------------------------------------------------
def by_channel(v, ndim):
    return v.reshape(1, -1, *(1,) * (ndim - 2))


def normalised(x, axes):
    mean = x.mean(axes, keepdims=True)
    return (x - mean) / np.sqrt(((x - mean) ** 2).mean(axes, keepdims=True) + EPSILON)


def batch(x, gamma, beta):
    axes = (0, *range(2, x.ndim))
    return normalised(x, axes) * by_channel(gamma, x.ndim) + by_channel(beta, x.ndim)


def group(x, gamma, beta, groups):
    y = normalised(x.reshape(len(x), groups, -1), 2).reshape(x.shape)
    return y * by_channel(gamma, x.ndim) + by_channel(beta, x.ndim)


def layer(x, gamma, beta):
    return normalised(x, tuple(range(x.ndim - gamma.ndim, x.ndim))) * gamma + beta


def rms(x, gamma):
    return x / np.sqrt((x**2).mean(tuple(range(x.ndim - gamma.ndim, x.ndim)), keepdims=True) + EPSILON) * gamma


def response(x, size, alpha, beta, k):
    y = np.empty_like(x)
    for c in range(x.shape[1]):
        near = x[:, max(0, c - size // 2) : c + (size - 1) // 2 + 1]
        y[:, c] = x[:, c] / (k + alpha / size * (near**2).sum(1)) ** beta
    return y


def affine(x, a, b):
    return x * by_channel(a, x.ndim) + by_channel(b, x.ndim)


def spread_out(rng, shape, dtype=np.float32):
    """Values whose variance is far from 0 over any axes: differences of the reference stay accurate."""
    return normal(rng, shape, dtype) + 2 - 4 * (np.indices(shape).sum(0) % 2)  # neighbours along each axis lie apart


# -- every op: values and gradients ------------------------------------------------------------------------------------
CASES = {  # op, reference, shapes of the vectors for x's shape
    "batch": (ops.batch_norm, batch, lambda s: [s[1:2]] * 2),
    "affine": (ops.channel_affine, affine, lambda s: [s[1:2]] * 2),
    "layer": (ops.layer_norm, layer, lambda s: [s[-1:]] * 2),
    "rms": (ops.rms_norm, rms, lambda s: [s[-1:]]),
    "instance": (ops.instance_norm, lambda x, g, b: group(x, g, b, x.shape[1]), lambda s: [s[1:2]] * 2),
}
FORMS = {"batch": (33, 5, 3, 7), "affine": (9, 5, 17), "layer": (6, 3, 21), "rms": (6, 3, 21), "instance": (3, 5, 4, 6)}


@pytest.mark.parametrize("kind", CASES)
@drawn
@given(data=st.data())
def test_any_shape(rng, dtype, kind, data):
    op, reference, vectors = CASES[kind]
    space = data.draw(SPACES)
    shape = (data.draw(st.integers(1, 9)), data.draw(SIZES), *space)
    if kind in ("batch", "instance") and shape[0] * np.prod(space) == 1 or kind == "instance" and np.prod(space) == 1:
        shape = (*shape, 2)
    arrays = [spread_out(rng, shape, dtype), *(normal(rng, s, dtype) for s in vectors(shape))]
    small = [np.prod(shape[2:]) < 4, shape[-1] < 4, shape[0] * np.prod(shape[2:]) < 4]
    close = any(small)  # few values: they may lie close together, where derivatives are large
    check_op(rng, lambda *a: apply(op, *a), reference, *arrays, dtype=dtype, rounding=256, gradients=not close)


@pytest.mark.platform("norm")
@drawn
@given(
    batches=st.integers(1, 5), groups=st.integers(1, 4), each=st.integers(1, 4), space=st.integers(1, 40)
)  # fmt: skip
def test_groups(rng, dtype, batches, groups, each, space):
    if each * space < 4:
        space = 5
    x, g, b = (
        spread_out(rng, (batches, groups * each, space), dtype),
        *(normal(rng, groups * each, dtype) for _ in "gb"),
    )
    check_op(
        rng,
        lambda *a: apply(ops.group_norm, *a, groups=groups),
        lambda *a: group(*a, groups),
        *(x, g, b),
        dtype=dtype,
        rounding=256,
    )


@pytest.mark.parametrize("size", [1, 2, 5])
@pytest.mark.parametrize("shape", [(2, 7), (3, 6, 17), (2, 4, 3, 5), (1, 1, 1)], ids=str)
def test_local_response(rng, dtype, shape, size):
    options = {"size": size, "alpha": 0.3, "beta": 0.75, "k": 1.5}
    check_op(
        rng,
        lambda x: apply(ops.local_response_norm, x, **options),
        lambda x: response(x, **options),
        normal(rng, shape, dtype),
        dtype=dtype,
        rounding=64,
    )


def test_layer_norm_over_several_axes(rng, dtype):
    for op, reference, vectors in ((ops.layer_norm, layer, 2), (ops.rms_norm, rms, 1)):
        arrays = [spread_out(rng, (3, 2, 3, 7), dtype), *(normal(rng, (3, 7), dtype) for _ in range(vectors))]
        check_op(rng, lambda *a, op=op: apply(op, *a, axes=2), reference, *arrays, dtype=dtype, rounding=128)


def test_without_gamma_and_beta(rng, device):
    x = spread_out(rng, (9, 4, 5))
    one, zero = np.ones(4), np.zeros(4)
    check_op(rng, lambda x: apply(ops.batch_norm, x, None, None), lambda x: batch(x, one, zero), x, rounding=64)
    check_op(rng, lambda x: apply(ops.layer_norm, x, None, None), lambda x: normalised(x, 2), x, rounding=64)
    check_op(rng, lambda x: apply(ops.rms_norm, x, None), lambda x: rms(x, np.ones(5)), x, rounding=64)
    check_op(rng, lambda x: apply(ops.group_norm, x, None, None, 2), lambda x: group(x, one, zero, 2), x, rounding=64)


@pytest.mark.platform("norm")
@pytest.mark.oclgrind
def test_small_under_a_simulator(rng, device):
    x, g, b = spread_out(rng, (5, 3, 3)), normal(rng, 3), normal(rng, 3)
    check_op(
        rng,
        lambda *a: apply(ops.batch_norm, *a, activation="gelu"),
        lambda *a: REFERENCES["gelu"](batch(*a)),
        *(x, g, b),
        rounding=128,
    )
    check_op(rng, lambda *a: apply(ops.layer_norm, *a), layer, x, g, b, rounding=128)
    check_op(rng, lambda *a: apply(ops.instance_norm, *a), lambda *a: group(*a, 3), x, g, b, rounding=128)
    check_op(rng, lambda x: apply(ops.local_response_norm, x), lambda x: response(x, 5, 1e-4, 0.75, 1.0), x)


@pytest.mark.platform("norm")
@pytest.mark.oclgrind
def test_statistics_under_a_simulator(rng, device):
    layer, x = clnn.BatchNorm(), spread_out(rng, (6, 5))
    layer(clnn.tensor(x, np.float32))
    assert_close(layer.running_mean.numpy(), 0.1 * x.mean(0), 1e-6)
    assert_close(layer.running_variance.numpy(), 0.9 + 0.1 * x.var(0, ddof=1), 1e-5)
    with clnn.no_grad():
        y = layer(clnn.tensor(x, np.float32))
    scale = np.sqrt(0.9 + 0.1 * x.var(0, ddof=1) + EPSILON)
    assert_close(y.numpy(), (x - 0.1 * x.mean(0)) / scale, 1e-5)


# -- large inputs, chunks, and other devices' grids --------------------------------------------------------------------
GRIDS = {"usual": {}, "many blocks": {"COLUMNS": 64, "ITEM": 256, "MOST_ROWS": 5, "JOINED": 4}}


def as_on_a_gpu(monkeypatch):
    """Groups of several work-items, blocks of one vector: what devices other than CPUs get."""
    blocks, groups = ops._Blocks.of, ops._groups

    class Other:
        kind, group_width, long_loops, vector_width = "gpu", 16, False, staticmethod(lambda dtype: 4)

    monkeypatch.setattr(ops._Blocks, "of", staticmethod(lambda device, dtype, *sizes: blocks(Other, dtype, *sizes)))
    monkeypatch.setattr(ops, "_groups", lambda device, *sizes: groups(Other, *sizes))
    monkeypatch.setattr(clnn.Device, "vector_width", lambda self, dtype: 4)


@pytest.fixture(params=[*GRIDS, "groups"])
def grid(request, device, monkeypatch):
    if request.param == "groups":
        if device.max_group < 16:
            pytest.skip(f"{device!r} has no groups of 16")
        as_on_a_gpu(monkeypatch)
    for name, value in GRIDS.get(request.param, {}).items():
        monkeypatch.setattr(ops, name, value)


@pytest.mark.parametrize("kind", CASES)
def test_grids(rng, device, grid, kind):
    op, reference, vectors = CASES[kind]
    shape = FORMS[kind]
    arrays = [spread_out(rng, shape), *(normal(rng, s) for s in vectors(shape))]
    check_op(rng, lambda *a: apply(op, *a), reference, *arrays, rounding=512)


def test_groups_of_channels_on_grids(rng, device, grid):
    x, g, b = spread_out(rng, (3, 6, 5, 7)), normal(rng, 6), normal(rng, 6)
    check_op(rng, lambda *a: apply(ops.group_norm, *a, groups=2), lambda *a: group(*a, 2), x, g, b, rounding=256)


def gradients_of_batch(x, gamma, dy):
    axes = (0, *range(2, x.ndim))
    h = normalised(x, axes)
    scale = by_channel(gamma, x.ndim) / np.sqrt(x.var(axes, keepdims=True) + EPSILON)
    dx = scale * (dy - dy.mean(axes, keepdims=True) - h * (dy * h).mean(axes, keepdims=True))
    return dx, (dy * h).sum(axes), dy.sum(axes)


@pytest.mark.parametrize("shape", [(70, 3, 33, 33), (300, 70), (65, 130, 3), (3, 2, 1025), (300, 1100)], ids=str)
def test_large_batches(rng, device, shape):
    x, gamma, beta, dy = normal(rng, shape), normal(rng, shape[1]), normal(rng, shape[1]), normal(rng, shape)
    inputs = [parameter(a) for a in (x, gamma, beta)]
    y = apply(ops.batch_norm, *inputs)
    assert_close(y.numpy(), batch(x, gamma, beta), 1e-5)
    y.backward(dy.astype(np.float32))
    n = x.size // shape[1]
    for t, wanted, bound in zip(inputs, gradients_of_batch(x, gamma, dy), (1e-5, 1e-6 * n, 1e-6 * n)):
        assert_close(t.grad.numpy(), wanted, bound)


# -- accuracy, NaN -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("shape", [(64, 3, 9, 9), (500, 5), (7, 2, 40, 41)], ids=str)
def test_a_large_mean(rng, device, shape):
    """Mean 1000, deviation 1: the mean of squares minus the square of the mean would have no digit left."""
    x = (1000 + normal(rng, shape)).astype(np.float32).astype(np.float64)
    gamma, beta = np.ones(shape[1]), np.zeros(shape[1])
    bound = 4 * eps(np.float32) * 1000  # half an ulp of the mean, and what the inputs hold
    t = clnn.tensor(x, np.float32)
    g, b = clnn.tensor(gamma, np.float32), clnn.tensor(beta, np.float32)
    layer_norm = clnn.BatchNorm(momentum=0.0)
    assert_close(layer_norm(t).numpy(), batch(x, gamma, beta), bound)
    axes = (0, *range(2, x.ndim))
    assert_close(layer_norm.running_variance.numpy(), x.var(axes, ddof=1), 1e-5)
    assert_close(apply(ops.layer_norm, t, None, None).numpy(), normalised(x, x.ndim - 1), 4 * bound)
    if x.ndim > 2:
        assert_close(apply(ops.instance_norm, t, g, b).numpy(), group(x, gamma, beta, shape[1]), bound)


def test_a_first_value_far_from_the_others(rng, device):
    """Variances are taken around a value of the batch: it may lie anywhere."""
    x = 1000 + normal(rng, (200, 3, 2, 2))
    x[0] = 0
    layer = clnn.BatchNorm(momentum=0.0)
    layer(clnn.tensor(x, np.float32))
    wanted = x.astype(np.float32).astype(np.float64).var((0, 2, 3), ddof=1)
    assert_close(layer.running_variance.numpy(), wanted, 1024 * eps(np.float32) * wanted)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("kind", CASES)
def test_a_value_that_is_no_number_is_not_hidden(rng, device, kind, bad):
    op, reference, vectors = CASES[kind]
    x = normal(rng, FORMS[kind])
    x[2, 1, 0] = bad
    arrays = [x, *(np.ones(s) for s in vectors(x.shape))]
    found = apply(op, *(clnn.tensor(a, np.float32) for a in arrays), activation="relu").numpy()
    expected = np.maximum(reference(*arrays), 0)
    if (
        kind == "rms"
    ):  # of a row whose squares no real can hold nothing is said, not even that the others are 0 beside infinity
        expected[2, 1] = np.nan
    np.testing.assert_array_equal(np.isfinite(found), np.isfinite(expected))


# -- fused activations -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.slow] * (name not in ("relu", "tanh", "gelu")))
        for name in sorted(set(ACTIVATIONS) - {"linear"})
    ],
)
def test_fused_activations(rng, device, name):
    """y = f(...) in the same launch, and as a launch of its own: the same values and gradients."""
    for kind, (op, _, vectors) in CASES.items():
        if kind not in ("batch", "instance") and name not in ("tanh", "swish"):  # the kernels compile for each
            continue
        x, dy = normal(rng, FORMS[kind]), normal(rng, FORMS[kind])
        arrays = [x, *(normal(rng, s) for s in vectors(x.shape))]
        found = []
        for fused in (True, False):
            inputs = [parameter(a) for a in arrays]
            y = apply(op, *inputs, **({"activation": name} if fused else {}))
            y = y if fused else function(y, name)
            y.backward(dy)
            found.append([y.numpy(), *(t.grad.numpy() for t in inputs)])
        near = np.min([np.abs(found[1][0] - k).min() for k in KINKS.get(name, ())] or [1])
        for got, wanted in zip(*found):
            scale = max(1, np.abs(wanted).max())
            assert_close(got, wanted, (1e-5 if near > 1e-5 else 1) * 16 * scale, f"{kind} {name}")


def test_the_activation_before_is_folded_into_the_gradient(rng, device):
    """dx is multiplied by the derivative of the activation that x comes from, with and without a second use of x."""
    x, g, b = spread_out(rng, (9, 4, 3)), normal(rng, 4), normal(rng, 4)
    for name in ("tanh", "swish"):
        f = REFERENCES[name]

        def network(x, g, b, name=name):
            h = function(x, name)
            return (
                apply(ops.batch_norm, h, g, b)
                + apply(ops.instance_norm, h, g, b)
                + apply(ops.layer_norm, h, None, None)
            )

        def reference(x, g, b, f=f):
            return batch(f(x), g, b) + group(f(x), g, b, 4) + normalised(f(x), 2)

        check_op(rng, network, reference, x, g, b, rounding=2048)


@pytest.mark.parametrize("wanted", ["x", "g", "b", "xg", "xb", "gb"])
@pytest.mark.parametrize("kind", ["batch", "layer", "instance"])
def test_only_the_gradients_that_are_wanted(rng, device, wanted, kind):
    op, reference, vectors = CASES[kind]
    arrays = [normal(rng, FORMS[kind]), *(normal(rng, s) for s in vectors(FORMS[kind]))]
    dy = normal(rng, FORMS[kind])
    found = []
    for chosen in ("xgb", wanted):
        inputs = dict(zip("xgb", (parameter(a) for a in arrays)))
        for name, t in inputs.items():
            t.trainable = name in chosen
        apply(op, *inputs.values()).backward(dy)
        found.append({name: None if t.grad is None else t.grad.numpy() for name, t in inputs.items()})
    for name in "xgb":
        if name in wanted:
            np.testing.assert_array_equal(found[1][name], found[0][name])
        else:
            assert found[1][name] is None


# -- batch normalisation as a layer ------------------------------------------------------------------------------------
def test_running_statistics(rng, dtype):
    layer = clnn.BatchNorm(momentum=0.7)
    layer.dtype = np.dtype(dtype)
    mean, variance = np.zeros(5), np.ones(5)
    for rows in (8, 8, 8, 3, 2):
        x = 3 + 2 * normal(rng, (rows, 5, 4), dtype)
        layer(clnn.tensor(x, dtype))
        mean = 0.7 * mean + 0.3 * x.mean((0, 2))
        variance = 0.7 * variance + 0.3 * x.var((0, 2), ddof=1)
    assert_close(layer.running_mean.numpy(), mean, 64 * eps(dtype))
    assert_close(layer.running_variance.numpy(), variance, 64 * eps(dtype) * 10)
    before = layer.state_dict()
    with clnn.no_grad():
        y = layer(clnn.tensor(x, dtype))
    expected = (x - mean[:, None]) / np.sqrt(variance[:, None] + EPSILON)
    assert_close(y.numpy(), expected, 128 * eps(dtype))
    layer.trainable = False
    assert_close(layer(clnn.tensor(x, dtype)).numpy(), expected, 128 * eps(dtype))
    assert all(np.array_equal(v, before[k]) for k, v in layer.state_dict().items())
    a, b = layer.folded()
    assert_close(host(a), 1 / np.sqrt(variance + EPSILON), 64 * eps(dtype))
    assert_close(host(b), -mean / np.sqrt(variance + EPSILON), 64 * eps(dtype))


def test_a_frozen_layer_lets_gradients_through(rng, device):
    layer = clnn.BatchNorm("swish")
    x, dy = normal(rng, (6, 3, 4)), normal(rng, (6, 3, 4))
    layer(clnn.tensor(x, np.float32))
    layer.trainable = False
    state = layer.state_dict()
    a = (state["gamma"] / np.sqrt(state["running_variance"] + EPSILON)).astype(np.float64)
    b = state["beta"] - state["running_mean"] * a
    check_op(rng, layer, lambda x: REFERENCES["swish"](affine(x, a, b)), x, rounding=64)
    t = parameter(x)
    layer(t).backward(dy)
    assert layer.gamma.grad is None and layer.beta.grad is None and t.grad is not None
    layer.trainable = True
    assert layer.gamma.trainable and not layer.running_mean.trainable and not layer.running_variance.trainable


def net_on(device, **options):
    with clnn.use(device):
        return clnn.Sequential(
            [
                clnn.Dense(12, bias=False),
                clnn.BatchNorm("relu", momentum=0.8),
                clnn.Dense(9),
                clnn.BatchNorm(affine=False),
                clnn.Activation("tanh"),
                clnn.Dense(3),
            ],
            **{"input_shape": 6, "seed": 1, **options},
        )


def data_of(rng, n=58):  # of 16 each, a rest of 10: what two samples give to batch normalization is nearly chance
    x = rng.standard_normal((n, 6)).astype(np.float32)
    return x, (x[:, 0] + x[:, 1] ** 2 > 0.5).astype(np.int32) + (x[:, 2] > 0.7)


OPTIMIZERS = {
    "sgd": lambda: clnn.SGD(0.1),
    "momentum": lambda: clnn.SGD(0.05, momentum=0.9, weight_decay=1e-3),
    "adam": lambda: clnn.Adam(0.01),
}


@pytest.mark.parametrize("rule", OPTIMIZERS)
def test_training_and_replaying(rng, device, rule):
    """The loss falls, recorded steps give the same bits as eager ones, statistics included, and no optimizer touches these."""
    x, y = data_of(rng)
    found = []
    for record in (True, False):
        net = net_on(device)
        history = net.fit(
            x, y, loss="cross_entropy", optimizer=OPTIMIZERS[rule](), epochs=12, batch_size=16, seed=3, record=record
        )  # fmt: skip
        assert history["loss"][-1] < 0.8 * history["loss"][0]
        found.append(net.state_dict())
    assert found[0].keys() == found[1].keys()
    assert {"1.running_mean", "1.running_variance", "3.running_mean", "1.gamma", "1.beta"} <= found[0].keys()
    for name, value in found[0].items():
        assert np.array_equal(value, found[1][name]), name
    assert (found[0]["1.running_variance"] != 1).all() and (found[0]["1.gamma"] != 1).any()


def test_a_step_of_sgd_is_numpys(rng, device):
    """Gradients that go straight into gamma and beta: x's is computed with the gamma from before."""
    x, dy = normal(rng, (7, 4)), normal(rng, (7, 3))
    w, gamma, beta = normal(rng, (4, 3)), normal(rng, 3), normal(rng, 3)
    for kind, reference in (("batch", gradients_of_batch), ("layer", None)):
        with clnn.use(device):
            norm = clnn.BatchNorm() if kind == "batch" else clnn.LayerNorm()
            net = clnn.Sequential([clnn.Dense(3, bias=False), norm], input_shape=4)
        state = {"0.w": w, "1.gamma": gamma, "1.beta": beta}
        net.load_state_dict({**net.state_dict(), **state})
        optimizer = clnn.SGD(0.1)

        @clnn.step
        def train(x, dy, net=net, optimizer=optimizer):
            loss = (net(x) * dy).sum()
            loss.backward()
            optimizer.step(net.parameters())
            return loss

        current = {k: v.astype(np.float64) for k, v in state.items()}
        for _ in range(5):
            train(x.astype(np.float32), dy.astype(np.float32))
            h = x @ current["0.w"]
            if reference:
                dh, dgamma, dbeta = reference(h, current["1.gamma"], dy)
            else:
                n = normalised(h, 1)
                g = dy * current["1.gamma"]
                scale = np.sqrt(h.var(1, keepdims=True) + EPSILON)
                dh = (g - g.mean(1, keepdims=True) - n * (g * n).mean(1, keepdims=True)) / scale
                dgamma, dbeta = (dy * n).sum(0), dy.sum(0)
            for name, gradient in (("0.w", x.T @ dh), ("1.gamma", dgamma), ("1.beta", dbeta)):
                current[name] = current[name] - 0.1 * gradient
        for name, value in current.items():
            assert_close(net.state_dict()[name], value, 1e-3 * max(1, np.abs(value).max()), f"{kind} {name}")


def test_evaluation_uses_the_running_statistics(rng, device):
    x, y = data_of(rng)
    net = net_on(device)
    net.fit(x, y, loss="cross_entropy", optimizer="adam", epochs=3, batch_size=16)
    s = {k: v.astype(np.float64) for k, v in net.state_dict().items()}
    scale = [np.sqrt(s[f"{i}.running_variance"] + EPSILON) for i in (1, 3)]
    h = (x @ s["0.w"] - s["1.running_mean"]) / scale[0] * s["1.gamma"] + s["1.beta"]
    h = np.tanh((np.maximum(h, 0) @ s["2.w"] + s["2.b"] - s["3.running_mean"]) / scale[1])
    expected = h @ s["5.w"] + s["5.b"]
    assert_close(net.predict(x), expected, 1e-4)
    assert_close(net.predict(x[:1]), expected[:1], 1e-4)  # one sample is enough here
    assert net.predict(x[:0]).shape == (0, 3)
    with clnn.no_grad(), clnn.use(device):
        assert net(np.zeros((0, 6), np.float32)).shape == (0, 3)


def test_files_and_resuming(rng, device, tmp_path):
    x, y = data_of(rng)
    options = {"loss": "cross_entropy", "batch_size": 16, "seed": 5}
    whole, half = net_on(device), net_on(device)
    whole.fit(x, y, optimizer=clnn.Adam(0.01), epochs=4, **options)
    half.fit(x, y, optimizer=clnn.Adam(0.01), epochs=2, **options)
    half.save(tmp_path / "net")
    with clnn.use(device):
        again = clnn.load(tmp_path / "net")
    assert np.array_equal(again.predict(x), half.predict(x))
    assert again.layers[1].momentum == 0.8 and again.layers[1].trainable and not again.layers[3].affine
    again.fit(x, y, optimizer=again.optimizer, epochs=2, **options)
    for name, value in whole.state_dict().items():
        assert np.array_equal(again.state_dict()[name], value), name


@pytest.mark.parametrize("index", [1, 3])
def test_a_frozen_layer_in_a_file(rng, device, tmp_path, index):
    """Also one without parameters that learn: it decides which statistics are used."""
    x, y = data_of(rng)
    net = net_on(device)
    net.fit(x, y, loss="cross_entropy", optimizer="sgd", epochs=1)
    net.layers[index].trainable = False
    net.save(tmp_path / "net")
    with clnn.use(device):
        again = clnn.load(tmp_path / "net")
    assert [layer.trainable for layer in again.layers] == [layer.trainable for layer in net.layers]
    before = again.state_dict()
    again.fit(x, y, loss="cross_entropy", optimizer=clnn.SGD(0.1), epochs=3, batch_size=16)
    after = again.state_dict()
    for name in before:
        kept = name.startswith(f"{index}.")
        assert np.array_equal(before[name], after[name]) == kept, name


def test_statistics_are_listed_and_left_alone(rng, device):
    net = net_on(device)
    text = net.summary()
    learning = 6 * 12 + 2 * 12 + 12 * 9 + 9 + 9 * 3 + 3
    assert f"{learning + 2 * 12 + 2 * 9} parameters ({learning} trainable)" in text and "48 (24 not trainable)" in text
    store = {p.store for p in net.parameters()}
    assert len(store) == 1
    last = max(p.position for p in net.parameters() if p.learns)
    assert all(p.position > last for p in net.parameters() if not p.learns)
    net.trainable = False
    assert not any(p.trainable for p in net.parameters())
    net.trainable = True
    statistics = [p for p in net.parameters() if not p.learns]
    assert len(statistics) == 4 and not any(p.trainable or p.requires_grad for p in statistics)
    optimizer = clnn.SGD(0.1, weight_decay=0.5, clip_norm=1.0, ema=0.5)
    optimizer.attach(net.parameters())
    assert not set(statistics) & set(optimizer.parameters)
    x, y = data_of(rng)
    net.fit(x, y, loss="cross_entropy", optimizer=optimizer, epochs=2)
    kept = [p.numpy() for p in statistics]
    with optimizer.averaged():
        assert all(np.array_equal(p.numpy(), value) for p, value in zip(statistics, kept))


def test_measuring_gradients_leaves_statistics_as_they_are(rng, device):
    x, y = data_of(rng)
    found = []
    for callbacks in ([], [clnn.GradientNorms()]):
        net = net_on(device)
        net.fit(
            x, y, loss="cross_entropy", optimizer=clnn.SGD(0.1), epochs=2, batch_size=16, seed=1, callbacks=callbacks
        )
        found.append(net.state_dict())
    assert all(np.array_equal(found[0][name], found[1][name]) for name in found[0])
    assert len(callbacks[0].history["batch_norm_1"]) == 3 and "batch_norm_2" not in callbacks[0].history


def test_finding_out_about_a_model_leaves_statistics_as_they_are(rng, device):
    """fit's look at the model before training may have to compute: nothing of that stays."""

    class Reads(Layer):
        def build(self, shape):
            self.norm = clnn.BatchNorm()

        def forward(self, x):
            float(x.sum())
            return self.norm(x)

    with clnn.use(device):
        net = clnn.Sequential([Reads(), clnn.Dense(3)], input_shape=6)
    x, y = data_of(rng, 16)
    net.fit(
        x, y, loss="cross_entropy", optimizer="sgd", epochs=1, batch_size=16, record=False, shuffle=False
    )  # fmt: skip
    assert_close(net.state_dict()["0.norm.running_mean"], 0.1 * x.mean(0, dtype=np.float64), 1e-6)


def test_early_stopping_restores_statistics_too(rng, device):
    x, y = data_of(rng)
    net, seen = net_on(device), []

    class Watch(clnn.Callback):
        def on_epoch_end(self, model, epoch, logs):
            seen.append(model.state_dict())

    stop = clnn.EarlyStopping("loss", patience=1, min_delta=10.0)
    net.fit(x, y, loss="cross_entropy", optimizer=clnn.SGD(0.1), epochs=4, callbacks=[stop, Watch()])
    assert stop.best_epoch == 0 and len(seen) == 2
    assert all(np.array_equal(value, seen[0][name]) for name, value in net.state_dict().items())
    assert not np.array_equal(seen[0]["1.running_mean"], seen[1]["1.running_mean"])


# -- all layers --------------------------------------------------------------------------------------------------------
LAYERS = {
    "BatchNorm": (lambda: clnn.BatchNorm("gelu"), lambda x, g, b: REFERENCES["gelu"](batch(x, g, b))),
    "LayerNorm": (clnn.LayerNorm, layer),
    "LayerNorm over several": (lambda: clnn.LayerNorm((1, -1)), layer),
    "GroupNorm": (lambda: clnn.GroupNorm(2, "relu"), lambda x, g, b: np.maximum(group(x, g, b, 2), 0)),
    "InstanceNorm": (lambda: clnn.InstanceNorm("tanh"), lambda x, g, b: np.tanh(group(x, g, b, x.shape[1]))),
    "RMSNorm": (clnn.RMSNorm, rms),
    "LocalResponseNorm": (lambda: clnn.LocalResponseNorm(3, alpha=0.1), lambda x: response(x, 3, 0.1, 0.75, 1.0)),
}


@pytest.mark.platform("norm")
@pytest.mark.parametrize("kind", LAYERS)
def test_layers(rng, device, kind, tmp_path):
    make, reference = LAYERS[kind]
    with clnn.use(device):
        one = make()
        net = clnn.Sequential([one], input_shape=(4, 5))
    x = spread_out(rng, (6, 4, 5))
    learning = [p for p in one.parameters() if p.learns]
    values = [normal(rng, p.shape).astype(np.float32) for p in learning]
    net.load_state_dict({**net.state_dict(), **{p.name: v for p, v in zip(learning, values)}})
    check_op(rng, lambda x: net(x), lambda x: reference(x, *(v.astype(float) for v in values)), x, rounding=256)
    net.save(tmp_path / "net")
    again = clnn.load(tmp_path / "net")
    assert repr(again.layers[0]) == repr(one)
    assert np.array_equal(again.predict(x), net.predict(x))
    assert again.predict(x[:0]).shape == (0, 4, 5)
    with clnn.no_grad():
        assert net(np.zeros((0, 4, 5), np.float32)).shape == (0, 4, 5)


def test_no_samples_give_gradients_of_zero(device):
    for op in (ops.layer_norm, ops.instance_norm, ops.channel_affine):
        g, b = parameter(np.ones(4)), parameter(np.ones(4))
        y = apply(op, clnn.zeros((0, 4, 4)), g, b)
        y.backward(np.zeros((0, 4, 4)))
        assert not g.grad.numpy().any() and not b.grad.numpy().any()


@pytest.mark.parametrize("name", ["running_mean", "running_variance"])
def test_a_batch_that_a_later_one_replays_moves_the_statistics(rng, device, name):
    """Recorded steps of a function of one's own: each call moves the running statistics once."""
    with clnn.use(device):
        norm = clnn.BatchNorm(momentum=0.5)
        w = clnn.tensor(np.ones(3, np.float32), requires_grad=True)

        @clnn.step
        def run(x):
            return on_tape(*one(norm(x)))

        def one(y):
            z, back = ops.channel_affine(y, w, w)
            return z, (y, w, w), back

        mean, variance = np.zeros(3), np.ones(3)
        for _ in range(7):
            x = normal(rng, (5, 3))
            run(x.astype(np.float32))
            mean, variance = (mean + x.mean(0)) / 2, (variance + x.var(0, ddof=1)) / 2
    assert_close(getattr(norm, name).numpy(), mean if name == "running_mean" else variance, 1e-5)


# -- errors ------------------------------------------------------------------------------------------------------------
def test_errors_name_the_layer_and_the_numbers(device):
    zeros = lambda *shape: clnn.zeros(shape)  # noqa: E731
    with clnn.use(device):
        net = clnn.Sequential([clnn.BatchNorm(), clnn.Dense(2)], input_shape=3)
        with pytest.raises(
            clnn.ShapeError, match=r"batch_norm_1.*\(1, 3\) has 1 value a channel.*variance of one value"
        ):
            net(zeros(1, 3))
        with pytest.raises(clnn.ShapeError, match=r"batch_norm_1.*\(0, 3\) has 0 values"):
            net(zeros(0, 3))
        with pytest.raises(clnn.ShapeError, match=r"variance of one value"):
            net.fit(np.zeros((5, 3)), np.zeros(5, int), loss="cross_entropy", optimizer="sgd", batch_size=4)
        with pytest.raises(clnn.ShapeError, match=r"GroupNorm.*6 channels.*\(2, 6, 5\).*4 groups"):
            clnn.GroupNorm(4)(zeros(2, 6, 5))
        with pytest.raises(clnn.ShapeError, match=r"GroupNorm.*\(2, 4\) has one value a group"):
            clnn.GroupNorm(4)(zeros(2, 4))
        with pytest.raises(clnn.ShapeError, match=r"InstanceNorm.*\(batch, channels, height, ...\).*\(None, 3\)"):
            clnn.InstanceNorm()(zeros(2, 3))
        with pytest.raises(clnn.ShapeError, match=r"BatchNorm.*\(batch, channels, \*space\).*has 1: \(None,\)"):
            clnn.BatchNorm()(zeros(2))
        with pytest.raises(clnn.ShapeError, match=r"LayerNorm: axis 1 .*\(None, 3, 4\)"):
            clnn.LayerNorm(1)(zeros(2, 3, 4))
        with pytest.raises(clnn.ShapeError, match=r"RMSNorm: axis -4 .*\(None, 3\)"):
            clnn.RMSNorm(-4)(zeros(2, 3))
        with pytest.raises(clnn.ShapeError, match=r"takes in the batch"):
            clnn.LayerNorm((0, 1))(zeros(2, 3))
        norm = clnn.BatchNorm()
        norm(zeros(2, 3))
        with pytest.raises(clnn.ShapeError, match=r"gamma has the shape \(3,\); 4 channels of \(2, 4\)"):
            norm(zeros(2, 4))
        with pytest.raises(clnn.ShapeError, match="int32"):
            clnn.BatchNorm()(clnn.tensor(np.zeros((2, 3), int)))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: clnn.BatchNorm("softmax"), r'clnn.Activation\("softmax"\)'),
        (lambda: clnn.BatchNorm("rely"), "'rely'"),
        (lambda: clnn.BatchNorm(momentum=1.5), "BatchNorm's momentum.*1.5"),
        (lambda: clnn.LayerNorm(epsilon=0), "LayerNorm's epsilon"),
        (lambda: clnn.LayerNorm(1.5), "LayerNorm's axis.*1.5"),
        (lambda: clnn.LayerNorm(()), "LayerNorm's axis"),
        (lambda: clnn.GroupNorm(0), "GroupNorm's groups"),
        (lambda: clnn.LocalResponseNorm(0), "LocalResponseNorm's size"),
        (lambda: clnn.LocalResponseNorm(beta=-1), "LocalResponseNorm's beta"),
    ],
)
def test_options(make, words):
    with pytest.raises(clnn.ConfigurationError, match=words):
        make()
