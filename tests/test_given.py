"""What was given is used, or refused: labels, weights, targets, masks and indices, with the right values beside them."""

import copy
import operator

import numpy as np
import pytest

import clnn
from clnn import losses

MASKED = np.ma.array(np.ones((4, 3)), mask=np.eye(4, 3))


def head(outputs, activation=None, features=3, layers=(), weight=0.0):
    """A model whose last layer gives the same logits to every sample."""
    return clnn.Sequential([*layers, clnn.Dense(outputs, activation, weight_init=weight)], input_shape=features, seed=0)


def fitted(net, x, y, loss, **options):
    options = {"optimizer": clnn.SGD(0.0), "epochs": 1, "batch_size": 3, "progress": False, "shuffle": False, **options}
    return {name: values[-1] for name, values in net.fit(x, y, loss=loss, **options).history.items()}


def cross_entropies(z, labels):
    z = z.astype(np.float64)
    if z.shape[1] == 1:
        return np.logaddexp(0, z[:, 0]) - labels * z[:, 0]
    return np.log(np.exp(z).sum(1)) - z[np.arange(len(z)), labels]


# -- class weights and labels of one output ---------------------------------------------------------------------------
@pytest.mark.parametrize("activation", [None, "sigmoid"])
@pytest.mark.parametrize(
    "kind",
    [
        lambda y: y,
        lambda y: y.astype(bool),
        lambda y: y.astype(np.float64),
        lambda y: y[:, None],
        lambda y: y[:, None].astype(np.float32),
        lambda y: y.astype(np.uint8),
        lambda y: y.tolist(),
        lambda y: np.asfortranarray(y.astype(np.float64)[:, None]),
    ],
    ids=["int", "bool", "float", "column", "float column", "uint8", "list", "fortran"],
)
def test_class_weight_with_one_output(device, activation, kind):
    x, y = np.zeros((4, 3), np.float32), np.array([0, 1, 1, 1])
    found = fitted(head(1, activation), x, kind(y), "binary_cross_entropy", class_weight={0: 1, 1: 10})
    assert found["loss"] == pytest.approx(np.log(2) * (1 + 30) / 4, rel=1e-5)


@pytest.mark.parametrize("record", [True, False])
@pytest.mark.parametrize("activation", [None, "sigmoid"])
def test_integers_with_one_output_say_no_and_yes(rng, device, activation, record):
    x = rng.standard_normal((50, 3)).astype(np.float32)
    z = 3.0 * x[:, :1]
    labels = rng.integers(0, 2, 50)
    net = head(1, activation)
    net.layers[-1].load_state_dict({"w": np.array([[3.0], [0], [0]]), "b": np.zeros(1)})
    rel = 1e-4 if activation else 1e-5  # log(1 - a) of an a near 1
    want, right = cross_entropies(z, labels).mean(), np.mean((z[:, 0] > 0) == labels)
    for y in (labels, labels.astype(np.int64), labels[:, None].astype(np.float32)):
        found = net.evaluate(x, y, loss="binary_cross_entropy", metrics=["accuracy"])
        assert found["loss"] == pytest.approx(want, rel=rel) and found["accuracy"] == pytest.approx(right)
    found = fitted(net, x, labels, "binary_cross_entropy", batch_size=50, record=record)
    assert found["loss"] == pytest.approx(want, rel=rel) and found["accuracy"] == pytest.approx(right)
    assert np.mean(net.predict_classes(x) == labels) == pytest.approx(right)
    all_no = np.zeros(50, int)
    found = net.evaluate(x, all_no, loss="binary_cross_entropy")
    assert found["loss"] == pytest.approx(cross_entropies(z, all_no).mean(), rel=rel)
    assert found["accuracy"] == pytest.approx(np.mean(z <= 0))


def test_a_network_learns_from_integers_with_one_output(rng, device):
    x = rng.standard_normal((200, 4)).astype(np.float32)
    y = (x[:, 0] > x[:, 1]).astype(int)
    nets = [clnn.Sequential([clnn.Dense(1)], input_shape=4, seed=1) for _ in range(2)]
    for net, given in zip(nets, (y, y[:, None].astype(np.float32))):
        net.fit(
            x,
            given,
            loss="binary_cross_entropy",
            optimizer=clnn.SGD(0.5),
            epochs=5,
            batch_size=10,
            seed=2,
            progress=False,
        )
    np.testing.assert_array_equal(nets[0].predict(x), nets[1].predict(x))
    assert nets[0].evaluate(x, y)["accuracy"] > 0.9


def test_quadratic_of_one_sigmoid(device):
    y, t = clnn.sigmoid(clnn.tensor(np.zeros((3, 1)), requires_grad=True)), np.array([0, 1, 1])
    assert losses.quadratic(y, t).item() == pytest.approx(0.125)
    with pytest.raises(clnn.ConfigurationError, match=r"where it is a sigmoid's; of other outputs give .* floats"):
        losses.quadratic(clnn.zeros((3, 1)), t)


@pytest.mark.parametrize("y", [[0, 2, 1], [-1, 0, 1], [7, 7, 7]])
@pytest.mark.parametrize("loss", ["binary_cross_entropy", "quadratic"])
def test_labels_of_one_output_are_0_and_1(device, y, loss):
    with pytest.raises(clnn.DataError, match="outside 0 to 1, the labels of 2 classes"):
        fitted(head(1, "sigmoid"), np.zeros((3, 3)), np.array(y), loss)


@pytest.mark.parametrize("y", [[0, 1, 1], [[0.0], [1.0], [1.0]], [0.0, 1.0, 1.0]])
@pytest.mark.parametrize("loss", ["cross_entropy", losses.CrossEntropy(0.1), "kl_divergence"])
def test_cross_entropy_needs_two_classes(device, y, loss):
    net, x = head(1), np.zeros((3, 3), np.float32)
    with pytest.raises(clnn.ShapeError, match="take binary_cross_entropy for one output, or give the model an output"):
        fitted(net, x, np.array(y), loss)
    with pytest.raises(clnn.ShapeError, match="take binary_cross_entropy"):
        net.evaluate(x, np.array(y), loss=loss)
    with pytest.raises(clnn.ShapeError, match="take binary_cross_entropy"):
        losses.cross_entropy(net(x), np.array(y))


def test_class_weight_of_rows(device):
    x, labels = np.zeros((4, 3), np.float32), np.array([0, 2, 1, 2])
    weight = {0: 2.0, 2: 5.0}
    want = np.log(3) * (2 + 5 + 1 + 5) / 4
    for y in (labels, np.eye(3)[labels], np.eye(3, dtype=int)[labels], np.eye(3)[labels] * 0.9 + 0.1 / 3):
        assert fitted(head(3), x, y, "cross_entropy", class_weight=weight)["loss"] == pytest.approx(want, rel=1e-5)
    assert fitted(head(3), x, labels, "cross_entropy", class_weight={})["loss"] == pytest.approx(np.log(3), rel=1e-5)
    both = fitted(head(3), x, labels, "cross_entropy", class_weight=weight, sample_weight=[1, 2, 3, 4])
    assert both["loss"] == pytest.approx(np.log(3) * (2 + 10 + 3 + 20) / 4, rel=1e-5)


@pytest.mark.parametrize(
    ("weight", "says"),
    [
        ({3: 1.0}, r"names the class 3, and classes are 0 to 2"),
        ({-1: 1.0}, r"names the class -1"),
        ({"cat": 1.0}, r"names the class 'cat'"),
        ({1.0: 1.0}, r"names the class 1.0"),
        ({0: -1.0}, r"class_weight's 0 should be in \[0, inf\), -1.0"),
        ({0: float("nan")}, r"class_weight's 0 should be"),
        ({0: "2"}, r"class_weight's 0 should be"),
        ("even", r"class_weight maps class numbers to weights.*'even' was given"),
        ([1.0, 2.0, 3.0], r"class_weight maps class numbers"),
        (np.ones(3), r"class_weight maps class numbers"),
    ],
)  # fmt: skip
def test_class_weights_that_name_no_class(device, weight, says):
    with pytest.raises(clnn.ConfigurationError, match=says):
        fitted(head(3), np.zeros((4, 3)), np.array([0, 2, 1, 2]), "cross_entropy", class_weight=weight)


