"""dove-base's generator and stop in eager PyTorch: all K positions, and the logits of the whole vocabulary.

The weights are the model's own. Attention is PyTorch's `scaled_dot_product_attention`, the fastest that eager
PyTorch has; the arg-max reads materialised logits [B, K, V], since eager code has no other way to find EOS.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dove_ext import DoveModel


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding of the leading dimensions of x [B, H, N, D]; cos and sin [N, R]."""
    turned, rest = x[..., : cos.shape[-1]], x[..., cos.shape[-1] :]
    first, second = turned.chunk(2, dim=-1)
    return torch.cat([turned * cos + torch.cat([-second, first], dim=-1) * sin, rest], dim=-1)


class Eager(nn.Module):
    """Tokens and lengths from latents."""

    def __init__(self, model: DoveModel) -> None:
        super().__init__()
        self.model, self.config = model, model.config
        shape = model.config.generator
        positions = 2 * model.config.num_tokens
        frequency = shape.rotary_base ** -(torch.arange(0, shape.rotary_dim, 2) / shape.rotary_dim)
        angle = (torch.arange(positions)[:, None] * frequency).repeat(1, 2).to(model.device)
        self.cos, self.sin = angle.cos().to(model.dtype), angle.sin().to(model.dtype)

    def hidden(self, latents: Tensor) -> Tensor:
        """Last hidden states [B, K, hidden] of the time positions."""
        generator, slots = self.model.generator, self.config.num_tokens
        times = generator.times.to(latents.dtype).expand(latents.shape[0], -1, -1)
        x = torch.cat([generator.from_latent(latents), times], dim=1)
        for layer in generator.stack.layers:
            normed = layer.input_layernorm(x)
            qkv = layer.attention.query_key_value(normed)
            q, k, v = qkv.unflatten(-1, (self.config.generator.heads, -1)).transpose(1, 2).chunk(3, dim=-1)
            q, k = rotate(q, self.cos, self.sin), rotate(k, self.cos, self.sin)
            attended = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)
            inner = F.gelu(layer.mlp.dense_h_to_4h(layer.post_attention_layernorm(x)))
            x = x + layer.attention.dense(attended) + layer.mlp.dense_4h_to_h(inner)
        return generator.stack.final_layer_norm(x[:, -slots:])

    def forward(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens [B, K, D] and lengths int64 [B] of latents [B, P, C]."""
        hidden = self.hidden(latents)
        ends = self.model.generator.embed_out(hidden).argmax(-1) == self.config.eos_id
        slots = hidden.shape[1]
        lengths = torch.where(ends.any(1), ends.int().argmax(1), slots).clamp_min(1)
        return hidden * (torch.arange(slots, device=hidden.device) < lengths[:, None])[..., None], lengths
