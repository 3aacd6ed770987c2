"""Graphs: models of several inputs and outputs, branches, joins and shared layers, by Model(inputs, outputs) and by forward()."""

import copy
import threading
import warnings

import numpy as np
import pytest

import clnn
from clnn.train.record import Results

OPTIMIZER = {"sgd": lambda: clnn.SGD(0.05), "momentum": lambda: clnn.SGD(0.05, 0.9), "adam": lambda: clnn.Adam(0.01)}
LOSSES = {"price": "mse", "kind": "cross_entropy"}
WEIGHTS = {"price": 0.5, "kind": 2.0}


def by_symbols(dtype="float32", kind=dict):
    """Two inputs through a shared layer, a join, two outputs."""
    left, right = clnn.Input(6, dtype, name="left"), clnn.Input(4, dtype, name="right")
    shared = clnn.Dense(5, "tanh")
    a, b = shared(left), shared(clnn.Dense(6, "tanh")(right))
    joined = clnn.Concatenate()(a, b, a * b)
    price, sort = clnn.Dense(1)(joined), clnn.Dense(3)(clnn.Dropout(0.0)(joined))
    return clnn.Model((left, right), {"price": price, "kind": sort} if kind is dict else (price, sort))


@clnn.register
class ByForward(clnn.Model):
    """The same as a class of one's own; its layers are in the order in which the graph calls them."""

    def __init__(self, kind="dict"):
        self.kind = kind
        self.shared, self.right = clnn.Dense(5, "tanh"), clnn.Dense(6, "tanh")
        self.price, self.sort = clnn.Dense(1), clnn.Dense(3)

    def forward(self, left, right):
        a, b = self.shared(left), self.shared(self.right(right))
        joined = clnn.concatenate([a, b, a * b], axis=1)
        price, sort = self.price(joined), self.sort(joined)
        return {"price": price, "kind": sort} if self.kind == "dict" else (price, sort)

    def config(self):
        return {"kind": self.kind}


def data(rng, n=53, dtype=np.float32):
    left, right = rng.standard_normal((n, 6)).astype(dtype), rng.standard_normal((n, 4)).astype(dtype)
    price = (left[:, :1] - right[:, :1]).astype(dtype)
    sort = (left[:, 1] > 0).astype(np.int64) + (right[:, 1] > 0)
    return {"left": left, "right": right}, {"price": price, "kind": sort}


def fit(net, x, y, **options):
    options = {
        "loss": LOSSES,
        "optimizer": clnn.Adam(0.01),
        "epochs": 3,
        "batch_size": 10,
        "seed": 3,
        "progress": False,
    } | options
    return net.fit(x, y, **options)


def without_seconds(history):
    return {name: values for name, values in history.history.items() if name != "seconds"}


def weights_of(net):
    return [p.numpy() for p in net.parameters()]


class Reference:
    """The model, its losses and its gradients in float64 NumPy."""

    def __init__(self, net):
        named = {p.shape: p.numpy().astype(np.float64) for p in net.parameters() if p.ndim == 2}
        biases = [p.numpy().astype(np.float64) for p in net.parameters() if p.ndim == 1]
        by_size = {b.shape[0]: b for b in biases}
        self.p = {"s": named[6, 5], "r": named[4, 6], "p": named[15, 1], "k": named[15, 3]}
        self.p |= {"bs": by_size[5], "br": by_size[6], "bp": by_size[1], "bk": by_size[3]}

    def losses(self, x, y, weights=(1.0, 1.0), samples=None):
        """The price's and the kind's loss, and the gradients of their weighted sum."""
        p, n = self.p, len(x["left"])
        w = np.ones(n) if samples is None else samples
        left, right = x["left"].astype(np.float64), x["right"].astype(np.float64)
        h = np.tanh(right @ p["r"] + p["br"])
        a, b = np.tanh(left @ p["s"] + p["bs"]), np.tanh(h @ p["s"] + p["bs"])
        joined = np.concatenate([a, b, a * b], axis=1)
        price, z = joined @ p["p"] + p["bp"], joined @ p["k"] + p["bk"]
        e = np.exp(z - z.max(1, keepdims=True))
        soft = e / e.sum(1, keepdims=True)
        truth = np.eye(3)[y["kind"]]
        losses = (w * (price - y["price"])[:, 0] ** 2).mean(), -(w * np.log((soft * truth).sum(1))).mean()
        dprice = weights[0] * 2 * w[:, None] * (price - y["price"]) / n
        dz = weights[1] * w[:, None] * (soft - truth) / n
        dj = dprice @ p["p"].T + dz @ p["k"].T
        da, db = dj[:, :5] + dj[:, 10:] * b, dj[:, 5:10] + dj[:, 10:] * a
        ua, ub = da * (1 - a**2), db * (1 - b**2)
        uh = (ub @ p["s"].T) * (1 - h**2)
        g = {"p": joined.T @ dprice, "bp": dprice.sum(0), "k": joined.T @ dz, "bk": dz.sum(0)}
        g |= {"s": left.T @ ua + h.T @ ub, "bs": (ua + ub).sum(0), "r": right.T @ uh, "br": uh.sum(0)}
        return losses, g

    def sgd(self, x, y, rate, batch, **options):
        """An epoch of plain SGD in the given order: the means of the losses over it."""
        seen = []
        for start in range(0, len(x["left"]), batch):
            part = slice(start, start + batch)
            more = {"samples": options["samples"][part]} if "samples" in options else {}
            losses, g = self.losses(
                *({k: v[part] for k, v in each.items()} for each in (x, y)), options["weights"], **more
            )
            seen.append((len(x["left"][part]), *losses))
            for name, gradient in g.items():
                self.p[name] = self.p[name] - rate * gradient
        rows, *found = np.array(seen).T
        return [float(rows @ one / rows.sum()) for one in found]


