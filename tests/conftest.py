"""What all tests share: every device in turn, fresh random inputs, and device memory that starts as NaN.

`CLNN_DEVICE` leaves only the device it names. Random inputs differ from run to run; a failure prints the seed, and
`CLNN_TEST_SEED=<seed>` repeats them.
"""

import itertools
import json
import os
import secrets
import shutil
import signal
import tempfile
import threading
import time
import weakref
import zlib
from pathlib import Path

if os.environ.get("PYTEST_XDIST_WORKER"):  # two processes must not write one cache of PoCL (its issues 534 and 1480)
    # Each has its own, which begins as a copy of the one that is there, and leaves there what it adds.
    _kept, _programs = os.environ.get("POCL_CACHE_DIR"), tempfile.mkdtemp(prefix="clnn-pocl-")
    os.environ["POCL_CACHE_DIR"] = _programs
    if _kept:
        Path(_kept).mkdir(parents=True, exist_ok=True)
        shutil.copytree(_kept, _programs, ignore=shutil.ignore_patterns("*.part", "tempfile*"), dirs_exist_ok=True)

import numpy as np
import pyopencl as cl
import pytest

import clnn
from clnn.ops.index import missing_rows
from clnn.runtime import ahead
from clnn.runtime.devices.choice import find_device
from clnn.runtime.fusion import Fused
from clnn.runtime.memory import SLACK, Block, Memory
from clnn.runtime.program import Programs
from clnn.train import direct

STARTED = time.monotonic()
SEED = int(os.environ.get("CLNN_TEST_SEED") or secrets.randbits(32))
# Tests press Ctrl-C, which a shell's background jobs ignore
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN and threading.current_thread() is threading.main_thread():
    signal.signal(signal.SIGINT, signal.default_int_handler)


def found_devices():
    """The devices to test on; [None] makes the fixture fail with advice rather than skip everything."""
    try:
        chosen = os.environ.get("CLNN_DEVICE", "")
        return [find_device(chosen, "CLNN_DEVICE")] if chosen else clnn.devices() or [None]
    except clnn.DeviceError:
        return [None]


@pytest.fixture(params=found_devices(), ids=lambda d: d and f"{d.platform_index}:{d.device_index}-{d.kind}")
def device(request):
    """Each OpenCL device, in use for the test."""
    with clnn.use(request.param or find_device(os.environ.get("CLNN_DEVICE", ""), "CLNN_DEVICE")) as one:
        yield one


@pytest.fixture
def other_device(request, device):
    """Another device than the test's, for tests that are marked for two_devices."""
    assert request.node.get_closest_marker("two_devices"), (
        "mark the test, so that it runs where there is one device, too"
    )
    others = [one for one in clnn.devices() if one is not device]
    if not others:
        pytest.skip("there is one device")
    return others[0]


@pytest.fixture(params=[np.float32, np.float64], ids=["float32", "float64"])
def dtype(request, device):
    """float32, and float64 where the device has it."""
    if request.param is np.float64 and not device.has_fp64:
        pytest.skip(f"{device!r} has no float64")
    return request.param


@pytest.fixture
def rng(request):
    """Random inputs, other ones in each run and each test."""
    return np.random.default_rng([SEED, zlib.crc32(request.node.nodeid.encode())])


