"""Losses against NumPy in float64: values, gradients, weights, labels, extremes, and what does not fit."""

import json

import numpy as np
import pytest
from helpers import assert_close, check_op, eps, host, normal, parameter

import clnn
from clnn import losses
from clnn.losses import LOSSES, CrossEntropy, Huber, find_loss
from clnn.ops.array import Array
from clnn.tensor import function, linear_layer
from clnn.tools.verify import references


def log_softmax(z):
    z = z - z.max(axis=-1, keepdims=True)
    return z - np.log(np.exp(z).sum(axis=-1, keepdims=True))


def sigmoid(z):
    return 1 / (1 + np.exp(-z))


def _huber(y, t, delta=1.0):
    e = np.abs(y - t)
    return np.where(e <= delta, e**2 / 2, delta * (e - delta / 2)).mean(axis=1)


ROWS = {  # the loss of each row
    "quadratic": lambda y, t: ((y - t) ** 2).sum(axis=1) / 2,
    "mse": lambda y, t: ((y - t) ** 2).mean(axis=1),
    "mae": lambda y, t: np.abs(y - t).mean(axis=1),
    "huber": _huber,
    "binary_cross_entropy": lambda z, t: (np.logaddexp(0, z) - t * z).sum(axis=1),
    "cross_entropy": lambda z, t: -(t * log_softmax(z)).sum(axis=1),
    "log_likelihood": lambda y, t: -(t * y).sum(axis=1),
}
ROWS |= {
    name: lambda y, t, name=name: references.losses(name, t)(y)
    for name in ("kl_divergence", "cosine", "poisson", "hinge", "squared_hinge")
}
CLASSES = (
    "quadratic",
    "binary_cross_entropy",
    "cross_entropy",
    "log_likelihood",
    "kl_divergence",
    "hinge",
    "squared_hinge",
)


def targets(rng, name, shape, dtype=np.float32):
    """Values that the loss takes."""
    t = normal(rng, shape, dtype)
    if name == "binary_cross_entropy":
        t = rng.random(shape)
    if name == "poisson":
        t = rng.poisson(2.0, shape)
    if "hinge" in name:
        t = rng.choice([-1.0, 1.0], shape)
    if name in ("cross_entropy", "log_likelihood", "kl_divergence"):
        t = rng.random(shape)
        t /= t.sum(axis=1, keepdims=True)
    return t.astype(dtype).astype(np.float64)


def outputs(rng, name, t, dtype=np.float32):
    """Random outputs where the loss is smooth."""
    y = 2 * normal(rng, t.shape, dtype)
    if "hinge" in name:
        y += np.where(np.abs(y - np.where(t > 0, 1, -1)) < 0.01, 0.05, 0)
    for kink in {"mae": (0,), "huber": (-1, 1)}.get(name, ()):
        y += np.where(np.abs(y - t - kink) < 0.01, 0.05, 0)
    return y.astype(dtype).astype(np.float64)


def mean(rows, weight=None):
    return lambda y, t: np.mean(rows(y, t) * (1 if weight is None else weight))


def test_every_loss_has_a_reference():
    assert set(ROWS) == set(LOSSES)
    for name in LOSSES:  # `clnn verify` has its own
        assert references.losses(name, np.eye(2))(np.ones((2, 2))).shape == (2,)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("shape", [(1, 1), (5, 3), (131, 10)], ids=str)
def test_values(rng, device, name, shape):
    if name in ("cross_entropy", "kl_divergence") and shape[1] == 1:
        shape = (1, 2)  # one class is refused
    t = targets(rng, name, shape)
    y = outputs(rng, name, t)
    weight = rng.random(shape[0]).astype(np.float32).astype(np.float64)
    for w in (None, weight):
        check_op(
            rng,
            lambda y, w=w: LOSSES[name]()(y, t, sample_weight=w),
            lambda y, w=w: mean(ROWS[name], w)(y, t),
            y,
            rounding=16 + sum(shape),
        )


@pytest.mark.oclgrind
@pytest.mark.parametrize("name", ["cross_entropy", "kl_divergence", "mse", "cosine"])
def test_long_rows_on_a_gpu(rng, device, monkeypatch, name):
    """There a group has a row: sums, the largest output and the row's loss are joined."""
    monkeypatch.setattr(device, "kind", "gpu")
    t, w = targets(rng, name, (3, 77)), rng.random(3)
    y = outputs(rng, name, t)
    check_op(rng, lambda y: LOSSES[name]()(y, t, w), lambda y: mean(ROWS[name], w)(y, t), y, rounding=96)
    found, _ = LOSSES[name]().rows(clnn.tensor(y, np.float32), clnn.tensor(t, np.float32), hits=name != "cosine")
    if found.hits is not None:
        np.testing.assert_array_equal(host(found.hits), y.argmax(-1) == t.argmax(-1))


@pytest.mark.oclgrind
def test_class_numbers_of_long_rows_on_a_gpu(rng, device, monkeypatch):
    """Some of them ignored, one row with a NaN, and one whose largest output is there twice: the first counts."""
    monkeypatch.setattr(device, "kind", "gpu")
    y, labels = normal(rng, (6, 150)), np.array([3, 149, -100, 70, 70, 0])
    y[0, 3] = y[1, 149] = y[2, 5] = y[3, 70] = y[3, 140] = y[4, 70] = y[4, 6] = 9
    kept = labels != -100
    t, loss = np.eye(150)[np.where(kept, labels, 0)], LOSSES["cross_entropy"](ignore_index=-100)

    def rows(y):
        return np.where(kept, ROWS["cross_entropy"](y, t), 0)

    check_op(rng, lambda y: loss(y, labels), lambda y: rows(y).sum() / 5, y, rounding=200)
    y[5, 100] = np.nan
    found, _ = loss.rows(clnn.tensor(y, np.float32), clnn.tensor(labels), hits=True)
    np.testing.assert_array_equal(host(found.hits), [1, 1, 0, 1, 0, 0])
    assert_close(host(found.losses)[:5], rows(y)[:5], 200 * eps(np.float32))
    assert np.isnan(host(found.losses)[5])


