"""`load`: an ONNX file as a `Model`, called with arrays, that is looked at, trained, moved and saved as others are."""

from __future__ import annotations

import contextlib
import importlib
import sys
import weakref
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from .. import notebook
from ..arrays import take
from ..checks import numbers
from ..errors import CheckpointError, ConfigurationError, DataError, ShapeError, warn
from ..foreign import by_names
from ..layers.base import Layer, Symbolic, register
from ..model import Model, total
from ..parameters import consolidate
from ..runtime.devices.choice import use
from ..step import Step
from ..tape import grad_enabled, no_grad
from ..tensor import Parameter, Tensor, elementwise, tensor
from ..train import EVALUATION_BATCH
from . import operators as _all_operators  # noqa: F401 - fills the table
from .fuse import Fuser
from .graph import FLOATS, Graph, Node, Value, from_json, to_json
from .read import TYPES, read
from .registry import TABLE, find
from .run import Constants, Demand, Made, Pass, Plan, check, operators_of, type_of

# The inputs that learn where they are constants of floats: weights and biases
WEIGHTS = {
    "Conv": (1, 2), "ConvTranspose": (1, 2), "Gemm": (0, 1, 2), "MatMul": (0, 1), "BatchNormalization": (1, 2, 3, 4),
    "InstanceNormalization": (1, 2), "GroupNormalization": (1, 2), "LayerNormalization": (1, 2), "RMSNormalization": (1,),
    "PRelu": (1,), "Gather": (0,), "LSTM": (1, 2, 3, 7), "GRU": (1, 2, 3), "RNN": (1, 2, 3), "Einsum": (0, 1),
}  # fmt: skip
# Whose constants along one axis do: biases and factors; of Add tables do, too: position embeddings
VECTORS = ("Add", "Mul")
STATISTICS = {"BatchNormalization": (3, 4)}  # those of WEIGHTS that no optimizer touches
KINDS = (*TYPES.values(),)
MOVES = (
    "Transpose", "Reshape", "Identity", "Squeeze", "Unsqueeze", "Flatten", "Concat", "Cast", "Slice", "Split", "Expand", "Tile",
)  # fmt: skip


class Rule(NamedTuple):
    """Which constants of floats are parameters: of how many elements at least, and whether all along one axis; and whether they
    learn; `table`: along several axes, too, but no masks. Where one goes by several rules, the first counts."""

    least: int
    vector: bool
    learns: bool
    table: bool = False

    def holds(self, array: np.ndarray) -> bool:
        """Whether that is one of them."""
        if array.dtype.name not in FLOATS or array.size < self.least:
            return False
        table = self.table and array.ndim > 1 and not is_mask(array)
        return table or not self.vector or max(array.shape, default=0) == array.size


def made_of(graph: Graph, weights: Collection[str] = ()) -> dict[str, set[str]]:
    """The values that depend on constants alone, and on which; `weights`: those that are parameters by now."""
    made = {name: {name} for name in (*graph.constants, *weights)}
    for node in graph.every_node():
        given = [name for name in node.inputs if name]
        if given and all(name in made for name in given) and not any(node.graphs()):
            made.update(dict.fromkeys(filter(None, node.outputs), set().union(*(made[name] for name in given))))
    return made


def one_column(graph: Graph, node: Node | None, makers: Mapping[str, Node]) -> bool:
    """Whether a node is a product, or a convolution without a bias, with weights for one output."""
    if node is None or node.op not in ("MatMul", "Gemm", "Conv") or (node.op != "MatMul" and len(node.inputs) > 2):
        return False
    name, axis = node.inputs[1], 0 if node.op == "Conv" or node.attributes.get("transB") else -1
    with contextlib.suppress(IndexError):  # of axes that are not there
        by = makers.get(name)
        if by is not None and by.op == "Transpose":
            axis = by.attributes["perm"][axis] if "perm" in by.attributes else -1 - axis
        shape = np.shape(graph.constants.get(name if by is None else by.inputs[0], ()))
        return len(shape) > 1 and shape[axis] == 1
    return False


def is_uniform(array: np.ndarray) -> bool:
    """Whether it holds one number throughout."""
    return bool(array.size and (array == array.flat[0]).all())


