"""`DoveTokens` of tiles: what stays together, and what a file may not say."""

from __future__ import annotations

import copy
import json
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch.utils import _pytree as pytree

from dove_ext.errors import TokensError
from dove_ext.tokens import DoveTokens
from dove_ext.tokens.tiles import WHOLE, Box, Place, TiledPicture, Tiles, start_of
from tests.tokens.test_container import SLOTS, make

WIDE = TiledPicture(1, 2, 30, 60, 31, 62)
SMALL = TiledPicture(1, 1, 20, 10, 20, 10)
PLACES = (Place(0, WHOLE, WHOLE), Place(0, 0, 0), Place(0, 0, 1), Place(1, 0, 0))
TILES = Tiles(32, (WIDE, SMALL), PLACES)


def tiled(**fields: Any) -> DoveTokens:
    """Four tiles of two pictures, with 3, 1, 5 and 2 tokens."""
    return make([3, 1, 5, 2], tiles=TILES, **fields)[1]


def test_from_pictures_to_rows_and_back() -> None:
    tokens = tiled()
    assert [TILES.rows(picture) for picture in (0, 1, -1)] == [[0, 1, 2], [3], [3]]
    first, last = tokens.picture(0), tokens.picture(-1)
    assert first.lengths.tolist() == [3, 1, 5] and first.names == tokens.names[:3]  # type: ignore[index]
    assert last.tiles == Tiles(32, (SMALL,), (Place(0, 0, 0),))
    assert [TILES.box(place) for place in PLACES] == [
        Box(0, 0, 30, 60), Box(0, 0, 30, 32), Box(0, 28, 30, 60), Box(0, 0, 20, 10),
    ]  # fmt: skip
    assert [start_of(k, 4, 101, 32) for k in range(4)] == [0, 23, 46, 69]
    with pytest.raises(IndexError, match="there is no picture 2 among 2"):
        tokens.picture(2)
    with pytest.raises(TokensError, match="these tokens are of whole images, not of tiles"):
        make([1])[1].picture(0)
    assert repr(tokens).startswith("DoveTokens(4 tiles of 2 pictures, 11 tokens, mean 2.8 of 9,")


def test_choosing_keeps_what_belongs_together() -> None:
    tokens = tiled()
    chosen = tokens[[3, 2, 0]]
    assert chosen.tiles == Tiles(32, (SMALL, WIDE), (Place(0, 0, 0), Place(1, 0, 1), Place(1, WHOLE, WHOLE)))
    assert tokens[1:3].tiles == Tiles(32, (WIDE,), PLACES[1:3])
    assert tokens[[False] * 4].tiles == Tiles(32, (), ())
    # A tile that is there already is another picture's, and what comes then goes with it.
    twice = tokens[[1, 2, 1, 2]].tiles
    assert twice == Tiles(32, (WIDE, WIDE), (*PLACES[1:3], Place(1, 0, 0), Place(1, 0, 1)))
    assert [part.tiles.places for part in tokens] == [(p._replace(picture=0),) for p in PLACES]  # type: ignore[union-attr]


def test_everything_else_keeps_them() -> None:
    tokens = tiled()
    cut = tokens.truncate(2)
    assert cut.tiles == TILES and cut.lengths.tolist() == [2, 1, 2, 2]
    assert tokens.truncate([1, 1, 5, 1]).tiles == TILES
    for same in (
        tokens.to(torch.float16),
        tokens.cpu(),
        copy.deepcopy(tokens),
        pickle.loads(pickle.dumps(tokens)),
    ):
        assert same.tiles == TILES
    padded, mask = tokens.to_padded()  # a row a tile
    assert padded.shape == (4, 5, 3) and mask.sum(1).tolist() == [3, 1, 5, 2]
    assert tokens.to_nested().size(0) == 4
    leaves, tree = pytree.tree_flatten(tokens)
    assert pytree.tree_unflatten(leaves, tree).tiles == TILES
    again = pytree.treespec_loads(pytree.treespec_dumps(tree))
    assert again == tree and pytree.tree_unflatten(leaves, again).tiles == TILES


def test_joining() -> None:
    tokens = tiled()
    joined = DoveTokens.cat([tokens.picture(1), tokens])
    assert joined.tiles == Tiles(
        32, (SMALL, WIDE, SMALL), (Place(0, 0, 0), *(p._replace(picture=p.picture + 1) for p in PLACES))
    )
    with pytest.raises(TokensError, match="cannot join tokens of tiles and of whole images"):
        DoveTokens.cat([tokens, make([1])[1]])
    other = replace(tokens.picture(1), tiles=Tiles(64, (SMALL,), (Place(0, 0, 0),)))
    with pytest.raises(TokensError, match="cannot join tiles of 32 and of 64 pixels"):
        DoveTokens.cat([tokens, other])


