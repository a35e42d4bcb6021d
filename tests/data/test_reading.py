"""Sets are read by number, by key and as a stream, in any number of processes."""

from __future__ import annotations

import pickle
import shutil
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader

from dove_data import DataError, TokenDataset, TokenStream, collate, tokenize, verify
from dove_data.plan import shard_path
from dove_data.shards import shard_bytes
from dove_ext import DoveTokens, TokensError
from dove_ext.tokens.mapped import MappedTokens
from tests.data.small import COUNT, folder_of, settings_of


def test_by_number_and_by_key(made: Path) -> None:
    data = TokenDataset(made)
    whole = DoveTokens.cat([DoveTokens.load(shard_path(made, unit, "safetensors")) for unit in range(3)])
    assert len(data) == COUNT and data.key(-1) == data.key(COUNT - 1)
    assert whole.names is not None
    for number, name in enumerate(whole.names):
        for found in (data[number], data[name], data[number - COUNT]):
            assert torch.equal(found.tokens, whole[number].tokens) and found.names == (name,)
    joined = collate([data[8], data["n1/1.png"]])
    assert torch.equal(joined.tokens, torch.cat([data[8].tokens, data["n1/1.png"].tokens]))
    assert "n0/0.png" in data and "n0/1.png" not in data and 3 not in data
    with pytest.raises(IndexError, match="no picture 10 among 10"):
        data[COUNT]
    with pytest.raises(KeyError, match="nowhere"):
        data["nowhere"]
    again = pickle.loads(pickle.dumps(data))
    assert torch.equal(again["n0/0.png"].tokens, data["n0/0.png"].tokens)


def test_two_hashes_that_are_the_same(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dove_data.dataset.candidates", lambda keys, key: [7, 2, 4])
    data = TokenDataset(made)
    assert data[data.key(4)].names == (data.key(4),)


def test_several_sets_are_one(made: Path, model: Path, tmp_path: Path) -> None:
    tokenize([folder_of(tmp_path / "source", 3)], tmp_path / "t", settings_of(model, shard_size=2), workers=1)
    data = TokenDataset([tmp_path / "t", made])
    assert len(data) == 3 + COUNT and data.key(3) == TokenDataset(made).key(0)
    assert torch.equal(data["n1/9.png"].tokens, TokenDataset(made)["n1/9.png"].tokens)
    assert sorted(p.names[0] for p in TokenStream([tmp_path / "t", made]) if p.names) == sorted(
        data.key(i) for i in range(len(data))
    )


@pytest.mark.parametrize("workers", [0, 2])
def test_a_stream_is_every_picture_once(workers: int, made: Path) -> None:
    data = TokenDataset(made)
    expected = sorted(data.key(i) for i in range(COUNT))
    orders = []
    for epoch in range(2):
        parts = []
        for rank in range(3):
            stream = TokenStream(made, seed=4, block=2, mix=2, rank=rank, world=3)
            stream.set_epoch(epoch)
            loader = DataLoader(stream, batch_size=2, num_workers=workers, collate_fn=collate)
            names = [name for batch in loader for name in batch.names]
            assert len(names) == len(stream)
            parts.append(names)
        assert {len(part) for part in parts} <= {3, 4}
        orders.append([name for part in parts for name in part])
        assert sorted(orders[-1]) == expected
    assert orders[0] != orders[1]


def test_a_stream_reads_what_it_names_in_an_order_of_its_seed(made: Path) -> None:
    def names(**options: object) -> list[str]:
        return [one.names[0] for one in TokenStream(made, block=2, mix=2, **options) if one.names]  # type: ignore[arg-type]

    data = TokenDataset(made)
    for one in TokenStream(made, seed=1):
        assert one.names is not None and torch.equal(one.tokens, data[one.names[0]].tokens)
    assert names(seed=1) == names(seed=1) != names(seed=2)
    assert names(shuffle=False) == [data.key(i) for i in range(COUNT)]
    with pytest.raises(DataError, match="rank and world belong together"):
        names(rank=0)
    with pytest.raises(DataError, match="rank must be from 0 to world - 1"):
        names(rank=2, world=2)


def test_persistent_workers_see_the_epoch(made: Path) -> None:
    stream = TokenStream(made, block=1)
    loader = DataLoader(stream, batch_size=None, num_workers=1, persistent_workers=True)
    orders = []
    for epoch in range(2):
        stream.set_epoch(epoch)
        orders.append([one.names for one in loader])
    assert orders[0] != orders[1] and sorted(orders[0]) == sorted(orders[1])


@pytest.fixture
def copy(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "copy"))


def test_verify_names_what_is_wrong(copy: Path) -> None:
    assert list(verify(copy)) == []
    shard = shard_path(copy, 1, "safetensors")
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 4
    shard.write_bytes(data)
    shard_path(copy, 2, "safetensors").unlink()
    (shard.parent / "000000007.safetensors").write_bytes(b"")
    keys = bytearray((copy / "keys.npy").read_bytes())
    keys[-1] ^= 1
    (copy / "keys.npy").write_bytes(keys)
    assert list(verify(copy)) == [
        "keys.npy is damaged: its checksum is another",
        "shards/000000/000000001.safetensors is damaged or cut short: its checksum is another",
        "shards/000000/000000002.safetensors is missing",
        "shards/000000/000000007.safetensors is not in the manifest",
    ]
    (copy / "manifest.json").write_text("{}")
    with pytest.raises(DataError, match="is not of `dove tokenize`"):
        list(verify(copy))
    (copy / "manifest.json").unlink()
    with pytest.raises(DataError, match="the set is not finished"):
        TokenDataset(copy)


def test_damage_that_no_header_shows_is_found_where_it_is_read(copy: Path) -> None:
    path = shard_path(copy, 0, "safetensors")
    data = bytearray(path.read_bytes())
    data[-4:] = b"\xff\xff\xff\xff"  # the last offset
    path.write_bytes(data)
    mapped = MappedTokens(path)
    assert len(mapped[0].tokens) >= 1
    with pytest.raises(TokensError, match="is not valid: its cu_seqlens lead out of its tokens"):
        mapped[len(mapped) - 1]


def test_a_stranger_can_make_checksums(copy: Path) -> None:
    tokens = DoveTokens.load(shard_path(copy, 0, "safetensors"))
    for about in ({"plan": 1}, {}, {"unit": 0, "plan": "x"}):
        payload, _ = shard_bytes(tokens, about, "safetensors")
        shard_path(copy, 0, "safetensors").write_bytes(payload)
        (sentence,) = verify(copy)
        assert "is of another run" in sentence or "does not say what it is" in sentence
