"""Model folders: what is saved is what is loaded, and names that are nothing are refused."""

from __future__ import annotations

import stat
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from dove_ext import CheckpointError, DoveConfig, DoveError, DoveModel, OutputError, StackConfig, VQGANConfig
from dove_ext.config import PRESETS
from tests.models.micro import micro, photos

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "micro"
    micro().save_pretrained(folder)
    return folder


def test_round_trip(saved: Path) -> None:
    model = micro()
    again = DoveModel.from_pretrained(saved)
    assert again.config == model.config
    assert (saved / "config.json").read_text() == again.config.to_json()
    state, restored = model.state_dict(), again.state_dict()
    assert state.keys() == restored.keys()
    assert all(torch.equal(state[name], restored[name]) for name in state)
    assert not again.training
    expected = model.encode(photos(2))
    assert torch.equal(again.encode(photos(2)).tokens, expected.tokens)
    assert sorted(p.name for p in saved.iterdir()) == ["README.md", "config.json", "model.safetensors"]


def test_other_users_may_read_it(saved: Path) -> None:
    """As any file that the user makes, under the usual umask."""
    modes = {stat.S_IMODE(file.stat().st_mode) for file in saved.iterdir()}
    assert len(modes) == 1


def test_a_default_dtype_or_device_rounds_nothing(saved: Path) -> None:
    expected = DoveModel.from_pretrained(saved).state_dict()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device("meta"):
            model = DoveModel.from_pretrained(saved)
    finally:
        torch.set_default_dtype(torch.float32)
    state = model.state_dict() | dict(model.named_buffers())
    assert {str(t.device) for t in state.values()} == {"cpu"}
    assert {t.dtype for t in state.values()} == {torch.float32, torch.int32}
    assert all(torch.equal(state[name], tensor) for name, tensor in expected.items())


@pytest.mark.parametrize("name", PRESETS)
def test_presets_survive_json(name: str) -> None:
    assert DoveConfig.from_json(PRESETS[name].to_json()) == PRESETS[name]


def test_every_setting_survives_json() -> None:
    config = DoveConfig(
        name="odd",
        image_size=64,
        vqgan=VQGANConfig(32, (1, 2, 3), 1, 2, 48, 0, 2, True),
        generator=StackConfig(96, 1, 3, 100, 0.5, 500.0, 1e-6),
        token_decoder=StackConfig(96, 2, 6, 64, 1.0),
        vocab_size=7,
        eos_id=3,
        head_bias=True,
        eos_prior=0.2,
        prefix_attention="bidirectional",
        attend_padding=False,
        gaussian=True,
        query_vocab_size=11,
        query_length=5,
    )
    assert DoveConfig.from_json(config.to_json()) == config


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_saving_in_half_precision(tmp_path: Path, dtype: torch.dtype) -> None:
    model = micro(shortcut=True)
    model.save_pretrained(tmp_path, dtype=dtype, card="# mine\n")
    state = model.state_dict()
    for name, tensor in load_file(tmp_path / "model.safetensors").items():
        if state[name].is_floating_point():
            assert torch.equal(tensor, state[name].to(dtype))
        else:
            assert torch.equal(tensor, state[name])
    assert (tmp_path / "README.md").read_text() == "# mine\n"
    again = DoveModel.from_pretrained(tmp_path)
    assert again.dtype == torch.float32
    assert torch.equal(again.vqgan.quant_conv.weight, state["vqgan.quant_conv.weight"].to(dtype).float())
    assert DoveModel.from_pretrained(tmp_path, dtype=torch.bfloat16).dtype == torch.bfloat16


def test_saving_over_a_model_replaces_it(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    micro().save_pretrained(folder)
    other = micro(name="other")
    other.generator.embed_out.bias.data.fill_(0.5)
    other.save_pretrained(folder)
    again = DoveModel.from_pretrained(folder)
    assert again.config.name == "other" and bool((again.generator.embed_out.bias == 0.5).all())
    assert not [p for p in folder.iterdir() if p.name.startswith(".")]


def test_weights_that_do_not_fit_the_dtype(tmp_path: Path) -> None:
    model = micro()
    model.vqgan.quant_conv.bias.data[0] = 1e6
    with pytest.raises(ValueError, match=r"'vqgan.quant_conv.bias' is not finite as torch.float16"):
        model.save_pretrained(tmp_path / "half", dtype=torch.float16)
    assert not (tmp_path / "half" / "model.safetensors").exists()


@pytest.mark.parametrize(
    ("how", "sentence"),
    [
        ({"dtype": "bfloat16"}, "dtype must be a floating dtype such as torch.float32, got 'bfloat16'"),
        ({"device": "gpu"}, "device 'gpu' is unknown; use cpu, cuda or cuda:N"),
        ({"device": "cuda:77"}, "device 'cuda:77' is not there: torch sees [0-9]* CUDA devices"),
    ],
)
def test_what_a_model_cannot_be_loaded_as(saved: Path, how: dict[str, Any], sentence: str) -> None:
    with pytest.raises((ValueError, DoveError), match=sentence):
        DoveModel.from_pretrained(saved, **how)


@pytest.mark.parametrize("dtype", [torch.int8, torch.complex64])
def test_weights_are_not_saved_as_what_is_not_loaded(tmp_path: Path, dtype: torch.dtype) -> None:
    with pytest.raises(ValueError, match=f"dtype must be a floating dtype such as .*, got {dtype}"):
        micro().save_pretrained(tmp_path / "model", dtype=dtype)
    assert not (tmp_path / "model").exists()


def test_unwritable_place(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OutputError, match="a file is in the way"):
        micro().save_pretrained(tmp_path / "file")


# --- Names --------------------------------------------------------------------------------------------


def test_names_that_are_nothing(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no weights of 'dove-base' come with the package"):
        DoveModel.from_pretrained("dove-base")
    with pytest.raises(CheckpointError, match=r"there is no model at '\./nowhere'; give a shipped name"):
        DoveModel.from_pretrained("./nowhere")
    file = tmp_path / "model.safetensors"
    file.write_bytes(b"")
    with pytest.raises(CheckpointError, match="is a file; give the model's folder"):
        DoveModel.from_pretrained(file)
    with pytest.raises(
        ValueError, match="no preset is named 'dove-huge'; known are dove-base, dove-base-q, dove-tiny"
    ):
        DoveModel("dove-huge")
    with pytest.raises(ValueError, match="dtype must be a floating dtype"):
        DoveModel.from_pretrained(tmp_path, dtype=torch.int8)
