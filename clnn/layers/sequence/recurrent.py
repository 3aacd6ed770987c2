"""Recurrent layers: SimpleRNN, LSTM and GRU over sequences (batch, steps, features)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from ...arrays import arange
from ...checks import check_count, in_range
from ...errors import ConfigurationError, ShapeError
from ...init import Initialiser, find_initialiser
from ...ops.activation import activation_name
from ...ops.array import Array
from ...ops.random import dropout
from ...ops.sequence.recurrent import GATES, STATES, Cell, recurrent
from ...ops.shape import concatenate
from ...random import generator
from ...tape import grad_enabled
from ...tensor import Tensor, apply, linear_layer, on_tape, ones
from ..base import Layer, register

__all__ = ["GRU", "LSTM", "SimpleRNN"]


class _Recurrent(Layer):
    """What the three share. Parameters: w (features, G units), u (units, G units), b (G units,) for G gates."""

    shaping = frozenset(("units", "use_bias", "unit_forget_bias", "weight_init", "recurrent_init", "bias_init"))
    kind = "RNN"

    def __init__(
        self,
        units: int,
        activation: str | None = "tanh",
        *,
        use_bias: bool = True,
        return_sequences: bool = False,
        return_state: bool = False,
        go_backwards: bool = False,
        stateful: bool = False,
        dropout: float = 0.0,
        recurrent_dropout: float = 0.0,
        weight_init: str | float | Initialiser = "glorot_uniform",
        recurrent_init: str | float | Initialiser = "orthogonal",
        bias_init: str | float | Initialiser = "zeros",
    ) -> None:
        what = type(self).__name__
        self.units = check_count(f"{what}'s units", units)
        self.activation = activation_name(activation)
        self.use_bias = bool(use_bias)
        self.return_sequences, self.return_state = bool(return_sequences), bool(return_state)
        self.go_backwards = bool(go_backwards)
        if stateful:
            raise ConfigurationError(
                f"{what}: stateful=True would carry states between calls unseen, through fit's shuffling too: take "
                "return_state=True, and give the states to the next call, layer(x, *states), in a loop of your own"
            )
        self.dropout = in_range(f"{what}'s dropout", dropout, 0.0, 1.0)
        self.recurrent_dropout = in_range(f"{what}'s recurrent_dropout", recurrent_dropout, 0.0, 1.0)
        self.weight_init, self.recurrent_init, self.bias_init = weight_init, recurrent_init, bias_init
        for init in (weight_init, recurrent_init, bias_init):
            find_initialiser(init)

    def build(self, *shapes: tuple[int, ...]) -> None:
        shape, gates = shapes[0], GATES[self.kind]
        if len(shape) != 2:
            raise self.wrong_shape(
                ShapeError(f"an input is (batch, steps, features), and this one has the shape {(None, *shape)}")
            )
        self.w = self.parameter((shape[1], gates * self.units), self.weight_init)
        self.u = self.parameter((self.units, gates * self.units), self.recurrent_init)
        self.b = self.parameter((gates * self.units,), self._first_bias()) if self.use_bias else None

    def _first_bias(self) -> str | float | Initialiser:
        return self.bias_init

    def _recurrent_bias(self) -> Tensor | None:
        return None

    def forward(self, *inputs: Tensor) -> Any:
        x, *rest = inputs
        if x.ndim != 3 or x.shape[2] != self.w.shape[0]:
            raise self.wrong_shape(
                ShapeError(f"an input is (batch, steps, {self.w.shape[0]}) here, and this one has the shape {x.shape}")
            )
        mask = None
        if rest and rest[-1].ndim == 1:
            mask = self._by_lengths(x, rest.pop())
        if len(rest) not in (0, STATES[self.kind]):
            names = ("h", "c")[: STATES[self.kind]]
            raise self.wrong_shape(
                ShapeError(
                    f"beside x go the states {', '.join(names)}, each (batch, units), or none, and lengths (batch,); "
                    f"{len(rest)} states were given"
                )
            )
        return self.over(x, rest, mask)

    def _by_lengths(self, x: Tensor, lengths: Tensor) -> Tensor:
        """1 for each step of a sequence, 0 for those past its length."""
        batch, steps, _ = x.shape
        if lengths.shape != (batch,):
            raise self.wrong_shape(
                ShapeError(
                    f"lengths are (batch,), one for each of {batch} sequences, and have the shape {lengths.shape}"
                )
            )
        return arange(steps, dtype=lengths.dtype, device=x.device).reshape(1, steps) < lengths.reshape(batch, 1)

    def over(self, x: Tensor, states: Sequence[Tensor] = (), mask: Tensor | None = None, aligned: bool = False) -> Any:
        """The layer's output where a mask (batch, steps) is not 0; `aligned` as in `Cell`."""
        batch, steps, features = x.shape
        if grad_enabled() and self.dropout:
            x = x * self._dropped((batch, 1, features), self.dropout)  # one for all steps
        drop = (
            self._dropped((batch, self.units), self.recurrent_dropout)
            if grad_enabled() and self.recurrent_dropout
            else None
        )
        cell = Cell(
            self.kind, self.activation, getattr(self, "recurrent_activation", "sigmoid"), self.go_backwards, aligned,
            self.return_sequences, self.return_state,
        )  # fmt: skip
        z = linear_layer(x, self.w, self.b, "linear")
        bias = self._recurrent_bias()
        inputs = (z, self.u, *(() if bias is None else (bias,)), *states)
        keep = grad_enabled() and any(t.requires_grad for t in inputs)
        try:
            y, backward = recurrent(z, self.u, bias, tuple(states), mask, drop, cell=cell, keep=keep)
        except ShapeError as error:
            raise self.wrong_shape(error) from None
        out = on_tape(y, inputs, backward, (self.u,))
        if not self.return_state:
            return out if self.return_sequences else out.reshape(batch, self.units)
        last = [out[:, i - cell.rows] for i in range(cell.rows)]
        return (out[:, :steps] if self.return_sequences else last[0], *last)

    def _dropped(self, shape: tuple[int, ...], rate: float) -> Tensor:
        """Zeros with probability `rate`, else 1 / (1 - rate)."""
        return apply(dropout, ones(shape, self.dtype, self.device), rate=rate, generator=generator(self.device))

    def config(self) -> dict[str, Any]:
        initialisers = {
            key: getattr(self, key)
            for key in ("weight_init", "recurrent_init", "bias_init")
            if isinstance(getattr(self, key), (str, int, float))  # a function is not saved: the values are
        }
        names = ("units", "activation", "use_bias", "return_sequences", "return_state", "go_backwards", "dropout")
        return {
            **{name: getattr(self, name) for name in names},
            "recurrent_dropout": self.recurrent_dropout,
            **initialisers,
        }


