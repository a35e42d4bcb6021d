"""Mosaics of labelled pictures: what is where, and that a place in the run decides it."""

from __future__ import annotations

import io
import pickle
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dove_ext.images.mosaics import plural, query_for
from dove_ext.images.regions import pixel_box
from dove_train.augment import Augmentation
from dove_train.mosaics import Mosaics
from dove_train.settings import TrainingError

# Each picture has one colour, which tells its label and number.
COLOURS = {"cat": 40, "dog": 90, "stop_sign": 140}
PLAIN = Augmentation(0.85, 0.5, 0)


@pytest.fixture
def labelled(tmp_path: Path) -> Path:
    for label, level in COLOURS.items():
        folder = tmp_path / "pictures" / label
        folder.mkdir(parents=True)
        for number in range(3):
            Image.new("RGB", (30, 24), (level, number * 60, 255 - level)).save(folder / f"{number}.png")
    return tmp_path / "pictures"


def test_the_boxes_are_the_tiles_of_the_label(labelled: Path) -> None:
    mosaics, sides, counts = Mosaics([labelled], 32, 5, augmentation=PLAIN), set(), set()
    for position in range(60):
        mosaic = mosaics[position]
        along = round(len(mosaic.labels) ** 0.5)
        side = 32 // along
        sides.add(along), counts.add(len(mosaic.boxes))
        assert mosaic.pixels.shape == (3, 32, 32) and mosaic.pixels.dtype == torch.uint8
        assert mosaic.boxes.dtype == torch.float32 and len(set(mosaic.labels)) > 1
        asked = {pixel_box(box.tolist(), 32) for box in mosaic.boxes}
        for number, (label, name) in enumerate(zip(mosaic.labels, mosaic.names, strict=True)):
            row, column = divmod(number, along)
            box = (column * side, row * side, (column + 1) * side, (row + 1) * side)
            tile = mosaic.pixels[:, box[1] : box[3], box[0] : box[2]].flatten(1)
            colour = [COLOURS[label.replace(" ", "_")], int(Path(name).stem) * 60, 255 - tile[0, 0].item()]
            assert (tile == torch.tensor(colour, dtype=torch.uint8)[:, None]).all()
            assert Path(name).parent.name == label.replace(" ", "_")
            of_query = mosaic.query in {f"the {label}", f"the {label}s", f"all the {label}s"}
            assert of_query == (box in asked)
        assert mosaic.query.endswith("s") == (len(asked) > 1)
    assert sides == {2, 3} and {1, 2, 3} <= counts


def test_what_a_tile_does_not_reach_repeats_the_last_pixels(labelled: Path) -> None:
    mosaics = Mosaics([labelled], 32, 5, augmentation=PLAIN)
    mosaic = next(m for m in (mosaics[p] for p in range(20)) if len(m.labels) == 9)
    assert torch.equal(mosaic.pixels[:, 30:], mosaic.pixels[:, 29:30].expand(-1, 2, -1))
    assert torch.equal(mosaic.pixels[..., 30:], mosaic.pixels[..., 29:30].expand(-1, -1, 2))
    assert max(pixel_box(box.tolist(), 32)[3] for box in mosaic.boxes) <= 30


def test_a_mosaic_is_a_function_of_seed_and_position(labelled: Path) -> None:
    mosaics, other = Mosaics([labelled], 32, 5), Mosaics([labelled], 32, 6)
    forward = [mosaics[p] for p in range(6)]
    again = pickle.loads(pickle.dumps(mosaics))
    for position in (5, 0, 3):
        mosaic = again[position]
        assert torch.equal(mosaic.pixels, forward[position].pixels)
        assert torch.equal(mosaic.boxes, forward[position].boxes)
        assert (mosaic.query, mosaic.names) == (forward[position].query, forward[position].names)
    assert [other[p].names for p in range(6)] != [m.names for m in forward]
    assert len({tuple(m.names) for m in forward}) == 6


