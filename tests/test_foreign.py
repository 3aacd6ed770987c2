"""Names of Keras and PyTorch get errors that say what clnn has instead."""

import contextlib
import copy
import inspect
import pickle
import re

import numpy as np
import pytest

import clnn
from clnn import foreign
from clnn.ops.elementwise import BINARY

KINDS = [getattr(clnn, name) for name in clnn.__all__ if isinstance(getattr(clnn, name), type)]
KINDS = [kind for kind in KINDS if issubclass(kind, (clnn.Layer, clnn.Optimizer, clnn.Schedule))]

NET = clnn.Sequential([clnn.Dense(2)])


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
        (lambda: clnn.Conv2D(8), "Conv2D: missing a required argument: 'kernel'"),
        (lambda: clnn.GRUCell(3, units=3), "GRUCell: multiple values for argument 'units'"),
        (lambda: clnn.Adam(0.1, lr=0.1), "Adam: multiple values for argument 'lr'"),
        (lambda: clnn.Flatten(start_dim=1), r"Flatten takes no arguments, and \['start_dim'\] were given"),
        (lambda: clnn.GlobalAvgPool(2), r"GlobalAvgPool takes no arguments, and \[2\]"),
        (lambda: type("Mine", (clnn.Layer,), {})(3), r"Mine takes no arguments, and \[3\]"),
        (lambda: type("Mine", (clnn.Callback,), {})(rate=3), r"Mine takes no arguments, and \['rate'\]"),
        (lambda: clnn.EarlyStopping(restore_best_weights=True), "EarlyStopping takes restore_best, not restore_best_w"),
        (lambda: clnn.Checkpoint("run", save_best_only=True), "Checkpoint takes best_only, not save_best_only"),
        (lambda: clnn.TensorBoard(log_dir="run"), "TensorBoard takes folder, not log_dir"),
        (lambda: clnn.Dense(3, input_dim=4), "Dense takes no input_dim: give input_shape to Sequential"),
        (lambda: clnn.Embedding(input_dim=9, output_dim=2), "Embedding takes tokens, not input_dim"),
        (lambda: clnn.losses.CrossEntropy(from_logits=True), "CrossEntropy takes no from_logits: leave it out"),
        (lambda: NET.fit([[1.0]], [0], verbose=0), "fit takes progress, not verbose"),
        (lambda: NET.fit([[1.0]], [0], validation_data=None), "fit takes validation, not validation_data"),
        (lambda: NET.fit([[1.0]], [0], epoch=3), "fit takes no epoch, perhaps epochs"),
        (lambda: clnn.SGD(eta=3.0), "SGD takes lr, not eta"),
        (lambda: NET.fit([[1.0]], [0], eta=3.0), r"fit takes no eta: .* optimizer=clnn.SGD\(lr\)"),
        (lambda: clnn.SGD(0.1, lmbda=5.0), r"SGD takes no lmbda: .* weight_decay, .* lmbda / len\(x\)"),
        (lambda: NET.fit([[1.0]], [0], lmbda=5.0), r"fit takes no lmbda: .* weight_decay, .* lmbda / len\(x\)"),
        (lambda: NET.fit([[1.0]], [0], cost="mse"), "fit takes loss, not cost"),
        (lambda: NET.fit([[1.0]], [0], test_data=None), "fit takes validation, not test_data"),
        (lambda: NET.fit([[1.0]], [0], mini_batch_size=10), "fit takes no mini_batch_size, perhaps batch_size"),
        (lambda: NET.predict([[1.0]], verbose=0), "predict takes no verbose; it takes batch_size"),
        (lambda: NET.evaluate([[1.0]], [0], verbose=0), "evaluate takes no verbose; it takes batch_size, loss"),
        (lambda: NET.plot(to_file="net.png"), "plot takes path, not to_file"),
    ],
)
def test_arguments(make, told):
    with pytest.raises(clnn.ArgumentError, match=told):
        make()
    with pytest.raises(TypeError):
        make()


