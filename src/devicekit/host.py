"""The one door to what this process stands on: torch, environment, files, plugins.

Nothing else in devicekit imports torch, reads ``os.environ`` or opens a library by name. So a test hands in
another host (:mod:`devicekit.testing` has one made from data) and all real code paths run on it.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import io
import logging
import os
import sys
import threading
from collections.abc import Iterator, MutableMapping, Sequence
from pathlib import Path
from typing import Any

from devicekit.container import Cgroup, read
from devicekit.errors import DeviceKitError, DeviceUnavailableError

__all__ = ["Host", "current", "use"]

log = logging.getLogger("devicekit")

AUTOLOAD = "TORCH_DEVICE_BACKEND_AUTOLOAD"

# A torch plugin that kills the process when torch itself was built for another accelerator: it ends in
# std::terminate inside dlopen ("Duplicated key 'pinned_reserve_segment_size_mb'"), which no `except` can catch.
# Seen with torch_npu 2.13.0 beside torch 2.13.0+cu130; torch allows one accelerator a process anyway
# (torch/include/ATen/DeviceAccelerator.h: "mutually exclusive with all other accelerators").
ABORTS_BESIDE_ANOTHER_ACCELERATOR = frozenset({"torch_npu"})


class Host:
    """This machine and this process, as they are."""

    def __init__(self, *, env: MutableMapping[str, str] | None = None) -> None:
        self.env: MutableMapping[str, str] = os.environ if env is None else env
        self.root = Path("/")
        """Where files of the operating system are read from; a test gives a recorded tree."""
        self.platform = sys.platform
        """``linux``, ``darwin`` or ``win32``."""
        self.plugin_failures: dict[str, str] = {}
        """Why a torch plugin (entry-point group ``torch.backends``) could not be loaded, by module."""
        self.lock = threading.RLock()
        self.memo: dict[str, Any] = {}
        """What the floors above remember about this host."""
        self.settled: dict[object, Any] = {}
        """The devices of words that can mean only one; kept here because this is asked in hot loops."""
        self._torch: Any = None
        self._torch_failure: tuple[str, str] | None = None
        self._cgroup: Cgroup | None = None

    # -- torch ---------------------------------------------------------------------------------
    def torch(self) -> Any:
        """The torch module, imported on first use.

        Raises:
            DeviceUnavailableError: it is not installed, or importing it fails. The first failure is kept: a second
                ``import torch`` in one process fails for good with an unrelated message about TORCH_LIBRARY.
            DeviceKitError: the program that started this process redirects CUDA, and this process cannot.
        """
        if self._torch is None:
            with self.lock:
                if self._torch is None:
                    self._torch = self._import_torch_once()
        return self._torch

    def forbid_torch(self, reason: str, fix: str = "") -> None:
        """Never import torch in this process: it is known to take a process down."""
        sys.modules["torch"] = None  # type: ignore[assignment]  # Python's own way to say so
        self._torch_failure = (reason, fix)

    def torch_failure(self) -> tuple[str, str] | None:
        """Why torch cannot be had and what to try; None when it can. Imports torch to find out."""
        try:
            self.torch()
        except DeviceUnavailableError as error:
            return error.why, error.try_
        return None

    def _import_torch_once(self) -> Any:
        if self._torch_failure is None:
            try:
                return self._import_torch()
            except ModuleNotFoundError as exc:
                if exc.name != "torch":
                    self._torch_failure = _broken_torch(exc)
                else:
                    self._torch_failure = (
                        "torch is not installed",
                        "pip install -r requirements.txt, or stay with the numpy backend",
                    )
            except DeviceKitError:
                raise
            except (Exception, SystemExit) as exc:
                log.debug("importing torch failed", exc_info=True)
                self._torch_failure = _broken_torch(exc)
        why, try_ = self._torch_failure
        raise DeviceUnavailableError("torch cannot be used here.", why=why, try_=try_)

    def _import_torch(self) -> Any:
        if "torch" in sys.modules:
            return importlib.import_module("torch")
        ours, plugins = self.torch_plugins()
        if not (ours or plugins) or self.env.get(AUTOLOAD, "1") != "1":
            return importlib.import_module("torch")
        # torch would load the plugins itself, and one that is broken would break `import torch` for good.
        # So torch is imported without them, and then each is loaded as torch would, but guarded.
        with self.autoload_off():
            torch = importlib.import_module("torch")
            for plugin in plugins:
                self._load_plugin(plugin, torch)
        for plugin in ours:
            plugin.load()()  # what it refuses is the user's to know
        return torch

    def torch_plugins(self) -> tuple[list[Any], list[Any]]:
        """What ``import torch`` loads besides torch: devicekit's own, which redirects CUDA when told to, and others."""
        plugins = self.entry_points("torch.backends")
        ours = [plugin for plugin in plugins if plugin.value.startswith("devicekit.")]
        return ours, [plugin for plugin in plugins if plugin not in ours]

    @contextlib.contextmanager
    def autoload_off(self) -> Iterator[None]:
        """Torch's own switch, off for the moment and then as it was; torch_npu leaves it changed when it fails."""
        before = self.env.get(AUTOLOAD)
        self.env[AUTOLOAD] = "0"
        try:
            yield
        finally:
            if before is None:
                self.env.pop(AUTOLOAD, None)
            else:
                self.env[AUTOLOAD] = before

    def _load_plugin(self, plugin: Any, torch: Any) -> None:
        module = plugin.value.partition(":")[0].partition(".")[0]
        other = compiled_accelerator(torch)
        if other and module in ABORTS_BESIDE_ANOTHER_ACCELERATOR:
            self.plugin_failures[module] = (
                f"{module} beside a torch built for {other} aborts the process, so it is never imported"
            )
            return
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                plugin.load()()
        except (Exception, SystemExit) as exc:
            log.debug("torch plugin %s failed", module, exc_info=True)
            self.plugin_failures[module] = f"{type(exc).__name__}: {exc}"

    # -- other modules and libraries -----------------------------------------------------------
    def module(self, name: str) -> Any | None:
        """An optional module, or None where it is missing or broken (the reason goes to the log)."""
        try:
            return self.import_module(name)
        except (Exception, SystemExit):
            log.debug("optional module %s cannot be imported", name, exc_info=True)
            return None

    def import_module(self, name: str) -> Any:
        """A module that must be there; whatever its import raises comes through."""
        return importlib.import_module(name)

    def loaded(self, name: str) -> Any | None:
        """A module that somebody has imported already; never imports it."""
        return sys.modules.get(name)

    def installed(self, name: str) -> bool:
        """A top-level module could be imported; nothing is run to find out."""
        try:
            return importlib.util.find_spec(name) is not None
        except (ImportError, ValueError):
            return False

    def program(self, name: str) -> str | None:
        """Where a program is that could be started by this name; None where it is not."""
        import shutil

        return shutil.which(name, path=self.env.get("PATH"))

    def library(self, name: str) -> bool:
        """The dynamic library can be opened. Opening the drivers' libraries starts nothing in them."""
        import ctypes

        try:
            ctypes.CDLL(name)
        except OSError:
            return False
        return True

    def library_number(self, library: str, function: str) -> int | None:
        """The number that a library's function ``int f(int *)`` gives; None without one, or where it reports an error.

        Only for functions that start nothing: a driver's version, not its devices.
        """
        import ctypes

        number = ctypes.c_int(0)
        try:
            failed = getattr(ctypes.CDLL(library), function)(ctypes.byref(number))
        except (OSError, AttributeError):
            return None
        return None if failed else int(number.value)

    def entry_points(self, group: str) -> Sequence[Any]:
        """What installed packages declare under this group (``importlib.metadata.EntryPoint``)."""
        import importlib.metadata

        return tuple(importlib.metadata.entry_points(group=group))

    # -- the operating system ------------------------------------------------------------------
    @property
    def machine(self) -> str:
        """The processor's architecture: ``x86_64``, ``aarch64``, ``arm64``."""
        import platform

        return platform.machine()

    def cgroup(self) -> Cgroup:
        """The limits of the container that this process runs in."""
        if self._cgroup is None:
            self._cgroup = Cgroup(self.root)
        return self._cgroup

    def memory(self) -> tuple[int, int, str] | None:
        """Total and available bytes of the host or of the container's limit, whichever is tighter, and who said so.

        None where neither ``/proc/meminfo`` nor psutil can be asked. Both see the host only (giampaolo/psutil#1011), so
        the cgroup is asked as well.
        """
        host = self._meminfo() if self.platform == "linux" else None
        if host is None:
            psutil = self.module("psutil")
            if psutil is None:
                return None
            memory = psutil.virtual_memory()
            host = int(memory.total), int(memory.available), "psutil (the host)"
        total, available, source = host
        limit = self.cgroup().memory_limit(total)
        if limit is None:
            return total, available, source
        return limit.limit, min(available, limit.available), limit.source

    def _meminfo(self) -> tuple[int, int, str] | None:
        """The kernel's own figures, from its first three lines: psutil reads all fifty, and takes twice as long."""
        text = read(f"{self.root}/proc/meminfo", 256)
        total, available = (
            int(text.partition(name)[2].partition(b"kB")[0] or 0) * 1024 for name in (b"MemTotal:", b"MemAvailable:")
        )
        return (total, available, "/proc/meminfo (the host)") if 0 < available <= total else None

    def read_text(self, path: str) -> str | None:
        """A small file of the operating system such as ``/sys/...``; None where it cannot be read."""
        try:
            return (self.root / path.lstrip("/")).read_text(encoding="utf-8", errors="replace").strip()
        except OSError:
            return None

    def sysctl(self, name: str) -> int | None:
        """A whole number that macOS knows by this name; None elsewhere and where it has none."""
        if self.platform != "darwin":
            return None
        import ctypes

        libc, value = ctypes.CDLL(None), ctypes.c_int64(0)
        size = ctypes.c_size_t(ctypes.sizeof(value))
        failed = libc.sysctlbyname(name.encode(), ctypes.byref(value), ctypes.byref(size), None, ctypes.c_size_t(0))
        return None if failed else int(value.value)

    def glob(self, pattern: str) -> list[Path]:
        """The paths that match an absolute pattern, sorted; they belong to this host's root."""
        return sorted(self.root.glob(pattern.lstrip("/")))

    # -- simulation ----------------------------------------------------------------------------
    def adopt(self, backend: Any) -> Any:
        """A backend that was made for this host, on its way into use; a simulated host puts its own moves in."""
        return backend

    def to_json(self) -> str | None:
        """What a child process needs to stand on the same host; None: the real one, nothing is needed."""
        return None

    def config_file(self, name: str) -> Path:
        """A file of devicekit in the user's configuration folder; it need not exist."""
        import platformdirs  # here, not above: `import devicekit` costs nothing

        return Path(platformdirs.user_config_dir("devicekit", appauthor=False)) / name


