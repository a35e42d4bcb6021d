"""Training programs for dove_ext models."""
