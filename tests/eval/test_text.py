"""`dove eval text` on micro models: what it measures is what the library gives; and the true reader."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dove_eval import EvalSettings, EvaluationError
from dove_eval.documents import Document, draw
from dove_eval.reader import RapidReader, characters_read, crop
from dove_eval.systems import Dove
from dove_eval.text_section import show, summarise
from dove_eval.text_study import ALL, HALF, JPEG, ORIGINAL, OWN, VIEW, Setup, _Tiled, measure, ordered
from dove_eval.typesetting import Line
from dove_ext.cli import main
from dove_ext.models.dove import DoveModel
from tests.models.micro import SLOTS, linear, micro, stop_at_share


class Sighted:
    """Reads the mean brightness of a crop: one character right for each line that is as bright as it was."""

    identity = "a test"

    def __init__(self) -> None:
        self.calls = 0

    def read(self, crops: Sequence[Image.Image]) -> list[str]:
        self.calls += 1
        return ["ab" if np.asarray(crop).mean() > 100 else "a" for crop in crops]


def document() -> Document:
    """Of 60 x 32 pixels, two tiles and a thumbnail: bright above, dark below."""
    picture = Image.new("RGB", (60, 32), (240, 240, 240))
    picture.paste((20, 20, 60), (0, 16, 60, 32))
    picture.paste((200, 30, 30), (10, 4, 20, 26))
    return Document("tiny", 0, picture, (Line("ab", (0, 0, 60, 12)), Line("ab", (0, 20, 60, 32))))


def setup_of(model: DoveModel, reader: Sighted | None = None) -> Setup:
    return Setup(Dove(model), reader or Sighted(), (12.0, 20.0), 1000, 4)


@pytest.mark.parametrize("made", [linear, lambda: stop_at_share(micro())])
def test_tokens_are_those_of_encode(made: type) -> None:
    model = made()
    picture = document().picture
    with torch.no_grad():
        tiled = _Tiled(document(), setup_of(model))
        total = len(tiled.all.tokens)
        assert total == len(tiled.all) * SLOTS and len(tiled.all) == 3
        for ours, how in [
            (tiled.reaching(20), {"target_psnr": 20}),
            (tiled.reaching(12), {"target_psnr": 12}),  # with what the first search has found
        ]:
            theirs = model.encode(picture, tiles="auto", batch_size=4, **how)
            assert ours.lengths.tolist() == theirs.lengths.tolist() and ours.tiles == theirs.tiles
            assert torch.allclose(tiled.decode(ours), model.decode(theirs)[0], atol=1e-5)


def test_a_document(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dove_eval.text_study.draw", lambda *_: document())
    reader = Sighted()
    setup = setup_of(linear(), reader)
    results = measure([("tiny", 0)], setup, tmp_path)
    points = results[0]["points"]
    assert list(points) == [ORIGINAL, ALL, "20 dB", "12 dB", HALF, OWN, VIEW, JPEG]
    assert (results[0]["characters"], results[0]["tiles"], points[ORIGINAL]["read"]) == (4, 3, 3)
    assert points[ORIGINAL]["misread"] == [["ab", "a"]]
    assert points[ALL]["tokens"] == 3 * SLOTS and points[HALF]["tokens"] == 3 * SLOTS // 2
    assert points["12 dB"]["tokens"] < points["20 dB"]["tokens"] < points[ALL]["tokens"]
    assert points["12 dB"]["psnr"] >= 12 and points["20 dB"]["psnr"] >= 20 and points[VIEW]["tokens"] == SLOTS
    assert points["20 dB"]["bytes"] == points["20 dB"]["tokens"] * setup.system.token_bytes
    assert 0 < points[JPEG]["bytes"] <= points["12 dB"]["bytes"]
    calls = reader.calls
    assert measure([("tiny", 0)], setup, tmp_path) == results and reader.calls == calls, "kept on disk"
    section = show(results, setup, 0)
    assert len(section.blocks) == 5
    assert section.finding.startswith(
        "With all tokens 75.0% of the characters are read; 12 dB is the lowest "
    )
    assert "| tiny | 1 | 75.0 | 75.0 |" in section.markdown()


def test_sums_over_documents() -> None:
    def result(kind: str, read: int, tokens: int, most: int) -> dict[str, object]:
        point = {"bytes": 2 * tokens, "thumbnail": 0, "psnr": 20.0, "read": read, "tokens": tokens}
        whole = {**point, "tokens": most, "read": 10}
        return {"kind": kind, "tiles": 2, "characters": 10, "points": {ALL: whole, "20 dB": point}}

    found = summarise([result("a", 9, 10, 100), result("a", 5, 30, 100), result("b", 10, 60, 200)])
    first, every = found["kinds"]["a"]["points"]["20 dB"], found["kinds"]["all"]["points"]["20 dB"]
    assert (first["read"], first["lowest read"], first["share"]) == (0.7, 0.5, 0.2)
    assert (every["read"], every["read of all tokens"], every["share"]) == (0.8, 0.8, 0.25)


def test_kinds_come_by_turns_and_wrong_ones_are_named() -> None:
    assert ordered(["slide:2", "form"], []) == [("slide", 0), ("form", 0), ("slide", 1)]
    for text in ("letter", "slide:0", "slide:x"):
        with pytest.raises(EvaluationError, match=f"--documents '{text}' must read KIND or KIND:COUNT"):
            ordered([text], [])
    with pytest.raises(EvaluationError, match=r"--fonts .* is no font that can be read"):
        ordered(["slide"], [Path(__file__)])
    with pytest.raises(EvaluationError, match="--data has no meaning for 'text'; leave it out"):
        EvalSettings(measurement="text", data=["a"], output="out")


def test_a_missing_reader_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "rapidocr_onnxruntime", None)
    linear().save_pretrained(tmp_path / "micro")
    code = main(["eval", "text", "--model", str(tmp_path / "micro"), "-o", str(tmp_path / "out")])
    said = capsys.readouterr().err
    assert code == 1 and len(said.splitlines()) == 1 and not (tmp_path / "out").exists()
    assert "rapidocr-onnxruntime" in said and "pip install 'dove-ext[text]'" in said


def test_the_reader_reads(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip(
        "rapidocr_onnxruntime", reason="rapidocr-onnxruntime is not installed: dove-ext[text]"
    )
    page = draw("receipt", 0)
    lines = page.lines[:4]
    texts = RapidReader().read([crop(page.picture, line, page.picture.size) for line in lines])
    read = sum(characters_read(line.text, text) for line, text in zip(lines, texts, strict=True))
    assert read >= 0.9 * sum(len("".join(line.text.split())) for line in lines), texts


def test_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("dove_eval.text_study.RapidReader", lambda threads: Sighted())
    monkeypatch.setattr("dove_eval.text_study.draw", lambda *_: document())
    linear().save_pretrained(tmp_path / "micro")
    arguments = ["--documents", "slide:2", "--targets", "15", "--model", str(tmp_path / "micro"), "--json"]
    assert main(["eval", "text", *arguments, "-o", str(tmp_path / "out")]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told == json.loads((tmp_path / "out" / "report.json").read_text(encoding="utf-8"))
    assert told["origin"]["command"].startswith("dove eval text ")
    assert told["results"]["text"]["kinds"]["tiny"]["documents"] == 2
    assert "drawn documents: slide:2" in (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
