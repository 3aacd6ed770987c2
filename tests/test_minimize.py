"""L-BFGS and Hessian-free: known minima, curvature against exact Hessians, and what must not move, rise or be lost."""

import numpy as np
import pytest
from helpers import assert_close, eps, normal, parameter

import clnn
from clnn.minimize import Objective, dot

BOTH = {"lbfgs": clnn.LBFGS, "hessian free": clnn.HessianFree}


@pytest.fixture(params=BOTH)
def kind(request):
    return BOTH[request.param]


def rosenbrock(p):
    """(1 - a)^2 + 100 (b - a^2)^2, smallest, 0, at (1, 1)."""
    a, b = p[0:1], p[1:2]
    return ((1.0 - a) ** 2 + 100.0 * (b - a**2) ** 2).sum()


class Quadratic:
    """w A w / 2 - b w with eigenvalues of A from 1 to 10, in two parameters so that there is padding between."""

    def __init__(self, rng, dtype, n=12):
        q = np.linalg.qr(rng.standard_normal((n, n)))[0]
        self.a = (q * np.linspace(1, 10, n)) @ q.T
        self.b, self.start = rng.standard_normal(n), normal(rng, n, dtype)
        self.parameters = [parameter(self.start[:5], dtype), parameter(self.start[5:], dtype)]
        self.matrix, self.vector = clnn.tensor(self.a, dtype=dtype), clnn.tensor(self.b, dtype=dtype)

    def __call__(self):
        w = clnn.concatenate(self.parameters)
        return (w * (self.matrix @ w)).sum() * 0.5 - (w * self.vector).sum()

    @property
    def w(self):
        return np.concatenate([p.numpy() for p in self.parameters])


class Task:
    """A small network and its loss over data that it cannot fit at once."""

    def __init__(self, rng, dtype=np.float32):
        self.net = clnn.Sequential(
            [clnn.Dense(9, "tanh"), clnn.Dense(7, "sigmoid"), clnn.Dense(3)], input_shape=5, dtype=dtype, seed=3
        )
        self.x = clnn.tensor(normal(rng, (40, 5)), dtype=dtype)
        self.y = clnn.tensor(rng.integers(0, 3, 40))

    def __call__(self):
        return clnn.losses.cross_entropy(self.net(self.x), self.y)

    @property
    def weights(self):
        return [p.numpy() for p in self.net.parameters()]

    def minimize(self, optimizer, steps):
        return optimizer.minimize(self, self.net.parameters(), steps)


# -- known minima -----------------------------------------------------------------------------------------------------
def test_rosenbrock(device, dtype, kind):
    p = parameter([-1.2, 1.0], dtype)
    optimizer = kind(tolerance_gradient=0.0, tolerance_change=0.0)
    reached = optimizer.minimize(lambda: rosenbrock(p), [p], 100)
    assert reached.loss <= (1e-16 if dtype is np.float64 else 1e-8)
    assert_close(p.numpy(), [1, 1], 1e-8 if dtype is np.float64 else 1e-3)
    assert optimizer.evaluations == reached.evaluations and optimizer.steps == reached.steps


def test_a_quadratic_is_solved(rng, device, dtype, kind):
    """In about as many steps as there are numbers; Newton's need not be as many."""
    quadratic = Quadratic(rng, dtype)
    n, wanted = len(quadratic.b), np.linalg.solve(quadratic.a, quadratic.b)
    options = {"tolerance_gradient": 1e-8 if dtype is np.float64 else 1e-4, "tolerance_change": 0.0}
    if kind is clnn.LBFGS:
        options["history"] = n
    reached = kind(**options).minimize(quadratic, quadratic.parameters, n if kind is clnn.HessianFree else n + 16)
    assert_close(quadratic.w, wanted, 1e-7 if dtype is np.float64 else 1e-3, f"{reached}")


def test_the_curvature_of_a_quadratic(rng, device, dtype):
    """A central difference has no truncation error there: what is left is rounding."""
    quadratic = Quadratic(rng, dtype)
    objective = Objective(quadratic, quadratic.parameters)
    v = normal(rng, len(quadratic.b), dtype)
    parts = {"0.v": v[:5], "1.v": v[5:]}
    got = np.concatenate(objective.read(objective.hessian_vector(objective.weights(), objective.vector(parts, "v"))))
    assert_close(got, quadratic.a @ v, 100 * eps(dtype) ** (2 / 3) * np.abs(quadratic.a @ v).max())
    assert objective.evaluations == 2


