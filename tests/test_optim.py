"""Optimizers against NumPy in float64, eager and recorded, and where gradients and states lie."""

import copy

import numpy as np
import pytest
from helpers import assert_close, eps, normal, parameter

import clnn
from clnn.optim import OPTIMIZERS, find_optimizer
from clnn.step import Step
from clnn.tensor import linear_layer
from clnn.tools.verify.references import Optimization

STEPS = 6
RULES = {  # name: a way to make the optimizer
    "sgd": lambda **o: clnn.SGD(0.1, **o),
    "sgd l2": lambda **o: clnn.SGD(0.1, weight_decay=0.3, **o),
    "sgd decoupled": lambda **o: clnn.SGD(0.1, weight_decay=0.3, decoupled=True, **o),
    "sgd l1": lambda **o: clnn.SGD(0.1, l1=0.2, **o),
    "momentum": lambda **o: clnn.SGD(0.1, momentum=0.9, **o),
    "momentum l2 l1": lambda **o: clnn.SGD(0.1, momentum=0.9, weight_decay=0.3, l1=0.2, **o),
    "momentum decoupled": lambda **o: clnn.SGD(0.1, momentum=0.9, weight_decay=0.3, decoupled=True, **o),
    "nesterov": lambda **o: clnn.SGD(0.1, momentum=0.9, nesterov=True, **o),
    "nesterov l2": lambda **o: clnn.SGD(0.1, momentum=0.9, nesterov=True, weight_decay=0.3, **o),
    "schedule": lambda **o: clnn.SGD(lambda t: 0.1 / (1 + t), momentum=0.5, **o),
    "schedule without momentum": lambda **o: clnn.SGD(lambda t: 0.1 / (1 + t), weight_decay=0.3, **o),
    "adam": lambda **o: clnn.Adam(0.01, **o),
    "adam l2 l1": lambda **o: clnn.Adam(0.01, weight_decay=0.3, l1=0.2, beta1=0.8, beta2=0.9, epsilon=1e-3, **o),
    "adam schedule": lambda **o: clnn.Adam(lambda t: 0.01 * (t % 3), **o),
    "adamw": lambda **o: clnn.AdamW(0.01, weight_decay=0.3, **o),
    "amsgrad": lambda **o: clnn.AMSGrad(0.01, beta2=0.5, **o),
    "amsgrad l2": lambda **o: clnn.AMSGrad(0.01, weight_decay=0.3, **o),
    "nadam": lambda **o: clnn.Nadam(0.01, **o),
    "nadam l2": lambda **o: clnn.Nadam(0.01, momentum_decay=0.3, weight_decay=0.3, **o),
    "lamb": lambda **o: clnn.LAMB(0.01, weight_decay=0.3, **o),
    "lamb l1": lambda **o: clnn.LAMB(0.01, weight_decay=0.0, l1=0.2, **o),
    "rmsprop": lambda **o: clnn.RMSprop(0.01, **o),
    "rmsprop momentum l2": lambda **o: clnn.RMSprop(0.01, momentum=0.9, weight_decay=0.3, **o),
    "rmsprop centered": lambda **o: clnn.RMSprop(0.01, centered=True, l1=0.2, **o),
    "rmsprop centered momentum": lambda **o: clnn.RMSprop(0.01, 0.9, centered=True, momentum=0.5, **o),
    "adagrad": lambda **o: clnn.Adagrad(0.1, **o),
    "adagrad l2": lambda **o: clnn.Adagrad(0.1, lr_decay=0.2, weight_decay=0.3, **o),
    "adadelta": lambda **o: clnn.Adadelta(**o),
    "adadelta l2 l1": lambda **o: clnn.Adadelta(0.5, rho=0.95, weight_decay=0.3, l1=0.2, **o),
    # these betas are exact, so that the sign of what should be 0 is no accident of rounding
    "lion": lambda **o: clnn.Lion(0.01, beta1=0.75, beta2=0.5, **o),
    "lion decay": lambda **o: clnn.Lion(0.01, beta1=0.75, beta2=0.5, weight_decay=0.3, **o),
    "clip norm": lambda **o: clnn.SGD(0.1, clip_norm=20.0, **o),
    "clip norm momentum": lambda **o: clnn.SGD(0.1, momentum=0.9, weight_decay=0.3, clip_norm=20.0, **o),
    "clip value": lambda **o: clnn.SGD(0.1, clip_value=5.0, **o),
    "clip both": lambda **o: clnn.Adam(0.01, clip_value=20.0, clip_norm=30.0, weight_decay=0.3, **o),
    "clip lamb": lambda **o: clnn.LAMB(0.01, clip_value=20.0, clip_norm=30.0, **o),
    "ema": lambda **o: clnn.SGD(0.1, ema=0.75, **o),
    "ema momentum": lambda **o: clnn.SGD(0.1, momentum=0.9, ema=0.75, **o),
    "ema adamw": lambda **o: clnn.AdamW(0.01, ema=0.75, **o),
    "ema lamb": lambda **o: clnn.LAMB(0.01, ema=0.75, clip_norm=30.0, **o),
}


class Net(clnn.Layer):
    """x w + b, from given values."""

    def __init__(self, w, b, dtype=np.float32):
        self.w, self.b = parameter(w, dtype), parameter(b, dtype)
        self.dtype, self.built = np.dtype(dtype), True

    def forward(self, x):
        return linear_layer(x, self.w, self.b, "linear")


class Task:
    """A net whose gradients are known exactly: x and c are small whole numbers, dw = x^T c and db the sum of c."""

    def __init__(self, rng, optimizer, dtype=np.float32, shape=(5, 4)):
        self.rng, self.shape, self.dtype = rng, shape, dtype
        w, b = normal(rng, shape, dtype), normal(rng, shape[1], dtype)
        self.net, self.optimizer = Net(w, b, dtype), optimizer
        self.expected = {"w": (w, True), "b": (b, False)}
        self.reference = Optimization(optimizer)

    def draw(self):
        x, c = self.rng.integers(-3, 4, (7, self.shape[0])), self.rng.integers(-3, 4, (7, self.shape[1]))
        return x.astype(self.dtype), c.astype(self.dtype)

    def train(self, x, c):
        (self.net(x) * c).sum().backward()
        self.optimizer.step(self.net.parameters())

    def run(self, train, steps=STEPS):
        for _ in range(steps):
            x, c = self.draw()
            train(clnn.tensor(x, self.dtype), clnn.tensor(c, self.dtype))
            self.reference.step(self.expected, {"w": x.T @ c, "b": c.sum(axis=0)})
        self.check()

    def check(self):
        for name, (w, _) in self.expected.items():
            # a few roundings a step, of numbers as large as weights and what was added to them
            largest = max(1, np.abs(w).max(), np.abs(self.reference.state[name][0]).max())
            bound = 16 * max(STEPS, self.reference.t) * eps(self.dtype) * largest
            assert_close(getattr(self.net, name).numpy(), w, bound, f"{name} after {self.reference.t} steps")
            if self.optimizer.ema is not None:
                with self.optimizer.averaged():
                    average = getattr(self.net, name).numpy()
                assert_close(average, self.reference.average[name], bound, f"average of {name}")


