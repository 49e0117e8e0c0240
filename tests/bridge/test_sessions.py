"""Bridges that stay while their server goes away and comes back."""

# ruff: noqa: SIM117 - which of them lives inside which is the point

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest
from anyio.abc import TaskGroup, TaskStatus

from spicebridge import (
    Channel,
    ChannelBusyError,
    ChannelInfo,
    ChannelNotFoundError,
    ConnectError,
    LoginError,
    ProtocolError,
    SessionLostError,
    SpicebridgeError,
    UnixAddress,
    UsageError,
)
from spicebridge.bridge import raw as raw_module
from spicebridge.bridge import retry as retry_module
from spicebridge.bridge import sessions as sessions_module
from spicebridge.bridge import supervisor as supervisor_module
from spicebridge.bridge.line import Line
from spicebridge.bridge.raw import RawBridge
from spicebridge.client import session as session_module
from spicebridge.errors import TakeoverError, TlsError
from spicebridge.protocol.constants import Msg
from spicebridge.protocol.messages import stored_head
from spicebridge.server.endpoint import Offer, SpiceEndpoint
from spicebridge.transport.listen import listen
from spicebridge.transport.target import Target
from tests.bridge.mux_tools import demux
from tests.bridge.test_line import FakeSession
from tests.bridge.tools import (
    USER,
    EventLog,
    Guest,
    bridging,
    connected,
    echo,
    opened,
    read_all,
    read_exactly,
    spec,
    until,
)
from tests.client.fake_servers import fake_server
from tests.client.test_misbehaving_servers import CHANNELS, MAIN_INIT, main_that, server
from tests.server.serving import make_quick
from tests.transport.peer import linked

DAILY = 0.05
"""Seconds between two tries at most."""


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    make_quick(monkeypatch)
    monkeypatch.setattr(retry_module, "FIRST_DELAY", 0.01)
    monkeypatch.setattr(raw_module, "_LOOK_EVERY", 0.05)
    monkeypatch.setattr("spicebridge.server.session.SESSION_GRACE", 0.05)
    monkeypatch.setattr(session_module, "CLOSE_TIMEOUT", 0.05)


class Server:
    """A SPICE server that comes and goes, always at the same address.

    Attributes:
        address: where.
        guests: of the channels 128:0, 128:1 … at the next `start`.
        password: its ticket, likewise.
    """

    def __init__(self, folder: Path, tasks: TaskGroup) -> None:
        self.address = UnixAddress(str(folder / "spice"))
        self.guests: list[Guest] = [echo]
        self.password: str | None = None
        self._tasks = tasks
        self._scope = anyio.CancelScope()
        self._gone = anyio.Event()

    async def _run(self, *, task_status: TaskStatus[None]) -> None:
        offers = [Offer(USER, number, opened(guest)) for number, guest in enumerate(self.guests)]
        endpoint = SpiceEndpoint(offers, self.password)
        with anyio.CancelScope() as self._scope, await listen(self.address) as listener:
            task_status.started()
            await endpoint.serve(listener)
        self._gone.set()

    async def start(self) -> None:
        """Comes."""
        self._gone = anyio.Event()
        await self._tasks.start(self._run)

    async def stop(self) -> None:
        """Goes, with all that it has."""
        self._scope.cancel()
        await self._gone.wait()


@asynccontextmanager
async def coming_and_going(folder: Path, *, there: bool = True) -> AsyncIterator[Server]:
    """A server; `there` tells whether it has come by now."""
    async with anyio.create_task_group() as tasks:
        at = Server(folder, tasks)
        if there:
            await at.start()
        yield at
        tasks.cancel_scope.cancel()


# The server goes and comes back


