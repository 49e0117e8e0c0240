"""Small messages, as fast as they go: from the guest, or from the application in as many writes.

Over a Unix socket between server and bridge: there the kernel and the server cost least for each of
them, so that the bridge is seen.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Final

from tests.benchmarks.bridges import Guest, Setup, pairs
from tests.benchmarks.effort import Direction, Effort
from tests.benchmarks.figure import Figure, Peer
from tests.benchmarks.programs import application

_UP: Final = 4
"""How many times as many go up, where the bridge makes one message of many writes."""


def _run(setup: Setup, direction: Direction, size: int, count: int) -> float:
    total = size * count
    if direction == "down":
        with setup(Guest("pour", total, message=size), "Unix") as bridge:
            return count / application(bridge.address, "take", total)["seconds"]
    with setup(Guest("count", _UP * total), "Unix") as bridge:
        return _UP * count / application(bridge.address, "give", _UP * total, size)["seconds"]


def measure(effort: Effort) -> Iterator[Figure]:
    """Ours and P, each size, each way."""
    for direction in effort.directions:
        for size in effort.messages:
            run = partial(_run, direction=direction, size=size, count=effort.message_count)
            mine, theirs = pairs(run, effort.pairs)
            name = f"messages of {size} bytes {direction}, Unix"
            yield Figure(name, "1/s", mine, [Peer("P", theirs, 1.0)])
