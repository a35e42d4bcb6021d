"""`dove eval query` on micro models: its figures by hand, what it leaves out, and what it refuses."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from dove_eval import EvalSettings, Evaluation, questions
from dove_eval import evaluate as write_report
from dove_eval.query import headline, where
from dove_ext import DoveModel
from dove_ext.images import prepare_images
from dove_ext.images.mosaics import Mosaics
from dove_ext.metrics import psnr
from tests.cli.called import run
from tests.conftest import import_or_skip
from tests.eval.test_command import Page
from tests.models.micro import asked, micro, photos, pointing, stop_at_share

import_or_skip("tokenizers")
pytestmark = pytest.mark.usefixtures("one_thread")

DOG, TABLE, FLY, CAT = (
    (0.0, 0.0, 0.5, 0.5),
    (0.5, 0.25, 1.0, 1.0),
    (0.0, 0.0, 0.09, 0.1),
    (0.2, 0.6, 0.7, 0.9),
)


def note(**queries: Sequence[tuple[float, ...]]) -> dict[str, Any]:
    """JSON of a picture: a query to its boxes."""
    boxes = [box for own in queries.values() for box in own]
    named = [dict(zip(("x0", "y0", "x1", "y1"), box, strict=True)) for box in boxes]
    listed = [
        {"text": text.replace("_", " "), "boxes": [boxes.index(box) for box in own]}
        for text, own in queries.items()
    ]
    return {"boxes": named, "queries": listed}


NOTES = [
    note(the_dog=[DOG], the_table=[TABLE]),
    {},
    note(the_dogs=[DOG, TABLE], all_the_dogs=[DOG, TABLE]),
    note(on_the_table=[FLY], the_cat=[CAT]),
]
ASKED = [  # and what the other query is
    (0, "the dog", [DOG], "the table"), (0, "the table", [TABLE], "the dog"),
    (2, "the dogs", [DOG, TABLE], None), (2, "all the dogs", [DOG, TABLE], None),
    (3, "the cat", [CAT], "on the table"),
]  # fmt: skip


def shard(path: Path, notes: Sequence[dict[str, Any]], broken: int | None = None) -> Path:
    with tarfile.open(path, "w") as tar:
        for i, (picture, about) in enumerate(zip(photos(len(notes)), notes, strict=True)):
            stream = io.BytesIO()
            Image.fromarray(picture.permute(1, 2, 0).numpy()).resize((40, 32)).save(stream, "png")
            data = stream.getvalue()[: 60 if i == broken else None]
            for suffix, content in (("png", data), ("json", json.dumps(about).encode())):
                member = tarfile.TarInfo(f"{i}.{suffix}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    return path


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """pointing/, without/ and plain/ (models), boxes.tar, labelled.tar, known.tar."""
    folder = tmp_path_factory.mktemp("query")
    stop_at_share(pointing(folder)).save_pretrained(folder / "pointing")
    stop_at_share(asked(folder)).save_pretrained(folder / "without")
    micro().save_pretrained(folder / "plain")
    shard(folder / "boxes.tar", NOTES)
    shard(folder / "labelled.tar", [{"label": name} for name in ("dog", "dog", "table", "cow")])
    shard(folder / "known.tar", [{"label": "dining_table"}, note(the_dogs=[DOG])])
    return folder


def evaluate(capsys: Any, model: Path, *arguments: object) -> tuple[int, Any, str]:
    given = ("--query-counts", 12, 16, 20, "--batch-size", 3, "--json", *arguments)
    code, out, err = run(capsys, "eval", "query", "--model", model, *given)
    return code, json.loads(out) if out else None, err


@pytest.fixture(scope="module")
def report(place: Path) -> dict[str, Any]:
    settings = EvalSettings(
        measurement="query", model=place / "pointing", data=place / "boxes.tar", output=place / "report",
        mosaic_data=place / "labelled.tar", mosaics=5, known=place / "known.tar", query_counts=(12, 16, 20),
        batch_size=3,
    )  # fmt: skip
    return write_report(settings).json()


def inside(
    model: DoveModel, picture: int, boxes: Sequence[Sequence[float]], place: Path, **how: Any
) -> float:
    """PSNR of the pixels in boxes, through the library's front door, and without a batch."""
    shown = questions.read([place / "boxes.tar"], needed=True).pictures.read(picture)
    pixels = (prepare_images(shown, 32, fit="squash") + 1) / 2
    mask = torch.zeros(1, 1, 32, 32)
    for x0, y0, x1, y1 in boxes:
        mask[..., round(y0 * 32) : round(y1 * 32), round(x0 * 32) : round(x1 * 32)] = 1
    if how.pop("given", False):
        how["relevance"] = mask[0]
    drawn = (model.decode(model.encode(pixels, **how)) * 255).round() / 255
    return psnr(drawn, pixels, black=0, weight=mask).item()


