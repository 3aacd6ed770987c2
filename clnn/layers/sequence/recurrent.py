"""Recurrent layers: SimpleRNN, LSTM and GRU over sequences (batch, steps, features)."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np

from ...arrays import arange, where
from ...cache import cache_in_use
from ...checks import check_count, in_range
from ...errors import ConfigurationError, ShapeError
from ...init import Initialiser, find_initialiser
from ...ops.activation import activation_name
from ...ops.array import Array
from ...ops.index import take
from ...ops.random import dropout
from ...ops.sequence.recurrent import GATES, STATES, Cell, recurrent
from ...ops.shape import concatenate
from ...random import generator
from ...tape import grad_enabled
from ...tensor import Tensor, _of_truths, apply, concat, constant, linear_layer, on_tape, ones, tensor, zeros
from ..base import Layer, called, register, through, with_mask

__all__ = [
    "GRU", "LSTM", "Bidirectional", "GRUCell", "LSTMCell", "Masking", "SimpleRNN", "SimpleRNNCell", "TimeDistributed",
]  # fmt: skip


def _masked(layer: Layer, x: Tensor, lengths: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """x and its mask (batch, steps), if there is one: 0 for each step that x's own mask leaves out, or that is past its
    sequence's length. There x may hold anything, NaN too, and gets zeros. A sequence with a length that cannot be is NaN where
    that is no error yet."""
    if lengths is None:
        return x, x.mask
    batch, steps = x.shape[:2]
    if lengths.shape != (batch,):
        wrong = f"lengths are (batch,), one for each of {batch} sequences, and have the shape {lengths.shape}"
        raise layer.wrong_shape(wrong)

    def check(given: np.ndarray, _: str = "") -> None:
        if not (given >= 0).all() or not (given <= steps).all():
            told = f"lengths go from {given.min():g} to {given.max():g}, and there are 0 to {steps} steps"
            raise layer.wrong_shape(told)
        if (given % 1 != 0).any():
            raise layer.wrong_shape(f"lengths are whole numbers, and {given[given % 1 != 0][0]:g} is none")

    if x.device.reads:
        check(lengths.numpy())
    if x.device.step is not None:  # which looks at them before replays where they are its argument
        x.device.step.check(lengths.block, check)
    mask = arange(steps, dtype=lengths.dtype, device=x.device).reshape(1, steps) < lengths.reshape(batch, 1)
    fits = (lengths >= 0) & (lengths <= steps) & (lengths % 1 == 0)
    at = where(fits, 0 * arange(batch, device=x.device), -1)
    told = apply(take, zeros((steps + 1,), x.dtype, x.device), index=at, from_end=False)  # `check_rows` says so
    y = where(mask.reshape(batch, steps, 1), x, 0.0) + told.reshape(batch, 1, 1)
    mask = mask if x.mask is None else where(x.mask, mask, 0.0)  # in NaN no step is passed over, which would hide it
    return y, where(fits.reshape(batch, 1), mask, 1.0)


def _sequence_of(y: Any) -> Tensor:
    """The output, without the states that may stand behind it."""
    return y[0] if isinstance(y, tuple) else y


class _Recurrent(Layer):
    """What the three share. Parameters: w (features, G units), u (units, G units), b (G units,) for G gates."""

    shaping = frozenset(
        ("units", "use_bias", "unit_forget_bias", "reset_after", "weight_init", "recurrent_init", "bias_init")
    )
    kind = "RNN"
    recurrent_b: Tensor | None = None  # a GRU's
    reads_mask = True
    unwatched = Layer.unwatched | {"_tell"}

    def __init__(
        self, units: int, activation: str | None = "tanh", *, use_bias: bool = True, return_sequences: bool = False,
        return_state: bool = False, go_backwards: bool = False, stateful: bool = False, dropout: float = 0.0,
        recurrent_dropout: float = 0.0, weight_init: str | float | Initialiser = "glorot_uniform",
        recurrent_init: str | float | Initialiser = "orthogonal", bias_init: str | float | Initialiser = "zeros",
    ) -> None:  # fmt: skip
        what = type(self).__name__
        self.units = check_count(f"{what}'s units", units)
        self.activation = activation_name(activation)
        self.use_bias = bool(use_bias)
        self.return_sequences, self.return_state = bool(return_sequences), bool(return_state)
        self.go_backwards, self.stateful = bool(go_backwards), bool(stateful)
        self.carried: list[Tensor] = []  # the states after the last call, of a stateful layer
        self.dropout = in_range(f"{what}'s dropout", dropout, 0.0, 1.0)
        self.recurrent_dropout = in_range(f"{what}'s recurrent_dropout", recurrent_dropout, 0.0, 1.0)
        self.weight_init, self.recurrent_init, self.bias_init = weight_init, recurrent_init, bias_init
        for init in (weight_init, recurrent_init, bias_init):
            find_initialiser(init)

    def __setattr__(self, key: str, value: Any) -> None:
        super().__setattr__(key, value)
        tell = self.__dict__.get("_tell")  # the copy that a Bidirectional has of it
        if tell is not None and (key == "trainable" or key in self.config()) and key != "go_backwards":
            tell(key, value)

    def build(self, *shapes: tuple[int, ...]) -> None:
        shape, gates = shapes[0], GATES[self.kind]
        if len(shape) != 2:
            why = "a recurrent layer before it needs return_sequences=True, and tokens need an Embedding"
            raise self.wrong_shape(f"an input is (batch, steps, features), not {(None, *shape)}: {why}")
        self.w = self.parameter((shape[1], gates * self.units), self.weight_init)
        self.u = self.parameter((self.units, gates * self.units), self.recurrent_init)
        self.b = self.parameter((gates * self.units,), self._first_bias()) if self.use_bias else None

    def _first_bias(self) -> str | float | Initialiser:
        return self.bias_init

    def _recurrent_weights(self) -> tuple[Tensor, Tensor | None]:
        """`u` and `u_h` of the op."""
        return self.u, None

    def forward(self, *inputs: Tensor) -> Any:
        x, *rest = inputs
        self._check(x, "batch", "steps")
        given, mask = _masked(self, x, rest.pop() if rest and rest[-1].ndim == 1 else None)
        self._count(rest)
        y = self.over(given, rest, mask)
        if x.mask is not None and self.return_sequences:  # in the order of reading, as the sequences are
            with_mask(_sequence_of(y), x.mask[:, ::-1] if self.go_backwards else x.mask)
        return y

    def _as_input(self, x: Any, i: int) -> Tensor:
        if i and _of_truths(x):
            raise self.wrong_shape("bools are no states and no lengths: give clnn.Masking()(x, mask) in place of x")
        return Layer._as_input(self, x, i)

    def _check(self, x: Tensor, *axes: str) -> None:
        if x.ndim != len(axes) + 1 or x.shape[-1] != self.w.shape[0]:
            fit = ", ".join((*axes, str(self.w.shape[0])))
            raise self.wrong_shape(f"an input is ({fit}) here, and this one has the shape {x.shape}")

    def _count(self, states: Sequence[Tensor]) -> None:
        if len(states) not in (0, STATES[self.kind]):
            names = ("h", "c")[: STATES[self.kind]]
            raise self.wrong_shape(
                f"beside x go the states one by one ({', '.join(('x', *names))}), each (batch, units), or none, and lengths "
                f"(batch,); {len(states)} states were given"
            )

    def cell(self, x: Any, *states: Any) -> Any:
        """A step of a loop of one's own: x (batch, features) and the states, or none for zeros, to h (batch, units), or an LSTM's
        (h, c). It has the layer's weights. ConfigurationError in training with dropout, whose masks are one for a sequence.

        >>> lstm = clnn.LSTM(8)
        >>> h, c = lstm.cell(np.zeros((2, 3)))
        >>> h, c = lstm.cell(np.zeros((2, 3)), h, c)
        """
        given = [tensor(one, self.dtype, self.device) for one in (x, *states)]
        if given[0].ndim != 2:
            raise self.wrong_shape(f"an input of a step is (batch, features), not of shape {given[0].shape}")
        x = given[0].reshape(given[0].shape[0], 1, *given[0].shape[1:])
        self.ensure_built(x.shape[1:])
        self._check(given[0], "batch")
        self._count(given[1:])
        if (self.dropout or self.recurrent_dropout) and self.trains():
            raise ConfigurationError(
                f"{called(self)}: a cell sees one step, and dropout masks are one for all steps of a "
                "sequence: give dropout=0 and recurrent_dropout=0, or call the layer with whole sequences"
            )
        out = self._run(x, given[1:], Cell(self.kind, state=True))
        last = [out[:, i] for i in range(STATES[self.kind])]
        return last[0] if len(last) == 1 else tuple(last)

    def over(self, x: Tensor, states: Sequence[Tensor] = (), mask: Tensor | None = None, aligned: bool = False) -> Any:
        """The layer's output where a mask (batch, steps) is not 0; `aligned` as in `Cell`."""
        batch, steps, features = x.shape
        memory: list[Tensor] = []  # where the last states go
        if (cache := cache_in_use()) is not None:
            if self.go_backwards or states or mask is not None:
                raise ConfigurationError(
                    f"{called(self)} goes on from its own states where the steps before come from a cache: "
                    "forwards, without states that are given, lengths or masks"
                )
            memory = states = [cache.kept((batch, self.units), x.dtype, state=True) for _ in range(STATES[self.kind])]
        elif self.stateful and not x.device.dry_now:
            memory = self._states_of(batch)
            states = states or [one * 1.0 for one in memory]  # the gradient needs them when the next are in their place
        if self.dropout and self.trains():
            x = x * self._dropped((batch, 1, features), self.dropout)  # one for all steps
        drop = (
            self._dropped((batch, self.units), self.recurrent_dropout)
            if self.recurrent_dropout and self.trains()
            else None
        )
        cell = Cell(
            self.kind,
            backwards=self.go_backwards,
            aligned=aligned,
            sequence=self.return_sequences,
            state=self.return_state or bool(memory),
        )
        out = self._run(x, states, cell, mask, drop)
        if not cell.state:
            return out if self.return_sequences else out.reshape(batch, self.units)
        last = [out[:, i - cell.rows] for i in range(cell.rows)]
        for state, kept in zip(last, memory):
            state.device.copy(state.block, kept.block, kept.nbytes)
        output = out[:, :steps] if self.return_sequences else last[0]
        return (output, *last) if self.return_state else output

    def _states_of(self, batch: int) -> list[Tensor]:
        """The memory of the states that a stateful layer carries from call to call."""
        if not self.carried:
            first = np.zeros((batch, self.units), self.dtype)
            self.carried = [constant(first, first.dtype, self.device) for _ in range(STATES[self.kind])]
        if len(self.carried[0]) != batch:
            raise self.wrong_shape(
                f"a stateful layer goes on from its states of {len(self.carried[0])} sequences, and {batch} came: give a "
                f"batch_size of which the samples are a multiple, or begin others by reset_states(batch_size={batch})"
            )
        return self.carried

    def _reset_states(self, batch_size: int | None) -> None:
        if self.carried and batch_size not in (None, len(self.carried[0])):
            self.carried = []
        for one in self.carried:
            one.device.fill_zero(one.block)

    def _copied_states(self) -> list[Tensor]:
        """The states that a stateful layer carries, as they are now; none before its first call."""
        return [one * 1.0 for one in self.carried]

    def _take_states(self, before: list[Tensor]) -> None:
        """Go on from `_copied_states`, or from zeros where there were none."""
        self._reset_states(None)
        for one, kept in zip(before, self.carried):
            one.device.copy(one.block, kept.block, kept.nbytes)

    def __getstate__(self) -> dict[str, Any]:
        return super().__getstate__() | {"carried": []}

    def _run(
        self, x: Tensor, states: Sequence[Tensor], cell: Cell, mask: Tensor | None = None, drop: Tensor | None = None
    ) -> Tensor:
        cell = cell._replace(
            activation=self.activation, recurrent_activation=getattr(self, "recurrent_activation", "sigmoid")
        )
        z = linear_layer(x, self.w, self.b, "linear")
        bias = self.recurrent_b
        u, u_h = self._recurrent_weights()
        inputs = (z, u, *(t for t in (bias, u_h) if t is not None), *states)
        keep = grad_enabled() and any(t.requires_grad for t in inputs)
        try:
            y, backward = recurrent(z, u, bias, tuple(states), mask, drop, u_h, cell=cell, keep=keep)
        except ShapeError as error:
            raise self.wrong_shape(error) from None
        return on_tape(y, inputs, backward, (self.u,))

    def _dropped(self, shape: tuple[int, ...], rate: float) -> Tensor:
        """Zeros with probability `rate`, else 1 / (1 - rate)."""
        return apply(dropout, ones(shape, self.dtype, self.device), rate=rate, generator=generator(self.device))


