"""Hours of random batches through one model: is each image's result that of the image alone, is memory flat?

    OMP_WAIT_POLICY=PASSIVE python -m benchmarks.soak [--hours 2] [--batches 1000] [--json PATH]

A pool of pictures of many sizes, drawn and made from seeds, goes through dove-tiny in batches of 1 to 12, in
any order, as PIL images, 8-bit and float arrays and tensors, and paths, on 1 to 3 threads, each batch with
its own way to choose lengths, `batch_size` and `block_size`. What comes back is compared with the picture
encoded alone on one thread. It ends when both numbers are reached, or by Ctrl-C; the record on disk is
renewed as it runs. Hours and samples of memory begin behind a warm-up.

A length may differ only where the decision is within rounding: then it is counted, with how near it was.
"""

from __future__ import annotations

import argparse
import collections
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from dove_ext import DoveModel, DoveTokens
from dove_ext.images.drawn import HELD_BACK, TRAINED, draw
from dove_ext.images.prepare import normalise, square_images
from dove_ext.metrics.pixel import psnr

from .record import commit, machine, write

TOKEN_BOUND = 1e-4
"""The most by which a value of a token may differ (docs/tokens.md); a token's values are of order 1."""
NEAR = 1e-3
"""The most by which p_eos, or a PSNR in dB, may: closer to the threshold is a decision within rounding."""
FLAT = 0.02
"""By this share may the median of resident memory in a run's last quarter differ from that of its second."""
THREADS, LARGEST_BATCH = (1, 2, 3), 12
KINDS = ("pil", "array", "tensor", "float array", "float tensor", "path")

Control = dict[str, Any]
"""Arguments of `encode`."""


def any_control(chance: random.Random) -> Control:
    """One of the ways to choose lengths; few values of each, so that what is alone need not be made anew."""
    return chance.choice(
        (
            {},
            {"num_tokens": chance.choice((1, 17, 256))},
            {"max_tokens": chance.choice((8, 100))},
            {"eos_threshold": chance.choice((0.2, 0.9))},
            {"token_budget": chance.random()},  # of what there may be, see `budget`
            {"target_psnr": chance.choice((24, 31))},
            {"tiles": chance.choice((2, 6))},
            {"return_p_eos": True},
        )
    )


def budget(share: float, images: int, slots: int) -> int:
    """A number of tokens that so many images can share."""
    return images + int(share * images * (slots - 1))


@dataclass(frozen=True)
class Picture:
    """One of the pool: uint8 [H, W, 3], and its file."""

    number: int
    pixels: np.ndarray[Any, np.dtype[np.uint8]]
    path: Path

    def given(self, kind: str) -> Any:
        """As one of `KINDS`."""
        if kind == "path":
            return self.path
        if kind == "pil":
            return Image.fromarray(self.pixels)
        pixels = self.pixels.astype(np.float32) / 255 if kind.startswith("float") else self.pixels.copy()
        return torch.from_numpy(pixels).permute(2, 0, 1) if kind.endswith("tensor") else pixels