@pytest.mark.parametrize("name", ["huber", "cross_entropy", "kl_divergence", "cosine"])
def test_float64(rng, device, name):
    if not device.has_fp64:
        pytest.skip("no float64")
    t = targets(rng, name, (5, 3), np.float64)
    y = outputs(rng, name, t, np.float64)
    check_op(rng, lambda y: LOSSES[name]()(y, t), lambda y: mean(ROWS[name])(y, t), y, dtype=np.float64, rounding=64)


@pytest.mark.parametrize("name", CLASSES)
def test_class_numbers_stand_for_one_hot(rng, device, name):
    labels = rng.integers(0, 4, 7)
    t = np.eye(4)[labels]
    y, w = outputs(rng, name, t), rng.random(7)
    loss = LOSSES[name]()
    for given in (labels, labels.astype(np.uint8), clnn.tensor(labels)):
        check_op(rng, lambda y, given=given: loss(y, given, w), lambda y: mean(ROWS[name], w)(y, t), y, rounding=32)


@pytest.mark.parametrize("hot", [False, True], ids=["labels", "one-hot"])
@pytest.mark.parametrize("smoothing", [0.1, 0.9])
def test_label_smoothing(rng, device, smoothing, hot):
    labels = rng.integers(0, 4, 7)
    loss, t = CrossEntropy(label_smoothing=smoothing), np.eye(4)[labels]
    smooth, given = (1 - smoothing) * t + smoothing / 4, t if hot else labels
    check_op(
        rng,
        lambda z: loss(z, given),
        lambda z: mean(ROWS["cross_entropy"])(z, smooth),
        normal(rng, (7, 4)),
        rounding=32,
    )


@pytest.mark.parametrize("delta", [0.3, 2.0])
def test_delta_of_huber(rng, device, delta):
    t, y = normal(rng, (6, 3)), normal(rng, (6, 3)) * 3
    y += np.where(np.abs(np.abs(y - t) - delta) < 0.01, 0.05, 0)
    check_op(rng, lambda y: Huber(delta)(y, t), lambda y: _huber(y, t, delta).mean(), y, rounding=32)


def test_targets_that_do_not_sum_to_one(rng, device):
    """Cross-entropy is -sum t log softmax(z) for any t."""
    t = rng.random((5, 3)).astype(np.float32).astype(np.float64)
    check_op(
        rng,
        lambda z: losses.cross_entropy(z, t),
        lambda z: mean(ROWS["cross_entropy"])(z, t),
        normal(rng, (5, 3)),
        rounding=32,
    )


@pytest.mark.parametrize("name", ["quadratic", "mse", "binary_cross_entropy"])
def test_values_go_with_one_output(rng, device, name):
    t, y = rng.random(6), normal(rng, (6, 1))
    check_op(rng, lambda y: LOSSES[name]()(y, t), lambda y: mean(ROWS[name])(y, t[:, None]), y, rounding=32)


@pytest.mark.parametrize("name", ["quadratic", "mse", "huber", "binary_cross_entropy"])
@pytest.mark.parametrize("shape", [(6,), (2, 3, 4)], ids=str)
def test_other_numbers_of_axes(rng, device, name, shape):
    """Outputs without an axis of features, or with several: rows are samples."""
    flat = (shape[0], int(np.prod(shape[1:])))
    t = targets(rng, name, flat)
    y = outputs(rng, name, t)
    check_op(
        rng,
        lambda y: LOSSES[name]()(y, t.reshape(shape)),
        lambda y: mean(ROWS[name])(y.reshape(flat), t),
        y.reshape(shape),
        rounding=32,
    )


# -- the last layer's activation --------------------------------------------------------------------------------------
ACTIVATED = {
    ("binary_cross_entropy", "sigmoid"): lambda z: z,  # its reference takes logits
    ("quadratic", "sigmoid"): sigmoid,
    ("quadratic", "gelu_tanh"): lambda z: z * (1 + np.tanh(np.sqrt(2 / np.pi) * (z + 0.044715 * z**3))) / 2,
    ("mse", "tanh"): np.tanh,
}


@pytest.mark.platform("losses")
@pytest.mark.parametrize(("name", "activation"), ACTIVATED)
@pytest.mark.parametrize("axes", [2, 3])
def test_through_an_activation(rng, device, name, activation, axes):
    """The gradient goes on to the activation's input in the loss's own launch.

    Inputs of the sigmoid stay small: its output y is all the loss has, and 1 - y is good to eps / (1 - y) only.
    """
    x, w = normal(rng, (2, 3, 5)[:axes]), normal(rng, ((3, 5)[axes - 2], 4)) / 4
    shape = (*x.shape[:-1], 4)
    flat = (2, int(np.prod(shape[1:])))
    t = targets(rng, name, flat)
    check_op(
        rng,
        lambda w: LOSSES[name]()(linear_layer(clnn.tensor(x, np.float32), w, None, activation), t.reshape(shape)),
        lambda w: mean(ROWS[name])(ACTIVATED[name, activation](x @ w).reshape(flat), t),
        w,
        rounding=64,
    )


