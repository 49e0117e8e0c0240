"""A raw bridge: one channel, one application at a time."""

# ruff: noqa: SIM117 - which of them lives inside which is the point

from __future__ import annotations

import hashlib
import logging
import os
import random
import socket
from contextlib import AsyncExitStack
from pathlib import Path

import anyio
import anyio.lowlevel
import pytest
from anyio.abc import ByteStream

from spicebridge import (
    ApplicationError,
    Channel,
    ChannelBusyError,
    ConnectingEndpoint,
    ListeningEndpoint,
    ProcessEndpoint,
    SessionLostError,
    TcpAddress,
    UnixAddress,
    UsageError,
)
from tests.bridge.tools import (
    EventLog,
    bridging,
    connected,
    deaf,
    echo,
    offering,
    open_fds,
    read_all,
    read_exactly,
    send_until_stalled,
    served,
    silent,
    spec,
    until,
)
from tests.conftest import PATIENCE

MIB = 1024 * 1024
HELD = 8 * MIB
"""More than all sockets and buffers on the way hold together."""


# One application at a time


async def test_a_second_application_is_refused_at_once_and_the_first_stays(
    short_tmp: Path, log: EventLog
) -> None:
    path = short_tmp / "s"
    async with offering(short_tmp, echo) as address, bridging(address, spec(path)):
        async with connected(path) as first:
            await first.send(b"first")
            assert await read_exactly(first, 5) == b"first"
            for _ in range(3):
                async with connected(path) as second:
                    assert await read_all(second) == b""
            await first.send(b"still here")
            assert await read_exactly(first, 10) == b"still here"
    refusals = log.find("app-refused")
    assert len(refusals) == 3
    assert all(each["level"] == "WARNING" for each in refusals)
    assert all(each["holder"].startswith(f"pid {os.getpid()} (") for each in refusals)
    assert all(each["holder"] in each["message"] for each in refusals)


async def test_one_application_comes_after_another_and_none_gets_what_was_for_the_other(
    short_tmp: Path, log: EventLog
) -> None:
    path = short_tmp / "s"
    async with offering(short_tmp, echo) as address, bridging(address, spec(path)):
        for number in range(3):
            async with connected(path) as app:
                data = bytes([number]) * 1000
                await app.send(data)
                assert await read_exactly(app, 1000) == data
                await app.send(b"nobody waits for the answer to this")
    assert not log.find("app-refused")


async def test_an_application_that_comes_right_after_another_has_gone_is_taken(
    short_tmp: Path, log: EventLog
) -> None:
    path = short_tmp / "s"
    async with offering(short_tmp, echo) as address, bridging(address, spec(path)):
        async with connected(path) as first:
            await first.send(b"x")
            await read_exactly(first, 1)
        async with connected(path) as second:
            await second.send(b"y")
            assert await read_exactly(second, 1) == b"y"
    assert not log.find("app-refused")


async def test_byte_counts_are_told(short_tmp: Path, log: EventLog) -> None:
    path = short_tmp / "s"
    async with offering(short_tmp, echo) as address, bridging(address, spec(path)) as running:
        for _ in range(2):
            async with connected(path) as app:
                await app.send(b"x" * 700)
                await read_exactly(app, 700)
        gone = await log.wait("app-gone", count=2)
        assert (gone["up"], gone["down"]) == (1400, 1400)
        assert "700 bytes up, 700 down" in gone["message"]
        (status,) = running.bridges
        assert (status.traffic.up, status.traffic.down) == (1400, 1400)


# demand and always


async def test_on_demand_the_guest_sees_each_application_come_and_go(
    short_tmp: Path, log: EventLog
) -> None:
    path = short_tmp / "s"
    seen: list[str] = []

    async def guest(channel: Channel) -> None:
        seen.append("open")
        await silent(channel)
        seen.append("close")

    async with offering(short_tmp, guest) as address, bridging(address, spec(path)):
        assert seen == []
        for count in (1, 2):
            async with connected(path) as app:
                await log.wait("linked", count=count)
                await app.send(b"x")
            await until(lambda: len(seen) == 2 * count, "the guest sees it go")  # noqa: B023
    assert seen == ["open", "close"] * 2


