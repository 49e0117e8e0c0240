"""A demultiplexed bridge: streams that open, carry bytes both ways, and end."""

# ruff: noqa: SIM117 - which of them lives inside which is the point

from __future__ import annotations

import hashlib
import logging
import random
from pathlib import Path

import anyio
import pytest
from anyio.abc import SocketStream

from spicebridge import ConnectingEndpoint, TcpAddress
from tests.bridge.mux_tools import WEBDAV, MuxGuest, demux, echo, receive_some, serve, stage
from tests.bridge.tools import (
    USER,
    EventLog,
    bridging,
    offering,
    read_all,
    read_exactly,
    until,
)
from tests.conftest import PATIENCE
from tests.protocol.frames import frame

MIB = 1024 * 1024

# Opening


@pytest.mark.parametrize("kind", [WEBDAV, USER], ids=["webdav", "user"])
async def test_a_new_id_opens_one_connection(short_tmp: Path, log: EventLog, kind: int) -> None:
    async with stage(short_tmp, kind=kind) as on:
        await on.guest.send(frame(5, b"hel"))
        app = await on.apps.next()
        assert await read_exactly(app, 3) == b"hel"
        await on.guest.send(frame(5, b"lo"))
        assert await read_exactly(app, 2) == b"lo"
        await app.send(b"you are there")
        assert await on.guest.until_data(5, 13) == b"you are there"
        assert on.apps.count == 1
        assert on.guest.frames == [(5, b"you are there")]
    (opened,) = log.find("stream-open")
    assert opened["id"] == 5


async def test_without_a_stream_there_is_no_connection(short_tmp: Path, log: EventLog) -> None:
    async with stage(short_tmp) as on:
        await on.running.stop()
        assert on.apps.count == 0
    assert len(log.find("linked")) == len(log.find("unlinked")) == 1


@pytest.mark.parametrize("number", [0, -1, 1, -(2**63), 2**63 - 1, -(2**32), 2**32])
async def test_any_int64_is_an_id(short_tmp: Path, number: int) -> None:
    async with stage(short_tmp) as on:
        app = await on.open(number)
        await app.send(b"answer")
        await app.aclose()
        assert await on.guest.until_end(number) == b"answer"


async def test_applications_may_be_at_a_tcp_port(short_tmp: Path) -> None:
    data = random.Random(1).randbytes(MIB)

    async def application(app: SocketStream) -> None:
        async with app:
            assert await read_all(app) == b"get"
            await app.send(data)

    async with await anyio.create_tcp_listener(local_host="127.0.0.1") as listener:
        port: int = listener.extra(anyio.abc.SocketAttribute.local_port)
        end = ConnectingEndpoint(f"tcp=127.0.0.1:{port}", TcpAddress("127.0.0.1", port))
        async with stage(short_tmp, end=end) as on, anyio.create_task_group() as tasks:
            tasks.start_soon(listener.serve, application)
            await on.guest.send(frame(1, b"get") + frame(1))
            assert await on.guest.until_end(1) == data
            tasks.cancel_scope.cancel()


# Many at once


@pytest.mark.parametrize("seed", range(3))
async def test_frames_of_many_streams_cut_anywhere_reach_each_its_own(
    short_tmp: Path, seed: int
) -> None:
    """Each application gives back what it gets, so that both directions are compared."""
    dice = random.Random(seed)
    ids = [dice.randrange(-(2**63), 2**63) for _ in range(20)]
    wanted = dict.fromkeys(ids, b"")
    sent = b""
    for _ in range(300):
        number = dice.choice(ids)
        data = dice.randbytes(1 + int(dice.paretovariate(0.6)) % 20_000)
        wanted[number] += data
        sent += frame(number, data)
    for number in ids:
        sent += frame(number)
    cuts = [dice.randrange(len(sent)) for _ in range(100)]
    cuts += range(1000, 1050)  # DATA of one byte each
    async with stage(short_tmp, application=echo) as on:
        await on.guest.send(sent, cuts)
        for number in ids:
            await on.guest.until_end(number)
        assert {number: on.guest.data(number) for number in ids} == wanted
        assert all(on.guest.ends(number) == 1 for number in ids)
        assert on.status.streams is not None
        assert on.status.streams.total == sum(1 for data in wanted.values() if data)


async def test_bytes_go_both_ways_at_once_and_arrive_as_they_were(short_tmp: Path) -> None:
    size, ids = 3 * MIB, (3, -4, 5, 6)
    up = {number: random.Random(number).randbytes(size) for number in ids}
    down = {number: random.Random(number + 100).randbytes(size) for number in ids}
    got: dict[int, str] = {}

    async def application(app: SocketStream) -> None:
        number = int.from_bytes(await read_exactly(app, 8), "little", signed=True)
        digest = hashlib.sha256()

        async def listen() -> None:
            async for piece in app:
                digest.update(piece)
            got[number] = digest.hexdigest()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(listen)
            await app.send(up[number])
            await app.send_eof()

    async with stage(short_tmp, application=application) as on:
        for number in ids:
            await on.guest.send(frame(number, number.to_bytes(8, "little", signed=True)))
        for start in range(0, size, 50_000):
            for number in ids:
                await on.guest.send(frame(number, down[number][start : start + 50_000]))
        for number in ids:
            await on.guest.send(frame(number))
        for number in ids:
            await on.guest.until_end(number)
            assert on.guest.data(number) == up[number]
        await until(lambda: len(got) == len(ids), "all have read all")
        traffic = on.status.traffic
        assert (traffic.up, traffic.down) == (len(ids) * size, len(ids) * (size + 8))
    assert got == {number: hashlib.sha256(down[number]).hexdigest() for number in ids}


