"""VPU workers: OpenVINO, on an NPU by default."""
