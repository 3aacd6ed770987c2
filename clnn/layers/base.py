"""`Layer`: something with parameters that turns tensors into tensors. A network is a layer of layers."""

from __future__ import annotations

import contextlib
import copy
import inspect
import re
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from ..checks import as_argument, check_count, defaults, numbers, sizes, whole_array
from ..errors import CheckpointError, ConfigurationError, DataError, DeviceError, OutOfDeviceMemory, ShapeError
from ..foreign import bind
from ..init import Initialiser, find_initialiser
from ..ops.array import FLOATS, Array
from ..random import generator
from ..registry import REGISTRY, VERSIONS, config_from, register  # noqa: F401 - layers have them from here
from ..runtime.device import Device, ValuesWanted
from ..runtime.devices.choice import device
from ..runtime.lock import exclusive
from ..runtime.watching.effects import saved
from ..runtime.watching.watch import Watch, Watched, rebinds, structure_changed
from ..storage import Keeper
from ..tape import grad_enabled, no_grad
from ..tensor import Parameter, Tensor, refuse_averaged, tensor, tensors_made

MOST_NESTED = 64  # layers in layers: each takes up to a dozen calls of Python's thousand
_building = threading.local()


@contextlib.contextmanager
def without_values() -> Iterator[None]:
    """Within it layers are built for the names and shapes of their parameters, which hold nothing yet."""
    _building.empty = True
    try:
        yield
    finally:
        _building.empty = False


def with_mask(y: Tensor, mask: Tensor | None) -> Tensor:
    """y, with that mask of its steps."""
    y.mask = mask
    return y


def for_shapes(device: Device, forward: Callable[[], Any], empty: bool = False) -> Any:
    """What `forward()` tells of the shapes of tensors that it makes: nothing is launched, unless it reads a value. `empty`: nor
    do parameters get values.

    Tensors that outlive it, since a layer's code keeps them in an attribute or a cache, get theirs: they will be read. So do
    parameters that it makes there, and not in `build`."""
    with device.dry() as late, tensors_made() as made:
        try:
            with without_values() if empty else contextlib.nullcontext():
                return forward()
        except ValuesWanted:
            pass
        finally:
            kept = [t for t in (one() for one in made) if t is not None]
            if late and any(not empty or not isinstance(t, Parameter) for t in kept):
                with device.dry(False):
                    for launch in late:
                        launch()
    return forward()


def first_pass(layer: Layer, forms: Iterable[Sequence[Any]], tell: Callable[[Any], Any], run: Any = None) -> Any:
    """What `tell` makes of the outputs of the layer (or of its method `run`) for one sample of inputs of these shapes and types,
    for their shapes alone: nothing is launched, and what changes in layers that are built is put back."""
    restore = saved(Watch([layer])) if all(one.built for one in layer.layers_inside()) else lambda: None

    def forward() -> Any:
        try:
            return tell((run or layer)(*[tensor(np.zeros((1, *shape)), dtype, layer.device) for shape, dtype in forms]))
        finally:
            restore()  # here, so that what is put back does not count as kept

    with layer.device.lock, no_grad():
        return for_shapes(layer.device, forward)


def called(layer: Layer) -> str:
    """What messages call a layer: by its name, or by its class's."""
    return layer.name or type(layer).__name__


def name_layers(layers: Iterable[Layer]) -> None:
    """Give those without a name one by their class: dense_1, dense_2, ..."""
    kinds: dict[str, int] = {}
    for layer in layers:
        kind = snake(type(layer).__name__)
        kinds[kind] = kinds.get(kind, 0) + 1
        layer.name = layer.name or f"{kind}_{kinds[kind]}"


class Symbolic:
    """What stands for a tensor where a graph is made of layers; see clnn/graph.py."""

    def through(self, layer: Layer, inputs: Sequence[Any]) -> Any:
        """What stands for the layer's output."""
        raise NotImplementedError


