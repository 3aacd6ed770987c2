"""Layers that join several tensors to one, and `Split`, which cuts one into several: what branches are made of."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

from ..checks import check_count, sizes, whole, whole_numbers
from ..errors import ConfigurationError, ShapeError
from ..functions import split
from ..tensor import Tensor, concat, elementwise
from .base import Layer, called, register, with_mask


def one_mask(layer: Layer, inputs: Sequence[Tensor]) -> Tensor | None:
    """The mask of those inputs that have one. ConfigurationError where each has its own: which steps count is then not said."""
    masks = [x.mask for x in inputs if x.mask is not None]
    if any(mask is not masks[0] for mask in masks):
        raise ConfigurationError(
            f"{called(layer)}: masks (Masking, Embedding's mask_zero) that may leave different steps out come together: let one "
            "input alone have a mask, by Embedding(padding=0) for the others, or join what recurrent layers return as their last "
            "outputs"
        )
    return masks[0] if masks else None


class Merge(Layer):
    """A layer of two tensors or more, given one by one or as one list: `Add()(a, b)`, or as in Keras `Add()([a, b])`."""

    reads_mask = True
    most: int | None = None  # tensors

    def __call__(self, *inputs: Any, **named: Any) -> Any:
        given = inputs[0] if len(inputs) == 1 and isinstance(inputs[0], (list, tuple)) else inputs
        return super().__call__(*given, **named)

    def forward(self, *inputs: Tensor) -> Tensor:
        name, shapes = called(self), [x.shape for x in inputs]
        if len(inputs) < 2 or len(inputs) > (self.most or len(inputs)):
            told = f"joins two tensors{'' if self.most else ' or more'}, and got {len(inputs)}"
            raise ConfigurationError(f"{name} {told}")
        if len({(len(shape), *shape[:1]) for shape in shapes}) > 1 or not shapes[0]:
            raise self.wrong_shape(f"tensors of shapes {shapes} have not the same number of axes and of samples")
        mask = one_mask(self, inputs)
        if mask is not None and self.joins_steps(len(shapes[0])):
            raise ConfigurationError(
                f"{name}: masks (Masking, Embedding's mask_zero) leave different steps out of sequences one after the other; "
                "join what recurrent layers return as their last outputs"
            )
        return with_mask(self.merged(inputs), mask)

    def joins_steps(self, axes: int) -> bool:
        """Whether it would put the steps of sequences with so many axes one after the other."""
        return False

    def merged(self, inputs: Sequence[Tensor]) -> Tensor:
        """The one tensor that these become."""
        raise NotImplementedError


class Elementwise(Merge):
    """Of shapes that are equal, or 1 along an axis where the others are not, such as (n, c, 1, 1) beside (n, c, h, w)."""

    op = ""  # in ops/elementwise.py

    def merged(self, inputs: Sequence[Tensor]) -> Tensor:
        shapes = [x.shape for x in inputs]
        if any(len({*along} - {1}) > 1 for along in zip(*shapes)):
            raise self.wrong_shape(f"tensors of shapes {shapes} have axes of different sizes")
        return functools.reduce(functools.partial(elementwise, self.op), inputs)


@register
class Add(Elementwise):
    """y = a + b + ...; shapes are equal, or 1 along an axis where the others are not. ShapeError for others."""

    op = "add"


@register
class Subtract(Elementwise):
    """y = a - b; shapes as for `Add`."""

    op, most = "subtract", 2


@register
class Multiply(Elementwise):
    """y = a b ..., elementwise; shapes as for `Add`."""

    op = "multiply"


@register
class Maximum(Elementwise):
    """y = max(a, b, ...), elementwise; shapes as for `Add`."""

    op = "maximum"


@register
class Average(Elementwise):
    """y = (a + b + ...) / how many there are; shapes as for `Add`."""

    op = "add"

    def merged(self, inputs: Sequence[Tensor]) -> Tensor:
        return super().merged(inputs) / len(inputs)


@register
class Concatenate(Merge):
    """Tensors side by side along `axis`, the last one unless given; that of an image's channels is 1. Deep Diamond's concat.

    ShapeError where they differ along another axis, ConfigurationError for axis 0, the samples'.
    """

    def __init__(self, axis: int = -1) -> None:
        (self.axis,) = whole_numbers("Concatenate's axis", axis, many=False)
        if self.axis == 0:
            raise ConfigurationError("Concatenate's axis 0 would be the samples'; 1 is the first one of features")

    def joins_steps(self, axes: int) -> bool:
        return self.axis in (1, 1 - axes)

    def merged(self, inputs: Sequence[Tensor]) -> Tensor:
        if self.axis + inputs[0].ndim == 0:
            raise self.wrong_shape(f"axis {self.axis} of tensors of shape {inputs[0].shape} is the batch's")
        try:
            return concat(inputs, self.axis)
        except ShapeError as error:
            raise self.wrong_shape(error) from None


@register
class Split(Layer):
    """x cut along `axis`, the last one unless given, into `parts` equal parts, or into parts of the sizes in `parts`: a tuple.

    ShapeError where they do not add up to the axis. Deep Diamond's split.
    """

    def __init__(self, parts: int | Sequence[int], axis: int = -1) -> None:
        self.parts = check_count("Split's parts", parts) if whole(parts) is not None else sizes("Split's parts", parts)
        (self.axis,) = whole_numbers("Split's axis", axis, many=False)
        if self.axis == 0:
            raise ConfigurationError("Split's axis 0 would be the samples'; 1 is the first one of features")

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        if self.axis + x.ndim == 0:
            raise self.wrong_shape(f"axis {self.axis} of a tensor of shape {x.shape} is the batch's")
        try:
            return tuple(split(x, self.parts if isinstance(self.parts, int) else list(self.parts), self.axis))
        except ShapeError as error:
            raise self.wrong_shape(error) from None


__all__ = ["Add", "Average", "Concatenate", "Maximum", "Multiply", "Split", "Subtract"]
