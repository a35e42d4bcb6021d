"""`kill -9` of workers and drivers of `dove tokenize` at random moments: is the result the undisturbed one?

    python -m benchmarks.scale_kills [--engine local ray] [--kills 20] [--json PATH]

Pictures are drawn, the model is small and random unless --model names one. A run is begun, and a part of it
killed at a moment of chance within the time that an undisturbed run takes: in turns a worker and the driver.
The same command goes on, is killed again, until a set is finished and its files are compared; then another is
begun.
With the engine "ray" a killed worker does not end a run: Ray goes on with another. A run of `ray` here is a
cluster of this machine, of --workers.
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
from typing import Any

import numpy as np
from PIL import Image

from dove_ext.atomic import atomic_write
from dove_ext.config import DoveConfig, StackConfig, VQGANConfig
from dove_ext.models.dove import DoveModel

from .record import commit, machine

WORKERS = {"local": "spawn_main", "ray": "ray::MapWorker"}  # in what a worker's command line is called
_STACK = StackConfig(hidden=64, layers=2, heads=2, mlp=128)


def small_model(folder: Path) -> Path:
    """A random model of 32 x 32 pixels, all of whose tokens count."""
    import torch

    vqgan = VQGANConfig(
        channels=64, channel_multipliers=(1, 2), encoder_blocks=1, decoder_blocks=1, latent_channels=16,
        codebook_size=16, stem_patch=2,
    )  # fmt: skip
    config = DoveConfig(
        name="small", image_size=32, vqgan=vqgan, generator=_STACK, token_decoder=_STACK, vocab_size=2,
        head_bias=True,
    )  # fmt: skip
    torch.manual_seed(0)
    DoveModel(config).save_pretrained(folder)
    return folder


def draw_pictures(folder: Path, count: int, side: int = 32) -> Path:
    folder.mkdir(parents=True)
    for number in range(count):
        pixels = np.random.default_rng(number).integers(0, 256, (4, 4, 3), np.uint8)
        Image.fromarray(pixels).resize((side, side)).save(folder / f"{number:05d}.png")
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a set."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def descendants(pid: int) -> dict[int, str]:
    """Processes below one, with their command lines."""
    parents: dict[int, int] = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                stat = (folder / "stat").read_text()
                parents[int(folder.name)] = int(stat.rpartition(")")[2].split()[1])
            except OSError:  # gone
                continue
    found, new = set(), {pid}
    while new:
        new = {child for child, parent in parents.items() if parent in new} - found
        found |= new
    lines = {}
    for child in found:
        try:
            lines[child] = Path(f"/proc/{child}/cmdline").read_bytes().replace(b"\0", b" ").decode()
        except OSError:
            continue
    return lines


def workers_of(pid: int, engine: str) -> list[int]:
    """The workers of a driver."""
    return sorted(p for p, line in descendants(pid).items() if WORKERS[engine] in line)


class Trial:
    """Runs of one engine, killed now and then.

    Args:
        engine: "local" or "ray".
        workers: of each run.
        source: pictures.
        model: a name or folder.
        place: for sets; a folder.
        chance: of moments.
    """

    def __init__(
        self, engine: str, workers: int, source: Path, model: str, place: Path, chance: random.Random
    ) -> None:
        self.engine, self.place, self.chance = engine, place, chance
        self.options = [
            "--engine",
            engine,
            "--workers",
            str(workers),
            "--shard-size",
            "4",
            "--batch-size",
            "4",
        ]
        self.options += ["--model", model, str(source)]
        self.kills: list[dict[str, Any]] = []

    def start(self, folder: Path) -> subprocess.Popen[bytes]:
        code = "import sys; from dove_ext.cli import main; sys.exit(main(sys.argv[1:]))"
        command = [sys.executable, "-c", code, "tokenize", *self.options, str(folder)]
        return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)

    def undisturbed(self) -> tuple[dict[str, bytes], float]:
        begun = time.monotonic()
        run = self.start(self.place / "undisturbed")
        _, errors = run.communicate()
        if run.returncode:
            raise SystemExit(errors.decode())
        return contents(self.place / "undisturbed"), time.monotonic() - begun

    def kill_at_random(self, folder: Path, victim: str, seconds: float) -> bool:
        """One run; whether something was killed. It ends, finished or not."""
        begun = time.monotonic()
        run, moment = self.start(folder), self.chance.uniform(0.1, 0.9) * seconds
        killed = False
        while run.poll() is None and not killed:
            time.sleep(max(0.0, begun + moment - time.monotonic()))
            pids = [run.pid] if victim == "driver" else workers_of(run.pid, self.engine)
            if run.poll() is None and pids:
                shards = len(list(folder.glob("shards/*/0*")))
                os.kill(self.chance.choice(pids), signal.SIGKILL)
                killed = True
                self.kills.append(
                    {"victim": victim, "second": round(time.monotonic() - begun, 2), "shards": shards}
                )
            moment += 0.2  # no worker is there yet
        _, errors = run.communicate()
        if killed:
            self.kills[-1]["exit"] = run.returncode
            if b"Traceback" in errors:
                self.kills[-1]["traceback"] = errors.decode()[-2000:]
        return killed


def trial(engine: str, kills: int, make: Callable[[], Trial], say: Callable[[str], None]) -> dict[str, Any]:
    runs = make()
    expected, seconds = runs.undisturbed()
    say(f"{engine}: undisturbed in {seconds:.1f} s, {len(expected)} files")
    sets, equal, number = 0, 0, 0
    while len(runs.kills) < kills or number:
        folder = runs.place / f"set-{sets}"
        victim = ("worker", "driver")[len(runs.kills) % 2]
        if len(runs.kills) < kills:
            runs.kill_at_random(folder, victim, seconds)
            number += 1
        else:
            runs.start(folder).communicate()
        if (folder / "manifest.json").exists():
            same = contents(folder) == expected
            sets, equal, number = sets + 1, equal + same, 0
            say(f"{engine}: set {sets} after {len(runs.kills)} kills: {'equal' if same else 'DIFFERS'}")
            shutil.rmtree(folder)
    return {
        "engine": engine,
        "undisturbed_s": round(seconds, 2),
        "sets": sets,
        "equal": equal,
        "kills": runs.kills,
    }


def main(options: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--engine", nargs="+", choices=list(WORKERS), default=list(WORKERS))
    parser.add_argument("--kills", type=int, default=20, help="of each engine (default: %(default)s)")
    parser.add_argument("--pictures", type=int, default=400, help="of a set (default: %(default)s)")
    parser.add_argument("--workers", type=int, default=2, help="(default: %(default)s)")
    parser.add_argument("--model", help="(default: a small one with random weights)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--json", type=Path, metavar="PATH", help="write the record to PATH")
    args = parser.parse_args(options)
    measured, rows = commit(), []
    for engine in args.engine:
        with tempfile.TemporaryDirectory() as folder:
            place, chance = Path(folder), random.Random(args.seed)
            source = draw_pictures(place / "pictures", args.pictures)
            model = args.model or str(small_model(place / "model"))

            def make(engine: str = engine, source: Path = source, place: Path = place) -> Trial:
                return Trial(engine, args.workers, source, model, place, chance)  # noqa: B023

            rows.append(trial(engine, args.kills, make, lambda text: print(text, flush=True)))
        if args.json is not None:
            record = {
                "benchmark": "scale_kills", "commit": measured,
                "utc": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "machine": machine(),
                "pictures": args.pictures, "workers": args.workers, "model": args.model or "small, random",
                "rows": rows,
            }  # fmt: skip
            with atomic_write(args.json) as temporary:
                temporary.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return 0 if all(row["sets"] == row["equal"] > 0 for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