@register
class SimpleRNN(_Recurrent):
    """h' = f(x w + b + h u) at each step of x (batch, steps, features): the last h, (batch, units) (Elman 1990).

    w (features, units), u (units, units), b (units,). `return_sequences` gives h of every step, (batch, steps, units);
    `return_state` a tuple (output, h after all steps); `go_backwards` reads the last step first, and has sequences in the order
    of reading. `dropout` drops features of x, `recurrent_dropout` parts of h on its way into the product, each the same for all
    steps of a sequence. Beside x the layer takes the first h, (batch, units), and lengths, (batch,): `rnn(x, h, lengths)`, either
    of them alone too. Past its length a sequence's h stays as it is, so that the last h is that at its length; what x holds
    there does not count. ShapeError for a length that cannot be; where a recorded step computes it, that sequence is NaN.

    Arguments as Keras has them. `activation` is a name of clnn/ops/activation.py; initialisers are names of clnn/init.py.
    ShapeError for inputs without steps and for states of another batch.

    `stateful`: sample i of a batch goes on from the state in which sample i of the batch before ended, zeros at first and after
    `reset_states()`, of the layer or its model: so fit cuts long sequences into pieces, with gradients within a piece (truncated
    backpropagation through time; Williams and Peng 1990). All calls carry the state on, those of fit, evaluate and predict alike,
    and epochs too: a callback may call `reset_states()` in on_epoch_begin. Batches have one size (ShapeError for another;
    `reset_states(batch_size=8)` begins with one), so fit takes shuffle=False, samples in whole batches, and no validation
    (ConfigurationError). States are neither copied nor saved, but by a `Checkpoint`.
    """


