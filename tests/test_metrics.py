"""Metrics by sample against NumPy, and by class against scikit-learn."""

import numpy as np
import pytest
from helpers import normal, parameter

import clnn
from clnn import metrics
from clnn.metrics import accuracy, confusion_matrix, find_metric, metric_name, report, top_k


@pytest.mark.parametrize("n", [1, 2, 10])
@pytest.mark.parametrize("rows", [0, 1, 131])
def test_accuracy(rng, device, rows, n):
    y, labels = normal(rng, (rows, n)), rng.integers(0, max(2, n), rows)  # of one output: no and yes
    found = y.argmax(axis=1) if n > 1 else y[:, 0] > 0
    expected = (found == labels).astype(np.float32)
    arrays = [y.astype(np.float32)] * (y.size != 1)  # one number alone may be a probability
    for output in (clnn.tensor(y, np.float32), *arrays):
        for target in (labels, clnn.tensor(labels)):
            got = accuracy(output, target).numpy()
            assert got.dtype == np.float32
            np.testing.assert_array_equal(got, expected)
    if n > 1:
        np.testing.assert_array_equal(accuracy(y.astype(np.float32), np.eye(n)[labels]).numpy(), expected)


@pytest.mark.platform("metrics")
def test_ties_go_to_the_first(device):
    y = np.zeros((3, 4), np.float32)
    np.testing.assert_array_equal(accuracy(y, np.array([0, 1, 3])).numpy(), [1, 0, 0])
    np.testing.assert_array_equal(top_k(2)(y, np.array([0, 1, 2])).numpy(), [1, 1, 0])


def test_one_output(rng, device):
    """Yes is above 1/2 after a sigmoid, above 0 before it; a target may be a probability."""
    z, t = normal(rng, (50, 1)), rng.choice(np.float32([0, 0.5, 0.51, 1]), (50, 1))
    expected = ((z > 0) == (t > 0.5))[:, 0]
    np.testing.assert_array_equal(accuracy(clnn.tensor(z, np.float32), t).numpy(), expected)
    np.testing.assert_array_equal(accuracy(clnn.sigmoid(parameter(z)), t).numpy(), expected)
    np.testing.assert_array_equal(
        accuracy(clnn.sigmoid(clnn.tensor(z, np.float32)), t[:, 0].astype(float)).numpy(), expected
    )


def test_float64(rng, device):
    if not device.has_fp64:
        pytest.skip("no float64")
    y, labels = normal(rng, (9, 4), np.float64), rng.integers(0, 4, 9)
    got = accuracy(clnn.tensor(y, np.float64), labels).numpy()
    assert got.dtype == np.float64
    np.testing.assert_array_equal(got, y.argmax(axis=1) == labels)


@pytest.mark.platform("metrics")
@pytest.mark.oclgrind
@pytest.mark.parametrize("k", [1, 3, 10, 11])
def test_top_k(rng, device, k):
    y, labels = rng.integers(0, 20, (31, 10)).astype(np.float32), rng.integers(0, 10, 31)
    order = np.argsort(-y, axis=1, kind="stable")[:, :k]
    expected = (order == labels[:, None]).any(axis=1)
    np.testing.assert_array_equal(top_k(k)(y, labels).numpy(), expected)
    np.testing.assert_array_equal(top_k(k)(y, np.eye(10)[labels]).numpy(), expected)


@pytest.mark.parametrize("metric", [accuracy, top_k(1)])
def test_nan_is_never_right(device, metric):
    """A network that has diverged hits nothing, whatever the label."""
    y = np.array([[np.nan, np.nan, np.nan], [np.nan, 0, 1], [2, np.nan, 1]], np.float32)
    np.testing.assert_array_equal(metric(y, np.array([0, 2, 0])).numpy(), [0, 0, 0])


@pytest.mark.parametrize("label", [-1, 3, 2**31 - 1])
@pytest.mark.parametrize("metric", [accuracy, top_k(1), top_k(3)])
def test_labels_out_of_range_are_never_right(device, metric, label):
    assert metric(clnn.tensor(np.zeros((1, 3))[:, :3], np.float32), clnn.tensor([label])).numpy()[0] == 0


def test_wrong_shapes(device):
    for target in (np.zeros(5, int), np.zeros((4, 2))):
        with pytest.raises(
            clnn.ShapeError, match=r"accuracy: targets of shape .* do not fit outputs of shape \(4, 3\)"
        ):
            accuracy(clnn.zeros((4, 3)), target)


