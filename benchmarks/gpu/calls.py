"""The two calls that a GPU is borrowed for, each a list of steps in order of value.

Nothing of torch is imported here: what runs the steps must not break with them.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from importlib.util import find_spec

from .steps import CLOSING_SECONDS, Call, Step

BUILD_SECONDS = 240.0


class RefusedError(Exception):
    """A call that cannot be made; one sentence with the remedy."""


def module(name: str, *arguments: object) -> tuple[str, ...]:
    """The command line of a module."""
    return (sys.executable, "-m", name, *map(str, arguments))


def names(text: str, known: Sequence[str], option: str) -> list[str]:
    """An option's comma-separated names; none: all.

    Raises:
        RefusedError: naming one that is not known.
    """
    found = [name for name in text.split(",") if name]
    for name in found:
        if name not in known:
            raise RefusedError(f"{option}: there is no {name!r}; choose from {', '.join(known)}")
    return found or list(known)


def asked(*command: str, environment: Mapping[str, str] | None = None) -> str:
    """What a tool prints; nothing if it fails or is not there."""
    try:
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=60, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()


class Steps:
    """The steps of both calls.

    Args:
        call: runs them.
        options: of the command line.
    """

    CHECK = ("memcheck", "racecheck", "table", "models", "step", "bits", "opcheck", "quick")
    QUICK = ("generator", "encode", "eos", "attention", "group_norm", "pack")
    MEASURE = ("encode", "generator", "eos", "attention", "encode-compiled", "group_norm", "training",
               "train")  # fmt: skip

    def __init__(self, call: Call, options: argparse.Namespace) -> None:
        self.call, self.options = call, options
        self.dry = ["--dry-run"] if options.dry_run else []
        self.wanted = names(options.only, self.CHECK if options.verb == "check" else self.MEASURE, "--only")

    def run(self, *steps: Step) -> None:
        """Those of the steps that are wanted, one after the other."""
        for step in steps:
            if step.name.split("-")[0] in self.wanted or step.name in self.wanted:
                self.call.run(step)

    def usable(self) -> bool:
        """Whether the compiled module runs on this GPU; if not it is compiled here, for this GPU alone."""
        code = "from benchmarks.gpu.device import require_gpu; require_gpu()"
        code = "" if self.dry else f"{code}; "
        step = Step("import", 120, (sys.executable, "-c", f"{code}import dove_ext; print(dove_ext.info())"))
        if self.call.run(step):
            return True
        query = ("--query-gpu=compute_cap", "--format=csv,noheader")
        capability = asked("nvidia-smi", *query, environment=self.call.environment)
        number = capability.partition("\n")[0].replace(".", "") or "90"
        architecture = "90a-real" if number == "90" else f"{number}-real"
        build = Step(
            "build", BUILD_SECONDS, (sys.executable, "setup.py", "-q", "build_ext", "--inplace"),
            {"CMAKE_ARGS": f"-DDOVE_CUDA_ARCHITECTURES={architecture}"},
        )  # fmt: skip
        self.call.failed.remove("import")
        return self.call.run(build) and self.call.run(step)

    # --- Is it right

    def check(self) -> None:
        """Sanitizer beside table and models; then, alone on the GPU, quick figures."""
        tools = [tool for tool in ("memcheck", "racecheck") if tool in self.wanted]
        with self.call.beside(*(lambda tool=tool: self.sanitize(tool) for tool in tools)):
            self.run(
                self.table("table", 150, "not test_opcheck and not same_bits"),
                Step("models", 70, module("benchmarks.gpu.models", *self.dry)),
                self.first_step(40),
                self.table("bits", 60, "same_bits"),
                self.table("opcheck", 60, "test_opcheck"),
            )
        for name in self.QUICK:
            self.run(self.benchmark(f"quick-{name}", 45, name, "--quick"))

    def table(self, name: str, seconds: float, rows: str) -> Step:
        """Rows of the case table on the GPU, with poisoned memory; in a dry run two rows on the CPU, too."""
        files = ["tests/ops/test_device.py", "tests/models/test_graphs.py"]
        if self.dry:
            files[1], rows = "tests/ops/test_table.py", "zero_tail-strided and fp32"
        options = ["-p", "benchmarks.gpu.poison", "-p", "no:cacheprovider", "--tb=line", "--maxfail=60"]
        if find_spec("xdist"):
            options += ["-n", "1" if self.dry else str(min(12, os.cpu_count() or 1))]
        return Step(
            name, seconds, module("pytest", *files, "-k", rows, *options),
            {"CUBLAS_WORKSPACE_CONFIG": ":4096:8", "OMP_NUM_THREADS": "1"},
        )  # fmt: skip

    def first_step(self, seconds: float) -> Step:
        """One step of each stage that `measure` trains, on a GPU as well: small pictures, one at a time."""
        folder = self.call.work / "step"
        return Step("step", seconds, module(
            "benchmarks.gpu.train", "--pack", self.options.pack, "--work", folder / "work", "--out", folder,
            "--seconds", int(seconds), "--dry-run",
        ))  # fmt: skip

    def sanitize(self, tool: str) -> None:
        """A tool of compute-sanitizer over some rows: our kernels alone, every tensor its own allocation."""
        path = self.call.environment["PATH"]
        sanitizer = shutil.which("compute-sanitizer", path=f"{path}{os.pathsep}/usr/local/cuda/bin")
        if sanitizer is None:
            self.call.failed.append(tool)
            self.call.note(f"{tool}: not run, compute-sanitizer was not found")
            return
        options = re.findall(r"--(?:kernel-name|kernel-regex|filter)\b", asked(sanitizer, "--help"))
        filters = [[options[0], "kns=dove"]] if options else []
        for chosen in (*filters, []):  # the option is spelt differently from version to version
            step = Step(
                tool, 200,
                (sanitizer, "--tool", tool, "--error-exitcode", "9", *chosen,
                 *module("benchmarks.gpu.sanitize", *self.dry)),
                {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1", "OMP_NUM_THREADS": "1"},
            )  # fmt: skip
            if self.call.run(step) or " rows, " in self.call.log_of(tool) or self.call.left() < 60:
                return
            self.call.note(f"{tool}: once more without a filter on kernels")
            self.call.failed.remove(tool)

    # --- How fast is it

    def measure(self) -> None:
        """Records in order of value, and with what is left of the time a training."""
        batches = ("--batches", "1" if self.dry else "64,8,1")
        self.run(
            self.benchmark("encode", 75, "encode", *batches),
            self.benchmark("generator", 40, "generator", *batches),
            self.benchmark("eos", 60, "eos", "--quick", *batches),
            self.benchmark("attention", 75, "attention", "--quick", *batches),
            self.benchmark("encode-compiled", 75, "encode", "--compiled", *batches),
            self.benchmark("group_norm", 45, "group_norm", "--quick", *batches),
            self.training(45),
        )
        self.train()

    def training(self, seconds: float) -> Step:
        """Images a second of both models."""
        own = ["--quick"] if self.dry else ["--device", "cuda", "--preset", "dove-base", "dove-tiny"]
        own += ["--seconds", str(10 * self.options.seconds)]
        path = self.call.records / "training.json"
        return Step("training", seconds, module("benchmarks.ops.training", *own, "--json", path))

    def benchmark(self, step: str, seconds: float, name: str, *more: str) -> Step:
        """A benchmark of this package, its record named after the step."""
        path = self.call.records / f"{step}.json"
        options = (*more, "--seconds", self.options.seconds, "--json", path, *self.dry)
        return Step(step, seconds, module(f"benchmarks.gpu.{name}", *options))

    def train(self) -> None:
        """dove-tiny's recipe, shortened to the time that is left."""
        if "train" not in self.wanted:
            return
        left = self.call.left()
        if left < 60 and not self.dry:
            self.call.failed.append("train")
            self.call.note(f"train: not begun, {max(left, 0):.0f} s are too few")
            return
        options = self.options
        chosen = ["--from", options.train_from] if options.train_from else []
        chosen += ["--stages", options.stages] if options.stages else []
        self.call.run(
            Step("train", left, module(
                "benchmarks.gpu.train", "--pack", options.pack, "--work", self.call.work / "train",
                "--out", options.out, "--seconds", int(left), *chosen, *self.dry,
            ))
        )  # fmt: skip

    def report(self) -> None:
        """The records, if there are any, as one Markdown file."""
        if not any(self.call.records.iterdir()):
            return
        target = self.options.out / "report.md"
        command = module("benchmarks.gpu.report", self.call.records, "--output", target)
        self.call.run(Step("report", CLOSING_SECONDS, command), closing=True)
