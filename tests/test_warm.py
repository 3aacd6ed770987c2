"""`clnn warm`: what is compiled ahead, and what it tells."""

import numpy as np
import pytest

import clnn
from clnn.runtime import program
from clnn.tools import cli, warm


def test_it_compiles_what_a_saved_model_needs(tmp_path, capsys):
    net = clnn.Sequential([clnn.Dense(7, "relu"), clnn.Dense(3)], input_shape=5, seed=1)
    net.save(tmp_path / "net.safetensors")
    clnn.device().programs._programs.clear()  # as in a fresh process
    clnn.device().programs._kernels.clear()
    assert cli.main(["warm", str(tmp_path / "net.safetensors")]) == 0
    _, head, *rows = capsys.readouterr().out.splitlines()
    assert head.startswith(str(tmp_path)) and f"of which {len(rows)} programs" in head
    assert any("kernels/" in row for row in rows) and not program.listening
    told = []
    program.listening.append(lambda what, seconds: told.append(what))
    try:
        net.predict(np.zeros((1, 5), np.float32))
        net.compiled()
    finally:
        program.listening.clear()
    assert not told  # all of it is there


def test_names_that_are_nothing():
    with pytest.raises(
        clnn.ConfigurationError,
        match=r"'nothing' is neither a file of net.save \(there is no file nothing\) nor one of the workloads .*nielsen",
    ):
        warm.warm(["nielsen", "nothing"])


def test_a_file_of_onnx_says_who_compiles_for_it(tmp_path):
    (tmp_path / "net.onnx").write_bytes(b"")
    with pytest.raises(clnn.ConfigurationError, match=r"clnn run .*net.onnx uses an ONNX file once"):
        warm.warm([str(tmp_path / "net.onnx")])


def test_a_stateful_model_answers_one_sequence_and_several(tmp_path, capsys):
    net = clnn.Sequential([clnn.LSTM(3, stateful=True), clnn.Dense(2)], input_shape=(4, 2), seed=1)
    net.save(tmp_path / "net.safetensors")
    assert cli.main(["warm", str(tmp_path / "net.safetensors")]) == 0
    assert "programs" in capsys.readouterr().out