def is_mask(array: np.ndarray) -> bool:
    """Whether it holds two numbers, as masks do that are added to scores: 0 and -inf, or 0 and -100."""
    return not is_uniform(array) and bool(((array == array.min()) | (array == array.max())).all())


def is_literal(graph: Graph, name: str) -> bool:
    """Whether a constant is no parameter of the model that was exported: `save` names these by what they hold, and PyTorch has
    nodes for the ones and zeros of a normalisation without weights."""
    array = graph.constants[name]
    ones_or_zeros = name in graph.literals and is_uniform(array) and array.flat[0] in (0, 1)
    return name.startswith("constant_") if graph.written else ones_or_zeros


def learned(graph: Graph) -> dict[str, bool]:
    """The constants of a graph that are parameters, and whether they learn."""
    found: dict[str, bool] = {}
    wanted: dict[str, Rule] = {}  # what parameters become by MOVES
    made, nodes = made_of(graph), [*graph.every_node()]
    makers = {name: node for node in nodes for name in node.outputs}
    for node in reversed(nodes):
        if node.domain:
            continue
        still = STATISTICS.get(node.op, ())
        rules = {at: Rule(1, False, at not in still) for at in WEIGHTS.get(node.op, ())}
        if node.op in VECTORS:
            for at in range(2):  # one number is a bias after a product of one column, and arithmetic elsewhere
                bias = node.op == "Add" and one_column(graph, makers.get(node.inputs[1 - at]), makers)
                rules[at] = Rule(1 if bias else 2, True, True, node.op == "Add")
        if node.op == "Concat" and node.outputs[0] not in made:  # class tokens; lists of numbers have one axis
            rules = {at: Rule(2, True, True, True) for at in range(len(node.inputs))}
            rules = {at: rule for at, rule in rules.items() if np.ndim(graph.constants.get(node.inputs[at], [[]])) > 1}
        of = [wanted[name] for name in node.outputs if name in wanted] if node.op in MOVES else []
        if of:
            rule = min(of) if node.outputs[0] in made else max(min(of), Rule(2, False, True))
            rules = dict.fromkeys(range(len(node.inputs) if node.op == "Concat" else 1), rule)
        for at, rule in rules.items():
            name = node.inputs[at] if at < len(node.inputs) else ""
            array = graph.constants.get(name)
            if array is not None and rule.holds(array):
                found[name] = found.get(name, True) and rule.learns
            elif name and array is None and (node.op != "Mul" or name in made):
                wanted[name] = min(rule, wanted.get(name, rule))
    if graph.written:
        found = {n: True for n, array in graph.constants.items() if array.dtype.name in FLOATS} | found
    found = {name: learns for name, learns in found.items() if not is_literal(graph, name)}
    for node in nodes:  # not those whose values shapes and the like are made of
        one = find(node.domain, node.op, graph.opsets.get(node.domain, 0))
        for at, name in enumerate(node.inputs):
            if one is not None and at in one.host:
                found.pop(name, None)
    return {name: found[name] and name not in graph.statistics for name in graph.constants if name in found}


def apart(graph: Graph) -> None:
    """Constants of one number throughout that Identity nodes give other names get them for their own. PyTorch stores initial
    biases and running means once, since they are 0 all: not because they are tied."""
    outputs = {value.name for value in graph.outputs}
    reads = Counter(name for node in graph.every_node() for name in node.inputs)
    for node in [*graph.nodes]:
        array = graph.constants.get(node.inputs[0]) if (node.op, node.domain) == ("Identity", "") else None
        if array is None or array.dtype.name not in FLOATS or node.outputs[0] in outputs:
            continue
        if reads[node.inputs[0]] > 1 and is_uniform(array):
            graph.constants[node.outputs[0]] = array
            graph.nodes.remove(node)


