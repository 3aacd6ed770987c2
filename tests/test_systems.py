"""Nothing assumes Linux: clnn works without the names that only some systems have, and names the encoding of every text."""

import ast
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ELSEWHERE = """
import builtins, importlib, os, signal, sys

for name in ("numpy", "pyopencl.array", "safetensors.numpy", "tqdm.auto", "platformdirs", "multiprocessing.connection"):
    importlib.import_module(name)  # what others need, is theirs
for name in ("fork", "forkpty", "sched_getaffinity", "sched_setaffinity", "sysconf", "getuid", "geteuid", "getgid", "killpg",
             "register_at_fork", "chown", "mkfifo", "getloadavg", "setsid", "getpgid", "nice", "waitid"):
    if hasattr(os, name):
        delattr(os, name)
for name in ("SIGKILL", "SIGHUP", "SIGALRM", "SIGUSR1", "SIGUSR2", "SIGSTOP", "SIGQUIT", "alarm", "pthread_sigmask"):
    if hasattr(signal, name):
        delattr(signal, name)
for name in ("fcntl", "resource", "pwd", "grp", "termios", "pty", "tty"):
    sys.modules[name] = None
import platform
platform.libc_ver = lambda *_: ("", "")
given = builtins.open

def opened(file, *args, **options):
    if str(file).startswith(("/proc", "/sys", "/dev/dri")):
        raise FileNotFoundError(2, "no such file", file)
    return given(file, *args, **options)

builtins.open = opened
"""
WORK = """
import importlib, pkgutil, warnings

import numpy as np

import clnn

for module in pkgutil.walk_packages(clnn.__path__, "clnn."):
    if not module.name.endswith(("__main__", "worker", "sklearn")) and ".bench" not in module.name:
        try:
            importlib.import_module(module.name)
        except ImportError as error:  # an extra that is not installed
            assert error.name not in ("fcntl", "resource", "pwd", "grp", "termios", "pty", "tty"), error
x = np.random.default_rng(0).normal(size=(40, 6)).astype(np.float32)
y = (x[:, 0] > 0).astype(np.int32)
net = clnn.Sequential([clnn.Dense(8, "relu"), clnn.Dense(2)], input_shape=6, seed=0)
run = dict(loss="cross_entropy", optimizer="adam", epochs=4, batch_size=8, progress=False)
net.fit(clnn.data.Batches(x, y, 8, workers=2), callbacks=[clnn.Checkpoint("run"), clnn.CSVLog("log.csv")],
        **{key: value for key, value in run.items() if key != "batch_size"})
for _ in range(2):
    net.save("net.safetensors")
    net.plot("net.svg")
assert np.array_equal(clnn.load("net.safetensors").predict(x), net.predict(x))
assert clnn.device().memory.limit > 0 and sorted(one.name for one in __import__("pathlib").Path("run").iterdir())
from clnn.tools import cli
cli.main(["devices"])
print("done")
"""


def test_without_what_only_some_systems_have(tmp_path):
    paths = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    ascii_by_default = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    found = subprocess.run(
        [sys.executable, "-c", ELSEWHERE + WORK],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": paths, **ascii_by_default}, capture_output=True,
        encoding="utf-8", timeout=300,
    )  # fmt: skip
    assert found.returncode == 0 and found.stdout.endswith("done\n"), found.stdout[-500:] + found.stderr[-3000:]


def test_every_text_file_is_opened_with_its_encoding():
    """Windows' default is another one."""
    for file in [*(ROOT / "clnn").rglob("*.py"), *(ROOT / "examples").rglob("*.py")]:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call) or "encoding" in (given := {one.arg: one.value for one in node.keywords}):
                continue
            called = ast.unparse(node.func)
            mode = ast.unparse(given.get("mode", node.args[1] if len(node.args) > 1 else ast.Constant("r")))
            text = called.endswith((".read_text", ".write_text")) or (called == "open" and "b" not in mode)
            assert not text, f"{file}:{node.lineno}: {ast.unparse(node)} names no encoding"
