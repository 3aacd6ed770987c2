"""A network that reads handwritten digits, in five lines: python examples/quickstart.py"""

import clnn

(x, y), (x_test, y_test) = clnn.data.digits()
net = clnn.Sequential([clnn.Dense(100, "sigmoid"), clnn.Dense(10)], input_shape=64)
net.fit(x, y, loss="cross_entropy", optimizer=clnn.SGD(0.05, momentum=0.9), epochs=30, batch_size=10)
print(net.evaluate(x_test, y_test))
