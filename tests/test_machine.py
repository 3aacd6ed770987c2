"""A model changed at random between fit, predict, evaluate, save and load answers, bit by bit, as a freshly built one that
records nothing does.

Hypothesis draws the calls. The model under test lives through all of them, with its recordings; before each call its twin
is built anew from a description and from what the twins before it have learnt, runs the same call eagerly, and is dropped.
`CLNN_MACHINE_STEPS=50000` makes a long run of it, of other calls each time; pytest's `--hypothesis-seed=7` has them repeat.
"""

import copy
import os
import tempfile

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)

import clnn

STEPS = int(os.environ.get("CLNN_MACHINE_STEPS", "2000"))
PER_RUN = 50
FEATURES, CLASSES = 5, 4
LEARN = ("dense", "norm", "residual")
ACTIVATIONS = ("relu", "tanh", "sigmoid", "linear", "gelu")
X = np.random.default_rng(0).standard_normal((600, FEATURES)).astype(np.float32)
Y = np.random.default_rng(1).integers(0, CLASSES, 600).astype(np.int32)
VALUES = np.random.default_rng(2).standard_normal((600, CLASSES)).astype(np.float32)

middle = st.one_of(
    st.tuples(st.just("dense"), st.integers(1, 9), st.sampled_from(ACTIVATIONS)),
    st.tuples(st.just("activation"), st.sampled_from(ACTIVATIONS)),
    st.tuples(st.just("dropout"), st.sampled_from((0.1, 0.5))),
    st.just(("norm",)),
    st.tuples(st.just("residual"), st.integers(1, 6), st.sampled_from(("relu", "linear"))),
)
# clip_value and not clip_norm: a sum of squares rounds by how parameters lie in memory, which changed models keep as it was
rules = st.one_of(
    st.builds(lambda lr: {"kind": "SGD", "lr": lr}, st.sampled_from((0.01, 0.1))),
    st.builds(lambda lr: {"kind": "SGD", "lr": lr, "momentum": 0.9}, st.sampled_from((0.01, 0.05))),
    st.builds(
        lambda clip: {"kind": "SGD", "lr": 0.05, "momentum": 0.5, "clip_value": clip}, st.sampled_from((0.01, 0.1))
    ),
    st.builds(lambda decay: {"kind": "Adam", "lr": 0.01, "weight_decay": decay}, st.sampled_from((0.0, 0.01))),
    st.just({"kind": "RMSprop", "lr": 0.01, "ema": 0.9}),
)


def made(spec, width):
    """A layer from its description; `width` is that of its input."""
    kind, *rest = spec
    if kind == "dense":
        return clnn.Dense(rest[0], rest[1])
    if kind == "activation":
        return clnn.Activation(rest[0])
    if kind == "dropout":
        return clnn.Dropout(rest[0])
    if kind == "norm":
        return clnn.LayerNorm()
    return clnn.Residual([clnn.Dense(rest[0], rest[1]), clnn.Dense(width)], activation="tanh")


def width_after(spec, width):
    return spec[1] if spec[0] == "dense" else width


