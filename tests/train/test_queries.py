"""Path 'query': samples that ask, their losses, and a run that trains on them."""

from __future__ import annotations

import itertools
import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from dove_ext import DoveModel
from dove_ext.images.regions import Regions, pixel_box
from dove_ext.models.text import QueryTokenizer
from dove_train.augment import Augmentation
from dove_train.data import Batch, batches
from dove_train.distributed import World
from dove_train.losses import mean_squared_error, paper_eos_loss, sampled_eos_loss
from dove_train.mosaics import Mosaics
from dove_train.objective import Objective
from dove_train.queries import QueryImages, folders, read_queries, understood
from dove_train.region_losses import irrelevant_loss, length_penalty, outside, relevant_loss
from dove_train.regions import find_pictures
from dove_train.run import Run
from dove_train.settings import Settings, TrainingError, make_settings
from dove_train.stages import Outputs
from dove_train.train import train, train_stages
from tests.models.micro import words
from tests.train.small import ASKING, SHAPE, asked_shard, recipe, run_to_a_checkpoint, settings

ALONE = World(0, 1, torch.device("cpu"))
RED = (200, 30, 10)
BOX = (0.25, 0.5, 0.5, 0.75)  # of the red rectangle in `marked`


def marked(texts: list[str | None], folder: Path) -> Regions:
    """Queries about a blue picture of 80 x 40 pixels with a red rectangle, which is their box."""
    pixels = np.full((40, 80, 3), (0, 0, 255), np.uint8)
    pixels[20:30, 20:40] = RED
    Image.fromarray(pixels).save(folder / "marked.png")
    regions = Regions(find_pictures(folder), "test")
    for number, text in enumerate(texts):
        regions.add(0, text, [BOX], str(number))
    return regions


def reddish(pixels: torch.Tensor) -> torch.Tensor:
    return (pixels[0].int() - pixels[2].int()) > 0


# --- Samples ------------------------------------------------------------------------------------------


def test_boxes_follow_the_picture(tmp_path: Path) -> None:
    images = QueryImages([marked(["the thing"], tmp_path)], 64, 0, augmentation=Augmentation(0.7, 0.5, 1))
    asked, mirrored, spans = 0, 0, set()
    for sample in (images[p] for p in range(60)):
        assert sample.pixels.shape == (3, 64, 64) and sample.pixels.dtype == torch.uint8
        assert sample.boxes is not None and sample.boxes.shape == (1, 4)
        if sample.query is None:
            assert sample.boxes.tolist() == [[0, 0, 1, 1]]
            assert torch.equal(sample.pixels[0], sample.pixels[2])  # grey is for "null" alone
            continue
        asked += 1
        left, top, right, bottom = pixel_box(sample.boxes[0].tolist(), 64)
        seen = reddish(sample.pixels).nonzero()
        found = [*seen.amin(0).flip(0).tolist(), *(seen.amax(0).flip(0) + 1).tolist()]
        assert max(abs(a - b) for a, b in zip(found, (left, top, right, bottom), strict=True)) <= 1
        mirrored += left + right > 64
        spans.add(right - left)
    assert 20 <= asked <= 40 and 5 <= mirrored <= asked - 5 and len(spans) > 4


def test_a_crop_keeps_more_than_half_of_every_box() -> None:
    pixels, random = np.zeros((50, 50, 3), np.uint8), np.random.default_rng(0)
    boxes = torch.tensor([[0.0, 0.0, 0.1, 0.1], [0.9, 0.9, 1.0, 1.0], [0.2, 0.2, 0.8, 0.8]])
    whole = 0
    for _ in range(100):
        _, moved = Augmentation(0.7, 0, 0).squashed(pixels, boxes, 16, random, True)
        sides = moved[:, 2:] - moved[:, :2]
        assert (sides > 0).all() and moved.min() >= 0 and moved.max() <= 1
        whole += torch.equal(moved, boxes)
    assert 50 < whole < 100  # seldom are both corners kept


