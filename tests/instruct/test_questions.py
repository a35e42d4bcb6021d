"""Questions about labelled pictures: balanced answers, files that training reads, and three commands."""

from __future__ import annotations

import io
import json
import tarfile
from argparse import ArgumentParser
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dove_ext.cli.command import UsageError
from dove_ext.errors import ImageError
from dove_instruct import cli
from dove_instruct.conversations import read_conversations
from dove_instruct.question_data import conversations, make_tokenizer, write_questions
from dove_instruct.questions import COUNT, IS, LEFT, WHAT, Scene, make_questions
from dove_train.settings import TrainingError
from tests.instruct.small import TEXT_CONFIG
from tests.vlm.small import encoder

LABELS = ("cat", "dog", "owl")


def scenes(count: int = 300) -> list[Scene]:
    """Labelled pictures, pictures with boxes, and some of which nothing is known."""
    random = np.random.default_rng(0)
    found = []
    for i in range(count):
        things = [(str(random.choice([*LABELS, "rare"])), float(random.random())) for _ in range(i % 6)]
        unsure = frozenset({"owl"}) if i % 10 == 3 else frozenset[str]()
        found.append(Scene(LABELS[i % 3] if i % 6 < 2 else "", tuple(things), unsure))
    return found


def test_the_question_alone_does_not_tell_the_answer() -> None:
    questions = make_questions(scenes(), LABELS, 0)
    said: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
    for q in questions:
        said[q.kind, q.text].update([q.answer])
    for (kind, text), answers in said.items():
        if kind in (IS, COUNT):
            assert len(answers) > 1 and len(set(answers.values())) == 1, (text, answers)
    first = [q.text.split("the ")[1].split(" or ")[0] == q.answer for q in questions if q.kind == LEFT]
    assert 0.35 < np.mean(first) < 0.65 and len(first) > 50
    assert {q.kind for q in questions} == {WHAT, IS, COUNT, LEFT}


def test_every_answer_is_true_of_its_picture() -> None:
    known = scenes()
    for q in make_questions(known, LABELS, 3):
        scene = known[q.scene]
        counts = Counter(label for label, _ in scene.things)
        if q.kind == WHAT:
            assert q.answer == scene.label
        elif q.kind == IS:
            label = q.text.removesuffix("?").split()[-1]
            assert (q.answer == "yes") == (label in scene.labels)
            assert q.answer == "yes" or label not in scene.unsure
        elif q.kind == COUNT:
            label = q.text.split()[2].removesuffix("s")
            assert counts[label] == int(q.answer) and label not in scene.unsure
        else:
            places = dict(scene.things)
            left = q.text.removeprefix("which is further left, the ").removesuffix("?").split(" or the ")
            (right,) = set(left) - {q.answer}
            assert counts[q.answer] == counts[right] == 1 and places[q.answer] < places[right] - 0.2


def test_other_labels_are_not_asked_for_and_seeds_choose() -> None:
    assert not any("owl" in q.text + q.answer for q in make_questions(scenes(), ["cat", "dog"], 0))
    one, again, other = (make_questions(scenes(), LABELS, seed) for seed in (0, 0, 1))
    assert one == again != other


