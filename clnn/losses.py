"""Losses: each a mean over samples, with its gradient computed in the same launch.

Targets are class numbers, integers of shape (n,), or values of the output's shape; values (n,) go with outputs (n, 1).
Class numbers of one output alone are 0 for no and 1 for yes. Losses of vectors (`cross_entropy`, `log_likelihood`,
`kl_divergence`, `cosine`) take outputs of more axes as well: (n, time, classes) with class numbers (n, time), a loss for each.
Gradients go to the outputs only.
A loss is an object that is called: `clnn.losses.cross_entropy(net(x), y)`, or `CrossEntropy(label_smoothing=0.1)`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from . import registry
from .arrays import where
from .checks import in_range, numbers, whole
from .data.validate import check_labels
from .errors import ClnnError, ConfigurationError, DataError, ShapeError
from .foreign import by_names, check_order, unknown
from .ops.aggregate import reduce
from .ops.array import Array
from .ops.elementwise import binary
from .ops.index import take
from .ops.loss import Record, Rows, rows
from .runtime.watching.watch import Watched
from .tape import grad_enabled
from .tensor import Tensor, apply, constant, function, host_array, on_tape, tensor, zeros

ROUNDING = 1e-5  # by which a probability may miss [0, 1]
# losses by which one output, linear or a tanh's, says yes or no by its sign
YES_ABOVE_0 = ("binary_cross_entropy", "hinge", "squared_hinge")
# what is meant without them
PLAIN = {"reduction": "mean", "ignore_index": None, "label_smoothing": 0.0, "pos_weight": None}


class Loss(Watched):
    """A loss by row of kernels/losses.cl. `takes` says what targets it has: "values", or "classes" for distributions
    over classes, which class numbers stand for. One `of_vectors` has a loss for each vector along the last axis, others one
    for each sample.

    `reduction`: what a call makes of the losses, "mean", "sum", or "none" for all of them: (n,), or of vectors the outputs'
    shape without the last axis. fit and evaluate take means.
    """

    name = ""
    takes = "values"
    mean_over_outputs = of_vectors = False
    of_logits = ""  # what is given of probabilities p, where it takes logits
    parameter = 0.0
    ignore: int | None = None
    between: tuple[float, float] | None = None  # where target values lie
    _reduction = "mean"

    def __init__(self, reduction: str = "mean") -> None:
        self.reduction = reduction

    @property
    def reduction(self) -> str:
        """What a call makes of the losses: "mean", "sum" or "none"."""
        return self._reduction

    @reduction.setter
    def reduction(self, value: str) -> None:
        self._reduction = reduction_of(value)

    @by_names
    def __call__(self, output: Any, target: Any, sample_weight: Any = None, reduction: str | None = None) -> Tensor:
        """The mean of the losses, a tensor of one number, or what `reduction` says instead of the loss's own. Each loss is
        first multiplied by its `sample_weight`, one for each sample, (n,), or one for each loss. The divisor stays the number
        of losses, or with `ignore_index` of those that are not ignored."""
        reduction = self.reduction if reduction is None else reduction_of(reduction)
        if self.of_logits:
            refuse_probabilities(self.name, output, self.of_vectors, self.of_logits)
        output = tensor(output)
        target, weight = self.prepare(output, target), None
        if sample_weight is not None:
            self.refuse_history("sample_weight", sample_weight)
            weight = sample_weight
            if not isinstance(weight, Tensor):
                weight = tensor(numbers(weight, "sample_weight"), dtype=output.dtype, device=output.device)
            if weight.shape not in (output.shape[:1], self.shape(output.shape)):
                raise ShapeError(
                    f"sample_weight has the shape {weight.shape}; the output {output.shape} needs "
                    + " or ".join(map(str, dict.fromkeys((output.shape[:1], self.shape(output.shape)))))
                )
        found = self.rows(output, target, weight, summed=reduction != "mean")
        return _reduced(found, reduction, self.shape(output.shape))

    def shape(self, output: tuple[int, ...]) -> tuple[int, ...]:
        """That of the losses of outputs of a shape."""
        return output[:-1] if self.of_vectors else output[:1]

    def rows(
        self, output: Tensor, target: Tensor, weight: Tensor | None = None, hits: bool = False, record: Record | None = None,
        summed: bool = False,
    ) -> tuple[Rows, Tensor]:  # fmt: skip
        """The losses by row, and the tensor that their gradient is by; with `summed` the gradient of their sum."""
        name, source, folded = self.line(output)
        count = math.prod(self.shape(source.shape))
        flat: Array = source
        if source.ndim != 2:  # the same memory as (rows, outputs), and the same activation, which losses fold in
            flat = source.reshaped((count, source.size // max(1, count)))
            flat.activation = source.activation
        if target.dtype == np.int32 and flat.shape[1] == 1 and name == "quadratic" and flat.made_by != "sigmoid":
            raise ConfigurationError(
                "quadratic: class numbers say no (0) or yes (1) to one output where it is a sigmoid's; of other outputs give "
                "the targets as floats, such as y.astype('float32')"
            )
        factor = 1.0 / max(1, flat.shape[1]) if self.mean_over_outputs else 1.0
        taped = grad_enabled() and source.requires_grad
        found = rows(
            name, flat, target, weight, factor=factor, parameter=self.parameter_of(source), gradient=taped, hits=hits,
            folded=folded, record=record, positions=count // source.shape[0] if source.shape and source.shape[0] else 1,
            ignore=self.ignore, summed=summed,
        )  # fmt: skip
        if flat is source:
            return found, source
        shaped = found._replace(backward=lambda d: ((source, dy.reshaped(source.shape)) for _, dy in found.backward(d)))
        return shaped, source

    def parameter_of(self, output: Tensor) -> float | Tensor:
        """The loss's parameter, one for all outputs or an array with one for each."""
        return self.parameter

    def line(self, output: Tensor) -> tuple[str, Tensor, bool]:
        """The loss's line in kernels/losses.cl, the tensor from which it is computed, and whether its derivative is already
        the one by the input of that tensor's activation."""
        return self.name, output, False

    def prepare(self, output: Tensor, target: Any) -> Tensor:
        """The target as a tensor that fits the output; everything that does not fit is an error."""
        self.refuse_history("the target", target)
        array = target if isinstance(target, Tensor) else host_target(target, output.dtype, output.shape)
        self.check(output.shape, array.shape, array.dtype)
        if isinstance(array, Tensor):
            if array.dtype != np.int32:
                return array if array.shape == output.shape else array.reshape(output.shape)
            if output.device.reads:  # where it is recorded, those of arguments are looked at before a replay
                self.check_values(array.numpy(), output.shape, "the labels")
            if output.device.step is not None and array.rows is None:
                shape = output.shape
                output.device.step.check(array.block, lambda a, name: self.check_values(a, shape, name))
                if array.block.written_once:  # computed in the step: `check_rows` tells of what is no class
                    label = array if self.ignore is None else where(array == self.ignore, 0, array)
                    apply(take, zeros((max(2, shape[-1]),), device=output.device), index=label, from_end=False)
            return array
        self.check_values(array, output.shape, "the labels" if array.dtype == np.int32 else "the targets")
        array = array.reshape(output.shape) if array.dtype != np.int32 else array
        return tensor(array, dtype=array.dtype, device=output.device)

    def check(self, output: tuple[int, ...], target: tuple[int, ...], dtype: Any) -> None:
        """Whether targets of that shape and type go with outputs of that shape (both with the batch)."""
        if dtype == np.int32:
            if len(output) < 2 or target != output[:-1] or (len(output) > 2 and not self.of_vectors):
                need = "the shape (n,) and outputs (n, classes); values are floats of the outputs' shape"
                if self.of_vectors:
                    need = "the outputs' shape without the last axis, which is that of the classes"
                told = f"class numbers of shape {target} do not fit outputs of shape {output}; they need {need}"
                raise ShapeError(f"{self.name}: {told}")
            if self.takes == "numbers":
                raise ShapeError(
                    f"{self.name}: integers of shape {target} would be class numbers; give floats to regress on"
                )
        elif target != output and target + (1,) != output:
            classes = "; class numbers are integers of it without the last axis" if self.takes == "classes" else ""
            raise ShapeError(f"{self.name}: targets of shape {target} do not fit outputs of shape {output}{classes}")
        elif self.ignore is not None:
            raise ConfigurationError(
                f"{self.name}: ignore_index={self.ignore} is a class number, and the targets are values of shape {target}: "
                "give class numbers, integers, or weight samples by sample_weight"
            )

    def check_values(self, target: np.ndarray, output: tuple[int, ...], name: str) -> None:
        """Whether targets on the host are in range: class numbers are classes of outputs of that shape."""
        if target.dtype == np.int32:
            check_labels(target, max(2, output[-1]), name, self.ignore)
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
        config = registry.config_from(self)
        given = {name: value for name, value in config.items() if name not in PLAIN or value != PLAIN[name]}
        name = NAMES.get(type(self))
        return given if name is None else {"loss": name, **given} if given else name


