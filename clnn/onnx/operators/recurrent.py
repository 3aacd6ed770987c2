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
        )


def prepared(kind: str, w: Any, u: Any, b: Any = None, join: Any = np.concatenate) -> tuple[Any, Any, Any, Any]:
    """The weights, the bias and the recurrent bias of one direction, arrays or tensors, as clnn's cells have them."""
    order = ORDER[kind]

    def gates(x: Any) -> Any:
        size = x.shape[0] // len(order)
        return x if order == (*range(len(order)),) else join([x[i * size : (i + 1) * size] for i in order], 0)

    bias, more = None, None
    if b is not None:
        bias, more = gates(b[: b.shape[0] // 2]), gates(b[b.shape[0] // 2 :])
        if kind != "GRU":
            bias, more = bias + more, None
    return *(gates(t).transpose() for t in (w, u)), bias, more


def weights(kind: str, dtype: Any, w: Any, u: Any, b: Any = None) -> list[Any]:
    """`prepared` for arrays, one direction after the other."""
    w, u, b = (None if t is None else t.astype(dtype) for t in (w, u, b))
    found = [t for d in range(len(w)) for t in prepared(kind, w[d], u[d], None if b is None else b[d])]
    return [None if t is None else np.ascontiguousarray(t) for t in found]


def swapped(x: Tensor) -> Tensor:
    """x with its first two axes in the other order; by the same op for any number of samples, for what is exported again."""
    return x.transpose(1, 0, *range(2, x.ndim))


def joined(parts: Sequence[Tensor], axis: int) -> Tensor:
    """Tensors along a new axis."""
    shape = parts[0].shape
    return parts[0].reshape((*shape[:axis], 1, *shape[axis:])) if len(parts) == 1 else arrays.stack(parts, axis)


def over(
    form: Form,
    x: Tensor,
    w: Tensor,
    u: Tensor,
    bias: Tensor | None,
    recurrent_bias: Tensor | None,
    peepholes: Tensor | None,
    states: list[Tensor],
    mask: Any,
) -> tuple[Tensor, list[Tensor]]:
    """h of every step, (batch, steps, units), in the order of time, and the states at the end.

    x (batch, steps, features), w (features, G units), u (units, G units)."""
    kind = form.kind
    z, before = linear_layer(x, w, bias, "linear"), kind == "GRU" and not form.linear_before_reset
    if before and recurrent_bias is not None:  # nothing comes between the two
        z, recurrent_bias = z + recurrent_bias, None
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
    whole, units = u, u.shape[0]
    u, u_h = (whole[:, : 2 * units], whole[:, 2 * units :]) if before else (whole, None)
    inputs = (z, u, *(t for t in (recurrent_bias, u_h) if t is not None), *states)
    keep = grad_enabled() and any(t.requires_grad for t in inputs)
    y, backward = recurrent_op(z, u, recurrent_bias, tuple(states), mask, None, u_h, cell=cell, keep=keep)
    y = on_tape(y, inputs, backward, (whole,))
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
            else:  # its bias is in `now`
                inner = (reset * h) @ u_h
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
        x = c.tensor(x)
        ways = {"forward": [False], "reverse": [True], "bidirectional": [False, True]}.get(direction)
        if ways is None or x.ndim != 3 or w.ndim != 3 or r.ndim != 3 or w.shape[0] != len(ways):
            raise ShapeError(f"direction {direction!r}, input {x.shape}, weights {w.shape} and {r.shape} do not fit")
        peepholes = None if peepholes is None else c.tensor(peepholes)
        ready = c.prepared((w, r, b), lambda *given: weights(kind, x.dtype, *given))
        if ready is None:  # they are results, or learn
            w, r, b = c.tensor(w), c.tensor(r), None if b is None else c.tensor(b)
            ready = [
                t for d in range(len(ways)) for t in prepared(kind, w[d], r[d], None if b is None else b[d], concat)
            ]
        x = x if layout else swapped(x)
        batch, steps, units = x.shape[0], x.shape[1], r.shape[2]
        mask = None
        if lengths is not None and not (isinstance(lengths, np.ndarray) and (lengths == steps).all()):
            if isinstance(lengths, np.ndarray):
                mask = c.tensor((np.arange(steps) < lengths.reshape(-1, 1)).astype(np.float32))
            else:
                mask = c.tensor(np.arange(steps).reshape(1, -1)) < lengths.reshape(-1, 1)
        given = [c.tensor(t) for t in (h, state) if t is not None]
        given = [swapped(t) if layout else t for t in given]
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
            w_d, u_d, b_d, more = (None if t is None else c.tensor(t) for t in ready[4 * d : 4 * d + 4])
            y, last = over(form, x, w_d, u_d, b_d, more, None if peepholes is None else peepholes[d], at, mask)  # type: ignore[arg-type]
            if mask is not None:
                y = elementwise("multiply", y, mask.reshape(batch, steps, 1))
            sequences.append(y)
            ends.append(last)
        sequences = sequences if layout else [swapped(y) for y in sequences]
        whole = joined(sequences, 2 if layout else 1)
        c.gives(*[c.types[0]] * 3)
        return (whole, *(joined([one[i] for one in ends], 1 if layout else 0) for i in range(len(ends[0]))))

    operator(kind, since)(recurrent)


for _kind in USUAL:
    add(_kind, 7)
