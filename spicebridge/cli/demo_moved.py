"""What the demo shows of one transfer."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Moved:
    """One transfer.

    Attributes:
        way: from where to where.
        size: bytes.
        seconds: how long it took.
        whole: whether what arrived is what was sent.
    """

    way: str
    size: int
    seconds: float
    whole: bool
