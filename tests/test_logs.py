"""Callbacks that end fit, set its rate, and write down what it measures: alone, and where a run goes on."""

import csv
import logging
import math
import re
import subprocess
import sys
import time
import types

import numpy as np
import pytest

import clnn

X = np.random.default_rng(0).standard_normal((60, 6)).astype(np.float32)
Y = (X[:, 0] > 0).astype(np.int32)


def made(device, *layers):
    with clnn.use(device):
        return clnn.Sequential([*layers] or [clnn.Dense(4, "tanh"), clnn.Dense(2)], input_shape=6, seed=0)


def fit(net, epochs=3, callbacks=(), optimizer=None, **options):
    given = {"loss": "cross_entropy", "batch_size": 20, "seed": 1, "progress": False}
    return net.fit(X, Y, epochs=epochs, callbacks=callbacks, optimizer=optimizer or clnn.SGD(0.1), **given | options)


class Stop(Exception):
    """What ends a run half-way here."""


def stop_at(epoch):
    def end(model, now, logs):
        if now == epoch:
            raise Stop

    return clnn.Lambda(on_epoch_end=end)


def stop_training_at(epoch):
    return clnn.Lambda(on_epoch_end=lambda model, now, _: setattr(model, "stop_training", now == epoch))


# -- where a loss is not finite --------------------------------------------------------------------------------------------
@pytest.mark.parametrize("bad", [0, 2])
def test_nan_ends_fit_with_the_weights_of_the_epoch_before(device, bad):
    def poison(model, epoch):
        if epoch == bad:
            model.optimizer.lr = 1e30

    def run(callbacks, epochs):
        with clnn.use(device):
            net = clnn.Sequential([clnn.Dense(4, "relu"), clnn.BatchNorm(), clnn.Dense(2)], input_shape=6, seed=0)
        return net, fit(net, epochs, callbacks)

    ended = clnn.TerminateOnNaN()
    net, history = run([clnn.Lambda(on_epoch_begin=poison), ended], 6)
    good, _ = run([], bad)
    assert ended.stopped_epoch == bad and len(history.history.get("loss", [])) == bad
    assert re.search(rf"step \d of 3 in epoch {bad + 1}", str(ended.error)) and isinstance(ended.error, clnn.Diverged)
    assert all(np.array_equal(a.numpy(), b.numpy()) for a, b in zip(net.parameters(), good.parameters()))
    with pytest.raises(clnn.Diverged):
        run([clnn.Lambda(on_epoch_begin=poison)], 6)
    fit(net, 2, [ended])  # a further fit with another optimizer, and nothing to end it
    assert ended.stopped_epoch is None and ended.error is None


# -- rates and time --------------------------------------------------------------------------------------------------------
def test_the_rate_of_an_epoch_is_that_of_the_function(device):
    net = made(device)
    history = fit(net, 4, [clnn.LearningRate(lambda epoch: 0.2 / (1 + epoch))])
    assert history["lr"] == pytest.approx([0.2, 0.1, 0.2 / 3, 0.05])
    other = made(device)
    fit(other, 4, optimizer=clnn.SGD([(1, 0.2), (1, 0.1), (1, 0.2 / 3), (1, 0.05)]))
    assert all(np.array_equal(a.numpy(), b.numpy()) for a, b in zip(net.parameters(), other.parameters()))


