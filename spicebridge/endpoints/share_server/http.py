"""HTTP/1.1 with cheroot, on connections that are handed to us, a thread for each.

cheroot's own pool of threads would be full as soon as some clients stop reading, and would cut off
those that stop for some seconds; here a connection waits as long as its client does, and a thread
that waits costs next to nothing. Only one that waits for its next request is closed after `IDLE`:
spice-webdavd does not tell when a program in the guest was killed. One that lives and asks again
gets a new connection; it does not even notice.
"""

from __future__ import annotations

import io
import select
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from cheroot import wsgi
from cheroot.server import HTTPConnection, HTTPRequest

from spicebridge.endpoints.share_server.requests import BLOCK_SIZE, report

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer, WriteableBuffer

IDLE: Final = 120.0
"""Seconds that a connection may wait for its next request."""

_MAX_HEADERS: Final = 64 * 1024  # bytes
_MAX_CHUNK_LINE: Final = 4096  # bytes: a chunk's size and its extensions (RFC 9112, 7.1)


class BrokenBodyError(OSError):
    """A request's body ended before its end, or its chunks are none."""


class _Wire(io.RawIOBase):
    """A socket that gathers what is written until it is worth it, or we are to wait for more.

    So header and body leave together, and ``100 Continue`` before its body is waited for.
    """

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._pending: list[memoryview] = []
        self._size = 0
        self._patience: float | None = None

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer) -> int:
        self.flush()
        if self._patience is not None:
            poll = select.poll()  # a select could not take a descriptor over 1023
            poll.register(self._socket, select.POLLIN)
            if not poll.poll(self._patience * 1000):
                raise TimeoutError
        return self._socket.recv_into(buffer)

    @contextmanager
    def limited(self, seconds: float) -> Iterator[None]:
        """Reads within it raise TimeoutError once nothing has come for so long."""
        self._patience = seconds
        try:
            yield
        finally:
            self._patience = None

    def write(self, data: ReadableBuffer) -> int:
        view = memoryview(data)
        self._pending.append(view)
        self._size += len(view)
        if self._size >= BLOCK_SIZE:
            self.flush()
        return len(view)

    def flush(self) -> None:
        while self._pending:
            sent = self._socket.sendmsg(self._pending)
            while self._pending and sent >= len(self._pending[0]):
                sent -= len(self._pending.pop(0))
            if sent:
                self._pending[0] = self._pending[0][sent:]
        self._size = 0

    def forget(self) -> None:
        """Nobody is there to take what is gathered; or else Python would try again at the end."""
        self._pending.clear()


class _Body:
    """The body of a request: a number of bytes, or chunks.

    Args:
        source: where it comes from.
        length: bytes; None if it comes in chunks.

    Attributes:
        broken: whether its end cannot be found any more.
    """

    def __init__(self, source: io.BufferedReader, length: int | None) -> None:
        self._source = source
        self._left = length or 0
        self._chunked = self._more = length is None
        self.broken = False

    def read(self, size: int) -> bytes:
        """The next bytes, at least one; none at its end."""
        pieces = []
        while size and (self._left or (self._more and self._next_chunk())):
            data = self._source.read(min(size, self._left))
            if not data:
                self._break("the connection ended within a body")
            self._left -= len(data)
            size -= len(data)
            pieces.append(data)
            if self._chunked and not self._left and self._line() != b"":
                self._break("a chunk does not end where it should")
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def drain(self) -> None:
        """Reads what nobody wanted, so that the next request can be found."""
        while not self.broken and self.read(BLOCK_SIZE):
            pass

    def _next_chunk(self) -> bool:
        digits = self._line().partition(b";")[0].strip()
        if not digits or len(digits) > 16 or digits.strip(b"0123456789abcdefABCDEF"):
            self._break("a chunk does not tell its size")
        self._left = int(digits, 16)
        if not self._left:
            self._more = False
            while self._line():  # trailers
                pass
        return self._more

    def _line(self) -> bytes:
        line = self._source.readline(_MAX_CHUNK_LINE)
        if not line.endswith(b"\n"):
            self._break("a chunk does not tell its size")
        return line.rstrip(b"\r\n")

    def _break(self, why: str) -> None:
        self.broken = True
        raise BrokenBodyError(why)


class _Request(HTTPRequest):
    """Reads bodies piece by piece; cheroot takes a chunk of any size into memory."""

    def respond(self) -> None:
        length = self.inheaders.get(b"Content-Length", b"0")
        if not length.isdigit() or (self.chunked_read and b"Content-Length" in self.inheaders):
            # the second is how requests are smuggled (RFC 9112, 6.3)
            self.close_connection = True
            self.simple_response("400 Bad Request", "The body has no clear length")
            return
        body = _Body(self.conn.rfile, None if self.chunked_read else int(length))
        self.rfile = body
        self.server.gateway(self).respond()
        try:
            body.drain()
        except BrokenBodyError:
            pass
        self.close_connection = self.close_connection or body.broken


class _Connection(HTTPConnection):
    RequestHandlerClass = _Request


class Server(wsgi.Server):
    """Serves connections.

    Args:
        application: answers requests (PEP 3333).
    """

    def __init__(self, application: Callable[..., object]) -> None:
        super().__init__(("localhost", 80), application, server_name="spicebridge")
        self.max_request_header_size = _MAX_HEADERS
        self.timeout = 86400  # seconds; it is only told, to clients that speak HTTP/1.0
        self._threads: dict[threading.Thread, socket.socket] = {}
        self._changing = threading.Lock()

    can_add_keepalive_connection = True

    def serve_connection(self, sock: socket.socket) -> None:
        """Serves one until its client closes it; returns at once."""
        thread = threading.Thread(target=self._serve, args=(sock,), daemon=True)
        with self._changing:
            try:
                thread.start()
            except RuntimeError:  # the user has too many
                report("there are too many threads to serve another connection")
                sock.close()
            else:
                self._threads[thread] = sock

    def _serve(self, sock: socket.socket) -> None:
        wire = _Wire(sock)
        connection = _Connection(
            self, sock, lambda _sock, mode, size: io.BufferedReader(wire) if "r" in mode else wire
        )
        try:
            while True:
                with wire.limited(IDLE):
                    connection.rfile.peek(1)
                if not connection.communicate():
                    break
            wire.flush()
        except OSError:  # the client has gone, or has been silent for long
            pass
        finally:
            wire.forget()
            with self._changing:
                del self._threads[threading.current_thread()]
                sock.close()

    def end(self, patience: float) -> None:
        """Ends all connections, and waits for what is under way to be given up.

        Args:
            patience: seconds.
        """
        with self._changing:
            threads = dict(self._threads)
            for sock in threads.values():
                try:
                    sock.shutdown(socket.SHUT_RDWR)
                except OSError:  # its client has closed it
                    pass
        deadline = time.monotonic() + patience
        for thread in threads:
            thread.join(max(0.0, deadline - time.monotonic()))

    def error_log(self, msg: str = "", level: int = 20, traceback: bool = False) -> None:
        """cheroot's own: a line instead of a traceback."""
        report(f"{sys.exception() or msg!s:.300}")
