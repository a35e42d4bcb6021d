"""One stage of a run: the steps that train its parts, through its path, by its losses."""

from __future__ import annotations

import math
import statistics
import time
from contextlib import nullcontext
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from dove_ext.models.text import QueryTokenizer
from dove_train.alignment import STATISTICS_IMAGES, Alignment, draw_views
from dove_train.data import Batch, batches, to_range
from dove_train.distributed import whole
from dove_train.length_sampling import sample_lengths
from dove_train.optimizer import (
    MOST_BROKEN_STEPS,
    eos_weight,
    learning_rate,
    load_optimizer,
    make_optimizer,
    optimizer_state,
)
from dove_train.pointing import draw_classes
from dove_train.queries import every_query, understood
from dove_train.run import Run
from dove_train.schedule import PACE_STEPS, Place
from dove_train.settings import TrainingError
from dove_train.stages import (
    AlignedAutoencoderPass,
    FeaturesPass,
    Outputs,
    make_pass,
    recompute_activations,
    trained_parameters,
)


class StepPlan(NamedTuple):
    """What all passes of a step share."""

    learning_rate: float
    lambda_eos: float
    lengths: Tensor  # int32 [images of the step], over all passes and processes
    undecided: int  # of these, how many are below K
    adversarial: bool  # whether lambda_gan L_gan is added


class Asked(NamedTuple):
    """What the queries of a pass give its path and its losses."""

    query: tuple[Any, ...] = ()  # the path's last argument; nothing where nobody asks
    boxes: list[Tensor] | None = None  # float32 [n, 4] of each image


