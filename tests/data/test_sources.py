"""What pictures a set is made of, and how: shards, columns, queries, tiles."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from dove_data import DataError, TokenDataset, tokenize, verify
from dove_data.plan import shard_path
from dove_ext import DoveModel, ImageError
from dove_ext.images.index import ImageIndex
from dove_ext.images.tables import Columns
from tests.data.small import COUNT, folder_of, parquet_of, png, settings_of, stop_after, tar_of
from tests.models.micro import asked, pointing


def near(a: torch.Tensor, b: torch.Tensor) -> None:
    """Equal but for what other batches round."""
    torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3)


def test_tar_parquet_and_folder_have_the_same_tokens(model: Path, made: Path, tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    expected = {picture.names[0][3:]: picture.tokens for picture in TokenDataset(made) if picture.names}
    keys = [f"{number}.png" for number in range(COUNT)]
    sources: dict[Path, dict[str, Any]] = {
        tar_of(tmp_path / "s.tar"): {},
        parquet_of(tmp_path / "struct.parquet", pyarrow, id=keys): {"key_column": "id"},
        parquet_of(tmp_path / "bytes.parquet", pyarrow, False, id=keys): {"key_column": "id"},
    }
    for source, options in sources.items():
        folder = tmp_path / f"{source.name}-tokens"
        tokenize([source], folder, settings_of(model, shard_size=3, **options), workers=1)
        found = TokenDataset(folder)
        assert [found.key(i) for i in range(COUNT)] == keys
        for key in keys:
            near(found[key].tokens, expected[key])
        assert list(verify(folder)) == []


def test_parquet_files_are_shards_for_everyone(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    (tmp_path / "d").mkdir()
    for name in "ab":
        parquet_of(tmp_path / "d" / f"{name}.parquet", pyarrow, text=[f"{name}{i}" for i in range(COUNT)])
    index = ImageIndex([tmp_path / "d"])
    assert len(index) == 2 * COUNT and index.short_name(COUNT + 3) == "b.parquet/3"
    plain = ImageIndex([folder_of(tmp_path / "plain")])
    order = [7, 0, 9, 3, 2]  # across row groups, forwards and back
    by_name = {plain.short_name(i)[3:]: i for i in range(COUNT)}
    for i in order:
        assert torch.equal(index.read(COUNT + i), plain.read(by_name[f"{i}.png"]))
        assert index.text(COUNT + i, "text") == f"b{i}"
    part = index.part(COUNT - 1, COUNT + 2)
    assert [part.short_name(i) for i in range(3)] == ["a.parquet/9", "b.parquet/0", "b.parquet/1"]
    assert torch.equal(part.read(1), index.read(COUNT)) and part.text(0, "text") == "a9"
    # Beside tar files, parquet files are what a downloader has noted.
    tar_of(tmp_path / "d" / "a.tar", 2)
    with pytest.warns(UserWarning, match=r"2 \.parquet files are left out.*it has tar files"):
        assert len(ImageIndex([tmp_path / "d"])) == 2


@pytest.mark.parametrize(
    ("columns", "options", "message"),
    [
        ({}, {"image_column": "photo"}, "has no column 'photo'; it has 'image'"),
        ({}, {"key_column": "id"}, "has no column 'id'"),
        ({}, {"query_column": "q"}, "has no column 'q'"),
        ({"id": list("abcdefghij")}, {"image_column": "id"}, "holds string, no picture files"),
        ({"id": [1.5] * COUNT}, {"key_column": "id"}, "holds double; keys are strings or whole numbers"),
        ({"id": ["a", None] * 5}, {"key_column": "id"}, "row 1 has no 'id'"),
        (
            {"id": [*"abcdefghi", "c"]},
            {"key_column": "id"},
            "'c' is there twice, .*number 2.*number 9",
        ),
    ],
)
def test_columns_that_do_not_fit(
    columns: Any, options: Any, message: str, model: Path, tmp_path: Path
) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    source = parquet_of(tmp_path / "p.parquet", pyarrow, **columns)
    with pytest.raises((ImageError, DataError), match=message):
        tokenize([source], tmp_path / "t", settings_of(model, **options), workers=1)
    assert not (tmp_path / "t").exists()


def test_a_parquet_file_that_was_rewritten_is_read_anew(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    path = tmp_path / "a.parquet"

    def write(shade: int) -> None:
        stream = io.BytesIO()
        Image.new("RGB", (8, 8), (shade,) * 3).save(stream, "png")
        parquet.write_table(pyarrow.table({"image": [stream.getvalue()] * 3}), path)

    for shade in (10, 200):
        write(shade)
        assert int(ImageIndex([path]).read(1).max()) == shade
    index = ImageIndex([path])
    path.unlink()
    with pytest.raises(ImageError, match=r"a.parquet' cannot be read: No such file"):
        index.read(0)


def test_damaged_parquet_is_named(model: Path, tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    source = parquet_of(tmp_path / "p.parquet", pyarrow)
    source.write_bytes(source.read_bytes()[:-50])
    with pytest.raises(ImageError, match=r"p\.parquet' is not a parquet file or is damaged"):
        tokenize([source], tmp_path / "t", settings_of(model), workers=1)
    keyed = settings_of(model, key_column="id")
    with pytest.raises(DataError, match="is no parquet file, so it has no column 'id'"):
        tokenize([folder_of(tmp_path / "f", 2)], tmp_path / "t", keyed, workers=1)
    from pyarrow import parquet

    pictures = [{"bytes": None, "path": "/etc/passwd"}, {"bytes": png(1), "path": None}, None]
    parquet.write_table(pyarrow.table({"image": pictures}), source := tmp_path / "q.parquet")
    result = tokenize([source], tmp_path / "t", settings_of(model), workers=1, max_unreadable=2)
    reasons = [item["reason"] for item in result.manifest["unreadable"]]
    assert "'0' names a picture, '/etc/passwd', and does not hold it" in reasons[0]
    assert "'2' has no picture" in reasons[1] and result.manifest["pictures"] == 1


def test_queries_of_a_column(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    pytest.importorskip("tokenizers")
    (tmp_path / "files").mkdir()
    asked(tmp_path / "files").save_pretrained(tmp_path / "model")
    texts = ["the dog", None, "the table", "dog", "x" * 400, "the dog on the table", "", "a", "b", "c"]
    source = parquet_of(tmp_path / "p.parquet", pyarrow, q=texts)
    settings = settings_of(tmp_path / "model", query_column="q")
    result = tokenize([source], tmp_path / "t", settings, workers=1)
    (bad,) = result.manifest["unreadable"]
    assert bad["key"] == "4" and "cannot be asked 'xxx" in bad["reason"]
    data, model = TokenDataset(tmp_path / "t"), DoveModel.from_pretrained(tmp_path / "model")
    index = ImageIndex([source], columns=Columns())
    for i in (0, 1, 5, 6):
        expected = model.encode(index.read(i), query=texts[i] or None)
        near(data[str(i)].tokens, expected.tokens)
    one = settings_of(tmp_path / "model", query="the dog")
    tokenize([source], tmp_path / "u", one, workers=1)
    near(TokenDataset(tmp_path / "u")["0"].tokens, data["0"].tokens)
    assert not torch.equal(TokenDataset(tmp_path / "u")["2"].tokens[0], data["2"].tokens[0])


def test_tiles_of_a_picture_stay_together(tmp_path: Path) -> None:
    pytest.importorskip("tokenizers")
    (tmp_path / "files").mkdir()
    pointing(tmp_path / "files").save_pretrained(tmp_path / "model")
    source = folder_of(tmp_path / "source", 5, side=60)
    settings = settings_of(
        tmp_path / "model",
        shard_size=2,
        tiles=4,
        query="the dog",
        drop_empty=True,
        min_tokens=9,
        max_tokens=70,
    )
    with pytest.raises(KeyboardInterrupt):
        tokenize([source], tmp_path / "t", settings, workers=1, on_start=stop_after(1))
    tokenize([source], tmp_path / "t", settings, workers=1)
    data, model = TokenDataset(tmp_path / "t"), DoveModel.from_pretrained(tmp_path / "model")
    index = ImageIndex([source])
    assert len(data) == 5 and list(verify(tmp_path / "t")) == []
    for i in range(5):
        one = data[i]
        expected = model.encode(
            [index.image(i)], tiles=4, query="the dog", drop_empty=True, min_tokens=9, max_tokens=70
        )
        near(one.tokens, expected.tokens)
        assert one.tiles == expected.tiles and one.names == (index.short_name(i),) * len(one)


def test_webdataset_reads_its_shards(model: Path, made: Path, pictures: Path, tmp_path: Path) -> None:
    settings = settings_of(model, format="webdataset")
    with pytest.raises(KeyboardInterrupt):
        tokenize([pictures], tmp_path / "t", settings, workers=1, on_start=stop_after(1))
    assert tokenize([pictures], tmp_path / "t", settings, workers=1).made == 2
    assert list(verify(tmp_path / "t")) == []
    paths = [shard_path(tmp_path / "t", unit, "webdataset") for unit in range(3)]
    with tarfile.open(paths[0]) as tar:
        assert tar.getnames()[:3] == ["__dove__", "000000000-000000.safetensors", "000000000-000000.json"]
    webdataset = pytest.importorskip("webdataset")
    from safetensors.torch import load

    samples = list(webdataset.WebDataset([str(path) for path in paths], shardshuffle=False))
    data = TokenDataset(made)
    assert len(samples) == COUNT
    for sample in samples:
        key = json.loads(sample["json"])["key"]
        assert torch.equal(load(sample["safetensors"])["tokens"], data[key].tokens)
    with pytest.raises(DataError, match="has shards for WebDataset; read it with"):
        TokenDataset(tmp_path / "t")
