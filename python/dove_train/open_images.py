"""Open Images' relations as queries with boxes: "a cup on a table", "a wooden table"."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path

from dove_ext.images.regions import Regions
from dove_train.regions import find_pictures, require_some
from dove_train.settings import TrainingError

_EDGES = ("XMin", "YMin", "XMax", "YMax")
_COLUMNS = (
    "ImageID",
    "LabelName1",
    "LabelName2",
    "RelationshipLabel",
    *(f"{e}{n}" for n in "12" for e in _EDGES),
)
# What people do is an attribute, too: a man that "is" Stand.
_DOING = {
    "stand": "standing", "sit": "sitting", "lay": "lying", "walk": "walking", "run": "running",
    "jump": "jumping", "smile": "smiling", "cry": "crying", "sing": "singing", "talk": "talking",
}  # fmt: skip
_SAID_WITH_Y = ("uni", "uku", "use", "eu")  # a unicycle


def read_open_images(root: Path) -> Regions:
    """The relations of Open Images: two objects, of which the target is both boxes, or an object's attribute.

    "Coffee cup", "on", "Table" becomes "a coffee cup on a table", with both boxes as the target: the region
    is their union, what lies between them is no part of it. A relation's words are taken as they are, but for
    underscores. An attribute (relation "is") stands before its object, which alone is the target: "a wooden
    table", "a leather chair" for "(made of)Leather", and "a standing man" for "Stand".

    Args:
        root: a folder with `*annotations-vrd.csv`, `*description*.csv` (names of classes and, for "is",
            attributes; with or without a header), and pictures named <ImageID>.jpg at any depth, or shards of
            them. Relations of pictures that are not there are counted.

    Raises:
        TrainingError: naming the file that is missing or damaged, or the folder without pictures.
    """
    relations, descriptions = (
        sorted(root.glob("*annotations-vrd.csv")),
        sorted(root.glob("*description*.csv")),
    )
    lacking = [] if relations else ["oidv6-train-annotations-vrd.csv (or -validation-, -test-)"]
    lacking += [] if descriptions else ["class-descriptions-boxable.csv"]
    if lacking:
        raise TrainingError(
            f"{str(root)!r} lacks {', '.join(lacking)} of Open Images; put what is missing there, beside the "
            "pictures"
        )
    names = {name: text for path in descriptions for name, text in _names(path)}
    index = find_pictures(root)
    regions = Regions(index, f"Open Images in {str(root)!r}")
    places = {index.locate(i).inside.rpartition("/")[2].rpartition(".")[0]: i for i in range(len(index))}
    for path in relations:
        _add_relations(path, regions, places, names)
    return require_some(regions)


def _names(path: Path) -> Iterator[tuple[str, str]]:
    """Class or attribute ids, such as /m/04bcr3, and what they are called."""
    for line, row in _rows(path):
        if len(row) != 2 or not row[1].strip():
            raise TrainingError(
                f"{str(path)!r}, line {line}: expected an id and a name, such as /m/04bcr3,Table; get a "
                "whole copy of it"
            )
        if row[0].startswith("/"):  # a header does not
            yield row[0], row[1].strip().removeprefix("(made of)").lower()


def _add_relations(path: Path, regions: Regions, places: dict[str, int], names: dict[str, str]) -> None:
    rows = _rows(path)
    _, header = next(rows, (0, []))
    lacking = [name for name in _COLUMNS if name not in header]
    if lacking:
        raise TrainingError(f"{str(path)!r} lacks the column {', '.join(lacking)}; get a whole copy of it")
    column = [header.index(name) for name in _COLUMNS]
    for line, row in rows:
        try:
            image, first, second, relation, *edges = (row[i] for i in column)
            numbers = [float(edge) for edge in edges]
        except (IndexError, ValueError) as error:
            raise TrainingError(
                f"{str(path)!r}, line {line} is no relation ({error}); get a whole copy of it"
            ) from error
        example = f"{path.name}, line {line}"
        if image not in places:
            regions.leave_out("relations left out: their picture is not there", f"{example}, {image}")
        elif unnamed := next((label for label in (first, second) if label not in names), None):
            regions.leave_out("relations left out: no description names their class", f"{example}, {unnamed}")
        elif relation == "is":
            regions.add(places[image], attribute(names[first], names[second]), [numbers[:4]], example)
        else:
            words = f"{_a(names[first])} {relation.replace('_', ' ')} {_a(names[second])}"
            regions.add(places[image], words, [numbers[:4], numbers[4:]], example)


def attribute(name: str, what: str) -> str:
    """The query for an object that is something: "a wooden table", "a standing man"."""
    return _a(f"{_DOING.get(what, what)} {name}")


def _a(words: str) -> str:
    vowel = words.startswith(tuple("aeiou")) and not words.startswith(_SAID_WITH_Y)
    return f"{'an' if vowel else 'a'} {words}"


def _rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    """The rows of a CSV file that are not empty, with their lines."""
    try:
        with path.open(encoding="utf-8", newline="") as stream:
            reader = csv.reader(stream)
            yield from ((reader.line_num, row) for row in reader if row)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise TrainingError(f"{str(path)!r} cannot be read ({error}); get a whole copy of it") from error
