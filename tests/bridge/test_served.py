"""A raw bridge on the server's side: local programs and sockets play the guest."""

# ruff: noqa: SIM117 - which of them lives inside which is the point

from __future__ import annotations

import os
from pathlib import Path

import anyio
import pytest

from spicebridge import (
    Application,
    BridgeSpec,
    Channel,
    ChannelClosedError,
    ChannelInfo,
    ChannelWanted,
    PortEvent,
    ProcessEndpoint,
    StdioEndpoint,
    TcpAddress,
    UnixAddress,
    UsageError,
    open_session,
)
from spicebridge.bridge.served import ServedBridge
from spicebridge.bridge.serving import offers, serve_bridges
from spicebridge.protocol.constants import PortEventType
from spicebridge.transport.target import Target
from tests.bridge.tools import (
    EventLog,
    bridging,
    connected,
    open_fds,
    read_all,
    read_exactly,
    served,
    spec,
    until,
)
from tests.conftest import PATIENCE

# What is offered


def numbers(*specs: BridgeSpec) -> list[tuple[int, int]]:
    made = offers(specs, [ServedBridge(each) for each in specs])
    return [(offer.type, offer.id) for offer in made]


def test_channels_without_a_number_get_the_lowest_free_one(short_tmp: Path) -> None:
    path = short_tmp / "s"
    assert numbers(
        spec(path),
        spec(path, instance=1),
        spec(path, instance=0, kind=9),
        spec(path, kind=9),
        spec(path),
        spec(path, port="a"),
        spec(path, port="b"),
    ) == [(128, 0), (128, 1), (9, 0), (9, 1), (128, 2), (10, 0), (10, 1)]


def test_no_channel_is_offered_twice(short_tmp: Path) -> None:
    with pytest.raises(UsageError, match="the same type and instance"):
        numbers(spec(short_tmp, instance=3), spec(short_tmp, instance=3))


def test_no_port_is_offered_twice(short_tmp: Path) -> None:
    with pytest.raises(UsageError, match="port=a is offered twice"):
        numbers(spec(short_tmp, port="a"), spec(short_tmp, port="a"))


@pytest.mark.parametrize("name", ["*", "a?", "[ab]"])
def test_no_port_is_offered_by_a_wildcard(short_tmp: Path, name: str) -> None:
    with pytest.raises(UsageError, match="a name without wildcards"):
        numbers(spec(short_tmp, port=name))


def test_a_type_has_256_instances_and_no_more(short_tmp: Path) -> None:
    specs = [spec(short_tmp)] * 256
    assert numbers(*specs)[-1] == (128, 255)
    with pytest.raises(UsageError, match="256"):
        numbers(*specs, spec(short_tmp))


# Guests


async def test_a_second_guest_is_refused_and_the_first_stays(
    short_tmp: Path, log: EventLog
) -> None:
    address = UnixAddress(str(short_tmp / "spice"))
    async with served(address, spec(short_tmp / "guest")):
        async with connected(short_tmp / "guest") as first:
            await log.wait("app-connected")
            async with connected(short_tmp / "guest") as second:
                assert await read_all(second) == b""
            refused = await log.wait("app-refused")
            assert refused["holder"].startswith(f"pid {os.getpid()} ")
            async with bridging(address, spec(short_tmp / "s")), connected(short_tmp / "s") as app:
                await app.send(b"hello")
                assert await read_exactly(first, 5) == b"hello"


@pytest.mark.parametrize("linked", [True, False], ids=["linked", "alone"])
async def test_a_guest_that_comes_right_after_another_has_gone_is_taken(
    short_tmp: Path, log: EventLog, linked: bool
) -> None:
    address = UnixAddress(str(short_tmp / "spice"))
    async with (
        served(address, spec(short_tmp / "guest")),
        bridging(address, spec(short_tmp / "s", on_close="keep")),
    ):
        if linked:
            async with connected(short_tmp / "s") as app:
                for number in range(5):
                    async with connected(short_tmp / "guest") as guest:
                        await guest.send(b"%d" % number)
                        assert await read_exactly(app, 1) == b"%d" % number
        else:
            for count in range(1, 6):
                async with connected(short_tmp / "guest"):
                    await log.wait("app-connected", count=count)
    assert not log.find("app-refused")


