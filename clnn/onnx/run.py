"""Running a graph: constants and shapes on the host, everything else on the device, by the functions of the table.

A pass goes through the nodes and calls their functions; it works under `@clnn.step` and with a tape as any function of tensors
does. Where a function needs the values of a tensor on the host that depends on whole numbers given to the model, such as a
shape, `Demand` says which inputs these are: they are then given as arrays, and belong to the key of the recording. Where it
depends on more, it is read, and the pass is not recorded.
"""

from __future__ import annotations

import math
from collections import ChainMap, Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from ..errors import CheckpointError, ClnnError, OutOfDeviceMemory, OutOfRangeError, ShapeError
from ..ops.array import FLOATS
from ..ops.index import missing_rows
from ..runtime.device import Device, ValuesWanted
from ..tensor import Tensor, _filled, constant, function
from .graph import Graph, Node
from .registry import Context, Operator, find

MOST_ON_HOST = 1 << 28  # elements of an array that follows from shapes
UNLIKE = ("Random", "Bernoulli", "Multinomial")  # operators that give something else each time
KEPT = 1 << 10  # constants that follow from shapes and are kept on the device


class Made(NamedTuple):
    """A value in a pass: an array, a tensor, or a list of such, its type in ONNX's words, and the inputs that it depends on."""

    data: Any
    type: str
    sources: frozenset[str] = frozenset()


class Demand(Exception):
    """The values of these inputs, whole numbers all, are needed on the host."""

    def __init__(self, sources: frozenset[str]) -> None:
        self.sources = sources


def type_of(data: Any) -> str:
    """The type of an array or a tensor in ONNX's words."""
    if isinstance(data, (list, dict)):
        return "sequence"
    return "string" if data.dtype == object else data.dtype.name


class Constants:
    """Constants on the device: each is uploaded once, so that a recorded step may read it."""

    def __init__(self, device: Device) -> None:
        self.device = device
        self.by_id: dict[int, tuple[np.ndarray, Tensor]] = {}
        self.by_value: dict[Any, Tensor] = {}
        self.packs: dict[Any, dict[Any, Any]] = {}  # what kernels packed of each block that stays as it is

    def hold(self, array: np.ndarray) -> None:
        """Keep what will be uploaded of this array, as it is the graph's own."""
        self.by_id.setdefault(id(array), (array, None))  # type: ignore[arg-type]

    def tensor(self, array: np.ndarray) -> Tensor:
        """The array on the device."""
        known = self.by_id.get(id(array))
        if known is not None and known[1] is not None:
            return known[1]
        if known is not None:
            made = self._made(array)
            self.by_id[id(array)] = (array, made)
            self.packs.setdefault(made.block, {})
            return made
        one = not array.size or (array.size > 1 and not any(array.strides))
        key = (array.shape, array.dtype.str, array.flat[:1].tobytes() if one else array.tobytes())
        if key not in self.by_value:
            while len(self.by_value) >= KEPT:
                self.by_value.pop(next(iter(self.by_value)))
            self.by_value[key] = self._made(array)
        return self.by_value[key]

    def _made(self, array: np.ndarray) -> Tensor:
        if array.dtype == object:
            raise ShapeError("texts have no place on a device")
        kind: Any = np.dtype(np.float32 if array.dtype.kind in "fb" else np.int32)
        kind = np.dtype(np.float64) if array.dtype == np.float64 else kind
        if kind in FLOATS and array.size > 1 and not any(array.strides):
            return _filled("a constant", array.shape, float(array.flat[0]), kind, self.device)  # type: ignore[arg-type]
        return constant(array.astype(kind) if kind in FLOATS else array, kind, self.device)


