"""The class that lmms-eval makes of `--model dove`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lmms_eval.api.model import lmms  # type: ignore[import-not-found, unused-ignore]

from dove_ext.progress import progress
from dove_vlm.benchmarks.generate import Model, load
from dove_vlm.benchmarks.records import BenchmarkError


class DoveLmms(lmms):  # type: ignore[misc, unused-ignore]
    """A `dove_vlm` model, in one process.

    Args:
        pretrained: its folder.
        num_tokens: exactly so many tokens an image; None: the model's own lengths.
        query: a text that a Q-DOVE encoder is asked about each image, such as "null".
        device, dtype: where and in what the language model works.
        batch_size: questions that are answered at once.
        max_batch_size: of no meaning here.

    Raises:
        BenchmarkError: if there is no such model, or an option is out of range.
    """

    is_simple = True

    def __init__(
        self,
        pretrained: str,
        num_tokens: int | None = None,
        query: str | None = None,
        device: str = "cpu",
        dtype: str = "auto",
        batch_size: int | str = 1,
        max_batch_size: int | None = None,
    ) -> None:
        super().__init__()
        if not str(batch_size).isdecimal() or int(batch_size) < 1:
            raise BenchmarkError(f"batch_size {batch_size!r} is no whole number of at least 1; give one")
        self.batch_size, self.query = int(batch_size), query
        processor, model = load(pretrained, device, dtype)
        self.asked = Model(processor, model, None if num_tokens is None else int(num_tokens))

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """Greedy answers, in the order of the requests."""
        answers = [""] * len(requests)
        # Requests of one batch share their settings; the order within is the requests' own.
        alike: dict[str, list[int]] = {}
        for i, request in enumerate(requests):
            alike.setdefault(repr(sorted(request.args[1].items())), []).append(i)
        with progress(len(requests), "lmms-eval") as bar:
            for indices in alike.values():
                for start in range(0, len(indices), self.batch_size):
                    batch = indices[start : start + self.batch_size]
                    for i, text in zip(batch, self._answer([requests[i].args for i in batch]), strict=True):
                        answers[i] = text
                    bar.update(len(batch))
        return answers

    def _answer(self, batch: list[Any]) -> list[str]:
        contexts, settings, visuals, numbers, tasks, splits = zip(*batch, strict=True)
        wish = settings[0]
        if wish.get("do_sample") or wish.get("temperature") or wish.get("num_beams", 1) > 1:
            raise BenchmarkError("answers are greedy; set temperature 0, do_sample false, num_beams 1")
        images = [
            list(look(self.task_dict[task][split][number]))
            for look, number, task, split in zip(visuals, numbers, tasks, splits, strict=True)
        ]
        texts = self.asked.answer(
            contexts, images, queries=self.query, max_new_tokens=wish.get("max_new_tokens", 128)
        )
        until = wish.get("until", [])
        return [_before(text, [until] if isinstance(until, str) else until) for text in texts]

    def loglikelihood(self, requests: Sequence[Any]) -> Any:
        """Not for these models: the benchmarks of Table 3 are answered in words.

        Raises:
            NotImplementedError: always.
        """
        raise NotImplementedError("DOVE models answer in words; choose tasks of output_type generate_until")

    def generate_until_multi_round(self, requests: Sequence[Any]) -> Any:
        """Likewise.

        Raises:
            NotImplementedError: always.
        """
        raise NotImplementedError("DOVE models answer once; choose tasks of output_type generate_until")


def _before(text: str, ends: Sequence[str]) -> str:
    """A text up to the first of some ends."""
    for end in ends:
        text = text.split(end)[0] if end else text
    return text
