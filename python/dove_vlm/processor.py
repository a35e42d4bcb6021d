"""Prompts and images to a model's inputs: as many placeholders as each image has tokens."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from transformers import AddedToken, BatchFeature, ProcessorMixin

from dove_vlm.image_processor import DoveImageProcessor
from dove_vlm.images import check_prompts, count


class DoveLlavaProcessor(ProcessorMixin):
    """An image processor and a tokenizer, whose `image_token` marks in a prompt where an image belongs.

    Args:
        image_processor: a `DoveImageProcessor`.
        tokenizer: the language model's; `image_token` is added where it lacks it (`image_token_id` may then
            lie behind the model's vocabulary: `from_vision_text_pretrained` makes room).
        chat_template: a Jinja template of conversations, as for every processor.
        image_token: written once for each image in a prompt, and repeated here.
    """

    def __init__(
        self,
        image_processor: DoveImageProcessor | None = None,
        tokenizer: Any = None,
        chat_template: Any = None,
        image_token: str = "<image>",
        **kwargs: Any,
    ) -> None:
        if image_token not in tokenizer.get_vocab():
            tokenizer.add_tokens(
                [AddedToken(image_token, special=True, normalized=False)], special_tokens=True
            )
        self.image_token = image_token
        self.image_token_id = tokenizer.convert_tokens_to_ids(image_token)
        super().__init__(image_processor, tokenizer, chat_template=chat_template, **kwargs)

    # `__call__` is ProcessorMixin's; it calls what follows, in this order.

    def prepare_inputs_layout(self, images: Any = None, text: Any = None, **kwargs: Any) -> Any:
        """A list of prompts; images stay as they are."""
        text = [text] if isinstance(text, str) else text
        if isinstance(text, tuple | list):
            text = list(text)  # expanded in place later on
        return (images if count(images) else None), text, kwargs.get("videos"), kwargs.get("audio")

    def validate_inputs(self, images: Any = None, text: Any = None, **kwargs: Any) -> None:
        """Refuse what has no place here.

        Raises:
            ValueError: if there is neither text nor image, a prompt is no text, or its placeholders are not
                those of its images.
        """
        for name in ("videos", "audio"):
            if kwargs.get(name) is not None:
                raise ValueError(f"this processor takes no {name}; leave it out")
        if images is None and text is None:
            raise ValueError("there is neither text nor image; pass text=..., images=..., or both")
        if text is None:
            return
        if not isinstance(text, list) or not all(isinstance(prompt, str) for prompt in text):
            raise ValueError("text must be a prompt or a list of prompts")
        check_prompts(text, images, self.image_token)

    def _process_images(self, images: Any, **kwargs: Any) -> tuple[BatchFeature, list[str]]:
        processed = self.image_processor(images, **kwargs)
        number = len(processed["num_image_tokens"])
        return processed, [self.replace_image_token(processed, i) for i in range(number)]

    def replace_image_token(self, image_inputs: Any, image_idx: int, **kwargs: Any) -> str:
        """What stands in a prompt for an image: the placeholder, once for each of its tokens."""
        return self.image_token * int(image_inputs["num_image_tokens"][image_idx])

    def _get_num_multimodal_tokens(self, image_sizes: Any = None, **kwargs: Any) -> Any:
        raise NotImplementedError(
            "how many tokens an image has depends on what is in it, not on its size; call the processor"
        )

    def _check_special_mm_tokens(self, text: list[str], text_inputs: Any, modalities: Any) -> None:
        try:
            super()._check_special_mm_tokens(text, text_inputs, modalities)
        except ValueError as error:
            raise ValueError(
                "the tokenizer cut image tokens off a prompt; turn its truncation off, and shorten images "
                "with max_tokens instead"
            ) from error

    def save_pretrained(self, save_directory: str | os.PathLike[str], **kwargs: Any) -> list[str]:
        """As every processor's, and the tokenizer of queries of an encoder that reads them."""
        files: list[str] = super().save_pretrained(save_directory, **kwargs)
        return [*files, *self.image_processor.save_query_tokenizer(Path(save_directory))]
