"""``serve`` with ``demux=on`` plays the guest: both ends of the mux, without any VM."""

# ruff: noqa: SIM117 - which of them lives inside which is the point

from __future__ import annotations

import hashlib
import logging
import random
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio
import pytest
from anyio.abc import ByteStream, SocketStream

from spicebridge import (
    BridgeSpec,
    Channel,
    ChannelInfo,
    ChannelWanted,
    ConnectingEndpoint,
    Endpoint,
    Limits,
    ListeningEndpoint,
    TcpAddress,
    UnixAddress,
    open_session,
)
from spicebridge.transport.target import Target
from tests.bridge.mux_tools import (
    WEBDAV,
    Applications,
    demux,
    echo,
    nothing_left,
    receive_some,
    serve,
)
from tests.bridge.tools import (
    USER,
    EventLog,
    Running,
    bridging,
    connected,
    read_all,
    read_exactly,
    served,
    until,
)
from tests.protocol.frames import frame

MIB = 1024 * 1024


def listening(folder: Path, kind: int = WEBDAV, **limits: Any) -> BridgeSpec:
    """What is served: connections to `folder`/in become streams."""
    return demux(
        ListeningEndpoint(f"unixsocket={folder}/in", UnixAddress(f"{folder}/in")),
        kind=kind,
        name="served",
        **limits,
    )


@dataclass
class Both:
    """Both ends of a mux: who connects to `path` reaches the applications."""

    apps: Applications
    path: Path
    address: UnixAddress
    server: Running


@asynccontextmanager
async def both(folder: Path, kind: int = WEBDAV, **limits: Any) -> AsyncIterator[Both]:
    """A server, and applications for a client that is still to come."""
    address = UnixAddress(str(folder / "spice"))
    apps = Applications(folder / "app")
    async with nothing_left(), anyio.create_task_group() as tasks:
        try:
            await tasks.start(apps.run)
            async with served(address, listening(folder, kind, **limits)) as server:
                yield Both(apps, folder / "in", address, server)
        finally:
            await apps.aclose()
            tasks.cancel_scope.cancel()


# End to end


@pytest.mark.parametrize("kind", [WEBDAV, USER, 10], ids=["webdav", "user", "port"])
async def test_each_connection_reaches_an_application_of_its_own(
    short_tmp: Path, kind: int
) -> None:
    async with both(short_tmp, kind) as on, AsyncExitStack() as stack:
        await stack.enter_async_context(bridging(on.address, demux(short_tmp / "app", kind=kind)))
        pairs: list[tuple[ByteStream, SocketStream]] = []
        for number in range(5):
            client = await stack.enter_async_context(connected(on.path))
            await client.send(b"hello %d" % number)
            pairs.append((client, await on.apps.next()))
        for number, (client, app) in enumerate(pairs):
            assert await read_exactly(app, 7) == b"hello %d" % number
            await app.send(b"answer %d" % number)
            assert await read_exactly(client, 8) == b"answer %d" % number


async def test_the_ends_may_be_at_tcp_ports(short_tmp: Path) -> None:
    address = UnixAddress(str(short_tmp / "spice"))
    data = random.Random(1).randbytes(MIB)

    async def answer(app: SocketStream) -> None:
        async with app:
            await echo(app)

    async with await anyio.create_tcp_listener(local_host="127.0.0.1") as listener:
        port: int = listener.extra(anyio.abc.SocketAttribute.local_port)
        inner: Endpoint = ListeningEndpoint("tcp=127.0.0.1:0", TcpAddress("127.0.0.1", 0))
        outer = ConnectingEndpoint(f"tcp=127.0.0.1:{port}", TcpAddress("127.0.0.1", port))
        async with served(address, demux(inner)), bridging(address, demux(outer)):
            own = int(inner.name.rpartition(":")[2])
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(listener.serve, answer)
                async with await anyio.connect_tcp("127.0.0.1", own) as client:
                    tasks.start_soon(client.send, data)
                    assert await read_exactly(client, len(data)) == data
                    await client.send_eof()
                    assert await read_all(client) == b""
                tasks.cancel_scope.cancel()


