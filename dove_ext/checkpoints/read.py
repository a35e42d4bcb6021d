"""Reading weights files that other projects wrote: what they hold, and never anything they might run."""

from __future__ import annotations

import hashlib
import os
import pickle
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from dove_ext.errors import CheckpointError


class _Inert:
    """Stands where a training checkpoint refers to a class of its trainer; it cannot do anything."""


# Lightning keys its callbacks' state by their class, so even a file of plain weights refers to these.
# They are replaced by `_Inert`: no code of Lightning is imported or run.
_HARMLESS_CLASSES = [
    f"{package}.callbacks.{name}"
    for package in ("pytorch_lightning", "lightning.pytorch")
    for name in ("model_checkpoint.ModelCheckpoint", "early_stopping.EarlyStopping")
]


@dataclass(frozen=True)
class ForeignWeights:
    """The tensors of one file.

    Attributes:
        path: the file.
        sha256: of its bytes, in hexadecimal.
        tensors: by name; nested dictionaries are joined by ".", a checkpoint's "state_dict" is unwrapped.
    """

    path: Path
    sha256: str
    tensors: dict[str, Tensor]


class UnknownLayoutError(CheckpointError):
    """A file's names belong to no layout that can be converted.

    Attributes:
        weights: the file.
    """

    def __init__(self, message: str, weights: ForeignWeights) -> None:
        super().__init__(message)
        self.weights = weights


def read_foreign(path: str | Path) -> ForeignWeights:
    """Read a safetensors file or a PyTorch checkpoint, told apart by content, not by suffix.

    Pickles are read by `torch.load(weights_only=True)`, which builds tensors and plain containers only.

    Args:
        path: the file.

    Returns:
        ForeignWeights: tensors on the CPU, in the file's dtypes.

    Raises:
        CheckpointError: if the file is missing, damaged, of another kind, asks for code to be run, or
            holds no tensors.
    """
    path = Path(path)
    if os.path.isdir(path):  # noqa: PTH112 (pathlib's raises where a folder may not be entered)
        raise CheckpointError(f"{path} is a folder; give the weights file in it")
    try:
        with path.open("rb") as file:
            head = file.read(16)
            digest = hashlib.sha256(head)
            while block := file.read(1 << 20):
                digest.update(block)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}; check the path") from error
    if head[8:9] == b"{":  # safetensors: the header's size in 8 bytes, then JSON
        content: object = _read_safetensors(path)
    elif head.startswith((b"PK\x03\x04", b"\x80")):  # torch.save since 1.6 (zip) and before (pickles)
        content = _read_pickle(path)
    else:
        kind = "is empty" if not head else "is neither a safetensors file nor a PyTorch checkpoint"
        raise CheckpointError(f"{path} {kind}; was the download complete?")
    if isinstance(content, Mapping) and isinstance(content.get("state_dict"), Mapping):
        content = content["state_dict"]
    try:
        tensors = dict(_tensors(content))
    except RecursionError as error:
        raise CheckpointError(f"{path} holds dictionaries within one another without end") from error
    if not tensors:
        raise CheckpointError(f"{path} holds no tensors; give the file with the model's weights")
    return ForeignWeights(path, digest.hexdigest(), tensors)


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{path} is a damaged safetensors file ({error}); download it again") from error


def _read_pickle(path: Path) -> object:
    allowed = [(_Inert, name) for name in _HARMLESS_CLASSES]
    try:
        with torch.serialization.safe_globals(allowed):  # type: ignore[arg-type]
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL ([\w.]+)", str(error))
        if found is None:
            raise CheckpointError(
                f"{path} is a damaged or foreign pickle, or asks for more than tensors to be built "
                f"({_last_line(error)}); get it as safetensors"
            ) from error
        raise CheckpointError(
            f"{path} was not opened: its pickle asks for {found[1]!r}, which could run code; get the weights "
            "as safetensors, or have someone who trusts the file save its state_dict alone"
        ) from error
    except Exception as error:  # torch.load lets through whatever a damaged file makes it trip over
        raise CheckpointError(
            f"{path} is a damaged PyTorch checkpoint ({_last_line(error)}); download it again"
        ) from error


def _last_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[-1][:160] if lines else type(error).__name__


def _tensors(content: object, prefix: str = "") -> Iterable[tuple[str, Tensor]]:
    """Tensors of nested dictionaries with their names joined by dots."""
    if isinstance(content, Tensor):
        # Others (sparse, quantised, without data) occur in no layout and answer few questions.
        if content.layout is torch.strided and content.device.type == "cpu" and not content.is_quantized:
            yield prefix or "(the file itself)", content.detach()
    elif isinstance(content, Mapping):
        for name, value in content.items():
            yield from _tensors(value, f"{prefix}.{name}" if prefix else str(name))


def matches_by_shape(weights: ForeignWeights, ours: Mapping[str, Tensor]) -> list[dict[str, object]]:
    """Every tensor of a file with those of ours that have its shape: {name, shape, dtype, same_shape}."""
    by_shape: dict[tuple[int, ...], list[str]] = {}
    for name, tensor in ours.items():
        by_shape.setdefault(tuple(tensor.shape), []).append(name)
    return [
        {
            "name": name,
            "shape": list(tensor.shape),
            "dtype": str(tensor.dtype).removeprefix("torch."),
            "same_shape": by_shape.get(tuple(tensor.shape), []),
        }
        for name, tensor in weights.tensors.items()
    ]


def summarize(matches: Iterable[dict[str, object]], limit: int = 60) -> list[str]:
    """`matches_by_shape` as lines to read: names that differ only in their numbers share one.

    Args:
        matches: the tensors.
        limit: lines at most; a last one says how many were left out.
    """
    groups: dict[tuple[str, str], list[dict[str, object]]] = {}
    for match in matches:
        pattern = re.sub(r"\d+", "*", str(match["name"]))
        groups.setdefault((pattern, str(match["shape"])), []).append(match)
    lines = []
    for (pattern, shape), members in groups.items():
        name = str(members[0]["name"]) if len(members) == 1 else f"{pattern} ({len(members)} tensors)"
        same = members[0]["same_shape"]
        assert isinstance(same, list)
        fits = "no tensor of ours has this shape"
        if same:
            fits = f"same shape as {same[0]}" + (f" and {len(same) - 1} more" if len(same) > 1 else "")
        lines.append(f"{name}  {shape}  {fits}")
    left_out = len(lines) - limit
    return (
        lines if left_out <= 0 else [*lines[:limit], f"... {left_out} lines more; --json lists all tensors"]
    )
