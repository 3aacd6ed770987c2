"""An LSTM learns to write like Shakespeare, its states carried from step to step: python examples/char_lstm.py [steps]"""

import pydoc_data.topics
import sys

import numpy as np

import clnn

if "--help" in sys.argv:
    sys.exit(print(__doc__))

STEPS, WINDOW, BATCH = int(sys.argv[1]) if len(sys.argv) > 1 else 2000, 64, 32
try:
    text = clnn.data.shakespeare()
except clnn.DataError:
    print("Shakespeare is not here and cannot be downloaded: it learns Python's manual")
    text = "".join(pydoc_data.topics.topics.values())
letters = sorted(set(text))
train, held_out = np.split(np.array([letters.index(c) for c in text], np.int32), [len(text) * 9 // 10])
streams = train[: len(train) // BATCH * BATCH].reshape(BATCH, -1)
held_out = held_out[256 * np.arange(min(100, len(held_out) // 257))[:, None] + np.arange(257)]


@clnn.register
class Writer(clnn.Model):
    whole_inputs = True

    def __init__(self, size=256):
        self.letters, self.scores = clnn.Embedding(len(letters), 64), clnn.Dense(len(letters))
        self.lstm = clnn.LSTM(size, return_sequences=True, return_state=True)

    def go_on(self, x, *states):
        y, *states = self.lstm(self.letters(x), *states)
        return self.scores(y), *states

    def forward(self, x):
        return self.go_on(x)[0]


@clnn.step
def step(x, following, *states):
    scores, *states = net.go_on(x, *states)
    loss = clnn.losses.cross_entropy(scores.reshape(-1, len(letters)), following.reshape(-1))
    loss.backward()
    optimizer.step(net.parameters())
    return loss, *[state.detach() for state in states]  # truncated back-propagation through time


clnn.seed(1)
net, optimizer = Writer(), clnn.Adam(clnn.Cosine(0.004, STEPS, final=2e-4, steps_per_epoch=1), clip_norm=1.0)
for i in range(STEPS):
    at = i % ((streams.shape[1] - 1) // WINDOW) * WINDOW
    if at == 0:  # the streams begin anew
        states = [np.zeros((BATCH, net.lstm.units), np.float32)] * 2
    loss, *states = step(streams[:, at : at + WINDOW], streams[:, at + 1 : at + WINDOW + 1], *states)
    if i % 100 == 0 or i == STEPS - 1:
        held = net.evaluate(held_out[:, :-1], held_out[:, 1:], loss="cross_entropy")["loss"]
        print(f"step {i}: loss {float(loss):.3f}, held out {held:.3f}", flush=True)
net.save("char_lstm.clnn", optimizer=optimizer)
tokens = clnn.generate(clnn.load("char_lstm.clnn"), [letters.index("\n")], 300, temperature=0.8, seed=1)
print("".join(letters[t] for t in tokens))
