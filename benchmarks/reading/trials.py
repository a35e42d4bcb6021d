"""The rows of the table: whose tokens, how many in training and in the test, and how each is trained."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

from dove_ext.models.dove import DoveModel
from dove_ext.models.pretrained import weights_digest
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


@dataclass(frozen=True)
class Source:
    """What tokens are made of.

    Attributes:
        encoder: None: patches.
        digest: of its weights, the questions, and how pictures become square.
    """

    encoder: DoveModel | VQGAN | None
    digest: str


def source_of(args: argparse.Namespace, what: str, fit: str) -> Source:
    """Of a kind of tokens."""
    encoder: DoveModel | VQGAN | None = None
    if what == "vqgan":
        encoder = VQGAN.from_pretrained(args.vqgan).eval()
    elif what in ("dove", "q"):
        encoder = DoveModel.from_pretrained("dove-tiny-q" if what == "q" else "dove-tiny").eval()
    about = [what, fit, data_digest(args.data)]
    if encoder is not None:
        about += [encoder.config.to_json(), weights_digest(encoder.state_dict())]
    return Source(encoder, blake2b(repr(about).encode(), digest_size=16).hexdigest())


def tokens_of(args: argparse.Namespace, what: str, fit: str, source: Source) -> store.Store:
    """The store of a kind of tokens, made if it is not there."""
    folder, root, encoder = (
        args.output / args.data.resolve().name / "tokens" / what,
        args.data,
        source.encoder,
    )
    if folder.exists():
        return store.opened(folder, source.digest)
    print(f"{folder}: tokens of all pictures", flush=True)
    asked = [
        (row["image"], turn["value"].replace("<image>\n", ""))
        for row in json.loads((root / "train.json").read_text(encoding="utf-8"))
        for turn in row["conversations"][::2]
    ]
    lines = (root / "test.jsonl").read_text(encoding="utf-8").splitlines()
    asked += [(row["image"], row["question"]) for row in map(json.loads, lines)]
    names = list(dict.fromkeys(image for image, _ in asked))
    made: store.Made
    if encoder is None:
        made = systems.patches(SIDE, root, names, fit)
    elif isinstance(encoder, VQGAN):
        made = systems.vqgan(encoder, SIDE, root, names, fit)
    elif what == "q":
        made = systems.asked(encoder, root, asked, fit)
    else:
        made = systems.dove(encoder, root, names, fit)
    return store.write(folder, made, source.digest)


def data_digest(root: Path) -> str:
    """Of the questions in a folder; what `dove vlm questions` wrote names its pictures."""
    texts = [(root / name).read_bytes() for name in ("train.json", "test.jsonl")]
    return blake2b(b"\0".join(texts), digest_size=16).hexdigest()


def identity(args: argparse.Namespace, settings: Settings, source: Source) -> str:
    """Of all that decides a result but its system, seed and number of tokens, which its file's name tells."""
    places = ("data", "images", "tokenizer", "cache", "encoder")  # what is read there is in the digests
    values = {name: value for name, value in asdict(settings).items() if name not in (*places, "seed")}
    about = repr((sorted(values.items()), args.limit, source.digest))
    return blake2b(about.encode(), digest_size=16).hexdigest()


def slug(name: str) -> str:
    """A system's name in names of files."""
    return name.replace(" ", "-").replace(",", "")


@contextmanager
def run_of(args: argparse.Namespace, name: str, settings: Settings, source: Source) -> Iterator[ReadingRun]:
    """The training of a system, which goes on where it stopped."""
    system = SYSTEMS[name]
    with join("cpu", "ddp") as world:
        yield ReadingRun(
            settings,
            args.output / args.data.resolve().name / "runs" / f"{slug(name)}-{settings.seed}",
            world,
            root=args.data,
            store=tokens_of(args, system.tokens, settings.fit, source) if system.tokens else None,
            counts=system.trained,
            asked=system.tokens == "q",
        )
