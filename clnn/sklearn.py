"""Estimators for scikit-learn: `MLPClassifier` and `MLPRegressor` with the parameters of its own, `CLNNClassifier` and
`CLNNRegressor` round any model of clnn's. They go into pipelines, grid searches and joblib files.

    from clnn.sklearn import MLPClassifier  # instead of sklearn.neural_network
    search = GridSearchCV(make_pipeline(StandardScaler(), MLPClassifier()), {"mlpclassifier__alpha": [1e-4, 1e-2]})

Data may be arrays, frames of pandas or polars, and sparse matrices, of which only the rows in use are dense. Weights,
mini-batches and dropout repeat for the same integer `random_state` on the same device.
"""

from __future__ import annotations

import copy
import inspect
import math
import tempfile
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np

try:
    from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.metrics import accuracy_score, r2_score
    from sklearn.model_selection import train_test_split
    from sklearn.preprocessing import LabelBinarizer
    from sklearn.utils import check_random_state, column_or_1d, compute_sample_weight
    from sklearn.utils.metaestimators import available_if
    from sklearn.utils.multiclass import check_classification_targets, type_of_target
    from sklearn.utils.validation import _check_sample_weight, check_is_fitted, validate_data
except ImportError as missing:
    raise ImportError(
        'clnn.sklearn needs scikit-learn 1.6 or later: pip install "scikit-learn>=1.6", or, in a checkout of clnn, '
        'pip install ".[sklearn]"'
    ) from missing

from .callbacks import Callback
from .checks import check_count, in_range, refuse_masked
from .errors import CheckpointError, ConfigurationError, DataError, DeviceError, ShapeError, warn
from .layers.base import Layer
from .layers.core import Dense
from .losses import LOSSES, Hinge
from .minimize import LBFGS
from .model import Model, Sequential, load
from .ops.random import Generator
from .optim import SGD, Adam
from .random import drawing_from
from .runtime.devices.choice import resolve, use
from .tensor import tensor
from .train.inputs import build_for

__all__ = ["CLNNClassifier", "CLNNRegressor", "MLPClassifier", "MLPRegressor"]

REGRESSION = {"squared_error": "quadratic", "poisson": "poisson"}
ACTIVATIONS = {"identity": "linear", "logistic": "sigmoid", "tanh": "tanh", "relu": "relu"}
SOLVERS, RATES = ("adam", "sgd", "lbfgs"), ("constant", "invscaling", "adaptive")
CHOICES = {"loss": REGRESSION, "activation": ACTIVATIONS, "solver": SOLVERS, "learning_rate": RATES}


def _keep(estimator: Any, given: dict[str, Any]) -> None:
    """Keep the arguments of a constructor as they are, which is what scikit-learn asks of one."""
    more = given.pop("model_arguments", {})
    wrong = next((name for name in more if not name.startswith("model__")), None)
    if wrong is not None:
        raise TypeError(
            f"{type(estimator).__name__} has no argument {wrong}; what the model is given is called model__{wrong}"
        )
    vars(estimator).update({k: v for k, v in given.items() if k not in ("self", "__class__")} | more)


def _of_scikit_learn(constructor: Any) -> Any:
    """Has the signature that scikit-learn reads, without the arguments for the model, whose names it cannot know."""
    told = inspect.signature(constructor)
    named = [p for p in told.parameters.values() if p.kind is not p.VAR_KEYWORD]
    constructor.__signature__ = told.replace(parameters=named)
    return constructor