def test_sigmoid_of_an_input(rng, device):
    """A sigmoid that is no layer's is looked through as well."""
    t = rng.random((5, 3))
    check_op(
        rng,
        lambda z: losses.binary_cross_entropy(clnn.sigmoid(z), t),
        lambda z: mean(ROWS["binary_cross_entropy"])(z, t),
        normal(rng, (5, 3)) / 2,
        rounding=64,
    )


@pytest.mark.parametrize("last", ["softmax", "log_softmax"])
@pytest.mark.parametrize("name", ["cross_entropy", "log_likelihood", "kl_divergence"])
def test_softmax_is_applied_once(rng, device, name, last):
    x, w, labels = normal(rng, (6, 5)), normal(rng, (5, 4)), rng.integers(0, 4, 6)
    check_op(
        rng,
        lambda w: LOSSES[name]()(function(clnn.tensor(x, np.float32) @ w, last), labels),
        lambda w: mean(ROWS["cross_entropy"])(x @ w, np.eye(4)[labels]),
        w,
        rounding=64,
    )


def test_several_losses_of_one_output(rng, device):
    """Each folds the activation in by itself; gradients that come another way are still multiplied by f'."""
    x, w = normal(rng, (6, 5)), normal(rng, (5, 4)) / 2
    t, u = rng.random((6, 4)), rng.random((6, 4))

    def op(w):
        y = linear_layer(clnn.tensor(x, np.float32), w, None, "sigmoid")
        return losses.binary_cross_entropy(y, t) * 3.0 + losses.quadratic(y, u) + (y * y).mean()

    def reference(w):
        z = x @ w
        return (
            3 * mean(ROWS["binary_cross_entropy"])(z, t)
            + mean(ROWS["quadratic"])(sigmoid(z), u)
            + (sigmoid(z) ** 2).mean()
        )

    check_op(rng, op, reference, w, rounding=64)


def test_without_a_tape(rng, device):
    y, t = normal(rng, (5, 3)), normal(rng, (5, 3))
    p = parameter(y)
    with clnn.no_grad():
        value = losses.mse(p, t)
    assert not value.requires_grad
    assert_close(value.numpy(), ((y - t) ** 2).mean(), 32 * eps(np.float32) * 20)


# -- extremes ---------------------------------------------------------------------------------------------------------
def test_huge_logits(device):
    """Logits of 1e4: exact losses, finite gradients."""
    z = parameter([[1e4, -1e4, 0.0], [-1e4, 1e4, 0.0]])
    loss = losses.cross_entropy(z, np.array([0, 0]))
    assert float(loss) == 1e4
    loss.backward()
    assert_close(z.grad.numpy(), [[0, 0, 0], [-0.5, 0.5, 0]], eps(np.float32))
    z = parameter([[1e4, -1e4, 1e4, -1e4]])
    loss = losses.binary_cross_entropy(z, np.array([[1.0, 0.0, 0.0, 1.0]]))
    assert float(loss) == 2e4
    loss.backward()
    assert_close(z.grad.numpy(), [[0, 0, 1, -1]], eps(np.float32))


@pytest.mark.parametrize("hot", [False, True])
@pytest.mark.parametrize("learns", [False, True])
def test_losses_near_zero_are_off_to_neither_side(rng, device, hot, learns):
    """What is left of log(sum exp(y)) is small beside the largest term, which is 1; roundings even out over rows."""
    z, labels = rng.standard_normal((8192, 3)).astype(np.float32), rng.integers(0, 3, 8192).astype(np.int32)
    z[np.arange(8192), labels] += 14
    wide = z.astype(np.float64)
    want = np.log1p(np.exp(wide - wide[np.arange(8192), labels][:, None]).sum(1) - 1).mean()
    target = np.eye(3, dtype=np.float32)[labels] if hot else labels
    loss = clnn.losses.cross_entropy(clnn.tensor(z, requires_grad=learns), target)
    assert abs(float(loss) / want - 1) < 4e-3


@pytest.mark.parametrize("z", [[[-30.0, 30.0]], [[-100.0, 100.0]]])
def test_saturated_sigmoid(device, z):
    """On a sigmoid's output that has reached 0 or 1 the gradient is still y - t, and the loss finite."""
    p = parameter(z)
    loss = losses.binary_cross_entropy(clnn.sigmoid(p), np.array([[1.0, 0.0]]))
    assert np.isfinite(float(loss)) and float(loss) > 20
    loss.backward()
    assert_close(p.grad.numpy(), [[-1, 1]], 2 * eps(np.float32))


def test_minus_infinity_of_a_class_that_is_not_meant(device):
    """A masked class costs nothing."""
    z = parameter([[0.0, -np.inf, 0.0]])
    loss = losses.cross_entropy(z, np.array([0]))
    assert_close(loss.numpy(), np.log(2), 4 * eps(np.float32))
    loss.backward()
    assert_close(z.grad.numpy(), [[-0.5, 0, 0.5]], 4 * eps(np.float32))


def test_probabilities_count_down_to_a_ten_millionth(device):
    """Their logarithm is cut off there."""
    for p, cost in ((1.03e-7, -np.log(1.03e-7)), (2e-9, -np.log(1e-7))):
        y = clnn.sigmoid(clnn.tensor([[np.log(p / (1 - p))]]))
        assert_close(losses.binary_cross_entropy(y, np.ones((1, 1), np.float32)).numpy(), cost, 1e-4)


