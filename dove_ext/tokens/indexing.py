"""How packed tokens are addressed: lengths to offsets, and a caller's index to image numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dove_ext.errors import TokensError

Array = NDArray[Any]


def describe(tensor: Tensor) -> str:
    """A tensor's dtype and shape, for messages."""
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"


def plain_int(value: Any) -> Any:
    """NumPy's integers as int, anything else as it is."""
    return int(value) if isinstance(value, np.integer) else value


def is_int(value: Any) -> bool:
    """Whether a value is a whole number by its type; True and False are not."""
    return isinstance(value, int) and not isinstance(value, bool)


def cumulate(lengths: Tensor) -> Tensor:
    """int32 [B] to cu_seqlens int32 [B + 1]."""
    cu_seqlens = lengths.new_zeros(len(lengths) + 1, dtype=torch.int32)
    torch.cumsum(lengths, 0, dtype=torch.int32, out=cu_seqlens[1:])
    return cu_seqlens


def offsets_of(lengths: Sequence[int], device: torch.device) -> Tensor:
    """B lengths to cu_seqlens int32 [B + 1] on a device."""
    return cumulate(torch.tensor(lengths, dtype=torch.int32)).to(device)


def whole_numbers(values: Any, device: torch.device, what: str) -> Tensor:
    """Integers as a tensor; `what` is how an error calls them.

    Raises:
        TokensError: if they are of another dtype.
    """
    try:
        numbers = torch.as_tensor(values, device=device)
    except (RuntimeError, ValueError) as error:  # such as of more than 64 bits
        raise TokensError(f"{what} must be whole numbers of at most 64 bits, got {values!r:.100}") from error
    # An empty list is float32 to torch.
    if numbers.numel() and (numbers.is_floating_point() or numbers.dtype == torch.bool):
        raise TokensError(f"{what} must be whole numbers, got {numbers.dtype}")
    return numbers


def image_indices(index: Any, count: int) -> list[int]:
    """The images among `count` that an index means; see `DoveTokens.__getitem__`."""
    if isinstance(index, slice):
        return list(range(count))[index]
    values = index.tolist() if isinstance(index, Tensor | np.ndarray) else index
    values = list(values) if isinstance(values, list | tuple | range) else [values]
    scalars = (Tensor, np.ndarray, np.generic)
    values = [v.item() if isinstance(v, scalars) and v.ndim == 0 else v for v in values]
    if values and all(isinstance(value, bool) for value in values):
        if len(values) != count:
            raise IndexError(
                f"a mask of {len(values)} cannot choose among {count} images; give one value an image"
            )
        return [b for b, value in enumerate(values) if value]
    for value in values:
        if isinstance(value, bool) or not hasattr(value, "__index__"):
            raise TypeError(f"images are chosen by ints, slices, booleans or lists of these, got {value!r}")
        if not -count <= value < count:
            raise IndexError(f"there is no image {value} among {count}")
    return [int(value) % count for value in values]
