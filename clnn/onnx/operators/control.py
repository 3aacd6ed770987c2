"""If, Loop and Scan. Conditions and trip counts are values of the host: where they follow from constants, shapes or whole numbers
that were given, the branches and turns are part of the recording; where they depend on results, these are read."""

from __future__ import annotations

from typing import Any

import numpy as np

from ... import arrays
from ...errors import ShapeError
from ..registry import Context, operator
from ..run import Made
from .shape import axes_of

MOST_TURNS = 1 << 16  # of a Loop


@operator("If", 1, host=(0,))
def if_(c: Context, condition: Any, *, then_branch: Any, else_branch: Any) -> Any:
    if condition.size != 1:
        raise ShapeError(f"a condition is one value, and this one has the shape {condition.shape}")
    return tuple(c.run(then_branch if condition.reshape(-1)[0] else else_branch, []))


def stacked(c: Context, parts: list[Made], body: Any, at: int, axis: int = 0) -> Made:
    """What each turn gave, joined along a new axis; without turns an array of no elements, as the body's output says."""
    if not parts:
        value = body.outputs[at]
        sizes = [s if isinstance(s, int) else 0 for s in value.shape or ()]
        return Made(
            np.zeros((0, *sizes), "float32" if value.type in ("", "bfloat16") else value.type), value.type or "float32"
        )
    data = [one.data for one in parts]
    (axis,) = axes_of(data[0].ndim + 1, [axis])
    if all(isinstance(one, np.ndarray) for one in data):
        joined: Any = np.stack(data, axis)
    else:
        joined = arrays.stack([c.tensor(one) for one in data], axis)
    sources: frozenset[str] = frozenset().union(*(one.sources for one in parts))
    return Made(joined, parts[0].type, sources)


@operator("Loop", 1, host=(0, 1))
def loop(c: Context, most: Any, condition: Any, *_: Any, body: Any) -> Any:
    """As long as the condition holds, and `most` times at most: the states at the end, and what each turn gave."""
    turns = None if most is None else int(most.reshape(-1)[0])
    going = condition is None or bool(condition.reshape(-1)[0])
    states, scans = c.values[2:], len(body.outputs) - 1 - len(c.values[2:])
    if scans < 0:
        raise ShapeError(f"the body gives {len(body.outputs)} values for {len(states)} states and a condition")
    given: list[list[Made]] = [[] for _ in range(scans)]
    i = 0
    while going and (turns is None or i < turns):
        if i >= MOST_TURNS:
            raise ShapeError(f"a Loop has gone round {MOST_TURNS:,} times")
        number = Made(np.array(i, np.int64), "int64")
        found = c.run(body, [number, Made(np.array(True), "bool"), *states])
        going = bool(np.reshape(c.pass_.on_host(found[0]), -1)[0])
        states = found[1 : 1 + len(states)]
        for one, value in zip(given, found[1 + len(states) :]):
            one.append(value)
        i += 1
    return (*states, *(stacked(c, one, body, 1 + len(states) + k) for k, one in enumerate(given)))


@operator("Scan", 9)
def scan(
    c: Context, *_: Any, body: Any, num_scan_inputs: int, scan_input_axes: Any = None, scan_input_directions: Any = None,
    scan_output_axes: Any = None, scan_output_directions: Any = None,
) -> Any:  # fmt: skip
    """The body over slices of the inputs: the states at the end, and what each turn gave."""
    first = len(c.values) - num_scan_inputs
    states, inputs = c.values[:first], c.values[first:]
    outputs = len(body.outputs) - first
    axes = [axes_of(v.data.ndim, [a])[0] for v, a in zip(inputs, scan_input_axes or [0] * len(inputs))]
    back = scan_input_directions or [0] * len(inputs)
    steps = {v.data.shape[a] for v, a in zip(inputs, axes)}
    if len(steps) != 1 or first < 0 or outputs < 0:
        raise ShapeError(f"the inputs of a Scan have {sorted(steps)} steps")
    (n,) = steps
    given: list[list[Made]] = [[] for _ in range(outputs)]
    for t in range(n):
        slices = [
            v._replace(data=v.data[(*(slice(None),) * a, n - 1 - t if turned else t)])
            for v, a, turned in zip(inputs, axes, back)
        ]
        found = c.run(body, [*states, *slices])
        states = found[:first]
        for one, value in zip(given, found[first:]):
            one.append(value._replace(data=np.asarray(value.data)) if isinstance(value.data, np.generic) else value)
    wanted = scan_output_axes or [0] * outputs
    turned = scan_output_directions or [0] * outputs
    results = [stacked(c, one[::-1] if turned[k] else one, body, first + k, wanted[k]) for k, one in enumerate(given)]
    return (*states, *results)