def test_the_logarithm_of_0_of_a_class_that_is_not_meant(device):
    """Log-probabilities of one's own may be -inf: 0 times that is no NaN, and one that is meant costs infinitely much."""
    p = parameter([[np.log(0.5), np.log(0.5), -np.inf]])
    for target in (np.array([0]), np.array([[0.5, 0.5, 0]], np.float32)):
        p.zero_grad()
        loss = losses.log_likelihood(p, target)
        assert_close(loss.numpy(), np.log(2), 4 * eps(np.float32))
        loss.backward()
        hot = np.eye(3)[target] if target.ndim == 1 else target
        assert_close(p.grad.numpy(), -hot, 0)
    assert float(losses.log_likelihood(p, np.array([2]))) == np.inf


@pytest.mark.parametrize("name", LOSSES)
def test_nan(rng, device, name):
    """A NaN in one sample's output is a NaN in the mean, and in that sample's gradient only."""
    t = targets(rng, name, (4, 3))
    y = outputs(rng, name, t)
    y[2, 1] = np.nan
    p = parameter(y)
    loss = LOSSES[name]()(p, t)
    assert np.isnan(float(loss))
    loss.backward()
    gradient = p.grad.numpy()
    if name != "log_likelihood":  # whose gradient is -t
        assert np.isnan(gradient[2, 1])
    assert np.isfinite(gradient[[0, 1, 3]]).all()


def test_hits(rng, device):
    """Rows whose largest output is the label's."""
    y, labels = normal(rng, (50, 4)), rng.integers(0, 4, 50)
    for name in CLASSES:
        y[::7, 2] = np.nan  # with a NaN nothing is right
        found, _ = LOSSES[name]().rows(clnn.tensor(y, np.float32), clnn.tensor(labels), hits=True)
        expected = (y.argmax(axis=1) == labels) & ~np.isnan(y).any(axis=1)
        np.testing.assert_array_equal(host(Array(found.hits.block, (50,), np.int32, device)), expected)


# -- several axes, targets that do not count, reductions, weights of a yes ---------------------------------------------
VECTORS = [name for name, kind in LOSSES.items() if kind.of_vectors]


@pytest.mark.parametrize("name", VECTORS)
@pytest.mark.parametrize("weights", [None, (2,), (2, 3)], ids=str)
def test_vectors_of_several_axes(rng, device, name, weights):
    """Outputs (2, 3, 5) are six vectors, in class numbers and in values; a weight is for a sample or for a vector."""
    labels = rng.integers(0, 5, (2, 3))
    y, w = (
        normal(rng, (2, 3, 5)),
        None if weights is None else rng.random(weights).astype(np.float32).astype(np.float64),
    )
    each = 1 if w is None else np.broadcast_to(w.reshape(2, -1), (2, 3)).ravel()
    values = targets(rng, name, (6, 5)).reshape(2, 3, 5)
    for given, t in ((labels, np.eye(5)[labels]), (clnn.tensor(labels), np.eye(5)[labels]), (values, values)):
        if name == "cosine" and given is not values:
            continue
        check_op(
            rng,
            lambda y, given=given: LOSSES[name]()(y, given, w),
            lambda y, t=t: mean(ROWS[name], each)(y.reshape(6, 5), t.reshape(6, 5)),
            y,
            rounding=64,
        )


@pytest.mark.parametrize("ignore", [-100, 1])
@pytest.mark.parametrize(
    ("name", "smoothing"), [("cross_entropy", 0.0), ("cross_entropy", 0.2), ("log_likelihood", 0.0)]
)
def test_targets_that_are_ignored(rng, device, name, smoothing, ignore):
    """They count nowhere, whatever their outputs are; where all are ignored, loss and gradient are 0."""
    labels = rng.integers(0, 4, (3, 5))
    labels[0, 1:4], labels[2] = ignore, ignore
    kept = labels != ignore
    loss = LOSSES[name](ignore_index=ignore, **({"label_smoothing": smoothing} if smoothing else {}))
    y, w, t = (
        normal(rng, (3, 5, 4)),
        rng.random((3, 5)),
        np.eye(4)[np.where(kept, labels, 0)] * (1 - smoothing) + smoothing / 4,
    )

    def rows(y):
        return np.where(kept, ROWS[name](y.reshape(15, 4), t.reshape(15, 4)).reshape(3, 5) * w, 0)

    check_op(rng, lambda y: loss(y, labels, w), lambda y: rows(y).sum() / kept.sum(), y, rounding=64)
    check_op(rng, lambda y: loss(y, labels, w, "none"), rows, y, rounding=64)
    nothing = parameter(np.where(kept[..., None], y, np.nan))
    value = loss(nothing, clnn.tensor(labels), w)
    value.backward()
    assert_close(value.numpy(), rows(y).sum() / kept.sum(), 64 * eps(np.float32))
    assert not nothing.grad.numpy()[~kept].any() and np.isfinite(nothing.grad.numpy()).all()
    found, _ = loss.rows(clnn.tensor(y, np.float32), clnn.tensor(labels), hits=True)
    np.testing.assert_array_equal(host(found.hits), ((y.argmax(-1) == labels) & kept).ravel())

    @clnn.step
    def step(y, labels):
        value = loss(y, labels)
        return value, loss(y, labels, reduction="sum")

    for i in range(6):
        labels[rng.random((3, 5)) < 0.3] = ignore
        labels[:] = ignore if i == 4 else labels
        kept = labels != ignore
        t = np.eye(4)[np.where(kept, labels, 0)] * (1 - smoothing) + smoothing / 4
        w = 1
        got = step(y.astype(np.float32), labels)
        wanted = rows(y).sum() / max(1, kept.sum()), rows(y).sum()
        assert_close([float(one) for one in got], wanted, 256 * eps(np.float32), "replayed")


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("reduction", ["sum", "none"])
def test_reductions(rng, device, name, reduction):
    t = targets(rng, name, (7, 3))
    y, w = outputs(rng, name, t), rng.random(7)
    by_row = lambda y: ROWS[name](y, t) * w  # noqa: E731
    wanted = by_row if reduction == "none" else lambda y: by_row(y).sum()
    check_op(rng, lambda y: LOSSES[name](reduction=reduction)(y, t, w), wanted, y, rounding=64)
    check_op(rng, lambda y: LOSSES[name]()(y, t, w, reduction=reduction), wanted, y, rounding=64)
    assert LOSSES[name]()(y[:0], t[:0], reduction=reduction).numpy().sum() == 0


