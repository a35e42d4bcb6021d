"""What a run begins with: encoder, language model, connector, and the processor that goes with them."""

from __future__ import annotations

from typing import Any

import torch
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoTokenizer,
)

from dove_instruct.prompts import chat_template
from dove_instruct.settings import Settings
from dove_train.settings import TrainingError
from dove_vlm import DoveImageProcessor, DoveLlavaForConditionalGeneration, DoveLlavaProcessor


def build(
    settings: Settings, vision: Any = None
) -> tuple[DoveLlavaForConditionalGeneration, DoveLlavaProcessor]:
    """Model, float32 on the CPU, and processor, whose image processor encodes with the model's own tower.

    Args:
        settings: of the run.
        vision: a tower in place of `settings.encoder`.

    Raises:
        TrainingError: if a part cannot be found or made.
        CheckpointError: if there is no such encoder.
    """
    torch.manual_seed(settings.seed)
    how: dict[str, Any] = {"fit": settings.fit, "tiles": settings.tiles or None, **settings.lengths}
    tiled = {"tile_separators": True} if settings.tiles else {}
    try:
        if settings.start_from:
            before = AutoProcessor.from_pretrained(settings.start_from)
            model = AutoModelForImageTextToText.from_pretrained(
                settings.start_from, dtype=torch.float32, **tiled
            )
            tokenizer = before.tokenizer
            model.vision_tower.dove.tokenizer = before.image_processor.encoder.tokenizer
        else:
            tokenizer = AutoTokenizer.from_pretrained(settings.tokenizer or settings.language_model)
            language_model = _language_model(settings, tokenizer)
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        reason = str(error).strip().splitlines()[0]
        raise TrainingError(f"the language model or its tokenizer cannot be used: {reason}") from error
    _check_ends(tokenizer)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
    template = chat_template(settings.template, tokenizer.eos_token or "")
    processor = DoveLlavaProcessor(DoveImageProcessor(None, **how), tokenizer, chat_template=template)
    if not settings.start_from:
        model = DoveLlavaForConditionalGeneration.from_vision_text_pretrained(
            vision or settings.encoder, language_model, image_token_id=processor.image_token_id, **tiled
        )
    processor.image_processor.encoder = model.vision_tower
    return model, processor


def _check_ends(tokenizer: Any) -> None:
    """Refuse a tokenizer that ends every text: a prompt would end, too, and nothing is trained to follow.

    Raises:
        TrainingError: naming what it appends.
    """
    plain, whole = (tokenizer("a", add_special_tokens=special)["input_ids"] for special in (False, True))
    if whole[-1:] != plain[-1:]:
        raise TrainingError(
            f"the tokenizer appends {tokenizer.decode(whole[-1:])!r} to every text, so that no answer could "
            "follow a question; turn that off (add_eos_token: false in its tokenizer_config.json, or its "
            "post-processor), or take another"
        )


def _language_model(settings: Settings, tokenizer: Any) -> Any:
    if settings.language_model:
        return AutoModelForCausalLM.from_pretrained(settings.language_model, dtype=torch.float32)
    # A shape's own are another tokenizer's: answers would not end.
    special = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    fields = {"vocab_size": len(tokenizer), **special, **settings.text_config}
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(**fields))


def set_trained(
    model: DoveLlavaForConditionalGeneration, settings: Settings
) -> dict[str, list[torch.nn.Parameter]]:
    """Let gradients reach what is trained and nothing else.

    Returns:
        dict: the trained parameters, by the setting that names their learning rate.
    """
    model.requires_grad_(False)
    connectors = [part for part in (model.multi_modal_projector, model.tile_separators) if part is not None]
    for part in connectors:
        part.requires_grad_(True)
    model.language_model.requires_grad_(settings.train_language_model)
    if settings.train_encoder:
        # Not all of the encoder makes tokens: decoder and stop head do not.
        tower = model.vision_tower.requires_grad_(True)
        size = tower.config.image_size
        tower(torch.zeros(1, 3, size, size), num_image_tokens=[1]).pooler_output[0].sum().backward()
        for parameter in tower.parameters():
            parameter.requires_grad_(parameter.grad is not None)
            parameter.grad = None
    parts = {
        "learning_rate": model.language_model,
        "connector_learning_rate": torch.nn.ModuleList(connectors),
        "encoder_learning_rate": model.vision_tower,
    }
    trained = {name: [p for p in part.parameters() if p.requires_grad] for name, part in parts.items()}
    return {name: parameters for name, parameters in trained.items() if parameters}
