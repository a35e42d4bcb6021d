"""`DoveModel.encode` of pictures in tiles: in batches, and what holds for all tiles of a picture."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import islice

import torch
from torch import Tensor

from dove_ext.config import DoveConfig
from dove_ext.images.cut import Tile, Waiting, cut, tile_counts
from dove_ext.images.prepare import Squares, unit
from dove_ext.models.query import Query
from dove_ext.models.text import Asked
from dove_ext.tokens import DoveTokens
from dove_ext.tokens.indexing import is_int
from dove_ext.tokens.lengths import LengthRule, lengths_within
from dove_ext.tokens.tiles import WHOLE, Place, TiledPicture, Tiles

EMPTY = 0.25
"""Nothing of what is asked for is in a tile where no place counts this share of the picture's strongest."""

EncodeSquares = Callable[..., DoveTokens]
"""`DoveModel._encode_squares`."""


def check_no_square(prefix: bool, relevance: bool, fit: bool) -> None:
    """Refuse what concerns the square that a picture becomes, where it becomes tiles.

    Raises:
        ValueError: naming it.
    """
    if prefix:
        raise ValueError(
            "a prefix holds squares, which cannot be cut into tiles; pass the pictures themselves"
        )
    if relevance:
        raise ValueError("relevance marks places of one square; leave it out, or tiles (a query may point)")
    if fit:
        raise ValueError("fit says how a picture becomes square, which tiles need not; leave one of them out")


def shown_weights(shown: Tensor, side: int) -> Tensor:
    """1 where a tile shows its picture and 0 where it is padded: float32 [B, 1, side, side].

    Args:
        shown: int64 [B, 2], rows and columns in the upper left.
        side: of a tile.
    """
    place = torch.arange(side, device=shown.device)
    rows, columns = (place < shown[:, i, None] for i in (0, 1))
    return (rows[:, :, None] & columns[:, None]).float()[:, None]


def encode_tiles(
    encode: EncodeSquares,
    pictures: Sequence[Waiting],
    limits: tuple[int, int],
    config: DoveConfig,
    device: torch.device,
    rule: LengthRule,
    query: Asked,
    *,
    pointing: bool,
    drop_empty: bool,
    batch_size: int,
    return_p_eos: bool,
    return_relevance: bool,
) -> DoveTokens:
    """`DoveModel.encode` with `tiles`.

    Tiles of all pictures run in batches of `batch_size`; pictures are read one after the other, and nothing
    is kept of them but their tokens.

    Args:
        encode: of tiles that are there.
        pictures: still to be read.
        limits: the fewest and the most tiles of a picture.
        config: of the model.
        device: of the model.
        rule: how lengths are chosen; its numbers of tokens are for pictures, but `min_tokens`, each tile's.
        query: as for `DoveModel.encode`, with a row for each picture.
        pointing: whether the model's relevance map is asked it.
        drop_empty: as for `DoveModel.encode`.
        batch_size: likewise.
        return_p_eos: likewise.
        return_relevance: likewise.

    Raises:
        ValueError: if a number of tokens does not fit a picture's tiles, or `drop_empty` means nothing.
        ImageError: as `DoveModel.encode`.
    """
    if drop_empty and not pointing:
        raise ValueError(
            "drop_empty leaves out tiles where a query points nowhere; it needs a query and a model with a "
            "relevance map, such as dove-tiny-q"
        )
    counts = tile_counts(pictures, config.image_size, limits)
    _check_numbers(rule, counts, config.num_tokens)
    shares = [n for n in (rule.num_tokens, rule.max_tokens, rule.token_budget) if n is not None]
    inner = _rule_of_tiles(rule, config.num_tokens)
    # Tiles are compared by log-odds, which are p_eos until all have what they keep.
    keep = {
        "return_p_eos": return_p_eos and not shares,
        "ranked": bool(shares),
        "return_relevance": return_relevance or pointing,
    }
    done: list[DoveTokens] = []
    current: list[DoveTokens] = []
    stream = cut(pictures, config.image_size, limits, device)
    for batch in iter(lambda: list(islice(stream, batch_size)), []):
        squares, shown = Squares(_stacked(batch), []), _shown(batch, config, device)
        tokens = encode(squares, inner, _of_owners(query, [t.picture for t in batch]), shown=shown, **keep)
        tokens = replace(tokens, tiles=_tiles(batch, config.image_size))
        assert tokens.tiles is not None
        for number in range(len(tokens.tiles.pictures)):
            current.append(tokens.picture(number))
            if sum(map(len, current)) == counts[len(done)]:
                done.append(_finished(_as_one(current), rule, pointing, drop_empty))
                current = []
        if shares and not pointing:  # a query may yet leave more for some tiles than they would have now
            current = _without_surplus(current, shares[0], rule.least)
        if rule.token_budget is not None:
            done = _pruned(done, rule.token_budget, rule.least)
    tokens = DoveTokens.cat(done)
    if rule.token_budget is not None:
        tokens = _cut_to(tokens, rule.token_budget, rule.least)
    curve = tokens.p_eos
    if shares and curve is not None:
        curve = curve.sigmoid()
    return replace(
        tokens,
        p_eos=curve if return_p_eos else None,
        relevance=tokens.relevance if return_relevance else None,
        psnr=None if rule.max_tokens is not None or pointing else tokens.psnr,
    )