@pytest.mark.parametrize("activation", [None, "sigmoid"])
@pytest.mark.parametrize("weight", [3.0, [0.25, 4.0, 1.0]], ids=str)
@pytest.mark.parametrize("shape", [(5, 3), (2, 4, 3)], ids=str)
def test_weight_of_a_yes(rng, device, activation, weight, shape):
    t, z, p = rng.random(shape), normal(rng, shape) / 2, np.array(weight)
    loss = losses.BinaryCrossEntropy(pos_weight=weight)
    check_op(
        rng,
        lambda z: loss(clnn.sigmoid(z) if activation else z, t),
        lambda z: (p * t * np.logaddexp(0, -z) + (1 - t) * np.logaddexp(0, z)).sum() / len(z),
        z,
        rounding=64,
    )
    z = parameter([[100.0, -100, 0]])
    value = loss(z, np.array([[1.0, 0, 0]]))
    value.backward()
    assert_close(value.numpy(), np.log(2), 4 * eps(np.float32))
    assert_close(z.grad.numpy(), [[0, 0, 0.5]], 4 * eps(np.float32))
    loss.pos_weight = 2.0
    assert float(loss(clnn.zeros((1, 3)), np.ones((1, 3)))) == pytest.approx(6 * np.log(2))


@pytest.mark.parametrize("scale", [1e-25, 1.0, 1e25])
def test_cosine_of_long_and_short_vectors(rng, device, scale):
    y, t = normal(rng, (4, 6)), normal(rng, (4, 6))
    got = losses.cosine((y * scale).astype(np.float32), (t / scale).astype(np.float32))
    assert_close(got.numpy(), ROWS["cosine"](y, t).mean(), 16 * eps(np.float32))
    p = parameter(np.zeros((1, 3)))
    value = losses.cosine(p, np.ones((1, 3)))
    value.backward()
    assert float(value) == 1 and not p.grad.numpy().any()


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_triplet(rng, device, reduction):
    def rows(a, p, n):
        distance = lambda u, v: np.sqrt(((u - v + 1e-6) ** 2).sum(-1))  # noqa: E731
        found = np.maximum(0, distance(a, p) - distance(a, n) + 0.5)
        return found if reduction == "none" else getattr(found, reduction)()

    vectors = [normal(rng, (4, 5)) for _ in range(3)]
    check_op(rng, lambda *v: losses.triplet(*v, margin=0.5, reduction=reduction), rows, *vectors, rounding=64)
    with pytest.raises(clnn.ShapeError, match=r"three arrays of one shape, and got \[\(4, 5\), \(4, 5\), \(3, 5\)\]"):
        losses.triplet(*vectors[:2], vectors[2][:3])


def test_what_losses_refuse_of_these(device):
    with pytest.raises(clnn.ConfigurationError, match='"mean", "sum" or "none", \'average\' was provided'):
        losses.CrossEntropy(reduction="average")
    with pytest.raises(clnn.ConfigurationError, match="ignore_index should be a class number or None, 0.5"):
        losses.CrossEntropy(ignore_index=0.5)
    with pytest.raises(clnn.ConfigurationError, match=r"pos_weight should be in \[0, inf\), -1"):
        losses.BinaryCrossEntropy([1.0, -1.0])
    with pytest.raises(clnn.ShapeError, match=r"pos_weight has 2 numbers, and the outputs have the shape \(4, 3\)"):
        losses.BinaryCrossEntropy([1.0, 2.0])(clnn.zeros((4, 3)), np.zeros((4, 3)))
    with pytest.raises(clnn.ShapeError, match=r"2 numbers, .* shape \(2,\): it has one for each output of a sample"):
        losses.BinaryCrossEntropy([1.0, 2.0])(clnn.zeros((2,)), np.zeros((2,)))  # two samples
    assert losses.BinaryCrossEntropy([2.0])(clnn.zeros((2,)), np.ones((2,))).item() == pytest.approx(2 * np.log(2))
    with pytest.raises(clnn.ConfigurationError, match="ignore_index=-1 is a class number, and the targets are values"):
        losses.CrossEntropy(ignore_index=-1)(clnn.zeros((4, 3)), np.zeros((4, 3)))
    with pytest.raises(clnn.ShapeError, match=r"targets of shape \(2, 4\) do not fit outputs of shape \(2, 5, 3\)"):
        losses.CrossEntropy(ignore_index=-1)(clnn.zeros((2, 5, 3)), np.zeros((2, 4), int))
    with pytest.raises(
        clnn.DataError, match=r"\[1\] is -100, .* leave padding out by CrossEntropy\(ignore_index=-100\)"
    ):
        losses.CrossEntropy()(clnn.zeros((2, 3)), np.array([0, -100]))
    with pytest.raises(clnn.DataError, match="outside 0 to 2"):
        losses.CrossEntropy(ignore_index=-1)(clnn.zeros((2, 3)), np.array([0, -2]))
    with pytest.raises(
        clnn.ConfigurationError, match="hinge takes the outputs of a linear or tanh last layer.*'sigmoid'"
    ):
        losses.hinge(clnn.sigmoid(clnn.zeros((2, 3))), np.ones((2, 3)))
    with pytest.raises(clnn.ShapeError, match=r"sample_weight has the shape \(3,\).*needs \(2,\) or \(2, 3\)"):
        losses.cross_entropy(clnn.zeros((2, 3, 4)), np.zeros((2, 3), int), sample_weight=np.ones(3))


