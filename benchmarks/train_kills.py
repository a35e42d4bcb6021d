"""`kill -9` of `dove train` at random moments: does the same command go on, to the same bits?

    OMP_WAIT_POLICY=PASSIVE python -m benchmarks.train_kills [--kills 50] [--json PATH]

A small random model is trained on drawn pictures for some seconds, undisturbed. Then each kill has a run of
its own: it is begun, killed at a moment of chance, and the same command ends it. In turns the moment lies in
its beginning, in or between its steps, in the writing of a checkpoint, or behind the last step. The finished
model must be that of the undisturbed run byte for byte, every step's numbers in the log must be the same, and
no other files may be left.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import yaml

from .record import commit, machine, write
from .scale_kills import contents, dove, draw_pictures

PHASES = ("start", "step", "checkpoint", "end")
_STACK = {"hidden": 64, "layers": 1, "heads": 1, "mlp": 64}
_PARTS = ["encoder", "decoder", "generator", "tokens", "token_decoder", "head"]
RECIPE: dict[str, Any] = {
    "preset": "dove-tiny", "name": "killed",
    "shape": {
        "image_size": 64,
        "vqgan": {
            "channels": 32, "channel_multipliers": [1, 1], "encoder_blocks": 1, "decoder_blocks": 1,
            "latent_channels": 32,
        },
        "semantic_width": 15, "generator": _STACK, "token_decoder": _STACK,
    },
    "validation_limit": 2, "fit_images": 32, "batch_size": 2, "warmup_steps": 2, "loss_scale": "relative",
    "drawn": 0.5, "ema": 0.9, "log_every": 1, "checkpoint_every": 3, "picture_every": 8, "device": "cpu",
    "stages": {"joint": {"steps": 14, "train": _PARTS}, "head": {"steps": 6, "train": ["head"]}},
}  # fmt: skip
"""Two stages of 20 steps in all, seven checkpoints, pictures twice; data and validation are added."""


class Running(Protocol):
    """A process, as `subprocess.Popen` is one."""

    pid: int

    def poll(self) -> int | None: ...
    def wait(self) -> int: ...


def launch(arguments: list[str], output: Path) -> Running:
    """`dove` with these arguments, in a process of its own that writes to a file."""
    with output.open("wb") as file:
        return subprocess.Popen(dove(*arguments), stdout=file, stderr=file)


class Trial:
    """Runs of one recipe, killed and continued.

    Args:
        recipe: its values.
        place: a folder for the runs.
        chance: of moments.
        start: begins `dove` with arguments, its output to a file.
    """

    def __init__(
        self,
        recipe: dict[str, Any],
        place: Path,
        chance: random.Random,
        start: Callable[[list[str], Path], Running] = launch,
    ) -> None:
        self.place, self.chance, self.begin = place, chance, start
        self.recipe, self.output = place / "recipe.yaml", place / "output"
        self.recipe.write_text(yaml.safe_dump(recipe, sort_keys=False), encoding="utf-8")
        self.steps = sum(stage["steps"] for stage in recipe["stages"].values())
        self.checkpoints = self.steps // recipe["checkpoint_every"]
        self.expected, self.took = self.undisturbed()

    def start(self, folder: Path) -> Running:
        return self.begin(["train", str(self.recipe), "-o", str(folder)], self.output)

    def end(self, run: Running, allowed: tuple[int, ...] = (0,)) -> int:
        """Wait for a run's end.

        Raises:
            SystemExit: with what it said, if it ends in another way than allowed.
        """
        if (code := run.wait()) not in allowed:
            raise SystemExit(f"exit code {code}: {self.output.read_text(errors='replace')[-3000:]}")
        return code

    def undisturbed(self) -> tuple[dict[str, Any], dict[str, float]]:
        """What a run leaves, and seconds: to its first line in the log, for the steps, and behind them."""
        folder = self.place / "undisturbed"
        begun = time.monotonic()
        run = self.start(folder)
        times = []
        for steps in (0, self.steps):
            self.wait(run, lambda steps=steps: self.logged(folder) >= steps)  # type: ignore[misc]
            times.append(time.monotonic() - begun)
        self.end(run)
        times.append(time.monotonic() - begun)
        return left(folder), {
            "start": times[0], "step": (times[1] - times[0]) / self.steps, "end": times[2] - times[1],
            "all": times[2],
        }  # fmt: skip

    @staticmethod
    def logged(folder: Path) -> int:
        """The last step in a run's log; -1: no log, 0: no step."""
        try:
            lines = (folder / "log.jsonl").read_bytes().splitlines()
        except OSError:
            return -1
        return max((step_of(line) for line in lines), default=-1)

    @staticmethod
    def wait(run: Running, seen: Callable[[], bool]) -> bool:
        """Whether something is seen before a run ends."""
        while not (there := seen()) and run.poll() is None:
            time.sleep(0.001)
        return there

    def moment(self, run: Running, folder: Path, phase: str) -> None:
        """Return at a moment of chance within a phase of a run, or at its end."""
        chance, took = self.chance, self.took
        if phase == "start":
            wait = chance.uniform(0, took["start"])
        elif phase == "step":
            step = chance.randrange(self.steps)
            self.wait(run, lambda: self.logged(folder) >= step)
            wait = chance.uniform(0, took["step"])
        elif phase == "checkpoint":
            for _ in range(chance.randint(1, self.checkpoints)):  # the first of these, or a later one
                self.wait(run, lambda: not unfinished(folder))
                self.wait(run, lambda: bool(unfinished(folder)))
            wait = chance.uniform(0, 0.01)
        else:
            self.wait(run, lambda: self.logged(folder) >= self.steps)
            wait = chance.uniform(0, took["end"])
        until = time.monotonic() + wait
        self.wait(run, lambda: time.monotonic() >= until)

    def kill(self, phase: str, folder: Path) -> dict[str, Any]:
        """Kill a run in a phase of it, end it by the same command, and compare.

        Args:
            phase: of `PHASES`. A run that ends before the moment has come does not count: another is begun.
            folder: of the run; removed when it is equal.
        """
        while True:
            begun = time.monotonic()
            run = self.start(folder)
            self.moment(run, folder, phase)
            if run.poll() is None:
                os.kill(run.pid, signal.SIGKILL)
            second = time.monotonic() - begun
            if self.end(run, (0, -signal.SIGKILL)):
                break
            shutil.rmtree(folder)
        about = {
            "phase": phase, "second": round(second, 3), "steps": max(self.logged(folder), 0),
            "checkpoints": len(list(folder.glob("checkpoints/step-*.pt"))), "cut": len(unfinished(folder)),
        }  # fmt: skip
        self.end(self.start(folder))
        found = left(folder)
        differs = sorted(
            name for name in self.expected.keys() | found.keys() if self.expected.get(name) != found.get(name)
        )
        if not differs:
            shutil.rmtree(folder)
        return {**about, "equal": not differs, **({"differs": differs} if differs else {})}


