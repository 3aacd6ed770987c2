"""A tensor behaves as people expect of an array: compared elementwise, gone through row by row, copied, and never cut off
from its history without a word."""

import operator
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest

import clnn
from clnn.tensor import NAMESAKES


def learning(values):
    return clnn.tensor(np.asarray(values, np.float32), requires_grad=True)


# -- comparisons ------------------------------------------------------------------------------------------------------
COMPARISONS = {
    "==": lambda a, b: a == b,
    "!=": lambda a, b: a != b,
    "<": lambda a, b: a < b,
    "<=": lambda a, b: a <= b,
    ">": lambda a, b: a > b,
    ">=": lambda a, b: a >= b,
}


@pytest.mark.parametrize("name", COMPARISONS)
def test_comparisons_are_numpys(rng, dtype, device, name):
    compare = COMPARISONS[name]
    a, b = rng.integers(0, 3, (5, 4)).astype(dtype), rng.integers(0, 3, (5, 4)).astype(dtype)
    a[0, 0] = b[0, 1] = np.nan
    a[1, 0], b[1, 0] = np.inf, np.inf
    t, u = clnn.tensor(a, dtype=dtype), clnn.tensor(b, dtype=dtype)
    for got, want in (
        (compare(t, u), compare(a, b)),
        (compare(t, 1.0), compare(a, 1.0)),
        (compare(1, t), compare(1, a)),
        (compare(t, b), compare(a, b)),
        (compare(a, u), compare(a, b)),
        (compare(t, b[0].tolist()), compare(a, b[0])),
        (compare(t, u[:, :1]), compare(a, b[:, :1])),
        (compare(t, np.float32(2)), compare(a, 2)),
        (compare(np.float64(2), t), compare(2, a)),
    ):
        assert isinstance(got, clnn.Tensor) and got.dtype == dtype
        np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("name", COMPARISONS)
def test_integers_are_compared_exactly(rng, device, name):
    compare = COMPARISONS[name]
    a = np.array([0, 1, -1, 2**24, 2**24 + 1, -(2**31), 2**31 - 1, 2**31 - 2], np.int32)
    t = clnn.tensor(a)
    np.testing.assert_array_equal(compare(t, t), compare(a, a))
    np.testing.assert_array_equal(compare(t.reshape(8, 1), t), compare(a[:, None], a))
    for number in (0, 1, -(2**31), -(2**31) + 1, 2**31 - 1, 2**24):
        np.testing.assert_array_equal(compare(t, number), compare(a, number))
        np.testing.assert_array_equal(compare(number, t), compare(number, a))
    np.testing.assert_array_equal(compare(t, float(2**24)), compare(a, 2**24))
    for bad in (1.5, 2**31, -(2**31) - 1, float("nan"), float("inf")):
        with pytest.raises((clnn.ShapeError, clnn.ClnnError, ValueError), match="int32"):
            compare(t, bad)
    with pytest.raises(clnn.ShapeError, match="arrays of two types"):
        compare(t, clnn.zeros(8))
    with pytest.raises(clnn.ShapeError, match="takes floats, not int32"):
        t / 2


def test_a_mask_of_what_is_not_zero(device):
    p, t = learning([1.0, 2.0, 3.0]), clnn.tensor([0.0, 3.0, 0.0])
    loss = ((p - t) ** 2 * (t != 0)).sum()
    assert loss.item() == 1.0
    loss.backward()
    np.testing.assert_array_equal(p.grad, [0, -2, 0])
    labels = clnn.tensor(np.array([0, 2, 0], np.int32))
    assert ((p - t) ** 2 * (labels == 2)).sum().item() == 1.0
    hit = p == p
    assert not hit.requires_grad
    with pytest.raises(clnn.ClnnError, match="has no history"):
        hit.sum().backward()


