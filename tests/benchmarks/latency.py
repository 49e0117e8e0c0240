"""Round trips of an application with a guest that sends back what it gets.

Most of a short one is the kernel's: three processes wake each other over two cores. On one core the
same is measured without that, which leaves what the bridges themselves take.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from itertools import product

from tests.benchmarks.bridges import Guest, Over, Setup, pairs
from tests.benchmarks.effort import Effort
from tests.benchmarks.figure import Figure, Peer
from tests.benchmarks.programs import application


@contextmanager
def _on(cores: set[int]) -> Iterator[None]:
    """What is started meanwhile runs on these cores alone."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def _run(setup: Setup, over: Over, size: int, count: int, cores: set[int]) -> dict[str, float]:
    with _on(cores), setup(Guest("echo"), over) as bridge:
        return application(bridge.address, "ping", size, count, count // 10)


def measure(effort: Effort) -> Iterator[Figure]:
    """Ours and P, each size, over each transport."""
    every = os.sched_getaffinity(0)
    for size, over, cores in product(effort.echoes, effort.transports, (every, {min(every)})):
        what = "1 byte" if size == 1 else f"{size >> 10} KiB"
        where = f"{over}" if cores == every else f"{over}, one core"
        run = partial(_run, over=over, size=size, count=effort.pings, cores=cores)
        mine, theirs = pairs(run, effort.pairs)
        for key in effort.latencies:
            yield Figure(
                f"round trip of {what}, {key}, {where}",
                "µs",
                [each[key] for each in mine],
                [Peer("P", [each[key] for each in theirs], 1.1)],
                less_is_better=True,
            )
