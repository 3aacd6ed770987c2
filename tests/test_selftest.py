"""The self-test of a device: what it finds, what it remembers, and that whatever a driver does is survived."""

import json
import multiprocessing.spawn
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from helpers import parameter
from test_random import philox

import clnn
from clnn.runtime import program
from clnn.runtime.devices import selftest
from clnn.tensor import linear_layer
from clnn.tools import doctor
from clnn.tools import selftest as tests


@pytest.fixture
def cache(monkeypatch, tmp_path):
    """An empty cache folder, so that nothing is remembered."""
    monkeypatch.setenv("CLNN_CACHE_DIR", str(tmp_path))
    monkeypatch.delenv("CLNN_SELF_TEST", raising=False)
    return tmp_path


@pytest.fixture
def other(device):
    """The device once more, not yet opened."""
    return clnn.Device(device.cl_device, device.platform_index, device.device_index)


@pytest.mark.parametrize(
    "test",
    [
        pytest.param(one, marks=pytest.mark.platform("selftest") if one is tests.conversions else pytest.mark.platform)
        for one in tests.TESTS
    ],
    ids=lambda test: test.__name__,
)
def test_each_part_passes_here(device, test):
    assert list(test(device)) == []


def test_the_checksum_is_that_of_philox_in_python():
    key = [tests.SEED & 0xFFFFFFFF, tests.SEED >> 32]
    words = [word for i in range(tests.MANY // 4) for word in philox([i, 0, 0, 0], key)]
    assert zlib.crc32(np.array(words, "<u4").tobytes()) == tests.CRC
    assert philox([0] * 4, [0] * 2) == tests.PHILOX


FAULTS = [  # the part that finds it, the kernel file, what it says, what a compiler might make of that, and the finding
    (tests.random_numbers, "random", "0xD2511F53u", "0xD2511F51u", "Philox' first random numbers are .* are right"),
    (tests.sums, "reduce", "((s) + (x))", "((s) + 2 * (x))", "a sum of 60,000 numbers is "),
    (
        tests.conversions,
        "selftest",
        "(v < 0, -v, v)",
        "(v < 0, v, v)",
        "absolute values .float32.: .* where .* is right",
    ),
    (tests.conversions, "selftest", "(k & 255)", "(0 * k)", "bytes of whole numbers .float32.: .* where .* is right"),
    (tests.functions, "selftest", "tanh(v)", "tanh(v) * (T)(1.0001)", "^tanh .float32.: .* where .* is right"),
    (
        tests.functions,
        "selftest",
        "exp(v)",
        "v / 0",
        "^exp .float32.: np.float32.(inf|-inf|nan)|^exp .float32.: -?(inf|nan)",
    ),
    (tests.groups, "selftest", "h > 0", "h > 1", "sums in local memory: .* is right"),
    (tests.products, "gemm", "begin = part * depth", "begin = part * depth + 1", "a matrix product: .* is right"),
]


@pytest.fixture
def compiles(monkeypatch):
    """compiles(file, right, wrong): from now on `right` in a kernel file comes out as `wrong`."""
    real = program.source_for

    def become(file, right, wrong):
        def source_for(name, dtype):
            source = real(name, dtype)
            assert name != file or right in source
            return source.replace(right, wrong) if name == file else source

        monkeypatch.setattr(program, "source_for", source_for)

    return become


@pytest.mark.parametrize(("test", "file", "right", "wrong", "said"), FAULTS, ids=lambda v: getattr(v, "__name__", ""))
def test_each_part_finds_a_fault(other, monkeypatch, compiles, test, file, right, wrong, said):
    compiles(file, right, wrong)
    monkeypatch.setenv("CLNN_SELF_TEST", "0")
    with clnn.use(other):
        found = list(test(other))
    assert found and re.search(said, found[0]), found


@pytest.mark.parametrize(
    ("right", "wrong", "turns"),
    [
        ("i < n", "i < min(n, 65535)", 65535),
        ("i < n", "i < min(n, 40000)", 40000),
        ("i < n", "i < min(n, 99999)", 99999),
    ],
)
def test_loops_that_a_driver_ends_are_counted(device, other, monkeypatch, compiles, right, wrong, turns):
    compiles("selftest", right, wrong)
    monkeypatch.setenv("CLNN_SELF_TEST", "0")
    assert other.most_turns == min(turns, device.most_turns or turns)


@pytest.mark.parametrize("said", ["no", "false", "2"])
def test_what_is_neither_yes_nor_no_is_an_error(device, monkeypatch, said):
    """It was as if nothing was said, and the device was tested."""
    monkeypatch.setenv("CLNN_SELF_TEST", said)
    with pytest.raises(clnn.ConfigurationError, match=f"CLNN_SELF_TEST='{said}' should be 0, .* or 1"):
        selftest.check(device)


@pytest.mark.parametrize("wrong", ["i < min(n, 100)", "i < n + 1"])
def test_loops_that_a_driver_gets_wrong_are_a_fault(device, other, monkeypatch, compiles, wrong):
    if device.most_turns and "100" not in wrong:
        pytest.skip("loops do not get that far here")
    compiles("selftest", "i < n", wrong)
    monkeypatch.setenv("CLNN_SELF_TEST", "0")
    with pytest.raises(clnn.DeviceError, match="a loop of 100,000 turns comes to .* is right"):
        selftest.count_turns(other)


# -- what is made of the result ----------------------------------------------------------------------------------------
def says(monkeypatch, *lines, end=""):
    """The process of the self-test prints these lines, and ends like that."""
    code = "".join(f"print({json.dumps(line) if isinstance(line, dict) else line!r}, flush=True)\n" for line in lines)
    code = code.replace("print({", "print(json.dumps({").replace("}, flush", "}), flush")
    monkeypatch.setattr(selftest, "CHILD", f"import json, os, sys, time\n{code}{end}")


def test_a_device_that_passes_is_remembered(other, cache, monkeypatch):
    assert selftest.check(other) == other.most_turns
    (file,) = cache.iterdir()
    known = json.loads(file.read_text())
    assert known == {"passed": f"{other.identity} | clnn {clnn.__version__}", "turns": other.most_turns}
    monkeypatch.setattr(selftest, "run", None)  # not called any more
    file.write_text(json.dumps(known | {"turns": 77}))
    assert selftest.check(other) == 77


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "{}", '{"passed": "another", "turns": 0}', '{"passed": 1}', '"passed"', "[" * 99_999]
)
def test_a_damaged_file_is_as_good_as_none(other, cache, monkeypatch, text):
    says(monkeypatch, {"test": "sums"}, {"turns": 0})
    assert selftest.check(other) == 0
    (file,) = cache.iterdir()
    file.write_text(text)
    says(monkeypatch, {"test": "sums"}, {"turns": 65535})
    assert selftest.check(other) == 65535