def refuse_probabilities(name: str, output: Any, by_rows: bool, instead: str) -> None:
    """ConfigurationError for an array that holds probabilities by its numbers, as `predict` gives them: it does not say so."""
    p = numbers([] if isinstance(output, Tensor) else output, "the output")
    may_be = p.size and p.min() >= 0 and p.max() <= 1 and (p % 1).any()
    if may_be and (not by_rows or np.allclose(np.atleast_2d(p).sum(-1), 1, atol=1e-3)):
        raise ConfigurationError(
            f"{name}: the outputs are an array with numbers from {p.min():g} to {p.max():g}, probabilities it seems, which would "
            "be taken for logits: give net(x) within clnn.no_grad(), which knows what it is, or call net.evaluate(x, y); else "
            f"{instead} of probabilities p, and clnn.tensor(z) of logits z"
        )


def host_target(target: Any, dtype: Any, output: tuple[int, ...], name: str = "the target") -> np.ndarray:
    """Targets of outputs of that shape on the host: integers of one axis, or of the shape of all but the classes' axis, are
    class numbers (int32), everything else becomes floats."""
    array = numbers(target, name)
    by_vector = len(output) > 2 and output[-1] > 1 and array.shape == output[:-1]
    classes = array.dtype.kind in "iu" and (array.ndim == 1 or by_vector)
    try:
        return host_array(array, np.int32 if classes else dtype)
    except ShapeError as error:  # a number that is no int32
        raise DataError(f"{name}: {error}") from None


