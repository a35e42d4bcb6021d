"""Mosaics without chance in their tiles; what training draws is tested there."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dove_ext.errors import ImageError
from dove_ext.images.mosaics import Mosaics, centre, tiles_of
from dove_ext.images.regions import read_shards


def test_a_tile_is_the_centre_of_its_picture() -> None:
    ramp = np.tile(np.arange(40, dtype=np.uint8)[None, :, None], (20, 1, 3))
    tile = centre(ramp, 20, np.random.default_rng(0))
    assert (tile == ramp[:, 10:30]).all()
    upright = centre(ramp.transpose(1, 0, 2), 20, np.random.default_rng(1))
    assert (upright == ramp[:, 10:30].transpose(1, 0, 2)).all()


def test_where_the_labels_are(tmp_path: Path) -> None:
    for level, label in ((40, "cat"), (200, "dog")):
        (tmp_path / label).mkdir()
        Image.new("RGB", (9, 9), (level,) * 3).save(tmp_path / label / "0.png")
    mosaics = Mosaics([tmp_path], 12, 0)
    for position in range(6):
        mosaic = mosaics[position]
        side = 12 // round(len(mosaic.labels) ** 0.5)
        for label, level in (("cat", 40), ("dog", 200)):
            mask = torch.zeros(12, 12, dtype=torch.bool)
            for x0, y0, x1, y1 in (tiles_of(mosaic.labels, label, 12) * 12).round().int().tolist():
                mask[y0:y1, x0:x1] = True
            assert torch.equal(mask, mosaic.pixels[0] == level)
            assert mask.sum() == mosaic.labels.count(label) * side**2
        assert tiles_of(mosaic.labels, "cow", 12).shape == (0, 4)
        asked = "cat" if "cat" in mosaic.query else "dog"
        assert torch.equal(mosaic.boxes, tiles_of(mosaic.labels, asked, 12))
    expected = torch.tensor([[0.4, 0, 0.8, 0.4], [0, 0.4, 0.4, 0.8]])
    torch.testing.assert_close(tiles_of(["a", "b", "b", "a"], "b", 5), expected)


def test_what_is_refused_is_the_librarys(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="does not exist"):
        Mosaics([tmp_path / "none"], 32, 0)
    with pytest.raises(ImageError, match="does not exist"):
        read_shards([tmp_path / "none.tar"])
