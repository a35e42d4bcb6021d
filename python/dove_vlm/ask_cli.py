"""`dove vlm ask`: one question about pictures to a trained model."""

from __future__ import annotations

import json
from argparse import ArgumentParser, Namespace

from dove_ext.cli.command import EXIT_OK
from dove_ext.cli.options import add_json_option, find_device, positive
from dove_ext.images import read_image
from dove_vlm.benchmarks.generate import Model, load


def configure(parser: ArgumentParser) -> None:
    """Add the verb's arguments, and `run` as what it runs."""
    parser.add_argument("model", metavar="MODEL", help="a model with its processor, by `dove vlm train`")
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="pictures that the question is about")
    parser.add_argument("-q", "--question", required=True, metavar="TEXT", help="the question")
    parser.add_argument(
        "--num-tokens", type=positive, metavar="N", help="tokens an image (default: as many as it deserves)"
    )
    parser.add_argument(
        "--query", metavar="TEXT", help="what a Q-DOVE encoder is asked, such as the question itself"
    )
    parser.add_argument(
        "--max-new-tokens", type=positive, default=32, metavar="N", help="(default: %(default)s)"
    )
    parser.add_argument("--device", default="cpu", help="such as cuda or cuda:1 (default: cpu)")
    add_json_option(parser)
    parser.set_defaults(run=run)  # of this parser, whatever its parent runs


def run(args: Namespace) -> int:
    """Ask, and print the answer."""
    find_device(args.device)
    pictures = [read_image(path) for path in args.images]
    processor, loaded = load(args.model, args.device)
    model = Model(processor, loaded, args.num_tokens)
    (answer,) = model.answer(
        [args.question], [pictures], queries=args.query, max_new_tokens=args.max_new_tokens
    )
    if args.json:
        print(json.dumps({"answer": answer, "num_image_tokens": model.counted}))
    else:
        print(answer)
    return EXIT_OK
