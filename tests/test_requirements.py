"""The requirements files and pyproject.toml say the same, and pip can read them."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
FILES = sorted(path.name for path in ROOT.glob("requirements*.txt"))
WHEELS = "https://download.pytorch.org/whl/"


def _lines(name: str) -> list[str]:
    """What pip reads: no comments, no blank lines."""
    lines = (line.partition(" #")[0].strip() for line in (ROOT / name).read_text(encoding="utf-8").splitlines())
    return [line for line in lines if line and not line.startswith("#")]


def _requirements(name: str) -> dict[str, Requirement]:
    parsed = [Requirement(line) for line in _lines(name) if not line.startswith("-")]
    return {requirement.name: requirement for requirement in parsed}


def _pin(name: str, package: str) -> str:
    """The one version that is allowed, such as ``2.13.0+cpu``."""
    (specifier,) = _requirements(name)[package].specifier
    assert specifier.operator == "=="
    return specifier.version


def _project() -> dict[str, Any]:
    project: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return project


def _extra(name: str) -> dict[str, Requirement]:
    """An extra of pyproject.toml, without devicekit's own extras."""
    found = [Requirement(text) for text in _project()["optional-dependencies"][name]]
    return {requirement.name: requirement for requirement in found if requirement.name != "devicekit"}


def test_there_is_a_file_for_each_kind_of_machine() -> None:
    """CPU, CUDA, ROCm and Ascend."""
    assert FILES == ["requirements-cuda.txt", "requirements-npu.txt", "requirements-rocm.txt", "requirements.txt"]


@pytest.mark.parametrize("name", FILES)
def test_every_line_can_be_read(name: str) -> None:
    """A line is a requirement, an editable install of this folder, or a PyTorch wheel index."""
    for line in _lines(name):
        if line.startswith("-e "):
            assert re.fullmatch(r"-e \.(\[[a-z,]+\])?", line)
        elif line.startswith("-"):
            assert re.fullmatch(r"--extra-index-url " + re.escape(WHEELS) + r"[a-z0-9.]+", line)
        else:
            assert Requirement(line).name


@pytest.mark.parametrize("name", FILES)
def test_the_package_itself_is_installed(name: str) -> None:
    """After one `pip install -r` the command devicekit is there, with what its demo needs; the extras exist."""
    (editable,) = [line for line in _lines(name) if line.startswith("-e ")]
    extras = set(editable.partition("[")[2].rstrip("]").split(","))
    assert "demo" in extras
    assert extras <= set(_project()["optional-dependencies"])


def test_one_torch_everywhere() -> None:
    """All files pin the same torch, whatever it was built for."""
    assert {_pin(name, "torch").partition("+")[0] for name in FILES} == {"2.13.0"}


@pytest.mark.parametrize("name", FILES)
def test_the_build_in_the_pin_is_the_index_s(name: str) -> None:
    """`torch==X+rocm7.2` comes with the index rocm7.2; the other way round the suffix is only needed off CUDA."""
    local = _pin(name, "torch").partition("+")[2]
    indexes = [line.rpartition("/")[2] for line in _lines(name) if line.startswith("--extra-index-url")]
    assert not local or indexes == [local]


@pytest.mark.parametrize("name", ["requirements-npu.txt", "requirements-rocm.txt"])
def test_no_other_build_can_slip_in(name: str) -> None:
    """Where the CUDA build would be wrong, the pin names the build that is right."""
    assert "+" in _pin(name, "torch")


def test_torch_npu_pairs_with_torch() -> None:
    """torch_npu X.Y.Z is made for torch X.Y.Z."""
    name = "requirements-npu.txt"
    assert _pin(name, "torch-npu").partition(".post")[0] == _pin(name, "torch").partition("+")[0]
    assert {"numpy", "pyyaml"} <= set(_requirements(name))


def test_the_plain_file_names_no_vendor() -> None:
    """requirements.txt is for any machine."""
    assert set(_requirements("requirements.txt")) == {"torch"}
    lines = "\n".join(_lines("requirements.txt")).lower()
    assert not [word for word in ("nvidia", "cuda", "rocm", "npu", "index") if word in lines]


@pytest.mark.parametrize("extra", ["torch", "cuda", "demo"])
def test_the_extras_admit_the_pin(extra: str) -> None:
    """pip never has to choose between a file and an extra."""
    assert _extra(extra)["torch"].specifier.contains("2.13.0")
    assert _extra(extra)["torch"].specifier.contains(_pin("requirements-npu.txt", "torch"))


def test_the_cuda_file_has_what_the_cuda_extra_has() -> None:
    """NVML's binding, from the same version on."""
    assert _requirements("requirements-cuda.txt")["nvidia-ml-py"] == _extra("cuda")["nvidia-ml-py"]


def test_torch_is_no_dependency() -> None:
    """The numpy backend is for hosts without torch, and which build is right depends on the hardware."""
    names = {Requirement(text).name for text in _project()["dependencies"]}
    assert names == {"packaging", "platformdirs", "psutil", "rich"}
    everything = {Requirement(text).name for texts in _project()["optional-dependencies"].values() for text in texts}
    assert not [name for name in everything if name.startswith("nvidia") and name != "nvidia-ml-py"]