@pytest.mark.parametrize("make", [by_symbols, ByForward])
@pytest.mark.parametrize("record", [True, False])
def test_an_epoch_is_that_of_float64_numpy(device, dtype, rng, make, record):
    x, y = data(rng, dtype=dtype)
    samples = rng.random(53).astype(dtype)
    net = make()
    if dtype == np.float64:
        net = by_symbols("float64") if make is by_symbols else net
        net.place(device, dtype) if make is ByForward else None
    net.predict(x)  # it is built
    reference = Reference(net)
    history = fit(
        net,
        x,
        y,
        loss_weights=WEIGHTS,
        optimizer=clnn.SGD(0.1),
        epochs=1,
        shuffle=False,
        record=record,
        sample_weight=samples,
    )
    price, kind = reference.sgd(x, y, 0.1, 10, weights=(0.5, 2.0), samples=samples)
    tolerance = 1e-12 if dtype == np.float64 else 2e-5
    assert history["price_loss"] == pytest.approx([price], rel=tolerance)
    assert history["kind_loss"] == pytest.approx([kind], rel=tolerance)
    assert history["loss"] == pytest.approx([0.5 * price + 2 * kind], rel=tolerance)
    after = Reference(net).p
    for name, value in reference.p.items():
        np.testing.assert_allclose(after[name], value, rtol=tolerance, atol=tolerance, err_msg=name)
    found = net.evaluate(x, y, batch_size=16)
    (price, kind), _ = reference.losses(x, y)
    assert found["price_loss"] == pytest.approx(price, rel=20 * tolerance)
    assert found["loss"] == pytest.approx(0.5 * price + 2 * kind, rel=20 * tolerance)


@pytest.mark.parametrize("optimizer", OPTIMIZER)
@pytest.mark.parametrize("make", [by_symbols, ByForward])
def test_recorded_is_eager_to_the_bit_and_is_recorded(device, rng, optimizer, make):
    x, y = data(rng)
    net = make()
    net.predict(x)
    other = copy.deepcopy(net)
    options = {"loss_weights": WEIGHTS, "validation": (x, y), "metrics": {"kind": ["top_2"]}}
    calls = []
    forward = other.forward
    one = without_seconds(fit(net, x, y, optimizer=OPTIMIZER[optimizer](), record=False, **options))
    if make is ByForward:  # its Python runs at the first calls, and when it is audited
        other.forward = lambda left, right: (calls.append(1), forward(left, right))[1]
    two = without_seconds(fit(other, x, y, optimizer=OPTIMIZER[optimizer](), **options))
    assert one == two
    assert len(calls) < 40
    assert all(np.array_equal(a, b) for a, b in zip(weights_of(net), weights_of(other)))
    names = ["loss", "price_loss", "kind_loss", "kind_accuracy", "kind_top_2"]
    assert [*two] == [*names, *(f"val_{name}" for name in names), "lr"]


def test_data_that_do_not_fit_are_streamed_to_the_same_bits(device, rng, monkeypatch):
    x, y = data(rng)
    net = by_symbols()
    other = copy.deepcopy(net)
    options = {"sample_weight": {"kind": rng.random(53)}}
    one = without_seconds(fit(net, x, y, **options))
    monkeypatch.setattr("clnn.train.loop._capacity", lambda *_: (False, 20))
    assert without_seconds(fit(other, x, y, **options)) == one


def test_inputs_are_shuffled_alike(device, rng):
    """Each sample's two inputs are equal, so their difference stays 0 in any order that they share."""
    a, b = clnn.Input(3), clnn.Input(3)
    net = clnn.Model((a, b), (clnn.Dense(1, bias=False)(a - b), clnn.Dense(1)(a)))
    x, y = rng.standard_normal((31, 3)).astype(np.float32), np.zeros((31, 1), np.float32)
    history = net.fit((x, x), (y, y + x[:, :1]), loss="mse", optimizer="adam", epochs=3, batch_size=7)
    assert history["output_1_loss"] == [0.0] * 3 and history["output_2_loss"][-1] > 0


@pytest.mark.parametrize("form", ["dict", "tuple"])
def test_the_forms_of_inputs_and_outputs(device, rng, form):
    x, y = data(rng)
    net = ByForward(form)
    if form == "tuple":
        x, y = tuple(x.values()), tuple(y.values())
    loss, names = (LOSSES, [*LOSSES]) if form == "dict" else ((*LOSSES.values(),), ["output_1", "output_2"])
    history = fit(net, x, y, loss=loss, validation_split=0.2)
    assert {f"{one}{name}_loss" for name in names for one in ("", "val_")} <= {*history.history}
    found = net.predict(x, batch_size=16)
    assert type(found) is type(y)
    price, kind = found.values() if form == "dict" else found
    assert price.shape == (53, 1) and kind.shape == (53, 3)
    one = net.predict(
        tuple(a[:1] for a in x) if form == "tuple" else [a[:1] for a in x.values()]
    )  # a list is like a tuple here
    np.testing.assert_allclose((one[0] if form == "tuple" else one["price"])[0], price[0], rtol=1e-5)
    none = net.predict(tuple(a[:0] for a in (x if form == "tuple" else x.values())))
    assert [a.shape for a in (none if form == "tuple" else none.values())] == [(0, 1), (0, 3)]
    one_loss = net.evaluate(x, y, loss=loss)
    more = net.evaluate(x, y, loss=loss, loss_weights=dict(zip(names, (3.0, 0.0))))
    assert more["loss"] == pytest.approx(3 * one_loss[f"{names[0]}_loss"], rel=1e-6)
    assert net.evaluate(x, y, loss=loss, loss_weights=dict(zip(names, (3.0, 0.0)))) == more
    with pytest.raises(clnn.ConfigurationError, match="of one output, and this model has several"):
        net.predict_classes(x)


