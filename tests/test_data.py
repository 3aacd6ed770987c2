"""Tests of the data sets, the IDX reader, the download and the checks; nothing here leaves this machine."""

import functools
import gzip
import hashlib
import http.server
import io
import os
import socket
import struct
import subprocess
import sys
import tarfile
import threading
from pathlib import Path

import numpy as np
import pytest

import clnn.data
from clnn.data import (
    check_features,
    check_labels,
    cifar10,
    datasets,
    digits,
    download,
    fashion_mnist,
    mnist,
    read_idx,
)
from clnn.data.datasets import IdxFile, Source
from clnn.errors import ConfigurationError, DataError

REAL = os.environ.get("CLNN_DATA_DIR", "")
needs_mnist = pytest.mark.skipif(not (Path(REAL) / "mnist").is_dir(), reason="no MNIST under CLNN_DATA_DIR")


@pytest.fixture(autouse=True)
def alone(monkeypatch, tmp_path):
    """No settings from outside, a cache of its own, and no host but this one."""
    for name in ("CLNN_DATA_DIR", "http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setenv("CLNN_CACHE_DIR", str(tmp_path / "cache"))
    resolve = socket.getaddrinfo

    def only_here(host, *args, **kwargs):
        if host != "127.0.0.1":
            raise socket.gaierror(f"no network in tests: {host}")
        return resolve(host, *args, **kwargs)

    monkeypatch.setattr(socket, "getaddrinfo", only_here)


# IDX


def idx(array, code=0x08):
    """The bytes of an array in the IDX format."""
    array = np.asarray(array)
    head = struct.pack(f">BBBB{array.ndim}I", 0, 0, code, array.ndim, *array.shape)
    return head + array.astype(array.dtype.newbyteorder(">")).tobytes()


def written(path, data):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


CUBE = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)


@pytest.mark.parametrize("pack", [bytes, gzip.compress], ids=["plain", "gzip"])
@pytest.mark.parametrize(
    ("code", "dtype"), [(0x08, "u1"), (0x09, "i1"), (0x0B, "i2"), (0x0C, "i4"), (0x0D, "f4"), (0x0E, "f8")]
)
def test_idx_round_trip(tmp_path, pack, code, dtype):
    array = CUBE.astype(dtype)
    y = read_idx(written(tmp_path / "a", pack(idx(array, code))))
    assert y.dtype == np.dtype(dtype) and y.dtype.isnative and y.flags.writeable
    np.testing.assert_array_equal(y, array)


def test_idx_empty_array(tmp_path):
    assert read_idx(written(tmp_path / "a", idx(np.zeros((0, 5), np.uint8)))).shape == (0, 5)


def test_idx_expected_shape_and_sum(tmp_path):
    path = written(tmp_path / "a.gz", gzip.compress(idx(CUBE)))
    read_idx(path, shape=(2, 3, 4), sha256=hashlib.sha256(idx(CUBE)).hexdigest())
    with pytest.raises(DataError, match=r"a\.gz: expected shape \(2, 3, 5\), found shape \(2, 3, 4\)"):
        read_idx(path, shape=(2, 3, 5))
    with pytest.raises(DataError, match=f"sha256 {'0' * 64}, found {hashlib.sha256(idx(CUBE)).hexdigest()}"):
        read_idx(path, sha256="0" * 64)


GOOD = idx(CUBE)
# The tests below are named by their data, and each of pytest-xdist's processes has to find the same names: no time in the header.
zipped = functools.partial(gzip.compress, mtime=0)
ALTERED = bytearray(zipped(GOOD))
ALTERED[-6] ^= 1  # gzip's own checksum


