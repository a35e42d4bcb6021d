"""The systems that are measured, one line each, and the plan: which of their stages are timed together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from . import build
from .build import COMPILED, EAGER, FIRST_WORD, GENERATOR, OURS, OURS_FP32, RELEASED, System

TOKENS = (32, 64, 128, 256)


def _all() -> Iterator[System]:
    yield System("VQGAN-256", RELEASED, build.vqgan, 256, (1, 8, 64), quick=True)
    yield System("VQGAN-256", EAGER, build.vqgan, 256, (1, 8, 64), quick=True)
    yield System("VQGAN-256", COMPILED, build.vqgan, 256, (1, 8), quick=True)
    for n in TOKENS:
        yield System(f"ALIT-{n}", RELEASED, build.alit, n, (1,))
        yield System(f"ALIT-{n}", EAGER, build.alit, n)
        if n in (32, 128):  # every roll-out is unrolled: compiling takes minutes
            yield System(f"ALIT-{n}", COMPILED, build.alit, n, (8,))
    yield System("ALIT, threshold met at 32", EAGER, build.alit, 32)
    yield System("ALIT, threshold not met by 256", EAGER, build.alit, 256, (1,))
    yield System("ALIT", RELEASED, build.alit, None, slow=True)
    for name, n in (("S-128", 128), ("B-64", 64), ("L-32", 32)):
        yield System(f"TiTok {name}", RELEASED, build.titok, n, (1,))
        yield System(f"TiTok {name}", EAGER, build.titok, n)
    for n in TOKENS:
        yield System(f"dove-base-{n}", OURS, build.dove, n, (1, 8, 64), quick=n != 64)
        yield System(f"dove-base-{n}", OURS_FP32, build.dove, n, (1, 8) if n == 128 else (1,))
    yield System("dove-base-own", OURS, build.dove, None, (1, 8, 64))
    yield System("dove-base-own", OURS_FP32, build.dove, None, ())
    yield System("dove-base, PyTorch's ops", EAGER, build.plain, None)
    yield System("dove-base, PyTorch's ops", COMPILED, build.plain, None, (8,))
    yield System("dove-base-128, ONNX Runtime", "fp32", build.onnx, 128, (8,))
    for way in (OURS, OURS_FP32):
        yield System("dove-tiny-own", way, build.dove, None, (1, 8, 64), quick=way == OURS)


SYSTEMS: tuple[System, ...] = tuple(_all())
REFERENCE = SYSTEMS[0]


@dataclass(frozen=True)
class Group:
    """Candidates that are timed in turns.

    Attributes:
        name: of the group in the record.
        stages: which of a system's stages.
        cases: systems with their batch sizes.
        seconds: how long, at least `rounds` rounds.
        rounds: of each candidate; more fit if the calls are quick.
        prefill: also the language model's prefill at these numbers of image tokens.
    """

    name: str
    stages: tuple[str, ...]
    cases: tuple[tuple[System, int], ...]
    seconds: float
    rounds: int = 3
    prefill: tuple[int, ...] = ()


PARTS = ("encode", "VQGAN encoder", GENERATOR, "base encoder", "roll-outs",
         "decode", "token decoder", "detokenize", "VQGAN decoder")  # fmt: skip
IN_PARTS = {("dove-base-128", OURS), ("dove-base-256", OURS), ("dove-tiny-own", OURS), ("ALIT-128", EAGER),
            ("TiTok S-128", EAGER), ("VQGAN-256", EAGER)}  # fmt: skip
SIZES = (128, 192, 256, 384)
READ = ("VQGAN-256", "ALIT-128", "ALIT-256", "dove-base-own", *(f"dove-base-{n}" for n in TOKENS))
"""What stands in front of the language model, from a picture's file to its first word."""


def wanted(system: System, only: Sequence[str]) -> bool:
    """Whether a system's name and way start with one of `only`, or there is none."""
    return not only or f"{system.name}, {system.way}".startswith(tuple(only))


