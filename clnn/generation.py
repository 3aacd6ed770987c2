"""Writing with a language model: one token after the other, each drawn from what the model makes of those before it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np

from .cache import Cache
from .checks import check_count, in_range, whole_array
from .errors import ConfigurationError, DataError, ShapeError
from .runtime.lock import exclusive
from .runtime.recorder import StepContext
from .step import Step
from .tape import no_grad
from .tensor import Tensor, constant
from .train import predict
from .train.inputs import as_inputs, build_for


@exclusive("device.lock")
def generate(
    model: Any,
    prompt: Any,
    n: int,
    *,
    window: int | None = None,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int | None = None,
    cache: bool = True,
    inputs: Sequence[Any] = (),
) -> np.ndarray:
    """`n` more tokens after a prompt (time,), or after each of several of one length, (batch, time): int32 (n,) or (batch, n).

    The model takes tokens (batch, time) and gives scores (batch, time, tokens), of which those of the last step say what
    comes next. Training in other threads waits meanwhile: all tokens are of the same weights.

    window: the model sees the last `window` tokens, at most as many as it has positions for; None for all of them.
    temperature: scores are divided by it; 0 takes the largest each time.
    top_k: only the k tokens of the largest scores are drawn from. top_p: only the fewest of the largest probabilities that add
        up to p or more (Holtzman et al. 2020).
    seed: draws are then the same in every call.
    cache: each token costs one step of the model, which keeps keys, values and states of those before (a KV cache), in one
        recorded step for all places. For that a step depends on those before by causal attention, learned, sinusoidal or rotary
        positions and recurrent layers of clnn's alone. Other models are found out: the scores are compared with those of the
        whole sequence, before the second token and at the end. With `cache=False` the model is run on the whole sequence for each
        token, as it is in any case from where the window is full on, since all places change then.
    inputs: further inputs of the model, such as what a decoder attends to, each with a row for each prompt.
    ShapeError for an empty prompt, for scores of another shape, and for more tokens than a model has positions; DataError
    for tokens below 0 and prompts of several lengths; ConfigurationError for options out of range, for a model that the cache
    does not suit, and for scores that are NaN or infinite, such as those of a token that it does not know.
    """
    given = whole_array(prompt, "a prompt")
    tokens = given[None] if given.ndim == 1 else given
    if tokens.ndim != 2 or not tokens.size:
        raise ShapeError(
            f"a prompt is (time,) or (batch, time) with at least one token, and its shape is {given.shape}"
        )
    if tokens.min() < 0:
        raise DataError(f"generate: tokens are numbers from 0 on, and {tokens.min()} was given")
    if not isinstance(inputs, (tuple, list)):
        raise ConfigurationError(
            f"generate: inputs are a tuple, one for each further input, not {type(inputs).__name__}"
        )
    n, window = check_count("n", n, 0), check_count("window", window) if window is not None else None
    temperature = in_range("temperature", temperature, 0.0, math.inf)
    top_k = None if top_k is None else check_count("top_k", top_k)
    top_p = None if top_p is None else in_range("top_p", top_p, 0.0, 1.0, "(]")
    if seed is not None:
        seed = check_count("seed", seed, 0)
    draws, (batch, start) = np.random.default_rng(seed), tokens.shape
    tokens, *rest = as_inputs((tokens, *inputs), model)
    whole = np.empty((batch, start + n), tokens.dtype)
    whole[:, :start] = tokens
    most = start + n - 1 if window is None else min(window, start + n - 1)  # steps that the model sees at a time
    steps = _Steps.of(model, most, [tokens, *rest]) if cache and start <= most else None
    for end in range(start, start + n):
        if steps is not None and end <= most:
            scores = steps.next(whole[:, :end])
        else:
            scores = _scores(model, whole[:, max(0, end - most) : end], rest)[:, -1]
        scores = scores.astype(np.float64)
        largest = scores.max(-1, keepdims=True)
        if not np.isfinite(largest).all():
            wrong = largest[~np.isfinite(largest)][0]
            raise ConfigurationError(
                f"generate: the largest of the model's scores is {wrong}: its weights may be NaN or too large, or a token may be "
                f"none that it knows, and those here go up to {whole[:, :end].max()}"
            )
        if temperature == 0:
            whole[:, end] = scores.argmax(-1)
        else:
            with np.errstate(over="ignore"):  # far below the largest, where a small temperature leaves nothing
                whole[:, end] = _drawn((scores - largest) / temperature, top_k, top_p, draws)
        if steps is not None and end == most and steps.checked < len(steps.told) > 1:
            steps.check(whole[:, :end])
    found = whole[:, start:].astype(np.int32)
    return found[0] if given.ndim == 1 else found


def _scores(model: Any, tokens: np.ndarray, rest: Sequence[np.ndarray]) -> np.ndarray:
    """What the model makes of whole sequences."""
    scores = predict(model, (tokens, *rest))
    _check(tokens, scores)
    return scores


def _check(tokens: Any, scores: Any) -> None:
    if not hasattr(scores, "ndim") or scores.ndim != 3 or scores.shape[:2] != tokens.shape:
        raise ShapeError(
            f"generate: for tokens of shape {tokens.shape} the model gave {getattr(scores, 'shape', scores)}, and not (batch, "
            "time, tokens)"
        )


class _Steps:
    """A model's steps one after the other by a cache of those before; kept by the model between calls."""

    def __init__(self, model: Any, room: int, inputs: Sequence[np.ndarray]) -> None:
        self.model, self.device, self.dtype = model, model.device, inputs[0].dtype
        self.cache = Cache(model.device, room)
        self.tokens = model.device.memory.allocate(len(inputs[0]) * room * self.dtype.itemsize)
        self.rest = [constant(x, x.dtype, model.device) for x in inputs[1:]]
        self.step = Step(self._forward, reads=[model])
        self.proved = False  # whether a check has gone well

    @classmethod
    def of(cls, model: Any, most: int, inputs: Sequence[np.ndarray]) -> _Steps:
        """Those for such inputs, with room for `most` steps, of which none is taken yet."""
        room = max(16, 1 << (most - 1).bit_length())  # so that longer texts have the same recording
        key = ("generate", room, len(inputs[0]), inputs[0].dtype, *[(x.shape, x.dtype) for x in inputs[1:]])
        kept = model.__dict__.setdefault("_evaluations", {})
        if key not in kept:
            build_for(model, inputs)
            while len(kept) >= 4:
                kept.pop(next(iter(kept)))
            kept[key] = cls(model, room, inputs)
        one: _Steps = kept[key]
        one.begin(inputs[1:], most)
        return one

    def begin(self, rest: Sequence[np.ndarray], most: int) -> None:
        """Forget all steps; up to `most` will follow, and `rest` are the model's further inputs."""
        for x, there in zip(rest, self.rest, strict=True):
            self.device.upload(np.ascontiguousarray(x), there.block)
        self.cache.rewind()
        self.on_host, self.most, self.taken = rest, most, 0
        self.passes: dict[int, tuple[Any, Any]] = {}  # by how many steps one takes, its key and what is run
        self.told: list[np.ndarray] = []
        self.checked = 0  # of them

    def next(self, tokens: np.ndarray) -> np.ndarray:
        """The scores (batch, tokens) after the last of all tokens (batch, time), of which the new ones' steps are taken."""
        batch, time = tokens.shape
        new, self.taken = time - self.taken, time
        self.device.upload_soon(np.ascontiguousarray(tokens[:, -new:]), self.tokens)
        with no_grad():
            if new not in self.passes:  # what the model's Python reads does not change in this call
                self.passes[new] = self.step.key(self.device, new), partial(self._forward, batch=batch, steps=new)
                self.step.verify(self.device, *self.passes[new])
            try:
                scores = self.step.run(self.device, *self.passes[new])[0].numpy()
            except (ConfigurationError, ShapeError) as error:
                self.cache.check(self.most)
                raise ConfigurationError(
                    f"generate: {error}; with cache=False the model is run on the whole sequence for each token"
                ) from error
        self.cache.check(self.most)
        self.told.append(scores)
        if len(self.told) == 2 and not self.proved:  # else it is found out when all is written
            self.check(tokens)
        return scores

    def _forward(self, context: StepContext, batch: int, steps: int) -> Tensor:
        x = Tensor(self.tokens, (batch, steps), self.dtype, self.device)
        with self.cache.open():
            y = self.model.forward(x, *self.rest)
        _check(x, y)
        context.advance(self.cache.past.block, steps)
        return y.reshape(batch, -1) if steps == 1 else y[:, -1]

    def check(self, tokens: np.ndarray) -> None:
        """ConfigurationError where the scores so far are not those of the whole sequence of tokens (batch, time)."""
        whole = _scores(self.model, tokens, self.on_host)[:, -len(self.told) :]
        told, size = np.stack(self.told, 1), np.abs(whole[np.isfinite(whole)]).max(initial=0)
        with np.errstate(invalid="ignore"):
            apart = np.where(whole == told, 0, np.abs(whole - told)).max()  # -inf is equal to itself
        if apart > 3 * np.sqrt(np.finfo(whole.dtype).eps) * size:  # NaN is found elsewhere
            raise ConfigurationError(
                f"generate: steps by the cache and the whole sequence give scores that differ by up to {apart:.3g}, where the "
                f"largest is {size:.3g}: something in the model depends on steps before, or on places, that is no causal "
                "attention, position or recurrent layer of clnn's. With cache=False the model is run on the whole sequence for "
                "each token"
            )
        self.proved, self.checked = True, len(self.told)


def _drawn(scores: np.ndarray, top_k: int | None, top_p: float | None, draws: np.random.Generator) -> np.ndarray:
    """One token for each row of scores (batch, tokens), of which the largest are 0."""
    ranked, order = scores, None
    if top_k is not None or top_p is not None:
        order = np.argsort(-scores, -1, kind="stable")
        ranked = np.take_along_axis(scores, order, -1)
    if top_k is not None:
        ranked[:, top_k:] = -np.inf
    p = np.exp(ranked)
    p /= p.sum(-1, keepdims=True)
    if top_p is not None:
        p = np.where(np.cumsum(p, -1) - p < top_p, p, 0)
        p /= p.sum(-1, keepdims=True)
    at = (np.cumsum(p, -1) < draws.random((len(p), 1))).sum(-1)
    last = p.shape[-1] - 1 - (p[:, ::-1] > 0).argmax(-1)
    at = np.minimum(at, last)  # where rounding leaves the sum below 1
    return at if order is None else np.take_along_axis(order, at[:, None], -1)[:, 0]
