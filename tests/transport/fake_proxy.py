"""Proxies that say what a test wants them to: on a real socket, or as bytes cut anywhere."""

from __future__ import annotations

from collections.abc import AsyncIterator, Coroutine, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import anyio
from anyio.abc import ByteStream, SocketAttribute
from anyio.streams.tls import TLSListener

from spicebridge.transport.address import TcpAddress
from spicebridge.transport.proxy_address import ProxyAddress
from spicebridge.transport.wire import Wire
from tests.conftest import PATIENCE

VM = TcpAddress("vm.example", 5900)

OK = b"HTTP/1.1 200 Connection established\r\n\r\n"

NO_LOGIN = b"\5\0"
ASK_LOGIN = b"\5\2"
LOGGED_IN = b"\1\0"
CONNECTED = b"\5\0\0\1" + bytes(6)


@dataclass
class FakeProxy:
    """A proxy that reads and answers by turns, and then sends everything back.

    Attributes:
        port: of 127.0.0.1.
        heard: what it has read before its answers.
        left: whether its client has closed the connection.
    """

    port: int
    heard: list[bytes] = field(default_factory=list)
    left: anyio.Event = field(default_factory=anyio.Event)

    def address(self, scheme: str, username: str = "", password: str = "") -> ProxyAddress:
        return ProxyAddress(scheme, "127.0.0.1", self.port, username, password)


@asynccontextmanager
async def fake_proxy(
    *turns: tuple[int | bytes, bytes],
    hang_up: bool = False,
    tls: Any = None,
) -> AsyncIterator[FakeProxy]:
    """Runs one.

    Args:
        turns: how much it reads (a number of bytes, or up to an end), and what it says then.
        hang_up: whether it closes the connection after the last turn instead of echoing.
        tls: an `ssl.SSLContext` for a proxy on TLS.
    """
    listener: Any = await anyio.create_tcp_listener(local_host="127.0.0.1")
    proxy = FakeProxy(listener.extra(SocketAttribute.local_port))
    if tls is not None:
        listener = TLSListener(listener, tls, standard_compatible=False)

    async def converse(client: ByteStream) -> None:
        for end, answer in turns:
            heard = b""
            while not (heard.endswith(end) if isinstance(end, bytes) else len(heard) == end):
                heard += await client.receive(1)
            proxy.heard.append(heard)
            await client.send(answer)
        while not hang_up:
            await client.send(await client.receive())

    async def handle(client: ByteStream) -> None:
        async with client:
            try:
                await converse(client)
            except (anyio.EndOfStream, anyio.BrokenResourceError):
                proxy.left.set()

    async with listener, anyio.create_task_group() as tasks:
        tasks.start_soon(listener.serve, handle)
        with anyio.fail_after(PATIENCE):
            yield proxy
        tasks.cancel_scope.cancel()


class SaidWire(Wire):
    """A wire on which a proxy has said something, in pieces; then it has closed the connection."""

    def __init__(self, pieces: Iterable[bytes]) -> None:
        self._pieces = [piece for piece in pieces if piece]
        self._waiting = False
        self.written = b""

    @property
    def unread(self) -> bytes:
        return b"".join(self._pieces)

    def read_nowait(self, buffer: memoryview) -> int | None:
        if self._waiting:
            return None
        if not self._pieces:
            return 0
        piece = self._pieces[0]
        count = min(len(buffer), len(piece))
        buffer[:count] = piece[:count]
        self._pieces[0] = piece[count:]
        if not self._pieces[0]:
            del self._pieces[0]
            self._waiting = bool(self._pieces)
        return count

    async def readable(self) -> None:
        self._waiting = False

    def peer_ended(self) -> bool:
        return not self._pieces

    def write_nowait(self, buffers: Sequence[memoryview | bytearray]) -> int:
        self.written += b"".join(buffers)
        return sum(map(len, buffers))

    async def writable(self) -> None: ...

    def end(self) -> None: ...

    def hang_up(self) -> None:
        self.end()

    def close(self) -> None: ...


def cut(data: bytes, places: Iterable[int]) -> list[bytes]:
    """Data in pieces."""
    ends = sorted({place % (len(data) + 1) for place in places} | {len(data)})
    return [data[start:end] for start, end in zip([0, *ends], ends, strict=False)]


def finish(asking: Coroutine[Any, Any, None]) -> None:
    """Runs what never waits, as with a `SaidWire`, to its end."""
    try:
        asking.send(None)
    except StopIteration:
        return
    raise AssertionError("it waits")
