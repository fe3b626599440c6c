"""CPU workers: ONNX Runtime on the CPU."""
