"""What users give to fit, evaluate and predict, checked: inputs, targets, weights and metrics."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from ..checks import in_range, numbers, whole, whole_array
from ..data.validate import check_features
from ..errors import ConfigurationError, DataError, ShapeError
from ..layers.base import Layer, for_shapes
from ..losses import YES_ABOVE_0, Loss, host_target
from ..metrics import Metric, accuracy, metric_name
from ..runtime.lock import exclusive
from ..runtime.watching.effects import saved
from ..runtime.watching.watch import Watch, structure_changed, structure_version
from ..tape import no_grad
from ..tensor import Tensor, tensor


def as_inputs(x: Any, model: Layer, name: str = "x") -> list[np.ndarray]:
    """One array per input of the model, in the model's type or, where it takes whole numbers, int32, checked."""
    arrays = list(x) if isinstance(x, tuple) else [x]
    found = []
    for i, value in enumerate(arrays):
        label = name if len(arrays) == 1 else f"{name}[{i}]"
        tokens = model.takes_whole(i)
        array, dtype = (
            (whole_array(value, label), np.dtype(np.int32)) if tokens else (numbers(value, label), model.dtype)
        )
        if array.ndim < 1:
            raise DataError(f"{label} should be an array of numbers with one row a sample, not one number")
        if tokens:
            model.check_whole(i, array, label)
        if array.dtype != dtype or not array.flags.c_contiguous:
            array = np.ascontiguousarray(array, dtype)
        check_features(array, label)
        found.append(array)
    if any(len(a) != len(found[0]) for a in found):
        raise ShapeError(f"the inputs have {[len(a) for a in found]} samples; they need the same number")
    return found


@exclusive("device.lock")
def build_for(model: Layer, xs: Sequence[np.ndarray]) -> tuple[int, ...]:
    """Build the model if it is not, and the output's shape for one sample, which the model remembers, with the activation
    that its values come from."""

    def key() -> Any:
        return structure_version(), model.device, [(x.shape[1:], x.dtype) for x in xs]

    known = model.__dict__.get("_output_shape")
    if known and known[2].changed():
        structure_changed()  # recordings hold the old layers
    if known and known[0] == key():
        return known[1]

    def output() -> tuple[tuple[int, ...], str]:
        y = model(*[tensor(np.zeros((1, *x.shape[1:])), x.dtype, model.device) for x in xs])
        if not isinstance(y, Tensor):
            raise ConfigurationError(
                f"forward() returned {type(y).__name__}; fit, evaluate and predict need one tensor"
            )
        return y.shape[1:], y.made_by

    built = all(layer.built for layer in model.layers_inside())
    restore = saved(Watch([model])) if built else lambda: None  # what forward() changes in layers is from no data
    with no_grad():
        try:
            shape, last = for_shapes(model.device, output)
        finally:
            restore()
    model.__dict__["_output_shape"] = key(), shape, Watch([model]), last
    return shape


def made_by(model: Layer) -> str:
    """The activation that the outputs of the last `build_for` come from, where that is known."""
    return model.__dict__["_output_shape"][3]


def as_target(y: Any, loss: Any, output: tuple[int, ...], n: int, dtype: Any, name: str = "y") -> np.ndarray:
    """The targets for n outputs of that shape, checked."""
    array = host_target(y, dtype, (n, *output), name)
    if array.ndim < 1 or len(array) != n:
        raise ShapeError(f"{name} has {len(array) if array.ndim else 'no'} samples and x has {n}")
    if array.dtype != np.int32:
        check_features(array, name)
    if isinstance(loss, Loss):
        if loss.reduction != "mean":
            raise ConfigurationError(
                f"fit and evaluate take the mean over samples, and this {loss.name} has reduction={loss.reduction!r}: leave that "
                "out, and where a sum was meant multiply the learning rate"
            )
        loss.check((n, *output), array.shape, array.dtype)
        loss.check_values(array, (n, *output), name)
        array = array if array.dtype == np.int32 else array.reshape(n, *output)
    return np.ascontiguousarray(array)


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
    return weight


def _by_loss(y: np.ndarray, loss: Any) -> tuple[int, ...]:
    """The shape of the losses with targets y, as `as_target` gives them."""
    return y.shape if y.dtype == np.int32 else loss.shape(y.shape) if isinstance(loss, Loss) else y.shape[:1]