def descending(task, record=True):
    """What fit does with a task: backward and step in one, so that gradients are spent as they come; recorded."""
    task.optimizer.attach(task.net.parameters())

    def train(x, c):
        for p in task.net.parameters():
            p.spent()
        task.optimizer.descend((task.net(x) * c).sum().node)

    return Step(train, record, [task.optimizer])


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("way", ["eager", "recorded", "descending", "descending, gradients kept"])
def test_rules(rng, device, rule, way):
    """Some steps of each rule. Recorded: eager, recorded twice, then replayed. Descending: gradients spent where possible."""
    task = Task(rng, RULES[rule](keep_gradients="kept" in way))
    task.run({"eager": lambda t: t.train, "recorded": lambda t: clnn.step(t.train)}.get(way, descending)(task))


@pytest.mark.slow
@pytest.mark.parametrize(
    "rule",
    [
        "sgd l2", "momentum l2 l1", "momentum decoupled", "nesterov l2", "adam l2 l1", "adamw", "amsgrad", "nadam l2", "lamb",
        "rmsprop momentum l2", "rmsprop centered momentum", "adagrad l2", "adadelta l2 l1", "lion decay", "clip both",
        "ema lamb",
    ],
)  # fmt: skip
def test_many_steps_in_float64(rng, device, rule):
    """Where roundings hide nothing."""
    if not device.has_fp64:
        pytest.skip("no float64")
    task = Task(rng, RULES[rule](), np.float64)
    task.run(clnn.step(task.train), 24)


@pytest.mark.parametrize("rule", RULES)
def test_eager_and_recorded_steps_give_the_same_bits(rng, device, rule):
    """Also for parameters that several threads or groups share."""
    seed, found = rng.integers(1 << 32), []
    for recorded in (False, True):
        task = Task(np.random.default_rng(seed), RULES[rule](), shape=(300, 129))
        train = clnn.step(task.train) if recorded else task.train
        for _ in range(5):
            train(*task.draw())
        found.append([p.numpy() for p in task.net.parameters()])
    for eager, replayed in zip(*found):
        assert np.isfinite(eager).all() and np.array_equal(eager, replayed)


SEVERAL = ["sgd l1", "momentum l2 l1", "amsgrad", "adamw", "lion decay", "lamb", "clip norm", "clip lamb", "ema adamw"]


@pytest.mark.parametrize("rule", SEVERAL)
@pytest.mark.parametrize("grid", ["its own", "a GPU's"])
def test_parameters_of_several_groups(rng, device, rule, grid, monkeypatch):
    """Where a thread passes over a stretch alone, and where the work-items of a group share it."""
    if grid == "a GPU's":
        wide = lambda device, dtype, sums=False: clnn.optim.limits.Grid(4, 8 if sums else 1, device.group_width)  # noqa: E731
        monkeypatch.setattr("clnn.optim.limits.Grid.over", staticmethod(wide))
    task = Task(rng, RULES[rule](), shape=(300, 129))
    task.run(clnn.step(task.train), 5)


@pytest.mark.parametrize("rule", ["sgd l2", "momentum l2 l1", "nesterov", "adamw"])
def test_eager_and_recorded_steps_in_turn(rng, device, rule):
    """Velocities move to where each kind of step wants them, and no step is lost."""
    task = Task(rng, RULES[rule]())
    ways = descending(task), task.train, clnn.step(task.train)
    for way, steps in ((0, 4), (1, 2), (0, 3), (2, 4), (0, 2), (2, 2), (1, 1), (0, 2), (1, 1), (2, 2)):
        task.run(ways[way], steps)


def test_biases_do_not_decay(rng, device):
    for optimizer in (clnn.SGD(0.1, weight_decay=0.5, l1=0.1), clnn.AdamW(0.1, weight_decay=0.5)):
        net = Net(np.ones((3, 2)), np.ones(2))
        (net(np.zeros((1, 3), np.float32)) * 0.0).sum().backward()
        optimizer.step(net.parameters())
        assert_close(net.b.numpy(), np.ones(2), 0)
        assert (net.w.numpy() < 1).all()


@pytest.mark.parametrize("rule", ["sgd l2", "momentum l2 l1", "adamw", "lamb", "lamb l1", "lion decay"])
def test_what_decays_may_change(rng, device, rule):
    """Weights, biases, both or neither, where one launch updates the same stretch: as in a fresh copy."""
    task = Task(rng, RULES[rule]())
    for which in ("w", "wb", "", "b", "wb", "w"):
        task.net.w.decays, task.net.b.decays = "w" in which, "b" in which
        twin = copy.copy(task)
        twin.net, twin.optimizer = copy.deepcopy((task.net, task.optimizer))
        for _ in range(3):
            x, c = map(clnn.tensor, task.draw())
            task.train(x, c), twin.train(x, c)
        for p, q in zip(task.net.parameters(), twin.net.parameters()):
            np.testing.assert_array_equal(p.numpy(), q.numpy(), which)


def test_first_step_of_adam_is_as_long_as_lr(device):
    """The bias correction: without it the first step would be 3 lr / 10 ..."""
    net = Net(np.zeros((3, 2)), np.zeros(2))
    net(np.full((1, 3), 7.0, np.float32)).sum().backward()
    clnn.Adam(0.25).step(net.parameters())
    assert_close(net.w.numpy(), np.full((3, 2), -0.25), 16 * eps(np.float32))


@pytest.mark.parametrize("rule", ["sgd", "sgd l2", "momentum", "adam"])
@pytest.mark.parametrize("recorded", [False, True])
def test_changing_the_rate(rng, device, rule, recorded):
    """A new `lr` holds from the next step on and makes no new recording."""
    task = Task(rng, RULES[rule]())
    train = clnn.step(task.train) if recorded else task.train
    task.run(train, 4)
    task.optimizer.lr = 0.02
    task.run(train, 2)
    task.optimizer.lr = lambda t: 0.001 * t
    task.run(train, 3)
    if recorded:
        assert len(train.replays.launches()) == 1


def test_more_steps_than_the_table_of_rates_has_rows(rng, device, monkeypatch):
    monkeypatch.setattr("clnn.optim.rates.ROWS", 4)
    task = Task(rng, clnn.Adam(lambda t: 0.01 / (1 + t)))
    task.run(clnn.step(task.train), 11)


def test_changing_a_hyper_parameter(rng, device):
    """Momentum and decay are frozen in recordings, so changing them makes a new one."""
    task = Task(rng, clnn.SGD(0.1, momentum=0.9))
    train = clnn.step(task.train)
    task.run(train, 4)
    task.optimizer.momentum = 0.5
    task.run(train, 4)
    task.optimizer.weight_decay = 0.3
    task.run(train, 4)


@pytest.mark.parametrize("rule", ["sgd", "momentum", "adam"])
@pytest.mark.parametrize("recorded", [False, True])
def test_frozen_parameters(rng, device, rule, recorded):
    task = Task(rng, RULES[rule]())
    train = clnn.step(task.train) if recorded else task.train
    task.run(train, 4)
    task.net.w.trainable = False
    clnn.runtime.watching.watch.structure_changed()
    kept, w = task.net.w.numpy(), task.expected.pop("w")
    task.run(train, 4)
    np.testing.assert_array_equal(task.net.w.numpy(), kept)
    task.net.w.trainable = True
    clnn.runtime.watching.watch.structure_changed()
    task.expected["w"] = w
    if rule == "sgd":  # with a state, what a frozen parameter's is when it thaws is nobody's promise
        task.run(train, 2)