async def test_a_client_is_told_as_the_guest_comes_and_goes(short_tmp: Path, log: EventLog) -> None:
    address = UnixAddress(str(short_tmp / "spice"))
    seen: list[PortEventType] = []

    async def watch(channel: Channel) -> None:
        while (items := await channel.receive()) is not None:
            seen.extend(item.event for item in items if isinstance(item, PortEvent))

    async with served(address, spec(short_tmp / "guest", port="p")):
        async with open_session(Target(address)) as session:
            async with await session.open_channel(ChannelInfo(10, 0)) as channel:
                assert channel.port
                assert (channel.port.name, channel.port.opened) == ("p", False)
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(watch, channel)
                    for count in (1, 2):
                        async with connected(short_tmp / "guest"):
                            await until(lambda: len(seen) == 2 * count - 1, "opened")  # noqa: B023
                        await until(lambda: len(seen) == 2 * count, "closed")  # noqa: B023
                    tasks.cancel_scope.cancel()
            async with connected(short_tmp / "guest"):
                await log.wait("app-connected", count=3)
                async with await session.open_channel(ChannelInfo(10, 0)) as channel:
                    assert channel.port
                    assert channel.port.opened
    assert seen == [PortEventType.OPENED, PortEventType.CLOSED] * 2


async def test_a_guest_that_no_client_has_met_may_go_again(short_tmp: Path, log: EventLog) -> None:
    address = UnixAddress(str(short_tmp / "spice"))
    async with served(address, spec(short_tmp / "guest")), bridging(address, spec(short_tmp / "s")):
        async with connected(short_tmp / "guest"):
            await log.wait("app-connected")
        async with connected(short_tmp / "s") as app, connected(short_tmp / "guest") as guest:
            await app.send(b"hello")
            assert await read_exactly(guest, 5) == b"hello"


async def test_a_guest_sees_end_of_file_when_its_client_goes(short_tmp: Path) -> None:
    address = UnixAddress(str(short_tmp / "spice"))
    async with served(address, spec(short_tmp / "guest")), bridging(address, spec(short_tmp / "s")):
        for _ in range(2):
            async with connected(short_tmp / "guest") as guest:
                async with connected(short_tmp / "s") as app:
                    await guest.send(b"hello")
                    assert await read_exactly(app, 5) == b"hello"
                    await app.send(b"last words")
                assert await read_all(guest) == b"last words"


async def test_a_guest_with_on_close_keep_meets_one_client_after_another(short_tmp: Path) -> None:
    address = UnixAddress(str(short_tmp / "spice"))
    async with (
        served(address, spec(short_tmp / "guest", on_close="keep")),
        bridging(address, spec(short_tmp / "s")),
        connected(short_tmp / "guest") as guest,
    ):
        for number in range(3):
            async with connected(short_tmp / "s") as app:
                await app.send(b"%d" % number)
                assert await read_exactly(guest, 1) == b"%d" % number
                await guest.send(b"answer")
                assert await read_exactly(app, 6) == b"answer"


