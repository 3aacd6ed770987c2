"""`.ci/platforms`, `.ci/run`, `.ci/mutants report`, with nothing installed: what they count, report, write and end with."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

HOME = Path(__file__).resolve().parent.parent
pytestmark = pytest.mark.skipif(not shutil.which("bash") or not (HOME / ".ci").is_dir(), reason="needs bash and .ci")

TESTS = """
import pytest
def test_right(): pass
def test_left_out(): pytest.skip("not here")
"""
WRONG = "def test_wrong(): assert False\n"


def program(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/usr/bin/env bash\n{text}\n", encoding="utf-8")
    path.chmod(0o755)


@pytest.fixture
def checkout(tmp_path):
    """A checkout in which everything is installed already, and how a script of it runs: its exit code and output."""
    shutil.copytree(HOME / ".ci", tmp_path / ".ci")
    program(tmp_path / ".ci" / "setup", "exit 0")
    program(tmp_path / "bin" / "dpkg", "exit 0")
    program(tmp_path / ".venvs" / "main" / "bin" / "python", f'exec "{sys.executable}" "$@"')
    (tmp_path / "pyproject.toml").write_text("[tool.pytest.ini_options]\n", encoding="utf-8")

    def run(script, *arguments, **variables):
        path = f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}"
        outer = {k: v for k, v in os.environ.items() if k not in ("VENV", "LIMIT")}  # of the run that this test is in
        done = subprocess.run(
            ["bash", f".ci/{script}", *arguments], cwd=tmp_path, capture_output=True, text=True, timeout=300,
            stdin=subprocess.DEVNULL, env={**outer, "PATH": path, "PYTHON": sys.executable, **variables},
        )  # fmt: skip
        return done.returncode, done.stdout

    return tmp_path, run


@pytest.mark.parametrize("quiet", [[], ["-qq", "--no-header", "--no-summary"]])
def test_counts_do_not_depend_on_what_pytest_prints(checkout, quiet):
    folder, run = checkout
    (folder / "test_it.py").write_text(TESTS, encoding="utf-8")
    status, said = run("platforms", "pocl", "pocl+lanes=8", "--", *quiet, "test_it.py")
    assert status == 0
    for line, name in zip(said.splitlines(), ("pocl", "pocl+lanes=8"), strict=True):
        assert line.startswith(f"{name:40} passed   1 passed, 1 skipped in ")
    (folder / "test_it.py").write_text(TESTS + WRONG, encoding="utf-8")
    status, said = run("platforms", "pocl", "--", *quiet, "test_it.py")
    assert status == 1 and "FAILED   1 failed, 1 passed, 1 skipped" in said and ".venvs/pocl.log" in said


def test_a_run_that_ends_early_fails(checkout):
    folder, run = checkout
    (folder / "test_it.py").write_text("import os\ndef test_it(): os._exit(139)\n", encoding="utf-8")
    assert run("platforms", "pocl", "--", "-q", "test_it.py") == (
        1, f"{'pocl':40} FAILED   pytest ended with status 139; more in .venvs/pocl.log\n"
    )  # fmt: skip


def test_the_oldest_libraries_are_those_that_pyproject_allows(checkout):
    """Each that clnn requires has a lowest version, and tests run with it."""
    folder, run = checkout
    (folder / "test_it.py").write_text(TESTS, encoding="utf-8")
    shutil.copy(HOME / "pyproject.toml", folder)
    program(folder / "bin" / "python3.10", "exit 0")
    program(folder / ".venvs" / "oldest" / "bin" / "pip", "exit 0")
    install = f'[ "$2" != pip ] && exec "{sys.executable}" "$@"; printf "%s\\n" "$@" >installed'
    program(folder / ".venvs" / "oldest" / "bin" / "python", install)
    assert run("platforms", "oldest", "--", "test_it.py")[1].split()[:3] == ["oldest", "passed", "1"]
    assert (folder / "installed").read_text().splitlines()[-2:] == ["-c", f"{folder}/.venvs/oldest.txt"]
    lowest = dict(line.split("==") for line in (folder / ".venvs" / "oldest.txt").read_text().splitlines())
    required = (
        (HOME / "pyproject.toml").read_text(encoding="utf-8").partition("dependencies = [")[2].partition("\n]")[0]
    )
    assert [*lowest] == re.findall(r'^ *"(\w+)', required, re.MULTILINE)
    assert all(f'"{name}>={version}' in required for name, version in lowest.items())


@pytest.mark.parametrize("script", ["platforms", "run", "setup"])
def test_help_is_what_a_script_begins_with_and_runs_nothing(checkout, script):
    folder, run = checkout
    shutil.copy(HOME / ".ci" / script, folder / ".ci")
    status, said = run(script, "--help")
    head = (HOME / ".ci" / script).read_text(encoding="utf-8").splitlines()[1:]
    head = head[: next(i for i, line in enumerate(head) if not line.startswith("#"))]
    assert status == 0 and said.splitlines() == [line.removeprefix("#").removeprefix(" ") for line in head]


def test_what_is_not_there_is_said(checkout):
    folder, run = checkout
    status, said = run("platforms", "cuda")
    assert status == 4 and said.split()[:2] == ["cuda", "MISSING"] and "there is no platform cuda" in said
    status, said = run("platforms", "pocl+fast")
    assert status == 1 and "FAILED" in said
    assert "+fast is nothing that can follow a platform" in (folder / ".venvs" / "pocl+fast.log").read_text()


def test_the_table_holds_the_last_runs(checkout):
    folder, run = checkout
    (folder / "test_it.py").write_text(TESTS, encoding="utf-8")
    there = "| `cuda` | none | all | 2026-01-01 | gone |\n| `intel` | Intel | all | 2026-01-01 | 7 passed |\n"
    readme = f"before\n<!-- .ci/platforms --markdown -->\nold\n{there}<!-- the end of that table -->\nafter\n"
    (folder / "clnn").mkdir()
    (folder / "clnn" / "README.md").write_text(readme, encoding="utf-8")
    processes = ("-n", "0", "--dist", "loadfile", "--durations=3", "--durations-min=0.5")
    assert run("platforms", "pocl+lanes=8", "--", "-m", "not slow", *processes, "test_it.py")[0] == 0
    assert run("platforms", "--markdown") == (0, "")
    before, *table, after = (folder / "clnn" / "README.md").read_text(encoding="utf-8").splitlines()
    assert (before, after) == ("before", "after") and "old" not in table
    assert len(table) == 6 and table[4] == there.splitlines()[1]  # of a platform that was not run here
    assert table[3].startswith("| `pocl+lanes=8` |")
    assert (
        table[3].endswith("s |") and "1 passed, 1 skipped in" in table[3] and "-m 'not slow' 'test_it.py' |" in table[3]
    )
    (folder / "clnn" / "README.md").write_text("no table\n", encoding="utf-8")
    assert run("platforms", "--markdown")[0] == 1


def test_what_failed_runs_again(checkout):
    """And nothing else; only where it passes, the platform has passed, and the table says both."""
    folder, run = checkout
    wrong = "import pytest\n@pytest.mark.parametrize('x', ['a b', '[1-2]'])\n" + WRONG.replace("()", "(x)")
    (folder / "tests").mkdir()
    test, result = folder / "tests" / "test_it.py", folder / ".venvs" / "results" / "pocl"
    test.write_text(TESTS + wrong, encoding="utf-8")
    assert run("platforms", "--again", "pocl")[1].split()[:3] == ["pocl", "no", "tests"]
    assert run("platforms", "pocl", "--", "tests")[0] == 1
    status, said = run("platforms", "--again", "pocl")
    assert status == 1 and "FAILED   2 failed in " in said and result.read_text().splitlines()[4] == "FAILED"
    test.write_text((TESTS + wrong).replace("assert False", "pass"), encoding="utf-8")
    status, said = run("platforms", "--again", "pocl")
    assert status == 0 and "passed   2 passed in " in said
    *_, passed, counts = result.read_text().splitlines()
    assert passed == "passed"
    assert re.fullmatch(r"2 failed, 1 passed, 1 skipped in \d+ s; those that failed, on [\d-]+: 2 passed", counts)
    assert run("platforms", "--again", "pocl") == (
        0,
        f"{'pocl':40} no tests none failed in a run whose results are here\n",
    )


@pytest.mark.parametrize(
    ("suite", "others", "apt", "targets", "mutants", "ends"),
    [
        (0, 0, 0, 0, 0, 0), (2, 0, 0, 0, 0, 2), (0, 1, 0, 0, 0, 1), (0, 1, 1, 0, 0, 1), (2, 1, 0, 0, 0, 2), (0, 4, 0, 0, 0, 1),
        (0, 4, 1, 0, 0, 0), (0, 0, 0, 1, 0, 1), (0, 0, 0, 4, 0, 0), (2, 0, 0, 1, 0, 2), (0, 0, 0, 0, 1, 0), (2, 0, 0, 0, 1, 2),
        (0, 0, 0, 0, 124, 0), (0, 0, 0, 0, 2, 0),
    ],
)  # fmt: skip
def test_ci_ends_with_what_failed_and_the_suites_own_line(checkout, suite, others, apt, targets, mutants, ends):
    """Platforms that could not be installed are an error only where apt works; compilers for GPUs that are missing, and changes
    of kernels that no test notices or that could not be tried, are none."""
    folder, run = checkout
    line = "=== 7 passed in 3.21s ==="
    program(folder / "bin" / "make", f"echo tests; echo '{line}'; exit {suite}")
    program(folder / "bin" / "apt-get", f"exit {apt}")
    program(folder / ".ci" / "platforms", f'echo "$@"; exit {others}')
    (folder / ".venv" / "bin").mkdir(parents=True)
    program(folder / ".venv" / "bin" / "python", f"case $1 in .ci/mutants) exit {mutants};; esac; exit {targets}")
    status, said = run("run")
    assert status == ends and said.splitlines()[-1] == line
    assert "debian13 rusticl pocl+lanes=8" in said and "-m platform and not slow" in said
    assert ("PLATFORMS ARE MISSING" in said) is (others == 4 and apt == 1)
    assert ("THE TESTS DO NOT NOTICE" in said) is (mutants == 1)
    assert ("NO MORE CHANGES" in said) is (mutants > 1)
    assert ("not every platform passed" in said) is (others == 1 or (others == 4 and apt == 0))


def test_mutants_that_survive_need_a_reason(checkout):
    """What one form of the device notices is noticed; a reason goes by the file and the line, whatever its number."""
    folder, _ = checkout
    log, reasons = folder / ".venvs" / "mutants" / "log.jsonl", folder / ".ci" / "survivors.md"
    log.parent.mkdir(parents=True)

    def report(*results):
        lines = [
            json.dumps({"id": f"a:{at}", "what": what, "file": "a", "form": form, "result": result})
            for at, (what, form, result) in enumerate(results)
        ]
        log.write_text("\n".join(lines), encoding="utf-8")
        mutants = [sys.executable, folder / ".ci" / "mutants", "report"]
        done = subprocess.run(
            mutants, capture_output=True, text=True, env={**os.environ, "CLNN_TEST_MUTANTS": ""}, timeout=60
        )
        assert not done.stderr
        return done.returncode, done.stdout

    noticed = (
        ("x [[< => <=]] n", "", "survived"),
        ("x [[< => <=]] n", "kind=gpu", "noticed"),
        ("y", "", "does not compile"),
    )
    assert report(*noticed) == (
        0, "{'noticed': 1, 'does not compile': 1}; of the survivors 0 are without a reason in .ci/survivors.md\n"
    )  # fmt: skip
    survived = (*noticed, ("x < n [[+ => -]] 1", "", "survived"), ("z", "", "reaches nothing"))
    reasons.write_text("- b: `x < n [[+ => -]] 1`: another file\n", encoding="utf-8")
    code, said = report(*survived)
    assert code == 1 and said.startswith("survived a:3\n    a: `x < n [[+ => -]] 1`\n") and "'survived': 1" in said
    reasons.write_text("- a: `x < n [[+ => -]] 1`: n is 0\n", encoding="utf-8")
    assert report(*survived)[0] == 0
