"""Drawing tokens on the device: the next token of each text from a model's scores, kernels/sampling.cl."""

from __future__ import annotations

import numpy as np

from ...runtime.device import Device, DType
from ...runtime.memory import Block
from ..array import Array, block_of, check_float
from ..index import sort

GROUP = 64  # work-items that share the scores of a text where there are many


class Draws:
    """Where up to `room` draws for `texts` texts are noted on the device, and what decides them.

    `next` (texts, width), int32, has the last tokens of each text, which a model's step reads; each draw moves them up by one.
    """

    def __init__(self, device: Device, dtype: DType, room: int, texts: int, width: int) -> None:
        self.device, self.dtype, self.room, self.texts, self.width = device, np.dtype(dtype), room, texts, width
        memory, size = device.memory, self.dtype.itemsize
        self.how, self.count = memory.allocate(3 * size), memory.allocate(4)
        self.uniform, self.top = (memory.allocate(room * texts * size) for _ in range(2))
        self.text, self.next = memory.allocate(room * texts * 4), memory.allocate(texts * width * 4)
        self.told: Block | None = None

    def decide(self, temperature: float, top_k: int | None, top_p: float | None) -> None:
        """How tokens are drawn from here on, for all temperatures from 0 to infinity."""
        most = np.finfo(self.dtype)
        heat = min(max(temperature, float(most.tiny)), float(most.max)) if temperature else 0.0
        k = 2**24 if top_k is None else min(top_k, 2**24)
        self.device.upload_soon(np.array([heat, 1.0 if top_p is None else top_p, k], self.dtype), self.how)

    def begin(self, uniform: np.ndarray) -> None:
        """The next draws, (count, texts), are by these numbers from [0, 1)."""
        digits = 2.0**24  # as many as a float has, so that none is rounded up to 1
        self.device.upload_soon(np.floor(uniform * digits).astype(self.dtype) / self.dtype.type(digits), self.uniform)
        self.device.upload_soon(np.zeros(1, np.int32), self.count)

    def draw(self, scores: Array, ranked: bool) -> None:
        """One token for each row of scores (texts, tokens); `ranked`: the numbers for k and p count. Whoever ran the step then
        adds 1 to `count`."""
        check_float("generate", scores)
        device, tokens = scores.device, scores.shape[1]
        keys, order = sort(scores, descending=True) if ranked else (None, None)
        width = 1 if device.long_loops else min(GROUP, device.group_width)
        device.check_turns(-(-tokens // width) + width, f"a draw from {tokens:,} tokens")
        device.launch(
            "sampling", "draw_token", (self.texts * width,), tokens, self.texts, self.width, scores.block,
            block_of(keys), block_of(order), self.how, self.uniform, self.count, self.next, self.text, self.top,
            self.told, local=(width,), real=scores.real, WIDTH=width,
        )  # fmt: skip

    def tell(self, count: int, tokens: int) -> None:
        """Note the scores of up to `count` draws, too."""
        nbytes = count * self.texts * tokens * self.dtype.itemsize
        if self.told is None or self.told.nbytes != nbytes:
            self.told = self.device.memory.allocate(nbytes)

    def read(self, count: int) -> tuple[np.ndarray, np.ndarray]:
        """The tokens of the last `count` draws since `begin`, and the largest score of each: (texts, count)."""
        text, top = np.empty((count, self.texts), np.int32), np.empty((count, self.texts), self.dtype)
        return self.device.read(self.text, text).T, self.device.read(self.top, top).T

    def scores(self, count: int, tokens: int) -> np.ndarray:
        """(texts, count, tokens): those that were told."""
        assert self.told is not None
        return self.device.read(self.told, np.empty((count, self.texts, tokens), self.dtype)).swapaxes(0, 1)