# -- what does not fit ------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("name", "output", "target"),
    [("mse", (4, 3), (4, 2)), ("mse", (4, 3), (3, 4)), ("mse", (4, 3), (4,)), ("quadratic", (4, 1), (1, 4)),
     ("quadratic", (4,), (4, 1)), ("cross_entropy", (4, 3), (4, 2)), ("binary_cross_entropy", (4, 2), (4,))],
)  # fmt: skip
def test_wrong_shapes_name_both(device, name, output, target):
    with pytest.raises(clnn.ShapeError) as error:
        LOSSES[name]()(clnn.zeros(output), np.zeros(target))
    assert str(output) in str(error.value) and str(target) in str(error.value) and name in str(error.value)


def test_wrong_labels(device):
    with pytest.raises(clnn.ShapeError, match=r"class numbers of shape \(5,\) do not fit outputs of shape \(4, 3\)"):
        losses.cross_entropy(clnn.zeros((4, 3)), np.zeros(5, int))
    with pytest.raises(clnn.ShapeError, match=r"mse: integers of shape \(4,\)"):
        losses.mse(clnn.zeros((4, 3)), np.zeros(4, int))
    for label in (-1, 3):
        with pytest.raises(clnn.DataError):
            losses.cross_entropy(clnn.zeros((4, 3)), np.array([0, 1, 2, label]))
    with pytest.raises(clnn.ShapeError, match=r"sample_weight has the shape \(3,\).*\(4, 3\)"):
        losses.mse(clnn.zeros((4, 3)), np.zeros((4, 3)), sample_weight=np.ones(3))
    with pytest.raises(clnn.ShapeError, match=r"no samples.*\(0, 3\)"):
        losses.mse(clnn.zeros((0, 3)), np.zeros((0, 3)))


@pytest.mark.parametrize("name", LOSSES)
def test_class_numbers_of_other_shapes(device, name):
    """Those of several axes have a loss where outputs are vectors, and elsewhere a remedy."""
    vectors = name in ("cross_entropy", "log_likelihood", "kl_divergence")
    for output, labels in (
        ((2, 3, 4), (2, 4)),
        ((2, 4, 3), (2, 3)),
        ((2, 3, 4), (2,)),
        ((4,), (4,)),
        ((2, 3, 4), (2, 3)),
    ):
        if not vectors or labels != output[:-1]:
            says = (
                "without the last axis|have no axis of classes"
                if vectors
                else "they need the shape|would be class|do not fit"
            )
            with pytest.raises(clnn.ShapeError, match=says):
                LOSSES[name]()(clnn.zeros(output), clnn.tensor(np.zeros(labels, int)))


MOVED = {
    "joined": lambda p: clnn.concatenate([p[:2], p], axis=0)[2:],
    "stacked": lambda p: clnn.stack([p, p])[1],
    "by numbers": lambda p: p[[0, 1, 2, 3]],
    "by a mask": lambda p: p[p > -1][:12].reshape(4, 3),
    "taken along": lambda p: clnn.take(p, [0, 1, 2], axis=1),
    "chosen": lambda p: clnn.where(p > 0.5, p, p),
    "the larger": lambda p: clnn.maximum(p, p),
    "the largest": lambda p: clnn.stack([p, p]).max(axis=0),
    "averaged": lambda p: clnn.Average()(p, p),
    "their mean": lambda p: clnn.stack([p, p], axis=1).mean(axis=1),
    "clipped": lambda p: clnn.clip(p, -1.0, 1.0),
    "pooled": lambda p: clnn.GlobalMaxPool()(clnn.stack([p, p], axis=2)),
    "averaged over windows": lambda p: clnn.avg_pool(clnn.UpSampling(2, "linear")(p.reshape(4, 3, 1)), 2)[:, :, 0],
    "averaged over bins": lambda p: clnn.AdaptiveAvgPool(1)(clnn.stack([p, p], axis=2)).reshape(4, 3),
    "times 1": lambda p: p * 1.0,
    "plus 0": lambda p: 0 + p,
    "to the power of 1": lambda p: p**1,
    "the others' others": lambda p: 1 - (np.ones(3) - p),
    "mixed": lambda p: 0.3 * p + np.full(3, 0.7) * p,
    "mixed by a product": lambda p: (np.array([[0.3, 0.7]]) @ clnn.stack([p, p], axis=1)).reshape(4, 3),
    "mixed by gates": lambda p: (clnn.stack([p / p] * 5, axis=1) / 5 * clnn.stack([p] * 5, axis=1)).sum(1),
    "half the sum": lambda p: (p + p) / 2,
    "over their sum": lambda p: p / (p / p).mean(-1, keepdims=True),
    "masked": lambda p: p * (p > -1),
    "padded": lambda p: clnn.pad(p.reshape(4, 1, 3), 1)[:, 0, 1:-1],
    "filled up": lambda p: clnn.concatenate([p, np.zeros((4, 1))], axis=1)[:, :3],
    "filled where": lambda p: clnn.masked_fill(p, p < -2, 0.5),
    "added up": lambda p: clnn.cumsum(clnn.stack([p, p], axis=1) / 2, axis=1)[:, 1],
    "of two types": lambda p: p.astype("float32") * 1.0,
    "dropped": lambda p: clnn.Dropout(1e-6)(p),
}


