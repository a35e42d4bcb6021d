"""The encoder behind an image processor: the tower of a vision-language checkpoint, or a model by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers.utils import CONFIG_NAME, SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, cached_file

from dove_ext.errors import CheckpointError
from dove_ext.models.dove import DoveModel
from dove_ext.models.pretrained import TOKENIZER, shipped_folder
from dove_vlm.configuration import DoveVisionConfig

QUERY_TOKENIZER = "query_tokenizer.json"
"""Of text queries (Q-DOVE), beside the language model's own tokenizer.json."""

# What a tower's weights are called in a checkpoint, by its model_type.
PREFIXES = {"dove_vision": "dove.", "dove_llava": "vision_tower.dove."}


class Checkpoint:
    """A folder, or a repository on the hub, that an image processor was loaded from.

    Args:
        name_or_path: as `from_pretrained` got it.
        **hub: its options on where to look (revision, subfolder, cache_dir, token, ...).
    """

    def __init__(self, name_or_path: str | Path, **hub: Any) -> None:
        self.name = str(name_or_path)
        self.hub = hub

    def file(self, name: str) -> Path | None:
        """Where a file of it lies on this machine, or None if it has no such file."""
        found = cached_file(
            self.name,
            name,
            **self.hub,
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
        )
        return None if found is None else Path(found)

    def load(self) -> DoveModel | None:
        """The encoder in it, float32 on the CPU; None if it holds none.

        Raises:
            CheckpointError: if its files are damaged or do not fit together.
        """
        found = self.file(CONFIG_NAME)
        files = self._weights()
        if found is None or not files:
            return None
        config = json.loads(found.read_text(encoding="utf-8"))
        prefix = PREFIXES.get(config.get("model_type"))
        if prefix is None:
            return None
        vision = config.get("vision_config", config)
        shape = DoveVisionConfig(dove=vision["dove"]).shape
        dove = DoveModel.of_weights(shape, _read(files, prefix), self.name)
        if shape.query_vocab_size and (tokenizer := self.file(QUERY_TOKENIZER)) is not None:
            dove.load_tokenizer(tokenizer)
        return dove.eval()

    def _weights(self) -> list[Path]:
        if (single := self.file(SAFE_WEIGHTS_NAME)) is not None:
            return [single]
        if (index := self.file(SAFE_WEIGHTS_INDEX_NAME)) is None:
            return []
        places: dict[str, str] = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        names = {place for name, place in places.items() if name.startswith(tuple(PREFIXES.values()))}
        return [path for name in sorted(names) if (path := self.file(name)) is not None]


def _read(files: list[Path], prefix: str) -> dict[str, Tensor]:
    """The tensors whose names begin so, without it; of a large file no more than these is read."""
    weights = {}
    for file in files:
        try:
            with safe_open(file, framework="pt") as tensors:
                names = [name for name in tensors.keys() if name.startswith(prefix)]  # noqa: SIM118 (no mapping)
                weights |= {name.removeprefix(prefix): tensors.get_tensor(name) for name in names}
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{file} cannot be read ({error}); download or save it again") from error
    return weights


def query_tokenizer(encoder: DoveModel | str | None, checkpoint: Checkpoint | None) -> str | None:
    """The text of the tokenizer of queries that goes with an encoder, or None if it reads none."""
    if isinstance(encoder, DoveModel):
        return None if encoder.tokenizer is None else encoder.tokenizer.file
    folder = None if encoder is None else (shipped_folder(encoder) or Path(encoder))
    for path in (checkpoint and checkpoint.file(QUERY_TOKENIZER), folder and folder / TOKENIZER):
        if path is not None and path.is_file():
            return path.read_text(encoding="utf-8")
    return None
