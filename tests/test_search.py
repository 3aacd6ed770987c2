"""Hyper-parameter search: what is drawn and trained, what the table says, and what a file brings back."""

import itertools
import json
import math
import os
import subprocess
import sys

import numpy as np
import pytest

import clnn
from clnn import random as generators
from clnn import search
from clnn.search import Search


def blobs(n, seed):
    """Three classes in eight dimensions that overlap."""
    rng = np.random.default_rng(seed)
    centres, y = np.random.default_rng(0).standard_normal((3, 8)), rng.integers(0, 3, n).astype(np.int32)
    return (centres[y] + rng.standard_normal((n, 8))).astype(np.float32), y


TRAIN, VALIDATION = blobs(95, 1), blobs(60, 2)


def build(hidden=4, activation="tanh", lr=0.05, momentum=0.9, batch_size=10, dropout=0.0, seed=None):
    layers = [clnn.Dense(hidden, activation), clnn.Dropout(dropout), clnn.Dense(3)]
    net = clnn.Sequential(layers, input_shape=8, seed=seed)
    return net, {"loss": "cross_entropy", "optimizer": clnn.SGD(lr, momentum=momentum), "batch_size": batch_size}


SPACE = {"lr": search.log_uniform(0.001, 0.3), "hidden": [3, 6], "dropout": search.uniform(0, 0.5)}


def without_seconds(rows):
    """Rows less what the clock says."""
    timeless = [{**row, "history": {k: v for k, v in row["history"].items() if k != "seconds"}} for row in rows]
    return [{key: value for key, value in row.items() if key != "seconds"} for row in timeless]


def weights(net):
    return np.concatenate([p.numpy().ravel() for p in net.parameters()])


class Interrupted:
    """`build`, as often as `left` says, and then Ctrl-C."""

    def __init__(self, left=math.inf):
        self.calls, self.left, self.__qualname__ = 0, left, "build"

    def __call__(self, hidden=4, lr=0.05, dropout=0.0):
        if self.calls == self.left:
            raise KeyboardInterrupt
        self.calls += 1
        return build(hidden=hidden, lr=lr, dropout=dropout, seed=1)


# -- spaces -----------------------------------------------------------------------------------------------------------
def draws(values, n=2000):
    found = Search("random", build, {"lr": values}, TRAIN, VALIDATION, [n], [1])
    return np.array([found.arguments(trial)["lr"] for trial in range(n)])


@pytest.mark.parametrize(
    "values, share",
    [
        (search.uniform(-1, 3), lambda v: (v + 1) / 4),
        (search.log_uniform(0.001, 10), lambda v: (np.log10(v) + 3) / 4),
    ],
    ids=["uniform", "log_uniform"],
)
def test_draws_are_distributed_as_they_say(device, values, share):
    """Kolmogorov and Smirnov's distance, of which 1.63 / sqrt(n) is the 99% bound; the seed is fixed."""
    found = share(np.sort(draws(values)))
    assert np.abs(found - np.arange(len(found)) / len(found)).max() < 1.63 / math.sqrt(len(found))


def test_integers_and_lists_give_all_of_their_values(device):
    found = draws(search.integers(-1, 2))
    assert sorted(set(found.tolist())) == [-1, 0, 1, 2]
    assert np.bincount(found + 1).min() > 400
    assert set(draws(np.array([0.5, 0.25])).tolist()) == {0.5, 0.25}


def test_ranges_say_what_they_are():
    assert str(search.log_uniform(0.001, 1)) == "log_uniform(0.001, 1.0)"
    assert str(search.integers(1, 3)) == "integers(1, 3)"
    for wrong in (lambda: search.uniform(1, 1), lambda: search.log_uniform(0, 1), lambda: search.integers(0, 0.5)):
        with pytest.raises(clnn.ConfigurationError, match="was provided instead"):
            wrong()


