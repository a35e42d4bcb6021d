"""The container for a batch of images whose token counts differ."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from dove_ext import ops
from dove_ext.config import MAX_SLOTS
from dove_ext.errors import TokensError
from dove_ext.ops import reference
from dove_ext.ops.backend import has_kernels
from dove_ext.tokens.files import load_fields, save_fields
from dove_ext.tokens.indexing import (
    Array,
    cumulate,
    describe,
    image_indices,
    is_int,
    offsets_of,
    plain_int,
    whole_numbers,
)
from dove_ext.tokens.tiles import Tiles, tiles_of


@dataclass(frozen=True, eq=False, repr=False)
class DoveTokens:
    """Tokens of B images, packed one image after the other.

    Image b has the rows `tokens[cu_seqlens[b] : cu_seqlens[b + 1]]`. The object is immutable (its tensors are
    not): every method returns a new one, sharing memory where it can.

    Attributes:
        tokens: floating point [T, D].
        cu_seqlens: int32 [B + 1] on the same device, from 0 to T, rising by each image's length (1..K).
        num_slots: K, the most tokens an image of this model can have.
        p_eos: float32 [B, K], the model's stop probability at every position, or None. It describes the
            whole curve, so `truncate` leaves it as it is.
        psnr: float32 [B], how close the model's reconstruction from exactly these tokens is to the image, in
            dB, where `encode` was given a `target_psnr`, or None. `truncate` drops it.
        relevance: float32 [B, h, w] of values 0 to 1, how much each place of the image counted, where
            `encode` was to `return_relevance`, or None.
        model: name of the model that made the tokens, or None if it is not known.
        names: one name an image (the `dove` command stores file names here), or None.
        tiles: of pictures that were cut into tiles (`encode(tiles=...)`), which picture each image here is a
            tile of, and where it lies; or None. Everywhere else in this class an image is one tile:
            `tokens[0]` is a tile, `truncate` cuts every tile, and so on; `picture(0)` has all tiles of one.

    Raises:
        TokensError: on construction, if ranks, dtypes, sizes or devices do not fit together; on the CPU also
            if `cu_seqlens` does not run from 0 to T in steps of 1..K (a GPU would have to be waited for).
    """

    tokens: Tensor
    cu_seqlens: Tensor
    num_slots: int
    p_eos: Tensor | None = None
    model: str | None = None
    names: tuple[str, ...] | None = None
    psnr: Tensor | None = None
    relevance: Tensor | None = None
    tiles: Tiles | None = None

    def __post_init__(self) -> None:
        tokens, cu_seqlens = self.tokens, self.cu_seqlens
        if tokens.dim() != 2 or not tokens.is_floating_point() or tokens.shape[1] == 0:
            raise TokensError(f"tokens must be floating point [T, D], got {describe(tokens)}")
        if cu_seqlens.dim() != 1 or cu_seqlens.dtype != torch.int32 or cu_seqlens.numel() == 0:
            raise TokensError(f"cu_seqlens must be int32 [B + 1], got {describe(cu_seqlens)}")
        beside = (self.p_eos, self.psnr, self.relevance)
        devices = {str(t.device) for t in (tokens, cu_seqlens, *beside) if t is not None}
        if len(devices) > 1:
            raise TokensError(f"the tensors are on {' and '.join(sorted(devices))}; move them to one device")
        object.__setattr__(self, "num_slots", plain_int(self.num_slots))
        if not is_int(self.num_slots):
            raise TokensError(f"num_slots must be a whole number, got {self.num_slots!r}")
        if not 1 <= self.num_slots <= MAX_SLOTS:
            raise TokensError(f"num_slots must be between 1 and {MAX_SLOTS}, got {self.num_slots}")
        shape = (len(self), self.num_slots)
        if self.p_eos is not None and (self.p_eos.shape != shape or self.p_eos.dtype != torch.float32):
            raise TokensError(f"p_eos must be float32 {list(shape)}, got {describe(self.p_eos)}")
        if self.psnr is not None and (self.psnr.shape != shape[:1] or self.psnr.dtype != torch.float32):
            raise TokensError(f"psnr must be float32 [{len(self)}], got {describe(self.psnr)}")
        maps = self.relevance
        if maps is not None and (maps.dim() != 3 or len(maps) != len(self) or maps.dtype != torch.float32):
            raise TokensError(f"relevance must be float32 [{len(self)}, h, w], got {describe(maps)}")
        if self.names is not None and len(self.names) != len(self):
            raise TokensError(f"there are {len(self.names)} names for {len(self)} images; give one each")
        tiles_of(self.tiles, len(self))
        if cu_seqlens.device.type == "cpu" and not torch.compiler.is_compiling():
            self._check_offsets()

    def _check_offsets(self) -> None:
        first, last = int(self.cu_seqlens[0]), int(self.cu_seqlens[-1])
        if first != 0 or last != self.tokens.shape[0]:
            raise TokensError(
                f"cu_seqlens must run from 0 to T = {self.tokens.shape[0]}, got {first} to {last}"
            )
        lengths = self.lengths
        wrong = ((lengths < 1) | (lengths > self.num_slots)).nonzero()
        if len(wrong):
            b = int(wrong[0])
            raise TokensError(
                f"image {b} has {int(lengths[b])} tokens; every image must have 1 to {self.num_slots}"
            )

    # --- Sizes ----------------------------------------------------------------------------------------

    def __len__(self) -> int:
        return self.cu_seqlens.shape[0] - 1

    @property
    def lengths(self) -> Tensor:
        """Tokens of each image, int32 [B]."""
        return self.cu_seqlens.diff()

    @property
    def width(self) -> int:
        """D, the width of a token."""
        return self.tokens.shape[1]

    @property
    def device(self) -> torch.device:
        """Where tokens and cu_seqlens are."""
        return self.tokens.device

    @property
    def dtype(self) -> torch.dtype:
        """The tokens' dtype."""
        return self.tokens.dtype

    def __repr__(self) -> str:
        images, total = len(self), self.tokens.shape[0]
        mean = f", mean {total / images:.1f} of {self.num_slots}" if images else ""
        of = "image" if self.tiles is None else "tile"
        count = f"{images} {of}{'s' * (images != 1)}"
        if self.tiles is not None:
            pictures = len(self.tiles.pictures)
            count += f" of {pictures} picture{'s' * (pictures != 1)}"
        return (
            f"DoveTokens({count}, {total} token{'s' * (total != 1)}{mean}, "
            f"width {self.width}, {str(self.dtype).removeprefix('torch.')}, {self.device})"
        )

    def require(self, width: int, num_slots: int, model: str | None = None) -> None:
        """Refuse tokens that another model made.

        Args:
            width: D of the model that is to decode.
            num_slots: its K.
            model: its name; not compared when either side's is None.

        Raises:
            TokensError: naming what differs.
        """
        remedy = "decode with the model that made them" + (f", {self.model!r}" if self.model else "")
        if (self.width, self.num_slots) != (width, num_slots):
            raise TokensError(
                f"the tokens are {self.width} wide in {self.num_slots} slots, but this model needs "
                f"{width} in {num_slots}; {remedy}"
            )
        if self.model is not None and model is not None and self.model != model:
            raise TokensError(
                f"the tokens were made by {self.model!r}, but this model is {model!r}; {remedy}"
            )

    # --- Choosing images ------------------------------------------------------------------------------

    def __getitem__(self, index: int | slice | Sequence[int] | Sequence[bool] | Tensor | Array) -> DoveTokens:
        """Choose images: an int (a batch of one), a slice, ints or booleans in a list, tensor or array.

        Raises:
            IndexError: if an index is out of range or a mask has another length than B.
            TypeError: if the index is of another kind.
        """
        return self._select(image_indices(index, len(self)), self.cu_seqlens.tolist())

    def __iter__(self) -> Iterator[DoveTokens]:
        """Each image as a batch of one."""
        offsets = self.cu_seqlens.tolist()
        return (self._select([b], offsets) for b in range(len(self)))

    def picture(self, number: int) -> DoveTokens:
        """All tiles of one picture, its thumbnail first if it has one; `tiles.rows` says which images.

        Args:
            number: which of `tiles.pictures`; -1 is the last.

        Raises:
            IndexError: if there is no such picture.
            TokensError: if these are no tiles.
        """
        if self.tiles is None:
            raise TokensError("these tokens are of whole images, not of tiles; index them: tokens[0]")
        return self[self.tiles.rows(number)]

    def _select(self, chosen: list[int], offsets: list[int]) -> DoveTokens:
        parts = [self.tokens[offsets[b] : offsets[b + 1]] for b in chosen]
        if chosen and chosen == list(range(chosen[0], chosen[0] + len(chosen))):
            tokens = self.tokens[offsets[chosen[0]] : offsets[chosen[-1] + 1]]  # neighbours: a view
        else:
            tokens = torch.cat(parts) if parts else self.tokens[:0]
        return replace(
            self,
            tokens=tokens,
            cu_seqlens=offsets_of([len(part) for part in parts], self.device),
            p_eos=None if self.p_eos is None else self.p_eos[chosen],
            psnr=None if self.psnr is None else self.psnr[chosen],
            relevance=None if self.relevance is None else self.relevance[chosen],
            names=None if self.names is None else tuple(self.names[b] for b in chosen),
            tiles=None if self.tiles is None else self.tiles.select(chosen),
        )

    def truncate(self, length: int | Sequence[int] | Tensor) -> DoveTokens:
        """Keep the first tokens of every image; images that are shorter stay as they are.

        Args:
            length: the most tokens to keep, at least 1: one number, or one an image.

        Raises:
            TokensError: if a length is below 1 or no whole number, or there is not one an image.
        """
        limits = whole_numbers(length, self.device, "lengths to truncate to")
        if limits.dim() > 1 or (limits.dim() == 1 and len(limits) != len(self)):
            raise TokensError(
                f"give one length, or one for each of the {len(self)} images, got {list(limits.shape)}"
            )
        if limits.numel() and int(limits.min()) < 1:
            raise TokensError(f"an image keeps at least 1 token; cannot truncate to {int(limits.min())}")
        lengths = torch.minimum(self.lengths, limits.clamp(max=self.num_slots).int())
        kept = [part[:n] for part, n in zip(self.to_list(), lengths.tolist(), strict=True)]
        tokens = torch.cat(kept) if kept else self.tokens
        return replace(self, tokens=tokens, cu_seqlens=cumulate(lengths), psnr=None)

    # --- Other layouts --------------------------------------------------------------------------------

    def to_list(self) -> list[Tensor]:
        """B tensors [n_b, D], views of `tokens`."""
        return list(torch.split(self.tokens, self.lengths.tolist())) if len(self) else []

    def to_padded(self, max_len: int | None = None) -> tuple[Tensor, Tensor]:
        """Spread to one row an image, zeros behind its end. Differentiable.

        Args:
            max_len: L, at least the longest length; None: the longest length.

        Returns:
            (Tensor, Tensor): tokens [B, L, D], and a mask bool [B, L], true where there is a token.

        Raises:
            TokensError: if an image is longer than `max_len`.
        """
        lengths = self.lengths
        longest = int(lengths.max()) if len(self) else 0
        max_len = longest if max_len is None else max_len
        if max_len < longest:
            raise TokensError(f"an image has {longest} tokens, more than max_len={max_len}; truncate first")
        mask = torch.arange(max_len, device=self.device) < lengths[:, None]
        # Tokens may be kept in dtypes that no model computes in, such as float16 on the CPU.
        unpack = ops.unpack if has_kernels(self.tokens) else reference.unpack
        return unpack(self.tokens, self.cu_seqlens, max_len), mask

    def to_nested(self) -> Tensor:
        """A `torch.nested` tensor of jagged layout, [B, n_b, D], sharing memory with `tokens`."""
        lengths = self.lengths
        nested: Tensor = torch.nested.nested_tensor_from_jagged(
            self.tokens,
            offsets=self.cu_seqlens.long(),
            min_seqlen=int(lengths.min()) if len(self) else 0,
            max_seqlen=int(lengths.max()) if len(self) else 0,
        )
        return nested

    @staticmethod
    def from_list(tokens: Sequence[Tensor], num_slots: int, **fields: Any) -> DoveTokens:
        """Pack one tensor [n_b, D] an image; `fields` are the remaining attributes.

        Raises:
            TokensError: if the list is empty, or the tensors do not fit together.
        """
        if not tokens:
            raise TokensError("the list of token tensors is empty; give one tensor [n, D] an image")
        first = tokens[0]
        for b, part in enumerate(tokens):
            if part.dim() != 2 or (part.shape[1], part.dtype, part.device) != (
                first.shape[-1],
                first.dtype,
                first.device,
            ):
                raise TokensError(
                    f"image {b} has {describe(part)}, not [n, D] like image 0 ({describe(first)})"
                )
        cu_seqlens = offsets_of([len(part) for part in tokens], first.device)
        return DoveTokens(torch.cat(list(tokens)), cu_seqlens, num_slots, **fields)

    @staticmethod
    def from_padded(
        padded: Tensor, lengths: Tensor | Sequence[int], num_slots: int | None = None, **fields: Any
    ) -> DoveTokens:
        """Pack [B, L, D]; what stands behind a length is never read.

        Args:
            padded: [B, L, D].
            lengths: [B], each 1..L.
            num_slots: K; None: L.
            **fields: the remaining attributes.

        Raises:
            TokensError: if a length is not in 1..L or no whole number, or there is not one an image.
        """
        if padded.dim() != 3:
            raise TokensError(f"padded tokens must be [B, L, D], got {describe(padded)}")
        lengths = whole_numbers(lengths, padded.device, "lengths")
        if lengths.shape != padded.shape[:1]:
            raise TokensError(f"lengths must have the shape [{padded.shape[0]}], got {list(lengths.shape)}")
        if len(lengths) and not 1 <= int(lengths.min()) <= int(lengths.max()) <= padded.shape[1]:
            raise TokensError(f"lengths must be between 1 and L = {padded.shape[1]}, got {lengths.tolist()}")
        cu_seqlens = cumulate(lengths.int())
        pack = ops.pack if has_kernels(padded) else reference.pack
        num_slots = padded.shape[1] if num_slots is None else num_slots
        return DoveTokens(pack(padded, cu_seqlens), cu_seqlens, num_slots, **fields)

    @staticmethod
    def cat(batches: Sequence[DoveTokens]) -> DoveTokens:
        """Join batches of one model.

        `p_eos`, `psnr`, `relevance` and `names` are kept if every batch has them, else None.

        Raises:
            TokensError: if the list is empty, or model, width, slots, dtype, device or maps' shapes differ,
                or some are of tiles and some are not.
        """
        if not batches:
            raise TokensError("there are no tokens to join; give at least one DoveTokens")
        first = batches[0]
        for batch in batches[1:]:
            for name in ("model", "num_slots", "width", "dtype", "device"):
                a, b = getattr(first, name), getattr(batch, name)
                if a != b:
                    raise TokensError(f"cannot join tokens whose {name} differs: {a!r} and {b!r}")
        curves = [b.p_eos for b in batches if b.p_eos is not None]
        reached = [b.psnr for b in batches if b.psnr is not None]
        maps = [b.relevance for b in batches if b.relevance is not None]
        if len({m.shape[1:] for m in maps}) > 1:
            raise TokensError("cannot join tokens whose relevance has maps of different shapes")
        names = [b.names for b in batches if b.names is not None]
        tiles = [b.tiles for b in batches if b.tiles is not None]
        if 0 < len(tiles) < len(batches):
            raise TokensError("cannot join tokens of tiles and of whole images; `decode` would mix them up")
        return replace(
            first,
            tokens=torch.cat([b.tokens for b in batches]),
            cu_seqlens=cumulate(torch.cat([b.lengths for b in batches])),
            p_eos=torch.cat(curves) if len(curves) == len(batches) else None,
            psnr=torch.cat(reached) if len(reached) == len(batches) else None,
            relevance=torch.cat(maps) if len(maps) == len(batches) else None,
            names=tuple(n for part in names for n in part) if len(names) == len(batches) else None,
            tiles=Tiles.cat(tiles) if tiles else None,
        )

    # --- Moving and keeping ---------------------------------------------------------------------------

    def to(self, *args: Any, **kwargs: Any) -> DoveTokens:
        """Change device or dtype, with the arguments of `Tensor.to`; the dtype concerns `tokens` only."""
        tokens = self.tokens.to(*args, **kwargs)
        # On a CPU the offsets are checked at once, so they must have arrived.
        non_blocking = bool(kwargs.get("non_blocking", False)) and tokens.device.type != "cpu"
        return self._map(lambda t: t.to(tokens.device, non_blocking=non_blocking), tokens)

    def cpu(self) -> DoveTokens:
        """Move to the CPU."""
        return self.to("cpu")

    def cuda(self, device: int | str | torch.device = "cuda") -> DoveTokens:
        """Move to a GPU."""
        return self.to(torch.device(device))

    def pin_memory(self) -> DoveTokens:
        """Copy to page-locked memory (data loaders call this)."""
        return self._map(lambda t: t.pin_memory(), self.tokens.pin_memory())

    def _map(self, change: Any, tokens: Tensor) -> DoveTokens:
        beside = {name: getattr(self, name) for name in _TENSORS[1:]}
        changed = {name: change(tensor) for name, tensor in beside.items() if tensor is not None}
        return replace(self, tokens=tokens, **changed)

    def __getstate__(self) -> dict[str, Any]:
        """What is pickled or copied: of a view just its own values, not the batch behind it."""
        state = {field.name: getattr(self, field.name) for field in fields(self)}
        for name, value in state.items():
            if isinstance(value, Tensor) and value.untyped_storage().nbytes() > value.nbytes:
                state[name] = value.clone()
        return state

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a safetensors file, whole or not at all; see `dove_ext.tokens.files`.

        Raises:
            TokensError: if `load` would refuse the file: of tokens that are not finite, for example.
            OutputError: if it cannot be written.
        """
        tokens = self.cpu()  # where the offsets are checked
        save_fields(path, {field.name: getattr(tokens, field.name) for field in fields(tokens)})

    @staticmethod
    def load(path: str | os.PathLike[str]) -> DoveTokens:
        """Read a file of `save`, which may come from a stranger: everything is checked.

        Returns:
            DoveTokens: on the CPU.

        Raises:
            TokensError: if the file is missing, damaged, not of this kind, or its contents contradict one
                another.
        """
        values = load_fields(path)
        try:
            return DoveTokens(**values)
        except TokensError as error:
            raise TokensError(f"{str(path)!r} is not valid: {error}") from error


_TENSORS = ("tokens", "cu_seqlens", "p_eos", "psnr", "relevance")
_REST = ("num_slots", "model", "names", "tiles")


def _flatten(tokens: DoveTokens) -> tuple[list[Any], Any]:
    there = tuple(name for name in _TENSORS if getattr(tokens, name) is not None)
    rest = (getattr(tokens, name) for name in _REST[:-1])
    tiles = None if tokens.tiles is None else tokens.tiles.to_json()
    return [getattr(tokens, name) for name in there], (there, *rest, tiles)


def _unflatten(leaves: Any, context: Any) -> DoveTokens:
    # Past the checks: tree functions put other things than tensors in the leaves' places.
    tokens = object.__new__(DoveTokens)
    there, *rest, tiles = context
    values = dict.fromkeys((*_TENSORS, *_REST)) | dict(zip(there, leaves, strict=True))
    values |= dict(zip(_REST, rest, strict=False))
    values["tiles"] = None if tiles is None else Tiles.from_json(tiles)
    for field in fields(DoveTokens):
        object.__setattr__(tokens, field.name, values[field.name])
    return tokens


def _from_json(context: Any) -> Any:
    there, num_slots, model, names, tiles = context
    return tuple(there), num_slots, model, None if names is None else tuple(names), tiles


pytree.register_pytree_node(
    DoveTokens,
    _flatten,
    _unflatten,
    serialized_type_name="dove_ext.tokens.DoveTokens",
    to_dumpable_context=list,  # JSON has no tuples
    from_dumpable_context=_from_json,
)
