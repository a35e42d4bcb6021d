"""`dove bench`: measure the tokenizers side by side on this machine, and print or record the results."""

from __future__ import annotations

import sys
import time
from argparse import ArgumentParser, ArgumentTypeError, Namespace
from pathlib import Path
from typing import Any

from dove_ext.cli.command import EXIT_OK, Command, UsageError
from dove_ext.cli.options import add_json_option, positive
from dove_ext.errors import DoveError

RESULTS = Path(__file__).resolve().parents[1] / "results"


def configure(parser: ArgumentParser) -> None:
    """Add the verb's arguments."""
    what = parser.add_mutually_exclusive_group()
    what.add_argument(
        "--quick", action="store_true",
        help="a few systems at batch 8: under five minutes on two cores, printed only (the default)",
    )  # fmt: skip
    what.add_argument(
        "--full",
        action="store_true",
        help="everything: about an hour on two cores, written to -o; cut short, it goes on",
    )
    what.add_argument(
        "--report", nargs="?", const="", metavar="RECORD",
        help="measure nothing: make tables and plots anew from a bench.json (default: the one in -o)",
    )  # fmt: skip
    parser.add_argument(
        "-o", "--output", metavar="FOLDER",
        help="where bench.json, bench.csv, bench.md and the plots go (default: benchmarks/results)",
    )  # fmt: skip
    parser.add_argument(
        "--only", action="append", default=[], metavar="NAME",
        help="measure only systems, or groups of measurements, whose name starts so, as in --only dove-tiny, "
        "--only 'VQGAN-256, eager fp32' or --only 'file to first word'; may be repeated",
    )  # fmt: skip
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N (default: %(default)s)")
    parser.add_argument("--threads", type=positive, metavar="N", help="threads of all systems alike")
    parser.add_argument(
        "--weights", action="append", default=[], metavar="NAME=PATH", type=_weights,
        help="a checkpoint instead of random weights; NAME is dove-base, vqgan, alit, titok-S-128, "
        "titok-B-64 or titok-L-32",
    )  # fmt: skip
    add_json_option(parser)


def _weights(text: str) -> tuple[str, str]:
    name, _, path = text.partition("=")
    names = ("dove-base", "vqgan", "alit", "titok-S-128", "titok-B-64", "titok-L-32")
    if name not in names or not path:
        raise ArgumentTypeError(f"{text!r} is not NAME=PATH with a NAME of {', '.join(names)}")
    if not Path(path).exists():
        raise ArgumentTypeError(f"there is no checkpoint {path!r}")
    return name, path


def run(args: Namespace) -> int:
    """Measure or read, then print and write."""
    output = Path(args.output) if args.output else RESULTS
    if args.report is not None:
        _show(args, _read(Path(args.report) if args.report else output / "bench.json"), output)
        return EXIT_OK
    record, parts = _measure(args, output)
    _show(args, record, output)
    parts.close()
    return EXIT_OK


def _measure(args: Namespace, output: Path) -> tuple[dict[str, Any], Any]:
    # Before torch is loaded; the same for all systems.
    from dove_ext.memory import keep_freed_memory, let_idle_threads_sleep

    let_idle_threads_sleep()
    device = _device(args.device)
    if args.full:
        from dove_ext.atomic import make_writable_folder

        make_writable_folder(output)
    if device.type == "cpu":
        keep_freed_memory()
    if args.threads:
        import torch

        torch.set_num_threads(args.threads)
    from . import build, measure, systems

    if not systems.plan(not args.full, args.only):
        names = dict.fromkeys(s.name for s in systems.SYSTEMS if args.full or s.quick)
        raise UsageError(f"--only {', '.join(args.only)}: of such a name there is none in {', '.join(names)}")
    build.WEIGHTS.update(args.weights)

    start = time.monotonic()

    def say(line: str) -> None:
        print(f"{time.monotonic() - start:6.0f} s  {line}", file=sys.stderr, flush=True)

    mode = "--full" if args.full else "--quick"
    threads = ["--threads", str(args.threads)] if args.threads else []
    weights = [part for name, path in args.weights for part in ("--weights", f"{name}={Path(path).name}")]
    only = [part for start in args.only for part in ("--only", start)]
    command = ["dove", "bench", mode, "--device", args.device, *only, *threads, *weights]
    partial = output / "bench.partial.json" if args.full else None
    return measure.record(not args.full, device, command, say, partial, args.only)


def _device(name: str) -> Any:
    import torch

    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UsageError(f"--device {name!r} is unknown; use cpu, cuda or cuda:N") from error
    if device.type not in ("cpu", "cuda"):
        raise UsageError(f"--device {name!r} cannot be measured; use cpu, cuda or cuda:N")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise DoveError(
            f"--device {name!r} is not there: torch sees {torch.cuda.device_count()} CUDA devices; "
            "use --device cpu"
        )
    return device


def _read(path: Path) -> dict[str, Any]:
    from .report import read_record

    return read_record(path)


def _show(args: Namespace, record: dict[str, Any], output: Path) -> None:
    import json

    from . import report

    if args.json:
        print(json.dumps(record, indent=1))
    else:
        print(report.markdown(record))
    if args.full or args.report is not None:
        for path in report.write(record, output, with_record=args.full):
            print(f"wrote {path}", file=sys.stderr)


command = Command(
    "measure latency, FLOPs and memory beside VQGAN, ALIT and TiTok",
    configure,
    run,
    example="dove bench --quick",
)