async def test_always_holds_what_arrives_until_an_application_comes(
    short_tmp: Path, log: EventLog
) -> None:
    path = short_tmp / "s"
    data = random.Random(1).randbytes(100_000)
    seen: list[str] = []

    async def guest(channel: Channel) -> None:
        seen.append("open")
        await channel.send(data)
        await echo(channel)

    async with offering(short_tmp, guest) as address:
        async with bridging(address, spec(path, attach="always")):
            await log.wait("linked")
            await until(lambda: seen, "the guest sees us without an application")
            async with connected(path) as app:
                assert await read_exactly(app, len(data)) == data
                await app.send(b"hello")
                assert await read_exactly(app, 5) == b"hello"
    assert seen == ["open"]


async def test_always_keeps_the_channel_from_one_application_to_the_next(
    short_tmp: Path, log: EventLog
) -> None:
    path = short_tmp / "s"
    between = anyio.Event()

    async def guest(channel: Channel) -> None:
        assert await channel.read() == b"first"
        await channel.send(b"for the first")
        await between.wait()
        await channel.send(b"for the second")
        await echo(channel)

    async with offering(short_tmp, guest) as address:
        async with bridging(address, spec(path, attach="always")):
            async with connected(path) as app:
                await app.send(b"first")
                assert await read_exactly(app, 13) == b"for the first"
            await log.wait("app-gone")
            between.set()
            async with connected(path) as app:
                assert await read_exactly(app, 14) == b"for the second"
                await app.send(b"second")
                assert await read_exactly(app, 6) == b"second"
    assert len(log.find("linked")) == 1


