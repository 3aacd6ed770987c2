"""RNN, LSTM and GRU: in one launch where clnn's cells do what is asked, else step by step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from ... import arrays
from ...errors import ShapeError
from ...ops.sequence.recurrent import Cell
from ...ops.sequence.recurrent import recurrent as recurrent_op
from ...tape import grad_enabled
from ...tensor import Tensor, concat, elementwise, function, linear_layer, on_tape
from ..registry import Context, operator

PLAIN = {"Sigmoid": "sigmoid", "Tanh": "tanh", "Relu": "relu", "Softsign": "softsign", "Softplus": "softplus"}
USUAL = {"LSTM": ["Sigmoid", "Tanh", "Tanh"], "GRU": ["Sigmoid", "Tanh"], "RNN": ["Tanh"]}
ORDER = {
    "LSTM": (0, 2, 3, 1),
    "GRU": (0, 1, 2),
    "RNN": (0,),
}  # of ONNX's gates (i, o, f, c; z, r, h) those of clnn in turn
PARAMETERS = {"LeakyRelu": (0.01, 0.0), "ThresholdedRelu": (1.0, 0.0), "HardSigmoid": (0.2, 0.5), "Elu": (1.0, 0.0),
              "ScaledTanh": (1.0, 1.0), "Affine": (1.0, 0.0)}  # fmt: skip


def activated(name: str, alpha: float, beta: float, x: Tensor) -> Tensor:
    """An activation of a recurrent operator."""
    if name in PLAIN:
        return function(x, PLAIN[name])
    if name == "LeakyRelu":
        return arrays.where(x < 0, x * alpha, x)
    if name == "ThresholdedRelu":
        return arrays.where(x >= alpha, x, 0.0)
    if name == "HardSigmoid":
        return arrays.clip(x * alpha + beta, 0.0, 1.0)
    if name == "Elu":
        return arrays.elu(x, alpha)
    return function(x * beta, "tanh") * alpha if name == "ScaledTanh" else x * alpha + beta


class Form(NamedTuple):
    """What is asked of one direction: the activations with their numbers, and how the gates go together."""

    kind: str
    activations: list[tuple[str, float, float]]
    clip: float
    input_forget: int
    linear_before_reset: int
    backwards: bool

    @property
    def fused(self) -> bool:
        """Whether clnn's cells do it."""
        names = [name for name, _, _ in self.activations]
        return (
            not self.clip
            and not self.input_forget
            and all(name in PLAIN for name in names)
            and (self.kind != "LSTM" or names[1] == names[2])
            and (self.kind != "GRU" or bool(self.linear_before_reset))
        )


def gates(x: Tensor, n: int, order: Sequence[int]) -> Tensor:
    """x, whose first axis has n gates, with these in another order."""
    if list(order) == [*range(n)]:
        return x
    size = x.shape[0] // n
    return concat([x[i * size : (i + 1) * size] for i in order], 0)


def over(
    form: Form,
    x: Tensor,
    w: Tensor,
    u: Tensor,
    b: Tensor | None,
    peepholes: Tensor | None,
    states: list[Tensor],
    mask: Any,
) -> tuple[Tensor, list[Tensor]]:
    """h of every step, (batch, steps, units), in the order of time, and the states at the end. x (batch, steps, features)."""
    n, kind = len(ORDER[form.kind]), form.kind
    w, u = (gates(t, n, ORDER[kind]).transpose() for t in (w, u))
    units = u.shape[0]
    bias, recurrent_bias = None, None
    if b is not None:
        bias, recurrent_bias = (gates(part, n, ORDER[kind]) for part in (b[: n * units], b[n * units :]))
        if kind != "GRU":
            bias, recurrent_bias = bias + recurrent_bias, None
    z = linear_layer(x, w, bias, "linear")
    if not form.fused or peepholes is not None:
        return stepwise(form, z, u, recurrent_bias, peepholes, states, mask)
    names = [PLAIN[name] for name, _, _ in form.activations]
    cell = Cell(
        kind,
        names[-1],
        names[0] if kind != "RNN" else "sigmoid",
        form.backwards,
        aligned=True,
        sequence=True,
        state=True,
    )
    inputs = (z, u, *(() if recurrent_bias is None else (recurrent_bias,)), *states)
    keep = grad_enabled() and any(t.requires_grad for t in inputs)
    y, backward = recurrent_op(z, u, recurrent_bias, tuple(states), mask, None, cell=cell, keep=keep)
    y = on_tape(y, inputs, backward, (u,))
    steps = x.shape[1]
    return y[:, :steps], [y[:, steps + i] for i in range(cell.rows)]


