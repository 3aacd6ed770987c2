"""Keras' side of copying weights: how a layer's variables lie there, with the channels last, and what its arguments mean here.

Layers are known by the names of their classes, and by `weights`: nothing here imports keras.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np

from .. import layers
from ..errors import CheckpointError, ConfigurationError
from ..layers.base import Layer
from ..layers.image.conv import _Convolution
from ..layers.norm import _Norm
from ..layers.sequence.recurrent import _Recurrent
from .pairs import Here, Pair, Part, Report, Stored, Unit, flat, named_layers, same_settings, wrong_kind
from .pytorch import check_between

AXES = {1: "1D", 2: "2D", 3: "3D"}


# -- how variables lie there ------------------------------------------------------------------------------------------
def _channels_first(a: np.ndarray) -> list[np.ndarray]:
    return [np.moveaxis(a, (-1, -2), (0, 1))]


def _channels_last(a: np.ndarray) -> list[np.ndarray]:
    return [np.moveaxis(a, (0, 1), (-1, -2))]


def _depthwise_parts(channels: int) -> list[Part]:
    def read(a: np.ndarray) -> list[np.ndarray]:  # (height, width, in, multiplier)
        *space, inputs, multiplier = a.shape
        return [np.moveaxis(a, (-2, -1), (0, 1)).reshape(inputs * multiplier, 1, *space)]

    def write(w: np.ndarray) -> list[np.ndarray]:
        return [np.moveaxis(w.reshape(channels, -1, *w.shape[2:]), (0, 1), (-2, -1))]

    return [Part(("w",), ("kernel",), read, write, "channels first"), Part(("b",), ("bias",))]


def _attention_parts(heads: int) -> list[Part]:
    def joined(a: np.ndarray) -> list[np.ndarray]:
        return [a.reshape(a.shape[0], -1)]

    def split(w: np.ndarray) -> list[np.ndarray]:
        return [w.reshape(w.shape[0], heads, -1)]

    found = []
    for one, name in (("q", "query"), ("k", "key"), ("v", "value")):
        found.append(Part((f"w{one}",), (f"{name}/kernel",), joined, split, "heads side by side"))
        found.append(Part((f"b{one}",), (f"{name}/bias",), lambda a: [a.ravel()], lambda b: [b.reshape(heads, -1)]))
    out = ("attention_output/kernel",)
    found.append(
        Part(
            ("wo",),
            out,
            lambda a: [a.reshape(-1, a.shape[-1])],
            lambda w: [w.reshape(heads, -1, w.shape[1])],
            "heads side by side",
        )
    )
    return [*found, Part(("bo",), ("attention_output/bias",))]


def layout(here: Here, unit: Unit) -> list[Part]:
    """How the parameters of a layer lie in a layer of Keras; none where its class is that of another layer."""
    layer, kinds = here.layer, {*unit.kinds}
    kind = next((one.__name__ for one in type(layer).__mro__ if one.__name__ in KINDS), "")
    if kind and not kinds & {*KINDS[kind]}:
        return []
    if isinstance(layer, layers.DepthwiseConv2D):
        return _depthwise_parts(layer.groups)
    if isinstance(layer, _Convolution):
        return [Part(("w",), ("kernel",), _channels_first, _channels_last, "channels first"), Part(("b",), ("bias",))]
    if isinstance(layer, layers.Dense):
        return [_rows(Part(("w",), ("kernel",)), unit), Part(("b",), ("bias",))]
    if isinstance(layer, layers.GRU):
        biases = Part(("b",), ("bias",), how="one row, of reset_after=False")
        if layer.reset_after:
            how = "two rows, of reset_after=True"
            biases = Part(("b", "recurrent_b"), ("bias",), lambda a: [a[0], a[1]], lambda *b: [np.stack(b)], how)
        return [Part(("w",), ("kernel",)), Part(("u",), ("recurrent_kernel",)), biases]
    if isinstance(layer, _Recurrent):
        return [Part(("w",), ("kernel",)), Part(("u",), ("recurrent_kernel",)), Part(("b",), ("bias",))]
    if isinstance(layer, layers.MultiHeadAttention):
        return _attention_parts(layer.heads)
    if isinstance(layer, _Norm):
        names = {"gamma": ("gamma", "scale"), "beta": ("beta",), "running_mean": ("moving_mean",)}
        names["running_variance"] = ("moving_variance",)
        return [
            _rows(Part((mine,), (name,)), unit)
            for mine, theirs in names.items()
            for name in theirs
            if name in unit.arrays
        ]
    if isinstance(layer, layers.PReLU):
        shape = here.parameters["slope"].shape
        alpha = unit.arrays["alpha"].shape if "alpha" in unit.arrays else ()
        return [Part(("slope",), ("alpha",), lambda a: [a.reshape(shape)], lambda a: [a.reshape(alpha)])]
    if isinstance(layer, layers.Embedding):
        return [Part(("w",), ("embeddings",))]
    if len(unit.arrays) != len(here.parameters):
        return []
    named = {*unit.arrays} == {*here.parameters}  # a layer of one's own: by name, or in their order
    return [Part((mine,), (mine if named else theirs,)) for mine, theirs in zip(here.parameters, unit.arrays)]


def _rows(part: Part, unit: Unit) -> Part:
    """Behind a Flatten of images the rows of a kernel, and features that are normalised, stand in clnn's order."""
    shape = unit.flattened
    if shape is None:
        return part
    order = np.moveaxis(np.arange(math.prod(shape)).reshape(shape), -1, 0).ravel()
    back = np.argsort(order)
    return part._replace(
        read=lambda a: [a[order]], write=lambda a: [a[back]], how=f"rows of {shape} with the channels first"
    )