def test_losses_of_ones_own_beside_clnns(device, rng):
    """The sum of any losses with weights is what one loss of one's own over both would be."""

    def mine(y, t):
        return clnn.tanh(((y - t) ** 2).mean())  # whose last node has an activation

    x, y = data(rng)
    y["kind"] = np.eye(3, dtype=np.float32)[y["kind"]]
    net = by_symbols()
    other = copy.deepcopy(net)
    options = {"optimizer": clnn.SGD(0.05), "loss_weights": {"price": 1.0, "kind": 0.25}}
    fit(net, x, y, loss={"price": mine, "kind": "mse"}, **options)
    optimizer = clnn.SGD(0.05)

    @clnn.step
    def step(left, right, price, kind):
        found = other(left, right)
        loss = mine(found["price"], price) + 0.25 * clnn.losses.mse(found["kind"], kind)
        loss.backward()
        optimizer.step(other.parameters())

    for epoch in range(3):
        order = np.random.default_rng((3, epoch)).permutation(53)
        for start in range(0, 53, 10):
            rows = order[start : start + 10]
            step(x["left"][rows], x["right"][rows], y["price"][rows], y["kind"][rows])
    for a, b in zip(weights_of(net), weights_of(other)):
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-6)


def test_joint_losses_are_called_with_an_item_for_each_output(device, rng):
    """As tuples, lists or dicts; what has fewer or more is refused, where the losses of the first ones would come back."""
    y, t = ([rng.standard_normal((6, 2)).astype(np.float32) for _ in range(2)] for _ in range(2))
    w = rng.random(6).astype(np.float32)
    mse, mae = clnn.losses.mse, clnn.losses.mae
    loss = clnn.losses.Joint({"a": mse, "b": mae}, [1.0, 0.5])
    named = lambda pair: dict(zip("ba", pair[::-1]))  # noqa: E731
    plain = float(mse(y[0], t[0])) + 0.5 * float(mae(y[1], t[1]))
    weighted = [float(one(a, b, w)) for one, a, b in zip((mse, mae), y, t)]
    for outputs, targets in ((y, t), (named(y), tuple(t)), (tuple(y), named(t))):
        for given, value in (
            (None, plain),
            (w, weighted[0] + 0.5 * weighted[1]),
            ([w, None], weighted[0] + plain - float(mse(y[0], t[0]))),
            ({"a": w}, weighted[0] + plain - float(mse(y[0], t[0]))),
            ({}, plain),
        ):
            np.testing.assert_allclose(float(loss(outputs, targets, given)), value, rtol=1e-6)
    wrong = [(y, t[:1]), (y[:1], t), ([*y, y[0]], t), (y[0], t), (y, np.stack(t)), (named(y), {"a": t[0], "c": t[1]})]
    for outputs, targets in wrong:
        with pytest.raises(clnn.ConfigurationError, match="the losses are of a, b, and a"):
            loss(outputs, targets)
    for given in ([w], {"c": w}, [1.0] * 6):
        with pytest.raises(clnn.ConfigurationError, match="sample_weight: the losses are of a, b"):
            loss(y, t, given)


def test_an_evaluation_has_the_weights_that_it_is_given(device, rng):
    """Also where those of an earlier one, which is kept, have been changed since."""
    x, y = data(rng)
    net = by_symbols()
    fit(net, x, y, epochs=1, loss_weights={"price": 1.0, "kind": 1.0})
    first = net.evaluate(x, y)
    net.loss.weights[0] = 5.0
    both = first["price_loss"] + first["kind_loss"]
    for given, weight in ((net.loss, 5.0), (LOSSES, 1.0), (None, 5.0), (LOSSES, 1.0)):
        found = net.evaluate(x, y, loss=given)["loss"]
        np.testing.assert_allclose(found, both + (weight - 1) * first["price_loss"], rtol=1e-6)


@pytest.mark.parametrize("record", [True, False])
def test_a_callback_changes_the_weights_of_losses(device, rng, record):
    """In place or by another list: both are those of the steps that follow."""
    x, y = data(rng)

    class Annealed(clnn.Callback):
        def __init__(self, change):
            self.on_epoch_begin = lambda net, epoch: change(net.loss, float(epoch))

    def replaced(loss, weight):
        loss.weights = [1.0, weight]

    start, found = by_symbols(), []
    for change in (lambda loss, weight: loss.weights.__setitem__(1, weight), replaced):
        net = copy.deepcopy(start)
        history = fit(net, x, y, callbacks=[Annealed(change)], optimizer=clnn.SGD(0.1), record=record)
        one, two = (np.array(history[f"{name}_loss"]) for name in ("price", "kind"))
        np.testing.assert_allclose(history["loss"], one + np.arange(3) * two, rtol=1e-6)
        found.append(np.concatenate([p.ravel() for p in weights_of(net)]))
    assert np.array_equal(*found)


def test_what_an_output_ignores_does_not_count(device, rng):
    x, y = data(rng)
    net = by_symbols()
    net.predict(x)
    loss = {"price": "mse", "kind": clnn.losses.CrossEntropy(ignore_index=2)}
    history = fit(net, x, y, loss=loss, optimizer=clnn.SGD(0.0), epochs=1)
    found = net.evaluate(x, y, batch_size=7)
    kept = y["kind"] != 2
    z = net.predict(x)["kind"][kept].astype(np.float64)
    want = (np.log(np.exp(z).sum(1)) - z[np.arange(len(z)), y["kind"][kept]]).mean()
    right = (z.argmax(1) == y["kind"][kept]).mean()
    for one in (found["kind_loss"], history["kind_loss"][0]):
        assert one == pytest.approx(want, rel=1e-5)
    assert found["kind_accuracy"] == pytest.approx(right) == history["kind_accuracy"][0]


