"""What is measured, and against what.

- `ops`: kernels and training steps against plain PyTorch on a CPU: `python -m benchmarks.ops.NAME`
- `gpu`: the same on a GPU; `benchmarks/gpu/run.sh` runs all of it (docs/performance.md, "On a GPU")
- `tokenizers`: whole encodes and decodes against VQGAN, ALIT and TiTok: `dove bench`
- `scale`, `scale_kills`: what `dove tokenize` costs beside a bare loop, and that `kill -9` changes nothing
- `results`: the records; `python -m benchmarks.table` prints them
"""
