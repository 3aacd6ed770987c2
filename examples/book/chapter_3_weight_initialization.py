"""Chapter 3: weights N(0, 1/in) learn faster than weights N(0, 1).

The book, on the validation data: 92.70% against 86.43% after the first epoch, 96.50% against 96.37% after 30.

python examples/book/chapter_3_weight_initialization.py [epochs [curves.png]]
"""

import sys

import network2

if "--help" in sys.argv:
    sys.exit(print(__doc__))

training_data, validation_data, _ = network2.load_data()
epochs = int(sys.argv[1]) if len(sys.argv) > 1 else 30
curves = {}
for name in ("new weights", "old weights"):
    net = network2.Network([training_data[0].shape[1], 30, 10])
    if name == "old weights":
        net.large_weight_initializer()
    _, found, _, _ = net.SGD(
        training_data, epochs, 10, 0.1, lmbda=5.0, evaluation_data=validation_data, monitor_evaluation_accuracy=True
    )
    curves[name] = [100 * n / len(validation_data[0]) for n in found]
for name, values in curves.items():
    print(f"{name}: {values[0]:.2f}% after the first epoch, {values[-1]:.2f}% after {epochs}")

if len(sys.argv) > 2:
    import matplotlib.pyplot as plt

    for name, values in curves.items():
        plt.plot(values, label=name)
    plt.xlabel("epoch")
    plt.ylabel("accuracy on the validation data, %")
    plt.legend()
    plt.savefig(sys.argv[2])

# Exercises
# 1. Compute the standard deviation of z of a hidden neuron for an image with 100 bright pixels, for both kinds of weights.
# 2. After how many epochs are the two curves less than 0.1% apart? Does that change with eta 0.5?