def step_of(line: bytes) -> int:
    """The step that a line of a log tells of; 0: of none, or it is cut off."""
    try:
        record = json.loads(line)
    except ValueError:
        return 0
    return int(record["step"]) if "loss" in record else 0


def unfinished(folder: Path) -> list[str]:
    """Files among a run's checkpoints that are none yet."""
    try:
        names = [path.name for path in (folder / "checkpoints").iterdir()]
    except OSError:
        return []
    return [name for name in names if not name.startswith("step-")]


def left(folder: Path) -> dict[str, Any]:
    """What a finished run leaves: its model's files, every step's numbers, and the names of all files."""
    lines = (folder / "log.jsonl").read_bytes().splitlines()
    steps = [json.loads(line) for line in lines if step_of(line)]
    files = contents(folder)
    return {
        **{name: data for name, data in files.items() if name.startswith("model/")},
        "steps of log.jsonl": [{k: v for k, v in step.items() if k != "images/s"} for step in steps],
        "files": sorted(files),
    }


def main(options: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=50, help="(default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--json", type=Path, metavar="PATH", help="write the record to PATH")
    args = parser.parse_args(options)
    measured, about = commit(), machine()
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        pictures = {
            name: [str(draw_pictures(place / name, count, 80))]
            for name, count in (("data", 16), ("validation", 2))
        }
        trial = Trial({**RECIPE, **pictures}, place, random.Random(args.seed))
        print("undisturbed: " + ", ".join(f"{name} {t:.2f} s" for name, t in trial.took.items()), flush=True)
        kills: list[dict[str, Any]] = []
        for number in range(args.kills):
            kills.append(trial.kill(PHASES[number % len(PHASES)], place / f"run-{number}"))
            print(number + 1, kills[-1], flush=True)
            equal = sum(kill["equal"] for kill in kills)
            if args.json is not None:
                write(
                    args.json, "train_kills", measured, machine=about,
                    seconds={name: round(t, 3) for name, t in trial.took.items()},
                    rows=[{"kills": len(kills), "equal": equal, "moments": kills}],
                )  # fmt: skip
    print(f"{equal} of {args.kills} equal" if args.kills else "no kills")
    return 0 if args.kills and equal == args.kills else 1


if __name__ == "__main__":
    sys.exit(main())
