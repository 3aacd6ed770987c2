"""Ensembles: votes, means of probabilities, and what decides where they tie."""

import numpy as np
import pytest

import clnn


class Known(clnn.Model):
    """A model whose probabilities are given."""

    def __init__(self, probabilities):
        self.probabilities = np.array(probabilities, np.float32)

    def predict_proba(self, x, *, batch_size=512):
        return self.probabilities[: len(x)]


X = np.zeros((1, 1))


@pytest.mark.parametrize(
    ("rows", "vote", "mean"),
    [
        ([[0.9, 0.1, 0.0], [0.4, 0.6, 0.0], [0.4, 0.6, 0.0]], 1, 0),  # two are right by a little, one wrong by a lot
        ([[0.6, 0.4, 0.0], [0.1, 0.9, 0.0]], 1, 1),  # one vote each: the surer one
        ([[0.5, 0.0, 0.5], [0.0, 0.45, 0.55], [0.3, 0.6, 0.1], [0.25, 0.5, 0.25]], 1, 1),  # 1 vote, 2 votes, 1 vote
        ([[0.4, 0.3, 0.3], [0.0, 0.6, 0.4], [0.0, 0.4, 0.6]], 1, 1),  # a vote each
        ([[0.5, 0.5, 0.0], [0.5, 0.5, 0.0]], 0, 0),  # nothing decides: the lowest
        ([[0.25, 0.0, 0.75], [0.75, 0.0, 0.25]], 0, 0),
    ],
)
def test_votes_means_and_ties(rows, vote, mean):
    models = [Known([row]) for row in rows]
    assert clnn.Ensemble(models).predict_classes(X).tolist() == [vote]
    assert clnn.Ensemble(models, how="mean").predict_classes(X).tolist() == [mean]
    np.testing.assert_allclose(clnn.Ensemble(models).predict_proba(X), [np.mean(rows, 0)], atol=1e-7)


def test_a_class_without_votes_does_not_win_a_tie():
    """Class 2 has the largest sum, and nobody's vote."""
    models = [Known([[0.52, 0.0, 0.48]]), Known([[0.0, 0.52, 0.48]])]
    assert clnn.Ensemble(models).predict_classes(X).tolist() == [0]
    assert clnn.Ensemble(models, "mean").predict_classes(X).tolist() == [2]


def test_one_output_says_yes_or_no():
    models = [Known([[0.9], [0.4]]), Known([[0.4], [0.45]]), Known([[0.45], [0.9]])]
    x = np.zeros((2, 1))
    assert clnn.Ensemble(models).predict_classes(x).tolist() == [0, 0]
    assert clnn.Ensemble(models, "mean").predict_classes(x).tolist() == [1, 1]
    assert clnn.Ensemble(models).predict_proba(x).shape == (2, 1)
    assert clnn.Ensemble(models[:1]).evaluate(x, np.array([[1.0], [1.0]])) == {"accuracy": 0.5}


def test_networks_vote(device, rng):
    """Three networks that differ in shape and first weights; each alone is an ensemble of one."""
    y = rng.integers(0, 3, 240)
    x = (rng.standard_normal((240, 8)) + 1.5 * np.eye(3, 8)[y]).astype(np.float32)
    models = []
    for seed, last in enumerate(("linear", "softmax", "linear")):
        with clnn.use(device):
            net = clnn.Sequential([clnn.Dense(6 + seed, "tanh"), clnn.Dense(3, last)], input_shape=8, seed=seed)
        net.fit(x, y, loss="cross_entropy", optimizer=clnn.Adam(0.02), epochs=3, batch_size=20, progress=False)
        models.append(net)
    said = np.array([net.predict_classes(x) for net in models])
    found = clnn.Ensemble(models).predict_classes(x, batch_size=50)
    assert found.dtype == np.int32
    votes = np.array([np.bincount(column, minlength=3) for column in said.T])
    clear = votes.max(axis=1) > 1
    assert np.array_equal(found[clear], votes.argmax(1)[clear])
    assert clnn.Ensemble(models).evaluate(x, y) == {"accuracy": np.mean(found == y)}
    for net in models:
        assert np.array_equal(clnn.Ensemble([net]).predict_classes(x), net.predict_classes(x))
        np.testing.assert_allclose(clnn.Ensemble([net], "mean").predict_proba(x), net.predict_proba(x), atol=1e-7)


def test_what_is_no_ensemble(device):
    for wrong, words in (([], "one or more models"), ([clnn.Dense(3)], r"not Dense\(3\)"), ([None], "not None")):
        with pytest.raises(clnn.ConfigurationError, match=words):
            clnn.Ensemble(wrong)
    two, three = Known([[0.5, 0.5]]), Known([[0.5, 0.5, 0.0]])
    with pytest.raises(clnn.ConfigurationError, match="'median'"):
        clnn.Ensemble([two], how="median")
    with pytest.raises(clnn.ShapeError, match=r"\(1, 2\), \(1, 3\)"):
        clnn.Ensemble([two, three]).predict_classes(X)
    with pytest.raises(clnn.ShapeError, match=r"\(2,\); 1 samples need class numbers \(1,\)"):
        clnn.Ensemble([two]).evaluate(X, [0, 1])
    with pytest.raises(clnn.DataError, match="float64"):
        clnn.Ensemble([two]).evaluate(X, [0.5])
    with pytest.raises(clnn.DataError, match=r"y\[0\] is -1"):
        clnn.Ensemble([two]).evaluate(X, [-1])
    with pytest.raises(clnn.DataError, match="no samples"):
        clnn.Ensemble([two]).evaluate(X[:0], np.zeros(0, int))
    with clnn.use(device):
        net = clnn.Sequential([clnn.Dense(2, "tanh")], input_shape=1)
    with pytest.raises(clnn.ConfigurationError, match="no probabilities"):
        clnn.Ensemble([net]).predict_classes(X)


def test_one_model_is_an_ensemble_of_one(device):
    net = clnn.Sequential([clnn.Dense(3, "softmax")], input_shape=4, seed=0)
    x = np.random.default_rng(0).random((5, 4))
    np.testing.assert_array_equal(clnn.Ensemble(net).predict_classes(x), net.predict_classes(x))
