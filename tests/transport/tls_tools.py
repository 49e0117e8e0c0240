"""TLS for tests: certificates made once, and the standard library's blocking sockets as peers."""

from __future__ import annotations

import socket
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import anyio
import anyio.to_thread

from spicebridge.transport.stream import Stream
from tests.peers.certificates import CertificateFiles
from tests.transport.pairs import connected

Talk = Callable[[ssl.SSLSocket], None]
"""What a peer does once it has shaken hands, in a thread."""


def server_side(files: CertificateFiles) -> ssl.SSLContext:
    """The standard library's server."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(files.cert, files.key)
    return context


def client_side(files: CertificateFiles) -> ssl.SSLContext:
    """A client that trusts it."""
    return ssl.create_default_context(cafile=files.ca)


@asynccontextmanager
async def talking(context: ssl.SSLContext, talk: Talk, *, buffer: int = 0) -> AsyncIterator[Stream]:
    """A stream to a TLS server that talks; the test ends when both have."""
    with connected(buffer=buffer) as (stream, theirs):

        def serve(sock: socket.socket) -> None:
            with context.wrap_socket(sock, server_side=True) as wrapped:
                talk(wrapped)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(anyio.to_thread.run_sync, serve, theirs)
            yield stream


def receive_all(sock: ssl.SSLSocket) -> bytes:
    """What comes until the peer has said that it ends."""
    received = bytearray()
    while piece := sock.recv(1 << 16):
        received += piece
    return bytes(received)
