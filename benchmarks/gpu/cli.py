"""usage: benchmarks/gpu/run.sh prepare | check | measure [options]

All that the CUDA side has to show, in two calls for a machine that is lent for minutes, has no network and
no .git, and lets a handful of files return: `benchmarks.gpu.calls`, and docs/performance.md, "On a GPU".
Nothing of torch is imported here.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import sys
import sysconfig
from pathlib import Path

from .. import commit
from .calls import RefusedError, Steps, asked, names
from .steps import Call, Launch

ROOT = commit.ROOT
PACK = Path("out/gpu-pack")
OUT = Path("out/gpu")
MOST_FILES, MOST_BYTES = 8, 16 * 2**20
"""Of what a call leaves in its folder."""
DRY_PATIENCE = 10.0
"""Times as long as on a GPU: a dry run is not about time."""


def parser() -> argparse.ArgumentParser:
    """The command line of run.sh."""
    top = argparse.ArgumentParser(
        prog="benchmarks/gpu/run.sh",
        description="prepare a trip to a GPU here; check and measure there",
        epilog="The environment variable PYTHON names the interpreter (default: python3).",
    )
    verbs = top.add_subparsers(dest="verb", required=True)
    prepare = verbs.add_parser("prepare", help="in the clone: compile for that machine, and pack")
    add = prepare.add_argument
    add("--python", default=sys.executable, help="that machine's kind of Python (default: this one)")
    add("--architectures", default="90a-real", metavar="A", help="of its GPU (default: %(default)s)")
    add("--data", nargs="+", type=Path, default=[], metavar="PATH", help="photographs to train on")
    add("--validation", nargs="+", type=Path, default=[], metavar="PATH", help="held-out ones")
    add("--megabytes", type=float, default=64.0, metavar="M",
        help="MiB that may travel, the tree included (default: %(default)g)")  # fmt: skip
    for name, minutes, text in (
        ("check", 5.0, "is it right: case table, sanitizer, whole models, quick figures"),
        ("measure", 7.0, "how fast is it: records in order of value; then train dove-tiny"),
    ):
        add = verbs.add_parser(name, help=text).add_argument
        add(
            "--minutes", type=float, default=minutes, metavar="M", help="for all steps (default: %(default)g)"
        )
        add("--out", type=Path, default=OUT / name, metavar="FOLDER",
            help="gets at most 8 files of at most 16 MiB (default: %(default)s)")  # fmt: skip
        add("--only", default="", metavar="STEP[,STEP...]", help="these steps, and `import`")
        add("--seconds", type=float, default=0.3, metavar="S", help="for each row (default: %(default)g)")
        add("--dry-run", action="store_true", help="on a CPU, with stand-ins, in small shapes")
        if name == "measure":
            add("--train-from", type=Path, metavar="FOLDER", help="train the model that a call brought back")
            add("--stages", default="", metavar="STAGE[,STAGE...]", help="of the recipe (default: all)")
    for verb in verbs.choices.values():
        verb.add_argument("--pack", type=Path, default=PACK, metavar="FOLDER",
                          help="what `prepare` makes and the others use (default: %(default)s)")  # fmt: skip
    return top


def unpack(folder: Path, root: Path = ROOT) -> None:
    """Put what `prepare` made where it belongs in a tree without .git; a clone has a build and a commit.

    It is the module compiled for this Python, and the commit.
    """
    if (root / ".git").exists():
        return
    compiled = folder / f"_C{sysconfig.get_config_var('EXT_SUFFIX')}"
    if compiled.exists():
        shutil.copy(compiled, root / "dove_ext")
    if (folder / "commit.txt").exists():
        shutil.copy(folder / "commit.txt", root / "benchmarks")


def require_machine() -> str:
    """The GPU's name.

    Raises:
        RefusedError: if there is none, or nobody knows the commit that is to be measured.
    """
    if shutil.which("nvidia-smi") is None:
        raise RefusedError(
            "no GPU here (nvidia-smi was not found); run this on a machine with an NVIDIA GPU, or with "
            "--dry-run"
        )
    gpu = asked("nvidia-smi", "-L")
    if not gpu.startswith("GPU"):
        raise RefusedError("nvidia-smi lists no GPU; check the driver")
    if commit.of_tree() is None:
        raise RefusedError(
            "nobody knows which commit this is: there is no .git here, and no commit.txt in the pack; run "
            "`benchmarks/gpu/run.sh prepare` in the clone and bring its folder along"
        )
    return gpu.splitlines()[0]


def empty(out: Path, needed: Path | None) -> None:
    """Remove what an earlier call left in a folder: all of it is brought back as this call's.

    Raises:
        RefusedError: if the folder is another's, or is to be read.
    """
    if not out.exists() or not any(out.iterdir()):
        return
    if not (out / "summary.txt").exists() or not all(path.is_file() for path in out.iterdir()):
        raise RefusedError(f"--out {out} is not empty, and no call has written it; choose another folder")
    if needed is not None and needed.resolve() == out.resolve():
        raise RefusedError(f"--out {out} is also --train-from; choose another folder")
    for path in out.iterdir():
        path.unlink()


def environment(dry: bool) -> dict[str, str]:
    """Of all steps: this tree is found first, in a dry run the stand-ins of the tools as well."""
    modules = [str(ROOT), str(ROOT / "python"), os.environ.get("PYTHONPATH", "")]
    tools = [
        str(Path(sys.executable).parent),
        os.environ.get("PATH", ""),
    ]  # cmake and ninja are packages, too
    if dry:
        tools.insert(0, str(ROOT / "benchmarks/gpu/stand_ins"))
    return {
        **os.environ,
        "PATH": os.pathsep.join(filter(None, tools)),
        "PYTHONPATH": os.pathsep.join(filter(None, modules)),
        "PYTHONUNBUFFERED": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
    }


def main(arguments: list[str] | None = None, launch: Launch | None = None) -> int:
    """Run a verb; 0, 1 if a step failed or did not run, 2 if the call cannot be made."""
    options = parser().parse_args(arguments)
    try:
        if options.verb == "prepare":
            from . import prepare

            return prepare.run(options)
        return call_machine(options, launch)
    except RefusedError as error:
        print(f"run.sh: {error}", file=sys.stderr)
        return 2


def call_machine(options: argparse.Namespace, launch: Launch | None) -> int:
    """One of the two calls."""
    names(options.only, Steps.CHECK if options.verb == "check" else Steps.MEASURE, "--only")
    unpack(options.pack)
    gpu = "none, a dry run" if options.dry_run else require_machine()
    empty(options.out, getattr(options, "train_from", None))
    patience = DRY_PATIENCE if options.dry_run else 1.0
    minutes = options.minutes * patience
    with Call(options.out, minutes, environment(options.dry_run), launch, patience) as call:
        call.note(
            f"{options.verb}: {gpu}; commit {commit.of_tree() or 'unknown'}; Python {sys.version.split()[0]}"
        )
        steps = Steps(call, options)
        if steps.usable():
            steps.check() if options.verb == "check" else steps.measure()
            steps.report()
        for line in call.findings():
            call.note(line)
        call.note(f"failed or not run: {', '.join(call.failed) or 'nothing'}")
    left = [path for path in options.out.iterdir() if path.is_file()]
    large = [path.name for path in left if path.stat().st_size > MOST_BYTES]
    if len(left) > MOST_FILES or large:
        print(f"run.sh: {len(left)} files in {options.out}, too large: {large}", file=sys.stderr)
        return 1
    return int(bool(call.failed))


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))  # so that its steps end, too
    sys.exit(main())