# -- grid and random --------------------------------------------------------------------------------------------------
def test_a_grid_covers_the_product_and_sorts_it(device):
    space = {"hidden": [3, 5], "lr": (0.01, 0.1), "activation": ["tanh"]}
    found = search.grid(build, space, TRAIN, VALIDATION, epochs=2, metric="loss")
    got = [tuple(row["arguments"].values()) for row in sorted(found.rows, key=lambda row: row["trial"])]
    assert got == list(itertools.product(*space.values()))
    assert [row["score"] for row in found.rows] == sorted(row["history"]["val_loss"][-1] for row in found.rows)
    assert found.best == found.rows[0]["arguments"]
    assert found.best_model.evaluate(*VALIDATION)["loss"] == pytest.approx(found.rows[0]["score"], rel=1e-5)


def test_random_search_repeats_with_a_seed_and_leaves_other_randomness_alone(device):
    clnn.seed(5)
    before = generators.generator(device).state()
    first, second, third = (
        search.random(build, SPACE, TRAIN, VALIDATION, trials=trials, epochs=2, seed=seed)
        for trials, seed in ((4, 3), (3, 3), (3, 4))
    )
    assert generators.generator(device).state() == before
    assert without_seconds(second.rows) == [row for row in without_seconds(first.rows) if row["trial"] < 3]
    assert not {row["arguments"]["lr"] for row in first.rows} & {row["arguments"]["lr"] for row in third.rows}
    assert len({row["seed"] for row in first.rows}) == 4
    score = first.best_model.evaluate(*VALIDATION)["accuracy"]
    assert score == first.rows[0]["score"] == max(row["score"] for row in first.rows)


def test_epochs_of_a_trial_can_be_searched(device):
    def longer(epochs=1):
        net, options = build()
        return net, {**options, "epochs": epochs}

    found = search.grid(longer, {"epochs": [1, 3]}, TRAIN, VALIDATION)
    assert {row["arguments"]["epochs"]: row["epochs"] for row in found.rows} == {1: 1, 3: 3}


def test_a_search_without_a_console(device, monkeypatch):
    monkeypatch.setattr("sys.stderr", None)
    assert len(search.grid(build, {"lr": [0.1]}, TRAIN, VALIDATION, epochs=1, progress=True).rows) == 1


def test_metrics_of_ones_own(device):
    def distance(output, target):
        return clnn.metrics.accuracy(output, target) * -1 + 1

    def measured(hidden=3):
        net, options = build(hidden)
        return net, {**options, "metrics": [distance, "top_2"]}

    given = (measured, {"hidden": [3, 4]}, TRAIN, VALIDATION)
    with pytest.raises(clnn.ConfigurationError, match="maximise=True or False whether more of 'distance'"):
        search.grid(*given, metric="distance")
    found = search.grid(*given, metric="distance", maximise=False)
    assert [row["score"] for row in found.rows] == sorted(row["history"]["val_distance"][-1] for row in found.rows)
    assert search.grid(*given, metric="top_2").rows[0]["score"] > 0.5
    with pytest.raises(clnn.ConfigurationError, match="no 'top_1', only loss, accuracy, distance, top_2"):
        search.grid(*given, metric="top_1")


def patient(lr=0.1, restore_best=True, ends=True):
    net, options = build(hidden=16, lr=lr, seed=1)
    stops = [clnn.EarlyStopping(patience=2, restore_best=restore_best)] if ends else [clnn.TerminateOnNaN()]
    return net, {**options, "callbacks": stops}


def test_the_score_is_that_of_the_weights_that_a_trial_ends_with(device):
    space = {"lr": [0.3, 0.6], "restore_best": [True, False]}
    found = search.grid(patient, space, TRAIN, VALIDATION, epochs=20, metric="loss")
    for row in found.rows:
        losses = row["history"]["val_loss"]
        assert len(losses) < 20 and min(losses) < losses[-1]
        assert row["score"] == (min(losses) if row["arguments"]["restore_best"] else losses[-1])
    assert found.best_model.evaluate(*VALIDATION)["loss"] == pytest.approx(found.rows[0]["score"], rel=1e-5)
    # each rung of halving is a fit of its own, and counts its epochs from 0
    found = search.halving(patient, {"lr": [0.3]}, TRAIN, VALIDATION, trials=4, keep=0.5, epochs=[6, 6], metric="loss")
    assert len(found.rows[0]["scores"]) == 2 and found.rows[0]["epochs"] > 3
    assert found.best_model.evaluate(*VALIDATION)["loss"] == pytest.approx(found.rows[0]["score"], rel=1e-5)


