"""Layers as containers: whatever an attribute is called, what it holds trains and is saved; layers in layers, deep and twice."""

import numpy as np
import pytest
from helpers import assert_close, eps, normal, parameter

import clnn
from clnn.train.inputs import build_for


class Hidden(clnn.Model):
    """Layers and parameters in attributes of every kind of name and container."""

    def __init__(self):
        self._dense = clnn.Dense(4, "tanh")
        self.__own = [clnn.Dense(4, "tanh")]
        self._by_name = {"a": clnn.Dense(4, "tanh"), "b": (clnn.Dense(4, "tanh"),)}
        self._empty, self._number, self._itself = [], 3, [self]

    def build(self, shape):
        self._scale = self.parameter((4,), "ones")
        self.shift_ = self.parameter((4,), "zeros")

    def forward(self, x):
        for layer in (self._dense, *self.__own, self._by_name["a"], *self._by_name["b"]):
            x = layer(x)
        return x * self._scale + self.shift_


def test_an_underscore_hides_nothing(rng, device):
    x, y = rng.random((30, 3)).astype(np.float32), rng.integers(0, 4, 30)
    net = Hidden()
    net.predict(x)
    names = {name.rpartition(".")[0] or name for name, _ in net.named_parameters()}
    assert names == {"_dense", "_Hidden__own.0", "_by_name.a", "_by_name.b.0", "_scale", "shift_"}
    before = net.state_dict()
    net.fit(x, y, loss="cross_entropy", optimizer=clnn.SGD(0.1), epochs=3, batch_size=10, progress=False)
    after = net.state_dict()
    assert set(after) == set(before) and all(not np.array_equal(after[name], before[name]) for name in before)
    twin = Hidden()
    twin.predict(x)
    twin.load_state_dict(after)
    np.testing.assert_array_equal(twin.predict(x), net.predict(x))
    assert len(list(net.layers_inside())) == 5
    net.trainable = False
    assert not any(p.trainable for p in net.parameters())


@clnn.register
class Underscored(clnn.Layer):
    def __init__(self, size):
        self._size, self._inner = size, clnn.Dense(size)

    def forward(self, x):
        return self._inner(x)

    def config(self):
        return {"size": self._size}


def test_layers_behind_an_underscore_are_saved(rng, device, tmp_path):
    net = clnn.Sequential([Underscored(5), clnn.Dense(2)], input_shape=3)
    x = rng.random((4, 3)).astype(np.float32)
    net.save(tmp_path / "net")
    np.testing.assert_array_equal(clnn.load(tmp_path / "net").predict(x), net.predict(x))


def nested(depth, wrap):
    net = clnn.Dense(3)
    for _ in range(depth):
        net = wrap(net)
    return net


class Around(clnn.Model):
    def __init__(self, inner):
        self.inner = inner

    def forward(self, x):
        return self.inner(x)


WRAPS = {
    "Sequential": lambda net: clnn.Sequential([net]),
    "Residual": lambda net: clnn.Residual([net]),
    "own": Around,
    "list": lambda net: Around([net] if not isinstance(net, clnn.Layer) else net),
}


@pytest.mark.parametrize("wrap", WRAPS)
@pytest.mark.parametrize("depth", [70, 200, 2000])
def test_layers_nested_too_deep_are_refused(device, wrap, depth):
    with pytest.raises(clnn.ConfigurationError, match="layers in layers more than 64 deep.*put them side by side"):
        net = nested(depth, WRAPS[wrap])
        net(np.zeros((2, 3), np.float32))


def test_layers_nested_as_deep_as_may_be(rng, device, tmp_path):
    net = clnn.Sequential([nested(62, WRAPS["Sequential"])], input_shape=4)
    x, y = rng.random((12, 4)).astype(np.float32), rng.integers(0, 3, 12)
    net.fit(x, y, loss="cross_entropy", optimizer=clnn.SGD(0.1), epochs=4, batch_size=4, progress=False)
    net.save(tmp_path / "net")
    again = clnn.load(tmp_path / "net")
    np.testing.assert_array_equal(again.predict(x), net.predict(x))
    assert again.evaluate(x, y) == net.evaluate(x, y) and repr(again) == repr(net) and "Sequential" in net.summary()


# -- a mini-batch that batch normalisation cannot take ----------------------------------------------------------------
def normed(*layers, input_shape=3):
    return clnn.Sequential([*layers, clnn.BatchNorm(), clnn.Dense(2)], input_shape=input_shape, seed=0)


