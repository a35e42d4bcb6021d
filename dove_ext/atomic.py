"""Writing files so that a reader sees the old file or the new one, never half of one."""

from __future__ import annotations

import errno
import os
import re
import secrets
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from dove_ext.errors import OutputError

# Failures of the disk under the output. Other OSErrors inside the block may come from a file being read
# and must keep their own message.
_DISK_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS}
_TEMPORARY = re.compile(r"\..*-[0-9a-f]{12}(\..*)?", re.DOTALL)  # names of `_create_temporary`


@contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Write a file under a temporary name and move it into place when the block ends well.

    The temporary file lies in the target's folder (a rename is atomic only within one file system), keeps
    the target's suffix and is removed when the block raises, Ctrl-C included. An existing file is replaced
    whole; a symbolic link is followed, so the file it names is replaced and the link stays.

    Args:
        path: the target file; its folder must exist.

    Yields:
        Path: the temporary file, created empty; write to it by name.

    Raises:
        OutputError: if the folder is missing or cannot be written, the target is not a regular file or may
            not be replaced, or the disk is full.

    Example:
        >>> with atomic_write("notes.txt") as temporary:
        ...     temporary.write_text("whole or not at all")
    """
    target = _target(path)
    temporary = _create_temporary(target)
    try:
        yield temporary
        _sync(temporary)
        _move(temporary, target)
        # Without this a crash could lose the rename itself; some file systems refuse it.
        with suppress(OSError):
            _sync(target.parent)
    except OSError as error:
        if error.errno in _DISK_ERRORS:
            raise OutputError(
                f"cannot write {str(path)!r}: {error.strerror}; free some space or choose another place"
            ) from error
        raise
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def remove_unfinished(folder: str | os.PathLike[str]) -> None:
    """Remove what killed processes had begun to write by `atomic_write` into a folder, which need not exist.

    Nobody else may be writing there.
    """
    for path in Path(folder).glob(".*"):
        if _TEMPORARY.fullmatch(path.name) and path.is_file():
            path.unlink(missing_ok=True)


def check_writable_file(path: str | os.PathLike[str]) -> None:
    """Find out before long work whether `atomic_write(path)` would be let write.

    Raises:
        OutputError: as `atomic_write` does.
    """
    _create_temporary(_target(path)).unlink()


def check_no_input(
    outputs: Iterable[str | os.PathLike[str]], inputs: Iterable[str | os.PathLike[str]]
) -> None:
    """Refuse outputs that are one of the inputs, whatever name leads to it.

    Raises:
        OutputError: naming the output.
    """
    existing: dict[tuple[int, int], str] = {}
    for output in outputs:
        if (identity := _identity(output)) is not None:
            existing[identity] = str(output)
    if not existing:  # so no input need be looked at
        return
    for path in inputs:
        identity = _identity(path)
        if identity in existing:
            raise OutputError(
                f"{existing[identity]!r} would be written over, but it is an input; choose another -o"
            )


def make_writable_folder(path: str | os.PathLike[str]) -> Path:
    """Create a folder with its parents if need be, and find out whether files can be made in it.

    Returns:
        Path: the folder.

    Raises:
        OutputError: if it cannot be created, is a file, or cannot be written.
    """
    folder = Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise OutputError(
            f"cannot make the folder {str(path)!r}: a file is in the way; choose another folder"
        ) from error
    except OSError as error:
        raise OutputError(
            f"cannot make the folder {str(path)!r}: {error.strerror}; choose another folder"
        ) from error
    check_writable_file(folder / "x")
    return folder


def _identity(path: str | os.PathLike[str]) -> tuple[int, int] | None:
    try:
        status = Path(path).stat()
    except (OSError, ValueError):
        return None
    return status.st_dev, status.st_ino


def _target(path: str | os.PathLike[str]) -> Path:
    """Follow links, and refuse what a rename must not replace: folders, devices, pipes."""
    target = Path(os.path.realpath(path))  # Path.resolve raises where links lead in a circle
    try:
        mode = target.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return target
    except OSError as error:
        raise OutputError(f"cannot write {str(path)!r}: {error.strerror}; choose another place") from error
    if stat.S_ISDIR(mode):
        raise OutputError(f"cannot write {str(path)!r}: it is a folder; name a file in it")
    if not stat.S_ISREG(mode):
        raise OutputError(f"cannot write {str(path)!r}: it is a device or a pipe; name a regular file")
    return target


def _create_temporary(target: Path) -> Path:
    # Not tempfile: its files have mode 0600, and the mode travels with the rename. File systems count the
    # bytes of a name, of which a character may have four.
    name = f".{_cut(target.stem, 100)}-{secrets.token_hex(6)}{_cut(target.suffix, 20)}"
    temporary = target.parent / name
    try:
        os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    except FileNotFoundError as error:
        raise OutputError(
            f"cannot write {str(target)!r}: its folder does not exist; create {str(target.parent)!r} first"
        ) from error
    except NotADirectoryError as error:
        raise OutputError(
            f"cannot write {str(target)!r}: {str(target.parent)!r} is not a folder; choose another place"
        ) from error
    except OSError as error:
        raise OutputError(f"cannot write {str(target)!r}: {error.strerror}; choose another place") from error
    return temporary


def _cut(text: str, size: int) -> str:
    """As many of the first characters as take at most `size` bytes."""
    return os.fsencode(text)[:size].decode("utf-8", "ignore")


def _move(temporary: Path, target: Path) -> None:
    # A folder like /tmp, where everyone may make files but not replace those of others, shows only here.
    try:
        temporary.replace(target)
    except OSError as error:
        raise OutputError(f"cannot write {str(target)!r}: {error.strerror}; choose another place") from error


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
