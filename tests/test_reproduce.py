"""`clnn reproduce`: what is chosen, what a run is, going on, and the table."""

import json

import numpy as np
import pytest

from clnn import reproduce
from clnn.errors import ConfigurationError, DataError
from clnn.reproduce import EXPERIMENTS, Experiment, Measure, Runs, chosen, figure, table

TINY = Experiment(
    (20, 30, 10), 0.5, 6, (Measure("test", "best", 90.0), Measure("validation", "last", 80.0)), 1, samples=400
)


@pytest.fixture
def tiny(monkeypatch, device):
    """Images of ten kinds that can be told apart, in place of MNIST; one small experiment, and network.py's."""
    rng = np.random.default_rng(3)

    def part(n):
        y = rng.integers(0, 10, n).astype(np.int32)
        x = rng.random((n, 20), dtype=np.float32) * 0.2
        x[np.arange(n), 2 * y] += 1.0
        return x, y

    data = part(400), part(50), part(60)
    monkeypatch.setattr(reproduce, "mnist", lambda **_: data)
    network = TINY._replace(measures=TINY.measures[:1], loss="quadratic", eta=3.0, weights="nielsen_old")
    monkeypatch.setattr(reproduce, "EXPERIMENTS", {"tiny": TINY, "quadratic-30": network})
    monkeypatch.setattr(reproduce, "BASELINES", {"darkness": 22.25})
    return data


def test_every_figure_of_the_book_is_there():
    figures = {measure.book for one in EXPERIMENTS.values() for measure in one.measures}
    table = {95.42, 96.59, 21.42, 9.82, 95.49, 82.27, 87.1, 96.49, 97.92, 98.04, 92.70, 86.43, 96.50, 96.37}
    assert table | {96.48, 96.90, 96.57, 96.53, 97.80} <= figures
    assert set(reproduce.BASELINES.values()) == {22.25, 94.35}


def test_chosen():
    assert chosen([]) == [*EXPERIMENTS, *reproduce.BASELINES]
    assert chosen(["network"]) == ["quadratic-30", "quadratic-100"]
    assert chosen(["hidden-layers"]) == [f"hidden-layers-{n}" for n in (1, 2, 3, 4)]
    assert chosen(["softmax-100", "svm", "softmax-100"]) == ["softmax-100", "svm"]
    with pytest.raises(ConfigurationError, match="no experiment 'hiden'; the known ones are network, quadratic-30"):
        chosen(["hiden"])


@pytest.mark.parametrize(
    "which, images, expected", [("best", "test", 97), ("first", "test", 90), ("last", "test", 95), ("at", "test", 95)]
)
def test_figure(which, images, expected):
    run = {"accuracies": {"test": [90, 97, 95], "validation": [80, 70, 85]}}
    assert figure(Measure(images, which, 0.0), run) == expected
    assert np.isnan(figure(Measure(images, which, 0.0), {"accuracies": {"test": [], "validation": []}}))


def test_it_learns_goes_on_and_prints_a_table(tiny, tmp_path):
    said = []
    text = reproduce.reproduce(["tiny", "darkness"], seeds=2, folder=tmp_path, say=said.append)
    rows = [line.split(" | ") for line in text.splitlines()[2:]]
    assert [row[0] for row in rows] == ["| tiny", "| tiny", "| darkness"]
    assert float(rows[0][5]) >= float(rows[0][4]) > 85 and rows[0][2:4] == ["test, best", "90.00"]
    assert (tmp_path / "table.md").read_text() == text + "\n"
    runs = json.loads((tmp_path / "runs.json").read_text())["runs"]
    assert set(runs["tiny"]["runs"]) == {"0", "1"} and len(runs["tiny"]["runs"]["0"]["accuracies"]["test"]) == 6

    said.clear()
    assert reproduce.reproduce(["tiny", "darkness"], seeds=2, folder=tmp_path, say=said.append) == text
    assert not [line for line in said if "epoch" in line]  # nothing was run again
    reproduce.reproduce(["tiny"], seeds=3, folder=tmp_path, say=said.append)
    assert {line.split(":")[0] for line in said if "epoch" in line} == {"tiny, seed 2"}


def test_other_settings_are_other_runs(tiny, tmp_path, monkeypatch):
    reproduce.reproduce(["tiny"], seeds=1, folder=tmp_path, say=lambda _: None)
    monkeypatch.setitem(reproduce.EXPERIMENTS, "tiny", TINY._replace(epochs=2))
    said = []
    reproduce.reproduce(["tiny"], seeds=1, folder=tmp_path, say=said.append)
    assert len([line for line in said if "epoch" in line]) == 2


def test_numpy_computes_the_same(tiny, tmp_path):
    text = reproduce.reproduce(["quadratic-30"], seeds=1, folder=tmp_path, against="numpy", say=lambda _: None)
    runs = json.loads((tmp_path / "runs.json").read_text())["runs"]["quadratic-30"]["runs"]
    ours, numpys = (runs[key]["accuracies"]["test"] for key in ("0", "0 numpy"))
    assert np.allclose(ours, numpys, atol=2)  # one image of 60 is 1.7%
    assert "network.py's runs: clnn" in text and "quadratic-30, NumPy" in text


def test_a_network_that_runs_away_is_a_row(tiny, tmp_path, monkeypatch):
    monkeypatch.setitem(reproduce.EXPERIMENTS, "tiny", TINY._replace(eta=1e38, weights="he_normal"))
    text = reproduce.reproduce(["tiny"], seeds=1, folder=tmp_path, say=lambda _: None)
    run = json.loads((tmp_path / "runs.json").read_text())["runs"]["tiny"]["runs"]["0"]
    assert "the last finite loss was" in run["diverged"] and text.count("1 of 1 ran away") == 2


def test_what_bad_input_gets(tiny, tmp_path):
    with pytest.raises(ConfigurationError, match="seeds should be 1 or more, 0"):
        reproduce.reproduce(["tiny"], seeds=0, folder=tmp_path)
    with pytest.raises(ConfigurationError, match="there is no 'torch' to run against; the only one is numpy"):
        reproduce.reproduce(["tiny"], against="torch", folder=tmp_path)
    (tmp_path / "runs.json").write_text("{}")
    with pytest.raises(DataError, match=r"runs.json is no file of runs .* move it away or name another folder"):
        reproduce.reproduce(["tiny"], folder=tmp_path)
    assert (tmp_path / "runs.json").read_text() == "{}"


def test_the_books_curves(tmp_path, monkeypatch):
    monkeypatch.setenv("CLNN_DATA_DIR", str(tmp_path))
    assert reproduce.book_curve("new-weights") is None and reproduce.book_curve("svm") is None
    (tmp_path / "nielsen_curves").mkdir()
    file = tmp_path / "nielsen_curves" / "weight_initialization_30.json"
    file.write_text(json.dumps({"default_weight_initialization": [[], [9270, 9414], [], []]}))
    assert reproduce.book_curve("new-weights") == [92.7, 94.14]
    with pytest.raises(DataError, match="does not hold the book's curves"):
        reproduce.book_curve("old-weights")


def test_a_table_of_nothing_has_a_head(tmp_path):
    assert len(table(Runs(tmp_path), [], 3).splitlines()) == 2
