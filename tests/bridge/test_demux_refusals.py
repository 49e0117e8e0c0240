"""Streams that cannot be served, and bytes that are no frames."""

from __future__ import annotations

import logging
import random
from pathlib import Path

import anyio
import pytest

from spicebridge import (
    Channel,
    ChannelClosedError,
    PortInit,
    ProtocolError,
    UnixAddress,
)
from spicebridge.protocol.constants import Msg
from spicebridge.protocol.messages import encode_port_init
from spicebridge.server.endpoint import Offer, SpiceEndpoint
from spicebridge.transport.listen import listen
from tests.bridge.mux_tools import WEBDAV, Applications, demux, nothing_left, receive_some, stage
from tests.bridge.tools import (
    USER,
    EventLog,
    bridging,
    connected,
    echo,
    offering,
    read_exactly,
    spec,
    until,
)
from tests.conftest import PATIENCE
from tests.protocol.frames import frame

# Applications that are not there


async def test_a_stream_without_an_application_is_refused_alone(
    short_tmp: Path, log: EventLog
) -> None:
    async with stage(short_tmp) as on:
        app = await on.open(1)
        on.apps.stop()
        await on.guest.send(frame(2, b"anybody?"))
        assert await on.guest.until_end(2) == b""
        refused = await log.wait("stream-refused")
        assert (refused["level"], refused["id"]) == ("WARNING", 2)
        assert "No such file" in refused["message"]
        assert "start the application" in refused["message"]
        await on.guest.send(frame(1, b"you are there"))
        assert await read_exactly(app, 13) == b"you are there"
        await app.send(b"still")
        assert await on.guest.until_data(1, 5) == b"still"
        await on.listen()
        other = await on.open(3)
        await on.guest.send(frame(2, b"late") + frame(2) + frame(2, b"now?"))
        assert await read_exactly(await on.apps.next(), 4) == b"now?"
        await other.send(b"x")
        await on.guest.until_data(3, 1)
        assert on.guest.ends(2) == 1
    ended = log.find("stream-end", id=2)
    assert (ended[0]["up"], ended[0]["down"], ended[0]["undelivered"]) == (0, 0, 8)
    assert len(log.find("stream-refused")) == 1
    assert log.find("stream-dropped")[-1]["dropped"] == 4
    assert not log.find("error")


async def test_an_application_that_was_started_later_is_found(short_tmp: Path) -> None:
    async with stage(short_tmp) as on:
        on.apps.stop()
        for number in range(5):
            await on.guest.send(frame(number, b"x") + frame(number))
            await on.guest.until_end(number)
        await on.listen()
        await on.open(5)
        await on.open(0)


async def test_an_application_that_closes_at_once_ends_its_stream_alone(
    short_tmp: Path, log: EventLog
) -> None:
    async with stage(short_tmp) as on:
        app = await on.open(0)
        for number in range(1, 20):
            await on.guest.send(frame(number, b"x" * 5000))
            await (await on.apps.next()).aclose()
            await on.guest.until_end(number)
            await on.guest.send(frame(number))
        await on.guest.send(frame(0, b"hello"))
        assert await read_exactly(app, 5) == b"hello"
    assert not log.find("error")


# Too many


async def test_more_streams_than_max_streams_are_refused_until_one_ends(
    short_tmp: Path, log: EventLog
) -> None:
    async with stage(short_tmp, max_streams=3) as on:
        apps = [await on.open(number) for number in range(3)]
        await on.guest.send(frame(10, b"one more") + frame(11, b"and more") + frame(0, b"hello"))
        assert await on.guest.until_end(10) == b""
        assert await on.guest.until_end(11) == b""
        assert await read_exactly(apps[0], 5) == b"hello"
        refused = log.find("stream-refused")
        assert [each["id"] for each in refused] == [10, 11]
        assert all("max-streams=3" in each["message"] for each in refused)
        await on.guest.send(frame(10, b"I go on") + frame(10) + frame(11))
        await apps[1].aclose()
        await on.guest.until_end(1)
        await on.guest.send(frame(1))
        await log.wait("stream-end", id=1)
        app = await on.open(10)
        await app.send(b"welcome")
        assert await on.guest.until_data(10, 7) == b"welcome"
        await on.guest.send(frame(12, b"too many again"))
        await on.guest.until_end(12)
        assert on.apps.count == 4
        assert on.status.streams is not None
        assert (on.status.streams.open, on.status.streams.total) == (3, 4)
    assert len(log.find("stream-end")) == 4


