"""Two models side by side: which array of one is which of the other, how it turns into it, and a report of what was copied."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from ..errors import CheckpointError, ClnnError, ConfigurationError
from ..layers.base import Layer, called
from ..layers.sequence.attention import TransformerDecoderLayer

Arrays = Sequence[np.ndarray]


class Part(NamedTuple):
    """Parameters of a layer here and the arrays there that hold the same numbers. `read` makes the first of the second, `write`
    the second of the first; `how` says in words what that does."""

    here: tuple[str, ...]
    there: tuple[str, ...]
    read: Callable[..., Arrays] = lambda *arrays: arrays
    write: Callable[..., Arrays] = lambda *arrays: arrays
    how: str = ""


class Stored(NamedTuple):
    """An array there: its whole name, and what holds it, be it of NumPy, of PyTorch, or a variable of Keras."""

    name: str
    value: Any

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape."""
        return tuple(map(int, self.value.shape))

    def read(self) -> np.ndarray:
        """Its numbers on the host; half types become float32, which holds them all."""
        value, kind = self.value, self.kind
        device = str(getattr(value, "device", ""))
        if device == "meta":
            raise CheckpointError(
                f"{self.name} is on the device meta, and holds no values: load or initialise the module first"
            )
        if kind not in ("float16", "bfloat16", "float32", "float64"):
            raise CheckpointError(
                f"{self.name} is of {kind}, and weights are floats: of a quantised module take the one that it was made of"
            )
        try:
            if hasattr(value, "detach"):
                value = value.detach().cpu()
                value = (value.float() if "16" in kind else value).numpy()
            elif hasattr(value, "assign"):  # of Keras
                value = value.numpy()
            array = np.asarray(value)
            return array.astype(np.float32) if "16" in kind else array
        except (TypeError, RuntimeError, ValueError) as error:  # sparse, distributed, ...
            raise CheckpointError(f"{self.name} cannot be read as an array of NumPy: {error}") from error

    @property
    def kind(self) -> str:
        """The type of its numbers, such as "float32"."""
        return str(self.value.dtype).removeprefix("torch.")

    @property
    def most(self) -> float:
        """The largest number that it can hold."""
        return (2 - 2**-7) * 2.0**127 if self.kind == "bfloat16" else float(np.finfo(self.kind).max)

    def write(self, array: np.ndarray) -> None:
        """Put numbers there, where they are."""
        value = self.value
        if hasattr(value, "detach"):
            value = value.detach()
            value.copy_(value.new_tensor(array))
        elif hasattr(value, "assign"):
            value.assign(array)
        else:
            value[...] = array

    @property
    def place(self) -> Any:
        """What is equal for two names of the same memory."""
        try:
            return (self.value.data_ptr() or id(self.value), self.shape)
        except (AttributeError, RuntimeError):  # of NumPy or Keras; sparse
            return id(self.value)


class Unit(NamedTuple):
    """A layer there: its name, the names of its class and of those above it (none where only arrays are known), itself, and its
    arrays by their names in it. `seen` is how what it takes in Keras lies there."""

    name: str
    kinds: tuple[str, ...]
    layer: Any
    arrays: dict[str, Stored]
    seen: Any = None

    def __str__(self) -> str:
        return f"{self.name or 'the whole'}{f' ({self.kinds[0]})' if self.kinds else ''}"


class Here(NamedTuple):
    """A layer here that has parameters of its own, by their names in it."""

    name: str
    layer: Layer
    parameters: dict[str, Any]

    def full(self, attribute: str) -> str:
        """A parameter's name in the model."""
        return f"{self.name}.{attribute}" if self.name else attribute

    def __str__(self) -> str:
        return f"{self.name or 'the model'} ({type(self.layer).__name__})"


class Copied(NamedTuple):
    """A line of a report: names there and here, joined by commas, the shape of the first one there, and what was done."""

    there: str
    here: str
    shape: tuple[int, ...]
    how: str