def test_a_trial_that_ends_in_its_first_epoch_is_a_row_with_the_reason(device):
    found = search.grid(patient, {"lr": [3e38, 0.1], "ends": [False]}, TRAIN, VALIDATION)
    assert [row["failed"] for row in found.rows] == ["", "Diverged: no epoch came to its end"]


# -- halving ----------------------------------------------------------------------------------------------------------
def test_halving_keeps_the_best_and_trains_them_on(device):
    found = search.halving(build, SPACE, TRAIN, VALIDATION, trials=7, keep=1 / 2, epochs=1, metric="loss")
    assert [len(row["scores"]) for row in found.rows] == [3, 3, 2, 2, 1, 1, 1]  # of 7 go on 4, of 4 go on 2
    assert [row["epochs"] for row in found.rows] == [7, 7, 3, 3, 1, 1, 1]
    for rung in (0, 1):
        at = [row for row in found.rows if len(row["scores"]) > rung]
        out, on = ([row["scores"][rung] for row in at if (len(row["scores"]) > rung + 1) == on] for on in (False, True))
        assert max(on) <= min(out)


def test_survivors_are_as_after_one_uninterrupted_fit(device):
    space = {"lr": search.log_uniform(0.01, 0.1), "hidden": [3, 6], "dropout": [0.2], "seed": [1]}
    found = search.halving(build, space, TRAIN, VALIDATION, trials=5, epochs=[1, 4], seed=2)
    best = found.rows[0]
    net, options = build(**found.best)
    history = net.fit(*TRAIN, **options, epochs=5, validation=VALIDATION, seed=best["seed"], progress=False)
    assert without_seconds([best])[0]["history"] == without_seconds([{"history": history.history}])[0]["history"]
    assert np.array_equal(weights(found.best_model), weights(net))


def test_halving_with_other_numbers_of_epochs(device):
    with pytest.raises(clnn.ConfigurationError, match="make 2 rungs, of 9, 3 trials; epochs has 3 numbers"):
        search.halving(build, SPACE, TRAIN, VALIDATION, trials=9, epochs=[1, 2, 3])
    assert len(search.halving(build, SPACE, TRAIN, VALIDATION, trials=1, epochs=2).rows) == 1
    with pytest.raises(clnn.ConfigurationError, match="returns epochs=, which the search gives"):
        search.halving(lambda: (build()[0], {**build()[1], "epochs": 3}), {}, TRAIN, VALIDATION, trials=2)


# -- what goes wrong --------------------------------------------------------------------------------------------------
def needs_one(x, hidden=3):
    """An argument without a default."""


shared = clnn.SGD(0.1)


@pytest.mark.parametrize(
    "function, space, message",
    [
        (build, {"size": [1]}, "build has no argument 'size'; it has hidden, activation, lr, momentum, batch_size"),
        (needs_one, {"hidden": [1]}, "needs_one needs 'x': search over it, or give it a default"),
        (build, {"lr": 0.1}, "'lr' is searched over a list of values"),
        (build, {"lr": []}, "'lr' is searched over a list of values"),
        (build, {"lr": search.uniform(0, 1)}, "a grid needs a list of values for 'lr'"),
        (build, {"activation": ["tanh", "wiggle"]}, "wiggle"),
        (lambda: build()[0], {}, "has to return a model and a dict of fit's arguments"),
        (lambda: (build()[0], {"loss": "mse"}), {}, "has to return fit's optimizer beside the model"),
        (lambda: (build()[0], {**build()[1], "validation": 1}), {}, "returns validation=, which the search gives"),
        (
            lambda hidden: (build(hidden)[0], {**build()[1], "optimizer": shared}),
            {"hidden": [3, 4]},
            "returned the SGD of",
        ),
    ],
)
def test_a_mistake_ends_the_search_at_once(device, function, space, message):
    with pytest.raises(clnn.ConfigurationError, match=message):
        search.grid(function, space, TRAIN, VALIDATION)


