"""`--tiles` of the verbs, with a small model from a folder."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from dove_ext import DoveModel, DoveTokens
from dove_ext.images import read_image
from dove_ext.images.tile_map import NARROWEST, draw_tile_map
from dove_ext.tokens.tiles import Place, TiledPicture, Tiles
from tests.cli.called import run
from tests.images.test_prepare import photo
from tests.models.micro import micro, stop_at_share

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """pictures/ with two of different sizes, and model/."""
    folder = tmp_path_factory.mktemp("tiles")
    (folder / "pictures").mkdir()
    Image.fromarray(photo(40, 60)).save(folder / "pictures" / "a.png")
    Image.fromarray(photo(20, 30)).save(folder / "pictures" / "b.png")
    stop_at_share(micro()).save_pretrained(folder / "model")
    return folder


def test_encode_and_decode(folder: Path, tmp_path: Path, capsys: Any) -> None:
    file = tmp_path / "t.safetensors"
    common = ("--model", folder / "model", "-o", file)
    model = DoveModel.from_pretrained(folder / "model")
    paths = [folder / "pictures" / name for name in ("a.png", "b.png")]
    code, out, _ = run(capsys, "encode", folder / "pictures", "--tiles", "auto", *common, "--json")
    report = json.loads(out)
    tokens, expected = DoveTokens.load(file), model.encode(paths, tiles="auto")
    assert code == 0 and tokens.lengths.tolist() == expected.lengths.tolist()
    assert tokens.tiles == expected.tiles and tokens.names == ("a.png",) * 5 + ("b.png",)
    assert [item["grid"] for item in report["items"]] == [
        {"rows": 2, "columns": 2},
        {"rows": 1, "columns": 1},
    ]
    assert [item["tiles"] for item in report["items"]] == [
        expected.picture(n).lengths.tolist() for n in range(2)
    ]
    assert report["images"] == 2 and report["tokens"] == sum(item["tokens"] for item in report["items"])
    code, out, _ = run(capsys, "decode", file, "--model", folder / "model", "-o", tmp_path / "out")
    assert code == 0 and len(out.splitlines()) == 2
    for name, picture in zip(("a", "b"), model.decode(expected), strict=True):
        drawn = read_image(tmp_path / "out" / f"{name}.dove.png").float() / 255
        torch.testing.assert_close(drawn, picture, rtol=0, atol=4e-3)
    code, out, _ = run(
        capsys, "encode", folder / "pictures", "--tiles", "1-4", *common, "--token-budget", "20"
    )
    lines = out.splitlines()
    assert code == 0 and "2 x 2  a.png" in lines[0] and lines[-1].startswith("    20  tokens of 2 images")


def test_a_bad_picture_does_not_stop_the_others(folder: Path, tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "bad.png").write_bytes((folder / "pictures" / "a.png").read_bytes()[:1500])
    Image.fromarray(np.zeros((1, 4000, 3), np.uint8)).save(tmp_path / "long.png")
    with tarfile.open(tmp_path / "s.tar", "w") as tar:
        for name in ("pictures/b.png",):
            tar.add(folder / name, "b.png")
        tar.add(tmp_path / "bad.png", "bad.png")
    inputs = (folder / "pictures" / "a.png", tmp_path / "bad.png", tmp_path / "s.tar", tmp_path / "long.png")
    for more in ((), ("--token-budget", "20")):
        code, out, _ = run(
            capsys, "encode", *inputs, "--tiles", "4", *more, "--model", folder / "model", "-o",
            tmp_path / "t.safetensors", "--json",
        )  # fmt: skip
        report = json.loads(out)
        assert code == 1 and [Path(item["path"]).name for item in report["items"]] == [
            "a.png",
            "s.tar: b.png",
        ]
        failed = {Path(item["path"]).name: item["error"] for item in report["failed"]}
        assert set(failed) == {"bad.png", "s.tar: bad.png", "long.png"}
        assert "s.tar: bad.png' is truncated or damaged" in failed["s.tar: bad.png"]
        assert "too long for tiles" in failed["long.png"]


def test_reconstruct_draws_the_tiles(folder: Path, tmp_path: Path, capsys: Any) -> None:
    given = ("reconstruct", folder / "pictures", "--model", folder / "model", "-o", tmp_path, "--tiles", "4")
    code, out, _ = run(capsys, *given, "--json")
    report = json.loads(out)
    assert code == 0 and len(report["sheets"]) == 2 and len(report["items"][0]["tiles"]) == 5
    model = DoveModel.from_pretrained(folder / "model")
    picture = model.decode(model.encode(folder / "pictures" / "a.png", tiles=4))[0]
    drawn = read_image(tmp_path / "a.dove.png").float() / 255
    torch.testing.assert_close(drawn, picture, rtol=0, atol=4e-3)
    assert Image.open(report["sheets"][0]).width > 2 * NARROWEST
    code, out, _ = run(capsys, *given)
    assert code == 0 and "2 x 2 tiles" in out and "where they went: " in out


def test_a_tile_map_shows_where_the_tokens_went() -> None:
    tiles = Tiles(
        32, (TiledPicture(1, 2, 32, 60, 32, 60),), (Place(0, -1, -1), Place(0, 0, 0), Place(0, 0, 1))
    )
    red = torch.zeros(3, 32, 60)
    red[0] = 1
    sheet = np.asarray(draw_tile_map("name", red, red, tiles, [5, 1, 64], 64)).astype(int)
    few, many = sheet[200, 60], sheet[200, NARROWEST - 30]
    assert many.tolist() == [255, 0, 0], "where there are as many as can be it keeps its colours"
    assert few[1] > 150 and few[0] - few[1] < 60, "where there are few it is pale and grey"
    missing = Tiles(32, tiles.pictures, tiles.places[:2])
    other = np.asarray(draw_tile_map("name", red, red, missing, [5, 1], 64)).astype(int)
    assert (sheet[:, : NARROWEST // 2] == other[:, : NARROWEST // 2])[:200].all()
    assert other[200, NARROWEST - 30][1] > 150


@pytest.mark.parametrize("wrong", ["0", "-3", "12-4", "4-", "-", "many", "5000", "1.5", "4-12-20", "٣"])
def test_wrong_numbers_of_tiles(wrong: str, folder: Path, tmp_path: Path, capsys: Any) -> None:
    code, _, err = run(capsys, "encode", folder / "pictures", f"--tiles={wrong}", "-o", tmp_path / "t")
    assert code == 2 and "is not a number from 1 to 4096, a range such as 4-12, or auto" in err


def test_tiles_contradict_fit(folder: Path, tmp_path: Path, capsys: Any) -> None:
    given = (folder / "pictures", "--tiles", "4", "-o", tmp_path / "t")
    for verb in ("encode", "reconstruct"):
        code, _, err = run(capsys, verb, *given, "--fit", "pad")
        assert code == 2 and "--fit says how a picture becomes square" in err
    code, _, err = run(capsys, "encode", *given, "--model", folder / "model", "--max-tokens", "2")
    assert (
        code == 1 and "max_tokens must be at least a token for each tile of a picture, 5 for picture 0" in err
    )
    assert not (tmp_path / "t").exists()