KINDS: dict[str, tuple[str, ...]] = {
    "Dense": ("Dense",),
    "DepthwiseConv2D": ("DepthwiseConv2D",),
    "BatchNorm": ("BatchNormalization",),
    "LayerNorm": ("LayerNormalization",),
    "RMSNorm": ("RMSNormalization",),
    "GroupNorm": ("GroupNormalization",),
    "PReLU": ("PReLU",),
    "Embedding": ("Embedding",),
    "SimpleRNN": ("SimpleRNN", "SimpleRNNCell"),
    "LSTM": ("LSTM", "LSTMCell"),
    "GRU": ("GRU", "GRUCell"),
    "MultiHeadAttention": ("MultiHeadAttention",),
}
for _axes in AXES.values():
    KINDS[f"Conv{_axes}"] = (f"Conv{_axes}",)
    KINDS[f"Conv{_axes}Transpose"] = (f"Conv{_axes}Transpose",)


# -- what is there ----------------------------------------------------------------------------------------------------
def units_of(source: Any, model: Any) -> list[Unit]:
    """The layers of a model of Keras, or a layer by itself, that have weights."""
    if not hasattr(source, "weights") or not hasattr(source, "get_weights"):
        raise wrong_kind("weights come from a model or a layer of Keras", source)
    if not getattr(source, "built", True):
        raise CheckpointError(
            f"{source.name} is not built, so that it has no weights yet: give it an Input, or call it once"
        )
    given = getattr(model, "_input_shapes", None)
    found: list[Unit] = []
    for layer, _ in leaves(source):
        _check_supported(layer)
        arrays: dict[str, Stored] = {}
        for variable in layer.weights:
            path = getattr(variable, "path", variable.name)
            local = "/".join(path.split("/")[-2:]) if "MultiHeadAttention" in _kinds(layer) else path.split("/")[-1]
            if local in arrays:
                raise CheckpointError(
                    f"{layer.name} ({type(layer).__name__}) has layers inside that cannot be seen: give those one by one, "
                    "from_keras(layer, layer)"
                )
            arrays[local] = Stored(path, variable)
        if arrays:
            found += _as_units(layer, arrays, given)
    return found


def _as_units(layer: Any, arrays: dict[str, Stored], given: Any) -> list[Unit]:
    kinds = _kinds(layer)
    if "SeparableConv2D" in kinds:  # two layers here
        names = {
            "depthwise_kernel": ("kernel", "DepthwiseConv2D"),
            "pointwise_kernel": ("kernel", "Conv2D"),
            "bias": ("bias", "Conv2D"),
        }
        deep = {names[n][0]: one for n, one in arrays.items() if names[n][1] == "DepthwiseConv2D"}
        across = {names[n][0]: one for n, one in arrays.items() if names[n][1] == "Conv2D"}
        return [
            Unit(f"{layer.name}.depthwise", ("Depth of it", "DepthwiseConv2D"), layer, deep),
            Unit(f"{layer.name}.pointwise", ("Points of it", "Conv2D"), layer, across),
        ]
    flattened = _flattened(layer, given) if {"Dense", "BatchNormalization"} & {*kinds} else None
    return [Unit(layer.name, kinds, layer, arrays, flattened)]


