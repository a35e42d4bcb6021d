"""Write the SHA-256 of the shipped models' files into dove_ext/models/shipped.py: `make hashes`."""

from __future__ import annotations

import hashlib
import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
TABLE = "dove_ext/models/shipped.py"
LOADED = ("config.json", "model.safetensors", "tokenizer.json")  # a card may change: nothing reads it
_PLACE = re.compile(r"^SHIPPED: dict\[str, dict\[str, str\]\] = \{.*?\}$", re.DOTALL | re.MULTILINE)


def shipped_files(root: Path) -> dict[str, dict[str, str]]:
    """SHA-256, in hexadecimal, of what is loaded of each model below `root`/dove_ext/weights."""
    return {
        folder.name: {
            name: hashlib.sha256((folder / name).read_bytes()).hexdigest()
            for name in LOADED
            if (folder / name).is_file()
        }
        for folder in sorted((root / "dove_ext" / "weights").iterdir())
    }


def written(text: str, hashes: dict[str, dict[str, str]]) -> str:
    """The text of the module with this table in place of its own."""
    rows = [
        f'    "{model}": {{\n' + "".join(f'        "{n}": "{h}",\n' for n, h in files.items()) + "    },\n"
        for model, files in hashes.items()
    ]
    table = "SHIPPED: dict[str, dict[str, str]] = {\n" + "".join(rows) + "}"
    text, count = _PLACE.subn(lambda _: table, text)
    if count != 1:
        raise ValueError(f"{TABLE} has {count} tables SHIPPED, not one")
    return text


def main() -> int:
    """Rewrite the table, and say whether it changed."""
    path = ROOT / TABLE
    old = path.read_text(encoding="utf-8")
    new = written(old, shipped_files(ROOT))
    if new != old:
        path.write_text(new, encoding="utf-8")
    print(f"{TABLE}: {'written' if new != old else 'as it should be'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