class Report:
    """What was copied. It prints as a table.

    `copied` has a line for each array: `there`, `here`, `shape` (there), `how`. `left_there` and `left_here` are names of arrays
    that were not copied, with their shapes, which only `strict=False` allows. `notes` say what is done differently on the two
    sides and lies outside the weights, such as the order of axes of inputs.
    """

    def __init__(self, there: str, back: bool = False) -> None:
        self.there, self.back = there, back
        self.copied: list[Copied] = []
        self.left_there: list[str] = []
        self.left_here: list[str] = []
        self.notes: list[str] = []

    def __str__(self) -> str:
        rows: list[tuple[str, ...]] = [(self.there, "clnn", "shape", "")]
        rows += [(a, b, str(shape), how) for a, b, shape, how in self.copied]
        if self.back:
            rows = [(b, a, *rest) for a, b, *rest in rows]
        widths = [max(map(len, column)) for column in zip(*rows)]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows]
        for what, names in ((f"left in {self.there}", self.left_there), ("left in clnn", self.left_here)):
            lines += [f"{what}: {', '.join(names)}"] if names else []
        return "\n".join([*lines, *(f"note: {note}" for note in dict.fromkeys(self.notes))])

    __repr__ = __str__


# -- what is here -----------------------------------------------------------------------------------------------------
def named_layers(model: Layer) -> dict[str, Layer]:
    """The model and all layers inside, by the names that their parameters begin with, each before those inside it."""
    start = "layers." if getattr(model, "_numbered", False) else ""
    found = {name.removeprefix(start): one for name, one in model._walk("") if isinstance(one, Layer)}
    return {"": model, **found}


def flat(layer: Layer) -> Iterator[Layer]:
    """The layers of nested Sequentials, one after the other."""
    inside = layer.layers if type(layer).__name__ == "Sequential" else ()  # type: ignore[attr-defined]
    for one in inside:
        yield from flat(one)
    if not inside:
        yield layer


def ours(model: Any) -> list[Here]:
    """The layers of a model that have parameters of their own, in their order. ConfigurationError for what is no model, and
    for one that is not built."""
    if not isinstance(model, Layer):
        raise ConfigurationError(
            f"weights are copied into and out of a model or a layer of clnn, and {type(model).__name__} is none"
        )
    if not model.built:
        raise ConfigurationError(
            f"{called(model)} is not built, so that it has no weights yet: give Sequential an "
            "input_shape, or call it once, before copying"
        )
    layers = named_layers(model)
    parts: dict[str, dict[str, Any]] = {name: {} for name in layers}
    for name, p in model.named_parameters():
        owner = name.rpartition(".")[0]
        while owner not in layers:  # it is in a list
            owner = owner.rpartition(".")[0]
        parts[owner][name[len(owner) + bool(owner) :]] = p
    order = [*layers]
    for block, layer in layers.items():  # attention to the context comes before the dense layers elsewhere
        if isinstance(layer, TransformerDecoderLayer):
            inside = f"{block}." if block else ""
            order.remove(f"{inside}to_context")
            order.insert(order.index(f"{inside}attention") + 1, f"{inside}to_context")
    names = [name for name in order if parts[name]]
    found = [Here(name, layers[name], parts[name]) for name in names]
    if not found and (waiting := unbuilt(model)):
        raise ConfigurationError(f"{type(model).__name__} {waiting}")
    return found


def unbuilt(model: Layer) -> str:
    """What to say of layers inside that have no parameters yet; nothing where there are none."""
    names = [name for name, one in named_layers(model).items() if not one.built and type(one).build is not Layer.build]
    return f"has layers without parameters as yet ({', '.join(names)}): call it once before copying" if names else ""


# -- what belongs to what ---------------------------------------------------------------------------------------------
Layout = Callable[[Here, Unit], list[Part]]


def shapes_read(part: Part, unit: Unit) -> list[tuple[int, ...]] | None:
    """The shapes of what `part.read` makes of the unit's arrays, without reading these; None where it cannot."""
    empty = [np.broadcast_to(np.float32(0), unit.arrays[name].shape) for name in part.there]
    try:
        return [a.shape for a in part.read(*empty)]
    except (ValueError, IndexError, TypeError):
        return None


