"""Tuning: what is looked up for a product, the files it comes from, and the search that writes them."""

import json
import sys

import numpy as np
import pytest
from helpers import as_a_cpu, needs_local_memory, normal

import clnn
from clnn.gemm import Shape, clblast, clblast_problem, engine_name, gemm, tile, tuning
from clnn.gemm.tuning import Choice, TuningWarning
from clnn.ops.image import conv, conv_plan
from clnn.tools import cli
from clnn.tools.tune import conv as tune_conv
from clnn.tools.tune import search as tune


@pytest.fixture
def fresh(device, monkeypatch, tmp_path):
    """A CPU of which nothing is known, with files of its own: (the user's, the one that ships)."""
    monkeypatch.setenv("CLNN_CACHE_DIR", str(tmp_path))
    monkeypatch.delenv("CLNN_GEMM", raising=False)
    monkeypatch.setattr(tuning, "SHIPPED", tmp_path / "shipped.json")
    as_a_cpu(device, monkeypatch)
    monkeypatch.setattr(device, "tuned", None)
    monkeypatch.setattr(clblast, "_problems", {})
    return tuning.user_file(), tuning.SHIPPED


def chosen(device, *sizes):
    """The tile in use for a product of a form and sizes."""
    shape = Shape.of(*sizes)
    return tile.choose(device, shape, tuning.find(device, shape).tile)


def put(path, key, device, shape=("nn", 128, 512, 784), dtype="float32", **entry):
    name = tune.class_of(device, dtype, shape)
    tuning.write(path, key, {"classes": {name: entry}})
    return name


# -- looking up -------------------------------------------------------------------------------------------------------
def test_the_rule_where_nothing_is_known(device, fresh):
    p = Shape(128, 512, 784)
    assert tuning.find(device, p) == Choice() and engine_name(device, p) == "tile"
    assert chosen(device, "nn", 128, 512, 784)[:4] == tune.rule(device, "float32", ("nn", 128, 512, 784))


def test_the_users_table_lies_over_the_one_that_ships(device, fresh):
    needs_local_memory(device)
    user, shipped = fresh
    put(shipped, tuning.families(device)[0], device, tile=[4, 1, 4, 0])
    assert chosen(device, "nn", 128, 512, 784)[:4] == (4, 1, 4, 0)
    put(user, device.identity, device, tile=[5, 1, 4, 64])
    device.tuned = None
    assert chosen(device, "nn", 128, 512, 784)[:4] == (5, 1, 4, 64)
    assert chosen(device, "tn", 128, 512, 784)[:4] == tune.rule(device, "float32", ("tn", 128, 512, 784))
    assert tuning.load(device, shipped=False).classes.keys() == tuning.load(device).classes.keys()


def test_of_tables_that_ship_the_makers_own_counts(device, fresh):
    """All classes of one table: where it lists none, its maker's processors do well by the rule."""
    any_maker, own = tuning.families(device)
    assert own.startswith(any_maker) and device.cl_device.vendor in own
    other = put(fresh[1], any_maker, device, tile=[4, 1, 4, 0])
    assert tuning.load(device).classes.keys() == {other}
    mine = put(fresh[1], own, device, ("tn", 784, 512, 128), tile=[5, 1, 4, 0])
    assert tuning.load(device).classes.keys() == {mine} and mine != other


def test_another_device_finds_nothing(device, fresh):
    user, shipped = fresh
    put(user, "another device", device, tile=[4, 1, 4, 0])
    put(shipped, "another platform", device, tile=[4, 1, 4, 0])
    assert tuning.load(device).classes == {}


def test_a_remainder_batch_uses_the_same_tile(device, fresh):
    """A class goes by the layer's sizes, whatever the batch."""
    for batch in (1, 7, 100, 5000):
        for form, mine, first in (
            ("nn", (batch, 512, 784), (128, 512, 784)),
            ("tn", (784, 512, batch), (784, 512, 128)),
            ("nt", (batch, 784, 512), (128, 784, 512)),
        ):
            assert tune.class_of(device, "float32", (form, *mine)) == tune.class_of(device, "float32", (form, *first))


