"""Callbacks that write down and show what `fit` measures: `CSVLog`, `TensorBoard` and `LivePlot`."""

from __future__ import annotations

import contextlib
import csv
import importlib
import io
import itertools
import os
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from .callbacks import Callback
from .checks import check_count, in_range
from .errors import ConfigurationError
from .files import as_path, check_place, refuse_device, write_atomically
from .layers.base import Layer
from .notebook import check_picture
from .progress import in_notebook
from .train.history import History


def leads(model: Any) -> bool:
    """Whether this is the rank that writes, of those that train together."""
    world = getattr(model.optimizer, "world", None)
    return world is None or world.rank == 0


@contextlib.contextmanager
def _writing(who: str, path: Path) -> Iterator[None]:
    """An OSError within it as a ConfigurationError that says who cannot write where."""
    try:
        yield
    except OSError as error:
        raise ConfigurationError(f"{who}: {path} cannot be written: {error}") from error


class CSVLog(Callback):
    """A file with a row for each epoch: its number from 1, and all that the `History` has of it, under a row of names.

    The rows are there as soon as the epoch is over. A fit begins the file anew, or with `append` goes on below the rows that it
    has. Where fit resumes, the file is that of an undisturbed run: rows that the interrupted run wrote after its last
    checkpoint go. ConfigurationError where the file cannot be written, or has other columns.
    """

    def __init__(self, path: str | Path, append: bool = False) -> None:
        self.path, self.append, self._text, self._whole = as_path(path), bool(append), "", False

    def on_train_begin(self, model: Any) -> None:
        self._text, self._whole = "", False  # the rows so far, and whether the file is those
        if self.append and os.path.exists(self.path):
            try:
                refuse_device(self.path)
                self._text = self.path.read_text(encoding="utf-8")
            except (OSError, UnicodeDecodeError) as error:
                raise ConfigurationError(
                    f"CSVLog: {self.path} cannot be gone on with: {error}; give another file"
                ) from None
            self._text += "" if self._text[-1:] in ("", "\n") else "\n"  # a row of its own for what comes
        if leads(model):
            self._write()

    def on_epoch_end(self, model: Any, epoch: int, logs: dict[str, float]) -> None:
        names, row = _line(["epoch", *logs]), _line([epoch + 1, *logs.values()])
        first = self._text.splitlines(keepends=True)[:1]
        if first and first != [names]:
            raise ConfigurationError(
                f"CSVLog: {self.path} has the columns {first[0].strip()}, and these are {names.strip()}: give another file"
            )
        new = row if first else names + row
        self._text += new
        if leads(model):
            self._write(new)

    def state_dict(self) -> dict[str, Any]:
        return {"text": self._text}

    def load_state_dict(self, state: dict[str, Any], model: Any) -> None:
        self._text, self._whole = state["text"], False
        if leads(model):
            self._write()

    def _write(self, new: str = "") -> None:
        """All rows, or where the file has those before, the new ones."""
        with _writing("CSVLog", self.path):
            if not self._whole:
                write_atomically(self.path, self._text.encode())
            elif new:
                with open(self.path, "a", encoding="utf-8", newline="") as file:
                    file.write(new)
            self._whole = True


