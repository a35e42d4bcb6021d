"""Options that several verbs share, and what is made of them."""

from __future__ import annotations

from argparse import ArgumentParser, ArgumentTypeError, Namespace
from collections.abc import Collection
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from dove_ext.cli.command import UsageError
from dove_ext.config import DEFAULT_MODEL
from dove_ext.errors import DoveError

if TYPE_CHECKING:
    import torch

    from dove_ext.models.dove import DoveModel
    from dove_ext.tokens import DoveTokens

DTYPES = ("float32", "bfloat16")
# `dove_ext.images.find` in short, for the help of every verb that reads sets of pictures.
IMAGE_PATHS = """\
pictures are found alike by every verb:
  A path is a picture, an uncompressed tar file, a parquet file with a column of pictures, or a folder, which
  is searched at all depths and through links; of folders and tar files the members with a picture's suffix
  count. Passed over are names with a leading dot and *.dove.png, which dove wrote itself. Tar files in a
  folder are read if it has no pictures, parquet files if it has no tar files either; else, and if they are
  compressed, dove says that it leaves them out. What is named twice is taken once. With several paths, the
  name of each picture begins with that of its path."""


def positive(text: str) -> int:
    """A whole number of at least 1, for argparse."""
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return value


def probability(text: str) -> float:
    """A number from 0 to 1, for argparse."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise ArgumentTypeError(f"{text!r} is not a number from 0 to 1")
    return value


def decibels(text: str) -> float:
    """A number above 0, for argparse; `LengthRule` knows how much is possible."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not value > 0:
        raise ArgumentTypeError(f"{text!r} is not a number of decibels above 0")
    return value


def add_model_options(parser: ArgumentParser) -> None:
    """--model, --device, --dtype, --batch-size."""
    group = parser.add_argument_group("model")
    group.add_argument(
        "--model",
        default=DEFAULT_MODEL,
        metavar="NAME",
        help="a model that ships with the package, a folder, or a Hugging Face hub id (default: %(default)s)",
    )
    group.add_argument("--device", help="such as cpu, cuda or cuda:1 (default: cpu)", default="cpu")
    group.add_argument("--dtype", choices=DTYPES, default="float32", help="(default: %(default)s)")
    group.add_argument(
        "--batch-size",
        type=positive,
        default=16,
        metavar="N",
        help="images that run at once (default: %(default)s)",
    )


_LENGTHS: dict[str, dict[str, Any]] = {
    "num_tokens": {"type": positive, "metavar": "N", "help": "exactly N tokens an image"},
    "min_tokens": {
        "type": positive,
        "metavar": "N",
        "help": "at least N tokens an image; with --tiles, a tile",
    },
    "max_tokens": {"type": positive, "metavar": "N", "help": "at most N tokens an image"},
    "eos_threshold": {
        "type": probability,
        "metavar": "P",
        "help": "stop an image at the first position where the model's stop probability reaches P",
    },
    "token_budget": {
        "type": positive,
        "metavar": "N",
        "help": "N tokens for all images together, shared out by how much each still has to say",
    },
    "target_psnr": {
        "type": decibels,
        "metavar": "DB",
        "help": "the fewest tokens with which the model's own reconstruction reaches DB decibels; "
        "--min-tokens and --max-tokens win",
    },
}


def add_length_options(parser: ArgumentParser, names: Collection[str] = tuple(_LENGTHS)) -> None:
    """--num-tokens, --min-tokens, --max-tokens and further length controls, or some of these."""
    group = parser.add_argument_group(
        "length", "how many tokens; by default the model decides for each image"
    )
    for name, option in _LENGTHS.items():
        if name in names:
            group.add_argument(_flag(name), **option)
        else:
            parser.set_defaults(**{name: None})


def add_image_options(parser: ArgumentParser) -> None:
    """IMG... and --fit."""
    describe_image_paths(parser)
    parser.add_argument(
        "images",
        nargs="+",
        metavar="IMG",
        help="pictures, folders of them and tar files, see below; colours are taken as stored, without "
        "embedded profiles",
    )
    add_fit_option(parser)


def add_fit_option(parser: ArgumentParser) -> None:
    """--fit."""
    parser.add_argument(
        "--fit",
        choices=("crop", "squash", "pad"),
        default="crop",
        help="how a picture becomes square: its centre, all of it distorted, or all of it with grey margins "
        "(default: %(default)s)",
    )


