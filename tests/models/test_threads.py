"""One model, many threads."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import torch

from tests.models.micro import micro, photos

THREADS, CALLS = 32, 1


def test_threads_share_a_model() -> None:
    """Each call's tokens and pictures are those of the call alone, whatever the others do meanwhile."""
    model, images = micro(), photos(8)
    jobs = [(start % 6, 1 + start % 3, 8 + start % 5) for start in range(THREADS * CALLS)]

    def work(job: tuple[int, int, int]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        start, count, most = job
        tokens = model.encode(images[start : start + count], max_tokens=most)
        return tokens.tokens, tokens.lengths, model.decode(tokens)

    before = torch.get_num_threads()
    torch.set_num_threads(2)  # so that kernels ask for the pool, which one of them has at a time
    try:
        alone = {job: work(job) for job in dict.fromkeys(jobs)}
        with ThreadPoolExecutor(THREADS) as pool:
            for job, made in zip(jobs, pool.map(work, jobs), strict=True):
                assert all(map(torch.equal, made, alone[job])), job
    finally:
        torch.set_num_threads(before)
