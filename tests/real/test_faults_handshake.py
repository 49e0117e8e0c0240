"""Faults while a session begins and a port is linked: a relay cuts, stalls or dribbles."""

from __future__ import annotations

import functools
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import anyio
import pytest

from spicebridge import (
    ChannelBusyError,
    ChannelInfo,
    ChannelType,
    ConnectError,
    ProtocolError,
    Session,
    SessionLostError,
    SpicebridgeError,
    open_session,
    parse_uri,
)
from tests.bridge.tools import open_fds
from tests.conftest import PATIENCE
from tests.peers.faulty_relay import Fault, FaultyRelay, Flow, Plan
from tests.peers.libspice import SpiceEndpoint

pytestmark = pytest.mark.real_peer

NAME = "com.example.port"
PORT = ChannelInfo(ChannelType.PORT, 0)
PORT_INIT = 6 + 9 + len(NAME) + 1
"""Bytes of the message: a mini header, the fields, the name and a NUL."""

TICKET = "a ticket"
TIMEOUT = 0.1
LINK_BROKE = (ConnectError, ProtocolError, SessionLostError, ChannelBusyError)
"""What a link that broke may be told as; nobody has refused a login, a certificate or a link."""

both_ways = pytest.mark.parametrize("way", ["up", "down"])
every_byte = pytest.mark.parametrize(
    ("anyio_backend", "fault"), [("asyncio", Fault.CLOSE), ("trio", Fault.RESET)]
)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SpiceEndpoint]:
    """On a Unix socket: over TCP the server measures the network with 256,000 bytes at the start,
    and each of them would have to be met, too."""
    path = tmp_path_factory.mktemp("spice") / "spice"
    with SpiceEndpoint(f"silent:{NAME}", unix=path, ticket=TICKET) as endpoint:
        yield endpoint
        assert endpoint.popen.poll() is None, endpoint.stderr()


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A link that breaks is not tried again, nor is the session given time to tell why."""
    monkeypatch.setattr("spicebridge.client.session.BUSY_TIMEOUT", 0.0)
    monkeypatch.setattr("spicebridge.client.session._NOTICE", 0.0)


def plan(way: str, flow: Flow, _number: int = 0) -> Plan:
    """A flow in one direction."""
    return Plan(up=flow, spare=True) if way == "up" else Plan(down=flow, spare=True)


@asynccontextmanager
async def session(relay: FaultyRelay, timeout: float | None = None) -> AsyncIterator[Session]:
    target = replace(parse_uri(relay.uri), password=TICKET)
    async with open_session(target, timeout=timeout) as opened:
        yield opened


async def begin(relay: FaultyRelay, timeout: float | None = None) -> None:
    """Opens and closes a session."""
    with anyio.fail_after(PATIENCE):
        async with session(relay, timeout):
            pass


async def link(opened: Session) -> None:
    """Links the port and closes it."""
    with anyio.fail_after(PATIENCE):
        channel = await opened.open_channel(PORT)
        assert channel.port is not None
        assert channel.port.name == NAME
        await channel.aclose()


def passed(relay: FaultyRelay, way: str) -> int:
    """The bytes that have passed in one direction of the last connection, which has ended."""
    connection = relay.connections[-1]
    relay.wait(lambda: connection.closed, "the connection does not end")
    return connection.up.passed if way == "up" else connection.down.passed


def check(caught: pytest.ExceptionInfo[SpicebridgeError], relay: FaultyRelay) -> None:
    """An error is one line that tells where it happened."""
    line = str(caught.value)
    assert line.isprintable()
    assert relay.uri.partition("://")[2] in line


@every_byte
@both_ways
async def test_a_session_cut_at_any_byte_of_its_start_is_an_error(
    server: SpiceEndpoint, way: str, fault: Fault
) -> None:
    with FaultyRelay(server.uri) as relay:
        await begin(relay)
        size = passed(relay, way)
    assert size > 170
    for offset in range(size):
        before = open_fds()
        with FaultyRelay(server.uri, functools.partial(plan, way, Flow(fault, offset))) as relay:
            with pytest.raises(LINK_BROKE) as caught:
                await begin(relay)
            check(caught, relay)
            assert len(relay.connections) == 1
        assert open_fds() == before, offset


@every_byte
@both_ways
@pytest.mark.usefixtures("impatient")
async def test_a_port_cut_at_any_byte_of_its_link_is_an_error_and_the_session_goes_on(
    server: SpiceEndpoint, way: str, fault: Fault
) -> None:
    with FaultyRelay(server.uri) as relay:
        async with session(relay) as opened:
            await link(opened)
            size = passed(relay, way)
            assert size > 170
            before = open_fds()
            for offset in range(size):
                relay.plan = functools.partial(plan, way, Flow(fault, offset))
                with pytest.raises(LINK_BROKE) as caught:
                    await link(opened)
                check(caught, relay)
                passed(relay, way)
                assert open_fds() == before, offset
            relay.plan = lambda number: Plan()
            await link(opened)
            assert not opened.lost.is_set()


async def test_a_port_that_is_cut_right_behind_its_login_is_tried_again(
    server: SpiceEndpoint,
) -> None:
    with FaultyRelay(server.uri) as relay:
        async with session(relay) as opened:
            await link(opened)
            cut = Flow(Fault.CLOSE, passed(relay, "down") - PORT_INIT)
            relay.plan = lambda number: plan("down", cut) if number == 2 else Plan()
            await link(opened)
            assert len(relay.connections) == 4


STALLS = {
    "up": [0, 1, 15, 16, 33, 34, 41, 42, 45, 46, 100, 173],
    "down": [0, 1, 15, 16, 20, 182, 201, 202, 205, 206, 207, 211, 212, 221],
}
"""Inside of and between the headers, the key, the capabilities, the ticket, its answer and the
messages behind it."""


@both_ways
async def test_a_session_that_stalls_is_an_error_in_time(server: SpiceEndpoint, way: str) -> None:
    for offset in STALLS[way]:
        before = open_fds()
        stall = functools.partial(plan, way, Flow(Fault.STALL, offset))
        with FaultyRelay(server.uri, stall) as relay:
            with pytest.raises(ConnectError, match="no answer within") as caught:
                await begin(relay, TIMEOUT)
            check(caught, relay)
        assert open_fds() == before, offset


@both_ways
async def test_a_port_that_stalls_is_an_error_in_time_and_the_session_goes_on(
    server: SpiceEndpoint, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    with FaultyRelay(server.uri) as relay:
        async with session(relay) as opened:
            before = open_fds()
            for offset in STALLS[way]:
                relay.plan = functools.partial(plan, way, Flow(Fault.STALL, offset))
                number = len(relay.connections)
                with monkeypatch.context() as patch:
                    patch.setattr("spicebridge.transport.steps.CONNECT_TIMEOUT", TIMEOUT)
                    patch.setattr("spicebridge.client.session._NOTICE", 0.0)
                    with pytest.raises(ConnectError, match="no answer within") as caught:
                        await link(opened)
                check(caught, relay)
                stalled = relay.wait_connection(number)
                stalled.resume()  # maybe before the stall: a busy machine gives us no time for it
                relay.wait(lambda: stalled.closed, "the connection does not end")  # noqa: B023
                assert open_fds() == before, offset
            relay.plan = lambda number: Plan()
            await link(opened)
            assert not opened.lost.is_set()


@both_ways
async def test_a_stall_that_ends_in_time_harms_nobody(server: SpiceEndpoint, way: str) -> None:
    for offset in STALLS[way]:
        stall = functools.partial(plan, way, Flow(Fault.STALL, offset))
        with FaultyRelay(server.uri, stall) as relay:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(resume, relay)
                await begin(relay)


async def resume(relay: FaultyRelay) -> None:
    """Resumes the first connection once it stalls."""

    def wait() -> None:
        connection = relay.wait_connection(0)
        relay.wait(lambda: connection.up.stalled or connection.down.stalled, "it does not stall")
        connection.resume()

    await anyio.to_thread.run_sync(wait)


async def test_a_start_in_single_bytes_is_a_start(server: SpiceEndpoint, short_tmp: Path) -> None:
    """Both sides are on Unix sockets, so that each is given the next byte when it has read one."""
    single = Flow(piece=1)
    dribble = Plan(single, single)
    with FaultyRelay(server.uri, lambda number: dribble, unix=short_tmp / "relay") as relay:
        async with session(relay) as opened:
            await link(opened)
