"""What each reader makes of its benchmark's official files, and how it says what is missing."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from dove_ext.errors import ImageError
from dove_vlm.benchmarks import BENCHMARKS, BenchmarkError, Record, find_benchmark, read_records
from tests.vlm.benchmarks.layouts import LAYOUTS, PEOPLE

QUESTIONS = {
    "vqav2": "v2_OpenEnded_mscoco_val2014_questions.json",
    "gqa": "questions1.2/val_balanced_questions.json",
    "okvqa": "mscoco_val2014_annotations.json",
    "textvqa": "TextVQA_0.5.1_val.json",
    "docvqa": "val_v1.0_withQT.json",
    "infovqa": "infographicsVQA_val_v1.0_withQT.json",
    "chartqa": "ChartQA Dataset/test/test_augmented.json",
    "scienceqa": "pid_splits.json",
}
WITHHELD = [("vqav2", "test-dev", 2000), ("gqa", "submission", "7"), ("textvqa", "test", 9),
            ("docvqa", "test", 57344), ("infovqa", "test", 5)]  # fmt: skip


def read(name: str, root: Path, split: str | None = None) -> list[Record]:
    return read_records(name, LAYOUTS[name](root), split)


def test_every_benchmark_of_table_3_has_a_reader() -> None:
    columns = ["VQAv2", "GQA", "OKVQA", "TextVQA", "DocVQA", "InfoVQA", "ChartQA", "ScienceQA"]
    assert [benchmark.title for benchmark in BENCHMARKS.values()] == columns
    assert set(BENCHMARKS) == set(LAYOUTS) == set(QUESTIONS)


@pytest.mark.parametrize("name", ["vqav2", "okvqa"])
def test_vqa(name: str, tmp_path: Path) -> None:
    what, yes = read(name, tmp_path)
    assert (what.question_id, what.question) == (42000, "What color is it?")
    assert list(what.answers) == PEOPLE and yes.answers == ("yes",) * 10
    assert (what.group, yes.group) == (("other", "yes/no") if name == "vqav2" else ("", ""))
    assert what.open().getpixel((0, 0))[0] > 200 and yes.open().getpixel((0, 0))[2] > 200


def test_gqa(tmp_path: Path) -> None:
    what, on = read("gqa", tmp_path)
    assert (what.question_id, what.answers, what.group) == ("20", ("traffic light",), "open")
    assert (on.question_id, on.answers, on.group) == ("03", ("no",), "binary")
    assert what.image == tmp_path / "images" / "n1.jpg"


def test_documents(tmp_path: Path) -> None:
    (value,) = read("docvqa", tmp_path / "d")
    assert (value.question_id, value.answers) == (49153, ("0.28", "0.2 8"))
    (platform,) = read("infovqa", tmp_path / "i")
    assert (platform.question_id, platform.answers) == (98313, ("linkedin",))
    assert value.open().size == platform.open().size == (8, 6)


def test_chartqa(tmp_path: Path) -> None:
    found = read("chartqa", tmp_path)
    assert [r.question_id for r in found] == ["human-0", "human-1", "augmented-0"]
    assert [r.answers[0] for r in found] == ["14", "Brazil", "57"]
    assert [r.group for r in found] == ["human", "human", "augmented"]


def test_scienceqa(tmp_path: Path) -> None:
    (planet,) = read("scienceqa", tmp_path)  # the paper's: those with a picture
    assert (planet.question_id, planet.answers, planet.options) == ("5", ("B",), ("Sun", "Mars"))
    assert planet.hint == "Look at the sky." and planet.open().size == (8, 6)
    assert [(r.question_id, r.group) for r in read_records("scienceqa", tmp_path, "test")] == [
        ("5", "image"),
        ("11", "text"),
    ]
    words = read_records("scienceqa", tmp_path, "test")[1]
    assert words.image is None and words.answers == ("A",)
    with pytest.raises(BenchmarkError, match="question 11 has no picture"):
        words.open()
    assert read_records("scienceqa", tmp_path, "val")[0].open().size == (8, 6)


def test_prompts(tmp_path: Path) -> None:
    benchmark = find_benchmark("scienceqa")
    assert benchmark.prompt(read("scienceqa", tmp_path / "s")[0]) == (
        "Context: Look at the sky.\nWhich is a planet?\nA. Sun\nB. Mars\n"
        "Answer with the option's letter from the given choices directly."
    )
    for name in set(BENCHMARKS) - {"scienceqa"}:
        record = read(name, tmp_path / name)[0]
        assert find_benchmark(name).prompt(record) == (
            f"{record.question}\nAnswer the question using a single word or phrase."
        )


@pytest.mark.parametrize(("name", "split", "number"), WITHHELD)
def test_splits_without_answers_can_be_read(name: str, split: str, number: Any, tmp_path: Path) -> None:
    (record,) = read(name, tmp_path, split)
    assert (record.question_id, record.answers) == (number, ())
    assert split in BENCHMARKS[name].withheld


def test_every_withheld_split_is_tested() -> None:
    splits = {(name, split) for name, b in BENCHMARKS.items() for split in b.withheld}
    assert splits - {(name, split) for name, split, _ in WITHHELD} == {("vqav2", "test"), ("gqa", "test")}


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_missing_file_is_named_with_its_home(name: str, tmp_path: Path) -> None:
    LAYOUTS[name](tmp_path)
    (tmp_path / QUESTIONS[name]).unlink()
    with pytest.raises(BenchmarkError) as caught:
        read_records(name, tmp_path)
    assert Path(QUESTIONS[name]).name in str(caught.value) and BENCHMARKS[name].home in str(caught.value)


@pytest.mark.parametrize("name", LAYOUTS)
def test_missing_pictures_are_missed_before_the_work(name: str, tmp_path: Path) -> None:
    LAYOUTS[name](tmp_path)
    for path in [p for p in tmp_path.rglob("*") if p.suffix in (".jpg", ".jpeg", ".png")]:
        if path.parent.exists():
            shutil.rmtree(path.parent if name != "scienceqa" else tmp_path / "images")
    with pytest.raises(BenchmarkError, match=r"lacks .*/ of " + name):
        read_records(name, tmp_path)


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize(
    ("text", "reason"), [("{", "is no JSON"), ("[]", ""), ("{}", ""), ('[{"a": 1}]', ""), ("3", "")]
)
def test_a_damaged_file_is_named(name: str, text: str, reason: str, tmp_path: Path) -> None:
    LAYOUTS[name](tmp_path)
    (tmp_path / QUESTIONS[name]).write_text(text)
    with pytest.raises(
        BenchmarkError, match=f"{Path(QUESTIONS[name]).name}.*{reason}.*download it|file anew"
    ):
        read_records(name, tmp_path)


@pytest.mark.parametrize("name", ["textvqa", "docvqa", "infovqa"])
@pytest.mark.parametrize("field", ["answers", "question"])
def test_a_missing_field_is_named(name: str, field: str, tmp_path: Path) -> None:
    path = LAYOUTS[name](tmp_path) / QUESTIONS[name]
    content = json.loads(path.read_text())
    del content["data"][0][field]
    path.write_text(json.dumps(content))
    with pytest.raises(BenchmarkError, match=rf"row 0 of '.*{path.name}' has no '{field}'; download"):
        read_records(name, tmp_path)


def test_a_question_without_its_people_is_refused(tmp_path: Path) -> None:
    path = LAYOUTS["okvqa"](tmp_path) / QUESTIONS["okvqa"]
    content = json.loads(path.read_text())
    content["annotations"][1]["answers"] = content["annotations"][1]["answers"][:1]
    path.write_text(json.dumps(content))
    with pytest.raises(BenchmarkError, match="1 answer where ten belong"):
        read_records("okvqa", tmp_path)
    del content["annotations"][1]
    path.write_text(json.dumps(content))
    with pytest.raises(BenchmarkError, match=r"no answer to question 42000.*take both files of one split"):
        read_records("okvqa", tmp_path)


def test_scienceqa_files_of_two_releases(tmp_path: Path) -> None:
    path = LAYOUTS["scienceqa"](tmp_path) / "pid_splits.json"
    path.write_text('{"test": ["5", "99"]}')
    with pytest.raises(BenchmarkError, match="no question '99'"):
        read_records("scienceqa", tmp_path)


def test_pictures_are_opened_late(tmp_path: Path) -> None:
    LAYOUTS["infovqa"](tmp_path)
    picture = tmp_path / "images" / "38222.jpeg"
    picture.write_bytes(b"no picture")
    (record,) = read_records("infovqa", tmp_path)
    with pytest.raises(ImageError, match=r"38222\.jpeg"):
        record.open()
    picture.unlink()
    with pytest.raises(BenchmarkError, match=r"38222\.jpeg', the picture of question 98313, is not there"):
        record.open()


def test_pictures_as_bytes(tmp_path: Path) -> None:
    picture = LAYOUTS["gqa"](tmp_path) / "images" / "n1.jpg"
    assert Record(1, "?", picture.read_bytes()).open().size == (8, 6)
    with pytest.raises(ImageError, match="the picture of question 1"):
        Record(1, "?", b"none").open()


def test_names_that_do_not_exist(tmp_path: Path) -> None:
    with pytest.raises(BenchmarkError, match="no benchmark 'vqa'; choose one of vqav2, gqa"):
        read_records("vqa", tmp_path)
    with pytest.raises(BenchmarkError, match="gqa has no split 'dev'; choose one of val, testdev"):
        read("gqa", tmp_path, "dev")
    with pytest.raises(BenchmarkError, match=r"the folder '.*none' of gqa does not exist"):
        read_records("gqa", tmp_path / "none")
