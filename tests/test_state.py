"""What an optimizer keeps goes with the parameters: by name in files, to other devices, and one model's apart from another's."""

import contextlib
import copy
import gc
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers import parameter

import clnn

RULES = {
    "sgd": lambda: clnn.SGD(0.05),
    "momentum": lambda: clnn.SGD(0.05, momentum=0.9),
    "nesterov ema": lambda: clnn.SGD(0.05, momentum=0.9, nesterov=True, ema=0.9),
    "adam": lambda: clnn.Adam(0.01),
    "adamw schedule": lambda: clnn.AdamW(clnn.schedules.Exponential(0.01, 0.9)),
    "amsgrad": lambda: clnn.AMSGrad(0.01),
    "nadam": lambda: clnn.Nadam(0.01),
    "lamb": lambda: clnn.LAMB(0.01),
    "rmsprop": lambda: clnn.RMSprop(0.01, centered=True, momentum=0.5),
    "adagrad": lambda: clnn.Adagrad(0.05),
    "adadelta": lambda: clnn.Adadelta(),
    "lion": lambda: clnn.Lion(0.001),
}
FIT = {"loss": "mse", "batch_size": 8, "seed": 1, "progress": False}


def net_of(seed=3):
    layers = [clnn.Dense(5, "tanh"), clnn.Dense(4, "tanh"), clnn.Dense(2)]
    return clnn.Sequential(layers, input_shape=3, seed=seed)


def data(rng, n=24):
    return rng.standard_normal((n, 3)).astype(np.float32), rng.standard_normal((n, 2)).astype(np.float32)


def values(net):
    return [p.numpy() for p in net.parameters()]


def assert_same(a, b):
    for p, q in zip(values(a), values(b), strict=True):
        np.testing.assert_array_equal(p, q)


# -- files ------------------------------------------------------------------------------------------------------------
CHANGES = {  # what happens between load and the next fit, to the net that was saved and to the one that was loaded
    "nothing": lambda net: None,
    "frozen": lambda net: setattr(net.layers[0], "trainable", False),
    "the middle frozen": lambda net: setattr(net.layers[1], "trainable", False),
    "frozen but for the last": lambda net: [setattr(layer, "trainable", False) for layer in net.layers[:2]],
}


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("change", CHANGES)
def test_a_loaded_optimizer_goes_on_as_the_saved_one(device, rng, tmp_path, rule, change):
    """Also with layers frozen after loading, and thawed again later."""
    x, y = data(rng)
    net = net_of()
    net.fit(x, y, optimizer=RULES[rule](), epochs=3, **FIT)
    net.save(tmp_path / "net")
    again = clnn.load(tmp_path / "net")
    again.save(tmp_path / "once more")  # before anything took the state up
    again = clnn.load(tmp_path / "once more")
    for model in (net, again):
        CHANGES[change](model)
        model.fit(x, y, optimizer=model.optimizer, epochs=2, **FIT)
    assert_same(net, again)
    again.save(tmp_path / "frozen")  # what is kept of frozen parameters is in the file, too
    third = clnn.load(tmp_path / "frozen")
    for model in (net, again, third):
        for layer in model.layers:
            layer.trainable = True
        model.fit(x, y, optimizer=model.optimizer, epochs=2, **FIT)
    assert_same(net, again)
    assert_same(net, third)
    assert net.optimizer.steps == third.optimizer.steps == 7 * 3


def test_a_layer_that_was_frozen_when_saved(device, rng, tmp_path):
    """Thawed after loading it begins with no velocity, and the others go on with theirs."""
    x, y = data(rng)
    net = net_of()
    net.layers[0].trainable = False
    net.layers[1].b.trainable = False
    net.fit(x, y, optimizer=clnn.SGD(0.05, momentum=0.9), epochs=3, **FIT)
    net.save(tmp_path / "net")
    again = clnn.load(tmp_path / "net")
    assert not again.layers[0].trainable and not again.layers[1].b.trainable and again.layers[1].w.trainable
    for model in (net, again):
        model.trainable = True
        model.fit(x, y, optimizer=model.optimizer, epochs=3, **FIT)
    assert_same(net, again)


