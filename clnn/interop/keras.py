"""Keras' side of copying weights: how a layer's variables lie there, with the channels last, and what its arguments mean here.

Layers are known by the names of their classes, and by `weights`: nothing here imports keras.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

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

    how, out = "heads side by side", "attention_output"
    found = [Part(("bo",), (f"{out}/bias",))]
    for one, name in (("q", "query"), ("k", "key"), ("v", "value")):
        found.append(Part((f"w{one}",), (f"{name}/kernel",), joined, split, how))
        found.append(Part((f"b{one}",), (f"{name}/bias",), lambda a: [a.ravel()], lambda b: [b.reshape(heads, -1)]))
    last, first = lambda a: [a.reshape(-1, a.shape[-1])], lambda w: [w.reshape(heads, -1, w.shape[1])]
    return [*found, Part(("wo",), (f"{out}/kernel",), last, first, how)]


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
        return [_rows(Part(("w",), ("kernel",)), unit), Part(("u",), ("recurrent_kernel",)), biases]
    if isinstance(layer, _Recurrent):
        kernel = _rows(Part(("w",), ("kernel",)), unit)
        return [kernel, Part(("u",), ("recurrent_kernel",)), Part(("b",), ("bias",))]
    if isinstance(layer, layers.MultiHeadAttention):
        return _attention_parts(layer.heads)
    if isinstance(layer, _Norm):
        names = {"scale": "gamma", "moving_mean": "running_mean", "moving_variance": "running_variance"}
        return [_rows(Part((names.get(name, name),), (name,)), unit) for name in unit.arrays]
    if isinstance(layer, layers.PReLU):
        shape = here.parameters["slope"].shape
        alpha = unit.arrays["alpha"].shape if "alpha" in unit.arrays else ()
        axis, many = layer.axis and layer.axis % (len(alpha) + 1), [i for i, n in enumerate(alpha, 1) if n > 1]
        if many and many != [{1: len(alpha)}.get(axis or 0) if unit.seen.how == "images" else axis]:
            return []
        read, write, how = _rows(Part((), ()), unit)[2:]
        inward, outward = lambda a: [read(a)[0].reshape(shape)], lambda a: [write(a)[0].reshape(alpha)]
        return [Part(("slope",), ("alpha",), inward, outward, how)]
    if isinstance(layer, layers.Embedding):
        return [Part(("w",), ("embeddings",))]
    if len(unit.arrays) != len(here.parameters):
        return []
    named = {*unit.arrays} == {*here.parameters}  # a layer of one's own: by name, or in their order
    return [Part((mine,), (mine if named else theirs,)) for mine, theirs in zip(here.parameters, unit.arrays)]


def _rows(part: Part, unit: Unit) -> Part:
    """Behind a Flatten of images the rows of a kernel, and features that are normalised, stand in clnn's order."""
    found: list[np.ndarray] = []
    for shape in unit.seen.blocks if unit.seen else ():
        start = sum(map(len, found))
        found.append(start + np.moveaxis(np.arange(math.prod(shape)).reshape(shape), -1, 0).ravel())
    if not found:
        return part
    order, how = np.concatenate(found), f"rows of {' + '.join(map(str, unit.seen.blocks))} with the channels first"
    return part._replace(read=lambda a: [a[order]], write=lambda a: [a[np.argsort(order)]], how=how)


KINDS = {name: (name,) for name in ("Dense", "DepthwiseConv2D", "PReLU", "Embedding", "MultiHeadAttention")}
KINDS |= {f"{name}Norm": (f"{name}Normalization",) for name in ("Batch", "Layer", "RMS", "Group")}
KINDS |= {name: (name, f"{name}Cell") for name in ("SimpleRNN", "LSTM", "GRU")}  # type: ignore[misc]
for _axes in AXES.values():
    KINDS[f"Conv{_axes}"] = (f"Conv{_axes}",)
    KINDS[f"Conv{_axes}Transpose"] = (f"Conv{_axes}Transpose",)


