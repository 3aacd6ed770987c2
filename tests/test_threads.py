"""Threads that share a device, a model or a step: each gets the answer that it would get alone."""

import contextlib
import copy
import gc
import http.client
import http.server
import json
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import pytest
from helpers import normal, parameter

import clnn
from clnn.runtime import device as runtime

THREADS = 4


def together(*works):
    """Run functions in a thread each, all started at once, and give back what they return."""
    start = threading.Barrier(len(works))

    def run(work):
        start.wait()
        return work()

    with ThreadPoolExecutor(len(works)) as pool:
        return [one.result(timeout=120) for one in [pool.submit(run, work) for work in works]]


def network(seed=1, outputs=3):
    return clnn.Sequential([clnn.Dense(16, "tanh"), clnn.Dense(outputs)], input_shape=8, seed=seed)


def answers(net, xs, times=30):
    """Whether all predictions are those of the first, alone."""

    def work():
        return [net.predict(xs[i % len(xs)]) for i in range(times)]

    return work


def wrong(got, expected):
    return sum(not np.array_equal(y, expected[i % len(expected)]) for i, y in enumerate(got))


@pytest.fixture
def inputs(device, rng):
    return [normal(rng, (n, 8)).astype(np.float32) for n in (1, 1, 5, 5, 600)]


def test_predictions_with_one_model(inputs):
    net = network()
    expected = [net.predict(x) for x in inputs]
    for got in together(*[answers(net, inputs)] * THREADS):
        assert wrong(got, expected) == 0


def test_predictions_with_a_model_each(inputs):
    nets = [network(seed) for seed in range(THREADS)]
    for net, got in zip(nets, together(*[answers(net, inputs) for net in nets])):
        assert wrong(got, [net.predict(x) for x in inputs]) == 0


def test_a_model_is_built_and_compiled_by_whoever_comes_first(inputs):
    net = clnn.Sequential([clnn.Dense(7, "gelu"), clnn.Residual([clnn.Dense(7, "mish")]), clnn.Dense(2)], input_shape=8)
    got = together(*[answers(net, inputs, 5)] * THREADS)
    for one in got:
        assert wrong(one, [net.predict(x) for x in inputs]) == 0


def test_evaluations(device, rng):
    net = network()
    x, y = normal(rng, (700, 8)).astype(np.float32), rng.integers(0, 3, 700)
    expected = net.evaluate(x, y, loss="cross_entropy")
    found = together(*[lambda: [net.evaluate(x, y, loss="cross_entropy") for _ in range(10)]] * THREADS)
    assert all(one == expected for part in found for one in part)


def trained(seed, x, y, **options):
    net = network(seed)
    net.fit(x, y, loss="cross_entropy", optimizer=clnn.Adam(0.01), batch_size=10, seed=seed, progress=False, **options)
    return net.state_dict()


def same(a, b):
    return all(np.array_equal(a[name], b[name]) for name in a)


def test_fits_in_two_threads(device, rng):
    x, y = normal(rng, (205, 8)).astype(np.float32), rng.integers(0, 3, 205)
    alone = [trained(seed, x, y, epochs=5) for seed in (1, 2)]
    found = together(lambda: trained(1, x, y, epochs=5), lambda: trained(2, x, y, epochs=5))
    assert all(same(a, b) for a, b in zip(alone, found))


@pytest.mark.parametrize("record", [True, False])
def test_fits_with_a_seed_draw_from_generators_of_their_own(device, rng, record):
    """In threads, and one within a callback of the other."""
    x, y = normal(rng, (45, 8)).astype(np.float32), rng.integers(0, 3, 45)

    class Another(clnn.Callback):
        def on_epoch_end(self, model, epoch, logs):
            drop(3)

    def drop(seed, **options):
        net = clnn.Sequential([clnn.Dense(16, "relu"), clnn.Dropout(0.5), clnn.Dense(3)], input_shape=8, seed=seed)
        options = {
            "optimizer": clnn.SGD(0.1),
            "epochs": 4,
            "batch_size": 10,
            "progress": False,
            "record": record,
            **options,
        }
        net.fit(x, y, loss="cross_entropy", seed=seed, **options)
        return net.state_dict()

    alone = [drop(seed) for seed in (1, 2)]
    for _ in range(3):
        assert all(same(a, b) for a, b in zip(alone, together(lambda: drop(1), lambda: drop(2))))
    assert same(alone[0], drop(1, callbacks=[Another()]))


