"""The compiled module, its stub, and what `info` says of them."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
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


def test_stub_names_the_structs_and_what_their_fields_hold() -> None:
    stub = ast.parse((Path(dove_ext.__file__).parent / "_C.pyi").read_text())
    declared = {
        struct.name: {
            ast.unparse(field.target): ast.unparse(field.annotation).split("[")[0]
            for field in struct.body
            if isinstance(field, ast.AnnAssign)
        }
        for struct in stub.body
        if isinstance(struct, ast.ClassDef)
    }
    actual = {}
    for name in dir(_C):
        if isinstance(struct := getattr(_C, name), type):
            empty = struct()
            fields = [field for field in dir(empty) if not field.startswith("_")]
            actual[name] = {field: type(getattr(empty, field)).__name__ for field in fields}
    assert actual == declared


def test_a_struct_takes_what_its_fields_hold() -> None:
    args = _C.GroupNormArgs(x=4096, x_stride_image=-3, silu=True)
    assert (args.x, args.x_stride_image, args.silu, args.eps, args.dtype) == (4096, -3, True, 0.0, 0)
    args.eps, args.dtype = 1e-6, 1
    assert (args.eps, args.dtype) == (1e-6, 1)
    pair, attention = _C.PairNormArgs(weight=(1, 2)), _C.AttentionArgs(q=(64, 1, 2, 3))
    assert pair.weight == (1, 2) and attention.q == (64, 1, 2, 3)
    with pytest.raises(ValueError, match="one address for each"):
        pair.weight = (1,)
    with pytest.raises(ValueError, match="stride_b, stride_n, stride_h"):
        attention.q = (64, 1)
    with pytest.raises(AttributeError, match="no attribute 'x_strides'"):
        args.x_strides = 0
    with pytest.raises(TypeError, match="GroupNormArgs has no field 'x_strides'"):
        _C.GroupNormArgs(x_strides=0)


def test_info_is_honest_about_backends() -> None:
    backends = dove_ext.info()["backends"]
    assert backends["cpu"]["available"] and backends["cpu"]["isa"] in ("portable", "avx2+fma", "avx512+bf16")
    cuda = backends["cuda"]
    assert cuda["built"] == bool(cuda["archs"])
    assert cuda["available"] == (not cuda["why"])


@pytest.mark.parametrize(
    ("archs", "capability", "served"),
    [
        ("80,90a-real", (8, 0), True),
        ("80,90a-real", (8, 9), True),  # code of the same generation
        ("80,90a-real", (9, 0), True),
        ("80,90a-real", (12, 0), True),  # from the PTX
        ("80,90a-real", (7, 5), False),
        ("80-real", (9, 0), False),
        ("90a-real", (9, 0), True),
        ("90a-real", (10, 0), False),
        ("86-virtual", (8, 0), False),
        ("86-virtual", (8, 9), True),
    ],
)
def test_which_gpus_a_build_serves(archs: str, capability: tuple[int, int], served: bool) -> None:
    from dove_ext._info import serves

    assert serves(archs.split(","), capability) == served


@pytest.mark.parametrize(
    ("archs", "capability", "why"),
    [
        (
            "80-real",
            (7, 5),
            "the kernels need compute capability 8.0, the GPU has 7.5; its ops run as plain PyTorch",
        ),
        (
            "80-real",
            (9, 0),
            "the kernels were built for 80-real, the GPU has compute capability 9.0; "
            "reinstall with CMAKE_ARGS=-DDOVE_CUDA_ARCHITECTURES=90",
        ),
        ("80", (9, 0), ""),
    ],
)
def test_a_gpu_without_kernels_is_told_what_to_do(
    monkeypatch: pytest.MonkeyPatch, archs: str, capability: tuple[int, int], why: str
) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: capability)
    monkeypatch.setattr(_C, "cuda_archs", lambda: archs)
    assert dove_ext.info()["backends"]["cuda"]["why"] == why


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
    csrc = Path(__file__).parents[2] / "csrc"
    sources = [p for folder in ("include", "cpu", "cuda") for p in (csrc / folder).rglob("*") if p.is_file()]
    assert sources
    for source in sources:
        assert not re.search(r"#include [<\"](torch|ATen|c10|pybind11|Python)", source.read_text()), source


def test_a_source_folder_without_its_compiled_module_says_what_to_do(tmp_path: Path) -> None:
    source = Path(dove_ext.__file__).parent
    shutil.copytree(source, tmp_path / "dove_ext", ignore=shutil.ignore_patterns("_C*.so", "weights"))
    # Without an editable install's own finder, which would fetch the module from its checkout.
    plain = "import sys; sys.meta_path = [f for f in sys.meta_path if 'editable' not in str(f)]; "
    for code in ("import dove_ext; dove_ext.info()", "from dove_ext import _C"):
        ran = subprocess.run(
            [sys.executable, "-c", plain + code], cwd=tmp_path, capture_output=True, text=True
        )
        last = ran.stderr.strip().splitlines()[-1]
        assert ran.returncode == 1 and "has no compiled module" in last and "pip install -e ." in last
        assert str(tmp_path / "dove_ext") in last