def test_class_weight_where_targets_are_no_classes(device):
    x = np.zeros((3, 3), np.float32)
    with pytest.raises(clnn.DataError, match=r"y\[0\] = \[1.0, 1.0, 0.0\] name no single class"):
        fitted(head(3), x, np.array([[1, 1, 0], [0, 1, 0], [0, 0, 0]]), "binary_cross_entropy", class_weight={0: 2})
    with pytest.raises(clnn.DataError, match="y.1. = .0.5. name no single class"):
        fitted(head(1), x, np.array([0, 0.5, 1]), "binary_cross_entropy", class_weight={0: 2})
    with pytest.raises(clnn.ConfigurationError, match="needs a loss of clnn's over classes; its others"):
        fitted(head(1), x, np.array([0.0, 1.0, 2.0]), "mse", class_weight={0: 2})


# -- sample weights and held-out samples ------------------------------------------------------------------------------
def test_validation_takes_weights(rng, device):
    x, y = rng.standard_normal((8, 3)).astype(np.float32), rng.integers(0, 3, 8)
    net, w = clnn.Sequential([clnn.Dense(3)], input_shape=3, seed=0), np.linspace(0, 2, 8)
    each = cross_entropies(net.predict(x), y)
    for held_out, want in (((x, y), each.mean()), ([x, y], each.mean()), ((x, y, w), (each * w).mean()),
                           ((x, y, None), each.mean())):  # fmt: skip
        assert fitted(net, x, y, "cross_entropy", validation=held_out)["val_loss"] == pytest.approx(want, rel=1e-5)
    found = fitted(net, x, y, "cross_entropy", validation_split=0.25, sample_weight=w, class_weight={0: 7.0})
    assert found["val_loss"] == pytest.approx((each * w)[6:].mean(), rel=1e-5)
    weights = w * np.where(y == 0, 7.0, 1.0)
    assert found["loss"] == pytest.approx((each * weights)[:6].mean(), rel=1e-5)


@pytest.mark.parametrize(
    ("validation", "error", "says"),
    [
        ((np.zeros((2, 3)), [0, 1], np.ones(3)), clnn.ShapeError, r"validation sample_weight has the shape \(3,\)"),
        ((np.zeros((2, 3)), [0, 1], [1.0, np.nan]), clnn.DataError, r"validation sample_weight\[1\] is nan"),
        ((np.zeros((2, 3)),), clnn.ConfigurationError, r"validation is \(x, y\) or \(x, y, sample_weight\)"),
        ((1, 2, 3, 4), clnn.ConfigurationError, r"validation is \(x, y\)"),
        (np.zeros((2, 3)), clnn.ConfigurationError, r"validation is \(x, y\)"),
    ],
)  # fmt: skip
def test_validation_that_is_none(device, validation, error, says):
    with pytest.raises(error, match=says):
        fitted(head(3), np.zeros((4, 3)), np.array([0, 1, 2, 0]), "cross_entropy", validation=validation)


@pytest.mark.parametrize(
    "weight, place",
    [
        ([1, 1, 0, -2], r"sample_weight\[3\] is -2"),
        ([-np.inf, 1, 1, 1], "sample_weight"),
        ([-0.5] * 4, r"\[0\] is -0.5"),
    ],
)
def test_negative_sample_weights(device, weight, place):
    """As class_weight's are: the model would be driven away from these targets, to a loss without a bound."""
    x, y, net = np.ones((4, 3)), [0, 1, 0, 1], head(2)
    for call in (
        lambda: fitted(net, x, y, "cross_entropy", sample_weight=weight),
        lambda: fitted(net, x, y, "cross_entropy", validation=(x, y, weight)),
        lambda: net.evaluate(x, y, loss="cross_entropy", sample_weight=weight),
        lambda: fitted(net, [(x, y, weight)], None, "cross_entropy", batch_size=None),
    ):
        with pytest.raises(clnn.DataError, match=place):
            call()
    with pytest.raises(clnn.DataError, match=r"sample_weight\[1, 0\] is -1: weights are 0"):
        fitted(
            clnn.Sequential([clnn.Dense(2)]),
            np.ones((2, 3, 4)),
            [[0, 1, 0]] * 2,
            "cross_entropy",
            sample_weight=[[1] * 3, [-1] * 3],
        )
    fitted(net, x, y, "cross_entropy", sample_weight=[0, 0, -0.0, 1])


@pytest.mark.parametrize(
    "bad",
    [np.ones((4, 1)), np.ones(3), 1.0, np.ones(4, complex), ["1"] * 4, MASKED[:, 0], [1.0, np.nan, 1, 1], [None] * 4],
)
def test_sample_weights_that_are_none(device, bad):
    net, x, y = head(3), np.zeros((4, 3), np.float32), np.array([0, 1, 2, 0])
    for call in (
        lambda: fitted(net, x, y, "cross_entropy", sample_weight=bad),
        lambda: net.evaluate(x, y, loss="cross_entropy", sample_weight=bad),
    ):
        with pytest.raises((clnn.DataError, clnn.ShapeError), match="sample_weight"):
            call()


# -- arrays that hide something ---------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "call",
    [
        lambda net, x, y, bad: net.predict(bad),
        lambda net, x, y, bad: net(bad),
        lambda net, x, y, bad: clnn.tensor(bad),
        lambda net, x, y, bad: clnn.tensor([bad, bad]),
        lambda net, x, y, bad: clnn.constant(bad),
        lambda net, x, y, bad: clnn.tensor(x) + bad,
            lambda net, x, y, bad: net.evaluate(x, bad, loss="mse"),
        lambda net, x, y, bad: fitted(net, bad, y, "cross_entropy"),
        lambda net, x, y, bad: fitted(net, x, bad, "quadratic"),
        lambda net, x, y, bad: fitted(net, x, y, "cross_entropy", validation=(bad, y)),
        lambda net, x, y, bad: losses.mse(net(x), bad),
        lambda net, x, y, bad: net.layers[0].load_state_dict({"w": bad[:3], "b": np.zeros(3)}),
        lambda net, x, y, bad: clnn.step(lambda a: a * 2)(bad),
        lambda net, x, y, bad: clnn.data.augment.shift(bad[None], 1, 0),
        lambda net, x, y, bad: clnn.take_rows(bad, [0]),
        lambda net, x, y, bad: clnn.tensor(x)[bad],
        lambda net, x, y, bad: clnn.tensor(x)[:, bad],
        lambda net, x, y, bad: clnn.metrics.accuracy(net(x), bad),
    lambda net, x, y, bad: clnn.metrics.confusion_matrix(bad[:, 0], y),
    lambda net, x, y, bad: clnn.metrics.report(y, bad[:, 0]),
    lambda net, x, y, bad: clnn.GradientNorms(bad, y),
    lambda net, x, y, bad: clnn.GradientNorms(x, bad),
    lambda net, x, y, bad: (fitted(net, x, y, "cross_entropy"), clnn.Ensemble([net]).evaluate(x, bad[:, 0])),
    ],
)  # fmt: skip
@pytest.mark.parametrize(
    "bad",
    [MASKED, np.ones((4, 3), complex), np.ones((4, 3)).astype(object), np.full((4, 3), "1")],
    ids=["masked", "complex", "object", "text"],
)
def test_arrays_that_hold_no_numbers(device, call, bad):
    with pytest.raises((clnn.DataError, clnn.ShapeError)):
        call(head(3), np.ones((4, 3), np.float32), np.array([0, 1, 2, 0]), bad)


