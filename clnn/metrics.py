"""Metrics: functions of (output, target) tensors, one value per sample, whose means fit and evaluate report.

After training, `report(predicted, labels)` says by class what was right: a confusion matrix and what is read off it.
That is counting, and done on the host.
"""

from __future__ import annotations

import functools
import math
import re
import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from . import notebook
from .checks import check_count, numbers, whole
from .data.validate import check_labels
from .errors import ConfigurationError, DataError, ShapeError
from .foreign import check_order, tell, unknown
from .losses import host_target, refuse_probabilities
from .ops.array import check_float, empty
from .ops.loss import yes_above
from .ops.rows import by_groups
from .tensor import Tensor, tensor

Metric = Callable[[Tensor, Tensor], Tensor]
REPORTED = ("loss", "lr", "seconds")  # by fit, besides metrics


def _per_row(kernel: str, output: Tensor, target: Tensor, *scalars: Any, after: bool = False) -> Tensor:
    """A value for each row of outputs, which lie along the last axis; outputs (n,) are one for each sample."""
    check_float(kernel, output)
    shape, n = (output.shape[:-1], output.shape[-1]) if output.ndim > 1 else (output.shape, 1)
    labels, rows = target.dtype == np.int32, math.prod(shape)
    fitting = [shape] if labels else [output.shape]
    if n == 1 or labels:
        fitting += [shape, (*shape, 1)]
    if target.shape not in fitting:
        raise ShapeError(f"{kernel}: targets of shape {target.shape} do not fit outputs of shape {output.shape}")
    if kernel == "top_k" and n == 1:
        raise ShapeError("top_k looks among the outputs of all classes, and one of two classes is alone: use accuracy")
    output.device.check_turns(3 * n, f"{kernel} over {n:,} outputs")
    y = empty(output.device, shape, output.dtype)
    extra: dict[str, Any] = {"LABELS": 1} if labels else {}
    tail = (output.block, target.block, y.block)
    args = (*tail, *scalars) if after else (*scalars, *tail)
    long = n if kernel == "accuracy" else 1  # the others have a row for each work-item
    size, local, group = by_groups(output.device, long, rows, "metrics", kernel, output.real, **extra)
    output.device.launch("metrics", kernel, size, rows, n, *args, local=local, real=output.real, **extra, **group)
    return Tensor(y.block, y.shape, y.dtype, y.device)


def accuracy(output: Any, target: Any) -> Tensor:
    """1 where the largest output, along the last axis, is that of the class (a number, or the largest of a row of targets).

    One output alone is compared with 0.5 if it comes from a sigmoid, with 0 (the sigmoid's input) if not; its classes are 0
    and 1. DataError for class numbers on the host that are no class.
    """
    if np.ndim(output) < 2 or np.shape(output)[-1] == 1:
        refuse_probabilities("accuracy", output, False, "clnn.tensor(p - 0.5)")
    output = tensor(output)
    target = _target(output, target)
    return _per_row("accuracy", output, target, yes_above(output.made_by), after=True)


def top_k(k: int) -> Metric:
    """1 where the class is among the k largest outputs, of which there is one for each class: ShapeError for one alone."""
    if (whole(k) or 0) < 1:
        raise ConfigurationError(f"top_k's k should be 1 or more, {k!r} was provided instead")
    return _top(int(k))


@functools.cache  # the same function again: evaluations are kept by it
def _top(k: int) -> Metric:
    def metric(output: Any, target: Any) -> Tensor:
        output = tensor(output)
        return _per_row("top_k", output, _target(output, target), k)

    metric.__name__ = f"top_{k}"
    return metric


def _target(output: Tensor, target: Any) -> Tensor:
    if isinstance(target, Tensor):
        return target
    array = host_target(target, output.dtype, output.shape)
    if array.dtype == np.int32:
        check_labels(array, max(2, output.shape[-1]) if output.ndim > 1 else 2, "the labels")
    return tensor(array, array.dtype, output.device)


def find_metric(which: str | Metric) -> Metric:
    """A metric by name ("accuracy", "top_5"), or a function as it is."""
    if callable(which):
        return check_order("metric", which)
    if which == "accuracy":
        return accuracy
    if isinstance(which, str) and (match := re.fullmatch(r"top_(\d+)", which)):
        return top_k(int(match.group(1)))
    rest = " and top_<k>, such as top_5, or a function, as clnn.losses.mae; clnn.metrics.report has f1 and others"
    raise ConfigurationError(unknown("metric", which, ["accuracy"], rest))


