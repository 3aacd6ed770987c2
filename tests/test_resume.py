"""Checkpoints of a fit under way, and going on from them to the same bits."""

import errno
import functools
import json
import os
import random
import subprocess
import sys
import time

import numpy as np
import pytest

import clnn
from clnn import resume


class Crash(Exception):
    pass


class CrashAfter(clnn.Callback):
    """Ends fit before the others hear of an epoch."""

    def __init__(self, epoch):
        self.epoch = epoch

    def on_epoch_end(self, model, epoch, logs):
        if epoch == self.epoch:
            raise Crash


@pytest.fixture
def data(rng):
    return rng.random((70, 5)).astype(np.float32), rng.integers(0, 3, 70).astype(np.int32)


def net_of(seed, activation="relu", kind=clnn.Dropout, rate=0.3):
    return clnn.Sequential(
        [clnn.Dense(8, activation), kind(rate), clnn.BatchNorm(), clnn.Dense(3)], input_shape=5, seed=seed
    )


def fit(data, callbacks, epochs=6, optimizer=None, seed=3, first=1, net=None, **options):
    net = net_of(first) if net is None else net
    history = net.fit(
        *data, loss="cross_entropy", optimizer=optimizer or clnn.SGD(0.1, momentum=0.9), epochs=epochs, batch_size=32,
        seed=seed, callbacks=callbacks, progress=False, validation_split=0.3, **options,
    )  # fmt: skip
    return net, history.history


def same(one, two):
    (net, history), (other, others) = one, two
    for a, b in zip(net.state_dict().values(), other.state_dict().values(), strict=True):
        assert np.array_equal(a, b)
    kept, others_kept = (n.optimizer.state_dict()["arrays"] for n in (net, other))
    assert kept.keys() == others_kept.keys() and all(np.array_equal(kept[k], others_kept[k]) for k in kept)
    assert {k: v for k, v in history.items() if k != "seconds"} == {k: v for k, v in others.items() if k != "seconds"}
    assert net.optimizer.steps == other.optimizer.steps and net.optimizer.epochs == other.optimizer.epochs


@pytest.mark.parametrize("kind", [clnn.LSTM, clnn.GRU])
def test_states_that_layers_carry_on_are_those_of_the_checkpoint(device, rng, tmp_path, kind):
    """In a new model, and in the one that went on after its last checkpoint."""
    x, y = rng.random((8, 3, 2)).astype(np.float32), rng.integers(0, 3, 8)

    def run(folder, net, epochs, callbacks=(), **options):
        how = {"optimizer": clnn.Adam(0.05), "batch_size": 4, "shuffle": False, "progress": False}
        saving = clnn.Checkpoint(tmp_path / folder)
        history = net.fit(x, y, loss="cross_entropy", epochs=epochs, callbacks=[*callbacks, saving], **how, **options)
        return net, history.history

    def made():
        return clnn.Sequential([kind(4, stateful=True), clnn.Dense(3)], input_shape=(3, 2), seed=1)

    whole, crashed = run("whole", made(), 5), made()
    with pytest.raises(Crash):
        run("broken", crashed, 5, [CrashAfter(2)])
    crashed.predict(x, batch_size=4)
    (tmp_path / "again").mkdir()
    for file in (tmp_path / "broken").iterdir():
        (tmp_path / "again" / file.name).write_bytes(file.read_bytes())
    same(whole, run("broken", crashed, 5, resume=tmp_path / "broken"))
    same(whole, run("again", made(), 5, resume=tmp_path / "again"))


@pytest.mark.parametrize(
    "optimizer",
    [
        lambda: clnn.SGD(0.1, momentum=0.9),
        lambda: clnn.Adam(clnn.WarmUp(clnn.Cosine(0.05), epochs=2), ema=0.9),
        lambda: clnn.RMSprop(clnn.ReduceOnPlateau(0.1, patience=1)),
        lambda: clnn.SGD([(2, 0.1), (2, 0.03), (9, 0.01)]),
    ],
    ids=["momentum", "cosine", "plateau", "list"],
)
@pytest.mark.parametrize("seed", [3, None])
@pytest.mark.parametrize("every", [1, 2])
def test_a_fit_that_was_interrupted_ends_with_the_same_bits(data, tmp_path, optimizer, seed, every):
    def callbacks(name):
        return [clnn.Checkpoint(tmp_path / name, every=every), clnn.EarlyStopping(patience=3), clnn.GradientNorms()]

    clnn.seed(7)
    whole, norms = fit(data, given := callbacks("whole"), optimizer=optimizer(), seed=seed), given[2]
    clnn.seed(7)
    with pytest.raises(Crash):
        fit(data, [*callbacks("run"), CrashAfter(2)], optimizer=optimizer(), seed=seed, resume=tmp_path / "run")
    with pytest.raises(clnn.ConfigurationError, match=r"callbacks was .*EarlyStopping.* and is .'GradientNorms"):
        fit(data, callbacks("run")[2:], optimizer=optimizer(), seed=seed, resume=tmp_path / "run")
    clnn.seed(8)  # another process has other states everywhere
    again = fit(
        data,
        given := callbacks("run"),
        optimizer=optimizer(),
        seed=seed,
        first=2,
        resume=tmp_path / "run",
    )
    same(whole, again)
    assert given[2].history == norms.history
    # and a run that is over comes back as it ended
    same(whole, fit(data, callbacks("run"), optimizer=optimizer(), seed=seed, resume=tmp_path / "run"))


