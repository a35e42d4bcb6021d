"""What `dove convert` refuses: code in pickles, damaged, foreign and misshapen files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dove_ext import CheckpointError
from dove_ext.checkpoints.convert import convert
from dove_ext.checkpoints.read import UnknownLayoutError, read_foreign, summarize
from tests.checkpoints.public_checkpoints import pythia, saved, taming

pytestmark = pytest.mark.usefixtures("one_thread")


class Malicious:
    """Unpickling this writes a file."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> Any:
        return (Path.write_text, (self.target, "owned"))


def refusal(**files: Any) -> str:
    with pytest.raises(CheckpointError) as caught:
        convert(**files)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize("zipped", [True, False])
def test_pickled_code_does_not_run(base: Path, tmp_path: Path, zipped: bool) -> None:
    file, target = tmp_path / "evil.ckpt", tmp_path / "owned"
    torch.save(
        {"state_dict": taming(), "hook": Malicious(target)}, file, _use_new_zipfile_serialization=zipped
    )
    message = refusal(vqgan=file, base=base)
    assert "was not opened: its pickle asks for" in message and "safetensors" in message
    assert not target.exists()


def test_lightning_callbacks_do_not_stop_it(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lightning's checkpoints refer to its classes; they are read without Lightning."""
    import sys
    import types

    module = types.ModuleType("pytorch_lightning.callbacks.model_checkpoint")
    module.ModelCheckpoint = type("ModelCheckpoint", (), {"__module__": module.__name__})  # type: ignore[attr-defined]
    for name in ("pytorch_lightning", "pytorch_lightning.callbacks", module.__name__):
        monkeypatch.setitem(sys.modules, name, module)
    file = tmp_path / "last.ckpt"
    torch.save({"callbacks": {module.ModelCheckpoint: {"best": 1}}, "state_dict": taming()}, file)
    monkeypatch.undo()
    assert "pytorch_lightning" not in sys.modules
    assert convert(vqgan=file, base=base).sources[0].layout == "taming VQGAN"


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "is empty; was the download complete?"),
        (b"<html>sign in</html>", "is neither a safetensors file nor a PyTorch checkpoint"),
        (b"PK\x03\x04" + b"\0" * 200, "is a damaged PyTorch checkpoint ("),
        (b"\x80\x02}q\x00", "damaged"),
        (b"\x80\x02K\x01.", "damaged"),
        (b"\xff\0\0\0\0\0\0\0{" + b" " * 50, "is a damaged safetensors file ("),
    ],
    ids=["empty", "html", "zip", "cut pickle", "number", "safetensors"],
)
def test_damaged_files(tmp_path: Path, content: bytes, sentence: str) -> None:
    file = tmp_path / "file.ckpt"
    file.write_bytes(content)
    assert sentence in refusal(vqgan=file)


def test_files_that_are_not_there(tmp_path: Path) -> None:
    assert refusal(vqgan=tmp_path / "x.ckpt").endswith(
        "cannot be read: No such file or directory; check the path"
    )
    assert refusal(pythia=tmp_path).endswith("is a folder; give the weights file in it")
    torch.save({"epoch": 3}, tmp_path / "none.ckpt")
    assert "holds no tensors" in refusal(vqgan=tmp_path / "none.ckpt")


def test_truncated_checkpoint(ckpt: Path, neox: Path) -> None:
    for file, option in ((ckpt, "vqgan"), (neox, "pythia")):
        file.write_bytes(file.read_bytes()[:-1000])
        assert "damaged" in refusal(**{option: file})


def test_gumbel_vqgan_is_refused(tmp_path: Path, base: Path) -> None:
    tensors = taming() | {"quantize.proj.weight": torch.zeros(24, 16, 1, 1)}
    tensors["quantize.embed.weight"] = tensors.pop("quantize.embedding.weight")
    message = refusal(vqgan=saved(tensors, tmp_path / "gumbel.ckpt"), base=base)
    assert "is a Gumbel VQGAN (quantize.embed, quantize.proj)" in message


def test_swapped_files(ckpt: Path, neox: Path, base: Path) -> None:
    assert refusal(vqgan=neox).endswith("is a GPT-NeoX (Pythia) file, not a VQGAN; give it as --pythia")
    assert refusal(pythia=ckpt).endswith("is a VQGAN file, not Pythia; give it as --vqgan")
    ours = base / "model.safetensors"
    assert refusal(vqgan=ours) == f"{ours} is a dove model already; give its folder as --base"


