"""Names of Keras and PyTorch get errors that say what clnn has instead."""

import copy
import pickle

import numpy as np
import pytest

import clnn
from clnn import foreign

KINDS = [getattr(clnn, name) for name in clnn.__all__ if isinstance(getattr(clnn, name), type)]
KINDS = [kind for kind in KINDS if issubclass(kind, (clnn.Layer, clnn.Optimizer, clnn.Schedule))]


@pytest.mark.parametrize(
    "make, told",
    [
        (lambda: clnn.Dense(units=3), "Dense takes size, not units"),
        (lambda: clnn.Dense(in_features=3, out_features=4), "Dense takes no in_features: leave it out"),
        (lambda: clnn.Dense(3, kernel_initializer="he_normal"), "Dense takes weight_init, not kernel_initializer"),
        (lambda: clnn.Dense(3, input_shape=4), r"give it to Sequential"),
        (lambda: clnn.Conv2D(filters=3, kernel_size=3), "Conv2D takes channels, not filters"),
        (lambda: clnn.Conv2D(3, 3, strides=2), "Conv2D takes stride, not strides"),
        (lambda: clnn.MaxPool2D(pool_size=2), "MaxPool2D takes size, not pool_size"),
        (lambda: clnn.MaxPool2D(kernel_size=2), "MaxPool2D takes size, not kernel_size"),
        (lambda: clnn.LSTM(hidden_size=3), "LSTM takes units, not hidden_size"),
        (lambda: clnn.LSTM(3, bidirectional=True), "clnn.Bidirectional"),
        (lambda: clnn.SimpleRNN(3, bias=False), "SimpleRNN takes use_bias, not bias"),
        (lambda: clnn.BatchNorm(eps=1e-3), "BatchNorm takes epsilon, not eps"),
        (lambda: clnn.Embedding(num_embeddings=3, embedding_dim=2), "Embedding takes tokens, not num_embeddings"),
        (lambda: clnn.Dropout(p=0.5), "Dropout takes rate, not p;"),
        (lambda: clnn.Adam(learning_rate=0.1), "Adam takes lr, not learning_rate"),
        (lambda: clnn.SGD(lr=0.1, clipnorm=1.0), "SGD takes clip_norm, not clipnorm"),
        (lambda: clnn.Adam(betas=(0.9, 0.99)), "give beta1 and beta2"),
        (lambda: clnn.Dense(3, activaton="relu"), "perhaps activation"),
        (lambda: clnn.Dense(3, zzz=1), "it takes activation, bias, "),
    ],
)
def test_arguments(make, told):
    with pytest.raises(clnn.ArgumentError, match=told):
        make()
    with pytest.raises(TypeError):
        make()


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_no_table_names_an_argument_that_is_taken(kind):
    """Of each class: what the error advises is an argument that it has."""
    known = foreign.arguments(kind)
    for name in foreign.ARGUMENTS:
        if known and name not in known:
            with pytest.raises(clnn.ArgumentError, match=name) as error:
                foreign.check_arguments(kind, {name: 1})
            if " takes " in str(error.value) and ", not " in str(error.value):
                assert str(error.value).split(" takes ")[1].split(",")[0] in known


@pytest.mark.parametrize(
    "name, told",
    [
        ("Conv2d", "clnn.Conv2D"), ("ConvTranspose2d", "clnn.Conv2DTranspose"), ("MaxPooling2D", "clnn.MaxPool2D"),
        ("BatchNorm2d", "clnn.BatchNorm;"), ("BatchNormalization", "clnn.BatchNorm"), ("nn", "clnn.Dense"),
        ("GlobalAveragePooling2D", "clnn.GlobalAvgPool;"), ("ZeroPadding2D", "clnn.Padding"),
        ("CrossEntropyLoss", "cross_entropy"),
        ("Module", "clnn.Model"), ("UpSampling2D", "clnn.UpSampling"), ("Dens", "did you mean clnn.Dense"),
        ("Linear", "clnn.Dense"),
        ("Dropout2d", "clnn.SpatialDropout"), ("AdaptiveAvgPool2d", "clnn.AdaptiveAvgPool;"),
    ],
)  # fmt: skip
def test_names_of_the_package(name, told):
    with pytest.raises(AttributeError, match=told):
        getattr(clnn, name)


def test_every_name_that_is_advised_exists():
    for name, told in foreign.NAMES.items():
        if told.startswith("clnn.") and told.isprintable() and "(" not in told and "," not in told:
            own = told.removeprefix("clnn.")
            assert any(hasattr(clnn, own + end) for end in ("", "1D", "2D")) or name == "ConvTranspose", name
            assert not hasattr(clnn, name) or hasattr(clnn, own)


@pytest.mark.parametrize("method", foreign.METHODS)
def test_methods_of_models(method):
    for net in (clnn.Sequential([clnn.Dense(2)]), type("Mine", (clnn.Model,), {})()):
        with pytest.raises(AttributeError, match=rf"has no {method}\(\)"):
            getattr(net, method)
        assert not hasattr(net, method) and getattr(net, method, None) is None


def test_other_attributes_are_as_ever():
    net = clnn.Sequential([clnn.Dense(2)], input_shape=3)
    with pytest.raises(AttributeError, match="nothing_like_this"):
        net.nothing_like_this
    for again in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert np.array_equal(again.predict(np.ones((1, 3))), net.predict(np.ones((1, 3))))


def test_what_fit_never_calls(rng):
    class Mine(clnn.Callback):
        def on_batch_end(self, batch, logs):
            raise AssertionError

    net = clnn.Sequential([clnn.Dense(2)], input_shape=3)
    with pytest.raises(clnn.ConfigurationError, match="Mine.on_batch_end: fit never calls that, but on_data"):
        net.fit(rng.random((4, 3)), [0, 1, 0, 1], loss="cross_entropy", optimizer="sgd", callbacks=[Mine()])


def test_a_class_of_ones_own_takes_what_it_likes():
    class Mine(clnn.Layer):
        def __init__(self, units, learning_rate=1.0):
            self.units = units

    assert Mine(units=3, learning_rate=2.0).units == 3
    with pytest.raises(TypeError, match="unexpected keyword"):
        Mine(eps=3)