def test_what_speaks_of_sides_is_not_mirrored(tmp_path: Path) -> None:
    texts: list[str | None] = ["the dog on the left", "a RIGHT-hand glove"]
    images = QueryImages([marked(texts, tmp_path)], 64, 0, augmentation=Augmentation(1, 1, 0))
    asked = [s for s in (images[p] for p in range(20)) if s.query is not None]
    assert len(asked) > 5 and all(s.boxes.tolist() == [list(BOX)] for s in asked if s.boxes is not None)


def test_an_epoch_holds_every_query_once(tmp_path: Path) -> None:
    regions = marked([f"thing {i}" for i in range(30)], tmp_path)
    images = QueryImages([regions, regions], 16, 3, augmentation=Augmentation())
    assert len(images) == 60
    epochs = [[images[p].query for p in range(e * 60, e * 60 + 60)] for e in range(2)]
    for queries in epochs:
        texts = [text for text in queries if text is not None]
        assert 18 <= len(texts) <= 42  # the others are "null"
        assert max(texts.count(text) for text in texts) <= 2  # both readers have it
    assert epochs[0] != epochs[1]
    again = pickle.loads(pickle.dumps(images))
    for position in (59, 7, 100):
        assert torch.equal(again[position].pixels, images[position].pixels)
        assert again[position].query == images[position].query
        assert torch.equal(again[position].boxes, images[position].boxes)


def test_batches_are_the_same_for_any_workers(tmp_path: Path) -> None:
    images = QueryImages(
        read_queries([str(asked_shard(tmp_path / "a.tar"))]), 32, 0, augmentation=Augmentation()
    )
    taken: list[list[Batch]] = []
    for workers in (0, 2):
        stream = batches(images, 4, 3, workers=workers)
        taken.append(list(itertools.islice(stream, 3)))
        stream.close()
    for one, other in zip(*taken, strict=True):
        assert torch.equal(one.pixels, other.pixels) and one.queries == other.queries
        assert one.boxes is not None and other.boxes is not None and len(one.boxes) == 3
        assert all(torch.equal(a, b) for a, b in zip(one.boxes, other.boxes, strict=True))
    assert any(text for batch in taken[0] for text in batch.queries)


def test_a_share_of_the_samples_are_mosaics(tmp_path: Path) -> None:
    for label, level in (("cat", 0), ("dog", 200)):
        (tmp_path / "data" / label).mkdir(parents=True)
        Image.new("RGB", (20, 20), (level, 0, 0)).save(tmp_path / "data" / label / "0.png")
    (tmp_path / "more").mkdir()
    mosaics = Mosaics([tmp_path / "data"], 32, 0)
    images = QueryImages(
        [marked(["a thing"], tmp_path / "more")], 32, 0, augmentation=Augmentation(), mosaics=mosaics,
        mosaic_share=0.5,
    )  # fmt: skip
    samples = [images[p] for p in range(40)]
    made = {p: s for p, s in enumerate(samples) if s.name.startswith("mosaic")}
    assert 10 <= len(made) <= 30 and len(made) < 40
    for position, sample in made.items():
        assert torch.equal(sample.pixels, mosaics[position].pixels)
        assert sample.query in (None, mosaics[position].query)
    assert {s.query is None for s in made.values()} == {True, False}
    assert len(images.index) == 1 + 2 and images.index.read(2)[0, 0, 0] == 200
    alone = QueryImages([], 32, 0, augmentation=Augmentation(), mosaics=mosaics, mosaic_share=1.0)
    assert all(alone[p].name == f"mosaic {p}" for p in range(20))
    with pytest.raises(TrainingError, match="there are no queries: give --queries, or mosaics: 1"):
        QueryImages([], 32, 0, augmentation=Augmentation(), mosaics=mosaics, mosaic_share=0.5)


