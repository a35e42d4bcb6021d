"""The stages of a run in order, and which of their steps comes next."""

from __future__ import annotations

from typing import NamedTuple

from dove_train.settings import Settings

# The time a step takes is measured over so many steps, the first of a stage.
PACE_STEPS = 20


class Place(NamedTuple):
    """Where a step stands."""

    stage: str
    step: int  # in the stage, from 0
    steps: int  # of the stage


class Schedule:
    """Counts a run's steps through its stages.

    Attributes:
        planned: steps of each stage; fewer if the settings give `steps` or the budget `minutes`.
        step: the next step, over all stages, from 0.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.planned = {
            name: min(stage.steps, settings.steps) if settings.steps else stage.steps
            for name, stage in settings.stages.items()
        }
        self.step = 0

    @property
    def total(self) -> int:
        """Steps of all stages."""
        return sum(self.planned.values())

    def place(self) -> Place | None:
        """Where the next step stands; None at the end."""
        step = self.step
        for name, steps in self.planned.items():
            if step < steps:
                return Place(name, step, steps)
            step -= steps
        return None

    def within(self, stage: str) -> bool:
        """Whether the next step is one of `stage`."""
        place = self.place()
        return place is not None and place.stage == stage

    def done(self, stage: str) -> int:
        """Steps of a stage that are done, from its first on."""
        before = list(self.planned).index(stage)
        return self.step - sum(list(self.planned.values())[:before])

    def shorten(self, stage: str, pace: float) -> None:
        """Shorten a stage to its share of the wall-clock budget `minutes`; steps that are done stay.

        Args:
            stage: its name.
            pace: seconds a step.
        """
        steps = {name: s.steps for name, s in self.settings.stages.items()}
        seconds = 60 * self.settings.minutes * steps[stage] / sum(steps.values())
        self.planned[stage] = max(self.done(stage), min(self.planned[stage], int(seconds / pace)))
