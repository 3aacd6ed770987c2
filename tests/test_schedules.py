"""Schedules: their rates step by step, what fit tells them, warm-up, plateaus, and going on from a file."""

import json
import math
import struct
from fractions import Fraction

import numpy as np
import pytest

import clnn
from clnn.runtime import recording
from clnn.schedules import SCHEDULES, find_rate

ROWS, BATCH = 47, 10  # five steps an epoch, the last of seven rows


def cosine(a, b, share):
    return b + (a - b) * (1 + math.cos(math.pi * share)) / 2


class Halving(clnn.Schedule):
    """As its base asks for it: the arguments are attributes, and there is a rate."""

    def __init__(self, lr):
        self.lr = lr

    def rate(self, t):
        return self.lr * 0.5 ** (t // 5)


def test_a_schedule_of_your_own_needs_no_more_than_its_docstring_says(device):
    x, y = np.ones((20, 3), np.float32), np.ones((20, 2), np.float32)
    for lr, first in ((Halving(0.4), 0.4), (clnn.WarmUp(Halving(0.4), epochs=0.4), 0.2)):
        optimizer = clnn.SGD(lr)
        net = clnn.Sequential([clnn.Dense(2)], input_shape=3)
        history = net.fit(x, y, loss="mse", optimizer=optimizer, batch_size=4, epochs=2, progress=False)
        assert history["lr"] == [0.4, 0.2] and (optimizer.rate(0), optimizer.rate(5)) == (first, 0.2)
    assert repr(Halving(0.4)) == "Halving(lr=0.4)" and Halving(0.1).state_dict() == {"clock": [None, None, 0]}


RATES = {  # name: a schedule in steps, and the rate of step t in a second spelling
    "constant": (lambda: clnn.schedules.Constant(0.3), lambda t: 0.3),
    "step": (lambda: clnn.StepDecay(0.8, 3, 0.5, 1), lambda t: [0.8, 0.4, 0.2, 0.1, 0.05, 0.025, 0.0125][t // 3]),
    "exponential": (lambda: clnn.schedules.Exponential(0.8, 0.9, 1), lambda t: 0.8 * math.exp(t * math.log(0.9))),
    "cosine": (lambda: clnn.Cosine(0.8, 12, 0.1, 1), lambda t: cosine(0.8, 0.1, min(t, 12) / 12)),
    "linear": (lambda: clnn.schedules.Linear(0.8, 12, 0.2, 1), lambda t: max(0.2, 0.8 - 0.05 * t)),
    "piecewise": (
        lambda: clnn.schedules.Piecewise([(2, 0.1), (3, 0.2), (1, 0.3)], 1),
        lambda t: 0.1 if t < 2 else 0.2 if t < 5 else 0.3,
    ),
    "one cycle": (
        lambda: clnn.OneCycle(0.8, 20, 0.25, 8.0, 100.0, 1),
        lambda t: cosine(0.1, 0.8, t / 4) if t < 4 else cosine(0.8, 0.001, min(1, (t - 4) / 15)),
    ),
    "warm-up": (lambda: clnn.WarmUp(0.4, 4, steps_per_epoch=1), lambda t: 0.1 * min(4, t + 1)),
    "warm-up from": (lambda: clnn.WarmUp(0.4, 4, 0.5, 1), lambda t: 0.4 * min(1, 0.5 + 0.125 * (t + 1))),
    "warm-up of a cosine": (
        lambda: clnn.WarmUp(clnn.Cosine(0.8, 12, steps_per_epoch=1), 3),
        lambda t: min(1, (t + 1) / 3) * cosine(0.8, 0, min(t, 12) / 12),
    ),
    "plateau": (lambda: clnn.ReduceOnPlateau(0.4), lambda t: 0.4),
}
IN_EPOCHS = {  # the same kinds, as fit binds them
    "list": lambda: [(1, 0.3), (2, 0.1), (1, 0.02)],
    "step": lambda: clnn.StepDecay(0.3, 1, 0.5),
    "exponential": lambda: clnn.schedules.Exponential(0.3, 0.7),
    "cosine": lambda: clnn.Cosine(0.3, epochs=4),
    "linear": lambda: clnn.schedules.Linear(0.3, epochs=3, final=0.01),
    "one cycle": lambda: clnn.OneCycle(0.3, epochs=4),
    "plateau": lambda: clnn.ReduceOnPlateau(0.3, 0.5, patience=0, threshold=0.5),
    "warm-up": lambda: clnn.WarmUp(clnn.Cosine(0.3, epochs=4), 2),
    "warm-up of a plateau": lambda: clnn.WarmUp(clnn.ReduceOnPlateau(0.3, 0.5, 0, 0.5, cooldown=1), 2),
    "in steps": lambda: clnn.schedules.Linear(0.3, epochs=13, steps_per_epoch=1),
}


@pytest.fixture
def task(device, rng):
    """Samples of three classes, and a way to make the same net again."""
    x, y = rng.standard_normal((ROWS, 6)).astype(np.float32), rng.integers(0, 3, ROWS).astype(np.int32)

    def make(*more):
        with clnn.use(device):
            return clnn.Sequential([clnn.Dense(8, "tanh"), *more, clnn.Dense(3)], input_shape=6, seed=1)

    def fit(net, optimizer, epochs, **options):
        given = {"loss": "cross_entropy", "batch_size": BATCH, "seed": 3, **options}
        return net.fit(x, y, optimizer=optimizer, epochs=epochs, **given)

    return make, fit


def weights(net):
    return np.concatenate([p.numpy().ravel() for p in net.parameters()])


@pytest.mark.parametrize("name", RATES)
def test_rates(name):
    make, expected = RATES[name]
    schedule = make()
    assert [schedule(t) for t in range(21)] == pytest.approx([expected(t) for t in range(21)], rel=1e-12)
    assert type(schedule).__name__ in repr(schedule)


@pytest.mark.parametrize("per", [1, 3, 5, 10])
@pytest.mark.parametrize("every", ["1/10", "3/10", "1/3", "1/2", "1", "3/2", "5/2", "7"])
def test_decays_do_not_drift_where_they_come_between_steps(per, every):
    """The k-th is within half a step of k `every` epochs, however many there were, and at whole steps exactly there."""
    schedule, exact = clnn.StepDecay(1.0, float(Fraction(every)), 0.99, per), Fraction(every) * per
    for t in (*range(30), 997, 1000):
        decays = round(math.log(schedule(t), 0.99))
        assert exact * decays <= t + Fraction(1, 2) and exact * (decays + 1) >= t + Fraction(1, 2)
        assert exact.denominator > 1 or decays == t // exact


def test_every_schedule_is_tried():
    assert {type(make()) for make, _ in RATES.values()} == set(SCHEDULES.values())


@pytest.mark.parametrize("name", RATES)
def test_config_makes_the_same_schedule(name):
    schedule = RATES[name][0]()
    optimizer = clnn.Adam(lr=schedule)
    config = json.loads(json.dumps(optimizer.config()))
    again = clnn.Adam(**config)
    assert type(again.lr) is type(schedule) and again.config() == optimizer.config()
    assert [again.rate(t) for t in range(21)] == [schedule(t) for t in range(21)]


@pytest.mark.parametrize("total", [1, 2, 3, 7])
def test_short_ones(total):
    """No division by nothing where a schedule has a few steps only."""
    for schedule in (
        clnn.OneCycle(0.8, total, steps_per_epoch=1),
        clnn.OneCycle(0.8, total, 0.0, steps_per_epoch=1),
        clnn.OneCycle(0.8, total, 1 / 3, steps_per_epoch=1),
        clnn.Cosine(0.8, total, steps_per_epoch=1),
        clnn.schedules.Linear(0.8, 0.01, steps_per_epoch=total),
    ):
        rates = [schedule(t) for t in range(10)]
        assert all(0 <= r <= 0.8 for r in rates) and min(rates) < 0.8


# -- in fit -----------------------------------------------------------------------------------------------------------
def test_fit_says_how_long_an_epoch_is(task):
    make, fit = task
    history = fit(make(), clnn.SGD([(2, 0.1), (1, 0.05), (9, 0.01)]), 4)
    assert history["lr"] == [0.1, 0.1, 0.05, 0.01]  # of each epoch's last step
    history = fit(make(), clnn.Adam(clnn.StepDecay(0.1, every=2, factor=0.5)), 5)
    assert history["lr"] == [0.1, 0.1, 0.05, 0.05, 0.025]


def test_without_epochs_a_schedule_spans_the_fit(task):
    make, fit = task
    optimizer = clnn.SGD(clnn.schedules.Linear(0.2))
    history = fit(make(), optimizer, 4)
    assert history["lr"] == pytest.approx([0.2 * (1 - t / 20) for t in (4, 9, 14, 19)])
    net = make()
    optimizer = clnn.SGD(clnn.schedules.Linear(0.2))
    history = fit(net, optimizer, 2)
    assert history["lr"] == pytest.approx([0.2 * (1 - t / 10) for t in (4, 9)])
    history = fit(net, optimizer, 2)  # the line is that of all epochs so far and to come
    assert history["lr"] == pytest.approx([0.2 * (1 - t / 20) for t in (14, 19)])


def test_epochs_count_where_their_length_changes(task):
    make, fit = task
    net, optimizer = make(), clnn.SGD([(2, 0.3), (2, 0.2), (9, 0.1)])
    assert fit(net, optimizer, 1)["lr"] == [0.3]
    assert fit(net, optimizer, 3, batch_size=5)["lr"] == [0.3, 0.2, 0.2]
    assert fit(net, optimizer, 1, batch_size=47)["lr"] == [0.1]
    assert optimizer.steps == 5 + 30 + 1


def test_an_interrupted_fit_goes_on_where_it_was(task):
    make, fit = task

    class Stop(clnn.Callback):
        def on_epoch_end(self, model, epoch, logs):
            model.stop_training = epoch == 1

    whole, half = make(), make()
    fit(whole, clnn.SGD(clnn.Cosine(0.3)), 5)
    optimizer = clnn.SGD(clnn.Cosine(0.3))
    fit(half, optimizer, 5, callbacks=[Stop()])
    fit(half, optimizer, 3)
    assert np.array_equal(weights(whole), weights(half))


@pytest.mark.parametrize("name", IN_EPOCHS)
def test_a_file_in_the_middle_resumes_exactly(device, task, tmp_path, name):
    make, fit = task
    whole, half = make(clnn.Dropout(0.2)), make(clnn.Dropout(0.2))
    rates = fit(whole, clnn.Nadam(IN_EPOCHS[name](), ema=0.9), 4)["lr"]
    assert len(set(rates)) > 1
    first = fit(half, clnn.Nadam(IN_EPOCHS[name](), ema=0.9), 2)["lr"]
    half.save(tmp_path / "half")
    with clnn.use(device):
        again = clnn.load(tmp_path / "half")
    assert again.optimizer.rate(3) == half.optimizer.rate(3)
    second = fit(again, again.optimizer, 2)["lr"]
    assert first + second == rates and np.array_equal(weights(whole), weights(again))
    with whole.optimizer.averaged(), again.optimizer.averaged():
        assert np.array_equal(weights(whole), weights(again))


@pytest.mark.parametrize(
    "make_optimizer",
    [
        lambda: clnn.AMSGrad(0.01),
        lambda: clnn.LAMB(0.01),
        lambda: clnn.RMSprop(0.01, centered=True, momentum=0.5),
        lambda: clnn.Adagrad(0.1, lr_decay=0.1),
        lambda: clnn.Adadelta(),
        lambda: clnn.Lion(0.01),
        lambda: clnn.SGD(0.1, momentum=0.9, clip_norm=0.5, ema=0.9),
    ],
)
def test_every_rule_resumes_exactly(device, task, tmp_path, make_optimizer):
    make, fit = task
    whole, half = make(), make()
    fit(whole, make_optimizer(), 4)
    fit(half, make_optimizer(), 2)
    half.save(tmp_path / "half")
    with clnn.use(device):
        again = clnn.load(tmp_path / "half")
    assert again.optimizer.config() == half.optimizer.config()
    if again.optimizer.ema is not None:  # averages of a loaded model, before any step
        with again.optimizer.averaged(again.parameters()), half.optimizer.averaged():
            assert np.array_equal(weights(again), weights(half))
    fit(again, again.optimizer, 2)
    assert np.array_equal(weights(whole), weights(again))


@pytest.fixture
def recordings(monkeypatch, task):
    """Its sum is 0 after a fit that makes as many recordings as one at a constant rate does."""
    made = []
    real = recording.Recording
    monkeypatch.setattr(recording, "Recording", lambda *args: made.append(1) or real(*args))
    make, fit = task
    fit(make(), clnn.SGD(0.1), 6)
    usual = len(made)
    assert 2 <= usual <= 4
    made[:] = [-1] * usual
    return made


def test_rates_move_over_more_steps_than_a_table_without_new_recordings(task, recordings):
    make, fit = task
    epochs = 1 + clnn.optim.ROWS // 5
    found = []
    for record in (True, False):
        net, optimizer = make(), clnn.SGD(clnn.WarmUp(clnn.Cosine(0.3), 10), momentum=0.9)
        fit(net, optimizer, epochs, record=record)
        assert optimizer.steps > clnn.optim.ROWS
        found.append(weights(net))
    assert np.array_equal(*found) and sum(recordings) == 0


def test_a_schedule_set_within_fit_counts_in_its_epochs(task, recordings):
    make, fit = task
    net = make()

    class Change(clnn.Callback):
        def on_epoch_end(self, model, epoch, logs):
            if epoch == 3:
                model.optimizer.lr = clnn.StepDecay(0.2, every=3, factor=0.1)

    history = fit(net, clnn.SGD(0.1), 8, callbacks=[Change()])
    assert history["lr"] == pytest.approx([0.1] * 4 + [0.02] * 2 + [0.002] * 2) and sum(recordings) == 0


# -- elsewhere --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", [n for n in IN_EPOCHS if n not in ("plateau", "in steps")])
def test_outside_of_fit_they_say_what_they_need(device, name):
    with clnn.use(device):
        net, optimizer = clnn.Sequential([clnn.Dense(2)], input_shape=3), clnn.SGD(IN_EPOCHS[name]())
        net(np.ones((2, 3), np.float32)).sum().backward()
        with pytest.raises(clnn.ConfigurationError, match="counts in epochs.*steps_per_epoch"):
            optimizer.step(net.parameters())
    with pytest.raises(clnn.ConfigurationError, match="spans the whole of a fit.*epochs="):
        clnn.Cosine(0.1, steps_per_epoch=1)(0)


def test_a_loop_of_ones_own(device, rng):
    """steps_per_epoch=2; the first steps eager, the others replayed."""
    with clnn.use(device):
        net = clnn.Sequential([clnn.Dense(2)], input_shape=3)
        optimizer = clnn.SGD(clnn.schedules.Piecewise([(1, 0.5), (2, 0.25), (1, 0.125)], steps_per_epoch=2))
        expected = net.layers[0].w.numpy().astype(np.float64)

        @clnn.step
        def train(x):
            net(x).sum().backward()
            optimizer.step(net.parameters())

        for rate in [0.5] * 2 + [0.25] * 4 + [0.125] * 4:
            x = rng.integers(-2, 3, (4, 3)).astype(np.float32)
            train(x)
            expected -= rate * np.repeat(x.sum(0)[:, None], 2, 1)
        np.testing.assert_allclose(net.layers[0].w.numpy(), expected, atol=1e-5)


# -- plateaus ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("options", "losses", "rates"),
    [
        ({"patience": 0}, [3, 2, 2, 1, 1], [1, 1, 0.1, 0.1, 0.01]),
        ({"patience": 1, "factor": 0.5}, [3, 3, 3, 3, 3, 2, 2], [1, 1, 0.5, 0.5, 0.25, 0.25, 0.25]),
        ({"patience": 0, "cooldown": 2, "factor": 0.5}, [1, 1, 1, 1, 1, 1], [1, 0.5, 0.5, 0.5, 0.25, 0.25]),
        ({"patience": 0, "min_lr": 0.3, "factor": 0.5}, [1, 1, 1, 1], [1, 0.5, 0.3, 0.3]),
        ({"patience": 0, "threshold": 0.2}, [10, 8.5, 7.9, 7], [1, 0.1, 0.1, 0.01]),
        ({"patience": 0, "threshold": 0.2}, [-1, -1.1, -1.3], [1, 0.1, 0.1]),
        ({"patience": 0}, [1, math.nan, 0.5], [1, 0.1, 0.1]),
    ],
)
def test_plateaus(options, losses, rates):
    schedule = clnn.ReduceOnPlateau(1.0, **options)
    found = []
    for loss in losses:
        before = schedule(0)
        changed = schedule.observe(loss)
        assert changed == (schedule(0) != before)
        found.append(schedule(0))
    assert found == pytest.approx(rates)


def test_a_plateau_in_fit_makes_no_new_recording(task, recordings):
    make, fit = task
    history = fit(make(), clnn.Adam(clnn.ReduceOnPlateau(0.1, 0.5, patience=0, threshold=0.9)), 6)
    assert len(set(history["lr"])) > 2 and sum(recordings) == 0
    reference = clnn.ReduceOnPlateau(0.1, 0.5, patience=0, threshold=0.9)
    for loss, lr in zip(history["loss"], history["lr"]):
        assert lr == reference(0)
        reference.observe(loss)


def test_a_plateau_looks_at_the_validation(task, rng):
    make, fit = task
    held_out = rng.standard_normal((9, 6)).astype(np.float32), rng.integers(0, 3, 9).astype(np.int32)
    history = fit(make(), clnn.SGD(clnn.ReduceOnPlateau(0.4, 0.5, 0, 0.9)), 5, validation=held_out)
    reference = clnn.ReduceOnPlateau(0.4, 0.5, 0, 0.9)
    for loss, lr in zip(history["val_loss"], history["lr"]):
        assert lr == reference(0)
        reference.observe(loss)


# -- what makes no sense ----------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: clnn.schedules.Constant(-1), "lr should be in.*-1"),
        (lambda: clnn.StepDecay(0.1, 0), "every should be in.*0 was"),
        (lambda: clnn.StepDecay(0.1, 1, 2.0), "factor should be in.*2.0"),
        (lambda: clnn.schedules.Exponential(0.1, 0), "factor"),
        (lambda: clnn.Cosine(0.1, epochs=-2), "epochs should be in.*-2"),
        (lambda: clnn.Cosine(0.1, steps_per_epoch=2.5), "steps_per_epoch should be an integer.*2.5"),
        (lambda: clnn.schedules.Linear(0.1, final=np.nan), "final should be in.*nan"),
        (lambda: clnn.OneCycle(0.1, pct_start=1.0), "pct_start"),
        (lambda: clnn.schedules.Piecewise([]), r"pairs \(epochs, rate\).*\[\] was"),
        (lambda: clnn.SGD([0.1, 0.2]), r"pairs \(epochs, rate\).*\[0.1, 0.2\]"),
        (lambda: clnn.SGD([(1, -0.1)]), "rate should be in.*-0.1"),
        (lambda: clnn.ReduceOnPlateau(0.1, patience=-1), "patience should be an integer of 0 or more, -1"),
        (lambda: clnn.ReduceOnPlateau(0.1, factor=1.0), "factor"),
        (lambda: clnn.WarmUp(lambda t: 0.1, 2), "WarmUp takes a number.*by itself"),
        (lambda: clnn.WarmUp(0.1, 0), "epochs should be in"),
        (
            lambda: find_rate({"class": "os.system", "config": {}}),
            "no schedule 'os.system'; the known ones are Constant",
        ),
    ],
)
def test_bad_arguments(make, words):
    with pytest.raises(clnn.ConfigurationError, match=words):
        make()