@pytest.mark.parametrize(
    "kind",
    [
        np.asfortranarray,
        lambda x: np.repeat(x, 2, 0)[::2],
        lambda x: x[::-1].copy()[::-1],
        lambda x: x.astype(">f4"),
        lambda x: x.tolist(),
        lambda x: x.astype(np.float16),
        np.ma.array,
    ],
)
def test_arrays_of_every_make(rng, device, kind):
    x = rng.integers(-8, 8, (6, 3)).astype(np.float32)
    net = clnn.Sequential([clnn.Dense(2)], input_shape=3, seed=3)
    np.testing.assert_array_equal(net.predict(kind(x)), net.predict(x))
    np.testing.assert_array_equal(clnn.tensor(kind(x)), x)
    row = np.broadcast_to(x[0], (6, 3))  # of stride 0
    np.testing.assert_array_equal(net.predict(row), net.predict(row.copy()))
    pictures = rng.integers(0, 256, (6, 3), dtype=np.uint8)
    np.testing.assert_array_equal(net.predict(pictures), net.predict(pictures.astype(np.float32)))


# -- labels that are no classes ---------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["cross_entropy", "quadratic", "binary_cross_entropy", "log_likelihood"])
@pytest.mark.parametrize("labels", [[0, 3], [-1, 1], [0, 2**31 - 1], [-(2**31), 0]])
def test_labels_out_of_range(device, name, labels):
    loss = losses.find_loss(name)
    for given in (np.array(labels), labels, clnn.tensor(np.array(labels))):
        with pytest.raises(clnn.DataError, match="outside 0 to 2, the labels of 3 classes"):
            loss(clnn.zeros((2, 3)), given)


@pytest.mark.parametrize("as_tensor", [False, True])
@pytest.mark.parametrize("outputs", [3, 1])
@pytest.mark.parametrize("name", ["cross_entropy", "binary_cross_entropy"])
def test_labels_out_of_range_in_a_step(device, name, outputs, as_tensor):
    if outputs == 1 and name == "cross_entropy":
        outputs = 2
    net, loss, optimizer = head(outputs), losses.find_loss(name), clnn.SGD(0.1)
    x, classes = np.ones((2, 3), np.float32), max(2, outputs)

    @clnn.step
    def train(x, y):
        value = loss(net(x), y)
        value.backward()
        optimizer.step(net.parameters())
        return value

    given = clnn.tensor if as_tensor else np.asarray
    for _ in range(5):
        assert np.isfinite(train(x, given(np.array([0, 1]))).item())
    assert train.replays.launches()
    for bad in ([0, classes], [-1, 0]):
        before = net.state_dict()
        with pytest.raises(clnn.DataError, match=f"outside 0 to {classes - 1}, the labels of {classes} classes"):
            train(x, given(np.array(bad)))
        assert all(np.array_equal(before[name], value) for name, value in net.state_dict().items())
        assert np.isfinite(train(x, given(np.array([1, 0]))).item())


def test_values_out_of_range(device):
    z = clnn.zeros((3, 1))
    for bad in ([-1.0, 1, 1], [0.0, 1, 2], [[1], [2], [1]]):
        with pytest.raises(
            clnn.DataError, match=r"binary_cross_entropy: the targets go from .* should lie in \[0, 1\]"
        ):
            losses.binary_cross_entropy(z, np.array(bad))
        with pytest.raises(clnn.DataError, match=r"should lie in \[0, 1\]"):
            fitted(head(1), np.zeros((3, 3)), np.array(bad), "binary_cross_entropy")
    with pytest.raises(clnn.DataError, match="cross_entropy: the targets go from -1 to 1"):
        losses.cross_entropy(clnn.zeros((2, 2)), np.array([[-1.0, 1], [0, 1]]))
    losses.binary_cross_entropy(z, np.array([0.0, 1.0 + 1e-7, 0.5]))


# -- targets that learn -----------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", losses.LOSSES)
def test_targets_and_weights_that_learn_are_refused(device, name):
    loss = losses.find_loss(name)
    a, b = (clnn.tensor(np.full((4, 2), 0.5, np.float32), requires_grad=True) for _ in range(2))
    w = clnn.tensor(np.ones(4, np.float32), requires_grad=True)
    for call in (lambda: loss(a, b), lambda: loss(a, b * 1.0), lambda: loss(clnn.zeros((4, 2)), b)):
        with pytest.raises(clnn.ClnnError, match=r"the target depends on a parameter.*give target.detach\(\)"):
            call()
    with pytest.raises(clnn.ClnnError, match=r"sample_weight depends on a parameter.*give sample_weight.detach\(\)"):
        loss(a, b.detach(), w)
    loss(a, b.detach(), w.detach()).backward()
    assert a.grad is not None and b.grad is None
    with clnn.no_grad():
        assert np.isfinite(loss(a, b, w).item())
    b.trainable = False
    loss(a, b).backward()


# -- rows by index ----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("dtype", [np.float32, np.int32])
@pytest.mark.parametrize(
    "index", [[-1], [0, -3, 2], np.array([[0, 1], [2, -1]]), 1, np.array([], int), np.uint8([2]), []]
)
def test_take_rows_is_numpys(device, dtype, index):
    x = np.arange(12, dtype=dtype).reshape(3, 4)
    want = x[np.array(index, int)]
    np.testing.assert_array_equal(clnn.take_rows(clnn.tensor(x), index), want)
    np.testing.assert_array_equal(clnn.take_rows(clnn.tensor(x), clnn.tensor(np.array(index, np.int32))), want)
    np.testing.assert_array_equal(clnn.take_rows(x, index), want)


@pytest.mark.parametrize("bad", [3, -4, 500000000, 2**31 - 1, -(2**31), 2**40])
def test_take_rows_that_are_not_there(device, bad):
    x = clnn.tensor(np.arange(12, dtype=np.float32).reshape(3, 4))
    for index in ([0, bad], bad):
        with pytest.raises(IndexError, match=f"there is no row {bad} in an array of shape"):
            clnn.take_rows(x, index)
        if abs(bad) <= 2**31:
            with pytest.raises(clnn.OutOfRangeError, match=f"there is no row {bad}"):
                clnn.take_rows(x, clnn.tensor(np.array(index, np.int32)))


def test_take_rows_in_a_recorded_step(device):
    x = clnn.tensor(np.arange(12, dtype=np.float32).reshape(3, 4))
    labels = clnn.tensor(np.arange(3, dtype=np.int32))
    take = clnn.step(lambda index: (clnn.take_rows(x, index), clnn.take_rows(labels, index)))
    for _ in range(5):
        rows, names = take(np.array([0, -1]))
    np.testing.assert_array_equal(rows, x.numpy()[[0, -1]])
    np.testing.assert_array_equal(names, [0, 2])
    for bad in (3, -4, 500000000, -(2**31)):
        rows, names = take(np.array([1, bad]))
        np.testing.assert_array_equal(rows.numpy()[0], x.numpy()[1])
        assert np.isnan(rows.numpy()[1]).all() and names.numpy().tolist() == [1, -(2**31)]
        check_said(1)


def check_said(place):
    """The next that asks is told that a recorded step took a row that is not there."""
    with pytest.raises(clnn.OutOfRangeError, match=rf"names none of [34] rows.*: the first stands at place {place} of"):
        clnn.tensor(np.nan).item()
    assert np.isnan(clnn.tensor(np.nan).item()), "and it is told once"


