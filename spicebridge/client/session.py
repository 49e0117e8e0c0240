"""A session with a SPICE server: its main channel, kept alive, and the channels it offers."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Collection
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Final

import anyio

from spicebridge.channel import Channel, ChannelClosedError
from spicebridge.client.linking import link
from spicebridge.errors import (
    ChannelBusyError,
    ChannelNotFoundError,
    LoginError,
    SessionLostError,
    SpicebridgeError,
    one_error,
)
from spicebridge.protocol.constants import ChannelType, MsgC, NotifySeverity, channel_type_name
from spicebridge.protocol.events import (
    ChannelsList,
    Disconnecting,
    Event,
    MainInit,
    Migrate,
    Notify,
    PortInit,
)
from spicebridge.protocol.link import LinkRequest, channel_caps
from spicebridge.protocol.messages import has_port_events
from spicebridge.transport.dial import Dialer
from spicebridge.transport.steps import step
from spicebridge.transport.target import Target

log = logging.getLogger(__name__)

Renew = Callable[[], Awaitable[str]]
"""Gives a password anew."""

BUSY_TIMEOUT: Final = 2.0
"""Seconds in which a busy channel is tried again: a client that has just gone frees it."""

_BUSY_PAUSE: Final = 0.05
_NOTICE: Final = 0.2
"""Seconds in which the main channel tells that the whole server has gone."""

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
    """

    def __init__(self, dialer: Dialer, main: Channel, renew: Renew | None) -> None:
        self.target = dialer.target
        self.channels: tuple[ChannelInfo, ...] = ()
        self.lost = anyio.Event()
        self.failure: SpicebridgeError | None = None
        self._main = main
        self._dialer = dialer
        self._renew = renew
        self._id = 0
        self._ports: dict[ChannelInfo, Channel] = {}  # the last link of each, which keeps its state

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
            offered = ", ".join(each.name for each in self.channels)
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
        return linked

    async def _log_in(self, request: LinkRequest, guard: anyio.CancelScope) -> Channel:
        """Links a channel; what was let in before and is refused now is a password of the past."""
        try:
            return await link(self._dialer, request, guard)
        except LoginError as error:
            guard.shield = False
            if self._renew is None:
                raise LoginError(
                    f"{error.problem}, though the password was taken when the session began: "
                    "it has expired or been changed",
                    "attach=always links a channel at once, while it is valid",
                ) from error
        target = replace(self._dialer.target, password=await self._renew())
        self._dialer = Dialer(target, self._dialer.timeout)
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
                if isinstance(event, MainInit):
                    self._id = event.session_id
        await self._main.send_message(MsgC.MAIN_ATTACH_CHANNELS)
        while not self.channels:
            for event in await self._receive():
                if isinstance(event, ChannelsList):
                    self.channels = tuple(
                        sorted(
                            (ChannelInfo(*each) for each in event.channels),
                            key=lambda each: (each.type, each.id),
                        )
                    )
                    if not self.channels:
                        raise ChannelNotFoundError("the server offers no channels")

    async def _receive(self) -> list[Event]:
        items = await self._main.receive()
        if items is None:
            raise SessionLostError(
                "the server ended the session",
                "has another client taken it over, or the server stopped?",
            )
        events = [each for each in items if not isinstance(each, memoryview)]
        for event in events:
            self._report(event)
        return events

    def _report(self, event: Event) -> None:
        if isinstance(event, Notify):
            level = logging.INFO if event.severity == NotifySeverity.INFO else logging.WARNING
            log.log(level, "the server says: %r", event.text)
        elif isinstance(event, (Disconnecting, Migrate)):
            log.warning("the server announces %s", event)
        else:
            log.debug("main: %s", event)

    async def keep_alive(self) -> None:
        """Answers the main channel until the session ends; a task of `open_session`."""
        try:
            while True:
                await self._receive()
        except SpicebridgeError as error:
            if isinstance(error, ChannelClosedError):  # of main: there is no session without it
                error = SessionLostError(f"the session has ended: {error}")
            self.failure = error.at(self.target)
            self.lost.set()


@asynccontextmanager
async def open_session(
    target: Target, *, timeout: float | None = None, renew: Renew | None = None
) -> AsyncIterator[Session]:
    """Opens a session; leaving the block closes it.

    QEMU serves one client: a new session throws an older one out.

    Args:
        target: the server, see `parse_uri`.
        timeout: seconds that each step of reaching the server may take, here and when channels are
            linked: connecting, TLS, linking, waiting for a first word; None for 10.
        renew: gives another password, when the one that began the session is refused later on.

    Raises:
        ConnectError, TlsError, ProtocolError, LoginError, LinkRefusedError: see `linking.link`.
        UsageError: the target cannot be what it says.
        SessionLostError: the server ended the session before it had begun. Later on that is in
            `Session.lost` and `Session.failure`: what still waits to be read can be read.
    """
    dialer = Dialer(target, timeout)
    with anyio.CancelScope() as guard:
        main = await link(dialer, LinkRequest(0, ChannelType.MAIN, 0), guard)
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
                tasks.start_soon(session.keep_alive)
                yield session
                tasks.cancel_scope.cancel()
    finally:
        await main.aclose()
