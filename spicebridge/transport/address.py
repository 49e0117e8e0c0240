"""Where a SPICE server is: what we connect to."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass

from spicebridge.errors import UsageError

MAX_PORT = 65535


@dataclass(frozen=True)
class TcpAddress:
    """A TCP port; `host` is a name or an address, IPv6 without brackets, or what a proxy knows."""

    host: str
    port: int

    def __str__(self) -> str:
        host, colon, _ = self.host.partition(":")
        if colon:
            try:
                ipaddress.IPv6Address(self.host)
                host = f"[{self.host}]"
            except ValueError:  # a ticket for Proxmox VE's proxy, and nobody else's business
                host = f"{host}:..."
        return f"{host}:{self.port}"


@dataclass(frozen=True)
class UnixAddress:
    """A Unix socket in the file system."""

    path: str

    def __str__(self) -> str:
        return f"unix:{self.path}"


@dataclass(frozen=True)
class WebAddress:
    """A WebSocket on a web server; `path` begins with a slash and is percent-encoded."""

    host: str
    port: int
    path: str = "/"

    def __str__(self) -> str:
        path = self.path.partition("?")[0]  # what is behind it may be a secret
        return f"{TcpAddress(self.host, self.port)}{path}"


Address = TcpAddress | UnixAddress
"""What one connects to, or listens at."""

ServerAddress = Address | WebAddress
"""Where SPICE is spoken."""


def parse_host_port(text: str) -> TcpAddress:
    """Reads ``HOST:PORT``, ``[V6]:PORT`` or ``:PORT`` (which is the loopback).

    Raises:
        UsageError: saying what is wrong with it.
    """
    host, colon, digits = text.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        raise UsageError(f"{text!r} is not HOST:PORT", "write an IPv6 address as [ADDRESS]:PORT")
    number = int(digits) if re.fullmatch("[0-9]{1,5}", digits) else MAX_PORT + 1
    if not colon or number > MAX_PORT:
        raise UsageError(f"{text!r} is not HOST:PORT", f"PORT is a number up to {MAX_PORT}")
    return TcpAddress(host or "127.0.0.1", number)