def test_a_mask_in_a_recorded_step(rng, device):
    p = learning(np.zeros(6))
    optimizer = clnn.SGD(0.25)

    @clnn.step
    def train(t):
        loss = ((p - t) ** 2 * (t != 0)).sum()
        loss.backward()
        optimizer.step([p])
        return loss

    want = np.zeros(6)
    for _ in range(6):
        t = np.float32(rng.integers(-1, 2, 6))
        assert train(t).item() == pytest.approx(((want - t) ** 2 * (t != 0)).sum(), rel=1e-5, abs=1e-6)
        want -= 0.25 * 2 * (want - t) * (t != 0)
    np.testing.assert_allclose(p, want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "other", [None, "text", object(), {}, clnn.SGD(0.1)], ids=["None", "text", "object", "dict", "optimizer"]
)
def test_what_is_no_number_is_never_equal(device, other):
    t = clnn.ones(3)
    assert (t == other) is False and (t != other) is True and t not in [other] and other not in t


def test_identity_in_dicts_sets_and_lists(device):
    a, b = clnn.ones(3), clnn.ones(3)
    assert len({a, b}) == 2 and {a: 1, b: 2}[a] == 1 and a in {a, b} and hash(a) == hash(a) and a in [a]
    with pytest.raises(clnn.ShapeError, match="neither true nor false.*compare tensors by `is`"):
        assert a in [b]
    with pytest.raises(clnn.ShapeError, match="neither true nor false"):
        bool(a)
    with pytest.raises(clnn.ShapeError, match="neither true nor false"):
        bool(clnn.zeros(0))
    assert clnn.tensor(1.0) == 1.0 and not clnn.tensor([0.0]) and clnn.tensor(2.0) in [clnn.tensor(2.0)]
    with pytest.raises(clnn.ShapeError, match="do not broadcast"):
        a == clnn.ones(2)  # noqa: B015


def test_parameters_that_are_equal_are_still_two(rng, device):
    """Layers of equal weights: nothing inside compares parameters by their values."""
    net = clnn.Sequential([clnn.Dense(4, weight_init="ones"), clnn.Dense(4, weight_init="ones")], input_shape=4)
    assert len(net.parameters()) == 4
    x, y = rng.random((20, 4)).astype(np.float32), rng.integers(0, 4, 20)
    net.fit(x, y, loss="cross_entropy", optimizer=clnn.Adam(0.01), epochs=2, progress=False)
    p, q = net.layers[0].w, net.layers[1].w
    assert (p != q).max().item() == 1.0


# -- rows -------------------------------------------------------------------------------------------------------------
def test_going_through_rows(rng, device):
    x = rng.random((3, 2)).astype(np.float32)
    t = clnn.tensor(x)
    for row, want in zip(t, x, strict=True):
        np.testing.assert_array_equal(row, want)
    a, (b, c), d = t
    assert a.shape == (2,) and b.item() == x[1, 0] and c.item() == x[1, 1] and d[1].item() == x[2, 1]
    np.testing.assert_allclose(sum(t), x.sum(0), rtol=1e-6)
    assert [row.shape for row in reversed(t)] == [(2,)] * 3 and len(list(t)) == len(t) == 3
    assert float(x[1, 1]) in t and 7.0 not in t and 1.0 in clnn.ones((2, 2, 2)) and 1.0 not in clnn.zeros((0, 2))
    assert max(clnn.tensor([1.0, 3.0, 2.0])).item() == 3.0
    assert list(clnn.zeros((0, 2))) == []
    first, *_ = clnn.tensor(np.arange(3))
    assert first.item() == 0
    with pytest.raises(ValueError, match="too many values"):
        a, b = t
    for call in (lambda: iter(clnn.tensor(1.0)), lambda: len(clnn.tensor(1.0)), lambda: list(clnn.tensor(1.0))):
        with pytest.raises(TypeError, match="a tensor without axes"):
            call()


@pytest.mark.parametrize("index", [3, -4, (0, 2), (slice(None), 2)])
def test_an_index_out_of_range_is_an_index_error(device, index):
    with pytest.raises(IndexError, match="is out of range for axis"):
        clnn.ones((3, 2))[index]
    with pytest.raises(clnn.ShapeError):
        clnn.ones((3, 2))[index]


