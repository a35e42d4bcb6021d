"""Training a relevance map: its words, its backbone and teacher, its loss, and runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from dove_ext import DoveModel
from dove_ext.errors import CheckpointError
from dove_ext.images.regions import Regions
from dove_ext.models.backbone import STEM, Backbone
from dove_ext.models.relevance import NULL_WORD
from dove_train import build, pointing
from dove_train.augment import Augmentation
from dove_train.data import Batch
from dove_train.distributed import World
from dove_train.pointing import (
    CLASSES,
    Pointed,
    covered,
    draw_classes,
    map_loss,
    pointing_loss,
    read_classifier,
)
from dove_train.queries import QueryImages, every_query
from dove_train.regions import find_pictures
from dove_train.run import Run
from dove_train.settings import TrainingError
from dove_train.train import train, train_stages
from dove_train.words import make_words
from tests.conftest import import_or_skip
from tests.train.small import SHAPE, asked_shard, lite_file, run_to_a_checkpoint, settings

transformers = import_or_skip("transformers")
ALONE = World(0, 1, torch.device("cpu"))
WIDTHS = {"backbone_width": 0.1, "backbone_depth": 0.4}
KNOWN = ["null", "the", "dog", "on", "cat", "cup", "left", "all"]
ENDS = ["s", "ing"]
LETTERS = 25  # of which "s" is an end already


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file as EfficientNet-Lite's, of a small network with random weights."""
    return lite_file(tmp_path_factory.mktemp("classifier") / "lite.pth", 0.1, 0.4)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as all-MiniLM-L6-v2's, of a small network with random weights."""
    folder = tmp_path_factory.mktemp("encoder")
    vocabulary = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        *KNOWN,
        *(f"##{end}" for end in ENDS),
        "7",
        "é",
    ]
    (folder / "vocab.txt").write_text("\n".join(vocabulary), encoding="utf-8")
    torch.manual_seed(1)
    config = transformers.BertConfig(
        vocab_size=len(vocabulary), hidden_size=32, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=32,
    )  # fmt: skip
    transformers.BertModel(config).save_pretrained(folder)
    transformers.BertTokenizer(str(folder / "vocab.txt")).save_pretrained(folder)
    return folder


# --- Words --------------------------------------------------------------------------------------------


def test_words_read_any_text(encoder: Path) -> None:
    from tokenizers import Tokenizer

    text, table = make_words(encoder, ["a photo", "the cups"], 296, 4)
    tokenizer = Tokenizer.from_str(text)
    assert tokenizer.get_vocab_size() == len(table) == 296 and table.shape[1] == 4

    def pieces(query: str) -> list[str]:
        encoded: list[str] = tokenizer.encode(query).tokens
        return encoded

    assert tokenizer.encode("null").ids == [NULL_WORD] == tokenizer.encode("NULL").ids
    assert pieces("The cups, on a photo?") == ["▁the", "▁cups", "<0x2C>", "▁on", "▁a", "▁photo", "<0x3F>"]
    assert pieces("doging") == ["▁dog", "ing"]
    assert pieces("猫")[-3:] == ["<0xE7>", "<0x8C>", "<0xAB>"]
    assert not table[: 2 + 256].any() and table[2 + 256 :].any(1).all()


def test_words_need_room_and_an_encoder(encoder: Path, tmp_path: Path) -> None:
    # "photo" and "photos" besides what is known.
    fixed = 2 + 256 + 2 + len(ENDS) + LETTERS
    for size in (fixed, fixed + len(KNOWN)):
        with pytest.raises(TrainingError, match=f"it must be {fixed + 1} to {fixed + len(KNOWN) - 1}$"):
            make_words(encoder, ["photo"], size, 4)
    for size in (fixed + 4, fixed + len(KNOWN) - 1):
        assert len(make_words(encoder, ["photo"], size, 4)[1]) == size
    with pytest.raises(TrainingError, match="holds no sentence encoder"):
        make_words(tmp_path, [], 300, 4)


# --- The backbone and its teacher ---------------------------------------------------------------------


