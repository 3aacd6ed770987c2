"""Writing ONNX: a pass is traced op by op, at several sizes, and each op becomes nodes."""

from . import elementwise, images, norms, sequences, shapes  # noqa: F401 - they register their writers
