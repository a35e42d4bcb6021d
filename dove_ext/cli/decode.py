"""`dove decode`: a file of tokens to pictures."""

from __future__ import annotations

import json
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from dove_ext.cli.command import Command
from dove_ext.cli.options import add_json_option, add_model_options, load_model, positive
from dove_ext.cli.outputs import output_names, output_path
from dove_ext.cli.pictures import printable
from dove_ext.progress import progress

if TYPE_CHECKING:
    from torch import Tensor

    from dove_ext.models.dove import DoveModel
    from dove_ext.tokens import DoveTokens


def run(args: Namespace) -> int:
    """Decode, write the pictures, report."""
    from dove_ext.atomic import check_no_input, make_writable_folder
    from dove_ext.errors import TokensError
    from dove_ext.images.files import save_image
    from dove_ext.tokens import DoveTokens

    tokens = DoveTokens.load(args.tokens)
    if not len(tokens):
        raise TokensError(f"{args.tokens!r} holds no images; encode at least one")
    folder = make_writable_folder(args.output)
    model = load_model(args)
    tokens.require(model.config.token_width, model.config.num_tokens, model.config.name)
    if args.max_tokens:
        tokens = tokens.truncate(args.max_tokens)
    count = len(tokens) if tokens.tiles is None else len(tokens.tiles.pictures)
    sources: Sequence[str] = tokens.names or [f"image-{b:04d}" for b in range(count)]
    if tokens.tiles is not None and tokens.names:
        sources = [tokens.names[tokens.tiles.rows(number)[0]] for number in range(count)]
    names = output_names(sources)
    check_no_input((folder / name for name in names), [args.tokens])
    with progress(count, "decode") as bar:
        for image, name in zip(_decoded(model, tokens, args.batch_size), names, strict=True):
            save_image(image, folder / name)
            bar.update()
    counts = tokens.lengths.tolist()
    if tokens.tiles is not None:
        counts = tokens.tiles.sums(counts)
    paths = [str(folder / name) for name in names]
    if args.json:
        items = [
            {"path": path, "name": source, "tokens": n}
            for path, source, n in zip(paths, sources, counts, strict=True)
        ]
        print(json.dumps({"model": model.config.name, "images": count, "items": items}, indent=2))
    else:
        for path, source, total in zip(paths, sources, counts, strict=True):
            print(f"{total:>6}  {printable(path)}  from {printable(source)}")
    return 0


def _decoded(model: DoveModel, tokens: DoveTokens, batch_size: int) -> Iterator[Tensor]:
    """The pictures of the tokens, one after the other."""
    if tokens.tiles is not None:
        yield from model.decode_pictures(tokens, batch_size=batch_size)
        return
    for start in range(0, len(tokens), batch_size):
        yield from model.decode(tokens[start : start + batch_size])


def configure(parser: ArgumentParser) -> None:
    """Add the verb's arguments."""
    parser.add_argument("tokens", metavar="FILE", help="a file written by `dove encode` or DoveTokens.save")
    parser.add_argument(
        "-o",
        "--output",
        required=True,
        type=output_path,
        metavar="DIR",
        help="folder for NAME.dove.png of every image (existing ones are replaced); made if it is missing",
    )
    parser.add_argument(
        "--max-tokens",
        type=positive,
        metavar="N",
        help="use only the first N tokens of an image, or of each tile",
    )
    add_json_option(parser)
    add_model_options(parser)


command = Command("turn a file of tokens back into pictures", configure, run,
                  example="dove decode tokens.safetensors -o pictures/")  # fmt: skip
