"""An LSTM or a GRU reads an image row by row and says which digit it is: python examples/mnist_rows.py [lstm|gru] [epochs]

Each row of pixels is a step: MNIST's are 28 steps of 28 numbers.
"""

import sys

import clnn

if "--help" in sys.argv:
    sys.exit(print(__doc__))

kind = sys.argv[1] if len(sys.argv) > 1 else "lstm"
epochs = int(sys.argv[2]) if len(sys.argv) > 2 else 5
try:
    (x, y), (x_test, y_test) = clnn.data.mnist()
except clnn.DataError:
    print("MNIST is not there, so this trains on clnn's own digits, which are smaller and fewer.")
    (x, y), (x_test, y_test) = clnn.data.digits()
side = round(x.shape[1] ** 0.5)

layer = {"lstm": clnn.LSTM, "gru": clnn.GRU}[kind](128)
net = clnn.Sequential([clnn.Reshape((side, side)), layer, clnn.Dense(10)], input_shape=x.shape[1], seed=1)
print(net.summary())
optimizer = clnn.Adam(clnn.OneCycle(0.005), clip_norm=1.0)
history = net.fit(x, y, loss="cross_entropy", optimizer=optimizer, epochs=epochs, batch_size=64, seed=1, progress=False)
for epoch, (loss, accuracy) in enumerate(zip(history["loss"], history["accuracy"])):
    print(f"epoch {epoch}: loss {loss:.4f}, accuracy {accuracy:.2%}, {history['seconds'][epoch]:.1f} s")
print(f"test set: {net.evaluate(x_test, y_test)['accuracy']:.2%}")
