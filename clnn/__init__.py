"""clnn: deep learning from scratch on OpenCL, small enough to read, fast on CPUs and on any GPU.

import clnn
(x, y), (x_test, y_test) = clnn.data.digits()
net = clnn.Sequential([clnn.Dense(100, "sigmoid"), clnn.Dense(10)], input_shape=64)
net.fit(x, y, loss="cross_entropy", optimizer=clnn.SGD(0.05, momentum=0.9), epochs=30, batch_size=10)
print(net.evaluate(x_test, y_test))
"""

from . import callbacks, data, errors, functions, init, layers, losses, metrics, optim
from .callbacks import Callback
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
from .layers import Activation, Dense, Dropout, Flatten, Layer, Reshape, register
from .model import Model, Sequential, load
from .optim import SGD, Adam, AdamW, Optimizer
from .random import seed
from .runtime.device import Device, device, devices, use
from .runtime.recording import RecordingWarning
from .step import step
from .tensor import Parameter, Tensor, constant, no_grad, ones, tensor, zeros
from .train import History, evaluate, fit, predict

__version__ = "0.1.0"

__all__ = [
    "SGD",
    "Activation",
    "Adam",
    "AdamW",
    "BuildError",
    "Callback",
    "CheckpointError",
    "ClnnError",
    "ConfigurationError",
    "DataError",
    "Dense",
    "Device",
    "DeviceError",
    "Diverged",
    "Dropout",
    "Flatten",
    "History",
    "Layer",
    "Model",
    "Optimizer",
    "OutOfDeviceMemory",
    "Parameter",
    "RecordingWarning",
    "Reshape",
    "Sequential",
    "ShapeError",
    "Tensor",
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
    "no_grad",
    "ones",
    "optim",
    "predict",
    "register",
    "seed",
    "step",
    "tensor",
    "use",
    "zeros",
    *_functions,
]
