"""Streams of a webdav channel, each with a connection of its own to the application.

Over a Unix socket between server and bridge, for the same reason as in `messages`.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Final

from tests.benchmarks.effort import Effort
from tests.benchmarks.figure import Figure, Peer
from tests.benchmarks.programs import Application, Spicebridge
from tests.benchmarks.rounds import rounds
from tests.peers.libspice import SpiceEndpoint, listen

_PORT: Final = "org.spice-space.webdav.0"

_FRAME: Final = 65535
"""Data bytes in a frame: the most there can be, and what spice-webdavd makes of a large file."""

_BACKLOG: Final = 1024
"""Connections that wait to be accepted."""


def measure(effort: Effort) -> Iterator[Figure]:
    """As many bytes in all, over so many streams at once, against over one."""
    done = rounds(
        {count: partial(_speed, count, effort.mux) for count in effort.streams}, effort.pairs
    )
    one, *more = effort.streams
    yield Figure("1 stream of a mux", "MB/s", done[one])
    for count in more:
        peer = Peer("1 stream", done[one], 0.7 if count == more[-1] else None)
        yield Figure(f"{count} streams of a mux", "MB/s", done[count], [peer])


def _speed(streams: int, size: int) -> float:
    with demultiplexed(streams, _FRAME, size) as (_, seconds):
        return size / 1e6 / seconds


@contextmanager
def demultiplexed(
    streams: int, frame: int, size: int, *, end: bool = False
) -> Iterator[tuple[int, float]]:
    """Sends `size` bytes over so many streams, which take turns with a frame each.

    Returns the pid of the bridge, and the seconds from the application's first connection until it
    has all the bytes, and with `end` also the end of every stream. The streams are there until the
    block is left.
    """
    with tempfile.TemporaryDirectory(prefix="sb-") as name:
        folder = Path(name)
        with listen(folder / "application") as listener:
            listener.listen(_BACKLOG)
            work = ["collect", size, streams, *(["eof"] if end else [])]
            application = Application(f"accept:{listener.fileno()}", *work)
        spec = f"channelid=webdav,unixsocket={folder}/application,mode=connect"
        with (
            application,
            SpiceEndpoint(
                f"mux:{_PORT}",
                unix=folder / "spice",
                pour=size,
                streams=streams,
                frame=frame,
                end_streams=end,
                digest=False,
            ) as server,
            Spicebridge(server.uri, spec) as bridge,
        ):
            yield bridge.pid, application.result()["seconds"]
            bridge.popen.kill()