class StageRun:
    """A stage while it is trained: its path, spread over the processes, its optimiser, its images.

    Args:
        run: what lives longer; its model, averaged weights, schedule and objective move as the stage trains.
        name: which of the settings' stages.
        resumed: a checkpoint within this stage, to go on with; None at its first step.

    Attributes:
        path: the pass that is trained.
        optimizer: AdamW over the stage's parts.
        alignment: of a stage that aligns features, with its heads and statistics.
    """

    def __init__(self, run: Run, name: str, resumed: dict[str, Any] | None) -> None:
        s, world = run.settings, run.world
        self.run, self.name, self.stage = run, name, s.stages[name]
        self.broken_steps = 0  # in a row
        run.load_stage_weights(resumed=resumed is not None)
        run.model.requires_grad_(False)
        trained = trained_parameters(run.model, self.stage)
        for parameter in trained:
            parameter.requires_grad_(True)
        self.seed_noise(6, run.step)  # of layers that the path brings along
        path: nn.Module = make_pass(run.model, self.stage, s)
        self.alignment: Alignment | None = None
        if isinstance(path, (FeaturesPass, AlignedAutoencoderPass)):
            self.alignment = path.alignment.to(world.device)
            self.start_alignment(self.alignment, resumed)
            trained += self.alignment.heads.parameters()
        if s.activation_checkpointing:
            recompute_activations(path)
        path = world.spread(path)
        if world.sharded:
            trained = [p for p in path.parameters() if p.requires_grad]
            run.averaged.restore(run.averaged.state(), run.model)
        self.optimizer = make_optimizer(trained, s)
        if resumed is not None:
            load_optimizer(path, self.optimizer, resumed["optimizer"], world)
        self.path: Any = torch.compile(path) if s.compile else path
        self.images = batches(
            run.images,
            start=run.position,
            batch_size=s.batch_size,
            rank=world.rank,
            world_size=world.size,
            workers=s.workers,
        )

    def start_alignment(self, alignment: Alignment, resumed: dict[str, Any] | None) -> None:
        """Give it its statistics, the same in every process: a checkpoint's, or those of the first images."""
        if resumed is not None:
            alignment.load_state_dict(resumed["alignment"])
            return
        pixels = torch.stack([self.run.images.photograph(i).pixels for i in range(STATISTICS_IMAGES)])
        alignment.measure(to_range(pixels), self.run.settings.batch_size)

    def seed_noise(self, *place: int) -> None:
        """Start torch's generator from the seed and a place in the run."""
        state = np.random.SeedSequence((self.run.settings.seed, *place)).generate_state(1)
        torch.manual_seed(state[0].item())

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps of the stage; every process must call it."""
        return {
            "optimizer": optimizer_state(self.path, self.optimizer, self.run.world),
            "alignment": None if self.alignment is None else self.alignment.state(),
        }

    # --- The loop -------------------------------------------------------------------------------------

    def train(self) -> None:
        """Take the stage's steps, from where the run stands in it to its end."""
        run, s = self.run, self.run.settings
        paces: list[float] = []  # seconds of the stage's first steps
        seconds, images = 0.0, 0  # of the steps since the last progress line
        while run.schedule.within(self.name):
            tick = time.perf_counter()
            values = self.take_step()
            took = time.perf_counter() - tick
            run.seconds += took
            seconds, images = seconds + took, images + run.global_batch
            if len(paces) < PACE_STEPS:
                paces.append(took)
            if (
                s.minutes and run.schedule.done(self.name) == PACE_STEPS
            ):  # once: a resumed stage keeps its plan
                # The median: on a GPU the first step loads kernels and can take as long as a hundred others.
                run.schedule.shorten(self.name, run.world.mean(statistics.median(paces)))
            if run.step % s.log_every == 0:
                values = {"images/s": images / seconds, **values}
                run.report.progress(run.step, run.schedule.total, self.name, values)
                seconds, images = 0.0, 0
            ended = not run.schedule.within(self.name)
            if s.picture_every and run.step % s.picture_every == 0:
                run.draw_pictures()
            if run.step % s.evaluate_every == 0 and not ended:
                run.evaluate()
            if run.step % s.checkpoint_every == 0 or ended:
                run.save(self.state())

    def take_step(self) -> dict[str, float]:
        """One optimiser step; returns what is logged."""
        run, world, objective = self.run, self.run.world, self.run.objective
        place = run.schedule.place()
        assert place is not None
        plan = self.plan(place)
        for group in self.optimizer.param_groups:
            group["lr"] = plan.learning_rate
        self.seed_noise(4, run.step, world.rank)  # of this step alone

        self.optimizer.zero_grad(set_to_none=True)
        tally: dict[str, Tensor] = {}  # sums over this process's images
        names: list[str] = []
        skipped: dict[str, str] = {}
        judged: list[tuple[Tensor, Tensor]] = []  # what the discriminator learns from: real, reconstructed
        for part in range(run.settings.accumulate):
            batch = next(self.images)
            names += batch.names
            skipped |= batch.skipped
            pixels = self.pixels(batch, part)
            asked, refused = self.asked(batch)
            skipped |= refused
            outputs, values = self.forward_backward(pixels, plan, part, asked)
            for name, value in values.items():
                tally[name] = tally.get(name, torch.zeros_like(value)) + value
            if plan.adversarial and outputs.reconstruction is not None:
                judged.append((pixels, outputs.reconstruction.detach()))
        run.position += run.global_batch
        norm = self.clip()
        self.update(norm, names)

        means = self.means(tally, skipped)
        if math.isfinite(norm) and math.isfinite(means["loss"]):
            objective.update(means, plan.lambda_eos)
        if plan.adversarial and objective.adversary is not None and math.isfinite(norm):
            means["discriminator"] = objective.adversary.step(judged)
        if "length" in means:
            means |= {"threshold": objective.threshold.value(0.0), "lambda": plan.lambda_eos}
            run.report.check_lengths(means["length"], run.slots, plan.lambda_eos)
        run.schedule.step += 1
        run.averaged.update(run.model, place.step + 1)
        return {**means, "norm": norm, "lr": plan.learning_rate}

    # --- Its parts, in order --------------------------------------------------------------------------

    def plan(self, place: Place) -> StepPlan:
        """The step's rates and weights, and the lengths of all its images (2.2)."""
        run, s = self.run, self.run.settings
        lengths = sample_lengths(s.seed, run.position, run.global_batch, run.slots, s.full_share)
        return StepPlan(
            learning_rate=learning_rate(s, self.stage, place.step, place.steps),
            lambda_eos=eos_weight(s, place.step, place.steps),
            lengths=lengths,
            undecided=int((lengths < run.slots).sum()),
            adversarial=run.objective.adversary is not None
            and run.step >= s.gan_start
            and self.stage.path != "features",
        )

    def pixels(self, batch: Batch, part: int) -> Tensor:
        """A batch on the device, [B, 3, S, S] in [-1, 1]; a stage's crop is the same square for all of it."""
        run, crop = self.run, self.stage.crop
        pixels = to_range(batch.pixels.to(run.world.device, non_blocking=True))
        if crop and crop < pixels.shape[-1]:
            random = np.random.default_rng((run.settings.seed, 3, run.step, part))
            top, left = random.integers(pixels.shape[-1] - crop + 1, size=2)
            pixels = pixels[..., top : top + crop, left : left + crop]
        return pixels.contiguous(memory_format=torch.channels_last)

    def asked(self, batch: Batch) -> tuple[Asked, dict[str, str]]:
        """What a batch asks for, on the device, and which of its texts were refused."""
        if self.stage.path != "query":
            return Asked(), {}
        tokenizer = self.run.model.tokenizer
        assert isinstance(tokenizer, QueryTokenizer)
        owners: list[int] | None = None
        if self.stage.train == ["relevance"]:
            batch, owners = every_query(batch)
        query, boxes, refused = understood(tokenizer, batch)
        asked: tuple[Any, ...] = tuple(query.to(self.run.world.device))
        if owners is not None:
            asked = (*asked, torch.tensor(owners, device=self.run.world.device))
        return Asked((asked,), boxes), refused

    def forward_backward(
        self, pixels: Tensor, plan: StepPlan, part: int, asked: Asked
    ) -> tuple[Outputs, dict[str, Tensor]]:
        """One pass and its gradient, which is shared with the other processes at the step's last pass."""
        s, world = self.run.settings, self.run.world
        hold = part < s.accumulate - 1 and hasattr(self.path, "no_sync")
        with self.path.no_sync() if hold else nullcontext():
            with torch.autocast(world.device.type, torch.bfloat16, enabled=s.bf16):
                outputs: Outputs = self.path(pixels, *self.draws(plan, part), *asked.query)
                loss, values = self.run.objective(
                    outputs,
                    pixels,
                    lambda_eos=plan.lambda_eos,
                    undecided=plan.undecided,
                    adversarial=plan.adversarial,
                    boxes=asked.boxes,
                )
            loss.backward()
        return outputs, values

    def draws(self, plan: StepPlan, part: int) -> tuple[Any, ...]:
        """What chance decides for the images of a pass: views, classes that a map is asked for, or lengths.

        With the views comes how many tokens, with the lengths their sum. Lengths None: the model's own.
        """
        s, world = self.run.settings, self.run.world
        first = (part * world.size + world.rank) * s.batch_size
        if self.alignment is not None:
            # One number of tokens for all images of a step: positions behind it need not run.
            return draw_views(s.seed, self.run.position + first, s.batch_size), int(plan.lengths[0])
        if self.stage.train == ["relevance"]:
            return (draw_classes(s.seed, self.run.position + first, s.batch_size),)
        if s.eos_rule == "paper":
            return None, None
        lengths = plan.lengths[first : first + s.batch_size]
        return lengths.to(world.device), int(lengths.sum())

    def clip(self) -> float:
        """Shorten the gradient to the largest norm allowed; returns its norm before, over all processes."""
        trained = [p for group in self.optimizer.param_groups for p in group["params"]]
        return float(whole(torch.nn.utils.clip_grad_norm_(trained, self.run.settings.clip)))

    def update(self, norm: float, names: list[str]) -> None:
        """Move the weights, unless the loss or its gradient is not finite; a row of such steps ends the run.

        Raises:
            TrainingError: after ten such steps in a row.
        """
        run = self.run
        if math.isfinite(norm):
            self.optimizer.step()
            self.broken_steps = 0
            return
        self.broken_steps += 1
        names = [name for each in run.world.gather(names) for name in each]
        shown = ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
        run.report.warn(f"step {run.step}: loss or gradient is not finite; skipped; images: {shown}")
        if self.broken_steps == MOST_BROKEN_STEPS:
            raise TrainingError(
                "ten steps in a row had a loss or gradient that is not finite; lower learning_rate, or look "
                f"at the images named in {run.folder / 'log.jsonl'}"
            )

    def means(self, tally: dict[str, Tensor], skipped: dict[str, str]) -> dict[str, float]:
        """A step's means over the images of all processes; unreadable images in any of them are counted."""
        world = self.run.world
        tally = {**tally, "skipped": torch.full_like(tally["images"], len(skipped))}
        shared = world.sum(torch.stack(list(tally.values())))
        means = {n: (v / shared[0]).item() for n, v in zip(tally, shared, strict=True)}
        del means["images"]
        if means.pop("skipped"):
            for each in world.gather(skipped):
                self.run.skipped.add(each)
        return means
