"""Which learning rate, momentum and size suit a network for digits? python examples/search.py [trials] [processes]

Random search, and successive halving, which gives the promising ones most of the time.
"""

import sys

import clnn


def build(hidden=30, activation="sigmoid", lr=0.1, momentum=0.9, batch_size=16):
    """A network, and how it is to be trained: whatever this has an argument for can be searched."""
    net = clnn.Sequential([clnn.Dense(hidden, activation), clnn.Dense(10)], input_shape=64)
    return net, {"loss": "cross_entropy", "optimizer": clnn.SGD(lr, momentum=momentum), "batch_size": batch_size}


SPACE = {
    "lr": clnn.search.log_uniform(0.001, 1),
    "momentum": clnn.search.uniform(0, 0.95),
    "hidden": clnn.search.integers(10, 100),
    "activation": ["sigmoid", "tanh", "relu"],
}

if __name__ == "__main__":  # the other processes import this file
    if "--help" in sys.argv:
        sys.exit(print(__doc__))
    trials = int(sys.argv[1]) if len(sys.argv) > 1 else 18
    processes = int(sys.argv[2]) if len(sys.argv) > 2 else 1
    train, validation, (x_test, y_test) = clnn.data.digits(validation=300)
    options = {"trials": trials, "metric": "loss", "seed": 1, "processes": processes}

    print("random search:")
    found = clnn.search.random(build, SPACE, train, validation, epochs=10, **options)
    print(found)
    print(f"on the test set: {found.best_model.evaluate(x_test, y_test)['accuracy']:.2%}\n")

    print("successive halving:")
    found = clnn.search.halving(build, SPACE, train, validation, epochs=2, **options)
    print(found)
    print(f"on the test set: {found.best_model.evaluate(x_test, y_test)['accuracy']:.2%}")
