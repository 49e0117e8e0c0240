"""SPICE in a WebSocket (RFC 6455), as libspice-server takes it on its own port.

The bytes travel in binary messages whose bounds mean nothing (server/websocket.c). wsproto opens
the connection; the frames after that are ours, see `websocket_frames`.
"""

from __future__ import annotations

import errno
import re
from typing import Final

import h11
from wsproto import ConnectionType, WSConnection
from wsproto.events import RejectConnection, Request
from wsproto.utilities import RemoteProtocolError

from spicebridge.errors import ConnectError
from spicebridge.transport.address import TcpAddress, WebAddress
from spicebridge.transport.layer import Layer
from spicebridge.transport.proxy_answer import quote
from spicebridge.transport.steps import step
from spicebridge.transport.websocket_frames import (
    FrameError,
    FrameReader,
    Opcode,
    Status,
    close_frame,
    masked_frame,
)
from spicebridge.transport.wire import Wire

_SUBPROTOCOL: Final = "binary"
"""The only one that libspice-server takes (websocket_is_start); websockify's name for raw bytes."""

_MAX_HEAD: Final = 16 * 1024
"""Bytes of the head of an answer: h11's own limit."""

_HEAD_END: Final = re.compile(rb"\n\r?\n")
_HTTP: Final = b"HTTP/"
_SPICE: Final = b"REDQ"

_DEFAULT_PORTS: Final = {80, 443}

_GOOD_ENDS: Final = {Status.NORMAL, Status.GOING_AWAY, Status.NONE}

_IS_IT: Final = "is that a web server, and does it want TLS (wss://)?"
_PATH: Final = "check the path: is a WebSocket for SPICE there?"
_LOGIN: Final = "the web server wants a login, or does not let us in there: check the path"
_UNREACHED: Final = "the web server could not reach the SPICE server: is that running?"
_BAD: Final = "check the path, and whether the server wants TLS (wss://)"  # as nginx says it then
_HINTS: Final = {
    400: _BAD,
    401: _LOGIN,
    403: _LOGIN,
    502: _UNREACHED,
    503: _UNREACHED,
    504: _UNREACHED,
}


async def open_websocket(inner: Wire, address: WebAddress, timeout: float | None) -> Wire:
    """Opens a WebSocket on a wire; it is closed if that fails.

    Args:
        inner: the wire, on which nothing was said yet; with TLS on it for wss.
        address: of the WebSocket.
        timeout: seconds that it may take; None for `CONNECT_TIMEOUT`.

    Raises:
        ConnectError: the server refused, speaks no WebSocket, or took too long.
    """
    try:
        async with step(f"opening the WebSocket at {address}", timeout):
            early = await _shake_hands(inner, address)
        return WebSocketWire(inner, early)
    except ConnectError:
        inner.close()
        raise
    except OSError as error:
        inner.close()
        raise _failed(address, error.strerror or str(error), _IS_IT) from error
    except BaseException:
        inner.close()
        raise


class WebSocketWire(Layer):
    """The client's end of an open WebSocket.

    A Close of the server's is the end of both directions: it wants nothing more either.

    Args:
        inner: the wire below, right behind the server's answer.
        early: what came with that.
    """

    def __init__(self, inner: Wire, early: bytes) -> None:
        super().__init__(inner)
        self._frames = FrameReader()
        self._frames.feed(memoryview(early))

    def _feed(self, data: memoryview) -> None:
        self._frames.feed(data)

    def _take(self, buffer: memoryview) -> int | None:
        frames = self._frames
        try:
            count = frames.take(buffer)
        except FrameError as error:
            self._close(error.status)
            raise OSError(errno.EPROTO, f"WebSocket: {error}") from error
        if frames.close is not None:
            self._close(frames.close.code)
            if not count and frames.close.code not in _GOOD_ENDS:
                said = f"WebSocket: closed with {frames.close.code} {frames.close.reason}"
                raise OSError(errno.ECONNABORTED, quote(said.encode()))
        elif frames.ping is not None:
            self._try_flush()
        return count

    def _turn(self, buffer: memoryview) -> bytes:
        if self._ended:
            raise BrokenPipeError(errno.EPIPE, "WebSocket: closed")
        return masked_frame(Opcode.BINARY, buffer)

    def _last_word(self) -> bytes:
        """A Close without a code: what it has is left unread by libspice-server (websocket_read).

        Its kernel would then reset the connection, and what is on its way to us be lost.
        """
        return close_frame(Status.NONE)

    def _close(self, code: int) -> None:
        """Says Close, unless it was said (RFC 6455, 5.5.1 and 7.1.7); nothing of ours follows."""
        if not self._ended:
            self._ended = True
            self._say(close_frame(code))

    def _flush(self) -> bool:
        """Sends what waits, and then a pong; see `Layer`."""
        if not super()._flush():
            return False
        ping, self._frames.ping = self._frames.ping, None
        if ping is None:
            return True
        self._unsent.append(memoryview(masked_frame(Opcode.PONG, ping)))
        return super()._flush()


