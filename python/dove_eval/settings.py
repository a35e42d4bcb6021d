"""What an evaluation depends on: one flat dataclass, filled from Python or from the command line."""

from __future__ import annotations

import math
import shlex
from collections.abc import Sequence
from dataclasses import Field, dataclass, field, fields
from pathlib import Path
from typing import Any

from dove_ext.config import DEFAULT_MODEL
from dove_ext.errors import DoveError

COUNTS = (16, 32, 64, 128, 256)  # token counts that curves are drawn through
QUERY_COUNTS = (32, 48, 64)
MOSAICS = 500
TARGETS = (20.0, 24.0, 28.0, 32.0)  # dB at which text is read
CHARACTERS = 250
DOCUMENTS = ("page-20:5", "page-28:5", "slide:8", "screenshot:8", "form:7", "receipt:7")
# What can be measured: the verbs of `dove eval`.
MEASUREMENTS = {
    "reconstruction": "quality against token count, beside VQGAN, JPEG and WebP",
    "lengths": "how many tokens images get, and what that follows",
    "classify": "an MLP on frozen tokens, at several token counts",
    "probe": "a linear layer on every hidden layer",
    "segment": "hidden features as pictures",
    "query": "what a text query brings inside its boxes, on photographs and on mosaics",
    "text": "how much of the text of drawn documents can still be read, at how many tokens",
    "compare": "two models on the same images, paired",
    "all": "everything that the data allows, as one report",
}
LABELS = ("classify", "probe")  # need classes
UNLABELLED = tuple(name for name in MEASUREMENTS if name not in (*LABELS, "text"))
CLASSES = (*LABELS, "all")
ONE_MODEL = tuple(name for name in MEASUREMENTS if name not in ("compare", "query", "text"))
ASKED = ("query", "all")
QUALITY = ("reconstruction", "compare", "all")
DISTANCES = {  # what a perceptual distance truly is
    "mobilenet": "MobileNetV2 feature distance",
    "lpips-vgg": "LPIPS (VGG16)",
    "st-lpips": "ST-LPIPS (AlexNet)",
    "st-lpips-vgg": "ST-LPIPS (VGG16)",
}


class EvaluationError(DoveError, ValueError):
    """Settings that contradict one another or are out of range; one sentence that names the option."""


def _about(
    text: str,
    metavar: str = "",
    *,
    of: Sequence[str] = tuple(MEASUREMENTS),
    needed: Sequence[str] = (),
    choices: Sequence[str] = (),
) -> dict[str, Any]:
    """What a field is for: `of` these measurements, `needed` by those."""
    return {"help": text, "metavar": metavar, "of": of, "needed": needed, "choices": choices}


