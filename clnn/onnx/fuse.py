"""For inference: nodes that one launch can do become one. Normalisation and factors go into the weights before them; bias,
activations and residual additions into epilogues; and activations that are written out as arithmetic are found by their values.
"""

from __future__ import annotations

import functools
import math
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np

from ..ops.activation import ACTIVATIONS
from ..ops.elementwise import binary
from ..ops.norm import channel_affine, fold, layer_norm
from ..tensor import Tensor, _wrap, constant, elementwise, function, linear_layer
from .graph import Node
from .operators.elementwise import both
from .operators.image import convolved, windows
from .registry import Context, Operator
from .run import Made, Plan

# Where a function is compared: around 0, beside the kinks of others, and far out, where pieces of them differ
POINTS = np.concatenate(
    [np.linspace(-13.05, 12.95, 131), 10.0 ** np.arange(1.2, 3.3, 0.3), -(10.0 ** np.arange(1.2, 3.3, 0.3))]
)
_erf = np.vectorize(math.erf)


def _sigmoid(x: Any) -> Any:
    return 1 / (1 + np.exp(-x))


def _softplus(x: Any) -> Any:
    return np.logaddexp(0, x)


# What a chain of arithmetic may turn out to be: those of kernels/activation.cl that files write out
KNOWN: dict[str, Callable[[Any], Any]] = {
    "swish": lambda x: x * _sigmoid(x),
    "hard_swish": lambda x: x * np.clip(x / 6 + 0.5, 0, 1),
    "gelu": lambda x: 0.5 * x * (1 + _erf(x / math.sqrt(2))),
    "gelu_tanh": lambda x: 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
    "mish": lambda x: x * np.tanh(_softplus(x)),
    "hard_sigmoid": lambda x: np.clip(x / 6 + 0.5, 0, 1),
    "softsign": lambda x: x / (1 + np.abs(x)),
    "sigmoid": _sigmoid,
    "softplus": _softplus,
}
# Arithmetic that chains consist of, in float64
STEPS: dict[str, Callable[..., Any]] = {
    "Add": np.add, "Sub": np.subtract, "Mul": np.multiply, "Div": np.divide, "Pow": np.power, "Sqrt": np.sqrt, "Erf": _erf,
    "Tanh": np.tanh, "Sigmoid": _sigmoid, "Exp": np.exp, "Log": np.log, "Neg": np.negative, "Abs": np.abs, "Softplus": _softplus,
    "Reciprocal": np.reciprocal, "Max": np.maximum, "Min": np.minimum, "Relu": lambda x: np.maximum(x, 0),
    "Clip": lambda x, low=-np.inf, high=np.inf: np.minimum(np.maximum(x, low), high),
    "HardSigmoid": lambda x, alpha=0.2, beta=0.5: np.clip(alpha * x + beta, 0, 1),
}  # fmt: skip
DIRECT = {"Relu": "relu", "Sigmoid": "sigmoid", "Tanh": "tanh", "Softplus": "softplus", "Softsign": "softsign", "Mish": "mish",
          "HardSwish": "hard_swish", "Selu": "selu"}  # fmt: skip


# -- what runs the nodes that are made here ---------------------------------------------------------------------------
def _conv(
    c: Context, x: Any, w: Any, b: Any = None, factor: Any = None, *, activation: str, how: dict[str, Any]
) -> Any:
    x, w, b, factor = (None if t is None else c.tensor(t) for t in (x, w, b, factor))
    keys = (how.get("strides"), how.get("pads"), how.get("dilations"), how.get("auto_pad", "NOTSET"))
    window, groups = windows(x, w.shape[2:], *keys), how.get("group", 1)
    if (
        x.ndim == 4 and x.shape[3] == w.shape[3] == window.out[1] == 1
    ):  # of one axis, along which it is then done in vectors
        first: dict[str, Any] = {k: v[:1] for k, v in window._asdict().items() if isinstance(v, tuple)}
        narrow = window._replace(**first)
        y = convolved(x.reshape(x.shape[:3]), w.reshape(w.shape[:3]), b, narrow, groups, activation, factor=factor)
        return y.reshape((*y.shape, 1))
    return convolved(x, w, b, window, groups, activation, factor=factor)


