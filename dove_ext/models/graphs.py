"""`DoveModel.encode` as CUDA graphs: the kernels of a whole batch are recorded once and started as one."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from dove_ext.ops.backend import current_backend

Encoded = tuple[Tensor, Tensor, Tensor | None]  # padded tokens, lengths, p_eos
Encode = Callable[[Tensor, Tensor | None], Encoded]  # of pixels and query; nothing in it waits for the device

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


def _settings() -> tuple[Any, ...]:
    """What decides, besides the model, which kernels a recording holds."""
    return (
        current_backend(),
        torch.is_autocast_enabled("cuda"),
        torch.get_autocast_dtype("cuda"),
        torch.backends.fp32_precision,  # type: ignore[attr-defined]
        torch.backends.cuda.matmul.fp32_precision,
        torch.backends.cudnn.conv.fp32_precision,  # type: ignore[attr-defined]
    )


class _Recorded:
    """One graph with the memory that it reads and writes."""

    def __init__(self, encode: Encode, pixels: Tensor, query: Tensor | None) -> None:
        self.pixels = pixels.clone(memory_format=torch.contiguous_format)
        self.query = None if query is None else query.clone()
        stream = torch.cuda.Stream(pixels.device)
        stream.wait_stream(torch.cuda.current_stream(pixels.device))
        self.graph = torch.cuda.CUDAGraph()
        # The cast weights that autocast would keep are freed when it ends; the graph needs its own.
        lowered = torch.is_autocast_enabled("cuda"), torch.get_autocast_dtype("cuda")
        with torch.autocast("cuda", enabled=lowered[0], dtype=lowered[1], cache_enabled=False):
            with torch.cuda.stream(stream):
                for _ in range(_WARM_UP):
                    encode(self.pixels, self.query)
            torch.cuda.current_stream(pixels.device).wait_stream(stream)
            with torch.cuda.graph(self.graph):
                self.encoded = encode(self.pixels, self.query)
        self.done = torch.cuda.Event()

    def replay(self, pixels: Tensor, query: Tensor | None) -> Encoded:
        stream = torch.cuda.current_stream(pixels.device)
        stream.wait_event(self.done)  # of the replay before, which another stream may still be running
        self.pixels.copy_(pixels)
        if self.query is not None and query is not None:
            self.query.copy_(query)
        self.graph.replay()
        tokens, lengths, p_eos = self.encoded
        # The next replay writes over these.
        copies = tokens.clone(), lengths.clone(), None if p_eos is None else p_eos.clone()
        self.done.record(stream)
        return copies


class EncodeGraphs:
    """The graphs of one model, each recorded when it is first needed.

    A graph holds addresses: it is recorded again when the model's weights have moved. Copies of a model start
    without graphs. Threads take turns, for all replays of a graph read and write the same memory.
    """

    def __init__(self) -> None:
        self._turn = threading.Lock()
        self._recorded: dict[Any, _Recorded] = {}
        self._weights: tuple[int, ...] = ()

    def __deepcopy__(self, memo: Any) -> EncodeGraphs:
        return EncodeGraphs()

    def __reduce__(self) -> tuple[type[EncodeGraphs], tuple[()]]:
        return EncodeGraphs, ()

    def run(
        self,
        model: nn.Module,
        encode: Encode,
        pixels: Tensor,
        query: Tensor | None,
        *,
        batch_size: int,
        kind: Any,
    ) -> Encoded:
        """`encode(pixels, query)` of up to `batch_size` images [n, 3, S, S] through a graph.

        Args:
            model: whose weights the graph reads.
            encode: what is recorded.
            pixels: on the model's device.
            query: [n, ...] there, or None.
            batch_size: the most images of a graph.
            kind: hashable; tells apart what `encode` does, besides the shapes.

        Returns:
            As `encode`, for the n images.
        """
        count = pixels.shape[0]
        size = graph_size(count, batch_size)
        pixels = filled_up(pixels, size)
        query = None if query is None else filled_up(query, size)
        key = (size, kind, None if query is None else (query.shape, query.dtype), _settings())
        with self._turn:
            weights = tuple(t.data_ptr() for t in (*model.parameters(), *model.buffers()))
            if weights != self._weights:
                self._recorded.clear()
                self._weights = weights
            if key not in self._recorded:
                with torch.cuda.device(pixels.device):
                    self._recorded[key] = _Recorded(encode, pixels, query)
            tokens, lengths, p_eos = self._recorded[key].replay(pixels, query)
        return tokens[:count], lengths[:count], None if p_eos is None else p_eos[:count]
