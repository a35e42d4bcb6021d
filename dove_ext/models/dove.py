"""DOVE: an image in, as many tokens as it deserves out, and back (2.1)."""

from __future__ import annotations

import operator
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from dove_ext import ops
from dove_ext.config import MAX_SLOTS, DoveConfig, preset
from dove_ext.errors import CheckpointError, TokensError
from dove_ext.fork import lead_threads
from dove_ext.images.cut import waiting
from dove_ext.images.prepare import Squares, check_ranges, normalise, square_images
from dove_ext.images.tiles import TileCount, tile_limits
from dove_ext.metrics.pixel import psnr_of_mse
from dove_ext.models.batches import Encode, Encoded, join, packed
from dove_ext.models.generator import Condition, Generator, TokenDecoder
from dove_ext.models.graphs import EncodeGraphs, graph_size
from dove_ext.models.precision import full_precision
from dove_ext.models.prefix import Prefix
from dove_ext.models.pretrained import TOKENIZER, Pretrained, require_indices
from dove_ext.models.quality import shortest_reaching
from dove_ext.models.query import Query
from dove_ext.models.region import COARSE, WHOLE, RegionCode, cell_weights, pixel_weights
from dove_ext.models.relevance import RelevanceMap
from dove_ext.models.shortcut import FrequencyShortcut
from dove_ext.models.text import Asked, QueryTokenizer, check_count, is_null, queries
from dove_ext.models.tiling import check_no_square, encode_tiles, shown_weights
from dove_ext.models.together import put_together
from dove_ext.models.vqgan import VQGAN
from dove_ext.tokens import DoveTokens
from dove_ext.tokens.lengths import LengthRule

LARGEST_REPAIR = 0.25
"""How far the decoder may move a picture from its linear code's, as a share of the error that is left.

Both are root mean squares over a picture, and the latter is known exactly (`FrequencyShortcut.quality`): what
was learned from photographs cannot spoil a picture of another kind that the code has right. A change that has
nothing to do with what is missing costs at most 0.27 dB.
"""

TWO_PLACES = "a query says where the picture matters, and so does a relevance; leave one of them out"


def at_most(change: Tensor, size: Tensor) -> Tensor:
    """Each image's change [B, ...], scaled down where its root mean square is above `size` [B]."""
    squares = change.float().square().flatten(1).mean(1)
    scale = (size * squares.clamp_min(1e-20).rsqrt()).clamp_max(1)
    return change * scale.to(change.dtype).view(-1, *[1] * (change.dim() - 1))


class Generated(NamedTuple):
    """What the generator makes of B images.

    Attributes:
        tokens: d_1..d_n [B, n, D], not cut at any length.
        hidden: hidden states of the time positions, which the stop head reads (`Generator.forward`).
        condition: what they were made from.
    """

    tokens: Tensor
    hidden: Tensor
    condition: Condition


