"""network2.py of Nielsen's book (chapter 3): the cross-entropy, better first weights, L2 regularization, monitoring,
early stopping, and networks that are saved and loaded; its face kept, its arithmetic on clnn.

python examples/book/network2.py [epochs]
"""

import sys

import clnn

from network import Parts, as_arrays


class QuadraticCost:
    loss = "quadratic"


class CrossEntropyCost:
    loss = "binary_cross_entropy"


class Network(Parts):
    def __init__(self, sizes, cost=CrossEntropyCost):
        self.sizes, self.cost, self.loss = sizes, cost, cost.loss
        self.default_weight_initializer()

    def default_weight_initializer(self):
        """Weights N(0, 1/in), biases N(0, 1)."""
        self.start("nielsen_new")

    def large_weight_initializer(self):
        """Weights and biases N(0, 1), as in chapter 1."""
        self.start("nielsen_old")

    def start(self, weights):
        options = {"activation": "sigmoid", "weight_init": weights, "bias_init": "normal"}
        self.layers = clnn.Sequential([clnn.Dense(n, **options) for n in self.sizes[1:]], input_shape=self.sizes[0])

    def SGD(
        self, training_data, epochs, mini_batch_size, eta, lmbda=0.0, evaluation_data=None,
        monitor_evaluation_cost=False, monitor_evaluation_accuracy=False,
        monitor_training_cost=False, monitor_training_accuracy=False, early_stopping_n=0, every=1,
    ):  # fmt: skip
        """Train; four lists come back, with what was monitored after each epoch. `early_stopping_n`: stop when the accuracy
        on the evaluation data has not improved in so many epochs; `every`: print after every so many epochs."""
        training_data = as_arrays(training_data)
        evaluation_data = evaluation_data and as_arrays(evaluation_data)
        n = len(training_data[0])
        say = lambda epoch, text: print(text) if (epoch + 1) % every == 0 else None  # noqa: E731
        costs = {"training": [], "evaluation": []}
        accuracies = {"training": [], "evaluation": []}
        data = {"training": training_data, "evaluation": evaluation_data}
        monitors = {
            "training": (monitor_training_cost, monitor_training_accuracy),
            "evaluation": (monitor_evaluation_cost, monitor_evaluation_accuracy or early_stopping_n > 0),
        }

        class Monitor(clnn.Callback):
            def on_epoch_end(_, model, epoch, logs):
                say(epoch, f"Epoch {epoch} training complete")
                for name, (cost, accuracy) in monitors.items():
                    if cost:
                        costs[name].append(self.total_cost(data[name], lmbda, n))
                        say(epoch, f"Cost on {name} data: {costs[name][-1]}")
                    if accuracy:
                        accuracies[name].append(self.accuracy(data[name]))
                        say(epoch, f"Accuracy on {name} data: {accuracies[name][-1]} / {len(data[name][0])}")
                found = accuracies["evaluation"]
                if early_stopping_n and len(found) - 1 - found.index(max(found)) >= early_stopping_n:
                    print(f"Early-stopping: no accuracy change in last epochs: {early_stopping_n}")
                    model.stop_training = True

        optimizer = clnn.SGD(eta, weight_decay=lmbda / n)
        self.layers.fit(
            *training_data, loss=self.cost.loss, optimizer=optimizer, epochs=epochs, batch_size=mini_batch_size,
            callbacks=[Monitor()], progress=False,
        )  # fmt: skip
        return costs["evaluation"], accuracies["evaluation"], costs["training"], accuracies["training"]

    def accuracy(self, data):
        """The number of inputs for which the network gives the right digit."""
        data = as_arrays(data)
        return round(self.layers.evaluate(*data, loss=self.cost.loss)["accuracy"] * len(data[0]))

    def total_cost(self, data, lmbda, n):
        """The mean cost with its regularization term, lambda / (2 n) times the sum of squared weights."""
        squares = sum(float((p.numpy() ** 2).sum()) for p in self.layers.parameters() if p.ndim > 1)
        return self.layers.evaluate(*as_arrays(data), loss=self.cost.loss)["loss"] + 0.5 * lmbda / n * squares

    def save(self, filename):
        self.layers.save(filename)


def load(filename, cost=CrossEntropyCost):
    """A network that `save` wrote."""
    layers = clnn.load(filename)
    net = Network([layers.parameters()[0].shape[0], *(layer.size for layer in layers.layers)], cost)
    net.layers = layers
    return net


def load_data():
    """The book's training, validation and test data; clnn's own smaller digits where MNIST is not there."""
    try:
        return clnn.data.mnist(validation=10000, scale=256)
    except clnn.DataError:
        print("MNIST is not there, so this trains on clnn's own digits, which are smaller and fewer.")
        return clnn.data.digits(validation=360)


if __name__ == "__main__":
    if "--help" in sys.argv:
        sys.exit(print(__doc__))
    training_data, validation_data, test_data = load_data()
    net = Network([training_data[0].shape[1], 30, 10], cost=CrossEntropyCost)
    epochs = int(sys.argv[1]) if len(sys.argv) > 1 else 30
    net.SGD(
        training_data, epochs, 10, 0.5, lmbda=5.0, evaluation_data=validation_data,
        monitor_evaluation_accuracy=True, monitor_training_cost=True,
    )  # fmt: skip
    print(f"Accuracy on test data: {net.accuracy(test_data)} / {len(test_data[0])}")