@torch.no_grad()
def test_batch_norms_are_folded(classifier: Path) -> None:
    backbone, tensors = Backbone(0.1, 0.4), torch.load(classifier)
    end = read_classifier(classifier, backbone)
    images = torch.rand(2, 3, 32, 32) * 2 - 1

    def norm(x: Tensor, name: str) -> Tensor:
        mean, variance = tensors[f"{name}.running_mean"], tensors[f"{name}.running_var"]
        return F.batch_norm(x, mean, variance, tensors[f"{name}.weight"], tensors[f"{name}.bias"], eps=1e-3)

    stem = norm(F.conv2d(F.pad(images, (0, 1, 0, 1)), tensors["_conv_stem.weight"], stride=2), "_bn0")
    torch.testing.assert_close(backbone.stem(images), stem)
    assert stem.shape[1] == STEM
    features = backbone(images)
    inner = F.relu6(norm(F.conv2d(features[:, -end.features :], tensors["_conv_head.weight"]), "_bn1"))
    expected = F.linear(inner.mean((2, 3)), tensors["_fc.weight"], tensors["_fc.bias"])
    torch.testing.assert_close(
        end(features.flatten(2).transpose(1, 2)).mean(1), expected, rtol=1e-4, atol=1e-4
    )


def test_another_network_is_refused(classifier: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="does not hold an EfficientNet-Lite of this backbone's shape"):
        read_classifier(classifier, Backbone(0.5, 0.4))
    torch.save({"weight": torch.zeros(3)}, tmp_path / "other.pth")
    with pytest.raises(CheckpointError, match=r"other\.pth does not hold an EfficientNet-Lite"):
        read_classifier(tmp_path / "other.pth", Backbone(0.1, 0.4))
    with pytest.raises(CheckpointError, match=r"give the path of its efficientnet-lite2-9656183e\.pth"):
        pointing.classifier_file("")


