"""`Model`: a layer that is trained, evaluated and saved; `Sequential`: layers one after the other."""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from . import checkpoint, generation, losses, notebook, optim, schedules, train
from .checks import whole, whole_numbers
from .errors import CheckpointError, ConfigurationError, OutOfDeviceMemory, ShapeError, warn
from .foreign import by_names, tell
from .graph import Graph, told_of_parameters, traced
from .layers.base import REGISTRY, Layer, first_pass, for_shapes, name_layers, register, through
from .losses import YES_ABOVE_0, find_loss
from .ops.loss import yes_above
from .ops.random import Generator
from .optim import Optimizer
from .parameters import consolidate, count
from .random import drawing_from
from .runtime.device import Device
from .runtime.devices.choice import device, resolve
from .runtime.lock import exclusive
from .runtime.watching.watch import structure_changed
from .storage import storage_named, storing
from .tape import no_grad
from .tensor import Parameter, Tensor, constant, refuse_averaged, tensor
from .train.compiled import Compiled

_fit, _evaluate = by_names(train.fit), by_names(train.evaluate)


@register
class Model(Layer):
    """A layer with `fit`, `evaluate`, `predict`, `save`. Derive from it as from `Layer`, and write `forward`; or give it inputs,
    which `clnn.Input` makes, and outputs, which layers make of them: each one, a tuple, or a dict by names.

        a, b = clnn.Input((8,)), clnn.Input((3,))
        both = clnn.Concatenate()(clnn.Dense(16, "relu")(a), b)
        net = clnn.Model((a, b), {"price": clnn.Dense(1)(both), "kind": clnn.Dense(5)(both)})

    A layer that is called twice has the same weights at both places. Weights are drawn as layers are called, so `clnn.seed` comes
    before that. `graph` is what a file has instead. ConfigurationError for
    inputs that are missing or that no output depends on.
    """

    loss: Any = None  # the last fit's
    optimizer: Optimizer | None = None
    graph: Graph | None = None
    _storage = "float32"
    _numbered = False  # whether parameters are named by the numbers of layers

    def __init__(
        self, inputs: Any = None, outputs: Any = None, *, graph: Graph | None = None, storage: str = "float32"
    ) -> None:
        if inputs is None and outputs is None and graph is None:
            self.storage = storage
            return  # a class of one's own, with a forward()
        fresh = graph is None
        graph = traced(inputs, outputs) if graph is None else graph
        self.layers, self.graph = graph.layers, graph  # its layers have the names that Sequential's have
        self._numbered = True
        name_layers(self.layers)
        if fresh:
            self._device, self.dtype = self.layers[0].device, self.layers[0].dtype
            self.graph.place(self._device, self.dtype)
            # masks come with tensors
            first_pass(self.graph, self.graph.inputs.values(), lambda _: None, self.graph.forward)
            self.ensure_built(*[tuple(shape) for shape, _ in self.graph.inputs.values()])
            consolidate(self.parameters())
        self.storage = storage

    @property
    def storage(self) -> str:
        """The type in which a forward pass keeps what the backward pass reads, "float32" or "float16"; see clnn/storage.py."""
        return self._storage

    @storage.setter
    def storage(self, name: str) -> None:
        if storage_named(name, self.dtype) == "float16" and not self._numbered:
            raise ConfigurationError(
                "storage='float16' is for Sequential and Model(inputs, outputs), which know when each value is read last: "
                "have your forward() call Sequential([...], storage='float16') for layers that follow each other"
            )
        self._storage = name

    def forward(self, *inputs: Any) -> Any:
        if self.graph is None:
            return super().forward(*inputs)
        if self.layers is not self.graph.layers:
            raise ConfigurationError("a graph's layers are replaced one by one, as in net.layers[0] = clnn.Dense(8)")
        with storing(self._storage):
            return self.graph.run(inputs)

    def config(self) -> dict[str, Any]:
        return {} if self.graph is None else {"graph": self.graph} | self._stored()

    def _stored(self) -> dict[str, Any]:
        return {} if self._storage == "float32" else {"storage": self._storage}

    def input_names(self) -> dict[str, bool] | None:
        return super().input_names() if self.graph is None else dict.fromkeys(self.graph.inputs, True)

    def takes_whole(self, i: int) -> bool:
        return super().takes_whole(i) if self.graph is None else self.graph.takes_whole(i)

    def check_whole(self, i: int, array: np.ndarray, name: str) -> None:
        super().check_whole(i, array, name)
        if self.graph is not None:
            self.graph.check_whole(i, array, name)

    def named_parameters(self, prefix: str = "") -> Any:
        for name, p in super().named_parameters(prefix):
            yield (name.removeprefix("layers.") if self._numbered and not prefix else name), p

    def summary(self) -> str:
        """A table of layers, output shapes, parameters, and what each layer is called with, as text."""
        return _table(self, self._rows())

    def _rows(self) -> list[Sequence[str]]:
        """The summary's header and its rows."""
        if self.graph is None:
            raise ConfigurationError(
                "summary() is for Sequential and for Model(inputs, outputs): what a forward() of your own calls is not known"
            )
        return [("layer", "output shape", "parameters", "from"), *self.graph.rows()]

    def plot(self, path: Any = None) -> Any:
        """The network as a drawing, which notebooks show; saved to `path` if given, as SVG. See `clnn.looking.network`."""
        from .looking import network

        drawing = network(self)
        if path is not None:
            drawing.save(path)
        return drawing

    def _repr_html_(self) -> str:
        try:
            header, *rows = self._rows()
        except ConfigurationError:  # of a class of one's own, or not built
            return notebook.text(type(self).__name__, repr(self))
        return notebook.table(type(self).__name__, header, rows, total(self))

    def fit(self, x: Any, y: Any = None, **options: Any) -> train.History:
        return _fit(self, x, y, **options)

    def evaluate(self, x: Any, y: Any = None, **options: Any) -> dict[str, float]:
        return _evaluate(self, x, y, **options)

    def predict(self, x: Any, *, batch_size: int = train.EVALUATION_BATCH) -> Any:
        return train.predict(self, x, batch_size=batch_size)

    def generate(self, prompt: Any, n: int, **options: Any) -> np.ndarray:
        return generation.generate(self, prompt, n, **options)

    generate.__doc__, generate.__signature__ = generation.generate.__doc__, inspect.signature(generation.generate)  # type: ignore[attr-defined]
    fit.__doc__, evaluate.__doc__, predict.__doc__ = train.fit.__doc__, train.evaluate.__doc__, train.predict.__doc__
    fit.__signature__ = inspect.signature(train.fit)  # type: ignore[attr-defined]
    evaluate.__signature__ = inspect.signature(train.evaluate)  # type: ignore[attr-defined]
    predict.__signature__ = inspect.signature(train.predict)  # type: ignore[attr-defined]

    def predict_proba(self, x: Any, *, batch_size: int = train.EVALUATION_BATCH) -> np.ndarray:
        """Probabilities of the classes, or of yes: the outputs of a softmax or sigmoid as they are; others by what the loss
        of the last fit takes them for (softmax for cross_entropy, sigmoid for binary_cross_entropy)."""
        y = self._predict_one(x, batch_size)
        last, loss = train.made_by(self), getattr(self.loss, "name", "")
        if last in ("softmax", "sigmoid"):
            return y
        z = y.astype(np.float64)
        if last == "log_softmax":
            return np.exp(z).astype(y.dtype)
        if last in ("", "linear", "log") and loss in ("cross_entropy", "log_likelihood", "kl_divergence"):
            e = np.exp(z - z.max(-1, keepdims=True))
            return (e / e.sum(-1, keepdims=True)).astype(y.dtype)
        if last in ("", "linear") and loss == "binary_cross_entropy":
            return (0.5 * np.tanh(0.5 * z) + 0.5).astype(y.dtype)
        raise ConfigurationError(
            f"outputs of {last or 'an unknown activation'} trained with {loss or 'no loss yet'} are no probabilities; "
            "predict() gives them as they are"
        )

    def predict_classes(self, x: Any, *, batch_size: int = train.EVALUATION_BATCH) -> np.ndarray:
        """Class numbers (int32): the largest output; of one output 1 for yes: where it exceeds 1/2 if it is a sigmoid's, or 0
        if it was trained as a sigmoid's input (binary_cross_entropy) or by a hinge loss, or not trained and not a sigmoid's."""
        y = self._predict_one(x, batch_size)
        if y.ndim < 2:
            raise ShapeError(f"outputs of shape {y.shape} name no classes")
        if y.shape[-1] == 1:
            last, loss = train.made_by(self), self.loss and getattr(self.loss, "name", "a loss of your own")
            if last != "sigmoid" and loss not in ((None, *YES_ABOVE_0) if last else YES_ABOVE_0):
                raise ConfigurationError(
                    f"one output of {last or 'an unknown activation'}, trained with {loss or 'no loss yet'}, may say yes "
                    "above 0 or above 1/2; compare it yourself: net.predict(x)[..., 0] > 0.5"
                )
            return (y[..., 0] > yes_above(last)).astype(np.int32)
        return y.argmax(-1).astype(np.int32)

    def _predict_one(self, x: Any, batch_size: int) -> np.ndarray:
        y = self.predict(x, batch_size=batch_size)
        if not isinstance(y, np.ndarray):
            names = ", ".join(y if isinstance(y, dict) else map(str, range(len(y))))
            raise ConfigurationError(
                f"classes and probabilities are of one output, and this model has several: take one of predict(x), by {names}"
            )
        return y

    def compiled(self, batch_size: int = 1, weights: str = "float32") -> Compiled:
        """A function `f` for servers: `y = f(x)` is `predict` for batches of one size, with nothing but the launches in between.

        It takes an array for each input, (batch_size, ...), and returns new arrays as `predict` does: one, a tuple, or a dict.
        Shapes and types are looked at, values of floats are not (predict refuses NaN). On a CPU the launches become one kernel,
        which is compiled here, and arrays go through memory that the device shares. Weights that change are seen; where layers
        or their attributes have changed, or the model has moved, the next call records anew. Threads may share it. ShapeError
        for another shape, ConfigurationError where the model is not built.

        With `weights="float16"` matrices of 65,536 weights or more are read from a copy in halves by products of up to 8 rows, in
        about half of the time. Each weight is rounded to 11 bits, and sums are of float32; the model stays as it is, and copies
        follow it. ConfigurationError for weights beyond 65,504, for a model of float64, and where no product is such a one.
        """
        return Compiled(self, batch_size, weights)

    def to(self, device: str | Device) -> Model:
        """Move the parameters to another device, by way of the host. Recordings are made anew; optimizers go on, with what they
        keep of the parameters."""
        where = resolve(device)
        where.real(self.dtype)
        refuse_averaged(parameters := self.parameters(), "to()")
        blocks = [where.memory.allocate(p.nbytes) for p in parameters]
        for p, block in zip(parameters, blocks):
            where.upload(p.numpy(), block)
        self.__dict__.pop("_evaluations", None)
        structure_changed()  # before anything moves: Ctrl-C after that leaves no recording unlooked at
        for p, block in zip(parameters, blocks):  # none moves before all have found room
            p.device, p.memory, p.store, p._grad, p._last = where, block, None, None, ""
        for layer in self.layers_inside():
            layer._device = where
        for stateful in self.stateful_layers():
            stateful.carried = [constant(one.numpy(), one.dtype, where) for one in stateful.carried]
        consolidate(parameters)
        return self

    # -- files --------------------------------------------------------------------------------------------------------
    @exclusive("device.lock")
    def save(self, path: str | Path, *, optimizer: Any = "last") -> None:
        """Write architecture, parameters, loss and the optimizer's state to one file, whole or not at all.

        The optimizer is that of the last fit. One that stepped in a loop of your own is given, `net.save(path, optimizer=opt)`:
        without it a CheckpointWarning says that the file goes without. None leaves it out. ConfigurationError for one that has
        not stepped this model.
        A loss, an optimizer or a schedule of your own comes along if it is registered (`clnn.register`); else a
        CheckpointWarning says that the file goes without it. Metrics belong to calls, and are given to each.
        `clnn.load(path)` gives the model back; `net.fit(..., optimizer=net.optimizer)` then goes on exactly.
        """
        one, mine = self.optimizer if optimizer == "last" else optimizer, self.parameters()
        if not isinstance(one, (Optimizer, type(None))):
            raise ConfigurationError(f"optimizer is an optimizer that stepped this model, or None, and not {one!r}")
        if optimizer == "last":
            if others := [type(other).__name__ for other in optim.stepping(mine) if other is not one]:
                warn(
                    f"the file goes without the state of {' and '.join(others)}, which stepped this model outside fit: "
                    "net.save(path, optimizer=optimizer) keeps it, optimizer=None says that it is not wanted",
                    checkpoint.CheckpointWarning,
                )
        elif one is not None and not one.has_met(mine):
            raise ConfigurationError(
                f"this {type(one).__name__} has not stepped this model, so that there is nothing of it to save"
            )
        self._write(path, {}, {}, one)

    def _write(
        self, path: str | Path, more: dict[str, np.ndarray], told: dict[str, Any], one: Optimizer | None = None
    ) -> None:
        """`save`, with further arrays and words of the header, and the state of one optimizer."""
        if not self.built or self._input_shapes is None:
            raise CheckpointError("the model is not built yet: give input_shape, or call it once, before saving")
        parameters = list(self.named_parameters())
        arrays = {f"parameter.{name}": p.numpy() for name, p in parameters}
        for name, array in arrays.items():
            if not np.isfinite(array).all():
                raise CheckpointError(
                    f"{name} holds values that are not finite, which load() would refuse; nothing was written"
                )
        header: dict[str, Any] = {"model": checkpoint.describe(self), "dtype": self.dtype.name}
        header |= {"input_shapes": self._input_shapes, "input_types": self._input_types}
        twin = _check_loadable(self, header)
        usual = {name: checkpoint.settings(p) for name, p in twin.named_parameters()} if twin else {}
        changed = {name: found for name, p in parameters if (found := checkpoint.settings(p)) != usual.get(name)}
        frozen = [name for name, p in parameters if p.learns and not p.trainable]
        header |= {"settings": changed or None, "frozen": frozen or None}
        if self.loss is not None:
            header["loss"] = _told_loss(self.loss)
        if one is not None and (one.parameters or one.steps):
            if callable(one.lr) and not schedules.is_known(one.lr):
                checkpoint.told("schedule", one.lr, None, schedules.find_rate)
            if described := checkpoint.told("optimizer", one, optim.describe(one), optim.find_optimizer):
                state = one.state_dict(parameters)
                arrays |= {f"optimizer.{key}": value for key, value in state.pop("arrays").items()}
                header["optimizer"] = {**described, **state}
        checkpoint.write(path, arrays | more, {k: v for k, v in (header | told).items() if v is not None})

    reads_mask = True  # its layers do
    _input_shapes: Any = None
    _input_types: Any = None  # where they are not the model's

    def __call__(self, *inputs: Any, **named: Any) -> Any:
        if not self.built:
            self._note_types([isinstance(x, Tensor) and x.dtype == np.int32 for x in inputs])
        return super().__call__(*inputs, **named)

    def _note_types(self, whole: list[bool]) -> None:
        whole = [one or self.takes_whole(i) for i, one in enumerate(whole)]
        self._input_types = ["int32" if one else self.dtype.name for one in whole] if any(whole) else None

    def ensure_built(self, *shapes: tuple[int, ...]) -> None:
        if not self.built:
            self._input_shapes = [list(shape) for shape in shapes]
            if self._input_types is None:
                self._note_types([False] * len(shapes))
        super().ensure_built(*shapes)


