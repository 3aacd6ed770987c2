"""A squeeze-and-excitation block (Hu et al. 2018) as a layer of your own: channels weigh each other.

python examples/squeeze_excitation.py [epochs]
"""

import sys

import clnn

if "--help" in sys.argv:
    sys.exit(print(__doc__))


@clnn.register  # so that a saved model with such a layer can be loaded
class SqueezeExcitation(clnn.Layer):
    """y[n, c] = x[n, c] s[n, c], s = sigmoid(relu(mean of x over pixels  w1) w2), w1 with `ratio` times fewer outputs."""

    def __init__(self, ratio=4):
        self.ratio = ratio

    def build(self, shape):
        channels = shape[0]
        self.squeeze = clnn.GlobalAvgPool()
        self.reduce = clnn.Dense(max(1, channels // self.ratio), "relu", weight_init="he_normal")
        self.excite = clnn.Dense(channels, "sigmoid")

    def scales(self, x):
        return self.excite(self.reduce(self.squeeze(x)))

    def forward(self, x):
        s = self.scales(x)
        return x * s.reshape(*s.shape, 1, 1)

    def config(self):
        return {"ratio": self.ratio}


(x, y), (x_test, y_test) = clnn.data.digits()
block = SqueezeExcitation()
net = clnn.Sequential(
    [
        clnn.Reshape((1, 8, 8)),
        clnn.Conv2D(16, 3, "relu", padding="same", weight_init="he_normal"),
        clnn.Conv2D(32, 3, "relu", padding="same", weight_init="he_normal"),
        block,
        clnn.MaxPool2D(2),
        clnn.Flatten(),
        clnn.Dense(10),
    ],
    input_shape=64,
    seed=1,
)
print(net.summary())
epochs = int(sys.argv[1]) if len(sys.argv) > 1 else 20
net.fit(x, y, loss="cross_entropy", optimizer=clnn.Adam(0.002), epochs=epochs, batch_size=32, seed=1, progress=False)

features = clnn.Sequential(net.layers[:3])  # the layers before the block, which share their weights with the net
with clnn.no_grad():
    scales = block.scales(features(x_test)).numpy()
print(f"a channel's weight goes from {scales.min():.2f} to {scales.max():.2f}, by the image")
print(f"test accuracy {(net.predict_classes(x_test) == y_test).mean():.2%}")
