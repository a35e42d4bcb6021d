"""Training images: one order whoever draws them, their augmentation, and what cannot be read."""

from __future__ import annotations

import itertools
import multiprocessing
import pickle
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dove_ext.images import drawn
from dove_train.data import Augmentation, Batch, SkippedImages, TrainingImages, batches
from dove_train.settings import TrainingError


def take(images: TrainingImages, start: int, size: int, count: int, **kwargs: int) -> list[Batch]:
    stream = batches(images, start, size, **kwargs)
    taken = list(itertools.islice(stream, count))
    stream.close()
    return taken


def joined(parts: list[Batch]) -> tuple[torch.Tensor, list[str]]:
    return torch.cat([b.pixels for b in parts]), [name for b in parts for name in b.names]


def assert_same(one: list[Batch], other: list[Batch]) -> None:
    (pixels, names), (other_pixels, other_names) = joined(one), joined(other)
    assert names == other_names
    assert torch.equal(pixels, other_pixels)


# --- The order ----------------------------------------------------------------------------------------


def test_a_sample_is_a_function_of_seed_and_position(small: Path) -> None:
    images, again = TrainingImages([small], 32, 3), TrainingImages([small], 32, 3, cache_bytes=0)
    forward = [images[p] for p in range(20)]
    for position in (19, 4, 11, 4, 0):
        sample = again[position]
        assert sample.name == forward[position].name
        assert torch.equal(sample.pixels, forward[position].pixels)
        assert torch.equal(sample.pixels, images[position].pixels)  # now from memory
    assert sample.pixels.dtype == torch.uint8 and sample.pixels.shape == (3, 32, 32)
    other = TrainingImages([small], 32, 4)
    assert [other[p].name for p in range(7)] != [s.name for s in forward[:7]]


def test_every_image_once_an_epoch_in_a_fresh_order(small: Path) -> None:
    images = TrainingImages([small], 16, 0)
    epochs = [[images[p].name for p in range(e * 7, e * 7 + 7)] for e in range(3)]
    assert all(sorted(e) == sorted(map(str, small.rglob("*.png"))) for e in epochs)
    assert len({tuple(e) for e in epochs}) == 3


def test_an_image_is_augmented_differently_in_each_epoch(small: Path) -> None:
    images = TrainingImages([small / "n0" / "0.png"], 16, 0)
    assert not torch.equal(images[0].pixels, images[1].pixels)


def test_two_processes_draw_what_one_would(small: Path) -> None:
    images = TrainingImages([small], 16, 0)
    one = take(images, 5, 6, 4)
    ranks = [take(images, 5, 3, 4, rank=r, world_size=2) for r in (0, 1)]
    assert_same(one, [ranks[r][k] for k in range(4) for r in (0, 1)])


def test_workers_change_nothing(small: Path) -> None:
    images = TrainingImages([small], 16, 0)
    state = torch.get_rng_state()
    assert_same(take(images, 2, 3, 7), take(images, 2, 3, 7, workers=2))
    assert torch.equal(state, torch.get_rng_state())
    assert not multiprocessing.active_children()  # they end with the stream


def test_going_on_from_a_position_is_exact(small: Path) -> None:
    whole = take(TrainingImages([small], 16, 0), 0, 4, 6)
    assert_same(whole[2:], take(TrainingImages([small], 16, 0), 2 * 4, 4, 4))


def test_a_pickled_set_is_the_same_without_its_memory(small: Path) -> None:
    images = TrainingImages([small], 16, 0)
    first = images[8].pixels
    copy = pickle.loads(pickle.dumps(images))
    assert len(pickle.dumps(copy)) < 4000
    assert torch.equal(copy[8].pixels, first)


def test_images_are_kept_if_all_of_them_fit(small: Path, tmp_path: Path) -> None:
    fits = 7 * 3 * 19 * 19 * 4 // 3  # short sides of 16 / 0.85 = 19 pixels
    folder = shutil.copytree(small, tmp_path / "copy")
    kept, read = (TrainingImages([folder], 16, 0, cache_bytes=limit) for limit in (2 * fits, fits - 1))
    first = [(kept[p].pixels, read[p].pixels) for p in range(7)]
    shutil.rmtree(folder)
    assert all(torch.equal(kept[p].pixels, pixels) for p, pair in enumerate(first) for pixels in pair)
    with pytest.raises(TrainingError, match="none of the 7 images"):
        read[0]


def test_images_larger_than_estimated_do_not_pass_the_limit(tmp_path: Path) -> None:
    for number in range(4):
        Image.new("RGB", (20 + number, 400)).save(tmp_path / f"{number}.png")
    images = TrainingImages([tmp_path], 17, 0, cache_bytes=20 * 400 * 3 * 2)
    assert len([images[p] for p in range(4)]) == 4
    assert 1 <= len(images._cache) <= 2


# --- Augmentation -------------------------------------------------------------------------------------


