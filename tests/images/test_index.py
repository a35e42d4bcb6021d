"""Where images are found: folders, shards, classes; and the held-out ones among them."""

from __future__ import annotations

import gzip
import io
import pickle
import tarfile
from pathlib import Path

import pytest
import torch
from PIL import Image

from dove_ext import ImageError
from dove_ext.errors import DoveWarning
from dove_ext.images import prepare_images, read_image
from dove_ext.images.index import ImageIndex
from dove_train.data import TrainingImages, held_out_images

PHOTOS = Path(__file__).parents[2] / "examples" / "photos"
FILES = sorted(PHOTOS.iterdir())


def make_tar(path: Path, members: dict[str, bytes], layout: int = tarfile.PAX_FORMAT) -> Path:
    with tarfile.open(path, "w", format=layout) as tar:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return path


@pytest.mark.parametrize("layout", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT, tarfile.USTAR_FORMAT])
def test_shards_read_like_folders(tmp_path: Path, layout: int) -> None:
    long = "x" * 90 + "/" + "é" * 60  # needs an extended header in every format
    members = {"readme.txt": b"x", "a/._hidden.jpg": b"x"}
    for number, file in enumerate(FILES):
        key = f"{long}/{number}" if number == 2 and layout != tarfile.USTAR_FORMAT else f"{number}"
        members |= {f"{key}.jpg": file.read_bytes(), f"{key}.json": b"{}"}
    names = list(members)
    shards = [
        make_tar(tmp_path / "0.tar", {n: members[n] for n in names[:6]}, layout),
        make_tar(tmp_path / "1.tar", {n: members[n] for n in names[6:]}, layout),
    ]
    index = ImageIndex(shards)
    assert len(index) == len(FILES)
    assert index.name(0) == f"{shards[0]}: 0.jpg"
    for i in (3, 0, 4, 2, 1):  # in any order
        assert torch.equal(index.read(i), read_image(FILES[i]))
    assert [ImageIndex([tmp_path]).name(i) for i in range(5)] == [index.name(i) for i in range(5)]
    assert torch.equal(held_out_images(shards, 32, 9)[0], held_out_images([PHOTOS], 32, 9)[0])
    folder, tar = TrainingImages([PHOTOS], 32, 1), TrainingImages(shards, 32, 1)
    assert all(torch.equal(folder[p].pixels, tar[p].pixels) for p in range(3))


def test_a_damaged_picture_in_a_shard_is_named(tmp_path: Path) -> None:
    photo = FILES[0].read_bytes()
    members = {"a.jpg": b"no picture", "b.jpg": photo[: len(photo) // 2]}
    index = ImageIndex([make_tar(tmp_path / "0.tar", members)])
    with pytest.raises(ImageError, match=r"0\.tar: a\.jpg' is not a picture in a format that can be read"):
        index.read(0)
    with pytest.raises(ImageError, match=r"0\.tar: b\.jpg' is truncated or damaged"):
        index.read(1)


def test_a_folder_with_pictures_hides_its_tars(small: Path, tmp_path: Path) -> None:
    data = (small / "n0" / "0.png").read_bytes()
    make_tar(tmp_path / "n0.tar", {"0.png": data})
    (tmp_path / "n0").mkdir()
    (tmp_path / "n0" / "0.png").write_bytes(data)
    with pytest.warns(DoveWarning, match=r"1 \.tar file is left out in '.*': it has pictures") as caught:
        index = ImageIndex([tmp_path])
    assert len(index) == 1 and index.left_out == [str(caught[0].message)]
    both = ImageIndex([tmp_path, tmp_path / "n0.tar"])
    assert len(both) == 2 and not both.left_out


def test_folders_are_walked_in_order_through_links(small: Path, tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "up").symlink_to(tmp_path)  # must not go round for ever
    (tmp_path / "link").symlink_to(small)
    (tmp_path / ".hidden").symlink_to(small)
    index = ImageIndex([tmp_path])
    order = [f"n0/{i}.png" for i in (0, 2, 4, 6)] + [f"n1/{i}.png" for i in (1, 3, 5)]
    assert [index.name(i) for i in range(len(index))] == [f"{tmp_path}/link/{name}" for name in order]


def test_imagenet_layout_with_a_list_of_classes(small: Path, tmp_path: Path) -> None:
    synsets = tmp_path / "classes.txt"
    synsets.write_text("n1 tench, Tinca tinca\n\n")
    images = TrainingImages([small], 16, 0, synsets=synsets)
    assert {Path(images[p].name).parent.name for p in range(len(images))} == {"n1"}
    assert len(images) == 3
    assert held_out_images([small], 16, 2, synsets)[1] == [str(small / "n1" / f"{i}.png") for i in (1, 3)]
    data = (small / "n0" / "0.png").read_bytes()
    shard = make_tar(tmp_path / "s.tar", {"train/n1/a.png": data, "train/n0/b.png": data})
    by_class = make_tar(tmp_path / "n1.tar", {"./c.png": data})
    index = ImageIndex([shard, by_class], synsets=synsets)
    assert [index.name(i) for i in range(len(index))] == [f"{shard}: train/n1/a.png", f"{by_class}: ./c.png"]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (b"n1\nn77\n", r"the class 'n77' of '.*list' has no images in .*; check"),
        (b"\n \n", r"list' is empty; write one class a line"),
        (b"\xff\xfe\x00", r"list' is not text"),
        (None, r"list' cannot be read: No such file"),
    ],
)
def test_bad_class_lists(small: Path, tmp_path: Path, text: bytes | None, sentence: str) -> None:
    if text is not None:
        (tmp_path / "list").write_bytes(text)
    with pytest.raises(ImageError, match=sentence):
        ImageIndex([small], synsets=tmp_path / "list")