def test_photographs(report: dict[str, Any], place: Path) -> None:
    model, result = DoveModel.from_pretrained(place / "pointing"), report["results"]["query"]["photographs"]
    assert (result["queries"], result["pictures"], result["with another"]) == (5, 3, 3)
    for n in (12, 20):
        null = [inside(model, p, boxes, place, num_tokens=n) for p, _, boxes, _ in ASKED]
        query = [inside(model, p, boxes, place, num_tokens=n, query=text) for p, text, boxes, _ in ASKED]
        given = [inside(model, p, boxes, place, num_tokens=n, given=True) for p, _, boxes, _ in ASKED]
        pairs = [i for i, question in enumerate(ASKED) if question[3]]
        wrong = [
            inside(model, ASKED[i][0], ASKED[i][2], place, num_tokens=n, query=ASKED[i][3]) for i in pairs
        ]
        right = [query[i] for i in pairs]
        expected = {
            "null": null, "query": query, "given": given, "right": right, "wrong": wrong,
            "gain": [a - b for a, b in zip(query, null, strict=True)],
            "given gain": [a - b for a, b in zip(given, null, strict=True)],
            "right minus wrong": [a - b for a, b in zip(right, wrong, strict=True)],
        }  # fmt: skip
        found = result["inside"][str(n)]
        assert set(found) == set(expected)
        for name, values in expected.items():
            each = torch.tensor(values, dtype=torch.float64)
            assert found[name]["count"] == len(each)
            assert found[name]["value"] == pytest.approx(each.mean().item(), abs=2e-2), (n, name)
            assert found[name]["deviation"] == pytest.approx(each.std(correction=0).item(), abs=2e-2), name
        assert null != query and query != given and right != wrong


def test_pictures_of_one_name_are_two(place: Path, tmp_path: Path) -> None:
    """Tar files joined end to end may name their members alike."""
    apart = shard(tmp_path / "apart.tar", [NOTES[0], NOTES[0]])
    with tarfile.open(apart) as tar:
        content = {member.name: tar.extractfile(member).read() for member in tar}  # type: ignore[union-attr]
    parts = []
    for i in range(2):
        stream = io.BytesIO()
        with tarfile.open(fileobj=stream, mode="w") as tar:
            for suffix in ("png", "json"):
                member = tarfile.TarInfo(f"same.{suffix}")
                member.size = len(content[f"{i}.{suffix}"])
                tar.addfile(member, io.BytesIO(content[f"{i}.{suffix}"]))
        parts.append(stream.getvalue())
    (tmp_path / "joined.tar").write_bytes(b"".join(parts))
    found = []
    for name in ("apart", "joined"):
        settings = EvalSettings(
            measurement="query", model=place / "pointing", data=tmp_path / f"{name}.tar",
            output=tmp_path / name, query_counts=(12,), batch_size=4,
        )  # fmt: skip
        found.append(write_report(settings).json()["results"]["query"]["photographs"])
    assert found[0]["pictures"] == 2 and found[0] == found[1]


