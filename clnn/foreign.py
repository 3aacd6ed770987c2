"""What Keras and PyTorch call things that clnn has under another name: where one of these names is used, the error says so."""

from __future__ import annotations

import difflib
import inspect
import re
from collections.abc import Callable, Collection
from textwrap import shorten
from typing import Any

from .checks import arguments
from .errors import ArgumentError, ConfigurationError

_FOUND = "leave it out: clnn finds it from the input"
_RATE = 'give it to the optimizer: optimizer=clnn.SGD(lr), in place of "sgd"'
# Arguments of layers, losses, optimizers, callbacks and fit: names here, of which the first that is taken is meant; what to do
ARGUMENTS: dict[str, tuple[str, ...] | str] = {
    **dict.fromkeys(("units", "out_features", "pool_size", "embedding_dim", "output_dim"), ("size",)),
    **dict.fromkeys(("in_features", "in_channels", "num_features", "num_channels", "input_size"), _FOUND),
    **dict.fromkeys(("filters", "out_channels"), ("channels",)),
    "normalized_shape": ("axis",),
    "kernel_size": ("kernel", "size"),
    "strides": ("stride",),
    "dilation_rate": ("dilation",),
    "num_groups": ("groups",),
    "scale_factor": ("factor",),
    "target_shape": ("shape",),
    **dict.fromkeys(("use_bias", "bias"), ("bias", "use_bias")),
    **dict.fromkeys(("kernel_initializer", "embeddings_initializer"), ("weight_init",)),
    **{f"{name}_initializer": (f"{name}_init",) for name in ("bias", "recurrent")},
    **dict.fromkeys(("kernel_regularizer", "bias_regularizer"), "give the optimizer weight_decay (L2) or l1"),
    **dict.fromkeys(("lmbda", "lambda_"), "give the optimizer weight_decay, which is the book's lmbda / len(x)"),
    "kernel_constraint": ("max_norm",),
    "nonlinearity": ("activation",),
    "hidden_size": ("units",),
    "num_layers": "put several layers into a Sequential",
    "batch_first": "leave it out: clnn takes (batch, time, features)",
    "bidirectional": "write clnn.Bidirectional(layer)",
    "eps": ("epsilon",),
    **dict.fromkeys(("affine_transform", "elementwise_affine", "center", "scale"), ("affine",)),
    "track_running_stats": "leave it out: running statistics are always kept",
    "p": ("rate",),
    **dict.fromkeys(("num_heads", "nhead"), ("heads",)),
    **dict.fromkeys(("embed_dim", "d_model", "key_dim"), _FOUND),
    "dim_feedforward": ("hidden",),
    **dict.fromkeys(("is_causal", "use_causal_mask"), ("causal",)),
    "num_embeddings": ("tokens",),
    "input_dim": ("tokens", "give input_shape to Sequential"),
    "from_logits": "leave it out: clnn sees whether the last layer has a softmax or a sigmoid",
    "padding_idx": ("padding",),
    **dict.fromkeys(("learning_rate", "eta"), ("lr", _RATE)),
    **{f"beta_{i}": (f"beta{i}",) for i in (1, 2)},
    "betas": "give beta1 and beta2",
    "rho": ("alpha",),
    "amsgrad": "take clnn.AMSGrad",
    **dict.fromkeys(("clipnorm", "global_clipnorm"), ("clip_norm",)),
    "clipvalue": ("clip_value",),
    "use_ema": "give ema, such as ema=0.999",
    "params": "leave it out: fit and optimizer.step(net.parameters()) say what is trained",
    "restore_best_weights": ("restore_best",),
    "save_best_only": ("best_only",),
    "save_freq": ("every",),
    **dict.fromkeys(("filepath", "log_dir"), ("folder",)),
    "filename": ("path",),
    "histogram_freq": ("histograms",),
    "write_graph": ("graph",),
    "schedule": ("function",),
    "verbose": ("progress",),
    **dict.fromkeys(("validation_data", "evaluation_data", "test_data"), ("validation",)),
    **dict.fromkeys(("nb_epoch", "num_epochs"), ("epochs",)),
    **dict.fromkeys(("criterion", "cost"), ("loss",)),
    "initial_epoch": ("resume",),
    **dict.fromkeys(("workers", "num_workers"), "give clnn.data.Batches(x, y, workers=...) in place of x"),
    "lr": _RATE,
    "data_format": "clnn takes images as (channels, height, width)",
    "input_shape": "give it to Sequential: Sequential(layers, input_shape=...)",
    "trainable": "set layer.trainable = False",
    "name": "set layer.name",
    "dtype": "give it to Sequential, whose layers all have one type",
    "device": 'write "with clnn.use(device):" around it, or net.to(device)',
}  # fmt: skip
# Names of the package
NAMES: dict[str, str] = {
    **dict.fromkeys(("nn", "keras"), "clnn itself: clnn.Dense, clnn.Conv2D, ..."),
    "Module": "clnn.Model, or clnn.Layer for a part of one",
    **{f"{what}Normalization": f"clnn.{what}Norm" for what in ("Batch", "Layer", "Group", "RMS")},
    "LRN": "clnn.LocalResponseNorm",
    **dict.fromkeys(("ZeroPad", "ZeroPadding"), "clnn.Padding"),
    "Upsample": "clnn.UpSampling",
    "MaxPooling": "clnn.MaxPool",
    "AveragePooling": "clnn.AvgPool",
    "GlobalAveragePooling": "clnn.GlobalAvgPool",
    "GlobalMaxPooling": "clnn.GlobalMaxPool",
    "Dropout": "clnn.SpatialDropout",
    "ReLU": 'clnn.Activation("relu"), or activation="relu" of the layer before',
    **{name: f'clnn.Activation("{name.lower()}")' for name in ("Softmax", "Sigmoid", "Tanh", "GELU", "ELU", "SELU")},
    **dict.fromkeys(("CrossEntropyLoss", "CategoricalCrossentropy"), 'loss="cross_entropy", clnn.losses.CrossEntropy'),
    "SparseCategoricalCrossentropy": 'loss="cross_entropy", which takes class numbers',
    "NLLLoss": 'loss="log_likelihood"',
    **dict.fromkeys(("MSELoss", "MeanSquaredError"), 'loss="mse"'),
    "L1Loss": 'loss="mae"',
    **dict.fromkeys(("BCELoss", "BinaryCrossentropy"), 'loss="binary_cross_entropy"'),
    "BCEWithLogitsLoss": 'loss="binary_cross_entropy", of a last layer without activation',
    **dict.fromkeys(("CosineAnnealingLR", "CosineDecay"), "clnn.Cosine"),
    "OneCycleLR": "clnn.OneCycle",
    "StepLR": "clnn.StepDecay",
    "ReduceLROnPlateau": "clnn.ReduceOnPlateau",
    "ModelCheckpoint": "clnn.Checkpoint",
    "CSVLogger": "clnn.CSVLog",
    "LearningRateScheduler": "clnn.LearningRate",
    "LambdaCallback": "clnn.Lambda",
    "manual_seed": "clnn.seed",
    **dict.fromkeys(("array", "asarray", "from_numpy"), "clnn.tensor"),
    **dict.fromkeys(("cat", "concat"), "clnn.concatenate"),
    **dict.fromkeys(("matmul", "dot", "mm"), "a @ b"),
    "DataLoader": "fit itself, which shuffles and makes mini-batches, or clnn.data.Batches",
    "optimizers": "clnn.optim",
    "jit": "clnn.step",
    "save": "net.save(path)",
    "load_model": "clnn.load",
    "models": "clnn itself: clnn.Sequential, clnn.Model, clnn.load",
    **dict.fromkeys(("utils", "datasets", "to_categorical"), "clnn.data (losses take class numbers as they are)"),
    "initializers": 'an argument of layers: weight_init="he_normal"',
    "regularizers": "an argument of optimizers: weight_decay (L2) or l1",
    **dict.fromkeys(("RandomFlip", "RandomCrop", "RandomRotation", "RandomZoom"), "a function of clnn.data.augment"),
    **dict.fromkeys(("Rescaling", "Normalization"), "NumPy's, before fit: x / 255, (x - x.mean(0)) / x.std(0)"),
    **dict.fromkeys(("cuda", "is_available"), 'clnn.use("gpu"), and clnn.devices() says what there is'),
    "functional": "clnn itself: clnn.relu, clnn.softmax, ...",
    "LeakyReLU": 'clnn.Activation("leaky_relu")',
    "randn": "clnn.tensor(numpy.random.randn(...))",
}
# Methods of models
METHODS: dict[str, str] = {
    "compile": "give loss=, optimizer= and metrics= to fit",
    "add": "give Sequential all layers in one list",
    "train_on_batch": "write a step: @clnn.step, loss.backward(), optimizer.step(net.parameters())",
    "fit_generator": "give fit arrays, or call a @clnn.step for each batch",
    "save_weights": "net.save(path), or safetensors of net.state_dict()",
    "load_weights": "clnn.load(path), or net.load_state_dict(arrays)",
    "cuda": 'net.to("gpu")',
    "cpu": 'net.to("cpu")',
    "modules": "net.layers_inside()",
    "children": "net.layers",
    **dict.fromkeys(("count_params", "input_shape", "output_shape"), "net.summary() says it"),
    "get_weights": "net.state_dict()",
    "set_weights": "net.load_state_dict(dict(zip(net.state_dict(), arrays)))",
    **dict.fromkeys(("weights", "trainable_weights", "trainable_variables"), "net.parameters()"),
    "get_layer": "net.layers[0], or {layer.name: layer for layer in net.layers}[name]",
    "export": "clnn.onnx.save(net, path)",
    "load": "clnn.load(path)",
    "half": "clnn computes in float32 and float64",
}
# Methods and attributes of tensors; functions.py adds its own, as t.exp() is clnn.exp(t)
OF_TENSORS: dict[str, str] = {
    **dict.fromkeys(("view", "flatten", "ravel"), "t.reshape(...), t.reshape(-1)"),
    **dict.fromkeys(("permute", "swapaxes", "t"), "t.transpose(...)"),
    **dict.fromkeys(("copy", "clone"), "copy.copy(t)"),
    **dict.fromkeys(("float", "double", "int", "long"), "t.astype(...)"),
    **dict.fromkeys(("dot", "matmul", "mm"), "a @ b"),
    "unsqueeze": "clnn.expand_dims(t, axis)",
    "clamp": "clnn.clip(t, low, high)",
    "any": "t.max()",
    "all": "t.min()",
    "cpu": "t.numpy()",
    "tolist": "t.numpy().tolist()",
    "data": "t.numpy(), or t.detach()",
    "grad": "of parameters, as clnn.tensor(value, requires_grad=True) makes them",
}
# Losses, metrics and initialisers by the names that they are given by
VALUES = {
    **dict.fromkeys(("categorical_crossentropy", "sparse_categorical_crossentropy"), "cross_entropy"),
    "nll": "log_likelihood",
    **dict.fromkeys(("bce", "bce_with_logits"), "binary_cross_entropy"),
    **dict.fromkeys(("mean_squared_error", "squared_error"), "mse"),
    **dict.fromkeys(("mean_absolute_error", "l1"), "mae"),
    "kl_div": "kl_divergence",
    **dict.fromkeys(("acc", "categorical_accuracy", "sparse_categorical_accuracy"), "accuracy"),
    **{f"xavier_{kind}": f"glorot_{kind}" for kind in ("uniform", "normal")},
    **{f"kaiming_{kind}": f"he_{kind}" for kind in ("uniform", "normal")},
}
PAGE = 'see "Coming from Keras or PyTorch" in clnn/README.md'


