"""What is wrong with a model folder is said in one sentence."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from dove_ext import CheckpointError, DoveConfig, DoveModel
from tests.models.micro import MICRO, micro

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "micro"
    micro().save_pretrained(folder)
    return folder


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    for file in saved.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    return tmp_path


def refusal(folder: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        DoveModel.from_pretrained(folder)
    message = str(caught.value)
    assert "\n" not in message
    return message.replace(str(folder), "FOLDER")


# --- Damaged config.json ------------------------------------------------------------------------------


def test_missing_config(folder: Path) -> None:
    (folder / "config.json").unlink()
    assert refusal(folder) == "FOLDER holds no config.json; it is not a dove model's folder"


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "FOLDER/config.json is not JSON"),
        (MICRO.to_json().encode()[:200], "FOLDER/config.json is not JSON"),
        (b"[" * 100_000, "FOLDER/config.json is not JSON"),
        (b'{"image_size": ' + b"9" * 5000 + b"}", "FOLDER/config.json is not JSON"),
        (b"\xff\xfe\x00", "FOLDER/config.json is not text; the model folder is damaged"),
        (b"[]", "FOLDER/config.json does not describe a dove model: its model_type is "),
        (
            b'{"model_type": "gpt_neox", "hidden_size": 512}',
            "FOLDER/config.json does not describe a dove model",
        ),
    ],
    ids=["empty", "truncated", "deep", "digits", "binary", "list", "foreign"],
)
def test_damaged_config(folder: Path, content: bytes, sentence: str) -> None:
    (folder / "config.json").write_bytes(content)
    assert refusal(folder).startswith(sentence)


def change(path: str, value: Any) -> Callable[[dict[str, Any]], None]:
    def apply(values: dict[str, Any]) -> None:
        *outer, last = path.split(".")
        for key in outer:
            values = values[key]
        values[last] = value

    return apply


@pytest.mark.parametrize(
    ("path", "value", "expected"),
    [
        ("colour", 1, "unknown field 'colour'; was the model saved by a newer dove_ext?"),
        ("generator.colour", 1, "unknown field 'colour'; was the model saved by a newer dove_ext?"),
        ("image_size", "32", "image_size must be int, got '32'"),
        ("image_size", True, "image_size must be int, got True"),
        ("image_size", 0, "image_size must be at least 1, got 0"),
        ("image_size", 16_000_000, "image_size must be at most 1048576, got 16000000"),
        (
            "image_size",
            8192,
            "image_size (8192) makes 4194304 tokens an image, the limit is 65536; choose a smaller one",
        ),
        ("image_size", 33, "image_size (33) must be a multiple of the downsampling (4)"),
        ("vqgan", 5, "vqgan must be an object, got 5"),
        (
            "vqgan.channel_multipliers",
            [],
            "channel_multipliers must name a level each, all at least 1, got ()",
        ),
        ("vqgan.channel_multipliers", [1, "2"], "channel_multipliers must be tuple, got [1, '2']"),
        (
            "vqgan.channels",
            33,
            "every level's width must be a multiple of 32 (GroupNorm groups), got [33, 66]",
        ),
        (
            "vqgan.channel_multipliers",
            [1, 10**9],
            "every level's width must be at most 1048576, got [64, 64000000000]",
        ),
        (
            "vqgan.channel_multipliers",
            [1] * 17,
            "the downsampling must be at most 65536; name fewer channel_multipliers or a smaller stem_patch",
        ),
        ("vqgan.decoder_blocks", 10**9, "decoder_blocks must be at most 256, got 1000000000"),
        ("vqgan.stem_patch", 3, "stem_patch must be a power of two, got 3"),
        ("generator.heads", 0, "heads must be at least 1, got 0"),
        ("generator.heads", 3, "hidden (64) must be a multiple of heads (3)"),
        ("generator.layers", -1, "layers must be at least 1, got -1"),
        ("generator.layers", 10**9, "layers must be at most 256, got 1000000000"),
        (
            "generator.hidden",
            128,
            "generator and token_decoder must share one hidden width, that of a token's code",
        ),
        ("generator.rotary_fraction", 0.1, "rotary_fraction 0.1 gives an odd number of rotated dimensions"),
        ("generator.rotary_fraction", 2.0, "rotary_fraction must be above 0 and at most 1, got 2.0"),
        ("generator.rotary_base", float("nan"), "rotary_base must be positive, got nan"),
        ("generator.rotary_base", 10**400, "rotary_base must be a number below 1.8e308, got a larger one"),
        ("vocab_size", 1, "vocab_size must be at least 2, got 1"),
        ("eos_id", 2, "eos_id 2 is outside the vocabulary of 2"),
        ("eos_prior", 1, "eos_prior must be between 0 and 1, got 1.0"),
        ("prefix_attention", "full", "prefix_attention must be 'causal' or 'bidirectional', got 'full'"),
        ("gaussian", None, "gaussian must be bool, got None"),
        ("query_length", -1, "query_length must be at least 0, got -1"),
        (
            "query_length",
            5,
            "query_vocab_size and query_length must both be 0 (no text queries) or both above 0, got 0 and 5",
        ),
        (
            "query_vocab_size",
            7,
            "query_vocab_size and query_length must both be 0 (no text queries) or both above 0, got 7 and 0",
        ),
    ],
)
def test_wrong_settings(folder: Path, path: str, value: Any, expected: str) -> None:
    values = json.loads(MICRO.to_json())
    change(path, value)(values)
    (folder / "config.json").write_text(json.dumps(values))
    assert refusal(folder) == f"FOLDER/config.json: {expected}"


def test_contradicting_settings() -> None:
    with pytest.raises(ValueError, match="attend_padding=False needs shortcut=False"):
        DoveConfig(shortcut=True, attend_padding=False)


# --- Damaged model.safetensors ------------------------------------------------------------------------


def test_missing_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    assert refusal(folder) == "FOLDER/model.safetensors is missing; the model folder is incomplete"


@pytest.mark.parametrize("keep", [0, 5, 1000, -1])
def test_truncated_weights(folder: Path, keep: int) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    message = refusal(folder)
    assert message.startswith("FOLDER/model.safetensors cannot be read (")
    assert message.endswith("); download or save the model again")


def test_weights_of_another_kind(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"<html>not found</html>" * 50)
    assert refusal(folder).startswith("FOLDER/model.safetensors cannot be read (")


def edit(folder: Path, edits: dict[str, torch.Tensor | None]) -> None:
    file = folder / "model.safetensors"
    weights = load_file(file)
    for name, tensor in edits.items():
        if tensor is None:
            del weights[name]
        else:
            weights[name] = tensor
    save_file(weights, file)


BIAS = "vqgan.quant_conv.bias"


@pytest.mark.parametrize(
    ("edits", "sentence"),
    [
        (
            {BIAS: None},
            f"FOLDER/model.safetensors lacks '{BIAS}'; the file does not belong to this config.json",
        ),
        (
            {BIAS: torch.zeros(15)},
            f"FOLDER/model.safetensors: '{BIAS}' is [15], config.json asks for [16]; "
            "the two files do not belong together",
        ),
        (
            {BIAS: torch.full((16,), float("nan"))},
            f"FOLDER/model.safetensors: '{BIAS}' holds NaN or infinity; the checkpoint is damaged",
        ),
        (
            {BIAS: torch.zeros(16, dtype=torch.int64)},
            f"FOLDER/model.safetensors: '{BIAS}' is torch.int64, expected the kind of torch.float32",
        ),
        (
            {"extra": torch.zeros(1)},
            "FOLDER/model.safetensors holds 'extra', which this model has no place for",
        ),
    ],
    ids=["missing", "misshapen", "nan", "integer", "foreign"],
)
def test_weights_that_do_not_fit(folder: Path, edits: dict[str, torch.Tensor | None], sentence: str) -> None:
    edit(folder, edits)
    assert refusal(folder) == sentence


def test_eight_bit_weights_are_checked(folder: Path) -> None:
    edit(folder, {BIAS: torch.ones(16).to(torch.float8_e4m3fn)})
    assert bool((DoveModel.from_pretrained(folder).vqgan.quant_conv.bias == 1).all())
    edit(folder, {BIAS: torch.full((16,), float("nan")).to(torch.float8_e4m3fn)})
    assert "holds NaN or infinity" in refusal(folder)


@pytest.mark.parametrize(
    ("edits", "sentence"),
    [
        (
            {"generator.witness": torch.arange(2, 41, dtype=torch.int32)},
            "'generator.witness' holds indices outside 0..39; the checkpoint is damaged",
        ),
        (
            {"shortcut.order": torch.arange(-1, 1023, dtype=torch.int32)},
            "'shortcut.order' holds indices outside 0..1023; the checkpoint is damaged",
        ),
        (
            {"shortcut.order": torch.zeros(1024, dtype=torch.int32)},
            "'shortcut.order' names a coefficient twice; the file is damaged",
        ),
        (
            {"shortcut.order": torch.arange(1024).to(torch.uint32)},
            "'shortcut.order' must be int32 or int64, got torch.uint32",
        ),
        ({"shortcut.scale": torch.zeros(1024)}, "'shortcut.scale' holds a zero; the checkpoint is damaged"),
    ],
    ids=["witness", "order", "twice", "dtype", "scale"],
)
def test_indices_from_a_stranger(tmp_path: Path, edits: dict[str, torch.Tensor], sentence: str) -> None:
    micro(shortcut=True, vocab_size=40).save_pretrained(tmp_path)
    edit(tmp_path, dict(edits))
    assert refusal(tmp_path) == f"FOLDER/model.safetensors: {sentence}"


def test_config_of_a_giant_is_refused_before_memory_is_taken(folder: Path) -> None:
    values = json.loads(MICRO.to_json())
    values["generator"]["hidden"] = values["token_decoder"]["hidden"] = 2**20  # terabytes
    (folder / "config.json").write_text(json.dumps(values))
    assert "config.json asks for [1048576, 16]" in refusal(folder)