@pytest.mark.parametrize("first", ["client", "application"])
async def test_half_close_goes_through_both_ways(short_tmp: Path, first: str) -> None:
    async with both(short_tmp) as on, bridging(on.address, demux(short_tmp / "app")):
        async with connected(on.path) as client:
            await client.send(b"question")
            app = await on.apps.next()
            assert await read_exactly(app, 8) == b"question"
            one, other = (client, app) if first == "client" else (app, client)
            await one.send(b"my last")
            await one.send_eof()
            assert await read_all(other) == b"my last"
            for word in (b"your", b"turn", b"still"):
                await other.send(word)
                assert await read_exactly(one, len(word)) == word
            await other.send_eof()
            assert await read_all(one) == b""


async def test_random_data_go_both_ways_through_100_streams_at_once(
    short_tmp: Path, log: EventLog
) -> None:
    async def ask(number: int) -> None:
        data = random.Random(number).randbytes(1 + number * 1000)
        async with connected(short_tmp / "in") as client, anyio.create_task_group() as tasks:

            async def send() -> None:
                await client.send(data)
                await client.send_eof()

            tasks.start_soon(send)
            assert hashlib.sha256(await read_all(client)).digest() == hashlib.sha256(data).digest()
            done.append(number)

    done: list[int] = []
    address = UnixAddress(str(short_tmp / "spice"))
    async with nothing_left(), anyio.create_task_group() as apps:
        await apps.start(serve, short_tmp / "app", echo)
        async with (
            served(address, listening(short_tmp)) as server,
            bridging(address, demux(short_tmp / "app")) as client,
        ):
            async with anyio.create_task_group() as tasks:
                for number in range(100):
                    tasks.start_soon(ask, number)
            for running in (server, client):
                count = running.bridges[0].streams
                assert count is not None
                assert count.total == 100
                await until(lambda: not count.open, "all have ended")  # noqa: B023
        apps.cancel_scope.cancel()
    assert sorted(done) == list(range(100))
    assert log.messages(logging.WARNING) == []


# Without a client


async def test_connections_wait_for_a_client_and_are_then_served(
    short_tmp: Path, log: EventLog
) -> None:
    async with both(short_tmp) as on, AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(connected(on.path)) for _ in range(3)]
        for number, client in enumerate(clients):
            await client.send(b"waiting %d" % number)
        assert not log.find("stream-open")
        await stack.enter_async_context(bridging(on.address, demux(short_tmp / "app")))
        for _ in clients:
            app = await on.apps.next()
            said = await read_exactly(app, 9)
            await app.send(b"answer to " + said)
        for number, client in enumerate(clients):
            assert await read_exactly(client, 19) == b"answer to waiting %d" % number


async def test_one_that_went_before_a_client_came_is_no_stream(
    short_tmp: Path, log: EventLog
) -> None:
    async with both(short_tmp) as on:
        for _ in range(3):
            async with connected(on.path) as client:
                await client.send(b"never mind")
        async with connected(on.path) as client:
            await client.send(b"hello")
            async with bridging(on.address, demux(short_tmp / "app")):
                app = await on.apps.next()
                assert await read_exactly(app, 5) == b"hello"
                assert on.apps.count == 1


async def test_a_client_that_only_asks_for_the_name_of_the_port_costs_no_connection(
    short_tmp: Path, log: EventLog
) -> None:
    async with both(short_tmp) as on, connected(on.path) as client:
        await client.send(b"hello")
        for count in (1, 2, 3):
            async with open_session(Target(on.address)) as session:
                names = [info.port.name async for info in session.ports() if info.port]
                assert names == ["org.spice-space.webdav.0"]
            await log.wait("unlinked", count=count)
        assert not log.find("stream-open")
        async with bridging(on.address, demux(short_tmp / "app")):
            app = await on.apps.next()
            assert await read_exactly(app, 5) == b"hello"
            await app.send(b"answer")
            assert await read_exactly(client, 6) == b"answer"


async def test_no_more_connections_may_wait_than_there_may_be_streams(
    short_tmp: Path, log: EventLog
) -> None:
    async with both(short_tmp, max_streams=2) as on, AsyncExitStack() as stack:
        for _ in range(2):
            await stack.enter_async_context(connected(on.path))
        async with connected(on.path) as third:
            assert await receive_some(third) == b""
        assert "2 wait" in (await log.wait("app-refused"))["message"]