def test_a_factor_of_the_rate(rng, device):
    for rule in ("sgd", "adamw", "nadam", "lamb", "lion decay"):
        task = Task(rng, RULES[rule]())
        task.net.w.rate_factor = 0.5
        slow, fast = Optimization(RULES[rule]()), Optimization(RULES[rule]())
        slow.o.lr *= 0.5
        for _ in range(4):
            x, c = task.draw()
            task.train(clnn.tensor(x), clnn.tensor(c))
            slow.step({"w": task.expected["w"]}, {"w": x.T @ c})
            fast.step({"b": task.expected["b"]}, {"b": c.sum(axis=0)})
        for name, (w, _) in task.expected.items():
            assert_close(getattr(task.net, name).numpy(), w, 64 * eps(np.float32) * 10, name)


@pytest.mark.parametrize("rule", ["sgd", "momentum", "adamw", "lamb", "ema momentum"])
@pytest.mark.parametrize("stores", [1, 2])
@pytest.mark.parametrize("recorded", [False, True])
def test_two_models_under_one_optimizer(rng, device, rule, stores, recorded):
    """In one store, or each in its own because they were trained apart before."""
    optimizer = RULES[rule]()
    tasks = [Task(rng, optimizer), Task(rng, optimizer, shape=(6, 3))]
    if stores == 2:
        for task in tasks:
            clnn.parameters.consolidate(task.net.parameters())

    def train(x0, c0, x1, c1):
        ((tasks[0].net(x0) * c0).sum() + (tasks[1].net(x1) * c1).sum()).backward()
        optimizer.step(tasks[0].net.parameters() + tasks[1].net.parameters())

    step = clnn.step(train) if recorded else train
    for _ in range(5):
        drawn = [task.draw() for task in tasks]
        step(*[clnn.tensor(a) for pair in drawn for a in pair])
        for task, (x, c) in zip(tasks, drawn):
            task.reference.step(task.expected, {"w": x.T @ c, "b": c.sum(axis=0)})
    for task in tasks:
        assert task.net.w.store is task.net.b.store
        task.check()
    assert (tasks[0].net.w.store is tasks[1].net.w.store) is (stores == 1)


@pytest.mark.parametrize(
    "rule", ["sgd", "momentum", "adam", "adam schedule", "amsgrad", "nadam", "adagrad l2", "lion", "lamb", "ema adamw"]
)
@pytest.mark.parametrize("recorded", [False, True])
def test_state_goes_on(rng, device, rule, recorded):
    """Three steps, the state into a new optimizer, three more: as if it had been one."""
    task = Task(rng, RULES[rule]())
    task.run(clnn.step(task.train) if recorded else task.train, 4)
    state = task.optimizer.state_dict()
    task.run(clnn.step(task.train) if recorded else task.train, 1)  # what comes after the state is not in it
    for name in ("w", "b"):
        value = task.expected[name][0]
        device.upload(value.astype(np.float32), getattr(task.net, name).block)
    before = Optimization(task.optimizer)
    before.t, before.state = state["steps"], {}
    order = [p.name for p in task.net.parameters()]
    for index, name in enumerate(order):
        arrays = [state["arrays"].get(f"{index}.{i}") for i in range(3)]
        shape = task.expected[name][0].shape
        before.state[name] = np.array([np.zeros(shape) if a is None else a for a in arrays], np.float64)
        before.average[name] = (
            task.reference.average[name] if rule != "ema adamw" else state["arrays"][f"{index}.average"]
        )
    assert state["steps"] == 4
    task.optimizer = RULES[rule]()
    task.optimizer.load_state_dict(state)
    task.reference = before
    task.run(clnn.step(task.train) if recorded else task.train, 4)
    assert task.optimizer.state_dict()["steps"] == 8


def test_state_of_another_model(rng, device):
    task, other = Task(rng, clnn.Adam()), Task(rng, clnn.Adam(), shape=(3, 2))
    task.run(task.train, 1)
    other.optimizer.load_state_dict(task.optimizer.state_dict())
    with pytest.raises(clnn.ConfigurationError, match=r"\(5, 4\).*\(3, 2\)"):
        other.run(other.train, 1)


# -- gradients --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("rule", ["sgd", "sgd l2", "momentum", "nesterov", "adam"])
@pytest.mark.parametrize("recorded", [False, True])
def test_gradients_of_two_batches_add_up(rng, device, rule, recorded):
    """backward() twice, then one step."""
    task = Task(rng, RULES[rule]())

    def train(x, c, u, d):
        (task.net(x) * c).sum().backward()
        (task.net(u) * d).sum().backward()
        task.optimizer.step(task.net.parameters())

    step = clnn.step(train) if recorded else train
    for _ in range(STEPS):
        (x, c), (u, d) = task.draw(), task.draw()
        step(*map(clnn.tensor, (x, c, u, d)))
        task.reference.step(task.expected, {"w": x.T @ c + u.T @ d, "b": c.sum(axis=0) + d.sum(axis=0)})
    task.check()


@pytest.mark.parametrize("rule", ["sgd", "momentum", "adam"])
@pytest.mark.parametrize("recorded", [False, True])
def test_a_parameter_used_twice(rng, device, rule, recorded):
    """Its gradients add up, and the second use still sees the weights of before the step."""
    task = Task(rng, RULES[rule](), shape=(4, 4))

    def train(x, c, u, d):
        ((task.net(x) * c).sum() + (task.net(u) * d).sum()).backward()
        task.optimizer.step(task.net.parameters())

    step = clnn.step(train) if recorded else train
    for _ in range(STEPS):
        (x, c), (u, d) = task.draw(), task.draw()
        step(*map(clnn.tensor, (x, c, u, d)))
        task.reference.step(task.expected, {"w": x.T @ c + u.T @ d, "b": c.sum(axis=0) + d.sum(axis=0)})
    task.check()


@pytest.mark.parametrize("rule", ["sgd", "sgd l2", "momentum", "adam"])
@pytest.mark.parametrize("recorded", [False, True])
def test_a_parameter_that_the_loss_does_not_reach(rng, device, rule, recorded):
    """Its gradient is 0: momentum moves it on, and decay goes on."""
    task = Task(rng, RULES[rule]())

    def train(x, c):
        if x.shape[0] == 7:
            (task.net(x) * c).sum().backward()
        else:
            (task.net.b * c[0]).sum().backward()
        task.optimizer.step(task.net.parameters())

    step = clnn.step(train) if recorded else train
    for i in range(10):
        x, c = task.draw()
        if i % 2:
            x, c = x[:3], c[:3]
        step(clnn.tensor(x), clnn.tensor(c))
        gradients = {"w": x.T @ c, "b": c.sum(axis=0)} if i % 2 == 0 else {"w": np.zeros((5, 4)), "b": c[0]}
        task.reference.step(task.expected, gradients)
    task.check()


def test_gradients_are_readable_or_say_why_not(rng, device):
    for rule, place in (("sgd", "straight into the weights"), ("momentum", "straight into the velocity")):
        task = Task(rng, RULES[rule]())
        task.run(descending(task), 4)
        with pytest.raises(clnn.ClnnError, match=f"w has no gradient of its own.*{place}.*keep_gradients=True"):
            task.net.w.grad
        for way in (descending, lambda task: clnn.step(task.train)):
            kept = Task(rng, RULES[rule](keep_gradients=way is descending))
            train = way(kept)
            kept.run(train, 4)
            x, c = kept.draw()
            train(x, c)
            assert_close(kept.net.w.grad.numpy(), x.T @ c, 0)


@pytest.mark.parametrize("rule", ["momentum", "adam"])
def test_reading_a_gradient_between_recorded_steps(rng, device, rule):
    """A plain backward() outside of the step does not disturb the velocities that lie in the gradients' place."""
    task = Task(rng, RULES[rule]())
    train = descending(task)
    task.run(train, 4)
    x, c = task.draw()
    (task.net(x) * clnn.tensor(c)).sum().backward()
    assert_close(task.net.w.grad.numpy(), x.T @ c, 0)
    task.optimizer.zero_grad()
    task.run(train, 4)


