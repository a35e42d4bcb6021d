"""The bindings of the CUDA launchers, which a build without CUDA lacks, against the stub."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from types import ModuleType

import dove_ext


def test_stub_names_the_cuda_launchers_and_their_arguments(simt: ModuleType) -> None:
    stub = ast.parse((Path(dove_ext.__file__).parent / "_C.pyi").read_text())
    declared = {
        node.name: [a.arg for a in node.args.args]
        for node in stub.body
        if isinstance(node, ast.FunctionDef) and node.name.startswith("cuda_")
    }
    del declared["cuda_archs"], declared["cuda_why_not"]  # they describe the build, in every build
    actual = {
        name: re.findall(r"(\w+): ", (getattr(simt, name).__doc__ or "").splitlines()[0].split("->")[0])
        for name in dir(simt)
        if name.startswith("cuda_")
    }
    assert actual == declared