@pytest.mark.parametrize(
    ("callback", "optimizer", "words"),
    [
        (lambda: clnn.LearningRate(0.1), None, "a function of the epoch, and 0.1 is none"),
        (lambda: clnn.LearningRate(lambda epoch: -1.0), None, r"LearningRate of epoch 0 should be in \[0, inf\), -1.0"),
        (lambda: clnn.LearningRate(lambda epoch: math.nan), None, "epoch 0 should be in .*nan"),
        (lambda: clnn.LearningRate(lambda epoch: None), None, "epoch 0 should be in .*None"),
        (lambda: clnn.LearningRate(lambda epoch: 0.1), clnn.SGD(clnn.Cosine(0.1)), "has the schedule"),
        (lambda: clnn.TimeBudget(), None, "TimeBudget in all should be in"),
        (lambda: clnn.TimeBudget(minutes="1"), None, "TimeBudget's minutes should be in"),
        (lambda: clnn.Lambda(on_batch_end=print), None, "on_epoch_end.*on_batch_end="),
        (lambda: clnn.Lambda(on_epoch_end=3), None, "on_epoch_end=3 is none"),
        (lambda: clnn.Lambda(lambda x: x), None, "a layer is a class with a forward"),
        (lambda: clnn.TensorBoard("x", histograms=-1), None, "histograms should be an integer of 0"),
        (lambda: clnn.TensorBoard("x", images=3), None, "images is a function"),
        (lambda: clnn.LivePlot(), None, "in a notebook: elsewhere give it a file"),
        (lambda: clnn.CSVLog(f"{__file__}/log.csv"), None, "cannot be written"),
    ],
)
def test_what_callbacks_refuse(device, callback, optimizer, words):
    with pytest.raises(clnn.ConfigurationError, match=words):
        fit(made(device), 1, [callback()], optimizer)


@pytest.mark.parametrize("what", ["folder", "bytes"])
def test_rows_that_cannot_be_gone_on_with(device, tmp_path, what):
    file = tmp_path / "log.csv"
    file.mkdir() if what == "folder" else file.write_bytes(b"\xff\xfe\x00\x81")
    with pytest.raises(clnn.ConfigurationError, match="log.csv cannot be gone on with"):
        fit(made(device), 1, [clnn.CSVLog(file, append=True)])
    assert what == "folder" or file.read_bytes() == b"\xff\xfe\x00\x81"


def test_time_ends_fit_and_counts_where_it_resumes(device, tmp_path):
    slow = clnn.Lambda(on_epoch_end=lambda *_: time.sleep(0.1))
    budget = clnn.TimeBudget(minutes=0.25 / 60)
    history = fit(made(device), 50, [slow, budget])
    assert budget.stopped_epoch + 1 == len(history["loss"]) <= 3 and budget.spent >= 0.25
    with pytest.raises(Stop):
        fit(made(device), 9, [slow, clnn.TimeBudget(100), clnn.Checkpoint(tmp_path), stop_at(3)], resume=tmp_path)
    again = clnn.TimeBudget(100)
    fit(made(device), 4, [slow, again, clnn.Checkpoint(tmp_path), stop_at(9)], resume=tmp_path)
    assert again.spent >= 0.35 and again.stopped_epoch is None  # three epochs before, and one
    # a run whose time was over goes on with more of it, and not without
    ends = [slow, clnn.TimeBudget(0.15), clnn.Checkpoint(tmp_path / "over")]
    epochs = len(fit(made(device), 9, ends, resume=tmp_path / "over")["loss"])
    assert epochs < 9 and len(fit(made(device), 9, ends, resume=tmp_path / "over")["loss"]) == epochs
    assert ends[1].stopped_epoch == epochs - 1  # said where a run that is over comes back, too
    ends[1] = clnn.TimeBudget(hours=1)
    assert len(fit(made(device), 9, ends, resume=tmp_path / "over")["loss"]) == 9
    # one that something else has ended in the epoch in which time was over does not
    for seconds in (0.001, 60):
        ends = [clnn.TimeBudget(seconds), stop_training_at(0), clnn.Checkpoint(tmp_path / "both")]
        assert len(fit(made(device), 9, ends, resume=tmp_path / "both")["loss"]) == 1


# -- files -----------------------------------------------------------------------------------------------------------------
def rows_of(file):
    with open(file, newline="") as lines:
        return list(csv.DictReader(lines))