def broken(*_):
    raise ZeroDivisionError


@pytest.mark.parametrize("wrong", [{"loss": broken}, {"metrics": [broken]}], ids=["loss", "metric"])
@pytest.mark.parametrize("optimizer", [lambda: clnn.SGD(0.05, momentum=0.9), lambda: clnn.Adam(0.01, ema=0.9)])
@pytest.mark.parametrize("record", [True, False])
def test_an_error_before_the_backward_pass_loses_nothing(device, rng, wrong, optimizer, record):
    """Also of velocities that are where gradients would have come."""
    x, y = data(rng)
    nets = net_of(), net_of()
    for net, fits in zip(nets, ([{}, {}], [{}, wrong, wrong, {}])):
        one = optimizer()
        for options in fits:
            with pytest.raises(ZeroDivisionError) if options else contextlib.nullcontext():
                net.fit(x, y, optimizer=one, epochs=2, record=record, **{**FIT, **options})
    assert_same(*nets)
    assert nets[0].optimizer.steps == nets[1].optimizer.steps


def another_head(net):
    clnn.seed(5)
    net.layers[-1] = clnn.Dense(2)
    net.layers[-1].name = "head"
    net(np.zeros((1, 3)))  # it draws its weights


def a_layer_more(net):
    clnn.seed(5)
    net.layers.append(clnn.Dense(2))
    net.layers[-1].name = "more"
    net(np.zeros((1, 3)))


@pytest.mark.parametrize("rule", ["momentum", "nesterov ema", "adam"])
@pytest.mark.parametrize("way", ["loaded", "copied", "loaded after"])
@pytest.mark.parametrize("change", [another_head, a_layer_more])
def test_a_layer_that_is_new_begins_anew_where_others_go_on(device, rng, tmp_path, rule, way, change):
    """Also where a model was loaded or copied meanwhile: what the optimizer knew of the layer before is not the new one's."""
    x, y = data(rng)
    net = net_of()
    net.fit(x, y, optimizer=RULES[rule](), epochs=2, **FIT)
    if "after" in way:
        change(net)
        net.save(tmp_path / "net")
        again = clnn.load(tmp_path / "net")
    else:
        net.save(tmp_path / "net")
        again = clnn.load(tmp_path / "net") if way == "loaded" else copy.deepcopy(net)
        change(net)
        change(again)
    for model in (net, again):
        model.fit(x, y, optimizer=model.optimizer, epochs=2, **FIT)
    assert_same(net, again)
    again.save(tmp_path / "once more")
    net, again = again, clnn.load(tmp_path / "once more")
    for model in (net, again):
        model.fit(x, y, optimizer=model.optimizer, epochs=2, **FIT)
    assert_same(net, again)


def test_what_waits_for_a_frozen_layer_is_not_for_the_one_in_its_place(device, rng, tmp_path):
    x, y = data(rng)
    net = net_of()
    net.fit(x, y, optimizer=clnn.SGD(0.05, momentum=0.9), epochs=2, **FIT)
    net.save(tmp_path / "net")
    again = clnn.load(tmp_path / "net")
    for model in (net, again):
        model.layers[-1].trainable = False
        model.fit(x, y, optimizer=model.optimizer, epochs=1, **FIT)
        another_head(model)
        model.fit(x, y, optimizer=model.optimizer, epochs=2, **FIT)
    assert_same(net, again)


