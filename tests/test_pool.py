"""Pooling against float64 NumPy that does it a window at a time, for every kind of device, and its layers."""

import itertools

import numpy as np
import pytest
from helpers import assert_close, check_op, eps, normal, parameter, scale_of
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import clnn
from clnn.ops.image.pool import adaptive_pool, pool
from clnn.ops.image.window import paddings, per_axis, slide
from clnn.tensor import apply

KINDS = ("max", "mean")


@pytest.fixture(params=["cpu", "gpu"])
def kernels(request, device, monkeypatch):
    """The kernels for CPUs, and those for GPUs, whatever the device is."""
    monkeypatch.setattr(device, "kind", request.param)
    return device


# -- references -------------------------------------------------------------------------------------------------------
def windows(n, size, stride, before, after, ceil):
    """Start and end of each window along an axis, by PyTorch's rules, and how far it reaches into padding."""
    free = n + before + after - size
    count = (free + (stride - 1 if ceil else 0)) // stride + 1
    if ceil and (count - 1) * stride >= n + before:
        count -= 1
    starts = [i * stride - before for i in range(count)]
    return [(max(a, 0), min(a + size, n), min(a + size, n + after) - a) for a in starts]


def bins(n, out):
    return [(i * n // out, -(-(i + 1) * n // out), None) for i in range(out)]


def reference(x, axes, kind, include_pad=True):
    """y, and the function that takes dy to dx; `axes`: (start, end, elements with padding) of each window of each axis."""
    y, parts = np.zeros((*x.shape[:2], *map(len, axes))), {}
    for at in itertools.product(*(range(len(a)) for a in axes)):
        chosen = [a[i] for a, i in zip(axes, at)]
        part = (slice(None), slice(None), *(slice(a, b) for a, b, _ in chosen))
        seen = x[part].reshape(*x.shape[:2], -1)
        parts[at] = part
        if kind == "max":
            y[(..., *at)] = seen.max(-1)
        else:
            padded = [b - a if whole is None or not include_pad else whole for a, b, whole in chosen]
            y[(..., *at)] = seen.sum(-1) / np.prod(padded)

    def gradient(dy):
        dx = np.zeros(x.shape)
        for at, part in parts.items():
            seen = x[part].reshape(*x.shape[:2], -1)
            if kind == "max":
                share = np.arange(seen.shape[-1]) == np.argmax(seen, -1)[..., None]  # the first of equals, and NaN
            else:
                padded = [
                    b - a if whole is None or not include_pad else whole
                    for a, b, whole in (a[i] for a, i in zip(axes, at))
                ]
                share = np.full(seen.shape, 1 / np.prod(padded))
            dx[part] += (share * dy[(..., *at)][..., None]).reshape(dx[part].shape)
        return dx

    return y, gradient


def windows_of(space, size, stride, padding, ceil):
    return [windows(n, k, s, *pads, ceil) for n, k, s, pads in zip(space, size, stride, padding)]


def compare(rng, x, op, axes, kind, include_pad=True, dtype=np.float32):
    """`op` of a tensor against the reference: y and dx."""
    expected, gradient = reference(x, axes, kind, include_pad)
    t = parameter(x, dtype)
    y = op(t)
    rounding = 4 + np.prod([max(b - a for a, b, _ in windows) for windows in axes])
    bound = rounding * eps(dtype) * scale_of(x) if kind == "mean" else 0
    assert_close(y.numpy(), expected, bound, "y")
    dy = normal(rng, y.shape, dtype)
    y.backward(dy)
    assert_close(t.grad.numpy(), gradient(dy), 64 * eps(dtype) * (1 + np.abs(dy).max(initial=0)) * 4, "dx")


def pooling(shape, size, stride, padding, kind, ceil=False, include_pad=True):
    """The op with these windows, as a function of a tensor."""
    axes = len(shape) - 2
    size = per_axis("size", size, axes)
    window = slide("pool", shape, size, per_axis("stride", stride, axes), paddings("padding", padding, axes), ceil=ceil)
    return lambda t: apply(pool, t, window=window, kind=kind, include_pad=include_pad)


# -- windows of one size ----------------------------------------------------------------------------------------------
@st.composite
def cases(draw):
    """(space, size, stride, padding, ceil): windows of a few forms, so that not every example compiles anew."""
    axes = draw(st.integers(1, 3))
    size, stride = draw(
        st.sampled_from([((2,) * 3, (2,) * 3), ((3,) * 3, (2,) * 3), ((3, 2, 3), (3, 1, 1)), ((1, 2, 2), (1, 1, 3))])
    )
    size, stride = size[-axes:], stride[-axes:]
    padding = [(draw(st.integers(0, k - 1)), draw(st.integers(0, k - 1))) for k in size]
    if draw(st.booleans()):
        padding = [(0, 0)] * axes
    most = (40, 20, 9)[axes - 1]
    space = [draw(st.integers(max(1, k - a - b), most)) for k, (a, b) in zip(size, padding)]
    return space, size, stride, padding, draw(st.booleans())


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(case=cases(), kind=st.sampled_from(KINDS), include_pad=st.booleans(), seed=st.integers(0, 2**31))
@pytest.mark.slow
def test_any_windows(kernels, case, kind, include_pad, seed):
    space, size, stride, padding, ceil = case
    rng = np.random.default_rng(seed)
    x = np.round(rng.standard_normal((2, 3, *space)) * 4) / 4  # with equals
    op = pooling(x.shape, size, stride, padding, kind, ceil, include_pad)
    compare(rng, x, op, windows_of(space, size, stride, padding, ceil), kind, include_pad)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("space", "size", "stride", "padding", "ceil"),
    [
        ((5, 7, 18), 2, (1, 2, 3), 1, True),
        ((24, 24), 2, 2, 0, False),
        ((25, 23), 2, 2, 0, True),
        ((13, 37), 3, 2, 1, False),
        pytest.param((9, 21), 3, 1, 1, False, marks=pytest.mark.slow),
        ((11, 29), (5, 4), (2, 5), ((2, 1), (3, 0)), True),
        ((200,), 100, 7, 60, True),
        pytest.param((3,), 3, 1, 2, False, marks=pytest.mark.slow),
        ((1, 1), 3, 3, 1, False),
        pytest.param((70,), 1, 1, 0, False, marks=pytest.mark.slow),
        pytest.param((70,), 20, 20, 0, False, marks=pytest.mark.slow),  # more combs than are unrolled
        ((70,), 3, 20, 0, True),  # and elements between windows
        ((30, 47), (17, 18), (2, 3), 8, True),  # more elements than are added in a row
        ((1300,), 700, 2, 100, False),
    ],
    ids=str,
)
def test_windows(rng, kernels, kind, space, size, stride, padding, ceil, dtype=np.float32):
    axes = len(space)
    sizes, strides = per_axis("size", size, axes), per_axis("stride", stride, axes)
    x = normal(rng, (2, 3, *space), dtype)
    for include_pad in (True, False) if kind == "mean" and padding else (True,):
        op = pooling(x.shape, size, stride, padding, kind, ceil, include_pad)
        found = windows_of(space, sizes, strides, paddings("padding", padding, axes), ceil)
        compare(rng, x, op, found, kind, include_pad, dtype)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "case", [((25, 23), 2, 2, 0, True), ((9, 21), 3, 1, 1, False), ((29,), 4, 5, 3, True)], ids=str
)
def test_windows_in_float64(rng, device, kind, case):
    if not device.has_fp64:
        pytest.skip("no float64")
    test_windows(rng, device, kind, *case, dtype=np.float64)


