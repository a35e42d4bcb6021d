"""The layouts of public checkpoints: how to know one by its names, and what our name of each tensor is."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from dove_ext.checkpoints.read import ForeignWeights, UnknownLayoutError
from dove_ext.config import DoveConfig
from dove_ext.errors import CheckpointError

CODEBOOK = "quantize.embedding.weight"
STACKS = ("generator.stack.", "token_decoder.stack.")
# Buffers that older GPT-NeoX files carry and that follow from the configuration.
_NEOX_BUFFERS = (".attention.rotary_emb.inv_freq", ".attention.bias", ".attention.masked_bias")


_NEOX_NORM = "gpt_neox.final_layer_norm.weight"
# The second is its name in the state_dict of transformers 5, whose save_pretrained writes the first.
_NEOX_HEADS = ("embed_out.weight", "lm_head.weight")


@dataclass(frozen=True)
class Source:
    """What was made of one file.

    Attributes:
        path: the file.
        sha256: of its bytes.
        layout: "taming VQGAN", "diffusers VQGAN" or "GPT-NeoX".
        used: names of the file's tensors that went into the model.
        dropped: names of those that the model has no use for.
    """

    path: Path
    sha256: str
    layout: str
    used: tuple[str, ...]
    dropped: tuple[str, ...]


def from_vqgan(weights: ForeignWeights) -> tuple[dict[str, Tensor], Source]:
    """A VQGAN's tensors under our names, and what became of the file.

    Raises:
        UnknownLayoutError: if the names are no VQGAN's.
        CheckpointError: if they are those of another known kind of file.
    """
    names = set(weights.tensors)
    if "quantize.embed.weight" in names or any(n.startswith("quantize.proj.") for n in names):
        raise CheckpointError(
            f"{weights.path} is a Gumbel VQGAN (quantize.embed, quantize.proj): its codes are chosen by a "
            "learned projection; use a VQGAN with a nearest-neighbour codebook"
        )
    _refuse_ours(weights)
    if _NEOX_NORM in names:
        raise CheckpointError(f"{weights.path} is a GPT-NeoX (Pythia) file, not a VQGAN; give it as --pythia")
    if {CODEBOOK, "encoder.mid_block.resnets.0.conv1.weight"} <= names:
        return _rename(weights, "diffusers VQGAN", _from_diffusers(weights))
    if {CODEBOOK, "encoder.mid.block_1.conv1.weight"} <= names:
        # The loss holds its own networks (LPIPS, the discriminator), which only training needs.
        return _rename(weights, "taming VQGAN", lambda n: None if n.startswith("loss.") else f"vqgan.{n}")
    raise UnknownLayoutError(
        f"{weights.path} is no VQGAN checkpoint of a known layout; nothing was written", weights
    )


def from_pythia(weights: ForeignWeights, config: DoveConfig) -> tuple[dict[str, Tensor], Source]:
    """Pythia's tensors under our names, its layers once for each stack, and what became of the file.

    Raises:
        UnknownLayoutError: if the names are not GPT-NeoX's.
        CheckpointError: if they are those of another known kind of file.
    """
    names = set(weights.tensors)
    _refuse_ours(weights)
    if CODEBOOK in names:
        raise CheckpointError(f"{weights.path} is a VQGAN file, not Pythia; give it as --vqgan")
    heads = [name for name in _NEOX_HEADS if name in names]
    missing = [n for n in ("gpt_neox.layers.0.mlp.dense_h_to_4h.weight", _NEOX_NORM) if n not in names]
    if missing or not heads:
        lacks = [repr(name) for name in missing] + ([] if heads else [" or ".join(map(repr, _NEOX_HEADS))])
        raise UnknownLayoutError(
            f"{weights.path} is no whole GPT-NeoX checkpoint: it lacks {', '.join(lacks)}; "
            "nothing was written",
            weights,
        )
    if len(heads) > 1:
        raise CheckpointError(f"{weights.path} has two heads, {' and '.join(map(repr, heads))}; remove one")

    def rename(name: str) -> str | None:
        if name.endswith(_NEOX_BUFFERS):
            return None
        if name == "gpt_neox.embed_in.weight":
            return "generator.embed_in.weight" if config.query_vocab_size else None
        if name.startswith("gpt_neox."):
            return STACKS[0] + name.removeprefix("gpt_neox.")
        return "generator.embed_out.weight" if name in heads else f"generator.{name}"

    part, source = _rename(weights, "GPT-NeoX", rename)
    # Copies: safetensors refuses to save two names of one memory.
    twins = {
        n.replace(STACKS[0], STACKS[1], 1): t.clone() for n, t in part.items() if n.startswith(STACKS[0])
    }
    return {**part, **twins}, source


def _refuse_ours(weights: ForeignWeights) -> None:
    if any(name.startswith("vqgan.decoder.") for name in weights.tensors):
        raise CheckpointError(f"{weights.path} is a dove model already; give its folder as --base")


def _rename(
    weights: ForeignWeights, layout: str, rename: Callable[[str], str | None]
) -> tuple[dict[str, Tensor], Source]:
    renamed = {name: rename(name) for name in weights.tensors}
    used = tuple(name for name, ours in renamed.items() if ours is not None)
    dropped = tuple(name for name, ours in renamed.items() if ours is None)
    part = {ours: weights.tensors[name] for name, ours in renamed.items() if ours is not None}
    return part, Source(weights.path, weights.sha256, layout, used, dropped)


# diffusers' names of the same network, part by part of a name.
_DIFFUSERS = (
    (r"\bmid_block\.resnets\.0\b", "mid.block_1"),
    (r"\bmid_block\.resnets\.1\b", "mid.block_2"),
    (r"\bmid_block\.attentions\.0\b", "mid.attn_1"),
    (r"\bdown_blocks\b", "down"),
    (r"\bresnets\b", "block"),
    (r"\battentions\b", "attn"),
    (r"\b(down|up)samplers\.0\b", r"\1sample"),
    (r"\bconv_shortcut\b", "nin_shortcut"),
    (r"\bconv_norm_out\b", "norm_out"),
    (r"\bgroup_norm\b", "norm"),
    (r"\bto_out\.0\b|\bproj_attn\b", "proj_out"),
    (r"\bto_([qkv])\b", r"\1"),
    (r"\b(query|key|value)\b", lambda found: found[1][0]),
)


def _from_diffusers(weights: ForeignWeights) -> Callable[[str], str | None]:
    """The renaming of a diffusers VQModel, whose decoder counts its levels from the coarsest."""
    levels = [int(f[1]) for n in weights.tensors if (f := re.match(r"decoder\.up_blocks\.(\d+)\.", n))]
    last = max(levels, default=0)
    for name, tensor in weights.tensors.items():
        # The attention's 1x1 convolutions are Linear layers there.
        if tensor.dim() == 2 and name != CODEBOOK:
            weights.tensors[name] = tensor[:, :, None, None]

    def rename(name: str) -> str:
        name = re.sub(r"\bup_blocks\.(\d+)\b", lambda found: f"up.{last - int(found[1])}", name)
        for pattern, ours in _DIFFUSERS:
            name = re.sub(pattern, ours, name)
        return f"vqgan.{name}"

    return rename
