"""Where a proxy is: what ``--proxy`` and ``$SPICE_PROXY`` take.

As spice-gtk reads it (spice-uri.c, spice_uri_parse), and SOCKS 5 besides. Unlike there, a login's
percent-escapes are decoded, as curl does: a password may have any character.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from spicebridge.errors import UsageError
from spicebridge.transport.address import TcpAddress
from spicebridge.transport.authority import parse_port, split_authority, without_secrets

_PORTS = {"http": 3128, "https": 3129, "socks5": 1080}
"""Schemes and their usual ports: those of spice-gtk, and that of RFC 1928."""

_EXAMPLE = "write http://HOST:PORT, https://HOST:PORT or socks5://HOST:PORT"


@dataclass(frozen=True)
class ProxyAddress:
    """A proxy.

    Attributes:
        scheme: ``http``, ``https`` (TLS to the proxy) or ``socks5``.
        host: its name or address, IPv6 without brackets.
        port: its TCP port.
        username: to log in with; empty for none.
        password: to log in with.
    """

    scheme: str
    host: str
    port: int
    username: str = ""
    password: str = field(default="", repr=False)

    def __str__(self) -> str:
        return f"{self.scheme}://{TcpAddress(self.host, self.port)}"


def parse_proxy(text: str) -> ProxyAddress:
    """Reads ``[scheme://][user[:password]@]host[:port][/]``; without a scheme it is ``http``.

    ``socks5h``, by which curl means that the proxy looks up names, is ``socks5``: it always does.

    Raises:
        UsageError: saying what is wrong with it, without its password.
    """
    try:
        return _parse(text)
    except UsageError as error:
        problem = f"proxy {without_secrets(text)!r} {error.problem}"
        raise UsageError(problem, error.hint or _EXAMPLE) from error


def _parse(text: str) -> ProxyAddress:
    if not text.isprintable():
        raise UsageError("has control characters")
    scheme, separator, rest = text.partition("://")
    if not separator:
        scheme, rest = "http", text
    scheme = scheme.lower()
    if scheme == "socks5h":
        scheme = "socks5"
    if scheme not in _PORTS:
        raise UsageError("is of no kind that we know")
    authority = rest.rstrip("/")
    if re.search("[/?#]", authority.rpartition("@")[2]):
        raise UsageError("has more than a host and a port")
    place = split_authority(authority)
    if not place.host:
        raise UsageError("names no host")
    if place.port == "":
        raise UsageError("names no port behind its last ':'")
    port = _PORTS[scheme] if place.port is None else parse_port(place.port)
    return ProxyAddress(scheme, place.host, port, place.username, place.password)
