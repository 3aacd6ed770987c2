"""Record and replay: each promise of the design that a naive recording would break silently."""

import gc
import io
import os
import signal
import subprocess
import sys
import textwrap
import time
import warnings
import weakref

import numpy as np
import pytest

import clnn
from clnn.runtime import fusion, recording


def replays(step):
    """The finished recordings of a step."""
    return step.replays.launches()


def little_net(device, momentum=0.0, seed=3, **options):
    with clnn.use(device):
        net = clnn.Sequential([clnn.Dense(5, "tanh"), clnn.Dense(3)], input_shape=4, seed=seed)
    return net, clnn.SGD(0.1, momentum=momentum, **options)


def train_step(net, optimizer, record=True):
    @clnn.step(record=record)
    def train(x, y):
        loss = clnn.losses.cross_entropy(net(x), y)
        loss.backward()
        optimizer.step(net.parameters())
        return loss

    return train


def batches(rng, count, rows=6):
    return [
        (rng.standard_normal((rows, 4)).astype(np.float32), rng.integers(0, 3, rows).astype(np.int32))
        for _ in range(count)
    ]


def weights(net):
    return np.concatenate([p.numpy().ravel() for p in net.parameters()])


def test_the_third_call_is_compared_and_later_ones_replayed(device, rng):
    net, optimizer = little_net(device)
    train = train_step(net, optimizer)
    ran = []
    inner = train.function
    train.function = lambda x, y: (ran.append(1), inner(x, y))[1]
    for x, y in batches(rng, 10):
        train(x, y)
    assert len(replays(train)) == 1
    assert 3 <= len(ran) <= 4  # one more where the first call moved the parameters into their store
    assert len(replays(train)[0]) < 15


@pytest.mark.parametrize("make", [lambda y: y, clnn.tensor], ids=["array", "tensor"])
@pytest.mark.parametrize("bad", [3, -1, 2**30])
def test_labels_of_no_class_are_an_error_before_a_replay(device, rng, make, bad):
    """Nothing is lost, and what was looked at is not looked at again."""
    net, optimizer = little_net(device)
    train = train_step(net, optimizer)
    x, y = rng.standard_normal((6, 4)).astype(np.float32), make(rng.integers(0, 3, 6))
    wrong = np.array(y)
    wrong[3] = bad
    wrong = make(wrong)
    for _ in range(5):
        train(x, y)
    before = weights(net)
    for _ in range(3):
        with pytest.raises(clnn.DataError, match=rf"an argument of the step\[3\] is {bad}, outside 0 to 2"):
            train(x, wrong)
        np.testing.assert_array_equal(weights(net), before)
    assert np.isfinite(float(train(x, y)))
    if make is clnn.tensor:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(clnn.Tensor, "numpy", None)
            train(x, y)


@pytest.mark.parametrize("record", [True, False])
def test_numpy_s_floats_become_what_the_step_s_layers_are(device, dtype, record):
    """A float64 network gets all of their digits, as it does outside of a step."""
    net = clnn.Sequential([clnn.Dense(1, bias=False)], input_shape=1, seed=0, dtype=dtype)
    run = clnn.step(lambda x, y: (net(x), clnn.losses.mse(net(x), y)), record=record)
    for n in range(1, 6):
        x = np.array([[1 + 1e-10 * n]])
        y, loss = run(x, np.float64(2) * x)
        assert y.dtype == loss.dtype == dtype
        np.testing.assert_array_equal(y.numpy(), net.predict(x))
        np.testing.assert_array_equal(loss.numpy(), clnn.losses.mse(net(x), 2 * x).numpy())
    mixed = clnn.step(lambda x: x * 1.0)  # no layers
    assert mixed(np.ones(2)).dtype == np.float32


@pytest.mark.platform
@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("engine", ["tile", "clblast"])
def test_replayed_and_eager_steps_give_the_same_bits(device, rng, momentum, engine, monkeypatch):
    if engine == "clblast":
        pytest.importorskip("pyclblast")
    monkeypatch.setenv("CLNN_GEMM", engine)
    data = batches(rng, 12)
    found = []
    for record in (True, False):
        net, optimizer = little_net(device, momentum)
        train = train_step(net, optimizer, record)
        losses = [train(x, y) for x, y in data]
        assert bool(replays(train)) == record
        found.append((weights(net), np.array([float(v) for v in losses])))
    assert np.array_equal(found[0][0], found[1][0])
    assert np.array_equal(found[0][1], found[1][1])