def test_paths_that_hold_no_images(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.tar").write_text("no tar" * 200)
    (tmp_path / "notes.txt").write_text("no picture")
    photo = FILES[0].read_bytes()
    whole = make_tar(tmp_path / "whole.tar", {"a.jpg": photo, "b.jpg": photo}).read_bytes()
    (tmp_path / "packed.tar").write_bytes(gzip.compress(whole, 1))
    (tmp_path / "packed.tar.gz").write_bytes(gzip.compress(whole, 1))
    (tmp_path / "cut.tar").write_bytes(whole[: len(photo) // 2])
    second = whole.index(b"b.jpg")
    (tmp_path / "torn.tar").write_bytes(whole[:second] + b"\1" * 512 + whole[second + 512 :])
    make_tar(tmp_path / "words.tar", {"a.txt": b"x"})
    for name, sentence in (
        ("nope", r"nope' does not exist; give image folders, tar shards or pictures"),
        ("nope.tar", r"nope\.tar' does not exist; give image folders, tar shards or pictures"),
        ("empty", r"empty' is a folder without pictures; give image folders, tar shards or pictures"),
        ("words.tar", r"words\.tar' is a tar file without pictures"),
        ("text.tar", r"text\.tar' is not a tar file or is damaged"),
        ("cut.tar", r"cut\.tar' is not a tar file or is damaged \(unexpected end of data\)"),
        ("torn.tar", r"torn\.tar' is a damaged tar file \(after 'a\.jpg'\)"),
        ("packed.tar", r"packed\.tar' is compressed \(gzip\).*unpack it"),
        ("packed.tar.gz", r"packed\.tar\.gz' is compressed \(gzip\)"),
        ("notes.txt", r"notes\.txt' is not a picture"),
    ):
        with pytest.raises(ImageError, match=sentence):
            TrainingImages([tmp_path / name], 32, 0)
    with pytest.raises(ImageError, match="empty' is a folder without pictures"):
        held_out_images([tmp_path / "empty"], 32, 5)
    with pytest.raises(ImageError, match="empty' is a folder without pictures"):  # nor beside good ones
        TrainingImages([PHOTOS, tmp_path / "empty"], 32, 0)


def test_an_image_costs_the_index_its_name_and_28_bytes(tmp_path: Path) -> None:
    members = {f"n{i % 10}/{i:05}.JPEG": b"" for i in range(2000)}
    index = ImageIndex([make_tar(tmp_path / "many.tar", members)])
    assert len(pickle.dumps(index)) < 2000 * (28 + len("n0/00000.JPEG")) + 2000


def test_held_out_images_are_spread_centre_crops() -> None:
    pixels, names = held_out_images([PHOTOS], 64, 2)
    chosen = [FILES[0], FILES[2]]
    assert torch.equal(pixels, prepare_images(chosen, 64))
    assert names == list(map(str, chosen))
    # Also where the limit is no divisor of their number, five.
    assert [ImageIndex([PHOTOS]).spread(limit) for limit in (1, 3, 4, 9)] == [
        [0],
        [0, 1, 3],
        [0, 1, 2, 3],
        [0, 1, 2, 3, 4],
    ]


def test_an_unreadable_held_out_image_is_an_error(damaged: Path) -> None:
    with pytest.raises(ImageError, match=r"2\.png' is truncated or damaged"):
        held_out_images([damaged], 16, 100)
    (damaged / "2.png").unlink()
    Image.new("RGB", (500, 2)).save(damaged / "5.png")
    with pytest.raises(ImageError, match=r"5\.png' has 500 x 2 pixels, .*too long"):
        held_out_images([damaged], 16, 100)
