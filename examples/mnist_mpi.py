"""MNIST on several ranks: each takes a share of every mini-batch, and their gradients are added up.

clnn run-mpi -n 2 examples/mnist_mpi.py [epochs]     # on this machine; mpirun does the same on several
python examples/mnist_mpi.py [epochs]                # one rank, the same program

Where it ends early, by Ctrl-C say, the same command goes on after the last whole epoch, on any number of ranks.
"""

import sys
from pathlib import Path

import clnn

if "--help" in sys.argv:
    sys.exit(print(__doc__))

epochs = int(sys.argv[1]) if len(sys.argv) > 1 else 3
run = Path("mnist_mpi")  # the folder that a run goes on from
world = clnn.distributed.init()

try:
    (x, y), validation, (x_test, y_test) = clnn.data.mnist(validation=5000)
except clnn.DataError:
    world.print("MNIST is not there, so this trains on clnn's own digits, which are smaller and fewer.")
    (x, y), validation, (x_test, y_test) = clnn.data.digits(validation=200)

layers = [clnn.Dense(256, "relu", weight_init="he_normal"), clnn.Dropout(0.2), clnn.Dense(10)]
net = clnn.Sequential(layers, input_shape=x.shape[1])
history = net.fit(
    x,
    y,
    loss="cross_entropy",
    optimizer=clnn.Adam(0.001),
    epochs=epochs,
    batch_size=128 // world.size,  # of each rank: 128 together
    validation=validation,
    seed=1,
    callbacks=[clnn.Checkpoint(run)],
    resume=run,
    world=world,
)
for epoch, accuracy in enumerate(history["val_accuracy"] if epochs else []):
    world.print(f"epoch {epoch}: validation accuracy {accuracy:.2%}, {history['seconds'][epoch]:.1f} s")
world.print(f"test set: {net.evaluate(x_test, y_test)['accuracy']:.2%}, on {world.size} ranks")