@pytest.mark.parametrize("between", [False, True])
def test_a_copy_of_an_optimizer_is_saved_with_its_state(device, rng, tmp_path, between):
    """Also after it was trained with another model."""
    x, y = data(rng)
    net, one = net_of(), clnn.Adam(clnn.schedules.Exponential(0.01, 0.9))
    net.fit(x, y, optimizer=one, epochs=2, **FIT)
    if between:
        net_of(4).fit(x, y, optimizer=one, epochs=1, **FIT)
        net.fit(x, y, optimizer=one, epochs=0, **FIT)
    net.save(tmp_path / "net", optimizer=copy.deepcopy(one))
    again = clnn.load(tmp_path / "net")
    assert again.optimizer.steps == one.steps == 6
    for model, optimizer in ((net, one), (again, again.optimizer)):
        model.fit(x, y, optimizer=optimizer, epochs=2, **FIT)
    assert_same(net, again)


@clnn.register
class Gated(clnn.Layer):
    """Layers inside, and a parameter beside them; `depth` of them in each other."""

    def __init__(self, depth=1):
        self.depth, self.inner = depth, clnn.Dense(4, "tanh") if depth == 1 else Gated(depth - 1)

    def config(self):
        return {"depth": self.depth}

    def build(self, shape):
        self.gate = self.parameter(1, init=0.5)

    def forward(self, x):
        return x + self.gate * self.inner(x)


@pytest.mark.parametrize("frozen", [["gate"], ["inner.gate"], ["gate", "inner.inner.w"], ["gate", "inner.gate"], None])
def test_a_parameter_beside_layers_that_was_frozen_when_saved(device, tmp_path, frozen):
    """The layers inside are trained on after loading, unless they are frozen, too."""
    net = clnn.Sequential([Gated(2)], input_shape=4)
    names = dict(net.layers[0].named_parameters())
    for name in names if frozen is None else frozen:
        names[name].trainable = False
    net.save(tmp_path / "net")
    again = clnn.load(tmp_path / "net")
    outer = again.layers[0]
    assert {n: p.trainable for n, p in outer.named_parameters()} == {n: p.trainable for n, p in names.items()}
    assert outer.trainable == outer.inner.trainable == outer.inner.inner.trainable == (frozen is not None)


@pytest.mark.parametrize(
    "change", [{"momentum": 0.0}, {"ema": None}, {"momentum": 0.0, "ema": None}, {"weight_decay": 0.1}]
)
def test_hyper_parameters_changed_after_loading(device, rng, tmp_path, change):
    x, y = data(rng)
    net = net_of()
    net.fit(x, y, optimizer=clnn.SGD(0.05, momentum=0.9, ema=0.9), epochs=2, **FIT)
    net.save(tmp_path / "net")
    again = clnn.load(tmp_path / "net")
    for model in (net, again):
        for name, value in change.items():
            setattr(model.optimizer, name, value)
        model.fit(x, y, optimizer=model.optimizer, epochs=2, **FIT)
    assert_same(net, again)
    again.save(tmp_path / "once more")
    clnn.load(tmp_path / "once more")


def test_rmsprop_keeps_what_its_options_name(device, rng):
    """A mean that is asked for later is not the velocity that was there before."""
    p, w = parameter(np.ones(4)), np.ones(4)
    o, v, m, u = clnn.RMSprop(0.1, alpha=0.5, momentum=0.5), np.zeros(4), np.zeros(4), np.zeros(4)
    for i in range(6):
        o.centered = i >= 3
        g = rng.standard_normal(4)
        (p * g.astype(np.float32)).sum().backward()
        o.step([p])
        v = 0.5 * v + 0.5 * g * g
        m = 0.5 * m + 0.5 * g if o.centered else m
        u = 0.5 * u + g / (np.sqrt(v - m * m) + 1e-8)
        w = w - 0.1 * u
    assert np.allclose(p.numpy(), w, rtol=1e-3)


