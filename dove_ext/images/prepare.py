"""From whatever a caller has to the model's input: [B, 3, size, size] in [-1, 1].

Everything goes one way: to a [B, 3, H, W] tensor, then through one antialiased bicubic filter in float32. So
the same picture gives the same numbers to the last bit, be it a path, a PIL image, a numpy array or a tensor,
as long as it is filtered on the same kind of device.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Literal, NamedTuple, TypeAlias, Union, get_args

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from dove_ext.devices import send
from dove_ext.errors import ImageError
from dove_ext.fork import lead_threads
from dove_ext.images.files import pil_to_tensor, read_image

ImageLike: TypeAlias = Union[Tensor, "npt.NDArray[np.generic]", Image.Image, str, "os.PathLike[str]"]
Images: TypeAlias = ImageLike | Sequence[ImageLike]
Fit: TypeAlias = Literal["crop", "squash", "pad"]

# Cropping or padding a 20000 x 1 strip to a square leaves a picture of nothing; squashing keeps all of it.
MAX_ASPECT = 100
# Floats this far outside [0, 1] are taken for rounding of an earlier step (half an 8-bit level) and clamped.
SLACK = 0.5 / 255
MID_GREY = 0.5


class Squares(NamedTuple):
    """Images that have the model's size, but not yet its range.

    Attributes:
        pixels: [B, 3, S, S], contiguous: uint8, or float32 in [0, 1].
        unread: of floats that stay on GPUs, what they are called and their least and largest value, float64
            [2] beside the pixels. Nobody has looked at these: a GPU would be waited for (`check_ranges`).
    """

    pixels: Tensor
    unread: list[tuple[str, Tensor]]


def prepare_images(images: Images, size: int, *, fit: Fit = "crop") -> Tensor:
    """Turn images into the model's input.

    Args:
        images: one image, a batch, or a list or tuple that mixes single images of any kinds and sizes:

            - tensor [3, H, W] or [B, 3, H, W], uint8 or float in [0, 1] (grey: 1 channel);
            - numpy array [H, W, 3], [N, H, W, 3] or grey [H, W], uint8 or float in [0, 1];
            - PIL image, or the path of a picture file (see `read_image`).

            Floats within half an 8-bit level of [0, 1] are clamped.
        size: side S of the result.
        fit: what to do with a picture that is not square.

            - "crop": its largest centred square, resized.
            - "squash": all of it, resized to a square; shapes are distorted.
            - "pad": all of it, undistorted, in the middle of a mid-grey square (the VLM protocol).

    Returns:
        Tensor: float32 [B, 3, S, S] in [-1, 1], contiguous; on the device of the first tensor among the
        images, else on the CPU. Gradients flow back to float tensors.

    Raises:
        ImageError: if a file cannot be used (see `read_image`), a tensor is sparse, nested, of 8-bit floats
            or on the meta device, an array has another rank, channel count or dtype, holds NaN or values
            outside [0, 1], there is no image at all, or for "crop" and "pad" one side is more than
            `MAX_ASPECT` (100) times the other.
    """
    squares = square_images(images, size, fit=fit)
    check_ranges([(name, values.tolist()) for name, values in squares.unread])
    return normalise(squares.pixels)


def square_images(
    images: Images, size: int, *, fit: Fit = "crop", device: torch.device | None = None
) -> Squares:
    """`prepare_images` but for the last step, `normalise`, and without a wait for a GPU.

    Args:
        images: as for `prepare_images`.
        size: likewise.
        fit: likewise.
        device: where they are wanted. 8-bit pixels stay 8-bit on the way there, and what is to be resized is
            resized there. None: the device of the first tensor among the images, else the CPU.

    Raises:
        ImageError: as `prepare_images`, except for the values of floats on a GPU.
    """
    if fit not in get_args(Fit):
        raise ImageError(f"fit must be one of {', '.join(map(repr, get_args(Fit)))}, got {fit!r}")
    if size < 1:
        raise ImageError(f"size must be at least 1 pixel, got {size}")
    lead_threads()
    single = not isinstance(images, list | tuple)
    if not single and not images:
        raise ImageError("the list of images is empty; give at least one image")
    listed: Sequence[ImageLike] = [images] if single else images  # type: ignore[list-item, assignment]
    if device is None:
        tensors = (image.device for image in listed if isinstance(image, Tensor))
        device = next(tensors, torch.device("cpu"))
    fitted, unread = [], []
    for index, image in enumerate(listed):
        name = describe_image(image, None if single else index)
        if not single and isinstance(image, Tensor | np.ndarray) and image.ndim == 4:
            raise ImageError(f"{name} is itself a batch; list single images, or pass the batch alone")
        batch = to_batch(image, name)
        if batch.is_floating_point():
            low_high = torch.stack(batch.detach().aminmax())
            if batch.is_cuda and device.type == "cuda":
                unread.append((name, low_high.double().to(device)))  # to be read with what else is there
            else:
                check_ranges([(name, low_high.tolist())])
        fitted.append(_fit(batch, size, fit, name, device))
    if any(batch.dtype != torch.uint8 for batch in fitted):
        fitted = [unit(batch) for batch in fitted]
    pixels = fitted[0] if len(fitted) == 1 else torch.cat(fitted)
    return Squares(send(pixels.contiguous(), device), unread)


def normalise(squares: Tensor) -> Tensor:
    """The model's range: uint8, or float32 in [0, 1], to float32 in [-1, 1] of the same shape."""
    return unit(squares) * 2 - 1


