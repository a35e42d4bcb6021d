"""The `dove` command, run in this process against a stand-in model, and a few times for real."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import dove_ext
from dove_ext import DoveConfig, DoveModel, StackConfig, VQGANConfig
from dove_ext.cli.outputs import output_names
from dove_ext.images import read_image
from dove_ext.images.sheet import CAPTION, GAP, GROUP_GAP, MARGIN, ROW_GAP, TILE, Row, draw_sheet
from dove_ext.tokens import DoveTokens
from tests.cli.called import run
from tests.cli.stand_in import SIZE, SLOTS, PatchModel

ROW = TILE + CAPTION + ROW_GAP
VERBS = ("decode", "encode", "info", "models", "reconstruct")


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> PatchModel:
    stand_in = PatchModel()
    monkeypatch.setattr(dove_ext, "load_model", lambda *args, **kwargs: stand_in, raising=False)
    return stand_in


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """photos/: a.png (noise), b.JPG (flat), sub/a.png (noise), and files that are no pictures."""
    folder = tmp_path / "photos"
    (folder / "sub").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name in ("a.png", "sub/a.png"):
        Image.fromarray(rng.integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)).save(folder / name)
    Image.new("RGB", (80, 90), (200, 100, 50)).save(folder / "b.JPG", format="JPEG")
    (folder / "notes.txt").write_text("not a picture")
    (folder / ".hidden.png").write_text("not a picture")
    return folder


# --- The command itself -----------------------------------------------------------------------------------


def test_help_lists_the_verbs(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "--help")
    assert code == 0
    assert all(f"    {verb} " in out or f"    {verb}\n" in out for verb in VERBS)


@pytest.mark.parametrize("verb", VERBS)
def test_each_verb_has_help_with_an_example(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, verb, "--help")
    assert code == 0
    assert "--json" in out
    assert f"example:\n  dove {verb} " in out


def test_help_needs_no_torch() -> None:
    # A bare package in the place of dove_ext shows what the command itself imports.
    script = """