@register
class SimpleRNN(_Recurrent):
    """h' = f(x w + b + h u) at each step of x (batch, steps, features): the last h, (batch, units) (Elman 1990).

    w (features, units), u (units, units), b (units,). `return_sequences` gives h of every step, (batch, steps, units);
    `return_state` a tuple (output, h after all steps); `go_backwards` reads the last step first, and has sequences in the order
    of reading. `dropout` drops features of x, `recurrent_dropout` parts of h on its way into the product, each the same for all
    steps of a sequence. Beside x the layer takes the first h, (batch, units), and lengths, (batch,): `rnn(x, h, lengths)`, either
    of them alone too. Past its length a sequence's h stays as it is, so that the last h is that at its length.

    Arguments as Keras has them. `activation` is a name of clnn/ops/activation.py; initialisers are names of clnn/init.py.
    ShapeError for inputs without steps and for states of another batch. ConfigurationError for stateful=True: give the states
    of one call to the next.
    """


class _Gated(_Recurrent):
    """What LSTM and GRU share."""

    def __init__(
        self, units: int, activation: str | None = "tanh", recurrent_activation: str | None = "sigmoid", **options: Any
    ) -> None:
        super().__init__(units, activation, **options)
        self.recurrent_activation = activation_name(recurrent_activation)

    def config(self) -> dict[str, Any]:
        return {**super().config(), "recurrent_activation": self.recurrent_activation}


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

    def config(self) -> dict[str, Any]:
        return {**super().config(), "unit_forget_bias": self.unit_forget_bias}


@register
class GRU(_Gated):
    """h' = s(z) h + (1 - s(z)) f(x_h + s(r) (h u_h + recurrent_b_h)), where x_h is the gate h's part of x w + b, at each step of
    x (batch, steps, features): the last h, (batch, units) (Cho et al. 2014).

    Gates lie in Keras' order z, r, h: w (features, 3 units), u (units, 3 units), b and recurrent_b (3 units,). The reset gate r
    acts after the recurrent product, which has a bias of its own, as with cuDNN, PyTorch, and Keras' reset_after=True; the form
    before the product is a ConfigurationError. s is `recurrent_activation`; the rest is as `SimpleRNN` has it.
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
        if not reset_after:
            raise ConfigurationError(
                "GRU: reset_after=False, the reset gate before the recurrent product, is not here; reset_after=True is the form "
                "of cuDNN, PyTorch, and ONNX with linear_before_reset=1"
            )
        super().__init__(units, activation, recurrent_activation, **options)

    def build(self, *shapes: tuple[int, ...]) -> None:
        super().build(*shapes)
        self.recurrent_b = self.parameter((3 * self.units,), self.bias_init) if self.use_bias else None

    def _recurrent_bias(self) -> Tensor | None:
        return self.recurrent_b
