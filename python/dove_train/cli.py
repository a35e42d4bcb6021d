"""`dove train`: the training loop from the command line."""

from __future__ import annotations

from argparse import ArgumentParser, BooleanOptionalAction, Namespace
from pathlib import Path

from dove_ext.cli.command import EXIT_OK, Command
from dove_ext.cli.options import positive
from dove_train.settings import SETTINGS_HELP, Settings


def configure(parser: ArgumentParser) -> None:
    """Add the verb's arguments: data, output, and one option for each field of `Settings`."""
    parser.add_argument(
        "--data",
        nargs="+",
        type=Path,
        required=True,
        metavar="PATH",
        help="image folders, tar shards, images",
    )
    parser.add_argument(
        "--validate", nargs="+", type=Path, required=True, metavar="PATH", help="held-out images, likewise"
    )
    parser.add_argument(
        "--validate-limit",
        type=positive,
        default=100,
        metavar="N",
        help="held-out images used (default: %(default)s)",
    )
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        required=True,
        metavar="DIR",
        help="run folder; an interrupted run in it goes on",
    )
    group = parser.add_argument_group("settings")
    defaults = Settings()
    for name, text in SETTINGS_HELP.items():
        value = getattr(defaults, name)
        flag = "--" + name.replace("_", "-")
        if isinstance(value, bool):
            group.add_argument(flag, action=BooleanOptionalAction, default=value, help=text)
        else:
            group.add_argument(
                flag, type=type(value), default=value, metavar="X", help=f"{text} (default: {value})"
            )


def run(args: Namespace) -> int:
    """Train, printing a line every ten steps and the final measurement."""
    import json

    from dove_ext.files import make_writable_folder
    from dove_train.data import TrainingImages, held_out_images
    from dove_train.train import Run, start_config

    settings = Settings(**{name: getattr(args, name) for name in SETTINGS_HELP})
    size = start_config(settings).image_size
    held_out = held_out_images(args.validate, size, args.validate_limit)
    images = TrainingImages(args.data, size, settings.seed)
    training = Run(settings, images, held_out, make_writable_folder(args.output))
    training.start()
    print(json.dumps(training.run(), indent=2))
    print(f"the model is in {training.folder / 'model'}")
    return EXIT_OK


command = Command(
    "train a model on your own photographs",
    configure,
    run,
    example="dove train --data photos/ shards/train-0000.tar --validate held-out/ -o runs/first",
)
