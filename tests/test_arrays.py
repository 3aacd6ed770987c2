"""Functions of arrays (choosing, joining, indexing, sorting, statistics) against float64 NumPy, with gradients."""

import operator

import numpy as np
import pytest
from helpers import assert_close, check_op, eps, normal, parameter

import clnn


def logsumexp(x, axis=None, keepdims=False):
    top = x.max(axis, keepdims=True)
    y = np.log(np.exp(x - top).sum(axis, keepdims=True)) + top
    return y if keepdims else y.squeeze(tuple(range(x.ndim)) if axis is None else axis)


X, I, V = (3, 4, 5), np.array([[2, 0], [-1, 2]]), np.array([1, 1, 3, -4])
CASES = {  # what clnn does, what NumPy does, shapes of the arguments
    "where": (lambda a, b: clnn.where(a > b, a * b, b), lambda a, b: np.where(a > b, a * b, b), (X, X)),
    "where, broadcast": (lambda a, b: clnn.where(b > 0, a, b), lambda a, b: np.where(b > 0, a, b), ((4, 1), X)),
    "where, numbers": (lambda a: clnn.where(a > 0, a, 3.0), lambda a: np.where(a > 0, a, 3.0), (X,)),
    "masked_fill": (lambda a: clnn.masked_fill(a, np.eye(5)[:4], -9.0), lambda a: np.where(np.eye(5)[:4], -9.0, a), (X,)),
    "clip": (lambda a: clnn.clip(a, -0.4, 0.6), lambda a: np.clip(a, -0.4, 0.6), (X,)),
    "clip, below": (lambda a: clnn.clip(a, high=0.1), lambda a: np.minimum(a, 0.1), (X,)),
    "leaky_relu": (lambda a: clnn.leaky_relu(a, 0.3), lambda a: np.where(a > 0, a, 0.3 * a), (X,)),
    "prelu": (lambda a, s: clnn.leaky_relu(a, s), lambda a, s: np.where(a > 0, a, s * a), (X, (4, 1))),
    "elu": (lambda a: clnn.elu(a, 0.3), lambda a: np.where(a > 0, a, 0.3 * np.expm1(np.minimum(a, 0))), (X,)),
    "expand_dims": (lambda a: clnn.expand_dims(a, 1), lambda a: np.expand_dims(a, 1), (X,)),
    "expand_dims, last": (lambda a: clnn.expand_dims(a, -1), lambda a: np.expand_dims(a, -1), (X,)),
    "squeeze": (clnn.squeeze, np.squeeze, ((1, 3, 1, 4),)),
    "squeeze, one": (lambda a: clnn.squeeze(a, -2), lambda a: a.squeeze(-2), ((1, 3, 1, 4),)),
    "stack": (lambda a, b: clnn.stack([a, b, a], 1), lambda a, b: np.stack([a, b, a], 1), (X, X)),
    "stack, last": (lambda a, b: clnn.stack([a, b], -1), lambda a, b: np.stack([a, b], -1), (X, X)),
    "flip": (clnn.flip, np.flip, (X,)),
    "flip, some": (lambda a: clnn.flip(a, (0, -1)), lambda a: np.flip(a, (0, -1)), (X,)),
    "roll": (lambda a: clnn.roll(a, 3, 1), lambda a: np.roll(a, 3, 1), (X,)),
    "roll, back": (lambda a: clnn.roll(a, -7, -1), lambda a: np.roll(a, -7, -1), (X,)),
    "tile": (lambda a: clnn.tile(a, (2, 3)), lambda a: np.tile(a, (2, 3)), (X,)),
    "tile, in front": (lambda a: clnn.tile(a, (2, 1, 1, 2)), lambda a: np.tile(a, (2, 1, 1, 2)), (X,)),
    "tile, five axes": (lambda a: clnn.tile(a, (2, 1, 3, 0, 2)), lambda a: np.tile(a, (2, 1, 3, 0, 2)), ((1, 2, 1, 1, 2),)),
    "tile, every axis": (lambda a: clnn.tile(a, (2,) * 8), lambda a: np.tile(a, (2,) * 8), ((1, 2, 1, 1, 2, 1, 1, 1),)),
    "repeat, eight axes": (lambda a: clnn.repeat(a, 3, -2), lambda a: np.repeat(a, 3, -2), ((1, 2, 1, 1, 2, 1, 2, 2),)),
    "repeat": (lambda a: clnn.repeat(a, 3, 1), lambda a: np.repeat(a, 3, 1), (X,)),
    "tril": (clnn.tril, np.tril, (X,)),
    "tril, k": (lambda a: clnn.tril(a, -1), lambda a: np.tril(a, -1), (X,)),
    "triu": (lambda a: clnn.triu(a, 1), lambda a: np.triu(a, 1), (X,)),
    "take": (lambda a: clnn.take(a, I), lambda a: np.take(a, I, 0), (X,)),
    "take, last": (lambda a: clnn.take(a, V, -1), lambda a: np.take(a, V, -1), (X,)),
    "take, all equal": (lambda a: clnn.take(a, [1] * 40, 1), lambda a: np.take(a, [1] * 40, 1), (X,)),
    "take, vectors": (lambda a: clnn.take(a, I), lambda a: a[I], ((3, 37),)),
    "gather": (
        lambda a: clnn.gather(a, np.argsort(np.arange(60).reshape(X) % 7, 1)[:, :3], 1),
        lambda a: np.take_along_axis(a, np.argsort(np.arange(60).reshape(X) % 7, 1)[:, :3], 1),
        (X,),
    ),
    "gather, twice": (
        lambda a: clnn.gather(a, np.zeros((3, 4, 2), int) - 1),
        lambda a: np.take_along_axis(a, np.zeros((3, 4, 2), int) + 4, -1),
        (X,),
    ),
    "key, rows": (lambda a: a[I], lambda a: a[I], (X,)),
    "key, column": (lambda a: a[:, V], lambda a: a[:, V], (X,)),
    "key, two": (lambda a: a[[0, 2, 1], [3, 0, -1]], lambda a: a[[0, 2, 1], [3, 0, -1]], (X,)),
    "key, apart": (lambda a: a[[0, 2], :, [4, 1]], lambda a: a[[0, 2], :, [4, 1]], (X,)),
    "key, number": (lambda a: a[1, :, [4, 1]], lambda a: a[1, :, [4, 1]], (X,)),
    "key, slices": (lambda a: a[::-1, 1:3, [4, 1]], lambda a: a[::-1, 1:3, [4, 1]], (X,)),
    "key, new axes": (lambda a: a[None, :, V, None], lambda a: a[None, :, V, None], (X,)),
    "key, ellipsis": (lambda a: a[..., [0, 0, 2]], lambda a: a[..., [0, 0, 2]], (X,)),
    "key, broadcast": (lambda a: a[[[0], [2]], [1, 3]], lambda a: a[[[0], [2]], [1, 3]], (X,)),
    "key, mask": (lambda a: a[np.eye(3, 4) > 0], lambda a: a[np.eye(3, 4) > 0], (X,)),
    "key, mask behind": (lambda a: a[..., np.eye(4, 5) > 0], lambda a: a[..., np.eye(4, 5) > 0], (X,)),
    "key, mask of one axis": (lambda a: a[:, [True, False, True, True]], lambda a: a[:, [0, 2, 3]], (X,)),
    "key, mask, then a number": (
        lambda a: a[..., [True, False, True, True], 0],
        lambda a: a[..., [True, False, True, True], 0],
        (X,),
    ),
    "key, mask between": (
        lambda a: a[..., [True, False, True, True], None, :],
        lambda a: a[..., [True, False, True, True], None, :],
        (X,),
    ),
    "key, nothing": (lambda a: a[np.zeros(0, int)], lambda a: a[np.zeros(0, int)], (X,)),
    "sort": (clnn.sort, np.sort, (X,)),
    "sort, first axis": (lambda a: clnn.sort(a, 0), lambda a: np.sort(a, 0), ((41, 3),)),
    "sort, down": (lambda a: clnn.sort(a, descending=True), lambda a: -np.sort(-a), ((3, 77),)),
    "topk": (lambda a: clnn.topk(a, 3)[0], lambda a: -np.sort(-a)[..., :3], (X,)),
    "topk, least": (lambda a: clnn.topk(a, 2, 1, largest=False)[0], lambda a: np.sort(a, 1)[:, :2], (X,)),
    "cumsum": (clnn.cumsum, lambda a: np.cumsum(a, -1), (X,)),
    "cumsum, first axis": (lambda a: clnn.cumsum(a, 0), lambda a: np.cumsum(a, 0), ((300, 2),)),
    "prod": (clnn.prod, np.prod, (X,)),
    "prod, axis": (lambda a: clnn.prod(a, 1), lambda a: np.prod(a, 1), (X,)),
    "prod, axes": (lambda a: clnn.prod(a, (0, 2), keepdims=True), lambda a: np.prod(a, (0, 2), keepdims=True), (X,)),
    "var": (clnn.var, np.var, (X,)),
    "var, ddof": (lambda a: clnn.var(a, (0, 2), ddof=1), lambda a: np.var(a, (0, 2), ddof=1), (X,)),
    "std": (lambda a: clnn.std(a, 1, keepdims=True), lambda a: np.std(a, 1, keepdims=True), (X,)),
    "logsumexp": (lambda a: clnn.logsumexp(a, 1), lambda a: logsumexp(a, 1), (X,)),
    "logsumexp, all": (clnn.logsumexp, logsumexp, (X,)),
    "einsum": (lambda a, b: clnn.einsum("bij,bjk->bik", a, b), lambda a, b: np.einsum("bij,bjk->bik", a, b), (X, (3, 5, 2))),
    "einsum, turned": (
        lambda a, b: clnn.einsum("bij,kbj->ikb", a, b),
        lambda a, b: np.einsum("bij,kbj->ikb", a, b),
        (X, (2, 3, 5)),
    ),
    "einsum, lone": (lambda a, b: clnn.einsum("bij,k->ik", a, b), lambda a, b: np.einsum("bij,k->ik", a, b), (X, (2,))),
    "einsum, all": (lambda a, b: clnn.einsum("bij,bij->", a, b), lambda a, b: np.einsum("bij,bij->", a, b), (X, X)),
    "einsum, implied": (lambda a, b: clnn.einsum("ki,kj", a, b), lambda a, b: np.einsum("ki,kj", a, b), ((3, 4), (3, 2))),
    "einsum of one": (lambda a: clnn.einsum("bij->jb", a), lambda a: np.einsum("bij->jb", a), (X,)),
    "softmax": (lambda a: clnn.softmax(a, 1), lambda a: np.exp(a) / np.exp(a).sum(1, keepdims=True), (X,)),
    "log_softmax": (
        lambda a: clnn.log_softmax(a, 0),
        lambda a: a - np.log(np.exp(a).sum(0, keepdims=True)),
        (X,),
    ),
    "scatter_add": (
        lambda a, v: clnn.scatter_add(a, [2, 0, 2], v),
        lambda a, v: a + np.stack([v[1], 0 * v[0], v[0] + v[2]]),
        (X, X),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_against_numpy(rng, device, name):
    """Values and gradients."""
    op, reference, shapes = CASES[name]
    given = [normal(rng, shape) for shape in shapes]
    if name.startswith(("sort", "topk")):  # no two as near as the differences that gradients are compared with
        given = [rng.permutation(np.linspace(-2, 2, a.size)).reshape(a.shape) for a in given]
    check_op(rng, op, reference, *given, rounding=64)


@pytest.mark.parametrize("name", ["where", "take", "gather", "key, two", "sort", "cumsum", "prod", "scatter_add"])
def test_in_float64(rng, device, name):
    if not device.has_fp64:
        pytest.skip("no float64")
    op, reference, shapes = CASES[name]
    check_op(rng, op, reference, *(normal(rng, s, np.float64) for s in shapes), dtype=np.float64, rounding=64)


@pytest.mark.parametrize("name", [n for n in CASES if not n.startswith(("key", "take", "gather", "masked", "scatter"))])
def test_a_recorded_step_gives_the_same_bits(rng, device, name):
    op, _, shapes = CASES[name]
    arrays = [normal(rng, shape, np.float32) for shape in shapes]

    def gradients(record):
        inputs = [parameter(a) for a in arrays]

        @clnn.step(record=record)
        def run(*scales):
            y = op(*(p * s for p, s in zip(inputs, scales)))
            (y * y).sum().backward()
            return y, [p.grad * 1.0 for p in inputs]

        found = []
        for i in range(5):
            for p in inputs:
                p.zero_grad()
            y, grads = run(*(clnn.tensor(1.0 + 0.1 * i) for _ in inputs))
            found += [y.numpy(), *(g.numpy() for g in grads)]
        return found

    for a, b in zip(gradients(True), gradients(False)):
        np.testing.assert_array_equal(a, b)


@pytest.mark.platform("index", "elementwise")
def test_an_index_on_the_device_in_a_recorded_step(rng, device):
    """A row that there is not becomes NaN then, and its gradient goes nowhere."""
    table = parameter(normal(rng, (7, 5)))

    @clnn.step
    def run(index):
        y = table[index]
        clnn.where(clnn.isnan(y), 0.0, y).sum().backward()
        return y, clnn.gather(y.detach(), index.reshape(-1, 1) * 0, 1), table.grad * 1.0

    for _ in range(5):
        table.zero_grad()
        index = rng.integers(-7, 7, 11).astype(np.int32)
        y, first, grad = run(clnn.tensor(index))
        np.testing.assert_array_equal(y.numpy(), table.numpy()[index])
        np.testing.assert_array_equal(grad.numpy()[:, 0], np.bincount(index % 7, minlength=7))
    table.zero_grad()
    y, _, grad = run(clnn.tensor(np.array([0, 7, -8, 3, 1, 1, 1, 1, 1, 1, 1], np.int32)))
    assert np.isnan(y.numpy()[1:3]).all() and not np.isnan(y.numpy()[3:]).any()
    np.testing.assert_array_equal(grad.numpy()[:, 0], [1, 7, 0, 1, 0, 0, 0])


def test_what_was_not_chosen_may_be_nan(device):
    x = parameter([4.0, -1.0])
    y = clnn.where(x > 0, clnn.sqrt(x), 0.0)
    y.sum().backward()
    np.testing.assert_array_equal(y.numpy(), [2, 0])
    z = clnn.where(clnn.tensor([np.nan, 0.0]), 1.0, 2.0)  # NaN is not 0
    np.testing.assert_array_equal(z.numpy(), [1, 2])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_deviation_of_0_has_the_gradient_0(rng, device, dtype):
    if dtype == "float64" and not device.has_fp64:
        pytest.skip("no float64")
    x = normal(rng, (3, 5), dtype)
    x[1] = 0.5
    p = parameter(x, dtype)
    y = clnn.std(p, 1)
    y.backward(np.ones(3))
    away, deviation = x - x.mean(1, keepdims=True), x.std(1, keepdims=True)
    assert_close(y.numpy(), deviation[:, 0], 64 * eps(dtype))
    assert y.numpy()[1] == 0
    assert_close(p.grad.numpy(), away / (5 * np.maximum(deviation, 1e-30)), 64 * eps(dtype))
    assert np.isnan(clnn.std(clnn.tensor([1.0, np.nan], dtype=dtype)).numpy())


NO_CHANGES = {
    "rolled by nothing": lambda p: clnn.roll(p, 3, 0),
    "summed over nothing": lambda p: clnn.einsum("i->i", p),
    "of the same type": lambda p: p.astype("float32"),
}


@pytest.mark.parametrize("name", NO_CHANGES)
def test_what_changes_nothing_is_a_copy_with_a_gradient(device, name):
    p = parameter(np.arange(3.0))
    y = NO_CHANGES[name](p)
    y.backward(np.ones(3))
    clnn.SGD(0.5).step([p])
    np.testing.assert_array_equal(y, [0, 1, 2])
    np.testing.assert_array_equal(p, [-0.5, 0.5, 1.5])


def test_empty_ones_and_numbers_that_change_nothing(device):
    assert clnn.einsum("->", 3.0).item() == 3
    assert clnn.roll(clnn.zeros((2, 0)), 5, 1).shape == (2, 0)


@pytest.mark.parametrize("n", [0, 1, 2, 15, 16, 17, 100, 1000])
def test_sorting_is_stable_and_nan_is_last(rng, device, n):
    x = rng.integers(0, 9, (2, n)).astype(np.float32)
    x[:, ::7] = np.nan
    np.testing.assert_array_equal(clnn.argsort(x).numpy(), np.argsort(x, -1, kind="stable"))
    np.testing.assert_array_equal(clnn.sort(x).numpy(), np.sort(x, -1))
    down = clnn.sort(x, descending=True).numpy()
    np.testing.assert_array_equal(down, np.sort(x, -1)[:, ::-1])
    ints = rng.integers(-(2**31), 2**31, (2, n))
    np.testing.assert_array_equal(clnn.sort(clnn.tensor(ints)).numpy(), np.sort(ints, -1))


@pytest.mark.filterwarnings("error::clnn.RecordingWarning")
def test_nothing_to_sort_is_recorded(device):
    @clnn.step
    def run(x):
        return clnn.sort(x, 0), clnn.topk(x, 0)[1]

    for _ in range(4):
        assert [y.shape for y in run(clnn.zeros((0, 2)))] == [(0, 2), (0, 0)]


def test_many_to_one_place(device):
    """Long sums: the error of a gradient does not grow with the number that is added."""
    table = parameter(np.zeros((2, 3)))
    table[np.zeros(300000, int)].backward(np.full((300000, 3), 0.1, np.float32))
    assert_close(table.grad.numpy(), np.array([[30000.0] * 3, [0] * 3]), 30000 * 64 * eps(np.float32))


@pytest.mark.parametrize("n", [0, 1, 49, 50, 51, 230])
def test_gradients_of_many_numbers_where_a_driver_ends_loops(device, rng, monkeypatch, n):
    """In pieces, of which the first one alone takes what a step of momentum and decay leaves of the velocity."""
    monkeypatch.setattr(device, "most_turns", 100)
    index, values = rng.integers(-3, 3, (n, 2)), rng.standard_normal((n, 2)).astype(np.float32)
    table, rows, onto = (parameter(rng.standard_normal(shape)) for shape in ((3, 2), (3,), (3, 2)))
    optimizer = clnn.SGD(0.5, momentum=0.5, weight_decay=0.1)
    expected, velocity = [p.numpy().astype(float) for p in (table, rows, onto)], [0.0] * 3
    for _ in range(3):
        loss = (clnn.gather(table, index, 0) * values).sum() + (clnn.take(rows, index) * values).sum()
        (loss + clnn.scatter_add(onto, index[:, 0], values).sum()).backward()
        optimizer.step([table, rows, onto])
        found = [np.zeros((3, 2)), np.zeros(3), np.ones((3, 2))]
        np.add.at(found[0], (index, [0, 1]), values)
        np.add.at(found[1], index, values)
        for i, decays in enumerate((0.1, 0.0, 0.1)):
            velocity[i] = 0.5 * velocity[i] + found[i] + decays * expected[i]
            expected[i] = expected[i] - 0.5 * velocity[i]
    for p, wanted in zip((table, rows, onto), expected):
        assert_close(p.numpy(), wanted, 64 * eps(np.float32) * max(1, n))


def test_logic_is_of_masks_whoever_made_them(device):
    """Of numbers NumPy's operators are of bits, and 2 & 1 is 0: that they are taken for true would be another answer."""
    t, x = clnn.tensor([2, 3]), clnn.tensor([1.0, -1.0])
    mine, bools = clnn.tensor([True, True]), np.array([True, False])
    for mask in (x > 0, mine, clnn.where(mine, x > 0, False), (x > 0).reshape(1, 2)):
        b = mask.numpy().astype(bool)
        for op in (operator.and_, operator.or_, operator.xor):
            for other in (bools, mine, x < 0, True, False, [True, False]):
                o = other.numpy().astype(bool) if isinstance(other, clnn.Tensor) else np.array(other)
                np.testing.assert_array_equal(op(mask, other).numpy(), op(b, o))
                np.testing.assert_array_equal(op(other, mask).numpy(), op(o, b))
        np.testing.assert_array_equal((~mask).numpy(), ~b)
        assert x[(~mask | mask).reshape(2)].shape == (2,)  # which is a mask, too
    for numbers in (t, t.astype("float32"), clnn.tensor([0, 1]), x, (x > 0).astype("int32") + 0):
        for wrong in (
            lambda n: n & 1, lambda n: True | n, lambda n: n ^ (x > 0), lambda n: (x > 0) & n, lambda n: ~n, lambda n: n & [0, 1],
        ):  # fmt: skip
            with pytest.raises(clnn.ShapeError, match="of masks: compare first, x != 0, or take clnn.logical_"):
                wrong(numbers)
    with pytest.raises(clnn.ShapeError, match="bits are np.bitwise_and's"):
        (x > 0) & 2
    np.testing.assert_array_equal(np.bitwise_and(t, 1), [0, 1])
    assert np.bitwise_and.reduce(t) == 2


def test_int32(rng, device):
    a, b = rng.integers(-9, 9, (2, 60))
    b = np.where(b == 0, 5, b)
    s, t = clnn.tensor(a), clnn.tensor(b)
    for name in ("add", "subtract", "multiply", "maximum", "minimum", "remainder", "floor_divide"):
        for got, want in (
            (getattr(clnn, name)(s, t), getattr(np, name)(a, b)),
            (getattr(clnn, name)(s, 4), getattr(np, name)(a, 4)),
        ):
            assert got.dtype == np.int32
            np.testing.assert_array_equal(got.numpy(), want)
    np.testing.assert_array_equal(((s > 0) & (t < 3) | ~(s < t)).numpy(), ((a > 0) & (b < 3) | ~(a < b)))
    np.testing.assert_array_equal((-s).numpy(), -a)
    np.testing.assert_array_equal((7 - s).numpy(), 7 - a)
    np.testing.assert_array_equal((s % 4).numpy(), a % 4)
    np.testing.assert_array_equal((17 // t).numpy(), 17 // b)
    np.testing.assert_array_equal(clnn.where(s > 0, s, t).numpy(), np.where(a > 0, a, b))


def test_arange_and_one_hot(device):
    for args in ((5,), (2, 9, 3), (9, 2, -2), (0.5, 3.0, 0.25), (3, 3), (-3,)):
        np.testing.assert_allclose(clnn.arange(*args).numpy(), np.arange(*args), rtol=1e-6)
    assert clnn.arange(5).dtype == np.int32 and clnn.arange(5.0).dtype == np.float32
    np.testing.assert_array_equal(clnn.one_hot([[0, 2], [1, 1]], 3).numpy(), np.eye(3)[[[0, 2], [1, 1]]])
    step = clnn.step(lambda labels: clnn.one_hot(labels, 3))
    for _ in range(5):
        got = step(np.array([0, 2], np.int32)).numpy()
    np.testing.assert_array_equal(got, np.eye(3)[[0, 2]])
    for bad in (3, -1, 2**31 - 1):
        got = step(np.array([1, bad], np.int32))
        assert np.isnan(got.numpy()[1]).all() and got.numpy()[0].tolist() == [0, 1, 0]
        with pytest.raises(clnn.OutOfRangeError, match="names none of 3 rows.*: the first stands at place 1 of"):
            got[1, 0].item()


@pytest.mark.parametrize(
    "of",
    [
        lambda t, a: t + a,
        lambda t, a: a < t,
        lambda t, a: t == a,
        lambda t, a: clnn.where(t, t, a),
        lambda t, a: clnn.maximum(t, a),
        lambda t, a: clnn.concatenate([t, a]),
        lambda t, a: clnn.stack([a, t]),
        lambda t, a: clnn.clip(t, a),
    ],
    ids=["add", "less", "equal", "where", "maximum", "concatenate", "stack", "clip"],
)
def test_fractions_beside_int32_are_refused(device, of):
    """Cut off they would be other numbers; whole ones in an array of floats go along."""
    t = clnn.tensor([1, 2])
    for wrong in ([2, 1.5], np.array([-0.5, 3.0]), np.array([1, np.nan])):
        with pytest.raises(clnn.ShapeError, match="int32 goes with int32, and .* is none"):
            of(t, wrong)
    np.testing.assert_array_equal(of(t, np.array([3.0, 1.0])).numpy(), of(t, np.array([3, 1])).numpy())


def test_arange_ends_where_int32_does(device):
    np.testing.assert_array_equal(clnn.arange(2**31 - 2, 2**31).numpy(), [2**31 - 2, 2**31 - 1])
    for args in ((2**31 - 2, 2**31 + 2), (0, -(2**32), -(2**30)), (2**31, 2**31 + 1)):
        with pytest.raises(clnn.ShapeError, match="arange makes int32"):
            clnn.arange(*args)


WRONG = {
    "where: shapes": (lambda t: clnn.where(t > 0, t, clnn.zeros((4, 4))), "do not broadcast"),
    "clip": (clnn.clip, "a low or a high bound"),
    "squeeze": (lambda t: clnn.squeeze(t, 0), "have length 1"),
    "stack": (lambda t: clnn.stack([t, t[1:]]), "one shape"),
    "stack of none": (lambda t: clnn.stack([]), "at least one"),
    "expand_dims": (lambda t: clnn.expand_dims(t, 4), "out of range"),
    "tril": (lambda t: clnn.tril(t[0, 0]), "last two axes"),
    "take": (lambda t: clnn.take(t, 3), "no row 3"),
    "take, axis": (lambda t: clnn.take(t, 0, 3), "axis 3"),
    "take, floats": (lambda t: clnn.take(t, 0.5), "whole numbers"),
    "gather": (lambda t: clnn.gather(t, np.zeros((2, 4, 1), int)), "differs"),
    "scatter_add": (lambda t: clnn.scatter_add(t, [0, 1], t), "want values of shape"),
    "topk": (lambda t: clnn.topk(t, 6), "no 6 elements"),
    "one_hot": (lambda t: clnn.one_hot([0, 3], 3), "label 3 is none of 3"),
    "one_hot of floats": (lambda t: clnn.one_hot([0.5], 3), "int32"),
    "einsum, sizes": (lambda t: clnn.einsum("abc,ab->c", t, t[:, :, 0][1:]), "axis 'a' is 3 in one array and 2"),
    "einsum, axes": (lambda t: clnn.einsum("ab,ab->a", t, t), "names 2 axes"),
    "einsum, twice": (lambda t: clnn.einsum("aab->b", t), "none twice"),
    "einsum, dots": (lambda t: clnn.einsum("...a->a", t), "no '...'"),
    "einsum, result": (lambda t: clnn.einsum("abc->d", t), "no array has"),
    "softmax, axis": (lambda t: clnn.softmax(t, 3), "axis 3"),
    "softmax, two axes": (lambda t: clnn.softmax(t, (0, 1)), r"one of 3 axes: axis \(0, 1\) is out of range"),
    "log_softmax of a number": (lambda t: clnn.log_softmax(t[0, 0, 0], 1), "axis 1 is out of range"),
    "split, two axes": (lambda t: clnn.split(t, 1, (0, 1)), r"split is along one of 3 axes: axis \(0, 1\)"),
    "sort, all": (lambda t: clnn.sort(t, None), "sort is along one of 3 axes: axis None"),
    "by zero": (lambda t: clnn.arange(3) // 0, "divided by 0"),
    "arange": (lambda t: clnn.arange(0, 3, 0), "step that is not 0"),
    "arange, without end": (lambda t: clnn.arange(0, np.inf), "finite numbers"),
    "slice by fractions": (lambda t: t[0.5:], "slices go by whole numbers"),
    "slice by 0": (lambda t: t[:, ::0], "a step that is not 0"),
    "argmin": (lambda t: clnn.argmin(t.astype("int32")), "argmin takes floats"),
    "einsum without letters": (lambda t: clnn.einsum(t, t), "names each axis"),
    "arange, int": (lambda t: clnn.arange(0, 3, 0.5, dtype="int32"), "whole numbers"),
    "var": (lambda t: clnn.var(t[:1], 0, ddof=1), "ddof=1"),
    "key": (lambda t: t[[0, 3]], "index 3 is out of range for axis 0"),
    "key, floats": (lambda t: t[[0.5]], "indexed by"),
    "key, shapes": (lambda t: t[[0, 1], [0, 1, 2]], "do not broadcast"),
    "key, too many": (lambda t: t[[0], [0], [0], [0]], "too many parts"),
    "key, mask": (lambda t: t[np.ones((3, 3), bool)], "a mask of shape"),
    "key, tensor": (lambda t: t[t], "a mask of 0 and 1"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_wrong_arguments(rng, device, name):
    call, message = WRONG[name]
    with pytest.raises(clnn.ClnnError, match=message):
        call(clnn.tensor(normal(rng, X)))


def random_key(rng, shape):
    """Parts of all kinds in any order, an array among them, and often a `...`, which may stand for no axes."""
    used = int(rng.integers(1, len(shape) + 1))
    dots = int(rng.integers(-1, used + 1))  # where they stand; -1 for a key without them
    behind = 0 if dots < 0 else used - dots
    axes = [*range(used - behind), *range(len(shape) - behind, len(shape))]
    array = rng.integers(0, used)
    key = []
    for i, axis in enumerate(axes):
        kind = 0 if i == array else rng.integers(0, 3)
        if kind == 0:
            size = [(3,), (1,), (2, 1), (2, 3), (1, 3)][rng.integers(0, 5)]
            key.append(rng.integers(-shape[axis], shape[axis], size))
        else:
            key.append(
                [slice(int(rng.integers(0, 2)), None, int(rng.integers(1, 3))), int(rng.integers(-1, 2))][kind - 1]
            )
    if dots >= 0:
        key.insert(dots, ...)
    for _ in range(rng.integers(0, 3)):
        key.insert(rng.integers(0, len(key) + 1), None)
    return tuple(key)


@pytest.mark.parametrize("axes", [1, 2, 3, 4])
def test_random_keys_are_numpys(rng, device, axes):
    x = np.arange(4**axes, dtype=np.float32).reshape((4,) * axes)
    t = clnn.tensor(x)
    for _ in range(40):
        key = random_key(rng, x.shape)
        found = t[key].numpy()
        assert found.shape == x[key].shape and np.array_equal(found, x[key]), key


@pytest.mark.parametrize("key", [
    lambda i, m: (slice(None), i, ..., i), lambda i, m: (slice(None), i, i, ...), lambda i, m: (slice(None), ..., i, i),
    lambda i, m: (slice(None), i, ..., 1), lambda i, m: (slice(None), 1, ..., i), lambda i, m: (slice(None), m, ..., i),
    lambda i, m: (slice(None), None, i, ..., i), lambda i, m: (slice(None), i, None, i), lambda i, m: (..., i, slice(None), i),
    lambda i, m: (0, ..., i, i), lambda i, m: (slice(None), i, ..., None, i),
], ids=range(11))  # fmt: skip
def test_what_stands_between_index_arrays_says_where_their_axes_go(rng, device, key):
    """A `...` does, too, where it stands for no axes."""
    x = normal(rng, (2, 2, 2)).astype(np.float32)
    key = key(np.array([0, 1]), np.array([True, True]))
    t = parameter(x)
    y = t[key]
    np.testing.assert_array_equal(y.numpy(), x[key])
    dy = normal(rng, x[key].shape).astype(np.float32)
    (y * clnn.tensor(dy)).sum().backward()
    wanted = np.zeros_like(x)
    np.add.at(wanted, key, dy)
    np.testing.assert_allclose(t.grad.numpy(), wanted, rtol=1e-6)


CHOOSING = {
    "concatenate": lambda xp, a, b: xp.concatenate([a[:2], b[2:]]),
    "concatenate arrays": lambda xp, a, b: xp.concatenate([a[:2], np.array([True, False, True])]),
    "stack": lambda xp, a, b: xp.stack([a, b])[1],
    "where": lambda xp, a, b: xp.where(a, b, a),
    "maximum": lambda xp, a, b: xp.maximum(a, b),
    "minimum": lambda xp, a, b: xp.minimum(a, b),
    "multiply": lambda xp, a, b: a * b,
    "take": lambda xp, a, b: xp.take(a, [4, 0, 0, 2, 1]),
    "sort": lambda xp, a, b: xp.sort(a),
    "roll": lambda xp, a, b: xp.roll(a, 2, 0),
    "flip": lambda xp, a, b: xp.flip(a, 0),
    "tile": lambda xp, a, b: xp.tile(a[:1], 5),
    "gather": lambda xp, a, b: (xp.gather if xp is clnn else np.take_along_axis)(a, np.array([4, 0, 3, 3, 1]), axis=0),
    "topk": lambda xp, a, b: clnn.topk(a, 5)[0] if xp is clnn else np.sort(a)[::-1],
    "tril": lambda xp, a, b: xp.tril(xp.stack([a, b]), 1)[0],
    "triu": lambda xp, a, b: xp.triu(xp.stack([a, b]), 1)[1],
    "where False": lambda xp, a, b: xp.where(b, a, False),
    "where True": lambda xp, a, b: xp.where(b, True, a),
    "masked_fill": lambda xp, a, b: clnn.masked_fill(a, b, False) if xp is clnn else np.where(b, False, a),
    "times True": lambda xp, a, b: a * True,
    "maximum of False": lambda xp, a, b: xp.maximum(False, a),
}


@pytest.mark.parametrize("kind", ["bools", "comparison"])
@pytest.mark.parametrize("name", CHOOSING)
def test_what_is_chosen_among_truths_is_a_mask(rng, device, name, kind):
    """As NumPy's bools stay bools, and in a replay."""
    x, a, b = normal(rng, (5, 3)), *rng.integers(0, 2, (2, 5)).astype(bool)
    right, t = x.astype(np.float32)[CHOOSING[name](np, a, b)], clnn.tensor(x, np.float32)
    on = [clnn.tensor(m) if kind == "bools" else clnn.tensor(m.astype(np.float32)) > 0.5 for m in (a, b)]
    np.testing.assert_array_equal(t[CHOOSING[name](clnn, *on)].numpy(), right)
    step = clnn.step(
        lambda a, b: CHOOSING[name](clnn, a, b), record=name not in ("concatenate arrays", "take", "gather")
    )
    for _ in range(5):
        np.testing.assert_array_equal(t[step(*on)].numpy(), right)


@pytest.mark.parametrize(
    "made",
    [
        clnn.constant,
        lambda m: clnn.from_dlpack(m, copy=True),
        lambda m: clnn.tensor([m[i] for i in range(5)]),
        lambda m: clnn.tensor([bool(v) for v in m.numpy()]),
        lambda m: clnn.tensor(list(m.numpy() != 0)),
    ],
)
def test_copies_of_a_mask_are_masks(device, rng, made):
    x, m = normal(rng, (5, 3)), np.array([False, True, True, False, True])
    np.testing.assert_array_equal(clnn.tensor(x, np.float32)[made(clnn.tensor(m))].numpy(), x[m].astype(np.float32))


def test_a_list_of_truths_and_numbers_is_of_numbers(device, rng):
    x = normal(rng, (5, 3))
    for rows in ([True, 2, 3, 4, 0], [[True, False], [1, 4]], (False, True, 3)):
        np.testing.assert_array_equal(
            clnn.tensor(x, np.float32)[clnn.tensor(rows)].numpy(), x[np.array(rows)].astype(np.float32)
        )


def test_what_counts_truths_is_no_mask(rng, device):
    x, m = normal(rng, (5, 3)), rng.integers(0, 2, (2, 5)).astype(bool)
    t, on = clnn.tensor(x, np.float32), clnn.tensor(m)
    for count in (lambda v: v[0] + v[1], lambda v: v[0] + v[1] * 2, lambda v: v[0] * 3, lambda v: v[0] * 1):
        rows = count(m.astype(int))
        np.testing.assert_array_equal(t[count(on)].numpy(), x[rows].astype(np.float32))
    np.testing.assert_array_equal(t[clnn.where(on[0], on[1], 3)].numpy(), x[np.where(m[0], m[1], 3)].astype(np.float32))


class OfAnotherLibrary:
    """As PyTorch's tensors are, it makes an array of itself, and has types of its own."""

    def __init__(self, values):
        self.values, self.dtype = values, "bool"

    def __array__(self, dtype=None, copy=None):
        return self.values


@pytest.mark.parametrize(
    "make",
    [
        clnn.tensor,
        clnn.constant,
        lambda m: clnn.tensor(OfAnotherLibrary(m)),
        lambda m: clnn.constant(OfAnotherLibrary(m)),
        lambda m: clnn.tensor(memoryview(m)),
        lambda m: clnn.tensor(m).to(clnn.device().kind),
        lambda m: clnn.tensor(m.tolist()),
        lambda m: clnn.tensor(m.T).T[:],
    ],
)
def test_what_was_bools_is_a_mask(rng, device, make):
    """On the device bools are int32, and yet no numbers of rows."""
    x, mask = normal(rng, (5, 3)), np.array([True, False, True, True, False])
    t, wide = clnn.tensor(x, np.float32), np.array(x > 0)
    np.testing.assert_array_equal(t[make(mask)].numpy(), x[mask].astype(np.float32))
    np.testing.assert_array_equal(t[make(wide)].numpy(), x[wide].astype(np.float32))
    np.testing.assert_array_equal(t[make(mask).reshape(5)].numpy(), x[mask].astype(np.float32))
    np.testing.assert_array_equal(t[OfAnotherLibrary(mask)].numpy(), x[mask].astype(np.float32))
    np.testing.assert_array_equal(t[OfAnotherLibrary(mask * 2), 1].numpy(), x[mask * 2, 1].astype(np.float32))
    step = clnn.step(lambda t, mask: t[mask], record=False)
    for given in (mask, make(mask), ~mask):
        np.testing.assert_array_equal(step(t, given).numpy(), x[np.asarray(given) != 0].astype(np.float32))
    np.testing.assert_array_equal(step(t, mask.astype(int)).numpy(), x[mask.astype(int)].astype(np.float32))


@pytest.mark.parametrize(
    "name, call",
    [
        ("var", clnn.var), ("std", clnn.std), ("logsumexp", clnn.logsumexp), ("argmin", clnn.argmin), ("cumsum", clnn.cumsum),
        ("prod", clnn.prod), ("elu", lambda x: clnn.elu(x, 0.5)), ("leaky_relu", lambda x: clnn.leaky_relu(x, 0.5)),
        ("power", lambda x: x**2), ("log_softmax", clnn.log_softmax), ("softmax", lambda x: clnn.softmax(x, 0)),
    ],
)  # fmt: skip
def test_errors_name_the_function_that_was_called(device, name, call):
    """Not one that it is made of: mean, max, multiply, expm1, square."""
    with pytest.raises(clnn.ShapeError, match=rf"^{name} takes floats, not int32"):
        call(clnn.tensor(np.ones((2, 3), np.int32)))


def test_errors_of_statistics_and_axes_name_the_function_that_was_called(device):
    with pytest.raises(clnn.ShapeError, match="^std over 1 elements with ddof=1"):
        clnn.std(clnn.ones((2, 1)), 1, ddof=1)
    with pytest.raises(clnn.ConfigurationError, match="^var's ddof should be in .*, 'a' was"):
        clnn.var(clnn.ones((2, 1)), ddof="a")
    with pytest.raises(clnn.ShapeError, match="^log_softmax is along one of 2 axes: axis 2"):
        clnn.log_softmax(clnn.ones((2, 1)), 2)


def test_functions_of_no_elements(device):
    for labels in ([], np.zeros((2, 0)), clnn.zeros(0)):
        assert clnn.one_hot(labels, 3).shape == (*np.shape(labels), 3)
    assert clnn.logsumexp(clnn.zeros((2, 0)), 1).numpy().tolist() == [-np.inf, -np.inf]
    assert clnn.logsumexp(clnn.zeros((0, 2)), 1, keepdims=True).shape == (0, 1)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda i, f: clnn.clip(i, 1.5), "^clip: int32 goes with int32, and 1.5 is none"),
        (lambda i, f: clnn.clip(f, 0.0, i), "^clip: arrays of two types"),
        (lambda i, f: clnn.masked_fill(i, i, 1.5), "^masked_fill: int32 goes with"),
        (lambda i, f: clnn.leaky_relu(f, i), "^leaky_relu: arrays of two types"),
        (lambda i, f: clnn.elu(f, f), "^elu: a tensor of shape"),
        (lambda i, f: clnn.argmin(f, 7), "^argmin: axis 7 is out of range"),
        (lambda i, f: clnn.std(f, axis=0.5), "^std: axis takes whole numbers, and 0.5"),
        (lambda i, f: clnn.where(f, i, f), "^where: arrays of two types"),
        (lambda i, f: clnn.roll(f, (1, 2), 0), r"^roll's shift takes one whole number, and \(1, 2\)"),
        (lambda i, f: clnn.tril(f, []), r"^tril: the diagonal takes one whole number, and \[\]"),
        (lambda i, f: clnn.concatenate([f, f], (0, 1)), r"^concatenate's axis takes one whole number, and \(0, 1\)"),
        (lambda i, f: clnn.arange(f), r"^arange takes numbers, and arrays of shapes \[\(\), \(2, 2\), \(\)\]"),
    ],
)
def test_errors_have_the_name_that_was_called(device, call, said):
    """And not that of a function that it is made of, such as less."""
    with pytest.raises(clnn.ShapeError, match=said):
        call(clnn.tensor([1, 2]), clnn.tensor([[1.0, 2.0], [3.0, 4.0]]))


@pytest.mark.parametrize("values", [
    [0.0, 1e30, 1e30, 1e30], [1e30, 1e30, 0.0, 1e-30], [1e20, 1e20, 1e20, 0.0, 0.0], [1e-20] * 3 + [1e20] * 3,
    [1e30, -1e30, 1e-30, 1e-30], [5.0], [0.0, 0.0], [2.0, 3.0],
])  # fmt: skip
@pytest.mark.parametrize("dy", [1.0, -3e30])
def test_the_gradient_of_a_product_that_overflows_on_the_way(device, dtype, values, dy):
    """0 times infinity would be NaN, and what has become 0 stays 0: other elements bring a product back into range."""
    x = parameter(np.array([values, values[::-1]], dtype).T, dtype)
    clnn.prod(x, 0).backward(np.array([dy, 1.0], dtype))
    wide = np.array([values, values[::-1]], np.longdouble).T
    others = np.stack([np.prod(np.delete(wide, k, 0), 0) for k in range(len(values))]) * np.array([dy, 1.0])
    with np.errstate(over="ignore"):
        expected = others.astype(dtype)
    same = np.isinf(expected)
    np.testing.assert_array_equal(x.grad.numpy()[same], expected[same])
    assert_close(x.grad.numpy()[~same], expected[~same], 2 * len(values) * eps(dtype) * np.abs(expected[~same]))


def test_a_sign_is_one_of_three_numbers(device, dtype):
    """Of denormal numbers too, which a comparison may take for 0: they came back as they were."""
    tiny = np.finfo(dtype).tiny
    x = np.array([tiny / 3, -tiny / 3, tiny, -tiny, 0, np.inf, -np.inf, 3, -1e-6, np.nan] * 7, dtype)
    t = clnn.tensor(x, dtype, device)
    found = clnn.sign(t).numpy()
    np.testing.assert_array_equal(found[np.isnan(x)], np.nan)
    np.testing.assert_array_equal(found[~np.isnan(x)], ((t > 0).numpy() - (t < 0).numpy())[~np.isnan(x)])
    np.testing.assert_array_equal(found[abs(x) >= tiny], np.sign(x)[abs(x) >= tiny])
