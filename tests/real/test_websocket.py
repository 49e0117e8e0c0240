"""WebSockets of real servers, from their handshake to their end: QEMU's own, and nginx's."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import pytest

from spicebridge.errors import ConnectError
from spicebridge.protocol.constants import ChannelType, Msg
from spicebridge.protocol.dialogue import Exchange
from spicebridge.protocol.link import Linked, LinkRequest, link_client
from spicebridge.protocol.login import ClientTicket
from spicebridge.transport.address import TcpAddress, WebAddress
from spicebridge.transport.connect import connect
from spicebridge.transport.websocket import WebSocketWire, open_websocket
from spicebridge.transport.websocket_frames import Close, Status
from spicebridge.transport.wire import Wire
from tests.conftest import PATIENCE
from tests.peers.certificates import Authority
from tests.peers.nginx import WebSocketProxy
from tests.peers.processes import free_port
from tests.peers.qemu import Qemu
from tests.transport.pairs import read_exactly, read_to_end

pytestmark = pytest.mark.real_peer

PATH = "/vm 1/spice"
WRITTEN = "/vm%201/spice"


@pytest.fixture
def qemu(short_tmp: Path) -> Iterator[Qemu]:
    with Qemu(short_tmp) as running:
        yield running


@pytest.fixture
def nginx(short_tmp: Path, qemu: Qemu) -> Iterator[WebSocketProxy]:
    folder = short_tmp / "nginx"
    folder.mkdir()
    with WebSocketProxy(folder, {PATH: qemu.port, "/dead": free_port()}) as running:
        yield running


@asynccontextmanager
async def opened(port: int, path: str = "/") -> AsyncIterator[Wire]:
    """A WebSocket of a server on 127.0.0.1."""
    with anyio.fail_after(PATIENCE):
        stream = await connect(TcpAddress("127.0.0.1", port))
        wire = await open_websocket(stream, WebAddress("127.0.0.1", port, path), None)
        try:
            yield wire
        finally:
            wire.close()


async def link_main(wire: Wire) -> Linked:
    """Links the main channel."""
    exchange = Exchange(link_client(LinkRequest(0, ChannelType.MAIN, 0), [ClientTicket()]))
    while not exchange.done:
        await wire.write_all([memoryview(exchange.data_to_send())])
        exchange.receive_data(await read_exactly(wire, exchange.needed))
    return exchange.result


async def assert_it_speaks_spice(wire: Wire) -> None:
    """Links, hears the first message, and ends as both sides should."""
    assert isinstance(wire, WebSocketWire)
    linked = await link_main(wire)
    assert linked.mini_header
    assert await read_exactly(wire, 2) == Msg.MAIN_INIT.to_bytes(2, "little")
    wire.end()
    await read_to_end(wire)
    assert wire._frames.close == Close(Status.NONE)  # as libspice-server answers ours


async def test_qemu_speaks_it_on_its_own_port(qemu: Qemu) -> None:
    async with opened(qemu.port) as wire:
        await assert_it_speaks_spice(wire)


async def test_a_web_server_in_front_of_qemu_changes_nothing(nginx: WebSocketProxy) -> None:
    async with opened(nginx.port, WRITTEN) as wire:
        await assert_it_speaks_spice(wire)


@pytest.mark.parametrize(
    ("path", "refusal"),
    [
        ("/", r"answered '404 Not Found'; check the path"),
        ("/dead", r"answered '502 Bad Gateway'; the web server could not reach the SPICE server"),
    ],
)
async def test_a_web_server_that_has_none_there_is_quoted(
    nginx: WebSocketProxy, path: str, refusal: str
) -> None:
    with pytest.raises(ConnectError, match=refusal):
        async with opened(nginx.port, path):
            pass


async def test_a_web_server_that_wants_tls_is_quoted(short_tmp: Path) -> None:
    certificate = Authority(short_tmp).issue()
    with (
        WebSocketProxy(short_tmp, {}, certificate=certificate) as nginx,
        pytest.raises(ConnectError, match=r"answered '400 Bad Request'.*TLS \(wss://\)"),
    ):
        async with opened(nginx.port):
            pass
