"""The battery under each policy: what CUDA programs do gives what a GPU gives, or what the policy says instead."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from tests.redirect.battery import CHECKS, Check, entered, run  # noqa: E402
from tests.redirect.battery.known import KNOWN  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
ORDINARY = {name: one for name, one in CHECKS.items() if not one.process}
GOOD = ("ok", "skipped")
NO_NPU = ("cannot be installed: torch ", "Cannot access accelerator device when none is available")
"""What an older torch says about the simulated npu."""


@pytest.fixture(autouse=True)
def _seed() -> Iterator[None]:
    """The checks draw numbers, and set seeds."""
    state = torch.get_rng_state()
    yield
    torch.set_rng_state(state)


@pytest.fixture(scope="module", params=["translate", "masquerade"])
def policy(request: pytest.FixtureRequest) -> Iterator[tuple[str, Any]]:
    """A policy in force, with the device that "cuda" stands for."""
    with entered(request.param) as device:
        yield request.param, device


@pytest.mark.parametrize("one", ORDINARY.values(), ids=ORDINARY)
def test_the_idiom(one: Check, policy: tuple[str, Any]) -> None:
    """It gives what a GPU gives, or what the check says of this policy."""
    found = run(one, *policy)
    cause = KNOWN[policy[0]].get(one.name)
    if cause:
        assert found.verdict not in GOOD, "it is not red any more: strike it from battery/known.py"
        pytest.xfail(cause)
    assert found.verdict in GOOD, f"{found.value}: {found.why}"


def outcomes(*arguments: str) -> dict[str, dict[str, str]]:
    """What a process of its own says of each check."""
    path = os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-m", "tests.redirect.battery", *arguments]
    env = {**os.environ, "PYTHONPATH": path}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=1800, check=False)
    if done.returncode and any(words in done.stderr for words in NO_NPU):
        pytest.skip(done.stderr.splitlines()[-1])
    assert done.returncode == 0, done.stderr[-4000:]
    return {
        said["name"]: said
        for line in done.stdout.splitlines()
        if line.startswith('{"name": ') and (said := json.loads(line))
    }


def bad(found: dict[str, dict[str, str]], policy: str) -> list[str]:
    known = KNOWN[policy]
    red = {name: said for name, said in found.items() if said["verdict"] not in GOOD}
    unexpected = [f"{name}: {said['value']} ({said['why']})" for name, said in red.items() if name not in known]
    return unexpected + [f"{name}: not red any more" for name in found if name in known and name not in red]


@pytest.mark.slow
@pytest.mark.parametrize("policy", ["translate", "masquerade"])
def test_processes(policy: str) -> None:
    """What starts processes, or changes this one, in a process of its own."""
    found = outcomes(policy, "--processes")
    assert found.keys() == CHECKS.keys() - ORDINARY.keys()
    assert bad(found, policy) == []


@pytest.mark.slow
def test_on_the_simulated_npu() -> None:
    """A device with rules of its own gives the same numbers, and says the truth about itself."""
    found = outcomes("npu", "--ordinary")
    assert found.keys() == ORDINARY.keys()
    assert bad(found, "npu") == []


@pytest.mark.gpu
@pytest.mark.skipif(not (torch.version.cuda and torch.cuda.is_available()), reason="needs an NVIDIA GPU")
def test_on_a_real_gpu() -> None:
    """The judge: each check says what a GPU gives."""
    found = outcomes("native")
    assert found.keys() == CHECKS.keys()
    assert bad(found, "native") == []


def test_what_is_known_is_there() -> None:
    """Nothing is excused that no check asks for, and the excuse is a sentence."""
    for causes in KNOWN.values():
        assert causes.keys() <= CHECKS.keys()
        assert all(len(cause.split()) > 2 for cause in causes.values())


def test_there_are_enough() -> None:
    assert len(CHECKS) > 200
