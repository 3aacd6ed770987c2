"""Steps fused into one kernel: when, and to the same bits."""

import hashlib
import os
import platform
import re

import numpy as np
import pytest

import clnn
from clnn.runtime import bundles, fusion
from clnn.runtime import fusing as fusing_
from clnn.runtime.program import kernel_folder, source_for

LOSSES = [("quadratic", "sigmoid"), ("cross_entropy", "linear"), ("binary_cross_entropy", "sigmoid"), ("hinge", "tanh")]
LOSSES += [("ignoring", "linear"), ("a yes weighs", "linear")]
MADE = {
    "ignoring": clnn.losses.CrossEntropy(0.1, ignore_index=1),
    "a yes weighs": clnn.losses.BinaryCrossEntropy((1, 2, 0.5, 3)),
}
COSTS = {
    name: getattr(fusion, name)
    for name in ("COMPILING", "PART_OF_IT", "CALL_OF_IT", "LOADING", "LOADING_TEXT", "HAVING")
}


@pytest.fixture
def fusing(device, monkeypatch):
    """Fusing pays from the first replay on; the fused recordings that come up are counted."""
    if not fusion.allowed(device):
        pytest.skip(f"steps are not fused on {device!r}")
    monkeypatch.setenv("CLNN_GEMM", "tile")
    for cost in COSTS:
        monkeypatch.setattr(fusion, cost, 0.0)
    monkeypatch.setattr(fusing_, "TIMED", 1)
    monkeypatch.setattr(fusion, "SHORT", 1.0)
    made, fuse = [], fusing_.Fusing.fuse

    def counted(self):
        made.append(fuse(self))
        return made[-1]

    monkeypatch.setattr(fusing_.Fusing, "fuse", counted)
    return made


def trained(device, x, y, loss, last, **options):
    with clnn.use(device):
        net = clnn.Sequential([clnn.Dense(13, "tanh"), clnn.Dense(4, last)], input_shape=x.shape[1:], seed=4)
        given = {"optimizer": clnn.SGD(0.2, weight_decay=1e-3), "epochs": 5, "batch_size": 10, "seed": 2, **options}
        history = net.fit(x, y, loss=MADE.get(loss, loss), **given)
    return np.concatenate([p.numpy().ravel() for p in net.parameters()]), history["loss"], history["accuracy"]


@pytest.mark.platform("fusion")
@pytest.mark.parametrize(("loss", "last"), LOSSES)
def test_the_same_bits_as_eager_steps(device, rng, fusing, loss, last):
    x, y = rng.random((407, 17), dtype=np.float32), rng.integers(0, 4, 407).astype(np.int32)
    fused = trained(device, x, y, loss, last)
    assert len(fusing) == 2 and all(fusing)  # whole batches, and the remainder
    eager = trained(device, x, y, loss, last, record=False)
    assert np.array_equal(fused[0], eager[0]) and fused[1:] == eager[1:]


@pytest.mark.parametrize(
    "make",
    [
        lambda: clnn.SGD(0.1, momentum=0.9, weight_decay=1e-3),
        lambda: clnn.Nadam(clnn.Cosine(0.01), clip_norm=0.5, clip_value=0.5, ema=0.9),
    ],
)
def test_optimizers_of_one_work_item(device, rng, fusing, make):
    """A small net's update is one work-item's, and so are the sums for clipping."""
    x, y = rng.random((200, 17), dtype=np.float32), rng.integers(0, 4, 200).astype(np.int32)
    fused = trained(device, x, y, "cross_entropy", "linear", optimizer=make())
    assert fusing and all(fusing)
    eager = trained(device, x, y, "cross_entropy", "linear", optimizer=make(), record=False)
    assert np.array_equal(fused[0], eager[0]) and fused[1:] == eager[1:]