class DoveModel(Pretrained):
    """VQGAN encoder, token generator, token decoder, VQGAN decoder.

    Example:
        >>> model = DoveModel.from_pretrained("dove-tiny")
        >>> tokens = model.encode(["photo.jpg"])
        >>> images = model.decode(tokens)

    Processes that are forked after a model was built or used on several threads cannot use several themselves
    (PyTorch's own threads do not survive it) and are told so: start them by "spawn" or "forkserver", or call
    `torch.set_num_threads(1)` in them, as the workers of a `DataLoader` do.

    Convolution weights are in channels-last memory, in which training is faster and cuDNN reads them as they
    are. `torch.nn.utils.parameters_to_vector` takes no such weights; call
    `model.to(memory_format=torch.contiguous_format)` first, which changes no token.
    """

    config_class: ClassVar[type[DoveConfig]] = DoveConfig
    config: DoveConfig

    def __init__(self, config: DoveConfig | str) -> None:
        """Build with random weights.

        Args:
            config: a configuration, or a preset's name.
        """
        super().__init__()
        self.config = preset(config) if isinstance(config, str) else config
        c = self.config
        self.vqgan = VQGAN(c.vqgan)
        self.generator = Generator(c)
        self.token_decoder = TokenDecoder(c)
        self.shortcut: FrequencyShortcut | None = None
        self.region: RegionCode | None = None
        if c.shortcut:
            shape = c.grid, c.vqgan.latent_channels, c.num_tokens, c.generator.hidden, 3 * c.image_size**2
            self.shortcut = FrequencyShortcut(*shape)
            self.region = RegionCode(*shape) if RegionCode.fits(c.grid, c.generator.hidden) else None
        self.relevance: RelevanceMap | None = None
        if c.relevance is not None:
            self.relevance = RelevanceMap(c.relevance, c.grid, c.query_vocab_size)
            self.relevance.reset_parameters()
        self.tokenizer: QueryTokenizer | None = None
        self._graphs = EncodeGraphs()
        self.generator.reset_parameters()
        self.token_decoder.reset_parameters()
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    # --- The paper's steps, differentiable, on tensors ------------------------------------------------

    def condition(
        self, pixels: Tensor, query: Query | None = None, relevance: Tensor | None = None
    ) -> Condition:
        """What the tokens of these images are made from.

        Args:
            pixels: [B, 3, S, S] in [-1, 1].
            query: between H_v and the time positions, on the pixels' device (Q-DOVE, 2.3); in a model with a
                relevance map what this is asked. None: the query "null" of a model with query weights, none
                of others.
            relevance: as for `about`.

        Raises:
            ValueError: as `about`, or if a relevance map is given both.
        """
        condition = self._unasked(pixels)
        if self.relevance is None or query is None:
            return self.about(self._asked(condition, query), relevance)
        if relevance is not None:
            raise ValueError(TWO_PLACES)
        return self._asked(condition._replace(sight=self.relevance.see(pixels)), query)

    def condition_on(
        self, latents: Tensor, query: Query | None = None, *, lost: Tensor | None = None
    ) -> Condition:
        """`condition` of pictures whose latents H_v [B, P, latent_channels] are already there.

        Args:
            latents: [B, P, latent_channels].
            query: as for `condition`.
            lost: float32 [B, P], for a model with the linear shortcut: the mean squared error of each patch
                in the picture of all latents, in pixels of [-1, 1]; None: they hold the whole picture.

        Raises:
            ValueError: if a relevance map is asked a query: it sees pictures.
        """
        return self._asked(self._unasked_on(latents, lost), query)

    def _asked(self, condition: Condition, query: Query | None) -> Condition:
        if self.relevance is not None:
            if query is None:
                return condition
            if condition.sight is None:
                raise ValueError("this model's queries are asked of pictures; use `condition` with pixels")
            return self.about(condition, self.relevance.weights(condition.sight, query))
        if query is None and (null := self.queries(None, condition.latents.shape[0])) is not None:
            query = null.to(condition.latents.device)
        return condition._replace(query=query)

    def _unasked(self, pixels: Tensor) -> Condition:
        latents = self.vqgan.encode(pixels)
        if self.shortcut is None:
            return self._unasked_on(latents, None)
        squares = (self.vqgan.picture(latents).float() - pixels.float()).square().mean(1, keepdim=True)
        return self._unasked_on(latents, F.avg_pool2d(squares, self.config.vqgan.downsampling).flatten(1))

    def _unasked_on(self, latents: Tensor, lost: Tensor | None) -> Condition:
        if self.shortcut is None:
            return Condition(latents, None, None, None, None, None, None)
        lost = latents.new_zeros(latents.shape[:2], dtype=torch.float32) if lost is None else lost
        code, worth = full_precision(self.shortcut.code, latents), self.vqgan.worth
        quality = self.shortcut.quality(code, worth, lost)
        margin = self.shortcut.margin(latents, worth, lost)
        base = self.shortcut.with_quality(code, quality)
        return Condition(latents, base, F.pad(base, (0, 1), value=WHOLE), quality, margin, lost, None)

    def about(self, condition: Condition, relevance: Tensor | None) -> Condition:
        """The same condition, with tokens that are about the places that matter (`RegionCode`).

        Args:
            condition: of this model's linear shortcut.
            relevance: float32 [B, P], how much each place of the grid counts, not negative and somewhere
                above 0; None, or the same everywhere: the whole picture, with tokens as without it.

        Raises:
            ValueError: if this model cannot code regions.
        """
        if relevance is None:
            return condition
        if self.region is None or self.shortcut is None or condition.base is None or condition.lost is None:
            raise ValueError(
                "this model has no code for regions (it needs shortcut=True, an even grid and a hidden width "
                "that is a multiple of 4); leave relevance out"
            )
        latents, worth, lost = condition.latents, self.vqgan.worth, condition.lost
        fixed = condition.base[..., : self.shortcut.width]
        code, quality, address = full_precision(
            self.region.select, self.shortcut, latents, fixed, relevance, worth, lost
        )
        margin = self.shortcut.margin(latents, worth, lost, relevance)
        sent = self.shortcut.with_quality(code, quality, address)
        whole = relevance.amin(1) == relevance.amax(1)
        if condition.sent is not None and condition.quality is not None and condition.margin is not None:
            sent = condition.sent.where(whole[:, None, None], sent)
            quality = condition.quality.where(whole[:, None], quality)
            margin = condition.margin.where(whole, margin)
        return condition._replace(sent=sent, quality=quality, margin=margin, relevance=relevance)

    def queries(self, query: Asked, count: int) -> Query | None:
        """What stands between so many images and their time positions, see `models.text.queries`.

        A model with a relevance map has nothing there; its queries are what the map is asked, if anything.
        """
        if self.relevance is not None and is_null(query):
            if isinstance(query, list | tuple):
                check_count(query, count)
            return None
        return queries(query, count, self.config, self.tokenizer)

    def generate(
        self, condition: Condition, count: int | None = None, *, sample: bool | None = None
    ) -> Generated:
        """The first tokens of each image in one pass (Eq. 1); `generator.lengths(hidden)` are their lengths.

        Args:
            condition: of this model's `condition`.
            count: so many tokens, 1..K; None: all K.
            sample: draw the Gaussian variant's tokens instead of taking their means; None: in training.
        """
        hidden = self.generator(condition, count)
        sample = self.training if sample is None else sample
        tokens = self.generator.tokens(hidden, condition, sample=sample)
        return Generated(tokens, hidden, condition)

    def render(self, tokens: Tensor, lengths: Tensor, *, total: int | None = None) -> Tensor:
        """Pixels [B, 3, S, S], nominally in [-1, 1], from the first `lengths` of tokens [B, K, D].

        Args:
            tokens: [B, K, D]; what stands behind a length is ignored.
            lengths: int32 [B]. No gradient reaches them: the truncation's mask is constant.
            total: their sum, where they are on a device that would have to be waited for. It changes nothing
                but the time a model without `attend_padding` takes.
        """
        kept = ops.zero_tail(tokens, lengths)
        if self.shortcut is None:
            return self.vqgan.decode(self.token_decoder(kept, lengths, total=total))
        left = self.shortcut.error(kept, lengths)
        if self.region is None:
            base = full_precision(self.shortcut.latents, kept)
        else:
            address = self.shortcut.address_of(kept)
            blocks = full_precision(self.region.latents, kept[..., : self.shortcut.width], address)
            kept = kept * (address <= WHOLE)[..., None]
            base = full_precision(self.shortcut.latents, kept) + blocks
            # What the decoder knows of what is missing it has learned from whole pictures.
            left = left * (address[:, 0] != COARSE)
        gain = left / self.shortcut.typical(self.vqgan.worth)
        latents = full_precision(self.token_decoder, kept, lengths, base, gain)
        linear = self.vqgan.picture(base)
        return linear + at_most(self.vqgan.decode(latents, gain) - linear, LARGEST_REPAIR * left)

    def forward(self, pixels: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Reconstruct in one differentiable pass.

        Args:
            pixels: [B, 3, S, S] in [-1, 1].
            lengths: int32 [B] tokens to keep; None: where the model stops.

        Returns:
            (Tensor, Tensor): pixels [B, 3, S, S] and the lengths int32 [B].
        """
        generated = self.generate(self.condition(pixels))
        if lengths is None:
            lengths = self.generator.lengths(generated.hidden.detach())
        return self.render(generated.tokens, lengths), lengths

    # --- What a user calls ----------------------------------------------------------------------------

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.generator.embed_out.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """The weights' dtype, which is also the tokens'."""
        return self.generator.embed_out.weight.dtype

    @torch.no_grad()  # not inference_mode: others train on these tokens
    def encode(
        self,
        images: Any,
        *,
        num_tokens: int | None = None,
        min_tokens: int | None = None,
        max_tokens: int | None = None,
        eos_threshold: float | None = None,
        token_budget: int | None = None,
        target_psnr: float | None = None,
        return_p_eos: bool = False,
        return_relevance: bool = False,
        query: Asked = None,
        relevance: Any = None,
        fit: Literal["crop", "squash", "pad"] = "crop",
        tiles: TileCount | None = None,
        drop_empty: bool = False,
        batch_size: int = 32,
        block_size: int = 64,
        cuda_graph: bool | None = None,
    ) -> DoveTokens:
        """Turn images into as many tokens as each deserves.

        The length of an image is where the model predicts EOS. It does not depend on the other images of
        the call (to rounding: matrix products may sum in another order for another batch size, which moves
        a length only where p_eos is within rounding of the decision), except with `token_budget`.

        Args:
            images: anything `dove_ext.images.prepare_images` takes: tensors, arrays, PIL images, paths, or
                a list of these; or what `prefix` made of them.
            num_tokens: exactly this many tokens for every image, 1..K.
            min_tokens: stop here at the earliest. An image that would be shorter has exactly this many: the
                model's decision that a prefix is good enough holds for every longer one, so p_eos is not
                asked again behind it (`tokens.lengths.LengthRule`).
            max_tokens: stop here at the latest.
            eos_threshold: stop at the first position where p_eos >= this (0..1), instead of where EOS wins
                the vocabulary's arg-max.
            token_budget: choose the lengths over all images of this call so that they sum to exactly this
                (`dove_ext.tokens.lengths.lengths_for_budget`); from one token an image (or `min_tokens`) to
                K.
            target_psnr: the fewest tokens of each image with which this model's own reconstruction is that
                close to it, in dB (`models.quality.shortest_reaching`); `min_tokens` and `max_tokens`
                win. For text in tiles 26, for small type 28 (docs/tiles.md). `psnr` of the result is what it
                reached. Costs about nine reconstructions; on a CPU about three of a model with the linear
                code, which knows its quality.
            return_p_eos: keep the p_eos curve [B, K] with the tokens; all K positions are run then.
            return_relevance: keep how much each place counted, [B, h, w], with the tokens: what a model with
                a relevance map made of the query, or the relevance that was given, on the model's grid.
            query: what the tokens are to tell of (Q-DOVE, 2.3), for a model with query weights: a text for
                all images, or a list with one an image; "null" and None mean the whole picture. Or a `Query`
                of ids or embeddings. Queries of several lengths may share a batch: no image's tokens depend
                on another's query.
            relevance: where the pictures matter: an array [B, h, w], or [h, w] for all, of values from 0,
                over the square that the model sees; a mask will do. The tokens are then a coarse picture and
                behind it the places that matter, most important first (`models.region`), and every promise of
                quality is one of these places: errors count by relevance. It runs without a CUDA graph. A map
                that is the same everywhere asks for the whole picture.
            fit: how an image becomes square, see `prepare_images`. Not for a prefix, whose images are.
            tiles: cut each picture into a grid of squares of the model's size instead, so that nothing of it
                is lost or distorted: the most tiles of a picture, a pair of fewest and most, or "auto" for as
                many as its own resolution needs (`images.tiles.choose_grid`); and with more than one tile a
                small view of the whole, the thumbnail. Every tile has its own row in the result, whose
                `tiles` says what belongs together. What is said above of an image then holds for a picture:
                `num_tokens` are exactly this many for all tiles of each picture, `max_tokens` at most, and
                what there is goes where p_eos is lowest; `min_tokens` are at least this many for each tile,
                the thumbnail, too. A picture of which a query leaves too few tiles has fewer than
                `num_tokens` or the budget. `target_psnr` is reached by each tile where it shows the picture;
                `psnr` is then None with `max_tokens` or a query. Not with `relevance`, a prefix or `fit`.
            drop_empty: with tiles and a query for a model with a relevance map, leave out tiles that show
                nothing of what is asked for (`models.tiling.EMPTY`); else these keep one token, or
                `min_tokens`. The thumbnail stays.
            batch_size: images, or tiles, that run at once.
            block_size: time positions that run at once before the model looks for EOS, where it looks before
                the last (on a CPU, and without `cuda_graph`); the tokens are the same for any value.
            cuda_graph: run a batch, from pixels to packed tokens, as a recorded CUDA graph: no launch costs,
                but all positions run, also behind the last EOS. There is a graph for each way of choosing
                lengths and each batch of 1, 2, 4, ... or `batch_size` images, recorded when it is first
                needed, which takes as long as some four batches; batches in between are filled up. Hooks of
                the model's modules run while it is recorded, not when it is replayed. None: on CUDA yes,
                elsewhere no, and never for a prefix, which runs without one.

        Returns:
            DoveTokens: tokens [T, D] with cu_seqlens int32 [B + 1].

        Raises:
            ValueError: if length controls contradict one another or are out of range, `cuda_graph` is asked
                for where there is no CUDA, or a relevance means nothing, or nothing to this model.
            ImageError: if an input is not an image or not in range.
            QueryError: if a query is empty or too long, the model has no weights for it, or a prefix is
                another model's.
            RuntimeError: on several threads in a process that was forked after this model, or any of this
                package, had used several: it would wait for ever (`dove_ext.fork`).
        """
        rule = LengthRule(num_tokens, min_tokens, max_tokens, eos_threshold, token_budget, target_psnr)
        batch_size, block_size = operator.index(batch_size), operator.index(block_size)
        if batch_size < 1 or block_size < 1:
            raise ValueError(
                f"batch_size and block_size must be at least 1, got {batch_size} and {block_size}"
            )
        seen = images if isinstance(images, Prefix) else None
        if cuda_graph and (self.device.type != "cuda" or seen is not None):
            why = f"the model on a CUDA device, but it is on {self.device}; move it there"
            why = why if seen is None else "pictures, but a prefix was given; pass these"
            raise ValueError(f"cuda_graph needs {why} or leave cuda_graph out")
        how: dict[str, Any] = {"batch_size": batch_size, "block_size": block_size, "cuda_graph": cuda_graph}
        keep: dict[str, Any] = {"return_p_eos": return_p_eos, "return_relevance": return_relevance}
        if tiles is not None:
            check_no_square(seen is not None, relevance is not None, fit != "crop")
            pictures, limits = waiting(images), tile_limits(tiles)
            asked = self.queries(query, sum(picture.number for picture in pictures))
            pointing = self.relevance is not None and asked is not None
            return encode_tiles(
                partial(self._encode_squares, **how), pictures, limits, self.config, self.device, rule, query,
                pointing=pointing, drop_empty=drop_empty, batch_size=batch_size, **keep,
            )  # fmt: skip
        if drop_empty:
            raise ValueError("drop_empty leaves out tiles; give tiles, or leave it out")
        if seen is None:
            squares = square_images(images, self.config.image_size, fit=fit, device=self.device)
        else:
            seen.require(self, self.dtype)
            if fit != "crop":
                raise ValueError("the pictures of a prefix are square; pass fit to `prefix` instead")
            lead_threads()
            squares = Squares(seen.pixels, [])
        return self._encode_squares(squares, rule, query, seen=seen, relevance=relevance, **how, **keep)

    def _encode_squares(
        self,
        squares: Squares,
        rule: LengthRule,
        query: Asked,
        *,
        batch_size: int,
        block_size: int,
        cuda_graph: bool | None,
        return_p_eos: bool,
        return_relevance: bool,
        seen: Prefix | None = None,
        relevance: Any = None,
        shown: Tensor | None = None,
        ranked: bool = False,
    ) -> DoveTokens:
        """`encode` of images that are squares on the model's device, or of the prefix `seen`.

        `shown`, int64 [B, 2], is how many rows and columns in the upper left count, where not all of them do:
        what is promised of quality is then promised of these. It runs without a CUDA graph. With `ranked`
        p_eos of the result holds log-odds instead, by which tiles are compared.
        """
        pixels, unread = squares
        count = pixels.shape[0]
        rule.check(self.config.num_tokens, count)
        asked = self.queries(query, count)
        cells, mapped = None, self.relevance is not None and asked is not None
        if relevance is not None:
            if mapped:
                raise ValueError(TWO_PLACES)
            cells = cell_weights(relevance, count, self.config.grid, self.device)
        if return_relevance and cells is None and self.relevance is None:
            raise ValueError(
                f"{self.config.name!r} has no relevance map; give a relevance, or leave return_relevance out"
            )
        if cuda_graph and (mapped or cells is not None):
            raise ValueError("a relevance runs without a CUDA graph; leave cuda_graph out")
        curves = {"whole_curve": return_p_eos, "ranked": ranked or rule.token_budget is not None}
        graph = (
            seen is None
            and cells is None
            and shown is None
            and not mapped
            and (self.device.type == "cuda" if cuda_graph is None else cuda_graph)
        )
        exact = rule.num_tokens is not None or rule.target_psnr is not None
        block = None if graph or exact or any(curves.values()) else block_size
        how: dict[str, Any] = {"rule": rule, **curves, "block_size": block}
        encode: Encode = partial(self._encode_batch, **how)
        if graph:
            kind = rule, *curves.values()
            encode = partial(self._graphs.run, self, encode, batch_size=batch_size, kind=kind)
        batches = []
        for i in range(0, count, batch_size):
            part = slice(i, i + batch_size)
            asking = None if asked is None else asked.rows(part).to(self.device)
            if asking is not None and graph:  # one graph for queries of about this length
                asking = asking.padded(
                    graph_size(asking.values.shape[1], self.config.query_length or MAX_SLOTS)
                )
            where = None if cells is None else cells[part]
            if seen is not None:
                here = seen.rows(part).to(self.device)
                condition = self.about(self._asked(here.condition, asking), where)
                batches.append(self._encode_condition(condition, here.pixels, **how))
            elif where is not None or shown is not None:
                here_shown = None if shown is None else shown[part]
                batches.append(
                    self._encode_batch(pixels[part], asking, relevance=where, shown=here_shown, **how)
                )
            else:
                batches.append(encode(pixels[part], asking))
        encoded = join(batches, rule, unread)
        return DoveTokens(
            tokens=encoded.tokens,
            cu_seqlens=ops.lengths_to_cu_seqlens(encoded.lengths),
            num_slots=self.config.num_tokens,
            p_eos=encoded.log_odds if ranked else encoded.p_eos,
            psnr=encoded.psnr,
            relevance=self._maps(encoded.relevance, count) if return_relevance else None,
            model=self.config.name,
        )

    def _maps(self, cells: Tensor | None, count: int) -> Tensor:
        """Relevance of cells [B, P] as maps [B, h, w]; where none was asked for, all count alike."""
        grid = self.config.grid
        if cells is None:
            return torch.ones(count, grid, grid, dtype=torch.float32, device=self.device)
        return cells.view(-1, grid, grid)

    def _encode_batch(
        self,
        pixels: Tensor,
        query: Query | None,
        *,
        rule: LengthRule,
        whole_curve: bool,
        block_size: int | None,
        ranked: bool = False,
        relevance: Tensor | None = None,
        shown: Tensor | None = None,
    ) -> Encoded:
        """Square images to tokens, packed unless a budget is shared with other batches."""
        condition = self.condition(normalise(pixels).to(self.dtype), query, relevance)
        weight = None
        if shown is not None:
            weight = shown_weights(shown, self.config.image_size)
            if condition.margin is not None:  # the error of the whole tile may all be in what is shown
                condition = condition._replace(margin=condition.margin + psnr_of_mse(weight.mean((1, 2, 3))))
        return self._encode_condition(
            condition, pixels, rule=rule, whole_curve=whole_curve, block_size=block_size, ranked=ranked,
            weight=weight,
        )  # fmt: skip

    def _encode_condition(
        self,
        condition: Condition,
        pixels: Tensor,
        *,
        rule: LengthRule,
        whole_curve: bool,
        block_size: int | None,
        ranked: bool = False,
        weight: Tensor | None = None,
    ) -> Encoded:
        """`_encode_batch` of images whose condition is there; `weight` [B, 1, S, S] is of their pixels."""
        most = rule.most(self.config.num_tokens)
        if block_size is None:
            encoded = self._at_once(condition, rule=rule, whole_curve=whole_curve, ranked=ranked)
            if rule.target_psnr is not None:
                pixels = normalise(pixels).to(self.dtype)
                tokens = F.pad(encoded.tokens, (0, 0, 0, self.config.num_tokens - encoded.tokens.shape[1]))
                expected = None if self.shortcut is None else self.shortcut.quality_of(tokens)
                side, cells = self.config.vqgan.downsampling, condition.relevance
                if cells is not None:
                    places = pixel_weights(cells, side)
                    weight = places if weight is None else weight * places
                lengths, psnr = shortest_reaching(
                    self.render, tokens, pixels, rule.target_psnr, most=most, least=rule.least,
                    expected=expected, weight=weight,
                )  # fmt: skip
                encoded = encoded._replace(lengths=lengths, psnr=psnr)
        else:
            # The positions that ran until all images had ended.
            hidden, lengths = self.generator.run_until_stop(
                condition, limit=most, threshold=rule.eos_threshold, block=block_size, least=rule.least
            )
            encoded = Encoded(self.generator.tokens(hidden, condition), lengths)
        encoded = encoded._replace(relevance=condition.relevance)
        return encoded if rule.token_budget is not None else packed(encoded)

    @torch.no_grad()
    def encode_at_once(
        self,
        pixels: Tensor,
        query: Query | None = None,
        *,
        rule: LengthRule = LengthRule(),  # noqa: B008 (immutable)
        whole_curve: bool = False,
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """All positions in one pass, padded; nothing waits for the device, so a CUDA graph can hold it.

        Args:
            pixels: [B, 3, S, S] in [-1, 1], in the model's dtype and on its device.
            query: as for `condition`.
            rule: how lengths are chosen; a budget is left to the caller, who sees all images, and so is a
                quality.
            whole_curve: also compute p_eos at all K positions.

        Returns:
            (Tensor, Tensor, Tensor | None): tokens [B, n, D], not cut at the lengths; lengths int32 [B],
            1..n; and p_eos float32 [B, K] if it is wanted.
        """
        encoded = self._at_once(self.condition(pixels, query), rule=rule, whole_curve=whole_curve)
        return encoded.tokens, encoded.lengths, encoded.p_eos

    def _at_once(
        self, condition: Condition, *, rule: LengthRule, whole_curve: bool, ranked: bool = False
    ) -> Encoded:
        most = rule.most(self.config.num_tokens)
        count = None if whole_curve or ranked else most
        tokens, hidden, _ = self.generate(condition, count, sample=False)
        p_eos = self.generator.p_eos(hidden) if whole_curve else None
        log_odds = self.generator.stop_log_odds(hidden) if ranked else None
        if rule.num_tokens is None:
            lengths = self.generator.lengths(hidden[:, :most], rule.eos_threshold, rule.least)
        else:
            lengths = torch.full((len(hidden),), most, dtype=torch.int32, device=hidden.device)
        return Encoded(tokens, lengths, p_eos, log_odds=log_odds)

    @torch.no_grad()
    def prefix(
        self, images: Any, *, fit: Literal["crop", "squash", "pad"] = "crop", batch_size: int = 32
    ) -> Prefix:
        """Look at images once, for as many queries as one likes (Q-DOVE, 2.3).

        `encode(prefix, query=...)` gives the tokens of `encode(images, query=...)`, to rounding, and runs
        neither the encoder nor the image positions of the generator again; of a model with a relevance map
        nothing but the map's last part. Models without query weights have prefixes, too. On a GPU a prefix
        runs without a CUDA graph; what that costs is not measured yet.

        Args:
            images: as for `encode`.
            fit: likewise.
            batch_size: images that run at once.

        Returns:
            Prefix: on the model's device; usable by this model, until its weights change.

        Raises:
            ValueError: if `batch_size` is below 1.
            ImageError: if an input is not an image or not in range.
        """
        batch_size = operator.index(batch_size)
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        pixels, unread = square_images(images, self.config.image_size, fit=fit, device=self.device)
        parts = []
        for part in pixels.split(batch_size):
            normal = normalise(part).to(self.dtype)
            condition = self._unasked(normal)
            if self.relevance is None:
                parts.append(self.generator.see(condition))
                continue
            # Its queries say which code is sent, not what the generator reads.
            states = self.generator.states(condition, self.config.num_tokens)
            parts.append(condition._replace(sight=self.relevance.see(normal), states=states))
        check_ranges([(name, values.tolist()) for name, values in unread])
        return Prefix.of(self, self.dtype, pixels, parts)

    @torch.no_grad()
    def decode(self, tokens: DoveTokens, *, batch_size: int = 32) -> Any:
        """Turn tokens back into images.

        Args:
            tokens: from this model's `encode`, possibly truncated, indexed or loaded.
            batch_size: images that run at once.

        Returns:
            Tensor: float32 [B, 3, S, S] in [0, 1], on the model's device. Of tiles instead a list of
                pictures, each float32 [3, H, W], at the resolution that it has in its grid: its own, unless
                it was made to fit (`tokens.tiles.pictures`). Where a tile is missing, the thumbnail is shown.

        Raises:
            TokensError: if the tokens' width or slots are not this model's, tiles are of another size or
                missing without a thumbnail, or an image decodes to NaN
                (looked for on the CPU only: a GPU would have to be waited for).
            ValueError: if batch_size is below 1.
        """
        if not isinstance(tokens, DoveTokens):
            raise TypeError(f"decode takes DoveTokens, as encode returns them, got {type(tokens).__name__}")
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        lead_threads()
        tokens.require(self.config.token_width, self.config.num_tokens, self.config.name)
        if tokens.tiles is not None:
            return list(self.decode_pictures(tokens, batch_size=batch_size))
        tokens = tokens.to(self.device, self.dtype)
        padded = ops.unpack(tokens.tokens, tokens.cu_seqlens, self.config.num_tokens)
        total = len(tokens.tokens) if len(tokens) <= batch_size else None  # of a batch a GPU alone knows it
        images = []
        for start in range(0, len(tokens), batch_size):
            part, lengths = padded[start : start + batch_size], tokens.lengths[start : start + batch_size]
            image = self.render(part, lengths, total=total).float().add(1).div(2).clamp(0, 1).contiguous()
            if image.device.type == "cpu" and (lost := image.isnan().flatten(1).any(1).nonzero()).numel():
                raise TokensError(
                    f"image {start + int(lost[0])} decodes to NaN: its tokens are too large or not finite; "
                    "decode tokens as encode returns them"
                )
            images.append(image)
        if not images:
            return torch.empty(0, 3, self.config.image_size, self.config.image_size, device=self.device)
        return torch.cat(images)

    def decode_pictures(self, tokens: DoveTokens, *, batch_size: int = 32) -> Iterator[Tensor]:
        """`decode` of tiles, one picture after the other: no more than one is held here.

        Args:
            tokens: as for `decode`, with `tiles`.
            batch_size: likewise.

        Yields:
            Tensor: float32 [3, H, W] in [0, 1], on the model's device.

        Raises:
            TokensError: as `decode`, or if these are no tiles.
        """
        if tokens.tiles is None:
            raise TokensError("these tokens are of whole images, not of tiles; use `decode`")
        tokens.require(self.config.token_width, self.config.num_tokens, self.config.name)
        plain, side = replace(tokens, tiles=None), self.config.image_size
        some = partial(self.decode, batch_size=batch_size)
        yield from put_together(tokens.tiles, side, batch_size, lambda rows: some(plain[rows]))

    def reconstruct(self, images: Any, *, batch_size: int = 32, **options: Any) -> tuple[Any, DoveTokens]:
        """`decode(encode(images, **options))`, and the tokens.

        Args:
            images: as for `encode`.
            batch_size: images that run at once.
            **options: of `encode`.

        Returns:
            (Tensor, DoveTokens): as `decode`, and the tokens.

        Raises:
            As `encode`.
        """
        tokens = self.encode(images, batch_size=batch_size, **options)
        return self.decode(tokens, batch_size=batch_size), tokens

    @torch.no_grad()
    def features(
        self,
        images: Any,
        *,
        layer: int | None = None,
        fit: Literal["crop", "squash", "pad"] = "crop",
        batch_size: int = 32,
    ) -> Tensor:
        """What is in a picture, and where: the generator's hidden states at the image's positions (4.3).

        No tokens are made for it. The mean over the positions is what `dove eval probe` classifies.

        Args:
            images: as for `encode`.
            layer: behind how many layers, 0 (the stack's input) to all; None: all but the last, whose output
                at these positions nothing reads.
            fit: how an image becomes square, see `prepare_images`.
            batch_size: images that run at once.

        Returns:
            Tensor: [B, P, hidden] in the model's dtype and on its device; P positions, row by row of a
            square grid, 16 x 16 for 256 x 256 pixels. Not normalised.

        Raises:
            ValueError: if `layer` or `batch_size` is out of range.
            ImageError: if an input is not an image or not in range.
        """
        layers = len(self.generator.stack.layers)
        layer = layers - 1 if layer is None else layer
        if not 0 <= layer <= layers:
            raise ValueError(f"layer must be between 0 and {layers}, got {layer}")
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        pixels, unread = square_images(images, self.config.image_size, fit=fit, device=self.device)
        parts = [
            self.generator.image_states(self.vqgan.encode(normalise(part).to(self.dtype)), layer)
            for part in pixels.split(batch_size)
        ]
        check_ranges([(name, values.tolist()) for name, values in unread])
        return torch.cat(parts)

    # --- Files ----------------------------------------------------------------------------------------

    def check_weights(self, weights: dict[str, Tensor], source: str) -> None:
        """See `Pretrained.check_weights`."""
        require_indices("generator.witness", weights, self.config.vocab_size, source)
        if self.shortcut is None:
            return
        order = require_indices("shortcut.order", weights, self.shortcut.coefficients, source)
        if order.unique().numel() != order.numel():
            raise CheckpointError(
                f"{source}: 'shortcut.order' names a coefficient twice; the file is damaged"
            )
        for name in ("shortcut.scale", *(["region.spread"] if self.region is not None else [])):
            if not weights[name].float().all():
                raise CheckpointError(f"{source}: {name!r} holds a zero; the checkpoint is damaged")

    def load_tokenizer(self, path: str | Path) -> None:
        """Take the tokenizer of text queries from a file; `save_pretrained` writes it beside the weights.

        Args:
            path: a `tokenizer.json` of the library `tokenizers`. It is understood when the first text comes.

        Raises:
            CheckpointError: if the file cannot be read.
            QueryError: if the model has no query weights.
        """
        self.tokenizer = QueryTokenizer.read(Path(path), self.config)

    def load_files(self, folder: Path) -> None:
        """See `Pretrained.load_files`."""
        if self.config.query_vocab_size and (path := folder / TOKENIZER).exists():
            self.load_tokenizer(path)

    def more_files(self) -> dict[str, str]:
        """See `Pretrained.more_files`."""
        return {} if self.tokenizer is None else {TOKENIZER: self.tokenizer.file}

    def card(self) -> str:
        """See `Pretrained.card`."""
        c = self.config
        return self.make_card(
            c.name,
            f"A DOVE image tokenizer: {c.image_size} x {c.image_size} pixels to 1..{c.num_tokens} tokens of "
            f"width {c.token_width}",
            module="dove_ext",
            use='tokens = model.encode(["photo.jpg"])',
        )
