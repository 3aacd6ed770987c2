"""What the READMEs and docstrings say: their Python runs, their links lead somewhere, and everything public is explained."""

import doctest
import importlib.util
import inspect
import pkgutil
import re
import runpy
from pathlib import Path

import numpy as np
import pytest
from helpers import tells_time

import clnn
from clnn.ops.activation import ACTIVATIONS

ROOT = Path(__file__).resolve().parent.parent
READMES = [
    "README.md",
    "CONTRIBUTING.md",
    "clnn/README.md",
    "clnn/tools/bench/README.md",
    "kernels/README.md",
    "examples/README.md",
]
READMES += ["examples/book/README.md", "clnn/API.md", "examples/one_step.md"]
READMES += sorted(f"examples/tutorials/{file.name}" for file in (ROOT / "examples" / "tutorials").glob("*.md"))


def text(name):
    return (ROOT / name).read_text(encoding="utf-8")


def small_mnist(validation=0):
    """Images in the form of MNIST's, each digit a bright stripe of its own: what a page shows is how to write it."""
    rng, sets = np.random.default_rng(1), []
    for n in [256, 64, 64] if validation else [256, 64]:
        labels = rng.integers(0, 10, n).astype(np.uint8)
        images = (
            0.5 * rng.random((n, 784), np.float32)
            + np.repeat(np.eye(11, dtype=np.float32)[labels], 72, axis=1)[:, :784]
        )
        sets.append((images, labels))
    return tuple(sets)


def some_files(folder):
    """What the manual reads: a table of flowers and photos."""
    (folder / "iris.csv").write_text("a,b,species\n5.1,3.5,setosa\n7.0,3.2,versicolor\n")
    image = pytest.importorskip("PIL.Image")
    for path in ("photos/cat/1.jpg", "photos/dog/2.png", "new.jpg"):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        image.new("RGB", (64, 64), (250, 9, 3)).save(folder / path)


@pytest.mark.parametrize("name", [name for name in READMES if name != "CONTRIBUTING.md"])  # test_recipes.py runs those
def test_python_runs(name, device, monkeypatch, tmp_path):
    """One block after the other, as a reader would who follows the page; those of the README and the manual alone, too."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(clnn.data, "mnist", small_mnist)
    monkeypatch.syspath_prepend(ROOT / "examples" / "book")  # whose pages import network
    names = {"clnn": clnn}
    for block in re.findall(r"^```python\n(.*?)^```", text(name), re.MULTILINE | re.DOTALL):
        needed = re.findall(r"^(?:from|import) (sklearn|torch)", block, re.MULTILINE)
        if not all(map(importlib.util.find_spec, needed)) or "..." in block:  # an outline
            continue
        if "read_csv(" in block:
            pytest.importorskip("pandas")
            some_files(tmp_path)
        if "clnn.profile()" in block and not tells_time(device):
            pytest.skip("the driver does not tell what launches take")
        exec(compile(block, name, "exec"), names if name not in ("README.md", "clnn/README.md") else {})  # those alone


def test_the_readme_s_step_trains(device):
    names = {}
    (block,) = (b for b in re.findall(r"^```python\n(.*?)^```", text("README.md"), re.M | re.S) if "@clnn.step" in b)
    exec(block, names)
    (x, y), _ = small_mnist()
    target = np.eye(10, dtype=np.float32)[y]
    losses = [float(names["train"](x, target).numpy()) for _ in range(30)]
    assert losses[-1] < 0.5 * losses[0]


def anchors(page):
    titles = re.findall(r"^#+ (.*)$", re.sub(r"^```.*?^```", "", page, flags=re.M | re.S), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("name", READMES)
def test_links_lead_somewhere(name):
    for link in re.findall(r"\]\(([^)]+)\)", text(name)):
        path, _, anchor = link.partition("#")
        if path.startswith(("http:", "https:")):
            continue
        target = (ROOT / name).parent / path if path else ROOT / name
        assert target.exists(), link
        if anchor:
            assert anchor in anchors(target.read_text(encoding="utf-8")), link


def test_the_table_names_everything():
    """The functions are in the table, or in a section of the API page that it links to; all else is in the table itself."""
    table = text("README.md").partition("## Everything there is\n")[2].partition("\n## ")[0]
    said = set(re.findall(r"\w+", table))
    linked = set(said)
    for anchor in re.findall(r"^\|.*\(clnn/API\.md#([\w-]+)\).*\|$", table, re.M):
        section = re.search(rf"^## {anchor}\n(.*?)(?=^## |\Z)", text("clnn/API.md"), re.M | re.S | re.I)[1]
        linked |= set(re.findall(r"^\*\*`clnn\.([\w.]+)\(", section, re.M))
    kinds = (clnn.Layer, clnn.Optimizer, clnn.Schedule, clnn.Callback)
    public = {
        name
        for name in clnn.__all__
        if isinstance(getattr(clnn, name), type) and issubclass(getattr(clnn, name), kinds)
    }
    wanted = public - {"Layer", "Optimizer", "Schedule"}
    assert not (wanted | set(ACTIVATIONS) | set(clnn.losses.LOSSES)) - said
    assert not set(clnn.functions.__all__) - linked


def test_no_message_advises_what_is_not_published():
    """clnn is not on PyPI: messages name packages that are, pages a checkout's own extras."""
    files = [file for end in ("py", "md") for file in (ROOT / "clnn").rglob(f"*.{end}")]
    for file in [*files, *(ROOT / "examples").rglob("*.py"), ROOT / "README.md"]:
        found = re.findall(r"pip install \W*clnn.*", file.read_text(encoding="utf-8"))
        assert not found, f"{file}: {found}"