def test_rates_move_on_inside_and_between_tables(device, rng, fusing):
    x, y = rng.random((3000, 5), dtype=np.float32), rng.integers(0, 4, 3000).astype(np.int32)
    found = []
    for record in (True, False):
        optimizer = clnn.SGD(lambda t: 0.5 / (1 + 0.01 * t))
        found.append(
            trained(device, x, y, "quadratic", "sigmoid", optimizer=optimizer, batch_size=2, epochs=2, record=record)
        )
        assert optimizer.steps == 3000 > clnn.optim.ROWS
    assert any(fusing) and np.array_equal(found[0][0], found[1][0]) and found[0][1:] == found[1][1:]


def test_validation_weights_and_a_changing_rate_between_epochs(device, rng, fusing):
    x, y = rng.random((200, 6), dtype=np.float32), rng.integers(0, 4, 200).astype(np.int32)
    weight = rng.random(200).astype(np.float32)

    class Slower(clnn.Callback):
        def on_epoch_end(self, model, epoch, logs):
            model.optimizer.lr *= 0.5

    found = [
        trained(
            device,
            x,
            y,
            "cross_entropy",
            "linear",
            validation=(x, y),
            sample_weight=weight,
            callbacks=[Slower()],
            record=r,
        )
        for r in (True, False)
    ]
    assert any(fusing) and np.array_equal(found[0][0], found[1][0]) and found[0][1:] == found[1][1:]


def test_a_users_step_is_fused_too(device, rng, fusing):
    with clnn.use(device):
        run = clnn.step(lambda a, b: (a @ b) @ b)
        for _ in range(6):
            a, b = rng.random((3, 5), dtype=np.float32), rng.random((5, 5), dtype=np.float32)
            assert np.allclose(run(a, b).numpy(), a @ b @ b, rtol=1e-5)
    assert any(fusing)


@pytest.mark.parametrize("share", [1, 5])
def test_cores_share_out_a_larger_step_to_the_same_bits(device, rng, fusing, monkeypatch, share):
    """And so do more workers than can run at once: nobody waits for one who does not run."""
    many = share * max(2, device.compute_units)
    monkeypatch.setattr(fusion, "cores", lambda device: many)
    x, y = rng.random((256, 500), dtype=np.float32), rng.integers(0, 4, 256).astype(np.int32)
    found = []
    for record in (True, False):
        with clnn.use(device):
            net = clnn.Sequential([clnn.Dense(260, "relu"), clnn.Dense(4)], input_shape=500, seed=4)
            given = {"optimizer": clnn.Adam(), "epochs": 20, "batch_size": 128, "seed": 2, "record": record}
            losses = net.fit(x, y, loss="cross_entropy", **given)["loss"]
        found.append((np.concatenate([p.numpy().ravel() for p in net.parameters()]), losses))
    assert len(fusing) == 1 and min(many, 4) <= fusing[0].workers <= many
    assert np.array_equal(found[0][0], found[1][0]) and found[0][1] == found[1][1]


@pytest.mark.slow
def test_convolutions_pooling_and_normalisation(device, rng, fusing):
    x, y = rng.random((40, 2, 13, 13), dtype=np.float32), rng.integers(0, 4, 40).astype(np.int32)
    found = []
    for record in (True, False):
        with clnn.use(device):
            body = [clnn.Conv2D(7, 3, padding=1, bias=False), clnn.BatchNorm("relu"), clnn.MaxPool2D(2)]
            layers = [*body, clnn.Conv2D(9, 5, "relu"), clnn.Flatten(), clnn.Dropout(0.2), clnn.Dense(4)]
            net = clnn.Sequential(layers, input_shape=x.shape[1:], seed=4)
            given = {"optimizer": clnn.SGD(0.05), "epochs": 5, "batch_size": 10, "seed": 2, "record": record}
            losses = net.fit(x, y, loss="cross_entropy", **given)["loss"]
        found.append((np.concatenate([p.numpy().ravel() for p in net.parameters()]), losses))
    assert fusing and all(fusing)
    assert np.array_equal(found[0][0], found[1][0]) and found[0][1] == found[1][1]