def test_unreadable_pictures_are_replaced_and_named(tmp_path: Path) -> None:
    regions = marked(["a thing"], tmp_path)
    Image.new("RGB", (8, 8)).save(tmp_path / "other.png")
    regions = Regions(find_pictures(tmp_path), "test")
    regions.add(0, "the first", [BOX], ""), regions.add(1, "the second", [BOX], "")
    (tmp_path / "other.png").write_bytes(b"no picture")
    images = QueryImages([regions], 16, 0, augmentation=Augmentation())
    samples = [images[p] for p in range(8)]
    assert {s.name for s in samples} == {str(tmp_path / "marked.png")}
    assert {name for s in samples for name in s.skipped} == {str(tmp_path / "other.png")}
    (tmp_path / "marked.png").unlink()
    with pytest.raises(TrainingError, match="the pictures of 2 queries in a row cannot be read"):
        images[0]


def test_paths_name_their_readers(tmp_path: Path) -> None:
    assert folders(["visual-genome:a/b", "open-images:c", "d.tar"]) == [Path("a/b"), Path("c"), Path("d.tar")]
    with pytest.raises(TrainingError, match=r"of Visual Genome; put what is missing there"):
        read_queries([f"visual-genome:{tmp_path}"])
    with pytest.raises(TrainingError, match=r"of Open Images; put what is missing there"):
        read_queries([f"open-images:{tmp_path}"])
    assert [len(part) for part in read_queries([str(asked_shard(tmp_path / "a.tar"))])] == [3]


def test_texts_that_are_too_long_become_null() -> None:
    tokenizer = QueryTokenizer(words(), "words", 276, 12)
    boxes = [torch.tensor([BOX]), torch.tensor([[0.0, 0, 1, 1]]), torch.tensor([BOX, BOX])]
    long = "a very long text about nothing at all"
    batch = Batch(torch.zeros(3), ["a", "b", "c"], {}, ["the dog", None, long], boxes)
    query, kept, refused = understood(tokenizer, batch)
    expected = tokenizer(["the dog", None, None])
    assert torch.equal(query.values, expected.values) and torch.equal(query.lengths, expected.lengths)
    assert [b.tolist() for b in kept] == [boxes[0].tolist(), [[0, 0, 1, 1]], [[0, 0, 1, 1]]]
    assert list(refused) == [f"c: {long}"]
    assert f"{long!r} about 'c' becomes \"null\": query has " in refused[f"c: {long}"]


# --- The objective ------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", ["paper", "sampled"])
def test_the_objective_is_equation_7_with_both_thresholds(rule: str) -> None:
    generator = torch.Generator().manual_seed(1)
    seen, pixels = (torch.rand(3, 3, 16, 16, generator=generator) for _ in range(2))
    seen[1] = pixels[1] + 0.05  # its outside is good enough
    p_eos = torch.rand(3, 6, generator=generator)
    boxes = [torch.tensor([BOX]), torch.tensor([BOX, (0.0, 0.0, 0.2, 0.3)]), torch.tensor([[0.0, 0, 1, 1]])]
    stops, lengths = torch.tensor([2, 4, 3]).int(), torch.tensor([3, 5, 6]).int()
    if rule == "paper":
        lengths = stops
    objective = Objective(settings(**asking(eos_rule=rule), batch_size=3), ALONE)
    outputs = Outputs(seen, lengths, stops, p_eos)
    total, tally = objective(outputs, pixels, lambda_eos=0.5, undecided=2, adversarial=False, boxes=boxes)
    relevant = relevant_loss(seen, pixels, boxes, mean_squared_error)
    mask = outside(boxes, 16, 3)
    background = irrelevant_loss(seen, pixels, mask)
    threshold, enough = relevant.mean().item(), background[:2].mean().item()  # of the first step
    penalty = length_penalty(p_eos, lengths, background, torch.tensor([True, True, False]), enough)
    assert (penalty != 0).tolist() == [False, True, False]
    if rule == "paper":
        eos = paper_eos_loss(p_eos, stops, relevant, threshold).sum() / 3
    else:
        eos = sampled_eos_loss(p_eos, lengths, relevant, threshold).sum() / 2
    expected = (relevant + 1e-10 * background).sum() / 3 + 0.5 * (eos + penalty.sum() / 3)
    assert total.item() == pytest.approx(expected.item(), rel=1e-5)
    assert tally["loss"].item() == pytest.approx(relevant.sum().item(), rel=1e-5)
    assert tally["asked"].item() == 2
    means = {name: (value / 3).item() for name, value in tally.items()}
    objective.update(means, lambda_eos=0.5)
    assert objective.outside_threshold.state() == [pytest.approx(enough)]
    objective.update(
        {**means, "asked": 0.0, "outside": 0.0}, lambda_eos=0.5
    )  # "null" alone says nothing of it
    other = Objective(settings(**asking(eos_rule=rule)), ALONE)
    other.restore(objective.state())
    assert (
        other.outside_threshold.value(9.0) == objective.outside_threshold.value(9.0) == pytest.approx(enough)
    )


