"""The training loop: stages in order, each a path through the model, its trained parts and its losses.

    dove train recipes/dove-tiny.yaml --data photos/ --validation held-out/ -o runs/mine

writes checkpoints/ (the same command goes on from the newest), log.jsonl, pictures/ and, at the end, model/.
A step is a function of the settings, the weights and the step's number alone: the order of images, their
augmentation, the sampled lengths and all noise are drawn from the seed and the place in the run, so a
resumed run needs no state of any random generator. (The tokens' noise in the Gaussian variant also
depends on the process and its batch.)
"""

from __future__ import annotations

from typing import Any

from dove_train.run import Run
from dove_train.stage_run import StageRun


def train(run: Run) -> dict[str, Any]:
    """Train from the newest checkpoint, or from the beginning, to the end; returns the last evaluation.

    Raises:
        TrainingError: if the folder holds another run, no image can be read, or the loss stays infinite.
    """
    return train_stages(run, run.start())


def train_stages(run: Run, resumed: dict[str, Any] | None) -> dict[str, Any]:
    """Train a run that has started: `resumed` is what `Run.start` returned."""
    while (place := run.schedule.place()) is not None:
        StageRun(run, place.stage, resumed).train()
        resumed = None
    return run.finish()