@pytest.fixture
def elsewhere(device, monkeypatch, tmp_path):
    """A cache folder in which no step is kept, and a function after which this process has none either, as another one."""
    monkeypatch.setenv("CLNN_CACHE_DIR", str(tmp_path))
    programs = device.programs

    def another():
        monkeypatch.setattr(programs, "made", {})
        monkeypatch.setattr(programs, "replays", type(programs.replays)())

    another()
    return another


def test_what_is_compiled_already_pays_sooner(device, rng, fusing, monkeypatch, elsewhere):
    """In this process after a few steps, in another one after some more, and before all of that only for very many."""
    x, y = rng.random((60, 6), dtype=np.float32), rng.integers(0, 4, 60).astype(np.int32)
    worth, costs, new = fusion.Fused.worth.fget, [], []

    def noted(one):
        with monkeypatch.context() as really:
            for cost, seconds in COSTS.items():
                really.setattr(fusion, cost, seconds)
            costs.append(worth(one) * fusion.SAVED * one.launches)
            parts = len(one._parts)
            whole = fusion.COMPILING + fusion.PART_OF_IT * parts + fusion.CALL_OF_IT * (one.launches - parts)
            new.append(whole * (1 if device.pocl_version > (0, 0) else fusion.OTHERS))
        return 1

    monkeypatch.setattr(fusion.Fused, "worth", property(noted))
    trained(device, x, y, "quadratic", "sigmoid")
    assert len(fusing) == 1 and len(costs) and costs == pytest.approx(new, rel=1e-3)
    trained(device, x, y, "quadratic", "sigmoid")
    assert costs[-1] == pytest.approx(COSTS["HAVING"], rel=0.02)
    elsewhere()
    trained(device, x, y, "quadratic", "sigmoid")
    loading = "LOADING" if device.pocl_version[0] in fusion.GIVING else "LOADING_TEXT"
    assert costs[-1] == pytest.approx(COSTS[loading], rel=0.01)
    trained(device, x, y, "quadratic", "sigmoid", batch_size=12)
    assert costs[-1] == pytest.approx(new[-1], rel=1e-3)


def test_a_kept_step_needs_no_compiler_and_no_trial(device, rng, fusing, monkeypatch, elsewhere):
    """And gives the same bits, in another process of the same user."""
    x, y = rng.random((100, 6), dtype=np.float32), rng.integers(0, 4, 100).astype(np.int32)
    eager = trained(device, x, y, "quadratic", "sigmoid", record=False)
    assert trained(device, x, y, "quadratic", "sigmoid")[1] == eager[1] and len(fusing) == 1
    elsewhere()
    monkeypatch.setattr(type(device.programs), "build_text", None)
    monkeypatch.setattr(fusing_, "TIMED", 1 << 40)
    again = trained(device, x, y, "quadratic", "sigmoid")
    assert len(fusing) == 2 and fusing[1].most == fusing[0].most
    assert np.array_equal(again[0], eager[0]) and again[1:] == eager[1:]


def test_the_steps_kept_last_are_kept(device, rng, fusing, monkeypatch, elsewhere, tmp_path):
    for number in range(5):
        (tmp_path / f"step-{number}").write_bytes(b"")
        os.utime(tmp_path / f"step-{number}", (number, number))
    (tmp_path / "digits.npz").write_bytes(b"no step")
    monkeypatch.setattr(fusion, "MOST_KEPT", 3)
    trained(
        device, rng.random((60, 6), dtype=np.float32), rng.integers(0, 4, 60).astype(np.int32), "quadratic", "sigmoid"
    )
    (one,) = fusing
    assert {file.name for file in tmp_path.glob("*[!k]")} == {"digits.npz", "step-3", "step-4", f"step-{one.name}"}


def test_that_a_step_is_long_is_not_believed_for_ever(device, rng, fusing, monkeypatch, elsewhere):
    """It may have been timed while other programs took the processor."""
    x, y = rng.random((100, 6), dtype=np.float32), rng.integers(0, 4, 100).astype(np.int32)
    with monkeypatch.context() as now:
        now.setattr(fusion, "always", lambda: True)
        now.setattr(
            fusing_.Fusing, "took", lambda self, seconds: setattr(self, "seconds", 1e9) or setattr(self, "ready", True)
        )
        trained(device, x, y, "quadratic", "sigmoid")
    assert len(fusing) == 1 and fusing[0].known == 1e9 and not fusing[0].pays(1e9)
    for _ in range(2):
        trained(device, x, y, "quadratic", "sigmoid")
        elsewhere()
    assert len(fusing) == 3 and all(fusing) and all(one.most > 1 for one in fusing[1:])


