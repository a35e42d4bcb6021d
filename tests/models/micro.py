"""A DOVE model small enough for a test to build: 32 x 32 pixels, up to 64 tokens 64 wide."""

from __future__ import annotations

import dataclasses
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dove_ext.config import DoveConfig, RelevanceConfig, StackConfig, VQGANConfig
from dove_ext.models.dove import DoveModel

STACK = StackConfig(hidden=64, layers=2, heads=2, mlp=128)
MICRO = DoveConfig(
    name="micro",
    image_size=32,
    vqgan=VQGANConfig(
        channels=64,
        channel_multipliers=(1, 2),
        encoder_blocks=1,
        decoder_blocks=1,
        latent_channels=16,
        codebook_size=16,
        stem_patch=2,
    ),
    generator=STACK,
    token_decoder=STACK,
    vocab_size=2,
    head_bias=True,
)
SLOTS = MICRO.num_tokens
assert SLOTS == 64
GRID = MICRO.grid


def micro(**changes: Any) -> DoveModel:
    """A model with fixed random weights, so large that its attention and its stops depend on the image."""
    config = {f: getattr(MICRO, f) for f in MICRO.__dataclass_fields__} | changes
    if config["shortcut"]:  # the code is linear from the pixels on
        config["vqgan"] = dataclasses.replace(config["vqgan"], patch_shortcut=True)
    torch.manual_seed(24)
    model = DoveModel(DoveConfig(**config)).eval()
    for name, parameter in model.named_parameters():
        if parameter.dim() == 2 and "embed_out" not in name and "shortcut" not in name:
            gain = 2.5 if "attention" in name else 1.5
            torch.nn.init.normal_(parameter, std=gain * parameter.shape[1] ** -0.5)
    return model


def photos(count: int, seed: int = 3) -> Tensor:
    """uint8 [count, 3, 32, 32]: colour ramps with more and more noise."""
    generator = torch.Generator().manual_seed(seed)
    colours = torch.rand(count, 3, 4, 4, generator=generator)
    smooth = torch.nn.functional.interpolate(colours, size=32, mode="bilinear")
    noise = torch.rand(count, 3, 32, 32, generator=generator) - 0.5
    amount = torch.linspace(0, 0.6, count)[:, None, None, None]
    return ((smooth + amount * noise).clamp(0, 1) * 255).to(torch.uint8)


def pixels(count: int) -> Tensor:
    """`photos` as a model takes them: [count, 3, 32, 32] in [-1, 1]."""
    return photos(count).float() / 127.5 - 1


def linear(**changes: Any) -> DoveModel:
    """A model whose patch shortcut is an orthonormal code, as the closed form makes it, and encodes alone."""
    vqgan = dataclasses.replace(MICRO.vqgan, patch_shortcut=True, encoder_blocks=0)
    model = micro(vqgan=vqgan, shortcut=True, **changes)
    patch_in, patch_out = model.vqgan.patch_in, model.vqgan.patch_out
    assert patch_in is not None and patch_out is not None and model.shortcut is not None
    patches = torch.nn.functional.unfold(pixels(8), 4, stride=4).transpose(1, 2).flatten(0, 1)
    components = torch.linalg.svd(patches, full_matrices=False).Vh[:16].reshape(16, 3, 4, 4)
    deviation = torch.linspace(4, 0.1, 16)[:, None, None, None]
    with torch.no_grad():
        patch_in.weight.copy_(components / deviation)
        patch_out.weight.copy_(components * deviation)
        patch_in.bias.zero_(), patch_out.bias.zero_()
        coefficients = model.shortcut.transform(model.vqgan.encode(0.4 * pixels(8)))
        model.shortcut.arrange(coefficients.square().mean(0), model.vqgan.worth.repeat(SLOTS))
    return model


@cache
def words() -> str:
    """A tokenizer.json: any text as bytes, some of them joined to pieces of words, 276 ids."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = ["<|endoftext|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=276, initial_alphabet=alphabet, special_tokens=special, show_progress=False
    )
    tokenizer.train_from_iterator(["null", "the dog on the table", "what is on the table?"] * 3, trainer)
    text: str = tokenizer.to_str()
    return text


def asked(folder: Path, **changes: Any) -> DoveModel:
    """A model with query weights and a tokenizer, whose tokens depend on the query."""
    model = micro(**{"query_vocab_size": 276, "query_length": 12, **changes})
    (folder / "tokenizer.json").write_text(words(), encoding="utf-8")
    model.load_tokenizer(folder / "tokenizer.json")
    return model


def pointing(folder: Path, **changes: Any) -> DoveModel:
    """A `linear` model with a relevance map that queries move: "null", and the words of its tokenizer."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    known = ["<unk>", "null", "the", "dog", "table", "on"]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(known)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    (folder / "tokenizer.json").write_text(tokenizer.to_str(), encoding="utf-8")
    shape = RelevanceConfig(
        backbone_width=0.1,
        backbone_depth=0.4,
        word_width=16,
        stack=StackConfig(hidden=32, layers=1, heads=2, mlp=64),
        around=8,
    )
    model = linear(query_vocab_size=len(known), query_length=12, relevance=shape, **changes)
    assert model.relevance is not None
    with torch.no_grad():
        for weight in (model.relevance.words.weight, model.relevance.places.weight):
            torch.nn.init.normal_(weight)
        for convolution in model.relevance.modules():
            if isinstance(convolution, torch.nn.Conv2d):
                torch.nn.init.kaiming_normal_(convolution.weight)
    model.load_tokenizer(folder / "tokenizer.json")
    return model


@torch.no_grad()
def stop_at_share(model: DoveModel, share: float = 0.04) -> DoveModel:
    """Set the head so that EOS wins at about this share of positions; which ones depends on the image."""
    head = model.generator.embed_out
    generator = torch.Generator().manual_seed(11)
    head.weight.copy_(torch.randn(head.weight.shape, generator=generator) * 0.5)
    head.bias.zero_()
    if model.config.shortcut:
        head.weight[:, -1] *= 0.01  # what it reads there is a hundred times as large
    hidden = model.generate(model.condition(photos(8).float() / 127.5 - 1)).hidden
    logits = head(hidden)
    others = torch.arange(head.weight.shape[0]) != model.config.eos_id
    lead = logits[..., model.config.eos_id] - logits[..., others].amax(-1)
    head.bias[model.config.eos_id] = -lead.flatten().quantile(1 - share)
    return model
