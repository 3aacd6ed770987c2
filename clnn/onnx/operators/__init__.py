"""The operators, a short function each; importing them fills the table of clnn/onnx/registry.py."""

from . import (  # noqa: F401
    control,
    elementwise,
    image,
    index,
    linear,
    ml,
    norm,
    quantized,
    recurrent,
    reduce,
    sequence,
    shape,
    transformer,
)