class _Estimator(BaseEstimator):
    """What the four share: data in and out, `fit` and `partial_fit`, and what a copy holds."""

    model_: Model
    optimizer_: Any  # None until the first epoch
    loss_curve_: list[float]
    _numbers: int

    # what each kind says of itself
    _begin: Callable[[Any, bool, Any], None]  # learn from the targets what there is to predict
    _encoded: Callable[[np.ndarray, int], np.ndarray]  # the targets as clnn's losses take them
    _build: Callable[[int, Any, int], Model]
    _loss: Callable[[int], Any]
    _train: Callable[..., None]  # train `model_` for so many epochs, or with None for as many as the parameters say

    # -- fit ----------------------------------------------------------------------------------------------------------
    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Any:  # noqa: N803 - the field's name
        """Train on X (samples, features) and y; from where the last fit ended with `warm_start`.

        `sample_weight` (samples,) scales each sample's loss, relative to their mean; samples of weight 0 are left out.
        ValueError (clnn's errors are of this type) for data that does not fit.
        """
        return self._fit(X, y, sample_weight, not (self.warm_start and hasattr(self, "model_")), None)

    def _fit(self, X: Any, y: Any, sample_weight: Any, first: bool, epochs: int | None, classes: Any = None) -> Any:  # noqa: N803
        for name, given in (("X", X), ("y", y), ("sample_weight", sample_weight)):
            refuse_masked(given, name)
        for name, allowed in CHOICES.items() if isinstance(self, _Perceptron) else ():
            if hasattr(self, name) and getattr(self, name) not in [*allowed]:
                raise ConfigurationError(f"{name} is one of {', '.join(allowed)}, not {getattr(self, name)!r}")
        x, y = validate_data(
            self, X, y, accept_sparse="csr", dtype=(np.float64, np.float32), multi_output=True, reset=first,
            y_numeric=isinstance(self, RegressorMixin),
        )  # fmt: skip
        if y.ndim == 2 and y.shape[1] == 1:
            y = column_or_1d(y, warn=True)
        self._begin(y, first, classes)
        weight = None if sample_weight is None else _check_sample_weight(sample_weight, x, ensure_non_negative=True)
        weight, self._mean_weight = self._with_class_weight(y, weight), 1.0
        if weight is not None:
            if not weight.any():  # which scikit-learn before 1.8 takes
                raise DataError("sample weights must contain at least one non-zero number")
            x, y, weight = x[weight > 0], y[weight > 0], weight[weight > 0]
            self._mean_weight = float(weight.mean())
            weight = weight / self._mean_weight
        if first or not hasattr(self, "_draws"):
            self._draws = check_random_state(self.random_state)
        draws = self._draws if epochs is not None or self.warm_start else check_random_state(self.random_state)
        seed = int(draws.randint(2**31 - 1))
        where = resolve(self.device)
        with use(where), drawing_from(Generator(where, seed)):  # a model may get its weights at its first call
            names = ("model", "hidden_layer_sizes", "activation")
            now = {n: v for n, v in vars(self).items() if n in names or n.startswith("model__")}
            if first:
                made = self._build(x.shape[1], self._type(x, where), seed)
                if not isinstance(made, Model):
                    raise ConfigurationError(f"{type(self).__name__}'s model should be a clnn model, not {made!r}")
                self.model_, self.optimizer_, self.loss_curve_, self.n_iter_, self.t_ = made, None, [], 0, 0
                self._made_of = now
            was = getattr(self, "_made_of", now)  # pickles of before go without
            for name in now:
                if now[name] is not was.get(name) and not np.array_equal(now[name], was.get(name, ())):
                    raise ConfigurationError(
                        f"{name} is {now[name]!r}, and the model of the first fit goes on, made by {was.get(name)!r}: a fit "
                        "with warm_start=False begins anew"
                    )
            outputs = build_for(self.model_, [np.zeros((1, x.shape[1]), self.model_.dtype)]).shapes
            if len(outputs) != 1 or len(outputs[0]) != 1:
                raise ShapeError(f"an estimator's model gives one row of outputs a sample, not shapes {outputs}")
            self.n_outputs_ = outputs[0][0]
            self._train(x, self._encoded(y, self.n_outputs_), weight, epochs, seed)
        return self

    def _held_out(self, share: float, seed: int, x: Any, y: np.ndarray, weight: Any) -> tuple[Any, ...]:
        """x, y and the weights to train on, and those of a share that is held out, of each class alike."""
        classes = y if y.dtype == np.int32 else y[:, 0] if isinstance(self, _Classifier) and y.shape[1] == 1 else None
        all_of = (x, y) if weight is None else (x, y, weight)
        split = train_test_split(*all_of, test_size=share, stratify=classes, random_state=seed)
        return (*split[::2], None)[:3], split[1::2]

    def _with_class_weight(self, y: np.ndarray, weight: np.ndarray | None) -> np.ndarray | None:
        how = getattr(self, "class_weight", None)
        if how is None:
            return weight
        return cast(np.ndarray, compute_sample_weight(how, y)) * (1 if weight is None else weight)

    def _type(self, x: Any, where: Any) -> Any:
        """The type to compute in: X's own on CPUs, and float32 on GPUs, most of which are slow in float64 or lack it."""
        if self.dtype != "auto":
            return np.dtype(self.dtype)
        wide = x.dtype == np.float64 and where.kind == "cpu"
        try:
            where.real(np.float64 if wide else np.float32)
        except DeviceError:
            wide = False
        return np.dtype(np.float64 if wide else np.float32)

    def _outputs(self, X: Any, how: Callable[..., np.ndarray]) -> np.ndarray:  # noqa: N803
        check_is_fitted(self)
        refuse_masked(X, "X")
        x = validate_data(self, X, accept_sparse="csr", dtype=(np.float64, np.float32), reset=False)
        return how(self.model_, x)

    # -- copies and files ---------------------------------------------------------------------------------------------
    def __getstate__(self) -> dict[str, Any]:
        """Parameters, and of the model the bytes of the file that `Model.save` writes: safetensors, with the optimizer's state.
        A model that no file can hold is pickled as Python does."""
        state = dict(super().__getstate__())
        if isinstance(state.get("model_"), Model):
            with tempfile.TemporaryDirectory() as folder:
                try:
                    with warnings.catch_warnings():  # of a loss or an optimizer that a file goes without
                        warnings.simplefilter("ignore")
                        state["model_"].save(Path(folder) / "model.safetensors")
                except CheckpointError:
                    return state
                state["model_"] = (Path(folder) / "model.safetensors").read_bytes()
                state.pop("optimizer_", None)
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        state = dict(state)
        if isinstance(state.get("model_"), bytes):
            with tempfile.TemporaryDirectory() as folder:
                file = Path(folder) / "model.safetensors"
                file.write_bytes(state["model_"])
                state["model_"] = load(file)
            state["optimizer_"] = state["model_"].optimizer
        super().__setstate__(state)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        return tags