@pytest.mark.parametrize("loss", ["cross_entropy", lambda out, t: (out * out).mean()], ids=["named", "own"])
@pytest.mark.parametrize(("n", "batch"), [(21, 10), (1, 10), (5, 1), (33, 32)])
def test_a_mini_batch_of_one_is_refused_before_any_training(rng, device, n, batch, loss):
    x, y = rng.random((n, 3)).astype(np.float32), rng.integers(0, 2, n)
    net = normed()
    before = net.state_dict()
    calls = []
    watcher = clnn.Callback()
    watcher.on_train_begin = calls.append
    with pytest.raises(clnn.ShapeError, match=f"batch_norm.*of {n} samples in mini-batches of {batch} the last has 1"):
        net.fit(x, y, loss=loss, optimizer=clnn.SGD(0.1), batch_size=batch, callbacks=[watcher], progress=False)
    assert not calls and all(np.array_equal(before[name], value) for name, value in net.state_dict().items())


def test_mini_batches_of_one_that_are_no_trouble(rng, device):
    x, y = rng.random((21, 2, 4)).astype(np.float32), rng.integers(0, 2, 21)
    options = {"loss": "cross_entropy", "optimizer": clnn.SGD(0.1), "batch_size": 10, "progress": False}
    clnn.Sequential([clnn.BatchNorm(), clnn.Flatten(), clnn.Dense(2)], input_shape=(2, 4)).fit(x, y, **options)
    net = normed(clnn.Flatten(), input_shape=(2, 4))
    net.layers[1].trainable = False
    net.fit(x, y, **{**options, "optimizer": clnn.SGD(0.1)})
    normed(clnn.Flatten(), input_shape=(2, 4)).fit(x[:20], y[:20], **{**options, "optimizer": clnn.SGD(0.1)})


# -- tensors that a forward pass keeps -----------------------------------------------------------------------------------
CACHED = {}


class Keeps(clnn.Model):
    """Makes a mask at its first call, and has it from then on."""

    def __init__(self, where):
        self.where, self.mask, self.masks = where, None, []

    def kept(self, n):
        made = clnn.constant if self.where == "constant" else clnn.tensor
        upper = made(np.triu(np.ones((n, n), np.float32)))
        return upper + clnn.ones((n, n)) * 2.0

    def forward(self, x):
        if self.where == "cache":
            mask = CACHED.setdefault((id(self), x.shape[1]), None)
            if mask is None:
                mask = CACHED[id(self), x.shape[1]] = self.kept(x.shape[1])
        elif self.where == "list":
            self.masks or self.masks.append(self.kept(x.shape[1]))
            mask = self.masks[0]
        else:
            if self.mask is None:
                self.mask = self.kept(x.shape[1])
            mask = self.mask
        return x @ mask


@pytest.mark.parametrize("where", ["attribute", "list", "cache", "constant"])
@pytest.mark.parametrize("way", ["sequential", "model", "fit", "after an error"])
def test_tensors_that_a_forward_pass_keeps_have_values(rng, device, where, way):
    """A model is built by a pass for shapes alone, in which nothing is computed; what it keeps of that is read afterwards."""
    x = rng.random((20, 4)).astype(np.float32)
    layer = Keeps(where)
    net = layer if way == "model" else clnn.Sequential([layer, clnn.Dense(3)], input_shape=None if way == "fit" else 4)
    if way == "fit":
        net.fit(x, x[:, :3], loss="mse", optimizer=clnn.SGD(0.0), epochs=2, batch_size=5, progress=False)
    if way == "after an error":
        net.layers.append(clnn.Conv2D(3, 3))
        with pytest.raises(clnn.ShapeError):
            net.predict(x)
        del net.layers[-1]
    expected = x @ (np.triu(np.ones((4, 4), np.float32)) + 2)
    if net is not layer:
        expected = expected @ net.layers[1].w.numpy() + net.layers[1].b.numpy()
    for _ in range(4):
        np.testing.assert_allclose(net.predict(x), expected, rtol=1e-4, atol=1e-4)


def test_a_pass_for_shapes_launches_nothing_unless_something_is_kept(device):
    before = device.launches
    clnn.Sequential([clnn.Dense(4), clnn.Dense(5, "tanh"), clnn.BatchNorm(), clnn.Activation("softmax")], input_shape=3)
    made = device.launches - before
    before = device.launches
    clnn.Sequential([Keeps("attribute"), clnn.Dense(4), clnn.Dense(5, "tanh"), clnn.BatchNorm(), clnn.Activation("softmax")],
                    input_shape=3)  # fmt: skip
    assert device.launches - before > made + 4