class _Gated(_Recurrent):
    """What LSTM and GRU share."""

    def __init__(
        self, units: int, activation: str | None = "tanh", recurrent_activation: str | None = "sigmoid", **options: Any
    ) -> None:
        super().__init__(units, activation, **options)
        self.recurrent_activation = activation_name(recurrent_activation)


def _forgetting(init: Initialiser, units: int, shape: Sequence[int], generator: Any, dtype: Any) -> Array:
    """An LSTM's bias: 1 for the gate f."""
    parts = [
        init((units,), generator, dtype),
        find_initialiser(1.0)((units,), generator, dtype),
        init((2 * units,), generator, dtype),
    ]
    return concatenate(parts)[0]


@register
class LSTM(_Gated):
    """c' = s(f) c + s(i) f(g), h' = s(o) f(c') with [i, f, g, o] = x w + b + h u at each step of x (batch, steps, features): the
    last h, (batch, units) (Hochreiter and Schmidhuber 1997; Gers et al. 2000).

    Gates lie in Keras' order i, f, c, o: w (features, 4 units), u (units, 4 units), b (4 units,). `unit_forget_bias` starts the
    bias of f at 1 (Jozefowicz et al. 2015). States are h and c: `return_state` gives a tuple (output, h, c), and the layer takes
    `lstm(x, h, c, lengths)`, the states or the lengths alone too. s is `recurrent_activation`; the rest is as `SimpleRNN` has it.
    """

    kind = "LSTM"

    def __init__(
        self,
        units: int,
        activation: str | None = "tanh",
        recurrent_activation: str | None = "sigmoid",
        *,
        unit_forget_bias: bool = True,
        **options: Any,
    ) -> None:
        super().__init__(units, activation, recurrent_activation, **options)
        self.unit_forget_bias = bool(unit_forget_bias)

    def _first_bias(self) -> str | float | Initialiser:
        if not self.unit_forget_bias:
            return self.bias_init
        return partial(_forgetting, find_initialiser(self.bias_init), self.units)