@pytest.mark.parametrize("change", ["cut", "empty", "another byte", "another's", "no binary", "missing"])
def test_a_kept_step_that_is_damaged_is_compiled_anew(device, rng, fusing, monkeypatch, elsewhere, tmp_path, change):
    """Nothing of it reaches the driver, unless a program wrote it there that knows the digest: then the driver refuses it."""
    x, y = rng.random((100, 6), dtype=np.float32), rng.integers(0, 4, 100).astype(np.int32)
    eager = trained(device, x, y, "hinge", "tanh", record=False)
    trained(device, x, y, "hinge", "tanh")
    (file,) = tmp_path.glob("step-*")
    whole = file.read_bytes()
    if change == "cut":
        file.write_bytes(whole[:-100])
    elif change == "empty":
        file.write_bytes(b"")
    elif change == "another byte":
        file.write_bytes(whole[:5000] + bytes([whole[5000] ^ 1]) + whole[5001:])
    elif change == "no binary":
        data = whole[32:40] + b"not a program" * 100
        file.write_bytes(hashlib.sha256(data).digest() + data)
    elif change == "another's":
        monkeypatch.setattr(os, "geteuid", lambda: file.stat().st_uid + 1)
    else:
        file.unlink()
    elsewhere()
    compiled, build = [], type(device.programs).build_text
    monkeypatch.setattr(
        type(device.programs), "build_text", lambda self, text: compiled.append(text) or build(self, text)
    )
    again = trained(device, x, y, "hinge", "tanh")
    kept = file.read_bytes()
    assert len(compiled) == 1 and hashlib.sha256(kept[32:]).digest() == kept[:32] and len(kept) > 1000
    assert np.array_equal(again[0], eager[0]) and again[1:] == eager[1:]


def test_a_driver_that_is_not_known_to_give_a_binary_is_not_asked(
    device, rng, fusing, monkeypatch, elsewhere, tmp_path
):
    x, y = rng.random((60, 6), dtype=np.float32), rng.integers(0, 4, 60).astype(np.int32)
    monkeypatch.setattr(fusion, "GIVING", ())
    monkeypatch.setattr(type(device.programs), "options_of_made", None)
    losses = [trained(device, x, y, "quadratic", "sigmoid")[1] for _ in range(2) if elsewhere() is None]
    assert len(fusing) == 2 and all(fusing) and losses[0] == losses[1]
    assert [file.stat().st_size for file in tmp_path.glob("step-*")] == [fusion.KEPT.size]


def test_a_kept_step_is_one_of_these_kernels_and_this_device(device, rng, fusing, monkeypatch, elsewhere, tmp_path):
    x, y = rng.random((60, 6), dtype=np.float32), rng.integers(0, 4, 60).astype(np.int32)
    names = [[], [], []]
    for found, made in zip(names, (lambda folder: "one", lambda folder: "other", lambda folder: "other")):
        monkeypatch.setattr(fusion, "_made_from", made)
        trained(device, x, y, "quadratic", "sigmoid")
        found += sorted(file.name for file in tmp_path.glob("step-*"))
    assert [*map(len, names)] == [1, 2, 2]
    with monkeypatch.context() as now:
        now.setitem(vars(device), "driver", "newer")
        trained(device, x, y, "quadratic", "sigmoid")
    with monkeypatch.context() as now:
        now.setattr(fusion, "_processor", lambda: "another")
        trained(device, x, y, "quadratic", "sigmoid")
    assert len([*tmp_path.glob("step-*")]) == 4


