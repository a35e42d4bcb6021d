"""Instruction tuning of language models that read DOVE tokens (B.1): `dove vlm train`."""
