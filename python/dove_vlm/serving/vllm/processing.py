"""Pictures to tokens in the process that takes requests: counted and encoded in one pass, and never again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from transformers import BatchFeature
from vllm.multimodal.inputs import MultiModalFieldConfig, MultiModalKwargsItems
from vllm.multimodal.parse import ImageProcessorItems, MultiModalDataItems
from vllm.multimodal.processing import (
    BaseDummyInputsBuilder,
    BaseMultiModalProcessor,
    BaseProcessingInfo,
    PromptReplacement,
)

from dove_vlm.configuration import DoveLlavaConfig
from dove_vlm.processor import DoveLlavaProcessor
from dove_vlm.serving.requests import (
    PER_REQUEST,
    check_prompt,
    image_options,
    rows_of_images,
)

STAND_IN = np.zeros((1, 1, 3), np.uint8)
"""The picture that vLLM measures its memory with, known by its identity: zeros, as many as there can be.

The processes that measure need no encoder, and so load none.
"""


class DoveProcessingInfo(BaseProcessingInfo):
    """What vLLM wants to know before there is a picture."""

    def get_hf_config(self) -> DoveLlavaConfig:
        """The model's."""
        return self.ctx.get_hf_config(DoveLlavaConfig)

    def get_hf_processor(self, **kwargs: object) -> DoveLlavaProcessor:
        """The one of all requests: vLLM keeps a processor, and so an encoder, for each set of options."""
        return self.ctx.get_hf_processor(DoveLlavaProcessor)

    def get_supported_mm_limits(self) -> Mapping[str, int | None]:
        """Any number of images."""
        return {"image": None}

    def get_supported_mm_processor_kwargs(self) -> dict[str, set[str]]:
        """What a request may ask of them."""
        return {"images_kwargs": set(PER_REQUEST)}

    def get_mm_max_tokens_per_item(self, seq_len: int, mm_counts: Mapping[str, int]) -> Mapping[str, int]:
        """K, whatever the picture; in tiles it may fill the prompt."""
        return {"image": self.most}

    @property
    def slots(self) -> int:
        """K of the encoder."""
        return self.get_hf_config().vision_config.max_image_tokens

    @property
    def most(self) -> int:
        """The most placeholders of a picture."""
        return self.ctx.model_config.max_model_len if self.get_hf_config().tile_separators else self.slots

    def image_options(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """What `requests.image_options` makes of a request to this server."""
        return image_options(
            request,
            self.ctx.get_mm_config().mm_processor_kwargs or {},
            self.slots,
            tile_separators=self.get_hf_config().tile_separators,
            tiles=self.get_hf_processor().image_processor.tiles,
        )


class DoveDummyInputsBuilder(BaseDummyInputsBuilder[DoveProcessingInfo]):
    """Inputs of the largest size, for vLLM to measure its memory."""

    def get_dummy_text(self, mm_counts: Mapping[str, int]) -> str:
        """A prompt with room for so many images."""
        return self.info.get_hf_processor().image_token * mm_counts.get("image", 0)

    def get_dummy_mm_data(
        self, seq_len: int, mm_counts: Mapping[str, int], mm_options: Mapping[str, Any]
    ) -> dict[str, Any]:
        """So many of the largest images."""
        return {"image": [STAND_IN] * mm_counts.get("image", 0)}


class DoveMultiModalProcessor(BaseMultiModalProcessor[DoveProcessingInfo]):
    """`DoveImageProcessor` as vLLM calls it; what is wrong with a request ends that request alone."""

    def __init__(self, info: DoveProcessingInfo, dummy_inputs: BaseDummyInputsBuilder[Any]) -> None:
        super().__init__(info, dummy_inputs)
        info.image_options({})  # what is wrong for all requests shows at the start

    def apply(self, inputs: Any, timing_ctx: Any) -> Any:
        """See the class.

        Raises:
            ValueError: if the prompt's placeholders are not those of its pictures (vLLM would leave the rest
                of them in the text), or features come in place of pictures.
        """
        for items in inputs.mm_data_items.values():
            if not isinstance(items, ImageProcessorItems):
                raise ValueError("this model takes pictures, not features made of them; pass the pictures")
        check_prompt(
            inputs.prompt.count(self.info.get_hf_config().image_token_id),
            inputs.mm_data_items.get_count("image", strict=False),
            self.info.get_hf_processor().image_token,
        )
        return super().apply(inputs, timing_ctx)

    def _call_hf_processor(
        self, hf_data: Mapping[str, object], hf_kwargs: Mapping[str, object]
    ) -> BatchFeature:
        images: Any = hf_data["images"]
        width = self.info.get_hf_config().vision_config.hidden_size
        ends = None
        if all(image is STAND_IN for image in images):
            counts = [self.info.most] * len(images)
            tokens = torch.zeros(sum(counts), width)
        else:
            options = self.info.image_options(hf_kwargs)
            made = self.info.get_hf_processor().image_processor(images, return_tensors="pt", **options)
            counts, tokens = made["num_image_tokens"].tolist(), made["image_tokens"]
            ends = made.get("image_tile_ends")
        # In the engine's dtype, as the connector would make them, and half the bytes on the way.
        tokens = tokens.to("cpu", self.info.ctx.model_config.dtype)
        rows, kinds = rows_of_images(tokens, counts, ends, len(images), width)
        return BatchFeature(
            {"image_tokens": rows, "image_tile_ends": kinds, "num_image_tokens": torch.tensor(counts)}
        )

    def _get_mm_fields_config(
        self, hf_inputs: BatchFeature, hf_processor_mm_kwargs: Mapping[str, object]
    ) -> Mapping[str, MultiModalFieldConfig]:
        return {
            "image_tokens": MultiModalFieldConfig.batched("image"),
            "image_tile_ends": MultiModalFieldConfig.batched("image", keep_on_cpu=True),
            "num_image_tokens": MultiModalFieldConfig.batched("image", keep_on_cpu=True),
        }

    def _get_prompt_updates(
        self,
        mm_items: MultiModalDataItems,
        hf_processor_mm_kwargs: Mapping[str, object],
        out_mm_kwargs: MultiModalKwargsItems,
    ) -> Sequence[PromptReplacement]:
        place = self.info.get_hf_config().image_token_id

        def room(item: int) -> list[int]:
            return [place] * len(out_mm_kwargs["image"][item]["image_tile_ends"].data)

        return [PromptReplacement(modality="image", target=[place], replacement=room)]
