"""Programs: `.cl` files and their includes, errors that name the file, and what is built once."""

import os
import platform
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest

import clnn
from clnn.errors import BuildError
from clnn.runtime import program

FILES = sorted(path.stem for path in program.kernel_folder().glob("*.cl"))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A kernel folder of the test's own, with a space in its path."""
    path = tmp_path / "with space"
    path.mkdir()
    monkeypatch.setattr(program, "kernel_folder", lambda: path)
    (path / "common.cl").write_text("typedef REAL real;\n")
    return path


@pytest.mark.parametrize("name", FILES)
def test_sources(name):
    """Every file resolves, includes each other file once, and has no include left over."""
    text = program.read_source(name)
    assert "#include" not in text
    starts = re.findall(r'^#line 1 "(.*)"$', text, re.M)
    assert starts[0] == f"{name}.cl" and len(starts) == len(set(starts))
    assert "\t" not in text and not re.search(r"fast.relaxed|unsafe.math", text)


def test_includes_and_line_numbers(folder):
    (folder / "a.cl").write_text('// a\n#include "b.cl"\n#include "c.cl"\nlast of a\n')
    (folder / "b.cl").write_text('#include "c.cl"\nb\n')
    (folder / "c.cl").write_text("c\n")
    assert program.read_source("a").splitlines() == [
        '#line 1 "a.cl"', "// a", '#line 1 "b.cl"', '#line 1 "c.cl"', "c", '#line 2 "b.cl"', "b", '#line 3 "a.cl"',
        "", "last of a",
    ]  # fmt: skip


def test_lines_after_an_include_that_was_there_already(folder):
    """A second include of a file vanishes, but the line numbers below it stay right."""
    (folder / "a.cl").write_text('#include "b.cl"\n#include "b.cl"\nthird\n')
    (folder / "b.cl").write_text("b\n")
    lines = program.read_source("a").splitlines()
    number, at = 0, {}
    for line in lines:
        if match := re.match(r'#line (\d+) "(.*)"', line):
            number, file = int(match.group(1)), match.group(2)
            continue
        at[line] = (file, number)
        number += 1
    assert at["third"] == ("a.cl", 3)


def test_a_missing_file(folder):
    with pytest.raises(BuildError, match="nothing.cl cannot be read"):
        program.read_source("nothing")


def test_build_errors_carry_the_log(device, folder):
    """File, line, device and options stand in the message."""
    (folder / "wrong.cl").write_text('#include "common.cl"\nkernel void f(global real *x) { x[0] = undeclared; }\n')
    with pytest.raises(BuildError) as error:
        device.launch("wrong", "f", (1,), device.allocate(4), WITH=3)
    text = str(error.value)
    assert "kernels/wrong.cl does not build on" in text and device.name in text and "-DWITH=3" in text
    assert "undeclared" in text and re.search(r"wrong\.cl\D+2", text), text
    assert text.endswith("Please report this with the output of `clnn doctor`.")


def test_folder_with_a_space(device, folder):
    (folder / "fine.cl").write_text('#include "common.cl"\nkernel void f(global real *x) { x[0] = 7; }\n')
    block = device.allocate(4)
    device.launch("fine", "f", (1,), block, local=(1,))
    assert device.read(block, np.empty(1, np.float32))[0] == 7


def test_built_once(device, monkeypatch):
    """The same file and defines are one program, whatever the order of the defines and the size of the batch."""
    built = []
    compile_ = program.Programs._compile
    monkeypatch.setattr(program.Programs, "_compile", lambda self, *a: (built.append(a), compile_(self, *a))[1])
    programs = program.Programs(device.context)
    monkeypatch.setattr(device, "programs", programs)
    for rows in (3, 5, 128, 1):
        x = clnn.ones((rows, 4))
        clnn.sigmoid(x)
        x @ clnn.ones((4, 4))
        x + clnn.ones((4,))
        x.sum(0)
    assert len(built) == len(set(map(str, built)))
    files = [a[0] for a in built]
    assert files.count("gemm") == 1 and files.count("reduce") == 1 and len(built) <= 6, built


@pytest.mark.oclgrind
def test_single_precision_constants(device, folder):
    """A formula's 0.5 is a float in a float program, also where -cl-single-precision-constant is ignored."""
    body = "x[0] = sizeof(0.5); x[1] = sizeof(1.5e-3); x[2] = sizeof(2.5f); x[3] = sizeof(x[0] * 1.25);"
    (folder / "sizes.cl").write_text(f"typedef REAL real;\nkernel void f(global int *x) {{ {body} }}\n")
    for real in ("float", "double") if device.has_fp64 else ("float",):
        block = device.allocate(16)
        device.launch("sizes", "f", (1,), block, local=(1,), real=real)
        wide = 4 if real == "float" else 8
        assert device.read(block, np.empty(4, np.int32)).tolist() == [wide, wide, 4, wide]


def test_a_launch_that_fails_says_what_it_was(device):
    with pytest.raises(clnn.DeviceError, match=r"launching elementwise.fill over \(7,\) \(groups of \(2,\)\)"):
        device.launch("elementwise", "fill", (7,), 7, device.allocate(28), 1.0, local=(2,))


def test_sizes_end_at_two_to_the_31(device):
    with pytest.raises(clnn.DeviceError, match="the size 2,147,483,648, and the most is"):
        device.launch("elementwise", "fill", (1,), 2**31, device.allocate(4), 1.0)


