"""A recipe, where its run goes, and one option for each of its settings: what verbs that train share."""

from __future__ import annotations

from argparse import SUPPRESS, ArgumentParser, Namespace
from collections.abc import Collection
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

from dove_train.settings import parse_value, read_recipe


def add_recipe(
    parser: ArgumentParser, settings: type[Any], *, paths: Collection[str], apart: Collection[str] = ()
) -> Any:
    """Add a verb's recipe and output, and a group with an option for each field of its settings.

    Args:
        parser: of the verb.
        settings: dataclass of the recipe's fields, with a `help` each.
        paths: fields that take several paths.
        apart: fields without such an option.

    Returns:
        The group, for more of them.
    """
    parser.add_argument("recipe", type=Path, metavar="RECIPE", help="YAML file of settings, as in recipes/")
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        required=True,
        metavar="DIR",
        help="run folder; an interrupted run in it goes on",
    )
    group = parser.add_argument_group("settings", "override the recipe's")
    for item in fields(settings):
        if item.name in apart:
            continue
        flag, text = _flag(item.name), item.metadata["help"].replace("%", "%%")
        if item.name in paths:
            group.add_argument(flag, nargs="+", default=SUPPRESS, metavar="PATH", help=text)
        else:
            if item.default is not MISSING:
                text += f" (default: {item.default!r})".replace("%", "%%")
            group.add_argument(flag, default=SUPPRESS, metavar="X", help=text)
    return group


def recipe_values(args: Namespace, settings: type[Any], *, apart: Collection[str] = ()) -> dict[str, Any]:
    """The recipe's fields as plain values, with the options that were given in their place.

    Args:
        args: of a parser that `add_recipe` made.
        settings: as for `add_recipe`.
        apart: likewise.

    Raises:
        TrainingError: if the recipe cannot be read, or an option is no YAML value.
    """
    values = read_recipe(args.recipe)
    for item in fields(settings):
        if item.name not in apart and item.name in args:
            given = getattr(args, item.name)
            # What is text stays text: a path may look like a number.
            if not isinstance(given, list) and item.type != "str":
                given = parse_value(given, _flag(item.name))
            values[item.name] = given
    return values


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")