async def test_a_connection_beyond_max_streams_is_closed(short_tmp: Path, log: EventLog) -> None:
    async with both(short_tmp, max_streams=2) as on, AsyncExitStack() as stack:
        await stack.enter_async_context(bridging(on.address, demux(short_tmp / "app")))
        clients = []
        for _ in range(2):
            clients.append(await stack.enter_async_context(connected(on.path)))
            await clients[-1].send(b"x")
            assert await read_exactly(await on.apps.next(), 1) == b"x"
        async with connected(on.path) as third:
            assert await receive_some(third) == b""
        assert "max-streams=2" in (await log.wait("app-refused"))["message"]
        await clients[0].aclose()
        await log.wait("stream-end", bridge="served")
        async with connected(on.path) as third:
            await third.send(b"y")
            assert await read_exactly(await on.apps.next(), 1) == b"y"


# Clients that go


async def test_a_client_that_goes_ends_all_streams_and_the_next_one_starts_clean(
    short_tmp: Path, log: EventLog
) -> None:
    async with both(short_tmp) as on:
        for count in range(1, 4):
            async with AsyncExitStack() as stack:
                clients = [await stack.enter_async_context(connected(on.path)) for _ in range(3)]
                async with bridging(on.address, demux(short_tmp / "app")) as bridge:
                    apps = []
                    for client in clients:
                        await client.send(b"%d" % count)
                        apps.append(await on.apps.next())
                        assert await read_exactly(apps[-1], 1) == b"%d" % count
                    await apps[0].send(b"last words")
                    bridge.stopping.set()
                    said = sorted([await read_all(client) for client in clients])
                    assert said == [b"", b"", b"last words"]
                    for each in (*clients, *apps):
                        await each.aclose()
                    await bridge.wait()
                await log.wait("unlinked", bridge="served", count=count)
        assert on.apps.count == 9


async def test_a_client_that_dies_ends_all_streams(short_tmp: Path, log: EventLog) -> None:
    async with both(short_tmp) as on:
        async with connected(on.path) as client:
            async with bridging(on.address, demux(short_tmp / "app")) as bridge:
                await client.send(b"x" * 100_000)
                await on.apps.next()
                bridge.cancel_scope.cancel()
                await bridge.wait()
            assert await receive_some(client) == b""
        async with connected(on.path) as client:
            async with bridging(on.address, demux(short_tmp / "app")):
                await client.send(b"new")
                assert await read_exactly(await on.apps.next(), 3) == b"new"


async def test_stop_drains_both_sides(short_tmp: Path, log: EventLog) -> None:
    up, down = random.Random(2).randbytes(100_000), random.Random(3).randbytes(100_000)
    async with both(short_tmp) as on:
        async with bridging(on.address, demux(short_tmp / "app")):
            async with connected(on.path) as client:
                await client.send(b"!")
                app = await on.apps.next()
                assert await read_exactly(app, 1) == b"!"
                await client.send(up)
                await app.send(down)
                on.server.stopping.set()
                assert await read_all(app) == up
                await app.aclose()
                assert await read_all(client) == down
            await on.server.wait()
            assert on.server.error is None
    assert not (short_tmp / "in").exists()


async def test_connections_that_wait_are_let_go_by_stop(short_tmp: Path) -> None:
    async with both(short_tmp) as on, connected(on.path) as client:
        on.server.stopping.set()
        assert await receive_some(client) == b""
        await on.server.wait()


# Clients that are no mux


@asynccontextmanager
async def by_hand(address: UnixAddress, kind: int = WEBDAV) -> AsyncIterator[Channel]:
    """A client that is played by the test."""
    async with open_session(Target(address)) as session:
        async with await session.open_channel(ChannelInfo(kind, 0)) as channel:
            yield channel


