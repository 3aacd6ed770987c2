"""What Keras and PyTorch call things that clnn has under another name: where one of these names is used, the error says so."""

from __future__ import annotations

import difflib
import functools
import inspect
import re
import sys
from collections.abc import Callable, Collection, Iterable, Sequence
from textwrap import shorten
from types import FunctionType, ModuleType
from typing import TYPE_CHECKING, Any, TypeVar

from .checks import OfConstructor, arguments, check_flag
from .errors import ArgumentError, ConfigurationError

F = TypeVar("F", bound=Callable[..., Any])
_FOUND = "leave it out: clnn finds it from the input"
_RATE = 'give it to the optimizer: optimizer=clnn.SGD(lr), in place of "sgd"'
# Arguments: those that are called otherwise here, each with its name here
_RENAMED = (
    "strides stride, dilation_rate dilation, num_groups groups, scale_factor factor, target_shape shape, "
    "kernel_constraint max_norm, nonlinearity activation, hidden_size units, eps epsilon, p rate, "
    "dim_feedforward hidden, num_embeddings tokens, padding_idx padding, rho alpha, clipvalue clip_value, "
    "restore_best_weights restore_best, save_best_only best_only, save_freq every, filename path, "
    "histogram_freq histograms, write_graph graph, schedule function, verbose progress, initial_epoch resume, "
    "batch batch_size, keepdim keepdims, min low, max high, a_min low, a_max high, min_value low, max_value high, "
    "num_classes classes, n_jobs workers, bias_initializer bias_init, recurrent_initializer recurrent_init, "
    "filters channels, out_channels channels, clipnorm clip_norm, global_clipnorm clip_norm, nb_epoch epochs, "
    "num_epochs epochs, criterion loss, cost loss, num_heads heads, nhead heads, beta_1 beta1, beta_2 beta2, "
    "is_causal causal, use_causal_mask causal, opset_version opset, size shape, max_new_tokens n, max_length n, to_file path"
)
# Those, and more of layers, losses, optimizers, callbacks, functions and fit: the first that is taken is meant, or what to do
ARGUMENTS: dict[str, tuple[str, ...] | str] = {
    **{there: (here,) for there, here in map(str.split, _RENAMED.split(", "))},
    **dict.fromkeys(("units", "out_features", "pool_size", "embedding_dim", "output_dim", "image_size"), ("size",)),
    **dict.fromkeys(("in_features", "in_channels", "num_features", "num_channels", "input_size"), _FOUND),
    "normalized_shape": ("axis",),
    "kernel_size": ("kernel", "size"),
    **dict.fromkeys(("use_bias", "bias"), ("bias", "use_bias")),
    **dict.fromkeys(("kernel_initializer", "embeddings_initializer"), ("weight_init",)),
    **dict.fromkeys(("kernel_regularizer", "bias_regularizer"), "give the optimizer weight_decay (L2) or l1"),
    **dict.fromkeys(("lmbda", "lambda_"), "give the optimizer weight_decay, which is the book's lmbda / len(x)"),
    "num_layers": "put several layers into a Sequential", "batch_first": "leave it out: clnn takes (batch, time, features)",
    "bidirectional": "write clnn.Bidirectional(layer)",
    **dict.fromkeys(("affine_transform", "elementwise_affine", "center", "scale"), ("affine",)),
    "track_running_stats": "leave it out: running statistics are always kept",
    **dict.fromkeys(("embed_dim", "d_model", "key_dim"), _FOUND),
    "input_dim": ("tokens", "give input_shape to Sequential"),
    "from_logits": "leave it out: clnn sees whether the last layer has a softmax or a sigmoid",
    **dict.fromkeys(("learning_rate", "eta"), ("lr", _RATE)),
    "betas": "give beta1 and beta2", "amsgrad": "take clnn.AMSGrad", "use_ema": "give ema, such as ema=0.999",
    "params": "leave it out: fit and optimizer.step(net.parameters()) say what is trained",
    **dict.fromkeys(("filepath", "log_dir"), ("folder",)),
    **dict.fromkeys(("validation_data", "evaluation_data", "test_data"), ("validation",)),
    "validation_steps": "give as many batches, validation=list(itertools.islice(batches, 100))",
    **dict.fromkeys(("workers", "num_workers"), ("workers", "give clnn.data.Batches(x, y, workers=...) in place of x")),
    "dim": ("axis",), "lr": _RATE, "data_format": "clnn takes images as (channels, height, width)",
    "input_shape": "give it to Sequential: Sequential(layers, input_shape=...)",
    "trainable": "set layer.trainable = False", "name": "set layer.name",
    "dtype": "give it to Sequential, whose layers all have one type",
    "overwrite": "leave it out: a file is written whole, in place of one that is there",
    "prefix": "names are those in the model: {prefix + name: array for name, array in net.state_dict().items()}",
    "strict": "all names fit, or nothing is changed; give those that do, net.state_dict() | {name: array}",
    **dict.fromkeys(("ignore_index", "label_smoothing"), "make a loss with it: clnn.losses.CrossEntropy(ignore_index=-1)"),
    **dict.fromkeys(("retain_graph", "create_graph"), "compute the loss again, or add two before backward()"),
    "closure": "call loss.backward() before; clnn.LBFGS().minimize takes one",
    "device": 'write "with clnn.use(device):" around it, or net.to(device)',
    "custom_objects": "decorate classes of your own with @clnn.register",
    "recurse": "leave it out: those of layers inside are among them",
    "out": "leave it out: what comes back is new", "set_to_none": "leave it out: gradients are forgotten",
    **dict.fromkeys(("pin", "pin_memory", "non_blocking"), "leave it out: clnn finds the fastest way to the device"),
}  # fmt: skip
# Names of the package
_CALLED = (
    "LRN LocalResponseNorm, Upsample UpSampling, OneCycleLR OneCycle, StepLR StepDecay, ReduceLROnPlateau "
    "ReduceOnPlateau, ModelCheckpoint Checkpoint, CSVLogger CSVLog, LearningRateScheduler LearningRate, "
    "LambdaCallback Lambda, manual_seed seed, load_model load, BatchNormalization BatchNorm, jit step, "
    "LayerNormalization LayerNorm, GroupNormalization GroupNorm, RMSNormalization RMSNorm, ZeroPad Padding, "
    "ZeroPadding Padding, MaxPooling MaxPool, AveragePooling AvgPool, GlobalAveragePooling GlobalAvgPool, "
    "GlobalMaxPooling GlobalMaxPool, Dropout SpatialDropout, CosineAnnealingLR Cosine, CosineDecay Cosine, "
    "array tensor, asarray tensor, from_numpy tensor, cat concatenate, concat concatenate, optimizers optim, "
    "set_random_seed seed, PositionalEncoding SinusoidalPositions"
)
NAMES: dict[str, str] = {
    **{there: f"clnn.{here}" for there, here in map(str.split, _CALLED.split(", "))},
    **dict.fromkeys(("nn", "keras"), "clnn itself: clnn.Dense, clnn.Conv2D, ..."),
    "Module": "clnn.Model, or clnn.Layer for a part of one",
    "ReLU": 'clnn.Activation("relu"), or activation="relu" of the layer before',
    **{name: f'clnn.Activation("{name.lower()}")' for name in ("Softmax", "Sigmoid", "Tanh", "GELU", "ELU", "SELU")},
    **dict.fromkeys(("CrossEntropyLoss", "CategoricalCrossentropy"), 'loss="cross_entropy", clnn.losses.CrossEntropy'),
    "SparseCategoricalCrossentropy": 'loss="cross_entropy", which takes class numbers', "NLLLoss": 'loss="log_likelihood"',
    **dict.fromkeys(("MSELoss", "MeanSquaredError"), 'loss="mse"'), "L1Loss": 'loss="mae"',
    **dict.fromkeys(("BCELoss", "BinaryCrossentropy"), 'loss="binary_cross_entropy", the sum over outputs'),
    "BCEWithLogitsLoss": 'loss="binary_cross_entropy", the sum over outputs, of a last layer without activation',
    **dict.fromkeys(("matmul", "dot", "mm", "bmm"), "a @ b"),
    "DataLoader": "fit itself, which shuffles and makes mini-batches, or clnn.data.Batches", "save": "net.save(path)",
    "models": "clnn itself: clnn.Sequential, clnn.Model, clnn.load",
    **dict.fromkeys(("utils", "datasets", "to_categorical"), "clnn.data (losses take class numbers as they are)"),
    "initializers": 'an argument of layers: weight_init="he_normal"',
    "regularizers": "an argument of optimizers: weight_decay (L2) or l1",
    **dict.fromkeys(("RandomFlip", "RandomCrop", "RandomRotation", "RandomZoom"), "a function of clnn.data.augment"),
    **dict.fromkeys(("Rescaling", "Normalization"), "NumPy's, before fit: x / 255, (x - x.mean(0)) / x.std(0)"),
    **dict.fromkeys(("cuda", "is_available"), 'clnn.use("gpu"), and clnn.devices() says what there is'),
    "functional": "clnn itself: clnn.relu, clnn.softmax, ...",
    "lr_scheduler": "clnn.schedules, an optimizer's rate: clnn.Adam(clnn.Cosine(0.001))",
    "LeakyReLU": 'clnn.Activation("leaky_relu")', "Identity": 'clnn.Activation("linear")',
    **dict.fromkeys(("grad", "autograd", "GradientTape", "hessian"), "loss.backward(), p.grad; it goes once"),
    **dict.fromkeys(("randn", "rand", "randint", "randperm", "multinomial"), "NumPy's: clnn.tensor(rng.random((2, 3)))"),
    "RepeatVector": "clnn.repeat(x[:, None], n, axis=1)", "Permute": "x.transpose(0, 2, 1)",
    "ModuleList": "a list, in which layers are found", "clip_grad_norm": "an optimizer's: clnn.Adam(clip_norm=1.0)",
    "LambdaLR": "a function of the step: clnn.SGD(lambda step: 0.1)", "TripletMarginLoss": "clnn.losses.triplet(a, p, n)",
    "RNN": "clnn.SimpleRNN, clnn.LSTM, clnn.GRU", **dict.fromkeys(("amp", "mixed_precision"), 'Sequential(storage="float16")'),
    **dict.fromkeys(("pad_sequences", "pack_padded_sequence"), "clnn.LSTM(8)(x, lengths), or clnn.Masking, which passes over it"),
}  # fmt: skip
# Methods and attributes of models and layers
OF_LAYERS: dict[str, str] = {
    "compile": "give loss=, optimizer= and metrics= to fit",
    **dict.fromkeys(("add", "append", "extend", "insert", "pop"), "give Sequential all layers in one list, [*net.layers, layer]"),
    "train_on_batch": "write a step: @clnn.step, loss.backward(), optimizer.step(net.parameters())",
    "fit_generator": "give fit arrays, or call a @clnn.step for each batch",
    "save_weights": "net.save(path), or safetensors of net.state_dict()",
    "load_weights": "clnn.load(path), or net.load_state_dict(arrays)",
    **{name: f'net.to("{kind}")' for name, kind in (("cuda", "gpu"), ("cpu", "cpu"))},
    **dict.fromkeys(("modules", "named_modules", "apply"), "net.layers_inside()"), "children": "net.layers",
    **dict.fromkeys(("count_params", "input_shape", "output_shape"), "net.summary() says it"),
    "get_weights": "net.state_dict()", "set_weights": "net.load_state_dict(dict(zip(net.state_dict(), arrays)))",
    **dict.fromkeys(("weights", "variables", "trainable_weights", "trainable_variables"), "net.parameters()"),
    **dict.fromkeys(("weight", "kernel", "embeddings"), "layer.w; of layers with several matrices layer.parameters()"),
    **dict.fromkeys(("add_weight", "register_buffer"), "layer.parameter(shape), in build(); learns=False for a buffer"),
    **dict.fromkeys(("requires_grad_", "freeze"), "layer.trainable = False"),
    "backward": "of the loss: clnn.losses.mse(net(x), y).backward()", "history": "what fit returns",
    "predict_on_batch": "net.predict(x), or net.compiled(batch_size)", "load": "clnn.load(path)", "reset_state": "reset_states()",
    "get_layer": "net.layers[0], or {layer.name: layer for layer in net.layers}[name]", "export": "clnn.onnx.save(net, path)",
    **dict.fromkeys(("half", "float", "double"), "give dtype to Sequential: clnn computes in float32 and float64"),
}  # fmt: skip
_NEW = "a new one: t = t + 1; values go into parameters by net.load_state_dict({**net.state_dict(), name: array})"
# Methods and attributes of tensors; functions.py adds its own, as t.exp() is clnn.exp(t)
OF_TENSORS: dict[str, str] = {
    **dict.fromkeys(("view", "flatten", "ravel"), "t.reshape(...), t.reshape(-1)"),
    **dict.fromkeys(("permute", "swapaxes", "t"), "t.transpose(...)"), **dict.fromkeys(("copy", "clone"), "copy.copy(t)"),
    **dict.fromkeys(("float", "double", "int", "long"), "t.astype(...)"), **dict.fromkeys(("dot", "matmul", "mm"), "a @ b"),
    "unsqueeze": "clnn.expand_dims(t, axis)", **dict.fromkeys(("dim", "numel"), "t.ndim, t.size"),
    "expand": "t.broadcast_to(shape)", "contiguous": "t itself: tensors always are", "norm": "clnn.sqrt((t * t).sum())",
    **dict.fromkeys(("add_", "sub_", "mul_", "div_", "copy_", "zero_", "fill_", "assign", "assign_sub"), _NEW),
    "clamp": "clnn.clip(t, low, high)", "any": "t.max()", "all": "t.min()", "cpu": "t.numpy()", "tolist": "t.numpy().tolist()",
    "data": "t.numpy(), or t.detach()", "cuda": 't.to("gpu"), or clnn.use("gpu") around it',
    **dict.fromkeys(("grad", "requires_grad_"), "of parameters, as clnn.tensor(value, requires_grad=True) makes them"),
}  # fmt: skip
# Losses, metrics and initialisers by the names that they are given by
_VALUES = (
    "categorical_crossentropy cross_entropy, sparse_categorical_crossentropy cross_entropy, nll log_likelihood, "
    "bce binary_cross_entropy, bce_with_logits binary_cross_entropy, mean_squared_error mse, squared_error mse, "
    "mean_absolute_error mae, l1 mae, kl_div kl_divergence, acc accuracy, categorical_accuracy accuracy, "
    "sparse_categorical_accuracy accuracy, xavier_uniform glorot_uniform, xavier_normal glorot_normal, "
    "kaiming_uniform he_uniform, kaiming_normal he_normal"
)
VALUES: dict[str, str] = dict(map(str.split, _VALUES.split(", ")))  # type: ignore[arg-type]
# Methods and attributes by the name of their class, or of one that it is derived from
OF: dict[str, dict[str, str]] = {
    "Layer": OF_LAYERS, "Tensor": OF_TENSORS,
    "Optimizer": {
        "param_groups": "optimizer.lr = 0.01 sets the rate, p.rate_factor = 0.1 that of a parameter",
        "state": "optimizer.state_dict()", "iterations": "optimizer.steps",
        **dict.fromkeys(("apply_gradients", "minimize"), "loss.backward(); optimizer.step(net.parameters())"),
    },
    "Schedule": dict.fromkeys(("step", "get_last_lr"), "it is an optimizer's rate and goes by its steps: clnn.Adam(schedule)"),
    "Callback": dict.fromkeys(("model", "params", "set_model", "set_params"), "each method is given the model"),
    "Loss": {"backward": "of what it returns: loss(output, target).backward()"},
}  # fmt: skip
MISSING = {
    "loss": 'such as loss="cross_entropy"', "optimizer": 'such as optimizer="adam"', "layers": "a list of layers",
    "models": "a list of models", "x": "an array, for fit one of samples (n, ...)", "n": "how many to write, such as n=100",
    "closure": "a function that gives the loss, lambda: loss(net(x), y)", "parameters": "net.parameters()",
    "shape": "an integer or a tuple of them", "lr": "the rate, such as 0.001", "model": "a model or a layer that is built",
    "train": "(x, y) to train on", "validation": "(x, y) to compare by", "target": "what the outputs should be",
    "Parameter": "an array becomes one by clnn.tensor(value, requires_grad=True), in a layer by self.parameter(shape)",
}  # fmt: skip
PAGE = 'see "Coming from Keras or PyTorch" in clnn/README.md'


