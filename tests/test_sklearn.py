"""The estimators for scikit-learn, by its own checks and as people use them."""

import pickle
import subprocess
import sys

import numpy as np
import pytest

import clnn

pytest.importorskip("sklearn", "1.6")
sp = pytest.importorskip("scipy.sparse")

from sklearn.base import clone  # noqa: E402
from sklearn.model_selection import GridSearchCV  # noqa: E402
from sklearn.pipeline import make_pipeline  # noqa: E402
from sklearn.preprocessing import StandardScaler  # noqa: E402
from sklearn.utils.estimator_checks import parametrize_with_checks  # noqa: E402

from clnn.sklearn import CLNNClassifier, CLNNRegressor, MLPClassifier, MLPRegressor  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
ALL = [MLPClassifier, MLPRegressor, CLNNClassifier, CLNNRegressor]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@parametrize_with_checks([kind() for kind in ALL])
def test_scikit_learns_checks(estimator, check):
    check(estimator)


@pytest.fixture
def blobs(rng):
    y = rng.integers(0, 3, 90)
    return (rng.normal(size=(90, 6)) + 2.5 * np.eye(3, 6)[y]).astype(np.float32), y


def build(input_shape, outputs, hidden=8, activation="tanh"):
    return clnn.Sequential([clnn.Dense(hidden, activation), clnn.Dense(outputs)], input_shape=input_shape)


def test_a_grid_over_a_pipeline_in_two_processes(blobs):
    x, y = blobs
    x = x + 1.5 * np.eye(3, 6, dtype=np.float32)[y]  # so far apart that the bound holds for any draw
    pipeline = make_pipeline(
        StandardScaler(), CLNNClassifier(build, epochs=8, optimizer=clnn.Adam(0.02), random_state=1)
    )
    grid = {"clnnclassifier__model__hidden": [4, 6], "clnnclassifier__optimizer": ["adam", clnn.SGD(0.1, momentum=0.9)]}
    search = GridSearchCV(pipeline, grid, cv=2, n_jobs=2, error_score="raise").fit(x, y)
    assert search.best_score_ > 0.8 and len(search.cv_results_["params"]) == 4
    assert search.best_estimator_[-1].model_.layers[0].size == search.best_params_["clnnclassifier__model__hidden"]


def test_halving(blobs):
    from sklearn.experimental import enable_halving_search_cv  # noqa: F401
    from sklearn.model_selection import HalvingGridSearchCV

    one = CLNNClassifier(build, optimizer=clnn.Adam(0.05), random_state=0)
    search = HalvingGridSearchCV(one, {"model__hidden": [2, 8]}, resource="epochs", max_resources=12, factor=2, cv=2)
    assert search.fit(*blobs).best_score_ > 0.5


@pytest.mark.parametrize("kind", ALL)
def test_a_file_of_joblibs_goes_on_exactly(blobs, kind, tmp_path):
    joblib = pytest.importorskip("joblib")
    x, y = blobs
    more = {"batch_size": 30} if kind in ALL[:2] else {"optimizer": clnn.Adam(0.01), "batch_size": 30}
    one = kind(random_state=3, **more)
    for _ in range(2):
        one.partial_fit(x, y, **({"classes": [0, 1, 2]} if "Classifier" in kind.__name__ else {}))
    joblib.dump(one, tmp_path / "it.joblib")
    two = joblib.load(tmp_path / "it.joblib")
    assert b"safetensors" not in pickle.dumps(one)[:40] and isinstance(one.__getstate__()["model_"], bytes)
    assert np.array_equal(one.predict(x), two.predict(x))
    for each in (one, two):
        each.partial_fit(x, y)
    for a, b in zip(one.model_.state_dict().values(), two.model_.state_dict().values()):
        assert np.array_equal(a, b)


@pytest.mark.filterwarnings("ignore:Stochastic Optimizer")
@pytest.mark.parametrize("kind", [MLPClassifier, CLNNClassifier])
@pytest.mark.parametrize("names", [["no", "yes"], ["a", "b", "c"], [True, False], [10, 20, 35], ["only"]], ids=str)
def test_labels_of_any_type(blobs, kind, names):
    x, y = blobs
    labels = np.array(names)[y % len(names)]
    one = kind(random_state=0).fit(x, labels)
    assert one.predict(x).dtype == labels.dtype and one.score(x, labels) > 0.6
    assert one.predict_proba(x).shape == (90, len(names)) and list(one.classes_) == sorted(names)
    np.testing.assert_allclose(one.predict_proba(x).sum(1), 1, rtol=1e-5)
    assert one.score(x, list(labels)) == one.score(x, labels)


