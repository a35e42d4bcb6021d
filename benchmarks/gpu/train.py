"""Trains dove-tiny's recipe for some minutes on what `prepare` packed, and leaves the model in parts.

    python -m benchmarks.gpu.train --pack FOLDER --work FOLDER --out FOLDER --seconds S [--from FOLDER]
        [--stages STAGE[,STAGE...]]

`dove train --minutes` shortens every stage to its share of the time, so that a whole model comes out. `--out`
gets weights.0, weights.1, ... (model.safetensors, cut) and train.tar.gz (the rest of the model's folder, and
the log). A checkpoint, with which a run would go on to the bit, is several times as large and stays behind.
`--from` a folder with these parts begins with its weights, as every stage does with those of the stage before
it; `--stages` names the stages that are still to be trained.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tarfile
from pathlib import Path

from .. import commit
from .steps import pack

PART_BYTES = 15 * 2**20
PARTS = "weights."
START_SECONDS = 45
"""For what `--minutes` does not count: the start, the closed form, evaluations, saving."""


def cut(file: Path, out: Path, size: int = PART_BYTES) -> list[Path]:
    """A file in parts of at most `size` bytes, weights.0 and so on; older ones are removed."""
    for old in out.glob(f"{PARTS}*"):
        old.unlink()
    parts = []
    with file.open("rb") as source:
        while chunk := source.read(size):
            parts.append(out / f"{PARTS}{len(parts)}")
            parts[-1].write_bytes(chunk)
    return parts


def put_together(folder: Path, target: Path) -> Path:
    """The model's folder: `folder` itself, or made in `target` from the parts that an earlier call left."""
    if (folder / "model.safetensors").exists():
        return folder
    parts = sorted(folder.glob(f"{PARTS}*"), key=lambda path: int(path.suffix[1:]))
    if not parts or not (folder / "train.tar.gz").exists():
        sys.exit(
            f"{folder} holds no model: give a model's folder, or one with {PARTS}0, ... and train.tar.gz"
        )
    target.mkdir(parents=True, exist_ok=True)
    with (target / "model.safetensors").open("wb") as whole:
        for part in parts:
            whole.write(part.read_bytes())
    with tarfile.open(folder / "train.tar.gz") as archive:
        for name in ("config.json", "README.md"):
            with (target / name).open("wb") as file:
                source = archive.extractfile(f"rest/{name}")
                assert source is not None
                file.write(source.read())
    return target


def verb(arguments: list[str]) -> int:
    """`dove train`, also where the package is not installed."""
    from dove_train.cli import command

    parser = argparse.ArgumentParser(prog="dove train")
    command.configure(parser)
    return command.run(parser.parse_args(arguments))


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    for option in ("--pack", "--work", "--out"):
        parser.add_argument(option, type=Path, required=True)
    parser.add_argument("--seconds", type=float, required=True, help="for all of it")
    parser.add_argument("--from", dest="start", type=Path, help="a model, or the parts that this left")
    parser.add_argument("--stages", help="names, with commas; default: all of the recipe")
    parser.add_argument("--dry-run", action="store_true", help="one step of the smallest kind")
    options = parser.parse_args(arguments)
    given = command_line(options)
    print("dove train", *given, flush=True)
    code = verb(given)
    model = options.work / "run" / "model"
    if code or not model.is_dir():
        return code or 1
    options.out.mkdir(parents=True, exist_ok=True)
    rest = options.work / "rest"
    shutil.copytree(model, rest, ignore=shutil.ignore_patterns("model.safetensors"), dirs_exist_ok=True)
    shutil.copy(options.work / "run" / "log.jsonl", rest)
    (rest / "commit.txt").write_text(f"{commit.of_tree()}\ndove train {' '.join(given)}\n")
    pack(rest, options.out / "train.tar.gz")
    parts = cut(model / "model.safetensors", options.out)
    print(f"a model in {len(parts)} parts of {sum(p.stat().st_size for p in parts) / 2**20:.1f} MiB together")
    return 0


def command_line(options: argparse.Namespace) -> list[str]:
    """What `dove train` is given."""
    recipe = commit.ROOT / "recipes" / "dove-tiny.yaml"
    photographs = commit.ROOT / "examples" / "photos"
    data, validation = (options.pack / name for name in ("train.tar", "validation.tar"))
    if options.dry_run:
        data, validation = (photographs / name for name in ("cat.jpg", "coffee.jpg"))
    if not data.exists() or not validation.exists():
        sys.exit(f"{options.pack} holds no photographs; give `run.sh prepare` --data and --validation")
    given = [recipe, "--data", data, "--validation", validation]
    given += ["-o", options.work / "run", "--name", "dove-tiny"]
    known = list(stages(recipe))
    chosen = options.stages.split(",") if options.stages else known
    if wrong := [name for name in chosen if name not in known]:
        sys.exit(f"--stages: there is no {wrong[0]!r}; choose from {', '.join(known)}")
    backbone = options.pack / "mobilenet_v2-b0353104.pth"
    if backbone.exists():
        given += ["--alignment-weights", backbone]
    else:
        aligned = [name for name, path in stages(recipe).items() if path == "features"]
        print(f"left out: {', '.join(aligned)}, since the pack lacks MobileNetV2's weights")
        chosen = [name for name in chosen if name not in aligned]
    given += ["--stage", *(f"{name}.steps=0" for name in known if name not in chosen)]
    if given[-1] == "--stage":
        given.pop()
    if options.start:
        given += ["--start-from", put_together(options.start, options.work / "start")]
    given += ["--picture-every", 0]
    if options.dry_run:
        given += ["--steps", 1, "--batch-size", 1, "--fit-images", 32, "--validation-limit", 1]
        given += [] if options.start else ["--shape", "image_size=64"]
    else:
        minutes = max(0.2, (options.seconds - START_SECONDS) / 60)
        given += ["--minutes", f"{minutes:.2f}", "--workers", 8]
        given += ["--evaluate-every", 2000, "--checkpoint-every", 10**6]
    return [str(each) for each in given]


def stages(recipe: Path) -> dict[str, str]:
    """Names and paths of a recipe's stages."""
    from dove_train.settings import read_recipe

    return {name: stage.get("path", "tokens") for name, stage in read_recipe(recipe)["stages"].items()}


if __name__ == "__main__":
    sys.exit(main())