class Read:
    """What says, where an attribute is read by the name that it has elsewhere, what that is here."""

    __slots__ = ()
    if not TYPE_CHECKING:  # which would take it for a promise of any name

        def __getattr__(self, name: str) -> Any:
            if name[0] != "_":  # for which Python and NumPy look
                told = [kind[name] for base in type(self).__mro__ if name in (kind := OF.get(base.__name__, {}))]
                told += [f"that is .{one}" for one in ARGUMENTS.get(name, ()) if one in getattr(self, "__dict__", ())]
                if told and not hasattr(type(self), name):
                    raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}: {told[0]}; {PAGE}")
            return object.__getattribute__(self, name)  # Python's own error, or that of a property


class Called(Read):
    """What says so, too, where its constructor is called with such names."""

    __slots__ = ()
    __signature__ = OfConstructor()

    def __new__(cls, *given: Any, **options: Any) -> Any:
        if given or options:
            check_call(cls, given, options)
        return super().__new__(cls)


def by_names(function: F) -> F:
    """The function, which says of an argument of another name what it is called here, and of a flag if it is none."""
    name = function.__qualname__.removesuffix(".__call__").rpartition(".")[2]  # of a loss that is called its class's
    taken = [*inspect.signature(function).parameters.values()]
    stars = {p.name: "*" if p.kind is p.VAR_POSITIONAL else "" for p in taken}
    known = {stars[p.name] + p.name: getattr(p.annotation, "__name__", p.annotation) for p in taken}
    placed = len([p for p in taken if p.kind is p.POSITIONAL_OR_KEYWORD])
    rest = any(p.kind is p.VAR_KEYWORD for p in taken)
    flag = [*known.values(), "bool"].index("bool")  # where the first is

    @functools.wraps(function)
    def call(*given: Any, **options: Any) -> Any:
        if options or len(given) > flag:
            refuse_unknown(name, known, options, given[:placed], rest)
        try:
            return function(*given, **options)
        except TypeError:
            bind(name, function, given, options)
            raise

    vars(call)["told"] = True
    return call  # type: ignore[return-value]


