"""network3.py of Nielsen's book (chapter 6): layers as objects, convolution and max pooling, dropout, a softmax with the
log-likelihood, and the test accuracy at the best validation accuracy; its face kept, its arithmetic on clnn.

python examples/book/network3.py [epochs [fc]]
"""

import math
import sys

import clnn

from network2 import load_data

sigmoid, tanh, ReLU, linear = "sigmoid", "tanh", "relu", "linear"


@clnn.register
class DropoutLayer(clnn.Layer):
    """The book's: in training each value is 0 with probability p, otherwise all are multiplied by 1 - p. `clnn.Dropout`
    divides by 1 - p in training instead."""

    def __init__(self, p):
        self.p, self.dropout = p, clnn.Dropout(p)

    def forward(self, x):
        return self.dropout(x) * (1 - self.p)

    def config(self):
        return {"p": self.p}


class ConvPoolLayer:
    def __init__(self, filter_shape, image_shape, poolsize=(2, 2), activation_fn=sigmoid):
        """`filter_shape`: filters, input feature maps, height, width; `image_shape`: mini-batch, feature maps, height, width."""
        n_out = filter_shape[0] * math.prod(filter_shape[2:]) / math.prod(poolsize)
        weights = clnn.init.normal(0.0, math.sqrt(1.0 / n_out))
        self.n_in = math.prod(image_shape[1:])
        self.layers = [
            clnn.Reshape(image_shape[1:]),
            clnn.Conv2D(filter_shape[0], filter_shape[2:], weight_init=weights, bias_init="normal"),
            clnn.MaxPool2D(poolsize),
            clnn.Activation(activation_fn),
        ]


class FullyConnectedLayer:
    def __init__(self, n_in, n_out, activation_fn=sigmoid, p_dropout=0.0):
        by_outputs = clnn.init.scaled(lambda n_in, n_out: 1.0 / n_out, "normal")  # the book's choice
        dense = clnn.Dense(n_out, activation_fn, weight_init=by_outputs, bias_init="normal")
        self.n_in, self.layers = n_in, behind(p_dropout, n_in, dense)


class SoftmaxLayer:
    def __init__(self, n_in, n_out, p_dropout=0.0):
        dense = clnn.Dense(n_out, weight_init="zeros", bias_init="zeros")  # its softmax is in the cost
        self.n_in, self.layers = n_in, behind(p_dropout, n_in, dense)


def behind(p_dropout, n_in, dense):
    """A dense layer that takes feature maps as a row, and drops some of it."""
    return [clnn.Reshape(n_in), *([DropoutLayer(p_dropout)] if p_dropout else []), dense]


class Network:
    def __init__(self, layers, mini_batch_size):
        self.mini_batch_size = mini_batch_size
        self.model = clnn.Sequential([one for layer in layers for one in layer.layers], input_shape=layers[0].n_in)

    def SGD(self, training_data, epochs, mini_batch_size, eta, validation_data, test_data, lmbda=0.0):
        """Train, and report the test accuracy of the epoch that was best on the validation data."""
        best = {"validation": 0.0, "test": 0.0, "iteration": 0}
        batches = len(training_data[0]) // mini_batch_size
        accuracy = lambda data: self.model.evaluate(*data)["accuracy"]  # noqa: E731

        class Report(clnn.Callback):
            def on_epoch_end(self, model, epoch, logs):
                print(f"Training mini-batch number {(epoch + 1) * batches}")
                found = accuracy(validation_data)
                print(f"Epoch {epoch}: validation accuracy {found:.2%}")
                if found >= best["validation"]:
                    print("This is the best validation accuracy to date.")
                    best.update(validation=found, test=accuracy(test_data), iteration=(epoch + 1) * batches - 1)
                    print(f"The corresponding test accuracy is {best['test']:.2%}")

        # the book adds lambda / (2 batches) times the squared weights to the cost of a mini-batch
        optimizer = clnn.SGD(eta, weight_decay=lmbda / batches)
        self.model.fit(
            *training_data, loss="cross_entropy", optimizer=optimizer, epochs=epochs, batch_size=mini_batch_size,
            callbacks=[Report()], progress=False,
        )  # fmt: skip
        print("Finished training network.")
        print(f"Best validation accuracy of {best['validation']:.2%} obtained at iteration {best['iteration']}")
        print(f"Corresponding test accuracy of {best['test']:.2%}")


if __name__ == "__main__":
    if "--help" in sys.argv:
        sys.exit(print(__doc__))
    training_data, validation_data, test_data = load_data()
    n, mini_batch_size = training_data[0].shape[1], 10
    side = math.isqrt(n)  # 28, or 8 for clnn's own digits
    if sys.argv[2:] == ["fc"]:
        layers = [FullyConnectedLayer(n, 100), SoftmaxLayer(100, 10)]
    else:
        convolution = ConvPoolLayer((20, 1, 5, 5), (mini_batch_size, 1, side, side))
        maps = 20 * ((side - 4) // 2) ** 2
        layers = [convolution, FullyConnectedLayer(maps, 100), SoftmaxLayer(100, 10)]
    net = Network(layers, mini_batch_size)
    epochs = int(sys.argv[1]) if len(sys.argv) > 1 else 60
    net.SGD(training_data, epochs, mini_batch_size, 0.1, validation_data, test_data)
