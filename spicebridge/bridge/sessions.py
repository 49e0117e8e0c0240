"""Keeps a session with the server: one after another, where the server comes back."""

from __future__ import annotations

import gc
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import anyio
from anyio.abc import TaskGroup, TaskStatus

from spicebridge.bridge.line import Line
from spicebridge.bridge.resolve import resolve
from spicebridge.bridge.retry import FIRST_DELAY, TAKEOVER_LIMIT, Retry
from spicebridge.bridge.spec import ChannelWanted
from spicebridge.client.session import ChannelInfo, Renew, Session, open_session
from spicebridge.errors import (
    ConnectError,
    LoginError,
    SessionLostError,
    SpicebridgeError,
    TakeoverError,
    TlsError,
    UsageError,
)
from spicebridge.transport.target import Target

log = logging.getLogger("spicebridge")

_FINAL = (LoginError, TlsError, UsageError)
"""What trying again does not mend, and could make worse: an account may be locked."""

_AWAY = (ConnectError, SessionLostError)
"""What tells of a server that is away. At the start all else is a mistake of the user's."""


@dataclass(frozen=True)
class Keep:
    """How long to stay with a server.

    Attributes:
        timeout: seconds for each step of reaching it, see `open_session`.
        idle_timeout: seconds of silence after which a session is lost, see `open_session`.
        reconnect: seconds between two tries, at most, when it is away; None to end then.
        takeover_limit: how often another client may take the session over, see `Retry`.
    """

    timeout: float | None = None
    idle_timeout: float | None = None
    reconnect: float | None = None
    takeover_limit: int = TAKEOVER_LIMIT


