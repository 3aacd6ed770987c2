"""clnn's own side of sequences.py, as its users write it: recorded steps, each given its batch as an array."""

from __future__ import annotations

from typing import Any

import numpy as np

from ... import losses
from ...attention import scaled_dot_product_attention
from ...generation import generate
from ...layers import GRU, LSTM, Embedding, LayerNorm, PositionalEmbedding, TransformerEncoderLayer
from ...model import Model
from ...optim import Adam, AdamW
from ...step import step as recorded
from ...tape import no_grad
from ...tensor import Tensor, constant, tensor
from .sequences import BATCHES, CHECKED, DECAY, FIRST, GATES, LETTERS, LR, Task


class GPT(Model):
    """Embedded letters and places, causal blocks, and scores by the same embedding."""

    whole_inputs = True

    def __init__(self, task: Task) -> None:
        layers, heads, width, context, _ = task.sizes
        self.letters, self.places = Embedding(LETTERS, width), PositionalEmbedding(context)
        self.blocks = [TransformerEncoderLayer(heads, 4 * width, causal=True) for _ in range(layers)]
        self.norm = LayerNorm()

    def forward(self, *inputs: Tensor) -> Tensor:
        x = self.places(self.letters(*inputs))
        for block in self.blocks:
            x = block(x)
        return self.letters.tied(self.norm(x))

    def take(self, task: Task) -> None:
        """Have the task's weights."""
        with no_grad():
            self(np.zeros(task.sizes[:2:-1], np.int32))
        of_norm, of_dense = ("gamma", "beta"), ("w", "b")
        block = [f"norm_1.{n}" for n in of_norm]
        block += [f"attention.{n}{part}" for part in "qkvo" for n in of_dense]
        block += [f"norm_2.{n}" for n in of_norm] + [f"{layer}.{n}" for layer in ("widen", "narrow") for n in of_dense]
        names = ["letters.w", "places.w", *(f"blocks.{i}.{name}" for i in range(len(self.blocks)) for name in block)]
        names += [f"norm.{n}" for n in of_norm]
        self.load_state_dict(dict(zip(names, task.arrays(), strict=True)))


def sequence(task: Task) -> Any:
    """run(count), which waits for its results, and result(), which gives what `task.wanted()` has."""
    if task.kind == "attention":
        return _attention(task)
    if task.kind in GATES:
        return _recurrent(task)
    if task.kind == "generate":
        return _writing(task)
    step, at = _steps(task), 0

    def run(count: int) -> None:
        nonlocal at
        for _ in range(count):
            loss, at = step(at), at + 1
        float(loss)

    def result() -> list[Any]:
        fresh = _steps(task)
        return [np.array([float(fresh(i)) for i in range(CHECKED)])]

    return run, result


def _steps(task: Task) -> Any:
    """A training step from the task's first weights on, as a function of the batch's number."""
    batches = [task.batch(i) for i in range(BATCHES)]
    if task.kind == "gpt":
        net: Any = GPT(task)
        net.take(task)
        optimizer: Any = AdamW(LR, weight_decay=DECAY)
    else:
        net, (first, wanted) = Embedding(*task.sizes[:2]), task.arrays()
        net(batches[0])
        net.load_state_dict({"w": first})
        optimizer, target = Adam(LR), constant(wanted)

    @recorded
    def step(x: Any, following: Any) -> Tensor:
        if task.kind == "gpt":
            of = losses.cross_entropy  # type: ignore[attr-defined]
            loss = of(net(x).reshape(-1, LETTERS), following.reshape(-1))
        else:
            loss = ((net(x) - target) ** 2).sum() * (0.5 / x.shape[0])
        loss.backward()
        optimizer.step(net.parameters())
        return loss

    return lambda i: step(batches[i % BATCHES][:, : task.sizes[3]], batches[i % BATCHES][:, 1:])


def _writing(task: Task) -> Any:
    net: Any = GPT(task)
    net.take(task)
    *_, tokens, batch = task.sizes
    write = lambda: generate(net, np.full((batch, 1), FIRST), tokens, temperature=0)  # noqa: E731
    if tokens > 100:
        for _ in range(20):  # by then the steps of a text are one kernel, where they ever are
            write()
    return lambda count: [write() for _ in range(count)][-1], lambda: [write()]


def _attention(task: Task) -> Any:
    *arrays, slope = task.arrays()
    given: list[Any] = [tensor(a, requires_grad=True) for a in arrays]
    step, run = _backward(lambda: scaled_dot_product_attention(*given, causal=True), constant(slope), given)
    return run, lambda: [step().numpy(), *(one.grad.numpy() for one in given)]


def _recurrent(task: Task) -> Any:
    given, *weights, slope = task.arrays()
    layer: Any = (LSTM if task.kind == "lstm" else GRU)(task.sizes[3], return_sequences=True)
    x: Any = tensor(given, requires_grad=True)
    layer(x)
    layer.load_state_dict(dict(zip(("w", "u", "b", "recurrent_b"), weights)))
    step, run = _backward(lambda: layer(x), constant(slope), (layer, x))
    return run, lambda: [step().numpy(), x.grad.numpy(), *(p.grad.numpy() for p in layer.parameters())]


def _backward(forward: Any, dy: Tensor, learning: Any) -> Any:
    """A step, forwards and back from `dy`, and so many of them; `learning` is what gets gradients."""

    @recorded
    def step() -> Tensor:
        for one in learning:
            one.zero_grad()
        y: Tensor = forward()
        y.backward(dy)
        return y

    def run(count: int) -> None:
        for _ in range(count):
            step()
        dy.device.finish()

    return step, run