def test_names():
    assert find_metric("accuracy") is accuracy and find_metric(max) is max
    assert metric_name(find_metric("top_5")) == "top_5" and metric_name(accuracy) == "accuracy"
    for wrong in ("acc", "top_", "top_0", "top_-1"):
        with pytest.raises(clnn.ConfigurationError):
            find_metric(wrong)
    for wrong in (0, -1, 1.5):
        with pytest.raises(clnn.ConfigurationError, match="k should be 1 or more"):
            top_k(wrong)


# -- by class --------------------------------------------------------------------------------------------------------------
RATES = ("precision", "sensitivity", "specificity", "f1", "accuracy")


@pytest.fixture
def guesses(rng):
    """Predictions and labels of 6 classes: class 2 never occurs, class 4 is never predicted, class 5 neither."""
    labels, predicted = rng.choice([0, 1, 3, 4], 400), rng.choice([0, 1, 2, 3], 400)
    return np.where(rng.random(400) < 0.6, np.where(labels == 4, 2, labels), predicted), labels


def test_rates_are_scikit_learns(guesses):
    of = pytest.importorskip("sklearn.metrics")
    predicted, labels = guesses
    matrix, every = confusion_matrix(predicted, labels, 6), range(6)
    np.testing.assert_array_equal(matrix, of.confusion_matrix(labels, predicted, labels=every))
    found = metrics.Report(matrix)
    for ours, theirs in (("precision", of.precision_score), ("sensitivity", of.recall_score), ("f1", of.f1_score)):
        for average, values in ((None, found.per_class), ("macro", found.macro), ("micro", found.micro)):
            expected = theirs(labels, predicted, labels=every, average=average, zero_division=0)
            np.testing.assert_allclose(values[ours], expected, rtol=1e-14)
            np.testing.assert_array_equal(getattr(metrics, ours)(matrix, average), values[ours])
    assert found.accuracy == pytest.approx(of.accuracy_score(labels, predicted))
    by_class = of.multilabel_confusion_matrix(labels, predicted, labels=every).astype(float)
    (tn, fp), (_, tp) = by_class[:, 0].T, by_class[:, 1].T
    np.testing.assert_allclose(found.per_class["specificity"], tn / (tn + fp), rtol=1e-14)
    np.testing.assert_allclose(found.per_class["accuracy"], (tn + tp) / 400, rtol=1e-14)
    assert found.micro["specificity"] == pytest.approx(tn.sum() / (tn + fp).sum())
    assert metrics.recall is metrics.sensitivity


def test_rates_by_hand():
    """Rows are true classes, columns predicted ones."""
    matrix = confusion_matrix([0, 0, 1, 1, 1, 0], [0, 0, 0, 1, 1, 1])
    assert matrix.tolist() == [[2, 1], [1, 2]]
    matrix = confusion_matrix([1, 1, 1], [0, 1, 1])
    assert matrix.tolist() == [[0, 1], [0, 2]]
    found = metrics.Report(matrix)
    assert found.per_class["precision"].tolist() == [0, 2 / 3] and found.per_class["sensitivity"].tolist() == [0, 1]
    assert found.per_class["specificity"].tolist() == [1, 0] and found.accuracy == 2 / 3
    assert metrics.f1(matrix).tolist() == [0, 0.8] and metrics.f1(matrix, "macro") == 0.4


def test_what_never_occurs_and_is_never_predicted_has_0():
    """Also where all samples are of one class, whose specificity has nothing to go by; and where there are none at all."""
    found = metrics.Report(confusion_matrix([0, 0], [0, 0], 2))
    for rate, expected in zip(RATES, ([1, 0], [1, 0], [0, 1], [1, 0], [1, 1])):
        assert found.per_class[rate].tolist() == expected, rate
    empty = metrics.Report(confusion_matrix(np.zeros(0, int), np.zeros(0, int), 3))
    assert not any(empty.per_class[rate].any() for rate in RATES) and empty.accuracy == 0 == empty.micro["f1"]


def test_report_is_an_aligned_table(guesses):
    found = report(*guesses, names=["T-shirt", "trouser", "bag", 3, "coat", "ankle boot"])
    lines = str(found).splitlines()
    assert lines[0].split() == ["class", "precision", "sensitivity", "specificity", "f1", "support"]
    assert len({len(line) for line in lines[:-1] if line}) == 1
    assert lines[6].startswith("ankle boot ") and lines[6].split()[2:] == ["0.0000", "0.0000", "1.0000", "0.0000", "0"]
    assert lines[8].startswith("macro") and lines[9].startswith("micro")
    assert lines[-1] == f"accuracy {np.mean(guesses[0] == guesses[1]):.4f}"
    assert "400 samples of 6 classes" in repr(found)


