"""Generator and vocabulary head against eager GPT-NeoX: `python -m benchmarks.gpu.generator [--json PATH]`.

dove-base with random weights, which costs what trained ones cost. The peer is transformers'
GPTNeoXForCausalLM of the same shape, in eager attention, with the arg-max over its logits.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import Tensor

from dove_ext import DoveConfig, DoveModel

from . import device


def neox(config: DoveConfig) -> Any:
    """GPT-NeoX of the generator's shape, or an error that `measure` reports."""
    import transformers

    shape = config.generator
    return transformers.GPTNeoXForCausalLM(
        transformers.GPTNeoXConfig(
            vocab_size=config.vocab_size,
            hidden_size=shape.hidden,
            num_hidden_layers=shape.layers,
            num_attention_heads=shape.heads,
            intermediate_size=shape.mlp,
            hidden_act="gelu",
            use_parallel_residual=True,
            attention_bias=True,
            attn_implementation="eager",
        )
    ).eval()


def generator_flops(config: DoveConfig, batch: int, head: int) -> float:
    """FLOPs of the linear layers, of the attention of causal pairs and of `head` vocabulary rows.

    The last layer's prefix needs keys and values only.
    """
    shape, slots = config.generator, config.num_tokens
    positions = 2 * slots
    per_layer = 4 * shape.hidden**2 + 2 * shape.hidden * shape.mlp
    linear = per_layer * (shape.layers * positions - slots) + 2 * shape.hidden**2 * slots
    pairs = positions * (positions + 1) // 2 * shape.layers - slots * (slots + 1) // 2
    return 2.0 * batch * (linear + 2 * shape.hidden * pairs + shape.hidden * head * slots)


def main(arguments: list[str] | None = None) -> int:
    options = device.arguments(__doc__ or "").parse_args(arguments)
    record = device.begin(options, "generator", arguments)
    config = device.config()
    model = DoveModel(config).to(device.name, torch.bfloat16).eval()
    weight_bytes = 2 * sum(p.numel() for p in model.generator.parameters())

    def ours(latents: Tensor) -> Tensor:
        return model.generator.first_stop(model.generator(model.condition_on(latents)))

    def whole_head(latents: Tensor) -> Tensor:
        return model.generator.p_eos(model.generator(model.condition_on(latents)))

    with torch.no_grad():
        try:
            peer = neox(config).to(device.name, torch.bfloat16)
        except ImportError:
            peer = None

        def eager(latents: Tensor) -> Tensor:
            if peer is None:
                raise ImportError("transformers is not installed")
            x = model.generator.sequence(model.condition_on(latents))
            times = model.generator.times.to(x.dtype).expand(x.shape[0], -1, -1)
            hidden = peer.gpt_neox(inputs_embeds=torch.cat([x, times], 1)).last_hidden_state
            head = peer.get_output_embeddings()  # embed_out, or lm_head since transformers 5
            return head(hidden[:, -config.num_tokens :]).argmax(-1)

        for batch in device.batches(options, 1, 8, 64, 256):
            width = config.vqgan.latent_channels
            latents = torch.randn(batch, config.num_tokens, width, device=device.name, dtype=torch.bfloat16)
            for what, function, head in (
                ("generator, eos_scan", ours, model.generator.witness.numel()),
                ("generator, p_eos", whole_head, config.vocab_size),
            ):
                result = device.measure(
                    {
                        "ours": lambda _, f=function, x=latents: f(x),
                        "GPT-NeoX eager": lambda _, x=latents: eager(x),
                    },
                    sets=1, seconds=options.seconds, kind="bf16", bytes_moved=weight_bytes,
                    flops=generator_flops(config, batch, head),
                )  # fmt: skip
                record.add(f"{what}, B={batch}", {"what": what, "batch": batch, "dtype": "bf16"}, result)
    return 0


if __name__ == "__main__":
    sys.exit(main())