def check_call(kind: Any, given: tuple[Any, ...], options: dict[str, Any]) -> None:
    """ArgumentError where a constructor of clnn's is called with what it does not take, or without what it needs; and for any
    class without one, of which Python would drop what it is given."""
    if kind.__init__ is object.__init__:
        raise ArgumentError(f"{kind.__name__} takes no arguments, and {[*given, *options]} were given")
    if known := arguments(kind):
        first = given[0] if given and "lr" in known else None  # Adam(net.parameters()), Adam(net)
        of_list = isinstance(first, list) and any(hasattr(p, "requires_grad") for p in first)
        if hasattr(first, "parameters") or of_list:
            options = {"params": first}
        check_arguments(kind, options)
        bind(kind.__name__, kind.__init__, (kind, *given), options)


def bind(name: str, function: Callable[..., Any], given: tuple[Any, ...], options: dict[str, Any]) -> None:
    """ArgumentError, with this name, where the function cannot be called like this."""
    try:
        inspect.signature(function).bind(*given, **options)
    except ValueError:  # of some that are written in C
        return
    except TypeError as error:
        raise ArgumentError(f"{name}: {error}") from None


def check_arguments(kind: Any, options: dict[str, Any]) -> None:
    """ArgumentError for an option that a class of clnn's does not take, with the name it has here."""
    if known := arguments(kind):
        refuse_unknown(kind.__name__, known, options)


