"""PyTorch's side of copying weights: how a module's arrays lie there, and which of clnn's layers is the twin of a module.

Modules are known by the names of their classes, and by `state_dict` and `named_modules`: nothing here imports torch.
"""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import dropwhile, zip_longest
from typing import Any

import numpy as np

from .. import layers
from ..errors import CheckpointError, ClnnError, ConfigurationError
from ..layers.base import Layer
from ..layers.image.conv import _Convolution
from ..layers.norm import _Norm
from ..layers.sequence.attention import _Block
from ..layers.sequence.recurrent import _Cell, _Recurrent
from ..ops.activation import SOFTMAX
from .pairs import Here, Pair, Part, Report, Stored, Unit, flat, named_layers, natural, ours, same_settings, wrong_kind

DIMENSIONS = {1: "1d", 2: "2d", 3: "3d"}
STATISTICS = ("running_mean", "running_var")
RECURRENT = re.compile(r"(weight_ih|weight_hh|bias_ih|bias_hh|weight_hr)(?:_l(\d+)(_reverse)?)?")


# -- how arrays lie there ---------------------------------------------------------------------------------------------
def transposed(a: np.ndarray) -> list[np.ndarray]:
    """a^T"""
    return [a.T]


def gates(a: np.ndarray) -> np.ndarray:
    """A GRU's gates along the first axis, r, z, n there, in the order z, r, n that clnn has; and the other way round."""
    r, z, n = np.split(a, 3)
    return np.concatenate([z, r, n])


def recurrent_parts(kind: str) -> list[Part]:
    """Of an RNN, an LSTM or a GRU. Two biases that are added are one here."""
    if kind == "GRU":
        order = "gates r z n as z r h"
        turn, back, same = lambda a: [gates(a).T], lambda a: [gates(a.T)], lambda a: [gates(a)]
        weights = (("w", "weight_ih"), ("u", "weight_hh"))
        found = [Part((a,), (b,), turn, back, f"transposed, {order}") for a, b in weights]
        return found + [
            Part((f"{a}b",), (f"bias_{b}",), same, same, order) for a, b in (("", "ih"), ("recurrent_", "hh"))
        ]
    both = Part(
        ("b",), ("bias_ih", "bias_hh"), lambda a, b: [a + b], lambda b: [b, np.zeros_like(b)], "two biases as their sum"
    )
    return [
        Part(("w",), ("weight_ih",), transposed, transposed, "transposed"),
        Part(("u",), ("weight_hh",), transposed, transposed, "transposed"),
        both,
    ]


def attention_parts(packed: bool) -> list[Part]:
    """Of a MultiheadAttention, whose weights of queries, keys and values are one array, or three where their sizes differ."""
    biases = Part(
        ("bq", "bk", "bv"), ("in_proj_bias",), lambda a: np.split(a, 3), lambda *b: [np.concatenate(b)], "unpacked"
    )
    out = [Part(("wo",), ("out_proj.weight",), transposed, transposed, "transposed"), Part(("bo",), ("out_proj.bias",))]
    if packed:
        apart, whole = (
            lambda a: [part.T for part in np.split(a, 3)],
            lambda *w: [np.concatenate([part.T for part in w])],
        )
        weights = [Part(("wq", "wk", "wv"), ("in_proj_weight",), apart, whole, "unpacked, transposed")]
    else:
        weights = [Part((f"w{one}",), (f"{one}_proj_weight",), transposed, transposed, "transposed") for one in "qkv"]
    return [*weights, biases, *out]


def layout(here: Here, unit: Unit) -> list[Part]:
    """How the parameters of a layer lie in a module of PyTorch; none where its class is that of another layer."""
    names = kinds_of(here.layer)
    if names and unit.kinds and not {*names} & {*unit.kinds}:
        return []
    layer, arrays = here.layer, unit.arrays
    if isinstance(layer, _Recurrent):
        if not getattr(layer, "reset_after", True):
            raise CheckpointError(f"{here} has reset_after=False, and PyTorch's GRU is the form with True")
        return recurrent_parts(layer.kind)
    if isinstance(layer, layers.MultiHeadAttention):
        return attention_parts("in_proj_weight" in arrays)
    if isinstance(layer, layers.Dense):
        return [Part(("w",), ("weight",), transposed, transposed, "transposed"), Part(("b",), ("bias",))]
    if isinstance(layer, _Convolution):
        return [Part(("w",), ("weight",)), Part(("b",), ("bias",))]
    if isinstance(layer, _Norm):
        statistics = [Part(("running_mean",), STATISTICS[:1]), Part(("running_variance",), STATISTICS[1:])]
        return [Part(("gamma",), ("weight",)), Part(("beta",), ("bias",)), *statistics]
    if isinstance(layer, layers.PReLU):
        shape = here.parameters["slope"].shape
        return [Part(("slope",), ("weight",), lambda a: [a.reshape(shape)], lambda a: [a.reshape(a.size)])]
    if isinstance(layer, layers.Embedding):  # the row of its padding is read as 0, and there as it is
        return [
            Part(("w",), ("weight",), write=lambda w: [np.where(np.arange(len(w))[:, None] == layer.padding, 0, w)])
        ]
    if len(arrays) != len(here.parameters):
        return []
    named = {*arrays} == {*here.parameters}  # a layer of one's own: by name, or in their order
    return [Part((mine,), (mine if named else theirs,)) for mine, theirs in zip(here.parameters, arrays)]


