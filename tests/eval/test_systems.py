"""What stands side by side: operating points, costs and features."""

from __future__ import annotations

import io

import pytest
import torch
from PIL import Image

from dove_eval.systems import OWN, Codec, Dove, Pixels, Vqgan, mean_and_max
from dove_ext.images.files import to_pil
from tests.models.micro import SLOTS, micro, photos, stop_at_share


@pytest.fixture(scope="module")
def pixels() -> torch.Tensor:
    return photos(4).float() / 127.5 - 1


@pytest.fixture(scope="module")
def dove() -> Dove:
    return Dove(stop_at_share(micro()))


def test_dove_reconstructs_as_encode_and_decode_do(dove: Dove, pixels: torch.Tensor) -> None:
    points = {r.point: r for r in dove.reconstruct(pixels, (4, 16, 1000))}
    assert list(points) == ["4", "16", OWN], "counts that the model lacks are left out"
    images = (pixels + 1) / 2
    for point, result in points.items():
        tokens = dove.model.encode(images, **({} if point == OWN else {"num_tokens": int(point)}))
        assert result.tokens.tolist() == tokens.lengths.tolist()
        assert result.bytes.tolist() == (tokens.lengths * 64 * 2).tolist(), "64 float16 values a token"
        assert torch.allclose((result.images + 1) / 2, dove.model.decode(tokens), atol=1e-4)
    assert len(set(points[OWN].tokens.tolist())) > 1


def test_dove_features(dove: Dove, pixels: torch.Tensor) -> None:
    features = dove.features(pixels, (4, 16))
    tokens, own = dove.generate(pixels)
    assert torch.allclose(features["tokens-4"], mean_and_max(tokens[:, :4]), atol=1e-5)
    for b, n in enumerate(own.tolist()):
        expected = torch.cat([tokens[b, :n].mean(0), tokens[b, :n].amax(0)])
        assert torch.allclose(features[f"tokens-{OWN}"][b], expected, atol=1e-5)
    layers = [name for name in features if name.startswith("time-")]
    assert layers == ["time-0", "time-1", "time-2"], "the stack's input and its two layers"
    layers = [name for name in features if name.startswith("image-")]
    assert layers == ["image-0", "image-1"], "the last layer does not run there"
    # The last layer at the time positions, normalised, is what the head reads.
    hidden = dove.model.generate(dove.model.condition(pixels)).hidden
    assert torch.allclose(features["time-2"], hidden.mean(1), atol=1e-5)
    times = dove.model.generator.times.mean(0).expand(4, -1)
    assert torch.allclose(features["time-0"], times, atol=1e-5)
    again = dove.features(pixels, (4,))
    assert torch.equal(again["image-1"], features["image-1"]), "hooks are gone after each call"


def test_tokens_are_also_pooled_without_their_semantic_part(pixels: torch.Tensor) -> None:
    dove = Dove(stop_at_share(micro(shortcut=True, semantic_width=12)))
    features = dove.features(pixels, (4, 16))
    tokens, width = dove.model.generate(dove.model.condition(pixels)).tokens, dove.model.config.token_width
    assert torch.allclose(features["tokens-16"], mean_and_max(tokens[:, :16]), atol=1e-3)
    assert torch.allclose(features["code-16"], mean_and_max(tokens[:, :16, : width - 12]), atol=1e-3)
    assert not any(name.startswith("code-") for name in Dove(micro(shortcut=True)).features(pixels, (4,)))


def test_what_decides_the_numbers_is_in_the_identity() -> None:
    assert Dove(micro()).identity == Dove(micro()).identity
    assert Dove(micro()).identity != Dove(micro(prefix_attention="bidirectional")).identity


def test_vqgan_with_and_without_codebook(pixels: torch.Tensor) -> None:
    vqgan = micro().vqgan
    quantised = Vqgan(vqgan, 32, "vqgan")
    (result,) = quantised.reconstruct(pixels, (4,))
    with torch.no_grad():
        assert torch.allclose(result.images, vqgan(pixels)[0].clamp(-1, 1), atol=1e-5)
    assert result.point == str(SLOTS) and result.bytes.tolist() == [SLOTS * 4 / 8] * 4, "16 codes, 4 bits"
    features = quantised.features(pixels, (4,))
    with torch.no_grad():
        latents = vqgan.encode(pixels)
    assert torch.allclose(features["latents"], mean_and_max(latents), atol=1e-5)
    assert torch.allclose(features["before-quantisation"], latents.mean(1), atol=1e-5)
    assert [n for n in features if n.startswith("level-")] == ["level-1", "level-2", "level-3"]
    many = quantised.features(pixels.repeat(5, 1, 1, 1), (4,))  # more than the encoder takes at once on a CPU
    for name, value in features.items():
        assert torch.allclose(many[name], value.repeat(5, 1), atol=1e-5), name
    plain = Vqgan(
        micro(vqgan=vqgan.config.__class__(**{**vqgan.config.__dict__, "codebook_size": 0})).vqgan, 32, "a"
    )
    assert plain.token_bytes == 16 * 2


def test_pixels_are_a_thumbnail(pixels: torch.Tensor) -> None:
    thumbnail = Pixels().features(pixels, ())["thumbnail"]
    assert thumbnail.shape == (4, 768)
    assert thumbnail[0, 0] == pytest.approx(pixels[0, 0, :2, :2].mean().item(), abs=1e-6)


@pytest.mark.parametrize("codec", [Codec.jpeg(40), Codec.webp(40)], ids=lambda c: c.name)
def test_codecs_use_their_budget(codec: Codec, pixels: torch.Tensor) -> None:
    counts = (1, 20, 30, 1000)
    points = {r.point: r for r in codec.reconstruct(pixels, counts)}
    smallest = [len(codec.encode(picture, 1)) for picture in to_pil((pixels + 1) / 2)]
    for n in counts:
        for size, least in zip(points[str(n)].bytes.tolist(), smallest, strict=True):
            assert size <= max(n * 40, least)
    assert points["1"].bytes.tolist() == smallest, "no file is that small"
    best = [len(codec.encode(picture, 100)) for picture in to_pil((pixels + 1) / 2)]
    assert points["1000"].bytes.tolist() == best
    error = [(points[str(n)].images - pixels).square().mean().item() for n in counts]
    assert error == sorted(error, reverse=True) and error[-1] < error[0] / 2
    data = codec.encode(to_pil((pixels[:1] + 1) / 2)[0], 50)
    assert Image.open(io.BytesIO(data)).format == codec.kind.upper()