def find_metrics(which: Sequence[str | Metric] | None) -> list[Metric]:
    """The metrics of a list, by name or as they are. ConfigurationError where two would be reported under one name."""
    if isinstance(which, str) or callable(which):
        raise ConfigurationError(f'metrics is a list, such as ["accuracy"], and {which!r} was given')
    found = [find_metric(one) for one in which or ()]
    named: dict[str, Any] = dict.fromkeys(REPORTED)
    for metric in found:
        name = metric_name(metric)
        held_out = name.startswith("val_") and name[4:] in (*REPORTED, "accuracy", *map(metric_name, found))
        if held_out or named.setdefault(name, metric) is not metric:
            raise ConfigurationError(
                f"a metric called {name!r} would be reported as another is; give it a __name__ of its own"
            )
    return found


def metric_name(metric: Metric) -> str:
    """What a metric is called in logs: its `__name__`, or that of its class."""
    return getattr(metric, "__name__", type(metric).__name__)


MOST_CLASSES = 1 << 14  # that a label is taken to speak of: their matrix has 2 GiB


# -- by class, from a confusion matrix ---------------------------------------------------------------------------------
def confusion_matrix(predicted: Any, labels: Any, classes: int | None = None) -> np.ndarray:
    """How many samples of class i were taken for class j: (classes, classes), a row for each true class, a column for
    each predicted one (int64).

    predicted, labels: class numbers (n,), such as p = `net.predict_classes(x)` and y, of sequences p[y >= 0] and y[y >= 0].
    `classes` says how many there are; without it they go up to the largest number given. DataError where a value is no class
    number, ShapeError where the two have different shapes.
    """
    arrays = {"predicted": numbers(predicted, "predicted"), "labels": numbers(labels, "labels")}
    for name, array in arrays.items():
        if array.dtype.kind not in "iu" or array.ndim != 1:
            raise DataError(
                f"{name} should be class numbers, integers of shape (n,), and is {array.dtype} of shape {array.shape}; "
                "net.predict_classes(x) gives them, of sequences p[y >= 0] and y[y >= 0], and of rows argmax(axis=1)"
            )
    found, true = arrays.values()
    if found.shape != true.shape:
        raise ShapeError(f"predicted has the shape {found.shape} and labels {true.shape}; they need the same one")
    if classes is None:
        classes = max((int(array.max()) + 1 for array in (found, true) if array.size), default=0)
        if not classes:
            raise DataError("there are no samples to count: give some, or classes=")
        if classes > MOST_CLASSES:
            raise DataError(
                f"the largest label is {classes - 1}: renumber the labels, e.g. with numpy.unique(y, return_inverse=True)[1], or "
                f"give classes= where there are more than {MOST_CLASSES}"
            )
    else:
        classes = check_count("classes", classes)
    for name, array in arrays.items():
        check_labels(array, classes, name)
    pairs = true.astype(np.int64) * classes + found.astype(np.int64)
    return np.bincount(pairs, minlength=classes**2).reshape(classes, classes)


def _fractions(matrix: Any) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """What each rate divides by what, for each class against all others."""
    matrix = np.asarray(matrix)
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or matrix.dtype.kind not in "iu" or (matrix < 0).any():
        raise ShapeError(
            f"a confusion matrix holds counts, (classes, classes), and {matrix.dtype} of shape {matrix.shape} was given; "
            "clnn.metrics.confusion_matrix(predicted, labels) makes one"
        )
    matrix = matrix.astype(np.int64)  # twice a count may be more than its own type holds
    n, true = matrix.sum(), matrix.diagonal()
    wrong, missed = matrix.sum(axis=0) - true, matrix.sum(axis=1) - true  # false positives, false negatives
    rest = n - true - wrong - missed  # true negatives
    return {
        "precision": (true, true + wrong), "sensitivity": (true, true + missed), "specificity": (rest, rest + wrong),
        "f1": (2 * true, 2 * true + wrong + missed), "accuracy": (true + rest, np.full(len(matrix), n)),
    }  # fmt: skip


def _divide(above: Any, below: Any) -> np.ndarray:
    """0 where nothing is to be divided: the worst value is given to what was never tried."""
    return np.asarray(above) / np.where(np.asarray(below) == 0, 1, below)


def _rate(name: str, matrix: Any, average: str | None) -> Any:
    above, below = _fractions(matrix)[name]
    if average not in (None, "macro", "micro"):
        raise ConfigurationError(f'average should be None, "macro" or "micro", {average!r} was provided instead')
    if average == "micro":
        return float(_divide(above.sum(), below.sum()))
    return _divide(above, below) if average is None else float(_divide(above, below).mean())


