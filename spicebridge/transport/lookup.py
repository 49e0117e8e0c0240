"""The addresses of a host: those of a number are known at once, a name is asked for in a thread."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from typing import Any

import anyio

from spicebridge.transport.address import TcpAddress

AddressInfo = tuple[socket.AddressFamily, socket.SocketKind, int, str, Any]
"""One answer of getaddrinfo(3)."""


async def look_up(address: TcpAddress, flags: int = 0) -> Sequence[AddressInfo]:
    """Asks for what a TCP port of a host can be reached at.

    Args:
        address: host and port.
        flags: of getaddrinfo(3).

    Raises:
        OSError: saying why there is nothing.
        UnicodeError: it is no host name.
    """
    kind = socket.SOCK_STREAM
    try:
        number = address.host.encode("ascii")  # as bytes: for text Python would load IDNA's tables
        return socket.getaddrinfo(
            number, address.port, type=kind, flags=flags | socket.AI_NUMERICHOST
        )
    except (OSError, UnicodeError):  # a name
        return await anyio.getaddrinfo(address.host, address.port, type=kind, flags=flags)