class _Classifier(ClassifierMixin, _Estimator):
    """Classes of any type, by number inside; with several labels a sample, a row of 0 and 1 (multilabel)."""

    def _begin(self, y: Any, first: bool, classes: Any) -> None:
        check_classification_targets(y)
        kind = type_of_target(y, raise_unknown=True)
        if kind.startswith("multiclass-") or (y.ndim > 1 and not kind.startswith("multilabel")):
            raise ConfigurationError(
                f"y of shape {y.shape} has several classes a sample, which one classifier does not learn: see "
                "sklearn.multioutput.MultiOutputClassifier"
            )
        if first:
            self._binarizer = LabelBinarizer().fit(y if classes is None or y.ndim > 1 else np.asarray(classes))
            self.classes_ = self._binarizer.classes_
            self.multilabel_ = y.ndim > 1
            if not self.multilabel_ and (unknown := np.setdiff1d(y, self.classes_)).size:
                raise ConfigurationError(f"y has {unknown[0]!r}, which is not among classes, {self.classes_}")
        elif self.multilabel_ != (y.ndim > 1) or (
            y.shape[1] != len(self.classes_) if y.ndim > 1 else np.setdiff1d(y, self.classes_).size
        ):
            raise ConfigurationError(f"y has other classes than {self.classes_}, which the first call of fit had")
        elif classes is None and y.ndim == 1 and len(np.unique(y)) < len(self.classes_):
            raise ConfigurationError(
                f"warm_start wants the classes of the first call of fit, {self.classes_}, and y has {np.unique(y)} alone: "
                "partial_fit takes some of them"
            )

    def _loss(self, outputs: int) -> Any:
        return "binary_cross_entropy" if outputs == 1 or self.multilabel_ else "cross_entropy"

    def _count(self) -> int:
        """The outputs that a model of this estimator's own has: one for yes or no, else one a class."""
        return 1 if len(self.classes_) <= 2 and not self.multilabel_ else len(self.classes_)

    def _encoded(self, y: np.ndarray, outputs: int) -> np.ndarray:
        wanted = {len(self.classes_)} if self.multilabel_ else {len(self.classes_), self._count()}
        if outputs not in wanted:
            raise ShapeError(
                f"the model has {outputs} outputs, and {len(self.classes_)} classes need "
                f"{' or '.join(map(str, sorted(wanted)))}: a function that builds the model is told so where it has an argument "
                "`outputs`"
            )
        if self.multilabel_:
            return np.asarray(self._binarizer.transform(y), self.model_.dtype)
        number = np.searchsorted(self.classes_, y)
        return number.astype(np.int32) if outputs > 1 else number.astype(self.model_.dtype)[:, None]

    def predict_proba(self, X: Any) -> np.ndarray:  # noqa: N803
        """The probability of each class (samples, classes), in the order of `classes_`; of each label, if they are several."""
        p = self._outputs(X, Model.predict_proba)
        if self.multilabel_ or p.shape[1] > 1:
            return p
        return np.ones_like(p) if len(self.classes_) == 1 else np.hstack([1 - p, p])

    def predict_log_proba(self, X: Any) -> np.ndarray:  # noqa: N803
        """The logarithm of `predict_proba`."""
        with np.errstate(divide="ignore"):  # -inf where a probability is 0
            return np.log(self.predict_proba(X))

    def predict(self, X: Any) -> np.ndarray:  # noqa: N803
        """The most probable class of each sample; of several labels a 1 for each that is more probable than not."""
        found = self._outputs(X, self._decided)
        return found.astype(np.int64) if self.multilabel_ else self.classes_[np.minimum(found, len(self.classes_) - 1)]

    def _decided(self, model: Model, x: Any) -> np.ndarray:
        """Class numbers (samples,), or of several labels whether each is there; by a hinge loss no probabilities say so."""
        if not self.multilabel_:
            return model.predict_classes(x)
        return model.predict(x) > 0 if isinstance(model.loss, Hinge) else model.predict_proba(x) > 0.5

    def _score(self, x: Any, y: np.ndarray) -> float:
        """What early stopping goes by, of targets as `_encoded` gives them: the accuracy."""
        return float(accuracy_score(y if self.multilabel_ else y.reshape(-1), self._decided(self.model_, x)))

    def partial_fit(self, X: Any, y: Any, classes: Any = None, sample_weight: Any = None) -> Any:  # noqa: N803
        """One epoch more on these samples; the first call is told all `classes`."""
        first = not hasattr(self, "model_")
        if first and classes is None and np.ndim(y) < 2:
            raise ConfigurationError("the first call of partial_fit needs classes=, all that y may ever have")
        if classes is not None and not first and not np.array_equal(np.unique(classes), self.classes_):
            raise ConfigurationError(
                f"classes={classes!r} is not the same as on last call to partial_fit, {self.classes_}"
            )
        return self._fit(X, y, sample_weight, first, 1, classes if first else self.classes_)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.classifier_tags.multi_label = True
        return tags


