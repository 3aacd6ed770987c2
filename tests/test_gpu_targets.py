""".ci/gpu-targets: which programs it takes, and what it calls wrong."""

import importlib.util
import os
import shutil
import subprocess
import sys
from importlib.machinery import SourceFileLoader
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = ROOT / ".ci" / "gpu-targets"
loader = SourceFileLoader("gpu_targets", str(SCRIPT))
gpu_targets = importlib.util.module_from_spec(importlib.util.spec_from_loader("gpu_targets", loader))
sys.dont_write_bytecode, before = True, sys.dont_write_bytecode  # no cache in .ci
loader.exec_module(gpu_targets)
sys.dont_write_bytecode = before


def program(file, kernel, *options, real="float", source=""):
    options = ["-cl-std=CL1.2", "-cl-denorms-are-zero", f"-DREAL={real}", *options]
    return {"file": file, "real": real, "options": options, "source": source, "kernels": {kernel: [[64]]}}


PROGRAMS = {
    "gemm-1": program("gemm", "gemm_local", "-DMR=4", "-DNV=1"),
    "gemm-2": program("gemm", "gemm_local", "-DMR=8", "-DNV=2"),
    "gemm-3": program("gemm", "gemm_local", "-DMR=8", "-DNV=2", "-DTA=1"),
    "conv-1": program("conv_local", "conv_local"),
    **{f"pool-{i}": program("pool", "pool_forward", f"-DSIZE={i}") for i in range(20)},
    "norm-1": program("norm", "row_forward"),
    "norm-2": program("norm", "row_forward", real="double"),
}


class Found:
    """Results that a test makes up: numbers by (program, target), or a log where it did not compile."""

    def __init__(self, **changed):
        self.changed = changed

    def of(self, name, target):
        if name in self.changed.get("fails", ()):
            return {"ok": False, "log": "program.cl:3: error: no matching function for call to 'put'"}
        numbers = {"registers": 60, "spills": 0, "scratch": 0, "local": 0, "doubles": 0, **self.changed.get(name, {})}
        return {"ok": True, "kernels": dict.fromkeys(PROGRAMS[name]["kernels"], numbers)}


def wrong(target="gfx900", **changed):
    changed = {name.replace("_", "-"): value for name, value in changed.items()}
    return gpu_targets.problems(Found(**changed), PROGRAMS, [target])


def test_a_sample_holds_what_matters_and_is_always_the_same():
    few = gpu_targets.sample(PROGRAMS, 6)
    assert few == gpu_targets.sample(dict(reversed(PROGRAMS.items())), 6) and len(few) == 6
    assert {"gemm-1", "conv-1", "norm-1"} & set(few) >= {"gemm-1", "conv-1"} and {"gemm-2", "gemm-3"} & set(few)
    assert {one["file"] for one in few.values()} == {"gemm", "conv_local", "pool", "norm"}
    assert gpu_targets.sample(PROGRAMS, 1000) == dict(sorted(PROGRAMS.items()))


def test_what_is_right_is_not_called_wrong():
    assert wrong() == []
    assert wrong(pool_3={"spills": 9}, norm_2={"doubles": 40, "spills": 3}) == []  # does not matter, or is of doubles


def test_what_is_wrong_is_named():
    assert wrong(gemm_2={"spills": 7}) == ["gfx900: gemm_local 8x2 spills 7 registers, and 0 are known"]
    assert wrong(conv_1={"spills": 1}) == ["gfx900: conv_local spills 1 registers, and 0 are known"]
    assert wrong(norm_1={"doubles": 2}) == ["gfx900: row_forward of norm computes in doubles, 2 instructions"]
    (line,) = wrong(fails=("pool-7",))
    assert line.startswith("gfx900: pool SIZE=7 does not compile: ") and "no matching function" in line


@pytest.mark.parametrize("at", gpu_targets.KNOWN)
def test_known_spills_may_not_grow(at):
    (_, tile, target), most = at, gpu_targets.KNOWN[at]
    name = next(name for name, one in PROGRAMS.items() if at[0] in one["kernels"] and gpu_targets.tile_of(one) == tile)
    assert wrong(target, **{name: {"spills": most}}) == []
    assert len(wrong(target, **{name: {"spills": most + 1}})) == 1


@pytest.mark.parametrize("target", gpu_targets.TARGETS)
def test_a_double_in_a_float_program_is_found(target):
    """By the compilers themselves, where they are here. Intel's says nothing of gen9, which has doubles: strict finds them."""
    tools = gpu_targets.Compilers()
    if missing := tools.missing(target):
        pytest.skip(f"without {', '.join(missing)}")
    text = "kernel void f(global float *x) {{ x[0] = x[0] * {}; }}"
    found = []
    for factor in ("x[1]", "((double)x[1] * x[2] + 1)"):
        one = program("pool", "f", source=text.format(factor))
        result = gpu_targets.compiled(tools, one, target)
        found.append(not result["ok"] or any(kernel["doubles"] for kernel in result["kernels"].values()))
    assert found[0] is False and found[1] is (target != "skl")


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="symbolic links take rights on Windows")
def test_without_compilers_it_says_so(tmp_path):
    """In a copy that has none and finds none."""
    for name in ("clnn", "kernels", "pyproject.toml"):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / ".ci").mkdir()
    script = tmp_path / ".ci" / "gpu-targets"
    script.write_text(SCRIPT.read_text().replace("    install()\n", ""))
    if linker := shutil.which("ld"):  # PoCL's
        (tmp_path / "ld").symlink_to(linker)
    environ = {**os.environ, "PATH": str(tmp_path), "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, str(script), "--targets", "sm_75,skl"], capture_output=True, encoding="utf-8", env=environ
    )
    assert done.returncode == 4, done.stdout + done.stderr
    assert "MISSING  sm_75: clang" in done.stdout and "MISSING  skl: ocloc" in done.stdout
