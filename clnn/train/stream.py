"""Batches that come one by one, from a generator, a DataLoader or `clnn.data.Batches`: which is next, and whether it fits."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain
from typing import Any

import numpy as np

from .. import random
from ..checks import check_count, is_sparse
from ..data.batches import Batches
from ..errors import ConfigurationError, DataError, ShapeError, warn
from ..runtime.watching.watch import structure_version
from ..tensor import Tensor
from .alone import Alone
from .feed import Feed, form
from .inputs import Samples, as_inputs, as_samples, build_for, by_input, weighted_by_class

MOST_UNTOLD = 10_000  # batches that are measured or predicted before it is said that there may be no end
MOST_FORMS = 64  # of rows, such as lengths of sequences, for which an epoch keeps its recordings
ARRAYS = ("__array__", "__array_interface__", "__dlpack__", "__getitem__")


def yields_batches(x: Any) -> bool:
    """Whether x is gone through rather than indexed, and no array."""
    if type(x) is np.ndarray or isinstance(x, (Tensor, str, bytes, Mapping)) or is_sparse(x):
        return False
    return hasattr(x, "__next__") or (hasattr(x, "__iter__") and not any(hasattr(x, name) for name in ARRAYS))


def streams(x: Any, y: Any, what: str, sample_weight: Any = None) -> bool:
    """Whether fit or evaluate is given batches in x, in place of arrays x and y. ConfigurationError where it is given neither."""
    if y is None and (yields_batches(x) or isinstance(x, (list, tuple))):
        if sample_weight is not None:
            raise ConfigurationError("sample_weight comes with batches, as the third of (x, y, sample_weight)")
        return True
    if y is None:
        raise ConfigurationError(
            f"{what} needs targets: give y, or as x an iterable of batches (x, y), such as clnn.data.Batches(x, y) or, "
            "of what has batches by their numbers, [x[i] for i in range(len(x))]"
        )
    listed = isinstance(x, list) and x and all(isinstance(one, tuple) and len(one) in (2, 3) for one in x)
    if yields_batches(x) or (listed and len({part.shape for part in x[0][:2] if hasattr(part, "shape")}) == 2):
        raise ConfigurationError(
            f"x yields batches, a {type(x).__name__}, and y is given too: targets come with the batches"
        )
    return False


class Stream:
    """The batches of a source, one after the other, over its passes; `steps` of them are an epoch.

    What can be gone through again (not an iterator, such as a generator) is begun anew where it ends. Without `steps` an epoch
    is one pass, as long as len() says.
    """

    def __init__(self, source: Any, steps: int | None, name: str = "x") -> None:
        self.source, self.name, self.once = source, name, hasattr(source, "__next__")
        self.seed: int | None = None  # of fit, for `Batches` without one
        self.length: int | None = None
        if hasattr(source, "__len__"):
            with contextlib.suppress(TypeError):  # a DataLoader of what has none
                self.length = len(source)
        self.whole = steps is None  # an epoch is a pass
        if steps is None and self.length is None:
            raise ConfigurationError(
                f"{name} yields batches and does not say how many: give steps_per_epoch, the number of batches in an epoch"
            )
        self.steps = check_count("steps_per_epoch", self.length if steps is None else steps, 0 if steps is None else 1)
        if not self.steps:
            raise DataError(f"{name} yields no batch: its length is 0")
        self._forms: dict[Any, tuple[Any, ...]] = {}  # what trains rows of other forms than the last batch's, by those
        self._passing: Iterator[Any] | None = None
        self._waiting: list[Any] = []  # drawn to be looked at, and not taken yet
        self._taken = self._in_pass = self._passes = 0

    def first(self) -> Any:
        """The batch that will be taken first, or one like it."""
        if isinstance(self.source, Batches):
            return self.source.first()
        self._waiting = [self._drawn()]
        return self._waiting[0]

    def begin(self, optimizer: Any, resumed: int) -> None:
        """Before the first epoch: `Batches` go on where those ended that the optimizer was trained on, or with the pass after
        that, where passes were of another length, or an epoch is a whole one; of other sources the batches of those that a fit
        before has trained, which this one resumes, are drawn and dropped."""
        if isinstance(self.source, Batches):
            taken, length, *seeds = optimizer.passed or (optimizer.epochs, 1)
            if not self.whole and self.source.seed is None and self.seed is None:  # epochs may end within a pass
                self.seed = seeds[0] if seeds else int(random.host().integers(2**62))
            self._passes, self._in_pass = divmod(taken, length)
            if self._in_pass and (self.whole or length != len(self.source)):
                self._passes, self._in_pass = self._passes + 1, 0
            self._before = self._passes * len(self.source) + self._in_pass
            optimizer.passed = self.passed()
        for _ in range(0 if isinstance(self.source, Batches) else resumed):
            for _ in self.epoch():
                pass

    def passed(self) -> tuple[int, ...] | None:
        """How many batches of `Batches` are over, how many a pass has, and the seed of fit that orders them, if there is one."""
        seed = () if self.seed is None else (self.seed,)
        return (self._before + self._taken, len(self.source), *seed) if isinstance(self.source, Batches) else None

    def epoch(self) -> Iterator[Any]:
        """The batches of the next epoch."""
        for _ in range(self.steps):
            batch = self._waiting.pop() if self._waiting else self._drawn()
            self._taken += 1
            yield batch
        if self.whole and self._passing is not None:
            rest, self._passing, self._in_pass = self._passing, None, 0
            if next(rest, self) is not self:
                raise DataError(
                    f"{self.name} yields more batches than the {self.length} that len() says: give steps_per_epoch"
                )

    def train(self, run: Any, epoch: int, bar: Any, called_back: bool) -> None:
        """An epoch of fit's `run`: a step for each batch that comes."""
        like, given = run.samples, (run.model, run.loss, run.outputs, f"epoch {epoch + 1}, ")
        seen: set[Any] = set()  # forms in this epoch, after callbacks
        for number, batch in enumerate(checked_batches(self.epoch(), *given, like, run.class_weight)):
            rows = run.counted[number] = len(batch.xs[0])
            with run.device.lock:
                self._take_form(run, batch)
                if run.feed.load_soon(*batch):
                    run.step.clear()
                run.feed.rewind(step=number)
            first, now = tuple(run.feed.forms) not in seen, (run.epochs - epoch) * self.steps - number
            seen.add(tuple(run.feed.forms))
            run.steps(rows, None, 1, now, bar, called_back, first)

    def _take_form(self, run: Any, batch: Samples) -> None:
        """Have `run` train rows of this form: each has a feed and a step of its own, but for those not seen for long."""
        was, now = tuple(run.feed.forms), tuple(map(form, chain(*batch)))
        if was == now:
            return
        self._forms[was] = run.feed, run.function, run.step
        given = run.step.given
        if now in self._forms:
            run.feed, run.function, run.step = self._forms.pop(now)
            run.step.given = given
        else:
            run.train_by(Feed(run.device, len(batch.xs[0]), *batch, ordered=False), given)
        if len(self._forms) > MOST_FORMS:
            del self._forms[next(iter(self._forms))]

    def _drawn(self) -> Any:
        for _ in range(2):
            if self._passing is None:
                self._begin_pass()
            assert self._passing is not None
            try:
                batch = next(self._passing)
            except StopIteration:
                if self.once or self.whole or not self._in_pass:
                    break
                self._passing, self._in_pass = None, 0
                continue
            self._in_pass += 1
            return batch
        epoch, done = divmod(self._taken, self.steps)
        told = "len() says that there are more: give steps_per_epoch"
        if self.once:
            told = "it can be gone through only once: give what begins anew, such as clnn.data.Batches, or fewer epochs"
            told += " or steps_per_epoch"
        elif not self._in_pass:
            told = "it began anew and yielded nothing"
        where = f"{done} of {self.steps} in epoch {epoch + 1}"
        raise DataError(f"{self.name} ended after {self._taken} batches, {where}; {told}")

    def _begin_pass(self) -> None:
        if isinstance(self.source, Batches):
            self._passing = self.source.numbered(self._passes, self._in_pass, self.seed)
            self._passes += 1
            self.source.epoch = self._passes
        else:
            self._passing = iter(self.source)


