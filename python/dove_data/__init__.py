"""Sets of tokens too large for one file: made once from any number of pictures, and read for training.

dove tokenize photos/ tokens/

data = dove_data.TokenDataset("tokens")         # by number and by key
stream = dove_data.TokenStream("tokens")        # shuffled, for a DataLoader with collate
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dove_data.checking import verify
    from dove_data.dataset import TokenDataset, collate
    from dove_data.run import tokenize
    from dove_data.settings import DataError, Settings
    from dove_data.stream import TokenStream

_HOMES = {
    "DataError": "settings",
    "Settings": "settings",
    "TokenDataset": "dataset",
    "TokenStream": "stream",
    "collate": "dataset",
    "tokenize": "run",
    "verify": "checking",
}

__all__ = ["DataError", "Settings", "TokenDataset", "TokenStream", "collate", "tokenize", "verify"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'dove_data' has no attribute {name!r}")
    value = getattr(import_module(f"dove_data.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))