def test_a_fit_beside_predictions(inputs, rng):
    x, y = normal(rng, (205, 8)).astype(np.float32), rng.integers(0, 3, 205)
    alone, served = trained(1, x, y, epochs=10), network(5)
    expected = [served.predict(x) for x in inputs]
    weights, *found = together(lambda: trained(1, x, y, epochs=10), answers(served, inputs), answers(served, inputs))
    assert same(alone, weights)
    assert sum(wrong(got, expected) for got in found) == 0


def test_predictions_of_the_model_that_is_trained(inputs, rng):
    """Each is that of the weights after some step, here always the same: the rate is 0."""
    x, y = normal(rng, (205, 8)).astype(np.float32), rng.integers(0, 3, 205)
    net = network()
    expected = [net.predict(x) for x in inputs]
    options = {"loss": "cross_entropy", "optimizer": clnn.SGD(0.0, momentum=0.9), "batch_size": 10, "progress": False}
    _, *found = together(lambda: net.fit(x, y, epochs=10, **options), answers(net, inputs), answers(net, inputs))
    assert sum(wrong(got, expected) for got in found) == 0


@pytest.mark.parametrize(
    "optimizer", [clnn.SGD, partial(clnn.SGD, momentum=0.9), clnn.Adam], ids=["sgd", "momentum", "adam"]
)
@pytest.mark.parametrize("look", ["predict", "evaluate", "call", "backward", "thread"])
def test_a_fit_is_recorded_whoever_uses_the_model_between_its_steps(device, rng, optimizer, look, recwarn):
    """With SGD its recording was dropped, and gradients from elsewhere were added."""
    x, y = normal(rng, (40, 5, 8)).astype(np.float32), rng.integers(0, 3, (40, 5))

    def fitted(looks):
        net = network()

        def see(n):  # a batch of another size runs the model's Python
            rows, classes = x[0, :1].repeat(n, 0), y[0, :1].repeat(n)
            if look == "evaluate":
                net.evaluate(rows, classes, loss="cross_entropy", batch_size=n)
            elif look in ("call", "backward"):
                loss = (net(rows) ** 2).sum()
                loss.backward() if look == "backward" else loss.item()
            else:
                net.predict(rows, batch_size=n)

        def batches():
            for i, batch in enumerate(zip(x, y)):
                if looks:
                    together(partial(see, i + 1)) if look == "thread" else see(i + 1)
                yield batch

        net.fit(batches(), loss="cross_entropy", optimizer=optimizer(0.1), steps_per_epoch=40, progress=False)
        return net.state_dict()

    assert same(fitted(False), fitted(True))
    assert not [one for one in recwarn if issubclass(one.category, clnn.RecordingWarning)]


def test_whole_steps_are_seen(device):
    """Both layers move together: a prediction between the two halves of a step would show."""
    net = clnn.Sequential([clnn.Dense(1, bias=False)], input_shape=2)
    net.load_state_dict({name: np.zeros_like(value) for name, value in net.state_dict().items()})
    x, y = np.ones((40, 2), np.float32), np.ones((40, 1), np.float32)
    stop = threading.Event()

    def look():
        seen = []
        while not stop.is_set():
            seen.append(net.state_dict())
        return seen

    def fit():
        try:
            net.fit(x, y, loss="mse", optimizer=clnn.SGD(1e-4), epochs=30, batch_size=2, progress=False)
        finally:
            stop.set()

    _, seen = together(fit, look)
    for state in seen:
        (w,) = state.values()
        assert w[0] == w[1]