@pytest.mark.parametrize(
    "take",
    [
        lambda x, i: clnn.take(x, i), lambda x, i: x[i], lambda x, i: clnn.take(x, i, 1), lambda x, i: clnn.gather(x, i, 1),
        lambda x, i: clnn.scatter_add(x, i.reshape(-1)[:7], clnn.ones((7, 4))),
    ],
    ids=["take", "key", "columns", "gather", "scatter_add"],
)  # fmt: skip
@pytest.mark.parametrize("place", [0, 3, 6])
def test_the_first_number_of_no_row_is_said(device, rng, take, place):
    """By what reads a NaN of the device, and where a step is looked at again, at its replays 1, 2, 4, 8 and so on."""
    x = clnn.tensor(rng.standard_normal((4, 4)).astype(np.float32))
    step, right = clnn.step(take), np.zeros((4, 2), np.int32)
    wrong = right.copy()
    wrong.flat[place:] = 4, *[-5] * (7 - place)
    for _ in range(6):
        step(x, clnn.tensor(right))
    assert clnn.tensor(np.nan).item() != 0
    step(x, clnn.tensor(wrong))
    check_said(place)
    with pytest.raises(clnn.OutOfRangeError, match=f"place {place} of"):
        for i in range(40):
            step(x, clnn.tensor(wrong if i == 20 else right))
    step(x, clnn.tensor(right))


@pytest.mark.parametrize("order", [1, -1])
def test_what_is_said_is_of_one_table(device, order):
    """Of two tables the rows that are said are those of the place that is said, whichever is read last."""
    tables = [clnn.tensor(np.ones((n, 2), np.float32)) for n in (3, 7)]

    step = clnn.step(lambda *given: [clnn.take(t, i) for t, i in [*zip(tables, given)][::order]])
    right = clnn.tensor(np.zeros(5, np.int32))
    for _ in range(3):
        step(right, right)
    step(clnn.tensor(np.int32([0, 0, 0, 9, 9])), clnn.tensor(np.int32([0, 9, 0, 0, 9])))
    with pytest.raises(clnn.OutOfRangeError, match="names none of 7 rows.*: the first stands at place 1 of"):
        clnn.tensor(np.nan).item()


def test_tokens_that_a_model_computes_are_looked_at(device, rng):
    """By `fit` and `evaluate`, which read the device at the end of an epoch, and by `predict`."""

    class Twice(clnn.Model):
        whole_inputs = True

        def __init__(self):
            self.letters, self.dense = clnn.Embedding(5, 3), clnn.Dense(2)

        def forward(self, x):
            return self.dense(self.letters(x * 2).reshape(x.shape[0], -1))

    x, y = rng.integers(0, 2, (40, 4)).astype(np.int32), rng.integers(0, 2, 40)
    net, how = Twice(), {"loss": "cross_entropy", "batch_size": 4}
    net.fit(x, y, optimizer="adam", epochs=2, **how)
    for _ in range(7):
        net.predict(x[:8])
    x[17] = 0, 4, 3, 0
    with pytest.raises(clnn.OutOfRangeError, match="names none of 5 rows.*: the first stands at place 5 of"):
        net.predict(x[16:24])
    with pytest.raises(clnn.OutOfRangeError, match="names none of 5 rows.*: the first stands at place 5 of"):
        net.predict(x, batch_size=4)
    f = net.compiled(batch_size=8)
    np.testing.assert_array_equal(f(x[:8]), net.predict(x[:8]))
    with pytest.raises(clnn.OutOfRangeError, match="names none of 5 rows.*: the first stands at place 5 of"):
        f(x[16:24])
    np.testing.assert_array_equal(f(x[:8]), net.predict(x[:8]))
    with pytest.raises(clnn.OutOfRangeError, match="names none of 5 rows.*: the first stands at place 5 of"):
        net.evaluate(x, y, **how)
    with pytest.raises(clnn.OutOfRangeError, match="names none of 5 rows.*: the first stands at place 5 of"):
        net.fit(
            x, y, optimizer="adam", epochs=1, shuffle=False, **how
        )  # not in the first batch, which is looked at at once


@pytest.mark.parametrize("bad", [9, -1, 2.5])
def test_lengths_among_the_inputs_of_fit_are_looked_at(device, rng, bad):
    """In batches that are replayed, too: a length of 2.5 was taken for 3, and others ended in Diverged."""

    class Net(clnn.Model):
        def __init__(self):
            self.rnn, self.dense = clnn.GRU(3), clnn.Dense(2)

        def forward(self, x, lengths):
            return self.dense(self.rnn(x, lengths))

    x, y, lengths = rng.random((40, 7, 2)), rng.integers(0, 2, 40), rng.integers(0, 8, 40).astype(float)
    how = {"loss": "cross_entropy", "optimizer": "adam", "batch_size": 4, "shuffle": False, "seed": 1}
    assert np.isfinite(Net().fit((x, lengths), y, **how).history["loss"]).all()
    lengths[30] = bad
    with pytest.raises(
        clnn.OutOfRangeError, match="a sequence's length none of 0 to 7: the first stands at place 2 of"
    ):
        Net().fit((x, lengths), y, **how)


@pytest.mark.parametrize("ignore", [None, -1])
def test_labels_that_a_step_computes_are_looked_at(device, rng, ignore):
    """As in a model of language, whose classes are the tokens but the first: what is no class made NaN without a word."""
    net, loss = clnn.Sequential([clnn.Dense(3)], input_shape=4, seed=0), clnn.losses.CrossEntropy(ignore_index=ignore)
    step, x = clnn.step(lambda x, tokens: loss(net(x), tokens[1:])), rng.random((6, 4)).astype(np.float32)
    right = np.array([9, 0, 1, 2, 0, 1, -1 if ignore else 2], np.int32)
    for _ in range(5):
        assert np.isfinite(step(x, right).item())
    wrong = right.copy()
    wrong[2] = 3
    with pytest.raises(clnn.OutOfRangeError, match="a class that names none of 3 rows.* place 1 of"):
        step(x, wrong).item()
    assert np.isfinite(step(x, right).item())


@pytest.mark.parametrize("bad", [[0.0], [1.7], [True, False, True], ["0"], [None]])
def test_rows_are_named_by_whole_numbers(device, bad):
    with pytest.raises((clnn.ShapeError, clnn.DataError), match="take"):
        clnn.take_rows(clnn.zeros((3, 2)), bad)
    with pytest.raises(clnn.ShapeError, match="take_rows: rows are named by whole numbers"):
        clnn.take_rows(clnn.zeros((3, 2)), clnn.zeros(2))
    with pytest.raises(clnn.ShapeError, match="take is along one of 0 axes: axis 0 is out of range"):
        clnn.take_rows(clnn.tensor(1.0), [0])


# -- classes of what made the output ----------------------------------------------------------------------------------
class Free(clnn.Model):
    """A model of one's own with an activation that no attribute names."""

    def __init__(self, outputs, end):
        self.dense, self.end = clnn.Dense(outputs), end

    def forward(self, x):
        return self.end(self.dense(x))


ENDS = {
    "flatten": lambda n, f: clnn.Sequential([clnn.Dense(n, f), clnn.Flatten()], input_shape=4, seed=1),
    "activation": lambda n, f: clnn.Sequential([clnn.Dense(n), clnn.Activation(f)], input_shape=4, seed=1),
    "reshape": lambda n, f: clnn.Sequential([clnn.Dense(n, f), clnn.Reshape((n, 1)), clnn.Flatten()], input_shape=4, seed=1),
    "nested": lambda n, f: clnn.Sequential([clnn.Dense(5), clnn.Sequential([clnn.Dense(n, f)])], input_shape=4, seed=1),
    "dropout": lambda n, f: clnn.Sequential([clnn.Dense(n, f), clnn.Dropout(0.0)], input_shape=4, seed=1),
    "residual": lambda n, f: clnn.Sequential([clnn.Dense(n), clnn.Residual([clnn.Dense(n)], activation=f)], input_shape=4, seed=1)
    if f != "softmax" else clnn.Sequential([clnn.Dense(n, f)], input_shape=4, seed=1),
    "own": lambda n, f: Free(n, getattr(clnn, f)),
}  # fmt: skip