class Machine(RuleBasedStateMachine):
    @initialize(layers=st.lists(middle, min_size=1, max_size=3), seed=st.integers(0, 99))
    def begin(self, layers, seed):
        self.specs, self.frozen, self.rule, self.rates = list(layers), [], {"kind": "SGD", "lr": 0.05}, {}
        self.optimizer_state, self.loss, self.delta = None, "cross_entropy", 1.0
        self.huber = clnn.losses.Huber()
        self.recorded = clnn.step(lambda x, y: self.one_step(self.net, self.optimizer, x, y))
        self.net = self.built(seed)
        self.optimizer = self.made_optimizer()
        self.weights = [p.numpy() for p in self.net.parameters()]

    # -- the two models -----------------------------------------------------------------------------------------------
    def described(self):
        layers, width = [], FEATURES
        for spec in self.specs:
            layers.append(made(spec, width))
            width = width_after(spec, width)
        return [*layers, clnn.Dense(CLASSES)]

    def built(self, seed=0):
        net = clnn.Sequential(self.described(), input_shape=FEATURES, seed=seed)
        for at in self.frozen:
            net.layers[at].trainable = False
        return net

    def made_optimizer(self):
        arguments = dict(self.rule)
        return getattr(clnn, arguments.pop("kind"))(**arguments)

    def twin(self):
        net, optimizer = self.built(), self.made_optimizer()
        net.load_state_dict(dict(zip((name for name, _ in net.named_parameters()), self.weights)))
        if self.optimizer_state is not None:
            optimizer.load_state_dict(copy.deepcopy(self.optimizer_state))
        return net, optimizer

    def changed(self):
        """The architecture is another: with the weights that the model has now, and a new optimizer."""
        self.optimizer, self.optimizer_state = self.made_optimizer(), None
        self.net.predict(X[:2])  # what is new gets its weights
        self.weights = [p.numpy() for p in self.net.parameters()]

    def learning(self, without=-1):
        """Whether some layer learns, the one that is left out aside."""
        last = len(self.specs)
        kinds = [*(spec[0] for spec in self.specs), "dense"]
        return any(kinds[i] in LEARN for i in range(last + 1) if i not in self.frozen and i != without)

    def targets(self, rows):
        return (VALUES if self.loss in ("mse", "huber") else Y)[rows]

    def one_step(self, net, optimizer, x, y):
        loss = clnn.losses.cross_entropy(net(x), y)
        loss.backward()
        optimizer.step(net.parameters())
        return loss

    def loss_of(self, name, twin=False):
        if name != "huber":
            return name
        return clnn.losses.Huber(self.delta) if twin else self.huber

    # -- calls that are compared --------------------------------------------------------------------------------------
    @rule(rows=st.sampled_from((1, 3, 40, 512, 600)), batch=st.sampled_from((16, 512)))
    def predict(self, rows, batch):
        expected = self.twin()[0].predict(X[:rows], batch_size=batch)
        assert np.array_equal(self.net.predict(X[:rows], batch_size=batch), expected)

    @rule(rows=st.sampled_from((7, 64, 600)), loss=st.sampled_from(("same", "cross_entropy", "mse")))
    def evaluate(self, rows, loss):
        loss = self.loss if loss == "same" else loss
        y = (VALUES if loss in ("mse", "huber") else Y)[:rows]
        expected = self.twin()[0].evaluate(X[:rows], y, loss=self.loss_of(loss, twin=True))
        assert self.net.evaluate(X[:rows], y, loss=self.loss_of(loss)) == expected

    @rule(
        rows=st.sampled_from((20, 50)), epochs=st.integers(1, 4), batch=st.sampled_from((8, 16)), seed=st.integers(0, 9),
        frozen_at=st.none() | st.integers(0, 3),
    )  # fmt: skip
    def fit(self, rows, epochs, batch, seed, frozen_at):
        """With a callback, sometimes, that freezes or unfreezes the last layer after an epoch."""

        class Freeze(clnn.Callback):
            def on_epoch_end(self, model, epoch, logs):
                if epoch == frozen_at:
                    model.layers[-1].trainable = not model.layers[-1].trainable

        histories = []
        last = len(self.specs)
        if not self.learning(without=last):
            frozen_at = None
        net, optimizer = self.twin()
        for model, by, record in ((net, optimizer, False), (self.net, self.optimizer, True)):
            history = model.fit(
                X[:rows], self.targets(slice(rows)), loss=self.loss_of(self.loss, model is net), optimizer=by,
                epochs=epochs, batch_size=batch,
                seed=seed, record=record, progress=False, callbacks=[Freeze()],
            )  # fmt: skip
            histories.append(history["loss"])
        self.weights, self.optimizer_state = [p.numpy() for p in net.parameters()], optimizer.state_dict()
        self.frozen = [at for at in range(last + 1) if not net.layers[at].trainable]
        assert histories[0] == histories[1]

    @rule(times=st.integers(1, 5), rows=st.sampled_from((8, 13)), seed=st.integers(0, 9))
    def steps(self, times, rows, seed):
        """Steps of one's own, recorded, that find the model and the optimizer where they are now."""
        net, optimizer = self.twin()
        draws = clnn.random.generator(net.device)
        eager = clnn.step(lambda *batch: self.one_step(net, optimizer, *batch), record=False)
        for step in (eager, self.recorded):
            draws.reseed(seed)
            losses = [float(step(clnn.tensor(X[i : i + rows]), clnn.tensor(Y[i : i + rows]))) for i in range(times)]
            if step is eager:
                expected = losses
        self.weights, self.optimizer_state = [p.numpy() for p in net.parameters()], optimizer.state_dict()
        assert losses == expected

    @invariant()
    def the_same_weights(self):
        if hasattr(self, "weights"):
            found = [p.numpy() for p in self.net.parameters()]
            assert len(found) == len(self.weights)
            for mine, expected in zip(found, self.weights):
                assert np.array_equal(mine, expected)

    # -- changes ------------------------------------------------------------------------------------------------------
    @rule(at=st.integers(0, 3), activation=st.sampled_from(ACTIVATIONS))
    def another_activation(self, at, activation):
        at %= len(self.specs)
        if self.specs[at][0] in ("dense", "activation"):
            self.net.layers[at].activation = activation
            self.specs[at] = (*self.specs[at][:-1], activation)

    @rule(at=st.integers(0, 3), rate=st.sampled_from((0.2, 0.4)))
    def another_rate_of_dropout(self, at, rate):
        at %= len(self.specs)
        if self.specs[at][0] == "dropout":
            self.net.layers[at].rate = rate
            self.specs[at] = ("dropout", rate)

    @rule(at=st.integers(0, 3), spec=st.sampled_from((("activation", "tanh"), ("dropout", 0.3), ("norm",))))
    def insert(self, at, spec):
        if len(self.specs) < 6:
            at %= len(self.specs) + 1
            self.net.layers.insert(at, made(spec, 0))
            self.specs.insert(at, spec)
            self.frozen = [f + (f >= at) for f in self.frozen]
            self.changed()

    @rule(at=st.integers(0, 3))
    def remove(self, at):
        at %= len(self.specs)
        if len(self.specs) > 1 and self.specs[at][0] != "dense" and self.learning(without=at):
            del self.net.layers[at]
            del self.specs[at]
            self.frozen = [f - (f > at) for f in self.frozen if f != at]
            self.changed()

    @rule(at=st.integers(0, 3))
    def freeze(self, at):
        at %= len(self.specs) + 1
        if at in self.frozen:
            self.net.layers[at].trainable = True
            self.frozen.remove(at)
        elif self.learning(without=at):
            self.net.layers[at].trainable = False
            self.frozen = sorted([*self.frozen, at])

    @rule(rule=rules)
    def another_optimizer(self, rule):
        self.rule = rule
        self.optimizer, self.optimizer_state = self.made_optimizer(), None

    @rule(lr=st.sampled_from((0.02, 0.2)))
    def another_learning_rate(self, lr):
        self.rule = {**self.rule, "lr": lr}
        self.optimizer.lr = lr

    @rule(loss=st.sampled_from(("cross_entropy", "mse", "huber")))
    def another_loss(self, loss):
        self.loss = loss

    @rule(delta=st.sampled_from((0.5, 2.0)))
    def another_delta(self, delta):
        self.delta = self.huber.parameter = delta

    @rule(seed=st.integers(0, 99))
    def other_weights(self, seed):
        rng = np.random.default_rng(seed)
        self.weights = [rng.standard_normal(w.shape).astype(np.float32) / 2 for w in self.weights]
        self.net.load_state_dict(dict(zip((name for name, _ in self.net.named_parameters()), self.weights)))

    @rule()
    def save_and_load(self):
        mine = self.optimizer_state is not None  # it has stepped this model, in fit or in steps of one's own
        with tempfile.TemporaryDirectory() as folder:
            self.net.save(f"{folder}/net.clnn", optimizer=self.optimizer if mine else None)
            self.net = clnn.load(f"{folder}/net.clnn")
        if mine:
            self.optimizer = self.net.optimizer
        else:
            self.optimizer, self.optimizer_state = self.made_optimizer(), None

    @rule()
    def copied(self):
        self.net, self.optimizer = copy.deepcopy((self.net, self.optimizer))


