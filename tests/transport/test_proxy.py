"""Through a proxy, whatever it speaks: how it is reached, left, and told from the server."""

from __future__ import annotations

import ssl

import anyio
import pytest
import trustme

from spicebridge.errors import ConnectError, TlsError, UsageError
from spicebridge.transport.address import TcpAddress
from spicebridge.transport.proxy import connect_through
from spicebridge.transport.proxy_address import ProxyAddress
from spicebridge.transport.wire import Wire
from tests.conftest import PATIENCE
from tests.transport.fake_proxy import CONNECTED, NO_LOGIN, OK, VM, fake_proxy
from tests.transport.pairs import read_exactly, until
from tests.transport.test_connect import descriptors

ASKED = b"\r\n\r\n"
TUNNELS = [
    pytest.param("http", [(ASKED, OK)], id="http"),
    pytest.param("socks5", [(3, NO_LOGIN), (17, CONNECTED)], id="socks5"),
]
Turns = list[tuple[int | bytes, bytes]]


async def echoes(wire: Wire, data: bytes) -> bool:
    await wire.write_all([memoryview(data)])
    return await read_exactly(wire, len(data)) == data


@pytest.mark.parametrize(("scheme", "turns"), TUNNELS)
async def test_bytes_pass_through_the_tunnel(scheme: str, turns: Turns) -> None:
    async with fake_proxy(*turns) as proxy:
        wire = await connect_through(proxy.address(scheme), VM, None, None)
        assert await echoes(wire, b"REDQ" * 1000)
        wire.close()


@pytest.mark.parametrize(("scheme", "turns"), TUNNELS)
async def test_what_comes_right_behind_the_answer_is_the_servers(scheme: str, turns: Turns) -> None:
    end, answer = turns[-1]
    async with fake_proxy(*turns[:-1], (end, answer + b"\r\n\0HTTP/1.1")) as proxy:
        wire = await connect_through(proxy.address(scheme), VM, None, None)
        assert await read_exactly(wire, 11) == b"\r\n\0HTTP/1.1"
        assert await echoes(wire, b"REDQ")
        wire.close()


# TLS with the proxy


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


