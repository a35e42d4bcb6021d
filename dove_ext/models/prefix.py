"""Images that the generator has seen: what all queries about them share (Q-DOVE, 2.3)."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from dove_ext.devices import send
from dove_ext.errors import ImageError, QueryError
from dove_ext.models.generator import Condition
from dove_ext.tokens.indexing import image_indices


@dataclass(frozen=True, eq=False)
class Prefix:
    """What `DoveModel.prefix` makes of B images: `model.encode(seen, query=...)` starts from here.

    In the sequence [H_v ; query ; t] no position of an image sees a query, so keys and values of these
    positions hold for any. They are valid until the model's weights change. `seen[0]`, `seen[2:5]`,
    `seen[[3, 3, 1]]` (an image as often as one has queries for it) and `seen[mask]` choose images, as in
    `DoveTokens`.

    Attributes:
        pixels: [B, 3, S, S], uint8 or float32 in [0, 1], for `target_psnr`.
        condition: of the model's `condition` and its generator's `see`; for dove-base 6 MB an image in
            float32.
    """

    pixels: Tensor
    condition: Condition
    _model: weakref.ReferenceType[nn.Module]
    _dtype: torch.dtype

    @classmethod
    def of(cls, model: nn.Module, dtype: torch.dtype, pixels: Tensor, parts: list[Condition]) -> Prefix:
        """All images [B, 3, S, S] from the conditions of their batches, without queries.

        Args:
            model: whose prefix it is.
            dtype: of its weights.
            pixels: as for the attribute.
            parts: at least one.
        """
        joined = (None if fields[0] is None else torch.cat(fields) for fields in zip(*parts, strict=True))
        return cls(pixels, Condition(*joined), weakref.ref(model), dtype)  # type: ignore[arg-type]

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, index: Any) -> Prefix:
        """Some of the images, in this order.

        Args:
            index: a number, a slice, a list of numbers or a mask.

        Raises:
            IndexError: if there is no such image.
            TypeError: if it is something else.
        """
        chosen = torch.tensor(image_indices(index, len(self)), dtype=torch.int64, device=self.pixels.device)
        return self._each(lambda x: x[chosen])

    def __iter__(self) -> Iterator[Prefix]:
        return (self[i] for i in range(len(self)))

    def to(self, device: str | torch.device) -> Prefix:
        """The same on a device; `encode` takes a prefix on any, and brings each batch to the model's."""
        there = torch.device(device)
        return self._each(lambda x: send(x, there))

    def rows(self, part: slice) -> Prefix:
        """Neighbouring images, sharing memory."""
        return self._each(lambda x: x[part])

    def _each(self, change: Any) -> Prefix:
        values = (None if x is None else change(x) for x in self.condition)
        condition = Condition(*values)  # type: ignore[arg-type]
        return replace(self, pixels=change(self.pixels), condition=condition)

    def require(self, model: nn.Module, dtype: torch.dtype) -> None:
        """Refuse another model's prefix, one of no image, or one in another dtype than the weights have now.

        Raises:
            ImageError: if there is no image.
            QueryError: otherwise, with the remedy.
        """
        if not len(self):
            raise ImageError("the prefix holds no image; choose at least one")
        if self._model() is not model:
            raise QueryError("this prefix is another model's; make one with this model's `prefix`")
        if self._dtype != dtype:
            raise QueryError(
                f"this prefix was made in {self._dtype} and the model is in {dtype} now; make it anew with "
                "`prefix`"
            )
