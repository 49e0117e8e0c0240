"""The data path: one application and one linked channel, while both are there.

Two tasks carry bytes, one each way. Each reads only when it has written what it read before, so a
slow side slows the other one and memory does not depend on how much flows. Where all that was read
can be written at once, which is the rule, the tasks sleep: `_take` and `_give` are called by the
loop itself, read by read, and others have their turn in between.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Final, TypeGuard

import anyio
import anyio.lowlevel

from spicebridge.channel import CLOSE_TIMEOUT, Channel, ChannelClosedError
from spicebridge.endpoints.base import Application
from spicebridge.errors import SpicebridgeError, one_error
from spicebridge.protocol.constants import PortEventType
from spicebridge.protocol.events import Event, PortEvent, PortInit
from spicebridge.transport.splice import Splice

log = logging.getLogger(__name__)

_LOOK_EVERY: Final = 0.05
"""Seconds between two looks at whether an application that has ended its sending is still there."""

_LOOK_WAITING: Final = 0.5
"""Seconds between two such looks while the guest has not opened the port."""

_BULK: Final = 64 * 1024
_BULK_AFTER: Final = 4
"""Reads of so many bytes, one after another, after which an application is taken to write large
pieces: many small ones may come in one read, too, and fill a pipe's slots with next to nothing."""


@dataclass
class Traffic:
    """What a bridge has moved.

    Attributes:
        down: bytes from the channel to the application.
        up: bytes from the application to the channel.
    """

    down: int = 0
    up: int = 0


class Ended(Enum):
    """Why a join came to its end."""

    APPLICATION = "the application has gone"
    PORT_CLOSED = "the guest closed the port"
    CHANNEL_CLOSED = "the channel was closed"
    STOPPED = "spicebridge is stopping"


