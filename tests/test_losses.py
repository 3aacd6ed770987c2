"""Losses against NumPy in float64: values, gradients, weights, labels, extremes, and what does not fit."""

import numpy as np
import pytest
from helpers import assert_close, check_op, eps, host, normal, parameter

import clnn
from clnn import losses
from clnn.losses import LOSSES, CrossEntropy, Huber, find_loss
from clnn.ops.array import Array
from clnn.tensor import linear_layer, softmax_of


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
CLASSES = ("quadratic", "binary_cross_entropy", "cross_entropy", "log_likelihood")


def targets(rng, name, shape, dtype=np.float32):
    """Values that the loss takes."""
    t = normal(rng, shape, dtype)
    if name == "binary_cross_entropy":
        t = rng.random(shape)
    if name in ("cross_entropy", "log_likelihood"):
        t = rng.random(shape)
        t /= t.sum(axis=1, keepdims=True)
    return t.astype(dtype).astype(np.float64)


def outputs(rng, name, t, dtype=np.float32):
    """Random outputs where the loss is smooth."""
    y = 2 * normal(rng, t.shape, dtype)
    for kink in {"mae": (0,), "huber": (-1, 1)}.get(name, ()):
        y += np.where(np.abs(y - t - kink) < 0.01, 0.05, 0)
    return y.astype(dtype).astype(np.float64)


def mean(rows, weight=None):
    return lambda y, t: np.mean(rows(y, t) * (1 if weight is None else weight))


def test_every_loss_has_a_reference():
    assert set(ROWS) == set(LOSSES)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("shape", [(1, 1), (5, 3), (131, 10)], ids=str)
def test_values(rng, device, name, shape):
    if name == "cross_entropy" and shape[1] == 1:
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


@pytest.mark.parametrize("name", ["huber", "cross_entropy"])
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


@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize("name", ["cross_entropy", "log_likelihood"])
def test_softmax_is_applied_once(rng, device, name, log):
    x, w, labels = normal(rng, (6, 5)), normal(rng, (5, 4)), rng.integers(0, 4, 6)
    check_op(
        rng,
        lambda w: LOSSES[name]()(softmax_of(clnn.tensor(x, np.float32) @ w, log=log), labels),
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


@pytest.mark.parametrize("name", ["cross_entropy", "log_likelihood"])
def test_no_softmax_over_positions_and_classes_at_once(device, name):
    with pytest.raises(clnn.ShapeError, match=rf"{name}: outputs of shape \(2, 3, 4\) are not \(n, classes\)"):
        LOSSES[name]()(clnn.zeros((2, 3, 4)), np.zeros((2, 3, 4)))


def test_wrong_last_layers(device):
    p = parameter(np.zeros((4, 3)))
    y = np.zeros((4, 3))
    with pytest.raises(clnn.ConfigurationError, match="not of 'sigmoid'; for a sigmoid there is binary_cross_entropy"):
        losses.cross_entropy(clnn.sigmoid(p), y)
    with pytest.raises(clnn.ConfigurationError, match="sigmoid or linear last layer, not of 'tanh'"):
        losses.binary_cross_entropy(clnn.tanh(p), y)
    with pytest.raises(clnn.ConfigurationError, match="softmax's output was reshaped or detached"):
        losses.cross_entropy(clnn.softmax(p).reshape(4, 3), y)
    with pytest.raises(clnn.ConfigurationError, match="sigmoid's output was reshaped or detached"):
        losses.binary_cross_entropy(clnn.sigmoid(p).reshape(4, 3), y)


# -- names ------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("loss", [*LOSSES.values(), lambda: Huber(0.5), lambda: CrossEntropy(0.1)])
def test_config_makes_the_same_loss(loss):
    made = find_loss(loss().config())
    assert type(made) is type(loss()) and made.parameter == loss().parameter


def test_names():
    assert find_loss(losses.mse) is losses.mse and find_loss(test_names) is test_names
    with pytest.raises(clnn.ConfigurationError, match="no loss 'crossentropy'; the known ones are quadratic, mse"):
        find_loss("crossentropy")
    for wrong in (0, -1, np.inf, np.nan):
        with pytest.raises(clnn.ConfigurationError, match="delta"):
            Huber(wrong)
    for wrong in (-0.1, 1, np.nan):
        with pytest.raises(clnn.ConfigurationError, match="label_smoothing"):
            CrossEntropy(wrong)


@pytest.mark.platform("losses")
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