def fitting(here: Here, unit: Unit, layout: Layout) -> tuple[list[Part], list[str]]:
    """The parts that both sides have, and in words what does not fit."""
    found, wrong = [], []
    for part in layout(here, unit):
        if all(name in unit.arrays for name in part.there) and all(name in here.parameters for name in part.here):
            shapes = [here.parameters[name].shape for name in part.here]
            if shapes_read(part, unit) == shapes:
                found.append(part)
            else:
                theirs = ", ".join(f"{unit.arrays[name].name} {unit.arrays[name].shape}" for name in part.there)
                mine = ", ".join(f"{here.full(name)} {shape}" for name, shape in zip(part.here, shapes))
                how = f" ({part.how})" if part.how else ""
                wrong.append(f"{theirs} is not of the shape that {mine} takes{how}")
    if not found and not wrong:
        wrong.append(f"{unit} has {', '.join(unit.arrays)}, which is not what {here} holds")
    return found, wrong


Pair = tuple[Unit, Here, list[Part]]


def pairs(units: Sequence[Unit], here: Sequence[Here], layout: Layout, ordered: bool) -> list[Pair]:
    """Which layer there is which one here: of the same names, if all are; else by position and shape, and where the order is not
    known by shape, and by the numbers in their names. As many arrays as can be are in a pair."""
    names = {unit.name: unit for unit in units}
    if names.keys() == {one.name for one in here}:
        return _kept([(names[one.name], one) for one in here], layout)
    if not ordered:
        return _kept(_by_shape(units, here, layout), layout)
    if len(units) == len(here):
        whole = _kept(zip(units, here), layout)
        if len(whole) == len(units):
            return whole
    elif len(units) > len(here):  # a layer in several places there is one here
        once: dict[Any, Unit] = {}
        for unit in units:
            once.setdefault((unit.kinds, *(entry.place for entry in unit.arrays.values())), unit)
        units = [*once.values()]
    return _kept(_aligned(units, here, layout), layout)


def _kept(found: Iterable[tuple[Unit, Here]], layout: Layout) -> list[Pair]:
    each = [(unit, one, *fitting(one, unit, layout)) for unit, one in found]
    return [(unit, one, parts) for unit, one, parts, wrong in each if not wrong]


def _aligned(units: Sequence[Unit], here: Sequence[Here], layout: Layout) -> Iterator[tuple[Unit, Here]]:
    """Pairs in the order of both, with the most arrays in them: the longest common subsequence."""
    count = np.zeros((len(units) + 1, len(here) + 1), int)
    weight = np.zeros_like(count)
    known: dict[Any, int] = {}
    theirs = [(unit.kinds, unit.seen, tuple((n, one.shape) for n, one in unit.arrays.items())) for unit in units]
    mine = [(repr(one.layer), tuple((n, p.shape) for n, p in one.parameters.items())) for one in here]
    for i in reversed(range(len(units))):
        for j in reversed(range(len(here))):
            key = theirs[i], mine[j]
            if key not in known:
                parts, wrong = fitting(here[j], units[i], layout)
                known[key] = 0 if wrong else sum(len(part.there) for part in parts)
            weight[i, j] = known[key]
            count[i, j] = max(count[i + 1, j], count[i, j + 1], count[i + 1, j + 1] + weight[i, j])
    i = j = 0
    while i < len(units) and j < len(here):
        if weight[i, j] and count[i, j] == count[i + 1, j + 1] + weight[i, j]:
            yield units[i], here[j]
            i, j = i + 1, j + 1
        elif count[i, j] == count[i + 1, j]:
            i += 1
        else:
            j += 1


