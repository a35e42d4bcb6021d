"""`dove tokenize`: a large set of pictures becomes a set of tokens, however often it is interrupted."""

from __future__ import annotations

import json
from argparse import ArgumentParser, ArgumentTypeError, Namespace
from pathlib import Path
from typing import Any

from dove_data.settings import ENGINES, FORMATS, MOST_UNREADABLE, SAFETENSORS
from dove_ext.cli.command import EXIT_FAILED, EXIT_OK, Command, UsageError
from dove_ext.cli.options import (
    IMAGE_PATHS,
    add_fit_option,
    add_json_option,
    add_length_options,
    add_model_options,
    add_query_option,
    add_tiles_option,
    find_device,
    length_arguments,
    positive,
    tiles_argument,
)
from dove_ext.cli.pictures import printable
from dove_ext.config import IMAGE_LENGTHS

EXIT_UNREADABLE = 3  # finished, but for pictures that cannot be read


def unreadable(text: str) -> float:
    """A number of pictures, or a share of them in percent, for argparse."""
    try:
        value = float(text.removesuffix("%")) / 100 if text.endswith("%") else int(text)
    except ValueError:
        value = -1
    if value < 0 or (text.endswith("%") and not value < 1):
        raise ArgumentTypeError(f"{text!r} is neither a number of pictures nor a share below 100%")
    return value


def configure(parser: ArgumentParser) -> None:
    """Add the verb's arguments."""
    parser.usage = "dove tokenize [options] SRC [SRC ...] DST\n       dove tokenize --verify DST"
    parser.epilog = (
        f"{IMAGE_PATHS}\n\nexit codes:\n  0 all pictures have tokens; 3 finished, but manifest.json "
        "names some that cannot be read; 1 not\n  finished, the same command goes on, or --verify has found "
        f"something; 2 the command line is wrong\n\n{parser.epilog or ''}"
    )
    parser.add_argument(
        "paths", nargs="+", metavar="PATH", help="pictures, as below, and last the folder DST"
    )
    parser.add_argument(
        "--verify", action="store_true", help="check all of DST against its manifest; make nothing"
    )
    add_fit_option(parser)
    add_tiles_option(parser)
    parser.add_argument(
        "--drop-empty", action="store_true",
        help="with --tiles and a query for a model with a relevance map: leave out tiles that show nothing "
        "of what is asked for",
    )  # fmt: skip
    add_query_option(parser, "what the tokens are to tell of")
    group = parser.add_argument_group("the set")
    group.add_argument(
        "--shard-size", type=positive, default=1000, metavar="N",
        help="pictures of a shard, which is what one worker makes at a time (default: %(default)s)",
    )  # fmt: skip
    group.add_argument(
        "--format", choices=FORMATS, default=SAFETENSORS,
        help="of shards: files of tokens, which dove_data reads, or tar files for WebDataset "
        "(default: %(default)s)",
    )  # fmt: skip
    group.add_argument(
        "--max-unreadable", type=unreadable, default=MOST_UNREADABLE, metavar="N|P%",
        help="go on past so many pictures that cannot be read (default: 0.1%%, at least one)",
    )  # fmt: skip
    group = parser.add_argument_group("columns of parquet files")
    group.add_argument("--image-column", default="image", metavar="NAME", help="(default: %(default)s)")
    group.add_argument(
        "--key-column", metavar="NAME", help="what pictures are called (default: file and number of the row)"
    )
    group.add_argument("--query-column", metavar="NAME", help="what each picture's tokens are to tell of")
    group = parser.add_argument_group("work")
    group.add_argument(
        "--engine", choices=ENGINES, default=ENGINES[0],
        help="this machine, or a Ray cluster (RAY_ADDRESS; pip install 'dove-ext[ray]'; "
        "default: %(default)s)",
    )  # fmt: skip
    group.add_argument(
        "--workers", type=positive, metavar="N",
        help="processes, each with a model of its own (default: one a GPU, on a CPU one a core)",
    )  # fmt: skip
    add_json_option(parser)
    add_length_options(parser, IMAGE_LENGTHS)
    add_model_options(parser)


def run(args: Namespace) -> int:
    """Make a set or the rest of one, or check it."""
    if args.verify:
        return _verify(args)
    *sources, folder = args.paths
    if not sources:
        raise UsageError("give pictures and, last, the folder that the tokens are written to")
    if args.query is not None and args.query_column is not None:
        raise UsageError("--query is one for all pictures, --query-column one for each; drop one of them")
    lengths, tiles = length_arguments(args), tiles_argument(args)

    from dove_ext.memory import keep_freed_memory, let_idle_threads_sleep

    let_idle_threads_sleep()
    find_device(args.device)  # a wrong --device is a usage error

    from dove_data.progress import Progress
    from dove_data.run import tokenize
    from dove_data.settings import Settings

    keep_freed_memory()
    names = (
        "model", "dtype", "device", "batch_size", "shard_size", "query", "query_column", "image_column",
        "key_column", "fit", "drop_empty", "format",
    )  # fmt: skip
    settings = Settings(tiles=tiles, **lengths, **{name: getattr(args, name) for name in names})
    bars: list[Progress] = []

    def on_start(pictures: int) -> Any:
        bars.append(Progress(pictures))
        return bars[0].add

    try:
        result = tokenize(
            sources, folder, settings, engine=args.engine, workers=args.workers,
            max_unreadable=args.max_unreadable, on_start=on_start,
        )  # fmt: skip
    finally:
        for bar in bars:
            bar.close()
    manifest = result.manifest
    bad = manifest["unreadable"]
    names_of = ("pictures", "tokens", "bytes", "unreadable")
    report = {"output": folder, "shards": len(manifest["shards"]), "made": result.made}
    report |= {name: manifest[name] for name in names_of}
    if args.json:
        print(json.dumps(report, indent=2))
    else:
        mean = manifest["tokens"] / max(1, manifest["pictures"])
        there = f" ({report['shards'] - result.made} were there)" if result.made < report["shards"] else ""
        print(
            f"{manifest['pictures']} pictures, {manifest['tokens']} tokens, mean length {mean:.1f}, "
            f"{manifest['bytes']} bytes in {report['shards']} shards{there} in "
            f"{printable(folder)}"
        )
        for item in bad[:10]:
            print(f"  cannot be read: {printable(item['reason'])}")
        if len(bad) > 10:
            print(f"  and {len(bad) - 10} more, see {printable(Path(folder) / 'manifest.json')}")
    return EXIT_UNREADABLE if bad else EXIT_OK


def _verify(args: Namespace) -> int:
    if len(args.paths) != 1:
        raise UsageError("--verify takes one folder, which `dove tokenize` has written")
    from dove_data.checking import verify

    folder = args.paths[0]
    wrong = list(verify(Path(folder)))
    if args.json:
        print(json.dumps({"folder": folder, "wrong": wrong}, indent=2))
    elif not wrong:
        print(f"{printable(folder)} is whole")
    for sentence in wrong:
        if not args.json:
            print(f"{printable(folder)}: {printable(sentence)}")
    return EXIT_FAILED if wrong else EXIT_OK


command = Command(
    "make a large set of pictures a set of tokens, and go on where it was interrupted",
    configure,
    run,
    example="dove tokenize photos/ tokens/ --max-tokens 128\n"
    "  dove tokenize train-*.parquet tokens/ --key-column id --engine ray",
)