def test_files_of_earlier_versions_are_by_position(device, rng, tmp_path):
    x, y = data(rng)
    net = net_of()
    net.layers[0].trainable = False
    net.fit(x, y, optimizer=clnn.Adam(0.01), epochs=2, **FIT)
    net.save(tmp_path / "net")
    arrays, header = clnn.checkpoint.read(tmp_path / "net")
    for key in ("names", "states", "rule"):
        del header["optimizer"][key]
    del header["format"]
    clnn.checkpoint.write(tmp_path / "old", arrays, header)
    again = clnn.load(tmp_path / "old")
    for model in (net, again):
        model.trainable = True
        model.layers[2].trainable = False
        model.fit(x, y, optimizer=model.optimizer, epochs=2, **FIT)
    assert_same(net, again)
    state = {key: value for key, value in net.optimizer.state_dict().items() if key not in ("names", "states", "rule")}
    other = clnn.Adam()
    other.load_state_dict(state)
    with pytest.raises(clnn.CheckpointError, match=r"of 6 parameters, and 4 were given"):
        other.attach([p for layer in net_of().layers[:2] for p in layer.parameters()])


def test_a_state_that_does_not_fit_names_both(device, rng):
    x, y = data(rng)
    net = net_of()
    net.fit(x, y, optimizer=clnn.Adam(), epochs=1, **FIT)
    state = net.optimizer.state_dict()
    more = clnn.Sequential([clnn.Dense(5), clnn.Dense(4), clnn.Dense(2), clnn.Dense(2)], input_shape=3)
    fewer = clnn.Sequential([clnn.Dense(5), clnn.Dense(2)], input_shape=3)
    for model, words in (
        (more, "6 parameters, and 8.*3.b, 3.w"),
        (fewer, "6 parameters, and 4.*only the state has 2.b"),
    ):
        optimizer = clnn.Adam()
        optimizer.load_state_dict(state)
        before = values(model)
        with pytest.raises(clnn.CheckpointError, match=words):
            model.fit(x, y, optimizer=optimizer, epochs=1, **FIT)
        for p, q in zip(values(model), before):
            np.testing.assert_array_equal(p, q)
    with pytest.raises(clnn.CheckpointError, match="state of an optimizer Adam, not of SGD"):
        clnn.SGD(momentum=0.9).load_state_dict(state)


def test_a_state_loaded_into_an_optimizer_at_work(device, rng):
    """It replaces everything, also what recordings have."""
    x, c = rng.standard_normal((6, 3)).astype(np.float32), rng.standard_normal((6, 2)).astype(np.float32)
    for rule in ("momentum", "adam", "nesterov ema"):
        net, optimizer = net_of(), RULES[rule]()

        @clnn.step
        def train(x, c, net=net, optimizer=optimizer):
            (net(x) * c).mean().backward()
            optimizer.step(net.parameters())

        for _ in range(2):
            train(x, c)
        state, weights = optimizer.state_dict(), net.state_dict()
        for _ in range(5):
            train(x, c)
        expected = values(net)
        for _ in range(2):
            net.load_state_dict(weights)
            optimizer.load_state_dict(state)
            for _ in range(5):
                train(x, c)
            for p, q in zip(values(net), expected):
                np.testing.assert_array_equal(p, q)


# -- one optimizer, several models ------------------------------------------------------------------------------------
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("way", ["fit", "step"])
def test_another_model_starts_afresh_and_the_first_goes_on(device, rng, rule, way):
    """As with an optimizer for each: counts, moments and schedules."""
    x, y = data(rng)

    def trainer(net, optimizer):
        if way == "fit":
            return lambda: net.fit(x, y, optimizer=optimizer, epochs=2, **FIT)

        @clnn.step
        def train(x, y):
            clnn.losses.mse(net(x), y).backward()
            optimizer.step(net.parameters())

        return lambda: [train(x, y) for _ in range(4)]

    if way == "step" and "schedule" in rule:
        pytest.skip("it counts in epochs")
    found = []
    for shared in (True, False):
        optimizers = [RULES[rule]()] * 2 if shared else [RULES[rule](), RULES[rule]()]
        nets = [net_of(3), net_of(4)]
        trainers = [trainer(net, optimizer) for net, optimizer in zip(nets, optimizers)]
        counts = []
        for which in (0, 1, 0, 0, 1):
            trainers[which]()
            counts.append(optimizers[which].steps)
        found.append((values(nets[0]) + values(nets[1]), counts))
    assert found[0][1] == found[1][1]
    for p, q in zip(found[0][0], found[1][0], strict=True):
        np.testing.assert_array_equal(p, q)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("how", ["saved", "moved"])