def one_pass(source: Any) -> Iterator[Any]:
    """All batches of a source once, those of `Batches` in the order of the samples. A warning where one goes on and on."""
    for number, batch in enumerate(source.in_order() if isinstance(source, Batches) else source):
        if number == MOST_UNTOLD and not hasattr(source, "__len__"):
            warn(
                f"{number:,} batches have come, and a {type(source).__name__} does not say how many there are. If it is endless, "
                "stop this, and give as many as are wanted: list(itertools.islice(batches, 100))"
            )
        yield batch


def parts_of_batch(batch: Any, name: str) -> tuple[Any, Any, Any]:
    """x, y and the weights or None of a batch."""
    if not isinstance(batch, (tuple, list)) or len(batch) not in (2, 3):
        of = f" of {len(batch)}" if isinstance(batch, (tuple, list)) else ""
        raise DataError(
            f"{name} is a {type(batch).__name__}{of}; a batch is (x, y) or (x, y, sample_weight), where x and y are arrays, and "
            "several inputs or outputs are tuples or dicts of them"
        )
    x, y, weight = (*batch, None)[:3]
    return x, y, weight


def checked_batches(
    batches: Iterable[Any], model: Any, loss: Any, outputs: Any, name: str, like: Samples | None = None,
    class_weight: Any = None,
) -> Iterator[Samples]:  # fmt: skip
    """Each batch as samples that fit the model and the loss. Where `like` is given they have its axes and types; how many samples
    and how many steps in time there are is free, as far as the model takes that."""
    # the outputs by form of inputs
    known: dict[Any, Any] = {} if like is None else {(structure_version(), *map(form, like.xs)): outputs}
    for number, batch in enumerate(batches):
        of = f"{name}batch {number + 1}: "
        x, y, weight = parts_of_batch(batch, of[:-2])
        try:
            xs = as_inputs(x, model, least=1)
            _check_form([xs], like)
            now = structure_version(), *map(form, xs)
            if now not in known:
                known[now] = build_for(model, xs)
            of_these = known[now]
            found = as_samples(xs, y, weight, loss, of_these, model.dtype)
            if class_weight is not None:
                found = weighted_by_class(found, class_weight, loss, of_these, model.dtype)
            _check_form(found, like)
        except (ShapeError, DataError, ConfigurationError) as error:
            raise type(error)(f"{of}{error}") from None
        yield found


