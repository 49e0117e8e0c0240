"""Connects to a server through a proxy: HTTP CONNECT, on TLS or not, or SOCKS5."""

from __future__ import annotations

import re
import ssl
from typing import Final

from spicebridge.errors import ConnectError
from spicebridge.transport.address import TcpAddress
from spicebridge.transport.connect import connect
from spicebridge.transport.http_connect import ask_http
from spicebridge.transport.proxy_address import ProxyAddress
from spicebridge.transport.proxy_answer import is_it
from spicebridge.transport.socks5 import ask_socks5
from spicebridge.transport.start_tls import start_tls
from spicebridge.transport.steps import step
from spicebridge.transport.wire import Wire

_VISIBLE: Final = re.compile("[!-~]+")
"""What may stand in a request's first line (h11 refuses the rest, and so it should)."""


async def connect_through(
    proxy: ProxyAddress,
    destination: TcpAddress,
    timeout: float | None,
    context: ssl.SSLContext | None,
) -> Wire:
    """Connects to a server through a proxy, which resolves the server's name.

    Args:
        proxy: the proxy.
        destination: the server.
        timeout: seconds that each step may take; None for `CONNECT_TIMEOUT`.
        context: for TLS with an ``https`` proxy; None for the system's authorities.

    Returns:
        The wire, right behind the proxy's answer: what is read next, the server has sent.

    Raises:
        ConnectError: the proxy cannot be reached, refused, or does not answer as one.
        TlsError: the proxy does not speak TLS, or is not to be trusted.
        UsageError: the login or the server's name cannot be sent to such a proxy.

    When cancelled, nothing stays open.
    """
    named = TcpAddress(_ascii(destination.host), destination.port)
    if proxy.scheme != "https":
        context = None
    elif context is None:
        context = ssl.create_default_context()
    try:
        wire: Wire = await connect(TcpAddress(proxy.host, proxy.port), timeout)
    except ConnectError as error:
        error.at(f"proxy {proxy}")
        raise
    if context is not None:
        wire = await start_tls(wire, context, proxy.host, f"proxy {proxy}", timeout)
    ask = ask_socks5 if proxy.scheme == "socks5" else ask_http
    what = f"asking proxy {proxy} for {destination}"
    try:
        async with step(what, timeout, is_it(proxy)):
            try:
                await ask(wire, proxy, named)
            except (EOFError, ConnectionError) as error:
                raise ConnectError(f"{what}: it closed the connection", is_it(proxy)) from error
            except OSError as error:
                raise ConnectError(
                    f"{what}: {error.strerror or error}", "check the network"
                ) from error
    except BaseException:
        wire.close()
        raise
    return wire


def _ascii(host: str) -> str:
    """A host as it is sent; what is ASCII already stays as it is, as a ticket of Proxmox'.

    Raises:
        ConnectError: no host is called so.
    """
    try:
        name = host if host.isascii() else host.encode("idna").decode()
    except UnicodeError:
        name = ""
    if not _VISIBLE.fullmatch(name):
        raise ConnectError(f"{host!r} is no host name", "check the host name")
    return name
