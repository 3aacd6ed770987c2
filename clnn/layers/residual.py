"""Layers beside which the input passes unchanged, or through another way: what residual networks are made of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..errors import ConfigurationError
from ..ops.activation import ACTIVATIONS, activation_name
from ..ops.elementwise import binary
from ..registry import config_from
from ..tensor import Tensor, apply, function
from .base import Layer, name_layers, register, through, with_mask
from .merge import one_mask

__all__ = ["Residual"]

Layers = Layer | Sequence[Layer]


def _listed(what: str, layers: Layers) -> list[Layer]:
    found = [layers] if isinstance(layers, Layer) else layers
    if not isinstance(found, (list, tuple)) or not found or not all(isinstance(layer, Layer) for layer in found):
        raise ConfigurationError(f"{what} should be a layer or a list of some, {layers!r} was provided instead")
    return list(found)


@register
class Residual(Layer):
    """y = f(body(x) + shortcut(x)), the body `layers` one after the other (He et al. 2016).

    `shortcut` is a layer, or a list of them, where the body changes the shape; None is x itself. `activation` is a name of
    clnn/ops/activation.py. ShapeError where the two ways end in different shapes, which it names.

        clnn.Residual([clnn.Conv2D(64, 3, "relu", padding="same"), clnn.Conv2D(64, 3, padding="same")], activation="relu")
    """

    reads_mask = True  # as far as the layers inside do

    def __init__(self, layers: Layers, shortcut: Layers | None = None, activation: str | None = None) -> None:
        self.body = _listed("Residual's layers", layers)
        self.shortcut = None if shortcut is None else _listed("Residual's shortcut", shortcut)
        self.activation = activation_name(activation)
        name_layers(self.body)
        name_layers(self.shortcut or ())

    def forward(self, x: Tensor) -> Tensor:
        y, beside = through(self.body, x), through(self.shortcut, x) if self.shortcut else x
        mask = one_mask(self, (y, beside))
        if y.shape != beside.shape:
            what = "the shortcut" if self.shortcut else "the input, without a shortcut,"
            raise self.wrong_shape(
                f"for an input of shape {x.shape} the body ends in {y.shape} and {what} in "
                f"{beside.shape}; give a shortcut that ends in the body's shape"
            )
        if ACTIVATIONS[self.activation].saves == "y":
            return with_mask(apply(binary, "add", y, beside, activation=self.activation), mask)
        return with_mask(function(y + beside, self.activation), mask)

    def config(self) -> dict[str, Any]:
        return config_from(self, layers=self.body)
