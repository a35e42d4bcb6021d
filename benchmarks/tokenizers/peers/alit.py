"""ALIT ("Adaptive Length Image Tokenization via Recurrent Allocation", arXiv 2411.02393): encode and decode.

A VQGAN's latents and 16-pixel patches make 256 image tokens, and a class token joins them. Each roll-out adds
32 latent tokens and runs the same encoder over all tokens so far; the latent tokens become codes of a
4096-entry codebook of width 12. The decoder turns them into probabilities over the VQGAN's 1024 codes, whose
mean entry is drawn. After a roll-out, image tokens that the decoder already predicts are masked at random
("dynamic halting"). That needs the decoder, and saves nothing: masked tokens stay in the sequence.

Three ways to encode, since a number of tokens can be had in three ways:

1. `encode`: the number is given. Roll-outs only: no decoder, hence no halting. The cheapest reading of ALIT,
   cheaper than its released code.
2. `encode_until`: roll-outs, each decoded to pixels, until the reconstruction is good enough.
3. `encode_as_released`: what the public code's `encode` computes: all eight roll-outs and reconstructions,
   then the choice among them.

Simplified: inference only (no losses, no straight-through terms), and of the variants only the one with VQGAN
and quantised tokens. Parameter names are those of the public files, except the VQGAN's.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .checkpoint import fit, read
from .codebook import UnitCodebook
from .maskgit_vqgan import MaskGitVQGAN, from_mage
from .transformer import Transformer, embedding

PATCHES = 256  # of 16 x 16 pixels
NEW_TOKENS, ROLLOUTS = 32, 8
CODES, CODE_WIDTH = 4096, 12
BASE = "base_tokenizer.vqgan."


class Encoder(nn.Module):
    def __init__(self, width: int, layers: int, heads: int) -> None:
        super().__init__()
        self.transformer = Transformer(width, layers, heads)

    def forward(self, x: Tensor) -> Tensor:
        return self.transformer(x)


class Decoder(nn.Module):
    """Codebook entries [B, n, 12] and 257 mask tokens to logits [B, 256, base codes]."""

    def __init__(self, width: int, layers: int, heads: int, base_codes: int) -> None:
        super().__init__()
        self.decoder_embed = nn.Linear(CODE_WIDTH, width)
        self.latent_token_positional_embedding = embedding(NEW_TOKENS * ROLLOUTS, width)
        self.ln_pre, self.ln_post = nn.LayerNorm(width), nn.LayerNorm(width)
        self.transformer = Transformer(width, layers, heads)
        self.ffn = nn.Sequential(nn.Linear(width, 2 * width), nn.Tanh(), nn.Linear(2 * width, base_codes))

    def forward(self, entries: Tensor, masks: Tensor) -> Tensor:
        latents = self.decoder_embed(entries) + self.latent_token_positional_embedding[: entries.shape[1]]
        x = self.transformer(self.ln_pre(torch.cat([masks, latents], dim=1)))
        return self.ffn(self.ln_post(x[:, 1 : PATCHES + 1]))


class ALIT(nn.Module):
    """The "small" model by default, with random weights.

    Args:
        width: of both transformers.
        layers: of each transformer.
        heads: of each attention.
        base: the 2-D tokenizer; None makes the full one.
        halting: probability of an image token's code, as decoded, from which on the token may be masked (in
            the second and third way of encoding); None masks none.
    """

    def __init__(
        self,
        width: int = 1024,
        layers: int = 8,
        heads: int = 8,
        *,
        base: MaskGitVQGAN | None = None,
        halting: float | None = 0.55,
    ) -> None:
        super().__init__()
        self.halting = halting
        self.base = MaskGitVQGAN() if base is None else base
        base_codes, base_width = self.base.codebook.weight.shape
        self.patch_embed = nn.Conv2d(3, width - base_width, 16, stride=16)
        self.encoder_class_embedding = embedding(1, width)
        self.encoder_positional_embedding = embedding(PATCHES + 1, width)
        self.encoder_mask_token = embedding(1, 1, width)
        self.latent_tokens = embedding(NEW_TOKENS, width)
        self.latent_token_positional_embedding = embedding(NEW_TOKENS, width)
        self.timestep_embedding = embedding(ROLLOUTS, NEW_TOKENS, width)
        self.encoder_ln_pre, self.encoder_ln_recursive = nn.LayerNorm(width), nn.LayerNorm(width)
        self.encoder = Encoder(width, layers, heads)
        self.encoder_ln_post, self.pre_quantizer_mlp = nn.LayerNorm(width), nn.Linear(width, CODE_WIDTH)
        self.quantize = UnitCodebook(CODES, CODE_WIDTH)
        self.decoder_class_embedding = embedding(1, width)
        self.decoder_positional_embedding = embedding(PATCHES + 1, width)
        self.decoder_mask_token = embedding(1, 1, width)
        self.decoder = Decoder(width, layers, heads, base_codes)

    @classmethod
    def from_checkpoint(cls, path: str | Path, *shape: Any, **more: Any) -> ALIT:
        """A model with the averaged weights (`ema`) of a public file, in eval mode.

        Args:
            path: the file.
            shape: as for the constructor, if the file is not that of the "small" model.
            more: likewise.

        Raises:
            CheckpointError: if the file cannot be read, or is not of this size.
        """
        with torch.device("meta"):
            model = cls(*shape, **more)
        averaged = {n.removeprefix("ema."): t for n, t in read(path).items() if n.startswith("ema.")}
        base = {f"base.{n.removeprefix(BASE)}": t for n, t in averaged.items() if n.startswith(BASE)}
        rest = {n: t for n, t in averaged.items() if not n.startswith(("gan_losses.", BASE))}
        fit(model, rest | from_mage(base), path)
        return model

    def base_latents(self, pixels: Tensor) -> Tensor:
        """The VQGAN's latents [B, 256, 16, 16] of pixels [B, 3, 256, 256] in [0, 1], before its codebook."""
        return self.base.encoder(pixels)

    def embed(self, pixels: Tensor, latents: Tensor | None = None) -> Tensor:
        """Image tokens [B, 257, width] of pixels; `latents` are `base_latents(pixels)` if already known."""
        latents = self.base_latents(pixels) if latents is None else latents
        x = torch.cat([latents, self.patch_embed(pixels)], dim=1).flatten(2).transpose(1, 2)
        x = F.normalize(x, dim=-1)
        x = torch.cat([self.encoder_class_embedding.expand(len(x), 1, -1), x], dim=1)
        return x + self.encoder_positional_embedding

    def allocate(self, x: Tensor, tokens: int) -> Tensor:
        """Codes int64 [B, tokens] of image tokens [B, 257, width], by tokens / 32 roll-outs."""
        if tokens not in range(NEW_TOKENS, NEW_TOKENS * ROLLOUTS + 1, NEW_TOKENS):
            raise ValueError(f"ALIT makes 32, 64, ... or 256 tokens, not {tokens}; choose a multiple of 32")
        for step in range(tokens // NEW_TOKENS):
            x = self._roll_out(x, step)
        return self._codes(x)

    def encode(self, pixels: Tensor, tokens: int) -> Tensor:
        """Codes int64 [B, tokens] of pixels [B, 3, 256, 256] in [0, 1]; tokens is 32, 64, ... or 256."""
        return self.allocate(self.embed(pixels), tokens)

    def encode_until(self, pixels: Tensor, l1_threshold: float = 0.07) -> Tensor:
        """Codes int64 [B, n] of the first roll-out whose reconstruction is near enough; one n for the batch.

        Args:
            pixels: [B, 3, 256, 256] in [0, 1].
            l1_threshold: the mean absolute error, over the whole batch, must be below this. If it never is,
                the codes of the last roll-out are returned: 256.
        """
        latents = self.base_latents(pixels)
        known, x = self.base.codes(latents), self.embed(pixels, latents)
        for step in range(ROLLOUTS):
            x = self._roll_out(x, step)
            codes = self._codes(x)
            probabilities = self.detokenize(codes)
            if self._error(self.base_decode(probabilities), pixels) < l1_threshold:
                break
            x = self._halt(x, probabilities, known)
        return codes

    def encode_as_released(self, pixels: Tensor, l1_threshold: float = 0.07) -> Tensor:
        """Codes int64 [B, n] as the public code chooses them: after all roll-outs and reconstructions.

        The first roll-out below the threshold wins, as in `encode_until`; without one, the roll-out with the
        smallest error, which need not be the last.
        """
        latents = self.base_latents(pixels)
        known, x = self.base.codes(latents), self.embed(pixels, latents)
        trials: list[tuple[Tensor, Tensor]] = []
        for step in range(ROLLOUTS):
            x = self._roll_out(x, step)
            codes = self._codes(x)
            probabilities = self.detokenize(codes)
            x = self._halt(x, probabilities, known)
            trials.append((codes, self.base_decode(probabilities)))
        best, chosen = float("inf"), trials[0][0]
        for codes, reconstruction in trials:
            if (error := self._error(reconstruction, pixels)) < best:
                best, chosen = error, codes
            if best < l1_threshold:
                break
        return chosen

    def detokenize(self, codes: Tensor) -> Tensor:
        """Probabilities [B, 256, 1024] over the VQGAN's codes at each place, from codes [B, n]."""
        places = self.decoder_mask_token.expand(len(codes), PATCHES, -1)
        masks = torch.cat([self.decoder_class_embedding.expand(len(codes), 1, -1), places], dim=1)
        masks = masks + self.decoder_positional_embedding
        return self.decoder(self.quantize.decode(codes), masks).softmax(-1)

    def base_decode(self, probabilities: Tensor) -> Tensor:
        """Pixels [B, 3, 256, 256] of probabilities [B, 256, 1024]; about [0, 1] but not clamped."""
        return self.base.decode(probabilities)

    def decode(self, codes: Tensor) -> Tensor:
        """Pixels [B, 3, 256, 256] in [0, 1] of codes [B, n], n up to 256."""
        return self.base_decode(self.detokenize(codes)).clamp(0, 1)

    def _roll_out(self, x: Tensor, step: int) -> Tensor:
        """Append 32 latent tokens to x [B, T, width] and run the encoder: [B, T + 32, width]."""
        new = self.latent_tokens + self.latent_token_positional_embedding + self.timestep_embedding[step]
        x = torch.cat([x, new.expand(len(x), -1, -1)], dim=1)
        return self.encoder(self.encoder_ln_pre(x) if step == 0 else self.encoder_ln_recursive(x))

    def _codes(self, x: Tensor) -> Tensor:
        return self.quantize.encode(self.pre_quantizer_mlp(self.encoder_ln_post(x[:, PATCHES + 1 :])))

    def _halt(self, x: Tensor, probabilities: Tensor, known: Tensor) -> Tensor:
        """Mask image tokens of x, each with the probability that the decoder gives its base code [B, 256]."""
        if self.halting is None:
            return x
        certain = probabilities.gather(2, known[:, :, None])[:, :, 0]
        drop = torch.bernoulli(certain).masked_fill(certain < self.halting, 0)[:, :, None]
        mask = self.encoder_mask_token + self.encoder_positional_embedding[1:]
        image = mask * drop + x[:, 1 : PATCHES + 1] * (1 - drop)
        return torch.cat([x[:, :1], image, x[:, PATCHES + 1 :]], dim=1)

    @staticmethod
    def _error(reconstruction: Tensor, pixels: Tensor) -> float:
        return (reconstruction - pixels).abs().mean(dtype=torch.float32).item()
