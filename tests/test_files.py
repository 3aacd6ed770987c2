"""Files are written whole or not at all, through links, with the mode that they had, and nothing stays half-written."""

import multiprocessing
import os
import re
import signal
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

import clnn
from clnn import checkpoint, files
from clnn.files import PART, write_atomically
from clnn.tools import doctor

posix = pytest.mark.skipif(sys.platform == "win32", reason="no symbolic links, modes and signals")


def parts(folder):
    return [file.name for file in folder.iterdir() if file.name.endswith(".part")]


@posix
@pytest.mark.parametrize("target", ["there", "dangling", "relative", "chain"])
def test_a_symbolic_link_stays_one(tmp_path, target):
    store, link = tmp_path / "store" / "model", tmp_path / "links" / "model"
    store.parent.mkdir(), link.parent.mkdir()
    if target != "dangling":
        store.write_bytes(b"old")
    if target == "chain":
        (tmp_path / "middle").symlink_to(store)
        link.symlink_to(tmp_path / "middle")
    else:
        link.symlink_to("../store/model" if target == "relative" else store)
    write_atomically(link, b"new")
    assert link.is_symlink() and not store.is_symlink() and store.read_bytes() == b"new" == link.read_bytes()
    assert not parts(store.parent) and not parts(link.parent)


@posix
def test_a_model_is_saved_through_a_link_and_keeps_its_mode(device, tmp_path):
    net = clnn.Sequential([clnn.Dense(2)], input_shape=3)
    net.save(tmp_path / "net-1")
    (tmp_path / "net-1").chmod(0o604)
    (tmp_path / "latest").symlink_to("net-1")
    net.layers[0].load_state_dict({"w": np.ones((3, 2)), "b": np.zeros(2)})
    net.save(tmp_path / "latest")
    assert (tmp_path / "latest").is_symlink() and stat.S_IMODE((tmp_path / "net-1").stat().st_mode) == 0o604
    np.testing.assert_array_equal(clnn.load(tmp_path / "net-1").layers[0].w, np.ones((3, 2)))


@posix
@pytest.mark.parametrize("mode", [0o600, 0o640, 0o664, 0o755, 0o400])
def test_the_mode_of_a_file_stays(tmp_path, mode):
    file = tmp_path / "file"
    file.write_bytes(b"old")
    file.chmod(mode)
    write_atomically(file, b"new")
    assert file.read_bytes() == b"new" and stat.S_IMODE(file.stat().st_mode) == mode


@posix
def test_a_new_file_has_the_usual_mode(tmp_path):
    before = os.umask(0o027)
    try:
        write_atomically(tmp_path / "in" / "a" / "folder", b"x")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "in" / "a" / "folder").stat().st_mode) == 0o640


@posix
def test_what_is_no_file_is_left_alone(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "pipe", Path("/dev/null")):
        with pytest.raises(OSError, match="is no regular file"):
            write_atomically(path, b"x")
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode) and stat.S_ISCHR(os.stat("/dev/null").st_mode)
    net = clnn.Sequential([clnn.Dense(2)], input_shape=3)
    with pytest.raises(clnn.CheckpointError, match="cannot be written"):
        net.save(tmp_path)


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    file = tmp_path / "file"
    file.write_bytes(b"old")

    def full(*_):
        raise OSError("no space left")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="no space left"):
        write_atomically(file, b"new")
    assert file.read_bytes() == b"old" and not parts(tmp_path)


