"""Packages of AOTInductor give what the library gives, from Python and from C++."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
import torch
from PIL import Image

from dove_ext.export import export
from dove_ext.models.dove import DoveModel
from tests.export.test_graphs import BATCHES, pictures
from tests.house.test_cpp import EXAMPLE, GENERATOR, cmake, installed
from tests.models.micro import micro, stop_at_share


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def model(request: pytest.FixtureRequest) -> DoveModel:
    return stop_at_share(micro()).to(getattr(torch, request.param))


@pytest.fixture(scope="module")
def files(model: DoveModel, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return export(model, "aoti", tmp_path_factory.mktemp("aoti"))


def test_they_give_the_librarys_tokens_lengths_and_pictures(model: DoveModel, files: list[Path]) -> None:
    encoder, packed_encoder, decoder = (torch._inductor.aoti_load_package(str(file)) for file in files)
    precise = stop_at_share(micro())
    for count in BATCHES:
        x = pictures(count)
        expected = model.encode(x)
        tokens, lengths = encoder(x)
        packed, ends = packed_encoder(x)
        assert len(packed) == int(ends[-1]) and ends.diff().tolist() == lengths.tolist()
        if model.dtype == torch.float32:  # where stops are within rounding of one another bfloat16 may differ
            assert torch.equal(lengths, expected.lengths)
            torch.testing.assert_close(packed, expected.tokens, atol=1e-4, rtol=1e-4)
        decoded = decoder(tokens, lengths)
        kept = [row[:n] for row, n in zip(tokens, lengths.tolist(), strict=True)]
        assert torch.equal(torch.cat(kept), packed)
        whole = model.encode(x, num_tokens=model.config.num_tokens).to_padded()[0]
        if model.dtype == torch.float32:
            assert (tokens - whole).norm() < 1e-5 * whole.norm()
        else:  # within twice what the library itself loses in that dtype
            exact = precise.encode(x, num_tokens=model.config.num_tokens).to_padded()[0]
            assert (tokens - exact).norm() < 2 * (whole - exact).norm()
        assert decoded.dtype == torch.float32 and decoded.min() >= 0 and decoded.max() <= 1


@pytest.fixture(scope="module")
def prefix(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An installed library."""
    return installed(tmp_path_factory.mktemp("library"))


def built(folder: Path, prefix: Path, *options: str) -> Path:
    """encode, against that library and the libtorch of this environment."""
    places = f"-DCMAKE_PREFIX_PATH={prefix}", f"-DTORCH={Path(torch.__file__).parent}"
    cmake("-S", EXAMPLE, "-B", folder / "example", *GENERATOR, *places, *options)
    cmake("--build", folder / "example", "--target", "encode")
    return folder / "example" / "encode"


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory, prefix: Path) -> Path:
    return built(tmp_path_factory.mktemp("program"), prefix)


@pytest.fixture(scope="module")
def reads_png(program: Path) -> bool:
    """Whether CMake found libpng here."""
    return "PNG_LIBRARY_RELEASE:FILEPATH=/" in (program.parent / "CMakeCache.txt").read_text()


def png(path: Path, pixels: torch.Tensor, mode: str = "RGB") -> Path:
    Image.fromarray(pixels.permute(1, 2, 0).numpy()).convert(mode).save(path)
    return path


def ppm(path: Path, pixels: torch.Tensor) -> Path:
    height, width = pixels.shape[1:]
    path.write_bytes(b"P6\n%d %d\n255\n" % (width, height) + pixels.permute(1, 2, 0).numpy().tobytes())
    return path


def test_a_program_without_python(program: Path, model: DoveModel, files: list[Path], tmp_path: Path) -> None:
    if model.dtype != torch.float32:
        pytest.skip("one dtype is enough for the program")
    expected = model.encode(pictures(3)).lengths.tolist()
    for pixels, length in zip(torch.round(pictures(3) * 255).to(torch.uint8), expected, strict=True):
        done = subprocess.run(
            [program, files[0], ppm(tmp_path / "a.ppm", pixels)], capture_output=True, text=True, check=False
        )
        assert done.stdout == f"{length} tokens of {model.config.token_width} values\n", done.stderr


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "P"])
def test_a_png_is_read_as_the_library_reads_it(
    program: Path, reads_png: bool, model: DoveModel, files: list[Path], tmp_path: Path, mode: str
) -> None:
    if model.dtype != torch.float32 or not reads_png:
        pytest.skip("one dtype is enough for the program" if reads_png else "no libpng here")
    path = png(tmp_path / "a.png", torch.round(pictures(3)[1] * 255).to(torch.uint8), mode)
    length = int(model.encode([path]).lengths)
    done = subprocess.run([program, files[0], path], capture_output=True, text=True, check=False)
    assert done.stdout == f"{length} tokens of {model.config.token_width} values\n", done.stderr


def test_a_png_that_is_cut_short(program: Path, reads_png: bool, files: list[Path], tmp_path: Path) -> None:
    if not reads_png:
        pytest.skip("no libpng here")
    whole = png(tmp_path / "whole.png", torch.round(pictures(1)[0] * 255).to(torch.uint8)).read_bytes()
    for kept in (20, len(whole) // 2):
        (tmp_path / "torn.png").write_bytes(whole[:kept])
        line = [program, files[0], tmp_path / "torn.png"]
        done = subprocess.run(line, capture_output=True, text=True, check=False)
        assert done.returncode == 1 and "torn.png cannot be read as PNG: " in done.stderr
        assert done.stderr.count("\n") == 1


def test_without_libpng_a_png_is_one_sentence(
    prefix: Path, model: DoveModel, files: list[Path], tmp_path: Path
) -> None:
    if model.dtype != torch.float32:
        pytest.skip("one dtype is enough for the program")
    program = built(tmp_path, prefix, "-DCMAKE_DISABLE_FIND_PACKAGE_PNG=ON")
    path = png(tmp_path / "a.png", torch.zeros(3, 32, 32, dtype=torch.uint8))
    done = subprocess.run([program, files[0], path], capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "is a PNG, which this program was built without libpng for" in done.stderr


def test_it_says_what_is_wrong(program: Path, model: DoveModel, files: list[Path], tmp_path: Path) -> None:
    wide = ppm(tmp_path / "wide.ppm", torch.zeros(3, 32, 40, dtype=torch.uint8))
    torn = tmp_path / "torn.ppm"
    torn.write_bytes(wide.read_bytes()[:-1])
    text = tmp_path / "text.ppm"
    text.write_text("hello")
    for picture, sentence in (
        (wide, "pixels must be float32 [B, 3, S, S]"), (torn, "is cut short"), (text, "is neither a PNG nor"),
    ):  # fmt: skip
        done = subprocess.run([program, files[0], picture], capture_output=True, text=True, check=False)
        assert done.returncode == 1 and sentence in done.stderr
