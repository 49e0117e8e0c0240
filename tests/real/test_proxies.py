"""Through Tinyproxy, microsocks and stunnel to a server that sends everything back."""

from __future__ import annotations

import os
import ssl
from collections.abc import AsyncIterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import anyio
import pytest

from spicebridge.errors import ConnectError, TlsError
from spicebridge.transport.address import TcpAddress
from spicebridge.transport.proxy import connect_through
from spicebridge.transport.proxy_address import ProxyAddress
from spicebridge.transport.wire import Wire
from tests.peers.certificates import Authority
from tests.peers.processes import free_port
from tests.peers.proxies import Login, Microsocks, Stunnel, Tinyproxy
from tests.real.tools import MIB
from tests.transport.fake_proxy import fake_proxy
from tests.transport.pairs import read_exactly

pytestmark = pytest.mark.real_peer

LOGIN = Login("me", "hunter2")


@pytest.fixture
async def server() -> AsyncIterator[TcpAddress]:
    async with fake_proxy() as echo:
        yield TcpAddress("127.0.0.1", echo.port)


def at(scheme: str, port: int, login: Login | None = None) -> ProxyAddress:
    proxy = ProxyAddress(scheme, "127.0.0.1", port)
    return replace(proxy, username=login.username, password=login.password) if login else proxy


def of(peer: Tinyproxy | Microsocks, login: Login | None = None) -> ProxyAddress:
    return at("http" if isinstance(peer, Tinyproxy) else "socks5", peer.port, login)


def start(
    kind: str, peers: ExitStack, folder: Path, login: Login | None = None
) -> Tinyproxy | Microsocks:
    if kind == "tinyproxy":
        return peers.enter_context(Tinyproxy(folder, login=login))
    return peers.enter_context(Microsocks(login=login))


async def carries(wire: Wire, size: int = 2 * MIB) -> bool:
    """Whether as many bytes come back as were sent, and the same; closes the wire."""
    data = os.urandom(size)
    try:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(wire.write_all, [memoryview(data)])
            back = await read_exactly(wire, size)
    finally:
        wire.close()
    return back == data


both = pytest.mark.parametrize("kind", ["tinyproxy", "microsocks"])


@both
@pytest.mark.parametrize("login", [None, LOGIN], ids=["open", "login"])
async def test_bytes_pass_through_a_proxy(
    kind: str, login: Login | None, server: TcpAddress, peers: ExitStack, short_tmp: Path
) -> None:
    peer = start(kind, peers, short_tmp, login)
    assert await carries(await connect_through(of(peer, login), server, None, None))
    assert peer.connections() == [str(server)]


@both
async def test_a_name_is_left_to_the_proxy(
    kind: str, server: TcpAddress, peers: ExitStack, short_tmp: Path
) -> None:
    """Only a resolver knows this one; microsocks tries no second address, as localhost may have."""
    peer = start(kind, peers, short_tmp)
    named = TcpAddress("127.1", server.port)
    assert await carries(await connect_through(of(peer), named, None, None), 100)
    assert peer.connections() == [str(named)]


@both
async def test_an_open_proxy_bears_a_login_that_it_did_not_ask_for(
    kind: str, server: TcpAddress, peers: ExitStack, short_tmp: Path
) -> None:
    peer = start(kind, peers, short_tmp)
    assert await carries(await connect_through(of(peer, LOGIN), server, None, None), 100)


@pytest.mark.parametrize(
    ("kind", "given", "problem"),
    [
        ("tinyproxy", None, "refused CONNECT to {}: 407 Proxy Authentication Required"),
        ("tinyproxy", Login("me", "wrong"), "refused CONNECT to {}: 401 Unauthorized"),
        ("microsocks", None, "wants another login than we offer"),
        ("microsocks", Login("me", "wrong"), "refused the login"),
    ],
)
async def test_without_the_right_login_the_proxy_refuses(
    kind: str,
    given: Login | None,
    problem: str,
    server: TcpAddress,
    peers: ExitStack,
    short_tmp: Path,
) -> None:
    proxy = of(start(kind, peers, short_tmp, LOGIN), given)
    with pytest.raises(ConnectError) as caught:
        await connect_through(proxy, server, None, None)
    shown = f"proxy {proxy.scheme}://127.0.0.1:{proxy.port}"
    assert caught.value.problem == f"{shown} {problem.format(server)}"
    assert "in the proxy's URI" in caught.value.hint


async def test_a_port_that_the_rules_forbid_is_refused(
    server: TcpAddress, peers: ExitStack, short_tmp: Path
) -> None:
    proxy = of(peers.enter_context(Tinyproxy(short_tmp, allow=[443])))
    with pytest.raises(ConnectError, match=r"refused CONNECT to \S+: 403 .*; its rules do not"):
        await connect_through(proxy, server, None, None)


@both
async def test_a_server_that_the_proxy_cannot_reach_is_told_from_the_proxy(
    kind: str, peers: ExitStack, short_tmp: Path
) -> None:
    proxy = of(start(kind, peers, short_tmp))
    with pytest.raises(ConnectError, match="; the proxy could not reach the server"):
        await connect_through(proxy, TcpAddress("127.0.0.1", free_port()), None, None)


# TLS with the proxy


@pytest.fixture
def authority(short_tmp: Path) -> Authority:
    return Authority(short_tmp)


@pytest.fixture
def https(peers: ExitStack, short_tmp: Path, authority: Authority) -> int:
    """The port of a Tinyproxy behind stunnel."""
    inside = peers.enter_context(Tinyproxy(short_tmp, login=LOGIN))
    certificate = authority.issue()
    target = f"127.0.0.1:{inside.port}"
    return peers.enter_context(Stunnel(short_tmp, target, certificate=certificate)).port


async def test_bytes_pass_through_a_proxy_on_tls(
    https: int, server: TcpAddress, authority: Authority
) -> None:
    context = ssl.create_default_context(cafile=authority.ca)
    assert await carries(await connect_through(at("https", https, LOGIN), server, None, context))


async def test_a_proxy_on_tls_that_nobody_vouches_for_is_refused(
    https: int, server: TcpAddress
) -> None:
    with pytest.raises(TlsError, match=f"TLS with proxy https://127.0.0.1:{https}: "):
        await connect_through(at("https", https, LOGIN), server, None, None)


# Schemes that are mixed up


async def test_a_proxy_on_tls_that_is_asked_without_may_want_it(
    https: int, server: TcpAddress
) -> None:
    with pytest.raises(ConnectError, match=r"does it want TLS \(https://\)\?"):
        await connect_through(at("http", https), server, None, None)


@pytest.mark.parametrize(
    ("scheme", "problem"),
    [
        ("http", r"CONNECT with '\\x05\\xff'; it is a SOCKS5 proxy: write socks5://"),
        ("https", r"TLS with proxy .*: the server closed the connection"),
    ],
)
async def test_a_socks_proxy_is_no_other(
    scheme: str, problem: str, server: TcpAddress, peers: ExitStack
) -> None:
    peer = peers.enter_context(Microsocks())
    with pytest.raises((ConnectError, TlsError), match=problem):
        await connect_through(at(scheme, peer.port), server, None, None)
