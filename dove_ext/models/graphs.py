"""`DoveModel.encode` as CUDA graphs: the kernels of a whole batch are recorded once and started as one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from dove_ext.models.dove import DoveModel

Encoded = tuple[Tensor, Tensor, Tensor | None]  # padded tokens, lengths, p_eos
# num_tokens, limit, threshold and whole_curve of DoveModel.encode_at_once.
LengthControls = tuple[int | None, int, float | None, bool]

# Runs before a capture: libraries choose their kernels and take their workspaces in these.
_WARM_UP = 3


def graph_size(count: int, batch_size: int) -> int:
    """Images of the graph that serves `count` of them: the next power of two, at most `batch_size`."""
    return min(batch_size, 1 << (count - 1).bit_length())


def filled_up(rows: Tensor, count: int) -> Tensor:
    """`rows` [n, ...] with copies of the last row behind them, [count, ...]; an image ignores its batch."""
    if rows.shape[0] == count:
        return rows
    return torch.cat([rows, rows[-1:].expand(count - rows.shape[0], *rows.shape[1:])])


class _Recorded:
    """One graph with the memory that it reads and writes."""

    def __init__(
        self, model: DoveModel, pixels: Tensor, query: Tensor | None, controls: LengthControls
    ) -> None:
        self.pixels = pixels.clone(memory_format=torch.contiguous_format)
        self.query = None if query is None else query.clone()
        stream = torch.cuda.Stream(pixels.device)
        stream.wait_stream(torch.cuda.current_stream(pixels.device))
        with torch.cuda.stream(stream):
            for _ in range(_WARM_UP):
                model.encode_at_once(self.pixels, self.query, *controls)
        torch.cuda.current_stream(pixels.device).wait_stream(stream)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.encoded = model.encode_at_once(self.pixels, self.query, *controls)

    def replay(self, pixels: Tensor, query: Tensor | None) -> Encoded:
        self.pixels.copy_(pixels)
        if self.query is not None and query is not None:
            self.query.copy_(query)
        self.graph.replay()
        tokens, lengths, p_eos = self.encoded
        # The next replay writes over these.
        return tokens.clone(), lengths.clone(), None if p_eos is None else p_eos.clone()


class EncodeGraphs:
    """The graphs of one model, each recorded when it is first needed.

    A graph holds addresses: it is recorded again when the model's weights have moved. Copies of a model start
    without graphs.
    """

    def __init__(self) -> None:
        self._recorded: dict[Any, _Recorded] = {}
        self._weights: tuple[int, ...] = ()

    def __deepcopy__(self, memo: Any) -> EncodeGraphs:
        return EncodeGraphs()

    def __reduce__(self) -> tuple[type[EncodeGraphs], tuple[()]]:
        return EncodeGraphs, ()

    def run(
        self,
        model: DoveModel,
        pixels: Tensor,
        query: Tensor | None,
        batch_size: int,
        controls: LengthControls,
    ) -> Encoded:
        """`model.encode_at_once` of up to `batch_size` images [n, 3, S, S] through a graph.

        Returns:
            As `encode_at_once`, for the n images.
        """
        weights = tuple(t.data_ptr() for t in (*model.parameters(), *model.buffers()))
        if weights != self._weights:
            self._recorded.clear()
            self._weights = weights
        count = pixels.shape[0]
        size = graph_size(count, batch_size)
        pixels = filled_up(pixels, size)
        query = None if query is None else filled_up(query, size)
        key = (size, controls, None if query is None else (query.shape, query.dtype))
        if key not in self._recorded:
            with torch.cuda.device(pixels.device):
                self._recorded[key] = _Recorded(model, pixels, query, controls)
        tokens, lengths, p_eos = self._recorded[key].replay(pixels, query)
        return tokens[:count], lengths[:count], None if p_eos is None else p_eos[:count]
