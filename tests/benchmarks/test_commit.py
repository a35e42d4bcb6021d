"""Which commit a record names, with and without a .git."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from benchmarks import commit, record


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A small clone with one commit."""
    for name in ("csrc", "dove_ext", "python", "benchmarks"):
        (tmp_path / name).mkdir()
    (tmp_path / "dove_ext" / "a.py").write_text("1\n")
    for words in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "one"]):
        subprocess.run(["git", "-c", "user.name=x", "-c", "user.email=x@x", *words], cwd=tmp_path, check=True)
    return tmp_path


def travelled(tree: Path) -> Path:
    """The tree without its .git, with what was written down."""
    text = commit.text(tree)
    assert text is not None
    (tree / ".git").rename(tree / "elsewhere")
    (tree / "benchmarks" / "commit.txt").write_text(text)
    return tree


def test_git_knows_it(tree: Path) -> None:
    head = commit.of_tree(tree)
    assert head and len(head) >= 7
    (tree / "dove_ext" / "a.py").write_text("2\n")
    assert commit.of_tree(tree) == f"{head}+changes"


def test_a_tree_without_git_has_it_from_the_file(tree: Path) -> None:
    head = commit.of_git(tree)
    there = travelled(tree)
    assert commit.of_git(there) is None
    assert commit.of_tree(there) == head
    (there / "dove_ext" / "b.cu").write_text("an edit behind git's back")
    assert commit.of_tree(there) == f"{head}+changes"


def test_changes_before_the_trip_are_not_forgotten(tree: Path) -> None:
    (tree / "dove_ext" / "a.py").write_text("2\n")
    head = commit.of_git(tree)
    assert head and head.endswith("+changes")
    assert commit.of_tree(travelled(tree)) == head


def test_a_repository_above_is_another_one(tree: Path) -> None:
    inner = tree / "python" / "copy"
    inner.mkdir()
    assert commit.of_git(inner) is None
    assert commit.text(inner) is None


def test_nobody_knows_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(record, "of_tree", lambda: commit.of_tree(tmp_path))
    assert record.commit() == "unknown"
    assert "commit will be unknown: this tree has no .git" in capsys.readouterr().err