def _by_shape(units: Sequence[Unit], here: Sequence[Here], layout: Layout) -> Iterator[tuple[Unit, Here]]:
    """For each layer here the one there that fits it. Of several that do, those whose names differ in their numbers alone stand
    in the order of these. CheckpointError where that leaves open which one it is."""
    waiting = sorted(units, key=lambda unit: natural(unit.name))
    for one in here:
        fits = {unit.name: fitting(one, unit, layout) for unit in waiting}
        fit = [unit for unit in waiting if not fits[unit.name][1]]
        fit = [unit for unit in fit if _whole(unit, one, fits[unit.name][0])] or fit
        if len({re.sub(r"\d+(_reverse)?", "#", unit.name) for unit in fit}) > 1:
            raise CheckpointError(
                f"{one} could be any of {', '.join(unit.name for unit in fit)}, by their shapes: a file of weights does not "
                "tell the order in which the module has its layers. Give it, order=[...], the names of the file's layers in the "
                f"order of the model's, which is {', '.join(each.name for each in here)}"
            )
        if fit:
            waiting.remove(fit[0])
            yield fit[0], one


def _whole(unit: Unit, here: Here, parts: Sequence[Part]) -> bool:
    """Whether these parts are all that either has."""
    theirs, mine = ({name for part in parts for name in names(part)} for names in (lambda p: p.there, lambda p: p.here))
    return theirs == {*unit.arrays} and mine == {*here.parameters}


def natural(name: str) -> list[Any]:
    """A key that sorts names by the numbers in them: layer2 before layer10."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]


# -- copying ----------------------------------------------------------------------------------------------------------
def copied(
    there: str,
    units: Sequence[Unit],
    ordered: bool,
    model: Any,
    layout: Layout,
    strict: bool = True,
    *,
    back: bool = False,
    check: Callable[[Sequence[Pair], Layer, Report], None] | None = None,
) -> Report:
    """Copy weights into a model, or with `back` to where `units` have theirs: all that were asked for, or none. `check` raises
    an error where pairs must not be."""
    here = ours(model)
    found = pairs(units, here, layout, ordered)
    report = report_of(there, units, model, found, strict, back, layout)
    if check is not None:
        check(found, model, report)
    if back:
        copy_there(found)
    else:
        copy_here(found, model)
    return report


def report_of(
    there: str, units: Sequence[Unit], model: Layer, found: Sequence[Pair], strict: bool, back: bool, layout: Layout
) -> Report:
    """The report of what these pairs copy. CheckpointError where something is left over on either side, unless that may be."""
    report, here, waiting = Report(there, back), ours(model), unbuilt(model)
    used, made = set(), set()
    for unit, one, parts in found:
        for part in parts:
            entries = [unit.arrays[name] for name in part.there]
            half = {entry.kind for entry in entries if "16" in entry.kind}
            how = [part.how, *(f"{'to' if back else 'from'} {kind}" for kind in sorted(half))]
            names = ", ".join(one.full(name) for name in part.here)
            report.copied.append(
                Copied(", ".join(e.name for e in entries), names, entries[0].shape, ", ".join(filter(None, how)))
            )
            used |= {entry.place for entry in entries} | {entry.name for entry in entries}
            made |= {one.full(name) for name in part.here}
    firsts: dict[Any, str] = {}
    for unit in units:
        for entry in unit.arrays.values():
            first = firsts.setdefault(entry.place, entry.name)
            if entry.name not in used and entry.place in used:
                report.notes.append(f"{entry.name} is the same array as {first}: tied")
            elif entry.name not in used:
                report.left_there.append(f"{entry.name} {entry.shape}")
            elif first != entry.name:
                report.notes.append(
                    f"{entry.name} is the same array as {first}, and here they are two that learn apart"
                )
    for one in here:
        report.left_here += [f"{one.full(a)} {p.shape}" for a, p in one.parameters.items() if one.full(a) not in made]
    if strict and (report.left_there or report.left_here):
        why = []
        if len(units) == len(here):
            why = [line for unit, one in zip(units, here) for line in fitting(one, unit, layout)[1]]
        raise CheckpointError(
            f"the weights do not fit, and nothing was copied. Left over in {there}: {', '.join(report.left_there) or 'nothing'}. "
            f"Left over in clnn: {', '.join(report.left_here) or 'nothing'}. "
            + (f"{'; '.join(why)}. " if why else "")
            + (f"The model {waiting}. " if waiting else "")
            + "Make the layers alike, or copy what fits with strict=False"
        )
    return report


def copy_here(found: Sequence[Pair], model: Layer) -> None:
    """Copy what is there into the model, all or nothing."""
    state: dict[str, np.ndarray] = {}
    for unit, one, parts in found:
        for part in parts:
            entries = [unit.arrays[name] for name in part.there]
            for entry, array in zip(entries, arrays := [entry.read() for entry in entries]):
                if not np.isfinite(array).all():
                    raise CheckpointError(
                        f"{entry.name} holds NaN or infinities, and nothing was copied: take weights from before it diverged"
                    )
                if array.size and np.abs(array).max() > (most := np.finfo(one.layer.dtype).max):
                    raise CheckpointError(
                        f"{entry.name} holds numbers beyond {most:.3g}, the most in the model's {one.layer.dtype}"
                    )
            state |= {one.full(name): array for name, array in zip(part.here, part.read(*arrays))}
    model.load_state_dict({**model.state_dict(), **state})


def copy_there(found: Sequence[Pair]) -> None:
    """Copy the model's parameters to what is there, all or nothing."""
    writes: dict[Any, tuple[Stored, np.ndarray, np.ndarray]] = {}
    for unit, one, parts in found:
        for part in parts:
            arrays = part.write(*[one.parameters[name].numpy() for name in part.here])
            for name, array in zip(part.there, arrays):
                entry, at = unit.arrays[name], unit.arrays[name].place
                if not np.isfinite(array).all():
                    raise CheckpointError(f"{one} holds NaN or infinities for {entry.name}, and nothing was copied")
                was = entry.read().copy()
                if array.size and float(np.abs(array).max()) > entry.most:
                    raise CheckpointError(
                        f"{one} holds numbers beyond {entry.most:.3g}, the most that {entry.name} ({entry.kind}) holds"
                    )
                if at in writes and not np.array_equal(writes[at][1], array):
                    raise CheckpointError(
                        f"{entry.name} and {writes[at][0].name} are one array there, tied, and two of different values here: "
                        "untie them there, or tie them here"
                    )
                writes[at] = entry, array, was
    try:
        for entry, array, _ in writes.values():
            entry.write(array)
    except Exception as error:  # whatever the other library raises
        for each, _, was in writes.values():
            with contextlib.suppress(Exception):  # the one that cannot be written has kept its values
                each.write(was)
        raise CheckpointError(f"{entry.name} cannot be written, and everything is as it was: {error}") from error