def test_frames_with_gaps_behind_an_imputer(blobs):
    pandas = pytest.importorskip("pandas")
    from sklearn.impute import SimpleImputer

    x, y = blobs
    frame = pandas.DataFrame(x, columns=list("abcdef"))
    frame.iloc[::7, 2] = np.nan
    pipeline = make_pipeline(SimpleImputer().set_output(transform="pandas"), MLPClassifier(random_state=0, max_iter=60))
    with pytest.warns(match="Maximum iterations"):
        pipeline.fit(frame, pandas.Series(y).map({0: "x", 1: "y", 2: "z"}))
    assert (
        list(pipeline[-1].feature_names_in_) == list("abcdef") and pipeline.score(frame, np.array(list("xyz"))[y]) > 0.8
    )
    with pytest.raises(ValueError, match="feature names"):
        pipeline[-1].predict(frame.fillna(0).rename(columns={"a": "other"}))
    with pytest.raises(ValueError, match="NaN"):
        MLPClassifier().fit(frame, y)


def test_frames_of_polars(blobs):
    polars = pytest.importorskip("polars")
    x, y = blobs
    frame = polars.DataFrame(x, schema=list("abcdef"))
    one, two = (CLNNClassifier(epochs=2, random_state=0, dtype="float32").fit(data, y) for data in (frame, x.copy()))
    assert list(one.feature_names_in_) == list("abcdef") and np.array_equal(
        one.predict_proba(frame), two.predict_proba(x)
    )


@pytest.mark.parametrize("kind", ALL)
@pytest.mark.parametrize("form", [sp.csr_matrix, sp.csr_array, sp.csc_matrix])
def test_sparse_is_what_dense_is(blobs, kind, form):
    x, y = blobs
    x = np.where(np.abs(x) < 1, 0, x)
    short = {"max_iter": 3} if kind in ALL[:2] else {"epochs": 3}
    dense, sparse = kind(random_state=0, **short), kind(random_state=0, **short)
    dense.fit(x, y), sparse.fit(form(x), y)
    assert np.array_equal(dense.predict(x), sparse.predict(form(x)))
    for a, b in zip(dense.model_.state_dict().values(), sparse.model_.state_dict().values()):
        assert np.array_equal(a, b)


def test_of_a_sparse_matrix_only_the_rows_in_use_are_dense(blobs, monkeypatch):
    """fit, evaluate and predict of any model, in parts of two to four mini-batches."""
    from clnn.data import sparse
    from clnn.train import evaluation, loop

    x, y = blobs
    most, dense = [], sparse.SparseRows.__array__
    monkeypatch.setattr(loop, "CHUNK_BYTES", 40 * 32)
    monkeypatch.setattr(evaluation, "CHUNK_BYTES", 40 * 32)
    monkeypatch.setattr(sparse.SparseRows, "__array__", lambda self, *how: most.append(dense(self, *how)) or most[-1])
    found = []
    for data in (x, sp.csr_array(x)):
        net = clnn.Sequential([clnn.Dense(5, "relu"), clnn.Dense(3)], input_shape=6, seed=1)
        history = net.fit(
            data, y, loss="cross_entropy", optimizer="adam", epochs=3, batch_size=16, seed=2, validation=(data[:40], y[:40])
        )  # fmt: skip
        measured = net.evaluate(data, y, batch_size=10)
        found.append((history["loss"], history["val_loss"], net.predict(data, batch_size=10), measured))
    np.testing.assert_allclose(found[0][0], found[1][0], rtol=1e-6)
    np.testing.assert_allclose(found[0][1], found[1][1], rtol=1e-6)
    assert np.array_equal(found[0][2], found[1][2]) and found[0][3].keys() == found[1][3].keys()
    assert max(map(len, most)) <= 40 and sum(map(len, most)) >= 90


def test_what_is_wrong_with_sparse_data_is_said(blobs):
    x, y = blobs
    net = clnn.Sequential([clnn.Dense(3)], input_shape=6)
    bad = sp.csr_array(x)
    bad.data[4] = np.inf
    with pytest.raises(clnn.DataError, match="stored values.*is inf"):
        net.predict(bad)
    with pytest.raises(clnn.DataError, match="sparse matrix.*toarray"):
        net.fit(x, sp.csr_array(np.eye(3)[y]), loss="cross_entropy", optimizer="sgd")
    with pytest.raises(clnn.DataError, match="real numbers"):
        net.predict(sp.csr_array(x.astype(complex)))
    with pytest.raises(clnn.ShapeError, match="5"):
        net.predict(sp.csr_array(x[:, :5]))


