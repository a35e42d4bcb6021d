"""`dove eval` as a user calls it, on a micro model: the report, its numbers, going on, and refusals."""

from __future__ import annotations

import json
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from dove_eval import heads
from dove_ext.cli import main
from dove_ext.metrics import psnr
from tests.models.micro import micro, photos, stop_at_share

VOID = {"meta", "img", "input", "br", "link"}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """micro/ and other/ (models), photos/ (two classes, a broken file)."""
    folder = tmp_path_factory.mktemp("eval")
    stop_at_share(micro()).save_pretrained(folder / "micro")
    other = stop_at_share(micro(), 0.1)
    other.save_pretrained(folder / "other")
    for i, image in enumerate(photos(24)):
        kind = folder / "photos" / ("smooth" if i < 12 else "rough")
        kind.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(kind / f"<{i:02d}>.png")
    (folder / "photos" / "rough" / "broken.jpg").write_bytes(b"\xff\xd8\xff nothing")
    return folder


def run(capsys: Any, place: Path, verb: str, *arguments: object) -> tuple[int, str, str]:
    capsys.readouterr()
    model = [] if "--model" in arguments else ["--model", place / "micro"]
    code = main([str(a) for a in ("eval", verb, *model, *arguments)])
    out, err = capsys.readouterr()
    return code, out, err


