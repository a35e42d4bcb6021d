"""The training loop: stages in order, each a path through the model, its trained parts and its losses.

    dove train recipes/dove-tiny.yaml --data photos/ --validation held-out/ -o runs/mine

writes checkpoints/ (the same command goes on from the newest), log.jsonl, pictures/ and, at the end, model/.
A step is a function of the settings, the weights and the step's number alone: the order of images, their
augmentation, the sampled lengths and all noise are drawn from the seed and the place in the run, so a
resumed run needs no state of any random generator. (The tokens' noise in the Gaussian variant also
depends on the process and its batch.)
"""

from __future__ import annotations

import copy
import dataclasses
import math
import time
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dove_ext.atomic import make_writable_folder
from dove_ext.models.dove import DoveModel
from dove_train.alignment import STATISTICS_IMAGES, Alignment, draw_views
from dove_train.averaging import AveragedWeights
from dove_train.build import build_model
from dove_train.checkpoints import newest_checkpoint, require_same_run, write_checkpoint
from dove_train.data import (
    Augmentation,
    Batch,
    SkippedImages,
    TrainingImages,
    batches,
    held_out_images,
)
from dove_train.distributed import World, whole
from dove_train.evaluate import evaluate
from dove_train.initialise import fit_linear_code, has_closed_form
from dove_train.length_sampling import sample_lengths
from dove_train.objective import Objective
from dove_train.optimizer import eos_weight, learning_rate, load_optimizer, make_optimizer, optimizer_state
from dove_train.progress import Reporter
from dove_train.schedule import PACE_STEPS, Schedule
from dove_train.settings import Settings, Stage, TrainingError
from dove_train.stages import FeaturesPass, make_pass, recompute_activations, trained_parameters


