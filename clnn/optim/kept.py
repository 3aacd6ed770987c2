"""What an optimizer keeps of parameters: buffers laid out like their stores, which follow a parameter wherever it moves."""

from __future__ import annotations

import functools
import weakref
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from ..errors import CheckpointError, ConfigurationError
from ..parameters import Store
from ..runtime.memory import Block
from ..runtime.watching.watch import Restored
from ..tensor import Parameter


class Kept(Restored):
    """Buffers by store and name, such as "velocity" or "average", and where in them each parameter's part is.

    One optimizer may train several models. Buffers live as long as their store, hence as its model; the places of the parameters
    of a model that is not trained now are weak references, since it may be moved or deleted before it comes back.
    """

    def __init__(self) -> None:
        self.stores: list[Store] = []  # of the parameters that are trained now
        self.places: dict[Parameter, tuple[Store, int]] = {}  # of the parameters of this model
        self._elsewhere: dict[int, tuple[weakref.ref[Parameter], Store, int]] = {}  # of other models', by id
        self._blocks: weakref.WeakKeyDictionary[Store, dict[str, Block]] = weakref.WeakKeyDictionary()
        # by parameter and name of buffer: loaded for parameters that have been frozen since; by "taken" how many steps they took
        self.waiting: dict[Any, Any] = {}

    # -- buffers ------------------------------------------------------------------------------------------------------
    def block(self, store: Store, name: str) -> Block:
        """The buffer of that name: zero at first, or for "average" the weights."""
        blocks = self._blocks.setdefault(store, {})
        if name not in blocks:
            store.device.ends_audit("an optimizer began to keep something of the parameters")
            blocks[name] = store.device.memory.allocate(store.nbytes, pooled=False)
            self._reset(store, name)
        return blocks[name]

    def _reset(self, store: Store, name: str) -> None:
        block = self._blocks[store][name]
        if name == "average":
            store.device.copy(store.block, block, store.nbytes)
        else:
            store.device.fill_zero(block)

    def clear(self) -> None:
        """Everything as it is at first; buffers stay, since recordings have them."""
        for store in self.stores:
            if store.velocity_of is self:
                self.separate(store)
            for name in self._blocks.get(store, {}):
                self._reset(store, name)

    def part(self, p: Parameter, name: str) -> Block:
        """A parameter's part of a buffer."""
        return self.block(p.store, name).view(p.position, p.nbytes)

    # -- velocities in the gradients' buffer --------------------------------------------------------------------------
    def share(self, store: Store, parameters: Iterable[Parameter]) -> None:
        """Velocities move into the gradients' buffer, where no gradient is left."""
        if store.velocity_of is not None:
            store.velocity_of.separate(store)
        _not_recorded(store)
        velocity = self._blocks.get(store, {}).get("velocity")  # it stays: recordings may have it
        if velocity is not None:
            store.device.copy(velocity, store.gradients(), store.nbytes)
        else:
            store.device.fill_zero(store.gradients())
        for p in parameters:
            if p.store is store and p._last:
                p.received(0, "velocity")
        store.velocity_of = self

    def separate(self, store: Store) -> None:
        """Velocities move out of the gradients' buffer, because gradients are wanted there."""
        _not_recorded(store)
        store.device.copy(store.gradients(), self.block(store, "velocity"), store.nbytes)
        store.velocity_of = None

    # -- where parameters are -----------------------------------------------------------------------------------------
    def place(self, p: Parameter) -> tuple[Store, int] | None:
        """The store in whose buffers a parameter's part is, and where: of this model or of one before."""
        found = self._elsewhere.get(id(p))
        return found[1:] if found is not None and found[0]() is p else self.places.get(p)

    def follow(self, parameters: Iterable[Parameter]) -> None:
        """What is kept of parameters goes where they are now, by way of the host."""
        for p in parameters:
            place, self.places[p] = self.place(p), (p.store, p.position)
            self._elsewhere.pop(id(p), None)
            if place is None or place[0] is p.store:
                continue
            store, position = place
            if store.velocity_of is self:
                self.separate(store)
            for name, block in self._blocks.get(store, {}).items():
                array = store.device.read(block.view(position, p.nbytes), np.empty(p.shape, p.dtype))
                p.device.upload(array, self.part(p, name))

    def leave(self) -> set[Store]:
        """Another model begins: the places of this one's parameters become weak; the stores that it has."""
        stores = {*self.stores, *(store for store, _ in self.places.values())}
        for p, place in self.places.items():
            forget = functools.partial(self._elsewhere.pop, id(p))
            self._elsewhere[id(p)] = weakref.ref(p, forget), *place
        self.places = {}
        return stores

    # -- as arrays on the host ----------------------------------------------------------------------------------------
    def read(self, p: Parameter, names: Iterable[str]) -> dict[str, np.ndarray]:
        """What is kept of a parameter by these names, as far as there is any."""
        store, position = self.place(p) or (None, 0)
        if store is None:
            return {}
        blocks = dict(self._blocks.get(store, {}))
        if store.velocity_of is self:
            blocks["velocity"] = store.gradients()
        views = {name: blocks[name].view(position, p.nbytes) for name in names if name in blocks}
        where = store.device  # not p's, which may have moved since
        return {name: where.read(view, np.empty(p.shape, p.dtype)) for name, view in views.items()}

    def take_up(self, parameters: Iterable[Parameter], names: Sequence[str]) -> None:
        """Bring what waits for these parameters to them."""
        for p in parameters:
            for name in names:
                array = self.waiting.pop((weakref.ref(p), name), None)
                if array is not None:
                    if p.store.velocity_of is self:
                        self.separate(p.store)
                    p.device.upload(np.ascontiguousarray(array, p.dtype), self.part(p, name))