class Page(HTMLParser):
    """Balanced tags, references and text of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.references: list[str] = []
        self.ids: list[str] = []
        self.tags: list[str] = []
        self.feed(text)
        assert not self.open, f"left open: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in VOID:
            self.open.append(tag)
        values = dict(attrs)
        self.references += [v for k in ("src", "href") if (v := values.get(k)) is not None]
        self.ids += [v for v in [values.get("id")] if v]
        if tag == "img":
            assert "alt" in values
        if tag == "svg" and values.get("aria-hidden") != "true":
            assert values.get("role") == "img" and values.get("aria-label")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open.pop() == tag, tag


@pytest.fixture(scope="module")
def report(place: Path) -> Path:
    """All measurements at once."""
    images, other, output = place / "photos", place / "other", place / "report"
    arguments = ["--data", images, "--labelled", images, "--against", other, "-o", output, "--seeds", 2,
                 "--counts", 4, 16, 32, "--batch-size", 8, "--model", place / "micro"]  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:  # heads of few steps: what they learn is tested elsewhere
        for name in ("LINEAR", "MLP"):
            patch.setattr(f"dove_eval.run.{name}", replace(getattr(heads, name), epochs=4, min_steps=4))
        assert main([str(a) for a in ["eval", "all", *arguments]]) == 1  # a picture is broken
    return place / "report"


def test_the_page_stands_alone(report: Path) -> None:
    text = (report / "report.html").read_text(encoding="utf-8")
    page = Page(text)
    sections = {"reconstruction", "lengths", "segment", "classify", "probe", "compare"}
    assert sections <= set(page.ids)
    for reference in page.references:
        assert reference.startswith("data:image/") or reference[1:] in page.ids, reference
    assert (
        "script" not in page.tags and "http:" not in text and "https:" not in text and "@import" not in text
    )
    assert "prefers-color-scheme: dark" in text
    assert "&lt;00&gt;.png" in text and "<00>" not in text, "names are escaped"


def test_the_numbers(report: Path, place: Path) -> None:
    numbers = json.loads((report / "report.json").read_text(encoding="utf-8"))
    results = numbers["results"]
    assert results["reconstruction"]["images"] == 24
    assert list(results["reconstruction"]["unreadable"]) == ["rough/broken.jpg"]
    series = {s["system"]: s["points"] for s in results["reconstruction"]["series"]}
    assert [p["point"] for p in series["dove"]] == ["4", "16", "32", "own"]
    assert [p["point"] for p in series["vqgan"]] == ["64"] and set(series) == {
        "dove",
        "vqgan",
        "jpeg",
        "webp",
    }
    for points in series.values():
        for p in points:
            assert p["psnr"]["low"] <= p["psnr"]["value"] <= p["psnr"]["high"] and p["psnr"]["count"] == 24
    # The same by hand, through the library's front door.
    from dove_ext import DoveModel, prepare_images

    model = DoveModel.from_pretrained(place / "micro")
    files = sorted(p for p in (place / "photos").rglob("*.png"))
    pixels = (prepare_images([str(f) for f in files], 32) + 1) / 2
    tokens = model.encode(pixels)
    assert results["lengths"]["length"]["value"] == pytest.approx(tokens.lengths.double().mean().item())
    images = (model.decode(tokens) * 255).round() / 255
    quality = psnr(images, pixels, black=0)
    assert series["dove"][-1]["psnr"]["value"] == pytest.approx(quality.mean().item(), abs=2e-3)
    probe = {s["system"]: s for s in results["probe"]["series"]}
    assert (results["probe"]["train"], results["probe"]["test"]) == (20, 4)
    assert set(probe) == {"dove", "vqgan", "pixels"} and probe["dove"]["chosen"] in probe["dove"]["layers"]
    assert len(results["classify"]["series"][0]["points"]["tokens-16"]["seeds"]) == 2
    compared = results["compare"]["points"][-1]
    other = DoveModel.from_pretrained(place / "other").encode(pixels).lengths.double()
    difference = (tokens.lengths.double() - other).numpy()
    assert compared["tokens"]["first_larger"] == pytest.approx((difference > 0).mean())
    paired, spread = compared["tokens"]["difference"], np.std(difference) / len(difference) ** 0.5
    assert paired["value"] == pytest.approx(difference.mean())
    # Of pairs: the spread of unpaired lengths would be another.
    assert paired["high"] - paired["low"] == pytest.approx(2 * 1.96 * spread, rel=0.15)


def test_a_second_run_computes_nothing_anew(
    report: Path, place: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise AssertionError("computed again")

    monkeypatch.setattr("dove_eval.rows.Rows.append", fail)
    arguments = ("--data", place / "photos", "-o", report, "--batch-size", 8, "--json")
    code, out, err = run(capsys, place, "lengths", *arguments)
    assert json.loads(out)["results"]["lengths"]["images"] == 24
    first, second = err.splitlines()
    assert (
        code == 1 and first == "dove eval: 1 of 25 failed:" and "rough/broken.jpg' is not a picture" in second
    )


def test_markdown(place: Path, report: Path, capsys: Any) -> None:
    arguments = ("--data", place / "photos", "-o", report, "--batch-size", 8, "--markdown")
    code, out, _ = run(capsys, place, "lengths", *arguments)
    assert code == 1 and out.startswith("# micro: evaluation\n")
    tables = [line for line in out.splitlines() if line.startswith("|")]
    assert len(tables) > 5 and {line.count("|") for line in tables} == {3, 7}  # and one by class


def test_classes_are_not_guessed_from_folders(place: Path, tmp_path: Path, capsys: Any) -> None:
    arguments = ("--data", place / "photos", "-o", tmp_path / "out", "--counts", 4, "--no-codecs")
    code, out, _ = run(capsys, place, "all", *arguments)
    assert code == 1 and "Not measured: Classification and linear probe:" in out
    numbers = json.loads((tmp_path / "out" / "report.json").read_text(encoding="utf-8"))
    assert set(numbers["results"]) == {"reconstruction", "lengths", "segment"}
    assert any("--labelled" in note for note in numbers["not_measured"])


def test_one_image(place: Path, tmp_path: Path, capsys: Any) -> None:
    image = place / "photos" / "smooth" / "<00>.png"
    code, _, err = run(capsys, place, "all", "--data", image, "-o", tmp_path, "--counts", 4, "--no-codecs")
    assert (code, err) == (0, "")
    Page((tmp_path / "report.html").read_text(encoding="utf-8"))
    arguments = ("--data", image, "--against", place / "other", "-o", tmp_path / "b", "--markdown")
    code, out, _ = run(capsys, place, "compare", *arguments)
    rows = [line for line in out.splitlines() if line.startswith("| PSNR")]
    assert code == 0 and rows and not any("[" in row for row in rows), "one image has no interval"
    assert all(row.endswith("|  |") for row in rows), "and proves nothing"


def test_segment_shows_the_layer_that_was_asked_for(place: Path, tmp_path: Path, capsys: Any) -> None:
    shares = set()
    for layer in (1, 2):
        arguments = ("--data", place / "photos", "-o", tmp_path / str(layer), "--layer", layer, "--json")
        code, out, _ = run(capsys, place, "segment", *arguments)
        assert code == 1  # a picture is broken
        shares.add(json.loads(out)["results"]["segment"]["variance_share"]["micro: generator"])
    assert len(shares) == 2


def test_refusals(place: Path, tmp_path: Path, capsys: Any) -> None:
    photos_folder = place / "photos"
    out = ("-o", tmp_path / "out")
    for verb, arguments, code, words in [
        ("lengths", ("--data", tmp_path / "none", *out), 1, "does not exist; give image folders"),
        ("probe", ("--labelled", photos_folder / "rough", *out), 1, "images of 0 classes"),
        ("reconstruction", ("--data", photos_folder, "--counts", 300, *out), 1, "all above the 64 tokens"),
        ("compare", ("--data", photos_folder, "--against", tmp_path, *out), 1, "config.json"),
        ("lengths", ("--data", photos_folder, "--null-query", 3, *out), 2, "belongs to --qdove"),
        (
            "lengths",
            ("--data", photos_folder, "--qdove", place / "other", "--null-query", 3, *out),
            1,
            "takes no ids of words",
        ),
        (
            "all",
            ("--data", photos_folder, "--labelled-test", photos_folder, *out),
            2,
            "belongs to --labelled",
        ),
        ("segment", ("--data", photos_folder, "--layer", 3, *out), 1, "above the 2 layers of micro's"),
        ("reconstruction", ("--data", photos_folder, "--inception", tmp_path / "x", *out), 1, "is missing"),
    ]:
        got, _, err = run(capsys, place, verb, *arguments)
        assert got == code and words in err and len(err.splitlines()) == 1, (verb, err)
    assert not (tmp_path / "out" / "report.html").exists()
    assert run(capsys, place, "probe", *out)[0] == 2


def test_a_model_of_another_size_is_refused(place: Path, tmp_path: Path, capsys: Any) -> None:
    torch.manual_seed(0)
    micro(image_size=64).save_pretrained(tmp_path / "large")
    arguments = ("--data", place / "photos", "--against", tmp_path / "large", "-o", tmp_path / "out")
    code, _, err = run(capsys, place, "compare", *arguments)
    assert code == 1 and "takes images of 64 pixels" in err
