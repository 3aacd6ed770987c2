"""A ReLU network with dropout, trained by Adam, watched on validation data, saved and loaded again.

python examples/mnist_mlp.py [epochs]
"""

import sys
import tempfile
from pathlib import Path

import clnn

if "--help" in sys.argv:
    sys.exit(print(__doc__))

epochs = int(sys.argv[1]) if len(sys.argv) > 1 else 10

try:
    (x, y), validation, (x_test, y_test) = clnn.data.mnist(validation=10000)
except clnn.DataError:
    print("MNIST is not there, so this trains on clnn's own digits, which are smaller and fewer.")
    (x, y), validation, (x_test, y_test) = clnn.data.digits(validation=200)

net = clnn.Sequential(
    [
        clnn.Dense(512, "relu", weight_init="he_normal"),
        clnn.Dropout(0.2),
        clnn.Dense(256, "relu", weight_init="he_normal"),
        clnn.Dropout(0.2),
        clnn.Dense(10),
    ],
    input_shape=x.shape[1],
    seed=1,
)
print(net.summary())

history = net.fit(
    x, y, loss="cross_entropy", optimizer=clnn.Adam(0.001), epochs=epochs, batch_size=128, validation=validation, seed=1
)
for epoch, (loss, accuracy) in enumerate(zip(history["val_loss"], history["val_accuracy"])):
    print(f"epoch {epoch}: validation loss {loss:.4f}, accuracy {accuracy:.2%}")

with tempfile.TemporaryDirectory() as folder:
    net.save(Path(folder) / "mnist.clnn")
    net = clnn.load(Path(folder) / "mnist.clnn")
print(f"saved, loaded, and on the test set: {net.evaluate(x_test, y_test)['accuracy']:.2%}")
