"""sdist and wheels as files: the same bytes for the same content, and checked."""

from __future__ import annotations

import base64
import csv
import gzip
import hashlib
import io
import tarfile
import zipfile
from pathlib import Path


def unpack(archive: Path, folder: Path) -> None:
    """Unpack a tar file, with the modes 644 and 755, whatever the umask was when it was made."""
    with tarfile.open(archive) as tar:
        tar.extractall(folder, filter="data")


def normalise(sdist: Path, target: Path, time: int) -> None:
    """Write a .tar.gz again, without the order, times, owners and modes of the machine that made it.

    Args:
        sdist: what setuptools wrote.
        target: the new file.
        time: of every file in it, in seconds since 1970.
    """
    with (
        tarfile.open(sdist) as old,
        target.open("wb") as raw,
        gzip.GzipFile("", "wb", mtime=0, fileobj=raw) as packed,
        tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as new,
    ):
        for member in sorted(old.getmembers(), key=lambda member: member.name):
            executable = member.isdir() or member.mode & 0o100
            entry = tarfile.TarInfo(member.name)
            entry.type, entry.size, entry.mtime = member.type, member.size, time
            entry.mode = 0o755 if executable else 0o644
            new.addfile(entry, old.extractfile(member))


def add_sbom(wheel: Path, text: str) -> None:
    """Put a bill of materials where PEP 770 has it. RECORD is left to auditwheel, which writes it anew."""
    name, version = wheel.name.split("-")[:2]
    with zipfile.ZipFile(wheel, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(f"{name}-{version}.dist-info/sboms/{name}.cdx.json", text)


def check_record(wheel: Path) -> None:
    """Compare a wheel's files with its RECORD.

    Raises:
        ValueError: naming the first file that is not in both, or not with this SHA-256.
    """
    with zipfile.ZipFile(wheel) as archive:
        files = {name for name in archive.namelist() if not name.endswith("/")}
        (record,) = (name for name in files if name.endswith(".dist-info/RECORD"))
        rows = {
            row[0]: row[1] for row in csv.reader(io.StringIO(archive.read(record).decode("utf-8"))) if row
        }
        if different := sorted(files ^ rows.keys()):
            raise ValueError(f"{wheel.name}: {different[0]} is not both in the wheel and in its RECORD")
        for name in sorted(files - {record}):
            digest = base64.urlsafe_b64encode(hashlib.sha256(archive.read(name)).digest()).rstrip(b"=")
            if rows[name] != f"sha256={digest.decode()}":
                raise ValueError(f"{wheel.name}: {name} is not what its RECORD says")


def checksums(folder: Path) -> str:
    """SHA-256 of every file in a folder, as `sha256sum --check` reads them."""
    rows = [(path.name, hashlib.sha256(path.read_bytes()).hexdigest()) for path in sorted(folder.iterdir())]
    return "".join(f"{digest}  {name}\n" for name, digest in rows)