async def test_frames_for_ids_that_nobody_has_are_dropped_and_counted(
    short_tmp: Path, log: EventLog
) -> None:
    async with both(short_tmp) as on, connected(on.path) as client:
        await client.send(b"hello")
        async with by_hand(on.address) as channel:
            got = b""
            while len(got) < 15:
                got += await channel.read()
            assert got == frame(1, b"hello")
            await channel.send(frame(99, b"who?") + frame(-1, b"x" * 100) + frame(77))
            await channel.send(frame(1, b"for you"))
            assert await read_exactly(client, 7) == b"for you"
            dropped = await log.wait("stream-dropped", bridge="served")
            assert (dropped["level"], dropped["frames"], dropped["dropped"]) == ("WARNING", 2, 104)
            await channel.send(frame(1))
            assert await read_all(client) == b""
    assert len(log.find("stream-open")) == 1


async def test_ids_of_the_server_never_come_again(short_tmp: Path) -> None:
    async with both(short_tmp) as on, by_hand(on.address) as channel:
        seen = b""
        for number in range(1, 6):
            async with connected(on.path) as client:
                await client.send(b"x")
                await client.send_eof()
                seen = b""
                while len(seen) < 21:
                    seen += await channel.read()
                assert seen == frame(number, b"x") + frame(number)
                await channel.send(frame(number, b"answer") + frame(number))
                assert await read_all(client) == b"answer"


async def test_garbage_of_a_client_ends_no_more_than_its_channel(
    short_tmp: Path, log: EventLog
) -> None:
    async with both(short_tmp) as on:
        async with connected(on.path) as client:
            await client.send(b"hello")
            async with by_hand(on.address) as channel:
                await channel.read()
                await channel.send(bytes(4096))
                while await channel.read():
                    pass
            assert await receive_some(client) == b""
        await log.wait("unlinked", bridge="served")
        assert any("zeros" in each for each in log.messages(logging.WARNING))
        async with connected(on.path) as client:
            async with bridging(on.address, demux(short_tmp / "app")):
                await client.send(b"new")
                assert await read_exactly(await on.apps.next(), 3) == b"new"


async def test_a_client_that_reads_nothing_makes_connections_wait_and_loses_nothing(
    short_tmp: Path,
) -> None:
    data = random.Random(4).randbytes(2 * MIB)
    async with both(short_tmp) as on, by_hand(on.address) as channel:
        async with connected(on.path) as client, anyio.create_task_group() as tasks:

            async def send() -> None:
                await client.send(data)
                await client.send_eof()

            tasks.start_soon(send)
            (status,) = on.server.bridges
            await until(lambda: status.traffic.up > 100_000, "the way is filled")
            got = b""
            while not got.endswith(frame(1)):
                got += await channel.read()
            payload, at = b"", 0
            while at < len(got):
                size = int.from_bytes(got[at + 8 : at + 10], "little")
                payload += got[at + 10 : at + 10 + size]
                at += 10 + size
            assert payload == data


async def test_a_slow_connection_does_not_stop_the_others_of_the_server(
    short_tmp: Path, log: EventLog
) -> None:
    async with both(short_tmp, buffer=65536, stall=0.2) as on, AsyncExitStack() as stack:
        await stack.enter_async_context(bridging(on.address, demux(short_tmp / "app")))
        pairs = []
        for _ in range(2):
            client = await stack.enter_async_context(connected(on.path))
            await client.send(b"x")
            pairs.append((client, await on.apps.next()))
        tasks = await stack.enter_async_context(anyio.create_task_group())

        async def pour() -> None:
            try:
                await pairs[0][1].send(bytes(4 * MIB))
            except anyio.BrokenResourceError:
                pass  # it was ended

        tasks.start_soon(pour)
        await log.wait("stream-stalled", bridge="served", id=1)
        await pairs[1][1].send(b"here I am")
        assert await read_exactly(pairs[1][0], 9) == b"here I am"


def test_a_channel_may_be_served_with_and_without_streams() -> None:
    wanted = ChannelWanted(WEBDAV)
    end = ListeningEndpoint("unixsocket=x", UnixAddress("x"))
    assert BridgeSpec("a", wanted, end).demux is None
    assert BridgeSpec("a", wanted, end, demux=Limits()).demux == Limits(1024 * 1024, 30.0, 1024)
