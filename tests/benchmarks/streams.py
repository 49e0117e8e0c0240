"""Streams that come and go, and streams that only stay: what each of them costs."""

from __future__ import annotations

import time
from collections.abc import Iterator
from functools import partial
from typing import Final

from tests.benchmarks.demux import demultiplexed
from tests.benchmarks.effort import Effort
from tests.benchmarks.figure import Figure
from tests.benchmarks.rounds import rounds
from tests.peers.processes import rss_kib

_MANY: Final = 1000

_SHORT: Final = 64
"""Bytes of a stream that comes and goes."""

_SETTLED: Final = 0.5
"""Seconds until streams that have had their byte are idle."""


def measure(effort: Effort) -> Iterator[Figure]:
    """Many that come, get a few bytes and end; and many that get one byte and stay."""
    opened = rounds({"ours": _opened}, effort.pairs)["ours"]
    yield Figure(f"{_MANY} short streams of a mux", "1/s", opened)
    idle = rounds({count: partial(_resident, count) for count in (1, _MANY)}, effort.pairs)
    each = [(many - one) / (_MANY - 1) for one, many in zip(idle[1], idle[_MANY], strict=True)]
    yield Figure(
        f"{_MANY} idle streams, memory of each", "KiB", each, less_is_better=True, limit=16.0
    )


def _opened() -> float:
    with demultiplexed(_MANY, _SHORT, _MANY * _SHORT, end=True) as (_, seconds):
        return _MANY / seconds


def _resident(streams: int) -> float:
    with demultiplexed(streams, 1, streams) as (pid, _):
        time.sleep(_SETTLED)
        return rss_kib(pid)
