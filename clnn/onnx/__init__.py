"""ONNX: models from elsewhere run, and are trained, on any OpenCL device, and clnn's go elsewhere. `pip install onnx` first.

net = clnn.onnx.load("model.onnx")
print(net.summary(), net(images).shape)      # arrays in, arrays out
net.fit(images, labels, loss="cross_entropy", optimizer="adam")
clnn.onnx.save(net, "tuned.onnx")
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

__all__ = ["load", "operators", "save"]

if TYPE_CHECKING:
    from .model import load, operators
    from .write import save
else:
    _FROM = {
        "load": ".model",
        "operators": ".model",
        "save": ".write",
    }  # each file is imported when its name is asked for

    def __getattr__(name: str) -> object:
        if name not in _FROM:
            raise AttributeError(f"module 'clnn.onnx' has no attribute {name!r}")
        return getattr(importlib.import_module(_FROM[name], __name__), name)
