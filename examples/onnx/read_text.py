"""What is written in a picture? One network finds the lines, another one reads them: python examples/onnx/read_text.py [picture]

Lines lie level, one above the other. Without a picture it draws one. The networks, PaddleOCR's, lie in a package:
pip install --no-deps rapidocr-onnxruntime; and pip install pillow for pictures
"""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import onnx

import clnn

if "--help" in sys.argv:
    sys.exit(print(__doc__))

package = importlib.util.find_spec("rapidocr_onnxruntime")
if package is None or importlib.util.find_spec("PIL") is None:
    sys.exit("this example takes two packages: pip install --no-deps rapidocr-onnxruntime; pip install pillow")
from PIL import Image, ImageDraw, ImageFont  # noqa: E402

folder = Path(package.origin).parent / "models"
finds = clnn.onnx.load(folder / "ch_PP-OCRv4_det_infer.onnx")
reads = clnn.onnx.load(folder / "ch_PP-OCRv4_rec_infer.onnx")
told = {p.key: p.value for p in onnx.load(folder / "ch_PP-OCRv4_rec_infer.onnx").metadata_props}
signs = ["", *told["character"].splitlines(), " "]  # the first one stands for none


def drawn(*lines):
    """A picture of text."""
    picture = Image.new("RGB", (480, 40 + 60 * len(lines)), "white")
    for i, line in enumerate(lines):
        ImageDraw.Draw(picture).text((30, 25 + 60 * i), line, fill="black", font=ImageFont.load_default(32))
    return picture


def numbers(picture):
    """A picture as (3, height, width) from -1 to 1, blue first."""
    return (np.array(picture, np.float32)[:, :, ::-1] / 127.5 - 1).transpose(2, 0, 1)


def runs(on):
    """Where each run of True begins and ends."""
    steps = np.diff(np.concatenate([[0], on.astype(int), [0]]))
    return [*zip(np.flatnonzero(steps == 1), np.flatnonzero(steps == -1))]


picture = Image.open(sys.argv[1]).convert("RGB") if len(sys.argv) > 1 else drawn("Read once,", "replay 1000 times")
width, height = (max(32, round(side / 32) * 32) for side in picture.size)
text = finds(numbers(picture.resize((width, height)))[None])[0, 0] > 0.3  # (height, width): whether text is there
lines = []
for top, bottom in runs(text.any(1)):
    columns = np.flatnonzero(text[top:bottom].any(0))
    left, right = columns[0], columns[-1] + 1
    more = 0.8 * (right - left) * (bottom - top) / (right - left + bottom - top)  # it learned boxes that are drawn in
    scale = np.tile(np.divide(picture.size, (width, height)), 2)
    line = picture.crop([*map(int, np.array([left - more, top - more, right + more, bottom + more]) * scale)])
    lines.append(numbers(line.resize((max(16, round(48 * line.width / line.height)), 48))))
if not lines:
    sys.exit("there is no text in it")
x = np.zeros((len(lines), 3, 48, max(line.shape[2] for line in lines)), np.float32)
for i, line in enumerate(lines):
    x[i, :, :, : line.shape[2]] = line
for p in reads(x):  # (steps, signs)
    best = p.argmax(1)
    new = (best > 0) & (best != np.concatenate([[0], best[:-1]]))  # a sign that goes on counts once (CTC, Graves 2006)
    print("".join(signs[i] for i in best[new]), f"({p.max(1)[new].mean():.0%})" if new.any() else "?")
