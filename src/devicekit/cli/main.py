"""The door: choose the command, import only its file, and turn every failure into three lines and an exit code.

Exit codes: 0 good, 1 findings or not met, 2 could not work, 130 interrupted.
"""

from __future__ import annotations

import argparse
import contextlib
import difflib
import importlib
import logging
import os
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from devicekit import __version__
from devicekit import host as _host
from devicekit.errors import DeviceKitError

__all__ = ["COMMANDS", "Command", "Parser", "main"]

log = logging.getLogger("devicekit")

LOG_LEVEL = "DEVICEKIT_LOG_LEVEL"
LEVELS = ("debug", "info", "warning", "error", "critical")

GOOD = 0
COULD_NOT_WORK = 2
INTERRUPTED = 130  # 128 + SIGINT, as shells count
READER_GONE = 141  # 128 + SIGPIPE: `devicekit info | head -1`


@dataclass(frozen=True, slots=True)
class Command:
    """One command, before it is imported: its module has ``add_arguments(parser)`` and ``run(options) -> int``."""

    name: str
    module: str
    help: str


COMMANDS = (
    Command("info", "devicekit.cli.info", "what this machine is: devices, memory, processor, versions"),
    Command("doctor", "devicekit.cli.doctor", "what can be used here, why the rest cannot, and what to do about it"),
    Command("use", "devicekit.cli.use", "keep a device as your choice for all programs that ask devicekit"),
    Command("bench", "devicekit.cli.bench", "measure what every usable device can do"),
    Command("tune", "devicekit.cli.tune", "measure what is best for a device, and keep it for all programs"),
    Command("scan", "devicekit.cli.scan", "find every place that ties a code base to CUDA"),
    Command("migrate", "devicekit.cli.migrate", "rewrite CUDA-only code to the facade"),
    Command("run", "devicekit.cli.run", "run a program that was written for CUDA on another device, unchanged"),
    Command("convert", "devicekit.cli.convert", "turn checkpoints of torch or pickle into safetensors, unexecuted"),
    Command("demo", "devicekit.cli.demo", "run a real pretrained model on the device that was chosen"),
)


class Parser(argparse.ArgumentParser):
    """argparse with our manners: an error is what, why, try; nothing is abbreviated."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter, **kwargs)

    def error(self, message: str) -> NoReturn:
        """Raise what argparse would print."""
        raise DeviceKitError(f"{self.prog}: {message}.", try_=f"{self.prog} --help")

    def parse(self, words: Sequence[str]) -> argparse.Namespace | None:
        """The options; None when all is said with the help or the version; an error names the nearest option."""
        try:
            options, unknown = self.parse_known_args(words)
        except SystemExit:  # how argparse ends after --help and --version
            return None
        if unknown:
            first = unknown[0].partition("=")[0]
            kind = "option" if first.startswith("-") else "argument"
            known = [o for action in self._actions for o in action.option_strings if kind == "option"]
            raise DeviceKitError(f"{self.prog} has no {kind} {first!r}.", try_=_near(first, known, self.prog))
        return options


def main(argv: Sequence[str] | None = None, commands: Sequence[Command] = COMMANDS) -> int:
    """Run one command and return its exit code; never raises."""
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        _print_what_cannot_be_encoded()
        _set_log_level(_host.current().env.get(LOG_LEVEL, "warning"))
        code = _run(words, commands)
        sys.stdout.flush()  # here, so that a reader who has left is noticed here
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        _forget_stdout()
        return READER_GONE
    except Exception as exc:
        _tell(exc)
        return COULD_NOT_WORK
    return code


def _run(words: list[str], commands: Sequence[Command]) -> int:
    name = next((word for word in words if not word.startswith("-")), None)
    before = words[: words.index(name)] if name is not None else words
    if _top_parser(commands).parse(before) is None:
        return GOOD
    if name is None:
        raise DeviceKitError("devicekit needs a command.", try_=_list(command.name for command in commands))
    command = next((command for command in commands if command.name == name), None)
    if command is None:
        names = [command.name for command in commands]
        raise DeviceKitError(f"{name!r} is no command of devicekit.", try_=_near(name, names, "devicekit"))
    module = importlib.import_module(command.module)
    parser = Parser(prog=f"devicekit {command.name}", description=module.__doc__)
    module.add_arguments(parser)
    options = parser.parse(words[len(before) + 1 :])
    return GOOD if options is None else int(module.run(options))


def _top_parser(commands: Sequence[Command]) -> Parser:
    width = max(len(command.name) for command in commands)
    rows = "\n".join(f"  {command.name:<{width}}  {command.help}" for command in commands)
    parser = Parser(
        prog="devicekit",
        usage="devicekit COMMAND [OPTIONS]",
        description="One device layer for every GPU vendor: ask what is here, decide once, act.",
        epilog=f"commands:\n{rows}\n\n`devicekit COMMAND --help` tells the options of a command.",
    )
    parser.add_argument("--version", action="version", version=f"devicekit {__version__}")
    return parser


def _near(word: str, known: Iterable[str], prog: str) -> str:
    names = list(known)
    close = difflib.get_close_matches(word.lower(), names, n=1)
    if close:
        return f"did you mean {close[0]!r}?"
    return f"{prog} --help" if word.startswith("-") else _list(names) or f"{prog} --help"


def _list(names: Iterable[str]) -> str:
    return ", ".join(names)


# -- what the process is told and tells --------------------------------------------------------
def _set_log_level(text: str) -> None:
    """The usual logging, on stderr.

    Raises:
        DeviceKitError: the variable holds no level.
    """
    level = text.strip().lower() or "warning"
    if level not in LEVELS:
        raise DeviceKitError(
            f"{LOG_LEVEL}={text!r} is no level.", why="it is read by logging", try_=f"one of {_list(LEVELS)}"
        )
    logging.basicConfig(format="devicekit: %(levelname)s: %(message)s")
    log.setLevel(level.upper())


def _print_what_cannot_be_encoded() -> None:
    """A device's name or a sentence that the terminal has no letters for is no reason to fall."""
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="backslashreplace")


def _tell(exc: Exception) -> None:
    from devicekit.cli import output

    log.debug("the command failed", exc_info=exc)
    if isinstance(exc, DeviceKitError):
        output.print_error(exc)
    else:
        told = f"{type(exc).__name__}: {exc}" if str(exc) else type(exc).__name__
        output.talk(f"devicekit: {output.one_line(told)} ({LOG_LEVEL}=debug shows the traceback)")


def _forget_stdout() -> None:
    """Python flushes stdout once more when it ends, which would complain; so it writes to nowhere from now on."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
