"""`DoveTokens` on disk: a safetensors file, written atomically and untrusted when read.

All functions deal in plain fields, by the names that `DoveTokens` gives them. The same tokens are the same
bytes.

tokens      [T, D]    float32, float16, bfloat16 or float64
cu_seqlens  [B + 1]   int32
p_eos       [B, K]    float32, optional
psnr        [B]       float32, optional (version 2)
relevance   [B, h, w] float32, optional (version 3)
metadata    format "dove-tokens", version "1" to "4", num_slots K, optionally model, names (a JSON list) and
            tiles (version 4, `Tiles.to_json`)
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from dove_ext.atomic import atomic_write
from dove_ext.config import MAX_SLOTS
from dove_ext.errors import TokensError
from dove_ext.tokens.tiles import Tiles

FORMAT = "dove-tokens"
VERSIONS = ("1", "2", "3", "4")
_DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
_KINDS = {"cu_seqlens": "int32", "p_eos": "float32", "psnr": "float32", "relevance": "float32"}
_SHORT = {"int32": "I32", "float32": "F32"}  # as the format has them
_RANKS = {"tokens": 2, "cu_seqlens": 1, "p_eos": 2, "psnr": 1, "relevance": 3}


def save_fields(path: str | os.PathLike[str], fields: Mapping[str, Any]) -> None:
    """Write the fields of a `DoveTokens` on the CPU, whole or not at all; an existing file is replaced.

    Raises:
        TokensError: if `load_fields` would refuse the file.
        OutputError: if it cannot be written.
    """
    payload = to_bytes(fields)
    with atomic_write(path) as temporary:
        temporary.write_bytes(payload)


def to_bytes(fields: Mapping[str, Any], about: Mapping[str, str] | None = None) -> bytes:
    """The file that `save_fields` writes.

    Args:
        fields: of a `DoveTokens` on the CPU.
        about: further metadata, which `load_fields` passes over.

    Raises:
        TokensError: if `load_fields` would refuse the file.
    """
    tensors = {name: fields[name] for name in _RANKS if fields[name] is not None}
    model, names = fields["model"], fields["names"]
    check_values(tensors, "the batch to save")
    for text in (*(names or ()), "" if model is None else model):
        if not isinstance(text, str):
            raise TokensError(f"the batch to save is not valid: model and names must be str, got {text!r}")
    # What earlier programs can read stays readable for them.
    needs = {1: "psnr" in tensors, 2: "relevance" in tensors, 3: fields["tiles"] is not None}
    version = VERSIONS[max((place for place, needed in needs.items() if needed), default=0)]
    metadata = {**(about or {}), "format": FORMAT, "version": version, "num_slots": str(fields["num_slots"])}
    if model is not None:
        metadata["model"] = model
    if names is not None:
        metadata["names"] = json.dumps(names)
    if fields["tiles"] is not None:
        metadata["tiles"] = fields["tiles"].to_json()
    return _sorted(save({name: t.detach().contiguous() for name, t in tensors.items()}, metadata))


def _sorted(payload: bytes) -> bytes:
    """A safetensors file with its metadata in order: safetensors writes it in another one each time."""
    start = 8 + int.from_bytes(payload[:8], "little")
    header = json.loads(payload[8:start])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the tensors behind it stay aligned
    return b"".join((len(text).to_bytes(8, "little"), text, memoryview(payload)[start:]))


def load_fields(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a file of `save_fields` and check each field by itself.

    Shapes and dtypes are read from the header before any tensor; safetensors itself makes sure that they
    account for every byte of the file, so a header cannot ask for more memory than the file has.

    Returns:
        dict: the fields of a `DoveTokens`, on the CPU; whether they fit together is for that to check.

    Raises:
        TokensError: if the file is missing, unreadable, damaged, not of this kind or of a newer version.
    """
    with open_file(path) as file:
        return _read(file, repr(str(path)))


@contextmanager
def open_file(path: str | os.PathLike[str]) -> Iterator[Any]:
    """A safetensors file, memory-mapped while the block runs, and as long as a tensor of it is kept.

    Raises:
        TokensError: if it is missing, unreadable or damaged.
    """
    name = repr(str(path))
    # os.path's, which say no where pathlib's raise: of folders that may not be entered, and names too long.
    if not os.path.isfile(path):  # noqa: PTH113
        kind = "is not a file" if os.path.exists(path) else "does not exist"  # noqa: PTH110
        raise TokensError(f"{name} {kind}; give a file written by DoveTokens.save or `dove encode`")
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except TokensError:
        raise
    except OSError as error:  # the library calls a file without permission one that is not there
        reason = "no permission" if not os.access(path, os.R_OK) else error.strerror or error
        raise TokensError(f"{name} cannot be read: {reason}") from error
    except SafetensorError as error:
        raise TokensError(
            f"{name} is damaged, cut short or no safetensors file at all ({error}); encode the images again"
        ) from error


