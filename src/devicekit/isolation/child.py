"""The child: answers step by step, and says so before and after each."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import logging
import operator
import os
import sys
import tempfile
import threading
import warnings
from collections.abc import Callable
from typing import IO, Any

from devicekit import formats, reporting
from devicekit import host as _host
from devicekit.backend import Backend
from devicekit.errors import DeviceKitError, UnknownDeviceError, first_line
from devicekit.host import AUTOLOAD, Host, compiled_accelerator
from devicekit.isolation.steps import MARK, Wanted, closer_steps, label
from devicekit.registry import Row
from devicekit.request import CHOICE_FILE
from devicekit.resolve import Decision, Resolver
from devicekit.values import DeviceInfo, MemoryStats

__all__ = ["answer"]

log = logging.getLogger("devicekit")


def answer() -> None:
    """Be the child: read the request from stdin, answer on what was stdout, and leave without ceremony."""
    channel = _private_channel()
    request = json.load(sys.stdin)
    _leave_no_core_file()
    logging.basicConfig(level=request.get("log_level", logging.WARNING), format="%(levelname)s: %(message)s")

    def tell(event: dict[str, Any]) -> None:
        # A line of its own, whatever a plugin has printed before it without a line's end.
        channel.write("\n" + MARK + json.dumps(event, default=_plain) + "\n")
        channel.flush()
        if "start" in event:
            sys.stderr.flush()
            os.write(2, ("\n" + MARK + "\n").encode())

    with contextlib.ExitStack() as stack:
        host = _enter_host(request, stack)
        _Answers(host, request, tell).give()
    tell({"end": True})
    os._exit(0)  # runtimes have been seen to abort when they are taken down


def _private_channel() -> IO[str]:
    """What was stdout; whatever prints to stdout from now on, in Python or in C, reaches stderr."""
    channel = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return channel


def _leave_no_core_file() -> None:
    with contextlib.suppress(ImportError, OSError, ValueError):
        import resource  # not on Windows

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _enter_host(request: dict[str, Any], stack: contextlib.ExitStack) -> Host:
    machine = request.get("machine")
    if machine is None:
        return _host.current()
    from devicekit.testing import Machine, simulated_machine  # here, because a real host needs none of it

    tempfile.tempdir = request.get("scratch")
    host = stack.enter_context(simulated_machine(Machine.from_json(machine)))
    if request.get("saved") is not None:  # a simulated machine has a folder of its own in every process
        file = host.config_file(CHOICE_FILE)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(request["saved"], encoding="utf-8")
    return host


def _plain(value: Any) -> Any:
    """What JSON cannot say: NumPy's numbers as numbers, the rest in words."""
    try:
        return operator.index(value)
    except TypeError:
        return str(value)