@register
class GRU(_Gated):
    """h' = s(z) h + (1 - s(z)) f(x_h + s(r) (h u_h + recurrent_b_h)), where x_h is the gate h's part of x w + b, at each step of
    x (batch, steps, features): the last h, (batch, units) (Cho et al. 2014).

    Gates lie in Keras' order z, r, h: w (features, 3 units), u (units, 3 units), b and recurrent_b (3 units,). The reset gate r
    acts after the recurrent product, which has a bias of its own, as with cuDNN and PyTorch. `reset_after=False` is the paper's
    form, f(x_h + (s(r) h) u_h), in two products a step and without recurrent_b. s is `recurrent_activation`; the rest is as
    `SimpleRNN` has it.
    """

    kind = "GRU"

    def __init__(
        self,
        units: int,
        activation: str | None = "tanh",
        recurrent_activation: str | None = "sigmoid",
        *,
        reset_after: bool = True,
        **options: Any,
    ) -> None:
        super().__init__(units, activation, recurrent_activation, **options)
        self.reset_after = bool(reset_after)

    def build(self, *shapes: tuple[int, ...]) -> None:
        super().build(*shapes)
        second = self.use_bias and self.reset_after
        self.recurrent_b = self.parameter((3 * self.units,), self.bias_init) if second else None

    def _recurrent_weights(self) -> tuple[Tensor, Tensor | None]:
        if self.reset_after:
            return self.u, None
        return self.u[:, : 2 * self.units], self.u[:, 2 * self.units :]


