"""The speed that dove_ext promises, as one table, and whether a record keeps it.

CPU, two cores, batch 8, 256 x 256 pixels, the best dtype of each side, all in one run.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ..timing import spread
from .build import EAGER, FIRST_WORD, GENERATOR, OURS, OURS_FP32, RELEASED

Spread = dict[str, float]
PLAIN = "dove-base, PyTorch's ops"


class Figures:
    """A record's rows, by what they measured."""

    def __init__(self, record: dict[str, Any]) -> None:
        self.record = record
        self.rows = [row for row in record["rows"] if "seconds" in row and row["group"] != DEFAULT]

    def find(self, system: str, way: str | None, stage: str = "encode", batch: int = 8, **more: Any) -> Any:
        """The row, or of several the one with the smallest median; None if it was not measured.

        Args:
            system: its name.
            way: how it runs; None: any way but as released, since "at its best" is what was fastest.
            stage: what was timed.
            batch: images at once.
            more: other fields of the row.
        """
        wanted = {"system": system, "stage": stage, "batch": batch, "size": 256, **more}
        found = [
            row
            for row in self.rows
            if all(row.get(key) == value for key, value in wanted.items())
            and (row["way"] == way if way else row["way"] != RELEASED)
        ]
        return min(found, key=lambda row: statistics.median(row["seconds"]), default=None)

    def ratio(self, over: Any, under: Any) -> Spread | None:
        """Time of `over` divided by that of `under`: round by round in one group, else of the medians."""
        if over is None or under is None:
            return None
        if over["group"] != under["group"]:
            value = statistics.median(over["seconds"]) / statistics.median(under["seconds"])
            return {"median": value, "q20": value, "q80": value}
        return spread([a / b for a, b in zip(over["seconds"], under["seconds"], strict=False)])

    def peak(self, system: str, way: str, batch: int) -> float | None:
        """Peak memory of an encode in MiB."""
        for row in self.record["memory"]:
            if (row["system"], row["way"], row["batch"]) == (system, way, batch):
                value: float | None = row.get("peak_mib")
                return value
        return None


DEFAULT = "default environment"
TOGETHER = "encode, batch 8"
"""The group in which encoders take turns; rows of another one were timed at another moment."""


@dataclass(frozen=True)
class Bar:
    """One promise.

    Attributes:
        text: what is compared.
        figure: takes it from a record; None if that did not measure it.
        limit: of the median.
        at_least: whether the limit is a least value; otherwise it is a largest one.
    """

    text: str
    figure: Callable[[Figures], Spread | None]
    limit: float
    at_least: bool = True


def _encoders(f: Figures, tokens: int, peer: str, way: str | None) -> tuple[Any, Any]:
    """A peer's row and ours, of encodes that took turns."""
    return f.find(peer, way, group=TOGETHER), f.find(f"dove-base-{tokens}", None, group=TOGETHER)


def _faster(tokens: int, peer: str, way: str | None) -> Callable[[Figures], Spread | None]:
    return lambda f: f.ratio(*_encoders(f, tokens, peer, way))


def _time_of(tokens: int, peer: str) -> Callable[[Figures], Spread | None]:
    return lambda f: f.ratio(*reversed(_encoders(f, tokens, peer, None)))


def _generator(tokens: int, way: str) -> Callable[[Figures], Spread | None]:
    return lambda f: f.ratio(
        f.find(PLAIN, way, GENERATOR), f.find(f"dove-base-{tokens}", OURS, GENERATOR, group="generator")
    )


def _tokens_kept(f: Figures) -> Spread | None:
    few, many = (f.find(f"dove-base-{n}", OURS, GENERATOR, group="generator") for n in (32, 256))
    return f.ratio(few, many)


def _memory(f: Figures) -> Spread | None:
    ours, eager = f.peak("dove-base-256", OURS, 64), f.peak(PLAIN, EAGER, 64)
    if ours is None or eager is None:
        return None
    return dict.fromkeys(("median", "q20", "q80"), ours / eager)


def _batch(f: Figures) -> Spread | None:
    few, many = (f.find("dove-base-128", OURS, batch=n, group="encode, batch 64") for n in (8, 64))
    whole = f.ratio(many, few)
    return None if whole is None else {key: value / 8 for key, value in whole.items()}


def _first_word(batch: int) -> Callable[[Figures], Spread | None]:
    return lambda f: f.ratio(
        f.find("VQGAN-256", RELEASED, FIRST_WORD, batch),
        f.find("dove-base-own", OURS_FP32, FIRST_WORD, batch),
    )


BARS: Sequence[Bar] = (
    *(Bar(f"encode, {n} tokens: times faster than VQGAN-256 as released",
          _faster(n, "VQGAN-256", RELEASED), 4.0) for n in (32, 64, 128, 256)),
    Bar("encode, 128 tokens: time over VQGAN-256 at its best", _time_of(128, "VQGAN-256"), 1.10, False),
    Bar("encode, 32 tokens: time over VQGAN-256 at its best", _time_of(32, "VQGAN-256"), 1.05, False),
    *(Bar(f"encode, {n} tokens: times faster than ALIT-{n} at its best", _faster(n, f"ALIT-{n}", None), least)
      for n, least in ((32, 1.2), (64, 1.5), (128, 2.3), (256, 4.0))),
    Bar("encode, 256 tokens: times faster than ALIT as released", _faster(256, "ALIT", RELEASED), 10.0),
    Bar("generator + EOS, stop at 256: times faster than eager PyTorch", _generator(256, EAGER), 2.5),
    Bar("generator + EOS, stop at 128: times faster than eager PyTorch", _generator(128, EAGER), 3.0),
    Bar("generator + EOS, stop at 256: times faster than eager PyTorch in fp32",
        _generator(256, "eager fp32"), 6.0),
    Bar("generator + EOS: time at 32 tokens over that at 256 (arithmetic: 0.54)", _tokens_kept, 0.70, False),
    *(Bar(f"file to first word, own lengths, float32, batch {n}: times faster than VQGAN-256",
          _first_word(n), 1.3) for n in (1, 16)),
    Bar("encode, batch 64: peak memory over eager PyTorch's", _memory, 0.40, False),
    Bar("encode, 128 tokens: time an image at batch 64 over batch 8", _batch, 1.0, False),
)  # fmt: skip


def evaluate(record: dict[str, Any]) -> list[dict[str, Any]]:
    """Each bar with its limit, its figure (a spread or None) and whether it is met (None: not measured)."""
    figures, results = Figures(record), []
    for bar in BARS:
        figure = bar.figure(figures)
        met = None
        if figure is not None:
            met = figure["median"] >= bar.limit if bar.at_least else figure["median"] <= bar.limit
        results.append(
            {"bar": bar.text, "limit": bar.limit, "at_least": bar.at_least, "figure": figure, "met": met}
        )
    return results
