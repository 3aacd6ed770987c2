"""Floor 5, the layers: compositions of ops, each a small class; none writes a backward pass."""

from .base import REGISTRY, Layer, register
from .conv import Conv1D, Conv1DTranspose, Conv2D, Conv2DTranspose, Conv3D, Conv3DTranspose, DepthwiseConv2D
from .core import Activation, Dense, Dropout, Flatten, Reshape
from .norm import BatchNorm, GroupNorm, InstanceNorm, LayerNorm, LocalResponseNorm, RMSNorm

__all__ = [
    "Activation",
    "BatchNorm",
    "Conv1D",
    "Conv1DTranspose",
    "Conv2D",
    "Conv2DTranspose",
    "Conv3D",
    "Conv3DTranspose",
    "Dense",
    "DepthwiseConv2D",
    "Dropout",
    "Flatten",
    "GroupNorm",
    "InstanceNorm",
    "Layer",
    "LayerNorm",
    "LocalResponseNorm",
    "REGISTRY",
    "RMSNorm",
    "Reshape",
    "register",
]
