"""The endpoint: what clients are told, and that no client can bring it down."""

from __future__ import annotations

import socket
import struct
from pathlib import Path

import anyio
import pytest

from spicebridge.channel import Channel
from spicebridge.client.linking import link
from spicebridge.client.session import ChannelInfo, open_session
from spicebridge.errors import (
    ChannelBusyError,
    ChannelNotFoundError,
    LinkRefusedError,
    SpicebridgeError,
    UsageError,
)
from spicebridge.protocol.constants import ChannelType, MsgC
from spicebridge.protocol.events import ChannelsList, MainInit, Ping
from spicebridge.protocol.link import LinkRequest
from spicebridge.server.endpoint import Offer, SpiceEndpoint
from spicebridge.server.limits import ServerLimits
from spicebridge.transport.address import Address
from spicebridge.transport.connect import connect
from spicebridge.transport.dial import Dialer
from spicebridge.transport.listen import listen
from spicebridge.transport.stream import Stream
from spicebridge.transport.target import Target
from tests.protocol.test_link import LINK_MESS
from tests.protocol.wire import message
from tests.server.serving import echo, make_quick, port, serving, somewhere
from tests.transport.pairs import read_exactly, read_to_end, settled, until

OFFERS = [Offer(10, 0, port("org.x.0")), Offer(9, 0, echo)]
PORT0 = ChannelInfo(10, 0)

MAIN_MESS = bytes.fromhex("52454451 02000000 02000000 12000000 00000000 0100 00000000 00000000")
MAIN_MESS += bytes.fromhex("12000000")


async def linked(address: Address, request: LinkRequest, password: str = "") -> Channel:
    """Links a channel by hand."""
    dialer = Dialer(Target(address, password=password))
    return await link(dialer, request, anyio.CancelScope())


async def main(address: Address) -> Channel:
    """A main channel by hand, which nobody keeps alive."""
    return await linked(address, LinkRequest(0, ChannelType.MAIN, 0))


async def still_serves(address: Address) -> None:
    """A session from beginning to end."""
    async with (
        open_session(Target(address)) as session,
        await session.open_channel(PORT0) as channel,
    ):
        await channel.send(b"alive")
        assert await channel.read() == b"alive"


# What a client is told


async def test_main_begins_with_its_session_and_lists_on_request(short_tmp: Path) -> None:
    async with (
        serving(somewhere("unix", short_tmp), OFFERS) as address,
        await main(address) as channel,
    ):
        items = list(await channel.receive() or [])
        assert isinstance(items[0], MainInit)
        assert items[0].session_id
        await channel.send_message(MsgC.MAIN_ATTACH_CHANNELS)
        while not any(isinstance(item, ChannelsList) for item in items):
            items += await channel.receive() or []
        assert ChannelsList(((10, 0), (9, 0))) in items
        assert not any(isinstance(item, Ping) for item in items), "answered, not shown"


async def test_a_session_id_is_not_guessed_from_another(short_tmp: Path) -> None:
    async with serving(somewhere("unix", short_tmp), OFFERS) as address:
        ids = set()
        for _ in range(5):
            async with open_session(Target(address)) as session:
                ids.add(session._id)
    assert len(ids) == 5


@pytest.mark.parametrize("connection_id", [0, 1, 12345])
async def test_a_channel_of_no_session_is_refused(short_tmp: Path, connection_id: int) -> None:
    async with serving(somewhere("unix", short_tmp), OFFERS) as address:
        with pytest.raises(LinkRefusedError, match=r"8 \(bad connection id\)"):
            await linked(address, LinkRequest(connection_id, ChannelType.PORT, 0))
        await still_serves(address)


async def test_a_session_that_has_ended_has_no_channels_any_more(short_tmp: Path) -> None:
    async with serving(somewhere("unix", short_tmp), OFFERS) as address:
        async with open_session(Target(address)) as session:
            pass
        with pytest.raises(LinkRefusedError, match=r"8 \(bad connection id\)"):
            await linked(address, LinkRequest(session._id, ChannelType.PORT, 0))


async def test_a_main_channel_of_a_session_that_exists_is_refused(short_tmp: Path) -> None:
    async with (
        serving(somewhere("unix", short_tmp), OFFERS) as address,
        open_session(Target(address)) as session,
    ):
        with pytest.raises(LinkRefusedError, match="bad connection id"):
            await linked(address, LinkRequest(session._id, ChannelType.MAIN, 0))


