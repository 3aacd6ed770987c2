"""`clnn reproduce`: what is chosen, what a run is, going on, and the table."""

import json

import numpy as np
import pytest

import clnn
from clnn.errors import ConfigurationError, DataError
from clnn.tools import cli, reproduce
from clnn.tools.reproduce import EXPERIMENTS, Experiment, Measure, Runs, chosen, figure, table

TINY = Experiment(
    (20, 30, 10), 0.5, 6, (Measure("test", "best", 90.0), Measure("validation", "last", 80.0)), 1, samples=400
)
CONV = Experiment(  # on images of 8 x 8
    (64, 40, 40, 10), 0.2, 4, (Measure("test", "at", 99.0),), 6, "cross_entropy", "", softmax=True, conv=(8,),
    activation="relu", dropout=0.2, lmbda=0.1, samples=300, expanded=True,
)  # fmt: skip


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


def news(said):
    """What was said, without the hint that matplotlib is missing."""
    return [line for line in said if not line.startswith("no pictures")]


def test_every_figure_of_the_book_is_there():
    figures = {measure.book for one in EXPERIMENTS.values() for measure in one.measures}
    table = {95.42, 96.59, 21.42, 9.82, 95.49, 82.27, 87.1, 96.49, 97.92, 98.04, 92.70, 86.43, 96.50, 96.37}
    table |= {96.48, 96.90, 96.57, 96.53, 97.80, 98.78, 99.06, 99.23, 99.37, 99.60}
    assert table <= figures and {one.book for one in reproduce.VOTES.values()} == {99.67}
    assert set(reproduce.BASELINES.values()) == {22.25, 94.35}


def test_chosen():
    conv = ["conv-pool", "conv-pool-2", "conv-relu", "conv-relu-expanded", "conv-dropout"]
    known = [*EXPERIMENTS, "vote", *reproduce.BASELINES]
    assert chosen([]) == [name for name in known if name not in (*conv, "vote")]
    assert chosen([], True) == known
    assert chosen(["conv"]) == conv and chosen(["conv-relu", "vote"]) == ["conv-relu", "vote"]
    assert chosen(["network"]) == ["quadratic-30", "quadratic-100"]
    assert chosen(["hidden-layers"]) == [f"hidden-layers-{n}" for n in (1, 2, 3, 4)]
    assert chosen(["softmax-100", "svm", "softmax-100"]) == ["softmax-100", "svm"]
    with pytest.raises(ConfigurationError, match="no experiment 'hiden'; the known ones are network, quadratic-30"):
        chosen(["hiden"])


@pytest.mark.parametrize(
    "which, images, expected", [("best", "test", 97), ("first", "test", 90), ("last", "test", 95), ("at", "test", 95)]
)
def test_figure(which, images, expected):
    run = {"accuracies": {"test": [90, 97, 91, 95], "validation": [80, 70, 85, 85]}}
    assert figure(Measure(images, which, 0.0), run) == expected
    assert np.isnan(figure(Measure(images, which, 0.0), {"accuracies": {"test": [], "validation": []}}))


@pytest.mark.parametrize("images", ["test", "validation"])
def test_an_experiment_that_looks_at_one_set_only(tiny, images):
    """As most of the book's do."""
    said = []
    run = reproduce.train(TINY._replace(measures=(Measure(images, "best", 90.0),), epochs=2), 0, tiny, said.append)
    assert list(run["accuracies"]) == [images] and len(run["accuracies"][images]) == 2
    assert [text.split(":")[0] for text in said] == ["epoch 1 of 2", "epoch 2 of 2"]


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


# -- chapter 6 --------------------------------------------------------------------------------------------------------
@pytest.fixture
def conv(monkeypatch, device):
    """Images of 8 x 8, ten patterns under noise, in place of MNIST; a small experiment, and two of it that vote."""
    rng = np.random.default_rng(3)
    patterns = rng.random((10, 64), dtype=np.float32) > 0.6

    def part(n):
        y = rng.integers(0, 10, n).astype(np.int32)
        return 0.4 * rng.random((n, 64), dtype=np.float32) + 0.6 * patterns[y], y

    data = part(300), part(80), part(90)
    monkeypatch.setattr(reproduce, "mnist", lambda **_: data)
    monkeypatch.setattr(reproduce, "EXPERIMENTS", {"conv-tiny": CONV})
    monkeypatch.setattr(reproduce, "VOTES", {"vote": reproduce.Vote("conv-tiny", 2, 99.5)})
    monkeypatch.setattr(reproduce, "BASELINES", {})
    return data


