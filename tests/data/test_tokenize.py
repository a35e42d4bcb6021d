"""A set holds what `encode` makes, and is the same however often its run was disturbed."""

from __future__ import annotations

import contextlib
import errno
import json
import multiprocessing
import os
import resource
import signal
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from dove_data import DataError, Settings, local, tokenize, verify
from dove_data.plan import alone, shard_path
from dove_data.units import Job
from dove_ext import DoveError, DoveModel, DoveTokens, OutputError
from dove_ext.images.index import ImageIndex
from tests.data.small import COUNT, contents, folder_of, settings_of, stop_after


def test_shards_are_token_files_of_what_encode_makes(made: Path, model: Path, pictures: Path) -> None:
    index = ImageIndex([pictures])
    names = [index.short_name(i) for i in range(len(index))]
    encoder = DoveModel.from_pretrained(model)
    lengths = []
    for unit, start in enumerate(range(0, COUNT, 4)):
        tokens = DoveTokens.load(shard_path(made, unit, "safetensors"))
        expected = [
            encoder.encode([index.image(i) for i in range(first, min(first + 2, COUNT))])
            for first in range(start, min(start + 4, COUNT), 2)
        ]
        assert torch.equal(tokens.tokens, DoveTokens.cat(expected).tokens)
        assert tokens.names == tuple(names[start : start + 4]) and tokens.model == "micro"
        lengths += tokens.lengths.tolist()
    assert len(set(lengths)) > 2
    manifest = json.loads((made / "manifest.json").read_text())
    assert manifest["pictures"] == COUNT and manifest["tokens"] == sum(lengths)
    assert [shard["pictures"] for shard in manifest["shards"]] == [4, 4, 2]
    assert manifest["bytes"] == sum(p.stat().st_size for p in (made / "shards").rglob("*.safetensors"))
    assert list(verify(made)) == []


@pytest.mark.parametrize("stops", [(1,), (1, 1), (3,)])
def test_an_interrupted_run_goes_on_to_the_same_bytes(
    stops: tuple[int, ...], made: Path, model: Path, pictures: Path, tmp_path: Path
) -> None:
    for number, stop in enumerate(stops):
        with pytest.raises(KeyboardInterrupt):
            # What an earlier call has made is told, too.
            tokenize(
                [pictures], tmp_path / "t", settings_of(model), workers=1, on_start=stop_after(stop + number)
            )
        assert not (tmp_path / "t" / "manifest.json").exists()
    result = tokenize([pictures], tmp_path / "t", settings_of(model), workers=1)
    assert result.made == 3 - sum(stops)
    assert contents(tmp_path / "t") == contents(made)
    assert tokenize([pictures], tmp_path / "t", settings_of(model), workers=1).made == 0
    assert contents(tmp_path / "t") == contents(made)


def test_a_killed_worker_ends_the_run_and_two_workers_finish_it(
    made: Path, model: Path, pictures: Path, tmp_path: Path
) -> None:
    def kill_one(total: int) -> Any:
        def told(row: Any) -> None:
            children = [p for p in multiprocessing.active_children() if p.pid is not None]
            os.kill(children[0].pid or 0, signal.SIGKILL)

        return told

    more = folder_of(tmp_path / "more", 24)  # so that much is left when the first shard is there
    with pytest.raises(DataError, match=r"a worker process has ended by itself.*goes on from here"):
        tokenize([more], tmp_path / "t", settings_of(model), workers=2, on_start=kill_one)
    assert not multiprocessing.active_children()
    assert not list((tmp_path / "t").rglob(".0*"))  # half-written shards
    tokenize([more], tmp_path / "u", settings_of(model), workers=1)
    tokenize([more], tmp_path / "t", settings_of(model), workers=2)
    assert contents(tmp_path / "t") == contents(tmp_path / "u")


def _wait_to_answer(place: Path, lock: Any) -> None:
    """A worker as a pool leaves it: an exception is an answer, for which it needs the lock."""
    places = multiprocessing.get_context("spawn").Queue()
    places.put("cpu")
    local._start(Job(place, Settings(), ""), places)
    (place / "ready").touch()
    with contextlib.suppress(BaseException):
        time.sleep(60)
    with lock:
        pass


def test_a_worker_ends_though_a_killed_one_holds_the_lock_of_answers(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    lock = context.Lock()
    with lock:
        worker = context.Process(target=_wait_to_answer, args=(tmp_path, lock))
        worker.start()
        while not (tmp_path / "ready").exists():
            assert worker.is_alive()
            time.sleep(0.05)
        worker.terminate()
        worker.join(20)
        ended = not worker.is_alive()
        worker.kill()
        worker.join()
    assert ended


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "zeros behind", "removed", "of another run"])
def test_a_torn_shard_is_made_again(
    damage: str, made: Path, model: Path, pictures: Path, tmp_path: Path
) -> None:
    settings = settings_of(model)
    with pytest.raises(KeyboardInterrupt):
        tokenize([pictures], tmp_path / "t", settings, workers=1, on_start=stop_after(2))
    path = shard_path(tmp_path / "t", 0, "safetensors")
    data = bytearray(path.read_bytes())
    if damage == "cut":
        del data[-100:]
    elif damage == "flipped":
        data[-100] ^= 1
    elif damage == "empty":
        data.clear()
    elif damage == "zeros behind":
        data[-4096:] = bytes(4096)
    elif damage == "of another run":
        data = bytearray(shard_path(tmp_path / "t", 1, "safetensors").read_bytes())
    path.write_bytes(data)
    if damage == "removed":
        path.unlink()
    assert tokenize([pictures], tmp_path / "t", settings, workers=1).made == 2
    assert contents(tmp_path / "t") == contents(made)