class _Regressor(RegressorMixin, _Estimator):
    """One number a sample, or several."""

    def _begin(self, y: Any, first: bool, classes: Any) -> None:
        if y.dtype.kind not in "fiub":
            raise ConfigurationError(f"Unknown label type: y is of {y.dtype}, and a regressor predicts numbers")
        count = 1 if y.ndim == 1 else y.shape[1]
        if not first and count != self._numbers:
            raise ConfigurationError(f"y has {count} numbers a sample, and the first call of fit had {self._numbers}")
        self._numbers, self._flat = count, y.ndim == 1

    def _count(self) -> int:
        return self._numbers

    def _encoded(self, y: np.ndarray, outputs: int) -> np.ndarray:
        if outputs != self._numbers:
            raise ShapeError(f"the model has {outputs} outputs, and y has {self._numbers} numbers a sample")
        return y.reshape(len(y), -1).astype(self.model_.dtype)

    def _numbers_of(self, model: Model, x: Any) -> np.ndarray:
        return cast(np.ndarray, model.predict(x))

    def predict(self, X: Any) -> np.ndarray:  # noqa: N803
        """The numbers of each sample: (samples,), or (samples, outputs) as y was."""
        y = self._outputs(X, self._numbers_of)
        return y[:, 0] if self._flat else y

    def _score(self, x: Any, y: np.ndarray) -> float:
        return float(r2_score(y, self._numbers_of(self.model_, x)))

    def partial_fit(self, X: Any, y: Any, sample_weight: Any = None) -> Any:  # noqa: N803
        """One epoch more on these samples."""
        return self._fit(X, y, sample_weight, not hasattr(self, "model_"), 1)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        return tags


