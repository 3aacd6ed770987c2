"""How the house is built: imports go downward only, and every file says in a sentence what it is."""

import ast
import inspect
import re
import runpy
import sys
from fnmatch import fnmatch
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import clnn
from clnn.runtime.program import read_source

ROOT = Path(__file__).resolve().parent.parent
FLOORS = (
    {"errors", "files", "checks", "registry", "foreign", "notebook"},
    {"runtime"},
    {"gemm"},
    {"ops"},
    {"tape"},
    {"tensor", "exchange", "arrays", "attention", "cache", "images", "random", "init", "parameters", "progress"}
    | {"storage"},
    {"step", "functions", "named", "layers", "losses", "optim", "schedules", "metrics", "data"},
    {"checkpoint", "callbacks", "logs", "resume", "train", "minimize", "generation", "distributed"},
    {"graph"},
    {"looking"},
    {"model", "search"},
    {"interop"},
    {"ensemble", "sklearn", "onnx"},
    {"tools"},
    {"__main__"},
)
FLOOR = {name: number for number, names in enumerate(FLOORS) for name in names}
MODULES = sorted(file for file in (ROOT / "clnn").rglob("*.py") if file != ROOT / "clnn" / "__init__.py")


def short(file):
    return str(file.relative_to(ROOT))


