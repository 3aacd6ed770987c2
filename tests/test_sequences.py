"""Forward, backward, zero_grad and step in any order, within recorded steps and between them, against NumPy in float64."""

import contextlib
import warnings

import numpy as np
import pytest
from helpers import parameter

import clnn

SHAPES = {"a": (3, 4), "b": (3, 4), "s": (4, 2)}
LOSSES = {
    0: ("a", "s"),
    1: ("b", "s"),
}  # loss i = mean of c * (x p) s, p = a or b: each gradient depends on other weights
RULES = {
    "sgd": lambda **o: clnn.SGD(0.05, **o),
    "sgd decay": lambda **o: clnn.SGD(0.05, weight_decay=0.3, **o),
    "momentum": lambda **o: clnn.SGD(0.05, momentum=0.9, **o),
    "nesterov": lambda **o: clnn.SGD(0.05, momentum=0.9, nesterov=True, **o),
    "adam": lambda **o: clnn.Adam(0.02, **o),
    "schedule": lambda **o: clnn.SGD(lambda t: 0.1 / (1 + t), momentum=0.5, **o),
}
WAYS = {
    "eager": lambda function: function,
    "recorded": clnn.step,
    "never recorded": clnn.step(record=False),
}


class Reference:
    """The weights, gradients and optimizers in float64."""

    def __init__(self, weights, groups, optimizers):
        self.w = {name: w.astype(np.float64) for name, w in weights.items()}
        self.g = {}  # by name; a parameter without a gradient is not in it
        self.groups, self.o = groups, optimizers
        self.t = [0] * len(groups)
        self.state = [{name: np.zeros((2, *SHAPES[name])) for name in group} for group in groups]

    def backward(self, i, x, c):
        p, s = LOSSES[i]
        x, c = x.astype(np.float64), c.astype(np.float64) / (len(x) * SHAPES["s"][1])
        own = {p: x.T @ (c @ self.w[s].T), s: (x @ self.w[p]).T @ c}
        for name, g in own.items():
            self.g[name] = self.g.get(name, 0) + g

    def value(self, i, x, c):
        p, s = LOSSES[i]
        return np.mean(c.astype(np.float64) * (x.astype(np.float64) @ self.w[p] @ self.w[s]))

    def zero(self, names):
        for name in names:
            self.g.pop(name, None)

    def step(self, k):
        o = self.o[k]
        lr = o.lr(self.t[k]) if callable(o.lr) else o.lr
        self.t[k] += 1
        for name in self.groups[k]:
            g, s, w = (
                self.g.pop(name, np.zeros(SHAPES[name])) + o.weight_decay * self.w[name],
                self.state[k][name],
                self.w[name],
            )
            if isinstance(o, clnn.Adam):
                s[0] = o.beta1 * s[0] + (1 - o.beta1) * g
                s[1] = o.beta2 * s[1] + (1 - o.beta2) * g**2
                m, v = s[0] / (1 - o.beta1 ** self.t[k]), s[1] / (1 - o.beta2 ** self.t[k])
                w -= lr * m / (np.sqrt(v) + o.epsilon)
            else:
                s[0] = o.momentum * s[0] + g
                w -= lr * (g + o.momentum * s[0] if o.nesterov else s[0])


