"""What ends all streams at once: the port, the channel, the session, and we ourselves."""

from __future__ import annotations

import logging
import random
from pathlib import Path

import anyio
import pytest

from spicebridge import ChannelBusyError, SessionLostError
from spicebridge.bridge import demux as demux_module
from spicebridge.bridge import streams as streams_module
from spicebridge.bridge.demux import DemuxBridge
from spicebridge.protocol.constants import PortEventType
from tests.bridge.mux_tools import demux, echo, flood, receive_some, stage
from tests.bridge.tools import EventLog, bridging, read_all, read_exactly, until
from tests.protocol.frames import frame

MIB = 1024 * 1024


@pytest.fixture(autouse=True)
def _short_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    """A channel that was closed is linked again soon."""
    monkeypatch.setattr(demux_module, "_PAUSE", 0.05)


# The port


async def test_a_closed_port_ends_all_streams(short_tmp: Path, log: EventLog) -> None:
    async with stage(short_tmp) as on:
        apps = [await on.open(number) for number in range(5)]
        await apps[1].send_eof()
        await on.guest.until_end(1)
        await on.guest.send(frame(2))
        await on.guest.send(frame(3, b"last words"))
        await on.guest.tell_closed()
        assert await read_all(apps[3]) == b"last words"
        for app in apps:
            assert await receive_some(app) == b""
            await app.aclose()
        await log.wait("stream-end", count=5)
        assert on.guest.frames == [(1, b"")]
        assert on.guest.links == 1
    assert all(each["reason"] == "the guest closed the port" for each in log.find("stream-end"))
    assert log.messages(logging.WARNING) == []


async def test_what_an_application_sends_to_a_closed_port_goes_nowhere(
    short_tmp: Path, log: EventLog
) -> None:
    async with stage(short_tmp) as on, anyio.create_task_group() as tasks:
        app = await on.open(1)
        tasks.start_soon(flood, app)
        await on.guest.until_data(1, MIB)
        await on.guest.tell_closed()
        await log.wait("stream-end", id=1)
        await on.guest.tell(PortEventType.OPENED)
        new = await on.open(2)
        await new.send(b"x")
        await on.guest.until_data(2, 1)
        assert on.guest.frames[-1] == (2, b"x")
        assert on.guest.ends(1) == 0
        assert len(on.guest.data(1)) == log.find("stream-end", id=1)[0]["up"]


async def test_what_came_before_the_port_was_closed_is_still_delivered(short_tmp: Path) -> None:
    data = random.Random(1).randbytes(900_000)
    frames = b"".join(frame(1, data[at : at + 50_000]) for at in range(0, len(data), 50_000))
    async with stage(short_tmp) as on:
        await on.guest.send(frames)
        await on.guest.tell_closed()
        await on.guest.tell(PortEventType.OPENED)
        app = await on.apps.next()
        other = await on.open(2)
        await other.aclose()
        assert await read_all(app) == data


@pytest.mark.parametrize("cut", [3, 10, 500], ids=["header", "no-data", "data"])
async def test_a_frame_that_the_closing_of_the_port_cuts_is_told_and_forgotten(
    short_tmp: Path, log: EventLog, cut: int
) -> None:
    async with stage(short_tmp) as on:
        app = await on.open(1)
        whole = frame(1, b"x" * 1000)
        await on.guest.send(whole[:cut])
        await on.guest.tell_closed()
        told = await log.wait("frame-cut")
        assert (told["level"], told["missing"]) == ("WARNING", (10 if cut < 10 else 1010) - cut)
        assert "the guest closed the port" in told["message"]
        assert await read_all(app) == b"x" * max(0, cut - 10)
        await on.guest.tell(PortEventType.OPENED)
        await on.guest.send(frame(1, b"clean"))
        new = await on.apps.next()
        assert await read_exactly(new, 5) == b"clean"
        await new.send(b"answer")
        assert await on.guest.until_data(1, 6) == b"answer"
    assert len(log.find("frame-cut")) == 1


async def test_ids_that_we_had_ended_are_free_after_the_port_was_closed(
    short_tmp: Path, log: EventLog
) -> None:
    async with stage(short_tmp) as on:
        for count in range(1, 4):
            app = await on.open(7)
            await app.aclose()
            await on.guest.until_end(7, count)
            await log.wait("stream-end", count=count, id=7)
            await on.guest.send(frame(7, b"late"))
            await on.guest.tell_closed()
            await on.guest.tell(PortEventType.OPENED)
    assert on.apps.count == 3


