"""Chapter 1's four runs: 30 and 100 hidden neurons, a rate that is much too small, and one that is much too large.

The book: 95.42% and 96.59% at best, then 21.42% and 9.82% after 30 epochs.

python examples/book/chapter_1_networks.py [epochs]
"""

import sys

from network import Network
from network2 import load_data

training_data, _, test_data = load_data()
epochs = int(sys.argv[1]) if len(sys.argv) > 1 else 30
for hidden, eta in ((30, 3.0), (100, 3.0), (100, 0.001), (30, 100.0)):
    print(f"{hidden} hidden neurons, eta {eta}")
    net = Network([training_data[0].shape[1], hidden, 10])
    net.SGD(training_data, epochs, 10, eta, test_data=test_data)
