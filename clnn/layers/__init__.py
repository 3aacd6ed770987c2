"""Floor 5, the layers: compositions of ops, each a small class; none writes a backward pass."""

from .base import REGISTRY, Layer, register
from .core import Activation, Dense, Dropout, Flatten, Reshape

__all__ = ["REGISTRY", "Activation", "Dense", "Dropout", "Flatten", "Layer", "Reshape", "register"]
