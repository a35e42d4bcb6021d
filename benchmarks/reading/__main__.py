"""Table 3, small: the same small language model behind several encoders' tokens, trained and asked.

    OMP_WAIT_POLICY=PASSIVE python -m benchmarks.reading DATA [--vqgan FOLDER] [-o out/reading]

DATA is a folder that `dove vlm questions` wrote; a recipe says how each is trained. Systems:
the question alone, raw patches of 16 x 16 pixels, a VQGAN's 256 codes (a folder by
`dove train recipes/vqgan-tiny.yaml`), dove-tiny (one model reads prefixes of 8 to 256 tokens and own lengths,
drawn anew for each row), dove-tiny at its own lengths alone, and dove-tiny-q asked the question. Tokens are
made once; what was measured in -o is kept, so a command that was stopped goes on. On two slow cores it takes
a day; see --systems, --seeds, --steps.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from dove_ext.errors import DoveError
from dove_ext.memory import keep_freed_memory, let_idle_threads_sleep

from ..record import machine
from . import report
from .run import evaluate, label
from .trials import RECIPE, SYSTEMS, identity, run_of, settings_of, slug, source_of


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path, help="a folder by `dove vlm questions`")
    parser.add_argument("--vqgan", metavar="FOLDER", help="a VQGAN with its codebook (without: no such row)")
    parser.add_argument("--systems", nargs="+", choices=list(SYSTEMS), metavar="NAME", help="only these")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="(default: 0 1 2)")
    parser.add_argument("--recipe", type=Path, default=RECIPE, help="(default: recipes/small-vlm.yaml)")
    parser.add_argument("--steps", type=int, help="(default: the recipe's)")
    parser.add_argument("--limit", type=int, metavar="N", help="ask N test questions, evenly spread")
    parser.add_argument("--threads", type=int, help="(default: torch's own choice)")
    parser.add_argument("-o", "--output", type=Path, default=Path("out/reading"), metavar="FOLDER")
    args = parser.parse_args()
    let_idle_threads_sleep()
    keep_freed_memory()
    if args.threads:
        torch.set_num_threads(args.threads)
    try:
        return measure(args)
    except DoveError as error:
        print(error, file=sys.stderr)
        return 1


def measure(args: argparse.Namespace) -> int:
    """Every system and seed that was not measured yet, then the table."""
    root, out = args.data, args.output / args.data.resolve().name
    if "vqgan" in (args.systems or []) and not args.vqgan:
        raise DoveError("the system vqgan needs --vqgan, the folder of a VQGAN with its codebook")
    try:
        lines = (root / "test.jsonl").read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise DoveError(f"{root} holds no questions; `dove vlm questions -o {root}` writes them") from error
    rows = [json.loads(line) for line in lines]
    if args.limit is not None and args.limit < len(rows):
        rows = [rows[i * len(rows) // args.limit] for i in range(args.limit)]
    (out / "results").mkdir(parents=True, exist_ok=True)
    chosen = args.systems or [name for name in SYSTEMS if name != "vqgan" or args.vqgan]
    for seed in args.seeds:
        for name in chosen:
            one(args, out, name, seed, rows)
            (out / "table.md").write_text(report.table(out / "results"), encoding="utf-8")
    print((out / "table.md").read_text(encoding="utf-8"))
    return 0


def one(args: argparse.Namespace, out: Path, name: str, seed: int, rows: Sequence[dict[str, str]]) -> None:
    """One system and seed: trained, asked, written down."""
    places = {
        n: out / "results" / f"{slug(name)}-{slug(str(label(n)))}-{seed}.json" for n in SYSTEMS[name].tested
    }
    settings = settings_of(args, seed, SYSTEMS[name])
    source = source_of(args, SYSTEMS[name].tokens, settings.fit)
    of = identity(args, settings, source)
    for place in places.values():
        if place.exists() and json.loads(place.read_text(encoding="utf-8")).get("of") != of:
            raise DoveError(
                f"{str(place)!r} is of other settings, questions or encoders than this command's; give "
                "another -o"
            )
    if all(place.exists() for place in places.values()):
        return
    with run_of(args, name, settings, source) as run:
        facts = {"system": name, "seed": seed, "steps": run.settings.steps, "of": of, "machine": machine()}
        facts["parameters"] = sum(p.numel() for p in run.model.parameters())
        run.fit()
        for count, place in places.items():
            found = evaluate(run, rows, count, place, facts)
            print(f"{name}, {found['count']}, seed {seed}: {found['accuracy']:.1f}%", flush=True)


if __name__ == "__main__":
    sys.exit(main())
