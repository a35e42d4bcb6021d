"""What a small language model reads in the tokens of several encoders: `python -m benchmarks.reading`."""
