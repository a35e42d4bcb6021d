"""Readers of queries with boxes, on small files in the layouts of the data sets."""

from __future__ import annotations

import io
import json
import pickle
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from dove_ext.images.regions import Regions
from dove_train import visual_genome
from dove_train.open_images import attribute, read_open_images
from dove_train.regions import find_pictures, read_shards
from dove_train.settings import TrainingError
from dove_train.visual_genome import read_visual_genome

WHOLE = [[0, 0, 1, 1]]


def picture(path: Path, level: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (20, 10), (level, level, level)).save(path)


def rows(regions: Regions) -> list[tuple[str, str | None, list[list[float]]]]:
    return [
        (Path(r.name).name, r.query, [[round(edge, 4) for edge in box] for box in r.boxes.tolist()])
        for r in regions
    ]


# --- What all readers make ----------------------------------------------------------------------------


def test_queries_come_back_as_they_were_added(tmp_path: Path) -> None:
    picture(tmp_path / "a.png", 7), picture(tmp_path / "b.png", 9)
    regions = Regions(find_pictures(tmp_path), "test")
    regions.add(1, " the  dög\n", [(0.1, 0.2, 0.3, 0.4), (0.1, 0.2, 0.3, 0.4), (-1, 0.5, 2, 0.75)], "first")
    regions.add(0, None, [], "second")
    regions.add(0, "the cat", [(0, 0, 0.5, 1)], "third")
    expected = [
        ("b.png", "the dög", [[0.1, 0.2, 0.3, 0.4], [0, 0.5, 1, 0.75]]),
        ("a.png", None, WHOLE),
        ("a.png", "the cat", [[0, 0, 0.5, 1]]),
    ]
    assert rows(regions) == rows(pickle.loads(pickle.dumps(regions))) == expected
    assert regions[-1].query == "the cat" and len(regions[:2]) == 2
    assert regions[0].boxes.dtype == torch.float32
    assert [int(r.open()[0, 0, 0]) for r in regions] == [9, 7, 7]
    assert regions.report() == ["test: 3 queries about 2 pictures"]
    with pytest.raises(IndexError, match="there is no query 3, there are 3"):
        regions[3]


