"""`dove eval lengths`: how many tokens images get, and what that follows (3.1, Figures 1 and 6)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import stats
from torch import Tensor
from torch.nn import functional as F

from dove_eval import calibration, oracle, quality
from dove_eval.bootstrap import LEVEL, Estimate, bootstrap, mean
from dove_eval.datasets import ImageSet
from dove_eval.plots import Line, Point, axis, histogram, line_chart, scatter
from dove_eval.report import Block, Pictures, Plot, Section, Table
from dove_eval.rows import Rows, fill
from dove_eval.systems import OWN, Dove
from dove_ext.images import Fit
from dove_ext.images.files import to_pil
from dove_ext.metrics import PSNR_CEILING, laplacian_variance, mse, psnr_of_mse

COUNTS = (4, 8, 16, 32, 64, 96, 128, 192)  # and full length
BINS = 32
SHEET = 8  # images with the fewest and the most tokens
SCATTER = 1500  # points drawn at most


def counts_of(model: Dove) -> list[int]:
    """Where the loss of a model is measured: those of `COUNTS` below its full length, and this."""
    slots = model.model.config.num_tokens
    return [*(n for n in COUNTS if n < slots), slots]


def measure(images: ImageSet, model: Dove, output: Path, *, fit: Fit, batch_size: int) -> Rows:
    """Length, complexity and the squared error at `counts_of` and at the own length, for each image."""
    counts = counts_of(model)

    def compute(_: list[int], pixels: Tensor) -> dict[str, Tensor]:
        row = {"complexity": laplacian_variance(pixels)}
        for r in model.reconstruct(pixels, counts):
            row[f"mse-{r.point}"] = mse(quality.as_shown(r.images), pixels, black=-1.0)
            if r.point == OWN:
                row["length"] = r.tokens
        if model.promise is not None:
            curve, row["needed"] = model.p_eos(pixels)
            curve = F.pad(curve, (0, 1))  # nothing ends all K tokens
            own = row["length"].long()
            at = {OWN: own} | {str(n): torch.full_like(own, n) for n in counts[:-1]}
            row |= {f"p-{point}": curve.gather(1, n[:, None])[:, 0] for point, n in at.items()}
        return row

    size = model.model.config.image_size
    identity = [model.identity, counts, torch.__version__]
    return fill(
        output, f"lengths-{model.key}", images, compute, identity=identity, size=size, fit=fit,
        batch_size=batch_size,
    )  # fmt: skip


def _qualities(psnr: np.ndarray, length: np.ndarray) -> dict[str, float]:
    """What images have at their own lengths: of a stop that keeps a quality the deviation is small."""
    return {
        "images": len(psnr),
        "length": float(length.mean()),
        "mean": float(psnr.mean()),
        "deviation": float(psnr.std()),
        "lowest": float(psnr.min()),
        "5": float(np.percentile(psnr, 5)),
    }


def summarise(images: ImageSet, rows: Rows, model: Dove) -> dict[str, Any]:
    """The figures as JSON."""
    length, complexity = rows.values("length"), rows.values("complexity")
    labels = np.array([images.items[int(i)].label for i in rows.good], dtype=object)
    points = [*map(str, counts_of(model)), OWN]
    qualities = {
        n: psnr_of_mse(torch.from_numpy(rows.values(f"mse-{n}")), ceiling=PSNR_CEILING) for n in points
    }
    psnr = qualities[OWN].numpy()
    pairs = np.stack([length, complexity], 1)
    slots = model.model.config.num_tokens
    promise: dict[str, Any] = {}
    if model.promise is not None:
        promise = {"promise": _promise(rows, model.promise, psnr, length < slots, counts_of(model))}
    frequency, edges = np.histogram(length, BINS, (0, slots))
    return {
        "images": len(length),
        "tokens": slots,
        "length": mean(length).to_json(),
        "percentiles": {str(p): float(np.percentile(length, p)) for p in (5, 25, 50, 75, 95)},
        "histogram": {"counts": frequency.tolist(), "edges": edges.tolist()},
        "mse": {n: mean(rows.values(f"mse-{n}")).to_json() for n in points},
        "psnr_by_count": {n: mean(each.numpy()).to_json() for n, each in qualities.items()},
        "psnr": _qualities(psnr, length),
        "classes": {
            name: _qualities(psnr[labels == name], length[labels == name])
            for name in dict.fromkeys(name for name in labels if name is not None)
        },
        **promise,
        "pearson": _correlate(lambda rows: correlation(*rows.T), pairs),
        "spearman": _correlate(spearman, pairs),
    }


def _promise(
    rows: Rows, promised: float, psnr: np.ndarray, stopped: np.ndarray, counts: Sequence[int]
) -> dict[str, Any]:
    """How a promised quality is kept by the images that `stopped` before their last token, and foretold."""
    predicted = {
        point: stopped if point == OWN else stopped | True for point in (OWN, *map(str, counts[:-1]))
    }
    probability = np.concatenate([rows.values(f"p-{point}")[which] for point, which in predicted.items()])
    error = np.concatenate([rows.values(f"mse-{point}")[which] for point, which in predicted.items()])
    needed = np.concatenate([rows.values("needed")[which] for which in predicted.values()])
    good = psnr_of_mse(torch.from_numpy(error), ceiling=PSNR_CEILING).numpy() >= needed
    return {
        "psnr": promised,
        "missed by 3 dB": float(((psnr < promised - 3) & stopped).mean()),
        "calibration": calibration.summarise(probability, good),
    }


def _correlate(statistic: Callable[[np.ndarray], float], pairs: np.ndarray) -> dict[str, Any] | None:
    """None where nothing varies, and for so few images that a line goes through all of them."""
    varies = len(pairs) > 2 and np.ptp(pairs, axis=0).all()
    return bootstrap(statistic, pairs).to_json() if varies else None


def _text(e: Estimate | None) -> str:
    return "undefined" if e is None else e.text(3)


def correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Pearson's r of [n] and [n]; NaN where one does not vary."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return float(np.corrcoef(a, b)[0, 1])


def spearman(pairs: np.ndarray) -> float:
    """Spearman's rho of the two columns of [n, 2]: Pearson's r of their ranks."""
    return correlation(*stats.rankdata(pairs, axis=0).T)


def show(
    images: ImageSet, rows: Rows, model: Dove, fit: Fit, ceiling: Sequence[dict[str, Any]] = ()
) -> Section:
    """The report's section; `ceiling` is the summary of an oracle."""
    result = summarise(images, rows, model)
    length, complexity = rows.values("length"), rows.values("complexity")
    pearson, spearman = (
        None if result[n] is None else Estimate(**result[n]) for n in ("pearson", "spearman")
    )
    average, psnr = Estimate(**result["length"]), result["psnr"]
    share = average.value / result["tokens"]
    low, high = result["percentiles"]["5"], result["percentiles"]["95"]
    names = [images.items[int(i)].name for i in rows.good]
    table = Table(
        ("", "value"),
        [
            ("mean length", average.text(1)),
            *((f"{p}th percentile", f"{v:.0f}") for p, v in result["percentiles"].items()),
            ("Pearson, length and Laplacian variance", _text(pearson)),
            ("Spearman, length and Laplacian variance", _text(spearman)),
            ("PSNR at own length", f"{psnr['mean']:.2f} dB, deviation {psnr['deviation']:.2f}"),
            ("lowest PSNR at own length", f"{psnr['lowest']:.2f} dB"),
            ("squared error at own length over that at full length", f"{_ratio(result):.2f}"),
            *_promise_rows(result),
        ],
        f"{LEVEL:.0%} bootstrap intervals in brackets",
        beside=True,
    )
    histogram_svg = histogram(
        result["histogram"]["counts"],
        result["histogram"]["edges"],
        "tokens",
        "Histogram of token lengths",
        average.value,
    )
    caption = f"Lengths of {result['images']} images, 5th to 95th percentile {low:.0f} to {high:.0f}."
    blocks: list[Block] = [
        Plot(histogram_svg, caption),
        _loss_plot(result, model),
        _complexity_plot(length, complexity, names, pearson),
        table,
        *(
            [calibration.plot(result["promise"]["calibration"], model.key, model.name)]
            if "promise" in result
            else []
        ),
        Table(
            ("tokens", "PSNR (dB)"),
            [(n, Estimate(**e).text(2)) for n, e in result["psnr_by_count"].items()],
            "Mean over images",
            beside=True,
        ),
        *([oracle.table(ceiling)] if ceiling else []),
        *_class_table(result["classes"]),
        *contact_sheet(images, rows, model, fit),
    ]
    follows = (
        f"Their correlation with complexity (Laplacian variance) is {pearson.value:.2f} (Pearson) and "
        f"{spearman.value:.2f} (Spearman)."
        if pearson is not None and spearman is not None
        else "What that follows is unknown: too few images, or all of one length or one complexity."
    )
    finding = (
        f"{model.name} spends {average.value:.0f} of {result['tokens']} tokens on average ({1 - share:.0%} "
        f"fewer), from {length.min():.0f} to {length.max():.0f}. {follows}"
    )
    method = [
        f"{result['images']} images from {images.source}, fitted by '{fit}'.",
        "Length: the position where the model's end-of-sequence wins the head's arg-max, at least 1.",
        "Complexity: variance of the 4-neighbour Laplacian of the luminance (0.299 R + 0.587 G + 0.114 B, "
        "0..255).",
        "Loss: mean squared error of pixels in 0..1, rounded to 8 bits. The paper reports a Pearson "
        "correlation of 0.742 on COCO.",
    ]
    if ceiling:
        result["oracle"] = list(ceiling)
        method.append(
            "With full knowledge: of 1, 2, 4 and every eighth length, those that minimise the summed error "
            "of all images at no more than the mean length that was asked for."
        )
    tiles = [
        (f"{1 - share:.0%}", f"fewer tokens than {result['tokens']} an image"),
        (
            "-" if pearson is None else f"{pearson.value:.2f}",
            "Pearson correlation of length with Laplacian variance",
        ),
    ]
    return Section("lengths", "Lengths", finding, blocks, method, result, tiles)


