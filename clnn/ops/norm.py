"""Normalisation: by channel over the batch, by sample (layer, group, instance, RMS), and by neighbouring channels.

Arrays are (batch, channels, *space). Activations are fused as in clnn/ops/linear.py: with `keep` the derivative of
one is kept, where y does not tell it. Sums that several gradients need are computed once.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from ..errors import ShapeError
from ..runtime.device import Device, DType, int_vector
from ..runtime.recorder import Argument, Defines
from .activation import end_with
from .array import Array, Backward, Flow, Sink, block_of, check_float, check_together, empty, empty_like
from .trace import op

COLUMNS = 1024  # of a block that a CPU thread passes over: with its sums it fits the first-level cache
ITEM = 1 << 15  # elements that are worth a CPU thread; fewer are one work-item, so that small steps can be fused
MOST_ROWS = 256  # of a block: bounds what a variance can lose, see kernels/norm.cl
ITEMS = 1 << 15  # work-items that fill a GPU; each gets at least FEW_ROWS rows
FEW_ROWS = 8
JOINED = 1 << 12  # parts that one work-item adds up


def _sizes(*values: int) -> np.ndarray:
    """An int8 argument, filled up with zeros."""
    return int_vector([*values, *[0] * (8 - len(values))])


class _Blocks(NamedTuple):
    """How kernels by channel cut an array up, see the drawing in kernels/norm.cl."""

    items: int
    parts: int  # of each channel
    most: int  # work-items in a group
    sizes: np.ndarray
    defines: Defines

    @staticmethod
    def of(device: Device, dtype: DType, batch: int, channels: int, space: int) -> _Blocks:
        vector, space = device.vector_width(dtype), max(1, space)
        columns, most = (COLUMNS, 1) if device.long_loops else (vector, _width(device, 64))
        each = -(-space // columns) if space >= columns else 1  # blocks of a channel
        blocks = channels * each if space >= columns else -(-channels // (columns // space))
        if device.long_loops:
            rows = min(MOST_ROWS, max(4, ITEM // max(1, min(columns, channels * space))))
        else:
            rows = min(MOST_ROWS, max(FEW_ROWS, batch * blocks // ITEMS))
        chunks = -(-batch // rows)
        items = blocks * chunks
        sizes = _sizes(batch, channels, space, rows, blocks, items)
        return _Blocks(items, chunks * each, most, sizes, {"VW": vector, "COLUMNS": columns})

    def launch(self, device: Device, kernel: str, real: str, *args: Argument, **defines: Any) -> None:
        """Launch a kernel by channel."""
        width = device.fitting(self.most, "norm", kernel, real, **self.defines, **defines)
        device.launch(
            "norm", kernel, (-(-self.items // width) * width,), self.sizes, *args,
            local=(width,), real=real, WIDTH=width, **self.defines, **defines,
        )  # fmt: skip


def _width(device: Device, most: int) -> int:
    """Work-items in a group that adds up: a power of 2; 1 on a CPU."""
    return 1 if device.long_loops else 1 << (min(most, device.group_width).bit_length() - 1)


def _groups(device: Device, number: int, work: int, enough: int) -> tuple[int, int, int]:
    """Groups, work-items in each at most, and how many of `number` pieces of `work` elements each group has in turn: on CPUs
    as many for each core."""
    each = max(1, enough // max(1, work)) if device.long_loops else 1
    if device.long_loops and number > each:
        each = -(-number // (-(-number // (each * device.compute_units)) * device.compute_units))
    return -(-number // each), _width(device, 128 if work >= 512 else 32), each


def _launch(device: Device, kernel: str, groups: int, most: int, real: str, *args: Argument, **defines: Any) -> None:
    """Launch a kernel whose groups, of up to `most` work-items, add up together."""
    width = device.fitting(most, "norm", kernel, real, **defines)
    device.launch("norm", kernel, (groups * width,), *args, local=(width,), real=real, WIDTH=width, **defines)


class _Output(NamedTuple):
    """An op's output and what its activation's derivative needs."""

    y: Array
    saved: Array | None
    defines: Defines

    @staticmethod
    def like(x: Array, activation: str, keep: bool) -> _Output:
        y = empty_like(x)
        saved = end_with(y, activation, keep)
        return _Output(y, saved, {"ACT": activation, **({} if saved is None else {"KEEP": 1})})


def _pair(sink: Sink | None) -> tuple[Argument, ...]:
    """The sink of a small gradient as kernels take it; nothing without one."""
    if sink is None:
        return None, None, None, 0
    assert sink.scale is not None
    return sink.out, *sink.scale[:3]


def _check(what: str, x: Array, **vectors: Array | None) -> tuple[int, int, int]:
    """x as (batch, channels, space); vectors have a value for each channel."""
    check_float(what, x, *vectors.values())
    if x.ndim < 2:
        raise ShapeError(
            f"{what}: an input has the axes (batch, channels, *space), and this one has the shape {x.shape}"
        )
    batch, channels, space = x.shape[0], x.shape[1], math.prod(x.shape[2:])
    for name, vector in vectors.items():
        if vector is not None and vector.shape != (channels,):
            raise ShapeError(
                f"{what}: {name} has the shape {vector.shape}; {channels} channels of {x.shape} need ({channels},)"
            )
    return batch, channels, space


def _join(
    device: Device, real: str, channels: int, parts: int, n: int, sums: Array, stats: Array | None, dx: Array | None,
    for_gamma: Sink | None, for_beta: Sink | None,
) -> None:  # fmt: skip
    """Add up the parts of the sums of dy and of dy (x - mean), for gradients of gamma, beta and x."""
    groups, width, each = _groups(device, channels, parts, JOINED)
    _launch(
        device, "join_sums", groups, width, real, channels, parts, each, n, sums.block, block_of(stats), block_of(dx),
        *_pair(for_gamma), *_pair(for_beta), JOIN_SUMS=1,
    )  # fmt: skip


# -- by channel -------------------------------------------------------------------------------------------------------
@op
def batch_norm(
    x: Array,
    gamma: Array | None,
    beta: Array | None,
    running: tuple[Array, Array] | None = None,
    activation: str = "linear",
    momentum: float = 0.9,
    epsilon: float = 1e-5,
    keep: bool = True,
) -> tuple[Array, Backward]:
    """y = f((x - mean) / sqrt(variance + epsilon) gamma + beta), by channel over batch and space (Ioffe and Szegedy 2015).

    `running` = (mean, variance), each (channels,), become momentum times what they are plus (1 - momentum) times the
    batch's, the variance with n - 1 as PyTorch has it. ShapeError where a channel has fewer than two values.
    """
    means, variances = running or (None, None)
    batch, channels, space = _check(
        "batch_norm", x, gamma=gamma, beta=beta, running_mean=means, running_variance=variances
    )
    n = batch * space
    if n < 2:
        raise ShapeError(
            f"batch_norm: an input of shape {x.shape} has {n} value{'s' * (n != 1)} a channel, and the variance of one value "
            "is 0 whatever it is: train on batches of two samples or more (the last of an epoch may be smaller)"
        )
    device, dtype, real = x.device, x.dtype, x.real
    blocks = _Blocks.of(device, dtype, batch, channels, space)
    parts, stats = empty(device, (blocks.parts, channels, 2), dtype), empty(device, (3, channels), dtype)
    blocks.launch(device, "channel_sums", real, x.block, None, None, parts.block, MOMENTS=1)
    groups, width, each = _groups(device, channels, blocks.parts, JOINED)
    _launch(
        device, "join_moments", groups, width, real, blocks.sizes, blocks.parts, each, parts.block, block_of(gamma),
        stats.block, block_of(means), block_of(variances), float(momentum), float(epsilon), JOIN_MOMENTS=1, **blocks.defines,
    )  # fmt: skip
    y, saved, defines = _Output.like(x, activation, keep)
    blocks.launch(
        device, "channel_forward", real, x.block, stats.block, block_of(beta), y.block, block_of(saved),
        FORWARD=1, CENTRED=1, **defines,
    )  # fmt: skip

    def backward(dz: Array) -> Iterator[Flow]:
        joined: list[Array] = []  # what dx needs, once it is there

        def join(for_gamma: Sink | None = None, for_beta: Sink | None = None) -> None:
            sums, by = empty(device, (blocks.parts, channels, 2), dtype), empty(device, (2, channels), dtype)
            blocks.launch(device, "channel_sums", real, x.block, dz.block, stats.block, sums.block, SUMS=1)
            _join(device, real, channels, blocks.parts, n, sums, stats, by, for_gamma, for_beta)
            joined.append(by)

        def write_dx(sink: Sink) -> None:
            if not joined:
                join()
            into, how = sink.arguments(), sink.defines()
            blocks.launch(
                device, "channel_backward", real, x.block, dz.block, stats.block, joined.pop().block, *into,
                BACKWARD=1, CENTRED=1, **how,
            )  # fmt: skip

        yield gamma, beta, join  # x's gradient has gamma in the statistics
        yield x, write_dx

    return y, backward


@op
def channel_affine(
    x: Array, a: Array, b: Array, activation: str = "linear", keep: bool = True
) -> tuple[Array, Backward]:
    """y = f(x a + b), a and b (channels,): batch normalisation with fixed statistics, see `fold`."""
    batch, channels, space = _check("channel_affine", x, a=a, b=b)
    device, dtype, real = x.device, x.dtype, x.real
    blocks = _Blocks.of(device, dtype, batch, channels, space)
    y, saved, defines = _Output.like(x, activation, keep)
    blocks.launch(
        device, "channel_forward", real, x.block, a.block, b.block, y.block, block_of(saved), FORWARD=1, **defines
    )

    def backward(dz: Array) -> Iterator[Flow]:
        def write_dx(sink: Sink) -> None:
            into, how = sink.arguments(), sink.defines()
            blocks.launch(device, "channel_backward", real, x.block, dz.block, a.block, None, *into, BACKWARD=1, **how)

        def write_da_db(for_a: Sink | None, for_b: Sink | None) -> None:
            sums = empty(device, (blocks.parts, channels, 2), dtype)
            blocks.launch(device, "channel_sums", real, x.block, dz.block, None, sums.block, SUMS=1)
            _join(device, real, channels, blocks.parts, 1, sums, None, None, for_a, for_b)

        yield x, write_dx  # before da: a sink may be a itself
        yield a, b, write_da_db

    return y, backward


@op
def fold(
    gamma: Array | None, beta: Array | None, mean: Array, variance: Array, epsilon: float = 1e-5
) -> tuple[Array, Array]:
    """a = gamma / sqrt(variance + epsilon) and b = beta - mean a, (channels,): the normalisation by channel is x a + b."""
    check_together("fold", mean, variance, gamma, beta)
    a, b = empty_like(mean), empty_like(mean)
    mean.device.launch(
        "norm", "fold", (mean.size,), mean.size, block_of(gamma), block_of(beta), mean.block, variance.block,
        a.block, b.block, float(epsilon), real=mean.real, FOLD=1,
    )  # fmt: skip
    return a, b


# -- by sample --------------------------------------------------------------------------------------------------------
@op
def layer_norm(
    x: Array,
    gamma: Array | None,
    beta: Array | None,
    axes: int = 1,
    activation: str = "linear",
    epsilon: float = 1e-5,
    keep: bool = True,
) -> tuple[Array, Backward]:
    """y = f((x - mean) / sqrt(variance + epsilon) gamma + beta) over the last `axes` axes, whose shape gamma and beta have
    (Ba et al. 2016)."""
    return _over_last("layer_norm", x, gamma, beta, axes, activation, epsilon, keep)


@op
def rms_norm(
    x: Array, gamma: Array | None, axes: int = 1, activation: str = "linear", epsilon: float = 1e-5, keep: bool = True
) -> tuple[Array, Backward]:
    """y = f(x / sqrt(mean(x^2) + epsilon) gamma) over the last `axes` axes (Zhang and Sennrich 2019)."""
    return _over_last("rms_norm", x, gamma, None, axes, activation, epsilon, keep, RMS=1)


def _over_last(
    what: str, x: Array, gamma: Array | None, beta: Array | None, axes: int, activation: str, epsilon: float, keep: bool,
    **kind: int,
) -> tuple[Array, Backward]:  # fmt: skip
    check_float(what, x, gamma, beta)
    if not 0 < axes <= x.ndim:
        raise ShapeError(f"{what} over the last {axes} axes of an input of shape {x.shape}, which has {x.ndim}")
    shape = x.shape[x.ndim - axes :]
    for name, vector in (("gamma", gamma), ("beta", beta)):
        if vector is not None and vector.shape != shape:
            raise ShapeError(f"{what}: {name} has the shape {vector.shape}, and the last axes of {x.shape} are {shape}")
    n = math.prod(shape)
    return _by_sample(x, gamma, beta, (x.size // max(1, n), n, 1, n, 1), activation, epsilon, keep, LAST=1, **kind)


@op
def group_norm(
    x: Array,
    gamma: Array | None,
    beta: Array | None,
    groups: int,
    activation: str = "linear",
    epsilon: float = 1e-5,
    keep: bool = True,
) -> tuple[Array, Backward]:
    """y = f((x - mean) / sqrt(variance + epsilon) gamma + beta), the statistics those of `groups` groups of channels of each
    sample, gamma and beta (channels,) (Wu and He 2018)."""
    return _by_group("group_norm", x, gamma, beta, groups, activation, epsilon, keep)


@op
def instance_norm(
    x: Array,
    gamma: Array | None,
    beta: Array | None,
    activation: str = "linear",
    epsilon: float = 1e-5,
    keep: bool = True,
) -> tuple[Array, Backward]:
    """As `group_norm` with each channel of each sample by itself (Ulyanov et al. 2016)."""
    return _by_group("instance_norm", x, gamma, beta, x.shape[1] if x.ndim > 1 else 1, activation, epsilon, keep)


def _by_group(
    what: str, x: Array, gamma: Array | None, beta: Array | None, groups: int, activation: str, epsilon: float, keep: bool
) -> tuple[Array, Backward]:  # fmt: skip
    batch, channels, space = _check(what, x, gamma=gamma, beta=beta)
    if groups < 1 or channels % groups:
        raise ShapeError(
            f"{what}: the {channels} channels of an input of shape {x.shape} are not divisible by {groups} groups"
        )
    per = channels // groups
    if per * space == 1:
        raise ShapeError(
            f"{what}: an input of shape {x.shape} has one value a group ({groups} groups of {per} channels, {space} values "
            "each), and the variance of one value is 0 whatever it is"
        )
    return _by_sample(x, gamma, beta, (batch * groups, per * space, groups, per, space), activation, epsilon, keep)


def _by_sample(
    x: Array,
    gamma: Array | None,
    beta: Array | None,
    view: tuple[int, int, int, int, int],
    activation: str,
    epsilon: float,
    keep: bool,
    **kind: int,
) -> tuple[Array, Backward]:
    """x as rows of n values, see kernels/norm.cl: `view` = (rows, n, groups, channels a group, values of a channel)."""
    rows, n, groups, per, run = view
    device, dtype, real = x.device, x.dtype, x.real
    batch, channels, last = rows // groups, groups * per, "LAST" in kind
    of_rows, width, each = _groups(device, rows, n, ITEM)
    of_rows *= n > 0
    sizes = _sizes(rows, n, each, groups, per, run)
    built = {"VW": device.vector_width(dtype)}
    stats = empty(device, (rows, 2), dtype)
    y, saved, defines = _Output.like(x, activation, keep)
    _launch(
        device, "row_forward", of_rows, width, real, sizes, x.block, block_of(gamma), block_of(beta), stats.block, y.block,
        block_of(saved), float(epsilon), ROW_FORWARD=1, **built, **kind, **defines,
    )  # fmt: skip

    def backward(dz: Array) -> Iterator[Flow]:
        summed: list[tuple[Array, int]] = []

        def sums() -> tuple[Array, int]:
            """For each channel the sums of dz and of dz (x - mean) / deviation, in parts, and their number."""
            if not summed and last:
                blocks = _Blocks.of(device, dtype, rows, n, 1)
                found = empty(device, (blocks.parts, n, 2), dtype)
                blocks.launch(
                    device, "channel_sums", real, x.block, dz.block, stats.block, found.block, SUMS=1, BY_ROW=1
                )
                summed.append((found, blocks.parts))
            elif not summed:
                found = empty(device, (batch, channels, 2), dtype)
                of_runs, most, some = _groups(device, batch * channels, run, ITEM)
                _launch(
                    device, "run_sums", of_runs * (run > 0), most, real, _sizes(batch * channels, run, some, 1, per), x.block,
                    dz.block, stats.block, found.block, RUN_SUMS=1, **built,
                )  # fmt: skip
                summed.append((found, batch if run else 0))
            return summed[0]

        def write_dx(sink: Sink) -> None:
            into, how = sink.arguments(), sink.defines()
            if not last or sink.scale is not None:  # x may be its own sink: what else reads it comes first
                sums()
            _launch(
                device, "row_backward", of_rows, width, real, sizes, x.block, dz.block, block_of(gamma), stats.block,
                None if last else sums()[0].block, *into, ROW_BACKWARD=1, **built, **kind, **how,
            )  # fmt: skip

        def write(for_gamma: Sink | None = None, for_beta: Sink | None = None) -> None:
            found, parts = sums()
            _join(device, real, channels, parts, 1, found, None, None, for_gamma, for_beta)

        yield x, write_dx  # before gamma: a sink may be gamma itself
        yield gamma, beta, write

    return y, backward


# -- by neighbouring channels -----------------------------------------------------------------------------------------
@op
def local_response_norm(
    x: Array,
    size: int = 5,
    alpha: float = 1e-4,
    beta: float = 0.75,
    k: float = 1.0,
    activation: str = "linear",
    keep: bool = True,
) -> tuple[Array, Backward]:
    """y = f(x / (k + alpha / size * sum of x^2)^beta), the sum over the channels c - size // 2 to c + (size - 1) // 2
    (Krizhevsky et al. 2012, with alpha divided by size as PyTorch has it)."""
    batch, channels, space = _check("local_response_norm", x)
    device, real = x.device, x.real
    vector = device.vector_width(x.dtype)
    along = -(-space // vector)
    sizes, items = _sizes(batch, channels, space, size, along), batch * along * (channels > 0)
    device.check_turns(channels * (size + 3), f"local_response_norm over {channels:,} channels, {size} at a time,")
    d, (y, saved, defines) = empty_like(x), _Output.like(x, activation, keep)
    device.launch(
        "norm", "response_forward", (items,), sizes, x.block, d.block, y.block, block_of(saved),
        float(alpha), float(beta), float(k), real=real, RESPONSE_FORWARD=1, VW=vector, **defines,
    )  # fmt: skip

    def backward(dz: Array) -> Iterator[Flow]:
        def write_dx(sink: Sink) -> None:
            terms = empty_like(x)
            device.launch(
                "norm", "response_terms", (items,), sizes, x.block, dz.block, d.block, terms.block, float(beta),
                real=real, RESPONSE_TERMS=1, VW=vector,
            )  # fmt: skip
            into, how = sink.arguments(), sink.defines()
            device.launch(
                "norm", "response_backward", (items,), sizes, x.block, dz.block, d.block, terms.block, float(alpha), float(beta),
                *into, real=real, RESPONSE_BACKWARD=1, VW=vector, **how,
            )  # fmt: skip

        yield x, write_dx

    return y, backward
