"""Bulk both ways at once."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from tests.benchmarks.bridges import Guest, Over, Setup, pairs
from tests.benchmarks.effort import Effort
from tests.benchmarks.figure import Figure, Peer
from tests.benchmarks.programs import application


def _run(setup: Setup, over: Over, size: int) -> float:
    with setup(Guest("both", size), over) as bridge:
        return 2 * size / 1e6 / application(bridge.address, "both", size)["seconds"]


def measure(effort: Effort) -> Iterator[Figure]:
    """Ours and P, over each transport; MB/s of both directions together."""
    for over in effort.transports:
        mine, theirs = pairs(partial(_run, over=over, size=effort.both), effort.pairs)
        yield Figure(f"both ways at once, {over}", "MB/s", mine, [Peer("P", theirs, 1.1)])