def _check_numbers(rule: LengthRule, counts: Sequence[int], slots: int) -> None:
    """`LengthRule.check` where numbers of tokens are of pictures, not of tiles."""
    replace(rule, num_tokens=None, max_tokens=None, token_budget=None).check(slots, len(counts))
    if rule.conflict() is not None:
        rule.check(slots, len(counts))  # which says so
    least = rule.least
    fewest, most = (pick(range(len(counts)), key=counts.__getitem__) for pick in (max, min))
    for name, number in (("num_tokens", rule.num_tokens), ("max_tokens", rule.max_tokens)):
        if number is None:
            continue
        if not is_int(number) or number < counts[fewest] * least:
            each = "a token" if least == 1 else f"{least} tokens"
            raise ValueError(
                f"{name} must be at least {each} for each tile of a picture, {counts[fewest] * least} for "
                f"picture {fewest} with its thumbnail, got {number!r}; give more, or fewer tiles"
            )
    if rule.num_tokens is not None and rule.num_tokens > counts[most] * slots:
        raise ValueError(
            f"num_tokens must be at most {slots} for each tile of a picture, {counts[most] * slots} for "
            f"picture {most}, got {rule.num_tokens}; max_tokens lets small pictures have less"
        )
    budget, tiles = rule.token_budget, sum(counts)
    lowest, highest = tiles * least, tiles * slots
    if budget is not None and not (is_int(budget) and lowest <= budget <= highest):
        raise ValueError(
            f"token_budget must be a whole number of {least} to {slots} tokens a tile "
            f"({lowest}..{highest} for the {tiles} tiles of {len(counts)} pictures), got {budget!r}"
        )


def _rule_of_tiles(rule: LengthRule, slots: int) -> LengthRule:
    """The rule for each tile, before tokens are shared out: the most that it can get."""
    number = rule.num_tokens or rule.token_budget
    if number is not None:
        return LengthRule(num_tokens=min(slots, number))
    return replace(rule, max_tokens=rule.max_tokens and min(slots, rule.max_tokens))


def _stacked(batch: Sequence[Tile]) -> Tensor:
    pixels = [tile.pixels for tile in batch]
    if any(tile.dtype != torch.uint8 for tile in pixels):
        pixels = [unit(tile) for tile in pixels]
    return torch.stack(pixels)


def _shown(batch: Sequence[Tile], config: DoveConfig, device: torch.device) -> Tensor | None:
    """What counts of each tile, where not all of every tile does; of a thumbnail all."""
    side = config.image_size
    shown = torch.tensor([(side, side) if tile.row == WHOLE else tile.shown for tile in batch])
    return None if (shown == side).all() else shown.to(device)


def _of_owners(query: Asked, owners: Sequence[int]) -> Asked:
    """Each tile is asked what its picture is asked."""
    if query is None or isinstance(query, str):
        return query
    if isinstance(query, Query):
        return query.each(lambda x: x[torch.tensor(owners, device=x.device)])
    return [query[owner] for owner in owners]


def _tiles(batch: Sequence[Tile], side: int) -> Tiles:
    numbers = {owner: number for number, owner in enumerate(dict.fromkeys(tile.picture for tile in batch))}
    pictures = {tile.picture: TiledPicture(*tile.grid, *tile.size) for tile in batch}
    return Tiles(
        side,
        tuple(pictures.values()),
        tuple(Place(numbers[tile.picture], tile.row, tile.column) for tile in batch),
    )


def _as_one(parts: Sequence[DoveTokens]) -> DoveTokens:
    """Tokens of one picture, whose tiles came in several batches."""
    if len(parts) == 1:
        return parts[0]
    tokens = DoveTokens.cat(parts)
    assert tokens.tiles is not None
    places = tuple(place._replace(picture=0) for place in tokens.tiles.places)
    return replace(tokens, tiles=replace(tokens.tiles, pictures=tokens.tiles.pictures[:1], places=places))


def _finished(tokens: DoveTokens, rule: LengthRule, pointing: bool, drop_empty: bool) -> DoveTokens:
    """All tiles of a picture, cut by what holds for all of them."""
    if pointing:
        empty = _empty(tokens)
        if drop_empty:
            tokens = tokens[[row for row, nothing in enumerate(empty) if not nothing]]
        elif any(empty):
            tokens = tokens.truncate([rule.least if nothing else tokens.num_slots for nothing in empty])
    number = rule.num_tokens or rule.max_tokens
    return tokens if number is None else _cut_to(tokens, number, rule.least)


def _empty(tokens: DoveTokens) -> list[bool]:
    """Which tiles of a picture show nothing of what is asked for."""
    assert tokens.relevance is not None and tokens.tiles is not None
    strongest = tokens.relevance.flatten(1).amax(1)
    empty = (strongest < EMPTY * strongest.amax()).tolist()
    return [
        nothing and not place.is_thumbnail for nothing, place in zip(empty, tokens.tiles.places, strict=True)
    ]


def _cut_to(tokens: DoveTokens, number: int, least: int) -> DoveTokens:
    """At most so many tokens, `least` of each tile, where the model is least ready to stop."""
    if len(tokens.tokens) <= number:
        return tokens
    assert tokens.p_eos is not None
    return tokens.truncate(lengths_within(tokens.p_eos, tokens.lengths, number, least))


def _without_surplus(parts: list[DoveTokens], number: int, least: int) -> list[DoveTokens]:
    """Parts of a picture without tokens that it cannot keep, whatever its further tiles hold."""
    if sum(len(tokens.tokens) for tokens in parts) <= 2 * number:
        return parts
    return [_cut_to(_as_one(parts), number, least)]


def _pruned(done: list[DoveTokens], budget: int, least: int) -> list[DoveTokens]:
    """The same pictures without tokens that a budget has no room for, whatever else is to share it."""
    if sum(len(tokens.tokens) for tokens in done) <= 2 * budget:
        return done
    tokens = _cut_to(DoveTokens.cat(done), budget, least)
    assert tokens.tiles is not None
    return [tokens.picture(number) for number in range(len(tokens.tiles.pictures))]