def test_a_run_that_patience_ended_says_so_where_it_comes_back(data, tmp_path):
    callbacks = lambda: [clnn.EarlyStopping("loss", 2, min_delta=9.0), clnn.Checkpoint(tmp_path)]  # noqa: E731
    fit(data, ended := callbacks(), resume=tmp_path)
    fit(data, again := callbacks(), resume=tmp_path)
    found = [(one.best, one.best_epoch, one.stopped_epoch) for one, _ in (ended, again)]
    assert found[0] == found[1] and found[1][1:] == (0, 2)


@pytest.mark.parametrize("crashes", [[0], [0, 0], [1, 0, 1]])
def test_a_run_that_never_comes_to_its_first_checkpoint_draws_the_same_again(data, tmp_path, crashes):
    clnn.seed(7)
    whole = fit(data, [clnn.Checkpoint(tmp_path / "whole", every=3)], seed=None)
    for number, epoch in enumerate(crashes):
        clnn.seed(7 + number)  # another process has other states
        with pytest.raises(Crash):
            fit(
                data,
                [clnn.Checkpoint(tmp_path / "run", every=3), CrashAfter(epoch)],
                seed=None,
                resume=tmp_path / "run",
            )
    clnn.seed(99)
    same(whole, fit(data, [clnn.Checkpoint(tmp_path / "run", every=3)], seed=None, resume=tmp_path / "run"))


class Halve(clnn.Callback):
    """Changes the rate as a user's own callback may, and knows nothing afterwards."""

    def on_epoch_end(self, model, epoch, logs):
        model.optimizer.lr = model.optimizer.lr / 2


def test_a_callback_whose_attributes_come_with_a_fit_goes_on(data, tmp_path):
    class Count(clnn.Callback):
        def on_train_begin(self, model):
            self.seen = 0

        def on_epoch_end(self, model, epoch, logs):
            self.seen += 1

        def state_dict(self):
            return {"seen": self.seen}

        def load_state_dict(self, state, model):
            self.seen = state["seen"]

    fit(data, [Count(), clnn.Checkpoint(tmp_path)], 2)
    fit(data, [count := Count(), clnn.Checkpoint(tmp_path)], 3, resume=tmp_path)
    assert count.seen == 3


def test_a_rate_that_a_callback_has_set_goes_on(data, tmp_path):
    whole = fit(data, [Halve(), clnn.Checkpoint(tmp_path / "whole")])
    with pytest.raises(Crash):
        fit(data, [Halve(), clnn.Checkpoint(tmp_path / "run"), CrashAfter(3)], resume=tmp_path / "run")
    same(whole, fit(data, [Halve(), clnn.Checkpoint(tmp_path / "run")], resume=tmp_path / "run"))


def own_rate(step):
    return 0.1 / (1 + step)


class Changes(clnn.Callback):
    """Changes what a user's own callback may of a model and its optimizer: {epoch: a function of the model}."""

    def __init__(self, changes):
        self.changes = changes

    def on_epoch_begin(self, model, epoch):
        self.changes.get(epoch, lambda model: None)(model)


