"""Whole encodes and decodes against other tokenizers: `dove bench`."""