class Layer(Watched):
    """Write `build(*input_shapes)`, which makes parameters, and `forward(*inputs)`, which computes with tensors.

    Gradients come from the tape. Parameters, and layers inside, are those in its attributes. `build` is called once, at the
    first call, with the inputs' shapes without the batch:

        class Scale(clnn.Layer):
            def build(self, shape):
                self.factor = self.parameter(shape, init="ones")

            def forward(self, x):
                return x * self.factor
    """

    tells = True
    unwatched = frozenset(
        ("name", "built", "stop_training", "loss", "optimizer", "output_shapes", "_trainable", "_input_shapes")
    )
    shaping: frozenset[str] = frozenset()  # the arguments that parameters are made by
    name = ""
    built = False
    dtype = np.dtype(np.float32)
    stop_training = False
    training = True  # False after eval(): see train()
    # Whether inputs are whole numbers, such as tokens, and stay int32: one answer, or one for each input
    whole_inputs: bool | tuple[bool, ...] = False
    # What becomes of a mask of steps, `Tensor.mask`: `forward` reads it, and it goes on with the output; neither is an error
    reads_mask = keeps_mask = False
    _device: Device | None = None
    _trainable = True

    def build(self, *input_shapes: Any, **_: Any) -> None:
        """Make the parameters for inputs of these shapes (without the batch)."""

    def forward(self, *inputs: Any, **_: Any) -> Any:
        """The layer's output."""
        raise NotImplementedError(f"{type(self).__name__} needs a forward(self, x) that returns a tensor")

    def config(self) -> dict[str, Any]:
        """The arguments that make a layer like this one, as JSON can hold them; for a class of your own, write them here."""
        return {
            name: list(value) if type(value) is tuple else value for name, value in config_from(self).items()
            if not name.endswith("_init") or isinstance(value, (str, int, float))  # of a function the values are saved
        }  # fmt: skip

    # -- calling ------------------------------------------------------------------------------------------------------
    def __call__(self, *inputs: Any, **named: Any) -> Any:
        if named:
            raise ConfigurationError(
                f"{called(self)} takes tensors one by one, as its forward() has them, and none by name, {', '.join(named)}=: for "
                "training there are net.train() and net.eval(), and what is no tensor belongs into an attribute"
            )
        for x in inputs:
            if isinstance(x, Tensor) and x.device is not self.device:  # a copy would end the tape
                told = f"is on {self.device!r} and its input on {x.device!r}; move one with .to(device)"
                raise DeviceError(f"{called(self)} {told}")
            if isinstance(x, Symbolic):
                return x.through(self, inputs)
        given = [self._as_input(x, i) for i, x in enumerate(inputs)]
        masked = any(x.mask is not None for x in given)
        if masked and not (self.reads_mask or self.keeps_mask):
            raise ConfigurationError(
                f"{called(self)} would mix steps that a mask (Masking, Embedding's mask_zero) leaves out with others. Layers "
                "that know masks are recurrent, attend, or see each step by itself, as Dense does; others go behind a recurrent "
                "layer's last output. A class of your own says keeps_mask = True if its output has the same steps, "
                "reads_mask = True if its forward heeds x.mask"
            )
        try:
            self.ensure_built(*[x.shape[1:] for x in given])
            y = self.forward(*given)
        except OutOfDeviceMemory as error:
            error.inside(called(self))
            raise
        except (TypeError, IndexError):
            if not given:
                raise ConfigurationError(f"{called(self)} takes a tensor, and none was given") from None
            for function in (self.build, self.forward):
                bind(called(self), function, tuple(given), {})  # whether there are too few, or too many
            raise
        if isinstance(y, np.ndarray) and grad_enabled() and any(x.requires_grad for x in given):
            told = "forward returned an array of NumPy, which takes no gradient back: use clnn's functions, or clnn.tensor(y)"
            raise ConfigurationError(f"{called(self)}: {told}")
        return with_mask(y, given[0].mask) if masked and self.keeps_mask else y

    def input_names(self) -> dict[str, bool] | None:
        """The names of forward()'s inputs, and whether each has to be given; None where it takes any number of them."""
        given = inspect.signature(self.forward).parameters.values()
        if any(p.kind is p.VAR_POSITIONAL for p in given):
            return None
        return {p.name: p.default is p.empty for p in given if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)}

    def takes_whole(self, i: int) -> bool:
        """Whether input `i` is one of whole numbers."""
        return any(self.whole_inputs[i : i + 1]) if isinstance(self.whole_inputs, (tuple, list)) else self.whole_inputs

    def check_whole(self, i: int, array: np.ndarray, name: str) -> None:
        """DataError where input `i`, an array of whole numbers, holds one that this layer cannot take."""
        if array.size and not -(2**31) <= array.min() <= array.max() < 2**31:
            raise DataError(f"{name} goes from {array.min()} to {array.max()}, and whole numbers become int32 here")

    def _as_input(self, x: Any, i: int) -> Tensor:
        """Input `i` as a tensor of the type in which this layer wants it."""
        if isinstance(x, (tuple, list)) and any(isinstance(one, (Tensor, Symbolic)) for one in x):  # else one array
            told = "inputs go one by one, net(a, b), and what gives several, as return_state=True and Split do, into a clnn.Model"
            raise ConfigurationError(f"{called(self)} got {len(x)} tensors for one input: {told}")
        if isinstance(x, Tensor) and x.dtype == np.int32:
            return x
        if self.takes_whole(i) and not isinstance(x, Tensor):
            return tensor(whole_array(x, called(self)), np.int32, self.device)
        return tensor(x, self.dtype, self.device)

    def with_next(self, following: Layer, x: Tensor) -> Tensor | None:
        """At inference: what `following` makes of this layer's output, if one launch can compute both; otherwise None."""
        return None

    def ensure_built(self, *shapes: tuple[int, ...]) -> None:
        """Build for inputs of these shapes, unless that has been done."""
        if not self.built:
            if type(self).build is not Layer.build:  # else there is nothing that it could make
                self.device.ends_audit("a layer was built inside the step")
            known, was = {*self.layers_inside()}, dict(vars(self))  # an error where they are nested too deep
            try:
                with self.device.dry(getattr(_building, "empty", False)):  # else they get values, whatever is asked for
                    self.build(*shapes)
                lost = [k for k, v in was.items() if isinstance(v, Tensor | np.ndarray) and v is not vars(self).get(k)]
                if lost and type(self).build.__module__.startswith("clnn."):  # others may make it from what was there
                    told = f"{lost[0]} was set before the layer was built, which makes its own: call the layer once before that"
                    raise ConfigurationError(f"{called(self)}: {told}, or give an initialiser, lambda *_: array")
            except BaseException:
                object.__setattr__(self, "__dict__", was)  # so that another try begins as this one did
                raise
            for made in (one for one in self.layers_inside() if one not in known and not one.built):
                made._device, made.dtype, made.training = self.device, self.dtype, self.training
            self.built = True
            if not self._trainable:  # and so are the layers that it has made
                self.trainable = False

    @property
    def device(self) -> Device:
        """Where the parameters are: the device in use when it was first asked for."""
        if self._device is None:
            self._device = device()
        return self._device

    def place(self, where: Device, dtype: Any) -> None:
        """Where and in what type the parameters will be made, here and in every layer inside. ConfigurationError where some are
        made already, elsewhere or in another type."""
        where.real(dtype := np.dtype(dtype))
        made = [p for one in self.layers_inside() if one.built for p in vars(one).values() if isinstance(p, Parameter)]
        if wrong := [p for p in made if (p.device, p.dtype) != (where, dtype)]:
            told = f"{called(self)} is built already, in {wrong[0].dtype} on {wrong[0].device!r}: place() comes before that"
            raise ConfigurationError(f"{told}. Make another and give it .state_dict(), or move a model by .to(device)")
        for layer in self.layers_inside():
            layer._device, layer.dtype = where, dtype

    def wrong_shape(self, error: Exception | str) -> ShapeError:
        """ShapeError with the text of that one, or with this text, and this layer's name in front."""
        return ShapeError(f"{called(self)}: {str(error).removeprefix(f'{called(self)}: ')}")

    # -- parameters ---------------------------------------------------------------------------------------------------
    def parameter(
        self, shape: int | Sequence[int], init: str | float | Initialiser = "glorot_uniform", decays: bool | None = None,
        learns: bool = True,
    ) -> Parameter:  # fmt: skip
        """A parameter of `shape`, filled by an initialiser. Assign it to an attribute, whose name it gets.

        Weight decay reaches parameters with two axes or more unless `decays` says otherwise. With `learns=False` it is
        a statistic that the layer keeps: saved and moved with the others, and changed by no optimizer.
        """
        shape = sizes("parameter", shape)
        if self.dtype not in FLOATS:
            raise ConfigurationError(f"parameters are float32 or float64, not {self.dtype}")
        made = find_initialiser(init)(shape, generator(self.device), self.dtype)
        made = made if isinstance(made, Array) else tensor(made, self.dtype, self.device)
        if made.shape != shape or made.dtype != self.dtype:
            told = f"made {made.dtype} of shape {made.shape}, and {self.dtype} of {shape} is wanted"
            raise ConfigurationError(f"the initialiser {init!r} {told}")
        self.device.settle()  # it has its values, even if a step that makes it ends with an error
        p = Parameter(made.block, shape, self.dtype, self.device, learns=learns)
        p.decays = len(shape) > 1 if decays is None else decays
        return p

    def named_parameters(self, prefix: str = "") -> Iterator[tuple[str, Parameter]]:
        """(name, parameter) of this layer and the layers inside, each parameter once."""
        yield from ((name, value) for name, value in self._walk(prefix) if isinstance(value, Parameter))

    def parameters(self) -> list[Parameter]:
        """All parameters of this layer and the layers inside."""
        found = [*self.named_parameters()]
        for name, p in found:
            if not p.name or name.endswith(f".{p.name}"):  # the whole way to it, as seen from the outermost layer
                p.name = name
        return [p for _, p in found]

    def zero_grad(self) -> None:
        """Forget the gradients that its parameters have received: the next ones are assigned, not added."""
        for _, p in self.named_parameters():
            p.zero_grad()

    def layers_inside(self) -> Iterator[Layer]:
        """This layer and all layers inside it, each once."""
        yield self
        yield from (value for _, value in self._walk("") if isinstance(value, Layer))

    def reset_states(self, batch_size: int | None = None) -> None:
        """Have the `stateful` recurrent layers inside start from zeros again, from now on with batches of that size."""
        batch_size = None if batch_size is None else check_count("reset_states' batch_size", batch_size)
        for one in self.stateful_layers():
            one._reset_states(batch_size)

    def stateful_layers(self) -> list[Any]:
        """The layers inside that go on from the states in which the last call ended."""
        return [one for one in self.layers_inside() if hasattr(one, "_reset_states") and one.stateful]  # type: ignore[attr-defined]

    def _walk(self, prefix: str) -> Iterator[tuple[str, Any]]:
        """Every parameter and layer below, depth first, with its dotted name; what is in several places once.

        They are found in all attributes, whatever their names, and in lists, tuples and dicts of those.
        """
        seen, waiting = {id(self)}, [(iter([(f"{prefix}{key}", value) for key, value in vars(self).items()]), 1)]
        while waiting:
            entries, depth = waiting[-1]
            name, value = next(entries, (None, None))
            if name is None:
                waiting.pop()
            elif isinstance(value, Parameter) and id(value) not in seen:
                seen.add(id(value))
                yield name, value
            elif isinstance(value, (Layer, dict, list, tuple)) and id(value) not in seen:
                seen.add(id(value))
                if isinstance(value, Layer):
                    depth += 1
                    yield name, value
                if depth > MOST_NESTED:
                    raise ConfigurationError(
                        f"{type(self).__name__} has layers in layers more than {MOST_NESTED} deep, and Python's stack is "
                        "limited: put them side by side, as in Sequential([*a.layers, *b.layers])"
                    )
                inside = vars(value) if isinstance(value, Layer) else value
                items: Iterable[tuple[Any, Any]] = inside.items() if isinstance(inside, dict) else enumerate(inside)
                waiting.append((iter([(f"{name}.{key}", item) for key, item in items]), depth))

    @property
    def trainable(self) -> bool:
        """False freezes this layer: its parameters get no gradients and no updates, its statistics stay as they are."""
        return self._trainable

    @trainable.setter
    def trainable(self, value: bool) -> None:
        for layer in self.layers_inside():
            layer._trainable = bool(value)
        for _, p in self.named_parameters():
            p.trainable = bool(value)
        structure_changed()

    def train(self, mode: bool = True) -> Any:
        """Put this layer and all inside into training mode, where they are at first, and return it; `eval()` ends that.

        Calls with a tape are training: dropout drops, and BatchNorm takes the statistics of the mini-batch and moves its own.
        After `net.eval()` calls are inference, with gradients too. `fit` trains, and refuses a model in which a layer is in
        eval mode; predict, evaluate and calls within `clnn.no_grad()` are inference in either mode. Files do not keep the mode.
        """
        for layer in self.layers_inside():
            layer.training = bool(mode)
        structure_changed()
        return self

    def eval(self) -> Any:
        """`train(False)`: calls are inference from now on, as PyTorch's are after its `eval()`."""
        return self.train(False)

    def trains(self) -> bool:
        """Whether a call of now is training: on tape, and the layer is not in eval mode."""
        return self.training and grad_enabled()

    def __setattr__(self, key: str, value: Any) -> None:
        before = self.__dict__.get(key)
        if isinstance(value, Parameter):
            value.name = value.name or key
            value.trainable = value.trainable and self._trainable
        elif isinstance(before, Parameter) and value is not None:
            raise ConfigurationError(
                f"{called(self)}: {key} is a parameter, and a {type(value).__name__} in its place would "
                "neither be trained nor saved: give clnn.tensor(value, requires_grad=True), or copy values into it, "
                f'net.load_state_dict({{**net.state_dict(), "...{key}": array}})'
            )
        elif self.built and key in self.__dict__:
            value = as_argument(self, key, value)
            if key in self.shaping and value != before:
                raise ConfigurationError(
                    f"{called(self)} made its parameters with {key}={before!r}, so that {value!r} comes "
                    "too late: put a new layer in its place"
                )
        if rebinds(self, key, value):
            self._rebound(key)
        object.__setattr__(self, key, value)

    def __delattr__(self, key: str) -> None:
        object.__delattr__(self, key)
        self._rebound(key)

    def _rebound(self, key: str) -> None:
        """An attribute changes, and recordings have the old one; what a step itself changes is compared from call to call."""
        if self.built and key not in self.unwatched and not (self._device is not None and self._device.within):
            structure_changed()

    def __getstate__(self) -> dict[str, Any]:
        """What a copy or a pickle holds: everything but what calls have left here to be faster."""
        return {name: value for name, value in vars(self).items() if name not in ("_evaluations", "_output_shape")}

    def __deepcopy__(self, memo: dict[int, Any]) -> Layer:
        """A copy with all weights as they are between two steps, also where another thread trains."""
        memo[id(self)] = made = type(self).__new__(type(self))
        with self._device.lock if self._device is not None else contextlib.nullcontext():
            vars(made).update(copy.deepcopy(self.__getstate__(), memo))
        return made

    # -- state --------------------------------------------------------------------------------------------------------
    @exclusive("device.lock")
    def state_dict(self) -> dict[str, np.ndarray]:
        """All parameters as arrays on the host, by name."""
        return {name: p.numpy() for name, p in self.named_parameters()}

    @exclusive("device.lock")
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Copy arrays into the parameters, in place; names and shapes must fit exactly, or nothing is changed."""
        mine = dict(self.named_parameters())
        refuse_averaged(mine.values(), "load_state_dict()")
        if not hasattr(state, "items"):
            shown = " ".join(repr(state).split())
            told = f"a state is arrays by their names, as state_dict() gives them, not {shown:.60}"
            raise CheckpointError(f"{told}; of a list make dict(zip(net.state_dict(), arrays))")
        missing, extra = (", ".join(sorted(map(str, {*a} - {*b}))) or "none" for a, b in ((mine, state), (state, mine)))
        if {*mine} != {*state}:
            raise CheckpointError(f"the names do not fit: missing are {missing}; unknown are {extra}")
        with np.errstate(over="ignore"):  # what becomes infinite is refused
            arrays = {name: np.asarray(numbers(value, name), mine[name].dtype) for name, value in state.items()}
        for name, p in mine.items():
            if arrays[name].shape != p.shape:
                raise CheckpointError(f"{name} has the shape {arrays[name].shape} there and {p.shape} in this model")
            if not np.isfinite(arrays[name]).all():
                raise CheckpointError(f"{name} holds values that are not finite")
        for name, p in mine.items():
            p.device.upload(np.ascontiguousarray(arrays[name], p.dtype), p.block)
            p.version += 1

    def __repr__(self) -> str:
        usual = defaults(self)
        shown = []
        for key, value in self.config().items():
            default = usual.get(key)
            if default is inspect.Parameter.empty:
                shown.append(repr(value))
            elif value != default and not (default is None and value == "linear"):
                shown.append(f"{key}={value!r}")
        return f"{type(self).__name__}({', '.join(shown)})"


def through(layers: Sequence[Layer], x: Any) -> Any:
    """x through layers, one after the other; without a tape two that fit become one, see `Layer.with_next`."""
    at, keeper = 0, Keeper(x)
    while at < len(layers):
        layer, following = layers[at], layers[at + 1] if at + 1 < len(layers) else None
        if following is not None and not grad_enabled() and layer.built and following.built and x.mask is None:
            y = layer.with_next(following, x)
            if y is not None:
                x, at = y, at + 2
                continue
        x, at = keeper.call(layer, x), at + 1
    keeper.end()
    return x


def snake(name: str) -> str:
    """MyLayer -> my_layer, Conv2DTranspose -> conv2d_transpose"""
    return re.sub(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z0-9])(?=[A-Z][a-z])", "_", name).lower()