class Run:
    """The state of a training run and its steps."""

    def __init__(self, settings: Settings, folder: Path, world: World) -> None:
        if not any(stage.steps for stage in settings.stages.values()):
            raise TrainingError("the recipe has no stages with steps; name at least one, and its steps")
        self.settings, self.world = settings, world
        self.folder = make_writable_folder(folder)
        self.report = Reporter(folder, quiet=not world.leads, tensorboard=settings.tensorboard)
        self.model = build_model(settings, folder).to(world.device).train()
        self.schedule = Schedule(settings)
        for name, stage in settings.stages.items():  # a part or a path that the model lacks is found out now
            if self.schedule.planned[name]:
                make_pass(self.model, stage, settings), trained_parameters(self.model, stage)
        size = self.model.config.image_size if isinstance(self.model, DoveModel) else 256
        validation = [Path(p) for p in settings.validation]
        synsets = Path(settings.synsets) if settings.synsets else None
        self.held_out, self.held_out_names = held_out_images(
            validation, size, settings.validation_limit, synsets
        )
        self.images = TrainingImages(
            [Path(p) for p in settings.data],
            size,
            settings.seed,
            augmentation=Augmentation(settings.crop_scale, settings.flip, settings.grey),
            synsets=synsets,
            min_side=settings.min_side,
        )
        self.skipped = SkippedImages(settings.max_unreadable, self.report.warn)
        self.objective = Objective(settings, world)
        self.averaged = AveragedWeights(self.model, settings.ema)
        self.position = 0  # samples of all processes
        self.seconds = 0.0
        self.broken_steps = 0  # in a row
        self.resumed: dict[str, Any] | None = None  # a checkpoint in the middle of a stage, to go on with
        self.alignment: Alignment | None = None  # of a stage that aligns features

    # --- Where the run is -----------------------------------------------------------------------------

    @property
    def slots(self) -> int:
        """K, or 1 for a model without tokens."""
        return self.model.config.num_tokens if isinstance(self.model, DoveModel) else 1

    @property
    def step(self) -> int:
        """The next step, over all stages, from 0."""
        return self.schedule.step

    @property
    def global_batch(self) -> int:
        """Images of one step, over passes and processes."""
        return self.settings.batch_size * self.settings.accumulate * self.world.size

    def start(self) -> None:
        """Go on from the newest checkpoint of the folder, or begin."""
        state = newest_checkpoint(self.folder / "checkpoints", self.report.warn)
        if state is not None:
            self.restore(state)
            self.report.resume_at(self.step)
            self.report.say(f"going on at step {self.step} of {self.schedule.total}")
            return
        self.report.begin()
        s = self.settings
        if s.closed_form and not s.start_from and has_closed_form(self.model):
            pixels = torch.stack([self.images[i].pixels for i in range(s.fit_images)])
            fit_linear_code(self.model.cpu(), to_range(pixels))
            self.model.to(self.world.device)
        self.averaged.reset(self.model)
        self.report.log({"settings": dataclasses.asdict(s), "images": len(self.images)})
        self.evaluate()

    # --- Training -------------------------------------------------------------------------------------

    def run(self) -> dict[str, Any]:
        """Train to the end and save the averaged weights; returns the last evaluation."""
        while (place := self.schedule.place()) is not None:
            self.run_stage(place.stage)
        result = self.evaluate()
        self.report.log({"step": self.step, "seconds": round(self.seconds)})
        model = self.averaged.model()
        if self.world.leads:
            model.save_pretrained(self.folder / "model", dtype=torch.float16)
        self.world.wait()
        return result

    def run_stage(self, name: str) -> None:
        """Train one stage from where the run is in it to its end."""
        s, stage = self.settings, self.settings.stages[name]
        path, optimizer = self.prepare(stage)
        stream = batches(
            self.images,
            start=self.position,
            batch_size=s.batch_size,
            rank=self.world.rank,
            world_size=self.world.size,
            workers=s.workers,
        )
        began, first = time.perf_counter(), self.schedule.done(name)
        since = [0.0, 0.0]  # seconds and images of the steps since the last progress line
        while self.schedule.within(name):
            tick = time.perf_counter()
            values = self.take_step(stage, path, optimizer, stream)
            took = time.perf_counter() - tick
            self.seconds += took
            since = [since[0] + took, since[1] + self.global_batch]
            if s.minutes and self.schedule.done(name) == PACE_STEPS:  # once: a resumed stage keeps its plan
                pace = self.mean(time.perf_counter() - began) / (PACE_STEPS - first)
                self.schedule.shorten(name, pace)
            if self.step % s.log_every == 0:
                values = {"images/s": since[1] / since[0], **values}
                self.report.progress(self.step, self.schedule.total, name, values)
                since = [0.0, 0.0]
            ended = not self.schedule.within(name)
            if s.picture_every and self.step % s.picture_every == 0:
                shown = self.held_out[:4].to(self.world.device)
                self.report.pictures(self.step, self.averaged.model(), shown, self.held_out_names[:4])
            if self.step % s.evaluate_every == 0 and not ended:
                self.evaluate()
            if self.step % s.checkpoint_every == 0 or ended:
                self.save(path, optimizer)

    def prepare(self, stage: Stage) -> tuple[nn.Module, torch.optim.AdamW]:
        """What a stage runs: its path, spread over the processes, and a new optimiser.

        It begins with the averaged weights of the stage before, which are what is saved: what it trains has
        to fit them.
        """
        state = self.averaged.state() if self.resumed is None else self.model.state_dict()
        weights = {name: whole(t) for name, t in state.items()}
        if self.world.sharded:  # shards are laid out for one stage: the next starts from whole weights
            self.model = copy.deepcopy(self.averaged.model()).train()
            self.model.to(memory_format=torch.contiguous_format)  # FSDP2 shards no channels-last weights
        self.model.load_state_dict(weights)
        self.model.requires_grad_(False)
        trained = trained_parameters(self.model, stage)
        for parameter in trained:
            parameter.requires_grad_(True)
        self.seed_noise(6, self.step)  # of layers that the path brings along
        path: nn.Module = make_pass(self.model, stage, self.settings)
        self.alignment = path.alignment.to(self.world.device) if isinstance(path, FeaturesPass) else None
        if self.alignment is not None:
            self.start_alignment(self.alignment)
            trained += self.alignment.heads.parameters()
        if self.settings.activation_checkpointing:
            recompute_activations(path)
        path = self.world.spread(path)
        if self.world.sharded:
            trained = [p for p in path.parameters() if p.requires_grad]
            self.averaged.restore(self.averaged.state(), self.model)
        optimizer = make_optimizer(trained, self.settings)
        if self.resumed is not None:
            load_optimizer(path, optimizer, self.resumed["optimizer"], self.world)
            self.resumed = None
        return torch.compile(path) if self.settings.compile else path, optimizer  # type: ignore[return-value]

    def seed_noise(self, *place: int) -> None:
        """Start torch's generator from the seed and a place in the run."""
        state = np.random.SeedSequence((self.settings.seed, *place)).generate_state(1)
        torch.manual_seed(state[0].item())

    def start_alignment(self, alignment: Alignment) -> None:
        """Give it its statistics, the same in every process: a checkpoint's, or those of the first images."""
        if self.resumed is not None:
            alignment.load_state_dict(self.resumed["alignment"])
            return
        pixels = torch.stack([self.images[i].pixels for i in range(STATISTICS_IMAGES)])
        alignment.measure(to_range(pixels), self.settings.batch_size)

    def mean(self, value: float) -> float:
        """The mean of a number over all processes."""
        return self.world.sum(torch.tensor(value, device=self.world.device)).item() / self.world.size

    def take_step(
        self, stage: Stage, path: nn.Module, optimizer: torch.optim.AdamW, stream: Iterator[Batch]
    ) -> dict[str, float]:
        """One optimiser step; returns what is logged."""
        s, world, objective = self.settings, self.world, self.objective
        place = self.schedule.place()
        assert place is not None
        rate = learning_rate(s, stage, place.step, place.steps)
        lambda_eos = eos_weight(s, place.step, place.steps)
        for group in optimizer.param_groups:
            group["lr"] = rate
        # Noise of this step alone: a resumed run needs no state of the generator.
        self.seed_noise(4, self.step, world.rank)
        lengths = sample_lengths(s.seed, self.position, self.global_batch, self.slots, s.full_share)
        undecided = int((lengths < self.slots).sum())
        adversarial = (
            objective.adversary is not None and self.step >= s.gan_start and stage.path != "features"
        )
        tally: dict[str, Tensor] = {}
        names, judged = [], []
        skipped: dict[str, str] = {}
        optimizer.zero_grad(set_to_none=True)
        for part in range(s.accumulate):
            batch = next(stream)
            skipped |= batch.skipped
            names += batch.names
            pixels = self.pixels(batch, stage, part)
            first = (part * world.size + world.rank) * s.batch_size
            drawn = None if s.eos_rule == "paper" else lengths[first : first + s.batch_size].to(world.device)
            if stage.path == "features":
                drawn = draw_views(s.seed, self.position + first, s.batch_size)
            hold = part < s.accumulate - 1 and hasattr(path, "no_sync")
            with path.no_sync() if hold else nullcontext():  # type: ignore[operator]
                with torch.autocast(world.device.type, torch.bfloat16, enabled=s.bf16):
                    outputs = path(pixels, drawn)
                    loss, values = objective(
                        outputs, pixels, lambda_eos=lambda_eos, undecided=undecided, adversarial=adversarial
                    )
                loss.backward()
            for name, value in values.items():
                tally[name] = tally.get(name, torch.zeros_like(value)) + value
            if adversarial:
                judged.append((pixels, outputs.reconstruction.detach()))
        self.position += self.global_batch
        norm = self.clip(optimizer)
        self.finish(optimizer, norm, names)
        tally["skipped"] = torch.full_like(tally["images"], len(skipped))
        shared = world.sum(torch.stack(list(tally.values())))
        means = {n: (v / shared[0]).item() for n, v in zip(tally, shared, strict=True)}
        del means["images"]
        if means.pop("skipped"):  # in any process: all of them count alike
            for each in world.gather(skipped):
                self.skipped.add(each)
        if math.isfinite(norm) and math.isfinite(means["loss"]):
            objective.update(means, lambda_eos)
        if adversarial and objective.adversary is not None and math.isfinite(norm):
            means["discriminator"] = objective.adversary.step(judged)
        if "length" in means:
            means |= {"threshold": objective.threshold.value(0.0), "lambda": lambda_eos}
            self.report.check_lengths(means["length"], self.slots, lambda_eos)
        self.schedule.step += 1
        self.averaged.update(self.model, place.step + 1)
        return {**means, "norm": norm, "lr": rate}

    def pixels(self, batch: Batch, stage: Stage, part: int) -> Tensor:
        """A batch on the device, [B, 3, S, S] in [-1, 1]; a stage's crop is the same square for all of it."""
        pixels = to_range(batch.pixels.to(self.world.device, non_blocking=True))
        if stage.crop and stage.crop < pixels.shape[-1]:
            random = np.random.default_rng((self.settings.seed, 3, self.step, part))
            top, left = random.integers(pixels.shape[-1] - stage.crop + 1, size=2)
            pixels = pixels[..., top : top + stage.crop, left : left + stage.crop]
        return pixels.contiguous(memory_format=torch.channels_last)

    def clip(self, optimizer: torch.optim.AdamW) -> float:
        """Shorten the gradient to the largest norm allowed; returns its norm before, over all processes."""
        trained = [p for group in optimizer.param_groups for p in group["params"]]
        return float(whole(torch.nn.utils.clip_grad_norm_(trained, self.settings.clip)))

    def finish(self, optimizer: torch.optim.AdamW, norm: float, names: list[str]) -> None:
        """Take the step, unless the loss or its gradient is not finite; a run of such steps ends the run.

        Raises:
            TrainingError: after ten such steps in a row.
        """
        if math.isfinite(norm):
            optimizer.step()
            self.broken_steps = 0
            return
        self.broken_steps += 1
        names = [name for each in self.world.gather(names) for name in each]
        shown = ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
        self.report.warn(f"step {self.step}: loss or gradient is not finite; skipped; images: {shown}")
        if self.broken_steps == 10:
            raise TrainingError(
                "ten steps in a row had a loss or gradient that is not finite; lower learning_rate, or look "
                f"at the images named in {self.folder / 'log.jsonl'}"
            )

    # --- Measuring and keeping ------------------------------------------------------------------------

    def evaluate(self) -> dict[str, Any]:
        """Measure the averaged weights on the held-out images, and log it."""
        result = evaluate(self.averaged.model(), self.held_out)
        self.report.log({"step": self.step, "validation": result})
        return result

    def save(self, path: nn.Module, optimizer: torch.optim.AdamW) -> None:
        """Write everything a resumed run needs."""
        state = {
            "settings": dataclasses.asdict(self.settings),
            "global_batch": self.global_batch,
            "position": self.position,
            "seconds": self.seconds,
            "skipped": self.skipped.reasons,
            "planned": self.schedule.planned,
            "model": {name: whole(tensor) for name, tensor in self.model.state_dict().items()},
            "averaged": self.averaged.state(),
            "optimizer": optimizer_state(path, optimizer, self.world),
            "objective": self.objective.state(),
            "alignment": None if self.alignment is None else self.alignment.state(),
        }
        if self.world.leads:
            write_checkpoint(self.folder / "checkpoints", self.step, state, self.settings.keep_checkpoints)
        self.world.wait()

    def restore(self, state: dict[str, Any]) -> None:
        """Continue a run from its checkpoint's state.

        Raises:
            TrainingError: if it was another run.
        """
        require_same_run(state, self.settings, self.global_batch, self.folder / "checkpoints")
        self.schedule.step, self.schedule.planned = state["step"], state["planned"]
        self.position, self.seconds = state["position"], state["seconds"]
        self.skipped.reasons = state["skipped"]
        self.model.load_state_dict(state["model"])
        self.averaged.restore(state["averaged"], self.model)
        self.objective.restore(state["objective"])
        place = self.schedule.place()
        # At a stage's end its optimiser has done its work; the next stage makes its own.
        self.resumed = state if place is not None and place.step > 0 else None


def to_range(pixels: Tensor) -> Tensor:
    """uint8 pixels as float32 in [-1, 1]."""
    return pixels.float().div(127.5).sub(1)
