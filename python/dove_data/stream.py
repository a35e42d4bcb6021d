"""Sets of tokens as a shuffled stream, shared out among the workers of loaders and the ranks of a job."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from dove_data.dataset import TokenDataset
from dove_data.settings import DataError
from dove_ext.tokens import DoveTokens


class TokenStream(torch.utils.data.IterableDataset[DoveTokens]):
    """Pictures of sets in an order of chance that disks and networks like.

    Shards are cut into blocks of neighbours; the blocks come in an order of chance, and the pictures of
    `mix` blocks are shuffled among one another. The order depends on `seed` and epoch alone. It is cut into
    as many parts as there are ranks, times workers of each rank's DataLoader: each picture is in exactly one
    part, and parts differ by at most one picture.

    Args:
        folders: as for `TokenDataset`.
        shuffle: False: in the order of the sets.
        seed: of the order.
        block: pictures that are read one after the other.
        mix: blocks that are shuffled together; so many pictures are in memory at most: block * mix.
        rank: of this process among `world`; None: as torch.distributed says when this is called, else 0.
        world: processes that share the pictures; None: likewise, else 1.

    Raises:
        DataError: as `TokenDataset`, or if a number is out of range.

    Example:
        >>> stream = TokenStream("tokens", seed=1)
        >>> loader = DataLoader(stream, batch_size=32, num_workers=4, collate_fn=collate)
        >>> for epoch in range(10):
        ...     stream.set_epoch(epoch)
        ...     for batch in loader:
        ...         ...
    """

    def __init__(
        self,
        folders: str | Path | Sequence[str | Path],
        *,
        shuffle: bool = True,
        seed: int = 0,
        block: int = 64,
        mix: int = 16,
        rank: int | None = None,
        world: int | None = None,
    ) -> None:
        super().__init__()
        if (rank is None) != (world is None):
            raise DataError("rank and world belong together; give both or neither")
        if rank is None or world is None:
            shared = torch.distributed.is_available() and torch.distributed.is_initialized()
            rank = torch.distributed.get_rank() if shared else 0
            world = torch.distributed.get_world_size() if shared else 1
        if not 0 <= rank < world or block < 1 or mix < 1:
            raise DataError(
                f"rank must be from 0 to world - 1, block and mix at least 1, got rank {rank} "
                f"of {world}, {block} and {mix}"
            )
        self.data = TokenDataset(folders)
        self.shuffle, self.seed, self.block, self.mix = shuffle, seed, block, mix
        self.rank, self.world = rank, world
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()  # which persistent workers see, too

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of the next pass."""
        self._epoch.fill_(epoch)

    def __len__(self) -> int:
        """Pictures of this rank."""
        first, last = self._share(self.rank, self.world)
        return last - first

    def __iter__(self) -> Iterator[DoveTokens]:
        info = torch.utils.data.get_worker_info()
        worker, workers = (info.id, info.num_workers) if info is not None else (0, 1)
        first, last = self._share(self.rank * workers + worker, self.world * workers)
        epoch = int(self._epoch)
        pending: list[int] = []
        blocks = 0
        chance = random.Random(f"{self.seed} {epoch} {self.rank} {self.world} {worker} {workers}")
        for start, stop in self._runs(first, last, epoch):
            pending += range(start, stop)
            blocks += 1
            if blocks == self.mix or not self.shuffle:
                yield from self._mixed(pending, chance)
                pending, blocks = [], 0
        yield from self._mixed(pending, chance)

    def _mixed(self, numbers: list[int], chance: random.Random) -> Iterator[DoveTokens]:
        if not self.shuffle:
            yield from map(self.data.__getitem__, numbers)
            return
        pictures = [self.data[number] for number in numbers]  # in the order of the disk
        chance.shuffle(pictures)
        yield from pictures

    def _share(self, part: int, parts: int) -> tuple[int, int]:
        count = len(self.data)
        return part * count // parts, (part + 1) * count // parts

    def _runs(self, first: int, last: int, epoch: int) -> Iterator[tuple[int, int]]:
        """Neighbours that stand at `first` to before `last` in the order of this epoch."""
        starts, ends = self._blocks()
        if self.shuffle:
            order = np.random.default_rng([self.seed, epoch]).permutation(len(starts))
            starts, ends = starts[order], ends[order]
        stops = np.cumsum(ends - starts)
        place = int(np.searchsorted(stops, first, "right"))
        while place < len(stops) and (begin := int(stops[place]) - int(ends[place] - starts[place])) < last:
            start, end = int(starts[place]), int(ends[place])
            yield start + max(0, first - begin), min(end, start + last - begin)
            place += 1

    def _blocks(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """First pictures of all blocks, and those behind their last; no block lies in two shards."""
        sizes = np.diff(self.data.starts)
        counts = -(-sizes // self.block)
        inside = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        starts = np.repeat(self.data.starts[:-1], counts) + inside * self.block
        return starts, np.minimum(starts + self.block, np.repeat(self.data.starts[1:], counts))
