"""Runs of `dove vlm train`: they learn, go on to the bit, and are the same however a step is cut."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers.processors import TemplateProcessing
from transformers import AutoModelForImageTextToText, AutoProcessor

from dove_ext import DoveModel, save_image
from dove_instruct.token_cache import TokenCache
from dove_train.settings import TrainingError
from tests.instruct.small import ROWS, TEXT_CONFIG, log, run, write_files
from tests.models.micro import asked, linear
from tests.vlm.small import images, tokenizer


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_files(tmp_path_factory.mktemp("tune"))


def weights(model: Any) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def test_it_learns_its_rows_and_saves_a_model_that_answers(files: Path, tmp_path: Path) -> None:
    training = run(files, tmp_path, steps=40, global_batch=6, batch_size=6)
    before = weights(training.model)
    training.train()
    losses = [line["loss"] for line in log(tmp_path)]
    assert losses[-1] < 0.1 < 2 < losses[0]
    after = weights(training.model)
    changed = {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"multi_modal_projector", "language_model"}
    processor = AutoProcessor.from_pretrained(tmp_path / "model")
    model = AutoModelForImageTextToText.from_pretrained(tmp_path / "model")
    prompts = ["<image> what is this ? \n", "is <image> left of <image> ? \n", "what is it ? \n"]
    pictures = [[files / "0.png"], [files / "2.png", files / "3.png"], []]
    inputs = processor(text=prompts, images=pictures, padding=True, return_tensors="pt")
    answers = model.generate(**inputs, max_new_tokens=4, do_sample=False)[:, inputs["input_ids"].shape[1] :]
    assert processor.batch_decode(answers, skip_special_tokens=True) == ["a red circle", "no", "a dog"]


def test_a_stopped_run_goes_on_to_the_bit(files: Path, tmp_path: Path) -> None:
    whole = run(files, tmp_path / "whole", checkpoint_every=2, keep_checkpoints=2)
    whole.train()
    shutil.copytree(tmp_path / "whole", tmp_path / "again")
    shutil.rmtree(tmp_path / "again" / "model")
    (tmp_path / "again" / "checkpoints" / "step-0000004.pt").unlink()
    again = run(files, tmp_path / "again", checkpoint_every=2)
    again.train()
    expected, found = weights(whole.model), weights(again.model)
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    timeless = [
        [{k: v for k, v in line.items() if k != "rows/s"} for line in log(tmp_path / d)]
        for d in ("whole", "again")
    ]
    assert timeless[0] == timeless[1] and len(timeless[0]) == 4


def test_passes_and_packing_change_no_result(files: Path, tmp_path: Path) -> None:
    """Every learned word of a step counts alike, however its rows are cut into passes."""
    found = {}
    for name, options in {"1": {"batch_size": 1}, "3": {"batch_size": 3}, "packed": {"packed": True}}.items():
        training = run(files, tmp_path / name, **options)
        training.train()
        found[name] = [line["loss"] for line in log(tmp_path / name)]
    for name in ("3", "packed"):
        assert found[name] == pytest.approx(found["1"], rel=1e-3), name


def test_tokens_of_a_frozen_encoder_are_made_once(
    files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = run(files, tmp_path / "a", cache=str(tmp_path / "tokens"))
    training.train()
    assert len(list((tmp_path / "tokens").rglob("*.safetensors"))) == 5
    again = run(files, tmp_path / "b", cache=str(tmp_path / "tokens"))
    monkeypatch.setattr(type(again.encoder), "encode", None)
    again.train()
    assert [line["loss"] for line in log(tmp_path / "b")] == [line["loss"] for line in log(tmp_path / "a")]


def test_other_tokens_are_other_files(files: Path, tmp_path: Path) -> None:
    shared = str(tmp_path / "tokens")
    first = run(files, tmp_path / "a", cache=shared).cache
    image = files / "0.png"
    places = {first.path(image, None), first.path(image, "the dog"), first.path(files / "1.png", None)}
    for options in ({"lengths": {"max_tokens": 3}}, {"fit": "crop"}, {"tiles": 4}, {"bf16": True}):
        places.add(run(files, tmp_path / "b", cache=shared, **options).cache.path(image, None))
    assert len(places) == 7
    tokens = first([image]).tokens
    first.path(image, None).write_bytes(b"torn")
    assert torch.equal(first([image]).tokens, tokens)


def test_the_encoder_is_trained_if_wanted(files: Path, tmp_path: Path) -> None:
    training = run(files, tmp_path, train_encoder=True, encoder_learning_rate=1e-2, steps=2)
    before = weights(training.model)
    training.train()
    after = weights(training.model)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert "vision_tower.dove.vqgan.encoder.conv_in.weight" in changed
    assert "vision_tower.dove.generator.from_latent.weight" in changed
    assert not any("decoder" in name for name in changed)  # no part of it makes tokens
    processor = AutoProcessor.from_pretrained(tmp_path / "model")
    saved = processor.image_processor.encoder.vqgan.encoder.conv_in.weight
    assert torch.equal(saved, after["vision_tower.dove.vqgan.encoder.conv_in.weight"])
    assert not (tmp_path / "tokens").exists()


def test_the_connector_alone(files: Path, tmp_path: Path) -> None:
    training = run(files, tmp_path, train_language_model=False, steps=1)
    before = weights(training.model)
    training.train()
    after = weights(training.model)
    assert {n.split(".")[0] for n in before if not torch.equal(before[n], after[n])} == {
        "multi_modal_projector"
    }


def test_weights_that_are_not_trained_may_not_change(tmp_path: Path) -> None:
    files = write_files(tmp_path / "files")
    run(files, tmp_path / "run", steps=2).train()
    encoder = DoveModel.from_pretrained(files / "encoder")
    with torch.no_grad():
        encoder.generator.from_latent.weight.mul_(1.1)
    encoder.save_pretrained(files / "encoder")
    with pytest.raises(TrainingError, match=r"was written with other weights of encoder '.*', which this"):
        run(files, tmp_path / "run", steps=2).train()


def test_tokens_of_another_configuration_are_other_files(tmp_path: Path) -> None:
    files = write_files(tmp_path / "files")
    path = tmp_path / "p.png"
    save_image(images(1)[0].float() / 255, path)
    found = set()
    for psnr in (20.0, 30.0):
        model = linear(promised_psnr=psnr)
        found.add(TokenCache(files, model, {}, torch.float32).path(path, None))
    assert len(found) == 2


def test_tokenizers_that_end_every_text_are_refused(tmp_path: Path) -> None:
    files = write_files(tmp_path / "files")
    ends = tokenizer()
    ends.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    ends.save_pretrained(files / "tokenizer")
    with pytest.raises(TrainingError, match="the tokenizer appends '</s>' to every text"):
        run(files, tmp_path / "run")


def test_rows_that_the_language_model_cannot_read_are_refused(files: Path, tmp_path: Path) -> None:
    short = {**TEXT_CONFIG, "max_position_embeddings": 64}
    with pytest.raises(TrainingError, match="max_length is 2048, the language model has 64 positions"):
        run(files, tmp_path / "a", text_config=short)
    bloom = {"model_type": "bloom", "hidden_size": 32, "n_layer": 1, "n_head": 2}
    with pytest.raises(TrainingError, match="takes no position_ids, so packed rows would see one another"):
        run(files, tmp_path / "b", text_config=bloom, packed=True)


def test_lengths_that_tiles_cannot_have_are_one_sentence(files: Path, tmp_path: Path) -> None:
    folder = write_files(tmp_path / "files")
    save_image(torch.rand(3, 64, 96), folder / "0.png")
    with pytest.raises(TrainingError, match="row 0: lengths cannot be used: num_tokens must be at least"):
        run(folder, tmp_path / "run", tiles=6, lengths={"num_tokens": 3}, global_batch=6).train()


def test_rates_of_table_8(files: Path, tmp_path: Path) -> None:
    training = run(files, tmp_path, learning_rate=2e-5, connector_learning_rate=2e-4)
    peaks = {(g["peak"], g["weight_decay"], len(g["params"])) for g in training.optimizer.param_groups}
    assert {(2e-4, 0.01, 2), (2e-4, 0.0, 2)} <= peaks and {g[0] for g in peaks} == {2e-4, 2e-5}
    assert all(group["betas"] == (0.9, 0.999) for group in training.optimizer.param_groups)
    training.train()
    rates = [line["lr"] for line in log(tmp_path)]
    assert rates == pytest.approx([1e-5, 2e-5, 2e-5, 1e-5])  # two steps of warm-up, then half of a cosine


def test_rows_with_unreadable_images_are_passed_over(files: Path, tmp_path: Path) -> None:
    rows = [*ROWS, {"image": "gone.png", "question": "what is this ?", "answer": "a dog"}]
    folder = write_files(tmp_path / "files", rows)
    (folder / "1.png").write_bytes(b"no picture")
    training = run(folder, tmp_path / "a", steps=2, global_batch=7)
    training.train()
    assert len(training.skipped) == 2
    assert "gone.png' cannot be read: No such file" in " ".join(training.skipped.reasons.values())
    with pytest.raises(TrainingError, match="max_unreadable is 1"):
        run(folder, tmp_path / "b", steps=2, global_batch=7, max_unreadable=1).train()


def test_rows_that_are_too_long_are_passed_over(files: Path, tmp_path: Path) -> None:
    training = run(files, tmp_path, steps=1, global_batch=6, max_length=45, lengths={"num_tokens": 30})
    training.train()
    (reason,) = training.skipped.reasons.values()  # that of the row with two images
    assert "60 of images, and not all of these or no answer is left at max_length 45" in reason
    with pytest.raises(
        TrainingError, match=r"none of the 6 rows can be used; the last: .* left at max_length 8"
    ):
        run(write_files(tmp_path / "files", [ROWS[0]] * 6), tmp_path / "b", max_length=8).train()


def test_questions_ask_for_tokens(tmp_path: Path) -> None:
    """Of a row's own first question, as Q-DOVE; a question that is too long is passed over."""
    rows = [
        {"image": "0.png", "question": "the dog", "answer": "yes"},
        {"image": "1.png", "question": "the table " * 30, "answer": "no"},
        {"question": "how many ?", "answer": "two"},
    ]
    files = write_files(tmp_path / "files", rows)
    (tmp_path / "words").mkdir()
    dove = asked(tmp_path / "words")
    dove.save_pretrained(files / "encoder")
    training = run(files, tmp_path / "a", ask=True, steps=1, global_batch=3, lengths={"num_tokens": 5})
    training.train()
    assert ["is too long" in x or "takes 12 at most" in x for x in training.skipped.reasons.values()] == [
        True
    ]
    tokens = training.cache([files / "0.png"], "the dog").tokens
    expected = dove.encode([files / "0.png"], query="the dog", num_tokens=5, fit="pad")
    assert torch.equal(tokens, expected.tokens)
    assert len(list((tmp_path / "a" / "tokens").rglob("*.safetensors"))) == 1
    made = AutoProcessor.from_pretrained(tmp_path / "a" / "model")
    assert torch.equal(
        made.image_processor(files / "0.png", query="the dog")["image_tokens"], expected.tokens
    )