@pytest.mark.parametrize("field", ["platform", "version", "driver", "name", "form", "clnn"])
def test_another_driver_or_clnn_is_tested_anew(other, cache, monkeypatch, field):
    says(monkeypatch, {"test": "sums"}, {"turns": 0})
    selftest.check(other)
    if field == "clnn":
        monkeypatch.setattr(clnn, "__version__", "99.0")
    else:
        setattr(other, field, "kind=gpu" if field == "form" else "another")
    says(monkeypatch, {"test": "sums"}, {"wrong": "2 + 2 = 5"}, {"turns": 0})
    with pytest.raises(clnn.DeviceError, match="2 . 2 = 5"):
        selftest.check(other)


def test_a_device_that_fails_is_refused_with_the_way_out(other, cache, monkeypatch):
    says(
        monkeypatch, "a driver's own words", {"test": "sums"}, {"wrong": "2 + 2 = 5"}, {"wrong": "3 = 4."}, {"turns": 0}
    )
    with clnn.use(other):
        for use in (lambda: clnn.tensor([1.0]), lambda: clnn.Sequential([clnn.Dense(1)], input_shape=1)):
            with pytest.raises(clnn.DeviceError) as error:
                use()
            for part in (
                repr(other),
                other.version,
                "fails clnn's self-test",
                "2 + 2 = 5; 3 = 4. ",
                "CLNN_SELF_TEST=0",
            ):
                assert part in str(error.value)
        assert list(cache.iterdir()) == []  # a fault is not remembered: what mends it may be out of clnn's sight
        monkeypatch.setenv("CLNN_SELF_TEST", "0")
        assert (clnn.tensor([1.0]) + 1).numpy() == 2