def _check_supported(layer: Any) -> None:
    """CheckpointError for what no layer of clnn does."""
    if getattr(layer, "rms_scaling", False):
        raise CheckpointError(f"{layer.name} has rms_scaling=True, and clnn has none")


def leaves(layer: Any, within: Any = None) -> Iterator[tuple[Any, Any]]:
    """The layers inside that have no layers of their own, in their order, each with the Bidirectional that it is of, or None."""
    kinds = {*_kinds(layer)}
    if "Bidirectional" in kinds:
        inside = [layer.forward_layer, layer.backward_layer]
    elif "TimeDistributed" in kinds:
        inside = [layer.layer]
    elif {"Model", "Sequential", "Functional"} & kinds:
        inside = layer.layers
    else:
        yield layer, within
        return
    seen: set[int] = set()
    for one in inside:
        if id(one) not in seen:
            seen.add(id(one))
            yield from leaves(one, layer if "Bidirectional" in kinds else within)


def _kinds(layer: Any) -> tuple[str, ...]:
    return tuple(one.__name__ for one in type(layer).__mro__[:-1])


IMAGES = (
    "Conv",
    "MaxPool",
    "AveragePool",
    "SeparableConv",
    "DepthwiseConv",
    "UpSampling",
    "ZeroPadding",
    "Cropping",
    "GroupNorm",
)
SEQUENCES = (
    "InputLayer",
    "Embedding",
    "LSTM",
    "GRU",
    "SimpleRNN",
    "Bidirectional",
    "MultiHeadAttention",
    "LayerNorm",
    "Dense",
    "RMSNorm",
)
NEUTRAL = (
    "Activation", "ReLU", "LeakyReLU", "ELU", "PReLU", "Softmax", "Dropout", "SpatialDropout", "GaussianDropout", "GaussianNoise",
    "BatchNormalization", "AlphaDropout",
)  # fmt: skip


def _flattened(layer: Any, given: Any) -> tuple[int, ...] | None:
    """The shape (*space, channels) of what a Flatten before this layer took, if here it takes (channels, *space)."""
    for one in _before(layer):
        kind = type(one).__name__
        if kind == "Flatten" or (kind == "Reshape" and len(one.target_shape) == 1):
            shape = tuple(one.input.shape[1:])
            if len(shape) < 2 or getattr(one, "data_format", "channels_last") == "channels_first":
                return None
            return shape if _is_image(one, shape, given) else None
        if not kind.startswith(NEUTRAL):
            return None
    return None


def _is_image(flatten: Any, shape: tuple[int, ...], given: Any) -> bool:
    """Whether a Flatten takes images: their channels are last there and first here."""
    for one in _before(flatten):
        kind = type(one).__name__
        if kind.startswith(IMAGES):
            return getattr(one, "data_format", "channels_last") != "channels_first"
        if kind == "InputLayer" and len(shape) > 2:
            return list(shape) not in [list(s) for s in given or ()]  # here they may come as they are there
        if kind.startswith(SEQUENCES) or (kind == "TimeDistributed" and len(shape) == 2):
            return False
        if not kind.startswith(NEUTRAL):
            raise CheckpointError(
                f"{flatten.name}: whether {one.name} ({kind}) before it gives images, whose channels are first here, cannot be "
                "seen; copy the layers before it and those behind it by themselves, and turn the rows of the Dense behind it"
            )
    return False


def _before(layer: Any) -> Iterator[Any]:
    """The layers before this one in the graph of a model, the nearest first, along their first inputs."""
    nodes = getattr(layer, "_inbound_nodes", None) or ()
    while nodes and nodes[0].input_tensors:
        layer = nodes[0].input_tensors[0]._keras_history.operation
        yield layer
        nodes = layer._inbound_nodes


# -- what its arguments mean ------------------------------------------------------------------------------------------
def _conv_twin(kind: str, m: Any) -> Layer:
    axes, padding = len(m.kernel_size), m.padding
    how: dict[str, Any] = {"stride": m.strides, "dilation": m.dilation_rate, "padding": padding}
    if "Transpose" in kind:
        if getattr(m, "output_padding", None) is not None:
            raise CheckpointError(f"{m.name} has output_padding, which Keras counts in its own way: leave it out")
        if padding == "valid":
            how["output_padding"] = [max(s - k, 0) for s, k in zip(m.strides, m.kernel_size)]
    elif "Depthwise" not in kind:
        how["groups"] = m.groups
    else:
        return layers.DepthwiseConv2D(m.kernel_size, activation_of(m), multiplier=m.depth_multiplier, **how)
    name = f"Conv{AXES[axes]}{'Transpose' if 'Transpose' in kind else ''}"
    return getattr(layers, name)(m.filters, m.kernel_size, activation_of(m), **how)