async def _shake_hands(inner: Wire, address: WebAddress) -> bytes:
    """Asks for the WebSocket; returns what came behind the answer."""
    connection = WSConnection(ConnectionType.CLIENT)
    request = Request(
        host=_host(address),
        target=address.path,
        subprotocols=[_SUBPROTOCOL],
        extra_headers=[(b"User-Agent", b"spicebridge")],
    )
    try:
        data = connection.send(request)
    except (UnicodeError, h11.LocalProtocolError) as error:
        raise _failed(address, f"it cannot be asked for: {error}", "check the address") from error
    await inner.write_all([memoryview(data)])  # at once: libspice-server reads it so
    head, early = await _read_head(inner, address)
    try:
        connection.receive_data(head)
        events = list(connection.events())
    except (RemoteProtocolError, UnicodeDecodeError) as error:
        raise _failed(
            address, f"the server's answer is wrong: {quote(str(error).encode())}", _PATH
        ) from error
    for event in events:
        if isinstance(event, RejectConnection):
            raise _refused(address, event, head)
    return early


def _host(address: WebAddress) -> str:
    """The Host header (RFC 6455, 4.1).

    A default port is left out, as browsers do, for proxies that compare the whole with a name
    (HAProxy); whether it is the default of ws or of wss makes no difference to any. The zone of an
    IPv6 address means nothing to the server.
    """
    host = address.host.partition("%")[0] if ":" in address.host else address.host
    with_port = str(TcpAddress(host, address.port))
    return with_port.rpartition(":")[0] if address.port in _DEFAULT_PORTS else with_port


async def _read_head(inner: Wire, address: WebAddress) -> tuple[bytes, bytes]:
    """Reads the head of the answer; returns it, and what came behind it."""
    head = bytearray()
    buffer = memoryview(bytearray(_MAX_HEAD))
    while (end := _HEAD_END.search(head)) is None and len(head) < _MAX_HEAD:
        try:
            count = await inner.read_into(buffer)
        except ConnectionError:
            if not head:
                raise
            count = 0
        if not count:
            said = f" after {_quoted(head, address)}" if head else ""
            raise _failed(address, f"the server closed the connection{said}", _IS_IT)
        head += buffer[:count]
        if not head.startswith(_HTTP[: len(head)]):  # who does not speak HTTP may never end a head
            hint = "it speaks SPICE itself: use spice://" if head.startswith(_SPICE) else _IS_IT
            raise _failed(address, f"the server answered {_quoted(head, address)}", hint)
    if end is None:
        raise _failed(
            address, f"the server answered more than {_MAX_HEAD // 1024} KiB of head", _IS_IT
        )
    return bytes(head[: end.end()]), bytes(head[end.end() :])


def _refused(address: WebAddress, answer: RejectConnection, head: bytes) -> ConnectError:
    said = _quoted(head.partition(b" ")[2], address)  # as the server put it, behind "HTTP/1.1"
    places = [value for name, value in answer.headers if name == b"location"]
    if answer.status_code // 100 == 3 and places:
        place = _quoted(places[0].partition(b"?")[0], address)
        return _failed(address, f"the server answered {said}", f"it moved to {place}: use that")
    return _failed(address, f"the server answered {said}", _HINTS.get(answer.status_code, _PATH))


def _quoted(said: bytes | bytearray, address: WebAddress) -> str:
    """What the server said, without the query that we have sent, which may hold a secret."""
    return f"'{quote(bytes(said), address.path.partition('?')[2].encode())}'"


def _failed(address: WebAddress, problem: str, hint: str) -> ConnectError:
    return ConnectError(f"opening the WebSocket at {address}: {problem}", hint)
