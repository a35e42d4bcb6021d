"""A run goes on with the data it began with, wherever that lies now, and with no other."""

from __future__ import annotations

import shutil
import tarfile
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from dove_ext.images.index import ImageIndex
from dove_train.distributed import World
from dove_train.fingerprint import fingerprint, require_same_data
from dove_train.run import Run
from dove_train.settings import TrainingError
from dove_train.train import train
from tests.train.small import PHOTOS, settings

HELD_OUT = torch.zeros(2, 3, 8, 8)


def draw(folder: Path, *levels: int) -> Path:
    """Pictures 0.png, 1.png, ... of one grey each."""
    folder.mkdir(parents=True)
    for number, level in enumerate(levels):
        Image.new("RGB", (80, 90), (level, level, level)).save(folder / f"{number}.png")
    return folder


def of(*paths: Path, held_out: torch.Tensor = HELD_OUT) -> dict[str, Any]:
    return fingerprint(ImageIndex(list(paths)), list(paths), held_out)


def test_data_may_move(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = draw(tmp_path / "here" / "a", 10, 20)
    draw(here / "deeper", 30)
    before = of(here)
    shutil.copytree(here, tmp_path / "there" / "b")
    assert of(tmp_path / "there" / "b") == before
    monkeypatch.chdir(here)
    assert of(Path()) == before
    with tarfile.open(here / "0.tar", "w") as shard:
        shard.add(here / "1.png", "1.png")
    shutil.copy(here / "0.tar", tmp_path / "0.tar")
    assert of(here / "0.tar", here / "0.png") == of(tmp_path / "0.tar", here / "0.png")


@pytest.mark.parametrize(
    ("levels", "held_out", "what"),
    [
        ((10, 20), HELD_OUT, "3 training images before, 2 now"),
        ((10, 20, 30, 40), HELD_OUT, "3 training images before, 4 now"),
        ((10, 20, 33), HELD_OUT, "3 training images of the same names as before, but other pictures"),
        ((10, 20, 30), HELD_OUT[:1], "2 held-out images before, 1 now"),
        ((10, 20, 30), HELD_OUT + 0.1, "2 held-out images as before, but other pictures"),
    ],
)
def test_what_differs_is_said(
    tmp_path: Path, levels: tuple[int, ...], held_out: torch.Tensor, what: str
) -> None:
    before = of(draw(tmp_path / "a", 10, 20, 30))
    now = of(draw(tmp_path / "b", *levels), held_out=held_out)
    sentence = f"c was written with other data: {what}; give the data that the run began with, or another out"
    with pytest.raises(TrainingError) as caught:
        require_same_data(before, now, Path("c"))
    assert str(caught.value).startswith(sentence)


def test_names_and_their_order_count(tmp_path: Path) -> None:
    one, other = draw(tmp_path / "a", 10), draw(tmp_path / "b", 10, 10)
    before = of(one, other)
    with pytest.raises(
        TrainingError, match="3 training images as before, but of other names or in another or"
    ):
        require_same_data(before, of(other, one), Path("c"))
    (other / "1.png").rename(other / "7.png")
    with pytest.raises(TrainingError, match="but of other names"):
        require_same_data(before, of(one, other), Path("c"))


def test_decoders_may_differ_and_unreadable_images_tell_nothing(tmp_path: Path) -> None:
    before = of(draw(tmp_path / "a", 10, 20))
    (tmp_path / "a" / "1.png").write_bytes(b"no picture")
    require_same_data(before, of(tmp_path / "a", held_out=HELD_OUT + 0.004), Path("c"))
    require_same_data(of(tmp_path / "a"), before, Path("c"))


def test_a_run_goes_on_with_its_own_data_only(tmp_path: Path) -> None:
    ours = tmp_path / "ours"
    shutil.copytree(PHOTOS, ours)

    def run(data: Path, validation: Path) -> Run:
        given = settings(data=[str(data)], validation=[str(validation)])
        return Run(given, tmp_path / "run", World(0, 1, torch.device("cpu")))

    train(run(ours, ours))
    with pytest.raises(
        TrainingError, match=r"checkpoints was written with other data: 5 training images before"
    ):
        run(PHOTOS / "cat.jpg", ours).start()
    with pytest.raises(TrainingError, match="2 held-out images before, 1 now"):
        run(ours, PHOTOS / "cat.jpg").start()
    moved = ours.rename(tmp_path / "moved")
    assert run(moved, moved).start() is None  # the run has ended
    (moved / "cat.jpg").unlink()
    with pytest.raises(TrainingError, match="5 training images before, 4 now"):
        run(moved, PHOTOS).start()
