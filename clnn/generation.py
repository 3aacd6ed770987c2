"""Writing with a language model: one token after the other, each drawn from what the model makes of those before it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from .cache import Cache
from .checks import check_count, in_range, whole_array
from .errors import ClnnError, ConfigurationError, DataError, ShapeError
from .ops.index import check_rows, missing_rows
from .ops.sequence.sampling import Draws
from .runtime.lock import exclusive
from .runtime.recorder import StepContext
from .step import Step
from .tape import no_grad
from .tensor import Tensor, constant, function
from .train import predict
from .train.inputs import as_inputs, build_for, made_by

DRAWS = 64  # at most, before the host looks at them, where a model sees a window
TOLD = 1 << 26  # bytes, about, of scores that wait on the device to be compared with those of the whole sequence


class _How(NamedTuple):
    """How tokens are drawn: the numbers that decide it are uniform (n, batch)."""

    temperature: float
    top_k: int | None
    top_p: float | None
    uniform: np.ndarray

    @property
    def ranked(self) -> bool:
        """Whether some tokens are left out."""
        return self.temperature > 0 and (self.top_k is not None or self.top_p is not None)


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
    """`n` more tokens after a prompt (time,), or after each of several, (batch, time) or a list of arrays of any lengths: int32
    (n,) or (batch, n).

    The model takes tokens (batch, time) and gives scores (batch, time, tokens), or the probabilities of a softmax, of which those
    of the last step say what comes next. Training in other threads waits meanwhile: all tokens are of the same weights. Prompts
    of one length are written after together, others apart, so that no prompt needs padding.

    window: the model sees the last `window` tokens, at most as many as it has positions for; None for all of them.
    temperature: scores are divided by it; 0 takes the largest each time.
    top_k: only the k tokens of the largest scores are drawn from. top_p: only the fewest of the largest probabilities that add
        up to p or more (Holtzman et al. 2020).
    seed: draws are then the same in every call, and on every device as far as scores are the same there.
    cache: each token costs one step of the model, which keeps keys, values and states of those before (a KV cache), in one
        recorded step for all places. For that a step depends on those before by causal attention, learned, sinusoidal or rotary
        positions and recurrent layers of clnn's alone. Other models are found out: the scores are compared with those of the
        whole sequence, before the third token and at the end. With `cache=False` the model is run on the whole sequence for each
        token, as it is in any case from where the window is full on, since all places change then.
    inputs: further inputs of the model, such as what a decoder attends to, each with a row for each prompt.
    ShapeError for an empty prompt, for scores of another shape, and for more tokens than a model has positions; DataError
    for tokens below 0; ConfigurationError for options out of range, for a model that the cache does not suit, and for scores
    that are NaN or infinite, such as those of a token that it does not know; ClnnError within a step.
    """
    groups, alone = _by_length(prompt)
    if stateful := model.stateful_layers():
        raise ConfigurationError(
            f"generate carries states on by itself, beside those of {stateful[0].name or type(stateful[0]).__name__}, which is "
            "stateful: give the same weights to a model whose layers are not (load_state_dict)"
        )
    if not isinstance(inputs, (tuple, list)):
        raise ConfigurationError(f"generate: inputs are a tuple of the further ones, not {type(inputs).__name__}")
    n, window = check_count("n", n, 0), check_count("window", window) if window is not None else None
    temperature = in_range("temperature", temperature, 0.0, math.inf)
    top_k = None if top_k is None else check_count("top_k", top_k)
    top_p = None if top_p is None else in_range("top_p", top_p, 0.0, 1.0, "(]")
    seed = None if seed is None else check_count("seed", seed, 0)
    model.device.check_outside("generate", "its tokens come from steps of its own")
    batch = sum(len(rows) for rows, _ in groups)
    how = _How(temperature, top_k, top_p, np.random.default_rng(seed).random((n, batch)))
    if len(groups) == 1:
        return _written(model, [groups[0][1], *inputs], n, window, how, cache)[0 if alone else slice(None)]
    found, given = np.empty((batch, n), np.int32), [np.asarray(x) for x in inputs]
    if any(x.shape[:1] != (batch,) for x in given):
        told = f"generate: {batch} prompts, and inputs of the shapes {', '.join(str(x.shape) for x in given)}"
        raise ShapeError(told)
    for rows, tokens in groups:
        of_rows = how._replace(uniform=how.uniform[:, rows])
        found[rows] = _written(model, [tokens, *(x[rows] for x in given)], n, window, of_rows, cache)
    return found


def _by_length(prompt: Any) -> tuple[list[tuple[list[int], np.ndarray]], bool]:
    """For each length the numbers of its prompts and the prompts (count, length); and whether one was given as (time,)."""
    several = isinstance(prompt, (tuple, list)) and len({np.shape(one)[:1] for one in map(_array, prompt)}) > 1
    given = (
        [whole_array(one, f"prompt {i}") for i, one in enumerate(prompt)]
        if several
        else [whole_array(prompt, "a prompt")]
    )
    groups: dict[int, list[int]] = {}
    for i, one in enumerate(given):
        if one.ndim not in ((1,) if several else (1, 2)) or not one.size:
            raise ShapeError(
                f"a prompt is (time,) or (batch, time) with at least one token, and its shape is {one.shape}"
                + (f", number {i} of a list" if several else "")
            )
        if one.min() < 0:
            raise DataError(f"generate: tokens are numbers from 0 on, and {one.min()} was given")
        groups.setdefault(one.shape[-1], []).append(i)
    if several:
        return [(rows, np.stack([given[i] for i in rows])) for rows in groups.values()], False
    tokens = np.atleast_2d(given[0])
    return [([*range(len(tokens))], tokens)], given[0].ndim == 1


def _array(one: Any) -> Any:
    """What has a shape: an array, or a list's numbers as one where they make one."""
    return one if hasattr(one, "shape") else np.array(one, object) if isinstance(one, (tuple, list)) else 0


