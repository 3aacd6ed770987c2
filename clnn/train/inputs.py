"""What users give to fit, evaluate and predict, checked: inputs, targets, weights and metrics."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from ..checks import columns_of, in_range, is_sparse, numbers, whole, whole_array
from ..data.mapped import MappedRows
from ..data.sparse import SparseRows
from ..data.validate import check_features
from ..errors import ConfigurationError, DataError, ShapeError, warn
from ..layers.base import Layer, called, first_pass
from ..losses import YES_ABOVE_0, Loss, host_target, parts_of
from ..metrics import Metric, accuracy, metric_name
from ..runtime.lock import exclusive
from ..runtime.watching.watch import Watch, structure_changed, structure_version
from ..tensor import Tensor, refuse_averaged
from .outputs import Outputs, as_columns, loss_for, metrics_for


def as_inputs(x: Any, model: Layer, name: str = "x", least: int = 0) -> list[Any]:
    """One array per input of the model, in the model's type or, where it takes whole numbers, int32, checked; of a sparse matrix
    its `SparseRows`. DataError for fewer than `least` samples, of which 1 is needed for a mean."""
    given: list[tuple[str, Any]] = by_input(x, model, name)
    found: list[Any] = []
    for i, (label, value) in enumerate(given):
        if isinstance(value, Tensor) and value.mask is not None:
            raise ConfigurationError(
                f"{label} has a mask of steps, which does not go along: put Masking or Embedding(mask_zero=True) into the model"
            )
        tokens = model.takes_whole(i)
        kind = SparseRows if is_sparse(value) else MappedRows if MappedRows.wanted(value, model.dtype) else None
        if kind is not None and not tokens:
            found.append(kind(value, model.dtype, label))
            continue
        array = whole_array(value, label) if tokens else numbers(value, label)
        dtype = np.dtype(np.int32) if tokens else model.dtype
        if array.ndim < 1:
            raise DataError(f"{label} should be an array of numbers with one row a sample, not one number")
        if tokens:
            model.check_whole(i, array, label)
        array = np.ascontiguousarray(array, dtype)
        images = array.ndim > 2 or (array.ndim == 2 and array.shape[1] >= 64)  # a table may hold counts
        if images and getattr(value, "dtype", None) == np.uint8 and not tokens and array.size and array.max() > 1:
            warn(
                f"{label} holds bytes up to {array.max():g}, and networks learn from numbers near 1: give {label} / 255, or "
                f"{label}.astype('float32') where the model scales them itself",
            )
        try:
            check_features(array, label)
        except DataError as error:
            raise _with_column(error, value, array) from None
        found.append(array)
    if any(len(a) != len(found[0]) for a in found):
        lengths = ", ".join(f"{label} has {len(a)}" for (label, _), a in zip(given, found))
        raise ShapeError(f"the inputs need the same number of samples: {lengths}")
    if len(found[0]) < least:
        raise DataError(f"{name} has no samples: its shape is {found[0].shape}")
    return found


def _with_column(error: DataError, frame: Any, array: np.ndarray) -> DataError:
    """The error, with the name of the column where what is wrong came in a data frame."""
    if array.ndim != 2 or not (columns := columns_of(frame)):
        return error
    bad = [repr(columns[j][0]) for j in np.flatnonzero(~np.isfinite(array).all(axis=0))]
    return DataError(f"{error}; the columns with such values are {', '.join(bad[:9])}")


def by_input(x: Any, model: Layer, name: str) -> list[tuple[str, Any]]:
    """What x gives for each input, and how to call that: a tuple in forward()'s order, or a dict by its names. A list is one
    array, but for a model that needs several."""
    if is_sparse(x) or not isinstance(x, (tuple, list, Mapping)):  # SciPy has a form that is a dict
        return [(name, x)]
    names = model.input_names() or {}
    if isinstance(x, Mapping):
        given = [key for key in names if key in x]
        unknown = [str(key) for key in x if key not in names]
        missing = [key for i, key in enumerate(names) if key not in x and (names[key] or i < len(given))]
        if missing or unknown or not given:
            raise ConfigurationError(
                f"{name}: the inputs of {type(model).__name__} have the names {_listed(names)}; missing is {_listed(missing)}, "
                f"unknown is {_listed(unknown)}; give a dict by the names in forward(), or a tuple in their order"
            )
        return [(f"{name}[{key!r}]", x[key]) for key in given]
    if isinstance(x, list) and (sum(names.values()) < 2 or len(x) != len(names)):
        return [(name, x)]
    return [(f"{name}[{i}]" if len(x) > 1 else name, value) for i, value in enumerate(x)]


def _listed(names: Iterable[str]) -> str:
    return ", ".join(names) or "none"


@exclusive("device.lock")
def build_for(model: Layer, xs: Sequence[np.ndarray]) -> Outputs:
    """Build the model if it is not, and its outputs, which the model remembers."""

    def key() -> Any:
        return structure_version(), model.device, [(x.shape[1:], x.dtype) for x in xs]

    known = model.__dict__.get("_output_shape")
    if known and known[2].changed():
        structure_changed()  # recordings hold the old layers
    if known and known[0] == key():
        return known[1]
    names = model.input_names()
    if names is not None and not sum(names.values()) <= len(xs) <= len(names):
        raise ConfigurationError(
            f"x: {type(model).__name__} takes {len(names)} inputs ({_listed(names)}), and {len(xs)} were given; give a tuple "
            "with an array for each, or a dict by these names"
        )

    try:
        outputs = first_pass(model, [(x.shape[1:], x.dtype) for x in xs], Outputs.of)
    except ShapeError as error:  # which speaks of a batch of one
        alone = [[*x.shape] for x in xs] == getattr(model, "_input_shapes", None)
        hint = ", that of a sample alone: give x[None]" if alone else ""
        error.args = (f"{error}; x has the shape {', '.join(str(x.shape) for x in xs)}{hint}",)
        raise
    model.__dict__["_output_shape"] = key(), outputs, Watch([model])
    return outputs


def made_by(model: Layer) -> str:
    """The activation that the (first) output of the last `build_for` comes from, where that is known."""
    return model.__dict__["_output_shape"][1].made_by[0]


def as_target(y: Any, loss: Any, output: tuple[int, ...], n: int, dtype: Any, name: str = "y") -> np.ndarray:
    """The targets for n outputs of that shape, checked."""
    array = host_target(y, dtype, (n, *output), name)
    if array.ndim < 1 or len(array) != n:
        raise ShapeError(f"{name} has {len(array) if array.ndim else 'no'} samples and x has {n}")
    if array.dtype != np.int32:
        check_features(array, name)
    if isinstance(loss, Loss):
        if loss.reduction != "mean":
            why = f"fit and evaluate take the mean over samples, and this {loss.name} has reduction={loss.reduction!r}"
            raise ConfigurationError(f"{why}: leave that out, and where a sum was meant multiply the learning rate")
        try:
            loss.check((n, *output), array.shape, array.dtype)
        except ShapeError as error:
            hint = "" if loss.takes == "numbers" else _of_type(numbers(y), output, name)
            raise ShapeError(f"{error}{hint}") from None
        loss.check_values(array, (n, *output), name)
        array = array if array.dtype == np.int32 else array.reshape(n, *output)
    return np.ascontiguousarray(array)


def _of_type(y: np.ndarray, output: tuple[int, ...], name: str) -> str:
    """What to do where the type of targets that do not fit, or a column of them, is to blame; else nothing."""
    if output[-1:] == (1,) or not (y.ndim == 1 or y.shape[1:] == (1,)):
        return ""
    column = f"{name}.ravel()" if y.ndim > 1 else name
    if y.dtype.kind == "f" and not (y == np.floor(y)).all():
        return f"; {name} holds {y.dtype} that are no whole numbers, so no classes: a model of values has one output"
    kind = "a column of " if y.ndim > 1 else ""
    cast = "" if y.dtype.kind in "iu" else ".astype('int32')"
    return f"; {name} is {kind}{y.dtype}: for class numbers give {column}{cast}"


def as_weights(
    sample_weight: Any, y: np.ndarray, loss: Any, dtype: Any, name: str = "sample_weight"
) -> np.ndarray | None:
    """One weight for each sample, or for each of their losses, or None."""
    if sample_weight is None:
        return None
    weight = np.ascontiguousarray(numbers(sample_weight, name), dtype)
    fitting = list(dict.fromkeys(((len(y),), _by_loss(y, loss))))
    if weight.shape not in fitting:
        raise ShapeError(f"{name} has the shape {weight.shape}; {len(y)} samples need {' or '.join(map(str, fitting))}")
    check_features(weight, name)
    if (wrong := np.argwhere(weight < 0)).size:
        place = f"{name}[{', '.join(map(str, wrong[0]))}] is {weight[(*wrong[0],)]:g}"
        raise DataError(f"{place}: weights are 0, which leaves a sample out, or more; a loss of your own may take any")
    return weight


def _by_loss(y: np.ndarray, loss: Any) -> tuple[int, ...]:
    """The shape of the losses with targets y, as `as_target` gives them."""
    return y.shape if y.dtype == np.int32 else loss.shape(y.shape) if isinstance(loss, Loss) else y.shape[:1]


def by_class(class_weight: Any, y: np.ndarray, loss: Any, outputs: int, dtype: Any) -> np.ndarray:
    """The weight of each target's class, 1 for a class that `class_weight` does not name, and for targets that are ignored."""
    balanced = isinstance(class_weight, str) and class_weight == "balanced"
    if not balanced and not isinstance(class_weight, Mapping):
        raise ConfigurationError(
            'class_weight maps class numbers to weights, such as {0: 1.0, 1: 5.0}, or is "balanced"; '
            f"{class_weight!r} was given"
        )
    if getattr(loss, "takes", "numbers") == "numbers":
        raise ConfigurationError("class_weight needs a loss of clnn's over classes; its others take sample_weight")
    classes = max(2, outputs)
    weights = np.ones(classes, dtype)
    for label, value in () if balanced else class_weight.items():
        number = int(label) if isinstance(label, (bool, np.bool_)) else whole(label)
        if number is None or not 0 <= number < classes:
            raise ConfigurationError(f"class_weight names the class {label!r}, and classes are 0 to {classes - 1}")
        weights[number] = in_range(f"class_weight's {number}", value, 0.0, math.inf)
    by_loss = _by_loss(y, loss)
    if y.dtype != np.int32 and y.size != math.prod(by_loss) * outputs:
        told = f"class_weight: targets of shape {y.shape} have more than one class a sample; weight samples by sample_weight"
        raise ConfigurationError(told)
    found = classes_of(y if y.dtype == np.int32 else y.reshape(math.prod(by_loss), -1)).reshape(by_loss)
    ignore = getattr(loss, "ignore_index", None)
    if balanced:
        count = np.bincount(found[found != ignore].ravel(), minlength=classes)
        there = count > 0
        weights[there] = count.sum() / (there.sum() * count[there])
    return weights[found] if ignore is None else np.where(found == ignore, 1, weights[np.clip(found, 0, classes - 1)])


