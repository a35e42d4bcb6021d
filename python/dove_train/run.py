"""What a training run keeps over its stages: the model, its averaged weights, the objective, the data."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from typing import Any

import torch

from dove_ext.atomic import make_writable_folder
from dove_ext.models.dove import DoveModel
from dove_ext.models.vqgan import VQGAN
from dove_train.averaging import AveragedWeights
from dove_train.build import build_model
from dove_train.checkpoints import clear_away, newest_checkpoint, require_same_run, write_checkpoint
from dove_train.data import Augmentation, SkippedImages, TrainingImages, held_out_images, to_range
from dove_train.distributed import World, whole
from dove_train.evaluate import evaluate
from dove_train.fingerprint import fingerprint, require_same_data
from dove_train.initialise import fit_linear_code, has_closed_form
from dove_train.mosaics import Mosaics
from dove_train.objective import Objective
from dove_train.pointing import MORE_QUERIES
from dove_train.progress import Reporter
from dove_train.queries import QueryImages, folders, read_queries
from dove_train.schedule import Schedule
from dove_train.settings import Settings, TrainingError
from dove_train.stages import make_pass, pixels_of, trained_parameters


class Run:
    """The state of a training run. What lives only within one of its stages is a `StageRun`.

    Args:
        settings: of the run.
        folder: where its checkpoints, log, pictures and model go; made if it is not there.
        world: the processes of the run.

    Raises:
        TrainingError: if a stage cannot run: it is found out before the first step.
        DoveError: if the data, the model to start from or weights of a loss cannot be read.
    """

    def __init__(self, settings: Settings, folder: Path, world: World) -> None:
        if not any(stage.steps for stage in settings.stages.values()):
            raise TrainingError("the recipe has no stages with steps; name at least one, and its steps")
        self.settings, self.world = settings, world
        self.folder = make_writable_folder(folder)
        self.report = Reporter(folder, quiet=not world.leads, tensorboard=settings.tensorboard)
        self.model: DoveModel | VQGAN = build_model(settings, folder).to(world.device).train()
        self.schedule = Schedule(settings)
        for name, stage in settings.stages.items():  # a part or a path that the model lacks is found out now
            if self.schedule.planned[name]:
                make_pass(self.model, stage, settings), trained_parameters(self.model, stage)
        size = pixels_of(self.model)
        validation = [Path(p) for p in settings.validation]
        synsets = Path(settings.synsets) if settings.synsets else None
        self.held_out, self.held_out_names = held_out_images(
            validation, size, settings.validation_limit, synsets
        )
        data = [Path(p) for p in settings.data]
        if settings.asks and not settings.start_from and has_closed_form(self.model):
            raise TrainingError(
                "a model's linear code is fitted to photographs and queries have none; give the folder of a "
                "model without queries as --start-from"
            )
        self.images = query_images(settings, size) if settings.asks else training_images(settings, size)
        found_in = [*data, *folders(settings.queries)]
        self.fingerprint = fingerprint(self.images.index, found_in, self.held_out)
        self.skipped = SkippedImages(settings.max_unreadable, self.report.warn)
        promise = self.model.config.promise if isinstance(self.model, DoveModel) else None
        self.objective = Objective(settings, world, promise)
        self.averaged = AveragedWeights(self.model, settings.ema)
        self.position = 0  # samples of all processes
        self.seconds = 0.0

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

    # --- Its beginning and its end --------------------------------------------------------------------

    def start(self) -> dict[str, Any] | None:
        """Begin, or go on from the newest checkpoint of the folder.

        Returns:
            dict or None: the checkpoint, if it stands within a stage: that stage goes on with it.

        Raises:
            TrainingError: if the checkpoints are another run's, or all damaged.
        """
        if self.world.leads:
            clear_away(self.folder)
        state = newest_checkpoint(self.folder / "checkpoints", self.report.warn)
        if state is None:
            self.begin()
            return None
        self.restore(state)
        self.report.resume_at(self.step)
        self.report.say(f"going on at step {self.step} of {self.schedule.total}")
        place = self.schedule.place()
        # At a stage's end its optimiser has done its work; the next stage makes its own.
        return state if place is not None and place.step > 0 else None

    def begin(self) -> None:
        """Start the log, fit the closed form where the model has one, and measure what it gives."""
        self.report.begin()
        s = self.settings
        if not s.start_from and has_closed_form(self.model):
            pixels = torch.stack([self.images.photograph(i).pixels for i in range(s.fit_images)])
            fit_linear_code(self.model.cpu(), to_range(pixels))
            self.model.to(self.world.device)
        self.averaged.reset(self.model)
        self.report.log({"settings": dataclasses.asdict(s), "images": len(self.images)})
        if isinstance(self.images, QueryImages):
            for line in self.images.report:
                self.report.say(line)
            self.report.log({"queries": self.images.report})
        self.evaluate()

    def load_stage_weights(self, *, resumed: bool) -> None:
        """Give the model, whole on each process, the weights that a stage goes on with, or begins with.

        It begins with the averaged weights of the stage before, which are what is saved: what it trains has
        to fit them.
        """
        state = self.model.state_dict() if resumed else self.averaged.state()
        weights = {name: whole(tensor) for name, tensor in state.items()}
        if self.world.sharded:  # shards are laid out for one stage: the next starts from whole weights
            self.model = copy.deepcopy(self.averaged.model()).train()
            self.model.to(memory_format=torch.contiguous_format)  # FSDP2 shards no channels-last weights
        self.model.load_state_dict(weights)

    def finish(self) -> dict[str, Any]:
        """Save the averaged weights as a model; returns their evaluation."""
        result = self.evaluate()
        self.report.log({"step": self.step, "seconds": round(self.seconds)})
        model = self.averaged.model()
        if self.world.leads:
            model.save_pretrained(self.folder / "model", dtype=torch.float16)
        self.world.wait()
        return result

    # --- Measuring and keeping ------------------------------------------------------------------------

    def evaluate(self) -> dict[str, Any]:
        """Measure the averaged weights on the held-out images, and log it."""
        result = evaluate(self.averaged.model(), self.held_out)
        self.report.log({"step": self.step, "validation": result})
        return result

    def draw_pictures(self) -> None:
        """Draw the first held-out images at several lengths."""
        shown = self.held_out[:4].to(self.world.device)
        self.report.pictures(self.step, self.averaged.model(), shown, self.held_out_names[:4])

    def save(self, stage: dict[str, Any]) -> None:
        """Write a checkpoint: everything a resumed run needs, `StageRun.state` included."""
        state = {
            "settings": dataclasses.asdict(self.settings),
            "data": self.fingerprint,
            "global_batch": self.global_batch,
            "position": self.position,
            "seconds": self.seconds,
            "skipped": self.skipped.reasons,
            "planned": self.schedule.planned,
            "model": {name: whole(tensor) for name, tensor in self.model.state_dict().items()},
            "averaged": self.averaged.state(),
            "objective": self.objective.state(),
            **stage,
        }
        if self.world.leads:
            write_checkpoint(self.folder / "checkpoints", self.step, state, self.settings.keep_checkpoints)
        self.world.wait()

    def restore(self, state: dict[str, Any]) -> None:
        """Continue a run from its checkpoint's state.

        Raises:
            TrainingError: if it was another run, or one with other data.
        """
        where = self.folder / "checkpoints"
        require_same_run(state, self.settings, self.global_batch, where)
        require_same_data(state["data"], self.fingerprint, where)
        self.schedule.step, self.schedule.planned = state["step"], state["planned"]
        self.position, self.seconds = state["position"], state["seconds"]
        self.skipped.reasons = state["skipped"]
        self.model.load_state_dict(state["model"])
        self.averaged.restore(state["averaged"], self.model)
        self.objective.restore(state["objective"])


def training_images(settings: Settings, size: int) -> TrainingImages:
    """The images that a run's settings name, in samples of so many pixels a side."""
    return TrainingImages(
        [Path(p) for p in settings.data],
        size,
        settings.seed,
        augmentation=Augmentation(settings.crop_scale, settings.flip, settings.grey),
        synsets=Path(settings.synsets) if settings.synsets else None,
        min_side=settings.min_side,
        drawn_share=settings.drawn,
    )


def query_images(settings: Settings, size: int) -> QueryImages:
    """Likewise for stages of path 'query'."""
    augmentation = Augmentation(settings.crop_scale, settings.flip, settings.grey)
    data = [Path(p) for p in settings.data]
    tiles = Augmentation(settings.crop_scale, settings.flip, 0)  # a text may name a colour
    mosaics = Mosaics(data, size, settings.seed, augmentation=tiles) if settings.mosaics else None
    return QueryImages(
        read_queries(settings.queries),
        size,
        settings.seed,
        augmentation=augmentation,
        mosaics=mosaics,
        mosaic_share=settings.mosaics,
        # A map needs no practice in the whole picture, and sees a picture once for all queries about it.
        **({"null_share": 0.0, "more": MORE_QUERIES} if settings.points else {}),
    )
