"""`dove vlm train`: a recipe, and what the command line changes in it; and the door to the other verbs."""

from __future__ import annotations

import importlib
from argparse import ArgumentParser, Namespace
from typing import Any

from dove_ext.cli.command import EXIT_OK, Command
from dove_instruct.settings import MODELS, Settings, make_settings
from dove_train.recipe_options import add_recipe, recipe_values
from dove_train.settings import TrainingError


class LateParser(ArgumentParser):
    """A parser whose arguments a module adds once it is used: that module imports transformers.

    Args:
        *args: of `ArgumentParser`.
        late: the module, with a function `configure`; "" where arguments are added as usual.
        **kwargs: of `ArgumentParser`.
    """

    def __init__(self, *args: Any, late: str = "", **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.late = late

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As usual, with the arguments of the module.

        Raises:
            TrainingError: if it cannot be imported.
        """
        if self.late:
            late, self.late = self.late, ""
            try:
                importlib.import_module(late).configure(self)
            except ImportError as error:
                raise TrainingError(f"dove vlm needs: pip install 'dove-ext[vlm]' ({error})") from error
        return super().parse_known_args(args, namespace)


def configure(parser: ArgumentParser) -> None:
    """Add the verb's own verbs, each with its arguments."""
    verbs = parser.add_subparsers(metavar="WHAT", dest="what", required=True, parser_class=LateParser)
    verbs.add_parser(
        "eval", help="score a model on a benchmark of visual question answering", late="dove_vlm.cli"
    )
    verbs.add_parser("ask", help="put a question about pictures to a trained model", late="dove_vlm.ask_cli")
    verbs.add_parser(
        "questions",
        help="write questions about labelled pictures, to train and test a small model with",
        late="dove_instruct.questions_cli",
    )
    train = verbs.add_parser("train", help="teach a language model to answer about pictures (B.1)")
    add_recipe(train, Settings, paths=("data",))


def settings_of(args: Namespace) -> Settings:
    """The recipe with the command line's changes.

    Raises:
        TrainingError: naming what is missing, unknown or out of range.
    """
    values = recipe_values(args, Settings)
    if any(name in args and getattr(args, name) for name in MODELS):  # in place of the recipe's
        values = {name: value for name, value in values.items() if name not in MODELS or name in args}
    return make_settings(values, str(args.recipe))


def run(args: Namespace) -> int:
    """Train, and say where the model is."""
    settings = settings_of(args)
    from dove_ext.memory import keep_freed_memory, let_idle_threads_sleep

    let_idle_threads_sleep()
    try:
        from dove_instruct.run import Run
    except ImportError as error:
        raise TrainingError(f"dove vlm needs: pip install 'dove-ext[vlm]' ({error})") from error
    from dove_train.distributed import join

    keep_freed_memory()
    with join(settings.device, settings.parallel) as world:
        training = Run(settings, args.output, world)
        training.train()
        training.report.say(f"the model is in {training.folder / 'model'}")
    return EXIT_OK


command = Command(
    "put a language model behind the encoder: teach it to answer about pictures",
    configure,
    run,
    example="dove vlm train recipes/vicuna-7b-dove.yaml --data llava.json --images data/ -o runs/vlm",
)
