"""`dove reconstruct`: pictures through the tokens and back, and a sheet to look at."""

from __future__ import annotations

import json
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
from dove_ext.cli.outputs import SUFFIX, output_names, output_path, picture_files
from dove_ext.cli.pictures import Failures, find_pictures, printable
from dove_ext.progress import progress

if TYPE_CHECKING:
    from torch import Tensor

    from dove_ext.images.index import ImageIndex
    from dove_ext.images.sheet import Row
    from dove_ext.models.dove import DoveModel

FIXED_COUNTS = (16, 32, 64, 128)
ROWS_PER_SHEET = 8


def run(args: Namespace) -> int:
    """Reconstruct, write pictures and sheets, report."""
    from dove_ext.atomic import check_no_input, make_writable_folder
    from dove_ext.images.files import save_image
    from dove_ext.images.sheet import draw_sheet

    lengths, tiles = length_arguments(args), tiles_argument(args)
    folder = make_writable_folder(args.output)
    failures = Failures("reconstruct")
    index = find_pictures(args.images, failures)
    names = output_names([index.short_name(i) for i in range(len(index))])
    rows_per_sheet = ROWS_PER_SHEET if tiles is None else 1
    planned = [folder / _sheet_name(n) for n in range(-(-len(index) // rows_per_sheet))]
    check_no_input([*(folder / name for name in names), *planned], picture_files(index))
    model = load_model(args)
    if tiles is not None:
        return _reconstruct_tiles(model, index, lengths, args, failures, folder, names)
    rows: list[Row] = []
    items: list[dict[str, Any]] = []
    sheets: list[str] = []

    def finish_sheet() -> None:
        path = folder / _sheet_name(len(sheets))
        save_image(draw_sheet(rows), path)
        sheets.append(str(path))
        rows.clear()

    with progress(len(index), "reconstruct") as bar:
        for i, row in _reconstruct(model, index, lengths, args, failures):
            count, image = row.chosen
            save_image(image, folder / names[i])
            items.append(
                {
                    "path": index.name(i),
                    "name": index.short_name(i),
                    "output": str(folder / names[i]),
                    "tokens": count,
                    "psnr_db": round(row.decibel(image), 2),
                }
            )
            if args.query is not None:
                ((n, whole),) = row.fixed
                items[-1]["null"] = {"tokens": n, "psnr_db": round(row.decibel(whole), 2)}
            rows.append(row)
            if len(rows) == ROWS_PER_SHEET:
                finish_sheet()
            bar.update()
    failures.require_some(len(items))
    if rows:
        finish_sheet()
    if args.json:
        report = {"model": model.config.name, "items": items, "sheets": sheets, "failed": failures.as_json()}
        if args.query is not None:
            report["query"] = args.query
        print(json.dumps(report, indent=2))
    else:
        for item in items:
            figures = f"{item['tokens']:>6} tokens {item['psnr_db']:>6.2f} dB"
            if "null" in item:
                figures += f" (null: {item['null']['tokens']:>3} tokens {item['null']['psnr_db']:>6.2f} dB)"
            print(f"{figures}  {printable(item['output'])}  from {printable(item['name'])}")
        for sheet in sheets:
            print(f"side by side: {printable(sheet)}")
    return failures.report(len(items))


def _reconstruct_tiles(
    model: DoveModel,
    index: ImageIndex,
    lengths: dict[str, Any],
    args: Namespace,
    failures: Failures,
    folder: Path,
    names: list[str],
) -> int:
    """`run` with --tiles: a sheet a picture, with its tiles and their counts."""
    from dove_ext.images.cut import in_grid
    from dove_ext.images.files import save_image
    from dove_ext.images.tile_map import draw_tile_map
    from dove_ext.metrics.pixel import psnr
    from dove_ext.models.sets import encode_set

    items: list[dict[str, Any]] = []
    query = {} if args.query is None else {"query": args.query}
    encoded = encode_set(
        partial(encode, model, lengths=lengths), index, model.config.image_size,
        on_problem=failures.of(index), batch_size=args.batch_size,
        together=len(index) if args.token_budget else None, tiles=args.tiles, **query,
    )  # fmt: skip
    with progress(len(index), "reconstruct") as bar:
        for group, tokens in encoded:
            decoded = model.decode_pictures(tokens, batch_size=args.batch_size)
            for number, (i, image) in enumerate(zip(group, decoded, strict=True)):
                part, image = tokens.picture(number), image.cpu()
                tiles = part.tiles
                assert tiles is not None
                original = in_grid(index.image(i), tiles.pictures[0])
                save_image(image, folder / names[i])
                counts = part.lengths.tolist()
                sheet = str(folder / _sheet_name(len(items)))
                name, most = index.short_name(i), part.num_slots
                save_image(draw_tile_map(name, original, image, tiles, counts, most), sheet)
                items.append(
                    {
                        "path": index.name(i),
                        "name": name,
                        "output": str(folder / names[i]),
                        "tokens": sum(counts),
                        "psnr_db": round(psnr(image[None], original[None], black=0).item(), 2),
                        "grid": {"rows": tiles.pictures[0].rows, "columns": tiles.pictures[0].columns},
                        "tiles": counts,
                        "sheet": sheet,
                    }
                )
                bar.update()
    failures.require_some(len(items))
    if args.json:
        sheets = [item["sheet"] for item in items]
        report = {"model": model.config.name, **query, "items": items, "sheets": sheets}
        print(json.dumps({**report, "failed": failures.as_json()}, indent=2))
    else:
        for item in items:
            figures = f"{item['tokens']:>6} tokens {item['psnr_db']:>6.2f} dB"
            grid = f"{item['grid']['columns']} x {item['grid']['rows']} tiles"
            print(f"{figures}  {grid}  {printable(item['output'])}  from {printable(item['name'])}")
            print(f"where they went: {printable(item['sheet'])}")
    return failures.report(len(items))


def _sheet_name(number: int) -> str:
    return f"sheet-{number + 1:02d}{SUFFIX}"


def _reconstruct(
    model: DoveModel, index: ImageIndex, lengths: dict[str, Any], args: Namespace, failures: Failures
) -> Iterator[tuple[int, Row]]:
    from dove_ext.images.sheet import Row
    from dove_ext.models.sets import read_batches

    fixed_counts = [n for n in FIXED_COUNTS if n <= model.config.num_tokens]
    # A budget is shared among all images, so these must be encoded in one call.
    together = len(index) if args.token_budget else args.batch_size
    for batch, images in read_batches(index, model.config.image_size, args.fit, together, failures.of(index)):
        if args.query is not None:
            rows = _of_query(model, images, lengths, args)
            for i, original, (null, own, where) in zip(batch, images, rows, strict=True):
                yield i, Row(index.short_name(i), original, [null], own, args.query, where)
            continue
        all_chosen = encode(model, images, lengths, batch_size=args.batch_size)
        for start in range(0, len(batch), args.batch_size):
            chunk = slice(start, start + args.batch_size)
            chosen, originals = all_chosen[chunk], images[chunk]
            fixed = []
            if fixed_counts:
                # Token i does not depend on later ones, so every shorter length is a prefix of the longest.
                longest = model.encode(originals, num_tokens=fixed_counts[-1])
                fixed = [(n, model.decode(longest.truncate(n)).cpu()) for n in fixed_counts]
            decoded = model.decode(chosen).cpu()
            for b, (i, count) in enumerate(zip(batch[chunk], chosen.lengths.tolist(), strict=True)):
                shorter = [(n, images_at_n[b]) for n, images_at_n in fixed]
                yield i, Row(index.short_name(i), originals[b], shorter, (count, decoded[b]))


def _of_query(
    model: DoveModel, images: Tensor, lengths: dict[str, Any], args: Namespace
) -> Iterator[tuple[tuple[int, Tensor], tuple[int, Tensor], Tensor | None]]:
    """For each image count and picture of the query "null", those of --query, and its map if there is one."""
    seen = model.prefix(images, batch_size=args.batch_size)
    null = encode(model, seen, lengths, batch_size=args.batch_size, query="null")
    how = {"batch_size": args.batch_size, "return_relevance": model.relevance is not None}
    about = encode(model, seen, lengths, query=args.query, **how)
    for start in range(0, len(images), args.batch_size):
        parts = [tokens[start : start + args.batch_size] for tokens in (null, about)]
        decoded = [zip(part.lengths.tolist(), model.decode(part).cpu(), strict=True) for part in parts]
        maps = parts[1].relevance
        where = [None] * len(parts[1]) if maps is None else maps.cpu()
        yield from zip(*decoded, where, strict=True)


def configure(parser: ArgumentParser) -> None:
    """Add the verb's arguments."""
    add_image_options(parser)
    parser.add_argument(
        "-o",
        "--output",
        required=True,
        type=output_path,
        metavar="DIR",
        help="folder for NAME.dove.png, each picture at its own length, and for sheet-01.dove.png and so on, "
        "which show it at 16, 32, 64 and 128 tokens, too, or with --tiles its tiles and their counts "
        "(existing ones are replaced); made if it is missing",
    )
    add_tiles_option(parser)
    add_query_option(
        parser,
        "what the tokens are to tell of; sheets show it beside the whole picture's own tokens (null), and "
        "where the model sees it, if it has a relevance map",
    )
    add_json_option(parser)
    add_length_options(parser)
    add_model_options(parser)


command = Command(
    "pictures through tokens and back, drawn side by side",
    configure,
    run,
    example="dove reconstruct photos/ -o pictures/",
)
