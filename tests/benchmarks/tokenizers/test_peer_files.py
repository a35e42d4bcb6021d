"""The peers' public files: names, what is dropped, what is refused."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from benchmarks.tokenizers.peers.alit import ALIT
from benchmarks.tokenizers.peers.titok import TiTok
from benchmarks.tokenizers.peers.vqgan import VQGAN
from dove_ext.errors import CheckpointError
from tests.benchmarks.tokenizers.small import SMALL_TITOK, pictures, small_alit, small_base
from tests.models import reference_vqgan


def test_vqgan_is_the_public_model(tmp_path: Path) -> None:
    theirs = VQGAN(300, channels=32)
    nn.init.normal_(theirs.quantize.embedding.weight, std=0.3)
    weights = {**theirs.state_dict(), "loss.discriminator.weight": torch.zeros(3)}
    torch.save({"state_dict": weights, "epoch": 3}, tmp_path / "taming.ckpt")
    vqgan = VQGAN.from_checkpoint(tmp_path / "taming.ckpt", 300, channels=32)
    pixels = pictures()[:, :, :64, :64] * 2 - 1
    indices = vqgan.encode(pixels)
    latents = reference_vqgan.encode(weights, pixels)
    assert torch.equal(indices, reference_vqgan.quantize(weights, latents))
    expected = reference_vqgan.decode(weights, theirs.quantize.embedding(indices)).clamp(-1, 1)
    torch.testing.assert_close(vqgan.decode(indices), expected, rtol=1e-4, atol=1e-5)


def as_released(alit: ALIT) -> dict[str, Tensor]:
    """Weights under the names of ALIT's files, written out rather than taken from the code under test."""
    names = {"base.codebook.": "base_tokenizer.vqgan.quantize.embedding."}
    for part in ("encoder", "decoder"):
        for i in range(2):
            names[f"base.{part}.mid.{i}."] = f"base_tokenizer.vqgan.{part}.mid.block_{i + 1}."
    tensors = {}
    for name, tensor in alit.state_dict().items():
        for ours, theirs in {**names, "base.": "base_tokenizer.vqgan."}.items():
            if name.startswith(ours):
                name = theirs + name.removeprefix(ours)
        tensors[name.replace("upsample_conv", "upsample.conv")] = tensor
    return tensors


def test_alit_reads_its_files(tmp_path: Path) -> None:
    alit = small_alit()
    averaged = {**as_released(alit), "gan_losses.0.discriminator.weight": torch.zeros(2)}
    assert "base_tokenizer.vqgan.decoder.up.1.upsample.conv.weight" in averaged
    assert "base_tokenizer.vqgan.encoder.mid.block_2.conv1.weight" in averaged
    file = tmp_path / "alit.pth"
    torch.save({"model": {}, "ema": averaged, "args": argparse.Namespace(lr=1e-4), "epoch": 9}, file)
    loaded = ALIT.from_checkpoint(file, 64, 1, 2, base=small_base())
    pixels = pictures()
    codes = alit.encode(pixels, 64)
    assert torch.equal(loaded.encode(pixels, 64), codes)
    assert torch.equal(loaded.decode(codes), alit.decode(codes))


def test_titok_reads_its_files_and_names_what_does_not_fit(tmp_path: Path) -> None:
    titok, file = TiTok(SMALL_TITOK, pixel_channels=32).eval(), tmp_path / "titok.safetensors"
    weights = titok.state_dict()
    save_file(weights, file)
    loaded = TiTok.from_checkpoint(file, SMALL_TITOK, pixel_channels=32)
    pixels = pictures()
    codes = titok.encode(pixels)
    assert torch.equal(loaded.encode(pixels), codes)
    assert torch.equal(loaded.decode(codes), titok.decode(codes))
    weights["extra.weight"] = weights.pop("encoder.conv_out.bias")
    weights["latent_tokens"] = torch.zeros(5, 64)
    save_file(weights, file)
    with pytest.raises(CheckpointError) as caught:
        TiTok.from_checkpoint(file, SMALL_TITOK, pixel_channels=32)
    assert str(caught.value) == (
        f"{file} does not fit TiTok: it lacks 'encoder.conv_out.bias', the model has no place for its "
        "'extra.weight', the model has other shapes for its 'latent_tokens'; "
        "give the file of this model and size"
    )
