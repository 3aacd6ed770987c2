"""Programs compiled as one text: the same kernels, whatever their files name, and a note of what the driver keeps."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import clnn
from clnn.runtime.bundles import Bundles, apart, names_in
from clnn.runtime.program import Programs, kernel_folder, source_for

ROOT = Path(__file__).parent.parent
KEYS = [("elementwise", "float", (("ONE", one),)) for one in range(3)]


def test_texts_follow_each_other(device):
    """What one defines, names or makes is unknown to the next: twice the same file, and files that include others."""
    first, second = KEYS[0], ("reduce", "float", ())
    programs = Programs(device.context, device.pocl_version)
    programs.load([first, second, KEYS[1]])
    (program, name), (same, other) = programs.build(*first), programs.build(*second)
    assert program is same and (name, other) == ("p0_", "p1_"), "they were built as one text"
    kernels = program.kernel_names.split(";")
    assert sum(one.startswith("p0_") for one in kernels) == sum(one.startswith("p2_") for one in kernels) > 1


@pytest.mark.parametrize("real", ["float", "double"])
def test_every_name_of_a_file_is_its_own(real):
    for path in sorted(kernel_folder().glob("*.cl")):
        text = source_for(path.stem, real)
        macros, others = names_in(text)
        lines = apart(text, "p0", {"REAL": real}).splitlines()
        defined = {line.split()[1].split("(")[0] for line in lines if line.startswith("#define ")}
        ended = {line.split()[1] for line in lines if line.startswith("#undef ")}
        assert defined <= ended, f"{path.name}: {sorted(defined - ended)} would be known to the next text"
        assert macros | others <= ended


def random_values(device, keys, rng):
    """What kernels of these programs compute of random numbers."""
    x, n = rng.standard_normal(100).astype(np.float32), 100
    found = []
    for file, real, defines in keys:
        block = device.allocate(4 * n)
        device.upload(x, block)
        device.launch(file, "fill", (n,), n, block, float(x[0]), real=real, **dict(defines))
        found.append(device.read(block, np.empty(n, np.float32)))
    return found


def test_they_compute_the_same(device, monkeypatch, rng):
    keys = KEYS
    state = rng.bit_generator.state
    alone = random_values(device, keys, rng)
    rng.bit_generator.state = state
    programs = Programs(device.context, device.pocl_version)
    programs.load(keys)
    monkeypatch.setitem(vars(device), "programs", programs)
    together = random_values(device, keys, rng)
    assert len({program for program, _ in map(programs.build, *zip(*keys))}) == 1
    for one, other in zip(alone, together):
        np.testing.assert_array_equal(one, other)


def test_one_that_does_not_build_spoils_no_other(device):
    programs = Programs(device.context, device.pocl_version)
    wrong = ("elementwise", "floaty", ())
    programs.load([KEYS[0], wrong, KEYS[1]])
    assert programs.build(*KEYS[0])[1] == "", "each is built alone"
    with pytest.raises(clnn.BuildError, match="REAL=floaty"):
        programs.build(*wrong)


def test_notes(device, tmp_path):
    """They are of one device and the same kernels; a damaged line, and a folder that may not be written, cost no more."""
    one = Bundles(tmp_path, lambda: ("a device", "kernels"))
    assert not one.keeps(KEYS[0]) and one.of(KEYS[0]) == (KEYS[0],)
    one.note(KEYS[:2])
    one.note(KEYS[2:])
    one.note(KEYS[2:])
    (file,) = tmp_path.iterdir()
    assert len(file.read_text().splitlines()) == 2
    with file.open("ab") as more:
        more.write(b'[["half a li\n[1, 2]\n{"a": 3}\n\n\xff\xfe\n[[["a", 1, 2]]]\n' + b"[" * 99_999 + b"\n")
    again = Bundles(tmp_path, lambda: ("a device", "kernels"))
    assert [again.of(key) for key in KEYS] == [tuple(KEYS[:2]), tuple(KEYS[:2]), (KEYS[2],)]
    assert all(map(again.keeps, KEYS))
    for names in (("another device", "kernels"), ("a device", "other kernels")):
        other = Bundles(tmp_path, lambda names=names: names)
        assert not other.keeps(KEYS[0])
    tmp_path.joinpath(file.name).write_text('[["no such file", "float", []], ["elementwise", "float", []]]')
    damaged = Bundles(tmp_path, lambda: ("a device", "kernels"))
    programs = Programs(device.context, device.pocl_version, damaged)
    assert programs.build("elementwise", "float", ())[1] == "", "built alone"
    nowhere = Bundles(tmp_path / "none" / "there", lambda: ("a device",))
    nowhere.note(KEYS)
    assert nowhere.of(KEYS[0]) == tuple(KEYS), "this process knows"
    Bundles().note(KEYS)


TRAIN = """
import numpy as np, clnn
from clnn.runtime import program
texts = []
program.listening.append(lambda what, seconds: texts.append(what) if seconds is None else None)
layers = [clnn.Dense(9, "tanh"), clnn.BatchNorm(), clnn.Dropout(0.2), clnn.Dense(3)]
net = clnn.Sequential(layers, input_shape=5, seed=1)
x = np.random.default_rng(0).standard_normal((20, 5)).astype("f")
history = net.fit(x, np.arange(20) % 3, loss="cross_entropy", optimizer="adam", epochs=2, batch_size=10, progress=None, seed=3)
print(len(texts), history.history["loss"])
"""


def test_a_first_step_is_few_texts_and_a_second_process_finds_them(device, tmp_path):
    if device.kind != "cpu" or device.pocl_version == (0, 0):
        pytest.skip("programs become one text for PoCL")
    environ = {**os.environ, "CLNN_COMPILERS": "0", "CLNN_SELF_TEST": "0", "POCL_CACHE_DIR": str(tmp_path)}

    def trained():
        done = subprocess.run(
            [sys.executable, "-c", TRAIN], cwd=ROOT, env=environ, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, done.stderr
        texts, _, losses = done.stdout.partition(" ")
        return int(texts), losses, len([*tmp_path.glob("??/*/program.bc")])

    first, second = trained(), trained()
    assert first == second, "the same texts, the same losses, and nothing new was compiled"
    assert first[0] <= 8
