"""Stand-ins in plain torch for packages that are made for CUDA, on request: ``--shim flash-attn``.

Each is a folder here that is imported under the package's own name, so to torch and to a redirect it is a part of the
program like the package itself. For those who ask ``importlib.metadata`` first, it is installed as well.
"""

from __future__ import annotations

import importlib.machinery
import re
import sys
from collections.abc import Iterable, Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from devicekit.errors import DeviceKitError

if TYPE_CHECKING:
    from devicekit.redirect.redirect import Redirect

__all__ = ["SHIMS", "Shim", "checked", "install", "package_of"]

FOLDER = Path(__file__).parent


class Shim(metadata.Distribution):
    """One package: found by Python's import, and by what asks for installed packages."""

    def __init__(self, name: str, package: str, version: str) -> None:
        self.package = package
        self._files = {
            "METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
            "top_level.txt": f"{package}\n",
        }

    def read_text(self, filename: Any) -> str | None:
        """Of its metadata."""
        return self._files.get(str(filename))

    def locate_file(self, path: Any) -> Any:
        """Of its code."""
        return FOLDER / path

    # -- as an entry of sys.meta_path ------------------------------------------------------------
    def find_spec(self, name: str, path: Sequence[str] | None = None, target: Any = None) -> Any:
        """The package; its modules are found through its ``__path__``."""
        return importlib.machinery.PathFinder.find_spec(name, [str(FOLDER)]) if name == self.package else None

    def find_distributions(self, context: Any = None) -> Iterable[metadata.Distribution]:
        """Itself, where all are asked for, or this one."""
        wanted = getattr(context, "name", None)
        return [self] if wanted is None or _normal(wanted) == _normal(self.package) else []


SHIMS = {"flash-attn": Shim("flash-attn", "flash_attn", "2.8.3")}
"""By the names under which they are installed. The version is the one whose signatures the stand-in has."""


def checked(names: Iterable[str]) -> tuple[str, ...]:
    """The names.

    Raises:
        DeviceKitError: there is no stand-in for one of them.
    """
    found = tuple(_normal(name) for name in names)
    for name in found:
        if name not in SHIMS:
            raise DeviceKitError(f"there is no stand-in for {name!r}.", try_=" or ".join(map(repr, SHIMS)))
    return found


def package_of(name: str) -> str | None:
    """The stand-in that could be had for a package, by the name to ask for; None: none."""
    return next((asked for asked, shim in SHIMS.items() if shim.package == name), None)


def install(redirect: Redirect, names: Iterable[str]) -> None:
    """Put them in front of all other packages; also of one that is installed and cannot work here."""
    layer = redirect.layer
    for name in checked(names):
        shim = SHIMS[name]
        before = {held: sys.modules.pop(held) for held in _modules(shim)}
        layer.at_the_end(lambda before=before: sys.modules.update(before))  # type: ignore[misc]
        layer.at_the_end(lambda shim=shim: _forget(shim))  # type: ignore[misc]
        layer.insert(sys.meta_path, 0, shim)


def _modules(shim: Shim) -> list[str]:
    return [name for name in sys.modules if name == shim.package or name.startswith(f"{shim.package}.")]


def _forget(shim: Shim) -> None:
    for name in _modules(shim):
        del sys.modules[name]


def _normal(name: str) -> str:
    """Blanks between a package's words are written in three ways (packaging.python.org, name normalization)."""
    return re.sub(r"[-_.]+", "-", name).lower()
