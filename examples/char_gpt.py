"""A small GPT learns to write like Shakespeare, a character at a time: python examples/char_gpt.py [steps]"""

import pydoc_data.topics
import sys

import numpy as np

import clnn

if "--help" in sys.argv:
    sys.exit(print(__doc__))

STEPS, WINDOW, BATCH = int(sys.argv[1]) if len(sys.argv) > 1 else 2000, 64, 12  # nanoGPT's, which states a loss of 1.88
try:
    text = clnn.data.shakespeare()
except clnn.DataError:
    print("Shakespeare is not here and cannot be downloaded: it learns Python's manual instead")
    text = "".join(pydoc_data.topics.topics.values())
letters = sorted(set(text))
tokens = np.array([letters.index(c) for c in text], np.int32)
train, held_out = np.split(tokens, [len(tokens) * 9 // 10])


@clnn.register
class GPT(clnn.Model):
    whole_inputs = True

    def __init__(self, size=128, heads=4, layers=4):
        self.letters, self.places = clnn.Embedding(len(letters), size), clnn.PositionalEmbedding(WINDOW)
        self.blocks = [clnn.TransformerEncoderLayer(heads, 4 * size, causal=True) for _ in range(layers)]
        self.norm = clnn.LayerNorm()

    def forward(self, x):
        x = self.places(self.letters(x))
        for block in self.blocks:
            x = block(x)
        return self.letters.tied(self.norm(x))


def batch(of, count):
    rows = draws.integers(0, len(of) - WINDOW, count)[:, None] + np.arange(WINDOW + 1)
    return of[rows[:, :-1]], of[rows[:, 1:]]


def loss_of(x, following):
    return clnn.losses.cross_entropy(net(x).reshape(-1, len(letters)), following.reshape(-1))


@clnn.step
def step(x, following):
    loss = loss_of(x, following)
    loss.backward()
    optimizer.step(net.parameters())
    return loss


clnn.seed(1)
draws, net, measure = np.random.default_rng(1), GPT(), clnn.step(loss_of)
rate = clnn.WarmUp(clnn.Cosine(1e-3, STEPS, final=1e-4, steps_per_epoch=1), min(100, STEPS // 10), steps_per_epoch=1)
optimizer = clnn.AdamW(rate, weight_decay=0.1, beta2=0.99, clip_norm=1.0)
for i in range(STEPS):
    loss = step(*batch(train, BATCH))
    if i % 100 == 0 or i == STEPS - 1:
        with clnn.no_grad():
            held = np.mean([float(measure(*batch(held_out, 50))) for _ in range(8)])
        print(f"step {i}: loss {float(loss):.3f}, held out {held:.3f}", flush=True)
net.save("char_gpt.clnn", optimizer=optimizer)
written = clnn.generate(net, [letters.index("\n")], 300, window=WINDOW, temperature=0.8, seed=1)
print("".join(letters[t] for t in written))
