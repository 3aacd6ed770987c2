"""scikit-learn, PyTorch, JAX and tinygrad, written as their users would at their best; each is imported in its own worker.

`train(net, options, after)` trains for ever and calls after(mean loss) at each epoch's end: a new order of samples,
batches gathered by it, every step's loss recorded. `outputs(net)` and `product(p)` give run(count), which also waits for
its results, and result(); convolution(c, form) too. `forms` are the ways to train a perceptron, `layouts` a convolutional
network, whose layers are in layers.py. A wheel leaves this folder out: only a checkout can measure itself against them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import numpy as np

from ..nets import ConvNet, Convolution, read
from ..sequences import Task
from ..workloads import CLASSES, SEED, Calls, Net, Product, one_hot
from . import layers, sequences


class Sklearn:
    """MLPClassifier.partial_fit: one pass over the data a call."""

    package, forms, layouts = "scikit-learn", ("",), ()
    nets, products = False, False

    @staticmethod
    def as_trained(net: Net) -> tuple[Net, str]:
        """The nearest net that it can train, and what differs."""
        if net.loss != "quadratic":
            return net, ""
        lower = net.lr / 10  # this cost is steeper, and a step too long would magnify float32's rounding
        return net._replace(loss="binary_cross_entropy", lr=lower), "cross-entropy instead of the quadratic cost"

    def train(self, net: Net, options: dict[str, Any], after: Callable[[float], None]) -> None:
        from sklearn.neural_network import MLPClassifier

        model = MLPClassifier(
            net.sizes[1:-1], activation="logistic" if net.hidden == "sigmoid" else "relu", solver=net.optimizer,
            alpha=0, batch_size=net.batch, learning_rate_init=net.lr, momentum=0, random_state=SEED, shuffle=False,
        )  # fmt: skip
        x, labels = net.data()
        y = labels if net.loss == "cross_entropy" else one_hot(labels).astype(int)
        model.partial_fit(x[: net.batch], y[: net.batch], classes=np.arange(CLASSES))
        model.coefs_, model.intercepts_ = (list(part) for part in zip(*net.weights()))
        del model._optimizer  # made anew, with the weights given
        for epoch in range(2):  # in the order that all sides share, for the check
            order = net.order(epoch)
            model.partial_fit(x[order], y[order])
            after(model.loss_)
        model.shuffle = True
        while True:
            model.partial_fit(x, y)
            after(model.loss_)


class Torch:
    """Eager, the optimizer fused where that is faster, gathered by index_select, losses read once an epoch."""

    package, forms, layouts = "torch", ("fused", "foreach"), ("contiguous", "channels_last")
    nets = products = True

    def _net(self, net: Net) -> Any:
        from torch import nn

        parts: list[Any] = []
        for w, b in net.weights():
            layer = nn.utils.skip_init(nn.Linear, *w.shape)
            layer.load_state_dict({"weight": _torch(w).T.contiguous(), "bias": _torch(b)})
            parts += [layer, nn.Sigmoid() if net.hidden == "sigmoid" else nn.ReLU()]
        return nn.Sequential(*(parts if net.loss == "quadratic" else parts[:-1]))

    def _images(self, net: ConvNet, form: str) -> tuple[Callable[[Any], Any], Any, list[Any]]:
        """A network as a function, its images, and its parameters, each as the form has it in memory."""
        last = form == "channels_last"
        parameters = [p.requires_grad_() for p in layers.torch_arrays(net.weights(), form)]
        statistics, x = [_torch(a) for a in layers.running(net)], net.data()[0]

        def model(x: Any) -> Any:
            side = layers.TorchLayers(iter(statistics).__next__)
            return read(net.layers, x.permute(0, 3, 1, 2) if last else x, iter(parameters).__next__, side)

        return model, _torch(np.ascontiguousarray(x.transpose(0, 2, 3, 1)) if last else x).clone(), parameters

    def train(self, net: Net | ConvNet, options: dict[str, Any], after: Callable[[float], None]) -> None:
        import torch
        from torch.nn import functional as F

        x, labels = net.data()
        if isinstance(net, ConvNet):
            (model, inputs, parameters), form = self._images(net, options["form"]), "fused"
        else:
            model, inputs, form = self._net(net), _torch(x), options["form"]
            parameters = list(model.parameters())
        target = _torch(one_hot(labels)) if net.loss == "quadratic" else _torch(labels).long()
        groups: list[dict[str, Any]] = [{"params": parameters}]
        if net.decay:
            weights, rest = ([p for p in parameters if (p.ndim > 1) == many] for many in (True, False))
            groups = [{"params": weights, "weight_decay": net.decay}, {"params": rest}]
        more = {"momentum": net.momentum} if net.momentum else {}
        kind = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam}[net.optimizer]
        optimizer = kind(groups, lr=net.lr, **more, **{form: True})
        epoch = 0
        while True:
            losses = []
            for rows in _torch(net.order(epoch)).split(net.batch):
                y, t = model(inputs.index_select(0, rows)), target.index_select(0, rows)
                if net.loss == "quadratic":
                    loss = F.mse_loss(y, t, reduction="sum") * (0.5 / net.batch)
                else:
                    loss = F.cross_entropy(y, t)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                losses.append(loss.detach())
            epoch += 1
            after(float(torch.stack(losses).mean()))

    def outputs(self, net: Net) -> Calls:
        import torch

        model, x = self._net(net), net.data()[0]

        def result() -> np.ndarray:
            with torch.inference_mode():
                return model(_torch(x)).numpy()

        return lambda count: [result() for _ in range(count)], result

    def product(self, p: Product) -> Calls:
        import torch

        a, b = (_torch(part) for part in p.stored())
        a, b, c = (a.T if p.form[0] == "T" else a), (b.T if p.form[1] == "T" else b), torch.empty(p.m, p.n)

        def run(count: int) -> None:
            for _ in range(count):
                torch.mm(a, b, out=c)

        return run, lambda: (c.numpy(),)

    def sequence(self, task: Task) -> Calls:
        return sequences.torch_sequence(task)

    def convolution(self, c: Convolution, form: str) -> Calls:
        go = layers.torch_convolution(c, form)
        return lambda count: [go() for _ in range(count)], lambda: [part.numpy() for part in go()]

    def memory(self, net: ConvNet, form: str) -> int:
        """The most that training's tensors and the temporaries of its operators held at once, data and all."""
        from torch.profiler import profile

        class Enough(Exception):
            pass

        epochs = []

        def after(loss: float) -> None:
            epochs.append(loss)
            if len(epochs) == 2:
                raise Enough

        held = most = 0
        with profile(profile_memory=True) as measured, contextlib.suppress(Enough):
            self.train(net, {"form": form}, after)
        events = [event for event in measured.profiler.kineto_results.events() if event.name() == "[memory]"]
        for event in sorted(events, key=lambda event: event.start_ns()):
            held += event.nbytes()
            most = max(most, held)
        return most


