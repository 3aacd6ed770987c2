"""Device memory: counted, returned, limited."""

import gc
import pathlib
import re
import sys
from types import SimpleNamespace

import numpy as np
import pyopencl as cl
import pytest
from helpers import parameter

import clnn
from clnn.runtime import pages
from clnn.runtime.memory import ALIGNMENT, Memory, human, memory_limit
from clnn.runtime.recording import Recording

MIB = 1 << 20


@pytest.fixture
def at_rest(device):
    """A device with nothing waiting to be collected, and the bytes that it holds now."""
    clnn.ones((1,)) + 1.0  # constants and kernels
    gc.collect()
    return device.memory_in_use


def test_tensors_return_what_they_took(device, at_rest):
    x = clnn.zeros((MIB,))
    assert device.memory_in_use - at_rest >= 4 * MIB
    assert device.memory_in_use - at_rest < 4.6 * MIB, "the pool rounds up by at most an eighth"
    y = x.reshape(-1, 2)
    del x
    assert device.memory_in_use - at_rest >= 4 * MIB, "a view holds the memory"
    del y
    assert device.memory_in_use == at_rest


@pytest.mark.parametrize("recorded", [False, True])
def test_training_returns_what_it_took(rng, device, at_rest, recorded):
    """After a model is gone its weights, gradients, states and recordings are."""

    def train():
        net = clnn.Sequential([clnn.Dense(50, "gelu"), clnn.Dropout(0.5), clnn.Dense(10)], input_shape=30)
        optimizer = clnn.Adam()

        def step(x, y):
            loss = clnn.losses.cross_entropy(net(x), y)
            loss.backward()
            optimizer.step(net.parameters())
            return loss

        run = clnn.step(step) if recorded else step
        for _ in range(6):
            x, y = rng.standard_normal((20, 30)).astype(np.float32), rng.integers(0, 10, 20)
            run(clnn.tensor(x), clnn.tensor(y))

    train()  # constants
    gc.collect()
    before = device.memory_in_use
    train()
    gc.collect()
    assert device.memory_in_use == before


@pytest.mark.parametrize("recorded", [False, True])
def test_steps_take_no_more_each_time(rng, device, recorded):
    w = parameter(np.ones((64, 64)))

    def step(x):
        (x @ w).sum().backward()
        w.zero_grad()

    run = clnn.step(step) if recorded else step
    used = []
    for _ in range(20):
        run(clnn.ones((64, 64)))
        used.append(device.memory_in_use)
    assert len(set(used[5:])) == 1, used


def test_peak(device, at_rest):
    device.reset_memory_peak()
    assert device.memory_peak == device.memory_in_use == at_rest
    x = clnn.zeros((MIB,))
    top = device.memory_in_use
    del x
    assert device.memory_in_use == at_rest and device.memory_peak == top
    device.reset_memory_peak()
    assert device.memory_peak == at_rest


def test_blocks(device, at_rest):
    """Plain blocks can have views, which keep them counted; pooled memory is used again."""
    memory = device.memory
    plain = memory.allocate(3 * ALIGNMENT, pooled=False)
    view, taken = plain.view(ALIGNMENT, 100), device.memory_in_use
    assert 3 * ALIGNMENT <= taken - at_rest <= 4 * ALIGNMENT
    del plain
    assert device.memory_in_use == taken
    data = np.arange(25, dtype=np.float32)
    device.upload(data, view)
    np.testing.assert_array_equal(device.read(view, np.empty(25, np.float32)), data)
    del view
    assert device.memory_in_use == at_rest
    block = memory.allocate(MIB)
    held = memory.held
    del block
    assert memory.held == held, "the pool keeps it"
    block = memory.allocate(MIB)
    assert memory.held == held, "and gives it again"
    del block
    memory.free_held()
    assert memory.held <= held - MIB
    assert device.read(memory.allocate(0), np.empty(0, np.float32)).size == 0