def _read(file: Any, name: str) -> dict[str, Any]:
    fields = read_header(file, name)
    tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    check_values(tensors, name)
    return {**fields, **tensors}


def read_header(file: Any, name: str) -> dict[str, Any]:
    """The fields that are no tensors, which are None; what the header says of tensors is checked.

    Args:
        file: open.
        name: how an error calls it.

    Raises:
        TokensError: if the file is not of this kind or of a newer version.
    """
    metadata = file.metadata() or {}
    if metadata.get("format") != FORMAT:
        held = ", ".join(sorted(map(repr, file.keys()))[:5]) or "nothing"
        raise TokensError(f"{name} is a safetensors file, but not of DOVE tokens; it holds {held:.200}")
    if metadata.get("version") not in VERSIONS:
        found, known = metadata.get("version"), ", ".join(map(repr, VERSIONS))
        raise TokensError(f"{name} has version {found!r} of the format, known are {known}; upgrade dove-ext")
    keys = set(file.keys())
    if not {"tokens", "cu_seqlens"} <= keys <= set(_RANKS):
        wanted, held = (
            "'tokens', 'cu_seqlens' and optionally 'p_eos', 'psnr' and 'relevance'",
            ", ".join(map(repr, sorted(keys))),
        )
        raise TokensError(f"{name} must hold {wanted}, but it holds {held:.200}")
    for key in keys:
        held = file.get_slice(key)
        if key in _KINDS and held.get_dtype() != _SHORT[_KINDS[key]]:
            raise TokensError(f"{name} is not valid: {key} must be {_KINDS[key]}, it is {held.get_dtype()}")
        shape = held.get_shape()
        if len(shape) != _RANKS[key]:
            raise TokensError(
                f"{name} is not valid: {key} must have {_RANKS[key]} dimensions, its shape is {shape}"
            )
    return {
        **dict.fromkeys(_RANKS),
        "num_slots": _slots(metadata.get("num_slots"), name),
        "model": metadata.get("model"),
        "names": _names(metadata.get("names"), name),
        "tiles": _tiles(metadata.get("tiles"), name),
    }


def check_values(tensors: Mapping[str, Tensor], name: str) -> None:
    """Refuse values that no tokens have; whether shapes fit together is not looked at.

    Raises:
        TokensError: naming the file and what is wrong.
    """
    if tensors["tokens"].dtype not in _DTYPES:
        raise TokensError(f"{name} is not valid: tokens of dtype {tensors['tokens'].dtype} are not supported")
    if not tensors["tokens"].isfinite().all():
        raise TokensError(
            f"{name} is not valid: its tokens hold NaN or infinite values; encode the images again"
        )
    p_eos = tensors.get("p_eos")
    if p_eos is not None and not ((p_eos >= 0) & (p_eos <= 1)).all():  # false for NaN, too
        raise TokensError(f"{name} is not valid: its p_eos holds values that are not probabilities")
    psnr = tensors.get("psnr")
    if psnr is not None and not psnr.isfinite().all():
        raise TokensError(f"{name} is not valid: its psnr holds NaN or infinite values")
    maps = tensors.get("relevance")
    if maps is not None and not ((maps >= 0) & (maps <= 1)).all():
        raise TokensError(f"{name} is not valid: its relevance holds values outside of 0 to 1")


def _slots(text: str | None, name: str) -> int:
    if text is None or not (
        text.isascii() and text.isdigit() and 1 <= int(text[:9]) <= MAX_SLOTS and len(text) < 9
    ):
        raise TokensError(
            f"{name} is not valid: num_slots must be between 1 and {MAX_SLOTS}, it says {text!r:.40}"
        )
    return int(text)


def _names(text: str | None, name: str) -> tuple[str, ...] | None:
    if text is None:
        return None
    try:
        names = json.loads(text)
    except (ValueError, RecursionError):
        names = None
    if not isinstance(names, list) or not all(isinstance(n, str) for n in names):
        raise TokensError(f"{name} is not valid: its names are not a JSON list of strings")
    return tuple(names)


def _tiles(text: str | None, name: str) -> Tiles | None:
    if text is None:
        return None
    try:
        return Tiles.from_json(text)
    except TokensError as error:
        raise TokensError(f"{name} is not valid: {error}") from error