@pytest.mark.slow
def test_the_curvature_of_a_network(rng, device):
    """H is symmetric: u H v = v H u."""
    if not device.has_fp64:
        pytest.skip("no float64")
    task = Task(rng, np.float64)
    objective = Objective(task, task.net.parameters())
    w, draw = objective.weights(), lambda: {f"{i}.v": normal(rng, p.shape) for i, p in enumerate(objective.parameters)}
    u, v = objective.vector(draw(), "v"), objective.vector(draw(), "v")
    one, other = dot(u, objective.hessian_vector(w, v)), dot(v, objective.hessian_vector(w, u))
    assert abs(one - other) <= 1e-7 * max(1, abs(one))


def test_as_few_evaluations_as_scipy(device):
    optimize = pytest.importorskip("scipy.optimize")
    if not device.has_fp64:
        pytest.skip("no float64")
    p = parameter([-1.2, 1.0], np.float64)
    theirs = optimize.minimize(optimize.rosen, [-1.2, 1.0], jac=optimize.rosen_der, method="L-BFGS-B", tol=1e-12)
    ours = clnn.LBFGS(tolerance_gradient=1e-6).minimize(lambda: rosenbrock(p), [p], 200)
    assert ours.why == "gradient" and ours.evaluations <= 1.5 * theirs.nfev


# -- networks ---------------------------------------------------------------------------------------------------------
@pytest.mark.slow
def test_lower_than_gradient_descent(rng, device, kind):
    task = Task(rng)
    start = task.net.state_dict()
    reached = task.minimize(kind(), 25)
    losses = []
    for lr in (0.1, 1.0):
        task.net.load_state_dict(start)
        descent = clnn.SGD(lr)
        for _ in range(reached.evaluations):
            loss = task()
            loss.backward()
            descent.step(task.net.parameters())
        losses.append(float(loss))
    assert reached.loss < 0.9 * min(losses)


def test_the_loss_never_rises(rng, device, kind):
    task, optimizer = Task(rng), kind()
    losses = [float(task())]
    for _ in range(12):
        reached = task.minimize(optimizer, 1)
        losses.append(float(task()))
        assert losses[-1] == reached.loss and reached.why in ("steps", "change", "precision")
    assert all(b <= a for a, b in zip(losses, losses[1:])) and losses[-1] < 0.9 * losses[0]
    assert optimizer.steps == 12


def test_the_gradient_afterwards_is_that_of_the_new_weights(rng, device, kind):
    task = Task(rng)
    reached = task.minimize(kind(), 3)
    kept = [p.grad.numpy() for p in task.net.parameters()]
    assert abs(np.sqrt(sum((g.astype(np.float64) ** 2).sum() for g in kept)) - reached.gradient_norm) < 1e-5
    task().backward()
    for p, g in zip(task.net.parameters(), kept):
        np.testing.assert_array_equal(p.grad.numpy(), g)


@pytest.mark.parametrize("recorded", [False, True])
def test_a_closure_that_calls_backward_itself(rng, device, kind, recorded):
    """As a recorded step does: it goes the same way."""
    task = Task(rng)
    start = task.net.state_dict()
    expected = task.minimize(kind(), 8)
    task.net.load_state_dict(start)

    def closure():
        loss = task()
        loss.backward()
        return loss

    step = clnn.step(closure) if recorded else closure
    reached = kind().minimize(step, task.net.parameters(), 8)
    assert abs(reached.loss - expected.loss) <= 1e-2 * expected.loss + 1e-6
    if recorded:
        assert len(step.replays.launches()) == 1


def test_between_steps_of_another_optimizer(rng, device, kind):
    """Velocities that lie in the gradients' place move away, and come back."""
    task, momentum = Task(rng), clnn.SGD(0.1, momentum=0.9)

    @clnn.step
    def train(x):
        loss = clnn.losses.cross_entropy(task.net(x), task.y)
        loss.backward()
        momentum.step(task.net.parameters())
        return loss

    losses = []
    for _ in range(3):
        losses += [float(train(task.x)) for _ in range(4)]
        losses.append(task.minimize(kind(), 2).loss)
    assert losses[-1] < losses[0] and np.isfinite(losses).all()


def test_resume_gives_the_same_bits(rng, device, dtype, kind):
    task = Task(rng, dtype)
    start = task.net.state_dict()
    optimizer = kind()
    whole = task.minimize(optimizer, 8)
    wanted, state = task.weights, optimizer.state_dict()
    task.net.load_state_dict(start)
    first = kind()
    task.minimize(first, 4)
    second = kind()
    second.load_state_dict(first.state_dict())
    again = second.state_dict()  # before it is taken up
    assert again.keys() == state.keys() and again["arrays"].keys() == first.state_dict()["arrays"].keys()
    reached = task.minimize(second, 4)
    assert reached.loss == whole.loss
    for w, v in zip(wanted, task.weights):
        np.testing.assert_array_equal(w, v)
    arrays = second.state_dict()["arrays"]
    assert second.steps == optimizer.steps and arrays.keys() == state["arrays"].keys()
    for key, array in arrays.items():
        assert isinstance(array, np.ndarray)
        np.testing.assert_array_equal(array, state["arrays"][key])


