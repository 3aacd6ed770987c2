"""`clnn verify`: what is right, what a wrong kernel, a crash and a hang look like, and what its text keeps to itself."""

import getpass
import json
import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from test_cli import run

import clnn
from clnn.errors import ConfigurationError
from clnn.runtime import program
from clnn.runtime.program import Programs, read_source
from clnn.tools import cli
from clnn.tools.verify import report
from clnn.tools.verify import run as parent
from clnn.tools.verify.checks import Checks
from clnn.tools.verify.families import FAMILIES
from clnn.tools.verify.speed import TASKS

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def tree(tmp_path):
    """A copy of clnn and its kernels that a test may break, and a function that runs `clnn verify` of it."""
    for name in ("clnn", "kernels"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)

    def verify(*arguments):
        command = [sys.executable, "-m", "clnn", "verify", *arguments, "--json", str(tmp_path / "found.json")]
        environ = {**os.environ, "PYTHONPATH": str(tmp_path)}
        done = subprocess.run(command, capture_output=True, encoding="utf-8", timeout=300, env=environ, cwd=tmp_path)
        assert "Traceback" not in done.stderr, done.stderr
        return done.returncode, done.stdout, json.loads((tmp_path / "found.json").read_text())

    return tmp_path, verify


# -- families ----------------------------------------------------------------------------------------------------------
@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_is_right(device, name):
    said = []
    checks = Checks(device, lambda **what: said.append(what))
    FAMILIES[name].run(checks)
    assert not [what["wrong"] for what in said if "wrong" in what]
    assert 0 < checks.share < 0.5 or not checks.count, (
        "nearly wrong: bounds should leave room for other devices' rounding"
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "file", "right", "wrong", "case"),
    [
        ("sequence", "recurrent", "vf * c_before + vi * vg", "vf * c_before + vi", "LSTM"),
        ("sequence", "recurrent", "d[1] = d[2] * q *", "d[1] = d[2] *", "GRU"),
        ("sequence", "recurrent", "if (!LIVE(b, time)) h = before;", "", "RNN, 4 steps of 11 sequences, 37 units, masked"),
        ("sequence", "recurrent", "if (!LIVE(b, time)) c = c_before;", "", "LSTM, 4 steps of 3 sequences, 20 units, masked"),
        ("sequence", "recurrent", "vz = R_VALUE(x[0]), vh", "vz = R_VALUE(x[0]) / 2, vh", "reset before the product"),
        ("sequence", "recurrent", "x * h * R_SLOPE(kept)", "x * R_SLOPE(kept)", "gradient 1 of GRU, 3 steps of 4"),
        ("sequence", "attention", "(size_t)(j) * m.s3]", "(size_t)(j / 2) * m.s3]", "70 queries of 131 keys, 3 heads of 3, mask"),
        ("sequence", "attention", "(size_t)(i) * m.s2", "0", "66 queries of 131 keys, 6 heads of 2, mask"),
        ("sequence", "attention", "g = h / (H / G)", "g = h % G", "6 heads of 2"),
        ("sequence", "attention", "h < (g + 1) * (H / G)", "h < g * (H / G) + 1", "gradient 1 of attention, 66 queries"),
        ("sequence", "attention", "before = past ? past[0] : 0", "before = 0", "causal, past"),
        ("sequence", "index", "at = past[0] + row % time", "at = row % time", "the keys of a cache"),
        ("sequence", "elementwise", "condition[strided(i, shape, strides)]", "condition[i % 301]", "padding"),
        ("sequence", "index", "at == r || at == r - n", "at == r + 1", "elements that are named more than once"),
        ("sequence", "index", "y[k] = WHOLE(sum) + part", "y[k] = WHOLE(sum)", "running sums"),
        ("sequence", "index", "*= after", "*= 1", "products"),
        ("sequence", "elementwise", "!= 0 ? A_OF(i) : B_OF(i)", "!= 0 ? A_OF(i) : A_OF(i)", "padding"),
        ("optimizer", "optimizer", "norm > most ? most / norm : 1", "1", "SGD"),
    ],
)  # fmt: skip
def test_a_kernel_that_computes_wrongly_is_noticed(device, monkeypatch, family, file, right, wrong, case):
    read, said = read_source, []
    assert right in read(file)

    def broken(name, seen=None):
        return read(name, seen).replace(right, wrong)

    monkeypatch.setattr(program, "read_source", broken)
    monkeypatch.setitem(vars(device), "programs", Programs(device.context, device.pocl_version))
    FAMILIES[family].run(Checks(device, lambda **what: said.append(what)))
    assert any(case in what["wrong"] for what in said if "wrong" in what)


def test_every_kernel_file_is_in_a_family():
    """By itself, or included by one that is; bench.cl measures speed, and selftest.cl runs where a device is opened."""
    named = {file for family in FAMILIES.values() for file in family.files} | {"bench", "selftest"}
    lines = "\n".join(map(read_source, sorted(named)))
    there = {file.stem for file in (ROOT / "kernels").glob("*.cl")}
    assert there - {"fusion"} <= set(re.findall(r'#line 1 "(\w+)\.cl"', lines)) <= there  # fit fuses, where kernels are


