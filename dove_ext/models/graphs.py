"""`DoveModel.encode` as CUDA graphs: the kernels of a whole batch are recorded once and started as one."""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor, nn

from dove_ext.models.batches import Encode, Encoded
from dove_ext.models.query import Query
from dove_ext.ops.backend import current_backend

# Runs before a capture: libraries choose their kernels and take their workspaces in these.
_WARM_UP = 3
# Recordings that a model keeps (sizes of batches times ways to choose lengths); then the oldest goes.
_KEPT = 32


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

    def __init__(self, encode: Encode, pixels: Tensor, query: Query | None, pool: Any) -> None:
        self.pixels = pixels.clone(memory_format=torch.contiguous_format)
        self.query = None if query is None else query.each(torch.clone)
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
            # Other threads of a program may allocate memory meanwhile, which "global" would forbid.
            with torch.cuda.graph(self.graph, pool=pool, capture_error_mode="thread_local"):
                self.encoded = encode(self.pixels, self.query)

    def replay(self, pixels: Tensor, query: Query | None) -> Encoded:
        # Behind these rows stand the images of an earlier replay; an image ignores its batch.
        self.pixels[: len(pixels)].copy_(pixels, non_blocking=True)
        if self.query is not None and query is not None:
            for held, new in zip(self.query, query, strict=True):
                if held is not None and new is not None:
                    held[: len(new)].copy_(new, non_blocking=True)
        self.graph.replay()
        # The next replay writes over these.
        return Encoded(*(None if x is None else x.clone() for x in self.encoded))  # type: ignore[arg-type]


class _Weights:
    """Where the weights of a model are, found again without a walk through its modules."""

    def __init__(self, model: nn.Module) -> None:
        modules = list(model.modules())
        self._children = [(m._modules, tuple(m._modules.values())) for m in modules if m._modules]
        self._tensors = [
            (held, name, tensor.data_ptr())
            for module in modules
            for held in (module._parameters, module._buffers)
            for name, tensor in held.items()
            if tensor is not None
        ]

    def in_place(self) -> bool:
        """Whether every module and every weight is where it was."""
        if any(tuple(now.values()) != then for now, then in self._children):
            return False
        for held, name, address in self._tensors:
            tensor = held.get(name)
            if tensor is None or tensor.data_ptr() != address:
                return False
        return True


class EncodeGraphs:
    """The graphs of one model, each recorded when it is first needed.

    A graph holds addresses: it is recorded again when the model's weights have moved. Copies of a model start
    without graphs. Threads take turns, and so do streams: all graphs share one pool of memory.
    """

    def __init__(self) -> None:
        self._turn = threading.Lock()
        self._recorded: OrderedDict[Any, _Recorded] = OrderedDict()
        self._weights: _Weights | None = None
        self._pool: Any = None
        self._done: torch.cuda.Event | None = None  # of the last replay

    def __deepcopy__(self, memo: Any) -> EncodeGraphs:
        return EncodeGraphs()

    def __reduce__(self) -> tuple[type[EncodeGraphs], tuple[()]]:
        return EncodeGraphs, ()

    def run(
        self,
        model: nn.Module,
        encode: Encode,
        pixels: Tensor,
        query: Query | None,
        *,
        batch_size: int,
        kind: Any,
    ) -> Encoded:
        """`encode(pixels, query)` of up to `batch_size` images [n, 3, S, S] through a graph.

        Args:
            model: whose weights the graph reads.
            encode: what is recorded; nothing in it waits for the device.
            pixels: on the model's device.
            query: of the n images, there, or None.
            batch_size: the most images of a graph.
            kind: hashable; tells apart what `encode` does, besides shapes and dtypes.

        Returns:
            As `encode`, for the n images.

        Raises:
            RuntimeError: if it cannot be recorded.
        """
        count = pixels.shape[0]
        size = graph_size(count, batch_size)
        of_query = None
        if query is not None:
            of_query = tuple(None if x is None else (x.shape[1:], x.dtype) for x in query)
        key = (size, pixels.shape[1:], pixels.dtype, of_query, kind, _settings())
        with self._turn, torch.cuda.device(pixels.device):
            if self._weights is None or not self._weights.in_place():
                self._forget(all_but=0)
                self._weights, self._pool = _Weights(model), torch.cuda.graph_pool_handle()
            if key not in self._recorded:
                self._forget(all_but=_KEPT - 1)
                full = None if query is None else query.each(lambda x: filled_up(x, size))
                self._record(key, encode, filled_up(pixels, size), full)
            self._recorded.move_to_end(key)
            stream = torch.cuda.current_stream(pixels.device)
            if self._done is not None:
                stream.wait_event(self._done)  # another stream may still be replaying
            encoded = self._recorded[key].replay(pixels, query)
            self._done = torch.cuda.Event()
            self._done.record(stream)
        return encoded.of_first(count)

    def _forget(self, all_but: int) -> None:
        """Let the graphs go that were not used for longest, whose memory others may have at once."""
        if len(self._recorded) > all_but and self._done is not None:
            self._done.synchronize()
        while len(self._recorded) > all_but:
            self._recorded.popitem(last=False)

    def _record(self, key: Any, encode: Encode, pixels: Tensor, query: Query | None) -> None:
        try:
            self._recorded[key] = _Recorded(encode, pixels, query, self._pool)
        except RuntimeError as error:
            raise RuntimeError(
                f"this model's encode cannot be recorded as a CUDA graph ({error}); "
                "a hook that waits for the device? Pass cuda_graph=False"
            ) from error
