"""Elementwise, reducing and shape-changing ops against NumPy, with gradients by every argument."""

import itertools
from functools import partial

import numpy as np
import pytest
from helpers import REFERENCES as REFERENCES_OF_ONE
from helpers import assert_close, beside_a_kink, check_op, eps, normal, parameter

import clnn
from clnn.ops.array import Array, fill
from clnn.ops.elementwise import BINARY, binary
from clnn.tensor import elementwise

REFERENCES = {name: getattr(np, name) for name in BINARY if hasattr(np, name)}


def op(name):
    return lambda a, b: elementwise(name, a, b)


def operands(rng, name, a, b, dtype=np.float32):
    """Random operands where the function is smooth."""
    x, y = normal(rng, a, dtype), normal(rng, b, dtype)
    if name == "power":
        x = np.abs(x) + 0.2
    if name in ("divide", "remainder", "floor_divide"):
        y = y + np.copysign(0.5, y)
        if name != "divide":  # away from where they jump
            x = x + np.where(np.abs(x / y - np.round(x / y)) < 0.02, 0.05 * y, 0)
    if name == "arctan2":
        y = y + np.copysign(0.5, y)
    if name in ("maximum", "minimum"):
        x = x + np.where(np.abs(x - y) < 0.01, 0.1, 0)
    return x, y


# -- functions of two variables ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", BINARY)
def test_binary(rng, device, name):
    for shape in ((0,), (1,), (131,), (3, 5)):
        x, y = operands(rng, name, shape, shape)
        check_op(rng, op(name), REFERENCES[name], x, y, gradients=BINARY[name].gradient)
    if not BINARY[name].gradient:  # and equals among them
        x, y = rng.integers(0, 3, (2, 50))
        check_op(rng, op(name), REFERENCES[name], x, y, gradients=False)


@pytest.mark.parametrize("name", ["multiply", "power"])
def test_binary_in_float64(rng, device, name):
    if not device.has_fp64:
        pytest.skip("no float64")
    check_op(rng, op(name), REFERENCES[name], *operands(rng, name, (7, 3), (7, 3), np.float64), dtype=np.float64)


BROADCASTS = [
    ((4, 3), (3,)), ((4, 3), (4, 1)), ((1,), (5,)), ((), (2, 3)), ((2, 1, 3), (5, 1)), ((4, 1), (1, 6)),
    ((2, 3, 1, 2), (3, 4, 1)), ((0, 3), (3,)), ((1, 3), (0, 1)), ((1, 1), (1,)), ((3,), (1, 3)),
    ((3, 40), (40,)), ((37, 1), (1, 18)), ((2, 6144), (2, 1)), ((2, 1, 1, 2, 1, 1, 3, 17), (2, 1, 1, 1, 1, 3, 1)),
]  # fmt: skip


@pytest.mark.parametrize("name", ["subtract", "divide", "maximum"])
@pytest.mark.parametrize("shapes", BROADCASTS, ids=str)
def test_broadcasting(rng, device, name, shapes):
    for a, b in (shapes, shapes[::-1]):
        check_op(rng, op(name), REFERENCES[name], *operands(rng, name, a, b))


def test_broadcasting_of_random_shapes(rng, device):
    """Up to eight axes."""
    for _ in range(20):
        shape = rng.integers(1, 4, rng.integers(0, 9))
        a, b = (np.where(rng.random(shape.size) < 0.4, 1, shape)[rng.integers(0, shape.size + 1) :] for _ in range(2))
        x, y = normal(rng, tuple(a)), normal(rng, tuple(b))
        expected = x - y
        got = clnn.tensor(x, np.float32) - clnn.tensor(y, np.float32)
        assert_close(got.numpy(), expected, 2 * eps(np.float32) * 10)


def test_broadcasting_over_eight_axes(rng, device):
    """Each axis in turn is the one that only one of them has."""
    for axis in range(8):
        shape = [1] * 8
        shape[axis], shape[(axis + 3) % 8] = 3, 2
        other = [1 if i == axis else n for i, n in enumerate(shape)]
        check_op(rng, op("subtract"), REFERENCES["subtract"], normal(rng, shape), normal(rng, other))


