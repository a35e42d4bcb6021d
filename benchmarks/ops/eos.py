"""eos_scan against matmul + arg-max, and against its own full scan where refutation never bites.

    python -m benchmarks.ops.eos [--json PATH]

"clusters" is the realistic setting: Gaussian weights; a hidden state is one of 300 frequent rows, drawn with
Zipf frequencies, plus noise, so that this row wins nearly always; one position of each image, from 100 on, is
planted for EOS. The witness rows are the 256 that won most often on another draw. The adversarial settings
give every position but the last to EOS until the very last rows of the vocabulary: "one row" refutes all of
them, "own rows" has another row for each position.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from dove_ext import _C, ops
from dove_ext.ops import library, reference

from .. import timing
from ..record import Record, arguments

VOCABULARY, POSITIONS, WIDTH = 50304, 256, 512
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
Inputs = dict[str, Any]


def clusters(images: int, dtype: torch.dtype, *, witness: bool, vocabulary: int | None = None) -> Inputs:
    words = vocabulary or VOCABULARY
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(words, WIDTH, generator=generator)
    frequent = 1 + torch.randperm(words - 1, generator=generator)[:300]
    zipf = 1 / torch.arange(1, 301, dtype=torch.float32)

    def draw(count: int) -> Tensor:
        chosen = frequent[torch.multinomial(zipf, count, replacement=True, generator=generator)]
        return 0.1 * (weight[chosen] + 1.5 * torch.randn(count, WIDTH, generator=generator))

    hidden = draw(images * POSITIONS).view(images, POSITIONS, WIDTH)
    for image in range(images):
        hidden[image, 100 + 7 * (image % 23)] = 0.1 * weight[0]
    inputs: Inputs = {"hidden": hidden.to(dtype), "weight": weight.to(dtype)}
    if witness:
        wins = (draw(4096) @ weight.T).argmax(-1).bincount(minlength=words)
        inputs["witness"] = wins.argsort(descending=True)[:256].int()
    return inputs


def adversarial(images: int, dtype: torch.dtype, *, own_rows: bool) -> Inputs:
    hidden = torch.zeros(images, POSITIONS, WIDTH)
    hidden[..., -1] = 1
    hidden[:, range(POSITIONS), range(POSITIONS)] = 1
    weight = torch.zeros(VOCABULARY, WIDTH)
    weight[0, -1] = 1
    if own_rows:
        weight[VOCABULARY - 1 - torch.arange(POSITIONS - 1), range(POSITIONS - 1)] = 2
    else:
        weight[-1, : POSITIONS - 1] = 2
    witness = torch.arange(1, 257, dtype=torch.int32)
    return {"hidden": hidden.to(dtype), "weight": weight.to(dtype), "witness": witness}


def two_words(images: int, dtype: torch.dtype, positions: int) -> Inputs:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(images, positions, 256, generator=generator)
    weight = torch.randn(2, 256, generator=generator)
    hidden -= weight[0] - weight[1]  # mostly "go on"
    return {"hidden": hidden.to(dtype), "weight": weight.to(dtype), "bias": torch.zeros(2)}


def matmul_argmax(hidden: Tensor, weight: Tensor, bias: Tensor | None = None, **_: Any) -> Tensor:
    """What one writes without this op: all logits, then arg-max."""
    logits = torch.nn.functional.linear(hidden, weight, None if bias is None else bias.to(hidden.dtype))
    ends = logits.argmax(-1) == 0
    return torch.where(ends.any(1), ends.int().argmax(1), hidden.shape[1]).int()


def full_scan(hidden: Tensor, weight: Tensor, **_: Any) -> Tensor:
    """The same kernel with no witness and every position in the first round."""
    images, positions, width = hidden.shape
    first = torch.empty(images, dtype=torch.int32)
    library.call(
        "cpu_eos_scan", _C.EosArgs, hidden, hidden=hidden, weight=weight, first=first, batch=images,
        positions=positions, width=width, vocabulary=weight.shape[0], hidden_stride_image=hidden.stride(0),
        hidden_stride_position=hidden.stride(1), weight_stride_row=weight.stride(0),
        first_round=images * positions, dtype=hidden.dtype,
    )  # fmt: skip
    return first


def check(inputs: Inputs, others: dict[str, Callable[..., Tensor]]) -> None:
    expected = reference.eos_scan(**inputs)
    for name, function in {"ours": ops.eos_scan, **others}.items():
        # The logits of matmul + arg-max in bfloat16 are rounded and may tie: not held against it.
        if name != "torch" or inputs["hidden"].dtype == torch.float32:
            assert function(**inputs).tolist() == expected.tolist(), f"{name} differs from the reference"


SETTINGS: tuple[tuple[str, Callable[[int, torch.dtype], Inputs], bool], ...] = (
    ("clusters", lambda n, t: clusters(n, t, witness=True), False),
    ("clusters, no witness", lambda n, t: clusters(n, t, witness=False), False),
    ("adversarial, one row", lambda n, t: adversarial(n, t, own_rows=False), True),
    ("adversarial, own rows", lambda n, t: adversarial(n, t, own_rows=True), True),
    ("two words, K=32", lambda n, t: two_words(n, t, 32), False),
    ("two words, K=256", lambda n, t: two_words(n, t, 256), False),
)
"""Name, inputs, and whether the full scan is timed too."""


def main(options: list[str] | None = None) -> int:
    args = arguments(__doc__ or "", seconds=4.0).parse_args(options)
    if args.threads:
        torch.set_num_threads(args.threads)
    record = Record("ops.eos", args.json, options)
    for images in args.batches or ((1,) if args.quick else (1, 8)):
        for name in ("bf16",) if args.quick else DTYPES:
            for label, make, with_full in (SETTINGS[2], SETTINGS[4]) if args.quick else SETTINGS:
                inputs = make(images, DTYPES[name])
                others: dict[str, Callable[..., Tensor]] = {"torch": matmul_argmax}
                if with_full:
                    others["full scan"] = full_scan
                check(inputs, others)
                calls = {"ours": lambda i=inputs: ops.eos_scan(**i)}
                calls |= {other: lambda f=f, i=inputs: f(**i) for other, f in others.items()}
                rounds, warmup = (1, 0) if args.quick else (5, 2)
                times = timing.interleave(calls, seconds=args.seconds, min_rounds=rounds, warmup=warmup)
                shapes = {key: list(t.shape) for key, t in inputs.items()}
                record.add(
                    f"{label}, B={images}, {name}",
                    {"setting": label, "shapes": shapes, "dtype": name},
                    timing.compare(times, "ours"),
                )
    return 0


if __name__ == "__main__":
    sys.exit(main())
