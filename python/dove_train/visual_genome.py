"""Visual Genome as queries with boxes: descriptions of regions, and questions with what answers them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from dove_ext.images.regions import Box, Regions
from dove_train.regions import find_pictures, require_some
from dove_train.settings import TrainingError

PICTURES, REGIONS = "image_data.json", "region_descriptions.json"
QUESTIONS, MAPPING = "question_answers.json", "qa_to_region_mapping.json"
_CHUNK = 1 << 20  # characters


class _Picture(NamedTuple):
    place: int | None  # in the index; None: it is not there
    file: str
    width: float
    height: float

    def box(self, x: float, y: float, width: float, height: float) -> Box:
        """A box in pixels as fractions."""
        right, bottom = (x + width) / self.width, (y + height) / self.height
        return x / self.width, y / self.height, right, bottom


def read_visual_genome(root: Path) -> Regions:
    """Visual Genome's descriptions of regions, then its questions.

    A question's box is that of the region it is mapped to; else those of the objects in question and answer,
    all of them; else the whole picture is asked for, and the question is trained as "null".

    Args:
        root: a folder with image_data.json, region_descriptions.json, question_answers.json and
            qa_to_region_mapping.json, and the pictures VG_100K/1.jpg, VG_100K_2/2.jpg, ... or shards of them.

    Raises:
        TrainingError: naming the file that is missing or damaged, or the folder without pictures.
    """
    missing = [name for name in (PICTURES, REGIONS, QUESTIONS, MAPPING) if not (root / name).is_file()]
    if missing:
        raise TrainingError(
            f"{str(root)!r} lacks {', '.join(missing)} of Visual Genome; put what is missing there, beside "
            "VG_100K and VG_100K_2"
        )
    index = find_pictures(root)
    regions = Regions(index, f"Visual Genome in {str(root)!r}")
    known = _pictures(root / PICTURES, regions)
    mapping = _mapping(root / MAPPING)
    mapped = _add_regions(root / REGIONS, regions, known, set(mapping.values()))
    _add_questions(root / QUESTIONS, regions, known, mapping, mapped)
    return require_some(regions)


def _pictures(path: Path, regions: Regions) -> dict[int, _Picture]:
    places = {}
    for i in range(len(regions.pictures)):
        places["/".join(regions.pictures.locate(i).inside.split("/")[-2:])] = i
    known = {}
    for number, record in _records(path):
        with _named(path, number):
            file = "/".join(record["url"].split("/")[-2:])
            width, height = float(record["width"]), float(record["height"])
            if not (width > 0 and height > 0):
                raise ValueError(f"a size of {width:g} x {height:g}")
            identity = int(record["image_id"] if "image_id" in record else record["id"])
            known[identity] = _Picture(places.get(file), file, width, height)
    return known


def _mapping(path: Path) -> dict[int, int]:
    try:
        mapping = json.loads(path.read_text(encoding="utf-8"))
        return {int(question): int(region) for question, region in mapping.items()}
    except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise TrainingError(
            f"{str(path)!r} does not map questions to regions ({error}); get a whole copy of it"
        ) from error


def _add_regions(
    path: Path, regions: Regions, known: dict[int, _Picture], wanted: set[int]
) -> dict[int, tuple[int, Box]]:
    """Returns picture and box of each of the regions `wanted`."""
    mapped: dict[int, tuple[int, Box]] = {}
    for number, record in _records(path):
        with _named(path, number):
            for region in record["regions"]:
                identity = int(region["region_id"] if "region_id" in region else region["id"])
                image = int(region.get("image_id", region.get("image", record.get("id"))))
                corner = float(region["x"]), float(region["y"])
                side, phrase = (float(region["width"]), float(region["height"])), region["phrase"]
                if not isinstance(phrase, str):
                    raise TypeError(f"the phrase {phrase!r}")
                example = f"region {identity}"
                picture = _picture(image, known, regions, "regions", example)
                if picture is None or picture.place is None:
                    continue
                box = picture.box(*corner, *side)
                if identity in wanted:
                    mapped[identity] = image, box
                regions.add(picture.place, phrase, [box], example)
    return mapped


def _add_questions(
    path: Path,
    regions: Regions,
    known: dict[int, _Picture],
    mapping: dict[int, int],
    mapped: dict[int, tuple[int, Box]],
) -> None:
    for number, record in _records(path):
        with _named(path, number):
            for question in record["qas"]:
                identity, image = int(question["qa_id"]), int(question.get("image_id", record.get("id")))
                text = question["question"]
                if not isinstance(text, str):
                    raise TypeError(f"the question {text!r}")
                example = f"question {identity}"
                picture = _picture(image, known, regions, "questions", example)
                if picture is None or picture.place is None:
                    continue
                owner, box = mapped.get(mapping.get(identity, -1), (image, None))
                if owner != image:
                    raise ValueError(f"{example} about picture {image} is mapped to a region of {owner}")
                if box is None and identity in mapping:
                    regions.leave_out("questions whose region is not there: their objects are taken", example)
                boxes = [box] if box is not None else []
                if not boxes:
                    objects = [*(question.get("q_objects") or []), *(question.get("a_objects") or [])]
                    boxes = [picture.box(*(float(o[n]) for n in "xywh")) for o in objects]
                if not boxes:
                    regions.leave_out('questions without region and objects: trained as "null"', example)
                regions.add(picture.place, text if boxes else None, boxes, example)


def _picture(
    identity: int, known: dict[int, _Picture], regions: Regions, kind: str, example: str
) -> _Picture | None:
    picture = known.get(identity)
    if picture is None:
        what = f"{kind} left out: {PICTURES} does not name their picture"
        regions.leave_out(what, f"{example}, {identity}")
    elif picture.place is None:
        regions.leave_out(f"{kind} left out: their picture is not there", f"{example}, {picture.file}")
    return picture


def _records(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The objects of a JSON list with their numbers from 0, one at a time: of 5.4 million regions in all."""
    decoder, text, place, number, begun = json.JSONDecoder(), "", 0, 0, False
    try:
        with path.open(encoding="utf-8") as stream:
            while True:
                while place < len(text) and text[place] in " \t\r\n,":
                    place += 1
                if not begun and text[place : place + 1] == "[":
                    begun, place = True, place + 1
                    continue
                if begun and text[place : place + 1] == "]":
                    return
                if begun and text[place : place + 1] == "{":
                    try:
                        record, place = decoder.raw_decode(text, place)
                    except ValueError:
                        pass  # its end may be still to come
                    else:
                        yield number, record
                        number += 1
                        continue
                elif place < len(text):
                    raise TrainingError(
                        f"{str(path)!r} is not a JSON list of objects; get a whole copy of it"
                    )
                more = stream.read(_CHUNK)
                if not more:
                    break
                text, place = text[place:] + more, 0
    except (OSError, UnicodeDecodeError, RecursionError) as error:
        raise TrainingError(f"{str(path)!r} cannot be read ({error}); get a whole copy of it") from error
    raise TrainingError(
        f"{str(path)!r} is truncated or damaged after {number} records; get a whole copy of it"
    )


@contextmanager
def _named(path: Path, number: int) -> Iterator[None]:
    """Errors in a record name it."""
    try:
        yield
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        if isinstance(error, TrainingError):
            raise
        what = f"lacks {error}" if isinstance(error, KeyError) else f"cannot be used ({error})"
        raise TrainingError(f"{str(path)!r}: record {number} {what}; get a whole copy of it") from error