def chosen_groups(quick: bool, only: Sequence[str]) -> list[str]:
    """Those of `only` that name groups of measurements; where there are any, nothing else is measured."""
    return [start for start in only if any(group.name.startswith(start) for group in _groups(quick))]


def plan(quick: bool, only: Sequence[str] = ()) -> list[Group]:
    """The measurements of `dove bench`, in order.

    Args:
        quick: few of them.
        only: starts of names, of systems or of groups; others, and the language model alone, are left out.
    """
    chosen = chosen_groups(quick, only)
    of_systems = [start for start in only if start not in chosen]
    groups = [
        replace(
            group,
            cases=tuple((s, batch) for s, batch in group.cases if wanted(s, of_systems)),
            prefill=() if only else group.prefill,
        )
        for group in _groups(quick)
        if not chosen or group.name.startswith(tuple(chosen))
    ]
    return [group for group in groups if group.cases]


def _groups(quick: bool) -> list[Group]:
    chosen = [s for s in SYSTEMS if s.quick or not quick]
    base = {s.tokens: s for s in SYSTEMS if s.name.startswith("dove-base-") and s.way == OURS}
    eager = find("dove-base, PyTorch's ops", EAGER)
    stops = [base[n] for n in ((128, 256) if quick else (*TOKENS, None))]
    eagers = [eager] if quick else [eager, replace(eager, way="eager fp32")]
    generator = Group("generator", (GENERATOR,), tuple((s, 8) for s in (*stops, *eagers)), 10.0)
    if quick:
        return [Group("encode, batch 8", ("encode",), tuple((s, 8) for s in chosen), 0.0, 2), generator]

    readable = [s for s in SYSTEMS if s.name in READ and s.way in (RELEASED, EAGER, OURS, OURS_FP32)]

    def at(batch: int) -> tuple[tuple[System, int], ...]:
        return tuple((s, batch) for s in chosen if batch in s.batches)

    parts = tuple((s, 8) for s in chosen if (s.name, s.way) in IN_PARTS)
    return [
        Group("encode, batch 1", ("encode",), at(1), 60.0, prefill=(*TOKENS, build.OWN_LENGTHS[0])),
        Group("encode, batch 8", ("encode",), at(8), 60.0),
        Group("encode, batch 64", ("encode",), (*at(64), (base[128], 8)), 60.0, 2),
        Group("decode, batch 1", ("decode",), at(1), 20.0),
        Group("decode, batch 8", ("decode",), at(8), 30.0),
        Group("parts, batch 8", PARTS, parts, 20.0),
        generator,
        Group("file to first word, batch 1", (FIRST_WORD,), tuple((s, 1) for s in readable), 60.0),
        Group("file to first word, batch 16", (FIRST_WORD,), tuple((s, 16) for s in readable), 60.0),
        Group("image size", PARTS[:3], tuple((replace(base[32], size=s), 8) for s in SIZES), 20.0),
    ]


def memory_cases(quick: bool, only: Sequence[str] = ()) -> list[tuple[System, int]]:
    """Systems whose peak memory is measured, each with its batch size."""
    ours, eager, vqgan = (
        find("dove-base-256", OURS), find("dove-base, PyTorch's ops", EAGER), find("VQGAN-256", EAGER)
    )  # fmt: skip
    cases = [(ours, 8), (eager, 8)]
    if not quick:
        at_8 = [REFERENCE, vqgan, find("ALIT-256", EAGER), find("TiTok S-128", EAGER)]
        cases = [*((s, 8) for s in at_8), *cases, (ours, 64), (eager, 64), (vqgan, 64)]
    return [(s, batch) for s, batch in cases if wanted(s, only)]


def find(name: str, way: str) -> System:
    """The system of that name and way.

    Raises:
        KeyError: if there is none.
    """
    for system in SYSTEMS:
        if (system.name, system.way) == (name, way):
            return system
    raise KeyError(f"{name} ({way})")
