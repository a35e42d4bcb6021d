"""A few rows of the case table, forward and backward, for compute-sanitizer: each kind of block runs once.

    compute-sanitizer --tool memcheck python -m benchmarks.gpu.sanitize [--dry-run]

Rows whose vocabulary or image is large take hours under it and add no path through a kernel.
"""

from __future__ import annotations

import argparse
import sys
import time

import torch

from tests.cases import CASES
from tests.cases.compare import compare_backward, compare_forward

from . import device

ROWS = set(
    """
attention-65_prefix_33 attention-dim128 attention-dim48 attention-kv_lens_poisoned attention-packed
attention-packed_cache attention-cache_64_of_320_prefix_256 attention-257 attention-packed_more_queries
eos_scan-257_positions eos_scan-witness eos_scan-own_last_rows_refute eos_scan-strided
eos_probability-257_positions eos_probability-strided eos_probability-two_words
group_norm-31_pixels group_norm-residual_odd_channels group_norm-slice group_norm-wide
group_norm-bias_many_chunks group_norm-bias_residual_odd_channels
residual_sum-mixed residual_sum-odd residual_sum-pad_only
pair_norm-257 pair_norm-wide pair_norm-paper_width bias_gelu-odd_width add_branches-odd_width
pack-ragged unpack-ragged zero_tail-strided lengths_to_cu_seqlens-600
""".split()  # noqa: SIM905
)
DRY_ROWS = ("zero_tail-strided", "pair_norm-257")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--dry-run", action="store_true", help="two rows on the CPU")
    dry = parser.parse_args(arguments).dry_run
    if not dry:
        device.require_gpu()
    chosen = [case for case in CASES if str(case) in (DRY_ROWS if dry else ROWS)]
    failed, begun = 0, time.perf_counter()
    for case in chosen:
        for dtype in (torch.bfloat16, torch.float32):
            for check in (compare_forward, compare_backward)[: 2 if case.grads else 1]:
                try:
                    check(case, dtype, "cpu" if dry else "cuda")
                except Exception as error:  # the other rows are to be seen as well
                    failed += 1
                    print(f"FAILED {case} {dtype} {check.__name__}: {str(error)[:200]!r}", flush=True)
    print(f"{len(chosen)} rows, {failed} failures, {time.perf_counter() - begun:.0f} s")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
