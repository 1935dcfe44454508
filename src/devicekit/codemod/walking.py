"""Which files there are to read: Python, notebooks, and the few others that the text rules know."""

from __future__ import annotations

import fnmatch
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from devicekit.codemod.text_rules import TEXT_RULES
from devicekit.errors import DeviceKitError

__all__ = ["files_under"]

NOT_OURS = {"node_modules", "site-packages", "__pycache__"}
CODE = (".py", ".ipynb")


def files_under(paths: Iterable[str], exclude: Sequence[str] = ()) -> Iterator[str]:
    """Every file to read, once, as ``paths`` call them; folders are walked, in the order of their names.

    Hidden folders, virtual environments and installed packages are left out; a file that is named is read in any case.

    Args:
        paths: files and folders.
        exclude: patterns as in a shell (``third_party/*``, ``*_pb2.py``), of a path or of a name in it.

    Raises:
        DeviceKitError: a path is not there.
    """
    seen: set[str] = set()
    for path in paths:
        if not os.path.exists(path):  # noqa: PTH110  # paths stay text, as they are printed
            raise DeviceKitError(f"{path!r} is not there.", try_="a file or a folder with Python code")
        found = _walk(path, exclude) if Path(path).is_dir() else [path]
        for file in found:
            if file not in seen:
                seen.add(file)
                yield file


def _walk(root: str, exclude: Sequence[str]) -> Iterator[str]:
    for folder, folders, names in os.walk(root):
        here = "" if folder == "." else folder.removeprefix("./")
        folders[:] = sorted(
            name
            for name in folders
            if not (name.startswith(".") or name in NOT_OURS)
            and not Path(folder, name, "pyvenv.cfg").exists()
            and not _is_excluded(os.path.join(here, name), exclude)  # noqa: PTH118
        )
        for name in sorted(names):
            path = os.path.join(here, name)  # noqa: PTH118
            if _is_ours(name) and not _is_excluded(path, exclude):
                yield path


def _is_ours(name: str) -> bool:
    return name.endswith(CODE) or any(rule.files.search(name) for rule in TEXT_RULES)


def _is_excluded(path: str, patterns: Sequence[str]) -> bool:
    parts = Path(path).parts
    return any(
        fnmatch.fnmatch(path, pattern) or any(fnmatch.fnmatch(part, pattern) for part in parts) for pattern in patterns
    )