def reduction_of(value: Any) -> str:
    """`value`, if it is one."""
    if value not in ("mean", "sum", "none"):
        raise ConfigurationError(
            f'a loss\'s reduction should be "mean", "sum" or "none", {value!r} was provided instead'
        )
    return str(value)


def _reduced(found: tuple[Rows, Tensor], reduction: str, shape: tuple[int, ...]) -> Tensor:
    """Losses by row, or their sum or mean, as a tensor on tape."""
    one, source = found
    if one.losses.size == 0 and reduction == "mean":
        raise ShapeError(f"a loss over no samples: the output has the shape {source.shape}")
    if reduction == "none":
        y = one.losses.reshaped(shape)
    else:
        y = reduce(one.losses, "sum" if one.kept is not None else reduction)[0]
    if one.kept is not None and reduction == "mean":
        y = binary("divide", y, Array(one.kept.block, (), y.dtype, y.device))[0]

    def backward(dloss: Array | None) -> Iterator[tuple[Array, Array]]:
        if dloss is not None and reduction == "none":
            dloss = dloss.reshaped((*dloss.shape, *(1,) * (source.ndim - dloss.ndim)))
        for target, gradient in one.backward(None):
            yield target, gradient if dloss is None else binary("multiply", gradient, dloss)[0]

    return on_tape(y, (source,), backward, of_loss=True)


class Quadratic(Loss):
    """|y - t|^2 / 2, summed over outputs: the quadratic cost of the book (chapter 1) and of the series (part 12)."""

    name = "quadratic"


class MeanSquaredError(Loss):
    """(y - t)^2, averaged over outputs."""

    name, takes, mean_over_outputs = "mse", "numbers", True


class MeanAbsoluteError(Loss):
    """|y - t|, averaged over outputs."""

    name, takes, mean_over_outputs = "mae", "numbers", True


class Poisson(Loss):
    """exp(y) - t y, averaged over outputs: the negative log-likelihood of counts t, of which exp(y) are expected, without log t!.

    The output y is linear, the logarithm of the expected count; targets are from 0 on. (PyTorch's `PoissonNLLLoss`)
    """

    name, takes, mean_over_outputs = "poisson", "numbers", True
    between = (0.0, math.inf)


