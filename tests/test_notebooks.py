"""The notebooks: each is what Jupyter writes, without outputs, and runs from its first cell to its last."""

import ast
import json
import re
from pathlib import Path

import pytest

import clnn

FOLDER = Path(__file__).resolve().parent.parent / "examples" / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
EACH = pytest.mark.parametrize("file", NOTEBOOKS, ids=lambda file: file.stem)
KEYS = {"markdown": {"cell_type", "id", "metadata", "source"}}
KEYS["code"] = KEYS["markdown"] | {"execution_count", "outputs"}


def read(file):
    return json.loads(file.read_text(encoding="utf-8"))


def faults(notebook):
    """Where it breaks the format 4.5 of notebooks (nbformat's schema), or holds what a run has left."""
    if set(notebook) != {"cells", "metadata", "nbformat", "nbformat_minor"}:
        yield f"its keys are {sorted(notebook)}"
        return
    if (notebook["nbformat"], notebook["nbformat_minor"]) != (4, 5):
        yield "its format is not 4.5"
    kernel = notebook["metadata"].get("kernelspec", {})
    if (kernel.get("name"), kernel.get("language")) != ("python3", "python") or not kernel.get("display_name"):
        yield "its kernel is not Python 3"
    ids = [cell.get("id") for cell in notebook["cells"]]
    if len(set(ids)) < len(ids) or not all(isinstance(i, str) and re.fullmatch(r"[\w-]{1,64}", i, re.A) for i in ids):
        yield f"ids are missing, twice there, or of other signs: {ids}"
    for cell in notebook["cells"]:
        if set(cell) != KEYS.get(cell.get("cell_type")) or cell["metadata"] != {}:
            yield f"cell {cell.get('id')}: {sorted(cell)}, {cell.get('metadata')}"
        elif cell["cell_type"] == "code" and (cell["outputs"] or cell["execution_count"] is not None):
            yield f"cell {cell['id']} has outputs or a count"
        lines = cell.get("source")
        if not isinstance(lines, list) or not all(isinstance(line, str) for line in lines):
            yield f"cell {cell.get('id')}: its source is no list of lines"
        elif not lines or "".join(lines).splitlines(keepends=True) != lines or lines[-1].endswith("\n"):
            yield f"cell {cell.get('id')}: its lines are not one to an entry"


def test_there_are_notebooks_of_the_series_and_of_the_book():
    assert {file.stem.partition("_")[0] for file in NOTEBOOKS} == {"series", "book"}
    page = (FOLDER.parent / "README.md").read_text(encoding="utf-8")
    assert set(re.findall(r"\(notebooks/(\S+\.ipynb)\)", page)) == {file.name for file in NOTEBOOKS}


@EACH
def test_a_notebook_is_valid_and_short_and_has_no_outputs(file):
    notebook = read(file)
    assert list(faults(notebook)) == []
    assert (
        file.read_text(encoding="utf-8") == json.dumps(notebook, indent=1, ensure_ascii=False) + "\n"
    )  # as Jupyter saves
    kinds = [cell["cell_type"] for cell in notebook["cells"]]
    assert kinds[:2] == ["markdown", "code"] and len(kinds) <= 12
    assert notebook["cells"][0]["source"][0].startswith("# ")
    text = "".join(line for cell in notebook["cells"] for line in cell["source"])
    assert "import clnn" in text and not re.search(r"from clnn|import clnn\.|\bclnn\._\w", text)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda n: n.update(nbformat_minor=4),
        lambda n: n.pop("metadata"),
        lambda n: n["cells"][1].update(outputs=[{"output_type": "stream", "name": "stdout", "text": ["1\n"]}]),
        lambda n: n["cells"][1].update(execution_count=1),
        lambda n: n["cells"][1].update(id=n["cells"][0]["id"]),
        lambda n: n["cells"][0].update(id="a b"),
        lambda n: n["cells"][0].pop("id"),
        lambda n: n["cells"][0].update(cell_type="heading"),
        lambda n: n["cells"][0].update(source="# Title\n"),
        lambda n: n["cells"][0].update(source=["# Title\nand text"]),
        lambda n: n["cells"][0].update(outputs=[]),
        lambda n: n["metadata"].pop("kernelspec"),
    ],
)
def test_a_spoilt_notebook_is_not_valid(spoil):
    notebook = read(NOTEBOOKS[0])
    spoil(notebook)
    assert list(faults(notebook))


@EACH
def test_a_notebook_runs(file, device, monkeypatch, tmp_path):
    """One cell after the other in one namespace, as Restart and Run All does. What a cell promises it asserts; what it shows, a
    value at its end or figures, can be shown. The digits come with clnn, so a data set that is downloaded is a mistake."""
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("Agg", force=True)
    from matplotlib import pyplot as plt

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("urllib.request.urlopen", None)
    monkeypatch.setattr(clnn.data, "mnist", None)
    names = {"__name__": "__main__"}
    try:
        for cell in read(file)["cells"]:
            if cell["cell_type"] == "markdown":
                continue
            tree = ast.parse("".join(cell["source"]))
            shown = cell["source"][-1].rstrip()[-1:] != ";" and isinstance(tree.body[-1], ast.Expr) and tree.body.pop()
            exec(compile(tree, f"{file.name}, {cell['id']}", "exec"), names)
            if shown:
                value = eval(compile(ast.Expression(shown.value), f"{file.name}, {cell['id']}", "eval"), names)
                assert value is None or (getattr(value, "_repr_html_", None) or value.__repr__)()
            for number in plt.get_fignums():  # which Jupyter shows below the cell, and closes
                plt.figure(number).canvas.draw()
            plt.close("all")
    finally:
        plt.close("all")
    assert not list(tmp_path.iterdir())
