"""Chapter 1's four runs: 30 and 100 hidden neurons, a rate that is much too small, and one that is much too large.

The book: 95.42% and 96.59% at best, then 21.42% and 9.82% after 30 epochs.

python examples/book/chapter_1_networks.py [epochs [misread.png]]
"""

import math
import sys

from network import Network
from network2 import load_data

if "--help" in sys.argv:
    sys.exit(print(__doc__))

training_data, _, test_data = load_data()
epochs = int(sys.argv[1]) if len(sys.argv) > 1 else 30
best = None
for hidden, eta in ((30, 3.0), (100, 3.0), (100, 0.001), (30, 100.0)):
    print(f"{hidden} hidden neurons, eta {eta}")
    net = Network([training_data[0].shape[1], hidden, 10])
    net.SGD(training_data, epochs, 10, eta, test_data=test_data)
    best = net if hidden == 30 and eta == 3.0 else best

if len(sys.argv) > 2:  # the digits that the first network misreads, above each what it is and what it was read as
    import matplotlib.pyplot as plt

    x, y = test_data
    read = best.feedforward(x).argmax(axis=1)
    side = math.isqrt(x.shape[1])
    figure, axes = plt.subplots(3, 8, figsize=(10, 5))
    for axis in axes.flat:
        axis.axis("off")
    for axis, i in zip(axes.flat, (read != y).nonzero()[0]):
        axis.imshow(x[i].reshape(side, side), cmap="gray_r")
        axis.set_title(f"{y[i]} read as {read[i]}", fontsize=9)
    figure.tight_layout()
    figure.savefig(sys.argv[2])

# Exercises
# 1. Chapter 1 asks for a network without a hidden layer, [784, 10]. How many digits does it read right, and why not none?
# 2. Find an eta between 0.001 and 100 that gets as far in 5 epochs as 3.0 does in 30, or show that there is none.
# 3. Change one weight by 0.01, by net.layers.load_state_dict: by how much does the cost of one image change? Compare it with what
#    net.backprop(x, y) says.