def _line(cells: Iterable[Any]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(cells)
    return text.getvalue()


_boards = itertools.count()  # tensorboardX names files by the second alone, and would write over one that is there


class TensorBoard(Callback):
    """A folder that TensorBoard shows: curves of all that the `History` has, by the number of epochs done.

    `histograms`: of the weights, every so many epochs (0: none). `images`: a function of the model that returns a dict of
    pictures by name, (height, width), (channels, height, width) or (n, channels, height, width) with values from 0 to 1, of
    1, 3 or 4 channels, as often as `every` epochs. `graph`: the layers as a drawing, of a `Sequential` or `Model(inputs,
    outputs)`. Where fit resumes, what the interrupted run wrote after its last checkpoint is not shown. It writes by
    tensorboardX, or by torch.utils.tensorboard; ConfigurationError where neither is there.
    """

    def __init__(
        self, folder: str | Path, histograms: int = 0, images: Callable[[Any], dict[str, Any]] | None = None,
        graph: bool = False, every: int = 1,
    ) -> None:  # fmt: skip
        self.folder, self.graph, self.images = as_path(folder), bool(graph), images
        self.histograms = check_count("TensorBoard's histograms", histograms, 0)
        self.every = check_count("TensorBoard's every", every)
        if images is not None and not callable(images):
            raise ConfigurationError(
                f"TensorBoard's images is a function of the model that returns pictures by name, {images!r} was given"
            )
        self._writer: Any = None
        self._done = 0

    def on_train_begin(self, model: Any) -> None:
        self._done, self._writer = 0, None
        self._library = _library()
        self._nodes = nodes_of(model) if self.graph else []  # an error where it is not known

    def load_state_dict(self, state: dict[str, Any], model: Any) -> None:
        self._done = state["epochs"]

    def state_dict(self) -> dict[str, Any]:
        return {"epochs": self._done}

    def on_epoch_end(self, model: Any, epoch: int, logs: dict[str, float]) -> None:
        purge, self._done = self._done and self._done + 1, epoch + 1
        if not leads(model):
            return
        pictures = self.images(model) if self.images is not None and self._done % self.every == 0 else {}
        with _writing("TensorBoard", self.folder):
            self._write(model, logs, pictures, purge)

    def _write(self, model: Any, logs: dict[str, float], pictures: dict[str, Any], purge: int) -> None:
        if self._writer is None:
            own = f".{time.time_ns()}.{os.getpid()}.{next(_boards)}"  # in the order in which TensorBoard reads them
            self._writer = self._library[0](str(self.folder), purge_step=purge or None, filename_suffix=own)
            if self._nodes and not purge:
                self._write_graph()
        for name, value in logs.items():
            of, part = (name[4:], "validation") if name.startswith("val_") else (name, "training")
            self._writer.add_scalar(f"{of}/{part}" if f"val_{of}" in logs else of, value, self._done)
        if self.histograms and self._done % self.histograms == 0:
            for name, p in model.named_parameters():
                self._writer.add_histogram(name, p.numpy(), self._done)
        for name, picture in pictures.items():
            array = np.asarray(picture, np.float32)
            if array.ndim not in (2, 3, 4) or (1, *array.shape)[-3] not in (1, 3, 4):
                raise ConfigurationError(
                    f"TensorBoard's images: {name!r} has the shape {array.shape}; a picture is (height, width), (channels, "
                    "height, width) or (n, channels, height, width), of 1, 3 or 4 channels"
                )
            form = {2: "HW", 3: "CHW", 4: "NCHW"}[array.ndim]
            self._writer.add_image(name, array, self._done, dataformats=form) if array.ndim < 4 else (
                self._writer.add_images(name, array, self._done)
            )
        self._writer.flush()

    def _write_graph(self) -> None:
        graph, event = (importlib.import_module(f"{self._library[1]}.{file}") for file in ("graph_pb2", "event_pb2"))
        found = graph.GraphDef()
        for name, kind, given in self._nodes:
            found.node.add(name=name, op=kind, input=given)
        self._writer._get_file_writer().add_event(event.Event(graph_def=found.SerializeToString()))

    def on_train_end(self, model: Any) -> None:
        if self._writer is not None:
            with _writing("TensorBoard", self.folder):
                self._writer.close()
            self._writer = None


def _library() -> tuple[Any, str]:
    """The class that writes, and the package of its messages."""
    for module, messages in (
        ("tensorboardX", "tensorboardX.proto"),
        ("torch.utils.tensorboard", "tensorboard.compat.proto"),
    ):
        try:
            return importlib.import_module(module).SummaryWriter, messages
        except ImportError:
            pass
    raise ConfigurationError(
        "clnn.TensorBoard writes by tensorboardX: pip install tensorboardX (or torch and tensorboard)"
    )


def nodes_of(model: Layer) -> list[tuple[str, str, list[str]]]:
    """The inputs and layers of a model as (a name of its own, what it is, the names that it takes from)."""
    graph: Any = getattr(model, "graph", None)
    layers: list[Any] = getattr(model, "layers", []) if graph is None else graph.layers
    if graph is None and (not layers or not hasattr(model, "output_shapes")):
        raise ConfigurationError(
            "TensorBoard's graph is for Sequential and Model(inputs, outputs): what a forward() of your own calls is not known"
        )
    inputs = ["input"] if graph is None else [*graph.inputs]
    calls = [(i, [[i, 0]]) for i in range(len(layers))] if graph is None else graph.calls
    found: list[tuple[str, str, list[str]]] = [(name, "Input", []) for name in inputs]
    for which, given in calls:
        name = layers[which].name
        while any(name == one for one, *_ in found):  # called again
            name += "_again"
        found.append((name, type(layers[which]).__name__, [found[number][0] for number, _ in given]))
    return found


class LivePlot(Callback):
    """The curves of `History.plot` under a notebook's cell, drawn anew after each epoch, at most once in `seconds`.

    With `path` they go to that picture file instead, anywhere. It needs Matplotlib. ConfigurationError without it, and outside
    of a notebook where no path is given.
    """

    def __init__(self, path: str | Path | None = None, seconds: float = 1.0) -> None:
        self.path = None if path is None else as_path(path)
        self.seconds = in_range("LivePlot's seconds", seconds, 0.0, float("inf"))
        self._history = History()

    def on_train_begin(self, model: Any) -> None:
        self._history, self._shown, self._drawn_at, self._late = History(), None, -float("inf"), False
        if self.path is None and not in_notebook():
            raise ConfigurationError(
                'LivePlot shows its curves in a notebook: elsewhere give it a file, as in LivePlot("curves.png")'
            )
        check_picture("LivePlot", self.path or "")
        if self.path is not None:
            with _writing("LivePlot", self.path):
                check_place(self.path)

    def on_epoch_end(self, model: Any, epoch: int, logs: dict[str, float]) -> None:
        self._history.add(logs)
        self._late = True
        if leads(model) and time.monotonic() - self._drawn_at >= self.seconds:
            self._draw()

    def state_dict(self) -> dict[str, Any]:
        return {"history": self._history.history}

    def load_state_dict(self, state: dict[str, Any], model: Any) -> None:
        self._history = History({name: [*values] for name, values in state["history"].items()})

    def on_train_end(self, model: Any) -> None:
        if getattr(self, "_late", False) and leads(model):
            self._draw()

    def _draw(self) -> None:
        import matplotlib.pyplot as plt

        figure = self._history.plot()
        try:
            if self.path is not None:
                with _writing("LivePlot", self.path):
                    figure.savefig(self.path)
            elif self._shown is None:
                from IPython.display import display

                self._shown = display(figure, display_id=True)
            else:
                self._shown.update(figure)
        finally:
            plt.close(figure)  # else the notebook shows it once more
        self._drawn_at, self._late = time.monotonic(), False