# -- what is there ----------------------------------------------------------------------------------------------------
def units_of(source: Any, model: Any, ignore: Sequence[str] = ()) -> list[Unit]:
    """The layers of a model of Keras, or a layer by itself, that have weights. CheckpointError for those of which it cannot be
    seen in which order their features are, but for those to `ignore`."""
    if not hasattr(source, "weights") or not hasattr(source, "get_weights"):
        raise wrong_kind("weights come from a model or a layer of Keras", source)
    if not getattr(source, "built", True):
        raise CheckpointError(
            f"{source.name} is not built, so that it has no weights yet: give it an Input, or call it once"
        )
    taken = Graph(source, getattr(model, "_input_shapes", None)).taken
    found: list[Unit] = []
    for layer, _ in leaves(source):
        if getattr(layer, "rms_scaling", False):
            raise CheckpointError(f"{layer.name} has rms_scaling=True, and clnn has none")
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
            seen = taken.get(id(layer), FEATURES)
            if seen.how == "unseen" and layer.name not in ignore:
                raise CheckpointError(
                    f"{layer.name}: from {seen.why} on it cannot be seen which axis is which here, where images have their "
                    f"channels first. Where the model turns them as it has to, go on with ignore=({layer.name!r},)"
                )
            found += _as_units(layer, arrays, seen)
    return found


def _as_units(layer: Any, arrays: dict[str, Stored], seen: Seen) -> list[Unit]:
    kinds = _kinds(layer)
    if "SeparableConv2D" in kinds:  # two layers here
        deep = {"kernel": arrays.pop("depthwise_kernel")}
        across = {name.removeprefix("pointwise_"): one for name, one in arrays.items()}
        return [
            Unit(f"{layer.name}.depthwise", ("Depth of it", "DepthwiseConv2D"), layer, deep),
            Unit(f"{layer.name}.pointwise", ("Points of it", "Conv2D"), layer, across),
        ]
    return [Unit(layer.name, kinds, layer, arrays, seen)]


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
    for one in {id(one): one for one in inside}.values():
        yield from leaves(one, layer if "Bidirectional" in kinds else within)


def _kinds(layer: Any) -> tuple[str, ...]:
    return tuple(one.__name__ for one in type(layer).__mro__[:-1])


# -- axes and their order ---------------------------------------------------------------------------------------------
class Seen(NamedTuple):
    """How a tensor there lies beside its twin here: "images", or "steps" of them, with their channels last there and first here;
    "features" along the same axes, with those of `blocks`, images that were flattened, one after the other; "open", an input that
    may come in either way; "either", where only the layer that takes it tells; "unseen" from the layer `why` on."""

    how: str
    blocks: tuple[tuple[int, ...], ...] = ()
    why: str = ""


IMAGES, STEPS, FEATURES, OPEN, EITHER = map(Seen, ("images", "steps", "features", "open", "either"))
SPATIAL = (
    "Conv", "MaxPool", "AveragePool", "Adaptive", "SeparableConv", "DepthwiseConv", "UpSampling", "ZeroPadding", "Cropping",
    "Resizing", "CenterCrop", "Random",
)  # fmt: skip
TURNED = ("Dense", "LSTM", "GRU", "SimpleRNN", "Bidirectional")  # rows of their kernels can be
NEUTRAL = (
    "Activation", "ReLU", "LeakyReLU", "ELU", "PReLU", "Softmax", "Dropout", "SpatialDropout", "GaussianDropout", "GaussianNoise",
    "BatchNorm", "AlphaDropout", "Activity", "Identity", "LayerNorm", "GroupNorm", "RMSNorm", "UnitNorm", "Normalization",
    "Masking", "Rescaling", "RepeatVector",
)  # fmt: skip
MERGING = ("Add", "Subtract", "Multiply", "Average", "Maximum", "Minimum", "Concatenate")