class Late(clnn.Layer):
    """Makes its parameters at its first call, and not in `build`."""

    def forward(self, x):
        if not hasattr(self, "w"):
            self.w, self.b = self.parameter((x.shape[1], 3)), self.parameter((3,), init="ones")
        return x @ self.w + self.b


@pytest.mark.parametrize(
    "wrap", [lambda one: one, lambda one: clnn.Sequential([one]), lambda one: clnn.Residual([one])]
)
def test_parameters_that_a_forward_pass_makes_have_first_values(rng, device, wrap):
    net = clnn.Sequential([wrap(Late()), clnn.Dense(2)], input_shape=3, seed=1)
    w, b = (value for name, value in net.state_dict().items() if not name.startswith("1."))
    assert 0.1 < w.std() < 1 and len(np.unique(w)) == w.size
    np.testing.assert_array_equal(b, 1)


@pytest.mark.parametrize(
    ("axis", "shape", "wide"),
    [(1, (2, 3), (3,)), (1, (2, 3, 4, 5), (3, 1, 1)), (-1, (2, 4, 3), (3,)), (None, (2, 3, 2), ())],
)
def test_prelu_learns_a_slope_for_each_channel(rng, device, axis, shape, wide):
    layer, x, dy = clnn.PReLU(axis), normal(rng, shape), normal(rng, shape)
    p = parameter(x)
    y = layer(p)
    y.backward(dy)
    slope = 0.25 * np.ones(wide)
    assert_close(y.numpy(), np.where(x > 0, x, slope * x), eps(np.float32))
    assert_close(p.grad.numpy(), dy * np.where(x > 0, 1, slope), eps(np.float32) * 8)
    others = tuple(a for a in range(x.ndim) if axis is None or a != axis % x.ndim)
    assert_close(layer.slope.grad.numpy(), (dy * np.minimum(x, 0)).sum(others), eps(np.float32) * 64)
    assert not layer.slope.decays


def test_what_activations_with_parameters_refuse(device):
    for axis in (0, 3, -3):
        with pytest.raises(
            clnn.ShapeError, match=rf"axis {axis} is none of channels in an input of shape \(None, 3, 4\)"
        ):
            clnn.Sequential([clnn.PReLU(axis)], input_shape=(3, 4))
    net = clnn.Sequential([clnn.PReLU()], input_shape=(3, 4))
    with pytest.raises(clnn.ShapeError, match=r"p_re_lu_1: 3 slopes for axis 1 of an input of shape \(2, 5, 4\)"):
        net(np.zeros((2, 5, 4)))
    with pytest.raises(clnn.ConfigurationError, match="slope belongs to leaky_relu, and 'relu' has none"):
        clnn.Activation("relu", slope=0.1)
    with pytest.raises(clnn.ConfigurationError, match="alpha should be in"):
        clnn.Activation("elu", alpha=float("nan"))
    x = np.array([[-2.0, 3.0]], np.float32)
    assert_close(clnn.Activation("leaky_relu", slope=0.5)(x).numpy(), [[-1, 3]], 0)
    assert_close(clnn.Activation("elu", alpha=2)(x).numpy(), [[2 * np.expm1(-2), 3]], 8 * eps(np.float32))


def test_what_is_put_back_after_a_pass_for_shapes_is_not_computed(rng, device):
    class Notes(clnn.Model):
        def __init__(self):
            self.dense, self.seen = clnn.Dense(3), None

        def forward(self, x):
            self.seen = self.dense(x)
            return self.seen * 2.0

    net = Notes()
    net.predict(rng.random((5, 4)))
    seen, launches = net.seen, device.launches
    build_for(net, [rng.random((5, 2, 4)).astype(np.float32)])  # another shape, whose output is asked for anew
    assert net.seen is seen and device.launches == launches


class MadeLate(clnn.Model):
    """Layers that `build` makes, in an attribute, in a list and within each other."""

    def build(self, shape):
        self.inner = clnn.Dense(shape[-1], "tanh")
        self.more = [clnn.Sequential([clnn.Dropout(0.5), clnn.Dense(shape[-1])])]
        self.factor = self.parameter((1,), "ones")

    def forward(self, x):
        return self.factor * self.more[0](self.inner(x)) + x


