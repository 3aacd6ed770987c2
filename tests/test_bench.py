"""`clnn bench`: every side computes the same losses, rows have what they promise, and errors say what to do. Never how
fast something is."""

import importlib.util
import json
import runpy
from pathlib import Path

import numpy as np
import pytest

from clnn import ClnnError, ConfigurationError
from clnn.tools import cli
from clnn.tools.bench import nets, report, run
from clnn.tools.bench import workloads as w
from clnn.tools.bench.own import Clnn
from clnn.tools.bench.peers import PEERS
from clnn.tools.bench.sequences import TASKS, Task

ROOT = Path(__file__).resolve().parent.parent
pytestmark = pytest.mark.slow  # most start processes, each of which imports and compiles

MODULES = {"numpy": "numpy", "sklearn": "sklearn", "torch": "torch", "jax": "jax", "tinygrad": "tinygrad"}
IMAGES = nets.ConvNet(  # every kind of layer
    (2, 9, 8),
    (
        *(nets.conv(4, 3, True), nets.pool(2), nets.conv(4, 3, padding=1, bias=False), nets.norm(), nets.drop(0.25)),
        *(
            nets.block(4),
            nets.block(6, 2, True),
            *nets.separable(6, 8),
            nets.FLATTEN,
            nets.dense(7, True),
            nets.dense(10),
        ),
    ),
    *("sgd", 0.1, 0.9, 0.01, 6, 3),
)
PLAIN = nets.ConvNet(
    (1, 8, 8), (nets.conv(3, 3, True), nets.pool(2), nets.MEAN, nets.dense(10)), "adam", 0.01, 0, 0, 4, 2
)
SMALL = {name: net._replace(sizes=(20, 7, 10), batch=4, steps=3) for name, net in w.NETS.items()}


@pytest.fixture
def bench():
    """A run with one round, on the default device, that says nothing."""
    with run.Bench(rounds=1, say=lambda text: None) as one:
        yield one


def only(*peers):
    """Those peers, or a skip where they are not installed."""
    for peer in peers:
        if importlib.util.find_spec(MODULES[peer]) is None:
            pytest.skip(f"{peer} is not installed")
    return run.Bench(peers, rounds=1, say=lambda text: None)


# -- the reference -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("form", ["NN", "TN", "NT"])
def test_the_error_of_a_product_is_that_of_the_product(form):
    p = w.Product(form, 5, 4, 3)
    a, b = p.stored()
    c = (a.T if form[0] == "T" else a) @ (b.T if form[1] == "T" else b)
    assert p.error(c) < 1e-6
    c[2, 1] += 0.5
    assert p.error(c) > 1e-2


def test_the_reference_descends_along_the_gradient():
    net = SMALL["mlp1"]._replace(lr=1e-3, steps=1)
    first, second = w.reference_losses(net, 2)
    assert second < first
    assert w.reference_losses(net._replace(lr=0.0), 2)[1] == first


def test_a_net_survives_json():
    for net in nets.ALL.values():
        assert nets.net_of(json.loads(json.dumps(net))) == net
    for c in nets.convolutions(nets.NETS.values()):
        assert nets.Convolution.of(json.loads(json.dumps(c))) == c


def test_the_flops_of_a_step():
    assert w.NETS["nielsen"].flops == 2 * 10 * (2 * (784 * 30 + 30 * 10) + 30 * 10)
    first, others = 24 * 24 * 20 * 25, 8 * 8 * 40 * 20 * 25 + 640 * 100 + 100 * 10
    assert nets.NETS["lenet"].flops == 2 * 10 * (2 * first + 3 * others)


def test_networks_have_the_published_numbers_of_parameters():
    """The book's network, Keras' example of a convolutional network, and ResNet-20 with its projections."""
    count = {name: sum(p.size for p in net.weights()) for name, net in nets.NETS.items()}
    assert count["lenet"] == 20 * 25 + 20 + 40 * 500 + 40 + 640 * 100 + 100 + 1010
    assert count["cnn"] == 1_199_882
    assert count["resnet"] == 272_474


