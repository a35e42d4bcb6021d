"""`dove eval VERB`: measure a model on your own images."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from typing import TYPE_CHECKING

from dove_eval import COUNTS
from dove_ext.cli.command import Command, UsageError
from dove_ext.cli.options import add_json_option, add_model_options, describe_image_paths, positive
from dove_ext.cli.pictures import Failures

if TYPE_CHECKING:
    from dove_eval.run import Evaluation

VERBS = {
    "reconstruction": "quality against token count, beside VQGAN, JPEG and WebP",
    "lengths": "how many tokens images get, and what that follows",
    "classify": "an MLP on frozen tokens, at several token counts",
    "probe": "a linear layer on every hidden layer",
    "segment": "hidden features as pictures",
    "compare": "two models on the same images, paired",
    "all": "everything that the data allows, as one report",
}
LABELS = ("classify", "probe")  # need classes


def configure(parser: ArgumentParser) -> None:
    """Add a parser for each measurement."""
    verbs = parser.add_subparsers(metavar="MEASUREMENT", dest="measurement", required=True)
    for verb, summary in VERBS.items():
        sub = verbs.add_parser(
            verb, help=summary, description=f"{summary[0].upper()}{summary[1:]}.",
            formatter_class=RawDescriptionHelpFormatter, epilog=f"example:\n  {_example(verb)}",
        )  # fmt: skip
        describe_image_paths(sub)
        _add_data(sub, verb)
        _add_systems(sub, verb)
        add_json_option(sub)
        sub.add_argument(
            "--markdown", action="store_true", help="print the tables as Markdown on standard output"
        )


def _example(verb: str) -> str:
    if verb in LABELS:
        return f"dove eval {verb} --labelled train.npz --labelled-test test.npz -o report/"
    if verb == "compare":
        return "dove eval compare --data photos/ --model dove-tiny --against runs/mine/model -o report/"
    return f"dove eval {verb} --data photos/ -o report/"


def _add_data(parser: ArgumentParser, verb: str) -> None:
    kinds = "folders, tar shards, npz files, CIFAR's binary folders, torchvision:NAME:ROOT, picture files"
    if verb not in LABELS:
        parser.add_argument("--data", nargs="+", required=True, metavar="PATH", help=f"images: {kinds}")
        parser.add_argument(
            "--limit", type=positive, metavar="N", help="use N images, evenly spread over the set"
        )
    if verb in (*LABELS, "all"):
        parser.add_argument(
            "--labelled", nargs="+", required=verb != "all", metavar="PATH",
            help="images with classes: a folder for each class, labels in the shards' JSON or in the npz",
        )  # fmt: skip
        parser.add_argument(
            "--labelled-test", nargs="+", metavar="PATH",
            help="test images with classes; without it, the split that the data names, or every fifth image",
        )  # fmt: skip
        parser.add_argument(
            "--per-class", type=positive, metavar="N", help="use the first N images of each class and split"
        )
        parser.add_argument(
            "--seeds",
            type=positive,
            default=3,
            metavar="N",
            help="heads trained from N seeds (default: %(default)s)",
        )
    parser.add_argument(
        "-o", "--output", required=True, metavar="DIR",
        help="folder for report.html and report.json; rows/ in it lets an interrupted run go on",
    )  # fmt: skip
    parser.add_argument(
        "--fit", choices=("crop", "squash", "pad"), default="crop",
        help="how a picture becomes square (default: %(default)s)",
    )  # fmt: skip


def _add_systems(parser: ArgumentParser, verb: str) -> None:
    add_model_options(parser)
    group = parser.add_argument_group("beside it")
    if verb != "compare":
        group.add_argument(
            "--vqgan",
            metavar="FOLDER",
            help="a VQGAN's folder as the fixed-length baseline (default: the model's own)",
        )
        group.add_argument("--qdove", metavar="NAME", help="a query-conditioned model")
        group.add_argument(
            "--null-query",
            type=int,
            nargs="+",
            metavar="ID",
            help='the ids of its query "null" (default: no query)',
        )
    if verb in ("compare", "all"):
        group.add_argument(
            "--against",
            required=verb == "compare",
            metavar="NAME",
            help="a second model, compared pair by pair",
        )
    if verb in ("reconstruction", "compare", "all"):
        group.add_argument(
            "--counts", type=positive, nargs="+", default=list(COUNTS), metavar="N",
            help=f"token counts (default: {' '.join(map(str, COUNTS))})",
        )  # fmt: skip
        group.add_argument(
            "--perceptual", metavar="NAME", help="perceptual distance: mobilenet, lpips-vgg or st-lpips"
        )
        group.add_argument("--perceptual-weights", metavar="FILE", help="its local weights file")
    if verb in ("reconstruction", "all"):
        group.add_argument(
            "--inception", metavar="FILE", help="FID's InceptionV3, pt_inception-2015-12-05-6726825d.pth"
        )
        group.add_argument(
            "--no-codecs",
            dest="codecs",
            action="store_false",
            help="leave JPEG and WebP out, which saves time",
        )
    if verb in ("segment", "all"):
        group.add_argument(
            "--layer",
            type=positive,
            metavar="L",
            help="the generator's layer to show (default: the last but one)",
        )


def run(args: Namespace) -> int:
    """Measure, write the report, and say what was found."""
    import json

    from dove_ext.memory import keep_freed_memory, let_idle_threads_sleep

    if getattr(args, "null_query", None) and not args.qdove:
        raise UsageError("--null-query belongs to --qdove; give the model, too")
    if getattr(args, "labelled_test", None) and not args.labelled:
        raise UsageError("--labelled-test belongs to --labelled; give images to train on, too")
    let_idle_threads_sleep()

    from dove_eval.run import Evaluation

    keep_freed_memory()
    evaluation: Evaluation = Evaluation(args)
    report = evaluation.run()
    page, numbers = evaluation.write(report)
    if args.json:
        print(json.dumps(report.json(), indent=2))
    elif args.markdown:
        print(report.markdown())
    else:
        for section in report.sections:
            print(f"{section.title}: {section.finding}")
        for note in report.notes:
            print(f"Not measured: {note}")
        print(f"The report is {page}, its numbers {numbers}.")
    sets = [images for images in (evaluation.images, evaluation.labelled) if images is not None]
    # Both may hold the same picture, which is told once.
    failed = list(dict.fromkeys(item for images in sets for item in images.failed.items()))
    return Failures("eval", failed).report(sum(map(len, sets)) - len(failed))


command = Command(
    "measure a model on your own images, as one report",
    configure,
    run,
    example="dove eval all --data photos/ -o report/",
)
