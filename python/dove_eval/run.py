"""From settings to the report: what is found, measured and written."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timezone
from typing import Any

import torch

import dove_ext
from dove_eval import (
    classify,
    compare,
    length_study,
    oracle,
    probe,
    query,
    query_section,
    reconstruction,
    reconstruction_section,
    segment,
    text_section,
    text_study,
)
from dove_eval.datasets import ImageSet
from dove_eval.features import Extracted, extract
from dove_eval.heads import LINEAR, MLP
from dove_eval.report import Report, Section
from dove_eval.settings import EvalSettings
from dove_eval.subjects import find_subjects
from dove_eval.systems import Codec, Pixels
from dove_ext.atomic import make_writable_folder


def evaluate(settings: EvalSettings) -> Report:
    """Measure what the settings ask for, and write report.html and report.json.

    Raises:
        DoveError: naming what cannot be found, read or written, or does not fit together.
    """
    report = Evaluation(settings).run()
    report.write(settings.output)
    return report


class Evaluation:
    """One evaluation: a method for each measurement, and `run` for all that the settings ask for.

    Attributes:
        settings: what was asked for.
        subjects: what was found.
        output: the folder of the finished rows of numbers.
    """

    def __init__(self, settings: EvalSettings) -> None:
        """Find data and models; nothing is measured yet.

        Raises:
            DoveError: naming what cannot be found or does not fit together.
        """
        self.settings = settings
        self.subjects = find_subjects(settings)
        self.reading = (
            text_study.find(settings, self.subjects.dove) if settings.measurement == "text" else None
        )
        # Last, so that a wrong name leaves no empty folder behind.
        self.output = make_writable_folder(settings.output)

    def run(self) -> Report:
        """Measure everything that was asked for."""
        found, wanted = self.subjects, self.wanted()
        sections = []
        if "reconstruction" in wanted:
            sections.append(self.reconstruction())
        if "lengths" in wanted:
            sections.append(self.lengths())
        if "segment" in wanted:
            sections.append(self.segment())
        extracted = self.extract() if "classify" in wanted or "probe" in wanted else []
        if "classify" in wanted:
            sections.append(self.classify(extracted))
        if "probe" in wanted:
            sections.append(self.probe(extracted))
        if "query" in wanted:
            sections.append(self.query())
        if "compare" in wanted:
            sections.append(self.compare())
        if "text" in wanted:
            sections.append(self.text())
        subtitle = f"Measured on {self.looked_at(wanted)}, {datetime.now(timezone.utc):%d %B %Y}."
        notes = list(found.notes)
        for each in found.sets:
            notes += [*unreadable(each), *each.left_out]
        return Report(f"{found.dove.name}: evaluation", subtitle, sections, self.origin(), notes)

    def looked_at(self, wanted: list[str]) -> str:
        """What was measured, for the report's head."""
        if wanted == ["text"]:
            return f"drawn documents: {', '.join(self.settings.documents)}"
        images = self.subjects.images if self.subjects.images is not None else self.subjects.labelled
        assert images is not None
        kind = "queries" if wanted == ["query"] else "images"
        readable = kind if wanted == ["segment"] else f"{len(images) - len(images.failed)} {kind}"
        return f"{readable} from {images.source}"

    def wanted(self) -> list[str]:
        """The measurements that were asked for and that the data allows."""
        if self.settings.measurement != "all":
            return [self.settings.measurement]
        wanted = ["reconstruction", "lengths", "segment"]
        wanted += ["classify", "probe"] if self.subjects.labelled is not None else []
        wanted += ["query"] if self.subjects.questions else []
        return wanted + (["compare"] if self.subjects.against is not None else [])

    def reconstruction(self) -> Section:
        """Quality against token count."""
        found = self.subjects
        assert found.images is not None
        systems = [s for s in (found.dove, found.qdove, found.vqgan) if s is not None]
        cost = found.dove.token_bytes
        codecs = [Codec.jpeg(cost), Codec.webp(cost)] if self.settings.codecs else []
        setup = replace(self.setup(), systems=[*systems, *codecs])
        rows = reconstruction.measure(found.images, found.size, setup, self.output)
        return reconstruction_section.show(found.images, found.size, rows, setup)

    def lengths(self) -> Section:
        """What lengths follow."""
        found, s = self.subjects, self.settings
        assert found.images is not None
        how: dict[str, Any] = {"fit": s.fit, "batch_size": s.batch_size}
        rows = length_study.measure(found.images, found.dove, self.output, **how)
        ceiling = []
        if s.oracle:
            known = oracle.measure(found.images, found.dove, self.output, **how)
            ceiling = oracle.summarise(known, found.dove, s.oracle)
        return length_study.show(found.images, rows, found.dove, s.fit, ceiling)

    def segment(self) -> Section:
        """Hidden features as pictures."""
        found, s = self.subjects, self.settings
        assert found.images is not None
        models = [m for m in (found.dove, found.qdove) if m is not None]
        return segment.show(found.images, models, found.vqgan, s.fit, s.layer)

    def extract(self) -> list[Extracted]:
        """Frozen features of the labelled images, for `classify` and `probe`."""
        found, s = self.subjects, self.settings
        assert found.labelled is not None
        systems = [x for x in (found.dove, found.qdove, found.vqgan, Pixels()) if x is not None]
        return extract(found.labelled, systems, found.size, self.output, fit=s.fit, batch_size=s.batch_size)

    def classify(self, extracted: list[Extracted]) -> Section:
        """An MLP on pooled tokens."""
        assert self.subjects.labelled is not None
        result = classify.measure(extracted, replace(MLP, seeds=self.settings.seeds))
        return classify.show(self.subjects.labelled, result, self.settings.fit)

    def probe(self, extracted: list[Extracted]) -> Section:
        """A linear layer on hidden layers."""
        assert self.subjects.labelled is not None
        result = probe.measure(extracted, replace(LINEAR, seeds=self.settings.seeds))
        return probe.show(self.subjects.labelled, result, self.settings.fit)

    def query(self) -> Section:
        """What text queries bring."""
        found, s = self.subjects, self.settings
        results = {}
        for questions in found.questions:
            rows = query.measure(
                questions, found.reader, found.query_counts, self.output, batch_size=s.batch_size
            )
            results[questions.kind] = query.summarise(questions, rows, found.query_counts, found.words)
        return query_section.show(found.questions, results, found.reader, found.query_counts)

    def text(self) -> Section:
        """What of drawn documents can be read."""
        assert self.reading is not None
        results = text_study.measure(*self.reading, self.output)
        return text_section.show(results, self.reading[1], len(self.settings.fonts))

    def compare(self) -> Section:
        """Two models, paired."""
        found = self.subjects
        assert found.images is not None and found.against is not None
        # A Frechet distance has no pairs.
        setup = replace(self.setup(), systems=[found.dove, found.against], features=None)
        rows = reconstruction.measure(found.images, found.size, setup, self.output)
        return compare.show(found.images, found.size, rows, setup)

    def setup(self) -> reconstruction.Setup:
        """How reconstructions are judged."""
        found, s = self.subjects, self.settings
        return reconstruction.Setup(
            [found.dove], found.counts, found.distance, found.features, s.fit, s.batch_size
        )

    def origin(self) -> dict[str, str]:
        """Where the numbers come from."""
        found, model = self.subjects, self.subjects.dove.model
        baseline = found.vqgan if self.settings.vqgan is not None else None
        systems = [s for s in (found.dove, found.qdove, found.against, baseline) if s is not None]
        return {
            "command": self.settings.command(),
            "date": f"{datetime.now(timezone.utc):%Y-%m-%d %H:%M} UTC",
            **{f"weights of {s.name}": f"sha256 {s.identity[0][:16]} (tensors)" for s in systems},
            "arithmetic": f"{str(model.dtype).removeprefix('torch.')} on {model.device}, "
            f"{torch.get_num_threads()} threads",
            "library": f"dove_ext {dove_ext.__version__}, torch {torch.__version__}",
        }


def unreadable(images: ImageSet) -> list[str]:
    """A note on images that were left out, if there are any."""
    if not images.failed:
        return []
    first = next(iter(images.failed.values())).rstrip(".")
    more = f"; and {len(images.failed) - 1} more" if len(images.failed) > 1 else ""
    return [f"{len(images.failed)} of {len(images)} images that cannot be used: {first}{more}."]
