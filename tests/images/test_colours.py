"""What the numbers in odd files mean: transparent colours, deep greys, and TIFF's photometric kinds."""

from __future__ import annotations

import base64
import io
import struct
import zlib
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from dove_ext.errors import ImageError
from dove_ext.images.files import pil_to_tensor, read_stream


def read(data: bytes) -> torch.Tensor:
    return read_stream(io.BytesIO(data), "the file")


def png(rows: list[bytes], width: int, bits: int, colour_type: int, transparent: bytes) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, len(rows), bits, colour_type, 0, 0, 0)
    data = zlib.compress(b"".join(b"\0" + row for row in rows))
    chunks = ((b"IHDR", header), (b"tRNS", transparent), (b"IDAT", data), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*c) for c in chunks)


def tiff(data: bytes, width: int, bits: tuple[int, ...], photometric: int, **more: int) -> bytes:
    """A little-endian file of one row, not compressed; with tag284=2 each colour has a strip of its own."""
    strips = len(bits) if more.get("tag284") == 2 else 1
    size = len(data) // strips
    tags: dict[int, tuple[int, ...]] = {
        256: (width,), 257: (1,), 258: bits, 259: (1,), 262: (photometric,),
        273: tuple(8 + i * size for i in range(strips)), 277: (len(bits),), 278: (1,), 279: (size,) * strips,
    }  # fmt: skip
    tags |= {int(tag.removeprefix("tag")): (value,) for tag, value in more.items()}
    data += b"\0" * (len(data) % 2)
    start, extra = 8 + len(data), b""
    behind = start + 2 + 12 * len(tags) + 4
    directory = struct.pack("<H", len(tags))
    for tag, values in sorted(tags.items()):
        value = struct.pack(f"<{len(values)}H", *values)
        if len(value) > 4:
            extra, value = extra + value, struct.pack("<I", behind + len(extra))
        directory += struct.pack("<HHI", tag, 3, len(values)) + value.ljust(4, b"\0")
    return b"II*\0" + struct.pack("<I", start) + data + directory + bytes(4) + extra


# --- Transparency -----------------------------------------------------------------------------------------


def palette_file(kind: str) -> bytes:
    """Opaque black on opaque red, in a frame whose transparent entry is black, too."""
    picture = Image.new("P", (8, 8), 2)
    picture.putpalette([0, 0, 0, 0, 0, 0, 200, 30, 30] + [0] * 759)
    picture.paste(1, (2, 2, 6, 6))
    picture.putpixel((0, 0), 0)
    stream = io.BytesIO()
    picture.save(stream, kind, transparency=0)
    return stream.getvalue()


@pytest.mark.parametrize("kind", ["GIF", "PNG"])
@pytest.mark.parametrize("changed", ["as opened", "copied", "loaded", "RGB", "RGBA", "RGB resized", "L"])
def test_opaque_pixels_keep_their_colour(kind: str, changed: str) -> None:
    """Pillow's RGB image of the file still declares black transparent, which is now the text's colour."""
    picture = Image.open(io.BytesIO(palette_file(kind)))
    if changed == "copied":
        picture = picture.copy()
    elif changed == "loaded":
        picture.load()
    elif changed != "as opened":
        picture = picture.convert(changed.split()[0])
        picture = picture.resize((8, 8)) if changed.endswith("resized") else picture
    assert changed not in ("RGB", "L") or "transparency" in picture.info, "Pillow has mended it"
    pixels = pil_to_tensor(picture)
    assert pixels[:, 3, 3].tolist() == [0, 0, 0]
    grey = Image.new("RGB", (1, 1), (200, 30, 30)).convert("L").getpixel((0, 0))
    assert pixels[:, 7, 7].tolist() == ([grey] * 3 if changed == "L" else [200, 30, 30])
    if changed in ("as opened", "copied", "loaded", "RGBA"):
        assert torch.equal(pixels, read(palette_file(kind)))
        assert pixels[:, 0, 0].tolist() == [255, 255, 255], "the transparent corner lies on white"


@pytest.mark.parametrize("frame", [0, 1, 2])
def test_frames_of_a_transparent_animation(frame: int) -> None:
    frames = []
    for entry in (1, 2, 1):
        picture = Image.new("P", (8, 8), 0)
        picture.putpalette([9, 9, 9, 9, 9, 9, 200, 30, 30] + [0] * 759)
        picture.paste(entry, (2, 2, 6, 6))
        frames.append(picture)
    stream = io.BytesIO()
    frames[0].save(stream, "GIF", save_all=True, append_images=frames[1:], transparency=0, disposal=2)
    animation = Image.open(stream)
    animation.seek(frame)
    for picture in (animation, animation.convert("RGBA"), animation.copy()):
        pixels = pil_to_tensor(picture)
        assert pixels[:, 0, 0].tolist() == [255, 255, 255]
        assert pixels[:, 3, 3].tolist() == ([200, 30, 30] if frame == 1 else [9, 9, 9])


