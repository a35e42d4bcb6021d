"""`encode(tiles=...)` and what `decode` makes of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from dove_ext import DoveModel, DoveTokens, ImageError, TokensError
from dove_ext.images.cut import cut, waiting
from dove_ext.metrics.pixel import psnr
from dove_ext.models import tiling
from dove_ext.models.tiling import shown_weights
from dove_ext.models.together import put_together
from dove_ext.tokens.lengths import lengths_for_budget, lengths_within
from dove_ext.tokens.tiles import WHOLE, Place, TiledPicture, Tiles
from tests.conftest import import_or_skip
from tests.models.micro import SLOTS, linear, micro, photos, pointing, stop_at_share

pytestmark = pytest.mark.usefixtures("one_thread")
TOLERANCE = {"rtol": 0.0, "atol": 1e-3}


def scene(height: int, width: int, seed: int = 5) -> Tensor:
    """uint8 [3, height, width]: white on the left, colours and noise on the right."""
    generator = torch.Generator().manual_seed(seed)
    colours = torch.rand(1, 3, 4, 4, generator=generator)
    smooth = torch.nn.functional.interpolate(colours, size=(height, width), mode="bilinear")[0]
    noise = torch.rand(3, height, width, generator=generator) - 0.5
    picture = (smooth + 0.5 * noise).clamp(0, 1)
    picture[:, :, : width // 2] = 1
    return (picture * 255).to(torch.uint8)


@pytest.fixture(scope="module")
def model() -> DoveModel:
    return stop_at_share(micro())


@pytest.fixture(scope="module")
def coded() -> DoveModel:
    return linear()


def test_a_tile_is_encoded_as_if_it_were_an_image(model: DoveModel) -> None:
    pictures = [scene(60, 90), scene(32, 32, 1), scene(40, 70, 2)]
    tokens = model.encode(pictures, tiles="auto", batch_size=4)
    grids = [picture[:4] for picture in tokens.tiles.pictures]  # type: ignore[union-attr]
    assert grids == [(2, 3, 60, 90), (1, 1, 32, 32), (2, 3, 40, 70)]
    tiles = [tile.pixels for tile in cut(waiting(pictures), 32, (1, 99), torch.device("cpu"))]
    assert len(tokens) == len(tiles) == 7 + 1 + 7
    expected = model.encode(tiles)
    assert tokens.lengths.tolist() == expected.lengths.tolist()
    torch.testing.assert_close(tokens.tokens, expected.tokens, **TOLERANCE)
    assert torch.equal(model.encode(pictures[1]).tokens, model.encode(pictures[1], tiles=1).tokens)
    first = model.encode(pictures[0], tiles="auto")  # alone
    assert first.lengths.tolist() == tokens.picture(0).lengths.tolist()
    torch.testing.assert_close(first.tokens, tokens.picture(0).tokens, **TOLERANCE)
    assert tokens.tiles.places[:3] == (Place(0, WHOLE, WHOLE), Place(0, 0, 0), Place(0, 0, 1))  # type: ignore[union-attr]


@pytest.mark.parametrize("size", [(60, 90), (20, 36), (36, 20), (60, 32), (37, 200), (10, 12)])
def test_a_picture_is_put_together(size: tuple[int, int]) -> None:
    """Exact tiles make the exact picture, so the weights sum to 1 everywhere."""
    picture = scene(*size).float() / 255
    tiles = list(cut(waiting(picture), 32, (1, 4096), torch.device("cpu")))
    one = TiledPicture(*tiles[0].grid, *size)
    held = Tiles(32, (one,), tuple(Place(0, tile.row, tile.column) for tile in tiles))

    def decode(rows: list[int]) -> Tensor:
        return torch.stack([tiles[row].pixels for row in rows])

    for batch_size in (1, 3, 100):
        (together,) = put_together(held, 32, batch_size, decode)
        torch.testing.assert_close(together, picture)


def test_where_a_tile_is_missing_the_thumbnail_is_shown() -> None:
    picture = torch.nn.functional.interpolate(torch.rand(1, 3, 3, 4), size=(60, 90), mode="bilinear")[0]
    tiles = list(cut(waiting(picture), 32, (1, 4096), torch.device("cpu")))
    kept = [0, 1, 2, 3, 4, 6]
    held = Tiles(
        32, (TiledPicture(2, 3, 60, 90, 60, 90),),
        tuple(Place(0, tiles[row].row, tiles[row].column) for row in kept),
    )  # fmt: skip
    (together,) = put_together(
        held, 32, 4, lambda rows: torch.stack([tiles[kept[row]].pixels for row in rows])
    )
    error = (together - picture).abs().amax(0)
    assert error[:28].max() < 1e-6 and error[32:, 33:57].max() > 1e-4
    assert error.max() < 0.15, "a smooth picture is known from its thumbnail"


def test_a_borders_error_fades(model: DoveModel) -> None:
    """What one tile alone shows counts in full; in the middle of what two share each counts a half."""
    tiles = Tiles(32, (TiledPicture(1, 2, 32, 56, 32, 56),), (Place(0, 0, 0), Place(0, 0, 1)))
    ones = torch.stack([torch.zeros(3, 32, 32), torch.ones(3, 32, 32)])
    (together,) = put_together(tiles, 32, 2, lambda rows: ones[rows])
    across = together[0, 0]
    assert (across[:24] == 0).all() and (across[32:] == 1).all()
    expected = (torch.arange(8) + 0.5) / 8
    torch.testing.assert_close(across[24:32], expected)


def test_decode(model: DoveModel, tmp_path: Path) -> None:
    tokens = model.encode([scene(60, 90), scene(32, 32, 1)], tiles=12)
    tokens.save(tmp_path / "t.safetensors")
    pictures = model.decode(DoveTokens.load(tmp_path / "t.safetensors"), batch_size=5)
    assert [tuple(p.shape) for p in pictures] == [(3, 60, 90), (3, 32, 32)]
    squares = model.decode(replace(tokens, tiles=None))
    torch.testing.assert_close(pictures[1], squares[-1], **TOLERANCE)
    top_left = tokens.tiles.box(Place(0, 0, 1))  # type: ignore[union-attr]
    alone = pictures[0][:, : 60 - 32, : top_left.left]
    torch.testing.assert_close(alone, squares[1][:, : 60 - 32, : top_left.left], **TOLERANCE)
    images, again = model.reconstruct(scene(60, 90), tiles=4)
    assert images[0].shape == (3, 42, 63) and again.tiles.pictures[0].given_width == 90  # type: ignore[union-attr]
    for wrong, words in (
        (tokens[1:4], "picture 0 has 3 of its 6 tiles and no thumbnail"),
        (
            replace(tokens[:1], tiles=Tiles(64, (TiledPicture(1, 1, 9, 9, 9, 9),), ((0, 0, 0),))),
            "tiles are of 64",
        ),  # type: ignore[arg-type]
    ):
        with pytest.raises(TokensError, match=words):
            model.decode(wrong)
    with pytest.raises(TokensError, match="these tokens are of whole images, not of tiles; use `decode`"):
        next(model.decode_pictures(replace(tokens, tiles=None)))


# --- Lengths ----------------------------------------------------------------------------------------------


def test_numbers_of_tokens_are_a_pictures(model: DoveModel) -> None:
    pictures = [scene(60, 90), scene(40, 60, 2)]  # seven and five tiles
    own = model.encode(pictures, tiles="auto", return_p_eos=True)
    assert own.p_eos is not None
    curves = [own.picture(n).p_eos for n in range(2)]
    for number in (20, 100):
        exact = model.encode(pictures, tiles="auto", num_tokens=number, batch_size=3)
        for n in range(2):
            part = exact.picture(n)
            assert int(part.lengths.sum()) == number
            assert part.lengths.tolist() == lengths_for_budget(curves[n], number).tolist()  # type: ignore[arg-type]
        capped = model.encode(pictures, tiles="auto", max_tokens=number, batch_size=5)
        for n in range(2):
            free, part = own.picture(n), capped.picture(n)
            assert int(part.lengths.sum()) == min(number, int(free.lengths.sum()))
            assert (part.lengths <= free.lengths).all()
            assert part.lengths.tolist() == lengths_within(curves[n], free.lengths, number).tolist()  # type: ignore[arg-type]
    assert capped.p_eos is None and exact.p_eos is None
    roomy = model.encode(pictures, tiles="auto", max_tokens=10_000, return_p_eos=True)
    assert roomy.lengths.tolist() == own.lengths.tolist() and roomy.p_eos is not None


def test_min_tokens_are_a_tiles(model: DoveModel) -> None:
    pictures = [scene(60, 90), scene(40, 60, 2)]  # seven and five tiles
    own = model.encode(pictures, tiles="auto", return_p_eos=True)
    assert own.p_eos is not None
    longer = model.encode(pictures, tiles="auto", min_tokens=20, batch_size=5)
    assert longer.lengths.tolist() == own.lengths.clamp_min(20).tolist() != own.lengths.tolist()
    capped = model.encode(pictures, tiles="auto", min_tokens=20, max_tokens=150, batch_size=2)
    for n in range(2):
        curve, most = own.picture(n).p_eos, longer.picture(n).lengths
        assert curve is not None
        assert capped.picture(n).lengths.tolist() == lengths_within(curve, most, 150, 20).tolist()
    assert int(capped.lengths.min()) == 20
    for budget in (260, 400):  # the first is less than what a batch brings: it is cut on the way
        shared = model.encode(pictures, tiles="auto", min_tokens=20, token_budget=budget, batch_size=2)
        assert shared.lengths.tolist() == lengths_for_budget(own.p_eos, budget, 20).tolist()
        assert int(shared.lengths.min()) == 20 > int(lengths_for_budget(own.p_eos, budget).min())


def test_a_budget_is_for_all_tiles_of_the_call(model: DoveModel) -> None:
    pictures = [scene(60, 90), scene(40, 60, 2)]
    p_eos = model.encode(pictures, tiles="auto", return_p_eos=True).p_eos
    assert p_eos is not None
    for budget in (12, 30, 200):  # the first two are less than what a batch brings: it is cut on the way
        tokens = model.encode(pictures, tiles="auto", token_budget=budget, batch_size=3)
        assert len(tokens.tokens) == budget
        assert tokens.lengths.tolist() == lengths_for_budget(p_eos, budget).tolist()


def test_a_budget_goes_where_there_is_something(coded: DoveModel) -> None:
    picture = scene(32, 126)  # two white tiles, two with noise
    tokens = stop_at_promise(coded).encode(picture, tiles="auto", token_budget=60)
    _, *lengths = tokens.lengths.tolist()
    assert len(lengths) == 4 or len(lengths) == 5
    assert lengths[0] == 1 and lengths[-1] > 10


def stop_at_promise(model: DoveModel) -> DoveModel:
    """A head that reads nothing but the quality beside the hidden states."""
    head = model.generator.embed_out
    with torch.no_grad():
        head.weight.zero_()
        head.bias.zero_()
        head.weight[model.config.eos_id, -1] = 0.05
    return model


def test_lengths_within() -> None:
    p_eos = torch.tensor([[0.1, 0.2, 0.9, 0.9], [0.0, 0.0, 0.1, 0.1], [0.5, 0.5, 0.5, 0.5]])
    most = torch.tensor([2, 4, 1], dtype=torch.int32)
    assert lengths_within(p_eos, most, 99).tolist() == [2, 4, 1]
    assert lengths_within(p_eos, most, 6).tolist() == [1, 4, 1]
    assert lengths_within(p_eos, most, 3).tolist() == [1, 1, 1]


def test_a_target_is_reached_where_the_picture_is(coded: DoveModel) -> None:
    """Not by the padding around it, which is easily right."""
    picture = scene(32, 10)
    tokens = coded.encode(picture, tiles="auto", target_psnr=25)
    assert tokens.psnr is not None
    reached = psnr(coded.decode(tokens)[0][None], picture[None].float() / 255, black=0)
    torch.testing.assert_close(tokens.psnr, reached, rtol=0, atol=0.05)
    assert reached >= 25 or tokens.lengths == SLOTS
    shorter = coded.decode(tokens.truncate(int(tokens.lengths) - 1))[0]
    assert psnr(shorter[None], picture[None].float() / 255, black=0) < 25
    several = coded.encode(scene(60, 90), tiles="auto", target_psnr=20)
    assert several.psnr is not None and several.psnr.shape == (7,)
    assert coded.encode(scene(60, 90), tiles="auto", target_psnr=20, max_tokens=20).psnr is None


def test_a_promise_is_one_about_what_is_shown() -> None:
    picture = torch.nn.functional.interpolate(photos(1).float(), size=(32, 10), mode="bilinear")[0].byte()
    model = stop_at_promise(linear(promised_psnr=24.0))
    tokens = model.encode(picture, tiles="auto")
    padded = next(cut(waiting(picture), 32, (1, 1), torch.device("cpu"))).pixels
    whole = model.encode(padded)
    assert int(tokens.lengths) > int(whole.lengths), "the tile's error may all be in what is shown"
    assert shown_weights(torch.tensor([[32, 10]]), 32).sum() == 320


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"tiles": 0}, "tiles must be a whole number from 1 to 4096"),
        ({"tiles": 12, "fit": "pad"}, "fit says how a picture becomes square, which tiles need not"),
        ({"tiles": 12, "relevance": [[1, 0]]}, "relevance marks places of one square"),
        ({"tiles": 12, "num_tokens": 6}, "num_tokens must be at least a token for each tile of a pict"),
        ({"tiles": 12, "max_tokens": 6}, "max_tokens must be at least a token for each tile"),
        ({"tiles": 12, "min_tokens": 0}, "min_tokens must be between 1 and 64, got 0"),
        (
            {"tiles": 12, "min_tokens": 9, "max_tokens": 62},
            "at least 9 tokens for each tile of a picture, 63 fo",
        ),
        (
            {"tiles": 12, "min_tokens": 9, "token_budget": 62},
            r"9 to 64 tokens a tile \(63..448 for the 7 til",
        ),
        ({"tiles": 12, "min_tokens": 9, "num_tokens": 99}, "cannot be combined with min_tokens"),
        ({"tiles": 12, "num_tokens": True}, "num_tokens must be at least a token for each tile"),
        ({"tiles": 12, "num_tokens": 7 * SLOTS + 1}, "num_tokens must be at most 64 for each tile of a pic"),
        ({"tiles": 12, "token_budget": 6}, r"1 to 64 tokens a tile \(7..448 for the 7 tiles of 1 pic"),
        ({"tiles": 12, "token_budget": 9, "num_tokens": 9}, "num_tokens decides the lengths"),
        ({"tiles": 12, "eos_threshold": 2}, "eos_threshold must be between 0 and 1"),
        ({"tiles": 12, "drop_empty": True}, "drop_empty leaves out tiles where a query points nowhere"),
        ({"drop_empty": True}, "drop_empty leaves out tiles; give tiles, or leave it out"),
        ({"tiles": 12, "return_relevance": True}, "'micro' has no relevance map"),
        ({"tiles": 12, "batch_size": 0}, "batch_size and block_size must be at least 1"),
    ],
)
def test_wrong_input(model: DoveModel, arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        model.encode(scene(60, 90), **arguments)


def test_a_prefix_has_no_tiles(model: DoveModel) -> None:
    with pytest.raises(ValueError, match="a prefix holds squares, which cannot be cut into tiles"):
        model.encode(model.prefix(photos(1)), tiles=12)


def test_a_bad_picture_is_named(model: DoveModel, tmp_path: Path) -> None:
    (tmp_path / "x.png").write_text("no picture")
    for images, words in (
        ([scene(60, 90), tmp_path / "x.png"], "x.png' is not a picture"),
        (np.zeros((1, 4000, 3), np.uint8), "too long for tiles"),
        (torch.full((3, 60, 90), float("inf")), "holds NaN or infinite values"),
    ):
        with pytest.raises(ImageError, match=words):
            model.encode(images, tiles=12)


# --- Queries ----------------------------------------------------------------------------------------------


def test_one_query_over_all_tiles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import_or_skip("tokenizers")
    model = stop_at_share(pointing(tmp_path))
    pictures = [scene(60, 90), scene(40, 60, 2)]
    asked = model.encode(pictures, tiles="auto", query=["the dog", None], return_relevance=True, batch_size=4)
    assert asked.relevance is not None and len(asked.relevance) == len(asked) == 12
    assert (asked.picture(1).relevance == 1).all()  # type: ignore[union-attr]
    strongest = asked.picture(0).relevance.flatten(1).amax(1)  # type: ignore[union-attr]
    empty = strongest < tiling.EMPTY * strongest.max()
    monkeypatch.setattr(tiling, "EMPTY", (float(strongest.median()) + 1e-6) / float(strongest.max()))
    cut_down = model.encode(pictures, tiles="auto", query=["the dog", None], batch_size=4)
    empty = strongest < strongest.median() + 1e-6
    empty[0] = False  # the thumbnail stays
    assert 0 < empty.sum() < 7
    lengths = cut_down.picture(0).lengths
    assert (lengths[empty] == 1).all()
    longer = model.encode(pictures, tiles="auto", query=["the dog", None], min_tokens=9).picture(0)
    assert (longer.lengths[empty] == 9).all() and longer.lengths.min() == 9
    assert torch.equal(lengths[~empty], asked.picture(0).lengths[~empty])
    assert cut_down.picture(1).lengths.tolist() == asked.picture(1).lengths.tolist()
    assert cut_down.relevance is None and cut_down.psnr is None
    fewer = model.encode(pictures, tiles="auto", query=["the dog", None], drop_empty=True)
    assert len(fewer.picture(0)) == 7 - int(empty.sum()) and len(fewer.picture(1)) == 5
    assert fewer.tiles.places[0].is_thumbnail  # type: ignore[union-attr]
    assert [tuple(p.shape) for p in model.decode(fewer)] == [(3, 60, 90), (3, 40, 60)]
    capped = model.encode(pictures, tiles="auto", query="the dog", max_tokens=30)
    assert all(len(capped.picture(n).tokens) <= 30 for n in range(2))
    null = model.encode(pictures, tiles="auto", query="null")
    assert torch.equal(null.tokens, model.encode(pictures, tiles="auto").tokens)
    with pytest.raises(ValueError, match="drop_empty leaves out tiles where a query points nowhere"):
        model.encode(pictures, tiles="auto", query="null", drop_empty=True)
