"""Asks an HTTP proxy for a tunnel: CONNECT (RFC 9110, 9.3.6) with a Basic login (RFC 7617)."""

from __future__ import annotations

import base64
import ipaddress
from typing import Final

import h11

from spicebridge.errors import ConnectError, UsageError
from spicebridge.transport.address import TcpAddress
from spicebridge.transport.proxy_address import ProxyAddress
from spicebridge.transport.proxy_answer import (
    NOT_ALLOWED,
    UNREACHED,
    is_it,
    quote,
    read_exactly,
    with_rest,
)
from spicebridge.transport.wire import Wire

_MAX_HEAD: Final = 16 * 1024
"""Bytes of all heads of the answer; h11 has the same limit for one, GLib has 96 KiB."""

_HTTP: Final = b"HTTP/"
_SOCKS: Final = "it is a SOCKS5 proxy: write socks5://"
_NO_CONNECT: Final = "is that an HTTP proxy? it does not take CONNECT"
_HINTS: Final = {
    400: _NO_CONNECT,
    403: f"{NOT_ALLOWED} (Tinyproxy: ConnectPort, Squid: SSL_ports)",
    404: _NO_CONNECT,
    405: _NO_CONNECT,
    500: UNREACHED,  # Tinyproxy
    501: _NO_CONNECT,
    502: UNREACHED,
    503: UNREACHED,  # Squid
    504: UNREACHED,
}


async def ask_http(wire: Wire, proxy: ProxyAddress, destination: TcpAddress) -> None:
    """Asks for a tunnel; when it returns, the next byte on the wire is the server's.

    Args:
        wire: the connection to the proxy, with TLS on it already where that is used.
        proxy: whose login is sent, if it has one.
        destination: where the tunnel leads; its host is in ASCII.

    Raises:
        ConnectError: the proxy refused, or does not speak HTTP.
        UsageError: the login cannot be sent.
        EOFError: the proxy closed the connection without a word.
        OSError: the connection broke.
    """
    authority = _authority(destination)
    login = _basic(proxy)
    secrets = (login, proxy.password.encode())
    # Proxmox' spiceproxy goes by Host, not by the first line (PVE/APIServer/AnyEvent.pm)
    headers = [(b"Host", authority), (b"User-Agent", b"spicebridge")]
    if login:
        headers.append((b"Proxy-Authorization", b"Basic " + login))
    connection = h11.Connection(h11.CLIENT)
    request = connection.send(h11.Request(method="CONNECT", target=authority, headers=headers))
    connection.send(h11.EndOfMessage())
    await wire.write_all([memoryview(request)])
    response = await _receive(wire, connection, proxy, secrets)
    if response.status_code // 100 != 2:
        said = quote(b"%d %s" % (response.status_code, response.reason), *secrets)
        raise ConnectError(
            f"proxy {proxy} refused CONNECT to {destination}: {said}",
            _hint(response, proxy, destination),
        )


def _authority(destination: TcpAddress) -> bytes:
    """``host:port``; only an IPv6 address is put into brackets.

    Proxmox' spiceproxy has a ticket for a host, colons and all:
    ``pvespiceproxy:TIME:VMID:NODE:PORT::SIGNATURE`` (PVE/Ticket.pm, assemble_spice_ticket).
    """
    try:
        ipaddress.IPv6Address(destination.host)
    except ValueError:
        return f"{destination.host}:{destination.port}".encode()
    return f"[{destination.host}]:{destination.port}".encode()


def _basic(proxy: ProxyAddress) -> bytes:
    """The login as RFC 7617 writes it, in UTF-8; empty for none."""
    if ":" in proxy.username:
        raise UsageError(
            f"proxy {proxy}: the user name has a colon",
            "an HTTP proxy would take what follows for the password",
        )
    login = f"{proxy.username}:{proxy.password}".encode()
    return base64.b64encode(login) if proxy.username else b""


async def _receive(
    wire: Wire, connection: h11.Connection, proxy: ProxyAddress, secrets: tuple[bytes, ...]
) -> h11.Response:
    """The head of the answer, byte by byte as GLib reads it: behind it begins the tunnel."""
    said = bytearray()
    parsed = 0
    while len(said) < _MAX_HEAD:
        try:
            said += await read_exactly(wire, 1)
        except (EOFError, ConnectionError):
            if not said:
                raise
            raise ConnectError(
                f"proxy {proxy} closed the connection after '{quote(said, *secrets)}'",
                is_it(proxy),
            ) from None
        if not said.startswith(_HTTP[: len(said)]):  # who does not speak HTTP may never end a head
            hint = _SOCKS if said == b"\5" else is_it(proxy)
            words = quote(with_rest(wire, said), *secrets)
            raise ConnectError(f"proxy {proxy} answered CONNECT with '{words}'", hint)
        if not said.endswith(b"\n"):
            continue
        connection.receive_data(bytes(said[parsed:]))
        parsed = len(said)
        try:
            event = connection.next_event()
        except h11.RemoteProtocolError:
            words = quote(said, *secrets)
            raise ConnectError(
                f"proxy {proxy} answered CONNECT in broken HTTP, from '{words}' on", is_it(proxy)
            ) from None
        if isinstance(event, h11.Response):
            return event
    raise ConnectError(
        f"proxy {proxy} answered CONNECT with more than {_MAX_HEAD // 1024} KiB of head",
        is_it(proxy),
    )


def _hint(response: h11.Response, proxy: ProxyAddress, destination: TcpAddress) -> str:
    if response.status_code == 401 and destination.host.startswith("pvespiceproxy:"):
        return "a connection file of Proxmox VE is good for 40 seconds: get a new one"
    if response.status_code in {401, 407}:  # Tinyproxy has 401 for a wrong password
        return _login_hint(response, proxy)
    return _HINTS.get(response.status_code, "")


def _login_hint(response: h11.Response, proxy: ProxyAddress) -> str:
    asked = [value for name, value in response.headers if name == b"proxy-authenticate"]
    if asked and not any(b"basic" in value.lower() for value in asked):
        schemes = quote(b", ".join(value.split()[0] for value in asked if value))
        return f"it takes logins by {schemes}, of which spicebridge knows none, only by Basic"
    if proxy.username:
        return "check the user name and the password in the proxy's URI"
    return f"give the login in the proxy's URI: {proxy.scheme}://USER:PASSWORD@HOST:PORT"