@pytest.mark.parametrize("end", ENDS)
def test_classes_and_probabilities_of_what_made_the_output(rng, device, end):
    x = rng.standard_normal((40, 4)).astype(np.float32)
    yes = (x[:, 0] > 0).astype(np.float32)[:, None]
    net = ENDS[end](1, "sigmoid")
    if end in ("own", "activation", "nested", "residual"):  # the loss wants the sigmoid's own output in training
        net.fit(x, yes, loss="binary_cross_entropy", optimizer=clnn.SGD(1.0), epochs=40, progress=False, seed=1)
    p = net.predict(x)
    assert 0 < np.mean(p > 0.5) < 1
    np.testing.assert_array_equal(net.predict_classes(x), (p > 0.5)[:, 0])
    np.testing.assert_array_equal(net.predict_proba(x), p)
    net = ENDS[end](3, "softmax")
    p = net.predict(x)
    np.testing.assert_allclose(p.sum(1), 1, rtol=1e-5)
    np.testing.assert_array_equal(net.predict_proba(x), p)
    np.testing.assert_array_equal(net.predict_classes(x), p.argmax(1))


@pytest.mark.parametrize(
    "end", [lambda z: clnn.sigmoid(z) * 3.0, lambda z: 1.0 / (1.0 + clnn.exp(-z)), lambda z: z * 1.0]
)
def test_one_output_of_what_nobody_can_tell(rng, device, end):
    net, x = Free(1, end), rng.standard_normal((10, 4)).astype(np.float32)
    with pytest.raises(
        clnn.ConfigurationError, match="an unknown activation, trained with no loss yet, may say yes above 0 or"
    ):
        net.predict_classes(x)


def test_probabilities_of_linear_outputs_go_by_the_loss(rng, device):
    x = rng.standard_normal((10, 4)).astype(np.float32)
    for end in (lambda z: z, lambda z: z[:, :], lambda z: z * 1.0, lambda z: z.transpose().transpose()):
        net = Free(1, end)
        fitted(net, x, np.arange(10) % 2, "binary_cross_entropy")
        z = net.predict(x).astype(np.float64)
        np.testing.assert_allclose(net.predict_proba(x), 1 / (1 + np.exp(-z)), rtol=1e-5)
        np.testing.assert_array_equal(net.predict_classes(x), z[:, 0] > 0)
    net = head(1, features=4)
    fitted(net, x, np.zeros((10, 1)), "mse")
    with pytest.raises(clnn.ConfigurationError, match="one output of linear, trained with mse, may say yes above 0 or"):
        net.predict_classes(x)
    fitted(net, x, np.zeros((10, 1)), lambda y, t: ((y - t) ** 2).mean())
    with pytest.raises(clnn.ConfigurationError, match="trained with a loss of your own, may say yes above 0 or"):
        net.predict_classes(x)


@pytest.mark.parametrize("record", [True, False])
def test_labels_out_of_range_in_a_loss_of_ones_own(device, record):
    x, y = np.ones((8, 3), np.float32), np.array([0, 1, 2, 0, 1, 2, 0, 3])
    with pytest.raises((clnn.DataError, clnn.Diverged), match="outside 0 to 2|stopped being finite"):
        fitted(head(3), x, y, lambda out, t: losses.cross_entropy(out, t) * 2.0, batch_size=1, record=record)


def test_a_slice_of_a_sigmoid_is_no_logit(rng, device):
    """Part of a sigmoid's outputs are probabilities still: they are used as such, or refused, and never taken for logits."""
    x, y = rng.standard_normal((10, 4)).astype(np.float32), np.arange(10.0)[:, None] % 2
    net = Free(2, lambda z: clnn.sigmoid(z)[:, :1])
    p = net.predict(x).astype(np.float64)
    np.testing.assert_array_equal(net.predict_classes(x), p[:, 0] > 0.5)
    want = -(y * np.log(p) + (1 - y) * np.log(1 - p)).mean()
    assert net.evaluate(x, y, loss="binary_cross_entropy")["loss"] == pytest.approx(want, rel=1e-5)
    with pytest.raises(clnn.ConfigurationError, match="the sigmoid's output p was reshaped"):
        fitted(net, x, y, "binary_cross_entropy")
    with pytest.raises(clnn.ConfigurationError, match="the softmax's output p was reshaped"):
        losses.cross_entropy(clnn.softmax(clnn.zeros((3, 4)))[:, :2], np.array([0, 1, 1]))
    with pytest.raises(clnn.ConfigurationError, match="the softmax's output p was reshaped"):
        losses.log_likelihood(clnn.softmax(clnn.zeros((3, 4)))[:, :2], np.array([0, 1, 1]))


# -- arguments that are set later ------------------------------------------------------------------------------------------
CONV = lambda **o: clnn.Conv2D(4, 3, **o)  # noqa: E731
BLOCK = lambda **o: clnn.TransformerEncoderLayer(2, 6, **o)  # noqa: E731
SET = [  # a layer, its input, what is set, and the layer that it then is
    (CONV, (3, 8, 8), "stride", 2, CONV(stride=2)),
    (CONV, (3, 8, 8), "padding", (1, 2), CONV(padding=(1, 2))),
    (CONV, (3, 8, 8), "dilation", 2, CONV(dilation=2)),
    (CONV, (3, 8, 8), "activation", None, CONV()),
    (lambda: clnn.MaxPool2D(2), (3, 8, 8), "size", 4, clnn.MaxPool2D(4, stride=2)),
    (lambda: clnn.MaxPool2D(2), (3, 8, 8), "stride", 1, clnn.MaxPool2D(2, stride=1)),
    (lambda: clnn.Reshape((4, 5)), (20,), "shape", 20, clnn.Reshape(20)),
    (lambda: clnn.Dense(3, "tanh"), (5,), "activation", None, clnn.Dense(3)),
    (lambda: clnn.Residual([clnn.Flatten()], activation="relu"), (5,), "activation", None, clnn.Residual([clnn.Flatten()])),
    (lambda: clnn.Activation("elu"), (5,), "alpha", 0.5, clnn.Activation("elu", alpha=0.5)),
    (lambda: clnn.Conv1D(4, 3), (3, 8), "padding", "causal", clnn.Conv1D(4, 3, padding="causal")),
    (lambda: clnn.MultiHeadAttention(2), (5, 4), "causal", True, clnn.MultiHeadAttention(2, causal=True)),
    (lambda: clnn.MultiHeadAttention(2), (5, 4), "rotary", True, clnn.MultiHeadAttention(2, rotary=True)),
    (lambda: BLOCK(), (5, 4), "causal", True, BLOCK(causal=True)),
    (lambda: BLOCK(), (5, 4), "rotary", True, BLOCK(rotary=True)),
    (lambda: BLOCK(), (5, 4), "activation", "relu", BLOCK(activation="relu")),
    (lambda: BLOCK(), (5, 4), "norm_first", False, BLOCK(norm_first=False)),
    (lambda: clnn.LSTM(3), (5, 4), "activation", "relu", clnn.LSTM(3, activation="relu")),
    (lambda: clnn.LSTM(3), (5, 4), "go_backwards", True, clnn.LSTM(3, go_backwards=True)),
    (lambda: clnn.GRU(3), (5, 4), "return_sequences", True, clnn.GRU(3, return_sequences=True)),
]  # fmt: skip


@pytest.mark.parametrize(("make", "shape", "key", "value", "twin"), SET, ids=lambda v: v if isinstance(v, str) else "")
def test_a_layers_arguments_may_be_set_as_its_constructor_takes_them(device, rng, make, shape, key, value, twin):
    net, x = clnn.Sequential([make()], input_shape=shape), rng.standard_normal((2, *shape)).astype(np.float32)
    for _ in range(4):
        net.predict(x)
    setattr(net.layers[0], key, value)
    other = clnn.Sequential([copy.deepcopy(twin)], input_shape=shape)  # built on this device alone
    other.load_state_dict(net.state_dict())
    for _ in range(4):
        assert np.array_equal(net.predict(x), other.predict(x))
    assert repr(net.layers[0]) == repr(twin)


