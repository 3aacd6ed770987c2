"""Floor 5, the layers: compositions of ops, each a small class; none writes a backward pass."""

from .base import REGISTRY, Layer, register
from .conv import Conv1D, Conv1DTranspose, Conv2D, Conv2DTranspose, Conv3D, Conv3DTranspose, DepthwiseConv2D
from .core import Activation, Dense, Dropout, Flatten, Reshape

__all__ = [
    "REGISTRY",
    "Activation",
    "Conv1D",
    "Conv1DTranspose",
    "Conv2D",
    "Conv2DTranspose",
    "Conv3D",
    "Conv3DTranspose",
    "DepthwiseConv2D",
    "Dense",
    "Dropout",
    "Flatten",
    "Layer",
    "Reshape",
    "register",
]