def _linear(c: Context, x: Any, w: Any, b: Any = None, *, activation: str, flat: bool = False, least: int = 0) -> Any:
    """`flat`: a Gemm, of two axes; `least`: axes that the result has at least, since something of so many was added to it."""
    y = linear_layer(c.tensor(x), c.tensor(w), None if b is None else c.tensor(b), activation)
    return y if y.ndim >= least else y.reshape((*[1] * (least - y.ndim), *y.shape))


def _unary(c: Context, x: Any, *, activation: str, least: int = 0) -> Any:
    y = function(c.tensor(x), activation)
    return y if y.ndim >= least else y.reshape(1)


def _add(c: Context, a: Any, b: Any, *, activation: str) -> Any:
    a, b = both(c, a, b)
    if isinstance(a, Tensor) and isinstance(b, Tensor) and a.shape == b.shape:
        return _wrap(binary("add", a, b, activation)[0])
    return function(elementwise("add", a, b), activation)


def _layer_norm(c: Context, x: Any, gamma: Any, beta: Any, *, epsilon: float) -> Any:
    x, gamma, beta = map(c.tensor, (x, gamma, beta))
    if x.shape[-1:] == gamma.shape:
        return _wrap(layer_norm(x, gamma, beta, epsilon=epsilon, keep=False)[0])
    one, zero = (c.tensor(np.full(x.shape[-1:], v, x.dtype)) for v in (1, 0))  # what is spread over another size
    y = _wrap(layer_norm(x, one, zero, epsilon=epsilon, keep=False)[0])
    return elementwise("add", elementwise("multiply", y, gamma), beta)


def _affine(c: Context, x: Any, a: Any, b: Any, *, activation: str) -> Any:
    x, a, b = map(c.tensor, (x, a, b))
    return _wrap(channel_affine(x, a, b, activation, keep=False)[0])


MADE = {
    f.__name__[1:]: Operator(f, 1, None, (), None, True, None)
    for f in (_conv, _linear, _unary, _add, _layer_norm, _affine)
}
SAME_RANK = ("BatchNormalization", "Relu", "LeakyRelu", "Sigmoid", "MaxPool", "AveragePool", "GlobalAveragePool", "Concat", "LRN",
             "Dropout", "Identity", "affine", "unary")  # fmt: skip