def activation_of(m: Any, name: str = "activation") -> str | None:
    """The name here of a layer's activation; one of Keras' own that is not here is an error."""
    found = getattr(getattr(m, name), "__name__", "?")
    return {"hard_silu": "hard_swish", "leaky_relu": "leaky_relu with a slope of 0.2"}.get(found, found)


def _recurrent_twin(kind: str, m: Any) -> Layer:
    how: dict[str, Any] = {"go_backwards": getattr(m, "go_backwards", False)}
    if kind != "SimpleRNN":
        how["recurrent_activation"] = activation_of(m, "recurrent_activation")
    if kind == "GRU":
        how["reset_after"] = m.reset_after
    return getattr(layers, kind)(m.units, activation_of(m), **how)


TWINS: dict[str, Callable[[Any], Layer]] = {
    "Dense": lambda m: layers.Dense(m.units, activation_of(m)),
    "BatchNormalization": lambda m: layers.BatchNorm(momentum=m.momentum, epsilon=m.epsilon),
    "LayerNormalization": lambda m: layers.LayerNorm(epsilon=m.epsilon),
    "RMSNormalization": lambda m: layers.RMSNorm(epsilon=m.epsilon),
    "GroupNormalization": lambda m: layers.GroupNorm(m.groups, epsilon=m.epsilon),
    "Embedding": lambda m: layers.Embedding(m.input_dim, m.output_dim, mask_zero=m.mask_zero),
    "MultiHeadAttention": lambda m: layers.MultiHeadAttention(m.num_heads),
    "DepthwiseConv2D": partial(_conv_twin, "DepthwiseConv2D"),
    "Depth of it": lambda m: layers.DepthwiseConv2D(
        m.kernel_size, stride=m.strides, padding=m.padding, dilation=m.dilation_rate
    ),
    "Points of it": lambda m: layers.Conv2D(m.filters, 1, activation_of(m)),
}
for _kind in ("SimpleRNN", "LSTM", "GRU"):
    TWINS[_kind] = partial(_recurrent_twin, _kind)
for _axes in AXES.values():
    for _kind in (f"Conv{_axes}", f"Conv{_axes}Transpose"):
        TWINS[_kind] = partial(_conv_twin, _kind)
COMPARED: tuple[str, ...] = (
    "activation", "recurrent_activation", "stride", "padding", "dilation", "groups", "output_padding", "epsilon", "momentum",
    "heads", "rotary", "mask_zero", "go_backwards", "reset_after",
)  # fmt: skip


def check_settings(source: Any, ignore: Sequence[str], found: Sequence[Pair], model: Layer, report: Report) -> None:
    """CheckpointError where a layer does not compute what its twin there does, for all that an attribute says."""
    following = dict(zip(*[[*flat(model)][i:] for i in (0, 1)]))
    both_ways, layers_here = {id(one): within for one, within in leaves(source)}, named_layers(model)
    for unit, here, _ in found:
        kind = next((name for name in unit.kinds if name in TWINS), "")
        m = unit.layer
        if getattr(m, "data_format", "") == "channels_last" and hasattr(m, "kernel_size"):
            report.notes.append("inputs have their channels last in Keras, (batch, *space, channels), and first here")
        if isinstance(here.layer, layers.BatchNorm):
            report.notes.append("in training the running variance here is that with n - 1, and in Keras that with n")
        if not kind or unit.name in ignore:
            continue
        _check_axes(unit, here, getattr(model, "_input_shapes", None))
        names = COMPARED
        try:
            twin = TWINS[kind](m)
        except ConfigurationError as error:
            raise CheckpointError(f"{unit}: {error}; ignore=({unit.name!r},) copies its weights all the same") from None
        next_one = following.get(here.layer)
        if isinstance(next_one, layers.Activation) and getattr(here.layer, "activation", "") == "linear":
            names = names[next_one.activation == getattr(twin, "activation", "") :]  # it stands behind the layer
        if isinstance(twin, layers.DepthwiseConv2D):
            names = tuple(name for name in names if name != "groups")  # which its input gives
        same_settings(unit, here, twin, names, ignore)
        owner, wrapper = here.name.rpartition(".")[0], both_ways.get(id(m))
        if wrapper is not None and isinstance(layers_here.get(owner), layers.Bidirectional):
            pair = layers.Bidirectional(layers.LSTM(1), wrapper.merge_mode)
            same_settings(unit, Here(owner, layers_here[owner], {}), pair, ("merge_mode",), ignore)
    if "between" not in ignore:
        known = type(source).__name__ == "Sequential"
        check_between("Keras", _between(source), known, model, report)


