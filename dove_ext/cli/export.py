"""`dove export`: a model as graphs that run without this package."""

from __future__ import annotations

import json
from argparse import ArgumentParser, Namespace

from dove_ext.cli.command import EXIT_OK, Command
from dove_ext.cli.options import (
    DTYPES,
    add_json_option,
    add_length_options,
    length_arguments,
    load_model,
)
from dove_ext.cli.outputs import output_path
from dove_ext.errors import DoveError

FORMATS = ("onnx", "torch-export", "aoti")
PARTS = ("encoder", "packed_encoder", "decoder")


def configure(parser: ArgumentParser) -> None:
    """Add the verb's arguments."""
    parser.add_argument(
        "model",
        metavar="MODEL",
        help="a model that ships with the package, a folder, or a Hugging Face hub id",
    )
    parser.add_argument("--to", required=True, choices=FORMATS, help="the kind of graph")
    parser.add_argument(
        "-o", "--output", required=True, type=output_path, metavar="DIR",
        help="folder for the graphs and export.json; made if it is missing",
    )  # fmt: skip
    parser.add_argument(
        "--parts", nargs="+", choices=PARTS, default=PARTS, metavar="PART",
        help="encoder: padded tokens and lengths; packed_encoder: tokens and cu_seqlens; decoder "
        "(default: all three)",
    )  # fmt: skip
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="(default: %(default)s)")
    add_length_options(parser, ("num_tokens", "min_tokens", "max_tokens", "eos_threshold"))
    add_json_option(parser)
    parser.set_defaults(device="cpu")


def run(args: Namespace) -> int:
    """Export, and say what was written."""
    lengths = length_arguments(args)
    from dove_ext.export import export

    model = load_model(args)
    try:
        files = export(model, args.to, args.output, parts=tuple(args.parts), **lengths)
    except ValueError as error:  # a length that this model does not have
        raise DoveError(str(error)) from error
    if args.json:
        print(json.dumps({"files": [str(file) for file in files]}))
        return EXIT_OK
    for file in files:
        print(f"{file} ({file.stat().st_size / 1e6:.1f} MB)")
    return EXIT_OK


command = Command(
    "a model as ONNX, torch.export or AOTInductor graphs, which run without this package",
    configure,
    run,
    example="dove export dove-tiny --to onnx -o deploy/",
)
