"""Rows for eos_scan and eos_probability.

Where ties matter the inputs are small integers: float32 sums are then exact, and float64 must agree to the
letter.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from tests.cases.case import Case, Inputs


def _random(
    dtype: torch.dtype,
    *,
    images: int,
    positions: int,
    width: int,
    vocabulary: int,
    eos_id: int = 0,
    ends: tuple[int, ...] = (),
    bias: torch.dtype | None = None,
    witness: int | None = None,
    strided: bool = False,
) -> Inputs:
    """Gaussian logits of deviation 3; image i is pushed towards EOS at position ends[i]."""
    generator = torch.Generator().manual_seed(images + 10 * positions + vocabulary)
    hidden = torch.randn(images, positions, width, generator=generator)
    weight = 3 * width**-0.5 * torch.randn(vocabulary, width, generator=generator)
    for image, end in enumerate(ends):
        hidden[image, end] += 4 * weight[eos_id]
    if strided:  # neither images nor positions nor rows are dense
        hidden = torch.stack([hidden, torch.full_like(hidden, float("nan"))], 2).transpose(0, 1).contiguous()
        hidden = hidden.transpose(0, 1)[:, :, 0]
        weight = torch.cat([weight, torch.full_like(weight, float("nan"))], 1)[:, :width]
    hidden = hidden.to(dtype)
    weight = weight.to(dtype)
    inputs: Inputs = {"hidden": hidden, "weight": weight, "eos_id": eos_id}
    if bias is not None:
        inputs["bias"] = torch.randn(vocabulary, generator=generator).to(
            dtype if bias is torch.bfloat16 else bias
        )
    if witness is not None:
        inputs["witness"] = torch.randint(vocabulary, (witness,), generator=generator).int()
    return inputs


def _integers(
    dtype: torch.dtype, *, vocabulary: int, eos_id: int, high: int = 2, positions: int = 65
) -> Inputs:
    """Few distinct logits, so that EOS meets equals above and below its index."""
    generator = torch.Generator().manual_seed(vocabulary + eos_id)
    hidden = torch.randint(-high, high + 1, (3, positions, 7), generator=generator).to(dtype)
    weight = torch.randint(-high, high + 1, (vocabulary, 7), generator=generator).to(dtype)
    weight[eos_id] = weight.abs().amax(0)  # never beaten where the hidden state is positive, often equalled
    hidden[:, positions // 2] = 1
    bias = torch.randint(-1, 2, (vocabulary,), generator=generator).to(dtype)
    bias[eos_id] = 1
    witness = torch.tensor([vocabulary - 1, 0, eos_id], dtype=torch.int32)
    return {"hidden": hidden, "weight": weight, "bias": bias, "eos_id": eos_id, "witness": witness}


def _equal_row(dtype: torch.dtype, *, eos_id: int, equal: int, vocabulary: int = 900) -> Inputs:
    """One row equals that of EOS; all others lose everywhere."""
    hidden = torch.ones(2, 33, 4, dtype=dtype)
    weight = torch.zeros(vocabulary, 4, dtype=dtype)
    weight[eos_id] = weight[equal] = 1
    return {"hidden": hidden, "weight": weight, "eos_id": eos_id}


def _last_row(dtype: torch.dtype, *, own_rows: bool, vocabulary: int = 5000, positions: int = 100) -> Inputs:
    """Refutation never bites early: only the last rows beat EOS, one for all or one each."""
    hidden = torch.zeros(2, positions, positions + 1, dtype=dtype)
    hidden[..., -1] = 1
    hidden[:, range(positions), range(positions)] = 1
    weight = torch.zeros(vocabulary, positions + 1, dtype=dtype)
    weight[0, -1] = 1
    if own_rows:
        for position in range(positions - 1):
            weight[vocabulary - 1 - position, position] = 2
    else:
        weight[-1, : positions - 1] = 2
    return {"hidden": hidden, "weight": weight, "witness": torch.arange(1, 40, dtype=torch.int32)}


def _not_numbers(dtype: torch.dtype, *, where: str) -> Inputs:
    """EOS would win at position 3; what is not a number decides."""
    inputs = _integers(dtype, vocabulary=400, eos_id=5)
    hidden, weight = inputs["hidden"], inputs["weight"]
    hidden[:, 3] = 3
    if where == "position":
        hidden[0, 3, 2] = float("nan")
        hidden[1, 3] = float("inf")
    elif where == "row":
        weight[399, 1] = float("nan")
    elif where == "eos_row":
        weight[5, 1] = float("nan")
    elif where == "infinite_bias":
        inputs["bias"][17] = float("-inf")
        inputs["bias"][5] = float("inf")
    return inputs


def one_rounding(vocabulary: int) -> Inputs:
    """float32 in which the last row beats EOS by 2^-24 if its products are fused with their sum.

    A product that is rounded first leaves the row level with EOS. No row of the table: either is right, but
    one kernel must not do this and another that.
    """
    hidden = torch.tensor([[[1, 1 + 2**-12]]])
    weight = torch.tensor([[-1.0, 0]]).repeat(vocabulary, 1)
    weight[0] = 0
    weight[-1] = torch.tensor([-(1 + 2**-11), 1 + 2**-12])
    return {"hidden": hidden, "weight": weight}


def _row(images: int, positions: int, width: int, vocabulary: int, **more: Any) -> Inputs:
    return {"images": images, "positions": positions, "width": width, "vocabulary": vocabulary, **more}


_SHAPES = {
    "no_positions": _row(2, 0, 8, 5),
    "no_images": _row(0, 4, 8, 5),
    "one": _row(1, 1, 1, 2),
    "one_word": _row(2, 3, 5, 1),
    "two_words": _row(3, 257, 33, 2, ends=(200, 31), bias=torch.float32),
    "block_of_32": _row(1, 32, 256, 2, eos_id=1),
    "31_positions": _row(3, 31, 64, 777, ends=(0, 30), eos_id=776),
    "257_positions": _row(2, 257, 65, 1000, ends=(256, 128), eos_id=500),
    "bias": _row(2, 40, 48, 900, ends=(9, 35), bias=torch.bfloat16),
    "late_in_a_round": _row(3, 65, 32, 600, ends=(60, 50, 64)),
    "strided": _row(3, 40, 24, 500, ends=(9, 35), strided=True),
    "paper_vocabulary": _row(2, 40, 64, 50304, ends=(39, 21)),
}
# What the paper's vocabulary stresses are its tiles and splits: an emulated gradient has a row's width and
# positions for each of its words to get through.
_SUMMED = {**_SHAPES, "paper_vocabulary": _row(2, 20, 16, 50304, ends=(19, 11))}

CASES = [
    *(Case("eos_scan", name, partial(_random, **row)) for name, row in _SHAPES.items()),
    Case("eos_scan", "no_witness", partial(_random, **{**_SHAPES["257_positions"], "witness": 0})),
    Case("eos_scan", "tile_of_witness", partial(_random, **{**_SHAPES["257_positions"], "witness": 128})),
    Case("eos_scan", "witness", partial(_random, **{**_SHAPES["257_positions"], "witness": 100})),
    *(
        Case(
            "eos_scan",
            f"ties_{vocabulary}_{eos_id}",
            partial(_integers, vocabulary=vocabulary, eos_id=eos_id),
        )
        for vocabulary, eos_id in ((2, 0), (2, 1), (64, 63), (65, 3), (800, 0), (800, 411), (800, 799))
    ),
    Case("eos_scan", "equal_row_above", partial(_equal_row, eos_id=7, equal=881)),
    Case("eos_scan", "equal_row_below", partial(_equal_row, eos_id=881, equal=7)),
    Case("eos_scan", "all_equal", partial(_integers, vocabulary=300, eos_id=0, high=0)),
    Case("eos_scan", "all_equal_late", partial(_integers, vocabulary=300, eos_id=299, high=0)),
    Case("eos_scan", "only_last_row_refutes", partial(_last_row, own_rows=False)),
    Case("eos_scan", "own_last_rows_refute", partial(_last_row, own_rows=True)),
    *(
        Case("eos_scan", f"nan_{where}", partial(_not_numbers, where=where))
        for where in ("position", "row", "eos_row", "infinite_bias")
    ),
    *(
        Case(
            "eos_probability",
            name,
            partial(_random, **row),
            grads=("hidden", "weight", "bias") if "bias" in row else ("hidden", "weight"),
        )
        for name, row in _SUMMED.items()
    ),
]
