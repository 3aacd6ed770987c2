"""What kind of file is this? Magika's network reads the first and the last 1,024 bytes.

python examples/onnx/file_types.py [file ...]

Without files it reads some of Python's own and of this folder. The network lies in a package: pip install --no-deps magika
"""

import importlib.util
import json
import sys
import sysconfig
from pathlib import Path

import numpy as np

import clnn

if "--help" in sys.argv:
    sys.exit(print(__doc__))

package = importlib.util.find_spec("magika")
if package is None:
    sys.exit("this example runs the network of the package magika, which is not here: pip install --no-deps magika")
folder = Path(package.origin).parent / "models" / "standard_v3_3"
net = clnn.onnx.load(folder / "model.onnx")
labels = np.array(json.loads((folder / "config.min.json").read_text(encoding="utf-8"))["target_labels_space"])


def tokens(path):
    """The 1,024 bytes behind leading blanks and the 1,024 before blanks at the end; 256 stands where there are none."""
    with open(path, "rb") as file:
        first = file.read(4096).lstrip()[:1024]
        file.seek(max(0, path.stat().st_size - 4096))
        last = file.read().rstrip()[-1024:]
    found = np.full(2048, 256, np.int32)
    found[: len(first)] = [*first]
    found[2048 - len(last) :] = [*last]
    return found


here, library = Path(__file__), Path(sysconfig.get_path("stdlib"))
some = [
    here,
    here.parent.parent / "README.md",
    folder / "model.onnx",
    folder / "config.min.json",
    library / "LICENSE.txt",
]
files = [Path(name) for name in sys.argv[1:]] or [file for file in some if file.is_file()]
if missing := [file for file in files if not file.is_file()]:
    sys.exit(f"there is no file {missing[0]}")
p = net(np.stack([tokens(file) for file in files]))
for file, row in zip(files, p):
    best = row.argsort()[::-1][:2]
    print(f"{file.name:20} {labels[best[0]]} {row[best[0]]:.1%}, or {labels[best[1]]} {row[best[1]]:.1%}")
