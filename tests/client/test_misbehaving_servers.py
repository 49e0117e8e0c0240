"""Servers that are none, or break off, or break the protocol: each gets its own error."""

from __future__ import annotations

import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import anyio.lowlevel
import pytest

from spicebridge.channel import ChannelClosedError
from spicebridge.client.session import ChannelInfo, open_session
from spicebridge.errors import (
    ChannelBusyError,
    ChannelNotFoundError,
    ConnectError,
    LoginError,
    ProtocolError,
    SessionLostError,
    SpicebridgeError,
)
from spicebridge.protocol.constants import Msg
from spicebridge.protocol.dialogue import Exchange
from spicebridge.protocol.events import ChannelsList, MainInit
from spicebridge.protocol.messages import encode_channels_list
from spicebridge.protocol.messages import encode_main_init as main_init
from spicebridge.transport.address import Address
from spicebridge.transport.listen import listen
from spicebridge.transport.stream import Stream
from spicebridge.transport.target import Target
from tests.conftest import PATIENCE
from tests.protocol.wire import message, serve
from tests.server.serving import make_impatient, somewhere
from tests.transport.pairs import read_exactly, read_to_end, settled, until

Script = Callable[[Stream], Awaitable[None]]

PORT0 = ChannelInfo(10, 0)
MAIN_INIT = message(Msg.MAIN_INIT, main_init(MainInit(7)))
CHANNELS = message(Msg.MAIN_CHANNELS_LIST, encode_channels_list(ChannelsList(((10, 0), (9, 0)))))
ATTACH = message(104)


@pytest.fixture
def anyio_backend() -> str:
    """The errors are the same on both: one is enough here."""
    return "asyncio"


@asynccontextmanager
async def server(folder: Path, *scripts: Script, kind: str = "unix") -> AsyncIterator[Address]:
    """Plays one script for each connection, in turn, the last one for all that follow."""

    async def play(script: Script, stream: Stream) -> None:
        try:
            await script(stream)
        finally:
            stream.close()

    with anyio.fail_after(PATIENCE), await listen(somewhere(kind, folder)) as listener:

        async def accept() -> None:
            number = 0
            while True:
                stream, _ = await listener.accept()
                tasks.start_soon(play, scripts[min(number, len(scripts) - 1)], stream)
                number += 1

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(accept)
            yield listener.address
            tasks.cancel_scope.cancel()


async def links(stream: Stream) -> None:
    """Links whoever comes, as a real server does."""
    exchange = Exchange(serve())
    while not exchange.done:
        exchange.receive_data(await read_exactly(stream, exchange.needed))
        await says(stream, exchange.data_to_send())


async def says(stream: Stream, data: bytes) -> None:
    await stream.write_all([memoryview(data)])


def main_that(first: bytes, second: bytes = b"", *, stays: bool = True) -> Script:
    """A main channel that says something, and something more to ATTACH_CHANNELS."""

    async def script(stream: Stream) -> None:
        await links(stream)
        await says(stream, first)
        if second:
            assert await read_exactly(stream, len(ATTACH)) == ATTACH
            await says(stream, second)
        if stays:
            await read_to_end(stream)

    return script


good_main = main_that(MAIN_INIT, CHANNELS)


async def hears_a_link(stream: Stream) -> bytes:
    """Reads the link message; returns the reply to it."""
    exchange = Exchange(serve())
    exchange.receive_data(await read_exactly(stream, 16))
    exchange.receive_data(await read_exactly(stream, exchange.needed))
    return exchange.data_to_send()


async def closes(stream: Stream) -> None:
    """Not a word, as libspice-server to a channel that it does not have."""
    await hears_a_link(stream)


async def resets(stream: Stream) -> None:
    """Not a word either, and what came is not even read."""
    await stream.readable()


async def says_http(stream: Stream) -> None:
    await read_exactly(stream, 16)
    await says(stream, b"HTTP/1.1 400 Bad Request\r\n\r\n")
    await read_to_end(stream)


async def is_silent(stream: Stream) -> None:
    await read_to_end(stream)


async def links_and_closes(stream: Stream) -> None:
    await links(stream)


async def links_and_is_silent(stream: Stream) -> None:
    await links(stream)
    await read_to_end(stream)


async def closes_with_something_unread(stream: Stream) -> None:
    await links(stream)
    await says(stream, MAIN_INIT)
    await stream.readable()


async def cuts_the_reply(stream: Stream) -> None:
    await says(stream, (await hears_a_link(stream))[:100])