def test_many_short_runs_pay_as_a_long_one_does(device, rng, fusing, monkeypatch, elsewhere):
    """What counts are the steps of all of them, in this process."""
    x, y = rng.random((60, 6), dtype=np.float32), rng.integers(0, 4, 60).astype(np.int32)
    monkeypatch.setattr(fusion, "COMPILING", 1.0 / (1 if device.pocl_version > (0, 0) else fusion.OTHERS))
    monkeypatch.setattr(fusion, "SAVED", 1 / 6 / 100)  # of six launches: 100 steps
    runs = 0
    while not fusing and runs < 20:
        trained(device, x, y, "quadratic", "sigmoid")  # 30 steps, of which 27 are replays
        runs += 1
    assert 2 <= runs <= 6


def test_long_launches_are_not_fused(device, rng, fusing, monkeypatch):
    monkeypatch.setattr(fusion, "SHORT", 1e-9)
    x, y = rng.random((100, 6), dtype=np.float32), rng.integers(0, 4, 100).astype(np.int32)
    trained(device, x, y, "cross_entropy", "linear")
    assert fusing and not any(fusing)


@pytest.mark.parametrize("slower", [0, 1])
def test_long_launches_go_in_whichever_form_is_faster_now(device, rng, fusing, monkeypatch, slower):
    """Timed again from time to time; all forms have the same bits."""
    monkeypatch.setattr(fusing_, "LONG", 0.0)
    monkeypatch.setattr(fusing_, "BETWEEN", 5)
    monkeypatch.setattr(fusion, "STEPS", 1)
    seen, took = {}, fusing_.Contest.took

    def other_seconds(self, seconds):
        seen.setdefault(self, []).append((self.timed, self.form))
        took(self, 2.0 if self.form == slower else 1.0)

    monkeypatch.setattr(fusing_.Contest, "took", other_seconds)
    x, y = rng.random((407, 17), dtype=np.float32), rng.integers(0, 4, 407).astype(np.int32)
    fused = trained(device, x, y, "cross_entropy", "linear")
    eager = trained(device, x, y, "cross_entropy", "linear", record=False)
    assert np.array_equal(fused[0], eager[0]) and fused[1:] == eager[1:]
    tries = [(True, 0), (True, 1)] * fusing_.TRIED
    assert len(seen) == 2  # of whole batches, and of the remainder
    assert max(seen.values(), key=len)[: 2 * (len(tries) + 5)] == 2 * (tries + 5 * [(False, 1 - slower)])


def test_always_means_one_kernel_whatever_is_faster(device, rng, fusing, monkeypatch):
    monkeypatch.setattr(fusing_, "LONG", 0.0)
    monkeypatch.setattr(fusing_.Contest, "took", lambda *_: pytest.fail("the forms were compared"))
    monkeypatch.setenv("CLNN_FUSE", "always")
    x, y = rng.random((100, 6), dtype=np.float32), rng.integers(0, 4, 100).astype(np.int32)
    trained(device, x, y, "quadratic", "sigmoid")
    assert any(fusing)


def test_one_launch_takes_no_longer_than_that(device, rng, fusing, monkeypatch):
    """Whoever waits for a launch, or interrupts it, waits for all of its steps."""
    x, y = rng.random((100, 6), dtype=np.float32), rng.integers(0, 4, 100).astype(np.int32)
    trained(device, x, y, "cross_entropy", "linear")
    assert all(1 <= one.most <= fusion.STEPS for one in fusing)
    for seconds, most in ((fusion.SECONDS / 3.5, 3), (fusion.SECONDS, 1), (1e-9, fusion.STEPS)):
        assert fusion.most_steps(seconds) == most


def test_parts_share_no_name():
    """state.cl has two kernels, and losses.cl includes it: all of them may become parts of one step."""
    text = fusion.part("state", "advance", "float", "part_3", ())
    assert "#define end_step(...) part_3_end_step(" in text and "#define advance(...) part_3(" in text
    for path in kernel_folder().glob("*.cl"):
        text = path.read_text()
        assert len(fusion.KERNEL.findall(text)) == len(re.findall(r"^kernel\b", text, re.MULTILINE)), path
    _, others = bundles.names_in(
        source_for("elementwise", "float")
    )  # names that macros make, and macros that use those
    assert {"relu_f", "_cl_exp_df", "equal_da", "equal_int", "multiply_int", "put", "real2", "T"} <= others