def test_report_of_a_model(device, rng):
    x, y = rng.standard_normal((40, 3)).astype(np.float32), rng.integers(0, 4, 40)
    with clnn.use(device):
        net = clnn.Sequential([clnn.Dense(4)], input_shape=3)
    predicted = net.predict_classes(x)
    assert report(predicted, y, range(4)).accuracy == net.evaluate(x, y, loss="cross_entropy")["accuracy"]


def test_report_is_drawn(guesses, tmp_path, monkeypatch):
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("Agg")
    found = report(*guesses)
    figure = found.plot(tmp_path / "matrix.png")
    assert (tmp_path / "matrix.png").read_bytes().startswith(b"\x89PNG")
    assert [t.get_text() for t in figure.axes[0].texts] == [str(n) for n in found.matrix.ravel()]
    monkeypatch.setitem(__import__("sys").modules, "matplotlib.pyplot", None)
    with pytest.raises(clnn.ConfigurationError, match="pip install matplotlib"):
        found.plot()


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        (([0.0, 1.0], [0, 1]), clnn.DataError, "predicted.*float64.*predict_classes"),
        (([0, 1], np.eye(2)), clnn.DataError, r"labels.*\(2, 2\).*argmax"),
        ((np.zeros((2, 3), int), np.zeros((2, 3), int)), clnn.DataError, r"\(2, 3\).* of sequences p\[y >= 0\] and y"),
        (([0, 1, 1], [0, 1]), clnn.ShapeError, r"\(3,\).*\(2,\)"),
        (([0, 3], [0, 1], 3), clnn.DataError, r"predicted\[1\] is 3, outside 0 to 2"),
        (([0, 1], [0, -1]), clnn.DataError, r"labels\[1\] is -1"),
        (([0, 1], [0, 1], 0), clnn.ConfigurationError, "classes should be an integer of 1 or more, 0"),
        (([0, 1], [0, 1], 2.0), clnn.ConfigurationError, "classes.*2.0"),
        ((np.zeros(0, int), np.zeros(0, int)), clnn.DataError, "no samples.*classes="),
    ],
)
def test_what_is_no_class_number(arguments, error, words):
    with pytest.raises(error, match=words):
        confusion_matrix(*arguments)


def test_what_is_no_report():
    with pytest.raises(clnn.ConfigurationError, match="2 classes need as many names, and 3"):
        metrics.Report(np.eye(2, dtype=int), ["a", "b", "c"])
    with pytest.raises(clnn.DataError, match=r"predicted\[1\] is 2"):
        report([0, 2], [0, 1], ["a", "b"])
    for wrong in (np.zeros((2, 3), int), np.eye(2), -np.eye(2, dtype=int)):
        with pytest.raises(clnn.ShapeError, match="confusion_matrix"):
            metrics.precision(wrong)
    with pytest.raises(clnn.ConfigurationError, match="'weighted'"):
        metrics.f1(np.eye(2, dtype=int), "weighted")


@pytest.mark.parametrize("kind", [np.uint8, np.int8, np.int16, np.uint16, np.int32])
def test_a_matrix_of_a_small_type_gives_the_same_rates(rng, kind):
    """Sums and twice a count are more than its own type holds."""
    most = min(np.iinfo(kind).max, 1 << 29)
    matrix = rng.integers(most // 2, most, (3, 3)).astype(kind)
    for average in (None, "micro", "macro"):
        for rate in (clnn.metrics.f1, clnn.metrics.precision, clnn.metrics.recall):
            right = rate(matrix.astype(np.int64), *([average] if average else []))
            np.testing.assert_array_equal(rate(matrix, *([average] if average else [])), right)


@pytest.mark.parametrize("shape", [(3, 1), (2, 4, 1)])
def test_top_k_of_one_output_is_refused(device, shape):
    with pytest.raises(clnn.ShapeError, match="top_k looks among the outputs of all classes, .* alone: use accuracy"):
        clnn.metrics.top_k(1)(np.ones(shape, np.float32), np.zeros(shape[:-1], np.int32))
    net = clnn.Sequential([clnn.Dense(1)], input_shape=2)
    with pytest.raises(clnn.ShapeError, match="use accuracy"):
        net.evaluate(np.ones((4, 2)), np.array([0, 1, 1, 0]), loss="binary_cross_entropy", metrics=["top_1"])
