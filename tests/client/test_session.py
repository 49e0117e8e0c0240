"""A session against our own endpoint: what is offered, what is opened, and how it ends."""

from __future__ import annotations

from pathlib import Path

import anyio
import pytest

from spicebridge.channel import Channel
from spicebridge.client.session import ChannelInfo, PortInfo, open_session
from spicebridge.errors import (
    ChannelBusyError,
    ChannelNotFoundError,
    ConnectError,
    LoginError,
    SessionLostError,
)
from spicebridge.protocol.events import Ping, Pong, PortInit
from spicebridge.protocol.messages import encode_ping
from spicebridge.server.endpoint import Offer
from spicebridge.transport.address import Address, UnixAddress
from spicebridge.transport.target import Target
from tests.server.serving import deaf, echo, port, read_until, serving, somewhere
from tests.transport.pairs import settled, until

PORT0, PORT1, USER = ChannelInfo(10, 0), ChannelInfo(10, 1), ChannelInfo(128, 0)
USBREDIR = ChannelInfo(9, 0)

OFFERS = [
    Offer(128, 0, port("org.user.0")),
    Offer(10, 1, port("org.second.0", opened=False)),
    Offer(10, 0, port("org.first.0")),
    Offer(9, 0, echo),
]

BOTH_KINDS = pytest.mark.parametrize("kind", ["unix", "tcp"])


@BOTH_KINDS
async def test_channels_are_listed_by_type_and_id(short_tmp: Path, kind: str) -> None:
    async with (
        serving(somewhere(kind, short_tmp), OFFERS) as address,
        open_session(Target(address)) as session,
    ):
        assert session.channels == (USBREDIR, PORT0, PORT1, USER)
        assert [each.name for each in session.channels] == [
            "usbredir:0",
            "port:0",
            "port:1",
            "128:0",
        ]
        assert session.failure is None
        assert not session.lost.is_set()


@BOTH_KINDS
@pytest.mark.parametrize("info", [USBREDIR, PORT0, USER], ids=lambda info: info.name)
async def test_a_channel_carries_bytes_both_ways(
    short_tmp: Path, kind: str, info: ChannelInfo
) -> None:
    data = bytes(range(256)) * 2000
    async with (
        serving(somewhere(kind, short_tmp), OFFERS) as address,
        open_session(Target(address)) as session,
        await session.open_channel(info) as channel,
        anyio.create_task_group() as tasks,
    ):
        tasks.start_soon(channel.send, data)
        assert await read_until(channel, len(data)) == data


async def test_a_port_has_its_name_once_it_is_open(short_tmp: Path) -> None:
    async with (
        serving(somewhere("unix", short_tmp), OFFERS) as address,
        open_session(Target(address)) as session,
    ):
        async with await session.open_channel(PORT1) as channel:
            assert channel.port == PortInit("org.second.0", opened=False)
        async with await session.open_channel(USBREDIR) as channel:
            assert channel.port is None


async def test_data_right_behind_the_link_is_not_lost(short_tmp: Path) -> None:
    async def banner(channel: Channel) -> None:
        await channel.send(b"(qemu) ")
        await echo(channel)

    offers = [Offer(10, 0, port("hmp", banner)), Offer(9, 0, banner)]
    async with (
        serving(somewhere("unix", short_tmp), offers) as address,
        open_session(Target(address)) as session,
    ):
        for info in session.channels:
            async with await session.open_channel(info) as channel:
                assert await read_until(channel, 7) == b"(qemu) "


async def test_ports_tell_their_names_and_are_asked_once(short_tmp: Path) -> None:
    opened: list[str] = []

    async def counted(channel: Channel) -> None:
        opened.append(channel.name)
        await echo(channel)

    offers = [Offer(10, 0, port("a", counted)), Offer(11, 0, port("b", counted)), OFFERS[3]]
    async with (
        serving(somewhere("unix", short_tmp), offers) as address,
        open_session(Target(address)) as session,
    ):
        for _ in range(2):
            assert [each async for each in session.ports()] == [
                PortInfo(PORT0, PortInit("a", opened=True)),
                PortInfo(ChannelInfo(11, 0), PortInit("b", opened=True)),
            ]
    assert opened == ["port:0", "webdav:0"]