def refuse_unknown(who: str, known: Collection[str], options: dict[str, Any]) -> None:
    """ArgumentError for an option that is none of the known ones, with the name it has here."""
    wrong = next((name for name in options if name not in known), None)
    if wrong is None:
        return
    told = ARGUMENTS.get(wrong, ())
    for meant in (told,) if isinstance(told, str) else told:
        if " " in meant:
            raise ArgumentError(f"{who} takes no {wrong}: {meant}; {PAGE}")
        if meant in known:
            raise ArgumentError(f"{who} takes {meant}, not {wrong}; {PAGE}")
    close = difflib.get_close_matches(wrong, known, 1)
    raise ArgumentError(
        f"{who} takes no {wrong}{f', perhaps {close[0]}' if close else ''}; it takes {', '.join(sorted(known))}"
    )


def check_called(one: Any, base: Any) -> None:
    """ConfigurationError where a callback's method cannot be called as `base` has it. In Keras it takes (epoch, logs), and would
    take the model for the epoch."""
    for name in [name for name in vars(base) if name.startswith("on_")]:
        wanted = list(inspect.signature(getattr(base, name)).parameters)[1:]
        try:
            taken = inspect.signature(getattr(one, name))
            first = next(iter(taken.bind(*wanted).arguments), "")
        except ValueError:  # of some that are written in C
            continue
        except TypeError:
            first = ""
        if first in ("", "epoch", "batch", "logs"):
            told = f"takes {taken}, and fit calls it with ({', '.join(wanted)})"
            raise ConfigurationError(f"{type(one).__name__}.{name} {told}")


