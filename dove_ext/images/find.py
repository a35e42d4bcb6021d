"""The one rule by which sets of pictures are found, whoever asks.

A path is one of

- a picture, whatever its suffix;
- an uncompressed tar file (a shard): the pictures in it, told by their suffixes, and links to files in it;
- a parquet file, a shard, too: the rows of its column of pictures;
- a folder: the pictures in it at all depths, told by their suffixes, through symbolic links; if it has none,
  the .tar files in it, and if there are none of these, the .parquet files.

In folders and shards three kinds of things are passed over: what has a leading dot in its name, or lies in a
folder that has; what this package wrote itself (`*.dove.png`); and files of other kinds. A symbolic link
that leads back to a folder it lies in is not followed. Paths keep their order, and within one path everything
is sorted by name, folder by folder (within a shard: as it lies there). What is named twice is taken once.

Everything else that is not taken is said: shards beside pictures and compressed ones are counted, and what
cannot be read is a problem.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from dove_ext.errors import ImageError
from dove_ext.images.files import IMAGE_SUFFIXES, read_image
from dove_ext.images.shards import COMPRESSED_TARS, list_members
from dove_ext.images.tables import SUFFIX as TABLE_SUFFIX
from dove_ext.images.tables import Columns, is_table, list_rows

OWN_SUFFIX = ".dove.png"  # of the pictures that `dove decode` and `dove reconstruct` write
_SUFFIXES = tuple(IMAGE_SUFFIXES)
_REMEDY = "give image folders, tar shards or pictures"


def _absolute(path: Path) -> str:
    """What a path is known by: without "..", links as they are named."""
    return os.path.abspath(path)  # noqa: PTH100 (which keeps "..")


class Found(NamedTuple):
    """One picture.

    Attributes:
        root: which of the paths it was found in.
        place: the folder or shard that it lies in.
        inside: the place's path within the root, with a slash behind it; empty for the root itself.
        name: file name, the member's name in the shard, or the key of a row.
        by_name: whether the root is the picture itself.
        in_shard: whether the place is a shard.
        offset: of its first byte in the shard; of a row its number.
        size: in the shard, in bytes.
        fault: why it cannot be read, where that is known already; else empty.
    """

    root: int
    place: str
    inside: str
    name: str
    by_name: bool = False
    in_shard: bool = False
    offset: int = 0
    size: int = 0
    fault: str = ""


class _Level(NamedTuple):
    """A folder on the way down."""

    path: Path
    inside: str
    identity: tuple[int, int]
    entries: Iterator[tuple[str, bool, bool]]  # names, whether they are folders, whether they are links


class Search:
    """One walk over some paths by the rule above.

    Args:
        paths: what to look through.
        on_problem: called with the path and the error for a path, folder or shard that cannot be read or has
            no pictures; the search goes on with the rest. If it raises, the search ends.
        columns: of parquet files.

    Attributes:
        left_out: one sentence for each kind of thing that was left out, once the search is done.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        on_problem: Callable[[str, ImageError], None],
        columns: Columns = Columns(),  # noqa: B008
    ) -> None:
        self.left_out: list[str] = []
        self._columns = columns
        self._paths, self._on_problem = paths, on_problem
        # Absolute paths. Of pictures only those given by name: a set of all would outgrow the index.
        self._folders: dict[str, bool] = {}  # and whether there were pictures in that walk
        self._files: set[str] = set()
        self._given = {_absolute(path) for path in paths}

    def __iter__(self) -> Iterator[Found]:
        for root, path in enumerate(self._paths):
            try:
                mode = path.stat().st_mode
            except (FileNotFoundError, NotADirectoryError):
                self._problem(path, f"does not exist; {_REMEDY}")
                continue
            except (OSError, ValueError) as error:  # ValueError: a null byte in the name
                self._unreadable(path, error)
                continue
            name = path.name.lower()
            if stat.S_ISDIR(mode):
                yield from self._folder(root, path)
            elif name.endswith((".tar", TABLE_SUFFIX, *COMPRESSED_TARS)):
                yield from self._shard(root, path, "", given=True)
            elif self._is_new(path):
                yield from self._picture(root, path)

    def _picture(self, root: int, path: Path) -> Iterator[Found]:
        if not path.name.lower().endswith(_SUFFIXES):
            try:
                read_image(path)  # it may be a picture all the same
            except ImageError as error:
                self._on_problem(str(path), error)
                return
        yield Found(root, str(path.parent), "", path.name, by_name=True)

    def _folder(self, root: int, top: Path) -> Iterator[Found]:
        shards: list[tuple[Path, str]] = []
        tables: list[tuple[Path, str]] = []
        pictures, own, compressed, broken = 0, 0, 0, 0
        entered: list[str] = []
        level = self._enter(top, "", [], entered)
        if level is None:
            return
        levels = [level]
        while levels:
            folder, inside, _, entries = levels[-1]
            for name, is_folder, is_link in entries:
                if is_folder:
                    level = self._enter(folder / name, f"{inside}{name}/", levels, entered)
                    if level is not None:
                        levels.append(level)
                        break
                    pictures += self._folders.get(_absolute(folder / name), False)
                elif is_picture(name):
                    pictures += 1
                    if not self._files or _absolute(folder / name) not in self._files:
                        yield Found(root, str(folder), inside, name)
                elif name.lower().endswith(".tar"):
                    shards.append((folder / name, f"{inside}{name}/"))
                elif is_table(name):
                    tables.append((folder / name, f"{inside}{name}/"))
                else:
                    compressed += name.lower().endswith(COMPRESSED_TARS)
                    own += name.lower().endswith(OWN_SUFFIX)
                    broken += is_link and _leads_nowhere(folder / name)
            else:
                levels.pop()
        # Beside the tar files that img2dataset writes lie parquet files of what it knows about the pictures.
        beside = "pictures" if pictures else "tar files" if shards else ""
        for others, kind in (
            (shards if pictures else [], ".tar file"),
            (tables if beside else [], ".parquet file"),
        ):
            count = sum(_absolute(path) not in self._given for path, _ in others)
            self._leave_out(count, kind, top, f"it has {beside}; name shards that are to be read")
        if not pictures:
            for shard, inside in shards or tables:
                pictures += 1
                yield from self._shard(root, shard, inside)
        self._folders.update(dict.fromkeys(entered, pictures > 0))
        self._leave_out(compressed, "compressed tar file", top, "unpack them to plain .tar to have them read")
        self._leave_out(broken, "broken link", top, "what they name does not exist")
        if not pictures:
            own_only = f", but {own} named *{OWN_SUFFIX}, which are passed over" if own else ""
            self._problem(top, f"is a folder without pictures{own_only}; {_REMEDY}")

    def _enter(self, folder: Path, inside: str, above: list[_Level], entered: list[str]) -> _Level | None:
        """List a folder; None if it has been looked through, leads back up, or cannot be read."""
        try:
            status = folder.stat()
            identity = (status.st_dev, status.st_ino)
            if any(level.identity == identity for level in above):
                return None
            absolute = _absolute(folder)
            if absolute in self._folders:
                return None
            with os.scandir(folder) as entries:
                visible = [entry for entry in entries if not entry.name.startswith(".")]
            listing = sorted((entry.name, self._is_folder(entry), entry.is_symlink()) for entry in visible)
        except OSError as error:
            self._unreadable(folder, error)
            return None
        entered.append(absolute)
        return _Level(folder, inside, identity, iter(listing))

    def _is_folder(self, entry: os.DirEntry[str]) -> bool:
        try:
            return entry.is_dir()
        except OSError as error:  # a link in a circle, or into a folder that may not be entered
            if not is_picture(entry.name):  # a picture says so when it is read
                self._unreadable(Path(entry.path), error)
            return False

    def _shard(self, root: int, path: Path, inside: str, given: bool = False) -> Iterator[Found]:
        if not self._is_new(path):
            return
        count = 0
        table = is_table(path)
        try:
            for member in list_rows(path, self._columns) if table else list_members(path):
                if table or is_picture(member.name):
                    count += 1
                    yield Found(root, str(path), inside, member.name, False, True, *member[1:])
        except ImageError as error:
            self._on_problem(str(path), error)
            return
        if given and not count:
            kind = "parquet" if table else "tar"
            self._problem(path, f"is a {kind} file without pictures; {_REMEDY}")

    def _is_new(self, path: Path) -> bool:
        """Whether a file was not taken yet, by its own name or with its folder."""
        absolute = _absolute(path)
        known = absolute in self._files
        if is_picture(path.name):
            known = known or str(Path(absolute).parent) in self._folders
        self._files.add(absolute)
        return not known

    def _leave_out(self, count: int, kind: str, folder: Path, why: str) -> None:
        if count:
            plural = "s are" if count > 1 else " is"
            self.left_out.append(f"{count} {kind}{plural} left out in {str(folder)!r}: {why}")

    def _problem(self, path: Path, text: str) -> None:
        self._on_problem(str(path), ImageError(f"{str(path)!r} {text}"))

    def _unreadable(self, path: Path, error: OSError | ValueError) -> None:
        self._problem(path, f"cannot be read: {getattr(error, 'strerror', None) or error}; {_REMEDY}")


def is_picture(name: str) -> bool:
    """Whether a file in a folder, or a member of a shard, counts as a picture by its name."""
    hidden = any(part.startswith(".") and part.strip(".") for part in name.split("/"))
    lower = name.lower()
    return not hidden and lower.endswith(_SUFFIXES) and not lower.endswith(OWN_SUFFIX)


def _leads_nowhere(link: Path) -> bool:
    try:
        link.stat()
    except (FileNotFoundError, NotADirectoryError):
        return True
    except OSError:  # said already
        pass
    return False