def pool(folder: Path, count: int) -> list[Picture]:
    """Drawn ones and clouds of colour in turns, with sides from 64 to 700 pixels."""
    kinds, pictures = TRAINED + HELD_BACK, []
    for number in range(count):
        random = np.random.default_rng(number)
        width, height = (int(side) for side in random.integers(64, 700, 2))
        if number % 2:
            coarse = random.integers(0, 256, (*random.integers(2, 40, 2), 3), np.uint8)
            image = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
        else:
            drawn = draw(kinds[number // 2 % len(kinds)], number, max(width, height))
            image = Image.fromarray(drawn.permute(1, 2, 0).numpy()).crop((0, 0, width, height))
        image.save(path := folder / f"{number}.png")
        pictures.append(Picture(number, np.asarray(image).copy(), path))
    return pictures


class Alone:
    """What comes of each picture by itself, on one thread; kept in files, so that memory stays what it is."""

    def __init__(self, model: DoveModel, folder: Path) -> None:
        self.model, self.folder = model, folder
        self.made: dict[tuple[object, ...], Path] = {}

    def __call__(self, picture: Picture, kind: str, control: Control) -> DoveTokens:
        kind = "float tensor" if kind.startswith("float") else "array"  # 8-bit pixels are 8-bit pixels
        key = picture.number, kind, *control.items()
        if (path := self.made.get(key)) is None:
            path = self.made[key] = self.folder / f"alone-{len(self.made)}.safetensors"
            self.encode(picture, kind, control).save(path)
        return DoveTokens.load(path)

    def encode(self, picture: Picture, kind: str, control: Control) -> DoveTokens:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            return self.model.encode([picture.given(kind)], **control)
        finally:
            torch.set_num_threads(threads)

    def how_near(
        self, picture: Picture, kind: str, control: Control, row: int, lengths: tuple[int, int]
    ) -> float:
        """How close the decision was on which two lengths of an image (of a tile: `row`) part."""
        low, high = sorted(lengths)
        if (target := control.get("target_psnr")) is None:
            with_curve = self.encode(picture, kind, {**control, "return_p_eos": True})
            assert with_curve.p_eos is not None
            threshold: float = control.get("eos_threshold", 0.5)
            return abs(float(with_curve.p_eos[row, low]) - threshold)
        tokens = self.encode(picture, kind, {"num_tokens": self.model.config.num_tokens}).tokens[None]
        pixels = normalise(square_images([picture.given(kind)], self.model.config.image_size).pixels)
        with torch.no_grad():
            seen = (self.model.render(tokens, torch.tensor([n], dtype=torch.int32)) for n in (low, high - 1))
            return min(float((psnr(image, pixels, black=-1.0) - target).abs()) for image in seen)


@dataclass
class Findings:
    """What a run has seen so far."""

    batches: int = 0
    images: int = 0
    equal: int = 0  # images whose values are the same bits
    largest: float = 0.0  # difference of a token's value
    largest_psnr: float = 0.0  # in dB
    largest_p_eos: float = 0.0
    controls: collections.Counter[str] = field(default_factory=collections.Counter)
    near: list[dict[str, Any]] = field(default_factory=list)  # other lengths, within rounding
    faults: list[dict[str, Any]] = field(default_factory=list)

    def values(self, where: dict[str, Any], tokens: torch.Tensor, alone: torch.Tensor) -> None:
        """Compare an image's tokens [n, D] with those of the image alone, as far as both go."""
        shared = min(len(tokens), len(alone))
        tokens, alone = tokens[:shared], alone[:shared]
        self.images += 1
        self.equal += torch.equal(tokens, alone)
        off = float((tokens - alone).abs().max())
        self.largest = max(self.largest, off)
        if not off <= TOKEN_BOUND:  # NaN, too
            self.faults.append({**where, "off": off})

    def further(self, name: str, ours: torch.Tensor | None, alone: torch.Tensor | None, row: int) -> float:
        """Compare what comes with the tokens of one row; the largest difference so far stays in `name`."""
        assert ours is not None and alone is not None
        off = float((ours[row] - alone[row]).abs().max())
        setattr(self, name, max(getattr(self, name), off))
        return off


def one_batch(alone: Alone, pictures: Sequence[Picture], chance: random.Random, found: Findings) -> None:
    """Encode a batch of chance and compare it."""
    model, control = alone.model, any_control(chance)
    name = next(iter(control), "default")
    count = chance.randint(1, LARGEST_BATCH if name != "tiles" else 4)
    chosen = [(chance.choice(pictures), chance.choice(KINDS)) for _ in range(count)]
    how: dict[str, Any] = {
        "batch_size": chance.choice((1, 3, 5, 32)),
        "block_size": chance.choice((16, 64, 100)),
    }
    threads = chance.choice(THREADS)
    given = dict(control)
    if name == "token_budget":
        given[name] = budget(given[name], count, model.config.num_tokens)
        control = {"num_tokens": model.config.num_tokens}
    torch.set_num_threads(threads)
    tokens = model.encode([picture.given(kind) for picture, kind in chosen], **given, **how)
    found.batches += 1
    found.controls[name] += 1
    about = {"batch": found.batches, "control": given, "images": count, "threads": threads, **how}
    if name == "token_budget" and len(tokens.tokens) != given[name]:
        found.faults.append({**about, "sum": len(tokens.tokens)})
    for number, (picture, kind) in enumerate(chosen):
        ours = tokens.picture(number) if name == "tiles" else tokens[number]
        expected = alone(picture, kind, control)
        where = {**about, "number": number, "picture": picture.number, "kind": kind}
        if len(ours) != len(expected):
            found.faults.append({**where, "rows": [len(ours), len(expected)]})
            continue
        rows = zip(ours.to_list(), expected.to_list(), strict=True)
        for row, (values, theirs) in enumerate(rows):
            found.values(where, values, theirs)
            lengths = len(values), len(theirs)
            if name != "token_budget" and lengths[0] != lengths[1]:
                fixed = name == "num_tokens"
                near = float("inf") if fixed else alone.how_near(picture, kind, control, row, lengths)
                (found.near if near <= NEAR else found.faults).append(
                    {**where, "row": row, "lengths": lengths, "how_near": near}
                )
            elif name == "target_psnr":
                off = found.further("largest_psnr", ours.psnr, expected.psnr, row)
                if not off <= NEAR:
                    found.faults.append({**where, "row": row, "psnr_off": off})
            if name == "return_p_eos":
                off = found.further("largest_p_eos", ours.p_eos, expected.p_eos, row)
                if not off <= NEAR:
                    found.faults.append({**where, "row": row, "p_eos_off": off})


def resident() -> int:
    """Bytes of memory of this process."""
    (line,) = (x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith("VmRSS"))
    return int(line.split()[1]) << 10


def flatness(samples: Sequence[tuple[float, int]]) -> dict[str, Any]:
    """How flat samples (hour, bytes) are: medians of quarters of the time, and the slope behind the first."""
    if len(samples) < 8:
        return {"samples": len(samples)}
    quarter, hours = len(samples) // 4, np.array([hour for hour, _ in samples])
    sizes = np.array([size for _, size in samples]) / 2**20
    medians = [statistics.median(sizes[i * quarter : (i + 1) * quarter]) for i in range(3)]
    medians.append(statistics.median(sizes[3 * quarter :]))
    slope = float(np.polyfit(hours[quarter:], sizes[quarter:], 1)[0])
    last_over_second = medians[3] / medians[1] - 1
    return {
        "samples": len(samples),
        "median_mib_of_quarters": [round(float(m), 1) for m in medians],
        "last_over_second_quarter": round(float(last_over_second), 4),
        "slope_mib_per_hour": round(slope, 2),
        "slope_per_hour": round(float(slope / medians[1]), 4),
        "flat": bool(abs(last_over_second) <= FLAT),
        "mib": [round(float(size)) for size in sizes],
    }


def soak(
    alone: Alone,
    pictures: Sequence[Picture],
    *,
    hours: float,
    batches: int,
    warm_up: int,
    every: float,
    chance: random.Random,
    keep: Callable[[Findings, dict[str, Any]], None],
) -> tuple[Findings, dict[str, Any]]:
    """Batches until both numbers are reached, or Ctrl-C.

    Args:
        alone: references, and the model.
        pictures: the pool.
        hours: at least, behind the warm-up.
        batches: at least, with the warm-up.
        warm_up: batches before memory is looked at: PyTorch and oneDNN keep something for each new shape.
        every: seconds between samples of memory.
        chance: of all that is drawn by lot.
        keep: called at every sample with what is found.
    """
    found, samples, threads = Findings(), list[tuple[float, int]](), torch.get_num_threads()
    begun, last, passed = time.monotonic(), -float("inf"), 0.0
    warm = begun
    try:
        while passed < 3600 * hours or found.batches < max(batches, warm_up):
            one_batch(alone, pictures, chance, found)
            if found.batches <= warm_up:
                warm = time.monotonic()
            passed = time.monotonic() - warm
            if time.monotonic() - begun - last >= every:
                last = time.monotonic() - begun
                if found.batches > warm_up:
                    samples.append((passed / 3600, resident()))
                keep(found, flatness(samples))
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
    finally:
        torch.set_num_threads(threads)
    return found, {"seconds": round(time.monotonic() - begun), "warm_up": warm_up, **flatness(samples)}


def parsed(options: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--hours", type=float, default=2.0, help="at least (default: %(default)s)")
    parser.add_argument("--batches", type=int, default=1000, help="at least (default: %(default)s)")
    parser.add_argument("--warm-up", type=int, default=1500, help="batches of it (default: %(default)s)")
    parser.add_argument("--pictures", type=int, default=24, help="of the pool (default: %(default)s)")
    parser.add_argument("--every", type=float, default=30.0, help="seconds between samples of memory")
    parser.add_argument("--model", default="dove-tiny", help="(default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of all chance")
    parser.add_argument("--json", type=Path, metavar="PATH", help="write the record to PATH")
    args = parser.parse_args(options)
    if args.pictures < 1:
        parser.error("--pictures must be at least 1")
    return args


def main(options: list[str] | None = None) -> int:
    args = parsed(options)
    begun, measured, about = time.monotonic(), commit(), machine()

    def keep(found: Findings, memory: dict[str, Any]) -> None:
        minutes = (time.monotonic() - begun) / 60
        print(
            f"{minutes:7.1f} min  {found.batches} batches  {found.images} images, {found.equal} same bits, "
            f"largest difference {found.largest:.2g}  {len(found.near)} near  {len(found.faults)} FAULTS  "
            f"{memory.get('median_mib_of_quarters', '')} MiB",
            flush=True,
        )
        if args.json is None:
            return
        write(
            args.json, "soak", measured, machine=about, model=args.model, pictures=args.pictures,
            threads=THREADS, asked={"hours": args.hours, "batches": args.batches},
            bounds={"token": TOKEN_BOUND, "near": NEAR, "flat": FLAT},
            rows=[{**vars(found), "memory": memory}],
        )  # fmt: skip

    with tempfile.TemporaryDirectory() as folder:
        alone = Alone(DoveModel.from_pretrained(args.model), Path(folder))
        found, memory = soak(
            alone, pool(Path(folder), args.pictures), hours=args.hours, batches=args.batches,
            warm_up=args.warm_up, every=args.every, chance=random.Random(args.seed), keep=keep,
        )  # fmt: skip
    keep(found, memory)
    for fault in found.faults[:20]:
        print(fault)
    return 0 if found.images and not found.faults and memory.get("flat", True) else 1


if __name__ == "__main__":
    sys.exit(main())
