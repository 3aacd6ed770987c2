"""`clnn.profile`: it notes every launch of its thread with times of the device, changes no result, and leaves nothing behind."""

import json
import threading
from types import SimpleNamespace

import numpy as np
import pytest
from helpers import tells_time

import clnn
from clnn.runtime import profile as profiles
from clnn.runtime import timing
from clnn.runtime.device import Device
from clnn.runtime.profile import peaks
from clnn.runtime.recording import Recording


@pytest.fixture(autouse=True)
def with_a_clock(request, device):
    """Most of this takes a driver that says what launches take."""
    if "clock" not in request.node.name and "without" not in request.node.name and not tells_time(device):
        pytest.skip("the driver does not tell what launches take")


@pytest.fixture
def other(device):
    """A second device: the same one, opened anew."""
    return Device(device.cl_device, device.platform_index, device.device_index)


def data(n=64, features=12):
    rng = np.random.default_rng(1)
    x = rng.normal(size=(n, features)).astype(np.float32)
    return x, (x[:, 0] > 0).astype(int)


def network(seed=1, **where):
    layers = [clnn.Dense(16, "relu"), clnn.Dense(16, "relu"), clnn.Dense(2)]
    return clnn.Sequential(layers, input_shape=12, seed=seed, **where)


def train(net, epochs=3, n=64, record=True):
    x, y = data(n)
    return net.fit(
        x, y, loss="cross_entropy", optimizer=clnn.Adam(0.01), epochs=epochs, batch_size=16, seed=1, progress=False,
        record=record,
    )["loss"]  # fmt: skip


def close(device):
    """No profile has left anything: the queue times nothing, and the thread notes nothing."""
    assert not timing.active.profiles and not device.timers
    assert not device.queue.properties & timing.PROFILED


def test_a_step_s_launches_each_have_a_row(device):
    """Those of the eager call, of the two recorded ones and of replays are the same rows."""
    net, optimizer = network(), clnn.SGD(0.1)

    @clnn.step
    def step(x, y):
        loss = clnn.losses.cross_entropy(net(x), y)
        loss.backward()
        optimizer.step(net.parameters())
        return loss

    x, y = data(16)
    step(x, y)
    with clnn.profile(peak=100.0) as p:
        for _ in range(6):
            step(x, y)
        (labels,) = step.replays.launches() or [[]]
    kernels = [row for row in p.rows if row.launch in labels]
    assert labels and sorted(row.launch for row in kernels) == sorted(labels)
    for row in kernels:
        assert row.device is device and row.runs == 6 and row.bytes > 0 and row.launch.partition("{")[0] in str(p)
        assert 0 <= row.minimum <= row.median and 6 * row.minimum <= row.total * (1 + 1e-9)
    products = [row for row in kernels if row.flops]
    wanted = [2 * 16 * k * n for k, n in ((12, 16), (16, 16), (16, 2))]
    wanted += wanted + wanted[1:]  # forward, of the weights, of the inputs but the first
    assert sorted(row.flops for row in products) == sorted(wanted)
    for row in products:
        assert row.gflops == pytest.approx(row.flops / row.median * 1e-9)
        assert row.share == pytest.approx(row.gflops / 100)
    close(device)


@pytest.mark.parametrize("record", [True, False])
def test_it_changes_no_result(device, record):
    want = train(network(), record=record)
    with clnn.profile() as p:
        assert train(network(), record=record) == want
    assert sum(row.runs for row in p.rows if row.flops) == 12 * 8  # steps, and products of each
    assert train(network(), record=record) == want
    close(device)