class Plan:
    """What a graph comes to: its nodes with their operators, and the values of those that depend on constants alone."""

    def __init__(
        self,
        graph: Graph,
        device: Device,
        constants: Mapping[str, Any],
        where: str,
        kept: Constants,
        tensors: Mapping[str, tuple[np.ndarray, Tensor]] | None = None,
        fuse: Callable[[Plan], None] | None = None,
    ) -> None:
        """`constants`: arrays, which are folded, and tensors, which are not; `tensors`: arrays that are on the device, too;
        `fuse` rewrites nodes."""
        self.graph, self.device, self.where, self.constants = graph, device, where, kept
        self.found = operators_of(graph, graph.opsets, where)
        self.values: dict[str, Made] = {
            name: Made(data, type_of(data)) for name, data in constants.items()
        }  # and tensors that learn
        self.nodes: list[Node] = list(graph.nodes)
        self._fold()
        if fuse is not None:
            fuse(self)
        self.arrays: dict[int, tuple[Tensor, np.ndarray]] = {}  # of tensors that stay as they are, by their ids
        # What nodes of graphs inside, and operators, make of constants, by the node's and the constants' ids: the same name
        # may be another constant in the next turn of a Loop, or behind another branch
        self.known: dict[tuple[int, ...], dict[str, Made]] = {}
        self.ready: dict[tuple[int, ...], list[np.ndarray | None]] = {}
        for name, (array, t) in (tensors or {}).items():
            if name in self.values and self.values[name].data is array:
                self.values[name] = Made(t, self.values[name].type)
                self.arrays[id(t)] = t, array
                kept.packs.setdefault(t.block, {})
        self.last = last_uses(self.nodes, graph)

    def _fold(self) -> None:
        known = {name for name, value in self.values.items() if not isinstance(value.data, Tensor)}
        env: ChainMap[str, Made] = ChainMap({}, self.values)  # type: ignore[arg-type]
        kept = []
        folding = Pass(self, frozenset(), folding=True)
        for node in self.nodes:
            if node.reads() <= known and not node.op.startswith(UNLIKE):
                folding.node(node, env)
                for name in filter(None, node.outputs):
                    value = env[name]
                    data = self._read(value) if isinstance(value.data, Tensor) else value.data
                    self.values[name] = Made(data, value.type)
                    known.add(name)
            else:
                kept.append(node)
        self.nodes = kept
        wanted = {name for node in kept for name in node.reads()} | {value.name for value in self.graph.outputs}
        self.values = {name: value for name, value in self.values.items() if name in wanted}
        for value in self.values.values():
            if isinstance(value.data, np.ndarray):
                self.constants.hold(value.data)

    def fixed(self, data: Any) -> np.ndarray | None:
        """The array of a constant; None for what may be another one in the next pass."""
        if isinstance(data, Tensor):
            return self.arrays.get(id(data), (None, None))[1]
        return data if isinstance(data, np.ndarray) and id(data) in self.constants.by_id else None

    def passed(self, made: Made) -> Made:
        """A value as a graph inside receives it: what turns make of a constant is not kept as one, turn after turn."""
        data = np.asarray(made.data) if isinstance(made.data, np.generic) else made.data  # a row of a vector
        if self.fixed(data) is None:
            return made._replace(data=data)
        return made._replace(data=data.view() if isinstance(data, np.ndarray) else data.reshape(data.shape))

    def prepared(self, node: Node, values: Sequence[Any], make: Callable[..., Sequence[Any]]) -> Sequence[Any] | None:
        """What `make` makes of arrays, once for a node and these; None where these values are no constants."""
        arrays = [None if v is None else self.fixed(v) for v in values]
        if any(array is None and v is not None for array, v in zip(arrays, values)):
            return None
        key = id(node), *map(id, arrays)
        if key not in self.ready:
            self.ready[key] = [*make(*arrays)]
            for array in self.ready[key]:
                if array is not None:
                    self.constants.hold(array)
        return self.ready[key]

    @staticmethod
    def _read(value: Made) -> np.ndarray:
        array = value.data.numpy()
        return array.astype(value.type) if value.type not in ("bfloat16", "") else array