def test_a_trial_that_fails_is_a_row_with_the_reason(device):
    def fragile(lr=0.1, hidden=3):
        if hidden == 100:
            raise clnn.OutOfDeviceMemory("that is too much | for this device")
        return build(lr=lr, hidden=hidden)

    found = search.grid(fragile, {"lr": [3e38, 0.1], "hidden": [3, 100]}, TRAIN, VALIDATION, epochs=2)
    assert [bool(row["failed"]) for row in found.rows] == [False, True, True, True]
    assert found.best == {"lr": 0.1, "hidden": 3}
    assert found.rows[1]["failed"].startswith("Diverged: the loss stopped being finite") and not found.rows[1]["score"]
    lines = str(found).splitlines()
    assert lines[0].split() == ["trial", "lr", "hidden", "val_accuracy", "epochs", "seconds", "failed"]
    assert len(lines) == 5 and "Diverged: the loss stopped" in lines[2] and "OutOfDeviceMemory: that" in lines[3]
    assert found.markdown().splitlines()[1] == "| --- " * 7 + "|" and r"much \| for" in found.markdown()
    with pytest.raises(clnn.ClnnError, match="no trial came to its end; of trial 0 the reason is: Diverged"):
        search.grid(fragile, {"lr": [3e38]}, TRAIN, VALIDATION).best


def test_halving_goes_on_without_those_that_failed(device):
    space = {"lr": [3e38, 0.1], "hidden": [3]}
    found = search.halving(build, space, TRAIN, VALIDATION, trials=8, keep=0.9, seed=1)
    good = [row for row in found.rows if row["arguments"]["lr"] == 0.1]
    assert 0 < len(good) < 7 and found.rows[: len(good)] == good and len(found.rows) == 8


# -- files ------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", ["grid", "random", "halving"])
def test_an_interrupted_search_goes_on_from_its_file(device, tmp_path, capsys, kind):
    options = {"grid": {}, "random": {"trials": 4}, "halving": {"trials": 4, "keep": 0.5, "epochs": [1, 1]}}[kind]
    space = (
        {"lr": [0.01, 0.1], "hidden": [3, 4]} if kind == "grid" else {"lr": search.uniform(0.01, 0.1), "hidden": [3]}
    )
    run = lambda function, **more: getattr(search, kind)(function, space, TRAIN, VALIDATION, **options, **more)  # noqa: E731
    whole, path = run(Interrupted()), tmp_path / "search.json"
    with pytest.raises(KeyboardInterrupt):
        run(Interrupted(2), file=path)
    assert len(json.loads(path.read_text())["rows"]) == 2 and "goes on" not in capsys.readouterr().err
    counted = Interrupted()
    found = run(counted, file=path)
    assert "search.json has 2 of 4 trials; the search goes on from there" in capsys.readouterr().err
    assert without_seconds(found.rows) == without_seconds(whole.rows)
    assert np.array_equal(weights(found.best_model), weights(whole.best_model))
    again = Interrupted()
    brought_back = run(again, file=path)
    assert again.calls == 0 and brought_back.rows == found.rows
    assert np.array_equal(weights(brought_back.best_model), weights(whole.best_model))
    whole.save(tmp_path / "saved.json")
    assert run(Interrupted(0), file=tmp_path / "saved.json").rows == whole.rows


def test_more_trials_go_on_from_the_same_file(device, tmp_path):
    run = lambda trials: search.random(  # noqa: E731
        build, SPACE, TRAIN, VALIDATION, trials=trials, file=tmp_path / "search.json"
    )
    first, second = run(2), run(4)
    assert [row for row in second.rows if row["trial"] < 2] == first.rows and len(second.rows) == 4


def test_fewer_trials_leave_the_others_in_the_file(device, tmp_path):
    function, file = Interrupted(), tmp_path / "search.json"
    run = lambda trials: search.random(function, SPACE, TRAIN, VALIDATION, trials=trials, file=file)  # noqa: E731
    four = run(4)
    file.write_text(
        file.read_text().replace('"trial": 0', '"trial": 9')
    )  # so that a trial has to be trained, and written
    two = run(2)
    assert sorted(row["trial"] for row in two.rows) == [0, 1] and function.calls == 5
    assert sorted(row["trial"] for row in json.loads(file.read_text())["rows"]) == [0, 1, 2, 3, 9]
    assert without_seconds(run(4).rows) == without_seconds(four.rows) and function.calls == 5