def check_order(what: str, function: Any) -> Any:
    """The function, a loss or a metric. ConfigurationError where it takes (y_true, y_pred), Keras' order."""
    try:
        names = list(inspect.signature(function).parameters)
    except (TypeError, ValueError):  # of some that are written in C
        return function
    if names and names[0] in ("y_true", "target", "targets", "label", "labels"):
        told = f"and takes ({', '.join(names)}): turn them round, def {what}(output, {names[0]})"
        raise ConfigurationError(f"a {what} of your own is called with (output, target), {told}; {PAGE}")
    bind(f"a {what} of your own is called with (output, target)", function, (None, None), {})
    return function


def unknown(what: str, given: Any, known: Collection[str], rest: str = "") -> str:
    """What to say of a loss, an activation, ... that is not known: all that there are, and the one that is meant."""
    name = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", given if isinstance(given, str) else getattr(given, "__name__", ""))
    name = name.lower().removesuffix("_").removesuffix("loss").removesuffix("_")
    close = [VALUES[name]] if VALUES.get(name) in known else difflib.get_close_matches(name, known, 1)
    hint = f"; {close[0]!r} may be meant" if close else ""
    if isinstance(given, int):  # Dense(784, 100)
        hint = "; sizes of inputs are found: a layer is told its output's alone"
    return f"there is no {what} {shorten(repr(given), 90)}; the known ones are {', '.join(known)}{rest}{hint}"


def of_tensor(name: str) -> str:
    """What to say of a method that tensors do not have, or nothing."""
    return f": that is {OF_TENSORS[name]}; {PAGE}" if name in OF_TENSORS else ""


def meant_by(name: str, known: Any, methods: Any) -> str:
    """What to say of a name that the package does not have, or nothing; `methods`: a class that may have it as one."""
    if name in NAMES:
        return f": that is {NAMES[name]}; {PAGE}"
    stem, axes = (name[:-2], name[-2]) if name[-2:].lower() in ("1d", "2d", "3d") else (name, "")
    if axes:  # Conv2d, MaxPooling2D, BatchNorm2d
        one = f"clnn.Conv{axes}DTranspose" if stem == "ConvTranspose" else NAMES.get(stem, f"clnn.{stem}")
        if own := next((own for own in (f"{one}{axes}D", one) if own.removeprefix("clnn.") in known), ""):
            return f": that is {own}; {PAGE}"
    if callable(getattr(methods, name, None)) and not name.startswith("_"):
        return f": that is t.{name}(), of a tensor"
    close = difflib.get_close_matches(name, known, 1)
    return f": did you mean clnn.{close[0]}?" if close else ""