@pytest.mark.parametrize(
    "make, told",
    [
        (
            lambda: clnn.losses.find_loss("sparse_categorical_crossentropy"),
            "no loss 'spars.*'; the known ones are .*; 'cross_entropy' may be meant",
        ),
        (lambda: clnn.losses.find_loss("BCELoss"), "; 'binary_cross_entropy' may be meant"),
        (lambda: clnn.losses.find_loss("CrossEntropyLoss"), "; 'cross_entropy' may be meant"),
        (lambda: clnn.losses.find_loss("MSELoss"), "; 'mse' may be meant"),
        (lambda: clnn.losses.find_loss(None), "there is no loss None; the known"),
        (lambda: clnn.optim.find_optimizer("adm"), "; 'adam' may be meant"),
        (lambda: clnn.metrics.find_metric("acc"), "the known ones are accuracy and top_<k>.*; 'accuracy' may be meant"),
        (lambda: clnn.metrics.find_metric("mae"), r"or a function, as clnn.losses.mae; clnn.metrics.report has f1"),
        (
            lambda: clnn.Sequential([clnn.Input(3), clnn.Dense(2)]),
            "not <.* from Input>; inputs' shape goes to input_shape",
        ),
        (lambda: clnn.Dense(3, "ReLU"), "; 'relu' may be meant"),
        (lambda: clnn.Dense(3, clnn.relu), "; 'relu' may be meant"),
        (lambda: clnn.Dense(784, 100), "there is no activation 100; .*; sizes of inputs are found"),
        (lambda: clnn.Dense(3, weight_init="xavier_uniform_"), "; 'glorot_uniform' may be meant"),
        (lambda: clnn.Dense(3, weight_init="HeNormal"), ", a finite number.*; 'he_normal' may be meant"),
        (lambda: clnn.Dense(3, weight_init="nothing like it"), "initialiser 'nothing like it'; the known"),
        (
            lambda: clnn.Dense(9, weight_init=np.ones((30, 9))),
            r"^.{,120}; the known.* returns an array: lambda \*_: array$",
        ),
        (lambda: clnn.Dense(3, lambda z: z * z), r"; one of your own is a clnn.Layer behind it, whose forward\(x\)"),
        (lambda: clnn.Sequential([clnn.Dense(3), lambda z: z]), r"a function into the forward\(x\) of a clnn.Layer"),
    ],
)
def test_values_by_name(make, told):
    with pytest.raises(clnn.ConfigurationError, match=told):
        make()


class Swapped:
    def __call__(self, targets, outputs):
        return ((targets - outputs) ** 2).mean()


@pytest.mark.parametrize(
    "mine", [lambda y_true, y_pred: (y_true - y_pred).mean(), lambda target, output, power=2: target, Swapped()]
)
def test_a_loss_or_a_metric_in_the_order_of_keras(mine):
    """The outputs come first here: a loss that weighs too much and too little apart learned the opposite."""
    x, y = np.ones((4, 1)), np.ones((4, 2))
    for options in ({"loss": mine}, {"loss": "mse", "metrics": [mine]}):
        with pytest.raises(clnn.ConfigurationError, match=r"is called with \(output, target\), .*turn them round"):
            NET.fit(x, y, optimizer="sgd", **options)
    for wrong in (lambda y: y.mean(), Swapped, lambda y, t, power: y):
        for options in ({"loss": wrong}, {"loss": "mse", "metrics": [wrong]}):
            with pytest.raises(clnn.ArgumentError, match=r"of your own is called with \(output, target\): "):
                NET.fit(x, y, optimizer="sgd", **options)
    for right in (lambda y_pred, y_true: y_pred, max, clnn.losses.mse, lambda *both: both[0]):
        assert clnn.losses.find_loss(right) is right and clnn.metrics.find_metric(right) is right


def test_no_error_of_pythons_own_has_a_private_name():
    public = [kind for name in clnn.__all__ if isinstance(kind := getattr(clnn, name), type)]
    assert not [kind for kind in public if kind.__init__.__qualname__.startswith("_")]


def test_a_formula_is_told_as_it_stands_in_its_table():
    """`a + b` began with a capital A in help(clnn.add), which is no name of an argument."""
    for name, one in BINARY.items():
        assert getattr(clnn, name).__doc__ == f"{one.formula}; elementwise, with broadcasting."


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_no_table_names_an_argument_that_is_taken(kind):
    """Of each class: what the error advises is an argument that it has."""
    known = foreign.arguments(kind)
    for name in foreign.ARGUMENTS:
        if known and name not in known:
            with pytest.raises(clnn.ArgumentError, match=name) as error:
                foreign.refuse_unknown(kind.__name__, known, {name: 1})
            if " takes " in str(error.value) and ", not " in str(error.value):
                assert str(error.value).split(" takes ")[1].split(",")[0] in known


