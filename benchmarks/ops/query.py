"""A second query about images that were seen, as a share of a first encode (Q-DOVE).

    OMP_WAIT_POLICY=PASSIVE python -m benchmarks.ops.query [--preset dove-base-q] [--json PATH]

In turns: `encode(images, query)`, `prefix(images)`, and `encode(prefix, query)`, float32, random weights, on
a CPU. A model with random weights predicts no EOS, so all positions run: the most that a query costs.
Queries are ids, 5 to 12 of them, of another number for each image. Shares are medians over rounds, by the
clock and by processor time, which other programs on the machine disturb less.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from dove_ext import DoveModel, Query, config
from dove_ext.memory import keep_freed_memory

from .. import timing
from ..record import Record, arguments

FIRST, PREFIX, SECOND = "first encode", "prefix", "second query"
QUICK_SIZE = 64  # pixels of a side with --quick


def queries(model: DoveModel, batch: int) -> Query | None:
    """Of a model with query weights."""
    if not model.config.query_vocab_size:
        return None
    lengths = torch.tensor([5 + 7 * i % 8 for i in range(batch)], dtype=torch.int32)
    ids = torch.randint(model.config.query_vocab_size, (batch, int(lengths.max())))
    return Query(ids, lengths)


def row(record: Record, args: argparse.Namespace, model: DoveModel, batch: int) -> None:
    """One number of images."""
    size = model.config.image_size
    images = torch.randint(256, (batch, 3, size, size), dtype=torch.uint8)
    query, seen = queries(model, batch), model.prefix(images)
    calls: dict[str, Callable[[], Any]] = {
        FIRST: lambda: model.encode(images, query=query),
        PREFIX: lambda: model.prefix(images),
        SECOND: lambda: model.encode(seen, query=query),
    }
    processor: dict[str, list[float]] = {name: [] for name in calls}

    def timed(name: str) -> None:
        start = time.process_time()
        calls[name]()
        processor[name].append(time.process_time() - start)

    times = timing.interleave(
        {name: lambda name=name: timed(name) for name in calls},
        seconds=args.seconds, min_rounds=1 if args.quick else 5, warmup=1,
    )  # fmt: skip
    processor = {name: values[1:] for name, values in processor.items()}  # without the warm-up
    share = {
        clock: timing.spread([a / b for a, b in zip(taken[SECOND], taken[FIRST], strict=True)])
        for clock, taken in (("wall", times), ("processor", processor))
    }
    setting = {"preset": args.preset, "batch": batch, "size": size, "dtype": "float32"}
    label = f"{args.preset}, batch {batch}"
    record.add(label, setting, {**timing.compare(times, ours=SECOND), "share_of_first_encode": share})
    for clock, found in share.items():
        print(f"  a second query takes {found['median']:.1%} of a first encode ({clock} time)")


def main(options: list[str] | None = None) -> int:
    parser = arguments(__doc__ or "", seconds=60.0)
    parser.add_argument(
        "--preset", default="dove-base-q", choices=config.PRESETS, help="(default %(default)s)"
    )
    args = parser.parse_args(options)
    if args.threads:
        torch.set_num_threads(args.threads)
    keep_freed_memory()
    record = Record("ops.query", args.json, options)
    torch.manual_seed(0)
    shape = config.preset(args.preset)
    model = DoveModel(replace(shape, image_size=QUICK_SIZE) if args.quick else shape).eval()
    for batch in args.batches or ((1,) if args.quick else (1, 4)):
        row(record, args, model, batch)
    return 0


if __name__ == "__main__":
    sys.exit(main())