@pytest.mark.parametrize(
    ("end", "said"),
    [
        ("os.abort()", "at matrix products its process ended with signal 6"),
        ("time.sleep(60)", "at matrix products its process gave no answer for 2 s"),
        ("sys.exit('out of luck')", r"at matrix products its process failed \(out of luck\)"),
    ],
)
@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no signals")
def test_whatever_a_driver_does_to_its_process_is_survived(other, cache, monkeypatch, end, said):
    monkeypatch.setattr(selftest, "SECONDS", 2)
    says(monkeypatch, {"test": "sums"}, {"test": "matrix products"}, end=end)
    with pytest.raises(clnn.DeviceError, match=said):
        selftest.check(other)


@pytest.mark.parametrize("tests", [2, 3, 5])
def test_what_is_done_meanwhile_waits_for_kernels_that_ran(other, cache, monkeypatch, tests):
    """Once, and not where the process ends before. It may complain as much as it likes, in a place without temporary files."""
    monkeypatch.setattr(tempfile, "TemporaryFile", None)
    said = [{"test": str(i)} for i in range(tests)]
    says(monkeypatch, *said, {"turns": 5}, end="sys.stderr.write('complaint\\n' * 200_000)")
    called = []
    assert selftest.check(other, lambda: called.append(1)) == 5
    assert called == [1] and tests + 1 >= selftest.COMPILED or not called and tests + 1 < selftest.COMPILED


@pytest.mark.parametrize("why", ["frozen", "no interpreter", "no process", "another program", "an error of its own"])
def test_a_device_that_cannot_be_tested_is_used_with_a_warning(other, cache, monkeypatch, why):
    """A frozen program would start itself again, for ever."""
    if why == "frozen":
        monkeypatch.setattr(sys, "frozen", True, raising=False)
    elif why == "no interpreter":
        monkeypatch.setattr(multiprocessing.spawn, "get_executable", lambda: None)
    elif why == "no process":
        monkeypatch.setattr(
            subprocess, "Popen", lambda *a, **k: (_ for _ in ()).throw(BlockingIOError("no more processes"))
        )
    elif why == "another program":
        monkeypatch.setattr(multiprocessing.spawn, "get_executable", lambda: b"/bin/true")
    else:
        says(monkeypatch, end="import nothing_of_that_name")
    with pytest.warns(selftest.SelfTestWarning, match="uses it untested"), clnn.use(other):
        assert (clnn.tensor([1.0]) + 1).numpy() == 2
    assert other.most_turns in (0, 65535) and list(cache.iterdir()) == []