# -- round any model --------------------------------------------------------------------------------------------------
class _Wrapped(_Estimator):
    """A model of one's own as an estimator.

    `model`: a function (or class) that returns one, a model, of which each `fit` trains a copy, or None for one hidden layer of
    100 ReLUs. A function is given those of its arguments that are called `input_shape` (the number of features), `outputs` (how
    many are needed) and `dtype`, and what `model__...` says: `CLNNClassifier(build, model__hidden=50)`, which grid searches
    may set.
    `loss`: None for cross_entropy, or binary_cross_entropy of one output a label; of numbers mse. `optimizer`, `epochs`,
    `batch_size`, `shuffle`, `callbacks`: as `fit` of a model takes them. `validation_fraction` of the samples, the same of each
    class, are drawn by `random_state`, held out, and measured as val_loss. `class_weight` (of classifiers): a dict by class, or
    "balanced". `dtype`: the type of models that this makes, "auto" for that of X on CPUs and float32 on GPUs. `device`: as
    `CLNN_DEVICE`; None for the one in use.

    After fit: `model_`, `history_` (by name, of this fit), `loss_curve_` (of all), `n_iter_`, `n_outputs_`, `n_features_in_`.
    """

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """The arguments of the constructor, with those for the model, `model__...`."""
        more = {name: value for name, value in vars(self).items() if name.startswith("model__")}
        return super().get_params(deep) | more

    def set_params(self, **params: Any) -> Any:
        """Set arguments of the constructor, those for the model included."""
        for name in [name for name in params if name.startswith("model__")]:
            setattr(self, name, params.pop(name))
        return super().set_params(**params)

    def _build(self, features: int, dtype: Any, seed: int) -> Model:
        given = {n.removeprefix("model__"): v for n, v in vars(self).items() if n.startswith("model__")}
        if isinstance(self.model, Model):
            if given:
                raise ConfigurationError(f"{', '.join(given)}: only a function that builds the model takes arguments")
            return copy.deepcopy(self.model)
        if self.model is None:
            build: Callable[..., Any] = _one_hidden_layer
        elif callable(self.model) and not isinstance(self.model, Layer):
            build = self.model
        else:
            raise ConfigurationError(f"model is a clnn model or a function that builds one, not {self.model!r}")
        told = {"input_shape": features, "outputs": self._count(), "dtype": dtype}
        names = inspect.signature(build).parameters
        return cast(Model, build(**{n: v for n, v in told.items() if n in names and n not in given}, **given))

    def _train(self, x: Any, y: np.ndarray, weight: np.ndarray | None, epochs: int | None, seed: int) -> None:
        if self.optimizer_ is None or getattr(self, "_optimizer", self.optimizer) != self.optimizer:
            self.optimizer_, self._optimizer = copy.deepcopy(self.optimizer), self.optimizer
        fraction, held_out = in_range("validation_fraction", self.validation_fraction, 0.0, 1.0), None
        if fraction and epochs is None:
            (x, y, weight), held_out = self._held_out(fraction, seed, x, y, weight)
        history = self.model_.fit(
            x, y, loss=self.loss if self.loss is not None else self._loss(self.n_outputs_), optimizer=self.optimizer_,
            epochs=self.epochs if epochs is None else epochs, batch_size=self.batch_size, shuffle=self.shuffle, seed=seed,
            callbacks=self.callbacks, validation=held_out, sample_weight=weight, progress=bool(self.verbose),
        )  # fmt: skip
        self.optimizer_, self.history_ = self.model_.optimizer, history.history
        self.loss_curve_ += history["loss"]
        self.n_iter_ += len(history["loss"])
        self.t_ += len(history["loss"]) * x.shape[0]