def test_results_are_copied_out(device, rng):
    net, optimizer = little_net(device)
    train = train_step(net, optimizer)
    kept = [train(x, y) for x, y in batches(rng, 9)]
    before = [float(v) for v in kept]
    for x, y in batches(rng, 4):
        train(x, y)
    assert [float(v) for v in kept] == before
    assert len(set(before)) == len(before)


def test_results_never_alias_an_input(device):
    with clnn.use(device):
        for function in (lambda x: x, lambda x: (x.reshape(2, 2), {"a": x})):
            run = clnn.step(function)
            kept = [run(np.full(4, i, np.float32)) for i in range(6)]
            for i, result in enumerate(kept):
                found = result if isinstance(result, clnn.Tensor) else result[0]
                assert np.all(found.numpy() == i)
                assert isinstance(result, clnn.Tensor) or np.all(result[1]["a"].numpy() == i)


@pytest.mark.parametrize("record", [True, False])
@pytest.mark.parametrize("keep", [lambda x: x, lambda x: x.reshape(4), lambda x: x.detach()])
def test_arguments_that_the_function_keeps_stay_as_they_are(device, keep, record):
    """The next call's were written into the same memory: the difference of an argument to the last one was 0."""
    with clnn.use(device), warnings.catch_warnings():
        warnings.simplefilter("ignore", clnn.RecordingWarning)
        state = {"first": None, "last": clnn.zeros(4)}

        @clnn.step(record=record)
        def difference(x):
            if state["first"] is None:
                state["first"] = keep(x)
            y, state["last"] = x - state["last"] + 100 * state["first"], keep(x)
            return y

        found = [float(difference(np.full(4, value, np.float32)).mean()) for value in (2, 3, 7, 4, 5, 9)]
        assert found == [202, 201, 204, 197, 201, 204]


def test_a_first_argument_that_is_kept_is_part_of_the_recording(device):
    with clnn.use(device):
        state = {"first": None}

        @clnn.step
        def beside_the_first(x):
            if state["first"] is None:
                state["first"] = x
            return state["first"] * 100 + x

        assert [float(beside_the_first(np.full(1, i, np.float32)).sum()) for i in range(3, 10)] == [*range(303, 310)]
        assert len(replays(beside_the_first)) == 1


@pytest.mark.parametrize("record", [True, False])
def test_results_have_no_history_from_the_first_call_on(device, record):
    """A state that goes into the next call was refused at the second one, and backward() outside at the fourth."""
    with clnn.use(device):
        p = clnn.tensor([1.0, 2.0], requires_grad=True)

        @clnn.step(record=record)
        def run(x, state):
            loss = (p * x * state).sum()
            loss.backward()
            return {"loss": loss, "states": (p * state, [p])}

        state = clnn.tensor([1.0, 1.0])
        for i in range(6):
            p.zero_grad()
            out = run(np.float32([1, 10]), state)
            state = out["states"][0]
            assert state.numpy().tolist() == [1, 2 ** (i + 1)] and p.grad.numpy().tolist() == [1, 10 * 2**i]
            assert not (state.requires_grad or out["states"][1][0].requires_grad)
            with pytest.raises(clnn.ClnnError, match=r"a step returned it: call backward\(\) within the step"):
                out["loss"].backward()


def test_a_list_of_arrays_as_an_argument_is_told_how_they_go_in(device):
    with clnn.use(device):
        run, arrays = clnn.step(lambda *x: sum(one.sum() for one in x)), [np.ones(3, np.float32)] * 2
        for given in (arrays, (*arrays,), {"x": arrays[0]}):
            with pytest.raises(clnn.errors.ConfigurationError, match=r"each by itself \(step\(\*arrays\)"):
                run(given)
        assert float(run(*arrays)) == 6


