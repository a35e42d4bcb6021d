"""`DoveTokens`, images of unequal token counts in one batch: container, file format, choice of lengths."""

from dove_ext.tokens.container import DoveTokens

__all__ = ["DoveTokens"]
