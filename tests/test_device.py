"""Finding and choosing a device: by kind, index, name and environment; without any; after a fork; two at once."""

import os
import subprocess
import sys
import warnings
from types import SimpleNamespace

import numpy as np
import pyopencl as cl
import pytest

import clnn
from clnn.ops.array import fill
from clnn.runtime.device import MOST, int_vector
from clnn.runtime.devices import choice
from clnn.runtime.memory import Block, Memory
from clnn.runtime.program import Programs
from clnn.tools import cli


def made_up(platform, index, kind, name, maker, units, mhz, platform_name="Portable Computing Language"):
    """A device that can be found and chosen, but not opened."""
    one = object.__new__(clnn.Device)
    one.platform_index, one.device_index, one.kind, one.name = platform, index, kind, name
    one.platform, one.version, one.driver = platform_name, "OpenCL 3.0", "1.0"
    one.compute_units, one.clock_mhz, one.unified, one.twin = units, mhz, False, None
    one.cl_device = SimpleNamespace(vendor=maker, platform=SimpleNamespace(vendor=platform_name))
    return one


CPU = made_up(0, 0, "cpu", "pthread-EPYC", "AuthenticAMD", 64, 3000)
SLOW = made_up(1, 0, "gpu", "gfx90c", "Advanced Micro Devices, Inc.", 7, 1800, "AMD Accelerated Parallel Processing")
FAST = made_up(1, 1, "gpu", "gfx1100", "Advanced Micro Devices, Inc.", 48, 2304, "AMD Accelerated Parallel Processing")
CARD = made_up(2, 0, "accelerator", "FPGA card", "Intel", 1, 200, "Intel FPGA")
LARGE = made_up(3, 0, "gpu", "NVIDIA H100", "NVIDIA Corporation", 132, 1980, "NVIDIA CUDA")


