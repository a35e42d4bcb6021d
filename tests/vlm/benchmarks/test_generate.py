"""The adapter's own small model, asked through `evaluate`: lengths, batches, queries, files."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

import dove_vlm
from dove_vlm.benchmarks import BenchmarkError, Record, evaluate, find_benchmark, read_records
from dove_vlm.benchmarks.generate import Model, answerer, check_queries, load
from tests.vlm.benchmarks.layouts import LAYOUTS

if not hasattr(dove_vlm, "DoveLlavaProcessor"):
    pytest.skip("dove_vlm is here without its models", allow_module_level=True)

from tests.models.micro import asked
from tests.vlm.small import model as small_model
from tests.vlm.small import processor as small_processor


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("model")
    small_model().save_pretrained(made)
    small_processor().save_pretrained(made)
    return made


def ask(model: Model, records: list[Record], batch_size: int) -> list[tuple[int | str, str]]:
    answer = answerer(model, find_benchmark("scienceqa"))
    return evaluate("scienceqa", records, answer, batch_size=batch_size, split="test").answers


def test_a_saved_model_answers_alike_in_any_batch(folder: Path, tmp_path: Path) -> None:
    records = read_records("scienceqa", LAYOUTS["scienceqa"](tmp_path), "test")  # one without a picture
    processor, loaded = load(folder)
    model = Model(processor, loaded)
    answers = ask(model, records, 2)
    assert answers == ask(model, records, 1) and len(model.counted) == 2
    assert all(0 < len(text.split()) <= 16 for _, text in answers)


def test_lengths_reach_the_encoder(folder: Path, tmp_path: Path) -> None:
    records = read_records("gqa", LAYOUTS["gqa"](tmp_path))
    processor, loaded = load(folder)
    own, five = Model(processor, loaded), Model(processor, loaded, 5)
    for model in (own, five):
        evaluate("gqa", records, answerer(model, find_benchmark("gqa")))
    assert five.counted == [5, 5] and five.mean_tokens == 5
    assert own.counted[0] == own.counted[1] != 5
    with pytest.raises(BenchmarkError, match="--num-tokens 65 is impossible"):
        Model(processor, loaded, 65)


def test_a_folder_without_a_model(tmp_path: Path) -> None:
    with pytest.raises(BenchmarkError, match=r"holds no vision-language model with its processor \("):
        load(tmp_path)


def test_a_cut_file(folder: Path, tmp_path: Path) -> None:
    cut = shutil.copytree(folder, tmp_path / "cut")
    weights = cut / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(BenchmarkError, match="holds no vision-language model with its processor"):
        load(cut)


def test_what_cannot_be_asked(folder: Path) -> None:
    processor, loaded = load(folder)
    model = Model(processor, loaded)
    with pytest.raises(BenchmarkError, match=r"the question 'what is <image> \?' holds <image>"):
        model.answer(["what is <image> ?"], [[]])
    loaded.config.get_text_config().max_position_embeddings = 8
    with pytest.raises(BenchmarkError, match="have 20 positions, the language model 8"):
        model.answer(["what is this ?"], [[]])
    processor.image_processor.tiles = (1, 6)
    wide = torch.zeros(3, 32, 64, dtype=torch.uint8)
    with pytest.raises(BenchmarkError, match="num_tokens must be at least a token for each tile"):
        Model(processor, loaded, 2).answer(["what is this ?"], [[wide]])


def test_a_model_is_asked_as_it_was_trained() -> None:
    prompts = pytest.importorskip("dove_instruct.prompts", reason="instruction tuning is not here")
    conversations = pytest.importorskip("dove_instruct.conversations")
    processor = small_processor()
    processor.chat_template = prompts.chat_template("vicuna", "</s>")
    assert Model(processor, None).prompt("what is this ?", 1) == (
        f"{prompts.SYSTEM} USER: {conversations.PLACE}\nwhat is this ? ASSISTANT:"
    )


@pytest.mark.parametrize(
    ("query", "expected"), [("question", ["Which is a planet?"]), ("null", "null"), (None, None)]
)
def test_what_a_query_encoder_is_asked(
    query: str | None, expected: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = asked(tmp_path, query_length=24)
    processor = dove_vlm.DoveLlavaProcessor(dove_vlm.DoveImageProcessor(encoder), small_processor().tokenizer)
    heard = []
    encode = type(encoder).encode
    monkeypatch.setattr(type(encoder), "encode", lambda *a, **k: heard.append(k["query"]) or encode(*a, **k))
    records = read_records("scienceqa", LAYOUTS["scienceqa"](tmp_path), "test")
    ask = answerer(Model(processor, small_model(dove=encoder)), find_benchmark("scienceqa"), query)
    assert len(ask(records)) == 2
    assert heard == [expected]


def test_questions_that_are_no_queries_are_refused_before_the_work(tmp_path: Path) -> None:
    processor = small_processor()
    records = read_records("scienceqa", LAYOUTS["scienceqa"](tmp_path), "test")
    check_queries(Model(processor, None), records)  # reads no queries: encode says so
    processor.image_processor = dove_vlm.DoveImageProcessor(asked(tmp_path, query_length=24))
    check_queries(Model(processor, None), records)
    processor.image_processor = dove_vlm.DoveImageProcessor(asked(tmp_path, query_length=12))
    with pytest.raises(BenchmarkError, match=r"question 5 is no query for the encoder \(query has 16 tokens"):
        check_queries(Model(processor, None), records)