@dataclass(frozen=True, kw_only=True)
class EvalSettings:
    """One evaluation. Each field is an option of `dove eval MEASUREMENT`, and errors call it by that name.

    Raises:
        EvaluationError: if a value is out of range, is missing, or has no meaning for the measurement.
    """

    measurement: str = field(default="all", metadata={"choices": tuple(MEASUREMENTS)})
    output: str | Path = field(
        metadata=_about(
            "folder for report.html and report.json; rows/ in it lets an interrupted run go on", "DIR"
        )
    )
    # --- the images ---
    data: Sequence[str | Path] = field(
        default=(),
        metadata=_about(
            "images: folders, tar shards, npz files, CIFAR's folders, torchvision:NAME:ROOT, drawn:KIND, "
            "picture files", "PATH", of=UNLABELLED, needed=UNLABELLED,
        ),
    )  # fmt: skip
    limit: int | None = field(
        default=None,
        metadata=_about("use N images (of `query`: queries), evenly spread over the set", "N", of=UNLABELLED),
    )
    labelled: Sequence[str | Path] = field(
        default=(),
        metadata=_about(
            "images with classes: a folder for each class, labels in the shards' JSON or in the npz", "PATH",
            of=CLASSES, needed=LABELS,
        ),
    )  # fmt: skip
    labelled_test: Sequence[str | Path] = field(
        default=(),
        metadata=_about(
            "test images with classes; without it, the split that the data names, or every fifth image",
            "PATH", of=CLASSES,
        ),
    )  # fmt: skip
    per_class: int | None = field(
        default=None, metadata=_about("use the first N images of each class and split", "N", of=CLASSES)
    )
    fit: str = field(
        default="crop",
        metadata=_about(
            "how a picture becomes square", of=(*ONE_MODEL, "compare"), choices=("crop", "squash", "pad")
        ),
    )
    # --- the model and what stands beside it ---
    model: str | Path = DEFAULT_MODEL
    device: str = "cpu"
    dtype: str = field(default="float32", metadata={"choices": ("float32", "bfloat16")})
    batch_size: int = 16
    vqgan: str | Path | None = field(
        default=None,
        metadata=_about(
            "a VQGAN's folder as the fixed-length baseline (default: the model's own)", "FOLDER", of=ONE_MODEL
        ),
    )
    qdove: str | Path | None = field(
        default=None, metadata=_about("a query-conditioned model", "NAME", of=ONE_MODEL)
    )
    null_query: Sequence[int] = field(
        default=(),
        metadata=_about('the ids of its query "null" (default: its own tokenizer\'s)', "ID", of=ONE_MODEL),
    )
    against: str | Path | None = field(
        default=None,
        metadata=_about(
            "a second model, compared pair by pair", "NAME", of=("compare", "all"), needed=("compare",)
        ),
    )
    # --- how it is measured ---
    counts: Sequence[int] = field(default=COUNTS, metadata=_about("token counts", "N", of=QUALITY))
    perceptual: str | None = field(
        default=None,
        metadata=_about(
            "perceptual distance (default: mobilenet, if its weights are there)", of=QUALITY,
            choices=tuple(DISTANCES),
        ),
    )  # fmt: skip
    perceptual_weights: str | Path | None = field(
        default=None, metadata=_about("its local weights file", "FILE", of=QUALITY)
    )
    inception: str | Path | None = field(
        default=None,
        metadata=_about(
            "FID's InceptionV3, pt_inception-2015-12-05-6726825d.pth", "FILE", of=("reconstruction", "all")
        ),
    )
    codecs: bool = field(
        default=True,
        metadata=_about("leave JPEG and WebP out, which saves time", of=("reconstruction", "all")),
    )
    oracle: Sequence[float] = field(
        default=(),
        metadata=_about(
            "mean lengths at which to say what lengths chosen with full knowledge of every error would reach",
            "MEAN", of=("lengths", "all"),
        ),
    )  # fmt: skip
    seeds: int = field(default=3, metadata=_about("heads trained from N seeds", "N", of=CLASSES))
    query_counts: Sequence[int] = field(
        default=QUERY_COUNTS, metadata=_about("token counts at which queries are compared", "N", of=ASKED)
    )
    mosaic_data: Sequence[str | Path] = field(
        default=(),
        metadata=_about(
            "pictures with classes, of which mosaics are made that are asked for one of them",
            "PATH",
            of=ASKED,
        ),
    )
    mosaics: int = field(default=MOSAICS, metadata=_about("so many mosaics", "N", of=ASKED))
    known: Sequence[str | Path] = field(
        default=(),
        metadata=_about(
            "what the model was trained on: queries with a word that is not among its labels and queries are "
            "measured apart", "PATH", of=ASKED,
        ),
    )  # fmt: skip
    documents: Sequence[str] = field(
        default=DOCUMENTS,
        metadata=_about("documents that are drawn: KIND or KIND:COUNT", "KIND", of=("text",)),
    )
    fonts: Sequence[str | Path] = field(
        default=(),
        metadata=_about(
            "font files, which documents take by turns beside Pillow's own font", "FILE",
            of=("text",),
        ),
    )  # fmt: skip
    targets: Sequence[float] = field(
        default=TARGETS, metadata=_about("PSNR in dB at which text is read", "DB", of=("text",))
    )
    characters: int = field(
        default=CHARACTERS,
        metadata=_about(
            "read about N characters of each document, in lines evenly spread", "N", of=("text",)
        ),
    )
    layer: int | None = field(
        default=None,
        metadata=_about(
            "the generator's layer to show (default: the last but one)", "L", of=("segment", "all")
        ),
    )

    def __post_init__(self) -> None:
        for item in fields(self):
            value = getattr(self, item.name)
            if isinstance(item.default, tuple):
                value = (value,) if isinstance(value, str | Path) else tuple(value)
                object.__setattr__(self, item.name, value)
            _check(item, value, self.measurement)
        if self.null_query and not self.qdove:
            raise EvaluationError("--null-query belongs to --qdove; give the model, too")
        if self.mosaics != MOSAICS and not self.mosaic_data:
            raise EvaluationError("--mosaics belongs to --mosaic-data; give pictures with classes, too")
        if self.labelled_test and not self.labelled:
            raise EvaluationError("--labelled-test belongs to --labelled; give images to train on, too")

    def command(self) -> str:
        """The command line that repeats this evaluation; a file name that is no UTF-8 has escapes."""
        words = ["dove", "eval", self.measurement]
        for item in fields(self):
            value = getattr(self, item.name)
            if item.name == "measurement" or value == item.default:
                continue
            values = value if isinstance(value, tuple) else (value,)
            words += [option(item), *(() if value is False else map(str, values))]
        return shlex.join(words).encode("utf-8", "backslashreplace").decode()


def option(item: Field[Any]) -> str:
    """A field's option on the command line."""
    return ("--no-" if item.default is True else "--") + item.name.replace("_", "-")


def _check(item: Field[Any], value: Any, measurement: str) -> None:
    """Refuse a value that is missing, out of range, or of no meaning here."""
    what, given = item.metadata, value not in (None, ())
    if given and what.get("choices") and value not in what["choices"]:
        name = "measurement" if item.name == "measurement" else option(item)
        raise EvaluationError(f"{name} must be one of {', '.join(what['choices'])}, got {value!r}")
    if given and value != item.default and measurement not in what.get("of", MEASUREMENTS):
        raise EvaluationError(f"{option(item)} has no meaning for {measurement!r}; leave it out")
    if not given and measurement in what.get("needed", ()):
        raise EvaluationError(f"{measurement!r} needs {option(item)}; give {what['help']}")
    numbers = value if isinstance(value, tuple) else (value,)
    for number in numbers:
        least = 0 if item.name == "null_query" else 1
        counts = isinstance(number, int | float) and not isinstance(number, bool)
        if counts and not least <= number < math.inf:
            raise EvaluationError(f"{option(item)} must be at least {least}, got {number}")