def test_rows_have_all_questions_of_a_picture_and_no_more_turns_than_asked() -> None:
    rows = [{"image": f"{i // 5}.png", "question": f"q{i}", "answer": f"a{i}"} for i in range(11)]
    made = list(conversations(rows, 3, 0))
    assert [len(row["conversations"]) // 2 for row in made] == [3, 2, 3, 2, 1]
    assert all(row["conversations"][0]["value"].startswith("<image>\n") for row in made)
    turns = [
        (t["value"].removeprefix("<image>\n"), row["image"]) for row in made for t in row["conversations"]
    ]
    assert sorted(turns) == sorted((row[k], row["image"]) for row in rows for k in ("question", "answer"))


def test_a_frequent_word_is_one_token_and_any_text_comes_back() -> None:
    tokenizer = make_tokenizer(["what color is the triangle?", "yes"] * 3)
    assert len(tokenizer(" triangle")["input_ids"]) == 1
    text = "is there an Übermut\n?"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert tokenizer.eos_token == "</s>"


# --- Files ------------------------------------------------------------------------------------------------


def picture(number: int) -> Image.Image:
    pixels = np.random.default_rng(number).integers(0, 255, (24, 30, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def classes(folder: Path, each: int, first: int) -> Path:
    for k, label in enumerate(("cat", "dog")):
        (folder / label).mkdir(parents=True)
        for i in range(each):
            picture(first + 10 * k + i).save(folder / label / f"{i}.png")
    return folder


def shard(path: Path, notes: list[dict[str, Any]]) -> Path:
    with tarfile.open(path, "w") as tar:
        for i, note in enumerate(notes):
            stream = io.BytesIO()
            picture(100 + i).save(stream, "JPEG")
            for name, data in ((f"{i}.jpg", stream.getvalue()), (f"{i}.json", json.dumps(note).encode())):
                member = tarfile.TarInfo(name)
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    return path


def box(label: str, x0: float, x1: float) -> dict[str, Any]:
    return {"label": label, "x0": x0, "x1": x1, "y0": 0.0, "y1": 1.0}


def easy_vqa(folder: Path) -> Path:
    for split in ("train", "test"):
        (folder / split / "images").mkdir(parents=True)
        picture(7).save(folder / split / "images" / "0.png")
        asked = [["what shape is this?", "circle", 0], ["is it red?", "no", 0]]
        (folder / split / "questions.json").write_text(json.dumps(asked))
    return folder


def test_labels_boxes_mosaics_and_easy_vqa_become_files(tmp_path: Path) -> None:
    train = [classes(tmp_path / "a", 3, 0), shard(tmp_path / "boxes.tar", [
        {"boxes": [box("dog", 0, 0.3), box("cat", 0.6, 1)]}, {"label": "Big_Dog"}, {},
    ])]  # fmt: skip
    made = write_questions(
        tmp_path / "new" ,
        easy_vqa=easy_vqa(tmp_path / "easy"),
        train=train,
        test=[classes(tmp_path / "b", 2, 50)],
        mosaics=8,
        at_least=2,
    )  # fmt: skip
    rows = read_conversations([tmp_path / "new" / "train.json"])
    assert sum(len(row.turns) for row in rows) == sum(made["train.json"].values())
    assert all(path.is_file() for row in rows for path in row.images)
    assert {"what", "is", "count", "left", "easy-vqa"} <= set(made["train.json"])
    lines = [json.loads(line) for line in (tmp_path / "new" / "test.jsonl").read_text().splitlines()]
    assert Counter(line["kind"] for line in lines) == made["test.jsonl"]
    assert all((tmp_path / "new" / line["image"]).is_file() for line in lines)
    assert "big dog" not in {line["answer"] for line in lines}  # of one picture only
    # A picture in a shard is written as it is.
    copied = [p for p in (tmp_path / "new" / "images").glob("train-*.jpg")]
    assert copied and Image.open(copied[0]).size == (30, 24)


def test_mosaics_hold_what_their_questions_say(tmp_path: Path) -> None:
    for label, colour in (("red", (255, 0, 0)), ("blue", (0, 0, 255))):
        (tmp_path / "p" / label).mkdir(parents=True)
        Image.new("RGB", (20, 30), colour).save(tmp_path / "p" / label / "0.png")
    folders = {"train": [tmp_path / "p"], "test": [tmp_path / "p"]}
    write_questions(tmp_path / "new", **folders, mosaics=60, at_least=1)  # type: ignore[arg-type]
    counted = 0
    for line in map(json.loads, (tmp_path / "new" / "test.jsonl").read_text().splitlines()):
        if line["kind"] != COUNT:
            continue
        pixels = np.asarray(Image.open(tmp_path / "new" / line["image"]))
        corners = [pixels[y, x] for y in (60, 190) for x in (60, 190)]
        label = "red" if "red" in line["question"] else "blue"
        wanted = (255, 0, 0) if label == "red" else (0, 0, 255)
        assert sum(tuple(corner) == wanted for corner in corners) == int(line["answer"])
        counted += 1
    assert counted > 5


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"test": []}, "need both"),
        ({"at_least": 4}, "0 labels have 4 training pictures"),
        ({"train": [Path("nowhere")]}, "nowhere"),
        ({"easy_vqa": Path("nowhere")}, "no data of easy-vqa"),
        ({"train": (), "test": ()}, "nothing to ask"),
    ],
)
def test_what_cannot_be_used_is_named_and_nothing_is_left(
    change: dict[str, Any], sentence: str, tmp_path: Path
) -> None:
    arguments = {
        "train": [classes(tmp_path / "a", 2, 0)], "test": [classes(tmp_path / "b", 2, 0)],
        "at_least": 1, "mosaics": 0,
    }  # fmt: skip
    with pytest.raises((TrainingError, ImageError), match=sentence):
        write_questions(tmp_path / "new", **{**arguments, **change})
    assert not [path.name for path in tmp_path.iterdir() if "new" in path.name]


