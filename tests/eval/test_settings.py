"""From Python: what settings refuse, the command that repeats them, and a report without a command line."""

from __future__ import annotations

import json
import shlex
import sys
from argparse import ArgumentParser
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from dove_eval import EvalSettings, Evaluation, EvaluationError, evaluate
from dove_eval.cli import configure, settings_of
from dove_ext.cli import main
from tests.models.micro import micro, stop_at_share

PHOTOS = Path(__file__).parents[2] / "examples" / "photos"


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"measurement": "length", "data": "a"}, "measurement must be one of reconstruction, lengths, "),
        ({}, "'all' needs --data; give images: folders"),
        ({"measurement": "probe"}, "'probe' needs --labelled; give images with classes"),
        ({"measurement": "compare", "data": "a"}, "'compare' needs --against; give a second model"),
        ({"measurement": "probe", "labelled": "a", "data": "b"}, "--data has no meaning for 'probe'"),
        (
            {"measurement": "lengths", "data": "a", "codecs": False},
            "--no-codecs has no meaning for 'lengths'",
        ),
        (
            {"measurement": "query", "data": "a", "mosaics": 9},
            "--mosaics belongs to --mosaic-data; give pictures",
        ),
        ({"measurement": "lengths", "data": "a", "known": "b"}, "--known has no meaning for 'lengths'"),
        ({"data": "a", "limit": 0}, "--limit must be at least 1, got 0"),
        ({"data": "a", "counts": [16, 0]}, "--counts must be at least 1, got 0"),
        ({"data": "a", "oracle": [0.5]}, "--oracle must be at least 1, got 0.5"),
        ({"data": "a", "oracle": [float("nan")]}, "--oracle must be at least 1, got nan"),
        ({"data": "a", "batch_size": -1}, "--batch-size must be at least 1, got -1"),
        ({"data": "a", "fit": "stretch"}, "--fit must be one of crop, squash, pad, got 'stretch'"),
        ({"data": "a", "dtype": "float16"}, "--dtype must be one of float32, bfloat16, got 'float16'"),
        ({"data": "a", "perceptual": "lpips"}, "--perceptual must be one of mobilenet, lpips-vgg, st-lpips"),
        ({"data": "a", "null_query": [3]}, "--null-query belongs to --qdove; give the model, too"),
        ({"data": "a", "qdove": "q", "null_query": [-1]}, "--null-query must be at least 0, got -1"),
        (
            {"data": "a", "labelled_test": "b"},
            "--labelled-test belongs to --labelled; give images to train on",
        ),
    ],
)
def test_what_is_refused(values: dict[str, Any], words: str) -> None:
    with pytest.raises(EvaluationError) as caught:
        EvalSettings(output="out", **values)
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_the_command_repeats_the_settings() -> None:
    settings = EvalSettings(
        measurement="reconstruction", data=[Path("a b"), "c"], output=Path("out"), counts=[4, 8],
        codecs=False, batch_size=4, limit=3, perceptual="st-lpips", qdove="q", null_query=[0, 7],
    )  # fmt: skip
    command = settings.command()
    assert command == (
        "dove eval reconstruction --output out --data 'a b' c --limit 3 --batch-size 4 --qdove q "
        "--null-query 0 7 --counts 4 8 --perceptual st-lpips --no-codecs"
    )
    parser = ArgumentParser()
    configure(parser)
    assert settings_of(parser.parse_args(shlex.split(command)[2:])).command() == command


def test_a_report_from_python(tmp_path: Path) -> None:
    stop_at_share(micro()).save_pretrained(tmp_path / "micro")
    settings = EvalSettings(
        measurement="lengths", data=PHOTOS, output=tmp_path / "out", model=tmp_path / "micro", oracle=[24]
    )
    report = evaluate(settings)
    numbers = json.loads((tmp_path / "out" / "report.json").read_text(encoding="utf-8"))
    assert (
        numbers == json.loads(json.dumps(report.json()))
        and numbers["origin"]["command"] == settings.command()
    )
    found = numbers["results"]["lengths"]
    assert found["images"] == 5 and found["oracle"][0]["length"] <= 24
    assert "full knowledge" in (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    only_measured = EvalSettings(
        measurement="lengths", data=PHOTOS, output=tmp_path / "b", model=tmp_path / "micro"
    )
    sections = Evaluation(only_measured).run().sections
    assert sections[0].result["length"] == found["length"] and "oracle" not in sections[0].result
    assert not (tmp_path / "b" / "report.html").exists()


@pytest.fixture
def reloaded() -> Iterator[Callable[[str], None]]:
    """Lets the program's modules load anew, beside a package that cannot be loaded; then all is as before."""
    loaded = dict(sys.modules)
    names: list[str] = []

    def without(package: str) -> None:
        names.extend((package, "dove_eval"))
        for name in loaded:
            if name.partition(".")[0] in names:
                del sys.modules[name]
        sys.modules[package] = None  # type: ignore[assignment]

    yield without
    for name in [name for name in sys.modules if name.partition(".")[0] in names]:
        del sys.modules[name]
    sys.modules.update(loaded)


@pytest.mark.parametrize("package", ["scipy", "jinja2"])
def test_a_missing_extra_is_one_sentence(
    package: str, reloaded: Callable[[str], None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    reloaded(package)
    assert main(["eval", "lengths", "--data", str(PHOTOS), "-o", str(tmp_path / "out")]) == 1
    said = capsys.readouterr().err
    assert len(said.splitlines()) == 1
    assert f"the package {package!r} is not installed: pip install 'dove-ext[eval]'" in said