def test_gradients_of_rows(device):
    p = learning([[1.0, 2.0], [3.0, 4.0]])
    loss = sum((row * row).sum() * k for k, row in enumerate(p, 1))
    loss.backward()
    np.testing.assert_array_equal(p.grad, [[2, 4], [12, 16]])


# -- histories are never cut without a word ---------------------------------------------------------------------------
CUTS = {
    "astype": lambda t, device: t.astype(np.int32),
    "to": lambda t, device: t.to(device),
    "tensor(dtype=)": lambda t, device: clnn.tensor(t, dtype=np.float64),
    "tensor(requires_grad=)": lambda t, device: clnn.tensor(t * 1.0, requires_grad=True),
    "tensor of tensors": lambda t, device: clnn.tensor([t, t]),
    "tensor of a tuple": lambda t, device: clnn.tensor((t, 1.0 * t)),
    "tensor of nested lists": lambda t, device: clnn.tensor([[t, t], [1.0, t]][:1]),
    "a list of rows as an operand": lambda t, device: clnn.ones(2) + [t[0], t[1]],
    "constant": lambda t, device: clnn.constant(t),
    "np.exp": lambda t, device: np.exp(t),
    "np.tanh": lambda t, device: np.tanh(t * 2.0),
    "np.sqrt": lambda t, device: np.sqrt(t),
    "np.fmod": lambda t, device: np.fmod(t, 2),
    "np.add.reduce": lambda t, device: np.add.reduce(t),
    "np.add(out=)": lambda t, device: np.add(t, 1, out=np.zeros(2, np.float32)),
    "+=": lambda t, device: np.ones(2, np.float32).__iadd__(t),
    "np.sum": lambda t, device: np.sum(t),
    "np.mean": lambda t, device: np.mean(t, axis=0),
    "np.where": lambda t, device: np.where(np.array([True, False]), t, 0),
    "np.concatenate": lambda t, device: np.concatenate([t, t]),
    "np.stack": lambda t, device: np.stack([t, t]),
    "np.dot": lambda t, device: np.dot(t, t),
    "np.clip": lambda t, device: np.clip(t, 0, 1),
    "np.linalg.norm": lambda t, device: np.linalg.norm(t),
    "an argument of a step": lambda t, device: clnn.step(lambda a: a * 2)(t),
    "augmentation": lambda t, device: clnn.data.augment.shift(t.reshape(1, 1, 2), 1, 0),
    "a layer of another type": lambda t, device: doubled()(t.reshape(1, 2)),
}


def doubled():
    layer = clnn.Dense(2)
    layer.dtype = np.dtype(np.float64)
    return layer


@pytest.mark.parametrize("name", CUTS)
def test_a_history_is_kept_or_refused(device, name):
    if name in ("tensor(dtype=)", "a layer of another type") and not device.has_fp64:
        pytest.skip("no float64")
    p = learning([0.5, 1.5])
    for t in (p, p * 1.0, clnn.exp(p)):
        with pytest.raises(clnn.ClnnError, match=r"depends on a parameter.*\.detach\(\)"):
            CUTS[name](t, device)
        with clnn.no_grad():
            CUTS[name](p, device)
    CUTS[name](p.detach(), device)
    CUTS[name](clnn.tensor([0.5, 1.5]), device)


def test_a_step_within_a_step_keeps_the_history(device):
    p = learning([0.5, 1.5])
    inner = clnn.step(lambda t: t * t)

    @clnn.step
    def outer(x):
        loss = (inner(p * x) + inner(p)).sum()
        loss.backward()
        return p.grad

    for _ in range(5):
        np.testing.assert_allclose(outer(np.float32([2.0, 3.0])), [2 * 0.5 * 5, 2 * 1.5 * 10])
        p.zero_grad()


