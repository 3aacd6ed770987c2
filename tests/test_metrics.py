"""Metrics by sample against NumPy."""

import numpy as np
import pytest
from helpers import normal, parameter

import clnn
from clnn.metrics import accuracy, find_metric, metric_name, top_k


@pytest.mark.parametrize("n", [1, 2, 10])
@pytest.mark.parametrize("rows", [0, 1, 131])
def test_accuracy(rng, device, rows, n):
    y, labels = normal(rng, (rows, n)), rng.integers(0, n, rows)
    expected = (y.argmax(axis=1) == labels).astype(np.float32)
    for output in (y.astype(np.float32), clnn.tensor(y, np.float32)):
        for target in (labels, clnn.tensor(labels)):
            got = accuracy(output, target).numpy()
            assert got.dtype == np.float32
            np.testing.assert_array_equal(got, expected)
    if n > 1:
        np.testing.assert_array_equal(accuracy(y.astype(np.float32), np.eye(n)[labels]).numpy(), expected)


def test_ties_go_to_the_first(device):
    y = np.zeros((3, 4), np.float32)
    np.testing.assert_array_equal(accuracy(y, np.array([0, 1, 3])).numpy(), [1, 0, 0])
    np.testing.assert_array_equal(top_k(2)(y, np.array([0, 1, 2])).numpy(), [1, 1, 0])


def test_one_output(rng, device):
    """Yes is above 1/2 after a sigmoid, above 0 before it."""
    z, t = normal(rng, (50, 1)), rng.integers(0, 2, (50, 1)).astype(np.float32)
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
    got = accuracy(y, labels).numpy()
    assert got.dtype == np.float64
    np.testing.assert_array_equal(got, y.argmax(axis=1) == labels)


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
