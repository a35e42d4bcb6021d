"""What `dove bench` counts, plans and times."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import timing
from benchmarks.tokenizers import build, flops, llm, measure, parts, systems
from benchmarks.tokenizers.eager import Eager
from benchmarks.tokenizers.peers.alit import ALIT
from benchmarks.tokenizers.peers.maskgit_vqgan import MaskGitVQGAN
from benchmarks.tokenizers.peers.titok import Shape, TiTok
from benchmarks.tokenizers.peers.vqgan import VQGAN
from benchmarks.tokenizers.stops import fit_eos
from dove_ext import DoveConfig, DoveModel, DoveTokens, StackConfig, VQGANConfig
from dove_ext.errors import DoveError

CPU = torch.device("cpu")
SMALL = StackConfig(hidden=64, layers=2, heads=2, mlp=128)
TOY = DoveConfig(
    image_size=32,
    vqgan=VQGANConfig(channels=32, channel_multipliers=(1, 2), encoder_blocks=1, decoder_blocks=1,
                      latent_channels=32, codebook_size=0),
    generator=SMALL, token_decoder=SMALL, vocab_size=300,
)  # fmt: skip


# --- Counting ---------------------------------------------------------------------------------------------


def test_flops_are_the_floors_of_the_shapes() -> None:
    counted = flops.of_system(systems.find("dove-base-256", build.OURS))
    assert counted["VQGAN encoder"] == pytest.approx(138, rel=0.01)
    assert counted["VQGAN decoder"] == pytest.approx(253, rel=0.01)
    # Linear layers of 512 positions (19.3), causal pairs, H_v's projection; 257 words at 256 positions, and
    # the vocabulary once. Of H_v the last layer makes queries, keys and values only.
    linear, pairs = 2 * 6 * 12 * 512**2 * 512 / 1e9, 6 * 4 * 512 * (512 * 513 / 2) / 1e9
    assert linear == pytest.approx(19.3, rel=0.01)
    scan = 2 * 512 * (256 * 257 + 50304) / 1e9
    projection = 2 * 256 * 256 * 512 / 1e9
    skipped = 2 * 9 * 512**2 * 256 / 1e9 + 4 * 512 * (256 * 257 / 2) / 1e9
    generator = linear + pairs + projection + scan - skipped
    assert counted[build.GENERATOR] == pytest.approx(generator, rel=1e-3)
    decoder = counted["decode"] - counted["VQGAN decoder"] - projection - 6 * 4 * 512 * 256**2 / 1e9
    assert decoder == pytest.approx(9.7, rel=0.01)


def test_eager_counts_the_whole_vocabulary() -> None:
    counted = flops.of_system(systems.find("dove-base, PyTorch's ops", build.EAGER))
    few = flops.of_system(systems.find("dove-base-32", build.OURS))
    assert counted[build.GENERATOR] > 19.3 + 13.2
    assert few[build.GENERATOR] < 12


# --- The pieces -------------------------------------------------------------------------------------------


def test_a_random_model_stops_where_it_is_told_to() -> None:
    torch.manual_seed(0)
    model = DoveModel(TOY).eval()
    pictures = build.pictures(4, 32)
    wanted = [100] * 4  # at this width; the paper's is wide enough for a length of each image's own
    with torch.no_grad():
        assert model.encode(pictures).lengths.tolist() == [256] * 4
        fit_eos(model, model.vqgan.encode(pictures / 127.5 - 1), wanted)
    found = model.encode(pictures).lengths.tolist()
    assert all(abs(a - b) <= 1 for a, b in zip(found, wanted, strict=True)), found


def test_eager_computes_what_the_model_computes() -> None:
    torch.manual_seed(0)
    model = DoveModel(TOY).eval()
    pictures = build.pictures(3, 32)
    with torch.no_grad():
        latents = model.vqgan.encode(pictures / 127.5 - 1)
        fit_eos(model, latents, [120] * 3)
        tokens, lengths = Eager(model)(latents)
    ours = model.encode(pictures)
    assert ours.lengths.tolist() == lengths.tolist()
    padded, _ = ours.to_padded()
    torch.testing.assert_close(padded, tokens[:, : padded.shape[1]], atol=1e-4, rtol=1e-4)


def test_slow_candidates_skip_the_warm_up_and_later_rounds() -> None:
    calls = {"a": 0, "b": 0}

    def count(name: str) -> None:
        calls[name] += 1

    times = timing.interleave(
        {name: lambda n=name: count(n) for name in calls},
        seconds=0.05, min_rounds=3, max_rounds=10, warmup=2, slow={"b"},
    )  # fmt: skip
    assert calls == {"a": 12, "b": 3}
    assert {name: len(values) for name, values in times.items()} == {"a": 10, "b": 3}


def test_a_peer_that_fails_is_a_gap_and_ours_is_an_error() -> None:
    def broken(*_: object) -> dict[str, Any]:
        return {"encode": lambda: lambda: 1 / 0}

    peer = systems.System("peer", build.EAGER, broken, 32)
    rows = measure.run_group(systems.Group("g", ("encode",), ((peer, 1),), 0.0, 1), CPU, lambda _: None)
    assert rows[0]["missing"] == "ZeroDivisionError: division by zero"
    ours = systems.System("ours", build.OURS, broken, 32)
    with pytest.raises(ZeroDivisionError):
        measure.run_group(systems.Group("g", ("encode",), ((ours, 1),), 0.0, 1), CPU, lambda _: None)
    assert "pip install 'dove-ext[bench]'" in measure.why_not(ModuleNotFoundError("no", name="onnxruntime"))


def test_a_group_too_large_for_memory_is_a_gap(monkeypatch: pytest.MonkeyPatch) -> None:
    group = systems.Group("g", ("encode",), ((systems.REFERENCE, 64),), 0.0)
    monkeypatch.setattr(
        measure.subprocess, "run", lambda *_, **__: subprocess.CompletedProcess([], -9, "", None)
    )
    (row,) = measure.group_in_child(group, CPU, lambda _: None)
    assert row["missing"] == "killed, probably for want of memory"
    assert (row["group"], row["system"], row["batch"]) == ("g", "VQGAN-256", 64)
    monkeypatch.setattr(
        measure.subprocess, "run", lambda *_, **__: subprocess.CompletedProcess([], 1, "", None)
    )
    with pytest.raises(DoveError, match="the group 'g' failed, see above"):
        measure.group_in_child(group, CPU, lambda _: None)


def test_a_run_that_was_cut_short_goes_on(tmp_path: Path) -> None:
    path, heard, ran = tmp_path / "bench.partial.json", [], []

    def part(name: str) -> list[dict[str, str]]:
        ran.append(name)
        return [{"missing": name}]

    first = parts.Parts(path, {"commit": "a"}, heard.append)
    assert first.get("one", lambda: part("one")) == [{"missing": "one"}]
    second = parts.Parts(path, {"commit": "a"}, heard.append)
    assert second.get("one", lambda: part("one")) == [{"missing": "one"}]
    assert second.get("two", lambda: part(parts.KILLED)) == [{"missing": parts.KILLED}]
    second.get("three", lambda: part("three"))  # does not write down what was killed before it
    third = parts.Parts(path, {"commit": "a"}, heard.append)
    third.get("two", lambda: part("again"))  # what was killed is tried again
    assert ran == ["one", parts.KILLED, "three", "again"] and "which has one; remove it" in heard[0]
    other = parts.Parts(path, {"commit": "b"}, heard.append)
    assert "is of another commit" in heard[-1] and (tmp_path / "bench.partial.old.json").exists()
    other.get("one", lambda: part("anew"))
    assert ran[-1] == "anew" and path.exists()
    other.close()
    assert not path.exists()
    path.write_text("{")
    with pytest.raises(DoveError, match=r"bench.partial.json is damaged; remove it"):
        parts.Parts(path, {}, heard.append)


def test_every_stage_of_the_peers_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    def narrow(kind: str, name: str, dtype: torch.dtype, device: torch.device) -> Any:
        base = MaskGitVQGAN(channels=32, latent_width=32)
        shape = Shape(width=64, layers=1, heads=2, tokens=int(name[2:] or 0)) if name else None
        models = {
            "vqgan": lambda: VQGAN(channels=32),
            "alit": lambda: ALIT(64, 1, 2, base=base),
            "titok": lambda: TiTok(shape, pixel_channels=32),
        }
        return models[kind]().to(dtype).eval()

    monkeypatch.setattr(build, "peer", narrow)
    monkeypatch.setattr(build.System, "dtype", torch.float32)  # in bfloat16 it takes minutes on some CPUs
    chosen = (
        ("VQGAN-256", build.RELEASED), ("ALIT-128", build.EAGER), ("ALIT, threshold met at 32", build.EAGER),
        ("ALIT", build.RELEASED), ("TiTok S-128", build.EAGER),
    )  # fmt: skip
    seen = {}
    for name, way in chosen:
        for stage, make in systems.find(name, way).build(systems.find(name, way), 1, CPU).items():
            seen[name, way, stage] = make()()
    assert seen["ALIT-128", build.EAGER, "encode"].shape == (1, 128)
    assert seen["ALIT-128", build.EAGER, "roll-outs"].shape == (1, 128)
    assert seen["ALIT, threshold met at 32", build.EAGER, "encode"].shape == (1, 32)
    assert seen["ALIT", build.RELEASED, "encode"].dtype == torch.int64
    assert seen["TiTok S-128", build.EAGER, "decode"].shape == (1, 3, 256, 256)
    assert seen["VQGAN-256", build.RELEASED, "encode"].shape == (1, 256)
    assert seen["VQGAN-256", build.RELEASED, "decode"].dtype == torch.float32


def test_a_chosen_part_of_the_plan() -> None:
    everything = systems.plan(quick=False)
    part = systems.plan(quick=False, only=["dove-tiny", "VQGAN"])
    assert {s.name for g in part for s, _ in g.cases} == {"dove-tiny-own", "VQGAN-256"}
    assert [g.name for g in part] == [g.name for g in everything if g.name not in ("generator", "image size")]
    assert not any(g.prefill for g in part) and any(g.prefill for g in everything)
    assert {s.name for s, _ in systems.memory_cases(False, ["dove-base-256"])} == {"dove-base-256"}


def test_groups_are_chosen_by_name() -> None:
    part = systems.plan(quick=False, only=["file to first word"])
    assert [g.name for g in part] == ["file to first word, batch 1", "file to first word, batch 16"]
    assert {"VQGAN-256", "ALIT-256", "dove-base-own"} <= {s.name for s, _ in part[0].cases}
    both = systems.plan(quick=False, only=["file to first word", "dove-base-own, dove_ext fp32"])
    assert {(s.name, s.way) for g in both for s, _ in g.cases} == {("dove-base-own", build.OURS_FP32)}
    assert systems.chosen_groups(False, ["dove-base-own", "file"]) == ["file"]


TINY = {
    "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "vocab_size": 70,
}  # fmt: skip


def test_first_words_of_unequal_images_are_those_of_each_alone() -> None:
    torch.manual_seed(0)
    reader = llm.Prefill(4, TINY).eval()
    lengths = torch.tensor([3, 1, 5])
    cu_seqlens = torch.nn.functional.pad(lengths.cumsum(0, dtype=torch.int32), (1, 0))
    tokens = DoveTokens(torch.randn(9, 4), cu_seqlens, 8)
    with torch.no_grad():
        words, size, counts = reader.first_words(tokens)
        alone = [reader(image.tokens[None]).argmax().item() for image in tokens]
    assert words == alone and counts == [3, 1, 5]
    # Keys and values of two layers, one head of 8 values of 4 bytes, for 9 tokens and three texts.
    assert size == 2 * 2 * 8 * 4 * (9 + 3 * llm.TEXT_TOKENS)


def test_from_files_to_the_first_word(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(llm, "SHAPES", {"cpu": TINY})
    build.language_model.cache_clear()
    seen = []

    def encode(paths: list[Path]) -> torch.Tensor:
        seen.extend(build._read(systems.REFERENCE, paths, CPU, signed=True))
        return torch.randint(llm.CODES, (len(paths), 7))

    call = build.first_word(systems.REFERENCE, 3, CPU, encode)()
    words, size, counts = call()
    build.language_model.cache_clear()
    assert len(words) == 3 and counts == [7, 7, 7] and size == 3 * 2 * 2 * 8 * 4 * (7 + llm.TEXT_TOKENS)
    expected = build.pictures(3).float() / 127.5 - 1
    assert (torch.stack(seen) - expected).abs().mean() < 0.1  # JPEG