BUILT_IN = re.findall(
    r"\w+",
    """abs abs_diff acos acosh all any asin asinh atan atan2 atanh barrier bitselect cbrt ceil clamp clz copysign cos cosh
cross degrees distance dot erf erfc exp exp10 exp2 expm1 fabs fast_length floor fma fmax fmin fmod fract frexp hypot ilogb isequal
isfinite isinf isnan ldexp length lgamma log log10 log1p log2 logb mad mad24 mad_hi max maxmag min minmag mix modf mul24 mul_hi
nan
nextafter normalize popcount pow pown powr prefetch radians remainder rhadd hadd rint rootn rotate round rsqrt select shuffle
shuffle2 sign signbit sin sincos sinh smoothstep sqrt step sub_sat add_sat tan tanh tgamma trunc upsample vec_step""",
)


@pytest.mark.parametrize("real", ["float", "double"])
def test_no_function_has_the_name_of_a_built_in_one(real):
    """In PoCL those are macros: renamed, then forgotten at the end of a part, they would be missing in later ones."""
    for path in kernel_folder().glob("*.cl"):
        _, others = bundles.names_in(source_for(path.stem, real))
        assert not others & {*BUILT_IN}, path


EVERY = frozenset({"WIDTH > 1", "RECORD"})


@pytest.mark.parametrize(
    ("file", "kernel", "asks"),
    [
        ("gemm", "gemm_sum", False),
        ("gemm", "gemm_local", True),
        ("elementwise", "scale_add", False),
        ("norm", "row_forward", True),
    ]
    + [("state", "advance", False), ("state", "end_step", True), ("losses", "softmax_cross_entropy", True)],
)
def test_which_kernels_ask_for_groups(file, kernel, asks):
    """Of the others any item may go to any core."""
    assert fusion.asks_for_groups(file, kernel, EVERY) is asks


@pytest.mark.parametrize(
    ("file", "kernel"),
    [("softmax", "softmax_forward"), ("softmax", "softmax_backward"), ("reduce", "reduce"), ("reduce", "argmax")]
    + [("metrics", "accuracy"), ("metrics", "top_k")]
    + [("losses", "softmax_cross_entropy"), ("losses", "elementwise_loss")],
)
def test_kernels_of_rows_ask_for_groups_only_where_a_row_is_a_group_s(file, kernel):
    assert not fusion.asks_for_groups(file, kernel, frozenset())
    assert kernel == "top_k" or fusion.asks_for_groups(file, kernel, EVERY)


def test_rows_that_a_work_item_has_to_itself_are_fused(device, rng, fusing):
    """Softmax and reductions of rows, in a step of its own, to the bits of the step that is not recorded."""
    x = clnn.tensor(rng.standard_normal((70, 40)).astype(np.float32))

    def answer(x):
        p = clnn.softmax(x)
        return p, p.max(-1), clnn.log_softmax(x * 2).mean(-1)

    step = clnn.step(answer)
    for _ in range(fusing_.TIMED + 8):
        found = step(x)
    assert len(fusing) == 1
    for a, b in zip(found, answer(x)):
        assert np.array_equal(a.numpy(), b.numpy())


class GPT(clnn.Model):
    whole_inputs = True

    def __init__(self):
        self.letters, self.places = clnn.Embedding(11, 16, weight_init="normal"), clnn.PositionalEmbedding(40)
        self.blocks = [clnn.TransformerEncoderLayer(4, 24, causal=True) for _ in range(2)]

    def forward(self, x):
        x = self.places(self.letters(x))
        for block in self.blocks:
            x = block(x)
        return self.letters.tied(x)