def test_a_csv_file_has_what_the_history_has(device, tmp_path):
    file = tmp_path / "new" / "log.csv"
    seen = []
    look = clnn.Lambda(on_epoch_end=lambda *_: seen.append(len(rows_of(file))))
    history = fit(made(device), 3, [clnn.CSVLog(file), look], validation_split=0.2)
    rows = rows_of(file)
    assert seen == [1, 2, 3] and [row["epoch"] for row in rows] == ["1", "2", "3"]
    assert list(rows[0]) == ["epoch", *history.history]
    assert all([float(row[name]) for row in rows] == history[name] for name in history.history)
    file.write_bytes(file.read_bytes().rstrip())  # as editors may leave it
    fit(made(device), 1, [clnn.CSVLog(file, append=True)], validation_split=0.2)
    assert [row["epoch"] for row in rows_of(file)] == ["1", "2", "3", "1"]
    with pytest.raises(
        clnn.ConfigurationError, match="has the columns epoch,loss,accuracy,val_loss.*give another file"
    ):
        fit(made(device), 1, [clnn.CSVLog(file, append=True)])
    fit(made(device), 2, [clnn.CSVLog(file)])
    assert len(rows_of(file)) == 2  # begun anew


@pytest.mark.parametrize("kept", [True, False])
def test_rows_are_not_doubled_where_a_run_goes_on(device, tmp_path, kept):
    """A checkpoint every 2 epochs, a stop in epoch 4: rows 3 and 4 are written again, by the fit that goes on from 2."""
    file, callbacks = tmp_path / "log.csv", lambda: [clnn.CSVLog(file), clnn.Checkpoint(tmp_path / "run", every=2)]
    with pytest.raises(Stop):
        fit(made(device), 7, [callbacks()[0], stop_at(3), callbacks()[1]], resume=tmp_path / "run")
    before = rows_of(file)
    assert len(before) == 4
    if not kept:
        file.unlink()
    history = fit(made(device), 7, [callbacks()[0], stop_at(9), callbacks()[1]], resume=tmp_path / "run")
    rows = rows_of(file)
    assert [row["epoch"] for row in rows] == list("1234567") and rows[:2] == before[:2]
    assert [float(row["loss"]) for row in rows] == history["loss"]


def test_tensorboard(device, tmp_path):
    pytest.importorskip("tensorboardX", reason="tensorboardX is not installed")
    from tensorboardX.proto.event_pb2 import Event
    from tensorboardX.proto.graph_pb2 import GraphDef

    def events(folder):
        for file in sorted(folder.glob("events.*")):
            data = file.read_bytes()
            while data:  # the length, its checksum, the event, its checksum
                size = int.from_bytes(data[:8], "little")
                yield Event.FromString(data[12 : 12 + size])
                data = data[16 + size :]

    picture = lambda model: {"weights": np.ones((6, 4)), "many": np.zeros((2, 1, 5, 5))}  # noqa: E731
    board = clnn.TensorBoard(tmp_path, histograms=2, images=picture, graph=True, every=3)
    history = fit(made(device), 4, [board], validation_split=0.2)
    found = list(events(tmp_path))
    values = [(event.step, value) for event in found for value in event.summary.value]
    of = lambda tag: [(step, value) for step, value in values if value.tag == tag]  # noqa: E731
    assert [step for step, _ in of("loss/training")] == [1, 2, 3, 4]
    assert [v.simple_value for _, v in of("loss/validation")] == pytest.approx(history["val_loss"])
    assert [v.simple_value for _, v in of("lr")] == pytest.approx(history["lr"])
    assert [(step, v.histo.num) for step, v in of("0.w")] == [(2, 24), (4, 24)]
    assert [step for step, _ in of("weights")] == [3] and {v.tag for _, v in values} >= {
        "weights",
        "accuracy/validation",
    }
    (graph,) = [GraphDef.FromString(event.graph_def) for event in found if event.graph_def]
    assert [(node.op, *node.input) for node in graph.node] == [
        ("Input",), ("Dense", "input"), ("Dense", graph.node[1].name)
    ]  # fmt: skip
    for shape in ((3,), (5, 8, 8), (2, 5, 8, 8)):
        bad = lambda model, shape=shape: {"bad": np.ones(shape)}  # noqa: E731
        with pytest.raises(
            clnn.ConfigurationError, match=f"'bad' has the shape {re.escape(str(shape))}.* of 1, 3 or 4"
        ):
            fit(made(device), 1, [clnn.TensorBoard(tmp_path / "b", images=bad)])