class Huber(Loss):
    """e^2 / 2 where |e| = |y - t| <= delta, else delta (|e| - delta / 2), averaged over outputs (Huber 1964)."""

    name, takes, mean_over_outputs = "huber", "numbers", True

    def __init__(self, delta: float = 1.0, reduction: str = "mean") -> None:
        super().__init__(reduction)
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
    `pos_weight`, a number or one for each output along the last axis, multiplies -t log a: above 1 it asks for more of the rare
    yes. ShapeError where there are more or fewer than outputs.
    """

    between = (0.0, 1.0)
    name, of_logits = "binary_cross_entropy", "clnn.log(p) - clnn.log(1 - p)"
    unwatched = frozenset(("_on_device",))
    _on_device: dict[Any, Tensor]

    def __init__(self, pos_weight: float | Sequence[float] | None = None, reduction: str = "mean") -> None:
        super().__init__(reduction)
        self.pos_weight, self._on_device = pos_weight, {}

    @property
    def pos_weight(self) -> float | tuple[float, ...] | None:
        """What a yes weighs, a no being 1: a number, or one for each output."""
        return self._pos_weight

    @pos_weight.setter
    def pos_weight(self, value: float | Sequence[float] | None) -> None:
        def one(v: Any) -> float:
            return in_range("pos_weight", v, 0.0, math.inf)

        self._pos_weight: float | tuple[float, ...] | None = None
        if value is not None:
            given = numbers(value, "pos_weight")
            self._pos_weight = tuple(map(one, given.tolist())) if given.ndim == 1 else one(value)

    def parameter_of(self, output: Tensor) -> float | Tensor:
        p = self.pos_weight
        if not isinstance(p, tuple):
            return p or 0.0
        if (output.shape[-1] if output.ndim > 1 else 1) != len(p):
            told = f"pos_weight has {len(p)} numbers, and the outputs have the shape {output.shape}"
            raise ShapeError(f"{self.name}: {told}: it has one for each output of a sample")
        key = p, output.dtype, output.device
        if key not in self._on_device:  # made once, as recordings want it
            self._on_device = {key: constant(np.array(p), output.dtype, output.device)}
        return self._on_device[key]

    def line(self, output: Tensor) -> tuple[str, Tensor, bool]:
        weighted = "weighted_" if self.pos_weight is not None else ""
        if output.made_by == "sigmoid":
            if (output.activation or " ")[0] == "sigmoid" or not output.requires_grad:
                if not output.activation and output.device.reads:  # computed of a sigmoid's output
                    self.check_values(np.nan_to_num(output.numpy()), output.shape, "the probabilities")
                return f"{weighted}sigmoid_cross_entropy", output, True
            raise ConfigurationError(
                "binary_cross_entropy: the sigmoid's output p was reshaped, detached, joined or computed with; apply the loss "
                f"before that, to linear outputs, or to {self.of_logits}"
            )
        self.check_activation(output.made_by)
        return f"{weighted}{self.name}", output, False

    def check_activation(self, name: str) -> None:
        if name not in ("", "linear", "sigmoid"):
            raise ConfigurationError(
                f"binary_cross_entropy takes the outputs of a sigmoid or linear last layer, not of {name!r}"
            )


class CrossEntropy(Loss):
    """-sum t log softmax(z): the categorical cross-entropy on the outputs of a linear layer, or of a softmax, whose
    input is then used, so that the softmax is applied once.

    `label_smoothing` e replaces t by (1 - e) t + e / classes (Szegedy et al. 2016). Targets whose class number is
    `ignore_index`, such as padding, do not count, whatever their outputs are: their loss and gradient are 0, and the mean, in
    fit that of each mini-batch, divides by the number of the others, as PyTorch's does; where all are ignored, it is 0 (in
    PyTorch NaN). Accuracies are of the others, too.
    """

    name, takes, of_vectors, of_logits = "cross_entropy", "classes", True, "clnn.log(p)"
    between = (0.0, math.inf)

    def __init__(self, label_smoothing: float = 0.0, ignore_index: int | None = None, reduction: str = "mean") -> None:
        super().__init__(reduction)
        self.label_smoothing, self.ignore_index = label_smoothing, ignore_index

    @property
    def label_smoothing(self) -> float:
        """The share of each target that all classes have in common, in [0, 1)."""
        return self.parameter

    @label_smoothing.setter
    def label_smoothing(self, value: float) -> None:
        self.parameter = in_range("label_smoothing", value, 0.0, 1.0)

    @property
    def ignore_index(self) -> int | None:
        """The class number of targets that do not count, or None."""
        return self.ignore

    @ignore_index.setter
    def ignore_index(self, value: int | None) -> None:
        number = whole(value)
        if value is not None and (number is None or not -(2**31) <= number < 2**31):
            raise ConfigurationError(f"ignore_index should be a class number or None, {value!r} was provided instead")
        self.ignore = number

    def check(self, output: tuple[int, ...], target: tuple[int, ...], dtype: Any) -> None:
        super().check(output, target, dtype)
        if len(output) < 2:
            raise ShapeError(f"{self.name}: outputs of shape {output} have no axis of classes, as (n, classes) have")
        if output[-1] == 1 and (self.name != "log_likelihood" or dtype == np.int32):
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
                f"{self.name}: the {output.made_by}'s output p was reshaped, detached, joined or computed with; apply the loss "
                f"before that, to linear outputs, or to {self.of_logits}"
            )
        return "softmax_cross_entropy", output, False

    def check_activation(self, name: str) -> None:
        if name not in ("", "linear", "softmax", "log_softmax", "log"):
            raise ConfigurationError(
                f"{self.name} takes the outputs of a linear or softmax last layer, not of {name!r}"
                + ("; for a sigmoid there is binary_cross_entropy" if name == "sigmoid" else "")
            )


class LogLikelihood(CrossEntropy):
    """-log a of the right class: the book's log-likelihood cost (chapter 3).

    On a softmax it is the cross-entropy. On other outputs they are taken as log-probabilities.
    """

    name = "log_likelihood"

    def __init__(self, ignore_index: int | None = None, reduction: str = "mean") -> None:
        super().__init__(0.0, ignore_index, reduction)

    def line(self, output: Tensor) -> tuple[str, Tensor, bool]:
        if output.logits is not None or output.made_by == "softmax":
            return super().line(output)
        return "log_likelihood", output, False


class KLDivergence(CrossEntropy):
    """sum t log(t / softmax(z)): how far the outputs' distribution is from that of the targets (Kullback and Leibler 1951).

    The outputs are those of a linear layer, z, of a softmax or of a log_softmax; log-probabilities serve as z, being their own
    log_softmax. It is `cross_entropy` less the entropy of the targets, and has its gradient.
    """

    name = "kl_divergence"

    def __init__(self, reduction: str = "mean") -> None:
        super().__init__(reduction=reduction)

    def line(self, output: Tensor) -> tuple[str, Tensor, bool]:
        return self.name, super().line(output)[1], False


class Cosine(Loss):
    """1 - y.t / (|y| |t|) of vectors along the last axis, from 0 where they point in one direction to 2; 1 where one is zero,
    whose gradient then is 0."""

    name, takes, of_vectors = "cosine", "numbers", True

    def check(self, output: tuple[int, ...], target: tuple[int, ...], dtype: Any) -> None:
        super().check(output, target, dtype)
        if len(output) < 2:
            raise ShapeError(f"cosine: outputs of shape {output} are no vectors, as (n, size) are")


class Hinge(Loss):
    """max(0, 1 - t y), averaged over outputs: the loss of support vector machines (Cortes and Vapnik 1995).

    Targets are 1 and -1, or 1 and 0 as class numbers are: what is above 0 is a yes. The outputs, of a linear or tanh layer, say
    yes above 0. Several outputs with class numbers are decided one against the rest.
    """

    name, mean_over_outputs = "hinge", True
    between = (-1.0, 1.0)

    def line(self, output: Tensor) -> tuple[str, Tensor, bool]:
        self.check_activation(output.made_by)
        return self.name, output, False

    def check_activation(self, name: str) -> None:
        if name in ("sigmoid", "softmax", "log_softmax"):
            raise ConfigurationError(
                f"{self.name} takes the outputs of a linear or tanh last layer, which say yes above 0, not of {name!r}"
            )


class SquaredHinge(Hinge):
    """max(0, 1 - t y)^2, averaged over outputs; targets and outputs as for `Hinge`."""

    name = "squared_hinge"


@by_names
def triplet(anchor: Any, positive: Any, negative: Any, margin: float = 1.0, reduction: str = "mean") -> Tensor:
    """max(0, |a - p| - |a - n| + margin): anchors a should lie nearer to p, which are of their kind, than to n, which are not,
    by the margin (Schroff et al. 2015, without squares, as PyTorch's).

    Three arrays of one shape, with vectors along the last axis; the mean over them, their sum, or with "none" all. Gradients go
    to all three. Like PyTorch's, 1e-6 is added to each difference, so that two equal vectors have a gradient.
    ShapeError where shapes differ.
    """
    a, margin, reduction = tensor(anchor), in_range("triplet's margin", margin, 0.0, math.inf), reduction_of(reduction)
    others = [tensor(one, a.dtype, a.device) for one in (positive, negative)]
    if not a.shape or any(one.shape != a.shape for one in others):
        raise ShapeError(f"triplet takes three arrays of one shape, and got {[one.shape for one in (a, *others)]}")
    near, far = (function(function(a - one + 1e-6, "square").sum(-1), "sqrt") for one in others)
    losses = function(near - far + margin, "relu")
    return losses if reduction == "none" else losses.sum() if reduction == "sum" else losses.mean()


class Joint(Watched):
    """The losses of several outputs as one: sum_i w_i loss_i, `losses` by the outputs' names and `weights` in their order.

    Called with outputs, targets and sample weights (None, one array for all outputs, or one or None for each), as tuples or as
    dicts by name. ConfigurationError where these are not the outputs' names or number, and for weights that are no finite
    numbers from 0 on.
    """

    def __init__(self, losses: Mapping[str, Any], weights: Sequence[float]) -> None:
        self.losses, self.name = dict(losses), "several losses"
        self.weights = [in_range(f"loss_weights of {name}", w, 0.0, math.inf) for name, w in zip(losses, weights)]

    def __call__(self, outputs: Any, targets: Any, sample_weight: Any = None) -> Tensor:
        if not isinstance(sample_weight, (tuple, list, Mapping)):
            sample_weight = [sample_weight] * len(self.losses)
        elif isinstance(sample_weight, Mapping):
            sample_weight = dict.fromkeys(self.losses) | dict(sample_weight)
        y, t, given = map(self._each, ("outputs", "targets", "sample_weight"), (outputs, targets, sample_weight))
        more = [() if w is None else (w,) for w in given]
        first, *rest = (
            one(*each, *w) * by for one, *each, w, by in zip(self.losses.values(), y, t, more, self.weights)
        )
        for each in rest:
            first = first + each
        return first

    def _each(self, what: str, value: Any) -> list[Any]:
        """What `value` has for each output, in their order."""
        if isinstance(value, Mapping) and value.keys() == self.losses.keys():
            return [value[name] for name in self.losses]
        if isinstance(value, (tuple, list)) and len(value) == len(self.losses):
            return list(value)
        given = f"a {type(value).__name__}"
        if isinstance(value, (tuple, list, Mapping)):
            given = f"{given} of {', '.join(map(str, value)) if isinstance(value, Mapping) else len(value)}"
        raise ConfigurationError(
            f"{what}: the losses are of {', '.join(self.losses)}, and {given} was given; give a tuple in this order, or a "
            "dict by these names"
        )

    def config(self) -> dict[str, Any]:
        """What `find_loss` makes these losses of again."""
        return {"losses": {name: describe(one) for name, one in self.losses.items()}, "weights": self.weights}


def parts_of(loss: Any) -> list[Any]:
    """The loss of each output."""
    return [*loss.losses.values()] if isinstance(loss, Joint) else [loss]


def weights_of(loss: Any) -> list[float]:
    """The weight of each output's loss."""
    return loss.weights if isinstance(loss, Joint) else [1.0]


LOSSES: dict[str, type[Loss]] = {}
LOSSES |= {k.name: k for k in [*globals().values()] if isinstance(k, type) and issubclass(k, Loss) and k.name}
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
    if isinstance(which, dict) and isinstance(which.get("losses"), dict):
        return Joint({name: find_loss(one) for name, one in which["losses"].items()}, which["weights"])
    if isinstance(which, dict) and which.get("loss") in LOSSES:
        return LOSSES[which["loss"]](**{key: value for key, value in which.items() if key != "loss"})
    if callable(which) and not (isinstance(which, type) and issubclass(which, Loss)):
        kind = type(which)
        if isinstance(which, Loss) and (
            kind.__call__ is not Loss.__call__ or (not which.name and kind.rows is Loss.rows)
        ):
            raise ConfigurationError(
                f"{kind.__name__} is a Loss, of which fit and evaluate take the losses of all samples by rows(), and not "
                "__call__: override that, with the name of one of clnn's losses, or derive the class from nothing, and its "
                "__call__(output, target) is the loss"
            )
        return check_order("loss", which)
    if not isinstance(which, str) or which not in LOSSES:
        raise ConfigurationError(unknown("loss", which, LOSSES))
    return LOSSES[which]()
