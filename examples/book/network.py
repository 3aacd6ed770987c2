"""network.py of Nielsen's "Neural Networks and Deep Learning" (chapter 1), its face kept and its arithmetic on clnn.

python examples/book/network.py [epochs]
"""

import sys

import numpy as np

import clnn


def as_arrays(data):
    """Images (n, pixels) and digits (n,): as they are, or of the book's list of pairs, each a column of pixels and a digit, or a
    column with a 1 for it."""
    if isinstance(data, tuple) and len(data) == 2 and np.ndim(data[0]) == 2 and np.ndim(data[1]) == 1:
        return data
    pairs = list(data)  # a zip, as the book's loader gives, can be read once
    digits = [int(np.argmax(y)) if np.size(y) > 1 else int(np.ravel(y)[0]) for _, y in pairs]
    return np.array([np.ravel(x) for x, _ in pairs], np.float32), np.array(digits, np.int32)


class Parts:
    """What the book's classes show of themselves, read from the layers."""

    @property
    def num_layers(self):
        return len(self.sizes)

    @property
    def biases(self):
        """A column (neurons, 1) for each layer."""
        return [layer.b.numpy()[:, None] for layer in self.layers.layers]

    @property
    def weights(self):
        """A matrix (neurons, inputs) for each layer."""
        return [layer.w.numpy().T for layer in self.layers.layers]

    def feedforward(self, a):
        """The outputs of images (n, pixels), or of the book's column of pixels, a column."""
        if np.shape(a) == (self.sizes[0], 1):
            return self.layers.predict(np.reshape(a, (1, -1))).T
        return self.layers.predict(a)

    def backprop(self, x, y):
        """(nabla_b, nabla_w), in the forms of biases and weights: the gradient of the cost C_x of one image x, whose answer y is
        a column with a 1. clnn's tape finds it; the book's own lines do in examples/series/part_07_backpropagation.py."""
        self.layers.zero_grad()
        output = self.layers(np.reshape(x, (1, -1)))
        clnn.losses.find_loss(self.loss)(output, np.reshape(y, (1, -1)).astype(np.float32)).backward()
        layers = self.layers.layers
        found = [layer.b.grad.numpy()[:, None] for layer in layers], [layer.w.grad.numpy().T for layer in layers]
        self.layers.zero_grad()
        return found


class Network(Parts, clnn.Callback):
    loss = "quadratic"

    def __init__(self, sizes):
        self.sizes = sizes
        normal = {"weight_init": "nielsen_old", "bias_init": "nielsen_old"}  # the book's first choice: N(0, 1)
        self.layers = clnn.Sequential([clnn.Dense(n, "sigmoid", **normal) for n in sizes[1:]], input_shape=sizes[0])

    def SGD(self, training_data, epochs, mini_batch_size, eta, test_data=None):
        self.test_data = test_data and as_arrays(test_data)
        self.layers.fit(
            *as_arrays(training_data),
            loss=self.loss,
            optimizer=clnn.SGD(eta),
            epochs=epochs,
            batch_size=mini_batch_size,
            callbacks=[self],
            progress=False,
        )

    def on_epoch_end(self, model, epoch, logs):
        if self.test_data:
            print(f"Epoch {epoch}: {self.evaluate(self.test_data)} / {len(self.test_data[0])}")
        else:
            print(f"Epoch {epoch} complete")

    def evaluate(self, test_data):
        x, y = as_arrays(test_data)
        return (self.feedforward(x).argmax(axis=1) == y).sum()


if __name__ == "__main__":
    if "--help" in sys.argv:
        sys.exit(print(__doc__))
    clnn.seed(5)  # from many other first weights one digit or two stay unlearnt for the first epochs
    try:
        training_data, validation_data, test_data = clnn.data.mnist(validation=10000, scale=256)
    except clnn.DataError:
        print("MNIST is not there, so this trains on clnn's own digits, which are smaller and fewer.")
        training_data, test_data = clnn.data.digits()
    net = Network([training_data[0].shape[1], 30, 10])
    net.SGD(training_data, int(sys.argv[1]) if len(sys.argv) > 1 else 30, 10, 3.0, test_data=test_data)