CHANGES = {  # each of them before the crash, and then another one after it
    "frozen": {1: lambda m: setattr(m.layers[0], "trainable", False), 4: lambda m: setattr(m, "trainable", True)},
    "layer by layer": dict.fromkeys(
        range(1, 4), lambda m: next((setattr(one, "trainable", False) for one in m.layers if one.trainable), None)
    ),
    "one parameter": {2: lambda m: setattr(m.layers[0].b, "trainable", False)},
    "rate_factor": {1: lambda m: setattr(m.layers[0].w, "rate_factor", 0.25)},
    "decays": {
        0: lambda m: setattr(m.layers[0].b, "decays", True),
        3: lambda m: setattr(m.layers[3].w, "decays", False),
    },
    "max_norm": {2: lambda m: setattr(m.layers[0], "max_norm", 0.5)},
    "dropout": {1: lambda m: setattr(m.layers[1], "rate", 0.6), 4: lambda m: setattr(m.layers[1], "rate", 0.1)},
    "activation": {1: lambda m: setattr(m.layers[0], "activation", None)},
    "momentum": {2: lambda m: setattr(m.layers[2], "momentum", 0.5)},
    "loss": {
        1: lambda m: setattr(m.loss, "label_smoothing", 0.2),
        4: lambda m: setattr(m.loss, "label_smoothing", 0.1),
    },
    "clip_norm": {1: lambda m: setattr(m.optimizer, "clip_norm", None)},
    "schedule": {1: lambda m: setattr(m.optimizer, "lr", clnn.Cosine(0.2))},
    "another schedule": {
        1: lambda m: setattr(m.optimizer, "lr", clnn.ReduceOnPlateau(0.2, patience=0, threshold=0.5)),
        4: lambda m: setattr(m.optimizer, "lr", [(1, 0.01), (4, 0.1), (5, 0.3)]),
    },
}


@pytest.mark.parametrize("changes", CHANGES)
@pytest.mark.parametrize("rate", [0.1, own_rate], ids=["number", "function"])
@pytest.mark.filterwarnings("ignore::clnn.CheckpointWarning")
def test_what_a_callback_has_changed_goes_on(data, tmp_path, changes, rate):
    def callbacks(name):
        return [Changes(CHANGES[changes]), clnn.Checkpoint(tmp_path / name)]

    def optimizer():
        return clnn.SGD(rate, momentum=0.9, weight_decay=0.1, clip_norm=0.5)

    whole = fit(data, callbacks("whole"), optimizer=optimizer())
    for crash in (3, 5):
        with pytest.raises(Crash):
            fit(data, [*callbacks("run"), CrashAfter(crash)], optimizer=optimizer(), resume=tmp_path / "run")
    again = fit(data, callbacks("run"), optimizer=optimizer(), resume=tmp_path / "run")
    same(whole, again)
    for one, other in zip(whole[0].parameters(), again[0].parameters()):
        assert (one.trainable, resume.settings(one)) == (other.trainable, resume.settings(other))
    assert [one.trainable for one in whole[0].layers] == [one.trainable for one in again[0].layers]


@clnn.register
class Factor(clnn.Layer):
    """One whose argument is no attribute."""

    def __init__(self, factor):
        self.by = factor

    def config(self):
        return {"factor": self.by}

    def forward(self, x):
        return x * self.by


def test_what_nothing_sets_again_is_refused(data, tmp_path):
    def run(*callbacks):
        net = clnn.Sequential([Factor(1.0), clnn.Dense(3)], input_shape=5, seed=1)
        return fit(data, [*callbacks, clnn.Checkpoint(tmp_path)], net=net, resume=tmp_path)

    with pytest.raises(Crash):
        run(Changes({2: lambda m: setattr(m.layers[0], "by", 0.5)}), CrashAfter(3))
    with pytest.raises(
        clnn.ConfigurationError, match="nothing sets again .* of layer layers.0, by then .'factor': 0.5"
    ):
        run(Changes({}), CrashAfter(9))


def test_weights_of_losses_that_a_callback_has_changed_go_on(tmp_path, rng):
    a, x, y = clnn.Input((5,)), rng.random((24, 5)), rng.random((24, 1))

    def run(name, *callbacks):
        one = clnn.Dense(1, weight_init=0.2)
        net = clnn.Model(a, {"one": one(a), "two": clnn.Dense(1, weight_init=0.1)(a)})
        callbacks = [Changes({1: lambda m: setattr(m.loss, "weights", [0.0, 3.0])}), clnn.Checkpoint(name), *callbacks]
        history = net.fit(
            x, {"one": y, "two": y}, loss="mse", optimizer=clnn.SGD(0.1), seed=1, epochs=5, progress=False, resume=name,
            callbacks=callbacks,
        )  # fmt: skip
        return net, history.history

    whole = run(tmp_path / "whole")
    with pytest.raises(Crash):
        run(tmp_path / "run", CrashAfter(3))
    same(whole, run(tmp_path / "run"))


class OwnSchedule(clnn.Schedule):
    def rate(self, t):
        return 0.1 / (1 + t)