@register
class Sequential(Model):
    """Layers one after the other: `Sequential([Dense(100, "sigmoid"), Dense(10)], input_shape=64)`.

    `input_shape` is an int or a tuple, without the batch; without it the model is built at its first call. `seed` makes
    the first weights the same in every run. With `storage="float16"` training keeps activations as halves and computes with
    them as before (clnn/storage.py). ConfigurationError for another storage or dtype, or for halves of float64.
    """

    _numbered = True

    def __init__(
        self, layers: Sequence[Layer] = (), input_shape: int | Sequence[int] | None = None, dtype: Any = "float32",
        seed: int | None = None, storage: str = "float32",
    ) -> None:  # fmt: skip
        self.layers = list(layers) if isinstance(layers, Iterable) else [layers]
        wrong = [layer for layer in self.layers if not isinstance(layer, Layer)]
        if not self.layers or wrong or isinstance(layers, Layer):
            rest = "inputs' shape goes to input_shape, a function into the forward(x) of a clnn.Layer"
            given = f", not {(wrong or self.layers)[0]!r}; {rest}" if self.layers else ""
            raise ConfigurationError(f"Sequential takes a list of one or more layers{given}")
        list(self.layers_inside())  # an error where they are nested too deep
        name_layers(self.layers)
        self.seed = seed
        self.dtype = np.dtype(dtype)
        if self.dtype not in (np.float32, np.float64):
            raise ConfigurationError(f"a model's dtype is float32 or float64, {dtype!r} was provided instead")
        self.storage = storage
        self.output_shapes: list[tuple[int, ...]] = []
        if input_shape is not None:
            shape = whole_numbers("input_shape", input_shape)
            if any(s < 1 for s in shape):
                raise ConfigurationError(f"input_shape has sizes of 1 or more, {input_shape!r} was provided instead")
            self.place(device(), self.dtype)
            self.ensure_built(shape)

    def __len__(self) -> int:
        return len(self.layers)

    def __getitem__(self, index: Any) -> Any:
        """A layer by its number; of a slice, such as net[:-1], a model of the same layers."""
        if not isinstance(index, slice) and whole(index) is None:
            raise ConfigurationError(f"layers are taken as net[0] or as net[:-1], and not by {index!r}")
        found = self.layers[index]
        return found if isinstance(found, Layer) else Sequential(found, dtype=self.dtype, storage=self.storage)

    def ensure_built(self, *shapes: tuple[int, ...]) -> None:
        if len(shapes) != 1:
            raise ShapeError(
                f"Sequential takes one input, and {len(shapes)} were given: an x that is a tuple stands for several inputs; give "
                "an array or a list"
            )
        super().ensure_built(*shapes)

    def build(self, *shapes: tuple[int, ...]) -> None:
        (shape,) = shapes
        self.place(self.device, self.dtype)
        generator = None if self.seed is None else Generator(self.device, self.seed)

        def forward() -> list[tuple[int, ...]]:
            kind = np.int32 if self.takes_whole(0) else self.dtype
            x, found = tensor(np.zeros((1, *shape)), kind, self.device), []
            for layer in self.layers:
                x = layer(x)
                parts = [*x.values()] if isinstance(x, dict) else [*x] if isinstance(x, (tuple, list)) else [x]
                if not all(hasattr(one, "shape") for one in parts):
                    told = f"forward() returned {type(x).__name__} and no tensor; does it end with return?"
                    raise ConfigurationError(f"{layer.name}: {told}")
                found.append(x.shape[1:] if hasattr(x, "shape") else tuple(t.shape[1:] for t in parts))
            return found

        with drawing_from(generator), no_grad():
            self.output_shapes = for_shapes(self.device, forward)
        for name, p in self.named_parameters():
            p.name = name
        consolidate(self.parameters())

    def forward(self, *inputs: Tensor) -> Any:
        with storing(self._storage):
            return through(self.layers, *inputs)

    def input_names(self) -> dict[str, bool] | None:
        return None

    def takes_whole(self, i: int) -> bool:
        return self.layers[0].takes_whole(i)

    def check_whole(self, i: int, array: np.ndarray, name: str) -> None:
        self.layers[0].check_whole(i, array, name)

    def _rows(self) -> list[Sequence[str]]:
        if not self.built:
            raise ConfigurationError(
                "the model is not built: give Sequential an input_shape, or call it once, before summary()"
            )
        rows: list[Sequence[str]] = [("layer", "output shape", "parameters")]
        for layer, shape in zip(self.layers, self.output_shapes):
            each = shape if shape and isinstance(shape[0], tuple) else [shape]  # of a layer with several outputs
            shown = ", ".join(str((None, *one)) for one in each)
            rows.append((f"{layer.name} {layer!r}", shown, told_of_parameters(layer)))
        return rows

    def config(self) -> dict[str, Any]:
        return {"layers": self.layers} | self._stored()


