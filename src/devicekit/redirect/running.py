"""Run a program as ``python`` would: a script, a folder, a module (``-m``) or a text (``-c``), as ``__main__``.

``runpy`` is not enough: it takes ``__main__`` away when the program's last line is done, while its threads and what it
left to ``atexit`` still run; and processes that are spawned must find the program by its file or its module's name.
"""

from __future__ import annotations

import builtins
import importlib.machinery
import importlib.util
import io
import linecache
import pkgutil
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import CodeType, ModuleType, TracebackType
from typing import Any, Literal

from devicekit.errors import DeviceKitError

__all__ = ["NoProgramError", "Program", "asks_for_cuda"]

MAIN = "__main__"
FAILED = 1
INTERRUPTED = 130
"""128 + SIGINT, as shells count."""
ASKS = re.compile(r"\bis_cuda\b|[\"']cuda\b")


class NoProgramError(DeviceKitError):
    """There is no such program."""


@dataclass(frozen=True)
class Program:
    """What is to be run, and what it is given.

    Args:
        name: of a file or a folder, of a module, or the text itself.
        arguments: what comes behind it.
        kind: which of them.
    """

    name: str
    arguments: Sequence[str] = ()
    kind: Literal["script", "module", "text"] = "script"

    def check(self) -> None:
        """Look for it, without running any of it.

        Raises:
            NoProgramError: no file, no module.
        """
        if self.kind == "script":
            if not Path(self.name).exists():
                raise NoProgramError(f"{self.name} cannot be run.", why="there is no such file", try_="another path")
            if self._is_folder and _main_of(self._file) is None:
                raise _no_main(self.name)
        elif self.kind == "module":
            self._begin()
            first = self.name.partition(".")[0]
            if not first or importlib.util.find_spec(first) is None:
                raise self._no_module(f"no module named {first!r} is found")

    def run(self) -> None:
        """Run it, in this process and for good.

        Raises:
            SystemExit: the program has ended so. Or it failed, and its traceback has been shown: then the code is 1, or
                130 where it was interrupted, and what it failed with is the cause.
            NoProgramError: no module.
        """
        self._begin()
        try:
            code, main = self._read()
            sys.modules[MAIN] = main
            exec(code, vars(main))  # noqa: S102  # that is what it is for
        except (SystemExit, NoProgramError):
            raise
        except BaseException as exc:
            _show(exc)
            raise SystemExit(INTERRUPTED if isinstance(exc, KeyboardInterrupt) else FAILED) from exc

    # -- as Python finds it ----------------------------------------------------------------------
    @property
    def _file(self) -> str:
        """With the whole path, as Python names it."""
        return str(Path(self.name).absolute())

    @property
    def _is_folder(self) -> bool:
        """Or a zip file: something that modules are found in."""
        return Path(self.name).is_dir() or type(pkgutil.get_importer(self.name)).__name__ == "zipimporter"

    def _begin(self) -> None:
        """``sys.argv``, and the first place where modules are looked for."""
        first, place = {"module": ("-m", str(Path.cwd())), "text": ("-c", "")}.get(self.kind, (self.name, self._file))
        if self.kind == "script" and not self._is_folder:
            place = str(Path(self.name).resolve().parent)
        sys.argv[:] = [first, *self.arguments]
        if not getattr(sys.flags, "safe_path", False):
            sys.path[0] = place

    def _read(self) -> tuple[CodeType, ModuleType]:
        if self.kind == "text":
            return compile(self.name, "<string>", "exec", dont_inherit=True), _main()
        if self.kind == "module":
            spec = self._spec_of_module()
            sys.argv[0] = str(spec.origin)
            return _of(spec), _main(spec)
        if self._is_folder:
            spec = _main_of(self._file)
            return _of(spec), _main(spec)
        file = self._file
        main = _main()
        vars(main).update(__file__=file, __loader__=importlib.machinery.SourceFileLoader(MAIN, file), __cached__=None)
        with io.open_code(file) as stream:
            compiled = pkgutil.read_code(stream)
        if compiled is not None:
            return compiled, main
        with io.open_code(file) as stream:
            return compile(stream.read(), file, "exec", dont_inherit=True), main

    def _spec_of_module(self) -> Any:
        name = self.name
        try:
            spec = importlib.util.find_spec(name)
            if spec is not None and spec.submodule_search_locations is not None:
                name = f"{name}.{MAIN}"
                spec = importlib.util.find_spec(name)
        except ModuleNotFoundError as exc:
            if exc.name is None or not f"{name}.".startswith(f"{exc.name}."):
                raise  # the module is there, and what it imports is not
            spec = None
        if spec is None and name != self.name:
            raise _no_main(self.name)
        if spec is None or spec.loader is None:
            raise self._no_module("there is no such module")
        return spec

    def _no_module(self, why: str) -> NoProgramError:
        return NoProgramError(f"the module {self.name} cannot be run.", why=why, try_="pip list; or the script's path")


def _no_main(name: str) -> NoProgramError:
    return NoProgramError(f"{name} cannot be run.", why=f"it has no {MAIN}.py", try_="a file in it")


def _main_of(folder: str) -> Any:
    finder: Any = pkgutil.get_importer(folder)
    return None if finder is None else finder.find_spec(MAIN)


def _of(spec: Any) -> Any:
    return spec.loader.get_code(spec.name)


def _main(spec: Any = None) -> ModuleType:
    """An empty ``__main__``. Python gives a script none of a module's spec, and what is spawned goes by that."""
    main = ModuleType(MAIN)
    vars(main).update(__builtins__=builtins, __spec__=spec, __loader__=importlib.machinery.BuiltinImporter)
    if spec is not None:
        vars(main).update(__file__=spec.origin, __cached__=spec.cached, __loader__=spec.loader, __package__=spec.parent)
    return main


# -- how it ends -----------------------------------------------------------------------------------
def _show(exc: BaseException) -> None:
    """The traceback, as the program wants it shown, without the frames through which we have come to it."""
    shown = exc.with_traceback(_without_ours(exc.__traceback__))
    sys.excepthook(type(shown), shown, shown.__traceback__)


def _without_ours(trace: TracebackType | None) -> TracebackType | None:
    while trace is not None:
        where = str(trace.tb_frame.f_globals.get("__name__", ""))
        if where != __name__ and where.partition(".")[0] != "importlib":
            break
        trace = trace.tb_next
    return trace


def asks_for_cuda(exc: BaseException | None) -> bool:
    """The line that raised a refusal, or the one above, asks whether something is on CUDA."""
    if not isinstance(exc, (AssertionError, ValueError)) or exc.__traceback__ is None:
        return False
    trace = exc.__traceback__
    while trace.tb_next is not None:
        trace = trace.tb_next
    file, line = trace.tb_frame.f_code.co_filename, trace.tb_lineno
    return any(ASKS.search(linecache.getline(file, number)) for number in (line - 1, line))
