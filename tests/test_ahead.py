"""Launches that are put off while other processes compile: the same bits in the same order, whatever becomes of the helpers."""

import gc
import json
import os
import signal
import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
from helpers import tells_time

import clnn
from clnn.ops.rows import elements
from clnn.runtime import ahead
from clnn.runtime.ahead import Helpers, putting_off, wanted
from clnn.runtime.recorder import StepContext
from clnn.tools import compiler

ROOT = Path(__file__).parent.parent
TRAIN = """
import os, sys, hashlib, numpy as np, clnn
kind, rng = sys.argv[1], np.random.default_rng(0)
if kind == "dense":
    net = clnn.Sequential([clnn.Dense(40, "relu"), clnn.BatchNorm(), clnn.Dropout(0.3), clnn.Dense(4)], input_shape=30, seed=1)
    x = rng.standard_normal((96, 30)).astype("f")
elif kind == "unbuilt":  # its parameters are made in the first step
    net = clnn.Sequential([clnn.Dense(33, "tanh"), clnn.Dense(4)], seed=2, storage="float16")
    x = rng.standard_normal((96, 17)).astype("f")
elif kind == "images":
    layers = [clnn.Conv2D(8, 3, activation="relu"), clnn.MaxPool2D(2), clnn.Flatten(), clnn.Dense(4)]
    net, x = clnn.Sequential(layers, input_shape=(2, 14, 14), seed=3), rng.standard_normal((64, 2, 14, 14)).astype("f")
else:
    net = clnn.Sequential([clnn.LSTM(9), clnn.Dense(4)], input_shape=(11, 5), seed=4)
    x = rng.standard_normal((64, 11, 5)).astype("f")
y = rng.integers(0, 4, len(x))
history = net.fit(
    x, y, loss="cross_entropy", optimizer=clnn.Adam(0.01), epochs=3, batch_size=32, progress=None, seed=5, validation=(x, y)
)
weights = b"".join(p.numpy().tobytes() for p in net.parameters())
device = clnn.device()
print(hashlib.sha256(weights).hexdigest(), history.history["loss"], device.helpers.begun, device.memory_peak)
"""


def is_pocl(device):
    """Whether helpers compile for it."""
    return device.kind == "cpu" and device.pocl_version != (0, 0)


def trained(kind, folder, helpers, **more):
    """What training in a process of its own prints, which finds nothing compiled."""
    environ = {
        **os.environ,
        "POCL_CACHE_DIR": str(folder),
        "CLNN_COMPILERS": str(helpers),
        "CLNN_SELF_TEST": "0",
        **more,
    }
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", TRAIN, kind], cwd=ROOT, env=environ, capture_output=True, text=True, timeout=600
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    sums, *_, begun, peak = done.stdout.split()
    return sums, done.stdout[: -len(f"{begun} {peak}\n")], int(begun), int(peak)


@pytest.mark.parametrize("kind", ["dense", "unbuilt", "images", "lstm"])
def test_helpers_change_nothing_but_the_time(device, tmp_path, kind):
    if not is_pocl(device):
        pytest.skip("helpers compile for PoCL")
    alone = trained(kind, tmp_path / "alone", 0)
    helped = trained(kind, tmp_path / "helped", 2)
    again = trained(kind, tmp_path / "helped", 2)
    assert alone[:2] == helped[:2] == again[:2]
    assert alone[2] == 0 < helped[2] and again[2] == 0, "helpers are for what is not compiled yet"
    assert alone[3] == helped[3], "memory is given away as if nothing had been put off"
    left = [one.name for one in (tmp_path / "helped").iterdir() if one.name.startswith("tempfile-clnn")]
    assert not left, "the helpers' folders are gone"


@pytest.fixture
def there(cold, device):
    """A device for which launches are put off, and nobody compiles along."""
    return device


def test_launches_wait_for_the_end(there, rng):
    a = rng.standard_normal((7, 5)).astype(np.float32)
    x, before = clnn.tensor(a), there.launches
    with putting_off(there):
        y = clnn.tanh(x * 2 + 1)
        assert there.launches == before and len(there._now.ahead.waiting) > 0
    assert there.launches > before and there._now.ahead is None
    np.testing.assert_allclose(y.numpy(), np.tanh(a * 2 + 1), rtol=1e-5, atol=1e-6)


