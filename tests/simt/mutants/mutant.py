"""What a mutant is: one fault in the text of one kernel source, and the rows that must notice."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Mutant:
    """One fault.

    Fields:
        name: what is broken, as it appears in the test id.
        file: a file of csrc/cuda.
        old: text that occurs exactly once in it.
        new: what stands there in the mutant.
        rows: rows of the case table, as "op-label".
        dtype: "fp32", "bf16" or "fp16".
        backward: whether the gradients are compared, instead of the results.
        seeds: schedules to try until the fault shows.
        through: for a header, the kernel source by which the rows reach it.
    """

    name: str
    file: str
    old: str
    new: str
    rows: tuple[str, ...]
    dtype: str = "bf16"
    backward: bool = False
    seeds: tuple[int, ...] = (0, 1)
    through: str = ""

    @property
    def source(self) -> str:
        """The file that is compiled with the fault."""
        return self.through or self.file

    def __str__(self) -> str:
        return f"{self.file}:{self.name}"
