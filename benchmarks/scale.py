"""`dove tokenize` against a bare loop: what an engine costs, how fast workers are, how large pictures become.

    OMP_WAIT_POLICY=PASSIVE python -m benchmarks.scale [--data PATH ...] [--engines ...] [--json PATH]

In turns, on one thread each: a loop that reads and encodes batches and keeps nothing; `dove_data.tokenize`
with one and two workers, with Ray if asked for. Each runs over few and over many pictures; the difference is
the cost of a picture, without what it takes to begin. Beside wall-clock, which other work on a machine moves,
stand CPU seconds of all processes, without Ray. Then: how long it takes to list and to look up a picture.
"""

from __future__ import annotations

import argparse
import io
import os
import resource
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch

from dove_data import Settings, TokenDataset, tokenize
from dove_data.plan import look_through
from dove_ext import DoveModel
from dove_ext.images.index import ImageIndex
from dove_ext.memory import keep_freed_memory
from dove_ext.models.sets import encode_set

from . import timing
from .record import commit, machine, write
from .scale_kills import cluster, descendants

PHOTOS = Path(__file__).resolve().parents[1] / "examples" / "photos"
_TICK = os.sysconf("SC_CLK_TCK")


def cpu_seconds() -> float:
    """Of this process, and of all below it, ended or not."""
    used = sum(
        getattr(resource.getrusage(who), field)
        for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
        for field in ("ru_utime", "ru_stime")
    )
    for pid in descendants(os.getpid()):
        try:
            stat = Path(f"/proc/{pid}/stat").read_text()
        except OSError:
            continue
        used += sum(map(int, stat.rpartition(")")[2].split()[11:15])) / _TICK
    return used


def copies(sources: list[Path], folder: Path, count: int) -> Path:
    """So many pictures as links, each under a name of its own."""
    index = ImageIndex(sources)
    folder.mkdir()
    for number in range(count):
        (folder / f"{number:06d}.jpg").write_bytes(index.data(number % len(index)))
    return folder


class Candidates:
    """What is timed.

    Args:
        settings: of all of them.
        place: for what they write.
    """

    def __init__(self, settings: Settings, place: Path) -> None:
        self.settings, self.place, self.runs = settings, place, 0
        self.bytes_a_picture = self.mean_length = 0.0

    def bare(self, source: Path) -> None:
        settings = self.settings
        torch.set_num_threads(1)
        model = DoveModel.from_pretrained(settings.model, dtype=getattr(torch, settings.dtype))
        batches = encode_set(
            model.encode, ImageIndex([source]), model.config.image_size, batch_size=settings.batch_size,
            on_problem=lambda i, error: None,
        )  # fmt: skip
        for _ in batches:
            pass

    def engine(self, source: Path, engine: str, workers: int) -> None:
        self.runs += 1
        made = tokenize([source], self.place / f"{self.runs}", self.settings, engine=engine, workers=workers)
        self.bytes_a_picture = made.manifest["bytes"] / made.manifest["pictures"]
        self.mean_length = made.manifest["tokens"] / made.manifest["pictures"]


def measure(
    calls: dict[str, Callable[[Path], None]], few: Path, many: Path, rounds: int
) -> list[dict[str, Any]]:
    """Of each call in each round, seconds a picture."""
    counts = [len(list(folder.iterdir())) for folder in (few, many)]
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in calls}
    for number in range(rounds):
        for name, call in calls.items():
            spent = []
            for source in (few, many):
                begun, used = time.perf_counter(), cpu_seconds()
                call(source)
                spent.append((time.perf_counter() - begun, cpu_seconds() - used))
            wall, cpu = ((spent[1][i] - spent[0][i]) / (counts[1] - counts[0]) for i in (0, 1))
            found[name].append((wall, cpu))
            print(
                f"round {number + 1}, {name:8s} {wall:.4f} s and {cpu:.4f} CPU s a picture",
                flush=True,
            )
    rows = []
    for name, values in found.items():
        bare = found["bare"]
        row: dict[str, Any] = {"candidate": name}
        for i, kind in enumerate(("wall", "cpu")):
            if kind == "cpu" and any(other.startswith("ray") for other in found):
                continue  # Ray's processes work on and end when they like, beside whatever comes next
            row[f"{kind}_s_per_picture"] = timing.spread([value[i] for value in values])
            ratios = [value[i] / other[i] for value, other in zip(values, bare, strict=True)]
            row[f"{kind}_over_bare"] = timing.spread(ratios)
        rows.append(row)
    return rows


def listing(place: Path, count: int) -> dict[str, float]:
    """Seconds a picture to find it in a tar file, and to give it its place in a plan."""
    path = place / "listed.tar"
    with tarfile.open(path, "w") as tar:
        for number in range(count):
            member = tarfile.TarInfo(f"{number:09d}.jpg")
            member.size = 8
            tar.addfile(member, io.BytesIO(b"\0" * 8))
    begun = time.process_time()
    index = ImageIndex([path])
    found = time.process_time()
    look_through(index)
    return {
        "pictures": count,
        "find_us": (found - begun) / count * 1e6,
        "plan_us": (time.process_time() - found) / count * 1e6,
    }


def looking_up(folder: Path) -> dict[str, float]:
    """Microseconds for a picture by number and by key, from files that the system has in memory."""
    data = TokenDataset(folder)
    keys = [data.key(i) for i in range(len(data))]
    times = {}
    for name, which in (("number", range(len(data))), ("key", keys)):
        begun = time.process_time()
        for one in which:
            data[one]
        times[f"by_{name}_us"] = (time.process_time() - begun) / len(data) * 1e6
    return times


def main(options: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", nargs="+", type=Path, default=[PHOTOS], help="(default: examples/photos)")
    parser.add_argument(
        "--few", type=int, default=32, help="pictures, two shards of 8 or more (default: %(default)s)"
    )
    parser.add_argument("--many", type=int, default=96, help="(default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="(default: %(default)s)")
    parser.add_argument("--engines", nargs="+", choices=("local", "ray"), default=["local"])
    parser.add_argument("--model", default="dove-tiny", help="(default: %(default)s)")
    parser.add_argument("--json", type=Path, metavar="PATH", help="write the record to PATH")
    args = parser.parse_args(options)
    measured = commit()
    keep_freed_memory()
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        few, many = (copies(args.data, place / f"{n}-pictures", n) for n in (args.few, args.many))
        made = Candidates(Settings(model=args.model, batch_size=8, shard_size=8), place)
        calls: dict[str, Callable[[Path], None]] = {"bare": made.bare}
        for engine in args.engines:
            for workers in (1, 2):
                calls[f"{engine}-{workers}"] = lambda source, e=engine, w=workers: made.engine(source, e, w)
        with cluster(4) if "ray" in args.engines else nullcontext():
            rows = measure(calls, few, many, args.rounds)
        record = {
            "machine": machine(), "model": args.model, "few": args.few, "many": args.many, "rows": rows,
            "bytes_per_picture": made.bytes_a_picture, "mean_length": made.mean_length,
            "listing": listing(place, 20_000), "looking_up": looking_up(place / f"{made.runs}"),
        }  # fmt: skip
    for row in rows:
        spreads = {name: value["median"] for name, value in row.items() if name != "candidate"}
        print(row["candidate"], {name: round(value, 4) for name, value in spreads.items()})
    print({name: record[name] for name in ("bytes_per_picture", "mean_length", "listing", "looking_up")})
    if args.json is not None:
        write(args.json, "scale", measured, **record)
    return 0


if __name__ == "__main__":
    sys.exit(main())
