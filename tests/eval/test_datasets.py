"""Every layout of images that a user may have, and what is said about damaged ones."""

from __future__ import annotations

import io
import json
import pickle
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from dove_eval.datasets import find_images, with_test_set
from dove_eval.layouts import DatasetError


def picture(level: int) -> Image.Image:
    return Image.new("RGB", (8, 8), (level, level, level))


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


def shard(path: Path, broken: bool = False) -> Path:
    with tarfile.open(path, "w") as tar:
        for i in range(3):
            stream = io.BytesIO()
            picture(60 * i).save(stream, "PNG")
            data = b"no picture" if broken and i == 1 else stream.getvalue()
            for name, content in (
                (f"k{i}.png", data),
                (
                    f"k{i}.json",
                    json.dumps({"label": f"class {i % 2}", "split": "test" if i else "train"}).encode(),
                ),
            ):
                member = tarfile.TarInfo(name)
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    return path


def test_tar_shards(tmp_path: Path) -> None:
    images = find_images([shard(tmp_path / "a.tar"), shard(tmp_path / "b.tar")])
    assert summary(images)[:2] == [("k0.png", "class 0", "train"), ("k1.png", "class 1", "test")]
    assert images.items[3].name == "k0.png (2)", "names stay unique"
    assert levels(images) == [0, 60, 120] * 2


def test_a_damaged_member_is_left_out_by_name(tmp_path: Path) -> None:
    images = find_images([shard(tmp_path / "a.tar", broken=True)])
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
    (ten / "data_batch_2.bin").write_bytes(b"123")
    with pytest.raises(DatasetError, match=r"data_batch_2.bin' is not a file of CIFAR"):
        find_images([ten])


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

    monkeypatch.setattr(datasets, "Two", Two, raising=False)
    images = find_images([f"torchvision:Two:{tmp_path}"])
    assert [(i.label, i.split) for i in images.items] == [("no", "train"), ("yes", "train"), ("yes", "test")]
    assert levels(images) == [100] * 3
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
    for name, words in (
        ("none", "does not exist"),
        ("empty", "holds no images"),
        ("bad.tar", "not an uncompressed tar shard"),
        ("bad.npz", "not an npz file"),
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
    assert find_images([tmp_path]).digest != first.digest


def test_pixels_are_those_of_prepare_images(tmp_path: Path) -> None:
    from dove_ext import prepare_images

    array = np.random.default_rng(0).integers(256, size=(2, 10, 10, 3), dtype=np.uint8)
    np.savez(tmp_path / "a.npz", images=array)
    _, pixels = find_images([tmp_path / "a.npz"]).read([1], 16, "crop")
    assert pixels is not None and torch.equal(pixels, prepare_images(array[1], 16))