class Guard:
    """What lies behind every block that a test makes: a signalling NaN, which no computation leaves, another one behind each, so
    that what is copied from behind one block to behind another is seen. It is copied aside when the block goes, without
    waiting."""

    MOST = 4096  # blocks whose ends are kept before they are looked at

    def __init__(self):
        self.lock = threading.RLock()
        self.off = False  # what it enqueues has everything enqueued that is put off
        self.patterns = itertools.count()
        self.alive = {}  # by a block's id: a weak reference to it, and what lies behind it
        self.aside = {}  # by device: memory for ends, and of the blocks whose ends lie there size and pattern

    def put(self, block):
        if self.off:
            return
        start, pattern = -(-block.nbytes // 4) * 4, np.int32(0x7FA00000 + next(self.patterns) % 0x200000)
        cl.enqueue_fill_buffer(block.device.queue, block.buffer, pattern, start, block.counted // 4 * 4 - start)
        self.alive[id(block)] = weakref.ref(block), pattern

    def take(self, block):
        _, pattern = self.alive.pop(id(block), (None, None))
        if pattern is None:
            return
        device = block.device
        if device not in self.aside:
            self.aside[device] = cl.Buffer(device.context, cl.mem_flags.READ_WRITE, self.MOST * SLACK), []
        buffer, blocks = self.aside[device]
        start = -(-block.nbytes // 4) * 4
        with self.lock:  # blocks of several threads go at once
            at = len(blocks)
            blocks.append((block.nbytes, pattern))  # its place, before another block goes on the way
            cl.enqueue_copy(
                device._queue, buffer, block.buffer,
                src_offset=start, dst_offset=at * SLACK, byte_count=SLACK - start + block.nbytes,
            )  # fmt: skip
            if len(blocks) == self.MOST:
                self.look()

    def look(self):
        for device, (buffer, blocks) in self.aside.items():
            ends = np.empty((len(blocks), SLACK // 4), np.int32)
            if blocks:
                cl.enqueue_copy(device._queue, ends, buffer)
            written = [
                (n, int(np.argmax(end != pattern)))
                for (n, pattern), end in zip(blocks, ends[:, :-1])
                if (end != pattern).any()
            ]
            blocks.clear()
            assert not written, f"written behind the end of blocks, (bytes, elements behind the end): {written}"

    def end(self):
        for block in [one() for one, _ in list(self.alive.values())]:
            if block is not None:
                self.take(block)
        self.look()


@pytest.fixture(autouse=True)
def poisoned(monkeypatch):
    """Every block of device memory starts as NaN (-1 as integers), so that an element that nobody writes is seen; what lies
    behind it must not be written."""
    monkeypatch.setattr(Memory, "poisoned", True)
    guard, allocate, shared, gone, release = Guard(), Memory.allocate, direct.take_over, Block.__del__, Block.release

    def poisoned_block(self, nbytes, pooled=True):
        block = allocate(self, nbytes, pooled)
        guard.put(block)
        return block

    def shared_block(context, block, array):
        if id(block) in guard.alive:  # else it was made before this test
            end = array[-(-block.nbytes // 4) * 4 :]
            end[: len(end) // 4 * 4].view(np.int32)[:] = guard.alive[id(block)][1]
        shared(context, block, array)

    def guarded_end(self):
        guard.take(self)
        gone(self)

    def guarded_release(self):
        """Give its memory back now."""
        guard.take(self)
        release(self)

    monkeypatch.setattr(Memory, "allocate", poisoned_block)
    monkeypatch.setattr(Block, "release", guarded_release)
    monkeypatch.setattr(direct, "take_over", shared_block)
    monkeypatch.setattr(Block, "__del__", guarded_end)
    yield guard
    guard.end()
    monkeypatch.undo()
    for device in [*guard.aside]:
        missing_rows(device)  # a test may leave it unsaid


@pytest.fixture
def cold(poisoned, monkeypatch):
    """Launches are put off as where nothing is compiled yet, and nobody compiles along. Memory is not poisoned."""
    poisoned.off = True
    monkeypatch.setattr(Memory, "poisoned", False)
    monkeypatch.setattr(ahead, "wanted", lambda device: 1)
    monkeypatch.setattr(ahead.Helpers, "compile", lambda self, missing, bundles: None)
    monkeypatch.setattr(ahead, "bundles", lambda device: True)


@pytest.fixture(autouse=bool(os.environ.get("CLNN_TEST_AHEAD")))
def always_cold(cold):
    """With `CLNN_TEST_AHEAD=1` every test runs so."""


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_call(item):
    """A test marked `platform` has to launch kernels of every file that its mark names. Where `CLNN_TEST_NOTES` names a folder,
    it is noted there what each test that passes launches, for `.ci/mutants`."""
    mark, notes, launched = item.get_closest_marker("platform"), os.environ.get("CLNN_TEST_NOTES"), {}
    kernel, new_kernel, build = Programs.kernel, Programs.new_kernel, Fused.build
    began = time.process_time()

    def noted_kernel(self, source, types):
        launched[source] = True
        return kernel(self, source, types)

    def noted_new_kernel(self, source, types):
        launched[source] = True
        return new_kernel(self, source, types)

    def noted_build(self, *args):  # steps made one kernel
        launched["fusion", "steps", "float", ()] = True
        return build(self, *args)

    with pytest.MonkeyPatch.context() as patch:
        if mark or notes:
            patch.setattr(Programs, "kernel", noted_kernel)
            patch.setattr(Programs, "new_kernel", noted_new_kernel)
            patch.setattr(Fused, "build", noted_build)
        outcome = yield
    refused = outcome.excinfo and isinstance(outcome.excinfo[1], clnn.DeviceError) and str(outcome.excinfo[1])
    if refused and item.get_closest_marker("long") and "ends loops after" in refused:
        outcome.force_exception(pytest.skip.Exception(refused))
        return
    missing = {*mark.args} - {source[0] for source in launched} if mark else {}
    if missing and outcome.excinfo is None:
        outcome.force_exception(
            AssertionError(f"{item.name} launched nothing of {', '.join(missing)}, only {[*launched]}")
        )
    if notes and outcome.excinfo is None:
        note = {"test": item.nodeid, "seconds": time.process_time() - began, "launches": [*launched]}
        os.makedirs(notes, exist_ok=True)
        with open(os.path.join(notes, f"{os.getpid()}.jsonl"), "a", encoding="utf-8") as file:
            file.write(json.dumps(note, default=str) + "\n")


@pytest.hookimpl(tryfirst=True)  # xdist ends a process soon after its own
def pytest_sessionfinish():
    if not os.environ.get("PYTEST_XDIST_WORKER"):
        return
    if _kept:
        for new in Path(_programs).rglob("*"):
            place = Path(_kept, new.relative_to(_programs))
            ours = not any(part.startswith("tempfile") for part in new.relative_to(_programs).parts)
            if ours and new.is_file() and not place.exists():
                place.parent.mkdir(parents=True, exist_ok=True)
                part = place.with_name(f"{place.name}.{os.getpid()}.part")
                shutil.copyfile(new, part)
                part.replace(place)  # at once: another process may be copying
    shutil.rmtree(_programs, ignore_errors=True)


def pytest_addoption(parser):
    parser.addoption(
        "--minutes", type=float, metavar="N", help="begin no test after that many; what is left is skipped"
    )


def pytest_runtest_setup(item):
    minutes = item.config.getoption("--minutes")
    if minutes is not None and time.monotonic() - STARTED > 60 * minutes:
        pytest.skip(f"{minutes:g} minutes are over")


def pytest_report_header():
    return f"CLNN_TEST_SEED={SEED}"


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item):
    outcome = yield
    report = outcome.get_result()
    if report.failed and "rng" in getattr(item, "fixturenames", ()):
        report.sections.append(("random inputs", f"CLNN_TEST_SEED={SEED} repeats them"))
