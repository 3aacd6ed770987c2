"""What tests/test_distributed.py runs on several ranks: `mpirun -n 2 python tests/ranks.py CASE...`, a line of JSON for each."""

import json
import os
import signal
import sys
import time
import traceback

import numpy as np

import clnn

CASES = {}
REAL = "float64"
SHAPE, CLASSES = 6, 4


def case(function):
    """A function of the world that raises where something is wrong, on whatever rank."""
    CASES[function.__name__] = function
    return function


def data(n=53, shape=(SHAPE,)):
    generator = np.random.default_rng(5)
    return generator.standard_normal((n, *shape)), generator.integers(0, CLASSES, n)


def dense(*between):
    return clnn.Sequential(
        [clnn.Dense(7, "tanh"), *between, clnn.Dense(CLASSES)], input_shape=SHAPE, dtype=REAL, seed=0
    )


def weights(net):
    return np.concatenate([p.numpy().ravel() for p in net.parameters()])


def compare(world, net, optimizer, x, y, batch=4, epochs=6, frozen=None, other=None, **options):
    """A fit on all ranks beside one on this rank alone, with mini-batches as large as theirs together: weights and history."""
    options = {"loss": "cross_entropy", "seed": 1, "epochs": epochs, "progress": False, **options}
    alone, together = (other or net)(), net()
    if frozen is not None:
        alone.layers[frozen].trainable = together.layers[frozen].trainable = False
    start = weights(alone)
    one, two = optimizer(), optimizer()
    expected = alone.fit(x, y, optimizer=one, batch_size=batch * world.size, **options)
    found = together.fit(x, y, optimizer=two, batch_size=batch, world=world, **options)
    moved = np.abs(weights(alone) - start).max()
    apart = np.abs(weights(alone) - weights(together)).max() / moved
    assert moved > 1e-3 and apart < 1e-9, f"moved by {moved}, and apart by {apart} of that"
    assert one.steps == two.steps and one.epochs == two.epochs
    for name in expected.history.keys() - {"seconds"}:
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-9, atol=1e-12, err_msg=name)
    if optimizer().ema is not None:
        with one.averaged(), two.averaged():
            np.testing.assert_allclose(weights(together), weights(alone), rtol=1e-9, atol=1e-12)
    return found


OPTIMIZERS = {
    "sgd": lambda: clnn.SGD(0.1),
    "momentum": lambda: clnn.SGD(0.1, momentum=0.9),
    "adam": lambda: clnn.Adam(0.01),
    "clipping": lambda: clnn.SGD(0.1, momentum=0.9, clip_norm=0.1),
    "average": lambda: clnn.AdamW(clnn.Cosine(0.01), ema=0.9, weight_decay=0.1),
}
for name, make in OPTIMIZERS.items():
    CASES[name] = lambda world, make=make: compare(world, dense, make, *data(), validation=data(9), epochs=8)


@case
def frozen_layers(world):
    compare(world, lambda: dense(clnn.Dense(5, "relu")), OPTIMIZERS["momentum"], *data(), frozen=1)


@case
def no_seed_and_no_recording(world):
    x, y = data(49)  # the last mini-batch has one sample: with two ranks one of them has none
    clnn.seed(4 + world.rank)  # rank 0's counts
    before, found = clnn.random._seed, None
    clnn.seed(4)
    alone = dense()
    alone.fit(x, y, loss="cross_entropy", optimizer="adam", epochs=2, batch_size=8 * world.size, progress=False)
    clnn.seed(before)
    found = dense()
    found.fit(
        x, y, loss="cross_entropy", optimizer="adam", epochs=2, batch_size=8, progress=False, record=False, world=world
    )
    np.testing.assert_allclose(weights(found), weights(alone), rtol=1e-9, atol=1e-12)


@case
def one_sample_left(world):
    x, y = data(8 * world.size + 1)
    compare(world, dense, OPTIMIZERS["momentum"], x, y, validation=data(1), metrics=[clnn.metrics.top_k(2)])
    compare(world, dense, OPTIMIZERS["sgd"], x, y, shuffle=False, sample_weight=np.linspace(0.1, 2, len(x)))


@case
def ignored_targets(world):
    x, y = data()
    loss = clnn.losses.CrossEntropy(ignore_index=1)
    compare(world, dense, OPTIMIZERS["momentum"], x, y, loss=loss, validation=data(7))
    compare(world, dense, OPTIMIZERS["sgd"], *data(8 * world.size + 1), loss=loss)


@case
def a_loss_of_ones_own(world):
    x, y = data()
    compare(world, dense, OPTIMIZERS["sgd"], x, np.eye(CLASSES)[y], loss=lambda y, t: ((y - t) ** 2).mean())


