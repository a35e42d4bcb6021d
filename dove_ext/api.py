"""The functions of the package itself: those of `DoveModel`, on the default model, which is loaded once."""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable
from functools import wraps
from typing import Concatenate, ParamSpec, TypeVar

import torch

from dove_ext.config import DEFAULT_MODEL
from dove_ext.models.dove import DoveModel

P = ParamSpec("P")
R = TypeVar("R")

_loading = threading.Lock()
_loaded: list[DoveModel] = []  # none or one; nobody else gets hold of it


def _default() -> DoveModel:
    with _loading:  # threads that come first at the same time share one model
        if not _loaded:
            _loaded.append(DoveModel.from_pretrained(DEFAULT_MODEL))
    return _loaded[0]


def load_model(
    name_or_path: str = DEFAULT_MODEL,
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
) -> DoveModel:
    """A pretrained model of your own, loaded anew by every call; see `DoveModel.from_pretrained`."""
    return DoveModel.from_pretrained(name_or_path, device=device, dtype=dtype)


def _of_default(method: Callable[Concatenate[DoveModel, P], R]) -> Callable[P, R]:
    """A method of `DoveModel` as a function of the default model, with its signature and documentation."""

    @wraps(method)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        return method(_default(), *args, **kwargs)

    signature = inspect.signature(method)
    without_self = list(signature.parameters.values())[1:]
    call.__signature__ = signature.replace(parameters=without_self)  # type: ignore[attr-defined]
    call.__qualname__, call.__module__ = method.__name__, __name__
    call.__doc__ = (
        f"`DoveModel.{method.__name__}` of the default model, {DEFAULT_MODEL!r} in float32 on the CPU, which "
        f"the first call loads.\n\n{inspect.getdoc(method)}"
    )
    return call


encode = _of_default(DoveModel.encode)
decode = _of_default(DoveModel.decode)
reconstruct = _of_default(DoveModel.reconstruct)  # type: ignore[arg-type] # its **options could name self
