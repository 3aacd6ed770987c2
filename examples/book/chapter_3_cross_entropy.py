"""Chapter 3: the cross-entropy cost in place of the quadratic one; the book: 95.49% with 30 hidden neurons.

python examples/book/chapter_3_cross_entropy.py [epochs]
"""

import sys

import network2

if "--help" in sys.argv:
    sys.exit(print(__doc__))

training_data, _, test_data = network2.load_data()
net = network2.Network([training_data[0].shape[1], 30, 10], cost=network2.CrossEntropyCost)
net.large_weight_initializer()
epochs = int(sys.argv[1]) if len(sys.argv) > 1 else 30
_, accuracies, _, _ = net.SGD(
    training_data, epochs, 10, 0.5, evaluation_data=test_data, monitor_evaluation_accuracy=True
)
print(f"best: {max(accuracies)} / {len(test_data[0])}")

# Exercises
# 1. Replace CrossEntropyCost by QuadraticCost with eta 0.5, then with 3.0. Which eta is fair to compare by, and why?
# 2. Start a neuron badly wrong, with all biases at 2: which cost leaves that state in fewer epochs?