def test_reading_a_value_has_what_waits_done(there, rng):
    a = rng.standard_normal((4, 3)).astype(np.float32)
    with putting_off(there):
        y = clnn.tensor(a) * 3
        np.testing.assert_allclose(y.numpy(), a * 3, rtol=1e-6)
        z = y + 1  # is put off again
        assert there._now.ahead.waiting
    np.testing.assert_allclose(z.numpy(), a * 3 + 1, rtol=1e-5)


def test_memory_that_is_used_again_before_its_first_use_has_run(there, rng):
    arrays = [rng.standard_normal(1000).astype(np.float32) for _ in range(6)]
    x = [clnn.tensor(a) for a in arrays]
    with putting_off(there):
        results = []
        for one in x:
            t = one * 2  # the next one gets its memory
            results.append(t + 1)
            del t
    for a, y in zip(arrays, results):
        np.testing.assert_allclose(y.numpy(), a * 2 + 1, rtol=1e-5, atol=1e-6)


def test_an_error_of_the_python_leaves_what_came_before_done(there, rng):
    a = rng.standard_normal(9).astype(np.float32)
    with pytest.raises(ZeroDivisionError), putting_off(there):
        y = clnn.tensor(a) + 1
        1 / 0  # noqa: B018
    assert there._now.ahead is None
    np.testing.assert_allclose(y.numpy(), a + 1, rtol=1e-5, atol=1e-6)


def test_ctrl_c_in_the_python_leaves_what_came_before_done(there):
    x = clnn.tensor(np.ones(64, np.float32))
    with pytest.raises(KeyboardInterrupt), putting_off(there):
        y = x * 3
        raise KeyboardInterrupt
    assert there._now.ahead is None
    np.testing.assert_array_equal(y.numpy(), 3)


def test_ctrl_c_while_it_compiles_comes_at_the_end(there, monkeypatch):
    """The Python is further already: it takes memory for written that nothing has written yet."""
    x, kernel, pressed = clnn.tensor(np.ones(64, np.float32)), there.programs.kernel, []

    def interrupted(*args):
        pressed.append(os.kill(os.getpid(), signal.SIGINT))
        return kernel(*args)

    monkeypatch.setattr(there.programs, "kernel", interrupted)
    with pytest.raises(KeyboardInterrupt), putting_off(there):
        y = x * 3 + 1
        z = clnn.exp(y)
    assert len(pressed) >= 2 and there._now.ahead is None
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    monkeypatch.undo()
    np.testing.assert_array_equal(y.numpy(), 4)
    np.testing.assert_allclose(z.numpy(), np.exp(4), rtol=1e-6)


def test_ctrl_c_while_it_compiles_counts_the_step_that_it_came_in(there, monkeypatch, rng):
    """It is whole by then: moments and counts go with the weights, and training goes on from there."""
    x, y = rng.standard_normal((8, 3)), np.arange(8) % 2
    nets = [clnn.Sequential([clnn.Dense(4, "tanh"), clnn.Dense(2)], input_shape=3, seed=0) for _ in range(2)]
    optimizers, kernel = [clnn.Adam(0.1), clnn.Adam(0.1)], there.programs.kernel
    options = {"loss": "cross_entropy", "batch_size": 4, "shuffle": False, "progress": False}

    def interrupted(*args):
        if there.step is not None:
            os.kill(os.getpid(), signal.SIGINT)
        return kernel(*args)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(there.programs, "kernel", interrupted)
        nets[0].fit(x, y, optimizer=optimizers[0], **options)
    nets[1].fit(x[:4], y[:4], optimizer=optimizers[1], **options)
    for _ in range(2):
        assert optimizers[0].steps == optimizers[1].steps
        for mine, other in zip(nets[0].parameters(), nets[1].parameters()):
            np.testing.assert_array_equal(mine.numpy(), other.numpy())
        for net, optimizer in zip(nets, optimizers):
            net.fit(x, y, optimizer=optimizer, **options)