def test_a_model_keeps_its_own_state_while_another_one_is_trained(device, rng, tmp_path, rule, how):
    """It is saved, or moved, after the optimizer has gone on to the other."""
    x, y = data(rng)
    alone, first, second = net_of(3), net_of(3), net_of(4)
    optimizers = RULES[rule](), RULES[rule]()
    for net, optimizer in ((alone, optimizers[0]), (first, optimizers[1]), (second, optimizers[1])):
        net.fit(x, y, optimizer=optimizer, epochs=2, **FIT)
    if how == "saved":
        first.save(tmp_path / "net")
        with clnn.use(device):
            first = clnn.load(tmp_path / "net")
    else:
        first.to(next((one for one in clnn.devices() if one is not device), device))
        first.save(tmp_path / "net")
    for net, optimizer in ((alone, optimizers[0]), (first, first.optimizer)):
        net.fit(x, y, optimizer=optimizer, epochs=2, **FIT)
    assert first.optimizer.steps == optimizers[0].steps
    for p, q in zip(values(alone), values(first), strict=True):
        np.testing.assert_allclose(p, q, atol=0 if first.device is device else 1e-5)


@pytest.mark.parametrize("between", [False, True])
def test_another_part_of_the_model_is_no_other_model(device, rng, between):
    """What was trained so far is frozen and the rest is thawed: steps and epochs count on, also after another model's."""
    x, y = data(rng)
    net, optimizer = net_of(3), clnn.Adam(clnn.schedules.Linear(0.05, epochs=9))
    net.layers[-1].trainable = False
    net.fit(x, y, optimizer=optimizer, epochs=2, **FIT)
    count = optimizer.steps
    for trained in (True, False, True):
        for layer in net.layers:
            layer.trainable = (layer is net.layers[-1]) == trained
        if between:
            net_of(4).fit(x, y, optimizer=optimizer, epochs=1, **FIT)
        epochs = optimizer.epochs
        net.fit(x, y, optimizer=optimizer, epochs=1, **FIT)
        count += len(x) // FIT["batch_size"] + bool(len(x) % FIT["batch_size"])
        assert optimizer.steps == count and (between or optimizer.epochs == epochs + 1)


def test_a_copied_optimizer_is_saved_under_the_models_names(device, rng, tmp_path):
    """A layer before the others has moved their names on."""
    x, y = data(rng)
    net = net_of(3)
    net.layers.insert(0, clnn.Activation("tanh"))
    net.fit(x, y, optimizer=clnn.Adam(0.05), epochs=1, **FIT)
    again = copy.deepcopy(net)
    again.save(tmp_path / "net")
    with clnn.use(device):
        loaded = clnn.load(tmp_path / "net")
    for one in (net, again, loaded):
        one.fit(x, y, optimizer=one.optimizer, epochs=1, **FIT)
        for p, q in zip(values(net), values(one), strict=True):
            np.testing.assert_array_equal(p, q)


def test_what_waits_for_a_frozen_layer_waits_while_another_model_is_trained(device, rng, tmp_path):
    x, y = data(rng)
    found = []
    for between in (False, True):
        net = net_of(3)
        net.fit(x, y, optimizer=clnn.Adam(0.05), epochs=2, **FIT)
        net.layers[0].trainable = False
        net.save(tmp_path / "net")
        with clnn.use(device):
            net = clnn.load(tmp_path / "net")
        net.fit(x, y, optimizer=net.optimizer, epochs=1, **FIT)
        if between:
            net_of(4).fit(x, y, optimizer=net.optimizer, epochs=1, **FIT)
        net.layers[0].trainable = True
        net.fit(x, y, optimizer=net.optimizer, epochs=1, **FIT)
        found.append(values(net))
    for p, q in zip(*found, strict=True):
        np.testing.assert_array_equal(p, q)


