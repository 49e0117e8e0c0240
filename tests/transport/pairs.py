"""Connected descriptors for the tests of what runs on them."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import anyio
import anyio.lowlevel

from spicebridge.transport.stream import Stream
from spicebridge.transport.wire import Wire
from tests.conftest import PATIENCE


@contextmanager
def connected(kind: str = "unix", *, buffer: int = 0) -> Iterator[tuple[Stream, socket.socket]]:
    """A stream and the socket at its other end, which blocks, but not for ever.

    Args:
        kind: ``unix`` or ``tcp``.
        buffer: size of all four kernel buffers, about; 0 for what the system gives.
    """
    ours, theirs = _tcp_pair() if kind == "tcp" else socket.socketpair()
    if buffer:
        for sock in (ours, theirs):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, buffer)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
    stream = Stream.of_socket(ours)
    theirs.settimeout(PATIENCE)
    with theirs:
        try:
            yield stream, theirs
        finally:
            stream.close()


def _tcp_pair() -> tuple[socket.socket, socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        ours = socket.create_connection(server.getsockname())
        theirs, _ = server.accept()
    return ours, theirs


async def read_exactly(stream: Wire, count: int) -> bytes:
    """Reads until `count` bytes have come, or the stream has ended."""
    received = bytearray()
    while len(received) < count:
        buffer = bytearray(min(count - len(received), 1 << 16))
        got = await stream.read_into(memoryview(buffer))
        if not got:
            break
        received += buffer[:got]
    return bytes(received)


async def read_to_end(stream: Wire) -> bytes:
    """Reads until the stream has ended."""
    return await read_exactly(stream, 1 << 40)


async def settled() -> None:
    """Comes back once every other task has come to where it waits.

    All sockets here are local, so nothing happens outside of the event loop's turns: enough of them
    is all it takes. (`anyio.wait_all_tasks_blocked` takes a task whose socket has become ready for
    a blocked one on asyncio.)
    """
    for _ in range(30):
        await anyio.lowlevel.checkpoint()


async def until(condition: Callable[[], object]) -> None:
    """Lets the other tasks run until something is so."""
    with anyio.fail_after(PATIENCE):
        while not condition():
            await anyio.lowlevel.checkpoint()