class World:
    """The same on the device: the parameters, the optimizers, and what a program does with them."""

    def __init__(self, rng, groups, rules, **options):
        weights = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in SHAPES.items()}
        self.p = {name: parameter(w) for name, w in weights.items()}
        self.groups, self.o = groups, [RULES[rule](**options) for rule in rules]
        self.reference = Reference(weights, groups, [RULES[rule]() for rule in rules])
        self.rng = rng

    def loss(self, i, x, c):
        p, s = (self.p[name] for name in LOSSES[i])
        return (c * ((x @ p) @ s)).mean()

    def run(self, program, x, c):
        """The program on the device; what comes back is what it looked at."""
        seen = []
        for what, which in program:
            if what == "backward":
                self.loss(which, x, c).backward()
            elif what == "value":
                with clnn.no_grad():
                    seen.append(self.loss(which, x, c))
            elif what == "gradient":
                seen.append(self.p[which].grad * 1.0)
            elif what == "zero all":
                for p in self.p.values():
                    p.zero_grad()
            elif what == "zero":
                self.o[which].zero_grad([self.p[name] for name in self.groups[which]])
            elif what == "step":
                self.o[which].step([self.p[name] for name in self.groups[which]])
        return seen

    def expect(self, program, x, c):
        """The same in NumPy, and what the program should have looked at."""
        r, seen = self.reference, []
        for what, which in program:
            if what == "backward":
                r.backward(which, x, c)
            elif what == "value":
                seen.append(r.value(which, x, c))
            elif what == "gradient":
                seen.append(r.g[which].copy())
            elif what == "zero all":
                r.zero(SHAPES)
            elif what == "zero":
                r.zero(self.groups[which])
            elif what == "step":
                r.step(which)
        return seen

    def batch(self):
        return self.rng.standard_normal((5, 3)).astype(np.float32), self.rng.standard_normal((5, 2)).astype(np.float32)

    def check(self, seen, expected, where):
        assert len(seen) == len(expected)
        for got, wanted in zip(seen, expected):
            assert np.allclose(got.numpy(), wanted, rtol=1e-3, atol=1e-4), where
        for name, w in self.reference.w.items():
            assert np.allclose(self.p[name].numpy(), w, rtol=1e-3, atol=2e-4), f"{name} {where}"


def drawn_program(rng, groups, length, has_gradient):
    """A random program that never steps without a gradient; `has_gradient`, the names that have one, moves along."""
    program = []
    while len(program) < length:
        what = rng.choice(["backward"] * 5 + ["step"] * 4 + ["zero", "zero", "zero all", "value", "gradient"])
        which = None
        if what in ("backward", "value"):
            which = int(rng.integers(2))
        elif what in ("step", "zero"):
            which = int(rng.integers(len(groups)))
        elif what == "gradient":
            which = str(rng.choice(sorted(SHAPES)))
        if (what == "step" and not has_gradient & set(groups[which])) or (
            what == "gradient" and which not in has_gradient
        ):
            continue
        program.append((what, which))
        if what == "backward":
            has_gradient |= set(LOSSES[which])
        elif what in ("step", "zero"):
            has_gradient -= set(groups[which])
        elif what == "zero all":
            has_gradient.clear()
    return program


GROUPS = [
    [["a", "b", "s"]],  # one optimizer for everything
    [["a", "s"], ["b"]],  # two, of which one has what both losses share
    [["a"], ["b", "s"]],
    [["a", "s"], ["b", "s"]],  # two optimizers for one parameter
    [["a"], ["b"], ["s"]],
]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("groups", GROUPS, ids=str)
def test_random_programs(device, rng, groups, way):
    """One program in each call of a step; between calls other programs, eager or recorded, on the same weights."""
    for round_ in range(4):
        rules = [str(rule) for rule in rng.choice(sorted(RULES), len(groups))]
        world = World(rng, groups, rules)
        has = set()
        inside = drawn_program(rng, groups, int(rng.integers(2, 8)), has)
        if not any(what == "backward" for what, _ in inside):
            inside = [("backward", 0), *inside]
        train = WAYS[way](lambda x, c, world=world, inside=inside: world.run(inside, x, c))
        other_groups = {name for group in groups for name in group}
        for call in range(8):
            x, c = world.batch()
            where = f"after call {call} of {inside} with {rules}, round {round_}"
            wanted = world.expect(inside, x, c)
            world.check(train(clnn.tensor(x), clnn.tensor(c)), wanted, where)
            has = set(world.reference.g)
            between = drawn_program(rng, groups, int(rng.integers(0, 3)), has) if call in (3, 5, 6) else []
            assert other_groups
            x, c = world.batch()
            wanted = world.expect(between, x, c)
            world.check(world.run(between, clnn.tensor(x), clnn.tensor(c)), wanted, f"{where}, then {between}")