def test_what_is_left_out_is_counted_with_the_first_example(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    regions = Regions(find_pictures(tmp_path), "test")
    regions.add(0, "  ", WHOLE, "one")
    regions.add(0, "the dog", [(0.5, 0.5, 0.5, 0.9)], "two")
    regions.add(0, "the dog", [(1.5, 0.5, 1.7, 0.9), (float("nan"), 0, 1, 1)], "three")
    regions.add(0, "the dog", [(0.2, 0.9, 0.4, 0.1), (0, 0, 1, 0.5)], "four")
    regions.add(0, "the dog", [], "five")
    assert rows(regions) == [("a.png", "the dog", [[0, 0, 1, 0.5]])]
    assert regions.report() == [
        "test: 1 queries about 1 pictures",
        "test: 1 left out: no text (the first: one)",
        "test: 3 boxes left out: no area within the picture (the first: two)",
        "test: 3 left out: no box within the picture (the first: two)",
    ]


# --- Visual Genome ------------------------------------------------------------------------------------


def region(identity: int, image: int, phrase: str, *box: float) -> dict[str, Any]:
    names = ("x", "y", "width", "height")
    return {"region_id": identity, "image_id": image, "phrase": phrase, **dict(zip(names, box, strict=True))}


def thing(*box: float) -> dict[str, Any]:
    return {"names": ["dog"], "object_id": 1, **dict(zip("xywh", box, strict=True))}


def question(identity: int, image: int, text: str, asked: Any = (), answer: Any = ()) -> dict[str, Any]:
    objects = {"q_objects": list(asked), "a_objects": list(answer)}
    return {"qa_id": identity, "image_id": image, "question": text, "answer": "Yes.", **objects}


GENOME: dict[str, Any] = {
    "image_data.json": [
        {"image_id": 1, "url": "https://x/VG_100K_2/1.jpg", "width": 200, "height": 100},
        {"id": 2, "url": "https://x/VG_100K/2.jpg", "width": 100, "height": 100},
        {"image_id": 3, "url": "https://x/VG_100K/3.jpg", "width": 100, "height": 100},
    ],
    "region_descriptions.json": [
        {"id": 1, "regions": [region(10, 1, "a dog, [running]", 20, 10, 100, 50)]},
        {
            "id": 2,
            "regions": [
                {"id": 20, "image": 2, "phrase": 'a "cup"', "x": -10, "y": 50, "width": 60, "height": 90},
                region(21, 2, "a table", 50, 50, 0, 10),
            ],
        },
        {"id": 3, "regions": [region(30, 3, "a hat", 0, 0, 10, 10)]},
        {"id": 4, "regions": [region(40, 4, "a ball", 0, 0, 10, 10)]},
    ],
    "question_answers.json": [
        {"id": 1, "qas": [question(100, 1, "Where is the dog?", [thing(0, 0, 5, 5)])]},
        {
            "id": 2,
            "qas": [
                question(101, 2, "What is that?", [thing(10, 20, 30, 40)], [thing(50, 50, 50, 50)]),
                question(102, 2, "When?"),
                question(103, 2, "Who?", [thing(10, 20, 30, 40), thing(10, 20, 30, 40)]),
            ],
        },
        {"id": 3, "qas": [question(104, 3, "Why?")]},
    ],
    "qa_to_region_mapping.json": {"100": 10, "103": 999},
}


@pytest.fixture
def genome(tmp_path: Path) -> Path:
    root = tmp_path / "vg"
    picture(root / "VG_100K_2" / "1.jpg"), picture(root / "VG_100K" / "2.jpg")
    picture(root / "VG_100K_2" / "3.jpg")  # not where its url says
    for name, content in GENOME.items():
        (root / name).write_text(json.dumps(content))
    return root


@pytest.mark.parametrize("chunk", [1, 7, 1 << 20])
def test_visual_genome(genome: Path, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(visual_genome, "_CHUNK", chunk)
    regions = read_visual_genome(genome)
    assert rows(regions) == [
        ("1.jpg", "a dog, [running]", [[0.1, 0.1, 0.6, 0.6]]),
        ("2.jpg", 'a "cup"', [[0, 0.5, 0.5, 1]]),
        ("1.jpg", "Where is the dog?", [[0.1, 0.1, 0.6, 0.6]]),
        ("2.jpg", "What is that?", [[0.1, 0.2, 0.4, 0.6], [0.5, 0.5, 1, 1]]),
        ("2.jpg", None, WHOLE),
        ("2.jpg", "Who?", [[0.1, 0.2, 0.4, 0.6]]),
    ]
    name = f"Visual Genome in {str(genome)!r}"
    assert regions.report() == [
        f"{name}: 6 queries about 2 pictures",
        f"{name}: 1 boxes left out: no area within the picture (the first: region 21)",
        f"{name}: 1 left out: no box within the picture (the first: region 21)",
        f"{name}: 1 regions left out: their picture is not there (the first: region 30, VG_100K/3.jpg)",
        f"{name}: 1 regions left out: image_data.json does not name their picture (the first: region 40, 4)",
        f'{name}: 1 questions without region and objects: trained as "null" (the first: question 102)',
        f"{name}: 1 questions whose region is not there: their objects are taken (the first: question 103)",
        f"{name}: 1 questions left out: their picture is not there (the first: question 104, VG_100K/3.jpg)",
    ]


def test_visual_genome_in_shards(genome: Path) -> None:
    expected = rows(read_visual_genome(genome))
    with tarfile.open(genome / "pictures.tar", "w") as shard:
        for path in sorted(genome.rglob("*.jpg")):
            shard.add(path, str(path.relative_to(genome)))
            path.unlink()
    regions = read_visual_genome(genome)
    assert [row[1:] for row in rows(regions)] == [row[1:] for row in expected]
    assert regions[0].name == f"{genome / 'pictures.tar'}: VG_100K_2/1.jpg"
    assert regions[0].open().shape == (3, 10, 20)


def change(name: str, content: Any) -> Callable[[Path], None]:
    text = content if isinstance(content, str) else json.dumps(content)
    return lambda root: (root / name).write_text(text) and None


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (lambda root: (root / "image_data.json").unlink(), "lacks image_data.json of Visual Genome"),
        (
            change("region_descriptions.json", '[{"id": 1'),
            "region_descriptions.json' is truncated or damaged a",
        ),
        (
            change("region_descriptions.json", ""),
            "region_descriptions.json' is truncated or damaged after 0 rec",
        ),
        (
            change("question_answers.json", '{"id": 1}'),
            "question_answers.json' is not a JSON list of objects",
        ),
        (change("question_answers.json", "[1, 2]"), "question_answers.json' is not a JSON list of objects"),
        (change("region_descriptions.json", [{"id": 1}]), r"json': record 0 lacks 'regions'; get a whole"),
        (change("region_descriptions.json", [{"regions": [{"id": 3}]}]), "json': record 0 cannot be used"),
        (change("question_answers.json", [{"id": 1, "qas": [{}]}]), "json': record 0 lacks 'qa_id'"),
        (
            change("image_data.json", [{"image_id": 1, "url": "a/b", "width": 0, "height": 1}]),
            r"image_data.json': record 0 cannot be used \(a size of 0 x 1\)",
        ),
        (change("qa_to_region_mapping.json", "[]"), "mapping.json' does not map questions to regions"),
        (
            change("qa_to_region_mapping.json", {"101": 10}),
            "question 101 about picture 2 is mapped to a region of 1",
        ),
        (
            change("image_data.json", []),
            r"has no query that could be trained: 5 regions left out: image_data.json does not name",
        ),
    ],
)
def test_damaged_files_of_visual_genome(genome: Path, damage: Callable[[Path], None], sentence: str) -> None:
    damage(genome)
    with pytest.raises(TrainingError, match=sentence) as caught:
        read_visual_genome(genome)
    assert "\n" not in str(caught.value)