@pytest.mark.parametrize("look", ["copies", "optimizer"])
def test_copies_and_states_are_those_of_one_step(device, look):
    """Two layers with the same weights that get the same gradients: whatever is taken from them is the same."""
    layers = [clnn.Dense(1, bias=False), clnn.Dense(1, bias=False)]
    net = clnn.Sequential([Both(layers)], input_shape=2)
    net.load_state_dict({name: np.zeros_like(value) for name, value in net.state_dict().items()})
    x, y, optimizer, stop = (
        np.ones((40, 2), np.float32),
        np.ones((40, 1), np.float32),
        clnn.Adam(1e-3),
        threading.Event(),
    )

    def fit():
        try:
            net.fit(x, y, loss="mse", optimizer=optimizer, epochs=30, batch_size=2, progress=False)
        finally:
            stop.set()

    def take():
        seen = []
        while not stop.is_set():
            if look == "copies":
                seen.append(list(copy.deepcopy(net).state_dict().values()))
            else:
                arrays = optimizer.state_dict()["arrays"]
                seen += [[array for key, array in arrays.items() if key.endswith(end)] for end in (".0", ".1")]
        return seen

    _, seen = together(fit, take)
    for arrays in seen:
        assert all(np.array_equal(array, arrays[0]) for array in arrays)


def test_a_state_that_the_first_step_overtakes_is_taken_again(device, monkeypatch):
    """Before it there is nothing to lock."""
    net, optimizer, taken = network(), clnn.Adam(1e-3), []
    take = clnn.Optimizer._state_dict

    def overtaken(self, named):
        found = take(self, named)
        if not taken:
            net.fit(np.ones((4, 8), np.float32), np.zeros(4, int), loss="cross_entropy", optimizer=self, epochs=1)
        taken.append(found)
        return found

    monkeypatch.setattr(clnn.Optimizer, "_state_dict", overtaken)
    state = optimizer.state_dict()
    assert len(taken) == 2 and state["steps"] == 1 and all(np.isfinite(one).all() for one in state["arrays"].values())


class Both(clnn.Layer):
    def __init__(self, layers):
        self.layers = layers

    def forward(self, x):
        return self.layers[0](x) + self.layers[1](x)


def test_one_optimizer_for_two_models_in_two_threads(device, rng):
    x, y = normal(rng, (105, 8)).astype(np.float32), rng.integers(0, 3, 105)
    optimizer, alone, nets = (
        clnn.Adam(0.01),
        [trained(seed, x, y, epochs=4) for seed in (1, 2)],
        [network(1), network(2)],
    )

    def fit(seed):
        options = {"optimizer": optimizer, "epochs": 4, "batch_size": 10, "seed": seed, "progress": False}
        nets[seed - 1].fit(x, y, loss="cross_entropy", **options)

    together(lambda: fit(1), lambda: fit(2))
    assert all(same(a, net.state_dict()) for a, net in zip(alone, nets))


def test_eager_operations_beside_recorded_steps(device, rng):
    """What one thread computes eagerly is no part of what another is recording."""
    a = normal(rng, (30, 20)).astype(np.float32)

    def eager():
        for _ in range(40):
            t = clnn.tensor(a)
            y = (t @ clnn.tensor(a.T.copy())).sum(1) + clnn.tanh(t).sum(1) * 2.0
            np.testing.assert_allclose(y.numpy(), a @ a.T @ np.ones(30) + 2 * np.tanh(a).sum(1), rtol=2e-4, atol=2e-4)

    def recorded():
        w = parameter(np.ones(20))
        optimizer = clnn.SGD(0.125)

        @clnn.step
        def train(x):
            loss = (w * x).sum()
            loss.backward()
            optimizer.step([w])
            return loss

        losses = [float(train(np.ones(20, np.float32))) for _ in range(40)]
        np.testing.assert_array_equal(losses, [20 - 2.5 * i for i in range(40)])

    together(eager, recorded, eager, recorded)


def test_one_step_from_many_threads(device):
    @clnn.step
    def doubled(x):
        return x * 2.0

    def work(k):
        return lambda: [doubled(np.full(5, k + i, np.float32)).numpy() for i in range(40)]

    for k, got in enumerate(together(*map(work, range(0, 400, 100)))):
        np.testing.assert_array_equal(got, np.repeat(2.0 * (100 * k + np.arange(40)), 5).reshape(40, 5))