def _check_form(given: Sequence[Any], like: Sequence[Any] | None) -> None:
    """DataError unless inputs, or inputs, targets and weights, have as many axes as those of `like`, and their types."""
    if like is not None and any([*map(_axes, a)] != [*map(_axes, b)] for a, b in zip(given, like)):
        raise DataError(
            f"rows are of {_told(given)}, and those of the first batch of {_told(like[: len(given)])}: all need the same axes "
            "and types; of each axis the length may differ where the model takes that, as recurrent layers do"
        )


def _axes(array: np.ndarray | None) -> Any:
    return None if array is None else (array.ndim, array.dtype)


def _told(samples: Any) -> str:
    """The shapes and types of a batch's rows, in words."""
    parts = [(what, a) for what, each in zip(("x", "y", "sample_weight"), samples) for a in each]
    return ", ".join(f"no {what}" if a is None else f"{what} {a.shape[1:]} {np.dtype(a.dtype)}" for what, a in parts)


def inputs_of_batches(batches: Any, check: Callable[[Any, str], Any]) -> Iterator[Any]:
    """What `check` makes of the inputs of each batch: of x, (x,), (x, y) or (x, y, sample_weight)."""
    for number, batch in enumerate(batches):
        name = f"batch {number + 1}"
        if isinstance(batch, (tuple, list)) and not 1 <= len(batch) <= 3:
            raise DataError(
                f"{name} is a {type(batch).__name__} of {len(batch)}; a batch is x, (x, y) or (x, y, sample_weight)"
            )
        yield check(batch[0] if isinstance(batch, (tuple, list)) else batch, f"{name}: x")


