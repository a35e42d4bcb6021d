"""Checkpoints of a run: written whole or not at all, pruned, and found again past damaged ones."""

from __future__ import annotations

import dataclasses
import re
import zipfile
from collections.abc import Callable, Set
from pathlib import Path
from typing import Any

import torch

from dove_ext.atomic import atomic_write, remove_unfinished
from dove_ext.errors import OutputError
from dove_train.settings import TrainingError

FORMAT = "dove_train checkpoint 3"
_NAME = re.compile(r"step-(\d+)\.pt")

# What a resumed run may change; everything else would make it another run. Data may have moved, so paths are
# free; what lies there is not (`fingerprint.py`).
_FREE_SETTINGS = {
    "data", "queries", "tokenizer", "validation", "workers", "max_unreadable", "perceptual_weights",
    "alignment_weights", "device",
    "minutes", "log_every", "checkpoint_every", "keep_checkpoints", "evaluate_every", "picture_every",
    "tensorboard", "activation_checkpointing", "compile", "batch_size", "accumulate",
}  # fmt: skip


def checkpoint_files(folder: Path) -> list[Path]:
    """The checkpoints of a run, oldest first."""
    found = [(int(match[1]), path) for path in folder.glob("*.pt") if (match := _NAME.fullmatch(path.name))]
    return [path for _, path in sorted(found)]


def clear_away(folder: Path) -> None:
    """Remove what a killed run had begun to write below its folder."""
    for place in (folder, *(folder / name for name in ("checkpoints", "pictures", "model"))):
        remove_unfinished(place)


def write_checkpoint(folder: Path, step: int, state: dict[str, Any], keep: int) -> Path:
    """Write the state of a step, then remove all others but the newest `keep` - 1 before it.

    One with a higher number was passed over as damaged when the run was resumed.

    Raises:
        OutputError: if the disk is full.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"step-{step:07d}.pt"
    with atomic_write(path) as temporary:
        try:
            torch.save({"format": FORMAT, "step": step, **state}, temporary)
        except RuntimeError as error:  # PyTorch's own writer, such as for a full disk
            reason = str(error).splitlines()[0]
            raise OutputError(
                f"cannot write {str(path)!r}: {reason}; free some space or choose another place"
            ) from error
    files = checkpoint_files(folder)
    end = files.index(path) + 1
    for other in files[: max(0, end - keep)] + files[end:]:
        other.unlink(missing_ok=True)
    return path


def read_checkpoint(path: Path) -> dict[str, Any]:
    """A checkpoint's state, on the CPU.

    Raises:
        TrainingError: saying in one sentence what is wrong with the file.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()  # torch.load alone does not look at the check sums
        if damaged is not None:
            raise TrainingError(f"{path} is damaged ({damaged} fails its check sum)")
        state = torch.load(path, map_location="cpu", weights_only=True)
    except TrainingError:
        raise
    except Exception as error:  # whatever a damaged file makes zipfile and torch.load trip over
        raise TrainingError(f"{path} is torn or no checkpoint ({type(error).__name__})") from error
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise TrainingError(f"{path} was not written by this version of dove train")
    return state


def newest_checkpoint(folder: Path, warn: Callable[[str], None]) -> dict[str, Any] | None:
    """The newest state that can be used, or None where there are no checkpoints.

    Args:
        folder: where they are.
        warn: told about each one that was passed over.

    Raises:
        TrainingError: if there are checkpoints and none can be used.
    """
    files = checkpoint_files(folder)
    for path in reversed(files):
        try:
            return read_checkpoint(path)
        except TrainingError as error:
            warn(f"{error}; using the one before it")
    if files:
        raise TrainingError(
            f"none of the {len(files)} checkpoints in {folder} can be used; remove them to start again, or "
            "use another output"
        )
    return None


def require_same_run(
    state: dict[str, Any], settings: Any, global_batch: int, where: Path, free: Set[str] = _FREE_SETTINGS
) -> None:
    """Refuse to go on with a checkpoint whose settings would have made another run.

    Args:
        state: of the checkpoint.
        settings: a dataclass, the run's.
        global_batch: images of a step.
        where: the checkpoints' folder, for the message.
        free: the settings that may differ.

    Raises:
        TrainingError: naming the setting that differs.
    """
    for name, value in dataclasses.asdict(settings).items():
        before = state["settings"].get(name)
        if name not in free and before != value:
            raise TrainingError(
                f"{where} was written with {name}={before}, this run has {name}={value}; use the same "
                "settings or another output"
            )
    if state["global_batch"] != global_batch:
        raise TrainingError(
            f"{where} was written with {state['global_batch']} images a step, this run has {global_batch}; "
            "change batch_size or accumulate so that processes x batch_size x accumulate stays the same"
        )