@pytest.mark.parametrize("how", MOVED)
def test_probabilities_that_were_moved_are_no_inputs_of_a_sigmoid_or_softmax(rng, device, how):
    z, labels = normal(rng, (4, 3)), rng.integers(0, 3, 4)
    yes = np.eye(3)[labels]
    p, one = 1 / (1 + np.exp(-z)), parameter(z)
    found = losses.binary_cross_entropy(MOVED[how](clnn.sigmoid(clnn.tensor(z, np.float32))), yes)
    assert_close(found, -np.where(yes > 0, np.log(p), np.log(1 - p)).sum(1).mean(), 1e-5)
    column = clnn.metrics.accuracy(MOVED[how](clnn.sigmoid(clnn.tensor(z, np.float32)))[:, :1], yes[:, 0].astype(int))
    np.testing.assert_array_equal(column.numpy(), (z[:, 0] > 0) == yes[:, 0])
    with pytest.raises(clnn.ConfigurationError, match="sigmoid's output p was reshaped, detached, joined or"):
        losses.binary_cross_entropy(MOVED[how](clnn.sigmoid(one)), yes)
    with pytest.raises(clnn.ConfigurationError, match="softmax's output p was reshaped, detached, joined or"):
        losses.cross_entropy(MOVED[how](clnn.softmax(one)), labels)
    assert_close(
        losses.cross_entropy(MOVED[how](clnn.tanh(one) + 0.0), yes),
        losses.cross_entropy(clnn.tanh(one) + 0.0, yes),
        1e-6,
    )


LOGITS = {"binary_cross_entropy": "log.p. - clnn.log.1 - p.", "cross_entropy": "log.p.", "kl_divergence": "log.p.",
          "log_likelihood": "log.p."}  # fmt: skip


@pytest.mark.parametrize("loss", LOGITS)
def test_an_array_of_probabilities_is_not_taken_for_logits(rng, device, loss):
    """`predict` gives arrays, which do not say what made them."""
    x, y = rng.standard_normal((6, 4)), np.eye(3, dtype="float32")[rng.integers(0, 3, 6)]
    end = "sigmoid" if loss == "binary_cross_entropy" else "softmax"
    net = clnn.Sequential([clnn.Dense(3, end)], input_shape=4, seed=1)
    p = net.predict(x)
    for given in (p, p.astype(np.float64), p.tolist(), p[:1]):
        with pytest.raises(
            clnn.ConfigurationError, match=f"{loss}: .*would be taken for logits.*; else clnn.{LOGITS[loss]} of"
        ):
            LOSSES[loss]()(given, y[: len(given)])
    with clnn.no_grad():
        want = LOSSES[loss]()(net(x), y)
    said = clnn.log(clnn.tensor(p)) - (clnn.log(1 - clnn.tensor(p)) if end == "sigmoid" else 0.0)
    assert_close(LOSSES[loss]()(said, y), want, 1e-5)
    for z in (p - 1, 3 * p, np.eye(3, 3)[:, [0, 2, 1]], np.zeros((6, 3)), clnn.tensor(p)):
        LOSSES[loss]()(z, y[: len(z)])


def test_accuracy_of_an_array_of_one_probability_for_each_sample(rng, device):
    x, y = rng.standard_normal((9, 4)), np.arange(9) % 2
    net = clnn.Sequential([clnn.Dense(1, "sigmoid")], input_shape=4, seed=1)
    for p in (net.predict(x), net.predict(x)[:, 0], net.predict(x).tolist()):
        with pytest.raises(
            clnn.ConfigurationError, match="accuracy: .*net.evaluate.*; else clnn.tensor.p - 0.5. of prob"
        ):
            clnn.metrics.accuracy(p, y)
    right = (net.predict_classes(x) == y).astype(np.float32)
    np.testing.assert_array_equal(clnn.metrics.accuracy(clnn.tensor(net.predict(x) - 0.5), y).numpy(), right)
    np.testing.assert_array_equal(
        clnn.metrics.accuracy(net.predict_classes(x)[:, None].astype("float32"), y).numpy(), right
    )


def test_what_adds_up_to_more_than_1_is_no_probability(rng, device):
    p, yes = clnn.sigmoid(clnn.tensor(np.full((3, 2), 1.0), np.float32)), np.ones((3, 2))
    for wrong in (p + p, p / 0.6, p + 0.9):
        with pytest.raises(clnn.DataError, match=r"the probabilities go from 1\..* should lie in .0, 1."):
            losses.binary_cross_entropy(wrong, yes)


@pytest.mark.parametrize(
    "how",
    [
        lambda p, x: p * x,
        lambda p, x: -3 * p,
        lambda p, x: p * np.array([1.0, -1.0, 1.0, 1.0]),
        lambda p, x: p + x,
        lambda p, x: 2 * p - 1,
        lambda p, x: p - p,
        lambda p, x: x / p,
        lambda p, x: p @ x.T,
    ],
)
def test_what_is_computed_with_more_than_probabilities_is_none(rng, device, how):
    """A gate's product, a residual and the like are scores as before."""
    x, yes = clnn.tensor(normal(rng, (4, 4)), np.float32), np.ones((4, 4))
    z = how(clnn.sigmoid(x + 1.0), x)
    scores = z.numpy().astype(np.float64)
    assert_close(losses.binary_cross_entropy(z, yes), np.log1p(np.exp(-scores)).sum(1).mean(), 1e-5)
    assert_close(losses.cross_entropy(z, yes), -(yes * log_softmax(scores)).sum(1).mean(), 1e-5)


