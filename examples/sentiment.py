"""Is a review good or bad? An Embedding and LSTMs that read both ways: python examples/sentiment.py [reviews]

The reviews are made up here, of words that praise, words that blame, "not" in front of some, which turns the next such word
around, and words that say nothing. Their lengths differ: word 0 is padding, which `mask_zero` has later layers pass over.
"""

import sys

import numpy as np

import clnn

if "--help" in sys.argv:
    sys.exit(print(__doc__))

COUNT = int(sys.argv[1]) if len(sys.argv) > 1 else 6000
LISTS = """good great fine lovely superb touching funny clever
bad dull poor awful weak tedious clumsy silly
the a film plot actors and it was very really quite with of music ending scenes all in this"""
GOOD, BAD, EMPTY = (line.split() for line in LISTS.splitlines())
WORDS = ["", "not", *GOOD, *BAD, *EMPTY]
LONGEST = 24
rng = np.random.default_rng(1)


def review():
    """Words, and 1 if they praise more often than they blame, else 0."""
    while True:
        words, sum_ = [], 0
        for _ in range(rng.integers(1, 4)):
            words += [*rng.choice(EMPTY, rng.integers(0, 4))]
            turned, praises = rng.random() < 0.4, rng.random() < 0.5
            words += (
                ["not"] * turned + [*rng.choice(EMPTY, rng.integers(0, 2))] + [rng.choice(GOOD if praises else BAD)]
            )
            sum_ += 1 if praises != turned else -1
        if sum_:
            return words + [*rng.choice(EMPTY, rng.integers(0, 4))], int(sum_ > 0)


def numbers(words):
    return [WORDS.index(word) for word in words] + [0] * (LONGEST - len(words))


texts, labels = zip(*[review() for _ in range(COUNT)])
x, y = np.array([numbers(words) for words in texts], np.int32), np.array(labels, np.float32)[:, None]
net = clnn.Sequential(
    [clnn.Embedding(len(WORDS), 16, mask_zero=True), clnn.Bidirectional(clnn.LSTM(16)), clnn.Dense(1, "sigmoid")],
    input_shape=LONGEST,
    seed=1,
)
rest = COUNT // 6
net.fit(
    x[rest:], y[rest:], loss="binary_cross_entropy", optimizer=clnn.Adam(0.01), epochs=10, batch_size=32, seed=1,
    progress=False,
)  # fmt: skip
right = (net.predict_classes(x[:rest]) == y[:rest, 0]).mean()
print(f"test accuracy {right:.2%} of {rest} reviews")
for words in ("a very good film", "it was not good", "not bad", "the plot was dull and the actors great and funny"):
    print(f"{net.predict(np.array([numbers(words.split())]))[0, 0]:.3f} {words}")