def test_what_network3_trains(device):
    one = EXPERIMENTS["conv-dropout"]
    net = one.model(seed=1)
    assert [p.shape for p in net.parameters()[::2]] == [
        (20, 1, 5, 5), (40, 20, 5, 5), (640, 1000), (1000, 1000), (1000, 10)
    ]  # fmt: skip
    for p, deviation in zip(net.parameters()[:8], (125**-0.5, 1, 250**-0.5, 1, 1000**-0.5, 1, 1000**-0.5, 1)):
        assert abs(p.numpy().std() / deviation - 1) < 4 / np.sqrt(2 * p.size) + 0.01  # four of its own deviations
    assert not net.parameters()[8].numpy().any() and net.predict(np.zeros((3, 784))).shape == (3, 10)
    relu = EXPERIMENTS["conv-relu"]
    assert relu.optimizer().weight_decay == pytest.approx(0.1 / 5000) and one.images == 250000
    assert EXPERIMENTS["conv-relu-expanded"].optimizer().weight_decay == pytest.approx(0.1 / 25000)
    assert relu.settings() == (
        "conv 20 5x5, pool 2, conv 40 5x5, pool 2, 100-10, relu, softmax, log-likelihood, eta 0.03, lambda 0.1, 60 epochs"
    )
    assert "1000-1000-10, relu, dropout 0.5" in one.settings() and "expanded to 250,000 images" in one.settings()


def test_network3s_dropout(device):
    layer, x = reproduce.Thinned(0.25), np.ones((40, 50), np.float32)
    y = layer(x).numpy()
    assert set(np.unique(y)) == {0.0, 1.0} and abs(y.mean() - 0.75) < 0.05
    with clnn.no_grad():
        assert (layer(x).numpy() == 0.75).all()


def test_voters_are_trained_once(conv, tmp_path):
    said = []
    text = reproduce.reproduce(["conv"], seeds=1, folder=tmp_path, say=said.append)
    assert float(text.splitlines()[-1].split(" | ")[4]) > 60
    assert [line.split(", ")[-1][-2:] for line in said if "epoch 4 of 4" in line] == [" s"]
    assert sorted(f.name for f in tmp_path.glob("conv*") if f.suffix != ".png") == ["conv-tiny-0.npy"]
    said.clear()
    text = reproduce.reproduce(["vote"], folder=tmp_path, say=said.append)
    assert {line.split(":")[0] for line in said if "epoch" in line} == {"conv-tiny, seed 1"}
    row = text.splitlines()[-1].split(" | ")
    assert row[0] == "| vote" and row[1].startswith("2 of conv-tiny: conv 8 5x5") and row[3] == "99.50"
    p = np.array([np.load(tmp_path / f"conv-tiny-{seed}.npy") for seed in (0, 1)], np.float64)
    assert float(row[4]) == round(100 * (clnn.ensemble.elect(p) == conv[2][1]).mean(), 2)
    runs = json.loads((tmp_path / "runs.json").read_text())["runs"]["conv-tiny"]["runs"]
    for one, run in zip(p, (runs["0"], runs["1"])):  # kept where the validation accuracy was best
        assert 100 * (one.argmax(1) == conv[2][1]).mean() == pytest.approx(figure(CONV.measures[0], run), abs=1e-3)
    said.clear()
    assert reproduce.reproduce(["vote"], folder=tmp_path, say=said.append) == text and not news(said)


def test_a_vote_without_a_voter(conv, tmp_path):
    reproduce.reproduce(["vote"], folder=tmp_path, epochs=1, say=lambda _: None)
    (tmp_path / "conv-tiny-1-epochs-1.npy").unlink()
    found = json.loads((tmp_path / "runs.json").read_text())
    del found["runs"]["vote, 1 epochs"]
    (tmp_path / "runs.json").write_text(json.dumps(found))
    with pytest.raises(
        DataError, match=r"needs .*epochs-1.npy .*take seed 1 of conv-tiny, 1 epochs out of .*runs.json"
    ):
        reproduce.reproduce(["vote"], folder=tmp_path, epochs=1, say=lambda _: None)


