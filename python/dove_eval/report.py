"""The report: sections of text, tables, plots and pictures as one HTML page, as Markdown, and as JSON.

The page is `report.html.jinja`; it needs no network and no script.
"""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from itertools import groupby
from pathlib import Path
from typing import Any, ClassVar, Literal

import jinja2
from PIL import Image

from dove_ext.atomic import atomic_write

THUMBNAIL = 200  # pixels of a picture's side


@dataclass(frozen=True)
class Table:
    """Cells are text; the first column names the row."""

    kind: ClassVar[str] = "table"
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str = ""
    beside: bool = False  # narrow enough to stand in a row with plots

    def is_words(self, column: int) -> bool:
        """Whether a column holds words, which read from the left; figures stand in line at the right."""
        return not any(row[column].lstrip("+-")[:1].isdigit() for row in self.rows)

    def markdown(self) -> str:
        """A Markdown table."""
        lines = [self.columns, ["---"] * len(self.columns), *self.rows]
        return "\n".join("| " + " | ".join(c.replace("|", "\\|") for c in line) + " |" for line in lines)


@dataclass(frozen=True)
class Plot:
    """An inline SVG with its caption."""

    kind: ClassVar[str] = "plot"
    beside: ClassVar[bool] = True
    svg: str
    caption: str


@dataclass(frozen=True)
class Pictures:
    """A grid: `columns` captions, rows of pictures, and what stands under each picture."""

    kind: ClassVar[str] = "pictures"
    beside: ClassVar[bool] = False
    columns: Sequence[str]
    rows: Sequence[Sequence[tuple[Image.Image, str]]]
    caption: str
    smooth: bool = True  # False: shown with hard pixel edges
    title: str = ""

    @property
    def width(self) -> int:
        """Pictures in the widest row."""
        return max(len(row) for row in self.rows)


Block = Table | Plot | Pictures


@dataclass(frozen=True)
class Section:
    """One measurement as a reader sees it.

    Attributes:
        verb: its name on the command line.
        title: heading.
        finding: what was found, in one or two sentences.
        blocks: tables, plots and pictures.
        method: how it was measured; one sentence each.
        tiles: headline numbers for the top of the page, as (number, what it is).
        result: everything as JSON.
    """

    verb: str
    title: str
    finding: str
    blocks: Sequence[Block]
    method: Sequence[str]
    result: dict[str, Any]
    tiles: Sequence[tuple[str, str]] = ()

    def rows(self) -> list[tuple[bool, list[Block]]]:
        """Neighbouring blocks that share a row of the page (True), and those that have their own (False)."""
        return [(beside, list(blocks)) for beside, blocks in groupby(self.blocks, lambda b: b.beside)]

    def markdown(self) -> str:
        """Heading, finding, tables and method."""
        parts = [f"## {self.title}", self.finding]
        for block in self.blocks:
            if isinstance(block, Table):
                parts += ([f"{block.caption}:"] if block.caption else []) + [block.markdown()]
        parts += ["\n".join(f"- {line}" for line in self.method)]
        return "\n\n".join(parts)


@dataclass(frozen=True)
class Report:
    """All sections, with where the numbers come from."""

    title: str
    subtitle: str
    sections: Sequence[Section]
    origin: dict[str, str] = field(default_factory=dict)
    notes: Sequence[str] = ()  # what was left out and why

    def html(self) -> str:
        """The whole page."""
        here = files("dove_eval")
        environment = jinja2.Environment(
            autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
        )
        environment.filters["data_uri"] = data_uri
        template = environment.from_string((here / "report.html.jinja").read_text(encoding="utf-8"))
        style = (here / "report.css").read_text(encoding="utf-8")
        return template.render(report=self, style=style).lstrip() + "\n"

    def markdown(self) -> str:
        """Tables for a Markdown document."""
        parts = [f"# {self.title}", self.subtitle, *(s.markdown() for s in self.sections)]
        parts += [f"Not measured: {note}" for note in self.notes]
        return "\n\n".join(parts) + "\n"

    def json(self) -> dict[str, Any]:
        """Every number."""
        return {
            "title": self.title,
            "origin": self.origin,
            "not_measured": list(self.notes),
            "results": {s.verb: {**s.result, "method": list(s.method)} for s in self.sections},
        }

    def write(self, folder: str | Path) -> tuple[Path, Path]:
        """Write report.html and report.json into an existing folder, each whole or not at all.

        Raises:
            OutputError: if the folder cannot be written to.
        """
        page, numbers = (Path(folder) / name for name in ("report.html", "report.json"))
        texts = {page: self.html(), numbers: json.dumps(self.json(), indent=1, allow_nan=False) + "\n"}
        for file, text in texts.items():
            with atomic_write(file) as temporary:
                temporary.write_text(text, encoding="utf-8")
        return page, numbers


def data_uri(image: Image.Image, kind: Literal["JPEG", "PNG"] | None = None) -> str:
    """A picture inside the page: JPEG, or PNG for pictures of few pixels, where JPEG would blur squares."""
    kind = kind or ("PNG" if max(image.size) <= 64 else "JPEG")
    if kind == "JPEG" and max(image.size) > THUMBNAIL * 1.5:
        image = image.copy()
        image.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS)
    stream = io.BytesIO()
    image.save(stream, kind, **({"quality": 88} if kind == "JPEG" else {"optimize": True}))
    return f"data:image/{kind.lower()};base64,{base64.b64encode(stream.getvalue()).decode()}"