class Between(clnn.callbacks.Callback):
    """Calls a function after each epoch."""

    def __init__(self, function):
        self.function = function

    def on_epoch_end(self, model, epoch, logs):
        self.function()


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("way", ["fit", "step", "save"])
@pytest.mark.parametrize("record", [True, False])
def test_a_callback_trains_something_else_with_the_same_optimizer(device, rng, rule, way, record):
    if way == "step" and "schedule" in rule:
        pytest.skip("it counts in epochs")
    x, y = data(rng)
    found = []
    for shared in (True, False):
        first, optimizer = net_of(3), RULES[rule]()
        second, other = net_of(4), optimizer if shared else RULES[rule]()

        def extra(second=second, other=other):
            clnn.losses.mse(second(x), y).backward()
            other.step(second.parameters())

        between = {
            "fit": lambda second=second, other=other: second.fit(x, y, optimizer=other, epochs=2, **FIT),
            "step": extra,
            "save": lambda second=second, other=other: other.state_dict(list(second.named_parameters())),
        }[way]
        first.fit(x, y, optimizer=optimizer, epochs=4, callbacks=[Between(between)], record=record, **FIT)
        state = optimizer.state_dict(first.named_parameters())
        found.append((values(first) + values(second), state["steps"], state["epochs"]))
    assert found[0][1:] == found[1][1:] == (12, 4)
    for p, q in zip(found[0][0], found[1][0], strict=True):
        np.testing.assert_array_equal(p, q)


def test_after_steps_of_a_part_in_a_callback_all_is_trained(device, rng):
    x, y = data(rng)
    net, optimizer = net_of(), clnn.SGD(0.05)

    def part():
        clnn.losses.mse(net(x), y).backward()
        optimizer.step(net.layers[-1].parameters())

    before, seen = values(net), []
    net.fit(x, y, optimizer=optimizer, epochs=2, callbacks=[Between(lambda: (part(), seen.append(values(net))))], **FIT)
    assert all(not np.array_equal(p, q) for p, q in zip(before, seen[0]))
    assert all(not np.array_equal(p, q) for p, q in zip(*seen))


def test_the_first_step_for_a_second_model(device, rng):
    x, y = data(rng, 8)
    optimizer = clnn.Adam(0.001)
    for seed in range(3):
        net = net_of(seed)
        before = values(net)
        net.fit(x, y, optimizer=optimizer, epochs=1, **FIT)
        assert optimizer.steps == 1 and optimizer.epochs == 1
        moved = np.concatenate([np.abs(p - q).ravel() for p, q in zip(values(net), before)])
        assert moved.max() == pytest.approx(0.001, rel=1e-2)


@pytest.mark.parametrize("rule", ["momentum", "adam", "lamb", "nesterov ema"])
def test_nothing_is_kept_of_models_that_are_gone(device, rng, rule):
    """The memory of twelve models with one optimizer is that of one."""
    optimizer, held = RULES[rule](), []
    x, y = rng.standard_normal((8, 300)).astype(np.float32), rng.standard_normal((8, 300)).astype(np.float32)
    for _ in range(6):
        net = clnn.Sequential([clnn.Dense(300), clnn.Dense(300)], input_shape=300)
        net.fit(x, y, optimizer=optimizer, epochs=1, **FIT)
        del net
        gc.collect()
        held.append(device.memory.in_use)
    assert held[-1] <= held[1] + (1 << 16)


