"""Input that is wrong or odd: one clear sentence each, and nothing half-written."""

from __future__ import annotations

import json
import os
import struct
import warnings
import zlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from dove_ext import CheckpointError, DoveModel
from dove_ext.atomic import atomic_write, check_writable_file, make_writable_folder
from dove_ext.errors import ImageError, OutputError, TokensError
from dove_ext.images import prepare_images, read_image, save_image, to_pil
from dove_ext.tokens import DoveTokens


def picture(path: Path, size: tuple[int, int] = (64, 48), **options: Any) -> Path:
    noise = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(noise).save(path, **options)
    return path


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and then ends."""
    body = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunk = b"IHDR" + body
    crc = struct.pack(">I", zlib.crc32(chunk))
    idat = b"IDAT" + zlib.compress(b"\0" * 100)
    return (
        b"\x89PNG\r\n\x1a\n" + struct.pack(">I", len(body)) + chunk + crc
        + struct.pack(">I", len(idat) - 4) + idat + struct.pack(">I", zlib.crc32(idat))
    )  # fmt: skip


def one_sentence(error: pytest.ExceptionInfo[Any]) -> str:
    text = str(error.value)
    assert "\n" not in text and "Traceback" not in text
    return text


# --- Files that are no pictures ---------------------------------------------------------------------------


BAD_FILES: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (lambda p: None, "does not exist; check the path"),
    "empty": (lambda p: p.touch(), r"is empty \(0 bytes\)"),
    "folder": (lambda p: p.mkdir(), "is a folder, not a picture; give the files in it"),
    "pipe": (os.mkfifo, "is a device or a pipe, not a picture"),
    "text": (
        lambda p: p.write_text("I am a picture, honestly.\n" * 50),
        "is not a picture in a format that can",
    ),
    "zeros": (lambda p: p.write_bytes(bytes(5000)), "is not a picture in a format that can"),
    "eps": (lambda p: p.write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"), "is not a picture"),
    "png magic": (lambda p: p.write_bytes(b"\x89PNG\r\n\x1a\n"), "is truncated or damaged|is not a picture"),
    "bomb": (
        lambda p: p.write_bytes(png_header(13_000, 10_000)),
        "has 13000 x 10000 = 130 million pixels, the limit",
    ),
    "big bomb": (
        lambda p: p.write_bytes(png_header(2**31 - 1, 2**31 - 1)),
        "pixels, the limit is 128 million",
    ),
    "no data": (lambda p: p.write_bytes(png_header(500, 500)), "is truncated or damaged"),
    "int32": (
        lambda p: Image.fromarray(np.full((3, 3), 70_000, np.int32)).save(p, format="TIFF"),
        "holds integers outside 0..65535",
    ),
    "float tiff": (
        lambda p: Image.fromarray(np.ones((3, 3), np.float32)).save(p, format="TIFF"),
        "holds floats",
    ),
    "strip": (
        lambda p: Image.new("RGB", (20_000, 1)).save(p, format="PNG"),
        "20000 x 1 pixels, more than 100 to 1",
    ),
}


@pytest.mark.parametrize("kind", BAD_FILES)
def test_bad_file(kind: str, tmp_path: Path) -> None:
    make, words = BAD_FILES[kind]
    path = tmp_path / "photo.jpg"
    make(path)
    with warnings.catch_warnings(record=True) as warned, pytest.raises(ImageError, match=words) as error:
        warnings.simplefilter("always")
        prepare_images(path, 32)
    assert not warned, "the error says it all; Pillow's warning beside it would be noise"
    assert repr(str(path)) in one_sentence(error)


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "gif", "tif", "bmp"])
@pytest.mark.parametrize("share", [0.02, 0.3, 0.8, 0.97])
def test_truncated_file(suffix: str, share: float, tmp_path: Path) -> None:
    whole = picture(tmp_path / f"whole.{suffix}").read_bytes()
    path = tmp_path / f"cut.{suffix}"
    path.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(ImageError, match=r"is truncated or damaged|is not a picture") as error:
        read_image(path)
    assert "cut." in one_sentence(error)


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "gif", "tif"])
def test_corrupted_bytes_never_raise_anything_else(suffix: str, tmp_path: Path) -> None:
    whole = picture(tmp_path / f"whole.{suffix}", (40, 40)).read_bytes()
    rng = np.random.default_rng(1)
    for _ in range(40):
        data = bytearray(whole)
        for position in rng.integers(0, min(len(data), 600), 4):
            data[position] = rng.integers(256)
        (tmp_path / "bad").write_bytes(data)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with suppress(ImageError):
                assert read_image(tmp_path / "bad").dtype == torch.uint8


def test_long_names_and_null_bytes() -> None:
    for path in ("x" * 5000, "a\0b.png"):
        with pytest.raises(ImageError, match="cannot be read"):
            read_image(path)


def test_strip_can_be_squashed(tmp_path: Path) -> None:
    Image.new("RGB", (20_000, 1), "red").save(tmp_path / "strip.png")
    assert prepare_images(tmp_path / "strip.png", 16, fit="squash").shape == (1, 3, 16, 16)
    for fit in ("crop", "pad"):
        with pytest.raises(ImageError, match=f"too long for fit='{fit}'; cut it first or use fit='squash'"):
            prepare_images(tmp_path / "strip.png", 16, fit=fit)  # type: ignore[arg-type]


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_broken_exif_does_not_lose_the_picture(tmp_path: Path) -> None:
    path = picture(tmp_path / "photo.jpg", exif=b"Exif\0\0II*\0\xff\xff\xff\x7f" + bytes(20))
    assert read_image(path).shape == (3, 48, 64)


# --- Tensors and arrays -----------------------------------------------------------------------------------


def nested(layout: torch.layout) -> torch.Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # nested tensors are a prototype
        return torch.nested.nested_tensor([torch.zeros(3, 4, 4), torch.zeros(3, 5, 4)], layout=layout)


NAN, INF = float("nan"), float("inf")
BAD_ARRAYS: list[tuple[Any, str]] = [
    (torch.full((3, 4, 4), NAN), "the tensor holds NaN or infinite values"),
    (torch.tensor([0.5, INF]).expand(3, 4, 2), "NaN or infinite"),
    (np.array([[[0.1, -INF, 0.2]]]), "the array holds NaN or infinite"),
    (torch.full((3, 4, 4), 200.0), r"values from 200 to 200; floats must lie in \[0, 1\]: divide by 255\?"),
    (torch.tensor([-1.0, 1.0]).expand(3, 4, 2), r"values from -1 to 1; .*: use \(x \+ 1\) / 2\?"),
    (torch.tensor([-2.1, 2.6]).expand(3, 4, 2), r"values from -2.1 to 2.6; .*: undo their normalisation"),
    (torch.full((3, 4, 4), 1.2), r"values from 1.2 to 1.2; floats must lie in \[0, 1\]$"),
    (torch.zeros(4, 4, 4), r"of shape \[4, 4, 4\] has 4 channels instead of 3; convert it to RGB"),
    (torch.zeros(9, 8, 3), r"has 9 channels instead of 3; it looks channels-last: use .permute\(2, 0, 1\)"),
    (torch.zeros(2, 9, 8, 3), r"use .permute\(0, 3, 1, 2\)"),
    (np.zeros((3, 9, 8)), "it looks channels-first: pass torch.from_numpy"),
    (np.zeros((9, 8, 4), np.uint8), "4 channels instead of 3; convert it to RGB, or pass a PIL image"),
    (torch.zeros(4, 4), r"has shape \[4, 4\]; a tensor must be \[3, H, W\] or \[B, 3, H, W\]"),
    (torch.zeros(1, 1, 3, 4, 4), "a tensor must be"),
    (np.zeros(3), "an array must be"),
    (torch.zeros(3, 4, 4, dtype=torch.int64), r"dtype int64; use uint8 in 0..255 or float in \[0, 1\]"),
    (torch.zeros(3, 4, 4, dtype=torch.bool), "dtype bool"),
    (np.zeros((4, 4, 3), np.uint16), r"dtype uint16; .* divide by 65535\?"),
    (np.zeros((4, 4, 3), np.complex64), "dtype complex64"),
    (np.array([["a"]]), "has dtype <U1"),
    (torch.zeros(3, 0, 4), r"no pixels \(0 x 4\)"),
    (torch.zeros(0, 3, 4, 4), r"is an empty batch \(\[0, 3, 4, 4\]\); give at least one image"),
    (np.zeros((0, 4, 4, 3)), "is an empty batch"),
    ([], "the list of images is empty; give at least one image"),
    ((), "is empty"),
    (None, "the NoneType is no image; give a tensor, a numpy array, a PIL image, a path"),
    (b"photo.jpg", "the bytes is no image"),
    ([torch.zeros(3, 4, 4), 7], r"images\[1\] \(int\) is no image"),
    ([torch.zeros(3, 4, 4), torch.full((3, 4, 4), NAN)], r"images\[1\] \(tensor\) holds NaN"),
    ([torch.zeros(1, 3, 4, 4)], r"images\[0\] \(tensor\) is itself a batch; list single images"),
    (
        torch.zeros(3, 4, 4).to_sparse(),
        r"the tensor has the memory layout sparse_coo; make it .* \.to_dense\(\)",
    ),
    (torch.zeros(3, 4, 4).to_mkldnn(), "the tensor has the memory layout _mkldnn"),
    ([torch.zeros(3, 4, 4).to_sparse()], r"images\[0\] \(tensor\) has the memory layout sparse_coo"),
    (nested(torch.strided), r"the tensor is nested; give a list of its images: list\(tensor.unbind\(\)\)"),
    (nested(torch.jagged), "the tensor is nested"),
    ([nested(torch.strided)], r"images\[0\] \(tensor\) is itself a batch"),
    (torch.zeros(3, 4, 4, device="meta"), "the tensor is on the meta device, where tensors hold no values"),
    ([torch.zeros(3, 4, 4, device="meta")], r"images\[0\] \(tensor\) is on the meta device"),
    (torch.zeros(3, 4, 4).to(torch.float8_e4m3fn), r"the tensor has dtype float8_e4m3fn; use .float\(\)"),
    (torch.zeros(3, 4, 4).to(torch.float8_e5m2), "dtype float8_e5m2"),
    (torch.zeros(3, 4, 4, dtype=torch.complex64), "dtype complex64"),
    (Image.new("F", (2, 2)), "the PIL image holds floats"),
    (Image.new("RGB", (0, 3)), r"no pixels \(0 x 3\)"),
]


@pytest.mark.parametrize("images, words", BAD_ARRAYS, ids=[words for _, words in BAD_ARRAYS])
def test_bad_array(images: Any, words: str) -> None:
    with pytest.raises(ImageError, match=words) as error:
        prepare_images(images, 16)
    one_sentence(error)


def test_bad_settings() -> None:
    with pytest.raises(ImageError, match="fit must be one of 'crop', 'squash', 'pad', got 'stretch'"):
        prepare_images(torch.zeros(3, 4, 4), 16, fit="stretch")  # type: ignore[arg-type]
    with pytest.raises(ImageError, match="size must be at least 1 pixel, got 0"):
        prepare_images(torch.zeros(3, 4, 4), 0)


def test_bad_output_images(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="hold NaN, so there is no picture"):
        to_pil(torch.full((3, 4, 4), NAN))
    with pytest.raises(ImageError, match=r"must be \[B, 3, H, W\] or \[3, H, W\], got \[4, 4\]"):
        to_pil(torch.zeros(4, 4))
    with pytest.raises(ImageError, match=r"must be uint8, or floats in \[0, 1\], got torch.int64; cast them"):
        to_pil(torch.full((3, 4, 4), 200))
    with pytest.raises(ImageError, match="one file takes one image, got a batch of 2"):
        save_image(torch.zeros(2, 3, 4, 4), tmp_path / "x.png")
    with pytest.raises(ImageError, match="does not end like a picture file"):
        save_image(torch.zeros(3, 4, 4), tmp_path / "x.doc")
    assert not list(tmp_path.iterdir())


# --- Token files ------------------------------------------------------------------------------------------


GOOD_METADATA = {"format": "dove-tokens", "version": "1", "num_slots": "9"}


def good_tensors() -> dict[str, torch.Tensor]:
    return {"tokens": torch.ones(4, 3), "cu_seqlens": torch.tensor([0, 3, 4], dtype=torch.int32)}


def cu(*values: int) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int32)


BAD_TOKEN_FILES: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    ({}, {"format": "pt"}, "a safetensors file, but not of DOVE tokens; it holds 'cu_seqlens', 'tokens'"),
    ({}, {"version": "5"}, "version '5' of the format, known are '1', '2', '3', '4'; upgrade dove-ext"),
    ({}, {"num_slots": "0"}, "num_slots must be between 1 and 65536, it says '0'"),
    ({}, {"num_slots": "-3"}, "num_slots must be between"),
    ({}, {"num_slots": "9" * 5000}, "num_slots must be between"),
    ({}, {"num_slots": "2"}, "image 0 has 3 tokens; every image must have 1 to 2"),
    ({}, {"names": "[1, 2]"}, "names are not a JSON list of strings"),
    ({}, {"names": "{"}, "names are not a JSON list of strings"),
    ({}, {"names": "[" * 100_000}, "names are not a JSON list of strings"),
    ({}, {"names": json.dumps(["a"])}, "there are 1 names for 2 images"),
    (
        {"extra": torch.ones(1)},
        {},
        "must hold 'tokens', 'cu_seqlens' and optionally 'p_eos', 'psnr' and 'relevance', but it holds",
    ),
    ({"tokens": torch.ones(12)}, {}, "tokens must have 2 dimensions"),
    ({"tokens": torch.ones(4, 3, dtype=torch.int32)}, {}, "tokens of dtype torch.int32 are not supported"),
    ({"tokens": torch.tensor([[1.0, NAN]] * 4)}, {}, "tokens hold NaN or infinite values"),
    ({"tokens": torch.tensor([[1.0, INF]] * 4)}, {}, "tokens hold NaN or infinite values"),
    ({"tokens": torch.ones(4, 0)}, {}, "tokens must be floating point"),
    ({"cu_seqlens": torch.tensor([0, 3, 4])}, {}, "cu_seqlens must be int32"),
    ({"cu_seqlens": cu(0, 3, 5)}, {}, "must run from 0 to T = 4, got 0 to 5"),
    ({"cu_seqlens": cu(2, 3, 4)}, {}, "must run from 0 to T = 4, got 2 to 4"),
    ({"cu_seqlens": cu(0, 5, 4)}, {}, "image 1 has -1 tokens"),
    ({"cu_seqlens": cu(0, -2147483648, 4)}, {}, "image 0 has -2147483648 tokens"),
    ({"p_eos": torch.ones(2, 8)}, {}, r"p_eos must be float32 \[2, 9\]"),
    ({"p_eos": torch.ones(2, 9).to(torch.float8_e4m3fn)}, {}, "p_eos must be float32, it is F8_E4M3"),
    ({"psnr": torch.ones(2, dtype=torch.uint32)}, {}, "psnr must be float32, it is U32"),
    ({"relevance": torch.ones(2, 4, 4).double()}, {}, "relevance must be float32, it is F64"),
    ({"p_eos": torch.full((2, 9), 1.5)}, {}, "p_eos holds values that are not probabilities"),
    ({"p_eos": torch.full((2, 9), NAN)}, {}, "p_eos holds values that are not probabilities"),
    ({"relevance": torch.ones(3, 4, 4)}, {}, r"relevance must be float32 \[2, h, w\]"),
    ({"relevance": torch.full((2, 4, 4), 1.5)}, {}, "relevance holds values outside of 0 to 1"),
    ({"relevance": torch.full((2, 4, 4), NAN)}, {}, "relevance holds values outside of 0 to 1"),
]


@pytest.mark.parametrize("tensors, metadata, words", BAD_TOKEN_FILES, ids=range(len(BAD_TOKEN_FILES)))
def test_bad_token_file(
    tensors: dict[str, Any], metadata: dict[str, str], words: str, tmp_path: Path
) -> None:
    path = tmp_path / "t.safetensors"
    save_file(good_tensors(), path, GOOD_METADATA)
    assert len(DoveTokens.load(path)) == 2
    save_file(good_tensors() | tensors, path, GOOD_METADATA | metadata)
    with pytest.raises(TokensError, match=words) as error:
        DoveTokens.load(path)
    assert repr(str(path)) in one_sentence(error)
    assert len(str(error.value)) < 600


def test_missing_tensor_and_metadata(tmp_path: Path) -> None:
    path = tmp_path / "t.safetensors"
    save_file({"tokens": torch.ones(4, 3)}, path, GOOD_METADATA)
    with pytest.raises(TokensError, match="but it holds 'tokens'"):
        DoveTokens.load(path)
    save_file(good_tensors(), path)
    with pytest.raises(TokensError, match="not of DOVE tokens"):
        DoveTokens.load(path)


def test_token_file_that_is_none(tmp_path: Path) -> None:
    path = tmp_path / "t.safetensors"
    with pytest.raises(TokensError, match="does not exist; give a file written by"):
        DoveTokens.load(path)
    with pytest.raises(TokensError, match="is not a file"):
        DoveTokens.load(tmp_path)
    for data in (b"", b"hello", bytes(64), b"\xff" * 64):
        path.write_bytes(data)
        with pytest.raises(TokensError, match="is damaged, cut short or no safetensors file at all"):
            DoveTokens.load(path)


def test_token_file_cut_anywhere(tmp_path: Path) -> None:
    path = tmp_path / "t.safetensors"
    save_file(good_tensors(), path, GOOD_METADATA)
    whole = path.read_bytes()
    for size in range(0, len(whole), 7):
        path.write_bytes(whole[:size])
        with pytest.raises(TokensError, match="damaged, cut short"):
            DoveTokens.load(path)


# --- Output -----------------------------------------------------------------------------------------------


def test_unwritable_output(tmp_path: Path) -> None:
    in_the_way = tmp_path / "file"
    in_the_way.write_text("precious")
    tokens = DoveTokens(**good_tensors(), num_slots=9)
    for path, words in [
        (in_the_way / "t.safetensors", "is not a folder; choose another place"),
        (tmp_path / "none" / "t.safetensors", "its folder does not exist; create"),
        (tmp_path, "it is a folder; name a file in it"),
        (Path("/dev/null"), "it is a device or a pipe; name a regular file"),
        (tmp_path / ("x" * 300), "File name too long"),
    ]:
        for write in (tokens.save, check_writable_file):
            with pytest.raises(OutputError, match=words) as error:
                write(path)
            one_sentence(error)
    with pytest.raises(OutputError, match="a file is in the way; choose another folder"):
        make_writable_folder(in_the_way / "sub")
    with pytest.raises(OutputError, match="a file is in the way"):
        make_writable_folder(in_the_way)
    assert in_the_way.read_text() == "precious"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, OSError(2, "of some input")])
def test_failed_write_leaves_the_old_file_and_nothing_else(error: Any, tmp_path: Path) -> None:
    target = tmp_path / "out.bin"
    target.write_text("old")
    with (
        pytest.raises(error if isinstance(error, type) else OSError) as caught,
        atomic_write(target) as temporary,
    ):
        temporary.write_text("new but ha")
        raise error
    assert not isinstance(caught.value, OutputError)
    assert target.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["out.bin"]


def test_file_that_must_not_be_replaced_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: Path, target: Path) -> None:  # as in /tmp, for another user's file
        raise PermissionError(1, "Operation not permitted")

    (tmp_path / "x").write_text("old")
    monkeypatch.setattr(Path, "replace", refuse)
    with (
        pytest.raises(
            OutputError, match=r"cannot write '.*x': Operation not permitted; choose another place"
        ),
        atomic_write(tmp_path / "x"),
    ):
        pass
    assert [p.read_text() for p in tmp_path.iterdir()] == ["old"]


def test_full_disk_is_one_sentence(tmp_path: Path) -> None:
    with (
        pytest.raises(OutputError, match="No space left on device; free some space"),
        atomic_write(tmp_path / "x"),
    ):
        raise OSError(28, "No space left on device")


def test_written_file_has_the_usual_mode_and_follows_links(tmp_path: Path) -> None:
    (tmp_path / "plain").touch()
    (tmp_path / "link").symlink_to(tmp_path / "target")
    with atomic_write(tmp_path / "link") as temporary:
        temporary.write_text("new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "target").read_text() == "new"
    assert (tmp_path / "target").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_links_in_a_circle_and_names_that_are_too_long(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(OutputError, match=r"cannot write '.*loop'"), atomic_write(tmp_path / "loop"):
        pass
    long = "x" * 300
    with pytest.raises(TokensError, match="does not exist"):
        DoveTokens.load(tmp_path / long)
    with pytest.raises(CheckpointError, match="there is no model at"):
        DoveModel.from_pretrained(tmp_path / long)