def operators_of(graph: Graph, opsets: dict[str, int], where: str) -> dict[int, Operator]:
    """The operator of each node, by the node's id. CheckpointError that names all that are not supported, with their nodes."""
    found: dict[int, Operator] = {}
    wrong: dict[str, list[str]] = {}
    for node in graph.every_node():
        version = opsets.get(node.domain)
        one = None if version is None else find(node.domain, node.op, version)
        name = f"{node.domain}.{node.op}" if node.domain else node.op
        called = node.name or next(filter(None, node.outputs), "")
        if one is None:
            set_ = (
                "a domain whose operator set the file does not name" if version is None else f"operator set {version}"
            )
            wrong.setdefault(f"{name} ({set_})", []).append(called)
            continue
        unknown = [] if one.attributes is None else [a for a in node.attributes if a not in one.attributes]
        if unknown:
            wrong.setdefault(f"{name} with {', '.join(unknown)}", []).append(called)
        found[id(node)] = one
    if wrong:
        listed = "; ".join(
            f"{name}: {len(nodes)} node{'s' * (len(nodes) > 1)}, {', '.join(map(repr, nodes[:8]))}{', ...' * (len(nodes) > 8)}"
            for name, nodes in sorted(wrong.items())
        )
        raise CheckpointError(
            f"{where} uses operators that are not supported: {listed}. clnn.onnx.operators() lists those that are; another opset "
            "of the exporter may do without"
        )
    return found


def last_uses(nodes: Sequence[Node], graph: Graph) -> dict[int, list[str]]:
    """By a node's id the names that it is the last one to read: their memory is free from there on."""
    kept = {value.name for value in graph.outputs}
    last: dict[str, int] = {}
    for node in nodes:
        last |= dict.fromkeys((*node.reads(), *filter(None, node.outputs)), id(node))
    found: dict[int, list[str]] = {}
    for name, node_id in last.items():
        if name not in kept:
            found.setdefault(node_id, []).append(name)
    return found