# -- devices ----------------------------------------------------------------------------------------------------------
@pytest.mark.two_devices
@pytest.mark.parametrize("rule", RULES)
def test_a_moved_model_is_trained_on_with_the_same_optimizer(device, other_device, rng, rule):
    x, y = data(rng)
    nets = [net_of(), net_of()]
    optimizers = [RULES[rule](), RULES[rule]()]
    for turn in range(4):
        for net, optimizer in zip(nets, optimizers):
            if net is nets[1] and turn:
                net.to(other_device if turn % 2 else device)
                assert net.optimizer is optimizer
            net.fit(x, y, optimizer=optimizer, epochs=2, **FIT)
        assert optimizers[0].steps == optimizers[1].steps
        for p, q in zip(values(nets[0]), values(nets[1])):
            assert np.allclose(p, q, atol=1e-5)
    if optimizer.ema is not None:
        found = []
        for net, optimizer in zip(nets, optimizers):
            with optimizer.averaged():
                found.append(net.predict(x))
        assert np.allclose(*found, atol=1e-5)


@pytest.mark.two_devices
@pytest.mark.parametrize("rule", ["sgd", "momentum", "adam"])
def test_parameters_on_two_devices(device, other_device, rng, rule):
    """Trained together step by step; a recorded step is for one device, and says so."""
    w = rng.standard_normal(4).astype(np.float32)
    apart, together = (
        [parameter(w), parameter(w, device=device)],
        [parameter(w, device=other_device), parameter(w, device=device)],
    )
    optimizers = [RULES[rule](), RULES[rule](), RULES[rule]()]
    for i in range(4):
        g = rng.standard_normal(4).astype(np.float32)
        for p in apart + together:
            (p * clnn.tensor(g, device=p.device)).sum().backward()
        optimizers[0].step(apart[:1])
        optimizers[1].step(apart[1:])
        optimizers[2].step(together if i < 2 else together[:1] + together[1:])
        for p, q in zip(apart, together):
            assert np.allclose(p.numpy(), q.numpy(), atol=1e-6)

    @clnn.step
    def train(x):
        for p in together:
            (p * clnn.tensor(w, device=p.device)).sum().backward()
        optimizers[2].step(together)

    with pytest.raises(clnn.ConfigurationError, match="an optimizer and a step of their own"):
        train(w)

    @clnn.step
    def train_elsewhere():
        (together[0] * 2.0).sum().backward()
        optimizers[2].step(together[:1])

    with pytest.raises(clnn.ConfigurationError, match="an optimizer and a step of their own"):
        train_elsewhere()


def test_two_devices_on_any_machine():
    """PoCL gives two where it is told to, so that what is marked for them runs everywhere."""
    if not any("Portable Computing Language" in d.platform for d in clnn.devices()):
        pytest.skip("no PoCL")
    if len(clnn.devices()) > 1:
        pytest.skip("they have run")
    tests = Path(__file__).parent
    marked = [
        file
        for file in sorted(tests.glob("test_*.py"))
        if "@pytest.mark.two_devices" in file.read_text(encoding="utf-8")
    ]
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-x",
        "-m",
        "two_devices",
        "-p",
        "no:cacheprovider",
        *map(str, marked),
    ]
    environment = {**os.environ, "POCL_DEVICES": "pthread basic"}
    environment.pop("CLNN_DEVICE", None)
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "passed" in done.stdout and "skipped" not in done.stdout, done.stdout + done.stderr


@pytest.mark.parametrize("make", [list, tuple, lambda arrays: None, lambda arrays: "net.npz", iter])
def test_a_state_that_is_no_dict_is_refused(device, make):
    """A list was an unhashable type, and a path's letters were unknown names."""
    net = clnn.Sequential([clnn.Dense(3), clnn.Dense(2)], input_shape=4)
    arrays = [p.numpy() + 1 for p in net.parameters()]
    with pytest.raises(
        clnn.CheckpointError, match=r"a state is arrays by their names, .*dict\(zip\(net.state_dict\(\), arrays"
    ):
        net.load_state_dict(make(arrays))
    net.load_state_dict(dict(zip(net.state_dict(), arrays)))  # as that says
    assert all(np.array_equal(p, array) for p, array in zip(net.parameters(), arrays))