class Graph:
    """What each layer of a model of Keras takes (`taken`), followed from its inputs; `shapes` are those of the inputs here."""

    def __init__(self, source: Any, shapes: Any) -> None:
        self.shapes = [*map(tuple, shapes or ())]
        self.tensors: dict[int, Seen] = {}
        self.taken: dict[int, Seen] = {}
        if self._model(source) is None:  # a layer by itself, of some model
            for node in getattr(source, "_inbound_nodes", None) or ():
                self._find(node.output_tensors[0])

    def _take(self, m: Any, seen: Seen) -> None:
        seen = FEATURES if seen in (OPEN, EITHER) else seen
        for one, _ in leaves(m):
            if self.taken.setdefault(id(one), seen) != seen:
                self.taken[id(one)] = _unseen(m)  # it takes the one and the other

    def _model(self, m: Any, given: Sequence[Seen] = ()) -> Seen | None:
        """What a model gives; None for what is no model."""
        if not {"Model", "Sequential", "Functional"} & {*_kinds(m)}:
            return None
        if getattr(m, "outputs", None):
            before, self.tensors = self.tensors, {id(tensor): seen for tensor, seen in zip(m.inputs, given)}
            every = {self._find(tensor) for tensor in m.outputs}
            self.tensors = before
            return every.pop() if len(every) == 1 else _unseen(m)
        kinds = " ".join(f" {type(one).__name__}" for one, _ in leaves(m))  # a class of one's own
        plain = " Global" in kinds or not any(f" {kind}" in kinds for kind in SPATIAL)
        found = FEATURES if plain and {*given} <= {FEATURES, OPEN} else _unseen(m)
        self._take(m, found)
        return found

    def _find(self, tensor: Any) -> Seen:
        """How a tensor lies. Models are deeper than Python calls."""
        waiting = [tensor]
        while waiting:
            one = waiting.pop()
            m, index, _ = one._keras_history
            inputs = m._inbound_nodes[index].input_tensors
            if missing := [each for each in inputs if id(each) not in self.tensors]:
                waiting += [one, *missing]
            elif id(one) not in self.tensors:
                shapes = [tuple(each.shape[1:]) for each in (*inputs, one)]
                self.tensors[id(one)] = self._made(m, [self.tensors[id(each)] for each in inputs], shapes)
        return self.tensors[id(tensor)]

    def _made(self, m: Any, given: list[Seen], shapes: list[tuple[int, ...]]) -> Seen:
        """What a layer makes of what it is given; `shapes` are theirs, and that of its output."""
        kind = type(m).__name__ if type(m).__module__.startswith("keras.") else ""  # of others only that they are there
        if not given:
            return self._input(shapes[-1])
        if (found := self._model(m, given)) is not None:
            return found
        if kind == "TimeDistributed":
            per_step = {"steps": IMAGES, "images": _unseen(m)}
            inside = self._made(m.layer, [per_step.get(s.how, s) for s in given], [s[1:] for s in shapes])
            return STEPS if inside == IMAGES else inside
        first = next((seen for seen in given if seen not in (FEATURES, OPEN, EITHER)), given[0])
        shape, sizes = shapes[0], {one[-1 if first == IMAGES else 0] for one in self.shapes}
        if shape[:1] == (None,) and shape[-1] in sizes:  # as many may be given here
            shape = (shape[-1], *shape[1:])
        takes, gives = _through(m, kind, first, shape, shapes[-1])
        gives = _merged(m, given, shapes) if kind in MERGING else gives
        lost = first if first.how == "unseen" else _unseen(m)
        self._take(m, takes or lost)
        return gives or lost

    def _input(self, shape: tuple[int, ...]) -> Seen:
        first, flat = shape[-1:] + shape[:-1], None not in shape and (math.prod(shape),) in self.shapes
        if len(shape) < 2 or shape in self.shapes or (flat and first not in self.shapes):
            return OPEN  # flattened before it comes, it is in the order that it has there
        if len(shape) > 2 and first not in self.shapes and (shape[0], shape[-1], *shape[1:-1]) in self.shapes:
            return STEPS
        return IMAGES if len(shape) > 2 or first in self.shapes else OPEN


def _unseen(m: Any) -> Seen:
    return Seen("unseen", why=f"{m.name} ({type(m).__name__})")


