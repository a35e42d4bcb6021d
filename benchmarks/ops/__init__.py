"""Kernels and training steps against plain PyTorch on a CPU: `python -m benchmarks.ops.NAME`."""