def test_layers_that_build_makes_are_of_its_type_and_in_its_mode(rng, dtype):
    net = clnn.Sequential([MadeLate(), clnn.Residual([MadeLate()])], dtype=dtype, seed=1).eval()
    x = rng.standard_normal((5, 3)).astype(dtype)
    found = net(x).numpy()  # builds it
    assert found.dtype == dtype and np.array_equal(found, net.predict(x))  # nothing was dropped
    assert {p.dtype for p in net.parameters()} == {np.dtype(dtype)}
    first, second, once = x.astype(np.float64), 0, [*net.state_dict().values()]
    for w, b, v, c, factor in (once[:5], once[5:]):
        first, second = first + factor * (np.tanh(first @ w + b) @ v + c), first
    expected = first + second
    assert_close(found, expected, 20 * eps(dtype) * abs(expected).max())
    assert net.train().fit(x, x, loss="mse", optimizer="sgd", epochs=2, progress=False)["loss"][1] > 0


@pytest.mark.parametrize("kind", [clnn.Dense, clnn.LSTM])
def test_what_is_built_is_not_placed_in_another_type(kind, device):
    """Its parameters stay what they are, and all that it computed afterwards was of two types."""
    net = clnn.Sequential([kind(3), clnn.Dense(2)], input_shape=4 if kind is clnn.Dense else (5, 4), seed=1)
    for wrong in (net, clnn.Sequential([net, clnn.Dense(2)], dtype="float64"), net.layers[0]):
        with pytest.raises(clnn.ConfigurationError, match="is built already, in float32 on .*place"):
            wrong.place(device, np.float64)
        assert all(layer.dtype == np.float32 for layer in net.layers_inside())
    net.place(device, "float32")
    fresh = clnn.Sequential([kind(3), clnn.Dense(2)])
    fresh.place(device, "float64")
    x = np.zeros((2, 4) if kind is clnn.Dense else (2, 5, 4))
    assert fresh.predict(x).dtype == np.float64
    fresh.load_state_dict(net.state_dict())
    np.testing.assert_allclose(fresh.predict(x + 1), net.predict(x + 1), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "make, name",
    [
        (lambda: clnn.Dense(2), "w"),
        (lambda: clnn.Dense(2), "b"),
        (lambda: clnn.LayerNorm(), "gamma"),
        (lambda: clnn.GRU(2), "u"),
    ],
)
@pytest.mark.parametrize("kind", ["array", "tensor", "parameter"])
def test_weights_that_are_set_before_the_layer_is_built_are_not_lost_in_silence(device, make, name, kind):
    """build() put its own in their place, and the layer computed with those."""
    x, shape = np.ones((2, 3, 4), np.float32), make()
    shape(x)
    value = np.full(getattr(shape, name).shape, 7.0, np.float32)
    value = value if kind == "array" else clnn.tensor(value, requires_grad=kind == "parameter")
    early, net = make(), clnn.Sequential([make()])
    setattr(early, name, value)
    setattr(net.layers[0], name, value)
    for call in (early, early, net, net.predict):
        with pytest.raises(
            clnn.ConfigurationError, match=f": {name} was set before the layer was built, .* call the layer once"
        ):
            call(x)
    delattr(early, name)
    assert early(x).shape[0] == 2


def test_a_build_that_failed_leaves_nothing_behind(device):
    """Its first parameters, made again by the next try, are none that somebody has set."""
    layer = clnn.Dense(2, bias_init=lambda *_: np.ones(9, np.float32))
    for _ in range(2):
        with pytest.raises(clnn.ConfigurationError, match="the initialiser .* of shape"):
            layer(np.ones((1, 3), np.float32))
        assert not layer.parameters() and not layer.built
    layer.bias_init = "zeros"
    assert layer(np.ones((1, 3), np.float32)).shape == (1, 2)


def test_a_layer_of_ones_own_makes_parameters_of_the_arrays_that_it_has(device):
    class Filled(clnn.Layer):
        def __init__(self, w):
            self.w = w

        def build(self, shape):
            self.w = self.parameter(self.w.shape, init=lambda *_: self.w)

        def forward(self, x):
            return x * self.w

    layer = Filled(np.full(3, 2.0, np.float32))
    assert layer(np.ones((1, 3))).numpy().tolist() == [[2.0] * 3] and len(layer.parameters()) == 1


@pytest.mark.parametrize("whole", [(True,), [True], (True, False), (True, 0)])
def test_an_input_that_whole_inputs_does_not_name_is_one_of_floats(device, whole):
    class Both(clnn.Model):
        whole_inputs = whole

        def __init__(self):
            self.embedding = clnn.Embedding(5, 3)

        def forward(self, tokens, x):
            return self.embedding(tokens) + x

    net, x = Both(), np.full((2, 3), 0.5, np.float32)
    y = net(np.array([1, 2]), x).numpy()
    assert np.array_equal(net.predict((np.array([1, 2]), x)), y) and not net.takes_whole(1) and net.takes_whole(0)
