"""The operators, a short function each; importing them fills the table of clnn/onnx/registry.py."""

from . import elementwise, image, index, linear, ml, norm, reduce, sequence, shape  # noqa: F401