@pytest.mark.parametrize("at", [100, 200])
def test_a_write_behind_a_block_is_noticed(device, poisoned, at):
    """By what every test has around it."""
    block = device.memory.allocate(100)
    cl.enqueue_fill_buffer(device.queue, block.buffer, np.float32(1), at, 4)
    poisoned.take(block)
    with pytest.raises(AssertionError, match=rf"written behind the end of blocks.*\(100, {(at - 100) // 4}\)"):
        poisoned.look()


def test_what_lies_behind_one_block_copied_to_behind_another_is_noticed(device, poisoned):
    one, other = device.memory.allocate(100), device.memory.allocate(100)
    cl.enqueue_copy(device.queue, other.buffer, one.buffer, src_offset=100, dst_offset=104, byte_count=4)
    poisoned.take(other)
    with pytest.raises(AssertionError, match=r"written behind the end of blocks.*\(100, 1\)"):
        poisoned.look()


@pytest.mark.parametrize(("asked", "used"), [(1, 512), (128, 512), (512, 512), (1024, 1024), (4096, 4096)])
def test_alignment(device, monkeypatch, asked, used):
    """Views start where the device allows it, and on 512 bytes at least: the layout is the same on most devices."""
    monkeypatch.setattr(device, "alignment", asked)
    memory = Memory(device)
    assert [memory.align(n) for n in (0, 1, used - 1, used, used + 1)] == [0, used, used, used, 2 * used]


# -- the budget -------------------------------------------------------------------------------------------------------
class FakeDevice:
    """What memory_limit() asks of a device that has its own memory."""

    global_mem_size, type, host_unified_memory, name = 3000 * MIB, 4, False, " Fake "


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", 2700 * MIB), ("100", 100), ("2k", 2048), ("3M", 3 * MIB), ("3MiB", 3 * MIB), ("3 mb", 3 * MIB),
        ("2G", 2048 * MIB), ("0.5G", 512 * MIB), ("80%", 2400 * MIB), ("12.5 %", 375 * MIB),
        (" 7M ", 7 * MIB), ("0.002T", int(0.002 * (1 << 40))), ("100%", 3000 * MIB), ("3000M", 3000 * MIB), ("0", 0),
    ],
)  # fmt: skip
def test_limit(monkeypatch, text, expected):
    monkeypatch.setenv("CLNN_MEMORY_LIMIT", text)
    assert memory_limit(FakeDevice) == expected


@pytest.mark.parametrize("text", ["much", "-1G", "1X", "%", "G", "1e9", "1,5G", "1GG"])
def test_wrong_limit(monkeypatch, text):
    monkeypatch.setenv("CLNN_MEMORY_LIMIT", text)
    with pytest.raises(clnn.ConfigurationError, match="CLNN_MEMORY_LIMIT=.*is not a size; write 2G, 512M, 80%"):
        memory_limit(FakeDevice)


@pytest.mark.parametrize("text", ["200%", "100.5%", "1T", "3001M", "4000000000"])
def test_a_limit_above_what_there_is(monkeypatch, text):
    monkeypatch.setenv("CLNN_MEMORY_LIMIT", text)
    with pytest.raises(
        clnn.ConfigurationError, match=f"CLNN_MEMORY_LIMIT='{text}' is more than the 2.9 GiB .* Fake has"
    ):
        memory_limit(FakeDevice)


def test_a_limit_for_the_hosts_memory_is_below_that_of_the_host(monkeypatch):
    """PoCL says less when less is free, which makes no error of a limit that was none before."""
    monkeypatch.setattr(FakeDevice, "host_unified_memory", True)
    monkeypatch.setattr("clnn.runtime.memory._host_bytes", lambda pages: 8000 * MIB)
    monkeypatch.setenv("CLNN_MEMORY_LIMIT", "7000M")
    assert memory_limit(FakeDevice) == 7000 * MIB
    monkeypatch.setenv("CLNN_MEMORY_LIMIT", "8001M")
    with pytest.raises(clnn.ConfigurationError, match="is more than the 7.8 GiB"):
        memory_limit(FakeDevice)


def test_a_shared_memory_counts_what_the_host_has_free(device, monkeypatch):
    monkeypatch.delenv("CLNN_MEMORY_LIMIT", raising=False)
    limit = memory_limit(device.cl_device)
    assert 0 < limit <= 0.9 * device.global_memory
    if device.kind == "cpu":
        monkeypatch.setattr("clnn.runtime.memory.host_available", lambda default: 10 * MIB)
        assert memory_limit(device.cl_device) == 9 * MIB


