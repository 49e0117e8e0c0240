"""Live migration: what a client links at the server that its machine moves to.

The server tells where that is before the machine goes (MAIN_MIGRATE_BEGIN, also _SEAMLESS). The
client links there what it has linked here, with the same session id, says so, and waits. Then

- seamless: each channel hands over its state and goes on, see `Channel.move`;
- semi-seamless (MAIN_MIGRATE_END): the session begins anew on the main channel there. What was
  on its way between guest and client is lost with the old server, so applications are told;
- MAIN_MIGRATE_SWITCH_HOST: it begins anew, and nothing was linked before;
- MAIN_MIGRATE_CANCEL: it stays.

As spice-gtk 0.42 does it (channel-main.c: main_migrate_connect; channel-base.c:
spice_channel_handle_migrate), but for the second, where that has a channel go on over the gap.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Final

import anyio
from anyio.abc import TaskGroup

from spicebridge.channel import Channel, ChannelClosedError
from spicebridge.client.linking import link
from spicebridge.errors import SpicebridgeError, one_error
from spicebridge.protocol.constants import ChannelType, MainCap, MigrationMsgC
from spicebridge.protocol.events import MigrateBegin, MigrationTarget
from spicebridge.protocol.link import MAIN_CAPS, LinkRequest, channel_caps
from spicebridge.protocol.messages import encode_version
from spicebridge.transport.address import ServerAddress, TcpAddress, WebAddress
from spicebridge.transport.dial import Dialer
from spicebridge.transport.steps import step
from spicebridge.transport.target import Target
from spicebridge.transport.wire import Wire

log = logging.getLogger(__name__)

ANSWER_TIMEOUT: Final = 10.0
"""Seconds in which a server wants to know whether its client is linked at the other one
(MIGRATE_TIMEOUT of libspice-server)."""


@dataclass
class Successor:
    """Where a session goes on, and what is linked there already.

    Attributes:
        dialer: for that server.
        main: its main channel; None where it has yet to be linked.
        channels: the others, by type and id, until they are taken for those of a server that the
            machine leaves.
    """

    dialer: Dialer
    main: Channel | None = None
    channels: dict[tuple[int, int], Channel] = field(default_factory=dict)

    async def link_channel(self, session_id: int, channel: tuple[int, int]) -> Channel:
        """Links one more channel; nothing is received from it."""
        request = LinkRequest(session_id, *channel, channel_caps=channel_caps(channel[0]))
        with anyio.CancelScope() as guard:
            linked = self.channels[channel] = await link(self.dialer, request, guard)
        return linked

    def close(self) -> None:
        """Closes all that nobody has taken."""
        for channel in (self.main, *self.channels.values()):
            if channel is not None:
                channel.abort()


async def link_there(
    dialer: Dialer, session_id: int, channels: Iterable[tuple[int, int]], version: int | None
) -> tuple[Successor, bool]:
    """Links the main channel and others at the server that a machine moves to.

    Args:
        dialer: for it.
        session_id: of the session here, which will be that of the session there.
        channels: types and ids of the others.
        version: of the state that channels could hand over; None if they cannot.

    Returns:
        What is linked, and whether that server takes the channels' state.

    Raises:
        SpicebridgeError: see `linking.link`; then nothing stays open, as when cancelled.
    """
    there = Successor(dialer)
    request = LinkRequest(session_id, ChannelType.MAIN, 0, channel_caps=MAIN_CAPS)
    try:
        with anyio.CancelScope() as guard:
            there.main = main = await link(dialer, request, guard)
        if MainCap.SEAMLESS_MIGRATE not in main.linked.channel_caps:
            version = None
        if version is not None:
            await main.send_message(MigrationMsgC.DST_DO_SEAMLESS, encode_version(version))
        with one_error():
            async with anyio.create_task_group() as tasks:
                for channel in channels:
                    tasks.start_soon(there.link_channel, session_id, channel)
        agreed = False
        if version is not None:
            async with step("asking for a seamless migration", dialer.timeout):
                agreed = await main.agrees_to_move()
    except BaseException:
        there.close()
        raise
    return there, agreed


class Migration:
    """One live migration of a machine, from MAIN_MIGRATE_BEGIN to its end.

    Args:
        dialer: for the server that it leaves.
        session_id: of the session.
        main: its main channel.
        channels: the others, by type and id.
    """

    def __init__(
        self,
        dialer: Dialer,
        session_id: int,
        main: Channel,
        channels: dict[tuple[int, int], Channel],
    ) -> None:
        self._here = dialer
        self._session_id = session_id
        self._main = main
        self._channels = channels
        self._there: Successor | None = None
        self._tasks: TaskGroup | None = None  # in a seamless one, until all have moved
        self._told = False  # that the machine has gone
        self._session_moved = False
        self._left: list[Wire] = []  # links to the server that the machine has left
        self._scope = anyio.CancelScope()

    async def run(self, begin: MigrateBegin) -> Dialer | None:
        """Takes part in it.

        Returns:
            A dialer for the other server, if the session goes on there as the same one.
        """
        try:
            with self._scope:
                await self._run(begin)
            if self._scope.cancelled_caught:
                log.info("the machine stays at %s", self._here.target)
        except SpicebridgeError as error:
            log.warning("the machine is about to move, and we cannot follow at once: %s", error)
            with suppress(ChannelClosedError):  # then the whole session has ended meanwhile
                await self._main.send_message(MigrationMsgC.CONNECT_ERROR)
        finally:
            for channel in (self._main, *self._channels.values()):
                channel.forget_move()
            for wire in self._left:
                wire.close()
            if self._there is not None:
                self._there.close()
        return self._there.dialer if self._there is not None and self._session_moved else None

    async def _run(self, begin: MigrateBegin) -> None:
        target = target_there(self._here.target, begin.target)
        log.info("the machine is about to move from %s to %s", self._here.target, target)
        for channel in (self._main, *self._channels.values()):
            channel.expect_move()
        dialer = Dialer(target, self._here.timeout)
        async with step(f"linking at {target}", ANSWER_TIMEOUT):
            self._there, seamless = await link_there(
                dialer, self._session_id, list(self._channels), begin.version
            )
        if not seamless:
            for channel in (self._main, *self._channels.values()):
                channel.forget_move()
            await self._main.send_message(MigrationMsgC.CONNECTED)
            await anyio.sleep_forever()
        await self._main.send_message(MigrationMsgC.CONNECTED_SEAMLESS)
        async with anyio.create_task_group() as self._tasks:
            self._tasks.start_soon(self._move_main, self._there)
            for key, channel in self._channels.items():
                self._tasks.start_soon(self._move, self._there, key, channel)
        self._tasks = None
        moved = {"event": "moved", "fields": {"to": str(target)}}
        log.info("the machine has moved to %s", target, extra=moved)

    def add(self, key: tuple[int, int], channel: Channel) -> None:
        """Has a channel move that was linked meanwhile."""
        self._channels[key] = channel
        if self._tasks is not None and self._there is not None:
            self._tasks.start_soon(self._move, self._there, key, channel)

    async def _move_main(self, there: Successor) -> None:
        main, there.main = there.main, None
        if main is not None:
            self._session_moved = await self._moved(self._main, main)

    async def _move(self, there: Successor, key: tuple[int, int], channel: Channel) -> None:
        channel.expect_move()  # one that was linked meanwhile, too
        try:
            linked = there.channels.get(key) or await there.link_channel(self._session_id, key)
        except SpicebridgeError as error:
            log.warning("%s cannot move: %s", channel.name, error)
            channel.hang_up()  # else the server waits for it
            return
        del there.channels[key]
        if self._told:
            channel.hurry_move()
        await self._moved(channel, linked)

    async def _moved(self, channel: Channel, there: Channel) -> bool:
        """Waits until a channel has moved; returns whether it could."""
        try:
            self._left.append(await channel.move(there, self._hurry))
        except SpicebridgeError as error:
            log.warning("%s", error)
            there.abort()
            return False
        except BaseException:
            there.abort()
            raise
        return True

    def _hurry(self) -> None:
        """One channel has been told that the machine is gone: so have the others."""
        self._told = True
        for channel in (self._main, *self._channels.values()):
            channel.hurry_move()

    def cancel(self) -> None:
        """The machine stays."""
        self._scope.cancel()

    async def end(self) -> Successor | None:
        """The machine has moved without the state of the channels.

        Returns:
            Where the session begins anew; None if nothing is linked there.
        """
        there, self._there = self._there, None
        if there is not None and there.main is not None:
            try:
                await there.main.send_message(MigrationMsgC.END)
            except ChannelClosedError as error:  # it is dialled anew
                log.debug("%s", error)
                there.close()
                there.main = None
            for channel in there.channels.values():
                channel.abort()  # bridges link anew, so that the guest sees its peers go and come
            there.channels.clear()
        return there

    def outlived(self) -> Successor | None:
        """Where to begin anew, if the session was lost though the machine lives on."""
        if self._there is None or not self._told:
            return None
        return Successor(self._there.dialer)


def target_there(target: Target, moves_to: MigrationTarget) -> Target:
    """The server that a machine moves to, reached as the one that it leaves.

    What has to be encrypted here has to be there: a server cannot talk us out of it.

    Raises:
        UsageError: it has no port for TLS, and TLS is needed.
    """
    plain = target.plain and _there(target.plain, moves_to.host, moves_to.port)
    secure = target.secure
    if secure is not None or plain is None:
        secure = _there(secure or target.plain, moves_to.host, moves_to.tls_port)
    trust = replace(target.trust, host_subject=moves_to.cert_subject)
    return replace(target, plain=plain, secure=secure, trust=trust)


def _there(here: ServerAddress | None, host: str, port: int | None) -> ServerAddress | None:
    if port is None:
        return None
    if isinstance(here, WebAddress):
        return WebAddress(host, port, here.path)
    return TcpAddress(host, port)
