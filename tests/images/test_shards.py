"""Tar files with more than plain members: joined archives, links, holes; nothing is lost silently."""

from __future__ import annotations

import io
import subprocess
import tarfile
from pathlib import Path

import pytest
import torch
from PIL import Image

from dove_ext import ImageError
from dove_ext.images.index import ImageIndex


def png(level: int) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (4, 4), (level, level, level)).save(stream, "PNG")
    return stream.getvalue()


def make_tar(path: Path, members: dict[str, bytes | tuple[bytes, str]]) -> Path:
    """Members are contents, or links: their type and target."""
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            if isinstance(content, bytes):
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
            else:
                member.type, member.linkname = content
                tar.addfile(member)
    return path


def contents(index: ImageIndex) -> list[tuple[str, int]]:
    """Names, and the grey level of each picture."""
    return [(index.short_name(i), int(index.read(i)[0, 0, 0])) for i in range(len(index))]


def test_archives_joined_end_to_end_are_read_to_the_last(tmp_path: Path) -> None:
    one = make_tar(tmp_path / "1.tar", {"a.png": png(1), "b.png": png(2)})
    two = make_tar(tmp_path / "2.tar", {"b.png": png(3), "c.png": png(4)})
    joined = tmp_path / "joined.tar"
    joined.write_bytes(one.read_bytes() + bytes(512 * 3000) + two.read_bytes() + one.read_bytes())
    expected = [("a.png", 1), ("b.png", 2), ("b.png", 3), ("c.png", 4), ("a.png", 1), ("b.png", 2)]
    assert contents(ImageIndex([joined])) == expected
    subprocess.run(["tar", "--concatenate", "-f", one, two], check=True)
    assert contents(ImageIndex([one])) == expected[:4]


@pytest.mark.parametrize("junk", [b"\1" * 512, b"signature"])
def test_what_is_joined_on_and_is_no_archive_is_refused(tmp_path: Path, junk: bytes) -> None:
    shard = make_tar(tmp_path / "1.tar", {"a.png": png(1)})
    shard.write_bytes(shard.read_bytes() + junk)
    with pytest.raises(
        ImageError, match=r"1\.tar' is a damaged tar file \(after 'a\.png'\); get a whole copy"
    ):
        ImageIndex([shard])
    problems: list[str] = []
    index = ImageIndex([shard], on_problem=lambda path, error: problems.append(f"{path} {error}"))
    assert contents(index) == [("a.png", 1)] and len(problems) == 1, (
        "what comes before is used, not in silence"
    )


def test_links_have_the_pixels_of_what_they_name(tmp_path: Path) -> None:
    hard, symbolic = tarfile.LNKTYPE, tarfile.SYMTYPE
    part = make_tar(
        tmp_path / "part.tar",
        {
            "./d/a.png": png(1),
            "hard.png": (hard, "d/a.png"),
            "again.png": (hard, "hard.png"),
            "d/early.png": (symbolic, "../late.png"),
            "blob": png(2),
            "by-content.png": (hard, "blob"),
            "late.png": png(3),
            "folder": (tarfile.DIRTYPE, ""),
            "elsewhere.png": (symbolic, "/etc/a.png"),
            "round.png": (symbolic, "round.png"),
        },
    )
    index = ImageIndex([part])
    names = [index.short_name(i) for i in range(len(index))]
    assert sorted(names[-2:]) == ["elsewhere.png", "round.png"]
    assert {index.short_name(i): int(index.read(i)[0, 0, 0]) for i in range(len(index) - 2)} == {
        "./d/a.png": 1, "late.png": 3, "hard.png": 1, "again.png": 1, "by-content.png": 2, "d/early.png": 3,
    }  # fmt: skip
    with pytest.raises(ImageError, match=r"part\.tar: elsewhere\.png' is a link to '/etc/a\.png', which the"):
        index.read(names.index("elsewhere.png"))
    with pytest.raises(ImageError, match=r"round\.png' is a link to 'round\.png'"):
        index.read(names.index("round.png"))


def test_links_stay_within_their_part_of_a_joined_shard(tmp_path: Path) -> None:
    parts = [
        make_tar(tmp_path / f"{n}.tar", {"0.png": png(n), "1.png": (tarfile.LNKTYPE, "0.png")})
        for n in (5, 6)
    ]
    joined = tmp_path / "joined.tar"
    joined.write_bytes(b"".join(part.read_bytes() for part in parts))
    assert contents(ImageIndex([joined])) == [("0.png", 5), ("0.png", 6), ("1.png", 5), ("1.png", 6)]


def test_a_sparse_member_is_named_when_it_is_read(tmp_path: Path) -> None:
    with (tmp_path / "a.png").open("wb") as file:
        file.truncate(1 << 20)
        file.write(png(1))
    (tmp_path / "b.png").write_bytes(png(2))
    subprocess.run(["tar", "--sparse", "-cf", "s.tar", "a.png", "b.png"], cwd=tmp_path, check=True)
    index = ImageIndex([tmp_path / "s.tar"])
    with pytest.raises(ImageError, match=r"s\.tar: a\.png' has holes \(a sparse file\); rebuild .* --sparse"):
        index.read(0)
    assert torch.equal(index.read(1), torch.full((3, 4, 4), 2, dtype=torch.uint8))


def test_what_folders_pass_over_shards_pass_over(tmp_path: Path) -> None:
    names = (".hidden/a.png", "b/._a.png", "a.dove.png", "./c.png", "notes.txt", "d.JPG/e")
    assert contents(ImageIndex([make_tar(tmp_path / "s.tar", dict.fromkeys(names, png(7)))])) == [
        ("./c.png", 7)
    ]