def test_whole_zeros_and_ones_within_a_step_are_recorded(device, recwarn):
    """They were uploaded, so that a step which makes its first tokens or states of them was never recorded."""
    with clnn.use(device):
        table, rows = clnn.tensor([[1.0, 2.0], [10.0, 20.0]]), [(3,), (2, 1), (0,), ()]

        @clnn.step
        def run(x):
            made = [f(shape, "int32") for f in (clnn.zeros, clnn.ones) for shape in rows]
            return sum(clnn.take_rows(table, one).sum() for one in made) * x, made

        for i in range(12):
            total, made = run(np.float32([i]))
            assert total.numpy().tolist() == [i * 6 * 33] and [one.shape for one in made] == 2 * rows
            assert {one.dtype for one in made} == {np.dtype(np.int32)} and sum(one.numpy().sum() for one in made) == 6
        assert not list(recwarn)
        assert clnn.zeros(2, dtype=None).dtype == np.float32  # as a tensor's
        with pytest.raises(clnn.ShapeError, match="float32, float64 or int32, and int64 as bool"):
            clnn.ones(2, bool)


@pytest.mark.parametrize(
    "shape, axes", [((3, 4), (0, 1)), ((2, 5, 3), (0, 2)), ((4, 2, 3), (1, 2)), ((2, 3, 1, 4), (0, 1, 3))]
)
def test_several_index_tensors_within_a_step_are_recorded(device, rng, recwarn, shape, axes):
    """x[i, j] of two arguments was read back, so that a step which takes scores by rows and classes was never recorded."""
    with clnn.use(device):
        x = rng.standard_normal(shape).astype(np.float32)
        p = clnn.tensor(x, requires_grad=True)

        def key(numbers):
            given = iter(numbers)
            return tuple(next(given) if axis in axes else slice(None, None, -1) for axis in range(len(shape)))

        @clnn.step
        def run(w, *numbers):
            p.zero_grad()
            y = p[key(numbers)]
            (y * w).sum().backward()
            return y, p.grad

        sizes = [(2, 3), (3,), (2, 1)][: len(axes)]
        for _ in range(6):
            numbers = [
                rng.integers(-shape[axis], shape[axis], size).astype(np.int32) for axis, size in zip(axes, sizes)
            ]
            wanted, slopes = x[key(numbers)], np.zeros_like(x)
            w = rng.standard_normal(wanted.shape).astype(np.float32)
            np.add.at(slopes, key(numbers), w)
            y, gradient = run(w, *numbers)
            np.testing.assert_array_equal(y.numpy(), wanted)
            np.testing.assert_allclose(gradient.numpy(), slopes, rtol=1e-5, atol=1e-5)
        assert not list(recwarn)
        for place, axis in enumerate(axes):  # one that is not there, though the element that it would name is, is none
            for bad in (shape[axis], -shape[axis] - 1, 2**31 - 1, -(2**31)):
                wrong = [np.zeros_like(one) if i != place else np.full_like(one, bad) for i, one in enumerate(numbers)]
                y, _ = run(w, *wrong)
                assert np.isnan(y.numpy()).all()
                with pytest.raises(clnn.OutOfRangeError, match="none of"):
                    y.reshape(-1)[0].item()


def test_numbers_beside_index_tensors_within_a_step_are_recorded(device, rng, recwarn):
    with clnn.use(device):
        x = rng.standard_normal((2, 3, 4, 2)).astype(np.float32)
        t = clnn.tensor(x)
        keys = [
            lambda i: (0, i), lambda i: (i, -1), lambda i: (0, slice(None), i), lambda i: (slice(None), i, np.int64(2)),
            lambda i: (1, i, slice(None), 0), lambda i: (slice(1), 2, None, i), lambda i: (Ellipsis, i, i * 0 + 1),
        ]  # fmt: skip
        run = clnn.step(lambda i: [t[key(i)] for key in keys])
        for shape in ((2, 2), (3,), (), (0,)):
            for _ in range(4):
                i = rng.integers(-2, 2, shape, np.int32) if shape else np.array(rng.integers(-2, 2), np.int32)
                for y, key in zip(run(i), keys):
                    np.testing.assert_array_equal(y.numpy(), x[key(i)])
        assert not list(recwarn)


def test_many_shapes_at_once_read_their_own_inputs(device):
    with clnn.use(device):
        run = clnn.step(lambda x: x * 2.0)
        for round_ in range(6):
            for rows in [*range(1, 6), *range(1, 20)]:
                assert np.all(run(np.full(rows, round_ + rows, np.float32)).numpy() == 2 * (round_ + rows))


