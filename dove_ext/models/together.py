"""Pictures put together from their tiles, without seams: `DoveModel.decode` of tokens that are of tiles."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from dove_ext.errors import TokensError
from dove_ext.images.tiles import choose_grid
from dove_ext.tokens.tiles import WHOLE, Place, TiledPicture, Tiles, start_of


def put_together(
    tiles: Tiles, side: int, batch_size: int, decode: Callable[[list[int]], Tensor]
) -> Iterator[Tensor]:
    """Each picture from its tiles, float32 [3, H, W] in [0, 1]; where tiles overlap one fades into the other.

    Args:
        tiles: of the tokens.
        side: of the model's images.
        batch_size: tiles that are decoded at once.
        decode: images [n, 3, S, S] of some of the tokens.

    Raises:
        TokensError: if the tiles are of another size, or one is missing and there is no thumbnail.
    """
    if tiles.side != side:
        raise TokensError(
            f"the tiles are of {tiles.side} pixels, this model's images of {side}; decode with the model "
            "that made them"
        )
    for number, picture in enumerate(tiles.pictures):
        rows = tiles.rows(number)
        there = {tiles.places[row][1:]: row for row in rows}
        small = there.pop((WHOLE, WHOLE), None)
        wanted = [(row, column) for row in range(picture.rows) for column in range(picture.columns)]
        whole = None
        if len(there) < len(wanted):
            if small is None:
                raise TokensError(
                    f"picture {number} has {len(there)} of its {len(wanted)} tiles and no thumbnail; keep "
                    "all tiles of a picture (tokens.picture), or decode the tiles by themselves "
                    "(dataclasses.replace(tokens, tiles=None))"
                )
            whole = _enlarged(decode([small])[0], picture)
        together: Tensor | None = None
        for start in range(0, len(wanted), batch_size):
            part = wanted[start : start + batch_size]
            held = [place for place in part if place in there]
            images = dict(zip(held, decode([there[place] for place in held]), strict=True)) if held else {}
            for place in part:
                box = tiles.box(Place(number, *place))
                if (image := images.get(place)) is None:
                    assert whole is not None
                    image = whole[:, box.top : box.bottom, box.left : box.right]
                if together is None:
                    together = image.new_zeros(3, picture.height, picture.width)
                    down = _shares(picture.rows, picture.height, side, image)
                    across = _shares(picture.columns, picture.width, side, image)
                height, width = box.bottom - box.top, box.right - box.left
                together[:, box.top : box.bottom, box.left : box.right] += (
                    image[:, :height, :width] * down[place[0]][:, None] * across[place[1]]
                )
        assert together is not None
        yield together.clamp_(0, 1)


def _shares(tiles: int, length: int, side: int, like: Tensor) -> list[Tensor]:
    """How much each pixel along each tile counts; over all tiles that show a pixel it sums to 1.

    Within what two tiles share one falls as the other rises.
    """
    starts = [start_of(tile, tiles, length, side) for tile in range(tiles)]
    shown = min(side, length)
    place = torch.arange(shown, device=like.device) + 0.5
    weights = []
    for tile, start in enumerate(starts):
        before = start - starts[tile - 1] if tile else shown
        behind = starts[tile + 1] - start if tile + 1 < tiles else shown
        rising, falling = place / max(1, shown - before), (shown - place) / max(1, shown - behind)
        rising = rising if before < shown else torch.ones_like(place)
        falling = falling if behind < shown else torch.ones_like(place)
        weights.append(torch.minimum(rising, falling).clamp_max(1))
    total = like.new_zeros(length)
    for start, weight in zip(starts, weights, strict=True):
        total[start : start + shown] += weight
    return [w / total[start : start + shown] for start, w in zip(starts, weights, strict=True)]


def _enlarged(thumbnail: Tensor, picture: TiledPicture) -> Tensor:
    """A thumbnail [3, S, S] without its padding, at the size of its picture."""
    shown = choose_grid(picture.given_height, picture.given_width, thumbnail.shape[-1], (1, 1))
    inner = thumbnail[None, :, : shown.height, : shown.width]
    size = picture.height, picture.width
    return F.interpolate(inner, size=size, mode="bilinear")[0]