def test_a_file_gives_the_graph_back_and_training_goes_on(device, rng, tmp_path):
    x, y = data(rng)
    for net in (by_symbols(), by_symbols(kind=tuple), ByForward()):
        options = (
            {"loss_weights": [0.5, 2.0]}
            if net.graph and isinstance(net.graph.outputs, list)
            else {"loss_weights": WEIGHTS}
        )
        several = isinstance(net.predict(x), tuple)
        t = tuple(y.values()) if several else y
        fit(net, x, t, loss=(*LOSSES.values(),) if several else LOSSES, **options)
        net.save(tmp_path / "net")
        again = clnn.load(tmp_path / "net")
        assert again.evaluate(x, t) == net.evaluate(x, t)
        first, second = (fit(one, x, t, loss=one.loss, optimizer=one.optimizer) for one in (net, again))
        assert without_seconds(first) == without_seconds(second)
        assert all(np.array_equal(a, b) for a, b in zip(weights_of(net), weights_of(again)))
        if net.graph:
            assert again.summary() == net.summary() and again.graph.config()["calls"] == net.graph.config()["calls"]


@pytest.mark.parametrize(
    "damage",
    [
        {"calls": [[0, [[5, 0]]]]},
        {"calls": [[9, [[0, 0]]]]},
        {"outputs": [[99, 0]]},
        {"outputs": []},
        {"calls": [["x", 0]]},
    ],
    ids=lambda damage: f"{[*damage][0]}{[*damage.values()][0]}".replace(" ", ""),
)
def test_a_damaged_graph_in_a_file_is_refused(device, tmp_path, damage):
    from clnn import checkpoint

    a = clnn.Input(3)
    clnn.Model(a, clnn.Dense(2)(a)).save(tmp_path / "net")
    arrays, header = checkpoint.read(tmp_path / "net")
    header["model"]["config"]["graph"]["config"] |= damage
    checkpoint.write(tmp_path / "bad", arrays, header)
    with pytest.raises(clnn.CheckpointError):
        clnn.load(tmp_path / "bad")


def test_a_shared_layer_has_one_set_of_weights_and_the_sum_of_both_gradients(device, rng):
    a, b = clnn.Input(3), clnn.Input(3)
    layer = clnn.Dense(2, bias=False)
    net = clnn.Model((a, b), clnn.Add()(layer(a), layer(b)))
    x, z = rng.standard_normal((2, 5, 3)).astype(np.float32)
    (net(x, z) ** 2).sum().backward()
    (w,) = net.parameters()
    y = (x + z) @ w.numpy()
    np.testing.assert_allclose(w.grad.numpy(), x.T @ (2 * y) + z.T @ (2 * y), rtol=1e-4, atol=1e-5)
    assert "(again)" in net.summary() and "6 parameters" in net.summary()


def test_layers_with_several_outputs_and_tokens_in_a_graph(device, rng, tmp_path):
    tokens, number = clnn.Input(7, "int32"), clnn.Input(2)
    y, h, c = clnn.LSTM(4, return_sequences=True, return_state=True)(clnn.Embedding(11, 3)(tokens))
    net = clnn.Model((tokens, number), (clnn.Dense(11)(y), clnn.Dense(1)(clnn.Concatenate()([h, c, number]))))
    x = rng.integers(0, 11, (23, 7)), rng.standard_normal((23, 2)).astype(np.float32)
    t = x[0], x[1][:, 0]
    history = net.fit(
        x, t, loss=("cross_entropy", "mse"), optimizer=clnn.Adam(0.05), epochs=40, batch_size=8, progress=False
    )
    assert history["output_1_loss"][-1] < 0.7 * history["output_1_loss"][0]
    assert history["output_1_accuracy"][-1] > history["output_1_accuracy"][0]
    net.save(tmp_path / "net")
    assert all(np.array_equal(a, b) for a, b in zip(clnn.load(tmp_path / "net").predict(x), net.predict(x)))
    with pytest.raises(clnn.DataError, match="is 11, and embedding_1 has 11 tokens"):
        net.fit((x[0] + 1, x[1]), t, loss=("cross_entropy", "mse"), optimizer="adam")


def test_what_is_changed_between_calls_is_seen(device, rng):
    """Frozen, loaded, replaced, moved: each fit and predict does what the model now says, recorded or not."""
    x, y = data(rng)
    nets = [by_symbols(), None]
    nets[1] = copy.deepcopy(nets[0])
    first = weights_of(nets[0])
    state = nets[0].state_dict()
    for net, record in zip(nets, (True, False)):
        optimizer = clnn.SGD(0.05, 0.9)
        run = lambda: fit(net, x, y, optimizer=optimizer, record=record, loss_weights=WEIGHTS, validation=(x, y))  # noqa: B023, E731
        run()
        net.layers[0].trainable = False
        frozen = net.layers[0].w.numpy()
        run()
        assert np.array_equal(net.layers[0].w.numpy(), frozen)
        net.trainable = True
        net.load_state_dict(state)
        assert all(np.array_equal(a, b) for a, b in zip(weights_of(net), first))
        run()
        net.layers[-1] = copy.deepcopy(net.layers[-1])  # the same weights in another layer
        net.predict(x)
        net.layers[-2].rate = 0.5 if hasattr(net.layers[-2], "rate") else None
        run()
        net.to(device)
        run()
    assert all(np.array_equal(a, b) for a, b in zip(weights_of(nets[0]), weights_of(nets[1])))
    assert not np.array_equal(weights_of(nets[0])[0], first[0])
    for a, b in zip(nets[0].predict(x).values(), nets[1].predict(x).values()):
        assert np.array_equal(a, b)