@pytest.mark.filterwarnings("ignore::clnn.RecordingWarning")  # a model that changes at every call is not recorded
def test_a_model_and_its_eager_twin(device):
    with clnn.use(device):
        run_state_machine_as_test(
            Machine,
            settings=settings(
                max_examples=max(1, STEPS // PER_RUN), stateful_step_count=PER_RUN, deadline=None,
                suppress_health_check=list(HealthCheck), print_blob=True, database=None,
                phases=(Phase.generate, Phase.shrink),
                derandomize="CLNN_MACHINE_STEPS" not in os.environ,  # the same calls in every run; others where a number is given
            ),
        )  # fmt: skip


def test_a_copy_of_an_optimizer_that_has_no_parameters_yet(device):
    """As a fresh one: its state is that of no parameters, and fits all."""
    optimizer = copy.deepcopy(clnn.Adam(0.01))
    other = clnn.Adam(0.01)
    other.load_state_dict(clnn.Adam(0.01).state_dict())
    nets = [clnn.Sequential([clnn.Dense(3)], input_shape=FEATURES, seed=0) for _ in range(3)]
    for net, one in zip(nets, (optimizer, other, clnn.Adam(0.01))):
        net.fit(X[:32], VALUES[:32, :3], loss="mse", optimizer=one, epochs=2, progress=False, seed=0)
    assert np.array_equal(nets[0].predict(X), nets[2].predict(X)) and np.array_equal(
        nets[1].predict(X), nets[2].predict(X)
    )
