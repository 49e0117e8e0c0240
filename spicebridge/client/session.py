"""A session with a SPICE server: its main channel, kept alive, and the channels it offers."""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Collection
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

import anyio
from anyio.abc import TaskGroup, TaskStatus

from spicebridge.channel import CLOSE_TIMEOUT, Channel, ChannelClosedError
from spicebridge.client.linking import link
from spicebridge.client.remarks import Remarks
from spicebridge.errors import (
    ChannelBusyError,
    ChannelNotFoundError,
    LoginError,
    SessionLostError,
    SpicebridgeError,
    listing,
    one_error,
)
from spicebridge.protocol.constants import ChannelType, MsgC, NotifySeverity, channel_type_name
from spicebridge.protocol.events import (
    ChannelsList,
    Disconnecting,
    Event,
    MainInit,
    MigrateBegin,
    MigrateCancel,
    MigrateEnd,
    MigrateSwitchHost,
    Notify,
    PortInit,
)
from spicebridge.protocol.link import MAIN_CAPS, LinkRequest, channel_caps
from spicebridge.protocol.messages import has_port_events
from spicebridge.transport.address import UnixAddress
from spicebridge.transport.dial import Dialer
from spicebridge.transport.steps import step
from spicebridge.transport.target import Target

if TYPE_CHECKING:
    from spicebridge.client.migration import Migration, Successor

log = logging.getLogger(__name__)

Renew = Callable[[], Awaitable[str]]
"""Gives a password anew."""

BUSY_TIMEOUT: Final = 2.0
"""Seconds in which a busy channel is tried again: a client that has just gone frees it."""

_BUSY_PAUSE: Final = 0.05
_NOTICE: Final = 0.2
"""Seconds in which the main channel tells that the whole server has gone."""

SILENCE: Final = 75.0
"""Seconds without a word on the main channel after which that is told. Over TCP libspice-server
sends a PING every 15 seconds; on a Unix socket it sends none."""

_QUIET_CHANNEL: Final = 0.5
"""Seconds after which a channel that says nothing at its start is taken for linked."""


@dataclass(frozen=True)
class ChannelInfo:
    """One channel on offer.

    Attributes:
        type: channel type, 1 to 255.
        id: instance within the type.
    """

    type: int
    id: int

    @property
    def name(self) -> str:
        """As users write it: ``port:0``."""
        return f"{channel_type_name(self.type)}:{self.id}"


@dataclass(frozen=True)
class PortInfo:
    """A channel that has told its name.

    Attributes:
        channel: which it is.
        port: its name and whether the guest has it open; None where another client holds it.
    """

    channel: ChannelInfo
    port: PortInit | None


