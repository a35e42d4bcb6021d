"""`dove bench`: its counts, bars, tables and plots, and a short real run."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import torch

import dove_ext.cli
from benchmarks import bars, build, flops, measure, parts, report, systems, timing
from benchmarks.eager import Eager
from benchmarks.peers.alit import ALIT
from benchmarks.peers.maskgit_vqgan import MaskGitVQGAN
from benchmarks.peers.titok import Shape, TiTok
from benchmarks.peers.vqgan import VQGAN
from benchmarks.stops import fit_eos
from dove_ext import DoveConfig, DoveModel, StackConfig, VQGANConfig
from dove_ext.errors import DoveError

CPU = torch.device("cpu")
SMALL = StackConfig(hidden=64, layers=2, heads=2, mlp=128)
TOY = DoveConfig(
    image_size=32,
    vqgan=VQGANConfig(channels=32, channel_multipliers=(1, 2), encoder_blocks=1, decoder_blocks=1,
                      latent_channels=32, codebook_size=0),
    generator=SMALL, token_decoder=SMALL, vocab_size=300,
)  # fmt: skip


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """`dove bench ...` in this process: (exit code, standard output, standard error)."""
    entry = EntryPoint("bench", "benchmarks.cli:command", "dove.commands")
    monkeypatch.setattr(dove_ext.cli, "entry_points", lambda group: [entry])

    def run(*arguments: object) -> tuple[int, str, str]:
        code = dove_ext.cli.main(["bench", *map(str, arguments)])
        captured = capsys.readouterr()
        assert "Traceback" not in captured.err
        return code, captured.out, captured.err

    return run


def row(system: str, way: str, seconds: list[float], **more: Any) -> dict[str, Any]:
    row = {"group": "encode, batch 8", "system": system, "way": way, "stage": "encode", "batch": 8,
           "size": 256, "tokens": 256, "seconds": seconds}  # fmt: skip
    return {**row, **more}


def record() -> dict[str, Any]:
    """A made-up record in which some bars are met, some are not and some cannot be told."""
    stage = {"group": "generator", "stage": build.GENERATOR}
    one = {"group": "encode, batch 1", "batch": 1}
    llama = {**one, "stage": "prefill"}
    return {
        "benchmark": "bench", "mode": "full", "command": ["dove", "bench", "--full"], "commit": "abc",
        "utc": "2026-01-02T03:04:05Z", "wall_s": 60, "environment": {"OMP_WAIT_POLICY": "PASSIVE"},
        "machine": {"processor": "a CPU", "threads": 2, "isa": "avx2", "torch": "2", "python": "3"},
        "rows": [
            row("VQGAN-256", build.RELEASED, [10.0, 12.0, 11.0]),
            row("VQGAN-256", build.EAGER, [2.0, 2.2, 2.1]),
            row("VQGAN-256", build.COMPILED, [3.0, 3.0, 3.0]),
            row("ALIT-128", build.EAGER, [9.0, 9.0], tokens=128),
            row("ALIT", build.RELEASED, [100.0, 100.0], tokens=None),
            row("dove-base-128", build.OURS, [2.0, 2.4, 2.2], tokens=128),
            row("dove-base-256", build.OURS, [4.0, 4.0, 4.0]),
            row("dove-base-128", build.OURS, [0.2], tokens=128, **stage, lengths=[120, 130]),
            row("dove-base-256", build.OURS, [0.4], **stage),
            row("dove-base, PyTorch's ops", build.EAGER, [0.9], **stage, tokens=None),
            row("VQGAN-256", build.RELEASED, [2.0, 2.0], **one),
            row("dove-base-128", build.OURS_FP32, [2.5, 2.5], tokens=128, **one),
            row("Llama", "cpu", [1.0, 1.0], tokens=128, **llama),
            row("Llama", "cpu", [2.0, 2.0], tokens=256, **llama),
            row("dove-base-32", build.OURS, [1.0], size=128, group="image size", tokens=32),
            row("dove-base-32", build.OURS, [2.0], size=384, group="image size", tokens=32),
            {**measure.describe(systems.find("TiTok S-128", build.EAGER), "encode", 8),
             "group": "encode, batch 8", "missing": "ModuleNotFoundError: no peer"},
        ],
        "memory": [
            {"system": "dove-base-256", "way": build.OURS, "batch": 64, "stage": "encode", "peak_mib": 30.0},
            {"system": "dove-base, PyTorch's ops", "way": build.EAGER, "batch": 64, "stage": "encode",
             "peak_mib": 100.0},
        ],
        "gflop": [
            {"system": "VQGAN-256", "tokens": 256, "stage": "encode", "gflop": 139.5},
            {"system": "Llama", "way": "cpu", "tokens": 256, "stage": "prefill", "gflop": 75.0},
        ],
    }  # fmt: skip


# --- Bars -------------------------------------------------------------------------------------------------


def test_bars_compare_round_by_round() -> None:
    found = {r["bar"]: r for r in bars.evaluate(record())}
    released = found["encode, 128 tokens: times faster than VQGAN-256 as released"]
    assert released["figure"]["median"] == pytest.approx(5.0)
    assert released["met"] is True
    assert found["encode, 256 tokens: times faster than VQGAN-256 as released"]["met"] is False  # 2.75
    best = found["encode, 128 tokens: time over VQGAN-256 at its best"]
    assert best["figure"]["median"] == pytest.approx(2.2 / 2.1)  # the faster of eager and compiled
    assert best["met"] is True
    assert found["encode, 128 tokens: times faster than ALIT-128 at its best"]["met"] is True
    assert found["encode, 256 tokens: times faster than ALIT as released"]["figure"]["median"] == 25
    assert found["generator + EOS, stop at 256: times faster than eager PyTorch"]["met"] is False  # 2.25
    assert found["generator + EOS, stop at 128: times faster than eager PyTorch"]["met"] is True
    assert found["encode, batch 64: peak memory over eager PyTorch's"]["figure"]["median"] == 0.3


def test_bars_that_were_not_measured_are_neither_met_nor_missed() -> None:
    bare = {**record(), "rows": [], "memory": []}
    assert all(r["met"] is None and r["figure"] is None for r in bars.evaluate(bare))


def test_every_bar_reads_systems_that_exist() -> None:
    names = {(s.name, s.way) for s in systems.SYSTEMS}
    assert len(names) == len(systems.SYSTEMS)
    plan = {(s.name, s.way): s for g in systems.plan(quick=False) for s, _ in g.cases}
    assert names <= set(plan)
    full = copy.deepcopy(record())
    full["rows"] = [
        {"group": g.name, **measure.describe(s, stage, batch), "seconds": [1.0]}
        for g in systems.plan(quick=False) for s, batch in g.cases for stage in g.stages
    ]  # fmt: skip
    full["memory"] = [
        {**measure.describe(s, "encode", b), "peak_mib": 1.0} for s, b in systems.memory_cases(quick=False)
    ]
    assert all(r["met"] is not None for r in bars.evaluate(full))


# --- Tables and plots -------------------------------------------------------------------------------------


def test_markdown_shows_figures_gaps_and_promises() -> None:
    text = report.markdown(record())
    assert "a CPU, 2 threads" in text
    assert "| VQGAN-256 | eager fp32, as released | 2000 | 1.1e+04 | 0.727 | 1.00 | 140 |  |" in text
    assert ">= 2.5 | 2.25 | **not met**" in text
    assert "- TiTok S-128 (eager bf16), encode: ModuleNotFoundError: no peer" in text
    # Encode and prefill together: (2 + 2) / (2.5 + 1), and the paper's 1.14.
    assert "| dove-base-128 | dove_ext fp32 | 1.14 |  | 1.14 |" in text
    assert "120-130, mean 125" in text


def test_report_writes_csv_and_plots(bench: Any, tmp_path: Path) -> None:
    (tmp_path / "bench.json").write_text(json.dumps(record()))
    code, out, err = bench("--report", "-o", tmp_path)
    assert code == 0
    assert "## Bars" in out
    lines = (tmp_path / "bench.csv").read_text().splitlines()
    assert lines[0].startswith("group,system,way,stage,batch,size,tokens,rounds,median_ms,q20_ms,q80_ms")
    assert len(lines) == 1 + len(record()["rows"])
    drawn = sorted(path.name for path in tmp_path.glob("*.svg"))
    assert drawn == ["bench-batch.svg", "bench-generator.svg", "bench-size.svg", "bench-tokens.svg"]
    for name in drawn:
        assert ElementTree.parse(tmp_path / name).getroot().tag.endswith("svg")
        assert f"({name})" in (tmp_path / "bench.md").read_text()
        assert name in err


@pytest.mark.parametrize(
    ("damage", "text"),
    [
        (lambda r: r.update(benchmark="eos"), "does not name the benchmark 'bench'"),
        (lambda r: r.pop("memory"), "'memory' is missing or no list"),
        (lambda r: r["rows"][0].pop("way"), "row 0 has no 'way'"),
        (lambda r: r["rows"][2].pop("seconds"), "row 2 (VQGAN-256) has no times"),
        (lambda r: r["rows"][1].update(seconds=[1.0, None]), "row 1 (VQGAN-256) has no times"),
        (lambda r: r["rows"][1].update(seconds=[]), "row 1 (VQGAN-256) has no times"),
        (lambda r: r["rows"].insert(0, 3), "row 0 has no 'group'"),
    ],
)  # fmt: skip
def test_broken_records_are_refused_in_one_sentence(
    bench: Any, tmp_path: Path, damage: Any, text: str
) -> None:
    broken = record()
    damage(broken)
    (tmp_path / "bench.json").write_text(json.dumps(broken))
    code, out, err = bench("--report", tmp_path / "bench.json", "-o", tmp_path / "out")
    assert (code, out) == (1, "")
    assert text in err
    assert "measure anew with `dove bench --full`" in err
    assert len(err.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_wrong_input(bench: Any, tmp_path: Path) -> None:
    (tmp_path / "text.json").write_text("{")
    (tmp_path / "file").write_text("")
    for arguments, code, text in (
        (["--report", tmp_path / "none.json"], 1, "No such file"),
        (["--report", tmp_path / "text.json"], 1, "is not JSON"),
        (["--device", "abacus"], 2, "--device 'abacus' is unknown"),
        (["--device", "mps"], 2, "--device 'mps' cannot be measured"),
        (["--device", "cuda:99"], 1, "--device 'cuda:99' is not there"),
        (["--threads", "0"], 2, "'0' is not a whole number of at least 1"),
        (["--weights", "flextok=x"], 2, "'flextok=x' is not NAME=PATH with a NAME of dove-base, vqgan"),
        (["--quick", "--full"], 2, "not allowed with argument"),
        (["--full", "-o", tmp_path / "file"], 1, "a file is in the way"),
    ):
        found, out, err = bench(*arguments)
        assert (found, out) == (code, ""), arguments
        assert text in err


def test_help_shows_the_options(bench: Any) -> None:
    code, out, _ = bench("--help")
    assert code == 0
    for option in ("--quick", "--full", "--report", "--output", "--device", "--threads", "--json"):
        assert option in out
    assert "example:\n  dove bench --quick" in out


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

    monkeypatch.setattr(build, "_peer", narrow)
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


def test_a_short_run_end_to_end(bench: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny = systems.find("dove-tiny-own", build.OURS_FP32)
    stages = ("encode", "VQGAN encoder", build.GENERATOR, "decode", "token decoder", "VQGAN decoder")
    plan = [systems.Group("encode, batch 8", stages, ((tiny, 2),), 0.0, 1)]
    monkeypatch.setattr(systems, "plan", lambda quick: plan)
    cases = [(tiny, 2)] if sys.platform.startswith("linux") else []
    monkeypatch.setattr(systems, "memory_cases", lambda quick: cases)
    monkeypatch.setattr(flops, "table", list)
    monkeypatch.setattr("dove_ext.memory.keep_freed_memory", lambda: None)  # outlives the test
    code, out, _ = bench("--quick", "--json")
    assert code == 0
    found = json.loads(out)
    assert [r["stage"] for r in found["rows"]] == list(stages)
    assert all(len(r["seconds"]) == 1 for r in found["rows"])
    assert len(found["rows"][0]["lengths"]) == 2
    assert all(r["peak_mib"] > 1 for r in found["memory"])
    (tmp_path / "bench.json").write_text(json.dumps(found))
    assert report.read_record(tmp_path / "bench.json") == found
    assert "dove-tiny-own" in report.markdown(found)


def test_record_must_exist(tmp_path: Path) -> None:
    with pytest.raises(DoveError, match=r"cannot read .*none\.json"):
        report.read_record(tmp_path / "none.json")