def test_evidence_is_the_classes_share_at_each_place(
    classifier: Path, encoder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pointing, "class_names", lambda: ["dog", "cups"] * (CLASSES // 2))
    text, _ = make_words(encoder, ["photo", "cups"], 292, 4)
    tokenizer = pointing.QueryTokenizer(text, "test", 292, 12)
    backbone = Backbone(0.1, 0.4)
    teacher = pointing.ClassEvidence(read_classifier(classifier, backbone), tokenizer)
    features = backbone(torch.rand(40, 3, 64, 64) * 2 - 1).flatten(2).transpose(1, 2)
    places = teacher.classifier(features).softmax(-1)
    image = torch.arange(40).repeat_interleave(pointing.ASKED)

    monkeypatch.setattr(pointing, "ANY_SHARE", 0.0)
    draws = draw_classes(0, 0, 40)
    assert torch.equal(draw_classes(0, 7, 3), draws[7:10])
    query, share, certain = teacher(features, draws)
    for i, name, one, sure in zip(image, query.values, share, certain, strict=True):
        at = (places[i].amax(1) == sure).nonzero().flatten()
        classes = places[i, at].argmax(1)  # of which one was asked for
        wanted = [places[i, :, k] / places[i, :, k].max().clamp_min(pointing.SURE) for k in classes]
        matches = [torch.allclose(one, expected) for expected in wanted]
        assert any(matches) and torch.equal(teacher.names[classes[matches.index(True)]], name)

    monkeypatch.setattr(pointing, "ANY_SHARE", 1.0)
    _, share, certain = teacher(features, draws)
    assert certain.tolist() == [1.0] * len(image) and share.mean() < 0.1


# --- The loss -----------------------------------------------------------------------------------------


def test_cells_are_covered_by_the_boxes_share() -> None:
    cells = covered([torch.tensor([[0.0, 0.0, 0.375, 0.5]]), torch.tensor([[0.0, 0, 1, 1]])], 2, 4)
    assert cells[0].view(4, 4).tolist() == [[1, 0.5, 0, 0], [1, 0.5, 0, 0], [0] * 4, [0] * 4]
    assert cells[1].tolist() == [1.0] * 16


def test_the_loss_is_that_of_an_images_queries_and_its_class() -> None:
    generator = torch.Generator().manual_seed(0)
    logits, class_logits = torch.randn(3, 16, generator=generator), torch.randn(4, 16, generator=generator)
    evidence, certain = torch.rand(4, 16, generator=generator), torch.tensor([0.2, 1.0, 0.5, 0])
    boxes = [
        torch.tensor([[0.0, 0, 0.5, 0.5]]),
        torch.tensor([[0.0, 0, 1, 1]]),
        torch.tensor([[0.5, 0, 1, 1]]),
    ]
    pointed = Pointed(logits, torch.tensor([0, 1, 0]), class_logits, evidence, certain, 2)
    each = map_loss(logits, covered(boxes, 3, 4))
    own = torch.stack([(each[0] + each[2]) / 2, each[1]])
    classes = (certain * map_loss(class_logits, evidence)).view(2, 2).mean(1)
    expected = own + 0.5 * classes
    torch.testing.assert_close(pointing_loss(pointed, boxes), expected)


def test_a_right_map_loses_least() -> None:
    cells = covered([torch.tensor([[0.0, 0, 0.5, 0.5]])], 1, 4)
    right, wrong = (map_loss(40 * (x - 0.5), cells).item() for x in (cells, cells.flip(1)))
    assert right < 1e-3 < 1 < wrong


# --- Samples ------------------------------------------------------------------------------------------


def test_a_picture_brings_its_other_queries(tmp_path: Path) -> None:
    from PIL import Image

    pixels = np.zeros((40, 40, 3), np.uint8)
    pixels[:10, :10], pixels[30:, 30:] = (255, 0, 0), (0, 255, 0)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    Image.fromarray(pixels).save(tmp_path / "b.png")
    regions = Regions(find_pictures(tmp_path), "test")
    regions.add(0, "red", [(0, 0, 0.25, 0.25)], "0")
    regions.add(0, "green", [(0.75, 0.75, 1, 1)], "1")
    regions.add(0, "all", [(0, 0, 1, 1)], "2")
    regions.add(1, "alone", [(0, 0, 1, 1)], "3")
    assert regions.beside(1) == [0, 2] and regions.beside(3) == []
    images = QueryImages([regions], 64, 0, augmentation=Augmentation(0.8, 0.5, 0), null_share=0.0, more=1)
    told = set()
    for sample in (images[p] for p in range(40)):
        assert sample.query is not None and sample.boxes is not None
        assert len(sample.more) == (sample.query != "alone")
        for text, boxes in [(sample.query, sample.boxes), *sample.more]:
            if text not in ("red", "green"):
                continue
            told.add(text)
            x0, y0, x1, y1 = boxes[0].tolist()
            middle = sample.pixels[:, int((y0 + y1) * 32), int((x0 + x1) * 32)]
            assert middle.argmax() == ("red", "green").index(text) and middle.max() > 100
    assert told == {"red", "green"}


def test_every_query_is_a_row() -> None:
    whole, part = torch.tensor([[0.0, 0, 1, 1]]), torch.tensor([[0.0, 0, 0.5, 1]])
    batch = Batch(torch.zeros(2, 3, 8, 8), ["a", "b"], {}, ["x", "y"], [whole, whole], [[], [("z", part)]])
    rows, owners = every_query(batch)
    assert owners == [0, 1, 1] and rows.names == ["a", "b", "b"] and rows.queries == ["x", "y", "z"]
    assert rows.boxes is not None and rows.boxes[2] is part and rows.pixels is batch.pixels


# --- Runs ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model without queries."""
    folder = tmp_path_factory.mktemp("start")
    train(Run(settings(stages={"head": {"steps": 1, "train": ["head"]}}), folder, ALONE))
    return folder / "model"


@pytest.fixture
def given(
    start: Path, classifier: Path, encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> dict[str, Any]:
    """Settings of a run that trains a map."""
    for module in (pointing, build):
        monkeypatch.setattr(module, "class_names", lambda: ["dog", "photo"] * (CLASSES // 2))
    shape = {
        **WIDTHS,
        "word_width": 8,
        "stack": {"hidden": 32, "layers": 1, "heads": 2, "mlp": 32},
        "around": 8,
    }
    return {
        "preset": "dove-tiny-q",
        "start_from": str(start),
        "shape": {"query_vocab_size": 297, "query_length": 12, "relevance": shape},
        "classifier": str(classifier),
        "sentence_encoder": str(encoder),
        "queries": [str(asked_shard(tmp_path / "asked.tar"))],
        "data": [],
        "bf16": False,
        "loss_scale": "absolute",
        "stages": {"where": {"steps": 3, "path": "query", "train": ["relevance"]}},
    }


def new_run(folder: Path, given: dict[str, Any], **changes: Any) -> Run:
    return Run(settings(**{**given, **changes}), folder, ALONE)


def test_a_run_trains_the_map_and_nothing_else(tmp_path: Path, given: dict[str, Any], start: Path) -> None:
    run = new_run(tmp_path / "run", given)
    before = {name: value.clone() for name, value in run.model.state_dict().items()}
    train(run)
    changed = {n for n, value in run.model.state_dict().items() if not torch.equal(value, before[n])}
    fixed = ("relevance.backbone", "relevance.words")
    assert changed and all(n.startswith("relevance.") and not n.startswith(fixed) for n in changed)
    assert {"relevance.places.weight", "relevance.to_match.weight", "relevance.to_change.weight"} <= changed
    whole = DoveModel.from_pretrained(start).state_dict()
    assert all(torch.equal(before[name], value) for name, value in whole.items())
    model = DoveModel.from_pretrained(tmp_path / "run" / "model")
    picture = run.held_out[:1] / 2 + 0.5
    assert model.encode(picture, query="the dog", return_relevance=True).relevance is not None
    # The next one brings its map, words and tokenizer along.
    again = new_run(
        tmp_path / "again", given, start_from=str(tmp_path / "run" / "model"), shape={}, sentence_encoder=""
    )
    assert torch.equal(again.model.relevance.words.weight, model.relevance.words.weight)
    assert again.model.tokenizer is not None


def test_resumed_run_equals_uninterrupted_run(tmp_path: Path, given: dict[str, Any]) -> None:
    whole = new_run(tmp_path / "a", given)
    train(whole)
    run_to_a_checkpoint(new_run(tmp_path / "b", given, checkpoint_every=2))
    second = new_run(tmp_path / "b", given)
    state = second.start()
    assert second.step == 2
    train_stages(second, state)
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, second.model.state_dict()[name]), name


def test_passes_do_not_matter(tmp_path: Path, given: dict[str, Any]) -> None:
    """What chance asks about a picture depends on its place in the run, not on the pass that it is in."""
    first = {}
    for passes in (1, 2):
        folder = tmp_path / f"in {passes}"
        train(new_run(folder, given, batch_size=2 // passes, accumulate=passes))
        records = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
        first[passes] = next(record["loss"] for record in records if "loss" in record)
    assert first[1] == pytest.approx(first[2], rel=1e-4)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"start_from": ""}, "a model's linear code is fitted to photographs and queries have none"),
        ({"sentence_encoder": ""}, "a new relevance map needs words"),
        ({"stages": {"a": {"steps": 1, "path": "query", "train": ["relevance", "head"]}}}, "by itself"),
        (
            {"stages": {"a": {"steps": 1, "path": "query", "train": ["head"]}}},
            r"give it train: \[relevance\]",
        ),
        ({"stages": {"a": {"steps": 1, "train": ["relevance"]}}}, "not on that path"),
        (
            {"stages": {n: {"steps": 1, "path": "query", "train": [n]} for n in ("relevance", "head")}},
            "in a run of its own",
        ),
        ({"preset": "dove-tiny", "start_from": "", "shape": SHAPE}, "needs a model with a relevance map"),
    ],
    ids=str,
)
def test_what_cannot_be_trained_is_refused(
    tmp_path: Path, given: dict[str, Any], changes: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(TrainingError, match=sentence):
        new_run(tmp_path / "run", given, **changes)