def test_out_of_memory_names_the_sizes(device, monkeypatch):
    """The budget holds before the driver is asked, and the process goes on."""
    memory = Memory(device)
    monkeypatch.setattr(memory, "limit", 8 * MIB)
    kept = memory.allocate(3 * MIB, pooled=False)
    with pytest.raises(clnn.OutOfDeviceMemory) as error:
        memory.allocate(6 * MIB)
    text = str(error.value)
    assert "6.0 MiB asked for on" in text and "3.0 MiB are in use" in text and "of a budget of 8.0 MiB" in text
    assert "CLNN_MEMORY_LIMIT" in text and isinstance(error.value, MemoryError)
    assert kept.nbytes == 3 * MIB
    del kept
    assert memory.allocate(6 * MIB).nbytes == 6 * MIB, "what the pool kept for reuse is given back first"


def test_a_budget_of_garbage_in_cycles(device, monkeypatch):
    """Tensors that only a reference cycle holds are collected before an allocation fails."""
    memory = Memory(device)
    monkeypatch.setattr(memory, "limit", 8 * MIB)
    gc.disable()
    try:
        cycle = [memory.allocate(6 * MIB)]
        cycle.append(cycle)
        del cycle
        assert memory.allocate(6 * MIB).nbytes == 6 * MIB
    finally:
        gc.enable()


def test_more_than_the_device_gives_in_one_piece(device):
    before = device.memory_in_use
    with pytest.raises(clnn.OutOfDeviceMemory, match="in one piece"):
        device.memory.allocate(device.memory.largest + (1 << 20))
    assert device.memory_in_use == before


def test_sizes_for_people():
    assert [human(n) for n in (0, 1023, 1024, 1536 * 1024, 5 << 30, 5 << 40)] == [
        "0 bytes", "1023 bytes", "1.0 KiB", "1.5 MiB", "5.0 GiB", "5120.0 GiB",
    ]  # fmt: skip


# -- drivers that allocate at first use, and say late that there is none ----------------------------------------------
COPY = cl.enqueue_copy


class LateDriver:
    """Stands for a function of pyopencl's that works `after` times and then ends `failures` times without memory."""

    def __init__(self, function, failures, code="MEM_OBJECT_ALLOCATION_FAILURE"):
        self.function, self.failures, self.code, self.calls, self.after = function, failures, code, 0, 0

    def __call__(self, *args, **kwargs):
        if self.function is COPY and "is_blocking" not in kwargs:  # conftest.py's own
            return self.function(*args, **kwargs)
        self.calls += 1
        if self.after < self.calls <= self.after + self.failures:
            raise cl.MemoryError(f"{self.function.__name__} failed: {self.code}")
        return self.function(*args, **kwargs)


SMALL, LARGE = np.arange(10, dtype=np.float32), np.arange(10_000, dtype=np.float32)
LATE = {
    "launch": ("enqueue_nd_range_kernel", lambda x: (x + 1.0).numpy() - 1, "elementwise"),
    "small upload": ("enqueue_copy", lambda x: clnn.tensor(SMALL).numpy(), "an upload"),
    "fill": ("enqueue_fill_buffer", lambda x: x.device.fill_zero(x.block) or x.numpy(), "fill"),
}


@pytest.mark.parametrize("code", ["MEM_OBJECT_ALLOCATION_FAILURE", "OUT_OF_RESOURCES", "OUT_OF_HOST_MEMORY"])
@pytest.mark.parametrize("what", ["launch", "small upload", "fill"])
def test_a_driver_without_memory_is_asked_once_more(device, monkeypatch, what, code):
    name, act, said = LATE[what]
    x = clnn.tensor(SMALL)
    expected = act(x)
    kept = device.memory.allocate(MIB)
    held = device.memory.held
    del kept
    late = LateDriver(getattr(cl, name), 1, code)
    monkeypatch.setattr(cl, name, late)
    np.testing.assert_array_equal(act(x), expected)
    assert late.calls >= 2 and device.memory.held <= held - MIB, "what the pool keeps went back first"
    late.calls, late.failures = 0, 1000
    with pytest.raises(clnn.OutOfDeviceMemory) as error:
        act(x)
    assert late.calls == 2
    assert f"{name} failed: {code}" in str(error.value) and said in str(error.value)
    assert " found no memory on " in str(error.value) and "use a smaller batch or model" in str(error.value)
    late.failures = 0
    np.testing.assert_array_equal(act(x), expected)


