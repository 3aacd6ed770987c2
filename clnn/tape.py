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
    `of_loss`: the closure is a loss's. It takes None for a gradient of 1, and its gradients already contain the derivative of
    the activation that the output ends with, so that `_add` must not multiply by it again.
    """

    __slots__ = ("order", "backward", "like", "activation", "reads", "of_loss")

    def __init__(self, y: Array, backward: Backward, reads: Sequence[Any] = (), of_loss: bool = False) -> None:
        """`reads`: the parameters whose values the closure needs, as they are now."""
        self.of_loss = of_loss
        self.reads = [(p, p.version) for p in reads]
        self.order = next(_order)
        self.backward: Backward | None = backward
        self.like, self.activation = (y.device, y.shape, y.dtype), y.activation

    def __lt__(self, other: Node) -> bool:  # the newest first
        return self.order > other.order


class _Pending:
    """The gradient gathered for a node so far, and whether its memory is this one's own to add to."""

    __slots__ = ("gradient", "owned")

    def __init__(self, gradient: Array, owned: bool) -> None:
        self.gradient, self.owned = gradient, owned


def backpropagate(root: Node, gradient: Array | None) -> None:
    """Run the closures behind `root` from the newest to the oldest; None stands for a gradient of 1."""
    device, shape, dtype = root.like
    if gradient is None and not root.of_loss:
        gradient = fill(empty(device, shape, dtype), 1.0)
    if gradient is not None and root.activation is not None:
        gradient = back_through(root.activation, gradient)
    waiting, pending = [root], {root: _Pending(gradient, False) if gradient is not None else None}
    while waiting:
        node = heapq.heappop(waiting)
        got = pending.pop(node)
        for p, version in node.reads:
            if p.version != version:
                raise ClnnError(
                    f"backward(): {p.name or 'a parameter'} has changed since the forward pass whose gradient needs its values, "
                    "by an optimizer's step or load_state_dict(): call backward() before that, or run the forward pass again"
                )
        closure, node.backward, node.activation = node.backward, None, None  # what they hold is free from here on
        if closure is None:
            raise ClnnError("backward(): the tape was used up by an earlier backward(); run the forward pass again")
        # only a loss's gradient can be missing, and its closure takes None for 1
        for *targets, flowing in closure(cast(Array, got.gradient if got is not None else None)):
            for target in _deliver(targets, flowing, pending, node.of_loss):
                heapq.heappush(waiting, target)


def _deliver(targets: list[Any], flowing: Gradient, pending: dict[Node, _Pending | None], of_loss: bool) -> list[Node]:
    """Bring a gradient to the inputs it is for; the nodes that are now waiting for the first time come back."""
    wanted = [getattr(t, "requires_grad", False) for t in targets]  # not so for arrays and numbers
    if not any(wanted):
        return []
    if isinstance(flowing, Array):
        return _add(targets[0], flowing, pending, of_loss)
    device, dtype = targets[0].device, targets[0].dtype
    first: list[Node] = []
    sinks: list[Sink | None] = []
    loose: list[tuple[Any, Array]] = []  # written apart, then added like any array
    for target, want in zip(targets, wanted):
        node: Any = target.node if want else None
        got = pending.get(node) if node else None
        if not want:
            sinks.append(None)
        elif node is None:  # a parameter
            sinks.append(target.next_sink())
        elif len(targets) > 1 or (got is not None and not got.owned):
            out = empty_like(target)
            loose.append((target, out))
            sinks.append(Sink(out.block, Scale.constant(device, dtype, 1, 0)))
        elif got is None:
            out = empty(*node.like)
            pending[node] = _Pending(out, True)
            first.append(node)
            sinks.append(Sink(out.block, None, node.activation))
        else:
            sinks.append(Sink(got.gradient.block, Scale.constant(device, dtype, 1, 1), node.activation))
    flowing(*sinks)
    for target, out in loose:
        first += _add(target, out, pending)
    return first


def _add(target: Any, gradient: Array, pending: dict[Node, _Pending | None], of_loss: bool = False) -> list[Node]:
    """Add an array to what `target` has received."""
    node: Node | None = target.node
    if node is None:  # a parameter
        sink = target.next_sink()
        assert sink.scale is not None
        scale_add(gradient, sink.out, sink.scale)
        return []
    got = pending.get(node)
    activation = None if of_loss else node.activation
    if got is not None and got.owned and activation:
        back_through(activation, gradient, into=got.gradient)
        return []
    if activation:
        gradient = back_through(activation, gradient)
    if got is None:
        pending[node] = _Pending(gradient, activation is not None)
        return [node]
    if got.owned:
        scale_add(gradient, got.gradient.block, Scale.constant(gradient.device, gradient.dtype, 1, 1))
    else:
        pending[node] = _Pending(binary("add", got.gradient, gradient)[0], True)
    return []