def test_every_name_is_run():
    assert sorted(parent.NAMES) == sorted(FAMILIES)
    assert ("device", *parent.SPEEDS) == tuple(TASKS)


def test_a_right_device_is_right(tmp_path):
    code, out, err = run("verify", "softmax", "peaks", "--json", str(tmp_path / "found.json"))
    found = json.loads((tmp_path / "found.json").read_text())
    assert code == 0, out
    assert "softmax: right" in err and out.endswith("1 of 1 families are right.\n")
    assert found["families"]["softmax"]["facts"]["comparisons"] > 10_000
    assert found["device"]["facts"]["device"] == clnn.device().name
    assert found["speed"]["peaks"]["facts"]["gflops"] > 0 and "GFLOP/s in multiply-adds" in out


def test_a_wrong_kernel_is_told_with_its_worst_place(tree):
    folder, verify = tree
    file = folder / "kernels" / "softmax.cl"
    text = file.read_text()
    kernel = text.index("kernel void softmax_backward")
    end = text.rindex("}", 0, kernel)  # of softmax_forward
    file.write_text(text[:end] + "  if (rows == 9 && r == 3 && ME == 5 % WIDTH) y[5] += (real)(0.25);\n" + text[end:])
    code, out, found = verify("softmax", "shape")
    one = found["families"]["softmax"]
    assert code == 1 and one["fault"]
    assert one["wrong"][0]["place"] == [3, 5] and one["wrong"][0]["off"] == pytest.approx(0.25, rel=1e-3)
    assert re.search(r"softmax +y of softmax of \(9, 1031\): wrong by 0.25 .*, worst at \(3, 5\)", out)
    assert "-> update the driver" in out and "open an issue" in out
    assert re.search(r"shape +right", out) and out.endswith("1 of 2 families are right; at fault: softmax.\n")


@pytest.mark.parametrize(
    ("fault", "verdict"),
    [
        ("import os; os.abort()", "crashed at softmax of (1, 1)"),
        ("import time; time.sleep(600)", "hangs: no end after"),
        ("raise clnn.errors.DeviceError('launching /home/somebody/x.cl failed')", "failed at softmax of (1, 1)"),
    ],
    ids=["crash", "hang", "error"],
)
def test_a_driver_that_fails_is_named_and_the_rest_goes_on(tree, fault, verdict):
    folder, verify = tree
    file = folder / "clnn" / "ops" / "softmax.py"
    file.write_text(file.read_text().replace("    check_float(", f"    import clnn; {fault}\n    check_float(", 1))
    assert fault in file.read_text()
    code, out, found = verify("softmax", "shape", "--limit", "20")
    assert code == 1 and found["families"]["softmax"]["fault"]
    assert found["families"]["softmax"]["verdict"].startswith(verdict)
    assert found["families"]["softmax"]["remedy"] and "-> " in out
    assert found["families"]["shape"]["verdict"] == "right"
    assert "somebody" not in out and "at fault: softmax" in out


def test_a_device_that_does_not_open(tree):
    folder, verify = tree
    file = folder / "clnn" / "tools" / "verify" / "speed.py"
    file.write_text(file.read_text().replace("    limits = {}\n", "    os.abort()\n", 1))
    code, out, found = verify("softmax")
    assert code == 1 and "The device in use cannot be opened" in out and "`clnn doctor`" in out
    assert not found["families"]


def test_what_there_is_no_time_for_is_told(capsys):
    found = parent.verify(["softmax"], minutes=1e-3)
    assert found["families"]["softmax"]["verdict"].startswith("not run: the 0.001 minutes were over")
    assert report.summary(found) == "0 of 1 families are right; not run: softmax." and not parent.faults(found)


def test_what_the_time_ends_is_no_fault(monkeypatch):
    process = parent._process
    for limit, verdict, fault in ((60.0, "not run to its end", False), (20.0, "hangs: no end after", True)):
        monkeypatch.setattr(parent, "_process", lambda name, limit: process(name, 60 if name == "device" else 0.2))
        found = parent.verify(["softmax"], minutes=0.5, limit=limit)
        assert found["families"]["softmax"]["verdict"].startswith(verdict)
        assert found["families"]["softmax"]["fault"] is fault


@pytest.mark.parametrize(
    ("at", "verdict", "fault"), [(3.0, "hangs: no end after 20 s at b", True), (15.0, "too slow", False)]
)
def test_what_hangs_is_told_from_what_is_slow(at, verdict, fault):
    """By how long the last case has taken."""
    one = parent._summary("softmax", [{"case": "a", "at": 1.0}, {"case": "b", "at": at}], "no end after 20 s", 20.1)
    assert one["verdict"].startswith(verdict) and one["fault"] is fault and "--limit" in one["remedy"]


def test_what_compares_nothing_is_left_out():
    one = parent._summary("float64", [{"note": "this device has no float64"}, {"done": {"comparisons": 0}}], "", 1.0)
    assert one["verdict"] == "left out" and not one["fault"]
    assert report.summary({"families": {"float64": one}, "speed": {}}) == "0 of 0 families are right."


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["abacus"], "nothing called 'abacus'"), (["softmax", "--minutes", "0"], "should be above 0, 0 and 60"),
     (["--limit", "nan"], "should be above 0")],
)  # fmt: skip
def test_wrong_arguments(arguments, message):
    code, out, err = run("verify", *arguments)
    assert (code, out) == (1, "") and message in err