def test_several_labels_a_sample(blobs):
    x, y = blobs
    labels = np.stack([y == 0, y != 1, x[:, 0] > 0], 1).astype(int)
    for one in (MLPClassifier(random_state=0, solver="lbfgs"), CLNNClassifier(random_state=0)):
        one.fit(x, labels)
        assert one.predict(x).shape == labels.shape and (one.predict(x) == labels).mean() > 0.9
        assert one.predict_proba(x).shape == labels.shape
    with pytest.raises(ValueError, match="several classes"):
        MLPClassifier().fit(x, np.stack([y, y + 1], 1))


@pytest.mark.parametrize("loss", ["hinge", "squared_hinge", "binary_cross_entropy", "cross_entropy", "quadratic"])
@pytest.mark.parametrize("names", [["no", "yes"], ["a", "b", "c"], "several labels", ["only"]], ids=str)
def test_every_loss_of_classes_predicts(blobs, loss, names):
    """A hinge loss says yes above 0, and has no probabilities."""
    x, y = blobs
    several = names == "several labels"
    outputs = 3 if several else len(names) if len(names) > 2 or loss == "cross_entropy" else 1
    if outputs == 1 and loss == "cross_entropy" or several and loss in ("cross_entropy", "quadratic"):
        pytest.skip("it is for several classes")
    given = np.eye(3, dtype=int)[y] if several else np.array(names)[y % len(names)]
    layers = [clnn.Dense(outputs, "sigmoid")] if loss == "quadratic" else [clnn.Dense(8, "tanh"), clnn.Dense(outputs)]
    kind = CLNNClassifier(clnn.Sequential(layers, input_shape=x.shape[1]), loss=loss, epochs=30, random_state=0)
    kind = pickle.loads(pickle.dumps(kind.fit(x, given)))
    found = kind.predict(x)
    assert found.shape == given.shape and found.dtype.kind == given.dtype.kind
    scores = kind.model_.predict(x)
    yes = scores > (0.5 if loss == "quadratic" else 0)
    which = scores.argmax(1) if outputs > 1 else np.minimum(yes[:, 0], len(names) - 1)
    np.testing.assert_array_equal(found, yes if several else kind.classes_[which.astype(int)])


@pytest.mark.parametrize("solver", ["adam", "sgd", "lbfgs"])
def test_the_numbers_that_a_regressor_learns(solver):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(120, 4))
    y = np.stack([x @ [1, -2, 0.5, 0], np.sin(x[:, 0])], 1)
    one = MLPRegressor(
        hidden_layer_sizes=(30,),
        activation="tanh",
        solver=solver,
        random_state=0,
        learning_rate_init=0.02,
        max_iter=300,
        tol=1e-6,
    )
    one.fit(x, y)
    assert one.score(x, y) > 0.95 and one.predict(x).shape == (120, 2) and one.predict(x).dtype == one.model_.dtype
    a = np.tanh(x @ one.coefs_[0] + one.intercepts_[0]) @ one.coefs_[1] + one.intercepts_[1]
    np.testing.assert_allclose(one.predict(x), a, rtol=1e-4, atol=1e-4)
    assert one.loss_ <= one.loss_curve_[0] and one.n_iter_ == len(one.loss_curve_) and one.n_layers_ == 3


