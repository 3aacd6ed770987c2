"""A layer and a loss of one's own, and a training loop with @clnn.step: python examples/custom_layer.py [epochs]

Neither writes a backward pass: gradients come from the operations they are made of.
"""

import sys

import numpy as np

import clnn

if "--help" in sys.argv:
    sys.exit(print(__doc__))


@clnn.register  # so that a saved model with such a layer can be loaded
class Gated(clnn.Layer):
    """y = (x w) sigmoid(x v): each output has a gate (Dauphin et al. 2017, eq. 1)."""

    def __init__(self, size):
        self.size = size

    def build(self, shape):
        self.w = self.parameter((shape[-1], self.size))
        self.v = self.parameter((shape[-1], self.size))

    def forward(self, x):
        return (x @ self.w) * clnn.sigmoid(x @ self.v)

    def config(self):
        return {"size": self.size}


def focal_loss(z, target):
    """-(1 - p)^2 log p of the right class, so that hard samples count more (Lin et al. 2017, eq. 4)."""
    log_p = clnn.log_softmax(z)
    return (-((1 - clnn.exp(log_p)) ** 2) * log_p * target).sum(axis=1).mean()


(x, y), (x_test, y_test) = clnn.data.digits()
targets = np.eye(10, dtype=np.float32)[y]
net = clnn.Sequential([Gated(64), clnn.Dense(10)], input_shape=64)
optimizer = clnn.Adam(0.005)
random = np.random.default_rng(1)


@clnn.step
def train(x, target):
    loss = focal_loss(net(x), target)
    loss.backward()
    optimizer.step(net.parameters())
    return loss


for epoch in range(int(sys.argv[1]) if len(sys.argv) > 1 else 20):
    batches = np.array_split(random.permutation(len(x)), 45)
    losses = [train(x[rows], targets[rows]) for rows in batches]
    print(f"epoch {epoch}: loss {np.mean([float(loss) for loss in losses]):.4f}")
print(f"test accuracy {(net.predict_classes(x_test) == y_test).mean():.2%}")