def test_tiles_are_random_crops(tmp_path: Path) -> None:
    for label in ("a", "b"):
        (tmp_path / label).mkdir()
        ramp = np.tile(np.arange(100, dtype=np.uint8)[None, :, None], (40, 1, 3))
        Image.fromarray(ramp).save(tmp_path / label / "0.png")
    mosaics = Mosaics([tmp_path], 32, 0, augmentation=Augmentation(0.85, 0, 0))
    lefts = {int(mosaics[p].pixels[0, 0, 0]) for p in range(12)}
    assert len(lefts) > 6 and max(lefts) > 30


def test_two_labels_are_in_every_mosaic(labelled: Path) -> None:
    shutil.rmtree(labelled / "dog")
    mosaics = Mosaics([labelled], 32, 0)
    assert all(set(mosaics[p].labels) == {"cat", "stop sign"} for p in range(40))
    with pytest.raises(TrainingError, match=r"two labels or more, .* has 0: give a folder for each label"):
        Mosaics([labelled / "cat"], 32, 0)


def test_labels_alike_however_many_pictures(labelled: Path) -> None:
    for number in range(3, 40):
        shutil.copy(labelled / "cat" / "0.png", labelled / "cat" / f"{number}.png")
    mosaics = Mosaics([labelled], 32, 0)
    drawn = [label for p in range(60) for label in mosaics[p].labels]
    assert all(0.25 < drawn.count(label) / len(drawn) < 0.42 for label in ("cat", "dog", "stop sign"))


def test_labels_of_shards_and_pictures_without(labelled: Path, tmp_path: Path) -> None:
    picture = (labelled / "cat" / "0.png").read_bytes()
    notes = [b'{"label": "Traffic_light"}', b'{"label": "dog"}', b"{}", b'{"label": " "}']
    with tarfile.open(tmp_path / "a.tar", "w") as shard:
        for number, note in enumerate(notes):
            for suffix, data in (("png", picture), ("json", note)):
                member = tarfile.TarInfo(f"{number}.{suffix}")
                member.size = len(data)
                shard.addfile(member, io.BytesIO(data))
    mosaics = Mosaics([tmp_path / "a.tar"], 32, 0)
    assert {label for p in range(5) for label in mosaics[p].labels} == {"traffic light", "dog"}
    shard_name = str(tmp_path / "a.tar")
    assert mosaics.report == [
        f"{shard_name}: mosaics of 2 pictures with 2 labels",
        f"{shard_name}: 2 pictures left out: no label (the first: {shard_name}: 2.png)",
    ]


def test_unreadable_pictures_are_replaced_and_named(labelled: Path) -> None:
    broken = labelled / "cat" / "1.png"
    broken.write_bytes(broken.read_bytes()[:40])
    mosaics = Mosaics([labelled], 32, 0)
    drawn = [mosaics[p] for p in range(20)]
    assert {name for m in drawn for name in m.skipped} == {str(broken)}
    assert not any(str(broken) in m.names for m in drawn)
    assert "1.png' is" in next(reason for m in drawn for reason in m.skipped.values())
    for path in (labelled / "cat").glob("*"):
        path.write_bytes(b"no picture")
    with pytest.raises(TrainingError, match="100 pictures of the label 'cat' in a row cannot be read"):
        [mosaics[p] for p in range(20)]


def test_what_cannot_be_asked_for_is_refused(labelled: Path, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="seed must be at least 0, got -1"):
        Mosaics([labelled], 32, -1)
    with pytest.raises(TrainingError, match="a mosaic must have 3 pixels a side or more, got 2"):
        Mosaics([labelled], 2, 0)
    with pytest.raises(TrainingError, match="nowhere' does not exist"):
        Mosaics([tmp_path / "nowhere"], 32, 0)


@pytest.mark.parametrize(
    ("label", "several"),
    [
        ("dog", "dogs"), ("bus", "buses"), ("bench", "benches"), ("lily", "lilies"), ("boy", "boys"),
        ("stop sign", "stop signs"), ("sheep", "sheep"), ("human foot", "human feet"), ("man", "men"),
    ],
)  # fmt: skip
def test_templates(label: str, several: str) -> None:
    assert plural(label) == several
    random = np.random.default_rng(0)
    assert query_for(label, 1, random) == f"the {label}"
    texts = {query_for(label, 2, random) for _ in range(20)}
    assert texts == {f"the {several}", f"all the {several}"}