import importlib.util, sys, types
package = types.ModuleType("dove_ext")
package.__path__ = list(importlib.util.find_spec("dove_ext").submodule_search_locations)
sys.modules["dove_ext"] = package
from dove_ext.cli import main
assert main(["--help"]) == 0
assert main(["encode", "--help"]) == 0
slow = {"torch", "numpy", "PIL", "tqdm"} & set(sys.modules)
assert not slow, slow
"""
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "reconstruct" in result.stdout


@pytest.mark.parametrize(
    "arguments, words",
    [
        ([], "the following arguments are required: VERB"),
        (["fly"], "invalid choice: 'fly'"),
        (["encode", "a.png"], "required: -o/--output"),
        (["encode", "-o", "x"], "required: IMG"),
        (["encode", "a.png", "-o", "x", "--num-tokens", "0"], "'0' is not a whole number of at least 1"),
        (["encode", "a.png", "-o", "x", "--eos-threshold", "2"], "'2' is not a number from 0 to 1"),
        (["encode", "a.png", "-o", "x", "--target-psnr", "-3"], "'-3' is not a number of decibels above 0"),
        (
            ["encode", "a.png", "-o", "x", "--target-psnr", "33", "--eos-threshold", "0.5"],
            "--eos-threshold decides the lengths; drop it or --target-psnr",
        ),
        (
            ["encode", "a.png", "-o", "x", "--num-tokens", "3", "--target-psnr", "30"],
            "drop it or --target-psnr",
        ),
        (["encode", "a.png", "-o", "x", "--num-tokens", "3", "--max-tokens", "9"], "drop it or --max-tokens"),
        (["encode", "a.png", "-o", "x", "--num-tokens", "3", "--min-tokens", "9"], "drop it or --min-tokens"),
        (
            ["reconstruct", "a.png", "-o", "x", "--max-tokens", "3", "--min-tokens", "9"],
            "--min-tokens 9 is above --max-tokens 3; lower it",
        ),
        (
            ["encode", "a.png", "-o", "x", "--token-budget", "3", "--num-tokens", "9"],
            "--num-tokens decides the",
        ),
        (["encode", "a.png", "-o", "x", "--fit", "stretch"], "invalid choice: 'stretch'"),
    ],
)
def test_usage_errors(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, *arguments)
    assert (code, out) == (2, "")
    assert words in err


def test_unknown_device_is_a_usage_error(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, err = run(capsys, "encode", photos, "-o", tmp_path / "t", "--device", "abacus")
    assert code == 2 and "--device 'abacus' is unknown" in err
    if not torch.cuda.is_available():
        code, _, err = run(capsys, "encode", photos, "-o", tmp_path / "t", "--device", "cuda")
        assert code == 1 and "torch sees 0 CUDA devices; use --device cpu" in err


def test_info(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "info", "--json")
    assert code == 0
    assert json.loads(out) == dove_ext.info()
    code, out, _ = run(capsys, "info")
    assert code == 0
    assert dove_ext.info()["backends"]["cpu"]["isa"] in out


def test_models(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "models", "--json")
    assert code == 0
    rows = {row["name"]: row for row in json.loads(out)}
    assert rows["dove-base"]["num_tokens"] == 256 and rows["dove-base"]["token_width"] == 512
    assert 130e6 < rows["dove-base"]["parameters"] < 145e6
    code, out, _ = run(capsys, "models")
    assert code == 0 and "dove-tiny" in out


def test_broken_verb_of_another_package_does_not_hurt(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from importlib.metadata import EntryPoint

    import dove_ext.cli as cli

    good = [e for e in cli.entry_points(group="dove.commands") if e.name == "info"]
    bad = EntryPoint("bad", "dove_no_such_package:command", "dove.commands")
    monkeypatch.setattr(cli, "entry_points", lambda group: [*good, bad])
    code, out, _ = run(capsys, "--help")
    assert code == 0 and "info" in out and "'bad' cannot be" in out
    assert run(capsys, "info")[0] == 0
    code, _, err = run(capsys, "bad")
    assert code == 1 and "dove bad: the verb 'bad' cannot be loaded" in err


def test_interrupt_is_quiet(model: PatchModel, photos: Path, tmp_path: Path, capsys: Any) -> None:
    def interrupt(*args: Any, **kwargs: Any) -> None:
        raise KeyboardInterrupt

    model.encode = interrupt  # type: ignore[method-assign, assignment]
    assert run(capsys, "encode", photos, "-o", tmp_path / "t.safetensors") == (130, "", "")
    assert not (tmp_path / "t.safetensors").exists()


# --- encode -----------------------------------------------------------------------------------------------


def test_encode_a_folder(model: PatchModel, photos: Path, tmp_path: Path, capsys: Any) -> None:
    output = tmp_path / "t.safetensors"
    code, out, err = run(capsys, "encode", photos, "-o", output)
    assert (code, err) == (0, "")
    tokens = DoveTokens.load(output)
    assert tokens.names == ("a.png", "b.JPG", "sub/a.png")
    assert tokens.lengths.tolist() == [40, 5, 40]
    assert tokens.p_eos is None and tokens.model == "patches"
    assert out.split() == f"40 a.png 5 b.JPG 40 sub/a.png 85 tokens of 3 images in {output}".split()


def test_encode_equals_the_python_call_on_paths(
    model: PatchModel, photos: Path, tmp_path: Path, capsys: Any
) -> None:
    output = tmp_path / "t.safetensors"
    assert run(capsys, "encode", photos / "b.JPG", photos / "a.png", "-o", output, "--fit", "pad")[0] == 0
    expected = model.encode([photos / "b.JPG", photos / "a.png"], fit="pad")
    assert torch.equal(DoveTokens.load(output).tokens, expected.tokens)


def test_encode_reports_json_and_keeps_p_eos(
    model: PatchModel, photos: Path, tmp_path: Path, capsys: Any
) -> None:
    output = tmp_path / "t.safetensors"
    code, out, _ = run(
        capsys, "encode", photos, "-o", output, "--json", "--p-eos", "--min-tokens", "6", "--max-tokens", "7"
    )
    report = json.loads(out)
    assert code == 0
    assert (report["images"], report["tokens"], report["failed"]) == (3, 20, [])
    assert report["items"][1] == {"path": str(photos / "b.JPG"), "name": "b.JPG", "tokens": 6}
    assert DoveTokens.load(output).p_eos is not None


def test_batches_and_budget(model: PatchModel, photos: Path, tmp_path: Path, capsys: Any) -> None:
    output = tmp_path / "t.safetensors"
    run(capsys, "encode", photos, "-o", output, "--batch-size", "2")
    assert model.batches == [2, 1]
    run(capsys, "encode", photos, "-o", output, "--batch-size", "2", "--token-budget", "50")
    assert model.batches == [2, 1, 3], "a budget needs all images in one call"
    assert DoveTokens.load(output).tokens.shape[0] == 50


def test_file_given_twice_is_taken_once(model: PatchModel, photos: Path, tmp_path: Path, capsys: Any) -> None:
    run(capsys, "encode", photos / "a.png", photos, "-o", tmp_path / "t")
    assert DoveTokens.load(tmp_path / "t").names == ("a.png", "photos/b.JPG", "photos/sub/a.png")


def test_bad_files_do_not_lose_the_others(
    model: PatchModel, photos: Path, tmp_path: Path, capsys: Any
) -> None:
    (photos / "broken.png").write_bytes((photos / "a.png").read_bytes()[:200])
    (photos / "empty.jpg").touch()
    output = tmp_path / "t.safetensors"
    code, out, err = run(capsys, "encode", photos, tmp_path / "none.png", "-o", output, "--json")
    assert code == 1
    assert DoveTokens.load(output).names == ("photos/a.png", "photos/b.JPG", "photos/sub/a.png")
    lines = err.splitlines()
    assert lines[0] == "dove encode: 3 of 6 failed:"
    assert "none.png' does not exist" in lines[1], "found out before any picture is read"
    assert "broken.png' is truncated or damaged" in lines[2]
    assert "empty.jpg' is empty" in lines[3]
    assert [Path(f["path"]).name for f in json.loads(out)["failed"]] == [
        "none.png",
        "broken.png",
        "empty.jpg",
    ]


def test_names_that_are_no_text(model: PatchModel, photos: Path, tmp_path: Path, capsys: Any) -> None:
    odd = os.fsdecode(b"odd\xff\x1b[31m.png")
    (photos / "a.png").rename(tmp_path / odd)
    code, out, _ = run(capsys, "encode", tmp_path / odd, "-o", tmp_path / "t.safetensors")
    assert code == 0 and "odd\\udcff\\x1b[31m.png" in out
    code, out, _ = run(capsys, "decode", tmp_path / "t.safetensors", "-o", tmp_path / "out")
    assert code == 0 and "odd__[31m.dove.png" in out
    assert run(capsys, "reconstruct", tmp_path / odd, "-o", tmp_path / "out")[0] == 0


def test_lone_bad_file_is_one_sentence(model: PatchModel, tmp_path: Path, capsys: Any) -> None:
    code, out, err = run(capsys, "encode", tmp_path / "none.png", "-o", tmp_path / "t.safetensors")
    assert (code, out) == (1, "")
    remedy = "give image folders, tar shards or pictures"
    assert err == f"dove encode: '{tmp_path}/none.png' does not exist; {remedy}\n"
    (tmp_path / "void").mkdir()
    code, _, err = run(capsys, "encode", tmp_path / "void", "-o", tmp_path / "t.safetensors")
    assert code == 1 and "is a folder without pictures" in err
    assert not (tmp_path / "t.safetensors").exists()


@pytest.mark.parametrize("verb", ["encode", "reconstruct"])
def test_budget_for_no_pictures_is_one_sentence(
    verb: str, model: PatchModel, tmp_path: Path, capsys: Any
) -> None:
    (tmp_path / "void").mkdir()
    code, _, err = run(capsys, verb, tmp_path / "void", "-o", tmp_path / "out", "--token-budget", "100")
    assert code == 1 and "is a folder without pictures; give" in err
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize("verb", ["encode", "reconstruct", "decode"])
def test_unwritable_output_is_found_before_the_work(
    verb: str, photos: Path, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dove_ext, "load_model", lambda *a, **k: pytest.fail("loaded"), raising=False)
    tokens = tmp_path / "t.safetensors"
    PatchModel().encode(photos / "a.png").save(tokens)
    source = tokens if verb == "decode" else photos
    code, _, err = run(capsys, verb, source, "-o", photos / "notes.txt" / "out")
    assert code == 1
    assert err.startswith(f"dove {verb}: cannot ") and len(err.splitlines()) == 1


def test_length_that_the_model_lacks(model: PatchModel, photos: Path, tmp_path: Path, capsys: Any) -> None:
    code, _, err = run(capsys, "encode", photos, "-o", tmp_path / "t", "--num-tokens", "65")
    assert (code, err) == (1, "dove encode: num_tokens must be between 1 and 64, got 65\n")
    assert not (tmp_path / "t").exists()


# --- decode -----------------------------------------------------------------------------------------------


def test_decode_gives_the_pictures_back(model: PatchModel, photos: Path, tmp_path: Path, capsys: Any) -> None:
    file, folder = tmp_path / "t.safetensors", tmp_path / "new" / "out"
    run(capsys, "encode", photos, "-o", file, "--num-tokens", SLOTS)
    code, out, _ = run(capsys, "decode", file, "-o", folder, "--json", "--batch-size", "2")
    assert code == 0
    assert sorted(p.name for p in folder.iterdir()) == ["a-2.dove.png", "a.dove.png", "b.dove.png"]
    assert [Path(i["path"]).name for i in json.loads(out)["items"]] == [
        "a.dove.png",
        "b.dove.png",
        "a-2.dove.png",
    ]
    assert torch.equal(read_image(folder / "a.dove.png"), read_image(photos / "a.png"))
    assert torch.equal(read_image(folder / "a-2.dove.png"), read_image(photos / "sub" / "a.png"))
    code, out, _ = run(capsys, "decode", file, "-o", folder, "--max-tokens", "3")
    assert code == 0 and [line.split()[0] for line in out.splitlines()] == ["3", "3", "3"]


def test_decode_refuses_what_does_not_fit(model: PatchModel, tmp_path: Path, capsys: Any) -> None:
    other = tmp_path / "other.safetensors"
    DoveTokens.from_list([torch.ones(2, 7)], 9, model="other").save(other)
    empty = tmp_path / "empty.safetensors"
    DoveTokens(torch.ones(0, 7), torch.zeros(1, dtype=torch.int32), 9).save(empty)
    damaged = tmp_path / "damaged.safetensors"
    damaged.write_bytes(other.read_bytes()[:-3])
    for file, words in [
        (
            other,
            "the tokens are 7 wide in 9 slots, but this model needs 192 in 64; decode with the",
        ),
        (empty, "holds no images"),
        (damaged, "is damaged, cut short"),
        (tmp_path / "none", "does not exist; give a file written by"),
    ]:
        code, out, err = run(capsys, "decode", file, "-o", tmp_path / "out")
        assert (code, out) == (1, "") and words in err and len(err.splitlines()) == 1
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())


def test_names_from_a_stranger_stay_in_the_folder(model: PatchModel, tmp_path: Path, capsys: Any) -> None:
    names = (
        "../../evil.png",
        "/etc/passwd",
        "..",
        "a\0b\x1b[31m.png",
        "C:\\x\\win.jpg",
        ".bashrc",
        "",
        "ü" * 300,
    )
    file, folder = tmp_path / "t.safetensors", tmp_path / "deep" / "er" / "out"
    tokens = model.encode(torch.zeros(len(names), 3, 8, 8), num_tokens=1)
    DoveTokens(tokens.tokens, tokens.cu_seqlens, SLOTS, model="patches", names=names).save(file)
    code, out, _ = run(capsys, "decode", file, "-o", folder)
    assert code == 0 and "\x1b" not in out
    written = sorted(p.relative_to(tmp_path) for p in tmp_path.rglob("*.png"))
    assert len(written) == len(names)
    assert {p.parent for p in written} == {Path("deep/er/out")}
    assert {"evil.dove.png", "passwd.dove.png", "win.dove.png", "bashrc.dove.png"} <= {
        p.name for p in written
    }


def test_output_names() -> None:
    assert output_names(["a.b.png", "x/A.b.jpg", "a.b", "a"]) == [
        "a.b.dove.png", "A.b-2.dove.png", "a.dove.png", "a-2.dove.png",
    ]  # fmt: skip
    assert output_names(["c-2", "c", "c"]) == ["c-2.dove.png", "c.dove.png", "c-3.dove.png"]
    assert output_names(["sheet-01.png"]) == ["sheet-01-image.dove.png"]


# --- reconstruct ------------------------------------------------------------------------------------------


def test_reconstruct(model: PatchModel, photos: Path, tmp_path: Path, capsys: Any) -> None:
    folder = tmp_path / "out"
    code, out, _ = run(capsys, "reconstruct", photos, "-o", folder, "--json", "--batch-size", "2")
    assert code == 0
    report = json.loads(out)
    assert [item["tokens"] for item in report["items"]] == [40, 5, 40]
    assert all(item["psnr_db"] > 5 for item in report["items"])
    assert sorted(p.name for p in folder.iterdir()) == [
        "a-2.dove.png", "a.dove.png", "b.dove.png", "sheet-01.dove.png",
    ]  # fmt: skip
    sheet = read_image(folder / "sheet-01.dove.png")[:, MARGIN : MARGIN + TILE]
    tiles = [sheet[..., MARGIN + TILE + GROUP_GAP + i * (TILE + GAP) :][..., :TILE] for i in range(3)]
    grey = [[bool(((part - 127).abs() < 2).all()) for part in tile[:, 8:].split(64, 1)] for tile in tiles]
    assert grey[0] == [False, True, True, True], "16 of 64 patches: the upper quarter"
    assert grey[1] == [False, False, True, True] and grey[2] == [False] * 4
    original, tokens = read_image(photos / "a.png"), model.encode(photos / "a.png")
    assert torch.equal(read_image(folder / "a.dove.png")[:, :40], original[:, :40]), (
        "the first 40 patches are kept"
    )
    assert torch.equal(read_image(folder / "a.dove.png"), (model.decode(tokens)[0] * 255).round().byte())


def test_reconstruct_is_not_its_own_input(model: PatchModel, photos: Path, capsys: Any) -> None:
    for _ in range(2):
        assert run(capsys, "reconstruct", photos, "-o", photos)[0] == 0
    assert len(list(photos.glob("*.dove.png"))) == 4


def test_sheets_take_eight_rows(model: PatchModel, tmp_path: Path, capsys: Any) -> None:
    for i in range(9):
        Image.new("RGB", (8, 8), (20 * i, 0, 0)).save(tmp_path / f"{i}.png")
    code, out, _ = run(
        capsys,
        "reconstruct",
        tmp_path,
        "-o",
        tmp_path / "out",
        "--json",
        "--token-budget",
        "99",
        "--batch-size",
        "4",
    )
    report = json.loads(out)
    assert code == 0 and sum(item["tokens"] for item in report["items"]) == 99
    sheets = [Image.open(path) for path in report["sheets"]]
    assert len(sheets) == 2
    originals = [sheets[0].getpixel((MARGIN + 9, MARGIN + 9 + i * ROW)) for i in range(8)]
    assert originals == [(20 * i, 0, 0) for i in range(8)]
    assert sheets[0].height > 8 * TILE > 2 * TILE > sheets[1].height > TILE


def test_sheet_shows_each_image_in_its_place() -> None:
    def flat(level: float) -> torch.Tensor:
        return torch.full((3, 16, 16), level)

    row = Row("name " * 50, flat(0.5), [(16, flat(0.1)), (32, flat(0.2))], (20, flat(0.9)))
    sheet = draw_sheet([row, row])
    assert sheet.mode == "RGB"
    middle = np.asarray(sheet)[100]
    tiles = [level for level in (128, 26, 51, 230) if (middle == level).all(-1).sum() == TILE]
    assert tiles == [128, 26, 51, 230]
    order = [int((middle == level).all(-1).argmax()) for level in tiles]
    assert order == sorted(order)
    frame = (middle[:, 2] > 200) & (middle[:, 0] < 50)  # blue
    assert frame.any() and frame.argmax() > order[2], "the frame belongs to the chosen one"
    assert (np.asarray(sheet)[:, :8] == 255).all() and (np.asarray(sheet)[-4:] == 255).all(), "margins"


def test_decibels_of_a_row() -> None:
    black = torch.zeros(3, 2, 2)
    row = Row("black", black, [], (1, black))
    assert row.decibel(torch.full((3, 2, 2), 0.1)) == pytest.approx(20)
    assert row.decibel(black) == float("inf")


# --- The real model ---------------------------------------------------------------------------------------


def test_real_model_from_a_folder(photos: Path, tmp_path: Path, capsys: Any) -> None:
    stack = StackConfig(hidden=32, layers=1, heads=2, mlp=64)
    vqgan = VQGANConfig(32, (1, 1), 1, 1, 32, codebook_size=0, stem_patch=4)
    torch.manual_seed(0)
    config = DoveConfig("micro", 64, vqgan, stack, stack, vocab_size=2, head_bias=True)
    model = DoveModel(config)
    model.save_pretrained(tmp_path / "micro")
    capsys.readouterr()
    options = ["--model", tmp_path / "micro", "--max-tokens", "20"]
    code, _, err = run(capsys, "encode", photos, "-o", tmp_path / "t.safetensors", *options)
    assert (code, err) == (0, "")
    tokens = DoveTokens.load(tmp_path / "t.safetensors")
    expected = model.encode([photos / n for n in ("a.png", "b.JPG", "sub/a.png")], max_tokens=20)
    assert torch.equal(tokens.tokens, expected.tokens) and tokens.model == "micro"
    code, _, err = run(capsys, "decode", tmp_path / "t.safetensors", "-o", tmp_path / "out", *options[:2])
    assert (code, err) == (0, "")
    images = (model.decode(expected) * 255).round().byte()
    assert torch.equal(read_image(tmp_path / "out" / "b.dove.png"), images[1])
    code, out, err = run(capsys, "reconstruct", photos, "-o", tmp_path / "rec", *options, "--json")
    assert (code, err) == (0, "")
    assert [i["tokens"] for i in json.loads(out)["items"]] == expected.lengths.tolist()
    assert torch.equal(read_image(tmp_path / "rec" / "b.dove.png"), images[1])
    code, _, err = run(
        capsys, "decode", tmp_path / "t.safetensors", "-o", tmp_path, "--model", tmp_path / "no"
    )
    assert code == 1 and err.startswith("dove decode: there is no model at ") and len(err.splitlines()) == 1


# --- The installed command --------------------------------------------------------------------------------


def test_exit_code_of_the_process(tmp_path: Path) -> None:
    # The console script's own two lines: the command's exit code must become the process's.
    dove = [sys.executable, "-c", "import sys; from dove_ext.cli import main; sys.exit(main())"]
    result = subprocess.run(
        [*dove, "decode", tmp_path / "no", "-o", tmp_path], capture_output=True, text=True
    )
    assert result.returncode == 1
    assert result.stderr.startswith("dove decode: ") and len(result.stderr.splitlines()) == 1
