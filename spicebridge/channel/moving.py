"""Live migration: a channel goes on at another server, and who uses it notices but a pause."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Final

import anyio

from spicebridge.channel.flow import ChannelClosedError, Flow, data_size
from spicebridge.channel.move import Move
from spicebridge.errors import SpicebridgeError
from spicebridge.protocol.constants import MigrateFlags, MsgC
from spicebridge.protocol.events import Event, MigrateData, SeamlessAck
from spicebridge.transport.wire import Wire

log = logging.getLogger(__name__)

_READ_AHEAD: Final = 16 * 1024 * 1024
"""Bytes that are read of a channel that moves before whoever uses it has asked for them."""

_LOOK_EVERY: Final = 0.05
"""Seconds between two looks at whether somebody reads a channel that has to move."""


class Moving(Flow):
    """A linked channel that can move; `Channel` is the whole of it."""

    def expect_move(self) -> None:
        """Gets ready to `move`; until then we send so slowly that the guest can keep up.

        libspice-server stops reading a channel with 128 DATA that the guest has not taken. If the
        machine is stopped then, at the end of its migration, our FLUSH_MARK is never read, and the
        session is lost after 10 seconds.
        """
        self._move = self._move or Move()

    async def agrees_to_move(self) -> bool:
        """Whether the server that a machine moves to takes the state of channels, once asked.

        Raises:
            ChannelClosedError, ProtocolError: see `receive`.
        """
        async with self._sending:  # no PONG may come before the state
            while (items := await self.receive()) is not None:
                for index, item in enumerate(items):
                    if isinstance(item, SeamlessAck):
                        self.hold(items[index + 1 :])
                        return item.agreed
        raise ChannelClosedError(f"{self.name} was closed")

    def hurry_move(self) -> None:
        """Has MIGRATE looked for, though nobody may be reading: this server has said it elsewhere.

        What comes before it, up to `_READ_AHEAD` bytes, is kept for who reads next.
        """
        if self._move is not None:
            self._move.urgent = True
            self._move.note_change()

    def forget_move(self) -> None:
        """Stays at this server."""
        if self._move is not None:
            move, self._move = self._move, None
            move.note_change()

    async def move(self, there: Moving, told: Callable[[], None]) -> Wire:
        """Goes on as another link, at the server that the machine moves to; see `expect_move`.

        Waits for MIGRATE, has sent what had begun, hands over the channel's state, and from then
        on reads from there and writes to there. Nothing may be received from `there` before:
        libspice-server aborts if anything but that state is the first word it hears.

        Args:
            there: the other link; it belongs to this channel afterwards.
            told: called once MIGRATE has come.

        Returns:
            The wire to this server, for the caller to close once all channels have moved.

        Raises:
            ChannelClosedError: this server or the other one has gone; nothing more comes.
        """
        move = self._move
        if move is None:
            raise ChannelClosedError(f"{self.name} does not move")
        try:
            await self._until_told(move)
            told()
            async with self._sending:
                flags = self._conversation.moves or MigrateFlags(0)
                if MigrateFlags.NEED_FLUSH in flags:
                    self._conversation.send(MsgC.MIGRATE_FLUSH_MARK)
                while not self._write_nowait() and self._begun:
                    await self._wire.writable()
                if MigrateFlags.NEED_DATA_TRANSFER in flags:
                    await self._pass_state(there)
                if self._closed:
                    raise ChannelClosedError("closed meanwhile")
                return self._go_on_at(there)
        except (OSError, SpicebridgeError, anyio.ClosedResourceError) as error:
            why = "we have closed it" if self._closed else error
            raise self._lost_in_move(f": {why}") from error
        except BaseException:
            if self._conversation.moves is not None:  # what comes next is nothing for who reads
                self._lost_in_move()
            raise
        finally:
            self.forget_move()

    def _lost_in_move(self, why: str = "") -> ChannelClosedError:
        self._failure = ChannelClosedError(f"{self.name} was lost in a live migration{why}")
        return self._failure

    async def _until_told(self, move: Move) -> None:
        """Waits for MIGRATE, which is read by us if nobody else does."""
        while self._conversation.moves is None:
            if self._over:
                raise ChannelClosedError("the server ended it")
            if not move.urgent:
                await move.change()
            elif self._reading or sum(map(data_size, self._held)) > _READ_AHEAD:
                with anyio.move_on_after(_LOOK_EVERY):
                    await move.change()
            else:
                await self._read_ahead(move)
        move.reading = True
        self._conversation.spare_views()

    async def _read_ahead(self, move: Move) -> None:
        move.reading = True
        try:
            self._conversation.spare_views()
            for item in await self._read_moving():
                self._held.append(_copy(item))
        finally:
            move.reading = self._conversation.moves is not None
            move.note_change()

    async def _read_moving(self) -> Sequence[memoryview | Event]:
        if self._conversation.more:
            return self._understood(0)
        while (count := self._wire.read_nowait(self._conversation.receive_buffer())) is None:
            await self._wire.readable()
        if (items := self._received(count)) is None:
            raise ChannelClosedError("the server ended it")
        return items

    async def _pass_state(self, there: Moving) -> None:
        """Hands MIGRATE_DATA on as it comes; it is nobody's business but the servers'."""
        left: int | None = None
        while left is None or left:
            for item in await self._read_moving():
                if isinstance(item, MigrateData):
                    left = item.size
                    header = there._conversation.state_header(left)
                    await there._wire.write_all([memoryview(header)])
                elif not isinstance(item, memoryview):
                    log.debug("%s, on its way: %s", self.name, item)
                elif left is None:
                    self._held.append(_copy(item))
                elif left:
                    left -= len(item)
                    await there._wire.write_all([item])
                else:
                    log.debug("%s: %d bytes behind its state", self.name, len(item))

    def _go_on_at(self, there: Moving) -> Wire:
        old, self._wire = self._wire, there._wire
        self.linked = there.linked
        self._conversation.move_on(there._conversation)
        self._held += there._held
        for splice in self._splices:
            if not splice.closed:
                splice.replace(old, self._wire)
        if self._splice is not None and not self._splice.usable:
            self._splice.take_back(self.payload_buffer())
            self._splice = None
        self._moved = True
        return old


def _copy(item: memoryview | Event) -> memoryview | Event:
    return memoryview(bytes(item)) if isinstance(item, memoryview) else item
