"""The training loop: one model, all parts jointly, lengths sampled for each image.

    dove train --data photos/ shard-0000.tar --validate held-out/ --output run/

starts dove-tiny from its closed-form linear code and writes run/checkpoint.pt (resumed by the same command),
run/log.jsonl and, at the end, run/model/ for DoveModel.from_pretrained.
"""

from __future__ import annotations

import dataclasses
import json
import math
import pickle
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dove_ext.config import PRESETS, DoveConfig
from dove_ext.files import atomic_write
from dove_ext.models.dove import DoveModel
from dove_ext.pretrained import find_model, load_config
from dove_train.data import TrainingImages
from dove_train.evaluate import evaluate
from dove_train.initialise import fit_linear_code, freeze_linear_code, silence_branches
from dove_train.losses import (
    LengthTarget,
    RelativeLoss,
    reconstruction_loss,
    sample_lengths,
    stop_loss,
)
from dove_train.settings import Settings, TrainingError


def start_config(settings: Settings) -> DoveConfig:
    """The shape that a run trains: that of the model it starts from, or a preset's.

    Raises:
        TrainingError: if the preset is unknown or has no closed form to start from.
        CheckpointError: if there is no model to start from.
    """
    if settings.start_from:
        return load_config(find_model(settings.start_from))
    if settings.preset not in PRESETS:
        raise TrainingError(f"no preset is named {settings.preset!r}; known are {', '.join(PRESETS)}")
    config = PRESETS[settings.preset]
    if not (config.shortcut and config.vqgan.patch_shortcut):
        raise TrainingError(
            f"{settings.preset!r} has no linear code to start from; make a model with `dove convert` "
            "and give it as start_from"
        )
    return config


