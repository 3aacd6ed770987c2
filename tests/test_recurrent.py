"""Recurrent layers against loops of NumPy in float64, gradients against differences along random directions."""

import copy
import itertools
import pickle
import warnings
from functools import partial

import numpy as np
import pytest
from helpers import REFERENCES as FUNCTIONS
from helpers import assert_close, eps, normal, parameter

import clnn
from clnn.ops.sequence.recurrent import GATES, STATES, Cell, recurrent
from clnn.tensor import Parameter, on_tape

BEFORE = "GRU, reset before"
LAYERS = {"RNN": clnn.SimpleRNN, "LSTM": clnn.LSTM, "GRU": clnn.GRU, BEFORE: partial(clnn.GRU, reset_after=False)}
CELLS = {
    "RNN": clnn.SimpleRNNCell,
    "LSTM": clnn.LSTMCell,
    "GRU": clnn.GRUCell,
    BEFORE: partial(clnn.GRUCell, reset_after=False),
}
GATES, STATES = ({**found, BEFORE: found["GRU"]} for found in (GATES, STATES))


def cell_of(kind, *activations, **options):
    return Cell("GRU" if kind == BEFORE else kind, *activations, **options)


def loop(cell, z, u, bias, states, mask=None, drop=None, reset_after=True):
    """What `recurrent` computes, a step of NumPy at a time."""
    f, s = FUNCTIONS[cell.activation], FUNCTIONS[cell.recurrent_activation]
    batch, steps, _ = z.shape
    units = u.shape[0]
    h, c = (*states, np.zeros((batch, units)), np.zeros((batch, units)))[:2] if len(states) != 1 else (*states, None)
    sequence = np.zeros((batch, steps, units))
    for step in range(steps):
        time = steps - 1 - step if cell.backwards else step
        by_h = (h if drop is None else h * drop) @ u + (0 if bias is None else bias)
        by_x, before, c_before = z[:, time], h, c
        if cell.kind == "LSTM":
            i, forget, g, o = np.split(by_x + by_h, 4, axis=1)
            c = s(forget) * c + s(i) * f(g)
            h = s(o) * f(c)
        elif cell.kind == "GRU":
            (xz, xr, xh), (hz, hr, hh) = np.split(by_x, 3, axis=1), np.split(by_h, 3, axis=1)
            if not reset_after:  # there is no bias then
                hh = (s(xr + hr) * (h if drop is None else h * drop)) @ u[:, 2 * units :]
            h = s(xz + hz) * h + (1 - s(xz + hz)) * f(xh + (s(xr + hr) * hh if reset_after else hh))
        else:
            h = f(by_x + by_h)
        if mask is not None:
            h = np.where(mask[:, time, None] != 0, h, before)
            c = np.where(mask[:, time, None] != 0, c, c_before) if cell.kind == "LSTM" else c
        sequence[:, time if cell.aligned else step] = h
    rows = [*sequence.transpose(1, 0, 2)] if cell.sequence else []
    rows += [h, c][: STATES[cell.kind]] if cell.state else [] if cell.sequence else [h]
    return np.stack(rows, axis=1)


CASES = {  # batch, steps, units, of the cell, beside it; few sizes of units, each of which compiles anew
    "one": (1, 1, 1, {}, ()),
    "last": (5, 2, 20, {}, ("bias",)),
    "sequence": (3, 7, 20, {"sequence": True}, ("bias", "states")),
    "state": (2, 7, 20, {"state": True}, ("states", "mask")),
    "all": (19, 2, 20, {"sequence": True, "state": True}, ("bias", "states", "mask", "drop")),
    "backwards": (3, 7, 20, {"backwards": True, "sequence": True, "state": True}, ("mask", "states")),
    "aligned": (3, 7, 20, {"backwards": True, "aligned": True, "sequence": True}, ("mask", "drop")),
    "by inputs": (4, 3, 20, {"activation": "gelu", "recurrent_activation": "swish"}, ("states",)),
    "long": (
        2,
        2,
        180,
        {"sequence": True},
        ("mask",),
    ),  # products longer than DEEP: 3 or 4 times 180 of a backward pass
}


def check(rng, dtype, kind, case):
    batch, steps, units, options, beside = CASES[case]
    before, columns = kind == BEFORE, GATES[kind] * units
    beside = [one for one in beside if not (before and one == "bias")]
    cell = cell_of(kind, **options)

    def run(z, u, *rest, **how):
        more = (u[:, : 2 * units], u[:, 2 * units :]) if before else (u, None)
        y, backward = recurrent(z, more[0], *rest, more[1], cell=cell, **how)
        inputs = [z, *(t for t in (*more, rest[0]) if t is not None), *rest[1]]
        return on_tape(y, inputs if how.get("keep", True) else (), backward)

    shapes = [(batch, steps, columns), (units, columns)] + ([(columns,)] if "bias" in beside else [])
    shapes += [(batch, units)] * STATES[kind] if "states" in beside else []
    scales = [1.0, 1.0 / np.sqrt(units)] + [1.0] * len(shapes)
    arrays = [(scale * normal(rng, shape)).astype(dtype).astype(np.float64) for shape, scale in zip(shapes, scales)]
    mask = (rng.random((batch, steps)) < 0.6).astype(dtype) if "mask" in beside else None
    drop = (2.0 * (rng.random((batch, units)) < 0.5)).astype(dtype) if "drop" in beside else None

    def arguments(given):
        bias = given[2] if "bias" in beside else None
        return given[0], given[1], bias, tuple(given[3 if "bias" in beside else 2 :])

    def expected(*given):
        z, u, bias, states = arguments(given)
        return loop(cell, z, u, bias, states, mask, drop, not before)

    inputs, values = [parameter(a, dtype) for a in arrays], []
    given = [None if a is None else clnn.tensor(a, dtype=dtype) for a in (mask, drop)]
    for keep in (False, True):
        z = clnn.tensor(arrays[0], dtype=dtype)  # which is used up
        _, u, bias, states = arguments([z, *inputs[1:]])
        values.append(run(z, u, bias, states, *given, keep=keep).numpy())
        wanted = expected(*arrays)
        assert_close(values[-1], wanted, 64 * eps(dtype) * max(1, np.abs(wanted).max()), "value")
    seed = normal(rng, wanted.shape, dtype)
    z = inputs[0] * 1.0
    run(z, *arguments(inputs)[1:], *given).backward(seed.astype(dtype))
    for i, x in enumerate(inputs):
        got = x.grad.numpy().astype(np.float64)
        for _ in range(3):
            direction, h = rng.standard_normal(arrays[i].shape), 1e-6
            ends = [expected(*[a + e * h * direction if j == i else a for j, a in enumerate(arrays)]) for e in (1, -1)]
            slope = ((ends[0] - ends[1]) * seed).sum() / (2 * h)
            size = np.linalg.norm(direction) * np.linalg.norm(got) + np.abs(ends[0]).sum()
            assert_close((got * direction).sum(), slope, (64 * eps(dtype) + 3e-9) * size, f"gradient by argument {i}")
    return [*values, *(x.grad.numpy() for x in inputs)]