def tell(room: Any, names: Iterable[str] = ()) -> None:
    """Have the public functions of a module, or methods of a class, say it (`by_names`). A module's stand where they are defined,
    too, where pickles find them."""
    own = [n for n, f in vars(room).items() if n[0] != "_" and getattr(f, "__module__", "") == room.__name__]
    for name in names or getattr(room, "__all__", own):
        function = vars(room).get(name)
        if isinstance(function, FunctionType) and "told" not in vars(function):
            setattr(room, name, by_names(function))
            if isinstance(room, ModuleType):
                setattr(sys.modules[function.__module__], function.__name__, getattr(room, name))


def check_call(kind: Any, given: tuple[Any, ...], options: dict[str, Any]) -> None:
    """ArgumentError where a constructor of clnn's is called with what it does not take, or without what it needs; and for any
    class without one, of which Python would drop what it is given."""
    if kind.__init__ is object.__init__:
        raise ArgumentError(f"{kind.__name__} takes no arguments, and {[*given, *options]} were given")
    if known := arguments(kind):
        first = given[0] if given and "lr" in known else None  # Adam(net), or of its parameters, in groups too
        listed = isinstance(first, list) and all(isinstance(p, dict) or hasattr(p, "requires_grad") for p in first)
        if hasattr(first, "parameters") or hasattr(first, "__next__") or listed:
            options = {"params": first}
        refuse_unknown(kind.__name__, known, options, given[: kind.__init__.__code__.co_argcount - 1])
        bind(kind.__name__, kind.__init__, (kind, *given), options)