def left_out(graph: Graph, weights: Collection[str]) -> list[str]:
    """The constants of which other nodes than MOVES make weights, biases and what is added to or joined with activations, so
    that these do not learn; `weights` do."""
    made, found = made_of(graph, weights), set()
    for node in graph.every_node():
        table = node.op in ("Add", "Concat") and node.outputs[0] not in made
        for at in (range(len(node.inputs)) if table else WEIGHTS.get(node.op, ())) if not node.domain else ():
            name = node.inputs[at] if at < len(node.inputs) else ""
            if name in made and name not in graph.constants and at not in STATISTICS.get(node.op, ()):
                rule = Rule(2 if table else min(2, len(made[name])), table, True, table)  # one number is arithmetic
                constants = {one: graph.constants[one] for one in made[name] - {*weights}}
                found |= {one for one, array in constants.items() if rule.holds(array) and not is_uniform(array)}
    return sorted(found)


class OnHost:
    """An array that is part of a recording's key."""

    def __init__(self, array: np.ndarray) -> None:
        self.array = array
        self.key = (array.shape, array.dtype.str, tuple(array.ravel()) if array.dtype == object else array.tobytes())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, OnHost) and other.key == self.key

    def __hash__(self) -> int:
        return hash(self.key)


def as_given(value: Value, array: Any, label: str) -> np.ndarray:
    """What was given for an input as an array of its type. DataError where that is another kind of thing."""
    array = np.asarray(array)
    array = array.astype(np.float32) if array.dtype.name == "bfloat16" else array
    if value.type == "string" or array.dtype.kind in "OSU":
        if (value.type == "string") != (array.dtype.kind in "OSU"):
            raise DataError(f"{label} is an array of {value.type or 'numbers'}, and {array.dtype} was given")
        return array.astype(object)
    array = numbers(array, label)
    kind = array.dtype if not value.type else np.dtype(np.float32 if value.type == "bfloat16" else value.type)
    fits = {"f": "fiub", "i": "iu", "u": "iu", "b": "b"}[kind.kind]
    if array.dtype.kind not in fits:
        raise DataError(f"{label} is an array of {value.type}, and {array.dtype} was given: convert it with .astype")
    if kind.kind in "iu" and array.size:
        low, high = np.iinfo(kind).min, np.iinfo(kind).max
        if int(array.min()) < low or int(array.max()) > high:
            raise DataError(f"{label} is an array of {value.type}, and {array.min()} to {array.max()} were given")
    return array.astype(kind, copy=False)


def check_shapes(given: Mapping[str, Any], values: Sequence[Value], what: str) -> None:
    """ShapeError where arrays do not have the shapes that the file says; sizes of one name are equal."""
    sizes: dict[str, tuple[int, str]] = {}
    for value in values:
        if value.shape is None or value.name not in given:
            continue
        shape = tuple(
            np.shape(given[value.name]) if isinstance(given[value.name], (list,)) else given[value.name].shape
        )
        wrong = len(shape) != len(value.shape)
        for size, wanted in zip(shape, value.shape) if not wrong else ():
            if isinstance(wanted, str):
                known = sizes.setdefault(wanted, (size, value.name))
                if known[0] != size:
                    raise ShapeError(
                        f"{what} {value.name!r} has the shape {shape}, in which {wanted!r} is {size}, and {known[1]!r} has "
                        f"{known[0]} there"
                    )
            wrong = wrong or (isinstance(wanted, int) and wanted != size)
        if wrong:
            raise ShapeError(f"{what} {value} has the shape {shape}")


