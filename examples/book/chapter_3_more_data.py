"""Chapter 3: the accuracy on the test data by the number of images trained on; the book's rises from 69% to 96%.

python examples/book/chapter_3_more_data.py [epochs [curve.png]]
"""

import sys

import network2

if "--help" in sys.argv:
    sys.exit(print(__doc__))

training_data, _, test_data = network2.load_data()
sizes = [n for n in (50, 100, 200, 500, 1000, 2000, 5000, 10000, 20000, 50000) if n <= len(training_data[0])]
accuracies = []
for n in sizes:
    part = training_data[0][:n], training_data[1][:n]
    net = network2.Network([part[0].shape[1], 30, 10])
    epochs = int(sys.argv[1]) if len(sys.argv) > 1 else 1500000 // n  # the book: about as many steps for each
    net.SGD(part, epochs, 10, 0.5, lmbda=n * 0.0001)
    accuracies.append(100 * net.accuracy(test_data) / len(test_data[0]))
for n, accuracy in zip(sizes, accuracies):
    print(f"{n:6,} images: {accuracy:.2f}%")

if len(sys.argv) > 2:
    import matplotlib.pyplot as plt

    plt.semilogx(sizes, accuracies, "o-")
    plt.xlabel("training set size")
    plt.ylabel("accuracy on the test data, %")
    plt.savefig(sys.argv[2])

# Exercises
# 1. Draw the curve on linear axes as well. How many images would 97% take by each, and which do you believe?
# 2. Train on 10,000 images and on 5,000 with each shifted by a pixel (expand_mnist.py): which network reads more?