def test_options_that_a_driver_refuses(device, monkeypatch):
    """A driver that knows no -cl-std is not given it; one that takes it is, since newer compilers need it."""

    def run(programs):
        return programs.new_kernel(program.Source("elementwise", "fill", "float", ()), (np.int32, None, np.float32))

    programs = program.Programs(device.context)
    assert run(programs).function_name == "fill"
    assert program.STANDARD in programs._usual
    monkeypatch.setattr(program, "STANDARD", "-cl-std=CL9.9")
    programs = program.Programs(device.context)
    assert run(programs).function_name == "fill"
    assert not any("9.9" in option for option in programs._usual)


def test_denormal_numbers_are_zero_where_they_would_be_slow(device):
    """Moments of weights without gradients shrink to denormal numbers; on x86 each costs a hundred times as much. Whether the
    driver has them be zero or the kernel does (PoCL from 4.0 on), an optimizer's kernel leaves none, and reads none."""
    if platform.machine() not in ("x86_64", "AMD64") or device.pocl_version == (0, 0) or not device.local_on_stack:
        pytest.skip("for PoCL on x86")
    w = clnn.tensor(np.ones((40, 40), np.float32), requires_grad=True)
    optimizer = clnn.RMSprop(0.0, alpha=0.5)
    for _ in range(2):
        (w * 2.0**-62).sum().backward()  # moments of 1.5 * 2**-125; below 2**-126 numbers are denormal
        optimizer.step([w])
    (moment,) = [v for k, v in optimizer.state_dict()["arrays"].items() if k.endswith("0")]
    assert (moment > 0).all()
    for _ in range(2):  # halved, they would be denormal
        (w * 0.0).sum().backward()
        optimizer.step([w])
    (moment,) = [v for k, v in optimizer.state_dict()["arrays"].items() if k.endswith("0")]
    assert (moment == 0).all()


CALLS = """
import os, re, subprocess, sys
import numpy as np
import clnn

rng = np.random.default_rng(0)
net = clnn.Sequential(
    [clnn.Conv2D(32, 3, "relu"), clnn.Conv2D(24, 5, "relu"), clnn.BatchNorm(), clnn.MaxPool2D(2), clnn.Flatten(),
     clnn.Dense(128, "tanh"), clnn.Dense(10)], input_shape=(3, 20, 20), seed=0)
loss = clnn.losses.cross_entropy(net(rng.standard_normal((32, 3, 20, 20))), np.arange(32) % 10)
loss.backward()
clnn.Adam().step(net.parameters())
clnn.device().finish()
own = set(re.findall(r"^APART \\w+ (?:\\w+ )*?(\\w+)\\(", "".join(open(f).read() for f in sys.argv[2:]), re.M))
looked_at = set()
for folder, _, files in os.walk(sys.argv[1]):
    for file in files:
        if not file.endswith(".so"):
            continue
        code = subprocess.run(["objdump", "-d", os.path.join(folder, file)], capture_output=True, text=True, check=True).stdout
        for name, body in re.findall(r"^[0-9a-f]+ <(\\w+)>:\\n((?:.+\\n)*)", code, re.M):
            kernel = re.match(r"_pocl_kernel_(gemm_tile|conv_rows|conv_columns|conv_weights|update|pool_forward)", name)
            if kernel or name in own:
                looked_at.add(kernel.group(1) if kernel else name)
                called = set(re.findall(r"\\bcall\\w*\\s+\\w+ <(\\w+)", body)) - own - {"memset", "memcpy"}
                print(*[f"{name} calls {other}" for other in called if not other.startswith("_pocl_kernel_")], sep="\\n", end="")
print("looked at", *sorted(looked_at))
"""


def test_hot_kernels_call_nothing_of_the_driver(device, tmp_path):
    """A call to vload16 or min within a product's loop costs most of its speed, and a driver's new version may begin to make
    some. What PoCL compiled is read in its cache."""
    if device.pocl_version < (3, 1) or not device.local_on_stack or not shutil.which("objdump"):
        pytest.skip("for PoCL, where objdump is there")
    cache = tmp_path / "cache"
    cache.mkdir()
    environment = os.environ | {"POCL_CACHE_DIR": str(cache), "CLNN_GEMM": "tile", "PYOPENCL_NO_CACHE": "1"}
    environment["CLNN_DEVICE"] = f"{device.platform_index}:{device.device_index}"
    kernels = sorted(map(str, program.kernel_folder().glob("*.cl")))
    run = [sys.executable, "-W", "ignore", "-c", CALLS, str(cache), *kernels]
    done = subprocess.run(run, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    *calls, looked_at = done.stdout.strip().splitlines()
    assert {"gemm_tile", "update", "multiply"} <= set(looked_at.split()), looked_at
    assert any(name.startswith("conv_") for name in looked_at.split()), looked_at
    assert not calls


@pytest.mark.platform("bench")
def test_what_the_peaks_are_measured_with_is_right(device, dtype):
    """Multiply-adds are the recurrence that they should be, and each vector is copied once."""
    real, width, x = device.real(dtype), 4, 0.75
    out = device.allocate(5 * np.dtype(dtype).itemsize)
    device.launch("bench", "multiply_add", (5,), 7, out, x, local=(1,), real=real, VW=width, SUMS=3)
    s = np.arange(5)[:, None] + np.arange(3.0)
    for _ in range(7):
        s = s * x + 0.5
    assert np.allclose(device.read(out, np.empty(5, dtype)), width * s.sum(axis=1), rtol=1e-5)
    values = np.arange(5 * 3 * width, dtype=dtype)
    source, target = device.allocate(values.nbytes), device.allocate(values.nbytes)
    device.upload(values, source)
    device.launch("bench", "copy", (5,), 3, source, target, local=(1,), real=real, VW=width)
    assert np.array_equal(device.read(target, np.empty_like(values)), values)
