"""Imports of packages that are made for CUDA fail as they always did, and say what to do instead."""

from __future__ import annotations

import importlib
import importlib.util
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from devicekit.codemod.rules.vendor_package import PACKAGES
from devicekit.redirect.recording import Record
from devicekit.redirect.redirect import Redirect
from devicekit.redirect.surface.packages import MORE, advice
from devicekit.redirect.target import DecidedTarget
from devicekit.resolve import resolver

torch = pytest.importorskip("torch")

ABSENT = [name for name in sorted({*PACKAGES, *MORE}) if "." not in name and importlib.util.find_spec(name) is None]
NOT_MADE_FOR_IT = ("bitsandbytes", "deepspeed", "pytorch3d", "pynvml", "torch_npu", "no_such_package")


@pytest.fixture
def redirect() -> Iterator[Redirect]:
    with Redirect(DecidedTarget(resolver().decide("cpu")), record=Record()) as redirect:
        yield redirect


def program(text: str, **names: Any) -> dict[str, Any]:
    """Runs it as a module of a program, and gives its names."""
    module = types.ModuleType("a_program")
    vars(module).update(names)
    exec(compile(text, "a_program.py", "exec"), vars(module))
    return vars(module)


def error_of(text: str) -> ModuleNotFoundError:
    with pytest.raises(ModuleNotFoundError) as caught:
        program(text)
    assert type(caught.value) is ModuleNotFoundError
    return caught.value


@pytest.mark.parametrize("name", [name for name in ABSENT if advice(name)])
def test_the_error_says_where_why_and_what_to_try(redirect: Redirect, name: str) -> None:
    """It is Python's own kind of error, with its name and its first words."""
    error = error_of(f"\nimport {name}")
    assert error.name == name
    first, why, try_ = str(error).splitlines()
    assert first == f"No module named {name!r} (a_program.py:2)"
    assert why.startswith("  why: ")
    assert '"cuda" is cpu here' in why
    assert try_.startswith("  try: ")


@pytest.mark.parametrize(
    "way", ["import mamba_ssm.ops as ops", "from mamba_ssm import Mamba", "__import__('mamba_ssm')"]
)
def test_every_way_to_import(redirect: Redirect, way: str) -> None:
    for text in (way, "import importlib\nimportlib.import_module('mamba_ssm')"):
        assert "try: the same in plain torch" in str(error_of(text))


def test_the_stand_in_is_named(redirect: Redirect) -> None:
    said = str(error_of("from flash_attn import flash_attn_func"))
    assert "devicekit run --shim flash-attn" in said
    assert "scaled_dot_product_attention" in said
    told = advice("triton")
    assert told is not None
    assert "torch.compile" in told[1]


def test_a_program_that_provides_for_it_goes_on(redirect: Redirect) -> None:
    """Its absence is caught, and it is not there for who asks first; both as without a redirect."""
    names = program(
        "import importlib.util\n"
        "try:\n    import flash_attn\nexcept ImportError:\n    flash_attn = None\n"
        "found = importlib.util.find_spec('flash_attn')"
    )
    assert names["flash_attn"] is None
    assert names["found"] is None


def test_it_is_in_the_report(redirect: Redirect) -> None:
    """As refused, at the line that imports; who only asks imports nothing."""
    program(
        "import importlib.util\nimportlib.util.find_spec('triton')\ntry:\n    import apex\nexcept ImportError:\n    0"
    )
    assert redirect.record is not None
    assert [tuple(row) for row in redirect.record.rows()] == [("import apex: not here", "a_program.py", 4, 1, True)]


@pytest.mark.parametrize("name", NOT_MADE_FOR_IT)
def test_others_are_pythons_own_error(redirect: Redirect, name: str) -> None:
    """What runs elsewhere too, what says itself that there is no driver, and what is no package at all."""
    assert advice(name) is None
    if importlib.util.find_spec(name) is None:
        assert str(error_of(f"import {name}")) == f"No module named {name!r}"


def test_torch_is_answered_as_ever(redirect: Redirect) -> None:
    """It imports a package to know whether it is there, and that is nobody's report."""
    if importlib.util.find_spec("triton") is None:
        with pytest.raises(ModuleNotFoundError) as caught:
            program("import triton", __name__="torch.utils._triton")
        assert str(caught.value) == "No module named 'triton'"
        assert redirect.record is not None
        assert redirect.record.rows() == []


def test_one_that_is_installed_is_left_alone(
    redirect: Redirect, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cupy.py").write_text("here = True\n")
    monkeypatch.syspath_prepend(tmp_path)
    try:
        assert program("import cupy")["cupy"].here
    finally:
        sys.modules.pop("cupy", None)


def test_a_finder_that_came_later_is_asked(redirect: Redirect, tmp_path: Path) -> None:
    """Packages that are installed in place are found by finders that stand last."""
    (tmp_path / "apex.py").write_text("here = True\n")

    class Later:
        @staticmethod
        def find_spec(name: str, path: Any = None, target: Any = None) -> Any:
            return importlib.util.spec_from_file_location(name, tmp_path / "apex.py") if name == "apex" else None

    later: Any = Later
    sys.meta_path.append(later)
    try:
        assert program("import apex")["apex"].here
    finally:
        sys.meta_path.remove(later)
        sys.modules.pop("apex", None)


def test_a_part_that_the_stand_in_has_not() -> None:
    with Redirect(DecidedTarget(resolver().decide("cpu")), shims=["flash-attn"]):
        said = str(error_of("from flash_attn.ops.rms_norm import rms_norm"))
    assert said.startswith("No module named 'flash_attn.ops' (a_program.py:1)\n  why: the stand-in for flash-attn")


def test_afterwards_it_is_pythons_own_error_again() -> None:
    before = list(sys.meta_path)
    with Redirect(DecidedTarget(resolver().decide("cpu"))):
        assert len(sys.meta_path) > len(before)
    assert sys.meta_path == before
    assert str(error_of("import mamba_ssm")) == "No module named 'mamba_ssm'"


# -- the door from tensors to such packages ----------------------------------------------------------
def test_no_memory_is_handed_over(redirect: Redirect) -> None:
    """An AttributeError, so hasattr says no; it does not advise .cuda(), which changes nothing."""
    tensor = torch.zeros(2, device="cuda")
    assert not hasattr(tensor, "__cuda_array_interface__")
    with pytest.raises(AttributeError) as caught:
        _ = tensor.__cuda_array_interface__
    assert ".cuda()" not in str(caught.value)
    assert "try: x.cpu().numpy()" in str(caught.value)
    assert "__cuda_array_interface__" not in dir(tensor)


def test_afterwards_it_is_torchs_own_again() -> None:
    before = vars(torch.Tensor)["__cuda_array_interface__"]
    with Redirect(DecidedTarget(resolver().decide("cpu"))):
        assert vars(torch.Tensor)["__cuda_array_interface__"] is not before
    assert vars(torch.Tensor)["__cuda_array_interface__"] is before