async def test_always_lets_the_guest_stall_rather_than_hold_without_bound(
    short_tmp: Path, log: EventLog
) -> None:
    path = short_tmp / "s"
    sent = 0
    more = anyio.Event()

    async def guest(channel: Channel) -> None:
        nonlocal sent
        while sent < 4 * HELD:
            await channel.send(bytes([sent // 65536 % 256]) * 65536)
            sent += 65536
        more.set()
        await silent(channel)

    async with offering(short_tmp, guest) as address:
        async with bridging(address, spec(path, attach="always")):
            await log.wait("linked")
            with anyio.move_on_after(0.5):
                await more.wait()
            assert sent < HELD
            async with connected(path) as app:
                got = await read_exactly(app, 4 * HELD)
    assert all(got[at] == at // 65536 % 256 for at in range(0, len(got), 4096))


# Both ends of the stream


async def test_an_application_that_has_ended_its_sending_still_gets_the_whole_answer(
    short_tmp: Path,
) -> None:
    path = short_tmp / "s"
    answer = random.Random(2).randbytes(3 * MIB)

    async def guest(channel: Channel) -> None:
        assert await channel.read() == b"question"
        for start in range(0, len(answer), MIB):
            await anyio.sleep(0.15)  # silences that TCP's linger would not outlast three times
            await channel.send(answer[start : start + MIB])

    async with offering(short_tmp, guest) as address, bridging(address, spec(path)):
        async with connected(path) as app:
            await app.send(b"question")
            await app.send_eof()
            assert await read_all(app) == answer


async def test_over_tcp_such_an_application_gets_what_comes_within_its_linger(
    short_tmp: Path,
) -> None:
    quiet = anyio.Event()

    async def guest(channel: Channel) -> None:
        await channel.read()
        for _ in range(4):  # longer in all than linger, but never silent for so long
            await channel.send(b"part ")
            await anyio.sleep(0.1)
        await silent(channel)
        quiet.set()

    end = ListeningEndpoint("tcp=127.0.0.1:0", TcpAddress("127.0.0.1", 0), linger=0.3)
    async with offering(short_tmp, guest) as address, bridging(address, spec(end)):
        port = int(end.name.rpartition(":")[2])
        async with await anyio.connect_tcp("127.0.0.1", port) as app:
            await app.send(b"question")
            await app.send_eof()
            assert await read_all(app) == b"part " * 4
        with anyio.fail_after(PATIENCE):
            await quiet.wait()


async def test_all_that_an_application_wrote_before_it_closed_in_haste_arrives(
    short_tmp: Path,
) -> None:
    path = short_tmp / "s"
    data = random.Random(3).randbytes(2 * MIB)
    got = bytearray()
    whole = anyio.Event()

    async def slow(channel: Channel) -> None:
        while piece := await channel.read():
            got.extend(piece)
            await anyio.sleep(0.005)
        whole.set()

    async with offering(short_tmp, slow) as address, bridging(address, spec(path)):
        async with connected(path) as app:
            await app.send(data)
        with anyio.fail_after(PATIENCE):
            await whole.wait()
    assert bytes(got) == data


async def test_all_that_a_guest_wrote_before_it_closed_in_haste_arrives(short_tmp: Path) -> None:
    path = short_tmp / "s"
    data = random.Random(4).randbytes(4 * MIB)
    address = UnixAddress(str(short_tmp / "spice"))
    async with served(address, spec(short_tmp / "guest")), bridging(address, spec(path)):
        async with connected(path) as app, connected(short_tmp / "guest") as guest:
            await app.send(b"!")
            await read_exactly(guest, 1)
            async with anyio.create_task_group() as tasks:

                async def write_and_go() -> None:
                    await guest.send(data)
                    await guest.aclose()

                tasks.start_soon(write_and_go)
                got = b""
                while len(got) < len(data):
                    got += await read_exactly(app, min(256 * 1024, len(data) - len(got)))
                    await anyio.sleep(0.005)
            assert got == data
            assert await read_all(app) == b""


async def test_what_an_application_wrote_that_went_before_the_guest_came_is_held_for_the_guest(
    short_tmp: Path, log: EventLog
) -> None:
    """The next one waits its turn."""
    path = short_tmp / "s"
    data = random.Random(9).randbytes(100_000)
    address = UnixAddress(str(short_tmp / "spice"))
    async with served(address, spec(short_tmp / "guest")), bridging(address, spec(path)):
        async with connected(path) as app:
            await app.send(data)
            await log.wait("linked", bridge="s")
        async with connected(path) as app:
            await app.send(b"mine")
            await anyio.sleep(0.7)  # longer than it takes to notice that the first one has gone
            assert not log.find("app-gone", bridge="s")
            async with connected(short_tmp / "guest") as guest:
                assert await read_all(guest) == data
            async with connected(short_tmp / "guest") as guest:
                assert await read_exactly(guest, 4) == b"mine"
    assert not log.find("app-refused")


@pytest.mark.parametrize(
    ("kind", "said"), [(9, b"is anybody there?"), (128, b"")], ids=["usbredir", "user"]
)
async def test_an_application_that_found_no_guest_leaves_the_channel_free(
    short_tmp: Path, log: EventLog, kind: int, said: bytes
) -> None:
    """On a channel without port events its bytes have gone already, and wait for a guest. Where
    there are such events, one that said nothing leaves nothing to wait for."""
    path = short_tmp / "s"
    address = UnixAddress(str(short_tmp / "spice"))
    async with (
        served(address, spec(short_tmp / "guest", kind=kind)),
        bridging(address, spec(path, kind=kind)),
    ):
        async with connected(path) as app:
            await log.wait("linked", bridge="s")
            await app.send(said)
        await log.wait("app-gone", bridge="s")
        async with connected(path) as app:
            await app.send(b"hello")
            await until(lambda: len(log.find("linked", bridge="s")) == 2 or log.find("error"), "it")
            assert not log.find("error")
            async with connected(short_tmp / "guest") as guest:
                assert await read_exactly(guest, 5) == b"hello"


# Ports that open and close


@pytest.mark.parametrize("rounds", [1, 3])
async def test_eof_when_the_guest_closes_the_port_and_a_new_link_for_the_next(
    short_tmp: Path, rounds: int
) -> None:
    path = short_tmp / "s"
    address = UnixAddress(str(short_tmp / "spice"))
    async with served(address, spec(short_tmp / "guest")), bridging(address, spec(path)):
        for _ in range(rounds):
            async with connected(path) as app:
                async with connected(short_tmp / "guest") as guest:
                    await app.send(b"hello")
                    await read_exactly(guest, 5)
                    await guest.send(b"last words")
                assert await read_all(app) == b"last words"


async def test_keep_rides_out_guests_that_come_and_go(short_tmp: Path) -> None:
    path = short_tmp / "s"
    address = UnixAddress(str(short_tmp / "spice"))
    async with (
        served(address, spec(short_tmp / "guest")),
        bridging(address, spec(path, on_close="keep")),
        connected(path) as app,
    ):
        for number in range(3):
            async with connected(short_tmp / "guest") as guest:
                await app.send(b"%d" % number)
                assert await read_exactly(guest, 1) == b"%d" % number
                await guest.send(b"answer")
                assert await read_exactly(app, 6) == b"answer"
                await guest.send(b"bye")
            assert await read_exactly(app, 3) == b"bye"


async def test_an_application_waits_while_the_port_is_closed_and_loses_nothing(
    short_tmp: Path,
) -> None:
    path = short_tmp / "s"
    address = UnixAddress(str(short_tmp / "spice"))
    data = random.Random(5).randbytes(MIB)
    async with served(address, spec(short_tmp / "guest")), bridging(address, spec(path)):
        async with connected(path) as app, anyio.create_task_group() as tasks:
            tasks.start_soon(app.send, data)
            await anyio.sleep(0.05)
            async with connected(short_tmp / "guest") as guest:
                assert await read_exactly(guest, len(data)) == data


async def test_a_channel_that_the_server_closes_is_end_of_file_and_linked_anew_for_the_next(
    short_tmp: Path, log: EventLog
) -> None:
    path = short_tmp / "s"

    async def guest(channel: Channel) -> None:
        await channel.send(b"that is all")

    async with offering(short_tmp, guest) as address, bridging(address, spec(path)) as running:
        for _ in range(3):
            async with connected(path) as app:
                assert await read_all(app) == b"that is all"
        assert not running.ended.is_set()
    assert not log.find("error")


# Slow sides


async def test_a_guest_that_takes_nothing_stalls_the_application_and_nothing_is_lost(
    short_tmp: Path,
) -> None:
    path = short_tmp / "s"
    reading = anyio.Event()
    counted = 0

    async def guest(channel: Channel) -> None:
        nonlocal counted
        await reading.wait()
        while data := await channel.read():
            assert data.count(b"x") == len(data)
            counted += len(data)

    async with offering(short_tmp, guest) as address, bridging(address, spec(path)):
        async with connected(path) as app:
            taken = await send_until_stalled(app, b"x" * 65536, HELD)
            reading.set()
            await until(lambda: counted == taken, "all of it has arrived")


async def test_an_application_that_takes_nothing_stalls_the_guest_and_nothing_is_lost(
    short_tmp: Path, log: EventLog
) -> None:
    path = short_tmp / "s"
    address = UnixAddress(str(short_tmp / "spice"))
    async with served(address, spec(short_tmp / "guest")), bridging(address, spec(path)):
        async with connected(path) as app, connected(short_tmp / "guest") as guest:
            await log.wait("linked", bridge="s")
            taken = await send_until_stalled(guest, b"x" * 65536, HELD)
            assert await read_exactly(app, taken) == b"x" * taken


async def test_a_stalled_direction_does_not_stop_the_other_one(
    short_tmp: Path, log: EventLog
) -> None:
    path = short_tmp / "s"
    address = UnixAddress(str(short_tmp / "spice"))
    async with served(address, spec(short_tmp / "guest")), bridging(address, spec(path)):
        async with connected(path) as app, connected(short_tmp / "guest") as guest:
            await log.wait("linked", bridge="s")
            await send_until_stalled(guest, b"x" * 65536, HELD)
            data = random.Random(6).randbytes(2 * MIB)
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(app.send, data)
                assert await read_exactly(guest, len(data)) == data


async def test_a_slow_bridge_does_not_stop_the_others(short_tmp: Path) -> None:
    async with (
        offering(short_tmp, deaf, echo) as address,
        bridging(address, spec(short_tmp / "a", instance=0), spec(short_tmp / "b", instance=1)),
        connected(short_tmp / "a") as stalled,
        connected(short_tmp / "b") as app,
        anyio.create_task_group() as tasks,
    ):
        await send_until_stalled(stalled, b"x" * 65536, HELD)
        data = random.Random(7).randbytes(4 * MIB)
        tasks.start_soon(app.send, data)
        assert await read_exactly(app, len(data)) == data


# Applications that fail


async def test_an_application_that_dies_while_the_guest_floods_makes_room_for_the_next(
    short_tmp: Path, log: EventLog
) -> None:
    path = short_tmp / "s"

    async def flood(channel: Channel) -> None:
        async with anyio.create_task_group() as tasks:

            async def pour() -> None:
                while True:
                    await channel.send(b"flood" * 10_000)

            tasks.start_soon(pour)
            await silent(channel)
            tasks.cancel_scope.cancel()

    async with offering(short_tmp, flood) as address, bridging(address, spec(path)) as running:
        for _ in range(3):
            async with connected(path) as app:
                assert await read_exactly(app, 500_000) == b"flood" * 100_000
        await log.wait("app-gone", count=3)
        assert not running.ended.is_set()
    assert not log.find("error")
    assert not log.find("app-refused")


async def test_a_message_that_the_server_cuts_off_because_we_leave_is_no_error(
    short_tmp: Path, log: EventLog
) -> None:
    """libspice-server drops a channel in the middle of a message once we have ended our side."""
    path = short_tmp / "s"

    async def guest(channel: Channel) -> None:
        async with anyio.create_task_group() as tasks:

            async def pour() -> None:
                while True:
                    await channel.send(b"x" * 65536)

            tasks.start_soon(pour)
            await silent(channel)
            tasks.cancel_scope.cancel()

    async with offering(short_tmp, guest) as address:
        end = ProcessEndpoint("head -c 1000000")
        async with bridging(address, spec(end)) as running:
            await running.wait()
            assert running.error is None
        async with bridging(address, spec(path)):
            for count in range(1, 4):
                async with connected(path) as app:
                    await read_exactly(app, 1_000_000)
                await log.wait("app-gone", bridge="s", count=count)
    assert not log.find("error")


async def test_an_application_that_resets_its_connection_is_no_error_of_ours(
    short_tmp: Path, log: EventLog
) -> None:
    end = ListeningEndpoint("tcp=127.0.0.1:0", TcpAddress("127.0.0.1", 0))
    async with offering(short_tmp, echo) as address, bridging(address, spec(end)) as running:
        port = int(end.name.rpartition(":")[2])
        for count in (1, 2):
            with socket.create_connection(("127.0.0.1", port)) as app:
                await log.wait("linked", count=count)
                app.sendall(b"x")
                app.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            await log.wait("app-gone", count=count)
        assert not running.ended.is_set()
    assert not log.find("error")


async def test_an_application_that_goes_at_once_is_no_trouble(
    short_tmp: Path, log: EventLog
) -> None:
    path = short_tmp / "s"
    async with offering(short_tmp, echo) as address, bridging(address, spec(path)):
        for _ in range(5):
            async with connected(path):
                pass
        await until(
            lambda: (
                log.find("app-connected")
                and len(log.find("app-connected")) == len(log.find("app-gone"))
            ),
            "all have gone",
        )
        async with connected(path) as app:
            await app.send(b"hello")
            assert await read_exactly(app, 5) == b"hello"
    assert not log.find("error")


async def test_a_program_that_fails_is_told_and_ends_the_bridge(
    short_tmp: Path, log: EventLog
) -> None:
    async with offering(short_tmp, echo) as address:
        async with bridging(address, spec(ProcessEndpoint("sh -c 'exit 3'"))) as running:
            await running.wait()
            assert isinstance(running.error, ApplicationError)
    assert len(log.find("app-gone")) == 1


async def test_a_program_is_an_application_as_any_other(short_tmp: Path) -> None:
    (short_tmp / "out").touch()
    script = f"echo question; head -c 9 > {short_tmp}/out"
    async with offering(short_tmp, echo) as address:
        async with bridging(address, spec(ProcessEndpoint(f"sh -c '{script}'"))) as running:
            await running.wait()
            assert running.error is None
    assert (short_tmp / "out").read_bytes() == b"question\n"


async def test_we_connect_to_an_application_and_end_with_it(short_tmp: Path) -> None:
    listener = await anyio.create_unix_listener(str(short_tmp / "app"))
    async with listener, offering(short_tmp, echo) as address:
        end = ConnectingEndpoint("unixsocket=app", UnixAddress(str(short_tmp / "app")))
        served_apps: list[bytes] = []

        async def application(app: ByteStream) -> None:
            async with app:
                await app.send(b"hello")
                served_apps.append(await read_exactly(app, 5))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(listener.serve, application)
            async with bridging(address, spec(end)) as running:
                await running.wait()
                assert running.error is None
            tasks.cancel_scope.cancel()
    assert served_apps == [b"hello"]


# Channels that cannot be linked


async def test_a_busy_channel_is_an_error_of_that_application_and_the_next_may_have_luck(
    short_tmp: Path, log: EventLog
) -> None:
    async with offering(short_tmp, echo) as address:
        async with bridging(address, spec(short_tmp / "mine")):
            async with bridging(address, spec(short_tmp / "other")):
                async with connected(short_tmp / "other") as holder:
                    await holder.send(b"x")
                    await read_exactly(holder, 1)
                    async with connected(short_tmp / "mine") as app:
                        assert await read_all(app) == b""
                    error = await log.wait("error", bridge="mine")
                    assert error["exit_code"] == ChannelBusyError.exit_code
            async with connected(short_tmp / "mine") as app:
                await app.send(b"hello")
                assert await read_exactly(app, 5) == b"hello"


async def test_a_channel_that_is_free_within_a_moment_is_waited_for(
    short_tmp: Path, log: EventLog
) -> None:
    async with offering(short_tmp, echo) as address:
        async with (
            bridging(address, spec(short_tmp / "a")),
            bridging(address, spec(short_tmp / "b")),
        ):
            async with connected(short_tmp / "a") as holder:
                await holder.send(b"x")
                await read_exactly(holder, 1)
                waiting = await anyio.connect_unix(str(short_tmp / "b"))
                await log.wait("app-connected", bridge="b")
            async with waiting:
                await waiting.send(b"hello")
                assert await read_exactly(waiting, 5) == b"hello"
    assert not log.find("error")


async def test_one_client_cannot_have_a_channel_twice(short_tmp: Path) -> None:
    async with offering(short_tmp, echo) as address:
        both = spec(short_tmp / "a"), spec(short_tmp / "b", instance=0)
        async with bridging(address, *both) as running:
            await running.wait()
            assert isinstance(running.error, UsageError)
    assert not (short_tmp / "a").exists()


async def test_always_with_a_busy_channel_ends_the_bridge(short_tmp: Path) -> None:
    async with offering(short_tmp, echo) as address:
        async with bridging(address, spec(short_tmp / "a", attach="always")):
            async with bridging(address, spec(short_tmp / "b", attach="always")) as running:
                await running.wait()
                assert isinstance(running.error, ChannelBusyError)


# Ending


async def test_stop_with_nobody_there_ends_at_once(short_tmp: Path) -> None:
    async with offering(short_tmp, echo) as address:
        async with bridging(address, spec(short_tmp / "s")) as running:
            await running.stop()
            assert running.error is None
    assert not (short_tmp / "s").exists()


@pytest.mark.parametrize("attach", ["demand", "always"])
async def test_stop_drains_both_ways(short_tmp: Path, attach: str, log: EventLog) -> None:
    """What both had written before arrives: the guest answers up to the end of file."""
    path = short_tmp / "s"
    up, down = random.Random(8).randbytes(100_000), random.Random(9).randbytes(100_000)
    got = bytearray()

    async def guest(channel: Channel) -> None:
        await channel.send(down)
        while data := await channel.read():
            got.extend(data)
        await channel.send(b" and the last word")

    wanted = spec(path, attach="always") if attach == "always" else spec(path)
    async with offering(short_tmp, guest) as address, bridging(address, wanted) as running:
        async with connected(path) as app:
            await log.wait("app-connected")
            await app.send(up)
            await log.wait("linked")
            running.stopping.set()
            assert await read_all(app) == down + b" and the last word"
        await running.wait()
        assert running.error is None
    assert bytes(got) == up


async def test_a_served_guest_is_drained_when_its_client_stops(
    short_tmp: Path, log: EventLog
) -> None:
    path = short_tmp / "s"
    address = UnixAddress(str(short_tmp / "spice"))
    async with served(address, spec(short_tmp / "guest")):
        async with bridging(address, spec(path)) as running:
            async with connected(path) as app, connected(short_tmp / "guest") as guest:
                await log.wait("linked", bridge="s")
                await app.send(b"!")
                await read_exactly(guest, 1)
                await guest.send(b"x" * 100_000)
                running.stopping.set()
                assert await read_all(app) == b"x" * 100_000
            await running.wait()


async def test_an_application_that_the_server_leaves_gets_what_was_on_its_way(
    short_tmp: Path, log: EventLog
) -> None:
    path = short_tmp / "s"
    data = random.Random(10).randbytes(100_000)
    poured = anyio.Event()

    async def guest(channel: Channel) -> None:
        await channel.send(data)
        poured.set()
        await silent(channel)

    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(_leaving_server(short_tmp, guest))
        running = await stack.enter_async_context(bridging(server[0], spec(path)))
        app = await stack.enter_async_context(connected(path))
        await log.wait("linked")
        await poured.wait()
        server[1].cancel()
        assert await read_all(app) == data
        await app.aclose()
        await running.wait()
        assert isinstance(running.error, SessionLostError)


class _leaving_server:  # noqa: N801 - reads like a function
    """An endpoint that can be cancelled alone."""

    def __init__(self, folder: Path, guest: object) -> None:
        self._folder = folder
        self._guest = guest
        self._scope = anyio.CancelScope()

    async def __aenter__(self) -> tuple[UnixAddress, anyio.CancelScope]:
        self._ready = anyio.Event()
        self._tasks = anyio.create_task_group()
        await self._tasks.__aenter__()
        self._tasks.start_soon(self._run)
        await self._ready.wait()
        return UnixAddress(str(self._folder / "spice")), self._scope

    async def _run(self) -> None:
        with self._scope:
            async with offering(self._folder, self._guest):  # type: ignore[arg-type]
                self._ready.set()
                await anyio.sleep_forever()

    async def __aexit__(self, *_: object) -> None:
        self._scope.cancel()
        await self._tasks.__aexit__(None, None, None)


@pytest.mark.parametrize("moment", ["waiting", "joined", "stalled", "always"])
async def test_a_cancellation_closes_everything(
    short_tmp: Path, log: EventLog, moment: str
) -> None:
    path = short_tmp / "s"
    async with offering(short_tmp, deaf if moment == "stalled" else echo) as address:
        async with bridging(address, spec(path)) as warm:  # what the event loop opens for itself
            await warm.stop()
        tasks, fds = len(anyio.get_running_tasks()), open_fds()
        wanted = spec(path, attach="always") if moment == "always" else spec(path)
        async with bridging(address, wanted) as running:
            if moment in {"joined", "stalled"}:
                async with connected(path) as app:
                    await log.wait("linked")
                    if moment == "joined":
                        await app.send(b"x")
                        await read_exactly(app, 1)
                    else:
                        await send_until_stalled(app, b"x" * 65536, HELD)
                    running.cancel_scope.cancel()
                    await running.wait()
            else:
                running.cancel_scope.cancel()
                await running.wait()
        await until(lambda: open_fds() == fds, "every descriptor is closed")
        assert len(anyio.get_running_tasks()) == tasks
    assert not path.exists()


# Under load


class Pour:
    """Random pieces with random pauses, one way: what is sent, and that it arrives as it was."""

    def __init__(self, seed: str) -> None:
        self._dice = random.Random(seed)
        self._pieces = [
            self._dice.randbytes(int(self._dice.paretovariate(0.4)) % 300_000) for _ in range(40)
        ]

    async def send(self, stream: ByteStream) -> None:
        for piece in self._pieces:
            await stream.send(piece)
            await self._pause()

    async def receive(self, stream: ByteStream) -> None:
        sent, got = hashlib.sha256(), hashlib.sha256()
        for piece in self._pieces:
            sent.update(piece)
        left = sum(map(len, self._pieces))
        with anyio.fail_after(PATIENCE):
            while left:
                size = 1 + int(self._dice.paretovariate(0.3)) % 70_000
                data = await stream.receive(min(size, left))
                got.update(data)
                left -= len(data)
                await self._pause()
        assert got.digest() == sent.digest()

    async def _pause(self) -> None:
        if self._dice.random() < 0.1:
            await anyio.sleep(self._dice.random() * 0.01)


@pytest.mark.parametrize("seed", range(3))
async def test_random_pieces_with_random_pauses_arrive_whole_both_ways_on_several_channels(
    short_tmp: Path, seed: int
) -> None:
    numbers = range(3)
    address = UnixAddress(str(short_tmp / "spice"))
    guests = [spec(short_tmp / f"guest-{n}", instance=n) for n in numbers]
    apps = [spec(short_tmp / f"app-{n}", instance=n) for n in numbers]
    async with served(address, *guests), bridging(address, *apps), AsyncExitStack() as stack:
        pairs = [
            (
                await stack.enter_async_context(connected(short_tmp / f"app-{number}")),
                await stack.enter_async_context(connected(short_tmp / f"guest-{number}")),
            )
            for number in numbers
        ]
        async with anyio.create_task_group() as tasks:
            for number, (app, guest) in enumerate(pairs):
                for way, (source, sink) in {"up": (app, guest), "down": (guest, app)}.items():
                    pour = Pour(f"{seed} {number} {way}")
                    tasks.start_soon(pour.send, source)
                    tasks.start_soon(pour.receive, sink)


async def test_no_warning_is_logged_where_all_goes_well(short_tmp: Path, log: EventLog) -> None:
    path = short_tmp / "s"
    async with offering(short_tmp, echo) as address, bridging(address, spec(path)) as running:
        async with connected(path) as app:
            await app.send(b"hello")
            await read_exactly(app, 5)
        await log.wait("app-gone")
        async with connected(path) as app:
            await app.send(b"hello")
            await app.send_eof()
            await read_exactly(app, 5)
        await log.wait("app-gone", count=2)
        await running.stop()
    assert not log.messages(logging.WARNING)