@pytest.mark.parametrize("kind", KINDS)
def test_against_central_differences(rng, device, dtype, kind):
    x = rng.permutation(2 * 2 * 5 * 6).reshape(2, 2, 5, 6) / 4 - 10  # distinct: differences change no largest
    found = windows_of((5, 6), (3, 2), (2, 1), ((1, 1), (0, 1)), True)
    op = pooling(x.shape, (3, 2), (2, 1), ((1, 1), (0, 1)), kind, True, False)
    check_op(rng, op, lambda x: reference(x, found, kind, False)[0], x, dtype=dtype)


def test_same_padding(rng, device):
    """As many outputs as inputs, divided by the stride and rounded up; the odd element of padding lies behind."""
    for n, k, s in ((7, 2, 1), (10, 3, 2), (9, 4, 4), (1, 3, 2)):
        x = normal(rng, (1, 2, n))
        y = clnn.max_pool(clnn.tensor(x, np.float32), k, s, "same")
        total = max(0, (-(-n // s) - 1) * s + k - n)
        found = windows_of((n,), (k,), (s,), [(total // 2, total - total // 2)], False)
        assert y.shape == (1, 2, -(-n // s))
        assert_close(y.numpy(), reference(x, found, "max")[0], 0)


def test_more_than_256_taps(rng, kernels):
    """Places of the largest no longer fit bytes."""
    x = normal(rng, (2, 2, 19, 40))
    compare(
        rng, x, pooling(x.shape, 17, 2, 0, "max"), windows_of((19, 40), (17, 17), (2, 2), [(0, 0)] * 2, False), "max"
    )


def test_nan_and_infinity(rng, kernels):
    """NaN is the largest; infinities are values like others; the gradient goes to the first of equals, NaN too."""
    x = np.round(normal(rng, (4, 3, 9, 23)))
    for value in (np.nan, np.inf, -np.inf):
        x[rng.random(x.shape) < 0.15] = value
    x[0] = -np.inf
    found = windows_of((9, 23), (3, 3), (2, 1), [(1, 1)] * 2, False)
    compare(rng, x, pooling(x.shape, 3, (2, 1), 1, "max"), found, "max")
    y = clnn.avg_pool(clnn.tensor(x, np.float32), 3, (2, 1), 1, count_include_pad=False).numpy()
    expected = reference(x, found, "mean", False)[0]
    np.testing.assert_array_equal(np.isnan(y), np.isnan(expected))


@pytest.mark.parametrize("kind", KINDS)
def test_empty_batches(device, kind):
    x = parameter(np.zeros((0, 3, 8, 8)))
    for op in (pooling(x.shape, 2, 2, 0, kind), lambda t: apply(adaptive_pool, t, out=(3, 3), kind=kind)):
        y = op(x)
        assert y.shape[:2] == (0, 3) and y.numpy().size == 0
        y.backward(np.zeros(y.shape))
        assert x.grad.shape == x.shape


# -- bins -------------------------------------------------------------------------------------------------------------
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    space=st.lists(st.integers(1, 23), min_size=1, max_size=3),
    out=st.lists(st.integers(1, 12), min_size=3, max_size=3),
    kind=st.sampled_from(KINDS),
    seed=st.integers(0, 2**31),
)
@pytest.mark.slow
def test_any_bins(kernels, space, out, kind, seed):
    rng = np.random.default_rng(seed)
    space = [min(n, 8) for n in space] if len(space) == 3 else space
    out = out[: len(space)]
    x = np.round(rng.standard_normal((2, 3, *space)) * 4) / 4
    found = [bins(n, o) for n, o in zip(space, out)]
    compare(rng, x, lambda t: apply(adaptive_pool, t, out=out, kind=kind), found, kind)


@pytest.mark.platform("pool")
@pytest.mark.parametrize("kind", KINDS)
def test_bins_in_both_types(rng, kernels, dtype, kind):
    for space, out in (((14, 37), (7, 5)), ((100,), (3,)), ((5, 6, 7), (1, 1, 1)), ((2, 3), (4, 5)), ((50,), (50,))):
        x = normal(rng, (2, 3, *space), dtype)
        if kind == "max":
            x[0, 0].flat[rng.integers(x[0, 0].size)] = np.nan
            x[0, 1] = -np.inf
        found = [bins(n, o) for n, o in zip(space, out)]
        compare(rng, x, lambda t, out=out: apply(adaptive_pool, t, out=out, kind=kind), found, kind, dtype=dtype)


# -- among other layers -----------------------------------------------------------------------------------------------
def network(kind, activation):
    if kind == "windows":
        return [clnn.Activation(activation), clnn.MaxPool2D(3, 2, 1), clnn.AvgPool2D(2, 1)]
    return [clnn.Activation(activation), clnn.AdaptiveMaxPool((4, 6)), clnn.AdaptiveAvgPool(3), clnn.GlobalAvgPool()]


@pytest.mark.parametrize("held", [True, False])
@pytest.mark.parametrize("activation", ["tanh", "swish"])
@pytest.mark.parametrize("kind", ["windows", "bins"])
def test_the_derivative_before_it_and_two_uses(rng, kernels, monkeypatch, kind, activation, held):
    """The gradient is multiplied by the derivative of the activation before it in the same launch, and added where the
    activation's output is used twice. The derivative is read at the largest themselves where these are in memory still."""
    seen, launch = [], kernels.launch
    monkeypatch.setattr(kernels, "launch", lambda *args, **how: (seen.append("FROM_Y" in how), launch(*args, **how))[1])
    x = normal(rng, (3, 2, 11, 13))
    layers = network(kind, activation)
    t = parameter(x)
    h = layers[0].forward(t)
    pooled = layers[1].forward(h), clnn.max_pool(h, 2)
    y, total = pooled[0], pooled[1].sum()
    if not held:
        del pooled
    for layer in layers[2:]:
        y = layer.forward(y)
    (y.sum() + total).backward()
    assert seen.count(True) == (2 if held and activation == "tanh" else 0)

    def value(x):
        h = np.tanh(x) if activation == "tanh" else x / (1 + np.exp(-x))
        if kind == "windows":
            y, take = reference(h, windows_of(x.shape[2:], (3, 3), (2, 2), [(1, 1)] * 2, False), "max")
            z, take2 = reference(y, windows_of(y.shape[2:], (2, 2), (1, 1), [(0, 0)] * 2, False), "mean")
            dh = take(take2(np.ones(z.shape)))
        else:
            y, take = reference(h, [bins(n, o) for n, o in zip(x.shape[2:], (4, 6))], "max")
            z, take2 = reference(y, [bins(n, 3) for n in y.shape[2:]], "mean")
            dh = take(take2(np.full(z.shape, 1 / 9)))
        _, take = reference(h, windows_of(x.shape[2:], (2, 2), (2, 2), [(0, 0)] * 2, False), "max")
        return dh + take(np.ones((*x.shape[:2], 5, 6)))

    slope = 1 - np.tanh(x) ** 2
    if activation == "swish":
        s = 1 / (1 + np.exp(-x))
        slope = s * (1 + x * (1 - s))
    assert_close(t.grad.numpy(), value(x) * slope, 64 * eps(np.float32) * 4)


@pytest.mark.parametrize("n", [16, 37, 70])
def test_the_first_of_equals_in_long_rows(rng, device, n):
    """Where a bin's row is gone through in vectors, equals lie in several lanes, and NaN too."""
    x = rng.integers(0, 3, (40, 1, 2, n)).astype(np.float32)
    x[::7, :, :, n // 2 :: 3] = np.nan
    t = parameter(x)
    clnn.AdaptiveMaxPool(1)(t).sum().backward()
    flat = x.reshape(40, -1)
    np.testing.assert_array_equal(t.grad.numpy().reshape(40, -1), np.eye(2 * n)[np.argmax(flat, -1)])


def test_replays_are_the_same_bits(rng, device):
    x = normal(rng, (5, 3, 12, 14))
    found = []
    for record in (False, True):
        w = parameter(np.ones((3, 1, 1)))

        @clnn.step(record=record)
        def run(x, w=w):
            y = clnn.max_pool(clnn.tanh(x * w), 2) + clnn.avg_pool(x * w, 3, 2, 1)
            y = clnn.AdaptiveMaxPool(2).forward(y)
            y.sum().backward()
            gradient = w.grad
            w.zero_grad()
            return y, gradient

        found.append([[a.numpy() for a in run((x * i).astype(np.float32))] for i in range(1, 7)])
    for eager, recorded in zip(*found):
        for a, b in zip(eager, recorded):
            np.testing.assert_array_equal(a, b)


LAYERS = [
    clnn.MaxPool2D(),
    clnn.MaxPool2D(3, 2, ((1, 0), (0, 1)), ceil_mode=True),
    clnn.AvgPool2D((2, 1), padding="same", count_include_pad=False),
    clnn.AdaptiveMaxPool((5, 4)),
    clnn.AdaptiveAvgPool(3),
    clnn.GlobalMaxPool(),
]


def test_layers_in_a_file(device, rng, tmp_path):
    net = clnn.Sequential([*LAYERS, clnn.Dense(2)], input_shape=(2, 15, 17))
    x = rng.standard_normal((3, 2, 15, 17)).astype(np.float32)
    net.save(tmp_path / "net")
    again = clnn.load(tmp_path / "net")
    assert [repr(layer) for layer in again.layers] == [repr(layer) for layer in net.layers]
    np.testing.assert_array_equal(again.predict(x), net.predict(x))
    for layer in LAYERS:
        layer.name = ""


def test_layers_of_other_axes(device, rng):
    x1, x3 = normal(rng, (2, 3, 9)), normal(rng, (2, 3, 4, 5, 6))
    for layer, x, out in (
        (clnn.MaxPool1D(3, 1), x1, (2, 3, 7)),
        (clnn.AvgPool1D(2), x1, (2, 3, 4)),
        (clnn.MaxPool3D(2), x3, (2, 3, 2, 2, 3)),
        (clnn.AvgPool3D((1, 2, 3), padding=(0, 1, 1)), x3, (2, 3, 4, 3, 2)),
        (clnn.GlobalMaxPool(), x1, (2, 3)),
        (clnn.GlobalAvgPool(), x3, (2, 3)),
        (clnn.AdaptiveAvgPool(2), x3, (2, 3, 2, 2, 2)),
        (clnn.AdaptiveMaxPool((4,)), x1, (2, 3, 4)),
    ):
        assert layer(x.astype(np.float32)).shape == out
    assert_close(clnn.GlobalMaxPool()(x3.astype(np.float32)).numpy(), x3.max((2, 3, 4)), 0)
    assert_close(clnn.GlobalAvgPool()(x3.astype(np.float32)).numpy(), x3.mean((2, 3, 4)), 16 * eps(np.float32) * 5)


def test_wrong_inputs(device):
    with pytest.raises(
        clnn.ShapeError, match=r"MaxPool2D: an input has the shape \(batch, channels, height, width\).*\(2, 3, 4\)"
    ):
        clnn.MaxPool2D()(clnn.zeros((2, 3, 4)))
    with pytest.raises(
        clnn.ShapeError, match=r"AvgPool1D: a window of 5.*\(2, 3, 4\): \(4 \+ 0 \+ 0 - 1 \* \(5 - 1\) - 1\)"
    ):
        clnn.AvgPool1D(5)(clnn.zeros((2, 3, 4)))
    with pytest.raises(clnn.ShapeError, match=r"GlobalAvgPool: .*1 to 3 spatial axes.*\(2, 3\)"):
        clnn.GlobalAvgPool()(clnn.zeros((2, 3)))
    with pytest.raises(clnn.ShapeError, match=r"AdaptiveMaxPool: .*2 spatial axes.*\(2, 3, 4\)"):
        clnn.AdaptiveMaxPool((2, 2))(clnn.zeros((2, 3, 4)))
    with pytest.raises(clnn.ShapeError, match=r"MaxPool1D: pooling over no elements"):
        clnn.MaxPool1D(2, padding=1)(clnn.zeros((2, 3, 0)))
    with pytest.raises(clnn.ShapeError, match="max_pool: .*1 to 3 spatial axes"):
        clnn.max_pool(clnn.zeros((2, 3)))
    with pytest.raises(clnn.ShapeError, match="int32"):
        clnn.max_pool(clnn.tensor(np.ones((1, 1, 4), int)))


@pytest.mark.parametrize(
    "make",
    [
        lambda: clnn.MaxPool2D(0),
        lambda: clnn.MaxPool2D((2, 2, 2)),
        lambda: clnn.MaxPool2D(2, 0),
        lambda: clnn.AvgPool1D(2.5),
        lambda: clnn.AvgPool1D(2, padding=2),
        lambda: clnn.MaxPool3D(2, padding="full"),
        lambda: clnn.AdaptiveAvgPool(0),
        lambda: clnn.AdaptiveAvgPool((1, 2, 3, 4)),
    ],
)
def test_wrong_arguments(make):
    with pytest.raises(clnn.ConfigurationError, match="provided instead"):
        make()


@pytest.mark.platform("pool")
@pytest.mark.oclgrind
def test_small_under_a_simulator(rng, kernels):
    for shape, size, stride, padding in (((1, 2, 5, 9), 2, 2, 0), ((1, 1, 3, 4), 3, 1, 1), ((1, 1, 11), 3, 3, 2)):
        axes = len(shape) - 2
        x = normal(rng, shape)
        found = windows_of(shape[2:], (size,) * axes, (stride,) * axes, [(padding, padding)] * axes, False)
        for kind in KINDS:
            compare(rng, x, pooling(shape, size, stride, padding, kind), found, kind)
    x = normal(rng, (1, 2, 3, 10))
    for kind in KINDS:
        compare(
            rng, x, lambda t, kind=kind: apply(adaptive_pool, t, out=(2, 3), kind=kind), [bins(3, 2), bins(10, 3)], kind
        )