async def test_what_is_dropped_after_the_port_was_opened_again_is_told(
    short_tmp: Path, log: EventLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The closing tells of all that was not told of before, and does not end the telling."""
    monkeypatch.setattr(streams_module, "_COUNT_EVERY", 1000.0)
    async with stage(short_tmp) as on:
        app = await on.open(7)
        await app.aclose()
        await on.guest.until_end(7)
        await log.wait("stream-end", id=7)
        await on.guest.send(frame(7, b"late"))
        await log.wait("stream-dropped", frames=1)
        await on.guest.send(frame(7, b"later"))
        await on.guest.tell_closed()
        await log.wait("stream-dropped", frames=2, dropped=9)
        monkeypatch.setattr(streams_module, "_COUNT_EVERY", 0.0)
        await on.guest.tell(PortEventType.OPENED)
        app = await on.open(7)
        await app.aclose()
        await on.guest.until_end(7, 2)
        await log.wait("stream-end", count=2, id=7)
        await on.guest.send(frame(7, b"again"))
        await log.wait("stream-dropped", frames=3, dropped=14)


async def test_streams_of_a_closed_port_do_not_count_against_those_of_the_next(
    short_tmp: Path, log: EventLog
) -> None:
    """Their applications may take their time."""
    async with stage(short_tmp, max_streams=2) as on:
        for _ in range(3):
            for number in range(2):
                await on.open(number)
            await on.guest.tell_closed()
            await on.guest.tell(PortEventType.OPENED)
    assert not log.find("stream-refused")


async def test_a_break_is_nothing_to_streams(short_tmp: Path) -> None:
    async with stage(short_tmp) as on:
        app = await on.open(1)
        await on.guest.tell(PortEventType.BREAK)
        await on.guest.send(frame(1, b"x"))
        assert await read_exactly(app, 1) == b"x"


# The channel


async def test_a_channel_that_the_server_closes_ends_all_streams_and_is_linked_again(
    short_tmp: Path, log: EventLog
) -> None:
    async with stage(short_tmp) as on:
        for count in range(1, 4):
            apps = [await on.open(number) for number in range(3)]
            await on.guest.send(frame(2, b"last words"))
            assert await read_exactly(apps[2], 10) == b"last words"
            on.guest.leave()
            for app in apps:
                assert await read_all(app) == b""
                await app.aclose()
            await log.wait("unlinked", count=count)
            await log.wait("linked", count=count + 1)
            await on.guest.until_linked(count + 1)
        app = await on.open(1)
        await app.send(b"answer")
        assert await on.guest.until_data(1, 6) == b"answer"
        assert on.running.error is None
        assert on.status.streams is not None
        assert (on.status.streams.open, on.status.streams.total) == (1, 10)


async def test_slow_applications_of_a_closed_channel_get_all_while_it_is_linked_again(
    short_tmp: Path,
) -> None:
    data = random.Random(2).randbytes(900_000)
    frames = b"".join(frame(1, data[at : at + 50_000]) for at in range(0, len(data), 50_000))
    async with stage(short_tmp) as on:
        await on.guest.send(frames)
        old = await on.apps.next()
        await until(lambda: on.status.traffic.down > 100_000, "it is on its way")
        on.guest.leave()
        await on.guest.until_linked(2)
        new = await on.open(1)
        await new.send(b"new")
        assert await on.guest.until_data(1, 3) == b"new"
        await old.send(b"nobody is there any more")
        assert await read_all(old) == data
        await old.aclose()
        assert on.guest.data(1) == b"new"


async def test_a_channel_that_another_client_takes_meanwhile_is_waited_for(
    short_tmp: Path, log: EventLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = anyio.Event()
    pause = DemuxBridge._pause

    async def until_taken(bridge: DemuxBridge) -> None:
        await taken.wait()
        await pause(bridge)

    monkeypatch.setattr(DemuxBridge, "_pause", until_taken)
    async with stage(short_tmp) as on:
        await on.open(1)
        on.guest.leave()
        await log.wait("unlinked")
        wanted = demux(short_tmp / "app", name="other")
        async with bridging(on.address, wanted) as other:
            await log.wait("linked", bridge="other")
            taken.set()
            await until(
                lambda: [each for each in log.messages(logging.WARNING) if "in use" in each],
                "it is told that the channel is busy",
            )
            await other.stop()
        await log.wait("linked", bridge="app", count=2)
        await on.guest.until_linked(3)
        await on.open(1)
        assert on.running.error is None


async def test_a_channel_that_another_client_has_from_the_start_is_an_error(
    short_tmp: Path,
) -> None:
    async with stage(short_tmp) as on:
        async with bridging(on.address, demux(short_tmp / "app")) as other:
            await other.wait()
            assert isinstance(other.error, ChannelBusyError)
        await on.open(1)


async def test_a_link_that_breaks_ends_all_streams(short_tmp: Path, log: EventLog) -> None:
    """With bytes of ours unread, which the kernel tells as a reset."""
    async with stage(short_tmp) as on:
        app, other = await on.open(1), await on.open(2)
        on.guest.pause()
        await app.send(b"the last that it reads")
        await on.guest.until_data(1, 22)
        await app.send(b"unread")
        await until(lambda: on.status.traffic.up == 28, "it has gone")
        on.guest.channel.abort()
        for each in (app, other):
            assert await receive_some(each) == b""
            await each.aclose()
        on.guest.leave()
        on.guest.resume()
        await on.guest.until_linked(2)
        new = await on.open(1)
        await new.send(b"clean")
        assert await on.guest.until_data(1, 5) == b"clean"
    ended = log.find("stream-end")[:2]
    assert all("webdav:0 broke" in each["reason"] for each in ended)


# The session


async def test_a_lost_session_ends_all_streams_with_what_had_come(
    short_tmp: Path, log: EventLog
) -> None:
    async with stage(short_tmp) as on:
        apps = [await on.open(number) for number in range(3)]
        await on.guest.send(frame(1, b"last words") + frame(2, b"cut off")[:12])
        await until(lambda: on.status.traffic.down == 15, "it has come")
        on.server.cancel()
        for app, wanted in zip(apps, [b"", b"last words", b"cu"], strict=True):
            assert await read_all(app) == wanted
            await app.aclose()
        await on.running.wait()
        assert isinstance(on.running.error, SessionLostError)
    assert len(log.find("stream-end")) == 3
    assert log.find("frame-cut")[0]["missing"] == 5


# We ourselves


async def test_stop_sends_what_applications_have_written_and_an_end_for_each(
    short_tmp: Path, log: EventLog
) -> None:
    data = random.Random(3).randbytes(100_000)
    async with stage(short_tmp) as on:
        apps = [await on.open(number) for number in range(5)]
        await apps[3].send_eof()
        await on.guest.until_end(3)
        for number in (0, 1, 2):
            await apps[number].send(data)
        await on.guest.send(frame(4, b"the last frame"))
        assert await read_exactly(apps[4], 14) == b"the last frame"
        on.running.stopping.set()
        for app in apps:
            assert await read_all(app) == b""
            await app.aclose()
        await on.running.wait()
        assert on.running.error is None
        for number in range(5):
            assert on.guest.ends(number) == 1
            assert on.guest.data(number) == (data if number < 3 else b"")
        assert on.guest.rest == b""
    assert log.messages(logging.WARNING) == []
    assert len(log.find("stream-end")) == 5


async def test_what_the_guest_sends_until_it_sees_the_end_is_still_delivered(
    short_tmp: Path,
) -> None:
    async with stage(short_tmp) as on:
        app = await on.open(1)
        on.running.stopping.set()
        await on.guest.until_end(1)
        await on.guest.send(frame(1, b"I had not seen it") + frame(9, b"too late for a new one"))
        assert await read_all(app) == b"I had not seen it"
        await app.aclose()
        await on.running.wait()
        assert on.apps.count == 1
        assert on.guest.ends(9) == 1


async def test_stop_without_streams_ends_at_once(short_tmp: Path, log: EventLog) -> None:
    async with stage(short_tmp) as on:
        await on.running.stop()
        assert on.running.error is None
        assert on.guest.frames == []
    assert log.messages(logging.WARNING) == []


async def test_stop_while_the_channel_is_away_ends(
    short_tmp: Path, log: EventLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demux_module, "_PAUSE", 1000.0)
    async with stage(short_tmp) as on:
        on.guest.leave()
        await log.wait("unlinked")
        await on.running.stop()
        assert on.running.error is None


async def test_stop_does_not_wait_for_an_application_that_takes_nothing(
    short_tmp: Path, log: EventLog
) -> None:
    async with stage(short_tmp, stall=0.3) as on:
        app = await on.open(1)
        await on.guest.send(frame(1, bytes(50_000)) * 15)
        await until(lambda: on.status.traffic.down > 100_000, "it is on its way")
        await on.running.stop()
        assert on.running.error is None
        assert set(await read_all(app)) == {0}
    (ended,) = log.find("stream-end")
    assert ended["down"] + ended["undelivered"] == 750_001
    assert ended["undelivered"] > 0


async def test_stop_does_not_wait_for_a_guest_that_does_not_close(
    short_tmp: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streams_module, "CLOSE_TIMEOUT", 0.1)
    monkeypatch.setattr("spicebridge.channel.channel.CLOSE_TIMEOUT", 0.1)
    async with stage(short_tmp) as on:
        app = await on.open(1)
        on.guest.pause()
        on.running.stopping.set()
        assert await receive_some(app) == b""
        await app.aclose()
        await on.running.wait()
        assert on.running.error is None
        on.guest.leave()


async def test_many_streams_are_drained_at_once(short_tmp: Path, log: EventLog) -> None:
    async with stage(short_tmp, application=echo) as on:
        await on.guest.send(b"".join(frame(n, b"hello %d" % n) for n in range(200)))
        for number in range(200):
            await on.guest.until_data(number, 7)
        await on.running.stop()
        for number in range(200):
            assert on.guest.frames.count((number, b"")) == 1
            assert on.guest.data(number) == b"hello %d" % number
    assert len(log.find("stream-end")) == 200
