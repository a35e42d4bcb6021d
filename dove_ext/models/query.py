"""Text queries as the generator takes them, each of its own length: [H_v ; query ; t] (Q-DOVE, 2.3)."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from dove_ext.config import DoveConfig
from dove_ext.devices import send
from dove_ext.errors import QueryError


class Query(NamedTuple):
    """The queries of B images.

    Attributes:
        values: ids int64 [B, Q] of a model with query weights, or embeddings [B, Q, hidden] of any model's
            generator; of a model with a relevance map, embeddings of words, [B, Q, word_width].
        lengths: int32 [B], 1..Q; what stands behind them changes nothing, but ids have to be ids there, too.
            None: all rows are whole.
    """

    values: Tensor
    lengths: Tensor | None = None

    def rows(self, part: slice) -> Query:
        """Those of some images; on a CPU no longer than the longest of them."""
        values, lengths = self.values[part], self.lengths
        if lengths is None:
            return Query(values)
        lengths = lengths[part]
        if lengths.device.type != "cpu" or not len(lengths):
            return Query(values, lengths)
        least, most = (int(n) for n in lengths.aminmax())
        return Query(values[:, :most], None if least == most else lengths)

    def padded(self, length: int) -> Query:
        """The same queries in rows of this length, with `lengths`."""
        more = length - self.values.shape[1]
        lengths = self.lengths
        if lengths is None:
            whole = self.values.shape[1]
            lengths = torch.full((len(self.values),), whole, dtype=torch.int32, device=self.values.device)
        behind = (0, more) if self.values.dim() == 2 else (0, 0, 0, more)
        return Query(F.pad(self.values, behind), lengths)

    def each(self, change: Callable[[Tensor], Tensor]) -> Query:
        """The same with both tensors changed."""
        return Query(change(self.values), None if self.lengths is None else change(self.lengths))

    def to(self, device: torch.device) -> Query:
        """The same on a device."""
        return self.each(lambda x: send(x, device))

    def check(self, count: int, config: DoveConfig) -> None:
        """Refuse what does not fit so many images or the model; on a GPU values are not looked at.

        Raises:
            QueryError: saying what does not fit.
        """
        values, lengths, width = self.values, self.lengths, config.query_width
        for name, given in (("values", values), ("lengths", lengths)):
            if not isinstance(given, Tensor) and (name == "values" or given is not None):
                raise QueryError(f"a query's {name} must be a tensor, got {type(given).__name__}")
        ids = not values.is_floating_point()
        if ids and not config.query_vocab_size:
            raise QueryError(
                "this model embeds no query ids (query_vocab_size is 0); pass embeddings [B, Q, hidden]"
            )
        right = values.dim() == 2 and values.dtype == torch.int64 if ids else values.shape[2:] == (width,)
        if not right or not values.shape[1]:
            raise QueryError(
                f"query must be ids int64 [B, Q] or embeddings [B, Q, {width}] with Q at least 1, got "
                f"{values.dtype} {list(values.shape)}"
            )
        if len(values) != count:
            raise QueryError(f"query has {len(values)} rows for {count} images; give one row an image")
        if ids and values.shape[1] > config.query_length:
            raise QueryError(
                f"query has rows of {values.shape[1]} ids, the model takes {config.query_length} at most"
            )
        if ids and values.device.type == "cpu" and count:
            least, most = (int(n) for n in values.aminmax())
            if not 0 <= least <= most < config.query_vocab_size:
                raise QueryError(
                    f"query has ids from {least} to {most}; this model knows 0 to "
                    f"{config.query_vocab_size - 1}"
                )
        if lengths is None:
            return
        if lengths.dtype != torch.int32 or lengths.shape != (count,):
            raise QueryError(
                f"the lengths of query must be int32 [{count}], got {lengths.dtype} {list(lengths.shape)}"
            )
        if lengths.device.type == "cpu" and count:
            least, most = (int(n) for n in lengths.aminmax())
            if not 1 <= least <= most <= values.shape[1]:
                raise QueryError(f"the lengths of query must be 1..{values.shape[1]}, got {least} to {most}")


def followed(query: Tensor, lengths: Tensor, times: Tensor) -> Tensor:
    """Each image's query, what follows it, and padding behind both, where causal attention hides it.

    Args:
        query: [B, Q, hidden], of which the first `lengths` rows are read.
        lengths: int32 [B], 1..Q.
        times: [B, n, hidden].

    Returns:
        Tensor: [B, Q + n, hidden]: image b's times stand at `lengths[b]`.. as if it were alone. Behind them
        stands the last one again: something finite.
    """
    most, count = query.shape[1], times.shape[1]
    place = torch.arange(most + count, device=query.device)
    own = lengths.long()[:, None]
    source = torch.where(place < own, place, (place - own).clamp_max(count - 1) + most)
    return torch.cat([query, times], dim=1).take_along_dim(source[..., None], dim=1)


def outputs(query: Query | None, count: int) -> int:
    """How many of the last positions hold the first `count` times of all images, see `followed`."""
    return count if query is None or query.lengths is None else query.values.shape[1] + count


def at_times(hidden: Tensor, query: Query | None, count: int) -> Tensor:
    """Of hidden states [B, `outputs`, D] those at the first `count` times: [B, count, D]."""
    if query is None or query.lengths is None:
        return hidden
    place = torch.arange(count, device=hidden.device) + query.lengths.long()[:, None]
    return hidden.take_along_dim(place[..., None], dim=1)