@pytest.mark.parametrize(
    "kind, loss, targets",
    [
        ("MLPRegressor", "squared_error", lambda rng: rng.normal(size=20)),
        ("MLPRegressor", "squared_error", lambda rng: rng.normal(size=(20, 2))),
        ("MLPRegressor", "poisson", lambda rng: rng.poisson(2.0, 20)),
        ("MLPRegressor", "poisson", lambda rng: rng.poisson(2.0, (20, 3))),
        ("MLPClassifier", None, lambda rng: np.arange(20) % 2),
        ("MLPClassifier", None, lambda rng: np.arange(20) % 4),
        ("MLPClassifier", None, lambda rng: rng.integers(0, 2, (20, 3))),
    ],
    ids=["number", "numbers", "count", "counts", "two", "classes", "labels"],
)
def test_a_step_is_that_of_scikit_learn(rng, device, kind, loss, targets):
    """From the same weights: plain gradient descent on all samples, weighted, with a large alpha; and the predictions."""
    import sklearn.neural_network

    import clnn.sklearn

    if not device.has_fp64:
        pytest.skip("compares in float64")
    x, y, w = rng.normal(size=(20, 3)), targets(rng), rng.random(20)
    same = {
        "solver": "sgd", "momentum": 0.0, "learning_rate_init": 0.1, "alpha": 3.0, "max_iter": 1, "random_state": 0,
        "hidden_layer_sizes": (4,), "warm_start": True, **({"loss": loss} if loss else {}),
    }  # fmt: skip
    ours = getattr(clnn.sklearn, kind)(dtype="float64", **same).fit(x, y, w)
    theirs = getattr(sklearn.neural_network, kind)(**same).fit(x, y, w)
    for a, b in zip([*theirs.coefs_, *theirs.intercepts_], [*ours.coefs_, *ours.intercepts_], strict=True):
        a[...] = b
    ours.fit(x, y, w), theirs.fit(x, y, w)
    for a, b in zip([*ours.coefs_, *ours.intercepts_], [*theirs.coefs_, *theirs.intercepts_], strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(ours.predict(x), theirs.predict(x), rtol=1e-9)
    if kind == "MLPClassifier":
        np.testing.assert_allclose(ours.predict_proba(x), theirs.predict_proba(x), rtol=1e-9)


def test_counts_by_the_poisson_loss():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(300, 3))
    y = rng.poisson(np.exp(0.5 * x[:, 0] + 0.2))
    one = MLPRegressor("poisson", (10,), solver="lbfgs", random_state=0, max_iter=60, alpha=10.0).fit
    one = one(x, y)
    assert (one.predict(x) > 0).all() and np.corrcoef(one.predict(x), np.exp(0.5 * x[:, 0] + 0.2))[0, 1] > 0.8
    with pytest.raises(ValueError, match="go from -5"):
        MLPRegressor("poisson").fit(x, y - 5.0)


def test_early_stopping_keeps_the_best(blobs):
    x, y = blobs
    one = MLPClassifier(early_stopping=True, random_state=0, max_iter=60, n_iter_no_change=5, validation_fraction=0.3)
    one.fit(x, y)
    assert len(one.validation_scores_) == one.n_iter_ and one.best_validation_score_ == max(one.validation_scores_)
    assert one.best_loss_ is None


def test_rates_that_fall(blobs):
    x, y = blobs
    one = MLPClassifier(solver="sgd", learning_rate="invscaling", random_state=0, max_iter=4).fit(x, y)
    two = MLPClassifier(solver="sgd", learning_rate="adaptive", tol=10.0, n_iter_no_change=1, random_state=0).fit(x, y)
    assert one.optimizer_.lr == pytest.approx(0.001 / (4 * 90 + 1) ** 0.5)
    assert two.optimizer_.lr <= 1e-6 and two.n_iter_ < 40


def test_warm_starts_go_on_and_fits_begin_again(blobs):
    x, y = blobs
    once = CLNNClassifier(epochs=4, random_state=0, shuffle=False).fit(x, y)
    twice = CLNNClassifier(epochs=2, random_state=0, shuffle=False, warm_start=True).fit(x, y).fit(x, y)
    np.testing.assert_allclose(once.loss_curve_, twice.loss_curve_, rtol=1e-6)
    again = once.loss_curve_
    assert once.fit(x, y).loss_curve_ == again and once.n_iter_ == 4
    with pytest.raises(ValueError, match="other classes"):
        twice.fit(x, y + 1)


@pytest.mark.filterwarnings("ignore:Stochastic Optimizer")
@pytest.mark.parametrize("kind", [MLPClassifier, CLNNClassifier])
@pytest.mark.parametrize("names", [[0, 1, 2], ["a", "b", "c"]], ids=["numbers", "words"])
def test_a_warm_start_wants_every_class_again_and_partial_fit_takes_some(blobs, kind, names):
    x, y = blobs[0], np.array(names)[blobs[1]]
    one = kind(**{"max_iter" if kind is MLPClassifier else "epochs": 2}, random_state=0, warm_start=True)
    one.fit(x, y)
    before = one.predict_proba(x)
    for missing in names:
        with pytest.raises(ValueError, match="warm_start wants the classes"):
            one.fit(x[y != missing], y[y != missing])
    np.testing.assert_array_equal(one.predict_proba(x), before)
    one.fit(x[::-1], y[::-1]).partial_fit(x[y != names[0]], y[y != names[0]])
    one.set_params(warm_start=False).fit(x[y != names[0]], y[y != names[0]])
    assert list(one.classes_) == names[1:]


