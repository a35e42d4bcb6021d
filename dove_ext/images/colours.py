"""What the values of a PIL image mean in 8-bit RGB: transparency, deep greys and the kinds of TIFF.

Colours are taken as they are stored, as torchvision and timm take them: embedded profiles and PNG's gAMA are
not applied.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFile

from dove_ext.errors import ImageError

# TIFF 6.0's names, and the values that change what a sample means.
_BITS, _COMPRESSION, _PHOTOMETRIC, _PLANES, _SAMPLE_FORMAT = 258, 259, 262, 284, 339
_UNCOMPRESSED, _WHITE_IS_ZERO, _SEPARATE, _SIGNED = 1, 0, 2, 2

# Pillow stretches PNG's greys of 2 and 4 bits to 8, but not the grey that tRNS names.
_GREY_STEPS = {"L;2": 85, "L;4": 17}


def stored_form(picture: Image.Image) -> str:
    """What an image that is not yet loaded still knows of its file, and to_rgb needs; "" if nothing.

    Pillow's raw mode, such as "RGB;16B"; of a JPEG 2000 file its bits, as in "12 bits".
    """
    tiles = getattr(picture, "tile", None)
    if not tiles:
        return ""
    if picture.format == "JPEG2000" and isinstance(picture, ImageFile.ImageFile) and picture.fp is not None:
        picture.fp.seek(0)
        head = picture.fp.read(1 << 20)
        start = head.find(b"\xff\x4f\xff\x51")  # the codestream's first markers
        return f"{(head[start + 42] & 0x7F) + 1} bits" if 0 <= start < len(head) - 42 else ""
    form = tiles[0][3]
    form = form[0] if isinstance(form, tuple) and form else form
    return form if isinstance(form, str) else ""


def _is_clear(picture: Image.Image) -> bool:
    """Whether colours of a palette are transparent: a file's, or of what was made from an RGBA image."""
    palette = picture.palette
    return "transparency" in picture.info or (palette is not None and palette.mode.startswith("RGBA"))


def to_rgb(picture: Image.Image, name: str, stored: str = "") -> Image.Image:
    """A loaded picture as RGB: transparency over white, deep greys scaled to 8 bits rather than clipped.

    It is the picture itself if nothing is to be changed.

    Args:
        picture: of any mode; unchanged.
        name: how an error calls it.
        stored: its `stored_form`, as it was before loading.

    Raises:
        ImageError: if black and white of its numbers are not known, or it has no RGB.
    """
    mode, tags = picture.mode, _tiff_tags(picture)
    integers = _integers(picture, name) if mode.startswith("I") else None
    _check_tiff(tags, mode, name)
    if stored.endswith(" bits") and int(stored.split()[0]) > 8 and integers is None and mode != "L":
        raise ImageError(
            f"{name} is JPEG 2000 with {stored} a colour, whose white would turn black; make it 8-bit first"
        )
    key = _transparent_colour(picture, name, stored)
    if integers is not None:
        white = 2 ** tags[_BITS][0] - 1 if tags else 65535
        values = white - integers if tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO else integers
        rgb = Image.fromarray(np.round(values / (white / 255)).astype(np.uint8)).convert("RGB")
    elif mode == "F":
        raise ImageError(
            f"{name} holds floats, whose range is not known; pass an array of floats in [0, 1] instead"
        )
    elif mode in ("LA", "La", "PA", "RGBA", "RGBa") or (mode == "P" and _is_clear(picture)):
        layer = picture.convert("LA" if mode == "La" else "RGBA").convert("RGBA")
        white = Image.new("RGBA", layer.size, (255, 255, 255, 255))
        rgb = Image.alpha_composite(white, layer).convert("RGB")
    else:
        try:
            rgb = picture if mode == "RGB" else picture.convert("RGB")
        except ValueError as error:
            raise ImageError(
                f"{name} has the colour mode {mode}, which has no way to RGB; convert it first"
            ) from error
    if key is None:
        return rgb
    stored_values = np.asarray(picture.convert("L") if mode == "1" else picture)
    clear = (stored_values == key).all(-1) if mode == "RGB" else stored_values == key
    return Image.fromarray(np.where(clear[:, :, None], np.uint8(255), np.asarray(rgb)))


def _integers(picture: Image.Image, name: str) -> npt.NDArray[np.int64]:
    """Of the modes "I;16" (in its byte orders) and "I", as which some 16-bit files arrive."""
    values = np.asarray(picture).astype(np.int64)
    if values.min() < 0 or values.max() > 65535:
        raise ImageError(f"{name} holds integers outside 0..65535; scale it to 8 or 16 bits first")
    return values


def _transparent_colour(picture: Image.Image, name: str, stored: str) -> int | npt.NDArray[np.int64] | None:
    """The one grey or colour that a file declares transparent (PNG's tRNS), in the picture's own values.

    It counts only in the image as which a file was opened: Pillow's convert, resize and copy keep
    info["transparency"] also where opaque pixels have come to have that colour.
    """
    key = picture.info.get("transparency")
    if key is None or picture.mode == "P" or not isinstance(picture, ImageFile.ImageFile):
        return None
    if isinstance(key, int):
        return key * _GREY_STEPS.get(stored, 1) if picture.mode in ("1", "L", "I;16") else None
    if not isinstance(key, tuple) or picture.mode != "RGB":
        return None
    if stored.startswith("RGB;16") or max(key) > 255:
        raise ImageError(
            f"{name} has 16 bits a colour, one of them transparent, of which only the upper 8 are read; "
            "give it an alpha channel, or make it 8-bit first"
        )
    return np.array(key)


def _tiff_tags(picture: Image.Image) -> Mapping[int, Any]:
    """The tags of the TIFF file that this is the image of; without any, it is none."""
    return getattr(picture, "tag_v2", {}) if picture.format == "TIFF" else {}


def _check_tiff(tags: Mapping[int, Any], mode: str, name: str) -> None:
    """Refuse what Pillow reads as something else without a word."""
    if _SIGNED in tags.get(_SAMPLE_FORMAT, ()) or (tags and mode == "I"):
        raise ImageError(
            f"{name} is a TIFF of signed or 32-bit integers, whose black and white are not known; "
            "scale it to unsigned 8 or 16 bits first"
        )
    planes = tags.get(_PLANES) == _SEPARATE and tags.get(_COMPRESSION, _UNCOMPRESSED) == _UNCOMPRESSED
    if planes and max(tags[_BITS]) > 8 and len(tags[_BITS]) > 1:
        raise ImageError(
            f"{name} is a 16-bit TIFF with a plane for each colour, which is read wrongly where it is not "
            "compressed; save it with the colours of a pixel together"
        )
