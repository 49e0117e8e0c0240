"""Bytes from one socket to another through a pipe, which the kernel does without copying them.

Worth it for large pieces alone: each takes two or three system calls more than a read and a write
do, and saves both copies. Measured with 1 GiB between Unix sockets, against the way through our
buffers: 1.17 times the speed up and 1.22 both ways at once, with 0.64 and 0.71 of the CPU time;
down as fast, with 0.88 of it.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
from typing import Final

from spicebridge.transport.stream import Stream
from spicebridge.transport.wire import Wire

SPLICE_MIN: Final = 32 * 1024
"""Bytes of a piece from which this is the faster way."""

_PIPE_SIZE: Final = 256 * 1024
"""Bytes that a pipe should hold. The kernel may give less to a user who has many."""

_SEND_BUFFER: Final = 1024 * 1024
"""Bytes that a sink should take while its peer sleeps: with the 208 KiB that a Unix socket has by
itself, the two wake each other for every few messages (1.3 times the speed). The kernel may give
less, up to twice net.core.wmem_max."""


def splice_between(source: Wire, sink: Wire) -> Splice | None:
    """A way from one to the other; None unless both are sockets, and the sink a Unix socket.

    TCP cuts what comes from a pipe into pieces that cost it more than copying them would.
    """
    if not (isinstance(source, Stream) and isinstance(sink, Stream)):
        return None
    return Splice(source, sink) if _fit(source, sink) else None


def _fit(source: Stream, sink: Stream) -> bool:
    if source.socket is None or sink.socket is None:
        return False
    return sink.socket.family == socket.AF_UNIX


class Splice:
    """A way from one socket to another; its owner calls `close`.

    Args:
        source: where bytes come from.
        sink: where they go.

    Attributes:
        usable: whether more may be filled in; no longer where one of the two has been replaced by
            something between which and the other there is no such way.
        closed: whether the pipes were given back.
    """

    def __init__(self, source: Stream, sink: Stream) -> None:
        self._source = source
        self._sink = sink
        self._pipe: _Pipe | None = None
        self._ahead: _Pipe | None = None  # what goes before that
        self.closed = False
        self.usable = True

    @property
    def held(self) -> int:
        """Bytes that have left the source, or were put before those, and are not in the sink."""
        return sum(pipe.held for pipe in (self._ahead, self._pipe) if pipe)

    def fill(self, count: int) -> int | None:
        """Takes up to `count` bytes from the source; see `Wire.read_nowait`."""
        if self._pipe is None:
            self._pipe = _Pipe()
            _widen(self._sink)
        try:
            taken = os.splice(self._source.reader, self._pipe.inlet, count)
        except BlockingIOError:
            return None
        self._pipe.held += taken
        return taken

    def prefix(self, data: bytes) -> None:
        """Puts a few bytes before those that are held."""
        if self._ahead is None:
            self._ahead = _Pipe()
        self._ahead.held += os.write(self._ahead.inlet, data)
        if self._pipe is not None:
            self._pipe.pour(self._ahead)

    def drain(self) -> bool:
        """Gives the sink what it takes at once; returns whether that was all.

        Raises:
            OSError: the sink is broken.
        """
        if self.closed:
            raise OSError(errno.EPIPE, os.strerror(errno.EPIPE))
        try:
            for pipe in (self._ahead, self._pipe):
                while pipe is not None and pipe.held:
                    pipe.held -= os.splice(pipe.outlet, self._sink.writer, pipe.held)
        except BlockingIOError:
            return False
        return True

    async def drain_all(self) -> None:
        """Gives the sink all, waiting as long as it takes nothing."""
        while not self.drain():
            await self._sink.writable()

    def replace(self, old: Wire, new: Wire) -> None:
        """Has something else for its source, or for its sink."""
        stream = new if isinstance(new, Stream) else None
        if self._source is old:
            self._source = stream or self._source
        if self._sink is old:
            self._sink = stream or self._sink
        self.usable = stream is not None and _fit(self._source, self._sink)

    def take_back(self, buffer: memoryview) -> None:
        """Puts what was filled in, and never drained, into a buffer that has room for it."""
        while self._pipe is not None and self._pipe.held:
            count = os.readv(self._pipe.outlet, (buffer,))
            self._pipe.held -= count
            buffer = buffer[count:]

    def close(self) -> None:
        """Gives the pipes back; what they hold is lost."""
        self.closed = True
        for pipe in (self._ahead, self._pipe):
            if pipe is not None:
                pipe.close()
        self._ahead = self._pipe = None


def _widen(stream: Stream) -> None:
    assert stream.socket is not None  # noqa: S101 - `splice_between` has looked
    stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER)


class _Pipe:
    def __init__(self) -> None:
        self.outlet, self.inlet = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            fcntl.fcntl(self.inlet, fcntl.F_SETPIPE_SZ, _PIPE_SIZE)
        except OSError:  # what it has will do
            pass
        self.held = 0

    def pour(self, other: _Pipe) -> None:
        """Gives another pipe what it has slots for, so that both go out in one piece."""
        try:
            moved = os.splice(self.outlet, other.inlet, self.held)
        except BlockingIOError:
            return
        self.held -= moved
        other.held += moved

    def close(self) -> None:
        os.close(self.inlet)
        os.close(self.outlet)
