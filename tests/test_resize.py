"""Upsampling and padding against float64 NumPy, for every kind of device, and their layers."""

import numpy as np
import pytest
from helpers import assert_close, check_op, eps, normal, parameter, scale_of
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import clnn
from clnn.tools.verify.references import along_axes, padding, upsampling


@pytest.fixture(params=["cpu", "gpu"])
def kernels(request, device, monkeypatch):
    """The kernels for CPUs, and those for GPUs, whatever the device is."""
    monkeypatch.setattr(device, "kind", request.param)
    return device


def compare(rng, x, op, matrices, dtype=np.float32, beside=0.0):
    """`op` of a tensor against the matrices: y, of which `beside` is what no element is in, and dx."""
    expected = along_axes(x, matrices) + beside * (along_axes(np.ones(x.shape), matrices) == 0)
    t = parameter(x, dtype)
    y = op(t)
    assert_close(y.numpy(), expected, 8 * eps(dtype) * scale_of(x), "y")
    dy = normal(rng, y.shape, dtype)
    y.backward(dy)
    wanted = along_axes(dy, [m.T for m in matrices])
    assert_close(
        t.grad.numpy(), wanted, 16 * np.prod([m.sum(0).max() for m in matrices]) * eps(dtype) * scale_of(dy), "dx"
    )


SPACES = st.lists(st.integers(1, 11), min_size=1, max_size=3).map(lambda s: [*s[:-1], 3 * s[-1] + 1])


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    space=SPACES,
    factor=st.sampled_from([(2, 2, 2), (3, 2, 1), (1, 1, 3), (2, 3, 4)]),
    linear=st.booleans(),
    seed=st.integers(0, 2**31),
)
@pytest.mark.slow
def test_any_upsampling(kernels, space, factor, linear, seed):
    rng = np.random.default_rng(seed)
    factor = factor[-len(space) :]
    matrices = [upsampling(n, f, linear) for n, f in zip(space, factor)]
    mode = "linear" if linear else "nearest"
    compare(rng, normal(rng, (2, 3, *space)), lambda t: clnn.upsample(t, factor, mode), matrices)


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    space=SPACES,
    amounts=st.lists(st.tuples(st.integers(0, 12), st.integers(0, 12)), min_size=3, max_size=3),
    mode=st.sampled_from(["constant", "reflect", "replicate"]),
    seed=st.integers(0, 2**31),
)
@pytest.mark.slow
def test_any_padding(kernels, space, amounts, mode, seed):
    rng = np.random.default_rng(seed)
    amounts = amounts[: len(space)]
    if mode == "reflect":
        amounts = [(min(a, n - 1), min(b, n - 1)) for (a, b), n in zip(amounts, space)]
    matrices = [padding(n, *pair, mode) for n, pair in zip(space, amounts)]
    compare(rng, normal(rng, (2, 3, *space)), lambda t: clnn.pad(t, amounts, mode, -1.5), matrices, beside=-1.5)


@pytest.mark.platform("resize")
def test_in_both_types(rng, device, dtype):
    x = normal(rng, (2, 3, 5, 19), dtype)
    for linear in (False, True):
        matrices = [upsampling(5, 2, linear), upsampling(19, 2, linear)]
        compare(rng, x, lambda t, m=linear: clnn.upsample(t, 2, "bilinear" if m else "nearest"), matrices, dtype)
    for mode in ("constant", "reflect", "replicate"):
        matrices = [padding(5, 1, 2, mode), padding(19, 4, 3, mode)]
        compare(rng, x, lambda t, m=mode: clnn.pad(t, ((1, 2), (4, 3)), m), matrices, dtype)


def test_against_central_differences(rng, device):
    x = normal(rng, (1, 2, 3, 4))
    pairs = [(1, 2), (2, 1)]
    check_op(
        rng,
        lambda t: clnn.upsample(clnn.pad(clnn.tanh(t), pairs, "reflect"), (2, 3), "bilinear"),
        lambda a: along_axes(
            along_axes(np.tanh(a), [padding(3, 1, 2, "reflect"), padding(4, 2, 1, "reflect")]),
            [upsampling(6, 2, True), upsampling(7, 3, True)],
        ),
        x,
        rounding=64,
    )


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_special_values_stay_where_they_are(device, value):
    """An element that is in none of an output, not even with weight 0, does not spoil it."""
    x = np.zeros((1, 1, 1, 9))
    x[..., 4] = value
    y = clnn.upsample(clnn.tensor(x, np.float32), (1, 3), "bilinear").numpy()
    special = ~np.isfinite(y[0, 0, 0])
    np.testing.assert_array_equal(np.flatnonzero(special), np.arange(11, 16))
    y = clnn.pad(clnn.tensor(x, np.float32), 3, "constant", value).numpy()
    assert (~np.isfinite(y)).sum() == 7 * 15 - 8


