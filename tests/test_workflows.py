"""The workflows of .github: they are YAML that GitHub takes, for every Python of pyproject.toml, and what they run is there."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

import clnn

HOME = Path(__file__).resolve().parent.parent
WORKFLOWS = sorted((HOME / ".github" / "workflows").glob("*.yml"))
pytestmark = pytest.mark.skipif(not WORKFLOWS, reason="a source package has no workflows")
PYTHONS = ["3.10", "3.11", "3.12", "3.13", "3.14"]


def read(name):
    yaml = pytest.importorskip("yaml")

    class Strict(yaml.SafeLoader):
        def construct_mapping(self, node, deep=False):
            keys = [self.construct_object(key, deep=True) for key, _ in node.value]
            assert len(keys) == len(set(keys)), f"{name}: a key stands twice among {keys}"
            return super().construct_mapping(node, deep)

    found = yaml.load((HOME / ".github" / "workflows" / name).read_text(encoding="utf-8"), Strict)  # noqa: S506
    return found | {"on": found.pop(True)}  # YAML 1.1 reads `on` as true, GitHub does not


def steps(workflow):
    return [(job, step) for job in workflow["jobs"].values() for step in job["steps"]]


@pytest.mark.parametrize("name", [file.name for file in WORKFLOWS])
def test_it_is_what_github_takes(name):
    workflow = read(name)
    assert workflow.keys() <= {"name", "on", "permissions", "concurrency", "env", "jobs"}
    assert workflow["permissions"] == {"contents": "read"}
    for job in workflow["jobs"].values():
        allowed = {"name", "needs", "runs-on", "timeout-minutes", "strategy", "defaults", "steps", "env", "if"}
        assert job.keys() <= allowed and job["runs-on"]
        assert set([job.get("needs", [])] if isinstance(job.get("needs"), str) else []) <= workflow["jobs"].keys()
        text, matrix = str(job), job.get("strategy", {}).get("matrix", {})
        assert set(re.findall(r"matrix\.(\w+)", text)) == matrix.keys()
    for _, step in steps(workflow):
        assert step.keys() <= {"name", "uses", "with", "run", "env", "if"} and ("uses" in step) != ("run" in step)
        assert "uses" not in step or re.fullmatch(r"[\w-]+/[\w-]+@v\d+", step["uses"])


@pytest.mark.skipif(not shutil.which("bash"), reason="needs bash")
@pytest.mark.parametrize("name", [file.name for file in WORKFLOWS])
def test_bash_reads_what_it_runs(name):
    for _, step in steps(read(name)):
        script = re.sub(r"\$\{\{.*?\}\}", "x", step.get("run", ""))
        done = subprocess.run(["bash", "-n"], input=script, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr


def test_the_tests_run_on_every_system_and_python():
    workflow, project = read("test.yml"), (HOME / "pyproject.toml").read_text(encoding="utf-8")
    assert re.search(r'requires-python = ">=([\d.]+)"', project)[1] == PYTHONS[0]
    systems = {}
    for job in workflow["jobs"].values():
        matrix = job.get("strategy", {}).get("matrix", {})
        for system in matrix.get("system", [job["runs-on"]]):
            systems.setdefault(system, []).append(matrix.get("python"))
    assert systems.keys() == {"ubuntu-latest", "macos-latest", "windows-latest"}
    assert all(PYTHONS in found for found in systems.values())


def test_what_is_named_is_there():
    """Extras of pyproject.toml, the tests' marks, files of the repository, and commands of clnn."""
    project = (HOME / "pyproject.toml").read_text(encoding="utf-8")
    text = "\n".join(file.read_text(encoding="utf-8") for file in WORKFLOWS)
    for extras in re.findall(r'"\.\[([\w,]+)\]"', text):
        for extra in extras.split(","):
            assert re.search(rf"^{extra} = \[", project, re.M), extra
    for mark in re.findall(r"\b(platform|slow|long|oclgrind)\b", text):
        assert f'"{mark}' in project
    for path in re.findall(r"\b(?:examples|tests)/[\w/.]+", text):
        assert (HOME / path).exists(), path
    assert "clnn doctor" in text and (HOME / "clnn" / "tools" / "doctor.py").exists()


def test_the_release_s_quick_start_is_the_package_s_own():
    quickstart = clnn.__doc__.partition("\n\n")[2]
    compile(quickstart, "quickstart.py", "exec")
    assert quickstart.startswith("import clnn") and "clnn.data.digits()" in quickstart
    release = (HOME / ".github" / "workflows" / "release.yml").read_text(encoding="utf-8")
    assert r"clnn.__doc__.partition('\n\n')[2]" in release