def test_other_parameters_begin_anew(rng, device, kind):
    task, other, optimizer = Task(rng), Task(rng), kind()
    task.minimize(optimizer, 3)
    expected = Task(rng)
    expected.x, expected.y = other.x, other.y
    fresh = kind()
    if kind is clnn.HessianFree:
        fresh.damping = optimizer.damping
    assert other.minimize(optimizer, 3)[:4] == expected.minimize(fresh, 3)[:4]


# -- which parameters -------------------------------------------------------------------------------------------------
def test_frozen_parameters_stay(rng, device, kind):
    """Also between others in one store, where the vector has a gap."""
    task = Task(rng)
    clnn.parameters.consolidate(task.net.parameters())
    frozen = task.net.layers[1].parameters()
    task.net.layers[1].trainable = False
    before, weights = [p.numpy() for p in frozen], task.weights
    first = float(task())
    assert task.minimize(kind(), 5).loss < first
    for p, w in zip(frozen, before):
        np.testing.assert_array_equal(p.numpy(), w)
    assert sum((a != b).any() for a, b in zip(weights, task.weights)) == 4


def test_several_stores_and_a_parameter_that_is_not_reached(rng, device, kind):
    one, two, lonely = (parameter(normal(rng, 3)) for _ in range(3))
    for p in (one, two, lonely):
        clnn.parameters.consolidate([p])
    (lonely * 3.0).sum().backward()  # a gradient of before
    lonely.zero_grad()
    before = lonely.numpy()
    kind(tolerance_change=0.0).minimize(lambda: ((one - 1.0) ** 2 + (two + 2.0) ** 4).sum(), [one, two, lonely], 30)
    assert_close(one.numpy(), np.ones(3), 1e-3)
    assert_close(two.numpy(), -2 * np.ones(3), 0.1)
    np.testing.assert_array_equal(lonely.numpy(), before)


def test_two_types_are_an_error(device, kind):
    if not device.has_fp64:
        pytest.skip("no float64")
    one, two = parameter([1.0]), parameter([1.0], np.float64)
    with pytest.raises(clnn.ConfigurationError, match=r"float64.*beside float32.*one at a time"):
        kind().minimize(lambda: one.sum(), [one, two], 1)


# -- when it stops ----------------------------------------------------------------------------------------------------
def test_why_it_stops(rng, device, kind):
    quadratic = Quadratic(rng, np.float32)
    assert kind().minimize(quadratic, quadratic.parameters, 1).why == "steps"
    assert kind(tolerance_gradient=1e9).minimize(quadratic, quadratic.parameters, 9)[2:] == (0, 1, "gradient")
    assert kind(tolerance_change=1e9).minimize(quadratic, quadratic.parameters, 9).why == "change"
    ended = kind(tolerance_gradient=0.0, tolerance_change=0.0).minimize(quadratic, quadratic.parameters, 500)
    assert ended.why in ("precision", "gradient") and ended.steps < 100


def test_a_minimum_has_nothing_to_do(device, kind):
    p = parameter([0.0, 0.0])
    assert kind().minimize(lambda: (p * p).sum(), [p], 5) == (0.0, 0.0, 0, 1, "gradient")


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_loss_that_stops_being_finite(rng, device, kind, bad):
    task, calls = Task(rng), [0]
    start = task.net.state_dict()
    task.minimize(kind(), 2)
    good = task.weights

    def closure():
        calls[0] += 1
        return task() * (bad if calls[0] > most else 1.0)

    most = 0
    with pytest.raises(clnn.Diverged, match="at step 1.*no loss was finite before"):
        kind().minimize(closure, task.net.parameters(), 5)
    for w, v in zip(good, task.weights):
        np.testing.assert_array_equal(w, v)
    task.net.load_state_dict(start)
    calls[0], optimizer = 0, kind()
    most = task.minimize(optimizer, 2).evaluations
    good, last = task.weights, float(task())
    task.net.load_state_dict(start)
    with pytest.raises(
        clnn.Diverged, match=f"at step 3.*last finite loss was {last:.6g}, and its weights are in place"
    ):
        kind().minimize(closure, task.net.parameters(), 5)
    for w, v in zip(good, task.weights):
        np.testing.assert_array_equal(w, v)


def test_a_step_too_far_is_shortened(device, kind):
    """Where the loss is not finite there, but is on the way."""
    p = parameter([3.0])
    reached = kind(**{"lr": 100.0} if kind is clnn.LBFGS else {"damping": 0.0}).minimize(
        lambda: (p * clnn.log(p)).sum(), [p], 20
    )
    assert_close(p.numpy(), [np.exp(-1)], 1e-3, f"{reached}")