def test_a_recording_holds_the_buffers_it_reads(device):
    with clnn.use(device):
        held = [clnn.tensor(np.arange(6, dtype=np.float32))]
        block = weakref.ref(held[0].block)

        @clnn.step
        def add(x):
            return x + held[0]

        x = np.ones(6, np.float32)
        for _ in range(3):
            add(x)
        assert len(replays(add)) == 1
        (entry,) = add.replays._entries.values()
        held.clear()
        gc.collect()
        assert block() is not None
        poison = [clnn.tensor(np.full(6, np.nan, np.float32)) for _ in range(20)]
        entry.recording.replay()
        assert entry.result.numpy().tolist() == [1, 2, 3, 4, 5, 6]
        del poison
        with pytest.raises(IndexError):  # as the Python does
            add(x)


def test_a_host_read_inside_keeps_the_step_eager_with_one_warning(device, rng):
    net, optimizer = little_net(device)
    seen = []

    @clnn.step
    def train(x, y):
        loss = clnn.losses.cross_entropy(net(x), y)
        seen.append(float(loss))
        loss.backward()
        optimizer.step(net.parameters())
        return loss

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        returned = [float(train(x, y)) for x, y in batches(rng, 8)]
    assert seen == returned
    assert not replays(train)
    (warning,) = [w for w in caught if w.category is clnn.RecordingWarning]
    assert (
        "read back to the host" in str(warning.message)
        and "x[mask]" in str(warning.message)
        and "train" in str(warning.message)
    )


def test_an_upload_inside_keeps_the_step_eager_unless_constant(device):
    array = np.arange(4, dtype=np.float32)
    with clnn.use(device):

        @clnn.step
        def shifted(x):
            return x + array

        with pytest.warns(clnn.RecordingWarning, match=r"uploaded.*clnn.constant"):
            for _ in range(5):
                assert shifted(array).numpy().tolist() == [0, 2, 4, 6]
        assert not replays(shifted)
        fixed = clnn.constant(array)

        @clnn.step
        def shifted_by_constant(x):
            return x + fixed

        for _ in range(5):
            assert shifted_by_constant(array).numpy().tolist() == [0, 2, 4, 6]
        assert len(replays(shifted_by_constant)) == 1


def test_a_step_that_differs_at_the_third_call_stays_eager(device):
    with clnn.use(device):
        calls = io.BytesIO()  # whose position is not watched

        @clnn.step
        def odd(x):
            calls.write(b".")
            return x * float(calls.tell())

        x = np.ones(3, np.float32)
        with pytest.warns(clnn.RecordingWarning, match=r"elementwise.binary_forward.*is 2.0, then 3.0"):
            found = [odd(x).numpy()[0] for _ in range(6)]
        assert found == [1, 2, 3, 4, 5, 6]

        @clnn.step
        def longer(x):
            calls.write(b".")
            return x * 2.0 if calls.tell() % 2 else x * 2.0 + 1.0

        with pytest.warns(clnn.RecordingWarning, match="a launch more"):
            for _ in range(5):
                longer(x)


def test_roles_of_buffers_are_compared(device):
    """The same kernels over the same sizes, but other operands."""
    with clnn.use(device):
        a, b = clnn.constant(np.float32([1, 2])), clnn.constant(np.float32([10, 20]))
        calls = io.BytesIO()  # whose position is not watched

        @clnn.step
        def swap(x):
            calls.write(b".")
            return x + (a if calls.tell() % 2 else b)

        with pytest.warns(clnn.RecordingWarning, match="a buffer of 8 bytes, then another one .*once, before"):
            found = [swap(np.zeros(2, np.float32)).numpy().tolist() for _ in range(4)]
        assert found == [[1, 2], [10, 20], [1, 2], [10, 20]]


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("at", [0, 1, 2, 4])
def test_an_exception_in_the_middle_discards_the_recording_and_zeroes_gradients(device, rng, momentum, at):
    net, optimizer = little_net(device, momentum)
    fail = []

    @clnn.step
    def train(x, y):
        loss = clnn.losses.cross_entropy(net(x), y)
        loss.backward()
        if fail:
            raise KeyError("in the middle")
        optimizer.step(net.parameters())
        return loss

    data = batches(rng, 12)
    for x, y in data[:at]:
        train(x, y)
    if not replays(train):  # a replayed step runs no Python
        fail.append(1)
        with pytest.raises(KeyError):
            train(*data[at])
        fail.clear()
        assert device.recorder is None and device.step is None
        for p in net.parameters():
            assert p.uses == 0
            if momentum and at:
                assert not np.any(clnn.Tensor(p.gradient_block(), p.shape, p.dtype, p.device).numpy())
    for x, y in data[5:]:
        loss = float(train(x, y))
        assert np.isfinite(loss)
    assert replays(train)


