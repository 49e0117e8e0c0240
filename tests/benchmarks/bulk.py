"""Bulk one way: its speed, and what it costs the bridge in CPU and memory.

What goes through cannot be compressed: libspice-server compresses over TCP, see `compressible`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Final

from tests.benchmarks.bridges import RELAYS, Guest, Over, Running, Setup, glib, ours
from tests.benchmarks.effort import DIRECTIONS, Direction, Effort
from tests.benchmarks.figure import Figure, Peer, best
from tests.benchmarks.programs import application, cpu_seconds
from tests.benchmarks.rounds import rounds
from tests.peers.libspice import NOISE
from tests.peers.processes import peak_rss_kib

_CHUNK: Final = 256 * 1024
"""Bytes that the application writes at once."""


@dataclass(frozen=True)
class Run:
    """One run through a bridge.

    Attributes:
        speed: MB/s.
        cpu: seconds of the bridge in user mode and in the kernel, for each GiB.
        peak: most resident memory that the bridge has had since its start, in MiB.

    The costs are 0 for socat, which has ended when they could be asked for.
    """

    speed: float
    cpu: float = 0.0
    peak: float = 0.0


def speed(
    setup: Setup, over: Over, direction: Direction, size: int, content: bytes = NOISE
) -> float:
    """Moves `size` bytes through a new bridge; in MB/s."""
    with setup(_guest(direction, size, content), over) as bridge:
        return _move(bridge, direction, size)


def measure(effort: Effort) -> Iterator[Figure]:
    """Ours, P and L, down and up, over each transport."""
    for direction in DIRECTIONS:
        for over in effort.transports:
            yield from _measure(effort, direction, over)


def _measure(effort: Effort, direction: Direction, over: Over) -> Iterator[Figure]:
    size = effort.bulk
    runs: dict[str, Callable[[], Run]] = {
        "ours": partial(_run, ours, over, direction, size),
        "P": partial(_run, glib, over, direction, size),
    }
    for name, setup in RELAYS.items():
        runs[name] = partial(_relayed, setup, over, direction, size)
    done = rounds(runs, effort.pairs)
    mine, theirs = done["ours"], done["P"]
    relays = {name: [each.speed for each in done[name]] for name in RELAYS}
    yield Figure(
        f"bulk {direction}, {over}",
        "MB/s",
        [each.speed for each in mine],
        [Peer("P", [each.speed for each in theirs], 1.1), best("L", relays, 0.8)],
    )
    yield Figure(
        f"CPU of bulk {direction}, {over}",
        "s/GiB",
        [each.cpu for each in mine],
        [Peer("P", [each.cpu for each in theirs], 0.9)],
        less_is_better=True,
    )
    yield Figure(
        f"peak memory of bulk {direction}, {over}",
        "MiB",
        [each.peak for each in mine],
        [Peer("P", [each.peak for each in theirs], 1.5)],
        less_is_better=True,
    )


def _run(setup: Setup, over: Over, direction: Direction, size: int) -> Run:
    with setup(_guest(direction, size, NOISE), over) as bridge:
        before = cpu_seconds(bridge.pid)
        fast = _move(bridge, direction, size)
        cpu = cpu_seconds(bridge.pid) - before
        return Run(fast, cpu * 2**30 / size, peak_rss_kib(bridge.pid) / 1024)


def _relayed(setup: Setup, over: Over, direction: Direction, size: int) -> Run:
    return Run(speed(setup, over, direction, size))


def _guest(direction: Direction, size: int, content: bytes) -> Guest:
    return Guest("pour" if direction == "down" else "count", size, content=content)


def _move(bridge: Running, direction: Direction, size: int) -> float:
    work = ("take", size) if direction == "down" else ("give", size, _CHUNK)
    return size / 1e6 / application(bridge.address, *work)["seconds"]