def test_in_another_thread_there_is_no_ctrl_c(there):
    found = []

    def work():
        with clnn.use(there), putting_off(there):
            found.append(clnn.tensor(np.ones(8, np.float32)) * 5)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    np.testing.assert_array_equal(found[0].numpy(), 5)


@pytest.mark.parametrize("within", [False, True], ids=["outside", "step"])
def test_after_an_error_memory_is_filled_and_copied(there, monkeypatch, within):
    """Tables, states and parameters in new places are written, which Python believes in; what failed changes no weights."""
    x, blocks = clnn.tensor(np.ones(4, np.float32)), [there.allocate(16) for _ in range(3)]
    for block in blocks:
        there.upload(np.arange(4, dtype=np.float32), block)
    kernel = there.programs.kernel

    def fails(source, types):
        raise clnn.BuildError("no such thing") if source.file == "elementwise" else kernel(source, types)

    monkeypatch.setattr(there.programs, "kernel", lambda source, types: fails(source, types))
    monkeypatch.setattr(there._now, "step", StepContext() if within else None)
    with pytest.raises(clnn.BuildError, match="no such thing"), putting_off(there):
        x * 3
        there.fill_zero(blocks[0])
        there.copy(blocks[1], blocks[2], 16)
        there.upload_soon(np.full(4, 7, np.float32), blocks[1])
    monkeypatch.undo()
    found = [there.read(block, np.empty(4, np.float32)).tolist() for block in blocks]
    assert found == [[0] * 4, [7] * 4, [0, 1, 2, 3]]


def test_whatever_a_signals_handler_raises_memory_is_filled(there):
    class Odd(BaseException):
        pass

    def ends(*_):
        raise Odd

    block, before = there.allocate(16), signal.signal(signal.SIGUSR1, ends)
    try:
        with pytest.raises(Odd), putting_off(there):
            there._now.ahead.put_off(lambda: os.kill(os.getpid(), signal.SIGUSR1))
            there.fill_zero(block)
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert there._now.ahead is None and not there.helpers.numbers
    assert not there.read(block, np.empty(4, np.float32)).any()


def test_a_profile_within_a_step_sees_what_runs(there):
    if not tells_time(there):
        pytest.skip("the driver tells no times")
    x = clnn.tensor(np.ones(5, np.float32))
    with putting_off(there):
        y = x + 1
        with clnn.profile() as seen:
            z = clnn.tanh(y * 2) + 1
    assert len(seen.rows) >= 2
    np.testing.assert_allclose(z.numpy(), np.tanh(4) + 1, rtol=1e-6)


def test_other_calls_than_copies_run_at_once(there):
    """An exchange between ranks may wait for others, and be interrupted."""
    order, x = [], clnn.tensor(np.ones(5, np.float32))
    with putting_off(there):
        y = x * 2
        there.call("allreduce", lambda queue, buffer: order.append(there.launches), (y.block,), ())
        assert order and there._now.ahead.waiting == []


def test_what_is_kept_packed_was_packed(there, monkeypatch):
    block, kernel = there.allocate(4 * 64), there.programs.kernel
    there.upload(np.arange(64, dtype=np.float32), block)
    each, size, local, vectors = elements(there, np.float32, 64)
    failing = [True]

    def fails_once(*args):
        if failing.pop() if failing else False:
            raise clnn.DeviceError("once")
        return kernel(*args)

    def packed():
        with putting_off(there):
            z = clnn.tensor(np.ones(4, np.float32)) * 2  # noqa: F841 - is put off before
            return there.packed(2 * 64, "half", "pack", size, 64, each, block, local=local, **vectors)

    monkeypatch.setattr(there.programs, "kernel", fails_once)
    monkeypatch.setattr(there._now, "unchanging", {block: {}}, raising=False)
    with pytest.raises(clnn.DeviceError, match="once"):
        packed()
    np.testing.assert_array_equal(there.read(packed(), np.empty(64, np.float16)), np.arange(64))