class Session:
    """A model's graph as it answers arrays: constants folded, recorded by shapes, replayed."""

    def __init__(self, model: OnnxModel, arrays: Mapping[str, np.ndarray]) -> None:
        self.model, self.device = weakref.ref(model), model.device
        constants = Constants(self.device)
        self.plan = Plan(
            model.graph,
            self.device,
            {**model.graph.constants, **arrays},
            model.where,
            constants,
            tensors=model.shared(arrays),
            fuse=lambda plan: Fuser(plan).run(),
        )
        self.versions = model.versions()
        self.hosts: set[str] = set()  # inputs whose values are part of the key
        self.reads: Counter[str] = Counter()  # nodes that read values back
        self.step = Step(self._run)
        self.step.lends = True  # `call` reads them, while its caller holds the device's lock

    def call(self, given: dict[str, np.ndarray]) -> dict[str, Any]:
        """The outputs for arrays, as arrays."""
        values = self.plan.graph.inputs
        for value in values:
            array = given[value.name]
            if array.dtype == object or (array.dtype.kind in "iu" and not fits_int32(array)):
                self.hosts.add(value.name)
        while True:
            args = [OnHost(given[v.name]) if v.name in self.hosts else self._as_argument(given[v.name]) for v in values]
            if not any(isinstance(one, (np.ndarray, Tensor)) for one in args):
                args.append(tensor(0, np.int32, self.device))
            try:
                with use(self.device), no_grad():
                    found, checks = self.step(*args)
                break
            except Demand as demand:
                self.hosts |= demand.sources
        if self.reads:
            self.step.replays.record = False
        check(self.plan.where, checks)
        return {v.name: present(found[v.name], v.type) for v in self.plan.graph.outputs}

    def _as_argument(self, array: np.ndarray) -> Any:
        if array.dtype == np.float64:  # an array would become float32
            return tensor(array, np.float64, self.device)
        kind = np.float32 if array.dtype.kind in "fb" else np.int32
        return array.astype(kind, copy=False)

    def _run(self, *args: Any) -> tuple[dict[str, Any], list[Any]]:
        inputs = {}
        for value, one in zip(self.plan.graph.inputs, args):
            data = one.array if isinstance(one, OnHost) else one
            inputs[value.name] = Made(data, value.type or type_of(data), frozenset((value.name,)))
        whole = frozenset(v.name for v in self.plan.graph.inputs if v.type not in FLOATS)
        one = Pass(self.plan, whole)
        self.device._now.unchanging = self.plan.constants.packs
        try:
            found = one.run(inputs)
        finally:
            self.device._now.unchanging = {}
        self.reads.update(one.read)
        return {name: keep(made) for name, made in found.items()}, one.checks


def fits_int32(array: np.ndarray) -> bool:
    """Whether whole numbers fit into 32 bits."""
    return array.itemsize < 4 or not array.size or -(2**31) <= int(array.min()) <= int(array.max()) < 2**31


def keep(made: Made) -> Any:
    """An output as a step may return it, with its type."""
    data = made.data
    if isinstance(data, np.ndarray):
        return OnHost(data)
    if isinstance(data, list):
        return [keep(Made(one, type_of(one))) if not isinstance(one, Made) else keep(one) for one in data]
    return (data, made.type) if isinstance(data, Tensor) else data


def present(found: Any, kind: str) -> Any:
    """An output as an array of its type."""
    if isinstance(found, OnHost):
        return found.array if kind in ("", "string", "sequence", "optional") else as_type(found.array, kind)
    if isinstance(found, list):
        return [present(one, "") for one in found]
    if not isinstance(found, tuple):
        return found
    kind = kind if kind not in ("", "sequence", "optional") else found[1]
    return as_type(found[0].numpy(), kind)


def as_type(array: np.ndarray, kind: str) -> np.ndarray:
    """The array as a type by its name; NumPy has bfloat16 from the library ml_dtypes, which comes with onnx."""
    if kind == "bfloat16":
        try:
            return array.astype(importlib.import_module("ml_dtypes").bfloat16)
        except ImportError:
            return array
    return array.astype(kind, copy=False)