# --- Open Images --------------------------------------------------------------------------------------

CLASSES = "/m/1,Coffee cup\n/m/2,Table\n/m/3,Apple\n/m/4,Man\n"
ATTRIBUTES = "id,name\n/m/5,Wooden\n/m/6,(made of)Leather\n/m/7,Stand\n"
HEADER = "ImageID,LabelName1,LabelName2,XMin1,XMax1,YMin1,YMax1,XMin2,XMax2,YMin2,YMax2,RelationshipLabel\n"
RELATIONS = (
    "a,/m/1,/m/2,0.1,0.2,0.3,0.4,0,1,0.4,0.9,on\n"
    "a,/m/2,/m/5,0,1,0.4,0.9,0,1,0.4,0.9,is\n"
    "b,/m/4,/m/3,0,0.5,0,0.5,0.1,0.2,0.1,0.2,interacts_with\n"
    "b,/m/4,/m/7,0,0.5,0,0.5,0,0.5,0,0.5,is\n"
    "b,/m/4,/m/9,0,0.5,0,0.5,0,0.5,0,0.5,holds\n"
    "c,/m/4,/m/3,0,0.5,0,0.5,0.1,0.2,0.1,0.2,holds\n"
)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    root = tmp_path / "oi"
    picture(root / "train" / "a.jpg"), picture(root / "b.jpg")
    (root / "class-descriptions-boxable.csv").write_text(CLASSES)
    (root / "oidv6-attributes-description.csv").write_text(ATTRIBUTES)
    (root / "oidv6-train-annotations-vrd.csv").write_text(HEADER + RELATIONS)
    return root


@pytest.mark.parametrize("header", ["", "LabelName,DisplayName\n"])
def test_open_images(images: Path, header: str) -> None:
    (images / "class-descriptions-boxable.csv").write_text(header + CLASSES)
    regions = read_open_images(images)
    assert rows(regions) == [
        ("a.jpg", "a coffee cup on a table", [[0.1, 0.3, 0.2, 0.4], [0, 0.4, 1, 0.9]]),
        ("a.jpg", "a wooden table", [[0, 0.4, 1, 0.9]]),
        ("b.jpg", "a man interacts with an apple", [[0, 0, 0.5, 0.5], [0.1, 0.1, 0.2, 0.2]]),
        ("b.jpg", "a standing man", [[0, 0, 0.5, 0.5]]),
    ]
    name, where = f"Open Images in {str(images)!r}", "oidv6-train-annotations-vrd.csv, line"
    assert regions.report() == [
        f"{name}: 4 queries about 2 pictures",
        f"{name}: 1 relations left out: no description names their class (the first: {where} 6, /m/9)",
        f"{name}: 1 relations left out: their picture is not there (the first: {where} 7, c)",
    ]