class _Cell(_Recurrent):
    """What the three cells share: a step of the layer that stands behind it among its bases."""

    reads_mask = False

    def __init__(self, units: int, *activations: Any, **options: Any) -> None:
        for name in ("return_sequences", "return_state", "go_backwards", "stateful", "dropout", "recurrent_dropout"):
            if options.pop(name, False):
                what = type(self).__name__
                raise ConfigurationError(
                    f"{what} is a step of a loop of your own; {name} is for all steps, clnn.{what.removesuffix('Cell')}"
                )
        super().__init__(units, *activations, **options)

    def build(self, *shapes: tuple[int, ...]) -> None:
        super().build(*[(1, *shape) if len(shape) == 1 else shape for shape in shapes])

    def forward(self, *inputs: Tensor) -> Any:
        return self.cell(*inputs)


@register
class SimpleRNNCell(_Cell, SimpleRNN):
    """A step of `SimpleRNN`: x (batch, features) and h (batch, units), or none for zeros, to the next h. Arguments and parameters
    are the layer's, without those for all steps of a sequence, which are a ConfigurationError.
    """


@register
class LSTMCell(_Cell, LSTM):
    """A step of `LSTM`: x (batch, features) and the states h and c, (batch, units), or none for zeros, to the next (h, c).
    Arguments and parameters are the layer's, without those for all steps of a sequence, which are a ConfigurationError.

        for x in steps:
            h, c = cell(x, h, c)
    """


@register
class GRUCell(_Cell, GRU):
    """A step of `GRU`: x (batch, features) and h (batch, units), or none for zeros, to the next h. Arguments and parameters
    are the layer's, without those for all steps of a sequence, which are a ConfigurationError.
    """


MERGES = {
    "concat": lambda a, b: concat([a, b], -1),
    "sum": lambda a, b: a + b,
    "mul": lambda a, b: a * b,
    "ave": lambda a, b: (a + b) * 0.5,
}