PROGRAMS = {
    "step, then a gradient that is dropped": [("backward", 0), ("step", 0), ("backward", 1), ("zero", 0)],
    "dropped first": [("backward", 1), ("zero", 0), ("backward", 0), ("step", 0)],
    "zero_grad where torch has it": [("zero", 0), ("backward", 0), ("step", 0)],
    "two steps": [("backward", 0), ("step", 0), ("backward", 1), ("step", 0)],
    "three gradients, one step": [("backward", 0), ("backward", 1), ("backward", 0), ("step", 0)],
    "a gradient stays": [("backward", 0), ("step", 0), ("backward", 1)],
    "a value between": [("backward", 0), ("value", 0), ("step", 0), ("value", 0)],
    "a gradient is read": [("backward", 0), ("gradient", "a"), ("step", 0)],
    "gradient only": [("backward", 0)],
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("program", PROGRAMS)
def test_programs(device, rng, program, rule, way):
    world = World(rng, [["a", "b", "s"]], [rule])
    train = WAYS[way](lambda x, c: world.run(PROGRAMS[program], x, c))
    for call in range(7):
        x, c = world.batch()
        wanted = world.expect(PROGRAMS[program], x, c)
        world.check(train(clnn.tensor(x), clnn.tensor(c)), wanted, f"after call {call}")


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("rules", [("sgd", "sgd"), ("momentum", "momentum"), ("adam", "momentum")])
def test_adversaries(device, rng, rules, way):
    """A discriminator's step and a generator's, each of which drops what it left in the other's weights."""
    world = World(rng, [["a", "s"], ["b"]], rules)
    programs = [("zero", 0), ("backward", 0), ("step", 0)], [("zero", 1), ("backward", 1), ("step", 1), ("zero", 0)]
    steps = [WAYS[way](lambda x, c, program=program: world.run(program, x, c)) for program in programs]
    together = WAYS[way](lambda x, c: world.run(programs[0] + programs[1], x, c))
    for call in range(9):
        x, c = world.batch()
        for program, step in zip(programs, steps) if call % 3 else [(programs[0] + programs[1], together)]:
            wanted = world.expect(program, x, c)
            world.check(step(clnn.tensor(x), clnn.tensor(c)), wanted, f"after call {call}")


@pytest.mark.parametrize("momentum", [0.0, 0.5])
def test_a_gradient_that_is_dropped_after_the_step(device, momentum):
    """w = 2, lr 0.1: a step by the loss w, then the gradient of 5 w, which is dropped: 1.9, 1.8, ... without momentum."""
    p, o = parameter([2.0]), clnn.SGD(0.1, momentum=momentum)

    @clnn.step
    def train(x):
        (p * x).sum().backward()
        o.step([p])
        (p * x * 5.0).sum().backward()
        o.zero_grad()

    w, v = 2.0, 0.0
    for _ in range(6):
        train(np.ones(1, np.float32))
        v = momentum * v + 1
        w -= 0.1 * v
        assert float(p) == pytest.approx(w, rel=1e-6)


def test_two_steps_of_adam_in_one_count_twice(device):
    p, o = parameter([2.0]), clnn.Adam(0.1)

    @clnn.step
    def twice(x):
        for factor in (1.0, 5.0):
            (p * x * factor).sum().backward()
            o.step([p])

    w, m, v = 2.0, 0.0, 0.0
    for call in range(6):
        twice(np.ones(1, np.float32))
        for i, g in enumerate((1.0, 5.0)):
            t = 2 * call + i + 1
            m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
            w -= 0.1 * m / (1 - 0.9**t) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
        assert float(p) == pytest.approx(w, rel=1e-5) and o.steps == 2 * call + 2


def test_steps_that_do_something_else_each_time(device, rng):
    """Python decides anew in every call that is not replayed."""
    world = World(rng, [["a", "b", "s"]], ["momentum"])
    names = list(PROGRAMS)
    current = []
    train = clnn.step(lambda x, c: world.run(current[0], x, c), record=False)
    world.reference.g.clear()
    for _ in range(30):
        program = PROGRAMS[names[rng.integers(len(names))]]
        current[:] = [program]
        x, c = world.batch()
        wanted = world.expect(program, x, c)
        world.check(train(clnn.tensor(x), clnn.tensor(c)), wanted, f"after {program}")


@pytest.mark.parametrize("rule", ["sgd", "momentum", "adam"])
@pytest.mark.parametrize("after", ["backward", "step"])
def test_an_exception_in_the_middle(device, rng, rule, after):
    """Steps that were taken count, the gradients of the broken call are dropped, and the next call is right."""
    world = World(rng, [["a", "b", "s"]], [rule])
    program = [("backward", 0), ("step", 0), ("backward", 1), ("step", 0)]
    broken = program[: 1 if after == "backward" else 2]
    fail = [False]

    @clnn.step
    def train(x, c):
        if fail[0]:
            world.run(broken, x, c)
            raise RuntimeError("stop")
        return world.run(program, x, c)

    for call in range(9):
        x, c = world.batch()
        fail[0] = call in (1, 2)  # while nothing is replayed
        wanted = world.expect(broken if fail[0] else program, x, c)
        if fail[0]:
            with pytest.raises(RuntimeError, match="stop"):
                train(x, c)
            world.reference.g.clear()
            world.check([], [], f"after the broken call {call}")
        else:
            world.check(train(x, c), wanted, f"after call {call}")
    assert world.o[0].steps == world.reference.t[0]


def test_more_steps_in_a_call_than_the_table_has_left(device, rng, monkeypatch):
    monkeypatch.setattr("clnn.optim.rates.ROWS", 5)
    world = World(rng, [["a", "b", "s"]], ["adam"])
    program = [("backward", 0), ("step", 0)] * 3
    train = clnn.step(lambda x, c: world.run(program, x, c))
    for call in range(9):
        x, c = world.batch()
        wanted = world.expect(program, x, c)
        world.check(train(x, c), wanted, f"after call {call}")
    assert train.replays.launches()


def test_zero_grad_before_the_first_step(device):
    """It drops what the parameters have that are given, or says that it could not know them."""
    p = parameter([2.0])
    for drop in (lambda o: o.zero_grad([p]), lambda o: p.zero_grad()):
        o, before = clnn.SGD(0.1), float(p)
        (p * 7.0).sum().backward()
        drop(o)
        p.sum().backward()
        o.step([p])
        assert float(p) == pytest.approx(before - 0.1)
    p, o = parameter([2.0]), clnn.SGD(0.1)
    (p * 7.0).sum().backward()
    o.zero_grad()
    p.sum().backward()
    with pytest.raises(clnn.ClnnError, match=r"zero_grad\(net.parameters\(\)\)"):
        o.step([p])
    o.zero_grad([p])
    p.sum().backward()
    o.zero_grad([p])  # in front of everything, as in PyTorch
    p.sum().backward()
    o.step([p])
    layer = clnn.Dense(2)
    layer(np.ones((1, 3), np.float32)).sum().backward()
    layer.zero_grad()
    assert all(q.grad is None for q in layer.parameters())


def test_zero_grad_first_is_harmless(device):
    """Where there is nothing to drop, in the first call and later."""
    p, o = parameter([2.0]), clnn.SGD(0.1)

    @clnn.step
    def train(x):
        o.zero_grad()
        (p * x).sum().backward()
        o.step([p])

    for i in range(6):
        train(np.ones(1, np.float32))
        assert float(p) == pytest.approx(2.0 - 0.1 * (i + 1))


def test_a_gradient_that_nothing_reaches_is_zero_whatever_lay_there(device):
    p, q, o = parameter([2.0]), parameter([3.0]), clnn.SGD(0.1)
    (p + q * np.nan).sum().backward()
    with contextlib.suppress(clnn.ClnnError):
        q.zero_grad(), p.zero_grad()
    p.sum().backward()
    o.step([p, q])
    assert float(p) == pytest.approx(1.9) and float(q) == 3.0


# -- fit, which spends gradients as they come --------------------------------------------------------------------------
class Odd(clnn.Layer):
    """A layer that reads its weights in some way of its own."""

    def __init__(self, way):
        self.way = way

    def build(self, shape):
        self.p, self.q = self.parameter((shape[-1], 4)), self.parameter((4, 4))
        self.r = self.parameter((4,), init="ones")

    def forward(self, x):
        p, q, r = self.p, self.q, self.r
        if self.way == "a product of weights":
            return (x @ (p @ q)) * r
        if self.way == "weights times weights":
            return x @ (p * (p @ q)) * r
        if self.way == "in front":
            return r * clnn.tanh(x @ p @ q)
        if self.way == "detached":
            return ((clnn.tanh(x @ p) @ q.detach()) @ q) * r
        if self.way == "off the tape":
            with clnn.no_grad():
                same = q.reshape(16).reshape(4, 4)
            return ((clnn.tanh(x @ p) @ same) @ q) * r
        if self.way == "reshaped":
            return clnn.tanh(x @ p.reshape(4, -1).reshape(p.shape)) @ q.T * r
        if self.way == "twice":
            return clnn.tanh(clnn.tanh(x @ p) @ q) @ q * r
        if self.way == "sliced":
            return clnn.tanh(x @ p) @ q[:2].T @ q[2:] * r
        if self.way == "divided":
            return (r / (1.0 + clnn.exp(x @ p @ q))) ** 2
        if self.way == "joined":
            return x @ clnn.concatenate([p[:, :2], p[:, 2:] * r[:2]], axis=1) @ q
        raise AssertionError(self.way)


ODD = [
    "a product of weights", "weights times weights", "in front", "detached", "off the tape", "reshaped", "twice", "sliced",
    "divided", "joined",
]  # fmt: skip


@pytest.mark.parametrize("way", ODD)
@pytest.mark.parametrize("rule", ["sgd", "sgd decay", "momentum"])
@pytest.mark.parametrize("record", [True, False])
def test_fit_takes_the_gradient_at_the_weights_before_the_step(device, rng, way, rule, record):
    """As forward, backward and step do one after the other, with gradients of their own."""
    x = rng.standard_normal((24, 3)).astype(np.float32)
    y = rng.standard_normal((24, 4)).astype(np.float32)
    with clnn.use(device):
        fitted, twin = (clnn.Sequential([Odd(way)], input_shape=3, seed=5) for _ in range(2))
    fitted.fit(x, y, loss="mse", optimizer=RULES[rule](), epochs=6, batch_size=8, seed=1, record=record, progress=False)
    optimizer = RULES[rule]()
    for epoch in range(6):
        order = np.random.default_rng((1, epoch)).permutation(24)
        for start in range(0, 24, 8):
            rows = order[start : start + 8]
            clnn.losses.mse(twin(x[rows]), y[rows]).backward()
            optimizer.step(twin.parameters())
    for p, q in zip(fitted.parameters(), twin.parameters()):
        assert np.allclose(p.numpy(), q.numpy(), atol=1e-5), p.name


@pytest.mark.parametrize("rule", ["sgd", "momentum", "adam"])
def test_gradients_from_elsewhere_have_no_part_in_fit(device, rng, rule):
    """Neither those from before it, nor those that a callback leaves, nor forward passes that nobody differentiates."""
    x, y = rng.standard_normal((20, 3)).astype(np.float32), rng.standard_normal((20, 2)).astype(np.float32)

    class Meddles(clnn.callbacks.Callback):
        def on_epoch_end(self, model, epoch, logs):
            (model(x) * 1e3).sum().backward()
            model(x)

    found = []
    for callbacks in ([], [Meddles()]):
        with clnn.use(device):
            net = clnn.Sequential([clnn.Dense(4, "tanh"), clnn.Dense(2)], input_shape=3, seed=2)
        if callbacks:
            (net(x) * 1e3).sum().backward()
        net.fit(
            x, y, loss="mse", optimizer=RULES[rule](), epochs=6, batch_size=8, seed=1, callbacks=callbacks, progress=False
        )  # fmt: skip
        found.append(net.predict(x))
    assert np.array_equal(*found)


def test_steps_that_broke_off_in_a_replay_do_not_count(device, rng, monkeypatch):
    """However many were to be done at once: what counts is what the device did."""
    x, y = rng.standard_normal((64, 3)).astype(np.float32), rng.standard_normal((64, 2)).astype(np.float32)
    for late in (False, True):
        with clnn.use(device):
            net = clnn.Sequential([clnn.Dense(4, "tanh"), clnn.Dense(2)], input_shape=3, seed=2)
        optimizer, taken = clnn.Adam(0.01), []
        replay = clnn.runtime.recording.Recording.replay

        def stopped(self, times=1, replay=replay, taken=taken, late=late):
            if len(taken) == 5:
                if late:
                    replay(self, times)
                    taken.append(times)
                raise KeyboardInterrupt
            replay(self, times)
            taken.append(times)

        monkeypatch.setattr(clnn.runtime.recording.Recording, "replay", stopped)
        with pytest.raises(KeyboardInterrupt):
            net.fit(x, y, loss="mse", optimizer=optimizer, epochs=9, batch_size=8, progress=False)
        monkeypatch.undo()
        assert optimizer.steps == 3 + sum(taken)
        net.fit(x, y, loss="mse", optimizer=optimizer, epochs=1, batch_size=8, progress=False)
        assert optimizer.steps == 3 + sum(taken) + 8


class Regularised(clnn.Layer):
    """A forward pass that takes the gradient of a penalty on its own outputs back, before the loss is known."""

    def build(self, shape):
        self.w = self.parameter((shape[-1], 2))

    def forward(self, x):
        y = x @ self.w
        if y.requires_grad:
            (y * y).mean().backward()
        return x @ self.w


@pytest.mark.parametrize("rule", RULES)
def test_a_backward_pass_within_fits_forward_pass(device, rng, rule):
    """Its gradient is that of this mini-batch, not of the one before, and the loss's is added."""
    x, y = rng.standard_normal((24, 3)).astype(np.float32), rng.standard_normal((24, 2)).astype(np.float32)
    with clnn.use(device):
        fitted, twin = (clnn.Sequential([Regularised()], input_shape=3, seed=5) for _ in range(2))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", clnn.RecordingWarning)  # velocities make way for gradients: eager, and right
        fitted.fit(x, y, loss="mse", optimizer=RULES[rule](), epochs=4, batch_size=8, seed=1, progress=False)
    optimizer = RULES[rule]()
    for epoch in range(4):
        order = np.random.default_rng((1, epoch)).permutation(24)
        for start in range(0, 24, 8):
            rows = order[start : start + 8]
            clnn.losses.mse(twin(x[rows]), y[rows]).backward()
            optimizer.step(twin.parameters())
    assert np.allclose(fitted.predict(x), twin.predict(x), atol=1e-5)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("rule", ["sgd", "momentum", "adam"])
def test_gradients_that_are_changed_between_backward_and_step(device, rng, rule, way):
    x, found = rng.standard_normal((5, 3)).astype(np.float32), []
    for changed in (True, False):
        w, optimizer = parameter(np.ones((3, 2), np.float32)), RULES[rule]()

        def train(x, w=w, optimizer=optimizer, changed=changed):
            loss = ((x @ w) ** 2).mean()
            (loss * (1.0 if changed else 0.75)).backward()
            if changed:
                w.grad = w.grad * 0.5
                w.grad += 0.0
                loss = ((x @ w) ** 2).mean() * 0.25  # and what comes after it is added
                loss.backward()
            optimizer.step([w])
            w.grad = None

        run = WAYS[way](train)
        for _ in range(7):
            run(x if way != "eager" else clnn.tensor(x))
        found.append(w.numpy())
    np.testing.assert_allclose(*found, rtol=1e-4, atol=1e-5)  # weights come near 0


def test_a_gradient_from_the_host(device):
    w, optimizer = parameter(np.ones((3, 2), np.float32)), clnn.SGD(0.1)
    w.grad = np.full((3, 2), 2.0)
    optimizer.step([w])
    np.testing.assert_allclose(w.numpy(), 0.8, rtol=1e-6)
    with pytest.raises(clnn.ShapeError, match="has that shape too"):
        w.grad = np.ones(3)


def chain(kind, rng):
    """A loss that reads a parameter for the gradient of another, and the two parameters."""
    x = clnn.tensor(rng.standard_normal((4, 3)).astype(np.float32))
    first, second = clnn.Dense(3), {"dense": clnn.Dense(2), "norm": clnn.LayerNorm()}.get(kind, clnn.Dense(3))
    y = first(x)
    if kind == "product":
        second.w = parameter(np.ones(3, np.float32))
        return (y * second.w).sum(), second.w
    if kind == "matmul":
        second.w = parameter(np.ones((3, 2), np.float32))
        return (y @ second.w).sum(), second.w
    if kind.startswith("view"):  # reshaped, detached, and both
        second.w = w = parameter(np.ones((1, 3), np.float32))
        views = {"view": w.reshape(3), "view twice": w.reshape(3, 1)[:, None].reshape(3)}
        return (y * views.get(kind, w.detach().reshape(-1))).sum(), w
    if kind == "square":
        second.w = parameter(np.ones(3, np.float32))
        return (second.w**2).sum(), second.w
    loss = second(y).sum()
    return loss, second.gamma if kind == "norm" else second.w


@pytest.mark.parametrize("kind", ["dense", "norm", "product", "matmul", "square", "view", "view detached"])
def test_weights_that_change_before_their_gradient_is_taken(device, rng, kind):
    """The gradient would be that of no weights at all."""
    loss, w = chain(kind, rng)
    w.grad = np.ones(w.shape)
    clnn.SGD(0.1).step([w])
    with pytest.raises(clnn.ClnnError, match=r"has changed since the forward pass.*run the forward pass again"):
        loss.backward()


@pytest.mark.parametrize("way", ["recorded", "never recorded", "loaded"])
def test_weights_that_a_step_or_a_file_changes_before_their_gradient_is_taken(device, rng, way):
    net, optimizer = clnn.Sequential([clnn.Dense(3, "tanh"), clnn.Dense(2)], input_shape=3, seed=1), clnn.SGD(0.1)
    x = rng.standard_normal((4, 3)).astype(np.float32)

    @clnn.step(record=way == "recorded")
    def train(x):
        (net(x) ** 2).mean().backward()
        optimizer.step(net.parameters())

    change = (lambda: net.load_state_dict(net.state_dict())) if way == "loaded" else lambda: train(x)
    for _ in range(5):
        change()
    loss = (net(x) ** 2).mean()
    change()
    with pytest.raises(clnn.ClnnError, match="has changed since the forward pass"):
        loss.backward()
    net.zero_grad()
    (net(x) ** 2).mean().backward()


def test_weights_whose_values_no_gradient_needs_may_change(device, rng):
    """Biases, and what the data alone is multiplied by."""
    x, c = clnn.tensor(rng.standard_normal((4, 3)).astype(np.float32)), clnn.tensor(np.ones((4, 2), np.float32))
    w, b, optimizer = parameter(np.ones((3, 2), np.float32)), parameter(np.zeros(2, np.float32)), clnn.SGD(0.1)
    first, second = (((x @ w + b) * c).sum() for _ in range(2))
    first.backward()
    expected = w.grad.numpy()
    optimizer.step([w, b])
    second.backward()
    np.testing.assert_array_equal(w.grad.numpy(), expected)
