"""What the adapter uses of SGLang is there, with these arguments: read in the wheel's source."""

from __future__ import annotations

import ast
import os
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import pytest

ADAPTER = Path(__file__).parents[2] / "python" / "dove_vlm" / "serving" / "sglang"
OURS = (ADAPTER / "models" / "dove.py", ADAPTER / "processors" / "dove.py")


@cache
def source(module: str) -> ast.Module:
    """Of a module of the wheel, which is not imported."""
    spec = find_spec("sglang")
    assert spec is not None and spec.origin is not None
    path = Path(spec.origin).parents[1].joinpath(*module.split("."))
    return ast.parse((path / "__init__.py" if path.is_dir() else path.with_suffix(".py")).read_text())


def names(module: str) -> set[str]:
    """What a module defines or imports."""
    found: set[str] = set()
    for node in ast.walk(source(module)):
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            found.add(node.name)
        elif isinstance(node, ast.Assign):
            found |= {target.id for target in node.targets if isinstance(target, ast.Name)}
        elif isinstance(node, ast.ImportFrom):
            found |= {alias.asname or alias.name for alias in node.names}
            if any(alias.name == "*" for alias in node.names) and (node.module or "").startswith("sglang."):
                found |= names(str(node.module))
    return found


def arguments(module: str, function: str) -> list[str]:
    """Of a function or method, by its name."""
    (found,) = [
        node
        for node in ast.walk(source(module))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name == function
    ]
    return [argument.arg for argument in (*found.args.args, *found.args.kwonlyargs)]


@pytest.mark.parametrize("path", OURS, ids=lambda path: path.parent.name)
def test_every_name_that_is_imported(path: Path) -> None:
    imports = [
        (str(node.module), alias.name)
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith("sglang.")
        for alias in node.names
    ]
    assert len(imports) > 5
    assert [(module, name) for module, name in imports if name not in names(module)] == []


MM_UTILS, BASE = "sglang.srt.managers.mm_utils", "sglang.srt.multimodal.processors.base_processor"


def test_every_argument_that_is_passed() -> None:
    wanted = {"input_ids", "forward_batch", "language_model", "data_embedding_funcs"}
    assert wanted <= set(arguments(MM_UTILS, "general_mm_embed_routine"))
    assert arguments(MM_UTILS, "pad_mm_tokens") == ["input_ids", "mm_inputs"]
    assert {"prompt", "multimodal_tokens", "image_data"} <= set(arguments(BASE, "fast_load_mm_data"))
    assert arguments(BASE, "validate_mm_data")[0] == "image_data"
    assert arguments(BASE, "_get_preprocessed_input_format") == ["data"]
    assert arguments("sglang.srt.model_loader.weight_utils", "default_weight_loader")[:2] == [
        "param", "loaded_weight",
    ]  # fmt: skip


def test_what_the_adapter_overrides() -> None:
    """Class attributes that it sets, and the one method, called with these names."""
    (ours,) = [node for node in ast.parse(OURS[1].read_text()).body if isinstance(node, ast.ClassDef)]
    base = [node for node in source(BASE).body if isinstance(node, ast.ClassDef)]
    (base_class,) = [node for node in base if node.name == "BaseMultimodalProcessor"]

    def attributes(of: ast.ClassDef) -> set[str]:
        found = {
            t.id for x in of.body if isinstance(x, ast.Assign) for t in x.targets if isinstance(t, ast.Name)
        }
        return found | {str(getattr(x.target, "id", "")) for x in of.body if isinstance(x, ast.AnnAssign)}

    assert len(attributes(ours)) == 4 and attributes(ours) <= attributes(base_class)
    (method,) = [x for x in ours.body if isinstance(x, ast.AsyncFunctionDef) and x.name[0] != "_"]
    calls = [
        node
        for node in ast.walk(source("sglang.srt.managers.tokenizer_manager"))
        if isinstance(node, ast.Call) and getattr(node.func, "attr", "") == method.name
    ]
    assert calls
    for call in calls:
        assert {"image_data", "input_text", "request_obj"} <= {str(word.arg) for word in call.keywords}
    assert [argument.arg for argument in method.args.args] == [
        "self", "image_data", "input_text", "request_obj",
    ]  # fmt: skip
    assert method.args.kwarg is not None  # the others


def test_where_sglang_looks_for_it() -> None:
    environ = names("sglang.srt.environ") | {
        node.target.id if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) else ""
        for node in ast.walk(source("sglang.srt.environ"))
    }
    named = {name for name in os.environ if name.startswith("SGLANG_EXTERNAL_")}
    assert len(named) == 3 and named <= environ
    groups = [
        node.value.value
        for node in ast.walk(source("sglang.srt.plugins"))
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant)
    ]
    assert "sglang.srt.plugins" in groups
    assert (
        '[project.entry-points."sglang.srt.plugins"]' in (ADAPTER.parents[3] / "pyproject.toml").read_text()
    )
