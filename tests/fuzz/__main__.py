"""Fuzz what reads strangers' bytes, guided by coverage: `python -m tests.fuzz TARGET [libFuzzer's options]`.

For example `-runs=100000`, or `-max_total_time=60`. It starts from tests/fuzz/corpus/TARGET and seeds made
here; new interesting inputs go to out/fuzz/TARGET, and one that is refused in a wrong way, or takes more than
5 seconds or 2 GB, to out/fuzz/TARGET-crash-*. `tests/fuzz/test_corpus.py` replays the corpus.
"""

from __future__ import annotations

import sys
import time
from hashlib import sha256
from pathlib import Path

import atheris

with atheris.instrument_imports(
    include=["dove_ext", "dove_data", "dove_train", "dove_instruct", "yaml", "tarfile", "PIL"]
):
    from tests.fuzz.targets import ROOT, TARGETS, Target, try_one

CORPUS = Path(__file__).parent / "corpus"
SECONDS, MEGABYTES = 5, 2048
HANG = 120  # seconds of the clock, which others of the machine take from


def main() -> None:
    """The command."""
    name = sys.argv[1] if len(sys.argv) > 1 else ""
    if name not in TARGETS:
        sys.exit(f"give one of {', '.join(TARGETS)}")
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
    atheris.Setup([sys.argv[0], *options, *sys.argv[2:], *folders], lambda data: _timed(target, data))
    atheris.Fuzz()


def _timed(target: Target, data: bytes) -> None:
    since = time.process_time()
    try_one(target, data)
    took = time.process_time() - since
    assert took < SECONDS, f"{took:.1f} s of processor time"


def _escaped(word: str) -> str:
    return "".join(c if c.isprintable() and c not in '"\\' else f"\\x{ord(c):02x}" for c in word)


main()
