"""Writing with a language model: one token after the other, each drawn from what the model makes of those before it."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from .checks import check_count, in_range, whole_array
from .errors import ConfigurationError, ShapeError


def generate(
    model: Any,
    prompt: Any,
    n: int,
    *,
    window: int,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int | None = None,
) -> np.ndarray:
    """`n` more tokens after a prompt (time,), or after each of several (batch, time): int32 (n,) or (batch, n).

    The model takes tokens (batch, window) and gives scores (batch, window, tokens), each from the tokens up to its place, as
    causal attention does: it sees the last `window` tokens, and what stands behind them is padding.

    temperature: scores are divided by it; 0 takes the largest each time.
    top_k: only the k tokens of the largest scores are drawn from. top_p: only the fewest of the largest probabilities that add
        up to p or more (Holtzman et al. 2020).
    seed: draws are then the same in every call.
    ShapeError for an empty prompt and for scores of another shape, ConfigurationError for options out of range.
    """
    given = whole_array(prompt, "a prompt").astype(np.int32)
    tokens = given[None] if given.ndim == 1 else given
    if tokens.ndim != 2 or not tokens.size:
        raise ShapeError(
            f"a prompt is (time,) or (batch, time) with at least one token, and its shape is {given.shape}"
        )
    n, window = check_count("n", n, 0), check_count("window", window)
    temperature = in_range("temperature", temperature, 0.0, math.inf)
    top_k = None if top_k is None else check_count("top_k", top_k)
    top_p = None if top_p is None else in_range("top_p", top_p, 0.0, 1.0, "(]")
    if seed is not None:
        seed = check_count("seed", seed, 0)
    draws = np.random.default_rng(seed)
    for _ in range(n):
        seen = tokens[:, -window:]
        padded = np.zeros((len(tokens), window), np.int32)
        padded[:, : seen.shape[1]] = seen
        scores = model.predict(padded)
        if scores.ndim != 3 or scores.shape[:2] != padded.shape:
            raise ShapeError(
                f"generate: for tokens of shape {padded.shape} the model gave {scores.shape}, and not (batch, window, tokens)"
            )
        last = scores[:, seen.shape[1] - 1].astype(np.float64)
        if np.isnan(last).any():
            raise ConfigurationError("generate: the model's scores are NaN: a token may be none that it knows")
        drawn = last.argmax(-1) if temperature == 0 else _drawn(last / temperature, top_k, top_p, draws)
        tokens = np.concatenate([tokens, drawn[:, None].astype(np.int32)], 1)
    found = tokens[:, given.shape[-1] :]
    return found[0] if given.ndim == 1 else found


def _drawn(scores: np.ndarray, top_k: int | None, top_p: float | None, draws: np.random.Generator) -> np.ndarray:
    """One token for each row of scores (batch, tokens)."""
    order = np.argsort(-scores, -1, kind="stable")
    ranked = np.take_along_axis(scores, order, -1)
    if top_k is not None:
        ranked[:, top_k:] = -np.inf
    p = np.exp(ranked - ranked[:, :1])
    p /= p.sum(-1, keepdims=True)
    if top_p is not None:
        p = np.where(np.cumsum(p, -1) - p < top_p, p, 0)
        p /= p.sum(-1, keepdims=True)
    at = (np.cumsum(p, -1) < draws.random((len(p), 1))).sum(-1)
    at = np.minimum(at, (p > 0).sum(-1) - 1)  # where rounding leaves the sum below 1
    return np.take_along_axis(order, at[:, None], -1)[:, 0]