@pytest.mark.parametrize("name", ["subtract", "power"])
def test_numbers(rng, device, name):
    """A Python number on either side."""
    x = np.abs(normal(rng, (3, 5))) + 0.5
    check_op(rng, lambda a: elementwise(name, a, 1.5), lambda a: REFERENCES[name](a, 1.5), x)
    check_op(rng, lambda a: elementwise(name, 1.5, a), lambda a: REFERENCES[name](1.5, a), x)


@pytest.mark.parametrize("name", BINARY)
def test_binary_with_nan_and_infinity(device, name):
    special = np.array([np.nan, np.inf, -np.inf, 0.0, 1.0, -2.0, 3.0])
    a, b = np.meshgrid(special, special)
    with np.errstate(all="ignore"):
        expected = REFERENCES[name](a, b)
    assert_close(elementwise(name, clnn.tensor(a), clnn.tensor(b)).numpy(), expected, 16 * eps(np.float32) * 27)


def test_power_of_zero(device):
    """0 ** b and a ** 0 have the derivatives of their limits, not NaN."""
    a, b = parameter([0.0, 0.0, 2.0, 0.0]), parameter([2.0, 1.0, 0.0, 0.0])
    (a**b).backward(np.ones(4))
    np.testing.assert_array_equal(a.grad.numpy(), [0, 1, 0, 0])
    assert_close(b.grad.numpy(), [0, 0, np.log(2), 0], 4 * eps(np.float32))


def test_gradient_of_equals_is_shared(device):
    for name in ("maximum", "minimum"):
        a, b = parameter([1.0, 2.0]), parameter([1.0, 3.0])
        elementwise(name, a, b).backward(np.array([4.0, 4.0]))
        assert a.grad.numpy()[0] == b.grad.numpy()[0] == 2.0


def test_wrong_operands(device):
    with pytest.raises(clnn.ShapeError, match=r"multiply: shapes \(2, 3\) and \(2, 4\) do not broadcast"):
        clnn.zeros((2, 3)) * clnn.zeros((2, 4))
    with pytest.raises(clnn.ShapeError, match="at most 8 axes"):
        clnn.ones((1,) * 9) + clnn.ones((2,) + (1,) * 8)
    with pytest.raises(
        clnn.ShapeError, match=r"add: arrays of two types, float32 and int32; .*classes by clnn.one_hot\("
    ):
        clnn.ones((2,)) + clnn.tensor(np.ones(2, int))
    with pytest.raises(clnn.ShapeError, match="divide takes floats"):
        clnn.tensor(np.ones(2, int)) / 2
    with pytest.raises(clnn.ShapeError, match="add: int32 goes with int32, and 0.5 is none"):
        clnn.tensor(np.ones(2, int)) + 0.5


def test_fill_and_ones(device, dtype):
    assert_close(clnn.zeros((3, 5), dtype).numpy(), np.zeros((3, 5)), 0)
    assert_close(clnn.ones((131,), dtype).numpy(), np.ones(131), 0)
    assert clnn.zeros((0, 2), dtype).numpy().shape == (0, 2)
    assert_close(clnn.tensor(1.0).numpy() * 0 + float(np.float32(0.1)), _filled(device, 0.1), 0)


def _filled(device, value):
    block = device.allocate(4)
    return device.read(fill(Array(block, (), np.float32, device), value).block, np.empty((), np.float32))


# -- reductions -------------------------------------------------------------------------------------------------------
SHAPES = [
    ((7,), None), ((1,), 0), ((), None), ((3, 5), 0), ((3, 5), 1), ((3, 5), -1), ((3, 5), None), ((2, 3, 4), 1),
    ((2, 3, 4), (0, 2)), ((2, 3, 4), (1, 2)), ((2, 3, 4, 2), (0, 3)), ((3, 5), ()), ((70, 3), 0), ((3, 1), 1),
]  # fmt: skip