def test_attributes_stand_before_their_object() -> None:
    assert attribute("chair", "leather") == "a leather chair"
    assert attribute("unicycle", "run") == "a running unicycle"
    assert attribute("orange", "opaque") == "an opaque orange"


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (
            lambda root: [path.unlink() for path in root.glob("*.csv")],
            r"lacks oidv6-train-annotations-vrd.csv .*, class-descriptions-boxable.csv of Open Images",
        ),
        (
            change("oidv6-train-annotations-vrd.csv", HEADER.replace("YMin1", "y")),
            "vrd.csv' lacks the column YMin1;",
        ),
        (change("oidv6-train-annotations-vrd.csv", ""), "vrd.csv' lacks the column ImageID, LabelName1"),
        (change("oidv6-train-annotations-vrd.csv", HEADER + "a,/m/1"), "vrd.csv', line 2 is no relation"),
        (
            change("oidv6-train-annotations-vrd.csv", HEADER + RELATIONS.replace("0.3", "low")),
            r"vrd.csv', line 2 is no relation \(could not convert",
        ),
        (
            change("class-descriptions-boxable.csv", "/m/1\n"),
            "boxable.csv', line 1: expected an id and a name",
        ),
        (
            change("oidv6-train-annotations-vrd.csv", HEADER),
            "has no query that could be trained: its files are empty",
        ),
    ],
)
def test_damaged_files_of_open_images(images: Path, damage: Callable[[Path], None], sentence: str) -> None:
    damage(images)
    with pytest.raises(TrainingError, match=sentence) as caught:
        read_open_images(images)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("read", [read_visual_genome, read_open_images])
def test_annotations_without_pictures(genome: Path, images: Path, read: Callable[[Path], Regions]) -> None:
    for root in (genome, images):
        for path in root.rglob("*.jpg"):
            path.unlink()
    with pytest.raises(TrainingError, match="is a folder without pictures"):
        read(genome if read is read_visual_genome else images)


# --- Shards -------------------------------------------------------------------------------------------


def shard(path: Path, notes: list[Any]) -> Path:
    stream = io.BytesIO()
    Image.new("RGB", (20, 10)).save(stream, "JPEG")
    with tarfile.open(path, "w") as file:
        for number, note in enumerate(notes):
            data = {"jpg": stream.getvalue()} | ({} if note is None else {"json": json.dumps(note).encode()})
            for suffix, content in data.items():
                member = tarfile.TarInfo(f"{number}.{suffix}")
                member.size = len(content)
                file.addfile(member, io.BytesIO(content))
    return path


BOXES = [{"x0": 0, "y0": 0.1, "x1": 0.5, "y1": 0.6, "label": "dog"}, {"x0": 0, "y0": 0, "x1": 1, "y1": 1}]


def test_shards_with_boxes_and_queries(tmp_path: Path) -> None:
    queries = [{"text": "the dog", "boxes": [0]}, {"text": "all the dogs", "boxes": [1, 0]}]
    notes = [{"boxes": BOXES, "queries": queries}, {"boxes": BOXES}, None, {"boxes": [], "queries": []}]
    path = shard(tmp_path / "a.tar", notes)
    regions = read_shards([path])
    assert rows(regions) == [
        ("a.tar: 0.jpg", "the dog", [[0, 0.1, 0.5, 0.6]]),
        ("a.tar: 0.jpg", "all the dogs", [[0, 0, 1, 1], [0, 0.1, 0.5, 0.6]]),
    ]
    assert regions[1].open().shape == (3, 10, 20)
    assert regions.report() == [
        f"{path}: 2 queries about 1 pictures",
        f"{path}: 2 pictures left out: no queries in its JSON (the first: {path}: 1.jpg)",
        f"{path}: 1 pictures left out: no JSON (the first: {path}: 2.jpg)",
    ]


@pytest.mark.parametrize(
    "note",
    [
        {"queries": [{"text": "the dog", "boxes": [0]}]},
        {"boxes": BOXES, "queries": [{"text": "the dog", "boxes": [2]}]},
        {"boxes": BOXES, "queries": [{"text": "the dog", "boxes": [-1]}]},
        {"boxes": BOXES, "queries": [{"text": 3, "boxes": [0]}]},
        {"boxes": BOXES, "queries": ["the dog"]},
        {"boxes": [[0, 0, 1, 1]], "queries": [{"text": "the dog", "boxes": [0]}]},
    ],
)
def test_notes_of_another_form_are_refused(tmp_path: Path, note: dict[str, Any]) -> None:
    path = shard(tmp_path / "a.tar", [note])
    sentence = r"the JSON of '.*a.tar: 0.jpg' does not hold boxes .* and queries .*; rebuild the shard"
    with pytest.raises(TrainingError, match=sentence):
        read_shards([path])


def test_shards_without_any_query(tmp_path: Path) -> None:
    path = shard(tmp_path / "a.tar", [{}, None])
    with pytest.raises(TrainingError, match=r"no query that could be trained: 1 pictures left out: no que"):
        read_shards([path])
    with pytest.raises(TrainingError, match="nowhere' does not exist"):
        read_shards([tmp_path / "nowhere"])