def check_ranges(ranges: Sequence[tuple[str, Sequence[float]]]) -> None:
    """Refuse floats that are no picture.

    Args:
        ranges: what each image is called, and its least and largest value.

    Raises:
        ImageError: if one holds NaN or values outside [0, 1] by more than half an 8-bit level.
    """
    for name, (low, high) in ranges:
        if not (-float("inf") < low and high < float("inf")):  # false for NaN, too
            raise ImageError(f"{name} holds NaN or infinite values; replace them first")
        if low < -SLACK or high > 1 + SLACK:
            hint = ""
            if low >= 0 and high > 1.5:
                hint = ": divide by 255?"
            elif -1 - SLACK <= low < 0 and high <= 1 + SLACK:
                hint = ": use (x + 1) / 2?"
            elif low < 0:
                hint = ": undo their normalisation (x * std + mean)?"
            raise ImageError(
                f"{name} has values from {low:.3g} to {high:.3g}; floats must lie in [0, 1]{hint}"
            )


def unit(batch: Tensor) -> Tensor:
    """Float32 in [0, 1]."""
    return batch.float().div(255) if batch.dtype == torch.uint8 else batch


def describe_image(image: object, index: int | None = None) -> str:
    """What errors call an image, which is one of a list if it has an index."""
    if isinstance(image, str | os.PathLike):
        return repr(os.fspath(image))
    kinds = {Tensor: "tensor", np.ndarray: "array", Image.Image: "PIL image"}
    kind = next((kind for cls, kind in kinds.items() if isinstance(image, cls)), type(image).__name__)
    return f"the {kind}" if index is None else f"images[{index}] ({kind})"


def to_batch(image: object, name: str) -> Tensor:
    """One image or a batch as uint8 or float [B, 3, H, W], checked."""
    if isinstance(image, Tensor):
        _check_storage(image, name)
        return _check_values(_check_tensor_shape(image, name), name)
    if isinstance(image, np.ndarray):
        return _check_values(_array_to_tensor(image, name), name)
    if isinstance(image, Image.Image):
        return pil_to_tensor(image, name)[None]
    if isinstance(image, str | os.PathLike):
        return read_image(image)[None]
    raise ImageError(
        f"{name} is no image; give a tensor, a numpy array, a PIL image, a path, or a list of these"
    )


def _check_storage(image: Tensor, name: str) -> None:
    """Refuse tensors whose values are not there one by one; most of PyTorch has no answer for them either."""
    if image.is_nested:  # has no shape to ask for
        raise ImageError(f"{name} is nested; give a list of its images: list(tensor.unbind())")
    if image.layout != torch.strided:
        layout = str(image.layout).removeprefix("torch.")
        raise ImageError(f"{name} has the memory layout {layout}; make it dense: use .to_dense()")
    if image.is_meta:
        raise ImageError(
            f"{name} is on the meta device, where tensors hold no values; load or make real ones"
        )
    if image.is_floating_point() and image.element_size() < 2:
        dtype = str(image.dtype).removeprefix("torch.")
        raise ImageError(f"{name} has dtype {dtype}; use .float(), or uint8 in 0..255")


def _check_tensor_shape(image: Tensor, name: str) -> Tensor:
    shape = list(image.shape)
    if image.dim() not in (3, 4):
        raise ImageError(f"{name} has shape {shape}; a tensor must be [3, H, W] or [B, 3, H, W]")
    if shape[-3] not in (1, 3):
        layout = "permute(2, 0, 1)" if len(shape) == 3 else "permute(0, 3, 1, 2)"
        hint = f"; it looks channels-last: use .{layout}" if shape[-1] in (1, 3) else "; convert it to RGB"
        raise ImageError(f"{name} of shape {shape} has {shape[-3]} channels instead of 3{hint}")
    batch = image if image.dim() == 4 else image[None]
    return batch.expand(-1, 3, -1, -1)