def test_two_models_share_an_encoder_and_threads_train_at_once(device, rng):
    x, y = data(rng)
    a = clnn.Input(6)
    encoder = clnn.Sequential([clnn.Dense(5, "tanh"), clnn.Dense(5, "tanh")])
    code = encoder(a)
    net, decoder = clnn.Model(a, (clnn.Dense(1)(code), clnn.Dense(3)(code))), clnn.Model(a, clnn.Dense(6)(code))
    before = decoder.predict(x["left"])
    targets = tuple(y.values())
    fit(net, x["left"], targets, loss=("mse", "cross_entropy"))
    assert not np.allclose(decoder.predict(x["left"]), before)
    assert decoder.parameters()[0] is net.parameters()[0]
    alone, together = by_symbols(), []
    copies = [copy.deepcopy(alone) for _ in range(2)]
    history = without_seconds(fit(alone, x, y))

    def train(one):
        with clnn.use(device):
            together.append(without_seconds(fit(one, x, y)))

    threads = [threading.Thread(target=train, args=(one,)) for one in copies]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert together == [history] * 2


JOINS = {
    "Add": (clnn.Add, lambda a, b, c: a + b + c),
    "Multiply": (clnn.Multiply, lambda a, b, c: a * b * c),
    "Maximum": (clnn.Maximum, lambda a, b, c: np.maximum(np.maximum(a, b), c)),
    "Average": (clnn.Average, lambda a, b, c: (a + b + c) / 3),
    "Concatenate(1)": (lambda: clnn.Concatenate(1), lambda *abc: np.concatenate(abc, 1)),
    "Concatenate": (clnn.Concatenate, lambda *abc: np.concatenate(abc, -1)),
}


@pytest.mark.parametrize("join", JOINS)
def test_joins_are_numpys(device, rng, join):
    make, of = JOINS[join]
    layer = make()
    arrays = [rng.standard_normal((4, 3, 5)).astype(np.float32) for _ in range(3)]
    tensors = [clnn.tensor(a, requires_grad=True) for a in arrays]
    y = layer(*tensors)
    np.testing.assert_allclose(y.numpy(), of(*arrays), rtol=1e-6, atol=1e-6)
    seed = rng.standard_normal(y.shape).astype(np.float32)
    y.backward(seed)
    for i, (t, a) in enumerate(zip(tensors, arrays)):
        d, e = rng.standard_normal(a.shape), 1e-7  # at ties within it Maximum has no derivative
        high, low = ([*arrays[:i], a.astype(np.float64) + s * e * d, *arrays[i + 1 :]] for s in (1, -1))
        assert ((of(*high) - of(*low)) * seed).sum() / (2 * e) == pytest.approx(
            (t.grad.numpy() * d).sum(), rel=1e-3, abs=1e-3
        )
    assert np.array_equal(layer(tensors).numpy(), y.numpy())  # one list, as in Keras


def test_deep_diamonds_concat_branch_split_and_sum(device, rng):
    x = rng.standard_normal((9, 6)).astype(np.float32)
    a = clnn.Input(6)
    dense = [clnn.Dense(n, "relu") for n in (3, 3)]
    parts = clnn.Split((2, 4))(a)
    net = clnn.Model(
        a,
        {
            "concat": clnn.Concatenate()(dense[0](parts[0]), dense[1](parts[1])),
            "branch": clnn.Concatenate()(*(clnn.Dense(2)(part) for part in clnn.Split(3)(a))),
            "sum": clnn.Add()(*(clnn.Dense(4)(a) for _ in range(3))),
        },
    )
    found = net.predict(x)
    left, right = (np.maximum(part @ one.w.numpy(), 0) for part, one in zip(np.split(x, [2], axis=1), dense))
    np.testing.assert_allclose(found["concat"], np.concatenate([left, right], 1), rtol=1e-5, atol=1e-6)
    others = [layer.w.numpy() for layer in net.layers if isinstance(layer, clnn.Dense) and layer not in dense]
    thirds, sums = ([w for w in others if w.shape == shape] for shape in ((2, 2), (6, 4)))
    np.testing.assert_allclose(
        found["branch"], np.concatenate([p @ w for p, w in zip(np.split(x, 3, 1), thirds)], 1), rtol=1e-5, atol=1e-6
    )
    np.testing.assert_allclose(found["sum"], sum(x @ w for w in sums), rtol=1e-4, atol=1e-5)
    assert [*map(len, (thirds, sums))] == [3, 3]


