"""Looking into a network: what its layers compute, and pictures of it."""

from __future__ import annotations

import sys

from ..foreign import tell
from .calls import activations
from .drawing import network
from .plots import OverTime, confusion, filters, gradient_of_inputs, histograms, mistakes, regions, saliency

__all__ = [
    "OverTime", "activations", "confusion", "filters", "gradient_of_inputs", "histograms", "mistakes", "network", "regions",
    "saliency",
]  # fmt: skip

tell(sys.modules[__name__])
