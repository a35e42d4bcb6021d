"""A processor and a model that show what they were asked, for tests that need no transformers."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch


class Inputs(dict):
    def to(self, device: Any) -> Inputs:
        return self


class StandIn:
    """Both in one: answers the prompts that it was given from `said`, by what they contain."""

    def __init__(self, said: dict[str, str], slots: int | None = 64, template: bool = False) -> None:
        self.said, self.calls, self.generated = said, [], []
        self.chat_template = "a template" if template else None
        self.image_token, self.device = "<image>", torch.device("cpu")
        self.tokenizer = SimpleNamespace(pad_token=None, eos_token="</s>", batch_decode=self._decode)
        encoder = SimpleNamespace(config=SimpleNamespace(num_tokens=slots), to=lambda device: None)
        self.image_processor = SimpleNamespace(**({} if slots is None else {"encoder": encoder}))
        self.config = SimpleNamespace(get_text_config=lambda: SimpleNamespace(max_position_embeddings=2048))
        self.prompts: list[str] = []

    def __call__(self, images: Any, text: list[str], **options: Any) -> Inputs:
        assert self.tokenizer.padding_side == "left" and self.tokenizer.pad_token == "</s>"
        self.calls.append((images, options))
        self.prompts += text
        inputs = Inputs(input_ids=torch.zeros(len(text), 5, dtype=torch.long))
        if images is not None:
            counts = [options.get("num_tokens", 10 + i) for i in range(sum(map(len, images)))]
            inputs["num_image_tokens"] = torch.tensor(counts)
        return inputs

    def apply_chat_template(self, messages: Any, **options: Any) -> str:
        assert options == {"add_generation_prompt": True, "tokenize": False}
        parts = ["<image>" if c["type"] == "image" else c["text"] for c in messages[0]["content"]]
        return "USER: " + "|".join(parts) + " ASSISTANT:"

    def generate(self, input_ids: Any, **options: Any) -> Any:
        options.pop("num_image_tokens", None)
        self.generated.append(options)
        return torch.cat([input_ids, torch.ones(len(input_ids), 2, dtype=torch.long)], 1)

    def _decode(self, ids: Any, skip_special_tokens: bool) -> list[str]:
        assert ids.shape[1] == 2 and skip_special_tokens  # what was generated only
        asked = self.prompts[-len(ids) :]
        return [next((a for key, a in self.said.items() if key in text), " nothing ") for text in asked]