def test_without_a_cache_folder_to_write_to_each_process_tests(other, monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("CLNN_CACHE_DIR", str(tmp_path / "file" / "folder"))
    monkeypatch.delenv("CLNN_SELF_TEST", raising=False)
    for turns in (0, 65535):
        says(monkeypatch, {"test": "sums"}, {"turns": turns})
        assert selftest.check(other) == turns


def test_oclgrind_is_not_tested(other, cache, monkeypatch):
    monkeypatch.setattr(selftest, "run", None)
    other.platform = "Oclgrind"
    assert selftest.check(other) is None


def test_the_doctor_names_a_device_that_fails(monkeypatch):
    answers = {
        ("list",): ([{"devices": [{"index": "0:0", "used": True, "name": "X", "text": "0:0 gpu X"}], "error": ""}], ""),
        ("try", "0:0"): (
            [{"stage": "done", "text": "", "problem": "it fails clnn's self-test: 2 + 2 = 5", "untrusted": True}],
            "",
        ),
    }
    monkeypatch.setattr(doctor, "_ask", lambda *arguments: answers[arguments])
    (finding,) = doctor.devices()
    assert finding.verdict == "PROBLEM" and "2 + 2 = 5" in finding.text and "CLNN_DEVICE_EXCLUDE='X'" in finding.remedy


# -- in processes of their own -----------------------------------------------------------------------------------------
USE = "import clnn; print((clnn.tensor([1.0]) + 1).numpy())"


def start(folder, cwd, **variables):
    """A script that uses clnn, lying in a folder and running in another."""
    (folder / "script.py").write_text(USE)
    environ = {name: value for name, value in os.environ.items() if name != "CLNN_SELF_TEST"} | variables
    return subprocess.Popen(
        [sys.executable, str(folder / "script.py")], cwd=cwd, env=environ, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def test_two_processes_at_once_and_modules_of_the_working_folder(tmp_path):
    """Neither waits for the other, and a json.py in the working folder is none of the self-test's business."""
    scripts, here = tmp_path / "scripts", tmp_path / "here"
    scripts.mkdir()
    here.mkdir()
    for name in ("json", "numpy", "clnn"):
        (here / f"{name}.py").write_text("raise SystemExit('the wrong module')")
    both = [start(scripts, here, CLNN_CACHE_DIR=str(tmp_path / "cache")) for _ in range(2)]
    for process in both:
        out, errors = process.communicate(timeout=200)
        assert (process.returncode, out, errors) == (0, "[2.]\n", "")
    assert len(list((tmp_path / "cache").glob("self-test-*.json"))) == 1


def test_a_device_whose_random_numbers_are_wrong_is_refused(tmp_path):
    """From a copy of clnn whose random.cl is as wrong as one driver makes the right one."""
    home = Path(clnn.__file__).parent.parent
    shutil.copytree(home / "clnn", tmp_path / "clnn", ignore=shutil.ignore_patterns("__pycache__", "kernels"))
    shutil.copytree(program.kernel_folder(), tmp_path / "kernels")
    (tmp_path / "pyproject.toml").touch()
    file = tmp_path / "kernels" / "random.cl"
    file.write_text(file.read_text().replace("mul_high(*x,", "0u * mul_high(*x,"))
    process = start(tmp_path, tmp_path, CLNN_CACHE_DIR=str(tmp_path / "cache"), PYTHONPATH=str(tmp_path))
    _, errors = process.communicate(timeout=200)
    assert process.returncode == 1
    assert re.search(
        "DeviceError: .* fails clnn's self-test, .*: Philox' first random numbers are .* CLNN_SELF_TEST=0", errors
    )


def test_kernels_run_in_the_groups_that_the_device_gives(device):
    """Mesa 22.3's rusticl says of every kernel that its groups have 32 work-items at most, and they have 1,024."""
    width = 1 << (min(256, device.max_group).bit_length() - 1)
    x = np.arange(3 * width, dtype=np.float32)
    on, y = device.allocate(x.nbytes), device.allocate(12)
    device.upload(x, on)
    device.launch("selftest", "groups", (3 * width,), x.size, on, y, local=(width,), WIDTH=width)
    np.testing.assert_array_equal(device.read(y, np.empty(3, np.float32)), x.reshape(3, width).sum(1))


# -- where loops end early ---------------------------------------------------------------------------------------------
N = 70_001  # more turns than llvmpipe's 65,535
QUERIES = np.linspace(-2, 2, 2000 * 64).reshape(1, 1, 2000, 64)


LONG = {  # name: (what clnn makes of x, what NumPy does, the shape of x)
    "product": (lambda x: x @ np.ones((N, 3), np.float32), lambda x: x @ np.ones((N, 3)), (2, N)),
    "sum of all": (lambda x: x.sum(), lambda x: x.sum(), (3, N)),
    "sums of columns": (lambda x: x.sum(0), lambda x: x.sum(0), (N, 100)),
    "largest": (lambda x: x.max(1), lambda x: x.max(1), (70, N)),
    "argmax": (lambda x: x.argmax(1), lambda x: x.argmax(1), (2, N)),
    "cumsum": (lambda x: clnn.cumsum(x, 1), lambda x: x.cumsum(1), (2, N)),
    "cumsum of some less": (lambda x: clnn.cumsum(x, 1), lambda x: x.cumsum(1), (2, 65_400)),
    "gradient of a product": (
        lambda x: gradient(lambda x: clnn.prod(1 + 1e-3 * x, 1), x),
        lambda x: 1e-3 * np.prod(1 + 1e-3 * x, 1, keepdims=True) / (1 + 1e-3 * x),
        (2, 40_000),
    ),
    "gradient of gather": (
        lambda x: gradient(lambda x: clnn.gather(x, np.zeros((2, 65_400), int), 1), x),
        lambda x: np.array([[65_400, 0]] * 2),
        (2, 2),
    ),
    "gradient of a bias": (lambda x: gradient(lambda x: np.zeros((N, 3), np.float32) + x, x), lambda x: x * 0 + N, (3,)),
    "gradient of a layer's bias": (
        lambda x: gradient(lambda b: linear_layer(clnn.ones((N, 2)), parameter(np.ones((2, 3))), b, "linear"), x),
        lambda x: x * 0 + N,
        (3,),
    ),
    "attention": (
        lambda x: clnn.scaled_dot_product_attention(x[:, :, :2], x, x),
        lambda x: attended(x[:, :, :2], x, x),
        (1, 2, 2000, 64),
    ),
    "gradient of attention": (
        lambda x: gradient(lambda v: clnn.scaled_dot_product_attention(QUERIES, QUERIES[:, :, :3], v), x),
        lambda x: x * 0 + attended(QUERIES, QUERIES[:, :, :3], np.eye(3)).sum(2)[:, :, :, None],
        (1, 1, 3, 64),
    ),
    "local response": (
        lambda x: clnn.LocalResponseNorm(31, 1.0)(x),
        lambda x: x / (1 + np.stack([(x[:, max(0, c - 15) : c + 16] ** 2).sum(1) for c in range(2000)], 1) / 31) ** 0.75,
        (1, 2000, 3),
    ),
    "softmax": (clnn.softmax, lambda x: np.exp(x) / np.exp(x).sum(1, keepdims=True), (2, N)),
    "accuracy": (lambda x: clnn.metrics.accuracy(x, [N - 1, 0]), lambda x: x.argmax(1) == [N - 1, 0], (2, N)),
    "quadratic": (lambda x: clnn.losses.quadratic(x, np.zeros((2, N))), lambda x: (x**2).sum() / 4, (2, N)),
    "cross-entropy": (
        lambda x: clnn.losses.cross_entropy(x, [0, N - 1]),
        lambda x: np.mean(np.log(np.exp(x).sum(1)) - x[[0, 1], [0, N - 1]]),
        (2, N),
    ),
    "global average": (lambda x: clnn.layers.GlobalAvgPool()(x), lambda x: x.mean((2, 3)), (1, 2, 300, 301)),
    "global maximum": (lambda x: clnn.layers.GlobalMaxPool()(x), lambda x: x.max((2, 3)), (1, 2, 300, 301)),
    "a window": (lambda x: clnn.avg_pool(x, (270, 271), 1), lambda x: x.mean((2, 3), keepdims=True), (1, 2, 270, 271)),
    "layer norm": (lambda x: clnn.LayerNorm()(x), lambda x: (x - x.mean(1, keepdims=True)) / x.std(1, keepdims=True), (2, N)),
}  # fmt: skip


def gradient(f, x):
    """That of the sum of f(x), where x is a parameter."""
    p = parameter(x.numpy())
    f(p).sum().backward()
    return p.grad


def attended(q, k, v):
    e = np.exp(q @ k.swapaxes(-1, -2) / np.sqrt(q.shape[-1]))
    return e / e.sum(-1, keepdims=True) @ v


@pytest.mark.parametrize("name", LONG)
def test_long_loops_are_right_or_refused(device, rng, name):
    """llvmpipe ends a work-item's loops after 65,535 turns, without a word."""
    made, right, shape = LONG[name]
    x = rng.standard_normal(shape).astype(np.float32)
    try:
        got = made(clnn.tensor(x))
    except clnn.DeviceError as error:
        assert device.most_turns and re.search("turns of a loop, and .* ends loops after", str(error))
        return
    expected = np.asarray(right(x.astype(np.float64)), np.float64)
    assert np.abs(np.asarray(got, np.float64) - expected).max() < 1e-4 * max(1, np.abs(expected).max())


def test_what_the_tests_launch_is_one_text(device, monkeypatch):
    """Each is listed until it waits for something, and nothing of it runs; what is missing there costs time, no more."""
    before = device.launches
    keys = tests.launched(device)
    assert device._now.ahead is None and device.launches == before
    assert {"reduce", "selftest", "gemm"} <= {file for file, *_ in keys}
    monkeypatch.setitem(vars(device), "programs", program.Programs(device.context, device.pocl_version))
    device.programs.load(keys)
    assert [wrong for test in tests.TESTS for wrong in test(device)] == []