@pytest.mark.parametrize(
    ("data", "found"),
    [
        (b"", "expected an IDX magic number .* found an empty file"),
        (b"\0\0\x08", "expected an IDX magic number .* found 00 00 08"),
        (b"<!DOCTYPE html>", "expected an IDX magic number .* found 3c 21 44 4f"),
        (b"\0\0\x0a\x01" + GOOD[4:], "found 00 00 0a 01"),
        (b"\0\0\x08\x00", "found 00 00 08 00"),
        (b"\0\0\x08\xff" + bytes(4 * 255), "found 00 00 08 ff"),
        (GOOD[:10], "expected 3 dimensions in 12 bytes, found 6 bytes"),
        (GOOD[:-1], r"expected 24 bytes of data for shape \(2, 3, 4\), found 23"),
        (GOOD + b"\0", "expected 24 bytes of data .* found more"),
        (zipped(GOOD[:-1]), "expected 24 bytes of data .* found 23"),
        (zipped(GOOD + b"\0"), "expected 24 bytes of data .* found more"),
        (zipped(GOOD)[:-12], "expected a whole gzip file, found a truncated or altered one"),
        (zipped(GOOD)[:12], "expected a whole gzip file"),
        (zipped(GOOD) + b"tail", "expected a whole gzip file"),
        (bytes(ALTERED), "expected a whole gzip file.*CRC"),
        (struct.pack(">BBBB3I", 0, 0, 8, 3, *[2**32 - 1] * 3), "bytes of data for shape .* found 0"),
        (zipped(struct.pack(">BBBB3I", 0, 0, 8, 3, *[2**32 - 1] * 3)), "bytes of data for shape .* found 0"),
        (struct.pack(">BBBB4I", 0, 0, 8, 4, 0, *[2**32 - 1] * 3), "expected dimensions that NumPy can hold"),
    ],
)
def test_idx_damaged(tmp_path, data, found):
    path = written(tmp_path / "broken", data)
    with pytest.raises(DataError, match=found) as error:
        read_idx(path)
    assert str(path) in str(error.value) and "replace the file by an undamaged copy" in str(error.value)