def test_a_kernel_that_does_not_build_is_an_error_of_that_step(there, monkeypatch):
    x = clnn.tensor(np.ones(5, np.float32))
    there.settle()
    with pytest.raises(clnn.BuildError, match="REAL=floaty"), putting_off(there):
        there.launch("elementwise", "fill", (5,), 5, x.block, 1.0, real="floaty")
    assert there._now.ahead is None
    np.testing.assert_array_equal((x + 1).numpy(), 2)


@pytest.mark.parametrize("text", ["-1", "two", "1.5", "²"])
def test_a_number_of_helpers_that_is_none(device, monkeypatch, text):
    monkeypatch.setenv("CLNN_COMPILERS", text)
    with pytest.raises(clnn.ConfigurationError, match=f"CLNN_COMPILERS.*{text}"):
        wanted(device)


def test_how_many_there_are(device, monkeypatch):
    monkeypatch.setenv("CLNN_COMPILERS", "0")
    assert wanted(device) == 0
    monkeypatch.setenv("CLNN_COMPILERS", "99")
    assert wanted(device) == (ahead.MOST if is_pocl(device) else 0)
    monkeypatch.setenv("POCL_KERNEL_CACHE", "0")
    assert wanted(device) == 0, "what they compile has to be kept somewhere"


@pytest.fixture
def helpers(device, tmp_path, monkeypatch):
    """One helper with nothing kept."""
    if not is_pocl(device):
        pytest.skip("helpers compile for PoCL")
    if os.environ.get("CLNN_TEST_AHEAD"):
        pytest.skip("with CLNN_TEST_AHEAD nobody compiles along")
    monkeypatch.setenv("POCL_CACHE_DIR", str(tmp_path))
    monkeypatch.setenv("CLNN_COMPILERS", "1")
    one = Helpers(device)
    yield one
    one.close()


def compile_some(helpers, device, many):
    """Have kernels compiled, each of a program that no other test builds, two to a text but the last one: the bundles. There
    is one more before them, which this process would compile itself."""
    sources = [ahead.Source("elementwise", "fill", "float", (("UNUSED", number),)) for number in range(many)]
    block = device.allocate(4 * 100)
    jobs = {one.program: {0: ahead.job_of(one, (128,), (64,), [100, block, 2.0])} for one in sources}
    bundles = [tuple(one.program for one in sources[i : i + 2]) for i in range(0, many, 2)]
    helpers.compile(jobs, [("own",), *bundles])
    return bundles


def kept(folder):
    """The kernels that PoCL finds compiled there."""
    return [one for one in Path(folder).glob("??/*/*/*/*.so") if one.parent.parent.name.endswith("fill")]


def test_a_helper_leaves_whole_programs_where_this_process_finds_them(helpers, device, tmp_path):
    bundles = compile_some(helpers, device, 3)
    until = time.monotonic() + 120
    while len(kept(tmp_path)) < 3 and time.monotonic() < until:
        time.sleep(0.05)
    assert len(kept(tmp_path)) == 3
    for bundle in bundles:
        helpers.wait(bundle)  # done: it comes back at once
    helpers.rest()
    assert len(helpers.processes) == 1, "it waits for more"


def test_one_that_was_killed_is_not_waited_for(helpers, device):
    bundles = compile_some(helpers, device, 4)
    helpers.processes[0].kill()
    helpers.processes[0].wait()
    for bundle in bundles:
        helpers.wait(bundle)
    helpers.rest()
    assert helpers.processes == []
    compile_some(helpers, device, 4)
    assert len(helpers.processes) == 1, "another one is started"


def test_one_that_hangs_is_ended(helpers, device, monkeypatch):
    monkeypatch.setattr(ahead, "PATIENCE", 0.3)
    bundles = compile_some(helpers, device, 3)
    (process,) = helpers.processes
    while not helpers.at:
        helpers._listen(60)
    os.kill(process.pid, signal.SIGSTOP)
    began = time.monotonic()
    for bundle in bundles:
        helpers.at[helpers.numbers[bundle]] = process  # as if it had begun each
        helpers.wait(bundle)
    assert helpers.processes == [] and time.monotonic() - began < 10


