"""Bulk over TLS, which libspice-server speaks itself."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from tests.benchmarks.bridges import pairs
from tests.benchmarks.bulk import speed
from tests.benchmarks.effort import DIRECTIONS, Effort
from tests.benchmarks.figure import Figure, Peer


def measure(effort: Effort) -> Iterator[Figure]:
    """Ours and P, down and up."""
    for direction in DIRECTIONS:
        run = partial(speed, over="TLS", direction=direction, size=effort.bulk)
        mine, theirs = pairs(run, effort.pairs)
        yield Figure(f"bulk {direction}, TLS", "MB/s", mine, [Peer("P", theirs, 1.0)])