def test_zero_grad(rng, device):
    task = Task(rng, clnn.SGD(0.1))
    task.run(task.train, 1)
    x, c = task.draw()
    (task.net(x) * clnn.tensor(c)).sum().backward()
    task.optimizer.zero_grad()
    assert task.net.w.grad is None
    task.run(task.train, 2)


def test_an_exception_in_a_recorded_step(rng, device):
    """It leaves weights and velocities as they were before some step, and training goes on."""
    task = Task(rng, clnn.SGD(0.1))
    fail = [False]

    def train(x, c):
        (task.net(x) * c).sum().backward()
        if fail[0]:
            raise RuntimeError("stop")
        task.optimizer.step(task.net.parameters())

    step = clnn.step(train)
    task.run(step, 1)
    before = task.net.w.numpy()
    fail[0] = True
    with pytest.raises(RuntimeError, match="stop"):
        step(*task.draw())
    assert np.isfinite(task.net.w.numpy()).all() and before.shape == task.net.w.shape
    fail[0] = False
    for name in ("w", "b"):
        task.expected[name][0][:] = getattr(task.net, name).numpy()
    task.run(step, 4)


# -- clipping and NaN -------------------------------------------------------------------------------------------------
def pushed(optimizer, gradients, w=None):
    """What one eager step makes of weights (ones) when these are the gradients of parameters of (rows, columns)."""
    parameters = [parameter(np.ones(g.shape) if w is None else w) for g in gradients]
    loss = sum((p * g.astype(np.float32)).sum() for p, g in zip(parameters, gradients))
    loss.backward()
    optimizer.step(parameters)
    return [p.numpy() for p in parameters]


@pytest.mark.parametrize("recorded", [False, True])
@pytest.mark.parametrize("rule", ["clip norm", "clip norm momentum", "clip both", "clip lamb"])
@pytest.mark.parametrize("apart", [False, True])
def test_the_norm_is_that_of_all_parameters(rng, device, rule, apart, recorded):
    """In one store, and in two; with a frozen parameter between, so that there are several runs."""
    optimizer = RULES[rule]()
    tasks = [Task(rng, optimizer), Task(rng, optimizer, shape=(6, 3)), Task(rng, optimizer, shape=(2, 70))]
    if apart:
        for task in tasks:
            clnn.parameters.consolidate(task.net.parameters())
    else:
        clnn.parameters.consolidate([p for task in tasks for p in task.net.parameters()])
    tasks[1].net.w.trainable = False
    parameters = [p for task in tasks for p in task.net.parameters()]

    def train(*arrays):
        sum((task.net(x) * c).sum() for task, x, c in zip(tasks, arrays[::2], arrays[1::2])).backward()
        optimizer.step(parameters)

    step = clnn.step(train) if recorded else train
    reference = Optimization(optimizer)
    expected = {(i, n): task.expected[n] for i, task in enumerate(tasks) for n in ("w", "b") if (i, n) != (1, "w")}
    for _ in range(5):
        drawn = [task.draw() for task in tasks]
        step(*[clnn.tensor(a) for pair in drawn for a in pair])
        reference.step(
            expected, {(i, n): x.T @ c if n == "w" else c.sum(0) for i, (x, c) in enumerate(drawn) for n in ("w", "b")}
        )
    for (i, name), (w, _) in expected.items():
        bound = 16 * STEPS * eps(np.float32) * max(1, np.abs(w).max(), np.abs(reference.state[i, name][0]).max())
        assert_close(getattr(tasks[i].net, name).numpy(), w, bound, f"{name} of net {i}")


def test_gradients_within_the_norm_are_left_alone(rng, device):
    g = [rng.standard_normal((5, 7)), rng.standard_normal((3, 2))]
    for a, b in zip(pushed(clnn.SGD(0.1), g), pushed(clnn.SGD(0.1, clip_norm=1e3), g)):
        assert np.array_equal(a, b)


def test_norms_beyond_the_largest_square(device):
    """Squares of 1e30 overflow in float32, and the norm of such gradients is still a number."""
    g = np.full((3, 4), 1e30)
    (w,) = pushed(clnn.SGD(1.0, clip_norm=1.0), [g])
    assert_close(w, 1 - g / np.linalg.norm(g), 16 * eps(np.float32))
    (w,) = pushed(clnn.SGD(1.0, clip_norm=1.0), [np.full((3, 4), 1e-30)])
    assert_close(w, np.ones((3, 4)), 0)


def test_what_is_added_to_a_small_norm(device):
    g = np.full((3, 4), 2e-6 / np.sqrt(12))
    (w,) = pushed(clnn.SGD(1e6, clip_norm=1e-6), [g])
    assert_close(w, 1 - 1e6 * g / 3, 64 * eps(np.float32))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("rule", [r for r in RULES if not r.startswith(("sgd", "schedule", "adam schedule"))])
def test_a_gradient_that_is_no_number_is_not_hidden(rng, device, rule, bad):
    """Not by a sign, a largest one or a limit: the weight it belongs to is a number no more (Lion takes infinity's sign)."""
    g = rng.standard_normal((4, 5))
    g[2, 3] = bad
    (w,) = pushed(RULES[rule](), [g])
    if not ("lion" in rule and np.isinf(bad)):
        assert not np.isfinite(w[2, 3])
    if "clip norm" in rule and np.isnan(bad):
        assert np.isnan(w).all()


def test_a_norm_over_two_types(device):
    if not device.has_fp64:
        pytest.skip("no float64")
    one, two = parameter(np.ones((2, 2))), parameter(np.ones((2, 2)), np.float64)
    one.sum().backward()
    two.sum().backward()
    with pytest.raises(clnn.ConfigurationError, match=r"clip_norm needs.*one type.*clip_value"):
        clnn.Adam(clip_norm=1.0).step([one, two])
    clnn.Adam(clip_value=1.0).step([one, two])


# -- averages of the weights ------------------------------------------------------------------------------------------
def test_averages_are_put_in_place_and_taken_out_again(rng, device):
    task = Task(rng, clnn.SGD(0.1, ema=0.5))
    step = clnn.step(task.train)
    task.run(step, 5)
    before = [p.numpy() for p in task.net.parameters()]
    with pytest.raises(RuntimeError, match="stop"), task.optimizer.averaged():
        assert all(np.abs(p.numpy() - w).max() > 0 for p, w in zip(task.net.parameters(), before))
        raise RuntimeError("stop")
    for p, w in zip(task.net.parameters(), before):
        np.testing.assert_array_equal(p.numpy(), w)
    with task.optimizer.averaged():
        with pytest.raises(clnn.ClnnError, match="leave the with block"):
            step(*task.draw())
        with pytest.raises(clnn.ClnnError, match="in place already"), task.optimizer.averaged():
            pass
    task.run(step, 3)


