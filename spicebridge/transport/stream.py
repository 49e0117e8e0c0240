"""A byte stream on non-blocking descriptors: what the data path reads from and writes to.

The kernel is asked first; only when it says EAGAIN does a task wait, with `anyio.wait_readable` or
`anyio.wait_writable`. Nothing is copied: reads go into the caller's buffer, writes gather the
caller's views.
"""

from __future__ import annotations

import errno
import os
import select
import socket
from collections.abc import Callable, Sequence
from typing import Final

import anyio

from spicebridge.transport.wire import Wire

_IOV_MAX: Final = min(1024, os.sysconf("SC_IOV_MAX"))


class Stream(Wire):
    """One byte stream, to and from a peer that may be a socket, a pipe, a terminal or a file.

    Args:
        reader: descriptor to read from, non-blocking, or one that never blocks (a file).
        writer: descriptor to write to; may be the same.
        end: ends the sending side and leaves the other one open.
        close: gives both descriptors back.
    """

    def __init__(
        self, reader: int, writer: int, *, end: Callable[[], None], close: Callable[[], None]
    ) -> None:
        self._reader = reader
        self._writer = writer
        self._end = end
        self._close = close
        self._closed = False
        self._ended = False

    @classmethod
    def of_socket(cls, sock: socket.socket) -> Stream:
        """A stream that owns a connected socket."""
        sock.setblocking(False)

        def end() -> None:
            try:
                sock.shutdown(socket.SHUT_WR)
            except OSError as error:
                if error.errno != errno.ENOTCONN:  # the peer has gone already
                    raise

        return cls(sock.fileno(), sock.fileno(), end=end, close=sock.close)

    @classmethod
    def of_pair(
        cls, reader: int, writer: int, released: Callable[[], None] = lambda: None
    ) -> Stream:
        """A stream that owns two different descriptors, such as the ends of two pipes.

        Args:
            reader: descriptor to read from, non-blocking.
            writer: descriptor to write to, non-blocking.
            released: called once both have been closed.
        """

        def end() -> None:
            os.close(writer)

        def close() -> None:
            os.close(reader)
            if not stream._ended:
                os.close(writer)
            released()

        stream = cls(reader, writer, end=end, close=close)
        return stream

    # Reading

    def read_nowait(self, buffer: memoryview) -> int | None:
        """Reads what is there.

        Returns:
            Bytes read into `buffer`; 0 at the end of the stream; None if there is nothing yet.

        Raises:
            OSError: the stream is broken.
        """
        try:
            return os.readv(self._reader, (buffer,))
        except BlockingIOError:
            return None
        except OSError as error:
            if error.errno == errno.EIO:  # a terminal whose other side has been closed
                return 0
            raise

    async def readable(self) -> None:
        """Waits until there is something to read, or `interrupt` is called."""
        try:
            await anyio.wait_readable(self._reader)
        except anyio.ClosedResourceError:
            if self._closed:
                raise

    def interrupt(self) -> None:
        """Wakes whoever waits in `readable`."""
        if not self._closed:
            anyio.notify_closing(self._reader)

    def hung_up(self) -> bool:
        """Whether the peer takes nothing more: it has closed both ways, not only its sending."""
        if self._closed:
            return True
        if self._ended and self._reader != self._writer:
            return False  # there is nothing left to ask
        return _happened(self._writer, select.POLLHUP | select.POLLERR)

    def peer_ended(self) -> bool:
        """Whether the peer of a socket has ended its sending, though not all of it was read."""
        return _happened(self._reader, select.POLLRDHUP | select.POLLHUP | select.POLLERR)

    # Writing

    def write_nowait(self, buffers: Sequence[memoryview | bytearray]) -> int | None:
        """Writes what the kernel takes of `buffers` at once.

        Returns:
            Bytes written; None if it takes nothing now.

        Raises:
            OSError: the stream is broken.
        """
        try:
            return os.writev(self._writer, buffers[:_IOV_MAX])
        except BlockingIOError:
            return None

    async def writable(self) -> None:
        """Waits until the kernel takes more."""
        try:
            await anyio.wait_writable(self._writer)
        except anyio.ClosedResourceError:
            if self._closed:
                raise

    def end(self) -> None:
        """Ends the sending side; the peer reads end of file once it has read all before it."""
        if not self._ended and not self._closed:
            self._ended = True
            if self._reader != self._writer:
                anyio.notify_closing(self._writer)
            self._end()

    def close(self) -> None:
        """Gives the descriptors back; may be called twice."""
        if not self._closed:
            self._closed = True
            anyio.notify_closing(self._reader)
            if not self._ended:
                anyio.notify_closing(self._writer)
            self._close()
            # the kernel may give the numbers to somebody else at once
            self._reader = self._writer = -1


def _happened(fd: int, events: int) -> bool:
    """Whether any of these events of poll(2) is there at this moment."""
    poll = select.poll()
    poll.register(fd, events)
    return any(event & events for _, event in poll.poll(0))
