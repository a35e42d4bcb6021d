"""The report: sections of text, tables, plots and pictures as one HTML page, as Markdown, and as JSON.

The page needs no network and no script: pictures are inside, plots are SVG, light and dark are CSS.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from importlib.resources import files
from typing import Any, Literal

from PIL import Image

THUMBNAIL = 200  # pixels of a picture's side


@dataclass(frozen=True)
class Table:
    """Cells are text; the first column names the row."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str = ""
    folded: bool = False  # shown on demand: the numbers behind a plot
    beside: bool = False  # narrow enough to stand in a row with plots

    def html(self) -> str:
        """A table element."""
        # Words read from the left; figures stand in line at the right.
        columns = list(zip(*self.rows, strict=True)) or [()] * len(self.columns)
        kinds = [
            "" if any(cell.lstrip("+-")[:1].isdigit() for cell in column) else ' class="words"'
            for column in columns
        ]
        head = "".join(
            f'<th scope="col"{kind}>{escape(name)}</th>'
            for name, kind in zip(self.columns, kinds, strict=True)
        )
        body = "".join(
            f'<tr><th scope="row">{escape(row[0])}</th>'
            f"{''.join(f'<td{k}>{_cell(c)}</td>' for c, k in zip(row[1:], kinds[1:], strict=True))}</tr>"
            for row in self.rows
        )
        table = (
            f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
        )
        if self.folded:
            return f"<details><summary>{escape(self.caption or 'Numbers')}</summary>{table}</details>"
        return table + (f'<p class="caption">{escape(self.caption)}</p>' if self.caption else "")

    def markdown(self) -> str:
        """A Markdown table."""
        lines = [self.columns, ["---"] * len(self.columns), *self.rows]
        return "\n".join("| " + " | ".join(c.replace("|", "\\|") for c in line) + " |" for line in lines)


@dataclass(frozen=True)
class Plot:
    """An inline SVG with its caption."""

    svg: str
    caption: str

    def html(self) -> str:
        """A figure element."""
        return f"<figure>{self.svg}<figcaption>{escape(self.caption)}</figcaption></figure>"


@dataclass(frozen=True)
class Pictures:
    """A grid: `columns` captions, rows of pictures, and what stands under each picture."""

    columns: Sequence[str]
    rows: Sequence[Sequence[tuple[Image.Image, str]]]
    caption: str
    smooth: bool = True  # False: shown with hard pixel edges
    title: str = ""

    def html(self) -> str:
        """A figure element."""
        head = "".join(f"<span>{escape(c)}</span>" for c in self.columns)
        cells = "".join(
            f'<span><img src="{data_uri(image)}" alt="{escape(f"{column}: {text}" if column else text)}">'
            f"<small>{escape(text)}</small></span>"
            for row in self.rows
            for column, (image, text) in zip(self.columns or [""] * len(row), row, strict=True)
        )
        width = max(len(row) for row in self.rows)
        kind = "" if self.smooth else " hard"
        head = f'<div class="grid head">{head}</div>' if self.columns else ""
        title = f"<h3>{escape(self.title)}</h3>" if self.title else ""
        return (
            f'<figure class="pictures{kind}" style="--columns: {width}">{title}<div class="scroll">{head}'
            f'<div class="grid">{cells}</div></div><figcaption>{escape(self.caption)}</figcaption></figure>'
        )


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

    def html(self) -> str:
        """A section element; neighbouring plots share a row."""
        parts, plots = [], []
        for block in [*self.blocks, None]:
            if isinstance(block, Plot) or (isinstance(block, Table) and block.beside):
                plots.append(f"<div>{block.html()}</div>")
                continue
            if plots:
                parts.append(f'<div class="plots">{"".join(plots)}</div>')
                plots = []
            if block is not None:
                parts.append(block.html())
        method = "".join(f"<li>{escape(line)}</li>" for line in self.method)
        return (
            f'<section id="{self.verb}"><h2>{escape(self.title)}</h2><p '
            f'class="finding">{escape(self.finding)}</p>'
            f'{"".join(parts)}<details class="method"><summary>How this was '
            f"measured</summary><ul>{method}</ul></details></section>"
        )

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
        style = (files("dove_eval") / "report.css").read_text(encoding="utf-8")
        links = "".join(f'<a href="#{s.verb}">{escape(s.title)}</a>' for s in self.sections)
        tiles = "".join(
            f"<div><strong>{escape(value)}</strong><span>{escape(text)}</span></div>"
            for s in self.sections
            for value, text in s.tiles
        )
        notes = "".join(f"<li>{escape(note)}</li>" for note in self.notes)
        notes = f"<aside><h2>Not measured</h2><ul>{notes}</ul></aside>" if notes else ""
        origin = "".join(f"<dt>{escape(k)}</dt><dd>{escape(v)}</dd>" for k, v in self.origin.items())
        sections = "".join(s.html() for s in self.sections)
        themes = "".join(
            f'<label><input type="radio" name="theme" value="{kind}" id="theme-{kind}"'
            f"{' checked' if kind == 'auto' else ''}>{kind}</label>"
            for kind in ("auto", "light", "dark")
        )
        return (
            '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
            '<meta name="viewport" content="width=device-width, initial-scale=1">'
            f"<title>{escape(self.title)}</title><style>{style}</style></head><body>"
            f'<header><div class="top"><h1>{escape(self.title)}</h1>'
            f'<fieldset class="theme"><legend>Colours</legend>{themes}</fieldset></div>'
            f'<p>{escape(self.subtitle)}</p><nav aria-label="Sections">{links}</nav></header>'
            f'<main><div class="tiles">{tiles}</div>{sections}{notes}</main>'
            f"<footer><h2>Origin</h2><dl>{origin}</dl></footer></body></html>\n"
        )

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


def _cell(text: str) -> str:
    """A value, its interval in small print below."""
    value, bracket, interval = text.partition(" [")
    return escape(value) + (f"<small>{escape(bracket[1:] + interval)}</small>" if bracket else "")


def data_uri(image: Image.Image, kind: Literal["JPEG", "PNG"] | None = None) -> str:
    """A picture inside the page: JPEG, or PNG for pictures of few pixels, where JPEG would blur squares."""
    kind = kind or ("PNG" if max(image.size) <= 64 else "JPEG")
    if kind == "JPEG" and max(image.size) > THUMBNAIL * 1.5:
        image = image.copy()
        image.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS)
    stream = io.BytesIO()
    image.save(stream, kind, **({"quality": 88} if kind == "JPEG" else {"optimize": True}))
    return f"data:image/{kind.lower()};base64,{base64.b64encode(stream.getvalue()).decode()}"