def _not_recorded(store: Store) -> None:
    if store.device.recorder is not None:
        store.device.recorder.abort("gradients were wanted where an optimizer has its velocities, or the reverse")


# -- states as files hold them ----------------------------------------------------------------------------------------
def names_of(parameters: Sequence[Parameter]) -> dict[Parameter, str]:
    """The parameters' names, or their numbers where these are not unique."""
    names = [p.name for p in parameters]
    unique = len(set(names)) == len(names) and "" not in names
    return {p: p.name if unique else str(i) for i, p in enumerate(parameters)}


def fitting(state: dict[str, Any], now: Sequence[Parameter], before: Sequence[Parameter]) -> dict[Any, Any]:
    """The arrays of a state by parameters, as weak references, and names of buffers, and by "taken" its steps, if it is
    one of those of `now`; or, where some have been replaced since it was loaded, of those `before`: those begin anew."""
    arrays, saved, names = state["arrays"], state.get("names"), names_of(before)
    if names.keys().isdisjoint(now) or {*names.values()} != {*(saved or ())}:
        names = names_of(now)
    if saved is None:  # of an earlier version, which kept what was trainable, in order
        saved = [name for p, name in names.items() if p.trainable]
        count = len({key.partition(".")[0] for key in arrays})
        if count not in (0, len(saved)):
            raise CheckpointError(f"the optimizer's state is that of {count} parameters, and {len(saved)} were given")
    elif saved and set(saved) != set(names.values()):  # without parameters it has counts, and nothing else
        there, here = set(saved), set(names.values())
        missing, extra = (", ".join(sorted(some)[:9]) or "none" for some in (there - here, here - there))
        raise CheckpointError(
            f"the optimizer's state is that of {len(saved)} parameters, and {len(names)} were given: only the state has "
            f"{missing}; only the parameters have {extra}. Give net.parameters(), those that are frozen as well, or a new "
            "optimizer"
        )
    owners, found = {name: p for p, name in names.items()}, {}
    for key, array in arrays.items():
        index, _, which = key.partition(".")
        p = owners[saved[int(index)]]
        if p.shape != array.shape:
            told = f"the optimizer's state {key} has the shape {array.shape}, its parameter {names[p]} {p.shape}"
            raise ConfigurationError(told)
        found[weakref.ref(p), state["states"][int(which)] if which.isdigit() else which] = array
    taken = state.get("taken") or [state["steps"]] * len(saved)
    found |= {(weakref.ref(owners[name]), "taken"): int(steps) for name, steps in zip(saved, taken)}
    return found


def renamed(state: dict[str, Any], own: dict[Parameter, str], theirs: dict[Parameter, str]) -> dict[str, Any]:
    """A state that is by the parameters' `own` names by `their` names, without those that are not among them."""
    new = {name: theirs[p] for p, name in own.items() if p in theirs}
    stays = [index for index, name in enumerate(state["names"]) if name in new]
    at = {str(index): str(i) for i, index in enumerate(stays)}
    parts = [(key.partition("."), array) for key, array in state["arrays"].items()]
    arrays = {f"{at[index]}.{which}": array for (index, _, which), array in parts if index in at}
    taken = {"taken": [state["taken"][index] for index in stays]} if "taken" in state else {}
    return {**state, "names": [new[state["names"][index]] for index in stays], "arrays": arrays} | taken