def _broken_torch(exc: BaseException) -> tuple[str, str]:
    root = exc
    while root.__cause__ is not None:
        root = root.__cause__
    told = f"importing torch failed: {type(exc).__name__}: {exc}".strip()
    if root is not exc:
        told += f" (because of {type(root).__name__}: {root})"
    return told, "devicekit doctor"


def compiled_accelerator(torch: Any) -> str | None:
    """What this torch was built for: ``CUDA``, ``ROCm`` or ``XPU`` with its version; None for a CPU build."""
    version = torch.version
    for label, attribute in (("CUDA", "cuda"), ("ROCm", "hip"), ("XPU", "xpu")):
        built_for = getattr(version, attribute, None)
        if built_for is not None:
            return f"{label} {built_for}"
    return None


_current: Host = Host()


def _begin_anew() -> None:
    _current.lock = threading.RLock()  # another thread may have held it, and nobody would release it here
    _current.memo.clear()
    _current.settled.clear()


if hasattr(os, "register_at_fork"):
    # What the parent may use, a forked child may not: a runtime that was started before the fork is lost to it.
    os.register_at_fork(after_in_child=_begin_anew)


def current() -> Host:
    """The host that questions are asked of: the real one, or a simulated one inside a test."""
    return _current


@contextlib.contextmanager
def use(host: Host) -> Iterator[Host]:
    """Ask another host inside this block, in every thread of the process."""
    global _current
    before, _current = _current, host
    try:
        yield host
    finally:
        _current = before
