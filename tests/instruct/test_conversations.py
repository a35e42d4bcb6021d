"""LLaVA's rows and simple ones, what is learned of them, and what is said of rows that cannot be read."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from tokenizers.processors import TemplateProcessing
from transformers import ByT5Tokenizer, PreTrainedTokenizerFast

from dove_instruct.conversations import Conversation, fingerprint, read_conversations
from dove_instruct.prompts import SYSTEM, LongRowError, chat_template, tokenize
from dove_train.settings import TrainingError
from dove_vlm.collate import LEARN_NOT
from tests.vlm.small import images, processor, tokenizer

LLAVA: list[dict[str, Any]] = [
    {"id": "000000033471", "image": "coco/train2017/000000033471.jpg", "conversations": [
        {"from": "human", "value": "<image>\nWhat are the colors of the bus?"},
        {"from": "gpt", "value": "White and red."},
        {"from": "human", "value": "Is it moving?"}, {"from": "gpt", "value": "No."},
    ]},
    {"id": "wzCK2Y7_0", "model": "", "conversations": [
        {"from": "human", "value": "Write a poem."}, {"from": "gpt", "value": "Roses."},
    ]},
]  # fmt: skip


def read(tmp_path: Path, rows: Any, name: str = "rows.json", root: Path | None = None) -> list[Conversation]:
    text = json.dumps(rows) if name.endswith(".json") else "".join(json.dumps(row) + "\n\n" for row in rows)
    (tmp_path / name).write_text(text)
    return read_conversations([tmp_path / name], root)


def test_llavas_layout(tmp_path: Path) -> None:
    first, second = read(tmp_path, LLAVA, root=tmp_path / "data")
    assert first.images == (tmp_path / "data/coco/train2017/000000033471.jpg",)
    assert first.turns[0] == ("<image>\nWhat are the colors of the bus?", "White and red.")
    assert first.turns[1] == ("Is it moving?", "No.")
    assert second.images == () and second.turns == (("Write a poem.", "Roses."),)
    assert read(tmp_path, LLAVA, "rows.jsonl", tmp_path / "data")[0].turns == first.turns


def test_simple_lines(tmp_path: Path) -> None:
    rows = [
        {"image": "a.jpg", "question": "What?", "answer": "This."},
        {"image": ["a.jpg", "b.jpg"], "question": "Which of <image> and <image>?", "answer": "That."},
        {"question": "Why?", "answer": "So."},
    ]
    one, two, none = read(tmp_path, rows, "rows.jsonl")
    assert one.turns == (("<image>\nWhat?", "This."),) and one.images == (tmp_path / "a.jpg",)
    assert len(two.images) == 2 and two.turns[0][0].startswith("Which")
    assert none.images == ()
    assert fingerprint([one, two]) != fingerprint([two, one]) == fingerprint([two, one])


@pytest.mark.parametrize(
    ("row", "sentence"),
    [
        (7, "row 0 is no JSON object"),
        ({"question": "What?"}, "row 0 has neither conversations, nor question and answer"),
        ({"image": 3, "question": "a", "answer": "b"}, "image must be a file's name"),
        ({"image": "a", "question": "<image> <image>", "answer": "b"}, "has 2 <image> for 1 images"),
        ({"question": "<image>", "answer": "b"}, "has 1 <image> for 0 images"),
        ({"question": "a", "answer": "<image>"}, "has <image> in an answer"),
        ({"conversations": []}, "ends without an answer"),
        ({"conversations": [{"from": "human", "value": "a"}]}, "ends without an answer"),
        ({"conversations": [{"from": "gpt", "value": "a"}]}, "turn 0 must be text of 'human'"),
        ({"conversations": [{"from": "human", "value": 5}]}, "turn 0 must be text of 'human'"),
    ],
)
def test_rows_that_cannot_be_read(tmp_path: Path, row: Any, sentence: str) -> None:
    with pytest.raises(TrainingError, match=sentence):
        read(tmp_path, [row])


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="cannot be read: No such file"):
        read_conversations([tmp_path / "none.json"])
    with pytest.raises(TrainingError, match="must be a JSON list"):
        read(tmp_path, {"a": 1})
    with pytest.raises(TrainingError, match="hold no conversation"):
        read(tmp_path, [])
    (tmp_path / "lines.json").write_text('{"a": 1}\n{"a": 2}\n')
    with pytest.raises(TrainingError, match=r"is not JSON: .*; name JSON lines \.jsonl"):
        read_conversations([tmp_path / "lines.json"])


def tokens(row: Conversation, counts: list[int], template: str = "vicuna", most: int = 1000) -> Any:
    words = ByT5Tokenizer()
    words.add_tokens(["<image>"], special_tokens=True)
    image = words.convert_tokens_to_ids("<image>")
    ids, labels = tokenize(row, counts, words, template=template, image_token="<image>", max_length=most)
    assert len(ids) == len(labels)
    learned = words.decode([label for label in labels if label != LEARN_NOT])
    return words.decode([i for i in ids if i != image]), learned, ids, image


def test_answers_alone_are_learned(tmp_path: Path) -> None:
    first, second = read(tmp_path, LLAVA)
    text, learned, ids, image = tokens(first, [3])
    assert text == (
        f"{SYSTEM} USER: \nWhat are the colors of the bus? ASSISTANT: White and red.</s>"
        "USER: Is it moving? ASSISTANT: No.</s>"
    )
    assert learned == " White and red.</s> No.</s>"
    assert ids.count(image) == 3
    assert tokens(second, [])[:2] == (f"{SYSTEM} USER: Write a poem. ASSISTANT: Roses.</s>", " Roses.</s>")
    assert tokens(second, [], "plain")[0] == "Write a poem.\nRoses.</s>"


def test_rows_begin_as_the_tokenizer_lets_texts_begin() -> None:
    """At an answer the processor writes the prompt: what it does not put in front must not be trained."""
    row = Conversation("row", (), (), (("what is this ?", "a dog"),))
    plain = tokenizer()  # it knows <s>, and puts it nowhere
    with_start = tokenizer()
    with_start.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    how = {"template": "plain", "image_token": "<image>", "max_length": 99}
    ids, labels = tokenize(row, [], plain, **how)
    assert tokenize(row, [], with_start, **how) == ([1, *ids], [LEARN_NOT, *labels])
    assert ids[0] == plain.convert_tokens_to_ids("what")


def test_lines_and_names_as_json_has_them(tmp_path: Path) -> None:
    rows = [
        {"question": "one\u2028two\x85three", "answer": "yes"},
        {"image": None, "images": ["a.png"], "question": "q", "answer": "no"},
    ]
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows), encoding="utf-8")
    first, second = read_conversations([path])
    assert first.turns[0][0] == rows[0]["question"] and second.images == (tmp_path / "a.png",)
    rows[1]["images"] = ["b/a.png"]
    (tmp_path / "other.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert fingerprint([first, second]) != fingerprint(read_conversations([tmp_path / "other.jsonl"]))


@pytest.mark.parametrize("template", ["vicuna", "plain"])
def test_a_system_message_takes_the_place_of_the_templates(template: str) -> None:
    made = processor()
    made = type(made)(made.image_processor, pieces(), chat_template=chat_template(template, "</s>"))
    user = {"role": "user", "content": "Hi"}
    text = made.apply_chat_template([{"role": "system", "content": "Be brief."}, user])
    plain = made.apply_chat_template([user])
    assert text == (plain.replace(SYSTEM, "Be brief.") if template == "vicuna" else f"Be brief.\n{plain}")
    assert "</s>" not in text


def test_long_rows_lose_their_end_and_never_an_image(tmp_path: Path) -> None:
    first, _ = read(tmp_path, LLAVA)
    whole = tokens(first, [3])[2]
    assert tokens(first, [3], most=len(whole) - 5)[2] == whole[:-5]
    for most, counts in ((60, [3]), (len(whole), [10_000])):
        with pytest.raises(LongRowError, match="not all of these or no answer is left at max_length"):
            tokens(first, counts, most=most)


def pieces() -> PreTrainedTokenizerFast:
    """As Llama's: a mark in front of every text, words with the space before them, <s> at the beginning."""
    words = Tokenizer(models.BPE(unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    special = ["<pad>", "<s>", "</s>", "<unk>"]
    trainer = trainers.BpeTrainer(vocab_size=160, special_tokens=special, show_progress=False)
    words.train_from_iterator([SYSTEM, "USER: What are the colors? ASSISTANT: White and red."] * 3, trainer)
    words.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=words, bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="<pad>"
    )


@pytest.mark.parametrize("words", [ByT5Tokenizer, pieces])
@pytest.mark.parametrize("template", ["vicuna", "plain"])
def test_the_chat_template_writes_what_was_learned(tmp_path: Path, template: str, words: Any) -> None:
    """A user's conversation is, token for token, the beginning of a training row."""
    made = processor()
    made = type(made)(made.image_processor, words(), chat_template=chat_template(template, "</s>"))
    first, _ = read(tmp_path, LLAVA)
    picture = {"type": "image", "image": images(1)[0]}
    asked = [
        {"role": "user", "content": [picture, {"type": "text", "text": "What are the colors of the bus?"}]},
        {"role": "assistant", "content": "White and red."},
        {"role": "user", "content": "Is it moving?"},
    ]
    text = made.apply_chat_template(asked)
    inputs = made(text=text, images=[picture["image"]], add_special_tokens=words is pieces)
    ids, labels = tokenize(
        first,
        inputs["num_image_tokens"],
        made.tokenizer,
        template=template,
        image_token=made.image_token,
        max_length=5000,
    )
    found = inputs["input_ids"][0]
    assert ids[: len(found)] == found and len(found) > len(ids) - 10
    learned = made.decode([i for i in labels if i != LEARN_NOT])
    assert re.sub(r"[\s\u2581]", "", learned) == "Whiteandred.</s>No.</s>"