def test_a_learning_rate_that_changes_is_seen_by_replays(device, rng):
    net, optimizer = little_net(device)
    train = train_step(net, optimizer)
    data = batches(rng, 1)[0]
    for _ in range(5):
        train(*data)
    recordings = len(replays(train))
    optimizer.lr = 0.0
    before = weights(net)
    train(*data)
    assert np.array_equal(weights(net), before)
    optimizer.lr = 0.2
    train(*data)
    moved = weights(net) - before
    optimizer.lr = 0.1
    assert np.any(moved) and len(replays(train)) == recordings


def test_a_schedule_runs_on_through_its_tables(device, rng):
    """More steps than a table of rates has rows: w falls by the sum of all rates."""
    with clnn.use(device):
        w = clnn.Parameter(clnn.zeros((3,)).block, (3,), np.float32, device)
        optimizer = clnn.SGD(lambda t: 1.0 / (1 + t))

        @clnn.step
        def train():
            (w * 1.0).sum().backward()
            optimizer.step([w])

        steps = 2 * clnn.optim.ROWS + 10
        for _ in range(steps):
            train()
        expected = -np.sum(1.0 / np.arange(1, steps + 1))
        assert np.allclose(w.numpy(), expected, rtol=1e-4)


def test_frozen_layers_and_rates_of_dropout_make_new_recordings(device, rng):
    with clnn.use(device):
        net = clnn.Sequential([clnn.Dense(5), clnn.Dropout(0.5), clnn.Dense(3)], input_shape=4, seed=0)
        optimizer = clnn.SGD(0.1)
        train = train_step(net, optimizer)
        data = batches(rng, 1)[0]
        for _ in range(6):
            train(*data)
        net.layers[0].trainable = False
        frozen = net.layers[0].w.numpy()
        for _ in range(6):
            train(*data)
        assert np.array_equal(net.layers[0].w.numpy(), frozen)

        @clnn.step
        def drop(x):
            return net.layers[1](x)

        x = np.ones((100, 5), np.float32)
        kept = [np.mean(drop(x).numpy() != 0) for _ in range(6)]
        assert min(kept) > 0.3 and max(kept) < 0.7 and len(set(kept)) > 1
        net.layers[1].rate = 0.0
        assert np.all(drop(x).numpy() == 1)


def test_random_numbers_move_on_in_replays_as_they_do_eagerly(device):
    with clnn.use(device):
        x, found = np.ones((40, 10), np.float32), []
        layer = clnn.Dropout(0.5)
        for record in (True, False):
            clnn.seed(5)
            run = clnn.step(lambda x: layer(layer(x)), record=record)
            found.append([run(x).numpy() for _ in range(8)])
        assert all(np.array_equal(a, b) for a, b in zip(*found))
        assert len({a.tobytes() for a in found[0]}) == 8


def test_gradient_accumulation_over_steps(device, rng):
    """Two backward steps and one update are another recording than one each."""
    data = batches(rng, 9)
    found = []
    for record in (True, False):
        net, optimizer = little_net(device, keep_gradients=True)

        @clnn.step(record=record)
        def gather(x, y, net=net):
            clnn.losses.cross_entropy(net(x), y).backward()

        @clnn.step(record=record)
        def update(net=net, optimizer=optimizer):
            optimizer.step(net.parameters())

        for i, (x, y) in enumerate(data * 3):
            gather(x, y)
            if i % 3 == 2:
                update()
        assert bool(replays(gather)) == bool(replays(update)) == record
        found.append(weights(net))
    expected, _ = little_net(device)
    for start in range(0, 27, 3):  # the same sums of gradients, by one backward pass
        for x, y in (data * 3)[start : start + 3]:
            clnn.losses.cross_entropy(expected(x), y).backward()
        plain = clnn.SGD(0.1)
        plain.step(expected.parameters())
    assert np.allclose(found[0], weights(expected), atol=1e-6)
    assert np.array_equal(*found)


