"""What can be wrong with a user's input or output, each as one sentence with the name and the remedy.

Every class is also the built-in error a caller would expect (`ValueError`, `OSError`), so code that never
heard of this package can still catch it.
"""

from __future__ import annotations


class DoveError(Exception):
    """Base of all errors that a user can mend; the `dove` command prints the message without a traceback."""


class ImageError(DoveError, ValueError):
    """An image file, array or tensor cannot be used."""


class TokensError(DoveError, ValueError):
    """A `DoveTokens` or a file of them is malformed, or does not fit the model."""


class CheckpointError(DoveError, ValueError):
    """A model folder, preset name or weights file cannot be used."""


class QueryError(DoveError, ValueError):
    """A text query cannot be used, or not with this model."""


class ExportError(DoveError, RuntimeError):
    """A model that cannot become a graph of the wanted kind, or a package that this needs and lacks."""


class OutputError(DoveError, OSError):
    """A file cannot be written."""


class DoveWarning(UserWarning):
    """Something was left out or done in another way than may have been meant; the work goes on."""
