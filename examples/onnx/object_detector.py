"""Where are the things in a picture? A detector, YOLOX, finds the signs of a captcha.

python examples/onnx/object_detector.py [picture]

Without a picture it draws one, and says how well the boxes lie. The network lies in a package:
pip install --no-deps ddddocr; and pip install pillow for pictures
"""

import importlib.util
import sys
from pathlib import Path

import numpy as np

import clnn

if "--help" in sys.argv:
    sys.exit(print(__doc__))

package = importlib.util.find_spec("ddddocr")
if package is None or importlib.util.find_spec("PIL") is None:
    sys.exit("this example takes the packages ddddocr and pillow: pip install --no-deps ddddocr; pip install pillow")
from PIL import Image, ImageDraw, ImageFont  # noqa: E402

SIZE = 416
net = clnn.onnx.load(Path(package.origin).parent / "common_det.onnx")


def drawn():
    """A picture with letters here and there, and the boxes in which they lie."""
    picture, boxes = Image.new("RGB", (400, 240), (200, 220, 235)), []
    draw = ImageDraw.Draw(picture)
    for letter, at, colour in (("K", (40, 40), "navy"), ("R", (170, 120), "darkred"), ("8", (300, 50), "black")):
        draw.text(at, letter, fill=colour, font=ImageFont.load_default(60))
        boxes.append(draw.textbbox(at, letter, font=ImageFont.load_default(60)))
    return picture, np.array(boxes, float)


def overlap(box, boxes):
    """The common area of a box and each of others, as a share of what both cover."""
    low, high = np.maximum(box[:2], boxes[:, :2]), np.minimum(box[2:], boxes[:, 2:])
    common = np.clip(high - low, 0, None).prod(1)
    return common / ((box[2:] - box[:2]).prod() + (boxes[:, 2:] - boxes[:, :2]).prod(1) - common)


picture, known = (Image.open(sys.argv[1]).convert("RGB"), None) if len(sys.argv) > 1 else drawn()
scale = SIZE / max(picture.size)
small = picture.resize([max(1, int(side * scale)) for side in picture.size], Image.Resampling.BILINEAR)
x = np.full((1, 3, SIZE, SIZE), 114, np.float32)
x[0, :, : small.height, : small.width] = np.array(small)[:, :, ::-1].transpose(2, 0, 1)  # blue comes first
y = net(x)[0]  # (boxes, 6): where from the cell's corner, the logarithm of its size, that there is one, and its class
cells = [
    (column, row, stride) for stride in (8, 16, 32) for row in range(SIZE // stride) for column in range(SIZE // stride)
]
corner, stride = np.array(cells)[:, :2], np.array(cells)[:, 2:]
middle, half = (y[:, :2] + corner) * stride / scale, np.exp(y[:, 2:4]) * stride / scale / 2
boxes, scores = np.hstack([middle - half, middle + half]), y[:, 4] * y[:, 5]
left = [i for i in scores.argsort()[::-1] if scores[i] > 0.3]
while left:  # the best one, without those that cover the same
    best, left = left[0], left[1:]
    told = f"from ({boxes[best, 0]:.0f}, {boxes[best, 1]:.0f}) to ({boxes[best, 2]:.0f}, {boxes[best, 3]:.0f})"
    print(
        f"{scores[best]:.0%} {told}" + ("" if known is None else f", overlap {overlap(boxes[best], known).max():.0%}")
    )
    left = [i for i, share in zip(left, overlap(boxes[best], boxes[left])) if share < 0.45]