async def test_the_name_of_a_port_in_use_is_not_known(
    short_tmp: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("spicebridge.client.session.BUSY_TIMEOUT", 0.1)
    async with (
        serving(somewhere("unix", short_tmp), OFFERS[2:3]) as address,
        open_session(Target(address)) as holder,
        open_session(Target(address)) as session,
        await holder.open_channel(PORT0),
    ):
        assert [each async for each in session.ports()] == [PortInfo(PORT0, None)]


async def test_a_busy_channel_is_tried_until_it_is_free(short_tmp: Path) -> None:
    got = anyio.Event()
    async with (
        serving(somewhere("unix", short_tmp), OFFERS) as address,
        open_session(Target(address)) as holder,
        open_session(Target(address)) as session,
    ):
        held = await holder.open_channel(PORT0)

        async def wait() -> None:
            async with await session.open_channel(PORT0) as channel:
                assert channel.port is not None
                got.set()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(wait)
            await settled()
            assert not got.is_set()
            await held.aclose()
            await got.wait()


async def test_a_channel_that_stays_busy_is_reported(
    short_tmp: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("spicebridge.client.session.BUSY_TIMEOUT", 0.1)
    async with (
        serving(somewhere("unix", short_tmp), OFFERS) as address,
        open_session(Target(address)) as session,
        await session.open_channel(PORT0),
    ):
        with pytest.raises(ChannelBusyError, match=r"port:0 at unix:.* is in use by another"):
            await session.open_channel(PORT0)


async def test_a_channel_that_is_not_offered_is_not_even_tried(short_tmp: Path) -> None:
    async with (
        serving(somewhere("unix", short_tmp), OFFERS) as address,
        open_session(Target(address)) as session,
    ):
        with pytest.raises(ChannelNotFoundError) as caught:
            await session.open_channel(ChannelInfo(200, 0))
    assert "does not offer 200:0" in caught.value.problem
    assert caught.value.hint == "it offers usbredir:0, port:0, port:1, 128:0"


async def test_the_password_opens_the_session_and_its_channels(short_tmp: Path) -> None:
    async with (
        serving(somewhere("unix", short_tmp), OFFERS, "secret") as address,
        open_session(Target(address, password="secret")) as session,
        await session.open_channel(PORT0) as channel,
    ):
        await channel.send(b"x")
        assert await channel.read() == b"x"


@pytest.mark.parametrize("password", ["wrong", "", "Secret"])
async def test_a_wrong_password_is_told_with_the_address(short_tmp: Path, password: str) -> None:
    async with serving(somewhere("unix", short_tmp), OFFERS, "secret") as address:
        with pytest.raises(LoginError) as caught:
            async with open_session(Target(address, password=password)):
                pytest.fail("it came in")
    assert str(caught.value).startswith(f"{address}: ")
    assert "permission denied" in str(caught.value)


async def test_nobody_there_is_told_with_the_address(short_tmp: Path) -> None:
    with pytest.raises(ConnectError, match=r"connecting to unix:.*/spice: No such file"):
        async with open_session(Target(UnixAddress(str(short_tmp / "spice")))):
            pytest.fail("there is no server")


# While it lives


async def test_pings_of_main_are_answered_while_a_channel_is_stuck(
    short_tmp: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A PONG that is late costs the whole session."""
    monkeypatch.setattr("spicebridge.server.session.PING_EVERY", 0)
    monkeypatch.setattr("spicebridge.server.session.SESSION_GRACE", 0.05)
    pings: list[bytes] = []

    def counted(event: Ping | Pong) -> bytes:
        pings.append(encode_ping(event))
        return pings[-1]

    monkeypatch.setattr("spicebridge.server.session.encode_ping", counted)
    async with (
        serving(somewhere("unix", short_tmp), [Offer(10, 0, port("x", deaf))]) as address,
        open_session(Target(address)) as session,
    ):
        channel = await session.open_channel(PORT0)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(channel.send, bytes(8 << 20))
            await until(lambda: len(pings) >= 20)  # each only once the one before is answered
            assert not session.lost.is_set()
            tasks.cancel_scope.cancel()
        channel.abort()


async def test_several_sessions_live_side_by_side(short_tmp: Path) -> None:
    async with (
        serving(somewhere("unix", short_tmp), OFFERS) as address,
        open_session(Target(address)) as one,
        open_session(Target(address)) as two,
        await one.open_channel(PORT0) as first,
        await two.open_channel(PORT1) as other,
    ):
        await first.send(b"first")
        await other.send(b"other")
        assert await first.read() == b"first"
        assert await other.read() == b"other"


# Its end


@BOTH_KINDS
async def test_a_session_that_the_server_ends_is_lost(short_tmp: Path, kind: str) -> None:
    where: list[Address] = []
    stop = anyio.CancelScope()

    async def serve() -> None:
        with stop:
            async with serving(somewhere(kind, short_tmp), OFFERS) as address:
                where.append(address)
                await anyio.sleep_forever()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(serve)
        await until(lambda: where)
        async with open_session(Target(where[0])) as session:
            channel = await session.open_channel(PORT0)
            stop.cancel()
            await session.lost.wait()
            assert isinstance(session.failure, SessionLostError)
            assert str(where[0]) in str(session.failure)
            assert await channel.read() == b""
            await channel.aclose()


async def test_leaving_the_block_ends_the_session_and_its_channels(
    short_tmp: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("spicebridge.server.session.SESSION_GRACE", 0.05)
    async with serving(somewhere("unix", short_tmp), OFFERS) as address:
        async with open_session(Target(address)) as session:
            channel = await session.open_channel(PORT0)
        assert await channel.receive() is None
        await channel.aclose()
        async with open_session(Target(address)) as session:
            (await session.open_channel(PORT0)).abort()


async def test_an_error_of_ours_inside_the_block_comes_out_as_it_is(short_tmp: Path) -> None:
    async with serving(somewhere("unix", short_tmp), OFFERS) as address:
        with pytest.raises(ChannelNotFoundError, match="mine"):
            async with open_session(Target(address)):
                raise ChannelNotFoundError("mine")
