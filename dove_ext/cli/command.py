"""What a verb of the `dove` command is.

A package brings its own verb by naming a `Command` in the entry-point group `dove.commands`:

    [project.entry-points."dove.commands"]
    train = "dove_train.cli:command"

Importing that module must be quick, since `dove --help` does it for every verb: import torch and the like
inside `run`.

Verbs of the group `dove.commands.clone` lie in folders that a wheel does not carry: an editable install has
them, elsewhere `dove` says what to do.
"""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from dataclasses import dataclass

from dove_ext.errors import DoveError

ENTRY_POINTS = "dove.commands"
CLONE_ENTRY_POINTS = "dove.commands.clone"

EXIT_OK = 0
EXIT_FAILED = 1  # an input or output could not be used; the others were
EXIT_USAGE = 2  # the command line itself is wrong (argparse's own code)
EXIT_INTERRUPTED = 130  # Ctrl-C: 128 + SIGINT


class UsageError(DoveError):
    """Arguments that contradict one another; the command ends with `EXIT_USAGE`."""


@dataclass(frozen=True)
class Command:
    """One verb.

    Attributes:
        summary: one line for `dove --help`.
        configure: adds the verb's arguments to its parser.
        run: does the work and returns the exit code. A `DoveError` it raises is printed as one sentence.
        example: shown at the end of `dove VERB --help`.
    """

    summary: str
    configure: Callable[[ArgumentParser], None]
    run: Callable[[Namespace], int]
    example: str = ""