def test_a_file_of_another_search_is_an_error(device, tmp_path):
    path = tmp_path / "search.json"
    options = {"space": {"hidden": [3]}, "train": TRAIN, "validation": VALIDATION, "file": path}
    search.grid(build, **options)
    for other in ({"space": {"hidden": [4]}}, {"seed": 1}, {"epochs": 2}, {"metric": "loss"}):
        with pytest.raises(clnn.ConfigurationError, match=f"of another search, by its .*{next(iter(other))}.*file="):
            search.grid(build, **{**options, **other})
    with pytest.raises(clnn.ConfigurationError, match="by its data: give another file=, or delete it"):
        search.grid(build, **{**options, "validation": TRAIN})
    path.write_text(path.read_text()[:-9])
    with pytest.raises(clnn.CheckpointError, match="is no file of a search, or is damaged .*delete it"):
        search.grid(build, **options)


# -- processes --------------------------------------------------------------------------------------------------------
def test_a_build_that_no_other_process_can_import_is_an_error(device):
    with pytest.raises(clnn.ConfigurationError, match="processes=2 needs a build that other processes can import"):
        search.random(lambda: build(), {}, TRAIN, VALIDATION, trials=2, processes=2)


@pytest.mark.slow
def test_two_processes_find_what_one_finds(device):
    for kind, options in ((search.random, {"trials": 4, "epochs": 2}), (search.halving, {"trials": 6, "keep": 0.5})):
        one, two = (kind(build, SPACE, TRAIN, VALIDATION, processes=n, **options) for n in (1, 2))
        assert without_seconds(two.rows) == without_seconds(one.rows)
        assert np.array_equal(weights(two.best_model), weights(one.best_model))


def fails(hidden=3):
    raise ValueError("not that one")


def ends(hidden=3):
    os._exit(3)


@pytest.mark.slow
def test_what_goes_wrong_in_a_process_is_said(device):
    with pytest.raises(clnn.ConfigurationError, match="wiggle"):
        search.grid(build, {"activation": ["tanh", "wiggle"]}, TRAIN, VALIDATION, processes=2)
    with pytest.raises(ValueError, match="not that one"):
        search.grid(fails, {"hidden": [4, 5]}, TRAIN, VALIDATION, processes=2)
    with pytest.raises(clnn.ClnnError, match="a worker process has ended"):
        search.grid(ends, {"hidden": [4, 5]}, TRAIN, VALIDATION, processes=2)


@pytest.mark.slow
def test_a_script_without_a_guard_is_told_of_it(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "import clnn\nimport numpy as np\ndef build(lr=0.1):\n    raise AssertionError\n"
        "data = np.zeros((2, 3)), np.zeros(2)\n"
        "clnn.search.grid(build, {'lr': [1, 2]}, data, data, processes=2)\n"
    )
    done = subprocess.run([sys.executable, script], capture_output=True, encoding="utf-8", timeout=120)
    assert done.returncode == 1 and 'under `if __name__ == "__main__":`' in done.stderr.splitlines()[-1]


@pytest.mark.parametrize("callbacks", [clnn.EarlyStopping(), None, [clnn.EarlyStopping()]], ids=["one", "none", "list"])
def test_callbacks_of_a_trial_as_fit_takes_them(device, callbacks):
    """One that was in no list was a TypeError."""

    def build(lr=0.1):
        net = clnn.Sequential([clnn.Dense(2)], input_shape=3)
        return net, {"loss": "cross_entropy", "optimizer": clnn.SGD(lr), "callbacks": callbacks}

    data = np.eye(3, dtype=np.float32), np.array([0, 1, 0])
    (trial,) = clnn.search.grid(build, {"lr": [0.1]}, data, data).rows
    assert not trial["failed"] and len(trial["scores"]) == 1
