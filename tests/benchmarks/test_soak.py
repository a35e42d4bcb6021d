"""The soak notices what it is to notice, and a short one of a small model finds nothing."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import soak
from dove_ext import DoveModel, DoveTokens
from tests.models.micro import micro

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("model")
    micro().save_pretrained(folder)
    return str(folder)


def run(model: str, path: Path, batches: int = 12) -> tuple[int, dict[str, Any]]:
    options = ["--hours", "0", "--batches", str(batches), "--pictures", "3", "--every", "0", "--warm-up", "2"]
    code = soak.main([*options, "--model", model, "--json", str(path)])
    (row,) = json.loads(path.read_text())["rows"]
    return code, row


@pytest.fixture
def few_controls(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that a model of a few tokens has room for."""
    options: list[dict[str, Any]] = [{}, {"num_tokens": 2}, {"token_budget": 0.5}, {"return_p_eos": True}]
    monkeypatch.setattr(soak, "any_control", lambda chance: chance.choice(options))


@pytest.mark.usefixtures("few_controls")
def test_nothing_is_found(saved: str, tmp_path: Path) -> None:
    code, row = run(saved, tmp_path / "soak.json")
    assert row["batches"] == 12 == sum(row["controls"].values()) and len(row["controls"]) > 2
    assert row["images"] >= 12 and row["faults"] == [] and row["memory"]["samples"] == 10
    assert code == (0 if row["memory"]["flat"] else 1)  # a dozen batches are no measure of memory


@pytest.mark.usefixtures("few_controls")
def test_values_and_lengths_of_company_are_noticed(
    saved: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode = DoveModel.encode

    def worse(self: DoveModel, images: Any, **how: Any) -> DoveTokens:
        tokens = encode(self, images, **how)
        if len(images) == 1 or how.get("num_tokens") or how.get("token_budget"):
            return tokens
        others = [row + 1e-3 * (number % 2) for number, row in enumerate(tokens.to_list())]
        if not how.get("return_p_eos"):
            others[0] = others[0][:-1]
        return DoveTokens.from_list(others, tokens.num_slots, p_eos=tokens.p_eos)

    monkeypatch.setattr(DoveModel, "encode", worse)
    code, row = run(saved, tmp_path / "soak.json")
    assert code == 1 and row["largest"] == pytest.approx(1e-3, rel=0.1)
    assert any("off" in fault for fault in row["faults"])
    assert any(fault.get("how_near", 0) > soak.NEAR for fault in row["faults"])


def test_a_leak_is_noticed() -> None:
    flat = [(number / 120, 10**9 + 10**6 * (number % 3)) for number in range(240)]
    found = soak.flatness(flat)
    assert found["flat"] and abs(found["slope_per_hour"]) < 1e-3
    grows = [(hour, size + int(3e7 * hour)) for hour, size in flat]
    found = soak.flatness(grows)
    assert not found["flat"] and found["slope_per_hour"] == pytest.approx(0.03, rel=0.05)
    assert soak.flatness(flat[:7]) == {"samples": 7}


def test_pictures_are_the_same_in_all_kinds(tmp_path: Path) -> None:
    from dove_ext.images.prepare import prepare_images

    for picture in soak.pool(tmp_path, 3):
        seen = prepare_images([picture.given(kind) for kind in soak.KINDS], 64)
        assert all(torch.allclose(image, seen[0], atol=2 / 255) for image in seen)


def test_controls_are_those_of_encode() -> None:
    chance = random.Random(0)
    names = {name for _ in range(200) for name in soak.any_control(chance) or {"default": None}}
    lengths = {"num_tokens", "max_tokens", "eos_threshold", "token_budget", "target_psnr"}
    assert names == {"default", "tiles", "return_p_eos", *lengths}
