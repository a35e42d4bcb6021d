"""What the README shows runs as it stands: its Python, top to bottom, and all of its commands.

Commands that take minutes run in their smallest form, `SMALLEST`. What installs is checked, not run.
"""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from dove_ext.cli import main
from tests.instruct.test_questions import easy_vqa

if sys.version_info >= (3, 11):
    import tomllib

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
PROGRAMS = ("dove", "make", "python", "pip", "pytest", "source")

SMALLEST = {
    "eval": [
        "reconstruction", "--data", "examples/photos", "-o", "report", "--limit", "2", "--counts", "16",
        "--no-codecs",
    ],
    "train": [
        "--steps", "1", "--batch-size", "1", "--validation-limit", "1", "--shape", "image_size=64",
        "--fit-images", "32",
    ],
}  # fmt: skip
"""Options in place of the README's own; of `train` behind them, where the last one counts."""


def commands(text: str) -> list[list[str]]:
    """The commands of indented and bash blocks, and those within a line that begin like one."""
    blocks = re.findall(r"```(?:bash|sh|console)\n(.*?)```", text, flags=re.DOTALL)
    plain = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    lines += re.findall(r"^ {4}(\S.*)$", plain, flags=re.MULTILINE)
    lines += re.findall(rf"`((?:{'|'.join(PROGRAMS)}) [^`]+)`", plain.replace("\n", " "))
    found = [shlex.split(line, comments=True) for line in lines]
    return [list(command) for command in dict.fromkeys(tuple(c) for c in found if c)]


COMMANDS = commands(README)
OF_DOVE = [command[1:] for command in COMMANDS if command[0] == "dove"]


@pytest.fixture(autouse=True)
def beside_the_examples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder in ("examples", "recipes"):
        (tmp_path / folder).symlink_to(ROOT / folder)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("dove_ext.memory.keep_freed_memory", lambda: None)  # outlives the test


def test_python_blocks_run_one_after_the_other(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dove_instruct.questions_cli.find_easy_vqa", lambda: easy_vqa(tmp_path / "easy-vqa"))
    for verb, *options in OF_DOVE:
        if verb == "vlm":
            shorter = ["--steps", "1", "--global-batch", "2"] if options[0] == "train" else []
            assert main([verb, *options, *shorter]) == 0, capsys.readouterr().err
    blocks = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    assert len(blocks) == 3
    names: dict[str, Any] = {}
    for block in blocks:
        exec(block, names)
    first, second = names["dove_ext"].encode(names["photos"]).lengths.tolist()
    assert f"{first} and {second}: each image" in README
    assert (tmp_path / "tokens.safetensors").exists()
    assert names["features"].shape == (2, 256, 256)
    assert 1 <= names["answer"].shape[1] - names["inputs"]["input_ids"].shape[1] <= 16
    # A model of the user's own has nothing to do with the one that the package's functions keep.
    with torch.no_grad():
        names["dove_ext"].load_model().generator.embed_out.bias.add_(100)
    assert names["dove_ext"].encode(names["photos"]).lengths.tolist() == [first, second]


def test_how_commands_are_found() -> None:
    text = "Do `make demo` or `make\ndemo`, not `tokens` or `dove_ext`:\n\n    dove info   # hello\n\n"
    text += "```bash\ndove encode \\\n  a b  # c\n```\n```python\nx = 1\n    y = 2\n```\n"
    assert commands(text) == [["dove", "encode", "a", "b"], ["dove", "info"], ["make", "demo"]]


def test_no_command_is_of_an_unknown_kind() -> None:
    assert {command[0] for command in COMMANDS} <= {*PROGRAMS} | {"OMP_WAIT_POLICY=PASSIVE"}
    verbs = {command[0] for command in OF_DOVE}
    assert verbs >= {"encode", "decode", "reconstruct", "info", "models", "train", "bench", "eval"}


@pytest.mark.usefixtures("mobilenet_package")
def test_verbs_succeed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dove_train.stage_run.STATISTICS_IMAGES", 16)  # as tests/train/conftest.py does
    ran = set()
    for verb, *options in OF_DOVE:
        if verb == "train" and options:
            if "--data" not in options:  # named in passing; tests/train takes steps with every recipe
                assert (ROOT / options[0]).exists(), options[0]
                continue
            options += SMALLEST["train"]
        elif verb in ("bench", "vlm"):
            continue  # tests/benchmarks/tokenizers/test_command.py runs it as it stands; see above
        elif verb in SMALLEST:
            options = SMALLEST[verb]
        elif not options and verb not in ("info", "models"):
            options = ["--help"]  # named in passing
        if (verb, *options) not in ran:
            assert main([verb, *options]) == 0, capsys.readouterr().err
        ran.add((verb, *options))
    assert {"train", *SMALLEST} <= {verb for verb, *_ in ran}
    assert len(list((tmp_path / "out" / "pictures").glob("*.png"))) == 5
    assert (tmp_path / "out" / "sheet" / "sheet-01.dove.png").exists()


def test_make_demo_draws_the_picture(tmp_path: Path) -> None:
    """With the environment of the tests in place of one that it would make, and one photo instead of five."""
    if shutil.which("make") is None:
        pytest.skip("no make here")
    (tmp_path / "examples").unlink()
    (tmp_path / "examples" / "photos").mkdir(parents=True)
    shutil.copy(ROOT / "examples" / "photos" / "cat.jpg", tmp_path / "examples" / "photos")
    for name in ("Makefile", "pyproject.toml", "setup.py", "CMakeLists.txt", "csrc"):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    code = f"#!{sys.executable}\nimport sys\nfrom dove_ext.cli import main\nsys.exit(main())\n"
    (tmp_path / ".venv" / "bin" / "dove").write_text(code)
    (tmp_path / ".venv" / "bin" / "dove").chmod(0o755)
    (tmp_path / ".venv" / ".runtime").touch()
    done = subprocess.run(["make", "demo"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert list((tmp_path / "out" / "demo").glob("*.png"))


def test_targets_of_make_exist() -> None:
    targets = {command[1] for command in COMMANDS if command[0] == "make"}
    assert targets >= {"demo", "test", "bench"}
    for target in targets:
        done = subprocess.run(["make", "-n", target], cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0 and done.stdout, done.stderr


def test_every_target_has_a_rule_and_says_what_it_does() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    (phony,) = re.findall(r"^\.PHONY: (.*)$", makefile, re.MULTILINE)
    assert re.findall(r"^([a-z-]+):.*## ", makefile, re.MULTILINE) == phony.split()


def test_make_compiles_the_kernels_once(tmp_path: Path) -> None:
    targets = ["lint", "test", "test-transformers", "test-vllm", "test-export", "test-ray"]
    command = ["make", "-n", f"VENV={tmp_path}", *targets]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.count(" --editable ") == 1 and f"touch {tmp_path}/.runtime" in done.stdout


@pytest.mark.skipif(sys.version_info < (3, 11), reason="tomllib")
def test_extras_exist() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    words = [word for command in COMMANDS if command[0] == "pip" for word in command]
    named = [found[1] for word in words if (found := re.fullmatch(r"[\w.-]+\[([\w,]+)\]", word))]
    assert named
    for extras in named:
        assert {*extras.split(",")} <= project["optional-dependencies"].keys(), extras


def test_files_it_links_to_exist() -> None:
    links = re.findall(r"\]\((?!https?:)([^)]+)\)", README)
    assert links
    for link in links:
        assert (ROOT / link).exists(), link