def test_idx_absent(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_idx(tmp_path / "nowhere")


# Digits


def test_digits():
    (x, y), (x_test, y_test) = digits()
    assert (x.shape, y.shape, x_test.shape, y_test.shape) == ((1437, 64), (1437,), (360, 64), (360,))
    for features, labels in ((x, y), (x_test, y_test)):
        assert features.dtype == np.float32 and labels.dtype == np.int32
        assert features.min() == 0 and features.max() == 1
        assert set(labels.tolist()) == set(range(10))


def test_digits_split_never_changes():
    content = hashlib.sha256()
    for x, y in digits(raw=True):
        content.update(x.tobytes() + y.astype("<i4").tobytes())
    assert content.hexdigest() == "f618bea623765e9b9c176efa4756c8db0f9d1c8f55b087457ea8ff3618070fd9"


def test_digits_validation_and_raw():
    (x, y), (x_test, _) = digits()
    (xt, yt), (xv, yv), (xs, _) = digits(validation=300)
    np.testing.assert_array_equal(np.concatenate([xt, xv]), x)
    np.testing.assert_array_equal(np.concatenate([yt, yv]), y)
    np.testing.assert_array_equal(xs, x_test)
    assert len(xv) == 300
    (raw, labels), _ = digits(raw=True)
    assert raw.shape == (1437, 8, 8) and raw.dtype == np.uint8 and raw.max() == 16 and labels.dtype == np.int32
    np.testing.assert_array_equal(raw.reshape(-1, 64) / np.float32(16), x)


def test_digits_leaves_the_global_generator_alone():
    before = np.random.get_state()[1:3]  # noqa: NPY002
    digits()
    after = np.random.get_state()[1:3]  # noqa: NPY002
    assert before[1] == after[1] and np.array_equal(before[0], after[0])


@pytest.mark.parametrize("validation", [-1, 1437, 0.1, "10", None])
def test_bad_validation(validation):
    with pytest.raises(ConfigurationError, match=r"validation should be a whole number in \[0, 1437\), .*provided"):
        digits(validation=validation)


def test_digits_are_scikit_learn_s():
    source = pytest.importorskip("sklearn.datasets").load_digits()
    order = np.random.RandomState(0).permutation(1797)
    found = [np.concatenate(part) for part in zip(*digits(raw=True))]
    np.testing.assert_array_equal(found[0], source.images[order])
    np.testing.assert_array_equal(found[1], source.target[order])


# The real MNIST


@needs_mnist
def test_mnist(monkeypatch):
    monkeypatch.setenv("CLNN_DATA_DIR", REAL)
    (x, y), (x_test, y_test) = mnist()
    assert (x.shape, y.shape, x_test.shape, y_test.shape) == ((60000, 784), (60000,), (10000, 784), (10000,))
    assert x.dtype == np.float32 and y.dtype == np.int32 and x.flags.c_contiguous
    assert x.min() == 0 and x.max() == 1
    assert y[:5].tolist() == [5, 0, 4, 1, 9] and y_test[:5].tolist() == [7, 2, 1, 0, 4]
    assert abs(float(x.mean(dtype=np.float64)) - 0.1307) < 1e-4


@needs_mnist
def test_mnist_as_in_the_book(monkeypatch):
    monkeypatch.setenv("CLNN_DATA_DIR", REAL)
    (raw, labels), _ = mnist(raw=True)
    assert raw.shape == (60000, 28, 28) and raw.dtype == np.uint8
    (x, y), (xv, yv), (xs, _) = mnist(validation=10000, scale=256)
    assert (len(x), len(xv), len(xs)) == (50000, 10000, 10000)
    np.testing.assert_array_equal(x[:100], raw[:100].reshape(100, 784) / np.float32(256))
    np.testing.assert_array_equal(xv[-100:], raw[-100:].reshape(100, 784) / np.float32(256))
    np.testing.assert_array_equal(np.concatenate([y, yv]), labels)
    assert x.max() == 255 / 256


# A small data set in MNIST's clothes, its files and its mirrors

SHAPES = {
    "train-images-idx3-ubyte": (5, 2, 2),
    "train-labels-idx1-ubyte": (5,),
    "t10k-images-idx3-ubyte": (3, 2, 2),
    "t10k-labels-idx1-ubyte": (3,),
}
PLAIN = {
    name: idx((np.arange(np.prod(shape)) * (50 if len(shape) == 3 else 1)).astype(np.uint8).reshape(shape) % 251)
    for name, shape in SHAPES.items()
}
ZIPPED = {f"{name}.gz": gzip.compress(data, mtime=0) for name, data in PLAIN.items()}


def small(*mirrors, md5=False):
    files = (
        IdxFile(name, SHAPES[name], md5=hashlib.md5(ZIPPED[f"{name}.gz"]).hexdigest())
        if md5
        else IdxFile(name, SHAPES[name], sha256=hashlib.sha256(PLAIN[name]).hexdigest())
        for name in SHAPES
    )
    return Source("MNIST", "mnist", mirrors, tuple(files))


@pytest.fixture
def here(monkeypatch, tmp_path):
    """CLNN_DATA_DIR/mnist, with no mirror to fall back on."""
    monkeypatch.setattr(datasets, "MNIST", small())
    monkeypatch.setenv("CLNN_DATA_DIR", str(tmp_path))
    return tmp_path / "mnist"


def check_small(parts):
    (x, y), (x_test, y_test) = parts
    assert (
        (x.shape, x_test.shape) == ((5, 4), (3, 4)) and y.tolist() == [0, 1, 2, 3, 4] and y_test.tolist() == [0, 1, 2]
    )
    assert x[0, 3] == np.float32(150) / np.float32(255)


@pytest.mark.parametrize("dotted", [False, True], ids=["dash", "dot"])
@pytest.mark.parametrize("zipped", [False, True], ids=["plain", "gzip"])
def test_names_of_found_files(here, dotted, zipped):
    for name, data in (ZIPPED if zipped else PLAIN).items():
        written(here / (name.replace("-idx", ".idx") if dotted else name), data)
    check_small(mnist())


def test_three_way_split_and_scale(here):
    for name, data in PLAIN.items():
        written(here / name, data)
    (x, y), (xv, yv), _ = mnist(validation=2, scale=256)
    assert y.tolist() == [0, 1, 2] and yv.tolist() == [3, 4] and x[0, 3] == 150 / 256 and len(xv) == 2
    (raw, _), (raw_validation, _), _ = mnist(validation=2, raw=True)
    assert raw.shape == (3, 2, 2) and raw.dtype == np.uint8 and raw_validation.shape == (2, 2, 2)
    with pytest.raises(ConfigurationError, match="scale should be greater than 0, 0 was provided"):
        mnist(scale=0)
    with pytest.raises(ConfigurationError, match=r"\[0, 5\), 5 was provided"):
        mnist(validation=5)


def test_found_file_with_a_wrong_sum(here):
    for name, data in PLAIN.items():
        written(here / name, data)
    altered = PLAIN["t10k-images-idx3-ubyte"][:-1] + b"\xff"
    path = written(here / "t10k-images-idx3-ubyte", altered)
    with pytest.raises(DataError) as error:
        mnist()
    for part in (path, PLAIN[path.name], altered):
        assert (str(part) if isinstance(part, Path) else hashlib.sha256(part).hexdigest()) in str(error.value)


def test_found_labels_of_a_wrong_count(here):
    for name, data in PLAIN.items():
        written(here / name, data)
    written(here / "train-labels-idx1-ubyte", idx(np.zeros(4, np.uint8)))
    with pytest.raises(DataError, match=r"train-labels-idx1-ubyte: expected shape \(5,\), found shape \(4,\)"):
        mnist()


def test_labels_outside_the_classes(here, monkeypatch):
    source = small()
    monkeypatch.setattr(
        datasets, "FASHION_MNIST", source._replace(files=tuple(f._replace(sha256="") for f in source.files))
    )
    for name, data in PLAIN.items():
        written(here / name, data)
    written(here / "t10k-labels-idx1-ubyte", idx(np.array([0, 10, 2], np.uint8)))
    with pytest.raises(DataError, match=r"test labels of MNIST\[1\] is 10"):
        fashion_mnist()


def test_some_files_missing(here):
    for name in ("train-images-idx3-ubyte", "t10k-labels-idx1-ubyte"):
        written(here / name, PLAIN[name])
    with pytest.raises(DataError, match="lacks train-labels-idx1-ubyte, t10k-images-idx3-ubyte") as error:
        mnist()
    assert str(here) in str(error.value)


def test_data_dir_that_is_not_there(here, monkeypatch):
    monkeypatch.setenv("CLNN_DATA_DIR", str(here / "typo"))
    with pytest.raises(DataError, match=r"CLNN_DATA_DIR is .*typo.* not a folder"):
        mnist()


# Download


@pytest.fixture
def server():
    """A server on this machine: `files` maps a path to bytes or to an error code, `asked` lists what was asked."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.server.asked.append(self.path)
            answer = self.server.files.get(self.path, 404)
            if isinstance(answer, int):
                self.send_error(answer)
                return
            self.send_response(200)
            self.send_header("Content-Length", str(len(answer) + self.server.promise))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *args):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as serving:
        serving.files, serving.asked, serving.promise = {}, [], 0
        serving.url = f"http://127.0.0.1:{serving.server_port}"
        thread = threading.Thread(target=serving.serve_forever, args=(0.01,))
        thread.start()
        yield serving
        serving.shutdown()
        thread.join()


def serve(server, mirror, **changed):
    server.files |= {f"/{mirror}/{name}": changed.get(name[:8], data) for name, data in ZIPPED.items()}


def left_behind(tmp_path):
    return sorted(path.name for path in (tmp_path / "cache").rglob("*") if path.is_file())


@pytest.mark.parametrize("md5", [False, True], ids=["sha256", "md5"])
def test_download_then_cache(server, monkeypatch, tmp_path, md5):
    monkeypatch.setattr(datasets, "MNIST", small(f"{server.url}/a/", md5=md5))
    serve(server, "a")
    check_small(mnist())
    assert left_behind(tmp_path) == sorted(ZIPPED)
    assert len(server.asked) == 4
    check_small(mnist())
    assert len(server.asked) == 4


def test_download_where_the_data_folder_holds_other_sets(server, monkeypatch, tmp_path):
    monkeypatch.setenv("CLNN_DATA_DIR", str(tmp_path))
    monkeypatch.setattr(datasets, "MNIST", small(f"{server.url}/a/"))
    serve(server, "a")
    check_small(mnist())
    assert left_behind(tmp_path) == sorted(ZIPPED)


def test_download_fetches_only_what_is_missing(server, monkeypatch, tmp_path):
    monkeypatch.setattr(datasets, "MNIST", small(f"{server.url}/a/"))
    serve(server, "a")
    written(tmp_path / "cache/mnist/train-labels.idx1-ubyte", PLAIN["train-labels-idx1-ubyte"])
    check_small(mnist())
    assert len(server.asked) == 3


@pytest.mark.parametrize("failure", [404, 503, b"<html>log in first</html>", b"", ZIPPED["t10k-labels-idx1-ubyte.gz"]])
def test_second_mirror_after_a_first_that_fails(server, monkeypatch, tmp_path, failure):
    monkeypatch.setattr(datasets, "MNIST", small(f"{server.url}/a/", f"{server.url}/b/"))
    server.files["/a/train-images-idx3-ubyte.gz"] = failure
    serve(server, "b")
    check_small(mnist())
    assert server.asked[:2] == ["/a/train-images-idx3-ubyte.gz", "/b/train-images-idx3-ubyte.gz"]
    assert len(server.asked) == 5  # the mirror that worked is asked first from then on
    assert left_behind(tmp_path) == sorted(ZIPPED)


def test_second_mirror_after_a_first_nobody_answers_at(server, monkeypatch):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        dead = f"http://127.0.0.1:{closed.getsockname()[1]}/"
        monkeypatch.setattr(datasets, "MNIST", small(dead, f"{server.url}/b/"))
        serve(server, "b")
        check_small(mnist())


def test_downloads_go_by_the_proxies_of_now(server, monkeypatch):
    monkeypatch.setattr(datasets, "MNIST", small(f"{server.url}/a/"))
    monkeypatch.setattr("sys.stderr", None)  # as without a console, where no bar can be shown
    serve(server, "a")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("no_proxy", "")
    with pytest.raises(clnn.DataError, match="refused"):
        mnist()
    monkeypatch.delenv("http_proxy")
    check_small(mnist())


@pytest.mark.parametrize("md5", [False, True], ids=["sha256", "md5"])
@pytest.mark.parametrize(
    "bad",
    [
        ZIPPED["train-images-idx3-ubyte.gz"][:-9],
        gzip.compress(PLAIN["train-images-idx3-ubyte"][:-1] + b"\xff"),
        ZIPPED["t10k-images-idx3-ubyte.gz"],
    ],
    ids=["truncated", "altered", "another file"],
)
def test_corrupted_download_leaves_nothing_behind(server, monkeypatch, tmp_path, bad, md5):
    monkeypatch.setattr(datasets, "MNIST", small(f"{server.url}/a/", md5=md5))
    serve(server, "a")
    server.files["/a/train-images-idx3-ubyte.gz"] = bad
    with pytest.raises(DataError, match=f"{server.url}/a/train-images-idx3-ubyte.gz: expected"):
        mnist()
    assert left_behind(tmp_path) == []


def test_connection_that_ends_early(server, monkeypatch, tmp_path):
    monkeypatch.setattr(datasets, "MNIST", small(f"{server.url}/a/"))
    serve(server, "a")
    server.files["/a/train-images-idx3-ubyte.gz"] = ZIPPED["train-images-idx3-ubyte.gz"][:20]
    server.promise = 1000
    with pytest.raises(DataError, match="train-images-idx3-ubyte.gz: "):
        mnist()
    assert left_behind(tmp_path) == []


def test_server_that_never_stops(server, monkeypatch, tmp_path):
    monkeypatch.setattr(datasets, "MNIST", small(f"{server.url}/a/"))
    monkeypatch.setattr(download, "MAX_BYTES", 10)
    serve(server, "a")
    with pytest.raises(DataError, match="expected at most 10 bytes, found more"):
        mnist()


def test_server_that_says_nothing(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setattr(datasets, "MNIST", small(f"http://127.0.0.1:{silent.getsockname()[1]}/"))
        monkeypatch.setattr(download, "TIMEOUT", 0.1)
        with pytest.raises(DataError, match="timed out"):
            mnist()


def test_interrupted_write_leaves_nothing_behind(server, monkeypatch, tmp_path):
    def full(descriptor):
        raise OSError("no space left")

    monkeypatch.setattr(datasets, "MNIST", small(f"{server.url}/a/"))
    serve(server, "a")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DataError, match=r"cannot write .*no space left.*CLNN_CACHE_DIR"):
        mnist()
    assert left_behind(tmp_path) == []


def test_damaged_file_in_the_cache(server, monkeypatch, tmp_path):
    monkeypatch.setattr(datasets, "MNIST", small(f"{server.url}/a/"))
    path = written(tmp_path / "cache/mnist/train-images-idx3-ubyte.gz", b"half")
    serve(server, "a")
    with pytest.raises(DataError) as error:
        mnist()
    assert str(path) in str(error.value)


@pytest.mark.parametrize(("load", "folder"), [(mnist, "mnist"), (fashion_mnist, "fashion_mnist")])
def test_offline(load, folder, tmp_path):
    with pytest.raises(DataError) as error:
        load()
    message = str(error.value)
    assert "is not on this machine and could not be downloaded" in message
    assert f"into {tmp_path / 'cache' / folder}:\n" in message
    assert "\n" + "\n".join(ZIPPED) + "\n" in message
    assert "CLNN_DATA_DIR" in message and repr(folder) in message
    source = datasets.MNIST if load is mnist else datasets.FASHION_MNIST
    assert len(source.mirrors) >= 2 and all(mirror in message for mirror in source.mirrors)
    assert left_behind(tmp_path) == []


def test_default_cache_is_the_users(monkeypatch):
    platformdirs = pytest.importorskip("platformdirs")
    monkeypatch.delenv("CLNN_CACHE_DIR")
    assert datasets.cache_folder() == Path(platformdirs.user_cache_dir("clnn"))


# CIFAR-10, two records a file


def records(first):
    """Two records: labels `first` and `first` + 1, and pixels that say which file, channel, row and column they are of."""
    pixels = (np.arange(3 * 32 * 32) + first) % 256
    return b"".join(bytes([label]) + pixels.astype(np.uint8).tobytes() for label in (first, first + 1))


BINS = {name: records(i) for i, name in enumerate((*datasets.CIFAR10.train, *datasets.CIFAR10.test))}
INSIDE = datasets.CIFAR10.inside


def packed(files, kind=tarfile.REGTYPE):
    """The bytes of a .tar.gz."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size, member.type = len(data), kind
            archive.addfile(member, io.BytesIO(data))
    return stream.getvalue()


ARCHIVE = packed({f"{INSIDE}/readme.html": b"hello", **{f"{INSIDE}/{name}": data for name, data in BINS.items()}})


@pytest.fixture
def cifar(monkeypatch, tmp_path):
    """CLNN_DATA_DIR/cifar10 for files of two records, the sum of ARCHIVE, and no mirror."""
    monkeypatch.setenv("CLNN_DATA_DIR", str(tmp_path))
    source = datasets.CIFAR10._replace(records=2, mirrors=(), sha256=hashlib.sha256(ARCHIVE).hexdigest())
    monkeypatch.setattr(datasets, "CIFAR10", source)
    return tmp_path / "cifar10"


def check_cifar():
    (x, y), (x_test, y_test) = cifar10()
    assert (x.shape, x_test.shape) == ((10, 3, 32, 32), (2, 3, 32, 32))
    assert x.dtype == np.float32 and y.dtype == np.int32
    assert y.tolist() == [0, 1, 1, 2, 2, 3, 3, 4, 4, 5] and y_test.tolist() == [5, 6]
    assert x[0, 0, 1, 2] == np.float32(34) / np.float32(255) and x[2, 0, 0, 0] == np.float32(1) / np.float32(255)
    (raw, _), _, (raw_test, _) = cifar10(validation=4, raw=True)
    assert raw.shape == (6, 3, 32, 32) and raw.dtype == raw_test.dtype == np.uint8 and raw.flags.writeable
    assert raw[0, 2, 31, 31] == 255 and raw_test[1, 0, 0, 0] == 5


@pytest.mark.parametrize("inside", [".", INSIDE])
def test_cifar_from_files(cifar, inside):
    for name, data in BINS.items():
        written(cifar / inside / name, data)
    check_cifar()


def test_cifar_from_the_archive(cifar):
    written(cifar / "cifar-10-binary.tar.gz", ARCHIVE)
    check_cifar()
    assert len(list(cifar.iterdir())) == 1  # nothing is unpacked


def test_cifar_from_a_mirror_then_from_the_cache(cifar, server, monkeypatch, tmp_path):
    mirrors = (f"{server.url}/a/", f"{server.url}/b/")
    monkeypatch.setattr(datasets, "CIFAR10", datasets.CIFAR10._replace(mirrors=mirrors))
    server.files = {"/a/cifar-10-binary.tar.gz": ARCHIVE[:-9], "/b/cifar-10-binary.tar.gz": ARCHIVE}
    check_cifar()
    assert server.asked == ["/a/cifar-10-binary.tar.gz", "/b/cifar-10-binary.tar.gz"]
    assert left_behind(tmp_path) == ["cifar-10-binary.tar.gz"]
    written(tmp_path / "cache/cifar10/cifar-10-binary.tar.gz", ARCHIVE[:-9])
    with pytest.raises(DataError, match="expected content with sha256 .*; replace the file by an undamaged copy"):
        cifar10()


def test_cifar_offline(cifar, tmp_path):
    with pytest.raises(DataError, match="CIFAR-10 is not on this machine and could not be downloaded") as error:
        cifar10()
    message = str(error.value)
    assert str(tmp_path / "cache" / "cifar10") in message and "CLNN_DATA_DIR" in message and "test_batch.bin" in message


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (lambda data: data[:-1], "expected 6146 bytes, 2 records of 3073, found 6145; replace the file"),
        (lambda data: data + b"\0", "expected 6146 bytes, 2 records of 3073, found 6147"),
        (lambda data: b"", "found 0"),
        (lambda data: data[:3073] + b"\x0a" + data[3074:], r"labels of .*data_batch_3.bin\[1\] is 10, outside 0 to 9"),
    ],
    ids=["short", "long", "empty", "label"],
)
def test_cifar_damaged(cifar, monkeypatch, change, found):
    files = {**BINS, "data_batch_3.bin": change(BINS["data_batch_3.bin"])}
    archive = packed({f"{INSIDE}/{name}": data for name, data in files.items()})
    path = written(cifar / "cifar-10-binary.tar.gz", archive)
    source = datasets.CIFAR10._replace(sha256=hashlib.sha256(archive).hexdigest())
    monkeypatch.setattr(datasets, "CIFAR10", source)
    with pytest.raises(DataError, match=found) as error:
        cifar10()
    assert str(path) in str(error.value)
    for name, data in files.items():
        written(cifar / name, data)
    with pytest.raises(DataError, match=found):
        cifar10()


