"""clnn: deep learning from scratch on OpenCL, small enough to read, fast on CPUs and on any GPU.

import clnn
(x, y), (x_test, y_test) = clnn.data.digits()
net = clnn.Sequential([clnn.Dense(100, "sigmoid"), clnn.Dense(10)], input_shape=64)
net.fit(x, y, loss="cross_entropy", optimizer=clnn.SGD(0.05, momentum=0.9), epochs=30, batch_size=10)
print(net.evaluate(x_test, y_test))
"""

from . import callbacks, data, errors, functions, init, layers, losses, metrics, minimize, optim, schedules, search
from .callbacks import Callback, EarlyStopping, GradientNorms
from .ensemble import Ensemble
from .errors import (
    BuildError,
    CheckpointError,
    ClnnError,
    ConfigurationError,
    DataError,
    DeviceError,
    Diverged,
    OutOfDeviceMemory,
    ShapeError,
)
from .functions import *  # noqa: F403
from .functions import __all__ as _functions
from .layers import (
    Activation,
    BatchNorm,
    Conv1D,
    Conv1DTranspose,
    Conv2D,
    Conv2DTranspose,
    Conv3D,
    Conv3DTranspose,
    Dense,
    DepthwiseConv2D,
    Dropout,
    Flatten,
    GroupNorm,
    InstanceNorm,
    Layer,
    LayerNorm,
    LocalResponseNorm,
    Reshape,
    RMSNorm,
    register,
)
from .minimize import LBFGS, HessianFree
from .model import Model, Sequential, load
from .optim import LAMB, SGD, Adadelta, Adagrad, Adam, AdamW, AMSGrad, Lion, Nadam, Optimizer, RMSprop
from .random import seed
from .runtime.device import Device, device, devices, use
from .runtime.recording import RecordingWarning
from .schedules import (
    Constant,
    Cosine,
    Exponential,
    Linear,
    OneCycle,
    Piecewise,
    ReduceOnPlateau,
    Schedule,
    StepDecay,
    WarmUp,
)
from .step import step
from .tensor import Parameter, Tensor, constant, no_grad, ones, tensor, zeros
from .train import History, evaluate, fit, predict

__version__ = "0.1.0"

__all__ = [
    "AMSGrad",
    "Activation",
    "Adadelta",
    "Adagrad",
    "Adam",
    "AdamW",
    "BatchNorm",
    "BuildError",
    "Callback",
    "CheckpointError",
    "ClnnError",
    "ConfigurationError",
    "Constant",
    "Conv1D",
    "Conv1DTranspose",
    "Conv2D",
    "Conv2DTranspose",
    "Conv3D",
    "Conv3DTranspose",
    "Cosine",
    "DataError",
    "Dense",
    "DepthwiseConv2D",
    "Device",
    "DeviceError",
    "Diverged",
    "Dropout",
    "EarlyStopping",
    "Ensemble",
    "Exponential",
    "Flatten",
    "GradientNorms",
    "GroupNorm",
    "HessianFree",
    "History",
    "InstanceNorm",
    "LAMB",
    "LBFGS",
    "Layer",
    "LayerNorm",
    "Linear",
    "Lion",
    "LocalResponseNorm",
    "Model",
    "Nadam",
    "OneCycle",
    "Optimizer",
    "OutOfDeviceMemory",
    "Parameter",
    "Piecewise",
    "RMSNorm",
    "RMSprop",
    "RecordingWarning",
    "ReduceOnPlateau",
    "Reshape",
    "SGD",
    "Schedule",
    "Sequential",
    "ShapeError",
    "StepDecay",
    "Tensor",
    "WarmUp",
    "callbacks",
    "constant",
    "data",
    "device",
    "devices",
    "errors",
    "evaluate",
    "fit",
    "functions",
    "init",
    "layers",
    "load",
    "losses",
    "metrics",
    "minimize",
    "no_grad",
    "ones",
    "optim",
    "predict",
    "register",
    "schedules",
    "search",
    "seed",
    "step",
    "tensor",
    "use",
    "zeros",
    *_functions,
]