# Each file has a row of four pixels of which the second is transparent; its other pixels as they should be.
TRANSPARENT_FILES: dict[str, tuple[bytes, list[Any]]] = {
    "1-bit grey": (png([b"\x40"], 4, 1, 0, b"\0\1"), [0, 255, 0, 0]),
    "2-bit grey": (png([bytes([0b00_01_10_11])], 4, 2, 0, b"\0\1"), [0, 255, 170, 255]),
    "4-bit grey": (png([b"\x03\x5f"], 4, 4, 0, b"\0\3"), [0, 255, 85, 255]),
    "8-bit grey": (png([bytes([0, 3, 85, 51])], 4, 8, 0, b"\0\3"), [0, 255, 85, 51]),
    "16-bit grey": (
        png([struct.pack(">4H", 0, 1000, 1001, 65535)], 4, 16, 0, struct.pack(">H", 1000)),
        [0, 255, 4, 255],
    ),
    "8-bit RGB": (
        png([bytes([0, 0, 0, 1, 2, 3, 1, 2, 4, 9, 9, 9])], 4, 8, 2, bytes([0, 1, 0, 2, 0, 3])),
        [[0, 0, 0], [255, 255, 255], [1, 2, 4], [9, 9, 9]],
    ),
}


@pytest.mark.parametrize("name", TRANSPARENT_FILES)
def test_transparent_colour_of_a_png(name: str) -> None:
    data, expected = TRANSPARENT_FILES[name]
    expected = [v if isinstance(v, list) else [v] * 3 for v in expected]
    assert read(data)[:, 0].T.tolist() == expected
    assert pil_to_tensor(Image.open(io.BytesIO(data)))[:, 0].T.tolist() == expected


def test_transparent_colour_of_16_bits_is_refused() -> None:
    """Of which Pillow keeps the upper 8: black would take all that is nearly black with it."""
    for key in (b"\0" * 6, b"\1\2" * 3):
        data = png([struct.pack(">6H", 0, 0, 0, 200, 200, 200)], 2, 16, 2, key)
        with pytest.raises(ImageError, match="the file has 16 bits a colour, one of them transparent"):
            read(data)
    loaded = Image.open(io.BytesIO(data))
    loaded.load()
    with pytest.raises(ImageError, match="16 bits a colour"):
        pil_to_tensor(loaded)


# --- TIFF -------------------------------------------------------------------------------------------------


def packed_12_bits(*values: int) -> bytes:
    text = "".join(f"{value:012b}" for value in values)
    return bytes(int(text[i : i + 8], 2) for i in range(0, len(text), 8))


GREY_TIFFS: dict[str, tuple[bytes, list[int]]] = {
    "8-bit": (tiff(bytes([0, 1, 128, 255]), 4, (8,), 1), [0, 1, 128, 255]),
    "8-bit white is zero": (tiff(bytes([255, 254, 127, 0]), 4, (8,), 0), [0, 1, 128, 255]),
    "4-bit white is zero": (tiff(b"\xfe\x70", 4, (4,), 0), [0, 17, 136, 255]),
    "12-bit": (tiff(packed_12_bits(0, 16, 2056, 4095), 4, (12,), 1), [0, 1, 128, 255]),
    "16-bit": (tiff(struct.pack("<4H", 0, 257, 32896, 65535), 4, (16,), 1), [0, 1, 128, 255]),
    "16-bit white is zero": (
        tiff(struct.pack("<4H", 65535, 65278, 32639, 0), 4, (16,), 0),
        [0, 1, 128, 255],
    ),
}


@pytest.mark.parametrize("name", GREY_TIFFS)
def test_grey_of_a_tiff(name: str) -> None:
    data, expected = GREY_TIFFS[name]
    assert read(data)[:, 0].tolist() == [expected] * 3
    loaded = Image.open(io.BytesIO(data))
    loaded.load()
    assert pil_to_tensor(loaded)[:, 0].tolist() == [expected] * 3


