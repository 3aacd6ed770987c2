"""The operators, a short function each; importing them fills the table of clnn/onnx/registry.py."""

from . import control, elementwise, image, index, linear, ml, norm, recurrent, reduce, sequence, shape, transformer  # noqa: F401