WRONG = {
    "x misses": (lambda x, y: {"x": {"left": x["left"]}}, "missing is right"),
    "x is unknown": (lambda x, y: {"x": {**x, "middle": x["left"]}}, "unknown is middle"),
    "one x": (lambda x, y: {"x": x["left"]}, "takes 2 inputs \\(left, right\\), and 1 were given"),
    "three xs": (lambda x, y: {"x": (*x.values(), x["left"])}, "and 3 were given"),
    "lengths": (lambda x, y: {"x": {**x, "right": x["right"][:9]}}, "x\\['left'\\] has 53, x\\['right'\\] has 9"),
    "y misses": (lambda x, y: {"y": {"price": y["price"]}}, "y: .* missing is kind"),
    "y is unknown": (lambda x, y: {"y": {**y, "sort": y["kind"]}}, "unknown is sort"),
    "y is a tuple": (lambda x, y: {"y": (*y.values(),)}, "give a dict with these names"),
    "y is an array": (lambda x, y: {"y": y["price"]}, "y: .* a ndarray was given"),
    "y is short": (lambda x, y: {"y": {**y, "kind": y["kind"][:9]}}, "y\\['kind'\\] has 9 samples and x has 53"),
    "labels": (lambda x, y: {"y": {**y, "kind": y["kind"] + 1}}, "y\\['kind'\\].* is 3, outside 0 to 2"),
    "nan": (lambda x, y: {"y": {**y, "price": y["price"] * np.nan}}, "y\\['price'\\].* is nan"),
    "losses": (lambda x, y: {"loss": {"price": "mse"}}, "loss: .* missing is kind"),
    "loss": (lambda x, y: {"loss": {**LOSSES, "kind": "mie"}}, "there is no loss 'mie'"),
    "a number of losses": (lambda x, y: {"loss": ["mse"]}, "loss: .*1 were given"),
    "weights": (lambda x, y: {"loss_weights": {"price": 1.0}}, "loss_weights: .* missing is kind"),
    "a weight": (lambda x, y: {"loss_weights": {**WEIGHTS, "kind": -1.0}}, "loss_weights of kind should be in"),
    "a weight of nan": (
        lambda x, y: {"loss_weights": {**WEIGHTS, "kind": np.nan}},
        "loss_weights of kind should be in",
    ),
    "metrics": (lambda x, y: {"metrics": {"sort": ["top_2"]}}, "metrics: .* unknown is sort"),
    "a metric": (lambda x, y: {"metrics": {"price": ["accuracy"]}}, "accuracy: one output of linear"),
    "sample_weight": (lambda x, y: {"sample_weight": {"kind": np.ones(9)}}, "sample_weight\\['kind'\\] has the shape"),
    "class_weight": (lambda x, y: {"class_weight": {0: 2.0}}, "class_weight is for a model of one output"),
    "validation": (lambda x, y: {"validation": (x, {"price": y["price"]})}, "validation y: .* missing is kind"),
    "validation x": (lambda x, y: {"validation": ((x["left"],), y)}, "takes 2 inputs"),
    "validation shapes": (lambda x, y: {"validation": ((x["right"], x["left"]), y)}, "does not fit weights"),
}


@pytest.mark.parametrize("make", [by_symbols, ByForward])
@pytest.mark.parametrize("case", WRONG)
def test_what_does_not_fit_is_named_before_anything_is_trained(device, rng, case, make):
    x, y = data(rng)
    net = make()
    net.predict(x)
    before = weights_of(net)
    options, says = WRONG[case]
    with pytest.raises(clnn.ClnnError, match=says):
        fit(net, **{"x": x, "y": y, **options(x, y)})
    assert all(np.array_equal(a, b) for a, b in zip(weights_of(net), before))


def test_one_output_takes_no_weights_and_names_do_not_collide(device, rng):
    a = clnn.Input(3)
    x, y = np.ones((4, 3), np.float32), np.ones((4, 1), np.float32)
    one = clnn.Model(a, clnn.Dense(1)(a))
    with pytest.raises(clnn.ConfigurationError, match="no loss_weights"):
        one.fit(x, y, loss="mse", loss_weights=[1.0], optimizer="adam")
    assert one.fit({"input_1": x}, y, loss="mse", optimizer="adam")["loss"] and one.predict(x).shape == (4, 1)
    two = clnn.Model(a, {"b": clnn.Dense(1)(a), "val_b": clnn.Dense(1)(a)})
    with pytest.raises(clnn.ConfigurationError, match="reported as 'val_b_loss'"):
        two.fit(x, {"b": y, "val_b": y}, loss="mse", optimizer="adam")
    only = clnn.Model(a, (clnn.Dense(1)(a),))
    assert only.fit(x, (y,), loss="mse", loss_weights=(2.0,), optimizer="adam")["output_1_loss"]
    assert isinstance(only.predict(x), tuple)


def symbols():
    a, b = clnn.Input(5), clnn.Input(5)
    return a, b, clnn.Dense(4)


NO_GRAPH = {
    "an input is missing": (lambda a, b, d: clnn.Model(a, clnn.Add()(d(a), d(b))), "is not among Model's inputs"),
    "an input is unused": (lambda a, b, d: clnn.Model((a, b), d(b)), "no output depends on the input input_1"),
    "an input twice": (lambda a, b, d: clnn.Model((a, a), d(a)), "each once"),
    "an input that is none": (lambda a, b, d: clnn.Model(d(a), d(b)), "are what clnn.Input returned"),
    "an array": (lambda a, b, d: clnn.Model(np.ones(3), d(a)), "Model's inputs should be"),
    "no outputs": (lambda a, b, d: clnn.Model(a), "Model's outputs should be"),
    "no layer": (lambda a, b, d: clnn.Model(a, a), "with no layer in between"),
    "a number": (lambda a, b, d: 2 * a, "given an Input and a int together"),
    "nothing beside": (lambda a, b, d: clnn.Add()(a, None), "given an Input and a NoneType together"),
    "an array beside": (lambda a, b, d: clnn.Add()(a, np.ones((2, 5))), "given an Input and a ndarray together"),
    "a function": (lambda a, b, d: clnn.tanh(a), "an Input has no values"),
    "a quotient": (lambda a, b, d: (a + b) / 2, "an Input has no values"),
    "minus": (lambda a, b, d: -a, "an Input has no values"),
    "a part": (lambda a, b, d: a[:, 0], "an Input has no values"),
    "a product": (lambda a, b, d: a @ b, "an Input has no values"),
    "concatenate": (lambda a, b, d: clnn.concatenate([a, b]), "an Input has no values"),
    "shapes": (lambda a, b, d: clnn.Add()(a, d(b)), "axes of different sizes"),
    "axes": (lambda a, b, d: clnn.Multiply()(a, clnn.Input((2, 5))), "not the same number of axes"),
    "one tensor": (lambda a, b, d: clnn.Concatenate()(a), "joins two tensors or more, and got 1"),
    "three tensors": (lambda a, b, d: clnn.Subtract()(a, b, a), "joins two tensors, and got 3"),
    "the batch's axis": (lambda a, b, d: clnn.Concatenate(-2)(a, b), "is the batch's"),
    "axis 0": (lambda a, b, d: clnn.Split(2, axis=0), "would be the samples'"),
    "parts": (lambda a, b, d: clnn.Split(2)(a), "not 2 equal parts"),
    "a type": (lambda a, b, d: clnn.Input(3, "float16"), "float32, float64 or int32"),
    "no size": (lambda a, b, d: clnn.Input((None, 3)), "takes whole numbers"),
    "a size of 0": (lambda a, b, d: clnn.Input((0, 3)), "sizes of 1 or more"),
    "one call too few": (lambda a, b, d: clnn.Model((a, b), clnn.Add()(a, b))(np.ones((1, 5))), "takes 2 inputs"),
    "batches": (lambda a, b, d: clnn.Model((a, b), clnn.Add()(a, b))(np.ones((1, 5)), np.ones((2, 5))), "of samples"),
}  # fmt: skip


