"""`dove encode`: pictures to a file of tokens."""

from __future__ import annotations

import json
from argparse import ArgumentParser, Namespace
from dataclasses import replace
from functools import partial
from typing import Any

from dove_ext.cli.command import Command
from dove_ext.cli.options import (
    add_image_options,
    add_json_option,
    add_length_options,
    add_model_options,
    add_query_option,
    add_tiles_option,
    encode,
    length_arguments,
    load_model,
    tiles_argument,
)
from dove_ext.cli.outputs import check_no_picture, output_path, picture_files
from dove_ext.cli.pictures import Failures, find_pictures, printable
from dove_ext.progress import progress


def run(args: Namespace) -> int:
    """Encode, write the file, report."""
    from dove_ext.atomic import check_no_input, check_writable_file
    from dove_ext.models.sets import encode_set
    from dove_ext.tokens import DoveTokens

    lengths, tiles = length_arguments(args), tiles_argument(args)
    check_no_picture(args.output)
    check_writable_file(args.output)
    failures = Failures("encode")
    index = find_pictures(args.images, failures)
    check_no_input([args.output], picture_files(index))
    model = load_model(args)
    query = {} if args.query is None else {"query": args.query}
    parts: list[DoveTokens] = []
    done: list[int] = []
    # A budget is shared among all images, so these must be encoded in one call.
    together = len(index) if args.token_budget else None
    with progress(len(index), "encode") as bar:
        encoded = encode_set(
            partial(encode, model, lengths=lengths, return_p_eos=args.p_eos), index, model.config.image_size,
            on_problem=failures.of(index), batch_size=args.batch_size, together=together, fit=args.fit,
            tiles=tiles, **query,
        )  # fmt: skip
        for batch, tokens in encoded:
            parts.append(tokens)
            done += batch
            bar.update(len(batch))
    failures.require_some(len(done))
    names = [index.short_name(i) for i in done]
    tokens = DoveTokens.cat(parts)
    grid = tokens.tiles
    rows = range(len(done)) if grid is None else [place.picture for place in grid.places]
    tokens = replace(tokens, names=tuple(names[row] for row in rows))
    tokens.save(args.output)
    counts = tokens.lengths.tolist()
    if grid is not None:
        counts = grid.sums(counts)
    if args.json:
        items: list[dict[str, Any]] = [
            {"path": index.name(i), "name": name, "tokens": n}
            for i, name, n in zip(done, names, counts, strict=True)
        ]
        if grid is not None:
            for number, (item, picture) in enumerate(zip(items, grid.pictures, strict=True)):
                item["grid"] = {"rows": picture.rows, "columns": picture.columns}
                item["tiles"] = [tokens.lengths[row].item() for row in grid.rows(number)]
        elif tokens.psnr is not None:
            for item, reached in zip(items, tokens.psnr.tolist(), strict=True):
                item["psnr_db"] = round(reached, 2)
        report = {
            "output": args.output,
            "model": tokens.model,
            **query,
            "images": len(done),
            "tokens": sum(counts),
            "width": tokens.width,
            "num_slots": tokens.num_slots,
            "items": items,
            "failed": failures.as_json(),
        }
        print(json.dumps(report, indent=2))
    else:
        psnr = [""] * len(names)
        if grid is not None:
            psnr = [f"  {p.columns} x {p.rows}" for p in grid.pictures]
        elif tokens.psnr is not None:
            psnr = [f"{reached:7.2f} dB" for reached in tokens.psnr.tolist()]
        for name, count, reached in zip(names, counts, psnr, strict=True):
            print(f"{count:>6}{reached}  {printable(name)}")
        print(f"{sum(counts):>6}  tokens of {len(done)} images in {printable(args.output)}")
    return failures.report(len(done))


def configure(parser: ArgumentParser) -> None:
    """Add the verb's arguments."""
    add_image_options(parser)
    parser.add_argument(
        "-o",
        "--output",
        required=True,
        type=output_path,
        metavar="FILE",
        help="safetensors file; an existing one is replaced whole, a picture never",
    )
    parser.add_argument(
        "--p-eos", action="store_true", help="keep the curve of stop probabilities in the file"
    )
    add_tiles_option(parser)
    add_query_option(parser, "what the tokens are to tell of")
    add_json_option(parser)
    add_length_options(parser)
    add_model_options(parser)


command = Command("turn pictures into a file of tokens", configure, run,
                  example="dove encode photos/ cat.jpg -o tokens.safetensors --max-tokens 128")  # fmt: skip