def classes_of(y: np.ndarray, why: str = "class_weight") -> np.ndarray:
    """The class of each sample whose targets are y: class numbers, a 0 or 1 for one output, or a row by class."""
    if y.dtype == np.int32:
        return y
    rows = y.reshape(len(y), -1)
    if rows.shape[1] == 1:
        found, clear = (rows[:, 0] > 0.5).astype(np.int32), np.isin(rows[:, 0], (0, 1))
    else:
        found = rows.argmax(1)
        clear = (rows == rows.max(1, keepdims=True)).sum(1) == 1
    if not clear.all():
        at = int(np.flatnonzero(~clear)[0])
        raise DataError(
            f"{why}: the targets y[{at}] = {y[at].tolist()} name no single class; give class numbers, one-hot rows, "
            f"0 or 1 for one output, or {'sample_weight' if why == 'class_weight' else 'a metric of your own'} instead"
        )
    return found


def check_accuracy(metrics: Sequence[Metric], last: str, loss: Any, output: tuple[int, ...], y: np.ndarray) -> None:
    """An error where `accuracy` is asked for, and outputs or targets name no classes."""
    ignore = getattr(loss, "ignore_index", None)
    if ignore is not None and (
        ours := [metric_name(m) for m in metrics if getattr(m, "__module__", "") == accuracy.__module__]
    ):
        why = f"metrics {ours} count every target, and the loss ignores those of class {ignore}: the accuracy of the others is"
        raise ConfigurationError(f"{why} reported anyway; give what else is wanted as a metric of your own")
    if accuracy not in metrics:
        return
    if output[-1:] == (1,):
        name = getattr(loss, "name", "a loss of your own")
        if last != "sigmoid" and name not in YES_ABOVE_0:
            raise ConfigurationError(
                f"accuracy: one output of {last or 'an unknown activation'}, trained with {name}, may say yes above 0 or above "
                "1/2; give a metric of your own, such as lambda y, t: (y > 0.5) == t"
            )
    elif y.dtype != np.int32 and y.shape[1:] == output:
        classes_of(y.reshape(-1, y.shape[-1]), "accuracy")


