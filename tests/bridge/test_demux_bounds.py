"""Slow applications and busy ones: what is held for a stream, and who waits for whom."""

from __future__ import annotations

import logging
import random
from collections.abc import Iterator
from pathlib import Path

import anyio
import pytest
from anyio.abc import SocketStream

from spicebridge.bridge import streams as streams_module
from spicebridge.bridge.stream import BridgedStream
from spicebridge.bridge.streams import Streams
from tests.bridge.mux_tools import Stage, echo, flood, receive_some, stage
from tests.bridge.tools import EventLog, read_all, read_exactly, until
from tests.protocol.frames import frame

KIB = 1024
MIB = 1024 * KIB
BUFFER = 64 * KIB


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[int, BridgedStream]]:
    """The last stream of each id, to look at what is held for it."""
    found: dict[int, BridgedStream] = {}

    class Seen(BridgedStream):
        def __init__(self, client_id: int) -> None:
            super().__init__(client_id)
            found[client_id] = self

    monkeypatch.setattr(streams_module, "BridgedStream", Seen)
    yield found
    found.clear()


@pytest.fixture
def paths(monkeypatch: pytest.MonkeyPatch) -> list[Streams]:
    """The data paths that have been set up."""
    found: list[Streams] = []
    old = Streams.__init__

    def init(self: Streams, *args: object, **kwargs: object) -> None:
        found.append(self)
        old(self, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(Streams, "__init__", init)
    return found


async def fill(on: Stage, stream: BridgedStream, limit: int = BUFFER) -> int:
    """Sends to an application that reads nothing until `limit` bytes are held for it.

    Returns how many bytes that took; they are zeros.
    """
    sent = stream.down
    total = 0
    while not stream.pending:
        await on.guest.send(frame(stream.id, bytes(32 * KIB)))
        total += 32 * KIB
        await until(lambda: stream.down + len(stream.pending) == sent + total, "it has come")  # noqa: B023
    rest = limit - len(stream.pending)
    while rest > 0:
        size = min(rest, 0xFFFF)
        await on.guest.send(frame(stream.id, bytes(size)))
        total += size
        rest -= size
    await until(lambda: len(stream.pending) == limit, "its buffer is full")
    return total


# One that reads nothing


async def test_the_others_go_on_until_the_buffer_of_a_slow_one_is_full(
    short_tmp: Path, made: dict[int, BridgedStream]
) -> None:
    async with stage(short_tmp, buffer=BUFFER) as on:
        slow, quick = await on.open(1), await on.open(2)
        total = await fill(on, made[1])
        for count in range(20):
            await on.guest.send(frame(2, b"%03d" % count))
            assert await read_exactly(quick, 3) == b"%03d" % count
            await quick.send(b"answer")
            await on.guest.until_data(2, 6 * (count + 1))
        await slow.send(b"I can still speak")
        assert await on.guest.until_data(1, 17) == b"I can still speak"
        new = await on.open(3)
        await new.aclose()
        await on.guest.until_end(3)
        assert len(made[1].pending) == BUFFER
        assert await read_exactly(slow, total) == bytes(total)


async def test_then_the_channel_waits_and_nothing_is_lost_to_anybody(
    short_tmp: Path, made: dict[int, BridgedStream]
) -> None:
    more = random.Random(1).randbytes(4 * MIB)
    async with stage(short_tmp, buffer=BUFFER) as on:
        slow, quick = await on.open(1), await on.open(2)
        total = await fill(on, made[1])
        frames = b"".join(
            frame(1, more[at : at + 40_000]) + frame(2, more[at : at + 40_000])
            for at in range(0, len(more), 40_000)
        )
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(on.guest.send, frames + frame(1) + frame(2))
            with anyio.move_on_after(0.2) as waiting:
                while True:
                    await quick.receive(1)
            assert waiting.cancelled_caught  # it is behind what nobody takes
            assert len(made[1].pending) == BUFFER
            await slow.send(b"up")
            assert await on.guest.until_data(1, 2) == b"up"
            got: dict[str, bytes] = {}

            async def read(name: str, app: SocketStream) -> None:
                got[name] = await read_all(app)

            tasks.start_soon(read, "quick", quick)
            assert await read_exactly(slow, total) == bytes(total)
            tasks.start_soon(read, "slow", slow)
        assert got == {"slow": more, "quick": more}


async def test_no_more_than_the_buffer_is_held_for_a_stream(
    short_tmp: Path, made: dict[int, BridgedStream]
) -> None:
    """Frames larger than the room that is left, many in one DATA."""
    data = random.Random(2).randbytes(2 * MIB)
    most: list[int] = []
    async with stage(short_tmp, buffer=10_000) as on:
        apps = [await on.open(number) for number in range(3)]
        frames = b"".join(
            frame(number, data[at : at + 0xFFFF])
            for at in range(0, len(data), 0xFFFF)
            for number in range(3)
        )

        async def read(app: SocketStream) -> None:
            got = b""
            while len(got) < len(data):
                got += await receive_some(app, 5000)
                most.append(max(len(stream.pending) for stream in made.values()))
            assert got == data

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(on.guest.send, frames)
            for app in apps:
                tasks.start_soon(read, app)
    assert max(most) <= 10_000


async def test_a_stream_whose_application_is_still_to_come_holds_no_more_than_the_buffer(
    short_tmp: Path, made: dict[int, BridgedStream], log: EventLog
) -> None:
    """Connecting takes a while; nothing that has come meanwhile is lost."""
    data = random.Random(3).randbytes(MIB)
    async with stage(short_tmp, buffer=BUFFER) as on, anyio.create_task_group() as tasks:
        tasks.start_soon(
            on.guest.send,
            b"".join(frame(1, data[at : at + 60_000]) for at in range(0, len(data), 60_000)),
        )
        app = await on.apps.next()
        await until(lambda: made[1].pending, "something waits")
        assert len(made[1].pending) <= BUFFER
        assert await read_exactly(app, len(data)) == data
    assert log.messages(logging.WARNING) == []


# One that is ended for it


async def test_a_stream_that_takes_nothing_for_too_long_is_ended_alone(
    short_tmp: Path, made: dict[int, BridgedStream], log: EventLog
) -> None:
    data = random.Random(4).randbytes(2 * MIB)
    async with stage(short_tmp, buffer=BUFFER, stall=0.2) as on:
        slow, quick = await on.open(1), await on.open(2)
        total = await fill(on, made[1])
        async with anyio.create_task_group() as tasks:
            frames = b"".join(
                frame(1, b"too much") + frame(2, data[at : at + 40_000])
                for at in range(0, len(data), 40_000)
            )
            tasks.start_soon(on.guest.send, frames)
            assert await read_exactly(quick, len(data)) == data
        assert await on.guest.until_end(1) == b""
        (stalled,) = log.find("stream-stalled")
        assert (stalled["level"], stalled["id"]) == ("WARNING", 1)
        assert "0.2 seconds" in stalled["message"]
        ended = await log.wait("stream-end", id=1)
        assert "took nothing" in ended["reason"]
        assert ended["down"] + ended["undelivered"] >= 1 + total + 8
        await quick.send(b"I am fine")
        assert await on.guest.until_data(2, 9) == b"I am fine"
        assert len(await read_all(slow)) == ended["down"] - 1
        await on.guest.send(frame(1) + frame(1, b"again"))
        assert await read_exactly(await on.apps.next(), 5) == b"again"
        assert on.guest.ends(1) == 1
    dropped = log.find("stream-dropped")[-1]["dropped"]
    assert (
        ended["down"] + ended["undelivered"] + dropped == 1 + total + frames.count(b"too much") * 8
    )


async def test_each_of_several_that_take_nothing_is_ended_alone(
    short_tmp: Path, log: EventLog
) -> None:
    async with stage(short_tmp, buffer=1000, stall=0.1) as on:
        for number in range(4):
            await on.open(number)
        quick = await on.open(4)
        async with anyio.create_task_group() as tasks:

            async def pour() -> None:
                for _ in range(20):
                    for number in range(4):
                        await on.guest.send(frame(number, bytes(60_000)))
                await on.guest.send(frame(4, b"here I am"))

            tasks.start_soon(pour)
            assert await read_exactly(quick, 9) == b"here I am"
        for number in range(4):
            await on.guest.until_end(number)
    assert sorted(each["id"] for each in log.find("stream-stalled")) == [0, 1, 2, 3]


async def test_with_stall_0_nobody_waits_for_a_full_stream(
    short_tmp: Path, log: EventLog, made: dict[int, BridgedStream]
) -> None:
    async with stage(short_tmp, buffer=BUFFER, stall=0) as on:
        _, quick = await on.open(1), await on.open(2)
        await fill(on, made[1])
        await on.guest.send(frame(1, b"x") + frame(2, b"hello"))
        assert await read_exactly(quick, 5) == b"hello"
        await on.guest.until_end(1)
    assert [each["id"] for each in log.find("stream-stalled")] == [1]


async def test_one_that_is_slow_but_goes_on_is_not_ended(
    short_tmp: Path, made: dict[int, BridgedStream], log: EventLog
) -> None:
    """Poll calls a socket writable only once most of its buffer is free: less is progress, too."""
    async with stage(short_tmp, buffer=BUFFER, stall=0.5) as on:
        slow, quick = await on.open(1), await on.open(2)
        total = await fill(on, made[1])
        async with anyio.create_task_group() as tasks:
            more = random.Random(5).randbytes(120_000)
            tasks.start_soon(
                on.guest.send, frame(1, more[:60_000]) + frame(1, more[60_000:]) + frame(2, b"x")
            )
            got, done = b"", anyio.Event()

            async def read_slowly() -> None:
                nonlocal got
                while not done.is_set():
                    got += await slow.receive(8000)
                    await anyio.sleep(0.05)

            tasks.start_soon(read_slowly)
            assert await read_exactly(quick, 1) == b"x"
            done.set()
        got += await read_exactly(slow, total + len(more) - len(got))
        assert got == bytes(total) + more
    assert not log.find("stream-stalled")


# Behind one that makes the channel wait


async def test_last_words_that_wait_behind_a_slow_stream_are_not_cut_off(
    short_tmp: Path, made: dict[int, BridgedStream], log: EventLog
) -> None:
    """The application has ended its sending, and waits for data that came with their size 0."""
    async with stage(short_tmp, buffer=BUFFER) as on:
        slow, other = await on.open(1), await on.open(2)
        await other.send_eof()
        await on.guest.until_end(2)
        total = await fill(on, made[1])
        await on.guest.send(frame(1, b"x") + frame(2, b"last words") + frame(2))
        await until(lambda: made[2].peer_ended, "it has come")
        made[2].note_change()  # as whatever wakes its task
        with anyio.move_on_after(0.7):  # it looks by itself, too
            assert await receive_some(other) == b"last words"
        assert await read_exactly(slow, total + 1) == bytes(total) + b"x"
        assert await read_all(other) in {b"last words", b""}
    (ended,) = log.find("stream-end", id=2)
    assert (ended["down"], ended["undelivered"]) == (11, 0)


async def test_end_of_file_does_not_overtake_what_waits_behind_a_slow_stream(
    short_tmp: Path, made: dict[int, BridgedStream], log: EventLog
) -> None:
    """What was held for it before is taken meanwhile: that is not all that there is."""
    async with stage(short_tmp, buffer=BUFFER) as on:
        slow, other = await on.open(1), await on.open(2)
        total = await fill(on, made[1])
        before = await fill(on, made[2])
        await on.guest.send(frame(1, b"x") + frame(2, b"last words") + frame(2))
        await until(lambda: made[2].peer_ended, "it has come")
        assert await read_exactly(other, before) == bytes(before)
        await until(lambda: not made[2].pending, "it has taken what was held")
        assert await read_exactly(slow, total + 1) == bytes(total) + b"x"
        assert await read_all(other) == b"last words"
    (ended,) = log.find("stream-end", id=2)
    assert ended["undelivered"] == 0


# Towards the guest


async def test_a_bulk_transfer_lets_small_answers_through(
    short_tmp: Path, paths: list[Streams]
) -> None:
    """What 20 others say goes right behind what was on its way already: one frame for each turn."""
    async with stage(short_tmp) as on, anyio.create_task_group() as tasks:
        small = {number: await on.open(number) for number in range(1, 21)}
        tasks.start_soon(flood, await on.open(0))
        await on.guest.until_data(0, MIB)
        on.guest.pause()
        turn = paths[0]._turns._turn
        await until(lambda: turn.locked(), "the channel is full")
        for app in small.values():
            await app.send(b"answer")
        await until(lambda: turn.statistics().tasks_waiting == 20, "all of them wait")
        seen = len(on.guest.frames)
        on.guest.resume()
        for number in small:
            assert await on.guest.until_data(number, 6) == b"answer"
        order = [number for number, _ in on.guest.frames[seen:]]
        last = max(order.index(number) for number in small)
        between = order[order.index(next(n for n in order if n)) : last + 1]
        assert between.count(0) <= 1
        assert order[: last + 1].count(0) <= 24  # what the sockets on the way held
        await on.end()


async def test_small_answers_never_wait_for_many_frames_of_bulk_transfers(
    short_tmp: Path,
) -> None:
    """Asked again and again, with three bulk transfers beside them."""

    async def application(app: SocketStream) -> None:
        if await read_exactly(app, 4) == b"bulk":
            return await flood(app)
        await app.send(b"answer")
        return await echo(app)

    async with stage(short_tmp, application=application) as on:
        await on.guest.send(b"".join(frame(number, b"bulk") for number in range(3)))
        for number in range(3):
            await on.guest.until_data(number, MIB)
        await on.guest.send(b"".join(frame(number, b"read") for number in range(10, 30)))
        size = 6
        for count in range(20):
            before = len(on.guest.frames)
            for number in range(10, 30):
                await on.guest.until_data(number, size)
            assert len(on.guest.frames) - before <= 400
            await on.guest.send(
                b"".join(frame(number, b"%02d" % count) for number in range(10, 30))
            )
            size += 2
        await on.end()


async def test_bulk_transfers_share_the_channel_frame_by_frame(
    short_tmp: Path, paths: list[Streams]
) -> None:
    async with stage(short_tmp) as on, anyio.create_task_group() as tasks:
        apps = [await on.open(number) for number in range(4)]
        on.guest.pause()
        for app in apps:
            tasks.start_soon(flood, app)
        await until(
            lambda: paths[0]._turns._turn.statistics().tasks_waiting == 3, "all of them wait"
        )
        on.guest.resume()
        await until(lambda: len(on.guest.frames) > 400, "400 frames")
        order = [number for number, _ in on.guest.frames[100:400]]
        for number in range(4):
            assert order.count(number) >= 40
        await on.end()


async def test_a_guest_that_takes_nothing_makes_the_applications_wait_and_loses_nothing(
    short_tmp: Path,
) -> None:
    data = random.Random(6).randbytes(2 * MIB)
    async with stage(short_tmp) as on, anyio.create_task_group() as tasks:
        apps = [await on.open(number) for number in range(4)]
        on.guest.pause()
        for number, app in enumerate(apps):

            async def send(app: SocketStream = app, number: int = number) -> None:
                await app.send(data[number:])
                await app.send_eof()

            tasks.start_soon(send)
        await until(lambda: on.status.traffic.up > 100_000, "the way is filled")
        await on.guest.send(frame(2, b"down it still goes"))
        assert await read_exactly(apps[2], 18) == b"down it still goes"
        on.guest.resume()
        for number in range(4):
            assert await on.guest.until_end(number) == data[number:]
