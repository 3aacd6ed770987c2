"""Models: building, summaries, moving, files."""

import gc
import json
import struct

import numpy as np
import pytest

import clnn
from clnn.gemm import Shape, engine_name, tile


def net_on(device, **options):
    with clnn.use(device):
        return clnn.Sequential(
            [clnn.Dense(6, "gelu"), clnn.Activation("tanh"), clnn.Dropout(0.1), clnn.Dense(4, "softmax")],
            **{"input_shape": 5, "seed": 2, **options},
        )


def test_it_is_built_at_its_first_call_without_input_shape(device, rng):
    net = net_on(device, input_shape=None)
    with pytest.raises(clnn.ConfigurationError, match="input_shape"):
        net.summary()
    with clnn.use(device):
        assert net(rng.random((3, 5))).shape == (3, 4)
    assert "(None, 4)" in net.summary()


def test_summary_counts(device):
    text = net_on(device).summary()
    assert "dense_1" in text and "dense_2" in text and f"{5 * 6 + 6 + 6 * 4 + 4} parameters" in text


def test_parameters_live_in_one_store(device):
    net = net_on(device)
    stores = {p.store for p in net.parameters()}
    assert len(stores) == 1
    assert [p.name for p in net.parameters()] == ["0.w", "0.b", "3.w", "3.b"]
    assert all(p.position % 512 == 0 for p in net.parameters())
    decaying = [p.position for p in net.parameters() if p.decays]
    assert max(decaying) < min(p.position for p in net.parameters() if not p.decays)


def test_the_seed_decides_the_first_weights(device):
    a, b, c = (net_on(device, seed=s).state_dict() for s in (1, 1, 2))
    assert all(np.array_equal(a[k], b[k]) for k in a)
    assert not np.array_equal(a["0.w"], c["0.w"])


def test_layers_of_more_axes(device, rng):
    with clnn.use(device):
        net = clnn.Sequential([clnn.Flatten(), clnn.Dense(6), clnn.Reshape((3, -1)), clnn.Dense(2)], input_shape=(2, 4))
        x = rng.standard_normal((7, 2, 4)).astype(np.float32)
        y = net.predict(x)
    w1, b1, w2, b2 = (p.numpy() for p in net.parameters())
    assert np.allclose(y, (x.reshape(7, 8) @ w1 + b1).reshape(7, 3, 2) @ w2 + b2, atol=1e-5)
    with pytest.raises(clnn.ShapeError, match=r"reshape_1.*\(6,\).*\(4, 2\)"), clnn.use(device):
        clnn.Sequential([clnn.Dense(6), clnn.Reshape((4, 2))], input_shape=3)


@pytest.mark.parametrize("wrong", [0, -3, 2.5, "a", True])
def test_sizes_are_whole_numbers(wrong):
    with pytest.raises(clnn.ConfigurationError, match="size"):
        clnn.Dense(wrong)


def test_sequential_takes_layers():
    with pytest.raises(clnn.ConfigurationError, match="layers"):
        clnn.Sequential([])
    with pytest.raises(clnn.ConfigurationError, match="'relu'"):
        clnn.Sequential([clnn.Dense(3), "relu"])


def test_moving_to_the_same_device_keeps_outputs(device, rng):
    net = net_on(device)
    x = rng.standard_normal((9, 5)).astype(np.float32)
    before = net.predict(x)
    assert np.array_equal(net.to(device).predict(x), before)
    net.fit(x, np.zeros(9, np.int32), loss="cross_entropy", optimizer="sgd", epochs=1, batch_size=4)


# -- files -----------------------------------------------------------------------------------------------------------------
def test_a_file_gives_the_model_back(device, rng, tmp_path):
    net = net_on(device)
    x, y = rng.standard_normal((30, 5)).astype(np.float32), rng.integers(0, 4, 30)
    net.layers[0].trainable = False
    net.fit(
        x, y, loss=clnn.losses.CrossEntropy(label_smoothing=0.1), optimizer=clnn.SGD(0.1, 0.9), epochs=2, batch_size=8
    )
    net.save(tmp_path / "net.safetensors")
    with clnn.use(device):
        again = clnn.load(tmp_path / "net.safetensors")
    assert np.array_equal(again.predict(x), net.predict(x))
    assert again.evaluate(x, y) == net.evaluate(x, y)
    assert not again.layers[0].trainable and again.layers[3].trainable
    assert again.optimizer.momentum == 0.9 and again.optimizer.steps == net.optimizer.steps
    assert [f.name for f in tmp_path.iterdir()] == ["net.safetensors"]


def test_a_layer_of_ones_own_is_saved_once_registered(device, rng, tmp_path):
    class Shift(clnn.Layer):
        def build(self, shape):
            self.by = self.parameter(shape, init="normal")

        def forward(self, x):
            return x + self.by

    with clnn.use(device):
        net = clnn.Sequential([Shift(), clnn.Dense(2)], input_shape=3)
        with pytest.raises(clnn.CheckpointError, match="register"):
            net.save(tmp_path / "a")
        assert not list(tmp_path.iterdir())
        clnn.register(Shift)
        try:
            net.save(tmp_path / "a")
            x = rng.random((4, 3), dtype=np.float32)
            assert np.array_equal(clnn.load(tmp_path / "a").predict(x), net.predict(x))
        finally:
            clnn.layers.REGISTRY.pop("Shift")
        with pytest.raises(clnn.CheckpointError, match="Shift"):
            clnn.load(tmp_path / "a")


