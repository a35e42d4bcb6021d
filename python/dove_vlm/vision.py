"""The encoder as a vision tower of transformers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutputWithPooling

from dove_ext.models.dove import DoveModel
from dove_ext.models.generator import Generator, time_encodings
from dove_vlm.configuration import DoveVisionConfig


def keep_weights(module: nn.Module) -> None:
    """Tell transformers that these weights are there: it starts none of them anew."""
    for part in module.modules():
        part._is_hf_initialized = True


class DoveVisionModel(PreTrainedModel):
    """`DoveModel` as transformers loads, saves and moves it; its weights are part of the checkpoint.

    Args:
        config: its shape.
        dove: a model of that shape to hold; None: a new one with random weights.
    """

    config_class = DoveVisionConfig
    config: DoveVisionConfig
    base_model_prefix = "dove"
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    _no_split_modules = ["DoveModel"]  # noqa: RUF012 (transformers' way)
    # Attention is dove_ext's own, whatever is asked for.
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True

    def __init__(self, config: DoveVisionConfig, dove: DoveModel | None = None) -> None:
        super().__init__(config)
        self.dove = DoveModel(config.shape) if dove is None else dove
        if self.dove.generator.times.device.type != "meta":
            keep_weights(self.dove)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, Generator):  # a buffer that no checkpoint holds
            init.copy_(module.times, time_encodings(*module.times.shape))

    @classmethod
    def from_dove(cls, model: str | Path | DoveModel) -> DoveVisionModel:
        """Of a dove_ext model, which it holds: the model itself, or its name, folder or hub id.

        Raises:
            CheckpointError: if there is no such model.
        """
        dove = model if isinstance(model, DoveModel) else DoveModel.from_pretrained(model)
        return cls(DoveVisionConfig.from_dove(dove.config), dove).train(dove.training)

    def forward(
        self,
        pixel_values: Tensor,
        num_image_tokens: Tensor | Sequence[int] | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPooling:
        """Tokens of images, with a gradient into the encoder.

        Args:
            pixel_values: [N, 3, S, S] in [-1, 1], as `DoveImageProcessor` makes them.
            num_image_tokens: how many tokens of each, [N], 1..K. They have been counted to make room in the
                prompt; counted again, near a threshold they may differ by one. None: where the model stops.
            **kwargs: of transformers; without a meaning here.

        Returns:
            BaseModelOutputWithPooling: `last_hidden_state` [N, n, D], not cut, n the most that any image
            keeps; `pooler_output`, a list of N tensors [n_i, D].

        Raises:
            ValueError: if there is not one count an image, or it is not within 1..K.
        """
        slots = self.config.max_image_tokens
        if num_image_tokens is not None:
            num_image_tokens = [int(n) for n in num_image_tokens]
            if len(num_image_tokens) != len(pixel_values):
                raise ValueError(
                    f"num_image_tokens names {len(num_image_tokens)} images, pixel_values has "
                    f"{len(pixel_values)}; pass both of one call of the processor"
                )
            for i, n in enumerate(num_image_tokens):
                if not 1 <= n <= slots:
                    raise ValueError(
                        f"image {i} is to have {n} tokens; this model gives an image 1 to {slots}"
                    )
        most = None if num_image_tokens is None else max(num_image_tokens)
        generated = self.dove.generate(self.dove.condition(pixel_values.to(self.dove.dtype)), most)
        if num_image_tokens is None:
            num_image_tokens = self.dove.generator.lengths(generated.hidden.detach()).tolist()
        tokens = [row[:n] for row, n in zip(generated.tokens, num_image_tokens, strict=True)]
        return BaseModelOutputWithPooling(last_hidden_state=generated.tokens, pooler_output=tokens)