def test_classes_tell_forms_types_widths_and_sizes_apart(device, fresh):
    shapes = [
        ("nn", 9, 4, 8),
        ("tn", 9, 4, 8),
        ("nt", 9, 4, 8),
        ("tt", 9, 4, 8),
        ("nn", 9, 100, 8),
        ("nn", 9, 100, 9999),
    ]
    names = {tune.class_of(device, dtype, shape) for shape in shapes for dtype in ("float32", "float64")}
    assert len(names) == 2 * len(shapes)
    assert tune.class_of(device, "float32", ("nn", 9, 4, 8)) == "float32 nn narrow tiny"


def test_measured_engine(device, fresh, monkeypatch):
    monkeypatch.setattr(clblast, "problem", lambda *_: "")
    p = Shape(128, 512, 784)
    put(fresh[0], device.identity, device, engine="clblast")
    assert engine_name(device, p) == "clblast"
    assert engine_name(device) == "tile" and engine_name(device, Shape(128, 512, 784, transpose_a=True)) == "tile"
    monkeypatch.setenv("CLNN_GEMM", "tile")
    assert engine_name(device, p) == "tile"
    monkeypatch.delenv("CLNN_GEMM")
    monkeypatch.setattr(clblast, "problem", lambda *_: "it is not well")
    assert engine_name(device, p) == "tile"
    monkeypatch.setattr(clblast, "problem", lambda *_: "")
    monkeypatch.setattr(device, "kind", "gpu")
    put(fresh[0], device.identity, device, engine="tile")
    device.tuned = None
    assert engine_name(device, p) == "tile" and engine_name(device) == "clblast"


def test_products_by_a_measured_tile(device, fresh, rng, monkeypatch):
    """The tile reaches the kernel, and its numbers are right."""
    needs_local_memory(device)
    put(fresh[0], device.identity, device, ("nn", 9, 37, 20), tile=[5, 1, 4, 16])
    built = []
    launch = device.launch
    monkeypatch.setattr(device, "launch", lambda *a, **d: (built.append(d), launch(*a, **d)))
    for m in (1, 9, 50):
        a, b = normal(rng, (m, 20)), normal(rng, (20, 37))
        y = (clnn.tensor(a, dtype="float32") @ clnn.tensor(b, dtype="float32")).numpy()
        np.testing.assert_allclose(y, a @ b, atol=1e-4)
        assert [built[-1][name] for name in ("MR", "NV", "VW", "KC")] == [5, 1, 4, 16]


# -- files ------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "text",
    ["", "{ damaged", "[]", "3", '{"format": 99, "devices": {}}', '{"format": 1}', '{"format": 1, "devices": []}', "[" * 9999],
)  # fmt: skip
def test_a_broken_file_is_left_out_and_written_anew(device, fresh, text):
    user, _ = fresh
    user.write_text(text)
    with pytest.warns(TuningWarning, match="clnn tune"):
        assert tuning.load(device).classes == {}
    name = put(user, device.identity, device, tile=[4, 1, 4, 0])
    assert tuning.load(device).classes == {name: Choice("", (4, 1, 4, 0))}


@pytest.mark.parametrize(
    "found",
    [
        {"classes": {"float32 nn wide tiny": {"tile": [99, 1, 4, 0]}}},
        {"classes": {"float32 nn wide tiny": {"tile": "4x4"}}},
        {"classes": {"float32 nn wide tiny": {"engine": "cublas"}}},
        {"classes": {"float32 nn wide tiny": 3}},
        {"classes": {"": {}}},
        {"classes": {"float16 nn wide tiny": {}}},
        {"classes": 3},
        {"clblast": {"float32": 3}},
        {"clblast": {"float32": {"Xgemm": {}}}},
        {"clblast": {"int": {}}},
        3,
    ],
)
def test_what_is_not_valid_is_left_out(device, fresh, found):
    user, _ = fresh
    user.write_text(json.dumps({"format": 1, "devices": {device.identity: found}}))
    with pytest.warns(TuningWarning):
        known = tuning.load(device)
    assert known.classes == {} and known.clblast == {}


def test_writing_keeps_other_devices(device, fresh):
    user, _ = fresh
    tuning.write(user, "one", {"classes": {"a": {"tile": [1, 2, 3, 4]}}})
    tuning.write(user, "two", {"classes": {}})
    tuning.write(user, "one", None)
    assert json.loads(user.read_text()) == {"format": 1, "devices": {"two": {"classes": {}}}}


