"""Ids that have ended and come again: no stream meets the bytes of the one before."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

import anyio
import pytest
from anyio.abc import SocketStream

from tests.bridge.mux_tools import receive_some, stage
from tests.bridge.tools import EventLog, read_all, read_exactly, until
from tests.protocol.frames import frame


@pytest.mark.parametrize("cuts", [(), range(200)], ids=["one-data", "byte-by-byte"])
async def test_an_id_that_comes_again_in_the_same_data_is_another_stream(
    short_tmp: Path, log: EventLog, cuts: Sequence[int]
) -> None:
    async with stage(short_tmp) as on:
        await on.guest.send(frame(1, b"old") + frame(1) + frame(1, b"new"), cuts)
        apps = [await on.apps.next(), await on.apps.next()]
        heard = [await read_exactly(app, 3) for app in apps]
        assert sorted(heard) == [b"new", b"old"]
        old, new = apps[heard.index(b"old")], apps[heard.index(b"new")]
        assert await read_all(old) == b""
        await log.wait("stream-open", count=2, id=1)
        await old.send(b"what the old one would say")
        await new.send(b"answer")
        await new.send_eof()
        assert await on.guest.until_end(1) == b"answer"
        await on.guest.send(frame(1, b", and more"))
        assert await read_exactly(new, 10) == b", and more"
        assert on.guest.ends(1) == 1
        assert on.apps.count == 2


async def test_an_id_may_come_a_hundred_times_in_one_data(short_tmp: Path, log: EventLog) -> None:
    """All but the last are replaced: each gets its own bytes, and none may answer."""
    heard: list[bytes] = []

    async def application(app: SocketStream) -> None:
        data = await read_all(app)
        heard.append(data)
        try:
            await app.send(b"answer to " + data)
        except anyio.BrokenResourceError:  # a replaced one may have been let go
            pass

    async with stage(short_tmp, application=application) as on:
        words = [b"%d" % number for number in range(100)]
        await on.guest.send(b"".join(frame(4, word) + frame(4) for word in words))
        await log.wait("stream-end", count=100, id=4)
        assert sorted(heard) == sorted(words)
        assert await on.guest.until_end(4) == b"answer to 99"
        assert on.guest.ends(4) == 1


async def test_an_id_comes_again_as_soon_as_it_has_ended_both_ways(short_tmp: Path) -> None:
    """Whichever side ends first, there is one size 0 for each stream, behind its own answer."""
    dice = random.Random(1)

    async def application(app: SocketStream) -> None:
        number = await read_exactly(app, 4)
        if number[3] % 2:
            assert await read_all(app) == b""
        await app.send(b"answer to " + number)
        await app.send_eof()
        assert await read_all(app) == b""

    async with stage(short_tmp, application=application) as on:
        wanted: list[tuple[int, bytes]] = []
        for count in range(1, 61):
            number = count.to_bytes(4, "big")
            await on.guest.send(frame(-9, number))
            if count % 2 or dice.random() < 0.3:
                await on.guest.send(frame(-9))
                await on.guest.until_end(-9, count)
            else:
                await on.guest.until_end(-9, count)
                await on.guest.send(frame(-9))
            wanted += [(-9, b"answer to " + number), (-9, b"")]
        assert on.guest.frames == wanted


async def test_an_id_that_comes_again_while_its_old_application_sends_meets_nothing_of_it(
    short_tmp: Path, log: EventLog
) -> None:
    async with stage(short_tmp) as on, anyio.create_task_group() as tasks:

        async def flood() -> None:
            try:
                while True:
                    await old.send(b"o" * 30_000)
            except (anyio.BrokenResourceError, anyio.ClosedResourceError):
                pass  # it was let go

        old = await on.open(1)
        tasks.start_soon(flood)
        await on.guest.until_data(1, 1_000_000)
        await on.guest.send(frame(1) + frame(1, b"new"))
        new = await on.apps.next()
        assert await read_exactly(new, 3) == b"new"
        assert on.guest.ends(1) == 0
        await new.send(b"n" * 1_000_000)
        await new.aclose()
        said = await on.guest.until_end(1)
        assert said.lstrip(b"o") == b"n" * 1_000_000
        await log.wait("stream-end", count=2, id=1)
        assert on.guest.ends(1) == 1
    ended = log.find("stream-end", id=1)
    assert sum(each["up"] for each in ended) == len(said)


async def test_what_an_old_application_has_not_read_yet_is_not_for_the_new_one(
    short_tmp: Path, log: EventLog
) -> None:
    data = random.Random(2).randbytes(900_000)
    frames = b"".join(frame(1, data[at : at + 50_000]) for at in range(0, len(data), 50_000))
    async with stage(short_tmp) as on:
        await on.guest.send(frame(1, b"old") + frames + frame(1) + frame(1, b"new") + frame(1))
        apps = [await on.apps.next(), await on.apps.next()]
        heard = [await read_exactly(app, 3) for app in apps]
        old, new = apps[heard.index(b"old")], apps[heard.index(b"new")]
        await new.send(b"answer")
        await new.aclose()
        assert await on.guest.until_end(1) == b"answer"
        await log.wait("stream-end", id=1)
        assert await read_all(old) == data


async def test_an_id_that_the_guest_ends_late_comes_again(short_tmp: Path, log: EventLog) -> None:
    """spice-webdavd ignores our size 0 and may go on: all that is dropped up to its own size 0."""
    async with stage(short_tmp) as on:
        for count in range(1, 6):
            await on.guest.send(frame(3, b"ask"))
            app = await on.apps.next()
            assert await read_exactly(app, 3) == b"ask"
            await app.send(b"answer")
            await app.aclose()
            assert await on.guest.until_end(3, count) == b"answer" * count
            await log.wait("stream-end", count=count, id=3)
            await on.guest.send(frame(3, b"late") + frame(3, b"later") + frame(3))
        await on.guest.tell_closed()
        await until(lambda: log.find("stream-dropped", dropped=45), "all that was late")
        assert on.apps.count == 5
        assert on.guest.ends(3) == 5
    assert log.find("stream-dropped")[-1]["frames"] == 10


async def test_a_frame_cut_by_the_end_of_its_stream_is_dropped_whole(
    short_tmp: Path, log: EventLog
) -> None:
    """What is left of a frame never opens a stream, though its id were free."""
    async with stage(short_tmp) as on:
        app, other = await on.open(1), await on.open(2)
        whole = frame(1, b"x" * 1000)
        await on.guest.send(whole[:500])
        assert await read_exactly(app, 490) == b"x" * 490
        await app.aclose()
        await on.guest.until_end(1)
        await log.wait("stream-end", id=1)
        await on.guest.send(whole[500:] + frame(1) + frame(2, b"behind it"))
        assert await read_exactly(other, 9) == b"behind it"
        assert on.apps.count == 2
        await on.guest.send(frame(1, b"again"))
        assert await receive_some(await on.apps.next()) == b"again"
    (dropped,) = log.find("stream-dropped")
    assert dropped["dropped"] == 510


async def test_an_old_application_that_ignores_its_end_of_file_is_let_go(
    short_tmp: Path, log: EventLog
) -> None:
    """Nothing that it could say goes anywhere any more."""
    async with stage(short_tmp) as on:
        old = await on.open(1)
        await on.guest.send(frame(1) + frame(1, b"new"))
        assert await read_exactly(await on.apps.next(), 3) == b"new"
        assert await read_all(old) == b""
        await log.wait("stream-end", id=1)
        streams = on.status.streams
        assert streams is not None
        assert streams.open == 1