@pytest.mark.filterwarnings("ignore::clnn.CheckpointWarning")  # files go without such a schedule, which is said
@pytest.mark.parametrize(
    "rate",
    [lambda: own_rate, OwnSchedule, lambda: clnn.WarmUp(OwnSchedule(), 3), lambda: functools.partial(own_rate)],
    ids=["function", "schedule", "warm-up", "partial"],
)
def test_a_schedule_that_no_file_can_hold(data, tmp_path, rate):
    whole = fit(data, [clnn.Checkpoint(tmp_path / "whole")], optimizer=clnn.SGD(rate()))
    with pytest.raises(Crash):
        fit(
            data,
            [clnn.Checkpoint(tmp_path / "run"), CrashAfter(3)],
            optimizer=clnn.SGD(rate()),
            resume=tmp_path / "run",
        )
    again = fit(data, [clnn.Checkpoint(tmp_path / "run")], optimizer=clnn.SGD(rate()), resume=tmp_path / "run")
    same(whole, again)
    with pytest.raises(clnn.ConfigurationError, match=r"optimizer was .* and is"):
        fit(data, [clnn.Checkpoint(tmp_path / "run")], optimizer=clnn.SGD(0.1), resume=tmp_path / "run")


def test_a_file_is_a_model_too_and_so_many_are_kept(data, tmp_path):
    net, _ = fit(data, [clnn.Checkpoint(tmp_path, keep=3)], epochs=5)
    assert [file.name for file in resume.saved_in(tmp_path)] == [f"epoch-00000{i}.safetensors" for i in (3, 4, 5)]
    assert np.array_equal(clnn.load(tmp_path / "epoch-000005.safetensors").predict(data[0]), net.predict(data[0]))
    # from an older one: the others are set aside, and the end is the same
    two = fit(data, [clnn.Checkpoint(tmp_path, keep=3)], epochs=5, resume=tmp_path / "epoch-000003.safetensors")
    assert np.array_equal(two[0].predict(data[0]), net.predict(data[0]))
    assert len(list(tmp_path.glob("*.set-aside"))) == 2


def test_what_is_neither_a_file_nor_a_folder(tmp_path):
    """A device or a pipe, which was taken for a folder without checkpoints: the run began anew."""
    os.mkfifo(tmp_path / "pipe")
    os.symlink("/dev/zero", tmp_path / "link")
    for path in ("/dev/zero", "/dev/null", tmp_path / "pipe", tmp_path / "link"):
        with pytest.raises(clnn.CheckpointError, match=f"{path} is no file, but a folder or a device"):
            resume.Resumed(path)
    assert resume.Resumed(tmp_path).run is resume.Resumed(tmp_path / "none").run is None


def test_files_are_in_the_order_of_their_epochs(data, tmp_path):
    """Names grow by a digit at the millionth epoch."""
    checkpoint = clnn.Checkpoint(tmp_path)
    net, _ = fit(data, [checkpoint], epochs=1)
    for epoch in range(999_997, 1_000_002):
        checkpoint.on_epoch_end(net, epoch, {})
    names = ["epoch-1000001.safetensors", "epoch-1000002.safetensors"]
    assert [file.name for file in resume.saved_in(tmp_path)] == names
    assert resume.Resumed(tmp_path).epochs == 1_000_002
    # from an older file, by whatever name, those of later epochs are set aside
    checkpoint.on_epoch_end(net, 999_998, {})
    (copy := tmp_path / "good.safetensors").write_bytes((tmp_path / names[0]).read_bytes())
    fit(data, [checkpoint], epochs=1, resume=copy)
    assert [file.name for file in resume.saved_in(tmp_path)] == names[:1]
    assert [file.name for file in tmp_path.glob("*.set-aside")] == ["epoch-1000002.set-aside"]


def test_only_the_best(data, tmp_path):
    best = clnn.Checkpoint(tmp_path, best_only=True, monitor="loss", keep=9)
    _, history = fit(data, [best], epochs=8)
    lowest = [i + 1 for i, v in enumerate(history["loss"]) if v < min(history["loss"][:i], default=9)]
    assert [int(file.stem[6:]) for file in resume.saved_in(tmp_path)] == lowest
    with pytest.raises(clnn.ConfigurationError, match="Checkpoint: nothing called 'val_f1' is measured"):
        fit(data, [clnn.Checkpoint(tmp_path / "other", best_only=True, monitor="val_f1", mode="max")])