def test_what_would_change_the_averages_is_refused_and_what_reads_them_is_not(tmp_path, rng, device):
    """By whatever does it: what it did would be lost without a word when the weights come back."""
    x, y = rng.random((8, 4)), rng.integers(0, 3, 8)
    net = clnn.Sequential([clnn.Dense(3)], input_shape=4, seed=0)
    given = {"loss": "cross_entropy", "progress": False}
    run = clnn.Checkpoint(tmp_path / "run")
    net.fit(x, y, optimizer=(mine := clnn.SGD(0.5, ema=0.5)), callbacks=[run], seed=1, **given)
    other, state = clnn.Adam(), {name: 2 * array for name, array in net.state_dict().items()}

    @clnn.step
    def step(x, y):
        clnn.losses.cross_entropy(net(x), y).backward()
        other.step(net.parameters())

    inputs = clnn.tensor(x), clnn.tensor(y)
    step(*inputs)
    weights = net.state_dict()
    parameters = net.parameters()
    changing = {
        "fit": lambda: net.fit(x, y, optimizer=other, **given),
        "fit by name": lambda: net.fit(x, y, optimizer="sgd", **given),
        "resume": lambda: net.fit(x, y, optimizer=clnn.SGD(0.5, ema=0.5), epochs=2, seed=1, resume=run.folder, **given),
        "step": lambda: step(*inputs),
        "load": lambda: net.load_state_dict(state),
        "minimize": lambda: clnn.LBFGS().minimize(
            lambda: clnn.losses.cross_entropy(net(inputs[0]), inputs[1]), parameters, 2
        ),
        "to": lambda: net.to(device),
        "averages of another": lambda: clnn.SGD(ema=0.5).averaged(parameters).__enter__(),
    }
    with mine.averaged():
        averages, steps = net.state_dict(), (mine.steps, other.steps)
        for name, change in changing.items():
            with pytest.raises(clnn.ClnnError, match=r"within optimizer.averaged\(\).*leave the with block"):
                change()
            assert (mine.steps, other.steps) == steps and net.optimizer is mine, name
        net.evaluate(x, y, loss="cross_entropy")
        net.save(tmp_path / "net.safetensors")
        for name, array in net.state_dict().items():
            np.testing.assert_array_equal(array, averages[name])
        apart = clnn.Sequential([clnn.Dense(2)], input_shape=4)  # another model trains within it
        apart.fit(x, y % 2, optimizer=clnn.SGD(0.1), **given)
    for name, array in net.state_dict().items():
        np.testing.assert_array_equal(array, weights[name])
    step(*inputs)
    net.load_state_dict(state)
    np.testing.assert_array_equal(clnn.load(tmp_path / "net.safetensors").state_dict()["0.w"], averages["0.w"])


def test_averages_begin_with_the_first_weights(rng, device):
    task = Task(rng, clnn.Adam(ema=0.9))
    first = task.net.w.numpy()
    with pytest.raises(clnn.ConfigurationError, match=r"averaged\(net.parameters\(\)\)"), task.optimizer.averaged():
        pass
    with task.optimizer.averaged(task.net.parameters()):
        np.testing.assert_array_equal(task.net.w.numpy(), first)
    with pytest.raises(clnn.ConfigurationError, match="ema="), clnn.Adam().averaged(task.net.parameters()):
        pass


def test_averages_from_now_on(rng, device):
    """Switched on in the middle, they begin with the weights of that moment."""
    task = Task(rng, clnn.SGD(0.1))
    step = clnn.step(task.train)
    task.run(step, 4)
    task.optimizer.ema = 0.75
    task.reference.average = {name: w.copy() for name, (w, _) in task.expected.items()}
    task.run(step, 4)


# -- launches ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("rule", "updates"),
    [
        ("sgd", 0),
        ("sgd l2", 0),
        ("sgd decoupled", 0),
        ("sgd l1", 1),
        ("momentum", 1),
        ("nesterov", 1),
        ("adam", 1),
        ("adamw", 1),
        ("lion decay", 1),
        ("adadelta l2 l1", 1),
        ("ema", 1),
        ("ema momentum", 1),
        ("clip value", 1),
        ("clip norm", 3),
        ("lamb", 3),
    ],
)
def test_launches_of_a_recorded_step(rng, device, rule, updates):
    """One launch for a whole model; none where the gradient's own GEMM does the step; two for a norm, three for LAMB."""
    optimizer = RULES[rule]()
    net = clnn.Sequential([clnn.Dense(5, "tanh"), clnn.Dense(4), clnn.Dense(3)], input_shape=6)

    optimizer.attach(net.parameters())

    def train(x):
        optimizer.descend(net(x).sum().node)

    train = Step(train, descending=[optimizer])
    for _ in range(4):
        train(normal(rng, (7, 6)).astype(np.float32))
    (labels,) = train.replays.launches()
    assert sum(label.startswith("optimizer.") for label in labels) == updates


def test_launches_of_an_eager_step(rng, device, monkeypatch):
    launched = []
    launch = type(device).launch
    monkeypatch.setattr(type(device), "launch", lambda d, *a, **o: (launched.append(a[0]), launch(d, *a, **o)))
    net, optimizer = clnn.Sequential([clnn.Dense(5), clnn.Dense(4)], input_shape=6), clnn.Adam()
    net(normal(rng, (7, 6)).astype(np.float32)).sum().backward()
    launched.clear()
    optimizer.step(net.parameters())
    assert launched.count("optimizer") == 1 and len(launched) == 2, launched  # and the counter of the table's rows


# -- what does not fit ------------------------------------------------------------------------------------------------
def test_steps_without_what_they_need(rng, device):
    task = Task(rng, clnn.SGD(0.1))
    with pytest.raises(clnn.ConfigurationError, match="first call: optimizer.step\\(net.parameters\\(\\)\\)"):
        task.optimizer.step()
    with pytest.raises(clnn.ClnnError, match="call loss.backward\\(\\) first"):
        task.optimizer.step(task.net.parameters())
    task.run(task.train, 1)
    with pytest.raises(clnn.ClnnError, match="call loss.backward\\(\\) first"):
        task.optimizer.step()
    for p in task.net.parameters():
        p.trainable = False
    with pytest.raises(clnn.ConfigurationError, match="no trainable parameter: .* no attribute of a layer"):
        clnn.SGD(0.1).step(task.net.parameters())


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda: clnn.SGD(-1), "lr"),
        (lambda: clnn.SGD("fast"), "lr"),
        (lambda: clnn.SGD(True), "lr"),
        (lambda: clnn.SGD(np.nan), "lr"),
        (lambda: clnn.SGD(np.inf), "lr"),
        (lambda: clnn.SGD(0.1, momentum=1), "momentum"),
        (lambda: clnn.SGD(0.1, nesterov=True), "nesterov"),
        (lambda: clnn.SGD(0.1, weight_decay=-1), "weight_decay"),
        (lambda: clnn.SGD(0.1, l1=-1), "l1"),
        (lambda: clnn.Adam(beta1=1), "beta1"),
        (lambda: clnn.Adam(beta2=-0.1), "beta2"),
        (lambda: clnn.Adam(epsilon=-1), "epsilon"),
        (lambda: find_optimizer("sdg"), "sgd, adam"),
        (lambda: clnn.AMSGrad(beta2=1), "AMSGrad beta2"),
        (lambda: clnn.Nadam(momentum_decay=-1), "momentum_decay"),
        (lambda: clnn.LAMB(epsilon=0), "LAMB epsilon"),
        (lambda: clnn.RMSprop(alpha=1), "alpha"),
        (lambda: clnn.RMSprop(momentum=1), "momentum"),
        (lambda: clnn.Adagrad(lr_decay=-1), "lr_decay"),
        (lambda: clnn.Adadelta(rho=1), "rho"),
        (lambda: clnn.Lion(beta1=1), "Lion beta1"),
        (lambda: clnn.Lion(clip_norm=0), "clip_norm"),
        (lambda: clnn.SGD(clip_value=-1), "clip_value"),
        (lambda: clnn.SGD(clip_norm=np.inf), "clip_norm"),
        (lambda: clnn.Adam(ema=1), "ema"),
    ],
)
def test_ranges(make, name):
    with pytest.raises(clnn.ConfigurationError, match=name):
        make()


