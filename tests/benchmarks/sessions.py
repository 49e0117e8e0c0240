"""Bridges to many servers: in one process, against a process each.

An application is at each of them, and nothing moves. Memory is told twice, as what is resident and
as the part of it that is not shared with other processes (PSS): 100 processes share the pages of
the interpreter and of libraries.
"""

from __future__ import annotations

import os
import socket
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

from tests.benchmarks.bridges import PORT, spicebridge
from tests.benchmarks.effort import Effort
from tests.benchmarks.figure import Figure, Peer
from tests.benchmarks.programs import cpu_seconds
from tests.benchmarks.rounds import rounds
from tests.peers.libspice import SpiceEndpoint
from tests.peers.processes import JsonProcess, Process, rss_kib

_PROGRAM: Final = Path(__file__).with_name("one_process.py")
_START_TIMEOUT: Final = 60.0

_SETTLED: Final = 0.5
"""Seconds after which they are idle."""

_IDLE: Final = 3.0
"""Seconds for which the cost of being idle is measured."""


@dataclass(frozen=True)
class _Cost:
    """Of each bridge.

    Attributes:
        resident: MiB.
        own: MiB, of shared pages only the part that falls to it.
        start: milliseconds of the processors until all were ready.
        idle: microseconds of the processors in a second without any work.
    """

    resident: float
    own: float
    start: float
    idle: float


def measure(effort: Effort) -> Iterator[Figure]:
    """One process and many, for each number of servers."""
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="sb-"))
        servers = [
            stack.enter_context(SpiceEndpoint(f"silent:{PORT}", unix=Path(folder) / str(number)))
            for number in range(max(effort.sessions))
        ]
        for count in effort.sessions:
            some = servers[:count]
            done = rounds(
                {"one": partial(_in_one, some), "each": partial(_in_many, some)},
                effort.session_pairs,
            )
            yield from _figures(count, done["one"], done["each"])


def _figures(count: int, one: Sequence[_Cost], each: Sequence[_Cost]) -> Iterator[Figure]:
    for what, unit, field in (
        ("resident memory", "MiB", "resident"),
        ("own memory", "MiB", "own"),
        ("CPU of the start", "ms", "start"),
    ):
        yield Figure(
            f"{count} servers, {what} a bridge",
            unit,
            [getattr(cost, field) for cost in one],
            [Peer("a process each", [getattr(cost, field) for cost in each])],
            less_is_better=True,
        )
    for where, costs in (("in one process", one), ("a process each", each)):
        name = f"{count} servers, idle CPU, {where}"  # 0 perhaps: there is no ratio
        yield Figure(name, "µs/s", [cost.idle for cost in costs], less_is_better=True)


def _in_one(servers: Sequence[SpiceEndpoint]) -> _Cost:
    with tempfile.TemporaryDirectory(prefix="sb-") as folder:
        uris = [server.uri for server in servers]
        with JsonProcess([sys.executable, _PROGRAM, PORT, folder, *uris]) as process:
            process.wait_message(ready=True, timeout=_START_TIMEOUT)
            return _cost([process], servers, Path(folder))


def _in_many(servers: Sequence[SpiceEndpoint]) -> _Cost:
    with (
        tempfile.TemporaryDirectory(prefix="sb-") as folder,
        ExitStack() as stack,
        ThreadPoolExecutor(os.cpu_count()) as pool,
    ):

        def start(number: int) -> Process:
            return stack.enter_context(spicebridge(servers[number].uri, Path(folder) / str(number)))

        processes = list(pool.map(start, range(len(servers))))
        return _cost(processes, servers, Path(folder))


def _cost(processes: Sequence[Process], servers: Sequence[SpiceEndpoint], folder: Path) -> _Cost:
    """What bridges cost that have just become ready; ends them."""

    def cpu() -> float:
        return sum(cpu_seconds(process.pid) for process in processes)

    count = len(servers)
    start = cpu()
    with ExitStack() as stack:
        for number in range(count):
            application = stack.enter_context(socket.socket(socket.AF_UNIX))
            application.connect(str(folder / str(number)))
        for server in servers:
            server.wait_state(PORT, True)
        time.sleep(_SETTLED)
        before = cpu()
        time.sleep(_IDLE)
        idle = cpu() - before
        cost = _Cost(
            resident=sum(rss_kib(process.pid) for process in processes) / 1024 / count,
            own=sum(_pss_kib(process.pid) for process in processes) / 1024 / count,
            start=start * 1e3 / count,
            idle=idle * 1e6 / _IDLE / count,
        )
    for process in processes:
        process.popen.kill()
    return cost


def _pss_kib(pid: int) -> int:
    """Resident memory, each page divided by the number of processes that share it."""
    rollup = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii")
    return next(int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Pss:"))