def precision(matrix: Any, average: str | None = None) -> Any:
    """TP / (TP + FP) of each class, from a confusion matrix: of what was taken for the class, how much is of it.

    An array (classes,), or with `average` one number: "macro" is the mean over all classes, "micro" adds up the counts of
    all classes first. 0 / 0 is 0, as in scikit-learn's zero_division=0: here of a class that is never predicted.
    """
    return _rate("precision", matrix, average)


def sensitivity(matrix: Any, average: str | None = None) -> Any:
    """TP / (TP + FN), also called recall: of what is of the class, how much was found. See `precision`.
    0 for a class that never occurs."""
    return _rate("sensitivity", matrix, average)


recall = sensitivity


def specificity(matrix: Any, average: str | None = None) -> Any:
    """TN / (TN + FP): of what is not of the class, how much was not taken for it. See `precision`.
    0 for a class that all samples belong to."""
    return _rate("specificity", matrix, average)


def f1(matrix: Any, average: str | None = None) -> Any:
    """2 TP / (2 TP + FP + FN), the harmonic mean of precision and sensitivity. See `precision`.

    0 for a class that neither occurs nor is predicted. "macro" is the mean of the classes' F1, as in scikit-learn; Deep
    Diamond takes the F1 of the mean precision and the mean sensitivity instead.
    """
    return _rate("f1", matrix, average)


class Report:
    """What a classifier got right, by class: `print(report)` is a table, `report.plot(path)` a picture.

    `matrix`: the confusion matrix; `names`: of the classes; `support`: samples of each class; `accuracy`: the share of all
    samples that is right. `per_class`, `macro` and `micro` map "precision", "sensitivity", "specificity", "f1" and
    "accuracy" (of a class against the rest: (TP + TN) / n) to an array (classes,) or to a number; see `precision`.
    """

    def __init__(self, matrix: Any, names: Sequence[Any] | None = None) -> None:
        rates = _fractions(matrix)
        self.matrix = np.asarray(matrix)
        n = len(self.matrix)
        self.names = [str(name) for name in (range(n) if names is None else names)]
        if len(self.names) != n:
            raise ConfigurationError(f"{n} classes need as many names, and {len(self.names)} were given: {self.names}")
        self.support = self.matrix.sum(axis=1)
        self.accuracy = float(_divide(self.matrix.trace(), self.matrix.sum()))
        self.per_class = {name: _rate(name, matrix, None) for name in rates}
        self.macro = {name: _rate(name, matrix, "macro") for name in rates}
        self.micro = {name: _rate(name, matrix, "micro") for name in rates}

    def __repr__(self) -> str:
        return f"<Report of {self.matrix.sum()} samples of {len(self.matrix)} classes: accuracy {self.accuracy:.4f}>"

    def __str__(self) -> str:
        shown = ("precision", "sensitivity", "specificity", "f1")
        rows: list[tuple[str, ...]] = [("class", *shown, "support")]
        for i, name in enumerate(self.names):
            rows.append((name, *(f"{self.per_class[rate][i]:.4f}" for rate in shown), str(self.support[i])))
        for label, average in (("macro", self.macro), ("micro", self.micro)):
            rows.append((label, *(f"{average[rate]:.4f}" for rate in shown), str(self.support.sum())))
        widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
        lines = ["  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows]
        return "\n".join([*lines[:-2], "", *lines[-2:], f"accuracy {self.accuracy:.4f}"])

    def plot(self, path: str | None = None) -> Any:
        """The confusion matrix as a heat map with its numbers, each row relative to its class; saved to `path` if given.
        Needs matplotlib."""
        plt = notebook.pyplot("Report.plot()")
        n = len(self.matrix)
        shares = _divide(self.matrix, self.support[:, None])
        figure, axes = plt.subplots(figsize=(2 + 0.5 * n, 1.5 + 0.5 * n))
        axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
        for (row, column), number in np.ndenumerate(self.matrix):
            colour = "white" if shares[row, column] > 0.5 else "black"
            axes.text(column, row, str(number), ha="center", va="center", color=colour, fontsize=8)
        axes.set_xticks(range(n), self.names, rotation=90 if max(map(len, self.names)) > 3 else 0)
        axes.set_yticks(range(n), self.names)
        axes.set_xlabel("predicted")
        axes.set_ylabel("true")
        return notebook.finished(figure, path)


def report(predicted: Any, labels: Any, names: Sequence[Any] | None = None) -> Report:
    """A `Report` on class numbers (n,): `print(clnn.metrics.report(net.predict_classes(x), y))`.

    `names` are those of the classes, in order, and say how many there are; without them the classes are numbered up to
    the largest that occurs. Errors: those of `confusion_matrix`.
    """
    names = None if names is None else list(names)
    return Report(confusion_matrix(predicted, labels, None if names is None else len(names)), names)


tell(sys.modules[__name__])