# --- Runs ---------------------------------------------------------------------------------------------


def asking(**changes: Any) -> dict[str, Any]:
    return {**ASKING, **changes}


@pytest.fixture
def given(tmp_path: Path) -> dict[str, Any]:
    """Settings of a run with queries."""
    (tmp_path / "tokenizer.json").write_text(words(), encoding="utf-8")
    shard = str(asked_shard(tmp_path / "asked.tar"))
    return asking(queries=[shard], tokenizer=str(tmp_path / "tokenizer.json"))


def new_run(folder: Path, given: dict[str, Any], **changes: Any) -> Run:
    return Run(settings(**{**given, **changes}), folder, ALONE)


def steps_of(folder: Path) -> list[dict[str, Any]]:
    records = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [{k: v for k, v in record.items() if k != "images/s"} for record in records if "loss" in record]


def test_a_run_with_queries_leaves_a_model_that_reads_them(tmp_path: Path, given: dict[str, Any]) -> None:
    run = new_run(tmp_path / "run", given, bf16=True)
    before = {name: value.clone() for name, value in run.model.state_dict().items()}
    train(run)
    steps = steps_of(tmp_path / "run")
    assert len(steps) == 3 and {"loss", "penalty", "outside", "asked", "eos", "length"} <= set(steps[0])
    assert any(step["asked"] > 0 for step in steps)
    changed = [n for n, value in run.model.state_dict().items() if not torch.equal(value, before[n])]
    assert {"generator.embed_in.weight", "generator.embed_out.weight"} <= set(changed)
    model = DoveModel.from_pretrained(tmp_path / "run" / "model")
    tokens = [
        model.encode(run.held_out[:1] / 2 + 0.5, query=q, num_tokens=4).tokens for q in ("the dog", None)
    ]
    assert not torch.equal(*tokens)
    records = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert records[1]["queries"] == [f"{tmp_path / 'asked.tar'}: 3 queries about 3 pictures"]


@pytest.mark.parametrize("changes", [
    {}, {"eos_rule": "paper", "accumulate": 2, "loss_scale": "relative", "gan_weight": 1e-3},
], ids=["sampled", "paper, accumulated"])  # fmt: skip
def test_resumed_run_equals_uninterrupted_run(
    tmp_path: Path, given: dict[str, Any], changes: dict[str, Any]
) -> None:
    whole = new_run(tmp_path / "a", given, **changes)
    train(whole)
    first = new_run(tmp_path / "b", given, **changes, checkpoint_every=2)
    run_to_a_checkpoint(first)
    second = new_run(tmp_path / "b", given, **changes)
    state = second.start()
    assert second.step == 2
    train_stages(second, state)
    assert steps_of(tmp_path / "a") == steps_of(tmp_path / "b")
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, second.model.state_dict()[name]), name
    ours, theirs = whole.objective.state(), second.objective.state()
    assert ours["outside"] == theirs["outside"] and ours["threshold"] == theirs["threshold"]


def test_other_queries_about_the_same_pictures_are_other_data(tmp_path: Path, given: dict[str, Any]) -> None:
    train(new_run(tmp_path / "run", given))
    asked_shard(tmp_path / "asked.tar", ("the dog", "the cat", "all the cups"))
    with pytest.raises(TrainingError, match="3 training images as before, but of other names"):
        new_run(tmp_path / "run", given).start()