def _array_to_tensor(image: npt.NDArray[np.generic], name: str) -> Tensor:
    shape = list(image.shape)
    if image.ndim == 2:
        image = image[:, :, None]
    if image.ndim not in (3, 4):
        raise ImageError(f"{name} has shape {shape}; an array must be [H, W, 3], [N, H, W, 3] or grey [H, W]")
    if image.shape[-1] not in (1, 3):
        hint = "; convert it to RGB, or pass a PIL image, whose transparency is laid over white"
        if image.shape[-3] in (1, 3):
            hint = "; it looks channels-first: pass torch.from_numpy(array) instead"
        raise ImageError(f"{name} of shape {shape} has {image.shape[-1]} channels instead of 3{hint}")
    if image.dtype.kind not in "fiub":
        raise ImageError(f"{name} has dtype {image.dtype}; use uint8 in 0..255 or float in [0, 1]")
    if image.dtype.kind == "u" and image.dtype.itemsize == 2:
        raise ImageError(f"{name} has dtype uint16; use uint8 in 0..255 or float in [0, 1]: divide by 65535?")
    if image.dtype.itemsize > 8:
        image = image.astype(np.float64)
    # A copy in native byte order: torch takes no negative strides, foreign byte orders or read-only memory.
    tensor = torch.from_numpy(np.array(image, dtype=image.dtype.newbyteorder("="), order="C"))
    tensor = tensor if tensor.dim() == 4 else tensor[None]
    return tensor.permute(0, 3, 1, 2).expand(-1, 3, -1, -1)


def _check_values(batch: Tensor, name: str) -> Tensor:
    shape = list(batch.shape)
    if shape[0] == 0:
        raise ImageError(f"{name} is an empty batch ({shape}); give at least one image")
    if 0 in shape:
        raise ImageError(
            f"{name} has no pixels ({shape[-2]} x {shape[-1]}); give a picture of at least 1 x 1"
        )
    if batch.dtype != torch.uint8 and not batch.is_floating_point():
        raise ImageError(f"{name} has dtype {str(batch.dtype)[6:]}; use uint8 in 0..255 or float in [0, 1]")
    return batch


def _fit(batch: Tensor, size: int, fit: Fit, name: str, device: torch.device) -> Tensor:
    """[B, 3, H, W] to [B, 3, S, S]: uint8 of this size as it is, else float32 in [0, 1] there."""
    height, width = batch.shape[-2:]
    if fit != "squash" and max(height, width) > MAX_ASPECT * min(height, width):
        sides = f"{width} x {height} pixels, more than {MAX_ASPECT} to 1"
        raise ImageError(f"{name} has {sides}, too long for fit={fit!r}; cut it first or use fit='squash'")
    if fit == "crop":
        # Cut first, then resize: the long ends of a panorama are never filtered.
        side = min(height, width)
        top, left = (height - side) // 2, (width - side) // 2
        batch = batch[..., top : top + side, left : left + side]
    if batch.dtype == torch.uint8 and batch.shape[-2:] == (size, size):
        return batch
    batch = send(batch, device)
    if fit != "pad":
        return _resize(batch, size, size)
    scale = size / max(height, width)
    inner = _resize(batch, max(1, round(height * scale)), max(1, round(width * scale)))
    bottom, right = size - inner.shape[-2], size - inner.shape[-1]
    margins = (right // 2, right - right // 2, bottom // 2, bottom - bottom // 2)
    return F.pad(inner, margins, value=MID_GREY)


def _resize(batch: Tensor, height: int, width: int) -> Tensor:
    """Antialiased bicubic to float32 [B, 3, height, width] in [0, 1]."""
    planes = []
    for channel in range(3):
        # One channel at a time, made contiguous: a third of the float copy of a large photograph, and one
        # code path of the filter whatever memory layout the caller's array has.
        plane = unit(batch[:, channel : channel + 1].contiguous()).float()
        if plane.shape[-2:] != (height, width):
            plane = F.interpolate(plane, size=(height, width), mode="bicubic", antialias=True)
        planes.append(plane)
    return torch.cat(planes, dim=1).clamp(0, 1)  # the filter overshoots at edges
