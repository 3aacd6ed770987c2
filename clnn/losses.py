"""Losses: each a mean over samples, with its gradient computed in the same launch.

Targets are class numbers, integers of shape (n,), or values of the output's shape; values (n,) go with outputs (n, 1).
Class numbers of one output alone are 0 for no and 1 for yes. Gradients go to the outputs only.
A loss is an object that is called: `clnn.losses.cross_entropy(net(x), y)`, or `CrossEntropy(label_smoothing=0.1)`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from . import registry
from .checks import in_range, numbers
from .data.validate import check_labels
from .errors import ClnnError, ConfigurationError, DataError, ShapeError
from .ops.aggregate import reduce
from .ops.array import Array
from .ops.elementwise import binary
from .ops.loss import Record, Rows, rows
from .runtime.watch import Watched
from .tape import grad_enabled
from .tensor import Tensor, host_array, on_tape, tensor

ROUNDING = 1e-5  # by which a probability may miss [0, 1]


class Loss(Watched):
    """A loss by row of kernels/losses.cl. `takes` says what targets it has: "values", or "classes" for distributions
    over classes, which class numbers stand for."""

    name = ""
    takes = "values"
    mean_over_outputs = False
    parameter = 0.0
    between: tuple[float, float] | None = None  # where target values lie

    def __call__(self, output: Any, target: Any, sample_weight: Any = None) -> Tensor:
        """The mean loss over samples, a tensor of one number. With `sample_weight` (n,) each sample's loss is multiplied
        by its weight first; the divisor stays the number of samples."""
        output = tensor(output)
        target, weight = self.prepare(output, target), None
        if sample_weight is not None:
            self.refuse_history("sample_weight", sample_weight)
            weight = sample_weight
            if not isinstance(weight, Tensor):
                weight = tensor(numbers(weight, "sample_weight"), dtype=output.dtype, device=output.device)
            if weight.shape != output.shape[:1]:
                raise ShapeError(
                    f"sample_weight has the shape {weight.shape}; the output {output.shape} needs {output.shape[:1]}"
                )
        return mean_of(self.rows(output, target, weight), output)

    def rows(
        self,
        output: Tensor,
        target: Tensor,
        weight: Tensor | None = None,
        hits: bool = False,
        record: Record | None = None,
    ) -> tuple[Rows, Tensor]:
        """The losses by row, and the tensor that their gradient is by."""
        name, source, folded = self.line(output)
        flat = source if source.ndim == 2 else _as_rows(source)
        if target.dtype == np.int32 and flat.shape[1] == 1 and name == "quadratic" and flat.made_by != "sigmoid":
            raise ConfigurationError(
                "quadratic: class numbers say no (0) or yes (1) to one output where it is a sigmoid's; of other outputs give "
                "the targets as floats, such as y.astype('float32')"
            )
        if target.dtype != np.int32 and target.ndim != 2:
            target = target.reshape(flat.shape)
        factor = 1.0 / max(1, flat.shape[1]) if self.mean_over_outputs else 1.0
        taped = grad_enabled() and source.requires_grad
        found = rows(
            name,
            flat,
            target,
            weight,
            factor=factor,
            parameter=self.parameter,
            gradient=taped,
            hits=hits,
            folded=folded,
            record=record,
        )
        if flat is source:
            return found, source
        flat_backward = found.backward
        shaped = found._replace(backward=lambda d: ((source, dy.reshaped(source.shape)) for _, dy in flat_backward(d)))
        return shaped, source

    def line(self, output: Tensor) -> tuple[str, Tensor, bool]:
        """The loss's line in kernels/losses.cl, the tensor from which it is computed, and whether its derivative is already
        the one by the input of that tensor's activation."""
        return self.name, output, False

    def prepare(self, output: Tensor, target: Any) -> Tensor:
        """The target as a tensor that fits the output; everything that does not fit is an error."""
        self.refuse_history("the target", target)
        array = target if isinstance(target, Tensor) else host_target(target, output.dtype)
        self.check(output.shape, array.shape, array.dtype)
        if isinstance(array, Tensor):
            if array.dtype != np.int32:
                return array if array.shape == output.shape else array.reshape(output.shape)
            if output.device.reads:  # where it is recorded, wrong labels make the loss NaN
                self.check_values(array.numpy(), output.shape, "the labels")
            if output.device.step is not None and array.rows is None:
                shape = output.shape
                output.device.step.checks[array.block] = lambda a, name: self.check_values(a, shape, name)
            return array
        self.check_values(array, output.shape, "the labels" if array.dtype == np.int32 else "the targets")
        array = array.reshape(output.shape) if array.dtype != np.int32 else array
        return tensor(array, dtype=array.dtype, device=output.device)

    def check(self, output: tuple[int, ...], target: tuple[int, ...], dtype: Any) -> None:
        """Whether targets of that shape and type go with outputs of that shape (both with the batch)."""
        if dtype == np.int32:
            if len(target) != 1 or len(output) != 2 or target[0] != output[0]:
                raise ShapeError(
                    f"{self.name}: class numbers of shape {target} do not fit outputs of shape {output}; "
                    "they need the shape (n,) and outputs (n, classes)"
                )
            if self.takes == "numbers":
                raise ShapeError(
                    f"{self.name}: integers of shape {target} would be class numbers; give floats to regress on"
                )
        elif target != output and target + (1,) != output:
            classes = "; class numbers are integers of shape (n,)" if self.takes == "classes" else ""
            raise ShapeError(f"{self.name}: targets of shape {target} do not fit outputs of shape {output}{classes}")

    def check_values(self, target: np.ndarray, output: tuple[int, ...], name: str) -> None:
        """Whether targets on the host are in range: class numbers are classes of outputs of that shape."""
        if target.dtype == np.int32:
            check_labels(target, max(2, output[-1]), name)
        elif target.size and self.between:
            low, high = self.between
            if low - ROUNDING <= target.min() and target.max() <= high + ROUNDING:
                return
            raise DataError(
                f"{self.name}: {name} go from {target.min():g} to {target.max():g}, and should lie in [{low:g}, {high:g}]; "
                "rescale them"
            )

    def refuse_history(self, name: str, value: Any) -> None:
        """A gradient by a target or a weight would be wanted, and there is none."""
        if isinstance(value, Tensor) and value.requires_grad and grad_enabled():
            raise ClnnError(
                f"{self.name}: {name} depends on a parameter, and a loss has a gradient by its outputs alone: give "
                f"{name.removeprefix('the ')}.detach(), or write the loss with tensors, such as ((a - b) ** 2).mean()"
            )

    def check_activation(self, name: str) -> None:
        """An error if this loss makes no sense on the outputs of that activation."""

    def config(self) -> Any:
        """What `find_loss` makes this loss of again; of a class of your own, the arguments that do."""
        given = {
            name: value for name, value in registry.config_from(self).items() if value
        }  # 0 is what is meant without one
        name = NAMES.get(type(self))
        return given if name is None else {"loss": name, **given} if given else name