def _promise_rows(result: dict[str, Any]) -> list[tuple[str, str]]:
    if "promise" not in result:
        return []
    promise = result["promise"]
    return [
        ("promised PSNR", f"{promise['psnr']:g} dB"),
        ("stopped more than 3 dB below it", f"{promise['missed by 3 dB']:.1%}"),
        ("expected calibration error of p_eos", f"{promise['calibration']['error']:.3f}"),
    ]


def _class_table(classes: dict[str, dict[str, float]]) -> list[Block]:
    """Where the data has classes: which of them the stop serves badly."""
    if len(classes) < 2:
        return []
    rows = [
        (
            name,
            f"{c['images']}",
            f"{c['length']:.1f}",
            *(f"{c[k]:.1f}" for k in ("mean", "deviation", "lowest")),
        )
        for name, c in sorted(classes.items(), key=lambda item: item[1]["lowest"])
    ]
    columns = ("class", "images", "mean length", "PSNR (dB)", "deviation", "lowest")
    return [Table(columns, rows, "PSNR at own lengths, the worst class first")]


def _ratio(result: dict[str, Any]) -> float:
    full = result["mse"][str(result["tokens"])]["value"]
    return float(result["mse"][OWN]["value"] / full) if full else math.inf


def _loss_plot(result: dict[str, Any], model: Dove) -> Plot:
    points = []
    for n, e in result["mse"].items():
        if n != OWN:
            text = f"{n} tokens: {e['value']:.5f}"
            points.append(Point(float(n), e["value"], e["low"], e["high"], text))
    own, at = result["mse"][OWN], result["length"]["value"]
    star = Point(
        at, own["value"], own["low"], own["high"], f"own length, mean {at:.1f} tokens: {own['value']:.5f}"
    )
    line = Line(model.key, model.name, points, star=star)
    x = axis("tokens", [p.x for p in points], log=True)
    y = axis("mean squared error", [v for p in [*points, star] for v in (p.low, p.high) if v], log=True)
    caption = "Reconstruction loss against tokens; the star is the model's own choice."
    return Plot(line_chart([line], x, y, caption), caption)


