"""Pictures from files and into files: every odd kind becomes plain 8-bit RGB, or one clear error."""

from __future__ import annotations

import os
import stat
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from dove_ext.atomic import atomic_write
from dove_ext.errors import ImageError
from dove_ext.images.colours import stored_form, to_rgb

# Read from the header, before anything is decoded: 128 million pixels are 384 MB as RGB, enough for every
# camera on sale, and a few kilobytes of a crafted PNG cannot ask for more.
MAX_PIXELS = 128_000_000

# Only decoders that parse pixels: Pillow would hand an EPS to Ghostscript, which runs programs. HEIF is
# there when a plug-in has registered it.
FORMATS = ("JPEG", "MPO", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF", "HEIF", "JPEG2000")
# How such files are called, for finding them in folders.
# fmt: off
IMAGE_SUFFIXES = frozenset((
    ".jpg", ".jpeg", ".jfif", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".pgm", ".avif",
    ".heic", ".heif", ".jp2",
))
# fmt: on

_ORIENTATION_TAG = 0x0112
_ORIENTATIONS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

# warnings.catch_warnings changes state of the whole process; data loaders read from several threads.
_open_lock = threading.Lock()


def read_image(path: str | os.PathLike[str]) -> Tensor:
    """Read a picture file as 8-bit RGB.

    The EXIF orientation is applied, transparency is laid over white, 16-bit grey is scaled to 8 bits rather
    than clipped, and of an animation the first frame is taken. Colours are taken as they are stored, as
    torchvision and timm take them: embedded ICC profiles and PNG's gAMA are not applied, and palette, grey
    and CMYK become RGB by formula (`PIL.ImageCms.profileToProfile` converts a picture first, where a profile
    other than sRGB matters). Formats: JPEG, PNG, WebP, GIF, BMP, TIFF, PPM, AVIF, JPEG 2000, and HEIF where
    a plug-in for Pillow is registered.

    Args:
        path: the file.

    Returns:
        Tensor: uint8 [3, H, W] on the CPU.

    Raises:
        ImageError: if the file is missing, unreadable, empty, not a picture, truncated or larger than
            `MAX_PIXELS` (128 million) pixels (a large picture is refused before it is decoded), or its
            numbers have no known black and white: floats, signed or 32-bit integers, and depths that Pillow
            misreads.
    """
    with open_image(path) as picture:
        return pil_to_tensor(picture, repr(str(path)))


@contextmanager
def open_image(path: str | os.PathLike[str]) -> Iterator[Image.Image]:
    """A picture file while the block runs: the header has been read, `upright_rgb` decodes the rest.

    Raises:
        ImageError: if the file is missing, unreadable, empty or not a picture.
    """
    name = repr(str(path))
    file = Path(path)
    _check_file(file, name)
    try:
        with file.open("rb") as stream, open_stream(stream, name) as picture:
            yield picture
    except OSError as error:
        raise ImageError(f"{name} cannot be read: {error.strerror or error}") from error


def read_stream(stream: BinaryIO, name: str) -> Tensor:
    """Read a picture from an open file, by the rules of `read_image`.

    Args:
        stream: seekable; `io.BytesIO` for a picture out of an archive.
        name: how an error calls it.

    Returns:
        Tensor: uint8 [3, H, W] on the CPU.

    Raises:
        ImageError: if it is not a picture, truncated or too large.
    """
    with open_stream(stream, name) as picture:
        return pil_to_tensor(picture, name)


def pil_to_tensor(picture: Image.Image, name: str = "the PIL image") -> Tensor:
    """Turn a PIL image of any mode into 8-bit RGB; `read_image` lists the rules.

    A single transparent grey or colour (PNG's tRNS) counts in the image as which the file was opened. In what
    Pillow's convert, resize or copy make of it, opaque pixels may have that colour, too: there all are shown.

    Args:
        picture: of an animation, the frame it stands at; unchanged.
        name: how an error calls it.

    Returns:
        Tensor: uint8 [3, H, W].

    Raises:
        ImageError: if it cannot be decoded, is too large, or its colour mode has no RGB.
    """
    return torch.from_numpy(np.asarray(upright_rgb(picture, name)).transpose(2, 0, 1).copy())


def upright_rgb(picture: Image.Image, name: str = "the PIL image") -> Image.Image:
    """`pil_to_tensor`, but for the last step: a PIL image of mode RGB; it may be `picture` itself."""
    width, height = picture.size
    if width * height > MAX_PIXELS:
        raise ImageError(_too_large(name, f"{width} x {height} = {width * height / 1e6:.0f} million"))
    if width == 0 or height == 0:
        raise ImageError(f"{name} has no pixels ({width} x {height}); give a picture of at least 1 x 1")
    try:
        stored = stored_form(picture)  # loading forgets it
        picture.load()
        return _upright(to_rgb(picture, name, stored), picture)
    except ImageError:
        raise
    except (
        Exception
    ) as error:  # decoders of broken files raise nearly anything, from IndexError to zlib.error
        raise ImageError(f"{name} is truncated or damaged ({error}); get a whole copy of it") from error


def to_pil(images: Tensor) -> list[Image.Image]:
    """Turn decoded images into PIL images.

    Args:
        images: [B, 3, H, W] or [3, H, W]; uint8, or float in [0, 1] (rounded to 8 bits, clamped).

    Returns:
        list[PIL.Image.Image]: B images of mode RGB.

    Raises:
        ImageError: if shape or dtype is another, or a value is NaN.
    """
    if images.dim() == 3:
        images = images[None]
    if images.dim() != 4 or images.shape[1] != 3:
        raise ImageError(f"the images must be [B, 3, H, W] or [3, H, W], got {list(images.shape)}")
    if images.dtype != torch.uint8:
        if not images.is_floating_point():
            raise ImageError(f"the images must be uint8, or floats in [0, 1], got {images.dtype}; cast them")
        images = images.detach().float()
        if images.isnan().any():
            raise ImageError("the images hold NaN, so there is no picture to show; check the model's output")
        images = images.clamp(0, 1).mul(255).round().to(torch.uint8)
    return [Image.fromarray(image) for image in images.permute(0, 2, 3, 1).cpu().contiguous().numpy()]


def save_image(image: Tensor | Image.Image, path: str | os.PathLike[str]) -> None:
    """Write one picture, in the format its suffix names; an existing file is replaced whole or not at all.

    Args:
        image: [3, H, W] or [1, 3, H, W] as in `to_pil`, or a PIL image.
        path: the file; its folder must exist.

    Raises:
        ImageError: if the suffix names no picture format, or there is more than one image.
        OutputError: if the file cannot be written.
    """
    suffix = Path(path).suffix.lower()
    file_format = Image.registered_extensions().get(suffix)
    if file_format is None or file_format not in Image.SAVE:
        raise ImageError(f"{str(path)!r} does not end like a picture file; use .png or .jpg, for example")
    if isinstance(image, Tensor):
        pictures = to_pil(image)
        if len(pictures) != 1:
            raise ImageError(f"one file takes one image, got a batch of {len(pictures)}; save each by itself")
        image = pictures[0]
    with atomic_write(path) as temporary:
        image.save(temporary, format=file_format, **({"quality": 95} if file_format == "JPEG" else {}))


def _check_file(file: Path, name: str) -> None:
    try:
        status = file.stat()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ImageError(f"{name} does not exist; check the path") from error
    except (OSError, ValueError) as error:  # ValueError: a null byte in the name
        raise ImageError(f"{name} cannot be read: {getattr(error, 'strerror', None) or error}") from error
    if stat.S_ISDIR(status.st_mode):
        raise ImageError(f"{name} is a folder, not a picture; give the files in it")
    if not stat.S_ISREG(status.st_mode):
        raise ImageError(f"{name} is a device or a pipe, not a picture; give a regular file")
    if status.st_size == 0:
        raise ImageError(f"{name} is empty (0 bytes); get a whole copy of it")


def open_stream(stream: BinaryIO, name: str) -> Image.Image:
    """A picture of which the header has been read; its stream stays open.

    Raises:
        ImageError: if it is not a picture.
    """
    Image.init()
    formats = [f for f in FORMATS if f in Image.OPEN]
    try:
        with _open_lock, warnings.catch_warnings():
            # Our own limit is checked from the size that the header gives.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            return Image.open(stream, formats=formats)
    except UnidentifiedImageError as error:
        remedy = "use JPEG, PNG, WebP, GIF, BMP or TIFF"
        raise ImageError(f"{name} is not a picture in a format that can be read; {remedy}") from error
    except Image.DecompressionBombError as error:
        raise ImageError(_too_large(name, "too many")) from error
    except Exception as error:  # as in pil_to_tensor: a hostile header may raise anything
        raise ImageError(f"{name} is truncated or damaged ({error}); get a whole copy of it") from error


def _too_large(name: str, size: str) -> str:
    return f"{name} has {size} pixels, the limit is {MAX_PIXELS / 1e6:.0f} million; make it smaller first"


def _upright(rgb: Image.Image, picture: Image.Image) -> Image.Image:
    """`rgb` turned as the EXIF block of `picture` says."""
    try:
        orientation = picture.getexif().get(_ORIENTATION_TAG, 1)
    except Exception:  # a broken EXIF block says nothing about the pixels
        return rgb
    transpose = _ORIENTATIONS.get(orientation)
    return rgb if transpose is None else rgb.transpose(transpose)
