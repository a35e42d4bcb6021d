"""Rows on disk: streaming, going on after a stop, and images that cannot be read."""

from __future__ import annotations

import errno
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dove_eval.datasets import ImageSet, find_images
from dove_eval.rows import Rows, fill
from dove_eval.sources import DatasetError
from dove_ext.errors import ImageError, OutputError
from dove_ext.models.pretrained import weights_digest


@pytest.fixture
def images(tmp_path: Path) -> ImageSet:
    array = np.random.default_rng(0).integers(256, size=(23, 8, 8, 3), dtype=np.uint8)
    np.savez(tmp_path / "set.npz", images=array)
    return find_images([tmp_path / "set.npz"])


class Compute:
    """Mean and channel means; stops after a number of calls."""

    def __init__(self, calls: int = 1000) -> None:
        self.left, self.seen = calls, 0

    def __call__(self, indices: list[int], pixels: torch.Tensor) -> dict[str, torch.Tensor]:
        if not self.left:
            raise KeyboardInterrupt
        self.left -= 1
        self.seen += len(indices)
        return {"mean": pixels.mean((1, 2, 3)), "channels": pixels.mean((2, 3))}


def run(images: ImageSet, output: Path, compute: Compute, identity: str = "a", batch_size: int = 4) -> Rows:
    return fill(output, "test", images, compute, identity=identity, size=8, batch_size=batch_size)


def test_an_interrupted_run_goes_on(images: ImageSet, tmp_path: Path) -> None:
    whole = run(images, tmp_path / "whole", Compute())
    with pytest.raises(KeyboardInterrupt):
        run(images, tmp_path / "out", Compute(calls=3))
    rest = Compute()
    rows = run(images, tmp_path / "out", rest)
    assert rest.seen == 23 - 12, "finished rows are not computed again"
    for name in ("mean", "channels"):
        assert np.array_equal(rows[name], whole[name])
    assert np.allclose(rows["mean"], rows["channels"].mean(1), atol=1e-6)
    again = Compute(calls=0)
    run(images, tmp_path / "out", again)
    assert again.seen == 0


def test_another_identity_or_set_starts_anew(images: ImageSet, tmp_path: Path) -> None:
    run(images, tmp_path, Compute())
    for changed, identity in ((images, "b"), (images.limit(9), "a")):
        compute = Compute()
        rows = run(changed, tmp_path, compute, identity)
        assert compute.seen == len(changed) == len(rows["mean"])


def test_columns_stay_on_disk(images: ImageSet, tmp_path: Path) -> None:
    rows = run(images, tmp_path, Compute())
    assert isinstance(rows["channels"], np.memmap) and rows["channels"].shape == (23, 3)


def test_unreadable_images_are_left_out(tmp_path: Path) -> None:
    from PIL import Image

    for i in range(5):
        Image.new("RGB", (8, 8), (50 * i,) * 3).save(tmp_path / f"{i}.png")
    (tmp_path / "2.png").write_bytes(b"\x89PNG broken")
    images = find_images([tmp_path])
    rows = run(images, tmp_path / "out", Compute(), batch_size=2)
    assert rows.good.tolist() == [0, 1, 3, 4] and list(images.failed) == ["2.png"]
    assert rows.values("mean") == pytest.approx([v / 127.5 - 1 for v in (0, 50, 150, 200)], abs=1e-6)
    fresh = find_images([tmp_path])
    assert run(fresh, tmp_path / "out", Compute(calls=0), batch_size=2).bad == [2]
    assert list(fresh.failed) == ["2.png"], "a run that goes on knows what failed before"


def test_an_image_that_can_be_read_now_is_taken(tmp_path: Path) -> None:
    from PIL import Image

    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for i in range(3):
        Image.new("RGB", (8, 8), (50 * i,) * 3).save(pictures / f"{i}.png")
    images = find_images([pictures])
    whole, items = list(images.items), list(images.items)

    def fails() -> Any:
        raise ImageError("'1.png' cannot be read: Permission denied")

    items[1] = replace(items[1], open=fails)
    out = tmp_path / "out"
    assert run(replace(images, items=items), out, Compute()).bad == [1]
    later = replace(images, items=whole, failed={})
    again = Compute()
    rows = run(later, out, again)
    assert rows.bad == [] and later.failed == {} and again.seen == 1
    assert rows.values("mean") == pytest.approx([v / 127.5 - 1 for v in (0, 50, 100)], abs=1e-6)


def test_damaged_rows_are_named(images: ImageSet, tmp_path: Path) -> None:
    rows = run(images, tmp_path, Compute())
    (rows.folder / "state.json").write_text("")
    with pytest.raises(DatasetError, match=r"the rows in '.*' are damaged \(JSONDecodeError\); remove that"):
        run(images, tmp_path, Compute())


def test_nothing_readable(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"broken")
    with pytest.raises(DatasetError, match=r"none of the 1 images of .* can be used: .*a.png"):
        run(find_images([tmp_path]), tmp_path / "out", Compute())


def test_an_image_with_odd_numbers_is_left_out_by_name(images: ImageSet, tmp_path: Path) -> None:
    class Odd(Compute):
        def __call__(self, indices: list[int], pixels: torch.Tensor) -> dict[str, torch.Tensor]:
            row = super().__call__(indices, pixels)
            row["channels"][[i in (5, 9) for i in indices], 1] = torch.tensor([float("nan")])
            return row

    rows = run(images, tmp_path, Odd())
    assert rows.bad == [5, 9] and np.isfinite(rows.values("mean")).all() and len(rows.good) == 21
    assert list(images.failed) == ["set-000005", "set-000009"]
    assert "'set-000005' gives NaN or infinity in 'channels'" in images.failed["set-000005"]
    assert run(images, tmp_path, Compute(calls=0)).bad == [5, 9]


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="this system reserves no room")
def test_a_full_disk_is_one_sentence(
    images: ImageSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(code: int) -> None:
        def reserve(*_: int) -> None:
            raise OSError(code, os.strerror(code))

        monkeypatch.setattr(os, "posix_fallocate", reserve)

    refuse(errno.ENOSPC)
    with pytest.raises(OutputError, match=r"cannot write '.*mean.npy': No space left .*; free some space"):
        run(images, tmp_path, Compute())
    refuse(errno.EOPNOTSUPP)
    assert len(run(images, tmp_path, Compute()).good) == 23


def test_the_digest_of_weights_sees_every_value() -> None:
    a, b = torch.nn.Linear(3, 2), torch.nn.Linear(3, 2)
    b.load_state_dict(a.state_dict())
    assert weights_digest(a.state_dict()) == weights_digest(b.state_dict())
    with torch.no_grad():
        b.bias[1] += 1e-6
    assert weights_digest(a.state_dict()) != weights_digest(b.state_dict())
