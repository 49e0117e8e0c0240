"""A server that says nothing: told after a while, and the session's end if asked for."""

from __future__ import annotations

import logging
import struct
from pathlib import Path
from types import SimpleNamespace

import anyio
import anyio.lowlevel
import pytest

from spicebridge.client import session as session_module
from spicebridge.client.session import SILENCE, Session, open_session
from spicebridge.errors import SessionLostError
from spicebridge.protocol.constants import Msg
from spicebridge.transport.address import Address, TcpAddress, UnixAddress
from spicebridge.transport.dial import Dialer
from spicebridge.transport.stream import Stream
from spicebridge.transport.target import Target
from tests.client.test_misbehaving_servers import CHANNELS, MAIN_INIT, main_that, says, server
from tests.protocol.wire import message
from tests.transport.pairs import read_to_end, settled
from tests.transport.peer import linked

# Against a server


async def test_a_server_that_says_nothing_for_too_long_has_lost_the_session(
    short_tmp: Path,
) -> None:
    async with (
        server(short_tmp, main_that(MAIN_INIT, CHANNELS), kind="tcp") as address,
        open_session(Target(address), idle_timeout=0.1) as session,
    ):
        await session.lost.wait()
        assert type(session.failure) is SessionLostError
        assert str(session.failure).startswith(f"{address} has said nothing for 0.1 seconds")
        assert session.failure.hint
        assert not session.clean
        assert session.successor is None


async def test_without_a_limit_it_has_not(
    short_tmp: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(session_module, "SILENCE", 0.05)
    async with (
        server(short_tmp, main_that(MAIN_INIT, CHANNELS), kind="tcp") as address,
        open_session(Target(address)) as session,
    ):
        await anyio.sleep(0.3)
        assert not session.lost.is_set()
    assert len(told(caplog)) == 1


async def test_any_word_is_one(short_tmp: Path) -> None:
    """Even one that means nothing, such as a ping, which needs no event."""
    go = anyio.Event()

    async def script(stream: Stream) -> None:
        await main_that(MAIN_INIT, CHANNELS, stays=False)(stream)
        await go.wait()
        await says(stream, message(Msg.PING, struct.pack("<IQ", 1, 1)))
        await read_to_end(stream)

    async with (
        server(short_tmp, script, kind="tcp") as address,
        open_session(Target(address), idle_timeout=1000) as session,
    ):
        before = session._heard
        await settled()
        assert session._heard == before
        go.set()
        while session._heard == before:
            await anyio.lowlevel.checkpoint()


async def test_on_a_unix_socket_silence_is_nothing(short_tmp: Path) -> None:
    async with (
        server(short_tmp, main_that(MAIN_INIT, CHANNELS)) as address,
        open_session(Target(address), idle_timeout=0.01) as session,
    ):
        await anyio.sleep(0.1)
        assert not session.lost.is_set()


# By the clock


def told(caplog: pytest.LogCaptureFixture) -> list[str]:
    """The warnings of silence."""
    return [
        each.getMessage()
        for each in caplog.records
        if each.levelno == logging.WARNING and "has said nothing" in each.getMessage()
    ]


class Clock:
    """A clock that only sleeping moves; `words` are when the server speaks."""

    def __init__(self, words: list[float], end: float) -> None:
        self.now = 1000.0
        self.session: Session | None = None
        self.sleeps = 0
        self._words = [1000.0 + word for word in words]
        self._end = 1000.0 + end

    def monotonic(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        assert seconds > 0
        self.sleeps += 1
        await anyio.lowlevel.checkpoint()
        self.now += seconds
        assert self.session is not None
        while self._words and self._words[0] <= self.now:
            self.session._heard = self._words.pop(0)
        if self.now >= self._end:
            raise _TimeOverError


class _TimeOverError(Exception):
    """The test has seen enough."""


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock([], 0)
    monkeypatch.setattr(session_module, "time", SimpleNamespace(monotonic=made.monotonic))
    monkeypatch.setattr(anyio, "sleep", made.sleep)
    return made


async def watch(
    clock: Clock,
    limit: float | None,
    words: list[float],
    end: float,
    address: Address = TcpAddress("h", 1),  # noqa: B008 - it is frozen
) -> Session:
    """Watches a session for some seconds, in which the server speaks at times."""
    clock.__init__(words, end)  # type: ignore[misc]
    with linked(channel_type=1) as (main, _peer):
        session = Session(Dialer(Target(address)), main, None)
        clock.session = session
        try:
            await session.watch_silence(limit)
        except _TimeOverError:
            pass
    return session


async def test_each_silence_is_told_once(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    session = await watch(clock, None, [10, 20, 200, 210], 1000)
    assert not session.lost.is_set()
    assert told(caplog) == [f"h:1 has said nothing for {SILENCE:.0f} seconds"] * 2
    assert clock.sleeps < 30


async def test_a_server_that_speaks_in_time_is_not_told_of(
    clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    session = await watch(clock, 100.0, [15.0 * number for number in range(1, 100)], 1400)
    assert not session.lost.is_set()
    assert told(caplog) == []


@pytest.mark.parametrize("limit", [1.0, 30.0, 75.0, 76.0, 400.0])
@pytest.mark.parametrize("last", [0.0, 20.0])
async def test_the_session_is_lost_after_exactly_its_limit(
    clock: Clock, limit: float, last: float, caplog: pytest.LogCaptureFixture
) -> None:
    session = await watch(clock, limit, [last * part for part in (0.5, 1)], 10_000)
    assert session.lost.is_set() or last >= limit
    heard = session._heard
    assert clock.now - heard == pytest.approx(limit, abs=0.001) or last >= limit
    assert len(told(caplog)) == (1 if limit > SILENCE else 0)


async def test_a_limit_that_is_shorter_than_the_pauses_of_the_server(clock: Clock) -> None:
    session = await watch(clock, 10.0, [15.0], 100)
    assert session.lost.is_set()
    assert clock.now == 1010


async def test_a_unix_socket_is_not_watched(clock: Clock) -> None:
    session = await watch(clock, 1.0, [], 100, UnixAddress("/run/spice"))
    assert not session.lost.is_set()
    assert clock.sleeps == 0
