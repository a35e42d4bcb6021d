"""A folder holds all that is needed: saved and loaded, a model answers as before, by the Auto classes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageTextToText,
    AutoProcessor,
)

import dove_vlm
from dove_ext import CheckpointError, DoveConfig
from dove_vlm import DoveLlavaConfig, DoveVisionConfig
from tests.models.micro import MICRO, asked, micro
from tests.vlm.small import PROMPTS, batch, encoder, images, llama, model, processor


def answers(vlm: Any, made: Any) -> list[list[int]]:
    return vlm.generate(**made, max_new_tokens=4, do_sample=False).tolist()


def load(folder: Path, **options: Any) -> tuple[Any, Any]:
    return AutoProcessor.from_pretrained(folder), AutoModelForImageTextToText.from_pretrained(
        folder, **options
    )


@pytest.mark.parametrize("shards", ["5GB", "100KB"])
def test_saved_and_loaded(tmp_path: Path, shards: str) -> None:
    vlm = model()
    vlm.save_pretrained(tmp_path, max_shard_size=shards)
    processor(max_tokens=50).save_pretrained(tmp_path)
    assert (tmp_path / "model.safetensors.index.json").exists() == (shards != "5GB")
    made, again = load(tmp_path)
    assert type(made) is dove_vlm.DoveLlavaProcessor
    assert type(again) is dove_vlm.DoveLlavaForConditionalGeneration
    before, after = vlm.state_dict(), again.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    # No checkpoint holds the time encodings.
    times = [m.vision_tower.dove.generator.times for m in (vlm, again)]
    assert torch.equal(*times)
    found = batch(made)
    assert all(torch.equal(found[name], batch(max_tokens=50)[name]) for name in found)
    assert answers(again, found) == answers(vlm, batch(max_tokens=50))


def test_bfloat16(tmp_path: Path) -> None:
    vlm = model(dove=micro())  # changed in place
    vlm.save_pretrained(tmp_path)
    processor().save_pretrained(tmp_path)
    made, again = load(tmp_path, dtype=torch.bfloat16)
    assert {p.dtype for p in again.parameters()} == {torch.bfloat16}
    assert torch.equal(again.vision_tower.dove.generator.times, micro().generator.times)
    found = batch(made)
    assert answers(again, found) == answers(vlm.to(torch.bfloat16), found)
    assert answers(again, found.to(torch.bfloat16)) is not None
    again.save_pretrained(tmp_path / "half")
    made.save_pretrained(tmp_path / "half")
    made, half = load(tmp_path / "half")
    assert half.dtype == torch.bfloat16
    assert made.image_processor.encoder.dtype == torch.float32
    assert batch(made)["image_tokens"].dtype == torch.float32


def test_a_language_model_of_half_the_bytes_stays_so(tmp_path: Path) -> None:
    """Beside an encoder in float32, which the processor reads as it was."""
    vlm = model(llama().to(torch.bfloat16))
    assert vlm.dtype == vlm.multi_modal_projector.linear_1.weight.dtype == torch.bfloat16
    assert vlm.vision_tower.dove.dtype == torch.float32
    assert vlm.train()(**processor()(text=PROMPTS[2], return_tensors="pt")).logits.dtype == torch.bfloat16
    vlm.eval().save_pretrained(tmp_path)
    processor().save_pretrained(tmp_path)
    made, again = load(tmp_path)
    assert {p.dtype for p in again.parameters()} == {torch.bfloat16}
    assert torch.equal(batch(made)["image_tokens"], batch()["image_tokens"])
    assert answers(again, batch(made)) == answers(vlm, batch())


def test_the_processor_encodes_with_the_towers_weights(tmp_path: Path) -> None:
    """They may have been trained since it was made."""
    vlm = model(dove=micro())
    made = processor()
    with torch.no_grad():
        vlm.vision_tower.dove.generator.from_latent.weight.mul_(1.5)
    vlm.save_pretrained(tmp_path)
    made.save_pretrained(tmp_path)
    tokens = AutoProcessor.from_pretrained(tmp_path)(images=images(2), return_tensors="pt")["image_tokens"]
    assert torch.equal(tokens, vlm.vision_tower.dove.encode(images(2), fit="pad").tokens)


def test_a_processor_without_weights_says_what_is_missing(tmp_path: Path) -> None:
    processor().save_pretrained(tmp_path)
    made = AutoProcessor.from_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="holds no encoder: save the model into the folder"):
        made(images=images(1))
    made.image_processor.encoder = encoder()
    assert torch.equal(batch(made)["image_tokens"], batch()["image_tokens"])


def test_a_damaged_checkpoint_is_named(tmp_path: Path) -> None:
    model().save_pretrained(tmp_path)
    processor().save_pretrained(tmp_path)
    whole = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match=r"model\.safetensors cannot be read"):
        AutoProcessor.from_pretrained(tmp_path)(images=images(1))


def test_query_tokenizer(tmp_path: Path) -> None:
    """Of Q-DOVE; it does not take the place of the language model's."""
    dove = asked(tmp_path)
    vlm = model(dove=dove)
    made = processor()
    made.image_processor.encoder = dove
    folder = tmp_path / "saved"
    vlm.save_pretrained(folder)
    made.save_pretrained(folder)
    again = AutoProcessor.from_pretrained(folder)
    again.save_pretrained(tmp_path / "again")  # without having read its encoder
    assert (tmp_path / "again" / "query_tokenizer.json").read_text() == dove.tokenizer.file
    found, expected = (p(images=images(1), query="the dog", return_tensors="pt") for p in (again, made))
    assert torch.equal(found["image_tokens"], expected["image_tokens"])
    assert again.tokenizer.get_vocab() == made.tokenizer.get_vocab()


