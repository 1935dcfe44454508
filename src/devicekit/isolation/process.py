"""One child, from outside: its answers as they come, and who was the culprit when they stop coming."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import queue
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator
from typing import IO, Any

from devicekit.errors import DeviceKitError
from devicekit.isolation.steps import MARK

__all__ = ["LostChildError", "converse"]

log = logging.getLogger("devicekit")

START_SECONDS = 30.0
"""How long Python itself may take to start, whatever the limit for a step."""

WHILE = {
    "": "while Python was started",
    "torch": "while torch was imported",
    "probe": "while it was asked",
    "decision": "while a device was chosen",
    "versions": "while its versions were read",
    "describe": "while its properties were read",
    "verify": "while a kernel ran on it",
    "try": "while a matrix product was tried on it",
    "machine": "while the machine was described",
}


class LostChildError(Exception):
    """A child died, or fell silent (``hung``); ``step`` is what it was at, None: it had not begun."""

    def __init__(self, step: str | None, reason: str, *, hung: bool) -> None:
        super().__init__(reason)
        self.step = step
        self.reason = reason
        self.hung = hung


# The child stands where this process stands: the same sys.path, set before anything is imported from it. It looks at
# what is really here, so it does not hear that CUDA is redirected.
BOOT = (
    "import os, sys; sys.path[:] = sys.argv[1:]; os.environ.pop('DEVICEKIT_REDIRECT', None); "
    "from devicekit.isolation.child import answer; answer()"
)


def converse(
    request: dict[str, Any], seconds: float, watch: Callable[[str], None]
) -> Iterator[tuple[str, dict[str, Any]]]:
    """The steps that one child has done, with its answers.

    Raises:
        LostChildError: the child died, or said nothing for ``seconds``.
        DeviceKitError: the system lets us start no process.
    """
    child = _Child(request)
    step: str | None = None
    try:
        while True:
            event = child.next(seconds if step is not None else max(seconds, START_SECONDS))
            if "start" in event:
                step = event["start"]
                watch(step)
            elif "done" in event:
                yield event["done"], event["answer"]
            else:
                return
    except (TimeoutError, EOFError) as lost:
        doing = WHILE["" if step is None else step.partition(" ")[0]]
        reason = child.explain(f"{lost} {doing}")
        raise LostChildError(step, reason, hung=isinstance(lost, TimeoutError)) from None
    finally:
        child.kill()


class _Child:
    """A running child: its events, its last words, its fate."""

    def __init__(self, request: dict[str, Any]) -> None:
        command = [sys.executable, "-c", BOOT, *(sys.path or [""])]
        own_group: dict[str, Any] = {"start_new_session": True} if os.name == "posix" else {}
        pipe = subprocess.PIPE
        try:
            self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, **own_group)  # noqa: S603  # our own interpreter
        except OSError as exc:
            raise DeviceKitError(
                "no child process can be started to ask in.", why=str(exc), try_="devicekit.explain() asks in this one"
            ) from exc
        self.events: queue.Queue[dict[str, Any] | None] = queue.Queue()
        self.words: deque[str] = deque(maxlen=40)
        self.readers = [
            threading.Thread(target=work, daemon=True)
            for work in (lambda: self._write(request), self._read_events, self._read_words)
        ]
        for reader in self.readers:
            reader.start()

    def _write(self, request: dict[str, Any]) -> None:
        assert self.process.stdin is not None
        with contextlib.suppress(OSError, ValueError), self.process.stdin as stream:
            stream.write(json.dumps(request).encode())

    def _read_events(self) -> None:
        for line in _lines(self.process.stdout):
            _, mark, message = line.partition(MARK)
            if mark:
                with contextlib.suppress(ValueError):  # cut off by its death
                    self.events.put(json.loads(message))
        self.events.put(None)

    def _read_words(self) -> None:
        for line in _lines(self.process.stderr):
            if MARK in line:
                self.words.clear()  # what was said before belongs to another step
            elif line.strip():
                log.debug("child: %s", line)
                self.words.append(line.strip())

    def next(self, seconds: float) -> dict[str, Any]:
        """The next event.

        Raises:
            TimeoutError: none came in time.
            EOFError: none will come.
        """
        try:
            event = self.events.get(timeout=min(seconds, threading.TIMEOUT_MAX))
        except queue.Empty:
            if self.process.poll() is None:
                raise TimeoutError(f"no answer within {seconds:g} s") from None
            event = None  # it is dead, but a process that it had started keeps its pipe open
        if event is None:
            raise EOFError(f"the process {self._fate()}")
        return event

    def _fate(self) -> str:
        """How it ended, once its stdout has."""
        try:
            code = self.process.wait(5)
        except subprocess.TimeoutExpired:
            return "closed its output"
        if code >= 0:
            return f"ended with exit status {code}"
        names = {number.value: number.name for number in signal.Signals}
        return f"was killed by signal {names.get(-code, -code)}"

    def explain(self, reason: str) -> str:
        """The reason, with the last lines that the child wrote to stderr."""
        self.kill()
        self.readers[-1].join(1)
        words = " / ".join(list(self.words)[-3:])
        return f"{reason}: {words[-300:]}" if words else reason

    def kill(self) -> None:
        """End it and whatever it has started, if it still runs."""
        if self.process.poll() is not None:
            return
        with contextlib.suppress(OSError):
            if os.name == "posix":
                os.killpg(self.process.pid, signal.SIGKILL)
            else:
                self.process.kill()
        # A process that waits inside a driver cannot even be killed; it is left behind, not waited for.
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(5)


def _lines(stream: IO[bytes] | None) -> Iterator[str]:
    assert stream is not None
    with contextlib.suppress(OSError, ValueError), stream:
        for line in stream:
            yield line.decode("utf-8", "replace").rstrip("\n")
