"""network.py of Nielsen's "Neural Networks and Deep Learning" (chapter 1), its face kept and its arithmetic on clnn.

python examples/book/network.py [epochs]
"""

import sys

import clnn


class Network(clnn.Callback):
    def __init__(self, sizes):
        normal = {"weight_init": "nielsen_old", "bias_init": "nielsen_old"}  # the book's first choice: N(0, 1)
        self.layers = clnn.Sequential([clnn.Dense(n, "sigmoid", **normal) for n in sizes[1:]], input_shape=sizes[0])

    def feedforward(self, a):
        return self.layers.predict(a)

    def SGD(self, training_data, epochs, mini_batch_size, eta, test_data=None):
        self.test_data = test_data
        self.layers.fit(
            *training_data,
            loss="quadratic",
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
        x, y = test_data
        return (self.feedforward(x).argmax(axis=1) == y).sum()


if __name__ == "__main__":
    clnn.seed(5)  # from many other first weights one digit or two stay unlearnt for the first epochs
    try:
        training_data, validation_data, test_data = clnn.data.mnist(validation=10000, scale=256)
    except clnn.DataError:
        print("MNIST is not there, so this trains on clnn's own digits, which are smaller and fewer.")
        training_data, test_data = clnn.data.digits()
    net = Network([training_data[0].shape[1], 30, 10])
    net.SGD(training_data, int(sys.argv[1]) if len(sys.argv) > 1 else 30, 10, 3.0, test_data=test_data)