def test_a_token_of_a_language_model(device, rng, fusing, capfd):
    """More than fifty launches, by far the most of which are short; and PoCL has nothing to say of them."""

    with clnn.use(device):
        clnn.seed(3)
        net = GPT()
        plain = [clnn.generate(net, [1, 2], 38, seed=seed, cache=False) for seed in range(4)]
        capfd.readouterr()
        fused = [clnn.generate(net, [1, 2], 38, seed=seed) for seed in range(4)]
    assert any(one is not None and len(one._args) > 20 for one in fusing)
    assert np.array_equal(plain, fused) and capfd.readouterr().err == ""


def test_a_training_step_of_a_language_model(device, rng, fusing):
    """With a loss by rows, a position's gradient, which begins as zeros, and a hundred launches."""

    batches = [rng.integers(0, 11, (5, 13)).astype(np.int32) for _ in range(9)]

    def losses(record):
        with clnn.use(device):
            clnn.seed(3)
            net, optimizer = GPT(), clnn.AdamW(1e-2)

            @clnn.step(record=record)
            def step(x, y):
                loss = clnn.losses.cross_entropy(net(x).reshape(-1, 11), y.reshape(-1))
                loss.backward()
                optimizer.step(net.parameters())
                return loss

            return [float(step(x[:, :-1], x[:, 1:])) for x in batches], net.state_dict()

    (found, weights), (wanted, others) = losses(True), losses(False)
    assert len(fusing) == 1 and fusing[0].launches > 64
    assert found == wanted and all(np.array_equal(weights[name], others[name]) for name in others)