def test_a_start_without_query_weights_gets_new_ones(tmp_path: Path, given: dict[str, Any]) -> None:
    shape = {n: v for n, v in ASKING["shape"].items() if not n.startswith("query")}
    plain = settings(
        preset="dove-base",
        shape=shape,
        stages={"joint": {"steps": 1, "train": ["generator", "head"]}},
        loss_scale="absolute",
        target_length=30,
        bf16=False,
    )
    train(Run(plain, tmp_path / "dove", ALONE))
    start = DoveModel.from_pretrained(tmp_path / "dove" / "model")
    words_only = {"query_vocab_size": 276, "query_length": 12}
    run = new_run(tmp_path / "q", given, start_from=str(tmp_path / "dove" / "model"), shape=words_only)
    assert run.model.generator.embed_in.weight.shape == (276, 64)
    for name, value in start.state_dict().items():
        assert torch.equal(run.model.state_dict()[name], value), name
    train(run)
    # The next one brings its tokenizer and its words along.
    last = str(tmp_path / "q" / "model")
    third = new_run(tmp_path / "third", given, start_from=last, shape={}, tokenizer="")
    assert third.model.tokenizer is not None
    assert torch.equal(
        third.model.generator.embed_in.weight, DoveModel.from_pretrained(last).generator.embed_in.weight
    )


def test_a_run_on_mosaics_alone(tmp_path: Path, given: dict[str, Any]) -> None:
    for label, level in (("cat", 0), ("dog", 200)):
        (tmp_path / "data" / label).mkdir(parents=True)
        Image.new("RGB", (20, 20), (level, 0, 0)).save(tmp_path / "data" / label / "0.png")
    changes = {"queries": [], "data": [str(tmp_path / "data")], "mosaics": 1, "steps": 1}
    run = new_run(tmp_path / "run", given, **changes)
    train(run)
    assert len(steps_of(tmp_path / "run")) == 1 and run.position == 2
    assert run.images.report == [f"{tmp_path / 'data'}: mosaics of 2 pictures with 2 labels"]
    Image.new("RGB", (20, 20)).save(tmp_path / "data" / "cat" / "1.png")
    with pytest.raises(TrainingError, match="2 training images before, 3 now"):
        new_run(tmp_path / "run", given, **changes).start()


def test_what_a_run_cannot_ask_is_found_out_before_it(tmp_path: Path, given: dict[str, Any]) -> None:
    with pytest.raises(TrainingError, match=r"needs a model that reads queries .* and has no linear code"):
        new_run(tmp_path / "a", given, preset="dove-tiny", shape=SHAPE, tokenizer="")
    with pytest.raises(ValueError, match=r"reads text queries and has no tokenizer; put its tokenizer.json"):
        new_run(tmp_path / "b", given, tokenizer="")
    with pytest.raises(TrainingError, match="nowhere' does not exist"):
        new_run(tmp_path / "c", given, queries=["nowhere"])


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"drawn": 0.5}, "drawn has no meaning in stages of path 'query'; leave it out"),
        ({"synsets": "a"}, "synsets has no meaning in stages of path 'query'"),
        ({"data": ["a"]}, "data has no meaning in stages of path 'query'"),
        ({"mosaics": 1.5}, "mosaics must be between 0 and 1, got 1.5"),
        (
            {"stages": recipe()["stages"], "queries": ["a"]},
            "queries has a meaning only in stages of path 'que",
        ),
        (
            {"stages": recipe()["stages"], "mosaics": 0.5},
            "mosaics has a meaning only in stages of path 'query'",
        ),
        (
            {"stages": {**recipe()["stages"], **ASKING["stages"]}},
            "stages of path 'query' read queries, all others images",
        ),
    ],
)
def test_settings_that_do_not_go_together(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(TrainingError, match=sentence):
        make_settings(recipe(**asking(**changes)), "recipe")
    assert isinstance(make_settings(recipe(**asking(data=["a"], mosaics=0.5)), "recipe"), Settings)
