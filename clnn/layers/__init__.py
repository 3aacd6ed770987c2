"""Floor 5, the layers: compositions of ops, each a small class; none writes a backward pass."""

from .base import REGISTRY, Layer, register
from .conv import Conv1D, Conv1DTranspose, Conv2D, Conv2DTranspose, Conv3D, Conv3DTranspose, DepthwiseConv2D
from .core import Activation, Dense, Dropout, Flatten, GaussianDropout, Reshape, SpatialDropout
from .norm import BatchNorm, GroupNorm, InstanceNorm, LayerNorm, LocalResponseNorm, RMSNorm
from .pool import (
    AdaptiveAvgPool,
    AdaptiveMaxPool,
    AvgPool1D,
    AvgPool2D,
    AvgPool3D,
    GlobalAvgPool,
    GlobalMaxPool,
    MaxPool1D,
    MaxPool2D,
    MaxPool3D,
)
from .residual import Residual
from .resize import Padding, UpSampling

__all__ = [
    "Activation",
    "AdaptiveAvgPool",
    "AdaptiveMaxPool",
    "AvgPool1D",
    "AvgPool2D",
    "AvgPool3D",
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
    "GaussianDropout",
    "GlobalAvgPool",
    "GlobalMaxPool",
    "GroupNorm",
    "InstanceNorm",
    "Layer",
    "LayerNorm",
    "LocalResponseNorm",
    "MaxPool1D",
    "MaxPool2D",
    "MaxPool3D",
    "Padding",
    "REGISTRY",
    "RMSNorm",
    "Reshape",
    "Residual",
    "SpatialDropout",
    "UpSampling",
    "register",
]