def test_by_the_clock(data, tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(resume.time, "monotonic", lambda: now[0])

    class Clock(clnn.Callback):
        def on_epoch_begin(self, model, epoch):
            now[0] += 40

    fit(data, [clnn.Checkpoint(tmp_path, minutes=1, keep=9), Clock()], epochs=6)
    assert [int(file.stem[6:]) for file in resume.saved_in(tmp_path)] == [0, 2, 4, 6]


def test_a_damaged_newest_file_gives_way_to_the_one_before(data, tmp_path):
    whole = fit(data, [clnn.Checkpoint(tmp_path)])
    newest = resume.saved_in(tmp_path)[-1]
    newest.write_bytes(newest.read_bytes()[:200])
    with pytest.warns(clnn.CheckpointWarning, match="damaged.*the checkpoint before it is taken"):
        same(whole, fit(data, [clnn.Checkpoint(tmp_path)], resume=tmp_path))
    for file in resume.saved_in(tmp_path):
        file.write_bytes(b"nothing")
    with pytest.raises(clnn.CheckpointError), pytest.warns(clnn.CheckpointWarning):
        fit(data, [clnn.Checkpoint(tmp_path)], resume=tmp_path)


def changed(value):
    """A JSON value with each of its parts taken out, or of another kind, one at a time."""
    keys = value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    for key in keys:
        yield [*value[:key], *value[key + 1 :]] if isinstance(value, list) else {k: value[k] for k in value if k != key}
        parts = [{"text": 1} if value[key] is None else None, *changed(value[key])]
        for part in parts:
            copied = value.copy()
            copied[key] = part
            yield copied


def test_a_header_that_was_changed_is_refused_before_anything_is(data, tmp_path):
    """Whatever was: what a fit would have to look at are hundreds of keys, of optimizers, schedules and callbacks too."""
    callbacks = [clnn.Checkpoint(tmp_path / "run"), clnn.EarlyStopping("loss", patience=9)]
    fit(data, callbacks, 1, clnn.Adam(clnn.Cosine(0.1)))
    *_, file = resume.saved_in(tmp_path / "run")
    whole, other = file.read_bytes(), tmp_path / "other.safetensors"
    size = int.from_bytes(whole[:8], "little")
    outer = json.loads(whole[8 : 8 + size])
    header, metadata = json.loads(outer["__metadata__"]["clnn"]), outer["__metadata__"]

    def write(inner, **rest):
        text = json.dumps({**outer, "__metadata__": {**rest, "clnn": json.dumps(inner)}}).encode()
        other.write_bytes(len(text).to_bytes(8, "little") + text + whole[8 + size :])

    net = net_of(1)
    before = net.state_dict()
    tried = [*changed(header)]
    assert len(tried) > 300
    for number, inner in enumerate(tried):
        write(inner, sum=metadata["sum"])
        with pytest.raises(clnn.CheckpointError, match=r"its header was changed since.*restore it from a copy"):
            resume.Resumed(other) if number % 50 else fit(data, [], 2, net=net, resume=other)
    assert all((array == before[name]).all() for name, array in net.state_dict().items())
    with pytest.raises(clnn.CheckpointError, match="its header was changed since"):
        clnn.load(other)
    write(header | {"frozen": []})  # as older files are
    clnn.load(other)
    write(header, sum=metadata["sum"])
    clnn.load(other)


def test_a_full_disk_leaves_the_last_good_one(data, tmp_path, monkeypatch):
    real, left = os.fsync, [3]

    def full(descriptor):
        left[0] -= 1
        if left[0] < 0 and left[0] > -3:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.warns(clnn.CheckpointWarning, match="No space left.*training goes on, and the last good.*epoch-000002"):
        whole = fit(data, [clnn.Checkpoint(tmp_path)], epochs=4)
    assert sorted(file.name for file in tmp_path.iterdir()) == [f"epoch-{i:06d}.safetensors" for i in (1, 2)]
    same(whole, fit(data, [clnn.Checkpoint(tmp_path)], epochs=4, resume=tmp_path))


def test_what_does_not_fit_is_said(data, tmp_path):
    fit(data, [clnn.Checkpoint(tmp_path / "run")], epochs=2)
    with pytest.raises(clnn.ConfigurationError, match="holds a run already, up to epoch-000002.*resume="):
        fit(data, [clnn.Checkpoint(tmp_path / "run")])
    with pytest.raises(clnn.ConfigurationError, match="seed was 3 and is 4"):
        fit(data, [clnn.Checkpoint(tmp_path / "run")], seed=4, resume=tmp_path / "run")
    for other, told in (
        ({"optimizer": clnn.Adam()}, "optimizer was .*sgd.* and is .*adam"),
        ({"optimizer": clnn.SGD(0.2, momentum=0.9)}, "optimizer was .*0.1.* and is .*0.2"),
        ({"optimizer": clnn.SGD(clnn.Cosine(0.1), momentum=0.9)}, "optimizer was .* and is .*osine"),
        ({"shuffle": False}, "shuffle was True"),
    ):
        with pytest.raises(clnn.ConfigurationError, match=told):
            fit(data, [], resume=tmp_path / "run", **other)
    with pytest.raises(clnn.CheckpointError, match="net.save wrote"):
        fit(data, [])[0].save(tmp_path / "net.safetensors")
        fit(data, [], resume=tmp_path / "net.safetensors")
    other = clnn.Sequential([clnn.Dense(3)], input_shape=5)
    before = other.state_dict()
    with pytest.raises(
        clnn.ConfigurationError, match=r"model was \['Sequential.* and is .*'layers': \['Dense'\].*: give"
    ):
        other.fit(
            *data,
            loss="cross_entropy",
            optimizer=clnn.SGD(0.1, momentum=0.9),
            batch_size=32,
            seed=3,
            validation_split=0.3,
            resume=tmp_path / "run",
        )
    assert all(np.array_equal(a, b) for a, b in zip(before.values(), other.state_dict().values()))
    frozen = clnn.Sequential(
        [clnn.Dense(8, "relu"), clnn.Dropout(0.3), clnn.BatchNorm(), clnn.Dense(3)], input_shape=5, seed=4
    )
    frozen.layers[0].trainable = False
    before = frozen.state_dict()
    with pytest.raises(clnn.ConfigurationError, match=r"frozen was \[\] and is \['0.b', '0.w'\]"):
        frozen.fit(
            *data, loss="cross_entropy", optimizer=clnn.SGD(0.1, momentum=0.9), epochs=6, batch_size=32, seed=3,
            validation_split=0.3, resume=tmp_path / "run",
        )  # fmt: skip
    assert all(np.array_equal(a, b) for a, b in zip(before.values(), frozen.state_dict().values()))
    usual = lambda net: None  # noqa: E731
    for layers, change, told in (
        (
            {},
            lambda net: setattr(net.layers[0].w, "rate_factor", 0.5),
            r"\(rate_.*norm\) of 0.w was \[1.0, .* and is \[0.5, T",
        ),
        ({"rate": 0.6}, usual, r"layer layers.1 was \['Dropout', .*0.3.* and is \['Dropout', .*0.6"),
        ({"activation": "tanh"}, usual, r"layers.0 was \['Dense', .*relu.* and is .*tanh"),
        (
            {"kind": clnn.GaussianDropout},
            usual,
            r"model was .*'Dropout'.*layers.1 was \['Dropout.* and is \['GaussianDropout",
        ),
    ):
        other = net_of(seed=4, **layers)
        change(other)
        before = other.state_dict()
        with pytest.raises(clnn.ConfigurationError, match=f"{told}.*: give the same"):
            fit(data, [], net=other, resume=tmp_path / "run")
        assert all(np.array_equal(a, b) for a, b in zip(before.values(), other.state_dict().values()))
    with pytest.raises(clnn.ConfigurationError, match="keep"):
        clnn.Checkpoint(tmp_path, keep=0)
    with pytest.raises(clnn.ConfigurationError, match="no checkpoint in .*rnu, and no Checkpoint among"):
        fit(data, [], resume=tmp_path / "rnu")
    with pytest.raises(TypeError, match="given by its path.* not by True"):
        fit(data, [], resume=True)
    with pytest.raises(clnn.ConfigurationError, match="two Checkpoints in .*a delete"):
        fit(data, [clnn.Checkpoint(tmp_path / "a"), clnn.Checkpoint(tmp_path / "b" / ".." / "a", best_only=True)])


def size(y, t):
    return (y * y).mean(axis=-1)


W = np.linspace(0.5, 2, 24, dtype=np.float32)
OTHERS = {  # what a run had, what it goes on with, and what is said
    "other weights of classes": (
        {"class_weight": {1: 5.0}},
        {"class_weight": {0: 9.0}},
        "class_weight was .*'1': 5.0.* and is .*'0'",
    ),
    "no weights of classes": ({"class_weight": {1: 5.0}}, {}, "class_weight was .*5.0.* and is None"),
    "balanced": ({}, {"class_weight": "balanced"}, "class_weight was None and is 'balanced'"),
    "weights": ({}, {"sample_weight": W}, "sample_weight was None and is 'given'"),
    "validation": ({}, {"validation": 5}, "validation was None and is 5"),
    "no validation": ({"validation": 5}, {}, "validation was 5 and is None"),
    "more validation": ({"validation": 5}, {"validation": 6}, "validation was 5 and is 6"),
    "batches of validation": ({"validation": 5}, {"validation": [5, 6]}, "validation was 5 and is '2 batches'"),
    "other validation": (
        {"validation": 5},
        {"validation": 5, "moved": 1},
        "checksum of the validation was [0-9]+ and is",
    ),
    "other samples": ({}, {"scale": 1.01}, "checksum of the samples was [0-9]+ and is"),
    "other weights": ({"sample_weight": W}, {"sample_weight": W * 2}, "checksum of the samples was [0-9]+ and is"),
    "a metric": ({}, {"metrics": [size]}, r"metrics was \['accuracy'\] and is \['accuracy', 'size'\]"),
    "another metric": ({"metrics": ["top_2"]}, {"metrics": [size]}, "metrics was .*'top_2'.* and is .*'size'"),
    "no classes": ({}, {"loss": "mse", "labels": False}, r"metrics was \['accuracy'\] and is \[\]"),
}


def measured(folder, epochs, *, validation=None, labels=True, moved=0, scale=1, **options):
    """The history of a fit with what is measured, and by which weights."""
    r = np.random.default_rng(0)
    x, y = r.random((24, 5), np.float32) * scale, r.integers(0, 3, 24)
    y = y if labels else r.random((24, 3), np.float32)
    if isinstance(validation, list):
        validation = [(x[:n], y[:n]) for n in validation]
    elif validation:
        validation = x[moved : moved + validation], y[moved : moved + validation]
    options = {"loss": "cross_entropy", "optimizer": "adam", "seed": 1, "validation": validation} | options
    net = clnn.Sequential([clnn.Dense(3)], input_shape=5, seed=0)
    return net.fit(
        x, y, epochs=epochs, progress=False, callbacks=[clnn.Checkpoint(folder)], resume=folder, **options
    ).history


@pytest.mark.parametrize("what", OTHERS)
def test_what_is_measured_and_weighted_is_the_same_where_a_run_goes_on(tmp_path, what):
    first, second, told = OTHERS[what]
    measured(tmp_path, 1, **first)
    with pytest.raises(
        clnn.ConfigurationError, match=f"resume: .* is of a fit whose .*{told}.*give the same, or train what"
    ):
        measured(tmp_path, 3, **second)
    found = measured(tmp_path, 3, **first)
    assert {len(values) for values in found.values()} == {3}


def test_losses_of_several_outputs_are_the_same_where_a_run_goes_on(tmp_path):
    a, r = clnn.Input((5,)), np.random.default_rng(0)
    x, y = r.random((24, 5), np.float32), r.random((24, 1), np.float32)

    def run(epochs, **options):
        net = clnn.Model(a, {"one": clnn.Dense(1)(a), "two": clnn.Dense(1)(a)})
        return net.fit(
            x, {"one": y, "two": y}, optimizer="adam", seed=1, epochs=epochs, progress=False, resume=tmp_path,
            callbacks=[clnn.Checkpoint(tmp_path)], **options,
        ).history  # fmt: skip

    run(1, loss="mse", loss_weights={"one": 1.0, "two": 2})
    with pytest.raises(clnn.ConfigurationError, match=r"whose loss_weights was \[1.0, 2.0\] and is \[1.0, 1.0\]"):
        run(2, loss="mse")
    with pytest.raises(clnn.ConfigurationError, match="whose losses was .*mse.* and is .*mae"):
        run(2, loss={"one": "mse", "two": "mae"}, loss_weights={"one": 1, "two": 2})
    with pytest.raises(clnn.ConfigurationError, match="metrics was .* and is .*'two_size'"):
        run(2, loss="mse", loss_weights={"one": 1, "two": 2}, metrics={"two": [size]})
    assert len(run(2, loss="mse", loss_weights={"one": 1, "two": 2.0})["two_loss"]) == 2


@pytest.mark.parametrize("how", ["sparse", "mapped", "strided", "many"])
def test_samples_in_any_form_are_known_again(tmp_path, monkeypatch, how):
    sparse = pytest.importorskip("scipy.sparse") if how == "sparse" else None
    from clnn.data import mapped, validate

    monkeypatch.setattr(mapped, "MAPPED_BYTES", 0)
    x, y = np.random.default_rng(0).random((3000, 40)), np.arange(3000) % 3
    if how == "many":
        x = x[:, :1]
        monkeypatch.setattr(validate, "STRETCH", 4)

    def given(x):
        if how == "mapped":
            np.save(tmp_path / "x.npy", x)
            return np.load(tmp_path / "x.npy", mmap_mode="r")
        return sparse.csr_matrix(x) if sparse else x[:, ::-1] if how == "strided" else x

    def run(x, epochs):
        net = clnn.Sequential([clnn.Dense(3)], input_shape=x.shape[1], seed=0)
        return net.fit(
            given(x), y, loss="cross_entropy", optimizer="sgd", batch_size=1000, epochs=epochs, seed=1, progress=False,
            callbacks=[clnn.Checkpoint(tmp_path / "run")], resume=tmp_path / "run",
        )  # fmt: skip

    run(x, 1)
    assert len(run(x, 2)["loss"]) == 2
    other = x.copy()
    other[0, 0] += 1
    with pytest.raises(clnn.ConfigurationError, match="checksum of the samples was"):
        run(other, 3)


def test_what_is_given_in_another_form_is_the_same(tmp_path):
    measured(tmp_path, 1, class_weight={0: 2, True: 5.0}, metrics=["accuracy", "top_2"], validation=[5, 6])
    found = measured(
        tmp_path, 2, class_weight={np.int64(1): np.float32(5), 0: 2.0}, metrics=["top_2"], validation=[5, 6]
    )
    assert {len(values) for values in found.values()} == {2}


def test_a_working_folder_that_is_gone(data, tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    (tmp_path / "here").rmdir()
    with pytest.raises(clnn.ConfigurationError, match="Checkpoint: run cannot be written"):
        fit(data, [clnn.Checkpoint("run")])


RUN = """
import sys, hashlib, numpy as np, clnn
r = np.random.default_rng(0)
net = clnn.Sequential([clnn.Dense(32, "relu"), clnn.Dropout(0.3), clnn.Dense(4)], input_shape=20)
callbacks = [clnn.Checkpoint(sys.argv[1])]
net.fit(r.random((2000, 20), dtype="f"), r.integers(0, 4, 2000), loss="cross_entropy", optimizer=clnn.Adam(0.01), epochs=20,
        seed=5, callbacks=callbacks, resume=sys.argv[1], progress=False)
print(hashlib.sha256(b"".join(a.tobytes() for a in net.state_dict().values())).hexdigest())
"""


@pytest.mark.slow
def test_a_run_that_is_killed_again_and_again(tmp_path):
    """From one first state: kill -9 at twenty random moments, and the bits of the run that nobody disturbed."""
    script, first = tmp_path / "run.py", tmp_path / "first"
    script.write_text(RUN)

    def run(folder, seconds=None):
        process = subprocess.Popen([sys.executable, script, folder], stdout=subprocess.PIPE, text=True)
        if seconds is None:
            return process.communicate()[0].split()
        end = time.time() + 60  # once the run is on its way
        before = [file.name for file in resume.saved_in(folder)]
        while (
            [file.name for file in resume.saved_in(folder)] == before and process.poll() is None and time.time() < end
        ):
            time.sleep(0.005)
        time.sleep(seconds)
        process.kill()
        process.communicate()
        return None

    run(first, 0.0)
    start = resume.saved_in(first)[0]
    killed = tmp_path / "killed"
    killed.mkdir()
    (killed / start.name).write_bytes(start.read_bytes())
    (expected,) = run(first)
    moments = random.Random(1)
    for _ in range(20):
        run(killed, 0.15 * moments.random())
    assert run(killed) == [expected]


@pytest.mark.parametrize("which", ["best", "all", "a file"])
def test_several_checkpoints_of_one_run_go_on_from_any(data, tmp_path, which):
    """The one that `resume` did not name held "a run already", so that such a fit was never gone on with."""

    def both(folder):
        best, every = folder / "best", folder / "all"
        return [clnn.Checkpoint(best, best_only=True, monitor="lr", mode="max", keep=9), clnn.Checkpoint(every, keep=9)]

    def rates(epoch):
        return 0.1 * (epoch + 1)

    whole = fit(data, [clnn.LearningRate(rates), *both(tmp_path / "whole")])
    with pytest.raises(Crash):
        fit(data, [clnn.LearningRate(rates), *both(tmp_path / "run"), CrashAfter(3)])
    if which == "best":  # the other one is an epoch behind, as where the crash came between the two
        (tmp_path / "run" / "all" / "epoch-000003.safetensors").unlink()
    source = tmp_path / "run" / (which if which != "a file" else "all/epoch-000002.safetensors")
    same(whole, fit(data, [clnn.LearningRate(rates), *both(tmp_path / "run")], resume=source))
    for kept in ("best", "all"):
        names = (
            sorted(file.name for file in (tmp_path / run / kept).glob("*.safetensors")) for run in ("whole", "run")
        )
        assert {*next(names)} - {*next(names)} <= {"epoch-000003.safetensors"}
    with pytest.raises(clnn.ConfigurationError, match="best holds a run already"):
        fit(data, both(tmp_path / "run"))
    fit(data, both(tmp_path / "other"), epochs=1)
    with pytest.raises(clnn.ConfigurationError, match="best holds a run already"):
        fit(data, both(tmp_path / "run"), resume=tmp_path / "other" / "all")