@pytest.mark.parametrize("shape", [None, 6], ids=["built at its first call", "built at once"])
def test_a_random_state_says_which_weights(blobs, shape):
    """Also where the function leaves the input's shape to the first call, and draws nothing while it runs."""

    def made():
        return clnn.Sequential([clnn.Dropout(0.3), clnn.Dense(8, "relu"), clnn.Dense(3)], input_shape=shape)

    fits = [CLNNClassifier(made, epochs=2, random_state=seed).fit(*blobs) for seed in (3, 3, 4)]
    first, again, other = (one.predict_proba(blobs[0]) for one in fits)
    assert np.array_equal(first, again) and not np.array_equal(first, other)


def test_a_model_as_it_is_and_functions_that_build_one(blobs):
    x, y = blobs
    net = clnn.Sequential([clnn.Dense(3, "softmax")], input_shape=6, seed=0)
    before = net.state_dict()
    one = CLNNClassifier(net, epochs=2, random_state=0).fit(x, y)
    assert (
        all(np.array_equal(a, b) for a, b in zip(before.values(), net.state_dict().values())) and one.model_ is not net
    )
    assert (
        clone(one).model is not None
        and clone(CLNNClassifier(build, model__hidden=5)).get_params()["model__hidden"] == 5
    )
    assert CLNNRegressor(build, model__hidden=5).set_params(model__hidden=7).get_params()["model__hidden"] == 7
    assert CLNNClassifier(lambda: clnn.Sequential([clnn.Dense(1)]), epochs=1).fit(x, y > 0).predict_proba(x).shape == (
        90,
        2,
    )
    mistakes = {
        "3 outputs, and 2 classes need 1 or 2": lambda: CLNNClassifier(net).fit(x, y % 2),
        "model is a clnn model or a function": lambda: CLNNClassifier("mlp").fit(x, y),
        "model is a clnn model or a function that builds one, not Dense": lambda: CLNNClassifier(clnn.Dense(3)).fit(
            x, y
        ),
        "only a function": lambda: CLNNClassifier(net, model__hidden=3).fit(x, y),
        "should be a clnn model": lambda: CLNNClassifier(lambda: 3).fit(x, y),
        "needs classes=": lambda: MLPClassifier().partial_fit(x, y),
        "not among classes": lambda: MLPClassifier().partial_fit(x, y, classes=[0, 1]),
        "solver is": lambda: MLPClassifier(solver="newton").fit(x, y),
        "activation is": lambda: MLPClassifier(activation="gelu").fit(x, y),
        "at least one non-zero": lambda: MLPClassifier().fit(x, y, sample_weight=np.zeros(90)),
        "loss is one of": lambda: MLPRegressor("huber").fit(x, y),
    }
    for told, wrong in mistakes.items():
        with pytest.raises(ValueError, match=told):
            wrong()
    with pytest.raises(TypeError, match="called model__hidden"):
        CLNNClassifier(build, hidden=3)
    assert not hasattr(MLPClassifier(solver="lbfgs"), "partial_fit")


