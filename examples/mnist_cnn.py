"""A small convolutional network with dropout, trained by Adam: above 99% on MNIST in a few epochs.

python examples/mnist_cnn.py [epochs] [expanded]

With `expanded` it trains on five times as many images, the others shifted by a pixel, which are made on the device, and has
a third convolution.
"""

import sys

import clnn

if "--help" in sys.argv:
    sys.exit(print(__doc__))

epochs = int(sys.argv[1]) if len(sys.argv) > 1 else 4
expanded = sys.argv[2:] == ["expanded"]

try:
    (x, y), validation, (x_test, y_test) = clnn.data.mnist(validation=5000)
except clnn.DataError:
    print("MNIST is not there, so this trains on clnn's own digits, which are smaller and fewer.")
    (x, y), validation, (x_test, y_test) = clnn.data.digits(validation=200)

side = round(x.shape[1] ** 0.5)
third: list[clnn.Layer] = []
if expanded:
    images, y = clnn.data.augment.expand(x.reshape(-1, 1, side, side), y)
    x = images.numpy().reshape(len(y), -1)
    third = [clnn.Conv2D(128, 3, "relu", padding="same", weight_init="he_normal"), clnn.Dropout(0.25)]
net = clnn.Sequential(
    [
        clnn.Reshape((1, side, side)),  # one channel: images are (channels, height, width)
        clnn.Conv2D(32, 3, "relu", padding="same", weight_init="he_normal"),
        clnn.MaxPool2D(2),
        clnn.Conv2D(64, 3, "relu", padding="same", weight_init="he_normal"),
        clnn.MaxPool2D(2),
        *third,
        clnn.Flatten(),
        clnn.Dense(128, "relu", weight_init="he_normal"),
        clnn.Dropout(0.5),
        clnn.Dense(10),
    ],
    input_shape=x.shape[1],
    seed=1,
)
print(net.summary())

optimizer = clnn.Adam(clnn.OneCycle(0.003))
history = net.fit(
    x, y, loss="cross_entropy", optimizer=optimizer, epochs=epochs, batch_size=128, validation=validation, seed=1
)
for epoch, (loss, accuracy) in enumerate(zip(history["val_loss"], history["val_accuracy"])):
    print(f"epoch {epoch}: validation loss {loss:.4f}, accuracy {accuracy:.2%}, {history['seconds'][epoch]:.1f} s")
print(f"test set: {net.evaluate(x_test, y_test)['accuracy']:.2%}")