def test_the_references_gradients_are_those_of_differences():
    rng = np.random.default_rng(0)
    parameters = [p.astype(np.float64) for p in IMAGES.weights()]
    x, dy = rng.random((6, *IMAGES.shape)), rng.standard_normal((6, 10))

    def loss(values):
        return float((nets.read(IMAGES.certain().layers, x, iter(values).__next__, nets.Reference()) * dy).sum())

    side = nets.Reference()
    nets.read(IMAGES.certain().layers, x, iter(parameters).__next__, side)
    found = side.gradients(dy)
    for i, p in enumerate(parameters):
        step = 1e-6 * rng.standard_normal(p.shape)
        ahead, back = (loss([*parameters[:i], p + sign * step, *parameters[i + 1 :]]) for sign in (1, -1))
        assert (ahead - back) / 2 == pytest.approx((found[id(p)] * step).sum(), rel=1e-4, abs=1e-10)


def test_distinct_convolutions_and_no_gradient_by_images():
    found = nets.convolutions([PLAIN, PLAIN._replace(lr=0.5), IMAGES])
    assert [c.way for c in found[:2]] == ["forward", "dw"] and len(set(found)) == len(found)
    assert sum(c.shape[1] == 2 for c in found) == 2
    assert found[0].name == "forward 4x1x8x8 * 3x1x3x3" and found[0].flops == 2 * 4 * 3 * 36 * 9


@pytest.mark.parametrize("way", ["forward", "dx", "dw"])
def test_the_error_of_a_convolution_is_that_of_the_convolution(way):
    c = nets.Convolution(way, (4, 6, 7, 6), nets.conv(8, 3, True, stride=2, padding=1, groups=2))
    x, filters, b, dy = c.arrays()
    side = nets.Reference()
    y = side.relu(side.conv(x, filters, b, c.layer))
    if way == "forward":
        results = [y]
    else:
        side.tape.pop()  # gradients are the convolution's alone
        gradients = side.gradients(dy)
        results = [gradients[id(a)] for a in ((x,) if way == "dx" else (filters, b))]
    assert c.error(*results) < 1e-5
    for result in results:
        result[0] += 0.5
        assert c.error(*results) > 1e-2
        result[0] -= 0.5


# -- every side --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["nielsen", "mlp"])
@pytest.mark.parametrize("peer", ["numpy", "sklearn", "torch", pytest.param("jax")])
def test_a_peer_computes_the_same_losses(peer, name):
    """In this process: one check of each peer's training loop."""
    only(peer)
    side, net = PEERS[peer], SMALL[name]
    net = side.as_trained(net)[0] if hasattr(side, "as_trained") else net

    class Enough(Exception):
        pass

    for form in side.forms:
        losses = []

        def after(loss, losses=losses):
            losses.append(loss)
            if len(losses) == 2:
                raise Enough

        with pytest.raises(Enough):
            side.train(net, {"form": form}, after)
        assert run.wrong_losses(losses, w.reference_losses(net, 2)) == "", form


def train_here(side, net, form, epochs=2):
    """The losses of some epochs, in this process."""

    class Enough(Exception):
        pass

    losses = []

    def after(loss):
        losses.append(loss)
        if len(losses) == epochs:
            raise Enough

    with pytest.raises(Enough):
        side.train(net, {"form": form}, after)
    return losses


def side_of(name):
    """A side, and the layouts that it has."""
    if name == "clnn":
        return Clnn(), ("",)
    only(name)
    return PEERS[name], PEERS[name].layouts


@pytest.mark.parametrize("name", ["clnn", "torch", "jax"])
@pytest.mark.parametrize("net", [IMAGES.certain(), PLAIN], ids=["images", "plain"])
def test_convolutional_networks_have_the_same_losses(name, net):
    side, layouts = side_of(name)
    for form in layouts:
        assert run.wrong_losses(train_here(side, net, form), nets.reference_losses(net, 2)) == "", form