@pytest.mark.parametrize("make", [BLOCK, lambda **o: clnn.MultiHeadAttention(2, **o), lambda **o: clnn.GRU(4, **o)])
def test_dropout_that_is_set_later_drops(device, rng, make):
    x = clnn.tensor(rng.standard_normal((2, 5, 4)).astype(np.float32))
    layer = make(dropout=0.0)
    before = layer(x).numpy()
    layer.dropout = 0.5
    assert not np.array_equal(layer(x).numpy(), before)
    layer.dropout = 0.0
    np.testing.assert_array_equal(layer(x).numpy(), before)


@pytest.mark.parametrize(
    ("make", "shape", "key", "value", "words"),
    [
        (CONV, (3, 8, 8), "stride", 0, "Conv2D's stride should be"),
        (CONV, (3, 8, 8), "padding", -1, "Conv2D's padding should be"),
        (CONV, (3, 8, 8), "activation", "nope", "there is no activation"),
        (CONV, (3, 8, 8), "kernel", 5, "made its parameters with kernel=.3, 3.*new layer"),
        (CONV, (3, 8, 8), "channels", 5, "made its parameters with channels=4"),
        (lambda: clnn.Dense(3), (5,), "size", 4, "made its parameters with size=3"),
        (lambda: clnn.Dense(3), (5,), "bias", False, "made its parameters with bias=True"),
        (lambda: clnn.Dense(3), (5,), "w", np.ones((5, 3)), "w is a parameter.*load_state_dict"),
        (lambda: clnn.Dense(3), (5,), "b", clnn.ones(3), "b is a parameter.*requires_grad"),
        (lambda: clnn.Dropout(0.5), (5,), "rate", 1.5, "Dropout's rate should be in"),
        (lambda: clnn.BatchNorm(), (5,), "momentum", 2.0, "BatchNorm's momentum should be in"),
        (lambda: clnn.BatchNorm(), (5,), "affine", False, "made its parameters with affine=True"),
        (lambda: clnn.LayerNorm(), (5,), "epsilon", -1.0, "LayerNorm's epsilon should be in"),
        (lambda: clnn.MaxPool2D(2), (3, 8, 8), "size", 0, "MaxPool2D's size should be"),
    ],
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_what_a_layer_cannot_become_is_refused_when_set(device, make, shape, key, value, words):
    net = clnn.Sequential([make()], input_shape=shape)
    before = repr(net.layers[0])
    with pytest.raises(clnn.ConfigurationError, match=words):
        setattr(net.layers[0], key, value)
    assert repr(net.layers[0]) == before


@pytest.mark.parametrize(
    ("make", "name", "value", "words"),
    [
        (clnn.SGD, "momentum", 1.5, "momentum should be in"),
        (clnn.SGD, "momentum", float("nan"), "momentum should be in"),
        (clnn.SGD, "weight_decay", -1, "weight_decay should be in"),
        (clnn.SGD, "clip_norm", 0, "clip_norm should be in"),
        (clnn.SGD, "nesterov", True, "needs a momentum above 0"),
        (clnn.Adam, "beta1", 1.0, "Adam beta1 should be in"),
        (clnn.optim.LAMB, "epsilon", 0.0, "LAMB epsilon should be in"),
        (clnn.optim.RMSprop, "alpha", "a", "RMSprop alpha should be in"),
        (clnn.SGD, "learning_rate", 0.1, "SGD has no setting 'learning_rate'; there are .*lr, momentum"),
        (clnn.Adam, "momentum", 0.1, "Adam has no setting 'momentum'"),
    ],
)
def test_an_optimizers_settings_are_checked_when_set(make, name, value, words):
    optimizer = make(0.1)
    before = optimizer.config()
    with pytest.raises(clnn.ConfigurationError, match=words):
        setattr(optimizer, name, value)
    assert optimizer.config() == before


def test_a_losss_arguments_may_be_set(rng, device):
    x, y, labels = rng.standard_normal((5, 4)), 3 * rng.standard_normal((5, 4)), np.array([0, 1, 2, 3, 0])
    huber, entropy = losses.Huber(), losses.CrossEntropy()
    huber.delta, entropy.label_smoothing = 2.5, 0.3
    assert float(huber(x, y)) == float(losses.Huber(2.5)(x, y)) != float(losses.huber(x, y))
    assert float(entropy(x, labels)) == float(losses.CrossEntropy(0.3)(x, labels))
    with pytest.raises(clnn.ConfigurationError, match="delta should be in"):
        huber.delta = 0.0
    with pytest.raises(clnn.ConfigurationError, match="label_smoothing should be in"):
        entropy.label_smoothing = 1.0


def test_a_tensors_elements_are_not_assigned(device):
    t = clnn.tensor(np.ones((2, 2)), requires_grad=True)
    with pytest.raises(clnn.ClnnError, match="load_state_dict"):
        t[0] = 3.0


@pytest.mark.parametrize("change", [operator.iadd, operator.isub, operator.imul, operator.itruediv])
def test_a_loop_that_changes_parameters_in_place_does_not_pass_for_training(device, change):
    """`p -= lr * p.grad` trains in PyTorch; here it would name another tensor, and the model would stay as it is."""
    net = head(2)
    with clnn.no_grad(), pytest.raises(clnn.ClnnError, match=r"optimizer's step.*load_state_dict"):
        for p in net.parameters():
            p = change(p, 0.5)  # what p -= 0.5 does
    t = start = clnn.tensor([1.0, 2.0])
    t = change(t, 2.0)
    expected = change(np.array([1.0, 2.0]), 2.0)
    assert (t.numpy() == expected).all() and (start.numpy() == [1.0, 2.0]).all()


def one_layer(shape, layer):
    return clnn.Sequential([layer], input_shape=shape, seed=0)


@pytest.mark.parametrize(
    ("make", "given", "said"),
    [
        (lambda: one_layer(4, clnn.Dense(2)), (4,), r"shape \(4,\), that of a sample alone: give x\[None\]$"),
        (lambda: one_layer(4, clnn.Dense(2)), (60, 3), r"x has the shape \(60, 3\)$"),
        (lambda: one_layer((1, 8, 8), clnn.Conv2D(2, 3)), (1, 8, 8), r"\(1, 8, 8\), that of a sample alone"),
        (lambda: one_layer((1, 8, 8), clnn.Conv2D(2, 3)), (5, 8, 8), r"x has the shape \(5, 8, 8\)$"),
        (lambda: one_layer((3, 4), clnn.LSTM(2)), (3, 4), r"\(3, 4\), that of a sample alone"),
    ],
)
def test_shapes_that_a_model_does_not_take_are_told_as_they_were_given(device, make, given, said):
    """Layers see a batch of one first, and speak of that."""
    net, x = make(), np.zeros(given, np.float32)
    for call in (net.predict, net.predict_classes, lambda x: net.evaluate(x, x, loss="mse")):
        with pytest.raises(clnn.ShapeError, match=said):
            call(x)
    assert len(net.predict(np.zeros((2, *net._input_shapes[0]), np.float32))) == 2


@pytest.mark.parametrize("shape", [(4, 4), (2, 4)])
def test_an_array_of_a_samples_shape_is_a_batch_where_the_model_takes_it(device, rng, shape):
    net, x = one_layer((4, 4), clnn.Dense(2)), rng.standard_normal(shape).astype(np.float32)
    np.testing.assert_allclose(net.predict(x), x @ net.state_dict()["0.w"], rtol=1e-5, atol=1e-6)


# -- losses and metrics of one's own, and accuracy ----------------------------------------------------------------------
def squares(out, t):
    return ((out - t) ** 2).mean()


def off(out, t):
    return abs(t - out)


@pytest.mark.parametrize("record", [True, False])
@pytest.mark.parametrize("shape", [(7,), (7, 1, 1)], ids=str)
def test_targets_of_another_shape_pair_no_samples_in_ones_own_loss(rng, device, shape, record):
    """(n, 1) less (n,) is (n, n): every sample against every other (pytorch #19699, tensorflow #37770)."""
    net, x, y = head(1, weight="ones"), rng.random((7, 3)), rng.random(7).astype(np.float32)
    want = np.mean((x.sum(1) - y) ** 2)
    for call in (
        lambda: fitted(net, x, y.reshape(shape), squares, record=record),
        lambda: fitted(net, x, y.reshape(shape), lambda out, t: (t * out).mean(), record=record),
        lambda: net.evaluate(x, y.reshape(shape), loss=squares),
        lambda: net.evaluate(x, y.reshape(shape), loss=lambda out, t: out.mean(), metrics=[off]),
    ):
        with pytest.raises(
            clnn.ShapeError, match=r"of a mini-batch, shapes .* each sample against every other; bring both"
        ):
            call()
    right = [
        (y[:, None], squares),
        (y, lambda out, t: squares(out[:, 0], t)),
        (y, lambda out, t: squares(out, t.reshape(-1, 1))),
    ]
    for given, loss in right:
        assert fitted(net, x, given, loss, batch_size=7)["loss"] == pytest.approx(want, rel=1e-5)
        assert net.evaluate(x, given, loss=loss)["loss"] == pytest.approx(want, rel=1e-5)
    assert fitted(net, x, y, "mse", metrics=[off])["off"] == pytest.approx(np.abs(x.sum(1) - y).mean(), rel=1e-5)


def named(name):
    """A metric of that name."""
    return type("Named", (), {"__call__": lambda self, y, t: off(y, t), "__name__": name})()


def test_a_name_that_begins_as_those_of_validation_do(device):
    x, y = np.ones((3, 3)), np.ones((3, 2))
    found = fitted(head(2), x, y, "mse", metrics=[named("val_of_my_own"), off], validation=(x, 2 * y))
    assert found["val_of_my_own"] == found["off"] and found["val_val_of_my_own"] == found["val_off"] != found["off"]


@pytest.mark.parametrize(
    ("metrics", "says"),
    [
        ("accuracy", "metrics is a list"), (off, "metrics is a list"), ([None], "no metric None"), ([5], "no metric 5"),
        ([lambda y, t: y, lambda y, t: t], "a metric called '<lambda>' would be reported as another is"),
        ([type("loss", (), {"__call__": lambda self, y, t: y, "__name__": "loss"})()], "a metric called 'loss'"),
        ([named("val_loss")], "a metric called 'val_loss' would be reported as another is"),
        ([named("val_lr")], "'val_lr'"), ([named("val_accuracy")], "'val_accuracy'"),
        ([named("val_off"), off], "'val_off'"), (["top_2", named("val_top_2")], "'val_top_2'"),
        ([lambda y, t: 1.0], "should return a float32 tensor"), ([lambda y, t: np.ones(3)], "NumPy's go into a callback"),
        ([lambda y, t: y.argmax()], "should return a float32 tensor.*a == b, is one of floats"),
        ([lambda y, t: y[:2]], "should return a float32 tensor with a value for each sample"),
    ],
)  # fmt: skip
def test_metrics_that_are_none(device, metrics, says):
    net, x, y = head(2), np.ones((3, 3)), np.array([0, 1, 1])
    for call in (
        lambda: fitted(net, x, y, "cross_entropy", metrics=metrics),
        lambda: net.evaluate(x, y, loss="cross_entropy", metrics=metrics),
    ):
        with pytest.raises(clnn.ConfigurationError, match=says):
            call()


def test_accuracy_of_what_names_no_classes(rng, device):
    x = rng.random((6, 3))
    for loss in ("mse", "quadratic", squares):
        with pytest.raises(clnn.ConfigurationError, match="one output of linear, trained with .* above 0 or above 1/2"):
            fitted(head(1), x, np.ones((6, 1)), loss, metrics=["accuracy"])
        fitted(head(1, "sigmoid"), x, np.ones((6, 1)), loss, metrics=["accuracy"])
    several = np.array([[1, 1, 0]] * 6)
    for call in (
        lambda: fitted(head(3), x, several, "binary_cross_entropy", metrics=["accuracy"]),
        lambda: head(3).evaluate(x, several, loss="binary_cross_entropy", metrics=["accuracy"]),
    ):
        with pytest.raises(
            clnn.DataError, match=r"accuracy: the targets y\[0\] = \[1.0, 1.0, 0.0\] name no single class"
        ):
            call()


@pytest.mark.parametrize("metric", [clnn.metrics.accuracy, clnn.metrics.top_k(1)])
def test_metrics_of_targets_that_do_not_fit(rng, device, metric):
    for out, target in (((3, 2), (2, 3)), ((6, 1), (2, 3)), ((2, 3), (6,)), ((2, 3, 4), (2, 4, 3))):
        with pytest.raises(clnn.ShapeError, match="do not fit outputs of shape"):
            metric(clnn.zeros(out), clnn.zeros(target))
    with pytest.raises(clnn.ShapeError, match="takes floats, not int32"):
        metric(clnn.tensor([[0, 1]]), np.array([1]))
    with pytest.raises(clnn.DataError, match="outside 0 to 1"):
        metric(np.zeros(6, np.float32), np.array([0, 1, 5, 0, 0, 0]))
    rows, classes = rng.random((2, 3, 4)).astype(np.float32), rng.integers(0, 4, (2, 3))
    right = rows.argmax(-1) == classes
    np.testing.assert_array_equal(metric(rows, np.eye(4)[classes]), right)
    np.testing.assert_array_equal(metric(rows, clnn.tensor(classes)), right)


def test_confusion_of_small_integers(device):
    labels = np.array([199, 3], np.uint8)
    assert np.trace(clnn.metrics.confusion_matrix(labels, labels)) == 2
    with pytest.raises(clnn.DataError, match="the largest label is 1000000000: renumber"):
        clnn.metrics.confusion_matrix([10**9], [0])


# -- the rest of what fit and models are given --------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"callbacks": [clnn.EarlyStopping]}, "callbacks is a list of clnn.Callback objects"),
        ({"callbacks": [print]}, "callbacks is a list of clnn.Callback objects.*functions to clnn.Lambda"),
        ({"callbacks": [clnn.Cosine(0.1)]}, r"not Cosine\(lr=0.1, .*\); schedules go to lr"),
        ({"validation_split": "0.2"}, r"validation_split should be in \[0, 1\), '0.2'"),
        ({"loss": ["mse"]}, "there is no loss"), ({"loss": losses.MeanSquaredError}, "there is no loss"),
        ({"loss": {"loss": "nope"}}, "there is no loss"), ({"optimizer": ["sgd"]}, "there is no optimizer"),
        ({"optimizer": clnn.SGD}, "there is no optimizer"),
        *[({"optimizer": one}, rf"{one} takes steps by the loss of all data at once.*clnn.{one}\(\).minimize\(lambda")
          for one in ("LBFGS", "HessianFree")],
        *[({"optimizer": one}, r"call clnn.LBFGS\(\).minimize\(lambda: loss\(net\(x\), y\), net.parameters\(\), steps=50\)")
          for one in ("lbfgs", "l-bfgs", clnn.LBFGS)],
        ({"optimizer": clnn.LBFGS()}, "all data at once"), ({"optimizer": clnn.HessianFree()}, "clnn.HessianFree"),
    ],
)  # fmt: skip
def test_options_of_fit_that_are_none(device, options, says):
    with pytest.raises(clnn.ConfigurationError, match=says):
        fitted(head(2), np.ones((3, 3)), np.ones((3, 2)), **{"loss": "mse", **options})