def test_fits_that_begin_in_the_same_second_have_files_of_their_own(device, tmp_path, monkeypatch):
    tensorboard = pytest.importorskip("tensorboardX", reason="tensorboardX is not installed")
    frozen = types.SimpleNamespace(time=lambda: 1.7e9)
    monkeypatch.setattr(tensorboard.event_file_writer, "time", frozen)
    for _ in range(3):
        fit(made(device), 1, [clnn.TensorBoard(tmp_path)])
    files = sorted(tmp_path.glob("events.*"))
    assert len(files) == 3 and all(b"loss" in file.read_bytes() for file in files)
    assert files == sorted(files, key=lambda file: file.stat().st_mtime_ns)  # as TensorBoard reads them


@pytest.mark.parametrize("at", ["add_scalar", "flush", "close"])
def test_a_board_that_cannot_be_written_is_named(device, tmp_path, monkeypatch, at):
    """As on a disk that is full, which was an OSError that named nothing."""

    def full(*_):
        raise OSError(28, "No space left on device")

    writer = dict.fromkeys(("add_scalar", "add_histogram", "flush", "close"), lambda *_: None) | {at: full}
    monkeypatch.setattr(clnn.logs, "_library", lambda: (lambda *_, **__: types.SimpleNamespace(**writer), ""))
    with pytest.raises(clnn.ConfigurationError, match=f"TensorBoard: {re.escape(str(tmp_path))} cannot be .*No space"):
        fit(made(device), 1, [clnn.TensorBoard(tmp_path)])


