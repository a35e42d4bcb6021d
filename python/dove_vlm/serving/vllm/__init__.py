"""vLLM's plugin: a `DoveLlavaForConditionalGeneration` is served from the folder that it was saved to.

    vllm serve out/vlm/model

vLLM calls `register` in each of its processes (entry point `vllm.general_plugins`). Pictures are encoded and
counted once, in the process that takes requests (`processing`); the engine gets their tokens (`model`).
"""

from __future__ import annotations

ARCHITECTURE = "DoveLlavaForConditionalGeneration"


def register() -> None:
    """Tell vLLM of the model; its configuration is known to transformers by then."""
    from vllm import ModelRegistry

    if ARCHITECTURE not in ModelRegistry.get_supported_archs():
        # By name: the process that takes requests needs no model.
        ModelRegistry.register_model(ARCHITECTURE, "dove_vlm.serving.vllm.model:ServedDoveLlava")