async def test_a_refused_stream_costs_the_others_nothing(short_tmp: Path) -> None:
    """A thousand refusals, all answered, while a stream goes on."""
    async with stage(short_tmp, max_streams=1) as on:
        app = await on.open(0)
        for start in range(1, 1001, 100):
            await on.guest.send(
                b"".join(frame(number, b"x") for number in range(start, start + 100))
            )
            await on.guest.send(frame(0, b"hello"))
            assert await read_exactly(app, 5) == b"hello"
        await app.send(b"answer")
        for number in range(1, 1001):
            await on.guest.until_end(number)
        assert await on.guest.until_data(0, 6) == b"answer"
        assert len(on.guest.frames) == 1001


async def test_refusals_that_the_guest_does_not_read_do_not_pile_up_without_bound(
    short_tmp: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Then nothing more is read from it; all is answered in the end."""
    caplog.set_level(logging.ERROR, "spicebridge")
    count = 100_000
    async with stage(short_tmp, max_streams=1) as on, anyio.create_task_group() as tasks:
        await on.open(-1)
        on.guest.pause()
        sent = 0

        async def pour() -> None:
            nonlocal sent
            while sent < count:
                ids = range(sent, sent + 1000)
                await on.guest.send(b"".join(frame(number, b"x") for number in ids))
                sent += 1000

        tasks.start_soon(pour)
        with anyio.move_on_after(0.5):
            await until(lambda: sent == count, "all is taken")
        assert sent < count
        on.guest.resume()
        await until(lambda: len(on.guest.frames) == count, "all is answered")
        assert on.guest.frames == [(number, b"") for number in range(count)]


# No frames


def random_bytes(seed: int) -> bytes:
    return random.Random(seed).randbytes(8 * 1024 * 1024)


GARBAGE = {
    "http": (b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n" * 2000, "text"),
    "text": (b"login: the quick brown fox jumps over the lazy dog\n" * 5000, "text"),
    "zeros": (bytes(1024 * 1024), "zeros"),
    "random-1": (random_bytes(1), "ids and sizes at random"),
    "random-2": (random_bytes(2), "ids and sizes at random"),
    "random-3": (random_bytes(3), "ids and sizes at random"),
}


@pytest.mark.parametrize(("data", "what"), GARBAGE.values(), ids=[*GARBAGE])
async def test_what_is_no_frames_is_told_and_unlinked_before_it_has_opened_many_streams(
    short_tmp: Path, log: EventLog, data: bytes, what: str
) -> None:
    async with stage(short_tmp, buffer=65536, stall=0.2) as on, anyio.create_task_group() as tasks:

        async def pour() -> None:
            try:
                await on.guest.send(data)
            except ChannelClosedError:
                pass  # the client has gone

        tasks.start_soon(pour)
        await on.running.wait()
        error = on.running.error
        assert isinstance(error, ProtocolError)
        text = str(error)
        assert text.startswith("webdav:0: mux frame at byte ")
        assert what in text
        assert "demux=off" in text
        assert "\n" not in text
        assert on.apps.count < 40
        await until(lambda: not on.guest.linked, "it is unlinked")
        tasks.cancel_scope.cancel()
    assert not log.find("frame-cut")
    (told,) = log.find("error")
    assert (told["message"], told["exit_code"]) == (text, 4)
    assert len(log.find("unlinked")) == 1


async def test_garbage_on_one_channel_leaves_the_bridges_of_the_others_up(
    short_tmp: Path, log: EventLog
) -> None:
    async def garbage(channel: Channel) -> None:
        await channel.send_message(Msg.PORT_INIT, encode_port_init(PortInit("", True)))
        await channel.send(b"Hello, world!\n" * 100)
        while await channel.read():
            pass

    address = UnixAddress(str(short_tmp / "spice"))
    offers = [Offer(WEBDAV, 0, garbage), Offer(USER, 0, echo)]
    apps = Applications(short_tmp / "app")
    async with nothing_left(), anyio.create_task_group() as tasks:
        with await listen(address) as listener:
            tasks.start_soon(SpiceEndpoint(offers).serve, listener)
            await tasks.start(apps.run)
            both = demux(short_tmp / "app"), spec(short_tmp / "s")
            async with bridging(address, *both) as running:
                error = await log.wait("error")
                assert error["bridge"] == "app"
                await log.wait("unlinked", bridge="app")
                async with connected(short_tmp / "s") as app:
                    await app.send(b"hello")
                    assert await read_exactly(app, 5) == b"hello"
                    assert not running.ended.is_set()
                await running.stop()
                assert isinstance(running.error, ProtocolError)
            await apps.aclose()
            tasks.cancel_scope.cancel()
    assert apps.count == 0


async def test_applications_of_a_channel_that_turns_to_garbage_see_end_of_file(
    short_tmp: Path, log: EventLog
) -> None:
    async with stage(short_tmp) as on:
        app = await on.open(1)
        await on.guest.send(frame(1, b"last words"))
        assert await read_exactly(app, 10) == b"last words"
        await on.guest.send(bytes(4096))
        assert await receive_some(app) == b""
        await app.aclose()
        await on.running.wait()
        assert isinstance(on.running.error, ProtocolError)
    assert log.find("stream-end", id=1)


@pytest.mark.parametrize("cut", [1, 9, 10, 15], ids=["header-1", "header-9", "no-data", "data"])
async def test_a_frame_that_is_cut_by_the_end_of_the_channel_is_told(
    short_tmp: Path, log: EventLog, cut: int
) -> None:
    async with stage(short_tmp) as on:
        app = await on.open(1)
        await on.guest.send(frame(1, b"0123456789")[:cut])
        if cut > 10:
            assert await read_exactly(app, cut - 10) == b"01234"
        await until(lambda: on.status.traffic.down == 1 + max(0, cut - 10), "it has come")
        on.guest.leave()
        told = await log.wait("frame-cut")
        missing = 20 - cut if cut >= 10 else 10 - cut
        assert (told["level"], told["missing"]) == ("WARNING", missing)
        assert f"{missing} bytes" in told["message"]
        assert await receive_some(app) == b""
        with anyio.fail_after(PATIENCE):
            await on.guest.until_linked(2)
        other = await on.open(1)
        await other.send(b"clean")
        assert await on.guest.until_data(1, 5) == b"clean"


async def test_no_frame_is_cut_where_the_channel_ends_between_two(
    short_tmp: Path, log: EventLog
) -> None:
    async with stage(short_tmp) as on:
        await on.open(1)
        on.guest.leave()
        await log.wait("unlinked")
    assert not log.find("frame-cut")


async def test_demux_on_a_channel_that_carries_raw_bytes_says_what_to_do(
    short_tmp: Path, log: EventLog
) -> None:
    async def login(channel: Channel) -> None:
        await channel.send(b"\r\nDebian GNU/Linux 12 guest ttyS0\r\n\r\nguest login: ")
        await channel.read()

    async with offering(short_tmp, login) as address:
        wanted = demux(short_tmp / "app", kind=USER)
        async with bridging(address, wanted) as running:
            await running.wait()
            assert "demux=off gives its bytes as they are" in str(running.error)
    assert len(log.messages(logging.ERROR)) == 1