@pytest.mark.parametrize(("kind", "number"), [(10, 1), (11, 0), (1, 1), (255, 0)])
async def test_what_is_not_offered_is_refused_in_the_reply(
    short_tmp: Path, kind: int, number: int
) -> None:
    async with (
        serving(somewhere("unix", short_tmp), OFFERS) as address,
        open_session(Target(address)) as session,
    ):
        with pytest.raises(ChannelNotFoundError, match="channel not available"):
            await linked(address, LinkRequest(session._id, kind, number))


async def test_a_channel_has_one_client_and_is_free_when_it_has_gone(short_tmp: Path) -> None:
    async with (
        serving(somewhere("unix", short_tmp), OFFERS) as address,
        open_session(Target(address)) as session,
    ):
        request = LinkRequest(session._id, ChannelType.PORT, 0)
        async with await linked(address, request):
            with pytest.raises(ChannelBusyError, match="port:0 is in use"):
                await linked(address, request)
        async with await linked(address, request) as channel:
            assert channel.usable


async def test_a_password_that_spice_cannot_carry_is_refused_at_the_start(short_tmp: Path) -> None:
    with (
        await listen(somewhere("unix", short_tmp)) as listener,
        pytest.raises(UsageError, match="61 bytes"),
    ):
        await SpiceEndpoint(OFFERS, "x" * 61).serve(listener)


# Its clients' channels


async def test_a_guest_that_leaves_ends_the_channel_and_not_the_session(short_tmp: Path) -> None:
    async def banner(channel: Channel) -> None:
        await channel.send(b"bye")

    async with (
        serving(somewhere("unix", short_tmp), [Offer(10, 0, port("x", banner))]) as address,
        open_session(Target(address)) as session,
    ):
        for _ in range(2):
            async with await session.open_channel(PORT0) as channel:
                assert await channel.read() == b"bye"
                assert await channel.read() == b""
        assert not session.lost.is_set()


