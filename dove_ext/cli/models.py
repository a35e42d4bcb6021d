"""`dove models`: the models that have a name."""

from __future__ import annotations

import json
from argparse import ArgumentParser, Namespace
from typing import Any

from dove_ext.cli.command import Command
from dove_ext.cli.options import add_json_option


def run(args: Namespace) -> int:
    """Print the presets."""
    from dove_ext.config import PRESETS

    rows = [_describe(name, config) for name, config in PRESETS.items()]
    if args.json:
        print(json.dumps(rows, indent=2))
        return 0
    print(f"{'name':<14}{'parameters':>11}{'tokens':>8}{'width':>7}{'image':>9}  weights")
    for row in rows:
        size = f"{row['image_size']}x{row['image_size']}"
        parameters = f"{row['parameters'] / 1e6:.1f} M"
        shipped = "shipped" if row["shipped"] else "not shipped"
        numbers = f"{parameters:>11}{row['num_tokens']:>8}{row['token_width']:>7}{size:>9}"
        print(f"{row['name']:<14}{numbers}  {shipped}")
    return 0


def configure(parser: ArgumentParser) -> None:
    """Add the verb's arguments."""
    add_json_option(parser)


def _describe(name: str, config: Any) -> dict[str, Any]:
    import torch

    from dove_ext.models.dove import DoveModel
    from dove_ext.models.pretrained import shipped_folder

    with torch.device("meta"):  # shapes without memory
        model = DoveModel(config)
    return {
        "name": name,
        "parameters": sum(p.numel() for p in model.parameters()),
        "num_tokens": config.num_tokens,
        "token_width": config.token_width,
        "image_size": config.image_size,
        "shipped": shipped_folder(name) is not None,
    }


command = Command("the models that have a name", configure, run, example="dove models --json")
