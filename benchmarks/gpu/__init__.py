"""Kernels and whole models on a GPU, against PyTorch and others; `benchmarks/gpu/run.sh` runs all of it."""
