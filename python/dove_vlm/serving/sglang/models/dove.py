"""The scheduler's part: the connector, and any causal language model that SGLang has."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from sglang.srt.managers.mm_utils import general_mm_embed_routine, pad_mm_tokens
from sglang.srt.managers.schedule_batch import Modality, MultimodalDataItem, MultimodalInputs
from sglang.srt.model_executor.forward_batch_info import ForwardBatch
from sglang.srt.model_loader.weight_utils import default_weight_loader
from sglang.srt.models.registry import ModelRegistry
from sglang.srt.utils import add_prefix
from torch import Tensor, nn
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from dove_vlm.configuration import DoveLlavaConfig
from dove_vlm.features import DoveMultiModalProjector
from dove_vlm.serving.requests import joined_rows
from dove_vlm.tiles import TileSeparators


class DoveLlavaForConditionalGeneration(nn.Module):
    """The model of this name without its tower, which has done its work before; SGLang finds it by the name.

    Args:
        config: of the model.
        quant_config: for the language model.
        prefix: of the weights' names.
    """

    def __init__(self, config: DoveLlavaConfig, quant_config: Any = None, prefix: str = "") -> None:
        super().__init__()
        self.config = config
        text: Any = config.text_config
        self.multi_modal_projector = DoveMultiModalProjector(config)
        self.tile_separators = TileSeparators(config) if config.tile_separators else None
        named = getattr(text, "architectures", None) or [MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[text.model_type]]
        language_model, _ = ModelRegistry.resolve_model_cls(named)
        self.language_model = language_model(
            text, quant_config=quant_config, prefix=add_prefix("language_model", prefix)
        )

    def pad_input_ids(self, input_ids: array[int], mm_inputs: MultimodalInputs) -> array[int]:
        """Each picture's placeholders as its own numbers, by which prefixes are kept apart."""
        return pad_mm_tokens(input_ids, mm_inputs)

    def get_image_feature(self, items: list[MultimodalDataItem]) -> list[Tensor]:
        """What the language model reads of pictures.

        Args:
            items: as the processor makes them: tokens, or rows that a client has made.

        Returns:
            list[Tensor]: [P_i, hidden] of each.

        Raises:
            ValueError: if they are not as many as were counted.
        """
        weight = self.multi_modal_projector.linear_1.weight
        counts = [sum(end - start + 1 for start, end in item.offsets) for item in items]
        features: list[Tensor | None] = [
            item.feature.to(weight.device, weight.dtype) if item.is_precomputed_embedding() else None
            for item in items
        ]
        waiting = [i for i, feature in enumerate(features) if feature is None]
        if waiting:
            parts = [items[i].feature.to(weight.device) for i in waiting]
            ends = [items[i].image_tile_ends for i in waiting]
            lengths = joined_rows(parts, ends, [counts[i] for i in waiting])
            made = self.multi_modal_projector(torch.cat(parts))
            if self.tile_separators is not None:
                made = self.tile_separators(made, torch.cat(ends))
            for i, part in zip(waiting, made.split(lengths), strict=True):
                features[i] = part
        return [feature for feature in features if feature is not None]

    def forward(
        self, input_ids: Tensor, positions: Tensor, forward_batch: ForwardBatch, get_embedding: bool = False
    ) -> Any:
        """The language model's logits."""
        return general_mm_embed_routine(
            input_ids=input_ids,
            forward_batch=forward_batch,
            language_model=self.language_model,
            data_embedding_funcs={Modality.IMAGE: self.get_image_feature},
            positions=positions,
            get_embedding=get_embedding,
        )

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        """All of the checkpoint but the tower."""
        own = dict(self.named_parameters())

        def of_language_model() -> Iterator[tuple[str, Tensor]]:
            for name, weight in weights:
                if name.startswith("language_model."):
                    yield name.removeprefix("language_model."), weight
                elif not name.startswith("vision_tower."):
                    default_weight_loader(own[name], weight)

        self.language_model.load_weights(of_language_model())


EntryClass = DoveLlavaForConditionalGeneration