def test_a_long_list_is_not_waited_with(helpers, device):
    helpers.start()
    os.kill(helpers.processes[0].pid, signal.SIGSTOP)  # it reads nothing
    began = time.monotonic()
    compile_some(helpers, device, 2000)
    helpers.rest()
    assert time.monotonic() - began < 10


def test_a_forked_process_leaves_them_alone(helpers):
    helpers.start()
    if not (child := os.fork()):
        helpers.close()
        os._exit(0)
    os.waitpid(child, 0)
    assert helpers.processes[0].poll() is None and all(Path(folder).is_dir() for folder in helpers.folders)


def test_they_end_with_their_device(device, tmp_path, monkeypatch, helpers):
    """One that was opened and is not used any more, in a process that goes on: no process, folder or pipe stays."""
    opened = type(device)(device.cl_device, device.platform_index, device.device_index)
    opened.helpers.start()
    (process,) = opened.helpers.processes
    folder = Path(*opened.helpers.folders)
    assert process.poll() is None and folder.is_dir()
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        del opened
        gc.collect()
    assert not told and process.poll() is not None and not folder.exists()
    assert process.stdin.closed and process.stdout.closed


def test_without_a_place_for_them_there_are_none(helpers, device, tmp_path, monkeypatch):
    monkeypatch.setenv("POCL_CACHE_DIR", str(tmp_path / "file" / "folder"))
    (tmp_path / "file").write_text("")
    bundles = compile_some(helpers, device, 3)
    assert helpers.processes == []
    for bundle in bundles:
        helpers.wait(bundle)
    helpers.rest()


def test_where_memory_is_short_there_are_none(helpers, monkeypatch):
    monkeypatch.setattr(ahead, "host_available", lambda default: (1 << 30) - 1)
    helpers.start()
    assert helpers.processes == []


def test_it_ends_when_it_has_no_work(helpers, device, tmp_path):
    helpers.start()
    (process,) = helpers.processes
    process.stdin.close()  # as when this process was killed
    assert process.wait(timeout=120) == 0
    assert not list(tmp_path.glob("tempfile-clnn-*")), "its folder goes with it"


@pytest.mark.parametrize("kind", ["dense", "images", "sequences"])
def test_every_launch_of_a_step_reaches_a_helper(there, dtype, kind, monkeypatch, rng):
    """`compile_one` runs one group of each on zeros, with its numbers, vectors and null pointers."""
    if not is_pocl(there):
        pytest.skip("helpers compile for PoCL")
    layers, shape = {
        "dense": ([clnn.Dense(5, "relu"), clnn.BatchNorm(), clnn.Dropout(0.5)], (4,)),
        "images": ([clnn.Conv2D(3, 3, activation="relu"), clnn.MaxPool2D(2), clnn.Flatten()], (2, 12, 12)),
        "sequences": ([clnn.GRU(5, return_sequences=True), clnn.MultiHeadAttention(heads=1), clnn.Flatten()], (6, 3)),
    }[kind]
    jobs, put_off = [], ahead.Ahead.put_off

    def noted(self, run, job=None):
        jobs.append(job)
        put_off(self, run, job)

    monkeypatch.setattr(ahead.Ahead, "put_off", noted)
    net = clnn.Sequential([*layers, clnn.Dense(3)], input_shape=shape, dtype=dtype)
    x, y = rng.standard_normal((8, *shape)).astype(dtype), np.arange(8) % 3
    net.fit(x, y, loss="cross_entropy", optimizer=clnn.Adam(0.01), epochs=1, batch_size=4, progress=None)
    jobs = json.loads(json.dumps([job and [job[0]._asdict(), *job[1:]] for job in jobs], default=str))
    launches = [job for job in jobs if job is not None]
    assert len(launches) > 10
    assert {kind for *_, args in launches for kind, *_ in args} >= {"block", "number", "array", "none"}
    for source, *how in launches:
        source["defines"] = tuple(map(tuple, source["defines"]))
        compiler.compile_one(there, ahead.Source(**source), *how)
