"""Every layout of images that a user may have, and what is said about damaged ones."""

from __future__ import annotations

import io
import json
import os
import pickle
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from dove_eval.datasets import check_apart, find_images, with_test_set
from dove_eval.sources import DatasetError
from dove_ext.errors import DoveWarning


def picture(level: int) -> Image.Image:
    return Image.new("RGB", (8, 8), (level, level, level))


def png(level: int) -> bytes:
    stream = io.BytesIO()
    picture(level).save(stream, "PNG")
    return stream.getvalue()


def tar(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as file:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            file.addfile(member, io.BytesIO(content))
    return path


def shard(path: Path, **replaced: bytes) -> Path:
    """Three pictures, of two classes, the first one for training."""
    members = {}
    for i in range(3):
        note = {"label": f"class {i % 2}", "split": "test" if i else "train"}
        members |= {f"k{i}.png": png(60 * i), f"k{i}.json": json.dumps(note).encode()}
    return tar(path, members | {name.replace("_", "."): content for name, content in replaced.items()})


def npz(path: Path, labels: list[int], classes: list[str] | None = None) -> Path:
    names = {} if classes is None else {"classes": np.array(classes)}
    np.savez(path, images=np.zeros((len(labels), 8, 8, 3), np.uint8), labels=np.array(labels), **names)
    return path


def levels(images: Any) -> list[int]:
    _, pixels = images.read(range(len(images)), 4, "crop")
    return ((pixels.mean((1, 2, 3)) + 1) * 127.5).round().int().tolist()


def summary(images: Any) -> list[tuple[str, str | None, str | None]]:
    return [(item.name, item.label, item.split) for item in images.items]


def test_folders_with_classes_and_splits(tmp_path: Path) -> None:
    for i, name in enumerate(("train/cat/1.png", "train/dog/x/2.png", "val/cat/3.png", "val/dog/4.png")):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        picture(50 * i).save(tmp_path / name)
    (tmp_path / "train" / "cat" / "notes.txt").write_text("no picture")
    images = find_images([tmp_path])
    assert summary(images) == [
        ("train/cat/1.png", "cat", "train"),
        ("train/dog/x/2.png", "dog", "train"),
        ("val/cat/3.png", "cat", "test"),
        ("val/dog/4.png", "dog", "test"),
    ]
    assert levels(images.labelled()) == [0, 50, 100, 150]
    assert images.classes == ["cat", "dog"]


def test_every_fifth_image_of_a_class_is_a_test_image(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for i in range(10):
            picture(i).save(tmp_path / name / f"{i}.png")
    labelled = find_images([tmp_path]).labelled()
    tests = [item.name for item in labelled.items if item.split == "test"]
    assert tests == ["a/4.png", "a/9.png", "b/4.png", "b/9.png"]
    few = labelled.limit_per_class(1)
    assert [item.name for item in few.items] == ["a/0.png", "a/4.png", "b/0.png", "b/4.png"]
    assert [item.name for item in labelled.limit(3).items] == ["a/0.png", "a/6.png", "b/3.png"]


def test_classes_of_the_test_must_be_known_from_training(tmp_path: Path) -> None:
    train = find_images([npz(tmp_path / "train.npz", [0, 1], ["cat", "dog"])])
    test = find_images([npz(tmp_path / "test.npz", [0, 1])])
    with pytest.raises(DatasetError, match=r"no training image of .*test.npz has the class '0', '1' of its"):
        with_test_set(train, test).labelled()
    assert len(with_test_set(train, train).labelled()) == 4


def test_what_is_trained_on_is_not_tested_on(tmp_path: Path) -> None:
    for name in ("train/a", "train/b", "test/a", "test/b"):
        (tmp_path / name).mkdir(parents=True)
        picture(1).save(tmp_path / name / "1.png")
    whole, train, test = (find_images([path]) for path in (tmp_path, tmp_path / "train", tmp_path / "test"))
    check_apart(train, test)
    with pytest.raises(DatasetError, match=r"'.*test/a/1.png' and 1 more files would be trained on"):
        check_apart(whole, test)
    file = npz(tmp_path / "train.npz", [0, 1])
    with pytest.raises(DatasetError, match=r"train.npz' would be trained on and tested on; give --labelled"):
        check_apart(find_images([file]), find_images([file]))


def test_a_split_for_some_images_only_is_refused(tmp_path: Path) -> None:
    for name in ("train/a", "train/b", "test/a", "b"):
        (tmp_path / name).mkdir(parents=True)
        picture(1).save(tmp_path / name / "1.png")
    with pytest.raises(DatasetError, match=r"1 of the 4 images of .* neither for training .* 'b/1.png'"):
        find_images([tmp_path]).labelled()


def test_a_split_of_unknown_name_is_refused_where_it_matters(tmp_path: Path) -> None:
    notes = {"k0_json": b'{"label": 0, "split": "Train"}', "k1_json": b'{"label": 1, "split": "dev"}'}
    images = find_images([shard(tmp_path / "a.tar", **notes)])
    assert [item.split for item in images.items] == ["train", "dev", "test"]
    with pytest.raises(DatasetError, match=r"'k1.png' of .*a.tar has the split 'dev'; call it train or test"):
        images.labelled()
    assert len(with_test_set(images, images).labelled()) == 6


def test_hostile_members_are_left_out_by_name(tmp_path: Path) -> None:
    script = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n"
    images = find_images([shard(tmp_path / "a.tar", k0_png=b"P6 60000 60000 255\n", k2_png=script)])
    assert images.read(range(3), 4, "crop")[0] == [1]
    assert "a.tar: k0.png' has too many pixels" in images.failed["k0.png"]
    assert "not a picture in a format that can be read" in images.failed["k2.png"], "Ghostscript is never run"


def test_notes_that_are_no_objects_are_refused_by_name(tmp_path: Path) -> None:
    for note, words in ((b"[1]", "must be a JSON"), (b"{", "is not JSON"), (b"[" * 10**6, "is not JSON")):
        with pytest.raises(DatasetError, match=rf"a.tar: k1.json' {words}"):
            find_images([shard(tmp_path / "a.tar", k1_json=note)])


def test_tar_shards(tmp_path: Path) -> None:
    a, b = shard(tmp_path / "a.tar"), shard(tmp_path / "b.tar", k0_json=b'{"label": "other"}')
    images = find_images([a])
    assert summary(images)[:2] == [("k0.png", "class 0", "train"), ("k1.png", "class 1", "test")]
    images = find_images([a, b])
    assert [item.name for item in images.items[2:4]] == ["a.tar/k2.png", "b.tar/k0.png"]
    assert levels(images) == [0, 60, 120] * 2
    (tmp_path / "joined").mkdir()
    (tmp_path / "joined" / "ab.tar").write_bytes(a.read_bytes() + b.read_bytes())
    joined = find_images([tmp_path / "joined"])  # shards in a folder, as for training
    assert [item.name for item in joined.items[::3]] == ["ab.tar/k0.png", "ab.tar/k0.png (2)"], "unique"
    assert [item.label for item in joined.items[::3]] == ["class 0", "other"], "each its own"
    assert levels(joined) == [0, 60, 120] * 2


def test_a_damaged_member_is_left_out_by_name(tmp_path: Path) -> None:
    images = find_images([shard(tmp_path / "a.tar", k1_png=b"no picture")])
    good, pixels = images.read(range(3), 4, "crop")
    assert good == [0, 2] and pixels is not None and len(pixels) == 2
    assert list(images.failed) == ["k1.png"] and "a.tar" in images.failed["k1.png"]


def test_npz(tmp_path: Path) -> None:
    arrays = np.stack([np.full((8, 8, 3), v, np.uint8) for v in (10, 20, 30)])
    np.savez(tmp_path / "with.npz", images=arrays, labels=np.array([1, 0, 1]), classes=np.array(["x", "y"]))
    np.savez(tmp_path / "plain.npz", images=arrays)
    images = find_images([tmp_path / "with.npz"])
    assert [item.label for item in images.items] == ["y", "x", "y"] and levels(images) == [10, 20, 30]
    assert {item.label for item in find_images([tmp_path / "plain.npz"]).items} == {None}
    both = with_test_set(images, images)
    assert [item.split for item in both.items] == ["train"] * 3 + ["test"] * 3
    assert len({item.name for item in both.items}) == 6


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_images_of_an_npz_stay_on_disk_where_they_can(tmp_path: Path, save: Any) -> None:
    array = np.random.default_rng(0).integers(256, size=(5, 6, 7, 3), dtype=np.uint8)
    save(tmp_path / "a.npz", labels=np.arange(5), unused=np.zeros(3), images=array)
    items = find_images([tmp_path / "a.npz"]).items
    assert len(items) == 5 and all(np.array_equal(items[i].open(), array[i]) for i in range(5))
    assert isinstance(items[0].open(), np.memmap) == (save is np.savez)
    save(tmp_path / "turned.npz", images=np.asfortranarray(array))
    assert np.array_equal(find_images([tmp_path / "turned.npz"]).items[3].open(), array[3])


@pytest.mark.parametrize("label", [-1, 2])
def test_labels_without_a_class_are_refused(tmp_path: Path, label: int) -> None:
    with pytest.raises(DatasetError, match=f"a.npz' has the label {label}"):
        find_images([npz(tmp_path / "a.npz", [0, label], ["cat", "dog"])])


def test_cifar_binaries(tmp_path: Path) -> None:
    ten, hundred = tmp_path / "cifar-10-batches-bin", tmp_path / "cifar-100-binary"
    ten.mkdir()
    hundred.mkdir()
    image = np.zeros((3, 32, 32), np.uint8)
    image[0] = 200  # red comes first
    row = image.tobytes()
    (ten / "data_batch_1.bin").write_bytes(bytes([3]) + row + bytes([0]) + row)
    (ten / "test_batch.bin").write_bytes(bytes([3]) + row)
    (ten / "batches.meta.txt").write_text("plane\ncar\nbird\ncat\n")
    (hundred / "train.bin").write_bytes(bytes([7, 42]) + row)
    (hundred / "test.bin").write_bytes(bytes([7, 9]) + row)
    images = find_images([ten])
    assert [(i.label, i.split) for i in images.items] == [
        ("cat", "train"),
        ("plane", "train"),
        ("cat", "test"),
    ]
    _, pixels = images.read([0], 32, "crop")
    assert pixels is not None and pixels[0, :, 0, 0].tolist() == pytest.approx([200 / 127.5 - 1, -1, -1])
    assert [(i.label, i.split) for i in find_images([hundred]).items] == [("9", "test"), ("42", "train")]
    (hundred / "fine_label_names.txt").write_text("\n".join(f"fine{i}" for i in range(100)))
    both = {i.label for i in find_images([tmp_path]).items}
    assert both == {"cat", "plane", "fine9", "fine42"}, "names lie beside the images"
    for damaged in (b"123", b""):
        (ten / "data_batch_2.bin").write_bytes(damaged)
        with pytest.raises(DatasetError, match=r"data_batch_2.bin' is not a file of CIFAR"):
            find_images([ten])


def test_other_bin_files_make_no_cifar(tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "pytorch_model.bin").write_bytes(b"weights")
    picture(1).save(tmp_path / "1.png")
    assert [item.name for item in find_images([tmp_path]).items] == ["1.png"]


def test_torchvision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("torchvision.datasets")

    class Two:
        """As torchvision's classes with a `split` argument are."""

        classes = ("no", "yes")

        def __init__(self, root: str, split: str = "train") -> None:
            if root == "missing":
                raise RuntimeError("Dataset not found")
            self.targets = [0, 1] if split == "train" else [1]

        def __getitem__(self, index: int) -> tuple[Image.Image, int]:
            return picture(100), self.targets[index]

    class Other(Two):
        def __getitem__(self, index: int) -> tuple[Image.Image, int]:
            if index == 1:
                raise SyntaxError("broken PNG file")
            return super().__getitem__(index)

    monkeypatch.setattr(datasets, "Two", Two, raising=False)
    monkeypatch.setattr(datasets, "Other", Other, raising=False)
    images = find_images([f"torchvision:Two:{tmp_path}"])
    assert [(i.label, i.split) for i in images.items] == [("no", "train"), ("yes", "train"), ("yes", "test")]
    assert levels(images) == [100] * 3
    other = find_images([f"torchvision:Other:{tmp_path}"])
    assert other.read(range(3), 4, "crop")[0] == [0, 2] and "broken PNG" in other.failed["train-000001"]
    assert other.digest != images.digest, "two sets in one root are two sets"
    report = tmp_path / "report"
    (report / "rows" / "features-1").mkdir(parents=True)
    for file in (report / "rows" / "features-1" / "state.json", report / "report.html"):
        file.write_text("a report in the root changes nothing")
    assert find_images([f"torchvision:Two:{tmp_path}"]).digest == images.digest
    (tmp_path / "train.mat").write_bytes(b"data")
    assert find_images([f"torchvision:Two:{tmp_path}"]).digest != images.digest
    monkeypatch.setattr(Two, "classes", ("no",))
    with pytest.raises(DatasetError, match="torchvision's Two has the label 1, but names 1 classes"):
        find_images([f"torchvision:Two:{tmp_path}"])
    with pytest.raises(DatasetError, match="torchvision's Two is not in 'missing'"):
        find_images(["torchvision:Two:missing"])
    with pytest.raises(DatasetError, match="must read torchvision:NAME:ROOT"):
        find_images(["torchvision:Nothing:data"])


def test_refusals(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad.tar").write_bytes(b"nothing")
    (tmp_path / "bad.npz").write_bytes(pickle.dumps({}))
    np.savez(tmp_path / "grey.npz", images=np.zeros((2, 8, 8), np.uint8))
    np.savez(tmp_path / "short.npz", images=np.zeros((2, 8, 8, 3), np.uint8), labels=np.zeros(3, int))
    whole = (tmp_path / "short.npz").read_bytes()
    (tmp_path / "cut.npz").write_bytes(whole[:-100])
    np.save(tmp_path / "renamed.npy", np.zeros((2, 8, 8, 3), np.uint8))
    (tmp_path / "renamed.npy").rename(tmp_path / "renamed.npz")
    array = (tmp_path / "renamed.npz").read_bytes()
    with zipfile.ZipFile(tmp_path / "lying.npz", "w") as file:
        file.writestr("images.npy", array.replace(b"(2, 8, 8, 3)", b"(3, 8, 8, 3)") + whole)
    np.savez_compressed(tmp_path / "flipped.npz", images=np.zeros((2, 8, 8, 3), np.uint8))
    packed = bytearray((tmp_path / "flipped.npz").read_bytes())
    packed[80:90] = b"\xff" * 10
    (tmp_path / "flipped.npz").write_bytes(packed)
    np.savez(tmp_path / "other.npz", x=np.zeros(2))
    for name, words in (
        ("none", "does not exist"),
        ("empty", "is a folder without pictures"),
        ("n" * 300, "cannot be read: File name too long"),
        ("bad.tar", "is not a tar file or is damaged"),
        ("bad.npz", "not an npz file"),
        ("cut.npz", "not an npz file"),
        ("lying.npz", "not the size that its header says"),
        ("flipped.npz", "not an npz file"),
        ("renamed.npz", "not an npz file"),
        ("other.npz", "it holds x"),
        ("grey.npz", r"must hold `images` uint8 \[N, H, W, 3\]; it holds images uint8 \[2, 8, 8\]"),
        ("short.npz", r"`labels` must be integers \[2\]"),
    ):
        with pytest.raises(DatasetError, match=words) as caught:
            find_images([tmp_path / name])
        assert name in str(caught.value)
    picture(1).save(tmp_path / "one.png")
    with pytest.raises(DatasetError, match="images of 0 classes; a classifier needs at least two"):
        find_images([tmp_path / "one.png"]).labelled()


def test_the_digest_follows_files_and_choice(tmp_path: Path) -> None:
    for i in range(3):
        picture(i).save(tmp_path / f"{i}.png")
    first = find_images([tmp_path])
    assert find_images([tmp_path]).digest == first.digest != first.limit(2).digest
    picture(200).resize((9, 9)).save(tmp_path / "0.png")
    second = find_images([tmp_path])
    assert second.digest != first.digest
    (tmp_path / "0.png").rename(tmp_path / "0.PNG")
    capital = find_images([tmp_path])
    picture(100).resize((9, 8)).save(tmp_path / "0.PNG")
    assert find_images([tmp_path]).digest != capital.digest, "however its name is spelt"


def test_odd_paths(tmp_path: Path) -> None:
    folder = tmp_path / "photos 12:30"
    folder.mkdir()
    picture(1).save(folder / "1.png")
    latin = os.fsdecode(b"caf\xe9.png")
    try:
        picture(2).save(folder / latin)
    except OSError:  # a file system that takes UTF-8 only
        picture(2).save(folder / "cafe.png")
    (folder / "nowhere.png").symlink_to(tmp_path / "none")
    images = find_images([folder])
    assert images.read(range(3), 4, "crop")[0] == [0, 1]
    assert list(images.failed) == ["nowhere.png"] and "does not exist" in images.failed["nowhere.png"]
    assert len(images.digest) == 64
    file = next(path for path in folder.iterdir() if path.name.startswith("caf"))
    for text in (images.items[1].name, find_images([file]).source):
        text.encode("utf-8")  # as a report does


def test_a_picture_counts_once_and_outputs_do_not(tmp_path: Path) -> None:
    for name in ("1.png", "1.dove.png"):
        picture(1).save(tmp_path / name)
    images = find_images([tmp_path, f"{tmp_path}/"])
    assert [item.name for item in images.items] == ["1.png"]
    images = find_images([tmp_path, tmp_path / "1.png", f"{tmp_path}/"])
    assert [item.name for item in images.items] == [f"{tmp_path.name}/1.png"]
    shard(tmp_path / "a.tar")
    assert len(find_images([tmp_path / "a.tar"] * 2)) == 3


def test_linked_folders_count_and_the_rest_is_said(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    picture(5).save(tmp_path / "elsewhere" / "1.png")
    (tmp_path / "d" / ".ipynb_checkpoints").mkdir(parents=True)
    picture(6).save(tmp_path / "d" / ".ipynb_checkpoints" / "2.png")
    (tmp_path / "d" / "cat").symlink_to("../elsewhere")
    shard(tmp_path / "d" / "a.tar")
    with pytest.warns(DoveWarning, match=r"1 \.tar file is left out"):
        images = find_images([tmp_path / "d"])
    assert summary(images) == [("cat/1.png", "cat", None)] and levels(images) == [5]
    assert len(images.left_out) == 1 and len(with_test_set(images, images).left_out) == 2


def test_folders_of_one_call_have_names_of_their_own(tmp_path: Path) -> None:
    for name in ("a/x", "b/x"):
        (tmp_path / name).mkdir(parents=True)
        picture(1).save(tmp_path / name / "1.png")
    images = find_images([tmp_path / "a", npz(tmp_path / "n.npz", [0]), tmp_path / "b"])
    assert summary(images) == [("a/x/1.png", "x", None), ("n-000000", "0", None), ("b/x/1.png", "x", None)]


def test_pixels_are_those_of_prepare_images(tmp_path: Path) -> None:
    from dove_ext import prepare_images

    array = np.random.default_rng(0).integers(256, size=(2, 10, 10, 3), dtype=np.uint8)
    np.savez(tmp_path / "a.npz", images=array)
    _, pixels = find_images([tmp_path / "a.npz"]).read([1], 16, "crop")
    assert pixels is not None and torch.equal(pixels, prepare_images(array[1], 16))


def test_drawn_pictures() -> None:
    held_back = find_images(["drawn:held-back:3"])
    assert len(held_back) == 3 * len(held_back.classes) == 33
    _, pixels = held_back.read([0, 4], 64, "squash")
    assert pixels is not None and pixels.shape == (2, 3, 64, 64)
    assert len(find_images(["drawn:words"])) == 50
    assert not {*held_back.classes} & {*find_images(["drawn:trained:1"]).classes}
    assert held_back.digest != find_images(["drawn:held-back:2"]).digest
    for wrong in ("drawn:cats", "drawn:words:many", "drawn:words:3:4", "drawn:"):
        with pytest.raises(
            DatasetError, match="must read drawn:KIND or drawn:KIND:COUNT with a KIND of trained"
        ):
            find_images([wrong])
