"""clnn: deep learning from scratch on OpenCL, small enough to read, fast on CPUs and on any GPU.

import clnn
(x, y), (x_test, y_test) = clnn.data.digits()
net = clnn.Sequential([clnn.Dense(100, "sigmoid"), clnn.Dense(10)], input_shape=64)
net.fit(x, y, loss="cross_entropy", optimizer=clnn.SGD(0.05, momentum=0.9), epochs=30, batch_size=10)
print(net.evaluate(x_test, y_test))
"""

import functools
import importlib
import sys
from typing import TYPE_CHECKING

from . import callbacks, data, errors, functions, init, layers, losses, metrics, minimize, optim, schedules, search
from .arrays import *  # noqa: F403 - each file by itself: type checkers do not follow two stars in a row
from .attention import *  # noqa: F403
from .callbacks import Callback, EarlyStopping, GradientNorms, Lambda, LearningRate, TerminateOnNaN, TimeBudget
from .checkpoint import CheckpointWarning
from .ensemble import Ensemble
from .errors import *  # noqa: F403
from .exchange import from_dlpack, from_pyopencl
from .foreign import missing, tell
from .functions import *  # noqa: F403
from .generation import generate
from .graph import Input
from .images import *  # noqa: F403
from .layers import *  # noqa: F403 - and each file by itself: type checkers do not follow two stars in a row
from .layers.core import *  # noqa: F403
from .layers.image.conv import *  # noqa: F403
from .layers.image.pool import *  # noqa: F403
from .layers.image.resize import *  # noqa: F403
from .layers.merge import *  # noqa: F403
from .layers.norm import *  # noqa: F403
from .layers.residual import *  # noqa: F403
from .layers.sequence.attention import *  # noqa: F403
from .layers.sequence.embedding import *  # noqa: F403
from .layers.sequence.recurrent import *  # noqa: F403
from .layers.sequence.temporal import *  # noqa: F403
from .logs import CSVLog, LivePlot, TensorBoard
from .minimize import LBFGS, HessianFree
from .model import Model, Sequential, load
from .named import *  # noqa: F403
from .optim import LAMB, Optimizer  # noqa: F401 - in optim.__all__
from .optim.rules import *  # noqa: F403
from .random import seed
from .resume import Checkpoint
from .runtime.device import Device
from .runtime.devices.choice import device, devices, use
from .runtime.profile import profile
from .runtime.recording import RecordingWarning
from .schedules import Cosine, OneCycle, ReduceOnPlateau, Schedule, StepDecay, WarmUp
from .step import step
from .tape import grad_enabled, no_grad
from .tensor import Parameter, Tensor, constant, ones, tensor, zeros
from .train import History, evaluate, fit, predict

__version__ = "0.1.0"

__all__ = [
    "CSVLog", "Callback", "Checkpoint", "CheckpointWarning", "Cosine", "Device", "EarlyStopping", "Ensemble",
    "GradientNorms", "HessianFree", "History", "Input", "LBFGS", "Lambda", "LearningRate", "LivePlot", "Model",
    "OneCycle", "Parameter", "RecordingWarning", "ReduceOnPlateau", "Schedule", "Sequential", "StepDecay", "Tensor",
    "TensorBoard", "TerminateOnNaN", "TimeBudget", "WarmUp", "callbacks", "constant", "data", "device", "devices",
    "distributed", "errors", "evaluate", "fit", "from_dlpack", "from_pyopencl", "functions", "generate",
    "grad_enabled", "init", "interop", "layers", "load", "looking", "losses", "metrics", "minimize", "no_grad",
    "ones", "onnx", "optim", "predict", "profile", "schedules", "search", "seed", "sklearn", "step", "tensor",
    "use", "zeros",
]  # fmt: skip
__all__ += errors.__all__
__all__ += layers.__all__
__all__ += functions.__all__
__all__ += optim.__all__
for _room in (sys.modules[__name__], data, search):
    tell(_room)

LATER = ("distributed", "interop", "looking", "onnx", "sklearn")  # rooms that most programs do without
if TYPE_CHECKING:
    from . import distributed, interop, looking, onnx, sklearn
else:  # which would take it for a promise of any name

    def __getattr__(name: str) -> object:
        """What is imported when it is asked for, names that clnn does not have, and where what they mean is."""
        if name in LATER:
            return importlib.import_module(f".{name}", __name__)
        if name in ("Constant", "Exponential", "Linear", "Piecewise"):
            also = ", and the layer of that name elsewhere is clnn.Dense" if name == "Linear" else ""
            raise AttributeError(f"clnn.{name} is a learning-rate schedule, clnn.schedules.{name}{also}")
        return missing("clnn", __all__, __all__, Tensor, name)

    for _room in (callbacks, init, layers, losses, metrics, optim, schedules):
        vars(_room)["__getattr__"] = functools.partial(missing, _room.__name__, vars(_room), __all__, Tensor)