def test_a_schedule_is_checked(rng, device):
    task = Task(rng, clnn.SGD(lambda t: -1.0))
    with pytest.raises(clnn.ConfigurationError, match="the schedule's lr"):
        task.run(task.train, 1)


@pytest.mark.parametrize("rule", RULES)
def test_config_makes_the_same_optimizer(rule):
    made = RULES[rule]()
    config = made.config()
    same = type(made)(**config)
    assert same.config() == config and same.rule == made.rule


def test_names():
    assert set(OPTIMIZERS) == {
        "sgd", "adam", "adamw", "amsgrad", "nadam", "lamb", "rmsprop", "adagrad", "adadelta", "lion",
    }  # fmt: skip
    assert {name: type(find_optimizer(name)) for name in OPTIMIZERS} == OPTIMIZERS
    assert type(find_optimizer("AdamW")) is clnn.AdamW


@pytest.mark.platform("optimizer")
@pytest.mark.oclgrind
def test_small_under_a_simulator(rng, device, monkeypatch):
    grid = staticmethod(
        lambda device, dtype, sums=False: clnn.optim.limits.Grid(4, 2, 8)
    )  # groups that share something
    monkeypatch.setattr("clnn.optim.limits.Grid.over", grid)
    task = Task(rng, clnn.SGD(0.1, momentum=0.9, weight_decay=0.3))
    task.run(clnn.step(task.train), 5)
    for optimizer in (clnn.AdamW(0.01, ema=0.5), clnn.LAMB(0.01, clip_norm=3.0, clip_value=2.0)):
        task = Task(rng, optimizer)
        task.run(task.train, 1)


# -- max-norm --------------------------------------------------------------------------------------------------------------
LIMITED = [
    "sgd", "sgd l1", "schedule without momentum", "momentum l2 l1", "nesterov", "adam", "lamb", "lion decay", "clip both",
    "ema", "ema lamb",
]  # fmt: skip


def limited(rng, rule, most=2.5, **options):
    task = Task(rng, RULES[rule](), **options)
    task.net.w.max_norm = task.reference.max_norm["w"] = most
    return task


@pytest.fixture(params=["its own", "a GPU's"])
def strips(request, monkeypatch):
    """Where a thread has columns alone, and where the work-items of a group share them."""
    if request.param == "a GPU's":
        monkeypatch.setattr("clnn.optim.limits._strips", lambda device, rows: (device.group_width, 16, 16))


@pytest.mark.parametrize("rule", LIMITED)
@pytest.mark.parametrize("recorded", [False, True])
def test_max_norm(rng, device, rule, recorded, strips):
    task = limited(rng, rule)
    task.run(clnn.step(task.train) if recorded else task.train)
    assert np.linalg.norm(task.net.w.numpy(), axis=0).max() <= 2.5 * (1 + 4 * eps(np.float32))


@pytest.mark.parametrize("shape", [(1, 1), (1, 130), (130, 1), (7, 64), (9, 65), (300, 129), (700, 200)])
def test_max_norm_of_any_shape(rng, dtype, shape, strips):
    """Columns of all lengths, most of them longer than allowed and some shorter."""
    task = limited(rng, "sgd", np.sqrt(shape[0]).item() * 1.5, dtype=dtype, shape=shape)
    task.run(clnn.step(task.train), 5)


@pytest.mark.oclgrind
def test_max_norm_of_a_small_matrix(rng, device, strips):
    task = limited(rng, "ema", 1.0, shape=(5, 18))
    task.run(task.train, 1)


def test_a_column_that_is_short_enough_keeps_its_bits(rng, device, strips):
    task, free = (Task(np.random.default_rng(3), RULES["adam"](), shape=(30, 20)) for _ in range(2))
    lengths = np.linalg.norm(free.net.w.numpy(), axis=0)
    task.net.w.max_norm = float(np.median(lengths))
    for one in (task, free):
        one.train(*map(clnn.tensor, one.draw()))
    short = np.linalg.norm(free.net.w.numpy(), axis=0) < task.net.w.max_norm * (1 - 1e-6)
    assert 0 < short.sum() < 20
    np.testing.assert_array_equal(task.net.w.numpy()[:, short], free.net.w.numpy()[:, short])
    np.testing.assert_array_equal(task.net.b.numpy(), free.net.b.numpy())


@pytest.mark.parametrize("value", [1e25, np.inf, np.nan])
def test_max_norm_of_what_overflows(rng, device, strips, value):
    """Squares above the largest float are no reason to set weights to 0; NaN and infinities are seen afterwards."""
    task = Task(rng, clnn.SGD(0.0), shape=(30, 20))
    w = task.net.w.numpy()
    w[:, 3] *= value
    device.upload(w, task.net.w.block)
    task.net.w.max_norm = 100.0
    task.train(*map(clnn.tensor, task.draw()))
    found = task.net.w.numpy()
    if np.isfinite(value):
        assert np.linalg.norm(found[:, 3].astype(np.float64)) == pytest.approx(100.0, rel=1e-5)
    else:
        assert np.isnan(found[:, 3]).any()
    np.testing.assert_array_equal(np.delete(found, 3, 1), np.delete(w, 3, 1))


def test_max_norm_leaves_gradients_where_they_would_go(rng, device):
    """One launch more; the weight gradient's GEMM still updates the weights."""
    found = []
    for most in (None, 1.0):
        task = Task(rng, clnn.SGD(0.1))
        task.net.w.max_norm = most
        train = descending(task)
        for _ in range(4):
            train(*map(clnn.tensor, task.draw()))
        with pytest.raises(clnn.ClnnError, match="straight into the weights"):
            task.net.w.grad  # noqa: B018
        found.append(train.replays.launches()[0])
    extra = [label for label in found[1] if label.startswith("optimizer.max_norm")]
    assert len(extra) == 1 and len(found[1]) == len(found[0]) + 1


def test_max_norm_of_a_layer(rng, device, tmp_path):
    """In fit, in the layer's config, and changed between two fits."""
    x, y = rng.standard_normal((60, 5)).astype(np.float32), rng.integers(0, 3, 60)
    with clnn.use(device):
        net = clnn.Sequential([clnn.Dense(8, "relu", max_norm=0.5), clnn.Dense(3)], input_shape=5, seed=1)
    assert "max_norm=0.5" in repr(net.layers[0]) and "max_norm" not in repr(net.layers[1])
    lengths = lambda layer: np.linalg.norm(layer.w.numpy(), axis=0)  # noqa: E731
    fit = {"loss": "cross_entropy", "optimizer": clnn.SGD(0.5, momentum=0.9), "epochs": 3, "batch_size": 20}
    net.fit(x, y, **fit)
    assert 0.4 < lengths(net.layers[0]).max() < 0.5001 and lengths(net.layers[1]).max() > 0.6
    net.save(tmp_path / "net")
    with clnn.use(device):
        again = clnn.load(tmp_path / "net")
    again.fit(x, y, **fit | {"optimizer": again.optimizer})
    assert again.layers[0].max_norm == 0.5 and lengths(again.layers[0]).max() < 0.5001
    net.layers[0].max_norm = 0.25
    net.fit(x, y, **fit)
    assert lengths(net.layers[0]).max() < 0.2501
    net.layers[0].max_norm = None
    net.fit(x, y, **fit)
    assert lengths(net.layers[0]).max() > 0.26