class Join:
    """Carries bytes between an application and a channel.

    Args:
        application: the one.
        channel: the other; where its `port` says that it is closed, the application's bytes wait.
        traffic: where the bytes are counted.
        keep: whether the application rides it out when the other side goes: on a client, the
            guest that closes the port; on a server, the client.
        detach: whether the channel stays linked once the application has gone, so that what comes
            afterwards waits for the next one.

    Attributes:
        failure: how the link of the channel broke, if it did.
    """

    def __init__(
        self,
        application: Application,
        channel: Channel,
        traffic: Traffic,
        *,
        keep: bool = False,
        detach: bool = False,
    ) -> None:
        self._application = application
        self._stream = application.stream
        self._channel = channel
        self._traffic = traffic
        self._keep = keep
        self._detach = detach
        self._open = channel.port is None or channel.port.opened
        self._changed = anyio.Event()  # of _open or _stopping
        self._stopping = False
        self._deaf = False  # the application takes nothing more
        self._left: Sequence[memoryview | Event] = ()  # what the application did not take at once
        self._delivering = False
        self._payload = channel.payload_buffer()
        self._down_splice = channel.splice_to(self._stream)
        self._up_splice = channel.splice_from(self._stream)
        self._bulk = 0  # large pieces that the application has sent one after another
        self._giving = 0  # bytes that the channel did not take at once
        self._all_read = False  # the application has ended its sending, or had its say
        self._sending_ended = False  # it, and all of that has gone
        self._all_sent = False  # the same, and not because we had it stop
        self._finished = False
        self._down_scope = anyio.CancelScope()
        self._up_scope = anyio.CancelScope()
        self._ended: Ended | None = None
        self._gone = False  # we have ended our side
        self.failure: ChannelClosedError | None = None

    async def run(self) -> Ended:
        """Carries bytes until one side has gone, and what was on its way then.

        Returns:
            Which side it was. If it was not the application, the caller lets that go, too.

        Raises:
            ProtocolError: the peer broke the protocol.
        """
        try:
            with one_error():
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(self._down)
                    tasks.start_soon(self._up)
        finally:
            for splice in (self._down_splice, self._up_splice):
                if splice is not None:
                    splice.close()
        self._finished = True
        return self._ended or Ended.APPLICATION

    def stop(self) -> None:
        """Ends it: what the application has written by now still goes, and what the peer sends
        until it closes."""
        self._stopping = True
        self._changed.set()
        self._stream.interrupt()

    @property
    def all_sent(self) -> bool:
        """Whether the application has sent all that it would; not if it was stopped before."""
        return self._all_sent

    @property
    def unsent(self) -> bool:
        """Whether something was taken from the application that did not all go."""
        return self._giving > 0

    @property
    def leaving(self) -> bool:
        """Whether the application has gone, as far as can be told, and the rest is tidying up."""
        if self._finished or (self._sending_ended and self._application.linger is not None):
            return True
        return self._stream.hung_up()

    def _end(self, reason: Ended) -> None:
        if self._ended is None:
            self._ended = reason

    # From the channel to the application

    async def _down(self) -> None:
        with self._down_scope:
            try:
                await self._carry_down()
            except ChannelClosedError as error:
                if not self._gone:  # or the peer may do as it likes
                    self.failure = error
                self._end(Ended.CHANNEL_CLOSED)
            # the application may still be sending; nobody is there to take it
            self._up_scope.cancel()

    async def _carry_down(self) -> None:
        splice = self._down_splice
        while await self._channel.receive_each(
            self._take, None if self._deaf else splice, self._count_down
        ):
            if splice is not None and splice.held and not self._deaf:
                await self._write(splice)
                continue
            items, self._left = self._left, ()
            if not await self._deliver(items):
                self._end(Ended.PORT_CLOSED)
                return
        self._end(Ended.CHANNEL_CLOSED)

    def _count_down(self, count: int) -> None:
        self._traffic.down += count

    def _take(self, items: Sequence[memoryview | Event]) -> bool:
        """Gives the application what it takes at once; what is left is for `_deliver`."""
        if not items:
            return True
        if self._deaf or not _all_data(items):
            self._left = items
            return False
        size = sum(map(len, items))
        try:
            done = self._stream.write_some(items)
        except OSError:  # as `_deliver` will find
            done = False
        self._traffic.down += size - sum(map(len, items))
        self._left = items
        return done

    async def _deliver(self, items: Sequence[memoryview | Event]) -> bool:
        """Gives the application its bytes; returns False once the guest has closed the port."""
        views: list[memoryview] = []
        for index, item in enumerate(items):
            if isinstance(item, memoryview):
                views.append(item)
                continue
            if not isinstance(item, PortEvent):
                log.debug("%s: %s", self._channel.name, item)
                continue
            await self._write(views)
            views = []
            if item.event == PortEventType.BREAK:
                await self._break()
            elif not self._port_event(item.event):
                self._channel.hold(items[index + 1 :])
                return False
        await self._write(views)
        return True

    def _port_event(self, event: PortEventType) -> bool:
        """Notes what the guest did; returns False if that ends the join."""
        log.debug("%s: the guest: %s", self._channel.name, event.name.lower())
        if self._channel.port is None:  # we are the server
            return True
        was_open, self._open = self._open, event == PortEventType.OPENED
        self._channel.port = PortInit(self._channel.port.name, self._open)
        self._changed.set()
        return self._open or self._keep or not was_open

    async def _break(self) -> None:
        """Passes a break on where the application can have one."""
        given = self._application.send_break is not None and not self._deaf
        log.info(
            "%s: a break, %s",
            self._channel.name,
            f"passed on to {self._application.name}" if given else "which nobody can be given",
            extra={"event": "break", "fields": {"channel": self._channel.name, "given": given}},
        )
        if self._application.send_break is not None and given:
            await self._application.send_break()

    async def _write(self, rest: list[memoryview] | Splice) -> None:
        if not rest or self._deaf:
            return
        self._delivering = True
        try:
            if isinstance(rest, Splice):
                await rest.drain_all()
            else:
                size = sum(map(len, rest))
                await self._stream.write_all(rest)
                self._traffic.down += size
        except OSError as error:
            log.debug("%s takes nothing more: %s", self._application.name, error)
            self._deaf = True
            if self._application.ends_with_output:
                self.stop()
        self._delivering = False

    # From the application to the channel

    async def _up(self) -> None:
        with self._up_scope:
            try:
                await self._carry_up()
            except ChannelClosedError as error:
                # what the peer sent before it went may still wait to be read: the other task ends
                log.debug("%s", error)
                await anyio.sleep_forever()
            self._sending_ended = True
            self._all_sent = not self._stopping
            self._end(Ended.STOPPED if self._stopping and not self._deaf else Ended.APPLICATION)
            if not self._stopping:
                await self._linger()
            if self._detach and not self._stopping:
                self._down_scope.cancel()
                return
            if not await self._settle():
                self._down_scope.cancel()  # who closes the channel reads it meanwhile
                return
            self._gone = True
            self._channel.end()
            with anyio.move_on_after(CLOSE_TIMEOUT):
                await anyio.sleep_forever()  # until the peer has ended its side, too
            log.warning("%s: the peer does not close its side", self._channel.name)
            self._down_scope.cancel()

    async def _settle(self) -> bool:
        """Settles the channel, which tells something only while it is read.

        Returns:
            False if it is not, because the application takes nothing.
        """
        await self._channel.settle()
        deadline = anyio.current_time() + CLOSE_TIMEOUT
        while self._delivering:
            if anyio.current_time() > deadline:
                return False
            await anyio.sleep(_LOOK_EVERY)
            await self._channel.settle()
        return True

    async def _carry_up(self) -> None:
        while not self._all_read and (self._open or await self._until_open()):
            if not self._stopping:
                await self._stream.watch(self._give)
            else:
                self._give()
                await anyio.lowlevel.checkpoint()
            if self._giving:
                await self._channel.flush()
                self._traffic.up += self._giving
                self._giving = 0

    def _give(self) -> bool:
        """Reads what the application sends, and sends it on; returns whether to wait for more."""
        if not self._open:
            return False
        splice = self._up_splice if self._bulk >= _BULK_AFTER else None
        if splice is not None and not splice.usable:  # since a live migration
            splice = None
        try:
            if splice is not None:
                count = splice.fill(self._channel.room)
            else:
                count = self._stream.gather_nowait(self._payload[: self._channel.room])
        except OSError as error:
            log.warning("%s: %s", self._application.name, error.strerror)
            count = 0
        if not count:
            self._all_read = count == 0 or self._stopping
            return not self._all_read
        self._bulk = self._bulk + 1 if count >= _BULK else 0
        if not self._channel.send_payload_nowait(count, splice):
            self._giving = count
            return False
        self._traffic.up += count
        return not self._stopping

    async def _until_open(self) -> bool:
        """Waits until the guest opens the port; what the application sends waits with it.

        Returns:
            Whether it did; otherwise the application went first, or we are stopping.
        """
        while not self._open:
            if self._stopping:
                if held := self._stream.unread():
                    log.warning("%s: the guest never took %d bytes", self._application.name, held)
                return False
            if self._application.gone:
                log.debug("%s went before the guest opened the port", self._application.name)
                return False
            self._changed = anyio.Event()
            with anyio.move_on_after(_LOOK_WAITING):
                await self._changed.wait()
        return True

    async def _linger(self) -> None:
        """Waits while an application that has ended its sending may still be reading."""
        linger = self._application.linger
        seen, silent = self._traffic.down, 0.0
        while not (self._deaf or self._stopping or self._stream.hung_up()):
            if linger is not None and silent >= linger:
                return
            await anyio.sleep(_LOOK_EVERY if linger is None else min(linger, _LOOK_EVERY))
            if self._delivering or self._traffic.down != seen:
                seen, silent = self._traffic.down, 0.0
            else:
                silent += _LOOK_EVERY


def _all_data(items: Sequence[memoryview | Event]) -> TypeGuard[list[memoryview]]:
    return set(map(type, items)) == {memoryview}


async def dismiss(application: Application) -> int:
    """Lets an application go whose other side has gone: it reads end of file behind all the rest.

    What it still sends is read until it closes, as closing at once could cost it what it has not
    read yet. Bounded by `CLOSE_TIMEOUT`.

    Returns:
        How many bytes that was.
    """
    scrap = memoryview(bytearray(65536))
    dropped = 0
    with anyio.move_on_after(CLOSE_TIMEOUT):
        try:
            application.stream.end()
            while count := await application.stream.read_into(scrap):
                dropped += count
                await anyio.lowlevel.checkpoint()
        except (OSError, SpicebridgeError):
            pass  # it has gone
    return dropped
