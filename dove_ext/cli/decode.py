"""`dove decode`: a file of tokens to pictures."""

from __future__ import annotations

import json
from argparse import ArgumentParser, Namespace

from dove_ext.cli.command import Command
from dove_ext.cli.options import add_json_option, add_model_options, load_model, positive
from dove_ext.cli.outputs import output_names, output_path
from dove_ext.cli.pictures import printable
from dove_ext.progress import progress


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
    sources = tokens.names or [f"image-{b:04d}" for b in range(len(tokens))]
    names = output_names(sources)
    check_no_input((folder / name for name in names), [args.tokens])
    with progress(len(tokens), "decode") as bar:
        for start in range(0, len(tokens), args.batch_size):
            images = model.decode(tokens[start : start + args.batch_size])
            for image, name in zip(images, names[start:], strict=False):
                save_image(image, folder / name)
            bar.update(len(images))
    counts = tokens.lengths.tolist()
    paths = [str(folder / name) for name in names]
    if args.json:
        items = [
            {"path": path, "name": source, "tokens": n}
            for path, source, n in zip(paths, sources, counts, strict=True)
        ]
        print(json.dumps({"model": model.config.name, "images": len(tokens), "items": items}, indent=2))
    else:
        for path, source, count in zip(paths, sources, counts, strict=True):
            print(f"{count:>6}  {printable(path)}  from {printable(source)}")
    return 0


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
        "--max-tokens", type=positive, metavar="N", help="use only the first N tokens of an image"
    )
    add_json_option(parser)
    add_model_options(parser)


command = Command("turn a file of tokens back into pictures", configure, run,
                  example="dove decode tokens.safetensors -o pictures/")  # fmt: skip
