"""`kill -9` of workers and drivers of `dove tokenize` at random moments: is the result the undisturbed one?

    python -m benchmarks.scale_kills [--engine local ray] [--kills 20] [--json PATH]

Pictures are drawn, the model is small and random unless --model names one. A run is begun, and a part of it
killed at a moment of chance: in turns a worker and the driver. The same command goes on, is killed again,
until a set is finished and its files are compared; then another is begun.
With the engine "ray" a killed worker does not end a run: Ray goes on with another. Its runs join one cluster
of this machine, of --workers.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from dove_ext.config import DoveConfig, StackConfig, VQGANConfig
from dove_ext.models.dove import DoveModel

from .record import commit, machine, write

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


def dove(*arguments: str) -> list[str]:
    """The command line of `dove` with these arguments, whether it is installed as a script or not."""
    code = "import sys; from dove_ext.cli import main; sys.exit(main(sys.argv[1:]))"
    return [sys.executable, "-c", code, *arguments]


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
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


@contextmanager
def cluster(workers: int) -> Iterator[str]:
    """A Ray cluster on this machine while the block runs, by its address."""
    os.environ.setdefault("RAY_worker_niceness", "0")  # Ray's 15 starves workers beside other work
    import ray

    options = {"include_dashboard": False, "log_to_driver": False, "logging_level": "error"}
    address = ray.init(num_cpus=workers, **options).address_info["gcs_address"]
    try:
        yield address
    finally:
        ray.shutdown()


class Trial:
    """Runs of one engine, killed now and then.

    Args:
        engine: "local" or "ray".
        workers: of each run.
        source: pictures.
        model: a name or folder.
        place: for sets; a folder.
        chance: of moments.
        address: of the Ray cluster, which outlives drivers.
    """

    def __init__(
        self,
        engine: str,
        workers: int,
        source: Path,
        model: str,
        place: Path,
        chance: random.Random,
        address: str | None,
    ) -> None:
        self.engine, self.place, self.chance, self.address = engine, place, chance, address
        fixed = f"--engine {engine} --workers {workers} --shard-size 4 --batch-size 4"
        self.options = [*fixed.split(), "--model", model, str(source)]
        self.kills: list[dict[str, Any]] = []

    def start(self, folder: Path) -> subprocess.Popen[bytes]:
        command = dove("tokenize", *self.options, str(folder))
        env = {**os.environ, **({} if self.address is None else {"RAY_ADDRESS": self.address})}
        return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=env)

    def workers(self, run: subprocess.Popen[bytes]) -> list[int]:
        return workers_of(os.getpid() if self.engine == "ray" else run.pid, self.engine)

    def undisturbed(self) -> tuple[dict[str, bytes], float]:
        begun = time.monotonic()
        run = self.start(self.place / "undisturbed")
        _, errors = run.communicate()
        if run.returncode:
            raise SystemExit(errors.decode())
        return contents(self.place / "undisturbed"), time.monotonic() - begun

    def kill_at_random(self, folder: Path, kills: int) -> None:
        """One run, until it ends, finished or not; at most so many kills in all.

        Half of the moments lie anywhere from its beginning, the others behind some shards that it has made.
        """
        begun = time.monotonic()
        run = self.start(folder)
        while run.poll() is None and len(self.kills) < kills:
            victim = ("worker", "driver")[len(self.kills) % 2]
            before = shards = self.shards(folder)
            wanted = self.chance.choice((0, self.chance.randint(1, 12)))
            while run.poll() is None and shards < before + wanted:
                time.sleep(0.02)
                shards = self.shards(folder)
            time.sleep(self.chance.uniform(0, 1 if wanted else 10))
            pids = [run.pid] if victim == "driver" else self.workers(run)
            while run.poll() is None and not pids:  # no worker is there yet
                time.sleep(0.1)
                pids = self.workers(run)
            if run.poll() is None:
                try:
                    os.kill(self.chance.choice(pids), signal.SIGKILL)
                except ProcessLookupError:  # it has just ended
                    continue
                second = round(time.monotonic() - begun, 2)
                self.kills.append({"victim": victim, "second": second, "shards": self.shards(folder)})
                if victim == "driver" or self.engine == "local":
                    break
        _, errors = run.communicate()
        if run.returncode not in (0, 1, -signal.SIGKILL):
            raise SystemExit(errors.decode())
        if run.returncode == 1 and b"Traceback" in errors:
            self.kills[-1]["traceback"] = errors.decode()[-2000:]

    @staticmethod
    def shards(folder: Path) -> int:
        return len(list(folder.glob("shards/*/0*")))


def trial(runs: Trial, kills: int, say: Callable[[str], None]) -> dict[str, Any]:
    expected, seconds = runs.undisturbed()
    say(f"{runs.engine}: undisturbed in {seconds:.1f} s, {len(expected)} files")
    sets = equal = 0
    while True:
        folder = runs.place / f"set-{sets}"
        runs.kill_at_random(folder, kills)
        say(f"{runs.engine}: {len(runs.kills)} kills, {runs.shards(folder)} shards")
        if (folder / "manifest.json").exists():
            same = contents(folder) == expected
            sets, equal = sets + 1, equal + same
            say(f"{runs.engine}: set {sets} after {len(runs.kills)} kills: {'equal' if same else 'DIFFERS'}")
            shutil.rmtree(folder)
            if len(runs.kills) >= kills:
                break
    about = {"engine": runs.engine, "undisturbed_s": round(seconds, 2), "sets": sets, "equal": equal}
    return {**about, "kills": runs.kills}


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
        started = cluster(args.workers) if engine == "ray" else nullcontext(None)
        with tempfile.TemporaryDirectory() as folder, started as address:
            place, chance = Path(folder), random.Random(args.seed)
            source = draw_pictures(place / "pictures", args.pictures)
            model = args.model or str(small_model(place / "model"))
            runs = Trial(engine, args.workers, source, model, place, chance, address)
            rows.append(trial(runs, args.kills, lambda text: print(text, flush=True)))
        if args.json is not None:
            write(
                args.json, "scale_kills", measured, machine=machine(), pictures=args.pictures,
                workers=args.workers, model=args.model or "small, random", rows=rows,
            )  # fmt: skip
    return 0 if all(row["sets"] == row["equal"] > 0 for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