def tile_count(text: str) -> int | tuple[int, int] | str:
    """What --tiles asks for, for argparse: 12, 4-12 or auto."""
    from dove_ext.tokens.tiles import MAX_TILES

    least, dash, most = text.partition("-")
    numbers = [
        int(n) for n in ((least, most) if dash else (least,)) if n.isascii() and n.isdigit() and len(n) < 9
    ]
    if text == "auto":
        return text
    if len(numbers) == 1 + bool(dash) and 1 <= numbers[0] <= numbers[-1] <= MAX_TILES:
        return (numbers[0], numbers[1]) if dash else numbers[0]
    raise ArgumentTypeError(f"{text!r} is not a number from 1 to {MAX_TILES}, a range such as 4-12, or auto")


def add_tiles_option(parser: ArgumentParser) -> None:
    """--tiles."""
    parser.add_argument(
        "--tiles",
        type=tile_count,
        metavar="N",
        help="cut each picture into a grid of at most N squares, and a thumbnail, instead of making it one "
        "square: N, a range such as 4-12, or auto for as many as its own resolution needs; numbers of tokens "
        "are then for all tiles of a picture",
    )


def tiles_argument(args: Namespace) -> Any:
    """What --tiles says, None without it.

    Raises:
        UsageError: if it is given with what concerns squares.
    """
    if args.tiles is not None and args.fit != "crop":
        raise UsageError("--fit says how a picture becomes square, which tiles need not; drop it or --tiles")
    return args.tiles


def query_text(text: str) -> str:
    """What a query says, for argparse; the model knows how long it may be."""
    if not text.strip():
        raise ArgumentTypeError("it is empty; for the whole picture leave it out")
    return text


def add_query_option(parser: ArgumentParser, what: str) -> None:
    """--query; `what` says what the verb makes of it."""
    parser.add_argument(
        "--query", type=query_text, metavar="TEXT",
        help=f"{what}; for a model with query weights, which takes the whole picture without it",
    )  # fmt: skip


def describe_image_paths(parser: ArgumentParser) -> None:
    """Say in a verb's help how sets of pictures are found."""
    parser.epilog = f"{IMAGE_PATHS}\n\n{parser.epilog or ''}"


def add_json_option(parser: ArgumentParser) -> None:
    """--json."""
    parser.add_argument("--json", action="store_true", help="report as JSON on standard output")


def length_arguments(args: Namespace) -> dict[str, Any]:
    """The length options as arguments of `DoveModel.encode`.

    Raises:
        UsageError: if two of them contradict one another.
    """
    from dove_ext.tokens.lengths import LengthRule

    names = [field.name for field in fields(LengthRule)]
    given = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    rule = LengthRule(**given)
    if (conflict := rule.conflict()) is not None:
        name, others = conflict
        raise UsageError(f"{_flag(name)} decides the lengths; drop it or {' and '.join(map(_flag, others))}")
    if rule.crossed:
        raise UsageError(f"--min-tokens {rule.min_tokens} is above --max-tokens {rule.max_tokens}; lower it")
    return given


def find_device(name: str) -> torch.device:
    """The device that --device names.

    Raises:
        UsageError: if it is unknown.
        DoveError: if it is not there.
    """
    from dove_ext.devices import find_device

    try:
        return find_device(name)
    except ValueError as error:
        raise UsageError(f"--{error}") from error
    except DoveError as error:
        raise DoveError(f"--{error}; use --device cpu") from error


def load_model(args: Namespace) -> DoveModel:
    """The model that --model, --device and --dtype ask for.

    Raises:
        UsageError: if the device is unknown.
        DoveError: if the device or the model is not there.
    """
    import torch

    import dove_ext

    device = find_device(args.device)
    if device.type == "cpu":
        dove_ext.keep_freed_memory()
    model: DoveModel = dove_ext.load_model(args.model, device=device, dtype=getattr(torch, args.dtype))
    return model


def encode(model: DoveModel, images: Any, lengths: dict[str, Any], **options: Any) -> DoveTokens:
    """`model.encode`, where a length that this model does not have is the user's to mend.

    Raises:
        DoveError: with the model's own message.
    """
    try:
        return model.encode(images, **lengths, **options)
    except DoveError:  # of a picture, for example
        raise
    except ValueError as error:
        raise DoveError(str(error)) from error


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")