def test_what_waits_is_not_tried_again(device, monkeypatch):
    """What failed may be the work before it: a second read would return what that has not written."""
    x = clnn.tensor(SMALL) + 1.0
    late = LateDriver(cl.enqueue_copy, 1, "OUT_OF_RESOURCES")
    monkeypatch.setattr(cl, "enqueue_copy", late)
    with pytest.raises(clnn.OutOfDeviceMemory, match="^reading back found no memory on .*OUT_OF_RESOURCES"):
        x.numpy()
    assert late.calls == 1
    late.calls, late.failures = 0, 1
    with pytest.raises(clnn.OutOfDeviceMemory, match="^an upload found no memory on .*OUT_OF_RESOURCES"):
        clnn.tensor(LARGE)
    assert late.calls == 1
    np.testing.assert_array_equal(clnn.tensor(LARGE).numpy(), LARGE)
    monkeypatch.setattr(
        type(device), "queue", property(lambda self: SimpleNamespace(finish=LateDriver(x.device.finish, 9)))
    )
    with pytest.raises(clnn.OutOfDeviceMemory, match="^work enqueued before found no memory"):
        device.finish()


@pytest.mark.parametrize("failing", [0, 1, 3])
def test_a_replay_without_memory_goes_on_where_it_was(device, monkeypatch, failing):
    """The launch that failed is run once more, and those before it are not."""

    def step(x):
        total = x
        for factor in (2.0, 3.0, 5.0):
            total = clnn.tanh(total * factor) + x
        return total

    monkeypatch.setenv("CLNN_FUSE", "0")
    monkeypatch.setattr(cl, "enqueue_nd_range_kernel", late := LateDriver(cl.enqueue_nd_range_kernel, 0))
    run, x = clnn.step(step), clnn.tensor(np.linspace(-1, 1, 100, dtype=np.float32))
    expected = [run(x).numpy() for _ in range(4)][-1]
    (labels,) = run.replays.launches()
    late.calls, late.failures, late.after = 0, 1, failing
    np.testing.assert_array_equal(run(x).numpy(), expected)
    assert late.calls == len(labels) + 1
    late.calls, late.failures = 0, 1000
    with pytest.raises(clnn.OutOfDeviceMemory, match="^a replayed step found no memory"):
        run(x)
    late.failures = 0
    np.testing.assert_array_equal(run(x).numpy(), expected)


@pytest.mark.parametrize("failing", [0, 1, 3, 6])
def test_replays_in_a_row_that_break_off_count_the_steps_that_were_taken(device, monkeypatch, failing):
    """fit replays several steps under one lock: weights, rates and counts are those of the steps before the failure."""
    monkeypatch.setenv("CLNN_FUSE", "0")
    x, y = np.random.default_rng(5).standard_normal((80, 3)).astype(np.float32), np.ones((80, 1), np.float32)

    def fit(model, optimizer, steps):
        few = slice(4 * steps)
        model.fit(x[few], y[few], loss="mse", optimizer=optimizer, batch_size=4, shuffle=False, progress=False)

    def fresh():
        return clnn.Sequential([clnn.Dense(1)], seed=3), clnn.Adam(0.01)

    (model, optimizer), (other, as_far) = fresh(), fresh()
    fit(model, optimizer, 20)
    replay, taken = Recording.replay, []

    def breaking_off(self, *times):
        if len(taken) == failing:
            raise clnn.OutOfDeviceMemory("no memory")
        taken.append(replay(self, *times))

    monkeypatch.setattr(Recording, "replay", breaking_off)
    with pytest.raises(clnn.OutOfDeviceMemory):
        fit(model, optimizer, 20)
    monkeypatch.setattr(Recording, "replay", replay)
    new = 3  # steps that a fit runs in Python before it replays
    for steps in (20, new + failing):
        fit(other, as_far, steps)
    assert optimizer.steps == as_far.steps == 20 + new + failing
    for weights, expected in zip(model.parameters(), other.parameters(), strict=True):
        np.testing.assert_array_equal(weights.numpy(), expected.numpy())


