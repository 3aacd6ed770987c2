"""A network as a drawing: a box for each layer and a line for each tensor, as SVG text, without any package."""

from __future__ import annotations

import os
from html import escape
from typing import Any, NamedTuple

from ..errors import ConfigurationError, DataError
from ..files import as_path, write_atomically
from ..graph import told_of_parameters
from ..layers.base import Layer, first_pass
from ..tensor import Tensor
from .calls import forms_of, noting

WIDTH, HEIGHT, ACROSS, DOWN = 250, 46, 24, 34  # of a box, and what lies between two
LETTERS = 31  # that a line of a box has room for
COLOURS = {  # of a box's edge, by words in what it computes
    "conv": "#2e7fe4", "pool": "#4fb3bf", "norm": "#3f9d5a", "drop": "#a9a294", "dense": "#e4572e", "gemm": "#e4572e",
    "matmul": "#e4572e", "attention": "#9a55c8", "lstm": "#c85590", "gru": "#c85590", "rnn": "#c85590", "embed": "#c99a1c",
    "transformer": "#9a55c8", "gather": "#c99a1c",
}  # fmt: skip


class Box(NamedTuple):
    """An input, a call or an output: what it is, in words, more words, its shape, and the boxes that it takes from; `guessed`
    are those of which it is not known, since what happens between layers has no name."""

    title: str
    told: str
    shape: str
    given: list[int]
    guessed: list[int]
    end: bool = False  # whether it is an input or an output