def test_a_long_run_goes_on_after_its_last_epoch(conv, tmp_path):
    def stop(text):
        if "epoch 2 of" in text:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        reproduce.reproduce(["conv"], seeds=1, folder=tmp_path / "a", say=stop)
    said = []
    reproduce.reproduce(["conv"], seeds=1, folder=tmp_path / "a", say=said.append)
    assert [line.split(": ")[1].split(", ")[0] for line in said if "after" in line] == ["goes on after epoch 2"]
    assert sum("%" in line for line in said) == 2
    reproduce.reproduce(["conv"], seeds=1, folder=tmp_path / "b", say=lambda _: None)
    kept, whole = (json.loads((tmp_path / f / "runs.json").read_text())["runs"]["conv-tiny"]["runs"]["0"] for f in "ab")
    assert kept["accuracies"] == whole["accuracies"] and kept["seconds"] > 0
    assert (np.load(tmp_path / "a" / "conv-tiny-0.npy") == np.load(tmp_path / "b" / "conv-tiny-0.npy")).all()


def test_a_damaged_unfinished_run(conv, tmp_path):
    for name in ("conv-tiny-0.json", "conv-tiny-0.clnn"):
        (tmp_path / name).write_text("{")
    with pytest.raises(DataError, match=r"conv-tiny-0.json and .clnn are no unfinished run .*; remove them"):
        reproduce.reproduce(["conv"], seeds=1, folder=tmp_path)


def test_fewer_epochs_are_another_experiment(conv, tmp_path):
    whole = reproduce.reproduce(["conv"], seeds=1, folder=tmp_path, say=lambda _: None)
    row = reproduce.reproduce(["conv"], seeds=1, folder=tmp_path, epochs=2, say=lambda _: None).splitlines()[-1]
    assert row.startswith("| conv-tiny, 2 epochs | ") and ", 2 epochs | test" in row
    assert set(json.loads((tmp_path / "runs.json").read_text())["runs"]) == {"conv-tiny", "conv-tiny, 2 epochs"}
    assert reproduce.reproduce(["conv"], seeds=1, folder=tmp_path, epochs=9, say=lambda _: None) == whole
    with pytest.raises(ConfigurationError, match="epochs should be an integer of 1 or more, 0 was"):
        reproduce.reproduce(["conv"], folder=tmp_path, epochs=0)
    assert cli.main(["reproduce", "conv", "--list", "--epochs", "0"]) == 1  # a list is of what can be run


def test_long_ones_are_left_out_unless_named(conv, tmp_path):
    said = []
    assert len(reproduce.reproduce([], folder=tmp_path, say=said.append).splitlines()) == 2
    assert news(said) == ["left out, since they take hours: conv-tiny, vote; name them, or give --all"]
    text = reproduce.reproduce([], seeds=1, folder=tmp_path, epochs=1, everything=True, say=lambda _: None)
    assert [line.split(" | ")[0] for line in text.splitlines()[2:]] == ["| conv-tiny, 1 epochs", "| vote, 1 epochs"]


# -- what goes wrong --------------------------------------------------------------------------------------------------
def test_a_network_that_runs_away_is_a_row(tiny, tmp_path, monkeypatch):
    monkeypatch.setitem(reproduce.EXPERIMENTS, "tiny", TINY._replace(eta=1e38, weights="he_normal"))
    text = reproduce.reproduce(["tiny"], seeds=1, folder=tmp_path, say=lambda _: None)
    run = json.loads((tmp_path / "runs.json").read_text())["runs"]["tiny"]["runs"]["0"]
    assert "the last finite loss was" in run["diverged"] and text.count("1 of 1 ran away") == 2


def test_what_bad_input_gets(tiny, tmp_path):
    with pytest.raises(ConfigurationError, match="seeds should be an integer of 1 or more, 0"):
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
    assert len(table(Runs(tmp_path), {}, 3).splitlines()) == 2