def _written(model: Any, given: list[Any], n: int, window: int | None, how: _How, cache: bool) -> np.ndarray:
    """`n` more tokens after each of prompts of one length, (batch, n); they are the first of all `given` inputs."""
    check_rows(model.device)  # of steps before, which are to blame themselves
    try:
        return _write(model, given, n, window, how, cache)
    except ClnnError:
        missing_rows(model.device)  # of steps of this call that went too far: the next one is not to blame
        raise


def _write(model: Any, given: list[Any], n: int, window: int | None, how: _How, cache: bool) -> np.ndarray:
    tokens, *rest = as_inputs(tuple(given), model)
    (batch, start), total = tokens.shape, tokens.shape[1] + n
    whole = np.empty((batch, total), np.int32)
    whole[:, :start] = tokens
    most = total - 1 if window is None else min(window, total - 1)  # steps that the model sees at a time
    end = start
    if cache and start <= most and n:
        end = _Writer.of(model, most, True, [tokens, *rest]).write(whole, end, min(total, most + 1), how)
    if end < total:
        writer = _Writer.of(model, most, False, [tokens[:, -most:], *rest])
        while end < most:  # a longer sequence each time
            end = writer.write(whole, end, end + 1, how)
        writer.write(whole, end, total, how)
    return whole[:, start:]


def _check(tokens: Any, scores: Any) -> None:
    if not hasattr(scores, "ndim") or scores.ndim != 3 or scores.shape[:2] != tokens.shape:
        raise ShapeError(
            f"generate: for tokens of shape {tokens.shape} the model gave {getattr(scores, 'shape', scores)}, and not (batch, "
            "time, tokens)"
        )


