"""GPU workers: ONNX Runtime with a GPU execution provider."""
