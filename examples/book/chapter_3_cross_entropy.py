"""Chapter 3: the cross-entropy cost in place of the quadratic one; the book: 95.49% with 30 hidden neurons.

python examples/book/chapter_3_cross_entropy.py [epochs]
"""

import sys

import network2

training_data, _, test_data = network2.load_data()
net = network2.Network([training_data[0].shape[1], 30, 10], cost=network2.CrossEntropyCost)
net.large_weight_initializer()
epochs = int(sys.argv[1]) if len(sys.argv) > 1 else 30
_, accuracies, _, _ = net.SGD(
    training_data, epochs, 10, 0.5, evaluation_data=test_data, monitor_evaluation_accuracy=True
)
print(f"best: {max(accuracies)} / {len(test_data[0])}")