def _between(source: Any) -> Iterator[tuple[Any, Layer]]:
    """The layers of a Sequential of Keras, each with one that does the same here; KeyError for one that is not known."""
    for m, within in leaves(source):
        kinds = _kinds(m)
        if "SeparableConv2D" in kinds:
            yield from ((m, TWINS[part](m)) for part in ("Depth of it", "Points of it"))
        elif within is None or m is within.forward_layer:
            twin = {**TWINS, **WEIGHTLESS}[kinds[0]](m)
            if (
                getattr(twin, "activation", "") == "softmax"
                and isinstance(twin, layers.Activation)
                and len(m.input.shape) > 2
            ):
                raise KeyError("softmax")  # of images it goes along their channels, which are not last here
            yield m, twin


def _pool_twin(kind: str, axes: str, m: Any) -> Layer:
    extra = {"count_include_pad": False} if kind == "Avg" and m.padding == "same" else {}
    return getattr(layers, f"{kind}Pool{axes}")(m.pool_size, m.strides, m.padding, **extra)


def _plain(name: str, **usual: Any) -> Callable[[Any], Layer]:
    """An activation whose arguments are as usual; KeyError for others."""

    def twin(m: Any) -> Layer:
        if any(getattr(m, argument) != value for argument, value in usual.items()):
            raise KeyError(name)
        return layers.Activation(name)

    return twin


WEIGHTLESS: dict[str, Callable[[Any], Layer]] = {
    "Activation": lambda m: layers.Activation(activation_of(m) or "linear"),
    "ReLU": _plain("relu", max_value=None, negative_slope=0.0, threshold=0.0),
    "LeakyReLU": lambda m: layers.Activation("leaky_relu", slope=m.negative_slope),
    "ELU": lambda m: layers.Activation("elu", alpha=m.alpha),
    "Softmax": _plain("softmax", axis=-1),
    "Flatten": lambda m: layers.Flatten(),
    "PReLU": lambda m: layers.PReLU(),
}
for _kind in ("Dropout", "GaussianDropout", *(f"SpatialDropout{_axes}" for _axes in AXES.values())):
    WEIGHTLESS[_kind] = lambda m: layers.Dropout(m.rate)
for _axes in AXES.values():
    WEIGHTLESS[f"MaxPooling{_axes}"] = partial(_pool_twin, "Max", _axes)
    WEIGHTLESS[f"AveragePooling{_axes}"] = partial(_pool_twin, "Avg", _axes)
    WEIGHTLESS[f"GlobalMaxPooling{_axes}"] = lambda m: layers.GlobalMaxPool()
    WEIGHTLESS[f"GlobalAveragePooling{_axes}"] = lambda m: layers.GlobalAvgPool()


def _check_axes(unit: Unit, here: Here, given: Any) -> None:
    """CheckpointError where a layer works along another axis than its twin here, whose channels are the first axis of images."""
    m, shape = unit.layer, getattr(unit.layer, "_build_shapes_dict", None) or {}
    size = next((tuple(one) for one in shape.values() if one), ())
    if len(size) < 3 and not hasattr(m, "axis"):
        return
    image = len(size) > 2 and _is_image(m, size[1:], given)
    axes = sorted(int(a) % len(size) for a in np.atleast_1d(getattr(m, "axis", -1))) if size else []
    channels = isinstance(here.layer, (layers.BatchNorm, layers.GroupNorm))
    if channels:
        right = axes == [len(size) - 1] if image or len(size) == 2 else axes == [1]
    else:
        right = not image and axes == [*range(len(size) - len(axes), len(size))]
    if isinstance(here.layer, (_Norm, layers.Dense)) and not right:
        raise CheckpointError(
            f"{unit} works along axis {axes} of {size}, and {here} along {'axis 1' if channels else 'the last'}, "
            "where images have their channels first; nothing was copied. If the model turns the axes for it, go on with "
            f"ignore=({unit.name!r},)"
        )
