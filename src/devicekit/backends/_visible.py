"""Visibility masks: CUDA_VISIBLE_DEVICES and its relatives, read as the runtimes read them."""

from __future__ import annotations

import re
from collections.abc import Sequence

# A leading number is a number, and what follows it is ignored: "1gpu2,2ampere" means 1,2 (strtoul, as in
# torch/cuda/__init__.py, _parse_visible_devices).
_NUMBER = re.compile(r"[+-]?[0-9]+")


def parse(mask: str | None) -> list[int] | list[str] | None:
    """The entries of a mask: indices, or UUIDs (``GPU-...``, ``MIG-...``); None: no mask, all are visible.

    An entry that is no number ends the list, a repeated one empties it, as in the CUDA runtime.
    """
    if mask is None:
        return None
    for prefix in ("GPU-", "MIG-"):
        if mask.strip().startswith(prefix):
            return _uuids(mask, prefix)
    indices: list[int] = []
    for entry in mask.split(","):
        match = _NUMBER.match(entry.strip())
        number = int(match.group()) if match else -1
        if number in indices:
            return []
        if number < 0:
            break
        indices.append(number)
    return indices


def _uuids(mask: str, prefix: str) -> list[str]:
    found: list[str] = []
    for entry in (e.strip() for e in mask.split(",")):
        if entry in found:
            return []
        if not entry.startswith(prefix):
            break
        found.append(entry)
    return found


def select(mask: str | None, uuids: Sequence[str | None]) -> list[int]:
    """The positions in ``uuids`` (one entry per physical device) that a mask leaves visible, in its order.

    A shortened UUID stands for the one device whose UUID begins with it. The first entry that names no device ends the
    list, as in the runtimes.
    """
    entries = parse(mask)
    if entries is None:
        return list(range(len(uuids)))
    chosen: list[int] = []
    for entry in entries:
        if isinstance(entry, int):
            matches = [entry] if entry < len(uuids) else []
        else:
            matches = [i for i, uuid in enumerate(uuids) if uuid is not None and uuid.startswith(entry)]
        if len(matches) != 1:
            break
        if matches[0] in chosen:
            return []  # repeated, though spelled otherwise (torch/cuda/__init__.py, _transform_uuid_to_ordinals)
        chosen.append(matches[0])
    return chosen


def hides_all(mask: str | None) -> bool:
    """The mask is set and leaves nothing visible."""
    return parse(mask) == []