@case
def several_outputs(world):
    x, y = data()

    def net():
        clnn.seed(2)
        a, b = clnn.Input((SHAPE,)), clnn.Input((SHAPE,))
        both = clnn.Dense(8, "tanh")(clnn.Concatenate()(a, b))
        return clnn.Model((a, b), {"kind": clnn.Dense(CLASSES)(both), "sum": clnn.Dense(1)(both)})

    def fit(**options):
        one = net()
        one.fit(
            (x, x[::-1]),
            {"kind": y, "sum": x.sum(1)},
            loss={"kind": clnn.losses.CrossEntropy(ignore_index=0), "sum": "mse"},
            loss_weights={"kind": 1.0, "sum": 0.3},
            optimizer=clnn.SGD(0.05),
            epochs=3,
            seed=1,
            progress=False,
            **options,
        )
        return weights(one)

    np.testing.assert_allclose(fit(batch_size=4, world=world), fit(batch_size=4 * world.size), rtol=0, atol=2e-5)


@case
def samples_that_do_not_fit(world):
    x, y = data(400, (64,))
    memory = clnn.device().memory

    def net():
        return clnn.Sequential([clnn.Dense(CLASSES)], input_shape=64, dtype=REAL, seed=0)

    net().fit(x, y, loss="cross_entropy", optimizer="sgd", batch_size=4, progress=False)
    limit = memory.limit
    memory.limit = memory.in_use + 200_000
    try:
        compare(world, net, OPTIMIZERS["momentum"], x, y, epochs=2)
    finally:
        memory.limit = limit


@case
def a_step_of_ones_own(world):
    """Two optimizers, gradients that accumulate over two backward passes, and unequal numbers of rows."""
    x, y = data(12 * world.size + 1)
    mine = slice(12 * world.rank, 12 * (world.rank + 1) + (world.rank + 1 == world.size))

    def train(net, rows, world):
        first, second = clnn.SGD(0.1, momentum=0.9), clnn.Adam(0.01, clip_norm=0.5)
        first.world = second.world = world
        world.broadcast(net)
        ones, others = net.layers[0].parameters(), net.layers[1].parameters()

        @clnn.step
        def step(*parts):
            n = sum(len(x) for x, _ in zip(parts[::2], parts[1::2]))
            for x, y in zip(parts[::2], parts[1::2]):
                loss = clnn.losses.cross_entropy(net(x), y, reduction="sum") / n
                world.mean(loss, n).backward()
            first.step(ones)
            second.step(others)

        x1, x2 = (clnn.tensor(part, REAL) for part in (x[rows][:5], x[rows][5:]))
        y1, y2 = y[rows][:5], y[rows][5:]
        for _ in range(6):
            step(x1, y1, x2, y2)
        return weights(net)

    def whole(net):
        first, second = clnn.SGD(0.1, momentum=0.9), clnn.Adam(0.01, clip_norm=0.5)
        for _ in range(6):
            clnn.losses.cross_entropy(net(x), y).backward()
            first.step(net.layers[0].parameters())
            second.step(net.layers[1].parameters())
        return weights(net)

    np.testing.assert_allclose(train(dense(), mine, world), whole(dense()), rtol=1e-9, atol=1e-12)


@case
def rank_zero_gives_weights_and_state(world):
    x, y = data()
    clnn.seed(world.rank)
    net = clnn.Sequential([clnn.Dense(CLASSES)], input_shape=SHAPE, dtype=REAL)
    optimizer = clnn.Adam(0.01)
    if world.rank == 0:
        net.fit(x, y, loss="cross_entropy", optimizer=optimizer, epochs=2, progress=False)
    net.fit(x, y, loss="cross_entropy", optimizer=optimizer, epochs=1, batch_size=4, progress=False, world=world)
    found = world.gather((weights(net), optimizer.steps, optimizer.epochs, optimizer.state_dict()["arrays"]["0.1"]))
    for one in found:
        np.testing.assert_array_equal(one[0], found[0][0])
        np.testing.assert_array_equal(one[3], found[0][3])
        assert one[1:3] == found[0][1:3] and one[2] == 3


@case
def the_same_bits_twice(world):
    x, y = data()

    def fit():
        net = clnn.Sequential(
            [clnn.Dense(9, "relu"), clnn.Dropout(0.5), clnn.Dense(CLASSES)], input_shape=SHAPE, seed=0
        )
        net.fit(
            x, y, loss="cross_entropy", optimizer="adam", epochs=3, batch_size=4, seed=1, progress=False, world=world
        )
        return weights(net)

    np.testing.assert_array_equal(fit(), fit())