def test_the_error_names_what_does_it(device):
    p = learning([0.5, 1.5])
    for call, says in (
        (lambda: np.exp(p), r"np.exp takes .*: clnn.exp\(t\) does, or give it .detach"),
        (lambda: np.sum(p), r"np.sum takes .*: t.sum\(\) does, or give it .detach"),
        (lambda: np.sin(p), r"clnn.sin\(t\) does"),
        (lambda: np.negative(p), r"np.negative takes .*: -t does"),
        (lambda: np.where([True, False], p, 0), "np.where takes .*: clnn.where does, or give it .detach"),
        (lambda: np.stack([p, p]), "clnn.stack does"),
        (lambda: clnn.tensor([p, p]), "clnn.concatenate does"),
    ):
        with pytest.raises(clnn.ClnnError, match=says):
            call()
    assert all(callable(getattr(clnn, name)) and hasattr(np, name) for name in NAMESAKES)


@pytest.mark.parametrize("call", [
    lambda a, t: a + t, lambda a, t: a * t, lambda a, t: a - t, lambda a, t: a / t, lambda a, t: a**t, lambda a, t: a @ t,
    lambda a, t: np.add(a, t), lambda a, t: np.multiply(t, a), lambda a, t: np.maximum(a, t), lambda a, t: a[0] * t,
    lambda a, t: np.float64(2) * t, lambda a, t: np.float32(2) / t, lambda a, t: t - np.float64(1), lambda a, t: a.tolist() + t,
])  # fmt: skip
def test_numpy_on_the_left_keeps_the_gradient(rng, device, call):
    a, values = rng.random((2, 2)).astype(np.float32) + 1, rng.random((2, 2)).astype(np.float32) + 1
    values[np.abs(values - a) < 0.01] += 0.02  # the maximum has no derivative where they are equal
    p = clnn.tensor(values, requires_grad=True)
    y = call(a, p)
    assert isinstance(y, clnn.Tensor) and y.requires_grad
    y.sum().backward()
    step = 1e-3
    for at in np.ndindex(2, 2):
        moved = [values.astype(np.float64).copy() for _ in range(2)]
        moved[0][at] += step
        moved[1][at] -= step
        b = a.astype(np.float64)
        high, low = (np.sum(call(b if not isinstance(m, list) else b, m)) for m in moved)
        assert p.grad.numpy()[at] == pytest.approx((high - low) / (2 * step), rel=1e-3, abs=1e-4)


def test_values_are_read_as_before(rng, device):
    x = rng.random((3, 2)).astype(np.float32)
    t, p = clnn.tensor(x), learning(x)
    for one in (t, p, p * 1.0):
        np.testing.assert_array_equal(one.numpy(), x)
        np.testing.assert_array_equal(np.asarray(one), x)
        np.testing.assert_allclose(one, x)
        assert np.shape(one) == (3, 2) and np.ndim(one) == 2 and np.size(one) == 6 and np.array_equal(one, x)
        assert np.allclose(one, x) and float(one[0, 0]) == x[0, 0]
    np.testing.assert_array_equal(np.exp(t), np.exp(x))
    np.testing.assert_array_equal(np.sum(t, axis=0), x.sum(0))
    np.testing.assert_array_equal(np.concatenate([t, x]), np.concatenate([x, x]))
    np.testing.assert_array_equal(np.where(x > 0.5, t, 0), np.where(x > 0.5, x, 0))


def test_frozen_parameters_have_no_history(device):
    p = learning([1.0, 2.0])
    p.trainable = False
    np.testing.assert_array_equal(np.exp(p), np.exp(np.float32([1, 2])))
    p.astype(np.int32)


# -- more of what NumPy's arrays do -----------------------------------------------------------------------------------
@pytest.mark.parametrize("number", [Fraction(1, 2), Decimal("0.5"), np.longdouble(0.5), np.array(0.5)], ids=str)
def test_numbers_of_every_kind(device, number):
    t = clnn.tensor([0.5, 1.0])
    for got in (t == number, number == t):
        np.testing.assert_array_equal(got, [1, 0])
    np.testing.assert_array_equal(t != number, [0, 1])
    np.testing.assert_array_equal(t * number, [0.25, 0.5])
    with pytest.raises(clnn.DataError, match="complex"):
        t == 1j  # noqa: B015


