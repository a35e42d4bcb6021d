"""`make try-wheels`: each wheel of dist/ in an environment with nothing but itself and what it requires.

It is installed without a compiler on PATH, the time is taken, and what is installed says what it can do and
carries a photograph through tokens. The environment, 6 GB with a CUDA build of PyTorch, is removed before the
next is made.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from release.pythons import find

ROOT = Path(__file__).parents[1]
WORK = ROOT / "build" / "trial"
PHOTO = ROOT / "examples" / "photos" / "cat.jpg"
# dB, of the picture that `dove decode` writes; the shipped model promises 32 before colours have 8 bits.
LEAST_PSNR = 30.0
_RUN = """
import json, sys
import dove_ext
from dove_ext.metrics.pixel import psnr
tokens = dove_ext.DoveTokens.load(sys.argv[1])
picture, photo = (dove_ext.prepare_images([path], 256) for path in sys.argv[2:])
facts = dove_ext.info()["backends"]["cuda"]
place = dove_ext.__file__
seen = {"tokens": tokens.lengths.tolist(), "psnr": float(psnr(picture, photo)), "cuda": facts, "place": place}
print(json.dumps(seen))
"""


class TrialError(Exception):
    """What a wheel could not do, in one sentence."""


def attempt(wheel: Path, python: Path) -> str:
    """Install a wheel into an empty environment, and use it there; returns what was seen, in one line.

    Raises:
        TrialError: if anything fails.
    """
    env = WORK / "env"
    shutil.rmtree(WORK, ignore_errors=True)
    WORK.mkdir(parents=True)
    try:
        _run([python, "-m", "venv", "--without-pip", env])
        pip = [sys.executable, "-m", "pip", "--python", env, "install", "--quiet", "--no-cache-dir"]
        began = time.monotonic()
        _run([*pip, "--no-deps", wheel])
        seconds = time.monotonic() - began
        _run([*pip, wheel])
        _run([env / "bin" / "dove", "encode", PHOTO, "-o", WORK / "tokens.safetensors"])
        _run([env / "bin" / "dove", "decode", WORK / "tokens.safetensors", "-o", WORK / "pictures"])
        (picture,) = (WORK / "pictures").glob("*.png")
        files = [WORK / "tokens.safetensors", picture, PHOTO]
        seen = json.loads(_run([env / "bin" / "python", "-c", _RUN, *files]))
        told = _run([env / "bin" / "dove", "info"])
    finally:
        shutil.rmtree(env, ignore_errors=True)
    if not seen["place"].startswith(str(env)):
        raise TrialError(f"{wheel.name}: what ran was {seen['place']}, not what was installed")
    if not seen["cuda"]["built"]:
        raise TrialError(f"{wheel.name} has no CUDA kernels: {seen['cuda']['why']}")
    if not seen["psnr"] >= LEAST_PSNR:
        raise TrialError(f"{wheel.name}: {PHOTO.name} comes back at {seen['psnr']:.1f} dB only")
    about = "; ".join(re.sub(" +", " ", line) for line in told.splitlines())
    return (
        f"installed in {seconds:.1f} s; {PHOTO.name} {seen['tokens']} tokens, {seen['psnr']:.1f} dB; {about}"
    )


def _run(command: Sequence[str | Path]) -> str:
    """Run with nothing on PATH but the environment, and nothing of this repository to import."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    environment = kept | {"PATH": str(WORK / "env" / "bin")}
    ran = subprocess.run(command, env=environment, cwd=WORK, capture_output=True, text=True, check=False)
    if ran.returncode:
        last = (ran.stderr.strip().splitlines() or ["it says nothing"])[-1]
        raise TrialError(f"{' '.join(map(str, command[:6]))} .. failed: {last}")
    return ran.stdout


def main(arguments: Sequence[str] | None = None) -> int:
    """Try the wheels in dist/, or those of the Pythons that are named."""
    parser = argparse.ArgumentParser(prog="make try-wheels", description=__doc__)
    parser.add_argument(
        "pythons", nargs="*", help="versions or paths of interpreters (all that have a wheel)"
    )
    parser.add_argument("--dist", type=Path, default=ROOT / "dist", help="where the wheels are (dist)")
    args = parser.parse_args(arguments)
    wheels = {
        f"{found[1]}.{found[2]}": path.resolve()
        for path in sorted(args.dist.glob("dove_ext-*.whl"))
        if (found := re.search(r"-cp(\d)(\d+)-", path.name))
    }
    pythons, missing = find(args.pythons or list(wheels))
    try:
        if not wheels:
            raise TrialError(f"{args.dist} holds no wheel; make wheels")
        if missing:
            raise TrialError(
                f"no CPython with headers was found for {', '.join(missing)}; name one by its path"
            )
        for python in pythons:
            if python.version not in wheels:
                raise TrialError(f"{args.dist} holds no wheel for Python {python.version}; make wheels")
            print(f"{python.version}: {attempt(wheels[python.version], python.path)}", flush=True)
    except TrialError as error:
        print(f"make try-wheels: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