@pytest.mark.parametrize("name", ["clnn", "torch", "jax"])
def test_sides_train_with_dropout(name):
    side, layouts = side_of(name)
    certain = nets.reference_losses(IMAGES.certain(), 1)
    for form in layouts:
        losses = train_here(side, IMAGES, form)
        assert np.isfinite(losses).all() and abs(losses[0] - certain[0]) > 1e-4, form


@pytest.mark.parametrize("name", ["clnn", "torch", "jax"])
@pytest.mark.parametrize(
    "layer",
    [
        nets.conv(8, 3, True, padding=1),
        nets.conv(4, 1, stride=2, bias=False),
        nets.conv(6, 3, stride=2, padding=1, groups=6),
    ],
    ids=["relu", "stride", "depthwise"],
)
def test_single_convolutions_are_right(name, layer):
    side, layouts = side_of(name)
    for way in ("forward", "dx", "dw"):
        c = nets.Convolution(way, (3, 6, 7, 8), layer)
        for form in layouts:
            go, result = side.convolution(c, form)
            go(2)
            assert c.error(*result()) < w.OUTPUT_TOLERANCE, (c.name, form)


SEQUENCES = [
    Task("gpt", (2, 2, 16, 7, 3)),
    Task("generate", (2, 2, 16, 9, 2)),
    Task("attention", (1, 2, 70, 8)),
    Task("embedding", (50, 8, 3, 5)),
    Task("lstm", (3, 5, 4, 6)),
    Task("gru", (3, 5, 4, 6)),
]


@pytest.mark.parametrize("name", ["clnn", "torch", "jax", "tinygrad"])
@pytest.mark.parametrize("task", SEQUENCES, ids=lambda task: task.kind)
def test_sequences_have_the_same_losses_and_results(name, task):
    side, _ = side_of(name)
    if task.kind in getattr(side, "without", ()):
        pytest.skip(f"{name} has no part in it")
    go, result = side.sequence(task)
    go(4)
    assert task.error(result()) < w.OUTPUT_TOLERANCE
    wrong = [(np.asarray(one) + 1) % 65 if task.kind == "generate" else np.asarray(one) * 1.001 for one in result()]
    assert task.error(wrong) > w.OUTPUT_TOLERANCE


def test_sequences_are_measured(bench):
    bench.quick = True
    run.sequences(bench, "gpt", SEQUENCES)
    sides = [(row["workload"], row["side"]) for row in bench.rows]
    assert sides == [("gpt", "clnn"), ("gpt", "clnn, not fused")] * len(SEQUENCES)
    assert all(row["median"] > 0 for row in bench.rows)
    assert TASKS["gpt"][0].flops == pytest.approx(3.9e9, rel=0.05)


def test_a_wrong_loss_is_seen():
    assert "in epoch 2 is 1.1, and 1 in float64" in run.wrong_losses([2.0, 1.1], [2.0, 1.0])
    assert run.wrong_losses([float("nan")], [1.0])
    assert run.wrong_losses([2.0], [1.0], [2.0]) == "" and run.wrong_losses([3.0], [1.0], [2.0])


def test_training_beside_numpy_gives_rows():
    with only("numpy") as bench:
        run.training(bench, "nielsen", SMALL["nielsen"])
    sides = {row["side"]: row for row in bench.rows}
    assert set(sides) == {"clnn", "clnn, not fused", "numpy"}
    for row in sides.values():
        assert row["minimum"] <= row["median"] and len(row["seconds"]) == 1
        assert row["gflops"] > 0 and row["share_of_peak"] > 0
    assert {"ratio_minimum", "ratio_median", "ratio_rounds"} <= set(sides["numpy"])
    assert "ratio_median" not in sides["clnn"]


@pytest.mark.parametrize("form", ["NN", "TN", "NT"])
def test_products_are_right_and_measured(bench, form):
    run.products(bench, [w.Product(form, 6, 5, 4)])
    (row,) = bench.rows
    assert row["task"] == f"{form} 6x5x4" and row["side"] == "clnn" and row["median"] > 0