REFUSED_TIFFS: dict[str, tuple[bytes, str]] = {
    "int8": (tiff(bytes(4), 4, (8,), 1, tag339=2), "is a TIFF of signed or 32-bit integers, whose black"),
    "int16": (tiff(bytes(8), 4, (16,), 1, tag339=2), "is a TIFF of signed or 32-bit integers"),
    "int16 below 0": (tiff(b"\xff" * 8, 4, (16,), 1, tag339=2), "holds integers outside 0..65535"),
    "int32": (tiff(bytes(16), 4, (32,), 1, tag339=2), "is a TIFF of signed or 32-bit integers"),
    "uint32": (tiff(bytes(16), 4, (32,), 1), "is a TIFF of signed or 32-bit integers"),
    "float32": (tiff(bytes(16), 4, (32,), 1, tag339=3), "holds floats, whose range is not known"),
    "int16 white is zero": (tiff(bytes(8), 4, (16,), 0, tag339=2), "is not a picture in a format that can"),
    "10-bit": (tiff(bytes(5), 4, (10,), 1), "is not a picture in a format that can"),
}


@pytest.mark.parametrize("name", REFUSED_TIFFS)
def test_refused_tiff(name: str) -> None:
    data, words = REFUSED_TIFFS[name]
    with pytest.raises(ImageError, match=f"the file {words}"):
        read(data)


def test_16_bit_planes_are_refused_where_they_are_read_wrongly() -> None:
    """Pillow takes such a plane's bytes for twice as many 8-bit values."""
    assert read(tiff(bytes([255] * 4 + [0] * 8), 4, (8, 8, 8), 2, tag284=2))[:, 0, 0].tolist() == [255, 0, 0]
    data = tiff(struct.pack("<12H", *[65535] * 4, *[0] * 8), 4, (16, 16, 16), 2, tag284=2)
    with pytest.raises(ImageError, match="is a 16-bit TIFF with a plane for each colour"):
        read(data)


@pytest.mark.parametrize("compression", ["raw", "tiff_deflate", "tiff_lzw"])
def test_tiff_that_pillow_wrote(compression: str) -> None:
    values = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)
    stream = io.BytesIO()
    Image.fromarray(values).save(stream, "TIFF", compression=compression)
    assert np.array_equal(read(stream.getvalue()).permute(1, 2, 0).numpy(), values)


# --- JPEG 2000 --------------------------------------------------------------------------------------------

# Four pixels of 12 bits a colour: red 0, 2048, 4080, 4095.
DEEP_JPEG_2000 = base64.b64decode(
    "/0//UQAvAAAAAAAEAAAAAQAAAAAAAAAAAAAABAAAAAEAAAAAAAAAAAADCwEBCwEBCwEB/1IADAAAAAEBAAQEAAH/XAAEQGD/ZAAlAAFDcmVhdG"
    "VkIGJ5IE9wZW5KUEVHIHZlcnNpb24gMi41LjT/kAAKAAAAAAAsAAH/k8/kHBB87LrrsE/f4CAIrO7cSRo6t9/gGAWm8dQ05v/Z"
)


def test_deep_colours_of_jpeg_2000_are_refused() -> None:
    """Pillow rounds the highest of them up to 256, which is 0 in 8 bits: white turns black."""
    with pytest.raises(ImageError, match="the file is JPEG 2000 with 12 bits a colour, whose white"):
        read(DEEP_JPEG_2000)
    with pytest.raises(ImageError, match="JPEG 2000 with 12 bits"):
        pil_to_tensor(Image.open(io.BytesIO(DEEP_JPEG_2000)))


@pytest.mark.parametrize("mode", ["RGB", "L", "I;16"])
def test_other_jpeg_2000(mode: str) -> None:
    values = np.array([[0, 100, 200, 255]] * 3, np.uint8)
    picture = Image.fromarray(values.astype(np.uint16) * 257 if mode == "I;16" else values).convert(mode)
    stream = io.BytesIO()
    picture.save(stream, "JPEG2000", irreversible=False)
    assert read(stream.getvalue())[:, 0].tolist() == [[0, 100, 200, 255]] * 3


def test_a_palette_with_alpha_lies_over_white() -> None:
    clear = Image.new("RGBA", (8, 8), (200, 0, 0, 0))
    clear.paste((0, 0, 255, 255), (0, 0, 4, 8))
    made = clear.quantize(4)
    assert made.mode == "P" and made.palette is not None and made.palette.mode == "RGBA" and not made.info
    assert torch.equal(pil_to_tensor(made), pil_to_tensor(clear))