class Fuser:
    """Rewrites the nodes of a plan; what nothing reads any more is left out at the end."""

    def __init__(self, plan: Plan) -> None:
        self.plan, self.nodes, self.values = plan, list(plan.nodes), plan.values
        self.outputs = {value.name for value in plan.graph.outputs}
        self.by = {name: node for node in self.nodes for name in node.outputs if name}
        self.count()

    def count(self) -> None:
        """Note how often each name is read."""
        self.uses = Counter(name for node in self.nodes for name in node.reads())
        for node in self.nodes:
            self.uses.update(name for name in node.inputs if node.inputs.count(name) > 1)
        self.uses.update(self.outputs)

    def array(self, name: str) -> np.ndarray | None:
        """The constant of floats that a name stands for."""
        made = self.values.get(name)
        fits = made is not None and isinstance(made.data, np.ndarray) and made.type in ("float32", "float64")
        return made.data if fits else None  # type: ignore[union-attr]

    def number(self, name: str) -> float | None:
        """The one number that a name stands for."""
        array = self.array(name)
        return float(array.reshape(-1)[0]) if array is not None and array.size == 1 and array.ndim <= 1 else None

    def new(self, name: str, array: np.ndarray, like: np.ndarray) -> str:
        """The name of a new constant."""
        while name in self.values or name in self.by:
            name += "'"
        array = np.ascontiguousarray(array, like.dtype)
        self.values[name] = Made(array, array.dtype.name)
        self.plan.constants.hold(array)
        return name

    def put(self, node: Node, kind: str, inputs: list[str], **attributes: Any) -> None:
        """Have a node do something else: one of MADE."""
        made = Node(kind, "clnn", node.name, inputs, node.outputs[:1], attributes)
        self.nodes[self.nodes.index(node)] = made
        self.by[node.outputs[0]] = made
        self.plan.found[id(made)] = MADE[kind]

    def before(self, name: str, *kinds: str) -> Node | None:
        """The node that gives a name, if it is of these kinds and nothing else reads what it gives."""
        node = self.by.get(name)
        fits = node is not None and node.op in kinds and self.uses[name] == 1 and not any(node.outputs[1:])
        return node if fits else None

    def run(self) -> None:
        """All rewriting, and what is left."""
        for rule in (
            self.known_chain,
            self.layer_norm,
            self.as_linear,
            self.into_weights,
            self.as_affine,
            self.into_affine,
            self.epilogue,
        ):
            for node in list(self.nodes):
                rule(node)
            self.prune()
        self.plan.nodes = self.nodes

    def prune(self) -> None:
        """Leave out what nothing reads."""
        wanted, kept = set(self.outputs), []
        for node in reversed(self.nodes):
            if wanted & {*node.outputs}:
                kept.append(node)
                wanted |= node.reads()
        self.nodes = kept[::-1]
        self.by = {name: node for node in self.nodes for name in node.outputs if name}
        self.count()

    # -- activations that are written out -----------------------------------------------------------------------------
    @functools.cached_property
    def chains(self) -> dict[str, dict[str, np.ndarray]]:
        """By a name: what it is as a function of each of a few names before it, at POINTS."""
        found: dict[str, dict[str, np.ndarray]] = {}
        self.wide: set[str] = set()  # what has one axis at least, since a number in the chain has
        for node in self.nodes:
            if node.op not in STEPS or node.domain:
                continue
            numbers = [self.number(name) for name in node.inputs]
            tensors = [name for name, number in zip(node.inputs, numbers) if number is None and name]
            options = [{name: POINTS, **found.get(name, {})} for name in tensors]
            if not options or any(name in self.values for name in tensors):
                continue
            made = {}
            for root in set(options[0]).intersection(*options[1:]):
                each = iter(options)
                bounds = {"Clip": (-np.inf, np.inf)}.get(node.op, ())
                args = [
                    next(each)[root] if number is None and name else bounds[i - 1] if number is None else number
                    for i, (name, number) in enumerate(zip(node.inputs, numbers))
                ]
                attributes = {{"min": "low", "max": "high"}.get(k, k): v for k, v in node.attributes.items()}
                try:
                    with np.errstate(all="ignore"):
                        made[root] = STEPS[node.op](*args, **attributes)
                except TypeError:  # attributes of other operator sets
                    break
            if len(made) <= 16:
                found[node.outputs[0]] = made
                if any(
                    name in self.wide or name in self.values and self.values[name].data.ndim for name in node.inputs
                ):
                    self.wide.add(node.outputs[0])
        return found

    def known_chain(self, node: Node) -> None:
        """A chain of arithmetic on one tensor that is an activation."""
        for root, values in self.chains.get(node.outputs[0], {}).items():
            if self.by.get(root) is not None and node.inputs == [root]:
                continue  # one node only
            for name, (known, most) in _known_values().items():
                if np.all(np.abs(values - known) <= most):
                    if node.op in DIRECT and DIRECT[node.op] == name:
                        continue
                    self.put(node, "unary", [root], activation=name, least=int(node.outputs[0] in self.wide))
                    return

    # -- layer normalisation that is written out ----------------------------------------------------------------------
    def layer_norm(self, node: Node) -> None:
        """(x - mean) / sqrt(mean((x - mean)^2) + epsilon) gamma + beta over the last axis."""
        if node.op != "Add" or node.domain or len(node.inputs) != 2:
            return
        scaled, beta = self.split(node)
        times = self.before(scaled, "Mul") if beta else None
        if times is None:
            return
        ratio, gamma = self.split(times)
        over = self.before(ratio, "Div") if gamma else None
        root = self.before(over.inputs[1], "Sqrt") if over is not None else None
        plus = self.before(root.inputs[0], "Add") if root is not None else None
        variance, epsilon = (plus.inputs[0], self.number(plus.inputs[1])) if plus is not None else ("", None)
        of_squares = self.before(variance, "ReduceMean") if epsilon is not None else None
        squares = self.before(of_squares.inputs[0], "Pow", "Mul") if of_squares is not None else None
        if over is None or squares is None or of_squares is None:
            return
        left = over.inputs[0]
        squared = self.number(squares.inputs[1]) == 2 if squares.op == "Pow" else squares.inputs == [left, left]
        minus = self.by.get(left)
        mean = self.by.get(minus.inputs[1]) if minus is not None and minus.op == "Sub" else None
        if not squared or squares.inputs[0] != left or minus is None or mean is None or mean.op != "ReduceMean":
            return
        vectors = [self.array(gamma), self.array(beta)]
        last = [self.axes(one) == [-1] and one.attributes.get("keepdims", 1) for one in (mean, of_squares)]
        same = mean.inputs[0] == minus.inputs[0]
        if (
            all(last)
            and same
            and all(v is not None and v.ndim == 1 for v in vectors)
            and len({v.shape for v in vectors if v is not None}) == 1
        ):
            self.put(node, "layer_norm", [minus.inputs[0], gamma, beta], epsilon=epsilon)

    def split(self, node: Node) -> tuple[str, str]:
        """The input that is no constant, and the one that is; "" for none."""
        a, b = node.inputs
        if self.array(b) is not None:
            return a, b
        return (b, a) if self.array(a) is not None else (a, "")

    def axes(self, node: Node) -> list[int]:
        """The axes of a reduction."""
        given = node.attributes.get("axes")
        if given is None and len(node.inputs) > 1 and node.inputs[1] in self.values:
            given = [int(v) for v in np.ravel(self.values[node.inputs[1]].data)]
        return given or []

    # -- products -----------------------------------------------------------------------------------------------------
    def as_linear(self, node: Node) -> None:
        """MatMul with constant weights, Gemm, Conv: as nodes that have a bias and an activation."""
        if node.domain:
            return
        if node.op == "Conv":
            w = self.array(node.inputs[1])
            b = self.array(node.inputs[2]) if node.inputs[2:] and node.inputs[2] else None
            if w is None or w.ndim < 3 or (any(node.inputs[2:]) and (b is None or b.shape != w.shape[:1])):
                return  # a bias that is computed stays one
            self.put(node, "conv", node.inputs, activation="linear", how=node.attributes)
        elif node.op == "MatMul":
            w = self.array(node.inputs[1])
            if w is not None and w.ndim == 2:
                self.put(node, "linear", node.inputs, activation="linear")
        elif node.op == "Gemm":
            w, how = self.array(node.inputs[1]), node.attributes
            b = self.array(node.inputs[2]) if len(node.inputs) > 2 and node.inputs[2] else None
            plain = how.get("alpha", 1.0) == how.get("beta", 1.0) == 1 and not how.get("transA", 0)
            if w is None or w.ndim != 2 or not plain or (len(node.inputs) > 2 and node.inputs[2] and b is None):
                return
            n = w.shape[0] if how.get("transB", 0) else w.shape[1]
            if b is not None and (b.size != n or b.shape[-1:] != (n,)):
                return
            inputs = [node.inputs[0], self.new(node.inputs[1], w.T, w) if how.get("transB", 0) else node.inputs[1]]
            if b is not None:
                inputs.append(node.inputs[2] if b.ndim == 1 else self.new(node.inputs[2], b.reshape(n), b))
            self.put(node, "linear", inputs, activation="linear", flat=True)

    def into_weights(self, node: Node) -> None:
        """BatchNormalization, and factors and additions by channel, behind a convolution or a product."""
        if node.domain or node.op not in ("BatchNormalization", "Add", "Mul"):
            return
        batch_norm = node.op == "BatchNormalization"
        if batch_norm:
            given, constants = node.inputs[0], [self.array(name) for name in node.inputs[1:]]
        elif len(node.inputs) == 2:
            given, operand = self.split(node)
            constants = [self.array(operand)]
        before = self.before(given, "conv", "linear")
        if before is None or any(v is None for v in constants) or before.attributes["activation"] != "linear":
            return
        factor: Any
        more: Any
        w = self.array(before.inputs[1])
        assert w is not None
        n = w.shape[0] if before.op == "conv" else w.shape[1]
        wide = (n, *[1] * (w.ndim - 2)) if before.op == "conv" else (n,)
        if batch_norm:
            if before.op == "linear" and not before.attributes.get(
                "flat"
            ):  # it may have more axes, and channels are the second
                return
            folded = self.folded(node)
            if folded is None or folded[0].shape != (n,):
                return
            factor, more = folded
        else:
            (v,) = constants
            assert v is not None
            if v.size not in (1, n) or (v.size == n and v.shape[-len(wide) :] != wide) or v.ndim > len(wide) + 1:
                return
            rank, v = v.ndim, np.broadcast_to(v.reshape(-1), (n,))
            factor, more = (None, v) if node.op == "Add" else (v, None)
        self.scale(before, factor, more)
        least = {} if batch_norm or before.op == "conv" else {"least": max(rank, before.attributes.get("least", 0))}
        self.put(node, before.op, before.inputs, **{**before.attributes, **least})

    def folded(self, node: Node) -> list[np.ndarray] | None:
        """A BatchNormalization as a factor and an addition by channel, as the operator itself makes them, to the same bits."""
        constants, how = [self.array(name) for name in node.inputs[1:]], node.attributes
        if how.get("training_mode", 0) or not how.get("spatial", 1) or any(node.outputs[1:]) or len(constants) != 4:
            return None
        if any(v is None or v.ndim != 1 or v.shape != constants[0].shape for v in constants):  # type: ignore[union-attr]
            return None
        gamma, beta, mean, variance = (constant(v, v.dtype, self.plan.device) for v in constants)  # type: ignore[union-attr]
        found = fold(gamma, beta, mean, variance, how.get("epsilon", 1e-5))
        return [Tensor(t.block, t.shape, t.dtype, t.device).numpy() for t in found]

    def as_affine(self, node: Node) -> None:
        """BatchNormalization that stands by itself."""
        folded = self.folded(node) if node.op == "BatchNormalization" and not node.domain else None
        if folded is not None:
            like = self.array(node.inputs[1])
            assert like is not None
            names = [self.new(f"{node.outputs[0]}.{what}", v, like) for what, v in zip(("factor", "more"), folded)]
            self.put(node, "affine", [node.inputs[0], *names], activation="linear")

    def into_affine(self, node: Node) -> None:
        """Factors and additions by channel, behind such a one."""
        if node.domain or node.op not in ("Add", "Mul") or len(node.inputs) != 2:
            return
        given, operand = self.split(node)
        v, before = self.array(operand), self.before(given, "affine")
        rank = self.rank(given)
        if before is None or v is None or not rank or before.attributes["activation"] != "linear":
            return
        a, b = (self.array(name) for name in before.inputs[1:])
        assert a is not None and b is not None
        wide = (a.size, *[1] * (rank - 2))
        if v.ndim > rank or (v.size > 1 and v.shape not in (wide, (1, *wide))):
            return
        by = np.broadcast_to(v.reshape(-1), a.shape)
        new = (a, b + by) if node.op == "Add" else (a * by, b * by)
        names = [self.new(name, array, a) for name, array in zip(before.inputs[1:], new)]
        self.put(node, "affine", [before.inputs[0], *names], activation="linear")

    def rank(self, name: str) -> int:
        """How many axes a name has, where that is known; 0 where it is not."""
        for _ in self.nodes:
            node = self.by.get(name)
            if node is None:
                shapes = [value.shape for value in self.plan.graph.inputs if value.name == name]
                return len(shapes[0]) if shapes and shapes[0] else 0
            if node.op in ("conv", "Conv"):
                w = self.array(node.inputs[1])
                return 0 if w is None else w.ndim
            if node.op not in SAME_RANK:
                return 0
            name = node.inputs[0]
        return 0

    def scale(self, node: Node, factor: np.ndarray | None, more: np.ndarray | None) -> None:
        """Have a convolution or product give its results times a factor plus more, by channel."""
        names = [*node.inputs, "", ""][:4]
        w, b, before = (self.array(name) if name else None for name in names[1:])
        assert w is not None
        if factor is not None:
            b = None if b is None else b * factor
            if node.op == "conv":  # whose epilogue has one: the weights stay those that learn
                names[3] = self.new(f"{names[1]}.factor", factor if before is None else before * factor, w)
            else:
                names[1] = self.new(names[1], w * factor, w)
        if more is not None:
            b = more if b is None else b + more
        names[2] = "" if b is None else self.new(f"{names[1]}.bias", b, w)
        node.inputs = names if node.op == "conv" else names[:3]

    def epilogue(self, node: Node) -> None:
        """An activation behind a convolution, a product or an addition."""
        name = (
            node.attributes["activation"] if node.op == "unary" else DIRECT.get(node.op, "") if not node.domain else ""
        )
        steep = 1.0
        if node.op == "HardSigmoid" and not node.domain:
            name, steep = "hard_sigmoid", 6 * node.attributes.get("alpha", 0.2)
        before = self.before(node.inputs[0], "conv", "linear", "affine", "Add") if name else None
        if before is None or (node.op == "Selu" and node.attributes) or len(node.inputs) != 1:
            return
        if before.op == "Add":
            if not before.domain and len(before.inputs) == 2 and ACTIVATIONS[name].saves == "y" and steep == 1:
                self.put(node, "add", before.inputs, activation=name)
            return
        if before.attributes["activation"] != "linear" or (
            before.op == "conv" and self.array(before.inputs[1]) is None
        ):
            return
        if node.op == "HardSigmoid" and before.op == "affine":
            return
        if node.op == "HardSigmoid":  # clip(a x + b, 0, 1) is hard_sigmoid(6 a x + 6 b - 3)
            n = self.array(before.inputs[1]).shape[0 if before.op == "conv" else 1]  # type: ignore[union-attr]
            offset = 6 * node.attributes.get("beta", 0.5) - 3
            self.scale(before, np.full(n, steep), np.full(n, offset) if abs(offset) > 1e-6 else None)
        self.put(node, before.op, before.inputs, **{**before.attributes, "activation": name})


@functools.cache
def _known_values() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """KNOWN at POINTS, and by how much a chain may differ there: little of what is small as well, since a chain that keeps away
    from 0, as Clip(Sigmoid(x), 1e-7) does in front of Log, is none of them."""
    found = {}
    with np.errstate(all="ignore"):
        for name, f in KNOWN.items():
            values = f(POINTS)
            size = np.abs(values)
            found[name] = values, np.minimum(2e-6 * np.maximum(1.0, size), 1e-3 * size + 1e-14)
    return found
