"""Writing with a language model, against a table whose probabilities are known; and the text to learn from."""

import hashlib
import os

import numpy as np
import pytest

import clnn
from clnn.data import text


class Table(clnn.Model):
    """Scores of the next token by the last one alone: row t of a table."""

    whole_inputs = True

    def __init__(self, scores):
        self.scores = clnn.constant(np.asarray(scores, np.float32))

    def forward(self, x):
        return clnn.take_rows(self.scores, x)


CYCLE = np.roll(np.eye(5), 1, 1) * 50  # after t comes t + 1


@pytest.mark.parametrize("window", [1, 3, 8])
def test_each_token_follows_from_those_before(device, window):
    net = Table(CYCLE)
    for temperature in (0.0, 1.0):
        got = clnn.generate(net, [2], 9, window=window, temperature=temperature)
        assert got.dtype == np.int32 and got.tolist() == [3, 4, 0, 1, 2, 3, 4, 0, 1]
    both = clnn.generate(net, [[0, 1, 2, 3], [3, 2, 1, 0]], 3, window=window)
    assert both.tolist() == [[4, 0, 1], [1, 2, 3]]
    assert clnn.generate(net, [2], 0, window=window).shape == (0,)


def test_draws_have_the_model_s_probabilities(device):
    p = np.array([0.5, 0.25, 0.15, 0.1])
    net = Table(np.log(np.tile(p, (4, 1))))

    def drawn(**how):
        found = clnn.generate(net, np.zeros((4000, 1), int), 1, window=2, seed=5, **how)
        return np.bincount(found.ravel(), minlength=4) / len(found)

    for how, want in (
        ({}, p),
        ({"temperature": 0.5}, p**2 / (p**2).sum()),
        ({"top_k": 2}, np.array([2 / 3, 1 / 3, 0, 0])),
        ({"top_p": 0.7}, np.array([2 / 3, 1 / 3, 0, 0])),
        ({"top_p": 0.5}, np.array([1.0, 0, 0, 0])),
        ({"top_k": 3, "top_p": 1.0}, p * (p > 0.12) / 0.9),
    ):
        assert np.abs(drawn(**how) - want).max() < 0.035, how
    a, b, c = (clnn.generate(net, [0], 30, window=4, seed=seed) for seed in (1, 1, 2))
    assert a.tolist() == b.tolist() != c.tolist()


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"prompt": []}, "at least one token"),
        ({"prompt": [[[1]]]}, r"\(batch, time\)"),
        ({"prompt": [0.5]}, "whole numbers"),
        ({"n": -1}, "n should be"),
        ({"window": 0}, "window should be"),
        ({"temperature": -1.0}, "temperature"),
        ({"top_k": 0}, "top_k"),
        ({"top_p": 0.0}, "top_p"),
        ({"prompt": [7]}, "NaN|no row 7"),
    ],
)
def test_wrong_arguments(device, how, message):
    given = {"prompt": [1], "n": 2, "window": 4} | how
    with pytest.raises(clnn.ClnnError, match=message):
        clnn.generate(Table(CYCLE), given.pop("prompt"), given.pop("n"), **given)


def test_shakespeare(monkeypatch, tmp_path):
    monkeypatch.setenv("CLNN_DATA_DIR", str(tmp_path))
    monkeypatch.setenv("CLNN_CACHE_DIR", str(tmp_path / "cache"))
    words, tried = b"To be, or not to be", []
    monkeypatch.setattr(text, "SHA256", hashlib.sha256(words).hexdigest())

    def read(urls, check):
        tried.append(list(urls))
        check(words, tried[-1][0])
        return words, tried[-1][0]

    monkeypatch.setattr(text, "download", read)
    assert clnn.data.shakespeare() == clnn.data.shakespeare() == words.decode() and len(tried) == 1
    os.makedirs(tmp_path / "shakespeare")
    (tmp_path / "shakespeare" / "input.txt").write_bytes(b"To be")
    with pytest.raises(clnn.DataError, match="not the 1,115,394 characters"):
        clnn.data.shakespeare()