async def test_an_application_that_comes_while_the_server_is_away_waits_with_its_bytes(
    short_tmp: Path, log: EventLog
) -> None:
    path = short_tmp / "s"
    async with (
        coming_and_going(short_tmp) as at,
        bridging(at.address, spec(path), reconnect=DAILY) as running,
    ):
        async with connected(path) as app:
            await app.send(b"x")
            assert await read_exactly(app, 1) == b"x"
            await at.stop()
            assert await read_all(app) == b""
        await log.wait("away")
        async with connected(path) as app:
            await app.send(b"sent while it was away")
            await until(lambda: running.bridges[0].state == "server away", "it is told")
            await at.start()
            assert await read_exactly(app, 22) == b"sent while it was away"
        assert running.sessions == [True, True]
        assert not running.ended.is_set()
        await running.stop()
        assert running.error is None
    assert not log.find("error")
    assert not log.find("app-refused")


async def test_a_server_may_come_and_go_often(short_tmp: Path, log: EventLog) -> None:
    path = short_tmp / "s"
    async with coming_and_going(short_tmp) as at:
        async with bridging(at.address, spec(path), reconnect=DAILY, takeover_limit=0) as running:
            for number in range(4):
                async with connected(path) as app:
                    await app.send(b"%d" % number)
                    assert await read_exactly(app, 1) == b"%d" % number
                await at.stop()
                await log.wait("app-gone", count=number + 1)
                await at.start()
            await until(lambda: len(running.sessions) == 5, "the last session")


async def test_an_application_that_goes_while_it_waits_leaves_the_bridge_to_the_next(
    short_tmp: Path, log: EventLog
) -> None:
    path = short_tmp / "s"
    async with (
        coming_and_going(short_tmp, there=False) as at,
        bridging(at.address, spec(path), reconnect=DAILY),
    ):
        async with connected(path):
            await log.wait("app-connected")
        await log.wait("app-gone")
        async with connected(path) as app:
            await app.send(b"next")
            await log.wait("app-connected", count=2)
            await at.start()
            assert await read_exactly(app, 4) == b"next"


async def test_what_an_application_wrote_that_went_while_it_waited_is_sent_nevertheless(
    short_tmp: Path, log: EventLog
) -> None:
    path = short_tmp / "s"
    got = bytearray()

    async def guest(channel: Channel) -> None:
        while data := await channel.read():
            got.extend(data)

    async with (
        coming_and_going(short_tmp, there=False) as at,
        bridging(at.address, spec(path), reconnect=DAILY),
    ):
        at.guests = [guest]
        async with connected(path) as app:
            await app.send(b"left behind")
            await log.wait("app-connected")
        await anyio.sleep(0.2)
        assert not log.find("app-gone")
        await at.start()
        await until(lambda: got == b"left behind", "it has come")
        await log.wait("app-gone")


async def test_always_links_in_each_session(short_tmp: Path, log: EventLog) -> None:
    path = short_tmp / "s"
    links: list[Channel] = []

    async def guest(channel: Channel) -> None:
        links.append(channel)
        await channel.send(b"banner %d" % len(links))
        await echo(channel)

    async with coming_and_going(short_tmp) as at:
        at.guests = [guest]
        await at.stop()
        await at.start()
        async with bridging(
            at.address, spec(path, attach="always"), reconnect=DAILY, takeover_limit=0
        ):
            await until(lambda: links, "the guest sees us")
            for count in (2, 3):
                await at.stop()
                await at.start()
                await until(lambda: len(links) == count, "it is linked again")  # noqa: B023
            async with connected(path) as app:
                assert (await read_exactly(app, 8)).startswith(b"banner")


async def test_always_does_not_try_without_end_what_one_session_refuses(
    short_tmp: Path, log: EventLog
) -> None:
    """Each try that fails at once would be followed by another one."""
    good, bad, last = FakeSession(), FakeSession(ChannelBusyError("busy")), FakeSession()
    line, info = Line(), ChannelInfo(USER, 0)
    wanted = spec(short_tmp / "s", attach="always")
    with linked() as (first, one), linked() as (second, two):
        good.channel, last.channel = first, second
        line.connect(good.session, info)
        async with wanted.endpoint, anyio.create_task_group() as tasks:
            tasks.start_soon(RawBridge(wanted).run, line)
            await log.wait("linked")
            good.lost.set()
            one.sock.close()
            line.disconnect()
            line.connect(bad.session, info)
            await log.wait("error")
            await anyio.sleep(0.1)
            assert bad.asked == 1
            line.disconnect()
            line.connect(last.session, info)
            await log.wait("linked", count=2)
            two.sock.close()
            tasks.cancel_scope.cancel()