def test_pythia_without_a_part(base: Path, tmp_path: Path) -> None:
    def without(*ends: str) -> str:
        tensors = {name: tensor for name, tensor in pythia().items() if not name.endswith(ends)}
        return refusal(pythia=saved(tensors, tmp_path / "p.safetensors"), base=base)

    norm, layer = "'gpt_neox.final_layer_norm.weight'", "'gpt_neox.layers.0.mlp.dense_h_to_4h.weight'"
    heads = "'embed_out.weight' or 'lm_head.weight'"
    for ends, lacks in (
        (("embed_out.weight",), heads),
        (("final_layer_norm.weight",), norm),
        (("dense_h_to_4h.weight", "embed_out.weight"), f"{layer}, {heads}"),
    ):
        assert f"is no whole GPT-NeoX checkpoint: it lacks {lacks}; nothing was written" in without(*ends)
    inner = {name.removeprefix("gpt_neox."): tensor for name, tensor in pythia().items()}
    message = refusal(pythia=saved(inner, tmp_path / "p.safetensors"), base=base)
    assert f"it lacks {layer}, {norm}; nothing" in message
    both = pythia() | {"lm_head.weight": torch.zeros(40, 64)}
    message = refusal(pythia=saved(both, tmp_path / "p.safetensors"), base=base)
    assert message.endswith("has two heads, 'embed_out.weight' and 'lm_head.weight'; remove one")


def test_wrong_shapes(base: Path, tmp_path: Path) -> None:
    def vqgan(**changes: Tensor | None) -> str:
        tensors = {n: t for n, t in (taming() | changes).items() if t is not None}
        message = refusal(vqgan=saved(tensors, tmp_path / "v.safetensors"), base=base)
        return message.removeprefix(f"{tmp_path / 'v.safetensors'} (taming VQGAN)")

    remedy = "; choose the --preset or --base of its shape"
    assert vqgan(**{"quant_conv.bias": torch.zeros(9)}) == (
        f": 'vqgan.quant_conv.bias' is [9], the configuration asks for [16]{remedy}"
    )
    assert vqgan(**{"quantize.embedding.weight": torch.zeros(24, 8)}) == (
        f": 'vqgan.quantize.embedding.weight' is [24, 8], the configuration asks for [24, 16]{remedy}"
    )
    assert vqgan(**{"quantize.embedding.weight": torch.zeros(24)}).startswith(": 'vqgan.quantize.embedding")
    assert vqgan(**{"decoder.conv_out.bias": None}) == (
        f" lacks 'vqgan.decoder.conv_out.bias'{remedy}, or get the whole file"
    )
    assert vqgan(**{"encoder.down.1.attn.0.q.weight": torch.zeros(1)}) == (
        " has a tensor for 'vqgan.encoder.down.1.attn.0.q.weight', which this configuration has no place "
        f"for{remedy}"
    )
    assert vqgan(**{"quant_conv.bias": torch.full((16,), float("inf"))}) == (
        ": 'vqgan.quant_conv.bias' is not all finite floats; the file is damaged"
    )
    message = refusal(pythia=saved(pythia(layers=3), tmp_path / "p.safetensors"), base=base)
    assert "has a tensor for 'generator.stack.layers.2." in message
    message = refusal(pythia=saved(pythia(layers=1), tmp_path / "p.safetensors"), base=base)
    assert "lacks 'generator.stack.layers.1." in message


def test_unknown_files_are_described_and_never_guessed(base: Path, tmp_path: Path) -> None:
    file = saved({f"blocks.{i}.w": torch.zeros(64, 64) for i in range(9)}, tmp_path / "titok.safetensors")
    for option in ("vqgan", "pythia"):
        with pytest.raises(UnknownLayoutError, match="nothing was written"):
            convert(base=base, **{option: file})
    matches = [
        {"name": f"a.{i}.{'b' * i}", "shape": [1], "dtype": "float32", "same_shape": []} for i in range(80)
    ]
    lines = summarize(matches, limit=60)
    assert len(lines) == 61 and lines[-1] == "... 20 lines more; --json lists all tensors"


def test_nested_dictionaries_are_joined(tmp_path: Path) -> None:
    torch.save({"ema": {"encoder": {"w": torch.zeros(2)}}, "step": 4}, tmp_path / "alit.pt")
    assert list(read_foreign(tmp_path / "alit.pt").tensors) == ["ema.encoder.w"]


def test_a_dictionary_that_holds_itself_is_refused(base: Path, tmp_path: Path) -> None:
    content: dict[str, Any] = {"weight": torch.zeros(2)}
    content["self"] = content
    torch.save(content, tmp_path / "circle.pt")
    words = "circle.pt holds dictionaries within one another without end"
    assert words in refusal(vqgan=tmp_path / "circle.pt", base=base)