class Sessions:
    """Opens sessions, one after another, and connects the lines of all bridges to each.

    Args:
        target: the server.
        wanted: the channel of each bridge.
        lines: their lines.
        keep: how long to stay.
        renew: gives another password, see `open_session`.
        found: called with each session, and the channels that were found in it.
        tell: called with a line on the server's state, for people.

    Attributes:
        failure: how the last session was lost; None while there is one.
        away: whether there was none yet, though it was tried.
    """

    def __init__(
        self,
        target: Target,
        wanted: Sequence[ChannelWanted],
        lines: Sequence[Line],
        *,
        keep: Keep,
        renew: Renew | None,
        found: Callable[[Session, Sequence[ChannelInfo]], None],
        tell: Callable[[str], None],
    ) -> None:
        self._target = self._other = target  # a machine that has moved may move back
        self._wanted = wanted
        self._lines = lines
        self._keep = keep
        self._renew = renew
        self._found = found
        self._tell = tell
        self._retry = None if keep.reconnect is None else Retry(keep.reconnect, keep.takeover_limit)
        self._first = True  # there was no session yet
        self._lost: Session | None = None  # the last session
        self._told_last = ""
        self._scope = anyio.CancelScope()  # around what `end` ends: a session is left in peace
        self._asked = False  # for another password, since the last session
        self.failure: SpicebridgeError | None = None
        self.away = False

    async def run(self, tasks: TaskGroup, *, task_status: TaskStatus[None]) -> None:
        """Keeps a session until `end` is called, or the last one was lost.

        Args:
            tasks: for what outlives a session.
            task_status: told once there is a session, or the server was found to be away and will
                be tried again.

        Raises:
            SpicebridgeError: why there is no session, and none to be had.
        """
        started = False

        def told() -> None:
            nonlocal started
            if not started:
                started = True
                task_status.started()

        try:
            with self._scope:
                while (delay := await self._next(tasks, told)) is not None:
                    told()
                    await anyio.sleep(delay)
        finally:
            self._forget_lost()
            for line in self._lines:
                line.close()

    def end(self) -> None:
        """Closes the session, if there is one, and opens no other."""
        self._scope.cancel()

    def _forget_lost(self) -> None:
        if self._lost is not None and self._lost.successor is not None:
            self._lost.successor.close()
        self._lost = None

    async def _next(self, tasks: TaskGroup, told: Callable[[], None]) -> float | None:
        """Opens a session and waits until it is lost; seconds to the next try, if there is one."""
        try:
            session = await self._one(tasks, told)
        except LoginError:
            if self._first or not await self._ask_again():
                raise
            return FIRST_DELAY
        except SpicebridgeError as error:
            self._forget_lost()
            return self._after_failure(error)
        return None if session is None else self._after_session(session)

    async def _one(self, tasks: TaskGroup, told: Callable[[], None]) -> Session | None:
        """One session, until it is lost; None if we end it."""
        async with open_session(
            self._target,
            timeout=self._keep.timeout,
            renew=self._renew,
            idle_timeout=self._keep.idle_timeout,
            predecessor=self._lost,
        ) as session:
            self._lost = None
            if self._retry is not None:
                self._retry.session_began()
            try:
                channels = [await resolve(session, each) for each in self._wanted]
                _refuse_twice(channels)
            except SpicebridgeError:
                comes_back = self._retry is not None or session.successor is not None
                if comes_back and session.lost.is_set():
                    return session
                raise
            self._first = self._asked = self.away = False
            self.failure, self._told_last = None, ""
            for line, channel in zip(self._lines, channels, strict=True):
                line.connect(session, channel)
            self._found(session, channels)
            told()
            around = self._scope
            with anyio.CancelScope() as self._scope:
                await session.lost.wait()
            ended, self._scope = self._scope.cancelled_caught, around
            if ended:
                return None
            tasks.start_soon(session.cut_off)
            for line in self._lines:
                line.disconnect()
            return session

    def _after_session(self, session: Session) -> float | None:
        self.failure = session.failure
        # errors and the frames in their tracebacks hold each other, and with them the buffers of
        # sessions before: some 350 KiB each, which Python's counting of objects does not see
        gc.collect()
        if session.successor is not None:
            self._target = session.successor.dialer.target
            self._lost = session
            log.warning(
                "%s: it goes on at %s",
                session.failure,
                self._target,
                extra={"event": "moved", "fields": {"to": str(self._target)}},
            )
            return 0
        self._target = session.target
        if self._retry is None:
            return None
        try:
            delay = self._retry.session_lost(time.monotonic() - session.begun, clean=session.clean)
        except TakeoverError as error:
            raise error.at(session.target) from session.failure
        takeovers = self._retry.takeovers
        event, why = "session-lost", ""
        if takeovers > 1:
            event, why = "takeover", f", {takeovers} times soon after it began: by another client?"
        problem = session.failure.problem if session.failure else ""
        self._tell_away(event, f"{problem}{why}", delay, takeovers=takeovers)
        return delay

    def _after_failure(self, error: SpicebridgeError) -> float:
        if self._retry is None or isinstance(error, _FINAL):
            raise error
        if self._first and not isinstance(error, _AWAY):
            raise error
        self._target, self._other = self._other, self._target
        self.away = self._first
        delay = self._retry.failed(away=isinstance(error, ConnectError))
        self._tell_away("away", error.problem, delay)
        return delay

    def _tell_away(self, event: str, problem: str, delay: float, **fields: object) -> None:
        """Logs that the server is away; the same again only for those who ask for details."""
        level = logging.DEBUG if problem == self._told_last else logging.WARNING
        self._told_last = problem
        log.log(
            level,
            "%s; trying again in %.1f seconds",
            problem,
            delay,
            extra={"event": event, "fields": {"delay": round(delay, 3), **fields}},
        )
        self._tell(f"{problem}; trying again")

    async def _ask_again(self) -> bool:
        """Asks where the password came from, once for each return of the server: who refuses the
        answer, too, may lock an account. Returns whether it is another one now."""
        if self._renew is None or self._asked:
            return False
        self._asked = True
        try:
            password = await self._renew()
        except UsageError as error:
            log.warning("%s", error)
            return False
        changed = password != self._target.password
        self._target = replace(self._target, password=password)
        self._other = replace(self._other, password=password)
        return changed


def _refuse_twice(channels: Sequence[ChannelInfo]) -> None:
    for channel in channels:
        if channels.count(channel) > 1:
            raise UsageError(
                f"{channel.name} is asked for twice", "one client can link a channel only once"
            )