def test_cifar_files_missing(cifar):
    written(cifar / "data_batch_2.bin", BINS["data_batch_2.bin"])
    with pytest.raises(DataError, match="lacks data_batch_1.bin, data_batch_3.bin, .*, test_batch.bin"):
        cifar10()


@pytest.mark.parametrize(
    ("archive", "found"),
    [
        (packed({f"../{name}": data for name, data in BINS.items()}), "it lacks cifar-10-batches-bin/data_batch_1.bin"),
        (packed({f"{INSIDE}/{name}": b"" for name in BINS}, tarfile.DIRTYPE), "it lacks"),
        (gzip.compress(b"no archive" * 200), "expected a whole .tar.gz, found"),
        (b"<html>", "expected a whole .tar.gz, found"),
        (ARCHIVE[: len(ARCHIVE) // 2], "expected a whole .tar.gz, found"),
    ],
    ids=["elsewhere", "folders", "no tar", "no gzip", "half"],
)
def test_cifar_archives_that_are_none(cifar, monkeypatch, tmp_path, archive, found):
    """Where even the sum is right: nothing is written, whatever names are inside."""
    written(cifar / "cifar-10-binary.tar.gz", archive)
    monkeypatch.setattr(datasets, "CIFAR10", datasets.CIFAR10._replace(sha256=hashlib.sha256(archive).hexdigest()))
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(DataError, match=found):
        cifar10()
    assert sorted(tmp_path.rglob("*")) == before


# Checks


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", ["f2", "f4", "f8", ">f4"])
def test_features_not_finite(bad, dtype):
    x = np.zeros((300, 20, 30), dtype)
    check_features(x)
    x[299, 19, 29] = bad
    x[217, 3, 29] = bad
    with pytest.raises(DataError, match=rf"^images\[217, 3, 29\] is {bad}, .*nan_to_num"):
        check_features(x, "images")


@pytest.mark.parametrize("layout", [np.asfortranarray, lambda x: x[::-1], lambda x: x.T[::2]])
def test_features_in_any_layout(layout):
    x = layout(np.zeros((400, 500), np.float32))
    x[x.shape[0] - 1, 0] = np.nan
    x[150, 150] = np.nan
    x[150, 149] = np.inf
    with pytest.raises(DataError, match=r"^x\[150, 149\] is inf"):
        check_features(x)


def test_features_that_a_type_cannot_hold_are_told_as_such(device):
    """They were told to be inf, which they are not where they come from."""
    net = clnn.Sequential([clnn.Dense(1)], input_shape=2)
    with (
        pytest.warns(RuntimeWarning, match="overflow"),
        pytest.raises(DataError, match=r"is inf, as what exceeds 3.4e\+38"),
    ):
        net.predict(np.full((3, 2), 1e300))
    with pytest.raises(DataError, match=r"is nan, and"):
        net.predict(np.full((3, 2), np.nan))


def test_features_without_dimensions_or_elements():
    check_features(np.zeros((0, 3), np.float32))
    check_features(np.float32(1))
    with pytest.raises(DataError, match=r"x\[\] is nan"):
        check_features(np.float32("nan"))


def test_features_of_other_types():
    check_features(np.ones((2, 2), np.uint8))
    check_features(np.ones((2, 2), bool))
    for x in (np.array(["a"]), np.array([None]), np.array([1j])):
        with pytest.raises(DataError, match=r"pixels has dtype .* convert it"):
            check_features(x, "pixels")


@pytest.mark.parametrize("dtype", ["i1", "u1", "i4", "i8", "u8", ">i4"])
def test_labels(dtype):
    y = np.arange(100_000).astype(dtype) % 10
    check_labels(y, 10)
    check_labels(np.zeros(0, dtype), 10)
    y[90_001], y[90_002] = 10, 11
    with pytest.raises(DataError, match=r"^y\[90001\] is 10, outside 0 to 9, .*renumber"):
        check_labels(y, 10)


def test_labels_negative_or_in_two_dimensions():
    with pytest.raises(DataError, match=r"^targets\[1, 0\] is -1, outside 0 to 2"):
        check_labels(np.array([[0, 1], [-1, 2]]), 3, "targets")


@pytest.mark.parametrize("y", [np.zeros(3), np.zeros(3, bool), np.array(["cat"])])
def test_labels_that_are_no_integers(y):
    with pytest.raises(DataError, match=r"y has dtype .* class labels are integers"):
        check_labels(y, 10)


# The package


def test_import_is_light():
    """Measured without clnn/__init__.py, so that only what clnn.data itself imports counts."""
    code = """
import sys, types, numpy
sys.modules["clnn"] = package = types.ModuleType("clnn")
package.__path__ = [sys.argv[1]]
before = set(sys.modules)
import clnn.data
print(*set(sys.modules) - before)
"""
    folder = str(Path(clnn.data.__file__).parents[1])
    run = subprocess.run([sys.executable, "-c", code, folder], capture_output=True, text=True, check=True)
    loaded = set(run.stdout.split())
    assert "clnn.data.datasets" in loaded
    assert not loaded & {"pyopencl", "sklearn", "urllib.request", "tqdm", "platformdirs"}


def test_public_names_are_documented():
    for name in clnn.data.__all__:
        assert getattr(clnn.data, name).__doc__