async def refuses_with(stream: Stream) -> None:
    await read_exactly(stream, 16)
    await says(stream, b"REDQ" + struct.pack("<IIII", 2, 2, 4, 7))
    await read_to_end(stream)


@pytest.mark.parametrize(
    ("script", "kind", "said"),
    [
        (closes, ProtocolError, "closed connection"),
        (resets, ConnectError, "linking main:0 at .*: Connection reset by peer"),
        (says_http, ProtocolError, r"expected b'REDQ', got b'HTTP'"),
        (is_silent, ConnectError, "linking main:0 at .*no answer within"),
        (cuts_the_reply, ProtocolError, "closed connection"),
        (refuses_with, LoginError, "permission denied"),
        (links_and_closes, SessionLostError, "ended the session"),
        (closes_with_something_unread, SessionLostError, "ended the session: Connection reset"),
        (links_and_is_silent, ConnectError, "opening a session at .*no answer within"),
        (main_that(message(103, bytes(31))), ProtocolError, "MAIN_INIT .*31"),
        (main_that(message(0xBEEF)), ProtocolError, "a message type of this channel"),
        (main_that(struct.pack("<HI", 113, 2**32 - 1)), ProtocolError, "MAIN_NAME"),
        (main_that(MAIN_INIT[:20], stays=False), ChannelClosedError, "end of the stream"),
        (main_that(message(103, bytes(32))), ConnectError, "opening a session"),
        (main_that(MAIN_INIT), ConnectError, "opening a session"),
        (main_that(MAIN_INIT, message(104, b"\5\0\0\0")), ProtocolError, "MAIN_CHANNELS_LIST"),
        (main_that(MAIN_INIT, message(104, bytes(4))), ChannelNotFoundError, "offers no channels"),
        (main_that(MAIN_INIT, message(105), stays=False), SessionLostError, "ended the session"),
    ],
    ids=[
        "closes",
        "resets",
        "HTTP",
        "silent",
        "half a reply",
        "refuses",
        "closes after the link",
        "closes with something unread",
        "silent after the link",
        "short MAIN_INIT",
        "unknown message",
        "oversized message",
        "half a MAIN_INIT",
        "session 0",
        "no list",
        "malformed list",
        "empty list",
        "closes instead of a list",
    ],
)
async def test_a_session_that_cannot_begin(
    short_tmp: Path,
    monkeypatch: pytest.MonkeyPatch,
    script: Script,
    kind: type[SpicebridgeError],
    said: str,
) -> None:
    make_impatient(monkeypatch)
    async with server(short_tmp, script) as address:
        with pytest.raises(kind, match=said) as caught:
            async with open_session(Target(address)):
                pytest.fail("it has begun")
        assert type(caught.value) is kind
        assert str(address) in str(caught.value), "it does not say which server"
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("said", "kind"),
    [
        (message(0xBEEF), ProtocolError),
        (struct.pack("<HI", 104, 2**32 - 1), ProtocolError),
        (b"", SessionLostError),
        (b"\1\2\3", SessionLostError),
    ],
    ids=["unknown message", "oversized message", "end", "half a header"],
)
async def test_a_session_that_breaks_later_is_lost_and_says_how(
    short_tmp: Path, said: bytes, kind: type[SpicebridgeError]
) -> None:
    go = anyio.Event()

    async def script(stream: Stream) -> None:
        await main_that(MAIN_INIT, CHANNELS, stays=False)(stream)
        await go.wait()
        await says(stream, said)

    async with server(short_tmp, script) as address, open_session(Target(address)) as session:
        assert not session.lost.is_set()
        go.set()
        await session.lost.wait()
        assert type(session.failure) is kind


async def test_a_main_channel_that_resets_is_a_lost_session(short_tmp: Path) -> None:
    """Also while answers to its pings wait, which nobody will read any more."""
    go = anyio.Event()

    async def script(stream: Stream) -> None:
        await main_that(MAIN_INIT, CHANNELS, stays=False)(stream)
        await says(stream, message(Msg.PING, bytes(12)) * 20_000)
        await go.wait()

    async with (
        server(short_tmp, script, kind="tcp") as address,
        open_session(Target(address)) as session,
    ):
        await anyio.lowlevel.checkpoint()
        go.set()
        await session.lost.wait()
        assert isinstance(session.failure, SessionLostError)


