"""Chapter 5: more hidden layers do not help a network that learns by plain gradient descent.

The book, on the validation data after 30 epochs: 96.48%, 96.90%, 96.57% and 96.53% with one to four layers of 30.

python examples/book/chapter_5_hidden_layers.py [epochs]
"""

import sys

import network2

if "--help" in sys.argv:
    sys.exit(print(__doc__))

training_data, validation_data, _ = network2.load_data()
epochs = int(sys.argv[1]) if len(sys.argv) > 1 else 30
for layers in (1, 2, 3, 4):
    net = network2.Network([training_data[0].shape[1], *[30] * layers, 10])
    _, found, _, _ = net.SGD(
        training_data, epochs, 10, 0.1, lmbda=5.0, evaluation_data=validation_data, monitor_evaluation_accuracy=True
    )
    print(f"{layers} hidden layers: {found[-1]} / {len(validation_data[0])} after {epochs} epochs, best {max(found)}")

# Exercises
# 1. Replace sigmoid by relu in network2.py's start(): does the fourth layer help now?
# 2. Give four layers twice the epochs: is it too few steps that holds them back?