@pytest.mark.parametrize(
    "name, told",
    [
        ("Conv2d", "clnn.Conv2D"), ("ConvTranspose2d", "clnn.Conv2DTranspose"), ("MaxPooling2D", "clnn.MaxPool2D"),
        ("BatchNorm2d", "clnn.BatchNorm;"), ("keras", "clnn.Dense"), ("RMSNormalization", "clnn.RMSNorm"), ("SELU", '"selu"'),
        ("initializers", 'weight_init="he_normal"'), ("RandomFlip", "clnn.data.augment"), ("Rescaling", "x / 255"),
        ("BatchNormalization", "clnn.BatchNorm"), ("nn", "clnn.Dense"),
        ("GlobalAveragePooling2D", "clnn.GlobalAvgPool;"), ("ZeroPadding2D", "clnn.Padding"),
        ("CrossEntropyLoss", "cross_entropy"), ("BCELoss", "the sum over"), ("BCEWithLogitsLoss", "the sum over outputs, of a"),
        ("grad", r"loss.backward\(\)"), ("GradientTape", r"p.grad; it goes once"),
        ("Module", "clnn.Model"), ("UpSampling2D", "clnn.UpSampling"), ("Dens", "did you mean clnn.Dense"),
        ("Linear", "clnn.Dense"),
        ("Dropout2d", "clnn.SpatialDropout"), ("AdaptiveAvgPool2d", "clnn.AdaptiveAvgPool;"),
        ("InstanceNorm1d", "clnn.InstanceNorm;"), ("Conv", r"did you mean clnn.Conv\dD"), ("ReLU1d", "did you mean clnn"),
        *((name, rf"t\.{name}\(\), of a tensor") for name in ("sum", "mean", "max", "argmax", "reshape", "transpose")),
        ("matmul", "a @ b"), ("array", "clnn.tensor;"), ("concat", "clnn.concatenate;"), ("bmm", "a @ b"),
        ("RepeatVector", r"clnn.repeat\(x\[:, None\], n, axis=1\)"), ("Permute", "x.transpose"), ("Identity", '"linear"'),
        ("RNN", "clnn.SimpleRNN, clnn.LSTM, clnn.GRU"), ("ModuleList", "a list, in which"), ("clip_grad_norm_", "clip_norm=1.0"),
        ("LambdaLR", "lambda step"), ("TripletMarginLoss", "clnn.losses.triplet"), ("amp", 'storage="float16"'),
        ("pack_padded_sequence", r"LSTM\(8\)\(x, lengths\)"), ("pad_sequences", "clnn.Masking"), ("rand", r"rng.random\("),
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


@pytest.mark.parametrize(
    "name, told",
    [*foreign.OF_TENSORS.items(), *((name, f"clnn.{name}(t)") for name in ("exp", "std", "argmin", "softmax", "sort"))],
)
def test_methods_of_tensors(device, name, told):
    for t in (clnn.tensor([[1.0, 2.0]]), clnn.tensor([1.0], requires_grad=True)):
        if not hasattr(type(t), name):
            with pytest.raises(AttributeError, match=f"has no attribute '{name}': {re.escape(told)}"):
                getattr(t, name)
            assert not hasattr(t, name) and getattr(t, name, 7) == 7


def test_how_values_get_into_a_parameter(device):
    with pytest.raises(AttributeError, match=r"assign_sub.*into parameters by net.load_state_dict"):
        clnn.tensor([1.0], requires_grad=True).assign_sub


def test_other_attributes_of_tensors_are_as_ever(device):
    t = clnn.tensor([[1.0, 2.0]])
    for name in ("nothing_like_this", "__nothing__", "_x"):
        with pytest.raises(AttributeError, match=f"^'Tensor' object has no attribute '{name}'$"):
            getattr(t, name)
    with pytest.raises(AttributeError):
        t.nothing_like_this = 1
    for again in (copy.deepcopy(t), pickle.loads(pickle.dumps(t))):
        assert np.array_equal(again, t)


@pytest.mark.parametrize("kind", [clnn.SGD, clnn.Adam, clnn.LAMB])
def test_an_optimizer_over_parameters(kind):
    """Which PyTorch's come first: a list was taken for one of rates, and a model for a function of the step. Before a model is
    built it has none."""
    net, unbuilt = clnn.Sequential([clnn.Dense(2)], input_shape=3), clnn.Sequential([clnn.Dense(2)])
    groups = [{"params": net.parameters(), "lr": 0.1}, {"params": []}]
    for wrong in (net.parameters(), net, net.layers[0], unbuilt.parameters(), groups, iter(net.parameters())):
        for options in ({}, {"lr": 0.1}):
            with pytest.raises(clnn.ArgumentError, match=r"takes no params: .*optimizer.step\(net.parameters\(\)\)"):
                kind(wrong, **options)
    for rate in (0.1, [(2, 0.1), (1, 0.01)], lambda step: 0.1, clnn.Cosine(0.1)):
        kind(rate)


def test_a_history_is_gone_through_by_names(device):
    net = clnn.Sequential([clnn.Dense(2)], input_shape=3, seed=1)
    history = net.fit(np.ones((4, 3)), np.ones((4, 2)), loss="mse", optimizer="sgd", epochs=2, progress=False)
    assert list(history) == list(history.history) and "loss" in history and "val_loss" not in history
    with pytest.raises(KeyError, match="val_loss: only loss, lr, seconds was measured"):
        history["val_loss"]
    again = pickle.loads(pickle.dumps(history))
    for one in (history, again, copy.deepcopy(history)):
        assert isinstance(one, clnn.History) and one == dict(one) == dict(history.items()) == history.history
        assert {*one.keys()} == {"loss", "lr", "seconds"} and one.get("val_loss") is None and len(one["loss"]) == 2
    again.add({"loss": 0.0})
    assert (
        len(again["loss"]) == 3 and len(history["loss"]) == 2 and str(again).startswith("<History of 3 epochs: loss 0")
    )


def test_images_without_an_axis_of_channels(device):
    """As Keras' data sets of grey ones are."""
    for layer, x in ((clnn.Conv2D(2, 3), np.ones((4, 8, 8))), (clnn.MaxPool1D(2), np.ones((4, 8)))):
        with pytest.raises(clnn.ShapeError, match=r"not \(.*8\): x\[:, None\] gives it one channel"):
            clnn.Sequential([layer]).predict(x)
        clnn.Sequential([layer]).predict(x[:, None])
    with pytest.raises(clnn.ShapeError) as error:
        clnn.Sequential([clnn.Conv2D(2, 3)]).predict(np.ones((4, 1, 8, 8, 8)))
    assert "one channel" not in str(error.value)


class OwnModel(clnn.Model):
    def __init__(self):
        self.made = {}

    @property
    def broken(self):
        return self.made.weights  # an error of its own, which is to be seen


class OwnCallback(clnn.Callback):
    def on_epoch_end(self, model, epoch, logs):
        self.model.stop_training = True


@pytest.mark.parametrize(
    "kind, make",
    [
        ("Layer", lambda: clnn.Sequential([clnn.Dense(2)])), ("Layer", OwnModel), ("Layer", lambda: clnn.Dense(2)),
        ("Optimizer", lambda: clnn.Adam(0.1)), ("Schedule", lambda: clnn.Cosine(0.1)), ("Callback", OwnCallback),
        ("Loss", clnn.losses.CrossEntropy), ("Callback", lambda: clnn.EarlyStopping()),
    ],
)  # fmt: skip
def test_attributes(kind, make):
    for name, told in foreign.OF[kind].items():
        one = make()
        if not hasattr(type(one), name):
            with pytest.raises(AttributeError, match=rf"has no attribute '{name}': {re.escape(told)}; see"):
                getattr(one, name)
            assert not hasattr(one, name) and getattr(one, name, 7) == 7
            if kind != "Optimizer":  # which takes no attributes of others
                setattr(one, name, 8)
                assert getattr(one, name) == 8
        for again in (copy.copy(make()), copy.deepcopy(make()), pickle.loads(pickle.dumps(make()))):
            assert not hasattr(again, "nothing_like_this") and type(again) is type(one)


def test_attributes_that_arguments_have_made(device):
    layer = clnn.Conv2D(3, 5, stride=2)
    for name, have in {
        "filters": "channels",
        "kernel_size": "kernel",
        "strides": "stride",
        "out_channels": "channels",
    }.items():
        with pytest.raises(AttributeError, match=f"'Conv2D' object has no attribute '{name}': that is .{have};"):
            getattr(layer, name)
    with pytest.raises(AttributeError, match=r"'Adam' object has no attribute 'learning_rate': that is .lr;"):
        clnn.Adam(0.1).learning_rate
    for name in ("out_features", "nothing", "_x", "__x__"):  # that it has no size
        with pytest.raises(AttributeError, match=f"^'Conv2D' object has no attribute '{name}'$"):
            getattr(layer, name)
    with pytest.raises(AttributeError, match="'dict' object has no attribute 'weights'"):
        OwnModel().broken


def test_callbacks_that_ask_for_the_model_as_in_keras(rng):
    net = clnn.Sequential([clnn.Dense(2)], input_shape=3)
    with pytest.raises(
        AttributeError, match="'OwnCallback' object has no attribute 'model': each method is given the mod"
    ):
        net.fit(
            rng.random((4, 3)),
            [0, 1, 0, 1],
            loss="cross_entropy",
            optimizer="sgd",
            callbacks=[OwnCallback()],
            progress=False,
        )


@pytest.mark.parametrize(
    "call, told",
    [
        (lambda t: t.sum(dim=0), "sum takes axis, not dim;"), (lambda t: t.argmax(dim=0), "argmax takes axis, not dim;"),
        (lambda t: t.mean(0, keepdim=True), "mean takes keepdims, not keepdim"), (lambda t: t.max(axes=0), "perhaps axis"),
        (lambda t: clnn.softmax(t, dim=-1), "softmax takes axis, not dim"), (lambda t: t.min(zzz=0), "min takes no zzz"),
        (lambda t: clnn.concatenate([t, t], dim=0), "concat takes axis, not dim"),
        (lambda t: clnn.data.Batches(t, batch=2), "Batches takes batch_size, not batch;"),
        (lambda t: clnn.data.Batches(t, num_workers=2), "Batches takes workers, not num_workers;"),
        (lambda t: clnn.data.ImageFolder(".", image_size=2), "ImageFolder takes size, not image_size;"),
        (lambda t: clnn.data.ImageFolder(classes=[]), "ImageFolder: missing a required argument: 'path'"),
    ],
)  # fmt: skip
def test_arguments_of_methods_and_of_what_holds_data(device, call, told):
    with pytest.raises(clnn.ArgumentError, match=told):
        call(clnn.tensor([[1.0, 2.0]]))


@pytest.mark.parametrize(
    "room, name, told",
    [
        ("losses", "MSELoss", 'that is loss="mse"; see'), ("losses", "mean_squared_error", "that is clnn.losses.mse"),
        ("metrics", "Accuracy", "did you mean clnn.metrics.accuracy"), ("metrics", "acc", "that is clnn.metrics.accuracy"),
        ("optim", "lr_scheduler", "clnn.schedules"), ("schedules", "StepLR", "clnn.StepDecay"),
        ("layers", "Conv2d", "that is clnn.Conv2D;"), ("callbacks", "ModelCheckpoint", "clnn.Checkpoint"),
        ("data", "DataLoader", "clnn.data.Batches"), ("data", "Batch", "did you mean clnn.data.Batches"),
        ("optim", "Cosine", "that is clnn.Cosine"), ("init", "uniforms", "did you mean clnn.init.uniform"),
        ("init", "he_normal", 'weight_init="he_normal"'), ("init", "xavier_uniform_", 'weight_init="glorot_uniform"'),
        ("init", "HeUniform", 'weight_init="he_uniform"'), ("init", "nielsen_new", 'weight_init="nielsen_new"'),
    ],
)  # fmt: skip
def test_names_of_its_modules(room, name, told):
    room = getattr(clnn, room)
    with pytest.raises(
        AttributeError, match=rf"^module '{room.__name__}' has no attribute '{name}'.*{re.escape(told)}"
    ):
        getattr(room, name)
    for other in (name, "__wrapped__", "_x"):
        assert not hasattr(room, other) and getattr(room, other, 7) == 7
    with pytest.raises(ImportError):
        exec(f"from {room.__name__} import {name}")


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


@pytest.mark.parametrize(
    "name, function, fits",
    [
        ("on_epoch_begin", lambda epoch, logs=None: None, False),  # Keras': the model would be taken for the epoch
        ("on_epoch_end", lambda epoch, logs=None: None, False),
        ("on_train_begin", lambda logs=None: None, False),
        ("on_epoch_end", lambda model, epoch: None, False),
        ("on_epoch_end", lambda net, i, found, more=None: None, True),
        ("on_epoch_end", lambda *_: None, True),
    ],
)
def test_callbacks_of_another_signature(name, function, fits, rng):
    Mine = type("Mine", (clnn.Callback,), {name: staticmethod(function)})  # noqa: N806
    given = {"loss": "cross_entropy", "optimizer": "sgd", "progress": False}
    for one in (Mine(), clnn.Lambda(**{name: function})):
        net = clnn.Sequential([clnn.Dense(2)], input_shape=3)
        with (
            contextlib.nullcontext()
            if fits
            else pytest.raises(clnn.ConfigurationError, match=rf"{name} takes \(.*\), and fit calls it with \(model")
        ):
            net.fit(rng.random((4, 3)), [0, 1, 0, 1], callbacks=[one], **given)


def test_tensors_by_name_as_in_keras(device):
    x = np.ones((2, 3), np.float32)
    net = clnn.Sequential([clnn.Dropout(0.5)], input_shape=3)
    for call in (
        lambda: clnn.Dropout(0.5)(x, training=True),
        lambda: net(x, training=False),
        lambda: clnn.Dense(2)(inputs=x),
        lambda: clnn.Concatenate()([x, x], mask=x),
        lambda: clnn.Dense(2)(clnn.Input((3,)), training=True),
    ):
        with pytest.raises(clnn.ConfigurationError, match=r"none by name, \w+=: for training .* net.eval"):
            call()


def test_too_few_inputs_or_too_many(device):
    x = np.zeros((2, 3, 4), np.float32)
    with pytest.raises(clnn.ArgumentError, match="^TransformerDecoderLayer: missing a required argument: 'context'"):
        clnn.TransformerDecoderLayer(2, 8)(x)
    with pytest.raises(clnn.ArgumentError, match="^Dense: too many positional arguments"):
        clnn.Dense(2)(x, x)
    with pytest.raises(clnn.ConfigurationError, match="none by name, attention_mask="):
        clnn.MultiHeadAttention(2)(x, attention_mask=x)


def test_an_error_in_a_forward_of_ones_own_stays_what_it_is(device):
    class Wrong(clnn.Layer):
        def forward(self, x):
            return x + len(3)

    with pytest.raises(TypeError, match="has no len"):
        Wrong()(np.zeros((2, 3), np.float32))


def test_a_class_of_ones_own_takes_what_it_likes():
    class Mine(clnn.Layer):
        def __init__(self, units, learning_rate=1.0):
            self.units = units

    assert Mine(units=3, learning_rate=2.0).units == 3
    with pytest.raises(TypeError, match="unexpected keyword"):
        Mine(eps=3)


class _Two(clnn.Layer):
    def forward(self, x, y):
        return x + y


class _NoSuper(clnn.optim.SGD):
    def __init__(self):
        self.momentum = 0.5


class _ByNumber:
    """As a `Sequence` of Keras is."""

    def __len__(self):
        return 2

    def __getitem__(self, i):
        return np.ones((4, 4), np.float32), np.arange(4) % 3


X, Y = np.ones((6, 4), np.float32), np.arange(6) % 3
MISUSED = {
    "stack": (lambda net, t: clnn.stack([t, t], dim=0), "stack takes axis, not dim"),
    "sort": (lambda net, t: clnn.sort(t, dim=0), "sort takes axis, not dim"),
    "clip": (lambda net, t: clnn.clip(t, min=0), "clip takes low, not min"),
    "one_hot": (lambda net, t: clnn.one_hot(Y, num_classes=3), "one_hot takes classes, not num_classes"),
    "max_pool": (lambda net, t: clnn.max_pool(t, kernel_size=2), "max_pool takes size, not kernel_size"),
    "attention": (
        lambda net, t: clnn.scaled_dot_product_attention(t, t, t, is_causal=True),
        "takes causal, not is_causal",
    ),
    "too few": (lambda net, t: clnn.stack(), "stack: missing a required argument: 'tensors'"),
    "save": (lambda net, t: net.save("net", overwrite=True), "save takes no overwrite: leave it out"),
    "state_dict": (lambda net, t: net.state_dict(prefix="a."), "state_dict takes no prefix: names are"),
    "load": (lambda net, t: net.load_state_dict({}, strict=False), "load_state_dict takes no strict: all names fit"),
    "backward": (
        lambda net, t: (t * t).sum().backward(retain_graph=True),
        "backward takes no retain_graph: compute the",
    ),
    "zero_grad": (lambda net, t: net.zero_grad(set_to_none=True), "zero_grad takes no set_to_none: leave it out"),
    "step": (lambda net, t: clnn.SGD().step(closure=len), "step takes no closure: call loss.backward"),
    "no loss": (lambda net, t: net.fit(X, Y, optimizer="sgd"), "fit: missing .*'loss'; such as loss="),
    "no optimizer": (lambda net, t: net.fit(X, Y, loss="mse"), "fit: missing .*'optimizer'; such as optimizer="),
    "Sequential": (lambda net, t: clnn.Sequential(), "Sequential takes a list of one or more layers"),
    "inputs": (lambda net, t: clnn.Dense(2)(t, t), "Dense: too many"),
    "no input": (lambda net, t: clnn.LSTM(3)(), "LSTM takes a tensor, and none was given"),
    "two in a row": (lambda net, t: clnn.Sequential([_Two()], 4), "_1: missing .*'y'"),
    "a rate": (lambda net, t: clnn.SGD(lambda: 0.1), "as lr is called with the number of the step: too many"),
    "two rates": (
        lambda net, t: clnn.SGD(lambda step, epoch: 0.1),
        "is called with the number of the step: missing .*'epoch'",
    ),
    "no super": (
        lambda net, t: net.fit(X, Y, loss="cross_entropy", optimizer=_NoSuper()),
        r"does not call super\(\).__init__\(lr\)",
    ),
    "by number": (
        lambda net, t: net.fit(_ByNumber(), loss="mse", optimizer="sgd"),
        r"\[x\[i\] for i in range\(len\(x\)\)\]",
    ),
    "search": (lambda net, t: clnn.search.grid(len, {"lr": [1]}, X, X, jobs=2), "Search takes no jobs"),
    "progress": (
        lambda net, t: net.fit(X, Y, loss="mse", optimizer="sgd", progress="no"),
        "fit's progress is True or False",
    ),
    "record": (
        lambda net, t: net.fit(X, Y, loss="mse", optimizer="sgd", record="always"),
        "fit's record is True or False",
    ),
    "a layer's flag": (lambda net, t: clnn.LSTM(3, return_sequences="no"), "LSTM's return_sequences is True or False"),
    "a norm's flag": (lambda net, t: clnn.BatchNorm(affine="false"), "BatchNorm's affine is True or False"),
    "an optimizer's": (lambda net, t: clnn.Adam(keep_gradients="no"), "Adam's keep_gradients is True or False"),
    "a function's": (lambda net, t: t.sum(axis=0, keepdims="no"), "sum's keepdims is True or False"),
    "a loss's": (
        lambda net, t: clnn.losses.cross_entropy(X, Y, ignore_index=-1),
        r"takes no ignore_index: make a loss with it: clnn.losses.CrossEntropy\(",
    ),
    "triplet": (lambda net, t: clnn.losses.triplet(X, X, X, p=2), "triplet takes no p; it takes anchor"),
    "reset_states": (lambda net, t: net.reset_states(states=None), "reset_states takes no states; it takes batch_size"),
    "Parameter": (
        lambda net, t: clnn.Parameter(X),
        r"Parameter: missing a required argument: 'shape'; an array .* clnn.tensor\(value, requires_grad=True\)",
    ),
    "set later": (lambda net, t: setattr(clnn.SGD(), "nesterov", "no"), "nesterov is True or False"),
    "a data set's": (lambda net, t: clnn.data.digits(raw="no"), "digits's raw is True or False"),
    "by position": (lambda net, t: t.sum(0, "no"), "sum's keepdims is True or False"),
    "an optimizer's by position": (lambda net, t: clnn.SGD(0.1, 0.9, "no"), "SGD's nesterov is True or False"),
    "train": (lambda net, t: net.train("no"), "train's mode is True or False"),
    "generate's": (lambda net, t: net.generate([1], 3, cache="no"), "generate's cache is True or False"),
    "generate": (lambda net, t: net.generate([1]), "generate: missing .*'n'; how many to write"),
    "generate long": (lambda net, t: net.generate([1], max_new_tokens=3), "generate takes n, not max_new_tokens"),
    "generate hot": (lambda net, t: clnn.generate(net, [1], 3, temp=1), "generate takes no temp; it takes cache, "),
    "load a class": (lambda net, t: clnn.load("x", custom_objects={}), "takes no custom_objects: .*@clnn.register"),
    "zeros": (lambda net, t: clnn.zeros(size=3), "zeros takes shape, not size"),
    "tensor": (lambda net, t: clnn.tensor(X, pin_memory=True), "tensor takes no pin_memory: leave it out"),
    "tensor's": (lambda net, t: clnn.tensor(X, requires_grad="no"), "tensor's requires_grad is True or False"),
    "parameters": (lambda net, t: net.parameters(recurse=True), "parameters takes no recurse: leave it out"),
    "named": (lambda net, t: net.named_parameters(recurse=True), "named_parameters takes no recurse: leave it out"),
    "use": (lambda net, t: clnn.use(device="cpu"), r"use takes no device: write \"with clnn.use\(device\)"),
    "seed": (lambda net, t: clnn.seed(seed=1), "seed takes no seed; it takes number"),
    "step's": (lambda net, t: clnn.step(jit=True), "step takes no jit; it takes function, record"),
    "reshape": (lambda net, t: t.reshape(shape=(2, 6)), r"reshape takes shape without its name: reshape\(2, 6\)"),
    "minimize": (
        lambda net, t: clnn.LBFGS().minimize(),
        "minimize: missing .*'closure'; a function that gives the loss",
    ),
    "sqrt": (lambda net, t: clnn.sqrt(t, out=t), "sqrt takes no out: leave it out"),
    "maximum": (lambda net, t: clnn.maximum(t), "maximum: missing .*'b'"),
    "onnx": (lambda net, t: clnn.onnx.save(net, "x", opset_version=18), "save takes opset, not opset_version"),
    "from_torch": (lambda net, t: clnn.interop.from_torch(), "from_torch: missing .*'module'"),
    "strict": (lambda net, t: clnn.interop.from_torch({}, net, strict="no"), "from_torch's strict is True or False"),
    "grid": (lambda net, t: clnn.search.grid(len, {}), r"grid: missing .*'train'; \(x, y\) to train on"),
    "fit": (lambda net, t: net.fit(loss="mse", optimizer="sgd"), "fit: missing .*'x'; an array"),
    "Input": (lambda net, t: clnn.Input(), "Input: missing .*'shape'; an integer or a tuple"),
    "a loss": (lambda net, t: clnn.losses.mse(t), "Loss: missing .*'target'"),
    "a loss by weight": (lambda net, t: clnn.losses.mse(t, t, weight=X), "Loss takes no weight"),
    "a name": (lambda net, t: net["dense_1"], r"layers are taken as net\[0\] or as net\[:-1\], and not by 'dense_1'"),
}


@pytest.mark.parametrize("name", MISUSED)
def test_what_is_called_otherwise_is_an_error_of_clnns(device, name):
    """They were errors of Python's, or taken for True."""
    call, said = MISUSED[name]
    net = clnn.Sequential([clnn.Dense(3)], input_shape=4)
    with pytest.raises(clnn.ConfigurationError, match=said):
        call(net, clnn.tensor(X, requires_grad=True))


def test_functions_that_say_so_are_copied_and_what_they_raise_is_theirs(device):
    assert pickle.loads(pickle.dumps(clnn.stack)) is clnn.stack and copy.deepcopy(clnn.sort) is clnn.sort

    class Wrong(clnn.Layer):
        def forward(self, x):
            return x + len(3)

    with pytest.raises(TypeError, match=r"object of type 'int' has no len\(\)"):
        Wrong()(X)
    net = clnn.Sequential([clnn.Dense(3)], input_shape=4)
    net.fit(X, Y, loss="cross_entropy", optimizer="sgd", progress=np.bool_(False), record=0, shuffle=1)


def _public():
    """(a name, a function) of all that clnn has: of its modules, and methods that are told of other names."""
    rooms = [getattr(clnn, name) for name in ("data", "metrics", "search", "interop", "looking", "distributed", "onnx")]
    found = {}
    for room in (clnn, *rooms, clnn.data.augment):
        own = [name for name, one in vars(room).items() if getattr(one, "__module__", "") == room.__name__]
        found |= {f"{room.__name__}.{name}": getattr(room, name) for name in getattr(room, "__all__", own)}
    for kind in (clnn.Tensor, clnn.Layer, clnn.Model, clnn.SGD, clnn.LBFGS):
        told = [name for name in dir(kind) if hasattr(getattr(kind, name, None), "told")]
        found |= {f"{kind.__name__}.{name}": getattr(kind, name) for name in told}
    named = {name: one for name, one in found.items() if not name.rpartition(".")[2].startswith("_")}
    return {name: one for name, one in named.items() if inspect.isfunction(one)}


@pytest.mark.parametrize("name", sorted(_public()))
def test_every_function_looks_at_names_and_flags(name):
    """Before it does anything: with what is no argument, and with a flag that is neither True nor False."""
    function = _public()[name]
    taken = inspect.signature(function, follow_wrapped=True).parameters.values()
    needed = [None for p in taken if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD]
    if not any(p.kind is p.VAR_KEYWORD for p in taken):
        with pytest.raises(clnn.ArgumentError, match="takes no zzz"):
            function(*needed, zzz=3)
    for p in taken:
        if p.annotation in ("bool", bool):
            with pytest.raises(clnn.ConfigurationError, match=f"{p.name} is True or False, and 'no' was given"):
                function(*needed, **{p.name: "no"})


def test_a_sequential_is_gone_through_like_a_list(device, rng):
    net = clnn.Sequential([clnn.Dense(5, "relu"), clnn.Dropout(0.5), clnn.Dense(3)], input_shape=4)
    assert len(net) == 3 and [*net] == net.layers and net[-1] is net.layers[2] and net.layers[1] in net
    x = rng.standard_normal((6, 4)).astype(np.float32)
    first, rest = net[:-1], net[np.int64(2) :]
    assert isinstance(first, clnn.Sequential) and first.layers == net.layers[:2] and rest[0] is net[2]
    np.testing.assert_allclose(rest.predict(first.predict(x)), net.predict(x), rtol=1e-5, atol=1e-6)
    for wrong in (3, -4):
        with pytest.raises(IndexError):
            net[wrong]
    for wrong in ("0", 1.5, None, True, (0, 1)):
        with pytest.raises(clnn.ConfigurationError, match="layers are taken as"):
            net[wrong]
    with pytest.raises(clnn.ConfigurationError, match="one or more layers"):
        net[3:]
    with pytest.raises(clnn.ConfigurationError, match="Sequential takes a list"):
        clnn.Sequential(net)
