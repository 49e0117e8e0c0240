"""``mode=listen``: applications that have connected are given the streams of the guest."""

# ruff: noqa: SIM117 - which of them lives inside which is the point

from __future__ import annotations

import logging
import random
from contextlib import AsyncExitStack
from pathlib import Path

import anyio
import pytest

from spicebridge import ListeningEndpoint, TcpAddress, UnixAddress
from spicebridge.bridge import demux as demux_module
from spicebridge.protocol.constants import PortEventType
from tests.bridge.mux_tools import receive_some, stage
from tests.bridge.tools import EventLog, connected, read_all, read_exactly, until
from tests.protocol.frames import frame


def listening(folder: Path) -> ListeningEndpoint:
    path = folder / "s"
    return ListeningEndpoint(f"unixsocket={path}", UnixAddress(str(path)))


async def test_streams_are_given_to_applications_in_the_order_in_which_those_came(
    short_tmp: Path,
) -> None:
    async with stage(short_tmp, end=listening(short_tmp)) as on, AsyncExitStack() as stack:
        apps = [await stack.enter_async_context(connected(short_tmp / "s")) for _ in range(5)]
        for number, app in enumerate(apps):
            await on.guest.send(frame(number, b"you have %d" % number))
            assert await read_exactly(app, 10) == b"you have %d" % number
            await app.send(b"thanks")
            assert await on.guest.until_data(number, 6) == b"thanks"
        for number, app in enumerate(apps):
            await on.guest.send(frame(number))
            assert await read_all(app) == b""
            await app.aclose()
            await on.guest.until_end(number)


async def test_they_may_come_to_a_tcp_port(short_tmp: Path) -> None:
    end = ListeningEndpoint("tcp=127.0.0.1:0", TcpAddress("127.0.0.1", 0))
    async with stage(short_tmp, end=end) as on:
        port = int(end.name.rpartition(":")[2])
        async with await anyio.connect_tcp("127.0.0.1", port) as app:
            await on.guest.send(frame(1, b"hello") + frame(1))
            assert await read_all(app) == b"hello"
            await app.send(b"answer")
            await app.send_eof()
            assert await on.guest.until_end(1) == b"answer"


async def test_a_stream_waits_for_an_application_and_its_data_are_held(
    short_tmp: Path, log: EventLog
) -> None:
    data = random.Random(1).randbytes(300_000)
    frames = b"".join(frame(1, data[at : at + 50_000]) for at in range(0, len(data), 50_000))
    async with stage(short_tmp, end=listening(short_tmp)) as on:
        await on.guest.send(frames + frame(1))
        await log.wait("stream-open")
        async with connected(short_tmp / "s") as app:
            assert await read_all(app) == data
            await app.send(b"answer")
            await app.aclose()
            assert await on.guest.until_end(1) == b"answer"
    assert log.messages(logging.WARNING) == []


async def test_the_streams_that_wait_are_all_served_in_the_end(short_tmp: Path) -> None:
    async with stage(short_tmp, end=listening(short_tmp)) as on, AsyncExitStack() as stack:
        for number in range(10):
            await on.guest.send(frame(number, b"%d" % number))
        apps = [await stack.enter_async_context(connected(short_tmp / "s")) for _ in range(10)]
        got = [await read_exactly(app, 1) for app in apps]
        assert sorted(got) == [b"%d" % number for number in range(10)]
        for app, what in zip(apps, got, strict=True):
            await app.send(what)
        for number in range(10):
            assert await on.guest.until_data(number, 1) == b"%d" % number


async def test_the_stream_that_waits_longest_is_served_first(
    short_tmp: Path, log: EventLog
) -> None:
    async with stage(short_tmp, end=listening(short_tmp)) as on, AsyncExitStack() as stack:
        for number in range(5):
            tasks = len(anyio.get_running_tasks())
            await on.guest.send(frame(number, b"%d" % number))
            await until(lambda: len(anyio.get_running_tasks()) > tasks, "it waits")  # noqa: B023
            await anyio.wait_all_tasks_blocked()
        for number in range(5):
            app = await stack.enter_async_context(connected(short_tmp / "s"))
            assert await read_exactly(app, 1) == b"%d" % number


