"""Third-party backends come in by an entry point; a hostile one is reported and harms nobody else."""

from __future__ import annotations

import json
import time

import pytest
import torch

import devicekit as dk
from devicekit import host as _host
from devicekit.resolve import Resolver
from tests.third_party import Entry, HostWithPlugins


def _verdict(explanation: dk.Explanation, backend: str) -> dk.Verdict:
    return next(v for v in explanation.verdicts if v.backend == backend)


def test_a_plugin_stands_before_the_cpu() -> None:
    """A usable third-party accelerator is preferred to the CPU, and named with where it comes from."""
    with _host.use(HostWithPlugins(Entry("acme", "tests.third_party:Acme"))):
        dm = dk.DeviceManager()
        assert dk.available_backends()[0] == "acme"
        assert (dm.backend, str(dm.device), dm.index) == ("acme", "meta:0", 0)
        assert dm.dtype is torch.bfloat16
        assert _verdict(dk.explain(), "acme").origin == "acme-devices"


@pytest.mark.parametrize(
    ("asked", "index"), [("acme", 0), ("ACME:1", 1), (" acme ", 0), (torch.device("meta", 1), 1), ("gpu", 0), (1, 1)]
)
def test_a_plugin_is_asked_for_like_any_other(asked: object, index: int) -> None:
    """By its name, by what torch calls its device, as the best accelerator, or by number."""
    with _host.use(HostWithPlugins(Entry("acme", "tests.third_party:Acme"))):
        dm = dk.DeviceManager(asked, strict=True)
    assert (dm.backend, dm.index) == ("acme", index)


@pytest.mark.parametrize(
    ("attribute", "reason"),
    [
        ("RaisesWhenMade", "raised RuntimeError: no licence key"),
        ("RaisesInProbe", "its probe raised OSError: libacme.so.3"),
        ("ExitsInProbe", "its probe raised SystemExit: 3"),
        ("AnswersNothing", "answered nonsense: None"),
        ("AnswersWords", "answered nonsense: 'sure'"),
        ("AnswersOddDevices", "answered nonsense"),
        ("AnswersOneIndexTwice", "answered nonsense"),
        ("AnswersYesWithoutDevices", "answered nonsense"),
        ("CannotNameItsDevice", "its device() raised ValueError: which one?"),
        ("NotABackend", "made a NotABackend, not a devicekit Backend"),
        ("Missing", "AttributeError"),
    ],
)
def test_a_hostile_plugin_gets_a_verdict(attribute: str, reason: str) -> None:
    """Whatever it does wrong, it is not usable with a reason, the CPU is taken, and `auto` does not raise."""
    with _host.use(HostWithPlugins(Entry("acme", f"tests.third_party:{attribute}"))):
        assert dk.resolve_device("auto") == torch.device("cpu")
        verdict = _verdict(dk.explain(), "acme")
        assert not verdict.usable
        assert reason in verdict.reason
        with pytest.raises(dk.DeviceUnavailableError, match="'acme' was asked for"):
            dk.resolve_device("acme", strict=True)
        json.dumps(dk.info())


def test_a_module_that_cannot_be_imported_gets_a_verdict() -> None:
    """A plugin whose package is half installed says which module is missing."""
    with _host.use(HostWithPlugins(Entry("acme", "acme_that_is_not_there.device:Acme"))):
        assert "No module named 'acme_that_is_not_there'" in _verdict(dk.explain(), "acme").reason


def test_a_hanging_probe_is_left_behind() -> None:
    """A driver that does not answer costs the time limit once, and then the next backend is taken."""
    host = HostWithPlugins(Entry("acme", "tests.third_party:HangsInProbe"))
    here = Resolver(host, probe_seconds=0.2)
    started = time.monotonic()
    assert here.decide().name == "cpu"
    assert here.decide().name == "cpu"
    assert time.monotonic() - started < 30
    assert "did not answer within 0.2 s" in _verdict(here.explain(), "acme").reason
    host.close()


@pytest.mark.parametrize(
    ("name", "problem"),
    [("cuda", "the name 'cuda' is taken"), ("hip", "is taken"), ("gpu", "is taken"), ("my device", "is no name")],
)
def test_a_name_that_cannot_be_had_is_reported(name: str, problem: str) -> None:
    """A plugin cannot pass for another backend, nor for a word that means something else."""
    with _host.use(HostWithPlugins(Entry(name, "tests.third_party:Acme"))):
        assert dk.resolve_device() == torch.device("cpu")
        assert any(problem in v.reason for v in dk.explain().verdicts if v.origin == "acme-devices")


def test_of_two_plugins_with_one_name_the_first_is_kept() -> None:
    """The second is reported as a taken name."""
    entries = [Entry("acme", "tests.third_party:Acme"), Entry("acme", "tests.third_party:RaisesWhenMade")]
    with _host.use(HostWithPlugins(*entries)):
        assert dk.DeviceManager().backend == "acme"
        reasons = [v.reason for v in dk.explain().verdicts if v.backend == "acme"]
    assert len(reasons) == 2
    assert "is taken" in reasons[1]


@pytest.mark.parametrize(
    ("attribute", "source"),
    [("RaisesInMemory", "RuntimeError: counter lost"), ("AnswersOddMemory", "nonsense from acme")],
)
def test_a_memory_query_that_fails_is_an_unknown(attribute: str, source: str) -> None:
    """A figure for a health page is no reason to fall: it is None, and the source says why."""
    with _host.use(HostWithPlugins(Entry("acme", f"tests.third_party:{attribute}"))):
        stats = dk.DeviceManager().memory_stats()
    assert stats.total is None
    assert source in stats.source
