"""Device memory: counted, returned, limited."""

import gc

import numpy as np
import pytest
from helpers import parameter

import clnn
from clnn.runtime.memory import ALIGNMENT, Memory, align, human, memory_limit

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


def test_alignment():
    assert [align(n) for n in (0, 1, 511, 512, 513)] == [0, 512, 512, 512, 1024]


# -- the budget -------------------------------------------------------------------------------------------------------
class FakeDevice:
    """What memory_limit() asks of a device that has its own memory."""

    global_mem_size, type, host_unified_memory = 1000 * MIB, 4, False


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", 900 * MIB), ("100", 100), ("2k", 2048), ("3M", 3 * MIB), ("3MiB", 3 * MIB), ("3 mb", 3 * MIB),
        ("2G", 2048 * MIB), ("0.5G", 512 * MIB), ("80%", 800 * MIB), ("12.5 %", 125 * MIB),
        (" 7M ", 7 * MIB), ("1T", 1 << 40),
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


def test_a_shared_memory_counts_what_the_host_has_free(device, monkeypatch):
    monkeypatch.delenv("CLNN_MEMORY_LIMIT", raising=False)
    limit = memory_limit(device.cl_device)
    assert 0 < limit <= 0.9 * device.global_memory
    if device.kind == "cpu":
        monkeypatch.setattr("clnn.runtime.memory._host_available", lambda default: 10 * MIB)
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
        device.memory.allocate(device.memory._largest + (1 << 20))
    assert device.memory_in_use == before


def test_sizes_for_people():
    assert [human(n) for n in (0, 1023, 1024, 1536 * 1024, 5 << 30, 5 << 40)] == [
        "0 bytes", "1023 bytes", "1.0 KiB", "1.5 MiB", "5.0 GiB", "5120.0 GiB",
    ]  # fmt: skip
