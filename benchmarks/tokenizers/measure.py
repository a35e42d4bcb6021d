"""Runs a plan and makes the record: times in turns, FLOPs, peak memory, and the machine they belong to."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from dove_ext import _C, DoveTokens
from dove_ext.errors import DoveError

from .. import timing
from ..commit import digest
from ..record import commit, machine
from . import build, flops, systems
from .build import Call, System
from .parts import KILLED, Parts, Say
from .systems import Group

Row = dict[str, Any]


def describe(system: System, stage: str, batch: int) -> Row:
    """The fields that say what a row measured."""
    return {
        "system": system.name, "way": system.way, "tokens": system.tokens, "stage": stage, "batch": batch,
        "size": system.size,
    }  # fmt: skip


def why_not(error: Exception) -> str:
    """One sentence for a peer that did not run."""
    if isinstance(error, ImportError):
        return f"{error.name or error} is not installed; pip install 'dove-ext[bench]'"
    return f"{type(error).__name__}: {(str(error).strip() or 'no message').splitlines()[0][:200]}"


def prepare(system: System, stage: str, batch: int, device: torch.device) -> tuple[Row, Call | None]:
    """A row without figures and its call, warmed up; no call if the peer fails, and then why."""
    row = describe(system, stage, batch)
    try:
        call = system.build(system, batch, device)[stage]()
        result = None if system.slow else call()
        if system.way == systems.COMPILED:
            call()  # the first one compiled
    except Exception as error:
        if system.ours or isinstance(error, (KeyError, DoveError)):
            raise
        row["missing"] = why_not(error)
        return row, None
    if isinstance(result, DoveTokens):
        row["lengths"] = result.lengths.tolist()
    if stage == build.FIRST_WORD and result is not None:
        _, memory, row["lengths"] = result
        row["cache_mib"] = memory / 2**20
    return row, call


def prefills(counts: tuple[int, ...], device: torch.device) -> list[tuple[Row, Call | None]]:
    """The language model's prefill of one image at each number of image tokens."""
    if not counts:
        return []
    shape = "cuda" if device.type == "cuda" else "cpu"
    rows: list[Row] = [
        {"system": "Llama", "way": shape, "tokens": n, "stage": "prefill", "batch": 1, "size": 256}
        for n in counts
    ]
    try:
        from .llm import SHAPES, Prefill

        with device:
            model = Prefill(512, SHAPES[shape]).to(torch.bfloat16).eval()
    except ImportError as error:
        return [({**row, "missing": why_not(error)}, None) for row in rows]

    def call(n: int) -> Call:
        tokens = torch.randn(1, n, 512, dtype=torch.bfloat16, device=device)

        def run() -> None:
            with torch.no_grad():
                model(tokens)
            if device.type == "cuda":
                torch.cuda.synchronize(device)

        run()
        return run

    return [(row, call(row["tokens"])) for row in rows]


def run_group(group: Group, device: torch.device, say: Say, rounds: int | None = None) -> list[Row]:
    """Time a group's candidates in turns: rows with "seconds", one entry a round."""
    prepared: list[tuple[Row, Call | None]] = []
    slow = set()
    for system, batch in group.cases:
        for stage in group.stages:
            if stage in system.build(system, batch, device):
                say(f"{group.name}: preparing {system.name} ({system.way}), {stage}")
                prepared.append(prepare(system, stage, batch, device))
                if system.slow:
                    slow.add(str(len(prepared) - 1))
    prepared += prefills(group.prefill, device)
    calls = {str(i): call for i, (_, call) in enumerate(prepared) if call is not None}
    say(f"{group.name}: measuring {len(calls)} candidates in turns")
    times = timing.interleave(
        calls, seconds=group.seconds, min_rounds=rounds or group.rounds, warmup=0, slow=slow & set(calls)
    )
    rows = [row for row, _ in prepared]
    for i, seconds in times.items():
        rows[int(i)]["seconds"] = seconds
    return [{"group": group.name, **row} for row in rows]


def environment() -> dict[str, str]:
    """What is set for the whole process, for all systems alike."""
    names = ("OMP_WAIT_POLICY", "OMP_NUM_THREADS", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_")
    found = {name: os.environ[name] for name in names if name in os.environ}
    return {**found, "freed memory": "kept (dove_ext.memory.keep_freed_memory)"}


def machine_of(device: torch.device) -> dict[str, Any]:
    """Processor or GPU, and the versions that decide a timing."""
    facts = {**machine(), "device": str(device)}
    for package in ("transformers", "onnxruntime", "triton"):
        try:
            facts[package] = version(package)
        except PackageNotFoundError:
            continue
    if device.type == "cuda":
        facts |= {
            "gpu": torch.cuda.get_device_name(device),
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
        }
    facts["system"] = f"{platform.system()} {platform.machine()}"
    return facts


def in_child(task: dict[str, Any], *, plain_environment: bool = False, speaks: bool = False) -> Any:
    """What `child` answers to a task, in a process of its own; {"missing": why} if it fails.

    Args:
        task: see `child.run`.
        plain_environment: without what `environment` lists.
        speaks: let its progress through to stderr.
    """
    task = {**task, "weights": build.WEIGHTS, "threads": torch.get_num_threads()}
    environment = dict(os.environ)
    root = str(Path(__file__).resolve().parents[2])
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [root, environment.get("PYTHONPATH")]))
    if plain_environment or task["what"] == "memory":
        for name in ("OMP_WAIT_POLICY", *(n for n in environment if n.startswith("MALLOC_"))):
            environment.pop(name, None)
    done = subprocess.run(
        [sys.executable, "-m", f"{__package__}.child", json.dumps(task)],
        env=environment, stdout=subprocess.PIPE, stderr=None if speaks else subprocess.PIPE, text=True,
        check=False,
    )  # fmt: skip
    if done.returncode != 0:
        killed = KILLED if done.returncode == -signal.SIGKILL else ""
        said = killed or (done.stderr or "").strip() or f"exit code {done.returncode}"
        return {"missing": said.splitlines()[-1][:200]}
    return json.loads(done.stdout.splitlines()[-1])


