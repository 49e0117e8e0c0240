"""Asks a SOCKS5 proxy for a tunnel (RFC 1928), with a user name and a password (RFC 1929) or none.

`socksio` writes the requests. It takes answers in one piece only, so they are cut here, where
nothing behind them is read.
"""

from __future__ import annotations

from typing import Final

from socksio.socks5 import (
    SOCKS5AType,
    SOCKS5AuthMethod,
    SOCKS5AuthMethodsRequest,
    SOCKS5Command,
    SOCKS5CommandRequest,
    SOCKS5UsernamePasswordRequest,
)

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

_VERSION: Final = 5
_LONGEST: Final = 255
"""Bytes of a host, a user name or a password: their length is one byte."""

_REPLIES: Final = {
    1: ("general failure", UNREACHED),
    2: ("connection not allowed by its rules", NOT_ALLOWED),
    3: ("network unreachable", UNREACHED),
    4: ("host unreachable", UNREACHED),
    5: ("connection refused", UNREACHED),
    6: ("TTL expired", UNREACHED),
    7: ("command not supported", "it makes no tunnels: ask its owner"),
    8: ("address type not supported", "write the server's name instead of its address"),
}
"""A refusal in words, and what to do (RFC 1928, 6)."""

_ADDRESS_BYTES: Final = {SOCKS5AType.IPV4_ADDRESS[0]: 4, SOCKS5AType.IPV6_ADDRESS[0]: 16}
_PORT_BYTES: Final = 2


async def ask_socks5(wire: Wire, proxy: ProxyAddress, destination: TcpAddress) -> None:
    """Asks for a tunnel; when it returns, the next byte on the wire is the server's.

    Args:
        wire: the connection to the proxy.
        proxy: whose login is offered, if it has one.
        destination: where the tunnel leads; its host is in ASCII, and a name is left to the proxy
            to resolve.

    Raises:
        ConnectError: the proxy refused, or does not speak SOCKS5.
        UsageError: the login or the name cannot be sent.
        EOFError: the proxy closed the connection in the middle.
        OSError: the connection broke.
    """
    if len(destination.host) > _LONGEST:
        raise UsageError(f"{destination}: a host of more than {_LONGEST} bytes", "check the name")
    login = SOCKS5UsernamePasswordRequest(proxy.username.encode(), proxy.password.encode())
    if len(login.username) > _LONGEST or len(login.password) > _LONGEST:
        raise UsageError(
            f"proxy {proxy}: a user name or password of more than {_LONGEST} bytes",
            "SOCKS5 has no room for it",
        )
    await _log_in(wire, proxy, login)
    request = SOCKS5CommandRequest.from_address(
        SOCKS5Command.CONNECT, (destination.host, destination.port)
    )
    await wire.write_all([memoryview(request.dumps())])
    version, code = answer = await read_exactly(wire, 2)
    if version != _VERSION:
        raise _no_socks(wire, proxy, answer)
    if code:  # some proxies end their answer here
        reason, hint = _REPLIES.get(code, (f"failure {code}", UNREACHED))
        raise ConnectError(f"proxy {proxy} refused to connect to {destination}: {reason}", hint)
    await _skip_address(wire, proxy)


async def _log_in(wire: Wire, proxy: ProxyAddress, login: SOCKS5UsernamePasswordRequest) -> None:
    """Lets the proxy choose how we log in, and does."""
    offered = [SOCKS5AuthMethod.NO_AUTH_REQUIRED]
    if login.username:
        offered.append(SOCKS5AuthMethod.USERNAME_PASSWORD)
    await wire.write_all([memoryview(SOCKS5AuthMethodsRequest(offered).dumps())])
    version, chosen = answer = await read_exactly(wire, 2)
    if version != _VERSION:
        raise _no_socks(wire, proxy, answer)
    if bytes([chosen]) not in offered:
        if login.username:
            hint = "it takes no user name and password; ask its owner how to log in"
        else:
            hint = "give the login in the proxy's URI: socks5://USER:PASSWORD@HOST:PORT"
        raise ConnectError(f"proxy {proxy} wants another login than we offer", hint)
    if bytes([chosen]) == SOCKS5AuthMethod.USERNAME_PASSWORD:
        await wire.write_all([memoryview(login.dumps())])
        _, status = await read_exactly(wire, 2)  # whose version some get wrong; curl looks away too
        if status:
            raise ConnectError(
                f"proxy {proxy} refused the login",
                "check the user name and the password in the proxy's URI",
            )


async def _skip_address(wire: Wire, proxy: ProxyAddress) -> None:
    """The rest of the answer: from where the proxy has connected, which nobody asks for."""
    _, kind = answer = await read_exactly(wire, 2)
    if bytes([kind]) == SOCKS5AType.DOMAIN_NAME:
        (size,) = await read_exactly(wire, 1)
    elif (size := _ADDRESS_BYTES.get(kind, 0)) == 0:
        raise _no_socks(wire, proxy, answer)
    await read_exactly(wire, size + _PORT_BYTES)


def _no_socks(wire: Wire, proxy: ProxyAddress, answer: bytes) -> ConnectError:
    said = quote(with_rest(wire, answer), proxy.password.encode())
    hint = "it is an HTTP proxy: write http://" if said.startswith("HTTP/") else is_it(proxy)
    return ConnectError(f"proxy {proxy} does not speak SOCKS5, but answered '{said}'", hint)