class Pass:
    """One pass through a plan. `given`: the inputs whose values may be demanded on the host; `note` is told of each node, its
    inputs and its outputs."""

    def __init__(self, plan: Plan, given: frozenset[str], folding: bool = False, note: Any = None) -> None:
        self.plan, self.given, self.folding, self.note = plan, given, folding, note
        self.device, self.opsets = plan.device, plan.graph.opsets
        self.read: Counter[str] = Counter()  # nodes that read values back
        self.checks: list[
            tuple[str, int, Tensor]
        ] = []  # what is wrong where a number is as large as this, and the number

    def run(self, inputs: dict[str, Made]) -> dict[str, Made]:
        """The graph's outputs."""
        env: ChainMap[str, Made] = ChainMap(inputs, self.plan.values)  # type: ignore[arg-type]
        for node in self.plan.nodes:
            self.node(node, env)
            for name in self.plan.last.get(id(node), ()):
                env.maps[0].pop(name, None)
        return {value.name: env[value.name] for value in self.plan.graph.outputs}

    def inside(self, graph: Graph, inputs: Sequence[Made], around: Any) -> list[Made]:
        """The outputs of a graph inside, which sees the names around it."""
        own = {name: Made(array, type_of(array)) for name, array in graph.constants.items()}
        for array in graph.constants.values():
            self.plan.constants.hold(array)
        if len(inputs) != len(graph.inputs):
            raise ShapeError(f"the graph inside takes {len(graph.inputs)} inputs, and {len(inputs)} were given")
        own |= {value.name: self.plan.passed(made) for value, made in zip(graph.inputs, inputs)}
        env = ChainMap(own, *around.maps)
        for node in graph.nodes:
            if not self.known(node, env):
                self.node(node, env)
        return [env[value.name] for value in graph.outputs]

    def known(self, node: Node, env: Any) -> bool:
        """Whether a node of a graph inside depends on constants alone: its outputs, worked out once, are then in `env`."""
        plan = self.plan
        if node.op.startswith(UNLIKE) or any(True for _ in node.graphs()):
            return False
        given = {name: plan.fixed(env[name].data) for name in node.inputs if name}
        if any(array is None for array in given.values()):
            return False
        key = id(node), *map(id, given.values())
        if key not in plan.known:
            if self.device.recorder is not None:
                return False
            found: Any = ChainMap({name: Made(array, env[name].type) for name, array in given.items()})
            Pass(plan, frozenset(), folding=True).node(node, found)
            made = [(name, found[name]) for name in node.outputs if name]
            arrays = [(n, m._replace(data=plan._read(m) if isinstance(m.data, Tensor) else m.data)) for n, m in made]
            if not all(isinstance(m.data, np.ndarray) for _, m in arrays):
                return False
            for _, m in arrays:
                plan.constants.hold(m.data)
            plan.known[key] = dict(arrays)
        env.maps[0].update(plan.known[key])
        return True

    def node(self, node: Node, env: Any) -> None:
        """Run a node, and put its outputs into `env`."""
        one = self.plan.found[id(node)]
        values = [env[name] if name else None for name in node.inputs]
        context = Context(self, node, values, env)
        sources = frozenset().union(*(v.sources for v in values if v is not None))
        if any(True for _ in node.graphs()):
            sources = sources.union(*(env[name].sources for name in node.reads()))
        self.at, self.sources = node, sources
        try:
            with np.errstate(all="ignore"):
                if one.contextual:
                    given = [
                        None if v is None else self.on_host(v) if i in one.host else v.data
                        for i, v in enumerate(values)
                    ]
                    result = one.function(context, *given, **node.attributes)
                else:
                    given = [
                        None if v is None else self.on_host(v) if i in one.host else self.on_device(v.data)
                        for i, v in enumerate(values)
                    ]
                    result = one.function(*given, **node.attributes)
        except (Demand, ValuesWanted):
            raise
        except OutOfDeviceMemory as error:
            error.inside(str(node))
            raise
        except ClnnError as error:
            if getattr(error, "node", None) is None:
                error.node = node  # type: ignore[attr-defined]
                error.args = (f"{self.plan.where}: {node}: {error}",)
            raise
        except (
            ArithmeticError,
            AttributeError,
            IndexError,
            KeyError,
            MemoryError,
            TypeError,
            ValueError,
            RecursionError,
        ) as error:
            shapes = ", ".join("none" if v is None else f"{v.type} {getattr(v.data, 'shape', '')}" for v in values)
            raise CheckpointError(
                f"{self.plan.where}: {node} does not fit its inputs ({shapes}) and attributes: {error}"
            ) from error
        results = [*result] if isinstance(result, tuple) else [result]
        types = context.given or one.gives
        for i, (name, data) in enumerate(zip(node.outputs, results)):
            if not name:
                continue
            if isinstance(data, Made):
                env[name] = data._replace(sources=data.sources | sources)
                continue
            kind = types if isinstance(types, str) else types[i] if types is not None and i < len(types) else ""
            if isinstance(data, np.generic):
                data = np.asarray(data)
            if not kind:
                kind = (
                    type_of(data)
                    if isinstance(data, (np.ndarray, list, dict))
                    else context.types[0]
                    if values
                    else "float32"
                )
            env[name] = Made(data, kind, sources)
        for name in node.outputs[len(results) :]:
            if name:
                raise CheckpointError(f"{self.plan.where}: {node} gives no output {name!r}")
        if self.note is not None:
            given = [v.data for v in values if v is not None]
            self.note(node, given, [env[name].data for name in node.outputs if name])

    def below(self, limit: int, x: Tensor, wrong: str) -> None:
        """Have the caller check that the size of each number in x is below a limit: a recorded pass cannot raise an error."""
        if x.size:
            self.checks.append((f"{self.at}: {wrong}", limit, function(x.detach(), "abs").max()))

    def on_device(self, data: Any) -> Any:
        """A value on the device; lists stay lists."""
        return self.plan.constants.tensor(data) if isinstance(data, np.ndarray) else data

    def on_host(self, value: Made) -> Any:
        """A value on the host: what depends on the inputs' shapes is there, other values are demanded, or read."""
        if not isinstance(value.data, Tensor):
            return value.data
        if value.sources and value.sources <= self.given:
            raise Demand(value.sources)
        self.read[str(self.at)] += 1
        array = value.data.numpy()
        return array if value.type in ("bfloat16", "") else array.astype(value.type)


def check(where: str, checks: Sequence[tuple[str, int, Tensor]]) -> None:
    """OutOfRangeError for a check that failed: see `Pass.below`."""
    for wrong, limit, largest in checks:
        if float(largest.numpy()) >= limit:
            missing_rows(largest.device)  # said here
            raise OutOfRangeError(f"{where}: {wrong}")


def check_host(shape: Sequence[int], what: str) -> None:
    """An error where an array on the host would be larger than anything that follows from shapes is."""
    if math.prod(shape) > MOST_ON_HOST:
        raise ShapeError(
            f"{what} of shape {tuple(shape)} has {math.prod(shape):,} elements, more than a host array gets here"
        )