def imports(file):
    """(the line, the path as a list of names) of each import of clnn in a file: at its top, in its functions, and for type
    checkers alone."""
    package = file.relative_to(ROOT).parent.parts
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        found = []
        if isinstance(node, ast.Import):
            found = [alias.name.split(".") for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = [*package[: len(package) - node.level + 1]] if node.level else []
            path = base + (node.module.split(".") if node.module else [])
            found = [[*path, alias.name] for alias in node.names]
        yield from ((node.lineno, path) for path in found if path[0] == "clnn")


def module(path):
    """The file of the module that an imported path names, or that has the name at its end."""
    for end in range(len(path), 0, -1):
        place = ROOT.joinpath(*path[:end])
        for file in (place.with_suffix(".py"), place / "__init__.py"):
            if file.is_file():
                return file
    raise AssertionError(f"{'.'.join(path)} is no module")


@pytest.mark.parametrize("file", MODULES, ids=short)
def test_imports_go_downward_only(file):
    mine = Path(short(file)).parts[1].removesuffix(".py")
    assert mine in FLOOR, f"{short(file)} has no floor: give it one in FLOORS"
    for line, path in imports(file):
        part = path[1] if len(path) > 1 else "the package itself"
        if part == "__version__":  # a word that any floor may ask for
            continue
        assert part in FLOOR, f"{short(file)}:{line} imports {part}, which has no floor"
        assert FLOOR[part] <= FLOOR[mine], (
            f"{short(file)}:{line} on floor {FLOOR[mine]} imports {part} from {FLOOR[part]}"
        )


def test_every_room_of_a_floor_is_there():
    rooms = {Path(short(file)).parts[1].removesuffix(".py") for file in MODULES}
    assert set(FLOOR) == rooms, "FLOORS names rooms that do not exist"


def circle(files):
    """Files of which each imports the next, and the last one the first; None if there are none."""
    below = {
        file: {module(path) for _, path in imports(file) if path[1:] != ["__version__"]} - {file} for file in files
    }
    try:
        TopologicalSorter(below).prepare()
    except CycleError as error:
        return [short(file) for file in reversed(error.args[1])]
    return None


def test_no_two_modules_need_each_other():
    """Inside a folder, and among the rooms of one floor, imports go downward, too."""
    found = circle(MODULES)
    assert found is None, f"a circle of imports: {' -> '.join(found)}"


def test_the_walk_sees_every_form_of_import(tmp_path, monkeypatch):
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    file, other = tmp_path / "clnn" / "ops" / "x.py", tmp_path / "clnn" / "ops" / "y.py"
    file.parent.mkdir(parents=True)
    (file.parent / "__init__.py").write_text("")
    file.write_text(
        "import clnn.model\nfrom clnn import train\nfrom clnn.data.idx import read\nfrom .. import step\nimport clnn\n"
        "from ..gemm import tile\nfrom . import y\nfrom .z import w\nimport numpy\nfrom os import path\n"
        "def f():\n    from ..cli import main\nif TYPE_CHECKING:\n    from ..model import Model\n"
    )
    found = ["model", "train", "data", "step", None, "gemm", "ops", "ops", "cli", "model"]
    assert [(*path, None)[1] for _, path in sorted(imports(file))] == found
    for text, up in (("from . import x", True), ("from .x import f", True), ("from . import f", False)):
        for where in ("{}", "def g():\n    {}", "if TYPE_CHECKING:\n    {}"):
            file.write_text("from . import y\n")
            other.write_text(where.format(text) + "\n")
            assert set(circle([file, other]) or ()) == ({"clnn/ops/x.py", "clnn/ops/y.py"} if up else set())


# The lines of Python that each wing may have, docstrings and blank ones included; a file counts in the first wing that has it.
# Core is what a reader climbs to see a network train. What makes it smaller, makes the number smaller, too.
WINGS = {
    "fused steps": (485, "runtime/fusing.py", "runtime/fusion.py"),
    "halves": (268, "ops/half.py", "storage.py"),
    "answers": (579, "train/evaluation.py", "train/compiled.py", "train/direct.py"),
    "compiling ahead": (620, "runtime/ahead.py", "runtime/bundles.py", "tools/compiler.py", "tools/warm.py"),
    "threads": (110, "runtime/lock.py"),
    "watching": (704, "runtime/watching/*"),
    "finding devices": (587, "runtime/devices/*"),
    "shared memory": (270, "runtime/shared.py", "runtime/pages.py", "exchange.py"),
    "profiles": (490, "runtime/profile/*", "runtime/timing.py"),
    "other engines": (435, "gemm/tuning.py", "gemm/clblast.py"),
    "norms": (700, "ops/norm.py", "layers/norm.py"),
    "interop": (1_974, "interop/*"),
    "images": (2_066, "ops/image/*", "layers/image/*", "images.py"),
    "sequences": (
        2_840,
        "ops/sequence/*",
        "layers/sequence/*",
        "ops/index.py",
        "arrays.py",
        "attention.py",
        "cache.py",
        "generation.py",
    ),
    "graphs": (601, "graph.py", "layers/merge.py", "train/outputs.py"),
    "writing onnx": (1_865, "onnx/write.py", "onnx/writers/*"),
    "onnx": (6_123, "onnx/*"),
    "other libraries' names": (360, "foreign.py"),
    "scikit-learn": (650, "sklearn.py"),
    "running models": (373, "tools/run.py"),
    "several ranks": (820, "distributed.py", "train/alone.py", "tools/mpi.py"),
    "looking": (785, "looking/*", "notebook.py"),
    "serve": (520, "tools/serve/*"),
    "tables and folders": (337, "data/table.py", "data/folder.py"),
    "batches": (500, "data/batches.py", "train/stream.py"),
    "core": (6_526, "runtime/*", "gemm/*", "ops/*", "layers/*", "train/*", "tensor.py", "tape.py"),
    "optimizers": (2_264, "optim/*", "schedules.py", "minimize.py"),
    "callbacks": (740, "callbacks.py", "logs.py", "progress.py"),
    "data": (1_301, "data/*"),
    "tools": (8_591, "tools/*"),
    "the rest": (4_385, "*"),
}


@pytest.mark.parametrize("wing", WINGS)
def test_every_wing_keeps_to_its_budget(wing):
    def wing_of(file):
        name = file.relative_to(ROOT / "clnn").as_posix()
        return next(wing for wing, (_, *files) in WINGS.items() if any(fnmatch(name, one) for one in files))

    lines = {file: len(file.read_text(encoding="utf-8").splitlines()) for file in (ROOT / "clnn").rglob("*.py")}
    total = sum(count for file, count in lines.items() if wing_of(file) == wing)
    assert 0 < total <= WINGS[wing][0], f"{wing} has {total:,} lines of {WINGS[wing][0]:,}: make something simpler"


@pytest.mark.parametrize("file", [ROOT / "clnn" / "__init__.py", *MODULES], ids=short)
def test_every_module_opens_with_a_sentence(file):
    text = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8")))
    assert text, f"{short(file)} has no docstring"
    first = text.split("\n\n")[0]
    assert first[-1] in ".:" and len(first) < 500, f"{short(file)} should open with one sentence: {first!r}"


@pytest.mark.parametrize("file", sorted((ROOT / "kernels").glob("*.cl")), ids=lambda file: file.name)
def test_every_kernel_file_opens_with_a_comment(file):
    assert file.read_text(encoding="utf-8").startswith(("//", "/*"))


def test_a_few_tests_for_every_platform_touch_each_kernel_file(request):
    """They are marked with the files that they launch (conftest.py holds them to it), and files include others."""
    every, marked = {file.stem for file in (ROOT / "kernels").glob("*.cl")}, set()
    for file in (ROOT / "tests").glob("test_*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "pytest.mark.platform":
                marked |= {argument.value for argument in node.args}
    assert marked <= every
    for name in sorted(marked):
        read_source(name, marked)
    assert marked == every, "mark a small test with @pytest.mark.platform(file)"
    items = (one for one in request.session.items if one.get_closest_marker("platform"))
    chosen = {re.sub(r"\d+:\d+-\w+", "", one.nodeid) for one in items if not one.get_closest_marker("slow")}
    assert len(chosen) <= 200


def test_tests_have_the_same_names_in_every_process(request):
    """Else those that share the tests out do not agree on them: no name shows where something lies in memory."""
    assert not [one.nodeid for one in request.session.items if re.search(r" at 0x[0-9a-f]{6}", one.nodeid)]


@pytest.mark.parametrize("name", clnn.__all__)
def test_every_public_name_exists_and_says_what_it_is(name):
    thing = getattr(clnn, name)
    if inspect.ismodule(thing) or callable(thing):
        assert (thing.__doc__ or "").strip(), f"clnn.{name} has no docstring"
        if inspect.isclass(thing):  # not that of a class above it
            assert "__doc__" in vars(thing) and vars(thing)["__doc__"]


def test_classes_say_what_they_take_whatever_python_asks():
    """Python before 3.11.4 (Debian 12 has 3.11.2) asks `__new__` what a class takes, before `__init__`."""
    kinds = {
        kind for name, module in [*sys.modules.items()] if name.partition(".")[0] == "clnn"
        for kind in vars(module).values() if inspect.isclass(kind) and kind.__module__.startswith("clnn")
    }  # fmt: skip
    took = [kind for kind in kinds if inspect.isfunction(kind.__new__) and not issubclass(kind, tuple)]
    assert {clnn.Dense, clnn.Cosine, clnn.SGD, clnn.losses.CrossEntropy, clnn.EarlyStopping} <= {*took}
    for kind in took:
        told = kind.__signature__  # else Python would tell of __new__(cls, *given, **options)
        made = [] if kind.__init__ is object.__init__ else [*inspect.signature(kind.__init__).parameters][1:]
        assert [*told.parameters] == made and "given" not in made, kind
    assert not hasattr(clnn.Dense(3), "__signature__")


def test_the_public_names_are_in_order_and_not_twice():
    assert len(set(clnn.__all__)) == len(clnn.__all__)
    assert all(not name.startswith("_") for name in clnn.__all__)


def test_the_stubs_are_those_of_the_tables():
    """A function that a line in a table adds is one that editors know."""
    stubs = runpy.run_path(str(ROOT / ".ci" / "stubs"))["stubs"]
    assert (ROOT / "clnn" / "named.pyi").read_text(encoding="utf-8") == stubs(), "run .ci/stubs"


@pytest.mark.slow
def test_type_checkers_know_every_public_name(tmp_path):
    api = pytest.importorskip("mypy.api", reason="mypy is not installed")
    file = tmp_path / "names.py"
    file.write_text("import clnn\n" + "".join(f"clnn.{name}\n" for name in clnn.__all__) + "clnn.no_such_name\n")
    said, errors, _ = api.run(["--config-file", str(ROOT / "pyproject.toml"), "--cache-dir", str(tmp_path), str(file)])
    wrong = [line for line in said.splitlines() if " error: " in line]
    assert len(wrong) == 1 and "no_such_name" in wrong[0], said + errors