def test_a_mixtures_logarithm_is_what_losses_take(rng, device):
    """As the errors say of probabilities that were computed with."""
    z, labels = normal(rng, (2, 5, 3)), rng.integers(0, 3, 5)
    yes = np.eye(3)[labels]
    p = np.exp(log_softmax(z[0])) * 0.3 + np.exp(log_softmax(z[1])) * 0.7
    want = -np.log(p[np.arange(5), labels]).mean()
    a, b = parameter(z[0]), parameter(z[1])
    mixed = lambda: clnn.softmax(a) * 0.3 + clnn.exp(clnn.log_softmax(b)) * 0.7  # noqa: E731
    with pytest.raises(clnn.ConfigurationError, match=r"or to clnn.log\(p\)$"):
        losses.cross_entropy(mixed(), labels)
    for name in ("cross_entropy", "log_likelihood", "kl_divergence"):
        loss = LOSSES[name]()(clnn.log(mixed()), labels if name != "kl_divergence" else yes.astype(np.float32))
        assert_close(loss, want, 1e-5)
        loss.backward()
    gated = clnn.softmax(a) * clnn.sigmoid(b)
    for name in ("cross_entropy", "kl_divergence", "log_likelihood", "binary_cross_entropy", "hinge"):
        with pytest.raises(clnn.ConfigurationError, match="softmax"):
            LOSSES[name]()(gated, yes.astype(np.float32))
    with pytest.raises(clnn.ConfigurationError, match=r"clnn.log\(p\) - clnn.log\(1 - p\)$"):
        losses.binary_cross_entropy(p := clnn.sigmoid(a) * 0.5 + 0.25, yes)
    found, known = losses.binary_cross_entropy(clnn.log(p) - clnn.log(1 - p), yes), p.numpy().astype(np.float64)
    assert_close(found, -np.where(yes > 0, np.log(known), np.log(1 - known)).sum(1).mean(), 1e-5)


def test_one_column_of_a_softmax_says_yes_above_a_half(rng, device):
    p, yes = clnn.softmax(clnn.tensor(normal(rng, (9, 2)), np.float32)), rng.integers(0, 2, 9)
    for column in (p[:, 1], p[:, 1:], (p * np.array([0.0, 1.0])).sum(-1), clnn.sqrt(p**2)[:, 1], abs(p)[:, 1:]):
        np.testing.assert_array_equal(clnn.metrics.accuracy(column, yes).numpy(), (p.numpy()[:, 1] > 0.5) == yes)


def test_heads_that_are_joined_say_yes_above_a_half(rng, device):
    x, h = rng.standard_normal((6, 3)), clnn.Input((3,))
    heads = [clnn.Dense(1, "sigmoid")(h), clnn.Dense(1, "sigmoid")(h)]
    net = clnn.Model(h, clnn.Concatenate()(*heads))
    assert np.array_equal(net.predict_proba(x), net.predict(x))
    with pytest.raises(
        clnn.ConfigurationError, match="joined or computed with; apply the loss before that, to linear outputs, or to"
    ):
        net.fit(x, x[:, :2] > 0, loss="binary_cross_entropy", optimizer="sgd", epochs=1, progress=False)


def test_wrong_last_layers(device):
    p = parameter(np.zeros((4, 3)))
    y = np.zeros((4, 3))
    with pytest.raises(clnn.ConfigurationError, match="not of 'sigmoid'; for a sigmoid there is binary_cross_entropy"):
        losses.cross_entropy(clnn.sigmoid(p), y)
    with pytest.raises(clnn.ConfigurationError, match="sigmoid or linear last layer, not of 'tanh'"):
        losses.binary_cross_entropy(clnn.tanh(p), y)
    with pytest.raises(clnn.ConfigurationError, match="softmax's output p was reshaped"):
        losses.cross_entropy(clnn.softmax(p).reshape(4, 3), y)
    with pytest.raises(clnn.ConfigurationError, match="sigmoid's output p was reshaped"):
        losses.binary_cross_entropy(clnn.sigmoid(p).reshape(4, 3), y)


# -- names ------------------------------------------------------------------------------------------------------------
MADE = [lambda: Huber(0.5), lambda: CrossEntropy(0.1), lambda: CrossEntropy(ignore_index=0, reduction="none")]
MADE += [lambda: losses.BinaryCrossEntropy([1.0, 2.0]), lambda: losses.BinaryCrossEntropy(0.0)]


@pytest.mark.parametrize("loss", [*LOSSES.values(), *MADE])
def test_config_makes_the_same_loss(loss):
    made = find_loss(json.loads(json.dumps(loss().config())))
    assert type(made) is type(loss()) and vars(made) == vars(loss())


def test_names():
    assert find_loss(losses.mse) is losses.mse and find_loss(normal) is normal  # any function of two or more
    with pytest.raises(clnn.ConfigurationError, match="no loss 'crossentropy'; the known ones are quadratic, mse"):
        find_loss("crossentropy")
    for wrong in (0, -1, np.inf, np.nan):
        with pytest.raises(clnn.ConfigurationError, match="delta"):
            Huber(wrong)
    for wrong in (-0.1, 1, np.nan):
        with pytest.raises(clnn.ConfigurationError, match="label_smoothing"):
            CrossEntropy(wrong)


@pytest.mark.oclgrind
def test_small_under_a_simulator(rng, device):
    z, labels = normal(rng, (3, 4)), rng.integers(0, 4, 3)
    check_op(
        rng,
        lambda z: losses.cross_entropy(z, labels),
        lambda z: mean(ROWS["cross_entropy"])(z, np.eye(4)[labels]),
        z,
        rounding=32,
    )
    check_op(
        rng,
        lambda z: losses.quadratic(z, labels),
        lambda z: mean(ROWS["quadratic"])(z, np.eye(4)[labels]),
        z,
        rounding=32,
    )
