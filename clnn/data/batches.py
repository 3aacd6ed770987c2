"""`Batches`: mini-batches of samples, shuffled, changed by a function, and made ahead in threads."""

from __future__ import annotations

import inspect
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np

from .. import random
from ..checks import check_count, check_flag, is_sparse, leaves
from ..errors import ConfigurationError, DataError, ShapeError
from ..foreign import Called
from .folder import ImageFolder


class Batches(Called):
    """The samples x with their targets y as batches (x, y), or with `sample_weight` as (x, y, weight), anew at each pass.

        batches = clnn.data.Batches(x, y, 64, transform=lambda x, y, rng: (x + rng.normal(0, 0.1, x.shape), y), seed=1)
        net.fit(batches, loss="cross_entropy", optimizer="adam", epochs=10)

    x and y: arrays with a row for each sample, `np.memmap`s and `ImageFolder`s, of which only the rows in use are read, sparse
    matrices, or tuples and dicts of such. The last batch has the samples that are left over. With `shuffle` each pass has an
    order of its own: with `seed` that of fit(x, y, seed=seed) in its epoch of that number; `fit` gives its own seed where there
    is none here.
    `transform` is given each batch: transform(x), transform(x, y), which returns (x, y), or transform(x, y, rng), where `rng` is
    a NumPy generator of that batch alone, the same in every run by `seed` and however many threads there are. `workers`: threads
    that make batches before they are asked for, while the device computes; 0 makes each when it is. `epoch` is the number of the
    next pass.
    """

    def __init__(
        self, x: Any, y: Any = None, batch_size: int = 32, *, sample_weight: Any = None, shuffle: bool = True,
        seed: int | None = None, transform: Callable[..., Any] | None = None, workers: int = 1,
    ) -> None:  # fmt: skip
        if y is None and sample_weight is not None:
            raise ConfigurationError("Batches: sample_weight is of samples with targets; give y too")
        self.batch_size, self.workers = check_count("batch_size", batch_size), check_count("workers", workers, 0)
        self.parts = [_held(part) for part in (x, y, sample_weight) if part is not None]
        lengths = [_length(leaf) for part in self.parts for leaf in _leaves(part)]
        if not lengths or len(set(lengths)) > 1:
            raise ShapeError(f"Batches: all arrays need the same number of samples, and these have {lengths}")
        self.n = lengths[0]
        if not self.n:
            raise DataError("Batches: there are no samples")
        self.seed = seed if seed is None else check_count("seed", seed, 0)
        self.shuffle, self.transform, self.takes = check_flag("shuffle", shuffle), transform, _takes(transform)
        self.epoch = 0

    def __len__(self) -> int:
        return -(-self.n // self.batch_size)

    def __iter__(self) -> Iterator[Any]:
        self.epoch += 1
        return self.numbered(self.epoch - 1)

    def numbered(self, epoch: int, start: int = 0, seed: int | None = None) -> Iterator[Any]:
        """The pass of that number from its batch `start` on; `seed` where the batches have none."""
        seed = self.seed if self.seed is not None else seed
        order = random.permutation(self.n, self.shuffle, seed, epoch)
        if seed is None and self.takes > 2:
            seed = int(random.host().integers(2**62))
        return self._all(order, start, (seed, epoch))

    def in_order(self) -> Iterator[Any]:
        """All batches in the order of the samples, for what is measured or predicted: no generator is drawn from."""
        return self._all(np.arange(self.n), 0, (self.seed or 0, 0))

    def _all(self, order: np.ndarray, start: int, seeds: tuple[Any, ...]) -> Iterator[Any]:
        def made(i: int) -> Any:
            rows = order[i * self.batch_size : (i + 1) * self.batch_size]
            return self._made(rows, lambda: np.random.default_rng((*seeds, i, 1)))

        # a generator, in which a StopIteration of a transform's own is an error, where map() would end with it
        return self._ahead(made, start) if self.workers else (made(i) for i in range(start, len(self)))

    def first(self) -> Any:
        """A batch to see what batches are like: it is of no pass, and draws from nobody's generator."""
        return self._made(np.arange(min(self.n, self.batch_size)), lambda: np.random.default_rng(0))

    def _ahead(self, made: Callable[[int], Any], start: int) -> Iterator[Any]:
        waiting: deque[Future[Any]] = deque()
        with ThreadPoolExecutor(self.workers, "clnn-batches") as pool:
            try:
                for i in range(start, len(self)):
                    waiting.append(pool.submit(made, i))
                    if len(waiting) > self.workers + 1:
                        yield waiting.popleft().result()
                while waiting:
                    yield waiting.popleft().result()
            finally:  # whoever asked may have stopped
                for one in waiting:
                    one.cancel()

    def _made(self, rows: np.ndarray, rng: Callable[[], Any]) -> Any:
        found = [_mapped(part, lambda array: array[rows]) for part in self.parts]
        if self.transform is None:
            return tuple(found)
        x, y = (*found, None)[:2]
        if self.takes == 1:
            return (self.transform(x), *found[1:])
        changed = self.transform(x, y) if self.takes == 2 else self.transform(x, y, rng())
        if not isinstance(changed, (tuple, list)) or len(changed) != 2:
            raise DataError(
                f"Batches: a transform of x and y returns (x, y), and this one returned a {type(changed).__name__}"
            )
        return (*changed, *found[2:]) if y is not None else tuple(changed[:1])

    def __repr__(self) -> str:
        return f"<Batches: {self.n} samples in {len(self)} of {self.batch_size}>"


def _held(part: Any) -> Any:
    """Arrays of which rows can be taken by their numbers, in the tuples and dicts that they came in."""
    if is_sparse(part):  # one of them is a dict
        return part.tocsr()
    if isinstance(part, (tuple, Mapping)):
        return _mapped(part, _held)
    if isinstance(part, ImageFolder) or any(isinstance(leaf, np.ma.MaskedArray) for leaf in leaves(part)):
        return part  # which reads images when they are asked for; or fit says what is wrong with a mask
    return np.asarray(part)


def _mapped(part: Any, function: Callable[[Any], Any]) -> Any:
    if isinstance(part, tuple):
        return tuple(_mapped(one, function) for one in part)
    if isinstance(part, Mapping):
        return {key: _mapped(one, function) for key, one in part.items()}
    return function(part)


def _leaves(part: Any) -> list[Any]:
    found: list[Any] = []
    _mapped(part, found.append)
    return found


def _length(array: Any) -> int:
    if not array.ndim:
        raise DataError("Batches takes arrays with a row for each sample, not one number")
    return int(array.shape[0])


def _takes(transform: Any) -> int:
    """How many arguments a transform needs: x, x and y, or these and a generator."""
    if transform is None:
        return 0
    if not callable(transform):
        raise ConfigurationError(
            f"Batches: transform is a function of x, of x and y, or of x, y and rng, not {transform!r}"
        )
    try:
        every = inspect.signature(transform).parameters.values()
    except (TypeError, ValueError):  # of NumPy's functions, such as np.sqrt
        return 1
    needed = [p for p in every if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) and p.default is p.empty]
    if not 1 <= len(needed) <= 3:
        raise ConfigurationError(
            f"Batches: transform takes x, or x and y, or x, y and rng, and this one needs {len(needed)} arguments"
        )
    return len(needed)