def test_formats_and_copies(device):
    t = clnn.tensor(1.25)
    assert f"{t:.1f} {t:6.3f}" == "1.2  1.250" and f"{t}".startswith("Tensor(1.25")
    with pytest.raises(TypeError, match="unsupported format string"):
        f"{clnn.ones(2):.1f}"
    if np.lib.NumpyVersion(np.__version__) >= "2.0.0":
        with pytest.raises(ValueError, match="always a copy"):
            np.asarray(t, copy=False)


def test_argmax_over_all_elements(rng, device):
    x = rng.random((2, 3, 4)).astype(np.float32)
    assert clnn.tensor(x).argmax(None).item() == x.argmax() and clnn.tensor(x).argmax(None).shape == ()
    for axis in ((0, 1), ()):
        with pytest.raises(clnn.ShapeError, match="argmax is along one axis"):
            clnn.tensor(x).argmax(axis)


@pytest.mark.parametrize("value", [np.nan, np.inf, 3e9, -3e9, 2**31, -(2**31) - 1, np.uint64(2**63)])
def test_what_int32_cannot_hold_is_refused(device, value):
    for call in (
        lambda: clnn.tensor([0, value], dtype="int32"),
        lambda: clnn.tensor(np.array([value, 0]), dtype=np.int32),
        lambda: clnn.tensor([2 * float(value)], dtype="float32").astype("int32"),
    ):
        with pytest.raises(clnn.ShapeError, match="integers become int32 here, and .* does not fit"):
            call()
    y = np.array([value, 0])
    if y.dtype.kind in "iu":
        net = clnn.Sequential([clnn.Dense(2)], input_shape=3)
        with pytest.raises(clnn.DataError, match="y: integers become int32 here, and .* does not fit"):
            net.fit(np.ones((2, 3)), y, loss="cross_entropy", optimizer="sgd", progress=False)
    np.testing.assert_array_equal(clnn.tensor([1.7, -1.7, -(2.0**31)], dtype="int32"), [1, -1, -(2**31)])


@pytest.mark.filterwarnings("error")
def test_the_bounds_of_int32_are_not_rounded_to_narrow_floats(device):
    least = clnn.tensor([-(2.0**31), 5.0])
    np.testing.assert_array_equal(least.astype("int32"), [-(2**31), 5])
    np.testing.assert_array_equal(clnn.tensor(np.float16([-60000.0, 5.0]), dtype="int32"), [-60000, 5])
    for beyond in ("float16", "float32"):
        with pytest.raises(clnn.ShapeError, match="and inf does not fit"):
            clnn.tensor(np.array([-1.0, np.inf], beyond), dtype="int32")
    with pytest.raises(clnn.ShapeError, match="and 2147483648.0 does not fit"):
        clnn.tensor(np.float32([-(2.0**31), 2.0**31]), dtype="int32")


def test_zeros_and_ones_have_the_types_of_tensors(device):
    for make, value in ((clnn.zeros, 0), (clnn.ones, 1)):
        for shape in (5, (2, 0), ()):
            t = make(shape, dtype="int32")
            assert t.dtype == np.int32
            np.testing.assert_array_equal(t, np.full(shape, value))
        for dtype in ("int64", "float16", bool, "uint8"):
            with pytest.raises(clnn.ShapeError, match="a tensor holds float32, float64 or int32"):
                make((2, 2), dtype=dtype)
    with pytest.raises(clnn.ShapeError, match="what learns are floats, not int32"):
        clnn.tensor([1, 2], requires_grad=True)


def test_concatenating_what_are_not_all_tensors(device):
    p = learning([[1.0, 2.0], [3.0, 4.0]])
    y = clnn.concatenate([np.array([5.0]), p[0], [6.0]])
    np.testing.assert_array_equal(y, [5, 1, 2, 6])
    (y * np.float32([1, 2, 3, 4])).sum().backward()
    np.testing.assert_array_equal(p.grad, [[2, 3], [0, 0]])
    np.testing.assert_array_equal(clnn.concatenate(p), [1, 2, 3, 4])  # its rows
    np.testing.assert_array_equal(clnn.concatenate(row for row in p.detach()), [1, 2, 3, 4])
    np.testing.assert_array_equal(clnn.concatenate([np.ones((1, 2)), np.zeros((2, 2))]), [[1, 1], [0, 0], [0, 0]])


