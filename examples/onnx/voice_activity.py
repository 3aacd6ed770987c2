"""When does somebody speak? Silero's network hears 32 ms at a time, and its LSTM's state goes from one to the next.

python examples/onnx/voice_activity.py [sound.wav]

The file has 16,000 samples a second of 16 bits. Without one, a voice is made up. The network lies in a package:
pip install --no-deps silero-vad
"""

import importlib.util
import sys
import wave
from pathlib import Path

import numpy as np

import clnn

if "--help" in sys.argv:
    sys.exit(print(__doc__))

RATE, STEP, BEFORE = 16_000, 512, 64
package = importlib.util.find_spec("silero_vad")
if package is None:
    sys.exit("this example runs the network of silero-vad, which is not here: pip install --no-deps silero-vad")
net = clnn.onnx.load(Path(package.origin).parent / "data" / "silero_vad_16k_op15.onnx")


def recorded(path):
    """The samples of a file, from -1 to 1."""
    with wave.open(path) as file:
        if (file.getframerate(), file.getsampwidth()) != (RATE, 2):
            sys.exit(f"{path} should have {RATE:,} samples a second of 16 bits")
        samples = np.frombuffer(file.readframes(file.getnframes()), "<i2").reshape(-1, file.getnchannels())
    return (samples.mean(1) / 32768).astype(np.float32)


def made_up(seconds):
    """Four syllables a second: harmonics of a pitch that moves, loudest near the formants of a, i, ae, u, ou (Peterson 1952)."""
    t = np.arange(seconds * RATE) / RATE
    pitch = 120 + 20 * np.sin(14.5 * t) + 8 * np.sin(32 * t)
    formants = np.array([(730, 1090, 2440), (270, 2290, 3010), (530, 1840, 2480), (300, 870, 2240), (570, 840, 2410)])
    now = formants[(t * 4).astype(int) % 5].T
    sound = np.zeros_like(t)
    for k in range(1, 30):
        loudness = sum(g / (1 + ((k * pitch - f) / b) ** 2) for f, b, g in zip(now, (80, 90, 120), (1, 0.6, 0.3)))
        sound += loudness * np.sin(2 * np.pi * k * np.cumsum(pitch) / RATE) / k**0.3
    return 0.3 * sound / np.abs(sound).max() * np.clip(1.6 * np.sin(np.pi * (t * 4 % 1)), 0, 1)


if len(sys.argv) > 1:
    sound = recorded(sys.argv[1])
else:
    sound = np.concatenate([np.zeros(RATE), made_up(2), np.zeros(RATE)])
    sound = (sound + np.random.default_rng(0).normal(0, 1e-3, sound.size)).astype(np.float32)
state, before, speaks = np.zeros((2, 1, 128), np.float32), np.zeros(BEFORE, np.float32), False
for start in range(0, sound.size - STEP + 1, STEP):
    heard = np.concatenate([before, sound[start : start + STEP]])
    found = net(input=heard[None], state=state, sr=np.array(RATE))
    p, state, before = found["output"].item(), found["stateN"], heard[-BEFORE:]
    if speaks != (p > (0.35 if speaks else 0.5)):  # it takes more to begin than to go on
        speaks = not speaks
        print(f"{start / RATE:6.2f} s: {'speech begins' if speaks else 'it is quiet again'} ({p:.0%})")
print(f"{sound.size / RATE:6.2f} s: the end")
