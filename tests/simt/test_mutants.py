"""Proves that the emulated case table catches faults: each mutant must fail one of its rows."""

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path
from types import ModuleType

import pytest
import torch

from tests.cases import CASES
from tests.cases.compare import compare_backward, compare_forward
from tests.simt import build
from tests.simt.emulated import emulation
from tests.simt.mutants import MUTANTS, NOT_NEEDED, Mutant
from tests.simt.test_table import DTYPES

_SECONDS = 30.0  # of processor time; a mutant that hangs has been noticed too

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.skipif(build.COMPILER is None, reason="no C++ compiler"),
]


def outcome(module: Path, mutant: Mutant) -> str:
    """What the mutant's rows say of a build, tried in a process of its own: "" if they all pass."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        signal.setitimer(signal.ITIMER_PROF, _SECONDS)
        try:
            text = _run_rows(module, mutant)
        except BaseException as problem:
            text = f"{type(problem).__name__}: {problem}"
        with contextlib.suppress(BaseException):
            os.write(writer, text.encode()[:2000])
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        text = pipe.read().decode(errors="replace")
    _, status = os.waitpid(child, 0)
    return text or (f"ended by signal {os.WTERMSIG(status)}" if os.WIFSIGNALED(status) else "")


def _run_rows(module: Path, mutant: Mutant) -> str:
    simt = build.load(module)
    for row in mutant.rows:
        _run_row(simt, row, mutant.dtype, mutant.backward, mutant.seeds)
    return ""


def _run_row(simt: ModuleType, row: str, dtype: str, backward: bool, seeds: tuple[int, ...]) -> None:
    (case,) = (case for case in CASES if str(case) == row)
    for seed in seeds:
        with emulation(simt, seed):
            (compare_backward if backward else compare_forward)(case, DTYPES[dtype])


def shortened(source: str, text: str) -> str:
    """A kernel source without what no mutant's rows need: less to compile."""
    for call in NOT_NEEDED.get(source, ()):
        assert call in text, f"{source} has no {call!r} any more"
        text = text.replace(call, "Status::kUnsupportedShape")
    return text


@pytest.mark.parametrize("mutant", MUTANTS, ids=str)
def test_mutant_is_caught(mutant: Mutant, tmp_path: Path, simt: ModuleType, simt_cache: Path) -> None:
    text = (build.CSRC / "cuda" / mutant.file).read_text()
    assert text.count(mutant.old) == 1, f"{mutant}: its text occurs {text.count(mutant.old)} times"
    assert mutant.file in build.parts(build.CSRC / "cuda" / mutant.source)
    changed = {mutant.file: text.replace(mutant.old, mutant.new)}
    source = changed.get(mutant.source) or (build.CSRC / "cuda" / mutant.source).read_text()
    changed[mutant.source] = shortened(mutant.source, source)
    module = build.build(tmp_path, simt_cache, {mutant.source: changed})
    assert outcome(module, mutant), f"{mutant} survived {', '.join(mutant.rows)}"


@pytest.fixture(scope="module")
def unchanged(tmp_path_factory: pytest.TempPathFactory, simt: ModuleType, simt_cache: Path) -> ModuleType:
    """All sources with mutants compiled and shortened as for a mutant, and nothing else changed."""
    sources = {mutant.source for mutant in MUTANTS}
    texts = {name: {name: shortened(name, (build.CSRC / "cuda" / name).read_text())} for name in sources}
    return build.load(build.build(tmp_path_factory.mktemp("unchanged"), simt_cache, texts))


_TRIALS = sorted({(row, m.dtype, m.backward, m.seeds) for m in MUTANTS for row in m.rows})


@pytest.mark.parametrize(("row", "dtype", "backward", "seeds"), _TRIALS)
def test_the_unchanged_kernels_pass_the_same_rows(
    row: str, dtype: str, backward: bool, seeds: tuple[int, ...], unchanged: ModuleType
) -> None:
    _run_row(unchanged, row, dtype, backward, seeds)


def test_there_are_enough_and_they_differ() -> None:
    assert len(MUTANTS) >= 20
    assert len({(m.file, m.old, m.new) for m in MUTANTS}) == len(MUTANTS)
    assert torch.get_num_threads() == 1
