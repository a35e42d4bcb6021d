"""Small files in the layouts of the public checkpoints, as the tests of `dove convert` need them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from dove_ext import DoveModel
from dove_ext.config import DoveConfig
from tests.models.micro import MICRO

# The micro model as far as public checkpoints go: no patch stem, head without a bias.
CONFIG = DoveConfig(
    **{f: getattr(MICRO, f) for f in MICRO.__dataclass_fields__}
    | {
        "name": "small",
        "vqgan": replace(MICRO.vqgan, stem_patch=1, channel_multipliers=(1, 1, 2), codebook_size=16),
        "vocab_size": 40,
        "head_bias": False,
    }
)


def taming(codes: int = 24) -> dict[str, Tensor]:
    """A taming VQGAN of CONFIG's shape."""
    torch.manual_seed(1)
    vqgan = DoveModel(replace(CONFIG, vqgan=replace(CONFIG.vqgan, codebook_size=codes))).vqgan
    return {name: torch.randn(tensor.shape) for name, tensor in vqgan.state_dict().items()}


def pythia(layers: int = 2) -> dict[str, Tensor]:
    """A half-precision GPT-NeoX file of CONFIG's shape, with the buffers of older ones."""
    generator = torch.Generator().manual_seed(2)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).half()

    tensors = {"gpt_neox.embed_in.weight": random(40, 64), "embed_out.weight": random(40, 64)}
    for i in range(layers):
        layer = f"gpt_neox.layers.{i}"
        for name, rows, columns in (
            ("attention.query_key_value", 192, 64),
            ("attention.dense", 64, 64),
            ("mlp.dense_h_to_4h", 128, 64),
            ("mlp.dense_4h_to_h", 64, 128),
        ):
            tensors[f"{layer}.{name}.weight"] = random(rows, columns)
            tensors[f"{layer}.{name}.bias"] = random(rows)
        for name in ("input_layernorm", "post_attention_layernorm"):
            tensors |= {f"{layer}.{name}.weight": random(64), f"{layer}.{name}.bias": random(64)}
        tensors[f"{layer}.attention.bias"] = torch.ones(1, 1, 8, 8, dtype=torch.bool)
        tensors[f"{layer}.attention.masked_bias"] = torch.tensor(-1e9)
        tensors[f"{layer}.attention.rotary_emb.inv_freq"] = random(4)
    return tensors | {
        "gpt_neox.final_layer_norm.weight": random(64),
        "gpt_neox.final_layer_norm.bias": random(64),
    }


def saved(tensors: Mapping[str, Any], file: Path) -> Path:
    save_file(dict(tensors), file)
    return file


def diffusers(vqgan: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same VQGAN in diffusers' names, written out rather than derived from the rules under test."""
    named = {}
    for name, tensor in vqgan.items():
        part, *rest = name.split(".")
        if rest[0] in ("down", "up"):
            level = int(rest[1]) if rest[0] == "down" else 2 - int(rest[1])
            kind = {"block": "resnets", "attn": "attentions"}.get(rest[2], f"{rest[2]}rs.0")
            rest = [f"{rest[0]}_blocks", str(level), kind, *rest[3:]]
        elif rest[0] == "mid":
            place = {"block_1": "resnets.0", "block_2": "resnets.1", "attn_1": "attentions.0"}[rest[1]]
            rest = ["mid_block", place, *rest[2:]]
        elif rest[0] == "norm_out":
            rest[0] = "conv_norm_out"
        joined = ".".join([part, *rest]).replace("nin_shortcut", "conv_shortcut")
        if "attentions" in joined:
            for ours, theirs in (
                ("norm", "group_norm"),
                ("proj_out", "to_out.0"),
                *((c, f"to_{c}") for c in "qkv"),
            ):
                joined = joined.replace(f".{ours}.", f".{theirs}.")
            tensor = tensor[:, :, 0, 0].contiguous() if tensor.dim() == 4 else tensor
        named[joined] = tensor
    return named