def _one_hidden_layer(input_shape: int, outputs: int, dtype: Any, hidden: int = 100) -> Sequential:
    return Sequential([Dense(hidden, "relu", weight_init="he_normal"), Dense(outputs)], input_shape, dtype)


class CLNNClassifier(_Classifier, _Wrapped):
    __doc__ = _Wrapped.__doc__

    @_of_scikit_learn
    def __init__(
        self, model: Any = None, *, loss: Any = None, optimizer: Any = "adam", epochs: int = 100, batch_size: int = 32,
        shuffle: bool = True, callbacks: Sequence[Any] = (), validation_fraction: float = 0.0, class_weight: Any = None,
        random_state: Any = None, warm_start: bool = False, verbose: bool = False, dtype: Any = "auto", device: Any = None,
        **model_arguments: Any,
    ) -> None:  # fmt: skip
        _keep(self, locals())


class CLNNRegressor(_Regressor, _Wrapped):
    __doc__ = _Wrapped.__doc__

    @_of_scikit_learn
    def __init__(
        self, model: Any = None, *, loss: Any = None, optimizer: Any = "adam", epochs: int = 100, batch_size: int = 32,
        shuffle: bool = True, callbacks: Sequence[Any] = (), validation_fraction: float = 0.0, random_state: Any = None,
        warm_start: bool = False, verbose: bool = False, dtype: Any = "auto", device: Any = None, **model_arguments: Any,
    ) -> None:  # fmt: skip
        _keep(self, locals())

    def _loss(self, outputs: int) -> Any:
        return "mse"


