"""What a wheel carries, and what `dove` says of the rest."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# Without the finders of the editable install that the tests run in.
INSTALLED = (
    "import sys; sys.meta_path = [f for f in sys.meta_path if 'editable' not in str(f)]; "
    "from dove_ext.cli import main; sys.exit(main())"
)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel of these sources, unpacked. Nothing is compiled: a cmake that does nothing stands in."""
    folder = tmp_path_factory.mktemp("wheel")
    source, tools = folder / "source", folder / "tools"
    ignored = shutil.ignore_patterns("weights", "*.so", "__pycache__", "results")
    for name in ("dove_ext", "python", "benchmarks"):
        shutil.copytree(ROOT / name, source / name, ignore=ignored)
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE", "MANIFEST.in"):
        shutil.copy(ROOT / name, source)
    tools.mkdir()
    (tools / "cmake").write_text("#!/bin/sh\n")
    (tools / "cmake").chmod(0o755)
    build = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation"]
    done = subprocess.run(
        [*build, "-w", folder, source],
        env={"PATH": f"{tools}:/usr/bin:/bin", "HOME": str(folder)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    (path,) = folder.glob("dove_ext-*.whl")
    with zipfile.ZipFile(path) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


def dove(wheel: Path, arguments: Sequence[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", INSTALLED, *arguments],
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(wheel)},
        cwd=wheel.parent,
        capture_output=True,
        text=True,
        check=False,
    )


def test_it_holds_the_library_and_its_programs_only(wheel: Path) -> None:
    folders = {path.name for path in wheel.iterdir() if path.suffix != ".dist-info"}
    assert folders == {"dove_data", "dove_ext", "dove_eval", "dove_instruct", "dove_train", "dove_vlm"}
    (top_level,) = wheel.glob("*.dist-info/top_level.txt")
    assert set(top_level.read_text().split()) == folders


def test_every_package_of_the_sources_is_in_it(wheel: Path) -> None:
    for place in (ROOT, ROOT / "python"):
        for name in ("dove_data", "dove_ext", "dove_eval", "dove_instruct", "dove_train", "dove_vlm"):
            for path in (place / name).rglob("*.py"):
                assert (wheel / path.relative_to(place)).exists(), path


def test_bench_runs_in_a_clone_only(wheel: Path) -> None:
    listed = dove(wheel, ["--help"])
    assert listed.returncode == 0 and "encode" in listed.stdout and "bench" not in listed.stdout
    refused = dove(wheel, ["bench", "--quick"])
    assert (refused.returncode, refused.stdout) == (1, "")
    assert refused.stderr.startswith("dove bench: runs in a clone of the repository only: git clone it")
    assert len(refused.stderr.splitlines()) == 1