async def test_the_state_is_told_to_people(short_tmp: Path, log: EventLog) -> None:
    told: list[str] = []
    async with (
        coming_and_going(short_tmp) as at,
        bridging(at.address, spec(short_tmp / "s"), reconnect=DAILY, tell=told.append),
    ):
        await at.stop()
        await log.wait("away", level="WARNING")
        await until(lambda: len(log.find("away")) > 3, "it is tried again and again")
        assert any("trying again" in line for line in told)
    warnings = log.find("away", level="WARNING")
    assert len(warnings) == 1, "the same is told again and again"
    assert warnings[0]["delay"] <= DAILY


async def test_without_reconnect_a_lost_session_is_the_end(short_tmp: Path) -> None:
    async with coming_and_going(short_tmp) as at, bridging(at.address, spec(short_tmp / "s")) as on:
        await at.stop()
        await on.wait()
        assert isinstance(on.error, SessionLostError)


# At the start


async def test_a_server_that_is_away_at_the_start_is_waited_for(
    short_tmp: Path, log: EventLog
) -> None:
    path = short_tmp / "s"
    async with coming_and_going(short_tmp, there=False) as at:
        async with bridging(at.address, spec(path), reconnect=DAILY) as running:
            assert running.sessions == [False]
            assert running.bridges[0].channel is None
            async with connected(path) as app:
                await app.send(b"early")
                await log.wait("app-connected")
                await at.start()
                assert await read_exactly(app, 5) == b"early"
            assert running.sessions == [False, True]
            assert running.bridges[0].channel == ChannelInfo(USER, 0)


async def test_without_reconnect_that_is_an_error(short_tmp: Path) -> None:
    async with coming_and_going(short_tmp, there=False) as at:
        async with bridging(at.address, spec(short_tmp / "s")) as running:
            await running.wait()
            assert isinstance(running.error, ConnectError)
            assert running.sessions == []


async def test_what_is_a_mistake_at_the_start_is_not_tried_again(short_tmp: Path) -> None:
    async with coming_and_going(short_tmp) as at:
        wanted = spec(short_tmp / "s", instance=7)
        async with bridging(at.address, wanted, reconnect=DAILY) as running:
            await running.wait()
            assert isinstance(running.error, ChannelNotFoundError)


async def test_a_channel_that_is_not_there_yet_after_a_restart_is_waited_for(
    short_tmp: Path, log: EventLog
) -> None:
    path = short_tmp / "s"
    async with coming_and_going(short_tmp) as at:
        at.guests = [echo, echo]
        await at.stop()
        await at.start()
        async with bridging(at.address, spec(path, instance=1), reconnect=DAILY) as running:
            await at.stop()
            at.guests = [echo]
            await at.start()
            await until(
                lambda: any("offers no instance 1" in each["message"] for each in log.find("away")),
                "it is missed",
            )
            await at.stop()
            at.guests = [echo, echo]
            await at.start()
            await until(lambda: len(running.sessions) == 2, "it is there again")


# What is tried again


@contextmanager
def failing(
    patch: pytest.MonkeyPatch, *errors: SpicebridgeError, at_once: bool = False
) -> Iterator[list[Target]]:
    """After the first session, or `at_once`, others fail with these errors; gives the targets."""
    tried: list[Target] = []
    real = session_module.open_session
    left = list(errors)

    @asynccontextmanager
    async def open_session(target: Target, **options: Any) -> AsyncIterator[session_module.Session]:
        tried.append(target)
        if left and (at_once or len(tried) > 1):
            raise left.pop(0)
        async with real(target, **options) as session:
            yield session

    patch.setattr(sessions_module, "open_session", open_session)
    yield tried


