"""The compiled module, its stub, and what `info` says of them."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

import dove_ext
from dove_ext import _C, ops


def test_stub_names_the_same_functions_and_arguments() -> None:
    stub = ast.parse((Path(dove_ext.__file__).parent / "_C.pyi").read_text())
    declared = {
        node.name: [a.arg for a in node.args.args] for node in stub.body if isinstance(node, ast.FunctionDef)
    }
    actual = {}
    for name in dir(_C):
        if not name.startswith("__") and not isinstance(getattr(_C, name), type):
            signature = (getattr(_C, name).__doc__ or "").splitlines()[0].split("->")[0]
            actual[name] = re.findall(r"(\w+): ", signature)
    if not dove_ext.info()["backends"]["cuda"]["built"]:
        assert not any(name.startswith("cuda_") for name in actual.keys() - {"cuda_archs", "cuda_why_not"})
        declared = {
            name: arguments for name, arguments in declared.items() if name in actual or name[:5] != "cuda_"
        }
    assert actual == declared


def test_info_is_honest_about_backends() -> None:
    backends = dove_ext.info()["backends"]
    assert backends["cpu"]["available"] and backends["cpu"]["isa"] in ("portable", "avx2+fma", "avx512+bf16")
    cuda = backends["cuda"]
    assert cuda["built"] == bool(cuda["archs"])
    assert cuda["available"] == (not cuda["why"])


def test_backend_that_cannot_run_raises() -> None:
    with pytest.raises(ValueError, match="'tpu' is unknown; choose one of auto, cpu, cuda, torch"):
        ops.set_backend("tpu")
    cuda = dove_ext.info()["backends"]["cuda"]
    if not cuda["available"]:
        with pytest.raises(RuntimeError, match=re.escape(f"backend 'cuda' cannot run: {cuda['why']}")):
            ops.set_backend("cuda")
    assert ops.set_backend("auto") == "auto"  # a refused choice changes nothing


def test_dtype_without_a_kernel_is_refused_with_the_remedy() -> None:
    import torch

    tokens = torch.zeros(1, 2, 3, dtype=torch.float16)
    cu_seqlens = torch.tensor([0, 2], dtype=torch.int32)
    with pytest.raises(TypeError, match=r"float32 or bfloat16, got torch\.float16; cast the model or call"):
        ops.pack(tokens, cu_seqlens)


def test_importing_the_command_does_not_import_torch() -> None:
    import subprocess
    import sys

    code = "import sys, dove_ext.cli; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_no_framework_header_below_the_binding() -> None:
    csrc = Path(__file__).parents[1] / "csrc"
    sources = [p for folder in ("include", "cpu", "cuda") for p in (csrc / folder).rglob("*") if p.is_file()]
    assert sources
    for source in sources:
        assert not re.search(r"#include [<\"](torch|ATen|c10|pybind11|Python)", source.read_text()), source