class Drawing:
    """A drawing: notebooks show it, `svg` is its text, `save("net.svg")` writes it."""

    def __init__(self, svg: str) -> None:
        self.svg = svg

    def _repr_svg_(self) -> str:
        return self.svg

    def __repr__(self) -> str:
        return f"<Drawing of {self.svg.count('<g ')} boxes>"

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the file, which ends in .svg. DataError where it cannot be written."""
        file = as_path(path)
        if file.suffix.lower() != ".svg":
            raise ConfigurationError(f"a drawing is SVG text: give a path that ends in .svg, not {os.fspath(path)!r}")
        try:
            write_atomically(file, self.svg.encode())
        except OSError as error:
            raise DataError(f"{file} cannot be written: {error}") from error


def network(model: Layer) -> Drawing:
    """The network as a drawing: each layer with its output's shape and the number of its parameters.

    Of Sequential, graphs of layers, and files of ONNX all lines are known. What a class of your own does between layers is not:
    where a layer's input is no layer's output, dashed lines lead to it from those that nothing has taken so far.
    ConfigurationError for a model that is not built.
    """
    boxes = _of_onnx(model) if hasattr(model, "note_nodes") else _of_layers(model)
    return Drawing(_svg(boxes))


def _shape(shape: Any) -> str:
    return " × ".join(map(str, shape)) or "1"


def _of_layers(model: Layer) -> list[Box]:
    """The inputs, the calls of a first pass, and the outputs."""
    forms = forms_of(model)
    found: list[Box] = []

    def run(*inputs: Tensor) -> Any:
        from_ = {id(t): i for i, t in enumerate(inputs)}  # which box a tensor comes from
        found[:] = [Box(name, kind, _shape(shape), [], [], True) for name, kind, shape in forms]
        with noting(model) as calls:
            y = model(*inputs)
        seen: set[Any] = set()

        def add(title: str, told: str, shape: str, taken: list[Any], end: bool = False) -> None:
            tensors = [t for t in taken if isinstance(t, Tensor)]
            given = [from_[id(t)] for t in tensors if id(t) in from_]
            used = {i for box in found for i in (*box.given, *box.guessed)}
            loose = [i for i, box in enumerate(found) if i not in used and not box.end] or [len(found) - 1]
            found.append(Box(title, told, shape, given, loose if len(given) < len(tensors) else [], end))

        for call in calls:
            parameters = "the same" if call.of in seen else _parameters(call.of)
            seen.add(call.of)
            shapes = ", ".join(_shape(t.shape[1:]) for t in call.found if isinstance(t, Tensor))
            told = f"{call.of!r}".replace("activation=", "").replace("'", "")
            add(call.name, told, " · ".join(filter(None, (shapes, parameters))), call.given)
            from_ |= {id(t): len(found) - 1 for t in call.found}
        several = isinstance(y, dict)
        for name, t in y.items() if several else enumerate(y if isinstance(y, (tuple, list)) else [y]):
            add(str(name) if several else "output", "", _shape(t.shape[1:]), [t], True)
        calls.clear()
        return None

    first_pass(model, [(shape, kind) for _, kind, shape in forms], lambda _: None, run)
    return found


def _parameters(layer: Layer) -> str:
    told = told_of_parameters(layer)
    return "" if told == "0" else f"{told} parameters"


def _of_onnx(model: Any) -> list[Box]:
    """The inputs, nodes and outputs of a file."""
    free = lambda value: "?" if value.shape is None else _shape("?" if s is None else s for s in value.shape)  # noqa: E731
    found = [Box(v.name, v.type, free(v), [], [], True) for v in model.inputs]
    from_ = {v.name: i for i, v in enumerate(model.inputs)}
    for node in model.graph.nodes:
        weights = [model.weights[name].size for name in node.inputs if name in model.weights]
        given = [from_[name] for name in sorted(node.reads()) if name in from_]
        told = f"{sum(weights):,} parameters" if weights else ""
        from_ |= {name: len(found) for name in node.outputs if name}
        found.append(Box(node.op, node.name, told, given, []))
    for v in model.outputs:
        found.append(Box(v.name, v.type, free(v), [from_[v.name]] if v.name in from_ else [], [], True))
    return found


# -- where boxes lie ---------------------------------------------------------------------------------------------------
def _placed(boxes: list[Box]) -> tuple[dict[Any, tuple[float, int]], float, int]:
    """The middle and the row of each box, and of each place where a line passes a row, (from, to, row); width and rows."""
    row: list[int] = []
    for box in boxes:
        row.append(max((row[i] for i in (*box.given, *box.guessed)), default=-1) + 1)
    rows: list[list[Any]] = [[] for _ in range(max(row, default=0) + 1)]
    neighbours: dict[Any, list[Any]] = {}
    for i, box in enumerate(boxes):
        rows[row[i]].append(i)
        for start in dict.fromkeys((*box.given, *box.guessed)):
            way = [start, *((start, i, r) for r in range(row[start] + 1, row[i])), i]
            for r, place in zip(range(row[start] + 1, row[i]), way[1:-1]):
                rows[r].append(place)
            for above, below in zip(way, way[1:]):
                neighbours.setdefault(above, []).append(below)
                neighbours.setdefault(below, []).append(above)
    size = lambda place: WIDTH if isinstance(place, int) else 0  # noqa: E731
    width = max((sum(size(p) + ACROSS for p in places) for places in rows), default=WIDTH)
    middle: dict[Any, float] = {}
    for sweep in range(5):  # each row in the order of the means of its neighbours, as Sugiyama et al. 1981 do it
        for places in rows if sweep % 2 == 0 else rows[::-1]:
            around = {p: [middle[q] for q in neighbours.get(p, ()) if q in middle] for p in places}
            if sweep:
                places.sort(key=lambda p: sum(around[p]) / len(around[p]) if around[p] else middle[p])
            x = (width - sum(size(p) + ACROSS for p in places)) / 2
            for p in places:
                middle[p] = x + (size(p) + ACROSS) / 2
                x += size(p) + ACROSS
    at = {p: (middle[p], r) for r, places in enumerate(rows) for p in places}
    return at, width, len(rows)


def _svg(boxes: list[Box]) -> str:
    """The drawing."""
    at, width, rows = _placed(boxes)
    top = lambda r: 8 + r * (HEIGHT + DOWN)  # noqa: E731
    height = top(rows) - DOWN + 8
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height}" width="{width:.0f}" height="{height}" '
        'font-family="system-ui, Segoe UI, Roboto, DejaVu Sans, sans-serif" font-size="12">',
        '<rect width="100%" height="100%" rx="10" fill="#f7f5f0"/>',
    ]
    for i, box in enumerate(boxes):
        for start in dict.fromkeys((*box.given, *box.guessed)):
            x, r = at[start]
            way = [(x, top(r) + HEIGHT)]
            for between in range(at[start][1] + 1, at[i][1]):
                x = at[start, i, between][0]
                way += [(x, top(between)), (x, top(between) + HEIGHT)]
            way.append((at[i][0], top(at[i][1])))
            path = f"M{way[0][0]:.1f},{way[0][1]}"
            for n, ((x, y), (u, v)) in enumerate(zip(way, way[1:])):
                path += f" L{u:.1f},{v}" if n % 2 else f" C{x:.1f},{y + DOWN / 2} {u:.1f},{v - DOWN / 2} {u:.1f},{v}"
            dashes = ' stroke-dasharray="5 4"' if start not in box.given else ""
            parts.append(f'<path d="{path}" fill="none" stroke="#8d877a" stroke-width="1.5"{dashes}/>')
    for i, box in enumerate(boxes):
        x, y = at[i][0] - WIDTH / 2, top(at[i][1])
        end, words = box.end, f"{box.title} {box.told}".lower()
        colour = "#23211d" if end else next((c for word, c in COLOURS.items() if word in words), "#8d877a")
        parts.append(
            f'<g transform="translate({x:.1f} {y})"><title>{escape(f"{box.title}: {box.told} {box.shape}")}</title>'
            f'<rect width="{WIDTH}" height="{HEIGHT}" rx="{HEIGHT // 2 if end else 8}" fill="#fffefb" stroke="{colour}"/>'
        )
        left, anchor = (WIDTH / 2, "middle") if end else (12, "start")
        if not end:
            parts.append(f'<rect width="5" height="{HEIGHT}" rx="2.5" fill="{colour}"/>')
        lines = (f"{box.title}  {box.shape}", box.told) if end else (f"{box.title}  {box.told}", box.shape)
        first = 19 if lines[1] else 28
        for n, (words, weight, ink) in enumerate(zip(lines, ("600", "400"), ("#23211d", "#6d685e"))):
            parts.append(
                f'<text x="{left}" y="{first + 17 * n}" text-anchor="{anchor}" font-weight="{weight}" fill="{ink}">'
                f"{escape(_cut(words))}</text>"
            )
        parts.append("</g>")
    return "\n".join([*parts, "</svg>\n"])


def _cut(words: str) -> str:
    return words if len(words) <= LETTERS else f"{words[: LETTERS - 1]}…"