def kinds_of(layer: Layer) -> tuple[str, ...]:
    """The classes of PyTorch that a layer of clnn can have its weights from; none for layers that it does not know."""
    name = next((one.__name__ for one in type(layer).__mro__ if one.__name__ in KINDS), "")
    if isinstance(layer, _Convolution):
        name = next(one.__name__ for one in type(layer).__mro__ if re.match(r"Conv\dD|Depthwise", one.__name__))
        axes = DIMENSIONS[layer.axes]
        return (f"ConvTranspose{axes}",) if name.endswith("Transpose") else (f"Conv{axes}",)
    return KINDS.get(name, ())


KINDS: dict[str, tuple[str, ...]] = {
    **{name: (name,) for name in ("LayerNorm", "RMSNorm", "GroupNorm", "PReLU", "Embedding")},
    **{f"{kind}Norm": tuple(f"{kind}Norm{axes}" for axes in DIMENSIONS.values()) for kind in ("Batch", "Instance")},
    **{name: (name, f"{name}Cell") for name in ("LSTM", "GRU")},
    "Dense": ("Linear",),
    "MultiHeadAttention": ("MultiheadAttention",),
    "SimpleRNN": ("RNN", "RNNCell"),
}
KINDS["BatchNorm"] += ("SyncBatchNorm",)


# -- what is there ----------------------------------------------------------------------------------------------------
REPARAMETRISED = {
    "weight_g": "torch.nn.utils.remove_weight_norm(module.{0})",
    "weight_orig": 'torch.nn.utils.remove_spectral_norm(module.{0}), or torch.nn.utils.prune.remove(module.{0}, "weight"),',
    "original": 'torch.nn.utils.parametrize.remove_parametrizations(module.{0}, "weight")',
}


def units_of(source: Any) -> tuple[list[Unit], bool]:
    """The layers of a module, or of a dict of arrays by their names, that have arrays; and whether their order is known."""
    modules: dict[str, Any] = {}
    if callable(getattr(source, "state_dict", None)) and callable(getattr(source, "named_modules", None)):
        modules, state = dict(source.named_modules(remove_duplicate=False)), source.state_dict()
    elif isinstance(source, Mapping):
        state = source
    else:
        raise wrong_kind("weights come from a module of PyTorch, or from a state dict: names and arrays", source)
    groups: dict[str, dict[str, Stored]] = {}
    for name, value in state.items():
        if "Uninitialized" in type(value).__name__:
            raise CheckpointError(
                f"{name} holds no values yet: call the module once first, so that its lazy layers get them"
            )
        if "_packed_params" in str(name):
            raise CheckpointError(f"{name} is of a quantised module: give the one of floats that it was made of")
        if not isinstance(name, str) or not hasattr(value, "shape") or not hasattr(value, "dtype"):
            raise CheckpointError(
                f"a state dict has names and arrays, and {name!r} is a {type(value).__name__}: of a checkpoint with more in it "
                'give the part that holds the weights, such as checkpoint["state_dict"]'
            )
        owner, _, local = name.rpartition(".")
        _check_plain(owner, local)
        if local == "num_batches_tracked":
            continue
        above, _, last = owner.rpartition(".")
        start = f"{above}." if above else ""
        if last == "out_proj" and {f"{start}in_proj_weight", f"{start}q_proj_weight"} & state.keys():  # of attention
            owner, local = above, f"out_proj.{local}"
        groups.setdefault(owner, {})[local] = Stored(name, value)
    found = [unit for owner, arrays in groups.items() for unit in _split(owner, arrays, modules.get(owner))]
    for unit in found:
        _check_supported(unit)
    return found, bool(modules)


