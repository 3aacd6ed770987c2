"""Normalisation by channel, by sample, and by neighbouring channels; dropout."""

from __future__ import annotations

from typing import Any

import numpy as np

from ...errors import CheckpointError, ShapeError
from ...ops import norm as ops
from ...tape import grad_enabled
from ...tensor import Tensor, apply, function, on_tape
from ..registry import Context, operator


@operator("BatchNormalization", 1)
def batch_normalization(
    c: Context, x: Any, gamma: Any, beta: Any, mean: Any, variance: Any, *, epsilon: float = 1e-5, momentum: float = 0.9,
    spatial: int = 1, training_mode: int = 0, is_test: int = 1, consumed_inputs: Any = None,
) -> Any:  # fmt: skip
    """By the statistics that are given; in training mode by the batch's, and what the running ones become."""
    x, gamma, beta, mean, variance = map(c.tensor, (x, gamma, beta, mean, variance))
    if not spatial:
        return (x - mean) / function(variance + epsilon, "sqrt") * gamma + beta
    if training_mode:
        axes, wide = (0, *range(2, x.ndim)), (1, -1, *[1] * (x.ndim - 2))
        now = x.mean(axes)
        of_now = function(x - now.reshape(wide), "square").mean(axes)
        y = (x - now.reshape(wide)) / function(of_now.reshape(wide) + epsilon, "sqrt")
        y = y * gamma.reshape(wide) + beta.reshape(wide)
        moved = [old * momentum + new * (1 - momentum) for old, new in ((mean, now), (variance, of_now))]
        c.gives(*c.types[:1], *c.types[3:5])
        return y, *moved
    if grad_enabled() and (gamma.requires_grad or beta.requires_grad):
        a = gamma / function(variance.detach() + epsilon, "sqrt")
        b = beta - mean.detach() * a
    else:
        a, b = (Tensor(t.block, t.shape, t.dtype, t.device) for t in ops.fold(gamma, beta, mean, variance, epsilon))
    if x.ndim < 2 or x.dtype != a.dtype:
        raise ShapeError(
            f"an input has a batch and channels, and the type of the statistics, {a.dtype}; this is {x.dtype} {x.shape}"
        )
    y, backward = ops.channel_affine(x, a, b, keep=grad_enabled())
    return on_tape(y, (x, a, b), backward, (a,) if x.requires_grad else ())


@operator("Dropout", 12, host=(1, 2))
def dropout(c: Context, x: Any, ratio: Any = None, training: Any = None, *, seed: int = 0) -> Any:
    """x as it is; in training mode with a ratio above 0 an error."""
    if training is not None and bool(training) and (ratio is None or float(ratio) > 0):
        raise CheckpointError(
            "Dropout in training mode is not supported: nobody else draws the same random numbers; export for inference"
        )
    c.gives(c.types[0], "bool")
    return c.values[0], np.broadcast_to(np.array(True), x.shape)


@operator("Dropout", 1)
def dropout_of_inference(c: Context, x: Any, *, ratio: float = 0.5, is_test: int = 1) -> Any:
    c.gives(c.types[0], "bool")
    return c.values[0], np.broadcast_to(np.array(True), x.shape)


def by_group(x: Tensor, gamma: Tensor, beta: Tensor, groups: int, epsilon: float) -> Tensor:
    """Each group of channels of each sample with mean 0 and variance 1, times gamma plus beta by channel. One value is its own
    mean: while a layer that trains so is refused, in files it is beta, as in other runtimes."""
    if x.size == len(x) * groups and x.ndim > 1:
        return (x - x) * gamma.reshape(1, -1, *[1] * (x.ndim - 2)) + beta.reshape(1, -1, *[1] * (x.ndim - 2))
    y, backward = ops.group_norm(x, gamma, beta, groups, epsilon=epsilon, keep=grad_enabled())
    return on_tape(y, (x, gamma, beta), backward, (gamma,))


@operator("InstanceNormalization", 6)
def instance_normalization(x: Tensor, gamma: Tensor, beta: Tensor, *, epsilon: float = 1e-5) -> Tensor:
    return by_group(x, gamma, beta, x.shape[1], epsilon)


@operator("GroupNormalization", 21)
def group_normalization(
    x: Tensor, gamma: Tensor, beta: Tensor, *, num_groups: int, epsilon: float = 1e-5, stash_type: int = 1
) -> Tensor:
    return by_group(x, gamma, beta, num_groups, epsilon)


@operator("GroupNormalization", 18)
def group_normalization_by_group(
    x: Tensor, gamma: Tensor, beta: Tensor, *, num_groups: int, epsilon: float = 1e-5
) -> Tensor:
    """gamma and beta are of the groups, not of the channels."""
    each = x.shape[1] // num_groups
    gamma, beta = (
        t.reshape(num_groups, 1).broadcast_to((num_groups, each)).reshape(num_groups * each) for t in (gamma, beta)
    )
    return by_group(x, gamma, beta, num_groups, epsilon)


@operator("LayerNormalization", 17)
def layer_normalization(
    c: Context, x: Any, gamma: Any, beta: Any = None, *, axis: int = -1, epsilon: float = 1e-5, stash_type: int = 1
) -> Any:
    x, gamma, beta = c.tensor(x), c.tensor(gamma), None if beta is None else c.tensor(beta)
    axis = axis + x.ndim if axis < 0 else axis
    over = x.shape[axis:]
    gamma, beta = (t if t is None or t.shape == over else t.broadcast_to(over) for t in (gamma, beta))
    options = {"axes": x.ndim - axis, "epsilon": epsilon, "keep": grad_enabled()}
    y, backward = ops.layer_norm(x, gamma, beta, **options)
    y = on_tape(y, (x, gamma) if beta is None else (x, gamma, beta), backward, (gamma,))
    if len(c.outputs) == 1:
        return y
    axes = tuple(range(axis, x.ndim))
    mean = x.mean(axes, keepdims=True)
    variance = function(x - mean, "square").mean(axes, keepdims=True)
    return y, mean, function(function(variance + epsilon, "sqrt"), "reciprocal")


@operator("RMSNormalization", 23)
def rms_normalization(
    x: Tensor, gamma: Tensor, *, axis: int = -1, epsilon: float = 1e-5, stash_type: int = 1
) -> Tensor:
    axis = axis + x.ndim if axis < 0 else axis
    over = x.shape[axis:]
    gamma = gamma if gamma.shape == over else gamma.broadcast_to(over)
    y, backward = ops.rms_norm(x, gamma, x.ndim - axis, epsilon=epsilon, keep=grad_enabled())
    return on_tape(y, (x, gamma), backward, (gamma,))


@operator("LRN", 1)
def lrn(x: Tensor, *, size: int, alpha: float = 1e-4, beta: float = 0.75, bias: float = 1.0) -> Tensor:
    """ONNX sums from c - floor((size - 1) / 2) to c + ceil((size - 1) / 2), clnn one the other way round for even sizes."""
    if size % 2 == 0:
        raise ShapeError(f"LRN goes over an odd number of channels here, and its size is {size}")
    return apply(ops.local_response_norm, x, size=size, alpha=alpha, beta=beta, k=bias)


@operator("MeanVarianceNormalization", 9)
def mean_variance_normalization(x: Tensor, *, axes: Any = None) -> Tensor:
    over = tuple(a % x.ndim for a in (axes or (0, 2, 3)))
    left = x - x.mean(over, keepdims=True)
    return left / (function(function(left, "square").mean(over, keepdims=True), "sqrt") + 1e-9)