def joined(arrays: Sequence[np.ndarray]) -> np.ndarray:
    """What batches became, as one array."""
    if len(shapes := {one.shape[1:] for one in arrays}) > 1:
        raise ShapeError(f"batches have outputs of {sorted(shapes)}, which are no one array: predict each by itself")
    return np.concatenate(arrays)


def streams_of_fit(
    x: Any, y: Any, epochs: int, batch_size: Any, steps: Any, validation: Any, split: Any, sample_weight: Any, class_weight: Any,
    world: Any,
) -> tuple[Stream | None, Any]:  # fmt: skip
    """The batches to train on, and what yields those that are held out; None for arrays."""
    held_out = None
    if validation is not None and split:
        raise ConfigurationError("give validation or validation_split, not both")
    if yields_batches(validation):
        if hasattr(validation, "__next__") and epochs > 1:
            raise ConfigurationError(
                "validation can be gone through only once, and there are several epochs: give arrays, or what begins anew, "
                "such as clnn.data.Batches"
            )
        held_out = validation
    if not streams(x, y, "fit", sample_weight):
        if steps is not None:
            raise ConfigurationError("steps_per_epoch is for an x that yields batches; arrays are gone through whole")
        return None, held_out
    wrong = {
        "batch_size": batch_size is not None and "each has its own; pairs (x, y): x, y = map(np.array, zip(*pairs))",
        "validation_split": split and "there is no end to take it from; give validation=",
        "class_weight": isinstance(class_weight, str)
        and class_weight == "balanced"
        and "how many samples are of each class in all, is not known; give weights by class, {0: 1.0, 1: 5.0}",
        "world": world.size > 1 and "ranks share arrays out; give arrays, such as np.memmap",
    }
    if found := [f"{name}: {why}" for name, why in wrong.items() if why]:
        raise ConfigurationError(f"x yields batches, which do not go with {found[0]}")
    return Stream(x, steps), held_out


def held_out_batches(held_out: Any, validation: Any, split: Any, model: Any, x: Any) -> tuple[Any, Any]:
    """What yields batches that are held out, and `validation` where it is arrays: a list of batches is told from (x, y) by the
    inputs that `x` gives."""
    if held_out is not None or split or not isinstance(validation, (tuple, list)):
        return held_out, None if held_out is not None else validation
    if not validation or not all(isinstance(one, (tuple, list)) and len(one) in (2, 3) for one in validation):
        return None, validation
    if len(validation) in (2, 3):
        first, second = validation[0][:2]
        if len(by_input(x, model, "x")) > 1:
            batches = isinstance(first, (tuple, Mapping)) and not is_sparse(first)
        else:  # a list may be rows of x, but for arrays that are no rows of one
            shapes = [getattr(one, "shape", None) for one in (first, second)]
            batches = isinstance(validation[0], tuple) or (None not in shapes and shapes[0] != shapes[1])
        if not batches:
            return None, validation
    return validation, None


def over(evaluation: Any, source: Any, name: str = "") -> dict[str, float]:
    """The mean loss and metrics that an `Evaluation` finds over batches, `one_pass` of them. The device is free while the next is
    made: another thread may need it for that."""
    rows, sums, further = 0, 0.0, 0.0
    for samples in checked_batches(source, evaluation.model, evaluation.loss, evaluation.given, name):
        more = evaluation.sums(samples)
        rows, sums, further = rows + len(samples.xs[0]), sums + more[0], further + more[1]
    if not rows:
        raise DataError(f"{name}x yields no batch")
    found: dict[str, float] = evaluation.results.together(sums, further, rows, Alone())
    return found
