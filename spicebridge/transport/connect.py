"""Connects a socket to a server, without an anyio stream: the data path needs it bare."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio

from spicebridge.errors import ConnectError
from spicebridge.transport.address import Address, TcpAddress, UnixAddress
from spicebridge.transport.stream import Stream

CONNECT_TIMEOUT = 10.0
"""Seconds that one step of reaching a server may take (curl and ssh wait for minutes)."""


@asynccontextmanager
async def time_limit(what: str, seconds: float | None = None) -> AsyncIterator[None]:
    """Bounds one step of reaching a server.

    Raises:
        ConnectError: naming the step, when `seconds` (else `CONNECT_TIMEOUT`) have passed.
    """
    if seconds is None:
        seconds = CONNECT_TIMEOUT
    try:
        with anyio.fail_after(seconds):
            yield
    except TimeoutError:
        raise ConnectError(
            f"{what}: no answer within {seconds:g} seconds", "check the address and the network"
        ) from None


async def connect(address: Address) -> Stream:
    """Connects to a TCP port (each address of the name in turn) or a Unix socket.

    Raises:
        ConnectError: saying what the system answered.
    """
    async with time_limit(f"connecting to {address}"):
        if isinstance(address, UnixAddress):
            return Stream.of_socket(await _connect_unix(address))
        return Stream.of_socket(await _connect_tcp(address))


async def _connect_unix(address: UnixAddress) -> socket.socket:
    try:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    except OSError as error:  # no more descriptors
        raise _refused(address, error) from error
    sock.setblocking(False)
    try:
        while True:
            try:
                sock.connect(address.path)
            except BlockingIOError:  # its backlog is full, and nothing tells when it no longer is
                await anyio.sleep(0.02)
            else:
                return sock
    except OSError as error:
        sock.close()
        raise _refused(address, error) from error
    except BaseException:
        sock.close()
        raise


async def _connect_tcp(address: TcpAddress) -> socket.socket:
    try:
        found = await anyio.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "that is no host name"
        raise ConnectError(f"looking up {address.host}: {reason}", "check the host name") from error
    failure: OSError | None = None
    for family, kind, protocol, _, sockaddr in found:
        try:
            sock = socket.socket(family, kind, protocol)
        except OSError as error:  # the kernel was built without this family
            failure = error
            continue
        sock.setblocking(False)
        try:
            await _connect_one(sock, sockaddr)
        except OSError as error:
            sock.close()
            failure = error
        except BaseException:
            sock.close()
            raise
        else:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            return sock
    raise _refused(address, failure or OSError(errno.EADDRNOTAVAIL, "no address")) from failure


async def _connect_one(sock: socket.socket, sockaddr: tuple[str, int]) -> None:
    try:
        sock.connect(sockaddr)
    except BlockingIOError:
        await anyio.wait_writable(sock)
        if code := sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            raise OSError(code, os.strerror(code)) from None


def _refused(address: Address, error: OSError) -> ConnectError:
    if error.errno == errno.ECONNREFUSED:
        hint = "is the server running, and is this its port?"
    elif error.errno in {errno.ENOENT, errno.EACCES}:
        hint = "check the path of the socket and its permissions"
    else:
        hint = "check the address and the network"
    return ConnectError(f"connecting to {address}: {error.strerror or error}", hint)
