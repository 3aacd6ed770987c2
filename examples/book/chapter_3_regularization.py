"""Chapter 3: L2 regularization with all 50,000 images, weights N(0, 1).

The book: 96.49% (30 hidden neurons, test), 97.92% and, with a smaller rate for longer, 98.04% (100 neurons, validation).

python examples/book/chapter_3_regularization.py [epochs]
"""

import sys

import network2

if "--help" in sys.argv:
    sys.exit(print(__doc__))

training_data, validation_data, test_data = network2.load_data()
for hidden, eta, epochs, data in (
    (30, 0.5, 30, test_data),
    (100, 0.5, 30, validation_data),
    (100, 0.1, 60, validation_data),
):
    net = network2.Network([training_data[0].shape[1], hidden, 10])
    net.large_weight_initializer()
    epochs = int(sys.argv[1]) if len(sys.argv) > 1 else epochs
    _, found, _, _ = net.SGD(
        training_data, epochs, 10, eta, lmbda=5.0, evaluation_data=data, monitor_evaluation_accuracy=True
    )
    print(f"{hidden} hidden neurons, eta {eta}: best {max(found)} / {len(data[0])}")

# Exercises
# 1. lambda is 5.0 for 50,000 images. Which lambda is as strong for 1,000, by the update rule?
# 2. Plot a histogram of net.weights[0] with lambda 0 and 5: what has become of the large ones?