def _torch(array: np.ndarray) -> Any:
    import torch

    return torch.from_numpy(array)


def _forward(weights: Any, x: Any, activation: Callable[[Any], Any]) -> Any:
    """The last layer's output before its own activation, in any library whose arrays know @ and +."""
    *hidden, (w, b) = weights
    for v, c in hidden:
        x = activation(x @ v + c)
    return x @ w + b


class Jax:
    """A jitted step with donated state, gathering inside; `scan` jits the loop over an epoch's steps as well."""

    package, forms, layouts = "jax", ("step", "scan"), ("NCHW", "NHWC")
    nets, products = True, False

    def _forward(self, net: Net, weights: Any, x: Any) -> Any:
        import jax

        return _forward(weights, x, jax.nn.sigmoid if net.hidden == "sigmoid" else jax.nn.relu)

    def train(self, net: Net | ConvNet, options: dict[str, Any], after: Callable[[float], None]) -> None:
        import jax
        from jax import numpy as jnp

        x, labels = (jnp.asarray(part) for part in net.data())
        x = x.transpose(0, 2, 3, 1) if options["form"] == "NHWC" else x
        target = jnp.asarray(one_hot(net.data()[1]))

        def loss_of(weights: Any, besides: Any, rows: Any) -> Any:
            if isinstance(net, ConvNet):
                statistics, key = besides
                side = layers.JaxLayers(options["form"], iter(statistics).__next__, key)
                y = read(net.layers, x[rows], iter(weights).__next__, side)
                besides = (side.after, side.key)
            else:
                y = self._forward(net, weights, x[rows])
            if net.loss == "quadratic":
                return 0.5 * jnp.sum((jax.nn.sigmoid(y) - target[rows]) ** 2) / net.batch, besides
            return -jnp.mean(jax.nn.log_softmax(y)[jnp.arange(net.batch), labels[rows]]), besides

        def step(state: Any, rows: Any) -> Any:
            weights, m, v, t, besides = state
            (loss, besides), gradient = jax.value_and_grad(loss_of, has_aux=True)(weights, besides, rows)
            each, t = jax.tree_util.tree_map, t + 1
            if net.optimizer == "sgd":
                if net.decay:
                    gradient = each(lambda p, g: g + net.decay * p if p.ndim > 1 else g, weights, gradient)
                if net.momentum:
                    gradient = m = each(lambda m, g: net.momentum * m + g, m, gradient)
                return (each(lambda p, g: p - net.lr * g, weights, gradient), m, v, t, besides), loss
            m = each(lambda m, g: 0.9 * m + 0.1 * g, m, gradient)
            v = each(lambda v, g: 0.999 * v + 0.001 * g * g, v, gradient)
            root = jnp.sqrt(1 - 0.999**t)
            rate, epsilon = net.lr * root / (1 - 0.9**t), 1e-8 * root
            weights = each(lambda p, m, v: p - rate * m / (jnp.sqrt(v) + epsilon), weights, m, v)
            return (weights, m, v, t, besides), loss

        besides: Any = ()
        if isinstance(net, ConvNet):
            weights: Any = layers.jax_arrays(net, options["form"])
            besides = [jnp.asarray(a) for a in layers.running(net)], jax.random.key(SEED)
        else:
            weights = jax.tree_util.tree_map(jnp.asarray, net.weights())
        moments = (net.optimizer == "adam" or net.momentum > 0, net.optimizer == "adam")
        zeros = [jax.tree_util.tree_map(jnp.zeros_like, weights) if used else () for used in moments]
        state: Any = (weights, *zeros, jnp.zeros((), jnp.float32), besides)
        scan = options["form"] == "scan"
        go = jax.jit((lambda state, order: jax.lax.scan(step, state, order)) if scan else step, donate_argnums=0)
        epoch = 0
        while True:
            order = net.order(epoch).reshape(net.steps, net.batch)
            losses: Any = []
            if scan:
                state, losses = go(state, order)
            else:
                for rows in order:
                    state, loss = go(state, rows)
                    losses.append(loss)
            epoch += 1
            after(float(np.mean(jax.device_get(losses))))

    def outputs(self, net: Net) -> Calls:
        import jax

        weights, x = jax.tree_util.tree_map(jax.numpy.asarray, net.weights()), net.data()[0]
        go = jax.jit(lambda weights, x: self._forward(net, weights, x))
        return lambda count: [np.asarray(go(weights, x)) for _ in range(count)], lambda: np.asarray(go(weights, x))

    def sequence(self, task: Task) -> Calls:
        return sequences.jax_sequence(task)

    def convolution(self, c: Convolution, form: str) -> Calls:
        import jax

        go, back = layers.jax_convolution(c, form)

        def run(count: int) -> None:
            jax.block_until_ready([go() for _ in range(count)])

        return run, lambda: [back(part) for part in go()]