def header_of(path):
    data = path.read_bytes()
    (size,) = struct.unpack("<Q", data[:8])
    return json.loads(data[8 : 8 + size]), data[8 + size :]


def with_header(path, header, body):
    header.get("__metadata__", {}).pop("sum", None)  # beside which any change would be refused
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + body)


@pytest.mark.parametrize(
    "damage", ["missing", "truncated", "garbage", "no header", "format", "class", "extra", "shape", "nan", "twice"]
)
def test_damaged_files_are_refused(device, tmp_path, damage):
    path = tmp_path / "net.safetensors"
    with clnn.use(device):
        net = net_on(device)
        net.save(path)
        header, body = header_of(path)
        inner = json.loads(header["__metadata__"]["clnn"])
        if damage == "missing":
            path.unlink()
        elif damage == "truncated":
            path.write_bytes(path.read_bytes()[:-9])
        elif damage == "garbage":
            path.write_bytes(b"\x80\x04not a model")
        elif damage == "no header":
            with_header(path, {k: v for k, v in header.items() if k != "__metadata__"}, body)
        elif damage in ("format", "class", "extra"):
            if damage == "format":
                inner["format"] = 99
            elif damage == "class":
                inner["model"]["config"]["layers"][0]["class"] = "os.system"
            else:
                inner["model"]["config"]["layers"][0]["config"]["command"] = "rm"
            header["__metadata__"]["clnn"] = json.dumps(inner)
            with_header(path, header, body)
        elif damage == "twice":
            header["__metadata__"]["clnn"] = header["__metadata__"]["clnn"].replace(
                '"format"', '"dtype": "float64", "format"'
            )
            with_header(path, header, body)
        elif damage == "shape":
            inner["model"]["config"]["layers"][0]["config"]["size"] = 7
            header["__metadata__"]["clnn"] = json.dumps(inner)
            with_header(path, header, body)
        elif damage == "nan":
            start = header["parameter.0.b"]["data_offsets"][0]
            with_header(path, header, body[:start] + np.float32("nan").tobytes() + body[start + 4 :])
        with pytest.raises(clnn.CheckpointError) as error:
            clnn.load(path)
    assert str(error.value)


def test_a_save_that_fails_leaves_the_old_file(device, tmp_path, monkeypatch):
    path = tmp_path / "net.safetensors"
    net = net_on(device)
    net.save(path)
    before = path.read_bytes()

    def full(*args):
        raise OSError("no space left on device")

    monkeypatch.setattr("os.fsync", full)
    net.layers[0].b.device.upload(np.ones(6, np.float32), net.layers[0].b.block)
    with pytest.raises(clnn.CheckpointError, match="no space"):
        net.save(path)
    assert path.read_bytes() == before and [f.name for f in tmp_path.iterdir()] == [path.name]


def test_load_state_dict_changes_all_or_nothing(device, rng):
    net = net_on(device)
    before = net.state_dict()
    state = {k: v + 1 for k, v in before.items()}
    del state["3.b"]
    with pytest.raises(clnn.CheckpointError, match=r"missing are 3.b"):
        net.load_state_dict(state)
    state["3.b"], state["0.w"] = before["3.b"], np.zeros((2, 2), np.float32)
    with pytest.raises(clnn.CheckpointError, match=r"0.w has the shape \(2, 2\)"):
        net.load_state_dict(state)
    assert all(np.array_equal(v, before[k]) for k, v in net.state_dict().items())
    net.load_state_dict({k: v + 1 for k, v in before.items()})
    assert np.array_equal(net.state_dict()["3.b"], before["3.b"] + 1)


def test_inference_holds_no_more_than_neighbouring_activations(device):
    """A deep net without a tape: parameters, and the two largest neighbouring activations (the series, part 5)."""
    gc.collect()
    with clnn.use(device):
        sizes = [256] * 12
        net = clnn.Sequential([clnn.Dense(s, "tanh") for s in sizes], input_shape=256, seed=0)
        x = clnn.tensor(np.zeros((128, 256), np.float32))
        activation = 128 * 256 * 4
        with clnn.no_grad():
            net(x)
            device.reset_memory_peak()
            before = device.memory_in_use
            y = net(x)
            shape = Shape(128, 256, 256)
            parts = tile.share(
                device, shape, tile.choose(device, shape)
            ).parts  # a GPU splits the depth, to fill itself
            most = 2 + (parts if parts > 1 and engine_name(device) == "tile" else 0)
            assert device.memory_peak - before <= most * activation * 1.07  # the pool rounds sizes up by 1/16 at most
            del y
        kept = net(x)  # on tape every activation is kept
        assert kept.requires_grad and device.memory_in_use - before >= 11 * activation
