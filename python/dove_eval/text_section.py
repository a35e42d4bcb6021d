"""`dove eval text` as a section of the report."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dove_eval.report import Section, Table
from dove_eval.text_study import ALL, HALF, JPEG, ORIGINAL, OWN, VIEW, Point, Setup

EVERY = "all"
KEPT = 0.985


def summarise(results: Sequence[Point]) -> dict[str, Any]:
    """Sums and means over the documents of each kind, and over all (JSON)."""
    kinds = dict.fromkeys(result["kind"] for result in results)
    chosen = {kind: [r for r in results if r["kind"] == kind] for kind in kinds}
    if len(chosen) > 1:
        chosen[EVERY] = list(results)
    return {
        "documents": len(results),
        "kinds": {name: _of(some) for name, some in chosen.items()},
        "each": list(results),
    }


def _of(results: Sequence[Point]) -> dict[str, Any]:
    points: dict[str, Point] = {}
    characters = sum(result["characters"] for result in results)
    whole, most = (sum(r["points"][ALL][what] for r in results) for what in ("read", "tokens"))
    for name in results[0]["points"]:
        at = [result["points"][name] for result in results]
        read = sum(point["read"] for point in at)
        points[name] = {
            "read": read / characters,
            "read of all tokens": read / whole if whole else 0.0,
            "lowest read": min(p["read"] / r["characters"] for p, r in zip(at, results, strict=True)),
        }
        if "bytes" in at[0]:
            points[name]["bytes"] = sum(point["bytes"] for point in at) / len(at)
        if "tokens" in at[0]:
            tokens = sum(point["tokens"] for point in at)
            points[name] |= {
                "tokens": tokens / len(at),
                "share": tokens / most,
                "thumbnail": sum(point["thumbnail"] for point in at) / tokens,
                "psnr": sum(point["psnr"] for point in at) / len(at),
            }
    tiles = sum(result["tiles"] for result in results) / len(results)
    return {"documents": len(results), "tiles": tiles, "characters": characters, "points": points}


def _kept(point: Point) -> bool:
    """Whether as good as all is still read that can be read of all tokens."""
    return bool(point["read of all tokens"] >= KEPT)


def show(results: Sequence[Point], setup: Setup, fonts: int) -> Section:
    """The report's section."""
    result = summarise(results)
    kinds, slots = result["kinds"], setup.system.model.config.num_tokens
    names = list(results[0]["points"])
    titles = {
        ORIGINAL: "original", ALL: f"{slots} a tile", HALF: "half of them", OWN: "own lengths",
        VIEW: f"one view of {slots}", JPEG: "JPEG",
    }  # fmt: skip
    heads = [titles.get(name, name) for name in names]
    priced = [name for name in names if name not in (ORIGINAL, JPEG)]

    def table(caption: str, shown: list[str], cell: Any) -> Table:
        columns = ("kind", "documents", *(heads[names.index(name)] for name in shown))
        rows = [
            (kind, str(each["documents"]), *(cell(each["points"][name]) for name in shown))
            for kind, each in kinds.items()
        ]
        return Table(columns, rows, caption)

    blocks = [
        table("Characters read (%)", names, lambda p: f"{100 * p['read']:.1f}"),
        table(f"Tokens, of {slots} a tile (%)", priced, lambda p: f"{100 * p['share']:.1f}"),
        table("Tokens a document", priced, lambda p: f"{p['tokens']:.0f}"),
        table("PSNR (dB)", priced, lambda p: f"{p['psnr']:.1f}"),
        table("KB a document", [*priced, JPEG], lambda p: f"{p['bytes'] / 1000:.0f}"),
    ]
    overall = list(kinds.values())[-1]["points"]
    good = next((n for n in names[::-1] if n.endswith("dB") and _kept(overall[n])), None)  # from the lowest
    finding = f"With all tokens {overall[ALL]['read']:.1%} of the characters are read"
    if good is not None:
        point = overall[good]
        finding += (
            f"; {good} is the lowest target of these that keeps {KEPT:.1%} of them "
            f"({point['read of all tokens']:.1%}), with {point['share']:.0%} of the tokens"
        )
    method = [
        f"{result['documents']} drawn documents (`dove_eval.documents`), "
        + (f"in {fonts + 1} fonts by turns." if fonts else "in Pillow's own font."),
        f"Reader: {setup.reader.identity}; it is given the crops of lines whose place is known, of each "
        f"document about {setup.characters} characters in lines evenly spread.",
        "Read: 1 - edit distance / length, at least 0 a line, over all lines; white space does not count.",
        f'tiles="auto" with its thumbnail, whose tokens are counted, {setup.system.cost} bytes a token. dB: '
        "target_psnr. Half of them: num_tokens of a picture. One view: the whole page in one tile.",
        "PSNR is of the picture in its grid, which may be up to 1/32 smaller than it was drawn.",
        "JPEG: the highest quality that fits the bytes of the tokens at the lowest target.",
    ]
    return Section("text", "Text", finding + ".", blocks, method, result)