def test_own_lengths_and_where(report: dict[str, Any], place: Path) -> None:
    model, result = DoveModel.from_pretrained(place / "pointing"), report["results"]["query"]["photographs"]
    shown = questions.read([place / "boxes.tar"], needed=True).pictures
    peaks, lengths = [], []
    for picture, text, boxes, _ in ASKED:
        pixels = (prepare_images(shown.read(picture), 32, fit="squash") + 1) / 2
        about, null = model.encode(pixels, query=text, return_relevance=True), model.encode(pixels)
        lengths.append((int(about.lengths), int(null.lengths)))
        assert about.relevance is not None
        row, column = divmod(int(about.relevance.argmax()), 8)
        x, y = (column + 0.5) / 8, (row + 0.5) / 8
        peaks.append(any(x0 <= x < x1 and y0 <= y < y1 for x0, y0, x1, y1 in boxes))
    query, null = (sum(each) for each in zip(*lengths, strict=True))
    own = result["own"]
    assert (own["query length"]["value"], own["null length"]["value"]) == (query / 5, null / 5)
    assert own["ratio"]["value"] == pytest.approx(query / null)
    expected = [inside(model, p, boxes, place, query=text) for p, text, boxes, _ in ASKED]
    assert own["query"]["value"] == pytest.approx(sum(expected) / 5, abs=2e-2)
    found = result["where"]
    assert found["all"]["peak"]["value"] == sum(peaks) / 5 and found["all"]["queries"] == 5
    assert found["all"]["centre"]["value"] == 3 / 5, "of the table and of the dogs"
    assert found["small"]["queries"] == 2, "the dog and the cat"
    assert found["small"]["centre"]["value"] == 0


def test_words_and_mosaics(report: dict[str, Any], place: Path) -> None:
    result = report["results"]["query"]
    words = result["photographs"]["words"]
    assert (words["known"]["queries"], words["new"]["queries"]) == (4, 1), "no cat"
    assert list(words["new"]["inside"]) == ["16"] and "where" in words["known"]
    mosaics = Mosaics([place / "labelled.tar"], 32, questions.SEED)
    made = [mosaics[p] for p in range(5)]
    assert result["mosaics"]["queries"] == result["mosaics"]["with another"] == 5
    cows = sum("cow" in mosaic.query for mosaic in made)
    assert result["mosaics"]["words"]["new"]["queries"] == cows and 0 < cows < 5
    asked = questions.of_mosaics(
        [place / "labelled.tar"], 5, DoveModel.from_pretrained(place / "pointing"), None
    )
    for question, mosaic in zip(asked.asked, made, strict=True):
        assert question.query == mosaic.query and torch.equal(question.boxes, mosaic.boxes)
        assert question.other == mosaic.others[0][0]


