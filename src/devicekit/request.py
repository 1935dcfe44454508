"""What was asked for: the words for devices, and the pins that stand in for an argument."""

from __future__ import annotations

import difflib
import numbers
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from devicekit.errors import UnknownDeviceError
from devicekit.host import Host
from devicekit.registry import Row

__all__ = ["AUTO", "GPU", "PINS", "Request", "environment_reader", "local_rank", "parse", "saved_choice"]

AUTO = "auto"
GPU = "gpu"
"""The best accelerator, whichever it is."""

PINS = ("DEVICEKIT_DEVICE", "KRONOS_DEVICE", "PREFERRED_DEVICE", "YIRAGE_BACKEND")
"""The variables with which an operator pins a device, strongest first."""

CHOICE_FILE = "device"
"""Where ``devicekit use NAME`` keeps its choice, in the user's configuration folder."""

_SPELLING = re.compile(r"([a-z][a-z0-9_]*)(?::([0-9]+))?")


@dataclass(frozen=True, slots=True)
class Request:
    """A device as somebody asked for it."""

    word: str
    """``auto``, ``gpu``, or a word that names a backend or its device type."""
    index: int | None = None
    text: str = AUTO
    """The same, as it was given."""
    source: str = "default"
    """Who asked: ``argument``, a variable's name, ``saved choice`` or ``default``."""
    current: bool = False
    """Where no index is given, none is chosen: what is meant is the runtime's current device, whichever it is then."""

    def said(self) -> str:
        """For messages: the text, and the variable that it came from."""
        return repr(self.text) if self.source == "argument" else f"{self.text!r} (from {self.source})"


def parse(value: object, source: str, words: Mapping[str, str]) -> Request:
    """Read a device as the user spells it. Case and surrounding blanks do not matter.

    Args:
        value: None, a word, ``word:N``, a whole number (the Nth device of the best accelerator), or a torch.device.
        source: who asked, for the messages.
        words: every word that can be meant, and the words that are only a hint at one.

    Raises:
        UnknownDeviceError: no device is spelled like this.
    """
    if value is None:
        return Request(AUTO, source=source)
    if isinstance(value, numbers.Integral) and not isinstance(value, bool):
        if int(value) < 0:
            raise _unknown(value, source, "an index is 0 or more")
        return Request(GPU, int(value), str(int(value)), source)
    if not isinstance(value, str) and not _is_torch_device(value):
        raise _unknown(
            value, source, f"a device is a word, a whole number or a torch.device, not a {type(value).__name__}"
        )
    text = str(value)
    match = _SPELLING.fullmatch(text.strip().lower())
    if match is None:
        raise _unknown(text, source, _what_is_wrong(text), _near(text.partition(":")[0], words))
    word, digits = match.groups()
    if words.get(word) != word or (word == AUTO and digits):
        raise _unknown(text, source, "no backend has this name", _near(word, words))
    return Request(word, None if digits is None else int(digits[:18]), text, source)


def _is_torch_device(value: object) -> bool:
    # By name, so that torch need not be imported to find out that this is none.
    kind = type(value)
    return kind.__name__ == "device" and kind.__module__ == "torch"


def _what_is_wrong(text: str) -> str:
    if not text.strip():
        return "it is empty"
    if ":" in text:
        return "after the colon stands an index: a whole number, 0 or more"
    return "a device is one word, or word:index"


def _near(word: str, words: Mapping[str, str]) -> str:
    """A way out: the word that was probably meant, else all of them."""
    wanted = word.strip().lower()
    if wanted in words:
        return f"did you mean {words[wanted]!r}?"
    close = difflib.get_close_matches(wanted, words, n=1)
    if close:
        return f"did you mean {words[close[0]]!r}?"
    return "one of " + ", ".join(dict.fromkeys(words.values()))


def _unknown(value: object, source: str, why: str, try_: str = "") -> UnknownDeviceError:
    shown = repr(value) if len(repr(value)) <= 80 else repr(value)[:77] + "..."
    where = "" if source == "argument" else f" (from {source})"
    return UnknownDeviceError(f"{shown}{where} is no device.", why=why, try_=try_ or '"auto", "cpu", "cuda:0", 0')


def words_of(rows: Iterable[Row], device_types: Iterable[str] = ()) -> dict[str, str]:
    """Word -> what it stands for. A word that stands for itself is accepted; any other is only a hint."""
    table = {AUTO: AUTO, GPU: GPU}
    for row in rows:
        if not row.problem:
            table.update({word: word for word in (row.name, *row.also)})
            table.update({hint: row.name for hint in row.hints if hint not in table})
    table.update({kind: kind for kind in device_types})
    return table


# -- pins ------------------------------------------------------------------------------------------
def environment_reader(env: Mapping[str, str], names: tuple[str, ...]) -> Any:
    """A function that returns the variables' present values as one comparable tuple.

    ``os.environ.get`` takes about a microsecond for a variable that is not set, because it encodes the name and raises
    inside; the pins are read at every ``resolve_device()``, so its table is read as it lies where it can be.
    """
    table, encode = getattr(env, "_data", None), getattr(env, "encodekey", None)
    if isinstance(table, dict) and callable(encode):
        get, keys = table.get, tuple(encode(name) for name in names)
        unset, none_set = (None,) * len(keys), table.keys().isdisjoint
        return lambda: unset if none_set(keys) else tuple(map(get, keys))
    return lambda: tuple([env.get(name) for name in names])


def local_rank(env: Mapping[str, str]) -> int | None:
    """This process's rank on its machine, as torchrun sets it; None where there is none or it is no number."""
    text = env.get("LOCAL_RANK", "").strip()
    return int(text) if re.fullmatch(r"[0-9]{1,9}", text) else None


def saved_choice(host: Host) -> str | None:
    """What ``devicekit use`` saved for this user; None when nothing was, or it cannot be read."""
    try:
        text = host.config_file(CHOICE_FILE).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError, RuntimeError):  # RuntimeError: a user without a home folder
        return None
    return text.strip() or None