# -- scikit-learn's own parameters ------------------------------------------------------------------------------------
class _Perceptron(_Estimator):
    """A multi-layer perceptron with the parameters of scikit-learn's, which its documentation explains.

    What differs: weights start from Glorot's uniform distribution and biases from 0; weights of samples are relative to their
    mean over all samples, not over a mini-batch; `loss_curve_` and `loss_` are without the L2 term; `dtype` and `device` are
    clnn's: "auto" computes in the type of X on CPUs, and in float32 on GPUs.
    """

    def _build(self, features: int, dtype: Any, seed: int) -> Model:
        given = np.atleast_1d(np.asarray(self.hidden_layer_sizes, object))
        sizes = [check_count("hidden_layer_sizes", size) for size in given]
        layers = [Dense(size, ACTIVATIONS[self.activation], weight_init="glorot_uniform") for size in sizes]
        self.n_layers_ = len(sizes) + 2
        return Sequential([*layers, Dense(self._count(), weight_init="glorot_uniform")], features, dtype, seed=seed)

    @property
    def coefs_(self) -> list[np.ndarray]:
        """The weights of each layer (inputs, outputs)."""
        return [layer.w.numpy() for layer in self.model_.layers]  # type: ignore[attr-defined]

    @property
    def intercepts_(self) -> list[np.ndarray]:
        """The biases of each layer (outputs,)."""
        return [layer.b.numpy().ravel() for layer in self.model_.layers]  # type: ignore[attr-defined]

    def _share(self) -> int:
        """By what the loss that is trained on is larger than scikit-learn's: a sum over numbers, where that has their mean."""
        return self.n_outputs_ if isinstance(self, _Regressor) else 1

    @property
    def loss_(self) -> float:
        """The loss of the last epoch."""
        return float(self.loss_curve_[-1])

    def _rule(self, batch: int) -> Any:
        decay = in_range("alpha", self.alpha, 0.0, math.inf) / (batch * self._mean_weight)  # of a mini-batch's mean
        if self.solver == "adam":
            return Adam(self.learning_rate_init, self.beta_1, self.beta_2, self.epsilon, weight_decay=decay)
        nesterov = bool(self.momentum and self.nesterovs_momentum)
        return SGD(self.learning_rate_init, self.momentum, nesterov, weight_decay=decay)

    def _train(self, x: Any, y: np.ndarray, weight: np.ndarray | None, epochs: int | None, seed: int) -> None:
        if LOSSES[self._loss(self.n_outputs_)].mean_over_outputs:  # scikit-learn's gradient is that of the sum
            weight = self.n_outputs_ * (np.ones(len(y)) if weight is None else weight)
        most = check_count("max_iter", self.max_iter)
        held_out: tuple[Any, ...] | None = None
        if self.early_stopping and epochs is None:
            if self.solver == "lbfgs":
                raise ConfigurationError("early_stopping is for the solvers sgd and adam")
            fraction = in_range("validation_fraction", self.validation_fraction, 0.0, 1.0, "()")
            (x, y, weight), held_out = self._held_out(fraction, seed, x, y, weight)
        if self.solver == "lbfgs":
            self._by_lbfgs(x, y, weight, most)
            return
        n = x.shape[0]
        batch = min(200, n) if self.batch_size == "auto" else min(check_count("batch_size", self.batch_size), n)
        rule = self._rule(batch)
        told, was = rule.config(), getattr(self, "_told", {})
        if type(rule) is not type(self.optimizer_):
            self.optimizer_, self.best_loss_ = rule, math.inf
            self.validation_scores_, self.best_validation_score_ = None, None
        for name, value in told.items():
            if was.get(name, value) != value:  # set meanwhile, or of mini-batches of another size
                setattr(self.optimizer_, name, value)
        self._told = told
        watch = _Watch(self, n, held_out, self.learning_rate if self.solver == "sgd" else "constant")
        try:
            self.model_.fit(
                x, y, loss=self._loss(self.n_outputs_), optimizer=self.optimizer_, epochs=most if epochs is None else epochs,
                batch_size=batch, shuffle=self.shuffle, seed=seed, sample_weight=weight, callbacks=[watch], progress=False,
            )  # fmt: skip
        except KeyboardInterrupt:
            warn("Training interrupted by user.")
        if epochs is None and watch.count <= self.n_iter_no_change and watch.epochs == most:
            warn(f"Stochastic Optimizer: Maximum iterations ({most}) reached and the optimization hasn't converged yet.",
                 ConvergenceWarning)  # fmt: skip

    def _by_lbfgs(self, x: Any, y: np.ndarray, weight: np.ndarray | None, most: int) -> None:
        """All samples at once; an iteration at a time, so that max_fun holds."""
        net, loss = self.model_, LOSSES[self._loss(self.n_outputs_)]()
        rows = x.toarray() if hasattr(x, "toarray") else x
        inputs, target = tensor(rows, net.dtype), tensor(y, None if y.dtype == np.int32 else net.dtype)
        more = () if weight is None else (tensor(weight, net.dtype),)
        factor = 0.5 * in_range("alpha", self.alpha, 0.0, math.inf) / (x.shape[0] * self._mean_weight)

        def objective() -> Any:
            found = loss(net(inputs), target, *more)
            for layer in net.layers if factor else ():
                found = found + factor * (layer.w * layer.w).sum()  # type: ignore[attr-defined]
            return found

        self.optimizer_ = LBFGS(tolerance_gradient=in_range("tol", self.tol, 0.0, math.inf), tolerance_change=0.0)
        for _ in range(most):
            if self.optimizer_.evaluations >= self.max_fun:
                break
            found = self.optimizer_.minimize(objective, net.parameters(), 1)
            if found.steps == 0:
                break
            self.loss_curve_.append(found.loss / self._share())
            self.n_iter_ += 1
            self.t_ += x.shape[0]
            if self.verbose:
                print(f"Iteration {self.n_iter_}, loss = {found.loss:.8f}")
            if found.why != "steps":
                break
        else:
            warn(f"lbfgs failed to converge after {most} iteration(s)", ConvergenceWarning)
        net.loss = loss