@pytest.mark.parametrize("case", NO_GRAPH)
def test_what_is_no_graph(device, case):
    make, says = NO_GRAPH[case]
    with pytest.raises(clnn.ClnnError, match=says):
        make(*symbols())


def test_types_of_inputs_and_layers_agree(device):
    if not device.has_fp64:
        with pytest.raises(clnn.DeviceError):
            clnn.Input(3, "float64")
        return
    a, d = clnn.Input(3, "float64"), clnn.Dense(2)
    net = clnn.Model(a, d(a))
    assert net.dtype == d.w.dtype == np.float64 == net.predict(np.ones((2, 3))).dtype
    with pytest.raises(clnn.ConfigurationError, match="is of float64, and its inputs of float32"):
        d(clnn.Input(3))


def test_inference_frees_what_is_used_for_the_last_time(device):
    """A chain of 12 layers takes the memory of a few."""
    a = y = clnn.Input(1000)
    for _ in range(12):
        y = clnn.Activation("tanh")(y)
    net = clnn.Model(a, y)
    with clnn.no_grad():
        x = clnn.tensor(np.ones((100, 1000), np.float32))
        before = device.memory_in_use
        seen = []
        net.graph.run((x,), lambda number, y: seen.append(device.memory_in_use - before))
    assert max(seen) <= 4 * x.nbytes


def test_outputs_that_change_with_the_tape_are_an_error(device, rng):
    class Fickle(clnn.Model):
        def __init__(self):
            self.a, self.b = clnn.Dense(1), clnn.Dense(1)

        def forward(self, x):
            return (self.a(x), self.b(x)) if clnn.grad_enabled() else self.a(x)

    x, y = np.ones((4, 3), np.float32), np.ones((4, 1), np.float32)
    with pytest.raises(clnn.ConfigurationError, match="the same with a tape and without"):
        Fickle().fit(x, y, loss="mse", optimizer="adam")


@pytest.mark.parametrize("loss", ["cross_entropy", "mse", "own"])
@pytest.mark.parametrize("several", [False, True])
def test_outputs_that_have_other_rows_than_samples(device, rng, loss, several):
    """clnn's losses refuse them; one of one's own gets them, and each sample is seen once."""

    class Folded(clnn.Model):
        def __init__(self):
            self.d = clnn.Dense(3)

        def forward(self, x):
            y = self.d(x.reshape(-1, 5))
            return (y, y) if several else y

    x = rng.standard_normal((20, 4, 5)).astype(np.float32)
    t = rng.integers(0, 3, 20) if loss == "cross_entropy" else rng.random((20, 3)).astype(np.float32)
    net = Folded()
    if loss != "own":
        with pytest.raises(clnn.ShapeError, match="returned 28 rows for 7 samples"):
            net.fit(x, (t, t) if several else t, loss=loss, optimizer="adam", batch_size=7)
        with pytest.raises(clnn.ShapeError, match="returned 80 rows for 20 samples"):
            net.evaluate(x, (t, t) if several else t, loss=loss)
        return
    own = lambda y, t: ((y.reshape(-1, 4, 3).mean(axis=1) - t) ** 2).mean()  # noqa: E731
    history = net.fit(x, (t, t) if several else t, loss=own, optimizer=clnn.SGD(0.0), batch_size=7, shuffle=False)
    want = float(((net.predict(x)[0] if several else net.predict(x)).reshape(20, 4, 3).mean(1) - t).__pow__(2).mean())
    assert history["loss"] == pytest.approx([want * (1 + several)], rel=1e-5)


def test_an_output_has_an_axis_of_samples(device):
    class Scalar(clnn.Model):
        def forward(self, x):
            return x, x.sum()

    with pytest.raises(clnn.ConfigurationError, match="a tensor without axes"):
        Scalar().predict(np.ones((2, 3)))


def test_results_of_one_output_are_what_they_were(device):
    """The table of one output's losses is one block, so that its step launches what it did."""
    one = Results(device, 3, np.float32, clnn.train.outputs.Outputs.of(clnn.ones((1, 2))), clnn.losses.mse, [False], [])
    assert len(one.main) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert one.logs(np.array([[6.0, 0.0, 3.0]])) == {"loss": 2.0}