def _complexity_plot(
    length: np.ndarray, complexity: np.ndarray, names: list[str], pearson: Estimate | None
) -> Plot:
    step = -(-len(length) // SCATTER)
    points = [
        Point(c, n, label=f"{name}: {n:.0f} tokens")
        for n, c, name in zip(length[::step], complexity[::step], names[::step], strict=True)
    ]
    x = axis("Laplacian variance", complexity.tolist(), log=bool(complexity.min() > 0))
    caption = f"Length against complexity, one dot an image; Pearson {_text(pearson)} on the linear scale."
    return Plot(scatter(points, x, axis("tokens", [0, *length.tolist()], zero=True), caption), caption)


def contact_sheet(images: ImageSet, rows: Rows, model: Dove, fit: Fit) -> list[Pictures]:
    """The images with the fewest and the most tokens, each above its reconstruction."""
    length = rows.values("length")
    count = min(SHEET, max(1, len(length) // 2))
    some = "image" if count == 1 else f"{count} images"
    order = rows.good[length.argsort(kind="stable")]
    sheets = []
    for kind, chosen in (("fewest", order[:count]), ("most", order[::-1][:count])):
        indices, pixels = images.read([int(i) for i in chosen], model.model.config.image_size, fit)
        assert pixels is not None
        own = next(r for r in model.reconstruct(pixels, ()) if r.point == OWN)
        names = [Path(images.items[i].name).name for i in indices]
        originals, drawn = to_pil((pixels + 1) / 2), to_pil((own.images + 1) / 2)
        grid = [
            list(zip(originals, names, strict=True)),
            [(d, f"{int(n)} token{'s' * (n != 1)}") for d, n in zip(drawn, own.tokens, strict=True)],
        ]
        caption = "Originals and what their tokens give back."
        sheets.append(Pictures((), grid, caption, title=f"The {some} with the {kind} tokens"))
    return sheets
