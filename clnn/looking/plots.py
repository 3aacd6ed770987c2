"""Pictures of what a network does, by Matplotlib: each a function of a model and data that returns a figure.

All take `path`: the figure is saved there and closed. All raise ConfigurationError without Matplotlib.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..callbacks import GradientNorms
from ..checks import check_count, numbers
from ..data.validate import check_labels
from ..errors import ConfigurationError, DataError, ShapeError
from ..layers.base import Layer
from ..metrics import report
from ..notebook import finished, pyplot
from ..tensor import Parameter, tensor
from .calls import activations, inputs_of

BINS = 60


def confusion(model: Any, x: Any, y: Any, names: Sequence[Any] | None = None, path: Any = None) -> Any:
    """The confusion matrix of a classifier on x and class numbers y (n,), as a figure; see `clnn.metrics.report`."""
    pyplot("confusion()")
    predicted = model.predict_classes(x)
    if names is None:
        names = range(max(_classes(model, x), int(numbers(y, "y").max(initial=0)) + 1))
    return report(predicted, y, names).plot(path)


def mistakes(model: Any, x: Any, y: Any, names: Sequence[Any] | None = None, most: int = 25, path: Any = None) -> Any:
    """The samples of x that a classifier takes for another class than y (n,), as pictures: those first of which it is most sure.

    x (n, pixels), (n, height, width) or (n, channels, height, width) with 1 or 3 channels; pixels are those of a square.
    DataError where x are no pictures, or nothing is mistaken.
    """
    plt, most = pyplot("mistakes()"), check_count("most", most)
    images, labels = _pictures(numbers(x, "x")), numbers(y, "y")
    predicted = model.predict_classes(x)
    if labels.shape != predicted.shape:
        raise ShapeError(f"y has the shape {labels.shape}, and the classes predicted {predicted.shape}")
    check_labels(labels, max(_classes(model, x), 2), "y")
    wrong = np.flatnonzero(predicted != labels)
    if not len(wrong):
        raise DataError(f"all {len(labels)} samples are classified as y says: there is no mistake to show")
    scores = _scores(model, x)
    sure = scores[wrong].max(-1) if scores is not None and scores.shape[-1] > 1 else np.zeros(len(wrong))
    shown = wrong[np.argsort(-sure, kind="stable")][:most]
    figure, axes = _grid(plt, len(shown), 1.25)
    label = (lambda i: names[i]) if names is not None else str
    for axis, i in zip(axes, shown):
        axis.imshow(images[i], cmap="gray_r")
        axis.set_title(f"{label(int(labels[i]))}, not {label(int(predicted[i]))}", fontsize=8)
        axis.set_xlabel(f"sample {i}", fontsize=6, labelpad=1)
    figure.suptitle(f"{len(wrong)} of {len(labels)} samples are mistaken", fontsize=10)
    return finished(figure, path)


def filters(model: Layer, layer: str | None = None, most: int = 64, path: Any = None) -> Any:
    """The weights of a layer as pictures: of a convolution (filters, channels, height, width) each filter, of one channel or of
    three in colours, else its first channel; of a Dense layer on pictures of a square the weights into each unit.

    `layer`: its name, or that of its parameter, as `named_parameters` has it; by default the first that can be shown.
    ConfigurationError where there is none of that name, or none that can be shown.
    """
    plt, most = pyplot("filters()"), check_count("most", most)
    found = {name: shown for name, p in _named(model) if (shown := _as_filters(p)) is not None}
    fits = [name for name in found if layer is None or layer in (name, name.rpartition(".")[0])]
    if not fits:
        raise ConfigurationError(
            f"filters() shows weights that are pictures, and {'this model has none' if not found else f'{layer!r} is none'}"
            f"{'; there are ' + ', '.join(found) if found else ''}"
        )
    pictures = found[fits[0]]
    figure, axes = _grid(plt, min(most, len(pictures)), 1.0)
    largest = float(np.abs(pictures).max(initial=0.0)) or 1.0
    for axis, one in zip(axes, pictures):
        if one.ndim == 3:  # in colours
            axis.imshow(0.5 + 0.5 * one / largest)
        else:
            axis.imshow(one, cmap="RdBu_r", vmin=-largest, vmax=largest)
    figure.suptitle(f"{fits[0]}: {len(pictures)} filters, from {-largest:.3g} to {largest:.3g}", fontsize=10)
    return finished(figure, path)


def histograms(model: Layer, x: Any, path: Any = None) -> Any:
    """How the outputs of each layer are distributed over x: a histogram each, with the mean, the standard deviation, and the
    share of zeros, which tells of units that are dead."""
    plt = pyplot("histograms()")
    found = {name: y for name, y in activations(model, x).items() if y.size}
    figure, axes = _grid(plt, len(found), 2.6, 1.9, ticks=True)
    for axis, (name, y) in zip(axes, found.items()):
        finite = y[np.isfinite(y)]
        axis.hist(finite.ravel(), BINS, color="#e4572e")
        lost = f", {y.size - finite.size} not finite" if finite.size < y.size else ""
        told = (
            f"mean {finite.mean():.2g}, std {finite.std():.2g}, zeros {np.mean(y == 0):.0%}" if finite.size else "none"
        )
        axis.set_title(f"{name}\n{told}{lost}", fontsize=8)
        axis.tick_params(labelsize=7)
        axis.set_yticks([])
    return finished(figure, path)


def regions(model: Any, x: Any, y: Any, steps: int = 200, path: Any = None) -> Any:
    """What a classifier of two features says at each place of the plane, and the samples x (n, 2) with their classes y (n,).

    ShapeError where samples have another number of features.
    """
    plt, steps = pyplot("regions()"), check_count("steps", steps, 2)
    points, labels = numbers(x, "x").astype(np.float64), numbers(y, "y")
    if points.ndim != 2 or points.shape[1] != 2 or labels.shape != points.shape[:1]:
        raise ShapeError(
            f"regions() takes x (n, 2) and y (n,), two features and a class a sample; x {points.shape} and y {labels.shape} "
            "were given"
        )
    check_labels(labels, max(_classes(model, x), 2), "y")
    (left, low), (right, high) = points.min(0), points.max(0)
    aside, above = 0.08 * (right - left) or 1.0, 0.08 * (high - low) or 1.0
    across, up = np.linspace(left - aside, right + aside, steps), np.linspace(low - above, high + above, steps)
    places = np.stack(np.meshgrid(across, up), -1).reshape(-1, 2)
    found = model.predict_classes(places.astype(np.float32)).reshape(steps, steps)
    classes = max(int(found.max()), int(labels.max())) + 1
    figure, axis = plt.subplots(figsize=(5, 4.4))
    colours, most = next((c, n) for c, n in (("tab10", 10), ("tab20", 20), ("nipy_spectral", classes)) if classes <= n)
    options: Any = {"cmap": colours, "vmin": -0.5, "vmax": most - 0.5}
    axis.imshow(
        found, origin="lower", extent=(across[0], across[-1], up[0], up[-1]), aspect="auto", alpha=0.35, **options,
        interpolation="nearest",
    )  # fmt: skip
    axis.scatter(*points.T, c=labels, s=14, edgecolors="white", linewidths=0.4, **options)
    return finished(figure, path)


def gradient_of_inputs(model: Layer, x: Any, y: Any = None) -> np.ndarray:
    """|d score / d x| for each sample of x, where the score is the output for the class y (n,), before any softmax where the
    model is trained without one; without y that of the class that is predicted (Simonyan et al. 2013).

    Gradients of parameters, what is trainable and statistics stay as they are. ShapeError for a model of another kind.
    """
    arrays = inputs_of(model, x)
    if len(arrays) != 1 or arrays[0].dtype.kind != "f":
        raise ConfigurationError("saliency is of one input of real numbers, and this model has another kind")
    outputs = np.asarray(model.predict(x))  # type: ignore[attr-defined]
    if outputs.ndim != 2:
        raise ShapeError(f"saliency is of classes, and the outputs have the shape {outputs.shape}")
    labels = outputs.argmax(1) if y is None else numbers(y, "y")
    if labels.shape != outputs.shape[:1]:
        raise ShapeError(f"y has the shape {labels.shape}, and x has {len(outputs)} samples")
    check_labels(labels, outputs.shape[1], "y")
    found = []
    with model.device.lock:
        changed = [p for p in model.parameters() if p.trainable]
        modes = [(layer, layer.training) for layer in model.layers_inside()]
        try:
            model.eval()
            for p in changed:  # gradients go to the samples alone
                p.trainable = False
            for start in range(0, len(labels), 64):
                part = slice(start, start + 64)
                t = tensor(arrays[0][part], model.dtype, model.device, requires_grad=True)
                one_hot = np.eye(outputs.shape[1], dtype=model.dtype)[labels[part]]
                (model(t) * one_hot).sum().backward()
                found.append(np.abs(t.grad.numpy()))  # type: ignore[attr-defined]
        finally:
            for p in changed:
                p.trainable = True
            for layer, mode in modes:
                layer.training = mode
    return np.concatenate(found)


def saliency(model: Layer, x: Any, y: Any = None, most: int = 10, path: Any = None) -> Any:
    """Which pixels an answer hangs on: samples of x, and below each `gradient_of_inputs`. x are pictures, as in `mistakes`."""
    plt, most = pyplot("saliency()"), check_count("most", most)
    x = numbers(x, "x")[:most]
    found = gradient_of_inputs(model, x, None if y is None else numbers(y, "y")[:most])
    images, shown = _pictures(x), _pictures(found)
    figure, axes = plt.subplots(2, len(x), figsize=(1.1 * len(x), 2.4), squeeze=False)
    for column, pair in enumerate(zip(images, shown)):
        for axis, one, colours in zip(axes[:, column], pair, ("gray_r", "hot")):
            axis.imshow(one.max(-1) if one.ndim == 3 and colours == "hot" else one, cmap=colours)
            axis.set(xticks=[], yticks=[])
    return finished(figure, path)


class OverTime(GradientNorms):
    """A callback that follows weights and gradients: after `fit(..., callbacks=[over])`, `over.plot()` draws them.

    `spread` maps the name of each parameter to rows (least, 25%, median, 75%, largest), one before training and one after each
    epoch; `history` and `weights` have the norms of gradients, as those of `GradientNorms`, whose arguments it takes.
    """

    def on_train_begin(self, model: Any) -> None:
        self.spread: dict[str, list[list[float]]] = {}
        super().on_train_begin(model)

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "spread": self.spread}

    def load_state_dict(self, state: dict[str, Any], model: Any) -> None:
        super().load_state_dict(state, model)
        self.spread = state["spread"]

    def _measure(self, model: Any) -> None:
        super()._measure(model)
        for name, p in _named(model):
            if p.size and p.learns:
                self.spread.setdefault(name, []).append(
                    [float(q) for q in np.quantile(p.numpy(), (0, 0.25, 0.5, 0.75, 1))]
                )

    def plot(self, path: Any = None) -> Any:
        """A curve of each parameter's median, within its quartiles and its extremes, and one of each layer's gradient."""
        plt = pyplot("OverTime.plot()")
        if not getattr(self, "spread", None):
            raise ConfigurationError("OverTime.plot(): nothing was followed yet; give it to fit in callbacks=[...]")
        figure, axes = _grid(plt, len(self.spread) + 1, 2.6, 2.0, ticks=True)
        for axis, (name, rows) in zip(axes, self.spread.items()):
            least, low, median, high, largest = np.transpose(rows)
            epochs = range(len(rows))
            axis.fill_between(epochs, least, largest, color="#e4572e", alpha=0.15, linewidth=0)
            axis.fill_between(epochs, low, high, color="#e4572e", alpha=0.35, linewidth=0)
            axis.plot(epochs, median, color="#e4572e")
            axis.set_title(name, fontsize=8)
            axis.tick_params(labelsize=7)
        axis = axes[len(self.spread)]
        for name, norms in self.weights.items():
            axis.plot(range(len(norms)), norms, label=name)
        if all(norm > 0 for norms in self.weights.values() for norm in norms):
            axis.set_yscale("log")
        axis.set_title("norms of the weights' gradients", fontsize=8)
        axis.tick_params(labelsize=7)
        axis.legend(fontsize=6)
        return finished(figure, path)


def _grid(plt: Any, n: int, width: float, height: float = 0.0, ticks: bool = False) -> tuple[Any, list[Any]]:
    """A figure with n axes in rows, and a list of them."""
    across = min(n, max(1, round(10 / width)), math.ceil(math.sqrt(2 * n)))
    down = -(-n // across)
    figure, axes = plt.subplots(
        down, across, figsize=(max(3.0, across * width), max(2.0, down * (height or 1.25 * width))), squeeze=False
    )
    for axis in axes.flat[n:]:
        axis.set_axis_off()
    if not ticks:
        for axis in axes.flat:
            axis.set(xticks=[], yticks=[])
    return figure, [*axes.flat]


def _pictures(x: np.ndarray) -> np.ndarray:
    """x as pictures (n, height, width) or, in colours, (n, height, width, 3), of values in [0, 1] then."""
    side = math.isqrt(x.shape[1]) if x.ndim == 2 else 0
    if x.ndim == 2 and side * side == x.shape[1]:
        return x.reshape(-1, side, side)
    if x.ndim == 3 or (x.ndim == 4 and x.shape[1] == 1):
        return x.reshape(len(x), *x.shape[-2:])
    if x.ndim == 4 and x.shape[1] == 3:
        low, high = x.min(initial=0), x.max(initial=0)
        return np.moveaxis((x - low) / ((high - low) or 1), 1, -1)
    raise DataError(
        f"pictures have the shape (n, pixels) of a square, (n, height, width), or (n, 1 or 3, height, width), not {x.shape}"
    )


def _named(model: Layer) -> list[tuple[str, Parameter]]:
    """The parameters by names: those of layers that have one instead of their numbers, dense_1.w."""
    if not isinstance(model, Layer):
        raise ConfigurationError(f"a model is looked at, and {model!r} was given")
    names = {path: one.name for path, one in model._walk("") if isinstance(one, Layer) and one.name}
    found, seen = [], set()
    for path, p in Layer.named_parameters(model):
        owner, _, own = path.rpartition(".")
        name = f"{names[owner]}.{own}" if owner in names and f"{names[owner]}.{own}" not in seen else path
        seen.add(name)
        found.append((name, p))
    return found


def _as_filters(p: Parameter) -> np.ndarray | None:
    """Weights as pictures, or None where they are none."""
    if p.ndim == 4 and min(p.shape[2:]) > 1:
        w = p.numpy()
        return np.moveaxis(w, 1, -1) if w.shape[1] == 3 else w[:, 0]
    side = math.isqrt(p.shape[0]) if p.ndim == 2 else 0
    return p.numpy().T.reshape(-1, side, side) if side > 2 and side * side == p.shape[0] else None


def _scores(model: Any, x: Any) -> np.ndarray | None:
    """Probabilities, or outputs where there are none; None for outputs that are no rows."""
    try:
        found = model.predict_proba(x)
    except ConfigurationError:
        found = model.predict(x)
    return found if isinstance(found, np.ndarray) and found.ndim == 2 else None


def _classes(model: Any, x: Any) -> int:
    """How many classes a model tells apart: one output is yes or no."""
    shape = np.shape(model.predict(numbers(x, "x")[:1]))
    return 2 if shape[-1] == 1 else shape[-1]
