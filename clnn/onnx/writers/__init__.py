"""Writing ONNX: a pass is traced op by op, at several sizes, and each op becomes nodes."""