class _Writer:
    """A model's steps and the draws after them, which the host enqueues without looking at tokens; kept by the model between
    calls. With a `cache` a step takes the last token alone; else the last `most`, or fewer where there are no more.
    """

    def __init__(self, model: Any, most: int, cache: bool, inputs: Sequence[np.ndarray]) -> None:
        self.model, self.device, self.dtype, self.most = model, model.device, inputs[0].dtype, most
        self.cache = Cache(model.device, most) if cache else None
        batch, width, room = len(inputs[0]), 1 if cache else most, most if cache else DRAWS
        self.draws = Draws(self.device, model.dtype, room, batch, width)
        self.slots = 2  # draws that may wait to be looked at; how many more, the first one says
        self.first = self.device.memory.allocate(batch * most * 4)  # tokens of a step that is taken once
        self.rest = [constant(x, x.dtype, model.device) for x in inputs[1:]]
        self.step = Step(self._forward, reads=[model])
        self.proved = self.began = False  # whether a check has gone well, and whether a step of this call was taken
        self.count = 0  # draws that are under way
        self.on_host, self.most_taken = inputs[1:], most
        self.passes: dict[Any, tuple[Any, Any]] = {}  # by what one takes, its key and what is run

    @classmethod
    def of(cls, model: Any, most: int, cache: bool, inputs: Sequence[np.ndarray]) -> _Writer:
        """One for such inputs, which has room for `most` steps, and has taken none yet."""
        room = max(16, 1 << (most - 1).bit_length()) if cache else most  # so that longer texts have the same recording
        key = ("generate", cache, room, len(inputs[0]), inputs[0].dtype, *[(x.shape, x.dtype) for x in inputs[1:]])
        kept = model.__dict__.setdefault("_evaluations", {})
        if key not in kept:
            outputs = build_for(model, inputs)
            if outputs.several or len(outputs.shapes[0]) != 2:
                told = ("a tuple or dict of " if outputs.several else "") + ", ".join(map(str, outputs.shapes))
                raise ShapeError(
                    f"generate: the model gives {told} for a sequence, and what is wanted is one tensor (time, tokens): the "
                    "scores of each step, such as those of recurrent layers with return_sequences=True"
                )
            while len(kept) >= 4:
                kept.pop(next(iter(kept)))
            kept[key] = cls(model, room, cache, inputs)
        one: _Writer = kept[key]
        for x, there in zip(inputs[1:], one.rest, strict=True):
            one.device.upload(np.ascontiguousarray(x), there.block)
        if one.cache is not None:
            one.cache.rewind()
        one.on_host, one.most_taken = inputs[1:], most
        one.passes, one.began = {}, False
        return one

    def write(self, whole: np.ndarray, start: int, stop: int, how: _How) -> int:
        """Draw tokens `start` to `stop` of `whole` (batch, time), of which those before are there; `stop`."""
        self.draws.decide(how.temperature, how.top_k, how.top_p)
        drawn_before, end = whole.shape[1] - len(how.uniform), start
        while end < stop:
            self.count = count = min(stop - end, self.slots if self.proved or self.cache is None else 2)
            self.draws.begin(how.uniform[end - drawn_before :][:count])
            steps, left = self._last(whole, end), count
            if steps != self.draws.width:
                self._upload(whole[:, end - steps : end], self.first)
                self._run(True, steps, how, 1)
                left -= 1
            elif self.cache is None or not self.began:
                self._upload(whole[:, end - steps : end], self.draws.next)
            self.began = True
            self._run(False, self.draws.width, how, left)
            tokens, tops = self.draws.read(count)
            whole[:, end : end + count] = tokens
            if (wrong := ~np.isfinite(tops)).any():
                at = int(np.argmax(wrong.any(0)))
                raise ConfigurationError(
                    f"generate: the largest of the model's scores is {tops[:, at][wrong[:, at]][0]}: its weights may be NaN or "
                    f"too large, or a token may be none that it knows, and those here go up to {whole[:, : end + at].max()}"
                )
            end += count
            if self.cache is not None and end - start > 1:
                self._prove(whole[:, : end - 1], count)
        return end

    def _last(self, whole: np.ndarray, end: int) -> int:
        """How many tokens the next step takes."""
        if self.cache is None:
            return min(end, self.most)
        return 1 if self.began else end

    def _upload(self, tokens: np.ndarray, to: Any) -> None:
        self.device.upload_soon(np.ascontiguousarray(tokens), to)

    def _run(self, first: bool, steps: int, how: _How, times: int) -> None:
        """So many steps with a draw each, on tokens that were uploaded, or, unless `first`, on those drawn last."""
        kind = first, steps, how.ranked
        while times:
            if self.cache is not None:
                self.cache.check(self.most_taken)  # as far as a step before, or of another call, has told
            with no_grad():
                if kind not in self.passes:  # what the model's Python reads does not change in this call
                    key = self.step.key(self.device, kind)
                    self.passes[kind] = key, partial(self._forward, first=first, steps=steps, ranked=how.ranked)
                    self.step.verify(self.device, *self.passes[kind])
                try:
                    key, forward = self.passes[kind]
                    times -= self.step.run_some(self.device, key, forward, times, times)
                except (ConfigurationError, ShapeError) as error:
                    if self.cache is None:
                        raise
                    self.cache.check(self.most_taken)
                    told = f"generate: {error}; with cache=False the model is run on the whole sequence for each token"
                    raise ConfigurationError(told) from error
            if self.cache is not None:
                self.cache.check(self.most_taken)

    def _forward(self, context: StepContext, first: bool, steps: int, ranked: bool) -> None:
        draws = self.draws
        x = Tensor(self.first if first else draws.next, (draws.texts, steps), np.int32, self.device)
        x = x if self.dtype == np.int32 else x.astype(self.dtype)
        if self.cache is None:
            y = self.model(x, *self.rest)
        else:
            with self.cache.open():
                y = self.model(x, *self.rest)
        _check(x, y)
        if y.made_by == "softmax":  # scores whose softmax these probabilities are
            y = function(y, "log")
        if self.cache is not None:
            of_step = draws.texts * y.shape[-1] * draws.dtype.itemsize
            self.slots = max(2, self.count, min(draws.room, TOLD // of_step))
            draws.tell(self.slots, y.shape[-1])
            context.advance(self.cache.past.block, steps)
        else:
            self.slots = draws.room
        draws.draw(y.reshape(draws.texts, -1) if steps == 1 else y[:, -1], ranked)
        context.advance(draws.count)

    def _prove(self, tokens: np.ndarray, count: int) -> None:
        """ConfigurationError where the scores of the last `count` draws, the last after tokens (batch, time), are not those of
        the whole sequence."""
        whole = predict(self.model, (tokens.astype(self.dtype), *self.on_host))
        _check(tokens, whole)
        whole = whole[:, -count:]
        told, size = self.draws.scores(count, whole.shape[-1]), np.abs(whole[np.isfinite(whole)]).max(initial=0)
        told = np.exp(told) if made_by(self.model) == "softmax" else told
        with np.errstate(invalid="ignore"):
            apart = np.where(whole == told, 0, np.abs(whole - told)).max()  # -inf is equal to itself
        if apart > 3 * np.sqrt(np.finfo(whole.dtype).eps) * size:  # NaN is found elsewhere
            raise ConfigurationError(
                f"generate: steps by the cache and the whole sequence give scores that differ by up to {apart:.3g}, where the "
                f"largest is {size:.3g}: something in the model depends on steps before, or on places, that is no causal "
                "attention, position or recurrent layer of clnn's. With cache=False the model is run on the whole sequence for "
                "each token"
            )
        self.proved = True
