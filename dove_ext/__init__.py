"""dove_ext: turn an image into as many visual tokens as it deserves (DOVE, arXiv 2506.03643).

    tokens = dove_ext.encode(["photo.jpg"])
    images = dove_ext.decode(tokens)

Names are imported when they are first used, so that `dove --help` need not wait for torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dove_ext import _C as _C
    from dove_ext._info import __version__, info
    from dove_ext.api import decode, encode, load_model, reconstruct
    from dove_ext.config import DoveConfig, StackConfig, VQGANConfig
    from dove_ext.errors import (
        CheckpointError,
        DoveError,
        ImageError,
        OutputError,
        QueryError,
        TokensError,
    )
    from dove_ext.images import prepare_images, read_image, save_image, to_pil
    from dove_ext.memory import keep_freed_memory
    from dove_ext.models.dove import DoveModel
    from dove_ext.models.prefix import Prefix
    from dove_ext.models.query import Query
    from dove_ext.ops import set_backend
    from dove_ext.tokens import DoveTokens

_HOMES = {
    "CheckpointError": "errors",
    "DoveConfig": "config",
    "DoveError": "errors",
    "DoveModel": "models.dove",
    "DoveTokens": "tokens",
    "ImageError": "errors",
    "OutputError": "errors",
    "Prefix": "models.prefix",
    "Query": "models.query",
    "QueryError": "errors",
    "StackConfig": "config",
    "TokensError": "errors",
    "VQGANConfig": "config",
    "__version__": "_info",
    "decode": "api",
    "encode": "api",
    "info": "_info",
    "keep_freed_memory": "memory",
    "load_model": "api",
    "prepare_images": "images",
    "read_image": "images",
    "reconstruct": "api",
    "save_image": "images",
    "set_backend": "ops",
    "to_pil": "images",
}

__all__ = [  # noqa: RUF022 (what a newcomer needs first comes first)
    "encode",
    "decode",
    "reconstruct",
    "load_model",
    "DoveModel",
    "DoveTokens",
    "Prefix",
    "Query",
    "DoveConfig",
    "VQGANConfig",
    "StackConfig",
    "prepare_images",
    "read_image",
    "save_image",
    "to_pil",
    "info",
    "set_backend",
    "keep_freed_memory",
    "DoveError",
    "CheckpointError",
    "ImageError",
    "OutputError",
    "QueryError",
    "TokensError",
    "__version__",
]


def __getattr__(name: str) -> Any:
    if name == "_C":  # not imported yet
        return _compiled()
    if name not in _HOMES:
        raise AttributeError(f"module 'dove_ext' has no attribute {name!r}")
    value = getattr(import_module(f"dove_ext.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def _compiled() -> Any:
    """The compiled module, or a word on what is most likely wrong where there is none."""
    try:
        return import_module("dove_ext._C")
    except ModuleNotFoundError as error:
        raise ImportError(
            f"{__path__[0]} has no compiled module: it is a source folder that was not built, and it hides "
            "an installed dove_ext from Python started beside it; run `pip install -e .` there, or start "
            "Python in another folder"
        ) from error


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))