@pytest.mark.parametrize("error", [LoginError, TlsError, UsageError])
async def test_what_trying_again_does_not_mend_is_the_end(
    short_tmp: Path, monkeypatch: pytest.MonkeyPatch, error: type[SpicebridgeError]
) -> None:
    with failing(monkeypatch, error("no")) as tried:
        async with coming_and_going(short_tmp) as at:
            async with bridging(at.address, spec(short_tmp / "s"), reconnect=DAILY) as running:
                await at.stop()
                await running.wait()
                assert type(running.error) is error
    assert len(tried) == 2


async def test_all_else_may_mend_itself(short_tmp: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    errors = [
        ConnectError("no"),
        SessionLostError("no"),
        ProtocolError("x", 0, "a", "b"),
        ChannelNotFoundError("no"),
        ChannelBusyError("no"),
    ]
    with failing(monkeypatch, *errors) as tried:
        async with coming_and_going(short_tmp) as at:
            async with bridging(at.address, spec(short_tmp / "s"), reconnect=DAILY) as running:
                await at.stop()
                await at.start()
                await until(lambda: len(running.sessions) == 2, "another session")
    assert len(tried) >= 2 + len(errors)


@pytest.mark.parametrize("error", [LoginError, TlsError])
async def test_nor_is_it_at_the_start(
    short_tmp: Path, monkeypatch: pytest.MonkeyPatch, error: type[SpicebridgeError]
) -> None:
    where = UnixAddress(str(short_tmp / "spice"))
    with failing(monkeypatch, error("no"), at_once=True) as tried:
        async with bridging(where, spec(short_tmp / "s"), reconnect=DAILY) as running:
            await running.wait()
            assert type(running.error) is error
    assert len(tried) == 1


# Passwords


@pytest.mark.parametrize("answer", ["new", "old", None])
async def test_a_password_that_is_refused_later_is_asked_for_again(
    short_tmp: Path, answer: str | None
) -> None:
    asked = 0

    async def renew() -> str:
        nonlocal asked
        asked += 1
        assert answer is not None
        return answer

    path = short_tmp / "s"
    async with coming_and_going(short_tmp, there=False) as at:
        at.password = "old"
        await at.start()
        target = Target(at.address, password="old")
        async with bridging(
            target, spec(path), reconnect=DAILY, renew=renew if answer else None
        ) as running:
            await at.stop()
            at.password = "new"
            await at.start()
            if answer == "new":
                async with connected(path) as app:
                    await app.send(b"x")
                    assert await read_exactly(app, 1) == b"x"
                assert not running.ended.is_set()
            else:
                await running.wait()
                assert isinstance(running.error, LoginError)
    assert asked == (answer is not None)


# Takeovers


async def test_a_session_that_is_taken_over_again_and_again_is_left_to_the_other_client(
    short_tmp: Path, log: EventLog
) -> None:
    takes_it_away = main_that(MAIN_INIT, CHANNELS, stays=False)
    async with server(short_tmp, takes_it_away) as address:
        async with bridging(address, spec(short_tmp / "s", kind=10), reconnect=DAILY) as running:
            await running.wait()
            assert isinstance(running.error, TakeoverError)
            assert str(address) in str(running.error)
            assert len(running.sessions) == 3
    (told,) = log.find("takeover")
    assert told["takeovers"] == 2


async def test_a_limit_of_0_goes_on(short_tmp: Path) -> None:
    takes_it_away = main_that(MAIN_INIT, CHANNELS, stays=False)
    wanted = spec(short_tmp / "s", kind=10)
    async with server(short_tmp, takes_it_away) as address:
        async with bridging(address, wanted, reconnect=DAILY, takeover_limit=0) as running:
            await until(lambda: len(running.sessions) > 5, "many sessions")
            await running.stop()
            assert running.error is None


# Silence


async def test_a_server_that_falls_silent_is_away(short_tmp: Path, log: EventLog) -> None:
    wanted = spec(short_tmp / "s", kind=10)
    async with (
        server(short_tmp, main_that(MAIN_INIT, CHANNELS), kind="tcp") as address,
        bridging(address, wanted, reconnect=DAILY, idle_timeout=0.1) as running,
    ):
        told = await log.wait("session-lost")
        assert "has said nothing for 0.1 seconds" in told["message"]
        await until(lambda: len(running.sessions) > 2, "another session")


# The machine moves


async def test_a_session_goes_on_where_its_machine_has_gone(short_tmp: Path, log: EventLog) -> None:
    path = short_tmp / "s"
    async with (
        fake_server() as here,
        fake_server() as there,
        bridging(here.address, spec(path, kind=10)) as running,
    ):
        async with connected(path) as app:
            await here.linked(10, 0)
            await here.main.says(there.switch())
            assert await read_all(app) == b""
        moved = await log.wait("moved")
        assert moved["to"] == str(there.address)
        async with connected(path) as app:
            await app.send(b"hello")
            await (await there.linked(10, 0)).hears(Msg.COMPRESSED_DATA, stored_head(5) + b"hello")
        await until(lambda: len(running.sessions) == 2, "it is told")


async def test_both_servers_are_tried_once_a_machine_has_moved(
    short_tmp: Path, log: EventLog
) -> None:
    """It may have moved back while nobody looked."""
    async with fake_server() as here, fake_server() as there:
        wanted = spec(short_tmp / "s", kind=10)
        async with bridging(here.address, wanted, reconnect=DAILY) as running:
            await here.main.says(there.switch())
            await until(lambda: len(running.sessions) == 2, "it has moved")
            count = here.count
            there.mode = "refuses"
            there.main.dies()
            await until(lambda: here.count > count, "the first one is tried")
            await until(lambda: len(running.sessions) == 3, "it has moved back")
    assert log.find("moved")


# The end


@pytest.mark.parametrize("there", [True, False], ids=["later", "at the start"])
@pytest.mark.parametrize("what", ["idle", "waiting", "always", "demux"])
async def test_stop_while_the_server_is_away_is_quick_and_quiet(
    short_tmp: Path,
    log: EventLog,
    monkeypatch: pytest.MonkeyPatch,
    what: str,
    there: bool,
) -> None:
    monkeypatch.setattr(supervisor_module, "DRAIN_TIMEOUT", 1000.0)
    path = short_tmp / "s"
    wanted = spec(path, attach="always" if what == "always" else "demand")
    if what == "demux":
        wanted = demux(path, kind=USER)
    async with coming_and_going(short_tmp, there=there) as at:
        async with bridging(at.address, wanted, reconnect=1000.0) as running:
            if there:
                await at.stop()
                await log.wait("session-lost")
            if what == "waiting":
                async with connected(path) as app:
                    await app.send(b"x")
                    await log.wait("app-connected")
                    await running.stop()
            else:
                await running.stop()
            assert running.error is None
    assert not log.messages(logging.ERROR)


async def test_stop_while_a_session_is_being_opened_is_quick_and_quiet(
    short_tmp: Path, log: EventLog
) -> None:
    async with fake_server("serves") as here:
        wanted = spec(short_tmp / "s", kind=10)
        async with bridging(here.address, wanted, reconnect=DAILY) as running:
            here.mode = "silent"
            here.main.dies()
            await log.wait("session-lost")
            await until(lambda: here.open, "it is tried again")
            await running.stop()
            assert running.error is None
        await until(lambda: not here.open, "it is closed")


async def test_an_application_is_served_to_its_end_while_the_session_stops(
    short_tmp: Path, log: EventLog
) -> None:
    path = short_tmp / "s"
    got = bytearray()

    async def guest(channel: Channel) -> None:
        while data := await channel.read():
            got.extend(data)
            await anyio.sleep(0.01)

    async with coming_and_going(short_tmp, there=False) as at:
        at.guests = [guest]
        await at.start()
        async with bridging(at.address, spec(path), reconnect=DAILY) as running:
            async with connected(path) as app:
                await app.send(b"x" * 100_000)
                await log.wait("linked")
                await running.stop()
            assert running.error is None
        await until(lambda: len(got) == 100_000, "all of it has come")
