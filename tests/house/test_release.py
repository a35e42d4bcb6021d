"""What wheels are made with, but for compilers: sdist, archives, interpreters, what a module may need."""

from __future__ import annotations

import gzip
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from importlib.metadata import metadata, requires
from pathlib import Path

import pytest
import torch
from packaging.requirements import Requirement

from dove_ext import _C
from release import pythons
from release.archives import add_sbom, check_record, checksums, normalise, unpack
from release.licenses import LICENSES
from release.module import complaints

ROOT = Path(__file__).parents[2]


# --- The sdist ----------------------------------------------------------------------------------------


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="what belongs to the sources is known to git alone")
def test_the_sdist_holds_all_that_is_committed(tmp_path: Path) -> None:
    made = [sys.executable, "setup.py", "-q", "egg_info", "--egg-base", str(tmp_path)]
    subprocess.run(made, cwd=ROOT, check=True, capture_output=True)
    listed = set((tmp_path / "dove_ext.egg-info" / "SOURCES.txt").read_text().splitlines())
    git = ["git", "-C", str(ROOT), "ls-files"]
    committed = set(subprocess.run(git, check=True, capture_output=True, text=True).stdout.splitlines())
    assert committed and committed - listed == set()


def tar(path: Path, names: list[str], mode: int, time: int) -> None:
    """A .tar.gz of small files, as a machine with its own umask and clock writes it."""
    with tarfile.open(path, "w:gz") as archive:
        for name in names:
            source = path.parent / Path(name).name
            source.write_text(f"text of {name}\n")
            source.chmod(mode)
            os.utime(source, (time, time))
            archive.add(source, name)


def test_an_sdist_is_the_same_bytes_from_every_machine(tmp_path: Path) -> None:
    for machine, names, mode, time in (
        ("one", ["p-1/b", "p-1/a.sh"], 0o664, 5),
        ("two", ["p-1/a.sh", "p-1/b"], 0o600, 7_000),
    ):
        (tmp_path / machine).mkdir()
        tar(tmp_path / machine / "raw.tar.gz", names, mode, time)
        normalise(tmp_path / machine / "raw.tar.gz", tmp_path / machine / "p-1.tar.gz", 1_000_000_000)
    assert (tmp_path / "one" / "raw.tar.gz").read_bytes() != (tmp_path / "two" / "raw.tar.gz").read_bytes()
    assert (tmp_path / "one" / "p-1.tar.gz").read_bytes() == (tmp_path / "two" / "p-1.tar.gz").read_bytes()
    unpack(tmp_path / "one" / "p-1.tar.gz", tmp_path / "out")
    file = tmp_path / "out" / "p-1" / "b"
    assert file.read_text() == "text of p-1/b\n"
    assert (file.stat().st_mode & 0o777, file.stat().st_mtime) == (0o644, 1_000_000_000)
    assert gzip.decompress((tmp_path / "one" / "p-1.tar.gz").read_bytes()).count(b"ustar") == 2


# --- Wheels -------------------------------------------------------------------------------------------


def wheel(folder: Path, record: str) -> Path:
    """A wheel of one file."""
    path = folder / "p-1-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("p.py", "x = 1\n")
        archive.writestr("p-1.dist-info/RECORD", record)
    return path


def test_a_record_that_lacks_a_file_or_names_another_content_is_refused(tmp_path: Path) -> None:
    right = "p.py,sha256=nia_NpkRxFwkPGhBR7I_yeHc_PJX0pmhxjIBam_NM_Q,6\np-1.dist-info/RECORD,,\n"
    digest = re.search(r"sha256=(\S+),", right)
    assert digest
    with pytest.raises(ValueError, match="is not what its RECORD says"):
        check_record(wheel(tmp_path, right.replace(digest[1], "x" * 43)))
    with pytest.raises(ValueError, match=r"p\.py is not both"):
        check_record(wheel(tmp_path, "p-1.dist-info/RECORD,,\n"))
    path = wheel(tmp_path, right)
    check_record(path)
    add_sbom(path, "{}\n")
    with zipfile.ZipFile(path) as archive:
        assert archive.read("p-1.dist-info/sboms/p.cdx.json") == b"{}\n"
    with pytest.raises(ValueError, match="sboms"):  # until auditwheel has written it anew
        check_record(path)


def test_checksums_are_what_sha256sum_checks(tmp_path: Path) -> None:
    for name in ("b", "a"):
        (tmp_path / name).write_text(name)
    text = checksums(tmp_path)
    assert [line.split("  ")[1] for line in text.splitlines()] == ["a", "b"]
    if shutil.which("sha256sum"):
        (tmp_path / "SHA256SUMS").write_text(text)
        check = ["sha256sum", "--check", "--strict", "SHA256SUMS"]
        subprocess.run(check, cwd=tmp_path, check=True, capture_output=True)


@pytest.mark.skipif(
    not sys.platform.startswith("linux") or not shutil.which("readelf"), reason="readelf reads ELF"
)
def test_the_module_needs_neither_torch_nor_cuda() -> None:
    assert _C.__file__ and complaints(Path(_C.__file__)) == []
    needs, symbols = complaints(Path(torch.__file__).parent / "lib" / "libtorch_python.so")
    assert "libc10.so" in needs and "undefined symbols of torch" in symbols


def test_an_interpreter_is_found_by_version_or_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    version = "{}.{}".format(*sys.version_info)
    here = tmp_path / f"python{version}"
    here.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    here.chmod(0o755)
    shim = tmp_path / "shims" / f"python{version}"  # as pyenv's, of a version that is not chosen
    shim.parent.mkdir()
    shim.write_text("#!/bin/sh\nexit 127\n")
    shim.chmod(0o755)
    monkeypatch.setenv("PYENV_ROOT", str(tmp_path / "none"))
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    found, missing = pythons.find([version, "3.99", "/bin/sh", str(shim)])
    if pythons.look(sys.executable) is None:
        pytest.skip("this Python lacks its headers")
    assert [python.version for python in found] == [version]
    assert missing == ["3.99", "/bin/sh", str(shim)]


# --- Bill of materials --------------------------------------------------------------------------------


def test_the_licence_of_every_requirement_is_known() -> None:
    required = [Requirement(line) for line in requires("dove-ext") or []]
    names = {r.name for r in required if r.marker is None or "extra" not in str(r.marker)}
    assert names == LICENSES.keys()
    for name, license in LICENSES.items():
        said = metadata(name)
        if expression := said["License-Expression"] or said["License"]:
            assert set(license.split(" AND ")) <= set(expression.split(" AND ")), name