def test_no_augmentation_is_the_resized_image(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (24, 24, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    plain = TrainingImages([tmp_path], 24, 0, augmentation=Augmentation(1, 0, 0))
    mirrored = TrainingImages([tmp_path], 24, 0, augmentation=Augmentation(1, 1, 0))
    for position in range(5):
        assert torch.equal(plain[position].pixels, torch.from_numpy(pixels).permute(2, 0, 1))
        assert torch.equal(mirrored[position].pixels, plain[position].pixels.flip(2))


def test_grey_and_flip_come_as_often_as_asked(small: Path) -> None:
    grey = TrainingImages([small], 16, 0, augmentation=Augmentation(grey=1))
    for position in range(5):
        pixels = grey[position].pixels
        assert torch.equal(pixels[0], pixels[1]) and torch.equal(pixels[0], pixels[2])
    augmentation, source = Augmentation(1, 0.25, 0.5), np.zeros((8, 8, 3), np.uint8)
    source[:, :4, 0] = 200  # red on the left
    drawn = [augmentation(source, 8, np.random.default_rng(i)) for i in range(400)]
    assert 0.18 < np.mean([image[0, 7].any() for image in drawn]) < 0.32
    assert 0.42 < np.mean([image.sum(axis=(0, 1))[1] > 0 for image in drawn]) < 0.58


def test_crops_are_squares_of_the_asked_share() -> None:
    # Coordinates as colours: what a crop spans can be read from its corners.
    y, x = np.mgrid[0:100, 0:200]
    source = np.stack([x, y, np.zeros_like(x)], axis=2).astype(np.uint8)
    augmentation = Augmentation(0.6, 0, 0)
    assert augmentation.short_side(60) == 100
    spans, lefts = [], []
    for seed in range(100):
        out = augmentation(source, 100, np.random.default_rng(seed)).astype(int)
        across, down = np.ptp(out[50, :, 0]) + 1, np.ptp(out[:, 50, 1]) + 1
        assert abs(across - down) <= 1
        spans.append(across)
        lefts.append(out[50, 0, 0])
    assert 59 <= min(spans) < 66 and 94 < max(spans) <= 100
    assert min(lefts) < 15 and max(lefts) > 100


@pytest.mark.parametrize("values", [(0, 0.5, 0.1), (1.1, 0.5, 0.1), (0.9, 2, 0.1), (0.9, 0.5, float("nan"))])
def test_impossible_augmentation_is_refused(values: tuple[float, float, float]) -> None:
    with pytest.raises(TrainingError, match=r"must be (above 0 and at most|between 0 and) 1, got"):
        Augmentation(*values)


# --- What cannot be used ------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 1])
def test_unreadable_images_are_replaced_and_named_once(damaged: Path, workers: int) -> None:
    images, told = TrainingImages([damaged], 16, 0), []
    skipped = SkippedImages(2, told.append)
    for batch in take(images, 0, 7, 3, workers=workers):  # three epochs
        skipped.add(batch.skipped)
        assert not set(batch.names) & set(batch.skipped)
        assert set(batch.names) == {str(damaged / f"{i}.png") for i in (0, 1, 3, 4, 6)}
        assert set(batch.skipped) == {str(damaged / f"{i}.png") for i in (2, 5)}
    assert len(skipped) == 2
    assert len(told) == 2 and "2.png' is truncated" in " ".join(told)
    assert_same(take(images, 0, 7, 2), take(TrainingImages([damaged], 16, 0), 0, 7, 2, workers=workers))


def test_more_unreadable_images_than_the_limit_end_it(damaged: Path) -> None:
    skipped = SkippedImages(1)
    (batch,) = take(TrainingImages([damaged], 16, 0), 0, 7, 1)
    with pytest.raises(
        TrainingError, match=r"2 images or queries cannot be used and max_unreadable is 1; repair .*\.png"
    ):
        skipped.add(batch.skipped)


@pytest.mark.parametrize("workers", [0, 1])
def test_nothing_but_unreadable_images_ends_with_one_sentence(tmp_path: Path, workers: int) -> None:
    for number in range(3):
        (tmp_path / f"{number}.jpg").write_text("hello")
    images = TrainingImages([tmp_path], 16, 0)
    (tmp_path / "1.jpg").unlink()  # vanished
    with pytest.raises(TrainingError) as caught:
        next(batches(images, 0, 2, workers=workers))
    sentence = r"none of the 3 images can be used: 3 cannot be read; give other .* \(the last: '.*\.jpg' .*\)"
    assert re.fullmatch(sentence, str(caught.value))  # one line: no traceback of a worker


def test_small_images_are_passed_over(small: Path) -> None:
    # The short sides are 40, 41, 42, 43, 44, 45 and 42 pixels.
    images = TrainingImages([small], 16, 0, min_side=43)
    samples = [images[p] for p in range(7)]
    assert {Path(s.name).stem for s in samples} == {"3", "4", "5"}
    assert not any(s.skipped for s in samples)
    with pytest.raises(
        TrainingError, match="none of the 7 images can be used: 7 have a side under 99 pixels"
    ):
        TrainingImages([small], 16, 0, min_side=99)[0]


def test_a_share_of_the_samples_is_drawn(small: Path) -> None:
    photographs = TrainingImages([small], 64, seed=3)
    mixed = TrainingImages([small], 64, seed=3, drawn_share=0.3)
    drawn_ones = [i for i in range(60) if ": " in mixed[i].name]
    assert 10 <= len(drawn_ones) <= 28
    for i in range(60):
        if i not in drawn_ones:  # the same as without
            assert torch.equal(mixed[i].pixels, photographs[i].pixels)
        assert torch.equal(mixed.photograph(i).pixels, photographs[i].pixels)
    kind, number = mixed[drawn_ones[0]].name.split(": ")
    assert kind in drawn.TRAINED and torch.equal(
        mixed[drawn_ones[0]].pixels, drawn.draw(kind, int(number), 64)
    )
    assert len({mixed[i].name for i in drawn_ones}) == len(drawn_ones)
    with pytest.raises(TrainingError, match="pictures of 32 pixels cannot be drawn, the smallest have 64"):
        TrainingImages([small], 32, seed=3, drawn_share=0.1)
