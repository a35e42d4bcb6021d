"""`dove eval MEASUREMENT`: the fields of `EvalSettings` as options, and what is printed of a report."""

from __future__ import annotations

import math
from argparse import SUPPRESS, ArgumentParser, ArgumentTypeError, Namespace, RawDescriptionHelpFormatter
from collections.abc import Callable
from dataclasses import MISSING, Field, fields
from pathlib import Path
from typing import Any

from dove_eval.settings import LABELS, MEASUREMENTS, EvalSettings, EvaluationError, option
from dove_ext.cli.command import Command, UsageError
from dove_ext.cli.options import (
    add_json_option,
    add_model_options,
    describe_image_paths,
    find_device,
    positive,
)
from dove_ext.cli.pictures import Failures

BESIDE = (
    "vqgan", "qdove", "null_query", "against", "counts", "perceptual", "perceptual_weights", "inception",
    "codecs", "oracle", "layer", "query_counts", "mosaic_data", "mosaics", "known",
)  # fmt: skip


def configure(parser: ArgumentParser) -> None:
    """Add a parser for each measurement."""
    verbs = parser.add_subparsers(metavar="MEASUREMENT", dest="measurement", required=True)
    for verb, summary in MEASUREMENTS.items():
        sub = verbs.add_parser(
            verb, help=summary, description=f"{summary[0].upper()}{summary[1:]}.",
            formatter_class=RawDescriptionHelpFormatter, epilog=f"example:\n  {_example(verb)}",
        )  # fmt: skip
        if verb != "text":  # which draws its own
            describe_image_paths(sub)
        add_model_options(sub)
        group = sub.add_argument_group("beside it")
        for item in fields(EvalSettings):
            if verb in item.metadata.get("of", ()):
                _add_option(group if item.name in BESIDE else sub, item, verb)
        add_json_option(sub)
        sub.add_argument(
            "--markdown", action="store_true", help="print the tables as Markdown on standard output"
        )


def _example(verb: str) -> str:
    if verb in LABELS:
        return f"dove eval {verb} --labelled train.npz --labelled-test test.npz -o report/"
    if verb == "compare":
        return "dove eval compare --data photos/ --model dove-tiny --against runs/mine/model -o report/"
    if verb == "text":
        return "dove eval text --documents page-20:5 slide:5 --targets 24 28 -o report/"
    if verb == "query":
        return "dove eval query --data boxes.tar --mosaic-data labelled.tar --model dove-tiny-q -o report/"
    return f"dove eval {verb} --data photos/ -o report/"


def _add_option(parser: Any, item: Field[Any], verb: str) -> None:
    flags = ["-o", "--output"] if item.name == "output" else [option(item)]
    text = item.metadata["help"]
    if item.default is True:
        parser.add_argument(*flags, dest=item.name, action="store_false", default=SUPPRESS, help=text)
        return
    many = isinstance(item.default, tuple)
    if item.default not in (None, (), MISSING):
        shown = " ".join(map(str, item.default)) if many else item.default
        text += f" (default: {shown})"
    parser.add_argument(
        *flags,
        dest=item.name,
        nargs="+" if many else None,
        default=SUPPRESS,
        type=_kind(item),
        required=item.name == "output" or verb in item.metadata["needed"],
        choices=item.metadata["choices"] or None,
        metavar=item.metadata["metavar"] or None,
        help=text,
    )


def _kind(item: Field[Any]) -> Callable[[str], Any]:
    """How an option's text is read."""
    if "float" in str(item.type):
        return _length
    if "int" not in str(item.type):
        return str
    return int if item.name == "null_query" else positive


def _length(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 1 <= value < math.inf:
        raise ArgumentTypeError(f"{text!r} is not a number of at least 1")
    return value


def settings_of(args: Namespace) -> EvalSettings:
    """What the command line asks for.

    Raises:
        UsageError: if options contradict one another.
    """
    names = {item.name for item in fields(EvalSettings)}
    try:
        return EvalSettings(**{name: value for name, value in vars(args).items() if name in names})
    except EvaluationError as error:
        raise UsageError(str(error)) from error


def run(args: Namespace) -> int:
    """Measure, write the report, and say what was found."""
    import json

    from dove_ext.memory import keep_freed_memory, let_idle_threads_sleep

    settings = settings_of(args)
    let_idle_threads_sleep()
    find_device(settings.device)  # a wrong --device is a usage error

    from dove_eval import Evaluation

    keep_freed_memory()
    evaluation = Evaluation(settings)
    report = evaluation.run()
    report.write(settings.output)
    if args.json:
        print(json.dumps(report.json(), indent=2))
    elif args.markdown:
        print(report.markdown())
    else:
        for section in report.sections:
            print(f"{section.title}: {section.finding}")
        for note in report.notes:
            print(f"Not measured: {note}")
        folder = Path(settings.output)
        print(f"The report is {folder / 'report.html'}, its numbers {folder / 'report.json'}.")
    sets = evaluation.subjects.sets
    # Both may hold the same picture, which is told once.
    failed = list(dict.fromkeys(item for images in sets for item in images.failed.items()))
    return Failures("eval", failed).report(sum(map(len, sets)) - len(failed))


command = Command(
    "measure a model on your own images, as one report",
    configure,
    run,
    example="dove eval all --data photos/ -o report/",
)
