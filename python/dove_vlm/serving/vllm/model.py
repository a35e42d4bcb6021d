"""The engine's part: the connector, and any causal language model that vLLM has."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from vllm.config import VllmConfig
from vllm.model_executor.models.interfaces import SupportsMultiModal, SupportsPP, supports_pp
from vllm.model_executor.models.utils import (
    AutoWeightsLoader,
    WeightsMapper,
    init_vllm_registered_model,
    maybe_prefix,
)
from vllm.multimodal import MULTIMODAL_REGISTRY
from vllm.sequence import IntermediateTensors

from dove_vlm.configuration import DoveLlavaConfig
from dove_vlm.features import DoveMultiModalProjector
from dove_vlm.serving.requests import joined_rows
from dove_vlm.serving.vllm.processing import (
    DoveDummyInputsBuilder,
    DoveMultiModalProcessor,
    DoveProcessingInfo,
)
from dove_vlm.tiles import TileSeparators


@MULTIMODAL_REGISTRY.register_processor(
    DoveMultiModalProcessor, info=DoveProcessingInfo, dummy_inputs=DoveDummyInputsBuilder
)
class ServedDoveLlava(nn.Module, SupportsMultiModal, SupportsPP):
    """`DoveLlavaForConditionalGeneration` without its tower, which has done its work before the engine.

    Args:
        vllm_config: of the engine.
        prefix: of the weights' names.
    """

    hf_to_vllm_mapper = WeightsMapper(orig_to_new_prefix={"vision_tower.": None})

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__()
        config: DoveLlavaConfig = vllm_config.model_config.hf_config
        self.config = config
        self.configure_mm_token_handling(config.text_config.vocab_size, [config.image_token_id])
        with self._mark_tower_model(vllm_config, "image"):
            self.multi_modal_projector = DoveMultiModalProjector(config)
            self.tile_separators = TileSeparators(config) if config.tile_separators else None
        with self._mark_language_model(vllm_config):
            self.language_model = init_vllm_registered_model(
                vllm_config=vllm_config,
                hf_config=config.text_config,
                prefix=maybe_prefix(prefix, "language_model"),
            )
        if supports_pp(self.language_model):
            self.make_empty_intermediate_tensors = self.language_model.make_empty_intermediate_tensors

    @classmethod
    def get_placeholder_str(cls, modality: str, i: int) -> str | None:
        """What stands for an image where a chat template takes messages as text."""
        if modality == "image":
            return "<image>"
        raise ValueError(f"this model takes no {modality}; leave it out")

    def embed_multimodal(self, **kwargs: Any) -> list[Tensor]:
        """What the language model reads of images.

        Args:
            **kwargs: `image_tokens`, [n_i, D] of each image, in a list or, where all are of a length, in one
                tensor; likewise `image_tile_ends`, int8 [P_i], the kinds of its placeholders;
                `num_image_tokens` [N].

        Returns:
            list[Tensor]: [P_i, hidden] of each.

        Raises:
            ValueError: if they are not as many as were counted.
        """
        if kwargs.get("image_tokens") is None:
            return []
        parts, ends = list(kwargs["image_tokens"]), list(kwargs["image_tile_ends"])
        lengths = joined_rows(parts, ends, [int(n) for n in kwargs["num_image_tokens"]])
        features = self.multi_modal_projector(torch.cat(parts))
        if self.tile_separators is not None:
            features = self.tile_separators(features, torch.cat(ends))
        return list(features.split(lengths))

    def forward(
        self,
        input_ids: Tensor | None,
        positions: Tensor,
        intermediate_tensors: IntermediateTensors | None = None,
        inputs_embeds: Tensor | None = None,
        **kwargs: Any,
    ) -> Tensor | IntermediateTensors:
        """The language model's hidden states."""
        if intermediate_tensors is not None:
            inputs_embeds = None
        return self.language_model(input_ids, positions, intermediate_tensors, inputs_embeds=inputs_embeds)

    def compute_logits(self, hidden_states: Tensor) -> Tensor | None:
        """The language model's."""
        return self.language_model.compute_logits(hidden_states)

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> set[str]:
        """All of the checkpoint but the tower."""
        return AutoWeightsLoader(self).load_weights(weights, mapper=self.hf_to_vllm_mapper)