def test_a_fit_goes_on_within_and_after(device):
    """Its recordings were bound to another queue before."""
    net, same = network(), network()
    x, y = data()
    options = {"loss": "cross_entropy", "epochs": 2, "batch_size": 16, "seed": 1, "progress": False}
    net_optimizer, same_optimizer = clnn.Adam(0.01), clnn.Adam(0.01)
    for profiled in (False, True, False, True):
        same.fit(x, y, optimizer=same_optimizer, **options)
        if profiled:
            with clnn.profile() as p:
                net.fit(x, y, optimizer=net_optimizer, **options)
            assert sum(row.runs for row in p.rows if row.flops) == 8 * 8
        else:
            net.fit(x, y, optimizer=net_optimizer, **options)
        np.testing.assert_array_equal(net.predict(x), same.predict(x))
    close(device)


def test_steps_that_are_fused_run_launch_by_launch(device, monkeypatch):
    """Where they are fused at all; the results are the same bits, and the next replay is fused again."""
    monkeypatch.setattr("clnn.runtime.fusion.COMPILING", 0.0)
    monkeypatch.setattr("clnn.runtime.fusion.PART_OF_IT", 0.0)
    monkeypatch.setattr("clnn.runtime.fusing.TIMED", 1)
    net, same = network(), network()
    x, y = data()
    options = {"loss": "cross_entropy", "epochs": 8, "batch_size": 16, "seed": 1, "progress": False}
    a, b = clnn.SGD(0.1), clnn.SGD(0.1)
    for one, optimizer in ((net, a), (same, b)):
        one.fit(x, y, optimizer=optimizer, **options)
    with clnn.profile() as p:
        net.fit(x, y, optimizer=a, **options)
    same.fit(x, y, optimizer=b, **options)
    assert sum(row.runs for row in p.rows if row.flops) == 32 * 8
    np.testing.assert_array_equal(net.predict(x), same.predict(x))


def test_eager_code_copies_and_transfers(device):
    with clnn.profile(peak=1.0) as p:
        x = clnn.tensor(np.ones((30, 20), np.float32))
        for _ in range(3):
            y = x @ x.T + 1.0
        values = y.numpy()
    rows = {row.launch.partition("{")[0]: row for row in p.rows}
    assert (values == 21).all()
    assert rows["upload"].bytes == 2400 and rows["upload"].size is None
    assert rows["read"].bytes == 3600 and rows["read"].runs == 1
    (product,) = (row for row in p.rows if row.flops)
    assert product.flops == 2 * 30 * 30 * 20 and product.runs == 3
    assert product.bytes >= 2400 + 3600
    close(device)


def test_convolutions_say_what_they_multiply(device):
    net = clnn.Sequential([clnn.Conv2D(4, 3, "relu", bias=False), clnn.Flatten(), clnn.Dense(2)], input_shape=(3, 8, 8))
    x = np.ones((5, 3, 8, 8), np.float32)
    with clnn.profile(peak=1.0) as p:
        net.fit(
            x, np.array([0, 1, 1, 0, 1]), loss="cross_entropy", optimizer="sgd", epochs=1, batch_size=5, progress=False
        )
    found = [row.flops for row in p.rows if row.flops]
    assert found.count(2 * 5 * 4 * 36 * 27) >= 2, found  # forward and the weights' gradient


def test_the_peak_is_measured_once_and_is_no_launch_of_the_profile(device, monkeypatch):
    asked = []
    monkeypatch.setattr(
        profiles, "peak_gflops", lambda *what: asked.append(what) or (device.fill_zero(x.block), 50.0)[1]
    )
    with clnn.profile() as p:
        x = clnn.ones((4, 4))
        x @ x
        before = [row.runs for row in p.rows]
        assert [row.runs for row in p.rows] == before and asked[0] == (device, "float")
    assert [row.share for row in p.rows if row.flops] == [pytest.approx(row.gflops / 50) for row in p.rows if row.flops]