def test_convolutional_networks_are_checked_without_dropout_and_measured_with_it(monkeypatch):
    asked = []
    start = run.Bench.start
    monkeypatch.setattr(run.Bench, "start", lambda *a, **k: asked.append(k) or start(*a, **k))
    with only("numpy") as bench:
        run.training(bench, "cnn", PLAIN._replace(layers=(*PLAIN.layers[:2], nets.drop(0.5), *PLAIN.layers[2:])))
    (row,) = bench.rows
    assert row["side"] == "clnn" and row["median"] > 0 and row["share_of_peak"] > 0
    assert asked[-1]["check"].layers[2].rate == 0 and asked[-1]["net"].layers[2].rate == 0.5
    assert bench.notes == ["numpy trains no convolutional networks here"]


def test_convolutions_are_measured(bench):
    run.convolutions(bench, nets.convolutions([PLAIN]))
    assert [row["task"] for row in bench.rows] == ["forward 4x1x8x8 * 3x1x3x3", "dw 4x1x8x8 * 3x1x3x3"]
    assert all(row["gflops"] > 0 and row["share_of_peak"] > 0 for row in bench.rows)


def test_inference_is_measured(bench):
    run.inference(bench, "inference", [SMALL["mlp"]._replace(steps=1)])
    assert [row["side"] for row in bench.rows] == ["clnn"] and bench.rows[0]["unit"] == "call"


def test_single_samples_by_predict_and_compiled_and_short_fits(bench):
    run.inference(bench, "predict-1", [SMALL["mlp"]._replace(batch=1, steps=1)])
    run.training(bench, "short", SMALL["nielsen"], run.ONE_BY_ONE)
    for workload, sides in (("predict-1", {"clnn", "clnn, compiled"}), ("short", {"clnn"})):
        found = [row for row in bench.rows if row["workload"] == workload]
        assert {row["side"] for row in found} >= sides and all(row["minimum"] > 0 for row in found)


def test_the_first_step_with_cold_and_warm_caches(bench):
    run.first_step(bench, {"nielsen": SMALL["nielsen"]})
    assert [row["task"] for row in bench.rows] == ["nielsen, cold caches", "nielsen, warm caches"]
    for row in bench.rows:
        assert 0 < row["minimum"] <= row["from_process_start"][0]


def test_memory_counts_what_is_needed(bench):
    run.memory(bench, "mlp", SMALL["mlp"])
    (row,) = bench.rows
    assert row["parameters"] == 4 * (20 * 7 + 7 + 7 * 10 + 10) and row["optimizer"] == 2 * row["parameters"]
    assert (
        row["peak"]
        >= row["need"]
        == sum(row[name] for name in ("data", "parameters", "gradients", "optimizer", "activations"))
    )


def test_memory_of_a_convolutional_network_beside_torch():
    with only("torch") as bench:
        run.memory(bench, "cnn", PLAIN)
    mine, other = bench.rows
    assert (mine["side"], other["side"]) == ("clnn", "torch") and mine["need"] == other["need"]
    assert mine["activations"] == 4 * 4 * (3 * 6 * 6 + 3 * 3 * 3 + 3 + 10)
    assert min(mine["peak"], other["peak"]) > mine["parameters"] + mine["gradients"] + mine["optimizer"] + mine["data"]


# -- when something is wrong -------------------------------------------------------------------------------------------
def test_a_side_with_another_loss_gets_no_times(bench, monkeypatch):
    monkeypatch.setattr(w, "reference_losses", lambda net, epochs: [123.0] * epochs)
    run.training(bench, "mlp", SMALL["mlp"])
    (row,) = bench.rows
    assert "seconds" not in row and "123 in float64" in row["note"]