def write_for_ever(path, size):
    count = 0
    while True:
        count += 1
        write_atomically(Path(path), count.to_bytes(8, "big") * (size // 8))


def whole(data):
    return len({data[i : i + 8] for i in range(0, len(data), 8)}) == 1


@posix
def test_killed_writers_leave_nothing_for_long(tmp_path):
    file, size = tmp_path / "model", 1 << 22
    context = multiprocessing.get_context("spawn")
    left = 0
    for _ in range(4):
        writers = [context.Process(target=write_for_ever, args=(str(file), size)) for _ in range(2)]
        for one in writers:
            one.start()
        deadline = time.monotonic() + 60
        while not (file.exists() and parts(tmp_path)) and time.monotonic() < deadline:
            time.sleep(0.002)
        for one in writers:
            os.kill(one.pid, signal.SIGKILL)
            one.join()
        left += len(parts(tmp_path))
        data = file.read_bytes()
        assert len(data) == size and whole(data)
    write_atomically(file, b"done")
    assert left and not parts(tmp_path) and file.read_bytes() == b"done"


@posix
def test_what_is_being_written_is_not_swept(tmp_path, monkeypatch):
    """Others save into the same folder while one file is written slowly."""
    replaced, went_on = threading.Event(), threading.Event()
    fsync = os.fsync

    def slow(number):
        if threading.current_thread().name == "slow":
            replaced.set()
            went_on.wait(30)
        fsync(number)

    monkeypatch.setattr(os, "fsync", slow)
    one = threading.Thread(target=write_atomically, args=(tmp_path / "slow", b"slow"), name="slow")
    one.start()
    assert replaced.wait(30)
    for i in range(5):
        write_atomically(tmp_path / f"fast-{i}", b"fast")
    (tmp_path / "notes.part").write_bytes(b"not ours")
    (tmp_path / "gone.clnn-0123abcd.part").write_bytes(b"left by a killed process")
    write_atomically(tmp_path / "slow", b"fast")
    went_on.set()
    one.join()
    assert (tmp_path / "slow").read_bytes() == b"slow" and parts(tmp_path) == ["notes.part"]
    assert PART.search("x.clnn-0123abcd.part") and not PART.search("x.0123abcd.part")


def test_many_threads_write_one_file(tmp_path):
    file = tmp_path / "file"
    threads = [
        threading.Thread(target=lambda i=i: [write_atomically(file, bytes([i]) * 8000) for _ in range(20)])
        for i in range(4)
    ]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert len(file.read_bytes()) == 8000 and whole(file.read_bytes()) and not parts(tmp_path)


@posix
def test_names_of_every_kind(device, tmp_path, monkeypatch):
    net = clnn.Sequential([clnn.Dense(2)], input_shape=3)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in (os.fsencode(tmp_path / "bytes"), tmp_path / ("n" * 255), tmp_path / "modèle 模型", "~/home"):
        net.save(name)
        np.testing.assert_array_equal(clnn.load(name).layers[0].w, net.layers[0].w)
    assert (tmp_path / "home").is_file() and not parts(tmp_path)
    (tmp_path / "circle").symlink_to("circle")
    for wrong in (tmp_path / "circle", tmp_path / ("n" * 256), tmp_path / "bytes" / "below"):
        with pytest.raises(clnn.CheckpointError, match="cannot be written"):
            net.save(wrong)
    assert (tmp_path / "circle").is_symlink()


def test_weights_that_load_would_refuse_are_not_written(device, tmp_path):
    net = clnn.Sequential([clnn.Dense(2)], input_shape=3)
    net.save(tmp_path / "net")
    before = (tmp_path / "net").read_bytes()
    net.layers[0].b = clnn.tensor([1.0, np.inf], requires_grad=True)
    with pytest.raises(clnn.CheckpointError, match="0.b holds values that are not finite.*nothing was written"):
        net.save(tmp_path / "net")
    assert (tmp_path / "net").read_bytes() == before
    with pytest.raises(clnn.CheckpointError, match="w holds values that are not finite"):
        net.layers[0].load_state_dict({"w": np.full((3, 2), 1e300), "b": np.zeros(2)})


@pytest.mark.parametrize(
    ("key", "value"),
    [("loss", {"loss": "nope"}), ("loss", ["mse"]), ("loss", {"loss": "huber", "delta": "x"}), ("optimizer", []),
     ("optimizer", "adam"), ("optimizer", {"name": ["adam"]}), ("frozen", 5), ("model", {"class": "Sequential", "version": 0})],
    ids=str,
)  # fmt: skip
def test_headers_that_say_nonsense(device, tmp_path, key, value):
    clnn.Sequential([clnn.Dense(2)], input_shape=3).save(tmp_path / "net")
    arrays, header = checkpoint.read(tmp_path / "net")
    checkpoint.write(tmp_path / "net", arrays, {**header, key: value})
    with pytest.raises(clnn.CheckpointError):
        clnn.load(tmp_path / "net")


def test_doctor_knows_every_variable_that_clnn_reads():
    folder = Path(clnn.__file__).parent
    named = set()
    for file in folder.rglob("*.py"):
        named |= set(re.findall(r"[\"'`]?(CLNN_[A-Z0-9_]*[A-Z0-9])\b", file.read_text(encoding="utf-8")))
    assert named - {"CLNN_TEST"} == set(doctor.VARIABLES)


@pytest.mark.parametrize("name", doctor.VARIABLES)
def test_doctor_names_a_variable_that_is_set(monkeypatch, name):
    monkeypatch.setenv(name, "1")
    found = {finding.text: finding.verdict for finding in doctor.environment()}
    assert found[f"{name}=1"] == doctor.OK


# -- paths that the system refuses ---------------------------------------------------------------------------------------
REFUSED = {
    "too long": "/tmp/" + "a" * 300,
    "a zero byte": "a\0b",
    "no such user": "~nobody-of-that-name/x",
    "no text": "\ud800",
}


@posix
@pytest.mark.parametrize("path", REFUSED.values(), ids=REFUSED)
@pytest.mark.parametrize("use", ["load", "save", "safetensors", "resume", "checkpoint", "onnx", "profile"])
def test_what_the_system_refuses_is_an_error_of_clnns(device, path, use):
    net = clnn.Sequential([clnn.Dense(2)], input_shape=2)
    x = np.ones((2, 2), np.float32)
    uses = {
        "load": clnn.load,
        "save": net.save,
        "safetensors": lambda path: clnn.interop.from_safetensors(path, net),
        "resume": lambda path: net.fit(x, x, loss="mse", optimizer="sgd", resume=path, progress=False),
        "checkpoint": lambda path: net.fit(
            x, x, loss="mse", optimizer="sgd", callbacks=[clnn.Checkpoint(path)], progress=False
        ),
        "onnx": clnn.onnx.load,
        "profile": clnn.profile(peak=1.0).save,
    }
    if use == "onnx":
        pytest.importorskip("onnx")
    with pytest.raises(clnn.ClnnError):
        uses[use](path)


@posix
def test_a_cache_folder_that_cannot_be_is_an_error(monkeypatch):
    monkeypatch.setenv("CLNN_CACHE_DIR", REFUSED["no such user"])
    with pytest.raises(clnn.ConfigurationError, match="CLNN_CACHE_DIR='~nobody-of-that-name/x'"):
        files.cache_folder()


@posix
@pytest.mark.parametrize("said", [RuntimeError, "~/.cache/clnn"])
def test_a_user_without_a_home_has_that_of_containers(monkeypatch, said):
    def user_cache_dir(_):
        if said is RuntimeError:
            raise RuntimeError("could not determine the home directory")
        return said

    monkeypatch.delenv("CLNN_CACHE_DIR", raising=False)
    monkeypatch.setattr("platformdirs.user_cache_dir", user_cache_dir)
    assert files.cache_folder() == Path("/.cache/clnn")


@posix
def test_a_home_where_nothing_can_be_written_costs_pyopencl_its_cache_alone(tmp_path):
    """Its kernels have a file in the user's cache folder, without which it ends in an error."""
    (tmp_path / "file").write_text("")
    environ = {name: value for name, value in os.environ.items() if name not in ("XDG_CACHE_HOME", "PYOPENCL_NO_CACHE")}
    environ.setdefault("POCL_CACHE_DIR", os.path.expanduser("~/.cache/pocl/kcache"))
    environ |= {"HOME": str(tmp_path / "file"), "CLNN_CACHE_DIR": str(files.cache_folder())}
    program = "import os, clnn; print((clnn.ones(3) + 1).sum().item(), os.environ.get('PYOPENCL_NO_CACHE'))"
    done = subprocess.run([sys.executable, "-c", program], env=environ, capture_output=True, text=True, timeout=100)
    assert (done.stdout.split(), done.returncode) == (["6.0", "1"], 0), done.stderr