def test_a_full_disk_leaves_nothing_half_written(
    made: Path, model: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, hard))
    try:
        with pytest.raises(OutputError, match="File too large; free some space"):
            tokenize([pictures], tmp_path / "t", settings_of(model), workers=1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    left = [p.name for p in (tmp_path / "t").rglob("*") if p.is_file()]
    assert sorted(left) == [".lock", "plan.json"]

    write = Path.write_bytes

    def full(path: Path, data: Any) -> int:
        if path.name.startswith(".000000001"):
            write(path, bytes(data)[:1000])
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(path, data)

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OutputError, match="No space left on device"):
        tokenize([pictures], tmp_path / "t", settings_of(model), workers=1)
    monkeypatch.undo()
    left = [p.name for p in (tmp_path / "t").rglob("*") if p.is_file()]
    assert sorted(left) == [".lock", "000000000.safetensors", "plan.json"]
    tokenize([pictures], tmp_path / "t", settings_of(model), workers=1)
    assert contents(tmp_path / "t") == contents(made)


def test_another_run_is_refused_by_what_differs(
    made: Path, model: Path, pictures: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "t"
    with pytest.raises(KeyboardInterrupt):
        tokenize([pictures], folder, settings_of(model), workers=1, on_start=stop_after(1))
    before, settings = contents(folder), settings_of(model)

    def refused(match: str, source: Path = pictures, **changes: Any) -> None:
        with pytest.raises(DataError, match=match):
            tokenize([source], folder, replace(settings, **changes), workers=1)

    refused("--max-tokens not given, now 20; ask for what", max_tokens=20)
    refused("--shard-size 4, now 5; --tiles not given, now 1-4;", shard_size=5, tiles=(1, 4))
    refused("model '.*', now 'dove-tiny'", model="dove-tiny")
    refused("10 pictures, now 9", folder_of(tmp_path / "fewer", 9))
    other = folder_of(tmp_path / "other")
    (other / "n0" / "0.png").rename(other / "n0" / "00.png")
    refused("10 pictures as before, but of other names, sizes or order", other)
    same = folder_of(tmp_path / "same")
    (same / "n0" / "0.png").write_bytes((same / "n0" / "0.png").read_bytes() + b"\0")
    refused("of other names, sizes or order", same)
    assert contents(folder) == before
    # The same pictures may have moved.
    tokenize([folder_of(tmp_path / "moved")], folder, settings_of(model), workers=1)
    assert contents(folder) == contents(made)
    (model / "README.md").write_text("Not what a model is made of.")
    tokenize([pictures], folder, settings_of(model), workers=1)


def test_a_plan_of_which_nothing_was_made_gives_way(model: Path, pictures: Path, tmp_path: Path) -> None:
    settings = settings_of(model)
    with pytest.raises(DoveError):
        tokenize([pictures], tmp_path / "t", replace(settings, drop_empty=True), workers=1)
    tokenize([pictures], tmp_path / "t", settings, workers=1)


def test_other_folders_are_refused(made: Path, model: Path, pictures: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    wrong = {tmp_path: "holds 'notes.txt', and no", pictures / "t": "lies in", pictures: "lies in"}
    for folder, why in wrong.items():
        with pytest.raises(DataError, match=why):
            tokenize([pictures], folder, settings_of(model), workers=1)
    assert not (pictures / "t").exists() and not (tmp_path / ".lock").exists()
    with alone(tmp_path / "new"), pytest.raises(DataError, match="another `dove tokenize` is at work"):
        tokenize([pictures], tmp_path / "new", settings_of(model), workers=1)
    with pytest.raises(DataError, match="num_tokens must be between 1 and 64, got 65"):
        tokenize([pictures], tmp_path / "x", settings_of(model, num_tokens=65), workers=1)
    tiled = settings_of(model, tiles=4, min_tokens=65, max_tokens=999)  # the first are each tile's
    with pytest.raises(DataError, match="min_tokens must be between 1 and 64, got 65"):
        tokenize([pictures], tmp_path / "x", tiled, workers=1)
    with pytest.raises(DataError, match="one for all pictures"):
        settings_of(model, query="a", query_column="b")
    assert not (tmp_path / "x").exists()


def test_unreadable_pictures_are_named_up_to_a_limit(model: Path, tmp_path: Path) -> None:
    source = folder_of(tmp_path / "source")
    for number in (4, 6):
        path = source / "n0" / f"{number}.png"
        path.write_bytes(path.read_bytes()[:300])
    settings = settings_of(model, shard_size=2, batch_size=2)
    message = r"2 of 4 pictures so far cannot be read, and 1 of 10 may be; .*number 3: 'n0/6"
    with pytest.raises(DataError, match=message):
        tokenize([source], tmp_path / "t", settings, workers=1)
    assert not (tmp_path / "t" / "manifest.json").exists()
    result = tokenize([source], tmp_path / "t", settings, workers=1, max_unreadable=2)
    assert result.made == 3 and result.manifest["pictures"] == 8
    assert [item["key"] for item in result.manifest["unreadable"]] == ["n0/4.png", "n0/6.png"]
    assert "'n0/4.png' is truncated or damaged" in result.manifest["unreadable"][0]["reason"]
    assert list(verify(tmp_path / "t")) == []
    (source / "n0" / "0.png").write_bytes(b"no picture")  # then no picture of a shard is left
    (source / "n0" / "2.png").write_bytes(b"no picture")
    again = tokenize([source], tmp_path / "u", settings, workers=1, max_unreadable=0.5)
    assert [shard["pictures"] for shard in again.manifest["shards"]] == [0, 0, 2, 2, 2]
    assert list(verify(tmp_path / "u")) == []