def _table(model: Model, rows: Sequence[Sequence[str]]) -> str:
    """Rows in columns, and below them what the model has in all."""
    widths = [max(map(len, column)) for column in zip(*rows)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows]
    return "\n".join([*lines, total(model)])


def total(model: Model) -> str:
    """What a model has in all, in words."""
    parameters = model.parameters()
    trainable = count([p for p in parameters if p.trainable])
    size = sum(p.nbytes for p in parameters)
    return f"{count(parameters):,} parameters ({trainable:,} trainable), {size:,} bytes, on {model.device.name}"


def load(path: str | Path) -> Any:
    """The model that `save` wrote, on the device in use; its loss and optimizer come along."""
    arrays, header = checkpoint.read(path)
    from .runtime.devices.choice import device

    try:
        model = _made(header, device())
        frozen = set(header.get("frozen", ()))
        saved = dict(header["optimizer"]) if "optimizer" in header else None
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise CheckpointError(
            f"{path}: the header is incomplete or damaged ({error!r}); restore the file from a copy"
        ) from error
    if not isinstance(model, Model):
        raise CheckpointError(f"{path} holds a {type(model).__name__}, which is no model")
    model.load_state_dict({n.removeprefix("parameter."): a for n, a in arrays.items() if n.startswith("parameter.")})
    parameters = dict(model.named_parameters())
    for name, (rate_factor, decays, max_norm) in header.get("settings", {}).items():
        p = parameters[name]
        p.rate_factor, p.decays, p.max_norm = rate_factor, decays, max_norm
    _freeze(model, frozen)
    if "loss" in header:
        try:
            model.loss = find_loss(header["loss"])
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"{path}: the loss does not fit this version of clnn: {error}") from error
    if saved is not None:
        kept = {n.removeprefix("optimizer."): a for n, a in arrays.items() if n.startswith("optimizer.")}
        try:
            optimizer = optim.find_optimizer(saved)
            if "names" not in saved:  # an earlier version kept what was trainable, in order
                trained = sorted(model.named_parameters(), key=lambda named: not named[1].trainable)
                if len({key.partition(".")[0] for key in kept}) == sum(p.trainable for _, p in trained):
                    saved["names"] = [name for name, _ in trained]
            optimizer._given = tuple(p for p in model.parameters() if p.name in saved.get("names", ()))
            optimizer.load_state_dict({**saved, "arrays": kept})
        except (KeyError, TypeError, ValueError, CheckpointError) as error:  # ConfigurationError is a ValueError
            raise CheckpointError(f"{path}: the optimizer does not fit this version of clnn: {error}") from error
        model.optimizer = optimizer
    return model