async def test_the_largest_frames_go_both_ways(short_tmp: Path) -> None:
    data = random.Random(2).randbytes(20 * 0xFFFF)
    async with stage(short_tmp) as on:
        app = await on.open(1)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(app.send, data)
            await on.guest.until_data(1, len(data))
        assert on.guest.data(1) == data
        assert all(len(piece) <= 0xFFFF for _, piece in on.guest.frames)
        frames = b"".join(
            frame(1, data[start : start + 0xFFFF]) for start in range(0, len(data), 0xFFFF)
        )
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(on.guest.send, frames)
            assert await read_exactly(app, len(data)) == data


# Ending


async def test_size_0_of_the_guest_is_end_of_file_and_the_last_answer_still_goes_back(
    short_tmp: Path, log: EventLog
) -> None:
    answer = random.Random(3).randbytes(MIB)
    async with stage(short_tmp) as on:
        await on.guest.send(frame(1, b"question") + frame(1))
        app = await on.apps.next()
        assert await read_all(app) == b"question"
        for start in range(0, MIB, MIB // 4):
            await app.send(answer[start : start + MIB // 4])
            await on.guest.until_data(1, start + MIB // 4)
        assert on.guest.ends(1) == 0
        await app.aclose()
        assert await on.guest.until_end(1) == answer
        ended = await log.wait("stream-end", id=1)
        assert (ended["up"], ended["down"], ended["reason"]) == (MIB, 8, "")
        other = await on.open(2)
        await other.aclose()
        await on.guest.until_end(2)
        assert on.guest.ends(1) == 1


async def test_the_guest_still_reaches_an_application_that_has_ended_its_sending(
    short_tmp: Path, log: EventLog
) -> None:
    data = random.Random(4).randbytes(MIB)
    async with stage(short_tmp) as on:
        app = await on.open(1)
        await app.send(b"that is all")
        await app.send_eof()
        assert await on.guest.until_end(1) == b"that is all"
        for start in range(0, MIB, MIB // 4):
            await on.guest.send(
                b"".join(
                    frame(1, data[at : at + 32768]) for at in range(start, start + MIB // 4, 32768)
                )
            )
            assert await read_exactly(app, MIB // 4) == data[start : start + MIB // 4]
        await on.guest.send(frame(1))
        assert await read_all(app) == b""
        await log.wait("stream-end", id=1)
        assert on.guest.ends(1) == 1
    assert not log.find("stream-dropped")


async def test_all_that_an_application_wrote_before_it_closed_in_haste_arrives(
    short_tmp: Path,
) -> None:
    data = random.Random(5).randbytes(2 * MIB)
    async with stage(short_tmp) as on:
        app = await on.open(1)

        async def write_and_go() -> None:
            await app.send(data)
            await app.aclose()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(write_and_go)
            assert await on.guest.until_end(1) == data


async def test_all_that_the_guest_sent_before_it_ended_the_stream_arrives(short_tmp: Path) -> None:
    data = random.Random(6).randbytes(2 * MIB)
    frames = b"".join(frame(1, data[at : at + 60_000]) for at in range(0, len(data), 60_000))
    async with stage(short_tmp) as on, anyio.create_task_group() as tasks:
        tasks.start_soon(on.guest.send, frames + frame(1))
        app = await on.apps.next()
        got = b""
        while piece := await receive_some(app, 10_000):
            got += piece
        assert got == data


async def test_a_connection_that_said_nothing_is_no_stream(short_tmp: Path, log: EventLog) -> None:
    """spice-webdavd ends those with an id that nobody has seen."""
    async with stage(short_tmp) as on:
        await on.guest.send(frame(7) + frame(8) + frame(0))
        app = await on.open(9)
        await app.send(b"x")
        await on.guest.until_data(9, 1)
        assert on.guest.frames == [(9, b"x")]
        assert on.apps.count == 1
    assert log.messages(logging.WARNING) == []


async def test_what_is_for_an_application_that_has_gone_is_dropped_and_counted(
    short_tmp: Path, log: EventLog
) -> None:
    async with stage(short_tmp) as on:
        app, other = await on.open(1), await on.open(2)
        await app.send(b"bye")
        await app.aclose()
        assert await on.guest.until_end(1) == b"bye"
        await log.wait("stream-end", id=1)
        await on.guest.send(frame(1, b"x" * 700) + frame(2, b"for the other") + frame(1, b"y"))
        assert await read_exactly(other, 13) == b"for the other"
        dropped = await log.wait("stream-dropped")
        assert (dropped["level"], dropped["frames"], dropped["dropped"]) == ("WARNING", 2, 701)
        await on.guest.send(frame(1, b"z" * 9))
        await on.guest.tell_closed()
        dropped = await log.wait("stream-dropped", count=2)
        assert (dropped["frames"], dropped["dropped"]) == (3, 710)
        assert on.apps.count == 2
        assert on.guest.ends(1) == 1


async def test_size_0_frees_the_id_of_an_application_that_has_gone(
    short_tmp: Path, log: EventLog
) -> None:
    async with stage(short_tmp) as on:
        app = await on.open(1)
        await app.aclose()
        await on.guest.until_end(1)
        await log.wait("stream-end", id=1)
        await on.guest.send(frame(1, b"too late") + frame(1) + frame(1, b"new"))
        app = await on.apps.next()
        assert await read_exactly(app, 3) == b"new"
        await app.send(b"answer")
        assert await on.guest.until_data(1, 6) == b"answer"
    assert log.find("stream-dropped")[0]["dropped"] == 8


async def test_an_application_that_goes_with_data_unread_ends_its_stream_alone(
    short_tmp: Path, log: EventLog
) -> None:
    async with stage(short_tmp) as on:
        app, other = await on.open(1), await on.open(2)
        await on.guest.send(frame(1, b"never read"))
        await until(lambda: on.status.traffic.down == 12, "it has got it")
        await app.aclose()  # the kernel tells us with ECONNRESET
        await on.guest.until_end(1)
        await log.wait("stream-end", id=1)
        await other.send(b"still here")
        assert await on.guest.until_data(2, 10) == b"still here"
    assert not log.find("error")


async def test_the_last_words_of_an_application_that_goes_with_data_unread_arrive(
    short_tmp: Path, log: EventLog
) -> None:
    """The kernel gives us what it wrote, and right behind it the reset."""
    async with stage(short_tmp) as on:
        for number in range(1, 21):
            app = await on.open(number)
            await on.guest.send(frame(number, b"never read"))
            await until(lambda: on.status.traffic.down == 11 * number, "it has got it")  # noqa: B023
            await app.send(b"last words")
            await app.aclose()
            assert await on.guest.until_end(number) == b"last words"
            ended = await log.wait("stream-end", id=number)
            assert ended["up"] == 10
    assert not log.find("error")


async def test_streams_are_counted_and_told(short_tmp: Path, log: EventLog) -> None:
    async with stage(short_tmp) as on:
        first, second = await on.open(1), await on.open(-2)
        streams = on.status.streams
        assert streams is not None
        assert (streams.open, streams.total) == (2, 2)
        await first.send(b"12345")
        await first.aclose()
        await on.guest.until_end(1)
        ended = await log.wait("stream-end", id=1)
        assert (ended["up"], ended["down"], ended["undelivered"]) == (5, 1, 0)
        assert (streams.open, streams.total) == (1, 2)
        await on.guest.send(frame(-2))
        await second.aclose()
        await log.wait("stream-end", id=-2)
        assert (streams.open, streams.total) == (0, 2)
        assert (on.status.traffic.up, on.status.traffic.down) == (5, 2)
    assert log.messages(logging.WARNING) == []


# What it costs


async def test_streams_that_come_and_go_leave_nothing_behind(short_tmp: Path) -> None:
    """Checked by `stage` for every test; here for many streams of one channel."""
    async with stage(short_tmp, application=echo) as on:
        tasks = len(anyio.get_running_tasks())
        for start in range(0, 300, 50):
            await on.guest.send(b"".join(frame(n, b"hello") for n in range(start, start + 50)))
            await on.guest.send(b"".join(frame(n) for n in range(start, start + 50)))
            for number in range(start, start + 50):
                assert await on.guest.until_end(number) == b"hello"
        await until(lambda: len(anyio.get_running_tasks()) == tasks, "every task has ended")


async def test_a_cancellation_closes_everything(short_tmp: Path) -> None:
    async with stage(short_tmp) as on:
        apps = [await on.open(number) for number in range(5)]
        await apps[0].send_eof()
        await on.guest.send(frame(1))
        await on.guest.until_end(0)
        on.running.cancel_scope.cancel()
        await on.running.wait()
        for app in apps:
            with anyio.fail_after(PATIENCE):
                assert await receive_some(app) == b""


async def test_two_channels_may_be_taken_apart_at_once(short_tmp: Path) -> None:
    guests = [MuxGuest(), MuxGuest()]
    apps = short_tmp / "app"
    both = [demux(apps, kind=USER, instance=number, name=f"{number}") for number in range(2)]
    async with anyio.create_task_group() as tasks:
        await tasks.start(serve, apps, echo)
        async with offering(short_tmp, *(guest.play for guest in guests)) as address:
            async with bridging(address, *both):
                for number, guest in enumerate(guests):
                    await guest.until_linked()
                    await guest.send(frame(1, b"hello %d" % number) + frame(1))
                for number, guest in enumerate(guests):
                    assert await guest.until_end(1) == b"hello %d" % number
        tasks.cancel_scope.cancel()
