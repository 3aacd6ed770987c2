"""Arrays in files, of which only the rows in use are read, and arrays of other libraries by DLPack."""

import numpy as np
import pytest

import clnn
from clnn.data import mapped


@pytest.fixture
def file(tmp_path, rng):
    """Bytes of images in a file, their labels, and a list of how many rows were read together."""
    x = rng.integers(0, 255, (90, 6)).astype(np.uint8)
    np.save(tmp_path / "x.npy", x)
    return x, (x[:, 0] > 127).astype(np.int32), np.load(tmp_path / "x.npy", mmap_mode="r")


def fit(device, x, y, **options):
    with clnn.use(device):
        net = clnn.Sequential([clnn.Dense(8, "tanh"), clnn.Dense(2)], input_shape=6, seed=0)
    history = net.fit(x, y, loss="cross_entropy", optimizer=clnn.SGD(1e-4), epochs=3, seed=1, progress=False, **options)
    return net, history


@pytest.mark.parametrize("split", [0.0, 0.3])
def test_a_large_file_of_another_type_is_never_converted_whole(device, file, monkeypatch, split):
    x, y, there = file
    arrays, history = fit(device, x, y, batch_size=16, validation_split=split)
    whole, read = np.ascontiguousarray, []
    monkeypatch.setattr(mapped, "MAPPED_BYTES", 1)
    monkeypatch.setattr(mapped, "CHECKED", 60)
    monkeypatch.setattr(clnn.train.loop, "CHUNK_BYTES", 16 * 64)

    def noting(self, rows):
        found = whole(self.array[rows], self.dtype)
        read.append(len(found))
        return found

    monkeypatch.setattr(mapped.MappedRows, "__getitem__", noting)
    found, same = fit(device, there, y, batch_size=16, validation_split=split)
    assert max(read) <= 32 < len(x)
    assert all(np.array_equal(p.numpy(), q.numpy()) for p, q in zip(arrays.parameters(), found.parameters()))
    assert same["loss"] == history["loss"]
    assert np.array_equal(found.predict(there), arrays.predict(x))
    assert found.evaluate(there, y) == arrays.evaluate(x, y)


def test_samples_held_out_of_a_sparse_matrix_stay_sparse(device, rng, monkeypatch):
    sparse = pytest.importorskip("scipy.sparse", reason="SciPy is not installed")
    x = np.where(rng.random((90, 6)) > 0.5, 1, 0).astype(np.float32)
    y = (x[:, 0] > 0).astype(np.int32)
    arrays, history = fit(device, x, y, batch_size=16, validation_split=0.3)
    rows = clnn.data.sparse.SparseRows
    monkeypatch.setattr(clnn.train.loop, "CHUNK_BYTES", 16 * 64)
    monkeypatch.setattr(clnn.train.evaluation, "CHUNK_BYTES", 16 * 64)
    given, read = rows.__array__, []

    def noting(self, dtype=None, copy=None):
        found = given(self, dtype, copy)
        read.append(len(found))
        return found

    monkeypatch.setattr(rows, "__array__", noting)
    found, same = fit(device, sparse.csr_matrix(x), y, batch_size=16, validation_split=0.3)
    assert max(read) <= 32 and same["val_loss"] == pytest.approx(history["val_loss"], rel=1e-5)
    assert all(np.array_equal(p.numpy(), q.numpy()) for p, q in zip(arrays.parameters(), found.parameters()))


def test_what_is_wrong_in_a_file_is_found_before_training(device, tmp_path, monkeypatch):
    monkeypatch.setattr(mapped, "MAPPED_BYTES", 1)
    x = np.ones((40, 6))
    x[33, 2] = np.nan
    np.save(tmp_path / "x.npy", x)
    with pytest.raises(clnn.DataError, match=r"x\[.*nan"):
        fit(device, np.load(tmp_path / "x.npy", mmap_mode="r"), np.zeros(40, np.int32))


def test_dlpack_both_ways(device):
    x = np.arange(6.0).reshape(2, 3)
    with clnn.use(device):
        t = clnn.from_dlpack(x.astype(np.float32))
        assert t.dtype == np.float32 and t.device is device and np.array_equal(np.from_dlpack(t), x)
        assert np.array_equal(clnn.from_dlpack(t).numpy(), x)
        assert clnn.from_dlpack(np.arange(3)).dtype == np.int32
        if device.has_fp64:
            assert clnn.from_dlpack(x.T).dtype == np.float64 and np.array_equal(clnn.from_dlpack(x.T).numpy(), x.T)

        for wrong in ([1.0], "text", np.ones(2, complex), np.array(["a"])):
            with pytest.raises(clnn.DataError):
                clnn.from_dlpack(wrong)


class Elsewhere:
    """An array that says it lies on a device of another kind."""

    def __init__(self, kind):
        self.kind = kind

    def __dlpack__(self, **options):
        return np.ones(2, np.float32).__dlpack__()

    def __dlpack_device__(self):
        return self.kind, 0


def test_what_dlpack_asks_for_is_done_or_refused(device):
    for kind, name in {4: "OpenCL", 2: "CUDA", 99: "another kind"}.items():
        with pytest.raises(
            clnn.DataError, match=rf"a device of {name}, \({kind}, 0\) in DLPack's terms; bring it there"
        ):
            clnn.from_dlpack(Elsewhere(kind))
    assert clnn.from_dlpack(Elsewhere(3)).shape == (2,), "pinned memory is the host's"
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    t = clnn.tensor(x)
    with pytest.raises(clnn.DataError, match=r"clnn.from_pyopencl\(array\) shares it"):
        clnn.from_dlpack(t.to_pyopencl())
    fixed = x.copy()
    fixed.flags.writeable = False
    given = clnn.from_dlpack(fixed)
    fixed = None
    assert np.array_equal(given.numpy(), x)
    with pytest.raises(clnn.DataError, match="copy=False was asked for"):
        clnn.from_dlpack(x, copy=False)
    assert clnn.from_dlpack(t) is t and clnn.from_dlpack(t, copy=False) is t
    copy = clnn.from_dlpack(t, copy=True)
    copy.to_pyopencl().fill(0)
    assert np.array_equal(t.numpy(), x)
    for refused in ({"copy": False}, {"dl_device": (2, 0)}, {"stream": 1}):
        with pytest.raises(BufferError, match="a copy in host memory"):
            t.__dlpack__(**refused)
    for done in ({}, {"max_version": (1, 0)}, {"dl_device": (1, 0), "copy": True}):
        assert type(t.__dlpack__(**done)).__name__ == "PyCapsule"
    ours = np.from_dlpack(t)
    if ours.flags.writeable:  # a copy, which is the reader's
        ours[:] = 0
    assert np.array_equal(t.numpy(), x)
    for shape in ((), (0, 3)):
        assert np.from_dlpack(clnn.ones(shape)).shape == shape == clnn.from_dlpack(np.ones(shape, np.float32)).shape


def test_tensors_of_pytorch(device):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    with clnn.use(device):
        t = torch.arange(6.0).reshape(2, 3)
        ours = clnn.from_dlpack(t.T)
        assert np.array_equal(ours.numpy(), t.T.numpy()) and torch.equal(torch.from_dlpack(ours), t.T)
        assert torch.equal(torch.from_dlpack(ours, copy=True), t.T)
        with pytest.raises(BufferError, match="a copy in host memory"):
            torch.from_dlpack(ours, copy=False)
        for wrong in (t.to(torch.bfloat16), t.clone().requires_grad_()):
            with pytest.raises(clnn.DataError, match="from_dlpack takes"):
                clnn.from_dlpack(wrong)