def test_start_from_a_tuned_model(files: Path, tmp_path: Path) -> None:
    first = run(files, tmp_path / "a", steps=2)
    first.train()
    start = {"encoder": "", "text_config": {}, "tokenizer": "", "start_from": str(tmp_path / "a" / "model")}
    second = run(files, tmp_path / "b", **start)
    expected, found = weights(first.model), weights(second.model)
    assert all(torch.equal(expected[name], found[name]) for name in expected)


def test_pictures_in_tiles(tmp_path: Path) -> None:
    files = write_files(tmp_path / "files")
    save_image(torch.cat([picture.float() / 255 for picture in images(3)], dim=-1), files / "0.png")
    training = run(files, tmp_path / "run", tiles=6, steps=2)
    row = training.conversations[0]
    seen, again = training.look(row, None), training.look(row, None)
    assert seen["image_tile_ends"].tolist().count(1) == seen["image_tile_ends"].tolist().count(2) == 2
    assert all(torch.equal(seen[name], again[name]) for name in seen)  # made, and read from the file
    start = training.model.tile_separators.weight.clone()
    training.train()
    processor = AutoProcessor.from_pretrained(tmp_path / "run" / "model")
    model = AutoModelForImageTextToText.from_pretrained(tmp_path / "run" / "model")
    assert processor.image_processor.tiles == 6
    assert (model.tile_separators.weight != start).all()
    with pytest.raises(TrainingError, match="tiles must be a whole number from 1 to 4096"):
        run(files, tmp_path / "many", tiles=5000)
    assert not (tmp_path / "many").exists()
    # A model that has read whole pictures learns to read tiles.
    whole = run(files, tmp_path / "whole", steps=1)
    whole.train()
    before = {"start_from": str(tmp_path / "whole" / "model"), "text_config": {}, "tokenizer": ""}
    grown = run(files, tmp_path / "grown", tiles=6, **before)
    assert torch.equal(*(r.model.multi_modal_projector.linear_1.weight for r in (whole, grown)))
    assert grown.model.tile_separators.weight.any() and "tile_separators.weight" in grown.names


def test_bfloat16(files: Path, tmp_path: Path) -> None:
    run(files, tmp_path, bf16=True, steps=2).train()
    model = AutoModelForImageTextToText.from_pretrained(tmp_path / "model")
    assert model.dtype == torch.bfloat16
    encoder = AutoProcessor.from_pretrained(tmp_path / "model").image_processor.encoder
    expected = run(files, tmp_path / "same", bf16=True).encoder.generator.from_latent.weight
    assert torch.equal(encoder.generator.from_latent.weight, expected)  # in float32
    assert log(tmp_path)[-1]["loss"] < 10


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"learning_rate": 1.0}, "was written with learning_rate"),
        ({"data": "other"}, "was written with other data"),
    ],
)
def test_another_run_is_refused(files: Path, tmp_path: Path, changes: dict[str, Any], sentence: str) -> None:
    run(files, tmp_path / "a", steps=1).train()
    if "data" in changes:
        changes = {"data": [str(write_files(tmp_path / "files", ROWS[:3]) / "rows.jsonl")]}
    with pytest.raises(TrainingError, match=sentence):
        run(files, tmp_path / "a", steps=1, **changes).train()
