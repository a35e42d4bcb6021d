"""`dove info`: what this installation can do."""

from __future__ import annotations

import json
from argparse import ArgumentParser, Namespace

from dove_ext.cli.command import Command
from dove_ext.cli.options import add_json_option


def run(args: Namespace) -> int:
    """Print version, backends, and for each missing backend why."""
    from dove_ext._info import info

    facts = info()
    if args.json:
        print(json.dumps(facts, indent=2))
        return 0
    cpu, cuda = facts["backends"]["cpu"], facts["backends"]["cuda"]
    print(f"dove-ext  {facts['version']} with torch {facts['torch']}")
    print(f"cpu       {cpu['isa']}, {cpu['threads']} threads")
    built = f"built for {', '.join(cuda['archs'])}" if cuda["built"] else "not built"
    print(f"cuda      {built}{'' if cuda['available'] else '; cannot run: ' + cuda['why']}")
    return 0


def configure(parser: ArgumentParser) -> None:
    """Add the verb's arguments."""
    add_json_option(parser)


command = Command("what this installation can do, and why not", configure, run, example="dove info --json")