def test_empty_batches(device):
    x = parameter(np.zeros((0, 3, 4)))
    for op in (clnn.upsample, lambda t: clnn.pad(t, 2), lambda t: clnn.pad(t, 2, "reflect")):
        y = op(x)
        assert y.shape == (0, 3, 8) and y.numpy().size == 0
        y.backward(np.zeros(y.shape))
        assert x.grad.shape == x.shape
    assert_close(clnn.pad(clnn.zeros((1, 1, 0)), 2, value=3.0).numpy(), np.full((1, 1, 4), 3.0), 0)


def test_layers_in_a_file(device, rng, tmp_path):
    layers = [
        clnn.Padding(1, "reflect"),
        clnn.Padding([(0, 2), 1], value=0.5),
        clnn.UpSampling(),
        clnn.UpSampling((1, 3), "bilinear"),
        clnn.GlobalAvgPool(),
    ]
    net = clnn.Sequential(layers, input_shape=(2, 4, 5))
    x = rng.standard_normal((3, 2, 4, 5)).astype(np.float32)
    net.save(tmp_path / "net")
    again = clnn.load(tmp_path / "net")
    np.testing.assert_array_equal(again.predict(x), net.predict(x))


def test_replays_are_the_same_bits(rng, device):
    found = []
    x = normal(rng, (3, 2, 6, 7))
    for record in (False, True):
        w = parameter(np.ones((2, 1, 1)))

        @clnn.step(record=record)
        def run(x, w=w):
            y = clnn.upsample(clnn.pad(clnn.tanh(x * w), 2, "replicate"), 2, "bilinear")
            a, b = clnn.split(y, 2, 1)
            (a * b).sum().backward()
            gradient = w.grad
            w.zero_grad()
            return y, gradient

        found.append([[a.numpy() for a in run((x * i).astype(np.float32))] for i in range(1, 7)])
    for eager, recorded in zip(*found):
        for a, b in zip(eager, recorded):
            np.testing.assert_array_equal(a, b)


def test_wrong_inputs(device):
    with pytest.raises(clnn.ShapeError, match=r"UpSampling: .*1 to 3 spatial axes.*\(2, 3\)"):
        clnn.UpSampling(2)(clnn.zeros((2, 3)))
    with pytest.raises(clnn.ShapeError, match=r"upsample: .*2 spatial axes.*\(2, 3, 4\)"):
        clnn.upsample(clnn.zeros((2, 3, 4)), (2, 2))
    with pytest.raises(clnn.ShapeError, match=r"Padding: reflect by 1 and 4 needs an axis of more than 4.*\(2, 3, 4\)"):
        clnn.Padding([(1, 4)], "reflect")(clnn.zeros((2, 3, 4)))
    with pytest.raises(clnn.ShapeError, match="pad: replicate needs an element"):
        clnn.pad(clnn.zeros((2, 3, 0)), 1, "replicate")
    with pytest.raises(clnn.ShapeError, match="UpSampling: .*int32"):
        clnn.UpSampling()(clnn.tensor(np.ones((1, 1, 4), int)))


@pytest.mark.parametrize(
    "make",
    [
        lambda: clnn.UpSampling(0),
        lambda: clnn.UpSampling(1.5),
        lambda: clnn.UpSampling((2, 2, 2, 2)),
        lambda: clnn.UpSampling(2, "cubic"),
        lambda: clnn.Padding(-1),
        lambda: clnn.Padding("same"),
        lambda: clnn.Padding([(1, 2, 3)]),
        lambda: clnn.Padding(1, "wrap"),
    ],
)
def test_wrong_arguments(make):
    with pytest.raises(clnn.ConfigurationError, match="provided instead"):
        make()


@pytest.mark.platform("resize")
@pytest.mark.oclgrind
def test_small_under_a_simulator(rng, kernels):
    x = normal(rng, (1, 2, 2, 3, 9))
    for linear in (False, True):
        matrices = [upsampling(n, 2, linear) for n in x.shape[2:]]
        compare(rng, x, lambda t, m=linear: clnn.upsample(t, 2, "linear" if m else "nearest"), matrices)
    amounts = (1, 0), (0, 2), (2, 3)
    for mode in ("constant", "reflect", "replicate"):
        matrices = [padding(n, *pair, mode) for n, pair in zip(x.shape[2:], amounts)]
        compare(rng, x, lambda t, m=mode: clnn.pad(t, amounts, m), matrices)