def _as_rows(x: Tensor) -> Array:
    """The same memory as (samples, outputs), and the same activation, so that losses fold it in as they do for two axes."""
    samples = x.shape[0] if x.shape else 1
    flat = x.reshaped((samples, x.size // max(1, samples)))
    flat.activation = x.activation
    return flat


def host_target(target: Any, dtype: Any, name: str = "the target") -> np.ndarray:
    """Targets on the host: integers of one axis are class numbers (int32), everything else becomes floats."""
    array = numbers(target, name)
    if array.dtype.kind in "iu" and array.ndim == 1:
        return host_array(array, np.int32)
    return host_array(array, dtype)


def mean_of(found: tuple[Rows, Tensor], output: Tensor) -> Tensor:
    """The mean of losses by row as a tensor on tape."""
    one, source = found
    if one.losses.size == 0:
        raise ShapeError(f"a loss over no samples: the output has the shape {output.shape}")
    mean = reduce(one.losses, "mean")[0]

    def backward(dloss: Array | None) -> Iterator[tuple[Array, Array]]:
        for target, gradient in one.backward(None):
            yield target, gradient if dloss is None else binary("multiply", gradient, dloss)[0]

    return on_tape(mean, (source,), backward, of_loss=True)


class Quadratic(Loss):
    """|y - t|^2 / 2, summed over outputs: the quadratic cost of the book (chapter 1) and of the series (part 12)."""

    name = "quadratic"


class MeanSquaredError(Loss):
    """(y - t)^2, averaged over outputs."""

    name, takes, mean_over_outputs = "mse", "numbers", True


class MeanAbsoluteError(Loss):
    """|y - t|, averaged over outputs."""

    name, takes, mean_over_outputs = "mae", "numbers", True


class Huber(Loss):
    """e^2 / 2 where |e| = |y - t| <= delta, else delta (|e| - delta / 2), averaged over outputs (Huber 1964)."""

    name, takes, mean_over_outputs = "huber", "numbers", True

    def __init__(self, delta: float = 1.0) -> None:
        self.delta = delta

    @property
    def delta(self) -> float:
        """The error from which on the loss is linear, above 0; in the unit of the targets."""
        return self.parameter

    @delta.setter
    def delta(self, value: float) -> None:
        self.parameter = in_range("Huber's delta", value, 0.0, math.inf, "()")


class BinaryCrossEntropy(Loss):
    """-t log a - (1 - t) log(1 - a), a = sigmoid(z), summed over outputs: the book's cross-entropy (chapter 3).

    The output is that of a sigmoid, or its input z (linear, and then exact however large z is). Targets lie in [0, 1].
    """

    between = (0.0, 1.0)
    name = "binary_cross_entropy"

    def line(self, output: Tensor) -> tuple[str, Tensor, bool]:
        if output.made_by == "sigmoid":
            if output.activation or not output.requires_grad:
                return "sigmoid_cross_entropy", output, True
            raise ConfigurationError(
                "binary_cross_entropy: the sigmoid's output was reshaped or detached; apply the loss before "
                "that, or to linear outputs"
            )
        self.check_activation(output.made_by)
        return self.name, output, False

    def check_activation(self, name: str) -> None:
        if name not in ("", "linear", "sigmoid"):
            raise ConfigurationError(
                f"binary_cross_entropy takes the outputs of a sigmoid or linear last layer, not of {name!r}"
            )


class CrossEntropy(Loss):
    """-sum t log softmax(z): the categorical cross-entropy on the outputs of a linear layer, or of a softmax, whose
    input is then used, so that the softmax is applied once.

    `label_smoothing` e replaces t by (1 - e) t + e / classes (Szegedy et al. 2016).
    """

    name, takes = "cross_entropy", "classes"
    between = (0.0, math.inf)

    def __init__(self, label_smoothing: float = 0.0) -> None:
        self.label_smoothing = label_smoothing

    @property
    def label_smoothing(self) -> float:
        """The share of each target that all classes have in common, in [0, 1)."""
        return self.parameter

    @label_smoothing.setter
    def label_smoothing(self, value: float) -> None:
        self.parameter = in_range("label_smoothing", value, 0.0, 1.0)

    def check(self, output: tuple[int, ...], target: tuple[int, ...], dtype: Any) -> None:
        super().check(output, target, dtype)
        if len(output) != 2:
            raise ShapeError(
                f"{self.name}: outputs of shape {output} are not (n, classes); reshape them to that, "
                f"and the targets of shape {target}"
            )
        if output[-1] == 1 and (self.name == "cross_entropy" or dtype == np.int32):
            raise ShapeError(
                f"{self.name}: outputs of shape {output} are of one class, whose probability is always 1, so that nothing is "
                "learned; take binary_cross_entropy for one output, or give the model an output for each class"
            )

    def line(self, output: Tensor) -> tuple[str, Tensor, bool]:
        self.check_activation(output.made_by)
        if output.logits is not None:
            return "softmax_cross_entropy", output.logits, False
        if output.made_by in ("softmax", "log_softmax"):
            raise ConfigurationError(
                f"{self.name}: the {output.made_by}'s output was reshaped or detached; apply the loss before that"
            )
        return "softmax_cross_entropy", output, False

    def check_activation(self, name: str) -> None:
        if name not in ("", "linear", "softmax", "log_softmax"):
            raise ConfigurationError(
                f"{self.name} takes the outputs of a linear or softmax last layer, not of {name!r}"
                + ("; for a sigmoid there is binary_cross_entropy" if name == "sigmoid" else "")
            )


class LogLikelihood(CrossEntropy):
    """-log a of the right class: the book's log-likelihood cost (chapter 3).

    On a softmax it is the cross-entropy. On other outputs they are taken as log-probabilities.
    """

    name = "log_likelihood"

    def __init__(self) -> None:
        super().__init__()

    def line(self, output: Tensor) -> tuple[str, Tensor, bool]:
        if output.logits is not None or output.made_by == "softmax":
            return super().line(output)
        return "log_likelihood", output, False


LOSSES: dict[str, type[Loss]] = {
    kind.name: kind
    for kind in list(globals().values())
    if isinstance(kind, type) and issubclass(kind, Loss) and kind.name
}
NAMES = {kind: name for name, kind in LOSSES.items()}
globals().update({name: kind() for name, kind in LOSSES.items()})  # losses.mse and the like, with their defaults


def describe(loss: Any) -> Any:
    """What `find_loss` makes the same loss of: its name, or more as JSON; None for one of your own that is not registered."""
    if type(loss) in NAMES:
        return loss.config()
    config = {key: value for key, value in registry.config_of(loss).items() if key != "loss"}
    return registry.describe(loss, config) if registry.is_registered(loss) else None


def find_loss(which: Any) -> Any:
    """A loss by name, by its `config()`, or as it is: a `Loss`, or any function of (output, target) tensors."""
    if isinstance(which, dict) and "class" in which:
        return registry.construct(which, "loss", object)
    if isinstance(which, dict) and which.get("loss") in LOSSES:
        options = {key: value for key, value in which.items() if key != "loss"}
        return LOSSES[which["loss"]](**options)
    if callable(which) and not (isinstance(which, type) and issubclass(which, Loss)):
        return which
    if not isinstance(which, str) or which not in LOSSES:
        raise ConfigurationError(f"there is no loss {which!r}; the known ones are {', '.join(LOSSES)}")
    return LOSSES[which]()