def _through(m: Any, kind: str, seen: Seen, shape: tuple[int, ...], out: tuple[int, ...]) -> tuple[Any, Any]:
    """What a layer takes, if its weights can be in that order, and what it gives; None is unseen."""
    how, blocks, turned = seen.how, seen.blocks, seen.blocks or seen.how in ("images", "steps", "unseen")
    chance = len(shape) > 1 and shape[0] == shape[-1]  # else a model here that fits has turned its axes
    if kind.startswith((*SPATIAL, "Global")) and getattr(m, "data_format", "") == "channels_first":
        return OPEN if how in ("images", "unseen") or not turned else None, FEATURES if how != "unseen" else None
    if kind.startswith(SPATIAL):
        wrong = blocks or how == "either" or (how == "features" and chance)
        pooled = None if wrong else EITHER if how == "features" else IMAGES
        return None if wrong else OPEN, IMAGES if getattr(m, "weights", ()) else pooled
    if kind.startswith("Global"):
        wrong = how in ("steps", "unseen") or (how in ("features", "either") and chance)
        gives = IMAGES if how == "images" and m.keepdims else FEATURES._replace(blocks=blocks)
        return OPEN, None if wrong else gives
    if how == "images" and kind == "Dense":
        return seen, None  # `_check_axes` says so
    if kind.startswith((*TURNED, "MultiHead", "Embedding")):
        wrong = how in ("steps", "unseen") or (how == "images" and (chance or len(shape) > 2))
        return None if wrong or (blocks and not kind.startswith(TURNED)) else seen, FEATURES
    if kind.startswith(NEUTRAL):
        return None if how == "unseen" or (blocks and kind.startswith("GroupNorm")) else seen, seen
    if kind in ("Flatten", "Reshape") and len(out) == 1:
        first = getattr(m, "_channels_first", False)  # it turns them to be last
        if len(shape) < 2 or None in shape or how in ("either", "unseen") or (first and (blocks or how != "features")):
            return OPEN, seen if len(shape) < 2 else None
        row = {"images": (shape,), "steps": (shape[1:],) * shape[0], "features": blocks * shape[0], "open": ()}[how]
        return OPEN, FEATURES._replace(blocks=((*shape[1:], shape[0]),) if first else row)
    same = out[-1:] == shape[-1:] if how == "images" else not turned and (out[-1:] == (1,) or {*out[:-1]} == {1})
    if kind == "Reshape" and same:
        return OPEN, IMAGES
    return None if blocks else OPEN, None if turned else EITHER if len(out) > 1 else FEATURES


def _merged(m: Any, given: Sequence[Seen], shapes: Sequence[tuple[int, ...]]) -> Seen | None:
    """What tensors side by side, or added, are together."""
    blocks, last = any(seen.blocks for seen in given), getattr(m, "axis", 0) in (-1, len(shapes[0]))
    if blocks and last and {seen.how for seen in given} <= {"features", "open"}:
        return FEATURES._replace(blocks=sum((seen.blocks or (s[-1:],) for seen, s in zip(given, shapes)), ()))
    known = {*given} if blocks else {*given} - {OPEN} or {OPEN}
    return known.pop() if len(known) == 1 else None


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
    masked = any(type(m).__name__ == "Masking" or getattr(m, "mask_zero", False) for m, _ in leaves(source))
    reading = [one for one in leaves(source) if {"LSTM", "GRU", "SimpleRNN", "MultiHeadAttention"} & {*_kinds(one[0])}]
    behind = {id(m): after.name for (m, within), (after, _) in zip(reading, reading[1:]) if within is None}
    both_ways, layers_here = {id(one): within for one, within in leaves(source)}, named_layers(model)
    for unit, here, _ in found:
        kind = next((name for name in unit.kinds if name in TWINS), "")
        m = unit.layer
        if getattr(m, "data_format", "") == "channels_last" and hasattr(m, "kernel_size"):
            report.notes.append("inputs have their channels last in Keras, (batch, *space, channels), and first here")
        if getattr(m, "zero_output_for_mask", False) and m.return_sequences and masked:
            report.notes.append(f"steps that are masked are 0 in what {unit} gives in Keras, and the state before here")
        if isinstance(here.layer, layers.BatchNorm):
            report.notes.append("in training the running variance here is that with n - 1, and in Keras that with n")
        if not kind or unit.name in ignore:
            continue
        _check_axes(unit, here)
        if masked and id(m) in behind and getattr(m, "go_backwards", False) and m.return_sequences:
            raise CheckpointError(
                f"{unit} gives its steps backwards and Keras leaves their mask as it is, so that {behind[id(m)]} passes others "
                f"over: here the mask is turned, too; nothing was copied. Go on all the same with ignore=({unit.name!r},)"
            )
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
            if isinstance(twin, layers.Activation) and twin.activation == "softmax" and len(m.input.shape) > 2:
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


def _check_axes(unit: Unit, here: Here) -> None:
    """CheckpointError where a layer works along another axis than its twin here, whose channels are the first axis of images."""
    m, shape = unit.layer, getattr(unit.layer, "_build_shapes_dict", None) or {}
    size = next((tuple(one) for one in shape.values() if one), ())
    image = len(size) > 2 and unit.seen is not None and unit.seen.how in ("images", "steps")
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