def distinct(rng, shape, dtype=np.float32):
    """A permutation of distinct values: differences do not change which is largest."""
    return rng.permutation(np.prod(shape, dtype=int)).reshape(shape).astype(dtype).astype(np.float64) / 4 - 1


@pytest.mark.parametrize("kink", [-9e-6, -3e-7, 0, 4e-6, 5e-6, 1.1e-5])
def test_the_slopes_that_gradients_are_compared_with(kink):
    """Beside a kink it is the slope of the side on which 0 is; at a kink, and where none is near, there is nothing to choose."""
    for size in (0.01, 2.0, -30.0):
        found = beside_a_kink(lambda t, size=size: size * abs(t - kink) + np.sin(3 * t + 3), 1e-5)
        if 0 < abs(kink) < 1e-5:
            assert found == pytest.approx(3 * np.cos(3) - size * np.sign(kink), abs=1e-8)
        else:
            assert found is None


@pytest.mark.platform("reduce")
@pytest.mark.parametrize("kind", ["sum", "mean", "max", "min"])
@pytest.mark.parametrize("keepdims", [False, True])
def test_reductions(rng, device, kind, keepdims):
    for shape, axis in SHAPES:
        x = distinct(rng, shape) if kind in ("max", "min") else normal(rng, shape)
        options = {"axis": axis, "keepdims": keepdims}
        check_op(
            rng,
            partial(getattr(clnn.Tensor, kind), **options),
            partial(getattr(np, kind), **options),
            x,
            rounding=x.size + 8,
        )


@pytest.mark.parametrize("kind", ["sum", "max"])
def test_reductions_in_float64(rng, device, kind):
    if not device.has_fp64:
        pytest.skip("no float64")
    x = distinct(rng, (4, 5, 3), np.float64)
    check_op(
        rng, lambda t: getattr(t, kind)(1), lambda a: getattr(np, kind)(a, axis=1), x, dtype=np.float64, rounding=32
    )


@pytest.mark.parametrize("kind", ["sum", "mean", "max", "min"])
@pytest.mark.parametrize("shape", [(1025,), (5000,), (3, 2049), (2049, 3), (1, 1024 * 1025 + 1)], ids=str)
def test_long_reductions(rng, device, kind, shape):
    """Longer than a work-item's chunk: joined in two launches and more."""
    axis = None if len(shape) == 1 else int(np.argmax(shape))
    x = normal(rng, shape)
    expected = getattr(np, kind)(x, axis=axis)
    n, most = max(shape), np.abs(x).sum(axis=axis)
    # sums of chunks of 1024 in a row, and then of the chunks' sums
    bound = (
        0
        if kind in ("max", "min")
        else (min(n, 1024) + n / 1024 + 2) * eps(np.float32) / 2 * most / (n if kind == "mean" else 1)
    )
    assert_close(getattr(clnn.tensor(x, np.float32), kind)(axis).numpy(), expected, bound)