def by_class(class_weight: Any, y: np.ndarray, loss: Any, outputs: int, dtype: Any) -> np.ndarray:
    """The weight of each target's class, 1 for a class that `class_weight` does not name, and for targets that are ignored."""
    if not isinstance(class_weight, Mapping):
        raise ConfigurationError(
            f"class_weight maps class numbers to weights, such as {{0: 1.0, 1: 5.0}}; {class_weight!r} was given"
        )
    if getattr(loss, "takes", "numbers") == "numbers":
        raise ConfigurationError(
            "class_weight needs one of clnn's losses over classes; weight samples by sample_weight"
        )
    classes = max(2, outputs)
    weights = np.ones(classes, dtype)
    for label, value in class_weight.items():
        number = int(label) if isinstance(label, (bool, np.bool_)) else whole(label)
        if number is None or not 0 <= number < classes:
            raise ConfigurationError(
                f"class_weight names the class {label!r}, and the {classes} classes are numbered 0 to {classes - 1}"
            )
        weights[number] = in_range(f"class_weight's {number}", value, 0.0, math.inf)
    by_loss = _by_loss(y, loss)
    if y.dtype != np.int32 and y.size != math.prod(by_loss) * outputs:
        raise ConfigurationError(
            f"class_weight: targets of shape {y.shape} have more than one class a sample; weight samples by sample_weight"
        )
    found = classes_of(y if y.dtype == np.int32 else y.reshape(math.prod(by_loss), -1)).reshape(by_loss)
    ignore = getattr(loss, "ignore_index", None)
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


def check_accuracy(metrics: Sequence[Metric], model: Layer, loss: Any, output: tuple[int, ...], y: np.ndarray) -> None:
    """An error where `accuracy` is asked for, and outputs or targets name no classes."""
    ignore = getattr(loss, "ignore_index", None)
    if ignore is not None and (
        ours := [metric_name(m) for m in metrics if getattr(m, "__module__", "") == accuracy.__module__]
    ):
        raise ConfigurationError(
            f"metrics {ours} count every target, and the loss ignores those of class {ignore}: the accuracy of the others is "
            "reported without being asked for; what else is wanted, give as a metric of your own"
        )
    if accuracy not in metrics:
        return
    if output[-1:] == (1,):
        last, name = made_by(model), getattr(loss, "name", "a loss of your own")
        if last != "sigmoid" and name not in YES_ABOVE_0:
            raise ConfigurationError(
                f"accuracy: one output of {last or 'an unknown activation'}, trained with {name}, may say yes above 0 or above "
                "1/2; give a metric of your own, such as lambda y, t: (y > 0.5) == t"
            )
    elif y.dtype != np.int32 and y.shape[1:] == output:
        classes_of(y.reshape(-1, y.shape[-1]), "accuracy")


class Samples(NamedTuple):
    """What a model is trained on or evaluated with, checked: inputs, targets, and a weight for each sample or each loss, or
    None."""

    xs: list[np.ndarray]
    y: np.ndarray
    weight: np.ndarray | None

    def rows(self, which: Any) -> Samples:
        """Those of some samples."""
        return Samples([x[which] for x in self.xs], self.y[which], None if self.weight is None else self.weight[which])


def given_to_fit(
    model: Layer,
    x: Any,
    y: Any,
    loss: Any,
    metrics: Sequence[Metric],
    sample_weight: Any,
    class_weight: Any,
    validation: Any,
    split: float,
) -> tuple[Samples, Samples | None]:
    """The samples to train on, and those that are held out: `validation`, or the fraction `split` from the end."""
    dtype, xs = model.dtype, as_inputs(x, model)
    n = len(xs[0])
    if n == 0:
        raise DataError(f"x has no samples: its shape is {xs[0].shape}")
    output = build_for(model, xs)
    target = as_target(y, loss, output, n, dtype)
    samples, held_out = Samples(xs, target, as_weights(sample_weight, target, loss, dtype)), None
    check_accuracy(metrics, model, loss, output, target)
    split = in_range("validation_split", split, 0.0, 1.0)
    if validation is not None and split:
        raise ConfigurationError("give validation or validation_split, not both")
    if split:
        kept = n - max(1, round(n * split))
        if kept < 1:
            raise ConfigurationError(f"validation_split={split} leaves none of {n} samples to train on")
        samples, held_out = samples.rows(slice(kept)), samples.rows(slice(kept, None))
    elif validation is not None:
        if not isinstance(validation, (tuple, list)) or len(validation) not in (2, 3):
            raise ConfigurationError("validation is (x, y) or (x, y, sample_weight); several inputs are ((x1, x2), y)")
        x_val, y_val, w_val = (*validation, None)[:3]
        x_val = as_inputs(x_val, model, "validation x")
        y_val = as_target(y_val, loss, output, len(x_val[0]), dtype, "validation y")
        held_out = Samples(x_val, y_val, as_weights(w_val, y_val, loss, dtype, "validation sample_weight"))
    if class_weight is not None:
        of_class = by_class(class_weight, samples.y, loss, output[-1] if output else 1, dtype)
        given = 1 if samples.weight is None else samples.weight
        samples = samples._replace(weight=np.ascontiguousarray(np.multiply(np.transpose(given), of_class.T).T, dtype))
    return samples, held_out
