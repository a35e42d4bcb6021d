"""`dove vlm questions`: conversations about labelled pictures, and a tokenizer, for a small model."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from pathlib import Path

from dove_ext.cli.command import EXIT_OK, UsageError
from dove_ext.cli.options import positive
from dove_instruct.question_data import TEST, TRAIN, find_easy_vqa, write_questions


def configure(parser: ArgumentParser) -> None:
    """Add the verb's arguments, and `run` as what it runs."""
    parser.add_argument(
        "--easy-vqa", action="store_true", help="questions of the package easy-vqa (pip install easy-vqa)"
    )
    parser.add_argument(
        "--train", nargs="+", type=Path, default=[], metavar="PATH",
        help="labelled pictures: folders with a folder a class, or .tar shards whose JSON has label or boxes",
    )  # fmt: skip
    parser.add_argument(
        "--test", nargs="+", type=Path, default=[], metavar="PATH", help="likewise; others than to train with"
    )
    parser.add_argument(
        "--mosaics", type=int, default=2000, metavar="N",
        help="mosaics of four training pictures, to count and compare in (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--at-least", type=positive, default=15, metavar="N",
        help="ask for labels of so many training pictures or more (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--turns", type=positive, default=1, metavar="N",
        help="most questions of a training row, all of one picture (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="(default: %(default)s)")
    parser.add_argument("-o", "--output", required=True, type=Path, metavar="FOLDER", help="a new folder")
    parser.set_defaults(run=run)  # of this parser, whatever its parent runs


def run(args: Namespace) -> int:
    """Write, and say how many there are."""
    if not args.easy_vqa and not args.train:
        raise UsageError("give --easy-vqa, or labelled pictures with --train and --test")
    if args.mosaics < 0 or args.seed < 0:
        raise UsageError("--mosaics and --seed must be 0 or more")
    counts = write_questions(
        args.output,
        easy_vqa=find_easy_vqa() if args.easy_vqa else None,
        train=args.train,
        test=args.test,
        mosaics=args.mosaics,
        at_least=args.at_least,
        turns=args.turns,
        seed=args.seed,
    )
    for part in (TRAIN, TEST):
        kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(counts[part].items()))
        print(f"{args.output / part}: {sum(counts[part].values())} questions ({kinds})")
    return EXIT_OK
