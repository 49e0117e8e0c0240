"""What a bridge keeps in memory while nothing moves; `bulk` has the peak while all does."""

from __future__ import annotations

import socket
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Final

from tests.benchmarks.bridges import Guest, Running, glib, ours
from tests.benchmarks.effort import Effort
from tests.benchmarks.figure import Figure, Peer
from tests.benchmarks.programs import Application, Spicebridge
from tests.benchmarks.rounds import rounds
from tests.peers.libspice import SpiceEndpoint
from tests.peers.processes import rss_kib

_IDLE: Final = 100
_ENDLESS: Final = 1 << 50
_SETTLED: Final = 2.0
"""Seconds until every buffer on the way to an application that takes nothing is full."""


def measure(effort: Effort) -> Iterator[Figure]:
    """Ours and P."""
    yield from _stalled(effort)
    done = rounds({"ours": _many_idle, "P": _one_idle}, effort.pairs)
    yield Figure(
        f"{_IDLE} idle bridges, memory of each",
        "MiB",
        done["ours"],
        [Peer("P", done["P"], detail="a process each")],
        less_is_better=True,
    )


def _stalled(effort: Effort) -> Iterator[Figure]:
    """All pairs at the same time, as they only wait."""
    with ExitStack() as stack:
        bridges: list[Running] = []
        for setup in (ours, glib) * effort.pairs:
            bridge = stack.enter_context(setup(Guest("pour", _ENDLESS), "Unix"))
            stack.enter_context(Application(bridge.address, "stall")).result()
            bridges.append(bridge)
        time.sleep(_SETTLED)
        before = [rss_kib(bridge.pid) for bridge in bridges]
        time.sleep(effort.stall)
        after = [rss_kib(bridge.pid) for bridge in bridges]
    growth = [now / then for then, now in zip(before, after, strict=True)]
    yield Figure(
        f"memory after {effort.stall:g} stalled seconds",
        "of that at first",
        growth[::2],
        [Peer("P", growth[1::2])],
        less_is_better=True,
        limit=1.01,
    )
    yield Figure(
        "memory with a stalled application",
        "MiB",
        [kib / 1024 for kib in after[::2]],
        [Peer("P", [kib / 1024 for kib in after[1::2]])],
        less_is_better=True,
    )


def _many_idle() -> float:
    """MiB for each of many bridges in one process, with an application at each."""
    names = [f"org.example.idle.{number}" for number in range(_IDLE)]
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="sb-")))
        channels = [f"silent:{name}" for name in names]
        server = stack.enter_context(SpiceEndpoint(*channels, unix=folder / "spice"))
        specs = [f"unixsocket={folder}/{name},port={name}" for name in names]
        bridge = stack.enter_context(Spicebridge(server.uri, *specs))
        for name in names:
            stack.enter_context(socket.socket(socket.AF_UNIX)).connect(f"{folder}/{name}")
        for name in names:
            server.wait_state(name, True)
        kib = rss_kib(bridge.pid)
        bridge.popen.kill()
    return kib / 1024 / _IDLE


def _one_idle() -> float:
    """MiB of P with its only bridge."""
    with glib(Guest("silent"), "Unix") as bridge, Application(bridge.address, "idle") as idle:
        idle.result()
        return rss_kib(bridge.pid) / 1024