LIBRARY = [m.name for m in pkgutil.walk_packages(clnn.__path__, "clnn.") if not m.name.endswith(("__main__", "worker"))]


def test_examples_in_docstrings(device):
    found = doctest.TestResults(0, 0)
    for name in LIBRARY:
        module = importlib.import_module(name)
        one = doctest.testmod(module, extraglobs={"clnn": clnn, "np": np})
        found = doctest.TestResults(found.failed + one.failed, found.attempted + one.attempted)
    assert found.failed == 0
    assert found.attempted >= 8


def test_the_api_page_is_that_of_the_docstrings():
    page = runpy.run_path(str(ROOT / ".ci" / "api"))["page"]()
    assert text("clnn/API.md") == page, "run .ci/api"
    for name in clnn.__all__:
        if not inspect.ismodule(getattr(clnn, name)):
            assert re.search(rf"^\*\*`clnn\.(\w+\.)?{name}\b", page, re.M), f"an area of .ci/api should name {name}"


def unexplained(thing, name):
    """What `help` would show without a word: public functions, classes, and their methods and properties."""
    if inspect.isclass(thing) and thing.__module__.startswith("clnn"):
        if not thing.__doc__:
            yield name
        for own, value in vars(thing).items():
            inner = value.fget if isinstance(value, property) else getattr(value, "__func__", value)
            if own.startswith("_") or not (isinstance(value, property) or inspect.isfunction(inner)):
                continue
            if not inspect.getdoc(getattr(thing, own)):  # also one that it inherits
                yield f"{name}.{own}"
    elif inspect.isfunction(thing) and not thing.__doc__:
        yield name


def test_everything_public_is_explained():
    rooms = [clnn, *(getattr(clnn, name) for name in clnn.__all__ if inspect.ismodule(getattr(clnn, name)))]
    things = {
        f"{room.__name__}.{name}": value for room in rooms for name, value in vars(room).items() if name[0] != "_"
    }
    things = {name: value for name, value in things.items() if getattr(value, "__module__", "").startswith("clnn.")}
    assert len(things) > 150
    assert sorted({missing for name, value in things.items() for missing in unexplained(value, name)}) == []