@case
def dropout_differs(world):
    net = dense()
    world.broadcast(net)
    drawn = world.gather(clnn.random.generator(clnn.device()).bits(64).tolist())
    assert len(set(map(tuple, drawn))) == world.size


@case
def early_stopping_agrees(world):
    x, y = data()
    net = dense()
    stop = clnn.EarlyStopping("val_loss", patience=2)
    history = net.fit(
        x, y, loss="cross_entropy", optimizer=clnn.SGD(2.0), epochs=40, batch_size=4, seed=1, validation=data(21),
        callbacks=[stop], progress=False, world=world,
    )  # fmt: skip
    found = world.gather((stop.best_epoch, stop.stopped_epoch, history.history, weights(net).tolist()))
    assert stop.stopped_epoch is not None and all(one == found[0] for one in found)


@case
def any_rank_may_stop(world):
    class Stop(clnn.Callback):
        def on_epoch_end(self, model, epoch, logs):
            model.stop_training = world.rank == 1 and epoch == 1

    history = dense().fit(
        *data(), loss="cross_entropy", optimizer="sgd", epochs=9, callbacks=[Stop()], progress=False, world=world
    )
    assert len(history["loss"]) == 2


@case
def batch_norm(world):
    """Statistics are those of each rank, and the running ones their mean; SyncBatchNorm's are those of all."""
    x, y = data(13 * world.size, (3, 4, 4))

    def net(kind):
        layers = [clnn.Reshape((3, 4, 4)), kind("relu"), clnn.Flatten(), clnn.Dense(CLASSES)]
        return clnn.Sequential(layers, input_shape=48, dtype=REAL, seed=0)

    flat = x.reshape(len(x), -1)
    sync, plain = lambda: net(clnn.distributed.SyncBatchNorm), lambda: net(clnn.BatchNorm)
    compare(world, sync, OPTIMIZERS["momentum"], flat, y, other=plain)
    local = plain()
    local.fit(flat, y, loss="cross_entropy", optimizer="sgd", batch_size=13, progress=False, world=world, shuffle=False)
    every = world.gather((local.layers[1].running_mean.numpy(), local.layers[1].running_variance.numpy()))
    parts = x.reshape(world.size, 13, 3, 16)
    means, variances = parts.mean((1, 3)), parts.transpose(0, 2, 1, 3).reshape(world.size, 3, -1).var(2, ddof=1)
    for mean, variance in every:
        np.testing.assert_allclose(mean, 0.1 * means.mean(0), rtol=1e-9)
        np.testing.assert_allclose(variance, 0.9 + 0.1 * variances.mean(0), rtol=1e-9)


def build(lr=0.1, hidden=4):
    """For a search."""
    net = clnn.Sequential([clnn.Dense(hidden, "tanh"), clnn.Dense(CLASSES)], input_shape=SHAPE)
    return net, {"loss": "cross_entropy", "optimizer": clnn.SGD(lr), "batch_size": 8}


def searched(processes):
    space = {"lr": clnn.search.log_uniform(0.01, 1), "hidden": [3, 5]}
    found = clnn.search.halving(
        build, space, data(40), data(20), trials=4, epochs=1, metric="loss", progress=False, processes=processes
    )
    return [(row["trial"], row["scores"]) for row in found.rows]


# -- what is wrong ----------------------------------------------------------------------------------------------------
def refused(world, words, function, kind=clnn.DistributedError):
    """An error on every rank, and what it says."""
    try:
        with world:
            function()
    except clnn.ClnnError as error:
        said = f"{type(error).__name__}: {error}"
        assert isinstance(error, kind) and all(word in said for word in words), said
        return
    raise AssertionError(f"no error with {words}")


def trained(world, net=None, x=None, y=None, **options):
    x, y = (data()[0] if x is None else x), (data()[1] if y is None else y)
    options = {"loss": "cross_entropy", "optimizer": "sgd", "epochs": 2, "batch_size": 4, "progress": False, **options}
    return (net or dense()).fit(x, y, world=world, **options)