def test_masks_go_through_joins(device, rng):
    """A padded sequence, embedded twice and joined, is what it is alone; masks that differ are an error."""
    a, b = clnn.Input(6, "int32"), clnn.Input(6, "int32")
    one, two = clnn.Embedding(9, 3, mask_zero=True), clnn.Dense(3, "tanh")
    e = one(a)
    net = clnn.Model(a, clnn.GRU(4)(clnn.Concatenate()(clnn.Add()(e, two(e)), e)))
    x = rng.integers(1, 9, (2, 6))
    x[1, 4:] = 0
    np.testing.assert_allclose(net.predict(x)[1], net.predict(x[1:, :4])[0], rtol=1e-5, atol=1e-6)
    other = clnn.Embedding(9, 3, mask_zero=True)(a)
    for inputs, joined, told in (
        ((a, b), clnn.Add()(e, one(b)), "let one input alone have a mask"),
        (a, clnn.Concatenate()(e, other), "let one input alone have a mask"),
        (a, clnn.Concatenate(1)(e, e), "one after the other; join what recurrent layers return"),
    ):
        with pytest.raises(clnn.ConfigurationError, match=f"masks .* leave different steps out .*{told}"):
            clnn.Model(inputs, clnn.GRU(4)(joined))
    net = clnn.Model(a, clnn.GRU(4)(clnn.Concatenate()(e, clnn.Embedding(9, 3, padding=0)(a))))  # as the error says
    np.testing.assert_allclose(net.predict(x)[1], net.predict(x[1:, :4])[0], rtol=1e-5, atol=1e-6)


def test_convolutions_and_norms_are_joined_at_inference(device, rng, monkeypatch):
    """As in Sequential, and only where nothing else reads what lies between them."""
    joined, with_next = [], clnn.Conv2D.with_next

    def noting(self, following, x):
        joined.append(y := with_next(self, following, x))
        return y

    monkeypatch.setattr(clnn.Conv2D, "with_next", noting)
    a = clnn.Input((2, 6, 6))
    c, d = (clnn.Conv2D(3, 3, padding="same") for _ in range(2))
    norm, other = clnn.BatchNorm("relu"), clnn.BatchNorm()
    h = d(norm(c(a)))
    net = clnn.Model(a, (clnn.Flatten()(h), clnn.Flatten()(other(h))))
    x = rng.standard_normal((5, 2, 6, 6)).astype(np.float32)
    t = tuple(rng.standard_normal((5, 108)).astype(np.float32) for _ in range(2))
    net.fit(x, t, loss="mse", optimizer="adam", epochs=3, batch_size=5, progress=False)
    joined.clear()
    found = net.predict(x)
    assert len(joined) == 1 and joined[0] is not None  # c with its norm, and not d, whose output is used twice
    monkeypatch.setattr(clnn.Conv2D, "with_next", clnn.Layer.with_next)
    net.__dict__.pop("_evaluations")
    for one, same in zip(found, net.predict(x)):
        np.testing.assert_allclose(one, same, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "layer",
    [clnn.LSTM(3, return_state=True), clnn.Split(2), clnn.Bidirectional(clnn.GRU(3), None)],
    ids=lambda layer: type(layer).__name__,
)
def test_several_tensors_are_no_array_for_the_next_layer(device, rng, layer):
    """They became one where nothing is on tape, with a row for each, so that samples were mixed without a word."""
    x = rng.standard_normal((3, 5, 4))
    net = clnn.Sequential([copy.deepcopy(layer), clnn.Flatten(), clnn.Dense(2)])
    for call in (net, net.predict):
        with pytest.raises(clnn.ConfigurationError, match=r"^flatten_1 got \d tensors for one input: .*clnn.Model"):
            call(x)
    a = clnn.Input(3)
    for inputs in ([clnn.ones(3), clnn.ones(3)], (a, a)):
        with pytest.raises(clnn.ConfigurationError, match=r"^Dense got 2 tensors for one input: inputs go one by one"):
            clnn.Dense(2)(inputs)


def test_layers_of_a_graph_are_replaced_one_by_one(device):
    a = clnn.Input((3, 2))
    y, h, c = clnn.LSTM(2, return_state=True)(a)
    net = clnn.Model(a, clnn.Add()(h, c))
    kept = net.layers
    net.layers = [*kept]
    with pytest.raises(clnn.ConfigurationError, match="replaced one by one"):
        net.predict(np.ones((1, 3, 2)))
    net.layers = kept
    net.layers[0] = clnn.LSTM(2)
    with pytest.raises(clnn.ConfigurationError, match="returns 1 tensors here"):
        net.predict(np.ones((1, 3, 2)))


@pytest.mark.parametrize("join", ["Add", "Average", "Concatenate", "Maximum", "Multiply", "Subtract"])
def test_joins_and_splits_come_back_from_a_file(device, rng, tmp_path, join):
    a = clnn.Input((4, 6))
    joined = getattr(clnn, join)(*[1] * (join == "Concatenate"))(
        *clnn.Split((3, 1, 2), 2)(clnn.Dense(6)(a))[::2][:1] * 2
    )
    net = clnn.Model(a, (joined, *clnn.Split(2, axis=1)(a)))
    net.save(tmp_path / "net")
    again, x = clnn.load(tmp_path / "net"), rng.standard_normal((3, 4, 6)).astype(np.float32)
    assert all(np.array_equal(p, q) for p, q in zip(net.predict(x), again.predict(x)))
    assert [*map(repr, again.layers)] == [*map(repr, net.layers)]


def test_a_search_over_graphs(device, rng):
    x, y = data(rng)

    def build(rate):
        return by_symbols(), {"loss": LOSSES, "loss_weights": WEIGHTS, "optimizer": clnn.Adam(rate), "batch_size": 20}

    given = {
        "train": (x, y),
        "validation": (x, y),
        "epochs": 2,
        "metric": "price_loss",
        "maximise": False,
        "progress": False,
    }
    found = clnn.search.grid(build, {"rate": [0.01, 0.1]}, **given)
    assert found.best_model.evaluate(x, y)["price_loss"] == pytest.approx(
        min(row["score"] for row in found.rows), rel=1e-6
    )