@pytest.fixture
def machine(monkeypatch):
    """A machine with the five devices above, and no variable set."""
    for name in ("CLNN_DEVICE", "CLNN_DEVICE_EXCLUDE", "PYOPENCL_CTX"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(choice, "_found", [CPU, SLOW, FAST, CARD, LARGE])
    monkeypatch.setattr(choice, "_default", None)
    return monkeypatch


@pytest.mark.parametrize(
    ("want", "found"),
    [
        ("gpu", LARGE),
        ("GPU", LARGE),
        ("cpu", CPU),
        ("accelerator", CARD),
        ("gpu:0", LARGE),
        ("gpu:1", FAST),
        ("gpu:2", SLOW),
        ("1:0", SLOW),
        ("1:1", FAST),
        ("3", LARGE),
        (" 0:0 ", CPU),
        ("amd", FAST),  # the fastest that the name fits; the CPU's maker is AMD too, but a GPU comes first
        ("nvidia", LARGE),
        ("h100", LARGE),
        ("amd:1", SLOW),
        ("Intel FPGA", CARD),
        ("pocl", None),
        ("gpu:3", None),
        ("4:0", None),
        ("1:2", None),
        ("tpu", None),
        ("gpu:", None),
        ("\u00b2", None),  # a digit, and no number
        ("0:\u00b2", None),
        ("amd:\u00b2", None),
    ],
)
def test_choice_by_clnn_device(machine, want, found):
    machine.setenv("CLNN_DEVICE", want)
    if found:
        assert clnn.device() is found
    else:
        with pytest.raises(clnn.DeviceError, match="CLNN_DEVICE") as error:
            clnn.device()
        assert all(
            text in str(error.value) for text in ("0:0  cpu  pthread-EPYC", "3:0  gpu  NVIDIA H100", "clnn doctor")
        )


def test_default_is_the_largest_gpu_then_an_accelerator_then_a_cpu(machine):
    assert clnn.device() is LARGE
    for out, then in (("nvidia", FAST), ("nvidia, AMD Accelerated", CARD), ("nvidia,gfx,fpga", CPU), (" GPU", CARD)):
        machine.setenv("CLNN_DEVICE_EXCLUDE", out)
        assert clnn.device() is then
    machine.setenv("CLNN_DEVICE_EXCLUDE", "accelerator,gpu")
    assert clnn.devices() == [CPU]


class Platform:
    """A platform as pyopencl shows it, with cards of `Card`; `error` is what listing them ends in."""

    def __init__(self, name, *cards, version="OpenCL 3.0", error=None):
        self.name, self.version, self.vendor, self.cards, self.error = name, version, name, cards, error

    def get_devices(self):
        if self.error:
            raise self.error
        for card in self.cards:
            card.platform = self
        return list(self.cards)


class Card:
    """A device as pyopencl shows it: of what a driver does not know the question ends in an error."""

    driver_version, extensions, global_mem_size, local_mem_size = "1.0", "cl_khr_fp16", 8 << 30, 32768
    native_vector_width_float, max_work_group_size, max_mem_alloc_size, mem_base_addr_align = 1, 256, 2 << 30, 4096
    max_work_item_sizes = (256, 256, 64)
    host_unified_memory = False

    def __init__(self, name, vendor, units, mhz, kind="GPU", **more):
        self.name, self.vendor, self.max_compute_units, self.max_clock_frequency = name, vendor, units, mhz
        self.type = getattr(cl.device_type, kind)
        vars(self).update(more)

    def __getattr__(self, name):
        raise cl.LogicError(f"clGetDeviceInfo failed: INVALID_VALUE for {name}")


def xe(**more):
    return Card("Intel(R) Iris(R) Xe Graphics", "Intel(R) Corporation", 96, 1300, host_unified_memory=True, **more)


def geforce(units=30, mhz=1680, capability=(7, 5), bus=1, **more):
    major, minor = capability
    return Card(
        "NVIDIA GeForce", "NVIDIA Corporation", units, mhz, compute_capability_major_nv=major,
        compute_capability_minor_nv=minor, pci_bus_id_nv=bus, pci_slot_id_nv=0, **more,
    )  # fmt: skip


def radeon(units=40, mhz=2100, **more):
    return Card("gfx1030", "Advanced Micro Devices, Inc.", units, mhz, **more)


def arc(**more):
    return Card("Intel(R) Arc(TM) A770 Graphics", "Intel(R) Corporation", 512, 2400, **more)


def processor(units=16, mhz=4000):
    return Card("pthread-Intel", "GenuineIntel", units, mhz, "CPU", host_unified_memory=True)


@pytest.fixture
def platforms(monkeypatch):
    """A machine that has the given platforms and no variable set."""
    for name in ("CLNN_DEVICE", "CLNN_DEVICE_EXCLUDE", "CLNN_DEVICE_AS", "PYOPENCL_CTX"):
        monkeypatch.delenv(name, raising=False)

    def have(*found):
        monkeypatch.setattr(cl, "get_platforms", lambda: list(found))
        monkeypatch.setattr(choice, "_found", None)
        monkeypatch.setattr(choice, "_default", None)
        return [f"{d.platform_index}:{d.device_index}" for d in clnn.devices()]

    return have


@pytest.mark.parametrize(
    ("cards", "best"),
    [
        ([xe(), geforce()], 1),  # 96 units at 1.3 GHz are fewer lanes than 30 at 1.7
        ([geforce(), xe()], 0),
        ([xe(), geforce(units=3, mhz=900)], 1),  # a small one, with memory of its own
        ([processor(), xe()], 1),
        ([processor(128, 5000), geforce(1, 500)], 1),
        ([geforce(units=40, mhz=1700, capability=(7, 5)), geforce(units=28, mhz=1800, capability=(8, 6), bus=2)], 1),
        ([radeon(units=40, mhz=2100), geforce(units=28, mhz=1800, capability=(8, 6))], 1),  # 2,560 lanes, and 3,584
        ([geforce(units=10, mhz=1500, capability=(6, 1)), radeon()], 1),
        ([arc(), geforce(units=46, mhz=1900, capability=(8, 9))], 1),  # 4,096 lanes, and 5,888
        ([arc(), geforce(units=20, mhz=1900, capability=(8, 9))], 0),
        ([Card("Mali-G78", "ARM", 20, 0, host_unified_memory=True), processor()], 0),  # whose driver tells no clock
        (
            [
                Card("Adreno", "QUALCOMM", 2, 0, host_unified_memory=True),
                Card("x", "y", 3, 0, host_unified_memory=True),
            ],
            1,
        ),
        ([Card("odd", "Nobody", 9, 9000, "CUSTOM"), processor(1, 100)], 1),
        ([processor(2, 3000), processor(4, 2000)], 1),
    ],
)
def test_the_default_is_discrete_and_has_the_most_lanes(platforms, cards, best):
    platforms(*[Platform(f"platform {i}", card) for i, card in enumerate(cards)])
    assert clnn.device().platform_index == best
    platforms(Platform("one", *cards))
    assert clnn.device().device_index == best


def test_platforms_that_fail_or_have_nothing_are_left_out_and_named(platforms):
    broken = xe()
    del broken.name
    found = platforms(
        Platform("empty"),
        Platform("raises", error=cl.LogicError("clGetDeviceIDs failed: OUT_OF_HOST_MEMORY")),
        Platform("good", broken, geforce(), Card("odd bytes", "x", 1, 1)),
        Platform("raises otherwise", error=UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte")),
        Platform("cpu", processor()),
    )
    assert found == ["2:1", "2:2", "4:0"]  # indices are pyopencl's
    assert clnn.device().name == "NVIDIA GeForce" and choice.find_device("4:0").kind == "cpu"
    faults = choice.faults()
    assert len(faults) == 4 and faults[0] == "platform 0, empty, has no device"
    assert faults[1] == "platform 1 does not list its devices: clGetDeviceIDs failed: OUT_OF_HOST_MEMORY"
    assert "device 2:0 does not say what it is: " in faults[2] and "platform 3 does not list its devices: " in faults[3]
    assert platforms(Platform("empty"), Platform("bad", error=cl.RuntimeError("no"))) == []
    with pytest.raises(
        clnn.DeviceError, match="no OpenCL device; platform 0, empty, has no device; platform 1 does not"
    ):
        clnn.device()


def test_pocl_without_a_device_says_why(platforms, monkeypatch):
    for named, why in (("cuda", "POCL_DEVICES='cuda' names none"), (None, "set POCL_CACHE_DIR")):
        monkeypatch.delenv("POCL_DEVICES", raising=False)
        if named:
            monkeypatch.setenv("POCL_DEVICES", named)
        assert platforms(Platform("Portable Computing Language")) == [] and why in choice.faults()[0]


def test_a_device_that_two_vendor_files_list_counts_once(platforms):
    two = [radeon(), radeon()]  # two cards of one kind are two devices
    again = [radeon(), radeon()]
    assert platforms(Platform("AMD", *two), Platform("AMD", *again), Platform("AMD", radeon(), version="OpenCL 2.0")) == [
        "0:0", "0:1", "1:0", "1:1", "2:0",
    ]  # fmt: skip
    at = lambda want: (lambda d: (d.platform_index, d.device_index))(choice.find_device(want))  # noqa: E731
    assert [at(f"gpu:{i}") for i in range(3)] == [(0, 0), (0, 1), (2, 0)]
    with pytest.raises(clnn.DeviceError):
        at("gpu:3")
    assert at("1:1") == (1, 1) and at("gfx1030:1") == (0, 1)
    assert [d.twin and d.twin.device_index for d in clnn.devices()] == [None, None, 0, 1, None]


def test_a_card_on_two_platforms_counts_once(platforms):
    """By its place on the bus, whatever drivers call it; a part of a name still finds the one that is meant."""
    mesa = Card("NV167", "nouveau", 30, 1680, pci_bus_id_nv=1, pci_slot_id_nv=0)
    other = geforce(bus=2)
    amd = radeon(topology_amd=SimpleNamespace(bus=-125, device=0, function=0))
    card = radeon(topology_amd=SimpleNamespace(bus=131, device=0, function=0))
    platforms(Platform("NVIDIA CUDA", geforce(), other), Platform("rusticl", mesa, amd), Platform("ROCm", card))
    twins = {d.name: d.twin and d.twin.platform for d in clnn.devices() if d.platform != "NVIDIA CUDA"}
    assert twins == {"NV167": "NVIDIA CUDA", "gfx1030": "rusticl"}
    assert [d.twin for d in clnn.devices()[:2]] == [None, None]
    assert choice.find_device("rusticl:0").platform == "rusticl" and choice.find_device("NV167").name == "NV167"
    assert len({choice.find_device(f"gpu:{i}") for i in range(3)}) == 3
    for want in ("gpu:3", "gpu:" + "9" * 5000, "0:" + "9" * 5000, "9" * 5000):
        with pytest.raises(clnn.DeviceError):
            choice.find_device(want)
    assert choice.find_device("00:01") is choice.find_device("0:1")


def test_one_name_at_two_places_is_two_devices(platforms):
    platforms(Platform("NVIDIA CUDA", geforce(bus=1)), Platform("NVIDIA CUDA", geforce(bus=2)))
    assert [d.twin for d in clnn.devices()] == [None, None]
    far = [geforce(bus=1, pci_domain_id_nv=domain) for domain in (0, 8)]
    platforms(Platform("NVIDIA CUDA", far[0]), Platform("NVIDIA CUDA", far[1]))
    assert [d.twin for d in clnn.devices()] == [None, None]


def test_the_command_line_says_why_and_what_was_left_out(platforms, capsys):
    platforms(Platform("Intel", xe()), Platform("none"), Platform("NVIDIA", geforce()), Platform("NVIDIA", geforce()))
    assert cli.main(["devices"]) == 0
    out = capsys.readouterr().out
    table, sentences = out.split("\n\n")
    rows = table.splitlines()
    assert rows[0].split()[5:7] == ["units", "lanes"] and "8.0 GiB of the host  96     8      1300 MHz" in rows[1]
    assert rows[2].startswith("*  2:0") and "8.0 GiB              30     64     1680 MHz" in rows[2]
    assert "NVIDIA, OpenCL 3.0 (2:0 once more)" in rows[3]
    assert (
        "2:0 is used, by default: gpu, memory of its own, 30 units x 64 lanes x 1680 MHz. A GPU comes before"
        in sentences
    )
    assert sentences.endswith("Left out: platform 1, none, has no device\n")


def test_pyopencl_ctx_counts_where_clnn_device_is_not_set(machine):
    machine.setenv("PYOPENCL_CTX", "1:1")
    assert clnn.device() is FAST
    machine.setenv("PYOPENCL_CTX", "4")
    with pytest.raises(clnn.DeviceError, match="PYOPENCL_CTX '4'"):
        clnn.device()
    machine.setenv("CLNN_DEVICE", "cpu")
    assert clnn.device() is CPU


def test_exclude_reaches_named_devices_and_can_leave_none(machine):
    machine.setenv("CLNN_DEVICE_EXCLUDE", "nvidia")
    machine.setenv("CLNN_DEVICE", "h100")
    with pytest.raises(clnn.DeviceError, match=r"'h100' matches no OpenCL device \(CLNN_DEVICE_EXCLUDE leaves out 1\)"):
        clnn.device()
    machine.setenv("CLNN_DEVICE_EXCLUDE", "open")
    with pytest.raises(clnn.DeviceError, match="CLNN_DEVICE_EXCLUDE leaves out every"):
        clnn.device()


@pytest.mark.parametrize("which", [3, b"cpu", ["cpu"]])
def test_what_names_no_device_is_an_error(machine, which):
    with pytest.raises(clnn.ArgumentError, match="a device is named by text such as 'cpu'"), clnn.use(which):
        pass


def test_use_nests_and_ends_with_its_block(machine):
    machine.setenv("CLNN_DEVICE", "cpu")
    with clnn.use("gpu") as outer:
        assert clnn.device() is outer is LARGE
        with clnn.use(SLOW):
            assert clnn.device() is SLOW
        with pytest.raises(ZeroDivisionError), clnn.use("amd"):
            assert clnn.device() is FAST
            1 / 0
        assert clnn.device() is LARGE
    assert clnn.device() is CPU
    with pytest.raises(clnn.DeviceError, match="clnn.use 'tpu'"), clnn.use("tpu"):
        pass


def test_use_without_with_says_that_it_changes_nothing(device):
    """PyTorch's `set_default_device` is a statement."""
    name = f"{device.platform_index}:{device.device_index}"
    with pytest.warns(UserWarning, match='write "with clnn.use') as caught:
        clnn.use(name)
    assert caught[0].filename == __file__
    with pytest.raises(clnn.DeviceError, match="clnn.use 'tpu'"):
        clnn.use("tpu")

    @clnn.use(name)
    def used():
        return clnn.device()

    later = clnn.use(name)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(2):
            with later as one, clnn.use(one):
                assert clnn.device() is one is used()
        del used, later


def test_every_device_can_be_named_by_its_indices(device):
    with clnn.use(f"{device.platform_index}:{device.device_index}") as same:
        assert same is device
        assert clnn.tensor([1.0, 2.0]).device is device
    assert device.kind in ("cpu", "gpu", "accelerator", "other") and device.name in repr(device)


@pytest.mark.parametrize(
    ("form", "attributes"),
    [
        ("", {}),
        ("kind=gpu", {"kind": "gpu", "local_on_stack": False}),
        (" units = 36 , lanes=8,", {"compute_units": 36, "lanes": 8}),
        ("group=16", {"max_group": 16, "group_width": 16}),
        ("group=1000000000,piece=1000000G", {}),  # no more than there is
        ("piece=12M", {"max_piece": 12 << 20}),
        ("align=4096", {"alignment": 4096}),
        ("piece=1.5m,fp64=0", {"max_piece": 3 << 19, "has_fp64": False}),
        ("turns=20000", {"most_turns": 20000}),
        ("kind=accelerator,lanes=4", {"kind": "accelerator", "lanes": 4, "local_on_stack": False}),
    ],
)
def test_a_device_of_another_form(device, monkeypatch, form, attributes):
    monkeypatch.setenv("CLNN_DEVICE_AS", "")
    plain = clnn.Device(device.cl_device, 0, 0)
    monkeypatch.setenv("CLNN_DEVICE_AS", form)
    other = clnn.Device(device.cl_device, 0, 0)
    names = ["kind", "compute_units", "lanes", "max_group", "group_width", "max_piece", "has_fp64", "local_on_stack"]
    names += ["alignment", "most_turns"]
    assert {name: getattr(other, name) for name in names} == {name: getattr(plain, name) for name in names} | attributes
    assert (other.identity == plain.identity) is (form == "")  # what was measured on one is nothing for the other
    assert (clnn.tensor([1.0, 2.0], device=other) + 1).numpy().tolist() == [2, 3]


@pytest.mark.parametrize(
    ("form", "said"),
    [
        ("kind=tpu", "'kind=tpu', and kind should be one of gpu, accelerator, cpu"),
        ("cores=4", "'cores'; there are kind, units, group, lanes, piece, align, fp64, turns"),
        ("kind=gpu,units=0", "'units=0', and units should be a number above 0"),
        ("units", "'units', and units should be a number"),
        ("group=-1", "group should be a number above 0"),
        ("lanes=3", "lanes should be 1, 2, 4, 8 or 16"),
        ("align=1000", "align should be a power of 2 from 128 to 8192"),
        ("piece=12%", "piece should be a size such as 12M"),
        ("fp64=1", "fp64 should be 0"),
        ("turns=0", "turns should be a number above 0"),
        ("kind=gpu,lanes=8,kind=cpu", "says kind twice"),
    ],
)
def test_a_form_that_is_none(device, monkeypatch, form, said):
    monkeypatch.setenv("CLNN_DEVICE_AS", form)
    monkeypatch.setattr(choice, "_found", None)
    for _ in range(2):  # a first error leaves nothing half-found
        with pytest.raises(clnn.ConfigurationError, match=f"CLNN_DEVICE_AS='{form}' .*{said}"):
            clnn.devices()


def test_a_group_larger_than_the_devices_is_an_error(device, monkeypatch):
    monkeypatch.setenv("CLNN_DEVICE_AS", "group=4")
    other = clnn.Device(device.cl_device, 0, 0)
    with pytest.raises(clnn.DeviceError, match=r"fill asks for groups of \(4, 2\), and .* has at most 4 work-items"):
        other.launch("shape", "fill", (4, 2), local=(4, 2))


@pytest.mark.parametrize(("name", "helps"), [("Intel(R) OpenCL", True), ("Portable Computing Language", False)])
def test_the_host_computes_along_where_a_driver_leaves_it_a_core(device, monkeypatch, name, helps):
    """With Intel's CPU runtime it has to wait in clFinish for that: a copy that waits leaves a core idle."""
    waits = []
    tensor = clnn.tensor(np.arange(1000, dtype=np.float32), device=device)
    monkeypatch.setattr(device, "platform", name)
    monkeypatch.setattr(device, "kind", "cpu")
    monkeypatch.setattr(type(device), "finish", lambda self: waits.append(self))
    assert np.array_equal(tensor.numpy(), np.arange(1000)) and waits == [device] * helps


def test_tensors_on_two_devices_do_not_mix(device):
    # the same device once more, with a context of its own
    other = clnn.Device(device.cl_device, device.platform_index, device.device_index)
    x = clnn.tensor(np.ones((2, 2), np.float32))
    with clnn.use(other):
        y, labels = clnn.tensor(np.ones((2, 2), np.float32)), clnn.tensor([0, 1])
        net = clnn.Sequential([clnn.Dense(2)], input_shape=2)
    for mix in (
        lambda: x + y,
        lambda: y * x,
        lambda: x @ y,
        lambda: clnn.concatenate([x, y]),
        lambda: clnn.losses.cross_entropy(x, labels),
        lambda: net(x),
        lambda: net.forward(x),
    ):
        with pytest.raises(clnn.ClnnError, match="device"):
            mix()
    assert (x.to(other) + y).numpy().sum() == 8
    assert net(x.to(other)).device is other


def run(code, **variables):
    """The output of Python code in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, env={**os.environ, **variables}
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_without_any_platform_clnn_imports_and_says_how_to_get_one(tmp_path):
    code = """
import pyopencl, clnn
platforms = []
try:
    platforms = pyopencl.get_platforms()
except pyopencl.Error:
    pass
if platforms:
    print("there are platforms")
else:
    assert clnn.devices() == []
    for use in (clnn.device, lambda: clnn.tensor([1.0]), lambda: clnn.Sequential([clnn.Dense(1)], input_shape=1)):
        try:
            use()
        except clnn.DeviceError as error:
            print(error)
"""
    output = run(code, OCL_ICD_VENDORS=str(tmp_path), OCL_ICD_FILENAMES="", CLNN_DEVICE="")
    if "there are platforms" in output:
        pytest.skip("this loader has a driver of its own, whatever OCL_ICD_VENDORS says")
    assert output.splitlines() == [f"There is no OpenCL device. {choice.HOW_TO_GET_ONE}"] * 3


def test_importing_loads_no_driver_and_is_quick(tmp_path):
    code = """
import sys, time
start = time.process_time()
import pyopencl
pyopencl_alone = time.process_time() - start
import clnn
print(pyopencl_alone, time.process_time() - start)
assert clnn.runtime.devices.choice._found is None, "importing looked for devices"
heavy = {"sklearn", "scipy", "matplotlib", "tqdm", "pyclblast", "torch"} & set(sys.modules)
assert not heavy, f"importing clnn imported {heavy}"
"""
    variables = {"PYTHONPYCACHEPREFIX": str(tmp_path), "PYTHONDONTWRITEBYTECODE": ""}
    run(code, **variables)  # fills the cache of byte code
    times = [[float(t) for t in run(code, **variables).split()] for _ in range(5)]
    pyopencl_alone, both = map(min, zip(*times))
    # processor time, and the best of five, so that a busy machine does not matter; a slow one may take longer
    assert both < max(0.5, 1.7 * pyopencl_alone), (
        f"import clnn took {both:.2f} s, pyopencl alone {pyopencl_alone:.2f} s"
    )


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_a_forked_process_is_told_rather_than_hung():
    code = """
import os, sys, clnn
x = clnn.tensor([1.0])
child = os.fork()
if child == 0:
    try:
        clnn.tensor([2.0]) + 1
    except clnn.DeviceError as error:
        os._exit(0 if "spawn" in str(error) else 1)
    os._exit(2)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
assert (x + 1).numpy() == 2
"""
    run(code)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_a_fork_before_the_driver_is_loaded_is_no_problem():
    code = """
import os, clnn
child = os.fork()
if child == 0:
    os._exit(0 if (clnn.tensor([2.0]) + 1).numpy() == 3 else 1)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
"""
    run(code)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no limits to read")
def test_local_memory_is_the_stack_only_where_that_is_large_enough(device, monkeypatch):
    """PoCL's threads have it with glibc: 128 KiB with musl would not do."""
    import resource

    asked = type(device).local_on_stack.func
    pocl = device.kind == "cpu" and device.pocl_version > (0, 0)
    for libc, limit, enough in [
        ("glibc", 8 << 20, True),
        ("glibc", resource.RLIM_INFINITY, True),
        ("glibc", 1 << 20, False),
        ("", 8 << 20, False),
    ]:
        monkeypatch.setattr("clnn.runtime.devices.pocl.libc_ver", lambda libc=libc: (libc, ""))
        monkeypatch.setattr(resource, "getrlimit", lambda which, limit=limit: (limit, limit))
        assert asked(device) is (pocl and enough)


# -- sizes that 32 bits do not hold ------------------------------------------------------------------------------------
allocate = Memory.allocate


class Huge(Block):
    """Claims `nbytes` and has few: what is launched over it would write somewhere else."""

    def __init__(self, device, nbytes):
        few = allocate(device.memory, 1024)
        super().__init__(device, nbytes, few.buffer, device.memory, 0, False)


def huge(device, elements, dtype=np.float32):
    dtype = np.dtype(dtype)
    return clnn.Tensor(Huge(device, elements * dtype.itemsize), (elements,), dtype, device)


@pytest.mark.parametrize("elements", [2**31 - 1, 2**31, 2**31 + 7, 2**32, 2**32 + 5, 2**33 + 1])
def test_more_elements_than_kernels_count(device, monkeypatch, elements):
    monkeypatch.setattr(Memory, "allocate", lambda self, nbytes, pooled=True: Huge(device, nbytes))
    monkeypatch.setattr(cl, "enqueue_nd_range_kernel", lambda *args: pytest.fail(f"launched over {args[2]}"))
    x = huge(device, elements)
    rows = clnn.Tensor(x.block, (elements // 8, 8), x.dtype, device)
    small = huge(device, 8)
    monkeypatch.setitem(vars(device), "constants", {})
    for act in (
        lambda: x + 1.0,
        lambda: x * x,
        lambda: clnn.relu(x),
        lambda: x.sum(),
        lambda: clnn.softmax(rows),
        lambda: rows + small,
        lambda: small + rows,
        lambda: rows.T.sum(0),
        lambda: rows[:, 3:5] + 1.0,
        lambda: rows @ clnn.Tensor(huge(device, 16).block, (8, 2), x.dtype, device),
        lambda: clnn.concatenate([x, x]),
        lambda: fill(x, 1.0),
    ):
        with pytest.raises(clnn.DeviceError, match=r"[\d,]{12,}.*, and the most is 2,147,418,112.*use smaller arrays"):
            act()


def test_a_product_whose_result_alone_is_too_large(device, monkeypatch):
    a, b = huge(device, 2**20), huge(device, 2**20)
    a, b = (clnn.Tensor(t.block, shape, t.dtype, device) for t, shape in ((a, (2**16, 16)), (b, (16, 2**16))))
    monkeypatch.setattr(Memory, "allocate", lambda self, nbytes, pooled=True: Huge(device, nbytes))
    monkeypatch.setattr(cl, "enqueue_nd_range_kernel", lambda *args: pytest.fail(f"launched over {args[2]}"))
    with pytest.raises(clnn.DeviceError, match="an array of 4,294,967,296 elements, and the most is"):
        a @ b


@pytest.mark.parametrize("value", [2**31, -(2**31) - 1, 2**40, 2**63, np.int64(2**31), np.uint32(2**32 - 1)])
def test_a_size_that_would_wrap(device, value):
    with pytest.raises(clnn.DeviceError, match=f"the size {int(value):,}, and the most is"):
        device.launch("shape", "fill", (4,), value)
    with pytest.raises(clnn.DeviceError, match=f"the sizes 1, {int(value):,}, and the most is"):
        int_vector([1, value])
    if value > 0:
        with pytest.raises(clnn.DeviceError, match=f"shape.fill was given {int(value):,} work-items along an axis"):
            device.launch("shape", "fill", (1, int(value)))
    assert int_vector([2**31 - 1, -(2**31)]).tolist() == [2**31 - 1, -(2**31)]


def test_as_many_elements_as_kernels_count_are_launched(device, monkeypatch):
    launched = []
    monkeypatch.setattr(cl, "enqueue_nd_range_kernel", lambda *args: launched.append(args[2]))
    fill(huge(device, MOST), 0.0)
    if device.has_fp64:
        fill(huge(device, MOST, np.float64), 0.0)
    assert launched and all(max(size) <= MOST for size in launched)


# -- groups of work-items ----------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("most", "width"), [(4096, 128), (128, 128), (127, 64), (96, 64), (64, 64), (63, 32), (5, 4), (1, 1)]
)
def test_groups_are_powers_of_two(device, monkeypatch, most, width):
    monkeypatch.setattr(device, "max_group", most)
    monkeypatch.delitem(vars(device), "group_width", raising=False)
    assert device.group_width == width
    monkeypatch.delitem(vars(device), "group_width")


def test_groups_are_no_longer_than_an_axis_allows(platforms):
    platforms(Platform("odd", radeon(max_work_group_size=1024, max_work_item_sizes=(48, 1024, 1024))))
    assert (clnn.device().max_group, clnn.device().group_width) == (48, 32)


@pytest.mark.parametrize("most", [100, 33, 7, 1])
@pytest.mark.parametrize("record", [False, True])
def test_a_kernel_that_runs_in_small_groups_only(device, monkeypatch, most, record):
    """What a device says of all kernels may be too much for one that takes many registers: it is asked for each."""
    asked = cl.Kernel.get_work_group_info
    info = cl.kernel_work_group_info.WORK_GROUP_SIZE
    monkeypatch.setattr(
        cl.Kernel, "get_work_group_info", lambda self, what, *at: most if what == info else asked(self, what, *at)
    )
    groups = []
    enqueue = cl.enqueue_nd_range_kernel

    def spy(queue, kernel, size, local):
        if np.prod(local) > most:
            raise cl.LogicError("clEnqueueNDRangeKernel failed: INVALID_WORK_GROUP_SIZE")
        groups.append((size, local))
        return enqueue(queue, kernel, size, local)

    monkeypatch.setattr(cl, "enqueue_nd_range_kernel", spy)
    monkeypatch.setitem(vars(device), "programs", Programs(device.context))
    x = np.arange(1000, dtype=np.float32)

    def step(x):
        return clnn.concatenate([x.reshape((10, 100)) * 2.0, x.reshape((10, 100)) + 1.0], axis=1)

    run = clnn.step(step) if record else step
    for _ in range(5):
        found = run(clnn.tensor(x)).numpy()
    np.testing.assert_array_equal(found, np.concatenate([x.reshape(10, 100) * 2, x.reshape(10, 100) + 1], 1))
    assert groups and all(np.prod(local) <= most for _, local in groups)
    assert all(s % part == 0 for size, local in groups for s, part in zip(size, local))
    y = device.allocate(4000)
    said = rf"fill over .* failed: .*INVALID_WORK_GROUP_SIZE; .* at most {most}: .*CLNN_DEVICE_AS=group={most}\)"
    if (group := min(128, device.max_group)) > most:
        with pytest.raises(clnn.DeviceError, match=said):
            device.launch("elementwise", "fill", (1024,), 1000, y, 1.0, local=(group,))


def _trained(on):
    """What layers whose groups are compiled in come to on a device, forward and backward, and their weights after steps."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((33, 3, 8, 8)).astype(np.float32)
    y = rng.standard_normal((33, 70)).astype(np.float32)
    found = []
    with clnn.use(on):
        for optimizer in (clnn.LAMB(0.01, epsilon=0.1, clip_norm=0.1), clnn.SGD(0.01, momentum=0.9)):
            layers = [clnn.BatchNorm(), clnn.Conv2D(6, 3, padding="same"), clnn.GroupNorm(2), clnn.Flatten(),
                      clnn.Dense(70, max_norm=0.5), clnn.LayerNorm()]  # fmt: skip
            net = clnn.Sequential(layers, input_shape=x.shape[1:], seed=1)
            net.fit(x, y, loss="mse", optimizer=optimizer, epochs=1, batch_size=11, shuffle=False, progress=False)
            found += [net.predict(x), *(p.numpy() for p in net.parameters())]
    return found


def test_groups_that_are_compiled_in_become_smaller(device, monkeypatch, most=24):
    """Where a kernel as compiled takes fewer work-items than its group has, as on Mali and Adreno, it is compiled for fewer."""
    monkeypatch.setenv("CLNN_DEVICE_AS", "kind=gpu")
    monkeypatch.setenv("CLNN_SELF_TEST", "0")
    monkeypatch.setenv("CLNN_GEMM", "tile")
    right = _trained(clnn.Device(device.cl_device, 0, 0))
    asked, info, groups = cl.Kernel.get_work_group_info, cl.kernel_work_group_info.WORK_GROUP_SIZE, []
    monkeypatch.setattr(
        cl.Kernel, "get_work_group_info", lambda self, what, *at: most if what == info else asked(self, what, *at)
    )
    enqueue = cl.enqueue_nd_range_kernel
    monkeypatch.setattr(
        cl, "enqueue_nd_range_kernel", lambda *args: groups.append(int(np.prod(args[3]))) or enqueue(*args)
    )
    for one, other in zip(_trained(clnn.Device(device.cl_device, 0, 0)), right):
        np.testing.assert_allclose(one, other, atol=2e-4)
    assert 1 < max(groups) <= most
