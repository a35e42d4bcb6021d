"""Fuzz what reads strangers' bytes, guided by coverage: `python -m tests.fuzz TARGET... [OPTIONS]`.

`all` are all targets, one after the other; options are libFuzzer's, such as `-runs=100000`. It starts from
tests/fuzz/corpus/TARGET and seeds made here; new interesting inputs go to out/fuzz/TARGET, and one that is
refused in a wrong way, or takes more than 5 seconds or 2 GB, to out/fuzz/TARGET-crash-*.
`tests/fuzz/test_corpus.py` replays the corpus.
"""

from __future__ import annotations

import os
import sys
import time
from hashlib import sha256
from pathlib import Path
from typing import NoReturn

import atheris

with atheris.instrument_imports(
    include=["dove_ext", "dove_data", "dove_train", "dove_instruct", "yaml", "tarfile", "PIL"]
):
    from tests.fuzz.targets import ROOT, TARGETS, Target, try_one

CORPUS = Path(__file__).parent / "corpus"
SECONDS, MEGABYTES = 5, 2048
HANG = 120  # seconds of the clock, which others of the machine take from


def main() -> int:
    """The command. Several targets are forks of one start, which takes longer than hundreds of inputs."""
    given = sys.argv[1:]
    names = [name for name in given if not name.startswith("-")]
    options = [name for name in given if name.startswith("-")]
    names = list(TARGETS) if names == ["all"] else names
    if not names or not set(names) <= set(TARGETS):
        print(f"give one of {', '.join(TARGETS)}, or several, or all", file=sys.stderr)
        return 2
    if len(names) == 1:
        fuzz(names[0], options)
    for name in names:
        print(f"--- {name}", flush=True)
        if (child := os.fork()) == 0:
            fuzz(name, options)
        if code := os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]):
            return abs(code)
    return 0


def fuzz(name: str, more: list[str]) -> NoReturn:
    """Fuzz a target, with these options of libFuzzer."""
    target = TARGETS[name]
    found = ROOT / "out" / "fuzz" / name
    found.mkdir(parents=True, exist_ok=True)
    for seed in target.seeds():
        (found / sha256(seed).hexdigest()[:16]).write_bytes(seed)
        try_one(target, seed)  # what is made once is made now
    words = found.with_suffix(".dict")
    words.write_text("".join(f'"{_escaped(word)}"\n' for word in target.words) or '# none\nnone="\\x00"\n')
    options = [
        f"-timeout={HANG}",
        f"-rss_limit_mb={MEGABYTES}",
        f"-artifact_prefix={found}-",
        f"-dict={words}",
    ]
    folders = [str(found), *([str(CORPUS / name)] if (CORPUS / name).is_dir() else [])]
    atheris.Setup([sys.argv[0], *options, *more, *folders], lambda data: _timed(target, data))
    atheris.Fuzz()
    raise AssertionError("atheris ends the process")


def _timed(target: Target, data: bytes) -> None:
    since = time.process_time()
    try_one(target, data)
    took = time.process_time() - since
    assert took < SECONDS, f"{took:.1f} s of processor time"


def _escaped(word: str) -> str:
    return "".join(c if c.isprintable() and c not in '"\\' else f"\\x{ord(c):02x}" for c in word)


sys.exit(main())
