"""Tells garbage from frames before it has opened a thousand streams, and mostly after a few.

Any ten bytes could be a header, but no program numbers its streams as chance does: the ids of
one program have their upper halves in common, its first frames are requests or full buffers,
and its ids come again. So new streams speak against the sender whose upper halves were never
seen and whose sizes were not, either, most of all if they are large; frames for streams that
are there speak for it. Text shows in the first header.
"""

from __future__ import annotations

import string
from typing import Final

# What speaks against a sender, in points.
_SUSPICIOUS: Final = 960
_LARGE_STRANGER: Final = 60
_SMALL_STRANGER: Final = 1
_LARGE: Final = 4096  # bytes; a request is smaller
_ZERO: Final = 15
_KNOWN: Final = -15
_MAX_REMEMBERED: Final = 4096
_TEXT: Final = frozenset(string.printable.encode())


class Plausibility:
    """What is known of the sender of one channel's frames."""

    def __init__(self) -> None:
        self._suspicion = 0
        self._halves: set[int] = set()
        self._sizes: set[int] = set()

    def known(self) -> None:
        """A frame for a stream that is there."""
        self._suspicion = max(0, self._suspicion + _KNOWN)

    def new(self, client_id: int, size: int) -> str | None:
        """A frame that opens a stream; returns what is wrong, if it is."""
        if not self._halves:
            head = client_id.to_bytes(8, "little", signed=True) + size.to_bytes(2, "little")
            if _TEXT.issuperset(head):
                return f"text, {head.decode()!r}"
        half = client_id >> 32
        stranger = half not in self._halves and size not in self._sizes
        _remember(self._halves, half)
        if not stranger:
            return None
        _remember(self._sizes, size)
        self._suspicion += _LARGE_STRANGER if size >= _LARGE else _SMALL_STRANGER
        return self._verdict("ids and sizes at random")

    def zeros(self) -> str | None:
        """Size 0 for id 0, which is not there."""
        self._suspicion += _ZERO
        return self._verdict("zeros")

    def _verdict(self, what: str) -> str | None:
        return what if self._suspicion >= _SUSPICIOUS else None


def _remember(known: set[int], number: int) -> None:
    if len(known) < _MAX_REMEMBERED:
        known.add(number)
