"""MNIST on several ranks: each takes a share of every mini-batch, and their gradients are added up.

clnn run-mpi -n 2 examples/mnist_mpi.py [epochs]     # on this machine; mpirun does the same on several
python examples/mnist_mpi.py [epochs]                # one rank, the same program

Ctrl-C saves the model, and the same command goes on from there, on any number of ranks.
"""

import sys
from pathlib import Path

import clnn

epochs = int(sys.argv[1]) if len(sys.argv) > 1 else 3
file = Path("mnist_mpi.safetensors")
world = clnn.distributed.init()

try:
    (x, y), validation, (x_test, y_test) = clnn.data.mnist(validation=5000)
except clnn.DataError:
    world.print("MNIST is not there, so this trains on scikit-learn's digits, which are smaller and fewer.")
    (x, y), validation, (x_test, y_test) = clnn.data.digits(validation=200)

if file.exists():
    net = clnn.load(file)
    optimizer = net.optimizer
    world.print(f"{file} goes on after epoch {optimizer.epochs}")
else:
    layers = [clnn.Dense(256, "relu", weight_init="he_normal"), clnn.Dropout(0.2), clnn.Dense(10)]
    net = clnn.Sequential(layers, input_shape=x.shape[1])
    optimizer = clnn.Adam(0.001)

history = net.fit(
    x,
    y,
    loss="cross_entropy",
    optimizer=optimizer,
    epochs=max(0, epochs - optimizer.epochs),
    batch_size=128 // world.size,  # of each rank: 128 together
    validation=validation,
    seed=1,
    callbacks=[clnn.distributed.Checkpoint(file, every=1000)],
    world=world,
)
for epoch, accuracy in enumerate(history["val_accuracy"] if epochs else []):
    world.print(f"epoch {epoch}: validation accuracy {accuracy:.2%}, {history['seconds'][epoch]:.1f} s")
world.print(f"test set: {net.evaluate(x_test, y_test)['accuracy']:.2%}, on {world.size} ranks")
