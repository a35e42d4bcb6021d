"""What docs/vlm.md shows first runs as it stands; only the language model is a small one."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from tests.vlm.small import llama, tokenizer

ROOT = Path(__file__).parents[2]


def test_the_first_block_of_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    text = llama()
    text.generation_config.eos_token_id = None  # whatever it says, it says 16 words
    text.save_pretrained("small")
    tokenizer().save_pretrained("small")
    block = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "vlm.md").read_text(), flags=re.DOTALL)[0]
    names: dict[str, Any] = {}
    exec(block.replace("path/to/a/language-model", "small"), names)
    inputs, answer = names["inputs"], names["answer"]
    assert answer.shape == (1, inputs["input_ids"].shape[1] + 16)
    assert inputs["num_image_tokens"].item() > 16