async def test_a_program_per_client_and_one_for_all_with_always(
    short_tmp: Path, log: EventLog
) -> None:
    address = UnixAddress(str(short_tmp / "spice"))
    program = "sh -c 'echo $$; cat'"
    async with served(
        address,
        spec(ProcessEndpoint(program), instance=0),
        spec(ProcessEndpoint(program), instance=1, attach="always", name="always"),
    ):
        await log.wait("app-connected", bridge="always")
        assert len(log.find("app-connected")) == 1
        own, common = spec(short_tmp / "own", instance=0), spec(short_tmp / "common", instance=1)
        async with bridging(address, own, common):
            for count in (1, 2):
                async with connected(short_tmp / "own") as app:
                    assert (await read_exactly(app, 1)).isdigit()
                await until(lambda: len(log.find("app-gone", bridge=own.name)) == count, "it left")  # noqa: B023
                async with connected(short_tmp / "common") as app:
                    await app.send(b"hello")
                    wanted = b"hello" if count == 2 else await read_exactly(app, 1)
                    if count == 2:
                        assert await read_exactly(app, 5) == wanted
        assert len(log.find("app-connected", bridge="always")) == 1


async def test_asking_for_the_names_of_ports_does_not_use_up_a_guest_on_stdio(
    short_tmp: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a port that stdio plays could never be bridged by its name, and ``list`` ended it."""
    from spicebridge.endpoints import stdio

    (stdin, writer), (reader, stdout) = os.pipe(), os.pipe()
    monkeypatch.setattr(stdio, "_STDIN", stdin)
    monkeypatch.setattr(stdio, "_STDOUT", stdout)
    address = UnixAddress(str(short_tmp / "spice"))
    wanted = BridgeSpec("p", ChannelWanted(10, port="p"), StdioEndpoint())
    try:
        async with served(address, wanted) as server:
            async with open_session(Target(address)) as session:
                names = [info.port.name async for info in session.ports() if info.port]
                assert names == ["p"]
            with anyio.move_on_after(0.5):
                await server.ended.wait()
            assert not server.ended.is_set()
            async with bridging(address, spec(short_tmp / "s", port="p")):
                async with connected(short_tmp / "s") as app:
                    os.write(writer, b"hello")
                    assert await read_exactly(app, 5) == b"hello"
            with anyio.fail_after(PATIENCE):
                await server.ended.wait()
    finally:
        for fd in (stdin, stdout, reader, writer):
            os.close(fd)


async def test_a_client_that_stops_is_let_go_though_its_guest_stays(
    short_tmp: Path, log: EventLog
) -> None:
    """The guest may take its time with its end of file: that is not for the client to wait for."""
    address = UnixAddress(str(short_tmp / "spice"))
    async with served(address, spec(short_tmp / "guest")):
        async with connected(short_tmp / "guest") as guest:
            async with bridging(address, spec(short_tmp / "s")) as running:
                async with connected(short_tmp / "s") as app:
                    await app.send(b"hello")
                    assert await read_exactly(guest, 5) == b"hello"
                    running.stopping.set()
                    assert await read_all(app) == b""
                await running.wait()
    assert not [each for each in log.records if "does not close its side" in each.getMessage()]


async def test_stop_drains_guest_and_client(short_tmp: Path, log: EventLog) -> None:
    address = UnixAddress(str(short_tmp / "spice"))
    async with served(address, spec(short_tmp / "guest")) as server:
        async with bridging(address, spec(short_tmp / "s")):
            async with connected(short_tmp / "guest") as guest, connected(short_tmp / "s") as app:
                await app.send(b"!")
                await read_exactly(guest, 1)
                await guest.send(b"d" * 100_000)
                await app.send(b"u" * 100_000)
                server.stopping.set()
                assert await read_all(app) == b"d" * 100_000
                await app.aclose()
                assert await read_all(guest) == b"u" * 100_000
        await server.wait()
        assert server.error is None
    assert not (short_tmp / "guest").exists()
    assert not (short_tmp / "spice").exists()


@pytest.mark.parametrize("how", ["stop", "cancel"])
async def test_a_guest_that_no_client_has_is_let_go_at_the_end(
    short_tmp: Path, log: EventLog, how: str
) -> None:
    address = UnixAddress(str(short_tmp / "spice"))
    async with served(address, spec(short_tmp / "guest")) as warm:  # what the loop opens for itself
        await warm.stop()
    before = open_fds()
    async with served(address, spec(short_tmp / "guest")) as server:
        async with connected(short_tmp / "guest") as guest:
            await log.wait("app-connected")
            if how == "cancel":
                server.cancel_scope.cancel()
            else:
                server.stopping.set()
            await server.wait()
            assert await read_all(guest) == b""
    await until(lambda: open_fds() == before, "every descriptor is closed")


async def test_a_program_that_no_client_has_is_ended_at_the_end(
    short_tmp: Path, log: EventLog
) -> None:
    address = UnixAddress(str(short_tmp / "spice"))
    script = f"cat >/dev/null; echo ended > {short_tmp}/left"
    program = spec(ProcessEndpoint(f"sh -c '{script}'"), attach="always")
    async with served(address, program) as server:
        await log.wait("app-connected")
        await server.stop()
        assert (short_tmp / "left").read_text() == "ended\n"


async def test_a_program_with_a_client_is_ended_at_the_end(short_tmp: Path, log: EventLog) -> None:
    address = UnixAddress(str(short_tmp / "spice"))
    script = f"cat >/dev/null; echo ended > {short_tmp}/left"
    async with served(address, spec(ProcessEndpoint(f"sh -c '{script}'"))) as server:
        async with bridging(address, spec(short_tmp / "s")), connected(short_tmp / "s") as app:
            await log.wait("linked", bridge="s")
            server.stopping.set()
            assert await read_all(app) == b""
            await app.aclose()
            await server.wait()
        assert (short_tmp / "left").read_text() == "ended\n"


# Clients that cost something


async def test_without_a_password_others_are_not_let_in_unsaid(
    short_tmp: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def warned(host: str, password: str | None) -> bool:
        caplog.clear()
        stop = anyio.Event()
        stop.set()
        with anyio.fail_after(PATIENCE):
            await serve_bridges(
                TcpAddress(host, 0), [spec(short_tmp / "s")], password=password, stop=stop
            )
        return "may use these channels; --password-file keeps others out" in caplog.text

    assert await warned("0.0.0.0", None)
    assert not await warned("0.0.0.0", "sesame")
    assert not await warned("127.0.0.1", None)


async def test_a_program_whose_client_went_before_it_came_is_let_go(
    short_tmp: Path, log: EventLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is not for the next client."""
    address = UnixAddress(str(short_tmp / "spice"))
    gone = anyio.Event()

    class Slow(ProcessEndpoint):
        async def accept(self) -> Application:
            application = await super().accept()
            await gone.wait()
            return application

    async with served(address, spec(Slow("cat"), port="x")):
        async with open_session(Target(address)) as session:
            channel = await session.open_channel(ChannelInfo(10, 0))
            await channel.send(b"x")
            await log.wait("linked")
            monkeypatch.setattr("spicebridge.bridge.served._tell", refuse)
            gone.set()
            await log.wait("app-gone")
            channel.abort()


async def refuse(*_: object) -> None:
    raise ChannelClosedError("the link of port:0 broke: Connection reset by peer")


async def test_no_more_programs_are_on_their_way_out_than_may_be(
    short_tmp: Path, log: EventLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("spicebridge.bridge.served._MAX_LEAVING", 1)
    monkeypatch.setattr("spicebridge.bridge.join.CLOSE_TIMEOUT", 0.1)
    monkeypatch.setattr("spicebridge.endpoints.process.EXIT_TIMEOUT", 0.1)
    address = UnixAddress(str(short_tmp / "spice"))
    stubborn = ProcessEndpoint("sleep 1000")
    async with served(address, spec(stubborn)), open_session(Target(address)) as session:
        for count in (1, 2, 3):
            channel = await session.open_channel(ChannelInfo(128, 0))
            await channel.send(b"x")
            await log.wait("app-connected", count=count)
            if count == 3:  # the second had to go before its client's channel was free
                assert log.find("app-gone")
            await channel.aclose()
    assert len(log.find("app-gone")) == 3
