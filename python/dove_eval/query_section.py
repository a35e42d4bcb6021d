"""`dove eval query`: its section of the report, with the paper's Figure 7."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from PIL import Image

from dove_eval.bootstrap import LEVEL, Estimate
from dove_eval.query import SMALL, answers, headline
from dove_eval.questions import LEAST, MOSAICS, PHOTOGRAPHS, Questions
from dove_eval.report import Block, Pictures, Section, Table
from dove_eval.systems import OWN, Dove
from dove_ext.images.files import to_pil
from dove_ext.images.overlay import overlay

SHOWN = {PHOTOGRAPHS: 6, MOSAICS: 2}  # pictures
INSIDE = {
    "null": "whole picture (null)",
    "query": "query",
    "gain": "query minus null",
    "right": "where something else is known: query",
    "wrong": "there, the query about something else",
    "right minus wrong": "right minus wrong",
    "given": "boxes given (upper bound)",
    "given gain": "boxes given minus null",
}


def show(
    sets: Sequence[Questions], results: dict[str, dict[str, Any]], model: Dove, counts: Sequence[int]
) -> Section:
    """The report's section; `results` is `query.summarise` of each set by its kind."""
    point = headline(counts)
    kinds = list(results)
    blocks: list[Block] = [
        Table(
            ("", *kinds),
            [(name, *cells) for name, cells in _glance(results, point)],
            f"At a glance; over queries {LEVEL:.0%} bootstrap intervals in brackets, deviations behind ±",
        )
    ]
    for kind, result in results.items():
        at = result["inside"]
        lines = [
            (text, *(_text(at[n].get(name)) for n in at))
            for name, text in INSIDE.items()
            if name in next(iter(at.values()))
        ]
        caption = (
            f"{kind.capitalize()}: PSNR inside the boxes (dB) of {result['queries']} queries about "
            f"{result['pictures']} pictures; {result['with another']} are about pictures with another query"
        )
        blocks.append(Table(("tokens", *at), lines, caption))
    blocks += [*_where(results), *_words(results, point)]
    for questions in sets:
        blocks += _pictures(questions, model)
    finding, result = _finding(results, model, point), {"point": point, **results}
    tiles = [
        (f"{r['inside'][str(point)]['gain']['value']:+.1f} dB", f"inside the boxes at {point} tokens, {kind}")
        for kind, r in results.items()
    ]
    return Section("query", "Queries", finding, blocks, _method(sets, model), result, tiles)


def _text(figure: dict[str, Any] | None, digits: int = 2, scale: float = 1) -> str:
    """Such as "31.04 [30.80, 31.29] ± 2.10"."""
    if figure is None:
        return "-"
    low, high = (None if figure[k] is None else scale * figure[k] for k in ("low", "high"))
    text = Estimate(scale * figure["value"], low, high, figure["count"]).text(digits)
    if "deviation" not in figure:
        return text
    value, bracket, interval = text.partition(" [")
    return f"{value} ± {scale * figure['deviation']:.{digits}f}{bracket}{interval}"


def _glance(results: dict[str, dict[str, Any]], point: int) -> list[tuple[str, list[str]]]:
    """The figures that count, for each kind of pictures, or each part of it."""
    given = [r if r["queries"] else None for r in results.values()]

    def line(*path: str, digits: int = 2, scale: float = 1) -> list[str]:
        cells = []
        for result in given:
            figure: Any = result
            for name in path:
                figure = None if figure is None else figure.get(name)
            cells.append(_text(figure, digits, scale))
        return cells

    at = ("inside", str(point))
    rows = [
        ("queries", [str(r["queries"]) for r in results.values()]),
        (f"inside the boxes at {point} tokens: query minus null (dB)", line(*at, "gain")),
        (f"right minus wrong query at {point} tokens (dB)", line(*at, "right minus wrong")),
        ("mean length, query", line(OWN, "query length", digits=1)),
        ("mean length, null", line(OWN, "null length", digits=1)),
        ("length with the query over that of null", line(OWN, "ratio", digits=3)),
        ("inside the boxes at own lengths, query (dB)", line(OWN, "query")),
        ("inside the boxes at own lengths, null (dB)", line(OWN, "null")),
        ("inside the boxes at own lengths, query minus null (dB)", line(OWN, "gain")),
        (f"map's peak minus the centre in a box, boxes up to {SMALL:.0%} (points)",
         line("where", "small", "lead", digits=1, scale=100)),
    ]  # fmt: skip
    return [(name, cells) for name, cells in rows if set(cells) != {"-"}]


