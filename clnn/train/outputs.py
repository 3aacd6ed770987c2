"""The outputs of a model: one tensor, or several by name, and what users give for each of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from ..checks import is_sparse
from ..errors import ConfigurationError
from ..losses import Joint, find_loss
from ..metrics import REPORTED, Metric, accuracy, find_metrics, metric_name
from ..tensor import Tensor

REQUIRED = object()


class Outputs(NamedTuple):
    """What `forward` returns: a tensor, whose only name is "", a tuple (names output_1, output_2, ...) or a dict of tensors."""

    kind: type
    names: list[str]
    shapes: list[tuple[int, ...]]  # of one sample
    made_by: list[str]  # the activations that the values come from, where that is known

    @classmethod
    def of(cls, y: Any) -> Outputs:
        """Those that a first pass returned. ConfigurationError where they are anything else."""
        kind = tuple if isinstance(y, (tuple, list)) else dict if isinstance(y, dict) else Tensor
        found = [*y.values()] if kind is dict else [*y] if kind is tuple else [y]
        names = [*y] if kind is dict else [f"output_{i + 1}" for i in range(len(found))] if kind is tuple else [""]
        wrong = [one for one in found if not isinstance(one, Tensor)] + [n for n in names if not isinstance(n, str)]
        if not wrong and any(not t.shape for t in found):
            raise ConfigurationError("forward() returned a tensor without axes: the first is that of the samples")
        if wrong or not found:
            inside = "" if kind is Tensor or not wrong else f" with a {type(wrong[0]).__name__} in it"
            raise ConfigurationError(
                f"forward() returned {type(y).__name__}{inside}; fit, evaluate and predict need one tensor, or a tuple or a dict "
                "(by names) of one or more"
            )
        return cls(kind, names, [t.shape[1:] for t in found], [t.made_by for t in found])

    @property
    def several(self) -> bool:
        """Whether there are names, be it one."""
        return self.kind is not Tensor

    def tensors(self, y: Any) -> list[Tensor]:
        """The tensors that a further pass returned, in the order of the names. ConfigurationError where they are others."""
        if self.kind is Tensor and isinstance(y, Tensor):
            return [y]
        now = Outputs.of(y)
        if now.kind is not self.kind or set(now.names) != set(self.names):
            raise ConfigurationError(
                f"forward() returned {now!s} this time, and {self!s} at first: it should return the same with a tape and without"
            )
        return [y[name] for name in self.names] if self.kind is dict else [*y]

    def __str__(self) -> str:
        return f"the outputs {', '.join(self.names)}" if self.several else "one tensor"

    def together(self, values: Sequence[Any]) -> Any:
        """A value for each output in the form in which `forward` returns them."""
        if not self.several:
            return values[0]
        return dict(zip(self.names, values)) if self.kind is dict else tuple(values)

    def label(self, what: str, i: int) -> str:
        """What a user wrote to give `what` for output i."""
        return f"{what}[{self.names[i]!r}]" if self.kind is dict else f"{what}[{i}]" if self.several else what

    def each(self, what: str, value: Any, default: Any = REQUIRED) -> list[Any]:
        """What `value` gives for each output: a dict by their names, or a tuple or list in their order where forward() returns a
        tuple. ConfigurationError for unknown names, a wrong number, or one that is missing and has no `default`."""
        if not self.several:
            return [value]
        form = "a dict with these names" if self.kind is dict else "a tuple in this order"
        if isinstance(value, Mapping) and not is_sparse(value):
            unknown = [name for name in value if name not in self.names]
            missing = [name for name in self.names if name not in value] if default is REQUIRED else []
            if unknown or missing:
                raise ConfigurationError(
                    f"{what}: the model has {self!s}; missing is {', '.join(missing) or 'none'}, unknown is "
                    f"{', '.join(map(str, unknown)) or 'none'}"
                )
            return [value.get(name, default) for name in self.names]
        if self.kind is dict or not isinstance(value, (tuple, list)) or len(value) != len(self.names):
            given = (
                f"{len(value)} were given"
                if isinstance(value, (tuple, list))
                else f"a {type(value).__name__} was given"
            )
            raise ConfigurationError(f"{what}: the model has {self!s}, and {given}; give {form}")
        return list(value)


def loss_for(outputs: Outputs, loss: Any, loss_weights: Any) -> Any:
    """The loss of a model with these outputs, of what its user gives: one for all outputs, or one for each."""
    if not outputs.several:
        if loss_weights is not None or isinstance(loss, Joint):
            raise ConfigurationError(
                "the model has one output, so that it takes one loss and no loss_weights: they are for a forward() that "
                "returns a tuple or a dict"
            )
        return find_loss(loss)
    if isinstance(loss, Joint):
        if [*loss.losses] != outputs.names:
            told = f"loss: the last fit's was of {', '.join(loss.losses)}, and the model has {outputs!s}"
            raise ConfigurationError(told)
        if loss_weights is None:
            return loss
        loss = loss.losses
    by_output = isinstance(loss, (tuple, list, Mapping))
    found = outputs.each("loss", loss) if by_output else [loss] * len(outputs.names)
    weights = [1.0] * len(found) if loss_weights is None else outputs.each("loss_weights", loss_weights)
    return Joint({name: find_loss(one) for name, one in zip(outputs.names, found)}, weights)


class OfOutput:
    """A metric of one of several outputs, as a function of all of them."""

    def __init__(self, metric: Metric, i: int, name: str) -> None:
        self.metric, self.i = metric, i
        self.__name__ = f"{name}_{metric_name(metric)}"

    def __call__(self, outputs: Sequence[Tensor], targets: Sequence[Tensor]) -> Any:
        return self.metric(outputs[self.i], targets[self.i])


def metrics_for(outputs: Outputs, metrics: Any) -> list[list[Metric]]:
    """The metrics of each output: those of a list for all of them, those of a dict or of lists in a tuple by output."""
    by_output = outputs.several and (
        isinstance(metrics, Mapping)
        or (isinstance(metrics, (tuple, list)) and any(isinstance(one, (tuple, list, type(None))) for one in metrics))
    )
    return [*map(find_metrics, outputs.each("metrics", metrics, ()) if by_output else [metrics] * len(outputs.names))]


def as_columns(outputs: Outputs, metrics: Sequence[Sequence[Metric]]) -> list[Any]:
    """The metrics of all outputs in a row, under the names by which they are reported."""
    if not outputs.several:
        return list(metrics[0])
    found: list[Any] = [OfOutput(one, i, outputs.names[i]) for i, each in enumerate(metrics) for one in each]
    names = [*REPORTED, *(f"{name}_{what}" for name in outputs.names for what in ("loss", "accuracy"))]
    names += [metric_name(one) for one in found if one.metric is not accuracy]
    twice = next((n for n in names if names.count(n) > 1 or (n.startswith("val_") and n[4:] in names)), None)
    if twice is not None:
        raise ConfigurationError(
            f"two things would be reported as {twice!r}: give the outputs other names, or a metric of your own another __name__"
        )
    return found
