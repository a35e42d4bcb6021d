"""From the command line's choices to the report: what is loaded, measured and written."""

from __future__ import annotations

import json
import shlex
import sys
from argparse import Namespace
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timezone
from functools import cached_property
from pathlib import Path

import torch

import dove_ext
from dove_eval import (
    backbones,
    classify,
    compare,
    length_study,
    probe,
    reconstruction,
    reconstruction_section,
    segment,
)
from dove_eval.datasets import ImageSet, find_images, with_test_set
from dove_eval.features import Extracted, extract
from dove_eval.heads import LINEAR, MLP
from dove_eval.report import Report, Section
from dove_eval.systems import Codec, Dove, Pixels, Vqgan
from dove_ext.atomic import atomic_write, make_writable_folder
from dove_ext.cli.options import load_model
from dove_ext.errors import DoveError
from dove_ext.models.dove import DoveModel

UNLABELLED = ("reconstruction", "lengths", "segment")


class Evaluation:
    """One call of `dove eval`."""

    def __init__(self, args: Namespace) -> None:
        """Find data and models; nothing is measured yet.

        Raises:
            DoveError: naming what cannot be found or does not fit together.
        """
        self.args, self.verb = args, args.measurement
        self.notes: list[str] = []
        self.images = find_images(args.data).limit(args.limit) if hasattr(args, "data") else None
        self.labelled = self._labelled()
        self.dove = Dove(load_model(args))
        self.size = self.dove.model.config.image_size
        self.qdove = self._second("qdove", "qdove")
        self.against = self._second("against", "other")
        self.vqgan = self._vqgan()  # may be named after the model, whose name is known by now
        self._check_layer()
        self.output = make_writable_folder(args.output)  # last: a wrong name leaves no empty folder behind

    # --- What is loaded -------------------------------------------------------------------------------

    def _labelled(self) -> ImageSet | None:
        given = getattr(self.args, "labelled", None)
        if given is None:
            if self.verb == "all":  # albums are folders, too: classes are never guessed
                self.notes.append("Classification and linear probe: give images with classes by --labelled.")
            return None
        images = find_images(given)
        if self.args.labelled_test:
            images = with_test_set(images, find_images(self.args.labelled_test))
        return images.labelled().limit_per_class(self.args.per_class)

    def _vqgan(self) -> Vqgan | None:
        if self.verb == "compare":
            return None
        folder = self.args.vqgan
        if folder is None:
            own = self.dove.model.vqgan
            quantised = "" if own.quantize is not None else ", not quantised"
            return Vqgan(own, self.size, f"{self.dove.name}'s VQGAN{quantised}")
        from dove_ext.models.vqgan import VQGAN

        dtype = getattr(torch, self.args.dtype)
        model = VQGAN.from_pretrained(folder, device=self.dove.model.device, dtype=dtype)
        return Vqgan(model, self.size, _folder_name(folder))

    def _second(self, option: str, key: str) -> Dove | None:
        name = getattr(self.args, option, None)
        if name is None:
            return None
        dtype = getattr(torch, self.args.dtype)
        model = DoveModel.from_pretrained(name, device=self.dove.model.device, dtype=dtype)
        if model.config.image_size != self.size:
            raise DoveError(
                f"--{option} {name!r} takes images of {model.config.image_size} pixels, {self.dove.name} of "
                f"{self.size}; only models of one size stand side by side"
            )
        query = torch.tensor(self.args.null_query) if key == "qdove" and self.args.null_query else None
        words = model.config.query_vocab_size
        if query is not None and not (query.min() >= 0 and query.max() < words):
            raise DoveError(
                f"--null-query {' '.join(map(str, query.tolist()))} does not fit {name!r}, which "
                + (f"takes ids from 0 to {words - 1}" if words else "takes no ids of words; leave it out")
            )
        second = Dove(model, key, query)
        if second.name == self.dove.name:  # two trainings of one preset
            self.dove.name, second.name = _apart(str(self.args.model), str(name))
        return second

    def _check_layer(self) -> None:
        layer = getattr(self.args, "layer", None)
        for system in (self.dove, self.qdove):
            layers = 0 if system is None else len(system.model.generator.stack.layers)
            if system is not None and layer is not None and layer > layers:
                raise DoveError(f"--layer {layer} is above the {layers} layers of {system.name}'s generator")

    # --- What is measured -----------------------------------------------------------------------------

    def run(self) -> Report:
        """Measure everything that was asked for."""
        parts: dict[str, Callable[[], Section]] = {
            "reconstruction": self.reconstruction,
            "lengths": self.lengths,
            "classify": self.classify,
            "probe": self.probe,
            "segment": self.segment,
            "compare": self.compare,
        }
        if self.verb != "all":
            wanted = [self.verb]
        else:
            wanted = [*UNLABELLED, *(("classify", "probe") if self.labelled else ())]
            wanted += ["compare"] if self.against else []
        sections = [parts[name]() for name in wanted]
        images = self.images if self.images is not None else self.labelled
        assert images is not None
        readable = f"{len(images) - len(images.failed)} images" if wanted != ["segment"] else "images"
        subtitle = f"Measured on {readable} from {images.source}, {datetime.now(timezone.utc):%d %B %Y}."
        for found in (self.images, self.labelled):
            self.notes += [*unreadable(found), *found.left_out] if found is not None else []
        return Report(f"{self.dove.name}: evaluation", subtitle, sections, self._origin(), self.notes)

    @cached_property
    def setup(self) -> reconstruction.Setup:
        """How reconstructions are judged."""
        args = self.args
        counts = tuple(sorted(set(self.dove.counts(args.counts))))
        if not counts:
            raise DoveError(
                f"--counts {args.counts} are all above the {self.dove.model.config.num_tokens} tokens of "
                f"{self.dove.name}"
            )
        distance, features = backbones.load(
            args.perceptual, args.perceptual_weights, getattr(args, "inception", None), self.notes
        )
        return reconstruction.Setup([self.dove], counts, distance, features, args.fit, args.batch_size)

    def reconstruction(self) -> Section:
        """Quality against token count."""
        assert self.images is not None
        systems = [s for s in (self.dove, self.qdove, self.vqgan) if s is not None]
        codecs = (
            [Codec.jpeg(self.dove.token_bytes), Codec.webp(self.dove.token_bytes)] if self.args.codecs else []
        )
        setup = replace(self.setup, systems=[*systems, *codecs])
        rows = reconstruction.measure(self.images, self.size, setup, self.output)
        return reconstruction_section.show(self.images, self.size, rows, setup)

    def lengths(self) -> Section:
        """What lengths follow."""
        assert self.images is not None
        args = self.args
        rows = length_study.measure(
            self.images, self.dove, self.output, fit=args.fit, batch_size=args.batch_size
        )
        return length_study.show(self.images, rows, self.dove, args.fit)

    @cached_property
    def extracted(self) -> list[Extracted]:
        """Frozen features of the labelled images."""
        assert self.labelled is not None
        systems = [s for s in (self.dove, self.qdove, self.vqgan, Pixels()) if s is not None]
        return extract(
            self.labelled, systems, self.size, self.output, fit=self.args.fit, batch_size=self.args.batch_size
        )

    def classify(self) -> Section:
        """An MLP on pooled tokens."""
        assert self.labelled is not None
        result = classify.measure(self.extracted, replace(MLP, seeds=self.args.seeds))
        return classify.show(self.labelled, result, self.args.fit)

    def probe(self) -> Section:
        """A linear layer on hidden layers."""
        assert self.labelled is not None
        result = probe.measure(self.extracted, replace(LINEAR, seeds=self.args.seeds))
        return probe.show(self.labelled, result, self.args.fit)

    def segment(self) -> Section:
        """Hidden features as pictures."""
        assert self.images is not None
        models = [m for m in (self.dove, self.qdove) if m is not None]
        return segment.show(self.images, models, self.vqgan, self.args.fit, self.args.layer)

    def compare(self) -> Section:
        """Two models, paired."""
        assert self.images is not None and self.against is not None
        # A Frechet distance has no pairs.
        setup = replace(self.setup, systems=[self.dove, self.against], features=None)
        rows = reconstruction.measure(self.images, self.size, setup, self.output)
        return compare.show(self.images, self.size, rows, setup)

    # --- What is written ------------------------------------------------------------------------------

    def write(self, report: Report) -> tuple[Path, Path]:
        """Write report.html and report.json, each whole or not at all."""
        page, numbers = self.output / "report.html", self.output / "report.json"
        texts = {page: report.html(), numbers: json.dumps(report.json(), indent=1, allow_nan=False) + "\n"}
        for file, text in texts.items():
            with atomic_write(file) as temporary:
                temporary.write_text(text, encoding="utf-8")
        return page, numbers

    def _origin(self) -> dict[str, str]:
        model = self.dove.model
        baseline = self.vqgan if getattr(self.args, "vqgan", None) else None
        systems = [s for s in (self.dove, self.qdove, self.against, baseline) if s is not None]
        return {
            # A file name may hold bytes that are no UTF-8, and a report cannot.
            "command": f"dove {shlex.join(sys.argv[1:])}".encode("utf-8", "backslashreplace").decode(),
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


def _apart(first: str, second: str) -> tuple[str, str]:
    """Two model names or folders as people would call them, different ones."""
    short = _folder_name(first), _folder_name(second)
    return short if short[0] != short[1] else (first, second)


def _folder_name(path: str) -> str:
    """What people call a model's folder: training calls each one `model`, inside a folder that has a name."""
    folder = Path(path).resolve()
    return folder.parent.name if folder.name == "model" else folder.name