def test_vision_tower_alone(tmp_path: Path) -> None:
    tower = model().vision_tower
    tower.save_pretrained(tmp_path)
    processor().image_processor.save_pretrained(tmp_path)
    again, prepare = AutoModel.from_pretrained(tmp_path), AutoImageProcessor.from_pretrained(tmp_path)
    made = prepare(images(2), return_tensors="pt", return_pixel_values=True)
    tokens = again(**made).pooler_output
    assert [len(part) for part in tokens] == made["num_image_tokens"].tolist()
    assert torch.allclose(torch.cat(tokens), encoder().encode(images(2)).tokens, atol=1e-4)


def test_configurations(tmp_path: Path) -> None:
    config = DoveLlavaConfig(
        vision_config={"dove": json.loads(MICRO.to_json())},
        text_config={"model_type": "gpt2", "n_embd": 32, "n_layer": 1, "n_head": 2},
        image_token_id=7,
    )
    config.save_pretrained(tmp_path)
    again = AutoConfig.from_pretrained(tmp_path)
    assert {**again.to_dict(), "_name_or_path": ""} == config.to_dict()
    assert again.vision_config.shape == MICRO and again.image_token_id == 7
    assert (again.vision_config.hidden_size, again.vision_config.max_image_tokens) == (64, 64)
    assert again.text_config.model_type == "gpt2" and again.text_config.n_embd == 32
    assert DoveVisionConfig(dove="dove-base").shape == DoveConfig()
    assert DoveVisionConfig.from_dove("dove-tiny").hidden_size == 512
    with pytest.raises(ValueError, match="no preset is named 'dove-tinny'"):
        DoveVisionConfig(dove="dove-tinny")
    with pytest.raises(CheckpointError, match="unknown field 'colour'"):
        DoveVisionConfig(dove={**json.loads(MICRO.to_json()), "colour": 1})


def test_tied_embeddings_stay_tied(tmp_path: Path) -> None:
    vlm = model(llama(tie_word_embeddings=True))
    vlm.save_pretrained(tmp_path)
    again = AutoModelForImageTextToText.from_pretrained(tmp_path)
    assert again.get_input_embeddings().weight is again.get_output_embeddings().weight
    assert answers(again, batch()) == answers(vlm, batch())


def test_room_for_more_words() -> None:
    vlm = model()
    expected = vlm(**batch()).logits
    vlm.resize_token_embeddings(60, mean_resizing=False)
    assert vlm.config.text_config.vocab_size == 60
    assert torch.equal(vlm(**batch()).logits[..., : expected.shape[-1]], expected)


def test_dove_tiny_by_its_name(tmp_path: Path) -> None:
    """As a user begins: names, no objects."""
    language = tmp_path / "language"
    llama().save_pretrained(language)
    made = dove_vlm.DoveLlavaProcessor(dove_vlm.DoveImageProcessor("dove-tiny"), processor().tokenizer)
    vlm = dove_vlm.DoveLlavaForConditionalGeneration.from_vision_text_pretrained(
        "dove-tiny", language, image_token_id=made.image_token_id
    )
    vlm.save_pretrained(tmp_path)
    made.save_pretrained(tmp_path)
    prepare, again = load(tmp_path)
    inputs = prepare(text=PROMPTS[0], images="examples/photos/cat.jpg", return_tensors="pt", max_tokens=20)
    assert inputs["num_image_tokens"].tolist() == [20]
    assert answers(again, inputs) == answers(
        vlm, made(text=PROMPTS[0], images=["examples/photos/cat.jpg"], return_tensors="pt", max_tokens=20)
    )
