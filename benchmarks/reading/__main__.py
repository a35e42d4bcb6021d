"""Table 3, small: the same small language model behind several encoders' tokens, trained and asked.

    OMP_WAIT_POLICY=PASSIVE python -m benchmarks.reading DATA [--vqgan FOLDER] [-o out/reading]

DATA is a folder that `dove vlm questions` wrote; recipes/small-vlm.yaml says how each is trained. Systems:
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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from dove_ext.errors import DoveError
from dove_ext.memory import keep_freed_memory, let_idle_threads_sleep
from dove_ext.models.dove import DoveModel
from dove_ext.models.vqgan import VQGAN
from dove_instruct.settings import Settings, make_settings
from dove_train.distributed import join
from dove_train.settings import read_recipe

from ..record import machine
from . import report, store, systems
from .run import ReadingRun, evaluate

RECIPE = Path(__file__).resolve().parents[2] / "recipes" / "small-vlm.yaml"
COUNTS = (8, 16, 32, 64, 128, 256)
SIDE = 256  # pixels


@dataclass(frozen=True)
class System:
    """A row, or several, of the table.

    Attributes:
        tokens: the name of its store; "" for none.
        trained: numbers of tokens in training, None: the encoder's own length.
        tested: likewise.
    """

    tokens: str
    trained: tuple[int | None, ...] = (None,)
    tested: tuple[int | None, ...] = (None,)


SYSTEMS = {
    "question alone": System(""),
    "patches": System("patches"),
    "vqgan": System("vqgan"),
    "dove-tiny": System("dove", (None, *COUNTS), (*COUNTS, None)),
    "dove-tiny, own lengths": System("dove"),
    "dove-tiny-q": System("q"),
}


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path, help="a folder by `dove vlm questions`")
    parser.add_argument("--vqgan", metavar="FOLDER", help="a VQGAN with its codebook (without: no such row)")
    parser.add_argument("--systems", nargs="+", choices=list(SYSTEMS), metavar="NAME", help="only these")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="(default: 0 1 2)")
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
    system, slug = SYSTEMS[name], name.replace(" ", "-").replace(",", "")
    places = {n: out / "results" / f"{slug}-{'own' if n is None else n}-{seed}.json" for n in system.tested}
    if all(place.exists() for place in places.values()):
        return
    settings = settings_of(args, seed, system)
    tokens = tokens_of(args, system.tokens, settings) if system.tokens else None
    facts = {"system": name, "seed": seed, "steps": settings.steps, "machine": machine()}
    with join("cpu", "ddp") as world:
        run = ReadingRun(
            settings,
            out / "runs" / f"{slug}-{seed}",
            world,
            root=args.data,
            store=tokens,
            counts=system.trained,
            asked=system.tokens == "q",
        )
        facts["parameters"] = sum(p.numel() for p in run.model.parameters())
        run.fit()
        for count, place in places.items():
            found = evaluate(run, rows, count, place, facts)
            print(f"{name}, {found['count']}, seed {seed}: {found['accuracy']:.1f}%", flush=True)


def settings_of(args: argparse.Namespace, seed: int, system: System) -> Settings:
    """The recipe's, with this run's data."""
    values: dict[str, Any] = {
        **read_recipe(RECIPE),
        "data": [str(args.data / "train.json")],
        "tokenizer": str(args.data / "tokenizer"),
        "device": "cpu",
        "seed": seed,
    }
    if args.steps is not None:
        values["steps"] = args.steps
    if system.tokens == "q":  # rows of one question each: as many questions a step as the others have
        rows = json.loads((args.data / "train.json").read_text(encoding="utf-8"))
        turns = sum(len(row["conversations"]) // 2 for row in rows) / len(rows)
        values["global_batch"] = round(turns * values["global_batch"])
    return make_settings(values, str(RECIPE))


def tokens_of(args: argparse.Namespace, what: str, settings: Settings) -> store.Store:
    """The store of a kind of tokens, made if it is not there."""
    folder = args.output / args.data.resolve().name / "tokens" / what
    if folder.exists():
        return store.Store(folder)
    print(f"{folder}: tokens of all pictures", flush=True)
    root, fit = args.data, settings.fit
    asked = [
        (row["image"], turn["value"].replace("<image>\n", ""))
        for row in json.loads((root / "train.json").read_text(encoding="utf-8"))
        for turn in row["conversations"][::2]
    ]
    lines = (root / "test.jsonl").read_text(encoding="utf-8").splitlines()
    asked += [(row["image"], row["question"]) for row in map(json.loads, lines)]
    names = list(dict.fromkeys(image for image, _ in asked))
    made: store.Made
    if what == "patches":
        made = systems.patches(SIDE, root, names, fit)
    elif what == "vqgan":
        made = systems.vqgan(VQGAN.from_pretrained(args.vqgan).eval(), SIDE, root, names, fit)
    elif what == "q":
        made = systems.asked(DoveModel.from_pretrained("dove-tiny-q").eval(), root, asked, fit)
    else:
        made = systems.dove(DoveModel.from_pretrained("dove-tiny").eval(), root, names, fit)
    return store.write(folder, made)


if __name__ == "__main__":
    sys.exit(main())
