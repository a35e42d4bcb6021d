"""What a DOVE vision tower and a language model behind it are made of, as transformers keeps it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from transformers import CONFIG_MAPPING, AutoConfig, PreTrainedConfig

from dove_ext.config import DEFAULT_MODEL, DoveConfig, preset
from dove_ext.models.pretrained import find_model, load_config


class DoveVisionConfig(PreTrainedConfig):
    """The shape of a `DoveVisionModel`.

    Args:
        dove: a preset's name ("dove-tiny", "dove-base", "dove-base-q"), or what `DoveConfig.to_json` says. It
            is kept in full, so that a checkpoint does not depend on a preset.

    Raises:
        ValueError: if there is no such preset.
        CheckpointError: if a field of the shape is unknown, of the wrong type or out of range.
    """

    model_type = "dove_vision"
    base_config_key = "vision_config"

    dove: str | dict[str, Any] = DEFAULT_MODEL

    def __post_init__(self, **kwargs: Any) -> None:
        shape = (
            preset(self.dove) if isinstance(self.dove, str) else DoveConfig.from_json(json.dumps(self.dove))
        )
        self.dove = json.loads(shape.to_json())
        super().__post_init__(**kwargs)

    @classmethod
    def from_dove(cls, model: str | Path | DoveConfig) -> DoveVisionConfig:
        """Of a dove_ext model: its configuration, or its name, folder or hub id.

        Raises:
            CheckpointError: if there is no such model.
        """
        shape = model if isinstance(model, DoveConfig) else load_config(find_model(model), DoveConfig)
        return cls(dove=json.loads(shape.to_json()))

    @property
    def shape(self) -> DoveConfig:
        """The same as dove_ext has it."""
        return DoveConfig.from_json(json.dumps(self.dove))

    @property
    def hidden_size(self) -> int:
        """Width of a token."""
        return self.shape.token_width

    @property
    def image_size(self) -> int:
        """Side of the square that the model sees, in pixels."""
        return self.shape.image_size

    @property
    def max_image_tokens(self) -> int:
        """K, the most tokens of an image."""
        return self.shape.num_tokens


class DoveLlavaConfig(PreTrainedConfig):
    """The shape of a `DoveLlavaForConditionalGeneration`: tower, two-layer connector, language model (B.1).

    Args:
        vision_config: a `DoveVisionConfig`, or a dictionary of its fields; None: dove-tiny's.
        text_config: of any causal language model of transformers, or a dictionary with its model_type; None:
            Llama's.
        image_token_id: the token whose places in `input_ids` the image tokens take.
        projector_hidden_act: between the connector's layers.
        multimodal_projector_bias: whether they have biases.
        tile_separators: whether the model has rows that stand where a tile and a row of tiles end, and so
            reads pictures in tiles.
    """

    model_type = "dove_llava"
    sub_configs = {"vision_config": AutoConfig, "text_config": AutoConfig}  # noqa: RUF012 (transformers' way)

    vision_config: dict[str, Any] | PreTrainedConfig | None = None
    text_config: dict[str, Any] | PreTrainedConfig | None = None
    image_token_id: int = 32000
    projector_hidden_act: str = "gelu"
    multimodal_projector_bias: bool = True
    tile_separators: bool = False
    tie_word_embeddings: bool = False

    def __post_init__(self, **kwargs: Any) -> None:
        if not isinstance(self.vision_config, PreTrainedConfig):
            self.vision_config = DoveVisionConfig(**(self.vision_config or {}))
        if not isinstance(self.text_config, PreTrainedConfig):
            fields = dict(self.text_config or {})
            self.text_config = CONFIG_MAPPING[fields.pop("model_type", "llama")](**fields)
        parts = [(part, part._attn_implementation) for part in (self.vision_config, self.text_config)]
        super().__post_init__(**kwargs)
        for part, chosen in parts:
            if part._attn_implementation is None:  # it was forgotten for a model that runs already
                part._attn_implementation = chosen
        # transformers looks here for what the language model's own configuration says.
        self.tie_word_embeddings = bool(getattr(self.text_config, "tie_word_embeddings", False))