@pytest.mark.parametrize(
    ("loss", "says"),
    [
        (lambda y, t: (y - t) ** 2, r"the samples' mean, not a tensor of shape \(3, 2\)"),
        (lambda y, t: np.float32(1), "the samples' mean, not float32"),
        (lambda y, t: None, "not NoneType"),
    ],
)
def test_what_a_loss_of_your_own_returns(device, loss, says):
    with pytest.raises(clnn.ShapeError, match=f"^a loss of your own returns a tensor of one number, .*{says}$"):
        fitted(head(2), np.ones((3, 3)), np.ones((3, 2)), loss)


class ByNumPy(clnn.Layer):
    def forward(self, x):
        return np.asarray(x) * 2


def test_a_forward_that_returns_an_array_of_numpy(device):
    """What came before such a layer was not trained, and nothing said so."""
    x, y = np.ones((4, 3)), np.ones((4, 2))
    with pytest.raises(
        clnn.ConfigurationError, match="by_num_py_1: forward returned an array of NumPy, which takes no gradient"
    ):
        fitted(clnn.Sequential([clnn.Dense(2), ByNumPy(), clnn.Dense(2)], input_shape=3), x, y, "mse")
    first = clnn.Sequential([ByNumPy(), clnn.Dense(2)], input_shape=3)  # where nothing learns before it
    fitted(first, x, y, "mse", record=False)
    with clnn.no_grad():  # nor where nothing learns
        assert np.array_equal(ByNumPy()(first.layers[1](x)), 2 * first.layers[1](x).numpy())