def bind(name: str, function: Callable[..., Any], given: tuple[Any, ...], options: dict[str, Any]) -> None:
    """ArgumentError, with this name, where the function cannot be called like this."""
    try:
        inspect.signature(function).bind(*given, **options)
    except ValueError:  # of some that are written in C
        return
    except TypeError as error:
        said = str(error)
        told = [one for one in MISSING if "missing" in said and f"{one!r}" in said]
        told = [MISSING[one] for one in ([name] if name in MISSING else told)]
        raise ArgumentError(f"{name}: {'; '.join([said, *told])}") from None


def refuse_unknown(
    who: str, known: Collection[str], options: dict[str, Any], given: Sequence[Any] = (), rest: bool = False
) -> None:
    """ArgumentError for an option that is none of the known ones, with the name it has here, unless it is for the `rest`. Where
    `known` has annotations, a ConfigurationError for what is said to be True or False and is neither, such as "no"; `given` are
    the first of them."""
    for name, value in {**dict(zip(known, given)), **options}.items():
        if isinstance(known, dict) and known.get(name) == "bool":
            check_flag(f"{who}'s {name}", value)
    wrong = next((name for name in options if name not in known), None)
    if wrong is None or rest:
        return
    if f"*{wrong}" in known:
        raise ArgumentError(f"{who} takes {wrong} without its name: {who}({repr(options[wrong]).strip('()[]')})")
    told = ARGUMENTS.get(wrong, ())
    for meant in (told,) if isinstance(told, str) else told:
        if " " in meant:
            raise ArgumentError(f"{who} takes no {wrong}: {meant}; {PAGE}")
        if meant in known:
            raise ArgumentError(f"{who} takes {meant}, not {wrong}; {PAGE}")
    close = difflib.get_close_matches(wrong, known, 1)
    taken = ", ".join(sorted({*known} - {"self", "model"})) or "none"
    raise ArgumentError(f"{who} takes no {wrong}{f', perhaps {close[0]}' if close else ''}; it takes {taken}")


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


