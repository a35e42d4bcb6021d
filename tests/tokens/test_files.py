"""Files of DoveTokens: what is saved is what is loaded, and what could not be loaded is not saved."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from dove_ext.errors import TokensError
from dove_ext.tokens import DoveTokens
from dove_ext.tokens.mapped import MappedTokens
from tests.tokens.test_container import SLOTS, assert_holds, cu, make


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_file_round_trip(dtype: torch.dtype, tmp_path: Path) -> None:
    parts, tokens = make([3, 1, 5], names=("ä/b.jpg", "\udcff", "c"))
    path = tmp_path / "tokens.safetensors"
    tokens.to(dtype).save(path)
    loaded = DoveTokens.load(path)
    assert_holds(loaded, [p.to(dtype) for p in parts])
    assert (loaded.num_slots, loaded.model, loaded.names) == (SLOTS, "m", tokens.names)
    assert loaded.p_eos is not None and tokens.p_eos is not None and torch.equal(loaded.p_eos, tokens.p_eos)


def test_qualities_are_kept_in_a_newer_file(tmp_path: Path) -> None:
    path, qualities = tmp_path / "tokens.safetensors", torch.tensor([33.0, 28.5])
    make([3, 1], psnr=qualities)[1].save(path)
    loaded = DoveTokens.load(path)
    assert loaded.psnr is not None and torch.equal(loaded.psnr, qualities)
    for tokens, version in ((loaded, "2"), (loaded.truncate(2), "1")):
        tokens.save(path)
        with safe_open(path, framework="pt") as file:
            assert file.metadata()["version"] == version


def test_file_of_a_slice_holds_only_the_slice(tmp_path: Path) -> None:
    parts, tokens = make([3, 1, 5], p_eos=None, names=None, model=None)
    tokens[1:2].save(tmp_path / "t.safetensors")
    loaded = DoveTokens.load(tmp_path / "t.safetensors")
    assert_holds(loaded, parts[1:2])
    assert (loaded.p_eos, loaded.model, loaded.names) == (None, None, None)


def test_file_of_strided_tokens(tmp_path: Path) -> None:
    strided = torch.arange(12.0).view(3, 4).T
    DoveTokens.from_padded(strided[None], [4]).save(tmp_path / "t.safetensors")
    DoveTokens(strided, cu(0, 4), 4).save(tmp_path / "u.safetensors")
    for name in ("t", "u"):
        assert torch.equal(DoveTokens.load(tmp_path / f"{name}.safetensors").tokens, strided)


def test_existing_file_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "t.safetensors"
    make([3])[1].save(path)
    make([1, 2])[1].save(path)
    assert len(DoveTokens.load(path)) == 2
    assert [p.name for p in tmp_path.iterdir()] == ["t.safetensors"]


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"tokens": torch.full((4, 3), float("nan"))}, "its tokens hold NaN or infinite values"),
        ({"tokens": torch.full((4, 3), float("inf"))}, "its tokens hold NaN or infinite values"),
        ({"tokens": torch.ones(4, 3).to(torch.float8_e4m3fn)}, "tokens of dtype torch.float8_e4m3fn are not"),
        ({"p_eos": torch.full((2, SLOTS), 1.5)}, "its p_eos holds values that are not probabilities"),
        ({"psnr": torch.tensor([30.0, float("nan")])}, "its psnr holds NaN or infinite values"),
        ({"names": ("a", 7)}, "model and names must be str, got 7"),
        ({"names": (Path("a"), "b")}, "model and names must be str, got .*Path"),
        ({"model": 0}, "model and names must be str, got 0"),
    ],
)
def test_what_could_not_be_loaded_is_not_saved(fields: dict[str, Any], words: str, tmp_path: Path) -> None:
    good: dict[str, Any] = {"tokens": torch.ones(4, 3), "cu_seqlens": cu(0, 3, 4), "num_slots": SLOTS}
    with pytest.raises(TokensError, match=f"the batch to save is not valid: {words}"):
        DoveTokens(**good | fields).save(tmp_path / "t.safetensors")
    assert not list(tmp_path.iterdir())


def test_the_same_tokens_are_the_same_bytes(tmp_path: Path) -> None:
    tokens = make([3, 1], names=("a", "b"), model="m")[1]
    for name in range(8):  # safetensors has an order of chance for what is beside the tensors
        tokens.save(tmp_path / f"{name}")
    assert len({(tmp_path / f"{name}").read_bytes() for name in range(8)}) == 1


def test_pictures_of_a_file_one_at_a_time(tmp_path: Path) -> None:
    tokens = make([3, 1, 5], names=("a", "b", "c"), model="m", p_eos=torch.rand(3, SLOTS))[1]
    tokens.save(tmp_path / "t")
    mapped = MappedTokens(tmp_path / "t")
    assert len(mapped) == 3 and mapped.names == ("a", "b", "c")
    for i in (2, 0, 1, -1):
        for name in ("tokens", "p_eos", "cu_seqlens"):
            assert torch.equal(getattr(mapped[i], name), getattr(tokens[i], name)), name
        assert (mapped[i].names, mapped[i].model) == (tokens[i].names, "m")
    with pytest.raises(IndexError):
        mapped[3]
    (tmp_path / "t").write_bytes((tmp_path / "t").read_bytes()[:-1])
    with pytest.raises(TokensError, match="is damaged, cut short"):
        MappedTokens(tmp_path / "t")