def test_pictures_of_curves_that_cannot_be_are_found_out_before_the_first_epoch(device, tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    (tmp_path / "folder.png").mkdir()
    for file, why in (("x.foo", "Matplotlib draws no .foo: .* png,"), ("folder.png", "folder.png cannot be written")):
        epochs = []
        seen = clnn.Lambda(on_epoch_end=lambda *_, epochs=epochs: epochs.append(1))
        with pytest.raises(clnn.ConfigurationError, match=f"LivePlot: .*{why}"):
            fit(made(device), 1, [seen, clnn.LivePlot(tmp_path / file)])
        assert not epochs
    (tmp_path / "later").mkdir()
    board = clnn.LivePlot(tmp_path / "later" / "x.png", seconds=0)
    gone = clnn.Lambda(on_epoch_begin=lambda *_: (tmp_path / "later").rename(tmp_path / "elsewhere"))
    with pytest.raises(clnn.ConfigurationError, match="LivePlot: .*x.png cannot be written"):
        fit(made(device), 1, [board, gone])


def test_a_board_without_a_writer_says_what_to_install(device, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(clnn.ConfigurationError, match="pip install tensorboardX"):
        fit(made(device), 1, [clnn.TensorBoard(tmp_path)])


def test_the_graph_of_a_model_with_branches(device):
    with clnn.use(device):
        a, b, shared = clnn.Input((3,), name="a"), clnn.Input((3,), name="b"), clnn.Dense(3)
        net = clnn.Model((a, b), clnn.Dense(2)(clnn.Concatenate()(shared(shared(a)), b)))
    nodes = clnn.logs.nodes_of(net)
    assert [(kind, len(given)) for _, kind, given in nodes] == [
        ("Input", 0), ("Input", 0), ("Dense", 1), ("Dense", 1), ("Concatenate", 2), ("Dense", 1)
    ]  # fmt: skip
    assert nodes[4][2] == [nodes[3][0], "b"] and nodes[3][2] == [nodes[2][0]] != [nodes[3][0]]
    with pytest.raises(clnn.ConfigurationError, match="forward.. of your own"):
        clnn.logs.nodes_of(type("Mine", (clnn.Model,), {"__doc__": "."})())


def test_a_live_plot_is_drawn_as_fit_goes(device, tmp_path, monkeypatch):
    matplotlib = pytest.importorskip("matplotlib", reason="Matplotlib is not installed")
    matplotlib.use("Agg")
    fit(made(device), 2, [clnn.LivePlot(tmp_path / "curves.png")])
    assert (tmp_path / "curves.png").read_bytes()[:4] == b"\x89PNG"
    drawn = []
    shown = types.SimpleNamespace(update=drawn.append)
    module = types.SimpleNamespace(display=lambda figure, display_id: drawn.append(figure) or shown)
    monkeypatch.setitem(sys.modules, "IPython", types.SimpleNamespace(display=module, get_ipython=lambda: None))
    monkeypatch.setitem(sys.modules, "IPython.display", module)
    monkeypatch.setattr(clnn.logs, "in_notebook", lambda: True)
    fit(made(device), 4, [clnn.LivePlot(seconds=0)])
    assert len(drawn) == 4 and len(drawn[-1].axes[0].lines[0].get_xdata()) == 4
    drawn.clear()
    fit(made(device), 4, [clnn.LivePlot(seconds=100)])
    assert len(drawn) == 2  # the first, and once more at the end
    import matplotlib.pyplot as plt

    assert not plt.get_fignums()


# -- what is said ----------------------------------------------------------------------------------------------------------
def test_a_line_an_epoch_where_there_is_no_terminal(device, capsys):
    history = fit(made(device), 3, progress=True)
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(":")[0] for line in lines] == ["epoch 1/3", "epoch 2/3", "epoch 3/3"]
    assert f"loss {history['loss'][0]:.4g}, accuracy {history['accuracy'][0]:.4g}" in lines[0]
    stop = clnn.Lambda(on_epoch_end=lambda model, epoch, _: setattr(model, "stop_training", epoch == 249))
    fit(made(device), 1000, [stop], progress=True)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 25 and lines[0].startswith("epoch 10/1000") and lines[-1].startswith("epoch 250/1000")
    fit(made(device), 3)
    assert capsys.readouterr().err == ""


def test_programs_without_a_console_train_in_silence(device, monkeypatch):
    """Such as those of pythonw.exe, and what is started with 2>&-."""
    monkeypatch.setattr("sys.stderr", None)
    assert len(fit(made(device), 2, progress=True)["loss"]) == 2


def test_lines_go_to_logging_where_somebody_listens(device, caplog, capsys):
    with caplog.at_level(logging.INFO, logger="clnn"):
        fit(made(device), 2, progress=True)
        fit(made(device), 1)  # progress=False is about the screen
    assert [r.getMessage().split(":")[0] for r in caplog.records] == ["epoch 1/2", "epoch 2/2", "epoch 1/1"]
    assert {r.name for r in caplog.records} == {"clnn"} and capsys.readouterr().err == ""


def test_that_kernels_are_compiled_is_said_while_they_are(device, capsys, monkeypatch):
    """Each build takes a while here, as it does on a device that has not run the model before."""
    monkeypatch.setattr(clnn.progress, "SOON", 0.05)
    build = clnn.runtime.program.Programs._compile

    def slowly(*args):
        time.sleep(0.1)
        return build(*args)

    monkeypatch.setattr(clnn.runtime.program.Programs, "_compile", slowly)
    before, device.programs._programs, device.programs._kernels = (
        (device.programs._programs, device.programs._kernels), {}, {},
    )  # fmt: skip
    try:
        fit(made(device), 2, progress=True)
    finally:
        device.programs._programs, device.programs._kernels = before
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith(f"compiling kernels for {device.name}") and len(lines) == 3
    fit(made(device), 2, progress=True)
    assert len(capsys.readouterr().err.splitlines()) == 2  # nothing to compile


def test_a_bar_in_a_notebook(device, monkeypatch, capsys):
    monkeypatch.setattr(clnn.progress, "in_notebook", lambda: True)
    fit(made(device), 2, progress=True)
    shown = capsys.readouterr()
    assert "epoch 2/2" in shown.err + shown.out and "6/6" in shown.err + shown.out


def test_a_program_that_only_logs(tmp_path):
    """As a server writes it: logging set up, stderr a file."""
    script = """
import logging, numpy as np, clnn
logging.basicConfig(level=logging.INFO, format="%(name)s|%(message)s")
net = clnn.Sequential([clnn.Dense(1)], input_shape=2)
net.fit(np.ones((4, 2)), np.ones((4, 1)), loss="mse", optimizer="sgd", epochs=2)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    lines = [line for line in done.stderr.splitlines() if "epoch" in line]
    assert len(lines) == 2 and lines[0].startswith("clnn|epoch 1/2: loss ") and done.stdout == ""
