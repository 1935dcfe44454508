"""Where the examples lie, and how a process is started there."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parents[2] / "docs" / "examples"


@pytest.fixture
def examples(monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the examples; what lies there can be imported in this test."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    return EXAMPLES


@pytest.fixture
def user(tmp_path: Path) -> dict[str, str]:
    """The environment of somebody who has set nothing, and whom nothing reaches from outside."""
    pins = ("DEVICEKIT_DEVICE", "KRONOS_DEVICE", "PREFERRED_DEVICE", "YIRAGE_BACKEND")
    env = {key: text for key, text in os.environ.items() if key not in pins}
    offline = {"HF_HUB_OFFLINE": "1", "GRADIO_ANALYTICS_ENABLED": "False", "XDG_CONFIG_HOME": str(tmp_path / "config")}
    return {**env, **offline, "PYTHONPATH": os.pathsep.join([str(EXAMPLES), *filter(None, [env.get("PYTHONPATH")])])}


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Several tests share the processors, and threads that wait for each other take longer than one alone."""
    torch = pytest.importorskip("torch")
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def python() -> str:
    """The interpreter that has the packages."""
    return sys.executable