class Samples(NamedTuple):
    """What a model is trained on or evaluated with, checked: inputs, and for each output targets, and a weight for each sample
    or each loss, or None."""

    xs: list[np.ndarray]
    ys: list[np.ndarray]
    weights: list[np.ndarray | None]

    def part(self, rows: Any) -> Samples:
        """Those of some samples, by a slice or by numbers; inputs that are sparse or in a file stay so."""
        xs = [x.part(rows) if isinstance(x, (SparseRows, MappedRows)) else x[rows] for x in self.xs]
        return Samples(xs, [y[rows] for y in self.ys], [None if w is None else w[rows] for w in self.weights])


def as_samples(
    xs: list[np.ndarray], y: Any, sample_weight: Any, loss: Any, outputs: Outputs, dtype: Any, of: str = ""
) -> Samples:
    """Inputs with their targets and weights, for each output; `of` what they are, in words. One array of weights is for all."""
    given = outputs.each(f"{of}y", y)
    losses = parts_of(loss)
    ys = [
        as_target(each, one, shape, len(xs[0]), dtype, outputs.label(f"{of}y", i))
        for i, (each, one, shape) in enumerate(zip(given, losses, outputs.shapes))
    ]
    what, by_output = f"{of}sample_weight", outputs.several and isinstance(sample_weight, (tuple, list, Mapping))
    of_each = outputs.each(what, sample_weight, None) if by_output else [sample_weight] * len(ys)
    labels = [outputs.label(what, i) if by_output else what for i in range(len(ys))]
    weights = [as_weights(w, y, one, dtype, label) for w, y, one, label in zip(of_each, ys, losses, labels)]
    return Samples(xs, ys, weights)