def test_tiles_that_are_refused(device, fresh):
    assert tile.problem(device, np.float32, (4, 1, 4, 0)) == ""
    for one, said in (
        ((0, 1, 4, 0), "mr = 0"),
        ((4, 1, 5, 0), "vw = 5"),
        ((4, 1, 4, 7), "kc = 7"),
        ((4, True, 4, 0), "no tile"),
        ((4, 1, 4), "no tile"),
        ((16, 8, 4, 0), "registers"),
    ):
        assert said in tile.problem(device, np.float32, one)
    width = device.vector_width(np.float32)
    assert width == 16 or "wider" in tile.problem(device, np.float32, (4, 1, 2 * width, 0))


def test_copies_that_do_not_fit_are_refused(device, fresh, monkeypatch):
    monkeypatch.setattr(device, "local_memory", 32 << 10)
    assert "local memory" in tile.problem(device, np.float32, (4, 1, 4, 64))


def test_the_rules_own_tiles_are_valid(device, fresh):
    for dtype in ("float32", "float64"):
        for some in tune.shapes(device, dtype, tune.LEVELS["thorough"]).values():
            for shape in some:
                assert not tile.problem(device, np.dtype(dtype), tune.rule(device, dtype, shape))


def test_the_table_that_ships(device):
    """Every entry is one that its device would take; the file says how it was made."""
    table = json.loads(tuning.SHIPPED.read_text(encoding="utf-8"))
    assert "clnn tune" in table["about"] and table["format"] == tuning.FORMAT
    assert len(table["devices"]) >= 3
    found = [table["devices"][key] for key in tuning.families(device) if key in table["devices"]]
    if not found:
        pytest.skip(f"{tuning.families(device)} are not in it")
    known = tuning.load(device)  # warnings are errors
    assert known.classes.keys() >= found[-1]["classes"].keys()


# -- CLBlast ----------------------------------------------------------------------------------------------------------
GOOD = {
    "GEMMK": 0, "KREG": 1, "KWG": 32, "KWI": 2, "MDIMA": 8, "MDIMC": 8, "MWG": 128, "NDIMB": 8, "NDIMC": 8, "NWG": 64,
    "SA": 0, "SB": 0, "STRM": 0, "STRN": 0, "VWM": 8, "VWN": 8,
}  # fmt: skip
THIN = GOOD | {"MDIMA": 1, "MDIMC": 1, "MWG": 32, "NDIMB": 1, "NDIMC": 1, "NWG": 8, "VWN": 1}


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (GOOD, ""),
        (THIN, ""),
        (GOOD | {"NWG": 32}, "NWG / (NDIMC VWN)"),
        (GOOD | {"MWG": 32}, "MWG / (MDIMC VWM)"),
        (GOOD | {"MDIMA": 32}, "MWG / (MDIMA VWM)"),
        (GOOD | {"NDIMB": 16}, "NWG / (NDIMB VWN)"),
        (THIN | {"MDIMA": 2}, "MDIMC NDIMC / MDIMA"),
        (THIN | {"NDIMB": 2}, "MDIMC NDIMC / NDIMB"),
        (GOOD | {"KWG": 8, "KWI": 16}, "KWG / KWI"),
        (GOOD | {"MDIMC": 16, "NDIMC": 8, "KWG": 8, "VWM": 4}, "KWG MDIMA"),
        (GOOD | {"GEMMK": 1}, "GEMMK = 1"),
        (GOOD | {"NWG": 63}, "NWG = 63"),
        (GOOD | {"KWG": True}, "KWG = True"),
        ({name: value for name, value in GOOD.items() if name != "SA"}, "all of them"),
        (GOOD | {"WGD": 8}, "nothing else"),
        (None, "no kernel"),
    ],
)
def test_constraints(device, values, said):
    found = clblast.kernel_problem(device, np.float32, "Xgemm", values)
    assert said in found and bool(said) == bool(found)


def test_candidates_are_valid(device, fresh):
    for _, one in zip(range(20), tune.parameters(device, "float32")):
        assert clblast.parameters_problem(device, "float32", one) == ""
    some = [("nn", 128, 512, 784)]
    every = [*tune.candidates(device, "float32", some, [(4, 1, 4, 0)], tune.LEVELS["thorough"])]
    assert len(every) > 20 and len(set(every)) == len(every) and (4, 1, 4, 0) not in every


