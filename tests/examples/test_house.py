"""The example systems name no vendor: they are tied to the facade, and to nothing behind it."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parents[2] / "docs" / "examples"
SYSTEMS = ("embedding", "forecasting", "image_editing", "kernels", "numpy_gpt")
FILES = sorted(path for name in SYSTEMS for path in (EXAMPLES / name).rglob("*.py"))
VENDORS = re.compile(r"cuda|rocm|\bhip\b|npu(?!t)|\bmps\b|xpu|vulkan|is_available", re.IGNORECASE)
"""``input`` holds one of them."""


def name(path: Path) -> str:
    return str(path.relative_to(EXAMPLES))


def imported(path: Path) -> set[str]:
    """The top-level names of the modules that a file imports."""
    found = set()
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found.add(str(node.module).partition(".")[0])
    return found


@pytest.mark.parametrize("path", FILES, ids=name)
def test_no_vendor_is_named(path: Path) -> None:
    """Neither in code nor in words."""
    lines = path.read_text(encoding="utf-8").splitlines()
    assert [f"{number}: {line}" for number, line in enumerate(lines, 1) if VENDORS.search(line)] == []


@pytest.mark.parametrize("system", SYSTEMS)
def test_each_stands_on_devicekit(system: str) -> None:
    """It imports devicekit, and no module of it that is not public."""
    trees = [ast.parse(path.read_bytes()) for path in (EXAMPLES / system).rglob("*.py")]
    inner = {
        str(node.module)
        for tree in trees
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith("devicekit.")
    }
    assert "devicekit" in set().union(*(imported(path) for path in (EXAMPLES / system).rglob("*.py")))
    assert inner == set()


@pytest.mark.parametrize("system", SYSTEMS)
def test_each_has_a_page(system: str) -> None:
    """Its page is in the docs."""
    assert (EXAMPLES / system / "README.md").read_text(encoding="utf-8").startswith("# ")
    assert f"examples/{system}/README" in (EXAMPLES.parent / "index.md").read_text(encoding="utf-8")


def test_the_model_without_torch_never_says_torch() -> None:
    """It may tell in words what it does without; it imports nothing of it."""
    assert not {"torch", "transformers"} & set().union(*map(imported, (EXAMPLES / "numpy_gpt").rglob("*.py")))


@pytest.mark.parametrize("text", ["cuda:0", "x.is_available()", "npu", "Npu:1", "HIP", "to('mps')", "rocm7"])
def test_a_vendor_is_found(text: str) -> None:
    """What the others would look like."""
    assert VENDORS.search(text)


@pytest.mark.parametrize("text", ["input", "inputs", "whip", "the ship", "lamps"])
def test_a_word_is_none(text: str) -> None:
    """What only looks like one."""
    assert not VENDORS.search(text)
