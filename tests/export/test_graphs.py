"""Graphs of a model: they run without this package's ops, for any batch, and give what the library gives."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dove_ext.cli import main
from dove_ext.errors import ExportError
from dove_ext.export import ABOUT, BATCH, PARTS, SUFFIXES, Decoder, Encoder, export
from dove_ext.models.dove import DoveModel
from dove_ext.tokens.lengths import LengthRule
from tests.models.micro import asked, micro, photos, stop_at_share

BATCHES = (1, 3, 8)


@pytest.fixture(scope="module")
def model() -> DoveModel:
    return stop_at_share(micro(shortcut=True))  # as dove-tiny has it; test_onnx has one without


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("programs")


@pytest.fixture(scope="module")
def programs(model: DoveModel, folder: Path) -> dict[str, Any]:
    return {file.stem: torch.export.load(file) for file in export(model, "torch-export", folder)}


def pictures(count: int) -> Tensor:
    return photos(count).float() / 255


@pytest.mark.parametrize("count", BATCHES)
def test_they_give_the_librarys_tokens_lengths_and_pictures(
    model: DoveModel, programs: dict[str, Any], count: int
) -> None:
    assert count != BATCH
    x = pictures(count)
    expected = model.encode(x)
    tokens, lengths = programs["encoder"].module()(x)
    assert torch.equal(lengths, expected.lengths)
    whole = model.encode(x, num_tokens=model.config.num_tokens).to_padded()[0]
    torch.testing.assert_close(tokens, whole, atol=1e-4, rtol=1e-4)
    packed, ends = programs["packed_encoder"].module()(x)
    assert torch.equal(ends, expected.cu_seqlens)
    torch.testing.assert_close(packed, expected.tokens, atol=1e-4, rtol=1e-4)
    decoded = programs["decoder"].module()(tokens, lengths)
    torch.testing.assert_close(decoded, model.decode(expected), atol=1e-4, rtol=1e-4)


def test_lengths_differ_among_the_pictures(model: DoveModel) -> None:
    assert len(set(model.encode(pictures(8)).lengths.tolist())) > 2


def test_graphs_hold_no_op_of_ours_and_no_size_of_the_example(programs: dict[str, Any]) -> None:
    for program in programs.values():
        calls = [node for node in program.graph.nodes if node.op == "call_function"]
        assert len(calls) > 50
        assert not [node for node in calls if "dove" in str(node.target)]


def test_about_tells_what_goes_in_and_out(model: DoveModel, programs: dict[str, Any], folder: Path) -> None:
    about = json.loads((folder / ABOUT).read_text())
    assert about["format"] == "torch-export" and about["model"] == model.config.name
    assert set(about["parts"]) == set(programs)
    part = about["parts"]["packed_encoder"]
    assert part["file"] == "packed_encoder.pt2"
    assert part["inputs"]["pixels"] == ["float32", ["batch", 3, 32, 32], "0 to 1"]
    assert part["outputs"] == {
        "tokens": ["float32", ["total", model.config.token_width]],
        "cu_seqlens": ["int32", ["batch + 1"]],
    }
    assert len(list(folder.iterdir())) == 4


@pytest.mark.parametrize(
    "rule", [{"num_tokens": 5}, {"min_tokens": 9}, {"max_tokens": 9}, {"eos_threshold": 0.05}]
)
def test_lengths_can_be_decided_before(model: DoveModel, rule: dict[str, Any]) -> None:
    x = pictures(5)
    with torch.no_grad():
        tokens, lengths = Encoder(model, LengthRule(**rule))(x)
        whole, _ = Encoder(model, LengthRule())(x)
    assert torch.equal(lengths, model.encode(x, **rule).lengths)
    most = rule.get("num_tokens") or rule.get("max_tokens") or model.config.num_tokens
    assert tokens.shape[1] == most  # the others do not run
    torch.testing.assert_close(tokens, whole[:, :most], atol=1e-5, rtol=1e-5)


def test_only_the_positions_asked_for_run(model: DoveModel, tmp_path: Path) -> None:
    encoder, decoder = (
        torch.export.load(file).module()
        for file in export(model, "torch-export", tmp_path, parts=("encoder", "decoder"), num_tokens=5)
    )
    x, expected = pictures(3), model.encode(pictures(3), num_tokens=5)
    tokens, lengths = encoder(x)
    assert tokens.shape == (3, 5, model.config.token_width) and lengths.tolist() == [5, 5, 5]
    torch.testing.assert_close(tokens.flatten(0, 1), expected.tokens, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(decoder(tokens, lengths), model.decode(expected), atol=1e-4, rtol=1e-4)
    about = json.loads((tmp_path / ABOUT).read_text())["parts"]
    shape = ["float32", ["batch", 5, model.config.token_width]]
    assert about["encoder"]["outputs"]["tokens"] == about["decoder"]["inputs"]["tokens"] == shape


def test_bfloat16() -> None:
    low, x = stop_at_share(micro()).to(torch.bfloat16), pictures(3)
    with torch.no_grad():
        tokens, lengths = Encoder(low, LengthRule())(x)
        decoded = Decoder(low)(tokens, lengths)
    assert tokens.dtype == torch.bfloat16 and decoded.dtype == torch.float32
    assert torch.equal(tokens, low.encode(x, num_tokens=low.config.num_tokens).to_padded()[0])
    assert torch.equal(lengths, low.encode(x).lengths)


def test_a_model_that_reads_queries_is_asked_for_the_whole_picture(tmp_path: Path) -> None:
    dove, x = asked(tmp_path), pictures(3)
    with torch.no_grad():
        tokens, lengths = Encoder(dove, LengthRule())(x)
    torch.testing.assert_close(
        tokens, dove.encode(x, num_tokens=dove.config.num_tokens).to_padded()[0], atol=1e-5, rtol=1e-5
    )
    assert torch.equal(lengths, dove.encode(x).lengths)


def test_onnx_without_its_packages_is_one_sentence(
    model: DoveModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "onnxscript", None)
    with pytest.raises(ExportError, match=r"pip install 'dove-ext\[export\]'"):
        export(model, "onnx", tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_onnx_has_no_bfloat16(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"take no bfloat16 .* export float32, or choose"):
        export(micro().to(torch.bfloat16), "onnx", tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_aoti_without_a_compiler_is_one_sentence(
    model: DoveModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torch._inductor import config

    monkeypatch.setattr(config.cpp, "cxx", (None, "/nowhere/g++"))
    with pytest.raises(
        ExportError, match=r"needs a C\+\+ compiler, and '/nowhere/g\+\+' does not run; install"
    ):
        export(model, "aoti", tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_refusals(model: DoveModel, tmp_path: Path) -> None:
    for kwargs, sentence in (
        ({"to": "tflite"}, "there is no format 'tflite'; choose one of torch-export, onnx, aoti"),
        ({"parts": ("head",)}, "there is no part 'head'"),
        ({"num_tokens": 65}, "num_tokens must be between 1 and 64"),
    ):
        with pytest.raises(ValueError, match=sentence):
            export(model, **{"to": "torch-export", "folder": tmp_path / "new", **kwargs})
    assert not (tmp_path / "new").exists()


def test_the_command_knows_the_same_formats_and_parts() -> None:
    """It names them itself: the library's own names come with torch."""
    from dove_ext.cli import export as verb

    assert set(verb.FORMATS) == set(SUFFIXES) and tuple(PARTS) == verb.PARTS


def test_command(model: DoveModel, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model.save_pretrained(tmp_path / "model")
    line = ["export", str(tmp_path / "model"), "--to", "torch-export", "-o", str(tmp_path / "out")]
    assert main([*line, "--parts", "encoder", "--min-tokens", "20", "--max-tokens", "30", "--json"]) == 0
    (file,) = json.loads(capsys.readouterr().out)["files"]
    tokens, lengths = torch.export.load(file).module()(pictures(4))
    assert tokens.shape[1] == 30 and int(lengths.max()) == 30
    own = model.encode(pictures(4)).lengths
    assert lengths.tolist() == own.clamp(20, 30).tolist() != own.clamp_max(30).tolist()
    assert main([*line, "--num-tokens", "65"]) == 1
    assert "num_tokens must be between 1 and 64" in capsys.readouterr().err
    assert main([*line, "--num-tokens", "5", "--max-tokens", "7"]) == 2