def test_an_allocation_that_fails_is_tried_again_without_the_pools_reserve(device, monkeypatch):
    memory = Memory(device)
    allocate = memory._allocator
    kept = memory.allocate(MIB)
    del kept
    held = memory.held
    late = LateDriver(lambda size: allocate(size), 1)
    monkeypatch.setattr(memory, "_allocator", late)
    block = memory.allocate(MIB, pooled=False)
    assert late.calls == 2 and memory.held - block.counted <= held - MIB
    late.calls, late.failures = 0, 2
    with pytest.raises(clnn.OutOfDeviceMemory, match="2.0 MiB asked for .*the driver says: .*MEM_OBJECT_ALLOCATION"):
        memory.allocate(2 * MIB, pooled=False)


def mapping_of(block):
    """The flags of the memory that a block of PoCL's is in, as Linux tells them."""
    array, _ = cl.enqueue_map_buffer(
        block.device.queue, block.buffer, cl.map_flags.READ, 0, (block.nbytes,), np.uint8, is_blocking=True
    )
    middle = array.__array_interface__["data"][0] + block.nbytes // 2
    array.base.release(block.device.queue)
    block.device.finish()
    inside = False
    for line in pathlib.Path("/proc/self/smaps").read_text().splitlines():
        if bounds := re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line):
            inside = int(bounds[1], 16) <= middle < int(bounds[2], 16)
        elif inside and line.startswith("VmFlags:"):
            return line.split()[1:]
    return []


@pytest.mark.parametrize("pooled", [True, False])
def test_large_blocks_have_large_pages_where_linux_gives_them(device, pooled):
    if not device.memory._pages._queue:
        pytest.skip("they are not to be asked for here")
    device.memory.free_held()
    large, small = device.memory.allocate(pages.LARGE * 3, pooled), device.memory.allocate(1 << 20, pooled)
    assert "hg" in mapping_of(large)
    x = np.arange(pages.LARGE * 3 // 4, dtype=np.float32)
    device.upload(x, large)
    assert np.array_equal(device.read(large, np.empty_like(x)), x) and small.nbytes == 1 << 20
    again = device.memory.allocate(pages.LARGE * 3, pooled)
    assert "hg" in mapping_of(again)


@pytest.mark.parametrize(
    ("setting", "asks"),
    [
        ("always [madvise] never", True),
        ("[always] madvise never", False),
        ("always madvise [never]", False),
        (None, False),
    ],
)
def test_large_pages_are_asked_for_where_that_is_the_way(device, monkeypatch, tmp_path, setting, asks):
    monkeypatch.setattr(pages, "SETTING", tmp_path / "enabled")
    if setting is not None:
        pages.SETTING.write_text(setting + "\n")
    cpu = bool(device.cl_device.type & cl.device_type.CPU) and device.pocl_version > (0, 0)
    of = pages.LargePages(device.context, device.cl_device)
    assert (of._queue is not None) is (asks and cpu and sys.platform == "linux")
    of.ask(device.memory.allocate(pages.LARGE).buffer, pages.LARGE)


def test_what_cannot_be_mapped_stays_as_it_is(device, monkeypatch):
    """A driver may refuse to map a buffer, or to let it go again."""
    if not device.memory._pages._queue:
        pytest.skip("they are not to be asked for here")
    device.memory.free_held()

    def refuses(*args, **options):
        raise cl.MemoryError("no room")

    monkeypatch.setattr(pages.cl, "enqueue_map_buffer", refuses)
    block = device.memory.allocate(pages.LARGE + 12345)
    monkeypatch.undo()
    x = np.arange(1000, dtype=np.float32)
    device.upload(x, block)
    assert np.array_equal(device.read(block, np.empty_like(x)), x)