@pytest.mark.parametrize(
    ("tiles", "words"),
    [
        (Tiles(32, (SMALL,), (Place(0, 0, 0),)), "there are 1 places of tiles for 4 images"),
        ("tiles", "tiles must be a `Tiles` or None, got str"),
    ],
)
def test_other_tiles_are_refused(tiles: Any, words: str) -> None:
    with pytest.raises(TokensError, match=words):
        replace(tiled(), tiles=tiles)


# --- On disk ----------------------------------------------------------------------------------------------


def test_files(tmp_path: Path) -> None:
    path = tmp_path / "t.safetensors"
    tokens = tiled()
    for chosen, version in ((tokens, "4"), (replace(tokens, tiles=None), "1")):
        chosen.save(path)
        loaded = DoveTokens.load(path)
        assert loaded.tiles == chosen.tiles and torch.equal(loaded.tokens, tokens.tokens)
        with safe_open(path, framework="pt") as file:
            assert file.metadata()["version"] == version


WRONG: list[tuple[Any, str]] = [
    ([], "its tiles are not a list of side, pictures and places"),
    ("x", "its tiles are not a list"),
    ([32, [[1, 1, 20, 10]], []], "its tiles are not a list"),
    ([32, [[1, 1, 20, 10, 20, 10.5]], [[0, 0, 0]]], "the tiles hold something that is no whole number"),
    ([32, [[1, True, 20, 10, 20, 10]], [[0, 0, 0]]], "the tiles hold something that is no whole number"),
    ([0, [[1, 1, 20, 10, 20, 10]], [[0, 0, 0]]], "the side of a tile must be at least 1 pixel, got 0"),
    ([32, [[1, 1, 20, 0, 20, 10]], [[0, 0, 0]]], "must have at least one of each"),
    ([32, [[10**6, 10**6, 31 * 10**6, 31 * 10**6, 1, 1]], [[0, 0, 0]]], "at most 128000000 pixels"),
    ([32, [[2, 2, 20, 10, 20, 10]], [[0, 0, 0]]], "picture 0 of 10 x 20 pixels does not fill 2 x 2 tiles"),
    ([32, [[1, 2, 20, 65, 20, 65]], [[0, 0, 0]]], "picture 0 of 65 x 20 pixels does not fill 2 x 1 tiles"),
    ([32, [[1, 1, 20, 33, 20, 33]], [[0, 0, 0]]], "does not fill 1 x 1 tiles"),
    ([32, [[1, 9, 20, 34, 20, 34]], [[0, 0, 0]]], "does not fill 9 x 1 tiles"),
    ([32, [[65, 64, 2000, 2000, 99, 99]], [[0, 0, 0]]], "in 64 x 65 tiles has more than 4096 of them"),
    ([32, [[1, 1, 20, 10, 20, 10]], [[1, 0, 0]]], "a tile is of picture 1, there are 1"),
    ([32, [[1, 1, 20, 10, 20, 10]], [[0, 1, 0]]], "row 1, column 0 of picture 0 is outside of its grid of 1"),
    ([32, [[1, 1, 20, 10, 20, 10]], [[0, -1, 0]]], "is outside of its grid of 1 rows and 1 columns"),
    ([32, [[1, 1, 20, 10, 20, 10]], [[0, 0, 0], [0, 0, 0]]], "row 0, column 0 of picture 0 is there twice"),
    ([32, [[1, 1, 20, 10, 20, 10]] * 2, [[1, 0, 0]]], "there is a picture without any tile"),
    ([32, [[1, 1, 20, 10, 20, 10]], [[0, 0, 0]]], "there are 1 places of tiles for 4 images"),
]


@pytest.mark.parametrize(("wrong", "words"), WRONG, ids=range(len(WRONG)))
def test_a_file_that_contradicts_itself(wrong: Any, words: str, tmp_path: Path) -> None:
    path = tmp_path / "t.safetensors"
    tokens = tiled()
    metadata = {"format": "dove-tokens", "version": "4", "num_slots": str(SLOTS), "tiles": json.dumps(wrong)}
    save_file({"tokens": tokens.tokens, "cu_seqlens": tokens.cu_seqlens}, path, metadata)
    with pytest.raises(TokensError, match=words) as error:
        DoveTokens.load(path)
    assert "t.safetensors' is not valid" in str(error.value)


@pytest.mark.parametrize("text", ["[" * 100_000, "{", '"' + "x" * 10])
def test_a_file_whose_tiles_are_no_json(text: str, tmp_path: Path) -> None:
    path = tmp_path / "t.safetensors"
    tokens = tiled()
    metadata = {"format": "dove-tokens", "version": "4", "num_slots": str(SLOTS), "tiles": text}
    save_file({"tokens": tokens.tokens, "cu_seqlens": tokens.cu_seqlens}, path, metadata)
    with pytest.raises(TokensError, match="its tiles are not a list of side, pictures and places"):
        DoveTokens.load(path)