def test_clnn_does_not_need_it(tmp_path):
    code = (
        "import sys; sys.modules['sklearn'] = None; import clnn; assert 'clnn.sklearn' not in sys.modules; clnn.sklearn"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.returncode == 1 and "clnn.sklearn needs scikit-learn" in run.stderr


@pytest.mark.parametrize("which", ["X", "y", "sample_weight"])
def test_what_a_masked_array_hides_is_not_used(device, which):
    given = {"X": np.ones((6, 2)), "y": np.arange(6.0), "sample_weight": np.ones(6)}
    net = MLPRegressor(max_iter=1).fit(**given) if which == "X" else None
    given[which] = np.ma.masked_array(given[which], mask=given[which] == 1)
    with pytest.raises(ValueError, match=f"{which} is a masked array"):
        MLPRegressor(max_iter=1).fit(**given)
    if net:
        with pytest.raises(ValueError, match="X is a masked array"):
            net.predict(given["X"])


@pytest.mark.parametrize("kind", ["MLPClassifier", "MLPRegressor"])
def test_decay_is_that_of_each_call_s_mini_batches(rng, device, kind):
    """partial_fit on 4 samples, then on 50 and 7: alpha / n of each, as in scikit-learn."""
    import sklearn.neural_network

    import clnn.sklearn

    if not device.has_fp64:
        pytest.skip("compares in float64")
    x, y = rng.normal(size=(50, 3)), rng.integers(0, 3, 50)
    more = {"classes": [0, 1, 2]} if kind == "MLPClassifier" else {}
    same = {"solver": "sgd", "momentum": 0.0, "learning_rate_init": 0.01, "alpha": 2.0, "hidden_layer_sizes": (4,)}
    ours = getattr(clnn.sklearn, kind)(dtype="float64", random_state=0, **same).partial_fit(x[:4], y[:4], **more)
    theirs = getattr(sklearn.neural_network, kind)(random_state=0, **same).partial_fit(x[:4], y[:4], **more)
    for a, b in zip([*theirs.coefs_, *theirs.intercepts_], [*ours.coefs_, *ours.intercepts_], strict=True):
        a[...] = b
    for n in (50, 7):
        ours.partial_fit(x[:n], y[:n]), theirs.partial_fit(x[:n], y[:n])
    for a, b in zip(ours.coefs_, theirs.coefs_, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12)


@pytest.mark.filterwarnings("ignore:Stochastic Optimizer", "ignore:lbfgs failed")
def test_a_warm_start_goes_by_what_was_set_meanwhile(blobs):
    x, y = blobs
    one = MLPClassifier((4,), solver="sgd", learning_rate_init=0.1, max_iter=2, warm_start=True, random_state=0).fit(
        x, y
    )
    assert one.set_params(learning_rate_init=0.02, momentum=0.5).fit(x, y).optimizer_.lr == 0.02
    assert one.optimizer_.momentum == 0.5
    for solver, kind in (("adam", clnn.Adam), ("lbfgs", clnn.LBFGS), ("adam", clnn.Adam), ("sgd", clnn.SGD)):
        assert isinstance(one.set_params(solver=solver).fit(x, y).optimizer_, kind)
    for changed in ({"hidden_layer_sizes": (6,)}, {"activation": "tanh"}):
        with pytest.raises(ValueError, match=f"{[*changed][0]} is .*warm_start=False"):
            clone(one).fit(x, y).set_params(**changed).fit(x, y)
    one.set_params(hidden_layer_sizes=[4]).fit(x, y)

    two = CLNNClassifier(epochs=1, optimizer=clnn.SGD(0.1), model__hidden=5, warm_start=True).fit(x, y)
    again = pickle.loads(pickle.dumps(two)).fit(x, y)
    assert again.optimizer_.lr == 0.1 and again.optimizer_.steps == 6
    assert two.set_params(optimizer=clnn.SGD(0.02)).fit(x, y).optimizer_.lr == 0.02
    with pytest.raises(ValueError, match="model__hidden is 7.* by 5"):
        two.set_params(model__hidden=7).fit(x, y)
    assert two.set_params(warm_start=False).fit(x, y).model_.layers[0].w.shape[1] == 7


@pytest.mark.parametrize("weighted", [False, True])
def test_what_is_held_out_has_every_class_in_its_share(blobs, weighted):
    """Data that is sorted by class: of the last classes nothing was trained on."""
    x, y = blobs[0][np.argsort(blobs[1])], np.sort(blobs[1])
    seen = []
    callbacks = [clnn.Lambda(on_data=lambda model, xs, y, sample_weight: seen.append(np.bincount(y)))]
    one = CLNNClassifier(epochs=1, validation_fraction=1 / 3, callbacks=callbacks, random_state=0)
    one.fit(x, y, np.linspace(1, 2, len(y)) if weighted else None)
    np.testing.assert_allclose(seen[0], np.bincount(y) * 2 / 3, atol=1)
    assert "val_loss" in one.history_


@pytest.mark.filterwarnings("ignore:Stochastic Optimizer")
@pytest.mark.parametrize("kind", [MLPClassifier, MLPRegressor])
def test_early_stopping_then_partial_fit(blobs, kind):
    x, y = blobs
    one = kind(hidden_layer_sizes=(4,), early_stopping=True, max_iter=3, random_state=0).fit(
        x, y, np.linspace(1, 2, len(y))
    )
    assert np.isfinite(one.partial_fit(x, y).loss_)