@register
class Bidirectional(Layer):
    """A recurrent layer beside a copy, with weights of its own, that reads the last step first (Schuster and Paliwal 1997). What
    is set on the layer later (`trainable`, `dropout`, ...) the copy gets, too.

    x (batch, steps, features) -> (batch, steps, 2 units), or (batch, 2 units) of a layer without return_sequences. By
    `merge_mode` both outputs of a step stand side by side ("concat"), or it is their "sum", product ("mul") or mean ("ave"); with
    None they come out one by one. States are those of the layer and those of the copy: `net(x, h, c, back_h, back_c, lengths)`,
    and so they come out with return_state. The copy reads a sequence from its length on; past it, the copy's outputs are its
    first state. ConfigurationError for a layer of another kind, one that is built, and one that goes backwards.
    """

    shaping = frozenset(("layer",))
    reads_mask = True
    _as_input = _Recurrent._as_input  # type: ignore[assignment]

    def __init__(self, layer: Layer, merge_mode: str | None = "concat") -> None:
        if not isinstance(layer, _Recurrent) or isinstance(layer, _Cell) or layer.go_backwards:
            told = f"takes a SimpleRNN, an LSTM or a GRU that goes forwards, {layer!r} was provided instead"
            raise ConfigurationError(f"Bidirectional {told}")
        if layer.built:
            told = "Bidirectional copies a layer, weights and all, once it is built: give it a new one"
            raise ConfigurationError(told)
        self.layer, self.merge_mode = layer, merge_mode
        self.back = copy.deepcopy(layer)
        self.back.go_backwards = True
        layer.__dict__["_tell"] = self.back.__setattr__

    @property
    def merge_mode(self) -> str | None:
        """What becomes of both outputs: "concat", "sum", "mul", "ave", or None."""
        return self._merge_mode

    @merge_mode.setter
    def merge_mode(self, value: str | None) -> None:
        if value is not None and value not in MERGES:
            raise ConfigurationError(
                f"Bidirectional's merge_mode should be one of {', '.join(MERGES)} or None, {value!r} was provided instead"
            )
        self._merge_mode = value

    def build(self, *shapes: tuple[int, ...]) -> None:
        for one in (self.layer, self.back):
            one.ensure_built(shapes[0])

    def forward(self, *inputs: Tensor) -> Any:
        x, *rest = inputs
        self.layer._check(x, "batch", "steps")
        given, mask = _masked(self, x, rest.pop() if rest and rest[-1].ndim == 1 else None)
        half = [rest[: len(rest) // 2], rest[len(rest) // 2 :]]
        for states in half:
            self.layer._count(states)
        ways = [
            one.over(given, states, mask, aligned=True)
            for one, states in zip((self.layer, self.back), half, strict=True)
        ]
        outputs = [_sequence_of(way) for way in ways]
        merged = outputs if self.merge_mode is None else [MERGES[self.merge_mode](*outputs)]
        for y in merged if self.layer.return_sequences else ():
            with_mask(y, x.mask)
        states = [state for way in ways if isinstance(way, tuple) for state in way[1:]]
        return (*merged, *states) if len(merged) + len(states) > 1 else merged[0]


@register
class TimeDistributed(Layer):
    """A layer at each step by itself: x (batch, steps, ...) -> (batch, steps, ...), the layer's input (batch steps, ...)."""

    keeps_mask = True

    def __init__(self, layer: Layer) -> None:
        if not isinstance(layer, Layer):
            raise ConfigurationError(f"TimeDistributed takes a layer, {layer!r} was provided instead")
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        if x.ndim < 3 or (x.mask is not None and x.mask.ndim != 2):
            masked = "" if x.mask is None else f", and a mask of steps (batch, steps), not {x.mask.shape}"
            raise self.wrong_shape(f"an input is (batch, steps, ...), and this one has the shape {x.shape}{masked}")
        y = self.layer(x.reshape(x.shape[0] * x.shape[1], *x.shape[2:]))
        if not isinstance(y, Tensor) or y.mask is not None:
            raise self.wrong_shape("its layer gives one tensor, without a mask: put layers that heed masks inside")
        return y.reshape(*x.shape[:2], *y.shape[1:])

    def takes_whole(self, i: int) -> bool:
        return self.layer.takes_whole(i)

    def check_whole(self, i: int, array: np.ndarray, name: str) -> None:
        self.layer.check_whole(i, array, name)


def _check_mask(mask: Any, name: str = "a mask") -> None:
    """ConfigurationError for what is neither 0 nor 1, such as a share or NaN: it would count."""
    seen = np.asarray(mask)
    if len(wrong := seen[(seen != 0) & (seen != 1)]):
        told = f"Masking: {name} is 1 or True for what counts, 0 or False for the rest, and holds {wrong[0]}"
        raise ConfigurationError(f"{told}: compare it, as in mask > 0.5")


@register
class Masking(Layer):
    """Later layers pass over those steps of x (batch, steps, features) whose features all are `mask_value`: states stay as they
    are there, so that a padded sequence ends in the output that it has alone.

        clnn.Sequential([clnn.Masking(), clnn.LSTM(32, return_sequences=True), clnn.Dropout(0.2), clnn.LSTM(32), clnn.Dense(1)])

    The output is x with a mask (batch, steps) in `Tensor.mask`, which goes on from layer to layer up to a recurrent one that
    gives its last output alone. Recurrent layers, attention, and layers that look at each step by itself (Dense, Activation,
    Dropout, LayerNorm, TimeDistributed, ...) know masks; another one is a ConfigurationError. An operation of your own between
    layers loses the mask, as x * 2 does; set it again: `y.mask = x.mask`. Losses and metrics count all steps.

    `layer(x, mask)` takes the mask from you, 1 or **True for what counts**, else 0; what x holds there, NaN too, is not seen.
    `Masking([layers])` is the layer and others behind it. `Embedding(mask_zero=True)` makes a mask of tokens.
    """

    reads_mask = True

    def __init__(self, layers: Layer | Sequence[Layer] | float = (), mask_value: float = 0.0) -> None:
        if isinstance(layers, (int, float)):  # Keras' only argument
            mask_value = layers
        listed = () if isinstance(layers, (int, float)) else layers
        self.layers = [listed] if isinstance(listed, Layer) else list(listed)
        self.mask_value = in_range("Masking's mask_value", mask_value, -math.inf, math.inf, "()")
        for layer in self.layers:
            if not isinstance(layer, Layer):
                raise ConfigurationError(f"Masking takes layers, or none, {layer!r} was provided instead")
            if not (layer.reads_mask or layer.keeps_mask):
                raise ConfigurationError(
                    f"Masking: {layer!r} would mix steps that are masked with those that are not; layers for single steps and "
                    "recurrent ones stand here, others behind the last step's output"
                )
            one = layer.layer if isinstance(layer, Bidirectional) else layer
            if isinstance(one, _Recurrent):
                if one.return_state and layer is not self.layers[-1]:
                    told = f"Masking: {layer!r} returns states, so that it can only be the last layer"
                    raise ConfigurationError(told)
                if not one.return_sequences:
                    break

    def forward(self, x: Tensor, *given: Tensor) -> Any:
        if x.ndim != 3:
            raise self.wrong_shape(f"an input is (batch, steps, features), not of shape {x.shape}")
        if given:
            (mask,) = given
            if mask.shape != x.shape[:2]:
                told = f"a mask of shape {mask.shape} does not fit; it is (batch, steps), {x.shape[:2]} here"
                raise self.wrong_shape(told)
            if x.device.reads and not _of_truths(mask):
                _check_mask(mask)
            if x.device.step is not None:
                x.device.step.check(mask.block, _check_mask)
            y = where(mask.reshape(*mask.shape, 1), x, 0.0)
        else:
            y, mask = x.reshape(x.shape), (x.detach() != self.mask_value).max(axis=-1)
        return through(self.layers, with_mask(y, mask if x.mask is None else where(x.mask, mask, 0.0)))
