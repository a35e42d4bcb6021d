"""`dove convert`: public checkpoints of the parts to a model folder."""

from __future__ import annotations

import json
from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import TYPE_CHECKING

from dove_ext.cli.command import EXIT_FAILED, Command, UsageError
from dove_ext.cli.options import add_json_option
from dove_ext.cli.outputs import output_path

if TYPE_CHECKING:
    from dove_ext.checkpoints.read import UnknownLayoutError


def run(args: Namespace) -> int:
    """Read the files, build the model, write its folder, report."""
    if args.vqgan is None and args.pythia is None:
        raise UsageError("there is nothing to convert; give --vqgan FILE, --pythia FILE, or both")
    from dove_ext.checkpoints.convert import check_output, convert, save_conversion
    from dove_ext.checkpoints.read import UnknownLayoutError
    from dove_ext.config import PRESETS

    if args.preset not in PRESETS:
        raise UsageError(f"--preset {args.preset!r} is unknown; known are {', '.join(PRESETS)}")
    check_output(args.output)
    _check_no_input(args)
    try:
        conversion = convert(
            vqgan=args.vqgan, pythia=args.pythia, preset_name=args.preset, base=args.base, name=args.name
        )
    except UnknownLayoutError as error:
        return _show_unknown(error, args)
    save_conversion(conversion, args.output)
    config = conversion.model.config
    if args.json:
        report = {
            "output": args.output,
            "model": config.name,
            "codebook_size": config.vqgan.codebook_size,
            "sources": [
                {
                    "path": str(source.path),
                    "sha256": source.sha256,
                    "layout": source.layout,
                    "used": len(source.used),
                    "dropped": list(source.dropped),
                }
                for source in conversion.sources
            ],
            "base": conversion.base,
            "untouched": list(conversion.untouched),
        }
        print(json.dumps(report, indent=2))
        return 0
    for source in conversion.sources:
        dropped = f", {len(source.dropped)} not needed" if source.dropped else ""
        print(f"{source.path}: {source.layout}, {len(source.used)} tensors used{dropped}")
    rest = f"as in {conversion.base}" if conversion.base else "random"
    print(f"{len(conversion.untouched)} tensors of the model came from no file and are {rest}")
    print(f"{config.name} with {config.vqgan.codebook_size} codes written to {args.output}")
    return 0


def _check_no_input(args: Namespace) -> None:
    """Refuse a folder whose files are among what is converted."""
    from dove_ext.atomic import check_no_input
    from dove_ext.models.pretrained import CARD, CONFIG, WEIGHTS, find_model

    inputs = [file for file in (args.vqgan, args.pythia) if file is not None]
    if args.base is not None:
        inputs.append(find_model(args.base) / WEIGHTS)
    check_no_input((Path(args.output) / name for name in (CONFIG, WEIGHTS, CARD)), inputs)


def _show_unknown(error: UnknownLayoutError, args: Namespace) -> int:
    """What the file holds, and where in the model something has the same shape."""
    import sys

    import torch

    from dove_ext.checkpoints.read import matches_by_shape, summarize
    from dove_ext.config import DoveConfig, preset
    from dove_ext.models.dove import DoveModel
    from dove_ext.models.pretrained import find_model, load_config

    config = preset(args.preset) if args.base is None else load_config(find_model(args.base), DoveConfig)
    with torch.device("meta"):  # shapes without memory
        ours = DoveModel(config).state_dict()
    matches = matches_by_shape(error.weights, ours)
    if args.json:
        print(
            json.dumps({"error": str(error), "path": str(error.weights.path), "tensors": matches}, indent=2)
        )
    else:
        print(f"{error.weights.path} holds {len(matches)} tensors:")
        for line in summarize(matches):
            print(f"  {line}")
    print(f"dove convert: {error}", file=sys.stderr)
    return EXIT_FAILED


def configure(parser: ArgumentParser) -> None:
    """Add the verb's arguments."""
    parser.add_argument(
        "--vqgan",
        metavar="FILE",
        help="a taming-transformers VQGAN checkpoint (.ckpt or safetensors), or the diffusers form of one; "
        "its codebook decides codebook_size",
    )
    parser.add_argument(
        "--pythia",
        metavar="FILE",
        help="Pythia's model.safetensors (Pythia-70M for dove-base), for generator and token decoder",
    )
    parser.add_argument(
        "-o",
        "--output",
        required=True,
        type=output_path,
        metavar="DIR",
        help="the model's folder; made if it is missing, a dove model is replaced, other files refused",
    )
    shape = parser.add_mutually_exclusive_group()
    shape.add_argument(
        "--preset",
        default="dove-base",
        metavar="NAME",
        help="configuration of the model; what no file gives is random (default: %(default)s)",
    )
    shape.add_argument(
        "--base",
        metavar="MODEL",
        help="start from this model instead: its configuration, and its weights where no file gives any",
    )
    parser.add_argument("--name", help="name of the new model (default: that of the preset or base)")
    add_json_option(parser)


command = Command(
    "public VQGAN and Pythia checkpoints to a model folder",
    configure,
    run,
    example="dove convert --vqgan last.ckpt --pythia model.safetensors -o dove-base/",
)
