"""A small residual network (He et al. 2016) on CIFAR-10, its images flipped and cropped at random on the device.

python examples/cifar10.py [epochs]
"""

import sys

import clnn

if "--help" in sys.argv:
    sys.exit(print(__doc__))


@clnn.register
class Augment(clnn.Layer):
    """In training each image is mirrored or not, and moved by up to 4 pixels."""

    def forward(self, x):
        if not clnn.grad_enabled():
            return x
        mirrored = clnn.data.augment.flip(x, probability=0.5)
        return clnn.data.augment.crop(mirrored, x.shape[-1], padding=4)


def convolution(channels, activation=None, stride=1):
    return [
        clnn.Conv2D(channels, 3, stride=stride, padding=1, bias=False, weight_init="he_normal"),
        clnn.BatchNorm(activation),
    ]


def block(channels, stride=1):
    """y = relu(f(x) + x), where x has to change its shape by way of a 1 x 1 convolution."""
    shortcut = [clnn.Conv2D(channels, 1, stride=stride, bias=False), clnn.BatchNorm()] if stride > 1 else None
    layers = [*convolution(channels, "relu", stride), *convolution(channels)]
    return clnn.Residual(layers, shortcut, "relu")


epochs = int(sys.argv[1]) if len(sys.argv) > 1 else 20
try:
    (x, y), (x_test, y_test) = clnn.data.cifar10()
except clnn.DataError as error:
    sys.exit(f"CIFAR-10 is not there; set CLNN_DATA_DIR: {error}")
x, x_test = ((images - 0.473) / 0.251 for images in (x, x_test))  # the training pixels' mean and deviation

net = clnn.Sequential(
    [
        Augment(),
        *convolution(16, "relu"),
        block(16),
        block(32, stride=2),
        block(64, stride=2),
        clnn.GlobalAvgPool(),
        clnn.Dense(10),
    ],
    input_shape=x.shape[1:],
    seed=1,
)
print(net.summary())
optimizer = clnn.SGD(clnn.OneCycle(0.2), momentum=0.9, nesterov=True, weight_decay=5e-4)
net.fit(x, y, loss="cross_entropy", optimizer=optimizer, epochs=epochs, batch_size=128, seed=1)
print(f"test accuracy {net.evaluate(x_test, y_test)['accuracy']:.2%}")
