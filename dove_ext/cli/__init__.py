"""The `dove` command: `dove VERB ...`, with verbs gathered from installed packages.

Only the chosen verb is loaded, and torch only once it runs, so that `dove --help` answers at once.
"""

from __future__ import annotations

import argparse
import errno
import json
import sys
from collections.abc import Sequence
from importlib.metadata import EntryPoint, PackageNotFoundError, entry_points, version

from dove_ext.cli.command import (
    CLONE_ENTRY_POINTS,
    ENTRY_POINTS,
    EXIT_FAILED,
    EXIT_INTERRUPTED,
    EXIT_USAGE,
    Command,
    UsageError,
)
from dove_ext.cli.streams import lasting_streams, silence
from dove_ext.errors import DoveError

__all__ = ["Command", "main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the `dove` command.

    Args:
        argv: the arguments without the program's name; None: those of the process.

    Returns:
        int: the exit code. 0: all done; 1: an input or output could not be used (the others were);
        2: the command line is wrong; 130: interrupted.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    # In front of every message: what the user typed, as far as it makes sense.
    program = " ".join(["dove", *arguments[:1]])
    with lasting_streams(program):
        return _run(arguments, program)


def _run(arguments: list[str], program: str) -> int:
    args: argparse.Namespace | None = None
    try:
        args = _parse(arguments)
        code: int = args.run(args)
        sys.stdout.flush()
        return code
    except SystemExit as exit_request:  # argparse: 0 after --help, 2 after a usage error
        return exit_request.code if isinstance(exit_request.code, int) else EXIT_FAILED
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except UsageError as error:
        print(f"{program}: {error}", file=sys.stderr)
        return EXIT_USAGE
    except DoveError as error:
        print(f"{program}: {error}", file=sys.stderr)
        if getattr(args, "json", False):  # whoever parses standard output finds the reason there, too
            print(json.dumps({"error": str(error)}))
        return EXIT_FAILED
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EIO):
            raise
        silence(sys.stdout)
        print(f"{program}: cannot write the output: {error.strerror}; free some space", file=sys.stderr)
        return EXIT_FAILED


def _parse(arguments: list[str]) -> argparse.Namespace:
    entries = (*entry_points(group=CLONE_ENTRY_POINTS), *entry_points(group=ENTRY_POINTS))
    verbs = {entry.name: entry for entry in sorted(entries, key=lambda e: e.name)}
    parser = argparse.ArgumentParser(
        prog="dove",
        description="Turn images into as many visual tokens as they deserve, and back.",
        epilog="`dove VERB --help` shows a verb's options and an example.",
    )
    parser.add_argument("--version", action="version", version=f"dove-ext {_version()}")
    subparsers = parser.add_subparsers(metavar="VERB", dest="verb", required=True)
    chosen = verbs.get(arguments[0]) if arguments else None
    for entry in verbs.values() if chosen is None else [chosen]:
        _add_verb(subparsers, entry, listing=chosen is None)
    return parser.parse_args(arguments)


def _add_verb(
    subparsers: argparse._SubParsersAction[argparse.ArgumentParser], entry: EntryPoint, listing: bool
) -> None:
    try:
        command: Command = entry.load()
    except Exception as error:
        if entry.group == CLONE_ENTRY_POINTS and _is_absent(entry.module, error):
            if listing:
                return
            raise DoveError(
                "runs in a clone of the repository only: git clone it, then "
                f"pip install -e '.[{entry.name}]' there"
            ) from error
        reason = f"the verb {entry.name!r} cannot be loaded from {entry.value} ({error})"
        if not listing:
            raise DoveError(f"{reason}; reinstall the package that brings it") from error
        # Another package's verb is broken: the help of the others must go on working.
        subparsers.add_parser(entry.name, help=reason.replace("%", "%%"))
        return
    parser = subparsers.add_parser(
        entry.name,
        help=command.summary,
        description=command.summary,
        epilog=f"example:\n  {command.example}" if command.example else None,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.configure(parser)
    parser.set_defaults(run=command.run)


def _is_absent(module: str, error: Exception) -> bool:
    """Whether the module or a package around it is not there, rather than broken."""
    missing = error.name if isinstance(error, ModuleNotFoundError) else None
    return missing is not None and f"{module}.".startswith(f"{missing}.")


def _version() -> str:
    try:
        return version("dove-ext")
    except PackageNotFoundError:
        return "(not installed)"
