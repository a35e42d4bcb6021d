"""What is measured on a GPU, and against whom; `benchmarks/gpu.sh` runs all of it."""