class Tinygrad:
    """TinyJit on its OpenCL device; data, order and losses on the device, the step's number a bound variable."""

    package, forms, layouts = "tinygrad", ("unpinned", "pinned"), ("unpinned", "pinned")
    nets, products = True, False
    without = ("generate",)  # of sequences.py

    def _forward(self, net: Net, weights: Any, x: Any) -> Any:
        return _forward(weights, x, lambda z: z.sigmoid() if net.hidden == "sigmoid" else z.relu())

    def train(self, net: Net | ConvNet, options: dict[str, Any], after: Callable[[float], None]) -> None:
        from tinygrad import Context, Tensor, TinyJit, Variable, nn

        inputs, labels = net.data()
        x, y = Tensor(inputs).realize(), Tensor(one_hot(labels) if net.loss == "quadratic" else labels).realize()
        if isinstance(net, ConvNet):
            parameters, norms = [Tensor(p).realize() for p in net.weights()], layers.tinygrad_norms(net)
        else:
            weights = [(Tensor(w).realize(), Tensor(b).realize()) for w, b in net.weights()]
            parameters = [p for layer in weights for p in layer]
        optimizer: Any = nn.optim.Adam(parameters, lr=net.lr)
        if net.optimizer == "sgd":
            few, many = (
                [p for p in parameters if (p.ndim > 1 and net.decay > 0) == decays] for decays in (False, True)
            )
            optimizer = nn.optim.SGD(few, net.lr, net.momentum)
            if many:
                optimizer = nn.optim.OptimizerGroup(optimizer, nn.optim.SGD(many, net.lr, net.momentum, net.decay))
        losses = Tensor.zeros(net.steps).contiguous().realize()

        def step(order: Any, at: Any) -> Any:
            rows = order.shrink(((at * net.batch, at * net.batch + net.batch),))
            statistics: list[Any] = []
            if isinstance(net, ConvNet):
                z = read(net.layers, x[rows], iter(parameters).__next__, layers.TinygradLayers(iter(norms).__next__))
                statistics = [part for one in norms for part in (one.running_mean, one.running_var)]
            else:
                z = self._forward(net, weights, x[rows])
            t = y[rows]
            if net.loss == "quadratic":
                loss = ((z.sigmoid() - t) ** 2).sum() * (0.5 / net.batch)
            else:
                loss = z.sparse_categorical_crossentropy(t)
            optimizer.zero_grad()
            loss.backward()
            note = losses.shrink(((at, at + 1),)).assign(loss.reshape(1))
            return Tensor.realize(note, *optimizer.schedule_step(), *statistics)

        go, epoch = TinyJit(step), 0
        with Context(TRAINING=1):
            while True:
                order = Tensor(net.order(epoch)).realize()
                for i in range(net.steps):
                    go(order, Variable("at", 0, net.steps - 1).bind(i))
                epoch += 1
                after(float(losses.numpy().mean()))

    def outputs(self, net: Net) -> Calls:
        from tinygrad import Tensor, TinyJit

        weights, x = [(Tensor(w).realize(), Tensor(b).realize()) for w, b in net.weights()], net.data()[0]
        go = TinyJit(lambda x: self._forward(net, weights, x).realize())

        def result() -> np.ndarray:
            return go(Tensor(x).realize()).numpy()

        return lambda count: [result() for _ in range(count)], result

    def sequence(self, task: Task) -> Calls:
        return sequences.tinygrad_sequence(task)

    def convolution(self, c: Convolution, form: str) -> Calls:
        from tinygrad import Device

        go = layers.tinygrad_convolution(c)

        def run(count: int) -> None:
            for _ in range(count):
                go()
            Device[Device.DEFAULT].synchronize()

        return run, lambda: [part.numpy() for part in go()]


SIDES: dict[str, Any] = {"sklearn": Sklearn(), "torch": Torch(), "jax": Jax(), "tinygrad": Tinygrad()}