def test_boxes_without_places_are_named(tmp_path: Path) -> None:
    bad = shard(tmp_path / "bad.tar", [{"boxes": [{"label": "cat"}]}])
    with pytest.raises(ImageError, match=r"bad\.tar: 0\.jpg: its JSON has boxes without x0"):
        write_questions(tmp_path / "new", train=[bad], test=[bad])


def test_a_folder_that_is_there_is_kept(tmp_path: Path) -> None:
    (tmp_path / "new").mkdir()
    with pytest.raises(TrainingError, match="exists; remove it"):
        write_questions(tmp_path / "new", easy_vqa=easy_vqa(tmp_path / "easy"))


# --- Three commands ---------------------------------------------------------------------------------------


def call(*arguments: Any) -> int:
    parser = ArgumentParser()
    parser.set_defaults(run=cli.run)
    cli.configure(parser)
    args = parser.parse_args([str(argument) for argument in arguments])
    code: int = args.run(args)
    return code


def test_questions_training_and_an_answer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    encoder().save_pretrained(tmp_path / "encoder")
    photos = classes(tmp_path / "photos", 3, 0)
    data = tmp_path / "data"
    assert (
        call("questions", "--train", photos, "--test", photos, "--at-least", 2, "--mosaics", 2, "-o", data)
        == 0
    )
    assert "test.jsonl: " in capsys.readouterr().out
    recipe = {
        "encoder": str(tmp_path / "encoder"),
        "text_config": TEXT_CONFIG,
        "template": "plain",
        "fit": "squash",
    }
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))
    run = tmp_path / "run"
    changes = ["--steps", 2, "--global-batch", 2, "--bf16", "false", "--tokenizer", data / "tokenizer"]
    assert call("train", tmp_path / "recipe.yaml", "--data", data / "train.json", *changes, "-o", run) == 0
    capsys.readouterr()
    ask = ["ask", run / "model", photos / "cat" / "0.png", "-q", "what is this?", "--max-new-tokens", 3]
    assert call(*ask, "--num-tokens", 5, "--json") == 0
    said = json.loads(capsys.readouterr().out)
    assert said["num_image_tokens"] == [5] and isinstance(said["answer"], str)
    assert call(*ask) == 0
    assert call(*ask[:2], photos / "dog" / "0.png", *ask[2:]) == 0  # two pictures


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("questions", "-o", "x"), "give --easy-vqa, or labelled pictures"),
        (("questions", "--easy-vqa", "--mosaics", "-1", "-o", "x"), "must be 0 or more"),
    ],
)
def test_the_command_refuses(arguments: tuple[str, ...], sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        call(*arguments)