def canonical(model: Layer) -> tuple[dict[str, np.ndarray], list[Unit]]:
    """Zeros by the names and in the forms that a module of PyTorch like the model would have, and its layers."""
    state: dict[str, np.ndarray] = {}
    units, mine = [], ours(model)
    layers_here = named_layers(model)
    for one in mine:
        arrays: dict[str, Any] = dict.fromkeys(one.parameters)
        if isinstance(one.layer, layers.MultiHeadAttention):
            if one.layer.key_heads not in (None, one.layer.heads):
                raise CheckpointError(f"{one} has fewer key_heads than heads, which no module of PyTorch has")
            arrays = {} if one.parameters["wk"].shape != one.parameters["wq"].shape else {"in_proj_weight": None}
        owner, _, last = one.name.rpartition(".")
        block, suffix, name = layers_here.get(owner), "", one.name
        if isinstance(block, _Block):
            name = f"{owner}.{IN_BLOCK[last]}".strip(".")
        if isinstance(block, layers.Bidirectional):
            name, suffix = owner, "_reverse" if last == "back" else ""
        if isinstance(one.layer, _Recurrent) and not isinstance(one.layer, _Cell):
            suffix = f"_l0{suffix}"
        found: dict[str, np.ndarray] = {}
        for part in layout(one, Unit(name, (), None, arrays)):
            if all(attribute in one.parameters for attribute in part.here):
                made = part.write(*[np.zeros(one.parameters[a].shape, one.layer.dtype) for a in part.here])
                found |= {local: np.array(a, order="C") for local, a in zip(part.there, made)}
        full = {local: f"{name}.{local}{suffix}".strip(".") for local in found}
        state |= {full[local]: a for local, a in found.items()}
        units.append(Unit(one.name, (), None, {local: Stored(full[local], a) for local, a in found.items()}))
    return state, units


IN_BLOCK = {"attention": "self_attn", "to_context": "multihead_attn", "widen": "linear1", "narrow": "linear2"}
IN_BLOCK |= {f"norm_{i}": f"norm{i}" for i in (1, 2, 3)}


def _check_plain(owner: str, local: str) -> None:
    reason = next((what for what in REPARAMETRISED if local.startswith(what)), None)
    if reason and (reason != "original" or ".parametrizations." in f".{owner}."):
        layer = re.sub(r"\.?parametrizations\..*", "", owner) or "layer"
        raise CheckpointError(
            f"{owner}.{local} is a part of which a weight is computed (weight_norm, spectral_norm, pruning): "
            f"{REPARAMETRISED[reason].format(layer)} makes it a plain one again"
        )


def _split(owner: str, arrays: dict[str, Stored], module: Any) -> Iterator[Unit]:
    """The module as one unit, or one for each layer and direction of a recurrent one."""
    kinds = _kinds(module)
    steps: dict[tuple[str, str], dict[str, Stored]] = {}
    for local, stored in arrays.items():
        match = RECURRENT.fullmatch(local)
        if match is None:
            yield Unit(owner, kinds, module, arrays)
            return
        steps.setdefault((match[2] or "", match[3] or ""), {})[match[1]] = stored
    for (number, back), inside in sorted(steps.items(), key=lambda step: (natural(step[0][0]), step[0][1])):
        yield Unit(f"{owner}.l{number}{back}".strip(".") if len(steps) > 1 else owner, kinds, module, inside)


def _kinds(module: Any) -> tuple[str, ...]:
    if original := getattr(module, "original_name", None):  # of TorchScript
        return (original,)
    return () if module is None else tuple(one.__name__ for one in type(module).__mro__[:-1])


def _check_supported(unit: Unit) -> None:
    """CheckpointError for modules that compute something which no layer here does."""
    m, name = unit.layer, str(unit)
    for attribute, usual, what in (
        ("proj_size", 0, "projects the state of its LSTM"),
        ("bias_k", None, "adds a learned key (add_bias_kv)"),
        ("add_zero_attn", False, "adds a key of zeros (add_zero_attn)"),
        ("max_norm", None, "renormalises the rows that it reads (max_norm)"),
        ("scale_grad_by_freq", False, "scales gradients by how often a token stands (scale_grad_by_freq)"),
    ):
        if getattr(m, attribute, usual) != usual if usual is not None else getattr(m, attribute, None) is not None:
            raise CheckpointError(f"{name} {what}, which no layer of clnn does")
    for one in {"weight_hr", "bias_k"} & {*unit.arrays}:
        raise CheckpointError(f"{name} has {one}, which no layer of clnn has")
    norm = {"BatchNorm1d", "BatchNorm2d", "BatchNorm3d", "SyncBatchNorm"} & {*unit.kinds}
    if norm and not {*STATISTICS} <= {*unit.arrays}:
        raise CheckpointError(
            f"{name} keeps no statistics (track_running_stats=False), which clnn.BatchNorm computes with where it does not train"
        )
    if norm and getattr(m, "momentum", 0.1) is None:
        raise CheckpointError(f"{name} has momentum=None, the mean of all batches: give it a number, such as 0.1")
    padding = getattr(m, "padding_idx", None)
    if padding is not None and "Embedding" in unit.kinds and unit.arrays["weight"].read()[padding].any():
        raise CheckpointError(
            f"{name}: the row of padding_idx={padding} is not zero, and clnn.Embedding(padding={padding}) reads it as 0: set "
            "it to 0 there, or use Embedding without padding on both sides"
        )