def missing(room: str, own: Any, known: Any, methods: Any, name: str) -> Any:
    """AttributeError for a name that a module does not have; `own`: those that it has, `known`: those of the package."""
    told = "" if name[0] == "_" else meant_by(room, [one for one in own if one[0] != "_"], known, methods, name)
    raise AttributeError(f"module {room!r} has no attribute {name!r}{told}")


def meant_by(room: str, own: Any, known: Any, methods: Any, name: str) -> str:
    """What to say of it, or nothing; `methods`: a class that may have it as one."""
    if own is not known and (name in known or VALUES.get(name) in own):
        return f": that is {f'clnn.{name}' if name in known else f'{room}.{VALUES[name]}'}"
    if (plain := name.removesuffix("_")) in NAMES:
        return f": that is {NAMES[plain]}; {PAGE}"
    stem, axes = (name[:-2], name[-2]) if name[-2:].lower() in ("1d", "2d", "3d") else (name, "")
    if axes:  # Conv2d, MaxPooling2D, BatchNorm2d
        one = f"clnn.Conv{axes}DTranspose" if stem == "ConvTranspose" else NAMES.get(stem, f"clnn.{stem}")
        if own := next((own for own in (f"{one}{axes}D", one) if own.removeprefix("clnn.") in known), ""):
            return f": that is {own}; {PAGE}"
    if callable(getattr(methods, name, None)) and not name.startswith("_"):
        return f": that is t.{name}(), of a tensor"
    close = [f"{room}.{one}" for one in difflib.get_close_matches(name, own, 1)]
    close += [f"clnn.{one}" for one in difflib.get_close_matches(name, known, 1)]
    return f": did you mean {close[0]}?" if close else ""