def stepwise(
    form: Form, z: Tensor, u: Tensor, bias: Tensor | None, peepholes: Tensor | None, states: list[Tensor], mask: Any
) -> tuple[Tensor, list[Tensor]]:
    """The same, a step after the other; the gates as clnn has them: i, f, c, o, and z, r, h."""
    steps, units = z.shape[1], u.shape[0]
    act: list[Any] = [
        lambda t, name=name, alpha=alpha, beta=beta: activated(name, alpha, beta, _clipped(t, form.clip))
        for name, alpha, beta in form.activations
    ]
    part = lambda t, i: t[..., i * units : (i + 1) * units]  # noqa: E731
    h, c = states[0], states[-1]
    found: list[Tensor] = [h] * steps
    p = [] if peepholes is None else [peepholes[i * units : (i + 1) * units] for i in range(3)]  # i, o, f
    for t in range(steps)[:: -1 if form.backwards else 1]:
        now = z[:, t]
        if form.kind == "RNN":
            h_new, c_new = act[0](now + h @ u), c
        elif form.kind == "LSTM":
            all_gates = now + h @ u
            of_i, of_f, of_c, of_o = (part(all_gates, i) for i in range(4))
            if p:
                of_i, of_f = of_i + c * p[0], of_f + c * p[2]
            i = act[0](of_i)
            f = 1.0 - i if form.input_forget else act[0](of_f)
            c_new = f * c + i * act[1](of_c)
            o = act[0](of_o + c_new * p[1] if p else of_o)
            h_new = o * act[2](c_new)
        else:
            recurrent = h @ u[:, : 2 * units]
            if bias is not None:
                recurrent = recurrent + bias[: 2 * units]
            update, reset = (act[0](part(now, i) + part(recurrent, i)) for i in range(2))
            u_h, b_h = u[:, 2 * units :], None if bias is None else bias[2 * units :]
            if form.linear_before_reset:
                inner = h @ u_h
                inner = reset * (inner if b_h is None else inner + b_h)
            else:
                inner = (reset * h) @ u_h
                inner = inner if b_h is None else inner + b_h
            h_new = (1.0 - update) * act[1](part(now, 2) + inner) + update * h
            c_new = c
        if mask is not None:
            there = mask[:, t : t + 1]
            h_new, c_new = arrays.where(there, h_new, h), arrays.where(there, c_new, c)
        h, c = h_new, c_new
        found[t] = h
    return arrays.stack(found, 1), [h, c][: len(states)]


def _clipped(x: Tensor, by: float) -> Tensor:
    return arrays.clip(x, -by, by) if by else x


def add(kind: str, since: int) -> None:
    """The entry of one of the three."""

    def recurrent(
        c: Context, x: Any, w: Any, r: Any, b: Any = None, lengths: Any = None, h: Any = None, state: Any = None,
        peepholes: Any = None, *, activation_alpha: Any = None, activation_beta: Any = None, activations: Any = None,
        clip: float = 0.0, direction: str = "forward", hidden_size: int = 0, input_forget: int = 0, layout: int = 0,
        linear_before_reset: int = 0, output_sequence: int = 0,
    ) -> Any:  # fmt: skip
        x, w, r = c.tensor(x), c.tensor(w), c.tensor(r)
        ways = {"forward": [False], "reverse": [True], "bidirectional": [False, True]}.get(direction)
        if ways is None or x.ndim != 3 or w.ndim != 3 or r.ndim != 3 or w.shape[0] != len(ways):
            raise ShapeError(f"direction {direction!r}, input {x.shape}, weights {w.shape} and {r.shape} do not fit")
        b, peepholes = (None if t is None else c.tensor(t) for t in (b, peepholes))
        x = x if layout else x.transpose(1, 0, 2)
        batch, steps, units = x.shape[0], x.shape[1], r.shape[2]
        mask = None
        if lengths is not None and not (isinstance(lengths, np.ndarray) and (lengths == steps).all()):
            if isinstance(lengths, np.ndarray):
                mask = c.tensor((np.arange(steps) < lengths.reshape(-1, 1)).astype(np.float32))
            else:
                mask = c.tensor(np.arange(steps).reshape(1, -1)) < lengths.reshape(-1, 1)
        given = [c.tensor(t) for t in (h, state) if t is not None]
        given = [t.transpose(1, 0, 2) if layout else t for t in given]
        names = activations or USUAL[kind] * len(ways)
        alphas, betas = iter(activation_alpha or ()), iter(activation_beta or ())
        each = len(USUAL[kind])
        known = []
        for name in names:
            usual = PARAMETERS.get(name)
            known.append((name, *((next(alphas, usual[0]), next(betas, usual[1])) if usual else (0.0, 0.0))))
        if len(known) != each * len(ways) or any(name not in (*PLAIN, *PARAMETERS) for name, _, _ in known):
            raise ShapeError(f"{kind} with the activations {names} is not known here")
        sequences: list[Tensor] = []
        ends: list[list[Tensor]] = []
        for d, backwards in enumerate(ways):
            form = Form(kind, known[d * each : (d + 1) * each], clip, input_forget, linear_before_reset, backwards)
            at: list[Any] = [t[d] for t in given]
            zero = c.tensor(np.zeros((batch, units), x.dtype)) if len(at) < (2 if kind == "LSTM" else 1) else None
            if h is None and state is not None:
                at = [zero, *at]
            at += [zero] * ((2 if kind == "LSTM" else 1) - len(at))
            y, last = over(
                form, x, w[d], r[d], None if b is None else b[d], None if peepholes is None else peepholes[d], at, mask
            )
            if mask is not None:
                y = elementwise("multiply", y, mask.reshape(batch, steps, 1))
            sequences.append(y)
            ends.append(last)
        whole = arrays.stack(sequences, 2)  # (batch, steps, directions, units)
        joined = [arrays.stack([one[i] for one in ends], 1 if layout else 0) for i in range(len(ends[0]))]
        c.gives(*[c.types[0]] * 3)
        return (whole if layout else whole.transpose(1, 2, 0, 3), *joined)

    operator(kind, since)(recurrent)


for _kind in USUAL:
    add(_kind, 7)
