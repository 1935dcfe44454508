"""The house holds: who may import whom, who may name a vendor, and what importing costs."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import devicekit

SRC = Path(devicekit.__file__).parent

# Lowest first. A file imports only from floors below its own; the files of one room may see each other where said.
FLOORS: list[set[str]] = [
    {"allocator", "errors", "values", "container", "contexts", "drafts", "memory"},
    {"codemod"},
    {"host", "products", "staging", "streams"},
    {"backend"},
    {"backends", "registry"},
    {"formats", "request", "probing"},
    {"resolve"},
    {"attention", "batch", "compiling", "distributed", "efficient", "measuring", "numbering", "placement"}
    | {"precision", "reporting", "rng", "testing", "weights"},
    {"pickles", "tuning"},
    {"manager", "isolation"},
    {"bench", "demo", "redirect"},
    {"cli"},
    {"__init__", "__main__"},
]
ONE_ROOM = {"backends", "bench", "cli", "codemod", "demo", "efficient", "isolation", "redirect", "testing", "tuning"}
ONE_ROOM |= {"pickles", "weights"}
# The registry says the backends' names as text; reporting and tuning say the package's version, which __init__ holds.
ALLOWED = {
    ("registry", "backend"),
    ("reporting", "__init__"),
    ("tuning", "__init__"),
    ("cli", "__init__"),
    ("testing", "manager"),
    ("testing", "redirect"),
}

MAY_NAME_A_RUNTIME = {"backends", "redirect", "testing"}


def _floor(room: str) -> int:
    return next(i for i, floor in enumerate(FLOORS) if room in floor)


def _room(path: Path) -> str:
    return path.relative_to(SRC).parts[0].removesuffix(".py")


def _files() -> list[Path]:
    return sorted(p for p in SRC.rglob("*.py") if "__pycache__" not in p.parts)


def _imports(path: Path) -> set[str]:
    """The rooms that a file imports from, wherever in the file it does."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.partition(".")[0] == "devicekit":
            rest = node.module.split(".")[1:]
            names = [rest[0]] if rest else [a.name for a in node.names]
            rooms = {p.stem for p in SRC.glob("*.py")} | {p.name for p in SRC.iterdir() if p.is_dir()}
            found |= {name if name in rooms else "__init__" for name in names}
        elif isinstance(node, ast.Import):
            found |= {
                [*a.name.split("."), "__init__"][1] for a in node.names if a.name.partition(".")[0] == "devicekit"
            }
    return found


@pytest.mark.parametrize("path", _files(), ids=lambda p: str(p.relative_to(SRC)))
def test_imports_go_downwards(path: Path) -> None:
    """No file imports from its own floor or from one above, so there is no circle."""
    room = _room(path)
    for imported in _imports(path):
        if (imported == room and room in ONE_ROOM) or (room, imported) in ALLOWED:
            continue
        if path.name == "__init__.py" and room == "__init__":
            continue
        assert _floor(imported) < _floor(room), f"{room} imports {imported}"


def _torch_runtimes(tree: ast.AST) -> list[str]:
    names = {"cuda", "xpu", "mps", "npu"}
    return [
        f"line {node.lineno}: torch.{node.attr}"
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and node.attr in names
        and (
            (isinstance(node.value, ast.Name) and node.value.id == "torch")
            or (isinstance(node.value, ast.Attribute) and node.value.attr == "torch")
        )
    ]


@pytest.mark.parametrize("path", _files(), ids=lambda p: str(p.relative_to(SRC)))
def test_only_backends_name_a_runtime(path: Path) -> None:
    """Outside backends/ and testing/ nobody says torch.cuda, torch.xpu, torch.mps or torch.npu."""
    if _room(path) not in MAY_NAME_A_RUNTIME:
        assert _torch_runtimes(ast.parse(path.read_text())) == []


@pytest.mark.parametrize("path", _files(), ids=lambda p: str(p.relative_to(SRC)))
def test_files_say_why_they_exist(path: Path) -> None:
    """Every file opens with a sentence, and holds no note of work left undone."""
    text = path.read_text()
    assert ast.get_docstring(ast.parse(text))
    assert not any(word in text for word in ("TODO", "FIXME", "XXX"))


@pytest.mark.parametrize("path", _files(), ids=lambda p: str(p.relative_to(SRC)))
def test_functions_are_short(path: Path) -> None:
    """No function is longer than 50 lines."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert (node.end_lineno or 0) - node.lineno < 50, f"{node.name} at line {node.lineno}"


def _run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_costs_nothing() -> None:
    """`import devicekit` loads no torch, numpy or psutil, prints nothing and leaves the environment alone."""
    code = (
        "import os, sys; before = dict(os.environ)\n"
        "import devicekit\n"
        "assert dict(os.environ) == before\n"
        "heavy = {'torch', 'numpy', 'psutil', 'rich', 'platformdirs', 'pytest', 'dataclasses'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    assert _run(code) == ""


def test_resolving_stays_off_the_heavy_paths() -> None:
    """A decision imports no dynamo, inductor or sympy that `import torch` has not imported already."""
    code = (
        "import sys, torch; before = set(sys.modules)\n"
        "import devicekit; dm = devicekit.DeviceManager(); dm.report(); dm.rng_state()\n"
        "new = {m for m in set(sys.modules) - before if m.startswith(('torch._dynamo', 'torch._inductor', 'sympy'))}\n"
        "assert not new, new"
    )
    assert _run(code) == ""


def test_every_public_name_is_there() -> None:
    """`__all__` is sorted, and each name in it can be had."""
    assert devicekit.__all__ == sorted(devicekit.__all__)
    assert set(devicekit.__all__) <= set(dir(devicekit))
    assert all(getattr(devicekit, name) is not None for name in devicekit.__all__)


def test_a_name_that_is_not_there_is_an_attribute_error() -> None:
    """A typo in a public name says so."""
    with pytest.raises(AttributeError, match="no attribute 'resolve_devise'"):
        devicekit.resolve_devise  # noqa: B018
