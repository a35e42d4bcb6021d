"""The rule by which sets of pictures are found, and what is said about the rest."""

from __future__ import annotations

import gzip
import pickle
import tarfile
import warnings
from pathlib import Path

import pytest
import torch
from PIL import Image

from dove_ext import ImageError
from dove_ext.errors import DoveWarning
from dove_ext.images.index import ImageIndex


def make(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4)).save(root / name, "PNG")
    return root


def pack(path: Path, *names: str) -> Path:
    with tarfile.open(path, "w") as tar:
        for name in names:
            tar.add(make(path.parent / "unpacked", name) / name, name)
    return path


def short_names(*paths: Path) -> list[str]:
    index = ImageIndex(paths)
    return [index.short_name(i) for i in range(len(index))]


def test_folders_are_read_through_links_and_past_hidden_things(tmp_path: Path) -> None:
    make(
        tmp_path, "d/b.png", "d/a/z.png", "d/a.dove.png", "d/.x.png", "d/.ipynb_checkpoints/b-checkpoint.png"
    )
    make(tmp_path, "elsewhere/1.PNG", "lone.png")
    (tmp_path / "d" / "readme.txt").write_text("text")
    (tmp_path / "d" / "c").symlink_to("../elsewhere")
    (tmp_path / "d" / "e.png").symlink_to("../lone.png")
    (tmp_path / "d" / "a" / "up").symlink_to("..")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert short_names(tmp_path / "d") == ["a/z.png", "b.png", "c/1.PNG", "e.png"]
    assert short_names(tmp_path / "d" / ".x.png", tmp_path / "d" / "a.dove.png") == [".x.png", "a.dove.png"]


def test_names_tell_paths_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path, "a/1.png", "b/1.png", "x/a/1.png", "1.png")
    pack(tmp_path / "s.tar", "1.png")
    monkeypatch.chdir(tmp_path)
    assert short_names(Path("a")) == ["1.png"]
    assert short_names(Path("a"), Path("b")) == ["a/1.png", "b/1.png"]
    assert short_names(Path("a"), Path("1.png"), Path("s.tar")) == ["a/1.png", "1.png", "s.tar/1.png"]
    assert short_names(Path("a"), Path("x/a")) == [f"{tmp_path.name}/a/1.png", "x/a/1.png"]
    assert short_names(Path("a/1.png"), Path("b/1.png")) == ["a/1.png", "b/1.png"]
    assert short_names(Path("a/1.png")) == ["1.png"]


def test_what_is_named_twice_is_taken_once(tmp_path: Path) -> None:
    make(tmp_path, "a/1.png", "a/b/2.png")
    a = tmp_path / "a"
    assert short_names(a, a / "b", a / "1.png", tmp_path / "a/") == ["a/1.png", "a/b/2.png"]
    assert short_names(a / "1.png", a / "b", a) == ["1.png", "b/2.png"]
    assert short_names(a / "b", tmp_path / "a", tmp_path) == ["b/2.png", "a/1.png"], "the last adds nothing"
    shard = pack(tmp_path / "s.tar", "3.png")
    assert len(ImageIndex([shard, shard])) == 1
    assert len(ImageIndex([a, a / "b" / ".." / ".." / "a", a / "b" / ".." / "1.png"])) == 2


def test_what_else_is_left_out_is_counted(tmp_path: Path) -> None:
    make(tmp_path, "1.png")
    (tmp_path / "0.tar.gz").write_bytes(gzip.compress(b"x"))
    (tmp_path / "gone").symlink_to("nowhere")
    with pytest.warns(DoveWarning):
        index = ImageIndex([tmp_path])
    compressed, broken = index.left_out
    assert compressed.startswith("1 compressed tar file is left out in") and "unpack" in compressed
    assert broken.startswith("1 broken link is left out in")


def test_problems_end_the_search_or_are_handed_over(tmp_path: Path) -> None:
    make(tmp_path, "good/1.png", "own/a.dove.png")
    (tmp_path / "bad.tar").write_bytes(b"no tar")
    (tmp_path / "round").mkdir()
    (tmp_path / "round" / "again").symlink_to("again")
    paths = [tmp_path / name for name in ("none", "bad.tar", "own", "round", "good", "n" * 300)]
    problems: list[str] = []
    index = ImageIndex(paths, on_problem=lambda path, error: problems.append(str(error)))
    assert len(index) == 1 and index.name(0) == str(tmp_path / "good" / "1.png")
    for problem, words in zip(
        problems,
        (
            "none' does not exist",
            "bad.tar' is not a tar file",
            "own' is a folder without pictures, but 1 named *.dove.png, which are passed over",
            "again' cannot be read: Too many levels of symbolic links",
            "round' is a folder without pictures",
            "cannot be read: File name too long",
        ),
        strict=True,
    ):
        assert words in problem
    with pytest.raises(ImageError, match="none' does not exist"):
        ImageIndex(paths)


def test_an_index_says_where_a_picture_lies_and_survives_pickling(tmp_path: Path) -> None:
    make(tmp_path, "good/x/1.png")
    pack(tmp_path / "s.tar", "y/2.png")
    index = pickle.loads(pickle.dumps(ImageIndex([tmp_path / "good", tmp_path / "s.tar"])))
    first, second = index.locate(0), index.locate(1)
    assert first == (tmp_path / "good" / "x" / "1.png", None, 0, "x/1.png", 0)
    with tarfile.open(tmp_path / "s.tar") as tar:
        assert second == (tmp_path / "s.tar", "y/2.png", 1, "y/2.png", tar.getmember("y/2.png").offset_data)
    assert index.name(1) == index.name(-1) == f"{tmp_path / 's.tar'}: y/2.png"
    assert torch.equal(index.read(0), index.read(1))


def test_too_long_a_picture_is_named(tmp_path: Path) -> None:
    Image.new("RGB", (500, 2)).save(tmp_path / "5.png")
    index = ImageIndex([tmp_path])
    with pytest.raises(ImageError, match=r"^'.*5\.png' has 500 x 2 pixels, more than 100 to 1, too long"):
        index.prepare(0, 16)
    assert index.prepare(0, 16, fit="squash").shape == (1, 3, 16, 16)
