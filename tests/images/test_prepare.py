"""Reading and preparing pictures that are as they should be; test_bad_input.py has the others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from dove_ext.images import prepare_images, read_image, save_image, to_pil

FITS = ("crop", "squash", "pad")


def photo(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Smooth colours with some noise, uint8 [H, W, 3]."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0 : 1 : complex(height), 0 : 1 : complex(width)]
    waves = np.stack([np.sin(7 * x + 3 * y), np.cos(5 * y - x), x * y], axis=-1)
    return (127 + 100 * waves + rng.normal(0, 8, waves.shape)).clip(0, 255).astype(np.uint8)


@pytest.mark.parametrize("fit", FITS)
@pytest.mark.parametrize("shape", [(40, 70), (301, 200), (32, 32), (5, 3)])
def test_every_kind_of_input_gives_the_same_bits(shape: tuple[int, int], fit: Any, tmp_path: Path) -> None:
    array = photo(*shape)
    path = tmp_path / "photo.png"
    Image.fromarray(array).save(path)
    tensor = torch.from_numpy(array).permute(2, 0, 1)
    kinds: dict[str, Any] = {
        "path": path,
        "str": str(path),
        "PIL": Image.fromarray(array),
        "HWC array": array,
        "NHWC array": array[None],
        "flipped array": np.flip(array, 1)[:, ::-1],
        "CHW view": tensor,
        "CHW": tensor.contiguous(),
        "batch": tensor[None],
        "channels-last batch": tensor[None].contiguous(memory_format=torch.channels_last),
        "float tensor": tensor.float() / 255,
        "float array": array.astype(np.float32) / np.float32(255),
    }
    results = {name: prepare_images(kind, 32, fit=fit) for name, kind in kinds.items()}
    for name, result in results.items():
        assert torch.equal(result, results["path"]), name
    mixed = prepare_images([k for k in kinds.values() if getattr(k, "ndim", 3) == 3], 32, fit=fit)
    assert mixed.shape == (9, 3, 32, 32)
    assert (mixed == results["path"]).all()
    assert mixed.is_contiguous() and mixed.dtype == torch.float32
    assert mixed.min() >= -1 and mixed.max() <= 1


def test_resampling_is_antialiased_bicubic() -> None:
    array = photo(210, 150)
    expected = Image.fromarray(array).resize((64, 64), Image.Resampling.BICUBIC)
    actual = to_pil((prepare_images(array, 64, fit="squash") + 1) / 2)[0]
    difference = np.abs(np.asarray(actual).astype(int) - np.asarray(expected).astype(int))
    assert difference.max() <= 1  # Pillow rounds to 8 bits between the two directions


def test_crop_is_the_centred_square() -> None:
    array = photo(60, 100)
    torch.testing.assert_close(prepare_images(array, 32), prepare_images(array[:, 20:80], 32), rtol=0, atol=0)
    torch.testing.assert_close(prepare_images(array, 60), prepare_images(array[:, 20:80], 60), rtol=0, atol=0)


def test_image_of_the_right_size_is_not_resampled() -> None:
    array = photo(32, 32)
    actual = (prepare_images(array, 32) + 1) / 2 * 255
    torch.testing.assert_close(actual[0].permute(1, 2, 0), torch.from_numpy(array).float(), rtol=0, atol=1e-4)


@pytest.mark.parametrize("shape", [(20, 40), (40, 20), (21, 40)])
def test_pad_keeps_the_aspect_between_mid_grey_margins(shape: tuple[int, int]) -> None:
    result = prepare_images(np.full((*shape, 3), 255, np.uint8), 40, fit="pad")[0]
    picture = result[0] > 0.99
    assert int(picture.any(1).sum()) == shape[0] and int(picture.any(0).sum()) == shape[1]
    assert (result[:, ~picture] == 0).all()
    rows = picture.any(1).nonzero().flatten()
    assert abs(int(rows[0]) - (39 - int(rows[-1]))) <= 1, "not in the middle"


@pytest.mark.parametrize("fit", FITS)
def test_one_pixel(fit: Any) -> None:
    result = prepare_images(np.array([[[255, 0, 51]]], np.uint8), 16, fit=fit)
    torch.testing.assert_close(result[0, :, 3, 9], torch.tensor([1.0, -1.0, -0.6]))
    assert (result == result[..., :1, :1]).all()


def test_grey_arrays_become_rgb() -> None:
    grey = photo(30, 40)[:, :, 0]
    for kind in (grey, grey[:, :, None], torch.from_numpy(grey)[None]):
        assert torch.equal(prepare_images(kind, 16), prepare_images(np.stack([grey] * 3, -1), 16))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_float_dtypes(dtype: torch.dtype) -> None:
    image = torch.rand(3, 20, 30)
    actual = prepare_images(image.to(dtype), 16)
    assert actual.dtype == torch.float32
    torch.testing.assert_close(actual, prepare_images(image, 16), rtol=0, atol=0.01)


def test_foreign_byte_order() -> None:
    image = np.random.default_rng(0).random((20, 20, 3))
    assert torch.equal(prepare_images(image.astype(">f4"), 16), prepare_images(image.astype("<f4"), 16))


def test_rounding_outside_the_range_is_clamped() -> None:
    image = torch.tensor([-0.001, 0.5, 1.001]).expand(3, 3, 3)
    assert prepare_images(image, 3).aminmax() == (-1, 1)


def test_gradient_reaches_a_float_tensor() -> None:
    image = torch.rand(2, 3, 20, 20, requires_grad=True)
    prepare_images(image, 16).sum().backward()
    assert image.grad is not None and (image.grad != 0).all()


def test_preparing_twice_changes_no_bit() -> None:
    once = prepare_images([photo(50, 40), photo(33, 90, seed=1)], 32)
    assert torch.equal(prepare_images((once + 1) / 2, 32), once)


def test_squash_takes_a_strip() -> None:
    result = prepare_images(np.tile(np.arange(2000, dtype=np.uint8), (1, 10)), 16, fit="squash")
    assert result.shape == (1, 3, 16, 16)


# --- Files of odd kinds -----------------------------------------------------------------------------------


def saved(tmp_path: Path, image: Image.Image, name: str = "odd.png", **options: Any) -> torch.Tensor:
    image.save(tmp_path / name, **options)
    return read_image(tmp_path / name)


def test_cmyk(tmp_path: Path) -> None:
    cmyk = Image.new("CMYK", (4, 4), (0, 255, 255, 0))  # no cyan, all else: red
    red = saved(tmp_path, cmyk, "cmyk.jpg", quality=100)
    assert red.shape == (3, 4, 4)
    assert red[0].min() > 245 and red[1:].max() < 10


def test_palette(tmp_path: Path) -> None:
    array = photo(8, 8) // 64 * 64
    picture = Image.fromarray(array).quantize(256)
    assert picture.mode == "P"
    assert np.array_equal(
        saved(tmp_path, picture).permute(1, 2, 0).numpy(), np.asarray(picture.convert("RGB"))
    )


def test_palette_with_transparency_lies_on_white(tmp_path: Path) -> None:
    picture = Image.new("P", (2, 1))
    picture.putpalette([255, 0, 0, 0, 0, 255])
    picture.putpixel((1, 0), 1)
    read = saved(tmp_path, picture, transparency=0)
    assert read[:, 0].T.tolist() == [[255, 255, 255], [0, 0, 255]]


@pytest.mark.parametrize(
    "mode, colour, expected",
    [
        ("RGBA", (0, 0, 255, 255), (0, 0, 255)),
        ("RGBA", (0, 0, 255, 0), (255, 255, 255)),
        ("RGBA", (0, 0, 255, 51), (204, 204, 255)),
        ("LA", (0, 51), (204, 204, 204)),
        ("LA", (100, 255), (100, 100, 100)),
        ("L", 77, (77, 77, 77)),
        ("1", 1, (255, 255, 255)),
    ],
)
def test_alpha_and_grey(mode: str, colour: Any, expected: Any, tmp_path: Path) -> None:
    read = saved(tmp_path, Image.new(mode, (3, 2), colour))
    assert read.shape == (3, 2, 3)
    assert read[:, 1, 1].tolist() == list(expected)


def test_transparent_colour_of_an_rgb_file(tmp_path: Path) -> None:
    read = saved(tmp_path, Image.new("RGB", (2, 2), (9, 9, 9)), transparency=(9, 9, 9))
    assert (read == 255).all()


@pytest.mark.parametrize("name", ["deep.png", "deep.tif"])
def test_16_bit_is_scaled_not_clipped(name: str, tmp_path: Path) -> None:
    values = np.array([[0, 257, 32768, 65535]], np.uint16)
    read = saved(tmp_path, Image.fromarray(values), name)
    assert read[:, 0].tolist() == [[0, 1, 128, 255]] * 3


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(orientation: int, tmp_path: Path) -> None:
    from PIL import ImageOps

    picture = Image.fromarray(photo(6, 10))
    exif = Image.Exif()
    exif[0x0112] = orientation
    read = saved(tmp_path, picture, exif=exif)
    with Image.open(tmp_path / "odd.png") as stored:
        upright = np.asarray(ImageOps.exif_transpose(stored))
        assert torch.equal(prepare_images(stored, 8), prepare_images(tmp_path / "odd.png", 8))
    assert np.array_equal(read.permute(1, 2, 0).numpy(), upright)
    assert read.shape == ((3, 6, 10) if orientation < 5 else (3, 10, 6))


def test_animation_gives_its_first_frame(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "lime", "blue")]
    read = saved(tmp_path, frames[0], "moving.gif", save_all=True, append_images=frames[1:])
    assert read[:, 0, 0].tolist() == [255, 0, 0]


# --- Out again --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.uint8])
def test_to_pil(dtype: torch.dtype) -> None:
    array = photo(5, 7)
    image = torch.from_numpy(array).permute(2, 0, 1)
    image = image if dtype == torch.uint8 else (image.float() / 255).to(dtype)
    (picture,) = to_pil(image)
    assert picture.mode == "RGB"
    atol = 1 if dtype == torch.bfloat16 else 0
    assert np.abs(np.asarray(picture).astype(int) - array).max() <= atol
    assert len(to_pil(torch.rand(3, 3, 4, 4))) == 3


def test_save_image_round_trip(tmp_path: Path) -> None:
    array = photo(9, 7)
    path = tmp_path / "out.png"
    path.write_text("old")
    save_image(torch.from_numpy(array).permute(2, 0, 1).float() / 255, path)
    assert np.array_equal(read_image(path).permute(1, 2, 0).numpy(), array)
    assert [p.name for p in tmp_path.iterdir()] == ["out.png"]