class _Answers:
    """The steps, one after the other."""

    def __init__(self, host: Host, request: dict[str, Any], tell: Callable[[dict[str, Any]], None]) -> None:
        self.host = host
        self.request = request
        self.tell = tell
        self.skip = set(request.get("skip", ()))
        self.failed = set(request.get("failed", ()))
        if request.get("torch"):
            host.forbid_torch(request["torch"])
        if not request.get("autoload", True):
            host.env[AUTOLOAD] = "0"
        # The parent's patience is the limit: it also ends a driver that hangs with Python's lock held.
        self.here = Resolver(host, probe_seconds=threading.TIMEOUT_MAX)
        host.memo["resolver"] = self.here

    def give(self) -> None:
        """Answer everything."""
        self.step("torch", self.torch)
        wanted = self.request.get("backends", range(len(self.here.rows)))
        for position in wanted:
            self.step(f"probe {position}", functools.partial(self.probe, self.here.rows[position]))
        if self.request.get("decide"):
            self.step("decision", self.decide)
        for position in wanted:
            self.look_closer(position, self.here.rows[position])
        if self.request.get("describe"):
            self.step("machine", self.machine)

    def step(self, name: str, work: Callable[[], dict[str, Any]]) -> None:
        """Say what begins, do it, say what came out."""
        if name in self.skip:
            return
        self.tell({"start": name})
        try:
            told = work()
        except (Exception, SystemExit) as exc:
            log.debug("step %s failed", name, exc_info=True)
            told = {"error": _in_words(exc)}
            self.failed.add(name)
        self.tell({"done": name, "answer": told})

    def torch(self) -> dict[str, Any]:
        """Whether torch can be imported."""
        failure = self.host.torch_failure()
        if failure is not None:
            return {
                "usable": False,
                "installed": self.host.installed("torch"),
                "reason": failure[0],
                "fix": failure[1],
            }
        torch = self.host.torch()
        return {
            "usable": True,
            "version": str(torch.__version__),
            "built_for": compiled_accelerator(torch),
            "plugin_failures": dict(self.host.plugin_failures),
        }

    def probe(self, row: Row) -> dict[str, Any]:
        """What a backend says, and what kind it is."""
        said, backend = self.here.probe(row), self.here.backend(row)
        return {
            "backend": row.name,
            "accelerator": bool(backend.accelerator),
            "indexed": bool(backend.indexed),
            "availability": dataclasses.asdict(said),
        }

    def decide(self) -> dict[str, Any]:
        """For what was asked for; if everything is asked, for nobody asking too."""
        strict = bool(self.request.get("strict"))
        for position, reason in self.request.get("refused", ()):
            self.here.refuse(self.here.rows[position], reason)
        with warnings.catch_warnings(record=True) as heard:
            warnings.simplefilter("always")
            asked = self._decision(lambda: self.here.decide(self.request.get("device"), strict=strict))
        told = list(dict.fromkeys(str(w.message) for w in heard))
        if not self.request.get("everything"):
            return {"asked": asked, "warnings": told}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            automatic = self._decision(lambda: self.here.decide(pinned=False))
        return {"asked": asked, "automatic": automatic, "warnings": told}

    def _decision(self, decide: Callable[[], Decision]) -> dict[str, Any]:
        try:
            chosen = decide()
        except DeviceKitError as error:
            known = not isinstance(error, UnknownDeviceError)
            return {"error": {"what": error.what, "why": error.why, "try": error.try_, "known": known}}
        return {
            "label": label(chosen.name, chosen.index),
            "device": str(chosen.device),
            "backend": chosen.name,
            "index": chosen.index,
            "requested": chosen.request.text,
            "source": chosen.request.source,
            "warning": chosen.warning,
        }

    def look_closer(self, position: int, row: Row) -> None:
        """Describe and verify what is usable; its runtime may start now."""
        wanted = Wanted(describe=bool(self.request.get("describe")), verify=bool(self.request.get("verify")))
        backend = self.here.backend(row)
        for step in closer_steps(position, dataclasses.asdict(self.here.probe(row)), wanted):
            kind, _, *where = step.split()
            if kind == "try" and f"verify {position} {where[0]}" in self.failed:
                continue  # on a device that computes nothing each would only fail, or hang, again
            self.step(step, functools.partial(CLOSER[kind], backend, *map(int, where[:1]), *where[1:]))

    def machine(self) -> dict[str, Any]:
        """The machine, and the versions that need no backend."""
        plain = self.here.backend(self.here.rows[-1])  # any: the backends' own versions are asked one by one
        return {"machine": reporting.machine(self.host), "versions": reporting.versions(plain)}


def versions(backend: Backend) -> dict[str, Any]:
    """The versions that this backend knows of."""
    return {str(name): str(version) for name, version in backend.versions().items()}


def verify(backend: Backend, index: int) -> dict[str, Any]:
    """Run a real kernel; what it raises comes through."""
    backend.verify(index)
    return {"verified": True}


def attempt(backend: Backend, index: int, form: str) -> dict[str, Any]:
    """Multiply in a number format; NumPy has no kernels that could be missing, so nothing is tried there."""
    return dataclasses.asdict(formats.attempt(backend, index, form)) if backend.needs_torch else {}


def describe(backend: Backend, index: int) -> dict[str, Any]:
    """All that can be told about a device, its runtime started."""
    info = backend.describe(index)
    if not isinstance(info, DeviceInfo):
        raise DeviceKitError("its describe() answered nonsense.", why=f"{info!r:.80} is no DeviceInfo")
    try:
        memory = backend.memory_stats(index)
    except Exception as exc:  # a figure is no reason to call the device broken
        memory = MemoryStats(source=f"unknown: {_in_words(exc)}")
    return {
        "info": dataclasses.asdict(info),
        "memory": dataclasses.asdict(memory),
        "precisions": formats.claims(backend, index),
        "traits": {str(name): str(words) for name, words in backend.traits(index).items()},
    }


CLOSER: dict[str, Callable[..., dict[str, Any]]] = {
    "versions": versions,
    "describe": describe,
    "verify": verify,
    "try": attempt,
}


def _in_words(exc: BaseException) -> str:
    if isinstance(exc, DeviceKitError):
        return f"{exc.what} {exc.why}".strip()
    line = first_line(exc)
    return f"{type(exc).__name__}: {line}" if line else type(exc).__name__
