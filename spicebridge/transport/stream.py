"""A byte stream on non-blocking descriptors: what the data path reads from and writes to.

The kernel is asked first; only when it says EAGAIN does a task wait, with `anyio.wait_readable` or
`anyio.wait_writable`. Who reads all the time uses `watch`, which is cheaper. Nothing is copied:
reads go into the caller's buffer, writes gather the caller's views.
"""

from __future__ import annotations

import errno
import fcntl
import os
import select
import socket
import sys
import termios
from collections.abc import Callable, Sequence
from typing import Final

import anyio
import anyio.lowlevel

from spicebridge.transport.watch import Watch, can_watch
from spicebridge.transport.wire import Wire

_ENOUGH: Final = 4096
"""Bytes that are worth a message of their own."""

_IOV_MAX: Final = min(1024, os.sysconf("SC_IOV_MAX"))


class Stream(Wire):
    """One byte stream, to and from a peer that may be a socket, a pipe, a terminal or a file.

    Args:
        reader: descriptor to read from, non-blocking, or one that never blocks (a file).
        writer: descriptor to write to; may be the same.
        end: ends the sending side and leaves the other one open.
        close: gives both descriptors back.

    Attributes:
        reader: the descriptor; -1 once it was closed.
        writer: the descriptor; likewise.
        socket: what both belong to, if it is one.
    """

    def __init__(
        self, reader: int, writer: int, *, end: Callable[[], None], close: Callable[[], None]
    ) -> None:
        self.reader = reader
        self.writer = writer
        self.socket: socket.socket | None = None
        self._end = end
        self._close = close
        self._closed = False
        self._ended = False
        self._watch: Watch | None = None

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

        stream = cls(sock.fileno(), sock.fileno(), end=end, close=sock.close)
        stream.socket = sock
        return stream

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
            return os.readv(self.reader, (buffer,))
        except BlockingIOError:
            return None
        except OSError as error:
            if error.errno == errno.EIO:  # a terminal whose other side has been closed
                return 0
            raise

    async def readable(self) -> None:
        """Waits until there is something to read, or `interrupt` is called."""
        try:
            await anyio.wait_readable(self.reader)
        except anyio.ClosedResourceError:
            if self._closed:
                raise

    def gather_nowait(self, buffer: memoryview) -> int | None:
        """As `read_nowait`, but looks again as long as little has come and more is coming.

        Whoever receives it has work with each piece; an application that is at work writes on.
        """
        count = self.read_nowait(buffer)
        while count and count < _ENOUGH:
            try:
                more = self.read_nowait(buffer[count:])
            except OSError:  # a reset right behind its last words; the next look finds it
                break
            if not more:
                break
            count += more
        return count

    async def watch(self, step: Callable[[], bool]) -> None:
        """Calls `step` whenever there is something to read, or `interrupt` is called; see `Wire`.

        Raises:
            ClosedResourceError: the stream was closed meanwhile.
        """
        try:
            if can_watch():
                self._watch = Watch(self.reader, step)
                await self._watch.run()
                return
            await super().watch(step)
        except PermissionError:  # a file, which is always readable
            await anyio.lowlevel.checkpoint()
            while step():
                await anyio.lowlevel.checkpoint()
        finally:
            self._watch = None

    def interrupt(self) -> None:
        """Wakes whoever waits in `readable` or `watch`."""
        if self._watch is not None:
            self._watch.wake()
        elif not self._closed:
            anyio.notify_closing(self.reader)

    def hung_up(self) -> bool:
        """Whether the peer takes nothing more: it has closed both ways, not only its sending."""
        if self._closed:
            return True
        if self._ended and self.reader != self.writer:
            return False  # there is nothing left to ask
        return _happened(self.writer, select.POLLHUP | select.POLLERR)

    def unread(self) -> int:
        """Bytes that wait to be read; 0 where that cannot be told."""
        if self._closed:
            return 0
        try:
            size = fcntl.ioctl(self.reader, termios.FIONREAD, bytes(4))
        except OSError:
            return 0
        return int.from_bytes(size, sys.byteorder)

    def peer_ended(self) -> bool:
        """Whether the peer of a socket has ended its sending, though not all of it was read."""
        return _happened(self.reader, select.POLLRDHUP | select.POLLHUP | select.POLLERR)

    # Writing

    def write_nowait(self, buffers: Sequence[memoryview | bytearray]) -> int | None:
        """Writes what the kernel takes of `buffers` at once.

        Returns:
            Bytes written; None if it takes nothing now.

        Raises:
            OSError: the stream is broken.
        """
        try:
            return os.writev(self.writer, buffers[:_IOV_MAX])
        except BlockingIOError:
            return None

    async def writable(self) -> None:
        """Waits until the kernel takes more."""
        try:
            await anyio.wait_writable(self.writer)
        except anyio.ClosedResourceError:
            if self._closed:
                raise

    def end(self) -> None:
        """Ends the sending side; the peer reads end of file once it has read all before it."""
        if not self._ended and not self._closed:
            self._ended = True
            if self.reader != self.writer:
                anyio.notify_closing(self.writer)
            self._end()

    def hang_up(self) -> None:
        """Ends both sides of a socket: what has arrived can be read, end of file is behind it."""
        if self.socket is not None and not self._closed:
            try:
                self.socket.shutdown(socket.SHUT_RDWR)
            except OSError:  # the peer has done so already
                pass

    def close(self) -> None:
        """Gives the descriptors back; may be called twice."""
        if not self._closed:
            self._closed = True
            if self._watch is not None:
                self._watch.end(anyio.ClosedResourceError())
            anyio.notify_closing(self.reader)
            if not self._ended:
                anyio.notify_closing(self.writer)
            self._close()
            # the kernel may give the numbers to somebody else at once
            self.reader = self.writer = -1


def _happened(fd: int, events: int) -> bool:
    """Whether any of these events of poll(2) is there at this moment."""
    poll = select.poll()
    poll.register(fd, events)
    return any(event & events for _, event in poll.poll(0))