@pytest.mark.parametrize("returned", [None, 2.0, "x", (None, 1.0)])
def test_a_forward_that_returns_no_tensor(device, returned):
    """Where `return` was forgotten, "'NoneType' object is not iterable" was all that was said."""
    layer = type("Mine", (clnn.Layer,), {"forward": lambda self, x: returned})
    kind = type(returned).__name__
    for layers in ([layer()], [clnn.Dense(2), layer(), clnn.Dense(2)]):
        with pytest.raises(
            clnn.ConfigurationError, match=rf"mine_1: forward\(\) returned {kind} and no tensor; .*return"
        ):
            clnn.Sequential(layers, input_shape=3)


def test_one_callback_and_none(device):
    seen = []
    one = clnn.Callback()
    one.on_epoch_end = lambda model, epoch, logs: seen.append(epoch)
    fitted(head(2), np.ones((3, 3)), np.ones((3, 2)), "mse", callbacks=one)
    fitted(head(2), np.ones((3, 3)), np.ones((3, 2)), "mse", callbacks=None)
    assert seen == [0]


def test_layers_of_a_model(device):
    assert len(clnn.Sequential(clnn.Dense(2) for _ in range(3)).layers) == 3
    for wrong in (clnn.Dense(2), None, [], (layer for layer in ()), [clnn.Dense]):
        with pytest.raises(clnn.ConfigurationError, match="Sequential takes a list of one or more layers"):
            clnn.Sequential(wrong)
    for net in (head(2), clnn.Sequential([clnn.Dense(2)])):
        with pytest.raises(clnn.ShapeError, match="an x that is a tuple stands for several inputs"):
            net.predict(((1.0, 2.0, 3.0), (1.0, 2.0, 3.0)))


@pytest.mark.parametrize(
    "init",
    [lambda *_: np.ones((1, 1)), lambda *_: clnn.ones((2, 3)), lambda shape, *_: clnn.zeros(shape, "int32"), np.nan,
     np.inf, True, np.ones((3, 2)), ["ones"]],
)  # fmt: skip
def test_initialisers_that_are_none(device, init):
    with pytest.raises(clnn.ConfigurationError, match="initialiser"):
        head(2, weight=init)


def test_an_initialiser_may_return_an_array(device):
    net = head(2, weight=lambda shape, *_: np.arange(6.0).reshape(shape))
    np.testing.assert_array_equal(net.layers[0].w, np.arange(6.0).reshape(3, 2))


@pytest.mark.parametrize("value", [np.ones((3, 2), np.float32), 1.0, "tensor", "scaled"])
def test_nothing_takes_a_parameters_place(device, value):
    """`layer.w = 0.5 * layer.w` would leave a tensor that is neither trained nor saved."""
    net = head(2)
    with pytest.raises(clnn.ConfigurationError, match="dense_1: w is a parameter, and .* neither be trained nor saved"):
        if isinstance(value, str) and value == "scaled":
            net.layers[0].w = 0.5 * net.layers[0].w
        else:
            net.layers[0].w = clnn.ones((3, 2)) if isinstance(value, str) else value
    with pytest.raises(clnn.ClnnError, match="not changed in place"):
        net.layers[0].w *= 0.5
    assert [name for name, _ in net.named_parameters()] == ["0.w", "0.b"]


def test_parameters_of_an_optimizer(device):
    p = clnn.tensor([1.0], requires_grad=True)
    (p * p).sum().backward()
    clnn.SGD(0.25).step([p, p])  # a layer that two models share
    assert p.item() == 0.5
    for wrong in ([clnn.ones(1)], p, [head(2)]):
        with pytest.raises(clnn.ConfigurationError, match="an optimizer takes a list of parameters"):
            clnn.SGD(0.1).step(wrong)


# -- classes of one's own, whose methods are called, or which are refused ---------------------------------------------
class CalledTwice(clnn.Dense):
    def __call__(self, x):
        return super().__call__(super().__call__(x))


class Doubled(clnn.Sequential):
    def __call__(self, x):
        return super().__call__(x) * 2.0


def test_fit_evaluate_and_predict_call_a_model_as_everyone_does(rng, device):
    x, y = rng.standard_normal((2, 12, 3)).astype(np.float32)
    net = Doubled([CalledTwice(3)], input_shape=3, seed=0)
    with clnn.no_grad():
        want = net(x).numpy()
    np.testing.assert_allclose(net.predict(x, batch_size=5), want, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(net.compiled(12)(x), want, rtol=1e-5, atol=1e-6)
    mean = np.mean((want.astype(np.float64) - y) ** 2)
    assert net.evaluate(x, y, loss="mse")["loss"] == pytest.approx(mean, rel=1e-5)
    assert fitted(net, x, y, "mse", batch_size=4)["loss"] == pytest.approx(mean, rel=1e-5)


class Folded(clnn.BatchNorm):
    def __call__(self, x):
        return super().__call__(x) * 2.0


def test_a_convolution_takes_no_layer_of_ones_own_into_its_launch(rng, device):
    x = rng.standard_normal((2, 1, 4, 4)).astype(np.float32)
    plain, own = (
        clnn.Sequential([clnn.Conv2D(2, 3), one], input_shape=(1, 4, 4), seed=0) for one in (clnn.BatchNorm(), Folded())
    )
    np.testing.assert_allclose(own.predict(x), 2.0 * plain.predict(x), rtol=1e-6)


class OwnCall(losses.Huber):
    def __call__(self, output, target):
        return super().__call__(output, target) * 3.0


class NoName(losses.Loss):
    def forward(self, output, target):
        return ((output - target) ** 2).mean()


class OwnStep(clnn.SGD):
    def step(self, parameters=None):
        super().step(parameters[:1])


@pytest.mark.parametrize("one", [OwnCall, NoName, OwnStep])
def test_methods_that_fit_would_not_call_are_refused(device, one):
    """They would have no effect, without a word."""
    net, x = head(3), np.ones((4, 3), np.float32)
    given = {"optimizer": one(0.1)} if one is OwnStep else {}
    loss = "mse" if given else one()
    with pytest.raises(clnn.ConfigurationError, match=f"{one.__name__}.*(__call__|fit does not call)"):
        fitted(net, x, x[:, :3], loss, **given)
    if not given:
        with pytest.raises(clnn.ConfigurationError, match="rows"):
            net.evaluate(x, x[:, :3], loss=loss)