@pytest.mark.parametrize("wrong", [0, -1.0, "3", True, np.inf])
def test_max_norm_is_above_0(wrong):
    with pytest.raises(clnn.ConfigurationError, match="max_norm should be in"):
        clnn.Dense(3, max_norm=wrong)


def test_fit_attaches_its_parameters_once(device, rng, monkeypatch):
    """Not at every step: a replay would take several times as long."""
    calls, attach = [], clnn.Optimizer.attach
    monkeypatch.setattr(clnn.Optimizer, "attach", lambda self, given: calls.append(given) or attach(self, given))
    net = clnn.Sequential([clnn.Dense(3, "tanh"), clnn.Dense(1)], input_shape=4)
    x = rng.standard_normal((64, 4)).astype(np.float32)
    net.fit(x, x[:, :1], loss="mse", optimizer=clnn.SGD(0.1), epochs=5, batch_size=4, progress=False)
    assert len(calls) <= 2


@pytest.mark.parametrize("name", ["SGD", "Adam", "RMSprop", "Lion"])
@pytest.mark.parametrize("penalty", ["weight_decay", "l1"])
def test_a_step_leaves_the_gradient_as_it_is(device, name, penalty):
    """What a penalty adds is the rule's alone: whoever reads .grad, or steps twice by it, has the loss's gradient."""
    p = clnn.tensor([[1.0, -2.0], [3.0, 4.0]], requires_grad=True)
    optimizer = getattr(clnn, name)(0.01, **{penalty: 0.5}, **({"momentum": 0.9} if name == "SGD" else {}))
    for _ in range(3):
        optimizer.zero_grad([p])
        w = p.numpy()
        (p * p).sum().backward()
        optimizer.step([p])
        np.testing.assert_allclose(p.grad.numpy(), 2 * w, rtol=1e-6)


def test_an_optimizer_without_a_rule_is_refused(device):
    """It trained nothing, and said nothing."""
    mine = type("Mine", (clnn.Optimizer,), {})
    for optimizer in (clnn.Optimizer(0.1), mine(0.1)):
        net = clnn.Sequential([clnn.Dense(2)], input_shape=3)
        with pytest.raises(clnn.ConfigurationError, match="^(Mine|Optimizer) has no rule: derive it from one that has"):
            net.fit(np.ones((4, 3)), np.ones((4, 2)), loss="mse", optimizer=optimizer, progress=False)
        net(np.ones((4, 3))).sum().backward()
        with pytest.raises(clnn.ConfigurationError, match="has no rule"):
            optimizer.step(net.parameters())
    net.fit(np.ones((4, 3)), np.ones((4, 2)), loss="mse", optimizer=type("Mine", (clnn.SGD,), {})(0.1), progress=False)


@pytest.mark.parametrize(
    "make",
    [
        lambda: clnn.SGD(0.1, momentum=0.9), lambda: clnn.Adam(0.1, ema=0.9, clip_norm=0.1), lambda: clnn.LAMB(0.1),
    ],
)  # fmt: skip
def test_a_step_without_memory_changes_no_weight(device, monkeypatch, make):
    """Of two models one had made its step and the other had not, which nobody saw; the same step is taken again."""

    def begun():
        nets = [clnn.Sequential([clnn.Dense(3)], input_shape=n, seed=n) for n in (4, 3)]
        clnn.losses.mse(nets[1](nets[0](np.ones((2, 4)))), np.zeros((2, 3))).backward()
        return make(), [*nets[0].parameters(), *nets[1].parameters()]

    def values(parameters):
        return [p.numpy() for p in parameters]

    optimizer, parameters = begun()
    optimizer.step(parameters)
    expected, allocate, failed = values(parameters), type(device.memory).allocate, 0
    for left in range(20):
        optimizer, parameters = begun()
        before, taken = values(parameters), iter(range(left))

        def some(memory, *given, taken=taken, **options):
            if next(taken, None) is None:
                raise clnn.OutOfDeviceMemory("none left")
            return allocate(memory, *given, **options)

        with monkeypatch.context() as patch:
            patch.setattr(type(device.memory), "allocate", some)
            try:
                optimizer.step(parameters)
                break
            except clnn.OutOfDeviceMemory:
                failed += 1
        for a, b in zip(before, values(parameters)):
            np.testing.assert_array_equal(a, b)
        optimizer.step(parameters)
        assert optimizer.steps == 1
        for a, b in zip(expected, values(parameters)):
            np.testing.assert_array_equal(a, b)
    assert 2 < failed < 20


