"""Connects a socket to a server, without an anyio stream: the data path needs it bare."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Sequence
from itertools import zip_longest
from typing import Final

import anyio

from spicebridge.errors import ConnectError
from spicebridge.transport.address import Address, TcpAddress, UnixAddress
from spicebridge.transport.keepalive import keep_alive
from spicebridge.transport.lookup import AddressInfo, look_up
from spicebridge.transport.steps import step
from spicebridge.transport.stream import Stream

_HEAD_START: Final = 0.25
"""Seconds that an address has before the next one is tried beside it (RFC 8305, 8)."""


async def connect(address: Address, timeout: float | None = None) -> Stream:
    """Connects to a TCP port (whichever address of the name answers first) or a Unix socket.

    Args:
        address: where.
        timeout: seconds that it may take; None for `CONNECT_TIMEOUT`.

    Raises:
        ConnectError: saying what the system answered.
    """
    async with step(f"connecting to {address}", timeout):
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
    """The addresses of a name race each other, with a start each (RFC 8305, Happy Eyeballs)."""
    try:
        found = await look_up(address)
    except (OSError, UnicodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "that is no host name"
        raise ConnectError(f"looking up {address.host}: {reason}", "check the host name") from error
    failures: list[OSError] = []
    connected: list[socket.socket] = []

    async def attempt(info: AddressInfo, over: anyio.Event) -> None:
        try:
            connected.append(await _connect_one(info))
        except OSError as error:
            failures.append(error)
            over.set()
        else:
            tasks.cancel_scope.cancel()

    try:
        async with anyio.create_task_group() as tasks:
            for info in _alternating(found):
                over = anyio.Event()
                tasks.start_soon(attempt, info, over)
                with anyio.move_on_after(_HEAD_START):
                    await over.wait()
        if not connected:
            failure = failures[0] if failures else OSError(errno.EADDRNOTAVAIL, "no address")
            raise _refused(address, failure) from failure
        return connected.pop(0)
    finally:
        for sock in connected:  # the second of two at once, or nobody wants them any more
            sock.close()


def _alternating(found: Sequence[AddressInfo]) -> list[AddressInfo]:
    """The resolver's order, but by turns of address families (RFC 8305, 4)."""
    families = list(dict.fromkeys(info[0] for info in found))
    by_family = [[info for info in found if info[0] == family] for family in families]
    return [info for turn in zip_longest(*by_family) for info in turn if info is not None]


async def _connect_one(info: AddressInfo) -> socket.socket:
    family, kind, protocol, _, sockaddr = info
    sock = socket.socket(family, kind, protocol)
    try:
        sock.setblocking(False)
        try:
            sock.connect(sockaddr)
        except BlockingIOError:
            await anyio.wait_writable(sock)
            if code := sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                raise OSError(code, os.strerror(code)) from None
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        keep_alive(sock)
    except BaseException:
        sock.close()
        raise
    return sock


def _refused(address: Address, error: OSError) -> ConnectError:
    if error.errno == errno.ECONNREFUSED:
        hint = "is the server running, and is this its port?"
    elif error.errno in {errno.ENOENT, errno.EACCES}:
        hint = "check the path of the socket and its permissions"
    else:
        hint = "check the address and the network"
    return ConnectError(f"connecting to {address}: {error.strerror or error}", hint)