class Session:
    """An open session. Made by `open_session`; all of its channels end with it.

    Attributes:
        target: the server.
        channels: what the server offers, in its order.
        lost: set once the server has ended the session; `failure` tells how.
        clean: whether it did so with an end of file, as one that gives the session to another
            client.
        successor: where it goes on as another session, once it is lost; None where it does not.
        begun: when it began, by the clock of `time.monotonic`.
    """

    def __init__(self, dialer: Dialer, main: Channel, renew: Renew | None) -> None:
        self.channels: tuple[ChannelInfo, ...] = ()
        self.lost = anyio.Event()
        self.failure: SpicebridgeError | None = None
        self.clean = False
        self.successor: Successor | None = None
        self.begun = time.monotonic()
        self._main = main
        self._dialer = dialer
        self._renew = renew
        self._id = 0
        self._remarks = Remarks()
        self._heard = time.monotonic()
        self._tasks: TaskGroup | None = None
        self._migration: Migration | None = None
        self._parted = anyio.Event()  # set once that is over
        self._links: dict[ChannelInfo, Channel] = {}
        self._ports: dict[ChannelInfo, Channel] = {}  # the last link of each, which keeps its state

    @property
    def target(self) -> Target:
        """The server; another one after a live migration."""
        return self._dialer.target

    async def open_channel(self, channel: ChannelInfo) -> Channel:
        """Links a channel of this session; the caller closes it.

        A port's name and state are in the `port` of what is returned. A channel in use is tried
        again for `BUSY_TIMEOUT` seconds.

        Raises:
            ChannelNotFoundError: the server does not offer it.
            ChannelBusyError: another client holds it.
            SessionLostError: the session has ended meanwhile.
            ConnectError, ProtocolError, LoginError, LinkRefusedError: see `linking.link`.
        """
        if channel not in self.channels:
            offered = listing(each.name for each in self.channels)
            raise ChannelNotFoundError(
                f"{self.target} does not offer {channel.name}", f"it offers {offered}"
            )
        deadline = anyio.current_time() + BUSY_TIMEOUT
        while True:
            try:
                return await self._link(channel)
            except (ChannelBusyError, ChannelClosedError) as error:
                if anyio.current_time() >= deadline:
                    raise ChannelBusyError(
                        f"{channel.name} at {self.target} is in use by another client",
                        "close that client",
                    ) from error
            except SpicebridgeError as error:
                with anyio.move_on_after(_NOTICE):
                    await self.lost.wait()
                if self.failure is not None:  # that is why
                    raise self.failure from error
                raise
            await anyio.sleep(_BUSY_PAUSE)

    async def _link(self, channel: ChannelInfo) -> Channel:
        request = LinkRequest(
            self._id, channel.type, channel.id, channel_caps=channel_caps(channel.type)
        )
        with anyio.CancelScope() as guard:
            linked = await self._log_in(request, guard)
            try:
                await self._greeting(linked)
            except SpicebridgeError as error:
                linked.abort()
                raise error.at(self.target) from error.__cause__
            except BaseException:
                linked.abort()
                raise
        if linked.port is not None:
            self._ports[channel] = linked
        self._links[channel] = linked
        if self._migration is not None:
            self._migration.add((channel.type, channel.id), linked)
        return linked

    async def _log_in(self, request: LinkRequest, guard: anyio.CancelScope) -> Channel:
        """Links a channel; what was let in before and is refused now is a password of the past."""
        try:
            return await link(self._dialer, request, guard)
        except LoginError as error:
            guard.shield = False
            password = self.target.password if self._renew is None else await self._renew()
            if password == self.target.password:
                raise LoginError(
                    f"{error.problem}, though the password was taken when the session began: "
                    "it has expired or been changed",
                    "attach=always links a channel at once, while it is valid",
                ) from error
        self._dialer = Dialer(replace(self.target, password=password), self._dialer.timeout)
        return await link(self._dialer, request, guard)

    async def _greeting(self, channel: Channel) -> None:
        """Waits for the first word of a channel, which tells a linked one from a busy one.

        Both get a link result of 0; on a busy one end of file follows. A port begins with
        PORT_INIT, the others of libspice-server and ours with a PING.
        """
        kind = channel.linked.request.channel_type
        named = has_port_events(kind)
        if kind in {ChannelType.PORT, ChannelType.WEBDAV}:
            async with step(f"waiting for the name of {channel.name}", self._dialer.timeout):
                await self._first_word(channel, named=True)
        else:  # no server need say anything here
            with anyio.move_on_after(_QUIET_CHANNEL):
                await self._first_word(channel, named=named)

    async def _first_word(self, channel: Channel, *, named: bool) -> None:
        while True:
            items = await channel.receive()
            if items is None:
                raise ChannelClosedError(f"{channel.name} was closed right after its link")
            for item in items:
                if isinstance(item, PortInit):
                    channel.port = item
            data = any(isinstance(item, memoryview) for item in items)
            if data or not named or channel.port is not None:
                channel.hold([item for item in items if not isinstance(item, PortInit)])
                return

    async def ports(self, anew: Collection[ChannelInfo] = ()) -> AsyncGenerator[PortInfo, None]:
        """Tells the names of ports, one by one.

        A name is told only once a port is linked, so each is linked for a moment, which the guest
        sees; a port that this session has linked before is told as it was last seen.

        Args:
            anew: ports that are linked again even so; none that this session has linked now.
        """
        for channel in self.channels:
            if channel.type not in {ChannelType.PORT, ChannelType.WEBDAV}:
                continue
            if channel in anew:
                self._ports.pop(channel, None)
            if channel not in self._ports:
                try:
                    linked = await self.open_channel(channel)
                except ChannelBusyError:  # held by another client, or by us since we looked
                    pass
                else:
                    await linked.aclose()
            known = self._ports.get(channel)
            yield PortInfo(channel, known.port if known else None)

    async def begin(self) -> None:
        """Reads MAIN_INIT, asks for the list of channels and reads it; `open_session` calls it."""
        while not self._id:
            for event in await self._receive():
                if isinstance(event, MainInit) and not self._id:
                    self._id = event.session_id
        await self._main.send_message(MsgC.MAIN_ATTACH_CHANNELS)
        while not self.channels:
            for event in await self._receive():
                if isinstance(event, ChannelsList) and not self.channels:
                    self.channels = tuple(
                        sorted(
                            {ChannelInfo(*each) for each in event.channels},
                            key=lambda each: (each.type, each.id),
                        )
                    )
                    if not self.channels:
                        raise ChannelNotFoundError("the server offers no channels")

    async def _receive(self) -> list[Event]:
        try:
            items = await self._main.receive()
        except ChannelClosedError as error:
            # a server that goes with something of ours unread resets the connection
            if isinstance(error.__cause__, ConnectionResetError):
                raise _ended(f": {error.__cause__.strerror}") from error
            raise
        self._heard = time.monotonic()
        if items is None:
            self.clean = True
            raise _ended()
        events = [each for each in items if not isinstance(each, memoryview)]
        for event in events:
            self._report(event)
        return events

    def _report(self, event: Event) -> None:
        if isinstance(event, Notify):
            level = logging.INFO if event.severity == NotifySeverity.INFO else logging.WARNING
            self._remarks.tell(level, "the server says: %r", event.text)
        elif isinstance(event, Disconnecting):
            self._remarks.tell(logging.WARNING, "the server announces %s", event)
        else:
            log.debug("main: %s", event)

    async def keep_alive(self, tasks: TaskGroup) -> None:
        """Answers the main channel until the session ends; a task of `open_session`."""
        self._tasks = tasks
        try:
            while self.failure is None:
                for event in await self._receive():
                    await self._migrate(event)
        except SpicebridgeError as error:
            if isinstance(error, ChannelClosedError):  # of main: there is no session without it
                error = SessionLostError(f"the session has ended: {error}")
            self._end(error.at(self.target))

    def _end(self, failure: SpicebridgeError, successor: Successor | None = None) -> None:
        if self._migration is not None:  # what was not to be yet is all that there is now
            successor = successor or self._migration.outlived()
        if self.failure is None:
            self.failure, self.successor = failure, successor
        self.lost.set()

    async def cut_off(self) -> None:
        """Ends the channels of a lost session that have not ended by themselves, as where a whole
        machine died silently: after `CLOSE_TIMEOUT` seconds nothing more will come."""
        await anyio.sleep(CLOSE_TIMEOUT)
        for channel in self._links.values():
            if not channel.closed:
                channel.hang_up()

    async def watch_silence(self, limit: float | None) -> None:
        """Tells of a main channel that has said nothing for long; a task of `open_session`.

        On a Unix socket that means nothing: the kernel tells at once of a peer that has gone.

        Args:
            limit: seconds after which that is the end of the session; None for never.
        """
        if isinstance(self.target.plain or self.target.secure, UnixAddress):
            return
        told = 0.0
        patience = min(SILENCE, limit or SILENCE)
        while True:
            silent = time.monotonic() - self._heard
            if limit is not None and silent >= limit:
                problem = f"{self.target} has said nothing for {limit:g} seconds"
                self._end(SessionLostError(problem, "is it, or the network, down?"))
                return
            if silent >= SILENCE and told != self._heard:
                told = self._heard
                log.warning("%s has said nothing for %.0f seconds", self.target, silent)
            rest = patience - silent
            if rest <= 0:
                rest = SILENCE if limit is None else min(limit - silent, SILENCE)
            await anyio.sleep(rest)

    # Live migration

    async def _migrate(self, event: Event) -> None:
        """Does what the server says of the machine's moving to another one, if it says that."""
        if isinstance(event, MigrateBegin) and self._tasks is not None:
            await self._stay()  # the last word counts
            await self._tasks.start(self._take_part, event)
        elif isinstance(event, MigrateCancel):
            await self._stay()
        elif isinstance(event, MigrateEnd) and self._migration is not None:
            there = await self._migration.end()
            self._end(SessionLostError(f"the machine has left {self.target}"), there)
        elif isinstance(event, MigrateSwitchHost):
            from spicebridge.client.migration import Successor, target_there

            target = target_there(self.target, event.target)
            there = Successor(Dialer(target, self._dialer.timeout))
            self._end(SessionLostError(f"the machine has left {self.target}"), there)

    async def _stay(self) -> None:
        """Undoes what was done for a migration."""
        if self._migration is not None:
            self._migration.cancel()
            await self._parted.wait()

    async def _take_part(self, begin: MigrateBegin, *, task_status: TaskStatus[None]) -> None:
        from spicebridge.client.migration import Migration  # here, as few sessions ever see one

        links = {(key.type, key.id): each for key, each in self._links.items() if not each.closed}
        self._migration = migration = Migration(self._dialer, self._id, self._main, links)
        self._parted = anyio.Event()
        task_status.started()
        try:
            if (dialer := await migration.run(begin)) is not None:
                self._dialer = dialer
        finally:
            self._migration = None
            self._parted.set()