def test_most_recordings_are_kept_by_last_use(device):
    with clnn.use(device):
        run = clnn.step(lambda x: x * 2.0)
        for rows in range(1, 13):
            for _ in range(4):
                run(np.ones(rows, np.float32))
        assert len(replays(run)) == recording.MOST_RECORDINGS


def test_temporaries_share_the_arena(device, rng):
    with clnn.use(device):
        x = rng.standard_normal((64, 64)).astype(np.float32)

        @clnn.step
        def deep(x):
            for _ in range(20):
                x = x * 1.5 + 0.5
            return x

        results = [deep(x).numpy() for _ in range(5)]
        assert all(np.array_equal(r, results[0]) for r in results)
        (entry,) = deep.replays._entries.values()
        assert sum(entry.recording.sizes) <= 2 * x.nbytes  # forty temporaries, two alive at a time
        before = device.memory_in_use
        wide = np.ones((256, 256), np.float32)
        outs = [deep(wide).numpy() for _ in range(5)]  # the arena grows; the first recording moves into it
        assert all(np.array_equal(o, outs[0]) for o in outs)
        assert np.array_equal(deep(x).numpy(), results[0])
        assert device.memory_in_use - before <= 4 * wide.nbytes + 2 * x.nbytes


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGINT for another process on Windows")
def test_ctrl_c_ends_a_run_within_a_second():
    """The host runs ahead of the device by about 50 ms, whatever is enqueued."""
    code = textwrap.dedent("""
        import numpy as np, clnn, time, sys
        x = np.random.default_rng(0).random((2000, 784), dtype=np.float32)
        y = np.arange(2000) % 10
        net = clnn.Sequential([clnn.Dense(256, "relu"), clnn.Dense(10)], input_shape=784)
        class Ready(clnn.Callback):
            def on_epoch_end(self, model, epoch, logs):
                if epoch == 1: print("ready", flush=True)
        try:
            net.fit(x, y, loss="cross_entropy", optimizer=clnn.SGD(0.001), epochs=10**6, batch_size=20, callbacks=[Ready()])
        except KeyboardInterrupt:
            float(net.parameters()[0].numpy().sum())
            print("stopped", flush=True)
    """)
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=dict(os.environ)
    ) as process:
        try:
            assert process.stdout.readline().strip() == "ready"
            time.sleep(1.0)
            sent = time.perf_counter()
            process.send_signal(signal.SIGINT)
            assert process.stdout.readline().strip() == "stopped"
            assert time.perf_counter() - sent < 1.0
        finally:
            process.kill()


@pytest.mark.slow
def test_fifty_thousand_steps_in_flat_memory(device, rng):
    resource = pytest.importorskip("resource")
    net, optimizer = little_net(device)
    train = train_step(net, optimizer)
    x, y = batches(rng, 1)[0]

    def resident():
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * resource.getpagesize()

    if not os.path.exists("/proc/self/statm"):
        pytest.skip("resident memory is read from /proc")
    x, y = clnn.tensor(x, device=device), clnn.tensor(y, device=device)
    # by then the steps are one kernel: compiling it leaves a MiB or two behind, once
    others = 1 if device.pocl_version > (0, 0) else fusion.OTHERS
    for _ in range(round(others * (fusion.COMPILING + fusion.PART_OF_IT) / fusion.SAVED) + 3000):
        train(x, y)
    device.finish()
    gc.collect()
    before, blocks = resident(), device.memory_in_use
    for _ in range(50_000):
        train(x, y)
    device.finish()
    gc.collect()
    assert device.memory_in_use <= blocks
    assert resident() - before <= 1 << 20


def test_counters_move_by_their_own_amounts(device):
    """Up to four in a launch."""
    for count in range(1, 5):
        cells = [clnn.tensor(np.array([10 * i, -1], np.int32)) for i in range(count)]
        for _ in range(2):
            device.advance([(cell.block, i + 1) for i, cell in enumerate(cells)])
        assert [cell.numpy().tolist() for cell in cells] == [[10 * i + 2 * (i + 1), -1] for i in range(count)]
