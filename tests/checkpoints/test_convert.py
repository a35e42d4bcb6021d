"""`dove convert` on small files in the layouts of the public checkpoints: what goes where."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from dove_ext import DoveModel, OutputError
from dove_ext.checkpoints.convert import check_output, convert, save_conversion
from dove_ext.cli import main
from dove_ext.config import PRESETS
from tests.checkpoints.public_checkpoints import CONFIG, diffusers, pythia, saved, taming
from tests.models.micro import photos

pytestmark = pytest.mark.usefixtures("one_thread")


def test_both_parts(ckpt: Path, neox: Path, base: Path, tmp_path: Path) -> None:
    conversion = convert(vqgan=ckpt, pythia=neox, base=base, name="joined")
    save_conversion(conversion, tmp_path / "out")
    model = DoveModel.from_pretrained(tmp_path / "out")
    assert model.config == replace(CONFIG, name="joined", vqgan=replace(CONFIG.vqgan, codebook_size=24))
    state, original = model.state_dict(), DoveModel.from_pretrained(base).state_dict()
    vqgan, language = taming(), pythia()
    for name, tensor in vqgan.items():
        assert torch.equal(state[f"vqgan.{name}"], tensor)
    for name, tensor in language.items():
        if name.startswith("gpt_neox.") and f"generator.stack.{name[9:]}" in state:
            assert torch.equal(state[f"generator.stack.{name[9:]}"], tensor.float())
            assert torch.equal(state[f"token_decoder.stack.{name[9:]}"], tensor.float())
    assert torch.equal(state["generator.embed_out.weight"], language["embed_out.weight"].float())
    assert set(conversion.untouched) == {
        "generator.from_latent.weight",
        "generator.from_latent.bias",
        "generator.witness",
        "token_decoder.to_latent.weight",
        "token_decoder.to_latent.bias",
    }
    for name in conversion.untouched:
        assert torch.equal(state[name], original[name])
    assert conversion.sources[0].dropped == ("loss.perceptual_loss.lin0.model.1.weight",)
    assert "gpt_neox.embed_in.weight" in conversion.sources[1].dropped
    assert len(conversion.sources[1].dropped) == 1 + 3 * 2
    assert model.encode(photos(1)).tokens.shape[1] == 64


def test_card_names_files_and_licences(ckpt: Path, neox: Path, base: Path, tmp_path: Path) -> None:
    save_conversion(convert(vqgan=ckpt, pythia=neox, base=base), tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    for file in (ckpt, neox):
        assert file.name in card and hashlib.sha256(file.read_bytes()).hexdigest() in card
    assert "## Licence" in card and "`generator.from_latent`" in card and "not trained together" in card


def test_one_part_keeps_the_rest(ckpt: Path, neox: Path, base: Path) -> None:
    original = DoveModel.from_pretrained(base).state_dict()
    for files, prefix in (({"vqgan": ckpt}, "vqgan."), ({"pythia": neox}, "generator.stack.")):
        conversion = convert(base=base, **files)
        state = conversion.model.state_dict()
        assert all(torch.equal(state[name], original[name]) for name in conversion.untouched)
        assert not any(name.startswith(prefix) for name in conversion.untouched)
        assert conversion.base == str(base)


def test_the_rest_is_random_without_a_base(
    neox: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(PRESETS, "small", CONFIG)
    random_state = torch.random.get_rng_state()
    first, second = (convert(pythia=neox, preset_name="small") for _ in range(2))
    assert torch.equal(torch.random.get_rng_state(), random_state)
    assert first.model.config == CONFIG and first.base is None
    assert "vqgan.encoder.conv_in.weight" in first.untouched
    state, same = first.model.state_dict(), second.model.state_dict()
    assert all(torch.equal(state[name], same[name]) for name in state)
    save_conversion(first, tmp_path / "out")
    assert "random weights: `generator.from_latent`" in (tmp_path / "out" / "README.md").read_text()


def test_query_embeddings_are_used_where_the_model_has_them(neox: Path, tmp_path: Path) -> None:
    DoveModel(replace(CONFIG, query_vocab_size=40, query_length=8)).save_pretrained(tmp_path / "base")
    (tmp_path / "base" / "tokenizer.json").write_text("of the base")
    conversion = convert(pythia=neox, base=tmp_path / "base")
    save_conversion(conversion, tmp_path / "out")
    assert (tmp_path / "out" / "tokenizer.json").read_text() == "of the base"
    embedding = conversion.model.generator.embed_in
    assert embedding is not None
    assert torch.equal(embedding.weight, pythia()["gpt_neox.embed_in.weight"].float())
    assert "gpt_neox.embed_in.weight" not in conversion.sources[0].dropped


def test_diffusers_names(base: Path, tmp_path: Path) -> None:
    vqgan = taming()
    theirs = diffusers(vqgan)
    for name in (  # names of a public diffusers VQModel
        "encoder.down_blocks.0.resnets.0.norm1.weight",
        "encoder.down_blocks.0.downsamplers.0.conv.weight",
        "encoder.down_blocks.2.attentions.0.to_q.weight",
        "encoder.down_blocks.2.resnets.0.conv_shortcut.weight",
        "encoder.mid_block.attentions.0.to_out.0.bias",
        "decoder.up_blocks.0.attentions.0.group_norm.weight",
        "decoder.up_blocks.0.upsamplers.0.conv.weight",
        "decoder.conv_norm_out.weight",
    ):
        assert name in theirs
    assert theirs["encoder.mid_block.attentions.0.to_q.weight"].dim() == 2
    conversion = convert(vqgan=saved(theirs, tmp_path / "diffusers.bin"), base=base)
    assert conversion.sources[0].layout == "diffusers VQGAN"
    state = conversion.model.state_dict()
    assert all(torch.equal(state[f"vqgan.{name}"], tensor) for name, tensor in vqgan.items())


# --- Output -------------------------------------------------------------------------------------------


def test_folders_with_other_files_are_left_alone(tmp_path: Path, base: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(OutputError, match="holds other files than a dove model's; choose a new"):
        check_output(tmp_path)
    check_output(base)
    check_output(tmp_path / "new")


# --- The command --------------------------------------------------------------------------------------


def test_command(ckpt: Path, base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    arguments = ["convert", "--vqgan", str(ckpt), "--base", str(base), "-o", str(out)]
    assert main(arguments) == 0
    assert "taming VQGAN" in capsys.readouterr().out
    assert main([*arguments, "--json", "--name", "mine"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["model"] == "mine" and report["codebook_size"] == 24
    assert report["sources"][0]["dropped"] == ["loss.perceptual_loss.lin0.model.1.weight"]
    assert DoveModel.from_pretrained(out).config.name == "mine"


def test_command_on_an_unknown_file(base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tensors = {f"blocks.{i}.w": torch.zeros(64, 64) for i in range(9)} | {"odd": torch.zeros(3, 5, 7)}
    file = saved(tensors, tmp_path / "titok.safetensors")
    out = tmp_path / "out"
    arguments = ["convert", "--vqgan", str(file), "--base", str(base), "-o", str(out)]
    assert main(arguments) == 1
    printed = capsys.readouterr()
    assert "blocks.*.w (9 tensors)  [64, 64]  same shape as generator." in printed.out
    assert "odd  [3, 5, 7]  no tensor of ours has this shape" in printed.out
    assert "is no VQGAN checkpoint of a known layout; nothing was written" in printed.err
    assert main([*arguments, "--json"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert len(report["tensors"]) == 10 and report["path"] == str(file)
    assert not out.exists()


def test_command_line_errors(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["convert", "-o", str(tmp_path / "out")]) == 2
    assert "there is nothing to convert; give --vqgan FILE, --pythia FILE, or both" in capsys.readouterr().err
    assert main(["convert", "--vqgan", "x", "--preset", "huge", "-o", str(tmp_path / "out")]) == 2
    assert (
        "--preset 'huge' is unknown; known are dove-base, dove-base-q, dove-tiny" in capsys.readouterr().err
    )
    (tmp_path / "notes").write_text("")
    assert main(["convert", "--vqgan", "x", "-o", str(tmp_path)]) == 1
    assert "holds other files than a dove model's" in capsys.readouterr().err
