"""Checkpoints of other projects: read without running them, known by their names, made into models."""