def same_settings(unit: Unit, here: Here, twin: Layer, names: Iterable[str], ignore: Sequence[str]) -> None:
    """CheckpointError where a layer does not do what its twin there does."""
    for name in names:
        theirs, mine = (_setting(one, name) for one in (twin, here.layer))
        close = isinstance(theirs, float) and isinstance(mine, float) and abs(theirs - mine) <= 1e-6 * abs(theirs)
        if theirs != mine and not close and name not in ignore and hasattr(twin, name) and hasattr(here.layer, name):
            raise CheckpointError(
                f"{unit} has {name} {theirs!r}, and {here} {mine!r}, so that they compute different things; nothing was copied. "
                f"Here it is {twin!r}; or leave it as it is with ignore=({name!r},)"
            )


def _setting(layer: Layer, name: str) -> Any:
    value = getattr(layer, name, None)
    dilation, kernel = getattr(layer, "dilation", None), getattr(layer, "kernel", None)
    if name == "padding" and dilation and value in ("same", "causal"):
        sizes = [d * (k - 1) for d, k in zip(dilation, kernel)]  # type: ignore[arg-type]
        if value == "causal":
            return tuple((n, 0) for n in sizes)
        if set(layer.stride) == {1}:  # type: ignore[attr-defined]
            return tuple((n // 2, n - n // 2) for n in sizes)
    return value


def wrong_kind(what: str, one: Any) -> ClnnError:
    """The error for what is neither a module nor a state dict."""
    return ConfigurationError(f"{what}, and {type(one).__name__} is neither")