async def test_the_end_of_a_session_ends_its_channels(
    short_tmp: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("spicebridge.server.session.SESSION_GRACE", 0.05)
    ended: list[str] = []

    async def guest(channel: Channel) -> None:
        try:
            await echo(channel)
        finally:
            ended.append(channel.name)

    async with serving(somewhere("unix", short_tmp), [Offer(10, 0, port("x", guest))]) as address:
        async with open_session(Target(address)) as session:
            channel = await session.open_channel(PORT0)
        await until(lambda: ended)
        assert await channel.receive() is None
        await channel.aclose()
    assert ended == ["port:0"]


async def test_what_a_client_sent_before_its_session_ended_still_arrives(short_tmp: Path) -> None:
    """Main and the other channels are separate connections: the end of main may be seen first."""
    go, ended = anyio.Event(), anyio.Event()
    received = bytearray()

    async def late(channel: Channel) -> None:
        try:
            await go.wait()
            while data := await channel.read():
                received.extend(data)
        finally:
            ended.set()

    offers = [Offer(10, 0, port("x", late))]
    async with (
        serving(somewhere("unix", short_tmp), offers) as address,
        open_session(Target(address)) as session,
        await session.open_channel(PORT0) as channel,
    ):
        await channel.send(bytes(100_000))
        channel.end()
        session._main.end()
        await settled()
        go.set()
        await ended.wait()
    assert received == bytes(100_000)


async def test_idle_waits_until_no_channel_is_linked(short_tmp: Path) -> None:
    endpoint = SpiceEndpoint(OFFERS)
    with await listen(somewhere("unix", short_tmp)) as listener:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(endpoint.serve, listener)
            await endpoint.idle()
            async with open_session(Target(listener.address)) as session:
                channel = await session.open_channel(PORT0)
                with anyio.move_on_after(0.01) as waiting:
                    await endpoint.idle()
                assert waiting.cancelled_caught
                await channel.aclose()
                await endpoint.idle()
            tasks.cancel_scope.cancel()


async def test_what_a_client_says_on_main_that_means_nothing_is_ignored(short_tmp: Path) -> None:
    async with (
        serving(somewhere("unix", short_tmp), OFFERS) as address,
        await main(address) as channel,
    ):
        await channel.receive()
        await channel._wire.write_all([memoryview(message(101, bytes(100)))])
        await channel.send_message(MsgC.MAIN_ATTACH_CHANNELS)
        items = list(await channel.receive() or [])
        while not any(isinstance(item, ChannelsList) for item in items):
            items += await channel.receive() or []


async def test_a_client_that_goes_while_it_is_let_in_leaves_its_channel_free(
    short_tmp: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The channel was its own already when the result could not be sent any more."""
    async with (
        serving(somewhere("unix", short_tmp), OFFERS) as address,
        open_session(Target(address)) as session,
    ):
        write_all = Stream.write_all

        async def gone(stream: Stream, buffers: list[memoryview]) -> None:
            if bytes(buffers[0]) == bytes(4):
                monkeypatch.undo()
                make_quick(monkeypatch)
                raise BrokenPipeError(32, "Broken pipe")
            await write_all(stream, buffers)

        monkeypatch.setattr(Stream, "write_all", gone)
        with pytest.raises(SpicebridgeError):
            await linked(address, LinkRequest(session._id, ChannelType.PORT, 0))
        async with await session.open_channel(PORT0) as channel:
            assert channel.port is not None


async def test_stopping_while_a_client_logs_in_closes_its_connection(short_tmp: Path) -> None:
    async with serving(somewhere("unix", short_tmp), OFFERS) as address:
        stream = await connect(address)
        await stream.write_all([memoryview(MAIN_MESS)])
        assert (await read_exactly(stream, 20))[:4] == b"REDQ"
    assert await read_to_end(stream)  # what the reply has besides
    stream.close()


async def test_a_client_that_does_not_answer_pings_is_disconnected(
    short_tmp: Path, caplog: pytest.LogCaptureFixture
) -> None:
    limits = ServerLimits(pong_time=0.2)
    async with serving(somewhere("unix", short_tmp), OFFERS, limits=limits) as address:
        silent = await main(address)
        await read_to_end(silent._wire)
        silent.abort()
        await still_serves(address)
    assert "does not answer pings: disconnected" in caplog.text


# Clients that misbehave


@pytest.mark.parametrize(
    "said",
    [
        b"",
        b"REDQ",
        b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
        LINK_MESS[:-1],
        struct.pack("<4sIII", b"REDQ", 2, 2, 0xFFFFFFFF),
        LINK_MESS + bytes((9, 0, 0, 0)),
        LINK_MESS + bytes(200),
    ],
    ids=["nothing", "magic", "HTTP", "cut", "oversized", "unknown login", "noise"],
)
@pytest.mark.parametrize("kind", ["unix", "tcp"])
async def test_who_does_not_link_is_sent_away_and_logged(
    short_tmp: Path, caplog: pytest.LogCaptureFixture, said: bytes, kind: str
) -> None:
    async with serving(somewhere(kind, short_tmp), OFFERS) as address:
        stream = await connect(address)
        await stream.write_all([memoryview(said)])
        stream.end()
        try:
            await read_to_end(stream)
        except ConnectionResetError:
            pass  # it did not read what came behind its refusal
        stream.close()
        await still_serves(address)
    assert [record.levelname for record in caplog.records if record.levelno > 20] == ["WARNING"]


async def test_who_connects_and_is_silent_is_sent_away(short_tmp: Path) -> None:
    limits = ServerLimits(login_time=0.05)
    async with serving(somewhere("unix", short_tmp), OFFERS, limits=limits) as address:
        stream = await connect(address)
        assert await read_to_end(stream) == b""
        stream.close()


@pytest.mark.parametrize("where", ["main", "port"])
@pytest.mark.parametrize("how", ["garbage", "half a message", "reset", "oversized"])
async def test_a_client_that_breaks_the_protocol_harms_only_itself(
    short_tmp: Path, where: str, how: str
) -> None:
    async with (
        serving(somewhere("tcp", short_tmp), OFFERS) as address,
        open_session(Target(address)) as session,
    ):
        if where == "main":
            broken = await main(address)
            await broken.receive()
        else:
            broken = await linked(address, LinkRequest(session._id, ChannelType.PORT, 0))
        stream = broken._wire
        assert isinstance(stream, Stream)
        said = {
            "garbage": message(0xBEEF),
            "half a message": message(ChannelType.MAIN, bytes(4))[:-1],
            "oversized": struct.pack("<HI", 1, 2**32 - 1),
            "reset": b"",
        }[how]
        await stream.write_all([memoryview(said)])
        if how == "reset":
            with socket.socket(fileno=stream.reader) as sock:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                sock.detach()
        else:
            stream.end()
            try:
                await read_to_end(stream)
            except ConnectionResetError:
                pass
        broken.abort()
        await still_serves(address)
        assert not session.lost.is_set()


async def test_a_guest_that_fails_is_logged_and_the_endpoint_goes_on(
    short_tmp: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def fail(channel: Channel) -> None:
        raise SpicebridgeError("the guest is ill")

    offers = [*OFFERS, Offer(128, 0, port("x", fail))]
    async with serving(somewhere("unix", short_tmp), offers) as address:
        async with (
            open_session(Target(address)) as session,
            await session.open_channel(ChannelInfo(128, 0)) as channel,
        ):
            assert await channel.read() == b""
        await still_serves(address)
    assert "the guest is ill" in caplog.text
