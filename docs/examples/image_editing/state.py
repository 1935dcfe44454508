"""The device's state in words, asked anew each time: for the command line and for the page."""

from __future__ import annotations

import devicekit as dk

__all__ = ["in_words", "state"]


def in_words(count: int | None) -> str:
    """Bytes in MiB; what the runtime cannot tell is unknown, and not 0."""
    return "unknown" if count is None else f"{count / 2**20:,.1f} MiB"


def state(dm: dk.DeviceManager) -> dict[str, str]:
    """What somebody who waits for a picture may want to know, by what it is called."""
    memory, attention = dm.memory_stats(), dm.attention_backend()
    not_used = "; ".join(f"not {name}: {reason}" for name, reason in attention.why_not.items())
    return {
        "device": f"{dm.device} ({dm.name})",
        "numbers": str(dm.dtype).removeprefix("torch."),
        "attention": f"{attention} ({not_used})" if not_used else str(attention),
        "warning": dm.warning or "none",
        "memory in all": in_words(memory.total),
        "available": in_words(memory.available),
        "allocated": in_words(memory.allocated),
        "highest": in_words(memory.peak),
        "figures by": memory.source,
    }
