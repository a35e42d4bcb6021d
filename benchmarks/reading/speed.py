"""Time a question: from a picture's file to its answer, encoder included, and the prefill alone.

    OMP_WAIT_POLICY=PASSIVE python -m benchmarks.reading.speed DATA [-o out/reading] [--json PATH]

The language models are those that `python -m benchmarks.reading DATA` trained under -o (seed 0, as many
steps); systems that it has not trained are left out, and it is said. One question at a time, the systems in
turn on the same questions.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dove_ext.errors import DoveError
from dove_ext.memory import keep_freed_memory, let_idle_threads_sleep
from dove_ext.models.dove import DoveModel
from dove_ext.models.vqgan import VQGAN

from .. import timing
from ..record import Record, arguments
from . import systems, trials
from .run import ReadingRun
from .store import AtLeast, Count
from .trials import RECIPE, SYSTEMS, run_of, settings_of, slug, source_of

OURS = "dove-tiny, own lengths"

Encode = Callable[[Path, str, Count], list[Tensor]]
"""A picture's file, a question and a number of tokens to the tokens, in a list; no encoder: an empty one."""


def main(options: list[str] | None = None) -> int:
    """The command."""
    parser = arguments(__doc__ or "", seconds=60.0)
    parser.add_argument("data", type=Path, help="a folder by `dove vlm questions`")
    parser.add_argument("--vqgan", metavar="FOLDER", help="a VQGAN with its codebook (without: no such row)")
    parser.add_argument(
        "--recipe", type=Path, default=RECIPE, help="of the training (default: recipes/small-vlm.yaml)"
    )
    parser.add_argument("--steps", type=int, help="of the training (default: the recipe's)")
    parser.add_argument("--questions", type=int, default=32, help="(default: %(default)s)")
    parser.add_argument("-o", "--output", type=Path, default=Path("out/reading"), metavar="FOLDER")
    args = parser.parse_args(options)
    let_idle_threads_sleep()
    keep_freed_memory()
    if args.threads:
        torch.set_num_threads(args.threads)
    try:
        measure(args, Record("reading.speed", args.json, options))
    except DoveError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


@torch.inference_mode()
def measure(args: argparse.Namespace, record: Record) -> None:
    """Both rows of the record."""
    rows = [json.loads(line) for line in (args.data / "test.jsonl").read_text(encoding="utf-8").splitlines()]
    asked = [rows[i * len(rows) // args.questions] for i in range(min(args.questions, len(rows)))]
    prefill: dict[str, Callable[[], Any]] = {}
    whole: dict[str, Callable[[], Any]] = {}
    lengths: dict[str, float] = {}
    missing: dict[str, str] = {}
    for name, system in SYSTEMS.items():
        run = trained(args, name)
        if run is None:
            missing[name] = f"not trained under {args.output.name}"
            continue
        encode = encoder(args, name, run.settings.fit)
        for count in system.tested:
            label = name if count is None else f"{name}, {count}"
            questions = [(row["question"], args.data / row["image"]) for row in asked]
            made = [encode(picture, question, count) for question, picture in questions]
            lengths[label] = sum(len(part) for parts in made for part in parts) / len(made)
            inputs = [run.inputs([q], parts) for (q, _), parts in zip(questions, made, strict=True)]
            prefill[label] = partial(_next, cycle([partial(run.model, **one) for one in inputs]))
            whole[label] = partial(
                _next, cycle([partial(_answer, run, encode, q, picture, count) for q, picture in questions])
            )
    if OURS not in whole:
        raise DoveError(
            f"{OURS!r} was not trained under {args.output}; `python -m benchmarks.reading` trains"
        )
    for what, calls in (("prefill", prefill), ("picture to answer", whole)):
        rounds = len(asked)
        times = timing.interleave(
            calls,
            seconds=args.seconds,
            min_rounds=1 if args.quick else rounds,
            max_rounds=8 * rounds,
            warmup=1,
        )
        setting = {"what": what, "batch": 1, "tokens": lengths}
        record.add(what, setting, {**timing.compare(times, ours=OURS), "missing": missing})


def _next(calls: Any) -> None:
    next(calls)()


def _answer(run: ReadingRun, encode: Encode, question: str, picture: Path, count: Count) -> list[str]:
    return run.generate(run.inputs([question], encode(picture, question, count)))


def trained(args: argparse.Namespace, name: str) -> ReadingRun | None:
    """The language model of a system, as `benchmarks.reading` left it; None: it did not train it."""
    settings = settings_of(args, 0, SYSTEMS[name])
    folder = args.output / args.data.resolve().name / "runs" / f"{slug(name)}-0" / "checkpoints"
    if not (folder / f"step-{settings.steps:07d}.pt").exists() or (name == "vqgan" and not args.vqgan):
        return None
    with run_of(args, name, settings, source_of(args, SYSTEMS[name].tokens, settings.fit)) as run:
        run.fit()
    run.model.eval()
    return run


def encoder(args: argparse.Namespace, name: str, fit: str) -> Encode:
    """How a system makes tokens of a picture's file."""
    what = SYSTEMS[name].tokens
    if not what:
        return lambda picture, question, count: []
    if what == "patches":
        return lambda picture, question, count: [
            row for _, row, _ in systems.patches(trials.SIDE, picture.parent, [picture.name], fit)
        ]
    if what == "vqgan":
        vqgan = VQGAN.from_pretrained(args.vqgan).eval()
        return lambda picture, question, count: [
            code for _, code, _ in systems.vqgan(vqgan, trials.SIDE, picture.parent, [picture.name], fit)
        ]
    model = DoveModel.from_pretrained("dove-tiny-q" if what == "q" else "dove-tiny").eval()

    def encode(picture: Path, question: str, count: Count) -> list[Tensor]:
        query = [question] if what == "q" else None
        asked = {"min_tokens": count.tokens} if isinstance(count, AtLeast) else {"num_tokens": count}
        made = model.encode([picture], query=query, fit=fit, **asked)  # type: ignore[arg-type]
        return [made[0].tokens]

    return encode


if __name__ == "__main__":
    sys.exit(main())
