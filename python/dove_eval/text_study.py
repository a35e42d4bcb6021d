"""`dove eval text`: how much of the text of drawn documents a reader still reads, and at how many tokens."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from dove_eval import typesetting
from dove_eval.documents import KINDS, Document, draw
from dove_eval.reader import RapidReader, Reader, characters_read, crop, plain, some
from dove_eval.settings import EvalSettings, EvaluationError
from dove_eval.systems import Codec, Dove
from dove_ext.atomic import atomic_write, make_writable_folder
from dove_ext.images.cut import cut, in_grid, tile_counts, waiting
from dove_ext.images.files import to_pil
from dove_ext.images.prepare import normalise
from dove_ext.images.tiles import tile_limits
from dove_ext.metrics import PSNR_CEILING, psnr
from dove_ext.models.quality import shortest_reaching
from dove_ext.models.together import put_together
from dove_ext.progress import progress
from dove_ext.tokens import DoveTokens

ORIGINAL, ALL, HALF, OWN, VIEW, JPEG = "original", "all", "half", "own", "view", "jpeg"
FORMAT = 2  # raised when a change makes the same settings give other numbers
MISREAD = 2  # lines that are kept as examples

Point = dict[str, Any]


@dataclass(frozen=True)
class Setup:
    """How documents are measured.

    Attributes:
        system: the model in question.
        reader: who reads.
        targets: in dB.
        characters: about so many of each document are read.
        batch_size: tiles at once.
    """

    system: Dove
    reader: Reader
    targets: tuple[float, ...]
    characters: int
    batch_size: int
    fonts: tuple[Path, ...] = ()


def find(settings: EvalSettings, system: Dove) -> tuple[list[tuple[str, int]], Setup]:
    """What settings ask for: kind and seed of each document, and how they are measured.

    Raises:
        DoveError: if there is no such kind, a font cannot be read, or the reader is not installed.
    """
    fonts = tuple(Path(font) for font in settings.fonts)
    wanted = ordered(settings.documents, fonts)
    targets = tuple(sorted(map(float, settings.targets)))
    reader = RapidReader(torch.get_num_threads())
    return wanted, Setup(system, reader, targets, settings.characters, settings.batch_size, fonts)


def ordered(documents: Sequence[str], fonts: Sequence[Path]) -> list[tuple[str, int]]:
    """Kind and seed of each document that "KIND" or "KIND:COUNT" ask for, kinds by turns.

    Raises:
        EvaluationError: if one reads otherwise, or a font cannot be read.
    """
    found = []
    for number, text in enumerate(documents):
        kind, _, count = text.partition(":")
        if kind not in KINDS or not (count or "1").isdecimal() or int(count or 1) < 1:
            raise EvaluationError(
                f"--documents {text!r} must read KIND or KIND:COUNT with a KIND of {', '.join(KINDS)}"
            )
        found += [(seed, number, kind) for seed in range(int(count or 1))]
    for font in fonts:
        try:
            typesetting.font(font, 20)
        except OSError as error:
            raise EvaluationError(f"--fonts {str(font)!r} is no font that can be read ({error})") from error
    return [(kind, seed) for seed, _, kind in sorted(found)]


def measure(wanted: Sequence[tuple[str, int]], setup: Setup, output: Path) -> list[Point]:
    """A result for each document; those that lie in `output` already are not measured again."""
    folder = make_writable_folder(output / "rows" / "text")
    identity = [FORMAT, setup.system.identity, setup.reader.identity, setup.targets, setup.characters]
    results = []
    with progress(len(wanted), "text") as bar, torch.no_grad():
        for kind, seed in wanted:
            document = draw(kind, seed, setup.fonts)
            digest = hashlib.sha256(json.dumps([*identity, document.lines]).encode())
            digest.update(np.asarray(document.picture).tobytes())
            place = folder / f"{document.name}-{digest.hexdigest()[:12]}.json"
            if not place.exists():
                result = measure_document(document, setup)
                with atomic_write(place) as temporary:
                    temporary.write_text(json.dumps(result, indent=1), encoding="utf-8")
            results.append(json.loads(place.read_text(encoding="utf-8")))
            bar.update()
    return results


def measure_document(document: Document, setup: Setup) -> Point:
    """Tokens, PSNR and characters read of one document at every point (JSON)."""
    model, picture = setup.system.model, document.picture
    tiled, batch = _Tiled(document, setup), setup.batch_size
    lines = some(document.lines, setup.characters)
    points: dict[str, Point] = {ORIGINAL: _read(setup.reader, picture, document, lines)}

    def add(name: str, tokens: DoveTokens, decoded: Tensor) -> None:
        shown = to_pil(decoded[None])[0]
        assert tokens.tiles is not None
        close = psnr(decoded[None], in_grid(picture, tokens.tiles.pictures[0])[None], black=0)
        count = len(tokens.tokens)
        thumbnail = int(tokens.lengths[0]) if tokens.tiles.places[0].is_thumbnail else 0
        points[name] = {
            "tokens": count, "thumbnail": thumbnail, "bytes": count * setup.system.token_bytes,
            "psnr": float(close.clamp_max(PSNR_CEILING)), **_read(setup.reader, shown, document, lines),
        }  # fmt: skip

    add(ALL, tiled.all, tiled.decode(tiled.all))
    for target in sorted(setup.targets, reverse=True):
        tokens = tiled.reaching(target)
        add(f"{target:g} dB", tokens, tiled.decode(tokens))
    half = model.encode(picture, tiles="auto", num_tokens=len(tiled.all.tokens) // 2, batch_size=batch)
    add(HALF, half, tiled.decode(half))
    own = model.encode(picture, tiles="auto", batch_size=batch)
    add(OWN, own, tiled.decode(own))
    view = model.encode(picture, tiles=1, num_tokens=model.config.num_tokens)
    add(VIEW, view, model.decode(view)[0].cpu())
    least = min(points[f"{target:g} dB"]["tokens"] for target in setup.targets)
    codec = Codec.jpeg(setup.system.token_bytes)
    data = codec.fit_all(picture, [least])[least]
    shown = to_pil(codec.decode(data)[None].add(1).div(2))[0]
    points[JPEG] = {"bytes": len(data), **_read(setup.reader, shown, document, lines)}
    return {
        "kind": document.kind, "seed": document.seed, "size": [*picture.size], "tiles": len(tiled.all),
        "lines": len(lines), "characters": sum(len(plain(line.text)) for line in lines), "points": points,
    }  # fmt: skip


def _read(reader: Reader, picture: Image.Image, document: Document, lines: Sequence[Any]) -> Point:
    texts = reader.read([crop(picture, line, document.picture.size) for line in lines])
    scores = [characters_read(line.text, text) for line, text in zip(lines, texts, strict=True)]
    pairs = zip(lines, texts, scores, strict=True)
    wrong = [[line.text, text] for line, text, score in pairs if score < len(plain(line.text))]
    return {"read": sum(scores), "misread": wrong[:MISREAD]}


class _Tiled:
    """A document's tiles with all of their tokens, and what any prefixes of them decode to.

    Many lengths are tried and some are shown: what was decoded once is kept.
    """

    def __init__(self, document: Document, setup: Setup) -> None:
        self.model, self.batch_size = setup.system.model, setup.batch_size
        self.slots, side = self.model.config.num_tokens, self.model.config.image_size
        pictures, limits = waiting(document.picture), tile_limits("auto")
        tiles = tile_counts(pictures, side, limits)[0]
        self.all = self.model.encode(
            document.picture, tiles="auto", num_tokens=tiles * self.slots, batch_size=self.batch_size
        )
        # A thumbnail has been resized and is float; tiles may be 8-bit pixels.
        squares = [normalise(tile.pixels) for tile in cut(pictures, side, limits, self.model.device)]
        self.pixels = torch.stack(squares)
        parts = self.pixels.to(self.model.dtype).split(self.batch_size)
        found = [self.model.condition(part).quality for part in parts]
        known = [quality for quality in found if quality is not None]
        self.expected = torch.cat(known) if known else None
        self._shown: dict[tuple[int, int], Tensor] = {}

    def reaching(self, target: float) -> DoveTokens:
        """What `encode` with `target_psnr` gives.

        Targets that come later are found sooner: how far the decoder is off the code's quality is known then.
        """
        whole, found = self.all.to_padded()[0], []
        for start in range(0, len(self.all), self.batch_size):
            rows = slice(start, start + self.batch_size)
            expected = None if self.expected is None else self.expected[rows]
            lengths, reached = shortest_reaching(
                self._render, whole[rows], self.pixels[rows], target, most=self.slots, expected=expected
            )
            if expected is not None:
                expected += (reached - expected.gather(1, lengths.long()[:, None] - 1)[:, 0])[:, None]
            found.append(lengths)
        return self.all.truncate(torch.cat(found))

    def decode(self, tokens: DoveTokens) -> Tensor:
        """What the model's `decode` gives: float32 [3, H, W] in [0, 1]."""
        assert tokens.tiles is not None
        padded, lengths = tokens.to_padded()[0], tokens.lengths

        def some_of(rows: list[int]) -> Tensor:
            return self._render(padded[rows], lengths[rows]).float().add(1).div(2).clamp(0, 1)

        return next(put_together(tokens.tiles, self.model.config.image_size, self.batch_size, some_of)).cpu()

    def _render(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        keys = [
            (hash(t[:n].cpu().numpy().tobytes()), n) for t, n in zip(tokens, lengths.tolist(), strict=True)
        ]
        if new := [row for row, key in enumerate(keys) if key not in self._shown]:
            full = tokens.new_zeros(len(new), self.slots, tokens.shape[2])
            full[:, : tokens.shape[1]] = tokens[new]
            for row, image in zip(new, self.model.render(full, lengths[new]), strict=True):
                self._shown[keys[row]] = image
        return torch.stack([self._shown[key] for key in keys])
