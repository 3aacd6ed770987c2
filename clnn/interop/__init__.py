"""Weights from PyTorch and Keras and back, whole nn.Sequentials, and safetensors files with PyTorch's names.

report = clnn.interop.from_torch(module, net)  # copies, and says what went where
net = clnn.interop.sequential(nn.Sequential(...), input_shape=(3, 32, 32))
clnn.interop.from_safetensors("model.safetensors", net)
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from ..errors import CheckpointError, ConfigurationError
from ..foreign import tell
from ..layers.base import Layer
from ..model import Sequential
from . import files, keras, pytorch
from .pairs import Copied, Report, copied

__all__ = [
    "Copied", "Report", "from_keras", "from_safetensors", "from_torch", "sequential", "to_keras", "to_safetensors", "to_torch",
]  # fmt: skip


def named(ignore: Any) -> tuple[str, ...]:
    """Names that may be given as one."""
    return (ignore,) if isinstance(ignore, str) else tuple(ignore)


def from_torch(module: Any, model: Layer, *, strict: bool = True, ignore: Sequence[str] = ()) -> Report:
    """Copy the weights of a module of PyTorch, or of its state dict, into a model that is built; a `Report` of what went where.

    Layers are paired by their names, if both sides have the same ones, else in their order, by class and shape. Weights are
    turned into clnn's forms: a Linear's are transposed, a GRU's gates r, z, n become z, r, n, two biases of an RNN or an LSTM
    one. Half types become the model's. Of layers that are paired, eps, momentum, stride, padding, heads and the like have to
    agree: `ignore` names those that need not, or layers there that are not compared. What is computed between layers
    (activations, pooling) has to agree where both are a Sequential, unless `ignore` has "between"; elsewhere it is not seen.

    strict: weights that are left over on either side are an error that lists them. With False as many as fit are copied, in
        order, and the report names the rest.

    CheckpointError, with nothing copied, where weights are left over or not finite, where a layer computes something else than
    its twin, for weights that are computed of others (weight_norm), and for paths, since nothing here unpickles.
    """
    if isinstance(module, (str, bytes, os.PathLike)):
        files.read(module)  # an error for what cannot be read at all
        raise CheckpointError(f"{module!r} is a file: clnn.interop.from_safetensors(path, model) reads it")
    check = partial(pytorch.check_settings, module, named(ignore))
    return copied("PyTorch", *pytorch.units_of(module), model, pytorch.layout, strict, check=check)


def to_torch(model: Layer, module: Any, *, strict: bool = True, ignore: Sequence[str] = ()) -> Report:
    """Copy a model's weights into a module of PyTorch, in place, where and in what type its tensors are: `from_torch` the other
    way round. An RNN's or an LSTM's one bias becomes the first of two, and the second 0."""
    check = partial(pytorch.check_settings, module, named(ignore))
    return copied("PyTorch", *pytorch.units_of(module), model, pytorch.layout, strict, back=True, check=check)


def sequential(module: Any, input_shape: int | Sequence[int], dtype: Any = None) -> Sequential:
    """A `clnn.Sequential` that computes what an nn.Sequential does, with its weights; `input_shape` is without the batch.

    Nested nn.Sequentials become one, activations part of the layer before them, padding modes a `clnn.Padding`. A module in
    several places is one layer in all of them. A recurrent module can be the last one, and gives its sequence without the states.
    `dtype` is the module's unless given, and float32 for half types. ConfigurationError that lists all modules
    without a twin, and those with arguments that no twin has, and where two modules share a parameter.
    """
    made = pytorch.twins(module)
    pytorch.check_apart(module)
    if dtype is None:
        kinds = {str(value.dtype).removeprefix("torch.") for value in module.state_dict().values()}
        dtype = "float64" if "float64" in kinds else "float32"
    net = Sequential([layer for *_, layer in made], input_shape, dtype)
    before = tuple(net._input_shapes[0])
    for (name, one, _), after in zip(made, net.output_shapes):
        pytorch.check_axes(name, one, before)
        before = after
    try:
        from_torch(module, net)
    except CheckpointError as error:  # sizes come from the input's
        raise ConfigurationError(
            f"no twin of the module takes inputs of shape {tuple(net._input_shapes[0])}: {error}"
        ) from None
    return net


def from_keras(source: Any, model: Layer, *, strict: bool = True, ignore: Sequence[str] = ()) -> Report:
    """Copy the weights of a model or a layer of Keras 3 into a model that is built; a `Report` of what went where.

    As `from_torch`. Kernels (height, width, in, out) become (out, in, height, width), and the rows of a Dense behind a Flatten go
    from Keras' order (height, width, channels) to clnn's (channels, height, width): inputs of clnn's convolutions have their
    channels first. CheckpointError where that order cannot be seen. Activations of layers have to agree, too.
    """
    return _with_keras(source, model, strict, named(ignore))


def to_keras(model: Layer, target: Any, *, strict: bool = True, ignore: Sequence[str] = ()) -> Report:
    """Copy a model's weights into a model or a layer of Keras 3 that is built: `from_keras` the other way round."""
    return _with_keras(target, model, strict, named(ignore), back=True)


def _with_keras(there: Any, model: Layer, strict: bool, ignore: Sequence[str], back: bool = False) -> Report:
    check, units = partial(keras.check_settings, there, ignore), keras.units_of(there, model, ignore)
    return copied("Keras", units, True, model, keras.layout, strict, back=back, check=check)


def from_safetensors(
    path: str | Path, model: Layer, *, order: Sequence[str] | None = None, strict: bool = True
) -> Report:
    """Copy the weights of a safetensors file with PyTorch's names into a model that is built; a `Report` of what went where.

    PyTorch need not be installed. Such a file holds names and arrays in no order, and no arguments, such as eps: layers are
    paired by their names, if both sides have the same ones; else by shape and the numbers in their names. Where that leaves open
    which is which, a CheckpointError asks for `order`: the names of the file's layers in the order of the model's.

    CheckpointError as `from_torch`, and for files that are damaged or of pickles, which can run code.
    """
    units, ordered = pytorch.units_of(files.read(path))
    if order is not None:
        units, ordered = files.in_order(units, order), True
    return copied("the file", units, ordered, model, pytorch.layout, strict)


def to_safetensors(
    model: Layer,
    path: str | Path,
    *,
    like: str | Path | Mapping[str, Any] | None = None,
    order: Sequence[str] | None = None,
) -> Report:
    """Write a model's weights to a safetensors file with PyTorch's names and forms, whole or not at all; a `Report`.

    `like` is another such file, or a state dict, whose names the new file gets (`order` as in `from_safetensors`). Without it
    layers have the model's own names, and arrays PyTorch's, "0.weight". Arrays are of the model's type.
    `module.load_state_dict(safetensors.torch.load_file(path))` reads the file.
    """
    if like is None:
        if order is not None:
            raise ConfigurationError("order is that of the layers of the file in `like`, which was not given")
        state, units = pytorch.canonical(model)
        ordered = True
    else:
        state = files.unpacked(like, model.dtype)
        units, ordered = pytorch.units_of(state)
        if order is not None:
            units, ordered = files.in_order(units, order), True
    report = copied("the file", units, ordered, model, pytorch.layout, True, back=True)
    files.write(path, state)
    return report


tell(sys.modules[__name__])