@pytest.mark.parametrize("damage", ["class", "argument", "clock", "rate"])
def test_damaged_schedules_in_files_are_refused(device, task, tmp_path, damage):
    make, fit = task
    net, path = make(), tmp_path / "net"
    fit(net, clnn.SGD(clnn.ReduceOnPlateau(0.1)), 1)
    net.save(path)
    data = path.read_bytes()
    (size,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + size])
    inner = json.loads(header["__metadata__"]["clnn"])
    saved = inner["optimizer"]
    if damage == "class":
        saved["config"]["lr"]["class"] = "Nothing"
    elif damage == "argument":
        saved["config"]["lr"]["config"]["command"] = 1
    elif damage == "clock":
        saved["schedule"]["clock"] = [0, 1]
    else:
        saved["schedule"]["rate"] = -1.0
    header["__metadata__"] = {"clnn": json.dumps(inner)}
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + size :])
    with clnn.use(device), pytest.raises(clnn.CheckpointError, match="optimizer"):
        clnn.load(path)


def test_a_function_of_ones_own_is_saved_as_its_rate(device, task, tmp_path):
    make, fit = task
    net = make()
    fit(net, clnn.SGD(lambda t: 0.1 / (1 + t)), 1)
    with pytest.warns(clnn.CheckpointWarning, match="goes without the schedule <lambda>"):
        net.save(tmp_path / "net")
    with clnn.use(device):
        assert clnn.load(tmp_path / "net").optimizer.lr == pytest.approx(0.1 / 6)


def test_schedules_with_names_of_other_things():
    with pytest.raises(AttributeError, match=r"clnn\.schedules\.Linear, and the layer .* clnn\.Dense"):
        clnn.Linear  # noqa: B018
    for name in ("Constant", "Exponential", "Linear", "Piecewise"):
        assert not hasattr(clnn, name)
        assert issubclass(getattr(clnn.schedules, name), clnn.Schedule)