def test_a_side_that_crashes_says_why_and_the_others_run_on(bench):
    worker = bench.start(run.CLNN._replace(variables=(("CLNN_GEMM", "abacus"),)), "train", net=SMALL["mlp"])
    with pytest.raises(run.Failed, match="CLNN_GEMM='abacus' is no GEMM engine"):
        worker.ask(epochs=1)
    worker = bench.start(run.CLNN, "train", net=SMALL["mlp"])
    worker.process.kill()
    with pytest.raises(run.Failed, match="ended with code"):
        worker.ask(epochs=1)


def test_no_worker_is_left(bench):
    worker = bench.start(run.CLNN, "products")
    bench.__exit__()
    assert worker.process.poll() is not None and bench.workers == []


def test_unknown_names_list_the_known_ones():
    with pytest.raises(ConfigurationError, match="no peer 'keras'; the known ones are numpy, sklearn, torch"):
        run.Bench(["keras"])
    with pytest.raises(ConfigurationError, match="no workload 'chess'; the known ones are gemm, conv, nielsen"):
        run.run(["chess"], run.Bench())
    with pytest.raises(ConfigurationError, match="rounds should be 1 or more, 0 was"):
        run.Bench(rounds=0)
    with pytest.raises(ConfigurationError, match="--profile takes one of first-step, nielsen, mlp"):
        run.profile("chess")


def test_a_peer_that_is_not_installed_is_named_with_the_remedy(monkeypatch):
    def missing(package):
        raise run.metadata.PackageNotFoundError

    monkeypatch.setattr(run.metadata, "version", missing)
    bench = run.Bench(["torch"])
    assert bench.notes == ["torch is not installed: pip install torch"] and not bench.versions


def test_the_command_says_so_in_one_line(capsys):
    assert cli.main(["bench", "chess"]) == 1
    assert "clnn: there is no workload 'chess'" in capsys.readouterr().err


# -- the report --------------------------------------------------------------------------------------------------------
def measured():
    """A run as if it had been measured."""
    bench = run.Bench(say=lambda text: None)
    bench.device = {"device": "D", "platform": "P", "version": "1", "driver": "2", "gemm": "tile"}
    peaks = {"peak_gflops": 100.0, "copy_gbytes": 10.0, "unit": "product"}
    times = {"clnn": [1e-3, 2e-3], "numpy": [2e-3, 4e-3], "CLBlast": [8e-3, 8e-3]}
    for side, seconds in times.items():
        bench.row("gemm", "NN 128x512x784", side, seconds, times["clnn"], gflops=50.0, share_of_peak=0.5, **peaks)
    bench.refuse("mlp", "step", "torch", "its loss is 2, and 1 in float64")
    return bench


def test_the_table():
    lines = report.table(measured()).splitlines()
    assert lines[0].split()[:3] == ["workload", "side", "minimum"]
    assert lines[2].split() == [
        "numpy",
        "2,000.0",
        "us",
        "3,000.0",
        "us",
        "50",
        "50%",
        "0.50",
        "/",
        "0.50",
        "/",
        "0.50",
    ]
    assert "no times:" in lines[4] and "its loss is 2" in lines[4]
    markdown = report.table(measured(), markdown=True).splitlines()
    assert markdown[1].startswith("|---") and all(line.count("|") == 9 for line in markdown)


def test_the_summary_compares_with_the_better_of_the_others():
    lines = report.summary(measured())
    assert (
        "100 GFLOP/s" in lines[0]
        and "takes 0.50 of the time" in lines[1]
        and "5.3 times as fast as CLBlast" in lines[2]
    )


def test_the_summary_says_how_convolutions_compare_with_each_peer():
    bench = measured()
    for task, times in (("forward a", [1.0, 2.0]), ("dw a", [8.0, 2.0])):
        for side, seconds in zip(("clnn", "torch"), times):
            facts = {"peak_gflops": 100.0, "copy_gbytes": 10.0}
            bench.row("conv", task, side, [seconds], times[:1], **facts)
    line = report.summary(bench)[-1]
    assert (
        "takes 1.41 of the time of torch" in line and "forward 0.50, dw 4.00" in line and "worst 4.00 at dw a" in line
    )