@pytest.fixture
def in_pieces(device, monkeypatch):
    """The device's driver ends loops, after so many turns that a launch takes `most` steps."""
    monkeypatch.setattr(device, "most_turns", 10**9)

    def cut(most):
        check = lambda turns, what: most if what.startswith("a step of") else 10**9 // max(1, turns)  # noqa: E731
        monkeypatch.setattr(device, "check_turns", check)

    return cut


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("kind", GATES)
def test_values_and_gradients(device, rng, kind, case):
    check(rng, np.float64 if device.has_fp64 else np.float32, kind, case)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("kind", GATES)
def test_pieces_of_time_are_one_launch_to_the_bit(device, in_pieces, kind, case):
    """Where a driver ends long loops, some launches take the steps of one."""
    found, dtype = [], np.float64 if device.has_fp64 else np.float32
    for most in (100, 1, 3):
        in_pieces(most)
        before = device.launches
        found.append(check(np.random.default_rng(1), dtype, kind, case))
        pieces = -(-CASES[case][1] // most)
        launches = device.launches - before
        if most == 100:
            one = launches
        assert launches == one + 4 * (pieces - 1)  # twice forward without a gradient, and once there and back
        for got, wanted in zip(found[-1], found[0], strict=True):
            np.testing.assert_array_equal(got, wanted)


@pytest.mark.parametrize("record", [True, False])
def test_training_in_pieces_of_time_is_that_in_one_launch(device, rng, in_pieces, record):
    """To the bit: both ways, lengths, dropouts, and states that are carried from batch to batch, also of replayed steps."""
    x, y = rng.standard_normal((24, 7, 3)).astype(np.float32), rng.standard_normal((24, 2)).astype(np.float32)
    x[1, 4:] = x[5, 1:] = 0

    def train(most):
        in_pieces(most)
        clnn.seed(4)
        layers = [
            clnn.Masking([
                clnn.Bidirectional(clnn.LSTM(5, return_sequences=True, dropout=0.3, recurrent_dropout=0.3)),
                clnn.GRU(6, return_sequences=True, go_backwards=True, reset_after=False),
                clnn.SimpleRNN(4, return_sequences=True),
            ]),
            clnn.GRU(5, stateful=True),
            clnn.Dense(2),
        ]  # fmt: skip
        net = clnn.Sequential(layers, input_shape=(7, 3), seed=3)
        how = {"epochs": 3, "batch_size": 8, "shuffle": False, "seed": 1, "progress": False}
        history = net.fit(x, y, loss="mse", optimizer=clnn.Adam(0.01), record=record, **how)
        return [history["loss"], net.predict(x, batch_size=8), *(p.numpy() for p in net.parameters())]

    whole = train(100)
    for most in (1, 3):
        for got, wanted in zip(train(most), whole, strict=True):
            np.testing.assert_array_equal(got, wanted)


def test_long_sequences_where_a_driver_ends_loops(device, rng, monkeypatch):
    """As many steps as fit go into a launch; a step that fits none is an error."""
    layer, x = clnn.LSTM(20, return_state=True), rng.standard_normal((2, 300, 3)).astype(np.float32)
    states = ()
    for i in range(0, 300, 10):
        wanted, *states = layer(x[:, i : i + 10], *states)
    monkeypatch.setattr(device, "most_turns", 3000)
    with clnn.no_grad():
        before = device.launches
        got, *_ = layer(x)
        assert 5 <= device.launches - before <= 15
    assert_close(got.numpy(), wanted.numpy(), 1e-5)
    monkeypatch.setattr(device, "most_turns", 50)
    with pytest.raises(clnn.DeviceError, match="step of LSTM of 20 units takes .* ends loops after 50: use a smaller"):
        layer(x)


@pytest.mark.oclgrind
@pytest.mark.platform("recurrent")
@pytest.mark.parametrize("kinds", [("RNN", "LSTM"), ("GRU",), (BEFORE,)], ids=", ".join)
def test_a_small_one_everywhere(device, rng, kinds):
    for kind in kinds:
        check(rng, np.float32, kind, "all")


@pytest.mark.parametrize("kind", LAYERS)
def test_layers_are_their_formulas(device, rng, dtype, kind):
    """w, b and the options of the layer, and gradients by the input and every parameter."""
    for options in ({}, {"return_sequences": True, "return_state": True, "go_backwards": True}, {"use_bias": False}):
        layer = LAYERS[kind](20, **options)
        layer.place(device, dtype)
        x = parameter(normal(rng, (4, 3, 5), dtype), dtype)
        made = layer(x)
        outputs = made if isinstance(made, tuple) else (made,)
        p = {name: value.numpy().astype(np.float64) for name, value in layer.named_parameters()}
        cell = cell_of(kind, backwards=layer.go_backwards, sequence=layer.return_sequences, state=layer.return_state)

        def reference(x, p, cell=cell):
            y = loop(cell, x @ p["w"] + p.get("b", 0), p["u"], p.get("recurrent_b"), (), reset_after=kind != BEFORE)
            last = [y[:, i - cell.rows] for i in range(cell.rows)]
            return [y[:, :3], *last] if cell.sequence else last

        values = x.numpy().astype(np.float64)
        for got, wanted in zip(outputs, reference(values, p), strict=True):
            assert_close(got.numpy(), wanted, 32 * eps(dtype), "value")
        sum(((y * y).sum() for y in outputs), clnn.tensor(0.0, dtype=dtype)).backward()
        for name, got in {"x": x.grad, **{name: q.grad for name, q in layer.named_parameters()}}.items():
            direction, h = rng.standard_normal(got.shape), 1e-6
            ends = []
            for e in (h, -h):
                moved = p if name == "x" else {**p, name: p[name] + e * direction}
                ends.append(
                    sum((y * y).sum() for y in reference(values + e * direction if name == "x" else values, moved))
                )
            found = got.numpy().astype(np.float64)
            bound = (64 * eps(dtype) + 1e-8) * (np.linalg.norm(direction) * np.linalg.norm(found) + abs(ends[0]))
            assert_close((found * direction).sum(), (ends[0] - ends[1]) / (2 * h), bound, name)


@pytest.mark.parametrize("kind", LAYERS)
def test_padded_sequences_are_their_own_sequences(device, rng, kind):
    """To the bit: the last output, the states and the sequences, and nothing comes of what stands behind a length."""
    layer = LAYERS[kind](20, return_sequences=True, return_state=True)
    x, lengths = rng.standard_normal((6, 5, 4)).astype(np.float32), np.array([5, 1, 3, 4, 0, 2], np.int32)
    x[np.arange(5) >= lengths[:, None]] = 1e30
    for given in (lengths, clnn.tensor(lengths)):
        out, *states = layer(x, given)
    for row, n in enumerate(lengths):
        if n:
            one, *last = layer(x[row : row + 1, :n])
            np.testing.assert_array_equal(out.numpy()[row, :n], one.numpy()[0])
            np.testing.assert_array_equal(out.numpy()[row, n:], np.broadcast_to(one.numpy()[0, -1], (5 - n, 20)))
            for a, b in zip(states, last, strict=True):
                np.testing.assert_array_equal(a.numpy()[row], b.numpy()[0])
        else:
            assert not any(a.numpy()[row].any() for a in (out, *states))


def test_states_go_on_where_a_call_ended(device, rng):
    x = rng.standard_normal((3, 6, 4)).astype(np.float32)
    for kind, make in LAYERS.items():
        layer = make(20, return_sequences=True, return_state=True)
        whole, *ends = layer(x)
        first, *states = layer(x[:, :2])
        second, *last = layer(x[:, 2:], *states)
        np.testing.assert_array_equal(np.concatenate([first.numpy(), second.numpy()], 1), whole.numpy(), kind)
        for a, b in zip(last, ends, strict=True):
            np.testing.assert_array_equal(a.numpy(), b.numpy())


@pytest.mark.parametrize("kind", LAYERS)
def test_launches_and_programs_do_not_depend_on_steps_and_batch(device, rng, monkeypatch, kind):
    layer, built, build = LAYERS[kind](20), [], device.programs.build

    def run(batch, steps):
        x = clnn.tensor(rng.standard_normal((batch, steps, 4)).astype(np.float32))
        before = device.launches
        (layer(x) ** 2).sum().backward()
        return device.launches - before

    run(40, 31)
    for batch, steps in () if device.long_loops else ((1, 99), (2, 999)):  # GPUs sum some rows by another program
        run(batch, steps)
    few, products = run(3, 2), 3 if kind == BEFORE else 2
    monkeypatch.setattr(device.programs, "build", lambda *args: built.append(args) or build(*args))
    for batch, steps in ((3, 10), (3, 5), (3, 1), (40, 30), (1, 100), (2, 1000)):
        # each gradient by weights is a product that may be cut, over many rows, and summed by one launch more; where a driver
        # ends loops, there are two more whenever these 200 turns of a step, at most, have filled one
        pieces = 200 * steps // device.most_turns if device.most_turns else 0
        assert few <= run(batch, steps) <= few + products + 2 * pieces
    assert not built


@pytest.mark.parametrize("kind", LAYERS)
def test_recorded_as_eager(device, rng, kind):
    x, y = rng.standard_normal((12, 5, 3)).astype(np.float32), rng.standard_normal((12, 2)).astype(np.float32)

    def train(record):
        net = clnn.Sequential(
            [LAYERS[kind](20, return_sequences=True), LAYERS[kind](20), clnn.Dense(2)], input_shape=(5, 3), seed=3
        )
        optimizer = clnn.Adam(0.01)

        @clnn.step(record=record)
        def step(x, y):
            loss = clnn.losses.mse(net(x), y)
            loss.backward()
            optimizer.step(net.parameters())
            return loss

        found = [float(step(x[i % 3 * 4 :][:4], y[i % 3 * 4 :][:4])) for i in range(9)]
        return found, [p.numpy() for p in net.parameters()]

    (a, p), (b, q) = train(True), train(False)
    assert a == b
    for one, other in zip(p, q, strict=True):
        np.testing.assert_array_equal(one, other)


def test_fit_learns_from_the_first_step(device, rng):
    """The class of a sequence is the sign of its first number."""
    x = np.random.default_rng(0).standard_normal((300, 8, 2)).astype(np.float32)
    y = (x[:, 0, 0] > 0).astype(np.float32)
    for make in (clnn.LSTM, clnn.GRU):
        net = clnn.Sequential([make(20), clnn.Dense(1, "sigmoid")], input_shape=(8, 2), seed=1)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            net.fit(
                x,
                y[:, None],
                loss="binary_cross_entropy",
                optimizer=clnn.Adam(0.02),
                epochs=20,
                batch_size=32,
                seed=1,
                progress=False,
            )
        assert ((net.predict(x)[:, 0] > 0.5) == y).mean() > 0.9


def test_dropouts_are_one_for_all_steps_of_a_sequence(device, rng):
    layer = clnn.SimpleRNN(
        40, "linear", use_bias=False, recurrent_dropout=0.5, return_sequences=True, weight_init="ones"
    )
    x = np.ones((3, 4, 1), np.float32)
    with clnn.no_grad():
        layer(x)
    layer.load_state_dict({"w": np.ones((1, 40)), "u": np.eye(40)})
    y = layer(x).numpy()
    kept = y[:, 1] > 1.5
    assert 0.2 < kept.mean() < 0.8
    assert_close(y, np.where(kept[:, None], np.array([1, 3, 7, 15])[None, :, None], 1.0), 0)
    with clnn.no_grad():
        assert_close(layer(x).numpy()[:, :, 0], np.broadcast_to([1.0, 2, 3, 4], (3, 4)), 0)
    layer = clnn.SimpleRNN(
        1, "linear", use_bias=False, dropout=0.5, return_sequences=True, recurrent_init=0.0, weight_init=1.0
    )
    y = layer(np.ones((30, 4, 1), np.float32)).numpy()
    assert {*np.unique(y)} == {0.0, 2.0} and (y == y[:, :1]).all()


@pytest.mark.parametrize("kind", LAYERS)
def test_dropouts_are_drawn_anew_at_each_replay(device, rng, kind):
    """And are one for all steps of a sequence there, too: a unit is dropped from all products, or from none."""
    layer = LAYERS[kind](8, "linear", return_sequences=True, recurrent_dropout=0.5, dropout=0.5)
    x = np.repeat(rng.standard_normal((2, 1, 3)), 6, 1).astype(np.float32)
    first = layer(x)
    step = clnn.step(lambda x: layer(x))
    found = [step(x).numpy() for _ in range(6)]
    assert len({y.tobytes() for y in found}) == 6
    p = {name: value.numpy().astype(np.float64) for name, value in layer.named_parameters()}
    every = np.array(list(itertools.product((0.0, 2.0), repeat=8)))
    for y in (first.numpy(), *found):
        fits = []
        for keep in itertools.product((0.0, 2.0), repeat=3):
            z = np.repeat(x[:1].astype(np.float64) * keep @ p["w"] + p["b"], 256, 0)
            cell = cell_of(kind, "linear", sequence=True)
            wanted = loop(cell, z, p["u"], p.get("recurrent_b"), (), drop=every, reset_after=kind != BEFORE)
            fits.append(np.abs(wanted - y[:1]).max((1, 2)).min())
        assert min(fits) < 1e-5 * max(1, np.abs(y).max())


@pytest.mark.parametrize("kind", LAYERS)
def test_refusals(device, rng, kind):
    make, x = LAYERS[kind], np.zeros((2, 3, 4), np.float32)
    layer = make(5)
    layer(x)
    for bad, words in (
        ((x[:, :0],), "no steps"),
        ((x[:, :, :2],), "steps, 4"),
        ((x[0],), "batch, steps"),
        ((x, *[np.zeros((3, 5))] * STATES[kind]), "a state h of shape"),
        ((x, *[np.zeros((2, 5))] * 3), "3 states"),
        ((x, np.zeros(3)), "lengths are"),
        ((x, np.array([2, 4])), "lengths go from 2 to 4, and there are 0 to 3 steps"),
        ((x, np.array([-1, 2])), "lengths go from -1"),
        ((x, np.array([1.5, 2])), "whole numbers, and 1.5 is none"),
        ((x, *[np.zeros((1, 5))] * STATES[kind]), "a state h of shape"),
        ((x, *[np.zeros((2, 5)), np.zeros((3, 5))][-STATES[kind] :]), "a state [ch] of shape"),
    ):
        with pytest.raises(clnn.errors.ShapeError, match=words):
            layer(*bad)
    with pytest.raises(clnn.errors.ShapeError, match="batch, steps, features"):
        make(5)(np.zeros((2, 3)))
    for options in (
        {"units": 0},
        {"dropout": 1.0},
        {"recurrent_dropout": -1},
        {"activation": "nothing"},
    ):
        with pytest.raises(clnn.ConfigurationError):
            make(**{"units": 5, **options})


@pytest.mark.parametrize("kind", LAYERS)
def test_a_stateful_layer_goes_on_where_it_ended(device, rng, kind, tmp_path):
    """Pieces give what the whole sequence gives, eagerly, in a recorded step and by predict; a copy and a file begin anew."""
    x = rng.standard_normal((3, 24, 5)).astype(np.float32)
    whole, layer = LAYERS[kind](6, return_sequences=True), LAYERS[kind](6, return_sequences=True, stateful=True)
    want = whole(x).numpy()
    net = clnn.Sequential([layer], input_shape=(4, 5))
    layer.load_state_dict(whole.state_dict())
    step = clnn.step(lambda x: net(x))
    for call in (net, step, lambda x: net.predict(x, batch_size=3)):
        for _ in range(2):
            net.reset_states()
            pieces = [np.asarray(call(x[:, i : i + 4])) for i in range(0, 24, 4)]
            assert_close(np.concatenate(pieces, 1), want, 1e-5)
    again = np.asarray(step(x[:, :4]))
    assert np.abs(again - want[:, :4]).max() > 1e-3
    net.save(tmp_path / "net.clnn")
    for fresh in (clnn.load(tmp_path / "net.clnn"), copy.deepcopy(net)):
        assert_close(np.asarray(fresh(x[:, :4])), want[:, :4], 1e-5)
    rows = np.concatenate([x[:, :4], x[:, 4:8]])  # in batches of 3, one after the other
    net.reset_states()
    assert_close(net.predict(rows, batch_size=3), np.concatenate([want[:, :4], want[:, 4:8]]), 1e-5)
    for wrong in (lambda: net(x[:2, :4]), lambda: net.predict(rows), lambda: net.predict(rows[:4], batch_size=3)):
        with pytest.raises(clnn.ShapeError, match=r"of 3 sequences.*reset_states\(batch_size="):
            wrong()
    net.reset_states(batch_size=2)
    for call in (net, step, step, step, step):
        assert_close(np.asarray(call(x[:2, :4])), want[:2, :4], 1e-5)
        net.reset_states()
    net.reset_states(batch_size=3)
    assert_close(np.asarray(step(x[:, :4])), want[:, :4], 1e-5)
    with pytest.raises(clnn.ConfigurationError, match="batch_size"):
        net.reset_states(0)


@pytest.mark.two_devices
@pytest.mark.parametrize("kind", LAYERS)
def test_states_move_with_their_model(device, other_device, rng, kind):
    """Also where a fit follows."""
    x, y = rng.standard_normal((3, 4, 5)).astype(np.float32), np.zeros((3, 2), np.float32)
    found = []
    for where in (device, other_device):
        net = clnn.Sequential([LAYERS[kind](6, stateful=True), clnn.Dense(2)], input_shape=(4, 5), seed=1)
        net.predict(x, batch_size=3)
        net.to(where)
        found.append([net.predict(x, batch_size=3)])
        net.fit(x, y, loss="mse", optimizer=clnn.SGD(0.1), epochs=2, batch_size=3, shuffle=False, progress=False)
        found[-1].append(net.predict(x, batch_size=3))
    for here, there in zip(*found):
        assert_close(there, here, 1e-5)


@pytest.mark.parametrize("kind", LAYERS)
def test_what_ends_with_an_error_carries_no_state_on(device, rng, kind):
    """Its first batches had moved it."""
    x, y = rng.standard_normal((5, 4, 3)).astype(np.float32), np.zeros((5, 2), np.float32)
    layers = [LAYERS[kind](3, return_sequences=True, stateful=True), clnn.Bidirectional(LAYERS[kind](2, stateful=True))]
    net = clnn.Sequential([*layers, clnn.Dense(2)], input_shape=(4, 3))
    for begun in (False, True):
        first = [net.predict(x[:2], batch_size=2) for _ in range(1 + begun)][-1]
        net.reset_states()
        if begun:
            net.predict(x[:2], batch_size=2)
        for wrong in (net.predict, lambda x, **how: net.evaluate(x, y, loss="mse", **how)):
            with pytest.raises(clnn.ShapeError, match="of 2 sequences, and 1 came"):
                wrong(x, batch_size=2)
        np.testing.assert_array_equal(net.predict(x[:2], batch_size=2), first)
        net.reset_states()


@pytest.mark.parametrize("sequence", [False, True])
@pytest.mark.parametrize("kind", LAYERS)
def test_a_compiled_model_carries_states(device, rng, kind, sequence):
    """As predict does; compiling, at first and where something has changed, is no call."""
    x = rng.standard_normal((3, 24, 5)).astype(np.float32)
    net = clnn.Sequential([LAYERS[kind](6, return_sequences=sequence, stateful=True)], input_shape=(4, 5))
    net.load_state_dict({name: rng.standard_normal(p.shape) for name, p in net.named_parameters()})
    pieces = [x[:, i : i + 4] for i in range(0, 24, 4)]
    want = [net.predict(one, batch_size=3) for one in pieces]
    net.reset_states()
    first = net.predict(pieces[0], batch_size=3)
    f = net.compiled(3)
    found = [first, *map(f, pieces[1:3])]
    net.layers.append(clnn.Activation("linear"))
    assert_close(np.array([*found, *map(f, pieces[3:])]), np.array(want), 1e-6)
    fresh = copy.deepcopy(net).compiled(3)
    assert_close(np.array([*map(fresh, pieces)]), np.array(want), 1e-6)


@pytest.mark.parametrize("record", [False, True])
@pytest.mark.parametrize("kind", LAYERS)
def test_fit_carries_states(device, rng, kind, record):
    """From batch to batch and from epoch to epoch, with gradients within a batch: as a loop that hands detached states on."""
    x, y = rng.standard_normal((15, 4, 5)).astype(np.float32), rng.standard_normal((15, 4, 2)).astype(np.float32)
    clnn.seed(3)
    net = clnn.Sequential([LAYERS[kind](6, return_sequences=True, stateful=True), clnn.Dense(2)], input_shape=(4, 5))
    layer, out = LAYERS[kind](6, return_sequences=True, return_state=True), clnn.Dense(2)
    out(layer(x[:3])[0])
    for one, of in ((layer, net.layers[0]), (out, net.layers[1])):
        one.load_state_dict(of.state_dict())
    how = {"loss": "mse", "epochs": 2, "batch_size": 3, "progress": False}
    losses = net.fit(x, y, optimizer=clnn.SGD(0.1), shuffle=False, record=record, **how).history["loss"]
    parameters, optimizer, states, by_hand = [*layer.parameters(), *out.parameters()], clnn.SGD(0.1), (), []
    for _ in range(2):
        for i in range(0, 15, 3):
            h, *states = layer(x[i : i + 3], *(one.detach() for one in states))
            loss = clnn.losses.mse(out(h), y[i : i + 3])
            loss.backward()
            optimizer.step(parameters)
            by_hand.append(float(loss))
    assert_close(losses, np.reshape(by_hand, (2, 5)).mean(1), 1e-5)
    for a, b in zip(net.parameters(), parameters, strict=True):
        assert_close(a.numpy(), b.numpy(), 1e-4)
    for wrong, message in (
        ({}, "shuffle=False"),
        ({"shuffle": False, "batch_size": 4}, "the last batch has 3 samples"),
        ({"shuffle": False, "validation": (x, y)}, "evaluate after fit"),
        ({"shuffle": False, "validation_split": 0.2}, "evaluate after fit"),
    ):
        with pytest.raises(clnn.ConfigurationError, match=f"is stateful, and .*{message}"):
            net.fit(x, y, optimizer="sgd", **{**how, **wrong})
    with pytest.raises(clnn.ConfigurationError, match="which is stateful"):
        clnn.generate(net, [1], 2)


def test_a_stateful_layer_is_nothing_for_onnx(device, tmp_path):
    pytest.importorskip("onnx")
    net = clnn.Sequential([clnn.GRU(3, stateful=True)], input_shape=(4, 5))
    with pytest.raises(clnn.ConfigurationError, match="stateful, and a run of an ONNX file begins anew"):
        clnn.onnx.save(net, tmp_path / "net.onnx")


def test_an_lstm_forgets_little_at_first(device):
    layer = clnn.LSTM(3)
    layer(np.zeros((1, 1, 2)))
    np.testing.assert_array_equal(layer.b.numpy(), [0] * 3 + [1] * 3 + [0] * 6)
    u = layer.u.numpy()
    assert_close(u @ u.T, np.eye(3), 1e-5)
    assert isinstance(layer.u, Parameter)


@pytest.mark.parametrize("kind", LAYERS)
def test_a_cell_is_a_step(device, rng, kind):
    layer, x = LAYERS[kind](20, return_sequences=True), rng.standard_normal((3, 4, 5)).astype(np.float32)
    states = ()
    for i in range(4):
        made = layer.cell(x[:, i], *states)
        states = made if isinstance(made, tuple) else (made,)
        np.testing.assert_array_equal(layer(x).numpy()[:, i], states[0].numpy())
    with pytest.raises(clnn.errors.ShapeError, match="states were given"):
        layer.cell(x[:, 0], *states, *states, *states)
    with pytest.raises(clnn.ConfigurationError, match="dropout masks"):
        LAYERS[kind](20, dropout=0.5).cell(x[:, 0])


@pytest.mark.parametrize("kind", LAYERS)
def test_a_loop_of_cells_is_the_layer(device, rng, tmp_path, kind):
    """To the bit in values, with the layer's weights; gradients reach all of them, and a model of cells is saved."""
    layer, x = LAYERS[kind](20, return_sequences=True, return_state=True), rng.standard_normal((3, 4, 5)).astype("f")
    wanted, *_ = layer(x)
    (wanted * wanted).sum().backward()

    class Loop(clnn.Model):
        def __init__(self):
            self.cell = CELLS[kind](20)

        def forward(self, x):
            states, found = (), []
            for i in range(x.shape[1]):
                made = self.cell(x[:, i], *states)
                states = made if isinstance(made, tuple) else (made,)
                found.append(states[0])
            return clnn.stack(found, 1)

    net = Loop()
    net(x)
    net.load_state_dict({f"cell.{name}": value for name, value in layer.state_dict().items()})
    y = net(x)
    np.testing.assert_array_equal(y.numpy(), wanted.numpy())
    (y * y).sum().backward()
    for p, q in zip(net.parameters(), layer.parameters(), strict=True):
        assert_close(p.grad.numpy(), q.grad.numpy(), 1e-5 * max(1, np.abs(q.grad.numpy()).max()))
    clnn.register(Loop)
    net.save(tmp_path / "loop.clnn")
    np.testing.assert_array_equal(clnn.load(tmp_path / "loop.clnn").predict(x), wanted.numpy())


@pytest.mark.parametrize("kind", CELLS)
def test_what_cells_refuse(device, kind):
    cell, n = CELLS[kind](5), STATES[kind]
    name = f"^{type(cell).__name__}"
    cell(np.zeros((2, 4)))
    for bad, words in (
        ((np.zeros((2, 3, 4)),), "batch, features"),
        ((np.zeros(4),), "batch, features"),
        ((np.zeros((2, 3)),), rf"{name}: an input is \(batch, 4\) here, and this one has the shape \(2, 3\)"),
        ((np.zeros((2, 4)), *[np.zeros((3, 5))] * n), f"{name}: a state h of shape"),
        (
            (np.zeros((2, 4)), *[np.zeros((2, 5))] * (3 - n)),
            rf"one by one \(x, h{', c' * (n - 1)}\).*states were given",
        ),
    ):
        with pytest.raises(clnn.ShapeError, match=words):
            cell(*bad)
    with pytest.raises(clnn.ShapeError, match="batch, features"):
        CELLS[kind](5)(np.zeros((2, 3, 4)))
    for option in ("return_sequences", "return_state", "go_backwards", "stateful", "dropout", "recurrent_dropout"):
        with pytest.raises(clnn.ConfigurationError, match=f"{option} is for all steps"):
            CELLS[kind](5, **{option: 0.5 if "dropout" in option else True})
    with pytest.raises(clnn.ConfigurationError, match="Bidirectional takes"):
        clnn.Bidirectional(cell)


@pytest.mark.parametrize("record", [True, False])
@pytest.mark.parametrize("kind", LAYERS)
def test_back_propagation_is_cut_where_states_are_carried(device, rng, kind, record):
    """Chunks of a long sequence: values are the whole's, gradients end at a chunk's first step, as in float64."""
    layer, out = LAYERS[kind](6, return_sequences=True, return_state=True), []
    x = rng.standard_normal((2, 15, 3)).astype(np.float32)
    whole, *_ = layer(x)

    @clnn.step(record=record)
    def step(x, *states):
        layer.zero_grad()
        y, *states = layer(x, *states)
        (y * y).sum().backward()
        return y, *[state.detach() for state in states], *[p.grad for p in layer.parameters()]

    states = [np.zeros((2, 6), np.float32)] * STATES[kind]
    for at in range(0, 15, 3):
        first = [np.asarray(state) for state in states]
        y, *rest = step(x[:, at : at + 3], *states)
        states, gradients = rest[: STATES[kind]], rest[STATES[kind] :]
        out.append(y.numpy())
        layer.zero_grad()
        y, *_ = layer(x[:, at : at + 3], *first)
        (y * y).sum().backward()
        for got, p in zip(gradients, layer.parameters(), strict=True):
            np.testing.assert_array_equal(got.numpy(), p.grad.numpy())
    np.testing.assert_array_equal(np.concatenate(out, 1), whole.numpy())


@pytest.mark.parametrize("kind", LAYERS)
def test_no_sequences_are_no_outputs(device, kind):
    layer = LAYERS[kind](5, return_sequences=True, return_state=True)
    y, *states = layer(np.zeros((0, 3, 4), np.float32))
    assert y.shape == (0, 3, 5) and all(state.shape == (0, 5) for state in states)
    (y * y).sum().backward()
    assert not any(p.grad.numpy().any() for p in layer.parameters())


MERGES = {
    "concat": lambda a, b: np.concatenate([a, b], -1),
    "sum": np.add,
    "mul": np.multiply,
    "ave": lambda a, b: (a + b) / 2,
}


@pytest.mark.parametrize("name", MERGES)
def test_both_ways(device, rng, name):
    """Each way is the layer by itself, also from a length on, and over steps that are masked."""
    merge = MERGES[name]
    net = clnn.Bidirectional(clnn.GRU(20, return_sequences=True, return_state=True), name)
    x, lengths = rng.standard_normal((4, 5, 3)).astype(np.float32), np.array([5, 2, 1, 4], np.int32)
    y, *states = net(x, lengths)
    assert len(states) == 2
    for row, n in enumerate(lengths):
        one = x[row : row + 1, :n]
        (a, ah), (b, bh) = net.layer(one), net.back(one)
        assert_close(y.numpy()[row, :n], merge(a.numpy()[0], b.numpy()[0, ::-1]), 1e-6)
        for got, wanted in zip(states, (ah, bh), strict=True):
            np.testing.assert_array_equal(got.numpy()[row], wanted.numpy()[0])


def test_both_ways_are_merged_otherwise_later_on(device, rng, tmp_path):
    """That was refused, as if a built layer had been given."""
    x, layer = rng.standard_normal((2, 4, 3)).astype(np.float32), clnn.Bidirectional(clnn.LSTM(5))
    net = clnn.Sequential([layer], input_shape=(4, 3))
    step = clnn.step(lambda x: net(x))
    for mode in ("sum", "mul", "concat", "ave"):
        for _ in range(4):
            step(x)
        layer.merge_mode = mode
        fresh = clnn.Sequential([clnn.Bidirectional(clnn.LSTM(5), mode)], input_shape=(4, 3))
        fresh.load_state_dict(net.state_dict())
        net.save(tmp_path / "net.clnn")
        for one in (step, net.predict, clnn.load(tmp_path / "net.clnn").predict):
            np.testing.assert_array_equal(np.asarray(one(x)), fresh.predict(x))
    with pytest.raises(clnn.ConfigurationError, match="merge_mode should be one of concat"):
        layer.merge_mode = "max"


def test_masked_steps_are_passed_over_in_a_stack(device, rng):
    """Sequences padded to one length are their own, through two layers and both ways, and learn the same."""
    net = clnn.Masking(
        [clnn.Bidirectional(clnn.LSTM(20, return_sequences=True)), clnn.Dense(6, "relu"), clnn.GRU(20), clnn.Dense(2)],
        mask_value=-1.0,
    )
    x, lengths = rng.standard_normal((4, 6, 3)).astype(np.float32), np.array([6, 2, 1, 4])
    x[np.arange(6) >= lengths[:, None]] = -1
    y = net(x)
    (y * y).sum().backward()
    together = [p.grad.numpy() for p in net.parameters()]
    net.zero_grad()
    for row, n in enumerate(lengths):
        one = net(x[row : row + 1, :n])
        assert_close(y.numpy()[row], one.numpy()[0], 1e-5)
        (one * one).sum().backward()
    for a, p in zip(together, net.parameters(), strict=True):
        assert_close(p.grad.numpy(), a, 1e-4 * max(1, np.abs(a).max()))


def test_a_layer_at_each_step(device, rng):
    net, x = clnn.TimeDistributed(clnn.Conv1D(2, 3)), rng.standard_normal((3, 4, 5, 7)).astype(np.float32)
    y = net(x)
    for i in range(4):
        assert_close(y.numpy()[:, i], net.layer(x[:, i]).numpy(), 1e-5)


@pytest.mark.parametrize("inner", ["tokens", "words"])
def test_tokens_at_each_step(device, rng, inner):
    """As a net of sentences, each of words, takes them: whole numbers go through to the Embedding."""
    x, y = rng.integers(0, 9, (6, 3, 4)), rng.integers(0, 2, 6)
    if inner == "tokens":
        layers = [clnn.TimeDistributed(clnn.Embedding(9, 3)), clnn.TimeDistributed(clnn.LSTM(4))]
    else:
        layers = [clnn.TimeDistributed(clnn.Sequential([clnn.Embedding(9, 3, mask_zero=True), clnn.LSTM(4)]))]
    net = clnn.Sequential([*layers, clnn.LSTM(5), clnn.Dense(2)], seed=1)
    net.fit(x, y, loss="cross_entropy", optimizer="adam", epochs=2, batch_size=4, progress=False)
    apart = np.stack([through_layers(layers, x[:, i : i + 1])[:, 0] for i in range(3)], 1)
    assert_close(net.predict(x), net.layers[-1](net.layers[-2](apart)).numpy(), 1e-5)
    with pytest.raises(clnn.DataError, match=r"x\[0, 0, 0\] is 9, and .* has 9 tokens"):
        net.predict(x * 0 + 9)
    for layer in (
        clnn.Embedding(9, 3, mask_zero=True),
        clnn.Sequential([clnn.Embedding(9, 3), clnn.LSTM(4, return_state=True)]),
    ):
        with pytest.raises(clnn.ShapeError, match="its layer gives one tensor, without a mask"):
            clnn.TimeDistributed(layer)(x)


def through_layers(layers, x):
    for layer in layers:
        x = layer(x)
    return x.numpy()


def test_what_containers_refuse(device):
    built = clnn.LSTM(4)
    built(np.zeros((1, 1, 1)))
    for make in (
        lambda: clnn.Bidirectional(clnn.Dense(3)),
        lambda: clnn.Bidirectional(clnn.LSTM(3, go_backwards=True)),
        lambda: clnn.Bidirectional(built),
        lambda: clnn.Bidirectional(clnn.LSTM(3), "max"),
        lambda: clnn.Masking([clnn.Conv1D(2, 3), clnn.LSTM(3)]),
        lambda: clnn.Masking([clnn.LSTM(3, return_state=True), clnn.Dense(3)]),
        lambda: clnn.Masking(clnn.LSTM(3), mask_value=float("nan")),
        lambda: clnn.TimeDistributed(3),
    ):
        with pytest.raises(clnn.ConfigurationError):
            make()
    for layer in (clnn.Masking(clnn.LSTM(3)), clnn.TimeDistributed(clnn.Dense(3))):
        with pytest.raises(clnn.errors.ShapeError, match="batch, steps"):
            layer(np.zeros((2, 3)))
    for layer in (clnn.GRU(4), clnn.Bidirectional(clnn.SimpleRNN(4)), clnn.LSTM(4)):  # steps and units are equal
        for mask in (np.tri(4, dtype=bool)[:3], [True, False, True], clnn.ones((3, 4)) > 0):
            with pytest.raises(
                clnn.ShapeError, match=r"bools are no states and no lengths: give clnn.Masking\(\)\(x, mask\)"
            ):
                layer(np.zeros((3, 4, 2)), mask)
    with pytest.raises(clnn.ArgumentError, match="^TimeDistributed: too many positional arguments"):
        clnn.TimeDistributed(clnn.Dense(3))(np.zeros((2, 3, 4)), np.zeros((2, 3)))


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("both", [False, True])
def test_what_lies_past_a_length_does_not_count(device, rng, kind, both):
    """NaN neither: outputs and gradients are those of padding with zeros."""
    make = lambda: clnn.Bidirectional(LAYERS[kind](5)) if both else LAYERS[kind](5)  # noqa: E731
    x, lengths = rng.standard_normal((3, 6, 4)).astype(np.float32), np.array([2, 6, 0])
    found = []
    layer = make()
    for padding in (0.0, np.nan, np.inf, 7.0):
        given = x.copy()
        for row, n in enumerate(lengths):
            given[row, n:] = padding
        layer.zero_grad()
        y = layer(given, lengths)
        (y * y).sum().backward()
        found.append([y.numpy(), *(p.grad.numpy() for p in layer.parameters())])
    for other in found[1:]:
        for a, b in zip(found[0], other):
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("kind", LAYERS)
def test_a_length_that_cannot_be_in_a_recorded_step(device, rng, kind):
    layer, x = LAYERS[kind](5), rng.standard_normal((3, 6, 4)).astype(np.float32)
    layer(x)
    step = clnn.step(lambda x, lengths: layer(x, lengths))
    for lengths in ([1, 6, 0], [2, 2, 2], [6, 6, 6], [0, 1, 5], [3, 3, 3]):
        with clnn.no_grad():
            np.testing.assert_array_equal(step(x, np.array(lengths)).numpy(), layer(x, np.array(lengths)).numpy())
    for wrong, why in (([7, 3, -1], "from -1 to 7"), ([0, 3, 7], "from 0 to 7"), ([1.5, 3, 2], "1.5 is none")):
        for given in (np.array(wrong), clnn.tensor(np.array(wrong), "float32")):
            with clnn.no_grad(), pytest.raises(clnn.ShapeError, match=why):
                step(x, given)
    with clnn.no_grad():
        np.testing.assert_array_equal(step(x, np.array([6, 0, 2])).numpy(), layer(x, np.array([6, 0, 2])).numpy())
    computed = clnn.step(lambda x, lengths: layer(x, lengths + 1))  # nobody sees these
    with clnn.no_grad():
        for lengths in ([1, 5, 0], [2, 2, 2], [5, 5, 5], [6, 3, -2]):
            y = computed(x, np.array(lengths)).numpy()
    assert np.isnan(y[[0, 2]]).all() and np.isfinite(y[1]).all()


@pytest.mark.parametrize("both", [False, True])
def test_a_length_that_cannot_be_changes_no_weight(device, rng, both):
    """A replay made every weight NaN."""
    layer, head, optimizer = clnn.LSTM(4), clnn.Dense(2), clnn.SGD(0.1)
    layer = clnn.Bidirectional(layer) if both else layer

    @clnn.step
    def train(x, lengths, y):
        loss = clnn.losses.cross_entropy(head(layer(x, lengths)), y)
        loss.backward()
        optimizer.step([*layer.parameters(), *head.parameters()])
        return loss

    x, y = rng.standard_normal((3, 5, 2)).astype(np.float32), np.array([0, 1, 0])
    for _ in range(5):
        train(x, np.array([5, 1, 3]), y)
    before = layer.state_dict()
    with pytest.raises(clnn.ShapeError, match="there are 0 to 5 steps"):
        train(x, np.array([5, 6, 3]), y)
    for name, array in layer.state_dict().items():
        np.testing.assert_array_equal(array, before[name])


@pytest.mark.parametrize("how", ["made", "copied", "pickled", "loaded"])
def test_what_is_set_on_a_bidirectionals_layer_its_copy_gets(device, rng, tmp_path, how):
    net = clnn.Sequential([clnn.Bidirectional(clnn.LSTM(3)), clnn.Dense(1)], input_shape=(5, 3))
    net.save(tmp_path / "net.clnn")
    again = {
        "made": lambda: net,
        "copied": lambda: copy.deepcopy(net),
        "pickled": lambda: pickle.loads(pickle.dumps(net)),
    }
    one = again.get(how, lambda: clnn.load(tmp_path / "net.clnn"))()
    assert [name for name, _ in one.named_parameters()] == [name for name, _ in net.named_parameters()]
    both, x = one.layers[0], rng.random((4, 5, 3))
    both.layer.trainable = False
    assert not any(p.trainable for p in both.parameters()) and both.back.go_backwards
    both.layer.trainable = True
    assert all(p.trainable for p in both.parameters())
    both.layer.dropout, both.layer.activation = 0.5, "relu"
    assert (both.back.dropout, both.back.activation) == (0.5, "relu")
    assert one is net or net.layers[0].back.dropout == 0.0
    one.save(tmp_path / "again.clnn")
    np.testing.assert_array_equal(clnn.load(tmp_path / "again.clnn").predict(x), one.predict(x))
