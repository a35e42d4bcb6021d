"""What a long measurement has done so far, on disk, so that one that was cut short goes on."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from dove_ext.atomic import atomic_write
from dove_ext.errors import DoveError

Say = Callable[[str], None]

KILLED = "killed, probably for want of memory"


def _was_killed(rows: Sequence[Mapping[str, Any]]) -> bool:
    return any(row.get("missing") == KILLED for row in rows)


class Parts:
    """What a long run has measured so far, on disk; the same command goes on from there.

    Args:
        path: the file, or None to keep nothing.
        identity: of commit, command and machine; a file of another is not used.
        say: told of a file that is.
    """

    def __init__(self, path: Path | None, identity: dict[str, Any], say: Say) -> None:
        self.path = path
        self.held: dict[str, Any] = {"identity": identity, "parts": {}, "seconds": 0.0}
        if path is None or not path.exists():
            return
        try:
            held = json.loads(path.read_text(encoding="utf-8"))
            found = ", ".join(held["parts"])
            same = held["identity"] == identity and isinstance(held["seconds"], float)
        except (ValueError, KeyError, TypeError) as error:
            raise DoveError(f"{path} is damaged; remove it to start anew") from error
        if same:
            self.held = held
            say(f"going on with {path}, which has {found}; remove it to start anew")
        else:
            aside = path.with_suffix(".old.json")
            path.replace(aside)
            say(f"{path} is of another commit, command, machine or environment: moved to {aside.name}")

    def get(self, name: str, measure: Callable[[], Any]) -> Any:
        """A part as it was measured earlier, or now."""
        if name not in self.held["parts"]:
            start = time.time()
            self.held["parts"][name] = measure()
            self.held["seconds"] += time.time() - start
            if self.path is not None:
                # What was killed may fit another time: it is not kept.
                parts = {n: p for n, p in self.held["parts"].items() if not _was_killed(p)}
                with atomic_write(self.path) as temporary:
                    temporary.write_text(json.dumps({**self.held, "parts": parts}), encoding="utf-8")
        return self.held["parts"][name]

    def close(self) -> None:
        """The record has been written, the parts are of no more use."""
        if self.path is not None:
            self.path.unlink(missing_ok=True)
