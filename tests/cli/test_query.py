"""`--query` of the verbs, with a small model from a folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from dove_ext import DoveModel, DoveTokens
from dove_ext.images import read_image, to_pil
from dove_ext.images.overlay import overlay
from dove_ext.images.sheet import CAPTION, GAP, GROUP_GAP, MARGIN, ROW_GAP, TILE, Row, draw_sheet
from tests.cli.called import run
from tests.conftest import import_or_skip
from tests.models.micro import asked, micro, photos, pointing, stop_at_share

import_or_skip("tokenizers")
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """pictures/ with three photos and model/."""
    folder = tmp_path_factory.mktemp("query")
    (folder / "pictures").mkdir()
    for i, picture in enumerate(photos(3)):
        Image.fromarray(picture.permute(1, 2, 0).numpy()).save(folder / "pictures" / f"{i}.png")
    stop_at_share(asked(folder)).save_pretrained(folder / "model")
    return folder


def test_encode(folder: Path, tmp_path: Path, capsys: Any) -> None:
    file = tmp_path / "t.safetensors"
    common = ("encode", folder / "pictures", "--model", folder / "model", "-o", file, "--json")
    model = DoveModel.from_pretrained(folder / "model")
    paths = [folder / "pictures" / f"{i}.png" for i in range(3)]
    for options, query in ((("--query", "the dog"), "the dog"), ((), None)):
        code, out, _ = run(capsys, *common, *options)
        assert code == 0 and json.loads(out).get("query") == query
        tokens, expected = DoveTokens.load(file), model.encode(paths, query=query)
        assert tokens.lengths.tolist() == expected.lengths.tolist()
        torch.testing.assert_close(tokens.tokens, expected.tokens, rtol=0, atol=1e-3)


@pytest.mark.parametrize("lengths", [(), ("--token-budget", "50")])
def test_reconstruct_shows_original_null_and_query(
    folder: Path, tmp_path: Path, capsys: Any, lengths: tuple[str, ...]
) -> None:
    given = ("reconstruct", folder / "pictures", "--model", folder / "model", "-o", tmp_path, *lengths)
    code, out, _ = run(capsys, *given, "--query", "the dog", "--batch-size", "2", "--json")
    report = json.loads(out)
    assert code == 0 and report["query"] == "the dog"
    model = DoveModel.from_pretrained(folder / "model")
    paths = [folder / "pictures" / f"{i}.png" for i in range(3)]
    rule = {"token_budget": 50} if lengths else {}
    null, about = (model.encode(paths, query=query, **rule) for query in (None, "the dog"))
    assert [item["tokens"] for item in report["items"]] == about.lengths.tolist()
    assert [item["null"]["tokens"] for item in report["items"]] == null.lengths.tolist()
    assert null.lengths.tolist() != about.lengths.tolist()
    drawn = read_image(tmp_path / "0.dove.png").float() / 255
    torch.testing.assert_close(drawn, model.decode(about)[0], rtol=0, atol=4e-3)
    width = 2 * MARGIN + 3 * TILE + 2 * GROUP_GAP
    assert Image.open(report["sheets"][0]).width == width
    code, out, _ = run(capsys, *given, "--query", "the dog")
    assert code == 0 and f"dB (null: {null.lengths[0]:>3} tokens" in out.splitlines()[0]


@pytest.mark.parametrize("lengths", [(), ("--token-budget", "40")])
def test_reconstruct_shows_where_a_model_with_a_map_sees_the_query(
    folder: Path, tmp_path: Path, capsys: Any, lengths: tuple[str, ...]
) -> None:
    stop_at_share(pointing(tmp_path)).save_pretrained(tmp_path / "model")
    given = (
        "reconstruct",
        folder / "pictures",
        "--model",
        tmp_path / "model",
        "-o",
        tmp_path / "out",
        *lengths,
    )
    code, out, _ = run(capsys, *given, "--query", "the dog", "--batch-size", "2", "--json")
    report = json.loads(out)
    model = DoveModel.from_pretrained(tmp_path / "model")
    paths = [folder / "pictures" / f"{i}.png" for i in range(3)]
    rule = {"token_budget": 40} if lengths else {}
    tokens = model.encode(paths, query="the dog", return_relevance=True, **rule)
    assert code == 0 and [item["tokens"] for item in report["items"]] == tokens.lengths.tolist()
    sheet = Image.open(report["sheets"][0])
    assert sheet.width == 2 * MARGIN + 4 * TILE + 2 * GROUP_GAP + GAP
    assert tokens.relevance is not None
    originals = torch.stack([read_image(path) for path in paths]).float() / 255
    left = MARGIN + TILE + GAP
    for i, expected in enumerate(overlay(originals, tokens.relevance)):
        top = MARGIN + i * (TILE + CAPTION + ROW_GAP)
        drawn = np.asarray(sheet.crop((left, top, left + TILE, top + TILE))).astype(int)
        enlarged = to_pil(expected)[0].resize((TILE, TILE), Image.Resampling.BICUBIC)
        assert np.abs(drawn - np.asarray(enlarged)).max() <= 3, "a level of 8 bits, and what it moves nearby"


def test_sheet_of_a_query() -> None:
    def flat(level: float) -> torch.Tensor:
        return torch.full((3, 16, 16), level)

    def drawn(query: str | None) -> np.ndarray:
        return np.asarray(draw_sheet([Row("name", flat(0.5), [(16, flat(0.1))], (20, flat(0.9)), query)]))

    plain, short, long = drawn(None), drawn("the dog"), drawn("the dog\nand " * 50)
    middle = short[100]
    order = [int((middle == level).all(-1).argmax()) for level in (128, 26, 230)]
    assert order == [MARGIN + i * (TILE + GROUP_GAP) for i in range(3)] and GAP < GROUP_GAP
    assert short.shape == long.shape == plain.shape
    assert not (short == plain).all(), "the captions say which is which"
    right = MARGIN + 3 * TILE + 2 * GROUP_GAP + 8
    assert (long[:, right:] == 255).all() and not (long == short).all(), "a long query stays under its tile"


@pytest.mark.parametrize("verb", ["encode", "reconstruct"])
def test_what_is_refused(folder: Path, tmp_path: Path, capsys: Any, verb: str) -> None:
    plain, output = tmp_path / "plain", tmp_path / "out"
    micro().save_pretrained(plain)
    missing = tmp_path / "missing"
    micro(query_vocab_size=276, query_length=12).save_pretrained(missing)
    for model, query, code, sentence in (
        (folder / "model", " ", 2, "argument --query: it is empty; for the whole picture leave it out"),
        (folder / "model", "x" * 13, 1, "query has 13 tokens, this model takes 12 at most; shorten it"),
        (plain, "the dog", 1, "'micro' has no weights for text queries (query_vocab_size is 0); leave"),
        (missing, "the dog", 1, "'micro' reads text queries and has no tokenizer; put its tokenizer.json"),
    ):
        given = (verb, folder / "pictures", "--model", model, "-o", output, "--query", query)
        found, out, err = run(capsys, *given)
        assert (found, out) == (code, "") and sentence in err
        assert not output.exists() or not [*output.iterdir()]
