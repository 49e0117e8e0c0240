"""Where a SPICE server is: the URIs that users write, and what we connect to.

``spice://host:port``, ``spice://[v6]:port`` and ``spice+unix:///path``, as remote-viewer and
spice-client-glib take them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import unquote, urlsplit

from spicebridge.errors import UsageError

DEFAULT_URI = "spice://127.0.0.1:5900"
"""QEMU's first SPICE port by habit."""

_MAX_PORT = 65535
_EXAMPLE = "write spice://HOST:PORT or spice+unix:///PATH"


@dataclass(frozen=True)
class TcpAddress:
    """A TCP port; `host` is a name or an address, IPv6 without brackets."""

    host: str
    port: int

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"


@dataclass(frozen=True)
class UnixAddress:
    """A Unix socket in the file system."""

    path: str

    def __str__(self) -> str:
        return f"unix:{self.path}"


Address = TcpAddress | UnixAddress


def parse_uri(uri: str) -> Address:
    """Reads the URI of a SPICE server.

    Raises:
        UsageError: saying what is wrong with it.
    """
    shown = repr(_without_secrets(uri))
    try:
        parts = urlsplit(uri)
    except ValueError as error:  # its text may repeat more of the URI than it should
        raise UsageError(f"{shown} is no SPICE URI: check its brackets", _EXAMPLE) from error
    try:
        port = parts.port
    except ValueError as error:
        raise UsageError(
            f"{shown} is no SPICE URI: a port is a number up to {_MAX_PORT}", _EXAMPLE
        ) from error
    if "\0" in unquote(uri) or not uri.isprintable():
        raise UsageError(f"{shown} is no SPICE URI: it has control characters", _EXAMPLE)
    if parts.query or parts.fragment:
        raise UsageError(f"{shown} is no SPICE URI: '?' and '#' are not understood", _EXAMPLE)
    if parts.scheme == "spice+unix":
        if parts.netloc or not parts.path.startswith("/"):
            raise UsageError(f"{shown} names no absolute path", "write spice+unix:///PATH")
        return UnixAddress(unquote(parts.path, errors="surrogateescape"))
    if parts.scheme != "spice":
        raise UsageError(f"{shown} is no SPICE URI", _EXAMPLE)
    if not parts.hostname:
        raise UsageError(f"{shown} names no host", _EXAMPLE)
    if not port:
        raise UsageError(f"{shown} names no port", "write spice://HOST:PORT")
    if parts.path not in {"", "/"} or parts.username is not None:
        raise UsageError(f"{shown} has more than a host and a port", _EXAMPLE)
    return TcpAddress(unquote(parts.hostname), port)


def _without_secrets(uri: str) -> str:
    """What of a URI may be repeated: not what people write behind ``?`` or before ``@``."""
    return re.sub(r"//[^/]*@", "//", uri.partition("?")[0])


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
    number = int(digits) if re.fullmatch("[0-9]{1,5}", digits) else _MAX_PORT + 1
    if not colon or number > _MAX_PORT:
        raise UsageError(f"{text!r} is not HOST:PORT", f"PORT is a number up to {_MAX_PORT}")
    return TcpAddress(host or "127.0.0.1", number)