def test_numpy_changes_no_tensor_and_does_not_pass_for_it(device):
    """It gets a copy of the values; into arrays of NumPy's own it writes what tensors hold."""
    t, p, x = (
        clnn.tensor([[1.0, 2.0], [3.0, 4.0]]),
        clnn.tensor(np.ones((2, 2)), requires_grad=True),
        np.ones((2, 2), np.float32),
    )
    for target in (t, p):
        for write in (
            lambda to: np.add(x, 1, out=to), lambda to: np.add(to, x, to), lambda to: np.divmod(x, 2, out=(None, to)),
            lambda to: np.cumsum(x, out=to), lambda to: np.copyto(to, x), lambda to: np.put(to, [0], 5),
            lambda to: np.fill_diagonal(to, 7), lambda to: np.place(to, x > 0, 3), lambda to: np.putmask(to, x > 0, 3),
            lambda to: np.put_along_axis(to, np.zeros((2, 1), int), 9, 1), lambda to: np.add.at(to, 0, 1),
        ):  # fmt: skip
            with pytest.raises(clnn.ClnnError, match="not changed in place"):
                write(target)
    for op in (operator.ipow, operator.imod, operator.ifloordiv, operator.imatmul, operator.iadd, operator.itruediv):
        with pytest.raises(clnn.ClnnError, match="not changed in place"):
            op(p, x)
    assert t.numpy().tolist() == [[1, 2], [3, 4]] and (p.numpy() == 1).all()
    np.copyto(x, t)
    assert x.tolist() == [[1, 2], [3, 4]]
    np.add.at(x, 0, t[1])
    x -= t
    assert x.tolist() == [[3, 4], [0, 0]]


RAGGED = [[1.0], [2.0, 3.0]]


@pytest.mark.parametrize(
    "call, told",
    [
        (lambda t: t + RAGGED, "an operand is no array of numbers"), (lambda t: RAGGED - t, "an operand is no array"),
        (lambda t: t @ RAGGED, "an operand is no array"), (lambda t: t < RAGGED, "an operand is no array"),
        (lambda t: clnn.maximum(t, RAGGED), "an operand is no array"), (lambda t: clnn.power(RAGGED, t), "an operand is no"),
        (lambda t: clnn.where(t > 0, RAGGED, t), "an operand"), (lambda t: clnn.stack([RAGGED, RAGGED]), "an operand"),
        (lambda t: clnn.leaky_relu(t, RAGGED), "an operand"), (lambda t: t[[[0], [1, 2]]], "an index is no array of numbers"),
        (lambda t: clnn.where(RAGGED, t, t), "no array of numbers"), (lambda t: clnn.clip(t, RAGGED), "an operand"),
        (lambda t: clnn.concatenate(1.5), "concatenate takes a list of arrays, and 1.5 was given"),
        (lambda t: clnn.concatenate(None), "concatenate takes a list of arrays, and None"),
        (lambda t: clnn.concatenate(t.sum()), "concatenate takes a list of arrays"),
        (lambda t: clnn.stack(7), "stack takes a list of arrays, and 7 was given"),
        (lambda t: clnn.scaled_dot_product_attention(*[np.ones((1, 2, 3, 4), np.int32)] * 3), "^scaled_dot_product_attention"),
    ],
)  # fmt: skip
def test_what_is_no_array_is_told_by_clnn(device, call, told):
    """Lists of different lengths, and numbers in place of lists, were errors of NumPy's and Python's own."""
    with pytest.raises((clnn.DataError, clnn.ShapeError), match=told):
        call(clnn.tensor([[1.0, 2.0], [3.0, 4.0]]))