async def test_an_application_that_went_while_it_waited_is_given_no_stream(
    short_tmp: Path, log: EventLog
) -> None:
    async with stage(short_tmp, end=listening(short_tmp)) as on:
        for _ in range(3):
            async with connected(short_tmp / "s"):
                pass
        async with connected(short_tmp / "s") as app:
            await on.guest.send(frame(1, b"hello"))
            assert await read_exactly(app, 5) == b"hello"
            await app.send(b"answer")
            assert await on.guest.until_data(1, 6) == b"answer"
    assert len(log.find("stream-open")) == 1


async def test_no_more_applications_may_wait_than_there_may_be_streams(
    short_tmp: Path, log: EventLog
) -> None:
    async with (
        stage(short_tmp, end=listening(short_tmp), max_streams=2) as on,
        connected(short_tmp / "s") as first,
        connected(short_tmp / "s") as second,
    ):
        async with connected(short_tmp / "s") as third:
            assert await receive_some(third) == b""
        refused = await log.wait("app-refused")
        assert refused["level"] == "WARNING"
        assert "2 wait for a stream already" in refused["message"]
        await first.aclose()  # its place is free
        async with connected(short_tmp / "s") as third:
            await on.guest.send(frame(1, b"one"))
            assert await read_exactly(second, 3) == b"one"
            await on.guest.send(frame(2, b"two"))
            assert await read_exactly(third, 3) == b"two"
    assert len(log.find("app-refused")) == 1


async def test_a_stream_that_the_port_ended_while_it_waited_takes_no_application(
    short_tmp: Path, log: EventLog
) -> None:
    async with stage(short_tmp, end=listening(short_tmp)) as on:
        await on.guest.send(frame(1, b"too early"))
        await log.wait("stream-open")
        await on.guest.tell_closed()
        ended = await log.wait("stream-end", id=1)
        assert (ended["undelivered"], ended["reason"]) == (9, "the guest closed the port")
        await on.guest.tell(PortEventType.OPENED)
        async with connected(short_tmp / "s") as app:
            await on.guest.send(frame(2, b"in time"))
            assert await read_exactly(app, 7) == b"in time"


async def test_a_stream_that_nobody_takes_is_ended_once_its_buffer_is_full(
    short_tmp: Path, log: EventLog
) -> None:
    async with stage(short_tmp, end=listening(short_tmp), buffer=1000, stall=0.1) as on:
        async with connected(short_tmp / "s") as app:
            await on.guest.send(frame(1, b"x"))
            assert await read_exactly(app, 1) == b"x"
            await on.guest.send(frame(2, bytes(1001)) + frame(1, b"behind it"))
            assert await read_exactly(app, 9) == b"behind it"
        await on.guest.until_end(2)
    assert [each["id"] for each in log.find("stream-stalled")] == [2]


async def test_applications_wait_while_the_channel_is_away(
    short_tmp: Path, log: EventLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demux_module, "_PAUSE", 0.05)
    async with stage(short_tmp, end=listening(short_tmp)) as on:
        async with connected(short_tmp / "s") as app:
            on.guest.leave()
            await on.guest.until_linked(2)
            await on.guest.send(frame(1, b"hello"))
            assert await read_exactly(app, 5) == b"hello"


@pytest.mark.parametrize("how", ["stop", "cancel", "lost"])
async def test_applications_that_wait_are_let_go_at_the_end(short_tmp: Path, how: str) -> None:
    async with stage(short_tmp, end=listening(short_tmp)) as on:
        async with connected(short_tmp / "s") as first, connected(short_tmp / "s") as second:
            await on.guest.send(frame(1, b"hello"))
            assert await read_exactly(first, 5) == b"hello"
            match how:
                case "stop":
                    on.running.stopping.set()
                case "cancel":
                    on.running.cancel_scope.cancel()
                case _:
                    on.server.cancel()
            assert await receive_some(second) == b""
            assert await receive_some(first) == b""
            await first.aclose()
            await on.running.wait()
    assert not (short_tmp / "s").exists()


async def test_a_stream_that_waits_is_ended_by_stop(short_tmp: Path, log: EventLog) -> None:
    async with stage(short_tmp, end=listening(short_tmp)) as on:
        await on.guest.send(frame(1, b"anybody?"))
        await log.wait("stream-open")
        await on.running.stop()
        assert on.running.error is None
        assert on.guest.frames == [(1, b"")]
    assert log.find("stream-end", id=1)[0]["undelivered"] == 8