def _where(results: dict[str, dict[str, Any]]) -> list[Block]:
    rows = [
        (
            f"{kind}{'' if group == 'all' else f', boxes of at most {SMALL:.0%}'}",
            str(found["queries"]),
            *(_text(found[name], 1, 100) for name in ("peak", "centre", "lead")),
            _text(found["iou"], 2),
        )
        for kind, result in results.items()
        for group, found in result.get("where", {}).items()
    ]
    if not rows:
        return []
    columns = ("", "queries", "peak in a box (%)", "centre in a box (%)", "peak minus centre (points)", "IoU")
    return [Table(columns, rows, "Where the map points, beside the picture's centre")]


def _words(results: dict[str, dict[str, Any]], point: int) -> list[Block]:
    parts = {
        f"{kind}, {'known' if name == 'known' else 'new'} words": part
        for kind, result in results.items()
        for name, part in result.get("words", {}).items()
    }
    if not parts:
        return []
    caption = "Known: all words of a query are among the labels and queries of what the model was trained on"
    return [Table(("", *parts), [(name, *cells) for name, cells in _glance(parts, point)], caption)]


def _pictures(questions: Questions, model: Dove) -> list[Block]:
    """The paper's Figure 7: the whole picture's tokens beside those for two questions, at own lengths."""
    asked = questions.asked
    first: dict[str, int] = {}
    for i, question in enumerate(asked):
        if question.other is not None:
            first.setdefault(question.picture, i)
    candidates = list(first.values()) or list(range(len(asked)))
    count = min(SHOWN[questions.kind], len(candidates))
    chosen = [candidates[i * len(candidates) // count] for i in range(count)]
    rows: list[list[tuple[Image.Image, str]]] = []
    for i in chosen:
        _, pixels = questions.images.read([i], model.model.config.image_size, "squash")
        if pixels is None:
            continue
        texts = [text for text in (asked[i].query, asked[i].other) if text is not None]
        tokens, images = answers(model.model, pixels, texts)
        original = (pixels + 1) / 2
        row = [(to_pil(original)[0], "original")]
        for n, text in enumerate(["null", *texts]):
            length = int(tokens.lengths[n])
            row.append((to_pil(images[n])[0], f"{text}: {length} token{'s' * (length != 1)}"))
            if n and tokens.relevance is not None:
                drawn = overlay(original, tokens.relevance[n : n + 1])
                row.append((to_pil(drawn)[0], f"map of {text}"))
        rows.append(row)
    if not rows:
        return []
    caption = (
        "Pictures evenly spread over those with two queries, not chosen; each reconstruction at the length "
        "that the model chose."
    )
    if model.model.relevance is not None:
        caption += (
            " In maps pale places count little; the line is around those that count at least half as much as "
            "the strongest."
        )
    title = f"{questions.kind.capitalize()}: original, whole picture, and two questions"
    return [Pictures((), rows, caption, title=title)]


def _finding(results: dict[str, dict[str, Any]], model: Dove, point: int) -> str:
    parts = []
    for kind, result in results.items():
        gain, own = result["inside"][str(point)]["gain"], result[OWN]
        parts.append(
            f"on {kind} {point} tokens for the query give {gain['value']:+.1f} dB inside its boxes over "
            f"{point} for the whole picture; at own lengths {own['ratio']['value']:.0%} of the tokens and "
            f"{own['gain']['value']:+.1f} dB"
        )
    return f"{model.name}: " + "; ".join(parts) + "."


def _method(sets: Sequence[Questions], model: Dove) -> list[str]:
    dove = model.model
    lines = [
        f"{len(questions.asked)} queries about {questions.kind} of {questions.images.source}."
        for questions in sets
    ]
    lines += [
        f"Photographs are squashed to a square; queries whose boxes cover at most {LEAST:.0%} of it are left "
        "out. Mosaics are 2 x 2 or 3 x 3 centred squares of labelled pictures.",
        "PSNR is of the pixels in the boxes of a query, of pictures rounded to 8 bits. Boxes are not given "
        "to the model, but for the line that says so.",
        "Right and wrong: the query, and the picture's next query with other boxes (of a mosaic: about "
        "another label), both measured inside the boxes of the former.",
        "Intervals take queries for independent, also those about one picture: they are somewhat too narrow.",
    ]
    if dove.region is None:
        lines.append(f"{model.name} cannot code regions: what it would do with the boxes given is left out.")
    if dove.relevance is None:
        lines.append(f"{model.name} has no relevance map: where it points is left out.")
    else:
        lines.append(
            "Where: the middle of the map's strongest cell in a box, or the picture's centre; IoU of the "
            "cells above half of the map's maximum and those that boxes cover by half or most."
        )
    return lines