@pytest.mark.parametrize("kind", ["sum", "mean", "max", "min"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_reductions_of_nan_and_infinity(rng, device, kind, value):
    x = normal(rng, (4, 3000))
    x[1, 0] = x[2, 2500] = value
    x[3] = value
    with np.errstate(invalid="ignore"):
        for axis in (0, 1, None):
            expected = getattr(np, kind)(x, axis=axis)
            assert_close(getattr(clnn.tensor(x, np.float32), kind)(axis).numpy(), expected, 12000 * eps(np.float32) * 3)


def test_largest_of_negatives(device):
    """A maximum does not start at 0, nor at the smallest positive float."""
    assert float(clnn.tensor([-5.0, -3.0, -4.0]).max()) == -3.0
    assert float(clnn.tensor([-np.inf, -np.inf]).max()) == -np.inf
    assert float(clnn.tensor([5.0, 3.0]).min()) == 3.0


def test_gradient_of_equal_maxima_is_shared(device):
    x = parameter([[1.0, 3.0, 3.0], [2.0, 2.0, 2.0]])
    x.max(1).backward(np.array([1.0, 3.0]))
    assert_close(x.grad.numpy(), [[0, 0.5, 0.5], [1, 1, 1]], 2 * eps(np.float32))


def test_reductions_of_nothing(device):
    assert_close(clnn.zeros((0, 3)).sum(0).numpy(), np.zeros(3), 0)
    assert_close(clnn.zeros((0, 3)).sum().numpy(), np.zeros(()), 0)
    assert_close(clnn.zeros((0, 3)).sum(1).numpy(), np.zeros(0), 0)
    assert clnn.zeros((0, 3)).max(1).shape == (0,)
    for kind in ("mean", "max", "min"):
        with pytest.raises(clnn.ShapeError, match=rf"{kind} over no elements.*\(0, 3\)"):
            getattr(clnn.zeros((0, 3)), kind)(0)
    for axis in (2, -3, (0, 0), (0, -2)):
        with pytest.raises(clnn.ShapeError, match="ax"):
            clnn.zeros((2, 3)).sum(axis)


@pytest.mark.parametrize("axis", [0, 1, 2, -1])
def test_argmax(rng, device, axis):
    x = rng.integers(0, 4, (4, 5, 3)).astype(np.float32)  # with ties: the first wins
    got = clnn.tensor(x).argmax(axis)
    assert got.dtype == np.int32
    np.testing.assert_array_equal(got.numpy(), x.argmax(axis))
    x[rng.random(x.shape) < 0.2] = np.nan
    x[rng.random(x.shape) < 0.1] = -np.inf
    np.testing.assert_array_equal(clnn.tensor(x).argmax(axis).numpy(), x.argmax(axis))


def test_argmax_of_nothing(device):
    assert clnn.zeros((0, 3)).argmax().shape == (0,)
    with pytest.raises(clnn.ShapeError, match="argmax over no elements"):
        clnn.zeros((3, 0)).argmax()


# -- softmax ----------------------------------------------------------------------------------------------------------
def softmax(x):
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def log_softmax(x):
    x = x - x.max(axis=-1, keepdims=True)
    return x - np.log(np.exp(x).sum(axis=-1, keepdims=True))


@pytest.mark.parametrize("name", ["softmax", "log_softmax"])
@pytest.mark.parametrize("shape", [(1,), (7,), (1, 1), (5, 3), (2, 3, 4), (131, 10)], ids=str)
def test_softmax(rng, dtype, name, shape):
    x = 3 * normal(rng, shape, dtype)
    check_op(
        rng,
        getattr(clnn, name),
        globals()[name],
        x,
        dtype=dtype,
        rounding=16 + shape[-1],
        gradients=np.prod(shape) < 100,
    )


@pytest.mark.oclgrind
@pytest.mark.parametrize("name", ["softmax", "log_softmax"])
def test_softmax_of_long_rows_on_a_gpu(rng, device, monkeypatch, name):
    """There a group has a row."""
    monkeypatch.setattr(device, "kind", "gpu")
    check_op(rng, getattr(clnn, name), globals()[name], 3 * normal(rng, (3, 150)), rounding=160)
    steep = np.eye(150) * 1000  # any other element in place of the largest overflows
    np.testing.assert_array_equal(
        getattr(clnn, name)(steep).numpy(), np.eye(150) if name == "softmax" else steep - 1000
    )


@pytest.mark.parametrize("n", [pytest.param(33, marks=pytest.mark.oclgrind), 2049])
def test_the_last_axis_on_a_gpu(rng, device, monkeypatch, n):
    """There a group joins a row: with NaN, infinities, and a largest element that is there twice."""
    monkeypatch.setattr(device, "kind", "gpu")
    x = normal(rng, (6, n))
    x[1, n // 2] = np.nan
    x[2] = -np.inf
    x[3, [5, n - 1]] = 9
    x[4, [7, 31]] = np.nan
    found = clnn.tensor(x, np.float32)
    np.testing.assert_array_equal(found.argmax(-1).numpy(), x.argmax(-1))
    for kind in ("sum", "mean", "max", "min"):
        assert_close(getattr(found, kind)(-1).numpy(), getattr(x, kind)(-1), n * eps(np.float32))
    labels = np.array([3, 5, 0, 5, 7, 1])
    np.testing.assert_array_equal(
        clnn.metrics.accuracy(found, labels).numpy(), [x[0].argmax() == 3, 0, 1, 1, 0, x[5].argmax() == 1]
    )


@pytest.mark.platform("softmax")
@pytest.mark.parametrize("name", ["softmax", "log_softmax"])
def test_softmax_of_extremes(device, name):
    inf, nan = np.inf, np.nan
    x = np.array(
        [
            [1e4, -1e4, 9999.0],
            [-1e4, -1e4, -1e4],
            [88.0, 89.0, 90.0],
            [nan, 0, 1],
            [0, 1, nan],
            [0, -inf, 1],
            [-inf] * 3,
            [0, inf, 1],
        ]
    )
    with np.errstate(invalid="ignore", divide="ignore"):
        expected = globals()[name](x)
    assert_close(
        getattr(clnn, name)(clnn.tensor(x)).numpy(),
        expected,
        8 * eps(np.float32) * np.maximum(1, np.nan_to_num(np.abs(expected), posinf=1)),
    )


def test_softmax_of_nothing(device):
    assert clnn.softmax(clnn.zeros((0, 3))).shape == (0, 3)
    with pytest.raises(clnn.ShapeError, match=r"softmax needs a last axis.*\(3, 0\)"):
        clnn.softmax(clnn.zeros((3, 0)))


# -- shapes -----------------------------------------------------------------------------------------------------------
KEYS = [
    0, -1, slice(1, 3), slice(None, None, -1), slice(3, 0, -2), (slice(None), 2), (..., 0), (None, 1), (1, ..., None),
    (slice(0, 0),), (slice(None, None, 2), slice(1, None), -1), (0, 1, 2), (slice(-2, None), ..., slice(None, 1)), ...,
]  # fmt: skip


@pytest.mark.parametrize("key", KEYS, ids=str)
def test_slices(rng, device, key):
    check_op(rng, lambda t: t[key], lambda a: a[key], normal(rng, (4, 3, 5)), rounding=0)


@pytest.mark.parametrize("shape", [(3, 9001), (9001, 3)], ids=str)
def test_more_than_a_work_item_moves(rng, device, shape):
    """Long runs and many short ones, taken apart and joined, and their gradients."""
    x, dy = normal(rng, shape, np.float32), normal(rng, shape, np.float32)
    t = parameter(x)
    y = clnn.concatenate([t[:, 1:], t[:, :1]], 1)
    np.testing.assert_array_equal(y.numpy(), np.roll(x, -1, 1))
    y.backward(dy)
    np.testing.assert_array_equal(t.grad.numpy(), np.roll(dy, 1, 1))


@pytest.mark.parametrize("key", [4, -5, (0, 0, 0, 0), (..., ...), [4, 1], [0.5], "a", True, 1.0], ids=str)
def test_wrong_slices(device, key):
    with pytest.raises((clnn.ShapeError, clnn.OutOfRangeError)):
        clnn.zeros((4, 3, 5))[key]


@pytest.mark.parametrize("axes", [None, *itertools.permutations(range(3)), (-1, 0, 1)], ids=str)
def test_transpose(rng, device, axes):
    x = normal(rng, (2, 3, 5))
    check_op(rng, lambda t: t.transpose(axes) if axes else t.T, lambda a: a.transpose(axes), x, rounding=0)


@pytest.mark.parametrize(
    ("shape", "target"), [((2, 6), (3, 4)), ((2, 6), (-1,)), ((4,), (2, -1, 1)), ((1,), ()), ((0, 3), (3, 0))]
)
def test_reshape(rng, device, shape, target):
    check_op(rng, lambda t: t.reshape(target), lambda a: a.reshape(target), normal(rng, shape), rounding=0)


def test_reshape_takes_numbers_or_a_tuple(device):
    x = clnn.zeros((2, 6))
    assert x.reshape(3, 4).shape == x.reshape((3, 4)).shape == x.reshape(3, -1).shape == (3, 4)
    for shape in ((5, 2), (-1, -1), (-1, 5), (-2, 6)):
        with pytest.raises(clnn.ShapeError):
            x.reshape(shape)
    for axes in ((0, 0), (0,), (0, 2)):
        with pytest.raises(clnn.ShapeError):
            x.transpose(axes)


@pytest.mark.parametrize(
    ("shape", "target"), [((3,), (2, 3)), ((2, 1), (2, 4)), ((), (2, 2)), ((1, 3), (0, 3)), ((2, 1, 3), (4, 2, 5, 3))]
)
def test_broadcast_to(rng, device, shape, target):
    x = normal(rng, shape)
    check_op(rng, lambda t: t.broadcast_to(target), lambda a: np.broadcast_to(a, target), x, rounding=64)
    with pytest.raises(clnn.ShapeError, match="broadcast"):
        clnn.zeros((2, 3)).broadcast_to((2, 4))


@pytest.mark.platform("shape")
@pytest.mark.parametrize("axis", [0, 1, -1])
def test_concatenate(rng, device, axis):
    shapes = [[2, 3, 4] for _ in range(3)]
    for shape, size in zip(shapes, (1, 0, 5)):
        shape[axis] = size
    arrays = [normal(rng, shape) for shape in shapes]
    check_op(rng, lambda *t: clnn.concatenate(t, axis), lambda *a: np.concatenate(a, axis), *arrays, rounding=0)
    with pytest.raises(clnn.ShapeError, match="concatenate"):
        clnn.concatenate([clnn.zeros((2, 3)), clnn.zeros((3, 4))], axis % 2)


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_split(rng, device, axis):
    """Parts by number and by size; what concatenate joins again."""
    x = normal(rng, (3, 3, 3))
    for parts, cuts in ((3, (1, 2)), ((1, 0, 2), (1, 1)), (1, ())):
        for got, part in zip(clnn.split(clnn.tensor(x, np.float32), parts, axis), np.split(x, cuts, axis), strict=True):
            np.testing.assert_array_equal(got.numpy(), part)
        check_op(
            rng,
            lambda t, parts=parts: clnn.concatenate(clnn.split(clnn.tanh(t), parts, axis)[::-1], axis),
            lambda a, cuts=cuts: np.concatenate(np.split(np.tanh(a), cuts, axis)[::-1], axis),
            x,
        )
    with pytest.raises(clnn.ShapeError, match="3 elements, not 2 equal parts"):
        clnn.split(clnn.zeros((3, 3, 3)), 2, axis)
    with pytest.raises(clnn.ShapeError, match=r"sizes \[1, 1\] add up to 2.* has 3"):
        clnn.split(clnn.zeros((3, 3, 3)), [1, 1], axis)
    with pytest.raises(clnn.ShapeError, match="axis 3 is out of range"):
        clnn.split(clnn.zeros((3, 3, 3)), 2, 3)


def test_gradients_of_slices_add_up(rng, device):
    """Slices that overlap, of an activation, of a parameter itself, and with another use beside; whole rows and single
    columns, of which the device moves runs or elements."""
    for kind in ("cpu", "gpu"):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(device, "kind", kind)
            check_op(
                rng,
                lambda t: clnn.concatenate(
                    [t[1:, :, :200], t[:3, ::-1, 5:205], t[:3, :, 1:201], t[1:, :, 3:203] * 2.0]
                ),
                lambda a: np.concatenate([a[1:, :, :200], a[:3, ::-1, 5:205], a[:3, :, 1:201], a[1:, :, 3:203] * 2.0]),
                normal(rng, (4, 1, 210)),
                rounding=64,
            )
            check_op(
                rng,
                lambda t: (h := clnn.gelu(t))[..., 0] * h[..., 1] + (h[..., 2] + h.sum(-1)) + t[..., 0],
                lambda a: (h := REFERENCES_OF_ONE["gelu"](a))[..., 0] * h[..., 1] + (h[..., 2] + h.sum(-1)) + a[..., 0],
                normal(rng, (4, 3, 3)),
                rounding=64,
            )


def test_rows(rng, device):
    x, index = normal(rng, (7, 3, 2)), rng.integers(0, 7, 12)
    np.testing.assert_array_equal(
        clnn.take_rows(clnn.tensor(x, np.float32), index).numpy(), x[index].astype(np.float32)
    )
    assert clnn.take_rows(clnn.zeros((7, 3)), np.zeros(0, int)).shape == (0, 3)
    labels = clnn.tensor(np.arange(7))
    np.testing.assert_array_equal(clnn.take_rows(labels, index).numpy(), index)


def test_shapes_of_integers_and_float64(rng, device):
    for dtype in (np.int32, np.float64) if device.has_fp64 else (np.int32,):
        x = rng.integers(-9, 9, (4, 3, 5)).astype(dtype)
        t = clnn.tensor(x, dtype=dtype)
        for got, expected in (
            (t[1:, ::2], x[1:, ::2]),
            (t.T, x.T),
            (t.reshape(-1), x.ravel()),
            (t[0].broadcast_to((2, 3, 5)), np.broadcast_to(x[0], (2, 3, 5))),
        ):
            assert got.dtype == dtype
            np.testing.assert_array_equal(got.numpy(), expected)


@pytest.mark.platform
@pytest.mark.oclgrind
def test_small_under_a_simulator(rng, device):
    """One tiny case of each family of kernels."""
    x, y = normal(rng, (3, 4)), normal(rng, (4,)) + 3
    check_op(rng, op("divide"), np.divide, x, y)
    check_op(rng, lambda t: t[1:, ::-2].T.max(0), lambda a: a[1:, ::-2].T.max(axis=0), x)
    check_op(rng, clnn.softmax, softmax, x)
    check_op(rng, lambda a, b: clnn.concatenate([a, b], 1), lambda a, b: np.concatenate([a, b], 1), x, x, rounding=0)
    np.testing.assert_array_equal(clnn.tensor(x, np.float32).argmax(0).numpy(), x.argmax(0))
    assert binary("equal", clnn.ones((2,)), 1.0)[0].shape == (2,)


# -- gradients of two uses ----------------------------------------------------------------------------------------------
USED_TWICE = {
    "upsample": lambda t: clnn.upsample(t, 2),
    "upsample linear": lambda t: clnn.upsample(t, 2, "linear"),
    "pad": lambda t: clnn.pad(t, ((1, 2), (2, 1)), "reflect"),
    "planes": lambda t: (clnn.seed(3), clnn.SpatialDropout(0.4)(t))[1],
    "max_pool": lambda t: clnn.max_pool(t, 3, 2),
    "avg_pool": lambda t: clnn.avg_pool(t, 2),
    "adaptive": lambda t: clnn.AdaptiveAvgPool((3, 5))(t),
    "softmax": clnn.softmax,
    "swish": clnn.swish,
    "product": lambda t: t.reshape(-1, 37) @ clnn.ones((37, 5)),
    "mean": lambda t: t.mean(2),
    "largest": lambda t: t.max(),
    "transpose": lambda t: t.transpose(3, 1, 0, 2),
    "slice": lambda t: t[1:, :, ::3],
    "times": lambda t: t * t[:1],
}


@pytest.mark.parametrize("before", [None, "tanh"])
@pytest.mark.parametrize("name", USED_TWICE)
def test_a_gradient_is_added_to_what_another_use_gave(rng, device, name, before):
    """The other use gives its part first, as the later one of the two; then the op's own is added in its launch."""
    x, c = normal(rng, (2, 3, 5, 37)), normal(rng, (2, 3, 5, 37))

    def gradient(beside):
        t = parameter(x)
        h = clnn.tanh(t) if before else t
        y = USED_TWICE[name](h)
        weighed = (y * clnn.tensor(np.random.default_rng(1).normal(size=y.shape).astype(np.float32))).sum()
        other = (h * clnn.tensor((c * beside).astype(np.float32))).sum()
        (weighed + other).backward()
        return t.grad.numpy().astype(np.float64)

    slope = 1 - np.tanh(x) ** 2 if before else 1
    assert_close(gradient(1) - gradient(0), c * slope, 256 * eps(np.float32), "the other use's part")