def test_negative_curvature(device, kind):
    """From beside the maximum of cos, where Newton's step would climb."""
    p = parameter([0.1])
    assert kind().minimize(lambda: clnn.cos(p).sum(), [p], 40).loss < -0.9999


def test_an_exception_in_the_closure(rng, device, kind):
    task, calls = Task(rng), [0]
    before = task.weights

    def closure():
        calls[0] += 1
        if calls[0] == 2:
            raise RuntimeError("stop")
        return task()

    with pytest.raises(RuntimeError, match="stop"):
        kind().minimize(closure, task.net.parameters(), 5)
    for w, v in zip(before, task.weights):
        np.testing.assert_array_equal(w, v)
    assert task.minimize(kind(), 2).steps == 2


# -- what does not fit ------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda: clnn.LBFGS(0), "LBFGS lr"),
        (lambda: clnn.LBFGS(lr="fast"), "LBFGS lr.*'fast'"),
        (lambda: clnn.LBFGS(history=0), "LBFGS history.*1 or more, 0 was"),
        (lambda: clnn.LBFGS(history=2.5), "LBFGS history"),
        (lambda: clnn.LBFGS(tolerance_gradient=-1), "tolerance_gradient"),
        (lambda: clnn.HessianFree(damping=-1), "HessianFree damping"),
        (lambda: clnn.HessianFree(damping=np.inf), "HessianFree damping"),
        (lambda: clnn.HessianFree(iterations=0), "HessianFree iterations"),
        (lambda: clnn.HessianFree(tolerance_change=np.nan), "tolerance_change"),
    ],
)
def test_ranges(make, name):
    with pytest.raises(clnn.ConfigurationError, match=name):
        make()


def test_closures_and_parameters_that_do_not_fit(rng, device, kind):
    task = Task(rng)
    parameters = task.net.parameters()
    for closure, message in (
        (lambda: None, "one number.*None was returned"),
        (lambda: 1.5, "1.5 was returned"),
        (lambda: task.net(task.x), r"a tensor of shape \(40, 3\) was returned"),
        (lambda: clnn.tensor(3), "should return the loss"),
        (lambda: clnn.tensor(1.0), "depends on none of the trainable parameters"),
        (lambda: parameter([1.0]).sum(), "depends on none of the trainable parameters"),
    ):
        with pytest.raises(clnn.ConfigurationError, match=message):
            kind().minimize(closure, parameters, 1)
    with clnn.no_grad(), pytest.raises(clnn.ConfigurationError, match="not under no_grad"):
        kind().minimize(task, parameters, 1)
    with pytest.raises(clnn.ConfigurationError, match="steps.*1 or more, 0 was"):
        kind().minimize(task, parameters, 0)
    with pytest.raises(clnn.ConfigurationError, match=r"net.parameters\(\)"):
        kind().minimize(task, [task.x], 1)
    task.net.trainable = False
    for nothing in (parameters, []):
        with pytest.raises(clnn.ConfigurationError, match="no trainable parameter"):
            kind().minimize(task, nothing, 1)


def test_a_state_of_another_model(rng, device):
    task, optimizer = Task(rng), clnn.LBFGS()
    task.minimize(optimizer, 3)
    state = optimizer.state_dict()
    other = clnn.LBFGS()
    other.load_state_dict(state)
    quadratic = Quadratic(rng, np.float32)
    with pytest.raises(clnn.ConfigurationError, match=r"the state's 0\.s0 has the shape .*the model that"):
        other.minimize(quadratic, quadratic.parameters, 1)
    del state["arrays"]["1.y0"]
    other.load_state_dict(state)
    with pytest.raises(clnn.ConfigurationError, match=r"the state's 1\.y0 is missing"):
        task.minimize(other, 1)


@pytest.mark.parametrize("kind", [clnn.LBFGS, clnn.HessianFree])
def test_weights_that_are_cut_off_are_refused(device, rng, kind):
    net = clnn.Sequential([clnn.Dense(8, "tanh", max_norm=0.5), clnn.Dense(1)], input_shape=4, seed=0)
    x, y = clnn.tensor(rng.standard_normal((9, 4)), np.float32), clnn.tensor(rng.standard_normal((9, 1)), np.float32)
    before = [p.numpy() for p in net.parameters()]
    with pytest.raises(clnn.ConfigurationError, match="w has max_norm=0.5, which cuts weights off: train it by fit"):
        kind().minimize(lambda: clnn.losses.mse(net(x), y), net.parameters(), 3)
    assert all(np.array_equal(p.numpy(), w) for p, w in zip(net.parameters(), before))
