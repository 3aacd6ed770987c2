"""`clnn bench`: every side computes the same losses, rows have what they promise, and errors say what to do. Never how
fast something is."""

import importlib.util
import json

import numpy as np
import pytest

from clnn import ClnnError, ConfigurationError, cli
from clnn.bench import report, run
from clnn.bench import workloads as w
from clnn.bench.peers import PEERS

pytestmark = pytest.mark.slow  # most start processes, each of which imports and compiles

MODULES = {"numpy": "numpy", "sklearn": "sklearn", "torch": "torch", "jax": "jax", "tinygrad": "tinygrad"}
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
    for net in w.NETS.values():
        assert w.Net.of(json.loads(json.dumps(net))) == net


def test_the_flops_of_a_step():
    assert w.NETS["nielsen"].flops == 2 * 10 * (2 * (784 * 30 + 30 * 10) + 30 * 10)


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


def test_a_wrong_loss_is_seen():
    assert "in epoch 2 is 1.1, and 1 in float64" in run.wrong_losses([2.0, 1.1], [2.0, 1.0])
    assert run.wrong_losses([float("nan")], [1.0])


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


def test_inference_is_measured(bench):
    run.inference(bench, "inference", [SMALL["mlp"]._replace(steps=1)])
    assert [row["side"] for row in bench.rows] == ["clnn"] and bench.rows[0]["unit"] == "call"


def test_the_first_step_with_cold_and_warm_caches(bench):
    run.first_step(bench, {"nielsen": SMALL["nielsen"]})
    assert [row["task"] for row in bench.rows] == ["nielsen, cold caches", "nielsen, warm caches"]
    for row in bench.rows:
        assert 0 < row["minimum"] <= row["from_process_start"][0]


def test_memory_counts_what_is_needed(bench):
    run.memory(bench, SMALL["mlp"])
    (row,) = bench.rows
    assert row["parameters"] == 4 * (20 * 7 + 7 + 7 * 10 + 10) and row["optimizer"] == 2 * row["parameters"]
    assert (
        row["peak"]
        >= row["need"]
        == sum(row[name] for name in ("data", "parameters", "gradients", "optimizer", "activations"))
    )


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
    with pytest.raises(ConfigurationError, match="no workload 'chess'; the known ones are gemm, nielsen"):
        run.run(["chess"], run.Bench())
    with pytest.raises(ConfigurationError, match="rounds should be 1 or more, 0 was"):
        run.Bench(rounds=0)
    with pytest.raises(ConfigurationError, match="--profile takes one of nielsen, mlp"):
        run.profile("gemm")


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


def test_json_has_every_round():
    found = json.loads(report.as_json(measured()))
    assert found["rows"][0]["seconds"] == [1e-3, 2e-3] and found["rows"][1]["ratio_median"] == pytest.approx(0.5)
    assert {"device", "cpus", "versions", "command", "rounds", "notes", "summary"} <= set(found)


def test_plot(tmp_path):
    pytest.importorskip("matplotlib")
    report.plot(measured(), tmp_path / "speed.png")
    assert (tmp_path / "speed.png").read_bytes()[:4] == b"\x89PNG"


def test_a_profile_lists_launches(monkeypatch):
    monkeypatch.setitem(w.NETS, "mlp", SMALL["mlp"])
    launches = run.profile("mlp")
    assert launches and all(np.isfinite(one["seconds"]) and one["launch"] for one in launches)


def test_a_device_that_is_not_there_is_an_error(monkeypatch):
    monkeypatch.setenv("CLNN_DEVICE", "abacus")
    with pytest.raises(ClnnError, match="abacus"):
        run.Bench().__enter__()