def test_a_peak_is_no_waiting_for_a_core(device, monkeypatch):
    """Each turn waits 50 ms for a core that others have, and a call takes 10 us."""
    now = [0.0]
    monkeypatch.setattr(peaks, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    waited = peaks.Peaks(device)._rate(lambda count: now.append(now.pop() + 0.05 + 1e-5 * count))
    assert 5e4 < waited < 1e5
    steady = peaks.Peaks(device)._rate(lambda count: now.append(now.pop() + 0.3 * count))
    assert steady == pytest.approx(1 / 0.3)


def test_a_measured_peak_is_a_speed(device):
    with clnn.profile() as p:
        x = clnn.ones((64, 64))
        x @ x
    (row,) = (row for row in p.rows if row.flops)
    assert row.share is not None and 0 < row.share < 2
    assert profiles.peak_gflops(device) == profiles.peak_gflops(device)


def test_nested_and_twice(device):
    inner = clnn.profile()
    with clnn.profile() as outer:
        clnn.ones((3,)) + 1.0
        for _ in range(2):
            with inner as same:
                assert same is inner
                clnn.ones((5,)) * 2.0
            with pytest.raises(clnn.ConfigurationError, match="open already"), outer:
                pass
        clnn.ones((3,)) + 1.0

    def counts(p):
        return {row.launch.partition("{")[0]: row.runs for row in p.rows if "binary" in row.launch}

    assert list(counts(inner).values()) == [2] and sum(row.runs for row in outer.rows if "binary" in row.launch) == 4
    close(device)


def test_an_exception_passes_and_closes(device):
    p = clnn.profile()
    with pytest.raises(ZeroDivisionError), p, clnn.profile():
        clnn.ones((3,)) + 1.0
        1 / 0  # noqa: B018
    assert p.rows
    close(device)
    assert train(network()) == train(network())


def test_a_device_s_loops_are_counted_outside(device, monkeypatch):
    """Where no self-test has said how many turns they take, the first launch finds that out."""
    monkeypatch.setenv("CLNN_SELF_TEST", "0")
    device = clnn.Device(device.cl_device, device.platform_index, device.device_index)
    with clnn.use(device), clnn.profile() as p:
        clnn.ones((7, 3)).sum()
    assert "elementwise" in str(p) and "selftest" not in str(p)


def test_a_step_that_fails_under_it(device):
    net = network()
    with pytest.raises(clnn.ShapeError), clnn.profile() as p:
        net(np.ones((3, 12), np.float32))
        net(np.ones((3, 13), np.float32))
    assert p.rows
    close(device)


def test_each_thread_notes_its_own(device):
    """Threads share the queue, one of them with a profile; recordings of the other go on meanwhile."""
    want, got, errors = train(network(), epochs=6), {}, []

    def work(name, profiled):
        try:
            with clnn.use(device):
                if profiled:
                    with clnn.profile() as p:
                        got[name] = train(network(), epochs=6), sum(row.runs for row in p.rows if row.flops)
                else:
                    got[name] = train(network(), epochs=6), None
        except Exception as error:  # noqa: BLE001
            errors.append(error)

    threads = [threading.Thread(target=work, args=(i, i % 2 == 0)) for i in range(4)]
    with clnn.profile() as mine:
        for one in threads:
            one.start()
        for one in threads:
            one.join()
    assert not errors and not mine.rows
    assert got == {0: (want, 24 * 8), 1: (want, None), 2: (want, 24 * 8), 3: (want, None)}
    close(device)


def test_another_thread_does_not_close_it(device):
    p, said = clnn.profile(), []

    def close_it():
        try:
            p.__exit__(None, None, None)
        except clnn.ConfigurationError as error:
            said.append(str(error))

    with p:
        thread = threading.Thread(target=close_it)
        thread.start()
        thread.join()
        clnn.ones((3,)) + 1.0
    assert len(said) == 1 and "who opens one has to close it" in said[0] and p.rows
    close(device)


def test_two_devices(device, other, tmp_path):
    with clnn.profile() as p:
        train(network())
        with clnn.use(other):
            train(network())
    close(device)
    close(other)
    for one in (device, other):
        assert sum(row.runs for row in p.rows if row.flops and row.device is one) == 12 * 8
    assert p.table().count("launches, ") == 2
    p.save(tmp_path / "trace.json")
    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    assert {event["pid"] for event in events} == {0, 1}


def test_a_trace_has_every_launch_in_order(device, tmp_path):
    with clnn.profile() as p:
        train(network())
    p.save(str(tmp_path / "folder" / "trace.json"))
    first, *events = json.loads((tmp_path / "folder" / "trace.json").read_text())["traceEvents"]
    assert first["ph"] == "M" and first["args"]["name"].startswith(device.name) and first["args"]["clock_ns"] >= 0
    assert len(events) == sum(row.runs for row in p.rows)
    assert events[0]["ts"] == 0 and all(event["ph"] == "X" and event["dur"] >= 0 for event in events)
    for one, after in zip(events, events[1:]):  # one queue, in order
        assert one["ts"] <= after["ts"]
    for row in p.rows:
        spent = [event["dur"] for event in events if event["args"]["launch"] == row.launch]
        assert sum(spent) * 1e-6 >= row.total * (1 - 1e-6)


def test_nothing_launched(device, tmp_path):
    with clnn.profile() as p:
        pass
    assert str(p) == "no launches" and p.rows == []
    p.save(tmp_path / "trace.json")
    assert json.loads((tmp_path / "trace.json").read_text())["traceEvents"] == []


def test_many_launches_keep_no_events(device, monkeypatch):
    monkeypatch.setattr(profiles, "MOST_PENDING", 5)
    with clnn.profile() as p:
        x = clnn.ones((7,))
        for _ in range(23):
            x = x + 1.0
            assert len(p._pending) < 5
    assert max(row.runs for row in p.rows) == 23


@pytest.mark.parametrize("peak", [0, -1.0, float("nan"), "fast", True])
def test_a_peak_is_a_number_above_0(peak):
    with pytest.raises(clnn.ConfigurationError, match="peak"):
        clnn.profile(peak)


def test_a_driver_without_times_is_an_error(device, monkeypatch):
    """Its queue times nothing; or, as that of llvmpipe, a nanosecond whatever it runs."""
    monkeypatch.setattr(peaks, "_known", {})
    for told in (0.0, 1e-7):
        monkeypatch.setattr(peaks, "_told", lambda device, told=told: told)
        for _ in range(2):
            with pytest.raises(clnn.DeviceError, match="does not tell what launches take"), clnn.profile():
                clnn.ones((3,)) + 1.0
            close(device)
        peaks._known.clear()
    assert train(network()) == train(network())


def test_the_clock_is_judged_by_the_host_s(device, monkeypatch):
    monkeypatch.setattr(peaks, "PROFILED", 0)
    assert peaks._told(device) < 1e-6  # llvmpipe's times its queues anyhow
    monkeypatch.undo()
    if tells_time(device):
        assert peaks._told(device) > 0.3


def test_without_a_profile_nothing_is_bound_anew(device, monkeypatch):
    net = network()
    train(net)
    bound = []
    bind = Recording._bind
    monkeypatch.setattr(Recording, "_bind", lambda self: bound.append(self) or bind(self))
    x, _ = data()
    for _ in range(8):
        net.predict(x)
    before = len(bound)
    for _ in range(8):
        net.predict(x)
    assert len(bound) == before


@pytest.mark.parametrize("value", ["1", "0", ""])
def test_debug_prints_each_recording_once(device, monkeypatch, capfd, value):
    monkeypatch.setenv("CLNN_DEBUG", value)
    net = network()

    @clnn.step
    def ahead(x):
        return net(x).sum()

    x, _ = data(16)
    for _ in range(6):
        ahead(x)
    said = capfd.readouterr().err
    assert said.count("ahead") == (value == "1") and ("gemm" in said) == (value == "1")
    for _ in range(6):
        ahead(x[:5])
    assert capfd.readouterr().err.count("ahead") == (value == "1")
    close(device)


def test_debug_takes_1_or_0(device, monkeypatch):
    monkeypatch.setenv("CLNN_DEBUG", "yes")
    with pytest.raises(clnn.ConfigurationError, match="CLNN_DEBUG"):
        train(network())