def peak_memory(quick: bool, device: torch.device, say: Say, only: Sequence[str] = ()) -> list[Row]:
    """Peak memory of one encode, each in a process that does nothing else."""
    rows = []
    for system, batch in systems.memory_cases(quick, only):
        say(f"peak memory: {system.name} ({system.way}), batch {batch}")
        task = {"what": "memory", "device": str(device), "batch": batch}
        answer = in_child({**task, "system": system.name, "way": system.way})
        rows.append({**describe(system, "encode", batch), **answer})
    return rows


def default_environment(device: torch.device, say: Say, only: Sequence[str] = ()) -> list[Row]:
    """The reference and dove-base without the settings of `environment`, in turns, in one process."""
    both = (systems.REFERENCE, systems.find("dove-base-128", systems.OURS))
    chosen = [system for system in both if systems.wanted(system, only)]
    if not chosen:
        return []
    say("default environment")
    task = {"what": "time", "device": str(device), "batch": 8, "systems": [[s.name, s.way] for s in chosen]}
    answer = in_child(task, plain_environment=True)
    rows = [{"group": "default environment", **describe(s, "encode", 8)} for s in chosen]
    if "missing" in answer:
        return [{**row, **answer} for row in rows]
    return [{**row, "seconds": seconds} for row, seconds in zip(rows, answer["seconds"], strict=True)]


def group_in_child(group: Group, device: torch.device, say: Say, only: Sequence[str] = ()) -> list[Row]:
    """`run_group` in a process of its own, which gives back what it held.

    A group that is too large for this machine's memory is a gap in the record.

    Raises:
        DoveError: if it fails otherwise.
    """
    say(f"{group.name}: begins")
    task = {"what": "group", "group": group.name, "device": str(device), "only": list(only)}
    answer = in_child(task, speaks=True)
    if answer.get("missing") == KILLED:
        say(f"{group.name}: {KILLED}")
        return [
            {"group": group.name, **describe(system, stage, batch), **answer}
            for system, batch in group.cases
            for stage in group.stages
            if stage in system.build(system, batch, device)
        ]
    if "missing" in answer:
        raise DoveError(
            f"the group {group.name!r} failed, see above; what was measured before it is kept, and the same "
            "command goes on from there"
        )
    rows: list[Row] = answer["rows"]
    return rows


def record(
    quick: bool,
    device: torch.device,
    command: list[str],
    say: Say,
    partial: Path | None = None,
    only: Sequence[str] = (),
) -> tuple[dict[str, Any], Parts]:
    """Everything, as it is written to bench.json.

    Args:
        quick: a few systems, all in this process.
        device: where.
        command: as it is to stand in the record.
        say: takes lines of progress.
        partial: file that holds what is done so far, see `Parts`.
        only: starts of the names of the systems to be measured; none: all.
    """
    facts, head = machine_of(device), commit()
    kernels = hashlib.sha256(Path(_C.__file__).read_bytes()).hexdigest()
    around = environment() if device.type == "cpu" else {}
    weights = {
        name: [str(Path(path).resolve()), Path(path).stat().st_mtime] for name, path in build.WEIGHTS.items()
    }
    identity = {
        "commit": head,
        "sources": [digest(), kernels],  # of a tree with changes the commit says nothing
        "command": command,
        "machine": facts,
        "environment": around,
        "weights": weights,
    }
    parts = Parts(partial, identity, say)
    say("counting FLOPs")
    gflop = flops.table(only)
    # First, before this process holds the memory that it was told to keep (--quick).
    memory: list[Row] = []
    rows: list[Row] = []
    whole = not systems.chosen_groups(quick, only)
    if whole:
        memory = parts.get("memory", lambda: peak_memory(quick, device, say, only))
    if device.type == "cpu" and not quick and whole:
        rows += parts.get("default environment", lambda: default_environment(device, say, only))
    for group in systems.plan(quick, only):
        run = run_group if quick else functools.partial(group_in_child, only=only)
        rows += parts.get(group.name, functools.partial(run, group, device, say))
    made = {
        "benchmark": "bench",
        "mode": "quick" if quick else "full",
        "command": command,
        "commit": head,
        "utc": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "wall_s": round(parts.held["seconds"]),
        "machine": facts,
        "environment": around,
        "weights": {name: Path(path).name for name, path in build.WEIGHTS.items()},
        "rows": rows,
        "memory": memory,
        "gflop": gflop,
    }
    return made, parts