@pytest.mark.parametrize("momentum, decay", [(0.0, 0.0), (0.0, 0.1), (0.9, 0.0), (0.9, 0.1)])
def test_numbers_of_ones_own_count_in_fit_too(device, rng, momentum, decay):
    """fit wrote gradients straight into weights and velocities, by the rate and the momentum as they are given."""

    class Half(clnn.SGD):
        def numbers(self, lr, t):
            return lr * 0.5, np.where(t > 2, self.momentum, self.momentum / 2)

    x, y = rng.standard_normal((12, 5)).astype(np.float32), rng.integers(0, 3, 12)
    with clnn.use(device):
        net = clnn.Sequential([clnn.Dense(7, "tanh"), clnn.Dense(3)], input_shape=5, dtype="float32")
        w = {name: value.astype(np.float64) for name, value in net.state_dict().items()}
        v = dict.fromkeys(w, 0.0)
        optimizer = Half(0.2, momentum=momentum, weight_decay=decay)
        net.fit(x, y, loss="cross_entropy", optimizer=optimizer, epochs=4, batch_size=6, shuffle=False)
        for step in range(8):
            rows = slice(0, 6) if step % 2 == 0 else slice(6, 12)
            h = np.tanh(x[rows] @ w["0.w"] + w["0.b"])
            p = np.exp(h @ w["1.w"] + w["1.b"])
            d = (p / p.sum(1, keepdims=True) - np.eye(3)[y[rows]]) / 6
            e = d @ w["1.w"].T * (1 - h * h)
            for name, g in (("1.w", h.T @ d), ("1.b", d.sum(0)), ("0.w", x[rows].T @ e), ("0.b", e.sum(0))):
                g = g + decay * w[name] * (name[-1] == "w")
                v[name] = (momentum if step > 1 else momentum / 2) * v[name] + g
                w[name] = w[name] - 0.1 * v[name]
        for name, value in net.state_dict().items():
            np.testing.assert_allclose(value, w[name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("which, momentum", [("SGD", 0.0), ("SGD", 0.9), ("Adam", None)])
def test_a_rate_of_ones_own_counts_in_fit_and_in_steps(device, rng, which, momentum):
    """The history showed it, and fit went by lr. What it reads may change between epochs."""
    fall = [0.5]

    class Falling(getattr(clnn, which)):
        def rate(self, step):
            return super().rate(step) * fall[0] ** step

    x, y = rng.standard_normal((12, 5)).astype(np.float32), rng.integers(0, 3, 12)
    options = {} if momentum is None else {"momentum": momentum}
    fit = {"loss": "cross_entropy", "epochs": 4, "batch_size": 6, "shuffle": False, "progress": False}
    with clnn.use(device):
        mine, theirs, steps = (clnn.Sequential([clnn.Dense(7), clnn.Dense(3)], input_shape=5, seed=1) for _ in range(3))
        change = clnn.callbacks.Lambda(on_epoch_end=lambda model, epoch, logs: fall.__setitem__(0, 0.5 + epoch / 10))
        history = mine.fit(x, y, optimizer=Falling(0.1, **options), callbacks=[change], **fit)
        rates = [0.1 * (0.5 + max(0, step // 2 - 1) / 10) ** step for step in range(8)]
        np.testing.assert_allclose(history.history["lr"], rates[1::2], rtol=1e-6)
        theirs.fit(x, y, optimizer=getattr(clnn, which)(lambda step: rates[min(step, 7)], **options), **fit)
        fall[0], optimizer = 0.5, Falling(0.1, **options)

        @clnn.step
        def train(x, y):
            clnn.losses.cross_entropy(steps(x), y).backward()
            optimizer.step(steps.parameters())

        for step in range(8):
            fall[0] = 0.5 + max(0, step // 2 - 1) / 10
            train(*((x[:6], y[:6]) if step % 2 == 0 else (x[6:], y[6:])))
        for name, value in theirs.state_dict().items():
            np.testing.assert_allclose(mine.state_dict()[name], value, rtol=1e-5, atol=1e-6)
            np.testing.assert_allclose(steps.state_dict()[name], value, rtol=1e-5, atol=1e-6)

        class Wrong(clnn.SGD):
            def rate(self, step):
                return -1.0

        with pytest.raises(clnn.ConfigurationError, match=r"rate\(step\) should be in .*-1\.0"):
            theirs.fit(x, y, optimizer=Wrong(0.1), **fit)


def test_numbers_of_ones_own_may_read_what_changes(device, rng):
    """The table of rates had 1,024 steps of what they gave first."""
    factor = {"value": 1.0}

    class Own(clnn.SGD):
        def numbers(self, lr, t):
            return (lr * factor["value"],)

    with clnn.use(device):
        net, optimizer = clnn.Sequential([clnn.Dense(1, bias=False)], input_shape=1, seed=1), Own(0.25)
        w = net.state_dict()["0.w"]
        for value in (1.0, 0.5, 0.0, 2.0):
            factor["value"] = value
            net(np.ones((1, 1), np.float32)).sum().backward()
            optimizer.step(net.parameters())
            w = w - 0.25 * value
            np.testing.assert_allclose(net.state_dict()["0.w"], w, rtol=1e-6)


@pytest.mark.parametrize(
    "rule, how", [("Adam", "fit"), ("Adam", "step"), ("Adam", "eager"), ("AMSGrad", "step"), ("LAMB", "eager")]
)
def test_a_layer_that_is_thawed_later_has_steps_of_its_own(device, rng, rule, how, tmp_path):
    """Adam corrected its first steps as if they were later ones: they were up to seven times as long as the rate. A file, a
    copy and another model in between keep the count."""
    x, y = rng.standard_normal((6, 4)), rng.integers(0, 3, 6)
    with clnn.use(device):
        net = clnn.Sequential(
            [clnn.Dense(5, "tanh"), clnn.Dense(3)], input_shape=4, dtype="float64" if device.has_fp64 else "float32"
        )
        w = {name: value.astype(np.float64) for name, value in net.state_dict().items()}
        m, v, largest, taken = ({name: value * 0 for name, value in w.items()} for _ in range(4))
        optimizer = getattr(clnn, rule)(0.05, epsilon=1e-6)
        for trained, steps, then in (
            ("1", 3, ""),
            ("01", 2, "file"),
            ("0", 2, "copy"),
            ("01", 2, "other"),
            ("01", 1, ""),
        ):
            for index, layer in enumerate(net.layers):
                layer.trainable = str(index) in trained

            @clnn.step
            def train(x, y, net=net, optimizer=optimizer):
                clnn.losses.cross_entropy(net(x), y).backward()
                optimizer.step(net.parameters())

            if how == "fit":
                net.fit(x, y, loss="cross_entropy", optimizer=optimizer, epochs=steps, batch_size=6, shuffle=False)
            for _ in range(steps):
                if how == "step":
                    train(x.astype(net.dtype), y)
                elif how == "eager":
                    clnn.losses.cross_entropy(net(x.astype(net.dtype)), y).backward()
                    optimizer.step(net.parameters())
                h = np.tanh(x @ w["0.w"] + w["0.b"])
                p = np.exp(h @ w["1.w"] + w["1.b"])
                d = (p / p.sum(1, keepdims=True) - np.eye(3)[y]) / 6
                e = d @ w["1.w"].T * (1 - h * h)
                for name, g in (("1.w", h.T @ d), ("1.b", d.sum(0)), ("0.w", x.T @ e), ("0.b", e.sum(0))):
                    if name[0] not in trained:
                        continue
                    taken[name] = t = taken[name] + 1
                    m[name], v[name] = 0.9 * m[name] + 0.1 * g, 0.999 * v[name] + 0.001 * g * g
                    largest[name] = np.maximum(largest[name], v[name])
                    square = largest[name] if rule == "AMSGrad" else v[name]
                    u = m[name] / (1 - 0.9**t) / (np.sqrt(square / (1 - 0.999**t)) + 1e-6)
                    if rule == "LAMB" and name[-1] == "w":
                        u = u + 0.01 * w[name]
                        u = u * np.linalg.norm(w[name]) / np.linalg.norm(u)
                    w[name] = w[name] - 0.05 * u
            for name, value in net.state_dict().items():
                np.testing.assert_allclose(value, w[name], rtol=2e-3, atol=2e-4, err_msg=f"{name}, {trained}")
            if then == "file":
                net.save(tmp_path / "net", optimizer=optimizer)
                net = clnn.load(tmp_path / "net")
                optimizer = net.optimizer
            elif then == "copy":
                net, optimizer = copy.deepcopy((net, optimizer))
            elif then == "other":
                other = clnn.Sequential([clnn.Dense(3)], input_shape=4, dtype=net.dtype)
                other.fit(x, y, loss="cross_entropy", optimizer=optimizer, epochs=2)


def test_states_of_before_count_as_they_did(device, rng):
    """A state without counts of its own was written where all parameters shared one."""
    x, y = rng.standard_normal((6, 4)).astype(np.float32), rng.integers(0, 3, 6)
    with clnn.use(device):
        net = clnn.Sequential([clnn.Dense(5), clnn.Dense(3)], input_shape=4)
        net.layers[0].trainable = False
        net.fit(x, y, loss="cross_entropy", optimizer=(adam := clnn.Adam(0.05)), epochs=3)
        state = adam.state_dict(net.named_parameters())
        assert dict(zip(state["names"], state["taken"])) == {"0.w": 0, "0.b": 0, "1.w": 3, "1.b": 3}
        del state["taken"]
        again = clnn.Adam(0.05)
        again.load_state_dict(state)
        net.layers[0].trainable = True
        again.attach(net.parameters())
        assert "taken" not in again.state_dict(net.named_parameters())


def test_a_rule_without_corrections_stays_one_launch(device, rng):
    x, y = rng.standard_normal((6, 4)).astype(np.float32), rng.integers(0, 3, 6)
    with clnn.use(device):
        for kind, launches in ((clnn.RMSprop, 1), (clnn.Adam, 4)):  # weights that decay, and biases, of each layer
            net, optimizer = clnn.Sequential([clnn.Dense(5), clnn.Dense(3)], input_shape=4), kind(0.01)
            for trainable in (False, True):
                net.layers[0].trainable = trainable
                clnn.losses.cross_entropy(net(x), y).backward()
                before = device.launches
                optimizer.step(net.parameters())
            assert device.launches - before == launches + 1  # the counter of steps