def check_settings(source: Any, ignore: Sequence[str], found: Sequence[Pair], model: Layer, report: Report) -> None:
    """CheckpointError where a layer does not compute what its twin there does, for all that an attribute says."""
    layers_here, at = named_layers(model), {unit.name: here.name for unit, here, _ in found}
    for unit, here, _ in found:
        try:
            twins = _known_twins(unit, here, ignore) if kinds_of(here.layer) and unit.kinds else []
        except AttributeError as error:  # a module of one's own with a name of PyTorch's
            report.notes.append(f"whether {unit} and {here} compute the same cannot be seen: {error}")
            continue
        above = here.name.rpartition(".")[0]
        owner = layers_here.get(above)
        for twin in twins:
            if isinstance(twin, layers.Bidirectional) and isinstance(owner, layers.Bidirectional):
                same_settings(unit, Here(above, owner, {}), twin, ("merge_mode",), ignore)
                twin = twin.back if here.layer is owner.back else twin.layer
            convolve = isinstance(twin, _Convolution) and isinstance(here.layer, _Convolution)
            if convolve or isinstance(here.layer, type(twin)):
                names = (*COMPARED, "activation") if isinstance(twin, _Recurrent) else COMPARED
                same_settings(unit, here, twin, names, ignore)
        if getattr(unit.layer, "batch_first", True) is False:
            report.notes.append(f"inputs of {unit} are (steps, batch, features), and here (batch, steps, features)")
        if isinstance(here.layer, _Recurrent) and here.layer.kind != "GRU" and "bias_ih" in unit.arrays:
            report.notes.append(
                f"{unit} learns two biases, which are one here: there their sum moves twice as far in a step"
            )
    if "between" not in ignore:
        known = type(source).__name__ == "Sequential"
        theirs = ((one, twin) for _, one in leaves(source) for twin in exact_twin(one))
        check_between("PyTorch", theirs, known, model, report)
    for name, module in source.named_modules() if hasattr(source, "named_modules") else ():
        above = at.get(f"{name}.self_attn".strip("."), "").rpartition(".")[0]
        block = layers_here.get(above)
        if {"TransformerEncoderLayer", "TransformerDecoderLayer"} & {*_kinds(module)} and isinstance(block, _Block):
            one, here = Unit(name, _kinds(module), module, {}), Here(above, block, {})
            for twin in _known_twins(one, here, ignore):
                same_settings(one, here, twin, ("norm_first", "activation", "norm"), ignore)
            if isinstance(block, layers.TransformerDecoderLayer):
                report.notes.append(f"{above or 'the model'} is causal by itself; {one} is where it gets tgt_mask")


def _known_twins(unit: Unit, here: Here, ignore: Sequence[str]) -> list[Layer]:
    """`twin_of` a unit's module. CheckpointError where there is none."""
    try:
        return [] if unit.name in ignore else twin_of(unit.layer)
    except NoTwin as error:
        raise CheckpointError(
            f"{unit} computes what {here} does not ({error}); nothing was copied. If the model does it in another way, go on "
            f"with ignore=({unit.name!r},)"
        ) from None


COMPARED = (
    "stride", "padding", "dilation", "groups", "output_padding", "epsilon", "momentum", "heads", "rotary",
    "recurrent_activation", "mask_zero", "go_backwards",
)  # fmt: skip


# -- twins ------------------------------------------------------------------------------------------------------------
class NoTwin(Exception):
    """Why a module has no twin among clnn's layers."""


def refuse(wrong: Any, why: str) -> None:
    """NoTwin where something is wrong."""
    if wrong:
        raise NoTwin(why)


