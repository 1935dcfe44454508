"""Which texts share a batch: those of like length, so that little is padding, and as many as are fast or fit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

__all__ = ["NO_LIMIT", "Limit", "longest_first"]

NO_LIMIT = 2**62


@dataclass(frozen=True)
class Limit:
    """The most that one batch holds."""

    texts: int = NO_LIMIT
    tokens: int = NO_LIMIT
    """Padding counted."""
    like: float = 0.0
    """A text that is shorter than this part of the longest waits for the next batch; 0 to 1."""

    def count(self, lengths: Sequence[int], start: int) -> int:
        """How many of these texts, the longest first, share the batch that begins at ``start``; one always may."""
        longest = lengths[start]
        most = min(self.texts, self.tokens // longest, len(lengths) - start)
        found = 1
        while found < most and lengths[start + found] >= self.like * longest:
            found += 1
        return found

    def below(self, texts: int, length: int) -> Limit:
        """The limit after so many texts of this length have run out of memory: half as much.

        It counts tokens, so a batch of shorter texts may still have as many as before.
        """
        return replace(self, tokens=texts // 2 * length)


def longest_first(lengths: Sequence[int]) -> list[int]:
    """The positions, by length: memory runs out in the first batch, or, as far as that can be known, in none."""
    return sorted(range(len(lengths)), key=lambda position: lengths[position], reverse=True)
