"""GPU accelerated neural networks in 6 lines: MNIST, on whatever device there is.

python examples/series/six_lines.py
"""

import clnn

(x, y), (x_test, y_test) = clnn.data.mnist()
net = clnn.Sequential([clnn.Dense(512, "relu"), clnn.Dense(10)], input_shape=784)
net.fit(x, y, loss="cross_entropy", optimizer=clnn.Adam(0.001), epochs=2, batch_size=128)
print(net.evaluate(x_test, y_test))