def _made(header: dict[str, Any], where: Device, empty: bool = False) -> Layer:
    """The model that a header describes, built by a forward pass for shapes; `empty`: for names and shapes alone."""
    dtype, shapes = np.dtype(header["dtype"]), [tuple(shape) for shape in header["input_shapes"]]
    types = header.get("input_types") or [dtype] * len(shapes)

    def made() -> Layer:
        model = checkpoint.construct(header["model"])
        model.place(where, dtype)
        model(*[tensor(np.zeros((1, *shape), t), t, where) for shape, t in zip(shapes, types)])
        return model

    with no_grad(), drawing_from(Generator(where, 0)):
        model: Layer = for_shapes(where, made, empty)
    return model


def _told_loss(loss: Any) -> Any:
    """The loss as `find_loss` finds it again, or None where a file goes without it."""
    if not isinstance(loss, losses.Joint):
        return checkpoint.told("loss", loss, losses.describe(loss), find_loss)
    told = {name: _told_loss(one) for name, one in loss.losses.items()}
    return None if None in told.values() else {"losses": told, "weights": loss.weights}


def _check_loadable(model: Model, header: dict[str, Any]) -> Layer | None:
    """What the header makes, without values: CheckpointError if that is not like the model. None where there is no room to
    try."""
    twin = None
    try:
        twin = _made(json.loads(json.dumps(header)), model.device, empty=True)
        difference = checkpoint.difference(model, twin)
    except OutOfDeviceMemory:
        return None
    except Exception as error:  # whatever the model's own code raises
        difference = f"it cannot be made: {error.__cause__ or error}"
    if difference is not None:
        raise CheckpointError(
            f"a {type(model).__name__} made of its config() would not be like this one: {difference}. Have config() give all "
            "arguments of __init__, which makes the layers inside; or save net.state_dict()"
        )
    assert twin is not None
    checkpoint.warn_of_attributes(model, twin)
    return twin


def _freeze(model: Layer, frozen: set[str]) -> None:
    """Freeze the layers whose learning parameters are all named, and those that a file says are (they may have none)."""
    for name, p in model.named_parameters():
        if name in frozen:
            p.trainable = False
    for layer in model.layers_inside():
        own = [p for p in vars(layer).values() if isinstance(p, Parameter) and p.learns]
        if own and not any(p.trainable for p in layer.parameters()):  # those of layers inside may go on
            layer.trainable = False
        if layer.__dict__.pop("_frozen_in_file", False):
            layer._trainable = False


_OF_LAYERS = (
    "state_dict", "load_state_dict", "zero_grad", "parameters", "named_parameters", "layers_inside", "train", "parameter",
    "reset_states",
)  # fmt: skip
tell(Layer, _OF_LAYERS)
tell(Model, [*_OF_LAYERS, *(name for name in vars(Model) if name[0] != "_" and name not in vars(Layer))])

__all__ = ["REGISTRY", "Model", "Sequential", "load"]