@pytest.mark.parametrize("size", [1, 3, 4096, 70_001])
def test_zeros_within_a_step(device, rng, size):
    x = clnn.tensor(rng.random(size, dtype=np.float32), requires_grad=True)

    @clnn.step
    def step(factor):
        x.zero_grad()
        ((x[: size // 2 + 1] * factor).sum()).backward()
        return x.grad * 1

    for factor in range(1, 6):
        wanted = np.where(np.arange(size) <= size // 2, factor, 0)
        assert np.array_equal(step(np.float32(factor)).numpy(), wanted)


def test_it_can_be_switched_off(device, rng, fusing, monkeypatch):
    monkeypatch.setenv("CLNN_FUSE", "0")
    x, y = rng.random((100, 6), dtype=np.float32), rng.integers(0, 4, 100).astype(np.int32)
    trained(device, x, y, "quadratic", "sigmoid")
    assert not any(fusing)
    monkeypatch.setenv("CLNN_FUSE", " ")  # as where it is not set
    trained(device, x, y, "quadratic", "sigmoid")
    monkeypatch.setenv("CLNN_FUSE", "no")
    with pytest.raises(clnn.ConfigurationError, match="CLNN_FUSE='no'"):
        trained(device, x, y, "quadratic", "sigmoid")


def test_a_driver_that_cannot_compile_it_costs_only_speed(device, rng, fusing, monkeypatch, elsewhere):
    def refuses(*args):
        raise clnn.BuildError("no room")

    monkeypatch.setattr(type(device.programs), "build_text", refuses)
    x, y = rng.random((100, 6), dtype=np.float32), rng.integers(0, 4, 100).astype(np.int32)
    with pytest.warns(clnn.RecordingWarning, match="one by one, with the same results: no room. CLNN_FUSE=0"):
        replayed = trained(device, x, y, "quadratic", "sigmoid")[0]
    eager = trained(device, x, y, "quadratic", "sigmoid", record=False)[0]
    assert not fusing and np.array_equal(replayed, eager)


def test_the_same_bits_where_launches_alone_have_built_in_functions(device, rng, fusing, monkeypatch):
    """As on Intel's runtime, where only a fused step has its local memory on the stack."""
    monkeypatch.setitem(vars(device), "local_on_stack", False)
    x, y = rng.random((407, 17), dtype=np.float32), rng.integers(0, 4, 407).astype(np.int32)
    for loss, last in (("quadratic", "sigmoid"), ("hinge", "tanh")):
        fused = trained(device, x, y, loss, last)
        assert fusing and all(fusing)
        eager = trained(device, x, y, loss, last, record=False)
        assert np.array_equal(fused[0], eager[0]) and fused[1:] == eager[1:]


@pytest.mark.parametrize("workers", [1, 2, 7])
def test_a_trial_tells_whether_work_items_can_wait_for_each_other(device, fusing, monkeypatch, workers):
    """And ends where they cannot: where a driver runs several by turns in one thread, nobody ever says that he is done."""
    trial = fusion.takes_turns.__wrapped__
    monkeypatch.setattr(fusion, "cores", lambda device: workers)
    assert trial(device)
    monkeypatch.setattr(fusion, "PATIENCE", 1000)
    monkeypatch.setattr(fusion, "STAGE", fusion.STAGE.replace("done(turn);", ""))
    assert not trial(device)


def test_a_device_that_fails_the_trial_or_has_no_stack_replays_one_by_one(device, rng, fusing, monkeypatch):
    x, y = rng.random((100, 6), dtype=np.float32), rng.integers(0, 4, 100).astype(np.int32)
    eager = trained(device, x, y, "hinge", "tanh", record=False)[0]
    with monkeypatch.context() as now, pytest.warns(clnn.RecordingWarning, match="same results: on .* cannot wait for"):
        now.setitem(vars(device), "pocl_version", (0, 0))  # PoCL is trusted
        now.setattr(fusion, "takes_turns", lambda device: False)
        assert np.array_equal(trained(device, x, y, "hinge", "tanh")[0], eager)
    with monkeypatch.context() as now, pytest.warns(clnn.RecordingWarning, match="bytes of a thread's stack, and clnn"):
        now.setattr(fusion, "FRAME", -1)
        assert np.array_equal(trained(device, x, y, "hinge", "tanh")[0], eager)
    assert not fusing


def test_on_which_devices_steps_are_fused(device, monkeypatch):
    monkeypatch.delenv("CLNN_FUSE", raising=False)
    monkeypatch.setattr(fusion, "deep_stacks", lambda: True)

    def fused(**facts):
        with monkeypatch.context() as now:
            for name, value in ({"kind": "cpu", "_turns": 0, "most_turns": 0} | facts).items():
                now.setitem(vars(device), name, value)
            return fusion.allowed(device)

    old, new, other = {"pocl_version": (3, 0)}, {"pocl_version": (3, 1)}, {"pocl_version": (0, 0)}
    assert not fused(**old) and fused(**new) and fused(**other)
    assert not fused(kind="gpu", **other) and not fused(most_turns=65535, **other)
    monkeypatch.setattr(fusion.threading, "stack_size", lambda: 1 << 18)
    assert fused(**new) and not fused(**other)  # whose threads that wait compute along
    monkeypatch.setattr(fusion, "deep_stacks", lambda: False)
    assert not fused(**new) and not fused(**other)


@pytest.mark.parametrize("kept", [False, True])
def test_denormal_numbers_are_zero_as_in_launches(device, fusing, elsewhere, kept):
    if platform.machine() not in ("x86_64", "AMD64", "i686"):
        pytest.skip("drivers flush denormal numbers on x86")
    small = np.array([1e-38, 2e-38, 3e-38, 1.0], np.float32)  # the first is denormal, half of the second would be
    for _ in range(1 + kept):
        elsewhere()
        run = clnn.step(lambda a: a * 0.5)
        for _ in range(6):
            assert np.array_equal(run(small).numpy(), np.array([0, 0, 1.5e-38, 0.5], np.float32))
    assert len(fusing) == 1 + kept and all(fusing)


def test_a_step_is_compiled_to_one_kernel_while_a_profile_is_open(device, fusing):
    with clnn.use(device):
        net = clnn.Sequential([clnn.Dense(3, "tanh"), clnn.Dense(2)], input_shape=4, seed=0)
        x, want = np.ones((1, 4), np.float32), net.predict(np.ones((1, 4), np.float32))
        with clnn.profile() as p:
            answer = net.compiled(1)
            assert np.array_equal(answer(x), want)
        assert np.array_equal(answer(x), want) and len(p.rows) >= 2
        assert np.array_equal(net.compiled(1)(x), want) and any(fusing)
