"""dove_ext: turn an image into as many visual tokens as it deserves (DOVE, arXiv 2506.03643)."""

from dove_ext._info import info
from dove_ext.ops import set_backend

__all__ = ["info", "set_backend"]