async def test_what_the_server_has_to_say_is_logged(
    short_tmp: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def notify(severity: int, text: bytes) -> bytes:
        return message(Msg.NOTIFY, struct.pack("<QIIII", 0, severity, 0, 0, len(text)) + text)

    words = notify(0, b"welcome") + notify(1, b"\x1b[31mbeware\nof") + message(6, bytes(12))
    caplog.set_level("INFO")
    async with (
        server(short_tmp, main_that(MAIN_INIT, CHANNELS + words, stays=False)) as address,
        open_session(Target(address)) as session,
    ):
        await session.lost.wait()
    said = [(record.levelname, record.getMessage()) for record in caplog.records]
    assert ("INFO", "the server says: 'welcome'") in said
    assert ("WARNING", r"the server says: '\x1b[31mbeware\nof'") in said
    assert any("Disconnecting" in text for _, text in said)


# Channels


@pytest.mark.parametrize("info", [PORT0, ChannelInfo(9, 0)], ids=["port", "usbredir"])
async def test_a_link_that_ends_right_after_its_result_is_a_busy_channel(
    short_tmp: Path, monkeypatch: pytest.MonkeyPatch, info: ChannelInfo
) -> None:
    """So does libspice-server say it (PEERS.md)."""
    monkeypatch.setattr("spicebridge.client.session.BUSY_TIMEOUT", 0.1)
    async with (
        server(short_tmp, good_main, links_and_closes) as address,
        open_session(Target(address)) as session,
    ):
        with pytest.raises(ChannelBusyError):
            await session.open_channel(info)


async def test_a_channel_whose_link_is_not_answered_is_not_called_busy(
    short_tmp: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_impatient(monkeypatch, 0.3)
    monkeypatch.setattr("spicebridge.client.session.BUSY_TIMEOUT", 0.05)
    async with (
        server(short_tmp, good_main, is_silent) as address,
        open_session(Target(address)) as session,
    ):
        with pytest.raises(ConnectError, match="no answer"):
            await session.open_channel(PORT0)


async def test_a_channel_that_says_nothing_at_its_start_is_linked(
    short_tmp: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("spicebridge.client.session._QUIET_CHANNEL", 0.05)
    async with (
        server(short_tmp, good_main, links_and_is_silent) as address,
        open_session(Target(address)) as session,
        await session.open_channel(ChannelInfo(9, 0)) as channel,
    ):
        assert channel.port is None
        assert channel.usable


async def test_a_channel_that_breaks_the_protocol_says_so_with_the_server(short_tmp: Path) -> None:
    async def script(stream: Stream) -> None:
        await links(stream)
        await says(stream, message(0xBEEF))
        await read_to_end(stream)

    async with (
        server(short_tmp, good_main, script) as address,
        open_session(Target(address)) as session,
    ):
        with pytest.raises(ProtocolError, match="a message type of this channel") as caught:
            await session.open_channel(PORT0)
    assert str(address) in str(caught.value)


async def test_a_channel_that_is_refused_says_so(short_tmp: Path) -> None:
    async with (
        server(short_tmp, good_main, refuses_with) as address,
        open_session(Target(address)) as session,
    ):
        with pytest.raises(LoginError):
            await session.open_channel(PORT0)


# Giving up


@pytest.mark.parametrize("script", [is_silent, links_and_is_silent], ids=["link", "first message"])
async def test_giving_up_on_a_session_leaves_nothing_open(short_tmp: Path, script: Script) -> None:
    accepted: list[Stream] = []

    async def noted(stream: Stream) -> None:
        accepted.append(stream)
        await script(stream)

    async def begin() -> None:
        async with open_session(Target(address)):
            pytest.fail("it has begun")

    async with server(short_tmp, noted) as address, anyio.create_task_group() as tasks:
        tasks.start_soon(begin)
        await until(lambda: accepted)
        await settled()
        tasks.cancel_scope.cancel()
        with anyio.CancelScope(shield=True):
            await until(lambda: accepted[0]._closed)  # it has read the end of the connection


async def test_giving_up_on_a_channel_whose_link_is_not_answered_leaves_nothing_open(
    short_tmp: Path,
) -> None:
    accepted: list[Stream] = []

    async def noted(stream: Stream) -> None:
        accepted.append(stream)
        await is_silent(stream)

    async with (
        server(short_tmp, good_main, noted) as address,
        open_session(Target(address)) as session,
        anyio.create_task_group() as tasks,
    ):
        tasks.start_soon(session.open_channel, PORT0)
        await until(lambda: accepted)
        await settled()
        tasks.cancel_scope.cancel()
        with anyio.CancelScope(shield=True):
            await until(lambda: accepted[0]._closed)