def test_the_page_and_a_second_run(
    report: dict[str, Any], place: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = (place / "report" / "report.html").read_text(encoding="utf-8")
    page = Page(text)
    assert page.tags.count("img") == 2 * 6 + 2 * 6, "of both kinds two pictures, six columns each"
    assert "map of the dog" in text and "null: " in text and "1 queries left out: boxes that" in text

    def fail(*_: object, **__: object) -> None:
        raise AssertionError("computed again")

    monkeypatch.setattr("dove_eval.rows.Rows.append", fail)
    arguments = ("--data", place / "boxes.tar", "-o", place / "report")
    code, again, _ = evaluate(capsys, place / "pointing", *arguments)
    before = report["results"]["query"]["photographs"]
    assert code == 0 and again["results"]["query"]["photographs"]["inside"] == before["inside"]


def test_a_model_without_a_map(place: Path, tmp_path: Path, capsys: Any) -> None:
    code, found, _ = evaluate(capsys, place / "without", "--data", place / "boxes.tar", "-o", tmp_path)
    result = found["results"]["query"]
    assert code == 0 and "where" not in result["photographs"] and "mosaics" not in result
    assert "given" not in result["photographs"]["inside"]["12"]
    assert "micro has no relevance map: where it points is left out." in result["method"]
    assert any("cannot code regions" in line for line in result["method"])
    model = DoveModel.from_pretrained(place / "without")
    expected = [inside(model, p, boxes, place, num_tokens=12, query=text) for p, text, boxes, _ in ASKED]
    assert result["photographs"]["inside"]["12"]["query"]["value"] == pytest.approx(
        sum(expected) / 5, abs=2e-2
    )


def test_a_broken_picture_is_named(place: Path, tmp_path: Path, capsys: Any) -> None:
    broken = shard(tmp_path / "broken.tar", NOTES, broken=0)
    code, found, err = evaluate(capsys, place / "pointing", "--data", broken, "-o", tmp_path / "out")
    assert code == 1 and found["results"]["query"]["photographs"]["queries"] == 3
    assert "2 of 5 failed" in err and "0.png" in err


def test_all_takes_the_queries_of_its_shards(place: Path, tmp_path: Path) -> None:
    def asked(model: str, data: str, **more: Any) -> Evaluation:
        return Evaluation(EvalSettings(model=place / model, data=place / data, output=tmp_path, **more))

    found = asked("pointing", "boxes.tar")
    assert "query" in found.wanted() and len(found.subjects.questions[0].asked) == 5
    assert found.subjects.reader is found.subjects.dove
    found = asked("plain", "boxes.tar", qdove=place / "pointing", query_counts=[300, 4])
    assert "query" in found.wanted() and found.subjects.reader is found.subjects.qdove
    assert found.subjects.query_counts == (4,)
    assert "query" not in asked("pointing", "labelled.tar").wanted()
    assert "query" not in asked("plain", "boxes.tar").wanted()


def test_refusals(place: Path, tmp_path: Path, capsys: Any) -> None:
    out, boxes = ("-o", tmp_path / "out"), place / "boxes.tar"
    for model, arguments, code, words in [
        (
            "plain",
            ("--data", boxes),
            1,
            "no weights for text queries (query_vocab_size is 0); leave the measure",
        ),
        (
            "pointing",
            ("--data", place / "labelled.tar"),
            1,
            "has no query: 4 pictures left out: no queries in",
        ),
        ("pointing", ("--data", boxes, "--mosaics", 4), 2, "--mosaics belongs to --mosaic-data"),
        ("pointing", ("--data", boxes, "--mosaic-data", boxes), 1, "mosaics need pictures of two labels"),
        ("pointing", ("--data", boxes, "--query-counts", 99), 1, "--query-counts 99 are all above the 64"),
        ("pointing", ("--data", boxes, "--known", tmp_path / "none"), 1, "none' does not exist"),
        ("pointing", ("--data", boxes, "--fit", "crop"), 2, "unrecognized arguments: --fit crop"),
    ]:
        got, _, err = evaluate(capsys, place / model, *arguments, *out)
        assert got == code and words in err, err
    assert not (tmp_path / "out" / "report.html").exists()


def test_texts_that_the_model_does_not_take_are_left_out(place: Path, tmp_path: Path) -> None:
    model = DoveModel.from_pretrained(place / "pointing")
    long = "the dog " * 7  # the model takes 12 words
    about = {"the dog": [DOG], long: [TABLE]}
    regions = questions.read([shard(tmp_path / "a.tar", [note(**about), note(the_dog=[DOG])])], needed=True)
    found = questions.of_shards(regions, [tmp_path / "a.tar"], model, None)
    assert [(q.query, q.other) for q in found.asked] == [("the dog", None)] * 2
    assert any("1 texts left out that the model does not take" in line for line in found.notes)
    assert len(questions.of_shards(regions, [tmp_path / "a.tar"], model, 1).asked) == 1


def test_where_by_hand() -> None:
    masks = torch.zeros(3, 8, 8)
    masks[0, :4, :4] = masks[1, 3, 3] = masks[2, 4:, :] = 1
    maps = torch.full((3, 4, 4), 0.1)
    maps[0, 0, 0], maps[0, 0, 3] = 1.0, 0.6
    maps[1, 1, 1] = 0.3
    maps[2, 0, 0], maps[2, 2:, :] = 1.0, 0.5  # not above half
    found = where(maps, masks)
    assert found["peak"].tolist() == [1, 1, 0]
    assert found["centre"].tolist() == [0, 0, 1]
    assert found["iou"].tolist() == pytest.approx([1 / 5, 1, 0])


@pytest.mark.parametrize(
    ("query", "known"),
    [
        ("the dog", True), ("all the dogs", True), ("the dining tables", True), ("the chair", False),
        ("a dog on the chair", False), ("What is on the table?", True),
    ],
)  # fmt: skip
def test_known_words(place: Path, query: str, known: bool) -> None:
    words = questions.words_of([place / "known.tar"])
    assert {"dining", "table", "tables", "dogs"} <= words and "the" not in words
    assert questions.is_known(query, words) == known


def test_the_count_of_single_figures() -> None:
    assert [headline(counts) for counts in ((32, 48, 64), (8, 16, 32), (100,))] == [48, 16, 100]
