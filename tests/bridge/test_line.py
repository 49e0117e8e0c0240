"""The way from a bridge to its channel, while sessions come and go."""

from __future__ import annotations

from typing import cast

import anyio
import pytest

from spicebridge.bridge.line import Line
from spicebridge.channel import Channel
from spicebridge.client.session import ChannelInfo, Session
from spicebridge.errors import ChannelBusyError, SessionLostError, SpicebridgeError
from tests.transport.pairs import settled

CHANNEL = ChannelInfo(128, 0)


class FakeSession:
    """A session whose channels the test makes.

    Attributes:
        lost: as a session's.
        asked: how often a channel was wanted.
        answer: set to let it be linked, or refused by `failure`.
    """

    def __init__(self, failure: SpicebridgeError | None = None, *, at_once: bool = True) -> None:
        self.lost = anyio.Event()
        self.asked = 0
        self.failure = failure
        self.channel = cast("Channel", object())
        self.answer = anyio.Event()
        if at_once:
            self.answer.set()

    async def open_channel(self, channel: ChannelInfo) -> Channel:
        assert channel == CHANNEL
        self.asked += 1
        await self.answer.wait()
        if self.failure is not None:
            raise self.failure
        return self.channel

    @property
    def session(self) -> Session:
        """As what it is taken for."""
        return cast("Session", self)


class Opening:
    """Somebody who opens a line.

    Attributes:
        got: the channel, or the error, once it is there.
    """

    def __init__(self, line: Line) -> None:
        self.got: object = None
        self._line = line

    async def run(self) -> None:
        try:
            self.got = await self._line.open()
        except SpicebridgeError as error:
            self.got = error


async def test_a_channel_is_linked_in_the_session_that_there_is() -> None:
    line, session = Line(), FakeSession()
    assert not Line().up
    line.connect(session.session, CHANNEL)
    assert line.up
    assert await line.open() is session.channel
    assert session.asked == 1


async def test_opening_waits_for_a_session() -> None:
    line, session = Line(), FakeSession()
    opening = Opening(line)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(opening.run)
        await settled()
        assert opening.got is None
        line.connect(session.session, CHANNEL)
    assert opening.got is session.channel


async def test_a_session_that_is_lost_is_not_asked_but_the_next_one_is() -> None:
    line, session, after = Line(), FakeSession(), FakeSession()
    line.connect(session.session, CHANNEL)
    session.lost.set()
    assert not line.up
    opening = Opening(line)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(opening.run)
        await settled()
        line.disconnect()
        await settled()
        assert opening.got is None
        line.connect(after.session, CHANNEL)
    assert opening.got is after.channel
    assert session.asked == 0


async def test_a_session_that_is_lost_while_it_links_is_followed_by_the_next_one() -> None:
    line, after = Line(), FakeSession()
    session = FakeSession(SessionLostError("gone"), at_once=False)
    line.connect(session.session, CHANNEL)
    opening = Opening(line)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(opening.run)
        await settled()
        session.lost.set()
        session.answer.set()
        await settled()
        assert opening.got is None
        line.disconnect()
        line.connect(after.session, CHANNEL)
    assert opening.got is after.channel
    assert session.asked == 1


async def test_the_next_session_may_be_there_before_the_last_has_failed() -> None:
    line, after = Line(), FakeSession()
    session = FakeSession(SessionLostError("gone"), at_once=False)
    line.connect(session.session, CHANNEL)
    opening = Opening(line)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(opening.run)
        await settled()
        session.lost.set()
        line.disconnect()
        line.connect(after.session, CHANNEL)
        session.answer.set()
    assert opening.got is after.channel


async def test_what_is_wrong_with_the_channel_alone_is_told() -> None:
    line, session = Line(), FakeSession(ChannelBusyError("busy"))
    line.connect(session.session, CHANNEL)
    with pytest.raises(ChannelBusyError):
        await line.open()


async def test_whoever_waits_is_told_that_there_will_be_no_session() -> None:
    line = Line()
    opening = Opening(line)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(opening.run)
        await settled()
        assert not line.closed
        line.close()
    assert line.closed
    assert isinstance(opening.got, SessionLostError)
    with pytest.raises(SessionLostError):
        await line.open()


async def test_a_session_that_is_still_there_links_until_it_ends() -> None:
    """So that an application that waits at the moment of the signal is served."""
    line, session = Line(), FakeSession()
    line.connect(session.session, CHANNEL)
    line.close()
    assert await line.open() is session.channel


async def test_every_change_is_told() -> None:
    line, session = Line(), FakeSession()
    seen = 0

    async def watch() -> None:
        nonlocal seen
        while True:
            await line.changed()
            seen += 1

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(watch)
        await settled()
        for count, change in enumerate(
            (lambda: line.connect(session.session, CHANNEL), line.disconnect, line.close), start=1
        ):
            change()
            await settled()
            assert seen == count
        tasks.cancel_scope.cancel()