def test_a_file_that_cannot_be_written(tmp_path):
    (tmp_path / "file").touch()
    code, out, err = run("verify", "softmax", "--json", str(tmp_path / "file" / "found.json"))
    assert (code, out) == (1, "") and "cannot be written" in err


def test_a_tilde_that_no_shell_has_expanded_is_the_home(tmp_path, monkeypatch):
    """As in --json=~/found.json, which was written into a folder of the name ~."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("USERPROFILE", str(tmp_path / "home"))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setattr(parent, "verify", lambda *_: {"families": {}})
    monkeypatch.setattr(parent, "faults", lambda found: [])
    monkeypatch.setattr(report, "text", lambda found: "")
    assert cli.main(["verify", "softmax", "--json=~/found.json"]) == 0
    assert (tmp_path / "home" / "found.json").is_file() and not list((tmp_path / "here").iterdir())


def test_no_device(tmp_path):
    from test_cli import no_driver

    code, out, _ = run("verify", "softmax", **no_driver(tmp_path))
    assert code == 1 and "There is no OpenCL device" in out


def test_what_a_device_has_no_memory_for_is_left_out(device, monkeypatch):
    """Peaks are those of any groups and pieces; a product too large for them is no fault of the driver's."""
    monkeypatch.setenv("CLNN_DEVICE_AS", "kind=gpu,group=2,units=1,piece=100K")
    monkeypatch.setenv("CLNN_SELF_TEST", "0")
    said = []
    with clnn.use(clnn.Device(device.cl_device, 0, 0)):
        found = TASKS["products"](lambda **what: said.append(what), 0.0)
    assert 0 < found["gflops"] < np.inf and 0 < found["gbytes"] < np.inf
    notes = [what["note"] for what in said if "note" in what]
    assert len(notes) == 5 and not [what for what in said if "timed" in what]
    assert all(re.search("is left out: .*(at most 100.0 KiB in one piece|too large)", note) for note in notes)


# -- comparing ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("got", "want", "text"),
    [
        ([1.0, 2.0, 3.5], [1.0, 2.0, 3.0], "wrong by 0.5 .*worst at (2,): 3.5 instead of 3 (1 of 3 elements)"),
        ([1.0, np.nan], [1.0, 2.0], "worst at (1,): nan instead of 2"),
        ([np.inf, 1.0], [np.nan, 1.0], "worst at (0,): inf instead of nan"),
        ([-np.inf, 1.0], [np.inf, 1.0], "worst at (0,): -inf instead of inf"),
        ([1.0], [1.0, 2.0], "the shape (1,) instead of (2,)"),
    ],
)
def test_what_is_wrong_is_told(device, got, want, text):
    said = []
    checks = Checks(device, lambda **what: said.append(what))
    checks.case("a case")
    checks.close("y", np.array(got), np.array(want))
    assert checks.wrong == 1
    assert re.search(re.escape(text).replace(r"\.\*", ".*"), said[-1]["wrong"])
    json.dumps(said)


def test_what_is_right_is_not_told(device):
    said = []
    checks = Checks(device, lambda **what: said.append(what))
    for values in ([1.0, np.nan, np.inf, -np.inf, 0.0], [], [1 + 1e-7]):
        checks.close("y", np.array(values), np.array(values, np.float64).round(6))
    assert not checks.wrong and not said and 0 < checks.share < 1


# -- what goes into an issue -------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("no file /home/somebody/a b/x.so here", "no file x.so here"),
        ("~/secret/tune.json, C:\\Users\\somebody\\clnn\\k.cl:12", "tune.json, k.cl:12"),
        ("in /home/somebody, /Users/somebody and C:\\Users\\somebody", "in ~, ~ and ~"),
        ("/tmp/one", "one"),
        ("200 GFLOP/s, 3 GB/s copied, and/or 1/2", "200 GFLOP/s, 3 GB/s copied, and/or 1/2"),
        ("OpenCL 3.0 PoCL 3.1+debian  Linux, None+Asserts, RELOC, SPIR, LLVM 15.0.6", None),
    ],
)
def test_paths_do_not_leave_the_machine(text, kept):
    assert report.private({"a": [text, 3]}) == {"a": [text if kept is None else kept, 3]}


def test_names_do_not_leave_the_machine(monkeypatch):
    monkeypatch.setattr(getpass, "getuser", lambda: "ada")
    monkeypatch.setattr(platform, "node", lambda: "engine-1")
    assert report.private("ada@engine-1 of adaptive") == "(user)@(machine) of adaptive"
    monkeypatch.setattr(getpass, "getuser", lambda: (_ for _ in ()).throw(KeyError("no such user")))
    assert report.private("ada") == "ada"


def test_unknown_families_are_an_error():
    with pytest.raises(ConfigurationError, match="there are elementwise, gemm"):
        parent.verify(["gem"])
