"""What a person sees of a run: a progress line, log.jsonl, pictures at several lengths, and warnings."""

from __future__ import annotations

import json
import math
import sys
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dove_ext.atomic import atomic_write
from dove_ext.errors import DoveError
from dove_ext.images.sheet import Row, draw_sheet
from dove_ext.models.dove import DoveModel
from dove_ext.models.vqgan import VQGAN

PICTURE_COUNTS = (16, 32, 64, 128)


class Reporter:
    """Writes for one process of a run; `quiet` ones write and print nothing."""

    def __init__(self, folder: Path, *, quiet: bool = False, tensorboard: bool = False) -> None:
        self.folder, self.quiet = folder, quiet
        self.board: Any = None
        self._new_board: Callable[[int], Any] | None = None  # one that drops what it has from a step on
        self._lengths: deque[float] = deque(maxlen=50)
        self._collapsed = False
        if tensorboard and not quiet:
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError as error:
                raise DoveError("tensorboard logs need: pip install 'dove-ext[tensorboard]'") from error
            self._new_board = lambda step: SummaryWriter(str(folder / "tensorboard"), purge_step=step)

    @property
    def _log(self) -> Path:
        return self.folder / "log.jsonl"

    def begin(self) -> None:
        """Start anew: a run that left no checkpoint may have logged here."""
        if self._new_board is not None:
            self.board = self._new_board(0)
        if not self.quiet:
            self._log.unlink(missing_ok=True)

    def resume_at(self, step: int) -> None:
        """Drop what a killed run logged after its last checkpoint: those steps are about to happen again."""
        if self._new_board is not None:
            self.board = self._new_board(step + 1)
        if self.quiet or not self._log.exists():
            return
        kept = []
        for line in self._log.read_text().splitlines():
            try:
                if json.loads(line).get("step", 0) <= step:
                    kept.append(line + "\n")
            except json.JSONDecodeError:  # the line that was being written
                continue
        with atomic_write(self._log) as temporary:
            temporary.write_text("".join(kept))

    def log(self, record: dict[str, Any]) -> None:
        """Append one line to log.jsonl."""
        if self.quiet:
            return
        with self._log.open("a") as file:
            file.write(json.dumps(record) + "\n")

    def say(self, text: str) -> None:
        """Print a line."""
        if not self.quiet:
            print(text, flush=True)

    def warn(self, text: str) -> None:
        """Print a warning, and log it."""
        if not self.quiet:
            print(f"warning: {text}", file=sys.stderr, flush=True)
            self.log({"warning": text})

    def progress(self, step: int, total: int, stage: str, values: dict[str, float]) -> None:
        """One step's numbers: the line, the log and the board."""
        self.log({"step": step, "stage": stage, **{n: _rounded(v) for n, v in values.items()}})
        if self.board is not None:
            for name, value in values.items():
                self.board.add_scalar(name, value, step)
        text = "  ".join(f"{name} {_short(value)}" for name, value in values.items())
        self.say(f"{stage} {step}/{total}  {text}")

    def check_lengths(self, mean: float, slots: int, lambda_eos: float) -> None:
        """Warn once when the mean length has collapsed to one of its bounds while it is being trained."""
        if lambda_eos == 0:
            return
        self._lengths.append(mean)
        average = sum(self._lengths) / len(self._lengths)
        full = len(self._lengths) == self._lengths.maxlen
        collapsed = full and (average < 1.5 or average > slots - 0.5)
        if collapsed and not self._collapsed:
            advice = "lower lambda_eos, or set eos_rule: sampled"
            self.warn(f"the mean length of the last 50 steps is {average:.1f} of {slots} tokens; {advice}")
        self._collapsed = collapsed

    @torch.no_grad()
    def pictures(self, step: int, model: DoveModel | VQGAN, pixels: Tensor, names: list[str]) -> None:
        """Draw pictures/step-N.dove.png: held-out images [N, 3, S, S] in [-1, 1] at several lengths."""
        if self.quiet:
            return
        rows = [_row(model, image[None], Path(name).name) for image, name in zip(pixels, names, strict=True)]
        folder = self.folder / "pictures"
        folder.mkdir(exist_ok=True)
        with atomic_write(folder / f"step-{step:07d}.dove.png") as temporary:
            draw_sheet(rows).save(temporary, format="PNG")


def _row(model: DoveModel | VQGAN, image: Tensor, name: str) -> Row:
    if isinstance(model, VQGAN):
        latents = model.encode(image)
        codes = latents if model.quantize is None else model.quantize(latents)[0]
        return Row(name, _visible(image), [], (latents.shape[1], _visible(model.decode(codes))))
    tokens, hidden, _ = model.generate(model.condition(image))
    own = model.generator.lengths(hidden)
    counts = [n for n in PICTURE_COUNTS if n <= model.config.num_tokens]
    fixed = [(n, _visible(model.render(tokens, torch.full_like(own, n)))) for n in counts]
    return Row(name, _visible(image), fixed, (int(own[0]), _visible(model.render(tokens, own))))


def _visible(image: Tensor) -> Tensor:
    return image[0].float().add(1).div(2).clamp(0, 1).cpu()


def _rounded(value: float) -> float | str:
    return float(f"{value:.6g}") if math.isfinite(value) else str(value)


def _short(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"
