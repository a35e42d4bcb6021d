"""The engine `ray`, on a cluster of four workers on this machine: `make test-ray`."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dove_data import DataError, tokenize
from tests.data.small import contents, folder_of, settings_of, stop_after

ray = pytest.importorskip("ray", reason="the extra `ray`; make test-ray brings it")
pytest.importorskip("ray.data")

from benchmarks.scale_kills import cluster, workers_of  # noqa: E402

WORKERS = 4


@pytest.fixture(scope="module", autouse=True)
def four_workers() -> Iterator[None]:
    with cluster(WORKERS):
        yield


def test_four_workers_make_the_same_set_past_kills(model: Path, tmp_path: Path) -> None:
    source, settings = folder_of(tmp_path / "source", 60), settings_of(model, shard_size=2)
    tokenize([source], tmp_path / "local", settings, workers=1)
    killed: list[int] = []

    def on_start(pictures: int) -> Any:
        assert pictures == 60

        def told(row: Any) -> None:
            pids = [pid for pid in workers_of(os.getpid(), "ray") if pid not in killed]
            if len(killed) < 3 and pids:
                os.kill(pids[0], signal.SIGKILL)
                killed.append(pids[0])

        return told

    result = tokenize([source], tmp_path / "ray", settings, engine="ray", workers=WORKERS, on_start=on_start)
    assert len(killed) == 3 and len(result.manifest["shards"]) == 30
    assert contents(tmp_path / "ray") == contents(tmp_path / "local")


def test_what_ray_began_goes_on_here_and_the_other_way_round(
    model: Path, pictures: Path, made: Path, tmp_path: Path
) -> None:
    for engine, other in (("ray", "local"), ("local", "ray")):
        folder, settings = tmp_path / engine, settings_of(model)
        with pytest.raises(KeyboardInterrupt):
            tokenize([pictures], folder, settings, engine=engine, workers=1, on_start=stop_after(1))
        assert tokenize([pictures], folder, settings, engine=other, workers=1).made < 3
        assert contents(folder) == contents(made)


def test_what_a_user_has_to_mend_is_one_sentence(model: Path, pictures: Path, tmp_path: Path) -> None:
    settings = settings_of(model, query="the dog")
    with pytest.raises(DataError, match="query"):
        tokenize([pictures], tmp_path / "t", settings, engine="ray", workers=1)
    (tmp_path / "bad").mkdir()
    for number in range(3):
        (tmp_path / "bad" / f"{number}.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match="pictures so far cannot be read"):
        tokenize([tmp_path / "bad"], tmp_path / "u", settings_of(model), engine="ray", workers=1)
