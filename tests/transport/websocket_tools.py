"""WebSocket servers for tests: wsproto's on a socket, or an answer as bytes cut anywhere."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from typing import Final

import anyio
from wsproto import ConnectionType, WSConnection
from wsproto.events import AcceptConnection, BytesMessage, CloseConnection, Event, Request

from spicebridge.transport.address import WebAddress
from spicebridge.transport.stream import Stream
from spicebridge.transport.websocket import open_websocket
from spicebridge.transport.wire import Wire
from tests.conftest import PATIENCE
from tests.transport.fake_proxy import SaidWire, cut
from tests.transport.pairs import connected

VM: Final = WebAddress("vm.example", 8080, "/vm1/spice")

FIN: Final = 0x80
BINARY: Final = 2
TEXT: Final = 1
CLOSE: Final = 8
PING: Final = 9
PONG: Final = 10


def frame(first: int, payload: bytes = b"", *, key: bytes = b"", length_bytes: int = -1) -> bytes:
    """A frame, from its first byte; `length_bytes` (0, 2 or 8) may be what it should not be."""
    if length_bytes < 0:
        length_bytes = 0 if len(payload) < 126 else 2 if len(payload) < 1 << 16 else 8
    masked = FIN if key else 0
    if not length_bytes:
        header = bytes((first, masked | len(payload)))
    else:
        header = bytes((first, masked | (126 if length_bytes == 2 else 127)))
        header += len(payload).to_bytes(length_bytes, "big")
    return header + key + payload


def binary(payload: bytes) -> bytes:
    """A whole binary message."""
    return frame(FIN | BINARY, payload)


class Answer(SaidWire):
    """A wire whose server answers the request by a function of it, cut, and closes then."""

    def __init__(self, answer: Callable[[bytes], bytes], places: Iterable[int] = ()) -> None:
        super().__init__([])
        self._answer = answer
        self._places = places
        self.closed = False

    def write_nowait(self, buffers: Sequence[memoryview | bytearray]) -> int:
        if not self.written:
            self._pieces = [
                each for each in cut(self._answer(b"".join(buffers)), self._places) if each
            ]
        return super().write_nowait(buffers)

    def close(self) -> None:
        self.closed = True


def accepted(request: bytes, subprotocol: str | None = "binary") -> bytes:
    """How wsproto's server takes a request."""
    server = WSConnection(ConnectionType.SERVER)
    server.receive_data(request)
    list(server.events())
    return server.send(AcceptConnection(subprotocol=subprotocol))


class Server:
    """wsproto's server at the other end of a wire.

    Attributes:
        stream: its end.
        heard: what it has heard, in order.
    """

    def __init__(self, stream: Stream) -> None:
        self.stream = stream
        self.heard: list[Event] = []
        self._protocol = WSConnection(ConnectionType.SERVER)

    async def listens(self) -> bool:
        """Waits for something; False at the end of the stream."""
        buffer = bytearray(1 << 16)
        count = await self.stream.read_into(memoryview(buffer))
        if count:
            self._protocol.receive_data(bytes(buffer[:count]))
            self.heard += self._protocol.events()
        return count > 0

    async def hears(self, condition: Callable[[], object]) -> None:
        """Listens until something is so."""
        with anyio.fail_after(PATIENCE):
            while not condition():
                assert await self.listens()

    async def hears_all(self) -> None:
        """Listens until the client has said Close."""
        await self.hears(lambda: self.closes)

    async def accepts(self) -> None:
        """Takes the request."""
        await self.hears(lambda: self.heard)
        assert isinstance(self.heard.pop(0), Request)
        await self.says(self._protocol.send(AcceptConnection(subprotocol="binary")))

    async def says(self, data: bytes) -> None:
        """Sends bytes as they are."""
        await self.stream.write_all([memoryview(data)])

    async def sends(self, event: Event) -> None:
        """Sends what wsproto makes of an event."""
        await self.says(self._protocol.send(event))

    @property
    def data(self) -> bytes:
        """The data that was heard."""
        return b"".join(event.data for event in self.heard if isinstance(event, BytesMessage))

    @property
    def closes(self) -> list[int]:
        """The status of each Close that was heard."""
        return [event.code for event in self.heard if isinstance(event, CloseConnection)]


@asynccontextmanager
async def opened(*, buffer: int = 0, kind: str = "unix") -> AsyncIterator[tuple[Wire, Server]]:
    """An open WebSocket and its server.

    Args:
        buffer: size of all four kernel buffers, about; 0 for what the system gives.
        kind: ``unix`` or ``tcp``.
    """
    with anyio.fail_after(PATIENCE), connected(kind, buffer=buffer) as (stream, sock):
        theirs = Stream.of_socket(sock)
        try:
            server = Server(theirs)
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(server.accepts)
                wire = await open_websocket(stream, VM, None)
            yield wire, server
            wire.close()
        finally:
            theirs.close()
