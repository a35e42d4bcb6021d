"""A causal language model that reads DOVE tokens through a two-layer connector (3.3, B.1)."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    GenerationMixin,
    LogitsProcessorList,
    PreTrainedModel,
    SuppressTokensLogitsProcessor,
)
from transformers.modeling_outputs import BaseModelOutputWithPooling

from dove_ext.models.dove import DoveModel
from dove_ext.tokens import DoveTokens
from dove_vlm.configuration import DoveLlavaConfig
from dove_vlm.features import DoveMultiModalProjector, PlacedFeatures, packed_tokens, put_in_place
from dove_vlm.placeholders import check_counts, check_places
from dove_vlm.tiles import TileSeparators
from dove_vlm.versions import refuse_chunks
from dove_vlm.vision import DoveVisionModel, keep_weights


def _restarts(position_ids: Tensor, kwargs: dict[str, Any]) -> bool:
    """Whether several prompts stand in a row that begins here; a GPU is waited for."""
    return _cache(kwargs) is None and position_ids.shape[-1] > 1 and bool((position_ids.diff() != 1).any())


def _cache(kwargs: dict[str, Any]) -> Any:
    """The cache of keys and values that is passed on, by the name of any transformers; None: none is."""
    cache = kwargs.get("cache")
    return kwargs.get("past_key_values") if cache is None else cache


class DoveLlavaForConditionalGeneration(PreTrainedModel, GenerationMixin):
    """Vision tower, connector, and any causal language model of transformers.

    Tokens come from a `DoveImageProcessor`, which has encoded them; the tower runs where pixels come in their
    place, for a gradient into the encoder. Images may be several in a row, of unequal numbers, or none.

    Args:
        config: the shape.
        vision_tower: a tower of that shape to hold; None: a new one.
        language_model: a causal language model likewise.
    """

    config_class = DoveLlavaConfig
    config: DoveLlavaConfig
    base_model_prefix = "dove_llava"  # there is no base model without a head
    main_input_name = "input_ids"
    input_modalities = ("image", "text")
    supports_gradient_checkpointing = True
    _no_split_modules = ["DoveMultiModalProjector"]  # noqa: RUF012 (transformers' way)
    _supports_flash_attn = True
    _supports_sdpa = True
    _supports_flex_attn = True
    _supports_attention_backend = True

    def __init__(
        self,
        config: DoveLlavaConfig,
        vision_tower: DoveVisionModel | None = None,
        language_model: PreTrainedModel | None = None,
    ) -> None:
        super().__init__(config)
        for given in (vision_tower, language_model):
            if given is not None:
                keep_weights(given)
        # First: a model's dtype is that of its first weight, and the encoder may keep a finer one.
        self.language_model = language_model or AutoModelForCausalLM.from_config(config.text_config)
        self.vision_tower = vision_tower or AutoModel.from_config(config.vision_config)
        self.multi_modal_projector = DoveMultiModalProjector(config)
        self.tile_separators = TileSeparators(config) if config.tile_separators else None
        # Not all take positions, or spare logits that nobody reads.
        self._text_arguments = set(inspect.signature(self.language_model.forward).parameters)
        self.post_init()

    @property
    def takes_positions(self) -> bool:
        """Whether the language model reads `position_ids`, as packed rows need."""
        return "position_ids" in self._text_arguments

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, TileSeparators):
            module.start()

    @classmethod
    def from_vision_text_pretrained(
        cls,
        vision: str | Path | DoveModel | PreTrainedModel,
        text: str | Path | PreTrainedModel,
        *,
        image_token_id: int,
        **kwargs: Any,
    ) -> DoveLlavaForConditionalGeneration:
        """An encoder and a language model, both trained, with a new connector between them.

        Args:
            vision: a dove_ext model, or its name, folder or hub id; or a tower.
            text: a causal language model of transformers, or what `from_pretrained` finds; its vocabulary
                grows to hold the image token.
            image_token_id: `DoveLlavaProcessor.image_token_id`.
            **kwargs: of `DoveLlavaConfig`.

        Raises:
            CheckpointError: if there is no such encoder.
            OSError: if there is no such language model.
        """
        tower = vision if isinstance(vision, PreTrainedModel) else DoveVisionModel.from_dove(vision)
        model = text if isinstance(text, PreTrainedModel) else AutoModelForCausalLM.from_pretrained(text)
        if image_token_id >= model.get_input_embeddings().num_embeddings:
            # What is looked up there gives way to an image: no mean of the other words is needed.
            model.resize_token_embeddings(image_token_id + 1, mean_resizing=False)
        config = DoveLlavaConfig(
            vision_config=tower.config, text_config=model.config, image_token_id=image_token_id, **kwargs
        )
        made = cls(config, tower.to(model.device), model)
        for connector in (made.multi_modal_projector, made.tile_separators):
            if connector is not None:
                connector.to(model.device, model.dtype)
        if model.generation_config is not None:
            made.generation_config = model.generation_config
        return made.train(model.training)

    # --- What transformers asks for -------------------------------------------------------------------

    def get_input_embeddings(self) -> nn.Module:
        """The language model's."""
        return self.language_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        """The language model's."""
        self.language_model.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Module:
        """The language model's."""
        return self.language_model.get_output_embeddings()

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        """The language model's."""
        self.language_model.set_output_embeddings(new_embeddings)

    # --- Images ---------------------------------------------------------------------------------------

    def get_image_features(
        self,
        pixel_values: Tensor | None = None,
        image_tokens: Tensor | DoveTokens | None = None,
        num_image_tokens: Tensor | Sequence[int] | None = None,
        image_tile_ends: Tensor | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPooling:
        """What the language model reads of images.

        Args:
            pixel_values: [N, 3, S, S] in [-1, 1], for the tower; or None.
            image_tokens: [T, D], all images' one after the other; or a `DoveTokens`.
            num_image_tokens: how many of each, [N]; a `DoveTokens` knows it.
            image_tile_ends: of pictures in tiles, int8 [P], P the sum of `num_image_tokens`: 0 for a token,
                1 where a tile ends, 2 where the last of a row does; a `DoveTokens` knows it. None: no tiles.
            **kwargs: of transformers; without a meaning here.

        Returns:
            BaseModelOutputWithPooling: `pooler_output`, a list of N tensors [n_i, hidden].

        Raises:
            ValueError: if both or none are given, or they do not fit this model or one another.
        """
        if (pixel_values is None) == (image_tokens is None):
            raise ValueError(
                "give either pixel_values or image_tokens: tokens of the processor, or its pictures"
            )
        if pixel_values is not None:
            if image_tile_ends is not None:
                raise ValueError("the tower takes whole pictures; pass image_tokens with image_tile_ends")
            parts = self.vision_tower(pixel_values, num_image_tokens=num_image_tokens).pooler_output
            lengths = [len(part) for part in parts]
            tokens = torch.cat(parts)
        else:
            width = self.config.vision_config.hidden_size
            tokens, lengths, image_tile_ends = packed_tokens(
                image_tokens, num_image_tokens, image_tile_ends, self.tile_separators, width, self.device
            )
        # One product for all images of all rows: nothing is padded on the way.
        features = self.multi_modal_projector(tokens)
        if self.tile_separators is not None:
            features = self.tile_separators(features, image_tile_ends)
        return BaseModelOutputWithPooling(pooler_output=list(features.split(lengths)))

    def _features(
        self,
        pixel_values: Tensor | None,
        image_tokens: Tensor | DoveTokens | None,
        num_image_tokens: Tensor | Sequence[int] | None,
        image_tile_ends: Tensor | None,
        mm_encoder_outputs: dict[str, Any] | None,
    ) -> BaseModelOutputWithPooling | None:
        """The images' features, made here or by the caller; None where there is no image."""
        given = (mm_encoder_outputs or {}).get("image")
        if pixel_values is None and image_tokens is None:
            if given is not None and not hasattr(given, "pooler_output"):
                raise ValueError("mm_encoder_outputs['image'] must be what get_image_features returns")
            if given is not None and not isinstance(given, PlacedFeatures):
                check_counts([len(part) for part in given.pooler_output], num_image_tokens)
            return given
        if given is not None:
            raise ValueError(
                "mm_encoder_outputs has features of images; leave pixel_values and image_tokens out"
            )
        return self.get_image_features(pixel_values, image_tokens, num_image_tokens, image_tile_ends)

    def _placeholders(self, input_ids: Tensor | None, inputs_embeds: Tensor | None) -> Tensor:
        """Bool [B, L]: where image tokens go."""
        if input_ids is not None:
            return input_ids == self.config.image_token_id
        assert inputs_embeds is not None
        place = torch.tensor(self.config.image_token_id, device=inputs_embeds.device)
        return (inputs_embeds == self.get_input_embeddings()(place)).all(-1)

    # --- Running --------------------------------------------------------------------------------------

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        logits_to_keep: int | Tensor = 0,
        pixel_values: Tensor | None = None,
        image_tokens: Tensor | DoveTokens | None = None,
        num_image_tokens: Tensor | Sequence[int] | None = None,
        image_tile_ends: Tensor | None = None,
        mm_encoder_outputs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> Any:
        """As the language model's own, with images in place of their placeholders.

        Rows may be packed: several prompts in one, without an attention mask, whose `position_ids` restart.

        Args:
            input_ids: int64 [B, L], with `image_token_id` once for each token of an image.
            attention_mask: as for the language model.
            position_ids: likewise.
            inputs_embeds: [B, L, hidden] in place of `input_ids`.
            labels: int64 [B, L], -100 where nothing is to be learned.
            logits_to_keep: so many positions at the end get logits; 0: all.
            pixel_values: as for `get_image_features`.
            image_tokens: likewise.
            num_image_tokens: likewise.
            image_tile_ends: likewise.
            mm_encoder_outputs: {"image": what `get_image_features` gave}, in place of these.
            **kwargs: for the language model.

        Returns:
            What the language model returns: loss, logits, cache.

        Raises:
            ValueError: if an image does not fit where its placeholders stand.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give either input_ids or inputs_embeds")
        features = self._features(
            pixel_values, image_tokens, num_image_tokens, image_tile_ends, mm_encoder_outputs
        )
        mask = None if features is None else self._placeholders(input_ids, inputs_embeds)
        if inputs_embeds is None:
            inputs_embeds = self.get_input_embeddings()(input_ids)
        if features is not None:
            assert mask is not None
            if not isinstance(features, PlacedFeatures):
                check_places(mask, [len(part) for part in features.pooler_output])
            inputs_embeds = put_in_place(inputs_embeds, mask, features.pooler_output)
        elif self.training:
            inputs_embeds = inputs_embeds + self._no_image().to(inputs_embeds.dtype)
        packed = position_ids is not None and attention_mask is None and _restarts(position_ids, kwargs)
        if packed and not self.takes_positions:
            raise ValueError(
                f"{type(self.language_model).__name__} takes no position_ids, so packed rows would see one "
                "another; pad rows instead"
            )
        if position_ids is not None and self.takes_positions:
            kwargs["position_ids"] = position_ids
            if packed:
                # With a cache transformers would let prompts of one row see one another.
                if kwargs.get("use_cache"):
                    raise ValueError("packed rows have no cache; leave use_cache out, or pad rows instead")
                kwargs["use_cache"] = False
        spares = not isinstance(logits_to_keep, int) or logits_to_keep > 0
        if spares and "logits_to_keep" in self._text_arguments:
            kwargs["logits_to_keep"] = logits_to_keep
        return self.language_model(
            inputs_embeds=inputs_embeds, attention_mask=attention_mask, labels=labels, **kwargs
        )

    def _no_image(self) -> Tensor:
        """Zero, with a gradient of zeros: other processes share theirs, and wait for this one's."""
        nothing = self.multi_modal_projector.linear_1.weight.new_zeros(
            1, self.config.vision_config.hidden_size
        )
        tower = self.vision_tower
        if any(parameter.requires_grad for parameter in tower.parameters()):
            size = tower.config.image_size
            blank = tower(nothing.new_zeros(1, 3, size, size), num_image_tokens=[1]).pooler_output[0]
            nothing = nothing + 0 * blank
        features = self.multi_modal_projector(nothing)
        return 0 * (features if self.tile_separators is None else self.tile_separators(features, None)).sum()

    @torch.no_grad()
    def generate(
        self,
        inputs: Tensor | None = None,
        generation_config: Any = None,
        *,
        pixel_values: Tensor | None = None,
        image_tokens: Tensor | DoveTokens | None = None,
        num_image_tokens: Tensor | Sequence[int] | None = None,
        image_tile_ends: Tensor | None = None,
        mm_encoder_outputs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> Any:
        """`GenerationMixin.generate`, with images as for `forward`.

        Raises:
            ValueError: as `forward`; or for chunks of the prefill (`prefill_chunk_size`) with images before
                transformers 5.23, which gives every chunk all features.
        """
        features = self._features(
            pixel_values, image_tokens, num_image_tokens, image_tile_ends, mm_encoder_outputs
        )
        if features is not None:
            refuse_chunks(generation_config or self.generation_config, kwargs)
            input_ids = kwargs.get("input_ids", inputs)
            embeds = kwargs.get("inputs_embeds")
            mask = self._placeholders(input_ids if embeds is None else None, embeds)
            check_places(mask, [len(part) for part in features.pooler_output])
            rows, cache = list(features.pooler_output), _cache(kwargs)
            known = 0 if cache is None else int(cache.get_seq_length())
            if embeds is None and known:  # images of earlier turns, whose placeholders do not pass again
                columns = torch.arange(mask.shape[1], device=mask.device).expand_as(mask)[mask]
                new = (columns >= known).to(rows[0].device).split([len(part) for part in rows])
                rows = [part[kept] for part, kept in zip(rows, new, strict=True)]
            # A new one for each call: transformers repeats its features in place for beams.
            kwargs["mm_encoder_outputs"] = {"image": PlacedFeatures(pooler_output=rows)}
            # A placeholder that the model says itself would have no image.
            kwargs["logits_processor"] = LogitsProcessorList(
                [
                    *(kwargs.get("logits_processor") or []),
                    SuppressTokensLogitsProcessor([self.config.image_token_id], device=mask.device),
                ]
            )
        return super().generate(inputs, generation_config, **kwargs)