def check_trains(model: Any) -> None:
    """ConfigurationError where a layer is in eval mode, at the start of fit or after a callback."""
    if resting := [called(one) for one in model.layers_inside() if not one.training]:
        raise ConfigurationError(f"fit trains, and {_listed(resting[:5])} is in eval mode: call net.train() first")


def given_to_fit(
    model: Layer, x: Any, y: Any, loss: Any, loss_weights: Any, metrics: Any, sample_weight: Any, class_weight: Any,
    validation: Any, split: float,
) -> tuple[Any, list[Any], Outputs, Samples, Samples | None]:  # fmt: skip
    """The loss, the metrics, the outputs, the samples to train on, and those that are held out: `validation`, or the fraction
    `split` from the end."""
    check_trains(model)
    refuse_averaged(model.parameters(), "fit()")
    dtype, xs = model.dtype, as_inputs(x, model, least=1)
    n = len(xs[0])
    loss, metrics, outputs, samples = checked(model, xs, y, sample_weight, loss, loss_weights, metrics)
    held_out = None
    split = in_range("validation_split", split, 0.0, 1.0)
    if split:
        kept = n - max(1, round(n * split))
        if kept < 1:
            raise ConfigurationError(f"validation_split={split} leaves none of {n} samples to train on")
        samples, held_out = samples.part(slice(kept)), samples.part(slice(kept, None))
    elif validation is not None:
        if not isinstance(validation, (tuple, list)) or len(validation) not in (2, 3):
            why = "validation is (x, y) or (x, y, sample_weight), several inputs are ((x1, x2), y); batches come as a list of"
            raise ConfigurationError(f"{why} such tuples, or from what yields them, such as clnn.data.Batches")
        x_val, y_val, w_val = (*validation, None)[:3]
        x_val = as_inputs(x_val, model, "validation x", least=1)
        theirs = build_for(model, x_val)  # of longer sequences outputs may be longer, too
        held_out = as_samples(x_val, y_val, w_val, loss, theirs, dtype, "validation ")
    if class_weight is not None:
        samples = weighted_by_class(samples, class_weight, loss, outputs, dtype)
    return loss, metrics, outputs, samples, held_out


def weighted_by_class(samples: Samples, class_weight: Any, loss: Any, outputs: Outputs, dtype: Any) -> Samples:
    """The samples with weights by their class, times those that they have."""
    if outputs.several:
        raise ConfigurationError("class_weight is for a model of one output; give sample_weight for each of several")
    (y,), (weight,), (output,) = samples.ys, samples.weights, outputs.shapes
    of_class = by_class(class_weight, y, loss, output[-1] if output else 1, dtype)
    weight = np.multiply(np.transpose(1 if weight is None else weight), of_class.T).T
    return samples._replace(weights=[np.ascontiguousarray(weight, dtype)])


def checked(
    model: Layer, xs: list[np.ndarray], y: Any, sample_weight: Any, loss: Any, loss_weights: Any, metrics: Any
) -> tuple[Any, list[Any], Outputs, Samples]:
    """The loss, the metrics, the outputs of the model, which is built, and the samples, checked against each other."""
    outputs = build_for(model, xs)
    loss = loss_for(outputs, loss, loss_weights)
    samples = as_samples(xs, y, sample_weight, loss, outputs, model.dtype)
    found = metrics_for(outputs, metrics)
    for each, last, one, shape, target in zip(found, outputs.made_by, parts_of(loss), outputs.shapes, samples.ys):
        floats = getattr(one, "name", "") == "binary_cross_entropy" and shape == (1,) and target.dtype != np.int32
        if floats and accuracy not in each and ((target == 0) | (target == 1)).all():
            each.append(accuracy)  # no and yes as floats or bools: as with class numbers
        check_accuracy(each, last, one, shape, target)
    return loss, as_columns(outputs, found), outputs, samples


def counts_hits(loss: Any, samples: Samples) -> list[bool]:
    """Of which outputs the accuracy is reported without being asked for: those with class numbers and one of clnn's losses."""
    return [y.dtype == np.int32 and isinstance(one, Loss) for one, y in zip(parts_of(loss), samples.ys)]
