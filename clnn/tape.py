"""The tape: the graph of nodes behind a tensor, walked from the newest to the oldest.

Each closure is dropped as soon as it has run. Gradients of parameters go where the optimizer chose (`Parameter.sink`), all
others into temporaries. A parameter is what wants a gradient and has no node.
"""

from __future__ import annotations

import contextlib
import heapq
import itertools
import threading
from collections.abc import Iterator, Sequence
from typing import Any, cast

from .errors import ClnnError
from .gemm import Scale
from .ops.activation import back_through
from .ops.array import Array, Backward, Gradient, Sink, empty, empty_like, fill
from .ops.elementwise import binary, scale_add
from .ops.half import note, unpacking

_mode = threading.local()
_order = itertools.count()


def moment() -> int:
    """The present as a place in the order of all that happens on tape."""
    return next(_order)


def grad_enabled() -> bool:
    """Whether operations are taken on tape: yes, except within `clnn.no_grad()`, evaluate and predict. Layers such as
    Dropout tell training from inference by it."""
    return getattr(_mode, "enabled", True)


@contextlib.contextmanager
def no_grad() -> Iterator[None]:
    """Within it nothing is taken on tape: memory is reused at once, and dropout is off."""
    before = grad_enabled()
    _mode.enabled = False
    try:
        yield
    finally:
        _mode.enabled = before


class Node:
    """One operation on tape: the closure that takes its gradient back, and the gradient's shape.

    A node has no links to its inputs: the closure yields them with their gradients.
    `of_loss`: the closure is a loss's. It takes None for a gradient of 1, and its gradients already contain f' of the output's
    activation, so that `_add` does not multiply by it.
    """

    __slots__ = ("order", "backward", "like", "activation", "reads", "of_loss")

    def __init__(self, y: Array, backward: Backward, reads: Sequence[Any] = (), of_loss: bool = False) -> None:
        """`reads`: the parameters whose values the closure needs, as they are now."""
        self.of_loss = of_loss
        self.reads = [(p, p.version) for p in reads]
        self.order = next(_order)
        self.backward: Backward | None = backward
        self.like, self.activation = (y.device, y.shape, y.dtype), y.activation
        note(self)

    def __lt__(self, other: Node) -> bool:  # the newest first
        return self.order > other.order


class _Waiting:
    """The nodes that have received a gradient and whose closures have not run, the newest first."""

    def __init__(self) -> None:
        self.heap: list[Node] = []
        # what each has gathered so far, and whether that may be added to in place
        self.gathered: dict[Node, tuple[Array, bool]] = {}

    def put(self, node: Node, gradient: Array, owned: bool) -> None:
        if node not in self.gathered:
            heapq.heappush(self.heap, node)
        self.gathered[node] = gradient, owned


def backpropagate(root: Node, gradient: Array | None) -> None:
    """Run the closures behind `root` from the newest to the oldest; None stands for a gradient of 1."""
    device, shape, dtype = root.like
    if gradient is None and not root.of_loss:
        gradient = fill(empty(device, shape, dtype), 1.0)
    if gradient is not None and root.activation is not None:
        gradient = back_through(root.activation, gradient)
    waiting = _Waiting()
    waiting.put(root, cast(Array, gradient), False)  # only a loss's can be None, and its closure takes that for 1
    while waiting.heap:
        node = heapq.heappop(waiting.heap)
        gradient, _ = waiting.gathered.pop(node)
        for p, version in node.reads:
            if p.version != version:
                raise ClnnError(
                    f"backward(): {p.name or 'a parameter'} has changed since the forward pass whose gradient needs its values, "
                    "by an optimizer's step or load_state_dict(): call backward() before that, or run the forward pass again"
                )
        closure, node.backward, node.activation = node.backward, None, None  # what they hold is free from here on
        if closure is None:
            raise ClnnError("backward(): the tape was used up by an earlier backward(); run the forward pass again")
        with unpacking():
            for *targets, flowing in closure(gradient):
                _deliver(targets, flowing, waiting, node.of_loss)


def _deliver(targets: list[Any], flowing: Gradient, waiting: _Waiting, of_loss: bool) -> None:
    """Bring a gradient to the inputs it is for."""
    wanted = [getattr(t, "requires_grad", False) for t in targets]  # not so for arrays and numbers
    if not any(wanted):
        return
    if isinstance(flowing, Array):
        _add(targets[0], flowing, waiting, of_loss)
        return
    like = targets[wanted.index(True)]
    sinks: list[Sink | None] = []
    loose: list[tuple[Any, Array]] = []  # written apart, then added like any array
    for target, want in zip(targets, wanted):
        node: Any = target.node if want else None
        gathered, owned = waiting.gathered.get(node, (None, True))
        if not want:
            sinks.append(None)
        elif node is None:  # a parameter
            sinks.append(target.next_sink())
        elif len(targets) > 1 or not owned:  # (writers for several know no derivative)
            out = empty_like(target)
            loose.append((target, out))
            sinks.append(Sink(out.block, Scale.constant(like.device, like.dtype, 1, 0)))
        elif gathered is None:
            out = empty(*node.like)
            waiting.put(node, out, True)
            sinks.append(Sink(out.block, None, node.activation))
        else:
            sinks.append(Sink(gathered.block, Scale.constant(like.device, like.dtype, 1, 1), node.activation))
    flowing(*sinks)
    for target, out in loose:
        _add(target, out, waiting)


def _add(target: Any, gradient: Array, waiting: _Waiting, of_loss: bool = False) -> None:
    """Add an array to what `target` has received."""
    node: Node | None = target.node
    if node is None:  # a parameter
        sink = target.next_sink()
        assert sink.scale is not None
        scale_add(gradient, sink.out, sink.scale)
        return
    gathered, owned = waiting.gathered.get(node, (None, False))
    activation = None if of_loss else node.activation
    if activation and gathered is not None and owned:
        back_through(activation, gradient, into=gathered)
        return
    if activation:
        gradient = back_through(activation, gradient)
    if gathered is None:
        waiting.put(node, gradient, activation is not None)
    elif owned:
        scale_add(gradient, gathered.block, Scale.constant(gradient.device, gradient.dtype, 1, 1))
    else:
        waiting.put(node, binary("add", gathered, gradient)[0], True)
