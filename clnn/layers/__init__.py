"""Floor 5, the layers: compositions of ops, each a small class; none writes a backward pass."""

from .base import REGISTRY, Layer, register
from .core import Activation, Dense, Dropout, Flatten, Reshape
from .norm import BatchNorm, GroupNorm, InstanceNorm, LayerNorm, LocalResponseNorm, RMSNorm

__all__ = [
    "REGISTRY",
    "Activation",
    "BatchNorm",
    "Dense",
    "Dropout",
    "Flatten",
    "GroupNorm",
    "InstanceNorm",
    "Layer",
    "LayerNorm",
    "LocalResponseNorm",
    "RMSNorm",
    "Reshape",
    "register",
]
