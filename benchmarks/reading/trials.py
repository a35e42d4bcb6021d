"""The rows of the table: whose tokens, how many in training and in the test, and how each is trained."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dove_ext.models.dove import DoveModel
from dove_ext.models.vqgan import VQGAN
from dove_instruct.settings import Settings, make_settings
from dove_train.distributed import join
from dove_train.settings import read_recipe

from . import store, systems
from .run import ReadingRun

RECIPE = Path(__file__).resolve().parents[2] / "recipes" / "small-vlm.yaml"
COUNTS = (8, 16, 32, 64, 128, 256)
FEWEST = 8  # of a row that asks for own lengths of no fewer
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
    trained: tuple[store.Count, ...] = (None,)
    tested: tuple[store.Count, ...] = (None,)


SYSTEMS = {
    "question alone": System(""),
    "patches": System("patches"),
    "vqgan": System("vqgan"),
    "dove-tiny": System("dove", (None, *COUNTS), (*COUNTS, None, store.AtLeast(FEWEST))),
    "dove-tiny, own lengths": System("dove"),
    "dove-tiny-q": System("q"),
}


def settings_of(args: argparse.Namespace, seed: int, system: System) -> Settings:
    """The recipe's, with this run's data."""
    values: dict[str, Any] = {
        **read_recipe(args.recipe),
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
    return make_settings(values, str(args.recipe))


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


def slug(name: str) -> str:
    """A system's name in names of files."""
    return name.replace(" ", "-").replace(",", "")


@contextmanager
def run_of(args: argparse.Namespace, name: str, seed: int) -> Iterator[ReadingRun]:
    """The training of a system, which goes on where it stopped."""
    system = SYSTEMS[name]
    settings = settings_of(args, seed, system)
    with join("cpu", "ddp") as world:
        yield ReadingRun(
            settings,
            args.output / args.data.resolve().name / "runs" / f"{slug(name)}-{seed}",
            world,
            root=args.data,
            store=tokens_of(args, system.tokens, settings) if system.tokens else None,
            counts=system.trained,
            asked=system.tokens == "q",
        )
