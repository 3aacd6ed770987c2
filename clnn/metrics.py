"""Metrics: functions of (output, target) tensors that give one value per sample; fit and evaluate report their means."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np

from .errors import ConfigurationError, ShapeError
from .ops.array import empty
from .tensor import Tensor, tensor

Metric = Callable[[Tensor, Tensor], Tensor]


def _per_row(kernel: str, output: Tensor, target: Tensor, *scalars: Any, after: bool = False) -> Tensor:
    rows, n = output.shape[0], output.size // max(1, output.shape[0])
    labels = target.dtype == np.int32
    if target.size != (rows if labels else output.size):
        raise ShapeError(f"{kernel}: targets of shape {target.shape} do not fit outputs of shape {output.shape}")
    y = empty(output.device, (rows,), output.dtype)
    extra: dict[str, Any] = {"LABELS": 1} if labels else {}
    tail = (output.block, target.block, y.block)
    args = (*tail, *scalars) if after else (*scalars, *tail)
    output.device.launch("metrics", kernel, (rows,), rows, n, *args, real=output.real, **extra)
    return Tensor(y.block, y.shape, y.dtype, y.device)


def accuracy(output: Any, target: Any) -> Tensor:
    """1 where the largest output is that of the class (a number, or the largest of a row of targets).

    One output alone is compared with 0.5 if it comes from a sigmoid, with 0 (the sigmoid's input) if not.
    """
    output = tensor(output)
    target = _target(output, target)
    return _per_row("accuracy", output, target, 0.5 if output.made_by == "sigmoid" else 0.0, after=True)


def top_k(k: int) -> Metric:
    """1 where the class is among the k largest outputs."""
    if not isinstance(k, int) or k < 1:
        raise ConfigurationError(f"top_k's k should be 1 or more, {k!r} was provided instead")

    def metric(output: Any, target: Any) -> Tensor:
        output = tensor(output)
        return _per_row("top_k", output, _target(output, target), k)

    metric.__name__ = f"top_{k}"
    return metric


def _target(output: Tensor, target: Any) -> Tensor:
    if isinstance(target, Tensor):
        return target
    array = np.asarray(target)
    return tensor(
        array, dtype=np.int32 if array.dtype.kind in "iu" and array.ndim == 1 else output.dtype, device=output.device
    )


def find_metric(which: str | Metric) -> Metric:
    """A metric by name ("accuracy", "top_5"), or a function as it is."""
    if callable(which):
        return which
    if which == "accuracy":
        return accuracy
    if match := re.fullmatch(r"top_(\d+)", which):
        return top_k(int(match.group(1)))
    raise ConfigurationError(f"there is no metric {which!r}; the known ones are accuracy and top_<k>, such as top_5")


def metric_name(metric: Metric) -> str:
    return getattr(metric, "__name__", type(metric).__name__)