@register
class OnnxModel(Model):
    """A model from an ONNX file, as `clnn.onnx.load` makes it.

    net(array, ...), or by the inputs' names net(x=array), returns arrays: the output, or of several a dict by their names. Given
    tensors it returns tensors, with a gradient, so that it can be a layer of another model. `inputs` and `outputs` say names,
    types and shapes, `graph` holds the nodes. Weights and biases are parameters, named as in the file: `fit`, `save`, `to` and
    `trainable` do what they do elsewhere; running statistics of batch normalisations stay as they are in training. So are
    position embeddings and class tokens, constants that are added to activations or joined with them. What of these was fixed,
    such as a table of sines, is frozen by its name: `net.weights["pe"].trainable = False`.
    """

    unwatched = Model.unwatched | {"_session", "_training", "_told", "_fixed"}
    _session: Session | None = None
    _training: Plan | None = None
    _told = False  # which constants do not learn
    _fixed = False  # whether fewer samples than `batch()` were an error

    def __init__(self, graph: Any, weights: dict[str, Any]) -> None:
        """`weights`: {name: [type, shape, whether it learns]} for the constants that are parameters."""
        self.graph: Any = graph if isinstance(graph, Graph) else from_json(graph)
        self.where = self.graph.name or "the model"
        kinds = {kind for kind, _, _ in weights.values()} or {v.type for v in self.graph.inputs if v.type in FLOATS}
        self.dtype: Any = np.dtype(np.float64 if kinds == {"float64"} else np.float32)
        self.weights: dict[str, Parameter] = {}
        for name, (kind, shape, learns) in weights.items():
            dtype = np.dtype(np.float64 if kind == "float64" else np.float32)
            self.device.real(dtype)
            nbytes = int(np.prod(shape)) * dtype.itemsize
            p = Parameter(self.device.memory.allocate(nbytes), tuple(shape), dtype, self.device, name, bool(learns))
            p.decays = len(shape) > 1
            self.weights[name] = p
        self._kinds = {name: kind for name, (kind, _, _) in weights.items()}
        self._input_shapes: Any = []  # it needs no first pass to be built
        self.built = True

    @property
    def inputs(self) -> list[Value]:
        """The inputs: name, type and shape."""
        return self.graph.inputs

    @property
    def outputs(self) -> list[Value]:
        """The outputs: name, type and shape."""
        return self.graph.outputs

    def config(self) -> dict[str, Any]:
        told = {n: [self._kinds[n], list(p.shape), p.learns] for n, p in self.weights.items()}
        return {"graph": to_json(self.graph), "weights": told}

    def named_parameters(self, prefix: str = "") -> Any:
        for name, p in Layer.named_parameters(self, prefix):
            yield (name if prefix else name.removeprefix("weights.")), p

    def input_names(self) -> dict[str, bool] | None:
        return dict.fromkeys((value.name for value in self.inputs), True)

    def takes_whole(self, i: int) -> bool:
        return i < len(self.inputs) and self.inputs[i].type not in (*FLOATS, "")

    def check_whole(self, i: int, array: np.ndarray, name: str) -> None:
        Layer.check_whole(self, i, array, name)

    def __getstate__(self) -> dict[str, Any]:
        return {name: v for name, v in super().__getstate__().items() if name not in self.unwatched - Model.unwatched}

    def to(self, device: Any) -> Model:
        super().to(device)
        self._session = self._training = None
        return self

    # -- running ------------------------------------------------------------------------------------------------------
    def __call__(self, *given: Any, **named: Any) -> Any:
        if not given and not named and self.inputs and self.device.dry_now:
            return None  # clnn.load looks whether it can be built
        inputs = self._by_name(given, named)
        if any(isinstance(x, (Tensor, Symbolic)) for x in inputs.values()):
            return super().__call__(*inputs.values())
        arrays = {v.name: as_given(v, inputs[v.name], f"input {v.name!r}") for v in self.inputs}
        check_shapes(arrays, self.inputs, "input")
        with self.device.lock:
            found = self.session().call(arrays)
        check_shapes(
            found, self.outputs, "by the file, which another exporter or onnx.shape_inference may mend, output"
        )
        return found if len(found) > 1 else next(iter(found.values()))

    def _by_name(self, given: Sequence[Any], named: Mapping[str, Any]) -> dict[str, Any]:
        names = [value.name for value in self.inputs]
        if len(given) == 1 and isinstance(given[0], Mapping) and not named:
            named, given = given[0], ()
        found = {**dict(zip(names, given)), **named}
        unknown = [name for name in named if name not in names or name in names[: len(given)]]
        missing = [name for name in names if name not in found]
        if unknown or missing or len(given) > len(names):
            raise ConfigurationError(
                f"{self.where} takes {'; '.join(map(str, self.inputs)) or 'no inputs'}. {len(given)} were given by position; "
                f"missing is {', '.join(missing) or 'none'}, unknown or twice is {', '.join(unknown) or 'none'}"
            )
        return {name: found[name] for name in names}

    def versions(self) -> int:
        """A number that changes with the parameters' values."""
        return sum(p.version for p in self.weights.values())

    def shared(self, arrays: Mapping[str, np.ndarray]) -> dict[str, tuple[np.ndarray, Tensor]]:
        """The parameters' memory as tensors, beside their values."""
        return {
            name: (array, Tensor((p := self.weights[name]).block, p.shape, p.dtype, p.device))
            for name, array in arrays.items()
        }

    def session(self) -> Session:
        """The session of the parameters as they are."""
        if self._session is None or self._session.versions != self.versions():
            self._session = None
            self._session = Session(self, {name: p.numpy() for name, p in self.weights.items()})
        return self._session

    def batch(self) -> int:
        """The number of samples that the file was exported for; 0 where it takes any, or does not say."""
        sizes = {value.shape[0] if value.shape else None for value in self.inputs}
        return size if len(sizes) == 1 and isinstance(size := sizes.pop(), int) else 0

    @by_names
    def predict(self, x: Any, *, batch_size: int = EVALUATION_BATCH) -> Any:
        """The outputs for any number of samples, as `Model.predict` gives them; in batches of the file's size, if it has one."""
        return super().predict(x, batch_size=size if (size := self.batch()) > 1 else batch_size)

    def compiled(self, batch_size: int = 1, weights: str = "float32") -> Any:
        """ConfigurationError: the shapes of inputs are known where it is called."""
        raise ConfigurationError(
            f"compiled() is for models of clnn's layers: call {self.where} with arrays, net(x), which replays what was recorded "
            "for inputs of these shapes"
        )

    def evaluate(self, x: Any, y: Any = None, **options: Any) -> dict[str, float]:
        """The loss and metrics, as `Model.evaluate` gives them; in batches of the file's size, if it has one."""
        return super().evaluate(x, y, **(options | ({"batch_size": self.batch()} if self.batch() > 1 else {})))

    def forward(self, *inputs: Tensor) -> Any:
        if grad_enabled() and not self._told:
            self._told = True
            if names := left_out(self.graph, self.weights):
                warn(
                    f"{self.where}: weights that nodes make of {', '.join(names)} do not learn: export it with constants folded",
                )
        size, counts = self.batch(), {len(x) if x.ndim else 0 for x in inputs}
        count = counts.pop() if len(counts) == 1 else 0
        if self._fixed and 0 < count < size:
            return self._filled_up(inputs, count, size)
        try:
            found = self._forward(*inputs)
            several = found if isinstance(found, dict) else {self.outputs[0].name: found}
            for value in (
                self.outputs if size > 1 and count else ()
            ):  # of another size where samples were mixed on the way
                if value.shape and value.shape[0] == size and len(several[value.name]) != count:
                    raise ShapeError(f"output {value} has the shape {several[value.name].shape}")
            return found
        except (ShapeError, ConfigurationError, CheckpointError) as error:
            if not size or count == size:
                raise
            if 0 < count < size:
                self._fixed = True
                return self._filled_up(inputs, count, size)
            raise ShapeError(
                f"{self.where} was exported for batches of {size}, and {count or 'other'} samples were given: give "
                f"batch_size={size}, or export it with a batch of any size ({error})"
            ) from error

    def _filled_up(self, inputs: Sequence[Tensor], count: int, size: int) -> Any:
        """The outputs for fewer samples than a batch has, such as the one that shapes are learnt from: some are given twice."""

        def rows(y: Any) -> Any:
            if not isinstance(y, Tensor) or not y.ndim or len(y) % size:
                return y
            first = y[: len(y) // size * count]
            first.made_by = y.made_by if y.ndim > 1 else ""
            return first

        found = self._forward(*(take(x, np.arange(size) % count) for x in inputs))
        return {name: rows(y) for name, y in found.items()} if isinstance(found, dict) else rows(found)

    def _forward(self, *inputs: Tensor) -> Any:
        if self._training is None:
            consts = {**self.graph.constants, **self.weights}
            self._training = Plan(self.graph, self.device, consts, self.where, Constants(self.device))
        given = {}
        for value, x in zip(self.inputs, inputs):
            if value.type == "bool" and x.dtype == np.int32:
                x = elementwise("not_equal", x, 0)
            given[value.name] = Made(x, value.type or type_of(x))
        one = Pass(self._training, frozenset(), note=self.__dict__.get("_note"))
        found = {name: one.on_device(made.data) for name, made in one.run(given).items()}
        if self.device.reads:  # in a recorded step it cannot be seen
            check(self.where, one.checks)
        return found if len(found) > 1 else next(iter(found.values()))

    @contextlib.contextmanager
    def note_nodes(self, note: Callable[[str, str, list[Any], list[Any]], None]) -> Iterator[None]:
        """Within it `note` is told of each node that runs on tensors: its name, its operator, its inputs and outputs."""

        def told(node: Any, given: list[Any], found: list[Any]) -> None:
            note(node.name or next(filter(None, node.outputs), node.op), node.op, given, found)

        self.__dict__["_note"] = told  # no attribute that recordings would have to look at
        try:
            yield
        finally:
            del self.__dict__["_note"]

    def summary(self) -> str:
        """Inputs, outputs, operators with their numbers, parameters, and how the model runs, as text."""
        ops = Counter(node.op for node in self.graph.every_node())
        rows = [
            f"{self.where}, operator set {', '.join(f'{k or chr(97) + chr(105)} {v}' for k, v in self.graph.opsets.items())}"
        ]
        rows += [f"input   {value}" for value in self.inputs] + [f"output  {value}" for value in self.outputs]
        rows.append(f"{sum(ops.values())} nodes: " + ", ".join(f"{name} {n}" for name, n in ops.most_common()))
        session = self.session()
        left = len(session.plan.nodes)
        rows.append(
            f"{left} of them run, {len(self.graph.nodes) - left} depend on constants alone and were computed once"
        )
        if session.hosts:
            rows.append(f"recorded anew for each value of {', '.join(sorted(session.hosts))}, which shapes are made of")
        if session.reads:
            rows.append(f"runs without a recording: {', '.join(session.reads)} needs values in the middle")
        return "\n".join([*rows, total(self)])

    def _repr_html_(self) -> str:
        return notebook.text(type(self).__name__, self.summary())

    def __repr__(self) -> str:
        return f"<OnnxModel {self.where} from {', '.join(v.name for v in self.inputs)}>"


@by_names
def load(path: Any) -> OnnxModel:
    """The model in an ONNX file, given by its path or as its bytes, on the device in use.

    It is called with arrays, by position or by name, and returns an array, or of several outputs a dict by their names; it is
    also a `Model`: `fit`, `predict`, `save`, `to` and `summary()` are there. The first call with inputs of new shapes runs as the
    graph says, the next ones are recorded and replayed. See `OnnxModel`.

    ConfigurationError without the library onnx; CheckpointError for a file that is missing, damaged, of an unknown operator set,
    or that uses operators which are not supported: all of them are named, with their nodes, before anything runs.

    >>> import onnx.parser  # doctest: +SKIP
    >>> clnn.onnx.load("model.onnx")(np.zeros((1, 3, 224, 224), np.float32)).shape  # doctest: +SKIP
    (1, 1000)
    """
    graph, where = read(path)
    operators_of(graph, graph.opsets, where)
    lists = [str(value) for value in graph.inputs if value.type not in (*KINDS, "")]
    if lists:
        raise CheckpointError(f"{where}: inputs that are no arrays are not supported: {', '.join(lists)}")
    apart(graph)
    learns = learned(graph)
    arrays = {name: graph.constants.pop(name) for name in learns}
    model = OnnxModel(graph, {name: [a.dtype.name, a.shape, learns[name]] for name, a in arrays.items()})
    model.where = where
    arrays = {name: a.astype(model.weights[name].dtype, copy=False) for name, a in arrays.items()}
    for name, array in arrays.items():
        model.device.upload(np.ascontiguousarray(array), model.weights[name].block)
    if model.weights:
        consolidate(list(model.weights.values()))
    model._session = Session(model, arrays)
    return model


@by_names
def operators() -> dict[str, list[int]]:
    """The operators that are supported, {name: the operator sets since which each has the form that is known here}; those of
    other domains than ai.onnx have it in front of their name."""
    found = {
        f"{domain}.{name}" if domain else name: [one.since for one in entries]
        for (domain, name), entries in TABLE.items()
    }
    return dict(sorted(found.items()))


vars(sys.modules[__package__])["operators"] = operators  # the folder of that name took its place when it was imported
