"""LAMB, which scales each parameter's step by its length: three launches, since norms are summed in between."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np

from ..checks import in_range
from ..gemm import constant_block
from ..parameters import Run, Store, room
from ..runtime.memory import Block
from .limits import Grid
from .rates import Rate
from .rules import Adam


class LAMB(Adam):
    """Adam's step with decay, u = m' / (sqrt(v') + epsilon) + weight_decay w, as long as the weights:

    w -= lr |w| / |u| u, with a ratio for each parameter (You et al. 2020, algorithm 2). Parameters that do not decay
    (biases) have the ratio 1, as in the authors' code, and so has a parameter where |w| or |u| is 0.
    """

    decoupled = True

    def __init__(
        self, lr: Rate = 0.001, beta1: float = 0.9, beta2: float = 0.999, epsilon: float = 1e-6, weight_decay: float = 0.01,
        **options: Any,
    ) -> None:  # fmt: skip
        super().__init__(lr, beta1, beta2, epsilon, weight_decay, **options)
        in_range("LAMB epsilon", epsilon, 0.0, math.inf, "()")  # the zeros between parameters are divided by it

    def _begin(self) -> None:
        super()._begin()
        self._chunks: weakref.WeakKeyDictionary[Store, dict[Any, Any]] = weakref.WeakKeyDictionary()

    def numbers(self, lr: np.ndarray, t: np.ndarray) -> tuple[Any, ...]:
        root = np.sqrt(1.0 - self.beta2**t)  # here the correction cannot go into lr, which decay has a part in
        return lr, self.beta1, self.beta2, self.epsilon * root, root / (1.0 - self.beta1**t)

    def _cut(self, run: Run, grid: Grid) -> tuple[Block, int, Block, int]:
        """The chunks that groups work on, none longer than a group's stretch and none of two parameters, and the
        parameters of the run: two tables on the device, and how many rows they have."""
        known = self._chunks.setdefault(run.store, {})
        key = run.start, run.stop, tuple((p.position, p.decays) for p in self.parameters if p.store is run.store)
        if key not in known:
            per, stretch = grid.vector * run.store.dtype.itemsize, grid.each * grid.width
            chunks: list[tuple[int, ...]] = []
            parameters: list[tuple[int, ...]] = []
            for p in sorted(self.parameters, key=lambda p: p.position):
                if p.store is not run.store or not run.start <= p.position < run.stop:
                    continue
                start, stop = ((at - run.start) // per for at in (p.position, p.position + room(p)))
                first = len(chunks)
                for at in range(start, stop, stretch):
                    chunks.append((at, min(stop, at + stretch), len(parameters), int(p.decays)))
                parameters.append((first, len(chunks), int(p.decays), 0))
            tables = [constant_block(run.store.device, np.array(rows, np.int32)) for rows in (chunks, parameters)]
            known[key] = tables[0], len(chunks), tables[1], len(parameters)
        return known[key]

    def _update(self, run: Run, clip: Block | None = None) -> Callable[[], None]:
        store, size = run.store, run.store.dtype.itemsize
        device = store.device
        grid = Grid.over(device, store.dtype, sums=True)
        chunks, count, parameters, groups = self._cut(run, grid)
        penalties, arguments = self._gradient(run, clip)
        real = device.real(store.dtype)

        def launch(kernel: str, groups: int, *args: Any, **defines: Any) -> None:
            """In groups that may be smaller: each goes through its whole chunk."""
            fits = grid.fitting(device, kernel, store.dtype, STATES=2, **defines)
            device.launch(
                "optimizer", kernel, (groups * fits.width,), *args, local=(fits.width,), real=real, STATES=2, **fits.defines(),
                **defines,
            )  # fmt: skip

        moments = [run.part(self._kept.block(store, name)) for name in self.states]
        average = [] if self.ema is None else [run.part(self._kept.block(store, "average"))]
        w, g, rates = run.part(store.block), run.part(store.gradients()), self._rates.on(store, run.slot)
        partial, ratios = device.allocate(2 * count * size), device.allocate(groups * size)

        def update() -> None:
            launch(
                "lamb_moments", count, chunks, g, w, *rates, *moments, *arguments, self.weight_decay, partial, LAMB_MOMENTS=1,
                **penalties,
            )  # fmt: skip
            launch("lamb_ratios", groups, parameters, partial, ratios, LAMB_RATIOS=1)
            numbers = w, *rates, *moments, self.weight_decay
            launch("lamb", count, chunks, ratios, *numbers, *average, LAMB=1, **self._common(run))

        return update