def test_json_has_every_round():
    found = json.loads(report.as_json(measured()))
    assert found["rows"][0]["seconds"] == [1e-3, 2e-3] and found["rows"][1]["ratio_median"] == pytest.approx(0.5)
    assert {"device", "cpus", "versions", "command", "rounds", "notes", "summary"} <= set(found)


def test_the_picture_has_every_side_of_a_step(tmp_path, device):
    pytest.importorskip("matplotlib")
    bench = measured()
    for side, seconds in (("clnn", [1e-3, 2e-3]), ("numpy", [2e-3, 4e-3])):
        bench.row("mlp", "step", side, seconds, [1e-3, 2e-3])
    report.picture(bench, tmp_path / "picture.svg")
    said = (tmp_path / "picture.svg").read_text()
    assert (
        all(f"<!-- {text} -->" in said for text in ("mlp: clnn", "mlp: numpy", "epoch"))
        and "<!--  3,000 us -->" in said
    )


def test_readme_s_picture_is_of_the_tables():
    rows = runpy.run_path(str(ROOT / ".ci" / "picture"))["rows"]()
    assert [row["workload"] for row in rows if row["side"] == "clnn"] == ["nielsen", "mlp", "cnn"]
    assert len(rows) > 10 and {"numpy", "torch", "jax"} <= {row["side"] for row in rows}
    for row in rows:
        mine = next(one["median"] for one in rows if one["workload"] == row["workload"])
        assert mine / row["median"] == pytest.approx(row.get("ratio_median", 1.0), abs=0.02)


def test_plot(tmp_path):
    pytest.importorskip("matplotlib")
    report.plot(measured(), tmp_path / "speed.png")
    assert (tmp_path / "speed.png").read_bytes()[:4] == b"\x89PNG"


def test_a_profile_of_first_steps_lists_programs(monkeypatch):
    monkeypatch.setattr(run, "FIRST_STEPS", ("nielsen",))
    opening, head, *rows = run.profile("first-step")["table"].splitlines()
    assert opening.startswith("opening the device:") and head.startswith("nielsen:")
    assert any("kernels/gemm.cl" in row for row in rows)


@pytest.mark.parametrize("name, net", [("mlp", SMALL["mlp"]), ("resnet", IMAGES)])
def test_a_profile_lists_launches(monkeypatch, name, net):
    monkeypatch.setitem(nets.ALL, name, net)
    found = run.profile(name)
    assert found["launches"] and all(0 <= one["seconds"] < 10 and one["launch"] for one in found["launches"])
    assert "GFLOP/s" in found["table"] and all(
        one["launch"].partition("{")[0] in found["table"] for one in found["launches"]
    )


def test_a_profile_lists_the_launches_of_answers_and_of_products(monkeypatch):
    """One table for each size, with the rate of each product in it."""
    monkeypatch.setitem(w.INFERENCE, "deep", [SMALL["mlp"]._replace(batch=batch, steps=1) for batch in (1, 7)])
    found = run.profile("deep")
    assert found["table"].startswith("batch 1\n") and "\nbatch 7\n" in found["table"]
    assert sum("gemm" in one["launch"] for one in found["launches"]) >= 2
    assert all(one["runs"] and 0 <= one["seconds"] < 10 for one in found["launches"])
    shapes = [w.Product("TN", 7, 5, 30), w.Product("NN", 3, 4, 5)]
    monkeypatch.setattr(w, "QUICK_PRODUCTS", shapes)
    found = run.profile("gemm")
    assert [line for line in found["table"].splitlines() if line in {p.name for p in shapes}] == [
        p.name for p in shapes
    ]
    assert all("gemm.gemm_" in part for part in found["table"].split("NN 3x4x5"))


def test_a_device_that_is_not_there_is_an_error(monkeypatch):
    monkeypatch.setenv("CLNN_DEVICE", "abacus")
    with pytest.raises(ClnnError, match="abacus"):
        run.Bench().__enter__()