def test_drawing_from_a_generator_is_the_threads_own(device):
    from clnn.ops.random import Generator
    from clnn.random import drawing_from, generator

    mine = Generator(device, 7)
    inside, outside = threading.Event(), threading.Event()

    def draw():
        with drawing_from(mine):
            inside.set()
            assert outside.wait(60)
            return generator(device)

    def other():
        assert inside.wait(60)
        try:
            return generator(device)
        finally:
            outside.set()

    first, second = together(draw, other)
    assert first is mine and second is not mine


def test_two_devices(device, rng):
    other = opened_again(device)
    x = normal(rng, (5, 8)).astype(np.float32)
    nets = []
    for one in (device, other):
        with clnn.use(one):
            nets.append(network())
    expected = nets[0].predict(x)

    def work(net):
        return lambda: [net.predict(x) for _ in range(20)]

    for got in together(*map(work, nets * 2)):
        assert wrong(got, [expected]) == 0


def opened_again(device):
    """The same device as another one."""
    return runtime.Device(device.cl_device, device.platform_index, device.device_index)


@pytest.mark.parametrize("kind", ["steps", "predictions"])
def test_two_that_would_wait_for_each_other_for_ever(device, kind):
    """One ends in an error, the other in its result; afterwards both work."""
    devices, inside = (device, opened_again(device)), threading.Barrier(2)
    kept = [clnn.tensor(np.full(3, k + 1, np.float32), device=one) for k, one in enumerate(devices)]
    x = np.ones(2, np.float32)

    def body(x, other):
        y = x * 2.0
        with contextlib.suppress(threading.BrokenBarrierError):
            inside.wait(20)
        return y * float(other.sum())

    class Reads(clnn.Layer):
        def __init__(self, other):
            self.other = other

        def forward(self, x):
            return body(x, self.other)

    def work(one, other):
        if kind == "steps":
            step, given = clnn.step(lambda x: body(x, other), record=False), clnn.tensor(x, device=one)
            return lambda: step(given).numpy()
        with clnn.use(one):
            net = clnn.Sequential([Reads(other)], input_shape=2)
        return lambda: net.predict(x[None])[0]

    def outcome(run):
        try:
            return run().tolist()
        except clnn.DeviceError as error:
            return str(error)

    works = [work(devices[k], kept[1 - k]) for k in (0, 1)]
    inside.abort()
    alone = [run().tolist() for run in works]
    assert alone == [[12.0, 12.0], [6.0, 6.0]]
    inside.reset()
    found = together(*[lambda run=run: outcome(run) for run in works])
    failed = [one for one in found if isinstance(one, str)]
    assert len(failed) == 1 and "both would wait for ever" in failed[0]
    assert [one for one in found if one not in failed][0] in alone
    inside.abort()
    assert [run().tolist() for run in works] == alone


def test_a_step_that_runs_another_devices_step_is_not_recorded(device):
    """That one has no arguments, and is replayed."""
    other = opened_again(device)
    w, optimizer = clnn.tensor(np.zeros(2, np.float32), device=other, requires_grad=True), clnn.SGD(0.5)

    @clnn.step
    def train():
        (w * 1.0).sum().backward()
        optimizer.step([w])

    def beside():
        with clnn.use(other):
            train()

    @clnn.step
    def doubled(x):
        beside()
        return x * 2.0

    for _ in range(5):
        beside()
    with pytest.warns(clnn.RecordingWarning, match="uses <Device.*whose work is not recorded"):
        for _ in range(9):
            doubled(clnn.tensor(np.ones(1, np.float32), device=device))
    assert w.numpy().tolist() == [-7.0, -7.0]