def _ended(how: str = "") -> SessionLostError:
    return SessionLostError(
        f"the server ended the session{how}",
        "has another client taken it over, or the server stopped?",
    )


@asynccontextmanager
async def open_session(
    target: Target,
    *,
    timeout: float | None = None,
    renew: Renew | None = None,
    idle_timeout: float | None = None,
    predecessor: Session | None = None,
) -> AsyncIterator[Session]:
    """Opens a session; leaving the block closes it.

    QEMU serves one client: a new session throws an older one out.

    Args:
        target: the server, see `parse_uri`.
        timeout: seconds that each step of reaching the server may take, here and when channels are
            linked: connecting, TLS, linking, waiting for a first word; None for 10.
        renew: gives another password, when the one that began the session is refused later on.
        idle_timeout: seconds without a word on the main channel after which the session is lost,
            unless it runs on a Unix socket; None for no limit.
        predecessor: a session that is lost, and goes on as this one: `target` is its successor's.

    Raises:
        ConnectError, TlsError, ProtocolError, LoginError, LinkRefusedError: see `linking.link`.
        UsageError: the target cannot be what it says.
        SessionLostError: the server ended the session before it had begun. Later on that is in
            `Session.lost` and `Session.failure`: what still waits to be read can be read.
    """
    with ExitStack() as stack:
        waiting = predecessor.successor if predecessor is not None else None
        if waiting is not None:
            stack.callback(waiting.close)
        dialer = Dialer(target, timeout)
        if waiting is not None and waiting.main is not None:
            main, waiting.main = waiting.main, None
        else:
            request = LinkRequest(0, ChannelType.MAIN, 0, channel_caps=MAIN_CAPS)
            with anyio.CancelScope() as guard:
                main = await link(dialer, request, guard)
        session = Session(dialer, main, renew)
        try:
            async with step("waiting for the list of channels", timeout):
                await session.begin()
        except SpicebridgeError as error:
            main.abort()
            raise error.at(f"opening a session at {target}") from error.__cause__
        except BaseException:
            main.abort()
            raise
        try:
            with one_error():
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(session.keep_alive, tasks)
                    tasks.start_soon(session.watch_silence, idle_timeout)
                    yield session
                    tasks.cancel_scope.cancel()
        finally:
            await main.aclose()
