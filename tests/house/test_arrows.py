"""The guard of the house (CONTRIBUTING.md): imports point one way; none in a function hides a circle."""

from __future__ import annotations

import ast
import functools
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROGRAMS = ("dove_train", "dove_eval", "dove_vlm", "dove_instruct", "dove_data")
BUILT_ON = {"dove_instruct": ("dove_train", "dove_vlm")}  # one training library, not two
HOMES = {
    "dove_ext": ROOT / "dove_ext",
    "benchmarks": ROOT / "benchmarks",
    **{name: ROOT / "python" / name for name in PROGRAMS},
}
# What a program's `cli` may take from the command line: what a verb is, options and reports that verbs share.
FOR_VERBS = {"dove_ext.cli.command", "dove_ext.cli.options", "dove_ext.cli.pictures"}


def modules(package: str) -> dict[str, Path]:
    """Dotted name -> file of every module of a package."""
    home = HOMES[package]
    found = {}
    for file in sorted(home.rglob("*.py")):
        parts = [package, *file.relative_to(home).with_suffix("").parts]
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    return found


ALL = {name: file for package in HOMES for name, file in modules(package).items()}


def imports(name: str) -> set[str]:
    """Modules of ours that a module imports anywhere, in functions and for type checkers as well."""
    found = set()
    package = name if ALL[name].name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(ast.parse(ALL[name].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.rsplit(".", node.level - 1)[0] if node.level > 1 else package
                base = f"{above}.{base}".rstrip(".")
            # `from package import module` is the module; anything else of a package is the package's own.
            found |= {f"{base}.{a.name}" if f"{base}.{a.name}" in ALL else base for a in node.names}
    return {n for n in found if n in ALL and n != name}


@functools.cache
def graph() -> dict[str, set[str]]:
    """Every module with what it imports; not before a test asks, since to read them all takes a second."""
    return {name: imports(name) for name in ALL}


def test_the_graph_is_not_empty() -> None:
    assert "dove_ext.tokens" in graph()["dove_ext.models.dove"]
    assert "dove_ext.cli.command" in graph()["dove_train.cli"]


@pytest.mark.parametrize("package", HOMES)
def test_no_circles(package: str) -> None:
    # A package's __init__ names what its modules hold, so an import of it counts as one of what it names.
    inside = {name: deps for name, deps in graph().items() if name in modules(package) and name != "dove_ext"}
    try:
        TopologicalSorter(inside).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def test_the_library_imports_no_program() -> None:
    wrong = {n: sorted(d for d in graph()[n] if not d.startswith("dove_ext")) for n in modules("dove_ext")}
    assert not {n: d for n, d in wrong.items() if d}


def test_the_library_works_without_its_command() -> None:
    inner = [n for n in modules("dove_ext") if not n.startswith("dove_ext.cli")]
    assert not [(n, d) for n in inner for d in graph()[n] if d.startswith("dove_ext.cli")]


@pytest.mark.parametrize("program", PROGRAMS)
def test_programs_meet_in_the_library_only(program: str) -> None:
    for name in modules(program):
        known = (program, "dove_ext", *BUILT_ON.get(program, ()))
        foreign = {d for d in graph()[name] if d.split(".")[0] not in known}
        assert not foreign, f"{name} imports {foreign}"
        command_line = {d for d in graph()[name] if d.startswith("dove_ext.cli")}
        allowed = FOR_VERBS if name == f"{program}.cli" or name.endswith("_cli") else set()
        assert command_line <= allowed, f"{name} imports {command_line - allowed}"


@pytest.mark.parametrize("package", ["dove_ext", *PROGRAMS])
def test_nothing_that_is_installed_needs_the_benchmarks(package: str) -> None:
    for name, file in modules(package).items():
        tree = ast.parse(file.read_text(encoding="utf-8"))
        named = {a.name for node in ast.walk(tree) if isinstance(node, ast.Import) for a in node.names}
        named |= {n.module or "" for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
        assert not {n for n in named if n.split(".")[0] in ("benchmarks", "tests")}, name


def test_a_circle_would_be_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(graph(), "dove_ext.errors", {"dove_ext.models.dove"})
    with pytest.raises(pytest.fail.Exception, match=r"dove_ext\.errors"):
        test_no_circles("dove_ext")