@case
def ranks_that_differ(world):
    x, y = data()
    odd = world.rank == 1
    other = clnn.Sequential([clnn.Dense(7 + odd), clnn.Dense(CLASSES)], input_shape=SHAPE, dtype=REAL)
    for words, options in (
        (("the model", "rank 1", "(6, 7)", "(6, 8)"), {"net": other}),
        (("the samples", "rank 1", "53", "50"), {"x": x[: 50 if odd else 53], "y": y[: 50 if odd else 53]}),
        (("the samples", "rank 1"), {"x": x + 1e-9 * odd}),
        (("batch_size", "4 on rank 0", "5 on rank 1"), {"batch_size": 4 + odd}),
        (("epochs", "rank 1"), {"epochs": 2 + odd}),
        (("the optimizer", "rank 1", "0.25"), {"optimizer": clnn.SGD(0.25 if odd else 0.5)}),
        (("loss", "rank 1"), {"loss": "quadratic" if odd else "cross_entropy"}),
        (("the validation data", "rank 1"), {"validation": (x, y) if odd else None}),
    ):  # fmt: skip
        refused(world, words, lambda options=options: trained(world, **options))
    before = clnn.__version__
    clnn.__version__ = "0.0.1" if odd else before
    refused(world, ("clnn", "0.0.1", "rank 1"), lambda: trained(world))
    clnn.__version__ = before
    refused(world, ("the ranks do not do the same", "rank 1"), lambda: world.gather(1) if odd else world.wait())


@case
def ranks_that_fail(world):
    odd = world.rank == 1
    kinds = (clnn.DataError, ValueError) if odd else clnn.DistributedError

    class Raises(clnn.Callback):
        def on_epoch_end(self, model, epoch, logs):
            if odd:
                raise ValueError("no room on this disk")

    x = data()[0]
    if odd:
        x[3, 2] = np.nan
    refused(world, ("NaN",) if odd else ("rank 1 of", "NaN"), lambda: trained(world, x=x), kinds)
    try:
        trained(world, callbacks=[Raises()])
    except (ValueError, clnn.DistributedError) as error:
        assert "no room" in str(error) and ("rank 1" in str(error)) != odd
    else:
        raise AssertionError("no error")

    def change(model, by):
        state = model.state_dict()
        model.load_state_dict({**state, "1.w": state["1.w"] + by})

    class Spoils(clnn.Callback):
        def on_epoch_begin(self, model, epoch):
            if odd and epoch == 1:
                change(model, 1.7e308)

    refused(world, ("rank 1", "inite"), lambda: trained(world, callbacks=[Spoils()], epochs=3), clnn.ClnnError)

    class Moves(clnn.Callback):
        def on_epoch_end(self, model, epoch, logs):
            if odd:
                change(model, 1e-3)

    refused(world, ("weights have come apart", "rank 1"), lambda: trained(world, callbacks=[Moves()]))
    x, y = data(49)
    alone = {"x": x, "y": y}  # the last mini-batch has one sample
    refused(world, ("batch_size", "49"), lambda: trained(world, dense(clnn.BatchNorm()), **alone), clnn.ShapeError)
    sync = clnn.distributed.SyncBatchNorm()
    refused(world, ("batch_size", "stands in"), lambda: trained(world, dense(sync), **alone), clnn.ConfigurationError)
    trained(world)  # and all goes on


class At(clnn.Callback):
    """Do something at an epoch's beginning on rank 1."""

    def __init__(self, world, do):
        self.world, self.do = world, do

    def on_epoch_begin(self, model, epoch):
        if self.world.rank == 1 and epoch == 1:
            print(json.dumps({"pid": os.getpid()}), flush=True)
            self.do()


def fault(which, path):
    """Programs that end by themselves, or are ended."""
    world = clnn.distributed.init(timeout=4)
    do = {
        "killed": lambda: os.kill(os.getpid(), signal.SIGKILL),
        "hung": lambda: time.sleep(300),
        "stopped": lambda: os.kill(os.getpid(), signal.SIGSTOP),
        "raised": lambda: {}["a fault"],
        "left": lambda: sys.exit(0),
    }.get(which)
    if do:
        trained(world, epochs=500, callbacks=[At(world, do)])
        return
    optimizer, checkpoint = clnn.SGD(0.01, momentum=0.9), clnn.Checkpoint(path)
    ready = At(world, lambda: None)
    trained(world, epochs=100_000, optimizer=optimizer, seed=1, callbacks=[ready, checkpoint])


if __name__ == "__main__":
    if sys.argv[1] == "search":
        print(json.dumps([searched("mpi"), searched(1)]))
    elif sys.argv[1] == "fault":
        fault(*sys.argv[2:])
    else:
        ranks = clnn.distributed.init()
        for name in sys.argv[1:]:
            said = ""
            try:
                with ranks:
                    CASES[name](ranks)
            except Exception:
                said = traceback.format_exc()
            line = json.dumps({"case": name, "rank": ranks.rank, "error": said}) + "\n"
            sys.stdout.write(line)
            sys.stdout.flush()
            if said:
                sys.exit(1)
