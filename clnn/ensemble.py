"""`Ensemble`: several models that answer together, by votes or by the mean of their probabilities."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from .checks import numbers
from .data.validate import check_labels
from .errors import ConfigurationError, DataError, ShapeError
from .foreign import Called
from .model import Model
from .train import EVALUATION_BATCH


def elect(p: np.ndarray) -> np.ndarray:
    """The class (int32) that most of the models say whose probabilities are p (models, n, classes), in float64. Of classes
    with as many votes the largest sum of probabilities wins, of equal ones the lowest class."""
    votes = (p.argmax(axis=-1)[..., None] == np.arange(p.shape[-1])).sum(axis=0)
    sums = np.where(votes == votes.max(axis=-1, keepdims=True), p.sum(axis=0), -1.0)
    return sums.argmax(axis=-1).astype(np.int32)


class Ensemble(Called):
    """Trained models of the same classes: `Ensemble([a, b, c]).predict_classes(x)`. (Nielsen chapter 3 and chapter 6)

    `how="vote"` takes the class that most models say, and where several classes have as many votes the one of these with
    the largest sum of probabilities over all models; `how="mean"` takes the largest mean of probabilities. What is equal
    even then goes to the lowest class. Models may differ in everything but the number of outputs, and must have
    probabilities (see `predict_proba` of a model).
    """

    def __init__(self, models: Sequence[Model], how: str = "vote") -> None:
        self.models = [models] if isinstance(models, Model) else list(models)
        wrong = [m for m in self.models if not isinstance(m, Model)]
        if not self.models or wrong:
            raise ConfigurationError(
                f"Ensemble takes a list of one or more models{f', not {wrong[0]!r}' if wrong else ''}"
            )
        if how not in ("vote", "mean"):
            raise ConfigurationError(f'how should be "vote" or "mean", {how!r} was provided instead')
        self.how = how

    def __repr__(self) -> str:
        return f"<Ensemble of {len(self.models)} models, by {self.how}>"

    def _probabilities(self, x: Any, batch_size: int) -> np.ndarray:
        """(models, n, outputs), in float64, so that sums of float32 tie only where all addends do."""
        each = [m.predict_proba(x, batch_size=batch_size) for m in self.models]
        shapes = [p.shape for p in each]
        if len(set(shapes)) > 1 or len(shapes[0]) != 2:
            raise ShapeError(
                f"the models of an ensemble give outputs of one shape (n, classes), and these give {shapes}"
            )
        return np.array(each, np.float64)

    def predict_proba(self, x: Any, *, batch_size: int = EVALUATION_BATCH) -> np.ndarray:
        """The mean of the models' probabilities, (n, classes), or (n, 1) for models with one output."""
        return self._probabilities(x, batch_size).mean(axis=0)

    def predict_classes(self, x: Any, *, batch_size: int = EVALUATION_BATCH) -> np.ndarray:
        """Class numbers (n,), int32; of models with one output 1 where it says yes."""
        p = self._probabilities(x, batch_size)
        if p.shape[-1] == 1:
            p = np.concatenate([1 - p, p], axis=-1)
        return elect(p) if self.how == "vote" else p.sum(axis=0).argmax(axis=-1).astype(np.int32)

    def evaluate(self, x: Any, y: Any, *, batch_size: int = EVALUATION_BATCH) -> dict[str, float]:
        """{"accuracy": the share of samples whose class, y (n,), the ensemble finds}."""
        labels = numbers(y, "y")
        if labels.ndim == 2 and labels.shape[1] == 1:
            labels = labels[:, 0]
        if labels.dtype.kind in "fb" and np.isin(labels, (0, 1)).all():  # the targets of one output
            labels = labels.astype(np.int32)
        found = self.predict_classes(x, batch_size=batch_size)
        if labels.shape != found.shape:
            raise ShapeError(f"y has the shape {labels.shape}; {len(found)} samples need class numbers {found.shape}")
        if not len(labels):
            raise DataError("there are no samples to evaluate on")
        check_labels(labels, np.iinfo(np.int32).max)
        return {"accuracy": float((found == labels).mean())}
