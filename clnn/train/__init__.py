"""Training: fit, evaluate and predict, for any `Layer`."""

from .evaluation import EVALUATION_BATCH as EVALUATION_BATCH
from .evaluation import evaluate, predict
from .history import History
from .inputs import as_inputs, build_for, made_by
from .loop import fit
from .outputs import loss_for

__all__ = ["History", "as_inputs", "build_for", "evaluate", "fit", "loss_for", "made_by", "predict"]
