"""`dove train`: a recipe, and what the command line changes in it."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from dataclasses import fields
from typing import Any

from dove_ext.atomic import check_no_input
from dove_ext.cli.command import EXIT_OK, Command
from dove_ext.cli.options import describe_image_paths
from dove_train.recipe_options import add_recipe, recipe_values
from dove_train.settings import Settings, Stage, TrainingError, make_settings, parse_value

APART = ("shape", "stages")  # whose fields have options of their own


def configure(parser: ArgumentParser) -> None:
    """Add the verb's arguments: the recipe, the output, and one option for each field of `Settings`."""
    describe_image_paths(parser)
    group = add_recipe(parser, Settings, paths=("data", "queries", "validation"), apart=APART)
    group.add_argument(
        "--shape",
        nargs="+",
        default=[],
        metavar="FIELD=X",
        help="fields of the shape, such as vocab_size=50304",
    )
    group.add_argument(
        "--stage",
        nargs="+",
        default=[],
        metavar="STAGE.FIELD=X",
        help="fields of the recipe's stages, such as joint.steps=500: "
        + ", ".join(item.name for item in fields(Stage)),
    )


def settings_of(args: Namespace) -> Settings:
    """The recipe with the command line's changes.

    Raises:
        TrainingError: naming what is missing, unknown or out of range.
    """
    values = recipe_values(args, Settings, apart=APART)
    for text in args.shape:
        _assign(_fields(values, "shape", "--shape"), text, "--shape")
    for text in args.stage:
        stages = _fields(values, "stages", "--stage")
        name = text.partition(".")[0]
        if name not in stages:
            known = ", ".join(map(str, stages)) or "none"
            raise TrainingError(f"--stage {text}: the recipe's stages are {known}")
        _assign(stages, text, "--stage")
    settings = make_settings(values, str(args.recipe))
    needed = ["validation"]
    if not settings.asks or settings.mosaics:
        needed.insert(0, "data")
    if settings.asks and settings.mosaics < 1 and not settings.queries:
        raise TrainingError(
            "there are no queries: give --queries tar shards with boxes, or visual-genome:FOLDER"
        )
    for name in needed:
        if not getattr(settings, name):
            raise TrainingError(f"there is no {name}: give --{name} image folders or tar shards")
    return settings


def _assign(values: dict[str, Any], text: str, option: str) -> None:
    path, equals, value = text.partition("=")
    if not equals:
        raise TrainingError(f"{option} takes FIELD=VALUE, got {text!r}")
    *outer, last = path.split(".")
    for name in outer:
        values = _fields(values, name, f"{option} {text}")
    values[last] = parse_value(value, f"{option} {path}")


def _fields(values: dict[str, Any], name: str, option: str) -> dict[str, Any]:
    """The mapping under a name; a new one where there is nothing."""
    if values.get(name) is None:
        values[name] = {}
    found = values[name]
    if not isinstance(found, dict):
        raise TrainingError(f"{option}: {name!r} has no fields, it is {found!r}")
    return found


def run(args: Namespace) -> int:
    """Train, and say where the model is."""
    import json

    settings = settings_of(args)
    if settings.start_from:
        check_no_input([args.output / "model"], [settings.start_from])

    from dove_ext.memory import keep_freed_memory, let_idle_threads_sleep

    let_idle_threads_sleep()

    from dove_train.distributed import join
    from dove_train.run import Run
    from dove_train.train import train

    keep_freed_memory()
    with join(settings.device, settings.parallel) as world:
        training = Run(settings, args.output, world)
        result = train(training)
        training.report.say(json.dumps(result, indent=2))
        training.report.say(f"the model is in {training.folder / 'model'}")
    return EXIT_OK


command = Command(
    "train a model on your own photographs",
    configure,
    run,
    example="dove train recipes/dove-tiny.yaml --data photos/ --validation held-out/ -o runs/first\n"
    "  torchrun --nproc-per-node 8 --no-python dove train recipes/dove-base-imagenet.yaml ...",
)