@pytest.mark.parametrize("inner", ["eager", "step", "prediction"])
def test_a_step_that_uses_another_device_is_not_recorded(device, inner):
    """What happens there is in no recording: a replay would have the first values for ever."""
    other, x = opened_again(device), np.ones((1, 3), np.float32)
    with clnn.use(other):
        net = clnn.Sequential([clnn.Dense(1, bias=False)], input_shape=3)
        recorded, given = clnn.step(lambda x: net(x)), clnn.tensor(x)
    beside = {"eager": lambda: net(given), "step": lambda: recorded(given), "prediction": lambda: net.predict(x)}[inner]

    @clnn.step
    def scaled(x):
        with clnn.no_grad():
            return x * float(beside().sum())

    found = []
    with pytest.warns(clnn.RecordingWarning, match="uses <Device.*whose work is not recorded"):
        for call in range(11):
            net.load_state_dict({"0.w": np.full((3, 1), 1.0 + call // 6)})
            found.append(float(scaled(clnn.tensor(np.ones(1, np.float32), device=device))))
    assert found == [3.0] * 6 + [6.0] * 5


def test_memory_is_counted_whoever_lets_it_go(device):
    gc.collect()
    before = device.memory_in_use
    kept = []

    def work():
        for _ in range(300):
            kept.append([clnn.tensor(np.ones(100, np.float32)), kept])  # in a cycle: the collector frees it, anywhere
            if len(kept) > 20:
                kept.clear()
                gc.collect(0)

    together(*[work] * THREADS)
    kept.clear()
    gc.collect()
    assert device.memory_in_use == before


def test_a_thread_that_comes_back_at_once_lets_others_in(device):
    """A loop that takes the lock again and again, as fit does, leaves it to whoever waits."""
    stop, turns = threading.Event(), []

    def greedy():
        while not stop.is_set():
            with device.lock, device.lock:
                time.sleep(0.001)

    def patient():
        for _ in range(50):
            with device.lock:
                turns.append(1)
        stop.set()

    began = time.monotonic()
    together(greedy, patient)
    assert len(turns) == 50 and time.monotonic() - began < 30


def test_a_web_server_answers_while_another_thread_trains(device, rng):
    served = network(3)
    x, y = normal(rng, (205, 8)).astype(np.float32), rng.integers(0, 3, 205)
    expected, alone, stop = served.predict(x), trained(1, x, y, epochs=1), threading.Event()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            rows = np.array(json.loads(self.rfile.read(int(self.headers["Content-Length"]))), np.float32)
            answer = json.dumps(served.predict(rows).tolist()).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_):
            pass

    def ask(server, first):
        found = []
        for i in range(first, first + 8):
            connection = http.client.HTTPConnection(*server.server_address, timeout=60)
            connection.request("POST", "/", json.dumps(x[i : i + 1].tolist()))
            found.append((i, json.loads(connection.getresponse().read())))
            connection.close()
        return found

    def train():
        found = []
        while not stop.is_set():
            found.append(trained(1, x, y, epochs=1))
        return found

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server, ThreadPoolExecutor(6) as pool:
        serving, training = pool.submit(server.serve_forever), pool.submit(train)
        try:
            asked = [pool.submit(ask, server, 8 * k) for k in range(4)]
            found = [one for part in asked for one in part.result(timeout=120)]
        finally:
            stop.set()
            server.shutdown()
        weights = training.result(timeout=120)
        serving.result(timeout=60)
    for i, answer in found:
        np.testing.assert_allclose(np.float32(answer)[0], expected[i], rtol=1e-5, atol=1e-6)
    assert weights and all(same(alone, one) for one in weights)


def test_a_daemon_thread_that_trains_lets_the_process_end():
    """It was aborted most of the times, by C++'s terminate."""
    code = """
import threading, time, numpy as np, clnn
begun = threading.Event()
def train():
    net = clnn.Sequential([clnn.Dense(256, "relu"), clnn.Dense(3)], input_shape=64)
    seen = clnn.Lambda(on_epoch_end=lambda *_: begun.set())
    how = {"loss": "cross_entropy", "optimizer": "sgd", "epochs": 10**6, "batch_size": 1000, "progress": False}
    net.fit(np.ones((2000, 64)), np.zeros(2000, int), callbacks=[seen], **how)
threading.Thread(target=train, daemon=True).start()
begun.wait()
time.sleep(0.3)  # so that it is in the middle of a step
print("ended")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (0, "ended\n", "")