class _Watch(Callback):
    """When an MLP stops: by `tol` and `n_iter_no_change` of the loss, or of the score of held-out samples; and its rate."""

    def __init__(self, of: Any, samples: int, held_out: tuple[Any, ...] | None, rate: str) -> None:
        self.of, self.samples, self.held_out, self.rate = of, samples, held_out, rate
        self.count = self.epochs = 0
        self.best: dict[str, np.ndarray] | None = None
        if held_out:
            of.validation_scores_, of.best_validation_score_, of.best_loss_ = [], -math.inf, None
        elif of.best_loss_ is None:  # early stopping has gone by scores, until now
            of.best_loss_ = math.inf

    def on_epoch_end(self, model: Any, epoch: int, logs: dict[str, float]) -> None:
        of, loss = self.of, logs["loss"] / self.of._share()
        self.epochs += 1
        of.n_iter_ += 1
        of.t_ += self.samples
        of.loss_curve_.append(loss)
        if of.verbose:
            print(f"Iteration {of.n_iter_}, loss = {loss:.8f}")
        if self.held_out:
            score = of._score(*self.held_out[:2])
            of.validation_scores_.append(score)
            if of.verbose:
                print(f"Validation score: {score:f}")
            better = score >= of.best_validation_score_ + of.tol
            if score > of.best_validation_score_:
                of.best_validation_score_, self.best = score, model.state_dict()
        else:
            better, of.best_loss_ = loss <= of.best_loss_ - of.tol, min(loss, of.best_loss_)
        self.count = 0 if better else self.count + 1
        if self.rate == "invscaling":
            of.optimizer_.lr = of.learning_rate_init / (of.t_ + 1) ** of.power_t
        if self.count > of.n_iter_no_change:
            rate = of.optimizer_.lr
            if self.rate == "adaptive" and rate > 1e-6:
                of.optimizer_.lr, self.count = rate / 5, 0
            else:
                model.stop_training = True

    def on_train_end(self, model: Any) -> None:
        if self.best is not None:
            model.load_state_dict(self.best)


def _takes_epochs(estimator: Any) -> bool:
    if estimator.solver == "lbfgs":
        raise AttributeError("partial_fit is not available for the solver lbfgs, which sees all samples at once")
    return True


class MLPClassifier(_Classifier, _Perceptron):
    __doc__ = _Perceptron.__doc__
    partial_fit = available_if(_takes_epochs)(_Classifier.partial_fit)

    def __init__(
        self, hidden_layer_sizes: Any = (100,), activation: str = "relu", *, solver: str = "adam", alpha: float = 0.0001,
        batch_size: Any = "auto", learning_rate: str = "constant", learning_rate_init: float = 0.001, power_t: float = 0.5,
        max_iter: int = 200, shuffle: bool = True, random_state: Any = None, tol: float = 1e-4, verbose: bool = False,
        warm_start: bool = False, momentum: float = 0.9, nesterovs_momentum: bool = True, early_stopping: bool = False,
        validation_fraction: float = 0.1, beta_1: float = 0.9, beta_2: float = 0.999, epsilon: float = 1e-8,
        n_iter_no_change: int = 10, max_fun: int = 15000, dtype: Any = "auto", device: Any = None,
    ) -> None:  # fmt: skip
        _keep(self, locals())

    @property
    def out_activation_(self) -> str:
        """What makes probabilities of the outputs."""
        return "logistic" if self.multilabel_ or self.n_outputs_ == 1 else "softmax"


class MLPRegressor(_Regressor, _Perceptron):
    __doc__ = _Perceptron.__doc__
    partial_fit = available_if(_takes_epochs)(_Regressor.partial_fit)

    def __init__(
        self, loss: str = "squared_error", hidden_layer_sizes: Any = (100,), activation: str = "relu", *, solver: str = "adam",
        alpha: float = 0.0001, batch_size: Any = "auto", learning_rate: str = "constant", learning_rate_init: float = 0.001,
        power_t: float = 0.5, max_iter: int = 200, shuffle: bool = True, random_state: Any = None, tol: float = 1e-4,
        verbose: bool = False, warm_start: bool = False, momentum: float = 0.9, nesterovs_momentum: bool = True,
        early_stopping: bool = False, validation_fraction: float = 0.1, beta_1: float = 0.9, beta_2: float = 0.999,
        epsilon: float = 1e-8, n_iter_no_change: int = 10, max_fun: int = 15000, dtype: Any = "auto", device: Any = None,
    ) -> None:  # fmt: skip
        _keep(self, locals())

    def _loss(self, outputs: int) -> Any:
        return REGRESSION[self.loss]

    def _numbers_of(self, model: Model, x: Any) -> np.ndarray:
        y = cast(np.ndarray, model.predict(x))
        return np.exp(y) if self.loss == "poisson" else y

    @property
    def out_activation_(self) -> str:
        """What makes numbers of the outputs."""
        return "exp" if self.loss == "poisson" else "identity"