def server_context(authority: trustme.CA, host: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(host).configure_cert(context)
    return context


def client_context(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return context


async def test_a_proxy_on_tls_is_asked_inside_of_it(authority: trustme.CA) -> None:
    async with fake_proxy((ASKED, OK + b"!"), tls=server_context(authority, "127.0.0.1")) as proxy:
        wire = await connect_through(proxy.address("https"), VM, None, client_context(authority))
        assert proxy.heard[0].startswith(b"CONNECT vm.example:5900 HTTP/1.1\r\n")
        assert await read_exactly(wire, 1) == b"!"
        assert await echoes(wire, bytes(100_000))
        wire.close()


async def test_a_proxy_on_tls_that_nobody_vouches_for_gets_no_login(
    authority: trustme.CA,
) -> None:
    async with fake_proxy((ASKED, OK), tls=server_context(authority, "other.example")) as proxy:
        before = descriptors()
        with pytest.raises(TlsError, match=f"TLS with proxy https://127.0.0.1:{proxy.port}: "):
            await connect_through(
                proxy.address("https", "me", "hunter2"), VM, None, client_context(authority)
            )
        assert not proxy.heard
        await until(lambda: descriptors() <= before)


async def test_without_a_context_the_systems_authorities_count(authority: trustme.CA) -> None:
    async with fake_proxy((ASKED, OK), tls=server_context(authority, "127.0.0.1")) as proxy:
        with pytest.raises(TlsError):
            await connect_through(proxy.address("https"), VM, None, None)


# Proxies that are not there, or fall silent


@pytest.mark.parametrize("scheme", ["http", "https", "socks5"])
async def test_a_proxy_that_cannot_be_reached_is_told_from_the_server(scheme: str) -> None:
    proxy = ProxyAddress(scheme, "127.0.0.1", 1, "me", "hunter2")
    with pytest.raises(ConnectError) as caught:
        await connect_through(proxy, VM, None, None)
    assert caught.value.problem == (
        f"proxy {scheme}://127.0.0.1:1: connecting to 127.0.0.1:1: Connection refused"
    )


@pytest.mark.parametrize("scheme", ["http", "socks5"])
async def test_a_silent_proxy_is_given_up_by_name_and_left(scheme: str) -> None:
    async with fake_proxy((1000, b"")) as proxy:
        with pytest.raises(ConnectError) as caught:
            await connect_through(proxy.address(scheme, "me", "hunter2"), VM, 0.3, None)
        await proxy.left.wait()
    assert caught.value.problem == (
        f"asking proxy {scheme}://127.0.0.1:{proxy.port} for vm.example:5900: "
        "no answer within 0.3 seconds"
    )


@pytest.mark.parametrize("scheme", ["http", "socks5"])
async def test_a_proxy_that_hangs_up_at_once_may_be_none(scheme: str) -> None:
    async with fake_proxy(hang_up=True) as proxy:
        with pytest.raises(ConnectError) as caught:
            await connect_through(proxy.address(scheme), VM, None, None)
    assert caught.value.problem == (
        f"asking proxy {scheme}://127.0.0.1:{proxy.port} for vm.example:5900: "
        "it closed the connection"
    )
    assert caught.value.hint.startswith("is that a")


async def test_a_connection_that_breaks_says_how(monkeypatch: pytest.MonkeyPatch) -> None:
    async def broken(*_: object) -> None:
        raise TimeoutError(110, "Connection timed out")

    monkeypatch.setattr("spicebridge.transport.proxy.ask_http", broken)
    async with fake_proxy() as proxy:
        with pytest.raises(ConnectError, match=r"for vm\.example:5900: Connection timed out; "):
            await connect_through(proxy.address("http"), VM, None, None)
        await proxy.left.wait()


@pytest.mark.parametrize("scheme", ["http", "socks5"])
async def test_a_cancelled_question_leaves_nothing_open(scheme: str) -> None:
    async with fake_proxy((1, b""), (1000, b"")) as proxy:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(connect_through, proxy.address(scheme), VM, PATIENCE, None)
            await until(lambda: proxy.heard)
            tasks.cancel_scope.cancel()
        await proxy.left.wait()


@pytest.mark.parametrize(
    ("scheme", "turn"), [("http", (ASKED, b"HTTP/1.1 403 No\r\n\r\n")), ("socks5", (3, b"\5\xff"))]
)
async def test_a_proxy_that_refuses_is_left(scheme: str, turn: tuple[int | bytes, bytes]) -> None:
    async with fake_proxy(turn) as proxy:
        with pytest.raises(ConnectError):
            await connect_through(proxy.address(scheme), VM, None, None)
        await proxy.left.wait()


# Names


@pytest.mark.parametrize("host", ["a b", "a\r\nX: y", "", "a..ä", "☃" * 70, "\x7f"])
@pytest.mark.parametrize("scheme", ["http", "socks5"])
async def test_what_is_no_host_name_reaches_no_proxy(scheme: str, host: str) -> None:
    with pytest.raises(ConnectError) as caught:
        await connect_through(ProxyAddress(scheme, "127.0.0.1", 1), TcpAddress(host, 1), None, None)
    assert caught.value.problem == f"{host!r} is no host name"


async def test_an_international_name_is_sent_in_ascii() -> None:
    async with fake_proxy((ASKED, OK)) as proxy:
        vm = TcpAddress("bücher.example", 5900)
        (await connect_through(proxy.address("http"), vm, None, None)).close()
    assert proxy.heard[0].startswith(b"CONNECT xn--bcher-kva.example:5900 HTTP/1.1\r\n")


async def test_a_login_that_cannot_be_sent_is_refused_and_not_repeated() -> None:
    async with fake_proxy((1, b"")) as proxy:
        with pytest.raises(UsageError) as caught:
            await connect_through(proxy.address("http", "m:e", "hunter2"), VM, None, None)
    assert "m:e" not in str(caught.value)