class Run:
    """The state of a training run and its steps."""

    def __init__(self, settings: Settings, images: TrainingImages, held_out: Tensor, folder: Path) -> None:
        self.settings, self.images, self.held_out, self.folder = settings, images, held_out, folder
        torch.manual_seed(settings.seed)
        self.random = torch.Generator().manual_seed(settings.seed)
        config = dataclasses.replace(start_config(settings), name=settings.name or folder.resolve().name)
        self.model = DoveModel(config).train()
        self.averaged = DoveModel(config).eval()
        if settings.freeze_linear_code:
            freeze_linear_code(self.model)
        head = set(self.model.generator.embed_out.parameters())
        body = [p for p in self.model.parameters() if p not in head and p.requires_grad]
        self.optimizer = torch.optim.AdamW(
            [
                {"params": [p for p in body if p.dim() > 1], "weight_decay": settings.weight_decay},
                {"params": [p for p in body if p.dim() <= 1], "weight_decay": 0.0},
                {"params": list(head), "weight_decay": 0.0},
            ],
            lr=settings.learning_rate,
            betas=(0.9, 0.95),
        )
        self.relative = RelativeLoss(self.model.config.num_tokens)
        self.lengths = LengthTarget(settings.target_length, threshold=settings.start_threshold)
        self.step = 0
        self.seconds = 0.0

    @property
    def total_steps(self) -> int:
        """Steps of all phases."""
        return sum(steps for _, steps in self.phases)

    @property
    def phases(self) -> list[tuple[str, int]]:
        """The stages of the run in order, each with its steps."""
        s = self.settings
        return [("joint", s.joint_steps), ("decoder", s.decoder_steps), ("head", s.head_steps)]

    def phase(self) -> tuple[str, int, int]:
        """Name of the stage that the next step belongs to, that step's place in it, and its steps."""
        step = self.step
        for name, steps in self.phases:
            if step < steps:
                return name, step, steps
            step -= steps
        raise ValueError(f"the run has {self.total_steps} steps, all of which are done")

    def start(self) -> None:
        """Resume from the checkpoint of this folder, or start from the closed form."""
        checkpoint = self.folder / "checkpoint.pt"
        if checkpoint.exists():
            self.load(checkpoint)
            self.log({"resumed_at_step": self.step})
            return
        if self.settings.start_from:
            self.model.load_state_dict(DoveModel.from_pretrained(self.settings.start_from).state_dict())
            if self.settings.silence_branches:
                silence_branches(self.model)
        else:
            chunks = [self.images.batch(32) for _ in range(self.settings.fit_images // 32)]
            self.images.position = 0
            fit_linear_code(self.model, torch.cat(chunks))
        self.averaged.load_state_dict(self.model.state_dict())
        self.log({"settings": dataclasses.asdict(self.settings), "images": len(self.images)})
        self.log({"step": 0, "validation": self.evaluate()})

    def learning_rate(self) -> float:
        """Linear warm-up, then a cosine to a twentieth; each phase starts it again."""
        s = self.settings
        _, step, total = self.phase()
        warm = min(1.0, (step + 1) / min(s.warmup_steps, max(1, total // 4)))
        return s.learning_rate * warm * (0.525 + 0.475 * math.cos(math.pi * step / total))

    def take_step(self) -> dict[str, float]:
        """One optimiser step; returns what is logged."""
        s = self.settings
        phase, *_ = self.phase()
        pixels = self.images.batch(s.batch_size)
        kept = sample_lengths(s.batch_size, self.model.config.num_tokens, s.full_share, self.random)
        rate = self.learning_rate()
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        with torch.autocast("cpu", torch.bfloat16, enabled=s.bf16):
            with torch.set_grad_enabled(phase == "joint"):
                tokens, hidden = self.model.generate(pixels)
            with torch.set_grad_enabled(phase != "head"):
                loss = reconstruction_loss(self.model.render(tokens, kept), pixels)
        p_eos = self.model.generator.p_eos(hidden.float())
        if self.lengths.threshold == 0:
            self.lengths.threshold = loss.detach().mean().item()
        stop = stop_loss(p_eos, kept, loss, self.lengths.threshold)
        own = self.own_lengths(p_eos)
        objective = s.lambda_eos * stop
        if phase != "head":
            objective = objective + (loss * self.relative.weight(loss, kept)).mean()
        self.optimizer.zero_grad(set_to_none=True)
        objective.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), s.clip)
        if torch.isfinite(norm):
            self.optimizer.step()
        self.lengths.update(own.mean().item())
        self.step += 1
        self.average()
        return {
            "mse": loss.mean().item(),
            "relative": objective.item(),
            "stop": stop.item(),
            "length": own.mean().item(),
            "threshold": self.lengths.threshold,
            "grad_norm": norm.item(),
            "lr": rate,
        }

    def own_lengths(self, p_eos: Tensor) -> Tensor:
        """Where the stop head would stop, from its curve: float [B]."""
        stops = p_eos.detach() > 0.5
        return torch.where(stops.any(1), stops.int().argmax(1), stops.shape[1]).clamp_min(1).float()

    @torch.no_grad()
    def average(self) -> None:
        """Move the averaged weights towards the current ones, faster in the first steps."""
        decay = min(self.settings.ema, (1 + self.step) / (10 + self.step))
        for mean, value in zip(self.averaged.parameters(), self.model.parameters(), strict=True):
            mean.lerp_(value, 1 - decay)
        for mean, value in zip(self.averaged.buffers(), self.model.buffers(), strict=True):
            mean.copy_(value)

    def evaluate(self) -> dict[str, Any]:
        """Measure the averaged weights on the held-out images."""
        return evaluate(self.averaged, self.held_out)

    def run(self, report: Callable[[str], None] = print) -> dict[str, Any]:
        """Train to the end; returns the last evaluation."""
        s = self.settings
        while self.step < self.total_steps:
            began = time.perf_counter()
            values = self.take_step()
            self.seconds += time.perf_counter() - began
            if self.step % 10 == 0:
                speed = s.batch_size * self.step / self.seconds
                self.log({"step": self.step, "images_per_s": round(speed, 2), **values})
                report(
                    f"step {self.step}/{self.total_steps}  {speed:.1f} images/s  mse {values['mse']:.5f}  "
                    f"stop {values['stop']:.3f}  length {values['length']:.0f}  "
                    f"threshold {values['threshold']:.5f}"
                )
            if self.step % s.evaluate_every == 0:
                self.log({"step": self.step, "validation": self.evaluate()})
            if self.step % s.checkpoint_every == 0 or self.step == self.total_steps:
                self.save(self.folder / "checkpoint.pt")
        result = self.evaluate()
        self.log({"step": self.step, "seconds": round(self.seconds), "validation": result})
        self.averaged.save_pretrained(self.folder / "model", dtype=torch.float16)
        return result

    def log(self, record: dict[str, Any]) -> None:
        """Append one line to log.jsonl."""
        with (self.folder / "log.jsonl").open("a") as file:
            file.write(json.dumps(record) + "\n")

    def save(self, path: Path) -> None:
        """Write everything a resumed run needs."""
        state = {
            "settings": dataclasses.asdict(self.settings),
            "step": self.step,
            "seconds": self.seconds,
            "model": self.model.state_dict(),
            "averaged": self.averaged.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "random": self.random.get_state(),
            "position": self.images.position,
            "relative": self.relative.mean,
            "threshold": self.lengths.threshold,
        }
        with atomic_write(path) as temporary:
            torch.save(state, temporary)

    def load(self, path: Path) -> None:
        """Continue a run; its settings must be the ones given, except for the number of steps."""
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
        except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
            raise TrainingError(
                f"{path} cannot be read; remove it to start again, or use another output"
            ) from error
        free = {"joint_steps", "decoder_steps", "head_steps", "checkpoint_every", "evaluate_every"}
        for name, value in dataclasses.asdict(self.settings).items():
            if name not in free and state["settings"].get(name) != value:
                raise TrainingError(
                    f"{path} was written with {name}={state['settings'].get(name)}, "
                    f"this run has {name}={value}; use the same settings or another --output"
                )
        self.model.load_state_dict(state["model"])
        self.averaged.load_state_dict(state["averaged"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.random.set_state(state["random"])
        self.step, self.seconds, self.images.position = state["step"], state["seconds"], state["position"]
        self.relative.mean, self.lengths.threshold = state["relative"], state["threshold"]