def _conv(axes: int, transpose: bool = False) -> Callable[[Any], list[Layer]]:
    def twin(m: Any) -> list[Layer]:
        how: dict[str, Any] = {"stride": m.stride, "dilation": m.dilation, "groups": m.groups}
        kernel, padding, bias, before = tuple(m.kernel_size), m.padding, m.bias is not None, []
        if transpose:
            how["output_padding"] = m.output_padding
        if padding == "same":
            sizes = [d * (k - 1) for d, k in zip(m.dilation, kernel)]
            pads = [[n // 2, n - n // 2] for n in sizes]
        else:
            pads = [[0, 0]] * axes if padding == "valid" else [[n, n] for n in padding]
        if m.padding_mode != "zeros" and any(map(any, pads)):
            refuse(m.padding_mode not in ("reflect", "replicate"), f"padding_mode={m.padding_mode!r}")
            before, pads = [layers.Padding(pads, m.padding_mode)], [[0, 0]] * axes
        kind = getattr(layers, f"Conv{axes}D{'Transpose' * transpose}")
        return [*before, kind(m.out_channels, kernel, padding=pads, bias=bias, **how)]

    return twin


def _pool(kind: str, axes: int) -> Callable[[Any], Layer]:
    def twin(m: Any) -> Layer:
        refuse(getattr(m, "return_indices", False), "return_indices=True")
        refuse(_several(getattr(m, "dilation", 1), axes) != (1,) * axes, f"dilation={getattr(m, 'dilation', 1)}")
        refuse(getattr(m, "divisor_override", None) is not None, "divisor_override")
        extra = {"count_include_pad": m.count_include_pad} if kind == "Avg" else {}
        size, stride = _several(m.kernel_size, axes), _several(m.stride, axes)
        padding = _several(m.padding, axes)
        return getattr(layers, f"{kind}Pool{axes}D")(size, stride, padding, ceil_mode=m.ceil_mode, **extra)

    return twin


def _several(value: Any, axes: int) -> tuple[int, ...]:
    return tuple(value) if isinstance(value, (tuple, list)) else (value,) * axes


def _adaptive(kind: str, axes: int) -> Callable[[Any], Layer]:
    def twin(m: Any) -> Layer:
        size = _several(m.output_size, axes)
        refuse(getattr(m, "return_indices", False), "return_indices=True")
        refuse(None in size, f"output_size={m.output_size}: None keeps an axis, give its size")
        return getattr(layers, f"Adaptive{kind}Pool")(size)

    return twin


def _affine(m: Any) -> bool:
    """Whether a norm has a weight and a bias."""
    refuse(m.weight is not None and getattr(m, "bias", m) is None, "bias=False beside a weight")
    return m.weight is not None


def _batch_norm(m: Any) -> Layer:
    refuse(m.momentum is None, "momentum=None: the mean of all batches")
    refuse(m.running_mean is None, "track_running_stats=False")
    return layers.BatchNorm(momentum=1.0 - m.momentum, epsilon=m.eps, affine=_affine(m))


def _instance_norm(m: Any) -> Layer:
    refuse(m.track_running_stats, "track_running_stats=True")
    return layers.InstanceNorm(epsilon=m.eps, affine=_affine(m))


def _over_last(kind: str) -> Callable[[Any], Layer]:
    def twin(m: Any) -> Layer:
        affine, eps = _affine(m), m.eps
        if eps is None:  # PyTorch takes that of the type
            eps = np.finfo("float32" if m.weight is None else Stored("weight", m.weight).kind).eps
        return getattr(layers, kind)(tuple(range(-len(m.normalized_shape), 0)), epsilon=float(eps), affine=affine)

    return twin


def _activation(name: str, **usual: Any) -> Callable[[Any], Layer]:
    """An activation without arguments; those that the module has are as usual."""

    def twin(m: Any) -> Layer:
        for argument, value in usual.items():
            refuse(getattr(m, argument) != value, f"{argument}={getattr(m, argument)!r}")
        return layers.Activation(name)

    return twin


def _softmax(name: str) -> Callable[[Any], Layer]:
    def twin(m: Any) -> Layer:
        refuse(m.dim is None, "dim=None: give dim=-1")
        refuse(m.dim < -1 or m.dim == 0, f"dim={m.dim}: clnn's is the last axis")
        return layers.Activation(name)

    return twin


def _recurrent(kind: str, cell: bool = False) -> Callable[[Any], list[Layer]]:
    def twin(m: Any) -> list[Layer]:
        refuse(getattr(m, "proj_size", 0), "proj_size")
        how: dict[str, Any] = {"use_bias": m.bias is not None and m.bias is not False}
        if kind == "SimpleRNN":
            how["activation"] = m.nonlinearity
        if cell:
            return [getattr(layers, f"{kind}Cell")(m.hidden_size, **how)]
        found: list[Layer] = []
        for number in range(m.num_layers):
            one: Layer = getattr(layers, kind)(m.hidden_size, return_sequences=True, **how)
            found += [layers.Dropout(m.dropout)] if number and m.dropout else []
            found.append(layers.Bidirectional(one) if m.bidirectional else one)
        return found

    return twin


def _attention(m: Any) -> Layer:
    refuse(m.bias_k is not None or m.add_zero_attn, "add_bias_kv or add_zero_attn")
    return layers.MultiHeadAttention(m.num_heads, dropout=m.dropout, bias=m.in_proj_bias is not None)


def _block(kind: str) -> Callable[[Any], Layer]:
    def twin(m: Any) -> Layer:
        name = getattr(m.activation, "__name__", type(m.activation).__name__).lower()
        refuse(name not in ("relu", "gelu"), f"activation {name}")
        refuse(getattr(m.activation, "approximate", "none") != "none", "activation gelu with approximate='tanh'")
        refuse(m.linear1.bias is None, "bias=False")
        how = {"dropout": m.dropout.p, "norm_first": m.norm_first}
        return getattr(layers, kind)(m.self_attn.num_heads, m.linear1.out_features, name, **how)

    return twin


def _embedding(m: Any) -> Layer:
    refuse(m.max_norm is not None, "max_norm")
    refuse(m.scale_grad_by_freq, "scale_grad_by_freq=True")
    return layers.Embedding(m.num_embeddings, m.embedding_dim, padding=m.padding_idx)


def _padding(axes: int, mode: str) -> Callable[[Any], Layer]:
    def twin(m: Any) -> Layer:
        given = _several(m.padding, 2 * axes)  # the last axis first
        pairs = [[given[i], given[i + 1]] for i in reversed(range(0, len(given), 2))]
        return layers.Padding(pairs, mode, float(getattr(m, "value", 0.0)) if mode == "constant" else 0.0)

    return twin


def _upsample(m: Any) -> Layer:
    refuse(m.size is not None, "size=: give scale_factor")
    refuse(m.mode not in ("nearest", "linear", "bilinear", "trilinear"), f"mode={m.mode!r}")
    refuse(m.align_corners, "align_corners=True")
    factors = m.scale_factor if isinstance(m.scale_factor, tuple) else (m.scale_factor,)
    refuse(any(factor != int(factor) for factor in factors), f"scale_factor={m.scale_factor}")
    whole = [int(factor) for factor in factors]
    return layers.UpSampling(whole[0] if len(whole) == 1 else whole, "nearest" if m.mode == "nearest" else "bilinear")


def _flatten(m: Any) -> Layer:
    refuse((m.start_dim, m.end_dim) != (1, -1), f"start_dim={m.start_dim}, end_dim={m.end_dim}")
    return layers.Flatten()


def _unflatten(m: Any) -> Layer:
    refuse(m.dim != 1, f"dim={m.dim}")
    return layers.Reshape(tuple(m.unflattened_size))


TWINS: dict[str, Callable[[Any], Layer | list[Layer]]] = {
    "Linear": lambda m: layers.Dense(m.out_features, bias=m.bias is not None),
    "Flatten": _flatten,
    "Unflatten": _unflatten,
    "Identity": lambda m: [],
    "Dropout": lambda m: layers.Dropout(m.p),
    "PReLU": lambda m: layers.PReLU(1 if m.num_parameters > 1 else None),
    "LeakyReLU": lambda m: layers.Activation("leaky_relu", slope=m.negative_slope),
    "ELU": lambda m: layers.Activation("elu", alpha=m.alpha),
    "GELU": lambda m: layers.Activation({"none": "gelu", "tanh": "gelu_tanh"}[m.approximate]),
    "Softmax": _softmax("softmax"),
    "LogSoftmax": _softmax("log_softmax"),
    "Softplus": _activation("softplus", beta=1, threshold=20),
    "Hardtanh": _activation("hard_tanh", min_val=-1, max_val=1),
    "SyncBatchNorm": _batch_norm,
    "LayerNorm": _over_last("LayerNorm"),
    "RMSNorm": _over_last("RMSNorm"),
    "GroupNorm": lambda m: layers.GroupNorm(m.num_groups, epsilon=m.eps, affine=_affine(m)),
    "LocalResponseNorm": lambda m: layers.LocalResponseNorm(m.size, m.alpha, m.beta, m.k),
    "Embedding": _embedding,
    "MultiheadAttention": _attention,
    "TransformerEncoderLayer": _block("TransformerEncoderLayer"),
    "TransformerDecoderLayer": _block("TransformerDecoderLayer"),
    "TransformerEncoder": lambda m: [
        twin for one in (*m.layers, m.norm) if one is not None for twin in exact_twin(one)
    ],
    "Upsample": _upsample,
    "UpsamplingNearest2d": _upsample,
}
for _name in ("ReLU", "SELU", "Sigmoid", "Tanh", "Softsign", "SiLU", "Mish"):
    TWINS[_name] = _activation(_name.lower())
for _name in ("sigmoid", "swish"):
    TWINS[f"Hard{_name}"] = _activation(f"hard_{_name}")
for _name, _kind in (("RNN", "SimpleRNN"), ("LSTM", "LSTM"), ("GRU", "GRU")):
    TWINS[_name], TWINS[f"{_name}Cell"] = _recurrent(_kind), _recurrent(_kind, cell=True)
for _axes, _d in DIMENSIONS.items():
    TWINS |= {
        f"Conv{_d}": _conv(_axes),
        f"ConvTranspose{_d}": _conv(_axes, transpose=True),
        f"MaxPool{_d}": _pool("Max", _axes),
        f"AvgPool{_d}": _pool("Avg", _axes),
        f"AdaptiveMaxPool{_d}": _adaptive("Max", _axes),
        f"AdaptiveAvgPool{_d}": _adaptive("Avg", _axes),
        f"BatchNorm{_d}": _batch_norm,
        f"InstanceNorm{_d}": _instance_norm,
        f"Dropout{_d}": lambda m: layers.SpatialDropout(m.p),
        f"ZeroPad{_d}": _padding(_axes, "constant"),
        f"ConstantPad{_d}": _padding(_axes, "constant"),
        f"ReflectionPad{_d}": _padding(_axes, "reflect"),
        f"ReplicationPad{_d}": _padding(_axes, "replicate"),
    }


def twin_of(module: Any) -> list[Layer]:
    """clnn's layers that do what the module does, by its class or one above it. NoTwin where there are none."""
    for name in _kinds(module):
        if name in TWINS:
            found = TWINS[name](module)
            return [found] if isinstance(found, Layer) else found
    raise NoTwin("no layer of clnn is its twin")


def exact_twin(module: Any) -> list[Layer]:
    """The same, for what is computed too: a class derived from one of PyTorch's may do anything, and so may hooks."""
    name = _class_of(module)
    for _, one in module.named_modules():
        refuse(why := _changed(one), why)
    refuse(name not in TWINS, "no layer of clnn is its twin")
    recurrent = name in ("RNN", "LSTM", "GRU") or name.startswith("Transformer")
    first = module.layers[0].self_attn if name == "TransformerEncoder" else getattr(module, "self_attn", module)
    refuse(recurrent and not first.batch_first, "batch_first=False: inputs here are (batch, steps, features)")
    refuse(name.endswith(("Cell", "DecoderLayer")) or name == "MultiheadAttention", "it takes several inputs")
    return twin_of(module)


def _changed(module: Any) -> str:
    """Why a module may do something else than its class; nothing where it does not."""
    if getattr(module, "_forward_hooks", None) or getattr(module, "_forward_pre_hooks", None):
        return "it has forward hooks"
    return "its forward was replaced" if "forward" in vars(module) else ""


def _class_of(module: Any) -> str:
    """Of its class; none where that is another than PyTorch's of that name. Of stand-ins the name has to do."""
    nn, kind = sys.modules.get("torch.nn"), type(module)
    own = nn and isinstance(module, nn.Module) and kind is not getattr(nn, kind.__name__, None)
    return "" if own else kind.__name__


def leaves(module: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """The modules inside nested nn.Sequentials, one after the other, with their names; one that stands in several places in each.
    A Sequential that does more than its modules stands for itself."""
    if _class_of(module) != "Sequential" or _changed(module):
        yield name, module
        return
    for inner, one in module._modules.items():  # `named_children` gives each once
        yield from leaves(one, f"{name}.{inner}" if name else inner)


def check_apart(module: Any) -> None:
    """ConfigurationError where two modules share a parameter: two layers would learn apart."""
    places: dict[int, list[str]] = {}  # the names of each parameter
    for place, one in module.named_modules():  # each once
        for name, value in getattr(one, "_parameters", {}).items():
            places.setdefault(id(value), []).extend([] if value is None else [f"{place}.{name}"])
    for names in places.values():
        if len(names) > 1:
            raise ConfigurationError(
                f"{' and '.join(names)} are one parameter, and layers here have their own: put one module in both places, or "
                "give each a parameter of its own, such as a clone()"
            )


FUSES = (layers.Dense, _Convolution, layers.BatchNorm, layers.GroupNorm, layers.InstanceNorm)


def check_between(there: str, twins: Iterable[tuple[Any, Layer]], known: bool, model: Layer, report: Report) -> None:
    """CheckpointError where two Sequentials do different things between their weights; `twins` are the modules there, each with a
    layer that does the same here. Where that is not known it is a note."""
    try:
        known = known and type(model).__name__ == "Sequential" and not report.left_there and not report.left_here
        theirs = [(step, module) for module, twin in twins for step in steps(twin)] if known else []
    except (NoTwin, ClnnError, AttributeError, KeyError):
        known = False
    if not known:
        report.notes.append("what is computed between these weights (activations, pooling) was not compared")
        return
    mine = [(step, None if i else layer) for layer in flat(model) for i, step in enumerate(steps(layer))]
    twin_there: dict[int, Any] = {}  # of each layer with weights, by the first of them
    nothing = ("nothing", None)
    for i, ((a, module), (b, layer)) in enumerate(zip_longest(_begun(theirs), _begun(mine), fillvalue=nothing)):
        weights = layer.parameters() if layer else ()
        if a == b and weights and twin_there.setdefault(id(weights[0]), module) is not module:
            b = f"{b} with the weights of an earlier step"
        if a != b:
            raise CheckpointError(
                f"step {i + 1} of what is computed is {a} in {there}, and {b} here; nothing was copied. Make them alike, or copy "
                "the weights all the same with ignore=('between',)"
            )


def steps(layer: Layer) -> Iterator[str]:
    """What a layer computes, without what `check_settings` compares: its class, then its activation; without arguments that say
    the same. Dropout is none."""
    name, activation = type(layer).__name__, getattr(layer, "activation", "linear")
    if isinstance(layer, layers.Activation):
        usual = {"leaky_relu": ("slope", 0.01), "elu": ("alpha", 1.0)}.get(activation)
        given = getattr(layer, usual[0]) if usual else None
        if activation != "linear":
            yield activation + (f"({given:g})" if usual and given not in (None, usual[1]) else "")
    elif isinstance(layer, (layers.GlobalAvgPool, layers.GlobalMaxPool)):
        yield from (f"Adaptive{name[6:]}(1)", "Flatten()")
    elif isinstance(layer, (layers.AdaptiveAvgPool, layers.AdaptiveMaxPool)):
        yield f"{name}({', '.join(map(str, layer.size[: 1 if len({*layer.size}) == 1 else None]))})"
    elif isinstance(layer, layers.TimeDistributed):
        yield from steps(layer.layer)
    elif isinstance(layer, layers.Bidirectional):
        yield type(layer.layer).__name__
    elif isinstance(layer, layers.Padding):
        amount = layer.amount if isinstance(layer.amount, list) else [layer.amount]
        every = {a if isinstance(a, tuple) else (a, a) for a in amount}
        yield f"Padding({every.pop() if len(every) == 1 else amount}, {layer.mode}, {layer.value:g})"
    elif kinds_of(layer) or isinstance(layer, _Block):
        yield name.replace("Depthwise", "")
        yield from [activation] if isinstance(layer, FUSES) and activation != "linear" else ()
    elif not isinstance(layer, layers.Dropout):
        yield repr(layer)


def _begun(found: Sequence[tuple[str, Any]]) -> list[tuple[str, Any]]:
    """Steps without those that only shape what comes in, and a Flatten behind another."""
    found = [step for i, step in enumerate(found) if not i or {step[0], found[i - 1][0]} != {"Flatten()"}]
    return [*dropwhile(lambda step: step[0].startswith(("Flatten", "Reshape")), found)]


def _is_plain(layer: Layer) -> bool:
    """Whether it is an activation that other layers can have."""
    found = isinstance(layer, layers.Activation) and layer.activation not in SOFTMAX
    return found and layer.slope is None and layer.alpha is None  # type: ignore[attr-defined]


def twins(module: Any) -> list[tuple[str, Any, Layer]]:
    """(name, module, twin) of all modules of an nn.Sequential, activations within the layers that have one. What stands in
    several places with its weights has one twin for all of them. ConfigurationError that lists those without a twin."""
    found: list[tuple[str, Any, Layer]] = []
    shared: dict[int, list[Layer]] = {}
    wrong = []
    every = list(leaves(module))
    times = Counter(id(one) for _, one in every)
    for i, (name, one) in enumerate(every):
        try:
            made = shared.get(id(one)) or exact_twin(one)
            many = type(one).__name__ in ("RNN", "LSTM", "GRU") and i < len(every) - 1
            refuse(many, "its outputs are a tuple, which the next module does not take")
        except (NoTwin, ClnnError, AttributeError) as error:
            wrong.append(f"{name or 'it'} ({type(one).__name__}): {error}")
            continue
        if one.state_dict():
            shared[id(one)] = made
        for layer in made:
            last = found[-1][2] if found and times[id(found[-1][1])] == 1 else None
            if isinstance(last, FUSES) and last.activation == "linear" and _is_plain(layer):
                last.activation = layer.activation  # type: ignore[attr-defined]
            else:
                found.append((name, one, layer))
    if wrong or not found:
        raise ConfigurationError(
            f"these modules have no twin among clnn's layers: {'; '.join(wrong) or 'there are none at all'}. "
            "Write a clnn.Layer for them, make the model by hand, and copy its weights: clnn.interop.from_torch(module, model)"
        )
    return found


def check_axes(name: str, module: Any, before: tuple[int, ...]) -> None:
    """ConfigurationError where a module counts axes of its input, of shape `before` without the batch, as its twin does not."""
    kind, dim = type(module).__name__, getattr(module, "dim", -1)
    if kind in ("Softmax", "LogSoftmax") and dim not in (-1, len(before)):
        raise ConfigurationError(
            f"{name} ({kind}): dim={dim} of an input of shape {(None, *before)} is not the last axis, which clnn's is"
        )
    if kind == "Unflatten" and len(before) != 1:
        raise ConfigurationError(f"{name} ({kind}): of an input of shape {(None, *before)} clnn.Reshape takes all axes")