@pytest.mark.skipif(not clblast.available(), reason="pyclblast cannot be imported")
def test_parameters_reach_clblast_before_its_self_test(device, fresh, monkeypatch):
    """And the self-test is remembered for these parameters only."""
    user, _ = fresh
    did = []
    monkeypatch.setattr(clblast, "override", lambda d, dtype, kernels: did.append((dtype, kernels)))
    monkeypatch.setattr(clblast, "_self_test", lambda d: did.append("test") or "")
    assert clblast_problem(device) == "" and did == ["test"]
    tuning.write(user, device.identity, {"clblast": {"float32": {"Xgemm": GOOD}}})
    device.tuned = None
    clblast._problems.clear()
    assert clblast_problem(device) == "" and did == ["test", ("float32", {"Xgemm": GOOD}), "test"]
    assert len(json.loads((user.parent / "clblast-self-test.json").read_text())) == 2


@pytest.mark.skipif(not clblast.available(), reason="pyclblast cannot be imported")
def test_a_clblast_that_wants_other_parameters(device):
    with pytest.warns(TuningWarning, match="does not take"):
        clblast.override(device, "float32", {"Xgemm": {"KWG": 1}})


# -- the search -------------------------------------------------------------------------------------------------------
class Fake:
    """A worker that measures nothing: seconds by the tile, or what a candidate dies of."""

    def __init__(self, seconds, stop_after=10**9):
        self.times, self.asked, self.stop_after = seconds, [], stop_after

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    stop = __exit__

    def ask(self, task, seconds):
        if len(self.asked) >= self.stop_after:
            raise KeyboardInterrupt
        self.asked.append(task)
        each = [self.times(choice) for choice in (task["best"], task["candidate"])]
        if each[1] is None:
            return {"wrong": "ended its process with signal 6"}
        return {"best": [[each[0]]] * 3, "candidate": [[each[1]]] * 3}


def search(device, fake, **more):
    return tune.Search(device, "quick", worker=fake, say=lambda text: None, **{"engine": "tile"} | more)


def by_depth(choice):
    """Copies 64 deep are twice as fast, those 256 deep end the compiler."""
    kc = choice.tile[3]
    return None if kc == 256 else 1e-5 if kc == 64 else 2e-5


def test_the_fastest_tile_is_stored_and_used(device, fresh, monkeypatch):
    needs_local_memory(device)
    monkeypatch.setattr(tune, "rule", lambda device, dtype, shape: (4, 1, 4, 0))
    found = search(device, Fake(by_depth))
    assert found.run()
    assert device.tuned.classes and all(choice.tile[3] == 64 for choice in device.tuned.classes.values())
    entry = tuning.read(fresh[0], device.identity)["classes"][tune.class_of(device, "float32", ("nn", 128, 512, 784))]
    assert (entry["before"], entry["after"]) == (20.0, 10.0)
    assert chosen(device, "nn", 77, 512, 784).kc == 64


def test_a_gain_of_less_than_three_percent_changes_nothing(device, fresh, monkeypatch):
    monkeypatch.setattr(tune, "rule", lambda device, dtype, shape: (4, 1, 4, 0))
    search(device, Fake(lambda choice: 1e-5 if choice.tile == (4, 1, 4, 0) else 0.98e-5)).run()
    assert {choice.tile for choice in device.tuned.classes.values()} == {(4, 1, 4, 0)}


def test_luck_is_not_speed():
    """A candidate has to win by minimum and by median."""
    assert tune.Result.of([[2.0], [2.0], [2.0]], [[1.0], [1.0], [1.0]]).better
    assert not tune.Result.of([[2.0], [2.0], [2.0]], [[1.0], [2.1], [2.1]]).better
    assert not tune.Result.of([[2.0], [2.5], [2.5]], [[2.0], [2.0], [2.0]]).better


