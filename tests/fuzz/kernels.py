"""Fuzz the CPU kernels' C++ entry points under ASAN and UBSAN: `python -m tests.fuzz.kernels [OPTIONS]`.

Compiles csrc and tests/fuzz/kernels.cpp with clang (Debian: clang-19 and libclang-rt-19-dev) into
build/fuzz-kernels. Options are libFuzzer's. It starts from tests/fuzz/corpus-kernels; new interesting inputs
go to out/fuzz/kernels, and one that ends it to out/fuzz/kernels-crash-*. Where there is no such clang it says
so, and nothing is fuzzed.
"""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CORPUS = Path(__file__).parent / "corpus-kernels"
OPS, ISAS = 10, 3  # of kernels.cpp
OLDEST, NEWEST = 19, 30  # 16 crashes over bfloat16 in AVX-512
FLAGS = (
    "-O1 -gline-tables-only -Wno-unknown-warning-option -fno-omit-frame-pointer "
    "-fno-sanitize-recover=undefined -fsanitize=address,undefined"
)
LIMITS = ("-rss_limit_mb=2048", "-timeout=60", "-max_len=512")


def find_clang() -> str | None:
    """A clang++ that has libFuzzer and the sanitizers; `CXX` is asked first."""
    names = [os.environ.get("CXX", ""), "clang++", *(f"clang++-{v}" for v in range(NEWEST, OLDEST - 1, -1))]
    for name in names:
        if "clang" not in name or (path := shutil.which(name)) is None:
            continue
        version = subprocess.run([path, "-dumpversion"], check=False, capture_output=True, text=True).stdout
        if not (number := version.partition(".")[0]).isdecimal() or int(number) < OLDEST:
            continue
        probe = [path, "-x", "c++", "-", "-fsanitize=fuzzer,address,undefined", "-o", os.devnull]
        code = 'extern "C" int LLVMFuzzerTestOneInput(const unsigned char*, unsigned long) { return 0; }'
        made = subprocess.run(probe, input=code.encode(), check=False, capture_output=True)
        if made.returncode == 0:
            return path
    return None


def build(clang: str) -> Path:
    """The program; what is there is only brought up to date."""
    folder = ROOT / "build" / "fuzz-kernels"
    configure = [
        "cmake", "-S", str(ROOT), "-B", str(folder), "-G", "Ninja", "-DCMAKE_BUILD_TYPE=None",
        "-DDOVE_CUDA=OFF", f"-DCMAKE_CXX_COMPILER={clang}", f"-DCMAKE_CXX_FLAGS={FLAGS},fuzzer-no-link",
    ]  # fmt: skip
    subprocess.run(configure, check=True, stdout=subprocess.DEVNULL)
    subprocess.run(["cmake", "--build", str(folder), "--target", "dove"], check=True)
    program, source = folder / "kernels", Path(__file__).with_suffix(".cpp")
    library = folder / "libdove.a"
    if not program.exists() or program.stat().st_mtime < max(p.stat().st_mtime for p in (source, library)):
        link = [
            clang, "-std=c++17", *FLAGS.split()[:-1], "-fsanitize=fuzzer,address,undefined", "-Wall",
            "-Wextra", "-Icsrc/include", str(source), str(library), "-lpthread", "-o", str(program),
        ]  # fmt: skip
        subprocess.run(link, check=True, cwd=ROOT)
    return program


def main(options: list[str]) -> int:
    """The command."""
    if (clang := find_clang()) is None:
        print(
            f"the kernels are not fuzzed: no clang from {OLDEST} on with libFuzzer is here; "
            f"in Debian: apt-get install clang-{OLDEST} libclang-rt-{OLDEST}-dev"
        )
        return 0
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # cmake and ninja
    found = ROOT / "out" / "fuzz" / "kernels"
    found.mkdir(parents=True, exist_ok=True)
    for number in range(OPS * ISAS * 4):  # of each op in each instruction set
        rest = random.Random(number).randbytes(256)
        (found / f"seed-{number}").write_bytes(bytes((number % ISAS, number // ISAS % OPS)) + rest)
    environment = {**os.environ, "UBSAN_OPTIONS": "print_stacktrace=1"}
    command = [
        str(build(clang)),
        *LIMITS,
        f"-artifact_prefix={found}-",
        *options,
        str(found),
        *([str(CORPUS)] if CORPUS.is_dir() else []),
    ]
    return subprocess.run(command, check=False, env=environment, cwd=ROOT).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