def test_stopped_and_continued(device, fresh, monkeypatch):
    """Ctrl-C loses the class that was being measured, and the next run does what is left."""
    monkeypatch.setattr(tune, "rule", lambda device, dtype, shape: (4, 1, 4, 0))
    whole = Fake(by_depth)
    search(device, whole).run()
    tuning.write(fresh[0], device.identity, None)
    first = Fake(by_depth, stop_after=len(whole.asked) // 2)
    with pytest.raises(KeyboardInterrupt):
        search(device, first).run()
    before = tuning.read(fresh[0], device.identity)["classes"]
    assert 0 < len(before) < len(search(device, first).classes)
    second = Fake(by_depth)
    assert search(device, second).run()
    assert len(second.asked) < len(whole.asked)
    after = tuning.read(fresh[0], device.identity)["classes"]
    assert len(after) == len(search(device, first).classes) and before.items() <= after.items()
    third = Fake(by_depth)
    assert search(device, third).run() and not third.asked
    older = tuning.read(fresh[0], device.identity) | {"kernel": "another"}
    tuning.write(fresh[0], device.identity, older)
    assert search(device, third).run() and third.asked, "another kernel is measured anew"


def test_time_that_is_up(device, fresh):
    found = search(device, Fake(by_depth), minutes=1e-9)
    assert not found.run() and not tuning.read(fresh[0], device.identity)
    with pytest.raises(clnn.ConfigurationError, match="--minutes 0"):
        search(device, Fake(by_depth), minutes=0)


def test_engines_are_chosen_by_measurement(device, fresh, monkeypatch):
    monkeypatch.setattr(clblast, "available", lambda: True)
    fake = Fake(lambda choice: 1e-5 if choice.engine == "tile" else 2e-5)
    search(device, fake, engine="clblast").run()
    assert {choice.engine for choice in device.tuned.classes.values()} == {"tile"}
    tuning.write(fresh[0], device.identity, None)
    search(device, Fake(lambda choice: 2e-5 if choice.engine == "tile" else 1e-5), engine="clblast").run()
    assert {choice.engine for choice in device.tuned.classes.values()} == {"clblast"}


def test_the_table_for_others_is_written_by_the_search(device, fresh, capsys, monkeypatch):
    needs_local_memory(device)
    monkeypatch.setattr(tune, "Worker", lambda device: Fake(by_depth))
    monkeypatch.setattr(tune, "rule", lambda device, dtype, shape: (4, 1, 4, 0))
    monkeypatch.setattr(clblast, "available", lambda: False)
    user, shipped = fresh
    assert cli.main(["tune", "--quick", "--ship", str(shipped)]) == 0
    shown = capsys.readouterr().out
    assert "float32 nn wide medium" in shown and "2.00x" in shown
    user.unlink()
    device.tuned = None
    assert chosen(device, "nn", 128, 512, 784).kc == 64
    assert device.identity in json.loads(shipped.read_text())["devices"][tuning.families(device)[1]]["measured"]


def test_show_and_forget(device, fresh, capsys):
    put(fresh[0], device.identity, device, tile=[4, 1, 4, 64])
    assert cli.main(["tune", "--show"]) == 0
    assert "4x1x4 by 64" in capsys.readouterr().out
    assert cli.main(["tune", "--show", "--forget"]) == 0
    assert "4x1x4" not in capsys.readouterr().out and tuning.load(device).classes == {}


# -- convolutions -----------------------------------------------------------------------------------------------------
TINY = "2x2x9x9,4,2"


def put_plan(path, device, c, plan):
    """An entry for a convolution in the user's file."""
    name = conv_plan.name(tune_conv.geometry(c), "float32", c.way == "dw")
    tuning.write(path, device.identity, {"convolutions": {name: {"plan": plan}}})
    return name


def launched(device, monkeypatch, c, n):
    """What a convolution of n images would launch, without compiling it: (kernel, defines)."""
    found = []
    monkeypatch.setattr(device, "launch", lambda file, kernel, *a, **defines: found.append((kernel, defines)))
    g = tune_conv.geometry(c._replace(way="forward"))
    if c.way == "dw":
        conv.weight_gradients(conv.Call(device, np.dtype(np.float32), n, g, None, None), None, None)
    else:
        conv.convolve(conv.Call(device, np.dtype(np.float32), n, g, None, None), None, conv.Epilogue(), c.way == "dx")
    monkeypatch.undo()
    return next((kernel, d) for kernel, d in found if kernel not in ("conv_pack", "conv_sum"))


def tile_of(plan):
    names = {"rows": ("KR", "PV"), "scatter": ("KR", "PV"), "lanes": ("MR",)}.get(plan.kernel, ("MR", "NV"))
    return f"conv_{plan.kernel}", dict(zip(names, (plan.r, plan.v)))


@pytest.mark.parametrize("way", [0, 1, 2], ids=["forward", "dx", "dw"])
def test_a_measured_plan_is_used(device, fresh, monkeypatch, way):
    """Whatever the batch; and that of this convolution alone."""
    one, other = tune_conv.parse(TINY)[way], tune_conv.parse("2x2x9x9,5,2")[way]
    model, *others = tune_conv.plans(device, one, "float32")
    wanted = next(plan for plan in others if plan[:3] != model[:3])
    put_plan(fresh[0], device, one, list(wanted))
    for c, plan in ((one, wanted), (other, tune_conv.plans(device, other, "float32")[0])):
        for n in (1, 2, 77):
            with monkeypatch.context() as patch:
                kernel, defines = launched(device, patch, c, n)
            assert (kernel, tile_of(plan)[1].items() <= defines.items()) == (tile_of(plan)[0], True)


@pytest.mark.parametrize(
    "plan",
    [
        ["rows", 14, 8, 7, 7, 2], ["rows", 4, 2, 700, 700, 2], ["rows", 4, 2, 7, 7, 99], ["fft", 4, 2, 7, 7, 2],
        ["rows", 4, 2, 7, 7], [4, 4, 2, 7, 7, 2], "rows", 3, None, ["rows", [], 2, 7, 7, 2],
    ],
    ids=["spills", "blocks", "channels", "kernel", "short", "no kernel", "text", "number", "nothing", "nested"],
)  # fmt: skip
def test_a_plan_that_is_not_valid_is_left_out(device, fresh, monkeypatch, plan):
    c = tune_conv.parse(TINY)[0]
    models = tile_of(tune_conv.plans(device, c, "float32")[0])
    put_plan(fresh[0], device, c, plan)
    with pytest.warns(TuningWarning, match="left out"):
        kernel, _ = launched(device, monkeypatch, c, 2)
    assert kernel == models[0]
    launched(device, monkeypatch, c, 2)  # it is said once: warnings are errors


def test_a_plan_that_is_ruled_out_for_now(device, fresh, monkeypatch):
    """CLNN_WINOGRAD=0 leaves a measured plan alone, without a word, and later it counts again."""
    as_a_cpu(device, monkeypatch)
    c = tune_conv.parse("2x16x9x9,16,3")[0]
    plan = next((p for p in tune_conv.plans(device, c, "float32") if p.kernel == "winograd"), None)
    if plan is None:
        pytest.skip("its tiles do not fit this device's local memory")
    put_plan(fresh[0], device, c, list(plan))
    g = tune_conv.geometry(c)
    for asked, used in (("0", False), ("4", True), ("0", False)):
        monkeypatch.setenv("CLNN_WINOGRAD", asked)
        assert (conv_plan.plan_for(device, g, np.dtype(np.float32), 2).kernel == "winograd") is used


@pytest.mark.parametrize("way", [0, 1, 2], ids=["forward", "dx", "dw"])
def test_on_a_gpu_winograd_is_measured_beside_conv_local(device, fresh, monkeypatch, way):
    """Where it is the faster one, it is used from the batch on that it was measured with, and refused by CLNN_WINOGRAD=0."""
    monkeypatch.setattr(device, "kind", "gpu")
    monkeypatch.setenv("CLNN_WINOGRAD", "4")
    if device.max_group < 256:
        pytest.skip(f"groups of {device.max_group} work-items are too small for gemm_local")
    c = tune_conv.parse("5x16x9x9,16,3")[way]
    model, *others = tune_conv.plans(device, c, "float32")
    assert conv_plan.shown(model) == "conv_local"
    assert {(p.kernel, p.cb) for p in others} == {("winograd_gpu", 5)} and {p.r for p in others} == {4, 8}
    one = next(p for p in others if p.r == 4)
    assert tune_conv.error_of(device, c, "float32", one) == ""
    put_plan(fresh[0], device, c, list(one))
    tuning.load(device)
    used = lambda n: conv_plan.plan_for(device, tune_conv.geometry(c), np.dtype(np.float32), n, c.way == "dw").kernel  # noqa: E731
    assert [used(n) for n in (4, 5, 50)] == ["local", "winograd_gpu", "winograd_gpu"]
    monkeypatch.setenv("CLNN_WINOGRAD", "0")
    assert used(50) == "local"


def test_a_table_of_convolutions_that_is_none(device, fresh):
    user, _ = fresh
    user.write_text(json.dumps({"format": 1, "devices": {device.identity: {"convolutions": 3}}}))
    with pytest.warns(TuningWarning):
        assert tuning.load(device).convolutions == {}


def test_candidates_are_different_and_of_every_kernel(device, fresh):
    for c in tune_conv.of_networks(quick=False):
        plans = tune_conv.plans(device, c, "float32")
        assert 0 < len(set(plans)) == len(plans) <= conv_plan.PLANS, c.name
    plans = tune_conv.plans(device, tune_conv.parse("2x8x26x26,16,3")[0], "float32")
    assert {"rows", "columns"} <= {plan.kernel for plan in plans} and len({plan[:3] for plan in plans[:8]}) > 3


def test_names_tell_convolutions_apart(device, fresh):
    texts = [
        TINY,
        "2x2x9x9,4,3,2",
        "2x2x9x9,4,3,1,1",
        "2x2x9x9,4,3,1,0,2",
        "2x4x9x9,2,3",
        "2x2x10x9,4,3",
        "2x2x9x9,4,1",
    ]
    every = [c for text in texts for c in tune_conv.parse(text)]
    names = [conv_plan.name(tune_conv.geometry(c), "float32", c.way == "dw") for c in every]
    assert len(set(names)) == len(names)
    assert names[0] == "float32 forward c 2 k 4 space 1x9x9 out 1x8x8 size 1x2x2"


def of_plans(device, fake, level="quick", **more):
    every = tune_conv.parse(TINY)
    return tune.Search(device, level, worker=fake, say=lambda text: None, engine="conv", convolutions=every, **more)


def test_the_fastest_plan_is_stored_and_used(device, fresh):
    """And what was done is not done again, but at a higher level or for another kernel."""
    fast = {c.way: tune_conv.plans(device, c, "float32")[3] for c in tune_conv.parse(TINY)}
    fake = Fake(lambda plan: 1e-5 if plan in fast.values() else 2e-5)
    found = of_plans(device, fake)
    assert found.run() and len(found.steps()) == 3
    stored = tuning.read(fresh[0], device.identity)["convolutions"]
    assert [tuple(entry["plan"]) for entry in stored.values()] == [*fast.values()]
    assert {(entry["before"], entry["after"]) for entry in stored.values()} == {(20.0, 10.0)}
    again = Fake(fake.times)
    assert of_plans(device, again).run() and not again.asked
    assert of_plans(device, again, "default").run() and again.asked
    assert tuning.read(fresh[0], device.identity)["convolutions"] == stored
    tuning.write(fresh[0], device.identity, tuning.read(fresh[0], device.identity) | {"kernel": "another"})
    kept = Fake(fake.times)
    assert of_plans(device, kept).run() and not kept.asked, "another kernel for products is none for these"


def test_a_plan_that_is_not_faster_is_not_stored(device, fresh):
    models = [tune_conv.plans(device, c, "float32")[0] for c in tune_conv.parse(TINY)]
    found = of_plans(device, Fake(lambda plan: 1e-5 if plan in models else 0.98e-5))
    assert found.run()
    table = tuning.read(fresh[0], device.identity)
    assert table["convolutions"] == {} and len(table["done"]) == 3
    assert of_plans(device, Fake(lambda plan: None), "default").run(), "and candidates may fail"


def test_convolutions_stopped_and_continued(device, fresh):
    fake = Fake(lambda plan: 2e-5, stop_after=tune.LEVELS["quick"].plans)
    with pytest.raises(KeyboardInterrupt):
        of_plans(device, fake).run()
    assert len(tuning.read(fresh[0], device.identity)["done"]) == 1
    rest = Fake(fake.times)
    assert of_plans(device, rest).run() and {task["convolution"].way for task in rest.asked} == {"dx", "dw"}


def test_a_convolution_is_tuned_in_a_real_process(device, fresh, monkeypatch):
    """Two plans, checked and timed."""
    monkeypatch.setitem(tune.LEVELS, "quick", tune.LEVELS["quick"]._replace(plans=2))
    said = []
    every = tune_conv.parse(TINY)[:1]
    search = tune.Search(device, "quick", engine="conv", convolutions=every, say=said.append)
    assert search.run() and "(1 tried)" in said[-1], said
    assert len(tuning.read(fresh[0], device.identity)["done"]) == 1


@pytest.mark.parametrize("way", [0, 1, 2], ids=["forward", "dx", "dw"])
def test_a_plan_with_wrong_numbers_is_refused(device, fresh, monkeypatch, way):
    c = tune_conv.parse(TINY)[way]
    plan = tune_conv.plans(device, c, "float32")[0]
    case = tune_conv.Case(device, c, "float32")
    right = tune_conv.expected(c)
    results = {"": right, "wrong numbers": [1.01 * a for a in right], "past the end": [np.append(a, 0) for a in right]}
    for wrong, values in results.items():
        put = [np.array(a, np.float32) for a in values]
        monkeypatch.setattr(case, "run", lambda plan, put=put: [*map(device.upload, put, case.outs)])
        assert wrong in case.error_of(plan) and bool(wrong) == bool(case.error_of(plan))


@pytest.mark.parametrize(
    "text",
    ["", "64,3", "2x2x9,4,3", "2x2x9x9,4,30", "2x2x9x9,4", "2x3x9x9,4,3,1,0,2", "2x2x9x9,4,3,0", "2x2x9x9,4,3,1,0,1,1"],
)
def test_convolutions_that_are_none(fresh, text):
    with pytest.raises(clnn.ConfigurationError, match="NxCxHxW"):
        tune_conv.parse(text)


def test_shown_convolutions(device, fresh, capsys):
    c = tune_conv.parse(TINY)[0]
    plan = tune_conv.plans(device, c, "float32")[1]
    name = put_plan(fresh[0], device, c, list(plan))
    assert cli.main(["tune", "--show"]) == 0
    shown = capsys.readouterr().out
    assert name in shown and conv_plan.shown(plan) in shown
    assert cli.main(["tune", "--conv", TINY, "--ship", "FILE"]) == 1
    assert "leave out" in capsys.readouterr().err


# -- the process that candidates run in -------------------------------------------------------------------------------
def test_a_worker_that_aborts_is_survived(device):
    """The next task gets another process."""
    code = (
        "import json, os, sys\n"
        "for line in sys.stdin:\n"
        "    print('noise of a driver')\n"
        "    if json.loads(line)['die']:\n"
        "        print('Do not know how to scalarize', file=sys.stderr, flush=True)\n"
        "        os.abort()\n"
        "    print(json.dumps({'pid': os.getpid()}), flush=True)\n"
    )
    with tune.Worker(device, [sys.executable, "-c", code]) as worker:
        first = worker.ask({"die": False}, 60)["pid"]
        assert worker.ask({"die": False}, 60)["pid"] == first
        said = worker.ask({"die": True}, 60)["wrong"]
        assert "ended its process" in said and "scalarize" in said
        assert worker.ask({"die": False}, 60)["pid"] != first
    assert worker.process is None


def test_a_worker_that_hangs_is_ended(device):
    with tune.Worker(device, [sys.executable, "-c", "import time; time.sleep(600)"]) as worker:
        assert worker.ask({}, 0.2) == {"wrong": "no answer after 0.2 s"}
        assert worker.process is None


def test_a_worker_that_never_starts(device):
    with tune.Worker(device, [sys.executable, "-c", "raise SystemExit(7)"]) as worker:
        assert "exit code 7" in worker.ask({}, 60)["wrong"]


def test_a_real_worker_times_and_checks(device):
    """Small products through the real process: times for both sides, and a refusal in words."""
    if not device.long_loops:
        pytest.skip(
            f"{device!r} takes the rule's tiles, not measured ones, as GPUs and drivers that end loops early do"
        )
    with tune.Worker(device) as worker:
        task = {"shapes": [("nn", 10, 30, 64)], "dtype": "float32", "rounds": 2}
        tiles = [Choice("tile", (4, 1, 4, 0)), Choice("tile", (5, 1, 4, 16))]
        answer = worker.ask({**task, "best": tiles[0], "candidate": tiles[1]}, 300)
        assert "wrong" not in answer, answer
        assert all(0 < seconds < 1 for side in answer.values() for times in side for seconds in times)
        answer = worker.ask({**task, "best": tiles[0], "candidate": Choice("tile", (4, 1, 5, 0))}, 300)
        assert "BuildError" in answer["wrong"]


@pytest.mark.parametrize("form", ["nn", "tn", "nt", "tt"])
def test_a_candidate_with_wrong_numbers_is_refused(device, fresh, form, monkeypatch):
    used = Choice("tile", (4, 1, 4, 16))
    assert tune.error_of(device, np.dtype(np.float32), form, 9, 11, 20, used) == ""

    def wrong(d, p):
        lda, ldb, _ = p.strides
        gemm(d, p._replace(shape=p.shape._replace(k=p.shape.k - 1), lda=lda, ldb=ldb))

    monkeypatch.setattr(tune, "gemm", wrong)
    assert "wrong" in tune.error_of(device, np.dtype(np.float32), form, 9, 11, 20, used)
